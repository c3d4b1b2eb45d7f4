"""What starts work: lists that are dropped, ends of jobs, clocks; queues between them and the functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aws_cdk as cdk
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as sources
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from caldp.campaign.control import (
    CLAIMS,
    CLOSED,
    FOLDED,
    LOGS,
    MANIFESTS,
    OBSERVATIONS,
    PAUSE,
    PLAN,
    REJECTED,
    RELEASED,
    REQUEST,
    SEEN,
    SUBMITTED,
)
from caldp.campaign.deployment import NAMESPACE, VARIABLE, parameter, settings_parameter
from caldp.campaign.observe import INSTRUMENTS, key
from caldp.campaign.stack import ELSEWHERE
from infra.checks import FOLDERS, NO_RESOURCES, REVISIONS, Right, accept, grant
from infra.compute import Compute
from infra.functions import make_function
from infra.packaging import SETTINGS
from infra.settings import SUBMIT_SECONDS, Environment
from infra.storage import Storage

#: Folders whose ``placed`` is for lists that are dropped; jobs write beside it all day.
ABOVE = ("messages", "control")

#: States of jobs that are the end of them.
ENDS = ("SUCCEEDED", "FAILED")


@dataclass(frozen=True)
class Kind:
    """What a function is given.

    Attributes
    ----------
    handler : str
        Folder in ``lambdas``.
    memory : int
        MiB; processors come with it.
    timeout : int
        Seconds.
    description : str
    once : bool
        Whether it is to run once at a time.
    """

    handler: str
    memory: int
    timeout: int
    description: str
    once: bool = False


#: A million datasets are planned in a minute and 1 GB, and written down in a thousand shards.
FUNCTIONS: Mapping[str, Kind] = {
    "on-list": Kind("on_list", 3008, 900, "A list of datasets becomes a campaign"),
    "submit-shards": Kind("submit_shards", 1024, SUBMIT_SECONDS, "Shards become jobs"),
    "drain-rescues": Kind("submit_shards", 1024, 300, "What is tried again becomes shards", once=True),
    "on-batch-event": Kind("on_batch_event", 512, 120, "The end of a job becomes a state, or another attempt"),
    "reconcile": Kind("reconcile", 3008, 900, "Compares plans, states and jobs, and heals", once=True),
}

#: What each of them writes of the records of a campaign (``caldp.campaign.control``); the others are those of people
#: and jobs. Who places another attempt opens a campaign again that was closed.
RECORDS: Mapping[str, tuple[str, ...]] = {
    "on-list": (REQUEST, PLAN, REJECTED, OBSERVATIONS, f"{MANIFESTS}/*"),
    "submit-shards": (f"{CLAIMS}/*", f"{SUBMITTED}/*"),
    "drain-rescues": (f"{MANIFESTS}/*",),
    "on-batch-event": (PAUSE, CLOSED, f"{LOGS}/*"),
    "reconcile": (PAUSE, RELEASED, CLOSED, FOLDED, SEEN, f"{LOGS}/*"),
}


@dataclass(frozen=True)
class Channel:
    """A queue, and the one of its messages that nobody could handle."""

    queue: sqs.Queue
    dead: sqs.Queue


class Triggers(Construct):
    """Queues, rules, functions.

    Attributes
    ----------
    channels : dict of Channel
        ``lists``, ``shards``, ``events``, ``rescues``.
    invocations : Queue
        Invocations that failed, where no queue has the message.
    functions, roles : dict of Function, dict of Role
        By their names in ``FUNCTIONS``.
    """

    def __init__(
        self,
        scope: Construct,
        id_: str,
        environment: Environment,
        storage: Storage,
        compute: Compute,
        packages: Mapping[str, Path],
    ) -> None:
        super().__init__(scope, id_)
        self._infra, self._storage, self._compute, self._packages = environment.infra, storage, compute, packages
        self._campaign = environment.campaign_json
        self.invocations = self._queue("invocations-dead")
        # A message is hidden for six times as long as its function may take; or until the drain must have ended.
        self.channels = {
            "lists": self._channel("lists", hidden=6 * FUNCTIONS["on-list"].timeout, receive=3),
            "shards": self._channel("shards", hidden=6 * FUNCTIONS["submit-shards"].timeout, receive=5),
            "events": self._channel("events", hidden=6 * FUNCTIONS["on-batch-event"].timeout, receive=5),
            "rescues": self._channel("rescues", hidden=2 * FUNCTIONS["drain-rescues"].timeout, receive=10),
        }
        self._deployment = self._describe()
        self.roles: dict[str, iam.Role] = {}
        self.functions = {name: self._function(name, kind) for name, kind in FUNCTIONS.items()}
        self._rights()
        self._wires()

    # ---- queues

    def _queue(self, name: str, hidden: int = 60, dead: sqs.DeadLetterQueue | None = None) -> sqs.Queue:
        queue = sqs.Queue(
            self,
            name,
            queue_name=f"{self._infra.name}-{name}",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            visibility_timeout=cdk.Duration.seconds(hidden),
            retention_period=cdk.Duration.days(14),
            dead_letter_queue=dead,
        )
        if dead is None:
            accept(queue, "AwsSolutions-SQS3", "it is the last one: an alarm says that something is in it")
        return queue

    def _channel(self, name: str, hidden: int, receive: int) -> Channel:
        dead = self._queue(f"{name}-dead")
        return Channel(self._queue(name, hidden, sqs.DeadLetterQueue(max_receive_count=receive, queue=dead)), dead)

    def _describe(self) -> str:
        """Say what functions and commands know of the stack (``caldp.campaign.deployment``)."""
        storage, name = self._storage, self._infra.name
        queues = self._compute.queues
        text = cdk.Stack.of(self).to_json_string(
            {
                "name": name,
                "buckets": [storage.bucket.bucket_name],
                "output": f"s3://{storage.bucket.bucket_name}" + (f"/{self._infra.prefix}" if storage.prefix else ""),
                "placed": storage.prefix,
                "list_queue": self.channels["lists"].queue.queue_url,
                "shard_queue": self.channels["shards"].queue.queue_url,
                "event_queue": self.channels["events"].queue.queue_url,
                "rescue_queue": self.channels["rescues"].queue.queue_url,
                "dead_queues": {
                    **{purpose: channel.dead.queue_url for purpose, channel in self.channels.items()},
                    "invocations": self.invocations.queue_url,
                },
                # By name, for a reference would be an ARN; the functions come after the queues in any case.
                "job_queues": {rung: f"{name}-{rung}" for rung in queues},
                "job_definitions": {rung: f"{name}-{rung}" for rung in queues},
                "log_group": f"/caldp/{name}/jobs",
            }
        )
        ssm.StringParameter(
            self,
            "Deployment",
            parameter_name=parameter(name),
            string_value=text,
            description="What the commands of CALDP know of this stack",
        )
        ssm.StringParameter(
            self,
            "Settings",
            parameter_name=settings_parameter(name),
            string_value=json.dumps(dict(self._campaign), sort_keys=True),
            description="What the campaigns of this stack go by",
        )
        return text

    # ---- functions

    def _function(self, name: str, kind: Kind) -> lambda_.Function:
        infra = self._infra
        function, self.roles[name] = make_function(
            self,
            infra,
            name,
            description=kind.description,
            package=self._packages[kind.handler],
            memory=kind.memory,
            timeout=kind.timeout,
            reserved_concurrent_executions=1 if kind.once and infra.reserve_concurrency else None,
            # Of a drain that comes too soon no other is needed: the next one is a minute away.
            dead_letter_queue=cast(sqs.IQueue, self.invocations),
            retry_attempts=0 if kind.once else 2,
            max_event_age=cdk.Duration.hours(1) if kind.once else cdk.Duration.hours(6),
            environment={
                VARIABLE: self._deployment,
                "CALDP_SETTINGS": SETTINGS,
                "POWERTOOLS_SERVICE_NAME": infra.name,
                "POWERTOOLS_METRICS_NAMESPACE": NAMESPACE,
                "POWERTOOLS_LOG_LEVEL": infra.log_level,
            },
        )
        return function

    def _rights(self) -> None:
        storage, stack = self._storage, cdk.Stack.of(self)
        batch = f"arn:{stack.partition}:batch:{stack.region}:{stack.account}"
        queues = self._compute.queues
        # The call names no revision, and what AWS asks for then is said in two ways.
        names = (f"{batch}:job-definition/{self._infra.name}-{rung}{of}" for rung in queues for of in ("", ":*"))

        listing = Right("List", ("s3:ListBucket",), (storage.bucket.bucket_arn,))
        records = Right("ReadRecords", ("s3:GetObject",), storage.keys("*/control/*", "*/messages/*"), FOLDERS)
        products = Right("VerifyProducts", ("s3:GetObject",), storage.keys("*/data/*"), FOLDERS)
        # Beside batches, and beside those of lists that want another place.
        observed = storage.keys(*(place + key(name) for name in INSTRUMENTS for place in ("", "*/")))
        learned = Right("ReadObservations", ("s3:GetObject",), observed, FOLDERS)
        learn = Right("Learn", ("s3:PutObject",), observed, FOLDERS)
        elsewhere, hashes = storage.keys(f"{ELSEWHERE}/*"), "batches are entered by hashes of where they are"
        enter = Right("EnterBatches", ("s3:PutObject",), elsewhere, hashes)
        entered = Right("FindBatches", ("s3:GetObject",), elsewhere, hashes)
        written = storage.keys("*/messages/status/*", "*/messages/dataset*")
        states = Right("MoveStates", ("s3:PutObject",), written, FOLDERS)
        move = Right("MoveMessages", ("s3:DeleteObject",), storage.keys("*/messages/dataset*"), FOLDERS)

        submitted = (*(queue.job_queue_arn for queue in queues.values()), *names)
        submit = Right("Submit", ("batch:SubmitJob",), submitted, REVISIONS)
        jobs, random, mine = (f"{batch}:job/*",), "jobs have random ids", self._infra.name
        tag = Right("TagJobs", ("batch:TagResource",), jobs, random, only={"aws:RequestTag/deployment": mine})
        end = Right("EndSecondJobs", ("batch:TerminateJob",), jobs, random, only={"aws:ResourceTag/deployment": mine})
        look = Right("LookAtJobs", ("batch:DescribeJobs", "batch:ListJobs"), ("*",), NO_RESOURCES)

        lists = storage.keys(*folders("placed"))
        dropped = Right("ReadLists", ("s3:GetObject",), lists, "lists have any name")
        refuse = Right("RefuseLists", ("s3:PutObject",), storage.keys(*folders("refused")), "lists have any name")
        # No function feeds the trigger.
        never = Right("PlaceNoLists", ("s3:PutObject",), lists, denied=True)

        def send(*purposes: str) -> Right:
            arns = tuple(self.channels[purpose].queue.queue_arn for purpose in purposes)
            return Right("Send", ("sqs:SendMessage",), arns)

        def take(sid: str, *queues: sqs.Queue) -> Right:
            return Right(sid, ("sqs:ReceiveMessage", "sqs:DeleteMessage"), tuple(queue.queue_arn for queue in queues))

        rescues = take("TakeRescues", self.channels["rescues"].queue)
        dead = take("TakeDeadLetters", *(channel.dead for channel in self.channels.values()), self.invocations)
        moving = (listing, records, states, move)
        rights: dict[str, tuple[Right, ...]] = {
            "on-list": (listing, dropped, refuse, records, learned, enter, send("shards")),
            "submit-shards": (*moving, submit, tag, look),
            "drain-rescues": (listing, records, rescues, send("rescues", "shards")),
            "on-batch-event": (*moving, products, send("rescues")),
            "reconcile": (*moving, products, entered, learned, learn, look, end, dead, send(*self.channels)),
        }
        for name, given in rights.items():
            kept = storage.keys(*(f"*/{record}" for record in RECORDS[name]))
            keep = Right("KeepRecords", ("s3:PutObject",), kept, FOLDERS)
            grant(self.roles[name], (*given, keep, never))

    # ---- who calls whom

    def _wires(self) -> None:
        functions, channels, infra = self.functions, self.channels, self._infra
        events.Rule(
            self,
            "list-placed",
            description="A list of datasets was dropped",
            event_pattern=events.EventPattern(
                source=["aws.s3"],
                detail_type=["Object Created"],
                detail={
                    "bucket": {"name": [self._storage.bucket.bucket_name]},
                    "object": {"key": [{"wildcard": self._storage.prefix + key} for key in folders("placed")]},
                },
            ),
            targets=[self._into(channels["lists"])],
        )
        events.Rule(
            self,
            "job-ended",
            description="A job of ours has ended",
            event_pattern=events.EventPattern(
                source=["aws.batch"],
                detail_type=["Batch Job State Change"],
                detail={
                    "status": list(ENDS),
                    "jobQueue": [queue.job_queue_arn for queue in self._compute.queues.values()],
                },
            ),
            targets=[self._into(channels["events"])],
        )
        self._every("drain", infra.drain_minutes, functions["drain-rescues"], {"drain": True})
        self._every("reconcile-all", infra.reconcile_minutes, functions["reconcile"], {"reconcile": True})
        for name, channel, size, most in (
            ("on-list", "lists", 1, 2),
            ("submit-shards", "shards", 1, 5),
            ("on-batch-event", "events", 10, 20),
        ):
            functions[name].add_event_source(
                sources.SqsEventSource(
                    cast(sqs.IQueue, channels[channel].queue),
                    batch_size=size,
                    max_concurrency=most,
                    max_batching_window=cdk.Duration.seconds(5) if size > 1 else None,
                    report_batch_item_failures=True,
                )
            )

    def _into(self, channel: Channel) -> events.IRuleTarget:
        target = targets.SqsQueue(cast(sqs.IQueue, channel.queue), dead_letter_queue=cast(sqs.IQueue, channel.dead))
        return cast(events.IRuleTarget, target)

    def _every(self, id_: str, minutes: int, function: lambda_.Function, event: Mapping[str, object]) -> None:
        events.Rule(
            self,
            id_,
            description=f"Every {minutes} min",
            schedule=events.Schedule.rate(cdk.Duration.minutes(minutes)),
            targets=[
                cast(
                    events.IRuleTarget,
                    targets.LambdaFunction(
                        cast(lambda_.IFunction, function),
                        event=events.RuleTargetInput.from_object(dict(event)),
                        dead_letter_queue=cast(sqs.IQueue, self.invocations),
                        max_event_age=cdk.Duration.hours(1),
                        retry_attempts=2,
                    ),
                )
            ],
        )


def folders(name: str) -> list[str]:
    """Return patterns of keys, below the prefix, in the folders of that name beside which messages or records are."""
    return [f"{where}{above}/{name}/*" for above in ABOVE for where in ("", "*/")]
