"""Small facts that many writers change at once: who is signed in, what happened, who has reserved which name.

A record has a space, a key and a value that fits JSON; every write makes a new version of it, and a write may ask for
the version that it was made for.  Locally they are in SQLite, in AWS in DynamoDB (``dynamo``).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from caldp.errors import ReferencesError, ReferencesUnavailableError, UsageError
from caldp.store import ConflictError

#: Bytes of a value, as JSON: what an item of DynamoDB takes, and some room for its keys.
LARGEST = 390_000

#: How long a writer waits for another process, in seconds.
_BUSY = 30.0

#: Records that are read at a time.
_PAGE = 500

#: Bytes of a space and of a key: what an index of DynamoDB takes.
_LONGEST_SPACE, _LONGEST_KEY = 2048, 1024

#: A version never comes twice, though its record was deleted: what is made anew begins above all that were.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS records (space TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, "
    "value TEXT NOT NULL, PRIMARY KEY (space, key)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS deleted (one INTEGER PRIMARY KEY CHECK (one = 1), highest INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO deleted VALUES (1, 0)",
)


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes
    ----------
    key : str
        Its key within its space.
    value : dict
        What it says.
    version : int
        Grows by one with every write, from 1; no version comes a second time, though its record was deleted meanwhile.
    """

    key: str
    value: dict[str, Any]
    version: int


class Records(Protocol):
    """A place for records.

    Every method raises ReferencesUnavailableError when the place does not answer, ReferencesError when it will not, and
    ValueError for a space or a key that is empty or too long.
    """

    @property
    def uri(self) -> str:
        """What a command line would call it."""

    def get(self, space: str, key: str) -> Record | None:
        """Read the newest version of a record, or None when there is none."""

    def put(self, space: str, key: str, value: dict[str, Any], expect: int | None = None) -> int:
        """Write a record and return its version.

        ``expect`` is the version that must be there, 0 for none at all; None writes whatever is there.  ConflictError
        when that does not hold; ValueError if the value is too large.
        """

    def delete(self, space: str, key: str, expect: int | None = None) -> None:
        """Remove a record; none there is no error, unless ``expect`` says that there must be one."""

    def scan(self, space: str, after: str = "", prefix: str = "", newest: bool = False) -> Iterator[Record]:
        """Read the records of a space in order of their keys: those after a key, or that begin so; or backwards."""

    def close(self) -> None:
        """Let go of the place."""


def encode(value: dict[str, Any]) -> str:
    """Return a value as text; ValueError if it is too large."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > LARGEST:
        raise ValueError(f"a record of {len(text)} characters is too large")
    return text


def checked(space: str, key: str) -> None:
    """Raise ValueError if a space or a key cannot be one: it is empty or too long."""
    for text, longest in ((space, _LONGEST_SPACE), (key, _LONGEST_KEY)):
        if not 0 < len(text.encode()) <= longest:
            raise ValueError(f"{text[:60]!r} names no record: from 1 to {longest} bytes")


class SqliteRecords:
    """Records in a file of SQLite, for the processes and threads of one machine.

    Parameters
    ----------
    path : Path
        The file; it is made when it is not there.

    Raises
    ------
    ReferencesError
        If it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Connections that nobody uses at the moment: as many as were ever used at once.
        self._idle: list[sqlite3.Connection] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReferencesError(f"{self.uri} cannot be made ({error})", remedy="choose another folder") from error
        with self._connection() as connection:
            for statement in _TABLES:
                connection.execute(statement)

    @property
    def uri(self) -> str:
        return f"sqlite:{self.path}"

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for one transaction."""
        connection: sqlite3.Connection | None = None
        try:
            with suppress(IndexError):
                connection = self._idle.pop()
            connection = connection or _connect(self.path)
            with connection:
                yield connection
            self._idle.append(connection)
            connection = None
        except sqlite3.Error as error:
            what = f"{self.uri}: {error}"
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ReferencesUnavailableError(what, remedy="end whoever holds it, or try it again") from error
            raise ReferencesError(what, remedy="check that disk and that file, or restore a backup of it") from error
        finally:
            if connection is not None:
                connection.close()

    def get(self, space: str, key: str) -> Record | None:
        checked(space, key)
        with self._connection() as connection:
            found = connection.execute("SELECT version, value FROM records WHERE space = ? AND key = ?", (space, key))
            row = found.fetchone()
        return None if row is None else Record(key, json.loads(row[1]), row[0])

    def put(self, space: str, key: str, value: dict[str, Any], expect: int | None = None) -> int:
        checked(space, key)
        text = encode(value)
        first = "(SELECT highest + 1 FROM deleted)"
        with self._connection() as connection:
            if expect == 0:
                statement = f"INSERT OR IGNORE INTO records VALUES (?, ?, {first}, ?) RETURNING version"  # noqa: S608 - ours
                row = connection.execute(statement, (space, key, text)).fetchone()
            elif expect is not None:
                row = connection.execute(
                    "UPDATE records SET version = version + 1, value = ? WHERE space = ? AND key = ? AND version = ? "
                    "RETURNING version",
                    (text, space, key, expect),
                ).fetchone()
            else:
                row = connection.execute(
                    f"INSERT INTO records VALUES (?, ?, {first}, ?) ON CONFLICT (space, key) "  # noqa: S608 - ours
                    "DO UPDATE SET version = version + 1, value = excluded.value RETURNING version",
                    (space, key, text),
                ).fetchone()
        if row is None:
            raise ConflictError(f"{space}/{key}")
        return int(row[0])

    def delete(self, space: str, key: str, expect: int | None = None) -> None:
        checked(space, key)
        with self._connection() as connection:
            row = connection.execute(
                "DELETE FROM records WHERE space = ? AND key = ? AND (? IS NULL OR version = ?) RETURNING version",
                (space, key, expect, expect),
            ).fetchone()
            if row is not None:
                connection.execute("UPDATE deleted SET highest = max(highest, ?)", row)
        if expect is not None and row is None:
            raise ConflictError(f"{space}/{key}")

    def scan(self, space: str, after: str = "", prefix: str = "", newest: bool = False) -> Iterator[Record]:
        # Keys are compared as bytes, and a key that is damaged by NUL for the functions of SQLite is not for Python.
        order, bound, start = (
            ("DESC", "<", None) if newest else ("ASC", ">=" if prefix > after else ">", max(after, prefix))
        )
        while True:
            condition = "" if start is None else f"AND key {bound} ?"
            statement = (
                f"SELECT key, version, value FROM records WHERE space = ? {condition} "  # noqa: S608 - all ours
                f"ORDER BY key {order} LIMIT {_PAGE}"
            )
            with self._connection() as connection:
                rows = connection.execute(statement, (space,) if start is None else (space, start)).fetchall()
            for key, version, value in rows:
                if key <= after or (not newest and not key.startswith(prefix)):
                    return
                if key.startswith(prefix):
                    yield Record(key, json.loads(value), version)
                elif key < prefix:
                    return
            if len(rows) < _PAGE:
                return
            start, bound = rows[-1][0], "<" if newest else ">"

    def close(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY, isolation_level="IMMEDIATE", check_same_thread=False)
    # To change how a file is written SQLite does not wait for others who do so at the same time.
    give_up = time.monotonic() + _BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            return connection
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                connection.close()
                raise
            time.sleep(0.02)


def open_records(uri: str) -> Records:
    """Open a place for records.

    Parameters
    ----------
    uri : str
        ``sqlite:<file>`` or ``dynamodb:<table>``.

    Returns
    -------
    Records

    Raises
    ------
    UsageError
        For anything else.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "sqlite" and rest:
        return SqliteRecords(Path(rest).absolute())
    if scheme == "dynamodb" and rest:
        from caldp.crdserver.dynamo import DynamoRecords

        return DynamoRecords(rest)
    raise UsageError(f"{uri!r} is no place for records", remedy="write sqlite:<file> or dynamodb:<table>")
