"""What is told of a campaign that runs: lines, JSON, a table."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import pytest

from caldp.campaign.failures import Verdict
from caldp.campaign.local import Outlook, Running, Summary
from caldp.campaign.shards import Line
from caldp.campaign.watch import JsonWatch, PlainWatch, QuietWatch, TableWatch, ended_text, open_watch, states_text
from caldp.messages import Status

NAME = "lfak000sq"
LINE = Line(NAME, 1, "2g", 1, 3600)
GOOD = Verdict(2, "stale", False, False, False, False, "")
TRANSIENT = Verdict(12, "transient", False, False, False, True, "MAST did not answer")
UNKNOWN = Verdict(17, "unknown", False, False, False, True, "it failed")

PROCESSED = Status(NAME, 1, "processed", exit_code=0)
PLACED = Status(NAME, 2, "placed", reason="MAST is away", exit_code=22, cause="transient", rung="2g", time_limit=3600)
FAILED = Status(NAME, 1, "error", reason="the same failure twice", exit_code=1, cause="deterministic")
CANCELLED = Status(NAME, 1, "cancelled", reason="not needed", cause="oom")

SUMMARY = Summary(Counter(processed=1200, error=1), "", 3661.0)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def outlook(**more: Any) -> Outlook:
    running = Running(LINE, 2 << 30)
    running.memory = 900_000_000
    states = {"placed": 3, "processing": 1, "processed": 1200, "error": 0}
    return Outlook(
        **{"states": states, "running": [running], "waiting": 2, "next_try": 61.0, "seconds_left": 90.0, **more}
    )


def test_states_are_told_in_their_order() -> None:
    assert states_text({"processed": 1200, "placed": 3, "error": 0}) == "3 placed, 1,200 processed"
    assert states_text({}) == "no datasets"


@pytest.mark.parametrize(
    ("status", "verdict", "text"),
    [
        (PROCESSED, GOOD, f"{NAME}: processed, attempt 1 in 1.5 s"),
        (
            PLACED,
            TRANSIENT,
            f"{NAME}: transient in 1.5 s, to be tried again (attempt 2 with 2g, 1 h 00 min): MAST is away",
        ),
        (FAILED, UNKNOWN, f"{NAME}: error, deterministic in 1.5 s: exit 1: the same failure twice"),
        (CANCELLED, UNKNOWN, f"{NAME}: cancelled in 1.5 s: not needed"),
    ],
)
def test_an_end_in_a_line(status: Status, verdict: Verdict, text: str) -> None:
    assert ended_text(LINE, status, verdict, 1.5) == text
    assert "in 1.5 s" not in ended_text(LINE, status, verdict, 0)


def test_plain_lines() -> None:
    out, err = io.StringIO(), io.StringIO()
    watch = PlainWatch(out, err)
    watch.begin("mvp", 1201)
    watch.ended(LINE, PROCESSED, GOOD, 1.5)
    watch.ended(LINE, FAILED, UNKNOWN, 1.5)
    for _ in range(100):
        watch.look(outlook())  # not more than once a minute
    watch.say("stopping")
    watch.finish(SUMMARY)
    lines = [line.partition(" ")[2] for line in out.getvalue().splitlines()]
    assert lines[0] == "campaign mvp: 1,201 datasets"
    assert lines[-1] == "1 error, 1,200 processed; 1 h 01 min"
    assert len(lines) == 4
    assert err.getvalue().splitlines() == [
        f"caldp campaign: {NAME}: error, deterministic in 1.5 s: exit 1: the same failure twice",
        "caldp campaign: stopping",
    ]


def test_a_look_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("caldp.reporter.time.monotonic", lambda: now)
    out = io.StringIO()
    watch = PlainWatch(out, None)
    for _ in range(121):
        watch.look(outlook())
        now += 1
    lines = out.getvalue().splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "3 placed, 1 processing, 1,200 processed; about 1 min 30 s left"
    ] * 2


def test_json_lines() -> None:
    out, err = io.StringIO(), io.StringIO()
    watch = JsonWatch(out, err)
    watch.begin("mvp", 4)
    for status, verdict in ((PROCESSED, GOOD), (PLACED, TRANSIENT), (FAILED, UNKNOWN), (CANCELLED, UNKNOWN)):
        watch.ended(LINE, status, verdict, 1.5)
    watch.say("stopping\n\x1b[31m")
    watch.look(outlook())
    watch.finish(Summary(Counter(placed=1), "no room", 2.0))
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in told] == ["begin", *["ended"] * 4, "message", "message", "finished"]
    assert [event["cause"] for event in told[1:5]] == ["processed", "transient", "deterministic", "cancelled"]
    assert {key: told[-1][key] for key in ("states", "paused", "exit_status")} == {
        "states": {"placed": 1},
        "paused": "no room",
        "exit_status": 3,
    }


def test_progress_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("caldp.reporter.time.monotonic", lambda: now)
    out = io.StringIO()
    watch = JsonWatch(out, None)
    running = outlook(seconds_left=None)
    for _ in range(41):
        watch.look(running)
        now += 0.1
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(told) == 2
    assert (told[0]["event"], told[0]["running"], told[0]["seconds_left"]) == ("progress", [NAME], None)


def test_quiet() -> None:
    err = io.StringIO()
    watch = QuietWatch(err)
    watch.begin("mvp", 1)
    watch.look(outlook())
    watch.ended(LINE, PROCESSED, GOOD, 1.5)
    watch.ended(LINE, PLACED, TRANSIENT, 1.5)
    watch.finish(SUMMARY)
    watch.finish(None)
    assert err.getvalue() == ""
    watch.finish(Summary(Counter(placed=1), "canaries\x1b[2J died"))
    assert err.getvalue().splitlines() == ["caldp campaign: paused: canaries died"]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ({"processed": 2}, 0),
        ({}, 0),
        ({"processed": 2, "synced": 1}, 0),
        ({"processed": 2, "error": 1}, 1),
        ({"cancelled": 1}, 1),
        ({"error": 1, "placed": 1}, 3),
        ({"processing": 1}, 3),
    ],
)
def test_the_exit_status(states: dict[str, int], code: int) -> None:
    assert Summary(Counter(states)).exit_status == code


@pytest.mark.parametrize("columns", [120, 40, 8, 1])
def test_a_table(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setenv("TERM", "xterm-256color")
    screen, errors = Terminal(), io.StringIO()
    watch = open_watch(json=False, quiet=False, stdout=screen, stderr=errors)
    assert isinstance(watch, TableWatch)
    watch.begin("mvp\x1b[2J", 1204)
    watch.look(outlook())
    watch.look(outlook(running=[Running(LINE, 2 << 30)] * 50))
    watch.ended(LINE, FAILED, UNKNOWN, 1.5)
    watch.say("stopping [bold]")
    watch.finish(SUMMARY)
    shown = screen.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "stopping [bold]" in shown
    assert f"{NAME}: error, deterministic" in shown
    assert "1 error, 1,200 processed" in shown.rpartition("\x1b[?25h")[2]
    assert "\x1b[2J" not in shown
    if columns == 120:
        for said in (
            "about 1 min 30 s left",
            "2 to be tried again, in 1 min 01 s",
            "1,200 processed",
            "900 MB",
            "2.15 GB",
        ):
            assert said in shown, said
    assert errors.getvalue().count(NAME) == 1  # another place than the screen


def test_a_screen_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    watch = open_watch(json=False, quiet=False, stdout=screen, stderr=screen)
    watch.begin("mvp", 1)
    screen.close()
    watch.look(outlook())
    watch.ended(LINE, FAILED, UNKNOWN, 1.5)
    watch.say("stopping")
    watch.finish(SUMMARY)


def test_who_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(stdout: Any = None, *, json: bool = False, quiet: bool = False) -> type:
        return type(open_watch(json=json, quiet=quiet, stdout=stdout or io.StringIO(), stderr=io.StringIO()))

    monkeypatch.setenv("TERM", "xterm")
    assert chosen(json=True, quiet=True) is JsonWatch
    assert chosen(Terminal(), quiet=True) is QuietWatch
    assert chosen() is PlainWatch
    assert chosen(Terminal()) is TableWatch
    monkeypatch.setenv("TERM", "dumb")
    assert chosen(Terminal()) is PlainWatch
