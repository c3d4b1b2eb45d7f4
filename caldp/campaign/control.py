"""What a batch keeps of its campaign, in ``control/``: what was asked for, what was planned, who did what."""

from __future__ import annotations

import getpass
import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from caldp import messages
from caldp.batch import in_threads
from caldp.campaign.shards import Line, Shard, jsonl, parse_jsonl
from caldp.errors import InputError, OutputError, UsageError
from caldp.messages import STATES, Status
from caldp.store import ConflictError, Create, Overwrite, Store, Update, open_store

REQUEST, PLAN, REJECTED = "control/request.json", "control/plan.json", "control/rejected.jsonl"
OBSERVATIONS, PAUSE, AUDIT = "control/observations.jsonl", "control/pause", "control/audit.jsonl"
RELEASED, CLOSED, FOLDED = "control/released.json", "control/closed.json", "control/folded.json"
MANIFESTS, CLAIMS, LOGS, RESULTS = "control/manifests", "control/shards", "control/logs", "control/results"
SUBMITTED, UNPAUSED, SEEN = "control/submitted", "control/unpaused.json", "control/seen.json"

log = logging.getLogger("caldp")

#: What a pause says that those have caused which went first.
WENT_FIRST = "datasets that went first failed for good"


def manifest_key(shard: str) -> str:
    """Key of the list of datasets of a shard."""
    return f"{MANIFESTS}/{shard}.jsonl"


def claim_key(shard: str) -> str:
    """Key of what says that a shard is being submitted, or was."""
    return f"{CLAIMS}/{shard}.json"


def result_key(dataset: str, attempt: int, retry: int = 1) -> str:
    """Key of what a job said of itself at its end."""
    return f"{RESULTS}/{dataset}/{attempt}.{retry}.json"


def log_key(dataset: str, attempt: int) -> str:
    """Key of what a job of the local runner printed."""
    return f"{LOGS}/{dataset}/{attempt}.log"


def stream_key(dataset: str, attempt: int) -> str:
    """Key of what the stream of CloudWatch Logs is called that a job on AWS logged to which failed."""
    return f"{LOGS}/{dataset}/{attempt}.stream"


def who() -> str:
    """Say who is at the keyboard: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have them
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def read_manifest(uri: str) -> list[Line]:
    """Read the datasets of a shard, from where a job was told.

    Parameters
    ----------
    uri : str
        ``s3://bucket/key`` or a path.

    Returns
    -------
    list of Line

    Raises
    ------
    InputError
        If it is missing, or damaged.
    """
    place, _, name = (uri if ":" in uri else f"file:{uri}").rpartition("/")
    return _lines(open_store(place), name)


def _lines(store: Store, key: str) -> list[Line]:
    blob = store.get(key)
    if blob is None:
        raise InputError(f"{store.url(key)} is missing", remedy="submit the list again")
    try:
        return parse_jsonl(blob.data)
    except ValueError as error:
        raise InputError(f"{store.url(key)} is no manifest ({error})", remedy="submit the list again") from error


class Control:
    """The ``control/`` of one batch.

    Parameters
    ----------
    store : Store
        The batch.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def name(self) -> str:
        """What the batch is called: the last part of where it is."""
        return self.store.uri.rstrip("/").rpartition("/")[2]

    # ---- what was asked for, and what was planned

    def claim(self, request: Mapping[str, Any], same: tuple[str, ...]) -> None:
        """Make this batch the one of a request.

        Parameters
        ----------
        request : mapping
            What was asked for.
        same : tuple of str
            The fields that two requests must have in common to be the same one.

        Raises
        ------
        UsageError
            If the batch is another request's.
        """
        try:
            self.store.put(REQUEST, _pretty(request), Create())
        except ConflictError:
            self.check_same(self.request(), request, same)

    def check_same(self, first: Mapping[str, Any], request: Mapping[str, Any], same: tuple[str, ...]) -> None:
        """Raise UsageError if the request that the batch has is another one."""
        differs = [name for name in same if first.get(name) != json.loads(json.dumps(request.get(name)))]
        if differs:
            raise UsageError(
                f"{self.store.url()} is the campaign of another request ({', '.join(differs)}: not the same)",
                remedy="give another output, or the list and the options of that campaign, which goes on then",
            )

    def known(self) -> dict[str, Any] | None:
        """Return what was asked for, or None when there is no campaign."""
        return self.read(REQUEST)

    def planned(self) -> dict[str, Any] | None:
        """Return what was planned, or None when there is no plan, or it was not written down to its end."""
        return self.read(PLAN)

    def request(self) -> dict[str, Any]:
        """Return what was asked for; UsageError when there is no campaign."""
        return self._record(REQUEST)

    def plan(self) -> dict[str, Any]:
        """Return what was planned; UsageError when there is no campaign, or it was never planned to its end."""
        return self._record(PLAN)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Put down what was planned: from here on the campaign exists."""
        self.store.put(PLAN, _pretty(plan), Overwrite())

    def put_once(self, key: str, data: bytes) -> bool:
        """Put something down that stays as it is from then on; say whether it was not there yet."""
        try:
            self.store.put(key, data, Create())
        except ConflictError:
            return False
        return True

    def write_lines(self, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Put down a list of records, one a line."""
        self.store.put(key, "".join(json.dumps(record) + "\n" for record in records).encode(), Overwrite())

    def write_manifest(self, shard: Shard) -> None:
        """Put down the datasets of a shard."""
        self.store.put(manifest_key(shard.name), jsonl(shard.lines), Overwrite())

    def shards(self) -> list[str]:
        """Return the names of all shards."""
        return sorted(name.removesuffix(".jsonl") for name in self.store.names(MANIFESTS) if name.endswith(".jsonl"))

    def lines(self, shard: str) -> list[Line]:
        """Return the datasets of a shard; InputError when its manifest is not there, or damaged."""
        return _lines(self.store, manifest_key(shard))

    # ---- how it goes

    def statuses(self, names: Iterable[str]) -> list[Status | None]:
        """Return how datasets stand, in their order; one that is damaged is logged, and keeps no other from it."""

        def read(name: str) -> Status | None:
            try:
                return messages.read(self.store, name)
            except OutputError as error:
                log.error("%s", error)
                return None

        return list(in_threads(read, names))

    def result(self, dataset: str, attempt: int, retry: int = 1) -> dict[str, Any] | None:
        """Return what a job said of itself, or None: it may have been killed before it could."""
        return self.read(result_key(dataset, attempt, retry))

    def paused(self) -> str:
        """Say why nothing more is to be submitted; empty when that is not so."""
        blob = self.store.get(PAUSE)
        return "" if blob is None else blob.data.decode("utf-8", errors="replace").strip() or "paused"

    def pause(self, why: str, news: str = "") -> str:
        """Let nothing more be submitted; what paused it first stays its reason.

        Parameters
        ----------
        why : str
            For people.
        news : str, optional
            When that was found out, ISO 8601: it is nothing new if somebody has let the campaign go on since.

        Returns
        -------
        str
            Why it is paused; empty if it is not.
        """
        if news:
            lifted = str((self.read(UNPAUSED) or {}).get("at", ""))
            if lifted and datetime.fromisoformat(news) <= datetime.fromisoformat(lifted):
                return ""
        return why if self.put_once(PAUSE, f"{why}\n".encode()) else self.paused()

    def unpause(self) -> None:
        """Let it go on."""
        at = self.store.clock().isoformat(timespec="milliseconds")  # not by the clock of whoever sits at a keyboard
        self.store.put(UNPAUSED, json.dumps({"at": at, "by": who()}).encode() + b"\n", Overwrite())
        self.store.delete(PAUSE)

    def lift(self) -> bool:
        """Let it go on, if it was paused; say whether it was.

        Those that wait for the ones that went first follow only if it was these that paused it, and none of them was
        given another attempt since: whoever lifts the pause has seen what became of them.
        """
        paused = self.paused()
        if not paused:
            return False
        if WENT_FIRST in paused:
            statuses = self.statuses(self.plan().get("canary", ()))
            if not any(status is not None and STATES[status.state][0] < STATES["error"][0] for status in statuses):
                self.release()
        self.unpause()
        return True

    def released(self) -> bool:
        """Say whether the rest may follow the datasets that went first."""
        return self.store.get(RELEASED) is not None

    def release(self) -> None:
        """Let the rest follow the datasets that went first, whatever became of these."""
        self.put_once(RELEASED, json.dumps({"at": messages.now(), "by": who()}).encode() + b"\n")

    # ---- whether it has come to its end

    def closed(self) -> bool:
        """Say whether all datasets have come to their end, as far as somebody has seen to it."""
        try:
            record = self.read(CLOSED)
        except OutputError:
            return True  # whatever it says, nobody would look
        return record is not None and not record.get("reopened")

    def close(self, states: Mapping[str, int]) -> None:
        """Put down that all datasets have come to their end; whoever does so looks again afterwards."""
        if not self.closed():
            self.store.put(CLOSED, _pretty({"at": messages.now(), "states": dict(states)}), Overwrite())

    def reopen(self) -> None:
        """Put down that it goes on, if it has come to its end.

        To be called after whatever makes it go on was written: either this sees that it was closed, or who closes it
        sees what was written.
        """
        if self.closed():
            self.store.put(CLOSED, _pretty({"at": messages.now(), "reopened": messages.now()}), Overwrite())

    def audit(self, what: str, why: str = "", **details: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Put down who did what, when and why; earlier lines stay."""
        line = json.dumps({"at": messages.now(), "by": who(), "what": what, "why": why, **details}).encode() + b"\n"
        while True:
            blob = self.store.get(AUDIT)
            try:
                self.store.put(AUDIT, (blob.data if blob else b"") + line, Update(blob.etag) if blob else Create())
                return
            except ConflictError:
                continue

    def read(self, key: str) -> dict[str, Any] | None:
        """Return a record of the campaign, None when there is none; OutputError when it is damaged."""
        blob = self.store.get(key)
        if blob is None:
            return None
        try:
            record = json.loads(blob.data)
        except ValueError as error:
            raise OutputError(f"{self.store.url(key)} is damaged ({error})", remedy="remove it") from error
        return record if isinstance(record, dict) else None

    def _record(self, key: str) -> dict[str, Any]:
        record = self.read(key)
        if record is None:
            raise UsageError(
                f"{self.store.url()} is no campaign: there is no {key}", remedy="caldp campaign submit makes one"
            )
        return record


def _pretty(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode() + b"\n"
