"""A campaign on one machine: ``caldp-process`` for each dataset, a few at a time, within memory and time limits."""

from __future__ import annotations

import heapq
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from caldp import messages, programs
from caldp.batch import in_threads
from caldp.campaign import observe, transitions
from caldp.campaign.control import WENT_FIRST, Control, log_key
from caldp.campaign.failures import Ended, Evidence, Verdict, classify
from caldp.campaign.settings import Settings
from caldp.campaign.shards import Line
from caldp.dataset import Dataset
from caldp.errors import BusyError, CaldpError, OutputError, Stop, UsageError
from caldp.manifest import published
from caldp.messages import STATES, Status
from caldp.programs import Limit, ProgramRun, StartError
from caldp.store import parse_uri

_MIB = 1024**2

_TICK = 1.0
"""Seconds between two looks at what is running."""

_LOOK = 3.0
"""Seconds between two looks at what operators want."""

#: As AWS Batch says it, so that one table of failures serves both.
_OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
_OUT_OF_TIME = "Job attempt duration exceeded timeout"


@dataclass(frozen=True)
class Command:
    """What is run for each dataset.

    Attributes
    ----------
    program : str
        Path of ``caldp-process``.
    input, output, config : str
        Its arguments.
    options : tuple of str
        Its options.
    environment : mapping
        Its environment.
    cwd : Path
        Where it runs.
    """

    program: str
    input: str
    output: str
    config: str
    options: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    cwd: Path

    def argv(self, dataset: str) -> list[str]:
        """Return the command line for one dataset."""
        return [self.program, dataset, self.input, self.output, self.config, *self.options]


@dataclass
class Running:
    """A dataset that is being processed.

    Attributes
    ----------
    line : Line
        What it is, and what it was given.
    started : float
        ``time.monotonic`` of its start.
    memory : int
        What it uses now, bytes.
    cancelled : Event
        Set to stop it.
    """

    line: Line
    memory_limit: int
    started: float = field(default_factory=time.monotonic)
    memory: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds(self) -> float:
        """For how long it has been running."""
        return time.monotonic() - self.started


@dataclass(frozen=True)
class Outlook:
    """How a campaign stands while it runs.

    Attributes
    ----------
    states : mapping
        Datasets by state.
    running : list of Running
        What is being processed.
    waiting : int
        Datasets that will be tried again later.
    next_try : float
        Seconds until the first of them is.
    seconds_left : float or None
        Until all is done, as far as one can tell.
    """

    states: Mapping[str, int]
    running: list[Running]
    waiting: int
    next_try: float
    seconds_left: float | None


class Watch(Protocol):
    """Who is told how a campaign goes."""

    def begin(self, name: str, total: int) -> None:
        """It begins, or goes on."""

    def ended(self, line: Line, status: Status, verdict: Verdict, seconds: float) -> None:
        """A job has ended, and this became of its dataset."""

    def look(self, outlook: Outlook) -> None:
        """Time has passed."""

    def say(self, text: str) -> None:
        """Something is to be known."""

    def finish(self, summary: Summary | None) -> None:
        """It has come to its end, or was stopped (None)."""


@dataclass
class Summary:
    """What a campaign came to.

    Attributes
    ----------
    states : Counter
        Datasets by state.
    paused : str
        Why it did not go on, or empty.
    seconds : float
        Wall time of this run of it.
    """

    states: Counter[str]
    paused: str = ""
    seconds: float = 0.0

    @property
    def open(self) -> int:
        """Datasets that have not come to an end."""
        return still_open(self.states.elements())

    @property
    def failed(self) -> int:
        """Datasets in error, or cancelled."""
        return self.states["error"] + self.states["cancelled"]

    @property
    def exit_status(self) -> int:
        """0 if all are processed, 3 if some are open, else 1."""
        return 3 if self.open else 1 if self.failed else 0


def total_memory() -> int:
    """Return the memory that jobs may have together, in MiB: nine tenths of this machine's, or of our control group."""
    import psutil

    sizes = [psutil.virtual_memory().total]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            sizes.append(int(Path(name).read_text()))
    return int(0.9 * min(sizes) / _MIB)


def fitted(settings: Settings, memory: int) -> Settings:
    """Return the settings for a machine: what is more than it has is no rung, but the lowest one stays.

    Parameters
    ----------
    settings : Settings
    memory : int
        What jobs may have together, MiB.
    """
    rungs = [rung for rung in settings.rungs if rung.memory <= memory] or [settings.rungs[0]]
    names = {rung.name for rung in rungs}
    estimates = {
        kind: estimate if estimate.rung in names else replace(estimate, rung=rungs[-1].name)
        for kind, estimate in settings.estimates.items()
    }
    return replace(settings, rungs=tuple(rungs), estimates=estimates)


class _Queue:
    """Datasets that wait for their turn: those of the canary first, then as they came, each not before its time."""

    def __init__(self) -> None:
        self._late: list[tuple[float, bool, int, Line]] = []
        # By what they are given: where a large one does not fit, a small one may.
        self._ready: dict[str, list[tuple[bool, int, Line]]] = {}
        self._count = 0

    def add(self, line: Line, first: bool, delay: float) -> None:
        """Enter a dataset that may start after a delay (seconds)."""
        self._count += 1
        heapq.heappush(self._late, (time.monotonic() + delay, not first, self._count, line))

    def take(self, may_start: Callable[[Line], bool]) -> Line | None:
        """Take the first one out that may start now, or return None."""
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, later, number, line = heapq.heappop(self._late)
            heapq.heappush(self._ready.setdefault(line.rung, []), (later, number, line))
        for _, _, line in sorted(heap[0] for heap in self._ready.values() if heap):
            if may_start(line):
                heapq.heappop(self._ready[line.rung])
                return line
        return None

    def late(self) -> list[float]:
        """Return in how many seconds those may start that may not yet, the first one first."""
        now = time.monotonic()
        return sorted(max(due - now, 0.0) for due, _, _, _ in self._late)


class Runner:
    """Runs a campaign that was planned.

    Parameters
    ----------
    control : Control
        The batch, on this machine.
    settings : Settings
    command : Command
    watch : Watch
    jobs : int
        Datasets at a time.
    memory : int
        What they may have together, MiB.
    jitter : callable, optional
        Given a delay in seconds, returns the one to keep.
    """

    def __init__(
        self,
        control: Control,
        settings: Settings,
        command: Command,
        watch: Watch,
        jobs: int,
        memory: int,
        jitter: Callable[[float], float] = lambda delay: random.uniform(0, delay),  # noqa: S311 - no secret
    ) -> None:
        self._control, self._settings, self._command, self._watch = control, settings, command, watch
        self._store = control.store
        self._jobs, self._memory, self._jitter = jobs, memory, jitter
        self._lines: dict[str, Line] = {}
        self._states: dict[str, str] = {}
        self._queue = _Queue()
        self._running: dict[str, Running] = {}
        self._futures: dict[Future[ProgramRun], Running] = {}
        self._canary: set[str] = set()
        self._hopeless: set[str] = set()
        self._began = self._looked = time.monotonic()
        self._finished = 0
        self._paused = ""

    def run(self) -> Summary:
        """Process what is still open.

        Returns
        -------
        Summary

        Raises
        ------
        BusyError
            If this campaign is running already.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._store.own("campaign"))
            except BusyError as error:
                raise BusyError(
                    f"{self._store.url()}: this campaign is running already; nothing was changed",
                    remedy="wait for it to end, or stop it",
                ) from error
            pool = stack.enter_context(ThreadPoolExecutor(self._jobs))
            self._control.lift()
            try:
                self._take_stock()
                while True:
                    self._start(pool)
                    if not self._running and (self._paused or not (self._queue.late() or self._is_rescued())):
                        break  # what could not start by now never will
                    for future in self._wait():
                        self._conclude(self._futures.pop(future), future)
                    self._listen()
                    self._watch.look(self._outlook())
            except BaseException as error:
                if self._running and isinstance(error, Stop | KeyboardInterrupt):
                    self._watch.say(f"stopping {', '.join(sorted(self._running))}")
                self._stop(pool)
                self._watch.finish(None)
                raise
        self._learn()
        summary = Summary(Counter(self._states.values()), self._paused, time.monotonic() - self._began)
        self._watch.finish(summary)
        return summary

    # ---- what is to be done

    def _take_stock(self) -> None:
        """Find out how every dataset of the campaign stands."""
        lines: dict[str, Line] = {}
        for shard in self._control.shards():
            for line in self._control.lines(shard):
                lines[line.dataset] = max(line, lines.get(line.dataset, line), key=lambda found: found.attempt)
        self._lines = lines
        self._canary = set() if self._control.released() else set(self._control.plan().get("canary", ()))
        self._watch.begin(self._control.name, len(lines))
        for line, status in zip(lines.values(), in_threads(self._status, lines.values()), strict=True):
            self._place(line, status)

    def _status(self, line: Line) -> Status | None:
        return messages.read(self._store, line.dataset)

    def _place(self, line: Line, status: Status | None) -> None:
        """Enter a dataset as it stands when the campaign begins, or goes on."""
        if status is None or not status.rung or status.attempt < line.attempt:
            # Not of this campaign yet: what was processed and is to stay was left out of the plan.
            self._enter(line, "placed")
            return
        line = self._again(line, status)
        if status.state in ("placed", "submitted", "processing"):
            # A job that was running died with the runner that started it: its lock is free.
            self._enter(line, "placed")
        elif status.state == "error" and not status.cause:
            self._judge(line, Ended(line.dataset, status.attempt, succeeded=False, exit_code=status.exit_code))
        else:
            self._came_to(line.dataset, status)

    def _came_to(self, dataset: str, status: Status) -> None:
        """Enter the end of a dataset."""
        self._states[dataset] = status.state
        if status.state == "error" and status.cause == "deterministic":
            self._hopeless.add(dataset)

    def _again(self, line: Line, status: Status) -> Line:
        rung = self._settings.rung(status.rung)
        limit = status.time_limit or line.time_limit
        return replace(line, attempt=status.attempt, rung=rung.name, vcpus=rung.vcpus, time_limit=limit)

    def _enter(self, line: Line, state: str, delay: float = 0.0) -> None:
        self._states[line.dataset] = state
        self._queue.add(line, line.dataset in self._canary, delay)

    # ---- running

    def _start(self, pool: ThreadPoolExecutor) -> None:
        """Start what there is room for."""
        while len(self._running) < self._jobs and not self._paused and (line := self._queue.take(self._may_start)):
            running = Running(line, self._settings.rung(line.rung).memory * _MIB)
            # Before anything happens: a signal may come at any moment, and whatever was started must be stopped.
            self._running[line.dataset] = running
            if self._hand_over(line):
                self._states[line.dataset] = "processing"
                self._futures[pool.submit(self._run, running)] = running
            else:
                del self._running[line.dataset]

    def _may_start(self, line: Line) -> bool:
        """Say whether there is memory for a dataset, and whether it is its turn."""
        used = sum(running.memory_limit for running in self._running.values())
        is_too_much = used + self._settings.rung(line.rung).memory * _MIB > self._memory * _MIB
        # What needs more than there is runs alone.
        return not (self._running and is_too_much) and self._may_follow(line)

    def _may_follow(self, line: Line) -> bool:
        """Say whether a dataset may start: those that are not of the canary wait until it has ended well."""
        if line.dataset in self._canary or not self._canary:
            return True
        if still_open(self._states[name] for name in self._canary & self._states.keys()):
            return False
        share = len(self._hopeless & self._canary) / len(self._canary)
        if share >= self._settings.canary_failures:
            self._paused = self._control.pause(f"{share:.0%} of the {len(self._canary)} {WENT_FIRST}")
            return False
        self._canary = set()
        return True

    def _hand_over(self, line: Line) -> bool:
        """Say in the status that the dataset is on its way; False if an operator was faster."""
        stored = transitions.hand_over(self._store, line, "local")
        if stored.attempt == line.attempt and STATES[stored.state][0] < STATES["error"][0]:
            return True
        if stored.rung and stored.state == "placed" and stored.attempt > line.attempt:
            self._enter(self._again(line, stored), "placed")  # an operator has given it another attempt
        else:
            self._states[line.dataset] = stored.state
        return False

    def _run(self, running: Running) -> ProgramRun:
        """Process one dataset, in a thread of its own."""
        line, command = running.line, self._command
        log = Path(parse_uri(self._store.uri)[1]) / log_key(line.dataset, line.attempt)
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {
            **command.environment,
            "CALDP_ATTEMPT": str(line.attempt),
            "OMP_NUM_THREADS": str(line.vcpus),
        }

        def on_memory(size: int) -> None:
            running.memory = size

        # It may be there: of a start that died with the runner.
        with log.open("a", encoding="utf-8", buffering=1) as stream:
            return programs.run(
                command.argv(line.dataset),
                cwd=command.cwd,
                env=env,
                on_line=lambda text: print(text, file=stream),
                on_memory=on_memory,
                cancelled=running.cancelled,
                limit=Limit(line.time_limit, running.memory_limit),
            )

    def _wait(self) -> set[Future[ProgramRun]]:
        """Wait until there is something to do, at most a tick; return what has ended."""
        late = self._queue.late()
        pause = min(_TICK, late[0]) if late and len(self._running) < self._jobs else _TICK
        if not self._futures:
            time.sleep(pause)
            return set()
        return wait(self._futures, timeout=pause, return_when=FIRST_COMPLETED).done

    def _listen(self) -> None:
        """Hear what operators want."""
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        self._paused = self._paused or self._control.paused()
        for running in self._running.values():
            status = messages.read(self._store, running.line.dataset)
            if status is not None and status.state == "cancelled":
                running.cancelled.set()

    def _is_rescued(self) -> bool:
        """Enter the datasets that an operator has given another attempt after they had come to their end."""
        ended = [self._lines[name] for name, state in self._states.items() if state in ("error", "cancelled")]
        found = False
        for line, status in zip(ended, in_threads(self._status, ended), strict=True):
            if status is not None and status.state == "placed":
                self._enter(self._again(line, status), "placed")
                found = True
        return found

    # ---- what became of it

    def _conclude(self, running: Running, future: Future[ProgramRun]) -> None:
        line = running.line
        try:
            ran = future.result()
        except StartError as error:
            raise UsageError(str(error), remedy="install caldp where this command finds it") from error
        except OSError as error:
            raise OutputError(f"{line.dataset}: its log cannot be written ({error})") from error
        self._judge(line, ended(line, ran, running.memory_limit), ran.wall)
        del self._running[line.dataset]

    def _judge(self, line: Line, how: Ended, seconds: float = 0.0) -> None:
        """Decide what comes after a job, and say so in the status."""
        evidence = self._evidence(line)
        how = replace(how, retry=evidence.status.retry if evidence.status else 1)
        verdict = classify(how, evidence)
        move, status = transitions.settle(self._store, how, lambda: self._evidence(line), self._settings, self._jitter)
        status = status or messages.read(self._store, line.dataset)
        if status is None:
            raise OutputError(f"{line.dataset}: it has no status any more", remedy="resume the campaign")
        if status.state == "placed":
            self._enter(self._again(line, status), "placed", move.delay)
        else:
            self._came_to(line.dataset, status)
            self._finished += 1
        if move.pause:
            self._paused = self._control.pause(move.pause)
        self._watch.ended(line, status, verdict, seconds)

    def _evidence(self, line: Line) -> Evidence:
        status = messages.read(self._store, line.dataset)
        retry = status.retry if status is not None and status.attempt == line.attempt else 1
        there = published(self._store, Dataset.parse(line.dataset), status)
        return Evidence(status, there, self._control.result(line.dataset, line.attempt, retry))

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """Stop what is running, and leave it so that the campaign can be resumed without a loss."""
        for running in self._running.values():
            running.cancelled.set()
        pool.shutdown(cancel_futures=True)
        for running in self._running.values():
            with suppress(CaldpError, OSError):
                self._put_back(running.line)

    def _put_back(self, line: Line) -> None:
        """Let a dataset that we have stopped start again; that is none of its retries."""
        status = messages.read(self._store, line.dataset)
        if status is None or status.attempt != line.attempt or status.state != "error":
            return
        stopped = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
        if status.exit_code in stopped:
            again = replace(status, attempt=line.attempt + 1, state="placed", retry=1, run="", job="", by="", at="")
            messages.advance(self._store, replace(again, reason="the campaign was stopped", history=()))

    def _learn(self) -> None:
        """Keep what jobs have used; a campaign that has come to its end does not fail for want of that."""
        done = [name for name, state in self._states.items() if STATES[state][0] >= STATES["processed"][0]]
        try:
            observe.learn(self._store, observe.gather(self._control, done))
        except (CaldpError, OSError) as error:
            self._watch.say(f"what jobs have used is not kept: {error}")

    # ---- for who looks on

    def _outlook(self) -> Outlook:
        now = time.monotonic()
        late = self._queue.late()
        left = still_open(self._states.values())
        pace = (now - self._began) / self._finished if self._finished else None
        return Outlook(
            Counter(self._states.values()),
            sorted(self._running.values(), key=lambda running: running.started),
            len(late),
            min(late, default=0.0),
            pace * left if pace is not None else None,
        )


def ended(line: Line, ran: ProgramRun, memory_limit: int) -> Ended:
    """Say of a program that we ran what AWS Batch says of a job.

    Parameters
    ----------
    line : Line
        What was run.
    ran : ProgramRun
        How.
    memory_limit : int
        What it was given, bytes.

    Returns
    -------
    Ended
    """
    code = ran.returncode if ran.returncode >= 0 else 128 - ran.returncode
    return Ended(
        line.dataset,
        line.attempt,
        succeeded=code == 0,
        exit_code=code,
        # A kill by the kernel may be that of another job beside it, unless this one was killed too.
        reason=_OUT_OF_MEMORY if ran.exceeded == "memory" or (ran.signal == "SIGKILL" and ran.oom_kills) else "",
        status_reason=_OUT_OF_TIME if ran.exceeded == "seconds" else "",
        memory_limit=memory_limit,
    )


def still_open(states: Iterable[str]) -> int:
    """Count the states in which something may still happen."""
    return sum(STATES[state][0] < STATES["error"][0] for state in states)


def environment(caller: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment for jobs; what belongs to a job is not handed on."""
    ours = ("CALDP_ATTEMPT", "CALDP_RUN", "AWS_BATCH_JOB_ID", "AWS_BATCH_JOB_ATTEMPT")
    return {name: value for name, value in caller.items() if name not in ours}


def default_jobs() -> int:
    """Return how many datasets at a time this machine can process: one for each processor."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
