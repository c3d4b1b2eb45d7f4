"""What a batch directory says of its datasets: how they stand, why they failed, and whether its folders are right.

The folders of ``messages/`` are listed, a thousand datasets a request on S3; status records are read only where the
folders do not tell: of failures (why), of runs (whether they live) and where the folders disagree.  Everything here may
be used while the batch is running.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from caldp import messages
from caldp.causes import normalised
from caldp.dataset import Dataset
from caldp.errors import EXIT_CODES, OutputError, UsageError
from caldp.messages import STATES, Claim, Status
from caldp.s3 import Threads
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
FOLDERS = {state: folder for state, (_, folder) in STATES.items() if folder}

#: States in which somebody may still work on a dataset, and in which nobody will.
_OPEN, LOST = ("placed", "submitted", "processing"), ("error", "cancelled")

#: Messages that the downloader and the archive write, with text in them.
_HANDED_ON = ("synced", "archived")

#: Requests in flight; the S3 client has as many connections and a few more.
_THREADS = 16

#: Datasets that are handed to the threads at once.
_CHUNK = 1000


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
        return OPEN if self.state in _OPEN else FAILED if self.state in ("", *LOST) else PROCESSED


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
        return sum(self.counts[state] for state in LOST) + len(self.damaged)

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
        place = f"messages/{FOLDERS[self.state]}/{self.dataset}" if self.state else self.dataset
        return f"{self.action}  {place}" + (f"  ({self.note})" if self.note else "")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "dataset": self.dataset,
            "action": self.action,
            "folder": FOLDERS.get(self.state),
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
    chosen = {kind: spread(names, limit) for kind, names in kinds.items()}
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
    for standing in in_threads(lambda name: standing_of(store, name, shown.get(name, ()), patience), look_at):
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
    standing = standing_of(store, name, tuple(_messages(store, name)), patience)
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
    listed = {state: f"messages/{folder}" for state, folder in FOLDERS.items() if folder in there}
    if "status" in there:
        listed[""] = "messages/status"
    shown: dict[str, tuple[str, ...]] = {}
    recorded: set[str] = set()
    for state, names in zip(listed, in_threads(store.names, listed.values()), strict=True):
        if not state:
            recorded = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        for name in names if state else ():
            shown[name] = (*shown.get(name, ()), state)
    if not recorded and not shown:
        raise UsageError(
            f"{store.url()} is no batch: no dataset has a message in it", remedy="give the output of the runs"
        )
    return recorded, shown


def standing_of(store: Store, dataset: str, folders: tuple[str, ...], patience: float) -> Standing | None:
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
                return standing_of(store, dataset, folders, patience)
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
    for state, folder in FOLDERS.items():
        with contextlib.suppress(IsADirectoryError):  # somebody's folder is no message
            if (blob := store.get(f"messages/{folder}/{dataset}")) is not None:
                found[state] = blob.data.decode("utf-8", errors="replace")
    return found


def spread(names: Sequence[str], limit: int) -> Sequence[str]:
    """Choose some of many, from everywhere: neighbours have much in common."""
    if not limit or len(names) <= limit:
        return names
    return [names[number * len(names) // limit] for number in range(limit)]


def in_threads(act: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Apply a function that waits, in order, many at a time; whatever stops it stops what has not begun.

    Ctrl-C does not wait for a server that is silent.
    """
    todo = list(items)
    pool = Threads(_THREADS)
    try:
        for start in range(0, len(todo), _CHUNK):
            yield from pool.map(act, todo[start : start + _CHUNK])
    except KeyboardInterrupt:
        pool.leave()
        raise
    except BaseException:
        pool.shutdown()
        raise
    pool.shutdown()


# ---- causes


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
            Cause(code, code_name(code), reason, count, examples)
            for (code, _), (reason, count, examples) in self._found.items()
        ]
        return sorted(causes, key=lambda cause: (-cause.datasets, cause.exit_code or 0, cause.reason))


def code_name(code: int | None) -> str:
    """Return what the table of exit statuses calls one; empty if it is not in there."""
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
        for dataset, known in zip(names, in_threads(partial(_is_known, store), names), strict=True):
            if not known:
                raise _unknown(store, dataset)
        yield from in_threads(lambda name: _mend(store, name, None, dry_run), names)
    else:
        recorded, shown = _list(store)
        everybody = sorted(recorded | shown.keys())
        yield from in_threads(lambda name: _mend(store, name, shown.get(name, ()), dry_run), everybody)


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
    return (state,) if state in FOLDERS else ()


def _project(store: Store, status: Status, dry_run: bool) -> list[Change]:
    """Do what ``messages.project`` does, but only what is needed, and tell.

    It removes nothing that it has not seen, for a downloader may be handing the dataset on, without a status.
    """
    changes: list[Change] = []
    while True:
        there = _messages(store, status.dataset)
        state = _state(status, there)
        if state in FOLDERS and state not in there:
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
                store.delete(*(f"messages/{FOLDERS[other]}/{status.dataset}" for other in gone))
            changes += [Change(status.dataset, "removed", other, f"it is {state}") for other in gone]
            later = _later(store, status)
            if later is None:
                note = f"it is {state}, but this text is kept nowhere else"
                return [*changes, *(Change(status.dataset, "unsaved", other, note) for other in unsaved)]
        status = later  # it went on meanwhile, and what was done may be wrong now


def _create(store: Store, dataset: str, state: str, text: str, dry_run: bool) -> list[Change]:
    if not dry_run:
        try:
            store.put(f"messages/{FOLDERS[state]}/{dataset}", text.encode(), Create())
        except ConflictError:
            return []  # somebody else has just made it
    return [Change(dataset, "created", state)]


def _later(store: Store, status: Status) -> Status | None:
    """Return the status if it has moved on since."""
    later = _read(store, status.dataset)
    return later if later is not None and later.order > status.order else None


def _text(status: Status) -> str:
    """Return what the message of a dataset that was handed on says."""
    return str(status.message) if status.state in _HANDED_ON else ""


def _saved(status: Status) -> set[str]:
    """Return the texts of messages that the history keeps."""
    saved: set[str] = set()
    for kept in (entry.get("messages") for entry in history(status)):
        saved |= {str(text) for text in kept.values()} if isinstance(kept, dict) else set()
    return saved


def history(status: Status) -> list[dict[str, Any]]:
    """Return the entries of the history, without what is none."""
    return [entry for entry in status.history if isinstance(entry, dict)]
