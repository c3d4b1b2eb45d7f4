"""Examine an installation: programs, packages, CRDS settings, disk space, and what to do about what is not there."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement

from caldp import config, programs, references
from caldp.config import Config
from caldp.errors import UsageError
from caldp.instruments import INSTRUMENTS

#: Programs of HSTCAL, which the Python package index does not have: without them, other instruments can be calibrated.
_HSTCAL = ("calacs.e", "calwf3.e", "cs0.e")

#: Free space below which a COS association (1.5 GB of products) may fail, in bytes.
ENOUGH_SPACE = 4_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what : str
        For example ``program calcos``.
    ok : bool
        Whether it is as it should be.
    found : str
        What is there.
    remedy : str
        What to do if it is not ok.
    needed : bool
        Whether a run fails without it.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True


def examine(name: str = config.DEFAULT_CONFIG) -> list[Finding]:
    """Look at everything a run needs.

    Parameters
    ----------
    name : str
        Config whose settings are examined.

    Returns
    -------
    list of Finding
    """
    try:
        settings = config.load(name)
    except UsageError as error:
        return [Finding("config", False, error.message, error.remedy), *_packages()]
    return [
        Finding("python", True, platform.python_version()),
        *_packages(),
        _program("bash", "the config scripts", "install the package bash", settings),
        *_programs(settings),
        *_crds(settings),
        _space("scratch", settings.home),
        _space("current directory", Path.cwd()),
    ]


def as_text(findings: list[Finding]) -> str:
    """Lay the findings out for people."""
    width = max(len(f.what) for f in findings)
    lines = []
    for finding in findings:
        mark = "ok  " if finding.ok else ("FAIL" if finding.needed else "note")
        lines.append(f"{mark} {finding.what:<{width}}  {finding.found}")
        if not finding.ok:
            lines.append(f"     {'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> str:
    """Lay the findings out for machines."""
    return json.dumps([asdict(f) for f in findings], indent=1)


def _packages() -> list[Finding]:
    """Look for every package that this one requires, in a version that it works with."""
    needed = [Requirement(text) for text in importlib.metadata.requires("caldp") or ()]
    return [_package(package) for package in needed if package.marker is None or package.marker.evaluate({"extra": ""})]


def _package(package: Requirement) -> Finding:
    remedy = f"pip install '{package.name}{package.specifier}'"
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(f"package {package.name}", False, "not installed", remedy)
    fits = package.specifier.contains(version, prereleases=True)
    return Finding(f"package {package.name}", fits, version, remedy)


def _programs(settings: Config) -> list[Finding]:
    """Look for every program of every recipe."""
    users: dict[str, list[str]] = {}
    remedies: dict[str, str] = {}
    for row in INSTRUMENTS.values():
        for program in row.programs:
            users.setdefault(program.name, []).append(row.name.upper())
            remedies[program.name] = program.remedy.removesuffix("; see caldp doctor")
    return [_program(name, " and ".join(use), remedies[name], settings) for name, use in users.items()]


def _program(name: str, use: str, remedy: str, settings: Config) -> Finding:
    path = programs.find(name, settings.environment.get("PATH", ""))
    found = path or f"not found: needed for {use}"
    return Finding(f"program {name}", path is not None, found, remedy, needed=name not in _HSTCAL)


def _crds(settings: Config) -> list[Finding]:
    cache = settings.crds_path
    offline = references.serverless(settings)
    known = references.contexts(settings)
    context = settings.crds_context
    # What a store has is fetched into the cache when a run needs it.
    stored = bool(settings.crds_store) and offline and not settings.crds_readonly
    alone = offline and not stored
    source = f"store {settings.crds_store}" if stored else "the cache alone"
    mode = f"from {source}" if offline else f"server {settings.crds_server_url}"
    return [
        Finding("config", True, f"{settings.name} ({settings.script})"),
        Finding("CRDS mode", True, f"{mode}, cache {'read-only' if settings.crds_readonly else 'writable'}"),
        Finding(
            "CRDS cache",
            stored or (cache / "config" / "hst" / "server_config").is_file(),
            str(cache),
            "export CRDS_PATH=<CRDS cache>, or use caldp-config-offsite to fill one from the CRDS server",
            needed=alone,
        ),
        Finding(
            "CRDS rules",
            stored or bool(known),
            f"{len(known)} contexts, the newest {known[-1]}" if known else "none",
            "sync the CRDS cache",
            needed=alone,
        ),
        Finding(
            "CRDS context",
            not context or not alone or not context.endswith(".pmap") or context in known,
            context or "not set: the operational one",
            f"the cache has no rules {context}: choose another with --context or CRDS_CONTEXT",
        ),
    ]


def _space(what: str, path: Path) -> Finding:
    wanted = path
    while not path.exists():
        path = path.parent
    try:
        with tempfile.TemporaryFile(dir=path):  # permissions say less: root, read-only mounts, /proc
            pass
    except OSError as error:
        reason = f"{wanted} cannot be written ({error.strerror})"
        return Finding(f"space, {what}", False, reason, "export CALDP_HOME=<a directory of your own>")
    free = shutil.disk_usage(path).free
    return Finding(
        f"space, {what}",
        free >= ENOUGH_SPACE,
        f"{free / 1e9:.1f} GB free in {path}",
        "a COS association needs 4 GB, a mosaic of ACS/WFC 10: free some, or export CALDP_HOME=<roomier directory>",
        needed=False,
    )
