"""The deployment that a function is part of, with its queues, jobs and batches."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from caldp.campaign import settings
from caldp.campaign.control import Control
from caldp.campaign.deployment import Deployment
from caldp.campaign.jobs import Jobs, TokenBucket
from caldp.campaign.settings import Settings
from caldp.campaign.submit import Submitter
from caldp.errors import UsageError
from caldp.store import Store, open_store, parse_uri

T = TypeVar("T")

#: Environment variable of each function: file of the settings, as JSON.
SETTINGS = "CALDP_SETTINGS"

#: Longest time that a queue keeps a message back, seconds.
LONGEST_DELAY = 900

_TEN = 10
"""Messages that one request to a queue may have."""

log = logging.getLogger("caldp")


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

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Stack:
        """Return the stack that a function is part of; UsageError if its environment does not tell."""
        deployment = Deployment.of_environment(environ)
        try:
            figures = settings.from_json(json.loads(Path(environ[SETTINGS]).read_bytes()))
        except (KeyError, OSError, ValueError, TypeError) as error:
            raise UsageError(f"{SETTINGS} names no settings ({error})", remedy="deploy the stack again") from error
        return cls(deployment, figures)

    def store(self, uri: str) -> Store:
        """Open a place in one of the buckets of the deployment; UsageError for any other."""
        scheme, rest = parse_uri(uri)
        if scheme != "s3" or rest.removeprefix("//").partition("/")[0] not in self.deployment.buckets:
            raise UsageError(f"{uri} is in no bucket of {self.deployment.name}", remedy="give one that is")
        return open_store(uri, self._aws)

    def control(self, output: str) -> Control:
        """Return what a batch has of its campaign."""
        return Control(self.store(output))

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
        import boto3
        from botocore.config import Config

        return boto3.client(service, config=Config(**options))

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
        OSError
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
                raise OSError(f"{queue} did not take {len(failed)} messages ({failed[0].get('Message', '')})")
            count += len(some)
        return count

    def take(self, queue: str, most: int) -> Iterator[Message]:
        """Take messages from a queue, until it is empty or there are enough; they come back unless removed."""
        while most > 0:
            answer = self._queues.receive_message(QueueUrl=queue, MaxNumberOfMessages=min(_TEN, most))
            found = answer.get("Messages", [])
            if not found:
                return
            most -= len(found)
            for message in found:
                yield Message(_parsed(message["Body"]), message["ReceiptHandle"])

    def remove(self, queue: str, messages: Iterable[Message]) -> None:
        """Remove messages that have been seen to; one that stays comes back, which does no harm."""
        for some in _tens(messages):
            entries = [{"Id": str(n), "ReceiptHandle": message.receipt} for n, message in enumerate(some)]
            self._queues.delete_message_batch(QueueUrl=queue, Entries=entries)


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
