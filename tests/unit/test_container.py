"""A container: what it is given and what not, how its end becomes the end of the command, and what is left of it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import io
import os
import pty
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import sysconfig
import tarfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from caldp import container, engine, messages
from caldp.container import CRDS_CACHE, HOME, LABEL, Ask, Ended, Watched
from caldp.errors import CaldpError, ContainerMemoryError, Interrupted, UsageError
from caldp.local_store import LocalStore
from tests.fakes.docker import one_line, typed, user
from tests.fakes.engine import GROUP, PASSWD, FakeContainer, FakeEngine, Play, serving

RUN = "caldp-docker-run-container"
DATASET = "ldfd01vnq"

MiB = 1 << 20


@pytest.fixture
def no_network(unix_sockets_only: None) -> None:
    """Let these tests reach the fake engine."""


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """An engine that has the image."""
    with serving(images={"caldp:latest": {}}) as served:
        yield served


@pytest.fixture
def client(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[docker.DockerClient]:
    """A client of it."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker-config"))
    monkeypatch.setenv("DOCKER_HOST", fake.host)
    made = engine.connect(os.environ)
    yield made
    made.close()


def ask(env: Mapping[str, str], **more: Any) -> Ask:
    """Ask for a container."""
    return Ask(**{"image": "caldp:latest", "command": ("true",), "home": Path("/home/me"), "environment": env, **more})


# ---- places on the command line

PLACES = [
    "file:.",
    "file:",
    "file:inputs",
    "file:inputs/",
    "file:a/b/../c",
    "file:a/..",
    "file:./a",
    "file:a b:c",
    "file:..a",
    "file:a..",
    "file:...",
    "file:été",
    "file:a~",
    "astroquery:",
    "astroquery:inputs",
    "astroquery:s3://bucket/../../../list",
    "s3://bucket",
    "s3://bucket/../x",
    "my.fits",
    "refs/my.fits",
    "",
    ".",
]

OUTSIDE = [
    "file:/data",
    "file:/",
    "file://localhost/data",
    "file:///data",
    "file:////data",
    "file:/home/me/inputs",
    "file:/home/me/../other",
    "file:~/inputs",
    "file:~",
    "file:..",
    "file:../x",
    "file:a/../../x",
    "file:./../x",
    "file:../me/inputs",
    "astroquery:/data",
    "astroquery:..",
    "/refs/my.fits",
    "~/my.fits",
    "../my.fits",
    "file:~no-such-user/inputs",
    "~no-such-user/my.fits",
]


@pytest.mark.parametrize("uri", PLACES)
def test_places_inside(uri: str) -> None:
    assert container.inside(uri, Path("/home/me")) == uri


@pytest.mark.parametrize("uri", OUTSIDE)
def test_places_that_the_container_does_not_see(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        container.inside(uri, Path("/home/me"))
    assert caught.value.message.startswith(uri)
    assert "/home/me" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("uri", ["s3:bucket", "s3://", "file://host/x", "file:a\0b"])
def test_what_is_no_place(uri: str) -> None:
    with pytest.raises(UsageError):
        container.inside(uri, Path("/home/me"))


def test_a_file_with_a_colon_in_its_name() -> None:
    assert container.inside("c1:my.fits", Path("/home/me")) == "c1:my.fits"


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("file:/home/me/inputs", "write file:inputs"),
        ("file:///home/me/a/b", "write file:a/b"),
        ("/home/me/my.fits", "write my.fits"),
        ("file:/data", "put it below /home/me, or export CALDP_HOME=<directory that holds it>"),
        ("../my.fits", "export CALDP_HOME=<directory that holds both>, and give paths relative to it"),
    ],
)
def test_what_to_write_instead(uri: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        container.inside(uri, Path("/home/me"))
    assert caught.value.remedy == remedy


#: A home: symbolic links in it, by name.
LINKS = {
    "within": "real",
    "within/../up": "real/inner",
    "deep": "real/../real/inner",
    "loop": "loop",
    "home": f"{HOME}/real",
    "cache.fits": f"{CRDS_CACHE}/references/hst/x.fits",
    "absolute": "/data/hst",
    "out": "../data",
    "further": "out",
    "sneaky": "real/../../me/real",
    "real/up": "../../data",
}


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A home with symbolic links."""
    home = tmp_path / "me"
    (home / "real" / "inner").mkdir(parents=True)
    for name, target in LINKS.items():
        (home / name).symlink_to(target)
    (home / "mine").symlink_to(home / "real")  # absolute: it means nothing in the container
    return home


@pytest.mark.parametrize(
    "uri",
    ["file:within", "within/x.fits", "file:up", "file:deep/new", "astroquery:home", "cache.fits", "loop", "file:new/x"],
)
def test_links_that_the_container_sees(linked: Path, uri: str) -> None:
    assert container.inside(uri, linked) == uri


@pytest.mark.parametrize(
    ("uri", "link", "target"),
    [
        ("file:absolute", "absolute", "/data/hst"),
        ("astroquery:absolute/x", "absolute", "/data/hst"),
        ("mine/x.fits", "mine", "{home}/real"),
        ("file:out", "out", "../data"),
        ("further/x.fits", "out", "../data"),
        ("file:within/up/x", "real/up", "../../data"),
        ("file:sneaky", "sneaky", "real/../../me/real"),
    ],
)
def test_links_that_lead_out(linked: Path, uri: str, link: str, target: str) -> None:
    with pytest.raises(UsageError) as caught:
        container.inside(uri, linked)
    said = f"{linked / link} is a symbolic link to {target.format(home=linked)}, which the container does not see"
    assert caught.value.message.startswith(f"{uri}: {said}")
    assert "copy" in caught.value.remedy and "CALDP_HOME" in caught.value.remedy


def test_a_home_that_is_a_link_itself(linked: Path) -> None:
    (linked.parent / "short").symlink_to(linked)
    assert container.inside("file:within", linked.parent / "short")


def test_files_of_the_dataset_that_are_links(linked: Path) -> None:
    (linked / "real" / "ldfd01vnq_raw.fits").symlink_to("inner/x")
    (linked / "real" / "other.fits").symlink_to("/data/other.fits")
    container.files_inside("file:real", linked, DATASET)
    container.files_inside("file:nowhere", linked, DATASET)
    container.files_inside("astroquery:", linked, DATASET)
    container.files_inside("s3://bucket/x", linked, DATASET)
    (linked / "real" / "ldfd01vnq_spt.fits").symlink_to("/data/spt.fits")
    with pytest.raises(UsageError, match="^file:real/ldfd01vnq_spt.fits: .*/data/spt.fits"):
        container.files_inside("file:real", linked, DATASET)


# ---- variables

#: What a container is given whatever the caller has.
OWN = {"HOME": HOME, "CALDP_HOME": HOME}

GIVEN = {
    "CRDS_CONTEXT": "hst_0729.pmap",
    "CRDS_SERVER_URL": "https://hst-crds.stsci.edu",
    "CRDS_READONLY_CACHE": "1",
    "CRDSBUCKET": "s3://crds",
    "CALDP_PREVIEW_JOBS": "1",
    "CALDP_ATTEMPT": "3",
    "CALDP_OWNER_TIMEOUT": "60",
    "CALDP_CRDS_CACHE_GB": "10",
    "CALDP_MAST_URL": "https://mast.example.org",
    "CSYS_VER": "caldp_1",
    "AWSDPVER": "1",
    "AWSYSVER": "2",
    "MAST_API_TOKEN": "d41d8cd98f00",
    "AWS_ACCESS_KEY_ID": "AKIA0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-0123456789",
    "AWS_SESSION_TOKEN": "aws-session-0123456789",
    "AWS_PROFILE": "hst",
    "AWS_BATCH_JOB_ID": "0123",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
    "https_proxy": "http://proxy.example.org:3128",
    "HTTP_PROXY": "http://proxy.example.org:3128",
    "no_proxy": "localhost",
    "NO_COLOR": "1",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "3",
    "ASTROMETRY_STEP_CONTROL": "off",
    "ASTROMETRY_SERVICE_URL": "https://mast.example.org/portal/astrometryDB/",
    "GSSS_WEBSERVICES_URL": "https://gsss.example.org/webservices",
    "ASTROMETRIC_CATALOG_URL": "https://gsss.example.org/webservices",
}

KEPT_OUT = {
    "GITHUB_TOKEN": "ghp-0123456789",
    "DOCKER_HOST": "unix:///var/run/docker.sock",
    "DOCKER_AUTH_CONFIG": "{}",
    "PIP_INDEX_URL": "https://me:hunter2@index.example.org",
    "PATH": "/usr/bin",
    "PYTHONPATH": "/home/me/python",
    "LD_PRELOAD": "/home/me/x.so",
    "LD_LIBRARY_PATH": "/home/me/lib",
    "SSH_AUTH_SOCK": "/run/x",
    "USER": "me",
    "TMPDIR": "/scratch",
    "CALDP_DOCKER_IMAGE": "x",
    "CALDP_RUN": "0123456789ab",
    "XAWS_SECRET": "x",
    "MY_CRDS_PATH": "x",
    "MAST_API_TOKEN_OLD": "x",
    "AWSSECRET": "x",
    "BASH_FUNC_f%%": "() { :; }",
}

#: Variables that name files, of which a word is said.
NAMED = {
    "CRDS_PATH_SINGLE": "/crds",
    "CRDS_CFGPATH": "/crds",
    "CRDS_MAPPATH": "/crds",
    "CRDS_REFPATH": "/crds",
    "CRDS_PICKLE_PATH": "/crds",
    "CRDS_MAPPATH_SINGLE": "/crds",
    "CRDS_INI_FILE": "/crds.ini",
    "CRDS_DEFAULT_CACHE": "/crds",
    "CRDS_CWD": "/work",
    "CRDS_DOWNLOAD_PLUGIN": "/bin/x",
    "AWS_CONFIG_FILE": "/home/me/.aws/c",
    "AWS_SHARED_CREDENTIALS_FILE": "/home/me/.aws/d",
    "AWS_CA_BUNDLE": "/ca.pem",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/token",
    "iref": "/refs/",
    "jref": "/refs/",
    "lref": "/refs/",
    "nref": "/refs/",
    "oref": "/refs/",
    "uref": "/refs/",
    "uref_linux": "/refs/",
}


def test_what_is_handed_on() -> None:
    given, left_out = container.environment(ask({**GIVEN, **KEPT_OUT}), cached=False)
    assert (GIVEN | OWN).items() <= given.items()
    assert not set(KEPT_OUT) & set(given)
    assert not {value for value in KEPT_OUT.values() if value != "x"} & set(given.values())
    assert left_out == []


@pytest.mark.parametrize("name", NAMED)
def test_what_names_files_is_left_out_and_said(name: str) -> None:
    given, left_out = container.environment(ask({**GIVEN, name: NAMED[name]}), cached=True)
    assert left_out == [name]
    assert name not in given
    assert container.environment(ask({name: ""}), cached=True)[1] == []


def test_the_cache() -> None:
    env = {"CRDS_PATH": "/data/crds"}
    assert container.environment(ask(env), cached=True)[0]["CRDS_PATH"] == CRDS_CACHE
    assert container.environment(ask(env), cached=True)[1] == []
    assert "CRDS_PATH" not in container.environment(ask({}), cached=False)[0]


def test_a_store_of_references_on_this_computer() -> None:
    given, left_out = container.environment(ask({"CRDSBUCKET": "file:/crds", "lref": "/refs"}), cached=False)
    assert "CRDSBUCKET" not in given
    assert left_out == ["lref", "CRDSBUCKET"]


@pytest.mark.parametrize(
    ("cpus", "exported", "threads"),
    [
        (0.0, None, None),
        (0.5, None, "1"),
        (1.0, None, "1"),
        (2.9, None, "2"),
        (16.0, None, "16"),
        (4.0, "7", "7"),
        (0.0, "7", "7"),
        (4.0, "", "4"),
    ],
)
def test_threads_follow_cpus(cpus: float, exported: str | None, threads: str | None) -> None:
    env = {} if exported is None else {"OMP_NUM_THREADS": exported}
    assert container.environment(ask(env, cpus=cpus), cached=False)[0].get("OMP_NUM_THREADS") == threads


def test_variables_of_the_command_line_win_over_all() -> None:
    more = {"OMP_NUM_THREADS": "5", "HOME": "/elsewhere", "CRDS_PATH": "/x", "NEW": "1"}
    given, _ = container.environment(ask(GIVEN, cpus=2.0, variables=more), cached=True)
    assert more.items() <= given.items()


def test_what_is_asked_for_does_not_show_variables() -> None:
    assert "aws-secret-0123456789" not in repr(ask(GIVEN, variables={"X": "aws-secret-0123456789"}))


# ---- directories


def test_the_home_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert container._directories(ask({}, home=tmp_path / "link")) == (tmp_path / "real", None)
    assert container._directories(ask({"CRDS_PATH": ""}, home=tmp_path)) == (tmp_path, None)


def test_a_cache_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crds").mkdir()
    for exported in (str(tmp_path / "crds"), "crds", "~/crds"):
        assert container._directories(ask({"CRDS_PATH": exported}, home=tmp_path))[1] == tmp_path / "crds"


@pytest.mark.parametrize(
    ("home", "said"), [("/", "CALDP_HOME is /, which is the whole computer"), ("/no/such", "which is no directory")]
)
def test_a_home_that_is_none(home: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        container._directories(ask({}, home=Path(home)))
    assert said in caught.value.message
    assert "export CALDP_HOME=" in caught.value.remedy


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no directory"):
        container._directories(ask({}, home=tmp_path / "file"))


@pytest.mark.parametrize(
    "exported",
    [
        "/no/such",
        "~no-such-user/crds",
    ],
)
@pytest.mark.parametrize("config", ["", "caldp-config-onsite", "caldp-config-offsite", "caldp-config-aws", "./mine"])
def test_a_cache_that_is_none(tmp_path: Path, exported: str, config: str) -> None:
    with pytest.raises(UsageError) as caught:
        container._directories(ask({"CRDS_PATH": exported}, home=tmp_path, config=config))
    assert caught.value.message == f"CRDS_PATH is {exported}, which is no directory"
    downloads = config in ("caldp-config-offsite", "caldp-config-aws")
    assert (f"downloaded into {tmp_path / 'crds_cache'}" in caught.value.remedy) == downloads
    assert ("downloads nothing" in caught.value.remedy) == (config == "caldp-config-onsite")
    assert ("unset CRDS_PATH" in caught.value.remedy) == (config != "caldp-config-onsite")


# ---- the state of a run that was killed


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """A run that is processing."""
    store = LocalStore(tmp_path / "OUT")
    messages.begin(store, DATASET, "0123456789ab")
    return Watched(DATASET, store, "0123456789ab")


def state(watched: Watched) -> tuple[str, int | None, str]:
    """State, exit code and reason of the dataset."""
    status = messages.read(watched.store, DATASET)
    assert status is not None
    return status.state, status.exit_code, status.reason


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (300 * MiB, r"killed for memory, limit 3\d\d MI?i?B; run it with a larger --memory"),
        (0, "killed for memory; run it on a computer with more memory"),
    ],
)
def test_a_container_killed_for_memory(watched: Watched, memory: int, said: str) -> None:
    with pytest.raises(ContainerMemoryError, match=said) as caught:
        watched.conclude(Ended(137, out_of_memory=True), memory)
    assert caught.value.code == 33
    assert state(watched) == ("error", 33, str(caught.value))
    assert sorted(p.parent.name for p in watched.store.root.glob(f"messages/*/{DATASET}")) == [  # type: ignore[attr-defined]
        "dataset-error"
    ]


def test_a_container_that_was_killed(watched: Watched) -> None:
    with pytest.raises(Interrupted) as caught:
        watched.conclude(Ended(137, out_of_memory=False), 300 * MiB)
    assert caught.value.code == 137
    assert state(watched) == ("error", 137, str(caught.value))


@pytest.mark.parametrize("code", [0, 1, 2, 23, 31, 33, 125, 126, 127, 128, 200, 255])
@pytest.mark.parametrize("out_of_memory", [True, False])
def test_other_ends_leave_the_state_alone(watched: Watched, code: int, out_of_memory: bool) -> None:
    before = messages.read(watched.store, DATASET)
    watched.conclude(Ended(code, out_of_memory), 300 * MiB)
    assert messages.read(watched.store, DATASET) == before


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGSEGV], ids=lambda s: s.name)
@pytest.mark.parametrize("out_of_memory", [True, False])
def test_a_signal_that_the_run_could_not_report(watched: Watched, signum: signal.Signals, out_of_memory: bool) -> None:
    watched.conclude(Ended(128 + signum, out_of_memory), 300 * MiB)
    assert state(watched)[:2] == ("error", 128 + signum)
    assert signum.name in state(watched)[2]


@pytest.mark.parametrize("code", [128 + signal.SIGRTMIN, 128 + signal.SIGRTMIN + 1, 128 + signal.SIGRTMAX])
def test_a_signal_without_a_name(watched: Watched, code: int) -> None:
    watched.conclude(Ended(code, out_of_memory=False), 0)


def test_a_run_that_is_not_ours_is_left_alone(watched: Watched) -> None:
    other = Watched(DATASET, watched.store, "another0run0")
    before = messages.read(watched.store, DATASET)
    with pytest.raises(ContainerMemoryError):
        other.conclude(Ended(137, out_of_memory=True), 0)
    assert messages.read(watched.store, DATASET) == before


def test_a_run_that_is_over_is_left_alone(watched: Watched) -> None:
    mine = messages.read(watched.store, DATASET)
    assert mine is not None
    messages.conclude(watched.store, messages.Status(DATASET, mine.attempt, "processed", run=mine.run))
    with pytest.raises(Interrupted):
        watched.conclude(Ended(137, out_of_memory=False), 0)
    assert state(watched)[0] == "processed"


def test_a_run_that_had_not_begun(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "OUT")
    with pytest.raises(ContainerMemoryError):
        Watched(DATASET, store, "0123456789ab").conclude(Ended(137, out_of_memory=True), 0)
    assert not store.root.exists()


@pytest.mark.parametrize("why", [CaldpError("the store is on fire"), OSError("the store is on fire")])
def test_a_state_that_cannot_be_written(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: Exception
) -> None:
    def fail(*_: object) -> None:
        raise why

    monkeypatch.setattr(messages, "abandon", fail)
    with pytest.raises(ContainerMemoryError):
        watched.conclude(Ended(137, out_of_memory=True), 0)
    said = capsys.readouterr().err
    assert said == f"caldp: {DATASET}: its error state could not be written: the store is on fire\n"


# ---- who somebody is inside


class _Files:
    """A container that has files, and nothing else."""

    def __init__(self, users: str = PASSWD, groups: str = GROUP) -> None:
        self.files = {"/etc/passwd": users, "/etc/group": groups}

    def get_archive(self, path: str) -> tuple[Iterator[bytes], dict[str, Any]]:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(path.rpartition("/")[2])
            entry.size = len(self.files[path].encode())
            tar.addfile(entry, io.BytesIO(self.files[path].encode()))
        data = packed.getvalue()
        return iter([data[:700], data[700:]]), {}

    def put_archive(self, path: str, data: bytes) -> bool:
        assert path == "/"
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for entry in tar:
                assert (entry.uid, entry.gid, entry.mode) == (0, 0, 0o644)
                content = tar.extractfile(entry)
                assert content is not None
                self.files[f"/{entry.name}"] = content.read().decode()
        return True


@pytest.mark.parametrize(
    ("uid", "gid", "users", "groups"),
    [
        (1000, 1000, ["root", "nobody"], ["root", "nogroup"]),
        (4321, 100, ["root", "nobody"], ["root", "nogroup"]),
        (0, 0, ["nobody"], ["nogroup"]),
        (65534, 65534, ["root"], ["root"]),
    ],
)
def test_the_caller_is_the_user_of_the_image(uid: int, gid: int, users: list[str], groups: list[str]) -> None:
    files = _Files()
    container._introduce(files, uid, gid)  # type: ignore[arg-type]
    passwd, group = files.files["/etc/passwd"].splitlines(), files.files["/etc/group"].splitlines()
    assert passwd[0] == f"developer:x:{uid}:{gid}:CALDP:{HOME}:/bin/bash"
    assert group[0] == f"developer:x:{gid}:"
    assert [line.partition(":")[0] for line in passwd[1:]] == users
    assert [line.partition(":")[0] for line in group[1:]] == groups


def test_odd_lines_about_users_stay() -> None:
    files = _Files("root:x:0:0:é:/root:/bin/sh\n\n+::::::\nodd\n", "")
    container._introduce(files, 1000, 1000)  # type: ignore[arg-type]
    assert files.files["/etc/passwd"].splitlines()[1:] == ["root:x:0:0:é:/root:/bin/sh", "", "+::::::", "odd"]
    assert files.files["/etc/group"] == "developer:x:1000:\n"


# ---- containers that nobody waits for


def label(pid: int, *, host: str = "", started: str = "") -> str:
    """The mark of a container for which a process waits."""
    return f"{host or os.uname().nodename}:{pid}:{started or f'{psutil.Process(pid).create_time():.2f}'}"


@pytest.fixture
def dead() -> int:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_process_that_waits() -> None:
    assert container._waiting() == label(os.getpid())
    assert container._waits(container._waiting())


def test_a_process_that_has_ended(dead: int) -> None:
    assert not container._waits(label(dead, started="1.00"))


def test_another_process_with_the_same_number() -> None:
    assert not container._waits(label(os.getpid(), started="12345.00"))


@pytest.mark.parametrize("odd", ["", "x", "x:y", "a:b:c", ":::", "elsewhere:1:2.00", "::1:2"])
def test_what_cannot_be_told_from_here_waits(odd: str) -> None:
    assert container._waits(odd)


def test_a_host_with_colons_in_its_name(monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    monkeypatch.setattr(container.os, "uname", lambda: SimpleNamespace(nodename="a:b"))
    assert container._waits(container._waiting())
    assert not container._waits(label(dead, host="a:b", started="1.00"))


def test_only_what_nobody_waits_for_is_swept(client: docker.DockerClient, fake: FakeEngine, dead: int) -> None:
    gone = label(dead, started="1.00")
    for name, mark, status in (
        ("left", gone, "exited"),
        ("waited-for", label(os.getpid()), "exited"),
        ("elsewhere", label(1, host="elsewhere", started="1.00"), "exited"),
        ("running", gone, "running"),
    ):
        fake.make({"Image": "caldp:latest", "Labels": {LABEL: mark}}, name, status)
    fake.make({"Image": "caldp:latest", "Labels": {"other": gone}}, "not-ours", "exited")
    container.sweep(client)
    assert {c.name for c in fake.containers.values()} == {"waited-for", "elsewhere", "running", "not-ours"}
    assert all(LABEL in request for request in fake.requests if "/containers/json" in request)


def test_what_was_never_started_is_swept(client: docker.DockerClient, fake: FakeEngine, dead: int) -> None:
    fake.make({"Image": "caldp:latest", "Labels": {LABEL: label(dead, started="1.00")}}, "left", "created")
    fake.make({"Image": "caldp:latest", "Labels": {LABEL: label(os.getpid())}}, "starting", "created")
    container.sweep(client)
    assert [c.name for c in fake.containers.values()] == ["starting"]


@pytest.mark.parametrize("status", [500, 409, 404])
@pytest.mark.parametrize("request_", ["GET /containers/json", "DELETE /containers/"])
def test_an_engine_that_cannot_sweep(
    client: docker.DockerClient, fake: FakeEngine, dead: int, request_: str, status: int
) -> None:
    fake.make({"Image": "caldp:latest", "Labels": {LABEL: label(dead, started="1.00")}}, "left", "exited")
    fake.refuse(request_, status, "not now")
    container.sweep(client)


def test_a_container_that_vanishes_while_others_are_swept(
    client: docker.DockerClient, fake: FakeEngine, dead: int
) -> None:
    marks = {LABEL: label(dead, started="1.00")}
    first, _ = (fake.make({"Image": "caldp:latest", "Labels": marks}, name, "exited") for name in ("a", "b"))
    fake.refuse(f"GET /containers/{first.id}/json", 404, f"No such container: {first.id}")
    container.sweep(client)
    assert [c.name for c in fake.containers.values()] == ["a"]


# ---- a run


Type = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def type_(fake: FakeEngine, tmp_path: Path) -> Type:
    """Return a function that types caldp-docker-run-container, in a directory of its own."""

    def run(*args: str, env: Mapping[str, str] | None = None, **popen: Any) -> subprocess.CompletedProcess[str]:
        return typed(RUN, *args, cwd=tmp_path, env=user(tmp_path, fake.host, **(env or {})), **popen)

    return run


def test_what_it_prints_and_how_it_ends(fake: FakeEngine, type_: Type) -> None:
    fake.play = Play(out=b"out\n" * 50_000, err=b"err\n", code=42)
    done = type_("echo", "-n", "--help", "$HOME", "a b", "")
    assert (done.returncode, done.stderr) == (42, "err\n")
    assert done.stdout == "out\n" * 50_000
    assert fake.made[0].asked["Cmd"] == ["echo", "-n", "--help", "$HOME", "a b", ""]
    assert fake.containers == {}


def test_what_it_is_made_of(fake: FakeEngine, type_: Type, tmp_path: Path) -> None:
    assert type_("true", env={"CRDS_CONTEXT": "hst_0729.pmap", "GITHUB_TOKEN": "x"}).returncode == 0
    made = fake.made[0]
    assert made.asked["User"] == f"{os.getuid()}:{os.getgid()}"
    assert made.asked["WorkingDir"] == HOME
    assert made.asked["HostConfig"]["Mounts"] == [
        {"Target": HOME, "Source": str(tmp_path), "Type": "bind", "ReadOnly": False}
    ]
    assert not {"Memory", "NanoCpus", "SecurityOpt", "UsernsMode"} & set(made.asked["HostConfig"])
    assert made.asked["Tty"] is False
    assert made.environment.items() >= {**OWN, "CRDS_CONTEXT": "hst_0729.pmap"}.items()
    assert "GITHUB_TOKEN" not in made.environment
    assert made.name.startswith("caldp-")
    assert made.asked["Labels"][LABEL].startswith(f"{os.uname().nodename}:")
    assert made.files["/etc/passwd"].decode().splitlines()[0].startswith(f"developer:x:{os.getuid()}:{os.getgid()}:")


def test_limits_and_network(fake: FakeEngine, type_: Type) -> None:
    options = ["--memory", "300m", "--cpus", "1.5", "--network", "host", "--env", "A=b=c", "--env", "MINE"]
    assert type_(*options, "true", env={"MINE": "1", "CALDP_DOCKER_NETWORK": "other"}).returncode == 0
    made = fake.made[0]
    wanted = {"Memory": 300 * MiB, "MemorySwap": 300 * MiB, "NanoCpus": 1_500_000_000, "NetworkMode": "host"}
    assert made.asked["HostConfig"].items() >= wanted.items()
    assert made.environment.items() >= {"A": "b=c", "MINE": "1", "OMP_NUM_THREADS": "1"}.items()


@pytest.mark.parametrize(("switch", "readonly"), [(None, False), ("0", False), ("1", True), (" TRUE ", True)])
def test_a_cache_of_the_caller(
    fake: FakeEngine, type_: Type, tmp_path: Path, switch: str | None, readonly: bool
) -> None:
    (tmp_path / "crds").mkdir()
    env = {"CRDS_PATH": str(tmp_path / "crds"), **({"CRDS_READONLY_CACHE": switch} if switch else {})}
    assert type_("true", env=env).returncode == 0
    mount = {"Target": CRDS_CACHE, "Source": str(tmp_path / "crds"), "Type": "bind", "ReadOnly": readonly}
    assert fake.made[0].asked["HostConfig"]["Mounts"][1] == mount
    assert fake.made[0].environment["CRDS_PATH"] == CRDS_CACHE


def test_what_is_left_out_is_said(fake: FakeEngine, type_: Type) -> None:
    done = type_("true", env={"AWS_CA_BUNDLE": "/ca.pem", "jref": "/refs"})
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"caldp: {name} names something that the container does not see; it is not handed on"
        for name in ("AWS_CA_BUNDLE", "jref")
    ]


@pytest.mark.parametrize(
    ("security", "asked", "config"),
    [
        (["name=seccomp,profile=default", "name=selinux"], {}, {"SecurityOpt": ["label=disable"]}),
        (["name=userns"], {}, {"UsernsMode": "host"}),
        (["name=rootless", "name=seccomp"], {"User": "0:0"}, {}),
        ([], {}, {}),
    ],
)
def test_engines_that_differ(
    fake: FakeEngine, type_: Type, security: list[str], asked: dict[str, Any], config: dict[str, Any]
) -> None:
    fake.security = security
    assert type_("true").returncode == 0
    assert fake.made[0].asked.items() >= asked.items()
    assert fake.made[0].asked["HostConfig"].items() >= config.items()
    assert {"SecurityOpt", "UsernsMode"} & set(fake.made[0].asked["HostConfig"]) == set(config)


@pytest.mark.parametrize("what", ["GET {}/archive", "PUT {}/archive", "POST {}/attach", "POST {}/start"])
def test_nothing_is_left_of_what_could_not_be_started(fake: FakeEngine, type_: Type, what: str) -> None:
    fake.on_make = lambda made: fake.refuse(what.format(f"/containers/{made.id}"), 500, "stomach ache")
    line = one_line(type_("true"), 125)
    assert line == f"{RUN}: caldp:latest cannot run true: stomach ache"
    assert len(fake.made) == 1
    assert fake.containers == {}


def test_an_image_that_is_not_here(fake: FakeEngine, type_: Type) -> None:
    line = one_line(type_("--image", "caldp:other", "true"), 125)
    assert "there is no image caldp:other here; build it with caldp-image-build, or: docker pull caldp:other" in line
    assert fake.made == []


def test_what_is_typed_arrives(fake: FakeEngine, type_: Type) -> None:
    fake.play = Play(echo=True, code=3)
    done = type_("cat", input="first\nlast without an end")
    assert (done.returncode, done.stdout) == (3, "first\nlast without an end")
    assert (fake.made[0].asked["OpenStdin"], fake.made[0].asked["StdinOnce"]) == (True, True)


def test_containers_of_dead_commands_are_swept_on_the_way(fake: FakeEngine, type_: Type, dead: int) -> None:
    fake.make({"Image": "caldp:latest", "Labels": {LABEL: label(dead, started="1.00")}}, "left", "exited")
    assert type_("true").returncode == 0
    assert fake.containers == {}


def test_a_sweep_that_fails_stops_nobody(fake: FakeEngine, type_: Type) -> None:
    fake.answers["GET /containers/json"] = 200, "rubbish"
    done = type_("true")
    assert (done.returncode, done.stderr) == (0, "")


# ---- signals


@contextlib.contextmanager
def started(
    fake: FakeEngine, home: Path, *args: str, code: str = "", later: float = 0.3, **popen: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a command, wait for its container, and a little more; ``code`` comes before it."""
    code = f"{code}\nfrom caldp.cli_image import container_command\ncontainer_command(prog_name='{RUN}')"
    program = [sys.executable, "-c", code]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [*program, *(args or ("sleep",))], cwd=home, env=user(home, fake.host), text=True, **{**options, **popen}
    )
    try:
        limit = time.monotonic() + 30
        while not any(made.status == "running" and made.attached for made in fake.made):
            assert time.monotonic() < limit
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(later)
        yield process
    finally:
        process.kill()
        process.communicate()


#: Seconds after the start of the container: when the command is still about it, and when it waits for the end.
MOMENTS = [0.0, 0.3]


@pytest.mark.parametrize("later", MOMENTS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
def test_signals_are_handed_on(fake: FakeEngine, tmp_path: Path, signum: signal.Signals, later: float) -> None:
    fake.play = Play(waits=True)
    with started(fake, tmp_path, later=later) as process:
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    said = f"{RUN}: stopped by {signum.name}; run the same command again\n"
    assert (process.returncode, out, err) == (128 + signum, "", said)
    assert fake.made[0].signals == [signum.name]
    assert fake.containers == {}


@pytest.mark.parametrize("later", MOMENTS)
def test_a_container_that_does_not_heed_is_killed(fake: FakeEngine, tmp_path: Path, later: float) -> None:
    fake.play = Play(waits=True, deaf=frozenset({"SIGTERM"}))
    with started(fake, tmp_path, code="import caldp.container as m; m._GRACE = 0.2", later=later) as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (137, f"{RUN}: stopped by SIGTERM; run the same command again\n")
    assert fake.made[0].signals == ["SIGTERM", "SIGKILL"]
    assert fake.containers == {}


def test_the_last_words_of_a_container_are_heard(fake: FakeEngine, tmp_path: Path) -> None:
    fake.play = Play(waits=True, last=b"x" * 150_000)  # more than a pipe holds, less than a socket
    with started(fake, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # nobody reads for a while
        out, _ = process.communicate(timeout=10)
    assert (process.returncode, len(out)) == (143, 150_000)


def test_a_second_signal_does_not_cut_the_end_short(fake: FakeEngine, tmp_path: Path) -> None:
    fake.play = Play(waits=True, deaf=frozenset({"SIGINT"}))
    with started(fake, tmp_path, code="import caldp.container as m; m._GRACE = 0.5") as process:
        process.send_signal(signal.SIGINT)
        while not fake.made[0].signals:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 137
    assert fake.made[0].signals == ["SIGINT", "SIGKILL"]


def stopped_by(fake: FakeEngine, home: Path, signum: int, event: str) -> tuple[int, str]:
    """Run a command that is sent a signal while the engine does something; return its status and what it says."""
    processes: list[subprocess.Popen[str]] = []

    def stop(_: FakeContainer) -> None:
        while not processes:
            time.sleep(0.01)
        processes[0].send_signal(signum)
        time.sleep(0.1)

    setattr(fake, event, stop)
    program = Path(sysconfig.get_path("scripts")) / RUN
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([str(program), "x"], cwd=home, env=user(home, fake.host), text=True, **pipes) as process:
        processes.append(process)
        _, err = process.communicate(timeout=30)
    return process.returncode, err


def test_a_signal_while_the_container_is_made(fake: FakeEngine, tmp_path: Path) -> None:
    code, err = stopped_by(fake, tmp_path, signal.SIGTERM, "on_make")
    assert code == 143
    assert err.startswith(f"{RUN}: stopped by SIGTERM;")
    assert (len(fake.made), fake.containers) == (1, {})
    assert not [request for request in fake.requests if "/start" in request]


def test_a_signal_while_the_container_starts_reaches_it(fake: FakeEngine, tmp_path: Path) -> None:
    fake.play = Play(waits=True)
    said = f"{RUN}: stopped by SIGINT; run the same command again\n"
    assert stopped_by(fake, tmp_path, signal.SIGINT, "on_start") == (130, said)
    assert fake.made[0].signals == ["SIGINT"]
    assert fake.containers == {}


def test_an_engine_that_ends(fake: FakeEngine, tmp_path: Path) -> None:
    fake.play = Play(waits=True)
    with started(fake, tmp_path) as process:
        fake.refuse("POST /containers/", 500, "shutting down")
        fake.made[0].killed.put("SIGKILL")
        _, err = process.communicate(timeout=30)
    assert process.returncode == 125
    assert err == f"{RUN}: caldp:latest cannot run sleep: shutting down\n"


# ---- what it prints, and who reads it


def test_what_it_prints_comes_at_once(fake: FakeEngine, tmp_path: Path) -> None:
    fake.play = Play(out=b"early\n", waits=True)
    with started(fake, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "early\n"
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=30) == 143


@pytest.mark.parametrize("size", [2, 200_000])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_nobody_reads_what_it_prints(fake: FakeEngine, tmp_path: Path, stream: str, size: int) -> None:
    fake.play = Play(out=b"x" * size, err=b"y" * size, code=7)
    done = without_reader(fake, tmp_path, stream, RUN, "true")
    assert done.returncode == 128 + signal.SIGPIPE
    other = done.stdout if stream == "stderr" else done.stderr
    assert len(other) == size


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_nobody_reads_is_stopped(fake: FakeEngine, tmp_path: Path, stream: str) -> None:
    lines = b"y\n" * 1000
    fake.play = Play(lines, waits=True) if stream == "stdout" else Play(err=lines, waits=True)
    done = without_reader(fake, tmp_path, stream, RUN, "yes")
    assert done.returncode == 128 + signal.SIGPIPE
    assert not done.stdout and not done.stderr
    assert fake.made[0].signals == ["SIGTERM"]
    assert fake.containers == {}


@pytest.mark.parametrize("command", [["caldp-docker-run-pipeline"], [RUN, "caldp-process"]], ids="-".join)
def test_a_calibration_that_nobody_reads_goes_on(fake: FakeEngine, tmp_path: Path, command: list[str]) -> None:
    fake.play = Play(out=b"x" * 1000)
    assert without_reader(fake, tmp_path, "stdout", *command, DATASET).returncode == 0
    assert fake.made[0].signals == []


def without_reader(fake: FakeEngine, home: Path, stream: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Type a command of which nobody reads one of the standard streams."""
    reader, writer = os.pipe()
    os.close(reader)
    program = Path(sysconfig.get_path("scripts")) / command[0]
    env = user(home, fake.host)
    with os.fdopen(writer, "wb") as closed:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: closed}
        argv = [str(program), *command[1:]]
        return subprocess.run(argv, cwd=home, env=env, stdin=subprocess.DEVNULL, timeout=30, **pipes)


@pytest.mark.parametrize("play", [Play(b"x", b"y", 7), Play(b"x" * 200_000, b"y" * 200_000, 7)], ids=["little", "much"])
@pytest.mark.parametrize("full", [["stdout"], ["stderr"], ["stdout", "stderr"]], ids="+".join)
def test_what_it_prints_cannot_be_written(
    fake: FakeEngine, tmp_path: Path, full_device: Path, full: list[str], play: Play
) -> None:
    fake.play = replace(play, out_of_memory=True)  # of which a word is said
    program = Path(sysconfig.get_path("scripts")) / RUN
    env = user(tmp_path, fake.host, jref="/refs")
    with full_device.open("wb") as device:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | dict.fromkeys(full, device)
        done = subprocess.run([str(program), "true"], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, **pipes)
    assert done.returncode == 7
    if full == ["stdout"]:
        lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("caldp: jref")]
        said = "caldp: standard output cannot be written: No space left on device"
        assert len([line for line in lines if said in line]) == 1
        assert done.stderr.count(b"y") >= len(play.err)
    elif full == ["stderr"]:
        assert done.stdout == play.out


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_without_a_standard_stream(fake: FakeEngine, tmp_path: Path, closed: str) -> None:
    fake.play = Play(out=b"out\n", code=7)
    program = Path(sysconfig.get_path("scripts")) / RUN
    done = subprocess.run(
        ["sh", "-c", f'"$0" true {closed}', str(program)],
        cwd=tmp_path,
        env=user(tmp_path, fake.host),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (7, "")


# ---- TLS


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """The ends of a connection with TLS: ours, and an engine's, to which like to Go an end without a word is one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "engine")]), datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1).public_key(key.public_key())
    valid = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(hours=1)).sign(key, hashes.SHA256())
    kind = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (tmp_path / "pem").write_bytes(valid.public_bytes(pem) + key.private_bytes(pem, *kind))
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(tmp_path / "pem")
    server.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    client.load_verify_locations(tmp_path / "pem")
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(server.wrap_socket, theirs, server_side=True)
        with client.wrap_socket(ours, server_hostname="engine") as one, accepted.result() as other:
            one.settimeout(30)
            other.settimeout(30)
            yield one, other


def test_the_end_of_what_is_typed_ends_nothing_else(
    secured: tuple[ssl.SSLSocket, ssl.SSLSocket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours, theirs = secured
    (tmp_path / "typed").write_text("typed")
    with (tmp_path / "typed").open() as typed_:
        monkeypatch.setattr(sys, "stdin", typed_)
        with container._typing(ours, raw=False):
            assert theirs.recv(100) == b"typed"
            assert theirs.recv(100) == b""
    theirs.sendall(b"answer")
    assert ours.recv(100) == b"answer"


def test_nothing_that_it_prints_is_kept_back(secured: tuple[ssl.SSLSocket, ssl.SSLSocket]) -> None:
    ours, theirs = secured
    frames = container._frames(ours, tty=False)
    for data in (b"early", b"x" * 100_000):
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(theirs.sendall, struct.pack(">BxxxL", 2, len(data)) + data)
            got = b""
            while len(got) < len(data):
                stream, piece = next(frames)
                got += piece
            sent.result()
        assert (stream, got) == (2, data)


def test_pieces_of_what_it_prints() -> None:
    """However they come."""
    pieces = [(1, b"out"), (1, b""), (2, b"e" * 300)]
    sent = b"".join(struct.pack(">BxxxL", number, len(data)) + data for number, data in pieces)
    for size in (1, 2, 7, 8, 11, 12, 1000):
        stream = io.BytesIO(sent)
        frames = list(container._frames(SimpleNamespace(recv=lambda _, s=stream, n=size: s.read(n)), tty=False))
        assert b"".join(data for number, data in frames if number == 1) == b"out"
        assert b"".join(data for number, data in frames if number == 2) == b"e" * 300


# ---- a terminal


@contextlib.contextmanager
def terminal(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Open a terminal: the descriptors of who sits before it, and of programs."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def read(descriptor: int, until: bytes) -> bytes:
    """Read what a terminal shows."""
    seen = b""
    limit = time.monotonic() + 30
    while until not in seen:
        assert time.monotonic() < limit, seen
        if select.select([descriptor], [], [], 0.1)[0]:
            seen += os.read(descriptor, 65_536)
    return seen


def test_a_terminal(fake: FakeEngine, tmp_path: Path) -> None:
    fake.play = Play(out=b"\x1b[1m$ ", echo=True, code=5)
    with terminal(33, 99) as (ours, theirs):
        before = termios.tcgetattr(theirs)
        with started(fake, tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            made = fake.made[0]
            assert read(ours, b"$ ") == b"\x1b[1m$ "
            os.write(ours, b"\x03x\x04")  # keys, not what they mean outside
            assert read(ours, b"\x04") == b"\x03x\x04"
            limit = time.monotonic() + 30
            while (33, 99) not in made.sizes:
                assert time.monotonic() < limit
                time.sleep(0.01)
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
            process.send_signal(signal.SIGWINCH)
            while made.sizes[-1] != (44, 111):
                assert time.monotonic() < limit
                time.sleep(0.01)
            made.typed.put(b"")
            assert process.wait(timeout=30) == 5
        assert termios.tcgetattr(theirs) == before
        assert made.signals == []
        assert made.asked["Tty"] is True
        assert made.environment["TERM"]
