"""What has happened, in one order: a CRDS is the sum of its events.

Every change of what others see (a delivery confirmed, a context set, a file marked bad, names reserved) is one event:
one record, written with the next number, only if nobody else has written it.  So two who change at once cannot both be
right, whoever is killed has either done it or not, and the log of activity is the truth itself.  What the sum of all
events is, is kept now and then as a snapshot, so that nobody reads them all.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from caldp.crdserver.records import Record, Records
from caldp.crdserver.state import State
from caldp.errors import BusyError, InputError, ReferencesError
from caldp.store import ConflictError, Create, Store

#: Events after which a snapshot is taken.
_SNAPSHOT = 100

#: Writers that one may lose against.
_TRIES = 100


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes
    ----------
    seq : int
        Its number, from 1.
    at : str
        When, in UTC.
    who : str
        Name of a user, or of what runs by itself.
    kind : str
        Of what sort: see ``state``.
    why : str
        What people are told of it.
    data : dict
        What changes.
    """

    seq: int
    at: str
    who: str
    kind: str
    why: str
    data: dict[str, Any]


def now() -> str:
    """Return the present in UTC, as it is written everywhere: ``2026-11-22T10:00:00.000Z``."""
    return instant(datetime.now(UTC).timestamp())


def instant(seconds: float) -> str:
    """Return seconds of the epoch as they are written everywhere."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Journal:
    """The events of one observatory.

    Parameters
    ----------
    records : Records
        Where they are.
    store : Store
        Where snapshots are, and what is too long for an event.
    observatory : str
        ``hst`` or ``jwst``.
    """

    def __init__(self, records: Records, store: Store, observatory: str) -> None:
        self.records = records
        self.store = store
        self.observatory = observatory
        self._space = f"{observatory}:journal"
        self._state: State | None = None
        self._lock = threading.RLock()

    # ---- reading

    def state(self) -> State:
        """Return the sum of all events, up to this moment.

        Returns
        -------
        State
            Never changed afterwards: the next call may return another.
        """
        with self._lock:
            state = self._state or self._from_snapshot()
            for record in self.records.scan(self._space, after=_key(state.seq)):
                state = state.after(_event(record), self.read)
            self._state = state
            return state

    def events(self, before: int = 0) -> Iterator[Event]:
        """Read events, newest first.

        Parameters
        ----------
        before : int
            Only those before this number; 0 means all.
        """
        for record in self.records.scan(self._space, newest=True):
            if not before or int(record.key) < before:
                yield _event(record)

    def read(self, key: str) -> Any:  # noqa: ANN401 - as it was written
        """Read what was too long for an event."""
        blob = self.store.get(key)
        if blob is None:
            raise ReferencesError(f"{self.store.url(key)} is not there", remedy="restore it from a backup of the store")
        return json.loads(gzip.decompress(blob.data))

    # ---- writing

    def append(self, kind: str, who: str, why: str, decide: Callable[[State], dict[str, Any] | None]) -> Event | None:
        """Add an event.

        Parameters
        ----------
        kind, who, why : str
            As ``Event`` has them.
        decide : callable
            Given the state that the event is for; returns its data, or None to add nothing, or raises.  It is asked
            again when somebody else was faster.

        Returns
        -------
        Event or None

        Raises
        ------
        InputError
            If that is more than a record takes.
        BusyError
            If others are faster all the time.
        """
        for _ in range(_TRIES):
            state = self.state()
            data = decide(state)
            if data is None:
                return None
            event = Event(state.seq + 1, now(), who, kind, why, data)
            value = {k: v for k, v in asdict(event).items() if k != "seq"}
            try:
                self.records.put(self._space, _key(event.seq), value, expect=0)
            except ConflictError:
                continue
            except ValueError as error:
                raise InputError(f"{kind}: {error}", remedy="say less at a time") from error
            if event.seq % _SNAPSHOT == 0 or kind == "imported":
                self.snapshot()
            return event
        raise BusyError(f"{self.records.uri}: others write all the time", remedy="try it again")

    def keep(self, key: str, value: Any) -> str:  # noqa: ANN401 - whatever fits JSON
        """Keep what is too long for an event, under a key that nobody has used, and return the key."""
        self.store.put(key, _packed(value), Create())
        return key

    def snapshot(self) -> None:
        """Keep the sum of all events, so that nobody need read them all."""
        state = self.state()
        key = f"server/{self.observatory}/snapshots/{_key(state.seq)}.json.gz"
        try:
            self.store.put(key, _packed(state.to_json()), Create())
        except ConflictError:
            return
        space = f"{self.observatory}:snapshot"
        old = self.records.get(space, "newest")
        if old is None or old.value["seq"] < state.seq:
            try:
                self.records.put(space, "newest", {"seq": state.seq, "key": key}, expect=old.version if old else 0)
            except ConflictError:  # somebody else has just taken one, which will do as well
                return

    def _from_snapshot(self) -> State:
        found = self.records.get(f"{self.observatory}:snapshot", "newest")
        if found is None:
            return State(self.observatory)
        return State.from_json(self.read(found.value["key"]))


def _key(seq: int) -> str:
    return f"{seq:010d}"


def _event(record: Record) -> Event:
    return Event(int(record.key), **record.value)


def _packed(value: Any) -> bytes:  # noqa: ANN401 - whatever fits JSON
    return gzip.compress(json.dumps(value, separators=(",", ":")).encode(), mtime=0)
