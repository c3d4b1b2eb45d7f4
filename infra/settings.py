"""What differs between environments: one TOML file for each, with the tables ``infra`` and ``campaign``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from caldp.campaign import settings as campaign
from caldp.campaign.deployment import NAME
from caldp.store import parse_uri

FOLDER = Path(__file__).parent / "settings"

#: Days that logs can be kept.
LOG_DAYS = (1, 3, 5, 7, 14, 30, 60, 90, 180, 365, 731, 1827, 3653)

#: Seconds that a function has to submit a shard, and datasets that it submits a second (``docs/scale.rst``).
SUBMIT_SECONDS, SUBMITTED_A_SECOND = 300, 35

#: Datasets of the largest shard: half the time is for S3 on a slow day.
LARGEST_SHARD = SUBMITTED_A_SECOND * SUBMIT_SECONDS // 2

#: Families of instances, by GiB of memory for each vCPU: several, because Spot runs out of one at a time.
FAMILIES = MappingProxyType(
    {
        2: ("c5a", "c6a", "c6i", "c7a", "c7i"),
        4: ("m5a", "m6a", "m6i", "m7a", "m7i"),
        8: ("r5a", "r6a", "r6i", "r7a", "r7i"),
    }
)


@dataclass(frozen=True)
class Capacity:
    """What one step of the memory ladder may use at most.

    Attributes
    ----------
    spot_vcpus, on_demand_vcpus : int
        Processors on Spot instances, and on others, which are used when Spot has reached its limit.
    families : tuple of str
        Instance families; empty for those of ``FAMILIES`` that fit.
    """

    spot_vcpus: int = 64
    on_demand_vcpus: int = 8
    families: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """Where instances live.

    Attributes
    ----------
    id : str
        A VPC that is there; empty for one of the stack's own, with public subnets and without NAT.
    subnets, zones : tuple of str
        Of that VPC, the zones in the order of the subnets; or zones alone, for the stack's own.
    cidr : str
        Addresses of the stack's own.
    """

    id: str = ""
    subnets: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    cidr: str = "10.42.0.0/16"


@dataclass(frozen=True)
class Infra:
    """An environment.

    Attributes
    ----------
    name : str
        Of the stack, and the beginning of the names of all that is in it.
    image : str
        ``repository:tag``; the stack makes the repository.
    bucket, crds : str
        Name of the outputs' bucket, empty for one that CloudFormation chooses; and ``s3://bucket[/prefix]`` of a CRDS
        cache that is there, empty for a bucket of the stack's own.
    prefix : str
        Part of the bucket where batches are, without slashes at its ends; lists are dropped below it too.
    inputs : tuple of str
        ``s3://bucket[/prefix]`` where jobs may read inputs.
    crds_server, crds_public : bool
        Whether there is a CRDS (``crds.py``), whose files are in that cache; and whether anybody may reach it, as stock
        clients must, or only who signs requests, which something before it may do.
    crds_url : str
        What clients call it, if not the address that AWS gives: ``https://host``, without an observatory.
    crds_tend_minutes : int
        Between two looks after its locks and jobs.
    retain : bool
        Whether buckets, repository, table and logs outlive the stack.
    vpc : Network
    rungs : mapping
        Capacity, by step of the memory ladder.
    shares : mapping
        Weight of each share of the queues; half the weight is twice the share.
    volume_gb, crds_cache_gb : int
        Disk of an instance, and how much of it keeps reference files.
    job_timeout_hours : int
        Of jobs that somebody submits by hand without a limit.
    blocked_hours, capacity_hours : int
        After which a job is taken out that waits at the head of a queue because of a mistake in the settings, or
        because AWS has no instances.
    versions_days, log_days, images : int
        How long earlier versions of objects and logs are kept, and how many images.
    architecture : str
        Of the functions: ``x86_64`` or ``arm64``.
    reserve_concurrency : bool
        Whether functions that are to run once at a time are made to; an account with few executions refuses it.
    log_level : str
        Of the functions.
    drain_minutes, reconcile_minutes : int
        Between two drains of the rescue queue, between two looks of the reconciler.
    failure_percent, runnable_minutes : int
        From which on alarms go off: failures among what ended in an hour (0 for no such alarm), and the longest that a
        job waits while none of its queue runs.
    alarm_email : str
        Who hears of alarms.
    budget : int
        US dollars a month, 0 for none.
    """

    name: str
    image: str
    bucket: str = ""
    crds: str = ""
    crds_server: bool = False
    crds_public: bool = False
    crds_url: str = ""
    crds_tend_minutes: int = 10
    prefix: str = ""
    inputs: tuple[str, ...] = ()
    retain: bool = True
    vpc: Network = field(default_factory=Network)
    rungs: Mapping[str, Capacity] = field(default_factory=lambda: MappingProxyType({}))
    shares: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({"prompt": 1.0, "bulk": 4.0}))
    volume_gb: int = 200
    crds_cache_gb: int = 60
    job_timeout_hours: int = 6
    blocked_hours: int = 1
    capacity_hours: int = 24
    versions_days: int = 30
    log_days: int = 90
    images: int = 20
    architecture: str = "x86_64"
    reserve_concurrency: bool = False
    log_level: str = "INFO"
    drain_minutes: int = 1
    reconcile_minutes: int = 10
    failure_percent: int = 20
    runnable_minutes: int = 30
    alarm_email: str = ""
    budget: int = 0

    @property
    def repository(self) -> str:
        """Name of the repository of images."""
        return self.image.rpartition(":")[0]

    @property
    def tag(self) -> str:
        """Tag of the image."""
        return self.image.rpartition(":")[2]

    def capacity(self, rung: campaign.Rung) -> Capacity:
        """Return what a step of the ladder may use, with its families of instances."""
        known = self.rungs.get(rung.name, Capacity())
        if known.families:
            return known
        # 128 MiB per GB are left to the host.
        ratio = next((r for r in FAMILIES if rung.memory <= r * 896 * rung.vcpus), max(FAMILIES))
        return Capacity(known.spot_vcpus, known.on_demand_vcpus, FAMILIES[ratio])


@dataclass(frozen=True)
class Environment:
    """All settings of one environment.

    Attributes
    ----------
    infra : Infra
    campaign : Settings
        What campaigns go by.
    campaign_json : mapping
        The same, as functions read it: what the file says.
    """

    infra: Infra
    campaign: campaign.Settings
    campaign_json: Mapping[str, Any]


def load(name: str) -> Environment:
    """Read the settings of an environment.

    Parameters
    ----------
    name : str
        ``dev`` or ``ops``, a file in ``infra/settings``; or the path of a TOML file.

    Returns
    -------
    Environment

    Raises
    ------
    UsageError
        If there is no such file, or it makes no sense.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    return campaign.read_toml(path, from_json, missing="name an environment: dev, ops")


def from_json(record: Mapping[str, Any]) -> Environment:
    """Make settings of plain values; ValueError, TypeError, UsageError when they make no sense."""
    unknown = set(record) - {"infra", "campaign"}
    if unknown:
        raise ValueError(f"there is no table {sorted(unknown)[0]!r}; there are infra and campaign")
    given = dict(record.get("infra", {}))
    if "vpc" in given:
        given["vpc"] = _typed(Network, given["vpc"], "infra.vpc")
    if "rungs" in given:
        given["rungs"] = MappingProxyType(
            {k: _typed(Capacity, v, f"infra.rungs.{k}") for k, v in given["rungs"].items()}
        )
    if "shares" in given:
        given["shares"] = MappingProxyType({k: float(v) for k, v in given["shares"].items()})
    infra: Infra = _typed(Infra, given, "infra")
    table = dict(record.get("campaign", {}))
    found = Environment(infra, campaign.of_plain(table), MappingProxyType(table))
    _check(found)
    return found


def _typed(kind: type[Any], given: Mapping[str, Any], table: str) -> Any:  # noqa: ANN401 - of that kind
    """Make a dataclass of values that have the types of its fields."""
    known = {f.name: str(f.type) for f in fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"there is no setting {table}.{name}")
        simple: dict[str, type[Any]] = {"str": str, "int": int, "bool": bool, "tuple[str, ...]": list}
        wanted = simple.get(known[name])
        if wanted is not None and type(value) is not wanted:
            raise ValueError(f"{table}.{name} = {value!r} is no {wanted.__name__}")
        if wanted is list and not all(isinstance(item, str) for item in value):
            raise ValueError(f"{table}.{name}: give texts")
    missing = {"name", "image"} - set(given) if kind is Infra else set()
    if missing:
        raise ValueError(f"{table}.{sorted(missing)[0]} is missing")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _check(found: Environment) -> None:
    infra = found.infra
    ladder, size = {rung.name for rung in found.campaign.rungs}, found.campaign.shard_size
    numbers = (
        *(f"infra.{n}" for n in ("volume_gb", "crds_cache_gb", "versions_days", "images", "runnable_minutes")),
        *(f"infra.{n}" for n in ("drain_minutes", "reconcile_minutes", "crds_tend_minutes")),
        *(f"infra.{n}" for n in ("job_timeout_hours", "blocked_hours", "capacity_hours")),
    )
    for name in numbers:
        if getattr(infra, name.removeprefix("infra.")) < 1:
            raise ValueError(f"{name} is 1 or more")
    complaints = {
        "infra.name: small letters, digits and hyphens, at most 32, a letter first": not re.fullmatch(NAME, infra.name),
        "infra.image: repository:tag, without a registry": not re.fullmatch(
            r"[a-z0-9][a-z0-9._/-]{1,200}:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", infra.image
        ),
        "infra.bucket is a name, without s3://": bool(infra.bucket)
        and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", infra.bucket),
        "infra.crds and infra.inputs: s3://bucket, with a prefix or without": not all(
            parse_uri(uri)[0] == "s3" for uri in (*infra.inputs, *([infra.crds] if infra.crds else []))
        ),
        "infra.crds: crds wants bucket and prefix in lower case": infra.crds != infra.crds.lower(),
        "infra.crds_url: https://host, without a path": bool(infra.crds_url)
        and not re.fullmatch(r"https://[a-z0-9][a-z0-9.-]*", infra.crds_url),
        "infra.crds_public and infra.crds_url are for a CRDS: set infra.crds_server": not infra.crds_server
        and (infra.crds_public or bool(infra.crds_url)),
        "infra.prefix: letters, digits, . _ - and slashes, none at its ends": not re.fullmatch(
            r"([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?", infra.prefix
        ),
        f"infra.log_days: one of {', '.join(map(str, LOG_DAYS))}": infra.log_days not in LOG_DAYS,
        f"infra.rungs: the ladder has {', '.join(sorted(ladder))}": not set(infra.rungs) <= ladder,
        "infra.rungs: vCPUs at most are those of one job at least": any(
            min(c.spot_vcpus, c.on_demand_vcpus) < rung.vcpus
            for rung in found.campaign.rungs
            for c in (infra.capacity(rung),)
        ),
        "infra.vpc: a VPC that is there needs its subnets, and the zone of each": bool(infra.vpc.id)
        and not (infra.vpc.subnets and len(infra.vpc.subnets) == len(infra.vpc.zones)),
        "infra.vpc: subnets are those of a VPC that is there": bool(infra.vpc.subnets) and not infra.vpc.id,
        "infra.shares: names of letters and digits, weights from 0.0001 to 999.9999": not infra.shares
        or not all(re.fullmatch(r"[A-Za-z0-9]{1,255}", k) and 0.0001 <= v <= 999.9999 for k, v in infra.shares.items()),
        "infra.architecture is x86_64 or arm64": infra.architecture not in ("x86_64", "arm64"),
        "infra.volume_gb: reference files and scratch files need room": infra.volume_gb < infra.crds_cache_gb + 30,
        "infra.blocked_hours and infra.capacity_hours: 24 at most": max(infra.blocked_hours, infra.capacity_hours) > 24,
        "infra.failure_percent: 0 to 100": not 0 <= infra.failure_percent <= 100,
        "infra.budget is not negative": infra.budget < 0,
        "infra.alarm_email is no address": bool(infra.alarm_email)
        and not re.fullmatch(r"[^@\s]+@[^@\s]+", infra.alarm_email),
        "infra.log_level is DEBUG, INFO, WARNING or ERROR": infra.log_level
        not in ("DEBUG", "INFO", "WARNING", "ERROR"),
        "campaign.time_limits: AWS Batch stops no job before 60 s": found.campaign.time_limits[0] < 60,
        f"campaign.shard_size is {size}: a function submits {SUBMITTED_A_SECOND} datasets a second, and of its"
        f" {SUBMIT_SECONDS} s half are for slow days: {LARGEST_SHARD} at most": size > LARGEST_SHARD,
    }
    for complaint, wrong in complaints.items():
        if wrong:
            raise ValueError(complaint)
