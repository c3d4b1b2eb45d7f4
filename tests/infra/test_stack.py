"""What a stack has, resource by resource; how lists, jobs and clocks reach the functions; what AWS Batch retries."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

import infra.settings
from caldp import messages
from caldp.campaign import control, deployment, lists, settings
from caldp.campaign.deployment import Deployment
from caldp.campaign.reconcile import ENOUGH
from caldp.campaign.submit import SETTLED
from infra import packaging
from tests.desk import REPOSITORY
from tests.infra.conftest import Synthesize, changed
from tests.infra.template import ACCOUNT, REGION, Template, matches, resolved, strings

EVENTS = REPOSITORY.parent / "shared" / "data" / "batch-events"
BOTH = pytest.mark.parametrize("environment", ["dev", "ops"])
Stack = Callable[[str], Template]


# ---- storage


@BOTH
def test_buckets_are_versioned_private_and_encrypted(environment: str, stack: Stack) -> None:
    made = stack(environment)
    buckets = made.all("S3::Bucket")
    assert {made.short(name) for name in buckets} == {"StorageOutputs", "StorageCrds"}
    for name, bucket in buckets.items():
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert "AES256" in strings(bucket["BucketEncryption"])
        assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
        rules = {rule["Id"]: rule for rule in bucket["LifecycleConfiguration"]["Rules"]}
        assert rules["earlier-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
        assert rules["uploads-that-broke-off"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
        assert rules["delete-markers"]["ExpiredObjectDeleteMarker"] is True
        assert all(rule["Status"] == "Enabled" for rule in rules.values())
        policy = next(p for p in made.all("S3::BucketPolicy").values() if p["Bucket"] == {"Ref": name})
        conditions = [statement.get("Condition") for statement in policy["PolicyDocument"]["Statement"]]
        assert {"Bool": {"aws:SecureTransport": "false"}} in conditions
        assert {"NumericLessThan": {"s3:TlsVersion": 1.2}} in conditions
        kept = made.resources[name]
        assert kept["DeletionPolicy"] == kept["UpdateReplacePolicy"] == ("Delete" if environment == "dev" else "Retain")


def test_outputs_alone_tell_eventbridge(dev: Template) -> None:
    told = {k: p.get("NotificationConfiguration") for k, p in dev.all("S3::Bucket").items()}
    assert {dev.short(k): v for k, v in told.items()} == {
        "StorageOutputs": {"EventBridgeConfiguration": {"EventBridgeEnabled": True}},
        "StorageCrds": None,
    }


def test_states_and_claims_are_written_with_a_condition_or_not_at_all(dev: Template) -> None:
    statements = [s for p in dev.all("S3::BucketPolicy").values() for s in p["PolicyDocument"]["Statement"]]
    rule = next(s for s in statements if s.get("Sid") == "StatesAndClaimsMoveByCompareAndSwap")
    assert (rule["Effect"], rule["Action"], rule["Principal"]) == ("Deny", "s3:PutObject", {"AWS": "*"})
    assert rule["Condition"] == {
        "Null": {"s3:if-match": "true", "s3:if-none-match": "true"},
        "Bool": {"s3:ObjectCreationOperation": "true"},
    }
    patterns = [dev.text(arn).partition(":::")[2].partition("/")[2] for arn in rule["Resource"]]
    guarded = ("b/messages/status/ldfd01010.json", f"b/{control.claim_key('s')}")
    free = ("b/messages/datasets-processed/ldfd01010", f"b/{control.manifest_key('s')}", "b/data/cos/x/manifest.json")
    assert all(any(fnmatchcase(key, pattern) for pattern in patterns) for key in guarded)
    assert not any(fnmatchcase(key, pattern) for key in free for pattern in patterns)


def test_no_function_of_cdk_s_own_is_deployed(dev: Template) -> None:
    kinds = {resource["Type"] for resource in dev.resources.values()}
    assert not [kind for kind in kinds if kind.startswith("Custom::") or kind == "AWS::CloudFormation::CustomResource"]
    assert len(dev.all("Lambda::Function")) == 5


@BOTH
def test_images_are_scanned_and_old_ones_go(environment: str, stack: Stack) -> None:
    repository = stack(environment).one("ECR::Repository")
    assert repository["RepositoryName"] == f"caldp-{environment}"
    assert repository["ImageScanningConfiguration"] == {"ScanOnPush": True}
    rules = json.loads(repository["LifecyclePolicy"]["LifecyclePolicyText"])["rules"]
    assert [rule["selection"]["countNumber"] for rule in rules] == [7, 20]


# ---- compute


@BOTH
def test_each_rung_has_spot_first_and_on_demand_after_it(environment: str, stack: Stack) -> None:
    made = stack(environment)
    queues = made.all("Batch::JobQueue")
    environments = made.all("Batch::ComputeEnvironment")
    policy = next(iter(made.all("Batch::SchedulingPolicy")))
    assert sorted(p["JobQueueName"] for p in queues.values()) == sorted(
        f"caldp-{environment}-{rung.name}" for rung in settings.DEFAULT.rungs
    )
    assert len(environments) == 2 * len(queues)
    for queue in queues.values():
        order = sorted(queue["ComputeEnvironmentOrder"], key=lambda each: int(each["Order"]))
        used = [environments[each["ComputeEnvironment"]["Fn::GetAtt"][0]]["ComputeResources"] for each in order]
        assert [each["Type"] for each in used] == ["SPOT", "EC2"]
        for resources in used:
            assert resources["MinvCpus"] == 0
            assert resources["MaxvCpus"] >= 8
            assert len(resources["InstanceTypes"]) >= 3
            assert "optimal" not in resources["InstanceTypes"]
            assert resources["LaunchTemplate"]["Version"]["Fn::GetAtt"][1] == "LatestVersionNumber"
            assert resources["Tags"]["environment"] == f"caldp-{environment}"
        assert used[0]["AllocationStrategy"] == "SPOT_PRICE_CAPACITY_OPTIMIZED"
        assert used[0]["MaxvCpus"] > used[1]["MaxvCpus"]
        assert queue["SchedulingPolicyArn"] == {"Fn::GetAtt": [policy, "Arn"]}
        limits = {each["Reason"]: each for each in queue["JobStateTimeLimitActions"]}
        assert {reason: each["MaxTimeSeconds"] for reason, each in limits.items()} == {
            "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY": 86400,
            "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE": 3600,
            "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT": 3600,
        }
        assert {(each["State"], each["Action"]) for each in limits.values()} == {("RUNNABLE", "CANCEL")}


def test_shares_are_those_that_lists_may_name(dev: Template) -> None:
    shares = dev.one("Batch::SchedulingPolicy")["FairsharePolicy"]["ShareDistribution"]
    assert {share["ShareIdentifier"]: share["WeightFactor"] for share in shares} == {"prompt": 1, "bulk": 4}
    assert lists.Options.of({"s3_output_path": "s3://outputs/x"}).share in {s["ShareIdentifier"] for s in shares}


def test_jobs_get_what_their_rung_says_and_are_nobody_special(dev: Template) -> None:
    definitions = {p["JobDefinitionName"]: p for p in dev.all("Batch::JobDefinition").values()}
    for rung in settings.DEFAULT.rungs:
        definition = definitions.pop(f"caldp-dev-{rung.name}")
        container = definition["ContainerProperties"]
        assert {each["Type"]: each["Value"] for each in container["ResourceRequirements"]} == {
            "MEMORY": str(rung.memory),
            "VCPU": str(rung.vcpus),
        }
        assert (container["User"], container["Privileged"], container["ReadonlyRootFilesystem"]) == (
            "developer",
            False,
            False,
        )
        assert dev.text(container["Image"]) == f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/caldp-dev:latest"
        environment = {each["Name"]: dev.text(each["Value"]) for each in container["Environment"]}
        assert environment["CRDSBUCKET"].startswith("s3://storagecrds")
        assert environment["AWS_DEFAULT_REGION"] == REGION
        # Else the jobs that share a host would take all of its processors, each of them.
        assert environment["OMP_NUM_THREADS"] == str(rung.vcpus)
        mounted = {each["ContainerPath"] for each in container["MountPoints"]}
        assert environment["CRDS_PATH"] in mounted
        assert float(environment["CALDP_CRDS_CACHE_GB"]) > 0
        assert container["LogConfiguration"]["LogDriver"] == "awslogs"
        # What somebody submits without saying of which dataset ends as a usage error.
        assert container["Command"] == ["caldp-process-aws", "Ref::s3_output_path", "Ref::dataset"]
        assert "Parameters" not in definition
        assert definition["Timeout"] == {"AttemptDurationSeconds": 6 * 3600}
        assert definition["PlatformCapabilities"] == ["EC2"]
    assert not definitions


def test_hosts_have_room_and_keep_their_role_to_themselves(dev: Template) -> None:
    data = dev.one("EC2::LaunchTemplate")["LaunchTemplateData"]
    assert data["MetadataOptions"] == {"HttpPutResponseHopLimit": 1, "HttpTokens": "required"}
    (disk,) = data["BlockDeviceMappings"]
    assert disk["Ebs"] == {"DeleteOnTermination": True, "Encrypted": True, "VolumeSize": 200, "VolumeType": "gp3"}
    shell = next(text for text in strings(data["UserData"]) if "/var/caldp/crds" in text)
    assert "chown 1000:1000 /var/caldp/crds" in shell
    assert "--uid 1000" in (REPOSITORY / "Dockerfile").read_text()


def retried(template: Template, reason: str | None, status_reason: str | None, code: int | None) -> str:
    """Say what AWS Batch does at the end of a run that failed."""
    (strategy,) = {json.dumps(p["RetryStrategy"]) for p in template.all("Batch::JobDefinition").values()}
    said = {"OnReason": reason, "OnStatusReason": status_reason, "OnExitCode": None if code is None else str(code)}
    for rule in json.loads(strategy)["EvaluateOnExit"]:
        conditions = {key: pattern for key, pattern in rule.items() if key != "Action"}
        if all(said[key] is not None and fnmatchcase(str(said[key]), pattern) for key, pattern in conditions.items()):
            return str(rule["Action"])
    return "RETRY"  # what no rule matches


@pytest.mark.parametrize(
    ("reason", "status_reason", "code", "action"),
    [
        (None, "Host EC2 (instance i-0123456789abcdef0) terminated.", None, "RETRY"),
        ("Essential container in task exited", "Host EC2 (instance i-1) terminated.", 137, "RETRY"),
        ("CannotPullContainerError: Error response from daemon: i/o timeout", "Task failed to start", None, "RETRY"),
        ("DockerTimeoutError: Could not transition to started", None, 137, "RETRY"),
        ("OutOfMemoryError: Container killed due to memory usage", "Essential container in task exited", 24, "EXIT"),
        ("OutOfMemoryError: Container killed due to memory usage", "Job attempt duration exceeded timeout", 1, "EXIT"),
        (None, "Job attempt duration exceeded timeout", 137, "EXIT"),
        (None, "Essential container in task exited", 32, "EXIT"),
        (None, "Operator cancelled", 137, "EXIT"),
        ("Essential container in task exited", "Essential container in task exited", 1, "EXIT"),
        ("CannotInspectContainerError: x", "Essential container in task exited", None, "EXIT"),
        (None, None, 1, "EXIT"),
    ],
)
def test_batch_itself_retries_hosts_that_are_lost_and_images_that_do_not_come_and_nothing_else(
    reason: str | None, status_reason: str | None, code: int | None, action: str, dev: Template
) -> None:
    assert retried(dev, reason, status_reason, code) == action


def test_so_it_does_with_the_ends_that_are_known(dev: Template) -> None:
    paths = sorted(EVENTS.glob("batch-event-*.yaml"))
    assert len(paths) >= 7
    for path in paths:
        detail = yaml.safe_load(path.read_text())["detail"]
        container = detail.get("container", {})
        assert retried(dev, container.get("reason"), detail.get("statusReason"), container.get("exitCode")) == "EXIT"


def test_rules_of_retries_are_such_as_batch_takes(dev: Template) -> None:
    for definition in dev.all("Batch::JobDefinition").values():
        strategy = definition["RetryStrategy"]
        assert 1 <= strategy["Attempts"] == 3 <= 10
        rules = strategy["EvaluateOnExit"]
        assert len(rules) == 5
        assert rules[-2:] == [{"Action": "EXIT", "OnReason": "*"}, {"Action": "EXIT", "OnExitCode": "*"}]
        for rule in rules:
            for key, pattern in rule.items():
                if key in ("OnReason", "OnStatusReason"):
                    assert all(c.isalnum() or c in ".: " for c in pattern.removesuffix("*"))


# ---- triggers

BATCH_KEYS = [
    *(f"messages/{folder}/ldfd01010" for _, folder in messages.STATES.values() if folder),
    *("messages/status/ldfd01010.json", "messages/placed", "messages/refused/a.txt.txt", "data/cos/l/l_x1d.fits"),
    *(control.REQUEST, control.PLAN, control.REJECTED, control.OBSERVATIONS, control.PAUSE, control.AUDIT),
    *(control.manifest_key("s"), control.claim_key("s"), control.result_key("ldfd01010", 1), "control/refused/a.txt"),
]
LISTS = ["messages/placed/a.txt", "control/placed/mvp 8+ü.ids", "messages/placed/a.json.gz"]


def created(bucket: str, key: str) -> dict[str, Any]:
    """Make the event of an object that was written."""
    detail = {"version": "0", "bucket": {"name": bucket}, "object": {"key": key, "size": 5, "etag": "x"}}
    return {"source": "aws.s3", "detail-type": "Object Created", "account": ACCOUNT, "detail": detail}


@pytest.mark.parametrize("prefix", ["", "hst/batches"])
def test_the_rule_takes_lists_and_nothing_that_jobs_and_functions_write(prefix: str, synthesize: Synthesize) -> None:
    made = synthesize(changed(infra={"prefix": prefix}))
    pattern = resolved(made, made.one("Events::Rule", Description="A list of datasets was dropped")["EventPattern"])
    bucket = pattern["detail"]["bucket"]["name"][0]
    top = f"{prefix}/" if prefix else ""
    for where in ("", "b/", "parent/b/"):
        for key in LISTS:
            event = created(bucket, f"{top}{where}{key}")
            assert matches(pattern, event), key
            assert lists.placed(event) == [(bucket, f"{top}{where}{key}")]
        for key in BATCH_KEYS:
            assert not matches(pattern, created(bucket, f"{top}{where}{key}")), key
    for key in ("xmessages/placed/a.txt", "placed/a.txt", "messages/placedx/a.txt", "Messages/placed/a.txt"):
        assert not matches(pattern, created(bucket, f"{top}{key}")), key
    assert not matches(pattern, created("another", f"{top}{LISTS[0]}"))
    assert not matches(pattern, {**created(bucket, f"{top}{LISTS[0]}"), "detail-type": "Object Deleted"})
    if prefix:
        assert not matches(pattern, created(bucket, LISTS[0]))


def test_the_rule_takes_ends_of_jobs_of_ours(dev: Template) -> None:
    pattern = resolved(dev, dev.one("Events::Rule", Description="A job of ours has ended")["EventPattern"])
    text = (EVENTS / "batch-event-timeout-error.json").read_text()
    event = ast.literal_eval(text)  # these are no JSON
    assert not matches(pattern, event), "another system's"
    for rung in settings.DEFAULT.rungs:
        queue = f"arn:aws:batch:{REGION}:{ACCOUNT}:job-queue/caldp-dev-{rung.name}"
        for status in ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED"):
            ours = {**event, "detail": {**event["detail"], "jobQueue": queue, "status": status}}
            assert matches(pattern, ours) == (status in ("SUCCEEDED", "FAILED"))


@BOTH
def test_every_way_ends_in_a_queue_of_dead_letters_with_an_alarm(environment: str, stack: Stack) -> None:
    made = stack(environment)
    queues = {p["QueueName"].removeprefix(f"caldp-{environment}-"): p for p in made.all("SQS::Queue").values()}
    dead = {name for name in queues if name.endswith("-dead")}
    assert dead == {"lists-dead", "shards-dead", "events-dead", "rescues-dead", "invocations-dead"}
    for name, queue in queues.items():
        assert queue["SqsManagedSseEnabled"] is True
        assert queue["MessageRetentionPeriod"] == 14 * 86400
        if name not in dead:
            target = made.text(queue["RedrivePolicy"]["deadLetterTargetArn"])
            assert target.endswith(f":caldp-{environment}-{name}-dead")
    names = {k: p["QueueName"] for k, p in made.all("SQS::Queue").items()}
    watched = {
        names[dimension["Value"]["Fn::GetAtt"][0]]
        for alarm in made.all("CloudWatch::Alarm").values()
        for dimension in alarm.get("Dimensions", [])
        if dimension["Name"] == "QueueName" and alarm["Threshold"] == 1
    }
    assert watched == {f"caldp-{environment}-{name}" for name in dead}
    for rule in made.all("Events::Rule").values():
        for target in rule["Targets"]:
            if "caldp" in made.text(target["Arn"]) and "alarms" not in made.text(target["Arn"]):
                assert made.text(target["DeadLetterConfig"]["Arn"]).endswith("-dead")
    for function in made.all("Lambda::Function").values():
        assert made.text(function["DeadLetterConfig"]["TargetArn"]).endswith("-invocations-dead")


def test_queues_feed_their_functions_in_pieces(dev: Template) -> None:
    functions = {k: p for k, p in dev.all("Lambda::Function").items()}
    found = {}
    for source in dev.all("Lambda::EventSourceMapping").values():
        function = functions[source["FunctionName"]["Ref"]]
        queue = dev.text(source["EventSourceArn"]).rpartition("caldp-dev-")[2]
        name = function["FunctionName"].removeprefix("caldp-dev-")
        found[queue] = (name, source["BatchSize"], source["ScalingConfig"]["MaximumConcurrency"])
        assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert dev.one("SQS::Queue", QueueName=f"caldp-dev-{queue}")["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert found == {
        "lists": ("on-list", 1, 2),
        "shards": ("submit-shards", 1, 5),
        "events": ("on-batch-event", 10, 20),
    }
    drain = dev.one("Lambda::Function", FunctionName="caldp-dev-drain-rescues")
    assert dev.one("SQS::Queue", QueueName="caldp-dev-rescues")["VisibilityTimeout"] > drain["Timeout"]


def test_a_shard_is_submitted_before_somebody_takes_it_for_lost(dev: Template) -> None:
    timeout = dev.one("Lambda::Function", FunctionName="caldp-dev-submit-shards")["Timeout"]
    assert timeout == infra.settings.SUBMIT_SECONDS < SETTLED
    assert infra.settings.LARGEST_SHARD <= infra.settings.SUBMITTED_A_SECOND * timeout / 2


def test_the_reconciler_stops_before_it_is_stopped(dev: Template) -> None:
    assert dev.one("Lambda::Function", FunctionName="caldp-dev-reconcile")["Timeout"] >= ENOUGH + 120


def test_clocks_call_the_drain_and_the_reconciler(dev: Template) -> None:
    found = {}
    for rule in dev.all("Events::Rule").values():
        if "ScheduleExpression" in rule:
            (target,) = rule["Targets"]
            found[dev.text(target["Arn"]).rpartition(":")[2]] = (
                rule["ScheduleExpression"],
                json.loads(target["Input"]),
            )
    assert found == {
        "caldp-dev-drain-rescues": ("rate(1 minute)", {"drain": True}),
        "caldp-dev-reconcile": ("rate(10 minutes)", {"reconcile": True}),
    }


@BOTH
def test_functions_are_what_their_work_asks_for(environment: str, stack: Stack) -> None:
    made = stack(environment)
    for function in made.all("Lambda::Function").values():
        name = function["FunctionName"].removeprefix(f"caldp-{environment}-")
        assert (function["Runtime"], function["Handler"]) == (f"python{packaging.PYTHON}", "handler.handler")
        assert function["Architectures"] == ["x86_64"]
        assert function["TracingConfig"] == {"Mode": "Active"}
        once = name in ("drain-rescues", "reconcile")
        reserved = 1 if once and environment == "ops" else None
        assert function.get("ReservedConcurrentExecutions") == reserved
        group = made.resources[function["LoggingConfig"]["LogGroup"]["Ref"]]["Properties"]
        assert group["LogGroupName"] == f"/caldp/caldp-{environment}/{name}"
        assert group["RetentionInDays"] == 90
    assert len(made.all("Lambda::EventInvokeConfig")) == 5


@BOTH
def test_functions_and_commands_find_the_same_deployment(environment: str, stack: Stack) -> None:
    made = stack(environment)
    parameter = made.one("SSM::Parameter", Name=deployment.parameter(f"caldp-{environment}"))
    described = made.text(parameter["Value"])
    assert len(described) <= 4096
    found = Deployment.parse(described, "the parameter")
    rungs = [rung.name for rung in settings.DEFAULT.rungs]
    queues = {p["JobQueueName"] for p in made.all("Batch::JobQueue").values()}
    definitions = {p["JobDefinitionName"] for p in made.all("Batch::JobDefinition").values()}
    assert list(found.job_queues) == list(found.job_definitions) == rungs
    assert set(found.job_queues.values()) == queues
    assert set(found.job_definitions.values()) == definitions
    assert found.output == f"s3://{found.buckets[0]}"
    urls = [found.list_queue, found.shard_queue, found.event_queue, found.rescue_queue, *found.dead_queues.values()]
    assert sorted(url.rpartition("/")[2] for url in urls) == sorted(
        p["QueueName"] for p in made.all("SQS::Queue").values()
    )
    assert found.log_group in [p["LogGroupName"] for p in made.all("Logs::LogGroup").values()]
    for function in made.all("Lambda::Function").values():
        variables = {k: made.text(v) for k, v in function["Environment"]["Variables"].items()}
        assert Deployment.of_environment(variables) == found
        assert variables["CALDP_SETTINGS"] == packaging.SETTINGS
        assert sum(len(k) + len(v) for k, v in variables.items()) <= 4096


@BOTH
def test_commands_find_the_settings_of_the_functions(environment: str, stack: Stack) -> None:
    parameter = stack(environment).one("SSM::Parameter", Name=deployment.settings_parameter(f"caldp-{environment}"))
    assert len(parameter["Value"]) <= 4096
    assert settings.from_json(json.loads(parameter["Value"])) == infra.settings.load(environment).campaign


def test_the_environment_of_functions_has_room_for_the_longest_names(synthesize: Synthesize) -> None:
    made = synthesize(changed(infra={"name": "c" * 32, "prefix": "p" * 100, "bucket": "b" * 63}))
    for function in made.all("Lambda::Function").values():
        variables = {k: made.text(v) for k, v in function["Environment"]["Variables"].items()}
        assert sum(len(k) + len(v) for k, v in variables.items()) <= 4096
        assert len(function["FunctionName"]) <= 64


# ---- observe


def test_alarms_are_about_what_functions_count(dev: Template) -> None:
    alarms = {p["AlarmName"].removeprefix("caldp-dev-"): p for p in dev.all("CloudWatch::Alarm").values()}
    assert {"failure-rate", "runnable-age", "paused", "reconcile-errors", "drain-rescues-errors"} <= set(alarms)
    topic = next(iter(dev.all("SNS::Topic")))
    assert all(alarm["AlarmActions"] == [{"Ref": topic}] for alarm in alarms.values())
    assert alarms["runnable-age"]["MetricName"] == deployment.RUNNABLE_AGE
    assert alarms["runnable-age"]["Threshold"] == 1800
    assert alarms["runnable-age"]["Dimensions"] == [{"Name": "service", "Value": "caldp-dev"}]
    metrics = {m["Id"]: m for m in alarms["failure-rate"]["Metrics"]}
    named = {k: m["MetricStat"]["Metric"]["MetricName"] for k, m in metrics.items() if "MetricStat" in m}
    assert named == {"errors": deployment.ERRORS, "good": deployment.PROCESSED}
    sent = "".join(path.read_text() for path in (REPOSITORY / "lambdas").rglob("handler.py"))
    for name in ("ERRORS", "PROCESSED", "RETRIES", "RUNNABLE_AGE", "PAUSES"):
        assert name in sent, f"no function counts {name}"


def test_an_alarm_says_what_it_may_mean(dev: Template) -> None:
    said = {
        p["AlarmName"].removeprefix("caldp-dev-"): p["AlarmDescription"] for p in dev.all("CloudWatch::Alarm").values()
    }
    assert "and none of its queue runs" in said["runnable-age"]
    for who in ("all its jobs would fail", "went first", "somebody"):
        assert who in said["paused"]


def test_services_may_publish_alarms_and_nobody_without_tls(dev: Template) -> None:
    statements = dev.one("SNS::TopicPolicy")["PolicyDocument"]["Statement"]
    services = {s for statement in statements for s in strings(statement.get("Principal", {})) if "amazonaws" in s}
    assert services == {"cloudwatch.amazonaws.com", "budgets.amazonaws.com", "events.amazonaws.com"}
    assert any(statement["Effect"] == "Deny" and "aws:SecureTransport" in str(statement) for statement in statements)


def test_a_blocked_queue_is_an_alarm(dev: Template) -> None:
    rule = next(r for r in dev.all("Events::Rule").values() if "Blocked" in str(r.get("EventPattern")))
    assert [dev.text(target["Arn"]).rpartition(":")[2] for target in rule["Targets"]] == ["caldp-dev-alarms"]


def test_a_budget_and_mail_where_settings_say_so(dev: Template, ops: Template, synthesize: Synthesize) -> None:
    assert not dev.all("Budgets::Budget")
    budget = ops.one("Budgets::Budget")
    assert budget["Budget"]["BudgetLimit"] == {"Amount": 5000, "Unit": "USD"}
    assert budget["Budget"]["CostFilters"] == {"TagKeyValue": ["user:environment$caldp-ops"]}
    assert not dev.all("SNS::Subscription")
    mailed = synthesize(changed(infra={"alarm_email": "ops@example.org", "failure_percent": 0}))
    assert mailed.one("SNS::Subscription")["Endpoint"] == "ops@example.org"
    assert not [p for p in mailed.all("CloudWatch::Alarm").values() if "Metrics" in p]


@BOTH
def test_what_costs_money_carries_its_tags(environment: str, stack: Stack) -> None:
    made = stack(environment)
    for kind in ("S3::Bucket", "Batch::JobQueue", "Batch::JobDefinition", "Lambda::Function", "Logs::LogGroup"):
        for properties in made.all(kind).values():
            tags = properties["Tags"]
            plain = tags if isinstance(tags, dict) else {tag["Key"]: tag["Value"] for tag in tags}
            assert (plain["project"], plain["environment"]) == ("caldp", f"caldp-{environment}")


def test_a_network_that_is_there_is_used(dev: Template, synthesize: Synthesize) -> None:
    assert {p["ServiceName"]["Fn::Join"][1][-1] for p in dev.all("EC2::VPCEndpoint").values()} == {".s3"}
    assert not dev.all("EC2::NatGateway")
    given = {"id": "vpc-1", "subnets": ["subnet-1", "subnet-2"], "zones": ["us-east-1a", "us-east-1b"]}
    made = synthesize(changed(infra={"vpc": given}))
    assert not made.all("EC2::VPC")
    for environment in made.all("Batch::ComputeEnvironment").values():
        assert environment["ComputeResources"]["Subnets"] == ["subnet-1", "subnet-2"]
    wide = synthesize(changed(infra={"vpc": {"zones": ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"]}}))
    assert len(wide.all("EC2::Subnet")) == 4


def test_another_ladder_makes_another_stack(synthesize: Synthesize) -> None:
    ladder = [{"name": "1g", "memory": 896, "vcpus": 1}, {"name": "128g", "memory": 114688, "vcpus": 16}]
    capacity = {"128g": {"spot_vcpus": 32, "on_demand_vcpus": 16}}
    made = synthesize(changed(infra={"rungs": capacity}, campaign={"rungs": ladder}))
    assert sorted(p["JobQueueName"] for p in made.all("Batch::JobQueue").values()) == [
        "caldp-test-128g",
        "caldp-test-1g",
    ]


def test_the_app_takes_the_pinned_command_line(tmp_path: Path) -> None:
    package = json.loads((REPOSITORY / "infra" / "package.json").read_text())
    locked = json.loads((REPOSITORY / "infra" / "package-lock.json").read_text())["packages"]
    assert locked["node_modules/aws-cdk"]["version"] == package["devDependencies"]["aws-cdk"] == "2.1148.1"
    assert not any("resolved" in entry for entry in locked.values()), "a host's name"
