"""A CRDS server on this machine: the services that a stock client uses to assign references, and how they fail."""

from __future__ import annotations

import hashlib
import html
import json
import re
import threading
import time
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from crds.client import proxy

#: Names of rules in rules; the name that an older version had is no part of a context.
_RULES = re.compile(r"^(?!.*(?:derived_from|'name')).*?'(hst_\w+\.[ir]map)'", re.MULTILINE)


@dataclass
class FakeCrds:
    """What it holds, how it behaves, and what it was asked.

    Attributes
    ----------
    cache : Path
        CRDS cache whose rules and references it serves.
    settings : dict
        What it says of itself instead of what the cache knows.
    down : bool
        Every request is answered with an error.
    hang : float
        Seconds before the answers to questions.
    cut : dict
        File -> so many of its next downloads break off in the middle; -1 for all.
    altered : dict
        File -> so many of its next downloads have one bit changed; -1 for all.
    silent : dict
        File -> so many of its next downloads stop in the middle without an end; -1 for all.
    absent : set of str
        Files that it knows, and does not deliver.
    drip : float
        Seconds that each reference takes.
    asked : list of str
        Methods that were called.
    delivered : list of str
        Files that were asked for.
    """

    cache: Path
    settings: dict[str, Any] = field(default_factory=dict)
    down: bool = False
    hang: float = 0
    cut: dict[str, int] = field(default_factory=dict)
    altered: dict[str, int] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    drip: float = 0
    url: str = ""
    asked: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        paths = [*(self.cache / "mappings" / "hst").iterdir(), *(self.cache / "references").rglob("*.fits")]
        self.files = {path.name: path for path in sorted(paths)}
        self.metadata = {
            name: {"size": str(p.stat().st_size), "sha1sum": hashlib.sha1(p.read_bytes()).hexdigest()}  # noqa: S324
            for name, p in self.files.items()
        }

    @property
    def references(self) -> list[str]:
        """The references that were asked for."""
        return [name for name in self.delivered if name.endswith(".fits")]

    def forget(self) -> None:
        """Forget what was asked for."""
        self.asked.clear()
        self.delivered.clear()

    def mischief(self, kind: dict[str, int], name: str) -> bool:
        """Whether it is time to spoil a file."""
        with self.lock:
            left = kind.get(name, 0)
            kind[name] = left - (left > 0)
            return left != 0

    # ---- services

    def get_server_info(self) -> dict[str, Any]:
        known = literal_eval((self.cache / "config" / "hst" / "server_config").read_text())
        base = {f"{kind}_url": {"hst": f"{self.url}/files"} for kind in ("mapping", "reference")}
        info = {
            **known,
            **base,
            "connected": True,
            "latest_context": known["operational_context"],
            "mappings": [name for name in self.files if name.endswith("map")],
            "download_metadata": proxy.crds_encode(self.metadata),
            **self.settings,
        }
        return {key: value for key, value in info.items() if value is not None}

    def get_default_context(self, _observatory: str, _state: str | None = None) -> str:
        return str(self.get_server_info()["operational_context"])

    def get_mapping_names(self, context: str) -> list[str]:
        if context not in self.files:
            raise ValueError(f"No such file: '{context}'")
        names, todo = [context], [context]
        while todo:
            for name in _RULES.findall(self.files[todo.pop()].read_text()):
                if name not in names:
                    names.append(name)
                    todo.append(name)
        return names

    def get_file_info_map(self, _observatory: str, files: list[str] | None, _fields: object) -> dict[str, Any]:
        return {name: self.metadata.get(name, "NOT FOUND") for name in files or self.metadata}


@contextmanager
def serving(cache: Path, **behaviour: Any) -> Iterator[FakeCrds]:
    """Serve what is in a cache."""
    crds = FakeCrds(cache, **behaviour)
    handler = type("Handler", (_Handler,), {"crds": crds})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # The client warns of an address without encryption, but for this name.
    crds.url = f"http://localhost:{server.server_port}/hst"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield crds
    finally:
        crds.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    crds: FakeCrds

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Answer, even one who has hung up."""
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_POST(self) -> None:
        crds = self.crds
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = question["method"]
        with crds.lock:
            crds.asked.append(method)
        crds.over.wait(crds.hang)
        if crds.down:
            self.send_error(503)
            return
        assert self.path.startswith(f"/hst/json/{method}/")
        answer: dict[str, Any] = {"jsonrpc": "1.0", "id": question["id"], "error": None, "result": None}
        try:
            answer["result"] = getattr(crds, method)(*question["params"])
        except (ValueError, AttributeError) as error:
            message = html.escape(f"OtherError: {error}")
            answer["error"] = {"name": "OtherError", "message": message, "code": 500, "data": None}
        self._send(json.dumps(answer).encode())

    def do_GET(self) -> None:
        crds, name = self.crds, self.path.rpartition("/")[2]
        with crds.lock:
            crds.delivered.append(name)
        if crds.down or name in crds.absent or name not in crds.files:
            self.send_error(503 if crds.down else 404)
            return
        content = crds.files[name].read_bytes()
        if name.endswith(".fits"):
            time.sleep(crds.drip)
        if crds.mischief(crds.altered, name):
            content = content[:-1] + bytes([content[-1] ^ 1])
        if crds.mischief(crds.cut, name):
            self._send(content, len(content) // 2)
        elif crds.mischief(crds.silent, name):
            self._send(content, len(content) // 2)
            self.wfile.flush()
            crds.over.wait()
        else:
            self._send(content)

    def _send(self, content: bytes, end: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:end])
        self.close_connection = True
