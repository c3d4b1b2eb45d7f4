"""A list becomes a campaign: it is checked, planned and written down, in this order and to the end, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from caldp import messages
from caldp.batch import in_threads
from caldp.campaign.control import OBSERVATIONS, REJECTED, Control, who
from caldp.campaign.lists import DatasetList, Options, check_invalid
from caldp.campaign.plan import Observations, Plan, plan_all
from caldp.campaign.settings import Settings, from_json
from caldp.errors import ExistsError, OutputError, UsageError
from caldp.messages import Status
from caldp.store import Store

#: What two requests have in common that are the same one.
_SAME = ("list", "runner", "options")

#: Options that are no part of what is asked for.
_ASIDE = ("output", "batch", "dry_run", "label")

#: Names that a message shows.
_EXAMPLES = 3

#: Entries that are no datasets which a reply shows.
_TOLD = 100


@dataclass(frozen=True)
class Accepted:
    """A campaign that was written down.

    Attributes
    ----------
    control : Control
        Where.
    reply : mapping
        What whoever sent the list is told: ``batch``, ``accepted``, ``rejected``, ``duplicates``, ``skipped``,
        ``shards``, ``jobs``, ``estimate``, ``invalid``.
    shards : tuple of str
        The shards to submit now: all, or those that go first.
    resumed : bool
        Whether the same list came before: then nothing was changed.
    """

    control: Control
    reply: Mapping[str, Any]
    shards: tuple[str, ...]
    resumed: bool


@dataclass(frozen=True)
class Drawn:
    """What a list comes to in a batch, before anything is written.

    Attributes
    ----------
    plan : Plan
        What is to be run.
    skipped : tuple of str
        Datasets that are processed already, and stay as they are.
    """

    plan: Plan
    skipped: tuple[str, ...]


def draw(
    store: Store | None,
    listed: DatasetList,
    options: Options,
    settings: Settings,
    observations: Observations | None = None,
) -> Drawn:
    """Plan a list; nothing is written.

    Parameters
    ----------
    store : Store or None
        The batch that it is for; None when that is not known yet.
    listed : DatasetList
        The datasets.
    options : Options
        What is asked for.
    settings : Settings
        The figures to go by.
    observations : Observations, optional
        What was observed before.

    Returns
    -------
    Drawn

    Raises
    ------
    UsageError
        If too much of the list is no dataset, or something is asked for that there is not.
    ExistsError
        If datasets are processed already, and that is to be an error.
    """
    check_invalid(listed, options)
    known = {} if store is None else _standing(store, listed)
    processed = tuple(name for name, status in known.items() if status.done)
    if processed and options.existing == "error":
        names = ", ".join(processed[:_EXAMPLES]) + (" ..." if len(processed) > _EXAMPLES else "")
        raise ExistsError(
            f"{len(processed):,} of the datasets are processed already: {names}",
            remedy="skip or overwrite them (--existing), or give another output",
        )
    skipped = processed if options.existing == "skip" else ()
    rest = replace(listed, datasets=tuple(name for name in listed.datasets if name not in set(skipped)))
    return Drawn(plan_all(rest, settings, options, observations or Observations(), known), skipped)


def _standing(store: Store, listed: DatasetList) -> dict[str, Status]:
    """Return how those datasets stand that the batch knows already."""
    recorded = {name.removesuffix(".json") for name in store.names("messages/status")}
    there = [name for name in listed.datasets if name in recorded]
    found = in_threads(lambda name: messages.read(store, name), there)
    return {status.dataset: status for status in found if status is not None}


def accept(
    store: Store,
    listed: DatasetList,
    options: Options,
    settings: Settings,
    observations: Observations | None = None,
    *,
    runner: str,
    deployment: str = "",
) -> Accepted:
    """Make a campaign of a list.

    Parameters
    ----------
    store : Store
        The batch.
    listed, options, settings, observations
        As for ``draw``.
    runner : str
        Who runs it: ``local`` or ``aws``.
    deployment : str, optional
        The stack that does.

    Returns
    -------
    Accepted
        The same for the same list, however often it comes: whoever was killed half-way does it again.

    Raises
    ------
    UsageError
        As ``draw``, or if the batch is the campaign of another list.
    ExistsError
        As ``draw``.
    """
    control = Control(store)
    request = {**_request(control.name, listed, options, settings, runner), "deployment": deployment}
    if (known := control.known()) is not None:
        control.check_same(known, request, _SAME)
        if (plan := control.planned()) is not None:
            return Accepted(control, plan["reply"], tuple(plan["first"] or plan["shards"]), resumed=True)
        # Whoever was killed half-way has written down what it goes by; the plan must not go by anything else.
        settings = from_json(known["settings"])
    drawn = draw(store, listed, options, settings, observations)
    if not drawn.plan.lines and not drawn.skipped:
        raise UsageError("nothing of the list can be planned", remedy="see what caldp campaign plan says of it")
    control.claim(request, _SAME)
    if observations is not None:
        # The plan goes by what is kept, so that it can be made again; whoever was killed half-way has kept something.
        if not control.put_once(OBSERVATIONS, observations.jsonl()):
            drawn = draw(store, listed, options, settings, observations_of(store))
    shards = drawn.plan.shards(control.name, settings)
    rejected = [*listed.rejected, *drawn.plan.refused]
    told = reply(control.name, listed, drawn, len(shards))
    control.write_lines(REJECTED, (entry.to_json() for entry in rejected))
    for shard in shards:
        control.write_manifest(shard)
    names, first = [shard.name for shard in shards], [shard.name for shard in shards if shard.canary]
    # Last: from here on there is a campaign.
    more = {"skipped": list(drawn.skipped), "shards": names, "first": first, "reply": told}
    control.write_plan({**drawn.plan.to_json(), **more})
    return Accepted(control, told, tuple(first or names), resumed=False)


def reply(batch: str, listed: DatasetList, drawn: Drawn, shards: int) -> dict[str, Any]:
    """Return what whoever sent a list is told of it, with the first of the entries that are no datasets."""
    rejected = [*listed.rejected, *drawn.plan.refused]
    return {
        "batch": batch,
        "accepted": len(drawn.plan.lines),
        "rejected": len(rejected),
        "duplicates": listed.duplicates,
        "skipped": len(drawn.skipped),
        "shards": shards,
        "jobs": len(drawn.plan.lines),
        "estimate": {"hours": round(drawn.plan.hours, 2), "cost": round(drawn.plan.cost, 2)},
        "invalid": [entry.to_json() for entry in rejected[:_TOLD]],
    }


def _request(batch: str, listed: DatasetList, options: Options, settings: Settings, runner: str) -> dict[str, Any]:
    said = {name: asdict(override) for name, override in sorted(listed.overrides.items())}
    body = json.dumps([listed.datasets, said]).encode()
    asked = asdict(options)
    return {
        "batch": batch,
        "at": messages.now(),
        "by": who(),
        "label": options.label,
        "runner": runner,
        "list": hashlib.sha256(body).hexdigest(),
        "datasets": len(listed.datasets),
        "options": {name: value for name, value in asked.items() if name not in _ASIDE},
        "settings": settings.to_json(),
    }


def observations_of(store: Store) -> Observations:
    """Return the observations that a batch was planned with; none if it was planned without."""
    blob = store.get(OBSERVATIONS)
    try:
        return Observations.parse(blob.data) if blob else Observations()
    except ValueError as error:
        raise OutputError(f"{store.url(OBSERVATIONS)}: {error}", remedy="remove it, or repair it") from error
