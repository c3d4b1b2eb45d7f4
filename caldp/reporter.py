"""Progress for people, JSON lines for machines, or quiet."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, cast

from caldp.errors import EXIT_CODES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

#: The stages of a run, in order.
STAGES = ("fetch", "references", "calibrate", "previews", "publish")

_HEADLINES = {
    "planned": "planned (dry run), nothing was written",
    "refused": "refused, nothing was changed",
    "duplicate": "duplicate of another job, nothing was changed",
}

_LABEL_WIDTH = 14
_BAR_WIDTH = 24

# Terminal escape sequences: CSI, then those that carry a string (window title, clipboard), then short ones.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b[ -/]*[0-~]")

# C0 and C1 controls, line separators, marks and overrides of writing direction, lone surrogates.
_HARMFUL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")


@dataclass
class Outcome:
    """What one run of one dataset came to: the material of the final summary.

    Attributes
    ----------
    dataset : str
        Its name, as typed when it is not a valid one.
    state : str
        ``processed``, ``skipped``, ``duplicate`` (another job has it), ``planned`` (dry run), ``error`` (a state was
        written), ``refused`` (nothing was).
    exit_code : int
        Exit status of the command.
    reason : str
        One line: why it failed, or why nothing was calibrated; empty when all is as expected.
    remedy : str
        What to do about it.
    attempt : int
        Attempt number, 0 when none was begun.
    context : str
        CRDS context, for example ``hst_0729.pmap``.
    products, previews, references, warnings : int
        Counts.
    bytes : int
        Size of the products.
    seconds : float
        Wall time of the run.
    location : str
        Where the products are.
    report : str
        The HTML page.
    scratch : str
        The workspace, when it was kept.
    plan : dict or None
        Dry run only: what would be fetched, which references, which programs.
    """

    dataset: str
    state: str = "refused"
    exit_code: int = 0
    reason: str = ""
    remedy: str = ""
    attempt: int = 0
    context: str = ""
    products: int = 0
    previews: int = 0
    references: int = 0
    warnings: int = 0
    bytes: int = 0
    seconds: float = 0.0
    location: str = ""
    report: str = ""
    scratch: str = ""
    plan: dict[str, Any] | None = None

    def conclude(self, manifest: Mapping[str, Any], location: str) -> None:
        """Take over what a manifest says of a processed dataset that is at ``location``."""
        self.state, self.reason, self.attempt = "processed", manifest["reason"], manifest["attempt"]
        self.context, self.references = manifest["context"], len(manifest["references"])
        self.products, self.bytes = len(manifest["products"]), sum(p["size"] for p in manifest["products"])
        self.previews, self.warnings = len(manifest["previews"]), len(manifest["warnings"])
        self.location, self.report = location, f"{location}/report.html"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class Reporter(Protocol):
    """What a run tells whoever is watching."""

    def start(self, dataset: str) -> None:
        """The run of ``dataset`` begins."""

    def stage(self, name: str) -> None:
        """A stage begins: fetch, references, calibrate, previews, publish."""

    def line(self, program: str, text: str) -> None:
        """A program printed a line."""

    def memory(self, resident: int) -> None:
        """Resident memory of the running program, in bytes."""

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes (0: unknown) of ``what`` have been moved; called as often as one likes."""

    def message(self, level: str, text: str) -> None:
        """CALDP itself says something; ``level`` is INFO, WARNING or ERROR."""

    def stage_done(self, name: str, seconds: float) -> None:
        """A stage ended after ``seconds`` of wall time."""

    def finish(self, outcome: Outcome) -> None:
        """The run ended; nothing is called after this."""


class PlainReporter:
    """One plain line per stage and message: for pipes, log collectors and files.

    Parameters
    ----------
    stream : TextIO or None
        Where lines go, each flushed; None (a closed standard output) is silent.
    verbose : bool
        Also repeat every line of the programs.
    errors : TextIO or None
        Where the one-line failure goes; nowhere when None.
    """

    def __init__(self, stream: TextIO | None, verbose: bool = False, errors: TextIO | None = None) -> None:
        self._out = Output(stream)
        self._errors = Output(errors)
        self._verbose = verbose
        self._dataset = ""
        self._pace = Pace(10.0, 0.1)

    def start(self, dataset: str) -> None:
        """Say that the run begins."""
        self._dataset = dataset
        self._say("started")

    def stage(self, name: str) -> None:
        """Say that a stage begins."""
        self._say(f"{name}: started")

    def line(self, program: str, text: str) -> None:
        """Repeat a line of a program, if verbose."""
        if self._verbose:
            self._say(f"{program} | {text}")

    def memory(self, resident: int) -> None:
        """Nothing: a log has no use for it."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far it is, every ten seconds or tenth."""
        if self._pace.due(what, done, total):
            self._say(f"{what}: {_so_far(done, total)}")

    def message(self, level: str, text: str) -> None:
        """Say it; INFO needs no label."""
        self._say(text if level == "INFO" else f"{level}: {text}")

    def stage_done(self, name: str, seconds: float) -> None:
        """Say how long the stage took."""
        self._say(f"{name}: done in {human_time(seconds)}")

    def finish(self, outcome: Outcome) -> None:
        """Print the summary, and the failure line if it is one."""
        for line in summary_lines(outcome):
            self._out.line(line)
        if _failed(outcome):
            self._errors.line(failure_line(outcome))

    def _say(self, text: str) -> None:
        now = datetime.now(UTC)
        self._out.line(printable(f"{now:%Y-%m-%dT%H:%M:%SZ} {self._dataset} {text}"))


class JsonReporter:
    """JSON lines for machines: one object per event, with ``event`` and the UTC time ``at``.

    The events are ``start``, ``stage``, ``line``, ``memory``, ``progress``, ``message``, ``stage_done`` and, last,
    ``finished`` with the fields of `Outcome`.

    Parameters
    ----------
    stream : TextIO or None
        Where they go, each line flushed.
    errors : TextIO or None
        Where the one-line failure goes; nowhere when None.
    """

    def __init__(self, stream: TextIO | None, errors: TextIO | None = None) -> None:
        self._out = Output(stream)
        self._errors = Output(errors)
        self._resident = 0
        self._pace = Pace(0.5)

    def start(self, dataset: str) -> None:
        """Write ``{"event": "start", "dataset": ...}``."""
        self._emit("start", dataset=dataset)

    def stage(self, name: str) -> None:
        """Write ``{"event": "stage", "name": ...}``."""
        self._resident = 0
        self._emit("stage", name=name)

    def line(self, program: str, text: str) -> None:
        """Write ``{"event": "line", "program": ..., "text": ...}``."""
        self._emit("line", program=program, text=text)

    def memory(self, resident: int) -> None:
        """Write ``{"event": "memory", "resident_bytes": ...}`` when it changed by a tenth or more."""
        # It is sampled twice a second: hours of the same number would bury everything else.
        if abs(resident - self._resident) * 10 >= max(self._resident, 1):
            self._resident = resident
            self._emit("memory", resident_bytes=resident)

    def progress(self, what: str, done: int, total: int) -> None:
        """Write ``{"event": "progress", "what": ..., "done_bytes": ..., "total_bytes": ...}``, not too often."""
        if self._pace.due(what, done, total):
            self._emit("progress", what=what, done_bytes=done, total_bytes=total)

    def message(self, level: str, text: str) -> None:
        """Write ``{"event": "message", "level": ..., "text": ...}``."""
        self._emit("message", level=level, text=text)

    def stage_done(self, name: str, seconds: float) -> None:
        """Write ``{"event": "stage_done", "name": ..., "seconds": ...}``."""
        self._emit("stage_done", name=name, seconds=round(seconds, 3))

    def finish(self, outcome: Outcome) -> None:
        """Write ``{"event": "finished", ...}`` with everything the outcome holds."""
        self._emit("finished", **outcome.to_json())
        if _failed(outcome):
            self._errors.line(failure_line(outcome))

    def _emit(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - any JSON value
        self._out.line(json.dumps({"event": event, "at": datetime.now(UTC).isoformat()} | fields))


class QuietReporter:
    """Nothing but the one line of a failure.

    Parameters
    ----------
    stream : TextIO or None
        Where that line goes.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._errors = Output(stream)

    def start(self, dataset: str) -> None:
        """Nothing."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def line(self, program: str, text: str) -> None:
        """Nothing."""

    def memory(self, resident: int) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def message(self, level: str, text: str) -> None:
        """Nothing."""

    def stage_done(self, name: str, seconds: float) -> None:
        """Nothing."""

    def finish(self, outcome: Outcome) -> None:
        """Print the failure line, if it is one."""
        if _failed(outcome):
            self._errors.line(failure_line(outcome))


class RichReporter:
    """A calm live view on a terminal: the stages in order, what runs now, and for how long.

    Parameters
    ----------
    stream : TextIO
        A terminal.
    errors : TextIO or None
        Where the one-line failure goes; nowhere when None.
    """

    def __init__(self, stream: TextIO, errors: TextIO | None = None) -> None:
        from rich.live import Live

        self._out = Output(stream)
        self._errors = Output(errors)
        self._console = console(self._out)
        marks = "✓✗●·–━─" if (self._console.encoding or "").lower().startswith("utf") else "+x>.-#."
        names = ("done", "failed", "running", "waiting", "unused", "moved", "left")
        self._marks = dict(zip(names, marks, strict=True))
        self._lock = threading.Lock()
        self._dataset = ""
        self._started = time.monotonic()
        self._stages = {name: _Stage() for name in STAGES}
        self._current = ""
        self._program = ""
        self._line = ""
        self._resident = 0
        self._progress: _Progress | None = None
        self._outcome: Outcome | None = None
        # The view asks for its content when it refreshes, so that of the thousands of lines a program may
        # print only those shown cost anything. We never call it while holding our lock: it has one too.
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def start(self, dataset: str) -> None:
        """Show the view."""
        with self._lock:
            self._dataset = printable(dataset)
            self._started = time.monotonic()
        # Whatever happens to the run, the cursor comes back.
        atexit.register(self._live.stop)
        self._live.start()

    def stage(self, name: str) -> None:
        """Mark a stage as running."""
        with self._lock:
            self._stages.setdefault(name, _Stage()).begun = time.monotonic()
            self._current = name
            self._program, self._line, self._resident, self._progress = "", "", 0, None

    def line(self, program: str, text: str) -> None:
        """Show a program's last line."""
        if text.strip():
            with self._lock:
                self._program, self._line = program, text

    def memory(self, resident: int) -> None:
        """Show the memory of the running program."""
        with self._lock:
            self._resident = resident

    def progress(self, what: str, done: int, total: int) -> None:
        """Show a bar, or just the bytes if nobody knows how many there will be, until all are there."""
        with self._lock:
            if self._progress is None or self._progress.what != what:
                self._progress = _Progress(what, time.monotonic(), done)
            self._progress.done, self._progress.total = done, total
            if total and done >= total:
                self._progress = None

    def message(self, level: str, text: str) -> None:
        """Print a warning or error above the view; information passes by in it."""
        if level == "INFO":
            with self._lock:
                self._program, self._line = "", text
            return
        style = "bold red" if level == "ERROR" else "yellow"
        with contextlib.suppress(OSError, ValueError):
            self._console.print(self._text((f"{level}: ", style), (printable(text), "")), soft_wrap=True)

    def stage_done(self, name: str, seconds: float) -> None:
        """Mark a stage as done."""
        with self._lock:
            self._stages.setdefault(name, _Stage()).seconds = seconds
            self._resident, self._progress = 0, None

    def finish(self, outcome: Outcome) -> None:
        """End the view and print the summary."""
        with self._lock:
            self._outcome = outcome
            idle = not self._current
        # A dataset that was skipped or refused has no stages worth leaving on the screen.
        self._live.transient = idle
        self._live.stop()
        atexit.unregister(self._live.stop)
        style = "bold red" if _failed(outcome) else "green" if outcome.state == "processed" else "yellow"
        lines = summary_lines(outcome)
        if _failed(outcome) and self._errors.isatty():
            # The failure line follows on the same screen, with the reason and the remedy.
            lines = [line for line in lines if line.split()[0] not in ("reason", "remedy")]
        with contextlib.suppress(OSError, ValueError):
            self._console.print(self._text((lines[0], style)), soft_wrap=True)
            for line in lines[1:]:
                label, value = line[:_LABEL_WIDTH], line[_LABEL_WIDTH:]
                # Soft wrap: a path cut in two by us could not be selected as one.
                self._console.print(self._text((label, "dim"), (value, "")), soft_wrap=True)
        if _failed(outcome):
            self._errors.line(failure_line(outcome))

    def _render(self) -> RenderableType:
        """Draw the view: a title, a line per stage, and what the running program says."""
        from rich.console import Group

        with self._lock:
            outcome, now = self._outcome, time.monotonic()
            title = self._text((self._dataset, "bold"), (f"  {_clock(now - self._started)}", "dim"))
            if self._resident and outcome is None:
                title.append(f"  {human_size(self._resident)} in memory", "dim")
            rows: list[Text] = [title]
            for name, stage in self._stages.items():
                mark, seconds = self._state(name, stage, now)
                style = {"done": "green", "failed": "bold red", "running": "cyan"}.get(mark, "dim")
                name_style = "" if mark == "done" else style
                row = self._text((f"  {self._marks[mark]} ", style), (f"{name:<12}", name_style))
                row.append(f"{human_time(seconds):>12}" if seconds is not None else "", "dim")
                rows.append(row)
                if mark == "running":
                    said = f"{self._program}: {self._line}" if self._program else self._line
                    said = self._moving(self._progress, now) if self._progress else said
                    # Always there, so that the view does not jump when a program starts to speak.
                    rows.append(self._text((f"      {printable(said[:1000])}", "dim")))
        return Group(*rows)

    def _moving(self, progress: _Progress, now: float) -> str:
        """Draw a bar, with the bytes and the rate."""
        text = _so_far(progress.done, progress.total)
        seconds = now - progress.begun
        if seconds > 0.5:
            text += f"  {human_size((progress.done - progress.first) / seconds)}/s"
        if not progress.total:
            return f"{progress.what}  {text}"
        full = int(_BAR_WIDTH * min(1.0, progress.done / progress.total))
        bar = self._marks["moved"] * full + self._marks["left"] * (_BAR_WIDTH - full)
        return f"{progress.what} {bar} {text}"

    def _state(self, name: str, stage: _Stage, now: float) -> tuple[str, float | None]:
        if stage.seconds is not None:
            failed = self._outcome is not None and _failed(self._outcome) and name == self._current
            return ("failed" if failed else "done"), stage.seconds
        if stage.begun is None:
            return ("waiting" if self._outcome is None else "unused"), None
        return ("running" if self._outcome is None else "failed"), now - stage.begun

    def _text(self, *parts: tuple[str, str]) -> Text:
        """Compose text of (string, style) pairs, cut at the right edge; nothing in it is read as markup."""
        from rich.text import Text

        return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


@dataclass
class _Stage:
    """When a stage began (monotonic seconds) and how long it took, as far as known."""

    begun: float | None = None
    seconds: float | None = None


@dataclass
class _Progress:
    """Bytes that are being moved, and since when (monotonic seconds, bytes) that is known."""

    what: str
    begun: float
    first: int
    done: int = 0
    total: int = 0


class Pace:
    """Says when it is time to tell again how far something is.

    Parameters
    ----------
    seconds : float
        After so long.
    step : float or None
        Or when so much more of the whole is there, but not more than once a second.
    """

    def __init__(self, seconds: float, step: float | None = None) -> None:
        self._seconds = seconds
        self._step = step
        self._what = ""
        self._done = 0
        self._at = 0.0
        self._lock = threading.Lock()

    def due(self, what: str, done: int, total: int) -> bool:
        """Whether to tell now; the end is always told, once."""
        with self._lock:
            now = time.monotonic()
            if what != self._what or done < self._done:
                self._what, self._done, self._at = what, 0, now
            quiet = now - self._at
            stepped = self._step is not None and quiet >= 1 and done - self._done >= self._step * total > 0
            due = done != self._done and (stepped or quiet >= self._seconds or done >= total > 0)
            if due:
                self._done, self._at = done, now
            return due


def _so_far(done: int, total: int) -> str:
    """Write ``61 % of 34.5 MB``, or ``21 MB`` when nobody knows how many there will be."""
    return f"{100 * done // total} % of {human_size(total)}" if total else human_size(done)


def open_reporter(*, json: bool, quiet: bool, verbose: bool, stdout: TextIO, stderr: TextIO) -> Reporter:
    """Choose how the run is told.

    Parameters
    ----------
    json : bool
        JSON lines on ``stdout``, whatever else is asked.
    quiet : bool
        Only the failure line.
    verbose : bool
        Every line of the programs; a live view would fight with them, so none is shown.
    stdout, stderr : TextIO
        The failure line goes to ``stderr``, the rest to ``stdout``.

    Returns
    -------
    Reporter
        The live view only if ``stdout`` is a terminal that can move its cursor.
    """
    if json:
        return JsonReporter(stdout, errors=stderr)
    if quiet:
        return QuietReporter(stderr)
    if not verbose and can_redraw(stdout):
        return RichReporter(stdout, errors=stderr)
    return PlainReporter(stdout, verbose=verbose, errors=stderr)


def can_redraw(stream: TextIO) -> bool:
    """Say whether a stream is a terminal that can move its cursor."""
    # TERM describes the terminal, not the calibration: it is no part of Config.
    return os.environ.get("TERM", "") not in ("dumb", "unknown", "") and Output(stream).isatty()


def console(out: Output) -> Console:
    """Return a console on a terminal, which takes text as it is."""
    from rich.console import Console

    return Console(file=cast(IO[str], out), force_terminal=True, highlight=False, markup=False, emoji=False)


def summary_lines(outcome: Outcome) -> list[str]:
    """Say in a few lines what a run came to.

    Parameters
    ----------
    outcome : Outcome
        Of any state.

    Returns
    -------
    list of str
        A headline and indented ``label value`` lines, without line ends or control characters.
    """
    headline = [_HEADLINES.get(outcome.state, outcome.state)]
    headline += [f"attempt {outcome.attempt}"] if outcome.attempt else []
    if outcome.seconds and outcome.state in ("processed", "error"):
        headline += [human_time(outcome.seconds)]
    rows: list[tuple[str, str]] = []
    if outcome.exit_code:
        name, meaning = EXIT_CODES.get(outcome.exit_code, ("unknown", ""))
        rows.append(("exit code", f"{outcome.exit_code} {name}" + (f": {meaning}" if meaning else "")))
    rows += [("reason", outcome.reason), ("remedy", outcome.remedy)]
    if outcome.state == "processed":
        source = f" from {outcome.context}" if outcome.context else ""
        rows += [
            ("products", f"{outcome.products:,} ({human_size(outcome.bytes)})"),
            ("previews", f"{outcome.previews:,}"),
            ("references", f"{outcome.references:,}{source}"),
            ("warnings", f"{outcome.warnings:,}"),
        ]
    else:
        rows += _plan_rows(outcome.plan, outcome.context) if outcome.plan else [("context", outcome.context)]
        rows += [("warnings", f"{outcome.warnings:,}")] if outcome.warnings else []
    if outcome.state == "error":
        where = outcome.location or outcome.scratch
        rows += [("logs", f"{where.rstrip('/')}/logs" if where else "")]
    else:
        rows += [("location", outcome.location)]
    rows += [("report", outcome.report), ("workspace", outcome.scratch)]
    lines = [f"{outcome.dataset}: {', '.join(headline)}"]
    lines += [f"  {label:<{_LABEL_WIDTH - 2}}{value}" for label, value in rows if value]
    return [printable(line) for line in lines]


def _plan_rows(plan: Mapping[str, Any], context: str) -> list[tuple[str, str]]:
    """Say what a dry run found: counts, and the programs as they would be typed."""
    inputs, references = plan.get("inputs", ()), plan.get("references", ())
    source = f"{len(references):,}" + (f" from {context}" if context else "")
    size = human_size(sum(entry.get("size") or 0 for entry in inputs))
    rows = [("inputs", f"{len(inputs):,} ({size})"), ("references", source)]
    rows += [("program", shlex.join(str(word) for word in argv)) for argv in plan.get("programs", ())]
    rows += [("products", f"{len(plan.get('products', ())):,} expected")]
    rows += [("output", str(plan.get("output", "")))]
    return rows


def failure_line(outcome: Outcome) -> str:
    """Say why a run failed and what to do, in one line.

    Parameters
    ----------
    outcome : Outcome
        Of a run that failed.

    Returns
    -------
    str
        ``caldp-process: <dataset>: <reason>; <remedy>``, without the dataset if the reason starts with it.
    """
    meaning = EXIT_CODES.get(outcome.exit_code, ("", ""))[1]
    reason = outcome.reason or meaning or f"exit code {outcome.exit_code}"
    named = not outcome.dataset or reason.casefold().startswith(outcome.dataset.casefold())
    text = f"caldp-process: {reason}" if named else f"caldp-process: {outcome.dataset}: {reason}"
    return printable(f"{text}; {outcome.remedy}" if outcome.remedy else text)


def human_size(size: float) -> str:
    """Write a number of bytes in decimal units, for example ``1.4 GB``.

    Parameters
    ----------
    size : float
        Bytes.

    Returns
    -------
    str
    """
    if size < 1000:
        return f"{size:.0f} B"
    units = ["TB", "GB", "MB", "kB"]
    size /= 1000
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop()
    return f"{size:.3g} {units[-1]}" if size < 999.5 else f"{size:,.0f} {units[-1]}"


def _failed(outcome: Outcome) -> bool:
    return outcome.exit_code != 0 or outcome.state == "error"


def human_count(number: float, what: str) -> str:
    """Write a number of things as ``1 dataset`` or ``1,200 datasets``.

    Parameters
    ----------
    number : float
        Rounded to a whole one.
    what : str
        One of them.

    Returns
    -------
    str
    """
    return f"{number:,.0f} {what}{'' if round(number) == 1 else 's'}"


def human_time(seconds: float) -> str:
    """Write a time as ``0.4 s``, ``38 s``, ``2 min 05 s`` or ``1 h 02 min``.

    Parameters
    ----------
    seconds : float
        Not negative.

    Returns
    -------
    str
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _clock(seconds: float) -> str:
    """Write seconds as ``1:23`` or ``1:02:03``: of a width that does not jump as it ticks."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: str) -> str:
    """Make one harmless line of any text.

    Parameters
    ----------
    text : str
        For example a line that a program printed, or a header value.

    Returns
    -------
    str
        Without escape sequences, control characters or changes of writing direction.
    """
    return _HARMFUL.sub(" ", _ESCAPES.sub("", text)).rstrip()


class Output:
    """A stream that any thread may write lines to, and that may go away.

    A reader that stops reading (``| head``) or a terminal that is closed must not turn a good run into a
    failure: from then on everything written is dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:
        """Of the stream; what cannot be encoded in it is written as escapes."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def line(self, text: str) -> None:
        """Write a line and flush it."""
        self.write(f"{text}\n")
        self.flush()

    def write(self, text: str) -> int:
        """Write text as it is."""
        encodable = text.encode(self.encoding, errors="backslashreplace").decode(self.encoding)
        with self._lock, self._guard():
            if self._stream is not None:
                self._stream.write(encodable)
        return len(text)

    def flush(self) -> None:
        """Hand what was written to the reader."""
        with self._lock, self._guard():
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """Descriptor of the stream."""
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the file object itself was closed
            stream, self._stream = self._stream, None
            if isinstance(error, OSError) and stream is not None:
                # Python flushes standard output once more at exit; if that fails it exits with 120.
                with contextlib.suppress(OSError, ValueError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, stream.fileno())
                    os.close(null)
