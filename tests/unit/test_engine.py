"""The Docker engine: what is said when it cannot be used."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
import urllib3
from docker.errors import APIError, DockerException, NotFound

from caldp import engine
from caldp.errors import EngineError, UsageError
from tests.fakes.docker import as_anybody, make_docker, one_line, typed, user
from tests.fakes.engine import FakeEngine, serving

#: Every command that needs an engine.
COMMANDS = [
    ("caldp-docker-run-container", "true"),
    ("caldp-docker-run-pipeline", "ldfd01010"),
    ("caldp-image-build", "clone"),
    ("caldp-image-push",),
]
RUN = COMMANDS[0]


@pytest.fixture
def no_network(unix_sockets_only: None) -> None:
    """Let these tests reach the fake engine."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a clone of the repository, as far as it matters."""
    (tmp_path / "clone" / "container").mkdir(parents=True)
    (tmp_path / "clone" / "Dockerfile").touch()
    make_docker(tmp_path / "bin")
    return tmp_path


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """An engine that has the images."""
    with serving(images={name: {} for name in ("caldp:latest", "python:3.11-slim-bookworm")}) as served:
        yield served


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for sockets, whose paths have 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="socket-") as folder:
        yield Path(folder)


def failed(home: Path, host: str, command: tuple[str, ...], **popen: Any) -> str:
    """Type a command that cannot reach the engine, and return what it says."""
    env = user(home, host, home / "bin", CALDP_HSTCAL="none", **popen.pop("more", {}))
    done = typed(*command, cwd=home, env=env, **popen)
    line = one_line(done, 125)
    assert line.startswith(f"{command[0]}: ")
    assert "unforeseen" not in line
    assert not list((home / "bin").glob("argv"))
    return line


# ---- no engine, and none for us


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_no_engine(home: Path, command: tuple[str, ...]) -> None:
    line = failed(home, "unix:///nonexistent.sock", command)
    assert "there is no Docker engine at unix:///nonexistent.sock" in line
    assert line.endswith("; install and start Docker, or export DOCKER_HOST")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_an_engine_that_is_not_running(home: Path, short: Path, command: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(short / "docker.sock"))
    line = failed(home, f"unix://{short}/docker.sock", command)
    assert f"the Docker daemon at unix://{short}/docker.sock is not running" in line
    assert "; start it" in line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_an_engine_for_others(home: Path, fake: FakeEngine, command: tuple[str, ...]) -> None:
    fake.socket.chmod(0)
    line = failed(home, fake.host, command, preexec_fn=as_anybody())
    assert f"not allowed to use the Docker engine at {fake.host}" in line
    assert line.endswith("; become a member of the group docker, or use sudo")
    assert fake.requests == []


def use_context(folder: Path, host: str) -> dict[str, str]:
    """Make a context of the docker command the current one, and return the variable that names its folder."""
    meta = {"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}
    place = folder / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest()
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps(meta))
    (folder / "config.json").write_text(json.dumps({"currentContext": "mine"}))
    return {"DOCKER_CONFIG": str(folder)}


def test_no_engine_where_nobody_named_one(home: Path) -> None:
    line = failed(home, "", RUN, more=use_context(home / "config", "unix:///nonexistent.sock"))
    assert "there is no Docker engine at its usual socket; install and start Docker, or export DOCKER_HOST" in line


# ---- an address that is none


@pytest.mark.parametrize(
    "host",
    [
        "nonsense:://",
        "ftp://host",
        "tcp://",
        "tcp://127.0.0.1",
        "npipe:////./pipe/docker",
        "ssh://somebody@host",
        "///",
        "tcp://host:port",
        "tcp://[::1",
    ],
)
def test_an_address_that_cannot_be_read(home: Path, host: str) -> None:
    assert "Docker cannot be used: " in failed(home, host, RUN)


def test_without_the_certificates_that_were_asked_for(home: Path) -> None:
    line = failed(home, "tcp://127.0.0.1:1", RUN, more={"DOCKER_TLS_VERIFY": "1"})
    assert "certificate" in line


def test_nobody_listens_there(home: Path) -> None:
    line = failed(home, "tcp://127.0.0.1:1", RUN)
    assert "the Docker daemon at tcp://127.0.0.1:1 is not running; start it" in line


# ---- an engine that answers something else


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_an_engine_in_trouble(home: Path, fake: FakeEngine, command: tuple[str, ...]) -> None:
    fake.refuse("GET /version", 500, "the engine has\nstomach ache")
    assert "stomach ache" in failed(home, fake.host, command)


@pytest.mark.parametrize(
    ("request_", "status", "body", "words"),
    [
        ("GET /version", 200, "rubbish", "Docker cannot be used"),
        ("GET /version", 200, "[]", "Docker cannot be used"),
        ("GET /version", 200, "{}", "ApiVersion"),
        ("GET /version", 200, '{"ApiVersion": "1.2"}', "API versions below"),
        ("GET /version", 404, "<html>not here</html>", "not here"),
        ("GET /_ping", 500, '{"message": "stomach ache"}', "stomach ache"),
        ("GET /images/caldp:latest/json", 200, "rubbish", "caldp:latest cannot run true: "),
        ("GET /images/caldp:latest/json", 500, '{"message": "stomach ache"}', "cannot run true: stomach ache"),
        ("GET /info", 200, "rubbish", "caldp:latest cannot run true"),
        ("POST /containers/create", 500, "", "caldp:latest cannot run true"),
    ],
)
def test_an_engine_that_talks_nonsense(
    home: Path, fake: FakeEngine, request_: str, status: int, body: str, words: str
) -> None:
    fake.answers[request_] = status, body
    assert words in failed(home, fake.host, RUN)
    assert fake.containers == {}


@contextmanager
def answering(path: Path, reply: bytes) -> Iterator[None]:
    """Answer everybody who connects with some bytes, and hang up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2p1\r\n", b"\0" * 100, b"HTTP/1.1 200 OK\r\n"])
def test_something_else_listens_there(home: Path, short: Path, reply: bytes) -> None:
    with answering(short / "docker.sock", reply):
        assert "Docker cannot be used: " in failed(home, f"unix://{short}/docker.sock", RUN)


def test_an_engine_that_hangs(short: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "_TIMEOUT", 0.2)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{short}/docker.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "docker.sock"))
        listener.listen()
        with pytest.raises(EngineError, match="Docker cannot be used: .*timed out"):
            engine.connect(os.environ)


# ---- what it says when it cannot do something


@pytest.mark.parametrize(
    ("request_", "status", "message", "remedy"),
    [
        (
            "POST /containers/create",
            500,
            "mkdir /var/lib/docker/overlay2/0a1b-init: no space left on device",
            "free space for the engine: docker system prune, or move its data-root",
        ),
        ("PUT /containers/", 500, "write /etc/passwd: no space left on device", "free space for the engine"),
        ("POST /containers/create", 404, "network nonesuch not found", "give --network, for example --network host"),
        (
            "POST /containers/create",
            400,
            'invalid mount config for type "bind": bind source path does not exist: /data',
            "let the engine share that directory, or choose another CALDP_HOME",
        ),
    ],
)
def test_what_can_be_done_about_it(
    home: Path, fake: FakeEngine, request_: str, status: int, message: str, remedy: str
) -> None:
    fake.refuse(request_, status, message)
    line = failed(home, fake.host, RUN)
    assert f"caldp:latest cannot run true: {message}; {remedy}" in line
    assert fake.containers == {}


def test_no_space_for_an_image(home: Path, fake: FakeEngine) -> None:
    fake.pushed = [{"error": "write /var/lib/docker/tmp/x: no space left on device"}]
    line = failed(home, fake.host, ("caldp-image-push",))
    assert "caldp:latest cannot be pushed: write /var/lib/docker/tmp/x: no space left on device; free space" in line


#: What engines, registries and builds say -> a word of what can be done, or nothing.
SAID = {
    "write /x: No space left on device": "prune",
    "failed to register layer: write /usr/lib/x: no space left on device": "data-root",
    "denied: requested access to the resource is denied": "docker login",
    "denied": "docker login",
    "unauthorized: authentication required": "docker login",
    "no basic auth credentials": "docker login",
    'invalid mount config for type "bind": bind source path does not exist: /x': "CALDP_HOME",
    "network nonesuch not found": "--network host",
    "network bridge is not there": "--network host",
    "stomach ache": "",
    "": "",
}

#: The same, where the remedies above would send people astray.
ASTRAY = {
    "Mounts denied: the path /data is not shared from the host and is not known to Docker.": "CALDP_HOME",
    'OCI runtime create failed: exec: "/home/developer/x.sh": permission denied: unknown': "",
    'chdir to cwd ("/home/developer") set in config.json failed: permission denied: unknown': "",
}


@pytest.mark.parametrize(("said", "word"), [*SAID.items(), *ASTRAY.items()])
def test_remedies(said: str, word: str) -> None:
    remedy = engine.remedy(said)
    assert word in remedy
    assert word or "docker login" not in remedy


# ---- long messages


def test_of_a_long_message_the_end_is_kept() -> None:
    said = f"dial tcp: {'x ' * 300}lookup registry-1.docker.io: no such host"
    short = engine.shortened(said)
    assert 280 < len(short) <= 300
    assert short.startswith("... x ") and short.endswith("x lookup registry-1.docker.io: no such host")


@pytest.mark.parametrize("said", ["", "no such host", "y" * 300])
def test_a_short_message_stays(said: str) -> None:
    assert engine.shortened(said) == said


def test_a_long_word_is_cut() -> None:
    assert engine.shortened("y" * 301) == f"... {'y' * 296}"


# ---- whatever is raised


def _api_error(kind: type[APIError], status: int, explanation: str | None) -> APIError:
    response = requests.Response()
    response.status_code, response.url, response.reason = status, "http+docker://localhost/v1.41/x", "Oh"
    return kind("oh", response=response, explanation=explanation)


def _wrapped(number: int) -> requests.ConnectionError:
    """A failed connection as requests raises it."""
    inner = urllib3.exceptions.ProtocolError("Connection aborted.", OSError(number, os.strerror(number)))
    return requests.ConnectionError(inner)


def _circle() -> DockerException:
    error = DockerException("round and round")
    error.__context__ = other = DockerException("and round")
    other.__context__ = error
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_wrapped(errno.ENOENT), "there is no Docker engine at unix:///x"),
        (_wrapped(errno.ECONNREFUSED), "the Docker daemon at unix:///x is not running"),
        (_wrapped(errno.ECONNRESET), "the Docker daemon at unix:///x is not running"),
        (_wrapped(errno.EACCES), "not allowed to use the Docker engine at unix:///x"),
        (_wrapped(errno.EPERM), "not allowed to use the Docker engine at unix:///x"),
        (DockerException(http.client.RemoteDisconnected("Remote end closed")), "the Docker daemon at unix:///x is not"),
        (_wrapped(errno.EHOSTUNREACH), os.strerror(errno.EHOSTUNREACH)),
        (_api_error(APIError, 500, "two\nlines"), "oh no: two lines"),
        (_api_error(NotFound, 404, None), "404 Client Error"),
        (requests.ReadTimeout("too late"), "too late"),
        (_circle(), "round and round"),
    ],
)
def test_what_docker_raises_is_explained(error: Exception, said: str) -> None:
    with pytest.raises(EngineError) as caught, engine.explained("oh no", {"DOCKER_HOST": "unix:///x"}):
        raise error
    assert str(caught.value).startswith("oh no: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == 125
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [UsageError("mine"), EngineError("mine"), KeyError("mine"), KeyboardInterrupt()])
def test_what_is_not_dockers_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, engine.explained("oh no", {}):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_an_engine_that_goes_away_is_named(home: Path, fake: FakeEngine, command: tuple[str, ...]) -> None:
    fake.leaves = True
    line = failed(home, fake.host, command)
    assert "caldp:latest cannot " in line
    assert f"there is no Docker engine at {fake.host}; install" in line


# ---- an engine


def test_an_engine_that_answers(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", fake.host)
    client = engine.connect(os.environ)
    assert isinstance(client, docker.DockerClient)
    client.close()
    assert fake.requests == ["GET /version", "GET /_ping"]


def test_the_engine_of_the_current_context(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"DOCKER_HOST": "", **use_context(tmp_path, fake.host)}.items():
        monkeypatch.setenv(name, value)
    engine.connect(os.environ).close()
    assert "GET /_ping" in fake.requests


def test_the_engine_that_the_config_of_the_image_names(home: Path, fake: FakeEngine) -> None:
    script = (Path(__file__).parents[2] / "scripts" / "caldp-image-config").read_text()
    (home / "bin" / "caldp-image-config").write_text(f"{script}\nexport DOCKER_HOST={fake.host}\n")
    env = user(home, "unix:///nonexistent.sock", home / "bin", CALDP_HSTCAL="none")
    done = typed(*RUN, cwd=home, env=env)
    assert (done.returncode, done.stderr) == (0, "")
