"""Lists that are dropped or sent become campaigns, once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote_plus

import pytest

from caldp import messages
from caldp.campaign import observe, trigger
from caldp.campaign.control import CLOSED, Control
from caldp.campaign.letters import REPLAYED
from caldp.campaign.lists import DatasetList, Options
from caldp.campaign.reconcile import open_batches
from caldp.campaign.settings import DEFAULT
from caldp.campaign.stack import ELSEWHERE, QueueError
from caldp.errors import ExistsError, OutputError, S3UploadError, UsageError
from caldp.messages import Status
from caldp.store import Overwrite
from tests.fakes import batch
from tests.fakes.cloud import BUCKET, DEPLOYMENT, PARENT, BucketStore, Cloud, FakeSqs

NAMES = batch.names(50)
FIGURES = replace(DEFAULT, shard_size=20, canary=0)
SHARDS = DEPLOYMENT.shard_queue


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A deployment without campaigns."""
    return Cloud.at(monkeypatch, FIGURES)


def drop(cloud: Cloud, key: str, text: str = "\n".join(NAMES), bucket: str = BUCKET) -> None:
    with cloud.quietly():
        BucketStore(cloud, f"s3://{bucket}").put(key, text.encode(), Overwrite())


def notification(key: str, bucket: str = BUCKET) -> dict[str, Any]:
    """Return what S3 sends itself: its keys are encoded."""
    place = {"bucket": {"name": bucket}, "object": {"key": quote_plus(key)}}
    return {"Records": [{"eventName": "ObjectCreated:Put", "eventSource": "aws:s3", "s3": place}]}


def created(key: str, bucket: str = BUCKET) -> dict[str, Any]:
    """Return what EventBridge sends."""
    return {"detail-type": "Object Created", "detail": {"bucket": {"name": bucket}, "object": {"key": key}}}


def in_sqs(*events: Mapping[str, Any]) -> dict[str, Any]:
    return {"Records": [{"eventSource": "aws:sqs", "body": json.dumps(event)} for event in events]}


def queued(cloud: Cloud) -> list[str]:
    return [body["shard"] for body in cloud.queues[SHARDS].bodies]


def objects(cloud: Cloud) -> dict[str, bytes]:
    return {key: data for bucket in cloud.buckets.values() for key, data in bucket.objects.items()}


@pytest.mark.parametrize("folder", ["messages/placed", "control/placed", "some where/é/control/placed"])
@pytest.mark.parametrize("wrap", [lambda e: e, in_sqs], ids=["bare", "sqs"])
@pytest.mark.parametrize("envelope", [notification, created])
def test_a_dropped_list_becomes_a_campaign(cloud: Cloud, folder: str, wrap: Any, envelope: Any) -> None:
    key = f"{folder}/march+a b.txt"
    drop(cloud, key)
    (reply,) = trigger.take(cloud.stack, wrap(envelope(key)))
    assert reply["batch"].startswith("march-a-b-") and len(reply["batch"]) == 18
    assert (reply["accepted"], reply["shards"], reply["resumed"]) == (50, 3, False)
    assert reply["output"] == f"{PARENT}/{reply['batch']}"
    assert sorted(queued(cloud)) == [f"{reply['batch']}-a1-2g-1h-{n:03d}" for n in (1, 2, 3)]
    assert {body["output"] for body in cloud.queues[SHARDS].bodies} == {reply["output"]}


def test_several_lists_in_one_event(cloud: Cloud) -> None:
    drop(cloud, "control/placed/a.txt", NAMES[0])
    drop(cloud, "control/placed/b.csv", f"dataset,memory_rung\n{NAMES[1]},8g\n")
    event = in_sqs(created("control/placed/a.txt"), notification("control/placed/b.csv"))
    assert [reply["batch"][:2] for reply in trigger.take(cloud.stack, event)] == ["a-", "b-"]
    assert sorted(name.partition("-a1-")[2] for name in queued(cloud)) == ["2g-1h-001", "8g-1h-001"]


@pytest.mark.parametrize("key", ["messages/dataset-error/x", "control/plan.json", "placed/x.txt", "control/placed/"])
def test_other_objects_are_none_of_its_business(cloud: Cloud, key: str) -> None:
    assert trigger.take(cloud.stack, created(key)) == []
    assert not cloud.writes


def test_a_list_that_has_gone(cloud: Cloud) -> None:
    assert trigger.take(cloud.stack, created("control/placed/gone.txt")) == []


@pytest.mark.parametrize("event", [{}, {"dataset": ["ldfd00000"]}])
def test_a_request_without_datasets(cloud: Cloud, event: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="names no datasets"):
        trigger.take(cloud.stack, event)


def test_a_request_that_comes_once_more(cloud: Cloud) -> None:
    asked = {"datasets": "j8cb010b0", "batch": "x"}
    (first,) = trigger.take(cloud.stack, asked)
    (again,) = trigger.take(cloud.stack, {**asked, REPLAYED: True})
    assert again == {**first, "resumed": True}


def test_a_request(cloud: Cloud) -> None:
    (reply,) = trigger.take(cloud.stack, {"datasets": "J8CB010B0\nLDQHPBI9Q j8cb010b0 nonsense", "batch": "x"})
    assert {name: reply[name] for name in ("batch", "accepted", "rejected", "duplicates", "skipped", "jobs")} == {
        "batch": "x",
        "accepted": 2,
        "rejected": 1,
        "duplicates": 1,
        "skipped": 0,
        "jobs": 2,
    }
    assert reply["output"] == f"{PARENT}/x" and reply["estimate"]["hours"] > 0
    assert b"nonsense" in objects(cloud)["runs/x/control/rejected.jsonl"]


def test_a_dry_run_writes_nothing(cloud: Cloud) -> None:
    (reply,) = trigger.take(cloud.stack, {"datasets": NAMES, "dry_run": True})
    assert not objects(cloud) and not cloud.writes and not queued(cloud)
    assert (reply["dry_run"], reply["datasets"], reply["submit_jobs"], reply["skipped"]) == (True, 50, 3, 0)
    (real,) = trigger.take(cloud.stack, {"datasets": NAMES})
    assert {name: reply[name] for name in real} == real


# ---- the same list again


def test_the_same_list_makes_the_same_shards_and_no_other_job(cloud: Cloud) -> None:
    trigger.take(cloud.stack, {"datasets": NAMES, "batch": "x"})
    cloud.call("submit_shards")
    before, jobs = objects(cloud), len(cloud.jobs.asks)
    assert jobs == 3
    for again in (NAMES, [*reversed(NAMES)], [name.upper() for name in NAMES], " ".join([*NAMES, *NAMES])):
        (reply,) = trigger.take(cloud.stack, {"datasets": again, "batch": "x"})
        assert reply["resumed"] and (reply["shards"], reply["duplicates"]) == (3, 0)
        assert len(queued(cloud)) == 3
        cloud.call("submit_shards")
        assert objects(cloud) == before and len(cloud.jobs.asks) == jobs


def test_a_shuffled_list_is_planned_alike_elsewhere(cloud: Cloud) -> None:
    def manifests(where: str) -> dict[str, bytes]:
        store = cloud.quiet_store(f"s3://{BUCKET}/{where}/x")
        names = store.names("control/manifests")
        return {name: blob.data for name in names if (blob := store.get(f"control/manifests/{name}"))}

    trigger.take(cloud.stack, {"datasets": NAMES, "batch": "x", "s3_output_path": f"s3://{BUCKET}/one"})
    twice = [*reversed(NAMES), *NAMES[3:30]]
    trigger.take(cloud.stack, {"datasets": twice, "batch": "x", "s3_output_path": f"s3://{BUCKET}/two"})
    assert len(manifests("one")) == 3 and manifests("one") == manifests("two")


def test_another_list_of_the_same_name_is_refused(cloud: Cloud) -> None:
    trigger.take(cloud.stack, {"datasets": NAMES, "batch": "x"})
    with pytest.raises(UsageError, match="campaign of another request"):
        trigger.take(cloud.stack, {"datasets": NAMES[1:], "batch": "x"})


def test_what_is_processed_already(cloud: Cloud) -> None:
    messages.advance(cloud.quiet_store(f"{PARENT}/x"), Status(NAMES[0], 1, "processed"))
    with pytest.raises(ExistsError):
        trigger.take(cloud.stack, {"datasets": NAMES, "batch": "x", "existing": "error"})
    (reply,) = trigger.take(cloud.stack, {"datasets": NAMES, "batch": "x"})
    assert (reply["skipped"], reply["accepted"]) == (1, 49)


# ---- some go first


def test_only_those_that_go_first_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Cloud.at(monkeypatch, replace(FIGURES, canary=0.1, canary_least=2))
    (reply,) = trigger.take(cloud.stack, {"datasets": NAMES, "batch": "x"})
    plan = Control(cloud.quiet_store(f"{PARENT}/x")).plan()
    assert len(plan["canary"]) == 5 and queued(cloud) == plan["first"] == ["x-a1-2g-1h-001"]
    assert reply["shards"] == len(plan["shards"]) == 4


# ---- refused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "nothing here"),
        ("x.pdf", "ldfd00000"),
        ("x.json", '{"datasets": ["ldfd00000"], "s3_output_path": "s3://elsewhere/x"}'),
        ("x.json", '{"datasets": ["ldfd00000"], "job_queue": "jwst"}'),
        ("x.yaml", "datasets: [ldfd00000]\njob_definition: jwst\n"),
        ("x.json", '{"datasets": ["ldfd00000"], "whatever": 1}'),
        ("x.csv", 'dataset\n"ldfd'),
        ("x.txt", " ".join(["nonsense"] * 101 + ["ldfd00000"])),
    ],
)
@pytest.mark.parametrize("folder", ["control", "messages", "a/b/control"])
def test_a_list_of_no_use_is_answered_beside_it(cloud: Cloud, folder: str, name: str, text: str) -> None:
    drop(cloud, f"{folder}/placed/{name}", text)
    (reply,) = trigger.take(cloud.stack, created(f"{folder}/placed/{name}"))
    said = objects(cloud)[f"{folder}/refused/{name}.txt"].decode()
    assert reply["error"] and reply["error"] in said and reply["list"] == f"s3://{BUCKET}/{folder}/placed/{name}"
    assert len(objects(cloud)) == 2 and not queued(cloud)


def test_one_of_no_use_does_not_keep_others_from_it(cloud: Cloud) -> None:
    drop(cloud, "control/placed/bad.txt", "nothing")
    drop(cloud, "control/placed/good.txt", NAMES[0])
    event = in_sqs(created("control/placed/bad.txt"), created("control/placed/good.txt"))
    bad, good = trigger.take(cloud.stack, event)
    assert "error" in bad and good["accepted"] == 1


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"s3_output_path": "s3://elsewhere/x"}, "bucket 'elsewhere'"),
        ({"s3_output_bucket": "elsewhere"}, "bucket 'elsewhere'"),
        ({"job_queue": "jwst"}, "job queue 'jwst'"),
        ({"job_definition": "jwst"}, "job definition 'jwst'"),
    ],
)
def test_what_the_deployment_does_not_allow(cloud: Cloud, request_: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trigger.take(cloud.stack, {"datasets": NAMES, **request_})
    assert not cloud.writes


@pytest.mark.parametrize("name", ["control", "data", "messages", "observations"])
def test_names_of_other_folders_are_no_names_of_batches(cloud: Cloud, name: str) -> None:
    said = f"no batch can be called {name}: beside batches that is a folder; choose another"
    listed, options = DatasetList(tuple(NAMES)), Options()
    for act in (
        lambda: trigger.take(cloud.stack, {"datasets": NAMES, "batch": name}),
        lambda: trigger.take(cloud.stack, {"datasets": NAMES, "batch": name, "dry_run": True}),
        lambda: trigger.begin(cloud.stack, listed, options, f"{PARENT}/deeper/{name}/"),
    ):
        with pytest.raises(UsageError) as refused:
            act()
        assert str(refused.value) == said
    assert not cloud.writes
    drop(cloud, "control/placed/x.json", json.dumps({"datasets": NAMES, "batch": name}))
    (reply,) = trigger.take(cloud.stack, created("control/placed/x.json"))
    assert reply["error"] == said and objects(cloud)["control/refused/x.json.txt"].decode() == f"{said}\n"


def test_a_reply_names_some_of_what_is_invalid(cloud: Cloud) -> None:
    asked = {"datasets": [*batch.names(200), *(f"x{number}" for number in range(100))], "on_invalid": "skip"}
    (reply,) = trigger.take(cloud.stack, {**asked, "dry_run": True})
    assert (reply["rejected"], len(reply["invalid"])) == (100, 100)
    assert reply["invalid"][0] == {"line": 201, "text": "x0", "reason": "not an HST dataset name"}


@pytest.mark.parametrize(
    ("output", "prefix", "said"),
    [
        (f"s3://{BUCKET}", "", "is a bucket, and no batch; give s3://outputs/<name of the batch>"),
        (f"s3://{BUCKET}/elsewhere/b", "runs/", "is not below s3://outputs/runs/, where caldp-test may write"),
        (f"s3://{BUCKET}/runsx/b", "runs/", "is not below s3://outputs/runs/, where caldp-test may write"),
        (f"{PARENT}/cos#1&2", "", "no batch can be called 'cos#1&2'; give 1 to 64 letters, digits and ._-"),
        (f"{PARENT}/cos (new flat)", "", "no batch can be called"),
        (f"{PARENT}/{'x' * 65}", "", "no batch can be called"),
        (f"{PARENT}/..", "", "no batch can be called"),
        (f"s3://{BUCKET}/messages/placed/b", "", "no batch can be called messages: beside batches that is a folder"),
    ],
)
def test_places_for_no_batch(
    cloud: Cloud, output: str, prefix: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud.stack, "deployment", replace(cloud.stack.deployment, placed=prefix))
    with pytest.raises(UsageError) as refused:
        trigger.begin(cloud.stack, DatasetList(tuple(NAMES)), Options(), output)
    assert said in str(refused.value)
    assert not cloud.writes
    trigger.begin(cloud.stack, DatasetList(tuple(NAMES)), Options(), f"{PARENT}/far/away/b")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"input": "file:/data/raw"}, "jobs on AWS cannot read file:/data/raw; put the data into a bucket"),
        ({"config": "/home/me/caldp-config"}, "jobs on AWS cannot read /home/me/caldp-config; name a config script"),
    ],
)
def test_what_only_the_sender_has(cloud: Cloud, asked: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        trigger.begin(cloud.stack, DatasetList(tuple(NAMES)), Options(**asked), f"{PARENT}/b")  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert not cloud.writes


def test_a_list_in_a_foreign_bucket(cloud: Cloud) -> None:
    drop(cloud, "control/placed/x.txt", bucket="elsewhere")
    with pytest.raises(UsageError, match="in no bucket of caldp-test"):
        trigger.take(cloud.stack, created("control/placed/x.txt", "elsewhere"))
    assert not cloud.writes


def test_when_s3_fails_the_list_is_not_to_blame(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes again, instead of being refused for good."""
    drop(cloud, "control/placed/x.txt")
    real = BucketStore.put

    def put(self: BucketStore, key: str, *args: Any) -> str:
        if key.startswith("control/manifests/"):
            raise S3UploadError(f"{key}: S3 does not answer")
        return real(self, key, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BucketStore, "put", put)
        with pytest.raises(S3UploadError):
            trigger.take(cloud.stack, created("control/placed/x.txt"))
    assert not any("refused" in key for key in objects(cloud))
    (reply,) = trigger.take(cloud.stack, created("control/placed/x.txt"))
    assert (reply["accepted"], reply["resumed"], len(queued(cloud))) == (50, False, 3)


def test_when_the_queue_fails_the_list_is_not_to_blame(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(cloud, "control/placed/x.txt")
    with monkeypatch.context() as patch:
        refusal = {"Failed": [{"Id": "0", "Message": "busy"}]}
        patch.setattr(FakeSqs, "send_message_batch", lambda *_, **__: refusal)
        with pytest.raises(QueueError, match=r"q:shards did not take 1 messages \(busy\)"):
            trigger.take(cloud.stack, created("control/placed/x.txt"))
    assert not any("refused" in key for key in objects(cloud))
    (reply,) = trigger.take(cloud.stack, created("control/placed/x.txt"))
    assert (reply["resumed"], len(queued(cloud))) == (True, 3)


def test_a_dropped_list_whose_output_is_out_of_reach(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud.stack, "deployment", replace(DEPLOYMENT, placed="runs/"))
    for output, good in ((f"s3://{BUCKET}/mine", False), (f"{PARENT}/mine", True)):
        drop(cloud, "runs/control/placed/x.json", json.dumps({"datasets": NAMES, "s3_output_path": output}))
        (reply,) = trigger.take(cloud.stack, created("runs/control/placed/x.json"))
        assert ("error" not in reply) == good
        assert bool(queued(cloud)) == good
    said = objects(cloud)["runs/control/refused/x.json.txt"].decode()
    assert f"is not below {PARENT}/, where caldp-test may write; give a place there" in said


# ---- elsewhere


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Return a world where a list was dropped whose batch goes to another place."""
    cloud = Cloud.at(monkeypatch, FIGURES)
    cloud.tells = True
    wanted = {"datasets": NAMES[:3], "batch": "x", "s3_output_path": f"s3://{BUCKET}/mine"}
    cloud.drop(json.dumps(wanted).encode(), "x.json")
    return cloud


def test_a_batch_elsewhere_is_looked_after_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = elsewhere(monkeypatch)
    cloud.lost = 1.0  # so that only whoever looks after all hears of its jobs
    cloud.work(lambda name, attempt: "ok")
    output = f"s3://{BUCKET}/mine/x"
    cloud.assert_sound(NAMES[:3], output)
    assert cloud.quiet_store(output).get(CLOSED) is not None
    assert output in cloud.stack.outputs() and list(open_batches(cloud.stack)) == []
    assert len(observe.known(cloud.quiet_store(f"s3://{BUCKET}/mine"))) == 3
    assert len(observe.known(cloud.quiet_store(PARENT))) == 0


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_whoever_is_killed_does_not_lose_a_batch_elsewhere(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    cloud = elsewhere(monkeypatch)
    cloud.work(lambda name, attempt: "ok", victim="on_list")
    struck = []
    for at in range(1, cloud.switch.count + 1):
        cloud = elsewhere(monkeypatch)
        cloud.lost, cloud.switch.at, cloud.switch.before = 1.0, at, before
        cloud.work(lambda name, attempt: "ok", victim="on_list")
        cloud.assert_sound(NAMES[:3], f"s3://{BUCKET}/mine/x")
        struck.append(cloud.switch.last)
    assert any(what.startswith(f"put {ELSEWHERE}/") for what in struck)


# ---- what was observed


def test_a_later_campaign_is_planned_with_what_an_earlier_one_has_used(cloud: Cloud) -> None:
    cloud.tells = True
    trigger.take(cloud.stack, {"datasets": NAMES[:3], "batch": "first"})
    cloud.work(lambda name, attempt: "ok")
    (reply,) = trigger.take(cloud.stack, {"datasets": NAMES[:4], "batch": "second"})
    control = Control(cloud.quiet_store(reply["output"]))
    why = {line.dataset: line.why for shard in control.shards() for line in control.lines(shard)}
    assert ["observed of it" in why[name] for name in NAMES[:4]] == [True, True, True, False]
    assert control.plan()["unobserved"] == 1
    (dry,) = trigger.take(cloud.stack, {"datasets": NAMES[:4], "dry_run": True})
    assert dry["unobserved"] == 1


def test_observations_that_are_damaged_are_named_and_left_alone(cloud: Cloud) -> None:
    cloud.quiet_store(PARENT).put(observe.key("cos"), b"nonsense", Overwrite())
    with pytest.raises(OutputError, match="observations/cos.jsonl: line 1 is damaged"):
        trigger.take(cloud.stack, {"datasets": NAMES})
    assert not cloud.writes
    (reply,) = trigger.take(cloud.stack, {"datasets": ["o8l7sws9q"]})
    assert reply["accepted"] == 1
