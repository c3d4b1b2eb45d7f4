"""The image: the command that builds it, what it is given, what it must not keep, and the push."""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY, Mock

import docker
import pytest
from moto import mock_aws
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import caldp
from caldp import engine, image
from caldp.config import ImageConfig
from caldp.errors import EngineError, UsageError
from tests.fakes.docker import NO_PIP, FakeDocker, make_docker, one_line, typed, user
from tests.fakes.engine import FakeEngine, serving

BASE, CONDA = "python:3.11-slim-bookworm", "condaforge/miniforge3"
DIGEST = "sha256:" + "1d" * 32
PASSWORD = "hunter2-0123"  # noqa: S105 - nobody's
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/caldp"


@pytest.fixture
def no_network(unix_sockets_only: None) -> None:
    """Let these tests reach the fake engine."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeEngine]:
    """An engine that has the images, and is the one that is found."""
    names = ("caldp:latest", BASE, CONDA)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker-config"))
    with serving(images={name: {} for name in names}) as served:
        monkeypatch.setenv("DOCKER_HOST", served.host)
        yield served


@pytest.fixture
def client(fake: FakeEngine) -> Iterator[docker.DockerClient]:
    """A client of it."""
    made = engine.connect(os.environ)
    fake.requests.clear()
    yield made
    made.close()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the repository, as far as it matters."""
    (tmp_path / "clone" / "container").mkdir(parents=True)
    (tmp_path / "clone" / "Dockerfile").touch()
    return tmp_path / "clone"


@pytest.fixture
def builder(tmp_path: Path) -> FakeDocker:
    """A docker command that builds."""
    return make_docker(tmp_path / "bin")


@pytest.fixture
def settings(tmp_path: Path, fake: FakeEngine, builder: FakeDocker) -> ImageConfig:
    """Settings of somebody who has it first on PATH."""
    env = user(tmp_path, fake.host, builder.folder, **NO_PIP)
    return ImageConfig("caldp:latest", BASE, CONDA, "stable", "", tmp_path, env)


def with_environment(settings: ImageConfig, **more: str) -> ImageConfig:
    """The same, with more variables."""
    return replace(settings, environment={**settings.environment, **more})


@pytest.fixture
def told() -> list[str]:
    """What is told on the way."""
    return []


# ---- the docker command

NEW, OLD = "28.2.2", "20.10.24+dfsg1"


def path_of(*folders: object) -> dict[str, str]:
    """An environment with a PATH: these, and those of the shell's own commands."""
    return {"PATH": os.pathsep.join([*map(str, folders), os.defpath])}


@pytest.fixture
def only_fakes(tmp_path: Path) -> str:
    """A PATH on which there is what the fakes need, and no docker of this computer."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "mkdir", "cp", "stat", "env", "sleep"):
        (folder / name).symlink_to(shutil.which(name, path=os.defpath) or name)
    return str(folder)


@pytest.mark.parametrize(
    ("clients", "found"),
    [
        ([(NEW, True)], 0),
        ([(OLD, False)], 0),
        ([(OLD, True)], 0),
        (["22.06.0-beta", (NEW, True)], 0),
        ([(NEW, False), (OLD, False)], 1),
        ([(NEW, False), (NEW, True)], 1),
        ([("", False), (NEW, True)], 1),  # broken
        ([("", False), (NEW, False), (OLD, False)], 2),
        (["23.0.0", (OLD, False)], 1),
        (["dev", (OLD, False)], 1),
        ([(OLD, False), (NEW, True)], 0),
    ],
)
def test_the_first_docker_that_can_build(tmp_path: Path, only_fakes: str, clients: list[Any], found: int) -> None:
    pairs = [(c, False) if isinstance(c, str) else c for c in clients]
    made = [make_docker(tmp_path / f"bin {i}", version, buildx=has) for i, (version, has) in enumerate(pairs)]
    path = os.pathsep.join([*(str(fake.folder) for fake in made), only_fakes])
    assert image.find_docker({"PATH": path}) == made[found].path


def test_no_docker(only_fakes: str) -> None:
    with pytest.raises(EngineError) as caught:
        image.find_docker({"PATH": only_fakes})
    assert str(caught.value) == "there is no docker command on PATH; install Docker, with its buildx plug-in"


def test_no_docker_that_can_build(tmp_path: Path, only_fakes: str) -> None:
    made = [make_docker(tmp_path / name, NEW, buildx=False) for name in ("a", "b")]
    with pytest.raises(EngineError) as caught:
        image.find_docker({"PATH": os.pathsep.join([*(str(fake.folder) for fake in made), only_fakes])})
    assert str(caught.value) == f"{made[0].path} cannot build: it has no buildx; install Docker's buildx plug-in"


def test_a_docker_that_cannot_be_started(tmp_path: Path, only_fakes: str, builder: FakeDocker) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "docker").write_text("#!/no/such/interpreter\n")
    (other / "docker").chmod(0o755)
    path = os.pathsep.join([str(other), "", str(other), str(builder.folder), only_fakes])
    assert image.find_docker({"PATH": path}) == builder.path


def test_what_cannot_be_executed_is_no_docker(tmp_path: Path, only_fakes: str, builder: FakeDocker) -> None:
    for name in ("file", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "file" / "docker").touch(0o644)
    (tmp_path / "folder" / "docker").mkdir()
    path = os.pathsep.join(str(folder) for folder in (tmp_path / "file", tmp_path / "folder", builder.folder))
    assert image.find_docker({"PATH": f"{path}{os.pathsep}{only_fakes}"}) == builder.path


def test_a_relative_folder_on_path(tmp_path: Path, only_fakes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_docker(tmp_path / "bin")
    monkeypatch.chdir(tmp_path)
    assert Path(image.find_docker({"PATH": f"bin{os.pathsep}{only_fakes}"})) == Path(made.path)


# ---- settings of pip


@pytest.fixture
def pip(tmp_path: Path) -> Any:
    """Return what is read of settings in a file of pip and in variables, beside what this computer has in its own."""

    def read(file: str = "", **variables: str) -> dict[str, str]:
        (tmp_path / "my-pip.conf").write_text(file)
        env = user(tmp_path, "", PIP_CONFIG_FILE=str(tmp_path / "my-pip.conf"), **variables)
        return image.pip_settings(env)

    return read


def test_settings_in_a_file(pip: Any) -> None:
    found = pip(
        "[global]\nindex-url = https://index.example.org/simple\ntimeout = 77\nretries = 9\n"
        "trusted-host = a.example.org\n    b.example.org\nproxy = http://proxy.example.org:3128\n"
        "no-index = false\npre = true\n"
    )
    assert found["index-url"] == "https://index.example.org/simple"
    assert found["trusted-host"] == "a.example.org b.example.org"
    assert (found["timeout"], found["retries"], found["proxy"]) == ("77", "9", "http://proxy.example.org:3128")
    assert not {"no-index", "pre"} & set(found)


@pytest.mark.parametrize(("file", "variable"), [("[global]\nquiet = 1\n", ""), ("", "1")])
def test_a_quiet_pip(pip: Any, file: str, variable: str) -> None:
    found = pip(file, PIP_INDEX_URL="https://index.example.org/simple", PIP_QUIET=variable)
    assert found["index-url"] == "https://index.example.org/simple"


def test_settings_of_install_win_over_those_of_all_commands_and_variables_over_both(pip: Any) -> None:
    file = (
        "[install]\nindex-url = https://install.example.org\nretries = 2\n"
        "[global]\nindex-url = https://global.example.org\ntimeout = 1\nretries = 1\n"
        "[download]\ntimeout = 99\n"
    )
    found = pip(file)
    assert (found["index-url"], found["timeout"], found["retries"]) == ("https://install.example.org", "1", "2")
    found = pip(file, PIP_INDEX_URL="https://variable.example.org")
    assert (found["index-url"], found["retries"]) == ("https://variable.example.org", "2")


@pytest.mark.parametrize(
    ("value", "usable"),
    [
        ("https://a.example.org https://b.example.org", "https://a.example.org https://b.example.org"),
        ("/wheels https://a.example.org", "https://a.example.org"),
        ("https://a.example.org file:///wheels ~/wheels ./wheels ../wheels", "https://a.example.org"),
        ("file:///wheels", None),
        ("/wheels", None),
        ("wheels", None),
        ("", None),
    ],
)
def test_what_is_on_this_computer_does_not_travel(pip: Any, value: str, usable: str | None) -> None:
    assert pip(PIP_FIND_LINKS=value).get("find-links") == usable


def test_settings_on_several_lines(pip: Any) -> None:
    found = pip("[global]\nextra-index-url =\n    https://a.example.org\n    file:///b\n    https://c.example.org\n")
    assert found["extra-index-url"] == "https://a.example.org https://c.example.org"


def test_without_settings(pip: Any) -> None:
    assert pip(**NO_PIP) == {}


def test_the_certificates_of_pip(pip: Any) -> None:
    assert pip("[global]\ncert = /file.pem\n", PIP_CERT="/variable.pem")["cert"] == "/variable.pem"
    assert pip("[install]\ncert = /file.pem\n")["cert"] == "/file.pem"


@pytest.mark.parametrize("value", ["https://it's.example.org/simple", "https://back\\slash.example.org/simple"])
def test_odd_characters(pip: Any, value: str) -> None:
    assert pip(PIP_INDEX_URL=value)["index-url"] == value


def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_docker(tmp_path / "bin")
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\necho "No module named pip" >&2; exit 1\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    monkeypatch.setattr(image.sys, "executable", str(tmp_path / "bin" / "python"))
    assert image.pip_settings(user(tmp_path, "", **NO_PIP)) == {}
    env = user(tmp_path, "", **{**NO_PIP, "PIP_INDEX_URL": "https://index.example.org/simple"})
    assert image.pip_settings(env) == {"index-url": "https://index.example.org/simple"}


# ---- secrets


def test_nothing_to_hide(tmp_path: Path) -> None:
    with image.secrets(user(tmp_path, "", **NO_PIP)) as files:
        assert files == {}


def test_secrets_are_the_owners_and_gone_afterwards(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    url = f"https://me:{PASSWORD}@index.example.org/simple"
    env = user(tmp_path, "", **{**NO_PIP, "PIP_INDEX_URL": url, "PIP_RETRIES": "3", "PIP_CERT": str(bundle)})
    with image.secrets(env) as files:
        assert set(files) == {"pipconf", "ca"}
        pipconf = files["pipconf"]
        assert sorted(pipconf.read_text().splitlines()) == ["[global]", f"index-url = {url}", "retries = 3"]
        assert pipconf.parent.stat().st_mode & 0o777 == 0o700
        assert files["ca"] == bundle
    assert not pipconf.parent.exists()
    assert bundle.exists()


def test_secrets_are_gone_after_a_failure(tmp_path: Path) -> None:
    kept = []
    with pytest.raises(KeyboardInterrupt), image.secrets(user(tmp_path, "", PIP_RETRIES="3")) as files:
        kept.append(files["pipconf"])
        raise KeyboardInterrupt
    assert not kept[0].parent.exists()


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({"PIP_CERT": "a", "REQUESTS_CA_BUNDLE": "b", "SSL_CERT_FILE": "c"}, "a"),
        ({"REQUESTS_CA_BUNDLE": "b", "SSL_CERT_FILE": "c"}, "b"),
        ({"SSL_CERT_FILE": "c"}, "c"),
        ({"PIP_CERT": "not there", "SSL_CERT_FILE": "c"}, "c"),
        ({"REQUESTS_CA_BUNDLE": "folder", "SSL_CERT_FILE": "c"}, "c"),
        ({"SSL_CERT_FILE": "not there"}, None),
        ({}, None),
    ],
)
def test_which_certificates(tmp_path: Path, variables: dict[str, str], used: str | None) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    given = {name: str(tmp_path / file) for name, file in variables.items()}
    with image.secrets(user(tmp_path, "", **{**NO_PIP, **given})) as files:
        assert files.get("ca") == (tmp_path / used if used else None)


def test_certificates_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").touch()
    monkeypatch.chdir(tmp_path)
    with image.secrets(user(tmp_path, "", **{**NO_PIP, "SSL_CERT_FILE": "ca.pem"})) as files:
        assert files["ca"] == tmp_path / "ca.pem"


@pytest.mark.parametrize(("size", "fits"), [(500_000, True), (500_001, False)])
def test_too_many_certificates(tmp_path: Path, size: int, fits: bool) -> None:
    (tmp_path / "ca.pem").write_bytes(b"x" * size)
    env = user(tmp_path, "", **{**NO_PIP, "PIP_CERT": str(tmp_path / "ca.pem")})
    if fits:
        with image.secrets(env) as files:
            assert set(files) == {"ca"}
        return
    with pytest.raises(EngineError) as caught, image.secrets(env):
        pass
    assert str(tmp_path / "ca.pem") in str(caught.value)
    assert "PIP_CERT=" in caught.value.remedy


# ---- the build


def test_the_command_that_builds(settings: ImageConfig, clone: Path, builder: FakeDocker, told: list[str]) -> None:
    built = image.build(settings, clone, told.append)
    argv = builder.argv
    assert argv[0] == "build"
    assert argv[-1] == str(clone)
    assert builder.all("--file") == [str(clone / "Dockerfile")]
    assert builder.all("--tag") == ["caldp:latest"]
    assert builder.all("--build-arg") == [
        f"BASE_IMAGE={BASE}",
        f"CONDA_IMAGE={CONDA}",
        "HSTCAL_FROM=conda",
        "HSTCAL=stable",
        f"CSYS_VER=caldp_{caldp.__version__}",
    ]
    assert not {"--network", "--no-cache", "--secret"} & set(argv)
    assert not [text for text in argv if "proxy" in text.lower()]
    assert builder.directory == clone
    environment = builder.environment
    assert (environment["DOCKER_BUILDKIT"], environment["BUILDKIT_PROGRESS"]) == ("1", "plain")
    assert environment["DOCKER_HOST"] == settings.environment["DOCKER_HOST"]
    assert built.image == "caldp:latest"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", built.id)
    assert str(built) == f"built caldp:latest, 1 MB, HSTCAL stable: {built.id}"


def labels(builder: FakeDocker) -> dict[str, str]:
    """The labels that an image was given."""
    pairs = (text.removeprefix("org.opencontainers.image.").partition("=") for text in builder.all("--label"))
    return {name: value for name, _, value in pairs}


def test_labels(settings: ImageConfig, clone: Path, builder: FakeDocker, fake: FakeEngine, told: list[str]) -> None:
    fake.registry[BASE] = DIGEST
    image.build(settings, clone, told.append)
    found = labels(builder)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.pop("created"))
    conda = {"caldp.conda.name": CONDA, "caldp.conda.digest": f"sha256:{hashlib.sha256(CONDA.encode()).hexdigest()}"}
    assert found == {"version": caldp.__version__, "base.name": BASE, "base.digest": DIGEST, **conda}
    assert f"BASE_IMAGE={BASE}@{DIGEST}" in builder.all("--build-arg")
    assert f"{BASE} is {DIGEST}" in told


def test_labels_of_a_base_that_is_only_here(
    settings: ImageConfig, clone: Path, builder: FakeDocker, fake: FakeEngine, told: list[str]
) -> None:
    fake.images[BASE] = {"Id": DIGEST}
    image.build(settings, clone, told.append)
    assert (labels(builder)["base.name"], labels(builder)["base.digest"]) == (BASE, DIGEST)


def test_labels_of_the_image_with_conda(
    settings: ImageConfig, clone: Path, builder: FakeDocker, fake: FakeEngine, told: list[str]
) -> None:
    fake.registry[CONDA] = DIGEST
    image.build(settings, clone, told.append)
    assert (labels(builder)["caldp.conda.name"], labels(builder)["caldp.conda.digest"]) == (CONDA, DIGEST)
    image.build(replace(settings, hstcal="none"), clone, told.append)
    assert not [name for name in labels(builder) if "conda" in name]


def git(clone: Path, *args: str) -> str:
    """Ask git in a clone."""
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(clone), *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_label_of_the_commit(settings: ImageConfig, clone: Path, builder: FakeDocker, told: list[str]) -> None:
    git(clone, "init", "--quiet")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "--message", "x")
    git(clone, "tag", "v1")
    commit = git(clone, "rev-parse", "HEAD")
    image.build(settings, clone, told.append)
    assert labels(builder)["revision"] == commit
    (clone / "Dockerfile").write_text("FROM x")
    image.build(settings, clone, told.append)
    assert labels(builder)["revision"] == f"{commit}-dirty"


@pytest.mark.parametrize(
    ("change", "arguments", "pulled"),
    [
        ({"hstcal": "none"}, {"HSTCAL_FROM=none"}, {BASE}),
        ({"hstcal": "3.2.0"}, {"HSTCAL_FROM=conda", "HSTCAL=3.2.0", f"CONDA_IMAGE={CONDA}"}, {BASE, CONDA}),
        ({"hstcal": "none", "base": "mine:1"}, {"HSTCAL_FROM=none", "BASE_IMAGE=mine:1"}, {"mine:1"}),
    ],
)
def test_what_it_is_built_from(
    settings: ImageConfig,
    clone: Path,
    builder: FakeDocker,
    fake: FakeEngine,
    told: list[str],
    change: dict[str, str],
    arguments: set[str],
    pulled: set[str],
) -> None:
    fake.images["mine:1"] = {}
    image.build(replace(settings, **change), clone, told.append)
    given = set(builder.all("--build-arg"))
    assert arguments <= given
    assert any(text.startswith("HSTCAL=") for text in given) == (change["hstcal"] != "none")
    assert any(text.startswith("CONDA_IMAGE=") for text in given) == (CONDA in pulled)
    asked = {match[1] for text in fake.requests if (match := re.fullmatch(r"GET /distribution/(.*)/json", text))}
    assert asked == pulled


def test_options_of_the_build(settings: ImageConfig, clone: Path, builder: FakeDocker, told: list[str]) -> None:
    changed = with_environment(replace(settings, network="host", image="r.example.org/x:2"), CSYS_VER="mine")
    with pytest.raises(EngineError, match=r"r\.example\.org/x:2 cannot be looked at|no image"):
        image.build(changed, clone, told.append, cache=False)  # this docker makes no image
    assert builder.all("--network") == ["host"]
    assert builder.all("--tag") == ["r.example.org/x:2"]
    assert "--no-cache" in builder.argv
    assert "CSYS_VER=mine" in builder.all("--build-arg")


@pytest.mark.parametrize("context", ["clone", "./clone", "../{here}/clone"])
def test_a_clone_by_a_relative_path(
    settings: ImageConfig,
    clone: Path,
    builder: FakeDocker,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    context: str,
) -> None:
    monkeypatch.chdir(clone.parent)
    image.build(settings, Path(context.format(here=clone.parent.name)), told.append)
    assert (builder.directory / builder.argv[-1]).resolve() == clone
    assert (builder.directory / builder.all("--file")[0]).resolve() == clone / "Dockerfile"


def test_the_clone_is_where_one_is(
    settings: ImageConfig, clone: Path, builder: FakeDocker, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    image.build(settings, Path(), told.append)
    assert (builder.directory / builder.argv[-1]).resolve() == clone


def test_a_password_is_in_the_secret_only(settings: ImageConfig, clone: Path, tmp_path: Path, told: list[str]) -> None:
    builder = make_docker(tmp_path / "bin", build='echo "argv: $*"')
    (tmp_path / "ca.pem").write_text("certificates")
    secret = with_environment(
        settings,
        PIP_INDEX_URL=f"https://me:{PASSWORD}@index.example.org/simple",
        SSL_CERT_FILE=str(tmp_path / "ca.pem"),
    )
    image.build(secret, clone, told.append)
    assert PASSWORD in builder.secret("pipconf")
    assert builder.secret("ca") == "certificates"
    assert PASSWORD not in " ".join(builder.argv)
    assert PASSWORD not in "\n".join(told)
    folder = next(path for path in builder.modes("pipconf") if not path.endswith("pip.conf"))
    assert builder.modes("pipconf")[folder] == 0o700
    assert not Path(folder).exists()


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "all_proxy"])
def test_a_proxy_is_handed_on_by_name(
    settings: ImageConfig, clone: Path, builder: FakeDocker, told: list[str], name: str
) -> None:
    proxy = f"http://me:{PASSWORD}@proxy.example.org:3128"
    image.build(with_environment(settings, **{name: proxy, "HTTPS_PROXY": "", "MY_PROXY": "x"}), clone, told.append)
    assert [text for text in builder.all("--build-arg") if "proxy" in text.lower()] == [name]
    assert builder.environment[name] == proxy
    assert PASSWORD not in " ".join(builder.argv)


@pytest.mark.parametrize("missing", ["Dockerfile", "container"])
def test_no_clone(settings: ImageConfig, clone: Path, fake: FakeEngine, told: list[str], missing: str) -> None:
    (clone / missing).rmdir() if missing == "container" else (clone / missing).unlink()
    with pytest.raises(UsageError) as caught:
        image.build(settings, clone, told.append)
    assert str(caught.value) == f"{clone} has no Dockerfile of CALDP; give the clone of the repository, or cd to it"
    assert fake.requests == []


#: What a build says when it fails -> what is said of it, and a word of what can be done.
FAILURES = {
    r"""echo '#5 ERROR: executor failed running [/bin/sh -c x]: exit code: 3'; echo ------; exit 1""": (
        "docker build failed (exit status 1): ERROR: executor failed running [/bin/sh -c x]: exit code: 3",
        "see the lines above",
    ),
    # An old builder, and a new one.
    r"""echo '#5 2.799 ERROR: No matching distribution found for x'
        echo '#5 ERROR: executor failed running [/bin/sh -c pip install x]: exit code: 1'; echo ------
        echo ' > [2/2] RUN echo error:'; echo ------
        echo 'executor failed running [/bin/sh -c echo error]: exit code: 1'; exit 1""": (
        "docker build failed (exit status 1): ERROR: No matching distribution found for x",
        "see the lines above",
    ),
    r"""echo '#5 2.799 PackagesNotFoundError: no hstcal=9'
        echo '#5 ERROR: process "/bin/sh -c x" did not complete successfully: exit code: 1'; echo ------
        echo ' > [2/2] RUN x:'; echo '2.799 PackagesNotFoundError: no hstcal=9'; echo ------
        echo 'Dockerfile:2'; echo '   2 | >>> RUN x || echo error'
        echo 'ERROR: failed to solve: process "/bin/sh -c x" did not complete successfully: exit code: 1'; exit 1""": (
        "docker build failed (exit status 1): PackagesNotFoundError: no hstcal=9",
        "see the lines above",
    ),
    r"""echo '#9 12.34 error: command x failed'; echo done; exit 1""": (
        "docker build failed (exit status 1): error: command x failed",
        "see the lines above",
    ),
    r"""echo '#5 0.118 cp: /x: No space left on device'; echo '#5 ERROR: executor failed running [x]'; exit 1""": (
        "ERROR: executor failed running [x]",
        "free space for the engine",
    ),
    r"""echo '#7 0.1 ERROR: x'; echo 'ERROR: failed to solve: write /var/y: no space left on device'; exit 1""": (
        "docker build failed (exit status 1): ERROR: failed to solve: write /var/y: no space left on device",
        "free space for the engine",
    ),
    r"""echo 'ERROR: pull access denied, repository does not exist'; exit 1""": ("pull access denied", "docker login"),
    r"""echo nothing; exit 3""": ("docker build failed (exit status 3): ", "see the lines above"),
    r"""kill -KILL $$""": ("docker build failed (killed by SIGKILL): ", "see the lines above"),
    r"""echo 'Error response from daemon: network mode "x" not supported by buildkit'; exit 1""": (
        'Error response from daemon: network mode "x" not supported by buildkit',
        "",
    ),
}


@pytest.mark.parametrize("build", FAILURES)
def test_a_build_that_fails(settings: ImageConfig, clone: Path, tmp_path: Path, told: list[str], build: str) -> None:
    make_docker(tmp_path / "bin", build=build)
    with pytest.raises(EngineError) as caught:
        image.build(settings, clone, told.append)
    said, remedy = FAILURES[build]
    assert caught.value.message.startswith("caldp:latest: docker build failed (")
    assert said in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "line",
    [
        "#9 1.2 ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/opt/x'",
        "#9 1.2 PackagesNotFoundError: not found in any channel; check the network",
    ],
)
def test_a_word_in_a_line_is_no_reason_for_a_remedy(
    settings: ImageConfig, clone: Path, tmp_path: Path, told: list[str], line: str
) -> None:
    make_docker(tmp_path / "bin", build=f'echo "{line}"; echo "#9 ERROR: executor failed running [x]"; exit 1')
    with pytest.raises(EngineError) as caught:
        image.build(settings, clone, told.append)
    assert caught.value.remedy == "see the lines above"


def test_a_long_line_is_cut(settings: ImageConfig, clone: Path, tmp_path: Path, told: list[str]) -> None:
    make_docker(tmp_path / "bin", build=f"echo 'ERROR: {'x' * 5000}'; exit 1")
    with pytest.raises(EngineError) as caught:
        image.build(settings, clone, told.append)
    assert 300 <= len(caught.value.message) < 400


def test_of_a_long_line_the_end_is_said(settings: ImageConfig, clone: Path, tmp_path: Path, told: list[str]) -> None:
    make_docker(tmp_path / "bin", build=f"echo 'ERROR: {'x ' * 500}no such host'; exit 1")
    with pytest.raises(EngineError, match=r"docker build failed \(exit status 1\): \.\.\. x .* x no such host; see"):
        image.build(settings, clone, told.append)


def test_why_a_registry_gives_nothing_is_said(settings: ImageConfig, fake: FakeEngine, told: list[str]) -> None:
    why = f'Get "https://mirror.example.org/v2/": {"tried again: " * 30}lookup mirror.example.org: no such host'
    fake.refuse("GET /distribution/", 500, why)
    with closing(engine.connect(settings.environment)) as client, pytest.raises(EngineError) as caught:
        image.pin(client, "mirror.example.org/base:1", told.append)
    assert caught.value.message.endswith("lookup mirror.example.org: no such host)")
    assert "Server Error" not in caught.value.message and len(caught.value.message) < 450


def test_a_docker_that_vanishes(
    settings: ImageConfig, clone: Path, builder: FakeDocker, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "find_docker", lambda _: "/no/such/docker")
    with pytest.raises(EngineError, match="/no/such/docker cannot be started .*; install the docker command again"):
        image.build(settings, clone, told.append)


def test_the_lines_of_the_build_come_as_they_are(
    settings: ImageConfig, clone: Path, tmp_path: Path, told: list[str]
) -> None:
    make_docker(tmp_path / "bin", build="printf '#1 one\\n#2 two\\377\\n'")
    image.build(settings, clone, told.append)
    assert told[-2:] == ["#1 one", "#2 two\ufffd"]


def environment_of(settings: ImageConfig, **more: str) -> dict[str, str]:
    """The environment of somebody who types caldp-image-build."""
    return {**settings.environment, "CALDP_HSTCAL": "none", **more}


def test_the_command(settings: ImageConfig, clone: Path, tmp_path: Path) -> None:
    builder = make_docker(tmp_path / "bin", build="echo '#1 one'")
    done = typed("caldp-image-build", cwd=clone, env=environment_of(settings))
    assert done.returncode == 0, done.stderr
    assert "#1 one" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].startswith("built caldp:latest, 1 MB, HSTCAL none: sha256:")
    assert "BASE_IMAGE=" + BASE in builder.all("--build-arg")


def test_the_command_with_options(settings: ImageConfig, clone: Path, builder: FakeDocker, fake: FakeEngine) -> None:
    fake.images["other:1"] = {}
    options = ["--base", "other:1", "--hstcal", "3.2.0", "--network", "host", "--no-cache", "--quiet"]
    done = typed("caldp-image-build", str(clone), *options, cwd=clone, env=environment_of(settings))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "HSTCAL 3.2.0" in done.stdout
    assert {"BASE_IMAGE=other:1", "HSTCAL=3.2.0"} <= set(builder.all("--build-arg"))
    assert builder.all("--network") == ["host"]
    assert "--no-cache" in builder.argv


def test_the_command_where_there_is_no_clone(settings: ImageConfig, tmp_path: Path) -> None:
    done = typed("caldp-image-build", cwd=tmp_path, env=environment_of(settings))
    assert "has no Dockerfile of CALDP; give the clone of the repository, or cd to it" in one_line(done, 2)


@pytest.mark.parametrize("hstcal", ["3.2; rm -rf /", "--override-channels", "newest", " "])
def test_no_version_of_hstcal(settings: ImageConfig, clone: Path, hstcal: str, fake: FakeEngine) -> None:
    done = typed("caldp-image-build", f"--hstcal={hstcal}", cwd=clone, env=environment_of(settings))
    assert "is no version of HSTCAL; write stable, 3.2.0 or none" in one_line(done, 2)
    assert fake.requests == []


def test_the_command_that_fails(settings: ImageConfig, clone: Path, tmp_path: Path) -> None:
    make_docker(tmp_path / "bin", build="echo 'ERROR: no space left on device'; exit 1")
    done = typed("caldp-image-build", cwd=clone, env=environment_of(settings))
    line = one_line(done, 125)
    assert line.startswith("caldp-image-build: caldp:latest: docker build failed (exit status 1): ERROR: no space")
    assert "docker system prune" in line


def test_a_quiet_command_that_fails_shows_the_end(settings: ImageConfig, clone: Path, tmp_path: Path) -> None:
    make_docker(tmp_path / "bin", build="for i in $(seq 50); do echo line $i; done; exit 1")
    done = typed("caldp-image-build", "--quiet", cwd=clone, env=environment_of(settings))
    *shown, line = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (125, "")
    assert shown == [f"line {number}" for number in range(31, 51)]
    assert line.endswith("see the lines above")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_build_that_is_stopped_leaves_no_secrets(
    settings: ImageConfig, clone: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    builder = make_docker(tmp_path / "bin", build='touch "$here/ready"; sleep 60; true')
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    url = f"https://me:{PASSWORD}@index.example.org/simple"
    env = environment_of(settings, TMPDIR=str(scratch), PIP_INDEX_URL=url)
    program = Path(sysconfig.get_path("scripts")) / "caldp-image-build"
    process = subprocess.Popen(
        [str(program)], cwd=clone, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        limit = time.monotonic() + 30
        while not (builder.folder / "ready").exists():
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signum)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert list(scratch.rglob("*")) == []
    assert process.returncode == 128 + signum
    assert b"Traceback" not in err


# ---- what an image is today


def test_a_name_is_pinned(client: docker.DockerClient, fake: FakeEngine, told: list[str]) -> None:
    fake.registry["some/base:1"] = DIGEST
    assert image.pin(client, "some/base:1", told.append) == f"some/base:1@{DIGEST}"
    assert told == [f"some/base:1 is {DIGEST}"]


def test_a_pinned_name_stays(client: docker.DockerClient, fake: FakeEngine, told: list[str]) -> None:
    assert image.pin(client, f"some/base@{DIGEST}", told.append) == f"some/base@{DIGEST}"
    assert (fake.requests, told) == ([], [])


def test_an_image_that_is_only_here(client: docker.DockerClient, fake: FakeEngine, told: list[str]) -> None:
    fake.images["local/base:1"] = {"Id": DIGEST}
    assert image.pin(client, "local/base:1", told.append) == "local/base:1"
    assert told == [f"local/base:1: its registry does not answer; the one that is here is taken, {DIGEST}"]


def test_an_image_that_came_from_a_registry(client: docker.DockerClient, fake: FakeEngine, told: list[str]) -> None:
    fake.images["some/base:1"] = {"RepoDigests": [f"some/base@{DIGEST}"]}
    assert image.pin(client, "some/base:1", told.append) == f"some/base:1@{DIGEST}"
    assert DIGEST in told[0]


def test_an_image_that_was_renamed(client: docker.DockerClient, fake: FakeEngine, told: list[str]) -> None:
    fake.images["mine:1"] = {"RepoDigests": [f"some/base@{DIGEST}"]}
    assert image.pin(client, "mine:1", told.append) == "mine:1"


def test_an_image_that_is_nowhere(client: docker.DockerClient, told: list[str]) -> None:
    with pytest.raises(EngineError) as caught:
        image.pin(client, "no/such:image", told.append)
    assert caught.value.message.startswith("the image no/such:image, to build on, is not here, and its registry does")
    assert "no such host" in caught.value.message
    assert "CAL_BASE_IMAGE" in caught.value.remedy
    assert told == []


def test_an_engine_that_fails_while_a_name_is_pinned(
    settings: ImageConfig, clone: Path, fake: FakeEngine, told: list[str]
) -> None:
    fake.refuse("GET /images/", 500, "stomach ache")
    with pytest.raises(EngineError, match="caldp:latest cannot be built: stomach ache"):
        image.build(settings, clone, told.append)


# ---- what is here


def test_an_image_that_is_here(client: docker.DockerClient) -> None:
    assert image.image_of(client, "caldp:latest").attrs["Size"] == 1_000_000


def test_an_image_that_is_not_here_is_not_pulled(client: docker.DockerClient, fake: FakeEngine) -> None:
    with pytest.raises(EngineError) as caught:
        image.image_of(client, "caldp:other")
    assert str(caught.value) == (
        "there is no image caldp:other here; build it with caldp-image-build, or: docker pull caldp:other"
    )
    assert fake.requests == ["GET /images/caldp:other/json"]


# ---- the push

#: What a real engine says of a push that succeeds.
PUSHED = [
    {"status": "Preparing", "progressDetail": {}, "id": "7c87beb53e53"},
    {"status": "Pushing", "progressDetail": {"current": 512, "total": 3}, "progress": "[==>]", "id": "7c87beb53e53"},
    {"status": "Pushed", "progressDetail": {}, "id": "7c87beb53e53"},
    {"status": "Layer already exists", "progressDetail": {}, "id": "0123456789ab"},
    {"status": f"1: digest: {DIGEST} size: 504"},
    {"progressDetail": {}, "aux": {"Tag": "1", "Digest": DIGEST, "Size": 504}},
]


def denied(text: str) -> list[dict[str, Any]]:
    """What a real engine says of a push that is refused."""
    return [
        {"status": "Preparing", "progressDetail": {}, "id": "7c87beb53e53"},
        {"status": "Retrying in 1 second", "progressDetail": {}, "id": "7c87beb53e53"},
        {"errorDetail": {"message": text}, "error": text},
    ]


@pytest.mark.parametrize(
    ("name", "repository", "tag"),
    [
        ("r.example.org/caldp:1", "r.example.org/caldp", "1"),
        ("caldp:1", "caldp", "1"),
        ("localhost:5000/caldp", "localhost:5000/caldp", "latest"),
        ("localhost:5000/caldp:1", "localhost:5000/caldp", "1"),
        ("caldp", "caldp", "latest"),
    ],
)
def test_a_push(settings: ImageConfig, fake: FakeEngine, told: list[str], name: str, repository: str, tag: str) -> None:
    fake.pushed = PUSHED
    fake.images = {name: {}, f"{repository}:{tag}": {}}
    assert image.push(replace(settings, image=name), told.append) == f"{repository}@{DIGEST}"
    assert f"POST /images/{repository}/push?tag={tag}" in fake.requests
    assert told == [
        f"The push refers to repository [{repository}]",
        "7c87beb53e53: Pushed",
        "0123456789ab: Layer already exists",
        f"1: digest: {DIGEST} size: 504",
    ]


def test_a_push_without_a_digest(settings: ImageConfig, fake: FakeEngine, told: list[str]) -> None:
    fake.pushed = PUSHED[:-1]
    assert image.push(settings, told.append) == "caldp:latest"


def test_connections_are_closed(
    settings: ImageConfig,
    clone: Path,
    builder: FakeDocker,
    fake: FakeEngine,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = []
    close = docker.DockerClient.close
    monkeypatch.setattr(docker.DockerClient, "close", lambda self: (closed.append(self), close(self)))
    fake.pushed = PUSHED
    image.build(settings, clone, told.append)
    image.push(settings, told.append)
    with pytest.raises(EngineError):
        image.push(replace(settings, image="caldp:other"), told.append)
    assert len(closed) == 3


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("denied", "docker login"),
        ("no basic auth credentials", "docker login"),
        ("unauthorized:\nauthentication required", "docker login"),
        ("unknown blob", "check the repository in caldp-image-config"),
        ('Get "https://r.example.org/v2/": dial tcp: no such host', "check the repository in caldp-image-config"),
    ],
)
def test_a_push_that_is_refused(
    settings: ImageConfig, fake: FakeEngine, told: list[str], said: str, remedy: str
) -> None:
    fake.pushed = denied(said)
    with pytest.raises(EngineError) as caught:
        image.push(settings, told.append)
    assert caught.value.message == f"caldp:latest cannot be pushed: {' '.join(said.split())}"
    assert remedy in caught.value.remedy


def test_a_push_of_what_is_not_here(settings: ImageConfig, fake: FakeEngine, told: list[str]) -> None:
    with pytest.raises(EngineError, match="there is no image caldp:other here; build it with caldp-image-build"):
        image.push(replace(settings, image="caldp:other"), told.append)
    assert not [request for request in fake.requests if "push" in request]


def test_a_push_that_breaks_off(settings: ImageConfig, fake: FakeEngine, told: list[str]) -> None:
    fake.refuse("POST /images/", 500, "stomach ache")
    with pytest.raises(EngineError, match="caldp:latest cannot be pushed: stomach ache"):
        image.push(settings, told.append)


def test_a_push_that_ends_too_early(settings: ImageConfig, fake: FakeEngine, told: list[str]) -> None:
    fake.pushed, fake.push_ends = PUSHED[:2], False
    with pytest.raises(EngineError, match="caldp:latest cannot be pushed: "):
        image.push(settings, told.append)


def test_a_push_that_hangs(
    settings: ImageConfig, fake: FakeEngine, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "_PUSH_TIMEOUT", 0.3)
    fake.pushed, fake.hangs = PUSHED[:2], 60
    with pytest.raises(EngineError, match="caldp:latest cannot be pushed: .*timed out"):
        image.push(settings, told.append)


def test_a_push_of_which_nothing_is_heard_for_a_while(
    settings: ImageConfig, fake: FakeEngine, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_TIMEOUT", 0.3)
    fake.pushed, fake.hangs = PUSHED, 0.6
    assert image.push(settings, told.append) == f"caldp@{DIGEST}"
    assert image._PUSH_TIMEOUT >= 600


@pytest.mark.parametrize("nonsense", [b"rubbish\r\n", b"\xff\xff\r\n"])
def test_a_push_of_which_nonsense_is_said(
    settings: ImageConfig, fake: FakeEngine, told: list[str], nonsense: bytes
) -> None:
    fake.pushed = [nonsense, *PUSHED]
    with pytest.raises(EngineError, match="caldp:latest cannot be pushed: "):
        image.push(settings, told.append)


def test_the_command_that_pushes(settings: ImageConfig, fake: FakeEngine, tmp_path: Path) -> None:
    fake.pushed = PUSHED
    fake.images["r.example.org/caldp:1"] = {}
    env = {**settings.environment, "CALDP_IMAGE_REPO": "r.example.org/caldp", "CALDP_IMAGE_TAG": "1"}
    done = typed("caldp-image-push", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"pushed r.example.org/caldp@{DIGEST}"
    fake.pushed = denied("denied: requested access to the resource is denied")
    assert "requested access to the resource is denied; log in" in one_line(
        typed("caldp-image-push", cwd=tmp_path, env=env), 125
    )


@pytest.mark.parametrize("lines", [1, 5000])
def test_nobody_reads_what_the_push_says(settings: ImageConfig, fake: FakeEngine, tmp_path: Path, lines: int) -> None:
    # defect: when Python ends, it cannot write what its buffer still holds, and makes that the status (120)
    fake.pushed = [{"status": f"line {number}"} for number in range(lines)]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        program = Path(sysconfig.get_path("scripts")) / "caldp-image-push"
        done = subprocess.run(
            [str(program)], cwd=tmp_path, env=settings.environment, stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_push_says_cannot_be_written(
    settings: ImageConfig, fake: FakeEngine, tmp_path: Path, full_device: Path
) -> None:
    program = Path(sysconfig.get_path("scripts")) / "caldp-image-push"
    with full_device.open("wb") as full:
        for image_, code in (("caldp:latest", 0), ("caldp:other", 125)):
            env = {**settings.environment, "CALDP_DOCKER_IMAGE": image_}
            assert subprocess.run([str(program)], cwd=tmp_path, env=env, stdout=full, stderr=full).returncode == code


# ---- Amazon ECR


@pytest.mark.parametrize(
    ("name", "account", "region"),
    [
        (ECR, "123456789012", "eu-west-1"),
        ("123456789012.dkr.ecr.us-gov-west-1.amazonaws.com/a/b/c", "123456789012", "us-gov-west-1"),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com/x", "123456789012", "us-east-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/x", "123456789012", "cn-north-1"),
    ],
)
def test_names_of_amazons_registries(name: str, account: str, region: str) -> None:
    match = image._ECR.fullmatch(name)
    assert match is not None
    assert (match[1], match[2]) == (account, region)


@pytest.mark.parametrize(
    "name",
    [
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com/",
        "12345678901.dkr.ecr.eu-west-1.amazonaws.com/x",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.example.org/x",
        "evil.example.org/123456789012.dkr.ecr.eu-west-1.amazonaws.com/x",
        "123456789012.dkr.ecr.eu-west-1xamazonaws.com/x",
        "123456789012.dkr.ecr.eu-west-1.amazonawsxcom/x",
        "x123456789012.dkr.ecr.eu-west-1.amazonaws.com/x",
        "123456789012.dkr.ecr.evil.example.org#.amazonaws.com/x",
        "public.ecr.aws/x/y",
        "caldp",
    ],
)
def test_names_of_other_registries(name: str) -> None:
    assert image._ECR.fullmatch(name) is None
    with pytest.raises(ValueError, match=re.escape(name)):
        image.ecr_login(name, {})


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of the developer's AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/aws-config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/aws-credentials")
    return monkeypatch


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def answering(aws: pytest.MonkeyPatch, answer: Any) -> Any:
    """Have a client of ECR with an answer of its own, and what it was asked."""
    client = SimpleNamespace(get_authorization_token=Mock(return_value=answer))
    session = SimpleNamespace(create_client=Mock(return_value=client))
    aws.setattr("caldp.aws.session_of", Mock(return_value=session))
    return SimpleNamespace(client=session.create_client, token=client.get_authorization_token)


def test_the_login_of_amazon(aws: pytest.MonkeyPatch) -> None:
    with mock_aws():
        assert image.ecr_login(ECR, CREDENTIALS) == {"username": "AWS", "password": "123456789012-auth-token"}


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, None),
        ({"AWS_ENDPOINT_URL": "http://x"}, "http://x"),
        ({"AWS_ENDPOINT_URL": "http://x", "AWS_ENDPOINT_URL_ECR": "http://y"}, "http://y"),
    ],
)
def test_the_login_is_that_of_the_account_and_region(
    aws: pytest.MonkeyPatch, variables: dict[str, str], endpoint: str | None
) -> None:
    asked = answering(aws, {"authorizationData": [{"authorizationToken": "QVdTOng6eQ=="}]})
    assert image.ecr_login(ECR, variables) == {"username": "AWS", "password": "x:y"}
    asked.client.assert_called_once_with("ecr", region_name="eu-west-1", endpoint_url=endpoint, config=ANY)
    asked.token.assert_called_once_with(registryIds=["123456789012"])


def test_the_profile_is_that_of_the_settings(aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
    aws.setenv("AWS_PROFILE", "not-this-one")
    (tmp_path / "mine").write_text("[hst]\naws_access_key_id = A\naws_secret_access_key = B\n")
    variables = {"AWS_PROFILE": "hst", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "mine")}
    with mock_aws():
        assert image.ecr_login(ECR, variables)["username"] == "AWS"


def test_no_credentials(aws: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError) as caught:
        image.ecr_login(ECR, {})
    assert caught.value.message.startswith(f"{ECR}: Amazon ECR does not log us in (Unable to locate credentials")
    assert "AWS credentials" in caught.value.remedy


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"authorizationData": []},
        {"authorizationData": [{"authorizationToken": "not base 64!"}]},
        {"authorizationData": [{"authorizationToken": "/////w=="}]},
    ],
)
def test_an_answer_of_amazon_that_is_none(aws: pytest.MonkeyPatch, answer: Any) -> None:
    answering(aws, answer)
    with pytest.raises(EngineError, match="Amazon ECR does not log us in"):
        image.ecr_login(ECR, {})


def test_an_address_of_amazon_that_is_none(aws: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="Amazon ECR does not log us in"):
        image.ecr_login(ECR, {**CREDENTIALS, "AWS_ENDPOINT_URL": "nonsense"})


def test_a_push_to_amazon(settings: ImageConfig, fake: FakeEngine, told: list[str], aws: pytest.MonkeyPatch) -> None:
    fake.pushed = PUSHED
    fake.images[f"{ECR}:1"] = {}
    with mock_aws():
        changed = with_environment(replace(settings, image=f"{ECR}:1"), **CREDENTIALS)
        assert image.push(changed, told.append) == f"{ECR}@{DIGEST}"
    assert fake.logins == [{"username": "AWS", "password": "123456789012-auth-token"}]
    assert "auth-token" not in "\n".join(told)


def test_a_push_to_amazon_without_credentials(
    settings: ImageConfig, fake: FakeEngine, told: list[str], aws: pytest.MonkeyPatch
) -> None:
    fake.images[f"{ECR}:1"] = {}
    with pytest.raises(EngineError, match="Unable to locate credentials"):
        image.push(replace(settings, image=f"{ECR}:1"), told.append)
    assert fake.logins == []


def test_a_push_elsewhere_needs_no_amazon(settings: ImageConfig, fake: FakeEngine, told: list[str]) -> None:
    fake.pushed = PUSHED
    image.push(settings, told.append)
    assert fake.logins == [{}]


# ---- what it is made of


def test_what_nothing_uses_is_taken_out(tmp_path: Path) -> None:
    kept = [
        "astropy/tests/helper.py",
        "astropy/tests/runner.py",
        "jinja2/tests.py",
        "numpy/testing/__init__.py",
        "numpy/lib.so",
        "scipy/stats/_bws_test.py",
        "tornado/testing.py",
        "astropy/testbed/data.fits",
        "certifi/cacert.pem",
        "one.dist-info/RECORD",
    ]
    gone = [
        "astropy/tests/test_logger.py",
        "astropy/tests/tests/run.py",
        "asdf/_tests/deep/x.py",
        "asdf/conftest.py",
        "asdf/__pycache__/conftest.cpython-311.pyc",
        "docs/conf.py",
        "src/x.par",
        "tests/x.py",
        "tornado/test/test.key",
        "tornado/test/tests/x.py",
        "numpy/core/x.h",
        "numpy/core/x.c",
        "numpy/core/libx.a",
    ]
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("7 bytes")
    tool = runpy.run_path(str(Path(__file__).parents[2] / "container" / "packages.py"))
    assert tool["strip"](tmp_path) == 7 * len(gone)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if path.is_file()) == sorted(
        name for name in kept if "." in Path(name).name
    )
    assert (tmp_path / "one.dist-info" / "RECORD").is_file()
    assert tool["strip"](tmp_path) == 0


def test_every_package_of_the_image_is_pinned() -> None:
    root = Path(__file__).parents[2]
    pinned = [Requirement(line) for line in (root / "container" / "constraints.txt").read_text().splitlines()[1:]]
    versions = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in pinned}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    tools = (line.partition("#")[0] for line in (root / "container" / "requirements.txt").read_text().splitlines())
    wanted = [Requirement(text) for text in (*project["dependencies"], *filter(str.strip, tools))]
    assert len(wanted) > 20
    for one in wanted:
        assert one.specifier.contains(versions.get(canonicalize_name(one.name), "0")), f"make constraints: {one}"
