"""The end of a job becomes a state, or another attempt, which waits for its time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from caldp import messages
from caldp.campaign import hear
from caldp.campaign.accept import accept
from caldp.campaign.control import REQUEST, Control, result_key, stream_key
from caldp.campaign.failures import Ended
from caldp.campaign.lists import DatasetList, Options
from caldp.campaign.settings import DEFAULT
from caldp.campaign.shards import Line, jsonl
from caldp.errors import InputError, UsageError
from caldp.messages import Status
from caldp.store import Overwrite
from tests.fakes import batch
from tests.fakes.cloud import DEPLOYMENT, OUTPUT, PARENT, Cloud, publish

NAMES = batch.names(3)
RESCUES = DEPLOYMENT.rescue_queue


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A campaign of three datasets, which were submitted; longest waits instead of random ones."""
    monkeypatch.setattr(hear, "_jitter", lambda longest: longest)
    cloud = Cloud.at(monkeypatch)
    begin(cloud)
    return cloud


def begin(cloud: Cloud, output: str = OUTPUT) -> None:
    accepted = accept(
        cloud.quiet_store(output), DatasetList(tuple(NAMES)), Options(), cloud.stack.settings, runner="aws"
    )
    with cloud.quietly():
        for shard in accepted.shards:
            cloud.stack.submit(output, shard)


def end(cloud: Cloud, kind: str, **kinds: str) -> list[dict[str, Any]]:
    """Let the jobs run; return what AWS Batch says of them, by dataset."""
    cloud.jobs.run(lambda name, attempt: kinds.get(name, kind))
    queue = cloud.queues[DEPLOYMENT.event_queue]
    events = [json.loads(body) for body, receipt in queue.receive(9) if queue.remove(receipt) is None]
    return sorted(events, key=lambda event: str(event["detail"]["jobId"]))


def status(cloud: Cloud, name: str = NAMES[0]) -> Status:
    return cloud.statuses()[name]


def waiting(cloud: Cloud) -> list[Mapping[str, Any]]:
    return cloud.queues[RESCUES].bodies


# ---- ends


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        *(("ok", "processed"), ("late", "processed"), ("deterministic", "error")),
        *((kind, "placed") for kind in ("oom", "timeout", "host", "transient", "unknown", "silent")),
    ],
)
def test_the_end_of_a_child(cloud: Cloud, kind: str, state: str) -> None:
    event = end(cloud, kind)[0]
    assert hear.hear(cloud.stack, event).state == state == status(cloud).state
    assert len(waiting(cloud)) == (state == "placed")
    assert hear.hear(cloud.stack, event).state == state
    assert {body["dataset"] for body in waiting(cloud)} == ({NAMES[0]} if state == "placed" else set())


@pytest.mark.parametrize("kind", ["ok", "oom", "deterministic"])
def test_what_a_failed_job_logged_to_is_kept(cloud: Cloud, kind: str) -> None:
    event = end(cloud, kind)[0]
    event["detail"]["container"]["logStreamName"] = "2g/default/0123"
    hear.hear(cloud.stack, event)
    kept = cloud.quiet_store().get(stream_key(NAMES[0], 1))
    assert (kept is None) == (kind == "ok")
    assert kept is None or kept.data == b"2g/default/0123\n"


def test_the_next_attempt_waits_for_its_time(cloud: Cloud) -> None:
    event = end(cloud, "unknown")[0]
    hear.hear(cloud.stack, event)
    (body,) = waiting(cloud)
    assert (body["output"], body["dataset"], body["attempt"]) == (OUTPUT, NAMES[0], 2)
    assert datetime.fromisoformat(body["due"]) == cloud.clock() + timedelta(seconds=300)
    assert not cloud.queues[RESCUES].receive(10)
    cloud.clock.advance(300)
    assert len(cloud.queues[RESCUES].receive(10)) == 1


def test_news_of_an_earlier_attempt_do_not_cut_a_wait_short(cloud: Cloud) -> None:
    """They came twice, and the second time when the attempt after the next one had to wait."""
    first = end(cloud, "host")[0]
    hear.hear(cloud.stack, first)
    cloud.clock.advance(61)
    hear.drain(cloud.stack)
    cloud.call("submit_shards")
    second = end(cloud, "unknown")[0]
    assert hear.hear(cloud.stack, second).state == "placed"
    assert (status(cloud).attempt, len(waiting(cloud))) == (3, 1)
    assert hear.hear(cloud.stack, first).state == "placed"
    assert len(waiting(cloud)) == 1, "it was queued without its wait"


def test_an_image_that_is_not_there_pauses_the_campaign(cloud: Cloud) -> None:
    assert hear.hear(cloud.stack, end(cloud, "image")[0]).state == "placed"
    assert "CannotPullContainer" in Control(cloud.quiet_store()).paused()
    assert not any(cost for budget, cost in status(cloud).spent.items() if budget in cloud.stack.settings.budgets)


def test_old_news_do_not_pause_a_campaign_that_was_repaired(cloud: Cloud) -> None:
    control, event = Control(cloud.quiet_store()), end(cloud, "image")[0]
    hear.hear(cloud.stack, event)
    cloud.clock.advance(60)
    control.unpause()
    hear.hear(cloud.stack, event)
    assert not control.paused()


def test_what_paused_a_campaign_first_stays_the_reason(cloud: Cloud) -> None:
    control = Control(cloud.quiet_store())
    control.pause("lunch")
    hear.hear(cloud.stack, end(cloud, "image")[0])
    assert control.paused() == "lunch"


def test_a_cancelled_dataset_stays_so(cloud: Cloud) -> None:
    event = end(cloud, "oom")[0]
    messages.advance(cloud.quiet_store(), Status(NAMES[0], 1, "cancelled", rung="2g"))
    assert hear.hear(cloud.stack, event).state == "cancelled"
    assert not waiting(cloud)


def took_over(cloud: Cloud, job: str) -> Ended:
    """Let a run have taken the first dataset over from a start before it; return the end of its job."""
    store, event = cloud.quiet_store(), end(cloud, "unknown")[0]
    messages.advance(store, replace(status(cloud), retry=2, run="run-2", job=job))
    said = {"code": 1, "retriable": False, "reason": "no such aperture", "fingerprint": "0123456789ab"}
    store.put(result_key(NAMES[0], 1, 2), json.dumps(said).encode(), Overwrite())
    assert hear.hear(cloud.stack, event).state == ("error" if job == "job-1:0" else "processing")
    return Ended(NAMES[0], 1, succeeded=False, exit_code=1, job="job-1:0", retry=1)


def test_what_a_run_said_that_took_over_counts(cloud: Cloud) -> None:
    ended = took_over(cloud, "job-1:0")
    now = status(cloud)
    assert (now.cause, now.reason, now.fingerprint) == ("deterministic", "no such aperture", "0123456789ab")
    assert hear.evidence(Control(cloud.quiet_store()), ended).told("retriable") is False


def test_what_the_run_of_another_job_said_does_not_count(cloud: Cloud) -> None:
    ended = took_over(cloud, "job-7")
    control = Control(cloud.quiet_store())
    assert hear.evidence(control, ended).result is None
    cloud.quiet_store().put(result_key(NAMES[0], 1), b'{"code": 1}', Overwrite())
    assert hear.evidence(control, replace(ended, job="job-7")).result == {"code": 1}, "its own counts first"


# ---- whose


@pytest.mark.parametrize(
    "changes",
    [
        {"jobQueue": "arn:aws:batch:us-east-1:xxxxxxxxxxxx:job-queue/jwst"},
        {"jobDefinition": "arn:aws:batch:us-east-1:xxxxxxxxxxxx:job-definition/jwst:1"},
        {"container": {"command": ["caldp-process-aws", "s3://elsewhere/x", NAMES[0]]}},
        {"container": {"command": ["caldp-process-aws", OUTPUT, "@s3://elsewhere/x/m.jsonl"]}},
        {"container": {"command": ["caldp-process-aws", "nowhere", NAMES[0]]}},
        {"container": {"command": ["caldp-process-aws", f"{PARENT}/by-hand", NAMES[0]]}},
        {"arrayProperties": {"index": 3}, "jobId": "job-1:3"},
    ],
    ids=["queue", "definition", "bucket", "manifest", "output", "no campaign", "no such line"],
)
def test_a_job_of_somebody_else(cloud: Cloud, changes: dict[str, Any]) -> None:
    event = end(cloud, "oom")[0]
    event["detail"] |= changes
    writes = len(cloud.writes)
    assert hear.hear(cloud.stack, event).state == "foreign"
    assert len(cloud.writes) == writes


@pytest.mark.parametrize("event", [{}, {"detail": 1}, {"detail": {"jobId": "job-1", "status": "RUNNING"}}])
def test_what_is_no_end(cloud: Cloud, event: dict[str, Any]) -> None:
    assert hear.hear(cloud.stack, event).state == "ignored"


def test_a_manifest_that_is_missing_or_damaged_is_tried_again(cloud: Cloud) -> None:
    event = end(cloud, "oom")[0]
    manifest = event["detail"]["parameters"]["manifest"]
    store, key = cloud.quiet_store(), manifest.removeprefix(f"{OUTPUT}/")
    good = store.get(key)
    assert good is not None
    store.put(key, b"nonsense", Overwrite())
    with pytest.raises(InputError, match="is no manifest"):
        hear.hear(cloud.stack, event)
    store.delete(key)
    with pytest.raises(InputError, match="is missing"):
        hear.hear(cloud.stack, event)
    store.put(key, good.data, Overwrite())
    assert hear.hear(cloud.stack, event).state == "placed"


def test_a_manifest_is_read_once(cloud: Cloud) -> None:
    first, second, _ = end(cloud, "oom")
    hear.hear(cloud.stack, first)
    store = cloud.quiet_store()
    store.put(first["detail"]["parameters"]["manifest"].removeprefix(f"{OUTPUT}/"), b"", Overwrite())
    assert hear.hear(cloud.stack, second).state == "placed"


# ---- what is tried again


def rescue(cloud: Cloud, name: str, wait: float = 0, attempt: int = 2, **body: Any) -> None:
    """Place a dataset, and queue it."""
    given = Status(name, attempt, "placed", rung="8g", time_limit=3600, cause="oom")
    messages.advance(cloud.quiet_store(), given)
    due = (cloud.clock() + timedelta(seconds=wait)).isoformat()
    message = {"output": OUTPUT, "dataset": name, "attempt": attempt, "due": due, **body}
    cloud.queues[RESCUES].send(json.dumps(message))


def test_a_drain_makes_shards_and_empties_the_queue(cloud: Cloud) -> None:
    for name in NAMES:
        rescue(cloud, name)
    rescue(cloud, NAMES[0])
    assert hear.drain(cloud.stack) == 1
    (shard,) = cloud.queues[DEPLOYMENT.shard_queue].bodies
    assert shard["output"] == OUTPUT and len(Control(cloud.quiet_store()).lines(shard["shard"])) == 3
    assert not waiting(cloud)
    assert hear.drain(cloud.stack) == 0


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_that_fail_in_one_minute_are_few_jobs(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    names = batch.names(count)
    cloud = Cloud.at(monkeypatch, replace(DEFAULT, shard_size=count // 10))
    accept(cloud.quiet_store(), DatasetList(tuple(names)), Options(canary=0), cloud.stack.settings, runner="aws")
    for name in names:
        rescue(cloud, name)
    assert hear.drain(cloud.stack) == 10
    cloud.call("submit_shards")
    assert len(cloud.jobs.asks) == 10
    assert len(cloud.jobs.members) == count and set(cloud.jobs.members.values()) == {1}


def test_a_drain_takes_so_many_at_once(cloud: Cloud) -> None:
    for name in NAMES:
        rescue(cloud, name)
    hear.drain(cloud.stack, most=2)
    assert len(waiting(cloud)) == 1


@pytest.mark.parametrize(("left", "delay"), [(100, 120), (900, 900), (2700, 900), (2, 30)])
def test_what_is_not_due_waits_on(cloud: Cloud, left: float, delay: float) -> None:
    rescue(cloud, NAMES[0], wait=left)
    assert hear.drain(cloud.stack) == 0
    assert len(waiting(cloud)) == 1 and status(cloud).state == "placed"
    (message,) = cloud.queues[RESCUES]._messages.values()
    assert message.visible == cloud.clock() + timedelta(seconds=delay)
    for _ in range(int(left / 60) + 2):
        cloud.clock.advance(60)
        hear.drain(cloud.stack)
    assert not waiting(cloud) and len(cloud.queues[DEPLOYMENT.shard_queue]) == 1


@pytest.mark.parametrize(
    "body",
    [
        "nonsense",
        "[]",
        "{}",
        '{"output": "s3://outputs/runs/batch-22", "dataset": "../x", "attempt": 2, "due": "2026-01-01T00:00:00Z"}',
        '{"output": "s3://outputs/runs/batch-22", "dataset": "ldfd00000", "attempt": "x", "due": "2026-01-01T00:00Z"}',
        '{"output": "s3://outputs/runs/batch-22", "dataset": "ldfd00000", "attempt": 2, "due": "yesterday"}',
        '{"output": "s3://outputs/runs/batch-22", "dataset": "ldfd00000", "attempt": 2, "due": "2026-01-01T00:00:00"}',
        '{"output": "s3://outputs/runs/batch-22", "dataset": 1, "attempt": 2, "due": "2026-01-01T00:00:00Z"}',
    ],
)
def test_a_message_that_makes_no_sense_ends_among_the_dead(cloud: Cloud, body: str) -> None:
    rescue(cloud, NAMES[0])
    cloud.queues[RESCUES].send(body)
    assert hear.drain(cloud.stack) == 1
    for _ in range(12):
        cloud.clock.advance(601)
        hear.drain(cloud.stack)
    assert cloud.queues[RESCUES].dead == [body] and not len(cloud.queues[RESCUES])


def test_a_batch_that_is_broken_does_not_keep_others_from_it(cloud: Cloud) -> None:
    rescue(cloud, NAMES[0])
    rescue(cloud, NAMES[1], output="s3://elsewhere/x")
    messages.advance(cloud.quiet_store(f"{PARENT}/other"), Status(NAMES[2], 2, "placed", rung="none"))
    rescue(cloud, NAMES[2], output=f"{PARENT}/other")
    with pytest.raises(UsageError):
        hear.drain(cloud.stack)
    assert [body["output"] for body in cloud.queues[DEPLOYMENT.shard_queue].bodies] == [OUTPUT]
    assert len(waiting(cloud)) == 2


def test_the_fakes_are_as_they_say(cloud: Cloud) -> None:
    """That a store below another one sees its objects, and jobs what was written for them."""
    line = Line(NAMES[0], 1, "2g", 1, 3600)
    cloud.quiet_store(PARENT).put("x/m.jsonl", jsonl([line]), Overwrite())
    assert cloud.stack.lines(f"{PARENT}/x/m.jsonl") == [line]
    assert cloud.quiet_store().get(REQUEST) is not None
    assert cloud.stack.outputs() == [f"{PARENT}/batch-22", f"{PARENT}/x"]
    done = publish(cloud.quiet_store(), Status(NAMES[0], 1, "processing", run="r"))
    assert done.attempt == 1
