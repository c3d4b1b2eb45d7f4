"""A Docker engine on this machine: what CALDP asks one, the answers of a real one (20.10), and how it fails.

Nothing runs in its containers: a :class:`Play` says what their command does.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import queue
import re
import signal
import socket
import socketserver
import struct
import tarfile
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

ROOT = "root:x:0:0:root:/root:/bin/bash\n"
PASSWD = f"{ROOT}nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\ndeveloper:x:1000:1000::/home/developer:\n"
GROUP = "root:x:0:\nnogroup:x:65534:\ndeveloper:x:1000:\n"

#: What it says of an image that its registry does not give, because there is no network.
NO_REGISTRY = 'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host'


@dataclass
class Play:
    """What the command of a container does.

    Attributes
    ----------
    out, err : bytes
        What it prints.
    code : int
        Its exit status.
    out_of_memory : bool
        The kernel killed something in it.
    waits : bool
        It lives until a signal comes.
    deaf : frozenset of str
        Signals that do not end it.
    last : bytes
        What it prints when a signal ends it, if it can.
    echo : bool
        It sends back what it reads, and ends when there is no more.
    at_start : callable
        Called with the container when it starts.
    """

    out: bytes = b""
    err: bytes = b""
    code: int = 0
    out_of_memory: bool = False
    waits: bool = False
    deaf: frozenset[str] = frozenset()
    last: bytes = b""
    echo: bool = False
    at_start: Callable[[FakeContainer], object] = lambda _: None


@dataclass
class FakeContainer:
    """A container.

    Attributes
    ----------
    id, name : str
        By either it is asked for.
    asked : dict
        What it was made from, as the client sent it.
    files : dict
        Those that were read and written, by path.
    status : str
        ``created``, ``running`` or ``exited``.
    signals : list of str
        Those that it was sent.
    sizes : list of (int, int)
        Lines and columns that its terminal was given.
    """

    id: str
    name: str
    asked: dict[str, Any]
    files: dict[str, bytes]
    status: str = "created"
    code: int = 0
    out_of_memory: bool = False
    signals: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    attached: socket.socket | None = None
    typed: queue.Queue[bytes] = field(default_factory=queue.Queue)
    killed: queue.Queue[str] = field(default_factory=queue.Queue)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that it was given."""
        return dict(item.split("=", 1) for item in self.asked.get("Env") or [])

    def inspected(self) -> dict[str, Any]:
        """What the engine says of it."""
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Config": {"Tty": self.asked.get("Tty", False), "Labels": self.asked.get("Labels") or {}},
            "Image": self.asked["Image"],
            "State": {
                "Status": self.status,
                "Running": self.status == "running",
                "OOMKilled": self.out_of_memory,
                "ExitCode": self.code,
            },
        }

    def show(self, stream: int, data: bytes) -> None:
        """Print something."""
        if self.attached is not None and data:
            tty = self.asked.get("Tty")
            with contextlib.suppress(OSError):
                self.attached.sendall(data if tty else struct.pack(">BxxxL", stream, len(data)) + data)

    def live(self, play: Play) -> None:
        """Be what the play says, to the end."""
        play.at_start(self)
        self.show(1, play.out)
        self.show(2, play.err)
        self.code = play.code
        while play.echo and (data := self.typed.get()):
            self.show(1, data)
        while play.waits or not self.killed.empty():
            name = self.killed.get()
            if name not in play.deaf:
                self.code = 128 + signal.Signals[name]
                self.show(1, play.last if name != "SIGKILL" else b"")
                break
        self.out_of_memory, self.status = play.out_of_memory, "exited"
        if self.attached is not None:
            with contextlib.suppress(OSError):
                self.attached.shutdown(socket.SHUT_RDWR)
        self.ended.set()


@dataclass
class FakeEngine:
    """What it holds, how it behaves, and what it was asked.

    Attributes
    ----------
    socket : Path
        Where it listens.
    images : dict
        Name -> what it says of an image beside its name and identity.
    registry : dict
        Name -> digest: what registries give.
    answers : dict
        Beginning of a request, for example ``GET /_ping`` -> status and body that it gets.
    pushed : list of dict or bytes
        What it says during a push, after the first line.
    push_ends : bool
        Pushes end; else they break off.
    over : Event
        Set when the engine is no more; before, a push that is to hang waits for it.
    hangs : float
        Seconds for which pushes hang when all is said.
    leaves : bool
        It is gone when it has been greeted.
    security : list of str
        Its security options.
    play : Play
        What the commands of containers do.
    on_make, on_start : callable
        Called with a container that was made, or that is to start, before whoever asked for it hears of it.
    requests : list of str
        Method, path and query of all requests, without the version of the API.
    logins : list of dict
        Those that came with pushes.
    containers : dict
        Those that are here, by identity.
    made : list of FakeContainer
        Those that were ever made.
    """

    socket: Path
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    registry: dict[str, str] = field(default_factory=dict)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    pushed: list[dict[str, Any] | bytes] = field(default_factory=list)
    push_ends: bool = True
    over: threading.Event = field(default_factory=threading.Event)
    hangs: float = 0.0
    leaves: bool = False
    security: list[str] = field(default_factory=lambda: ["name=seccomp,profile=default"])
    play: Play = field(default_factory=Play)
    on_make: Callable[[FakeContainer], object] = lambda _: None
    on_start: Callable[[FakeContainer], object] = lambda _: None
    requests: list[str] = field(default_factory=list)
    logins: list[dict[str, Any]] = field(default_factory=list)
    containers: dict[str, FakeContainer] = field(default_factory=dict)
    made: list[FakeContainer] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        """What DOCKER_HOST says."""
        return f"unix://{self.socket}"

    def refuse(self, request: str, status: int, message: str) -> None:
        """Answer requests that begin so with an error."""
        self.answers[request] = status, json.dumps({"message": message})

    def find(self, name: str) -> FakeContainer | None:
        """Return a container that is here."""
        for container in self.containers.values():
            if name in (container.id, container.name):
                return container
        return None

    def make(self, asked: dict[str, Any], name: str, status: str = "created") -> FakeContainer:
        """Make a container."""
        files = {"/etc/passwd": PASSWD.encode(), "/etc/group": GROUP.encode()}
        container = FakeContainer(os.urandom(32).hex(), name, asked, files, status)
        self.made.append(container)
        self.containers[container.id] = container
        self.on_make(container)
        return container


@contextmanager
def serving(**behaviour: Any) -> Iterator[FakeEngine]:
    """Be a Docker engine at a socket."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:  # a short path: those of sockets have 107 bytes
        engine = FakeEngine(Path(folder) / "docker.sock", **behaviour)
        handler = type("Handler", (_Handler,), {"engine": engine})
        server = _Server(str(engine.socket), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield engine
        finally:
            engine.over.set()
            for container in engine.made:
                container.typed.put(b"")
                container.killed.put("SIGKILL")
                container.ended.set()
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 50


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: FakeEngine

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Answer, even one who has hung up."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().handle()

    def answer(self) -> None:
        """Answer one request."""
        engine = self.engine
        path, _, query = re.sub(r"^/v[0-9.]+(?=/)", "", self.path).partition("?")
        self.query = {name: values[0] for name, values in urllib.parse.parse_qs(query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(path)
        request = f"{self.command} {path}"
        with engine.lock:
            engine.requests.append(f"{request}?{query}" if query else request)
        for begin, (status, text) in engine.answers.items():
            if request.startswith(begin):
                self.send(status, text.encode())
                return
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, request):
                method(self, *match.groups())
                return
        self.fail(404, "page not found")

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def send(self, status: int, data: bytes = b"", kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def say(self, answer: object, status: int = 200) -> None:
        self.send(status, json.dumps(answer).encode() + b"\n")

    def fail(self, status: int, message: str) -> None:
        self.say({"message": message}, status)

    # ---- the engine

    def version(self) -> None:
        self.say({"Version": "20.10.24+dfsg1", "ApiVersion": "1.41", "MinAPIVersion": "1.12", "Os": "linux"})

    def ping(self) -> None:
        if self.engine.leaves:
            self.engine.socket.unlink()
        self.send(200, b"OK", "text/plain; charset=utf-8")

    def info(self) -> None:
        self.say({"OSType": "linux", "ServerVersion": "20.10.24+dfsg1", "SecurityOptions": self.engine.security})

    # ---- images

    def image(self, name: str) -> None:
        known = self.engine.images.get(name)
        if known is None:
            self.fail(404, f"no such image: {name}: No such image: {name}")
        else:
            identity = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
            self.say({"Id": identity, "RepoTags": [name], "RepoDigests": [], "Size": 1_000_000, **known})

    def distribution(self, name: str) -> None:
        digest = self.engine.registry.get(name)
        if digest is None:
            self.fail(500, NO_REGISTRY)
        else:
            self.say({"Descriptor": {"digest": digest, "size": 504}, "Platforms": []})

    def push(self, name: str) -> None:
        engine = self.engine
        engine.logins.append(json.loads(base64.urlsafe_b64decode(self.headers.get("X-Registry-Auth", "")) or b"{}"))
        first = {"status": f"The push refers to repository [{name}]"}
        events: list[dict[str, Any] | bytes] = [first, *engine.pushed]
        if f"{name}:{self.query['tag']}" not in engine.images:
            said = f"An image does not exist locally with the tag: {name}"
            events = [first, {"errorDetail": {"message": said}, "error": said}]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            data = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\r\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        engine.over.wait(engine.hangs)
        if engine.push_ends:
            self.wfile.write(b"0\r\n\r\n")

    # ---- containers

    def containers(self) -> None:
        filters = json.loads(self.query.get("filters", "{}"))
        self.say(
            [
                {"Id": container.id}
                for container in self.engine.containers.values()
                if container.status in filters.get("status", [container.status])
                and all(label in (container.asked.get("Labels") or {}) for label in filters.get("label", []))
            ]
        )

    def create(self) -> None:
        asked = json.loads(self.body)
        if asked["Image"] not in self.engine.images:
            self.fail(404, f"No such image: {asked['Image']}")
        else:
            self.say({"Id": self.engine.make(asked, self.query["name"]).id, "Warnings": []}, 201)

    def container(self, name: str) -> FakeContainer | None:
        found = self.engine.find(name)
        if found is None:
            self.fail(404, f"No such container: {name}")
        return found

    def inspect(self, name: str) -> None:
        if container := self.container(name):
            self.say(container.inspected())

    def read_files(self, name: str) -> None:
        if container := self.container(name):
            path = self.query["path"]
            if path not in container.files:
                self.fail(404, f"Could not find the file {path} in container {name}")
                return
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                entry = tarfile.TarInfo(path.rpartition("/")[2])
                entry.size = len(container.files[path])
                tar.addfile(entry, io.BytesIO(container.files[path]))
            stat = base64.b64encode(json.dumps({"name": entry.name, "size": entry.size}).encode()).decode()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-tar")
            self.send_header("X-Docker-Container-Path-Stat", stat)
            self.send_header("Content-Length", str(len(packed.getvalue())))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(packed.getvalue())

    def write_files(self, name: str) -> None:
        if container := self.container(name):
            with tarfile.open(fileobj=io.BytesIO(self.body)) as tar:
                for entry in tar:
                    path = f"{self.query['path'].rstrip('/')}/{entry.name}"
                    content = tar.extractfile(entry)
                    container.files[path] = content.read() if content else b""
            self.send(200)

    def attach(self, name: str) -> None:
        if not (container := self.container(name)):
            return
        self.wfile.write(
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
            b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        container.attached = self.connection
        while self.query.get("stdin") == "1" and (data := self.rfile.read1(65_536)):  # type: ignore[attr-defined]
            container.typed.put(data)
        container.typed.put(b"")
        container.ended.wait()
        self.close_connection = True

    def start(self, name: str) -> None:
        if container := self.container(name):
            self.engine.on_start(container)
            container.status = "running"
            threading.Thread(target=container.live, args=(self.engine.play,), daemon=True).start()
            self.send(204)

    def wait(self, name: str) -> None:
        if container := self.container(name):
            container.ended.wait()
            self.say({"Error": None, "StatusCode": container.code})

    def kill(self, name: str) -> None:
        if container := self.container(name):
            if container.status != "running":
                self.fail(409, f"Cannot kill container: {name}: Container {container.id} is not running")
                return
            which = self.query.get("signal", "SIGKILL")
            container.signals.append(which)
            container.killed.put(which)
            container.typed.put(b"")
            self.send(204)

    def resize(self, name: str) -> None:
        if container := self.container(name):
            container.sizes.append((int(self.query["h"]), int(self.query["w"])))
            self.send(200)

    def remove(self, name: str) -> None:
        if container := self.container(name):
            if container.status == "running":
                container.signals.append("SIGKILL")
                container.typed.put(b"")
                container.killed.put("SIGKILL")
            with self.engine.lock:
                self.engine.containers.pop(container.id, None)
            self.send(204)


_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /version", _Handler.version),
    (r"GET /_ping", _Handler.ping),
    (r"GET /info", _Handler.info),
    (r"GET /images/(.+)/json", _Handler.image),
    (r"GET /distribution/(.+)/json", _Handler.distribution),
    (r"POST /images/(.+)/push", _Handler.push),
    (r"GET /containers/json", _Handler.containers),
    (r"POST /containers/create", _Handler.create),
    (r"GET /containers/([^/]+)/json", _Handler.inspect),
    (r"GET /containers/([^/]+)/archive", _Handler.read_files),
    (r"PUT /containers/([^/]+)/archive", _Handler.write_files),
    (r"POST /containers/([^/]+)/attach", _Handler.attach),
    (r"POST /containers/([^/]+)/start", _Handler.start),
    (r"POST /containers/([^/]+)/wait", _Handler.wait),
    (r"POST /containers/([^/]+)/kill", _Handler.kill),
    (r"POST /containers/([^/]+)/resize", _Handler.resize),
    (r"DELETE /containers/([^/]+)", _Handler.remove),
]
