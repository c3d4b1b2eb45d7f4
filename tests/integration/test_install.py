"""The install scripts: the real ones, with a fake conda (tests/fakes/conda) in place of what comes from the network."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

CLONE = Path(__file__).parents[2]
FAKES = CLONE / "tests" / "fakes" / "conda"
COMMANDS = ("caldp-install-all", "caldp-install-conda", "caldp-install-cal", "caldp-install-fitscut")
INSTALLER = "Miniforge3-Linux-x86_64.sh"
CHECKSUM = "Miniforge3-26.3.2-3-Linux-x86_64.sh.sha256"
CHANNEL = ["--override-channels", "-c", "conda-forge"]

#: What the scripts may use besides bash and coreutils; what else is on PATH they must not need.
TOOLS = (
    "awk bash basename cat chmod cp curl cut date dirname env grep head ls mkdir mktemp mv perl rm rmdir sed sh "
    "sha256sum shasum sleep tee touch tr uname wget"
).split()


def present(*tools: str) -> list[str]:
    """Return those of alternative tools that are here; one of them must be, so the first stands for none."""
    return [tool for tool in tools if shutil.which(tool)] or [tools[0]]


class Site:
    """A clone, a home and a place to download from; blanks wherever a user may have them."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.clone = folder / "my clone"
        self.mirror = folder / "mi rror"
        self.scratch = folder / "scra tch"
        self.tools = folder / "tools"
        self.log = folder / "log"
        self.conda_dir = self.home / "miniconda3"
        for path in (self.home, self.clone / "scripts", self.mirror, self.scratch, self.tools):
            path.mkdir(parents=True)
        for script in (*COMMANDS, "caldp-install-lib.sh"):
            shutil.copy(CLONE / "scripts" / script, self.clone / "scripts")
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.tools / tool).symlink_to(found)
        self.machine("Linux", "x86_64")
        self.publish()
        self.env = {
            "PATH": str(self.tools),
            "HOME": str(self.home),
            "TMPDIR": str(self.scratch),
            "CALDP_MINIFORGE_URL": f"file://{self.mirror}",
            "FAKE_CONDA_HOME": str(FAKES),
            "FAKE_CONDA_LOG": str(self.log),
        }

    def machine(self, system: str, processor: str) -> None:
        uname = self.tools / "uname"
        uname.unlink()
        uname.write_text(f'#!/bin/sh\ncase $1 in -s) echo "{system}" ;; -m) echo "{processor}" ;; esac\n')
        uname.chmod(0o755)

    def publish(self, name: str = INSTALLER, checksum: str = CHECKSUM) -> None:
        content = (FAKES / "miniforge.sh").read_bytes()
        (self.mirror / name).write_bytes(content)
        # The path is that of upstream's own sums.
        (self.mirror / checksum).write_text(f"{hashlib.sha256(content).hexdigest()}  ./{checksum[:-7]}\n")

    def run(self, command: str, *args: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.clone / "scripts" / command, *args],
            env=self.env | environ,
            cwd=self.clone,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        print(done.stdout, done.stderr)
        assert not list(self.scratch.iterdir()) or done.returncode < 0
        assert "Traceback" not in done.stderr and "unbound variable" not in done.stderr
        return done

    def calls(self) -> list[list[str]]:
        """Return what was called since the last time, without the questions that change nothing."""
        if not self.log.exists():
            return []
        lines = [line.split("\t") for line in self.log.read_text().splitlines()]
        self.log.unlink()
        return [line for line in lines if line[1:] not in (["--version"], ["env", "list"])]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def specs(name: str = "caldp_stable", python: str = "3.11", hstcal: str = "hstcal") -> list[str]:
    return ["--yes", "--name", name, *CHANNEL, f"python={python}", hstcal, "pip"]


def runs(name: str, *programs: str) -> list[list[str]]:
    return [["conda", "run", "--no-capture-output", "--name", name, program, "--version"] for program in programs]


PROGRAMS = ("calacs.e", "calwf3.e", "cs0.e")


# ---- all goes well


def test_everything(site: Site) -> None:
    done = site.run("caldp-install-all")
    assert done.returncode == 0
    run = ["conda", "run", "--no-capture-output", "--name", "caldp_stable"]
    assert site.calls() == [
        ["installer", "-b", "-f", "-p", str(site.conda_dir)],
        ["conda", "init", "bash"],
        ["conda", "create", *specs()],
        *runs("caldp_stable", *PROGRAMS),
        [*run, "python", "-m", "pip", "install", ".[dev,test]"],
        ["python", str(site.clone), "-m", "pip", "install", ".[dev,test]"],
        [*run, "caldp", "doctor", "caldp-config-offsite"],
    ]
    for line in ("fake calacs.e --version", "fake calwf3.e --version", "fake cs0.e --version", "fake caldp doctor"):
        assert line in done.stdout
    assert not done.stderr
    assert done.stdout.endswith(
        f"    source {site.conda_dir}/etc/profile.d/conda.sh\n    conda activate caldp_stable\n"
    )
    assert str(site.conda_dir) in (site.home / ".bashrc").read_text()
    assert sorted(p.name for p in site.conda_dir.iterdir()) == ["bin", "conda-meta", "envs"]


def test_step_by_step(site: Site) -> None:
    assert site.run("caldp-install-conda").returncode == 0
    assert site.calls() == [["installer", "-b", "-f", "-p", str(site.conda_dir)], ["conda", "init", "bash"]]
    assert site.run("caldp-install-cal").returncode == 0
    assert site.calls() == [["conda", "create", *specs()], *runs("caldp_stable", *PROGRAMS)]
    assert site.run("caldp-install-fitscut", site.conda_dir / "envs" / "caldp_stable").returncode == 0
    assert not site.calls()


@pytest.mark.parametrize("command", ["caldp-install-all", "caldp-install-cal"])
def test_parameters_in_the_order_of_the_readme(site: Site, command: str) -> None:
    where = site.home / "elsewhere"
    if command == "caldp-install-cal":
        assert site.run("caldp-install-conda", where, "--no-init").returncode == 0
    done = site.run(command, "3.1.0", "3.12.4", "my-env", where)
    assert done.returncode == 0
    assert ["conda", "create", *specs("my-env", "3.12.4", "hstcal=3.1.0")] in site.calls()
    assert f"source {where}/etc/profile.d/conda.sh\n    conda activate my-env\n" in done.stdout
    assert not site.conda_dir.exists()


@pytest.mark.parametrize(
    ("hstcal", "spec"),
    [
        ("stable", "hstcal"),
        ("latest", "hstcal"),
        ("3.2.0", "hstcal=3.2.0"),
        ("3.2.*", "hstcal=3.2.*"),
        ("3", "hstcal=3"),
    ],
)
def test_versions_of_hstcal(site: Site, hstcal: str, spec: str) -> None:
    site.run("caldp-install-conda")
    done = site.run("caldp-install-cal", hstcal)
    assert done.returncode == 0
    assert ["conda", "create", *specs(hstcal=spec)] in site.calls()
    assert ("latest is the same as stable" in done.stdout) is (hstcal == "latest")


def test_relative_directory(site: Site) -> None:
    site.clone.rename(site.home / "clone")
    site.clone = site.home / "clone"
    assert site.run("caldp-install-conda", "../conda/", "--no-init").returncode == 0
    assert site.calls() == [["installer", "-b", "-f", "-p", f"{site.clone}/../conda"]]
    assert (site.home / "conda" / "bin" / "conda").exists()


def test_an_empty_directory_is_as_good_as_none(site: Site) -> None:
    site.conda_dir.mkdir()
    assert site.run("caldp-install-conda").returncode == 0


def test_without_init(site: Site) -> None:
    assert site.run("caldp-install-all", "--no-init").returncode == 0
    assert not (site.home / ".bashrc").exists()


@pytest.mark.parametrize("argument", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help(site: Site, command: str, argument: str) -> None:
    done = site.run(command, argument)
    assert done.returncode == 0
    order = {
        "caldp-install-all": "[HSTCAL] [PY_VER] [CONDA_ENV] [CONDA_DIR] [--replace] [--no-init]",
        "caldp-install-conda": "[CONDA_DIR] [--replace] [--no-init]",
        "caldp-install-cal": "[HSTCAL] [PY_VER] [CONDA_ENV] [CONDA_DIR]",
        "caldp-install-fitscut": "[PREFIX]",
    }
    assert done.stdout.startswith(f"Usage: scripts/{command} {order[command]}\n")
    assert not site.calls()


@pytest.mark.parametrize("prefix", [[], ["/anywhere"]])
def test_fitscut_is_not_needed(site: Site, prefix: list[str]) -> None:
    done = site.run("caldp-install-fitscut", *prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fitscut is not needed" in done.stdout


# ---- what is there is used


def test_again(site: Site) -> None:
    site.run("caldp-install-all")
    mine = site.conda_dir / "envs" / "mine"
    mine.mkdir()
    kept = site.conda_dir / "envs" / "caldp_stable" / "kept"
    kept.touch()
    site.calls()
    assert site.run("caldp-install-all").returncode == 0
    calls = site.calls()
    assert calls[:3] == [
        ["conda", "init", "bash"],
        ["conda", "install", *specs()],
        ["conda", "update", "--yes", "--name", "caldp_stable", *CHANNEL, "hstcal"],
    ]
    assert mine.exists() and kept.exists()
    assert [p.name for p in site.home.iterdir() if p.name.startswith("mini")] == ["miniconda3"]


def test_again_with_a_version(site: Site) -> None:
    site.run("caldp-install-all")
    site.calls()
    assert site.run("caldp-install-cal", "3.1.0").returncode == 0
    assert [call[1] for call in site.calls()] == ["install", "run", "run", "run"]


def test_no_download_where_conda_is(site: Site) -> None:
    """An offline site with a conda of its own, in a directory with blanks even."""
    there = site.home / "our conda"
    (there / "bin").mkdir(parents=True)
    shutil.copy(FAKES / "conda", there / "bin")
    done = site.run("caldp-install-all", "stable", "3.11", "e", there, CALDP_MINIFORGE_URL="file:///nowhere")
    assert done.returncode == 0
    assert f"source {str(there).replace(' ', chr(92) + ' ')}/etc/profile.d/conda.sh" in done.stdout


# ---- replacing


@pytest.mark.parametrize("position", range(5))
def test_replace(site: Site, position: int) -> None:
    site.run("caldp-install-all")
    (site.conda_dir / "mine").touch()
    site.calls()
    args = ["stable", "3.11", "caldp_stable", str(site.conda_dir)]
    args.insert(position, "--replace")
    done = site.run("caldp-install-all", *args)
    assert done.returncode == 0
    assert [call[:2] for call in site.calls()][:3] == [["installer", "-b"], ["conda", "init"], ["conda", "create"]]
    (aside,) = site.home.glob("miniconda3.replaced-*")
    assert (aside / "mine").exists() and not (site.conda_dir / "mine").exists()
    assert f"rm -rf {aside}" in done.stdout


def test_replace_what_is_broken(site: Site) -> None:
    site.run("caldp-install-conda")
    (site.conda_dir / "is-broken").touch()
    done = site.run("caldp-install-conda")
    assert done.returncode == 1
    assert "does not work" in done.stderr
    assert site.run("caldp-install-conda", "--replace").returncode == 0
    assert not (site.conda_dir / "is-broken").exists()


@pytest.mark.parametrize(
    ("trouble", "status"), [("disk", 1), ("empty", 1), ("terminated", 143), ("checksum", 1), ("unreachable", 3)]
)
def test_replace_that_fails_changes_nothing(site: Site, trouble: str, status: int) -> None:
    site.run("caldp-install-all")
    (site.conda_dir / "mine").touch()
    if trouble == "checksum":
        with (site.mirror / INSTALLER).open("a") as file:
            file.write("# changed\n")
    if trouble == "unreachable":
        (site.mirror / INSTALLER).unlink()
    done = site.run("caldp-install-all", "--replace", FAKE_INSTALLER=trouble)
    assert done.returncode == status
    assert "caldp-install-all --replace" in done.stderr
    assert (site.conda_dir / "mine").exists()
    assert (site.conda_dir / "bin" / "conda").exists()
    assert not list(site.home.glob("*replaced*"))


@pytest.mark.parametrize("flags", [[], ["--replace"]])
def test_what_is_no_conda_is_not_touched(site: Site, flags: list[str]) -> None:
    (site.conda_dir / "bin").mkdir(parents=True)
    (site.conda_dir / "thesis.tex").touch()
    done = site.run("caldp-install-all", *flags)
    assert done.returncode == 1
    assert "is no conda installation" in done.stderr
    assert (site.conda_dir / "thesis.tex").exists()
    assert not site.calls()


def test_a_file_is_not_touched(site: Site) -> None:
    site.conda_dir.touch()
    assert site.run("caldp-install-conda", "--replace").returncode == 1
    assert site.conda_dir.is_file()


@pytest.mark.parametrize("which", ["home", "above home", "link to home", "clone", "above clone"])
def test_precious_directories_are_not_replaced(site: Site, tmp_path: Path, which: str) -> None:
    """Not even where they look like a conda installation."""
    (tmp_path / "link").symlink_to(site.home)
    target = {
        "home": site.home,
        "above home": tmp_path,
        "link to home": tmp_path / "link",
        "clone": site.clone,
        "above clone": tmp_path,
    }[which]
    for folder in ("bin", "conda-meta"):
        (target / folder).mkdir()
    shutil.copy(FAKES / "conda", target / "bin")
    done = site.run("caldp-install-conda", f"{target}/", "--replace")
    assert done.returncode == 2
    assert "nothing is installed or replaced there" in done.stderr
    assert (target / "conda-meta").exists()
    assert not site.calls()


def test_an_empty_home_is_no_place_either(site: Site) -> None:
    assert site.run("caldp-install-conda", site.home).returncode == 2
    assert not list(site.home.iterdir())


# ---- unfinished installations


@pytest.mark.parametrize(("trouble", "status"), [("disk", 1), ("empty", 1), ("terminated", 143)])
def test_an_installer_that_fails_leaves_nothing(site: Site, trouble: str, status: int) -> None:
    done = site.run("caldp-install-conda", FAKE_INSTALLER=trouble)
    assert done.returncode == status
    assert not site.conda_dir.exists()
    assert "To go on where it stopped, run" in done.stderr
    assert site.run("caldp-install-conda").returncode == 0


def test_killed_while_installing(site: Site) -> None:
    done = site.run("caldp-install-all", FAKE_INSTALLER="killed")
    assert done.returncode == -9
    assert (site.conda_dir / "conda-meta").exists()
    shutil.rmtree(site.scratch)
    site.scratch.mkdir()
    assert site.run("caldp-install-cal").returncode == 1
    done = site.run("caldp-install-all")
    assert done.returncode == 0
    assert "removing what an earlier, unfinished run left" in done.stdout


def test_the_command_that_is_printed_resumes(site: Site) -> None:
    args = ["3.2.*", "3.12", "my_env", str(site.home / "cond'a")]
    done = site.run("caldp-install-all", *args, "--no-init", "--replace", FAKE_CONDA="unreachable")
    assert done.returncode == 3
    match = re.search(r"To go on where it stopped, run (.*)", done.stderr)
    assert match
    assert shlex.split(match[1]) == [str(site.clone / "scripts" / "caldp-install-all"), *args, "--no-init"]
    site.calls()
    subprocess.run(["bash", "-c", match[1]], env=site.env, cwd=site.clone, check=True)
    assert [call[1] for call in site.calls()][0] == "create"


# ---- the download


@pytest.mark.parametrize(
    ("system", "processor", "name"),
    [
        ("Linux", "x86_64", "Linux-x86_64"),
        ("Linux", "aarch64", "Linux-aarch64"),
        ("Linux", "arm64", "Linux-aarch64"),
        ("Darwin", "x86_64", "MacOSX-x86_64"),
        ("Darwin", "arm64", "MacOSX-arm64"),
    ],
)
def test_machines(site: Site, system: str, processor: str, name: str) -> None:
    site.machine(system, processor)
    for path in site.mirror.iterdir():
        path.unlink()
    site.publish(f"Miniforge3-{name}.sh", f"Miniforge3-26.3.2-3-{name}.sh.sha256")
    assert site.run("caldp-install-conda").returncode == 0


@pytest.mark.parametrize(("system", "processor"), [("Linux", "ppc64le"), ("FreeBSD", "amd64"), ("Linux", "i686")])
def test_other_machines(site: Site, system: str, processor: str) -> None:
    site.machine(system, processor)
    done = site.run("caldp-install-conda")
    assert done.returncode == 1
    assert f"there is no installer for {system} on {processor}" in done.stderr


@pytest.fixture
def server(site: Site) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site.mirror))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("tool", present("curl", "wget"))
def test_download(site: Site, server: str, tool: str) -> None:
    (site.tools / {"curl": "wget", "wget": "curl"}[tool]).unlink(missing_ok=True)
    assert site.run("caldp-install-conda", CALDP_MINIFORGE_URL=server).returncode == 0
    (site.mirror / INSTALLER).unlink()
    done = site.run("caldp-install-conda", "--replace", CALDP_MINIFORGE_URL=server)
    assert done.returncode == 3
    assert f"cannot reach {server}{INSTALLER}" in done.stderr
    assert "404" in done.stderr


def test_without_anything_to_download_with(site: Site, server: str) -> None:
    for tool in ("curl", "wget"):
        (site.tools / tool).unlink(missing_ok=True)
    done = site.run("caldp-install-conda", CALDP_MINIFORGE_URL=server)
    assert done.returncode == 1
    assert "neither curl nor wget" in done.stderr


def test_unreachable(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets it, and it refuses
        port = taken.getsockname()[1]
        done = site.run("caldp-install-all", CALDP_MINIFORGE_URL=f"https://somebody:secret@127.0.0.1:{port}/x")
    assert done.returncode == 3
    assert f"cannot reach https://127.0.0.1:{port}/x/{INSTALLER}" in done.stderr
    for word in ("https_proxy", "CALDP_MINIFORGE_URL", "CONDA_DIR", "To go on"):
        assert word in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert not site.conda_dir.exists()
    assert not site.calls()


@pytest.mark.parametrize(
    "url", ["http://example.org/x", "ftp://x", "/mirror", "file://mirror", "http://127.0.0.1.evil"]
)
def test_urls_that_are_not_safe(site: Site, url: str) -> None:
    done = site.run("caldp-install-conda", CALDP_MINIFORGE_URL=url)
    assert done.returncode == 2
    assert "CALDP_MINIFORGE_URL" in done.stderr


@pytest.mark.parametrize("tool", present("sha256sum", "shasum"))
def test_the_checksum_is_checked(site: Site, tool: str) -> None:
    (site.tools / {"sha256sum": "shasum", "shasum": "sha256sum"}[tool]).unlink(missing_ok=True)
    right = (site.mirror / CHECKSUM).read_text()
    for wrong in ("0" * 64 + "  x\n", "", "<html>not found</html>", right[:63]):
        (site.mirror / CHECKSUM).write_text(wrong)
        done = site.run("caldp-install-conda")
        assert done.returncode == 1
        assert "is not what was published" in done.stderr
        assert not site.conda_dir.exists()
    assert not site.calls()
    (site.mirror / CHECKSUM).write_text(right.upper())
    assert site.run("caldp-install-conda").returncode == 0


def test_without_anything_to_check_with(site: Site) -> None:
    for tool in ("sha256sum", "shasum"):
        (site.tools / tool).unlink(missing_ok=True)
    assert site.run("caldp-install-conda").returncode == 1
    assert not site.calls()


def test_a_mirror_with_a_checksum_for_the_plain_name(site: Site) -> None:
    (site.mirror / CHECKSUM).rename(site.mirror / f"{INSTALLER}.sha256")
    assert site.run("caldp-install-conda").returncode == 0


def test_without_a_checksum_nothing_is_run(site: Site) -> None:
    (site.mirror / CHECKSUM).unlink()
    done = site.run("caldp-install-conda")
    assert done.returncode == 3
    assert CHECKSUM in done.stderr
    assert not site.calls()


# ---- the environment


@pytest.mark.parametrize(
    ("trouble", "status", "words"),
    [
        ("unreachable", 3, "cannot reach the channel conda-forge (https://conda.anaconda.org/conda-forge/linux-64"),
        ("invalid", 3, "cannot reach the channel conda-forge (https://mirror.example/conda-forge)"),
        ("not-found", 1, "conda-forge does not have what was asked for"),
        ("disk", 1, "conda create failed (exit status 1)"),
        ("no-list", 1, "env list failed"),
    ],
)
def test_trouble_with_the_channel(site: Site, trouble: str, status: int, words: str) -> None:
    done = site.run("caldp-install-all", FAKE_CONDA=trouble)
    assert done.returncode == status
    assert words in done.stderr
    assert "done. To use it" not in done.stdout
    site.calls()
    assert site.run("caldp-install-all").returncode == 0
    assert "installer" not in [call[0] for call in site.calls()]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_program(site: Site, program: str) -> None:
    done = site.run("caldp-install-all", FAKE_WITHOUT=program)
    assert done.returncode == 1
    assert f"{program} does not run in the environment caldp_stable" in done.stderr
    assert "4 of 4" not in done.stdout
    assert site.run("caldp-install-all").returncode == 0


def test_cal_without_conda(site: Site) -> None:
    done = site.run("caldp-install-cal")
    assert done.returncode == 1
    assert "there is no working conda in" in done.stderr
    assert "caldp-install-conda" in done.stderr


def test_a_directory_in_place_of_the_environment(site: Site) -> None:
    site.run("caldp-install-conda")
    mine = site.conda_dir / "envs" / "caldp_stable" / "mine"
    mine.parent.mkdir()
    mine.touch()
    done = site.run("caldp-install-cal")
    assert done.returncode == 1
    assert "is no conda environment" in done.stderr
    assert mine.exists()


@pytest.mark.parametrize(
    ("environ", "status", "words"),
    [
        ({"FAKE_PIP": "unreachable"}, 3, "cannot reach the Python package index"),
        ({"FAKE_PIP": "broken"}, 1, "pip install failed (exit status 1)"),
        ({"FAKE_DOCTOR": "1"}, 1, "caldp doctor finds something amiss"),
    ],
)
def test_trouble_with_caldp(site: Site, environ: dict[str, str], status: int, words: str) -> None:
    done = site.run("caldp-install-all", **environ)
    assert done.returncode == status
    assert words in done.stderr
    assert "done. To use it" not in done.stdout
    assert site.run("caldp-install-all").returncode == 0


# ---- bad usage


ALL = ["caldp-install-all", "caldp-install-cal"]


@pytest.mark.parametrize(
    ("commands", "args", "words"),
    [
        (ALL, ["a", "b", "c", "d", "e"], "5 parameters, at most 4"),
        (["caldp-install-conda"], ["a", "b"], "2 parameters, at most 1"),
        (["caldp-install-fitscut"], ["a", "b"], "2 parameters, at most 1"),
        (COMMANDS, ["--force"], "no option --force"),
        (["caldp-install-cal", "caldp-install-fitscut"], ["--replace"], "no option --replace"),
        *[(ALL, [v], f"HSTCAL '{v}'") for v in ("", "newest", "3.2.*; ls", "3.*.2", ">=3", "3.2\n", "*", "v3.2")],
        *[(ALL, ["stable", v], f"PY_VER '{v}'") for v in ("", "3", "3.6.10", "3.10", "2.7", "3.11.*", "py311")],
        *[
            (ALL, ["stable", "3.11", v], f"CONDA_ENV '{v}'")
            for v in ("", "a b", "a/b", "..", "$(x)", "base", "root", "a\nb", "ä")
        ],
        (ALL, ["stable", "3.11", "e", ""], "CONDA_DIR is empty"),
        (["caldp-install-conda"], [""], "CONDA_DIR is empty"),
        (["caldp-install-conda"], ["/a\nb"], "line feed"),
        (["caldp-install-conda"], ["/nowhere/a b"], "Miniforge cannot be installed where a path has blanks"),
        (["caldp-install-conda"], ["nowhere"], "Miniforge cannot be installed where a path has blanks"),
    ],
)
def test_bad_usage(site: Site, commands: list[str], args: list[str], words: str) -> None:
    for command in commands:
        done = site.run(command, *args)
        assert done.returncode == 2
        assert words in done.stderr
        assert not site.calls()
        assert not list(site.home.iterdir())


def test_without_home(site: Site) -> None:
    del site.env["HOME"]
    assert site.run("caldp-install-conda").returncode == 2
    assert site.run("caldp-install-conda", site.conda_dir, "--no-init").returncode == 0


# ---- the files themselves


def test_environment_file_agrees_with_the_scripts() -> None:
    wanted = yaml.safe_load((CLONE / "environment.yml").read_text())
    library = (CLONE / "scripts" / "caldp-install-lib.sh").read_text()
    defaults = dict(re.findall(r"^(hstcal|py_ver|conda_env)=(\S+)$", library, re.MULTILINE))
    assert defaults["hstcal"] == "stable"
    assert wanted["name"] == defaults["conda_env"]
    assert wanted["channels"] == ["conda-forge"]
    assert wanted["dependencies"] == [f"python={defaults['py_ver']}", "hstcal", "pip", {"pip": ["."]}]


@pytest.mark.parametrize("script", [*COMMANDS, "caldp-install-lib.sh"])
def test_scripts_are_sound(script: str) -> None:
    path = CLONE / "scripts" / script
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK) is (script in COMMANDS)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "-x", path], cwd=CLONE, check=True)
