"""What a job leaves of itself for its submitter."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from caldp import causes, messages, process, programs, publish, result
from caldp.campaign import plan
from caldp.campaign.control import Control
from caldp.campaign.failures import Ended, Evidence, classify
from caldp.campaign.observe import observation
from caldp.dataset import Dataset
from caldp.errors import (
    CaldpError,
    Interrupted,
    ProgramMemoryError,
    ReferencesError,
    ReferencesUnavailableError,
    S3UploadError,
    Stop,
)
from caldp.local_store import LocalStore
from caldp.messages import Status
from caldp.process import Request
from caldp.store import PutMode
from tests.fakes import direct, mosaic
from tests.fakes.bench import Bench, make_bench
from tests.fakes.reporter import FakeReporter
from tests.fakes.stores import MemoryStore

NAME = "j8bt05njq"
VISIT = "acs_8ph_01"
FIELDS = (
    "dataset", "attempt", "retry", "run", "code", "signal", "state", "stage", "recipe", "detector", "exposures", "rung",
    "wall_s", "cpu_s", "peak_memory_bytes", "memory_limit_bytes", "oom_kills", "retriable", "fingerprint", "reason",
    "at",
)  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> Bench:
    clean_environment.setattr("caldp.create_preview.preview", lambda run, products: [])
    clean_environment.setenv("CALDP_ATTEMPT", "2")
    bench = make_bench(tmp_path, clean_environment)
    direct.write_direct(bench.inputs, NAME)
    return bench


def store_of(bench: Bench) -> LocalStore:
    return LocalStore(bench.root / "out")


def left(bench: Bench) -> list[str]:
    """The records that there are."""
    return sorted(
        path.relative_to(bench.root / "out").as_posix() for path in (bench.root / "out").glob("control/**/*.*")
    )


def record(bench: Bench, attempt: int = 2, retry: int = 1) -> dict[str, Any]:
    assert left(bench) == [f"control/results/{NAME}/{attempt}.{retry}.json"]
    found = Control(store_of(bench)).result(NAME, attempt, retry)
    assert found is not None
    assert set(FIELDS) <= set(found)
    return found


def test_a_run_that_ends_well(bench: Bench) -> None:
    assert bench.process(NAME).exit_code == 0
    found = record(bench)
    assert {name: found[name] for name in ("dataset", "attempt", "retry", "code", "signal", "state", "stage")} == {
        "dataset": NAME,
        "attempt": 2,
        "retry": 1,
        "code": 0,
        "signal": "",
        "state": "processed",
        "stage": "publish",
    }
    assert (found["retriable"], found["fingerprint"], found["reason"], found["oom_kills"]) == (None, "", "", 0)
    metrics = json.loads((bench.folder(NAME) / "logs" / "metrics.json").read_text())
    assert found["wall_s"] >= metrics["total"]["wall_s"] > 0
    assert found["cpu_s"] == pytest.approx(sum(stage["cpu_s"] for stage in metrics["stages"]), abs=0.01)
    assert found["process_memory_bytes"] >= metrics["total"]["peak_memory_bytes"] > 1_000_000
    assert found["run"] == bench.manifest(NAME)["run"]
    assert not [path for path in (bench.root / "out").rglob("*.tmp")]


def test_a_run_that_fails(bench: Bench) -> None:
    outcome = bench.process(NAME, calacs="exit-40")
    bench.assert_failed(NAME, outcome, 23, "exit status 40")
    found = record(bench)
    assert (found["code"], found["state"], found["stage"], found["retriable"]) == (23, "error", "calibrate", False)
    assert found["reason"] == outcome.reason
    assert found["fingerprint"] == causes.fingerprint(23, outcome.reason, NAME)


TOLD = ("recipe", "detector", "exposures", "rung")


def told(bench: Bench) -> tuple[Any, ...]:
    found = record(bench)
    return tuple(found[name] for name in TOLD)


def given(bench: Bench, dataset: str = NAME) -> None:
    """Let the campaign have submitted the attempt."""
    messages.advance(store_of(bench), Status(dataset, 2, "submitted", shard="s-1", rung="8g", time_limit=3600))


def test_what_later_plans_want_to_know(bench: Bench) -> None:
    given(bench)
    assert bench.process(NAME).exit_code == 0
    assert told(bench) == ("calacs.e+runastrodriz", "hrc", 1, "8g")
    seen = observation(record(bench))
    assert seen is not None and seen.recipe == plan.recipe(Dataset.parse(NAME))
    assert (seen.dataset, seen.kind, seen.instrument, seen.rung) == (NAME, "ipppssoot", "acs", "8g")


def test_a_run_that_fails_knows_as_much_as_it_came_to_know(bench: Bench) -> None:
    given(bench)
    bench.process(NAME, calacs="exit-40")
    assert told(bench) == ("calacs.e+runastrodriz", "hrc", 1, "8g")
    assert observation(record(bench)) is None


def test_a_run_without_inputs_knows_no_more_than_its_programs(bench: Bench) -> None:
    given(bench)
    (bench.inputs / f"{NAME}_raw.fits").unlink()
    assert bench.process(NAME).exit_code == 21
    assert told(bench) == ("calacs.e+runastrodriz", "", 0, "8g")


def test_a_run_without_a_workspace_knows_nothing(bench: Bench) -> None:
    bench.environment.setenv("CALDP_HOME", str(bench.inputs / f"{NAME}_raw.fits"))  # not a folder
    assert bench.process(NAME).exit_code == 29
    assert told(bench) == ("", "", 0, "")


def test_several_exposures_are_counted(bench: Bench) -> None:
    exposures = {"j8ph01g3q_flc.fits": "F435W;CLEAR2L", "j8ph01g7q_flc.fits": "F555W;CLEAR2L"}
    for name in exposures:
        mosaic.write_calibrated(bench.inputs, name)
    mosaic.write_visit(bench.inputs, VISIT, "9774", exposures)
    given(bench, VISIT)
    assert bench.process(VISIT).exit_code == 0
    found = Control(store_of(bench)).result(VISIT, 2)
    assert found is not None and tuple(found[name] for name in TOLD) == ("runsinglehap", "wfc", 2, "8g")
    metrics = json.loads((bench.folder(VISIT) / "logs" / "metrics.json").read_text())
    assert (metrics["detector"], metrics["exposures"]) == ("wfc", 2)


def test_batch_starts_a_job_again(bench: Bench) -> None:
    bench.environment.setenv("AWS_BATCH_JOB_ID", "job-1")
    bench.process(NAME, calacs="exit-40")
    bench.environment.setenv("AWS_BATCH_JOB_ATTEMPT", "2")
    assert bench.process(NAME).exit_code == 0
    assert left(bench) == [f"control/results/{NAME}/2.{retry}.json" for retry in (1, 2)]


def test_nobody_has_counted(bench: Bench) -> None:
    bench.environment.delenv("CALDP_ATTEMPT")
    bench.process(NAME)
    bench.process(NAME, calacs="exit-40")
    assert not (bench.root / "out" / "control").exists()


def test_a_duplicate_leaves_no_record(bench: Bench) -> None:
    messages.advance(store_of(bench), Status(NAME, 3, "placed"))
    outcome = bench.process(NAME)
    assert (outcome.exit_code, outcome.state) == (0, "duplicate")
    assert left(bench) == []


def test_what_was_already_processed_leaves_no_second_record(bench: Bench) -> None:
    bench.process(NAME)
    before = record(bench)
    assert bench.process(NAME).state == "skipped"
    assert record(bench) == before


def test_whatever_goes_wrong_before_there_is_a_workspace(bench: Bench) -> None:
    bench.environment.setenv("CALDP_HOME", str(bench.inputs / f"{NAME}_raw.fits"))  # not a folder
    outcome = bench.process(NAME)
    assert outcome.exit_code == 29
    found = record(bench)
    assert (found["code"], found["stage"], found["retriable"], found["cpu_s"]) == (29, "", False, 0)
    assert found["process_memory_bytes"] > 1_000_000


class Unwritable(LocalStore):
    """A store that takes everything but records."""

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        if key.startswith("control/"):
            raise S3UploadError(f"{key}: no")
        return super().put(key, data, mode)


@pytest.mark.parametrize(("calacs", "code", "state"), [("", 0, "processed"), ("exit-40", 23, "error")])
def test_a_record_that_cannot_be_written_changes_nothing(bench: Bench, calacs: str, code: int, state: str) -> None:
    bench.environment.setattr(process, "open_store", lambda *_: Unwritable(bench.root / "out"))
    reporter = FakeReporter()
    if calacs:
        bench.environment.setenv("FAKE_CALACS", calacs)
    request = Request(NAME, input=f"file:{bench.inputs}", output=f"file:{bench.root / 'out'}")
    outcome = process.process(request, reporter)
    assert (outcome.exit_code, outcome.state) == (code, state)
    assert ("message", "ERROR", f"the result could not be written: control/results/{NAME}/2.1.json: no") in [
        event for event in reporter.events if event[0] == "message"
    ]
    assert left(bench) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped(bench: Bench, signum: signal.Signals) -> None:
    def stopped(*_: object) -> None:
        signal.raise_signal(signum)  # to this thread: a test runner has others

    bench.environment.setattr("caldp.calibrate.calibrate", stopped)
    request = Request(NAME, input=f"file:{bench.inputs}", output=f"file:{bench.root / 'out'}")
    outcome = process.process(request, FakeReporter(), process.Interrupts().install())
    assert outcome.exit_code == 128 + signum
    found = record(bench)
    assert (found["code"], found["signal"], found["retriable"]) == (128 + signum, signum.name, True)


def test_a_run_that_lost_its_dataset_says_so(bench: Bench) -> None:
    def taken_over(*_: object) -> None:
        messages.advance(store_of(bench), Status(NAME, 3, "processing", run="another"))

    # Its own number is another one, so nobody takes this for how the other one ended.
    bench.environment.setattr("caldp.references.assign", taken_over)
    outcome = bench.process(NAME)
    assert outcome.exit_code
    assert record(bench)["state"] == "error"
    status = messages.read(store_of(bench), NAME)
    assert status is not None
    assert (status.attempt, status.run, status.state) == (3, "another", "processing")


def test_secrets_are_left_out(bench: Bench) -> None:
    def fail(*_: object) -> None:
        raise ReferencesError(f"{NAME}: cannot log in with hunter2-hunter2")

    bench.environment.setenv("MAST_API_TOKEN", "hunter2-hunter2")
    bench.environment.setattr("caldp.references.assign", fail)
    bench.process(NAME)
    assert record(bench)["reason"] == f"{NAME}: cannot log in with ***"


def test_publication_that_fails_is_told(bench: Bench) -> None:
    def fail(*_: object) -> None:
        raise S3UploadError(f"{NAME}: no answer")

    bench.environment.setattr(publish, "publish", fail)
    bench.process(NAME)
    found = record(bench)
    assert (found["code"], found["retriable"]) == (25, True)


# ---- what the record says


MINE = Status(NAME, 1, "processing", run="run-1")


@pytest.mark.parametrize(
    ("failure", "retriable", "row"),
    [
        (None, None, 16),
        (CaldpError("unforeseen RuntimeError"), None, 17),
        (ReferencesError("unknown context"), False, 11),
        (ReferencesUnavailableError("no answer"), True, 11),
        (ProgramMemoryError("calacs ran out of memory"), True, 6),
        (Interrupted(15), True, 11),
    ],
)
def test_whether_trying_again_can_help(failure: CaldpError | None, retriable: bool | None, row: int) -> None:
    found = result.Record(MINE).result(failure).to_json()
    assert found["retriable"] is retriable
    ended = Ended(NAME, 1, succeeded=failure is None, exit_code=found["code"])
    assert classify(ended, Evidence(MINE, 0, found)).row == row


class Kernel:
    """What the kernel says of a container's memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, peak: int, limit: int) -> None:
        self.peak, self.limit, self.kills = peak, limit, 3
        monkeypatch.setattr(programs, "group_memory", lambda: (self.peak, self.limit))
        monkeypatch.setattr(programs, "oom_kills", lambda: self.kills)


HUGE = 10**15


@pytest.mark.parametrize(
    ("before", "limit", "counts"),
    [(0, HUGE, True), (HUGE - 1, HUGE, True), (HUGE, HUGE, False), (0, 0, False)],
)
def test_the_container_counts_where_it_has_a_limit_that_we_reach(
    monkeypatch: pytest.MonkeyPatch, before: int, limit: int, counts: bool
) -> None:
    kernel = Kernel(monkeypatch, before, limit)
    began = result.Record(MINE)
    kernel.peak, kernel.kills = HUGE, 5
    found = began.result(None)
    assert found.peak_memory_bytes == (HUGE if counts else found.process_memory_bytes)
    assert 1_000_000 < found.process_memory_bytes < HUGE
    assert (found.memory_limit_bytes, found.oom_kills) == (limit, 2)


@pytest.mark.parametrize("error", [Stop(15), KeyboardInterrupt(), OSError("x"), ZeroDivisionError()])
def test_any_exception_is_recorded_and_goes_on(error: BaseException) -> None:
    store = MemoryStore()
    with pytest.raises(type(error)), result.recorded(store, MINE, True, lambda write: write()):
        raise error
    assert json.loads(store.objects[f"control/results/{NAME}/1.1.json"])["state"] == "error"


# ---- what the kernel says


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.peak": "123\n", "memory.max": "456\n"}, (123, 456)),
        ({"memory.peak": "123\n", "memory.max": "max\n"}, (123, 0)),
        ({"job/memory.peak": "1\n", "memory.peak": "9\n", "job/memory.max": "2\n"}, (1, 2)),
        (
            {"memory/box/memory.max_usage_in_bytes": "7\n", "memory/box/memory.limit_in_bytes": "8\n"},
            (7, 8),
        ),
        ({"memory/memory.max_usage_in_bytes": "7\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}, (7, 0)),
        ({}, (0, 0)),
    ],
)
def test_memory_of_the_control_group(tmp_path: Path, files: dict[str, str], expected: tuple[int, int]) -> None:
    (tmp_path / "cgroup").write_text("4:memory:/box\n0::/job\n")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert programs.group_memory(tmp_path / "cgroup", tmp_path / "groups") == expected


def test_the_kernel_is_asked() -> None:
    peak, limit = programs.group_memory()
    assert peak >= 0
    assert 0 <= limit < 2**60


# ---- fingerprints


def test_a_fingerprint_knows_the_same_failure_of_another_dataset() -> None:
    def of(reason: str, code: int | None = 23, dataset: str = NAME) -> str:
        return causes.fingerprint(code, reason, dataset, "0123456789ab")

    one = of(f"{NAME}: calacs.e failed after 12 s in /scratch/a, run 0123456789ab")
    assert one == of("LDFD01010: calacs.e failed after 7 s in /tmp/b/c, run 0123456789ab", dataset="ldfd01010")
    assert one != of(f"{NAME}: calacs.e failed after 12 s in /scratch/a, run 0123456789ab", 24)
    assert one != of(f"{NAME}: calwf3.e failed after 12 s in /scratch/a, run 0123456789ab")
    assert len(one) == 12
    assert of("", None) == ""
    assert of("", 1)
    assert of("\ud800")
