"""Logs and metrics of one run: what each stage and each program said, and what it cost."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caldp import programs
from caldp.programs import ProgramRun
from caldp.reporter import Reporter

#: Stage -> log file; the names that the HST archive pipeline has always used.
_LOGS = {"previews": "preview.txt"}
_MAIN_LOG = "process.txt"

#: Everything written into ``logs/``.
LOG_FILES = (_MAIN_LOG, "preview.txt", "process_metrics.txt", "preview_metrics.txt", "metrics.json")


@dataclass
class Stage:
    """What one stage cost.

    Attributes
    ----------
    name : str
        fetch, references, calibrate, previews or publish.
    wall, cpu : float
        Seconds; CPU counts the programs it started.
    peak_memory : int
        Bytes: the largest of CALDP itself and any one program.
    bytes_in, bytes_out : int
        Bytes read and written for the dataset, as far as CALDP itself moved them.
    programs : list of ProgramRun
        In the order they ended.
    """

    name: str
    wall: float = 0.0
    cpu: float = 0.0
    peak_memory: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    programs: list[ProgramRun] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "wall_s": round(self.wall, 3),
            "cpu_s": round(self.cpu, 3),
            "peak_memory_bytes": self.peak_memory,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "programs": [p.to_json() for p in self.programs],
        }


class Telemetry:
    """The log and the metrics of one run.

    Parameters
    ----------
    dataset : str
        Named on each line.
    directory : Path
        Where the log files are written.
    reporter : Reporter
        Hears the same.
    secrets : sequence of str
        Values replaced by ``***`` in whatever is logged or shown.

    Attributes
    ----------
    facts : dict
        What of the dataset decides what it costs: ``detector`` and number of ``exposures``, once they are known.
    """

    def __init__(self, dataset: str, directory: Path, reporter: Reporter, secrets: Sequence[str] = ()) -> None:
        self.dataset = dataset
        self.facts: dict[str, str | int] = {}
        self.directory = directory
        self.reporter = reporter
        self.stages: list[Stage] = []
        self.warnings: list[str] = []
        self._secrets = tuple(sorted(secrets, key=len, reverse=True))  # one may begin with another
        self._stage = "run"
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._started = time.monotonic()
        self._log = logging.Logger(f"caldp.{dataset}")  # noqa: LOG001 - a logger of this run, not of the process
        formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(dataset)s %(stage)s %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
        for name in (_MAIN_LOG, *_LOGS.values()):
            handler = _LogFile(directory / name, encoding="utf-8", errors="backslashreplace")
            handler.setFormatter(formatter)
            handler.addFilter(_belongs_to(name))
            self._log.addHandler(handler)

    @property
    def seconds(self) -> float:
        """Wall time since the run began."""
        return time.monotonic() - self._started

    def close(self) -> None:
        """Close the log files."""
        for handler in list(self._log.handlers):
            with contextlib.suppress(OSError):  # a full disk, again
                handler.close()
            self._log.removeHandler(handler)

    def info(self, text: str) -> None:
        """Log one line and show it."""
        self._say("INFO", text)

    def warning(self, text: str) -> None:
        """Log one line, show it, and keep it for the manifest."""
        self.warnings.append(self._clean(text))
        self._say("WARNING", text)

    def error(self, text: str, cause: BaseException | None = None) -> None:
        """Log one line with the traceback of ``cause``; people are told at the end."""
        self._write("ERROR", text)
        if cause is not None:
            for line in "".join(traceback.format_exception(cause)).splitlines():
                self._write("DEBUG", line)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Measure a stage from here to the end of the context."""
        stage = Stage(name)
        self.stages.append(stage)
        self._stage = name
        self.reporter.stage(name)
        wall, cpu = time.monotonic(), _cpu()
        try:
            yield stage
        except BaseException:
            self._measure(stage, wall, cpu)
            self.reporter.message("INFO", f"{name}: stopped after {stage.wall:.1f} s")
            raise
        self._measure(stage, wall, cpu)
        self.reporter.stage_done(name, stage.wall)

    def _measure(self, stage: Stage, wall: float, cpu: float) -> None:
        stage.wall = time.monotonic() - wall
        stage.cpu = _cpu() - cpu
        stage.peak_memory = max([programs.own_peak_memory(), *(p.peak_memory for p in stage.programs)])
        self._stage = "run"

    def run_program(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> ProgramRun:
        """Run a program, its output going to the log and the reporter.

        Parameters
        ----------
        argv, cwd, env
            As for ``programs.run``.

        Returns
        -------
        ProgramRun
        """
        name = ProgramRun(tuple(argv), 0, 0, 0, 0).name
        self._write("INFO", f"$ {' '.join(argv)}")

        def on_line(line: str) -> None:
            line = self._clean(line)
            self._write("INFO", f"{name}: {line}")
            self.reporter.line(name, line)

        done = programs.run(
            argv, cwd=cwd, env=env, on_line=on_line, on_memory=self.reporter.memory, cancelled=self._cancelled
        )
        done = replace(done, argv=tuple(map(self._clean, done.argv)), tail=tuple(map(self._clean, done.tail)))
        self._write("INFO", str(done))
        with self._lock:
            self.stages[-1].programs.append(done)
        return done

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """Return what adds up the bytes that several threads have moved, and shows how far they have come.

        Parameters
        ----------
        what : str
            Says what is moved.
        total : int
            Bytes in all.
        """
        lock, done = threading.Lock(), 0

        def count(moved: int) -> None:
            nonlocal done
            with lock:
                done += moved
                self.reporter.progress(what, min(done, total), total)

        return count

    def cancel_programs(self) -> None:
        """Kill the programs that other threads are running, and any they would start."""
        self._cancelled.set()

    def programs(self, stage: str) -> list[ProgramRun]:
        """Return the programs that ran in the stages of a name."""
        return [program for each in self.stages if each.name == stage for program in each.programs]

    def text(self) -> str:
        """Return the main log as it is so far."""
        return (self.directory / _MAIN_LOG).read_text(encoding="utf-8", errors="replace")

    def quote(self, text: str, warnings: Sequence[str]) -> None:
        """Enter the log and the warnings of an earlier run."""
        for line in text.splitlines():
            self._write("INFO", f"| {line}")
        self.warnings += [w for w in map(self._clean, warnings) if w not in self.warnings]

    def write_metrics(self) -> dict[str, Any]:
        """Write ``metrics.json`` and the archive pipeline's two text files; return the former's content."""
        metrics = {
            "dataset": self.dataset,
            **self.facts,
            "stages": [s.to_json() for s in self.stages],
            "total": {
                "wall_s": round(self.seconds, 3),
                "cpu_s": round(_cpu(), 3),
                "peak_memory_bytes": max([programs.own_peak_memory(), *(s.peak_memory for s in self.stages)]),
                "bytes_in": sum(s.bytes_in for s in self.stages),
                "bytes_out": sum(s.bytes_out for s in self.stages),
            },
        }
        (self.directory / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        previews = [s for s in self.stages if s.name in _LOGS]
        others = [s for s in self.stages if s.name not in _LOGS]
        for name, stages in (("process_metrics.txt", others), ("preview_metrics.txt", previews)):
            (self.directory / name).write_text("".join(_as_text(s) for s in stages), encoding="utf-8")
        return metrics

    def _say(self, level: str, text: str) -> None:
        self._write(level, text)
        self.reporter.message(level, self._clean(text))

    def _write(self, level: str, text: str) -> None:
        extra = {"dataset": self.dataset, "stage": self._stage}
        self._log.log(logging.getLevelNamesMapping()[level], "%s", self._clean(text), extra=extra)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.splitlines())  # a progress bar's carriage returns would break the line


class _LogFile(logging.FileHandler):
    """A log file on a disk that may be full: the run itself says so, so a line that does not fit is dropped."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name logging gives it
        """Drop the line."""


def _belongs_to(log: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: _LOGS.get(getattr(record, "stage", ""), _MAIN_LOG) == log


def _as_text(stage: Stage) -> str:
    """Lay a stage out as ``/usr/bin/time -v`` does, which is what readers of these files know."""
    moved = [f"\tBytes read: {stage.bytes_in}", f"\tBytes written: {stage.bytes_out}"]
    lines = _costs(f"Stage: {stage.name}", stage.wall, stage.cpu, stage.peak_memory, moved)
    for program in stage.programs:
        title = f"Program: {' '.join(program.argv)}"
        moved = [f"\tBytes read: {program.bytes_in}", f"\tBytes written: {program.bytes_out}"]
        more = [*moved, f"\tOutcome: {program.outcome}"]
        lines += _costs(title, program.wall, program.cpu, program.peak_memory, more)
    return "\n".join(lines) + "\n"


def _costs(title: str, wall: float, cpu: float, memory: int, more: list[str]) -> list[str]:
    return [
        title,
        f"\tElapsed (wall clock) time (s): {wall:.2f}",
        f"\tUser and system time (s): {cpu:.2f}",
        f"\tMaximum resident set size (kbytes): {memory // 1024}",
        *more,
    ]


def _cpu() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime
