"""What people, machines and log collectors are told about a run."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TextIO

import pytest

from caldp.reporter import (
    JsonReporter,
    Outcome,
    PlainReporter,
    QuietReporter,
    Reporter,
    RichReporter,
    failure_line,
    human_size,
    human_time,
    open_reporter,
    printable,
    summary_lines,
)

PROCESSED = Outcome(
    "ldfd01010",
    "processed",
    attempt=1,
    context="hst_0729.pmap",
    products=1033,
    previews=9,
    references=29,
    warnings=2,
    bytes=1_499_000_000,
    seconds=83.2,
    location="file:/data/cos/ldfd01010",
    report="file:/data/cos/ldfd01010/report.html",
)
FAILED = Outcome(
    "ldfd01010",
    "error",
    23,
    "ldfd01010: calcos stopped with exit status 1",
    "read the log",
    attempt=2,
    seconds=12.4,
    location="file:/data/cos/ldfd01010",
)
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]")
HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07rest",
    "[bold red]markup[/bold red] [/] [link=x]y",
    "carriage\rreturn\nand newline\x00\x9b31m\u202e",
    "x" * 100_000,
    "\x1b[2J\x1b[H\x1bc",
    ":smile: {braces} %s \\",
    "\ud800 lone surrogate",
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


MAKERS: list[Callable[[TextIO], Reporter]] = [
    PlainReporter,
    lambda s: PlainReporter(s, verbose=True),
    JsonReporter,
    QuietReporter,
    RichReporter,
]


def tell(reporter: Reporter, outcome: Outcome, lines: list[str] | None = None) -> None:
    reporter.start("ldfd01010")
    reporter.stage("fetch")
    reporter.message("INFO", "12 files")
    reporter.progress("download", 1_000_000, 3_000_000)
    reporter.progress("download", 3_000_000, 3_000_000)
    reporter.stage_done("fetch", 0.42)
    reporter.stage("calibrate")
    for line in lines or ["FLATCORR PERFORM"]:
        reporter.line("calcos", line)
        reporter.message("WARNING", line)
    reporter.memory(1_250_000_000)
    reporter.stage_done("calibrate", 78.3)
    reporter.finish(outcome)


def last_screen(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_rich_is_not_imported_with_the_module() -> None:
    code = "import sys, caldp.reporter; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_499_000_000, "1.5 GB"),
        (999_600, "1 MB"),
        (3e15, "3,000 TB"),
    ],
)
def test_human_size(size: float, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")],
)
def test_human_time(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


@pytest.mark.parametrize("line", HOSTILE)
def test_printable_is_harmless(line: str) -> None:
    assert not CONTROLS.search(printable(line))
    assert "\n" not in printable(line)
    printable(line).encode()


def test_summary_of_processed() -> None:
    text = "\n".join(summary_lines(PROCESSED))
    for part in (
        "processed, attempt 1, 1 min 23 s",
        "1,033 (1.5 GB)",
        "29 from hst_0729.pmap",
        "report.html",
    ):
        assert part in text
    assert "reason" not in text
    assert "exit code" not in text


def test_summary_tells_why_nothing_was_calibrated() -> None:
    outcome = Outcome("ldfd01010", "processed", attempt=1, reason="nothing was calibrated: EXPTIME is 0")
    assert any("nothing was calibrated" in line for line in summary_lines(outcome))


def test_summary_of_error() -> None:
    text = "\n".join(summary_lines(FAILED))
    for part in ("error, attempt 2", "23 STAGE1_ERROR", "exit status 1", "read the log", "ldfd01010/logs"):
        assert part in text
    assert "products" not in text


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome("ldfd01010", "skipped", reason="already processed, and every file verified"), "skipped"),
        (Outcome("ldfd0101", "refused", 2, "'ldfd0101' is no dataset"), "refused, nothing was changed"),
        (Outcome("x", "strange", 77), "77 unknown"),
    ],
)
def test_summary_of_other_states(outcome: Outcome, expected: str) -> None:
    text = "\n".join(summary_lines(outcome))
    assert expected in text
    assert outcome.reason in text
    assert "0 B" not in text


def test_summary_of_dry_run() -> None:
    plan = {
        "inputs": [{"name": "a.fits", "size": 2000}, {"name": "b.fits", "size": None}],
        "references": [{"name": "c.fits"}],
        "programs": [["calcos", "-o", "out dir", "a.fits"]],
        "products": ["a_x1d.fits"],
        "output": "file:/data/cos/ldfd01010",
    }
    text = "\n".join(summary_lines(Outcome("ldfd01010", "planned", context="hst_0729.pmap", plan=plan)))
    for part in (
        "nothing was written",
        "2 (2 kB)",
        "1 from hst_0729.pmap",
        "calcos -o 'out dir' a.fits",
        "1 expected",
    ):
        assert part in text


def test_summary_is_plain_lines() -> None:
    outcome = Outcome("ldfd\x1b[31m01010", "error", 1, "a\nb", "c\rd", location="x\x07")
    assert not any(CONTROLS.search(line) or "\n" in line for line in summary_lines(outcome))


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (FAILED, "caldp-process: ldfd01010: calcos stopped with exit status 1; read the log"),
        (Outcome("ldfd01010", "error", 21, "no inputs"), "caldp-process: ldfd01010: no inputs"),
        (Outcome("LDFD01010", "error", 21, "ldfd01010: no inputs"), "caldp-process: ldfd01010: no inputs"),
        (Outcome("", "refused", 2, "give a dataset"), "caldp-process: give a dataset"),
        (Outcome("x", "refused", 2, "two\nlines", "and\tmore"), "caldp-process: x: two lines; and more"),
        (Outcome("x", "error", 99), "caldp-process: x: exit code 99"),
    ],
)
def test_failure_line(outcome: Outcome, line: str) -> None:
    assert failure_line(outcome) == line


def test_plain_lines() -> None:
    out, err = io.StringIO(), io.StringIO()
    tell(PlainReporter(out, errors=err), PROCESSED)
    lines = out.getvalue().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ldfd01010 fetch: started", lines[1])
    assert any(line.endswith("calibrate: done in 1 min 18 s") for line in lines)
    assert any(line.endswith(" WARNING: FLATCORR PERFORM") for line in lines)
    assert not any("calcos |" in line for line in lines)
    assert lines[-1].endswith("report.html")
    assert err.getvalue() == ""


def test_plain_verbose_repeats_programs() -> None:
    out = io.StringIO()
    tell(PlainReporter(out, verbose=True), PROCESSED)
    assert "ldfd01010 calcos | FLATCORR PERFORM\n" in out.getvalue()


@pytest.mark.parametrize("maker", MAKERS[:2])
def test_plain_neutralises_hostile_lines(maker: Callable[[TextIO], Reporter]) -> None:
    out = io.StringIO()
    tell(maker(out), PROCESSED, HOSTILE)
    assert not CONTROLS.search(out.getvalue())


def test_plain_on_an_ascii_stream() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    PlainReporter(out).message("WARNING", "flux in Å⁻¹")
    out.seek(0)
    assert r"flux in \xc5\u207b\xb9" in out.read()


def test_json_lines() -> None:
    out = io.StringIO()
    tell(JsonReporter(out), FAILED, HOSTILE)
    assert out.getvalue().isascii()
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {e["event"] for e in events} == {
        *("start", "stage", "line", "memory", "progress", "message", "stage_done", "finished"),
    }
    assert all(datetime.fromisoformat(e["at"]).utcoffset() == timedelta(0) for e in events)
    assert events[-1]["event"] == "finished"
    assert {k: v for k, v in events[-1].items() if k not in ("event", "at")} == FAILED.to_json()
    assert [e["text"] for e in events if e["event"] == "line"] == HOSTILE


def test_json_tells_memory_only_when_it_changes() -> None:
    out = io.StringIO()
    reporter = JsonReporter(out)
    for resident in (100, 101, 105, 120, 119, 60):
        reporter.memory(resident)
    assert [json.loads(line)["resident_bytes"] for line in out.getvalue().splitlines()] == [100, 120, 60]


def test_quiet() -> None:
    out = io.StringIO()
    tell(QuietReporter(out), PROCESSED)
    assert out.getvalue() == ""
    tell(QuietReporter(out), FAILED)
    assert out.getvalue() == failure_line(FAILED) + "\n"


def test_rich_shows_stages_and_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    tell(RichReporter(out), PROCESSED)
    screen = last_screen(out.getvalue())
    for part in (
        "✓ fetch",
        "0.4 s",
        "✓ calibrate",
        "1 min 18 s",
        "– publish",
        "WARNING: FLATCORR",
        "1,033 (1.5 GB)",
    ):
        assert part in screen
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_rich_view_while_running(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setenv("COLUMNS", "60")
    reporter = RichReporter(Terminal())
    reporter.stage("calibrate")
    for line in HOSTILE:
        reporter.line("calcos", line)
        reporter.memory(1_250_000_000)
        canvas = io.StringIO()
        Console(file=canvas, width=60, force_terminal=False).print(reporter._render())
        rows = canvas.getvalue().splitlines()
        assert len(rows) == 7
        assert all(len(row) <= 60 for row in rows)
        assert not CONTROLS.search(canvas.getvalue())
    assert "1.25 GB" in rows[0]
    assert "· fetch" in rows[1]
    reporter.line("calcos", "[bold]kept as it is[/bold]")
    canvas = io.StringIO()
    Console(file=canvas, width=60, force_terminal=False).print(reporter._render())
    assert "calcos: [bold]kept as it is[/bold]" in canvas.getvalue()


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("caldp.reporter.time.monotonic", lambda: self.now)


def move(reporter: Reporter, clock: Clock, size: int, seconds: int, total: int) -> None:
    """Tell of a download, ten times a second."""
    for i in range(10 * seconds + 1):
        reporter.progress("download", i * size // (10 * seconds), total)
        clock.now += 0.1
    for _ in range(5):
        reporter.progress("download", size, total)
        clock.now += 0.1


@pytest.mark.parametrize(("seconds", "lines"), [(1, 2), (8, 8), (300, 32)])
def test_plain_progress_is_sparse(monkeypatch: pytest.MonkeyPatch, seconds: int, lines: int) -> None:
    out = io.StringIO()
    move(PlainReporter(out), Clock(monkeypatch), 50_000_000, seconds, 50_000_000)
    told = out.getvalue().splitlines()
    assert 1 <= len(told) <= lines
    assert told[-1].endswith("download: 100 % of 50 MB")


def test_plain_progress_of_an_unknown_size(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    move(PlainReporter(out), Clock(monkeypatch), 50_000_000, 30, 0)
    assert len(out.getvalue().splitlines()) == 3
    assert "download: 16.7 MB" in out.getvalue()


def test_json_progress_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    move(JsonReporter(out), Clock(monkeypatch), 50_000_000, 10, 50_000_000)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert 15 <= len(events) <= 22
    last = {"event": "progress", "what": "download", "done_bytes": 50_000_000, "total_bytes": 50_000_000}
    assert last.items() <= events[-1].items()


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "━" * 14 + "─" * 10), ("ascii", "#" * 14 + "." * 10)])
def test_rich_shows_a_bar(monkeypatch: pytest.MonkeyPatch, encoding: str, bar: str) -> None:
    from rich.console import Console

    class Encoded(Terminal):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    def row() -> str:
        canvas = io.StringIO()
        Console(file=canvas, width=80, force_terminal=False).print(reporter._render())
        return canvas.getvalue().splitlines()[2].strip()

    clock = Clock(monkeypatch)
    reporter = RichReporter(Encoded())
    reporter.stage("fetch")
    reporter.progress("download", 0, 2_000_000_000)
    reporter.message("INFO", "asking MAST")
    clock.now += 10
    reporter.progress("download", 1_220_000_000, 2_000_000_000)
    assert row() == f"download {bar} 61 % of 2 GB  122 MB/s"
    reporter.progress("download", 1_230_000_000, 0)
    assert row() == "download  1.23 GB  123 MB/s"
    reporter.progress("download", 2_000_000_000, 2_000_000_000)
    assert row() == "asking MAST"


def test_rich_marks_the_failed_stage() -> None:
    out, err = Terminal(), Terminal()
    tell(RichReporter(out, errors=err), FAILED)
    screen = last_screen(out.getvalue())
    assert "✗ calibrate" in screen
    assert "✓ fetch" in screen
    assert "23 STAGE1_ERROR" in screen
    assert "read the log" not in screen  # it is in the failure line, on the same screen
    assert err.getvalue() == failure_line(FAILED) + "\n"


def test_rich_keeps_the_reason_if_errors_go_elsewhere() -> None:
    out, err = Terminal(), io.StringIO()
    tell(RichReporter(out, errors=err), FAILED)
    assert "read the log" in last_screen(out.getvalue())


def test_rich_leaves_no_stages_of_a_skipped_dataset() -> None:
    out = Terminal()
    reporter = RichReporter(out)
    reporter.start("ldfd01010")
    reporter.finish(Outcome("ldfd01010", "skipped", reason="already processed"))
    after = last_screen(out.getvalue()).rpartition("ldfd01010: skipped")[2]
    assert "already processed" in after


def test_rich_sends_no_escape_of_a_program_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    tell(RichReporter(out), FAILED, HOSTILE)
    assert "title" not in out.getvalue()
    assert "\x1bc" not in out.getvalue()
    assert "\x1b[H" not in out.getvalue()
    assert "[bold red]markup[/bold red]" in out.getvalue()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("stream", [Gone(), None])
def test_a_reader_that_went_away_changes_nothing(maker: Callable[[TextIO], Reporter], stream: TextIO) -> None:
    tell(maker(stream), FAILED)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_closed_stream_changes_nothing(maker: Callable[[TextIO], Reporter]) -> None:
    stream = io.StringIO()
    reporter = maker(stream)
    stream.close()
    tell(reporter, FAILED)


@pytest.mark.parametrize("kind", ["plain", "json", "rich"])
def test_head_does_not_fail_the_run(kind: str) -> None:
    code = f"""
import sys
from caldp.reporter import *
r = {{"plain": lambda s: PlainReporter(s, True), "json": JsonReporter, "rich": RichReporter}}["{kind}"](sys.stdout)
r.start("ldfd01010")
for i in range(3000):
    r.stage("fetch"); r.line("p", "x" * 50); r.message("WARNING", "y")
r.finish(Outcome("ldfd01010", "processed"))
"""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("maker", MAKERS)
def test_calls_from_threads(maker: Callable[[TextIO], Reporter]) -> None:
    out = Terminal()
    reporter = maker(out)
    reporter.start("ldfd01010")
    reporter.stage("previews")
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(100):
                reporter.line(name, f"line {i}")
                reporter.memory(i)
                reporter.progress(name, i, 100)
                if i % 20 == 0:
                    reporter.message("WARNING", f"{name} {i}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"p{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.stage_done("previews", 1)
    reporter.finish(PROCESSED)
    assert not failures
    if maker is JsonReporter:
        assert all(json.loads(line) for line in out.getvalue().splitlines())
    if maker is MAKERS[1]:
        assert all(line.startswith("20") for line in out.getvalue().splitlines() if "line" in line)


def test_open_reporter_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(stdout: TextIO, **flags: bool) -> str:
        options = {"json": False, "quiet": False, "verbose": False} | flags
        return type(open_reporter(**options, stdout=stdout, stderr=io.StringIO())).__name__

    monkeypatch.setenv("TERM", "xterm-256color")
    assert chosen(Terminal()) == "RichReporter"
    assert chosen(io.StringIO()) == "PlainReporter"
    assert chosen(Terminal(), verbose=True) == "PlainReporter"
    assert chosen(Terminal(), quiet=True) == "QuietReporter"
    assert chosen(Terminal(), json=True, quiet=True) == "JsonReporter"
    monkeypatch.setenv("TERM", "dumb")
    assert chosen(Terminal()) == "PlainReporter"
    monkeypatch.delenv("TERM")
    assert chosen(Terminal()) == "PlainReporter"


@pytest.mark.parametrize("flags", [{}, {"json": True}, {"quiet": True}, {"verbose": True}])
def test_failure_goes_to_stderr(flags: dict[str, bool]) -> None:
    out, err = io.StringIO(), io.StringIO()
    options = {"json": False, "quiet": False, "verbose": False} | flags
    tell(open_reporter(**options, stdout=out, stderr=err), FAILED)
    assert err.getvalue() == failure_line(FAILED) + "\n"
    assert failure_line(FAILED) not in out.getvalue()
