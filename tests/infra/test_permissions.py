"""What roles may do: all of it in ``iam.yaml``, and what must hold whatever is in there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from caldp import messages
from caldp.campaign import control, observe
from caldp.campaign.settings import DEFAULT
from caldp.campaign.stack import ELSEWHERE
from caldp.messages import Status
from caldp.store import Overwrite
from tests.fakes.batch import names as made_up
from tests.fakes.cloud import BATCH, BUCKET, OUTPUT, PARENT, Cloud, FakeJobs, Job
from tests.infra import snapshot
from tests.infra.conftest import Synthesize, changed
from tests.infra.template import Template
from tests.integration.test_iam import documented

FUNCTIONS = ("on-list", "submit-shards", "drain-rescues", "on-batch-event", "reconcile")
DATASET = "ldfd01010"
STATUS = f"messages/status/{DATASET}.json"
SHOWN = [f"messages/{folder}/{DATASET}" for _, folder in messages.STATES.values() if folder]
MANIFEST, CLAIM, LOG = control.manifest_key("s-1"), control.claim_key("s-1"), control.stream_key(DATASET, 1)
SUBMITTED = f"{control.SUBMITTED}/s-1-0123abcd.jsonl"
RECORDS = [
    *(control.REQUEST, control.PLAN, control.REJECTED, control.OBSERVATIONS, control.PAUSE, control.UNPAUSED),
    *(control.RELEASED, control.CLOSED, control.FOLDED, control.SEEN, control.AUDIT, MANIFEST, CLAIM, SUBMITTED, LOG),
]
PRODUCT = f"data/cos/{DATASET}/manifest.json"
LISTS = ["messages/placed/a.txt", "control/placed/a.txt", "b/messages/placed/a.txt", "a/b/control/placed/x.json"]


def test_roles_may_do_what_the_snapshot_says(dev: Template) -> None:
    expected = yaml.safe_load(snapshot.FILE.read_text())
    statements = dev.statements()
    assert statements.keys() == expected.keys()
    for role, found in statements.items():
        assert found == expected[role], f"{role}: read, then python -m tests.infra.snapshot"
    assert snapshot.FILE.read_text() == snapshot.text(statements)


@pytest.mark.parametrize("environment", ["dev", "ops"])
def test_actions_are_named_one_by_one_and_nobody_deletes_versions(
    environment: str, stack: Callable[[str], Template]
) -> None:
    for role, statements in stack(environment).statements().items():
        for statement in statements:
            for action in statement["actions"]:
                assert "*" not in action
                assert action not in ("s3:DeleteObjectVersion", "s3:PutBucketPolicy", "iam:PassRole"), role
            if statement["resources"] == ["*"]:
                assert set(statement["actions"]) <= {
                    *("xray:PutTraceSegments", "xray:PutTelemetryRecords", "ecr:GetAuthorizationToken"),
                    *("batch:DescribeJobs", "batch:ListJobs"),
                }, role


def test_each_function_has_a_role_of_its_own(dev: Template) -> None:
    roles = [function["Role"]["Fn::GetAtt"][0] for function in dev.all("Lambda::Function").values()]
    assert len(roles) == len(set(roles)) == len(FUNCTIONS)
    assert set(dev.statements()) == {*FUNCTIONS, "job", "execution"}
    managed = {k: p["ManagedPolicyArns"] for k, p in dev.all("IAM::Role").items() if p.get("ManagedPolicyArns")}
    assert [dev.short(name) for name in managed] == ["ComputeInstanceRole"]


def deletable(template: Template, role: str) -> set[str]:
    return {r for s in template.statements()[role] if "s3:DeleteObject" in s["actions"] for r in s["resources"]}


def test_only_messages_are_deleted_and_by_jobs_what_an_earlier_attempt_has_left(dev: Template) -> None:
    for role in (*FUNCTIONS, "execution"):
        assert deletable(dev, role) <= {"<Outputs>/*/messages/dataset*"}
    assert deletable(dev, "job") == {"<Outputs>/*/messages/dataset*", "<Outputs>/*/data/*"}
    for role in (*FUNCTIONS, "job"):
        for key in (STATUS, *RECORDS, "messages/placed/a.txt"):
            assert not dev.allows(role, "s3:DeleteObject", f"<Outputs>/b/{key}")


def test_a_job_may_do_what_the_guide_says_each_in_its_place(dev: Template) -> None:
    actions = {action for statement in dev.statements()["job"] for action in statement["actions"]}
    assert actions == documented()["job"]
    for batch in ("b", "parent/b"):
        own = (STATUS, *SHOWN, PRODUCT, control.result_key(DATASET, 1))
        for key in own:
            assert dev.allows("job", "s3:PutObject", f"<Outputs>/{batch}/{key}"), key
            assert dev.allows("job", "s3:GetObject", f"<Outputs>/{batch}/{key}"), key
        for key in (MANIFEST, SUBMITTED):
            assert dev.allows("job", "s3:GetObject", f"<Outputs>/{batch}/{key}"), key
        for key in RECORDS:
            assert not dev.allows("job", "s3:PutObject", f"<Outputs>/{batch}/{key}"), key
    assert dev.allows("job", "s3:GetObject", "<Crds>/references/hst/x.fits")
    assert not dev.allows("job", "s3:PutObject", "<Crds>/references/hst/x.fits")


@pytest.mark.parametrize("role", [*FUNCTIONS, "job"])
def test_nothing_but_people_drops_lists(role: str, dev: Template) -> None:
    for key in LISTS:
        assert not dev.allows(role, "s3:PutObject", f"<Outputs>/{key}")
        assert role != "on-list" or dev.allows(role, "s3:GetObject", f"<Outputs>/{key}")


@pytest.mark.parametrize(
    ("role", "writes", "sends"),
    [
        ("on-list", [control.REQUEST, control.PLAN, control.REJECTED, control.OBSERVATIONS, MANIFEST], ["shards"]),
        ("submit-shards", [CLAIM, SUBMITTED, STATUS, *SHOWN], []),
        ("drain-rescues", [MANIFEST], ["rescues", "shards"]),
        ("on-batch-event", [control.PAUSE, control.CLOSED, LOG, STATUS, *SHOWN], ["rescues"]),
        (
            "reconcile",
            [control.PAUSE, control.RELEASED, control.CLOSED, control.FOLDED, control.SEEN, LOG, STATUS, *SHOWN],
            ["lists", "shards", "events", "rescues"],
        ),
    ],
)
def test_a_function_writes_and_sends_what_is_its_work(
    role: str, writes: list[str], sends: list[str], dev: Template
) -> None:
    for key in (*RECORDS, STATUS, *SHOWN, PRODUCT, control.result_key(DATASET, 1)):
        assert dev.allows(role, "s3:PutObject", f"<Outputs>/b/{key}") == (key in writes), key
    for key in (*RECORDS, STATUS, *SHOWN):
        assert dev.allows(role, "s3:GetObject", f"<Outputs>/b/{key}"), key
    for queue in ("lists", "shards", "events", "rescues"):
        assert dev.allows(role, "sqs:SendMessage", f"sqs:::caldp-dev-{queue}") == (queue in sends), queue
    verifies = role in ("on-batch-event", "reconcile")
    assert dev.allows(role, "s3:GetObject", f"<Outputs>/b/{PRODUCT}") == verifies
    submits = role == "submit-shards"
    assert dev.allows(role, "batch:SubmitJob", "batch:::job-queue/caldp-dev-8g") == submits
    # As the call names it, which is without a revision, and as AWS Batch may read that.
    for definition in ("caldp-dev-8g", "caldp-dev-8g:17"):
        assert dev.allows(role, "batch:SubmitJob", f"batch:::job-definition/{definition}") == submits, definition
    for other in ("caldp-dev-8gx", "caldp-dev-8gx:1", "other:1"):
        assert not dev.allows(role, "batch:SubmitJob", f"batch:::job-definition/{other}"), other
    assert not dev.allows(role, "batch:SubmitJob", "batch:::job-queue/other")


class Logged(FakeJobs):
    """Jobs that have logged."""

    def _known(self, job: Job) -> dict[str, Any]:
        known = super()._known(job)
        return {**known, "container": {**known["container"], "logStreamName": f"2g/default/{job.id}"}}


class Watched(Cloud):
    """AWS that notes what each function does to objects: ``written`` and ``deleted`` have (role, key)."""

    ROLES: Mapping[str, str] = {**{name: name.replace("_", "-") for name in Cloud.FUNCTIONS}, "drain": "drain-rescues"}

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.jobs = Logged(self)
        self.written: set[tuple[str, str]] = set()
        self.deleted: set[tuple[str, str]] = set()

    def call(self, name: str) -> Any:
        before = len(self.writes)
        done = super().call(name)
        for what in self.writes[before:]:
            verb, *keys = what.split(" ")
            into = {"put": self.written, "delete": self.deleted}.get(verb, set())
            into |= {(self.ROLES[name], key) for key in keys}
        return done


def live(cloud: Cloud, outcome: Callable[[str, int], str], minutes: int) -> None:
    """Let time pass, in campaigns that need not come to their end."""
    for minute in range(minutes):
        for name in ("on_list", "submit_shards", "on_batch_event", "drain"):
            cloud.call(name)
            with cloud.quietly():
                cloud.jobs.run(outcome)
        if minute % 10 == 9:
            cloud.call("reconcile")
        cloud.clock.advance(60)


def kind(key: str) -> str:
    """Return what a record is of: its folder, or its own name."""
    return "/".join(key.split("/")[:2])


def test_functions_that_run_campaigns_write_what_they_may_and_all_of_it(
    monkeypatch: pytest.MonkeyPatch, dev: Template
) -> None:
    cloud = Watched.at(monkeypatch, replace(DEFAULT, shard_size=4, canary=0.2, canary_least=2, canary_failures=0.9))
    assert isinstance(cloud, Watched)
    cloud.lost, cloud.tells = 0.3, True
    names = made_up(24)
    ends = dict(zip(names, ("oom", "host", "deterministic", "timeout", "unknown"), strict=False))

    def drop(name: str, where: str, count: int) -> None:
        asked = {"datasets": names[:count], "batch": name, "s3_output_path": where}
        cloud.drop(json.dumps(asked).encode(), f"{name}.json")
        cloud.call("on_list")

    drop(BATCH, PARENT, 24)
    messages.advance(cloud.quiet_store(), Status(names[5], 1, "cancelled", rung="2g"))
    # As if it had been closed too early: who places another attempt takes that back.
    cloud.quiet_store().put(control.CLOSED, b"{}", Overwrite())
    live(cloud, lambda name, attempt: ends.get(name, "ok") if attempt == 1 else "ok", 120)
    assert "states" in (control.Control(cloud.quiet_store()).read(control.CLOSED) or {})
    # One elsewhere, whose image cannot be had; and one of which those fail that go first.
    drop("image", f"s3://{BUCKET}/far/away", 4)
    live(cloud, lambda name, attempt: "image", 30)
    drop("canary", PARENT, 24)
    live(cloud, lambda name, attempt: "deterministic", 60)
    paused = [key for key in cloud.buckets[BUCKET].objects if key.endswith(control.PAUSE)]
    assert sorted(paused) == [f"far/away/image/{control.PAUSE}", f"runs/canary/{control.PAUSE}"]
    assert any(ask.parameters["manifest"].startswith(f"{OUTPUT}/{control.SUBMITTED}/") for ask in cloud.jobs.asks)

    for done, action in ((cloud.written, "s3:PutObject"), (cloud.deleted, "s3:DeleteObject")):
        for role, key in sorted(done):
            where = key if key.startswith(ELSEWHERE) else f"b/{key}"
            assert dev.allows(role, action, f"<Outputs>/{where}"), (role, action, key)
    for role in FUNCTIONS:
        may = {kind(key) for key in RECORDS if dev.allows(role, "s3:PutObject", f"<Outputs>/b/{key}")}
        does = {kind(key) for who, key in cloud.written if who == role and key.startswith("control/")}
        assert may == does - {ELSEWHERE}, role
    for ask in cloud.jobs.asks:
        if ask.parameters["manifest"]:
            key = ask.parameters["manifest"].removeprefix(f"s3://{BUCKET}/")
            assert dev.allows("job", "s3:GetObject", f"<Outputs>/{key}"), key


def test_a_list_that_is_refused_gets_its_reason_beside_it(dev: Template) -> None:
    for key in ("messages/refused/a.txt.txt", "b/control/refused/a.json.txt"):
        assert dev.allows("on-list", "s3:PutObject", f"<Outputs>/{key}")


@pytest.mark.parametrize("place", ["", "b/", "deeper/b/"])
def test_observations_are_beside_the_batches_and_beside_those_elsewhere(place: str, dev: Template) -> None:
    for instrument in observe.INSTRUMENTS:
        name = f"<Outputs>/{place}{observe.key(instrument)}"
        for role in (*FUNCTIONS, "job"):
            assert dev.allows(role, "s3:GetObject", name) == (role in ("on-list", "reconcile")), role
            assert dev.allows(role, "s3:PutObject", name) == (role == "reconcile"), role
    for other in ("observations/other.jsonl", "observations/cos.jsonl.old", "cos.jsonl"):
        assert not dev.allows("reconcile", "s3:PutObject", f"<Outputs>/{place}{other}"), other


def test_batches_elsewhere_are_entered_by_who_makes_them_and_read_by_who_looks_after_them(dev: Template) -> None:
    name = f"<Outputs>/{ELSEWHERE}/0123456789abcdef"
    for role in (*FUNCTIONS, "job"):
        assert dev.allows(role, "s3:PutObject", name) == (role == "on-list"), role
        assert dev.allows(role, "s3:GetObject", name) == (role == "reconcile"), role
        assert not dev.allows(role, "s3:DeleteObject", name), role


@pytest.mark.parametrize("action", ["sqs:ReceiveMessage", "sqs:DeleteMessage"])
def test_dead_letters_are_taken_by_who_sends_them_again(action: str, dev: Template) -> None:
    for purpose in ("lists", "shards", "events", "rescues", "invocations"):
        for role in (*FUNCTIONS, "job"):
            dead = f"sqs:::caldp-dev-{purpose}-dead"
            assert dev.allows(role, action, dead) == (role == "reconcile"), (role, purpose)
            assert not dev.allows("reconcile", action, f"sqs:::caldp-dev-{purpose}"), purpose


def test_with_a_prefix_nothing_beyond_it_is_touched(synthesize: Synthesize) -> None:
    made = synthesize(changed(infra={"prefix": "hst/batches", "inputs": ["s3://raw/hst"], "crds": "s3://crds/cache"}))
    for role, statements in made.statements().items():
        for statement in statements:
            for resource in statement["resources"]:
                if resource.startswith("<Outputs>/"):
                    assert resource.startswith("<Outputs>/hst/batches/"), (role, resource)
    assert made.allows("job", "s3:GetObject", "s3:::raw/hst/ldfd01010.tar.gz")
    assert not made.allows("job", "s3:GetObject", "s3:::raw/hstx/ldfd01010.tar.gz")
    assert made.allows("job", "s3:GetObject", "s3:::crds/cache/references/hst/x.fits")
    assert made.allows("job", "s3:ListBucket", "s3:::raw")
    assert not made.allows("job", "s3:PutObject", "s3:::raw/hst/x")
    assert not made.all("S3::Bucket").keys() - {k for k in made.resources if k.startswith("StorageOutputs")}
