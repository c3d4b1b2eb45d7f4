"""The image and the commands around it, with a real Docker engine: what is in it, and how runs in it end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.desk import CONTEXT, REPOSITORY, SCRIPTS, Desk, Result, require, small_disk
from tests.engine import REPO, Image, build, build_environment
from tests.fakes.crds import serving
from tests.fakes.s3 import S3Server
from tests.integration.test_s3_association import assert_same_product
from tests.s3 import s3_client, s3_environment

pytestmark = pytest.mark.engine

ACQ = "ldfd01vlq"
TAG = "ldfd01vnq"
ONSITE = "caldp-config-onsite"

#: What differs between a run in the image and one outside: see assert_same_product for dates.
_PROVENANCE = re.compile(rb"CSYS_VER=.{71}", re.DOTALL)

Give = Callable[..., None]


@pytest.fixture
def docked(desk: Desk, image: Image, engine: Any, cos_data: Path) -> Iterator[Desk]:
    """A desk whose user runs the image, with the shared CRDS cache; no container is left behind."""
    known = {container.id for container in engine.containers.list(all=True)}
    cache = {"CRDS_PATH": str(cos_data / "crds_cache"), "CRDS_READONLY_CACHE": "1", "CRDS_CONTEXT": CONTEXT}
    env = {k: v for k, v in image.env.items() if not k.startswith("AWS_")}
    yield replace(desk, env={**env, **cache})
    left = [c for c in engine.containers.list(all=True) if c.id not in known and c.labels.get("caldp.waiting")]
    mine = [c for c in left if f":{os.getpid()}:" in c.labels["caldp.waiting"] or str(desk.home) in str(c.attrs)]
    for container in mine:
        container.remove(force=True)
    assert not mine, [container.attrs["State"] for container in mine]


def start(desk: Desk, command: str, *args: object, **more: Any) -> subprocess.Popen[str]:
    """Start one of the commands."""
    return subprocess.Popen(
        [str(SCRIPTS / command), *map(str, args)],
        cwd=desk.home,
        env={**desk.env, **more.pop("env", {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def run(desk: Desk, command: str, *args: object, typed: str = "", **more: Any) -> Result:
    """Run one of the commands to its end."""
    process = start(desk, command, *args, stdin=subprocess.PIPE, **more)
    try:
        stdout, stderr = process.communicate(typed, timeout=600)
    finally:
        process.kill()
    assert "Traceback" not in stdout + stderr, stdout + stderr
    return Result(process.returncode, stdout, stderr)


def inside(desk: Desk, script: str, *options: str) -> str:
    """Run a line of shell in a container; return what it prints."""
    result = run(desk, "caldp-docker-run-container", *options, "/bin/bash", "-c", script)
    assert result.code == 0, result.stderr
    return result.stdout


def pipeline(desk: Desk, dataset: str, *args: object, **more: Any) -> Result:
    """Calibrate a dataset from IN to OUT in a container."""
    return run(desk, "caldp-docker-run-pipeline", dataset, "file:IN", "file:OUT", ONSITE, *args, **more)


def program_in_container(engine: Any, desk: Desk, name: str) -> Any:
    """Wait until a program runs in the container of a desk; return the container."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for container in engine.containers.list(filters={"label": "caldp.waiting"}):
            with contextlib.suppress(Exception):  # it may be ending
                if any(mount["Source"] == str(desk.home) for mount in container.attrs["Mounts"]):
                    rows = container.top()["Processes"] or []
                    if any(Path(word).name == name for row in rows for word in row[-1].split()):
                        return container
        time.sleep(0.05)
    raise AssertionError(f"no {name} in a container")


def until_gone(engine: Any, container: Any) -> None:
    """Wait until a container has ended or is gone."""
    import docker

    with contextlib.suppress(docker.errors.NotFound):
        container.wait(timeout=300)


# --- the image


def test_what_is_in_the_image(docked: Desk, image: Image, engine: Any) -> None:
    shown = inside(docked, "id -un; pwd; echo $HOME; command -v caldp calcos runastrodriz; caldp --version")
    assert shown.split("\n")[:3] == ["developer", "/home/developer", "/home/developer"]
    assert "/opt/caldp/bin/calcos" in shown and "version" in shown
    compilers = "gcc g++ cc c++ c89 c99 clang gfortran ld as make cmake rustc cargo"
    assert inside(docked, f"command -v {compilers}; command -v /opt/caldp/bin/pip || true").split() == []
    folders = "/opt /usr /home /root /etc /var"
    paths = inside(docked, f"find {folders} -xdev -type d -o -type f -o -type l 2>/dev/null || true").split("\n")
    ours = [path.partition("site-packages/")[2] or path for path in paths if path.startswith("/opt/")]
    suites = re.compile(r"(.*/)?(_?tests?|test_\w+\.py|\w+_test\.py|conftest\.py)")
    # Of astropy what others test with, of scipy tests of statistics.
    assert sorted(filter(suites.fullmatch, ours)) == [
        "astropy/tests",
        "scipy/stats/_bws_test.py",
        "scipy/stats/_page_trend_test.py",
    ]
    assert not [path for path in ours if re.search(r"\.(c|cpp|h|pyx|a|o)$|^(docs?|examples|src|typings)(/|$)", path)]
    assert "/opt/caldp" in paths and not {"/opt/pip", "/build", "/src", "/wheels"} & set(paths)
    keys = f"grep -rlIE -- '^-----BEGIN ([A-Z]+ )*PRIVATE KEY-----' {folders} 2>/dev/null || true"
    assert inside(docked, keys).split() == []
    wrong = r"/(\.aws|\.netrc|\.git|\.docker|\.ssh|pip\.conf|\.pypirc|id_rsa|credentials)(/|$)|^/run/secrets/"
    assert not [path for path in paths if re.search(wrong, path) and "site-packages" not in path]
    assert "/etc/pip.conf" not in paths

    made = engine.images.get(image.name)
    print(f"size of the image: {made.attrs['Size'] / 1e6:.0f} MB")
    settings = made.attrs["Config"]
    assert (settings["User"], settings["WorkingDir"]) == ("developer", "/home/developer")
    assert settings.get("Healthcheck") is None
    assert settings["Entrypoint"][0].endswith("/dumb-init")
    label = {key.removeprefix("org.opencontainers.image."): text for key, text in settings["Labels"].items()}
    assert label["title"] == "caldp" and label["licenses"] == "BSD-3-Clause"
    assert label["version"] in shown and label["created"].startswith("20")
    assert label["base.name"] == image.env.get("CAL_BASE_IMAGE", label["base.name"])
    assert label["base.digest"].startswith("sha256:")
    recorded = json.dumps([settings, made.history()])
    for secret in ("pip.conf =", "index-url", "BEGIN CERTIFICATE", "TOKEN", "PASSWORD"):
        assert secret not in recorded


def test_what_the_image_says_of_itself(docked: Desk) -> None:
    version = dict(line.split(" ", 1) for line in inside(docked, "cat /usr/share/caldp/VERSION").splitlines())
    assert version["hstcal"] == "not included"
    assert version["CSYS_VER"] == f"caldp_{version['caldp']}" == inside(docked, "echo $CSYS_VER").strip()
    bill = json.loads(inside(docked, "cat /usr/share/caldp/sbom.cdx.json"))
    assert bill["bomFormat"] == "CycloneDX"
    urls = [component["purl"] for component in bill["components"]]
    assert f"pkg:pypi/calcos@{version['calcos']}" in urls
    assert any(url.startswith("pkg:deb/debian/bash@") for url in urls)
    frozen = set((REPOSITORY / "container" / "constraints.txt").read_text().split("\n"))
    named = {f"{c['name']}=={c['version']}".lower().replace("_", "-").replace(".", "-") for c in bill["components"]}
    pinned = {line.lower().replace("_", "-").replace(".", "-") for line in frozen if "==" in line}
    assert len(named & pinned) > 100  # what is installed is what was pinned


def test_as_it_is_started_by_others(image: Image, engine: Any) -> None:
    """By docker run alone, as AWS Batch does: the user is developer, and a signal ends it."""
    network = image.env["CALDP_DOCKER_NETWORK"] or None
    output = engine.containers.run(image.name, ["id"], remove=True, network_mode=network)
    assert output.decode().startswith("uid=1000(developer) gid=1000(developer)")
    container = engine.containers.run(image.name, ["sleep", "100"], detach=True, network_mode=network)
    try:
        container.kill("SIGTERM")
        assert container.wait(timeout=20)["StatusCode"] == 143
    finally:
        container.remove(force=True)


def test_a_changed_line_is_built_quickly(
    tmp_path: Path, environment: dict[str, str], image: Image, engine: Any
) -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    clone = tmp_path / "clone"
    for name in filter(None, files.split("\0")):
        if not name.startswith(("tests/", "docs/")) and (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, clone / name)
    env = build_environment(environment, "changed")
    assert build(clone, env).returncode == 0
    with (clone / "caldp" / "dataset.py").open("a") as module:
        module.write("# one line\n")
    started = time.monotonic()
    done = build(clone, env)
    assert done.returncode == 0, done.stdout
    print(f"built again after one line had changed: {time.monotonic() - started:.1f} s (30 s are the aim)")
    layers = [engine.images.get(f"{REPO}:{tag}").attrs["RootFS"]["Layers"] for tag in ("test", "changed")]
    assert len([layer for layer in layers[1] if layer not in layers[0]]) <= 2
    changed = replace_image(Desk(tmp_path, image.env), f"{REPO}:changed")
    assert "# one line" in inside(changed, "tail -1 /opt/caldp/lib/python3*/site-packages/caldp/dataset.py")
    engine.images.remove(f"{REPO}:changed")


def replace_image(desk: Desk, name: str) -> Desk:
    """Return the desk of a user who runs another image."""
    return replace(desk, env={**desk.env, "CALDP_DOCKER_IMAGE": name})


def test_an_image_with_hstcal(tmp_path: Path, environment: dict[str, str], image: Image, engine: Any) -> None:
    """Its programs come from the image with conda, here a fake one, and nothing else does."""
    conda = f"{REPO}:fake-conda"
    fake = REPOSITORY / "tests" / "fakes" / "condaimage"
    base = image.env.get("CAL_BASE_IMAGE", "python:3.11-slim-bookworm")
    engine.images.build(path=str(fake), tag=conda, buildargs={"BASE": base}, network_mode="host")
    env = {**build_environment(environment, "hstcal"), "CALDP_CONDA_IMAGE": conda, "CALDP_HSTCAL": "3.2.*"}
    done = build(REPOSITORY, env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "HSTCAL 3.2.*" in done.stdout.splitlines()[-1]
    label = engine.images.get(f"{REPO}:hstcal").attrs["Config"]["Labels"]
    assert label["caldp.conda.name"] == conda and label["caldp.conda.digest"].startswith("sha256:")
    desk = replace_image(Desk(tmp_path, image.env), f"{REPO}:hstcal")
    assert inside(desk, "calacs.e; command -v python; find /opt/hstcal -type f | sort").split("\n")[:-1] == [
        "a fake calacs.e",
        "/opt/caldp/bin/python",
        *(f"/opt/hstcal/bin/{name}" for name in ("calacs.e", "calwf3.e", "cs0.e")),
        "/opt/hstcal/conda-meta/hstcal.json",
        "/opt/hstcal/lib/libcfitsio.so.10",
    ]
    assert "ok   program calacs.e" in inside(desk, "caldp doctor || true")
    assert "hstcal 3.2.*" in inside(desk, "cat /usr/share/caldp/VERSION")
    for tag in ("hstcal", "fake-conda"):
        engine.images.remove(f"{REPO}:{tag}")


def test_a_build_that_cannot_work(tmp_path: Path, environment: dict[str, str], engine: Any) -> None:
    env = {**build_environment(environment, "never"), "CAL_BASE_IMAGE": "caldp-test/no-such-image:1"}
    done = build(REPOSITORY, env)
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1 and "caldp-test/no-such-image:1" in done.stderr and "--base" in done.stderr


def test_push(image: Image, tmp_path: Path, engine: Any) -> None:
    """To a real registry, on this machine; a small image, for what is in it is all the same."""
    registry = str(shutil.which("docker-registry") or "")
    require(bool(registry), "no docker-registry (the Debian package of that name)")
    with free_port() as port:
        pass
    (tmp_path / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    server = subprocess.Popen(
        [registry, "serve", str(tmp_path / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    name = f"127.0.0.1:{port}/team/caldp"
    try:
        wait_for_port(port)
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY config.yml /\n")
        small, _ = engine.images.build(path=str(tmp_path))
        small.tag(name, "v1")
        desk = Desk(tmp_path, {**image.env, "CALDP_IMAGE_REPO": name, "CALDP_IMAGE_TAG": "v1"})
        env = {k: v for k, v in desk.env.items() if k != "CALDP_DOCKER_IMAGE"}
        done = subprocess.run([SCRIPTS / "caldp-image-push"], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = done.stdout.splitlines()[-1]
        assert re.fullmatch(rf"pushed {name}@sha256:[0-9a-f]{{64}}", said)
        assert engine.images.get_registry_data(f"{name}:v1").id == said.partition("@")[2]
        nobody = {**env, "CALDP_IMAGE_REPO": "127.0.0.1:1/caldp"}
        small.tag("127.0.0.1:1/caldp", "v1")
        done = subprocess.run([SCRIPTS / "caldp-image-push"], env=nobody, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert "127.0.0.1:1/caldp:v1 cannot be pushed" in done.stderr
    finally:
        server.terminate()
        server.wait()
        for tag in (f"{name}:v1", "127.0.0.1:1/caldp:v1"):
            with contextlib.suppress(Exception):
                engine.images.remove(tag)


# --- runs


def test_the_association_is_what_it_is_outside(docked: Desk, cos_data: Path, association: Desk) -> None:
    shutil.copytree(cos_data / "inputs", docked.inputs, copy_function=shutil.copyfile, dirs_exist_ok=True)
    result = pipeline(docked, "ldfd01010")
    assert result.code == 0, result.stderr
    assert docked.tree("ldfd01010") == association.tree("ldfd01010")
    for name in sorted(docked.tree("ldfd01010")):
        ours, theirs = docked.folder("ldfd01010") / name, association.folder("ldfd01010") / name
        if ours.suffix == ".fits":
            plain = docked.home / f"inside-{ours.name}"
            plain.write_bytes(_PROVENANCE.sub(b"", ours.read_bytes()))
            other = docked.home / f"outside-{ours.name}"
            other.write_bytes(_PROVENANCE.sub(b"", theirs.read_bytes()))
            assert_same_product(plain, other)
    owners = {path.stat().st_uid for path in docked.home.rglob("*")}
    assert owners == {os.getuid()}
    assert docked.states("ldfd01010") == ["datasets-processed"]
    assert {path.name for path in docked.home.iterdir() if path.is_dir()} == {"IN", "OUT"}  # no .config, no .cache


def test_what_it_makes_is_the_callers(docked: Desk, cos_data: Path) -> None:
    """By a user who is not root, and is in the image by another number: where we are root, somebody else."""
    user, group = (4321, 8765) if os.getuid() == 0 else (os.getuid(), os.getgid())
    place = Path(tempfile.mkdtemp(prefix="caldp-test-"))
    try:
        (place / "IN").mkdir()
        for path in (cos_data / "inputs").glob(f"{ACQ}*"):
            shutil.copyfile(path, place / "IN" / path.name)
        shutil.copy(SCRIPTS / "caldp-image-config", place)
        for path in [place, *place.rglob("*")]:
            os.chown(path, user, group)
        theirs = {"PATH": f"{place}:/usr/bin:/bin", "CALDP_HOME": str(place), "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", _AS_SOMEBODY_ELSE, ACQ, "file:IN", "file:OUT", ONSITE],
            env={**docked.env, **theirs},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made = [path for path in (place / "OUT").rglob("*")]
        assert len(made) > 20
        assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(user, group)}
    finally:
        shutil.rmtree(place)


#: The interpreter of the tests may be where other users cannot look, so all that is needed is imported before.
_AS_SOMEBODY_ELSE = """
import os, sys
import docker, docker.types, docker.utils.socket, psutil, rich, caldp.cli_image, caldp.container, caldp.local_store
import caldp.image, ctypes, encodings.idna, requests, sysconfig, tarfile, tempfile
sysconfig.get_config_vars()
client = docker.from_env(); client.ping(); client.containers.list(); client.images.list()
socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
if os.getuid() == 0:
    os.setgroups([os.stat(socket).st_gid])
    os.setresgid(8765, 8765, 8765)
    os.setresuid(4321, 4321, 4321)
os.chdir(os.environ["CALDP_HOME"])
caldp.cli_image.pipeline_command(prog_name="caldp-docker-run-pipeline")
"""


def test_a_command(docked: Desk) -> None:
    result = run(docked, "caldp-docker-run-container", "/bin/bash", "-c", "id; pwd; caldp doctor; exit 7")
    assert result.code == 7
    who, where, *rest = result.stdout.splitlines()
    assert f"uid={os.getuid()}(developer)" in who and where == "/home/developer"
    assert any(re.match(r"note program calacs.e +not found", line) for line in rest)
    assert any(re.match(r"ok   program calcos ", line) for line in rest)
    assert any(re.match(r"ok   CRDS cache +/grp/crds/cache", line) for line in rest)


def test_no_such_command(docked: Desk) -> None:
    (docked.home / "data").touch()
    for command, code in (("no-such-command", 127), ("./data", 126)):
        result = run(docked, "caldp-docker-run-container", command)
        assert (result.code, result.stdout) == (code, "")
        assert Path(command).name in result.stderr


def test_a_command_is_taken_as_it_is(docked: Desk) -> None:
    words = ["printf", "<%s>", "a b", "$HOME", "", "--help", "*"]
    assert run(docked, "caldp-docker-run-container", *words).stdout == "<a b><$HOME><><--help><*>"


def test_streams_and_standard_input(docked: Desk) -> None:
    script = "read name; echo hello $name; echo trouble >&2; cat; touch made"
    result = run(docked, "caldp-docker-run-container", "bash", "-c", script, typed="you\nand more\n")
    assert (result.code, result.stdout, result.stderr) == (0, "hello you\nand more\n", "trouble\n")
    assert (docked.home / "made").is_file()


def test_output_comes_as_it_is_written(docked: Desk) -> None:
    process = start(docked, "caldp-docker-run-container", "bash", "-c", "echo first; read wait", stdin=subprocess.PIPE)
    assert process.stdout and process.stdin
    assert process.stdout.readline() == "first\n"  # while it waits for us
    process.communicate("go\n", timeout=60)
    assert process.returncode == 0


def test_a_terminal(docked: Desk) -> None:
    """A shell on a terminal of one's own: keys, size, exit status."""
    command = "caldp-docker-run-container"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(docked.home)
        os.execve(SCRIPTS / command, [command], dict(docked.env))  # noqa: S606
    shown = ""

    def expect(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([terminal], [], [], 1)[0]:
                try:
                    shown += os.read(terminal, 65536).decode(errors="replace")
                except OSError:
                    break
        assert text in shown, shown

    import fcntl
    import struct
    import termios

    expect("$ " if os.getuid() else "# ")
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 41, 133, 0, 0))
    os.write(
        terminal, b"until stty size | grep -q '^41 133$'; do sleep 0.1; done; echo size $((40+1)); tty; sleep 60\n"
    )
    expect("size 41")
    expect("/dev/pts/0")
    time.sleep(0.5)
    os.write(terminal, b"\x03")  # Ctrl-C goes to the program inside, not to the command outside
    time.sleep(0.5)
    os.write(terminal, b"echo still $((20+3)); exit 5\n")
    expect("still 23")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5
    os.close(terminal)


def test_without_a_cache_references_are_downloaded_to_the_home(docked: Desk, give: Give, cos_data: Path) -> None:
    give(f"{ACQ}*")
    with serving(cos_data / "crds_cache") as server:
        env = {k: v for k, v in docked.env.items() if not k.startswith("CRDS_")}
        desk = replace(docked, env={**env, "CRDS_SERVER_URL": server.url, "CRDS_CONTEXT": CONTEXT})
        result = run(desk, "caldp-docker-run-pipeline", "--network", "host", ACQ, "file:IN", "file:OUT")
    assert result.code == 0, result.stderr
    assert (docked.home / "crds_cache" / "mappings" / "hst" / CONTEXT).is_file()
    assert len(list((docked.home / "crds_cache" / "references").rglob("*.fits"))) == 3


def test_credentials_in_the_home(docked: Desk) -> None:
    (docked.home / ".aws").mkdir()
    (docked.home / ".aws" / "credentials").write_text("[default]\naws_access_key_id = A\naws_secret_access_key = B\n")
    script = "import botocore.session; print(botocore.session.Session().get_credentials().access_key)"
    assert inside(docked, f"python -c '{script}'") == "A\n"


def test_a_read_only_cache_is_read_only(docked: Desk) -> None:
    result = run(docked, "caldp-docker-run-container", "touch", "/grp/crds/cache/new")
    assert result.code == 1 and "Read-only file system" in result.stderr


def test_onsite_without_an_exported_cache(docked: Desk, give: Give) -> None:
    give(f"{ACQ}*")
    env = {k: v for k, v in docked.env.items() if k != "CRDS_PATH"}
    result = pipeline(replace(docked, env=env), ACQ)
    assert result.code == 27, result.stderr
    assert "/grp/crds/cache" in result.stderr


def test_other_groups_of_the_caller(docked: Desk) -> None:
    assert set(map(int, inside(docked, "id -G").split())) == {os.getgid(), *os.getgroups()}


# --- ends


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_stopped(docked: Desk, give: Give, engine: Any, signum: int, code: int) -> None:
    give(f"{TAG}*")
    process = start(docked, "caldp-docker-run-pipeline", TAG, "file:IN", "file:OUT", ONSITE)
    program_in_container(engine, docked, "calcos")
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert TAG in stderr or signal.Signals(signum).name in stderr
    status = docked.status(TAG)
    assert (status["state"], status["exit_code"]) == ("error", code)
    assert docked.tree(TAG) and not list(docked.folder(TAG).glob("*.fits"))


def test_stopped_before_it_has_begun(docked: Desk, give: Give) -> None:
    give(f"{ACQ}*")
    process = start(docked, "caldp-docker-run-pipeline", ACQ, "file:IN", "file:OUT", ONSITE)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr.count("stopped by SIGINT; run the same command again") == 1


@pytest.mark.parametrize("later", [0.02, 0.1, 0.3])
def test_stopped_as_soon_as_the_container_runs(docked: Desk, give: Give, engine: Any, later: float) -> None:
    """Python has not come to CALDP yet, or it has."""
    give(f"{ACQ}*")
    process = start(docked, "caldp-docker-run-pipeline", ACQ, "file:IN", "file:OUT", ONSITE)
    end = time.monotonic() + 60
    while not [c for c in engine.containers.list() if f":{process.pid}:" in c.labels.get("caldp.waiting", "")]:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    time.sleep(later)
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143
    assert stderr.count(f"{ACQ}: stopped by SIGTERM; run the same command again") == 1, stderr


@pytest.mark.parametrize("command", ["yes", "python -c 'while True: print(1)'", "sh -c 'yes >&2'"])
def test_nobody_reads_what_it_prints(docked: Desk, command: str) -> None:
    line = f"{SCRIPTS}/caldp-docker-run-container {command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=docked.home, env=docked.env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.count(b"\n"), done.stderr) == (141, 1, b"")


def test_the_container_is_killed(docked: Desk, give: Give, engine: Any) -> None:
    give(f"{ACQ}*")
    process = start(docked, "caldp-docker-run-pipeline", ACQ, "file:IN", "file:OUT", ONSITE)
    program_in_container(engine, docked, "calcos").kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 137
    assert stderr.splitlines()[-1].startswith(f"caldp-docker-run-pipeline: {ACQ}: stopped by SIGKILL")
    status = docked.status(ACQ)
    assert (status["state"], status["exit_code"]) == ("error", 137)
    assert docked.states(ACQ) == ["dataset-error"]
    again = pipeline(docked, ACQ)
    assert (again.code, docked.status(ACQ)["state"], docked.status(ACQ)["attempt"]) == (0, "processed", 2)


def test_caldp_in_the_container_is_killed(docked: Desk, give: Give, engine: Any) -> None:
    give(f"{ACQ}*")
    process = start(docked, "caldp-docker-run-pipeline", ACQ, "file:IN", "file:OUT", ONSITE)
    container = program_in_container(engine, docked, "calcos")
    rows = [row for row in container.top()["Processes"] if "/caldp-process" in row[-1] and "dumb-init" not in row[-1]]
    os.kill(int(rows[0][1]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 137
    assert stderr.splitlines()[-1].startswith(f"caldp-docker-run-pipeline: {ACQ}: stopped by SIGKILL")
    assert (docked.status(ACQ)["state"], docked.status(ACQ)["exit_code"]) == ("error", 137)


def test_the_command_that_waits_is_killed(docked: Desk, give: Give, engine: Any) -> None:
    """The container goes on to its end, and the next command takes it away."""
    give(f"{ACQ}*")
    process = start(docked, "caldp-docker-run-pipeline", ACQ, "file:IN", "file:OUT", ONSITE)
    container = program_in_container(engine, docked, "caldp-process")
    process.kill()
    process.communicate()
    until_gone(engine, container)
    assert docked.status(ACQ)["state"] == "processed"
    assert container.id in [c.id for c in engine.containers.list(all=True)]
    inside(docked, "true")
    assert container.id not in [c.id for c in engine.containers.list(all=True)]


def test_too_little_memory_for_caldp(docked: Desk, give: Give) -> None:
    give(f"{TAG}*")
    result = pipeline(docked, TAG, "--memory", "48m")
    assert result.code == 33, result.stdout + result.stderr
    line = result.stderr.splitlines()[-1]
    assert TAG in line and "killed for memory, limit 48 MiB" in line and "--memory" in line
    status = docked.status(TAG)
    assert (status["state"], status["exit_code"]) == ("error", 33)


@pytest.mark.parametrize("memory", ["100m", "300m"])
def test_too_little_memory(docked: Desk, give: Give, memory: str) -> None:
    """Whom the kernel takes is its own affair; what is said is true."""
    give(f"{TAG}*")
    result = pipeline(docked, TAG, "--memory", memory)
    assert result.code in (31, 33), result.stdout + result.stderr
    assert "memory" in result.stderr.splitlines()[-1]
    status = docked.status(TAG)
    assert (status["state"], status["exit_code"]) == ("error", result.code)


def test_too_little_memory_for_the_program(docked: Desk, give: Give) -> None:
    give(f"{TAG}*")
    result = pipeline(docked, TAG, "--memory", "600m")
    assert result.code == 31, result.stdout + result.stderr
    assert "calcos ran out of memory" in result.stderr
    assert "the memory limit was reached" in result.stderr
    assert (docked.status(TAG)["state"], docked.status(TAG)["exit_code"]) == ("error", 31)


def test_cpus(docked: Desk) -> None:
    assert inside(docked, "echo $OMP_NUM_THREADS", "--cpus", "1.5") == "1\n"


def test_a_full_disk(docked: Desk, give: Give) -> None:
    give(f"{TAG}*")
    with small_disk(docked.home / "disk", "60m"):
        shutil.copytree(docked.inputs, docked.home / "disk" / "IN")
        env = {"CALDP_HOME": str(docked.home / "disk")}
        result = run(docked, "caldp-docker-run-pipeline", TAG, "file:IN", "file:OUT", ONSITE, env=env)
    assert result.code == 29, result.stderr
    assert "no space left" in result.stderr


def test_no_such_image(docked: Desk) -> None:
    result = run(replace_image(docked, "caldp-test/absent:1"), "caldp-docker-run-container", "true")
    assert (result.code, result.stderr.count("\n")) == (125, 1)
    assert "there is no image caldp-test/absent:1 here" in result.stderr and "caldp-image-build" in result.stderr


def test_two_at_once(docked: Desk, give: Give) -> None:
    give(f"{ACQ}*")
    two = [start(docked, "caldp-docker-run-pipeline", ACQ, "file:IN", f"file:OUT{n}", ONSITE) for n in (1, 2)]
    for process in two:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert {p.name for n in (1, 2) for p in (docked.home / f"OUT{n}" / "data" / "cos").iterdir()} == {ACQ}


# --- AWS Batch


def test_a_batch_job(docked: Desk, cos_data: Path, image: Image, engine: Any) -> None:
    """SubmitJob -> a container of the image -> products and messages in S3 -> SUCCEEDED, with moto's AWS Batch."""
    import boto3

    base = {"MOTO_DOCKER_NETWORK_MODE": "host", "DOCKER_HOST": os.environ.get("DOCKER_HOST", "")}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]
    with S3Server("moto", lambda port: ([*command, str(port)], base)) as moto:
        env = s3_environment(moto.endpoint, {k: v for k, v in docked.env.items() if not k.startswith("CRDS_")})
        with s3_client(moto.endpoint) as s3:
            for bucket in ("inputs", "outputs", "crds"):
                s3.create_bucket(Bucket=bucket)
            for path in (cos_data / "inputs").glob(f"{ACQ}*"):
                s3.upload_file(str(path), "inputs", f"raw/{path.name}")
        sync = [
            SCRIPTS / "caldp",
            "references",
            "sync",
            "--context",
            CONTEXT,
            "--from",
            cos_data / "crds_cache",
            "s3://crds",
        ]
        assert subprocess.run(sync, env=env, capture_output=True).returncode == 0
        session = boto3.Session("t", "t", region_name="us-east-1")
        services = ("batch", "iam", "ec2", "logs")
        clients = {name: session.client(name, endpoint_url=moto.endpoint) for name in services}
        batch = clients["batch"]
        job = submit(
            clients,
            image.name,
            ["caldp-process-aws", "s3://outputs/batch-22", "Ref::dataset", "--input", "s3://inputs/raw"],
            {"CRDSBUCKET": "s3://crds", **{k: v for k, v in env.items() if k.startswith("AWS_") and "FILE" not in k}},
        )
        end = time.monotonic() + 300
        while (state := batch.describe_jobs(jobs=[job])["jobs"][0])["status"] not in ("SUCCEEDED", "FAILED"):
            assert time.monotonic() < end, state
            time.sleep(0.5)
        stream = state["container"].get("logStreamName", "")
        log = clients["logs"].get_log_events(logGroupName="/aws/batch/job", logStreamName=stream)["events"]
        assert state["status"] == "SUCCEEDED", [event["message"] for event in log]
        with s3_client(moto.endpoint) as s3:
            keys = {item["Key"] for item in s3.list_objects_v2(Bucket="outputs")["Contents"]}
            status = json.load(s3.get_object(Bucket="outputs", Key=f"batch-22/messages/status/{ACQ}.json")["Body"])
        assert {f"batch-22/data/cos/{ACQ}/manifest.json", f"batch-22/messages/datasets-processed/{ACQ}"} <= keys
        assert status["state"] == "processed"
        assert [entry["job"] for entry in status["history"]][0] == job
        for client in clients.values():
            client.close()


def submit(clients: Mapping[str, Any], image: str, command: list[str], variables: Mapping[str, str]) -> str:
    """Make what AWS Batch needs, and submit a job; return its name."""
    role = clients["iam"].create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    vpc = clients["ec2"].create_vpc(CidrBlock="10.0.0.0/24")["Vpc"]["VpcId"]
    subnet = clients["ec2"].create_subnet(CidrBlock="10.0.0.0/25", VpcId=vpc)["Subnet"]["SubnetId"]
    group = clients["ec2"].create_security_group(Description="g", GroupName="g", VpcId=vpc)["GroupId"]
    place = clients["batch"].create_compute_environment(
        computeEnvironmentName="place",
        type="MANAGED",
        state="ENABLED",
        serviceRole=role,
        computeResources={
            "type": "FARGATE",
            "maxvCpus": 4,
            "subnets": [subnet],
            "securityGroupIds": [group],
        },
    )["computeEnvironmentArn"]
    queue = clients["batch"].create_job_queue(
        jobQueueName="queue",
        state="ENABLED",
        priority=1,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": place}],
    )["jobQueueArn"]
    definition = clients["batch"].register_job_definition(
        jobDefinitionName="caldp",
        type="container",
        containerProperties={
            "image": image,
            "command": command,
            "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "2048"}],
            "environment": [{"name": name, "value": value} for name, value in variables.items()],
        },
    )["jobDefinitionArn"]
    job: str = clients["batch"].submit_job(
        jobName="one", jobQueue=queue, jobDefinition=definition, parameters={"dataset": ACQ}
    )["jobId"]
    return job


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """Give a port that nobody uses."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    """Wait until somebody listens there."""
    import socket

    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)
