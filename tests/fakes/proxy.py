"""A proxy on this machine in front of a server, that counts requests, and fails, alters or holds them on demand."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

_PIECE = 1 << 16

#: Seconds that the server may be silent.
_PATIENCE = 60.0

_WRITES = ("PUT", "POST", "DELETE")

#: What a faulty request meets, with equal chance.
_FAULTS = ("slow down", "internal error", "lost")

_ERRORS = {
    "slow down": (503, "Slow Down", "SlowDown", "Please reduce your request rate."),
    "internal error": (500, "Internal Server Error", "InternalError", "We encountered an internal error."),
    "no server": (502, "Bad Gateway", "BadGateway", "The proxy cannot reach the server."),
}


@dataclass
class Request:
    """A request, as it went on.

    Attributes
    ----------
    method, path, query : str
        The path not quoted, the query as it was sent.
    headers : dict
        Names in lower case.
    bytes_in, bytes_out : int
        Of the bodies that the client sent and was sent, with the framing of chunks.
    status : int
        What the server or the proxy answered, whether or not the client got it; 0 before, and for what was dropped.
    fault : str
        What the proxy did: ``slow down``, ``internal error``, ``lost`` or ``cut`` (the answer), ``corrupted``,
        ``dropped`` (by ``at_write``), ``no server``.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    fault: str = ""

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.method in _WRITES


class Hold:
    """Requests that wait before they are forwarded.

    Attributes
    ----------
    reached : threading.Event
        Set when the first one waits.
    """

    def __init__(self, predicate: Callable[[Request], bool]) -> None:
        self._predicate = predicate
        self._released = threading.Event()
        self.reached = threading.Event()

    def release(self) -> None:
        """Let go on those that wait, and hold no more."""
        self._released.set()

    def _pass(self, request: Request) -> None:
        if not self._released.is_set() and self._predicate(request):
            self.reached.set()
            self._released.wait()


@dataclass
class _Plan:
    number: int
    action: Callable[[], object]
    when: Literal["before", "after"]


class FaultyProxy:
    """An HTTP proxy in front of an endpoint; to the client it is the server, and it changes nothing by itself.

    Attributes
    ----------
    endpoint : str
        Its address.
    failure_rate : float
        The part of the requests that fails: answered with 503 SlowDown, or with 500 InternalError, and not forwarded;
        or forwarded and not answered; or, of GET, answered with half a body.
    delay : float
        Seconds that each request takes on the way.
    requests : list of Request
        All since ``clear``, in the order in which they came.
    """

    def __init__(self, endpoint: str, *, failure_rate: float = 0.0, seed: int = 0, delay: float = 0.0) -> None:
        self.failure_rate = failure_rate
        self.delay = delay
        self.requests: list[Request] = []
        self._upstream = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
        self._random = random.Random(seed)  # noqa: S311 - the same faults each time
        self._lock = threading.Lock()
        self._plans: list[_Plan] = []
        self._corruptions: list[tuple[str, str]] = []
        self._holds: list[Hold] = []
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop all connections, and end."""
        for hold in self._holds:
            hold.release()
        self._server.shutdown()
        self._thread.join()
        self._server.drop_connections()
        self._server.server_close()  # waits for the threads

    def clear(self) -> None:
        """Forget the requests so far, and what ``at_write`` and ``corrupt_next`` have asked for and was not done."""
        with self._lock:
            self.requests.clear()
            self._plans.clear()
            self._corruptions.clear()

    def count(self, method: str | None = None) -> int:
        """Count the requests, or those of one method."""
        with self._lock:
            return sum(method in (None, r.method) for r in self.requests)

    def corrupt_next(self, method: str, path: str) -> None:
        """Flip a bit in the middle of a body: of the next such request that has one or, of GET, of the answer.

        Parameters
        ----------
        method : str
            GET for a download, else an upload.
        path : str
            Part of the path.
        """
        with self._lock:
            self._corruptions.append((method, path))

    def at_write(self, number: int, action: Callable[[], object], when: Literal["before", "after"] = "before") -> None:
        """Do something at the n-th request that writes, once.

        Parameters
        ----------
        number : int
            Counted from 1, since ``clear``, as they come; also those that fail.
        action : callable
            For example, to kill the client.
        when : str
            ``before``: the request does not reach the server, and the connection is dropped.  ``after``: it has taken
            effect, and is answered, if the client is still there, when the action is done.
        """
        with self._lock:
            self._plans.append(_Plan(number, action, when))

    def hold(self, predicate: Callable[[Request], bool]) -> Hold:
        """Hold back the requests of which this is true, until they are released."""
        hold = Hold(predicate)
        self._holds.append(hold)
        return hold

    def _arrived(self, request: Request) -> _Plan | None:
        with self._lock:
            self.requests.append(request)
            number = sum(r.is_write for r in self.requests)
            plan = next((p for p in self._plans if request.is_write and p.number == number), None)
            if plan:
                self._plans.remove(plan)
            return plan

    def _fault(self, method: str) -> str:
        with self._lock:
            if self._random.random() >= self.failure_rate:
                return ""
            return self._random.choice([*_FAULTS, "cut"] if method == "GET" else _FAULTS)

    def _corrupts(self, request: Request) -> bool:
        with self._lock:
            for wanted in self._corruptions:
                if wanted[0] == request.method and wanted[1] in request.path:
                    self._corruptions.remove(wanted)
                    return True
            return False


class _Server(ThreadingTCPServer):
    block_on_close = True
    request_queue_size = 128  # a client that uploads many files opens many connections at once

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        """Wake the threads that wait for the next request."""
        with self._guard:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class _Message:
    """Head and body of a request or an answer, as they are sent."""

    def __init__(self, source: BufferedIOBase) -> None:
        """Read the head; ``first`` is empty if there is none."""
        self._source = source
        self.first = source.readline().rstrip(b"\r\n")
        self.lines: list[bytes] = []
        while self.first and (line := source.readline().rstrip(b"\r\n")):
            self.lines.append(line)
        pairs = (line.decode("latin-1").partition(":") for line in self.lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    def head(self, without: tuple[str, ...], *more: bytes) -> bytes:
        kept = [line for line in self.lines if line.decode("latin-1").partition(":")[0].strip().lower() not in without]
        return b"\r\n".join([self.first, *kept, *more, b"", b""])

    def body(self, *, to_the_end: bool = False) -> Iterator[bytes]:
        """Read the body in pieces, with the framing of chunks; without any length it may go on to the end."""
        if self.chunked:
            yield from self._chunks()
        elif "content-length" in self.headers or to_the_end:
            left = int(self.headers.get("content-length", 1 << 62))
            while left and (piece := self._source.read1(min(left, _PIECE))):
                left -= len(piece)
                yield piece
            if left and not to_the_end:
                raise ConnectionError("cut off")

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._line()
            yield line
            size = int(line.partition(b";")[0], 16)
            if not size:
                break
            data = self._source.read(size + 2)
            if len(data) < size + 2:
                raise ConnectionError("cut off")
            yield data
        while True:  # the trailer
            line = self._line()
            yield line
            if line == b"\r\n":
                return

    def _line(self) -> bytes:
        line = self._source.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("cut off")
        return line


class _Handler(StreamRequestHandler):
    disable_nagle_algorithm = True  # else a head waits for the acknowledgement of what went before
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            while self._serve():
                pass

    def _serve(self) -> bool:
        """Serve a request; say whether the connection stays."""
        proxy = self.server.proxy
        message = _Message(self.rfile)
        if not message.first:
            return False
        method, target, _ = message.first.decode("latin-1").split(" ")
        parts = urlsplit(target)
        request = Request(method, unquote(parts.path), parts.query, message.headers)
        if message.headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join(message.body())
        request.bytes_in = len(body)
        plan = proxy._arrived(request)
        time.sleep(proxy.delay)
        for hold in list(proxy._holds):
            hold._pass(request)
        if plan and plan.when == "before":
            request.fault = "dropped"
            plan.action()
            return False
        request.fault = "" if plan else proxy._fault(method)
        stays = message.headers.get("connection", "").lower() != "close"
        if request.fault in _ERRORS:
            self._refuse(request)
            return stays
        if body and method != "GET" and proxy._corrupts(request):
            request.fault = request.fault or "corrupted"
            body = _flipped(body, message.chunked, "aws-chunked" in message.headers.get("content-encoding", ""))
        try:
            upstream = socket.create_connection(proxy._upstream, timeout=_PATIENCE)
        except OSError:
            request.fault = "no server"
            self._refuse(request)
            return stays
        with upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The body is here already, so that nobody has to wait for the word to send it.
            upstream.sendall(message.head(("expect", "connection"), b"Connection: close") + body)
            with upstream.makefile("rb") as source:
                answer = _Message(source)
                while answer.first.split(b" ")[1:2] == [b"100"]:
                    answer = _Message(source)
                if not answer.first:
                    return False
                return self._answer(request, answer, plan) and stays

    def _answer(self, request: Request, answer: _Message, plan: _Plan | None) -> bool:
        """Send the client what the server says; say whether the connection stays."""
        request.status = int(answer.first.split(b" ")[1])
        bare = request.method == "HEAD" or request.status in (204, 304)
        endless = not bare and not answer.chunked and "content-length" not in answer.headers
        pieces = iter(()) if bare else answer.body(to_the_end=endless)
        corrupts = (
            request.method == "GET"
            and request.status in (200, 206)
            and answer.headers.get("content-length") != "0"
            and self.server.proxy._corrupts(request)
        )
        if plan or corrupts or request.fault in ("lost", "cut"):
            whole = b"".join(pieces)
            if corrupts:
                request.fault = request.fault or "corrupted"
                whole = _flipped(whole, answer.chunked)
            if plan:
                plan.action()
            if request.fault == "lost" or (request.fault == "cut" and not whole):
                return False
            pieces = iter([whole[: len(whole) // 2] if request.fault == "cut" else whole])
        # The server closes the connection, because it was asked to; that is no reason to close the other one.
        more = [b"Connection: close"] if endless else []
        self.wfile.write(answer.head(("connection", "keep-alive"), *more))
        for piece in pieces:
            request.bytes_out += len(piece)
            self.wfile.write(piece)
        return request.fault != "cut" and not endless

    def _refuse(self, request: Request) -> None:
        request.status, reason, code, text = _ERRORS[request.fault]
        said = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message></Error>'
        head = f"HTTP/1.1 {request.status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(said)}"
        request.bytes_out = 0 if request.method == "HEAD" else len(said)
        self.wfile.write(f"{head}\r\n\r\n{said[: request.bytes_out]}".encode())


def _flipped(body: bytes, *framed: bool) -> bytes:
    """Flip a bit in the middle of a body, but not in the framing of its chunks, if it has one, or one in the other."""
    changed = bytearray(body)
    if not framed:
        changed[len(body) // 2] ^= 1
    elif not framed[0]:
        return _flipped(body, *framed[1:])
    else:
        spans = list(_chunks(body))
        data = _flipped(b"".join(body[begin:end] for begin, end in spans), *framed[1:])
        for begin, end in spans:
            changed[begin:end], data = data[: end - begin], data[end - begin :]
    return bytes(changed)


def _chunks(body: bytes) -> Iterator[tuple[int, int]]:
    """Find what is between the lines with the sizes of chunks."""
    end = 0
    while True:
        begin = body.index(b"\r\n", end) + 2
        size = int(body[end:begin].partition(b";")[0], 16)
        if not size:
            return
        yield begin, begin + size
        end = begin + size + 2
