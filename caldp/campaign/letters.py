"""Dead letters: messages that nobody could handle are given one more chance, and then left for people.

What made a message fail may have gone since: S3 that did not answer, a function that was deployed broken.  Whatever it
asks for is done once, however often it comes, so it may come again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caldp.campaign.stack import Message, Stack, log

#: Messages of one queue that are looked at in one pass.
MOST = 1000

#: Marks a message that has had its second chance.
REPLAYED = "replayed"


@dataclass
class Letters:
    """What was found in the queues of dead letters.

    Attributes
    ----------
    replayed : int
        Messages that were sent again.
    left : dict
        Messages that failed again or make no sense, by purpose of the queue: they stay there for people.
    """

    replayed: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"replayed": self.replayed, "left": dict(self.left)}


def replay(stack: Stack) -> Letters:
    """Send each dead letter to the queue that it came from, once.

    Parameters
    ----------
    stack : Stack
        The deployment.

    Returns
    -------
    Letters
        Invocations that failed are in no queue that they could go back to: they are counted with what is left.
    """
    deployment = stack.deployment
    alive: Mapping[str, str] = {
        "lists": deployment.list_queue,
        "shards": deployment.shard_queue,
        "events": deployment.event_queue,
        "rescues": deployment.rescue_queue,
    }
    letters = Letters()
    for purpose, queue in sorted(deployment.dead_queues.items()):
        try:
            _replay(stack, purpose, queue, alive.get(purpose, ""), letters)
        except Exception as error:  # noqa: BLE001 - a queue that cannot be had does not keep the others from it
            log.error("%s: %s: %s", queue, type(error).__name__, error)
    return letters


def _replay(stack: Stack, purpose: str, dead: str, alive: str, letters: Letters) -> None:
    found = list(stack.take(dead, MOST))
    again = [message for message in found if _may_come_again(message)] if alive else []
    if again:
        # Sent before it is removed: whoever is killed between the two sends it again, which does no harm.
        stack.send(alive, ({**message.body, REPLAYED: True} for message in again))
        stack.remove(dead, again)
        letters.replayed += len(again)
    if left := len(found) - len(again):
        letters.left[purpose] = left
        log.error("%s: nobody could handle what is in it (%d): look at it", dead, left)


def _may_come_again(message: Message) -> bool:
    return bool(message.body) and not message.body.get(REPLAYED)
