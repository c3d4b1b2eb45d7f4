"""An S3 on this machine that forgets what it is sent: benchmarks of uploads measure the client, and nothing else.

It keeps names, sizes and objects that are as small as a status.  It checks neither signatures nor conditions nor
checksums, and is no place for tests.  It can be as far away as S3 is: every answer may take a while to come, and every
connection have its limit.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from io import BufferedReader
from multiprocessing.connection import Connection
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PIECE = 1 << 18

#: Seconds that are worth sleeping; to sleep after each record of TLS would be the bottleneck.
_NAP = 0.005

#: Bytes of the largest objects that can be read again.
_SMALL = 1 << 16

_XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


@dataclass(frozen=True)
class _Object:
    size: int
    etag: str
    content: bytes | None


class Sink:
    """The server, in a process of its own; a context manager.

    Parameters
    ----------
    delay : float
        Seconds that every request waits for its answer, and every body for the word to send it.
    rate : float
        Bytes per second that one connection takes; 0 for as many as there are.
    certificate : Path, optional
        A PEM file with its certificate and key: it then talks https, as S3 does.

    Attributes
    ----------
    endpoint : str
        Its address; any bucket is there.
    """

    def __init__(self, delay: float = 0.0, rate: float = 0.0, certificate: Path | None = None) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, delay, rate, certificate), daemon=True
        )
        self._process.start()
        self.endpoint = f"http{'s' if certificate else ''}://127.0.0.1:{ours.recv()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, delay: float, rate: float, certificate: Path | None) -> None:
    with _Server(delay, rate, certificate) as server:
        pipe.send(server.server_address[1])
        server.serve_forever()


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, delay: float, rate: float, certificate: Path | None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if self.context and certificate:
            self.context.load_cert_chain(certificate)
        self.delay = delay
        self.rate = rate
        self.objects: dict[str, _Object] = {}
        self.parts: dict[str, dict[int, int]] = {}
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients come and go."""


class _Handler(StreamRequestHandler):
    disable_nagle_algorithm = True
    rfile: BufferedReader
    server: _Server

    def setup(self) -> None:
        """Shake hands, in the thread of the connection."""
        if self.server.context:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client has gone
            while line := self.rfile.readline().rstrip():
                self._answer(*self._request(line.decode("latin-1")))

    def _request(self, first: str) -> tuple[int, dict[str, str], bytes]:
        method, target, _ = first.split(" ")
        headers = {}
        while line := self.rfile.readline().rstrip().decode("latin-1"):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            time.sleep(self.server.delay)
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            size, content = int(headers["x-amz-decoded-content-length"]), self._chunks()
        else:
            size = int(headers.get("content-length", 0))
            content = self._body(size, time.monotonic())
        time.sleep(self.server.delay)
        parts = urlsplit(target)
        with self.server.lock:
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            return self._do(method, unquote(parts.path).lstrip("/"), query, size, content)

    def _body(self, size: int, begun: float, before: int = 0) -> bytes | None:
        """Take bytes off the connection; return them if they are few."""
        if size <= _SMALL:
            return self.rfile.read(size)
        left, buffer = size, bytearray(_PIECE)
        while left:
            # What came with the head is in the buffer of rfile; the rest goes past it.
            taken = self.rfile.readinto1(memoryview(buffer)[: min(left, _PIECE)])
            if not taken:
                raise ConnectionError("cut off")
            left -= taken
            if self.server.rate:
                early = (before + size - left) / self.server.rate - (time.monotonic() - begun)
                if early > _NAP:
                    time.sleep(early)
        return None

    def _chunks(self) -> bytes | None:
        """Take a body off that comes in chunks of chunks, as it does over https; return it if it is one small chunk."""
        begun, total, content = time.monotonic(), 0, b""
        while size := int(self.rfile.readline(), 16):
            part = self._body(size, begun, total)
            total += size
            content = content + part if part is not None and total <= _SMALL else b""
            self.rfile.readline()
        self.rfile.readline()
        if not content:
            return None
        inner = int(content.partition(b"\r\n")[0], 16)
        return content.partition(b"\r\n")[2][:inner]

    def _do(
        self, method: str, path: str, query: dict[str, str], size: int, content: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        server = self.server
        etag = f'"{next(server.numbers):032x}"'
        if method == "PUT" and "uploadId" in query:
            server.parts[query["uploadId"]][int(query["partNumber"])] = size
        elif method == "PUT":
            server.objects[path] = _Object(size, etag, content)
        elif method == "POST" and "uploads" in query:
            server.parts[etag.strip('"')] = {}
            xml = f"<UploadId>{etag[1:-1]}</UploadId>"
            return 200, {}, f"<InitiateMultipartUploadResult {_XMLNS}>{xml}</InitiateMultipartUploadResult>".encode()
        elif method == "POST" and "uploadId" in query:
            parts = server.parts.pop(query["uploadId"])
            server.objects[path] = _Object(sum(parts.values()), etag, None)
            xml = f"<ETag>{escape(etag)}</ETag>"
            return 200, {}, f"<CompleteMultipartUploadResult {_XMLNS}>{xml}</CompleteMultipartUploadResult>".encode()
        elif method == "DELETE":
            server.objects.pop(path, None)
            return 204, {}, b""
        elif method == "POST":  # DeleteObjects; nobody looks whether they are gone
            return 200, {}, f"<DeleteResult {_XMLNS}/>".encode()
        elif "list-type" in query:
            bucket = path.rstrip("/")
            return 200, {}, self._listing(f"{bucket}/", query.get("prefix", ""))
        else:
            there = server.objects.get(path)
            if there is None or there.content is None and method == "GET":
                return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
            return 200, {"ETag": there.etag}, there.content or b""
        return 200, {"ETag": etag}, b""

    def _listing(self, bucket: str, prefix: str) -> bytes:
        found = sorted((k, v) for k, v in self.server.objects.items() if k.startswith(f"{bucket}{prefix}"))
        rows = (
            f"<Contents><Key>{escape(key.removeprefix(bucket))}</Key><Size>{there.size}</Size>"
            f"<ETag>{escape(there.etag)}</ETag></Contents>"
            for key, there in found
        )
        xml = "<IsTruncated>false</IsTruncated>" + "".join(rows)
        return f"<ListBucketResult {_XMLNS}>{xml}</ListBucketResult>".encode()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        said = {**headers, "Date": formatdate(usegmt=True), "Content-Length": str(len(content))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        self.wfile.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}\r\n".encode() + content)
