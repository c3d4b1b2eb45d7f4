"""The table of failures: every row, the order of the rows, and what was recorded of real failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldp.campaign.events import ended
from caldp.campaign.failures import DUPLICATE, ROWS, Ended, Evidence, Verdict, classify
from caldp.dataset import Dataset
from caldp.messages import STATES, Status
from tests.fakes import events

NAME = events.NAME
MIB = 2**20


def end(exit_code: int | None = None, reason: str = "", status_reason: str = "", **more: Any) -> Ended:
    fields = {"dataset": NAME, "attempt": 2, "succeeded": False, "job": "job-1", **more}
    return Ended(exit_code=exit_code, reason=reason, status_reason=status_reason, **fields)


def status(attempt: int, state: str, **more: Any) -> Evidence:
    return Evidence(Status(NAME, attempt, state, **more))


def result(**record: Any) -> Evidence:
    return Evidence(result=record)


NOTHING = Evidence()
OOM = "OutOfMemoryError: Container killed due to memory usage"
TIMEOUT = "Job attempt duration exceeded timeout"
ESSENTIAL = "Essential container in task exited"

#: (place in the table, what happened, what is known besides)
HITS: list[tuple[int, Ended, Evidence]] = [
    (1, end(0, ours=False), NOTHING),
    (1, end(1, OOM, ours=False), status(5, "processed")),
    (2, end(1), status(3, "placed")),
    (2, end(31, OOM), status(2, "processed")),
    (2, end(0, succeeded=True), status(2, "archived")),
    (2, end(0, succeeded=True), status(2, "processing", job="job-2")),
    (2, end(0, succeeded=True, job="job-1:3"), status(2, "processing", job="job-2:3")),
    (2, end(143, "", f"{DUPLICATE} of job-2"), status(2, "submitted")),
    (3, end(137, OOM, TIMEOUT), Evidence(published=2)),
    (3, end(0, succeeded=True), Evidence(Status(NAME, 2, "processing"), published=2)),
    (3, end(1, "", "Operator cancelled"), Evidence(Status(NAME, 2, "cancelled"), published=2)),
    (4, end(137, OOM), status(2, "cancelled")),
    (4, end(137, "", "Operator cancelled by smith"), NOTHING),
    (4, end(137, OOM, "Terminated via console."), NOTHING),
    (5, end(1, OOM, ESSENTIAL), NOTHING),
    (5, end(24, OOM), result(retriable=False, code=24)),
    (5, end(137, OOM, TIMEOUT), NOTHING),
    (5, end(None, OOM), NOTHING),
    *((6, end(code), result(retriable=True)) for code in (31, 32, 33, 34)),
    (6, end(23), result(oom_kills=2, retriable=False)),
    (7, end(137, "", TIMEOUT), NOTHING),
    (7, end(143, "", TIMEOUT), result(code=143, retriable=True)),
    (8, end(None, "", "Host EC2 (instance i-0a1b) terminated."), NOTHING),
    (8, end(None, "", "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - no host in a day"), NOTHING),
    (9, end(None, "CannotPullContainerError: pull access denied, repository does not exist"), NOTHING),
    (9, end(None, "CannotPullContainerError: manifest for x:y Not Found"), NOTHING),
    (9, end(None, "CannotPullContainerError: 401 Unauthorized"), NOTHING),
    (9, end(None, "", "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"), NOTHING),
    (10, end(None, "CannotInspectContainerError: Could not transition to inspecting"), NOTHING),
    (10, end(137, "DockerTimeoutError: waiting 3m0s"), NOTHING),
    (10, end(None, "CannotStartContainerError: ..."), NOTHING),
    (10, end(None, "CannotCreateContainerError: no space left on device"), NOTHING),
    (10, end(None, "CannotPullContainerError: net/http: TLS handshake timeout"), NOTHING),
    (11, end(1), result(retriable=True)),
    (11, end(27), result(retriable=True)),
    (12, end(22), result(retriable=False)),
    (12, end(27), result(retriable=False)),
    *((13, end(code), NOTHING) for code in (22, 25, 26, 27)),
    *((14, end(code), NOTHING) for code in (2, 21, 23, 24, 28, 40, 41)),
    (15, end(143), NOTHING),
    (16, end(137, memory_limit=1792 * MIB), result(peak_memory_bytes=1613 * MIB)),
    (16, end(137), result(peak_memory_bytes=95, memory_limit_bytes=100)),
    (17, end(137, ESSENTIAL, memory_limit=1792 * MIB), result(peak_memory_bytes=1612 * MIB)),
    (17, end(137), result(peak_memory_bytes=95)),
    (17, end(137, memory_limit=100), NOTHING),
    (18, end(0, succeeded=True), Evidence(Status(NAME, 2, "processing", job="job-1"), published=1)),
    (18, end(None, succeeded=True), result(retriable=None)),
    (19, end(1, ESSENTIAL, ESSENTIAL), NOTHING),
    (19, end(1), result(retriable=None, oom_kills=0)),
    (19, end(99), status(2, "error", job="job-1")),
    (19, end(None), NOTHING),
]


@pytest.mark.parametrize(("place", "how", "evidence"), HITS)
def test_the_first_row_that_matches_counts(place: int, how: Ended, evidence: Evidence) -> None:
    row = ROWS[place - 1]
    matching = [other for other in ROWS if other.match(how, evidence)]
    assert matching[0] is row
    verdict = classify(how, evidence)
    assert (verdict.row, verdict.cause, verdict.said) == (row.number, row.cause, row.said)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.cause}")
def test_every_row_is_hit(row: Any) -> None:
    assert any(ROWS[place - 1] is row for place, _, _ in HITS)
    assert row.said
    assert "\n" not in row.said


def test_the_rows_are_those_of_the_contract() -> None:
    assert [(row.number, row.cause) for row in ROWS] == [
        (1, "foreign"),
        (2, "stale"),
        (3, "processed"),
        (4, "cancelled"),
        (5, "oom"),
        (6, "oom"),
        (7, "timeout"),
        (8, "host"),
        (9, "deployment"),
        (10, "host"),
        (11, "transient"),
        (11, "deterministic"),
        (12, "transient"),
        (13, "deterministic"),
        (14, "host"),
        (15, "oom"),
        (15, "unknown"),
        (16, "unknown"),
        (17, "unknown"),
    ]


def test_what_a_verdict_asks_for_follows_from_its_cause() -> None:
    for place, how, evidence in HITS:
        verdict = classify(how, evidence)
        assert verdict.climb == (verdict.cause == "oom"), place
        assert verdict.longer == (verdict.cause == "timeout"), place
        assert verdict.pause == (verdict.cause == "deployment"), place
        tried = ("oom", "timeout", "host", "transient", "unknown", "deployment")
        assert verdict.retry == (verdict.cause in tried), place


@pytest.mark.parametrize("name", ["exit_code", "reason", "status_reason", "job", "memory_limit"])
def test_every_field_is_optional(name: str) -> None:
    default = {field.name: field.default for field in fields(Ended)} | {"exit_code": None}
    for _, how, evidence in HITS:
        assert isinstance(classify(replace(how, **{name: default[name]}), evidence), Verdict)
        assert isinstance(classify(how, Evidence()), Verdict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["retriable", "oom_kills", "peak_memory_bytes", "memory_limit_bytes", "reason", "fingerprint"])


@settings(deadline=None)
@given(
    st.none() | st.integers(0, 255),
    st.sampled_from(["", OOM, ESSENTIAL, "CannotPullContainerError: not found", "x"]),
    st.sampled_from(["", TIMEOUT, ESSENTIAL, "Host EC2 (x) terminated.", "Operator cancelled"]),
    st.none() | st.sampled_from([Status(NAME, attempt, state) for attempt in (1, 2, 3) for state in STATES]),
    st.none() | st.dictionaries(NAMES, JSON),
)
def test_there_is_always_a_verdict(
    code: int | None, reason: str, status_reason: str, stands: Status | None, record: dict[str, Any] | None
) -> None:
    verdict = classify(end(code, reason, status_reason), Evidence(stands, 0, record))
    assert 2 <= verdict.row <= 17


# ---- what was recorded


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("caldp-memory-error.json", 6),
        ("log-memory-error.yaml", 6),
        ("os-memory-error.yaml", 6),
        ("cannot-inspect-error.yaml", 10),
        ("timeout-error.json", 7),
        ("operator-cancelled.yaml", 4),
        ("generic-error.yaml", 17),
    ],
)
def test_recorded_events(shared_data: Path, name: str, row: int) -> None:
    said = ended(events.recorded(shared_data, name), lambda queue, definition: True)
    assert said is not None
    assert classify(said, NOTHING).row == row


@pytest.mark.parametrize(
    ("event", "row"),
    [
        (events.container_memory(), 5),
        (events.docker_timeout(), 10),
        (events.plain_137(), 15),
        (events.oom_and_timeout(), 5),
        (events.host_lost(), 8),
        (events.no_image(), 9),
        (events.no_registry(), 10),
        (events.no_container(), 17),
        (events.foreign(), 1),
        (events.succeeded(), 16),
        *((events.event(code), 12) for code in (25, 26, 27)),
        *((events.event(code), 13) for code in (40, 41)),
    ],
)
def test_made_events(event: dict[str, Any], row: int) -> None:
    said = ended(event, lambda queue, definition: queue == events.QUEUE)
    assert said is not None
    assert classify(said, NOTHING).row == row


def test_the_failures_of_2020(shared_data: Path) -> None:
    """312 jobs; 37 of them had been given one letter of a list instead of a dataset."""
    rows: Counter[int] = Counter()
    strays = 0
    for job in events.failed_10k(shared_data):
        name = job["jobName"].rpartition("-")[2]
        container = {**job["container"], "command": ["caldp-process", name, "astroquery:", "s3://b/out"]}
        said = ended({**job, "container": container}, lambda queue, definition: True)
        assert said is not None
        strays += not said.ours
        assert said.dataset in ("", name.lower())
        assert not said.ours or Dataset.parse(said.dataset)
        rows[classify(replace(said, ours=True), NOTHING).row] += 1
    assert strays == 37
    # 78 ran out of memory, one of which somebody stopped; 3 ran out of memory and time.
    assert rows == {17: 181, 5: 77 + 3, 4: 1, 7: 40, 8: 7, 10: 3}
