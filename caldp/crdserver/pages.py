"""What pages show of a CRDS, as plain data: questions to a site, none of which changes anything."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from caldp.crdserver import catalog, reprocessing
from caldp.crdserver.channels import Channels
from caldp.crdserver.journal import Event
from caldp.crdserver.site import Site
from caldp.crdserver.state import AVAILABLE, OVER, Row, State, serial
from caldp.crdserver.tables import ROWS, candidates, loaded, naming, naming_any
from caldp.errors import CaldpError, InputError

#: Events that one page of the log looks through.
_SCANNED = 5000

#: Seconds after which the archive should have taken a delivery.
_LATE = 24 * 3600.0

#: Messages of a job that are shown.
_MESSAGES = 300

#: Headings of the columns of the catalogue by which it is sorted, and where a row has them.
COLUMNS = {
    "name": "File",
    "instrument": "Instrument",
    "filekind": "Type",
    "state": "State",
    "size": "Size",
    "delivered": "Delivered",
}


def seconds_since(text: str) -> float:
    """Return the seconds since a time that an event has; 0 if it has none."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(text).replace(tzinfo=UTC)).total_seconds()
    except ValueError:
        return 0.0


# ---- overview, log


def overview(site: Site) -> dict[str, Any]:
    """Return what the first page shows: contexts, submissions that are not over, the last events, what is bad."""
    state = site.state
    kinds = Counter(row["type"] for row in state.files.values())
    checked = site.records.get(f"{site.observatory}:checks", "newest")
    return {
        "state": state,
        "since": state.history[-1] if state.history else ("", "", ""),
        "kinds": kinds,
        "waiting": [one for one in listed_submissions(state) if one["state"] not in OVER],
        "events": list(_some(site.journal.events(), 10)),
        "bad": len(state.bad_files),
        "late": sum(one["late"] for one in deliveries(site)),
        "checked": checked.value if checked else None,
    }


def events(site: Site, kind: str = "", who: str = "", text: str = "", before: int = 0) -> dict[str, Any]:
    """Return events, newest first.

    Parameters
    ----------
    site : Site
        Whose.
    kind, who : str
        Only those; empty for all.
    text : str
        Only those whose words have this in them, in small letters or capitals.
    before : int
        Only those before this number; 0 for all.

    Returns
    -------
    dict
        ``events`` (list of Event), and ``before``, with which the next ones are asked for; 0 if there are none.
    """
    found: list[Event] = []
    seen = 0
    for event in site.journal.events(before):
        seen += 1
        if _wanted(event, kind, who, text):
            found.append(event)
        if len(found) == ROWS or seen == _SCANNED:
            return {"events": found, "before": event.seq if event.seq > 1 else 0}
    return {"events": found, "before": 0}


def _wanted(event: Event, kind: str, who: str, text: str) -> bool:
    if kind and event.kind != kind or who and event.who != who:
        return False
    return not text or text.lower() in f"{event.who} {event.kind} {event.why}".lower()


def _some(events: Iterator[Event], most: int) -> Iterator[Event]:
    for _, event in zip(range(most), events, strict=False):
        yield event


# ---- catalogue


@dataclass(frozen=True)
class Search:
    """What is looked for in the catalogue.

    Attributes
    ----------
    name : str
        A shell pattern; text without wildcards may be anywhere in a name.
    type : str
        ``mapping`` or ``reference``.
    instrument, filekind, state : str
        Only those.
    bad : str
        ``yes`` or ``no``.
    since, until : str
        Days of delivery, as ``2026-11-22``.
    sort : str
        One of ``COLUMNS``; with a minus, downwards.
    """

    name: str = ""
    type: str = ""
    instrument: str = ""
    filekind: str = ""
    state: str = ""
    bad: str = ""
    since: str = ""
    until: str = ""
    sort: str = "name"


def search(state: State, wanted: Search) -> list[tuple[str, Row]]:
    """Return (name, row) of the files that are looked for, sorted.

    Parameters
    ----------
    state : State
        Whose catalogue.
    wanted : Search
        What.

    Returns
    -------
    list of tuple
    """
    pattern = wanted.name.strip().lower()
    if pattern and not any(mark in pattern for mark in "*?["):
        pattern = f"*{pattern}*"
    fits = re.compile(fnmatch.translate(pattern)).match if pattern else None
    fields = ("type", "instrument", "filekind", "state")
    exact = {field: value for field in fields if (value := getattr(wanted, field).strip())}
    until = f"{wanted.until}T~" if wanted.until else ""  # behind all times of that day
    found = [
        (name, row)
        for name, row in state.files.items()
        if (fits is None or fits(name.lower()))
        and all(row.get(field, "") == value for field, value in exact.items())
        and (not wanted.bad or bool(row.get("bad")) == (wanted.bad == "yes"))
        and (not wanted.since or row.get("delivered", "") >= wanted.since)
        and (not until or "" < row.get("delivered", "") <= until)
    ]
    by = wanted.sort.lstrip("-")
    if by not in COLUMNS:
        raise InputError(f"the catalogue is not sorted by {by[:20]!r}", remedy=f"choose of {', '.join(COLUMNS)}")
    found.sort()
    if by != "name":
        found.sort(key=lambda one: one[1].get(by, 0 if by == "size" else ""), reverse=wanted.sort[0] == "-")
    elif wanted.sort[0] == "-":
        found.reverse()
    return found


def choices(state: State) -> dict[str, list[str]]:
    """Return what the catalogue can be searched by: all values of some fields."""
    return {
        field: sorted({str(row.get(field, "")) for row in state.files.values()} - {""})
        for field in ("instrument", "filekind", "state")
    }


def file(site: Site, name: str) -> dict[str, Any]:
    """Return all that is known of a file: fields, who names it, when it is chosen, and what was done with it."""
    state = site.state
    row = site.row(name, state)
    named_by = naming(site, state, name)
    found: dict[str, Any] = {
        "name": name,
        "row": row,
        "fields": {k: v for k, v in catalog.info(site, name, row).items() if v and k != "name"},
        "named_by": named_by,
        "contexts": [],
        "matches": [],
        "rmap": "",
        "actions": _actions(site, name, row),
        "to_be_had": row["state"] in AVAILABLE and not row.get("absent"),
    }
    if row["type"] == "reference" and named_by:
        imaps = naming_any(site, candidates(state, ".imap", row), set(named_by))
        found["contexts"] = sorted(naming_any(site, candidates(state, ".pmap", row), set(imaps)), key=serial)
        found["rmap"] = _rmap_in_use(site, state, named_by)
        found["matches"] = matches(site, found["rmap"], name)
    elif row["type"] == "mapping":
        found["contexts"] = _contexts_of(site, state, name, row, named_by)
    return found


def _contexts_of(site: Site, state: State, name: str, row: Row, named_by: Sequence[str]) -> list[str]:
    if name.endswith(".pmap"):
        return []
    pmaps = named_by if name.endswith(".imap") else naming_any(site, candidates(state, ".pmap", row), set(named_by))
    return sorted(pmaps, key=serial)


def _rmap_in_use(site: Site, state: State, named_by: Sequence[str]) -> str:
    """Return the rmap of the default context among some; else the newest of them."""
    in_use: set[str] = set()
    if state.latest and not state.files.get(state.latest, {}).get("absent"):
        in_use = set(site.mappings.closure(state.latest))
    return next((name for name in named_by if name in in_use), named_by[0])


def matches(site: Site, rmap: str, name: str) -> list[str]:
    """Return when a reference is chosen, in the words of ``crds matches --files``."""
    said = []
    for path in loaded(site, rmap).file_matches(name):
        # Instrument and type, then parameters; what crds puts first is the observatory.
        about = " ".join(part[1].upper() for part in path[0][1:])
        parameters = " ".join(f"{key}={value!r}" for section in path[1:] for key, value in section)
        said.append(f"{about} {parameters}")
    return said


def _actions(site: Site, name: str, row: Row) -> list[Event]:
    one = row.get("submission", "")
    found = []
    for seen, event in enumerate(site.journal.events()):
        data = event.data
        about = (*data.get("names", ()), *data.get("files", ()), data.get("context", ""), data.get("context_new", ""))
        if name in about or (one and data.get("submission") == one):
            found.append(event)
        if len(found) == ROWS or seen == _SCANNED:
            break
    return found


# ---- submissions and deliveries


def listed_submissions(state: State, now_in: str = "") -> list[dict[str, Any]]:
    """Return submissions, newest first, with their ``id``: those in a state, or all."""
    found = [{"id": one, **known} for one, known in state.submissions.items() if now_in in ("", known["state"])]
    return sorted(found, key=lambda one: str(one["at"]), reverse=True)


def messages(site: Site, channel: str) -> list[dict[str, Any]]:
    """Return what a job has said so far: ``type`` and ``text``; the last ones if there are many."""
    try:
        said = Channels(site.records, site.observatory).pull(channel)
    except CaldpError:  # it was opened by nobody, or is gone
        return []
    found = []
    for one in said[-_MESSAGES:]:
        data = one["data"]
        kind = "info" if one["type"] == "log_message" else one["type"]
        found.append({"type": kind, "text": data if isinstance(data, str) else str(data.get("result", ""))})
    return found


def review(state: State, known: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the person who confirms a submission must know beside its result.

    Parameters
    ----------
    state : State
        Of this moment.
    known : mapping
        What is known of the submission.
    result : mapping
        What its job made of it; empty before it is done.

    Returns
    -------
    dict
        ``lines``: {``errors``, ``warnings``, ``others``: list of str}; ``moved``: the context to derive from, if that
        is not the one that this submission was derived from; ``floats``: whether its context is then made anew.
    """
    lines: dict[str, list[str]] = {"errors": [], "warnings": [], "others": []}
    sorts = {"ERROR": "errors", "WARNING": "warnings"}
    for line in result.get("lines", ()):
        kind, _, text = line.partition(" ")
        lines[sorts.get(kind, "others")].append(text if kind in sorts else line)
    waits = known["state"] not in OVER and known["kind"] != "certify"
    moved = state.edit if waits and known.get("context") != state.edit else ""
    return {
        "lines": lines,
        "moved": moved,
        "floats": known.get("floats", True),
    }


def deliveries(site: Site) -> list[dict[str, Any]]:
    """Return what was confirmed, newest first: ``id``, ``by``, ``at``, ``why``, ``files``, ``archive``, ``late``."""
    state = site.state
    files: dict[str, list[str]] = {}
    waiting: Counter[str] = Counter()
    for name, row in state.files.items():
        if one := row.get("submission"):
            files.setdefault(one, []).append(name)
            waiting[one] += row["state"] not in AVAILABLE
    found = []
    for known in listed_submissions(state, "confirmed"):
        one = known["id"]
        said = known.get("archive") or ("archived" if not waiting[one] else "not told yet")
        late = bool(waiting[one]) and seconds_since(known["changed"]) > _LATE
        found.append(
            known | {"files": sorted(files.get(one, ())), "waiting": waiting[one], "archive": said, "late": late}
        )
    return found


def archived_at_once(site: Site) -> bool:
    """Whether there is no archive to wait for."""
    return site.settings.archive == "none"


# ---- affected datasets


def steps(site: Site) -> list[dict[str, Any]]:
    """Return the steps between default contexts, newest first: ``old``, ``new``, ``at``; ``known`` if computed."""
    state = site.state
    history = sorted(state.history)
    known = set(site.store.names(reprocessing.key(site, "", "").rpartition("/")[0]))
    pairs = [(old, new, at) for (_, old, _), (at, new, _) in zip(history, history[1:], strict=False) if old != new]
    return [
        {"old": old, "new": new, "at": at, "known": f"{old}-{new}.json.gz" in known} for old, new, at in reversed(pairs)
    ]


def affected(site: Site, old: str, new: str, which: str = "", kind: str = "") -> dict[str, Any] | None:
    """Return which datasets a step affects, if that was computed.

    Parameters
    ----------
    site : Site
        Where.
    old, new : str
        Contexts.
    which, kind : str
        Only rows of this instrument and this type; empty for all.

    Returns
    -------
    dict or None
        ``rows``: ``dataset``, ``instrument`` and ``reasons`` (type, old file, new file), sorted; ``instruments`` and
        ``skipped`` as ``affected.Affected`` has them; ``total`` datasets, and ``products`` that would be calibrated.
    """
    from caldp.crdserver.affected import Affected
    from caldp.crdserver.datasets import products

    kept = reprocessing.kept(site, old, new)
    if kept is None:
        return None
    found = Affected.from_json(kept)
    kinds: dict[str, set[str]] = {}
    for instrument, type_, *_ in found.changed:
        kinds.setdefault(type_, set()).add(instrument)
    files = site.state.files
    # Datasets share their reasons: as many are looked at as there are different ones.
    instruments = {reasons: _instrument_of(files, reasons, kinds) for reasons in set(found.datasets.values())}
    wanted = {
        reasons
        for reasons, of in instruments.items()
        if which in ("", of) and (not kind or any(reason.type == kind for reason in reasons))
    }
    rows = [
        {"dataset": one, "instrument": instruments[reasons], "reasons": reasons}
        for one, reasons in found.datasets.items()
        if reasons in wanted
    ]
    rows.sort(key=lambda row: str(row["dataset"]))
    return {
        "rows": rows,
        "instruments": found.instruments,
        "skipped": found.skipped,
        "failed": len(found.failed),
        "total": len(found.datasets),
        "products": len(products(found.datasets)),
    }


def _instrument_of(files: Mapping[str, Row], reasons: Sequence[Sequence[str]], kinds: Mapping[str, set[str]]) -> str:
    """Return the instrument of a dataset: that of its reasons."""
    possible: set[str] = set()
    for kind, *chosen in reasons:
        one = kinds.get(kind, set())
        possible = possible & one or one
        if len(possible) == 1:
            break
        for file in chosen:
            if known := str(files.get(file.lower(), {}).get("instrument", "")):
                return known
    return next(iter(sorted(possible)), "")
