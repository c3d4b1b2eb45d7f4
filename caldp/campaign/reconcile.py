"""Compare what was planned, how datasets stand and what AWS Batch says of their jobs, and heal what differs.

Whatever was killed or lost, events of jobs included, this alone brings a campaign to its end.  A second pass changes
nothing, and one that is killed has lost nothing.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from caldp import batch, messages
from caldp.batch import in_threads
from caldp.campaign import hear, observe, transitions
from caldp.campaign.control import SEEN, WENT_FIRST, Control
from caldp.campaign.failures import DUPLICATE, Ended
from caldp.campaign.hear import Heard
from caldp.campaign.jobs import is_alive, job_name
from caldp.campaign.progress import settled_stock
from caldp.campaign.shards import Line
from caldp.campaign.stack import Stack, log
from caldp.campaign.submit import NOTHING, SETTLED, read_claim
from caldp.errors import CaldpError
from caldp.messages import STATES, Status
from caldp.store import Overwrite

#: Seconds that news may need: after them what nobody has done yet was lost.
GRACE = 600.0

#: Seconds after which a job that waits for a host is a matter for people.
TOO_LONG = 1800.0

#: Seconds that a pass over all campaigns takes at most, or little more: less than the function may.
ENOUGH = 720.0

_OPEN = ("placed", "submitted", "processing")

#: States of jobs that have a host.
_RUNS = ("STARTING", "RUNNING")

#: How a dataset may stand when its job has ended, and that was heard of.
_ENDED = tuple(state for state in STATES if state not in ("submitted", "processing"))


@dataclass
class Report:
    """What was found, and done about it.

    Attributes
    ----------
    batch : str
        Where.
    queued : int
        Shards that were queued again.
    heard : int
        Datasets whose job had ended, and nobody knew.
    lost : int
        Datasets whose job AWS Batch does not know.
    retried : int
        Datasets that waited for another attempt in no queue.
    terminated : int
        Jobs of shards that had two.
    repaired : int
        Messages that were not as the status says.
    ended : dict
        Datasets that were processed, and that failed for good (``error``), since the pass before.
    again : int
        Datasets that are tried again for what no event has told.
    waiting : float
        Seconds that the oldest job has waited for a host in a queue in which no other runs.
    waits : dict
        The same for each queue in which any waits.
    busy : list of str
        Queues in which jobs run.
    paused : str
        Why nothing more is submitted, or empty.
    closed : bool
        Whether all datasets have come to their end.
    open : int
        Those that have not.
    """

    batch: str
    queued: int = 0
    heard: int = 0
    lost: int = 0
    retried: int = 0
    terminated: int = 0
    repaired: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    again: int = 0
    waiting: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    paused: str = ""
    closed: bool = False
    open: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything was not as it should be."""
        return any((self.queued, self.heard, self.lost, self.retried, self.terminated, self.repaired))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        waits = {queue: round(age) for queue, age in self.waits.items()}
        return {**self.__dict__, "waiting": round(self.waiting), "waits": waits}

    def wait(self, busy: Collection[str]) -> None:
        """Count how long jobs wait, where no other runs: in a large campaign most of them wait for those before."""
        self.waiting = max((age for queue, age in self.waits.items() if queue not in busy), default=0.0)

    def __str__(self) -> str:
        counts = {
            "shards queued again": self.queued,
            "ends of jobs heard of": self.heard,
            "jobs lost": self.lost,
            "datasets tried again": self.retried,
            "jobs terminated that were there twice": self.terminated,
            "messages repaired": self.repaired,
        }
        said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing to heal"
        ends = [f"paused: {self.paused}"] if self.paused else []
        ends += ["all datasets have come to their end"] if self.closed else [f"{self.open:,} datasets are open"]
        return "; ".join([f"{self.batch}: {said}", *ends])


def open_batches(stack: Stack) -> Iterator[str]:
    """Return where the campaigns of a deployment are that have not come to their end."""

    def look(output: str) -> bool:
        try:
            control = stack.control(output)
            return not control.closed() and control.planned() is not None
        except CaldpError as error:  # it is damaged, or in a bucket that the deployment has no more
            log.error("%s: %s", output, error)
            return False

    outputs = stack.outputs()
    for output, is_open in zip(outputs, in_threads(look, outputs), strict=True):
        if is_open:
            yield output


def reconcile_all(stack: Stack, seconds: float = ENOUGH) -> list[Report]:
    """Reconcile all open campaigns, in any order; one that cannot be is logged, and does not keep the others from it.

    Parameters
    ----------
    stack : Stack
        The deployment.
    seconds : float, optional
        No look at another job is taken after so many: the next pass goes on, with others first.

    Returns
    -------
    list of Report
    """
    end = time.monotonic() + seconds
    outputs = list(open_batches(stack))
    random.shuffle(outputs)
    reports = []
    for output in outputs:
        try:
            reports.append(reconcile(stack, output, end - time.monotonic()))
        except Exception as error:  # noqa: BLE001 - whatever it is
            log.error("%s cannot be reconciled: %s: %s", output, type(error).__name__, error)
    busy = {queue for report in reports for queue in report.busy}
    for report in reports:
        report.wait(busy)
    return reports


def reconcile(stack: Stack, output: str, seconds: float = math.inf) -> Report:
    """Bring a campaign nearer to its end.

    Parameters
    ----------
    stack : Stack
        The deployment.
    output : str
        URI of the batch.
    seconds : float, optional
        No look at another job is taken after so many.

    Returns
    -------
    Report

    Raises
    ------
    UsageError
        If there is no campaign.
    CaldpError
        If S3 does not answer, or what is there is damaged.
    """
    return _Pass(stack, stack.control(output), time.monotonic() + seconds).run()


@dataclass
class _Shard:
    """A shard, and those of its datasets that have not come to their end."""

    name: str
    claim: dict[str, Any] | None
    lines: list[Line] = field(default_factory=list)

    @property
    def job(self) -> str:
        """Id of its job, or nothing."""
        job = str(self.claim["job"]) if self.claim else ""
        return "" if job == NOTHING else job


class _Pass:
    """One pass over one campaign."""

    def __init__(self, stack: Stack, control: Control, end: float) -> None:
        self._stack, self._control, self._store, self._end = stack, control, control.store, end
        self._plan = control.plan()
        self._stock = settled_stock(control)
        self._now = self._store.clock()
        self._report = Report(self._store.uri, paused=control.paused())
        #: Open datasets whose job is at work, or has ended only just now.
        self._at_work: set[str] = set()

    def run(self) -> Report:
        report = self._report
        self._mend([name for name, states in self._stock.folders.items() if len(states) > 1])
        shards = self._shards()
        self._jobs([shard for shard in shards.values() if shard.job and shard.lines])
        self._strays(shards)
        unjudged = self._unjudged()
        self._queue(shards)
        report.wait(report.busy)
        states = Counter(self._stock.listed(name) for name in self._stock.lines)
        report.open = sum(states[state] for state in _OPEN) + unjudged
        self._count(states, unjudged)
        if not report.open and not report.changed and not self._is_cancelled_in_name_only() and self._is_learned():
            report.closed = self._is_closed(states)
        return report

    def _count(self, states: Mapping[str, int], unjudged: int) -> None:
        """Count what has ended since the pass before: not all news come, and some come twice."""
        done = sum(count for state, count in states.items() if STATES[state][0] >= STATES["processed"][0])
        now, before = {"processed": done, "error": states["error"] - unjudged}, self._control.read(SEEN) or {}
        self._report.ended = {name: max(count - int(before.get(name, 0)), 0) for name, count in now.items()}
        if now != (before or dict.fromkeys(now, 0)):
            self._store.put(SEEN, json.dumps(now).encode() + b"\n", Overwrite())

    def _is_closed(self, states: Mapping[str, int]) -> bool:
        """Close it, and look again: somebody may have given a dataset another attempt meanwhile."""
        self._control.close({state: states[state] for state in STATES if states[state]})
        stock = settled_stock(self._control)
        self._report.open = sum(stock.listed(name) in _OPEN for name in stock.lines)
        if self._report.open:
            self._control.reopen()
        return not self._report.open

    def _is_learned(self) -> bool:
        """Keep what jobs have used, a part in each pass; say whether that was the last part."""
        done = [name for name in self._stock.lines if STATES[self._stock.listed(name)][0] >= STATES["processed"][0]]
        return observe.fold(self._control, self._stack.place(self._store.uri), done)

    def _mend(self, names: Sequence[str]) -> None:
        """Make the folders show what the statuses of datasets say."""
        if names:
            for changes in batch.repair(self._store, names):
                self._report.repaired += sum(change.action in ("created", "removed") for change in changes)

    # ---- shards

    def _shards(self) -> dict[str, _Shard]:
        names = self._control.shards()
        claims = in_threads(lambda name: read_claim(self._store, name)[0], names)
        found = {name: _Shard(name, claim) for name, claim in zip(names, claims, strict=True)}
        manifests = in_threads(self._control.lines, names)
        for shard, lines in zip(found.values(), manifests, strict=True):
            for line in lines:
                last = self._stock.lines.get(line.dataset)
                if last is not None and last.attempt == line.attempt and self._is_open(line.dataset):
                    shard.lines.append(line)
        return found

    def _is_open(self, dataset: str) -> bool:
        return self._stock.listed(dataset) in _OPEN

    def _queue(self, shards: Mapping[str, _Shard]) -> None:
        """Queue shards that nobody has submitted to the end."""
        if self._report.paused:
            return
        first = set(self._plan.get("first", ()))
        planned = set(self._plan["shards"])
        forgotten = [shard.name for shard in shards.values() if self._is_forgotten(shard)]
        held = [name for name in forgotten if name in planned and name not in first] if first else []
        if held and not self._is_released():
            forgotten = [name for name in forgotten if name not in held]
        if self._report.paused:
            return
        bodies = ({"output": self._store.uri, "shard": name} for name in forgotten)
        self._report.queued = self._stack.send(self._stack.deployment.shard_queue, bodies)

    def _is_forgotten(self, shard: _Shard) -> bool:
        """Say whether a shard is to be queued: it has open datasets, and was not submitted, or not to the end."""
        if shard.claim is None:
            return bool(shard.lines)
        return not shard.claim["job"] and self._age(shard.claim["claimed"]) > SETTLED

    def _is_released(self) -> bool:
        """Say whether the rest may follow the datasets that went first."""
        if self._control.released():
            return True
        canary = [name for name in self._plan["canary"] if name in self._stock.lines]
        if any(self._is_open(name) for name in canary):
            return False
        failed = [name for name in canary if self._stock.listed(name) == "error"]
        statuses = self._control.statuses(failed)
        if any(status is None or _is_unjudged(status) for status in statuses):
            return False  # nobody knows yet whether it failed for good
        hopeless = sum(status is not None and status.cause == "deterministic" for status in statuses)
        if canary and hopeless / len(canary) >= self._stack.settings.canary_failures:
            self._report.paused = self._control.pause(f"{hopeless} of the {len(canary)} {WENT_FIRST}")
            return False
        self._control.release()
        return True

    # ---- jobs

    def _jobs(self, shards: list[_Shard]) -> None:
        """Look at the jobs of shards that have open datasets."""
        details = self._stack.jobs.describe(shard.job for shard in shards)
        known = [shard for shard in shards if shard.job in details]
        random.shuffle(known)  # where there is no time for all, it is for others each time
        for shard in known:
            detail = details[shard.job]
            self._waiting(detail)
            if time.monotonic() > self._end:
                self._at_work |= {line.dataset for line in shard.lines}
                continue
            self._terminate_others(shard, detail)
            members = self._members(detail)
            # Those that no folder shows have been heard of, and wait for their next attempt: see the strays.
            open_ = {line.dataset for line in shard.lines if self._folder(line.dataset)} & members.keys()
            ended = self._ended(detail, {members[name]: name for name in open_})
            self._at_work |= open_ - set(ended)
            for name, job in ended.items():
                self._hear(name, job)

    def _members(self, detail: Mapping[str, Any]) -> dict[str, int]:
        """Return the datasets that a job was submitted with, and which of its children they are."""
        parameters = detail.get("parameters", {})
        if not detail.get("arrayProperties", {}).get("size"):
            return {str(parameters.get("dataset", "")): 0}
        manifest = str(parameters.get("manifest", ""))
        return {line.dataset: index for index, line in enumerate(self._stack.lines(manifest))} if manifest else {}

    def _ended(self, detail: Mapping[str, Any], wanted: Mapping[int, str]) -> dict[str, Mapping[str, Any]]:
        """Return the jobs of datasets that have ended."""
        array = detail.get("arrayProperties", {})
        if not array.get("size"):
            return {} if is_alive(detail) else {name: detail for name in wanted.values()}
        summary = array.get("statusSummary", {})
        ids = {}
        for state in ("FAILED", "SUCCEEDED"):
            if wanted and (not is_alive(detail) or summary.get(state)):
                for child in self._stack.jobs.children(detail["jobId"], state):
                    index = child.get("arrayProperties", {}).get("index", int(child["jobId"].rpartition(":")[2]))
                    if index in wanted:
                        ids[child["jobId"]] = wanted[index]
        return {ids[job]: known for job, known in self._stack.jobs.describe(ids).items()}

    def _hear(self, dataset: str, detail: Mapping[str, Any]) -> None:
        """Do what the event would have done, if it is late."""
        if self._age_ms(detail.get("stoppedAt")) <= GRACE:
            self._at_work.add(dataset)
            return
        before = self._stock.listed(dataset)
        state = self._told(hear.hear(self._stack, detail))
        if state in _ENDED:
            self._at_work.add(dataset)  # no stray
            self._report.heard += 1
            # Whoever wrote the status may have died before the folders showed it.
            shown, folder = STATES[state][1], STATES[before][1]
            key = f"messages/{shown or folder}/{dataset}"
            if (shown or folder) and (self._store.get(key) is None) == bool(shown):
                self._mend([dataset])

    def _strays(self, shards: Mapping[str, _Shard]) -> None:
        """Look at open datasets of which no job is at work that their shards know."""
        names = [name for name in self._stock.lines if self._is_open(name) and name not in self._at_work]
        if not names:
            return
        recorded = {name.removesuffix(".json") for name in self._store.names("messages/status")}
        names = [name for name in names if name in recorded]
        found = [
            (name, status)
            for name, status in zip(names, self._control.statuses(names), strict=True)
            if status is not None
        ]
        self._mend([name for name, status in found if STATES[status.state][1] != self._folder(name)])
        for name, status in found:
            if status.state == "placed" and status.attempt > self._stock.lines[name].attempt:
                self._retry(status)
        # What is from before the campaign is none of its business.
        begun = [
            status
            for name, status in found
            if status.state in ("submitted", "processing") and status.attempt >= self._stock.firsts.get(name, 1)
        ]
        details = self._stack.jobs.describe(status.job for status in begun if status.job)
        for status in begun:
            self._find(status, shards.get(status.shard), details.get(status.job))

    def _folder(self, dataset: str) -> str:
        return STATES[self._stock.listed(dataset)][1] if self._stock.folders.get(dataset) else ""

    def _find(self, status: Status, shard: _Shard | None, detail: Mapping[str, Any] | None) -> None:
        """Go on with a dataset whose job has ended, although what was heard of it did not count, or that has none."""
        if detail is not None:
            if not is_alive(detail) and self._age_ms(detail.get("stoppedAt")) > GRACE:
                if self._told(hear.hear(self._stack, detail)) not in _ENDED:
                    said = f"its job has ended ({detail.get('status')}), but not what it did"
                    self._follow(status, said, ":unheard")
                self._report.heard += 1
            return
        is_submitting = shard is not None and shard.claim is not None and not shard.claim["job"]
        claimed = shard.claim.get("submitted") or shard.claim["claimed"] if shard is not None and shard.claim else ""
        silent = messages.silence(self._store, status) > GRACE
        if silent and not is_submitting and (not claimed or self._age(claimed) > GRACE):
            self._follow(status, "AWS Batch does not know its job any more", ":lost")
            self._report.lost += 1

    def _follow(self, status: Status, reason: str, mark: str, code: int | None = None) -> None:
        """Judge a dataset of whose end nobody will hear."""
        ended = Ended(
            status.dataset,
            status.attempt,
            succeeded=False,
            exit_code=code,
            status_reason=reason,
            # News of its own: whatever was heard of that job before did not count.
            job=f"{status.job or f'{status.shard}/{status.dataset}'}{mark}",
            retry=status.retry,
            output=self._store.uri,
        )
        self._told(hear.follow(self._stack, self._control, ended))

    def _told(self, heard: Heard) -> str:
        """Count a dataset that is tried again; return its state."""
        self._report.again += heard.moved and heard.state == "placed"
        return heard.state

    def _terminate_others(self, shard: _Shard, detail: Mapping[str, Any]) -> None:
        """End jobs that a shard has besides the one that its claim names."""
        for other in self._stack.jobs.find(job_name(shard.name, self._store.uri), detail["jobQueue"]):
            if other["jobId"] != shard.job and is_alive(other):
                self._stack.jobs.terminate(other["jobId"], f"{DUPLICATE} of {shard.job}")
                self._report.terminated += 1

    def _waiting(self, detail: Mapping[str, Any]) -> None:
        """See whether a job gets no host."""
        queue = PurePosixPath(str(detail.get("jobQueue", ""))).name
        summary = detail.get("arrayProperties", {}).get("statusSummary", {})
        waits = detail.get("status") == "RUNNABLE" or (summary.get("RUNNABLE") and not summary.get("RUNNING"))
        if detail.get("status") in _RUNS or any(summary.get(state) for state in _RUNS):
            self._report.busy = sorted({*self._report.busy, queue})
        if not waits:
            return
        age, reason = self._age_ms(detail.get("createdAt")), str(detail.get("statusReason", ""))
        self._report.waits[queue] = max(self._report.waits.get(queue, 0.0), age)
        if age > TOO_LONG:
            log.warning("%s waits for a host since %.0f s: %s", detail["jobId"], age, reason or "nobody says why")
        if reason.startswith("MISCONFIGURATION:") and not self._report.paused:
            self._report.paused = self._control.pause(reason)

    # ---- datasets

    def _retry(self, status: Status) -> None:
        """Queue a dataset whose next attempt was placed, but is in no queue."""
        if self._report.paused:
            return
        charged = transitions.BUDGETS.get(status.cause, "")
        budget = self._stack.settings.budgets.get(charged)
        wait = budget.delay(max(status.spent.get(charged, 1) - 1, 0)) if budget else 0
        if self._age(status.at) > wait + GRACE:
            hear.again(self._stack, self._control, status)
            self._report.retried += 1

    def _unjudged(self) -> int:
        """Judge jobs that said that they failed, but of whose end nobody has heard; count what nobody had judged."""
        failed = [name for name in self._stock.lines if self._stock.listed(name) == "error"]
        found = [
            (name, status)
            for name, status in zip(failed, self._control.statuses(failed), strict=True)
            if status is not None
        ]
        self._mend([name for name, status in found if status.state != "error"])
        unjudged = [status for _, status in found if _is_unjudged(status)]
        late = [status for status in unjudged if self._age(status.at) > GRACE]
        details = self._stack.jobs.describe(status.job for status in late if status.job)
        for status in late:
            detail = details.get(status.job)
            if detail is not None and (is_alive(detail) or self._age_ms(detail.get("stoppedAt")) <= GRACE):
                continue
            if detail is not None:
                self._told(hear.hear(self._stack, detail))
            there = messages.read(self._store, status.dataset)
            if there is not None and _is_unjudged(there) and there.order == status.order:
                self._follow(status, "", ":unheard", status.exit_code)
            self._report.heard += 1
        return len(unjudged)

    def _is_cancelled_in_name_only(self) -> bool:
        """Look at what is cancelled, before nobody looks any more; say whether some of it is not."""
        names = [name for name in self._stock.lines if self._stock.listed(name) == "cancelled"]
        statuses = zip(names, self._control.statuses(names), strict=True)
        self._mend([name for name, status in statuses if status is not None and status.state != "cancelled"])
        return self._report.changed

    def _age(self, at: str) -> float:
        """Seconds since a time; none if it is no time."""
        try:
            return (self._now - datetime.fromisoformat(at)).total_seconds()
        except (ValueError, TypeError):
            return 0.0

    def _age_ms(self, at: object) -> float:
        """Seconds since a time as AWS Batch has it."""
        then = datetime.fromtimestamp(at / 1000, UTC) if isinstance(at, int | float) and at > 0 else None
        return (self._now - then).total_seconds() if then else GRACE + 1


def _is_unjudged(status: Status) -> bool:
    """Whether a job has said that it failed, and the campaign has not said yet what follows from that."""
    return status.state == "error" and bool(status.rung) and not status.cause
