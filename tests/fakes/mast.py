"""A MAST on this machine: the parts of its interface that astroquery uses, and the ways in which it fails."""

from __future__ import annotations

import fnmatch
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_OBSERVATION_COLUMNS = {"obsid": "string", "obs_id": "string", "obs_collection": "string", "target_name": "string"}
_PRODUCT_COLUMNS = {
    "obsID": "string",
    "obs_id": "string",
    "dataURI": "string",
    "productFilename": "string",
    "productSubGroupDescription": "string",
    "size": "int",
    "dataRights": "string",
}


@dataclass
class FakeMast:
    """What it holds, how it behaves, and what it was asked.

    Attributes
    ----------
    observations : dict
        Observation -> names of its files.
    files : dict
        Name -> content, a path or bytes.
    sizes : dict
        Sizes to list that are not the true ones; None for "unknown".
    rights : str
        Of all data.
    unavailable : int
        So many requests are answered with ``status``.
    status, reason : int, str
        Of the answer to these.
    only : str
        Part of the address of the requests that misbehave.
    hang : float
        Seconds before the answers to these.
    garbage : list of bytes
        Sent instead of the next answers to questions.
    cut : list of int
        Bytes after which the next files break off, though announced whole.
    short : list of int
        Bytes that are sent of the next files, and announced.
    reset : int
        So many files end in a reset connection after half of them.
    ranges : bool
        Whether parts of files are sent.
    drip : float
        Seconds between pieces of a file.
    piece : int
        Bytes of a piece.
    chunked : bool
        Lengths of files are not announced.
    echo : bool
        The answer to a request repeats the token in every place that it can.
    modified : float
        When the files were last changed, in seconds.
    paths : dict
        ``dataURI`` -> path in the cloud.
    """

    observations: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Path | bytes] = field(default_factory=dict)
    sizes: dict[str, int | None] = field(default_factory=dict)
    rights: str = "PUBLIC"
    unavailable: int = 0
    status: int = 503
    reason: str = "because"
    only: str = ""
    hang: float = 0
    garbage: list[bytes] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    short: list[int] = field(default_factory=list)
    reset: int = 0
    ranges: bool = True
    drip: float = 0
    piece: int = 1 << 20
    chunked: bool = False
    echo: bool = False
    modified: float = 1e9
    paths: dict[str, str] = field(default_factory=dict)
    url: str = ""
    asked: list[str] = field(default_factory=list)
    downloads: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, observation: str, *paths: Path) -> None:
        """Hold these files, as products of an observation."""
        for path in paths:
            self.files[path.name] = path
            self.observations.setdefault(observation, []).append(path.name)

    def content(self, name: str) -> bytes:
        held = self.files[name]
        return held if isinstance(held, bytes) else held.read_bytes()

    def find(self, patterns: list[str]) -> list[dict[str, Any]]:
        """List observations."""
        names = [o for o in self.observations if any(fnmatch.fnmatch(o, p.replace("%", "*")) for p in patterns)]
        return [{"obsid": f"1{n}", "obs_id": n, "obs_collection": "HST", "target_name": "STAR"} for n in names]

    def products(self, obsids: list[str]) -> list[dict[str, Any]]:
        """List the files of observations."""
        return [
            {
                "obsID": obsid,
                "obs_id": obsid[1:],
                "dataURI": f"mast:HST/product/{name}",
                "productFilename": name,
                "productSubGroupDescription": name.removesuffix(".fits").partition("_")[2].upper(),
                "size": self.sizes.get(name, len(self.content(name)) if name in self.files else 2880),
                "dataRights": self.rights,
            }
            for obsid in obsids
            for name in self.observations[obsid[1:]]
        ]

    def take(self, name: str) -> int | None:
        """Return the next misbehaviour of a list, if there is one."""
        with self.lock:
            waiting: list[int] = getattr(self, name)
            return waiting.pop(0) if waiting else None


@contextmanager
def fake_mast() -> Iterator[FakeMast]:
    """Serve on a free port of this machine."""
    mast = FakeMast()
    handler = type("Handler", (_Handler,), {"mast": mast})
    server = _Server(("127.0.0.1", 0), handler)
    mast.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield mast
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Readers that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mast: FakeMast

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: standard error belongs to the tests."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self._misbehaves():
            return
        with self.mast.lock:
            garbage = self.mast.garbage.pop(0) if self.mast.garbage else None
        if garbage is not None:
            self._send(garbage)
        elif self.path.endswith("/columnsconfig"):
            self._send(_json({name: {"type": kind} for name, kind in _OBSERVATION_COLUMNS.items()}))
        elif self.path.endswith("/api/v0/invoke"):
            self._send(_json(self._answer(json.loads(unquote(body.partition("=")[2])))))
        else:
            self.send_error(404)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["service"] == "Mast.Caom.Filtered":
            wanted = next(f for f in request["params"]["filters"] if f["paramName"] == "obs_id")
            patterns = [*wanted["values"], *filter(None, [wanted.get("freeText")])]
            self.mast.asked += patterns
            columns, rows = _OBSERVATION_COLUMNS, self.mast.find(patterns)
        else:
            assert request["service"] == "Mast.Caom.Products"
            columns, rows = _PRODUCT_COLUMNS, self.mast.products(request["params"]["obsid"].split(","))
        fields = [{"name": name, "type": kind} for name, kind in columns.items()]
        paging = {"page": 1, "pagesFiltered": 1, "rows": len(rows)}
        return {"status": "COMPLETE", "msg": "", "fields": fields, "data": rows, "paging": paging}

    def do_GET(self) -> None:
        if self._misbehaves():
            return
        parts = urlsplit(self.path)
        uris = parse_qs(parts.query).get("uri", [])
        if parts.path.rstrip("/").endswith("/path_lookup"):
            self._send(_json({uri: {"path": self.mast.paths.get(uri)} for uri in uris}))
        elif parts.path.endswith("/api/v0.1/Download/file") and uris:
            self._file(uris[0].rpartition("/")[2])
        else:
            self.send_error(404)

    def _file(self, name: str) -> None:
        mast = self.mast
        asked = self.headers.get("Range", "")
        mast.downloads.append((name, asked))
        if name not in mast.files:
            self.send_error(404)
            return
        content = mast.content(name)
        cut, short = mast.take("cut"), mast.take("short")
        content = content if short is None else content[:short]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mast.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if mast.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Last-Modified", formatdate(mast.modified, usegmt=True))
        self.end_headers()
        end = len(content) if cut is None else cut
        with mast.lock:
            resets = mast.reset > 0
            mast.reset -= resets
        if resets:
            self._pieces(content[start : start + (end - start) // 2])
            # An end without delay throws away what is under way and says "reset".
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        self._pieces(content[start:end])
        if cut is not None:
            self.close_connection = True
        elif mast.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _pieces(self, content: bytes) -> None:
        view = memoryview(content)
        for begin in range(0, len(view), self.mast.piece):
            piece = view[begin : begin + self.mast.piece]
            if self.mast.chunked:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                self.wfile.write(piece)
            with self.mast.lock:
                self.mast.sent += len(piece)
            if self.mast.drip:
                time.sleep(self.mast.drip)

    def _misbehaves(self) -> bool:
        """Answer with an error, if it is time for one."""
        mast, token = self.mast, self.headers.get("Authorization", "")
        mast.tokens.add(token)
        if mast.only not in self.path:
            return False
        time.sleep(mast.hang)
        with mast.lock:
            if mast.unavailable <= 0:
                return False
            mast.unavailable -= 1
        said = f"{mast.reason} {token}" if mast.echo else mast.reason
        self._send(_json({"status": "ERROR", "msg": said}), mast.status, said)
        return True

    def _send(self, content: bytes, status: int = 200, reason: str | None = None) -> None:
        self.send_response(status, reason)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.mast.echo:
            self.send_header("X-You-Said", self.headers.get("Authorization", ""))
        self.end_headers()
        self.wfile.write(content)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
