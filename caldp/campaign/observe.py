"""What jobs that ended well have used, kept so that later campaigns are planned with it.

Beside the batches of a deployment, and in the batch directory of a campaign on one machine, is
``observations/<instrument>.jsonl``: one line a dataset and recipe, the newest last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from caldp.batch import in_threads
from caldp.campaign.control import FOLDED, RESULTS, Control
from caldp.campaign.plan import Observation, Observations, from_jsonl, to_jsonl
from caldp.dataset import INSTRUMENT_LETTERS, Dataset
from caldp.errors import OutputError, UsageError
from caldp.store import ConflictError, Create, Overwrite, Store, Update

FOLDER = "observations"

#: What there are observations of.
INSTRUMENTS = (*INSTRUMENT_LETTERS.values(), "mvm")

#: Observations that are kept of an instrument: more would say nothing new, and every plan reads them.
KEPT = 20_000

#: Results that are read at once; what is left waits for the next time.
MOST = 100_000

_RECORD = re.compile(r"([0-9]+)\.([0-9]+)\.json")


def key(instrument: str) -> str:
    """Key of what was observed of an instrument, below the place where batches are."""
    return f"{FOLDER}/{instrument}.jsonl"


def known(place: Store, instruments: Collection[str] = INSTRUMENTS) -> Observations:
    """Read what was observed.

    Parameters
    ----------
    place : Store
        Parent of batches, or a batch directory.
    instruments : collection of str, optional
        Of these only.

    Returns
    -------
    Observations
        None if nothing is kept there.

    Raises
    ------
    OutputError
        If what is kept is damaged.
    """
    found = in_threads(lambda name: _kept(place, name)[0], sorted(instruments))
    return Observations(seen for some in found for seen in some)


def gather(control: Control, datasets: Iterable[str]) -> list[Observation]:
    """Return what the jobs of a campaign have used that ended well.

    Parameters
    ----------
    control : Control
        The campaign.
    datasets : iterable of str
        Those that are processed.

    Returns
    -------
    list of Observation
        Of each dataset that of its last job; none of those whose job left no record that makes sense.
    """

    wanted, last = set(datasets), dict[str, str]()
    # One listing of all: each dataset has a folder of its own.
    for entry in control.store.walk(RESULTS):
        name, _, record = entry.key.removeprefix(f"{RESULTS}/").partition("/")
        if name in wanted and _number(record) > _number(last.get(name, "")):
            last[name] = record

    def observed(name: str) -> Observation | None:
        with suppress(OutputError):  # one that is damaged does not keep the others from it
            seen = observation(control.read(f"{RESULTS}/{name}/{last[name]}"))
            return seen if seen is not None and seen.dataset == name else None
        return None

    return [seen for seen in in_threads(observed, sorted(last)) if seen is not None]


def observation(record: Mapping[str, Any] | None) -> Observation | None:
    """Return what the record of a job tells of what its dataset needs; None if it did not end well, or does not tell.

    Memory is that of the largest program: a container's own peak counts files that the kernel keeps for as long as
    nobody needs the room.
    """
    if not record or record.get("code") != 0 or not record.get("process_memory_bytes"):
        return None
    try:
        dataset = Dataset.parse(record["dataset"])
        return Observation.from_json(
            {
                "dataset": dataset.name,
                "instrument": dataset.instrument,
                "kind": dataset.kind,
                "detector": record["detector"],
                "exposures": record["exposures"],
                "recipe": record["recipe"],
                "memory": record["process_memory_bytes"],
                "seconds": record["wall_s"],
                "rung": record["rung"],
            }
        )
    except (KeyError, ValueError, TypeError, AttributeError, UsageError):
        return None


def learn(place: Store, observations: Iterable[Observation]) -> int:
    """Keep observations.

    Parameters
    ----------
    place : Store
        As for ``known``.
    observations : iterable of Observation
        What is new; it replaces what was kept of the same datasets with the same recipes.

    Returns
    -------
    int
        How many were new, or others than before.

    Raises
    ------
    OutputError
        If what is kept is damaged.
    """
    new: dict[str, list[Observation]] = {}
    for seen in observations:
        new.setdefault(seen.instrument, []).append(seen)
    return sum(_merge(place, instrument, some) for instrument, some in sorted(new.items()))


def fold(control: Control, place: Store, datasets: Sequence[str], most: int = MOST) -> bool:
    """Keep what the jobs of a campaign have used that has come to its end, a part at a time.

    Parameters
    ----------
    control : Control
        The campaign.
    place : Store
        As for ``known``.
    datasets : sequence of str
        Those that are processed.
    most : int, optional
        So many at once.

    Returns
    -------
    bool
        Whether that was the last part.  Whoever is killed does a part again, which changes nothing.
    """
    after = str((control.read(FOLDED) or {}).get("after", ""))
    rest = sorted(name for name in datasets if name > after)
    if some := rest[:most]:
        learn(place, gather(control, some))
        control.store.put(FOLDED, json.dumps({"after": some[-1]}).encode() + b"\n", Overwrite())
    return len(rest) <= most


def _number(record: str) -> tuple[int, ...]:
    """Return attempt and retry of a record, ``<attempt>.<retry>.json``; nothing for what is called otherwise."""
    match = _RECORD.fullmatch(record)
    return tuple(map(int, match.groups())) if match else ()


def _kept(place: Store, instrument: str) -> tuple[list[Observation], str]:
    """Return what is kept of an instrument, oldest first, and its tag."""
    blob = place.get(key(instrument))
    if blob is None:
        return [], ""
    try:
        return from_jsonl(blob.data), blob.etag
    except ValueError as error:
        raise OutputError(f"{place.url(key(instrument))}: {error}", remedy="remove it, or repair it") from error


def _merge(place: Store, instrument: str, new: Sequence[Observation]) -> int:
    while True:
        there, etag = _kept(place, instrument)
        merged = {(seen.dataset, seen.recipe): seen for seen in there}
        changed = 0
        for seen in sorted(new):
            if merged.get((seen.dataset, seen.recipe)) != seen:
                merged.pop((seen.dataset, seen.recipe), None)  # so that it becomes the newest
                merged[seen.dataset, seen.recipe] = seen
                changed += 1
        if not changed:
            return 0
        body = to_jsonl(list(merged.values())[-KEPT:])
        try:
            place.put(key(instrument), body, Update(etag) if etag else Create())
        except ConflictError:  # somebody else has folded another campaign: both count
            continue
        return changed
