"""A template of CDK, as it is, on the stand-in for AWS: from an object to jobs, and from their events to a queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws import Aws, Stack, StackError, synthesize

APP = """
from aws_cdk import aws_batch as batch, aws_ec2 as ec2, aws_ecs as ecs, aws_events as events
from aws_cdk import aws_events_targets as targets, aws_iam as iam, aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as sources, aws_s3 as s3, aws_sqs as sqs

app = cdk.App(outdir=OUT, **FAST)
stack = cdk.Stack(app, "Smoke", synthesizer=cdk.DefaultStackSynthesizer())
vpc = ec2.Vpc(stack, "Vpc", max_azs=2, nat_gateways=0, restrict_default_security_group=False)
bucket = s3.Bucket(stack, "Bucket")
bucket.node.default_child.notification_configuration = s3.CfnBucket.NotificationConfigurationProperty(
    event_bridge_configuration=s3.CfnBucket.EventBridgeConfigurationProperty(event_bridge_enabled=True)
)
dead = sqs.Queue(stack, "Dead")
lists = sqs.Queue(stack, "Lists", dead_letter_queue=sqs.DeadLetterQueue(max_receive_count=2, queue=dead),
                  visibility_timeout=cdk.Duration.seconds(30))
events.Rule(stack, "Placed", event_pattern=events.EventPattern(
    source=["aws.s3"], detail_type=["Object Created"],
    detail={"bucket": {"name": [bucket.bucket_name]}, "object": {"key": [{"wildcard": "*messages/placed/*"}]}},
), targets=[targets.SqsQueue(lists, dead_letter_queue=dead, retry_attempts=2)])

compute = batch.ManagedEc2EcsComputeEnvironment(stack, "Compute", vpc=vpc, spot=True, maxv_cpus=8,
    vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC))
policy = batch.FairshareSchedulingPolicy(stack, "Fair")
policy.add_share(share_identifier="prompt", weight_factor=1)
queue = batch.JobQueue(stack, "Queue", priority=1, scheduling_policy=policy, job_state_time_limit_actions=[
    batch.JobStateTimeLimitAction(max_time=cdk.Duration.minutes(30),
                                  reason=batch.JobStateTimeLimitActionsReason.COMPUTE_ENVIRONMENT_MAX_RESOURCE)])
queue.add_compute_environment(compute, 1)
definition = batch.EcsJobDefinition(stack, "Definition",
    container=batch.EcsEc2ContainerDefinition(stack, "Container",
        image=ecs.ContainerImage.from_registry("local/none"), cpu=1, memory=cdk.Size.mebibytes(1792),
        command=["/bin/sh", "-c", "echo $0 $AWS_BATCH_JOB_ARRAY_INDEX $DEPLOYED; test $AWS_BATCH_JOB_ARRAY_INDEX = 0",
                 "Ref::manifest"],
        environment={"DEPLOYED": CHANGED}),
    parameters={"manifest": "none"}, retry_attempts=3, timeout=cdk.Duration.hours(6),
    retry_strategies=[
        batch.RetryStrategy.of(batch.Action.RETRY, batch.Reason.SPOT_INSTANCE_RECLAIMED),
        batch.RetryStrategy.of(batch.Action.EXIT, batch.Reason.custom(on_reason="*")),
        batch.RetryStrategy.of(batch.Action.EXIT, batch.Reason.NON_ZERO_EXIT_CODE),
    ])
trigger = lambda_.Function(stack, "Trigger", runtime=lambda_.Runtime.PYTHON_3_11, handler="trigger.handler",
    code=lambda_.Code.from_asset("code"), timeout=cdk.Duration.seconds(30),
    environment={"QUEUE": queue.job_queue_arn, "DEFINITION": definition.job_definition_arn})
trigger.add_event_source(sources.SqsEventSource(lists, batch_size=1))
definition.grant_submit_job(trigger, queue)
bucket.grant_read(trigger)

ended = sqs.Queue(stack, "Ended")
events.Rule(stack, "Batch", event_pattern=events.EventPattern(
    source=["aws.batch"], detail_type=["Batch Job State Change"],
    detail={"status": ["SUCCEEDED", "FAILED"], "jobQueue": [queue.job_queue_arn]},
), targets=[targets.SqsQueue(ended, dead_letter_queue=dead)])
for name, value in {"Bucket": bucket.bucket_name, "Ended": ended.queue_url, "Dead": dead.queue_url,
                    "Queue": queue.job_queue_arn, "Definition": definition.job_definition_arn,
                    "Trigger": trigger.function_name, "Compute": compute.compute_environment_arn}.items():
    cdk.CfnOutput(stack, "Out" + name, value=value).override_logical_id(name)
app.synth()
"""

TRIGGER = """
import importlib.util
import json
import os
import uuid

import boto3


def handler(event, context):
    if event.get("ask"):
        return [name for name in event["ask"] if importlib.util.find_spec(name)]
    for record in event["Records"]:
        detail = json.loads(record["body"])["detail"]
        name, key = detail["bucket"]["name"], detail["object"]["key"]
        names = boto3.client("s3").get_object(Bucket=name, Key=key)["Body"].read().decode().split()
        boto3.client("batch").submit_job(
            jobName="shard", jobQueue=os.environ["QUEUE"], jobDefinition=os.environ["DEFINITION"],
            arrayProperties={"size": len(names)}, shareIdentifier="prompt", parameters={"manifest": key},
        )
"""


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    (folder / "code").mkdir()
    (folder / "code" / "trigger.py").write_text(TRIGGER)
    return synthesize('CHANGED = "once"\n' + APP, folder)


@pytest.fixture(scope="module")
def deployed(aws_server: Aws, assembly: Path) -> Iterator[Stack]:
    aws_server.reset()
    yield aws_server.deploy(assembly / "Smoke.template.json")
    aws_server.reset()


def test_from_a_list_to_jobs_and_from_events_to_a_queue(aws_server: Aws, deployed: Stack) -> None:
    aws = aws_server
    s3 = aws.client("s3")
    for key in ("elsewhere/list.txt", "a b/messages/placed/list 1.txt"):
        s3.put_object(Bucket=deployed.outputs["Bucket"], Key=key, Body=b"j8cb010b0 ldqhpbi9q")
    stats = aws.wait_until(lambda: found if (found := aws.stats())["jobs"] else {}, what="a job")
    assert list(stats["jobs"]) == ["shard"]
    stats = aws.wait_idle()
    (parent,) = stats["jobs"]["shard"]
    events = aws.messages(deployed.outputs["Ended"], 5.0)
    assert {event["detail"]["jobId"]: event["detail"]["status"] for event in events} == {
        f"{parent}:0": "SUCCEEDED",
        f"{parent}:1": "FAILED",
        parent: "FAILED",
    }
    child = aws.job(f"{parent}:1")
    assert len(child["attempts"]) == 1
    assert child["timeout"] == {"attemptDurationSeconds": 21_600}
    assert child["shareIdentifier"] == "prompt"
    assert aws.log(child["container"]["logStreamName"]) == ["a b/messages/placed/list 1.txt 1 once"]
    assert aws.messages(deployed.outputs["Dead"]) == []


def test_the_resources_are_those_of_the_template(aws_server: Aws, deployed: Stack) -> None:
    batch = aws_server.client("batch")
    (compute,) = batch.describe_compute_environments()["computeEnvironments"]
    assert (compute["type"], compute["status"]) == ("MANAGED", "VALID")
    assert compute["computeEnvironmentArn"] == deployed.outputs["Compute"]
    assert (compute["computeResources"]["type"], compute["computeResources"]["maxvCpus"]) == ("SPOT", 8)
    (queue,) = batch.describe_job_queues(jobQueues=[deployed.outputs["Queue"]])["jobQueues"]
    assert queue["computeEnvironmentOrder"] == [{"order": 1, "computeEnvironment": deployed.outputs["Compute"]}]
    assert queue["jobStateTimeLimitActions"][0]["maxTimeSeconds"] == 1800
    (policy,) = batch.describe_scheduling_policies(arns=[queue["schedulingPolicyArn"]])["schedulingPolicies"]
    assert policy["fairsharePolicy"]["shareDistribution"] == [{"shareIdentifier": "prompt", "weightFactor": 1.0}]
    (definition,) = batch.describe_job_definitions(jobDefinitions=[deployed.outputs["Definition"]])["jobDefinitions"]
    assert definition["parameters"] == {"manifest": "none"}
    assert [rule["action"] for rule in definition["retryStrategy"]["evaluateOnExit"]] == ["RETRY", "EXIT", "EXIT"]
    assert definition["retryStrategy"]["evaluateOnExit"][0]["onStatusReason"] == "Host EC2*"
    assert deployed.find("Queue") == deployed.outputs["Queue"]


def test_a_function_has_boto3_and_nothing_else_of_ours(aws_server: Aws, deployed: Stack) -> None:
    answer = aws_server.client("lambda").invoke(
        FunctionName=deployed.outputs["Trigger"],
        Payload=json.dumps({"ask": ["boto3", "json", "yaml", "ministack", "caldp", "numpy", "click", "trigger"]}),
    )
    assert json.loads(answer["Payload"].read()) == ["boto3", "json", "trigger"]


def test_a_change_makes_a_new_revision(aws_server: Aws, deployed: Stack, assembly: Path) -> None:
    template = json.loads((assembly / "Smoke.template.json").read_text())
    definition = _of_type(template, "AWS::Batch::JobDefinition")
    definition["ContainerProperties"]["Environment"][0]["Value"] = "twice"
    _of_type(template, "AWS::Batch::ComputeEnvironment")["ComputeResources"]["MaxvCpus"] = 16
    changed = aws_server.deploy(template, assembly / "Smoke.assets.json", stack="Smoke")
    old, new = deployed.outputs["Definition"], changed.outputs["Definition"]
    assert (old[:-2], old[-2:], new[-2:]) == (new[:-2], ":1", ":2")
    batch = aws_server.client("batch")
    status = {each["jobDefinitionArn"]: each["status"] for each in batch.describe_job_definitions()["jobDefinitions"]}
    assert status == {old: "INACTIVE", new: "ACTIVE"}
    (compute,) = batch.describe_compute_environments()["computeEnvironments"]
    assert compute["computeResources"]["maxvCpus"] == 16


def test_a_template_that_cannot_be_made(aws: Aws) -> None:
    queue = {"Priority": 1, "ComputeEnvironmentOrder": [{"Order": 1, "ComputeEnvironment": "none"}]}
    template = {"Resources": {"Queue": {"Type": "AWS::Batch::JobQueue", "Properties": queue}}}
    with pytest.raises(StackError, match="Queue: .*Object does not exist: none"):
        aws.deploy(template, stack="wrong")


def test_a_stack_goes_away_again(aws: Aws, assembly: Path) -> None:
    aws.deploy(assembly / "Smoke.template.json", stack="Other")
    aws.client("cloudformation").delete_stack(StackName="Other")
    batch = aws.client("batch")
    aws.wait_until(lambda: not batch.describe_compute_environments()["computeEnvironments"])
    assert batch.describe_job_queues()["jobQueues"] == []
    assert batch.list_scheduling_policies()["schedulingPolicies"] == []


def _of_type(template: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]
    properties: dict[str, Any] = found
    return properties
