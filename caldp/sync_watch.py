"""What a download came to, and who is told: bars for people, plain or JSON lines for machines, or quiet."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from caldp import messages
from caldp.errors import CaldpError
from caldp.reporter import Output, Pace, can_redraw, console, human_count, human_size, human_time, printable

if TYPE_CHECKING:
    import rich.progress


@dataclass
class Result:
    """What became of one dataset.

    Attributes
    ----------
    dataset : str
        Its name.
    state : str
        ``synced``; ``copied`` (it is here, and its state in the batch is as it was); ``skipped``; ``failed``;
        ``busy`` (another process has it); ``halted``.
    attempt : int
        Whose products they are.
    files, bytes : int
        Downloaded now.
    kept : int
        Files that were here already.
    seconds : float
        Wall time.
    location : str
        Its folder.
    reason : str
        One line, where there is something to say.
    exit_code : int
        Of a failure.
    unlike : bool
        The objects are not those of the manifest: no trouble of the place where they are.
    """

    dataset: str
    state: str = "skipped"
    attempt: int = 0
    files: int = 0
    bytes: int = 0
    kept: int = 0
    seconds: float = 0.0
    location: str = ""
    reason: str = ""
    exit_code: int = 0
    unlike: bool = False

    def fail(self, error: CaldpError) -> None:
        """Record a failure."""
        self.state, self.reason, self.exit_code = "failed", str(error), error.code

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {key: value for key, value in asdict(self).items() if key != "unlike"}


@dataclass
class Summary:
    """What a command came to.

    Attributes
    ----------
    source, target : str
        From where to where.
    datasets : int
        Brought home.
    skipped : int
        Left alone.
    files, bytes : int
        Downloaded.
    kept : int
        Files that were here already.
    seconds : float
        Wall time.
    failed : dict
        Dataset -> its result, for those that have not come right in the end.
    ended : CaldpError or None
        Why it ended early.
    stuck : bool
        Some downloads have not ended yet; the process must be ended without waiting for them.
    """

    source: str
    target: str
    datasets: int = 0
    skipped: int = 0
    files: int = 0
    bytes: int = 0
    kept: int = 0
    seconds: float = 0.0
    failed: dict[str, Result] = field(default_factory=dict)
    ended: CaldpError | None = None
    stuck: bool = False

    @property
    def exit_code(self) -> int:
        """That of the first failure; 0 without any."""
        codes = [result.exit_code for result in self.failed.values()]
        return next(iter(codes), self.ended.code if self.ended else 0)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    def add(self, result: Result) -> None:
        """Count a dataset."""
        self.files += result.files
        self.bytes += result.bytes
        self.kept += result.kept
        self.datasets += result.state in ("synced", "copied")
        self.skipped += result.state == "skipped"
        if result.state == "failed":
            self.failed[result.dataset] = result
        else:
            self.failed.pop(result.dataset, None)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "source": self.source,
            "target": self.target,
            "datasets": self.datasets,
            "skipped": self.skipped,
            "files": self.files,
            "bytes": self.bytes,
            "kept": self.kept,
            "seconds": round(self.seconds, 3),
            "bytes_per_second": round(self.rate),
            "failed": {name: result.reason for name, result in self.failed.items()},
            "exit_code": self.exit_code,
            "reason": str(self.ended or ""),
        }

    def __str__(self) -> str:
        what = f"{human_count(self.datasets, 'dataset')}, {human_count(self.files, 'file')}, {human_size(self.bytes)}"
        parts = [f"{what} in {human_time(self.seconds)} ({self.rate / 1e6:,.1f} MB/s)"]
        parts += [f"{human_count(self.kept, 'file')} here already"] if self.kept else []
        parts += [f"{self.skipped:,} skipped", f"{len(self.failed):,} failed"]
        return "; ".join(parts)


class Watch(Protocol):
    """What a download tells whoever is watching."""

    def start(self, summary: Summary) -> None:
        """It begins."""

    def found(self, count: int) -> None:
        """So many datasets are to be looked at."""

    def begin(self, name: str, size: int) -> None:
        """The download of a dataset begins; from any thread."""

    def moved(self, name: str, count: int) -> None:
        """Bytes of it have come, or must come again if negative; from any thread."""

    def settled(self, result: Result) -> None:
        """A dataset is done with."""

    def say(self, level: str, text: str) -> None:
        """Something is to be said; ``level`` is INFO, WARNING or ERROR."""

    def finish(self, summary: Summary) -> None:
        """It has ended."""


class QuietWatch:
    """Nothing but failures, one line each; it counts for those that tell more.

    Parameters
    ----------
    errors : TextIO or None
        Where they go.
    """

    def __init__(self, errors: TextIO | None) -> None:
        self._errors = Output(errors)
        self._lock = threading.Lock()
        self._found = self._settled = self._bytes = 0

    def start(self, summary: Summary) -> None:
        """Nothing."""

    def found(self, count: int) -> None:
        """Count."""
        with self._lock:
            self._found += count

    def begin(self, name: str, size: int) -> None:
        """Nothing."""

    def moved(self, name: str, count: int) -> None:
        """Count."""
        with self._lock:
            self._bytes += count

    def settled(self, result: Result) -> None:
        """Count, and print a failure."""
        with self._lock:
            self._settled += 1
        self._tell_failure(result)

    def _tell_failure(self, result: Result) -> None:
        if result.state == "failed":
            self._complain(result.reason)

    def say(self, level: str, text: str) -> None:
        """Nothing."""

    def finish(self, summary: Summary) -> None:
        """Print why it ended early."""
        if summary.ended:
            self._complain(str(summary.ended))

    def _complain(self, text: str) -> None:
        self._errors.line(printable(f"caldp sync: {text}"))


class PlainWatch(QuietWatch):
    """One plain line for each dataset: for pipes, log collectors and files.

    Parameters
    ----------
    stream, errors : TextIO or None
        Where lines, and failures, go.
    """

    def __init__(self, stream: TextIO | None, errors: TextIO | None) -> None:
        super().__init__(errors)
        self._out = Output(stream)
        self._pace = Pace(10.0)

    def found(self, count: int) -> None:
        """Say it."""
        super().found(count)
        self.say("INFO", f"{human_count(count, 'dataset')} to look at")

    def moved(self, name: str, count: int) -> None:
        """Say how far it is, every ten seconds."""
        super().moved(name, count)
        if self._pace.due("downloaded", self._bytes, 0):
            size, datasets = human_size(self._bytes), human_count(self._found, "dataset")
            self.say("INFO", f"{size} downloaded, {self._settled:,} of {datasets} done")

    def settled(self, result: Result) -> None:
        """Say what became of it."""
        super().settled(result)
        if result.state not in ("failed", "halted"):
            self.say("INFO", _line(result))

    def say(self, level: str, text: str) -> None:
        """Say it; INFO needs no label."""
        label = "" if level == "INFO" else f"{level}: "
        self._out.line(printable(f"{messages.now()} {label}{text}"))

    def finish(self, summary: Summary) -> None:
        """Print the summary."""
        super().finish(summary)
        self._out.line(printable(str(summary)))


class JsonWatch(QuietWatch):
    """JSON lines: one object per event, with ``event`` and the UTC time ``at``.

    The events are ``start``, ``found``, ``progress``, ``dataset``, ``message`` and, last, ``finished``.

    Parameters
    ----------
    stream, errors : TextIO or None
        Where they, and failures for people, go.
    """

    def __init__(self, stream: TextIO | None, errors: TextIO | None) -> None:
        super().__init__(errors)
        self._out = Output(stream)
        self._pace = Pace(0.5)

    def start(self, summary: Summary) -> None:
        """Write ``{"event": "start", "source": ..., "target": ...}``."""
        self._emit("start", source=summary.source, target=summary.target)

    def found(self, count: int) -> None:
        """Write ``{"event": "found", "datasets": ...}``."""
        super().found(count)
        self._emit("found", datasets=count)

    def moved(self, name: str, count: int) -> None:
        """Write ``{"event": "progress", "done_bytes": ...}``, not too often."""
        super().moved(name, count)
        if self._pace.due("downloaded", self._bytes, 0):
            self._emit("progress", done_bytes=self._bytes)

    def settled(self, result: Result) -> None:
        """Write ``{"event": "dataset", ...}`` with everything the result holds."""
        super().settled(result)
        self._emit("dataset", **result.to_json())

    def say(self, level: str, text: str) -> None:
        """Write ``{"event": "message", "level": ..., "text": ...}``."""
        self._emit("message", level=level, text=text)

    def finish(self, summary: Summary) -> None:
        """Write ``{"event": "finished", ...}`` with everything the summary holds."""
        super().finish(summary)
        self._emit("finished", **summary.to_json())

    def _emit(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - any JSON value
        self._out.line(json.dumps({"event": event, "at": messages.now()} | fields))


class BarWatch(QuietWatch):
    """Bars on a terminal: one for all datasets, one for each that is coming.

    Parameters
    ----------
    stream : TextIO
        A terminal.
    errors : TextIO or None
        Where failures go, if it is another place.
    """

    def __init__(self, stream: TextIO, errors: TextIO | None) -> None:
        super().__init__(errors)
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console(Output(stream))
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            redirect_stdout=False,
            redirect_stderr=False,
            refresh_per_second=4,
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._started = time.monotonic()
        self._all = self._bars.add_task("datasets", total=None, said="looking")

    def start(self, summary: Summary) -> None:
        """Show the bars."""
        self._bars.start()

    def found(self, count: int) -> None:
        """Set the length of the first bar."""
        super().found(count)
        self._tell()

    def begin(self, name: str, size: int) -> None:
        """Add a bar."""
        with self._lock:
            self._tasks[name] = self._bars.add_task(name, total=size or None, said=human_size(size))

    def moved(self, name: str, count: int) -> None:
        """Move a bar."""
        super().moved(name, count)
        with self._lock:
            if name in self._tasks:
                self._bars.advance(self._tasks[name], count)
        self._tell()

    def settled(self, result: Result) -> None:
        """Take a bar away, and move the first one."""
        super().settled(result)
        with self._lock:
            if result.dataset in self._tasks:
                self._bars.remove_task(self._tasks.pop(result.dataset))
        if result.state == "failed":
            self.say("ERROR", result.reason)
        elif result.reason:
            self.say("INFO", _line(result))
        self._tell()

    def _tell_failure(self, result: Result) -> None:
        if not self._errors.isatty():  # else it is the same screen
            super()._tell_failure(result)

    def say(self, level: str, text: str) -> None:
        """Print it above the bars."""
        from rich.text import Text

        style = {"ERROR": "bold red", "WARNING": "yellow"}.get(level, "dim")
        with contextlib.suppress(OSError, ValueError):
            self._console.print(Text(printable(text), style=style), soft_wrap=True)

    def finish(self, summary: Summary) -> None:
        """Take the bars away and print the summary."""
        self._bars.stop()
        if summary.ended:
            self.say("ERROR", str(summary.ended))
        with contextlib.suppress(OSError, ValueError):
            self._console.print(printable(str(summary)), soft_wrap=True)

    def _tell(self) -> None:
        rate = self._bytes / max(time.monotonic() - self._started, 0.5) / 1e6
        said = f"{self._settled:,} of {self._found:,}  {human_size(self._bytes)}  {rate:,.1f} MB/s"
        self._bars.update(self._all, total=self._found, completed=self._settled, said=said)


def _line(result: Result) -> str:
    """Say in a line what became of a dataset."""
    parts = [f"{result.dataset}: {result.state}"]
    if result.state in ("synced", "copied"):
        parts.append(f"attempt {result.attempt}, {human_count(result.files, 'file')}, {human_size(result.bytes)}")
        parts += [f"{human_count(result.kept, 'file')} here already"] if result.kept else []
        parts.append(human_time(result.seconds))
    return ", ".join([*parts, *([result.reason] if result.reason else [])])


def open_watch(*, json: bool, quiet: bool, stdout: TextIO, stderr: TextIO) -> Watch:
    """Choose how the download is told.

    Parameters
    ----------
    json : bool
        JSON lines on ``stdout``, whatever else is asked.
    quiet : bool
        Only failures, on ``stderr``.
    stdout, stderr : TextIO
        Where to write.

    Returns
    -------
    Watch
        With bars only if ``stdout`` is a terminal that can move its cursor.
    """
    if json:
        return JsonWatch(stdout, stderr)
    if quiet:
        return QuietWatch(stderr)
    if can_redraw(stdout):
        return BarWatch(stdout, stderr)
    return PlainWatch(stdout, stderr)
