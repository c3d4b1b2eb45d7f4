"""What AWS Batch says, in our words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldp.campaign.events import among, ended
from caldp.campaign.failures import Ended
from tests.fakes import events
from tests.fakes.events import recorded

MIB = 2**20


def anybody(queue: str, definition: str) -> bool:
    return True


def read(event: object, ours: Callable[[str, str], bool] = anybody) -> Ended:
    said = ended(event, ours)
    assert said is not None
    return said


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_the_command_is_believed_before_the_defaults_of_the_definition(shared_data: Path, form: str) -> None:
    assert read(recorded(shared_data, f"timeout-error.{form}")) == Ended(
        "iea607020",  # and not j8cb010b0
        1,
        succeeded=False,
        exit_code=137,
        status_reason="Job attempt duration exceeded timeout",
        job="91945767-e5e0-4420-8e54-1e0b18e3d011",
        memory_limit=14336 * MIB,
        log="calcloud-jobdef-16g-ops/default/cf00768d95af4b7e8bd24b4f70d16367",
        time_limit=12970,
        output="s3://calcloud-processing-moto/outputs/iea607020",
    )


@pytest.mark.parametrize("name", ["caldp-memory-error", "log-memory-error", "operator-cancelled", "os-memory-error"])
def test_both_forms_of_what_was_recorded_say_the_same(shared_data: Path, name: str) -> None:
    assert read(recorded(shared_data, f"{name}.json")) == read(recorded(shared_data, f"{name}.yaml"))


def test_a_job_of_ours() -> None:
    assert read(events.container_memory(attempt=3), among([events.QUEUE, events.DEFINITION])) == Ended(
        events.NAME,
        3,
        succeeded=False,
        exit_code=24,
        reason="OutOfMemoryError: Container killed due to memory usage",
        status_reason=events.NO_REASON,
        job="job-1",
        memory_limit=1792 * MIB,
        log="caldp-2g-6h/default/0123456789abcdef",
        time_limit=21600,
        output=events.OUTPUT,
    )


def test_every_envelope_says_the_same() -> None:
    plain = events.event(1)
    said = read(plain)
    assert read(plain["detail"]) == said
    assert read(events.in_sqs(plain)) == said
    assert read(events.in_sqs(events.in_sqs(plain))) == said


def test_a_child_of_an_array() -> None:
    manifest = f"{events.OUTPUT}/control/manifests/batch-22-a2-2g-6h-001.jsonl"
    said = read(events.child(17, manifest, attempt=2))
    # The parameters name a dataset too; it is the definition's.
    assert (said.dataset, said.manifest, said.index, said.attempt) == ("", manifest, 17, 2)
    assert (said.job, said.output, said.ours) == ("job-1:17", events.OUTPUT, True)
    plain = events.child(17, manifest)
    del plain["detail"]["arrayProperties"]
    assert read(plain).index == 17  # as the name of the job says
    bare = events.child(0, manifest)
    del bare["detail"]["container"]["command"]
    bare["detail"]["attempts"] = []
    assert (read(bare).dataset, read(bare).manifest, read(bare).index) == ("", manifest, 0)


@pytest.mark.parametrize(
    ("command", "dataset", "manifest"),
    [
        (["caldp-process-aws", "s3://b/x", "J8CB010B0"], "j8cb010b0", ""),
        (["/usr/bin/caldp-process-aws", "Ref::s3_output_path", "Ref::dataset"], "ldfd01010", ""),
        (["bash", "-l", "caldp-process-aws", "s3://b/x", "@s3://b/x/m.jsonl"], "", "s3://b/x/m.jsonl"),
        (["caldp-process", "acs_8ph_01", "s3://in", "s3://out", "caldp-config-aws"], "acs_8ph_01", ""),
        # What is there but is no dataset must not become that of the definition.
        (["caldp-process-aws", "s3://b/x", "j"], "", ""),
        (["caldp-process-aws", "s3://b/x", "../../j8cb010b0"], "", ""),
        (["true"], "ldfd01010", ""),
        (["caldp-process-aws"], "ldfd01010", ""),
        ("caldp-process-aws", "ldfd01010", ""),
        ([1, None, ["caldp-process-aws"]], "ldfd01010", ""),
    ],
)
def test_what_a_command_asks_for(command: object, dataset: str, manifest: str) -> None:
    made = events.event(1, dataset="ldfd01010")
    made["detail"]["container"]["command"] = command
    said = read(made)
    assert (said.dataset, said.manifest) == (dataset, manifest)
    assert said.ours == bool(dataset or manifest)
    assert said.output in ("s3://b/x", "s3://out", events.OUTPUT)


def test_what_is_not_ours() -> None:
    ours = among([events.QUEUE, events.DEFINITION])
    assert read(events.event(1), ours).ours
    assert not read(events.foreign(), ours).ours
    assert not read(events.event(1), among([events.QUEUE])).ours
    assert not read(events.event(1), among([])).ours
    made = events.event(1)
    del made["detail"]["jobQueue"]
    assert not read(made, ours).ours


@pytest.mark.parametrize("status", ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "UNHEARD-OF"])
def test_a_job_that_goes_on_has_not_ended(status: str) -> None:
    assert ended(events.event(status=status), anybody) is None


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        "x",
        {},
        {"body": "{"},
        {"body": None},
        {"body": "[]"},
        {"body": "[" * 100_000},
        {"detail": None},
        {"detail": {}, "detail-type": "Object Created"},
        {"Records": [{"s3": {"object": {"key": "messages/clean-ipppssoot"}}}]},
    ],
)
def test_what_is_no_such_event(event: object) -> None:
    assert ended(event, anybody) is None


def test_an_array_that_has_ended_is_no_dataset() -> None:
    assert ended(events.parent(), anybody) is None


def test_success_and_runs() -> None:
    assert read(events.succeeded()).succeeded
    assert not read(events.event(0)).succeeded
    assert [read(events.event(1, tries=tries)).retry for tries in (0, 1, 3)] == [1, 1, 3]


def test_what_the_last_try_says_is_used_where_the_job_says_nothing() -> None:
    made = events.docker_timeout()
    made["detail"]["attempts"][-1] |= {"statusReason": "Task failed to start"}
    del made["detail"]["container"]
    said = read(made)
    assert (said.exit_code, said.reason[:18], said.status_reason) == (137, "DockerTimeoutError", "Task failed to start")


@pytest.mark.parametrize(
    ("environment", "parameter", "attempt"),
    [
        ("4", "1", 4),
        (None, "3", 3),
        (None, 3, 3),
        (None, None, 1),
        ("x", "-2", 1),
        ("0", "2", 2),
        ("9" * 30, None, 1),
        (True, None, 1),
    ],
)
def test_the_number_of_the_attempt(environment: object, parameter: object, attempt: int) -> None:
    made = events.event(1)
    made["detail"]["container"]["environment"] = [{"name": "CALDP_ATTEMPT", "value": environment}, "noise"]
    made["detail"]["parameters"]["attempt"] = parameter
    assert read(made).attempt == attempt


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from leaves(below, (*path, key))


WHOLE = events.child(3, "s3://b/m.jsonl", tries=2)
PATHS = list(leaves(WHOLE))


@settings(deadline=None)
@given(
    st.sampled_from(PATHS),
    st.one_of(
        st.just(...), st.none(), st.integers(), st.booleans(), st.text(), st.just([]), st.just({}), st.just([{}])
    ),
)
def test_whatever_is_missing_or_strange_nothing_is_raised(path: tuple[Any, ...], instead: object) -> None:
    made = copy.deepcopy(WHOLE)
    place: Any = made
    for key in path[:-1]:
        place = place[key]
    if instead is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = instead
    said = ended(made, anybody)
    assert said is None or (said.attempt >= 1 and said.retry >= 1 and isinstance(said.reason, str))
    assert json.dumps(said.__dict__ if said else None)
