"""Compare what was planned, how datasets stand and what AWS Batch says of their jobs, and heal what differs.

Whatever was killed or lost, events of jobs included, this alone brings a campaign to its end.  A second pass changes
nothing, and one that is killed has lost nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from caldp import batch, messages
from caldp.batch import in_threads
from caldp.campaign import hear
from caldp.campaign.control import CLOSED, RELEASED, Control
from caldp.campaign.failures import DUPLICATE, Ended
from caldp.campaign.jobs import is_alive, job_name
from caldp.campaign.progress import take_stock
from caldp.campaign.shards import Line
from caldp.campaign.stack import Stack, log
from caldp.campaign.submit import NOTHING, SETTLED, read_claim
from caldp.errors import CaldpError
from caldp.messages import STATES, Status

#: Seconds that news may need: after them what nobody has done yet was lost.
GRACE = 600.0

#: Seconds after which a job that waits for a host is a matter for people.
TOO_LONG = 1800.0

_OPEN = ("placed", "submitted", "processing")


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
    waiting : float
        Seconds that the oldest job has waited for a host.
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
    waiting: float = 0.0
    paused: str = ""
    closed: bool = False
    open: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything was not as it should be."""
        return any((self.queued, self.heard, self.lost, self.retried, self.terminated, self.repaired))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.__dict__, "waiting": round(self.waiting)}

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
    parent = stack.store(stack.deployment.output)

    def look(name: str) -> bool:
        store = stack.store(f"{parent.uri.rstrip('/')}/{name}")
        control = Control(store)
        return store.get(CLOSED) is None and control.planned() is not None

    names = parent.names("")
    for name, is_open in zip(names, in_threads(look, names), strict=True):
        if is_open:
            yield f"{parent.uri.rstrip('/')}/{name}"


def reconcile_all(stack: Stack) -> list[Report]:
    """Reconcile all open campaigns; one that cannot be is logged, and does not keep the others from it."""
    reports = []
    for output in open_batches(stack):
        try:
            reports.append(reconcile(stack, output))
        except CaldpError as error:
            log.error("%s: %s", output, error)
    return reports


def reconcile(stack: Stack, output: str) -> Report:
    """Bring a campaign nearer to its end.

    Parameters
    ----------
    stack : Stack
        The deployment.
    output : str
        URI of the batch.

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
    return _Pass(stack, stack.control(output)).run()


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

    def __init__(self, stack: Stack, control: Control) -> None:
        self._stack, self._control, self._store = stack, control, control.store
        self._plan = control.plan()
        self._stock = take_stock(control)
        self._now = self._store.clock()
        self._report = Report(self._store.uri, paused=control.paused())

    def run(self) -> Report:
        report, store = self._report, self._store
        names = [name for name, states in self._stock.folders.items() if len(states) > 1]
        report.repaired = sum(len(changes) for changes in batch.repair(store, names)) if names else 0
        shards = self._shards()
        self._jobs([shard for shard in shards.values() if shard.job and shard.lines])
        self._retries()
        self._unjudged()
        self._queue(shards)
        states = [self._stock.listed(name) for name in self._stock.lines]
        report.open = sum(state in _OPEN for state in states)
        if not report.open and not report.changed:
            self._close(states)
            report.closed = True
        return report

    # ---- shards

    def _shards(self) -> dict[str, _Shard]:
        names = self._control.shards()
        claims = in_threads(lambda name: read_claim(self._store, name)[0], names)
        found = {name: _Shard(name, claim) for name, claim in zip(names, claims, strict=True)}
        for name, shard in found.items():
            for line in self._control.lines(name):
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
        if self._store.get(RELEASED) is not None:
            return True
        canary = [name for name in self._plan["canary"] if name in self._stock.lines]
        if any(self._is_open(name) for name in canary):
            return False
        failed = [name for name in canary if self._stock.listed(name) == "error"]
        statuses = in_threads(lambda name: messages.read(self._store, name), failed)
        hopeless = sum(status is not None and status.cause == "deterministic" for status in statuses)
        if canary and hopeless / len(canary) >= self._stack.settings.canary_failures:
            self._report.paused = f"{hopeless} of the {len(canary)} datasets that went first failed for good"
            self._control.pause(self._report.paused)
            return False
        self._control.put_once(RELEASED, json.dumps({"at": messages.now()}).encode() + b"\n")
        return True

    # ---- jobs

    def _jobs(self, shards: list[_Shard]) -> None:
        """Look at the jobs of shards that have open datasets."""
        details = self._stack.jobs.describe(shard.job for shard in shards)
        for shard in shards:
            detail = details.get(shard.job)
            if detail is None:
                self._lose(shard, shard.lines)
                continue
            self._terminate_others(shard, detail)
            self._waiting(detail)
            open_ = {line.dataset for line in shard.lines}
            for ended in self._ended(detail, open_):
                self._hear(ended)

    def _ended(self, detail: Mapping[str, Any], open_: Collection[str]) -> Iterator[Mapping[str, Any]]:
        """Return what Batch says of the jobs of open datasets that have ended."""
        if not detail.get("arrayProperties", {}).get("size"):
            if not is_alive(detail):
                yield detail
            return
        summary = detail["arrayProperties"].get("statusSummary", {})
        manifest = detail.get("parameters", {}).get("manifest", "")
        lines = hear.manifest_lines(manifest) if manifest else []
        ids = []
        for state in ("FAILED", "SUCCEEDED"):
            if not is_alive(detail) or summary.get(state):
                for child in self._stack.jobs.children(detail["jobId"], state):
                    index = child.get("arrayProperties", {}).get("index", int(child["jobId"].rpartition(":")[2]))
                    if index < len(lines) and lines[index].dataset in open_:
                        ids.append(child["jobId"])
        yield from self._stack.jobs.describe(ids).values()

    def _hear(self, detail: Mapping[str, Any]) -> None:
        """Do what the event would have done."""
        if self._age_ms(detail.get("stoppedAt")) > GRACE:
            state = hear.hear(self._stack, detail)
            self._report.heard += state not in ("ignored", "foreign")

    def _lose(self, shard: _Shard, lines: Iterable[Line]) -> None:
        """Go on without a job that AWS Batch does not know any more."""
        if shard.claim is None or self._age(shard.claim.get("submitted", shard.claim["claimed"])) < GRACE:
            return
        for line in lines:
            self._follow(line.dataset, line.attempt, shard.job, "AWS Batch does not know its job any more")
            self._report.lost += 1

    def _follow(self, dataset: str, attempt: int, job: str, reason: str, code: int | None = None) -> None:
        status = messages.read(self._store, dataset)
        is_known = status is not None and status.attempt == attempt
        ended = Ended(
            dataset,
            attempt,
            succeeded=False,
            exit_code=code,
            status_reason=reason,
            job=(status.job if status is not None and is_known else "") or f"{job}/{dataset}",
            retry=status.retry if status is not None and is_known else 1,
            output=self._store.uri,
        )
        hear.follow(self._stack, self._control, ended)

    def _terminate_others(self, shard: _Shard, detail: Mapping[str, Any]) -> None:
        """End jobs that a shard has besides the one that its claim names."""
        for other in self._stack.jobs.find(job_name(shard.name, self._store.uri), detail["jobQueue"]):
            if other["jobId"] != shard.job and is_alive(other):
                self._stack.jobs.terminate(other["jobId"], f"{DUPLICATE} of {shard.job}")
                self._report.terminated += 1

    def _waiting(self, detail: Mapping[str, Any]) -> None:
        """See whether a job gets no host."""
        summary = detail.get("arrayProperties", {}).get("statusSummary", {})
        waits = detail.get("status") == "RUNNABLE" or (summary.get("RUNNABLE") and not summary.get("RUNNING"))
        if not waits:
            return
        self._report.waiting = max(self._report.waiting, self._age_ms(detail.get("createdAt")))
        reason = str(detail.get("statusReason", ""))
        if reason.startswith("MISCONFIGURATION:") and not self._report.paused:
            self._report.paused = reason
            self._control.pause(reason)

    # ---- datasets

    def _retries(self) -> None:
        """Queue datasets whose next attempt was placed, but is in no queue."""
        unseen = [line for line in self._stock.lines.values() if not self._stock.folders.get(line.dataset)]
        for line, status in zip(unseen, self._statuses(line.dataset for line in unseen), strict=True):
            if status is None or status.state != "placed" or status.attempt <= line.attempt or self._report.paused:
                continue
            budget = self._stack.settings.budgets.get("transient")
            longest = max(budget.delays) if budget else 0
            wait = longest if status.cause in ("transient", "host", "unknown") else 0
            if self._age(status.at) > wait + GRACE:
                hear.again(self._stack, self._control, status)
                self._report.retried += 1

    def _unjudged(self) -> None:
        """Judge jobs that have said themselves that they failed, but of whose end nobody has heard."""
        failed = [name for name in self._stock.lines if self._stock.listed(name) == "error"]
        statuses = [status for status in self._statuses(failed) if status is not None]
        lost = [s for s in statuses if s.state == "error" and s.rung and not s.cause and self._age(s.at) > GRACE]
        details = self._stack.jobs.describe(status.job for status in lost if status.job)
        for status in lost:
            detail = details.get(status.job)
            if detail is not None and not is_alive(detail):
                self._hear(detail)
            elif detail is None:
                self._follow(status.dataset, status.attempt, status.job, "", status.exit_code)
                self._report.heard += 1

    def _statuses(self, names: Iterable[str]) -> list[Status | None]:
        return list(in_threads(lambda name: messages.read(self._store, name), names))

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

    def _close(self, states: Iterable[str]) -> None:
        counts = dict.fromkeys(STATES, 0)
        for state in states:
            counts[state] += 1
        record = {"at": messages.now(), "states": {state: count for state, count in counts.items() if count}}
        self._control.put_once(CLOSED, json.dumps(record, indent=1).encode() + b"\n")
