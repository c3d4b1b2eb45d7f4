"""The end of a job on AWS becomes the state of its dataset, or another attempt."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from caldp import messages
from caldp.campaign import events, transitions
from caldp.campaign.control import Control, stream_key
from caldp.campaign.failures import Ended, Evidence
from caldp.campaign.stack import LONGEST_DELAY, Message, Stack, log
from caldp.dataset import Dataset
from caldp.errors import UsageError
from caldp.manifest import published
from caldp.messages import Status
from caldp.store import Overwrite

#: Messages that have to wait on are sent again together, with a delay that is a multiple of so many seconds.
_STEP = 30

#: Datasets to be tried again that are put into shards at once.
MOST = 10_000


class Heard(NamedTuple):
    """What came of news.

    Attributes
    ----------
    state : str
        State of the dataset; ``ignored``, or ``foreign`` for a job that is not ours.
    moved : bool
        Whether they moved it; one that ended well has said so itself.
    """

    state: str
    moved: bool = False


def hear(stack: Stack, event: Mapping[str, Any]) -> Heard:
    """Do what follows from an event of AWS Batch.

    Parameters
    ----------
    stack : Stack
        The deployment.
    event : mapping
        As it comes, or what DescribeJobs says of a job.

    Returns
    -------
    Heard
    """
    names = {*stack.deployment.job_queues.values(), *stack.deployment.job_definitions.values()}
    ended = events.ended(event, events.among(names))
    if ended is None:
        return Heard("ignored")
    if not ended.ours:
        log.warning("not ours: %s", ended.job)
        return Heard("foreign")
    try:
        control = stack.control(ended.output)
        if not stack.is_campaign(ended.output):  # by hand, on our queue: whoever did it looks after it
            log.warning("%s is of no campaign: %s", ended.job, ended.output)
            return Heard("foreign")
        ended = _child(stack, ended)
    except UsageError as error:  # another bucket, or no such line: a job that somebody else has made up
        log.warning("%s: %s", ended.job, error)
        return Heard("foreign")
    return follow(stack, control, ended)


def follow(stack: Stack, control: Control, ended: Ended) -> Heard:
    """Move a dataset whose job has ended, and have it tried again if that can help."""
    move, status = transitions.settle(
        control.store, ended, lambda: evidence(control, ended), stack.settings, lambda longest: _jitter(longest)
    )
    is_its_end = status is not None and not move.history_only
    if status is not None and is_its_end:
        if ended.log and not ended.succeeded:  # AWS Batch forgets it after a week, and a killed job has no other log
            control.store.put(stream_key(ended.dataset, ended.attempt), f"{ended.log}\n".encode(), Overwrite())
        if move.pause:
            control.pause(move.pause, status.at)
        if status.state == "placed":
            control.reopen()
            again(stack, control, status, move.delay)
    # Of news that change nothing, whatever attempt was placed meanwhile is none of their business: it may have to wait.
    status = status or messages.read(control.store, ended.dataset)
    return Heard(status.state if status is not None else "ignored", is_its_end and move.status is not move.seen)


def again(stack: Stack, control: Control, status: Status, delay: float = 0.0) -> None:
    """Queue a dataset whose next attempt was placed; it comes back after so many seconds."""
    due = stack.clock() + timedelta(seconds=delay)
    body = {
        "output": control.store.uri,
        "dataset": status.dataset,
        "attempt": status.attempt,
        "due": due.isoformat(timespec="seconds"),
    }
    stack.send(stack.deployment.rescue_queue, [body], delay)


def evidence(control: Control, ended: Ended) -> Evidence:
    """Gather what else is known of a job that has ended."""
    status = messages.read(control.store, ended.dataset)
    result = control.result(ended.dataset, ended.attempt, ended.retry)
    if result is None and status is not None and (status.attempt, status.job) == (ended.attempt, ended.job):
        result = control.result(ended.dataset, ended.attempt, status.retry)  # it took over from a start before it
    return Evidence(status, published(control.store, Dataset.parse(ended.dataset), status), result)


def _jitter(longest: float) -> float:
    return random.uniform(0, longest)  # noqa: S311 - no secret


def _child(stack: Stack, ended: Ended) -> Ended:
    """Return the end of a child of an array with its dataset."""
    if not ended.manifest:
        return ended
    lines = stack.lines(ended.manifest)
    if ended.index is None or ended.index >= len(lines):
        raise UsageError(f"{ended.manifest} has no line {ended.index}", remedy="look at that job")
    line = lines[ended.index]
    return replace(ended, dataset=line.dataset, attempt=line.attempt, time_limit=ended.time_limit or line.time_limit)


# ---- what is tried again


def drain(stack: Stack, most: int = MOST) -> int:
    """Put datasets that are tried again into shards.

    Parameters
    ----------
    stack : Stack
        The deployment.
    most : int, optional
        So many at once.

    Returns
    -------
    int
        Shards that were queued.
    """
    queue = stack.deployment.rescue_queue
    waiting: dict[str, list[Message]] = {}
    early: dict[int, list[Message]] = {}
    for message in stack.take(queue, most):
        try:
            output, _, _, due = _waiting(message.body)
            left = (due - stack.clock()).total_seconds()
        except (KeyError, ValueError, TypeError, UsageError) as error:
            log.error("%s has a message that makes no sense (%s): %s", queue, error, message.body)
            continue  # it comes back, and ends among the dead letters
        if left > 1:
            early.setdefault(min(math.ceil(left / _STEP) * _STEP, LONGEST_DELAY), []).append(message)
        else:
            waiting.setdefault(output, []).append(message)
    count, failed = 0, None
    for output, found in waiting.items():
        try:
            count += _regroup(stack, output, found)
        except Exception as error:  # noqa: BLE001 - one batch that is broken does not keep the others from it
            log.error("%s: %s", output, error)
            failed = error
    for delay, some in early.items():
        stack.send(queue, (message.body for message in some), delay)
        stack.remove(queue, some)
    if failed is not None:
        raise failed
    return count


def _regroup(stack: Stack, output: str, found: list[Message]) -> int:
    datasets = [_waiting(message.body)[1:3] for message in found]
    shards = stack.submitter(output).regroup(datasets)
    stack.send(stack.deployment.shard_queue, ({"output": output, "shard": name} for name in shards))
    # Only now: whoever is killed before this does it again, and gets the same shards.
    stack.remove(stack.deployment.rescue_queue, found)
    return len(shards)


def _waiting(body: Mapping[str, Any]) -> tuple[str, str, int, datetime]:
    """Return batch, dataset and attempt of a message, and until when it has to wait."""
    due = datetime.fromisoformat(body["due"])
    return str(body["output"]), Dataset.parse(str(body["dataset"])).name, int(body["attempt"]), due
