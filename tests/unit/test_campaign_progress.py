"""How a campaign stands: counts, pace, failures, what is running, and what it costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from caldp import messages
from caldp.campaign import progress, progress_text
from caldp.campaign.control import Control, result_key
from caldp.campaign.progress import Active, Cost, Progress, Run, running, runs, survey
from caldp.campaign.settings import DEFAULT
from caldp.campaign.shards import Line, shards
from caldp.dataset import Dataset
from caldp.errors import InputError, UsageError
from caldp.local_store import LocalStore
from caldp.messages import STATES, Status
from caldp.store import Blob, Overwrite, Store
from tests.fakes.campaign import BEGAN, OUTCOMES, Clocked, Made, make, messages_time, names


class Counting(Clocked):
    """A store that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def get(self, key: str) -> Blob | None:
        self.asked[key.rpartition("/")[0]] += 1
        return super().get(key)

    def names(self, prefix: str) -> list[str]:
        self.asked[f"LIST {prefix}"] += 1
        return super().names(prefix)


def true_states(made: Made) -> dict[str, Counter[str]]:
    """Read the status of every dataset."""
    found: dict[str, Counter[str]] = {}
    for name in made.datasets:
        status = messages.read(made.control.store, name)
        found.setdefault(Dataset.parse(name).instrument, Counter())[status.state if status else "placed"] += 1
    return found


def planned(store: Store, count: int = 12, *, attempt: int = 1, names_of: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Write a campaign that nothing has happened of; return its datasets."""
    control = Control(store)
    datasets = names_of or tuple(f"ldfd{number:05}" for number in range(count))
    for shard in shards("mvp", attempt, [Line(n, attempt, "2g", 1, 3600) for n in datasets], DEFAULT, frozenset()):
        control.write_manifest(shard)
    control.write_plan({"datasets": len(datasets), "canary": []})
    return datasets


def put(store: Store, name: str, state: str, minutes: float = 0.0, **more: Any) -> None:
    """Move a dataset of a campaign to a state at a time."""
    at = messages_time(BEGAN + timedelta(minutes=minutes))
    status = Status(name, more.pop("attempt", 1), state, at=at, rung="2g", time_limit=3600, **more)
    assert messages.advance(store, status)[1]


# ---- counting


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_every_planned_dataset_is_counted_once_as_its_status_says(share: float) -> None:
    made = make(Clocked(), 200, progress=share, data=False)
    found = survey(made.control, made.settings)
    assert found.states == {instrument: dict(states) for instrument, states in sorted(true_states(made).items())}
    assert found.planned == 200
    assert sum(found.counts.values()) == 200
    assert (found.open == 0) == (share == 1.0)
    assert found.open + found.failed + found.done == found.planned


def test_a_folder_and_a_bucket_tell_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mvp").mkdir()
    stores = (Clocked(), LocalStore(tmp_path / "mvp"))
    told = []
    for store in stores:
        made = make(store, 25, progress=0.6, data=False)
        monkeypatch.setattr(store, "clock", lambda now=made.now: now)
        found = survey(made.control, made.settings).to_json()
        told.append({key: value for key, value in found.items() if key not in ("batch", "stale")})
    assert told[0]["states"]["processing"] and told[0]["done"] and told[0]["failed"]
    assert told[0] == told[1]


def test_lists_tell_how_many_there_are_and_few_records_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Counting()
    made = make(store, 900, progress=0.5, data=False)
    monkeypatch.setattr(progress, "LIMITS", {"error": 9, "done": 30, "processing": 5})
    monkeypatch.setattr(progress, "_OF_OTHERS", 7)
    store.asked.clear()
    found = survey(made.control, made.settings)
    lists = Counter({key: count for key, count in store.asked.items() if key.startswith("LIST")})
    assert sum(lists.values()) == 8  # of pages on S3: manifests, and the seven folders of messages
    assert store.asked["messages/status"] == found.read <= 9 + 30 + 5 + 3 * 7
    truth = true_states(made)
    assert {name: Counter(states) for name, states in found.states.items()} == truth
    assert found.errors_read == 9 < found.counts["error"]


def test_what_records_tell_is_scaled_to_all_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(Clocked(), 1200, data=False, outcomes=("oom", "", "", "broken", "", "", ""))
    whole = survey(made.control, made.settings, limit=0)
    part = survey(made.control, made.settings, limit=200)
    assert (whole.read, part.read) == (1200, 371)
    assert whole.retries == whole.retried == 172
    assert part.retries == pytest.approx(172, rel=0.3)
    assert part.rate == pytest.approx(whole.rate, rel=0.05)  # the last one to end need not have been read
    stock = progress.take_stock(made.control)
    sample = progress.look_at(made.control, stock, limit=200)
    assert sum(sample.weights.values()) == pytest.approx(1200)
    costs = [
        sum(progress.costs(runs(made.control, each, made.settings), made.settings).values(), Cost()).dollars
        for each in (sample, progress.look_at(made.control, stock, limit=0))
    ]
    assert costs[0] == pytest.approx(costs[1], rel=0.35)  # a few mosaics cost as much as all the rest


def test_a_dataset_that_two_folders_show_is_counted_as_its_status_says() -> None:
    store = Clocked()
    name, *_ = planned(store)
    put(store, name, "processing")
    store.put(f"messages/datasets-processed/{name}", b"", Overwrite())
    assert survey(Control(store), DEFAULT).counts["processing"] == 1


def test_a_status_that_no_folder_shows_counts() -> None:
    store = Clocked()
    name, *_ = planned(store)
    put(store, name, "processed")
    store.delete(f"messages/datasets-processed/{name}")
    assert survey(Control(store), DEFAULT).counts["processed"] == 1


def test_what_was_processed_before_the_campaign_waits_for_it() -> None:
    store = Clocked()
    datasets = planned(store, attempt=2)
    for name in datasets:
        messages.advance(store, Status(name, 1, "processed"))
    put(store, datasets[0], "processed", attempt=2)
    found = survey(Control(store), DEFAULT, limit=1)  # of these every one is read
    assert (found.counts["processed"], found.counts["placed"], found.exit_status) == (1, 11, 3)


def test_what_an_earlier_campaign_did_is_not_this_ones() -> None:
    store = Clocked(BEGAN + timedelta(hours=1))
    first, second, *_ = planned(store, 3, attempt=2)
    for name in (first, second):
        put(store, name, "processing", -9000)
        put(store, name, "error", -8000, reason="x", exit_code=23, cause="deterministic")
    put(store, first, "processing", 10, attempt=2)
    put(store, first, "processed", 20, attempt=2)
    control = Control(store)
    found = survey(control, DEFAULT)
    assert (found.counts["processed"], found.counts["placed"], found.retries) == (1, 2, 0)
    assert found.begun == "2026-11-22T06:10:00.000Z"
    (run,) = runs(control, progress.look_at(control, progress.take_stock(control)), DEFAULT)
    assert (run.attempt, run.seconds) == (2, 600)


def test_datasets_of_rescue_shards_need_not_be_read_one_by_one() -> None:
    store = Counting()
    datasets = planned(store, 50)
    for name in datasets:
        put(store, name, "processed", attempt=2)
    lines = [replace(Line(name, 2, "8g", 2, 3600)) for name in datasets]
    from caldp.campaign.shards import rescue_shards

    for shard in rescue_shards("mvp", lines, DEFAULT):
        Control(store).write_manifest(shard)
    store.asked.clear()
    assert survey(Control(store), DEFAULT, limit=3).counts["processed"] == 50
    assert store.asked["messages/status"] == 3


def test_other_datasets_of_the_batch_are_not_the_campaigns() -> None:
    store = Clocked()
    planned(store, 3)
    messages.advance(store, Status("ldfdzzzzz", 1, "error", reason="x", exit_code=21))
    found = survey(Control(store), DEFAULT)
    assert (found.planned, found.others, found.counts["error"], found.failures) == (3, 1, 0, [])


def test_what_was_processed_before_and_is_skipped_is_said() -> None:
    store = Clocked()
    planned(store, 0)
    messages.advance(store, Status("ldfdzzzzz", 1, "processed"))
    Control(store).write_plan({"skipped": ["ldfdzzzzz"], "refused": [{}, {}]})
    Control(store).write_lines("control/rejected.jsonl", [{}, {}, {}])
    found = survey(Control(store), DEFAULT)
    assert (found.planned, found.others, found.skipped, found.refused, found.rejected) == (0, 0, 1, 2, 1)
    assert progress_text.verdict(found) == "There is nothing to do: 1 had been processed before."
    assert found.exit_status == 0


def test_a_damaged_status_is_a_failure() -> None:
    store = Clocked()
    name, *_ = planned(store, 1)
    put(store, name, "processed")
    store.put(messages.status_key(name), b"{", Overwrite())
    store.put(f"messages/dataset-error/{name}", b"", Overwrite())
    found = survey(Control(store), DEFAULT)
    assert (found.damaged, found.planned, found.failed, found.exit_status) == ([name], 1, 1, 1)
    assert "damaged" in progress_text.progress_text(found)


def test_without_a_campaign_there_is_nothing_to_survey() -> None:
    store = Clocked()
    messages.advance(store, Status("ldfd01010", 1, "processed"))
    for act in (survey, running):
        with pytest.raises(UsageError, match="is no campaign"):
            act(Control(store), DEFAULT)
    planned(store)
    store.put("control/manifests/mvp-a1-2g-1h-001.jsonl", b"{", Overwrite())
    with pytest.raises(InputError, match="is no manifest"):
        survey(Control(store), DEFAULT)


# ---- verdicts


@pytest.mark.parametrize(
    ("states", "expected", "said"),
    [
        ([], 0, "There is nothing to do."),
        (["processed"], 0, "The dataset is processed."),
        (["processed", "synced", "archived"], 0, "All 3 datasets are processed."),
        (["processed", "error"], 1, "1 of 2 datasets are processed, 1 failed."),
        (["processed", "cancelled"], 1, "1 of 2 datasets are processed, 1 cancelled."),
        (["error", "placed"], 3, "0 of 2 datasets are processed, 1 failed, 1 open"),
        (["processed", "submitted"], 3, "1 of 2 datasets are processed, 1 open"),
        (["processed", "processing"], 3, "1 of 2 datasets are processed, 1 open"),
    ],
)
def test_the_exit_status_and_the_sentence(states: list[str], expected: int, said: str) -> None:
    store = Clocked(BEGAN + timedelta(minutes=1))
    for name, state in zip(planned(store, len(states)), states, strict=True):
        if state != "placed":
            put(store, name, state, cause="deterministic" if state == "error" else "")
    found = survey(Control(store), DEFAULT)
    assert found.exit_status == expected
    assert progress_text.verdict(found).startswith(said)


def test_an_error_that_was_not_judged_yet_is_open() -> None:
    store = Clocked(BEGAN)
    name, *_ = planned(store, 1)
    put(store, name, "error", reason="killed", exit_code=137)
    found = survey(Control(store), DEFAULT)
    assert (found.unjudged, found.open, found.failed, found.exit_status) == (1, 1, 0, 3)
    assert found.kinds["unknown"] == {"unknown": 0, "not judged yet": 1}
    assert found.oldest is not None and found.oldest.state == "error"
    status = messages.read(store, name)
    assert status is not None
    messages.amend(store, replace(status, cause="timeout"))
    found = survey(Control(store), DEFAULT)
    assert (found.open, found.failed, found.exit_status, found.kinds["payload"]["timeout"]) == (0, 1, 1, 1)


# ---- pace


def test_rate_and_time_left() -> None:
    store = Clocked(BEGAN + timedelta(hours=2))
    datasets = planned(store, 30)
    for number, name in enumerate(datasets[:20]):  # one every 6 minutes
        put(store, name, "processed", 6 * (number + 1) - 6)
    found = survey(Control(store), DEFAULT)
    assert found.begun == "2026-11-22T06:00:00.000Z"
    assert found.rate == pytest.approx(10)
    assert found.lately == 1800
    assert found.rate_lately == pytest.approx(8)  # 4 in the last half hour: those of 1:36, 1:42, 1:48 and 1:54
    assert found.seconds_left == pytest.approx(3600)  # by the rate of the whole: four are too few
    store.now += timedelta(hours=1)
    for number, name in enumerate(datasets[20:28]):
        put(store, name, "processed", 160 + number)
    found = survey(Control(store), DEFAULT)
    assert found.lately == 2700
    assert found.rate_lately == pytest.approx(8 * 3600 / 2700)
    assert found.seconds_left == pytest.approx(2 / (8 / 2700))


def test_a_campaign_that_is_over_has_taken_its_time_and_has_none_left() -> None:
    made = make(store := Clocked(), 40, data=False)
    store.now += timedelta(days=9)
    found = survey(made.control, made.settings)
    assert (found.seconds_left, found.rate_lately, found.oldest) == (0.0, None, None)
    ended = progress.when(found.ended)
    assert ended is not None and ended <= made.now
    begun = progress.when(found.begun)
    assert begun is not None and found.rate is not None
    assert found.rate == pytest.approx(40 * 3600 / (ended - begun).total_seconds())


def test_what_is_paused_says_so_and_promises_nothing() -> None:
    made = make(Clocked(), 40, progress=0.5, data=False)
    made.control.pause("the image is\x1b[31m gone")
    found = survey(made.control, made.settings)
    assert found.seconds_left is None
    assert progress_text.verdict(found).endswith("Nothing more is started: the image is gone.")


def test_the_open_dataset_that_has_been_as_it_is_for_longest() -> None:
    store = Clocked(BEGAN + timedelta(hours=3))
    first, second, third, *_ = planned(store)
    put(store, first, "processed", 0)
    put(store, second, "submitted", 10)
    put(store, second, "processing", 50)
    put(store, third, "submitted", 20)
    oldest = survey(Control(store), DEFAULT).oldest
    assert oldest is not None
    assert (oldest.dataset, oldest.state, oldest.seconds) == (third, "submitted", 160 * 60)


def test_news_that_came_too_late_and_wrong_clocks_change_no_time() -> None:
    status = Status("ldfd01010", 2, "processed", rung="8g", history=(
        {"state": "processed", "attempt": 1, "at": "2026-11-20T00:00:00Z"},  # before the campaign
        {"state": "submitted", "attempt": 2, "at": "2026-11-22T06:00:10Z", "rung": "8g"},
        {"state": "error", "attempt": 1, "at": "2026-11-22T06:00:30Z", "cause": "stale"},
        {"state": "processing", "attempt": 2, "at": "2026-11-22T06:00:05Z", "rung": "8g"},
        {"state": "nonsense", "at": 3},
        {"state": "processed", "attempt": 2, "at": "2026-11-22T06:01:00Z", "rung": "8g"},
    ))  # fmt: skip
    taken = progress.steps(status)
    assert [(step.state, step.at.second) for step in taken] == [("submitted", 10), ("processing", 10), ("processed", 0)]
    assert progress.ended_at(status, taken) == taken[-1].at


# ---- failures and retries


def test_failures_are_told_by_class_and_cause() -> None:
    made = make(Clocked(), len(OUTCOMES), outcomes=OUTCOMES, data=False)
    found = survey(made.control, made.settings)
    assert found.kinds == {
        "payload": {"deterministic": 1, "oom": 1, "timeout": 0},
        "infrastructure": {"host": 0, "transient": 0, "deployment": 0},
        "unknown": {"unknown": 1},
    }
    assert {(f.cause, f.kind, f.what.exit_code, f.what.name) for f in found.failures} == {
        ("deterministic", "payload", 21, "INPUT_TAR_FILE_ERROR"),
        ("oom", "payload", 31, "SUBPROCESS_MEMORY_ERROR"),
        ("unknown", "unknown", 1, "GENERIC_ERROR"),
    }
    assert found.counts["cancelled"] == 1
    assert progress.kind_of("deployment") == "infrastructure" and progress.kind_of("") == "unknown"


def test_retries_are_counted_by_what_made_them_necessary() -> None:
    outcomes = ("oom", "transient", "hopeless", "killed", "host", "")
    made = make(Clocked(), 6, outcomes=outcomes, data=False)
    found = survey(made.control, made.settings)
    assert found.retry_causes == {"oom": 4, "transient": 1, "host": 1}
    assert (found.retried, found.retries, found.waiting) == (4, 6, 0)
    store = Clocked(BEGAN)
    name, *_ = planned(store, 1)
    put(store, name, "processing")
    put(store, name, "placed", 1, attempt=2, cause="oom")
    assert survey(Control(store), DEFAULT).waiting == 1


def test_equal_failures_are_one_cause_and_hostile_reasons_one_line() -> None:
    store = Clocked(BEGAN)
    for number, name in enumerate(planned(store, 5)):
        reason = f"{name}: no space in /scratch/{number}\n\x1b[2J\x1b]0;owned\x07"
        put(store, name, "error", reason=reason, exit_code=29, cause="deterministic")
    (failure,) = survey(Control(store), DEFAULT).failures
    assert failure.what.reason == "no space in <path>"
    assert (failure.what.datasets, len(failure.what.examples)) == (5, 3)


# ---- texts


def test_the_text_for_people() -> None:
    made = make(Clocked(), 300, progress=0.4, data=False)
    found = survey(made.control, made.settings)
    text = click.unstyle(progress_text.progress_text(found))
    assert text.splitlines()[0] == "memory:/mvp"
    head, *rows = text.splitlines()[2:13]
    assert head.split() == ["acs", "cos", "mvm", "stis", "wfc3", "datasets"]
    assert [row.split()[0] for row in rows[:8]] == list(STATES)
    placed = rows[0].replace(",", "").split()
    assert int(placed[-3]) == found.counts["placed"] == sum(map(int, placed[1:-3]))
    assert rows[9].split()[-1] == "300"
    for said in ("Begun 2026-11-22 06:00:20 UTC", "datasets an hour", "Failures", "deterministic: exit 21"):
        assert said in text
    assert "1 could not be planned" in text and "Open for longest" in text
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[-2].startswith(f"{found.done} of 300 datasets are processed")


def test_the_json_is_json() -> None:
    made = make(Clocked(), 60, progress=0.5, data=False)
    found = survey(made.control, made.settings)
    record = json.loads(json.dumps(found.to_json()))
    assert record["states"] == found.counts
    assert record["datasets"] == 60 == record["open"] + record["failed"] + record["done"]
    assert record["exit_status"] == 3
    assert {cause["class"] for cause in record["causes"]} <= {"deterministic", "oom", "unknown"}
    empty = json.loads(json.dumps(Progress("file:x", "x", "", {}, []).to_json()))
    assert (empty["datasets"], empty["exit_status"], empty["oldest"]) == (0, 0, None)


# ---- running


def test_what_is_running_nearest_to_its_limit_first() -> None:
    store = Clocked()
    first, second, third, *_ = planned(store)
    for name, minutes in ((first, 0), (second, 30), (third, 10)):
        put(store, name, "processing", minutes, by="elsewhere:1")
    store.now = BEGAN + timedelta(minutes=40)
    for name in (second, third):
        status = messages.read(store, name)
        assert status is not None and messages.beat(store, status)
    active, total = running(Control(store), DEFAULT)
    assert total == 3
    assert [(one.dataset, one.seconds, one.time_limit, one.stale) for one in active] == [
        (first, 2400, 3600, True),
        (third, 1800, 3600, False),
        (second, 600, 3600, False),
    ]
    assert active[0].share == pytest.approx(2 / 3)
    assert (active[0].memory, active[0].memory_limit) == (0, 1792 * 2**20)
    assert active[0].to_json()["memory"] is None
    text = click.unstyle(progress_text.running_text(active, total, rows=2))
    assert text.splitlines()[1].startswith(first) and "stale" in text and "67 %" in text
    assert text.splitlines()[-1] == "... and 1 more"
    assert running(Control(store), DEFAULT, limit=1)[1] == 3
    assert progress_text.running_text([], 0) == "Nothing is being processed."


def test_memory_counts_for_how_near_a_limit_is() -> None:
    one = Active("ldfd01010", 1, 1, "2g", 60, 3600, 900, 1000, "", False)
    assert one.share == 0.9
    assert replace(one, memory_limit=0, time_limit=0).share == 0


def test_the_memory_of_runs_on_this_machine_is_known(tmp_path: Path) -> None:
    host = os.uname().nodename
    code = "import sys; block = bytearray(50_000_000); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "LDFD01010"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        assert progress._memory(f"{host}:{child.pid}", "ldfd01010") > 50_000_000
        assert progress._memory(f"{host}:{child.pid}", "ldfd01011") == 0  # another process has its number now
        assert progress._memory(f"elsewhere:{child.pid}", "ldfd01010") == 0
        pid = child.pid
        child.communicate()
    assert progress._memory(f"{host}:{pid}", "ldfd01010") == 0
    assert progress._memory("", "ldfd01010") == 0


# ---- costs


def one_run(**more: Any) -> Run:
    fields: dict[str, Any] = {
        "dataset": "ldfd01010", "instrument": "cos", "attempt": 1, "retry": 1, "rung": "2g", "time_limit": 3600,
        "seconds": 60.0, "memory": 10**9, "memory_limit": 1792 * 2**20, "outcome": "processed",
    }  # fmt: skip
    return Run(**fields | more)


def test_a_minute_in_a_slot_of_one_vcpu_costs_what_the_design_says() -> None:
    cost = progress.costs([one_run()], DEFAULT)["cos"]
    assert cost.dollars == pytest.approx(0.0385 / 60)
    assert (cost.vcpu_hours, cost.gb_hours) == (pytest.approx(1 / 60), pytest.approx(2 / 60))
    assert (cost.wasted, cost.retries) == (0, 0)


def test_what_was_wasted_and_what_retries_cost_is_told_apart() -> None:
    found = progress.costs(
        [one_run(outcome="oom"), one_run(attempt=2, rung="8g", seconds=120.0), one_run(retry=2, outcome="host")],
        DEFAULT,
    )["cos"]
    slot, larger = 0.0385 / 60, 2 * (2 * 0.0285 + 8 * 0.005) / 60
    assert found.dollars == pytest.approx(2 * slot + larger)
    assert (found.wasted, found.wasted_runs) == (pytest.approx(2 * slot), 2)
    assert (found.retries, found.retried_runs) == (pytest.approx(slot + larger), 2)
    assert json.dumps(found.to_json())


def test_runs_are_those_that_jobs_told_of_and_those_that_could_not() -> None:
    made = make(Clocked(), 40, data=False)
    sample = progress.look_at(made.control, progress.take_stock(made.control))
    found = runs(made.control, sample, made.settings)
    told = {(r["dataset"], r["attempt"]): r for r in made.runs}
    silent = [run for run in found if (run.dataset, run.attempt) not in told]
    assert {run.outcome for run in silent} >= {"host"}
    assert {run.outcome for run in found} >= {"processed", "oom", "transient", "deterministic", "unknown", "cancelled"}
    for run in found:
        if result := told.get((run.dataset, run.attempt)):
            assert (run.seconds, run.memory, run.memory_limit) == (
                result["wall_s"],
                result["peak_memory_bytes"],
                result["memory_limit_bytes"],
            )
    assert all(run.seconds > 0 and not run.memory for run in silent)
    again = [run for run in found if run.is_retry]
    assert {made.settings.rung(run.rung).name for run in again} >= {"8g", "16g", "64g"}
    expected = sum(progress.plan.cost(made.settings, made.settings.rung(run.rung), run.seconds) for run in found)
    assert sum(progress.costs(found, made.settings).values(), Cost()).dollars == pytest.approx(expected)


def test_a_failure_is_of_the_class_that_the_campaign_says_afterwards() -> None:
    store = Clocked(BEGAN)
    (name,) = planned(store, 1)
    for attempt, cause in ((1, "oom"), (2, "timeout")):
        put(store, name, "processing", 10 * attempt, attempt=attempt)
        put(store, name, "error", 10 * attempt + 1, attempt=attempt, exit_code=1)
        put(store, name, "placed", 10 * attempt + 2, attempt=attempt + 1, cause=cause)
    put(store, name, "processing", 30, attempt=3, cause="timeout")  # runners carry on why they are there
    put(store, name, "error", 31, attempt=3, exit_code=1)
    control = Control(store)

    def outcomes() -> list[str]:
        found = runs(control, progress.look_at(control, progress.take_stock(control)), DEFAULT)
        return [run.outcome for run in found]

    assert outcomes() == ["oom", "timeout", "unknown"]
    status = messages.read(store, name)
    assert status is not None
    messages.amend(store, replace(status, cause="deterministic"))
    assert outcomes() == ["oom", "timeout", "deterministic"]


@pytest.mark.parametrize(
    "damage",
    [b"{", b"[]", b'{"wall_s": "long", "peak_memory_bytes": null, "memory_limit_bytes": NaN}', b'{"wall_s": -1}'],
)
def test_a_result_that_makes_no_sense_is_as_good_as_none(damage: bytes) -> None:
    made = make(Clocked(), 1, outcomes=("",), data=False)
    (name,) = made.datasets
    made.control.store.put(result_key(name, 1), damage, Overwrite())
    sample = progress.look_at(made.control, progress.take_stock(made.control))
    (run,) = runs(made.control, sample, made.settings)
    status = messages.read(made.control.store, name)
    assert status is not None
    begun, ended = progress.steps(status)[-2:]
    assert run.seconds == pytest.approx((ended.at - begun.at).total_seconds())
    assert (run.memory, run.memory_limit) == (0, made.settings.rung(run.rung).memory * 2**20)


def test_needs_are_those_of_runs_that_ended_well() -> None:
    found = [one_run(seconds=float(n), memory=n * 10**6) for n in range(1, 101)]
    found += [one_run(seconds=9999.0, outcome="timeout"), one_run(instrument="acs", outcome="oom", memory=0)]
    needs = progress.needs(found)
    assert (needs["cos"].runs, needs["acs"].runs) == (100, 1)
    assert needs["cos"].time == progress.Spread(50, 95, 100)
    assert needs["cos"].memory == progress.Spread(50e6, 95e6, 100e6)
    assert needs["cos"].memory_given == progress.Spread(*[1792 * 2**20] * 3)
    assert needs["acs"].memory is None


# ---- the fake, and weight


def test_the_fake_makes_the_same_campaign_again_with_names_of_their_own() -> None:
    first, second = (make(Clocked(), 50, progress=0.7) for _ in range(2))
    assert isinstance(first.control.store, Clocked) and isinstance(second.control.store, Clocked)

    def contents(store: Clocked) -> dict[str, bytes]:
        return {key: re.sub(rb'"by": "[^"]*:\d+"', b"", data) for key, data in store.objects.items()}

    assert contents(first.control.store) == contents(second.control.store)
    assert len(set(names(20_000))) == 20_000
    assert {Dataset.parse(name).kind for name in names(200)} == {"ipppssoot", "svm", "mvm"}


def test_nothing_heavy_is_loaded() -> None:
    code = "import sys, caldp.campaign.progress_text, caldp.campaign.page; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "astropy", "crds", "jinja2", "rich", "boto3", "PIL", "psutil", "drizzlepac"}
