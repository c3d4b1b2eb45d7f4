"""The stand-in for AWS Batch does what AWS Batch is said to do."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.aws import Aws, BatchPlace, make_batch_place
from tests.fakes.aws_batch.engine import (
    EXITED,
    OUT_OF_MEMORY,
    TIMED_OUT,
    Launch,
    NotFoundError,
    Switches,
    matches,
    resolve,
    retries,
)
from tests.fakes.aws_batch.machine import table
from tests.s3 import MINISTACK

#: The rules of CAMPAIGN.md, section 6.
RULES = [
    {"onStatusReason": "Host EC2*", "action": "RETRY"},
    {"onReason": "CannotPullContainerError:*", "action": "RETRY"},
    {"onReason": "DockerTimeoutError*", "action": "RETRY"},
    {"onReason": "*", "action": "EXIT"},
    {"onExitCode": "*", "action": "EXIT"},
]
STRATEGY = {"attempts": 3, "evaluateOnExit": RULES}
ALLOCATE = 'x=$(head -c 60000000 /dev/zero | tr "\\0" a); sleep 20'


def lasting(place: BatchPlace, script: str = "echo up; exec sleep 60", **more: Any) -> str:
    """Submit a job, and return its id once it is under way."""
    job = place.submit(place.define(["/bin/sh", "-c", script]), **more)
    log = place.aws.wait_for(job, "RUNNING")["container"]["logStreamName"]
    place.aws.wait_until(lambda: printed(place.aws, log))
    return job


def printed(aws: Aws, stream: str) -> list[str]:
    try:
        return aws.log(stream)
    except ClientError:  # no line yet, no log yet
        return []


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def subscribe(aws: Aws, pattern: dict[str, Any] | None = None) -> str:
    """Make a rule for Batch's events, and return the queue they come to."""
    sqs = aws.client("sqs")
    queue = str(sqs.create_queue(QueueName="events")["QueueUrl"])
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events = aws.client("events")
    pattern = {"source": ["aws.batch"], "detail-type": ["Batch Job State Change"], **(pattern or {})}
    events.put_rule(Name="rule", EventPattern=json.dumps(pattern))
    events.put_targets(Rule="rule", Targets=[{"Id": "queue", "Arn": arn}])
    return queue


# ------------------------------------------------------------------------------------------------------------ one job


def test_a_job_is_a_process_with_the_environment_of_a_job(batch_place: BatchPlace) -> None:
    definition = batch_place.define(
        ["/bin/sh", "-c", 'echo "$0 $1 $WHO $WHAT"; env; pwd', "Ref::dataset", "Ref::unknown"],
        parameters={"dataset": "none"},
        containerProperties={"environment": [{"name": "WHO", "value": "me"}, {"name": "WHAT", "value": "this"}]},
    )
    job = batch_place.submit(
        definition,
        "name",
        parameters={"dataset": "j8cb010b0"},
        containerOverrides={"environment": [{"name": "WHAT", "value": "that"}]},
    )
    done = batch_place.aws.ended(job)
    assert (done["status"], done["statusReason"], done["container"]["exitCode"]) == ("SUCCEEDED", EXITED, 0)
    first, *variables, folder = batch_place.aws.log(done["container"]["logStreamName"])
    assert first == "j8cb010b0 Ref::unknown me that"
    environment = dict(line.split("=", 1) for line in variables)
    assert environment["AWS_BATCH_JOB_ID"] == job
    assert environment["AWS_BATCH_JOB_ATTEMPT"] == "1"
    assert environment["AWS_BATCH_JQ_NAME"] == "queue"
    assert environment["AWS_BATCH_CE_NAME"] == "queue-compute"
    assert environment["AWS_ENDPOINT_URL"] == batch_place.aws.endpoint
    assert "AWS_BATCH_JOB_ARRAY_INDEX" not in environment
    assert environment["HOME"] == folder
    assert not Path(folder).exists(), "the scratch folder is gone with the job"
    assert done["container"]["command"][3:] == ["j8cb010b0", "Ref::unknown"]
    assert done["createdAt"] <= done["startedAt"] <= done["stoppedAt"]


def test_overrides_replace_command_and_requirements(batch_place: BatchPlace) -> None:
    job = batch_place.submit(
        batch_place.define(["/bin/false"]),
        containerOverrides={
            "command": ["/bin/sh", "-c", "exit 7"],
            "resourceRequirements": [{"type": "MEMORY", "value": "1792"}],
        },
    )
    done = batch_place.aws.ended(job)
    assert done["container"]["exitCode"] == 7
    assert {each["type"]: each["value"] for each in done["container"]["resourceRequirements"]} == {
        "VCPU": "1",
        "MEMORY": "1792",
    }


def test_what_it_prints_can_be_read_while_it_runs(batch_place: BatchPlace) -> None:
    job = lasting(batch_place, "echo one; echo two >&2; exec sleep 60")
    stream = batch_place.aws.job(job)["container"]["logStreamName"]
    assert batch_place.aws.log(stream) == ["one", "two"]


def test_a_command_that_is_not_there_does_not_start(batch_place: BatchPlace) -> None:
    done = batch_place.aws.ended(batch_place.submit(batch_place.define(["no-such-program", "x"])))
    assert (done["status"], done["statusReason"]) == ("FAILED", "Task failed to start")
    assert done["container"]["reason"].startswith("CannotStartContainerError: ")
    assert "exitCode" not in done["container"]
    assert len(done["attempts"]) == 1


def test_programs_are_found_in_the_folder_that_a_test_names(batch_place: BatchPlace, tmp_path: Path) -> None:
    program = tmp_path / "caldp-process-aws"
    program.write_text("#!/bin/sh\necho ours $1\n")
    program.chmod(0o755)
    batch_place.aws.switch(path=str(tmp_path))
    done = batch_place.aws.ended(batch_place.submit(batch_place.define(["caldp-process-aws", "x"])))
    assert batch_place.aws.log(done["container"]["logStreamName"]) == ["ours x"]


def test_nobody_is_left_when_a_job_has_ended(batch_place: BatchPlace) -> None:
    # In a session of its own, and without a parent: only its environment tells whose it is.
    done = batch_place.run("(setsid sh -c 'echo $$; exec sleep 300' &); sleep 0.5")
    (left,) = batch_place.aws.log(done["container"]["logStreamName"])
    assert int(left) not in table()


# ------------------------------------------------------------------------------------------------------------ attempts


def test_without_rules_every_failure_is_tried_again(batch_place: BatchPlace) -> None:
    done = batch_place.run("echo $AWS_BATCH_JOB_ATTEMPT; exit 33", retryStrategy={"attempts": 3})
    assert (done["status"], [each["container"]["exitCode"] for each in done["attempts"]]) == ("FAILED", [33, 33, 33])
    logs = [each["container"]["logStreamName"] for each in done["attempts"]]
    assert [batch_place.aws.log(log) for log in logs] == [["1"], ["2"], ["3"]]


def test_the_rules_end_a_failure_of_its_own(batch_place: BatchPlace) -> None:
    done = batch_place.run("exit 4", retryStrategy=STRATEGY)
    assert (done["status"], done["container"]["exitCode"], len(done["attempts"])) == ("FAILED", 4, 1)


def test_success_on_the_second_attempt(batch_place: BatchPlace) -> None:
    done = batch_place.run("test $AWS_BATCH_JOB_ATTEMPT = 2", retryStrategy={"attempts": 3})
    assert (done["status"], [each["container"]["exitCode"] for each in done["attempts"]]) == ("SUCCEEDED", [1, 0])
    assert done["container"]["exitCode"] == 0


@pytest.mark.parametrize(
    ("pattern", "value", "result"),
    [
        (None, None, True),
        ("137", "137", True),
        ("13", "137", False),
        ("13*", "137", True),
        ("*", "137", True),
        ("*", None, False),
        ("Host EC2*", "Host EC2 (instance i-1) terminated.", True),
        ("Host*EC2", "Host x EC2", False),
        ("EC2*", "Host EC2", False),
    ],
)
def test_patterns(pattern: str | None, value: str | None, result: bool) -> None:
    assert matches(pattern, value) is result


@pytest.mark.parametrize(
    ("exit_code", "reason", "status_reason", "again"),
    [
        (None, None, "Host EC2 (instance i-1) terminated.", True),
        (None, "CannotPullContainerError: unauthorized", "Task failed to start", True),
        (137, "DockerTimeoutError: Could not transition to created", "Task failed to start", True),
        (1, None, EXITED, False),
        (1, OUT_OF_MEMORY, EXITED, False),
        (None, "CannotStartContainerError: x", "Task failed to start", False),
        # No rule matches.
        (None, None, "Task failed to start", True),
    ],
)
def test_our_rules(exit_code: int | None, reason: str | None, status_reason: str, again: bool) -> None:
    attempt = {"container": {"exitCode": exit_code, "reason": reason}, "statusReason": status_reason}
    assert retries(RULES, attempt) is again
    if reason is None and exit_code is None and not status_reason.startswith("Host"):
        assert not retries(RULES, attempt, star_matches_absent=True)


def test_all_conditions_of_a_rule_must_hold_and_the_first_rule_decides() -> None:
    attempt = {"container": {"exitCode": 1, "reason": "x"}, "statusReason": EXITED}
    both = [{"onExitCode": "1", "onReason": "y", "action": "EXIT"}]
    assert retries(both, attempt)
    assert not retries([{"onExitCode": "1", "action": "exit"}, {"onReason": "x", "action": "RETRY"}], attempt)


# --------------------------------------------------------------------------------------------------------- violent ends


def test_a_timeout_kills_and_is_not_tried_again(batch_place: BatchPlace) -> None:
    done = batch_place.run("sleep 30", timeout={"attemptDurationSeconds": 60}, retryStrategy={"attempts": 3})
    assert (done["status"], done["statusReason"], len(done["attempts"])) == ("FAILED", TIMED_OUT, 1)
    assert done["container"]["exitCode"] == 137
    assert "reason" not in done["container"]
    assert 0.29 <= (done["stoppedAt"] - done["startedAt"]) / 1000 < 3


def test_who_answers_a_timeout_says_himself_how_it_ended(batch_place: BatchPlace) -> None:
    done = batch_place.run("trap 'echo bye; exit 9' TERM; sleep 30 & wait", timeout={"attemptDurationSeconds": 60})
    assert (done["statusReason"], done["container"]["exitCode"]) == (TIMED_OUT, 9)
    assert batch_place.aws.log(done["container"]["logStreamName"]) == ["bye"]


def test_too_much_memory(batch_place: BatchPlace) -> None:
    done = batch_place.run(ALLOCATE, memory=16)
    assert (done["status"], done["statusReason"]) == ("FAILED", EXITED)
    assert (done["container"]["exitCode"], done["container"]["reason"]) == (137, OUT_OF_MEMORY)


def test_too_much_memory_of_a_child_leaves_the_code_to_its_parent(batch_place: BatchPlace) -> None:
    done = batch_place.run(f"({ALLOCATE}); exit 24", memory=16)
    assert (done["container"]["exitCode"], done["container"]["reason"]) == (24, OUT_OF_MEMORY)


def test_as_much_memory_as_was_asked_for_is_fine(batch_place: BatchPlace) -> None:
    done = batch_place.run('x=$(head -c 20000000 /dev/zero | tr "\\0" a); sleep 0.3', memory=256)
    assert done["status"] == "SUCCEEDED"


def test_terminate_a_running_job(batch_place: BatchPlace) -> None:
    job = lasting(batch_place)
    batch_place.aws.client("batch").terminate_job(jobId=job, reason="Operator cancelled")
    done = batch_place.aws.ended(job)
    assert (done["status"], done["statusReason"], done["isTerminated"]) == ("FAILED", "Operator cancelled", True)
    assert (done["container"]["exitCode"], len(done["attempts"])) == (143, 1)


def test_terminate_kills_who_does_not_listen(batch_place: BatchPlace) -> None:
    batch_place.aws.switch(stop_grace=0.3)
    job = lasting(batch_place, "trap '' TERM; echo up; while :; do sleep 1; done", retryStrategy={"attempts": 3})
    batch_place.aws.client("batch").terminate_job(jobId=job, reason="Operator cancelled")
    done = batch_place.aws.ended(job)
    assert (done["container"]["exitCode"], done["statusReason"], len(done["attempts"])) == (
        137,
        "Operator cancelled",
        1,
    )


def test_terminate_and_cancel_before_the_start(batch_place: BatchPlace) -> None:
    batch = batch_place.aws.client("batch")
    batch_place.aws.switch(paused=True)
    definition = batch_place.define(["/bin/true"])
    one, two, other = (batch_place.submit(definition) for _ in range(3))
    batch.cancel_job(jobId=one, reason="not now")
    batch.terminate_job(jobId=two, reason="Operator cancelled")
    assert [batch_place.aws.job(job)["status"] for job in (one, two, other)] == ["FAILED", "FAILED", "RUNNABLE"]
    assert [batch_place.aws.job(job)["statusReason"] for job in (one, two)] == ["not now", "Operator cancelled"]
    batch_place.aws.switch(paused=False)
    assert batch_place.aws.ended(other)["status"] == "SUCCEEDED"
    assert batch_place.aws.job(one)["attempts"] == []


def test_cancel_leaves_a_running_job_alone(batch_place: BatchPlace) -> None:
    job = lasting(batch_place)
    batch_place.aws.client("batch").cancel_job(jobId=job, reason="no")
    time.sleep(0.2)
    assert batch_place.aws.job(job)["status"] == "RUNNING"


def test_a_host_that_goes_away_is_tried_again_by_the_rules(batch_place: BatchPlace) -> None:
    script = 'echo up; test "$AWS_BATCH_JOB_ATTEMPT" = 2 || exec sleep 60'
    job = lasting(batch_place, script, retryStrategy=STRATEGY)
    batch_place.aws.reclaim(job, "i-0aa")
    done = batch_place.aws.ended(job)
    first, second = done["attempts"]
    assert first["statusReason"] == "Host EC2 (instance i-0aa) terminated."
    assert "exitCode" not in first["container"] and "reason" not in first["container"]
    assert (done["status"], second["container"]["exitCode"]) == ("SUCCEEDED", 0)


def test_a_host_that_goes_away_on_the_last_attempt(batch_place: BatchPlace) -> None:
    job = lasting(batch_place)
    batch_place.aws.reclaim(job, "i-0bb", notice=5.0)
    done = batch_place.aws.ended(job, 4.0)  # SIGTERM was enough
    assert (done["status"], done["statusReason"]) == ("FAILED", "Host EC2 (instance i-0bb) terminated.")
    assert "exitCode" not in done["container"]


def test_ends_without_a_process(batch_place: BatchPlace) -> None:
    pull = "CannotPullContainerError: pull access denied, repository does not exist: unauthorized"
    batch_place.aws.outcomes(
        {"name": "image", "reason": pull, "times": 2},
        {"name": "a*", "index": 1, "exitCode": 22},
    )
    definition = batch_place.define(["/bin/true"])
    image = batch_place.aws.ended(batch_place.submit(definition, "image", retryStrategy=STRATEGY))
    assert [each["container"].get("reason") for each in image["attempts"]] == [pull, pull, None]
    assert (image["attempts"][0]["statusReason"], image["status"]) == ("Task failed to start", "SUCCEEDED")
    array = batch_place.submit(definition, "array", arrayProperties={"size": 3})
    batch_place.aws.ended(array)
    assert [batch_place.aws.job(f"{array}:{n}")["container"]["exitCode"] for n in range(3)] == [0, 22, 0]


# ------------------------------------------------------------------------------------------- arrays, many, dependencies


def test_an_array_with_one_bad_child(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    definition = batch_place.define(["/bin/sh", "-c", "echo $AWS_BATCH_JOB_ID; test $AWS_BATCH_JOB_ARRAY_INDEX != 13"])
    job = batch_place.submit(definition, "shard", arrayProperties={"size": 20})
    done = aws.ended(job)
    assert done["status"] == "FAILED"
    assert done["arrayProperties"]["size"] == 20
    assert {k: v for k, v in done["arrayProperties"]["statusSummary"].items() if v} == {"SUCCEEDED": 19, "FAILED": 1}
    children = aws.client("batch").describe_jobs(jobs=[f"{job}:{n}" for n in range(21)])["jobs"]
    assert [child["arrayProperties"]["index"] for child in children] == list(range(20))
    assert [child["jobId"] for child in children if child["status"] == "FAILED"] == [f"{job}:13"]
    assert {child["jobName"] for child in children} == {"shard"}
    assert aws.log(children[7]["container"]["logStreamName"]) == [f"{job}:7"]
    listed = aws.client("batch").list_jobs(arrayJobId=job, jobStatus="SUCCEEDED")["jobSummaryList"]
    assert [each["arrayProperties"]["index"] for each in listed] == [n for n in range(20) if n != 13]


def test_one_child_and_a_whole_array_are_terminated(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    aws.switch(processes=2)
    job = batch_place.submit(batch_place.define(["sleep", "60"]), arrayProperties={"size": 5})
    aws.wait_for(f"{job}:0", "RUNNING")
    assert aws.job(job)["status"] == "PENDING"
    aws.client("batch").terminate_job(jobId=f"{job}:0", reason="this one")
    assert aws.ended(f"{job}:0")["statusReason"] == "this one"
    aws.client("batch").terminate_job(jobId=job, reason="all")
    assert aws.ended(job)["status"] == "FAILED"
    assert [aws.job(f"{job}:{n}")["statusReason"] for n in range(5)] == ["this one", *["all"] * 4]


def test_two_hundred_jobs(batch_place: BatchPlace) -> None:
    definition = batch_place.define(["/bin/sh", "-c", "exit $0", "Ref::code"])
    for number in range(200):
        batch_place.submit(definition, f"job-{number % 10}", parameters={"code": str(number % 4)})
    stats = batch_place.aws.wait_idle()
    assert (stats["states"]["SUCCEEDED"], stats["states"]["FAILED"]) == (50, 150)
    assert stats["calls"]["SubmitJob"] == 200
    assert [len(stats["jobs"][f"job-{number}"]) for number in range(10)] == [20] * 10
    assert 1 < stats["most_running"] <= 4


def test_ten_thousand_children(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    aws.switch(paused=True)
    began = time.monotonic()
    job = batch_place.submit(batch_place.define(["/bin/true"]), arrayProperties={"size": 10_000})
    assert aws.job(job)["arrayProperties"]["statusSummary"]["RUNNABLE"] == 10_000
    aws.client("batch").terminate_job(jobId=job, reason="all")
    assert aws.job(job)["arrayProperties"]["statusSummary"]["FAILED"] == 10_000
    assert time.monotonic() - began < 10


def test_dependencies(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    aws.switch(paused=True)
    good, bad = (batch_place.submit(batch_place.define([f"/bin/{name}"])) for name in ("true", "false"))
    true = batch_place.define(["/bin/true"])
    after, never, both = (
        batch_place.submit(true, dependsOn=[{"jobId": each} for each in needs])
        for needs in ([good], [bad], [good, bad])
    )
    assert aws.job(after)["status"] == "PENDING"
    aws.switch(paused=False)
    assert aws.ended(after)["status"] == "SUCCEEDED"
    for job in (never, both):
        assert (aws.ended(job)["status"], aws.job(job)["statusReason"]) == ("FAILED", "Dependent Job failed")
    late = batch_place.submit(true, dependsOn=[{"jobId": bad}])
    assert aws.job(late)["status"] == "FAILED"


# ------------------------------------------------------------------------------------------------------ room for jobs


@pytest.mark.parametrize("limit", [{"vcpus": 4}, {"memory": 2048}, {"processes": 2}])
def test_no_more_run_than_there_is_room_for(batch_place: BatchPlace, limit: dict[str, int]) -> None:
    batch_place.aws.switch(**{"processes": 9, **limit})
    definition = batch_place.define(["sleep", "0.1"], vcpus=2, memory=1024)
    for _ in range(4):
        batch_place.submit(definition)
    assert batch_place.aws.wait_idle()["most_running"] == 2


def test_a_compute_environment_has_so_many_vcpus(aws: Aws) -> None:
    place = make_batch_place(aws, max_vcpus=3)
    small = place.define(["sleep", "0.2"])
    for _ in range(4):
        place.submit(small)
    assert aws.wait_idle()["most_running"] == 3
    job = place.submit(place.define(["/bin/true"], vcpus=4))
    behind = place.submit(small)
    assert aws.job(job)["statusReason"] == "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"
    time.sleep(0.3)
    assert [aws.job(each)["status"] for each in (job, behind)] == ["RUNNABLE", "RUNNABLE"], "the first blocks the rest"


def test_a_queue_drops_who_blocks_it(aws: Aws) -> None:
    reason = "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"
    action = {"reason": reason, "state": "RUNNABLE", "maxTimeSeconds": 600, "action": "CANCEL"}
    place = make_batch_place(aws, max_vcpus=3, jobStateTimeLimitActions=[action])
    aws.switch(second=0.0005)
    job = place.submit(place.define(["/bin/true"], vcpus=4))
    behind = place.submit(place.define(["/bin/true"]))
    done = aws.ended(job)
    assert (done["status"], done["attempts"]) == ("FAILED", [])
    assert done["statusReason"].startswith(reason)
    assert aws.ended(behind)["status"] == "SUCCEEDED"


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "request_",
    [
        {"jobName": "a.b"},
        {"jobName": "-a"},
        {"jobName": "a" * 129},
        {"jobQueue": "none"},
        {"jobDefinition": "none"},
        {"jobDefinition": "true:2"},
        {"arrayProperties": {"size": 1}},
        {"arrayProperties": {"size": 10_001}},
        {"timeout": {"attemptDurationSeconds": 59}},
        {"retryStrategy": {"attempts": 11}},
        {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"onExitCode": "1-2", "action": "EXIT"}]}},
        {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"onReason": "a*b", "action": "EXIT"}]}},
        {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"onStatusReason": "Host (EC2)", "action": "EXIT"}]}},
        {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"onExitCode": "1", "action": "AGAIN"}]}},
        {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"onExitCode": "1", "action": "EXIT"}] * 6}},
        {"retryStrategy": {"evaluateOnExit": [{"onExitCode": "1", "action": "EXIT"}]}},
        {"shareIdentifier": "prompt"},
        {"dependsOn": [{"jobId": "none"}]},
        {"containerOverrides": {"environment": [{"name": "AWS_BATCH_X", "value": "1"}]}},
        {"parameters": {"x": "x" * 30_720}},
    ],
    ids=str,
)
def test_jobs_that_are_refused(batch_place: BatchPlace, request_: dict[str, Any]) -> None:
    batch = batch_place.aws.client("batch")
    right = {"jobName": "a", "jobQueue": "queue", "jobDefinition": "true"}
    batch_place.define(["/bin/true"], "true")
    with pytest.raises(ClientError) as error:
        batch.submit_job(**{**right, **request_})
    assert code(error) == "ClientException"
    assert batch_place.aws.stats()["jobs"] == {}
    batch.submit_job(**right)


def test_shares(aws: Aws) -> None:
    batch = aws.client("batch")
    policy = batch.create_scheduling_policy(name="fair", fairsharePolicy={"shareDistribution": []})["arn"]
    place = make_batch_place(aws, schedulingPolicyArn=policy)
    definition = place.define(["/bin/true"])
    for wrong in ({}, {"shareIdentifier": "a-b"}):
        with pytest.raises(ClientError, match="hareIdentifier"):
            place.submit(definition, **wrong)
    done = aws.ended(place.submit(definition, shareIdentifier="prompt", schedulingPriorityOverride=7))
    assert (done["status"], done["shareIdentifier"], done["schedulingPriority"]) == ("SUCCEEDED", "prompt", 7)


def test_queues_and_definitions_out_of_service(batch_place: BatchPlace) -> None:
    batch = batch_place.aws.client("batch")
    definition = batch_place.define(["/bin/true"], "twice")
    assert batch_place.define(["/bin/false"], "twice").endswith(":2")
    batch.deregister_job_definition(jobDefinition="twice:2")
    assert batch_place.aws.job(batch_place.submit("twice"))["jobDefinition"] == definition
    batch.update_job_queue(jobQueue="queue", state="DISABLED")
    with pytest.raises(ClientError, match="not enabled"):
        batch_place.submit(definition)
    assert batch.describe_job_queues(jobQueues=["queue"])["jobQueues"][0]["state"] == "DISABLED"
    assert [each["status"] for each in batch.describe_job_definitions(jobDefinitionName="twice")["jobDefinitions"]] == [
        "INACTIVE",
        "ACTIVE",
    ]


# ------------------------------------------------------------------------------------------------------------- looking


def test_describe_a_hundred_at_most(batch_place: BatchPlace) -> None:
    batch = batch_place.aws.client("batch")
    assert batch.describe_jobs(jobs=["none"] * 100)["jobs"] == []
    with pytest.raises(ClientError) as error:
        batch.describe_jobs(jobs=["none"] * 101)
    assert code(error) == "ClientException"


def test_jobs_are_found_by_state_and_name(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    batch = aws.client("batch")
    definition = batch_place.define(["/bin/true"])
    aws.switch(paused=True)
    jobs = {name: batch_place.submit(definition, name) for name in ("b1-a1-2g-6h-001", "b1-a1-2g-6h-002", "B1-x", "c")}
    for _ in range(103):
        batch_place.submit(definition, "many", arrayProperties={"size": 2})

    def found(**request: Any) -> list[str]:
        pages = batch.get_paginator("list_jobs").paginate(jobQueue=batch_place.queue, **request)
        return [each["jobId"] for page in pages for each in page["jobSummaryList"]]

    def named(name: str) -> list[str]:
        return found(filters=[{"name": "JOB_NAME", "values": [name]}])

    assert named("b1-a1-2g-6h-001") == [jobs["b1-a1-2g-6h-001"]]
    assert set(named("b1*")) == {jobs[name] for name in ("b1-a1-2g-6h-001", "b1-a1-2g-6h-002", "B1-x")}
    assert named("b1-a1") == []
    assert len(set(named("many"))) == 103
    assert found() == []  # only those that run
    assert len(found(jobStatus="RUNNABLE")) == 4  # of an array the children are, the parent is PENDING
    assert len(set(found(jobStatus="PENDING"))) == 103
    assert len(batch.list_jobs(jobQueue="queue", jobStatus="PENDING")["jobSummaryList"]) == 100
    for wrong in ({}, {"jobQueue": "queue", "arrayJobId": named("many")[0]}, {"jobQueue": "none"}):
        with pytest.raises(ClientError):
            batch.list_jobs(**wrong)
    aws.switch(list_delay=60)
    assert named("c") == []
    assert aws.job(jobs["c"])["jobName"] == "c"


def test_a_job_is_forgotten_after_a_while(batch_place: BatchPlace) -> None:
    job = batch_place.run("exit 0")["jobId"]
    batch_place.aws.forget(job)
    assert batch_place.aws.client("batch").describe_jobs(jobs=[job])["jobs"] == []


# -------------------------------------------------------------------------------------------------------------- trouble


def test_too_many_calls(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    definition = batch_place.define(["/bin/true"])
    aws.switch(throttle=0.5)
    refused = 0
    for _ in range(20):
        try:
            batch_place.submit(definition)
        except ClientError as error:
            refused += 1
            assert error.response["Error"]["Code"] == "TooManyRequestsException"
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert refused == 10
    # boto3 knows what that means.
    patient = aws.client("batch", retries={"max_attempts": 5, "mode": "standard"})
    assert patient.describe_jobs(jobs=["none"])["jobs"] == []
    stats = aws.stats()
    assert stats["throttled"] == {
        "SubmitJob": 10,
        **({"DescribeJobs": 1} if "DescribeJobs" in stats["throttled"] else {}),
    }
    assert len(stats["jobs"]["job"]) == 10


def test_so_many_submissions_per_second(batch_place: BatchPlace) -> None:
    definition = batch_place.define(["/bin/true"])
    batch_place.aws.switch(submit_rate=5)
    for _ in range(5):
        batch_place.submit(definition)
    with pytest.raises(ClientError) as error:
        batch_place.submit(definition)
    assert code(error) == "TooManyRequestsException"
    assert batch_place.aws.stats()["most_submissions_per_second"] == 5


def test_a_reply_is_lost_and_the_job_is_there(batch_place: BatchPlace) -> None:
    definition = batch_place.define(["/bin/true"])
    batch_place.aws.switch(lose_replies=1.0)
    with pytest.raises(ClientError) as error:
        batch_place.submit(definition, "shard")
    assert code(error) == "ServerException"
    assert len(batch_place.aws.stats()["jobs"]["shard"]) == 1


def test_an_unknown_switch(aws: Aws) -> None:
    with pytest.raises(AssertionError, match="nonsense"):
        aws.switch(nonsense=1)


# --------------------------------------------------------------------------------------------------------------- events


def test_the_events_of_a_job(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    queue = subscribe(aws)
    job = batch_place.submit(
        batch_place.define(["/bin/sh", "-c", "exit 3"]),
        "name",
        parameters={"dataset": "j8cb010b0"},
        retryStrategy={"attempts": 2},
        timeout={"attemptDurationSeconds": 3600},
    )
    aws.wait_idle()
    events = aws.messages(queue)
    states = ["RUNNABLE", "STARTING", "RUNNING"]
    assert [event["detail"]["status"] for event in events] == [*states, *states, "FAILED"]
    last = events[-1]
    assert (last["source"], last["detail-type"]) == ("aws.batch", "Batch Job State Change")
    assert last["resources"] == [f"arn:aws:batch:us-east-1:000000000000:job/{job}"]
    detail = last["detail"]
    assert detail["tags"] == {"resourceArn": last["resources"][0]}
    described = aws.job(job)
    for field in ("jobId", "jobName", "jobQueue", "jobDefinition", "statusReason", "attempts", "parameters", "timeout"):
        assert detail[field] == described[field], field
    assert detail["container"]["exitCode"] == 3
    assert detail["container"]["logStreamName"] == described["container"]["logStreamName"]


def test_the_events_of_an_array(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    queue = subscribe(aws, {"detail": {"status": ["SUCCEEDED", "FAILED"]}})
    definition = batch_place.define(["/bin/sh", "-c", "exit $AWS_BATCH_JOB_ARRAY_INDEX"])
    job = batch_place.submit(definition, arrayProperties={"size": 3})
    aws.wait_idle()
    details = {event["detail"]["jobId"]: event["detail"] for event in aws.messages(queue)}
    assert {key: (each["status"], each["container"].get("exitCode")) for key, each in details.items()} == {
        f"{job}:0": ("SUCCEEDED", 0),
        f"{job}:1": ("FAILED", 1),
        f"{job}:2": ("FAILED", 2),
        job: ("FAILED", None),
    }
    assert details[f"{job}:1"]["arrayProperties"] == {"index": 1}
    assert details[job]["arrayProperties"]["statusSummary"]["FAILED"] == 2


def test_events_come_twice_never_out_of_order_or_not_for_children(batch_place: BatchPlace) -> None:
    aws = batch_place.aws
    queue = subscribe(aws, {"detail": {"status": ["SUCCEEDED"]}})
    definition = batch_place.define(["/bin/true"])

    def got(size: int = 12, **switches: Any) -> list[str]:
        normal = {"duplicate_events": False, "drop_events": 0.0, "delay_events": 0.0, "child_events": True}
        aws.switch(**{**normal, **switches})
        job = batch_place.submit(definition, arrayProperties={"size": size})
        aws.wait_idle()
        return [event["detail"]["jobId"].removeprefix(job) for event in aws.messages(queue)]

    assert len(got()) == 13
    twice = got(duplicate_events=True)
    assert sorted(twice) == sorted(2 * ["", *(f":{n}" for n in range(12))])
    assert got(drop_events=1.0) == []
    assert 0 < len(got(drop_events=0.5, seed=1)) < 13
    assert got(child_events=False) == [""]
    late = got(delay_events=0.3)
    assert len(late) == 13
    assert late[-1] != "" or late[:12] != sorted(late[:12])
    assert aws.stats()["events"]["dropped"] > 0


def test_nobody_but_aws_has_events_of_aws(aws: Aws) -> None:
    entry = {"Source": "aws.batch", "DetailType": "Batch Job State Change", "Detail": "{}"}
    answer = aws.client("events").put_events(Entries=[entry])
    assert answer["Entries"][0]["ErrorCode"] == "NotAuthorizedForSourceException"


# ----------------------------------------------------------------------------------------------------------- the server


def test_a_reset_ends_what_runs(batch_place: BatchPlace) -> None:
    job = lasting(batch_place, "echo $$; sleep 300; :")
    (pid,) = batch_place.aws.log(batch_place.aws.job(job)["container"]["logStreamName"])
    batch_place.aws.reset()
    Aws.wait_until(lambda: int(pid) not in table(), 5.0)
    assert batch_place.aws.client("batch").describe_job_queues()["jobQueues"] == []
    assert batch_place.aws.stats()["states"]["RUNNING"] == 0


def test_a_server_that_is_killed_takes_its_jobs_along(aws_server: Aws) -> None:
    with Aws(MINISTACK) as own:
        job = lasting(make_batch_place(own), "echo $$; sleep 300; :")
        (pid,) = own.log(own.job(job)["container"]["logStreamName"])
        assert int(pid) in table()
        os.killpg(own.server.pid, signal.SIGKILL)
        Aws.wait_until(lambda: int(pid) not in table(), 5.0)


def test_it_listens_to_this_machine_only(aws: Aws) -> None:
    # The shell that starts it leads the process group.
    ours = [process.pid for process in table().values() if process.group == aws.server.pid]
    sockets = {str(link.readlink()) for pid in ours for link in Path(f"/proc/{pid}/fd").iterdir()}
    listening = []
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(fields[1])
    assert listening == [f"0100007F:{int(aws.endpoint.rpartition(':')[2]):04X}"]


def test_how_a_command_is_resolved(tmp_path: Path) -> None:
    launch = Launch("name", "caldp:1", ["caldp-process-aws", "x"], {"A": "1"}, 2.0, 1792 * 2**20)
    with pytest.raises(NotFoundError, match="CannotStartContainerError"):
        resolve(launch, Switches(path=str(tmp_path)))
    arguments, environment = resolve(launch, Switches(runner="docker", docker_host="unix:///x"))
    assert arguments == [
        *("docker", "run", "--pull", "never", "--name", "name", "--network", "host", "--cpus", "2.0"),
        *("--memory", str(1792 * 2**20), "--memory-swap", str(1792 * 2**20), "--env", "A", "caldp:1"),
        *("caldp-process-aws", "x"),
    ]
    assert (environment["A"], environment["DOCKER_HOST"]) == ("1", "unix:///x")
