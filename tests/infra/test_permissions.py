"""What roles may do: all of it in ``iam.yaml``, and what must hold whatever is in there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from caldp import messages
from caldp.campaign import control, observe
from caldp.campaign.stack import ELSEWHERE
from tests.infra import snapshot
from tests.infra.conftest import Synthesize, changed
from tests.infra.template import Template
from tests.integration.test_iam import documented

FUNCTIONS = ("on-list", "submit-shards", "drain-rescues", "on-batch-event", "reconcile")
DATASET = "ldfd01010"
STATUS = f"messages/status/{DATASET}.json"
SHOWN = [f"messages/{folder}/{DATASET}" for _, folder in messages.STATES.values() if folder]
RECORDS = [
    *(control.REQUEST, control.PLAN, control.REJECTED, control.OBSERVATIONS, control.PAUSE, control.AUDIT),
    *(control.RELEASED, control.CLOSED, control.FOLDED, control.manifest_key("s-1"), control.claim_key("s-1")),
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
        assert dev.allows("job", "s3:GetObject", f"<Outputs>/{batch}/{control.manifest_key('s')}")
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
        ("on-list", RECORDS, ["shards"]),
        ("submit-shards", [*RECORDS, STATUS, *SHOWN], []),
        ("drain-rescues", RECORDS, ["rescues", "shards"]),
        ("on-batch-event", [*RECORDS, STATUS, *SHOWN], ["rescues"]),
        ("reconcile", [*RECORDS, STATUS, *SHOWN], ["lists", "shards", "events", "rescues"]),
    ],
)
def test_a_function_writes_and_sends_what_is_its_work(
    role: str, writes: list[str], sends: list[str], dev: Template
) -> None:
    for key in (*RECORDS, STATUS, *SHOWN, PRODUCT, control.result_key(DATASET, 1)):
        known = key in writes or key.startswith("control/")
        assert dev.allows(role, "s3:PutObject", f"<Outputs>/b/{key}") == known, key
    for key in (*RECORDS, STATUS, *SHOWN):
        assert dev.allows(role, "s3:GetObject", f"<Outputs>/b/{key}"), key
    for queue in ("lists", "shards", "events", "rescues"):
        assert dev.allows(role, "sqs:SendMessage", f"sqs:::caldp-dev-{queue}") == (queue in sends), queue
    verifies = role in ("on-batch-event", "reconcile")
    assert dev.allows(role, "s3:GetObject", f"<Outputs>/b/{PRODUCT}") == verifies
    submits = role == "submit-shards"
    assert dev.allows(role, "batch:SubmitJob", "batch:::job-queue/caldp-dev-8g") == submits
    assert dev.allows(role, "batch:SubmitJob", "batch:::job-definition/caldp-dev-8g:17") == submits
    assert not dev.allows(role, "batch:SubmitJob", "batch:::job-definition/caldp-dev-8gx:1")
    assert not dev.allows(role, "batch:SubmitJob", "batch:::job-queue/other")


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
