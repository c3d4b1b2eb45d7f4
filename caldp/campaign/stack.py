"""The deployment that a function is part of, with its queues, jobs and batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from caldp.aws import make
from caldp.batch import in_threads
from caldp.campaign import settings
from caldp.campaign.control import Control
from caldp.campaign.deployment import Deployment, fetch_settings
from caldp.campaign.jobs import Jobs, TokenBucket
from caldp.campaign.settings import Settings
from caldp.campaign.shards import Line, parse_jsonl
from caldp.campaign.submit import Submitted, Submitter
from caldp.errors import CaldpError, InputError, UsageError
from caldp.store import Overwrite, Store, open_store, parse_uri

T = TypeVar("T")

#: Environment variable of each function: file of the settings, as JSON.
SETTINGS = "CALDP_SETTINGS"

#: Seconds that a queue is listened to: one that is asked for an instant may have messages and show none.
_LISTEN = 1

#: Longest time that a queue keeps a message back, seconds.
LONGEST_DELAY = 900

#: Where batches are entered that are not where batches go.
ELSEWHERE = "control/elsewhere"

_TEN = 10
"""Messages that one request to a queue may have."""

log = logging.getLogger("caldp")


class QueueError(CaldpError):
    """A queue did not take what was sent."""

    retriable = True


@dataclass(frozen=True)
class Message:
    """A message that was taken from a queue.

    Attributes
    ----------
    body : mapping
        What it says.
    receipt : str
        To remove it with.
    """

    body: Mapping[str, Any]
    receipt: str


def client(service: str, aws: Mapping[str, str] | None = None, **options: Any) -> Any:  # noqa: ANN401 - no types
    """Make a client of AWS, by the settings that S3's goes by.

    Parameters
    ----------
    service : str
        For example ``batch``.
    aws : mapping, optional
        AWS_* variables that count instead of those of the environment.
    **options
        Of ``botocore.config.Config``.

    Returns
    -------
    botocore client

    Raises
    ------
    UsageError
        If the settings make no sense.
    """
    from botocore.exceptions import BotoCoreError

    try:
        return make(service, aws or {}, **options)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            f"AWS cannot be used with these settings: {str(error).rstrip('.')}",
            remedy="export AWS_REGION, and AWS_PROFILE or credentials",
        ) from error


class Stack:
    """A deployment, and what of AWS it needs.

    Parameters
    ----------
    deployment : Deployment
        What it is made of.
    figures : Settings
        What campaigns go by.
    aws : mapping, optional
        AWS_* variables that count instead of those of the environment.
    """

    def __init__(self, deployment: Deployment, figures: Settings, aws: Mapping[str, str] | None = None) -> None:
        self.deployment = deployment
        self.settings = figures
        self._aws = aws
        self._lines = lru_cache(maxsize=32)(self._read_lines)
        self._campaigns: set[str] = set()

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Stack:
        """Return the stack that a function is part of; UsageError if its environment does not tell."""
        deployment = Deployment.of_environment(environ)
        try:
            figures = settings.from_json(json.loads(Path(environ[SETTINGS]).read_bytes()))
        except (KeyError, OSError, ValueError, TypeError) as error:
            raise UsageError(f"{SETTINGS} names no settings ({error})", remedy="deploy the stack again") from error
        return cls(deployment, figures)

    @classmethod
    def fetch(cls, name: str, figures: Settings | None = None) -> Stack:
        """Return a deployment by name, as a command finds it.

        Parameters
        ----------
        name : str
            For example ``caldp-dev``.
        figures : Settings, optional
            What a campaign goes by that has begun; by default those of the deployment.

        Returns
        -------
        Stack

        Raises
        ------
        UsageError
            If there is none of that name, or AWS does not tell.
        """
        ssm = client("ssm")
        deployment = Deployment.fetch(name, ssm)
        return cls(deployment, figures or fetch_settings(name, ssm))

    @classmethod
    def of_campaign(cls, control: Control, name: str = "") -> Stack:
        """Return the deployment that runs a campaign; UsageError when nobody says which."""
        request = control.request()
        if request["runner"] != "aws":
            raise UsageError(
                f"{control.store.url()} runs on one machine, not on AWS",
                remedy=f"go on with it there: caldp campaign submit --resume {control.store.uri}",
            )
        name = name or str(request.get("deployment") or "")
        if not name:
            raise UsageError("the campaign does not say which deployment runs it", remedy="give --deployment NAME")
        return cls.fetch(name, settings.from_json(request["settings"]))

    def store(self, uri: str) -> Store:
        """Open a place in one of the buckets of the deployment; UsageError for any other."""
        scheme, rest = parse_uri(uri)
        if scheme != "s3" or rest.removeprefix("//").partition("/")[0] not in self.deployment.buckets:
            raise UsageError(f"{uri} is in no bucket of {self.deployment.name}", remedy="give one that is")
        return self._open(uri)

    def output(self, uri: str) -> Store:
        """Open a place for a batch; UsageError if functions and jobs may not write there."""
        top = f"{'/'.join(self.deployment.output.split('/')[:3])}/{self.deployment.placed}"
        if uri.count("/") < 3:
            raise UsageError(f"{uri} is a bucket, and no batch", remedy=f"give {top}<name of the batch>")
        store = self.store(uri)
        if uri.split("/")[2] == top.split("/")[2] and not uri.startswith(top):
            raise UsageError(
                f"{uri} is not below {top}, where {self.deployment.name} may write", remedy="give a place there"
            )
        return store

    def _open(self, uri: str) -> Store:
        return open_store(uri, self._aws)

    def clock(self) -> datetime:
        """Return the present, in UTC."""
        return datetime.now(UTC)

    def control(self, output: str) -> Control:
        """Return what a batch has of its campaign."""
        return Control(self.store(output))

    def is_campaign(self, output: str) -> bool:
        """Say whether somebody has asked for a campaign there: jobs of people by hand are none."""
        if output not in self._campaigns and self.control(output).known() is not None:
            self._campaigns.add(output)
        return output in self._campaigns

    def lines(self, manifest: str) -> list[Line]:
        """Read a manifest, from where a job was told, in one of the buckets of the deployment.

        It never changes, and the children of an array end one after the other.
        """
        return self._lines(manifest)

    def _read_lines(self, manifest: str) -> list[Line]:
        place, _, name = manifest.rpartition("/")
        blob = self.store(place).get(name)
        try:
            if blob is not None:
                return parse_jsonl(blob.data)
            raise InputError(f"{manifest} is missing", remedy="submit the list again")
        except ValueError as error:
            raise InputError(f"{manifest} is no manifest ({error})", remedy="submit the list again") from error

    def outputs(self) -> list[str]:
        """Return the URIs of what is where batches go, and of batches that somebody wanted elsewhere."""
        home = self.store(self.deployment.output)
        entered = in_threads(lambda name: home.get(f"{ELSEWHERE}/{name}"), home.names(ELSEWHERE))
        elsewhere = [blob.data.decode("utf-8", errors="replace").strip() for blob in entered if blob is not None]
        return [*(home.url(name) for name in home.names("")), *sorted(elsewhere)]

    def enter(self, output: str) -> None:
        """Put down where a batch is, if it is not where batches go: whoever looks after all must find it."""
        home = self.store(self.deployment.output)
        if self.place(output).uri == home.uri:
            return
        name = hashlib.sha256(output.encode()).hexdigest()[:16]
        home.put(f"{ELSEWHERE}/{name}", f"{output}\n".encode(), Overwrite())

    def place(self, output: str) -> Store:
        """Return the parent of a batch."""
        return self.store(output.rstrip("/").rpartition("/")[0])

    def submit(self, output: str, shard: str) -> Submitted | None:
        """Submit a shard; None while the campaign is paused: who lets it go on has its shards queued again."""
        if paused := self.control(output).paused():
            log.warning("%s: %s waits: %s", output, shard, paused)
            return None
        return self.submitter(output).submit(shard)

    def submitter(self, output: str) -> Submitter:
        """Return who submits the shards of a batch."""
        return Submitter(self.control(output), self.settings, self.deployment, self.jobs)

    @cached_property
    def jobs(self) -> Jobs:
        """The jobs of the deployment."""
        once = self._client("batch", retries={"total_max_attempts": 1})
        return Jobs(self._client("batch"), once, TokenBucket(self.settings.submit_rate))

    @cached_property
    def _queues(self) -> Any:  # noqa: ANN401 - boto3 has no types
        return self._client("sqs")

    def _client(self, service: str, **options: Any) -> Any:  # noqa: ANN401 - boto3 has no types
        return client(service, self._aws, **options)

    # ---- queues

    def send(self, queue: str, bodies: Iterable[Mapping[str, Any]], delay: float = 0.0) -> int:
        """Put messages into a queue.

        Parameters
        ----------
        queue : str
            URL.
        bodies : iterable of mapping
            What they say.
        delay : float, optional
            Seconds before they can be taken, at most ``LONGEST_DELAY``.

        Returns
        -------
        int
            How many.

        Raises
        ------
        QueueError
            If the queue did not take all of them; none is lost that the caller sends again.
        """
        count = 0
        for some in _tens(bodies):
            entries = [
                {"Id": str(n), "MessageBody": json.dumps(body), "DelaySeconds": round(min(delay, LONGEST_DELAY))}
                for n, body in enumerate(some)
            ]
            answer = self._queues.send_message_batch(QueueUrl=queue, Entries=entries)
            if failed := answer.get("Failed"):
                raise QueueError(
                    f"{queue} did not take {len(failed)} messages ({failed[0].get('Message', '')})",
                    remedy="do it again",
                )
            count += len(some)
        return count

    def take(self, queue: str, most: int) -> Iterator[Message]:
        """Take messages from a queue, until it is empty or there are enough; they come back unless removed."""
        while most > 0:
            answer = self._queues.receive_message(
                QueueUrl=queue, MaxNumberOfMessages=min(_TEN, most), WaitTimeSeconds=_LISTEN
            )
            found = answer.get("Messages", [])
            if not found:
                return
            most -= len(found)
            for message in found:
                yield Message(_parsed(message["Body"]), message["ReceiptHandle"])

    def remove(self, queue: str, messages: Iterable[Message]) -> None:
        """Remove messages that have been seen to; one that stays comes back, which does no harm."""
        from botocore.exceptions import BotoCoreError, ClientError

        for some in _tens(messages):
            entries = [{"Id": str(n), "ReceiptHandle": message.receipt} for n, message in enumerate(some)]
            try:
                self._queues.delete_message_batch(QueueUrl=queue, Entries=entries)
            except (BotoCoreError, ClientError) as error:  # else all that follow would come back, too
                log.warning("%s keeps %d messages: %s", queue, len(some), error)


def _tens(items: Iterable[T]) -> Iterator[list[T]]:
    """Return what one request after the other may have."""
    rest = iter(items)
    while some := list(islice(rest, _TEN)):
        yield some


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    return body if isinstance(body, Mapping) else {}
