"""The lines of a campaign, and the shards that they are submitted in: one request to AWS Batch each.

What is in a shard, and what it is called, depends on nothing but its lines: who plans the same list twice gets the same
shards, however the list was shuffled.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from caldp.campaign.settings import Settings
from caldp.dataset import Dataset
from caldp.errors import UsageError


@dataclass(frozen=True, slots=True)
class Line:
    """One attempt of one dataset, as it was planned.

    Attributes
    ----------
    dataset : str
        Its name.
    attempt : int
        1, 2, ...
    rung : str
        Step of the memory ladder.
    vcpus : int
        Processors that it is given.
    time_limit : int
        Seconds.
    why : str
        What rung and time limit follow from, for people.
    """

    dataset: str
    attempt: int
    rung: str
    vcpus: int
    time_limit: int
    why: str = ""

    @property
    def job_class(self) -> str:
        """What all jobs of a shard have in common, for example ``2g-6h``."""
        return job_class(self.rung, self.time_limit)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Line:
        """Read the JSON form; unknown fields are ignored; ValueError, TypeError, UsageError when it makes no sense."""
        line = cls(**{name: record[name] for name in cls.__slots__ if name in record})
        Dataset.parse(line.dataset)  # it becomes part of keys, paths and commands
        numbers = (line.attempt, line.vcpus, line.time_limit)
        if any(type(n) is not int or n < 1 for n in numbers) or not (isinstance(line.rung, str) and line.rung):
            raise ValueError(f"{line.dataset}: attempt, vcpus, time limit {numbers}, rung {line.rung!r}")
        return line


@dataclass(frozen=True)
class Shard:
    """Lines that are submitted together.

    Attributes
    ----------
    name : str
        For example ``mvp-a1-2g-6h-001``.
    batch : str
        Name of the campaign.
    attempt, rung, time_limit : int, str, int
        Those of each of its lines.
    lines : tuple of Line
        By dataset.
    canary : bool
        Whether it goes first, and others wait for how it ends.
    """

    name: str
    batch: str
    attempt: int
    rung: str
    time_limit: int
    lines: tuple[Line, ...]
    canary: bool = False

    @property
    def job_class(self) -> str:
        """What its jobs have in common, for example ``2g-6h``."""
        return job_class(self.rung, self.time_limit)

    @property
    def size(self) -> int:
        """How many datasets it has."""
        return len(self.lines)


def job_class(rung: str, time_limit: int) -> str:
    """Return the name of what jobs of one shard have in common, for example ``2g-6h`` or ``2g-20m``."""
    for unit, seconds in (("h", 3600), ("m", 60)):
        if time_limit % seconds == 0:
            return f"{rung}-{time_limit // seconds}{unit}"
    return f"{rung}-{time_limit}s"


def canary(datasets: Iterable[str], settings: Settings, share: float | None = None) -> frozenset[str]:
    """Choose the datasets that go first.

    Parameters
    ----------
    datasets : iterable of str
        All of them.
    settings : Settings
        Say how many.
    share : float, optional
        Instead of that of the settings, 0 to 1.

    Returns
    -------
    frozenset of str
        Those that a hash of their names picks; empty if that would be all, or none is to go first.
    """
    names = frozenset(datasets)
    share = settings.canary if share is None else share
    count = max(math.ceil(share * len(names)), settings.canary_least) if share > 0 else 0
    if count >= len(names):
        return frozenset()
    return frozenset(heapq.nsmallest(count, names, key=lambda name: hashlib.sha256(name.encode()).digest()))


def shards(
    batch: str, attempt: int, lines: Iterable[Line], settings: Settings, first: frozenset[str] | None = None
) -> list[Shard]:
    """Cut the lines of an attempt into shards.

    Parameters
    ----------
    batch : str
        Name of the campaign.
    attempt : int
        That of all lines.
    lines : iterable of Line
        In any order; one given twice counts once.
    settings : Settings
        Have the size of a shard.
    first : frozenset of str, optional
        Datasets that go first; those that ``canary`` chooses by default.  They get shards of their own, at the
        beginning.

    Returns
    -------
    list of Shard
        Named ``<batch>-a<attempt>-<class>-<nnn>``.

    Raises
    ------
    UsageError
        If a dataset has two different lines, or one of another attempt.
    """
    ordered = _unique(lines)
    if foreign := next((line for line in ordered if line.attempt != attempt), None):
        raise UsageError(f"{foreign.dataset}: attempt {foreign.attempt} is in a plan of attempt {attempt}")
    if first is None:
        first = canary((line.dataset for line in ordered), settings)
    begun: dict[str, int] = {}
    found = []
    for canary_first in (True, False):
        chosen = (line for line in ordered if (line.dataset in first) == canary_first)
        for name, piece in _pieces(chosen, settings.shard_size):
            begun[name] = number = begun.get(name, 0) + 1
            found.append(_shard(f"{batch}-a{attempt}-{name}-{number:03d}", batch, piece, canary_first))
    return found


def rescue_shards(batch: str, lines: Iterable[Line], settings: Settings) -> list[Shard]:
    """Cut lines that are tried again into shards.

    Parameters
    ----------
    batch : str
        Name of the campaign.
    lines : iterable of Line
        In any order, of any attempts.
    settings : Settings
        Have the size of a shard.

    Returns
    -------
    list of Shard
        Named ``<batch>-a<attempt>-<class>-r<sha256 of the datasets>``: the same lines always make the same shard.

    Raises
    ------
    UsageError
        If a dataset has two different lines.
    """
    by_attempt: dict[int, list[Line]] = {}
    for line in _unique(lines):
        by_attempt.setdefault(line.attempt, []).append(line)
    return [
        _shard(f"{batch}-a{attempt}-{name}-r{_digest(piece)}", batch, piece)
        for attempt in sorted(by_attempt)
        for name, piece in _pieces(by_attempt[attempt], settings.shard_size)
    ]


def _unique(lines: Iterable[Line]) -> list[Line]:
    """Return lines by dataset, each once."""
    ordered: list[Line] = []
    for line in sorted(lines, key=attrgetter("dataset")):
        if not ordered or ordered[-1].dataset != line.dataset:
            ordered.append(line)
        elif ordered[-1] != line:
            raise UsageError(f"{line.dataset} was planned twice, differently", remedy="plan each dataset once")
    return ordered


def _pieces(lines: Iterable[Line], size: int) -> Iterator[tuple[str, tuple[Line, ...]]]:
    """Group lines by class, in the order of their names, and cut the groups."""
    classes: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        classes.setdefault((line.rung, line.time_limit), []).append(line)
    for key in sorted(classes):
        for begin in range(0, len(classes[key]), size):
            yield job_class(*key), tuple(classes[key][begin : begin + size])


def _shard(name: str, batch: str, lines: tuple[Line, ...], first: bool = False) -> Shard:
    line = lines[0]
    return Shard(name, batch, line.attempt, line.rung, line.time_limit, lines, first)


def _digest(lines: Iterable[Line]) -> str:
    return hashlib.sha256("\n".join(line.dataset for line in lines).encode()).hexdigest()[:16]


def jsonl(lines: Iterable[Line]) -> bytes:
    """Return lines as a manifest: JSON, one in a line."""
    return "".join(f"{json.dumps(line.to_json())}\n" for line in lines).encode()


def parse_jsonl(data: bytes) -> list[Line]:
    """Read a manifest.

    Parameters
    ----------
    data : bytes
        As ``jsonl`` wrote it.

    Returns
    -------
    list of Line

    Raises
    ------
    ValueError
        If it is damaged.
    """
    lines = []
    for number, text in enumerate(data.splitlines(), start=1):
        try:
            lines.append(Line.from_json(json.loads(text)))
        except (ValueError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise ValueError(f"line {number} is damaged: {error}") from error
    return lines
