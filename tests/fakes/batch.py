"""A large batch without runs: status records and messages, put into an emulator of S3 in a hurry."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from caldp import messages
from caldp.messages import STATES, Status

_CONNECTIONS = 4


def names(count: int) -> list[str]:
    """Return names of datasets, in order."""
    return [f"ldfd{number:05}" for number in range(count)]


def objects(status: Status) -> Iterator[tuple[str, bytes]]:
    """Return what a dataset has in messages/: keys and contents."""
    status = Status(**{**status.__dict__, "by": "host:1", "at": status.at or messages.now()})
    entry = {k: v for k, v in status.to_json().items() if k not in ("history", "dataset", "rank")}
    record = {**status.to_json(), "history": [entry]}
    yield messages.status_key(status.dataset), json.dumps(record, indent=1).encode()
    if folder := STATES[status.state][1]:
        yield f"messages/{folder}/{status.dataset}", status.message.encode()


def put_many(endpoint: str, where: str, contents: Mapping[str, bytes]) -> None:
    """Put objects below ``bucket/prefix``; boto3 would take several times as long."""
    todo: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
    for item in (*contents.items(), *[None] * _CONNECTIONS):
        todo.put(item)

    def put(_: int) -> None:
        server = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=60)
        with contextlib.closing(server):
            while item := todo.get():
                server.request("PUT", f"/{where}/{item[0]}", item[1])
                answer = server.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(put, range(_CONNECTIONS)))
