"""The operations of AWS Batch: what is refused, what is answered."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.fakes.aws_batch.engine import STATES, Engine, Job, Spec

Answer = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SHARE = re.compile(r"[A-Za-z0-9]{1,255}\*?")
_CODES = re.compile(r"[0-9]*\*?")
_REASONS = re.compile(r"[A-Za-z0-9.:\s]*\*?")
_PAYLOAD = 30 * 1024
_DEFINITION = 24 * 1024
#: The calls that `throttle` is about.
_ABOUT_JOBS = ("SubmitJob", "DescribeJobs", "ListJobs", "TerminateJob", "CancelJob")


class ClientError(Exception):
    """What AWS answers with 400 and ClientException."""


class ThrottledError(Exception):
    """What it answers with 429 and TooManyRequestsException."""


class LostReplyError(Exception):
    """The call was carried out, and the caller is not to know: 500 and ServerException."""


def _need(right: bool, message: str) -> None:
    if not right:
        raise ClientError(message)


class Api:
    """The operations by name, on one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._owed: dict[str, float] = {}
        self._lock = threading.Lock()
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "SubmitJob": self._submit_job,
            "DescribeJobs": self._describe_jobs,
            "ListJobs": self._list_jobs,
            "TerminateJob": self._terminate_job,
            "CancelJob": self._cancel_job,
            "CreateComputeEnvironment": self.create_compute_environment,
            "UpdateComputeEnvironment": self.update_compute_environment,
            "DescribeComputeEnvironments": self._describe_compute_environments,
            "DeleteComputeEnvironment": self.delete_compute_environment,
            "CreateJobQueue": self.create_job_queue,
            "UpdateJobQueue": self.update_job_queue,
            "DescribeJobQueues": self._describe_job_queues,
            "DeleteJobQueue": self.delete_job_queue,
            "CreateSchedulingPolicy": self.create_scheduling_policy,
            "UpdateSchedulingPolicy": self.update_scheduling_policy,
            "DescribeSchedulingPolicies": self._describe_scheduling_policies,
            "ListSchedulingPolicies": self._list_scheduling_policies,
            "DeleteSchedulingPolicy": self.delete_scheduling_policy,
            "RegisterJobDefinition": self.register_job_definition,
            "DescribeJobDefinitions": self._describe_job_definitions,
            "DeregisterJobDefinition": self.deregister_job_definition,
            "GetJobQueueSnapshot": self._get_job_queue_snapshot,
        }

    def call(self, operation: str, request: Answer) -> Answer:
        """Carry out a call from outside.

        Raises
        ------
        ClientError, ThrottledError, LostReplyError
        """
        engine = self.engine
        with engine.lock:
            engine.calls[operation] += 1
            switches = engine.switches
            rate = switches.submit_rate if operation == "SubmitJob" else 0
            since = time.monotonic() - 1.0
            if (rate and sum(at > since for at in engine.submissions[-rate:]) >= rate) or (
                operation in _ABOUT_JOBS and self._due("throttle", switches.throttle)
            ):
                engine.throttled[operation] += 1
                raise ThrottledError("Too Many Requests")
            answer = self.operations[operation](request)
            if operation == "SubmitJob" and self._due("lose", switches.lose_replies):
                raise LostReplyError("Internal error")
            return answer

    def _due(self, what: str, share: float) -> bool:
        """Tell whether it is this call's turn, so that of many calls exactly this share is hit."""
        owed = self._owed.get(what, 0.0) + share
        self._owed[what] = owed - int(owed + 1e-9) if share else 0.0
        return int(owed + 1e-9) > 0

    # ----------------------------------------------------------------------------------------------------------- jobs

    def _submit_job(self, request: Answer) -> Answer:
        engine = self.engine
        name = request.get("jobName") or ""
        _need(bool(_NAME.fullmatch(name)), f"Job name should match valid pattern: {name!r}")
        _need(len(json.dumps(request)) <= _PAYLOAD, "Request exceeds the limit of 30 KiB")
        queue = self._queue(request.get("jobQueue"))
        _need(queue["state"] == "ENABLED", f"Job queue {queue['jobQueueName']} is not enabled")
        definition = self._definition(request.get("jobDefinition"))
        size = 0
        if "arrayProperties" in request and request["arrayProperties"]:
            size = int(request["arrayProperties"].get("size", 0))
            _need(2 <= size <= 10_000, "Array size must be between 2 and 10000")
        share, fair = request.get("shareIdentifier"), bool(queue.get("schedulingPolicyArn"))
        _need(fair or share is None, "Job queue has no fair-share policy: shareIdentifier must not be given")
        _need(not fair or share is not None, "Job queue has a fair-share policy: shareIdentifier must be given")
        _need(share is None or bool(_SHARE.fullmatch(share)), f"shareIdentifier is not valid: {share!r}")
        priority = request.get("schedulingPriorityOverride")
        _need(priority is None or 0 <= int(priority) <= 9999, "schedulingPriorityOverride must be 0 to 9999")
        strategy = request.get("retryStrategy") or definition.get("retryStrategy") or {}
        _check_retries(strategy)
        timeout = request.get("timeout") or definition.get("timeout") or {}
        _check_timeout(timeout)
        depends_on = [self._dependency(each) for each in request.get("dependsOn") or []]
        _need(len(depends_on) <= 20, "A job can depend on 20 jobs at most")
        container = definition["containerProperties"]
        overrides = request.get("containerOverrides") or {}
        _check_environment(overrides.get("environment"))
        parameters = {**(definition.get("parameters") or {}), **(request.get("parameters") or {})}
        requirements = _requirements(container, overrides)
        environment = {
            each["name"]: each.get("value", "")
            for each in [*(container.get("environment") or []), *(overrides.get("environment") or [])]
        }
        logs = (container.get("logConfiguration") or {}).get("options") or {}
        more: dict[str, Any] = {
            "platformCapabilities": definition.get("platformCapabilities") or [],
            "propagateTags": bool(request.get("propagateTags", definition.get("propagateTags", False))),
            "tags": {
                **(definition.get("tags") or {} if request.get("propagateTags") else {}),
                **(request.get("tags") or {}),
            },
        }
        if fair:
            more["shareIdentifier"] = share
            more["schedulingPriority"] = int(
                priority if priority is not None else definition.get("schedulingPriority", 0)
            )
        job = engine.submit(
            Spec(
                name=name,
                queue=queue["jobQueueArn"],
                definition=definition["jobDefinitionArn"],
                parameters=parameters,
                image=container["image"],
                command=_substituted(overrides.get("command") or container.get("command") or [], parameters),
                environment=environment,
                requirements=requirements,
                vcpus=float(_required(requirements, "VCPU", "1")),
                memory=int(_required(requirements, "MEMORY", "0")),
                attempts=int(strategy.get("attempts", 1)),
                rules=strategy.get("evaluateOnExit") or [],
                timeout=int(timeout.get("attemptDurationSeconds", 0)),
                depends_on=depends_on,
                size=size,
                more=more,
                container={
                    "volumes": [],
                    "mountPoints": [],
                    "ulimits": [],
                    "networkInterfaces": [],
                    "secrets": container.get("secrets") or [],
                    **{
                        key: container[key]
                        for key in ("jobRoleArn", "executionRoleArn", "logConfiguration", "user")
                        if container.get(key)
                    },
                },
                log_group=logs.get("awslogs-group", "/aws/batch/job"),
                log_prefix=logs.get("awslogs-stream-prefix", ""),
            )
        )
        return {"jobArn": f"{engine.arn}:job/{job.id}", "jobName": name, "jobId": job.id}

    def _dependency(self, entry: Mapping[str, str]) -> str:
        _need(not entry.get("type"), "this engine has no dependencies of the kinds N_TO_N and SEQUENTIAL")
        identity = entry.get("jobId", "")
        _need(identity in self.engine.jobs, f"Job dependency {identity} does not exist")
        return identity

    def _describe_jobs(self, request: Answer) -> Answer:
        wanted = request.get("jobs")
        _need(isinstance(wanted, list), "jobs must be given")
        assert wanted is not None
        _need(len(wanted) <= 100, "At most 100 jobs can be described at once")
        found = [self.engine.find(each) for each in wanted]
        return {"jobs": [self.engine.describe(job) for job in found if job is not None]}

    def _list_jobs(self, request: Answer) -> Answer:
        given = [key for key in ("jobQueue", "arrayJobId", "multiNodeJobId") if request.get(key)]
        _need(len(given) == 1, "Exactly one of jobQueue, arrayJobId and multiNodeJobId must be given")
        state = request.get("jobStatus")
        _need(state is None or state in STATES, f"There is no status {state}")
        filters = request.get("filters") or []
        _need(len(filters) <= 1, "Only one filter can be used at a time")
        most = int(request.get("maxResults") or 100)
        _need(1 <= most <= 100, "maxResults must be 1 to 100")
        jobs: list[Job]
        if given == ["arrayJobId"]:
            parent = self.engine.find(request["arrayJobId"])
            _need(parent is not None and parent.children is not None, "There is no such array job")
            assert parent is not None and parent.children is not None
            jobs = [job for job in parent.children if job.state == (state or "RUNNING")]
        elif given == ["jobQueue"]:
            jobs = self._listed(self._queue(request["jobQueue"])["jobQueueArn"], state, filters)
        else:
            jobs = []
        jobs, token = _page(jobs, request, most, key=lambda job: job.id)
        answer: Answer = {"jobSummaryList": [self._summary(job) for job in jobs]}
        return {**answer, "nextToken": token} if token else answer

    def _listed(self, queue: str, state: str | None, filters: Sequence[Mapping[str, Any]]) -> list[Job]:
        """Return jobs of a queue, children not among them, the latest first."""
        engine = self.engine
        states: Sequence[str] = [state or "RUNNING"]
        wanted: Callable[[Job], bool] = lambda job: True  # noqa: E731
        if filters:
            name, values = filters[0].get("name"), filters[0].get("values") or [""]
            checks: dict[str, Callable[[Job], bool]] = {
                "JOB_NAME": lambda job: _glob(values, job.spec.name, str.lower),
                "JOB_DEFINITION": lambda job: (
                    _glob(values, job.spec.definition.rpartition("/")[2].partition(":")[0])
                    or job.spec.definition in values
                ),
                "BEFORE_CREATED_AT": lambda job: job.created < int(values[0]),
                "AFTER_CREATED_AT": lambda job: job.created > int(values[0]),
                "SHARE_IDENTIFIER": lambda job: _glob(values, job.spec.more.get("shareIdentifier", "")),
            }
            _need(name in checks, f"There is no filter {name}")
            wanted = checks[str(name)]
            if name != "SHARE_IDENTIFIER" or state is None:
                states = STATES
        latest = time.time() * 1000 - engine.switches.list_delay * 1000
        found = [
            job
            for each in states
            for job in engine.listing.get((queue, each), {}).values()
            if wanted(job) and (not engine.switches.list_delay or job.created <= latest)
        ]
        return sorted(found, key=lambda job: job.created, reverse=True)

    def _summary(self, job: Job) -> Answer:
        described = self.engine.describe(job)
        keys = ("jobArn", "jobId", "jobName", "createdAt", "status", "statusReason", "startedAt", "stoppedAt")
        more = ("jobDefinition", "arrayProperties", "shareIdentifier", "isCancelled", "isTerminated")
        summary = {key: described[key] for key in (*keys, *more) if key in described}
        container = {key: job.outcome[key] for key in ("exitCode", "reason") if key in job.outcome}
        return {**summary, "container": container} if container else summary

    def _terminate_job(self, request: Answer) -> Answer:
        job, reason = self._ending(request)
        self.engine.terminate(job, reason)
        return {}

    def _cancel_job(self, request: Answer) -> Answer:
        job, reason = self._ending(request)
        self.engine.cancel(job, reason)
        return {}

    def _ending(self, request: Answer) -> tuple[Job, str]:
        reason = request.get("reason") or ""
        _need(bool(reason), "reason must be given")
        _need(len(reason) <= 1024, "reason exceeds 1024 characters")
        job = self.engine.find(request.get("jobId") or "")
        _need(job is not None, f"Job {request.get('jobId')} does not exist")
        assert job is not None
        return job, reason

    def _get_job_queue_snapshot(self, request: Answer) -> Answer:
        queue = self._queue(request.get("jobQueue"))
        waiting = [job for job in self.engine._waiting.get(queue["jobQueueArn"], ()) if job.state == "RUNNABLE"]
        front = [
            {"jobArn": f"{self.engine.arn}:job/{job.id}", "earliestTimeAtPosition": job.created}
            for job in waiting[:100]
        ]
        return {"frontOfQueue": {"jobs": front, "lastUpdatedAt": int(time.time() * 1000)}}

    # ------------------------------------------------------------------------------------------- compute environments

    def create_compute_environment(self, request: Answer) -> Answer:
        """CreateComputeEnvironment; it is valid at once."""
        name = _named(request, "computeEnvironmentName")
        arn = f"{self.engine.arn}:compute-environment/{name}"
        _need(arn not in self.engine.compute, f"Object already exists: {name}")
        # CloudFormation hands on what CDK writes, and that is in lower case.
        kind = str(request.get("type", "")).upper()
        _need(kind in ("MANAGED", "UNMANAGED"), f"type must be MANAGED or UNMANAGED, not {request.get('type')!r}")
        resources = request.get("computeResources") or {}
        _need(kind == "UNMANAGED" or bool(resources), "computeResources must be given")
        if resources:
            kinds = ("EC2", "SPOT", "FARGATE", "FARGATE_SPOT")
            _need(str(resources.get("type", "")).upper() in kinds, f"computeResources.type must be one of {kinds}")
            _need("maxvCpus" in resources, "maxvCpus must be given")
        self.engine.compute[arn] = {
            "computeEnvironmentName": name,
            "computeEnvironmentArn": arn,
            "ecsClusterArn": f"{self.engine.arn.replace(':batch:', ':ecs:')}:cluster/{name}",
            "type": kind,
            "state": str(request.get("state") or "ENABLED").upper(),
            "status": "VALID",
            "statusReason": "ComputeEnvironment Healthy",
            "computeResources": resources,
            "serviceRole": request.get("serviceRole") or self._service_role(),
            "updatePolicy": request.get("updatePolicy") or {},
            "containerOrchestrationType": "ECS",
            "tags": request.get("tags") or {},
        }
        return {"computeEnvironmentName": name, "computeEnvironmentArn": arn}

    def _service_role(self) -> str:
        account = self.engine.arn.rpartition(":")[2]
        return f"arn:aws:iam::{account}:role/aws-service-role/batch.amazonaws.com/AWSServiceRoleForBatch"

    def update_compute_environment(self, request: Answer) -> Answer:
        """UpdateComputeEnvironment, in place whatever it is."""
        compute = self._compute(request.get("computeEnvironment"))
        if request.get("state"):
            compute["state"] = request["state"].upper()
        compute["computeResources"] = {**compute["computeResources"], **(request.get("computeResources") or {})}
        for key in ("serviceRole", "updatePolicy"):
            if request.get(key):
                compute[key] = request[key]
        self.engine.set({})
        return {key: compute[key] for key in ("computeEnvironmentName", "computeEnvironmentArn")}

    def _describe_compute_environments(self, request: Answer) -> Answer:
        return _described(self.engine.compute, request, "computeEnvironments", "compute-environment")

    def delete_compute_environment(self, request: Answer) -> Answer:
        """DeleteComputeEnvironment, which must be disabled and in no queue."""
        compute = self._compute(request.get("computeEnvironment"))
        arn = compute["computeEnvironmentArn"]
        _need(compute["state"] == "DISABLED", "Cannot delete, compute environment is not disabled")
        used = any(
            each["computeEnvironment"] == arn
            for queue in self.engine.queues.values()
            for each in queue["computeEnvironmentOrder"]
        )
        _need(not used, "Cannot delete, found existing JobQueue relationship")
        del self.engine.compute[arn]
        return {}

    def _compute(self, wanted: str | None) -> dict[str, Any]:
        return _found(self.engine.compute, wanted, f"{self.engine.arn}:compute-environment/")

    # --------------------------------------------------------------------------------------------------------- queues

    def create_job_queue(self, request: Answer) -> Answer:
        """CreateJobQueue; it is valid at once."""
        name = _named(request, "jobQueueName")
        arn = f"{self.engine.arn}:job-queue/{name}"
        _need(arn not in self.engine.queues, f"Object already exists: {name}")
        _need("priority" in request, "priority must be given")
        policy = request.get("schedulingPolicyArn")
        _need(not policy or policy in self.engine.policies, f"There is no scheduling policy {policy}")
        self.engine.queues[arn] = {
            "jobQueueName": name,
            "jobQueueArn": arn,
            "state": str(request.get("state") or "ENABLED").upper(),
            "status": "VALID",
            "statusReason": "JobQueue Healthy",
            "priority": int(request["priority"]),
            "computeEnvironmentOrder": self._order(request.get("computeEnvironmentOrder")),
            "jobStateTimeLimitActions": request.get("jobStateTimeLimitActions") or [],
            "tags": request.get("tags") or {},
            **({"schedulingPolicyArn": policy} if policy else {}),
        }
        return {"jobQueueName": name, "jobQueueArn": arn}

    def _order(self, entries: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        _need(bool(entries) and len(entries or ()) <= 3, "computeEnvironmentOrder must have 1 to 3 entries")
        return [
            {
                "order": int(each["order"]),
                "computeEnvironment": self._compute(each["computeEnvironment"])["computeEnvironmentArn"],
            }
            for each in entries or ()
        ]

    def update_job_queue(self, request: Answer) -> Answer:
        """UpdateJobQueue; a policy may be exchanged, not added or taken away."""
        queue = self._queue(request.get("jobQueue"))
        policy = request.get("schedulingPolicyArn")
        _need(not policy or bool(queue.get("schedulingPolicyArn")), "a queue cannot become fair-share")
        changes: dict[str, Any] = {"schedulingPolicyArn": policy} if policy else {}
        if request.get("state"):
            changes["state"] = request["state"].upper()
        if request.get("priority") is not None:
            changes["priority"] = int(request["priority"])
        if request.get("computeEnvironmentOrder"):
            changes["computeEnvironmentOrder"] = self._order(request["computeEnvironmentOrder"])
        if request.get("jobStateTimeLimitActions") is not None:
            changes["jobStateTimeLimitActions"] = request["jobStateTimeLimitActions"]
        queue.update(changes)
        self.engine.set({})
        return {key: queue[key] for key in ("jobQueueName", "jobQueueArn")}

    def _describe_job_queues(self, request: Answer) -> Answer:
        return _described(self.engine.queues, request, "jobQueues", "job-queue")

    def delete_job_queue(self, request: Answer) -> Answer:
        """DeleteJobQueue, which must be disabled; its jobs are terminated."""
        queue = self._queue(request.get("jobQueue"))
        _need(queue["state"] == "DISABLED", "Cannot delete, job queue is not disabled")
        arn = queue["jobQueueArn"]
        for job in [job for job in self.engine.jobs.values() if job.spec.queue == arn]:
            self.engine.terminate(job, "Job queue deleted")
        del self.engine.queues[arn]
        return {}

    def _queue(self, wanted: str | None) -> dict[str, Any]:
        return _found(self.engine.queues, wanted, f"{self.engine.arn}:job-queue/")

    # ------------------------------------------------------------------------------------------------------- policies

    def create_scheduling_policy(self, request: Answer) -> Answer:
        """CreateSchedulingPolicy; it is kept and followed by nobody."""
        name = _named(request, "name")
        arn = f"{self.engine.arn}:scheduling-policy/{name}"
        _need(arn not in self.engine.policies, f"Object already exists: {name}")
        policy = request.get("fairsharePolicy") or {}
        self.engine.policies[arn] = {
            "name": name,
            "arn": arn,
            "fairsharePolicy": policy,
            "tags": request.get("tags") or {},
        }
        return {"name": name, "arn": arn}

    def update_scheduling_policy(self, request: Answer) -> Answer:
        """UpdateSchedulingPolicy."""
        policy = _found(self.engine.policies, request.get("arn"), "")
        policy["fairsharePolicy"] = request.get("fairsharePolicy") or {}
        return {}

    def _describe_scheduling_policies(self, request: Answer) -> Answer:
        wanted = request.get("arns") or []
        return {"schedulingPolicies": [self.engine.policies[arn] for arn in wanted if arn in self.engine.policies]}

    def _list_scheduling_policies(self, request: Answer) -> Answer:
        return {"schedulingPolicies": [{"arn": arn} for arn in self.engine.policies]}

    def delete_scheduling_policy(self, request: Answer) -> Answer:
        """DeleteSchedulingPolicy, which no queue may have."""
        arn = _found(self.engine.policies, request.get("arn"), "")["arn"]
        used = any(queue.get("schedulingPolicyArn") == arn for queue in self.engine.queues.values())
        _need(not used, "Cannot delete, found existing JobQueue relationship")
        del self.engine.policies[arn]
        return {}

    # ---------------------------------------------------------------------------------------------------- definitions

    def register_job_definition(self, request: Answer) -> Answer:
        """RegisterJobDefinition: the next revision of its name."""
        name = _named(request, "jobDefinitionName")
        _need(len(json.dumps(request)) <= _DEFINITION, "Job definition exceeds the limit of 24 KiB")
        _need(
            str(request.get("type", "")).lower() == "container",
            "this engine has job definitions of type container only",
        )
        container = request.get("containerProperties") or {}
        _need(bool(container.get("image")), "containerProperties.image must be given")
        _check_environment(container.get("environment"))
        requirements = _requirements(container, {})
        for kind in ("VCPU", "MEMORY"):
            _need(bool(_required(requirements, kind, "")), f"resourceRequirements must have {kind}")
        _check_retries(request.get("retryStrategy") or {})
        _check_timeout(request.get("timeout") or {})
        revisions = self.engine.definitions.setdefault(name, [])
        revision = len(revisions) + 1
        arn = f"{self.engine.arn}:job-definition/{name}:{revision}"
        kept = (
            "parameters",
            "retryStrategy",
            "timeout",
            "platformCapabilities",
            "propagateTags",
            "schedulingPriority",
            "tags",
        )
        revisions.append(
            {
                "jobDefinitionName": name,
                "jobDefinitionArn": arn,
                "revision": revision,
                "status": "ACTIVE",
                "type": "container",
                "containerProperties": {**container, "resourceRequirements": requirements},
                "containerOrchestrationType": "ECS",
                **{key: request[key] for key in kept if request.get(key) is not None},
            }
        )
        return {"jobDefinitionName": name, "jobDefinitionArn": arn, "revision": revision}

    def _describe_job_definitions(self, request: Answer) -> Answer:
        every = [each for revisions in self.engine.definitions.values() for each in reversed(revisions)]
        if name := request.get("jobDefinitionName"):
            every = [each for each in every if name in (each["jobDefinitionName"], each["jobDefinitionArn"])]
        if status := request.get("status"):
            every = [each for each in every if each["status"] == status]
        if wanted := request.get("jobDefinitions"):
            every = [
                each
                for each in every
                if {f"{each['jobDefinitionName']}:{each['revision']}", each["jobDefinitionArn"]} & set(wanted)
            ]
        most = int(request.get("maxResults") or 100)
        every, token = _page(every, request, most, key=lambda each: each["jobDefinitionArn"])
        return {"jobDefinitions": every, **({"nextToken": token} if token else {})}

    def deregister_job_definition(self, request: Answer) -> Answer:
        """DeregisterJobDefinition: no more jobs of this revision."""
        self._definition(request.get("jobDefinition"), need_revision=True)["status"] = "INACTIVE"
        return {}

    def _definition(self, wanted: str | None, need_revision: bool = False) -> dict[str, Any]:
        name, colon, revision = (wanted or "").removeprefix(f"{self.engine.arn}:job-definition/").partition(":")
        _need(bool(colon) or not need_revision, "a revision must be given")
        active = [each for each in self.engine.definitions.get(name, []) if each["status"] == "ACTIVE"]
        found = [each for each in active if not colon or str(each["revision"]) == revision]
        _need(bool(found), f"Job definition {wanted} does not exist or is not active")
        return found[-1]


def _check_retries(strategy: Mapping[str, Any]) -> None:
    rules = strategy.get("evaluateOnExit") or []
    if "attempts" in strategy:
        _need(1 <= int(strategy["attempts"]) <= 10, "attempts must be 1 to 10")
    _need(not rules or "attempts" in strategy, "evaluateOnExit needs attempts")
    _need(len(rules) <= 5, "evaluateOnExit can have 5 conditions at most")
    for rule in rules:
        _need(str(rule.get("action", "")).upper() in ("RETRY", "EXIT"), "action must be RETRY or EXIT")
        conditions = {
            key: rule[key] for key in ("onExitCode", "onReason", "onStatusReason") if rule.get(key) is not None
        }
        _need(bool(conditions), "a rule of evaluateOnExit needs a condition")
        for key, pattern in conditions.items():
            allowed = _CODES if key == "onExitCode" else _REASONS
            _need(bool(allowed.fullmatch(pattern)) and len(pattern) <= 512, f"{key} is not valid: {pattern!r}")


def _check_timeout(timeout: Mapping[str, Any]) -> None:
    if timeout:
        _need(int(timeout.get("attemptDurationSeconds", 0)) >= 60, "attemptDurationSeconds must be at least 60")


def _check_environment(entries: Sequence[Mapping[str, str]] | None) -> None:
    for each in entries or ():
        _need(bool(each.get("name")), "an environment variable has no name")
        _need(not each["name"].startswith("AWS_BATCH"), f"{each['name']}: names that start with AWS_BATCH are reserved")


def _requirements(container: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[dict[str, str]]:
    """Merge requirements by type; the older ``vcpus`` and ``memory`` are the same thing."""
    merged: dict[str, str] = {}
    for source in (container, overrides):
        for kind, key in (("VCPU", "vcpus"), ("MEMORY", "memory")):
            if source.get(key):
                merged[kind] = str(source[key])
        for each in source.get("resourceRequirements") or []:
            merged[each["type"]] = str(each["value"])
    return [{"type": kind, "value": value} for kind, value in merged.items()]


def _required(requirements: Sequence[Mapping[str, str]], kind: str, default: str) -> str:
    return next((each["value"] for each in requirements if each["type"] == kind), default)


def _substituted(command: Sequence[str], parameters: Mapping[str, str]) -> list[str]:
    """Put parameters where a whole word of the command is ``Ref::name``; without one, the word stays."""
    return [parameters.get(word[5:], word) if word.startswith("Ref::") else word for word in command]


def _glob(patterns: Sequence[str], value: str, fold: Callable[[str], str] = str) -> bool:
    value = fold(value)
    return any(value.startswith(fold(p)[:-1]) if p.endswith("*") else value == fold(p) for p in patterns)


def _named(request: Mapping[str, Any], key: str) -> str:
    name = request.get(key) or ""
    _need(bool(_NAME.fullmatch(name)), f"{key} is not valid: {name!r}")
    return str(name)


def _found(objects: Mapping[str, dict[str, Any]], wanted: str | None, prefix: str) -> dict[str, Any]:
    found = objects.get(wanted or "") or objects.get(f"{prefix}{wanted}")
    _need(found is not None, f"Object does not exist: {wanted}")
    assert found is not None
    return found


def _described(objects: Mapping[str, dict[str, Any]], request: Answer, key: str, kind: str) -> Answer:
    wanted = request.get(key)
    every = list(objects.values())
    if wanted:
        every = [each for arn, each in objects.items() if arn in wanted or arn.partition(f":{kind}/")[2] in wanted]
    every, token = _page(
        every, request, int(request.get("maxResults") or 100), key=lambda each: next(iter(each.values()))
    )
    return {key: every, **({"nextToken": token} if token else {})}


def _page(items: list[Any], request: Answer, most: int, key: Callable[[Any], str]) -> tuple[list[Any], str]:
    """Return a page and the token of the next.

    A token names the last item that was seen.  If that has gone by then, as a job does that changed its state, the
    next page begins where it was.
    """
    start = 0
    if token := request.get("nextToken"):
        position, _, name = token.partition("-")
        _need(position.isdigit(), "nextToken is not valid")
        names = [hashlib.sha256(key(item).encode()).hexdigest()[:16] for item in items]
        start = names.index(name) + 1 if name in names else max(int(position) - 1, 0)
    page = items[start : start + most]
    end = start + len(page)
    if end >= len(items) or not page:
        return page, ""
    return page, f"{end}-{hashlib.sha256(key(page[-1]).encode()).hexdigest()[:16]}"
