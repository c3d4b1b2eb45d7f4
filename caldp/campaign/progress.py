"""How a campaign stands, how fast it goes, when it will be done, why datasets fail, and what it costs.

The folders of ``messages/`` are listed, a thousand datasets a request on S3, and compared with what was planned; status
records are read of some datasets in each state only, where there are many.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from caldp import batch, messages
from caldp.batch import EXAMPLES, FAILED, FOLDERS, OPEN, PROCESSED, Cause, Standing, code_name, in_threads
from caldp.campaign import plan
from caldp.campaign.control import REJECTED, Control
from caldp.campaign.settings import Prices, Rung, Settings
from caldp.campaign.shards import Line
from caldp.causes import normalised
from caldp.dataset import Dataset
from caldp.errors import OutputError
from caldp.messages import STATES, Claim, Status
from caldp.reporter import printable

#: Status records that are read at most, of datasets in one state; of other states ``_OF_OTHERS``.
LIMITS = {"error": 600, "done": 600, "processing": 300}
_OF_OTHERS = 100

#: Classes of failures: of what is calibrated, and of what it is calibrated with.
PAYLOAD, INFRASTRUCTURE = ("deterministic", "oom", "timeout"), ("host", "transient", "deployment")

#: Kinds of failures, in the order in which they are shown.
KINDS = ("payload", "infrastructure", "unknown")

_MIB = 1024**2

#: Datasets that must have ended lately for how fast that went to say anything.
_ENOUGH = 5

#: How long ago "lately" begins, in seconds: a quarter of the time that the campaign has taken, within these.
_LATELY = (60.0, 3600.0)

#: Shards of datasets that are tried again; see ``shards.rescue_shards``.
_RESCUE = re.compile(r"-r[0-9a-f]{8,16}$")

_DONE = ("processed", "synced", "archived")
_OPEN = ("placed", "submitted", "processing")


def kind_of(cause: str) -> str:
    """Return ``payload``, ``infrastructure`` or ``unknown`` for a class of failures."""
    return "payload" if cause in PAYLOAD else "infrastructure" if cause in INFRASTRUCTURE else "unknown"


# ---- what is there


@dataclass(frozen=True)
class Stock:
    """What a campaign is about, as lists tell.

    Attributes
    ----------
    lines : mapping
        The last planned attempt of each dataset, by name.
    firsts : mapping
        The first planned attempt of datasets, by name, where that is not 1.
    folders : mapping
        The states that show a dataset, the lowest first; those that none shows are not in it.
    doubtful : frozenset of str
        Datasets of which only the status tells how they stand: what shows them may be from before the campaign.
    others : int
        Datasets in the batch that are not the campaign's.
    skipped : int
        Datasets of the list that had been processed before, and stay as they are.
    """

    lines: Mapping[str, Line]
    firsts: Mapping[str, int]
    folders: Mapping[str, tuple[str, ...]]
    doubtful: frozenset[str]
    others: int
    skipped: int

    def listed(self, dataset: str) -> str:
        """Return the state of a dataset as far as lists tell: what nothing shows waits."""
        states = self.folders.get(dataset, ())
        return states[-1] if states else "placed"


def take_stock(control: Control) -> Stock:
    """List what was planned, and what the folders of ``messages/`` show.

    Parameters
    ----------
    control : Control
        The campaign.

    Returns
    -------
    Stock

    Raises
    ------
    UsageError
        If there is no campaign.
    InputError
        If a manifest is missing or damaged.
    S3DownloadError
        If S3 does not answer, or refuses.
    """
    skipped = {name for name in _listed(control.plan(), "skipped") if isinstance(name, str)}
    store = control.store
    shards = control.shards()
    tasks: list[Callable[[], Any]] = [lambda key=f"messages/{folder}": store.names(key) for folder in FOLDERS.values()]  # type: ignore[misc]
    tasks += [lambda shard=shard: control.lines(shard) for shard in shards]  # type: ignore[misc]
    found = list(in_threads(lambda task: task(), tasks))
    lines: dict[str, Line] = {}
    firsts: dict[str, int] = {}
    for shard, planned in zip(shards, found[len(FOLDERS) :], strict=True):
        is_rescue = _RESCUE.search(shard) is not None
        for line in planned:
            if line.dataset not in lines or lines[line.dataset].attempt < line.attempt:
                lines[line.dataset] = line
            if line.attempt > 1 and not is_rescue:
                firsts[line.dataset] = line.attempt
    folders: dict[str, tuple[str, ...]] = {}
    others = set()
    for state, names in zip(FOLDERS, found, strict=False):
        for name in names:
            if name in lines:
                folders[name] = (*folders.get(name, ()), state)
            else:
                others.add(name)
    ended = {name for name in firsts if folders.get(name, ("placed",))[-1] not in _OPEN}
    return Stock(lines, firsts, folders, frozenset(ended), len(others - skipped), len(skipped))


def settled_stock(control: Control) -> Stock:
    """Take stock, and read the statuses of what is doubtful: what is from before the campaign shows nothing.

    Parameters
    ----------
    control : Control
        The campaign.

    Returns
    -------
    Stock
        Nothing in it is doubtful; a status that cannot be understood counts as what the folders show.

    Raises
    ------
    UsageError, InputError, S3DownloadError
        As ``take_stock``.
    """
    stock = take_stock(control)

    def is_before(name: str) -> bool:
        with contextlib.suppress(OutputError):
            status = messages.read(control.store, name)
            return status is None or not status.rung or status.attempt < stock.firsts[name]
        return False

    names = sorted(stock.doubtful)
    before = {name for name, earlier in zip(names, in_threads(is_before, names), strict=True) if earlier}
    folders = {name: states for name, states in stock.folders.items() if name not in before}
    return replace(stock, folders=folders, doubtful=frozenset())


def _listed(record: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = record.get(name)
    return value if isinstance(value, list) else []


@dataclass(frozen=True)
class Sample:
    """Datasets whose status was read.

    Attributes
    ----------
    standings : mapping
        How they stand, by name.
    weights : mapping
        For how many datasets each stands.
    states : mapping
        The state of every dataset of the campaign, read or not; empty for those whose status is damaged.
    """

    standings: Mapping[str, Standing]
    weights: Mapping[str, float]
    states: Mapping[str, str]

    @property
    def partial(self) -> bool:
        """Whether there are datasets whose status was not read."""
        return len(self.standings) < len(self.states)

    def statuses(self) -> Iterator[tuple[Status, float]]:
        """Return the statuses of the campaign, and for how many datasets each stands."""
        for name, standing in self.standings.items():
            if standing.status is not None:
                yield standing.status, self.weights[name]


def look_at(
    control: Control,
    stock: Stock,
    patience: float = Claim.patience,
    limit: int | None = None,
) -> Sample:
    """Read the status of some datasets in each state, spread over their names.

    Parameters
    ----------
    control : Control
        The campaign.
    stock : Stock
        What is there.
    patience : float, optional
        Seconds without a sign of life after which a run is taken for dead, where no lock tells.
    limit : int, optional
        How many in each state at most, instead of ``LIMITS``; 0 for all.

    Returns
    -------
    Sample

    Raises
    ------
    S3DownloadError
        If S3 does not answer, or refuses.
    """
    strata: dict[str, list[str]] = {}
    for name in sorted(stock.lines):
        several, state = len(stock.folders.get(name, ())) > 1, stock.listed(name)
        state = "several" if several else "done" if state in _DONE else state
        key = "doubtful" if name in stock.doubtful else state
        strata.setdefault(key, []).append(name)
    chosen: dict[str, None] = {}
    for key, names in strata.items():
        most = LIMITS.get(key, _OF_OTHERS) if limit is None else limit
        chosen |= dict.fromkeys(names if key == "doubtful" else batch.spread(names, most))

    def look(name: str) -> Standing:
        standing = batch.standing_of(control.store, name, stock.folders.get(name, ()), patience)
        return _in_campaign(standing or Standing(name, "placed"), stock.firsts.get(name, 1))

    standings = {standing.dataset: standing for standing in in_threads(look, chosen)}
    weights: dict[str, float] = {}
    for names in strata.values():
        read = [name for name in names if name in standings]
        weights |= dict.fromkeys(read, len(names) / max(len(read), 1))
    states = {name: standings[name].state if name in standings else stock.listed(name) for name in stock.lines}
    return Sample(standings, weights, states)


def _in_campaign(standing: Standing, first: int) -> Standing:
    """Return how a dataset stands in a campaign that begins with an attempt of it, without what was before."""
    status = standing.status
    if status is None:
        return standing
    if not status.rung or status.attempt < first:
        return Standing(standing.dataset, "placed")
    entries = (entry for entry in batch.history(status) if not _is_before(entry, first))
    return replace(standing, status=replace(status, history=tuple(entries)))


def _is_before(entry: Mapping[str, Any], first: int) -> bool:
    attempt = entry.get("attempt")
    return type(attempt) is int and attempt < first


# ---- what happened to a dataset


@dataclass(frozen=True)
class Step:
    """A state that a dataset came to.

    Attributes
    ----------
    at : datetime
        When, never before the step before.
    state : str
        A key of ``STATES``.
    attempt, retry : int
        Of which start.
    entry : mapping
        The entry of the history.
    """

    at: datetime
    state: str
    attempt: int
    retry: int
    entry: Mapping[str, Any]


def when(text: object) -> datetime | None:
    """Read a time of a record; None if it is none."""
    try:
        time = datetime.fromisoformat(str(text))
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def steps(status: Status) -> list[Step]:
    """Return what happened to a dataset in its campaign, in order, without news that came too late to count."""
    found: list[Step] = []
    for entry in batch.history(status):
        at, state = when(entry.get("at")), entry.get("state")
        is_ours = bool(found or entry.get("rung"))
        if at is None or state not in STATES or entry.get("cause") == "stale" or not is_ours:
            continue
        attempt, retry = (n if type(n := entry.get(key)) is int else 1 for key in ("attempt", "retry"))
        found.append(Step(max(at, found[-1].at) if found else at, state, attempt, retry, entry))
    return found


def ended_at(status: Status, taken: Sequence[Step]) -> datetime | None:
    """Return when a dataset came to its end; None if it has not, or nobody knows."""
    if status.state in _OPEN:
        return None
    last = [step.at for step in taken if step.state == status.state]
    done = [step.at for step in taken if step.state in _DONE] if status.done else []
    return done[0] if done else last[-1] if last else when(status.at)


@dataclass(frozen=True)
class Run:
    """One start of a job that has ended.

    Attributes
    ----------
    dataset, instrument : str
        Whose.
    attempt, retry : int
        Which.
    rung : str
        Step of the memory ladder.
    time_limit : int
        Seconds; 0 when nobody knows.
    seconds : float
        Wall time.
    memory, memory_limit : int
        What it has used at most, and what it was given, bytes; 0 when nobody knows.
    outcome : str
        ``processed``, or the class of the failure.
    weight : float
        How many runs it stands for.
    """

    dataset: str
    instrument: str
    attempt: int
    retry: int
    rung: str
    time_limit: int
    seconds: float
    memory: int
    memory_limit: int
    outcome: str
    weight: float = 1.0

    @property
    def is_retry(self) -> bool:
        """Whether an earlier one of the same dataset had failed."""
        return self.attempt > 1 or self.retry > 1


def runs(control: Control, sample: Sample, settings: Settings) -> list[Run]:
    """Return the runs of the datasets that were read, with what each said of itself, if it could.

    Parameters
    ----------
    control : Control
        The campaign.
    sample : Sample
        The datasets.
    settings : Settings
        Have the ladder.

    Returns
    -------
    list of Run

    Raises
    ------
    S3DownloadError
        If S3 does not answer, or refuses.
    """
    found = [(status, weight, run) for status, weight in sample.statuses() for run in _starts(status)]

    def result(item: tuple[Status, float, tuple[Step, Step, str]]) -> Mapping[str, Any]:
        status, _, (begun, _, _) = item
        with contextlib.suppress(OutputError):  # a damaged one is as good as none
            return control.result(status.dataset, begun.attempt, begun.retry) or {}
        return {}

    return [
        _run(status, weight, *run, said, settings)
        for (status, weight, run), said in zip(found, in_threads(result, found), strict=True)
    ]


def _starts(status: Status) -> list[tuple[Step, Step, str]]:
    """Return the beginning of each run that has ended, what came after, and what became of it."""
    taken = steps(status)
    found = []
    for number, (step, after) in enumerate(zip(taken, taken[1:], strict=False)):
        if step.state == "processing":
            found.append((step, after, _outcome(status, taken[number + 1 :])))
    return found


def _outcome(status: Status, then: Sequence[Step]) -> str:
    """Return ``processed``, or the class of a failure, of a run that some steps came after."""
    after = then[0]
    if after.state in _DONE or after.state == "cancelled":
        return "cancelled" if after.state == "cancelled" else "processed"
    # A job does not know the class of its failure: the campaign says it afterwards, before anything else begins.
    for step in then:
        if step.state not in ("error", "placed"):
            return "unknown"
        if cause := step.entry.get("cause"):
            return str(cause)
    return str(status.cause or "unknown")


def _run(
    status: Status,
    weight: float,
    begun: Step,
    after: Step,
    outcome: str,
    said: Mapping[str, Any],
    settings: Settings,
) -> Run:
    rung = _rung(settings, str(begun.entry.get("rung") or status.rung))
    limit = begun.entry.get("time_limit") or status.time_limit
    return Run(
        dataset=status.dataset,
        instrument=Dataset.parse(status.dataset).instrument,
        attempt=begun.attempt,
        retry=begun.retry,
        rung=rung.name,
        time_limit=limit if type(limit) is int else 0,
        seconds=_number(said.get("wall_s")) or (after.at - begun.at).total_seconds(),
        memory=int(_number(said.get("peak_memory_bytes"))),
        memory_limit=int(_number(said.get("memory_limit_bytes"))) or rung.memory * _MIB,
        outcome=outcome,
        weight=weight,
    )


def _rung(settings: Settings, name: str) -> Rung:
    """Return a rung; the settings may have lost it since."""
    return next((rung for rung in settings.rungs if rung.name == name), settings.rungs[0])


def _number(value: object) -> float:
    """Return a number of a record that somebody else wrote, or 0."""
    with contextlib.suppress(OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
            return float(value)
    return 0.0


# ---- what it costs


@dataclass
class Cost:
    """What runs have cost.

    Attributes
    ----------
    runs, vcpu_hours, gb_hours, dollars : float
        Of all.  Memory counts with what is left to the host, for that is paid for.
    wasted_runs, wasted : float
        How many of them made no products, and dollars for those.
    retried_runs, retries : float
        How many of them were not the first of their dataset, and dollars for those.
    """

    runs: float = 0.0
    vcpu_hours: float = 0.0
    gb_hours: float = 0.0
    dollars: float = 0.0
    wasted_runs: float = 0.0
    wasted: float = 0.0
    retried_runs: float = 0.0
    retries: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def to_json(self) -> dict[str, float]:
        """Return the JSON form."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def costs(found: Iterable[Run], settings: Settings) -> dict[str, Cost]:
    """Add up what runs have cost.

    Parameters
    ----------
    found : iterable of Run
        The runs.
    settings : Settings
        Have the ladder and the prices.

    Returns
    -------
    dict
        By instrument; their ``sum(..., Cost())`` is the whole.
    """
    by_instrument: dict[str, Cost] = {}
    gigabytes = replace(settings, prices=Prices(0, 1))
    for run in found:
        rung, weight = _rung(settings, run.rung), run.weight
        dollars = weight * plan.cost(settings, rung, run.seconds)
        wasted, again = run.outcome != "processed", run.is_retry
        hours = weight * run.seconds / 3600
        cost = Cost(
            runs=weight,
            vcpu_hours=hours * rung.vcpus,
            gb_hours=weight * plan.cost(gigabytes, rung, run.seconds),
            dollars=dollars,
            wasted_runs=wasted * weight,
            wasted=wasted * dollars,
            retried_runs=again * weight,
            retries=again * dollars,
        )
        by_instrument[run.instrument] = by_instrument.get(run.instrument, Cost()) + cost
    return dict(sorted(by_instrument.items()))


@dataclass(frozen=True)
class Spread:
    """How some numbers are spread: half of them are not above the first, 95 of 100 not above the second."""

    p50: float
    p95: float
    most: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread | None:
        """Return that of numbers; None if there are none."""
        ordered = sorted(numbers)
        if not ordered:
            return None
        return cls(plan.quantile(ordered, 0.5), plan.quantile(ordered, 0.95), ordered[-1])


@dataclass(frozen=True)
class Needs:
    """What runs were given and what they have used: memory in bytes, time in seconds; None when nobody knows."""

    runs: int
    memory_given: Spread | None
    memory: Spread | None
    time_given: Spread | None
    time: Spread | None


def needs(found: Iterable[Run]) -> dict[str, Needs]:
    """Compare what runs were given with what they have used, by instrument.

    Parameters
    ----------
    found : iterable of Run
        The runs; those that did not end well count only where none has.

    Returns
    -------
    dict
        By instrument.
    """
    by_instrument: dict[str, list[Run]] = {}
    for run in found:
        by_instrument.setdefault(run.instrument, []).append(run)
    compared = {}
    for instrument, every in sorted(by_instrument.items()):
        those = [run for run in every if run.outcome == "processed"] or every
        known = [run for run in those if run.memory]
        compared[instrument] = Needs(
            len(those),
            Spread.of(run.memory_limit for run in known or those),
            Spread.of(run.memory for run in known),
            Spread.of(run.time_limit for run in those if run.time_limit),
            Spread.of(run.seconds for run in those),
        )
    return compared


# ---- how it stands


@dataclass(frozen=True)
class Failure:
    """A failure that datasets have in common, and its class; empty where it was not judged yet."""

    cause: str
    what: Cause

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        return kind_of(self.cause)


@dataclass(frozen=True)
class Oldest:
    """The open dataset that has been as it is for the longest time, among those that were read."""

    dataset: str
    state: str
    attempt: int
    since: str
    seconds: float


@dataclass
class Progress:
    """How a campaign stands.

    Attributes
    ----------
    batch, name : str
        Where it is, and what it is called.
    at : str
        When, ISO 8601 in UTC.
    states : dict
        Datasets, by instrument and state; without damaged ones.
    damaged : list of str
        Datasets whose status cannot be understood.
    others : int
        Datasets in the batch that are not the campaign's.
    skipped : int
        Datasets of the list that had been processed before, and stay as they are.
    refused, rejected : int
        Datasets that could not be planned; what of the list was no dataset.
    paused : str
        Why nothing more is submitted; or empty.
    begun, ended : str
        When the first dataset was taken up; when the last one came to its end, if none is open.
    rate, rate_lately : float or None
        Datasets that came to their end per hour; None when that cannot be said.
    lately : float
        Seconds that ``rate_lately`` is about.
    seconds_left : float or None
        Until all is done, as far as one can tell.
    failures : list of Failure
        Why datasets are in error, the most frequent first, among those that were read.
    errors_read : int
        How many of the datasets in error were read.
    unjudged : int
        How many of them were not judged yet, so that another attempt may follow.
    retried : float
        Datasets that needed more than one attempt.
    retries : float
        Attempts beyond the first, of all datasets.
    retry_causes : dict
        Those, by the class of the failure that made them necessary.
    waiting : float
        Datasets that wait for another attempt.
    oldest : Oldest or None
        The open dataset that has been as it is for longest.
    stale : list of Standing
        Datasets that are processing, but whose run is dead, among those that were read.
    read : int
        Datasets whose status was read; what is not counted by states is estimated from them, if there are more.
    """

    batch: str
    name: str
    at: str
    states: dict[str, dict[str, int]]
    damaged: list[str]
    others: int = 0
    skipped: int = 0
    refused: int = 0
    rejected: int = 0
    paused: str = ""
    begun: str = ""
    ended: str = ""
    rate: float | None = None
    rate_lately: float | None = None
    lately: float = 0.0
    seconds_left: float | None = None
    failures: list[Failure] = field(default_factory=list)
    errors_read: int = 0
    unjudged: int = 0
    retried: float = 0.0
    retries: float = 0.0
    retry_causes: dict[str, float] = field(default_factory=dict)
    waiting: float = 0.0
    oldest: Oldest | None = None
    stale: list[Standing] = field(default_factory=list)
    read: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Datasets by state."""
        return {state: sum(by_state.get(state, 0) for by_state in self.states.values()) for state in STATES}

    @property
    def planned(self) -> int:
        """How many datasets the campaign has."""
        return sum(self.counts.values()) + len(self.damaged)

    @property
    def open(self) -> int:
        """How many may still change by themselves: an error that was not judged yet may be tried again."""
        return sum(self.counts[state] for state in _OPEN) + self.unjudged

    @property
    def done(self) -> int:
        """How many were processed."""
        return sum(self.counts[state] for state in _DONE)

    @property
    def failed(self) -> int:
        """How many will not be processed unless somebody does something."""
        return self.planned - self.open - self.done

    @property
    def kinds(self) -> dict[str, dict[str, int]]:
        """Datasets in error that were read, by kind and class of the failure."""
        found: dict[str, dict[str, int]] = {
            "payload": dict.fromkeys(PAYLOAD, 0),
            "infrastructure": dict.fromkeys(INFRASTRUCTURE, 0),
            "unknown": {"unknown": 0},
        }
        for failure in self.failures:
            classes, cause = found[failure.kind], failure.cause or "not judged yet"
            classes[cause] = classes.get(cause, 0) + failure.what.datasets
        return found

    @property
    def exit_status(self) -> int:
        """What ``caldp campaign status`` ends with: 0 all processed, 1 some failed or cancelled, 3 some still open."""
        return OPEN if self.open else FAILED if self.failed else PROCESSED

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        oldest = asdict(self.oldest) | {"seconds": round(self.oldest.seconds)} if self.oldest else None
        return {
            "batch": self.batch,
            "name": self.name,
            "at": self.at,
            "datasets": self.planned,
            "open": self.open,
            "failed": self.failed,
            "done": self.done,
            "states": self.counts,
            "instruments": self.states,
            "damaged": self.damaged,
            "others": self.others,
            "skipped": self.skipped,
            "refused": self.refused,
            "rejected": self.rejected,
            "paused": self.paused,
            "begun": self.begun,
            "ended": self.ended,
            "rate_per_hour": _rounded(self.rate),
            "rate_lately_per_hour": _rounded(self.rate_lately),
            "lately_s": round(self.lately),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left),
            "failures": self.kinds,
            "causes": [
                {"kind": failure.kind, "class": failure.cause, **asdict(failure.what)} for failure in self.failures
            ],
            "errors_read": self.errors_read,
            "unjudged": self.unjudged,
            "retries": {
                "datasets": round(self.retried),
                "attempts": round(self.retries),
                "waiting": round(self.waiting),
                "causes": {cause: round(count) for cause, count in self.retry_causes.items()},
            },
            "oldest": oldest,
            "stale": [standing.dataset for standing in self.stale],
            "read": self.read,
            "exit_status": self.exit_status,
        }


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)


def survey(
    control: Control, settings: Settings, patience: float = Claim.patience, limit: int | None = None
) -> Progress:
    """Say how a campaign stands.

    Parameters
    ----------
    control : Control
        The campaign.
    settings : Settings
        What it goes by.
    patience : float, optional
        Seconds without a sign of life after which a run is taken for dead, where no lock tells.
    limit : int, optional
        Status records of each state that are read at most, instead of ``LIMITS``; 0 for all.

    Returns
    -------
    Progress

    Raises
    ------
    UsageError
        If there is no campaign.
    InputError
        If one of its manifests is missing or damaged.
    S3DownloadError
        If S3 does not answer, or refuses.
    """
    stock = take_stock(control)
    return summary(control, stock, look_at(control, stock, patience, limit))


def summary(control: Control, stock: Stock, sample: Sample) -> Progress:
    """Say how a campaign stands, from what was read of it."""
    now = control.store.clock()
    states: dict[str, Counter[str]] = {}
    damaged = []
    for name, state in sample.states.items():
        if state:
            states.setdefault(Dataset.parse(name).instrument, Counter())[state] += 1
        else:
            damaged.append(name)
    refused = len(_listed(control.plan(), "refused"))
    found = Progress(
        control.store.url(),
        control.name,
        _iso(now),
        {
            instrument: {state: count for state in STATES if (count := by_state[state])}
            for instrument, by_state in sorted(states.items())
        },
        damaged,
        stock.others,
        stock.skipped,
        refused,
        max(0, _rejected(control) - refused),
        printable(control.paused()),
        read=len(sample.standings),
    )
    _enter_failures(found, sample)
    _enter_retries(found, sample)
    _enter_pace(found, sample, now)
    found.stale = [standing for standing in sample.standings.values() if standing.stale]
    found.oldest = _oldest(sample, now)
    return found


def _rejected(control: Control) -> int:
    blob = control.store.get(REJECTED)  # those that could not be planned are in there, too
    return len(blob.data.splitlines()) if blob else 0


def _enter_failures(found: Progress, sample: Sample) -> None:
    causes: dict[tuple[str, int | None, str], tuple[str, int, tuple[str, ...]]] = {}
    for status, _ in sample.statuses():
        if status.state != "error":
            continue
        found.errors_read += 1
        found.unjudged += not status.cause
        plain, pattern = normalised(str(status.reason), status.dataset, str(status.run))
        code = status.exit_code if type(status.exit_code) is int else None
        key = printable(str(status.cause)), code, pattern
        said, count, examples = causes.get(key, (plain, 0, ()))
        examples = (*examples, status.dataset) if len(examples) < EXAMPLES else examples
        causes[key] = (said if said == plain else pattern, count + 1, examples)
    failures = [
        Failure(cause, Cause(code, code_name(code), reason, count, examples))
        for (cause, code, _), (reason, count, examples) in causes.items()
    ]
    found.failures = sorted(failures, key=lambda f: (-f.what.datasets, f.cause, f.what.exit_code or 0, f.what.reason))


def _enter_retries(found: Progress, sample: Sample) -> None:
    causes: Counter[str] = Counter()
    for status, weight in sample.statuses():
        # The first attempt in a campaign need not be the first of the dataset.
        attempts = {step.attempt for step in steps(status)} | {status.attempt}
        more = len(attempts) - 1
        found.retries += weight * more
        found.retried += weight * (more > 0)
        found.waiting += weight * (status.state == "placed" and more > 0)
        for step in steps(status)[1:]:
            if step.state == "placed":
                causes[printable(str(step.entry.get("cause") or "by hand"))] += weight  # type: ignore[assignment]
    found.retry_causes = dict(causes.most_common())


def _enter_pace(found: Progress, sample: Sample, now: datetime) -> None:
    begins, ends = [], []
    for status, weight in sample.statuses():
        taken = steps(status)
        begins += [taken[0].at] if taken else []
        judged = status.state != "error" or status.cause
        if judged and (end := ended_at(status, taken)) is not None:
            ends.append((end, weight))
    if not begins:
        return
    begun, last = min(begins), max((end for end, _ in ends), default=now)
    found.begun = _iso(begun)
    until = now if found.open else last
    found.ended = "" if found.open else _iso(last)
    seconds = (until - begun).total_seconds()
    if seconds <= 0 or not ends:
        return
    found.rate = 3600 * sum(weight for _, weight in ends) / seconds
    if not found.open:
        found.seconds_left = 0.0
        return
    found.lately = min(seconds, max(_LATELY[0], min(_LATELY[1], seconds / 4)))
    recent = [weight for end, weight in ends if end > now - timedelta(seconds=found.lately)]
    found.rate_lately = 3600 * sum(recent) / found.lately
    rate = found.rate_lately if len(recent) >= _ENOUGH else found.rate
    if not found.paused:
        found.seconds_left = 3600 * found.open / rate


def _oldest(sample: Sample, now: datetime) -> Oldest | None:
    candidates = []
    for status, _ in sample.statuses():
        at = when(status.at)
        if at is not None and (status.state in _OPEN or (status.state == "error" and not status.cause)):
            candidates.append((at, status))
    if not candidates:
        return None
    at, status = min(candidates, key=lambda found: (found[0], found[1].dataset))
    seconds = max(0.0, (now - at).total_seconds())
    return Oldest(status.dataset, status.state, status.attempt, _iso(at), seconds)


# ---- what is running


@dataclass(frozen=True)
class Active:
    """A dataset that is being processed.

    Attributes
    ----------
    dataset : str
        Its name.
    attempt, retry : int
        Which.
    rung : str
        Step of the memory ladder.
    seconds, time_limit : float, int
        For how long it has been running, and how long it may; a limit of 0 when nobody knows.
    memory, memory_limit : int
        What it uses now (0 when nobody here knows), and what it may, bytes.
    by : str
        Host and process.
    stale : bool
        Whether its run is dead.
    """

    dataset: str
    attempt: int
    retry: int
    rung: str
    seconds: float
    time_limit: int
    memory: int
    memory_limit: int
    by: str
    stale: bool

    @property
    def share(self) -> float:
        """How near it is to one of its limits: 1 is there."""
        of_time = self.seconds / self.time_limit if self.time_limit else 0.0
        return max(of_time, self.memory / self.memory_limit if self.memory_limit else 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **asdict(self),
            "seconds": round(self.seconds, 1),
            "memory": self.memory or None,
            "share": round(self.share, 4),
        }


def running(
    control: Control, settings: Settings, patience: float = Claim.patience, limit: int = 1000
) -> tuple[list[Active], int]:
    """Say what a campaign is processing.

    Parameters
    ----------
    control : Control
        The campaign.
    settings : Settings
        Have the ladder.
    patience : float, optional
        Seconds without a sign of life after which a run is taken for dead, where no lock tells.
    limit : int, optional
        Datasets that are looked at, spread over their names; 0 for all.

    Returns
    -------
    active : list of Active
        Those nearest to their limits first.
    total : int
        How many datasets the folder shows; more than were looked at, perhaps.

    Raises
    ------
    UsageError
        If there is no campaign.
    S3DownloadError
        If S3 does not answer, or refuses.
    """
    control.plan()
    store, now = control.store, control.store.clock()
    names = sorted(store.names(f"messages/{FOLDERS['processing']}"))

    def look(name: str) -> Active | None:
        standing = batch.standing_of(store, name, ("processing",), patience)
        status = standing.status if standing else None
        if standing is None or status is None or status.state != "processing":
            return None
        rung = _rung(settings, status.rung) if status.rung else None
        begun = when(status.at) or now
        return Active(
            name,
            status.attempt,
            status.retry,
            status.rung,
            max(0.0, (now - begun).total_seconds()),
            status.time_limit,
            0 if standing.stale else _memory(str(status.by), name),
            rung.memory * _MIB if rung else 0,
            printable(str(status.by)),
            standing.stale,
        )

    active = [one for one in in_threads(look, batch.spread(names, limit)) if one is not None]
    return sorted(active, key=lambda one: (-one.share, one.dataset)), len(names)


def _memory(by: str, dataset: str) -> int:
    """Return what a run on this machine uses with all its programs, bytes; 0 if it is on another one."""
    import psutil

    host, _, process = by.rpartition(":")
    if host != os.uname().nodename or not process.isdigit():
        return 0
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        # In a container processes have other numbers: it must be the one that was given this dataset.
        first = psutil.Process(int(process))
        if dataset in (word.lower() for word in first.cmdline()):
            return sum(_resident(one) for one in (first, *first.children(recursive=True)))
    return 0


def _resident(process: Any) -> int:  # noqa: ANN401 - psutil.Process
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return int(process.memory_info().rss)
    return 0
