"""What functions and commands know of a stack."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from caldp.campaign.deployment import VARIABLE, Deployment, parameter
from caldp.errors import UsageError

QUEUE = "https://sqs.us-east-1.amazonaws.com/111122223333/caldp-dev"
RECORD: dict[str, Any] = {
    "name": "caldp-dev",
    "buckets": ["outputs", "more"],
    "output": "s3://outputs/batches",
    "placed": "batches/",
    "list_queue": f"{QUEUE}-lists",
    "shard_queue": f"{QUEUE}-shards",
    "event_queue": f"{QUEUE}-events",
    "rescue_queue": f"{QUEUE}-rescues",
    "dead_queues": {"lists": f"{QUEUE}-lists-dead"},
    "job_queues": {"2g": "caldp-dev-2g", "8g": "caldp-dev-8g"},
    "job_definitions": {"2g": "caldp-dev-2g", "8g": "caldp-dev-8g"},
    "log_group": "/caldp/caldp-dev/jobs",
}


def test_a_deployment_says_what_it_was_told() -> None:
    found = Deployment.from_json(RECORD)
    assert (found.name, found.buckets, found.output) == ("caldp-dev", ("outputs", "more"), "s3://outputs/batches")
    assert found.job_queues["8g"] == "caldp-dev-8g"
    assert json.loads(json.dumps(found.to_json())) == RECORD
    assert Deployment.from_json(found.to_json()) == found


def test_fields_of_later_versions_are_ignored_and_some_may_be_missing() -> None:
    short = {k: v for k, v in RECORD.items() if k not in ("placed", "event_queue", "dead_queues")}
    found = Deployment.from_json({**short, "later": 1})
    assert (found.placed, found.event_queue, dict(found.dead_queues)) == ("", "", {})


@pytest.mark.parametrize("name", sorted(set(RECORD) - {"placed", "event_queue", "dead_queues"}))
@pytest.mark.parametrize("value", ["<missing>", None, 7, "", [], {}, [1], {"2g": 1}])
def test_what_is_missing_or_makes_no_sense_is_named(name: str, value: object) -> None:
    record = {k: v for k, v in RECORD.items() if k != name} if value == "<missing>" else {**RECORD, name: value}
    with pytest.raises(UsageError, match=name if value == "<missing>" else "describes no deployment"):
        Deployment.parse(json.dumps(record), "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Caldp"}, "name is 'Caldp'"),
        ({"output": "s3://foreign/x"}, "in none of its buckets"),
        ({"output": "file:x"}, "in none of its buckets"),
        ({"output": "nonsense"}, "is not an input or output"),
        ({"job_definitions": {"2g": "x"}}, "has a job queue and a job definition"),
        ({"job_queues": {}, "job_definitions": {}}, "has a job queue and a job definition"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Deployment.from_json({**RECORD, **change})


def test_a_function_finds_it_in_its_environment() -> None:
    assert Deployment.of_environment({VARIABLE: json.dumps(RECORD)}) == Deployment.from_json(RECORD)
    for environ in ({}, {VARIABLE: ""}, {VARIABLE: "{"}, {VARIABLE: "[]"}):
        with pytest.raises(UsageError, match=VARIABLE):
            Deployment.of_environment(environ)


class FakeSsm:
    """Answers with a text, or an error."""

    class meta:  # noqa: N801 - as boto3 calls it
        region_name = "us-east-1"

    def __init__(self, answer: str | Exception) -> None:
        self.answer, self.asked = answer, ""

    def get_parameter(self, *, Name: str) -> dict[str, Any]:  # noqa: N803 - as boto3 calls it
        self.asked = Name
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"Parameter": {"Value": self.answer}}


def test_a_command_finds_it_by_name() -> None:
    ssm = FakeSsm(json.dumps(RECORD))
    assert Deployment.fetch("caldp-dev", ssm) == Deployment.from_json(RECORD)
    assert ssm.asked == parameter("caldp-dev") == "/caldp/caldp-dev/deployment"


def test_a_command_that_does_not_find_it_says_why() -> None:
    from botocore.exceptions import ClientError, NoCredentialsError

    def error(code: str) -> ClientError:
        return ClientError({"Error": {"Code": code, "Message": "so"}}, "GetParameter")

    for answer, said in (
        (error("ParameterNotFound"), "there is no deployment caldp-dev in us-east-1"),
        (error("AccessDeniedException"), "cannot be read .*AccessDenied"),
        (NoCredentialsError(), "cannot be read .*credentials"),
        ("nonsense", "/caldp/caldp-dev/deployment describes no deployment"),
    ):
        with pytest.raises(UsageError, match=said):
            Deployment.fetch("caldp-dev", FakeSsm(answer))
    ssm = FakeSsm(json.dumps(RECORD))
    for name in ("", "../x", "caldp dev", "-x", "x-", "CALDP"):
        with pytest.raises(UsageError, match="no name of a deployment"):
            Deployment.fetch(name, ssm)
    assert ssm.asked == ""


def test_importing_it_loads_no_boto3() -> None:
    code = "import sys, caldp.campaign.deployment; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"boto3", "botocore", "yaml", "numpy"} & set(done.stdout.split())
