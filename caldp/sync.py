"""Sync: bring the processed datasets of a batch home, each one whole, and say in the batch that they are there.

A dataset is downloaded into a hidden folder beside its place, every file is compared with the manifest, and the folder
is exchanged for what was there in one step.  Then the state becomes ``synced``: here first, then in the batch.  So a
downloader that is killed between the two is seen by the next one, which finds the files here and goes on, while a batch
never says of a dataset that it is somewhere where it is not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from caldp import messages
from caldp.batch import in_threads, open_batch
from caldp.dataset import Dataset
from caldp.errors import (
    BusyError,
    CaldpError,
    OutputError,
    S3DownloadError,
    S3DownloadRefusedError,
    Stop,
    UsageError,
    describe,
)
from caldp.local_store import LocalStore
from caldp.manifest import MANIFEST, read_manifest
from caldp.messages import STATES, Status
from caldp.publish import REPORT
from caldp.reporter import human_time
from caldp.store import Copy, Entry, NoObjectError, Progress, Store, parse_uri
from caldp.sync_watch import Result, Summary, Watch
from caldp.telemetry import LOG_FILES

#: Datasets that are downloaded at a time; the files of each are downloaded at the same time, too.
JOBS = 4

#: Seconds between two looks for newly processed datasets.
INTERVAL = 30.0

#: Seconds that one waits for another process which has the dataset.
PATIENCE = 600.0

#: Times that a dataset is looked at again because it changed while it was read.
_LOOKS = 3

#: Failures of anything but the data, one after the other, after which the rest is not tried.
_IN_A_ROW = 20

#: Seconds after which a watcher tries a dataset again that failed, at first and at most.
_AGAIN_AFTER, _AGAIN_AT_MOST = 60.0, 3600.0

#: Seconds between two looks at what the archive has acknowledged.
_ACKNOWLEDGED_EVERY = 600.0

#: Seconds that an interrupted download may take to notice.
_GRACE = 10.0

_FOLDERS = {state: f"messages/{folder}" for state, (_, folder) in STATES.items()}


class _Halted(Exception):  # noqa: N818 - no error
    """The user wants no more."""


class _UnlikeManifestError(Exception):
    """The objects of a dataset are not those of its manifest."""


@dataclass(frozen=True)
class Ask:
    """What one command asks for.

    Attributes
    ----------
    names : tuple of str
        Datasets; none for all that are processed.
    again : bool
        Also those that are synced or archived already.
    jobs : int
        Datasets at a time.
    follow : bool
        Go on looking for newly processed ones.
    interval : float
        Seconds between two looks.
    patience : float
        Seconds to wait for another process which has a dataset.
    """

    names: tuple[str, ...] = ()
    again: bool = False
    jobs: int = JOBS
    follow: bool = False
    interval: float = INTERVAL
    patience: float = PATIENCE


# ---- what there is of one dataset


@dataclass(frozen=True)
class File:
    """A file of a dataset, as its manifest or, for logs and the report, the listing has it.

    Attributes
    ----------
    name : str
        Within the dataset's folder.
    size : int
        Bytes, or -1 where only the listing says it.
    sha256 : str
        Empty where the manifest does not say it.
    etag, version : str
        What the manifest says of the object.
    """

    name: str
    size: int = -1
    sha256: str = ""
    etag: str = ""
    version: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be downloaded.

    Attributes
    ----------
    dataset : Dataset
        Which.
    attempt : int
        Whose products they are.
    run : str
        Of which run.
    manifest : bytes
        As it is there.
    files : tuple of File
        All but the manifest, in the order in which they are named to the archive.
    listing : mapping
        Name -> object, of those that are there now.
    """

    dataset: Dataset
    attempt: int
    run: str
    manifest: bytes
    files: tuple[File, ...]
    listing: Mapping[str, Entry]

    @classmethod
    def make(cls, source: Store, dataset: Dataset, status: Status, manifest: bytes | None) -> Plan:
        """Read the manifest and list the objects; _UnlikeManifestError if they make no sense together."""
        where = source.url(f"{dataset.prefix}/{MANIFEST}")
        if manifest is None:
            raise _UnlikeManifestError(f"{status.state}, but there is no {where}")
        try:
            record = json.loads(manifest)
            attempt, run = int(record["attempt"]), str(record["run"])
            named = [_entry(entry) for entry in (*record["products"], *record["previews"])]
            if record["format"] != 1 or record["dataset"] != dataset.name or len({f.name for f in named}) < len(named):
                raise ValueError("another format or dataset, or a file twice")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _UnlikeManifestError(f"{where} is not its manifest ({type(error).__name__}: {error})") from error
        if attempt != status.attempt:
            raise _UnlikeManifestError(f"{where} is of attempt {attempt}, its status of attempt {status.attempt}")
        listing = {e.key.removeprefix(f"{dataset.prefix}/"): e for e in source.walk(dataset.prefix)}
        known = {MANIFEST, *(file.name for file in named)}
        others = [File(name) for name in sorted(listing) if name not in known and _is_ours(name)]
        return cls(dataset, attempt, run, manifest, (*named, *others), listing)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The files that the manifest lists, as it does."""
        return [asdict(file) for file in self.files if file.sha256]

    def copies(self, files: Iterable[File], folder: Path, *, newest: bool) -> list[Copy]:
        """Say what to download of ``files``, and to where.

        An object that was replaced after the manifest was written is fetched as it was, where the bucket keeps
        versions; but a batch that was copied from another bucket has tags and versions of its own (``newest``).
        """
        copies = []
        for file in files:
            key, path, there = f"{self.dataset.prefix}/{file.name}", folder / file.name, self.listing.get(file.name)
            if newest:
                copies.append(Copy(key, path))
            elif file.version and (there is None or there.etag != file.etag):
                copies.append(Copy(key, path, file.version, file.size, file.etag))
            else:
                copies.append(Copy(key, path, "", there.size, there.etag) if there else Copy(key, path))
        return copies


def _entry(entry: Mapping[str, Any]) -> File:
    name, size, sha256 = entry["name"], entry["size"], entry["sha256"]
    if not isinstance(name, str) or not _is_safe(name) or name in (MANIFEST, REPORT):
        raise ValueError(f"{str(name)[:80]!r} is no name of a product")
    if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"size or sha256 of {name}")
    return File(name, size, sha256, str(entry.get("etag", "")), str(entry.get("version", "")))


def _is_safe(name: str) -> bool:
    """Whether a name that somebody else wrote is that of a plain file in the dataset's folder, on one line."""
    path = PurePosixPath(name)
    plain = name.isprintable() and name == path.as_posix() and not path.is_absolute()
    return plain and bool(path.parts) and not any(part.startswith(".") for part in path.parts)


def _is_ours(name: str) -> bool:
    """Whether an object that no manifest lists belongs to the dataset nevertheless."""
    return name == REPORT or (name.startswith("logs/") and _is_safe(name))


# ---- one dataset


class Downloader:
    """Brings datasets from a batch to a local folder; from several threads at once.

    Parameters
    ----------
    source : Store
        The batch.
    local : LocalStore
        The folder.
    watch : Watch
        Told of the progress.
    again : bool
        Also those that are synced or archived already.
    """

    def __init__(self, source: Store, local: LocalStore, watch: Watch, *, again: bool = False) -> None:
        self._source = source
        self._local = local
        self._watch = watch
        self._again = again
        self._halted = threading.Event()

    def halt(self) -> None:
        """Let downloads end where they are."""
        self._halted.set()

    def bring(self, name: str, *, named: bool = False) -> Result:
        """Bring one dataset home, and say in the batch that it is.

        Parameters
        ----------
        name : str
            A valid name of a dataset.
        named : bool
            The user has named it, no listing.

        Returns
        -------
        Result
            Failures are reported in it, not raised.
        """
        dataset, result, started = Dataset.parse(name), Result(name), time.monotonic()
        result.location = self._local.url(dataset.prefix)
        try:
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._local.own(name))
                except BusyError:
                    result.state = "busy"
                    return result
                self._bring(dataset, result, named)
        except _UnlikeManifestError as error:
            result.unlike = True
            remedy = "it stays as it is; calibrate it again"
            result.fail(S3DownloadError(f"{name}: {error}", remedy=remedy))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this dataset, the others go on
            result.fail(describe(error, name))
        finally:
            result.seconds = time.monotonic() - started
            if self._halted.is_set() and result.state == "failed":
                result.state = "halted"  # what the others raise depends on who notices first
        return result

    def _bring(self, dataset: Dataset, result: Result, named: bool) -> None:
        tried: tuple[Plan, _UnlikeManifestError] | None = None
        for look in range(_LOOKS):
            self._check()
            status, manifest = self._look(dataset, named)
            result.attempt = status.attempt
            if status.state != "processed" and not (status.done and self._again):
                result.reason = str(status).partition(": ")[2]
                if status.done and not named:  # who moved it was killed before it could take the old name away
                    messages.project(self._source, status)
                return
            plan = None
            try:
                plan = Plan.make(self._source, dataset, status, manifest)
                if tried and tried[0] == plan:
                    raise tried[1]
                self._refuse_older(plan, status)
                if not self._is_here(plan):
                    self._download(plan, status, result)
                else:
                    result.kept = len(plan.files) + 1
                    self._local.discard(dataset.prefix)
            except _UnlikeManifestError as error:
                if look + 1 == _LOOKS or (tried and tried[0] == plan):
                    raise
                tried = (plan, error) if plan else None  # perhaps it is being replaced at this moment
                continue
            self._hand_over(plan, status, result)
            return

    def _look(self, dataset: Dataset, named: bool) -> tuple[Status, bytes | None]:
        """Read the status and the manifest."""
        try:
            status = messages.read(self._source, dataset.name)
        except OutputError as error:  # it is not our disk
            raise S3DownloadError(error.message, remedy=error.remedy) from error
        blob = self._source.get(f"{dataset.prefix}/{MANIFEST}")
        if status is not None:
            return status, blob.data if blob else None
        if blob is None and named:
            where = self._source.url()
            raise UsageError(f"{dataset}: there is no such dataset in {where}", remedy="check the name and the batch")
        # The messages may have been lost while the data were not.
        there = read_manifest(self._source, dataset.prefix)
        if there is None:
            raise _UnlikeManifestError("it has neither a status nor a manifest")
        return there.status(), blob.data if blob else None

    def _refuse_older(self, plan: Plan, status: Status) -> None:
        """Keep a later attempt that is here, and what another batch left: raise OutputError."""
        name, target = plan.dataset.name, self._path(plan)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise OutputError(f"{target} is not a plain directory", remedy="move it out of the way")
        mine, there = messages.read(self._local, name), read_manifest(self._local, plan.dataset.prefix)
        here = [(mine.attempt, mine.run)] if mine else []
        here += [(there.attempt, str(there.record["run"]))] if there else []
        for attempt, run in here:
            if attempt > plan.attempt or (attempt == plan.attempt and run and run != status.run):
                raise OutputError(
                    f"{name}: {self._local.url()} has attempt {attempt} of it by another run than the batch, which has "
                    f"attempt {plan.attempt}; nothing was changed",
                    remedy="give each batch a directory of its own",
                )

    def _path(self, plan: Plan) -> Path:
        return Path(self._local.url(plan.dataset.prefix))

    def _is_here(self, plan: Plan) -> bool:
        """Whether a downloader that was killed, or another one, has brought just this."""
        prefix = plan.dataset.prefix
        there = self._local.get(f"{prefix}/{MANIFEST}")
        if there is None or there.data != plan.manifest:
            return False
        others = (self._path(plan) / file.name for file in plan.files if not file.sha256)
        return all(path.is_file() for path in others) and not self._local.damaged(prefix, plan.entries)

    def _download(self, plan: Plan, status: Status, result: Result) -> None:
        """Download what is not here, and show the folder when it is whole."""
        prefix = plan.dataset.prefix
        staging = self._staging(prefix)
        _remove_others(staging, {file.name for file in plan.files if file.sha256})
        # As a run leaves it, with both folders even if one is empty.
        for folder in {staging / "logs", staging / "previews", *((staging / file.name).parent for file in plan.files)}:
            folder.mkdir(parents=True, exist_ok=True)
        todo = [file for file in plan.files if not self._have(file, staging, self._path(plan))]
        self._watch.begin(plan.dataset.name, sum(max(file.size, 0) for file in todo))
        self._fetch(plan, todo, staging)
        result.files, result.kept = len(todo) + 1, len(plan.files) - len(todo)
        result.bytes = sum((staging / file.name).stat().st_size for file in todo) + len(plan.manifest)
        self._make_room(status)
        self._local.publish(staging, prefix, lambda: self._replaceable(prefix), lambda _: (MANIFEST, plan.manifest))
        target = self._path(plan)
        for path in (target / MANIFEST, target / "logs", target / "previews", target, target.parent):
            _flush(path)

    def _staging(self, prefix: str) -> Path:
        """Return the hidden folder where the dataset is put together, with what a killed downloader left in it.

        It has the same name each time; two cannot be at work in it, for the dataset is ours.
        """
        try:
            return self._local.staging(prefix, "sync", self._local.root)
        except FileExistsError as error:
            return Path(os.fsdecode(error.filename))

    def _have(self, file: File, staging: Path, target: Path) -> bool:
        """Whether a file is here already: in what was left by a killed downloader, or in the folder that is shown."""
        if not file.sha256:
            return False
        self._check()
        path = staging / file.name
        if _is_intact(path, file):
            return True
        path.unlink(missing_ok=True)
        if not (target / file.name).is_symlink() and _is_intact(target / file.name, file):
            with contextlib.suppress(OSError):  # a file system without links
                os.link(target / file.name, path)
                return True
        return False

    def _fetch(self, plan: Plan, files: Sequence[File], folder: Path) -> None:
        """Download files and compare them with the manifest; those that differ are fetched once more."""
        todo, absent = list(files), ""
        for newest in (False, True):
            if not todo:
                return
            try:
                self._source.download(plan.copies(todo, folder, newest=newest), self._progress(plan.dataset.name))
                absent = ""
            except NoObjectError as error:
                absent = str(error)
            except S3DownloadRefusedError:  # no such version, no permission to read versions, or replaced just now
                if newest:
                    raise
            self._check()
            with ThreadPoolExecutor(4) as pool:  # hashing lets go of the interpreter
                sound = list(pool.map(lambda file: _is_intact(folder / file.name, file), todo))
            todo = [file for file, good in zip(todo, sound, strict=True) if not good]
        if todo:
            for file in todo:
                (folder / file.name).unlink(missing_ok=True)
            key = absent or f"{plan.dataset.prefix}/{todo[0].name}"
            why = "is not there" if absent else "is not what its manifest says (size or sha256)"
            more = f", and {len(todo) - 1} more files" if len(todo) > 1 and not absent else ""
            raise _UnlikeManifestError(f"{self._source.url(key)} {why}{more}")

    def _progress(self, name: str) -> Progress:
        def progress(count: int) -> None:
            self._check()
            self._watch.moved(name, count)

        return progress

    def _check(self) -> None:
        if self._halted.is_set():
            raise _Halted

    def _make_room(self, status: Status) -> None:
        """Take back what is said here of the older attempt whose files are about to go."""
        mine = messages.read(self._local, status.dataset)
        if mine is not None and mine.attempt < status.attempt:
            self._local.delete(*(f"{_FOLDERS[state]}/{status.dataset}" for state in ("synced", "archived")))
            messages.mirror(self._local, replace(status, state="processing"))

    def _replaceable(self, prefix: str) -> set[str]:
        """Name the files of an older attempt, which may go; others are somebody else's, and stay."""
        there = read_manifest(self._local, prefix)
        listed = {str(entry["name"]) for entry in there.files()} if there else set()
        return {MANIFEST, REPORT, *(f"logs/{name}" for name in LOG_FILES), *listed}

    def _hand_over(self, plan: Plan, status: Status, result: Result) -> None:
        """Say here and in the batch that the dataset is here."""
        target = self._path(plan)
        body = "".join(f"{target / name}\n" for name in (*(file.name for file in plan.files), MANIFEST))
        if status.state != "processed":
            messages.mirror(self._local, replace(status, message=body))
            result.state = "copied"
            return
        by = f"{os.uname().nodename}:{os.getpid()}"
        synced = replace(status, state="synced", message=body, at=messages.now(), by=by, beat="")
        messages.mirror(self._local, synced)
        written, _ = messages.advance(self._source, synced)
        if written.order < synced.order or written.attempt > synced.attempt or written.retry > synced.retry:
            result.reason = f"copied, but meanwhile it is {str(written).partition(': ')[2]}"
            return
        # The same record on both sides; only the paths are those of each side, should another one have been faster.
        messages.mirror(self._local, replace(written, message=body))
        result.state = "synced"
        if written.by != by:
            result.reason = f"so has {written.by}, which said so first"


def _is_intact(path: Path, file: File) -> bool:
    """Whether a file is here and, if the manifest says how it must be, is so; then it is safe on the disk, too."""
    try:
        with path.open("rb") as stream:
            if file.sha256 and os.fstat(stream.fileno()).st_size != file.size:
                return False
            if file.sha256 and hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                return False
            _flush(stream.fileno())
            return True
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _flush(what: Path | int) -> None:
    """Have the disk keep it: the batch may be emptied once it says that a dataset is here."""
    descriptor = what if isinstance(what, int) else os.open(what, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems, for folders
            raise
    finally:
        if not isinstance(what, int):
            os.close(descriptor)


def _remove_others(staging: Path, ours: set[str]) -> None:
    """Remove what a killed downloader left unfinished, and what belonged to another attempt."""
    for folder, folders, files in os.walk(staging, topdown=False):
        for path in (Path(folder) / name for name in (*files, *folders)):
            if path.is_symlink() or (path.is_file() and path.relative_to(staging).as_posix() not in ours):
                path.unlink()
        if Path(folder) != staging:
            with contextlib.suppress(OSError):  # what is in it is ours
                Path(folder).rmdir()


# ---- many datasets


def sync(
    source: Store, local: LocalStore, ask: Ask, watch: Watch, shield: Callable[[], None] = lambda: None
) -> Summary:
    """Bring the processed datasets of a batch home.

    Parameters
    ----------
    source : Store
        The batch.
    local : LocalStore
        Where they go.
    ask : Ask
        Which, and how.
    watch : Watch
        Told of the progress.
    shield : callable
        Called before the end, to let no signal disturb it.

    Returns
    -------
    Summary
        With the exit status; failures are reported in it, not raised.
    """
    return _Sync(source, local, ask, watch).run(shield)


class _Sync:
    def __init__(self, source: Store, local: LocalStore, ask: Ask, watch: Watch) -> None:
        self._source = source
        self._local = local
        self._ask = ask
        self._watch = watch
        self._summary = Summary(source.uri, local.url())
        self._downloader = Downloader(source, local, watch, again=ask.again)
        self._pool = ThreadPoolExecutor(ask.jobs, thread_name_prefix="sync")
        self._flight: set[Future[Result]] = set()
        self._failures = 0
        self._later: dict[str, tuple[float, float]] = {}  # dataset -> when to try again, and how long that was
        self._said: dict[str, str] = {}
        self._acknowledged_at = 0.0

    def run(self, shield: Callable[[], None]) -> Summary:
        summary, started = self._summary, time.monotonic()
        self._watch.start(summary)
        try:
            self._passes()
        except BaseException as error:  # noqa: BLE001 - reported, with the exit status it deserves
            if not (self._ask.follow and isinstance(error, Stop)):  # that is how a watcher ends
                summary.ended = describe(error, summary.source)
        finally:
            shield()
            self._downloader.halt()
            self._pool.shutdown(wait=False, cancel_futures=True)
            done, going = wait(self._flight, _GRACE)
            for future in done:
                if not future.cancelled():
                    self._settle(future.result())
            summary.stuck = bool(going)
            summary.seconds = time.monotonic() - started
            self._watch.finish(summary)
        return summary

    def _passes(self) -> None:
        first = True
        while True:
            try:
                self._acknowledge()
                names = self._names(first)
                self._pass(names, named=first and bool(self._ask.names))
            except S3DownloadError as error:
                if first or not error.retriable:
                    raise
                self._watch.say("WARNING", str(error))
            if not self._ask.follow:
                return
            first = False
            time.sleep(self._ask.interval)

    def _names(self, first: bool) -> list[str]:
        """List the datasets to bring: their names only, for there may be very many."""
        if first and self._ask.names:
            return list(self._ask.names)
        states = ("processed", *(("synced", "archived") if self._ask.again and first else ()))
        listed = [name for state in states for name in self._source.names(_FOLDERS[state])]
        if first and not listed and not self._ask.follow and not self._source.names("messages"):
            where = self._source.url()
            raise UsageError(f"{where} is no batch: there is nothing in its messages/", remedy="check its name")
        now, wanted = time.monotonic(), set(self._ask.names)
        names = []
        for name in listed:
            if not _is_dataset(name):
                self._say_once(name, "WARNING", f"{name[:80]!r} among the messages is not the name of a dataset")
            elif (not wanted or name in wanted) and self._later.get(name, (0.0,))[0] <= now:
                names.append(name)
        return names

    def _pass(self, names: list[str], named: bool) -> None:
        """Bring these datasets, a few at a time."""
        if names:
            self._watch.found(len(names))
        queue, waiting = deque(names), dict[str, float]()
        self._failures = 0
        while queue or self._flight or waiting:
            while queue and len(self._flight) < self._ask.jobs:
                self._flight.add(self._pool.submit(self._downloader.bring, queue.popleft(), named=named))
            done, _ = wait(self._flight, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                self._flight.remove(future)
                result = future.result()
                if result.state == "busy":
                    waiting.setdefault(result.dataset, time.monotonic())
                    if not self._still_waits(result, waiting):
                        self._settle(result)
                else:
                    waiting.pop(result.dataset, None)
                    self._settle(result)
            if not queue and not self._flight and waiting:
                time.sleep(0.5)
                queue.extend(waiting)
            if self._failures >= _IN_A_ROW:
                gave_up = f"the last {self._failures} datasets failed, and not for their data; the rest is not tried"
                if not self._ask.follow:
                    raise OutputError(gave_up, remedy="see the first failure")
                if queue:
                    self._watch.say("WARNING", gave_up)
                queue.clear()

    def _still_waits(self, result: Result, waiting: dict[str, float]) -> bool:
        """Whether to try a dataset again that another process has."""
        if self._ask.follow:
            waiting.pop(result.dataset)
            result.state, result.reason = "skipped", "another process has it"
            return False
        if time.monotonic() - waiting[result.dataset] < self._ask.patience:
            return True
        waited = human_time(time.monotonic() - waiting.pop(result.dataset))
        result.fail(BusyError(f"{result.dataset}: another process has it in {self._summary.target}, for {waited}"))
        return False

    def _settle(self, result: Result) -> None:
        """Count a dataset and tell of it."""
        name = result.dataset
        if result.state == "failed":
            self._failures += not result.unlike
            delay = min(2 * self._later[name][1], _AGAIN_AT_MOST) if name in self._later else _AGAIN_AFTER
            self._later[name] = time.monotonic() + delay, delay
        elif result.state in ("synced", "copied"):
            self._failures = 0
            self._later.pop(name, None)
        if result.state == "skipped" and self._ask.follow:
            if self._said.get(name) == result.reason:
                return
            self._said[name] = result.reason
        self._summary.add(result)
        self._watch.settled(result)

    def _say_once(self, name: str, level: str, text: str) -> None:
        if name not in self._said:
            self._said[name] = text
            self._watch.say(level, text)

    def _acknowledge(self) -> None:
        """Show here what the archive has acknowledged in the batch since."""
        now = time.monotonic()
        if self._acknowledged_at and now - self._acknowledged_at < _ACKNOWLEDGED_EVERY:
            return
        self._acknowledged_at = now
        ours = set(self._local.names(_FOLDERS["synced"]))
        if not ours:
            return
        for name in self._source.names(_FOLDERS["archived"]):
            if name in ours and _is_dataset(name):
                try:
                    self._mirror_archived(name)
                except OutputError as error:  # one damaged record is no reason to bring nothing
                    self._say_once(name, "WARNING", str(error))

    def _mirror_archived(self, name: str) -> None:
        theirs, mine = messages.read(self._source, name), messages.read(self._local, name)
        if theirs and mine and theirs.state == "archived" and theirs.order[:2] == mine.order[:2]:
            messages.mirror(self._local, replace(theirs, message=mine.message))


def _is_dataset(name: str) -> bool:
    try:
        return Dataset.parse(name).name == name
    except UsageError:
        return False


def acknowledge(store: Store, name: str) -> tuple[Status, bool]:
    """Say that the archive has ingested a dataset; what its message says stays.

    Parameters
    ----------
    store : Store
        The batch.
    name : str
        The dataset.

    Returns
    -------
    status : Status
        As it is now.
    changed : bool
        False if it was archived before.

    Raises
    ------
    UsageError
        If it is not synced.
    """
    status = messages.read(store, name)
    if status is not None and status.state == "archived":
        messages.project(store, status)  # who archived it may have been killed before it could
        return status, False
    if status is not None and status.state == "synced":
        body = store.get(f"{_FOLDERS['synced']}/{name}")
        message = body.data.decode("utf-8", errors="replace") if body else status.message
        status, changed = messages.advance(
            store, replace(status, state="archived", message=message, at="", by="", beat="")
        )
        if status.state == "archived":
            return status, changed
    why = f"it is not synced, but {str(status).partition(': ')[2]}" if status else f"there is none in {store.url()}"
    raise UsageError(f"{name}: {why}", remedy="only what a downloader has brought home can be archived")


def acknowledge_all(store: Store, names: Iterable[str]) -> Iterator[tuple[str, Status | CaldpError, bool]]:
    """Acknowledge many datasets, some at a time.

    Yields
    ------
    name : str
        In the order given.
    answer : Status or CaldpError
        What ``acknowledge`` returned or raised.
    changed : bool
        Whether it was moved now.
    """

    def one(name: str) -> tuple[str, Status | CaldpError, bool]:
        try:
            return name, *acknowledge(store, name)
        except (CaldpError, OSError) as error:
            return name, describe(error, name), False

    yield from in_threads(one, names)


# ---- what the command line says


def datasets(arguments: Iterable[str]) -> tuple[str, ...]:
    """Read names of datasets, and files of such names.

    Parameters
    ----------
    arguments : iterable of str
        Names, in upper or lower case, or ``@file``: names between white space or commas, ``#`` begins a comment.

    Returns
    -------
    tuple of str
        Each once, in lower case, in the order given.

    Raises
    ------
    UsageError
        If one is not the name of a dataset, or a file cannot be read or has none.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        if not argument.startswith("@"):
            found[Dataset.parse(argument).name] = None
            continue
        path = Path(argument[1:]).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}", remedy="give a text file with names of datasets") from error
        before = len(found)
        for number, line in enumerate(lines, start=1):
            for word in line.partition("#")[0].replace(",", " ").split():
                try:
                    found[Dataset.parse(word).name] = None
                except UsageError as error:
                    raise UsageError(f"{path}, line {number}: {error.message}", remedy=error.remedy) from error
        if len(found) == before:
            raise UsageError(f"{path} names no datasets", remedy="write one on each line")
    return tuple(found)


def open_places(batch: str, directory: str) -> tuple[Store, LocalStore]:
    """Open the batch and the folder of a command line.

    Parameters
    ----------
    batch : str
        ``s3://bucket/prefix``, ``file:<directory>`` or a path.
    directory : str
        A path, or ``file:<directory>``; it need not exist.

    Returns
    -------
    source : Store
    local : LocalStore

    Raises
    ------
    UsageError
        If they make no sense.
    """
    source = open_batch(batch)
    if not directory or re.match(r"(s3|astroquery):", directory):
        raise UsageError(f"{directory!r} is not a local directory", remedy="give the directory to download to")
    local = LocalStore(Path(parse_uri(directory)[1] if directory.startswith("file:") else directory))
    if not local.url().isprintable():
        raise UsageError(f"{directory!r} cannot be written in a list of files", remedy="choose a plain name")
    if isinstance(source, LocalStore) and source.root.resolve() == local.root.resolve():
        raise UsageError(f"{directory} is the batch itself", remedy="give another directory")
    return source, local
