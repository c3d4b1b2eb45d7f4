"""The way of an event: late, twice, out of order or never, as the switches say."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fakes.aws_batch.engine import Switches


class Events:
    """Delivers in a thread of its own, in the order of arrival unless there are delays.

    Parameters
    ----------
    deliver : callable
        Takes the event's detail, JSON, and its resources.
    """

    def __init__(self, deliver: Callable[[str, list[str]], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._deliver = deliver
        self._queue: list[tuple[float, int, str, list[str]]] = []
        self._number = 0
        self._under_way = 0
        self._changed = threading.Condition()
        self._random = random.Random(0)  # noqa: S311 - not for secrets
        threading.Thread(target=self._run, name="batch-events", daemon=True).start()

    def put(self, detail: str, resources: list[str], switches: Switches) -> None:
        """Send an event on its way."""
        with self._changed:
            self.counts["made"] += 1
            if self._random.random() < switches.drop_events:
                self.counts["dropped"] += 1
                return
            for _ in range(2 if switches.duplicate_events else 1):
                # What is not to be late keeps its order: equal times go by number.
                due = (
                    time.monotonic() + self._random.uniform(0, switches.delay_events) if switches.delay_events else 0.0
                )
                self._number += 1
                heapq.heappush(self._queue, (due, self._number, detail, resources))
            self._changed.notify()

    @property
    def pending(self) -> int:
        """How many are not delivered yet."""
        with self._changed:
            return len(self._queue) + self._under_way

    def reset(self, seed: int = 0) -> None:
        """Forget those under way and the counts."""
        with self._changed:
            self._queue.clear()
            self.counts.clear()
            self._random.seed(seed)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue or self._queue[0][0] > time.monotonic():
                    self._changed.wait(self._queue[0][0] - time.monotonic() if self._queue else None)
                _, _, detail, resources = heapq.heappop(self._queue)
                self._under_way = 1
            try:
                self._deliver(detail, resources)
            except Exception as error:  # noqa: BLE001 - the next event is not to suffer
                with self._changed:
                    self.counts["failed"] += 1
                print(f"batch: event not delivered: {error!r}", flush=True)
            with self._changed:
                self.counts["delivered"] += 1
                self._under_way = 0
