"""The state of a dataset, which can only move forward, and the folders that show it.

``messages/status/<dataset>.json`` is the truth.  It moves upwards in (attempt, rank) by compare-and-swap, so late or
repeated news of an older attempt change nothing.  The folders of the README (``messages/datasets-processed/...``)
are written after it and can be made again from it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from caldp.errors import BusyError, CaldpError, DuplicateError, OutputError
from caldp.store import ConflictError, Create, Store, Update

#: State -> (rank within an attempt, folder under ``messages/``).
STATES: dict[str, tuple[int, str]] = {
    "placed": (10, ""),
    "submitted": (20, "dataset-submitted"),
    "processing": (30, "dataset-processing"),
    "error": (40, "dataset-error"),
    "cancelled": (50, "dataset-cancelled"),
    "processed": (60, "datasets-processed"),
    "synced": (70, "dataset-synced"),
    "archived": (80, "dataset-archived"),
}

#: Entries of history kept in a status.
HISTORY = 50

#: Fields of a status that only campaigns write.
_CAMPAIGN = ("shard", "rung", "time_limit", "cause", "spent", "fingerprint")


@dataclass(frozen=True)
class Status:
    """Where one dataset stands.

    Attributes
    ----------
    dataset : str
        Its name.
    attempt : int
        1, 2, ...
    state : str
        A key of ``STATES``.
    reason : str
        Why, in one line.
    exit_code : int or None
        Exit status of the run that ended.
    run : str
        The run that wrote it.
    by : str
        Host and process.
    at : str
        When, ISO 8601 in UTC.
    retry : int
        1, or more when the same attempt was started again, as AWS Batch does when it loses a host.
    job : str
        AWS Batch's name of the job.
    beat : str
        When the run last said that it is alive, by the clock of the store; empty where a lock says so.
    message : str
        What the message in ``messages/`` says; empty but for datasets that were handed on.
    shard : str
        In a campaign: the shard that the attempt is part of.
    rung, time_limit : str, int
        In a campaign: step of the memory ladder, and seconds, that the attempt is given.
    cause : str
        In a campaign: class of the failure (``campaign.failures``) that ended the attempt, or that led to it.
    spent : dict
        In a campaign: retries that earlier failures have cost, by budget.
    fingerprint : str
        In a campaign: what makes the failure that led to the attempt recognizable.
    history : tuple of dict
        Earlier states, oldest first.
    """

    dataset: str
    attempt: int
    state: str
    run: str = ""
    reason: str = ""
    exit_code: int | None = None
    by: str = ""
    at: str = ""
    retry: int = 1
    job: str = ""
    beat: str = ""
    message: str = ""
    shard: str = ""
    rung: str = ""
    time_limit: int = 0
    cause: str = ""
    spent: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    history: tuple[dict[str, Any], ...] = field(default=())

    @property
    def rank(self) -> int:
        """Rank of the state within its attempt."""
        return STATES[self.state][0]

    @property
    def order(self) -> tuple[int, int, int]:
        """What decides which of two statuses is the later one."""
        return self.attempt, self.retry, self.rank

    @property
    def done(self) -> bool:
        """Whether products were published."""
        return self.rank >= STATES["processed"][0]

    def failed(self, error: CaldpError) -> Status:
        """Return the error state that follows this one; a campaign has not judged it yet."""
        return replace(self, state="error", reason=str(error), exit_code=error.code, cause="", at="", by="", beat="")

    def following(self, earlier: Status | None) -> Status:
        """Return this one with what a campaign knows of the dataset.

        Who runs a job, downloads or archives knows nothing of campaigns; a campaign always names a rung.
        """
        if earlier is None or self.rung:
            return self
        return replace(self, **{name: getattr(earlier, name) for name in _CAMPAIGN})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        # Not asdict, which copies every entry of the history: a campaign writes millions of these.
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "spent": dict(self.spent), "rank": self.rank, "history": list(self.history)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Status:
        """Read the JSON form; unknown fields are ignored."""
        known = {k: record[k] for k in cls.__dataclass_fields__ if k in record}
        status = cls(**{**known, "history": tuple(record.get("history", ()))})
        if status.state not in STATES or type(status.attempt) is not int or type(status.retry) is not int:
            raise ValueError(f"state {status.state!r}, attempt {status.attempt!r}, retry {status.retry!r}")
        return status

    def __str__(self) -> str:
        return f"{self.dataset}: {self.state}, attempt {self.attempt}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Claim:
    """On what grounds a run begins.

    Attributes
    ----------
    attempt : int
        The attempt that whoever submitted the run has counted; 0 when the run counts for itself.
    retry : int
        How often AWS Batch has started this job, 1 at first.
    job : str
        AWS Batch's name of the job.
    patience : float
        Seconds without a heartbeat after which another run is taken for dead, where no lock tells.
    take_over : bool
        Take another run for dead at once.
    """

    attempt: int = 0
    retry: int = 1
    job: str = ""
    patience: float = 300.0
    take_over: bool = False


def now() -> str:
    """Return the present in UTC, ISO 8601 with milliseconds."""
    return _iso(datetime.now(UTC))


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def status_key(dataset: str) -> str:
    """Key of a dataset's status."""
    return f"messages/status/{dataset}.json"


def read(store: Store, dataset: str) -> Status | None:
    """Read the status of a dataset, or None when it has none."""
    return read_tagged(store, dataset)[0]


def begin(store: Store, dataset: str, run: str, published: int = 0, claim: Claim | None = None) -> Status:
    """Start the next attempt, or the one that the submitter has counted.

    Parameters
    ----------
    store : Store
        The output.  Where its lock is exclusive the caller holds it, so an attempt still "processing" is a dead run's.
    dataset : str
        Its name.
    run : str
        Identifies the run that begins.
    published : int
        Attempt of the manifest that is there: the messages may have been lost while the data were not.
    claim : Claim, optional
        On what grounds.

    Returns
    -------
    Status
        The processing status, already written and projected.

    Raises
    ------
    BusyError
        If another run is alive.
    DuplicateError
        If the attempt that the submitter has counted is another job's, or over.
    """
    claim = claim or Claim()
    seen = read_tagged(store, dataset)
    last = seen[0]
    beat = "" if store.exclusive else _iso(store.clock())
    if claim.attempt:
        retry = _retry(store, last, claim)
        status = Status(dataset, claim.attempt, "processing", run=run, retry=retry, job=claim.job, beat=beat)
        if retry == 0 or not (written := advance(store, status, seen))[1]:
            there = read(store, dataset)
            raise DuplicateError(f"{dataset}: duplicate of another job; the dataset stands at: {there}")
        return written[0]
    if last is not None and last.state == "processing" and not claim.take_over and _is_alive(store, last, claim):
        raise BusyError(
            f"{dataset}: another run ({last.by}) is processing it into {store.url()}; nothing was changed",
            remedy=f"wait for it to end; it counts as dead {claim.patience:.0f} s after its last sign of life, or at "
            "once with --take-over",
        )
    waiting = last is not None and last.rank < STATES["processing"][0]
    attempt = 1 if last is None else last.attempt if waiting else last.attempt + 1
    attempt = max(attempt, published + 1)
    status, begun = advance(store, Status(dataset, attempt, "processing", run=run, job=claim.job, beat=beat), seen)
    if not begun:
        raise BusyError(f"{dataset}: attempt {attempt} was begun by another run", remedy="wait for it to end")
    return status


def _retry(store: Store, last: Status | None, claim: Claim) -> int:
    """Return the number of this start of a counted attempt, or 0 if it is not this job's to start."""
    if last is None or last.attempt < claim.attempt:
        return claim.retry
    if last.attempt > claim.attempt or last.done or last.state == "cancelled":
        return 0
    if last.rank < STATES["processing"][0]:
        return max(claim.retry, last.retry)
    if claim.job and last.job == claim.job and claim.retry > last.retry:
        return claim.retry  # AWS Batch starts a job again only when it has ended
    if last.state == "processing" and (claim.take_over or not _is_alive(store, last, claim)):
        return max(claim.retry, last.retry + 1)
    return 0


def _is_alive(store: Store, status: Status, claim: Claim) -> bool:
    """Whether a run that is processing has been heard of lately; where there are locks, it could not be ours else."""
    return not store.exclusive and silence(store, status) < claim.patience


def beat(store: Store, mine: Status) -> bool:
    """Write into the status that the run is alive.

    Parameters
    ----------
    store : Store
        The output.
    mine : Status
        As ``begin`` returned it.

    Returns
    -------
    bool
        False if the dataset is no longer this run's.
    """
    while True:
        current, etag = read_tagged(store, mine.dataset)
        if current is None or not _is_mine(current, mine) or current.state != "processing":
            return False
        with contextlib.suppress(ConflictError):
            alive = replace(current, beat=_iso(store.clock()))
            store.put(status_key(mine.dataset), _body(alive), Update(etag))
            return True


def advance(store: Store, status: Status, seen: tuple[Status | None, str] | None = None) -> tuple[Status, bool]:
    """Move a dataset's status upwards.

    Parameters
    ----------
    store : Store
        The output.
    status : Status
        The new state; its time, owner and history are filled in here.
    seen : tuple, optional
        The stored status and its tag, of a caller who has just read them.

    Returns
    -------
    status : Status
        What is now stored.
    written : bool
        False when the stored status was already as high or higher: nothing was changed.
    """
    status = replace(status, at=status.at or now(), by=status.by or f"{os.uname().nodename}:{os.getpid()}")
    tried = False
    while True:
        current, etag = seen or read_tagged(store, status.dataset)
        seen = None
        if tried and current is not None and current.order == status.order and _is_mine(current, status):
            project(store, current)
            return current, True  # what was refused was a repetition: its first try had arrived
        if current is not None and status.order <= current.order:
            if status.order == current.order and not _handed_on(store, status):
                project(store, current)  # its writer may have died before it could
            return current, False
        said = current.message if current else ""
        status = status.following(current)
        if status.state == "archived" and current is not None and current.attempt == status.attempt:
            status = replace(status, message=status.message or said)
        entry = _entry(status)
        # A new attempt takes messages away; what they say must not be lost.
        bodies = {STATES[current.state][1]: said} if current and said not in ("", status.message) else {}
        if bodies := {**bodies, **{folder: body for folder, body in _handed_on(store, status).items() if body}}:
            entry["messages"] = bodies
        history = (*(current.history if current else ()), entry)[-HISTORY:]
        written = replace(status, history=history)
        tried = True
        try:
            store.put(status_key(status.dataset), _body(written), Update(etag) if etag else Create())
        except ConflictError:
            continue
        project(store, written)
        return written, True


def _entry(status: Status) -> dict[str, Any]:
    """Return what the history keeps of a status."""
    left_out = ("history", "dataset", "rank", "message", "beat")
    return {k: v for k, v in status.to_json().items() if k not in left_out and (v or k not in _CAMPAIGN)}


def note(store: Store, status: Status, news: Status, etag: str) -> Status:
    """Write a status that stays where it is in the order, with news in its history.

    Parameters
    ----------
    store : Store
        The output.
    status : Status
        How the dataset stands.
    news : Status
        What is noted.
    etag : str
        Tag of the status that is there.

    Returns
    -------
    Status
        As written.

    Raises
    ------
    ConflictError
        If the dataset has moved on.
    """
    at = now()
    written = replace(status, at=status.at or at, history=(*status.history, {**_entry(news), "at": at})[-HISTORY:])
    store.put(status_key(status.dataset), _body(written), Update(etag))
    return written


def amend(store: Store, status: Status) -> bool:
    """Write what a campaign has found out about the state that a dataset is in, which stays the same.

    Parameters
    ----------
    store : Store
        The output.
    status : Status
        The state that was judged, with the fields of a campaign.

    Returns
    -------
    bool
        False if the dataset is in another state by now: nothing was changed.
    """
    found = {name: getattr(status, name) for name in _CAMPAIGN}
    while True:
        current, etag = read_tagged(store, status.dataset)
        if current is None or current.order != status.order:
            return False
        amended = replace(current, **found)
        if amended == current:
            return True
        with contextlib.suppress(ConflictError):
            store.put(status_key(status.dataset), _body(amended), Update(etag))
            return True


def project(store: Store, status: Status) -> None:
    """Make the folders of ``messages/`` show ``status``: the new name first, then the old ones go.

    An existing body is never overwritten.
    """
    while True:
        folder = STATES[status.state][1]
        if folder:
            # The archive acknowledges the list of files that the downloader left: a message that moves keeps its body.
            moved = store.get(f"messages/dataset-synced/{status.dataset}") if status.state == "archived" else None
            message = moved.data if moved else status.message.encode()
            with contextlib.suppress(ConflictError):  # it is there, perhaps of another writer: that is what we want
                store.put(f"messages/{folder}/{status.dataset}", message, Create())
        others = [other for _, other in STATES.values() if other and other != folder]
        store.delete(*(f"messages/{other}/{status.dataset}" for other in others))
        later = read(store, status.dataset)
        if later is None or later.order <= status.order:
            return
        status = later  # somebody was faster: theirs is the state to show


def _handed_on(store: Store, status: Status) -> dict[str, str]:
    """Return the messages that the downloader and the archive left, which know more than ``status``: {folder: body}."""
    left = {}
    for state in ("synced", "archived"):
        rank, folder = STATES[state]
        blob = store.get(f"messages/{folder}/{status.dataset}") if rank > status.rank else None
        if blob is not None:
            left[folder] = blob.data.decode("utf-8", errors="replace")
    return left


def owns(store: Store, mine: Status) -> bool:
    """Say whether ``mine`` is still the run that the status names."""
    current = read(store, mine.dataset)
    return current is not None and _is_mine(current, mine)


def _is_mine(current: Status, mine: Status) -> bool:
    return (current.attempt, current.run) == (mine.attempt, mine.run)


def _body(status: Status) -> bytes:
    return json.dumps(status.to_json(), indent=1).encode() + b"\n"


def check_owner(store: Store, mine: Status) -> None:
    """Raise BusyError if another run took the dataset over since ``mine`` was written."""
    if not owns(store, mine):
        raise taken_over(mine)


def conclude(store: Store, status: Status) -> None:
    """Move the status of a run to its end; BusyError if it is not this run's to move any more."""
    stored, written = advance(store, status)
    if not (written or _is_mine(stored, status)):
        raise taken_over(status)


def abandon(store: Store, dataset: str, run: str, error: CaldpError) -> None:
    """Leave the error state of a run that failed while it began, if it got so far."""
    current = read(store, dataset)
    if current is not None and (current.run, current.state) == (run, "processing"):
        advance(store, current.failed(error))


def taken_over(mine: Status) -> BusyError:
    """Return the error of a run that has lost its dataset."""
    return BusyError(
        f"{mine.dataset}: taken over by another run; this one publishes nothing", remedy="look at that run"
    )


def read_tagged(store: Store, dataset: str) -> tuple[Status | None, str]:
    """Read the status of a dataset with the tag of its record, or None; OutputError when it is damaged."""
    blob = store.get(status_key(dataset))
    if blob is None:
        return None, ""
    try:
        return Status.from_json(json.loads(blob.data)), blob.etag
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{dataset}: {store.url(status_key(dataset))} is not a status record ({error})",
            remedy="repair or remove that file",
        ) from error


def mirror(store: Store, status: Status) -> bool:
    """Put down a status as another store has it, history and all, and show it.

    Parameters
    ----------
    store : Store
        Where the dataset was copied to.
    status : Status
        What is to be there.

    Returns
    -------
    bool
        False when the status that is there is a later one: nothing was changed.
    """
    while True:
        current, etag = read_tagged(store, status.dataset)
        if current is not None and current.order > status.order:
            return False
        if current != status:
            try:
                store.put(status_key(status.dataset), _body(status), Update(etag) if etag else Create())
            except ConflictError:
                continue
        project(store, status)
        return True


def silence(store: Store, status: Status) -> float:
    """Return for how long a run that is processing has given no sign of life, by the clock of the store.

    Parameters
    ----------
    store : Store
        The output.
    status : Status
        What the run wrote last.

    Returns
    -------
    float
        Seconds; infinite when the status does not tell a time.
    """
    try:
        return (store.clock() - datetime.fromisoformat(status.beat or status.at)).total_seconds()
    except (ValueError, TypeError):  # no time, or one without a zone
        return math.inf
