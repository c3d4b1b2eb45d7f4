"""What memory and time each dataset is given, and why.

What is asked for comes first, then what was observed of the same dataset, then of others like it, then the table of the
settings.  After it ran out of memory a dataset never gets as little again.  A plan depends on nothing but what it is
made of, so it can be made again.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from caldp.campaign.lists import DatasetList, Options, Override, Rejected
from caldp.campaign.settings import Rung, Settings
from caldp.campaign.shards import Line, Shard, canary, job_class, shards
from caldp.dataset import Dataset
from caldp.errors import CaldpMemoryError, ContainerMemoryError, ProgramMemoryError, SystemMemoryError, UsageError
from caldp.messages import Status

#: What is given beyond what is needed: times the memory, times the seconds.
MEMORY_MARGIN, TIME_MARGIN = 1.25, 2

#: Observations from which on a group tells of others.
ENOUGH = 30

_MIB = 1 << 20

#: MiB that a job is given of each GB of its host that is paid for.
_MIB_OF_GB = 896

_RAN_OUT = {e.exit_code for e in (ProgramMemoryError, CaldpMemoryError, ContainerMemoryError, SystemMemoryError)}
_NOTHING = Override()


@dataclass(frozen=True, slots=True, order=True)
class Observation:
    """What one job that ended well has used.

    Attributes
    ----------
    dataset, instrument, kind : str
        As in ``Dataset``.
    detector : str
        In capitals or not.
    exposures : int
        How many it had.
    recipe : str
        How it was calibrated, see ``recipe``.
    memory : int
        Peak, bytes.
    seconds : float
        Wall time.
    rung : str
        Step of the memory ladder that it was given.
    """

    dataset: str
    instrument: str
    detector: str
    kind: str
    exposures: int
    recipe: str
    memory: int
    seconds: float
    rung: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Observation:
        """Read the JSON form; unknown fields are ignored; ValueError, TypeError, UsageError when it makes no sense."""
        seen = cls(**{name: record[name] for name in cls.__slots__ if name in record})
        texts = (seen.detector, seen.recipe, seen.rung)
        numbers = (seen.memory, seen.seconds, seen.exposures)
        if Dataset.parse(seen.dataset) != Dataset(seen.dataset, seen.kind, seen.instrument):
            raise ValueError(f"{seen.dataset} is no {seen.kind} of {seen.instrument}")
        if not all(isinstance(text, str) for text in texts) or not all(0 <= n < math.inf for n in numbers):
            raise ValueError(f"{seen.dataset}: {texts}, {numbers}")
        return seen


class Group(NamedTuple):
    """Datasets that need about the same.

    Attributes
    ----------
    instrument, kind : str
        As in ``Dataset``.
    detector : str
        In small letters; empty where only names are known.
    exposures : str
        ``1``, ``2-4``, ``5-16`` or ``17+``; where only names are known ``association`` or ``exposure``, or empty.
    """

    instrument: str
    kind: str
    detector: str
    exposures: str

    @classmethod
    def of(cls, seen: Observation) -> Group:
        """Return that of a dataset that was observed."""
        n = seen.exposures
        steps = "1" if n <= 1 else "2-4" if n <= 4 else "5-16" if n <= 16 else "17+"
        return cls(seen.instrument, seen.kind, seen.detector.lower(), steps)

    @classmethod
    def of_name(cls, dataset: Dataset) -> Group:
        """Return that of a dataset that never was: a name does not tell the detector."""
        is_association = dataset.name[-1].isdigit()
        exposures = "" if dataset.kind != "ipppssoot" else "association" if is_association else "exposure"
        return cls(dataset.instrument, dataset.kind, "", exposures)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.instrument, self.detector, self.kind, self.exposures)))


@dataclass(frozen=True, slots=True)
class _Need:
    """What a dataset needs, and who says so."""

    memory: float  #: MiB; 0 when nobody knows
    seconds: float  #: that it may well take; 0 when nobody knows
    expected: float  #: seconds, to add up
    source: str
    table: bool = False
    rung: str = ""  #: when nobody knows
    time_limit: int = 0  #: when nobody knows


_ANYBODY = _Need(1.0, 1.0, 1.0, "")


class Observations:
    """What is known of jobs that ended well.

    Parameters
    ----------
    observations : iterable of Observation, optional
        In any order; one given twice counts once.
    """

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._all = sorted(set(observations))
        self._datasets: dict[str, list[Observation]] = {}
        self._groups: dict[Group, list[Observation]] = {}
        for seen in self._all:
            self._datasets.setdefault(seen.dataset, []).append(seen)
            for group in (Group.of(seen), Group.of_name(Dataset(seen.dataset, seen.kind, seen.instrument))):
                self._groups.setdefault(group, []).append(seen)
        self._needs: dict[Group, _Need] = {}

    def __len__(self) -> int:
        return len(self._all)

    def jsonl(self) -> bytes:
        """Return all of them as JSON, one a line: the same for the same observations."""
        return to_jsonl(self._all)

    @classmethod
    def parse(cls, data: bytes) -> Observations:
        """Read what ``jsonl`` wrote; ValueError names a line that is damaged."""
        return cls(from_jsonl(data))

    def need(self, dataset: Dataset, how: str) -> _Need | None:
        """Return what a dataset needs by what was observed of it, or of enough others like it."""
        known = self._datasets.get(dataset.name, ())
        if same := [seen for seen in known if seen.recipe == how]:
            seconds = max(seen.seconds for seen in same)
            return _Need(max(seen.memory for seen in same) / _MIB, seconds, seconds, "observed of it")
        # Of the same dataset, calibrated otherwise, detector and exposures are known all the same.
        groups = [*(Group.of(seen) for seen in known[-1:]), Group.of_name(dataset)]
        return next((self._of_group(group) for group in groups if len(self._groups.get(group, ())) >= ENOUGH), None)

    def _of_group(self, group: Group) -> _Need:
        if group not in self._needs:
            members = self._groups[group]
            memory, seconds = sorted(m.memory for m in members), sorted(m.seconds for m in members)
            source = f"p95, p99 of {len(members)} observed, {group}"
            mean = math.fsum(seconds) / len(seconds)
            self._needs[group] = _Need(quantile(memory, 0.95) / _MIB, quantile(seconds, 0.99), mean, source)
        return self._needs[group]


def to_jsonl(observations: Iterable[Observation]) -> bytes:
    """Return observations as JSON, one a line, in their order."""
    return "".join(f"{json.dumps(seen.to_json())}\n" for seen in observations).encode()


def from_jsonl(data: bytes) -> list[Observation]:
    """Read what ``to_jsonl`` wrote; ValueError names a line that is damaged."""
    found = []
    for number, text in enumerate(data.splitlines(), start=1):
        try:
            found.append(Observation.from_json(json.loads(text)))
        except (ValueError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise ValueError(f"line {number} is damaged: {error}") from error
    return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the least of some numbers, in rising order, that so large a share of them does not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def recipe(dataset: Dataset) -> str:
    """Return how a dataset is calibrated, as observations name it: the programs, for example ``calcos``."""
    from caldp import instruments  # here: it would cost whoever only reads plans a quarter of the import

    return instruments.recipe(dataset).label


def cost(settings: Settings, rung: Rung, seconds: float) -> float:
    """Return what a job costs.

    Parameters
    ----------
    settings : Settings
        Have the prices.
    rung : Rung
        What it is given.
    seconds : float
        How long.

    Returns
    -------
    float
        US dollars; memory counts with the share of it that is left to the host.
    """
    prices = settings.prices
    return (rung.vcpus * prices.vcpu_hour + rung.memory / _MIB_OF_GB * prices.gb_hour) * seconds / 3600


def plan(
    dataset: str,
    settings: Settings,
    options: Options,
    observations: Observations,
    override: Override = _NOTHING,
    after: Status | None = None,
) -> Line:
    """Plan one dataset.

    Parameters
    ----------
    dataset : str
        Its name.
    settings : Settings
        Ladder, time limits and the table.
    options : Options
        What is asked for.
    observations : Observations
        What was observed before.
    override : Override, optional
        What the list says of this dataset; it wins over ``options``.
    after : Status, optional
        How it stands, when this is another attempt.

    Returns
    -------
    Line
        Its next attempt; the first one if it has no status.

    Raises
    ------
    UsageError
        If it needs more than the ladder has, or something is asked for that there is not.
    """
    return _Planner(settings, options, observations).line(dataset, override, after)[0]


class _Planner:
    """Plans datasets of one campaign; what is the same for many is decided once."""

    def __init__(self, settings: Settings, options: Options, observations: Observations) -> None:
        self.settings = settings
        self.options = options
        self.observations = observations
        self._decide = lru_cache(maxsize=1024)(self._decided)
        self._tables = {kind: self._of_table(kind) for kind in settings.estimates}
        self._recipes: dict[tuple[str, str], str] = {}

    def check(self) -> None:
        """Refuse what is asked for all of them, rather than each of them."""
        self._rung(_ANYBODY, self.options.rung)
        self._limit(_ANYBODY, self.options.time_limit)

    def line(self, name: str, override: Override = _NOTHING, after: Status | None = None) -> tuple[Line, Rung, _Need]:
        """Plan a dataset; return its line, its step of the ladder and what that follows from."""
        dataset = Dataset.parse(name)
        need = self._need(dataset)
        try:
            rung, limit, why = self._decide(need, override)
            if after is not None:
                rung, limit, why = self._raised(rung, limit, why, after)
        except UsageError as error:
            raise UsageError(f"{dataset}: {error.message}", remedy=error.remedy) from error
        attempt = 1 if after is None else after.attempt + 1
        return Line(dataset.name, attempt, rung.name, rung.vcpus, limit, why), rung, need

    def _need(self, dataset: Dataset) -> _Need:
        key = dataset.kind, dataset.instrument
        how = self._recipes.get(key) or self._recipes.setdefault(key, recipe(dataset))
        table = self._tables[dataset.instrument if dataset.kind == "ipppssoot" else dataset.kind]
        return self.observations.need(dataset, how) or table

    def _of_table(self, kind: str) -> _Need:
        row = self.settings.estimates[kind]
        expected = row.time_p99 or row.time_limit / TIME_MARGIN
        memory, source = row.memory_p95 * 1024, f"table, {kind}"
        return _Need(memory, row.time_p99, expected, source, True, row.rung, row.time_limit)

    def _decided(self, need: _Need, override: Override) -> tuple[Rung, int, str]:
        """Decide for all datasets that need the same, and of which the same is asked."""
        rung, memory_why = self._rung(need, override.rung or self.options.rung)
        limit, time_why = self._limit(need, override.time_limit or self.options.time_limit)
        return rung, limit, f"{rung.name}: {memory_why}; {job_class('', limit)[1:]}: {time_why}"

    def _rung(self, need: _Need, asked: str) -> tuple[Rung, str]:
        if asked:
            return self.settings.rung(asked), "asked for"
        if not need.memory:
            return self.settings.rung(need.rung), need.source
        why = f"{need.memory:.0f} MiB ({need.source}) x {MEMORY_MARGIN}"
        if rung := self.settings.holding(need.memory * MEMORY_MARGIN):
            return rung, why
        if rung := self.settings.holding(need.memory):
            return rung, f"{why}, but the ladder ends here"
        raise _more_than_the_ladder_has(why)

    def _limit(self, need: _Need, asked: int) -> tuple[int, str]:
        longest = self.settings.time_limits[-1]
        if asked > longest:
            raise UsageError(f"a time limit of {asked} s is more than there is", remedy=f"give at most {longest} s")
        if asked:
            return self.settings.time_limit(asked), f"{asked} s asked for"
        limit, why = self.settings.time_limit(need.time_limit), need.source
        if need.seconds:
            limit = self.settings.time_limit(need.seconds * TIME_MARGIN)
            why = f"{need.seconds:.0f} s ({need.source}) x {TIME_MARGIN}"
        if self.options.timeout_scale != 1:
            limit = self.settings.time_limit(limit * self.options.timeout_scale)
            why += f", scaled by {self.options.timeout_scale:g}"
        return limit, why

    def _raised(self, rung: Rung, limit: int, why: str, after: Status) -> tuple[Rung, int, str]:
        """Give no less than what earlier attempts have shown to be too little."""
        entries = [entry for entry in after.history if isinstance(entry, dict)]
        for seen in (*entries, after.to_json()):
            failed, given = seen.get("state") == "error", seen.get("rung")
            if given and (seen.get("cause") == "oom" or failed and seen.get("exit_code") in _RAN_OUT):
                # The cause of a state that is no failure is that of the one before, and the climb is already made.
                least = self.settings.above(given) if failed else self.settings.rung(given)
                if least is None:
                    raise _more_than_the_ladder_has(f"it ran out of memory at {given}")
                if least.memory > rung.memory:
                    rung, why = least, f"{least.name}: it ran out of memory below ({why})"
            given = seen.get("time_limit")
            if given and seen.get("cause") == "timeout" and not self.options.time_limit:
                least_time = self.settings.longer(given) if failed else given
                if least_time > limit:
                    limit, why = least_time, f"{job_class('', least_time)[1:]}: it was stopped below ({why})"
        return rung, limit, why


def _more_than_the_ladder_has(why: str) -> UsageError:
    return UsageError(f"needs more than the ladder has: {why}", remedy="give the ladder a higher rung")


@dataclass(frozen=True)
class Plan:
    """What a list comes to.

    Attributes
    ----------
    lines : tuple of Line
        By dataset.
    refused : tuple of Rejected
        Datasets that nothing can be planned for.
    classes : mapping
        Datasets, by class of their jobs.
    canary : tuple of str
        Datasets that go first.
    submit_jobs : int
        Requests to AWS Batch.
    hours : float
        Hours of jobs, one after the other.
    cost : float
        US dollars.
    unobserved : int
        Datasets of which hours and cost are those of the table: nearly all need less.
    """

    lines: tuple[Line, ...]
    refused: tuple[Rejected, ...] = ()
    classes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    canary: tuple[str, ...] = ()
    submit_jobs: int = 0
    hours: float = 0.0
    cost: float = 0.0
    unobserved: int = 0

    def shards(self, batch: str, settings: Settings) -> list[Shard]:
        """Cut it into shards, those that go first at the beginning."""
        return _shards(batch, self.lines, settings, frozenset(self.canary))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without the lines: these are in manifests."""
        return {
            "datasets": len(self.lines),
            "refused": [entry.to_json() for entry in self.refused],
            "classes": dict(self.classes),
            "canary": list(self.canary),
            "submit_jobs": self.submit_jobs,
            "hours": round(self.hours, 2),
            "cost": round(self.cost, 2),
            "unobserved": self.unobserved,
        }

    def __str__(self) -> str:
        counts = ((len(self.lines), "dataset"), (self.submit_jobs, "SubmitJob call"))
        lines = [", ".join(f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in counts)]
        lines += [f"  {name:<10} {count:>9,}" for name, count in self.classes.items()]
        lines += [f"  {len(self.canary):,} of them go first"] if self.canary else []
        lines += [f"{len(self.refused):,} refused"] if self.refused else []
        lines += [f"  {entry}" for entry in self.refused]
        most = f"; an upper bound for the {self.unobserved:,} that were never observed" if self.unobserved else ""
        return "\n".join([*lines, f"about {self.hours:,.1f} hours of jobs, ${self.cost:,.2f}{most}"])


def plan_all(
    listed: DatasetList,
    settings: Settings,
    options: Options,
    observations: Observations,
    after: Mapping[str, Status] | None = None,
) -> Plan:
    """Plan a list.

    Parameters
    ----------
    listed : DatasetList
        The datasets, and what the list says of some.
    settings, options, observations
        As for ``plan``.
    after : mapping, optional
        How datasets stand that are tried once more.

    Returns
    -------
    Plan
        Datasets that nothing can be planned for are in ``refused``.

    Raises
    ------
    UsageError
        If something is asked for all of them that there is not.
    """
    planner = _Planner(settings, options, observations)
    planner.check()
    lines, refused = [], []
    classes: Counter[tuple[int, int, str]] = Counter()
    seconds: dict[Rung, float] = {}
    unobserved = 0
    for name in listed.datasets:
        try:
            line, rung, need = planner.line(name, listed.overrides.get(name, _NOTHING), (after or {}).get(name))
        except UsageError as error:
            refused.append(Rejected(0, name, error.message.removeprefix(f"{name}: ")))
            continue
        lines.append(line)
        classes[rung.memory, line.time_limit, rung.name] += 1
        seconds[rung] = seconds.get(rung, 0.0) + need.expected
        unobserved += need.table
    first = canary((line.dataset for line in lines), settings, options.canary)
    return Plan(
        tuple(lines),
        tuple(refused),
        MappingProxyType({job_class(name, limit): classes[key] for key in sorted(classes) for _, limit, name in [key]}),
        tuple(sorted(first)),
        len(_shards("", lines, settings, first)),
        math.fsum(seconds.values()) / 3600,
        math.fsum(cost(settings, rung, taken) for rung, taken in seconds.items()),
        unobserved,
    )


def _shards(batch: str, lines: Iterable[Line], settings: Settings, first: frozenset[str]) -> list[Shard]:
    by_attempt: dict[int, list[Line]] = {}
    for line in lines:
        by_attempt.setdefault(line.attempt, []).append(line)
    found = [
        shard
        for attempt in sorted(by_attempt)
        for shard in shards(batch, attempt, by_attempt[attempt], settings, first)
    ]
    return sorted(found, key=lambda shard: not shard.canary)
