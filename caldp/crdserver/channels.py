"""Channels: what a job says while it works, for the person who waits for it."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from caldp.crdserver.records import Records
from caldp.errors import CaldpError, InputError
from caldp.store import ConflictError

#: Messages of one record.
_MOST = 100

#: Characters of one message.
_LONGEST = 3000

#: Seconds between two records of messages that can wait.
_PAUSE = 0.5


class AbortedError(CaldpError):
    """Whoever listens wants it to end."""


class Channels:
    """The channels of one observatory.

    Parameters
    ----------
    records : Records
        Where they are.
    observatory : str
        ``hst`` or ``jwst``.
    """

    def __init__(self, records: Records, observatory: str) -> None:
        self._records = records
        self._space = f"{observatory}:channels"

    def open(self, user: str) -> str:
        """Open a channel for a user, and return its key: whoever has it may listen."""
        key = secrets.token_hex(16)
        self._records.put(self._space, key, {"user": user, "opened": time.time(), "abort": False}, expect=0)
        return key

    def pull(self, key: str, since: int = 0) -> list[dict[str, Any]]:
        """Return the messages after one, oldest first.

        Parameters
        ----------
        key : str
            Of the channel.
        since : int
            Number of the last message that is known; 0 for all.

        Returns
        -------
        list of dict
            ``id`` (from 1), ``type``, ``time`` in seconds, ``data``.

        Raises
        ------
        InputError
            If there is no such channel; in words that the client takes for "not yet".
        """
        self._known(key)
        found = []
        for record in self._records.scan(_space(self._space, key), after=_key(max(0, since - _MOST))):
            first = int(record.key)
            for number, message in enumerate(record.value["messages"], first):
                if number > since:
                    found.append({"id": number, **message})
        return found

    def abort(self, key: str) -> None:
        """Ask whoever writes to a channel to end."""
        for _ in range(10):
            record = self._known(key)
            try:
                self._records.put(self._space, key, {**record.value, "abort": True}, expect=record.version)
            except ConflictError:
                continue
            return

    def aborted(self, key: str) -> bool:
        """Whether whoever writes should end."""
        return bool(self._known(key).value["abort"])

    def writer(self, key: str) -> Writer:
        """Return what writes to a channel; there may be one at a time."""
        return Writer(self, self._records, _space(self._space, key), key)

    def _known(self, key: str) -> Any:  # noqa: ANN401 - a record
        record = self._records.get(self._space, key[:128]) if key else None
        if record is None:
            raise InputError(f"Channel {key[:128]!r} not found")
        return record


class Writer:
    """Writes to one channel, a few messages at a time."""

    def __init__(self, channels: Channels, records: Records, space: str, key: str) -> None:
        self._channels, self._records, self._space, self._key = channels, records, space, key
        self._next = self._after_last()
        self._waiting: list[dict[str, Any]] = []
        self._written = 0.0
        self._lock = threading.Lock()

    def say(self, kind: str, text: str) -> None:
        """Write a line of ``info``, ``warning``, ``error`` or ``verbose``; AbortedError if nobody wants more."""
        # The client knows no ``info``: it would warn of each.
        kind = "log_message" if kind == "info" else kind
        with self._lock:
            for start in range(0, max(1, len(text)), _LONGEST):
                self._waiting.append({"type": kind, "time": time.time(), "data": text[start : start + _LONGEST]})
            if len(self._waiting) >= _MOST or time.monotonic() - self._written > _PAUSE:
                self._write()
                if self._channels.aborted(self._key):
                    raise AbortedError("External agent requested calling process termination.")

    def end(self, kind: str, data: dict[str, Any]) -> None:
        """Write the last message: ``done``, ``fail`` or ``cancel``."""
        with self._lock:
            self._waiting.append({"type": kind, "time": time.time(), "data": data})
            self._write()

    def _after_last(self) -> int:
        last = next(iter(self._records.scan(self._space, newest=True)), None)
        return int(last.key) + len(last.value["messages"]) if last else 1

    def _write(self) -> None:
        while self._waiting:
            some = self._waiting[:_MOST]
            try:
                self._records.put(self._space, _key(self._next), {"messages": some}, expect=0)
            except ConflictError:  # of one who is late, and does not know it yet
                self._next = self._after_last()
                continue
            self._waiting = self._waiting[_MOST:]
            self._next += len(some)
        self._written = time.monotonic()


def _space(space: str, key: str) -> str:
    return f"{space}:{key}"


def _key(number: int) -> str:
    return f"{number:010d}"
