"""What becomes of a dataset when its job has ended: once, twice, late, and while others write."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from caldp import messages
from caldp.campaign import transitions
from caldp.campaign.events import ended
from caldp.campaign.failures import Ended, Evidence
from caldp.campaign.settings import DEFAULT, Budget, Settings
from caldp.campaign.transitions import Move, apply, follow, settle
from caldp.errors import BusyError, DuplicateError, OutputError
from caldp.messages import STATES, Claim, Status
from caldp.store import ConflictError, Overwrite, PutMode
from tests.fakes import events
from tests.fakes.stores import MemoryStore

NAME = events.NAME
MIB = 2**20
HOUR = 3600
ESSENTIAL = events.NO_REASON
TIMEOUT = "Job attempt duration exceeded timeout"
OOM = "OutOfMemoryError: Container killed due to memory usage"
FOLDERS = {folder for _, folder in STATES.values() if folder}

#: Tried again for nothing: what CALCLOUD did of time-outs and of whatever it did not know.
CALCLOUD = replace(DEFAULT, budgets={**DEFAULT.budgets, "timeout": Budget(0), "unknown": Budget(0)})
SPENT = {name: budget.retries for name, budget in DEFAULT.budgets.items()}


def as_is(delay: float) -> float:
    return delay


def running(attempt: int = 1, **more: Any) -> Status:
    given = {"rung": "2g", "time_limit": 6 * HOUR, "run": "run-1", "job": "job-1", "shard": "s-1", **more}
    return Status(NAME, attempt, "processing", **given)


def end(exit_code: int | None = 1, reason: str = "", status_reason: str = "", **more: Any) -> Ended:
    given = {"dataset": NAME, "attempt": 1, "succeeded": False, "job": "job-1", **more}
    return Ended(exit_code=exit_code, reason=reason, status_reason=status_reason, **given)


def of(event: dict[str, Any]) -> Ended:
    said = ended(event, lambda queue, definition: queue != "jwst-queue")
    assert said is not None
    return said


def next_of(how: Ended, stands: Status | None, figures: Settings = DEFAULT, **evidence: Any) -> Move:
    return follow(how, Evidence(stands, **evidence), figures, as_is)


def status_of(move: Move) -> Status:
    assert move.status is not None
    return move.status


def shown(store: MemoryStore) -> list[str]:
    return sorted(folder for folder in FOLDERS if NAME in store.names(f"messages/{folder}"))


def stored(store: MemoryStore) -> Status:
    status = messages.read(store, NAME)
    assert status is not None
    return status


def put(store: MemoryStore, status: Status) -> Status:
    return messages.advance(store, status)[0]


def gatherer(store: MemoryStore, **evidence: Any) -> Callable[[], Evidence]:
    return lambda: Evidence(messages.read(store, NAME), **evidence)


# ---- the known events

#: event, what it is like: (rung, time limit) of the next attempt
KNOWN: dict[str, tuple[Callable[[Path], Ended], str, tuple[str, int]]] = {
    **{
        name: (lambda data, name=name: of(events.recorded(data, f"{name}-error.yaml")), "oom", ("8g", 6 * HOUR))  # type: ignore[misc]
        for name in ("caldp-memory", "os-memory", "log-memory")
    },
    "container-memory": (lambda _: of(events.container_memory()), "oom", ("8g", 6 * HOUR)),
    "cannot-inspect": (
        lambda data: of(events.recorded(data, "cannot-inspect-error.yaml")),
        "transient",
        ("2g", 6 * HOUR),
    ),
    "docker-timeout": (lambda _: of(events.docker_timeout()), "transient", ("2g", 6 * HOUR)),
    "timeout": (lambda data: of(events.recorded(data, "timeout-error.yaml")), "timeout", ("2g", 24 * HOUR)),
    "generic": (lambda data: of(events.recorded(data, "generic-error.yaml")), "unknown", ("2g", 6 * HOUR)),
    "plain 137": (lambda _: of(events.plain_137()), "unknown", ("2g", 6 * HOUR)),
    "host lost": (lambda _: of(events.host_lost()), "transient", ("2g", 6 * HOUR)),
    "no registry": (lambda _: of(events.no_registry()), "transient", ("2g", 6 * HOUR)),
    "oom and timeout": (lambda _: of(events.oom_and_timeout()), "oom", ("8g", 6 * HOUR)),
    "no container": (lambda _: of(events.no_container()), "unknown", ("2g", 6 * HOUR)),
    "25": (lambda _: of(events.event(25)), "transient", ("2g", 6 * HOUR)),
    "26": (lambda _: of(events.event(26)), "transient", ("2g", 6 * HOUR)),
    "27": (lambda _: of(events.event(27)), "transient", ("2g", 6 * HOUR)),
}


@pytest.fixture(params=KNOWN)
def known(request: pytest.FixtureRequest, shared_data: Path) -> tuple[Ended, str, tuple[str, int]]:
    make, budget, expected = KNOWN[request.param]
    return replace(make(shared_data), dataset=NAME, job="job-1"), budget, expected


def test_a_known_event_when_all_is_fresh(known: tuple[Ended, str, tuple[str, int]]) -> None:
    how, budget, (rung, limit) = known
    store = MemoryStore()
    put(store, running())
    move, status = settle(store, how, gatherer(store), DEFAULT, as_is)
    assert status is not None
    assert (status.attempt, status.state, status.rung, status.time_limit) == (2, "placed", rung, limit)
    assert status.spent == {budget: 1}
    assert (status.job, status.run, status.shard) == ("", "", "")
    assert status.reason
    assert move.delay == DEFAULT.budgets[budget].delays[0]
    assert shown(store) == []  # nobody shows what is placed


def test_a_known_event_when_its_budget_is_spent(known: tuple[Ended, str, tuple[str, int]]) -> None:
    how, budget, _ = known
    store = MemoryStore()
    # All other budgets are fresh, and none of them is touched.
    put(store, running(spent={budget: SPENT[budget]}))
    settle(store, how, gatherer(store), DEFAULT, as_is)
    status = stored(store)
    assert (status.attempt, status.state, status.rung) == (1, "error", "2g")
    assert status.spent == {budget: SPENT[budget]}
    assert status.reason.startswith(f"tried again {SPENT[budget]} times: ")
    assert shown(store) == ["dataset-error"]


def test_a_known_event_when_others_are_spent(known: tuple[Ended, str, tuple[str, int]]) -> None:
    how, budget, _ = known
    figures = replace(DEFAULT, attempts=100)
    others = {name: count for name, count in SPENT.items() if name != budget}
    assert status_of(next_of(how, running(spent=others), figures)).spent == {**others, budget: 1}


def test_a_known_event_when_cancelled(known: tuple[Ended, str, tuple[str, int]]) -> None:
    how, _, _ = known
    store = MemoryStore()
    before = put(store, replace(running(), state="cancelled", reason="by smith"))
    settle(store, how, gatherer(store), DEFAULT, as_is)
    assert stored(store) == before
    assert shown(store) == ["dataset-cancelled"]


def test_a_known_event_as_calcloud_had_it(known: tuple[Ended, str, tuple[str, int]]) -> None:
    how, budget, _ = known
    status = status_of(next_of(how, running(), CALCLOUD))
    assert status.state == ("error" if budget in ("timeout", "unknown") else "placed")
    if status.state == "error":
        assert status.reason.startswith("not tried again: ")


def test_cancelled_by_an_operator(shared_data: Path) -> None:
    how = replace(of(events.recorded(shared_data, "operator-cancelled.json")), dataset=NAME)
    for spent in ({}, SPENT):
        store = MemoryStore()
        put(store, running(job="", spent=spent))
        settle(store, how, gatherer(store), DEFAULT, as_is)
        assert (stored(store).state, stored(store).attempt, stored(store).cause) == ("cancelled", 1, "cancelled")
        assert shown(store) == ["dataset-cancelled"]


@pytest.mark.parametrize("code", [2, 21, 23, 24, 28, 40, 41])
def test_what_fails_again_is_not_tried_again(code: int) -> None:
    status = status_of(next_of(end(code), running()))
    assert (status.state, status.attempt, status.cause, status.exit_code) == ("error", 1, "deterministic", code)
    assert len(status.fingerprint) == 12


def test_somebody_elses_job_changes_nothing() -> None:
    assert next_of(of(events.foreign()), running()) == Move()


@pytest.mark.parametrize(("why", "expected"), [("MISCONFIGURATION:X", ""), ("", "image")])
def test_a_broken_deployment_pauses_all_and_costs_no_retry(why: str, expected: str) -> None:
    how = end(None, "", why) if why else of(events.no_image())
    move = next_of(how, running(spent=SPENT), replace(DEFAULT, attempts=100))
    status = status_of(move)
    assert (status.state, status.attempt, status.rung) == ("placed", 2, "2g")
    assert {name: status.spent[name] for name in SPENT} == SPENT
    assert move.pause == status.reason
    assert "repair the image" in move.pause
    assert (why or expected) in move.pause


def test_failures_of_the_deployment_do_not_use_up_the_attempts() -> None:
    figures = replace(DEFAULT, attempts=2)
    status = running()
    for number in range(1, 6):
        how = replace(of(events.no_image()), dataset=NAME, attempt=number, job=f"job-{number}")
        status = status_of(next_of(how, replace(status, state="processing", job=how.job, by=""), figures))
        assert (status.state, status.attempt, status.spent) == ("placed", number + 1, {"deployment": number})
    # Its own failures do, as if there had been no others.
    for number, state in ((6, "placed"), (7, "error")):
        now = replace(status, state="processing", job=f"job-{number}", by="")
        status = status_of(next_of(end(25, attempt=number, job=f"job-{number}"), now, figures))
        assert status.state == state
    assert status.reason.startswith("2 attempts made: ") and status.spent == {"deployment": 5, "transient": 1}


# ---- what the next attempt is given


def test_the_ladder_is_climbed_to_its_top() -> None:
    status: Status | None = running()
    rungs = []
    while status is not None and status.state != "error":
        rungs.append((status.attempt, status.rung))
        job = f"job-{status.attempt}"
        now = replace(status, state="processing", job=job, by="")
        status = next_of(end(137, OOM, attempt=status.attempt, job=job), now).status
    assert rungs == [(1, "2g"), (2, "8g"), (3, "16g"), (4, "64g")]
    assert status is not None
    assert status.reason.startswith("ladder exhausted: the container was killed for memory")
    assert (status.attempt, status.cause, status.spent) == (4, "oom", {"oom": 3})


def test_time_limits_grow_to_the_last() -> None:
    def limit(given: int) -> Status:
        return status_of(next_of(end(137, "", TIMEOUT), running(time_limit=given)))

    assert [limit(hours * HOUR).time_limit // HOUR for hours in (1, 6, 24, 48)] == [6, 24, 72, 72]
    assert limit(20 * 60).time_limit == 2 * HOUR
    assert limit(12970).time_limit == 12 * HOUR  # one that somebody chose
    for at_the_end in (72, 100):
        assert limit(at_the_end * HOUR).state == "error"
        assert limit(at_the_end * HOUR).reason.startswith("time limits exhausted: ")


def test_memory_nearly_used_up_is_a_climb() -> None:
    how = of(events.plain_137())
    status = status_of(next_of(how, running(), result={"peak_memory_bytes": 1700 * MIB}))
    assert (status.rung, status.cause) == ("8g", "oom")


@pytest.mark.parametrize(
    ("memory", "limit", "rung", "seconds"),
    [
        (1792, 7086, "2g", 7086),
        (7168, 0, "8g", 72 * HOUR),
        (10_000, 1, "16g", 1),
        (999_999, 1, "64g", 1),
        (0, 0, "2g", 72 * HOUR),
    ],
)
def test_without_a_status_the_job_tells_what_it_was_given(memory: int, limit: int, rung: str, seconds: int) -> None:
    store = MemoryStore()
    how = end(25, attempt=3, memory_limit=memory * MIB, time_limit=limit)
    settle(store, how, gatherer(store), DEFAULT, as_is)
    status = stored(store)
    assert (status.attempt, status.state, status.rung, status.time_limit) == (4, "placed", rung, seconds)
    assert status_of(next_of(end(25, attempt=8), None)).state == "error"  # the last that there is


def test_a_rung_that_the_ladder_has_no_more() -> None:
    assert status_of(next_of(end(31, memory_limit=7168 * MIB), running(rung="6g"))).rung == "16g"


def test_attempts_are_limited_and_a_rescue_counts_anew() -> None:
    spent = {"transient": 3, "oom": 3, "timeout": 1}
    status = status_of(next_of(end(25, attempt=8), running(8, spent=spent)))
    assert (status.state, status.cause) == ("error", "transient")
    assert status.reason.startswith("8 attempts made: ")
    assert status_of(next_of(end(25, attempt=7), running(7, spent={**spent, "oom": 2}))).state == "placed"
    assert status_of(next_of(end(25, attempt=9), running(9))).state == "placed"


def test_delays_grow_and_are_jittered() -> None:
    def delays(code: int, budget: str) -> list[float]:
        asked: list[float] = []
        for spent in range(DEFAULT.budgets[budget].retries):
            move = follow(
                end(code),
                Evidence(running(spent={budget: spent})),
                DEFAULT,
                lambda delay: asked.append(delay) or delay / 2,  # type: ignore[func-returns-value]
            )
            assert move.delay == asked[-1] / 2
        return asked

    assert delays(25, "transient") == [60, 300, 900, 3600]
    assert delays(34, "oom") == [0, 0, 0]
    assert delays(99, "unknown") == [300]


# ---- what failures say


def test_the_same_failure_twice_is_no_chance() -> None:
    figures = replace(DEFAULT, budgets={**DEFAULT.budgets, "unknown": Budget(5)})
    reason = f"{NAME}: no more room in /scratch/{{}}/x after {{}} s"
    first = status_of(next_of(end(29), running(), figures, result={"reason": reason.format("a", 12), "code": 29}))
    assert first.state == "placed"
    now = replace(first, state="processing", job="job-2", by="")
    same = next_of(end(29, attempt=2, job="job-2"), now, figures, result={"reason": reason.format("bc", 7)})
    assert (status_of(same).state, status_of(same).cause) == ("error", "deterministic")
    assert status_of(same).reason.startswith("the same failure twice: ")
    for other in (end(1, attempt=2, job="job-2"), end(29, attempt=2, job="job-2")):
        assert status_of(next_of(other, now, figures, result={"reason": "another"})).state == "placed"
    # Of what nobody knows anything, nobody knows that it is the same.
    nothing = status_of(next_of(end(None), running(), figures))
    assert nothing.fingerprint == ""
    again = next_of(end(None, attempt=2, job="j"), replace(nothing, state="processing", by=""), figures)
    assert status_of(again).state == "placed"


def test_a_host_that_is_lost_twice_is_no_reason_to_give_up() -> None:
    first = status_of(next_of(of(events.host_lost()), running()))
    now = replace(first, state="processing", job="job-2", by="")
    assert status_of(next_of(of(events.host_lost(attempt=2, job="job-2")), now)).state == "placed"


@pytest.mark.parametrize(
    ("how", "evidence", "reason"),
    [
        (end(1, ESSENTIAL, ESSENTIAL), {}, "it failed, nobody says why (exit status 1)"),
        (end(None), {}, "it failed, nobody says why"),
        (of(events.no_registry()), {}, "its host could not run the container (CannotPullContainerError: Error res"),
        (end(22), {"result": {"reason": "MAST\n is down"}}, "MAST is down"),
        (end(22), {"result": {"reason": 7}}, "MAST, S3 or CRDS did not answer (exit status 22)"),
    ],
)
def test_reasons_are_for_people(how: Ended, evidence: dict[str, Any], reason: str) -> None:
    assert status_of(next_of(how, running(), **evidence)).reason.startswith(reason)


def test_a_reason_does_not_grow_without_end() -> None:
    assert len(status_of(next_of(end(1, "x" * 100_000), running())).reason) < 1100


def test_what_the_run_wrote_itself_is_kept_and_judged() -> None:
    store = MemoryStore()
    put(store, running(fingerprint="of the one before", cause="host", spent={"transient": 1}))
    put(store, replace(running(), state="error", rung="", reason="calcos failed", exit_code=23))
    settle(store, end(23), gatherer(store), DEFAULT, as_is)
    status = stored(store)
    assert (status.state, status.reason, status.exit_code) == ("error", "calcos failed", 23)
    assert (status.cause, status.spent, status.rung) == ("deterministic", {"transient": 1}, "2g")
    assert status.fingerprint not in ("", "of the one before")
    assert (status.run, status.job, status.shard) == ("run-1", "job-1", "s-1")
    assert [entry["state"] for entry in status.history] == ["processing", "error", "error"]
    assert shown(store) == ["dataset-error"]
    before = dict(store.objects)
    settle(store, end(23), gatherer(store), DEFAULT, as_is)
    assert store.objects == before


# ---- news that come late, or twice


def test_what_was_told_before_changes_nothing_but_is_queued_again() -> None:
    store = MemoryStore()
    put(store, running())
    first, _ = settle(store, end(25), gatherer(store), DEFAULT, as_is)
    before = dict(store.objects)
    for _ in range(3):
        move, status = settle(store, end(25), gatherer(store), DEFAULT, as_is)
        assert (move.delay, status) == (first.delay, stored(store))
        assert store.objects == before
    put(store, replace(stored(store), state="submitted", by="", at=""))
    before = dict(store.objects)
    assert settle(store, end(25), gatherer(store), DEFAULT, as_is) == (Move(), None)
    assert store.objects == before


def test_a_pause_is_asked_for_again() -> None:
    store = MemoryStore()
    put(store, running())
    first, _ = settle(store, of(events.no_image()), gatherer(store), DEFAULT, as_is)
    again, _ = settle(store, of(events.no_image()), gatherer(store), DEFAULT, as_is)
    assert first.pause == again.pause != ""


@pytest.mark.parametrize("how", [end(1, OOM, job="job-9"), end(0, succeeded=True, job="job-9")])
@pytest.mark.parametrize(
    "stands", [running(2), replace(running(1), state="processed"), running(1, job="job-2"), running(1, job="job-2:4")]
)
def test_late_news_are_noted_once(how: Ended, stands: Status) -> None:
    store = MemoryStore()
    before = put(store, stands)
    for _ in range(3):
        settle(store, how, gatherer(store), DEFAULT, as_is)
    after = stored(store)
    if how.succeeded and stands.done:
        assert after == before  # a million times nothing
        return
    assert replace(after, history=()) == replace(before, history=())
    assert len(after.history) == len(before.history) + 1
    assert (after.history[-1]["cause"], after.history[-1]["job"]) == ("stale", "job-9")
    assert shown(store) == [STATES[stands.state][1]]


def test_late_news_of_a_dataset_without_a_status() -> None:
    store = MemoryStore()
    assert settle(store, end(1, "", "Duplicate job of x"), gatherer(store), DEFAULT, as_is) == (Move(), None)
    assert store.objects == {}


def test_the_job_of_an_array_is_its_child() -> None:
    """A submitter may know only what the array is called."""
    assert status_of(next_of(end(25, job="job-1:17"), running(job="job-1"))).state == "placed"


@pytest.mark.parametrize("published", [1, 2])
def test_products_outrank_whatever_the_job_says(published: int) -> None:
    store = MemoryStore()
    put(store, running(retry=2))
    settle(store, end(137, OOM), gatherer(store, published=published), DEFAULT, as_is)
    status = stored(store)
    assert (status.attempt, status.state, status.exit_code, status.reason) == (published, "processed", 0, "")
    assert status.run == "run-1"  # a downloader goes by it
    assert shown(store) == ["datasets-processed"]
    before = dict(store.objects)
    settle(store, end(137, OOM), gatherer(store, published=published), DEFAULT, as_is)
    assert store.objects == before


def test_a_host_lost_before_the_second_start_said_anything() -> None:
    store = MemoryStore()
    put(store, running())
    put(store, replace(running(), state="error", reason="SIGTERM", exit_code=143))
    settle(store, end(23, retry=2), gatherer(store), DEFAULT, as_is)
    assert stored(store).order == (1, 2, 40)


# ---- others write at the same time


def test_an_operator_who_cancels_meanwhile_wins() -> None:
    store = MemoryStore()
    put(store, running())
    move = next_of(end(25), stored(store))
    cancelled = put(store, replace(running(), state="cancelled", reason="by smith"))
    assert apply(store, move) == cancelled
    assert stored(store) == cancelled
    looks = iter([Evidence(running()), Evidence(cancelled)])
    settle(store, end(25), lambda: next(looks), DEFAULT, as_is)
    assert stored(store) == cancelled
    assert shown(store) == ["dataset-cancelled"]


def test_an_operator_who_cancels_in_between_wins() -> None:
    class Raced(MemoryStore):
        raced = False

        def put(self, key: str, data: bytes, mode: PutMode) -> str:
            if key.startswith("messages/status/") and b'"placed"' in data and not self.raced:
                self.raced = True
                messages.advance(self, replace(running(), state="cancelled"))
            return super().put(key, data, mode)

    store = Raced()
    put(store, running())
    settle(store, end(25), gatherer(store), DEFAULT, as_is)
    assert store.raced
    assert (stored(store).state, stored(store).attempt) == ("cancelled", 1)
    assert shown(store) == ["dataset-cancelled"]


def test_a_heartbeat_is_no_change() -> None:
    store = MemoryStore()
    put(store, running())
    move = next_of(end(25), stored(store))
    assert messages.beat(store, running())
    status = apply(store, move)
    assert status is not None
    assert status.state == "placed"


def test_nothing_to_write_writes_nothing() -> None:
    store = MemoryStore()
    assert apply(store, Move()) is None
    assert store.objects == {}


def test_a_damaged_status_is_not_replaced() -> None:
    store = MemoryStore()
    store.put(messages.status_key(NAME), b"[]", Overwrite())
    with pytest.raises(OutputError, match="is not a status record"):
        settle(store, end(25), gatherer(store), DEFAULT, as_is)
    assert store.get(messages.status_key(NAME)).data == b"[]"  # type: ignore[union-attr]


class Killed(BaseException):
    """As by SIGKILL."""


class Mortal(MemoryStore):
    """Memory of a process that is killed at one of its writes, before or after it."""

    def __init__(self, objects: dict[str, bytes], at: float, after: bool = False) -> None:
        super().__init__()
        self.objects, self._at, self._after, self.writes = dict(objects), at, after, 0

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        return str(self._mortal(super().put, key, data, mode))

    def delete(self, *keys: str) -> None:
        self._mortal(super().delete, *keys)

    def _mortal(self, write: Callable[..., Any], *args: Any) -> Any:
        self.writes += 1
        if self.writes == self._at and not self._after:
            raise Killed
        try:
            return write(*args)
        finally:
            if self.writes == self._at:
                raise Killed


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("stands", "how", "evidence"),
    [
        (running(), end(25), {}),
        (running(), end(23), {}),
        (replace(running(), state="error", reason="x", exit_code=23), end(23), {}),
        (replace(running(), state="error", reason="x", exit_code=31), end(31), {}),
        (running(), end(137, "", "Operator cancelled"), {}),
        (running(), end(137), {"published": 1}),
        (running(2), end(1), {}),
    ],
)
def test_killed_at_any_write_and_told_again(
    stands: Status, how: Ended, evidence: dict[str, Any], after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "now", lambda: "2026-01-01T00:00:00.000Z")
    begun = MemoryStore()
    put(begun, stands)
    whole = Mortal(begun.objects, 0)
    expected, _ = settle(whole, how, gatherer(whole, **evidence), DEFAULT, as_is)
    assert whole.writes
    for at in range(1, whole.writes + 1):
        store = Mortal(begun.objects, at, after)
        with pytest.raises(Killed):
            settle(store, how, gatherer(store, **evidence), DEFAULT, as_is)
        move, _ = settle(store, how, gatherer(store, **evidence), DEFAULT, as_is)
        assert store.objects == whole.objects
        if expected.status and expected.status.state == "placed":
            assert move.status is not None
            assert (move.status.state, move.delay) == ("placed", expected.delay)


def test_threads_that_hear_the_same_agree() -> None:
    for _ in range(20):
        store = MemoryStore()
        put(store, running())
        with ThreadPoolExecutor(8) as pool:
            told = [pool.submit(settle, store, end(25), gatherer(store), DEFAULT, as_is) for _ in range(16)]
        assert {move.result()[0].delay for move in told} == {60}
        assert (stored(store).attempt, stored(store).spent, shown(store)) == (2, {"transient": 1}, [])
        assert len(stored(store).history) == 2


def test_evidence_that_is_never_right_is_given_up() -> None:
    store = MemoryStore()
    put(store, running())
    with pytest.raises(BusyError, match=f"{NAME}.*nothing was changed"):
        settle(store, end(25), lambda: Evidence(running(2)), DEFAULT, as_is)


# ---- any course that things can take

ENDS: Sequence[tuple[str, int | None, str, str]] = (
    ("oom", 137, OOM, ESSENTIAL),
    ("transient", 25, "", ESSENTIAL),
    ("host", None, "", "Host EC2 (instance i-1) terminated."),
    ("timeout", 137, "", TIMEOUT),
    ("unknown", 1, ESSENTIAL, ESSENTIAL),
    ("deterministic", 23, "", ESSENTIAL),
    ("deployment", None, "CannotPullContainerError: not found", "Task failed to start"),
)
FIGURES = replace(DEFAULT, budgets={**DEFAULT.budgets, "unknown": Budget(3, (1,))}, attempts=6)


class Course(RuleBasedStateMachine):
    """One dataset, its jobs, an operator, and news that come in any order, and again."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        messages.advance(self.store, Status(NAME, 1, "placed", rung="2g", time_limit=HOUR))
        self.jobs: dict[str, tuple[int, Status | None]] = {}
        self.news: list[Ended] = []
        self.published = 0
        self.rescues = 0
        self.highest: tuple[int, int, int] = (0, 0, 0)
        self.count = 0

    def alive(self) -> list[str]:
        return [job for job, (_, mine) in self.jobs.items() if mine is not None]

    def hear(self, how: Ended) -> None:
        owners = [job for job in self.alive() if messages.owns(self.store, self.jobs[job][1])]  # type: ignore[arg-type]
        before = stored(self.store)
        settle(self.store, how, gatherer(self.store, published=self.published), FIGURES, as_is)
        after = stored(self.store)
        if after.attempt > before.attempt:
            assert owners == [], "a new attempt was placed while a run was alive that owns the dataset"
            assert sum(after.spent.values()) == sum(before.spent.values()) + 1
        else:
            assert after.spent == before.spent

    @precondition(lambda self: stored(self.store).state in ("placed", "submitted"))
    @rule()
    def submit(self) -> None:
        """A submitter may be killed, and submit again."""
        now = stored(self.store)
        messages.advance(self.store, replace(now, state="submitted", shard="s", at="", by="", history=()))
        self.count += 1
        self.jobs[f"job-{self.count}"] = (now.attempt, None)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        attempt, mine = self.jobs[job]
        if mine is None:
            try:
                mine = messages.begin(self.store, NAME, f"run-of-{job}", self.published, Claim(attempt, 1, job))
            except DuplicateError:
                del self.jobs[job]
                self.news.append(Ended(NAME, attempt, succeeded=True, exit_code=0, job=job))
            else:
                self.jobs[job] = (attempt, mine)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), how=st.sampled_from(ENDS), says_so=st.booleans())
    def fail(self, data: st.DataObject, how: tuple[str, int | None, str, str], says_so: bool) -> None:
        """A job ends badly, perhaps before it began, perhaps without a word."""
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        attempt, mine = self.jobs.pop(job)
        if mine is not None and says_so:
            messages.advance(self.store, replace(mine, state="error", reason="I failed", at="", by="", history=()))
        self.news.append(end(*how[1:], attempt=attempt, job=job))

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), says_so=st.booleans())
    def publish(self, data: st.DataObject, says_so: bool) -> None:
        job = data.draw(st.sampled_from(self.alive()))
        attempt, mine = self.jobs.pop(job)
        assert mine is not None
        ours = messages.owns(self.store, mine)
        if ours:
            self.published = attempt
            if says_so:
                messages.advance(self.store, Status(NAME, attempt, "processed", mine.run, exit_code=0))
        well = ours and says_so
        self.news.append(end(0 if well else 137, attempt=attempt, job=job, succeeded=well))

    @precondition(lambda self: self.news)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.hear(data.draw(st.sampled_from(self.news)))

    @rule()
    def cancel(self) -> None:
        now = stored(self.store)
        if not now.done:
            messages.advance(self.store, replace(now, state="cancelled", at="", by="", history=()))

    @precondition(lambda self: stored(self.store).state in ("error", "cancelled") and self.rescues < 2)
    @rule()
    def rescue(self) -> None:
        self.rescues += 1
        now = stored(self.store)
        messages.advance(self.store, Status(NAME, now.attempt + 1, "placed", rung="8g", time_limit=HOUR))

    @invariant()
    def the_state_only_rises_and_is_shown_once(self) -> None:
        now = stored(self.store)
        assert now.order >= self.highest
        self.highest = now.order
        folder = STATES[now.state][1]
        assert shown(self.store) == ([folder] if folder else [])

    @invariant()
    def no_budget_is_overspent(self) -> None:
        now = stored(self.store)
        for name, count in now.spent.items():
            assert name == "deployment" or count <= FIGURES.budgets[name].retries
        assert sum(now.spent.values()) < FIGURES.attempts
        assert now.rung in [rung.name for rung in FIGURES.rungs]
        assert now.time_limit in FIGURES.time_limits

    @invariant()
    def one_run_at_most_owns_the_dataset(self) -> None:
        owners = [job for job in self.alive() if messages.owns(self.store, self.jobs[job][1])]  # type: ignore[arg-type]
        assert len(owners) <= 1

    def teardown(self) -> None:
        """When all news were heard, none of them changes anything any more."""
        for how in self.news:
            self.hear(how)
        before = dict(self.store.objects)
        for how in [*reversed(self.news), *self.news]:
            self.hear(how)
        assert self.store.objects == before


Course.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCourse = Course.TestCase


@settings(deadline=None)
@given(st.lists(st.sampled_from(ENDS), min_size=1, max_size=12), st.lists(st.booleans(), min_size=12), st.randoms())
def test_the_order_of_the_news_does_not_matter(
    ends: list[tuple[str, int | None, str, str]], says_so: list[bool], chance: random.Random
) -> None:
    """A dataset whose jobs end so stands in the end as if each had been heard of once, at once."""

    def play(shuffled: bool) -> Status:
        store, heard = MemoryStore(), []
        put(store, Status(NAME, 1, "placed", rung="2g", time_limit=HOUR))
        for how, says in zip(ends, says_so, strict=False):
            now = stored(store)
            if now.state != "placed":
                break
            job = f"job-{now.attempt}"
            mine = messages.begin(store, NAME, job, claim=Claim(now.attempt, 1, job))
            if says:
                put(store, replace(mine, state="error", reason="I", cause="", at="", by="", history=()))
            heard.append(end(*how[1:], attempt=now.attempt, job=job))
            again = chance.choices(heard, k=4) if shuffled else []
            for news in [*again, heard[-1], *again]:
                settle(store, news, gatherer(store), FIGURES, as_is)
        return stored(store)

    def essence(status: Status) -> tuple[Any, ...]:
        return status.attempt, status.state, status.cause, status.rung, status.time_limit, status.spent

    assert essence(play(shuffled=True)) == essence(play(shuffled=False))


def test_budgets_are_those_of_the_settings() -> None:
    assert set(transitions.BUDGETS.values()) == set(DEFAULT.budgets)


def test_a_projection_that_somebody_else_writes_is_no_conflict() -> None:
    """Only a race for the status itself is thought over."""

    class Crowded(MemoryStore):
        def put(self, key: str, data: bytes, mode: PutMode) -> str:
            if key.startswith("messages/dataset-error/"):
                raise ConflictError(key)
            return super().put(key, data, mode)

    store = Crowded()
    put(store, running())
    settle(store, end(23), gatherer(store), DEFAULT, as_is)
    assert stored(store).state == "error"
