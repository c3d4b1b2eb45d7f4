"""What becomes of a dataset when its job has ended: the next attempt, or the end.

``follow`` decides, ``apply`` writes it down.  News may come late, twice and in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from caldp import causes, messages
from caldp.campaign.failures import Ended, Evidence, Verdict, classify
from caldp.campaign.settings import Settings
from caldp.campaign.shards import Line
from caldp.errors import BusyError
from caldp.messages import Status
from caldp.store import ConflictError, PutMode, Store

#: Class of a failure -> what its retries are charged to.
BUDGETS = {"transient": "transient", "host": "transient", "oom": "oom", "timeout": "timeout", "unknown": "unknown"}

_MIB = 2**20

#: How often ``settle`` tries.
_TRIES = 100

#: Characters of a reason that are kept.
_LONGEST = 1000

#: What AWS Batch says of every container that ends: it explains nothing.
_NO_REASON = "Essential container in task exited"


@dataclass(frozen=True)
class Move:
    """What to write about a dataset, and what to do then.

    Attributes
    ----------
    status : Status or None
        How it is to stand; None when nothing changes.
    delay : float
        Seconds before the attempt that was placed may start.
    history_only : bool
        The dataset stays as it is; ``status`` is only noted in its history.
    pause : str
        Why the whole campaign must pause, or empty.
    seen : Status or None
        How it stood when this was decided.
    """

    status: Status | None = None
    delay: float = 0.0
    history_only: bool = False
    pause: str = ""
    seen: Status | None = None


def follow(ended: Ended, evidence: Evidence, settings: Settings, jitter: Callable[[float], float]) -> Move:
    """Decide what follows the end of a job.

    Parameters
    ----------
    ended : Ended
        What whoever ran it says.
    evidence : Evidence
        What else is known.
    settings : Settings
        The ladder, the time limits, the budgets.
    jitter : callable
        Makes a delay of the longest one (seconds), so that what failed together does not come back together.

    Returns
    -------
    Move
        The same for news that were told before, as far as it is still to be done: who was killed between writing it
        down and queueing the next attempt does so when the news come again.
    """
    seen, by = evidence.status, _teller(ended)
    if not ended.ours:
        return Move()
    if seen is not None and seen.by == by:
        return _stand(seen, settings, jitter, seen)
    if seen is not None and by in [entry.get("by") for entry in seen.history if isinstance(entry, dict)]:
        return Move()
    verdict = classify(ended, evidence)
    if verdict.cause == "stale":
        return _noted(ended, verdict, by, seen)
    now = replace(_ending(ended, seen, settings), by=by)
    if verdict.cause == "processed":
        attempt = max(now.attempt, evidence.published)
        return Move(replace(now, attempt=attempt, state="processed", reason="", exit_code=0), seen=seen)
    said = _said_by_caldp(ended, evidence)
    detail, code = said or _said_by_batch(ended), _code(ended, evidence)
    why = said or _reason(verdict.said, detail)
    failed = replace(now, state="error", reason=why, exit_code=code, cause=verdict.cause)
    if verdict.cause == "cancelled":
        already = seen is not None and seen.state == "cancelled"
        return Move(seen if already else replace(failed, state="cancelled"), seen=seen)
    mark = evidence.told("fingerprint")
    mark = mark if mark and isinstance(mark, str) else causes.fingerprint(code, detail, ended.dataset)
    failed = replace(failed, fingerprint=mark)
    if verdict.cause == "unknown" and mark and mark == now.fingerprint:
        failed = replace(failed, cause="deterministic", reason=f"the same failure twice: {why}")
    elif verdict.retry:
        end = _end(failed, verdict, settings, seen)
        failed = replace(failed, reason=f"{end}: {why}") if end else _next(failed, verdict, settings)
    return _stand(failed, settings, jitter, seen)


def _noted(ended: Ended, verdict: Verdict, by: str, seen: Status | None) -> Move:
    """Return the move that only notes late news; that what was published was published is none."""
    if seen is None or (ended.succeeded and seen.done and seen.attempt == ended.attempt):
        return Move()
    late = Status(
        ended.dataset,
        ended.attempt,
        "processed" if ended.succeeded else "error",
        reason=_reason(verdict.said, _said_by_batch(ended)),
        exit_code=ended.exit_code,
        by=by,
        retry=ended.retry,
        job=ended.job,
        cause=verdict.cause,
    )
    return Move(late, history_only=True, seen=seen)


def _stand(status: Status, settings: Settings, jitter: Callable[[float], float], seen: Status | None) -> Move:
    """Return the move to a status; an attempt that was placed waits, and with a broken deployment all others do."""
    delay = 0.0
    if status.state == "placed" and (budget := settings.budgets.get(_charged(status.cause))):
        delay = jitter(budget.delay(max(status.spent.get(_charged(status.cause), 1) - 1, 0)))
    return Move(status, delay, pause=status.reason if status.cause == "deployment" else "", seen=seen)


def _end(failed: Status, verdict: Verdict, settings: Settings, seen: Status | None) -> str:
    """Say why no other attempt follows one that failed; nothing if one does."""
    charged = _charged(failed.cause)
    budget, spent = settings.budgets.get(charged), failed.spent.get(charged, 0)
    # A rescue resets what was spent, and the attempts before it do not count any more.
    # What all jobs failed of is no fault of the dataset.
    spent_in_all = sum(count for name, count in failed.spent.items() if name != "deployment")
    made = 1 + spent_in_all if seen is not None else failed.attempt
    if verdict.climb and settings.above(failed.rung) is None:
        return "ladder exhausted"
    if verdict.longer and settings.longer(failed.time_limit) <= failed.time_limit:
        return "time limits exhausted"
    if budget is not None and spent >= budget.retries:
        return f"tried again {spent} times" if spent else "not tried again"
    return f"{made} attempts made" if made >= settings.attempts else ""


def _next(failed: Status, verdict: Verdict, settings: Settings) -> Status:
    """Return the attempt that follows one that failed."""
    charged = _charged(failed.cause)
    higher = settings.above(failed.rung) if verdict.climb else None
    return Status(
        failed.dataset,
        failed.attempt + 1,
        "placed",
        reason=failed.reason,
        exit_code=failed.exit_code,
        by=failed.by,
        rung=higher.name if higher else failed.rung,
        time_limit=settings.longer(failed.time_limit) if verdict.longer else failed.time_limit,
        cause=failed.cause,
        spent={**failed.spent, charged: failed.spent.get(charged, 0) + 1},
        fingerprint=failed.fingerprint,
    )


def _charged(cause: str) -> str:
    """Return what the retries of a class of failures are charged to; a deployment that is broken has no budget."""
    return BUDGETS.get(cause, cause)


def _teller(ended: Ended) -> str:
    """Identify news: each job ends once."""
    return f"end of {ended.job or f'run {ended.attempt}.{ended.retry}'}"


def _ending(ended: Ended, seen: Status | None, settings: Settings) -> Status:
    """Return the status of the attempt that has ended, as it was, whatever of it is known."""
    spent = dict(seen.spent) if seen is not None else {}
    now = Status(ended.dataset, ended.attempt, "processing", retry=ended.retry, job=ended.job, spent=spent)
    if seen is not None and seen.attempt == ended.attempt:
        job, retry = seen.job or ended.job, max(seen.retry, ended.retry)
        now = replace(seen, at="", beat="", job=job, retry=retry, spent=spent, history=())
    elif seen is not None:
        now = replace(now, rung=seen.rung, time_limit=seen.time_limit)
    limit = now.time_limit or ended.time_limit or settings.time_limits[-1]
    return replace(now, rung=_rung(now.rung, ended.memory_limit, settings), time_limit=limit)


def _rung(name: str, memory: int, settings: Settings) -> str:
    """Return the step of the ladder that an attempt had; by its memory (bytes) where its name is not known."""
    if name in [rung.name for rung in settings.rungs]:
        return name
    return (settings.holding(memory / _MIB) or settings.rungs[-1]).name


def _said_by_caldp(ended: Ended, evidence: Evidence) -> str:
    """Return what the run said of its failure, if it could."""
    status, told = evidence.status, evidence.told("reason")
    own = status.reason if status and (status.attempt, status.state) == (ended.attempt, "error") else ""
    return _line(told if isinstance(told, str) and told else own)


def _said_by_batch(ended: Ended) -> str:
    told = [text for text in (ended.reason, ended.status_reason) if text and text != _NO_REASON]
    if not told and ended.exit_code:
        told = [f"exit status {ended.exit_code}"]
    return _line("; ".join(told))


def _reason(said: str, detail: str) -> str:
    return f"{said} ({detail})" if detail else said


def _code(ended: Ended, evidence: Evidence) -> int | None:
    status = evidence.status
    if ended.exit_code is not None or status is None or status.attempt != ended.attempt:
        return ended.exit_code
    return status.exit_code


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]


# ---- writing


class _AsSeen:
    """A store in which a status can only be moved on from where it was seen: who comes first counts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a store has
        return getattr(self._store, name)

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """Put; what lost a race for a status is not tried again."""
        try:
            return self._store.put(key, data, mode)
        except ConflictError as error:
            if key.startswith("messages/status/"):
                raise _MovedOnError from error
            raise


class _MovedOnError(Exception):
    """A status was moved by somebody else meanwhile."""


def apply(store: Store, move: Move) -> Status | None:
    """Write down what follows the end of a job.

    Parameters
    ----------
    store : Store
        The batch.
    move : Move
        As ``follow`` returned it.

    Returns
    -------
    Status or None
        How the dataset stands now; None when nothing was to be written.  It is not ``move.status`` if somebody else,
        such as an operator who cancels, has moved it since the evidence was gathered: nothing was changed then.
    """
    return _apply(store, move)[0]


def settle(
    store: Store,
    ended: Ended,
    gather: Callable[[], Evidence],
    settings: Settings,
    jitter: Callable[[float], float],
) -> tuple[Move, Status | None]:
    """Follow the end of a job and apply that, again for as long as somebody else is faster.

    Parameters
    ----------
    store : Store
        The batch.
    ended, settings, jitter
        As for ``follow``.
    gather : callable
        Returns what else is known now.

    Returns
    -------
    move : Move
        What was done.
    status : Status or None
        How the dataset stands now; None when nothing was to be written.

    Raises
    ------
    BusyError
        If somebody else always is.
    """
    for _ in range(_TRIES):
        move = follow(ended, gather(), settings, jitter)
        status, done = _apply(store, move)
        if done:
            return move, status
    raise BusyError(
        f"{ended.dataset}: its status changes whenever it is looked at; nothing was changed", remedy="try again"
    )


def _apply(store: Store, move: Move) -> tuple[Status | None, bool]:
    """Do it, and say whether it is done, or must be thought over because the dataset has moved on."""
    if move.status is None:
        return None, True
    current, etag = messages.read_tagged(store, move.status.dataset)
    if _silent(current) != _silent(move.seen):
        return current, False
    try:
        if current is not None and move.history_only:
            return messages.note(store, current, move.status, etag), True
        stored, written = messages.advance(cast(Store, _AsSeen(store)), move.status, (current, etag))
        if written or stored.by == move.status.by or stored.order != move.status.order:
            return stored, True
        # The run has said itself how it ended; now it is known why, and that it is the end.
        return messages.note(store, replace(move.status, history=stored.history), move.status, etag), True
    except (_MovedOnError, ConflictError):
        return messages.read(store, move.status.dataset), False


def _silent(status: Status | None) -> Status | None:
    return replace(status, beat="") if status is not None else None


# ---- beginning


def hand_over(store: Store, line: Line, shard: str) -> Status:
    """Say in the status of a dataset that its attempt is on its way.

    Parameters
    ----------
    store : Store
        The batch.
    line : Line
        The attempt.
    shard : str
        What it is submitted with.

    Returns
    -------
    Status
        How the dataset stands now: what it was, if it is further, or an operator was faster.
    """
    status = Status(line.dataset, line.attempt, "submitted", shard=shard, rung=line.rung, time_limit=line.time_limit)
    last = messages.read(store, line.dataset)
    if last is not None and last.attempt == line.attempt:
        status = replace(status, cause=last.cause, spent=last.spent, fingerprint=last.fingerprint)
    return messages.advance(store, status)[0]
