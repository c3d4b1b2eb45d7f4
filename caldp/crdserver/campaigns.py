"""From the affected datasets of a step between two contexts to a campaign that calibrates them anew.

The list carries the context: whoever calibrates takes that one and no other, wherever the default is by then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caldp import programs
from caldp.crdserver import reprocessing
from caldp.crdserver.site import Site
from caldp.errors import InputError, ReferencesError, UsageError
from caldp.store import ConflictError, Create, open_store, parse_uri

#: Where AWS looks for lists.
_PLACED = "control/placed"


def name_of(old: str, new: str) -> str:
    """Return what the campaign of a step is called."""
    return f"{Path(old).stem}-{Path(new).stem}".replace("_", "-")


def start(site: Site, old: str, new: str, who: str) -> str:
    """Have the affected datasets of a step calibrated anew.

    Parameters
    ----------
    site : Site
        Whose settings say where campaigns go.
    old, new : str
        Contexts, for which the affected datasets are known.
    who : str
        Recorded with it.

    Returns
    -------
    str
        The batch directory, or the list that was dropped: its campaign begins by itself.

    Raises
    ------
    UsageError
        If it is not said where campaigns go.
    InputError
        If nothing is affected, or that is not known yet.
    """
    settings = site.settings
    if not settings.campaigns:
        raise UsageError("it is not said where campaigns go", remedy="caldp crds serve --campaigns file:<directory>")
    found = reprocessing.kept(site, old, new)
    if found is None:
        raise InputError(f"what {old} -> {new} affects is not known yet", remedy="have it computed first")
    from caldp.crdserver.datasets import products

    ids = products(found["datasets"])
    if not ids:
        raise InputError(f"{old} -> {new} affects no datasets", remedy="nothing is to be done")
    name = name_of(old, new)
    listed = {"datasets": " ".join(ids), "crds_context": new, "label": f"{old} -> {new}, {who}"}
    if settings.campaign_input:
        listed["input"] = settings.campaign_input
    place = open_store(settings.campaigns)
    key = f"{_PLACED}/{name}.json"
    try:
        place.put(key, json.dumps(listed, indent=1).encode(), Create())
    except ConflictError:
        if parse_uri(settings.campaigns)[0] == "s3":
            raise InputError(f"{place.url(key)} is there: it has begun", remedy="look at its status") from None
        # Whoever began it may have been stopped before there was a job; a campaign that runs is not run twice.
        return f"{place.uri}/{name}"
    site.journal.append("campaign", who, f"{len(ids)} datasets for {new}", lambda _: {"list": place.url(key)})
    return place.url(key) if parse_uri(settings.campaigns)[0] == "s3" else f"{place.uri}/{name}"


def local(site: Site, old: str, new: str, environ: Mapping[str, str]) -> None:
    """Run the campaign of a step on this machine, to its end; again, to go on with it.

    Parameters
    ----------
    site : Site
        Whose settings say where.
    old, new : str
        Contexts.
    environ : mapping
        Of those who calibrate; they ask this CRDS.
    """
    settings = site.settings
    place, name = open_store(settings.campaigns), name_of(old, new)
    listing = place.url(f"{_PLACED}/{name}.json")
    argv = [str(Path(sys.executable).with_name("caldp")), "campaign", "submit", listing, f"{place.uri}/{name}"]
    argv += ["--config", settings.campaign_config, "--context", new, "--quiet"]
    env = {n: text for n, text in environ.items() if not n.startswith("CRDS_")} | {"CRDS_SERVER_URL": site.url}
    cache = site.settings.work / "clients"
    cache.mkdir(parents=True, exist_ok=True)
    env["CRDS_PATH"] = str(cache)
    done = programs.run(argv, cwd=cache, env=env, on_line=print)
    # 1: some datasets are in error, which the status of the campaign says.
    if done.returncode not in (0, 1):
        raise ReferencesError(f"the campaign of {old} -> {new} did not end ({done.outcome})", remedy="see its status")


def as_job(old: str, new: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the job that runs the campaign of a step on this machine, and what it is about."""
    return f"campaign-{name_of(old, new)}", {"old": old, "new": new}
