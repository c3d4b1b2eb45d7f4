"""What a batch directory says of its datasets: how they stand, why they failed, and whether its folders are right.

The folders of ``messages/`` are listed, a thousand datasets a request on S3; status records are read only where the
folders do not tell: of failures (why), of runs (whether they live) and where the folders disagree.  Everything here may
be used while the batch is running.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from caldp import messages
from caldp.dataset import Dataset
from caldp.errors import EXIT_CODES, CaldpError, OutputError, UsageError
from caldp.messages import STATES, Claim, Status
from caldp.reporter import human_time, printable
from caldp.store import ConflictError, Create, Store, open_store, parse_uri

T = TypeVar("T")
U = TypeVar("U")

#: Status records of one kind (failures, runs, datasets whose folders disagree) that are read at most.
LIMIT = 2000

#: What a repair does, and what it leaves: see ``Change``.
ACTIONS = ("created", "removed", "unrecorded", "unsaved", "damaged")

#: Names given as an example of many.
EXAMPLES = 3

#: Exit statuses of ``caldp status``.
PROCESSED, FAILED, OPEN = 0, 1, 3

#: The states that have a folder.
_SHOWN = {state: folder for state, (_, folder) in STATES.items() if folder}

#: States in which somebody may still work on a dataset, and in which nobody will.
_OPEN, _FAILED = ("placed", "submitted", "processing"), ("error", "cancelled")

#: Messages that the downloader and the archive write, with text in them.
_HANDED_ON = ("synced", "archived")

#: Requests in flight; the S3 client has as many connections and a few more.
_THREADS = 16

#: Datasets that are handed to the threads at once.
_CHUNK = 1000

#: Lines of a list that a person is shown.
_LINES = 20


@dataclass(frozen=True)
class Standing:
    """How one dataset stands.

    Attributes
    ----------
    dataset : str
        Its name.
    state : str
        A key of ``STATES``; empty when its status record is damaged.
    status : Status or None
        Its status record; None where there is none, or a damaged one.
    folders : tuple of str
        The states whose folders show it.
    silence : float or None
        Of a run: seconds since its last sign of life, infinite when nobody knows; None where a lock tells instead.
    stale : bool
        Whether it is processing, but the run is dead.
    damage : str
        What is wrong with its status record.
    """

    dataset: str
    state: str
    status: Status | None = None
    folders: tuple[str, ...] = ()
    silence: float | None = None
    stale: bool = False
    damage: str = ""

    @property
    def exit_status(self) -> int:
        """What ``caldp status`` of this dataset ends with."""
        return OPEN if self.state in _OPEN else FAILED if self.state in ("", *_FAILED) else PROCESSED


@dataclass(frozen=True)
class Cause:
    """A failure that datasets have in common.

    Attributes
    ----------
    exit_code : int or None
        Exit status of the runs.
    name : str
        What the table of exit statuses calls it.
    reason : str
        What they said; what differs from dataset to dataset is ``<dataset>``, ``<path>``, ``<id>`` or ``#``.
    datasets : int
        How many.
    examples : tuple of str
        Some of them.
    """

    exit_code: int | None
    name: str
    reason: str
    datasets: int
    examples: tuple[str, ...]


@dataclass
class Survey:
    """How the datasets of a batch stand.

    Attributes
    ----------
    batch : str
        Where it is.
    patience : float
        Seconds without a sign of life after which a run is taken for dead, where no lock tells.
    at : str
        When, ISO 8601 in UTC.
    counts : dict
        Datasets, by state; without those of ``damaged`` and ``unread``.
    causes : list of Cause
        Why datasets are in error, the most frequent first.
    errors_read, processing_read : int
        How many of the datasets in these states were looked at.
    stale : list of Standing
        Datasets whose run is dead.
    unrecorded : list of str
        Datasets that a folder shows, but that have no status record; they are counted as the folder says.
    damaged : list of str
        Datasets whose status record was read and cannot be understood.
    unread : int
        Datasets whose folders do not tell, and that were too many to be looked at.
    """

    batch: str
    patience: float
    at: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    causes: list[Cause] = field(default_factory=list)
    errors_read: int = 0
    processing_read: int = 0
    stale: list[Standing] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    unread: int = 0

    @property
    def datasets(self) -> int:
        """How many there are."""
        return sum(self.counts.values()) + len(self.damaged) + self.unread

    @property
    def open(self) -> int:
        """How many somebody may still work on."""
        return sum(self.counts[state] for state in _OPEN) + self.unread

    @property
    def failed(self) -> int:
        """How many nobody works on, and that were not processed."""
        return sum(self.counts[state] for state in _FAILED) + len(self.damaged)

    @property
    def exit_status(self) -> int:
        """What ``caldp status`` ends with: while anything is open the answer may change, so that comes first."""
        return OPEN if self.open else FAILED if self.failed else PROCESSED


@dataclass(frozen=True)
class Change:
    """What a repair did about one message, or found and left.

    Attributes
    ----------
    dataset : str
        Its name.
    action : str
        ``created`` or ``removed``; or of what was left: ``unrecorded`` (shown without a status record), ``unsaved``
        (it should go, but its text is kept nowhere else), ``damaged`` (the status record).
    state : str
        Whose folder; empty for ``damaged``.
    note : str
        More about it.
    """

    dataset: str
    action: str
    state: str = ""
    note: str = ""

    def __str__(self) -> str:
        place = f"messages/{_SHOWN[self.state]}/{self.dataset}" if self.state else self.dataset
        return f"{self.action}  {place}" + (f"  ({self.note})" if self.note else "")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "dataset": self.dataset,
            "action": self.action,
            "folder": _SHOWN.get(self.state),
            "state": self.state or None,
            "note": self.note,
        }


class Repaired:
    """What a repair came to.

    Parameters
    ----------
    dry_run : bool
        Whether nothing was to be changed.
    """

    def __init__(self, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.datasets = 0
        self.changes: list[Change] = []

    def add(self, changes: Iterable[Change]) -> None:
        """Enter what was done about one dataset."""
        self.datasets += 1
        self.changes += changes

    @property
    def counts(self) -> dict[str, int]:
        """How often each was done, or left."""
        return {action: sum(change.action == action for change in self.changes) for action in ACTIONS}

    @property
    def exit_status(self) -> int:
        """What ``caldp messages repair`` ends with."""
        return FAILED if self.counts["damaged"] else PROCESSED

    def to_json(self, store: Store) -> str:
        """Lay it out for machines."""
        return json.dumps(
            {
                "batch": store.url(),
                "dry_run": self.dry_run,
                "datasets": self.datasets,
                "counts": self.counts,
                "changes": [change.to_json() for change in self.changes],
                "exit_status": self.exit_status,
            },
            indent=1,
        )

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {action}" for action, count in self.counts.items() if count)
        said = " (dry run: nothing was changed)" if self.dry_run and self.changes else ""
        return f"{self.datasets:,} datasets: {counts or 'all messages are right'}{said}"


# ---- reading


def open_batch(place: str) -> Store:
    """Open a batch directory.

    Parameters
    ----------
    place : str
        A path, ``file:<directory>`` or ``s3://bucket/prefix``.

    Returns
    -------
    Store

    Raises
    ------
    UsageError
        If it is not a place, or no such directory.
    """
    uri = place if re.match(r"(file|s3|astroquery):", place) else f"file:{place}"
    if not place:
        raise UsageError("'' is not a batch", remedy="give a directory or s3://bucket/prefix")
    store = open_store(uri)
    if store.uri.startswith("file:") and not Path(parse_uri(store.uri)[1]).is_dir():
        raise UsageError(f"there is no directory {store.url()}", remedy="give the output of the runs")
    return store


def survey(store: Store, patience: float = Claim.patience, limit: int = LIMIT) -> Survey:
    """Count the datasets of a batch by state, and group its failures by cause.

    Parameters
    ----------
    store : Store
        The batch.
    patience : float, optional
        Seconds without a sign of life after which a run is taken for dead, where no lock tells.
    limit : int, optional
        Status records of one kind that are read at most, spread evenly over the names; 0 for all.

    Returns
    -------
    Survey

    Raises
    ------
    UsageError
        If there is no batch.
    S3DownloadError
        If S3 does not answer, or refuses.
    """
    recorded, shown = _list(store)
    found = Survey(store.url(), patience, messages.now())
    kinds: dict[str, list[str]] = {"error": [], "processing": [], "": []}
    for dataset in sorted(recorded | shown.keys()):
        states = shown.get(dataset, ())
        told = states[0] if len(states) == 1 and dataset in recorded else ""
        if told in kinds:
            kinds[told].append(dataset)
        else:
            found.counts[told] += 1
    chosen = {kind: _spread(names, limit) for kind, names in kinds.items()}
    for kind in ("error", "processing"):
        found.counts[kind] += len(kinds[kind]) - len(chosen[kind])
    for dataset in set(kinds[""]).difference(chosen[""]):
        if dataset in recorded:
            found.unread += 1
        else:
            found.counts[shown[dataset][-1]] += 1
            found.unrecorded.append(dataset)
    causes = _Causes()
    look_at = [dataset for names in chosen.values() for dataset in names]
    for standing in _in_threads(lambda name: _look(store, name, shown.get(name, ()), patience), look_at):
        if standing is not None:
            _enter(found, causes, standing)
    found.causes = causes.sorted()
    found.unrecorded.sort()
    return found


def _enter(found: Survey, causes: _Causes, standing: Standing) -> None:
    if standing.damage:
        found.damaged.append(standing.dataset)
        return
    found.counts[standing.state] += 1
    if standing.status is None:
        found.unrecorded.append(standing.dataset)
    elif standing.state == "error":
        found.errors_read += 1
        causes.add(standing.status)
    elif standing.state == "processing":
        found.processing_read += 1
        if standing.stale:
            found.stale.append(standing)


def look(store: Store, dataset: str, patience: float = Claim.patience) -> Standing:
    """Say how one dataset stands.

    Parameters
    ----------
    store : Store
        The batch.
    dataset : str
        As typed.
    patience : float, optional
        As for ``survey``.

    Returns
    -------
    Standing

    Raises
    ------
    UsageError
        If it is not the name of a dataset, or of none that this batch knows.
    OutputError
        If its status record is damaged.
    """
    name = Dataset.parse(dataset).name
    standing = _look(store, name, tuple(_messages(store, name)), patience)
    if standing is None:
        raise _unknown(store, name)
    if standing.damage:
        raise OutputError(standing.damage)
    return standing


def _unknown(store: Store, dataset: str) -> UsageError:
    return UsageError(f"{dataset}: {store.url()} does not know it", remedy="check the name and the batch")


def _list(store: Store) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    """Return the datasets that have a status record, and which states show each, the lowest first."""
    there = set(store.names("messages"))
    listed = {state: f"messages/{folder}" for state, folder in _SHOWN.items() if folder in there}
    if "status" in there:
        listed[""] = "messages/status"
    shown: dict[str, tuple[str, ...]] = {}
    recorded: set[str] = set()
    for state, names in zip(listed, _in_threads(store.names, listed.values()), strict=True):
        if not state:
            recorded = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        for name in names if state else ():
            shown[name] = (*shown.get(name, ()), state)
    if not recorded and not shown:
        raise UsageError(
            f"{store.url()} is no batch: no dataset has a message in it", remedy="give the output of the runs"
        )
    return recorded, shown


def _look(store: Store, dataset: str, folders: tuple[str, ...], patience: float) -> Standing | None:
    """Read a status; None when there is neither one nor a message."""
    try:
        status = _read(store, dataset)
        if status is None:
            return Standing(dataset, folders[-1], folders=folders) if folders else None
        state = _state(status, folders)
        if state != "processing":
            return Standing(dataset, state, status, folders)
        if not store.exclusive:
            silence = messages.silence(store, status)
            return Standing(dataset, state, status, folders, silence, stale=silence >= patience)
        stale = not _is_held(store, dataset)
        if stale:
            again = _read(store, dataset)  # its run may just have ended, after which it let go
            if again is not None and (again.order, again.run) != (status.order, status.run):
                return _look(store, dataset, folders, patience)
    except OutputError as error:
        return Standing(dataset, "", folders=folders, damage=str(error))
    return Standing(dataset, state, status, folders, stale=stale)


def _read(store: Store, dataset: str) -> Status | None:
    """Read a status; OutputError when it is damaged."""
    try:
        status = messages.read(store, dataset)
    except OSError as error:  # not a file, not readable
        raise OutputError(f"{dataset}: {store.url(messages.status_key(dataset))}: {error.strerror}") from error
    if status is not None and status.dataset != dataset:
        raise OutputError(
            f"{dataset}: {store.url(messages.status_key(dataset))} is the status of {status.dataset!r}",
            remedy="repair or remove that file",
        )
    return status


def _state(status: Status, folders: Iterable[str]) -> str:
    """Return the state to show: of products that were handed on, the messages may know more than the status."""
    handed_on = [state for state in folders if state in _HANDED_ON] if status.done else []
    return max([status.state, *handed_on], key=lambda state: STATES[state][0])


def _is_held(store: Store, dataset: str) -> bool:
    """Whether a live run has the lock of a dataset, in a folder.

    ``own`` would write, and keep out a run that begins meanwhile.  This takes a shared lock, if nobody has it, and lets
    it go at once.
    """
    root = Path(parse_uri(store.uri)[1])
    try:
        descriptor = os.open(root / "messages" / ".locks" / f"{dataset}.owner", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # a run removes it when it ends
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _messages(store: Store, dataset: str) -> dict[str, str]:
    """Return the messages of one dataset, by state, the lowest first."""
    found = {}
    for state, folder in _SHOWN.items():
        with contextlib.suppress(IsADirectoryError):  # somebody's folder is no message
            if (blob := store.get(f"messages/{folder}/{dataset}")) is not None:
                found[state] = blob.data.decode("utf-8", errors="replace")
    return found


def _spread(names: Sequence[str], limit: int) -> Sequence[str]:
    """Choose some of many, from everywhere: neighbours have much in common."""
    if not limit or len(names) <= limit:
        return names
    return [names[number * len(names) // limit] for number in range(limit)]


def _in_threads(act: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Apply a function that waits, in order, many at a time; whatever stops it stops what has not begun."""
    todo = list(items)
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for start in range(0, len(todo), _CHUNK):
            yield from pool.map(act, todo[start : start + _CHUNK])
    finally:
        pool.shutdown(cancel_futures=True)


# ---- causes

_NAME = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])"

#: What differs between datasets that fail for the same reason, and what stands for it.
_DIFFERING = (
    (re.compile(r"\b[a-z][a-z0-9]*://[^\s,;()'\"]+(?<![.:])"), "<path>"),
    (re.compile(r"(?<![\w.<>~/])~?/[^\s,;()'\"]+(?<![.:])"), "<path>"),
    (re.compile(r"(?<![\w.<>~/-])[\w.<>~+-]+(?:/[\w.<>~+-]+){2,}(?<!\.)"), "<path>"),
    (re.compile(_NAME.format(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")), "<id>"),
    (re.compile(_NAME.format(r"(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{12,}")), "<id>"),
    # Exposures of an association; its reference files begin with a digit, and make a difference.
    (re.compile(_NAME.format(r"(?=[a-z]*[0-9])[ijlo][a-z0-9]{8}"), re.IGNORECASE), "<dataset>"),
    (re.compile(r"(?<!\d)\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?"), "#"),
    # Not what is part of a name (x1d, calwf3.e, 05i1639ml), but 12ms.
    (re.compile(r"(?<![A-Za-z0-9.])\d+(?:[.,:]\d+)*(?:e[+-]?\d+)?(?![A-Za-z]*\d)"), "#"),
)


def normalised(reason: str, dataset: str, run: str = "") -> tuple[str, str]:
    """Take what is the dataset's own out of the reason of a failure.

    Parameters
    ----------
    reason : str
        As the status says it.
    dataset, run : str
        Whose reason it is.

    Returns
    -------
    plain, pattern : str
        Without the name of the dataset and the run; without all that may differ.
    """
    plain = printable(reason)
    names = [dataset, run]
    with contextlib.suppress(CaldpError):
        names.append(Dataset.parse(dataset).root)
    for name in filter(None, names):
        stands_for = "<id>" if name == run else "<dataset>"
        plain = re.sub(_NAME.format(re.escape(name)), stands_for, plain, flags=re.IGNORECASE)
    pattern = plain = plain.removeprefix("<dataset>: ")
    for differing, stands_for in _DIFFERING:
        pattern = differing.sub(stands_for, pattern)
    return plain, pattern


class _Causes:
    """Counts failures by cause."""

    def __init__(self) -> None:
        self._found: dict[tuple[int | None, str], tuple[str, int, tuple[str, ...]]] = {}

    def add(self, status: Status) -> None:
        """Count one."""
        plain, pattern = normalised(str(status.reason), status.dataset, str(status.run))
        code = status.exit_code if type(status.exit_code) is int else None
        said, count, examples = self._found.get((code, pattern), (plain, 0, ()))
        if len(examples) < EXAMPLES:
            examples = (*examples, status.dataset)
        self._found[code, pattern] = (said if said == plain else pattern, count + 1, examples)

    def sorted(self) -> list[Cause]:
        """Return them, the most frequent first."""
        causes = [
            Cause(code, _code_name(code), reason, count, examples)
            for (code, _), (reason, count, examples) in self._found.items()
        ]
        return sorted(causes, key=lambda cause: (-cause.datasets, cause.exit_code or 0, cause.reason))


def _code_name(code: int | None) -> str:
    return EXIT_CODES[code][0] if code in EXIT_CODES else ""


# ---- repairing


def repair(store: Store, datasets: Sequence[str] = (), *, dry_run: bool = False) -> Iterator[list[Change]]:
    """Make the folders of a batch show what its status records say.

    A message that is there is never written again, and one with a text goes only where that text is kept elsewhere.

    Parameters
    ----------
    store : Store
        The batch.
    datasets : sequence of str, optional
        Which, as typed; all by default.
    dry_run : bool, optional
        Change nothing.

    Yields
    ------
    list of Change
        What was done about one dataset, for each that was looked at, by name; empty when all was right.

    Raises
    ------
    UsageError
        If there is no batch, or one of the datasets is not in it; nothing was changed then.
    S3DownloadError, S3UploadError
        If S3 does not answer, or refuses.
    """
    names = list(dict.fromkeys(Dataset.parse(dataset).name for dataset in datasets))
    if names:
        for dataset, known in zip(names, _in_threads(partial(_is_known, store), names), strict=True):
            if not known:
                raise _unknown(store, dataset)
        yield from _in_threads(lambda name: _mend(store, name, None, dry_run), names)
    else:
        recorded, shown = _list(store)
        everybody = sorted(recorded | shown.keys())
        yield from _in_threads(lambda name: _mend(store, name, shown.get(name, ()), dry_run), everybody)


def _is_known(store: Store, dataset: str) -> bool:
    return store.get(messages.status_key(dataset)) is not None or bool(_messages(store, dataset))


def _mend(store: Store, dataset: str, listed: tuple[str, ...] | None, dry_run: bool) -> list[Change]:
    """Repair the messages of one dataset, unless those that were listed are right."""
    try:
        status = _read(store, dataset)
        if status is None:
            return [Change(dataset, "unrecorded", state, "no status record") for state in _messages(store, dataset)]
        if listed == _right(_state(status, listed or ())):
            return []
        return _project(store, status, dry_run)
    except OutputError as error:
        return [Change(dataset, "damaged", note=error.message.removeprefix(f"{dataset}: "))]


def _right(state: str) -> tuple[str, ...]:
    return (state,) if state in _SHOWN else ()


def _project(store: Store, status: Status, dry_run: bool) -> list[Change]:
    """Do what ``messages.project`` does, but only what is needed, and tell.

    It removes nothing that it has not seen, for a downloader may be handing the dataset on, without a status.
    """
    changes: list[Change] = []
    while True:
        there = _messages(store, status.dataset)
        state = _state(status, there)
        if state in _SHOWN and state not in there:
            # The archive acknowledges the list of files that the downloader left: a message that moves keeps its body.
            text = there.get("synced", _text(status)) if state == "archived" else _text(status)
            changes += _create(store, status.dataset, state, text, dry_run)
            there[state] = text
        others = [other for other in there if other != state]
        later = _later(store, status)
        if later is None:
            kept = {_text(status), *_saved(status), *(there[s] for s in _right(state))}
            unsaved = [other for other in others if there[other] and there[other] not in kept]
            gone = [other for other in others if other not in unsaved]
            if gone and not dry_run:
                store.delete(*(f"messages/{_SHOWN[other]}/{status.dataset}" for other in gone))
            changes += [Change(status.dataset, "removed", other, f"it is {state}") for other in gone]
            later = _later(store, status)
            if later is None:
                note = f"it is {state}, but this text is kept nowhere else"
                return [*changes, *(Change(status.dataset, "unsaved", other, note) for other in unsaved)]
        status = later  # it went on meanwhile, and what was done may be wrong now


def _create(store: Store, dataset: str, state: str, text: str, dry_run: bool) -> list[Change]:
    if not dry_run:
        try:
            store.put(f"messages/{_SHOWN[state]}/{dataset}", text.encode(), Create())
        except ConflictError:
            return []  # somebody else has just made it
    return [Change(dataset, "created", state)]


def _later(store: Store, status: Status) -> Status | None:
    """Return the status if it has moved on since."""
    later = _read(store, status.dataset)
    return later if later is not None and later.order > status.order else None


def _text(status: Status) -> str:
    """Return what the message of a dataset that was handed on says."""
    if status.state not in _HANDED_ON:
        return ""
    earlier = [entry["message"] for entry in _history(status, status.attempt) if entry.get("message")]
    return str(status.message or (earlier or [""])[-1])


def _saved(status: Status) -> set[str]:
    """Return the texts of messages that the history keeps."""
    entries = _history(status)
    saved = {str(entry.get("message", "")) for entry in entries}
    for kept in (entry.get("messages") for entry in entries):
        saved |= {str(text) for text in kept.values()} if isinstance(kept, dict) else set()
    return saved


def _history(status: Status, attempt: int = 0) -> list[dict[str, Any]]:
    entries = [entry for entry in status.history if isinstance(entry, dict)]
    return [entry for entry in entries if not attempt or entry.get("attempt") == attempt]


# ---- for machines


def survey_json(found: Survey) -> str:
    """Lay a survey out for machines."""
    return json.dumps(
        {
            "batch": found.batch,
            "at": found.at,
            "datasets": found.datasets,
            "counts": found.counts,
            "open": found.open,
            "failed": found.failed,
            "done": found.datasets - found.open - found.failed,
            "errors": [
                {
                    "exit_code": cause.exit_code,
                    "name": cause.name,
                    "reason": cause.reason,
                    "datasets": cause.datasets,
                    "examples": list(cause.examples),
                }
                for cause in found.causes
            ],
            "errors_read": found.errors_read,
            "stale": [
                {
                    "dataset": standing.dataset,
                    "attempt": standing.status.attempt,
                    "run": standing.status.run,
                    "by": standing.status.by,
                    "at": standing.status.at,
                    "silent_s": _seconds(standing.silence),
                }
                for standing in found.stale
                if standing.status
            ],
            "processing_read": found.processing_read,
            "unrecorded": found.unrecorded,
            "damaged": found.damaged,
            "unread": found.unread,
            "exit_status": found.exit_status,
        },
        indent=1,
    )


def standing_json(store: Store, standing: Standing) -> str:
    """Lay the standing of one dataset out for machines."""
    status = standing.status or Status(standing.dataset, 0, standing.state)
    record = status.to_json()
    return json.dumps(
        {
            "batch": store.url(),
            "dataset": standing.dataset,
            "state": standing.state,
            **{key: record[key] for key in ("attempt", "retry", "reason", "exit_code")},
            "name": _code_name(status.exit_code) if type(status.exit_code) is int else "",
            **{key: record[key] for key in ("run", "job", "by", "at", "beat")},
            "silent_s": _seconds(standing.silence),
            "stale": standing.stale,
            "location": _location(store, standing.dataset),
            "recorded": standing.status is not None,
            "folders": [_SHOWN[state] for state in standing.folders],
            "message": record["message"],
            "history": record["history"],
            "exit_status": standing.exit_status,
        },
        indent=1,
    )


def _seconds(silence: float | None) -> float | None:
    return None if silence is None or math.isinf(silence) else round(silence, 1)


def _location(store: Store, dataset: str) -> str:
    return store.url(Dataset.parse(dataset).prefix)


# ---- for people


def survey_text(found: Survey, width: int = 80) -> str:
    """Lay a survey out for people, with colours that ``click.echo`` takes out where they do not belong."""
    return "\n".join(
        [
            found.batch,
            "",
            *_table(found),
            *_causes_text(found, width),
            *_stale_text(found),
            *_names_text("Shown in messages/, but without a status record", found.unrecorded, width),
            *_names_text("With a damaged status record", found.damaged, width),
            "",
            *_wrapped(_verdict(found), width),
        ]
    )


def _table(found: Survey) -> list[str]:
    remarks = {"processing": f"{len(found.stale):,} stale" if found.stale else ""}
    rows = list(found.counts.items())
    rows += [(what, count) for what, count in (("damaged", len(found.damaged)), ("not read", found.unread)) if count]
    digits = max(len(f"{found.datasets:,}"), 8)
    lines = []
    for what, count in rows:
        remark = remarks.get(what, "")
        colour = _colour(what) if count else ""
        line = f"  {what:<10}  {count:>{digits},}  {_share(count, found.datasets):>7}"
        lines.append(_styled(line, colour) + (_styled(f"  {remark}", "yellow") if remark else ""))
    lines.append(f"  {'':<10}  {'-' * digits}")
    lines.append(f"  {'datasets':<10}  {found.datasets:>{digits},}")
    return lines


def _colour(what: str) -> str:
    if what in ("damaged", *_FAILED):
        return "red"
    return {"processed": "green", "synced": "green", "archived": "green", "processing": "cyan"}.get(what, "")


def _styled(text: str, colour: str) -> str:
    return click.style(text, fg=colour) if colour else text


def _share(count: int, of: int) -> str:
    """Write a share; 100.0 % is all, and 0.0 % does not appear."""
    if not count:
        return ""
    tenths = 1000 * count // of
    return f"{tenths / 10:.1f} %" if tenths else "<0.1 %"


def _causes_text(found: Survey, width: int) -> list[str]:
    if not found.causes:
        return []
    errors = found.counts["error"]
    seen = "" if found.errors_read >= errors else f" (of {found.errors_read:,} of {errors:,}, spread over the names)"
    lines = ["", f"Errors by cause{seen}"]
    digits = len(f"{found.causes[0].datasets:,}")
    for cause in found.causes[:_LINES]:
        code = "no exit status" if cause.exit_code is None else f"exit {cause.exit_code} {cause.name}".rstrip()
        lines.append(_styled(f"  {cause.datasets:>{digits},}  {code}", "red"))
        indent = " " * (digits + 4)
        lines += _wrapped(cause.reason or "no reason given", width, indent)
        more = " ..." if cause.datasets > len(cause.examples) else ""
        lines += _wrapped(" ".join(cause.examples) + more, width, indent)
    return [*lines, *_more(found.causes, "causes")]


def _stale_text(found: Survey) -> list[str]:
    if not found.stale:
        return []
    seen = found.counts["processing"]
    part = "" if found.processing_read >= seen else f" (of {found.processing_read:,} of {seen:,} runs)"
    lines = ["", f"Stale: processing, but the run is dead{part}"]
    for standing in found.stale[:_LINES]:
        by = printable(str(standing.status.by)) if standing.status else ""
        attempt = standing.status.attempt if standing.status else 0
        lines.append(_styled(f"  {standing.dataset}  attempt {attempt}  {by}  {_silence_text(standing)}", "yellow"))
    return [*lines, *_more(found.stale, "runs")]


def _silence_text(standing: Standing) -> str:
    if standing.silence is None:
        return "its lock is free" if standing.stale else "its lock is held"
    return "no sign of life" if math.isinf(standing.silence) else f"silent for {human_time(max(0.0, standing.silence))}"


def _names_text(what: str, names: Sequence[str], width: int) -> list[str]:
    if not names:
        return []
    return ["", f"{what}: {len(names):,}", *_wrapped(" ".join(names[:_LINES]), width, "  "), *_more(names, "datasets")]


def _more(things: Sequence[object], what: str) -> list[str]:
    return [f"  ... and {len(things) - _LINES:,} more {what} (see --json)"] if len(things) > _LINES else []


def _verdict(found: Survey) -> str:
    if found.exit_status == PROCESSED:
        return "All are processed."
    parts = [f"{found.open:,} still open"] if found.open else ["Nothing is open any more"]
    if found.failed:
        parts.append(f"{found.failed:,} failed")
    if found.stale:
        parts.append(f"{len(found.stale):,} stale: run them again")
    if found.unread:
        parts.append(f"{found.unread:,} not read: see --limit, or repair the messages")
    return f"{'; '.join(parts)}."


def standing_text(store: Store, standing: Standing, width: int = 80, *, cut: bool = True) -> str:
    """Lay the standing of one dataset out for people; ``cut`` the lines of its history to the width."""
    status = standing.status or Status(standing.dataset, 0, standing.state)
    colour = "yellow" if standing.stale else _colour(standing.state)
    code = f"exit {status.exit_code} {_code_name(status.exit_code)}".rstrip() if status.exit_code else ""
    rows = [
        ("state", standing.state + (", stale: the run is dead" if standing.stale else "")),
        ("attempt", f"{status.attempt}" + (f", start {status.retry}" if status.retry > 1 else "")),
        ("reason", ": ".join(filter(None, [code, printable(str(status.reason))]))),
        ("run", printable(str(status.run))),
        ("job", printable(str(status.job))),
        ("by", printable(str(status.by))),
        ("at", f"{_time(status.at)} UTC" if status.at else ""),
        ("heartbeat", _silence_text(standing) if standing.state == "processing" else ""),
        ("location", _location(store, standing.dataset)),
        ("messages", ", ".join(_SHOWN[state] for state in standing.folders) or "none"),
    ]
    lines = [f"{standing.dataset} in {store.url()}", ""]
    if standing.status is None:
        lines += ["  It has a message, but no status record.", ""]
        rows = [row for row in rows if row[0] in ("state", "location", "messages")]
    for what, text in rows:
        if text:
            first, *rest = _wrapped(text, width, " " * 13)
            lines += [f"  {what:<11}{_styled(first.strip(), colour if what == 'state' else '')}", *rest]
    if status.history:
        lines += ["", "History (UTC)", *(f"  {_entry(entry, width - 2 if cut else 0)}" for entry in _history(status))]
    return "\n".join(lines)


def _entry(entry: dict[str, Any], width: int) -> str:
    code = entry.get("exit_code")
    said = [f"exit {code}" if code else "", str(entry.get("by") or ""), str(entry.get("reason") or "")]
    state = str(entry.get("state"))
    start = f" start {entry['retry']}" if entry.get("retry", 1) != 1 else ""
    line = f"{_time(entry.get('at'))}  {entry.get('attempt')}{start}  {state:<10}  {'  '.join(filter(None, said))}"
    line = printable(line)
    return f"{line[: width - 3].rstrip()}..." if width and len(line) > width else line


def _time(text: object) -> str:
    """Write a time of a status for people, to the second."""
    return re.sub(r"T(\d\d:\d\d:\d\d).*", r" \1", printable(str(text or "")))


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
