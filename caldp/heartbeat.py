"""The heartbeat: a run that writes where no lock tells says in its status that it lives, and hears when it is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from caldp import messages
from caldp.errors import CaldpError
from caldp.messages import Status
from caldp.store import Store

_MINUTE = 60.0


class Heart:
    """Whether a run still has its dataset.

    Attributes
    ----------
    lost : bool
        Another run has taken the dataset over.
    """

    def __init__(self) -> None:
        self.lost = False


@contextmanager
def beating(store: Store, mine: Status, patience: float, stop: Callable[[], None]) -> Iterator[Heart]:
    """Beat in the background for as long as the context lasts.

    Parameters
    ----------
    store : Store
        The output; one whose locks are exclusive needs no heartbeat.
    mine : Status
        What the run began with.
    patience : float
        Seconds without a heartbeat after which others take the run for dead; it beats five times in that time, and at
        least every minute, for others may have less patience.
    stop : callable
        Called, in another thread, when the dataset is lost.

    Yields
    ------
    Heart
    """
    heart, over = Heart(), threading.Event()

    def beat() -> None:
        while not over.wait(min(patience / 5, _MINUTE)):
            try:
                alive = messages.beat(store, mine)
            except (CaldpError, OSError):
                continue  # a store that does not answer may do so next time; who publishes asks again
            if not alive:
                if not over.is_set():
                    heart.lost = True
                    stop()
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    if not store.exclusive:
        thread.start()
    try:
        yield heart
    finally:
        over.set()
        if thread.is_alive():
            thread.join(timeout=5)  # one that is in the middle of a request does no harm
