"""The figures that a campaign goes by: the memory ladder, time limits, budgets of retries, first estimates, prices."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from caldp.errors import UsageError

T = TypeVar("T")

_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class Rung:
    """One step of the memory ladder.

    Attributes
    ----------
    name : str
        For example ``2g``: the memory of the host, of which 128 MiB per GB are left to it.
    memory : int
        What the job is given, MiB.
    vcpus : int
        Processors that it is given.
    """

    name: str
    memory: int
    vcpus: int


@dataclass(frozen=True)
class Budget:
    """How often failures of one kind are tried again.

    Attributes
    ----------
    retries : int
        For each dataset.
    delays : tuple of int
        Seconds to wait before the first, second, ... retry; the last one counts for all that follow.
    """

    retries: int
    delays: tuple[int, ...] = (0,)

    def delay(self, spent: int) -> int:
        """Return the seconds to wait when ``spent`` retries have been used up."""
        return self.delays[min(spent, len(self.delays) - 1)]


@dataclass(frozen=True)
class Estimate:
    """What datasets of one kind need, as far as no observations say more.

    Attributes
    ----------
    memory_p95 : float
        Memory that 95 of 100 stay below, GiB; 0 when nobody knows.
    time_p99 : int
        Time that 99 of 100 stay below, seconds; 0 when nobody knows.
    rung : str
        First step of the ladder, where nobody knows the memory.
    time_limit : int
        Seconds.
    """

    memory_p95: float
    time_p99: int
    rung: str
    time_limit: int


@dataclass(frozen=True)
class Prices:
    """What computing costs, in US dollars."""

    vcpu_hour: float = 0.0285
    gb_hour: float = 0.005


def _frozen(mapping: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    return lambda: MappingProxyType(dict(mapping))


@dataclass(frozen=True)
class Settings:
    """All of them.

    Attributes
    ----------
    rungs : tuple of Rung
        The memory ladder, from below.
    time_limits : tuple of int
        The limits that jobs are given, seconds, in rising order.
    estimates : mapping
        First estimates, by instrument; those of mosaics by ``svm`` and ``mvm``.
    budgets : mapping
        By what they are for: ``transient`` (and hosts that fail), ``oom``, ``timeout``, ``unknown``.
    attempts : int
        Of one dataset, whatever they are for.
    shard_size : int
        Datasets that are submitted with one request: AWS Batch takes 10,000, a stack what its functions have time for.
    canary : float
        Share of a list that goes first; the rest follows when most of them end well.
    canary_least : int
        Datasets that go first at least.
    canary_failures : float
        Share of failures that no retry can help, among those that went first, from which on the rest does not follow.
    submit_rate : float
        Requests to AWS Batch per second.
    prices : Prices
    """

    rungs: tuple[Rung, ...] = (
        Rung("2g", 1792, 1),
        Rung("8g", 7168, 2),
        Rung("16g", 14336, 2),
        Rung("64g", 57344, 8),
    )
    time_limits: tuple[int, ...] = (20 * _MINUTE, *(hours * _HOUR for hours in (1, 2, 6, 12, 24, 48, 72)))
    estimates: Mapping[str, Estimate] = field(
        # Of the first reprocessing, in 2020; see the operators' playbook.
        default_factory=_frozen(
            {
                "wfc3": Estimate(0.83, 6444, "2g", 6 * _HOUR),
                "acs": Estimate(1.08, 22788, "2g", 24 * _HOUR),
                "cos": Estimate(0.83, 1116, "2g", _HOUR),
                "stis": Estimate(0.64, 864, "2g", _HOUR),
                "svm": Estimate(0, 0, "8g", 24 * _HOUR),
                "mvm": Estimate(0, 0, "16g", 72 * _HOUR),
            }
        )
    )
    budgets: Mapping[str, Budget] = field(
        default_factory=_frozen(
            {
                "transient": Budget(4, (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR)),
                "oom": Budget(3),
                "timeout": Budget(2),
                "unknown": Budget(1, (5 * _MINUTE,)),
            }
        )
    )
    attempts: int = 8
    shard_size: int = 1000
    canary: float = 0.01
    canary_least: int = 20
    canary_failures: float = 0.2
    submit_rate: float = 25.0
    prices: Prices = field(default_factory=Prices)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``from_json`` reads them."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "rungs": [asdict(rung) for rung in self.rungs],
            "time_limits": list(self.time_limits),
            "estimates": {kind: asdict(estimate) for kind, estimate in self.estimates.items()},
            "budgets": {name: {**asdict(b), "delays": list(b.delays)} for name, b in self.budgets.items()},
            "prices": asdict(self.prices),
        }

    def rung(self, name: str) -> Rung:
        """Return a step of the ladder by name; UsageError when there is none."""
        for rung in self.rungs:
            if name.lower() in (rung.name, rung.name.removesuffix("g")):
                return rung
        names = ", ".join(rung.name for rung in self.rungs)
        raise UsageError(f"{name!r} is no memory rung", remedy=f"the ladder has {names}")

    def above(self, name: str) -> Rung | None:
        """Return the step above one, or None when it is the highest."""
        place = self.rungs.index(self.rung(name)) + 1
        return self.rungs[place] if place < len(self.rungs) else None

    def holding(self, memory: float) -> Rung | None:
        """Return the lowest step with so much memory (MiB), or None when none has."""
        return next((rung for rung in self.rungs if rung.memory >= memory), None)

    def time_limit(self, seconds: float) -> int:
        """Return the lowest limit that is not below ``seconds``, or the highest there is."""
        return next((limit for limit in self.time_limits if limit >= seconds), self.time_limits[-1])

    def longer(self, seconds: int) -> int:
        """Return the limit after a job was stopped at ``seconds``: the next but one, as far as there is one."""
        above = [limit for limit in self.time_limits if limit > seconds]
        return above[1] if len(above) > 1 else self.time_limits[-1]


DEFAULT = Settings()


def load(path: Path | None) -> Settings:
    """Read settings.

    Parameters
    ----------
    path : Path or None
        A TOML file, with the names of ``Settings`` as keys; what it does not name is as by default.

    Returns
    -------
    Settings

    Raises
    ------
    UsageError
        If it cannot be read, or makes no sense.
    """
    return DEFAULT if path is None else read_toml(path, of_plain)


def read_toml(path: Path, make: Callable[[Mapping[str, Any]], T], *, missing: str = "check the settings") -> T:
    """Read a TOML file.

    Parameters
    ----------
    path : Path
        The file.
    make : callable
        Makes something of its values; UsageError, ValueError or TypeError when they make no sense.
    missing : str, optional
        What to do when it cannot be read.

    Returns
    -------
    object
        What was made.

    Raises
    ------
    UsageError
        If it cannot be read, is not TOML, or makes no sense; names the file.
    """
    try:
        with path.open("rb") as stream:
            return make(tomllib.load(stream))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", remedy=missing) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML ({error})", remedy="check the settings") from error
    except (UsageError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: {error}", remedy="check the settings") from error


def from_json(record: Mapping[str, Any]) -> Settings:
    """Read the JSON form, as campaigns keep it, without what only a later version knows; ValueError as ``of_plain``."""
    tables: dict[str, Callable[[Any], Any]] = {
        "rungs": lambda rungs: [_known(Rung, rung) for rung in rungs],
        "estimates": lambda kinds: {k: _known(Estimate, kinds[k]) for k in kinds if k in DEFAULT.estimates},
        "budgets": lambda names: {name: _known(Budget, names[name]) for name in names if name in DEFAULT.budgets},
        "prices": lambda prices: _known(Prices, prices),
    }
    try:
        plain = _known(Settings, record)
        return of_plain({name: tables.get(name, lambda same: same)(value) for name, value in plain.items()})
    except (TypeError, AttributeError) as error:  # no table where one should be
        raise ValueError(f"these are no settings ({error})") from error


def _known(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise TypeError(f"{record!r} is no table")
    return {f.name: record[f.name] for f in fields(kind) if f.name in record}


def of_plain(record: Mapping[str, Any]) -> Settings:
    """Make settings of plain values, as TOML has them; ValueError when they make no sense."""
    given = _values(Settings, record, "")
    if "rungs" in given:
        given["rungs"] = tuple(_made(Rung, rung, "rungs") for rung in given["rungs"])
    ladder = given.get("rungs", DEFAULT.rungs)
    names = {rung.name for rung in ladder}
    # On another ladder the first estimates begin at its foot.
    estimates = {
        kind: estimate
        if estimate.rung in names or not ladder
        else replace(estimate, rung=ladder[0].name, memory_p95=0.0)
        for kind, estimate in DEFAULT.estimates.items()
    }
    for kind, values in given.get("estimates", {}).items():
        if kind not in estimates:
            raise ValueError(f"estimates: there is no kind {kind!r}")
        estimates[kind] = _made(Estimate, values, f"estimates.{kind}")
    given["estimates"] = MappingProxyType(estimates)
    budgets = dict(DEFAULT.budgets)
    for name, values in given.get("budgets", {}).items():
        if name not in budgets:
            raise ValueError(f"there is no budget {name!r}")
        budgets[name] = replace(budgets[name], **_values(Budget, values, f"budgets.{name}"))
    given["budgets"] = MappingProxyType(budgets)
    if "prices" in given:
        given["prices"] = _made(Prices, given["prices"], "prices")
    return checked(replace(DEFAULT, **given))


def _made(kind: type[T], record: object, where: str) -> T:
    try:
        return kind(**_values(kind, record, where))
    except TypeError as error:  # something is missing
        raise ValueError(f"{where}: {error}") from error


def _values(kind: type, record: object, where: str) -> dict[str, Any]:
    """Return the values of a table, each of the type that its field has."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is no table")
    wanted = {f.name: str(f.type) for f in fields(kind)}
    values = {}
    for name, value in record.items():
        key = f"{where}.{name}".strip(".")
        if name not in wanted:
            raise ValueError(f"there is no setting {key!r}")
        if wanted[name].startswith("tuple") and isinstance(value, list | tuple):
            value = tuple(value)
        if not _IS[wanted[name]](value):
            raise ValueError(f"{key} is {value!r}")
        values[name] = value
    return values


def _is_int(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


#: What a value must be, by the type of its field.
_IS: Mapping[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": _is_number,
    "str": lambda value: isinstance(value, str) and value != "",
    "tuple[int, ...]": lambda value: isinstance(value, tuple) and all(map(_is_int, value)),
    "tuple[Rung, ...]": lambda value: isinstance(value, tuple),
    "Mapping[str, Estimate]": lambda value: isinstance(value, Mapping),
    "Mapping[str, Budget]": lambda value: isinstance(value, Mapping),
    "Prices": lambda value: isinstance(value, Mapping),
}


def checked(settings: Settings) -> Settings:
    """Return settings that make sense, else raise ValueError."""
    sizes = [rung.memory for rung in settings.rungs]
    limits = list(settings.time_limits)
    names = {rung.name for rung in settings.rungs}
    complaints = {
        "rungs: give at least one, each with more memory than the one before": not sizes
        or sizes != sorted(set(sizes))
        or sizes[0] <= 0
        or len(names) < len(sizes),
        "rungs: vcpus are positive": any(rung.vcpus <= 0 for rung in settings.rungs),
        "time_limits: give at least one, in rising order, none below 1 s": not limits
        or limits != sorted(set(limits))
        or limits[0] < 1,
        "estimates: rungs are those of the ladder": any(e.rung not in names for e in settings.estimates.values()),
        "budgets: retries and delays are not negative, and each has a delay": any(
            b.retries < 0 or not b.delays or min(b.delays) < 0 for b in settings.budgets.values()
        ),
        "attempts is 1 or more": settings.attempts < 1,
        "shard_size is 1 to 10000": not 1 <= settings.shard_size <= 10000,
        "canary and canary_failures are shares from 0 to 1": not (
            0 <= settings.canary <= 1 and 0 <= settings.canary_failures <= 1
        ),
        "rungs: names are small letters and digits": any(not re.fullmatch(r"[a-z0-9]+", name) for name in names),
        "canary_least is not negative": settings.canary_least < 0,
        "prices are not negative": min(settings.prices.vcpu_hour, settings.prices.gb_hour) < 0,
        "estimates: memory and times are not negative, time limits above 0": any(
            min(e.memory_p95, e.time_p99) < 0 or e.time_limit < 1 for e in settings.estimates.values()
        ),
        "submit_rate is above 0": not (settings.submit_rate > 0 and math.isfinite(settings.submit_rate)),
    }
    for complaint, wrong in complaints.items():
        if wrong:
            raise ValueError(complaint)
    return settings
