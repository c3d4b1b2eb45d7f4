"""AWS of a campaign, in memory: buckets, queues, jobs and a clock that only moves when it is told to.

``Cloud`` has all of it, and calls the functions as AWS Lambda does.  Its ``stack`` is what the functions get.  Each
write of theirs (an object, a message, a job) is counted, and may be the last thing that they do (``Switch``), or fail
(``Faults``): before it did anything, or after, when nobody hears of it.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

import pytest

from caldp import batch, messages
from caldp.campaign import accept, hear, letters, observe, plan, progress, reconcile, stack, submit, trigger
from caldp.campaign.control import result_key
from caldp.campaign.deployment import Deployment
from caldp.campaign.jobs import ALIVE, Ask, Jobs
from caldp.campaign.letters import Letters
from caldp.campaign.reconcile import Report
from caldp.campaign.settings import DEFAULT, Settings
from caldp.campaign.shards import parse_jsonl
from caldp.campaign.stack import Stack
from caldp.dataset import Dataset
from caldp.errors import CaldpError, DuplicateError, S3UploadError
from caldp.manifest import Manifest, verified
from caldp.messages import Claim, Status
from caldp.store import Blob, Entry, Overwrite, PutMode, Store
from tests.fakes import events
from tests.fakes.stores import InsistentStore, MemoryStore

T = TypeVar("T")

BUCKET, BATCH = "outputs", "batch-22"
PARENT = f"s3://{BUCKET}/runs"
OUTPUT = f"{PARENT}/{BATCH}"

DEPLOYMENT = Deployment(
    name="caldp-test",
    buckets=(BUCKET,),
    output=PARENT,
    list_queue="q:lists",
    shard_queue="q:shards",
    event_queue="q:events",
    rescue_queue="q:rescues",
    dead_queues={name: f"q:{name}-dead" for name in ("lists", "shards", "events", "rescues", "invocations")},
    job_queues={rung.name: f"caldp-{rung.name}" for rung in DEFAULT.rungs},
    job_definitions={rung.name: f"caldp-job-{rung.name}" for rung in DEFAULT.rungs},
    log_group="caldp",
)


class Killed(BaseException):  # noqa: N818 - it is no error
    """The function was killed here."""


class Clock:
    """The time, for everybody."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    @property
    def ms(self) -> int:
        """As AWS Batch has it."""
        return int(self.now.timestamp() * 1000)


@dataclass
class Switch:
    """Kills whoever does the n-th write.

    Attributes
    ----------
    at : int
        Which write, from 1; 0 for none.
    before : bool
        Whether it is not done any more.
    count : int
        Writes so far, while ``armed``.
    dead : bool
        Whether it has struck: nothing is written any more, by no thread, until ``revive``.
    """

    at: int = 0
    before: bool = True
    count: int = 0
    armed: bool = False
    dead: bool = False
    last: str = ""

    def revive(self) -> None:
        """Let others go on, who are not killed."""
        self.dead, self.armed, self.at = False, False, 0


@dataclass
class Faults:
    """Lets a share of the writes fail.

    Attributes
    ----------
    rate : float
        Of requests for messages and jobs.
    store_rate : float
        Of those for objects: the store tries again by itself.
    hard : float
        Of any write, for good.
    random : random.Random
        Chooses.
    """

    rate: float = 0.0
    store_rate: float = 0.0
    hard: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(22))  # noqa: S311 - no secret
    struck: int = 0

    def chance(self, rate: float) -> bool:
        """Say whether it strikes."""
        struck = rate > 0 and self.random.random() < rate
        self.struck += struck
        return struck


class Bucket:
    """Objects by key, in order."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self._keys: list[str] = []
        self._new: set[str] = set()
        self._changed = False

    def put(self, key: str, data: bytes) -> None:
        """Put."""
        self._changed |= key not in self.objects
        self.objects[key] = data
        self.tags[key] = hashlib.sha256(data).hexdigest()

    def delete(self, key: str) -> None:
        """Delete, if it is there."""
        self._changed |= self.objects.pop(key, None) is not None
        self.tags.pop(key, None)

    def copy(self) -> Bucket:
        """Return one with the same objects."""
        other = Bucket()
        for key, data in self.objects.items():
            other.put(key, data)
        return other

    def below(self, prefix: str) -> Iterator[str]:
        """Return the keys that begin so."""
        if self._changed:
            self._keys, self._changed = sorted(self.objects), False
        begin = bisect.bisect_left(self._keys, prefix)
        return itertools.takewhile(lambda key: key.startswith(prefix), itertools.islice(self._keys, begin, None))


class BucketStore(MemoryStore):
    """A place in a bucket."""

    def __init__(self, cloud: Cloud, uri: str) -> None:
        super().__init__()
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.uri = uri.rstrip("/")  # type: ignore[misc]
        self._cloud, self._bucket = cloud, cloud.buckets.setdefault(bucket, Bucket())
        self._top = f"{prefix.rstrip('/')}/" if prefix else ""
        self._lock = cloud.lock

    def url(self, key: str = "") -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def clock(self) -> datetime:
        return self._cloud.clock()

    def get(self, key: str) -> Blob | None:
        with self._lock:
            self._cloud.gets += 1
            data = self._bucket.objects.get(self._top + key)
            return None if data is None else Blob(data, self._bucket.tags[self._top + key])

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        def do() -> str:
            with self._lock:
                super(BucketStore, self).put(key, data, mode)  # looks at what is there with get
                self.objects.clear()
                self._bucket.put(self._top + key, data)
                return self._bucket.tags[self._top + key]

        return self._cloud.write(f"put {key}", do, self._cloud.faults.store_rate, S3UploadError)

    def delete(self, *keys: str) -> None:
        def do() -> None:
            with self._lock:
                for key in keys:
                    self._bucket.delete(self._top + key)

        self._cloud.write(f"delete {' '.join(keys)}", do, self._cloud.faults.store_rate, S3UploadError)

    def names(self, prefix: str) -> list[str]:
        below = f"{self._top}{prefix}/" if prefix else self._top
        with self._lock:
            self._cloud.lists += 1
            return sorted({key[len(below) :].partition("/")[0] for key in self._bucket.below(below)})

    def walk(self, prefix: str) -> Iterator[Entry]:
        below = f"{self._top}{prefix}/" if prefix else self._top
        with self._lock:
            self._cloud.lists += 1
            found = [(key, len(self._bucket.objects[key])) for key in self._bucket.below(below)]
        for key, size in found:
            yield Entry(key.removeprefix(self._top), size, "")

    def damaged(self, prefix: str, files: Iterable[Mapping[str, Any]]) -> list[str]:
        tags = self._bucket.tags
        return [e["name"] for e in files if tags.get(f"{self._top}{prefix}/{e['name']}") != e["sha256"]]


@dataclass
class _Sent:
    """A message in a queue."""

    body: str
    visible: datetime
    receipt: str = ""
    receives: int = 0


class FakeQueue:
    """A queue as SQS has it: each message comes once or more often, in any order.

    Parameters
    ----------
    cloud : Cloud
        Whose clock counts.
    hidden : float, optional
        Seconds for which a message that was taken is not seen.
    most : int, optional
        A message that was taken so often is put among the dead ones.
    grave : FakeQueue, optional
        The queue of these.
    """

    def __init__(self, cloud: Cloud, hidden: float = 300, most: int = 5, grave: FakeQueue | None = None) -> None:
        self._cloud, self._hidden, self._most, self._grave = cloud, hidden, most, grave
        self._messages: dict[int, _Sent] = {}
        self._numbers = itertools.count()
        self._ready: list[int] = []
        self._hidden_until: list[tuple[datetime, int]] = []
        self.dead: list[str] = []
        self.twice = 0.0

    def send(self, body: str, delay: float = 0) -> None:
        """Put a message in."""
        number = next(self._numbers)
        self._messages[number] = _Sent(body, self._cloud.clock())
        self._hide(number, delay)

    def _hide(self, number: int, seconds: float) -> None:
        self._messages[number].visible = self._cloud.clock() + timedelta(seconds=seconds)
        heapq.heappush(self._hidden_until, (self._messages[number].visible, number))

    def receive(self, most: int) -> list[tuple[str, str]]:
        """Take messages that can be seen: bodies and receipts."""
        rng, ready = self._cloud.random, self._ready
        while self._hidden_until and self._hidden_until[0][0] <= self._cloud.clock():
            ready.append(heapq.heappop(self._hidden_until)[1])
        taken: list[tuple[str, str]] = []
        while ready and len(taken) < most:
            place = rng.randrange(len(ready))
            ready[place], ready[-1] = ready[-1], ready[place]
            number = ready.pop()
            message = self._messages.get(number)
            if message is not None and message.receives >= self._most:
                self.dead.append(message.body)
                if self._grave is not None:
                    self._grave.send(message.body)
                del self._messages[number]
            elif message is not None:
                message.receives += 1
                message.receipt = f"{number}.{message.receives}"
                self._hide(number, 1 if rng.random() < self.twice else self._hidden)
                taken.append((message.body, message.receipt))
        return taken

    def remove(self, receipt: str) -> None:
        """Remove a message, unless it was taken again since."""
        number = int(receipt.partition(".")[0])
        if number in self._messages and self._messages[number].receipt == receipt:
            del self._messages[number]

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What is in it, seen or not."""
        return [json.loads(message.body) for message in self._messages.values()]


@dataclass(frozen=True)
class Outcome:
    """How a job ends; see ``OUTCOMES``.

    Attributes
    ----------
    exit_code : int or None
    reason, status_reason : str
        What AWS Batch says.
    says : bool
        Whether the run lives long enough to say in its status that it failed.
    publishes : bool
        Whether it publishes.
    begins : bool
        Whether it gets so far as to begin.
    concludes : bool
        Whether it says in its status that it has published.
    """

    exit_code: int | None = 0
    reason: str = ""
    status_reason: str = events.NO_REASON
    says: bool = True
    publishes: bool = False
    begins: bool = True
    concludes: bool = True

    @property
    def good(self) -> bool:
        """Whether the job succeeds."""
        return self.exit_code == 0


OUTCOMES = {
    "ok": Outcome(publishes=True),
    "oom": Outcome(137, "OutOfMemoryError: Container killed due to memory usage", says=False),
    "timeout": Outcome(137, "", "Job attempt duration exceeded timeout", says=False),
    "host": Outcome(None, "", "Host EC2 (instance i-0abc12de34f567890) terminated.", says=False),
    "transient": Outcome(26),
    "deterministic": Outcome(23),
    "unknown": Outcome(1, says=False),
    "silent": Outcome(0),
    "image": Outcome(
        None, "CannotPullContainerError: manifest for caldp:v9 not found", "Task failed to start", False, begins=False
    ),
    "late": Outcome(137, publishes=True, concludes=False, says=False),
}


@dataclass
class Job:
    """A job, or an array of them."""

    id: str
    ask: Ask
    created: int
    members: tuple[tuple[str, int], ...]
    status: list[str] = field(default_factory=list)
    details: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def is_array(self) -> bool:
        """Whether it has children."""
        return self.ask.size > 1

    def child(self, index: int) -> str:
        """Id of a child, or of the job."""
        return f"{self.id}:{index}" if self.is_array else self.id

    @property
    def whole(self) -> str:
        """State of all of it."""
        if any(status in ALIVE for status in self.status):
            return "PENDING" if self.is_array else self.status[0]
        return "FAILED" if "FAILED" in self.status else "SUCCEEDED"


class FakeJobs:
    """Jobs of AWS Batch, as ``caldp.campaign.jobs.Jobs`` has them; they run when they are told to.

    Attributes
    ----------
    asks : list of Ask
        All that were submitted.
    members : Counter
        How often a dataset was submitted, by (output, dataset, attempt).
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.jobs: dict[str, Job] = {}
        self.asks: list[Ask] = []
        self.members: Counter[tuple[str, str, int]] = Counter()
        self.mistakes: list[str] = []
        self.calls: Counter[str] = Counter()
        self.hidden: set[str] = set()
        self._alive: dict[tuple[str, str], str] = {}

    # ---- what the functions see

    def submit(self, ask: Ask) -> str:
        return self._cloud.write(f"submit {ask.name}", lambda: self._submit(ask), self._cloud.faults.rate, _lost)

    def _submit(self, ask: Ask) -> str:
        output, attempt = ask.parameters["s3_output_path"], int(ask.parameters["attempt"])
        if ask.size > 1:
            place, _, name = ask.parameters["manifest"].rpartition("/")
            blob = BucketStore(self._cloud, place).get(name)
            assert blob is not None
            lines = parse_jsonl(blob.data)
            assert ask.command[2] == f"@{ask.parameters['manifest']}" and not ask.environment
            members = tuple((line.dataset, line.attempt) for line in lines)
        else:
            assert ask.environment == {"CALDP_ATTEMPT": str(attempt)}
            members = ((ask.command[2], attempt),)
        assert ask.command[:2] == ("caldp-process-aws", output)
        assert len(members) == ask.size and {number for _, number in members} == {attempt}
        job = Job(f"job-{len(self.jobs) + 1}", ask, self._cloud.clock.ms, members, ["RUNNABLE"] * len(members))
        self.jobs[job.id] = job
        self.asks.append(ask)
        for name, number in members:
            self.members[output, name, number] += 1
            other = self._alive.setdefault((output, name), job.id)
            if other != job.id:
                self.mistakes.append(f"{name} is in {job.id} ({ask.name}), and is alive in {other}")
        return job.id

    def find(self, name: str, queue: str) -> list[dict[str, Any]]:
        self.calls["find"] += 1
        queue = queue.rpartition("/")[2]  # by name, or ARN
        jobs = [job for job in self.jobs.values() if (job.ask.name, job.ask.queue) == (name, queue)]
        return [self._summary(job) for job in jobs if job.id not in self.hidden]

    def children(self, job: str, status: str) -> Iterator[dict[str, Any]]:
        self.calls["children"] += 1
        known = self.jobs[job]
        for index, state in enumerate(known.status):
            if state == status:
                yield {"jobId": f"{job}:{index}", "arrayProperties": {"index": index}, "status": state}

    def describe(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        found = {}
        for name in dict.fromkeys(ids):
            self.calls["described"] += 1
            parent, _, index = name.partition(":")
            job = self.jobs.get(parent)
            if job is not None and parent not in self.hidden:
                found[name] = self._detail(job, int(index)) if index else self._summary(job)
        return found

    def terminate(self, job: str, reason: str) -> None:
        def do() -> None:
            parent, _, index = job.partition(":")
            known = self.jobs[parent]
            for number in [int(index)] if index else range(len(known.members)):
                if known.status[number] in ALIVE:
                    self._end(known, number, Outcome(137, "", reason, says=False), reason)

        self._cloud.write(f"terminate {job}", do, self._cloud.faults.rate, _lost)

    def _summary(self, job: Job) -> dict[str, Any]:
        if not job.is_array:
            return self._detail(job, 0)
        counts = Counter(job.status)
        array = {"size": len(job.members), "statusSummary": dict(counts)}
        stopped = {} if job.whole in ALIVE else {"stoppedAt": max(d["stoppedAt"] for d in job.details.values())}
        return {**self._known(job), "jobId": job.id, "status": job.whole, "arrayProperties": array, **stopped}

    def _known(self, job: Job) -> dict[str, Any]:
        ask = job.ask
        container = {
            "command": list(ask.command),
            "environment": [{"name": key, "value": value} for key, value in ask.environment.items()],
            "resourceRequirements": [{"type": "MEMORY", "value": "1792"}],
        }
        return {
            "jobName": ask.name,
            "jobQueue": f"arn:aws:batch:us-east-1:xxxxxxxxxxxx:job-queue/{ask.queue}",
            "jobDefinition": f"arn:aws:batch:us-east-1:xxxxxxxxxxxx:job-definition/{ask.definition}:3",
            "parameters": dict(ask.parameters),
            "createdAt": job.created,
            "timeout": {"attemptDurationSeconds": ask.time_limit},
            "container": container,
        }

    def _detail(self, job: Job, index: int) -> dict[str, Any]:
        array = {"arrayProperties": {"index": index}} if job.is_array else {}
        said = job.details.get(index, {})
        known = self._known(job)
        container = {**known["container"], **said.get("container", {})}
        return {
            **known,
            "jobId": job.child(index),
            "status": job.status[index],
            **array,
            **said,
            "container": container,
        }

    # ---- what happens

    @property
    def alive(self) -> list[Job]:
        """Jobs that have not ended."""
        return [job for job in self.jobs.values() if job.whole in ALIVE]

    def run(self, outcome: Callable[[str, int], str], most: int = 10**9) -> int:
        """Let jobs run to their end.

        Parameters
        ----------
        outcome : callable
            Given dataset and attempt, names one of ``OUTCOMES``; "" for one that goes on.
        most : int, optional
            So many children.

        Returns
        -------
        int
            How many ended.
        """
        count = 0
        for job in self.alive:
            for index, (dataset, attempt) in enumerate(job.members):
                if count == most:
                    return count
                if job.status[index] in ALIVE and (how := outcome(dataset, attempt)):
                    self._run(job, index, OUTCOMES[how])
                    count += 1
        return count

    def begin(self, job: Job, index: int) -> Status | None:
        """Let a job take its dataset; None when that is another's."""
        store = self._cloud.quiet_store(job.ask.parameters["s3_output_path"])
        name, attempt = job.members[index]
        job.status[index] = "RUNNING"
        try:
            published = verified(store, Dataset.parse(name).prefix)
            claim = Claim(attempt, job=job.child(index))
            return messages.begin(store, name, f"run-{job.child(index)}", published.attempt if published else 0, claim)
        except DuplicateError:
            return None

    def _run(self, job: Job, index: int, how: Outcome) -> None:
        store = self._cloud.quiet_store(job.ask.parameters["s3_output_path"])
        if how.begins:
            mine = self.begin(job, index)
            if mine is None:
                how = replace(OUTCOMES["silent"])
            elif how.publishes:
                manifest = publish(store, mine)
                if how.concludes:
                    messages.conclude(store, manifest.status())
                if how.concludes and self._cloud.tells:
                    record = json.dumps(used(mine)).encode()
                    store.put(result_key(mine.dataset, mine.attempt, mine.retry), record, Overwrite())
            elif how.says and not how.good:
                messages.advance(store, mine.failed(_error(how.exit_code or 1, mine.dataset)))
        self._end(job, index, how)

    def _end(self, job: Job, index: int, how: Outcome, reason: str = "") -> None:
        job.status[index] = "SUCCEEDED" if how.good else "FAILED"
        container: dict[str, Any] = {} if how.exit_code is None else {"exitCode": how.exit_code}
        container |= {"reason": how.reason} if how.reason else {}
        job.details[index] = {
            "stoppedAt": self._cloud.clock.ms,
            "statusReason": reason or how.status_reason,
            "attempts": [{"container": dict(container)}],
            "container": container,
        }
        key = (job.ask.parameters["s3_output_path"], job.members[index][0])
        if self._alive.get(key) == job.id:
            del self._alive[key]
        self._cloud.happened(self._detail(job, index))


def _error(code: int, name: str) -> CaldpError:
    error = type("ToldError", (CaldpError,), {"exit_code": code})(f"{name}: as it was told")
    assert isinstance(error, CaldpError)
    return error


def used(mine: Status, **more: Any) -> dict[str, Any]:
    """Return what a job leaves of itself that has ended well, as far as later plans want to know it."""
    return {
        "dataset": mine.dataset,
        "attempt": mine.attempt,
        "retry": mine.retry,
        "code": 0,
        "recipe": plan.recipe(Dataset.parse(mine.dataset)),
        "detector": "fuv",
        "exposures": 4,
        "rung": mine.rung,
        "wall_s": 60.5,
        "process_memory_bytes": 500 << 20,
        **more,
    }


def publish(store: Store, mine: Status) -> Manifest:
    """Publish a dataset, as far as manifests go."""
    prefix, product = Dataset.parse(mine.dataset).prefix, f"{mine.dataset}, attempt {mine.attempt}\n".encode()
    name = f"{mine.dataset}_x1d.fits"
    entry = {"name": name, "size": len(product), "sha256": hashlib.sha256(product).hexdigest()}
    record = {"format": 1, "dataset": mine.dataset, "attempt": mine.attempt, "retry": mine.retry, "run": mine.run}
    manifest = Manifest({**record, "reason": "", "products": [entry], "previews": []})
    store.put(f"{prefix}/{name}", product, Overwrite())
    store.put(f"{prefix}/manifest.json", manifest.to_bytes(), Overwrite())
    return manifest


class FakeStack(Stack):
    """A stack whose AWS is a ``Cloud``."""

    def __init__(self, cloud: Cloud, figures: Settings = DEFAULT, deployment: Deployment = DEPLOYMENT) -> None:
        super().__init__(deployment, figures)
        self._cloud = cloud

    def clock(self) -> datetime:
        return self._cloud.clock()

    def _open(self, uri: str) -> Store:
        store = BucketStore(self._cloud, uri)
        return cast(Store, InsistentStore(store) if self._cloud.faults.store_rate else store)

    @property
    def jobs(self) -> Jobs:  # type: ignore[override]
        return cast(Jobs, self._cloud.jobs)

    def _client(self, service: str, **options: Any) -> Any:
        assert service == "sqs"
        return FakeSqs(self._cloud)


class FakeSqs:
    """SQS, as far as it is used: at most ten messages in a request, of which some may be refused."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def send_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        assert 1 <= len(Entries) <= 10 and len({entry["Id"] for entry in Entries}) == len(Entries)
        assert all(type(entry["DelaySeconds"]) is int and 0 <= entry["DelaySeconds"] <= 900 for entry in Entries)
        refused = self._cloud.faults.chance(self._cloud.faults.rate / 2)

        def do() -> dict[str, Any]:
            for entry in Entries[1:] if refused else Entries:
                self._cloud.queues[QueueUrl].send(entry["MessageBody"], entry["DelaySeconds"])
            failed = [{"Id": Entries[0]["Id"], "Message": "refused", "SenderFault": False}]
            return {"Failed": failed} if refused else {}

        return self._cloud.write(f"send to {QueueUrl}", do, self._cloud.faults.rate, _lost)

    def receive_message(self, QueueUrl: str, MaxNumberOfMessages: int, WaitTimeSeconds: int) -> dict[str, Any]:  # noqa: N803
        assert 1 <= MaxNumberOfMessages <= 10 and WaitTimeSeconds > 0
        found = self._cloud.queues[QueueUrl].receive(MaxNumberOfMessages)
        return {"Messages": [{"Body": body, "ReceiptHandle": receipt} for body, receipt in found]} if found else {}

    def delete_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        assert 1 <= len(Entries) <= 10

        def do() -> dict[str, Any]:
            for entry in Entries:
                self._cloud.queues[QueueUrl].remove(entry["ReceiptHandle"])
            return {}

        return self._cloud.write(f"remove from {QueueUrl}", do, self._cloud.faults.rate, _lost)


def _lost(what: str) -> Exception:
    from botocore.exceptions import ConnectionClosedError

    return cast(Exception, ConnectionClosedError(endpoint_url=what))


class Cloud:
    """All of it.

    Parameters
    ----------
    figures : Settings, optional
        What campaigns go by.
    seed : int, optional
        Of what is up to chance.

    Attributes
    ----------
    lost, twice : float
        Shares of the ends of jobs that nobody is told, and of the messages that come twice.
    tells : bool
        Whether jobs leave a record of what they have used.
    failed : Counter
        Calls of functions that failed, by function and error.
    """

    def __init__(self, figures: Settings = DEFAULT, seed: int = 22) -> None:
        self.clock = Clock()
        self.lock = threading.RLock()
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.switch, self.faults = Switch(), Faults(random=random.Random(seed))  # noqa: S311 - no secret
        self.buckets: dict[str, Bucket] = {}
        self.gets = self.lists = 0
        self.writes: list[str] = []
        dead = {name: FakeQueue(self, 60, 10**9) for name in DEPLOYMENT.dead_queues}
        self._alive = {
            DEPLOYMENT.list_queue: FakeQueue(self, 5400, 3, dead["lists"]),
            DEPLOYMENT.shard_queue: FakeQueue(self, 1800, 5, dead["shards"]),
            DEPLOYMENT.event_queue: FakeQueue(self, 720, 5, dead["events"]),
            DEPLOYMENT.rescue_queue: FakeQueue(self, 600, 10, dead["rescues"]),
        }
        self.queues = {**self._alive, **{url: dead[name] for name, url in DEPLOYMENT.dead_queues.items()}}
        self.jobs = FakeJobs(self)
        self.stack = FakeStack(self, figures)
        self.lost, self.tells = 0.0, False
        self.failed: Counter[str] = Counter()
        self.letters = Letters()
        self.reports: list[Report] = []
        self._quiet = False

    @classmethod
    def at(
        cls, monkeypatch: pytest.MonkeyPatch, figures: Settings = DEFAULT, seed: int = 22, *, threads: bool = False
    ) -> Cloud:
        """Set it up; its clock is that of ``caldp.messages``, too."""
        cloud = cls(figures, seed)
        monkeypatch.setattr(messages, "now", lambda: messages._iso(cloud.clock()))
        # Nothing here waits, and writes come in the same order each time.
        for module in () if threads else (accept, batch, observe, progress, reconcile, stack, submit):
            monkeypatch.setattr(module, "in_threads", map)
        return cloud

    # ---- what is written

    def write(self, what: str, do: Callable[[], T], rate: float, error: Callable[[str], Exception]) -> T:
        """Do what a function does, unless it is killed, or it fails."""
        if self._quiet:
            return do()
        switch, faults = self.switch, self.faults
        with self.lock:
            if switch.dead:
                raise Killed(what)
            mine = False
            if switch.armed:
                switch.count += 1
                mine = switch.count == switch.at
            if mine:
                switch.dead, switch.last = True, what
                if switch.before:
                    raise Killed(what)
            fails, before = faults.chance(rate), faults.random.random() < 0.5
            if faults.chance(faults.hard):
                fails, error = True, _lost
            if fails and before:
                raise error(f"{what}: failed before it began")
            result = do()
            self.writes.append(what)
            if mine:
                raise Killed(what)
            if fails:
                raise error(f"{what}: failed when it was done")
            return result

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Do what no function does: a job, or a person."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def quiet_store(self, uri: str = OUTPUT) -> Store:
        """Return a store of somebody who is never killed."""
        return cast(Store, _Quiet(self, BucketStore(self, uri)))

    def happened(self, detail: Mapping[str, Any]) -> None:
        """Tell of the end of a job, or not."""
        if self.random.random() >= self.lost:
            event = {"source": "aws.batch", "detail-type": "Batch Job State Change", "detail": detail}
            self.queues[DEPLOYMENT.event_queue].send(json.dumps(event))

    # ---- the functions

    def drop(self, data: bytes, name: str = f"{BATCH}.txt", folder: str = "control/placed") -> dict[str, Any]:
        """Drop a list; return what EventBridge says of it, which is also sent."""
        key = f"{folder}/{name}"
        with self.quietly():
            BucketStore(self, f"s3://{BUCKET}").put(key, data, Overwrite())
        detail = {"bucket": {"name": BUCKET}, "object": {"key": key}}
        event = {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}
        self.queues[DEPLOYMENT.list_queue].send(json.dumps(event))
        return event

    def _poll(self, queue: str, act: Callable[[Mapping[str, Any]], object], most: int) -> int:
        """Call a function with messages, as AWS Lambda does: those that fail come back."""
        taken = self.queues[queue].receive(most)
        for body, receipt in taken:
            try:
                act(json.loads(body))
            except Exception as error:  # noqa: BLE001 - as Lambda
                self.failed[f"{queue} {type(error).__name__}"] += 1
            else:
                self.queues[queue].remove(receipt)
        return len(taken)

    def on_list(self) -> int:
        """Call it with a message."""
        return self._poll(DEPLOYMENT.list_queue, lambda body: trigger.take(self.stack, body), 1)

    def submit_shards(self) -> int:
        """Call it with a message."""
        return self._poll(DEPLOYMENT.shard_queue, lambda body: self.stack.submit(body["output"], body["shard"]), 1)

    def on_batch_event(self) -> int:
        """Call it with ten messages."""
        return self._poll(DEPLOYMENT.event_queue, lambda body: hear.hear(self.stack, body), 10)

    def drain(self) -> int:
        """Call it, as every minute."""
        try:
            return hear.drain(self.stack)
        except Exception as error:  # noqa: BLE001 - as Lambda
            self.failed[f"drain {type(error).__name__}"] += 1
            return 0

    def reconcile(self) -> list[Report]:
        """Call it, as every ten minutes."""
        self.letters = letters.replay(self.stack)
        self.reports = reconcile.reconcile_all(self.stack)
        return self.reports

    FUNCTIONS = ("on_list", "submit_shards", "on_batch_event", "drain", "reconcile")

    def call(self, name: str) -> Any:
        """Call a function as often as there is something for it; who is to be killed is killed in it, once."""
        again = name in ("on_list", "submit_shards", "on_batch_event")
        while True:
            try:
                done = getattr(self, name)()
            except Killed:
                self.switch.revive()
                self.failed[f"{name} Killed"] += 1
                continue
            if not again or not done:
                return done

    def work(self, outcome: Callable[[str, int], str], minutes: int = 3000, victim: str = "") -> int:
        """Let time pass until all campaigns are closed; return the minutes that it took.

        Parameters
        ----------
        outcome : callable
            As for ``FakeJobs.run``.
        minutes : int, optional
            Fail after so many.
        victim : str, optional
            The function in which writes count for the switch.
        """
        for minute in range(minutes):
            for name in ("on_list", "submit_shards", "run", "on_batch_event", "drain", "submit_shards"):
                if name == "run":
                    with self.quietly():
                        self.jobs.run(outcome)
                else:
                    self._armed(name, victim)
            if minute % 10 == 9:
                self._armed("reconcile", victim)
                if not any(len(queue) for queue in self._alive.values()) and self._closed():
                    return minute + 1
            self.clock.advance(60)
        raise AssertionError(f"it never ends: {[str(report) for report in self.reports]}, {self.failed}")

    def _armed(self, name: str, victim: str) -> Any:
        self.switch.armed = name == victim
        done = self.call(name)
        self.switch.armed = False
        return done

    def _closed(self) -> bool:
        objects = [entry for bucket in self.buckets.values() for entry in bucket.objects.items()]
        planned = {key.removesuffix("plan.json") for key, _ in objects if key.endswith("control/plan.json")}
        ends = {key.removesuffix("closed.json"): data for key, data in objects if key.endswith("control/closed.json")}
        return bool(planned) and planned == {key for key, data in ends.items() if "reopened" not in json.loads(data)}

    # ---- how it stands

    def statuses(self, output: str = OUTPUT) -> dict[str, Status]:
        """Return the status of every dataset."""
        store = BucketStore(self, output)
        names = [name.removesuffix(".json") for name in store.names("messages/status")]
        return {name: status for name in names if (status := messages.read(store, name)) is not None}

    def ends(self, output: str = OUTPUT) -> dict[str, tuple[Any, ...]]:
        """Return what must not depend on who was killed when."""
        return {
            name: (status.state, status.attempt, status.rung, status.time_limit, status.cause, status.spent)
            for name, status in self.statuses(output).items()
        }

    def assert_sound(self, names: Iterable[str], output: str = OUTPUT, *, once: bool = True) -> None:
        """Assert what holds at any end: each dataset in one final state, shown once, and submitted once per attempt."""
        store, statuses = BucketStore(self, output), self.statuses(output)
        assert sorted(statuses) == sorted(names), "a dataset was lost, or is there too much"
        shown = {folder: set(store.names(f"messages/{folder}")) for _, folder in messages.STATES.values() if folder}
        for name, status in statuses.items():
            assert status.state in ("processed", "error", "cancelled"), f"{status}"
            folders = [folder for folder, there in shown.items() if name in there]
            assert folders == [messages.STATES[status.state][1]], f"{status}: shown in {folders}"
        assert not self.jobs.mistakes
        if once:
            twice = {member: count for member, count in self.jobs.members.items() if count != 1}
            assert not twice, f"submitted more than once: {twice}"
        assert not self.jobs.alive


class _Quiet:
    """A store that nobody kills."""

    exclusive = False

    def __init__(self, cloud: Cloud, store: BucketStore) -> None:
        self._cloud, self._store, self.uri = cloud, store, store.uri

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in ("put", "delete"):
            return real

        def call(*args: Any) -> Any:
            with self._cloud.quietly():
                return real(*args)

        return call
