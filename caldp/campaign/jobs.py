"""Jobs of AWS Batch: submit them, find them, look at them, end them."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Jobs that one request may ask for.
_DESCRIBED = 100

#: Requests for one job, while there are too many of them.
_TRIES = 5

#: What the name of a job cannot have in it, and its longest part that is not made here.
_NOT_IN_NAMES, _LONGEST_NAME = re.compile(r"[^A-Za-z0-9_-]"), 110

#: The states of a job that has not ended.
ALIVE = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


class TokenBucket:
    """Lets so many requests through in a second, and no more.

    Parameters
    ----------
    rate : float
        Requests per second.
    burst : int, optional
        How many may come at once after a rest.
    clock, sleep : callable, optional
        Instead of the real ones.
    """

    def __init__(
        self,
        rate: float,
        burst: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._burst, self._clock, self._sleep = rate, burst, clock, sleep
        self._tokens, self._at = float(burst), clock()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Wait for one's turn."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - 1
            self._at = now
            wait = -self._tokens / self._rate
        if wait > 0:
            self._sleep(wait)

    def rest(self) -> None:
        """Let nobody through for a while: somebody else uses up what there is."""
        with self._lock:
            self._tokens = min(self._tokens, 0.0) - 2 * self._rate


@dataclass(frozen=True)
class Ask:
    """A job that is to be submitted.

    Attributes
    ----------
    name : str
        See ``job_name``.
    queue, definition : str
        Names.
    command : tuple of str
        What the container runs.
    size : int
        Datasets in it; an array from 2 on.
    time_limit : int
        Seconds, of each child.
    share : str
        Fair-share identifier.
    parameters, environment, tags : mapping
        Of the job.
    """

    name: str
    queue: str
    definition: str
    command: tuple[str, ...]
    size: int
    time_limit: int
    share: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class Jobs:
    """The jobs of a deployment.

    Parameters
    ----------
    client : boto3 client
        Of AWS Batch.
    once : boto3 client
        The same, but one that repeats nothing of itself: a job whose answer was lost would be submitted twice.
    rate : TokenBucket
        Slows down what is submitted.
    """

    def __init__(self, client: Any, once: Any, rate: TokenBucket) -> None:  # noqa: ANN401 - boto3 has no types
        self._client = client
        self._once = once
        self._rate = rate

    def submit(self, ask: Ask) -> str:
        """Submit a job and return its id.

        Parameters
        ----------
        ask : Ask
            The job.

        Returns
        -------
        str

        Raises
        ------
        botocore.exceptions.ClientError, BotoCoreError
            If Batch refuses it; or its answer was lost, and the job may be there or not.
        """
        from botocore.exceptions import ClientError

        left = _TRIES
        while True:
            self._rate.take()
            left -= 1
            try:
                return self._submit(ask)
            except ClientError as error:
                if left == 0 or error.response.get("Error", {}).get("Code") != "TooManyRequestsException":
                    raise
                self._rate.rest()  # nothing was submitted

    def _submit(self, ask: Ask) -> str:
        more: dict[str, Any] = {}
        if ask.size > 1:
            more["arrayProperties"] = {"size": ask.size}
        if ask.share:
            more["shareIdentifier"] = ask.share
        if ask.tags:
            more |= {"tags": dict(ask.tags), "propagateTags": True}
        environment = [{"name": name, "value": value} for name, value in ask.environment.items()]
        answer = self._once.submit_job(
            jobName=ask.name,
            jobQueue=ask.queue,
            jobDefinition=ask.definition,
            parameters=dict(ask.parameters),
            containerOverrides={"command": list(ask.command), "environment": environment},
            timeout={"attemptDurationSeconds": ask.time_limit},
            **more,
        )
        return str(answer["jobId"])

    def find(self, name: str, queue: str) -> list[dict[str, Any]]:
        """Return the jobs of one name, the oldest first: ``jobId``, ``status``, ``createdAt`` ..."""
        filters = [{"name": "JOB_NAME", "values": [name]}]
        found = [job for job in self._pages(jobQueue=queue, filters=filters) if job.get("jobName") == name]
        return sorted(found, key=lambda job: (job.get("createdAt", 0), job["jobId"]))

    def children(self, job: str, status: str) -> Iterator[dict[str, Any]]:
        """Return the children of an array that are in one state."""
        return self._pages(arrayJobId=job, jobStatus=status)

    def describe(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what is known of jobs, by id; of those that Batch does not know any more, nothing."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, dict[str, Any]] = {}
        for begin in range(0, len(wanted), _DESCRIBED):
            answer = self._client.describe_jobs(jobs=wanted[begin : begin + _DESCRIBED])
            found |= {job["jobId"]: job for job in answer["jobs"]}
        return found

    def terminate(self, job: str, reason: str) -> None:
        """End a job, or take it from the queue; one that has ended already is no error."""
        self._client.terminate_job(jobId=job, reason=reason)

    def _pages(self, **request: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - as boto3 has it
        while True:
            answer = self._client.list_jobs(**request)
            yield from answer["jobSummaryList"]
            token = answer.get("nextToken")
            if not token:
                return
            request["nextToken"] = token


def job_name(shard: str, output: str) -> str:
    """Return what the job of a shard is called: batches elsewhere may have a shard of that name, too."""
    digest = hashlib.sha256(f"{output}\n{shard}".encode()).hexdigest()[:8]
    return f"{_NOT_IN_NAMES.sub('-', shard)[:_LONGEST_NAME]}-{digest}"


def is_alive(job: Mapping[str, Any]) -> bool:
    """Say whether a job has not ended."""
    return job.get("status") in ALIVE
