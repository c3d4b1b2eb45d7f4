"""What a job leaves of itself for whoever submitted it: how it ended, and what it used.

It says more than an exit status: whether trying again can help, and how much memory to plan with next time.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from caldp import causes, messages, programs
from caldp.errors import CaldpError, Interrupted, describe
from caldp.messages import Status
from caldp.store import Overwrite, Store

if TYPE_CHECKING:
    from caldp.run import Run
    from caldp.telemetry import Stage


@dataclass(frozen=True)
class Result:
    """How one start of a job ended.

    Attributes
    ----------
    dataset : str
        Its name.
    attempt, retry : int
        Which attempt, and which start of it.
    run : str
        As in the status.
    code : int
        Exit status.
    signal : str
        The signal that stopped it, or empty.
    state : str
        ``processed`` or ``error``.
    stage : str
        The last stage that it began.
    recipe : str
        How it was calibrated, as ``Instrument.label`` has it; empty if it did not come so far.
    detector : str
        In lower case; empty where headers name none.
    exposures : int
        How many; 0 if it did not come so far.
    rung : str
        Step of the memory ladder that it was given, or empty.
    wall_s, cpu_s : float
        Seconds; CPU counts the programs it started.
    peak_memory_bytes : int
        The largest of CALDP, any one program, and the container, where it has a limit: that counts files that the
        kernel keeps in memory.
    process_memory_bytes : int
        The largest of CALDP and any one program.
    memory_limit_bytes : int
        Of the container; 0 for none.
    oom_kills : int
        Processes in the container that were killed for memory meanwhile.
    retriable : bool or None
        Whether trying again can help; None when nobody knows.
    fingerprint : str
        Makes the failure recognizable; see ``caldp.causes``.
    reason : str
        Why it failed.
    at : str
        When it ended, ISO 8601 in UTC.
    """

    dataset: str
    attempt: int
    retry: int
    run: str
    code: int
    signal: str
    state: str
    stage: str
    recipe: str
    detector: str
    exposures: int
    rung: str
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    process_memory_bytes: int
    memory_limit_bytes: int
    oom_kills: int
    retriable: bool | None
    fingerprint: str
    reason: str
    at: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class Record:
    """What is to be known of a run, from where it begins.

    Parameters
    ----------
    mine : Status
        What the run began with.

    Attributes
    ----------
    run : Run or None
        The run, once there is one.
    """

    def __init__(self, mine: Status) -> None:
        self.run: Run | None = None
        self._mine = mine
        self._started = time.monotonic()
        self._kills = programs.oom_kills()
        self._peak, _ = programs.group_memory()

    def result(self, failure: CaldpError | None) -> Result:
        """Return how it ended: well, or with a failure."""
        mine, stages = self._mine, self._stages
        process = max([programs.own_peak_memory(), *(stage.peak_memory for stage in stages)])
        peak, limit = programs.group_memory()
        # A peak that was there before, or in a group without a limit, is that of others.
        group = peak if limit and peak > self._peak else 0
        reason = failure.message if failure else ""
        for secret in self.run.config.secrets if self.run else ():
            reason = reason.replace(secret, "***")
        facts = self.run.telemetry.facts if self.run else {}
        return Result(
            dataset=mine.dataset,
            attempt=mine.attempt,
            retry=mine.retry,
            run=mine.run,
            code=failure.code if failure else 0,
            signal=signal.Signals(failure.signum).name if isinstance(failure, Interrupted) else "",
            state="error" if failure else "processed",
            stage=stages[-1].name if stages else "",
            recipe=self.run.recipe.label if self.run else "",
            detector=str(facts.get("detector", "")),
            exposures=int(facts.get("exposures", 0)),
            rung=mine.rung,
            wall_s=round(time.monotonic() - self._started, 3),
            cpu_s=round(sum(stage.cpu for stage in stages), 3),
            peak_memory_bytes=max(process, group),
            process_memory_bytes=process,
            memory_limit_bytes=limit,
            oom_kills=programs.oom_kills() - self._kills,
            retriable=failure.retriable if failure and type(failure) is not CaldpError else None,
            fingerprint=causes.fingerprint(failure.code, reason, mine.dataset, mine.run) if failure else "",
            reason=reason,
            at=messages.now(),
        )

    @property
    def _stages(self) -> list[Stage]:
        return self.run.telemetry.stages if self.run else []


@contextmanager
def recorded(store: Store, mine: Status, counted: bool, leave: Callable[[Callable[[], Any]], Any]) -> Iterator[Record]:
    """Leave a record of what happens inside, however it ends.

    Parameters
    ----------
    store : Store
        The output.
    mine : Status
        What the run began with.
    counted : bool
        Whether a submitter has counted the attempt; nobody else would read the record.
    leave : callable
        Writes it, and survives if that fails.

    Yields
    ------
    Record
        To be told the run.
    """
    from caldp.campaign.control import result_key

    def write(failure: CaldpError | None) -> None:
        body = json.dumps(record.result(failure).to_json(), indent=1).encode() + b"\n"
        store.put(result_key(mine.dataset, mine.attempt, mine.retry), body, Overwrite())

    record = Record(mine)
    failure: CaldpError | None = None
    try:
        yield record
    except BaseException as error:
        failure = describe(error, mine.dataset)
        raise
    finally:
        if counted:
            leave(lambda: write(failure))
