"""Heavy work, out of the process that answers: started once, taken up again when its worker dies, never done twice.

A job is a record. Who works on it holds a lease, and renews it; when the lease ends without a result, the next attempt
begins. A worker whose lease was given to another notices, and what it does afterwards changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from caldp import aws, programs
from caldp.crdserver.records import Record
from caldp.crdserver.settings import Settings
from caldp.crdserver.site import Site
from caldp.errors import CaldpError
from caldp.store import ConflictError

#: Seconds for which a worker holds a job, and between two renewals.
LEASE = 60.0
_RENEW = 15.0

#: Attempts of one job.
ATTEMPTS = 3

#: Seconds that a worker may take, and its share of the memory of this machine.
_LONGEST = 86400.0
_SHARE = 0.4

#: States of a job that is over.
OVER = ("done", "failed")

Logger = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes
    ----------
    id : str
        Its name.
    kind : str
        ``submission``, ``affected``, ``check`` or ``tend``.
    about : dict
        What it is about.
    attempt : int
        From 1, once somebody works on it.
    state : str
        ``waiting``, ``running``, ``done`` or ``failed``.
    """

    id: str
    kind: str
    about: dict[str, Any]
    attempt: int = 0
    state: str = "waiting"


class Jobs:
    """The jobs of one observatory.

    Parameters
    ----------
    site : Site
        Whose.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._space = f"{site.observatory}:jobs"

    def add(self, name: str, kind: str, about: dict[str, Any]) -> bool:
        """Add a job; False if there is one of this name that is not over, or was done."""
        value = {"kind": kind, "about": about, "attempt": 0, "state": "waiting", "until": 0.0, "made": time.time()}
        there = self._site.records.get(self._space, name)
        if there and there.value["state"] != "failed":
            return False
        try:
            self._site.records.put(self._space, name, value, expect=there.version if there else 0)
        except ConflictError:
            return False
        return True

    def get(self, name: str) -> Job | None:
        """Return a job."""
        record = self._site.records.get(self._space, name)
        return _job(record) if record else None

    def open(self) -> list[Job]:
        """Return the jobs that nobody works on."""
        return [
            _job(record)
            for record in self._site.records.scan(self._space)
            if record.value["state"] not in OVER and record.value["until"] < time.time()
        ]

    def take(self, name: str) -> Lease | None:
        """Begin to work on a job; None if it is over, or somebody else does."""
        while True:
            record = self._site.records.get(self._space, name)
            if record is None or record.value["state"] in OVER or record.value["until"] > time.time():
                return None
            attempt = record.value["attempt"] + 1
            state = "running" if attempt <= ATTEMPTS else "failed"
            value = {**record.value, "attempt": attempt, "state": state, "until": time.time() + LEASE}
            try:
                version = self._site.records.put(self._space, name, value, expect=record.version)
            except ConflictError:
                continue
            return Lease(self._site, self._space, Record(name, value, version))


class Lease:
    """Work on a job.

    Attributes
    ----------
    job : Job
        What is worked on; it has failed already if there were too many attempts.
    """

    def __init__(self, site: Site, space: str, record: Record) -> None:
        self.job = _job(record)
        self._site, self._space, self._record = site, space, record
        self._lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renewing, daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """Whether somebody else works on it by now."""
        return self._lost

    def over(self, state: str) -> None:
        """Say that it is done, or has failed; nothing if somebody else works on it."""
        self._end.set()
        self._thread.join()
        self._put(state=state, until=0.0)

    def _renewing(self) -> None:
        while not self._end.wait(_RENEW):
            with contextlib.suppress(CaldpError):  # who does not answer now may do so before the lease ends
                self._put(until=time.time() + LEASE)

    def _put(self, **changes: Any) -> None:  # noqa: ANN401 - as JSON has it
        if self._lost:
            return
        value = {**self._record.value, **changes}
        try:
            version = self._site.records.put(self._space, self._record.key, value, expect=self._record.version)
        except ConflictError:
            self._lost = True
            return
        self._record = Record(self._record.key, value, version)


class Runner(Protocol):
    """Who starts workers."""

    def start(self, observatory: str, name: str) -> None:
        """Have somebody work on a job, soon."""

    def close(self) -> None:
        """Stop the workers; what they work on is taken up when there is a runner again."""


class LocalRunner:
    """Workers that are processes of this machine, a few at a time.

    Parameters
    ----------
    settings : Settings
        Given to them.
    environ : mapping
        Their environment.
    log : callable
        Told what they print.
    workers : int
        How many at a time.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], log: Logger, workers: int = 2) -> None:
        self._settings = settings
        self._environ = {name: text for name, text in environ.items() if not name.startswith("CRDS_")}
        self._log = log
        self._queue: queue.Queue[tuple[str, str] | None] = queue.Queue()
        #: What is in the queue or worked on: to be asked again for that changes nothing.
        self._taken: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def start(self, observatory: str, name: str) -> None:
        with self._lock:
            if (observatory, name) in self._taken:
                return
            self._taken.add((observatory, name))
        self._queue.put((observatory, name))

    def close(self) -> None:
        """Stop all workers; what they work on is taken up when there is a runner again."""
        self._stop.set()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=10)

    def _work(self) -> None:
        while (one := self._queue.get()) is not None and not self._stop.is_set():
            try:
                self._run(*one)
            finally:
                with self._lock:
                    self._taken.discard(one)

    def _run(self, observatory: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            argv = [sys.executable, "-m", "caldp.crdserver.job", observatory, name]
            env = {**self._environ, "CALDP_CRDS_JOB": json.dumps(as_json(self._settings))}
            try:
                done = programs.run(
                    argv, cwd=Path(folder), env=env, on_line=self._log, cancelled=self._stop, limit=_limit()
                )
            except programs.StartError as error:
                self._log(str(error))
                return
        if done.returncode:
            self._log(f"job {name}: {done.outcome}")


def _limit() -> programs.Limit:
    """Return what a worker may use: a file that unpacks without end takes its worker, and not this machine."""
    import psutil

    return programs.Limit(seconds=_LONGEST, memory=int(psutil.virtual_memory().total * _SHARE))


class LambdaRunner:
    """Workers that are a function of AWS.

    Parameters
    ----------
    function : str
        Its name.
    environ : mapping
        AWS_* variables.
    """

    def __init__(self, function: str, environ: Mapping[str, str]) -> None:
        self._function = function
        self._client = aws.make("lambda", {n: v for n, v in environ.items() if n.startswith("AWS_")})

    def start(self, observatory: str, name: str) -> None:
        event = json.dumps({"observatory": observatory, "job": name}).encode()
        self._client.invoke(FunctionName=self._function, InvocationType="Event", Payload=event)

    def close(self) -> None:
        """Nothing is to be stopped."""


def runner(settings: Settings, environ: Mapping[str, str], log: Logger) -> Runner:
    """Return who starts workers, as the settings say."""
    if settings.jobs == "local":
        return LocalRunner(settings, environ, log)
    return LambdaRunner(settings.jobs.partition(":")[2], environ)


def as_json(settings: Settings) -> dict[str, Any]:
    """Return settings as a worker reads them."""
    return {**vars(settings), "work": str(settings.work)}


def from_json(value: Mapping[str, Any]) -> Settings:
    """Make settings of their JSON form."""
    return Settings(**{**value, "work": Path(value["work"])})


def _job(record: Record) -> Job:
    value = record.value
    return Job(record.key, value["kind"], dict(value["about"]), value["attempt"], value["state"])
