"""The functions on AWS: what they answer, what comes back to the queue, and what they load."""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from caldp.campaign.control import Control
from caldp.campaign.deployment import ERRORS, PROCESSED, RETRIES
from caldp.campaign.reconcile import GRACE
from caldp.campaign.settings import DEFAULT
from caldp.errors import UsageError
from tests.fakes import batch
from tests.fakes.cloud import BUCKET, DEPLOYMENT, OUTPUT, Cloud
from tests.s3 import REPOSITORY

NAMES = batch.names(5)
COUNTED = (PROCESSED, ERRORS, RETRIES)
# A call that counted nothing, such as one of no messages.
pytestmark = pytest.mark.filterwarnings("ignore:No application metrics to publish")

LAMBDAS = ("on_list", "submit_shards", "on_batch_event", "reconcile")

#: What a function must not load: it has no use for it, and each start of one would wait.
HEAVY = {"numpy", "scipy", "astropy", "crds", "drizzlepac", "matplotlib", "PIL", "rich", "jinja2", "click", "psutil"}
HEAVY |= {"requests", "pytest", "astroquery", "docker"}


@dataclass
class Context:
    """What AWS Lambda tells of a call."""

    function_name: str = "f"
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:0:function:f"
    aws_request_id: str = "r"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def environment(folder: Path) -> dict[str, str]:
    (folder / "settings.json").write_text(json.dumps(DEFAULT.to_json()))
    return {
        "CALDP_DEPLOYMENT": json.dumps(DEPLOYMENT.to_json()),
        "CALDP_SETTINGS": str(folder / "settings.json"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "POWERTOOLS_TRACE_DISABLED": "true",
    }


Load = Callable[[str], ModuleType]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return Cloud.at(monkeypatch, replace(DEFAULT, shard_size=2, canary=0))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cloud: Cloud) -> Iterator[Load]:
    """Load a handler, as AWS Lambda does, whose AWS is a fake."""
    # The functions' logger is that of the package: what they make of it must not stay.
    logger = logging.getLogger("caldp")
    before = {name: list(value) if isinstance(value, list) else value for name, value in vars(logger).items()}
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"handler_{name}", REPOSITORY / "lambdas" / name / "handler.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.stack.deployment == DEPLOYMENT
        monkeypatch.setattr(module, "stack", cloud.stack)
        return module

    yield load
    vars(logger).clear()
    vars(logger).update(before)


def records(*bodies: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return messages as AWS Lambda hands them over."""
    texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
    return {
        "Records": [
            {"messageId": f"m-{n}", "eventSource": "aws:sqs", "body": text, "receiptHandle": "r", "attributes": {}}
            for n, text in enumerate(texts)
        ]
    }


def failures(answer: Mapping[str, Any]) -> list[str]:
    return [entry["itemIdentifier"] for entry in answer["batchItemFailures"]]


def metrics(text: str) -> dict[str, float]:
    """Return the metrics that were printed, summed up."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        record = json.loads(line) if line.startswith("{") else {}
        for group in record.get("_aws", {}).get("CloudWatchMetrics", []):
            assert group["Namespace"] == "CALDP" and record["service"] == "caldp-test"
            for metric in group["Metrics"]:
                value = record[metric["Name"]]
                found[metric["Name"]] = found.get(metric["Name"], 0) + sum(value if type(value) is list else [value])
    return found


def test_a_campaign_from_its_list_to_its_end(load: Load, cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    on_list, submit, hear, reconcile = (load(name).handler for name in LAMBDAS)

    def work(queue: str, handler: Callable[[Any, Any], Any], most: int = 10) -> None:
        while taken := cloud.queues[queue].receive(most):
            assert handler(records(*(body for body, _ in taken)), Context()) == {"batchItemFailures": []}
            for _, receipt in taken:
                cloud.queues[queue].remove(receipt)

    cloud.drop("\n".join(NAMES).encode(), "x.txt")
    work(DEPLOYMENT.list_queue, on_list, 1)
    (output,) = cloud.stack.outputs()
    first = {NAMES[0]: "oom", NAMES[1]: "deterministic"}
    for minute in range(60):
        work(DEPLOYMENT.shard_queue, submit, 1)
        cloud.jobs.run(lambda name, attempt: first.get(name, "ok") if attempt == 1 else "ok")
        work(DEPLOYMENT.event_queue, hear)
        assert set(submit({"drain": True}, Context())) == {"shards"}
        if minute % 10 == 9:
            (report,) = reconcile({}, Context()) or [{"closed": True}]
            if report["closed"]:
                break
        cloud.clock.advance(60)
    cloud.assert_sound(NAMES, output)
    assert {status.state for status in cloud.statuses(output).values()} == {"processed", "error"}
    found = metrics(capsys.readouterr().out)
    expected = {"Accepted": 5, "Submitted": 6, "Processed": 4, "Errors": 1, "Retries": 1, "Regrouped": 1, "Pauses": 0}
    assert {name: found.get(name) for name in expected} == expected
    assert "RunnableAge" in found


def begun(load: Load, cloud: Cloud, outcome: Callable[[str, int], str]) -> None:
    """Begin a campaign, and let its jobs run to their end."""
    load("on_list").handler({"datasets": NAMES, "batch": "batch-22"}, Context())
    shards = Control(cloud.quiet_store()).shards()
    load("submit_shards").handler(records(*({"output": OUTPUT, "shard": name} for name in shards)), Context())
    cloud.jobs.run(outcome)


# ---- on_list


def test_a_request_is_answered(load: Load) -> None:
    reply = load("on_list").handler({"datasets": NAMES, "batch": "x", "dry_run": True}, Context())
    assert (reply["batch"], reply["datasets"], reply["dry_run"]) == ("x", 5, True)
    with pytest.raises(UsageError, match="there is no field 'whatever'"):
        load("on_list").handler({"datasets": NAMES, "whatever": 1}, Context())
    for nothing in ({}, {"Records": []}):
        if nothing:
            assert load("on_list").handler(nothing, Context()) == []
        else:
            with pytest.raises(UsageError, match="names no datasets"):
                load("on_list").handler(nothing, Context())


def test_lists_that_cannot_be_had_come_back_alone(load: Load, cloud: Cloud) -> None:
    good = cloud.drop(NAMES[0].encode(), "good.txt")
    bad = cloud.drop(b"nothing", "bad.txt")
    foreign = json.loads(json.dumps(good).replace(f'"{BUCKET}"', '"elsewhere"'))
    assert failures(load("on_list").handler(records(good, foreign, bad), Context())) == ["m-1"]
    assert len(cloud.stack.outputs()) == 1


# ---- submit_shards


def test_shards_that_cannot_be_submitted_come_back_alone(load: Load, cloud: Cloud) -> None:
    load("on_list").handler({"datasets": NAMES, "batch": "batch-22"}, Context())
    shards = Control(cloud.quiet_store()).shards()
    bodies: list[Mapping[str, Any] | str] = [{"output": OUTPUT, "shard": name} for name in shards]
    unknown = {"output": OUTPUT, "shard": "unknown"}
    answer = load("submit_shards").handler(records(*bodies, unknown, "nonsense", {}), Context())
    assert failures(answer) == ["m-3", "m-4", "m-5"]
    assert len(cloud.jobs.asks) == 3


def test_a_campaign_that_is_paused_submits_nothing(load: Load, cloud: Cloud) -> None:
    load("on_list").handler({"datasets": NAMES, "batch": "batch-22"}, Context())
    Control(cloud.quiet_store()).pause("wait")
    shard = Control(cloud.quiet_store()).shards()[0]
    answer = load("submit_shards").handler(records({"output": OUTPUT, "shard": shard}), Context())
    assert answer == {"batchItemFailures": []} and not cloud.jobs.asks


# ---- on_batch_event


def test_events_that_fail_come_back_alone(load: Load, cloud: Cloud) -> None:
    load("on_list").handler({"datasets": NAMES, "batch": "batch-22"}, Context())
    shards = Control(cloud.quiet_store()).shards()
    load("submit_shards").handler(records(*({"output": OUTPUT, "shard": name} for name in shards)), Context())
    cloud.jobs.run(lambda name, attempt: "oom")
    events = sorted((body for body, _ in cloud.queues[DEPLOYMENT.event_queue].receive(10)), key=str)
    damaged = json.loads(events[1])
    cloud.quiet_store().delete(f"control/manifests/{shards[1]}.jsonl")
    second = {NAMES[2], NAMES[3]}
    answer = load("on_batch_event").handler(records(*events, "nonsense", {}), Context())
    assert damaged and len(failures(answer)) == 3 and "m-5" in failures(answer)
    states = {name: status.state for name, status in cloud.statuses().items()}
    assert states == {name: "processing" if name in second else "placed" for name in NAMES}


def test_failures_that_are_told_twice_count_once(load: Load, cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    begun(load, cloud, lambda name, attempt: "oom")
    events = [body for body, _ in cloud.queues[DEPLOYMENT.event_queue].receive(10)]
    load("on_batch_event").handler(records(*events, *events), Context())
    assert metrics(capsys.readouterr().out)["Retries"] == 5


def test_a_dry_run_counts_no_datasets(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"datasets": NAMES, "batch": "x"}
    load("on_list").handler({**asked, "dry_run": True}, Context())
    assert "Accepted" not in metrics(capsys.readouterr().out)
    load("on_list").handler(asked, Context())
    assert metrics(capsys.readouterr().out)["Accepted"] == 5


# ---- reconcile


def test_ends_of_jobs_that_no_event_has_told_are_counted(
    load: Load, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.lost = 1.0
    ends = dict(zip(NAMES, ("oom", "oom", "deterministic", "late", "host"), strict=True))
    begun(load, cloud, lambda name, attempt: ends[name])
    reconcile = load("reconcile").handler
    found = []
    for _ in range(2):
        cloud.clock.advance(GRACE + 60)
        capsys.readouterr()
        reconcile({}, Context())
        found.append({name: count for name, count in metrics(capsys.readouterr().out).items() if name in COUNTED})
    assert found == [{"Retries": 3, "Errors": 0, "Processed": 0}, {"Retries": 0, "Errors": 1, "Processed": 1}]


def test_one_campaign_is_reconciled(load: Load, cloud: Cloud) -> None:
    load("on_list").handler({"datasets": NAMES, "batch": "batch-22"}, Context())
    load("on_list").handler({"datasets": NAMES, "batch": "another"}, Context())
    (report,) = load("reconcile").handler({"output": OUTPUT}, Context())
    assert (report["batch"], report["open"], report["queued"]) == (OUTPUT, 5, 3)
    assert len(load("reconcile").handler({}, Context())) == 2
    json.dumps(report)


# ---- what they are


@pytest.mark.parametrize("name", LAMBDAS)
def test_a_handler_is_short_and_loads_nothing_heavy(name: str, tmp_path: Path) -> None:
    path = REPOSITORY / "lambdas" / name / "handler.py"
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
    assert len(statements) <= 50
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("COV")}, **environment(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert not loaded & HEAVY, f"{name} loads {sorted(loaded & HEAVY)}"
    assert "caldp" in loaded and "yaml" not in loaded


@pytest.mark.parametrize("name", LAMBDAS)
@pytest.mark.parametrize("missing", ["CALDP_DEPLOYMENT", "CALDP_SETTINGS"])
def test_a_function_that_is_not_deployed_says_so(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(UsageError, match=f"{missing}.*deploy the stack again"):
        load(name)
