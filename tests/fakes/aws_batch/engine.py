"""What AWS Batch does with jobs, done with processes.

Not here: instances that take minutes to come, the Spot market, VPC, IAM; fair share is accepted and not scheduled (each
queue is first in, first out); multi-node, EKS and Fargate's own rules; secrets, volumes and users of a container;
dependencies of the kinds ``N_TO_N`` and ``SEQUENTIAL``.  ministack, which carries the events, tries a target once and
has no dead letters of rules; a repeated event has an id of its own.  All is in memory, for one account in one region.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tests.fakes.aws_batch import machine
from tests.fakes.aws_batch.events import Events

STATES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
ENDED = ("SUCCEEDED", "FAILED")
EXITED = "Essential container in task exited"
NOT_STARTED = "Task failed to start"
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
TIMED_OUT = "Job attempt duration exceeded timeout"
DEPENDENCY_FAILED = "Dependent Job failed"
CHILD_FAILED = "Array Child Job failed"
#: A server that is killed takes its jobs along.
_WITH_US = [found, "--pdeathsig", "KILL"] if (found := shutil.which("setpriv")) else []
TOO_LARGE = "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"


@dataclass(frozen=True)
class Switches:
    """What a test may set.

    Attributes
    ----------
    second : float
        How long a second of a timeout is, in seconds: 0.01 makes the shortest timeout, 60, last 0.6.
    memory_unit : int
        How much a MiB of a job definition is, in bytes.
    processes : int
        How many jobs run at once, whatever the compute environments could hold.
    vcpus, memory : int
        What all jobs together may have, memory in MiB of job definitions; 0 is no limit.
    paused : bool
        Nothing starts.
    stop_grace : float
        Seconds between SIGTERM and SIGKILL (AWS: 30).
    poll : float
        Seconds between two looks at memory and clocks.
    runner : str
        ``path``: a command of the folders in ``path``; ``docker``: the image.
    path : str
        Where commands are looked for, before the usual places.
    environment : mapping
        More for every job, below what its definition says.
    docker_host : str
        For the runner ``docker``.
    throttle : float
        Share of the calls about jobs that are answered with 429; 0.5 is every other call, not a chance.
    submit_rate : int
        SubmitJob calls per second beyond which they are answered with 429 (AWS: 50); 0 is no limit.
    lose_replies : float
        Share of the SubmitJob calls that are carried out and answered with 500.
    list_delay : float
        Seconds before ListJobs knows a new job.
    star_matches_absent : bool
        Whether the pattern ``*`` of a retry rule matches a reason that is not there.  What AWS does is not known.
    child_events : bool
        Whether children of an array have events of their own.
    event_states : tuple of str
        Of which states there are events.
    duplicate_events : bool
        Every event comes twice.
    delay_events : float
        Each comes up to so many seconds late, which puts them out of order.
    drop_events : float
        Share of the events that never come.
    seed : int
        Of the chances above.
    past : float
        How long ago all jobs were submitted, started and stopped, besides, in seconds.
    """

    second: float = 1.0
    memory_unit: int = 2**20
    processes: int = 4
    vcpus: int = 0
    memory: int = 0
    paused: bool = False
    stop_grace: float = 2.0
    poll: float = 0.05
    runner: str = "path"
    path: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    docker_host: str = ""
    throttle: float = 0.0
    submit_rate: int = 0
    lose_replies: float = 0.0
    list_delay: float = 0.0
    star_matches_absent: bool = False
    child_events: bool = True
    event_states: Sequence[str] = STATES[1:]
    duplicate_events: bool = False
    delay_events: float = 0.0
    drop_events: float = 0.0
    seed: int = 0
    past: float = 0.0


@dataclass(frozen=True)
class Spec:
    """What a job and its children share; ``timeout`` in seconds (0: none), ``memory`` in MiB."""

    name: str
    queue: str
    definition: str
    parameters: Mapping[str, str]
    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    requirements: Sequence[Mapping[str, str]]
    vcpus: float
    memory: int
    attempts: int
    rules: Sequence[Mapping[str, str]]
    timeout: int
    depends_on: Sequence[str] = ()
    size: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)  # only described
    container: Mapping[str, Any] = field(default_factory=dict)  # only described
    log_group: str = "/aws/batch/job"
    log_prefix: str = ""


@dataclass(eq=False, slots=True)
class Job:
    """A job, the parent of an array, or a child in one."""

    id: str
    spec: Spec
    created: int
    parent: Job | None = None
    index: int = 0
    state: str = "SUBMITTED"
    reason: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    started: int = 0
    stopped: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)  # of the last attempt: exitCode, reason, logStreamName
    runnable: float = 0.0
    run: Run | None = None
    children: list[Job] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    waits_for: set[str] = field(default_factory=set)
    cancelled: bool = False
    terminated: bool = False


@dataclass(eq=False)
class Run:
    """One attempt while it lasts; ``stop`` is why it is being ended: ``timeout``, ``terminate`` or ``reclaim``."""

    job: Job
    number: int
    compute: str
    folder: Path
    stream: str
    mark: str
    began: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    stop: str = ""
    stop_reason: str = ""
    kill_at: float = 0.0
    killed: bool = False
    out_of_memory: bool = False
    seen: set[int] = field(default_factory=set)
    read: int = 0
    logging: threading.Lock = field(default_factory=threading.Lock)

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "log"


@dataclass(frozen=True)
class Launch:
    """What is to be started; ``memory`` in bytes, 0 for no limit."""

    name: str
    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    vcpus: float
    memory: int


class NotFoundError(Exception):
    """There is no such command or image; the text is the reason that AWS would give."""


def resolve(launch: Launch, switches: Switches) -> tuple[list[str], dict[str, str]]:
    """Turn image and command into arguments and environment of a process of this machine.

    Raises
    ------
    NotFoundError
    """
    path = os.pathsep.join([*([switches.path] if switches.path else []), os.defpath])
    if switches.runner == "docker":
        # It is removed when it has been asked how it ended.
        arguments = ["docker", "run", "--pull", "never", "--name", launch.name, "--network", "host"]
        arguments += ["--cpus", str(launch.vcpus)]
        if launch.memory:
            arguments += ["--memory", str(launch.memory), "--memory-swap", str(launch.memory)]
        for name in launch.environment:
            arguments += ["--env", name]  # the value comes from the environment of docker itself
        return [*arguments, launch.image, *launch.command], {**launch.environment, **_docker(switches)}
    path = launch.environment.get("PATH", path)
    program = shutil.which(launch.command[0], path=path) if launch.command else None
    if program is None:
        raise NotFoundError(
            "CannotStartContainerError: Error response from daemon: failed to create task for container: exec: "
            f'"{launch.command[0] if launch.command else ""}": executable file not found in $PATH: unknown'
        )
    return [*_WITH_US, program, *launch.command[1:]], {"PATH": path, **launch.environment}


def _docker(switches: Switches) -> dict[str, str]:
    host = {"DOCKER_HOST": switches.docker_host} if switches.docker_host else {}
    return {"PATH": os.defpath + os.pathsep + "/usr/local/bin", **host}


def _not_started(said: str) -> None:
    """Turn what ``docker run`` says of a container that did not start into what AWS would say."""
    for hint, kind in (("No such image", "CannotPullContainerError"), ("OCI runtime", "CannotStartContainerError")):
        if hint in said:
            raise NotFoundError(f"{kind}: {said}")


def matches(pattern: str | None, value: str | None, star_matches_absent: bool = False) -> bool:
    """Tell whether a condition of a retry rule holds; without a pattern it does.

    Parameters
    ----------
    pattern : str or None
        May end with ``*``, and knows no other wildcard.
    value : str or None
        None or empty if it is not known.
    star_matches_absent : bool
    """
    if pattern is None:
        return True
    if not value:
        return pattern == "*" and star_matches_absent
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


def retries(rules: Sequence[Mapping[str, str]], attempt: Mapping[str, Any], star_matches_absent: bool = False) -> bool:
    """Tell whether the rules want another attempt; where none matches, they do."""
    container = attempt.get("container", {})
    code = container.get("exitCode")
    for rule in rules:
        if (
            matches(rule.get("onExitCode"), None if code is None else str(code), star_matches_absent)
            and matches(rule.get("onReason"), container.get("reason"), star_matches_absent)
            and matches(rule.get("onStatusReason"), attempt.get("statusReason"), star_matches_absent)
        ):
            return rule["action"].upper() == "RETRY"
    return True


def now() -> int:
    """Return the time as Batch writes it, in milliseconds."""
    return int(time.time() * 1000)


class Engine:
    """Batch itself.  All state is behind one lock, which is held only for moments.

    Parameters
    ----------
    deliver : callable
        Takes an event's detail (JSON) and resources.
    log : callable
        Takes group, stream and lines of a job's output.
    surroundings : callable
        Returns the environment that every job has: where AWS is, and who one is there.
    account, region : str
    """

    def __init__(
        self,
        deliver: Callable[[str, list[str]], None],
        log: Callable[[str, str, list[str]], None],
        surroundings: Callable[[], Mapping[str, str]],
        account: str = "000000000000",
        region: str = "us-east-1",
    ) -> None:
        self.lock = threading.RLock()
        self.switches = Switches()
        self.events = Events(deliver)
        self.arn = f"arn:aws:batch:{region}:{account}"
        self._log = log
        self._surroundings = surroundings
        self._folder = Path(tempfile.mkdtemp(prefix="batch-"))
        self._wake = threading.Event()
        self._clear()
        threading.Thread(target=self._watch, name="batch-watch", daemon=True).start()

    def _clear(self) -> None:
        self.generation = getattr(self, "generation", 0) + 1
        self.compute: dict[str, dict[str, Any]] = {}
        self.queues: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.definitions: dict[str, list[dict[str, Any]]] = {}
        self.jobs: dict[str, Job] = {}
        self.listing: dict[tuple[str, str], dict[str, Job]] = {}
        self.outcomes: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.throttled: Counter[str] = Counter()
        self.submissions: list[float] = []
        self.most = 0
        self._waiting: dict[str, deque[Job]] = {}
        self._dependants: dict[str, list[Job]] = {}
        self._running: dict[str, Run] = {}
        self._used: defaultdict[str, float] = defaultdict(float)  # vCPUs of each compute environment

    # ------------------------------------------------------------------------------------------- steering, for tests

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change switches; TypeError if there is no such switch."""
        with self.lock:
            self.switches = replace(self.switches, **changes)
            if "seed" in changes:
                self.events.reset(self.switches.seed)
            self._fill()

    def reset(self) -> None:
        """End all jobs, and forget them, their definitions and the switches."""
        with self.lock:
            runs = list(self._running.values())
            self._clear()
            self.switches = Switches()
            self.events.reset()
        for run in runs:
            self._kill(run)

    def reclaim(self, job_id: str, instance: str = "i-0123456789abcdef0", notice: float = 0.0) -> bool:
        """Take away the instance a job runs on; False if it does not run.

        Parameters
        ----------
        job_id : str
        instance : str
        notice : float
            Seconds between SIGTERM and the end (Spot: 120).
        """
        return self._stop(self.find(job_id), "reclaim", f"Host EC2 (instance {instance}) terminated.", notice)

    def forget(self, job_id: str) -> bool:
        """Know an ended job no more, as Batch does after about a week."""
        with self.lock:
            job = self.jobs.get(job_id)
            if job is None or job.state not in ENDED:
                return False
            del self.jobs[job_id]
            self.listing[job.spec.queue, job.state].pop(job_id, None)
            return True

    def stats(self) -> dict[str, Any]:
        """Return what was asked of it and what it did."""
        with self.lock:
            names: dict[str, list[str]] = {}
            states: Counter[str] = Counter()
            for job in self.jobs.values():
                names.setdefault(job.spec.name, []).append(job.id)
                states.update(job.counts if job.children is not None else [job.state])
            first, fastest = 0, 0
            for last, at in enumerate(self.submissions):
                while at - self.submissions[first] >= 1.0:
                    first += 1
                fastest = max(fastest, last - first + 1)
            return {
                "calls": dict(self.calls),
                "throttled": dict(self.throttled),
                "jobs": names,
                "states": {state: states[state] for state in STATES},
                "running": len(self._running),
                "most_running": self.most,
                "most_submissions_per_second": fastest,
                "events": dict(self.events.counts),
                "events_pending": self.events.pending,
            }

    # ----------------------------------------------------------------------------------------------------------- jobs

    def find(self, job_id: str) -> Job | None:
        """Return a job; a child's id is its parent's, a colon and its index."""
        with self.lock:
            parent, colon, index = job_id.partition(":")
            job = self.jobs.get(parent)
            if not colon or job is None:
                return job
            if job.children is None or not index.isdigit() or int(index) >= len(job.children):
                return None
            return job.children[int(index)]

    def submit(self, spec: Spec) -> Job:
        """Take a job that has been found valid."""
        with self.lock:
            job = Job(str(uuid.uuid4()), spec, now())
            self.jobs[job.id] = job
            self.submissions.append(time.monotonic())
            self.listing.setdefault((spec.queue, job.state), {})[job.id] = job
            if spec.size:
                job.children = [Job(f"{job.id}:{n}", spec, job.created, job, n) for n in range(spec.size)]
                job.counts["SUBMITTED"] = spec.size
            failed = False
            for dependency in spec.depends_on:
                other = self.jobs[dependency]
                failed = failed or other.state == "FAILED"
                if other.state not in ENDED:
                    job.waits_for.add(other.id)
                    self._dependants.setdefault(other.id, []).append(job)
            if failed:
                self._fail(job, DEPENDENCY_FAILED)
            elif job.waits_for:
                self._move(job, "PENDING")
            else:
                self._release(job)
            self._fill()
            return job

    def cancel(self, job: Job, reason: str) -> None:
        """Do not start a job; one that has started is left alone."""
        with self.lock:
            for each in self._leaves(job):
                if each.state in ("SUBMITTED", "PENDING", "RUNNABLE"):
                    each.cancelled = True
                    self._fail(each, reason)
            self._fill()

    def terminate(self, job: Job, reason: str) -> None:
        """End a job, started or not."""
        with self.lock:
            job.terminated = job.state not in ENDED
            for each in self._leaves(job):
                if each.state in ENDED:
                    continue
                each.terminated = True
                if each.state in ("STARTING", "RUNNING"):
                    self._stop(each, "terminate", reason, self.switches.stop_grace)
                else:
                    self._fail(each, reason)
            self._fill()

    @staticmethod
    def _leaves(job: Job) -> list[Job]:
        return [job] if job.children is None else list(job.children)

    def _release(self, job: Job) -> None:
        line = self._waiting.setdefault(job.spec.queue, deque())
        for each in self._leaves(job):
            if each.state not in ENDED:
                self._move(each, "RUNNABLE")
                line.append(each)

    def _fail(self, job: Job, reason: str) -> None:
        for each in self._leaves(job):
            if each.state not in ENDED:
                each.stopped = now()
                self._move(each, "FAILED", reason)

    def _move(self, job: Job, state: str, reason: str = "") -> None:
        """Put a job in a state, and its parent where it then belongs; tell it to the world."""
        before, job.state, job.reason = job.state, state, reason
        if state == "RUNNABLE":
            job.runnable = time.monotonic()
        parent = job.parent
        if parent is None:
            self.listing[job.spec.queue, before].pop(job.id, None)
            self.listing.setdefault((job.spec.queue, state), {})[job.id] = job
        else:
            parent.counts[before] -= 1
            parent.counts[state] += 1
        self._tell(job)
        if parent is not None:
            ended = parent.counts["SUCCEEDED"] + parent.counts["FAILED"]
            if ended == parent.spec.size:
                parent.stopped = now()
                failed = parent.counts["FAILED"]
                self._move(parent, "FAILED" if failed else "SUCCEEDED", CHILD_FAILED if failed else "")
            elif state == "RUNNABLE" and parent.state == "SUBMITTED":
                self._move(parent, "PENDING")
        elif state in ENDED:
            for other in self._dependants.pop(job.id, []):
                other.waits_for.discard(job.id)
                if state == "FAILED":
                    self._fail(other, DEPENDENCY_FAILED)
                elif not other.waits_for and other.state == "PENDING":
                    self._release(other)

    def _tell(self, job: Job) -> None:
        if job.state in self.switches.event_states and (job.parent is None or self.switches.child_events):
            arn = f"{self.arn}:job/{job.id}"
            detail = {**self.describe(job), "tags": {"resourceArn": arn, **job.spec.more.get("tags", {})}}
            self.events.put(json.dumps(detail), [arn], self.switches)

    def describe(self, job: Job) -> dict[str, Any]:
        """Return a job as DescribeJobs and events show it; what is not known is not there."""
        spec = job.spec
        container = {
            **spec.container,
            "image": spec.image,
            "command": spec.command,
            "environment": [{"name": name, "value": value} for name, value in spec.environment.items()],
            "resourceRequirements": spec.requirements,
            **job.outcome,
        }
        past = round(self.switches.past * 1000)
        described = {
            "jobArn": f"{self.arn}:job/{job.id}",
            "jobName": spec.name,
            "jobId": job.id,
            "jobQueue": spec.queue,
            "status": job.state,
            "attempts": list(job.attempts),
            "createdAt": job.created - past,
            "retryStrategy": {"attempts": spec.attempts, "evaluateOnExit": spec.rules},
            "dependsOn": [{"jobId": each} for each in spec.depends_on],
            "jobDefinition": spec.definition,
            "parameters": spec.parameters,
            "container": container,
            **spec.more,
            "isCancelled": job.cancelled,
            "isTerminated": job.terminated,
        }
        if job.reason:
            described["statusReason"] = job.reason
        for name, at in (("startedAt", job.started), ("stoppedAt", job.stopped)):
            if at:
                described[name] = at - past
        if spec.timeout:
            described["timeout"] = {"attemptDurationSeconds": spec.timeout}
        if job.children is not None:
            summary = {state: job.counts[state] for state in STATES}
            described["arrayProperties"] = {"size": spec.size, "statusSummary": summary}
        elif job.parent is not None:
            described["arrayProperties"] = {"index": job.index}
        return described

    # ----------------------------------------------------------------------------------------------------- scheduling

    def _computes(self, queue: str) -> list[dict[str, Any]]:
        order = sorted(self.queues[queue]["computeEnvironmentOrder"], key=lambda each: int(each["order"]))
        return [self.compute[each["computeEnvironment"]] for each in order]

    def _place(self, job: Job) -> str | None:
        """Return the compute environment that has room for a job now."""
        switches, spec = self.switches, job.spec
        if len(self._running) >= switches.processes:
            return None
        specs = [run.job.spec for run in self._running.values()] if switches.vcpus or switches.memory else []
        if switches.vcpus and sum(each.vcpus for each in specs) + spec.vcpus > switches.vcpus:
            return None
        if switches.memory and sum(each.memory for each in specs) + spec.memory > switches.memory:
            return None
        largest = 0
        for compute in self._computes(spec.queue):
            if compute["state"] != "ENABLED":
                continue
            most = int(compute["computeResources"].get("maxvCpus", 256))
            largest = max(largest, most)
            arn = compute["computeEnvironmentArn"]
            if self._used[arn] + spec.vcpus <= most:
                return str(arn)
        if spec.vcpus > largest:
            job.reason = TOO_LARGE
            self._wake.set()  # the queue may have a limit to that
        return None

    def _fill(self) -> None:
        """Start what can be started; the first of a queue that finds no room blocks those behind it."""
        for queue in sorted(self._waiting, key=lambda arn: -int(self.queues.get(arn, {}).get("priority", 0))):
            line = self._waiting[queue]
            while line and not self.switches.paused:
                job = line[0]
                if job.state != "RUNNABLE":
                    line.popleft()
                    continue
                place = self._place(job)
                if place is None:
                    break
                line.popleft()
                self._start(job, place)

    def _start(self, job: Job, place: str) -> None:
        spec = job.spec
        task = uuid.uuid4().hex
        prefix = spec.log_prefix or spec.definition.rpartition("/")[2].partition(":")[0]
        run = Run(
            job,
            len(job.attempts) + 1,
            place,
            self._folder / task,
            f"{prefix}/default/{task}",
            f"FAKE_BATCH_TASK={task}",
        )
        job.run = run
        job.outcome = {}
        self._running[job.id] = run
        self._used[place] += spec.vcpus
        self.most = max(self.most, len(self._running))
        self._move(job, "STARTING")
        threading.Thread(target=self._execute, args=(run, self.generation), name=f"batch-{job.id}", daemon=True).start()
        self._wake.set()

    # -------------------------------------------------------------------------------------------------------- one run

    def _execute(self, run: Run, generation: int) -> None:
        job = run.job
        with self.lock:
            canned = next(self._canned(run), None)
            switches = self.switches
        code: int | None = None
        reason = ""
        status_reason = EXITED
        try:
            if canned is not None:
                code, reason = canned.get("exitCode"), canned.get("reason", "")
                status_reason = canned.get("statusReason", EXITED if code is not None else NOT_STARTED)
            else:
                code = self._process(run, switches, generation)
        except NotFoundError as error:
            reason, status_reason = str(error), NOT_STARTED
        except OSError as error:
            reason, status_reason = f"CannotStartContainerError: {error}", NOT_STARTED
        finally:
            if canned is None:
                shutil.rmtree(run.folder, ignore_errors=True)
        with self.lock:
            if self.generation != generation:
                return
            del self._running[job.id]
            self._used[run.compute] -= job.spec.vcpus
            self._finish(run, code, reason, status_reason)
            self._fill()

    def _canned(self, run: Run) -> Iterator[dict[str, Any]]:
        """Find the outcome that a test wants instead of a process."""
        job = run.job
        for outcome in self.outcomes:
            if (
                outcome.get("times", 1) > 0
                and fnmatch.fnmatchcase(job.spec.name, outcome.get("name", "*"))
                and outcome.get("index", job.index) == job.index
                and outcome.get("attempt", run.number) == run.number
            ):
                outcome["times"] = outcome.get("times", 1) - 1
                yield outcome

    def _process(self, run: Run, switches: Switches, generation: int) -> int:
        job, spec = run.job, run.job.spec
        run.folder.mkdir()
        folders = {} if switches.runner == "docker" else {"HOME": str(run.folder), "TMPDIR": str(run.folder)}
        environment = {
            **folders,
            "LANG": "C.UTF-8",
            **switches.environment,
            **self._surroundings(),
            **spec.environment,
            "AWS_BATCH_JOB_ID": job.id,
            "AWS_BATCH_JOB_ATTEMPT": str(run.number),
            "AWS_BATCH_JQ_NAME": spec.queue.rpartition("/")[2],
            "AWS_BATCH_CE_NAME": run.compute.rpartition("/")[2],
        }
        if job.parent is not None:
            environment["AWS_BATCH_JOB_ARRAY_INDEX"] = str(job.index)
            environment["AWS_BATCH_JOB_ARRAY_SIZE"] = str(spec.size)
        name, _, value = run.mark.partition("=")
        launch = Launch(
            f"caldp-batch-{run.stream.rpartition('/')[2]}",
            spec.image,
            spec.command,
            {**environment, name: value},
            spec.vcpus,
            spec.memory * switches.memory_unit,
        )
        arguments, variables = resolve(launch, switches)
        with self.lock:
            if run.stop:  # before it had begun
                return 128 + signal.SIGKILL
        try:
            with run.log.open("wb") as output:
                process = subprocess.Popen(
                    arguments,
                    cwd=run.folder,
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            with self.lock:
                run.process, run.began = process, time.monotonic()
                if self.generation != generation:
                    run.stop = "reset"
                    run.kill_at = run.began
                else:
                    job.started = now()
                    job.outcome = {"logStreamName": run.stream, **_task(self.arn, run)}
                    self._move(job, "RUNNING")
                if run.stop:
                    self._signal(run, signal.SIGTERM)
                self._wake.set()
            if run.stop == "reset":
                self._kill(run)
            process.wait()
            machine.clear(process.pid, run.mark)
            if switches.runner == "docker":
                asked = ["docker", "inspect", "--format", "{{.State.OOMKilled}}", launch.name]
                answer = subprocess.run(asked, env=_docker(switches), capture_output=True, check=False)
                run.out_of_memory = answer.stdout.strip() == b"true"
                if process.returncode in (125, 126, 127):
                    _not_started(run.log.read_text(errors="replace").strip())
            self._ship(run, last=True)
        finally:
            if switches.runner == "docker":
                subprocess.run(
                    ["docker", "rm", "--force", launch.name], env=_docker(switches), capture_output=True, check=False
                )
        code = process.returncode
        return code if code >= 0 else 128 - code

    def _finish(self, run: Run, code: int | None, reason: str, status_reason: str) -> None:
        job = run.job
        job.stopped = now()
        if run.stop == "timeout":
            # A process that had an answer to SIGTERM says itself how it ended.
            code, status_reason = 137 if code == 143 else code, run.stop_reason
        elif run.stop == "terminate":
            status_reason = run.stop_reason
        elif run.stop == "reclaim":
            code, status_reason = None, run.stop_reason
        if run.out_of_memory and run.stop != "reclaim":
            reason = OUT_OF_MEMORY
        outcome: dict[str, Any] = dict(job.outcome)
        if code is not None:
            outcome["exitCode"] = code
        if reason:
            outcome["reason"] = reason
        job.outcome, job.run = outcome, None
        attempt = {
            "container": {"networkInterfaces": [], **outcome},
            "stoppedAt": job.stopped,
            "statusReason": status_reason,
        }
        if job.started:
            attempt["startedAt"] = job.started
        job.attempts = [*job.attempts, attempt]
        if code == 0 and not run.stop:
            self._move(job, "SUCCEEDED", status_reason)
        elif (
            run.stop not in ("timeout", "terminate")
            and len(job.attempts) < job.spec.attempts
            and retries(job.spec.rules, attempt, self.switches.star_matches_absent)
        ):
            job.started = job.stopped = 0
            job.outcome = {}
            self._move(job, "RUNNABLE")
            self._waiting[job.spec.queue].append(job)
        else:
            self._move(job, "FAILED", status_reason)

    def _stop(self, job: Job | None, why: str, reason: str, grace: float) -> bool:
        """Begin to end a run; the first to want it says why."""
        with self.lock:
            run = job.run if job is not None else None
            if run is None or run.stop or (run.process is not None and run.process.poll() is not None):
                return False
            run.stop, run.stop_reason, run.kill_at = why, reason, time.monotonic() + grace
            if run.process is not None:
                self._signal(run, signal.SIGTERM if grace else signal.SIGKILL)
            self._wake.set()
            return True

    def _signal(self, run: Run, number: int) -> None:
        """Signal the first process, as the end of a task does, or all where it is SIGKILL."""
        if run.process is None or run.process.poll() is not None:
            return
        if self.switches.runner == "docker":
            name = f"caldp-batch-{run.stream.rpartition('/')[2]}"
            asked = ["docker", "kill", "--signal", str(int(number)), name]
            subprocess.run(asked, env=_docker(self.switches), capture_output=True, check=False)
        elif number == signal.SIGKILL:
            for process in machine.members(run.process.pid, run.mark, machine.table(), run.seen):
                machine.send(process.pid, number)
        else:
            machine.send(run.process.pid, number)

    def _kill(self, run: Run) -> None:
        for _ in range(100):
            process = run.process
            if process is None or process.poll() is not None:
                return
            self._signal(run, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)

    # ------------------------------------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        """Look after memory, clocks and logs of what runs."""
        shipped = 0.0
        while True:
            if not self._running and not self._limited():
                self._wake.wait()
            self._wake.clear()
            time.sleep(self.switches.poll)
            try:
                with self.lock:
                    runs = [run for run in self._running.values() if run.process is not None]
                    switches = self.switches
                    self._drop_stuck()
                processes = machine.table() if runs and switches.runner != "docker" else {}
                for run in runs:
                    self._check(run, processes, switches)
                if time.monotonic() - shipped > 0.3:
                    for run in runs:
                        self._ship(run)
                    shipped = time.monotonic()
            except Exception as error:  # noqa: BLE001 - the other jobs are still to be watched
                print(f"batch: watching: {error!r}", flush=True)

    def _check(self, run: Run, processes: dict[int, machine.Process], switches: Switches) -> None:
        if run.process is None or run.process.poll() is not None:
            return
        clock = time.monotonic()
        limit = run.job.spec.timeout * switches.second
        if limit and not run.stop and clock - run.began > limit:
            self._stop(run.job, "timeout", TIMED_OUT, switches.stop_grace)
        if run.stop and clock > run.kill_at and not run.killed:
            run.killed = True
            self._kill(run)
        if switches.runner == "docker":
            return
        family = machine.members(run.process.pid, run.mark, processes, run.seen)
        run.seen = {process.pid for process in family}
        allowed = run.job.spec.memory * switches.memory_unit
        if family and allowed and machine.memory(family, allowed) > allowed:
            # As the kernel: the largest, which need not be the first.
            run.out_of_memory = True
            machine.send(max(family, key=lambda process: process.rss).pid, signal.SIGKILL)

    def _limited(self) -> bool:
        """Tell whether a queue wants jobs dropped that wait too long."""
        with self.lock:
            return any(
                line and self.queues.get(queue, {}).get("jobStateTimeLimitActions")
                for queue, line in self._waiting.items()
            )

    def _drop_stuck(self) -> None:
        for queue, line in list(self._waiting.items()):
            if not line:
                continue
            job = line[0]
            for action in self.queues.get(queue, {}).get("jobStateTimeLimitActions") or []:
                waited = time.monotonic() - job.runnable
                if (
                    job.state == "RUNNABLE"
                    and job.reason
                    and action["reason"] == job.reason
                    and waited > int(action["maxTimeSeconds"]) * self.switches.second
                ):
                    job.cancelled = True
                    self._fail(job, job.reason)
                    self._fill()

    def _ship(self, run: Run, last: bool = False) -> None:
        """Hand on what a job has printed since, whole lines unless it was the last."""
        with run.logging:
            try:
                with run.log.open("rb") as stream:
                    stream.seek(run.read)
                    text = stream.read()
            except OSError:
                return
            if not last:
                text = text[: text.rfind(b"\n") + 1]
            if text:
                run.read += len(text)
                self._log(run.job.spec.log_group, run.stream, text.decode(errors="replace").splitlines())


def _task(arn: str, run: Run) -> dict[str, str]:
    task = run.stream.rpartition("/")[2]
    base = arn.replace(":batch:", ":ecs:")
    cluster = run.compute.rpartition("/")[2]
    return {
        "taskArn": f"{base}:task/{cluster}/{task}",
        "containerInstanceArn": f"{base}:container-instance/{cluster}/{task[::-1]}",
    }


def switch_names() -> list[str]:
    """Return the names of the switches."""
    return [each.name for each in fields(Switches)]
