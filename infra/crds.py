"""A CRDS without machines: a function behind an address, another for heavy work, a table, clocks.

Its files are in the CRDS bucket of the jobs: a context that is set there is the one that jobs find.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aws_cdk as cdk
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from infra.checks import Right, accept, grant
from infra.functions import make_function
from infra.observe import alarm_of
from infra.packaging import CRDS_LAYER
from infra.settings import Infra
from infra.storage import Storage, arns

#: Bytes of a reply from which on it is fetched by a second request. AWS Lambda takes 6 MB, with what JSON adds.
INLINE = 3_500_000

#: Bytes of a file that may be delivered: a job keeps it, its parts and an old one on its disk, MiB.
LARGEST_UPLOAD, DISK = 2_000_000_000, 10_240

#: When the server is asked what clients would ask, UTC.
CHECKED = "cron(0 6 * * ? *)"

_WRITTEN = "mappings and references are named by their observatory and themselves"


@dataclass(frozen=True)
class Kind:
    """What a function is given.

    Attributes
    ----------
    handler : str
        Folder in ``lambdas``.
    memory, disk : int
        MiB; processors come with memory.
    timeout : int
        Seconds.
    most : int
        How many may run at a time, where settings let that be said.
    description : str
    """

    handler: str
    memory: int
    disk: int
    timeout: int
    most: int
    description: str


#: 1769 MiB come with a whole processor; accounts that are new have 3008 MiB at most.
FUNCTIONS: Mapping[str, Kind] = {
    "crds": Kind("crds", 1769, 1024, 120, 40, "CRDS: pages, and what clients call"),
    "crds-job": Kind("crds_job", 3008, DISK, 900, 10, "CRDS: certifies, makes rules, finds affected datasets"),
}


class Crds(Construct):
    """Table, functions, address, clocks, alarms.

    Attributes
    ----------
    table : Table
        Small facts: events, locks, names, messages.
    dead : Queue
        Jobs and tasks that nobody could do.
    functions, roles : dict of Function, dict of Role
        By their names in ``FUNCTIONS``.
    url : str
        What clients call it, without an observatory.
    """

    def __init__(
        self,
        scope: Construct,
        id_: str,
        infra: Infra,
        storage: Storage,
        packages: Mapping[str, Path],
        topic: sns.Topic,
    ) -> None:
        super().__init__(scope, id_)
        self._infra, self._storage, self._packages = infra, storage, packages
        self._keep = cdk.RemovalPolicy.RETAIN if infra.retain else cdk.RemovalPolicy.DESTROY
        self.table = dynamodb.Table(
            self,
            "Records",
            table_name=f"{infra.name}-crds",
            partition_key=dynamodb.Attribute(name="space", type=dynamodb.AttributeType.STRING),
            sort_key=dynamodb.Attribute(name="key", type=dynamodb.AttributeType.STRING),
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            encryption=dynamodb.TableEncryption.DEFAULT,  # with a key of AWS
            time_to_live_attribute="gone",
            deletion_protection=infra.retain,
            removal_policy=self._keep,
        )
        self.dead = sqs.Queue(
            self,
            "dead",
            queue_name=f"{infra.name}-crds-dead",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=cdk.Duration.days(14),
        )
        accept(self.dead, "AwsSolutions-SQS3", "it is the last one: an alarm says that something is in it")
        self._layer = lambda_.LayerVersion(
            self,
            "Packages",
            code=lambda_.Code.from_asset(str(packages[CRDS_LAYER])),
            description="crds, and what it needs",
            compatible_runtimes=[lambda_.Runtime.PYTHON_3_11],
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        self.roles: dict[str, iam.Role] = {}
        self.functions = {name: self._function(name, kind) for name, kind in FUNCTIONS.items()}
        self.url = self._address()
        # The server is told by its first request what it is called, for a function cannot have its own address.
        self.functions["crds-job"].add_environment("CALDP_CRDS_URL", self.url)
        if infra.crds_url:
            self.functions["crds"].add_environment("CALDP_CRDS_URL", self.url)
        self._rights()
        self._clocks()
        self._alarms(topic)

    def _arn(self, name: str) -> str:
        """Return the ARN of a function by its name: a reference would go around in a circle."""
        stack = cdk.Stack.of(self)
        return f"arn:{stack.partition}:lambda:{stack.region}:{stack.account}:function:{self._infra.name}-{name}"

    def _function(self, name: str, kind: Kind) -> lambda_.Function:
        infra, storage = self._infra, self._storage
        function, self.roles[name] = make_function(
            self,
            infra,
            name,
            description=kind.description,
            package=self._packages[kind.handler],
            memory=kind.memory,
            timeout=kind.timeout,
            layers=[cast(lambda_.ILayerVersion, self._layer)],
            ephemeral_storage_size=cdk.Size.mebibytes(kind.disk),
            reserved_concurrent_executions=kind.most if infra.reserve_concurrency else None,
            # Who asks the server waits for the answer, so that nothing is left over.
            dead_letter_queue=cast(sqs.IQueue, self.dead) if name == "crds-job" else None,
            retry_attempts=2,
            max_event_age=cdk.Duration.hours(6),
            environment={
                "CALDP_CRDS_STORE": storage.crds,
                "CALDP_CRDS_RECORDS": f"dynamodb:{infra.name}-crds",
                "CALDP_CRDS_JOBS": f"lambda:{infra.name}-crds-job",
                "CALDP_CRDS_WORK": "/tmp/crds",  # noqa: S108 - the only place where a function may write
                "CALDP_CRDS_INLINE": str(INLINE),
                "CALDP_CRDS_LARGEST_UPLOAD": str(LARGEST_UPLOAD),
                "CALDP_CRDS_CAMPAIGNS": "/".join(
                    [f"s3://{storage.bucket.bucket_name}", *([infra.prefix] if infra.prefix else [])]
                ),
                "CALDP_LOG_LEVEL": infra.log_level,
                # Jobs are processes, which know nothing of the runtime's own ways to find modules.
                "PYTHONPATH": "/var/task:/opt/python:/var/runtime",
                "HOME": "/tmp",  # noqa: S108 - astropy wants to write there
            },
        )
        return function

    def _address(self) -> str:
        public = self._infra.crds_public
        # Who calls is told by the server itself: stock clients cannot sign what they send, and rules are for everybody.
        # Nothing is written without a token.
        address = self.functions["crds"].add_function_url(
            auth_type=lambda_.FunctionUrlAuthType.NONE if public else lambda_.FunctionUrlAuthType.AWS_IAM,
            invoke_mode=lambda_.InvokeMode.BUFFERED,
        )
        return self._infra.crds_url or cdk.Fn.join("", ["https://", cdk.Fn.select(2, cdk.Fn.split("/", address.url))])

    def _rights(self) -> None:
        storage, stack = self._storage, cdk.Stack.of(self)
        (bucket,), (everything,) = arns(stack, [storage.crds])
        top = everything.removesuffix("*")

        def keys(*patterns: str) -> tuple[str, ...]:
            return tuple(f"{top}{pattern}" for pattern in patterns)

        listing = Right("List", ("s3:ListBucket",), (bucket,))
        read = Right("Read", ("s3:GetObject",), keys("*"), "all rules, all references, what is known of them")
        rules = keys("mappings/*", "contexts/*", "config/*", "archive/*", "server/*")
        files = Right("Keep", ("s3:PutObject",), rules, _WRITTEN)
        references = Right("Deliver", ("s3:PutObject", "s3:AbortMultipartUpload"), keys("references/*"), _WRITTEN)
        # What was sent, and what was made for a submission that came to nothing; versions stay.
        left = keys("mappings/*", "references/*", "server/*/uploads/*", "server/*/replies/*")
        tidy = Right("Tidy", ("s3:DeleteObject",), left, _WRITTEN)
        write = ("dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem")
        records = Right("Records", write, (self.table.table_arn,))
        begin = Right("BeginJobs", ("lambda:InvokeFunction",), (self._arn("crds-job"),))
        placed = storage.keys("control/placed/*")
        campaigns = Right("BeginCampaigns", ("s3:PutObject", "s3:GetObject"), placed, "lists have any name")
        grant(self.roles["crds"], (listing, read, files, tidy, records, begin, campaigns))
        grant(self.roles["crds-job"], (listing, read, files, references, tidy, records, begin))

    def _clocks(self) -> None:
        stack, infra = cdk.Stack.of(self), self._infra
        ours = {"StringEquals": {"aws:SourceAccount": stack.account}}
        principal = iam.ServicePrincipal("scheduler.amazonaws.com", conditions=ours)
        role = iam.Role(self, "clock-role", assumed_by=cast(iam.IPrincipal, principal))
        job = self.functions["crds-job"]
        grant(
            role,
            [
                Right("Start", ("lambda:InvokeFunction",), (job.function_arn,)),
                Right("GiveUp", ("sqs:SendMessage",), (self.dead.queue_arn,)),
            ],
        )
        minutes = infra.crds_tend_minutes
        every = f"rate({minutes} minute{'s' if minutes > 1 else ''})"
        for task, when in (("tend", every), ("check", CHECKED)):
            scheduler.CfnSchedule(
                self,
                task,
                name=f"{infra.name}-crds-{task}",
                flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
                schedule_expression=when,
                target=scheduler.CfnSchedule.TargetProperty(
                    arn=job.function_arn,
                    role_arn=role.role_arn,
                    input=json.dumps({"task": task}),
                    dead_letter_config=scheduler.CfnSchedule.DeadLetterConfigProperty(arn=self.dead.queue_arn),
                    retry_policy=scheduler.CfnSchedule.RetryPolicyProperty(
                        maximum_event_age_in_seconds=3600, maximum_retry_attempts=2
                    ),
                ),
            )

    def _alarms(self, topic: sns.Topic) -> None:
        five, server = cdk.Duration.minutes(5), self.functions["crds"]
        broken = server.metric("Url5xxCount", period=five, statistic="Sum")
        for name, what, metric, threshold in (
            ("crds-errors", "The server of CRDS fails", server.metric_errors(period=five, statistic="Sum"), 1),
            ("crds-broken", "The server of CRDS answers that it is broken", broken, 5),
            (
                "crds-throttled",
                "More ask the server of CRDS at once than may",
                server.metric_throttles(period=five, statistic="Sum"),
                10,
            ),
            (
                "crds-job-errors",
                "A job of CRDS fails, or the nightly check has found something: see its log",
                self.functions["crds-job"].metric_errors(period=five, statistic="Sum"),
                1,
            ),
            (
                "crds-dead",
                "Nobody could do a job of CRDS, or what its clock asks for: see the log of crds-job",
                self.dead.metric_approximate_number_of_messages_visible(period=five, statistic="Maximum"),
                1,
            ),
        ):
            alarm_of(self, f"{self._infra.name}-{name}", name, what, metric, threshold, topic)
