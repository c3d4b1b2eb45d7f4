"""Who is told how a campaign on this machine goes: a live table for people, plain or JSON lines, or quiet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from caldp import messages
from caldp.campaign.failures import Verdict
from caldp.campaign.local import Outlook, Running, Summary, Watch
from caldp.campaign.shards import Line
from caldp.messages import STATES, Status
from caldp.reporter import Output, Pace, can_redraw, console, human_count, human_size, human_time, printable

if TYPE_CHECKING:
    import rich.live
    import rich.table

#: Rows of the live table that show what is running.
_ROWS = 20


def states_text(states: Mapping[str, int]) -> str:
    """Write datasets by state, in the order of the states: ``3 placed, 2 processing, 12 processed``."""
    return ", ".join(f"{states[state]:,} {state}" for state in STATES if states.get(state)) or "no datasets"


def ended_text(line: Line, status: Status, verdict: Verdict, seconds: float) -> str:
    """Say in a line what became of a dataset, and why."""
    took = f" in {human_time(seconds)}" if seconds else ""
    if STATES[status.state][0] >= STATES["processed"][0]:
        return f"{line.dataset}: {status.state}, attempt {line.attempt}{took}"
    if status.state == "placed":
        given = f"attempt {status.attempt} with {status.rung}, {human_time(status.time_limit)}"
        return f"{line.dataset}: {cause_of(status, verdict)}{took}, to be tried again ({given}): {status.reason}"
    said = f"exit {status.exit_code}: " if status.exit_code else ""
    if status.state == "cancelled":
        return f"{line.dataset}: cancelled{took}" + (f": {status.reason}" if status.reason else "")
    return f"{line.dataset}: {status.state}, {cause_of(status, verdict)}{took}: {said}{status.reason}"


def cause_of(status: Status, verdict: Verdict) -> str:
    """Return the class of how a job ended, as its dataset stands now: the same failure twice is of another class."""
    return status.state if status.done or status.state == "cancelled" else status.cause or verdict.cause


class QuietWatch:
    """Nothing but datasets that failed for good, one line each.

    Parameters
    ----------
    errors : TextIO or None
        Where they go.
    """

    def __init__(self, errors: TextIO | None) -> None:
        self._errors = Output(errors)

    def begin(self, name: str, total: int) -> None:
        """Nothing."""

    def ended(self, line: Line, status: Status, verdict: Verdict, seconds: float) -> None:
        """Print a failure."""
        if status.state == "error":
            self._errors.line(printable(f"caldp campaign: {ended_text(line, status, verdict, seconds)}"))

    def look(self, outlook: Outlook) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Print it."""
        self._errors.line(printable(f"caldp campaign: {text}"))

    def finish(self, summary: Summary | None) -> None:
        """Print why it did not go on."""
        if summary is not None and summary.paused:
            self.say(f"paused: {summary.paused}")


class PlainWatch(QuietWatch):
    """One plain line for each job that ended: for pipes, log collectors and files.

    Parameters
    ----------
    stream, errors : TextIO or None
        Where lines, and failures, go.
    """

    def __init__(self, stream: TextIO | None, errors: TextIO | None) -> None:
        super().__init__(errors)
        self._out = Output(stream)
        self._pace = Pace(60.0)
        self._looks = 0

    def begin(self, name: str, total: int) -> None:
        """Say it."""
        self._line(f"campaign {name}: {human_count(total, 'dataset')}")

    def ended(self, line: Line, status: Status, verdict: Verdict, seconds: float) -> None:
        """Say what became of it."""
        super().ended(line, status, verdict, seconds)
        self._line(ended_text(line, status, verdict, seconds))

    def look(self, outlook: Outlook) -> None:
        """Say how it stands, once a minute."""
        self._looks += 1
        if self._pace.due("look", self._looks, 0):
            left = "" if outlook.seconds_left is None else f"; about {human_time(outlook.seconds_left)} left"
            self._line(f"{states_text(outlook.states)}{left}")

    def finish(self, summary: Summary | None) -> None:
        """Print the end."""
        super().finish(summary)
        if summary is not None:
            self._line(f"{states_text(summary.states)}; {human_time(summary.seconds)}")

    def _line(self, text: str) -> None:
        self._out.line(printable(f"{messages.now()} {text}"))


class JsonWatch(QuietWatch):
    """JSON lines: one object per event, with ``event`` and the UTC time ``at``.

    The events are ``begin``, ``ended`` (a job), ``progress``, ``message`` and, last, ``finished``.

    Parameters
    ----------
    stream, errors : TextIO or None
        Where they, and failures for people, go.
    """

    def __init__(self, stream: TextIO | None, errors: TextIO | None) -> None:
        super().__init__(errors)
        self._out = Output(stream)
        self._pace = Pace(2.0)
        self._looks = 0

    def begin(self, name: str, total: int) -> None:
        """Write ``{"event": "begin", "batch": ..., "datasets": ...}``."""
        self._emit("begin", batch=name, datasets=total)

    def ended(self, line: Line, status: Status, verdict: Verdict, seconds: float) -> None:
        """Write ``{"event": "ended", "dataset": ..., "state": ..., ...}``."""
        super().ended(line, status, verdict, seconds)
        self._emit(
            "ended",
            dataset=line.dataset,
            attempt=line.attempt,
            rung=line.rung,
            state=status.state,
            cause=cause_of(status, verdict),
            exit_code=status.exit_code,
            reason=status.reason,
            seconds=round(seconds, 3),
        )

    def look(self, outlook: Outlook) -> None:
        """Write ``{"event": "progress", "states": ..., "running": ..., "seconds_left": ...}``, not too often."""
        self._looks += 1
        if self._pace.due("look", self._looks, 0):
            left = outlook.seconds_left
            self._emit(
                "progress",
                states=dict(outlook.states),
                running=[running.line.dataset for running in outlook.running],
                seconds_left=None if left is None else round(left),
            )

    def say(self, text: str) -> None:
        """Write ``{"event": "message", "text": ...}``."""
        self._emit("message", text=text)

    def finish(self, summary: Summary | None) -> None:
        """Write ``{"event": "finished", "states": ..., "exit_status": ...}``."""
        super().finish(summary)
        if summary is not None:
            states, seconds = dict(summary.states), round(summary.seconds, 3)
            status = summary.exit_status
            self._emit("finished", states=states, seconds=seconds, paused=summary.paused, exit_status=status)

    def _emit(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - any JSON value
        self._out.line(json.dumps({"event": event, "at": messages.now()} | fields))


class TableWatch(QuietWatch):
    """A live table on a terminal: how many there are in each state, and what is running.

    Parameters
    ----------
    stream : TextIO
        A terminal.
    errors : TextIO or None
        Where failures go, if it is another place.
    """

    def __init__(self, stream: TextIO, errors: TextIO | None) -> None:
        super().__init__(errors)
        from rich.live import Live

        self._console = console(Output(stream))
        self._live: rich.live.Live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._name, self._total = "", 0

    def begin(self, name: str, total: int) -> None:
        """Show it."""
        self._name, self._total = printable(name), total
        self._live.start()

    def ended(self, line: Line, status: Status, verdict: Verdict, seconds: float) -> None:
        """Print what became of a dataset, above the table."""
        if not self._errors.isatty():  # else it is the same screen
            super().ended(line, status, verdict, seconds)
        style = {"error": "red", "cancelled": "red", "placed": "yellow"}.get(status.state, "green")
        self._print(ended_text(line, status, verdict, seconds), style)

    def look(self, outlook: Outlook) -> None:
        """Draw the table again."""
        with contextlib.suppress(OSError, ValueError):
            self._live.update(self._table(outlook), refresh=True)

    def say(self, text: str) -> None:
        """Print it above the table."""
        self._print(text, "yellow")

    def finish(self, summary: Summary | None) -> None:
        """Take the table away and print the end."""
        with contextlib.suppress(OSError, ValueError):
            self._live.update("", refresh=True)
            self._live.stop()
        super().finish(summary)
        if summary is not None:
            self._print(f"{self._name}: {states_text(summary.states)}; {human_time(summary.seconds)}", "bold")

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        with contextlib.suppress(OSError, ValueError):
            self._console.print(Text(printable(text), style=style), soft_wrap=True)

    def _table(self, outlook: Outlook) -> rich.table.Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        done = sum(count for state, count in outlook.states.items() if STATES[state][0] >= STATES["error"][0])
        whole = Table.grid(padding=(0, 2))
        left = "" if outlook.seconds_left is None else f"about {human_time(outlook.seconds_left)} left"
        whole.add_row(self._name, ProgressBar(total=max(self._total, 1), completed=done, width=24), left)
        whole.add_row("", states_text(outlook.states), _waiting(outlook))
        running = Table(box=None, padding=(0, 2), header_style="dim")
        for title in ("running", "attempt", "memory", "of", "time", "of"):
            running.add_column(title, justify="left" if title == "running" else "right")
        for one in outlook.running[:_ROWS]:
            running.add_row(*_row(one))
        table = Table.grid()
        table.add_row(whole)
        table.add_row(running)
        return table


def _waiting(outlook: Outlook) -> str:
    return f"{outlook.waiting} to be tried again, in {human_time(outlook.next_try)}" if outlook.waiting else ""


def _row(running: Running) -> list[str]:
    line = running.line
    return [
        line.dataset,
        str(line.attempt),
        human_size(running.memory),
        human_size(running.memory_limit),
        human_time(running.seconds),
        human_time(line.time_limit),
    ]


def open_watch(*, json: bool, quiet: bool, stdout: TextIO, stderr: TextIO) -> Watch:
    """Choose how a campaign is told.

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
        With a table only if ``stdout`` is a terminal that can move its cursor.
    """
    if json:
        return JsonWatch(stdout, stderr)
    if quiet:
        return QuietWatch(stderr)
    if can_redraw(stdout):
        return TableWatch(stdout, stderr)
    return PlainWatch(stdout, stderr)
