"""What pages show of a CRDS, as plain data: questions to a site, none of which changes anything."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from caldp.crdserver import archive, catalog, reprocessing
from caldp.crdserver.journal import Event
from caldp.crdserver.site import Site
from caldp.crdserver.state import AVAILABLE, OVER, Row, State, serial
from caldp.crdserver.stock import Stock
from caldp.errors import CaldpError, InputError, ReferencesError

T = TypeVar("T")

#: Rows of a page.
ROWS = 50

#: Events that one page of the log looks through.
_SCANNED = 5000

#: Lines of a text difference that are shown.
_LINES = 3000

#: Datasets whose best references one page shows.
_DATASETS = 20

#: Seconds after which the archive should have taken a delivery.
_LATE = 24 * 3600.0

#: Bytes of a reference that is compared with another while somebody waits.
_COMPARED = 50_000_000

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

#: A line of a header: what FITS calls a card, or what people type.
_CARD = re.compile(r"\s*([A-Za-z0-9_.\-]{1,80})\s*=\s*(?:'((?:[^']|'')*)'|\"([^\"]*)\"|([^/]*))")


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows of many.

    Attributes
    ----------
    rows : sequence
        Of this page.
    number, pages : int
        Which page, from 1, of how many.
    total : int
        Rows of all pages.
    first : int
        Number of the first row of this page, from 1; 0 if there are none.
    """

    rows: Sequence[T]
    number: int
    pages: int
    total: int
    first: int

    @property
    def last(self) -> int:
        """Number of the last row of this page."""
        return max(self.first - 1, 0) + len(self.rows)


def paged(rows: Sequence[T], number: int = 1, size: int = ROWS) -> Page[T]:
    """Return one page of rows; the last one if there are fewer pages.

    Parameters
    ----------
    rows : sequence
        All rows.
    number : int
        Of the page, from 1.
    size : int
        Rows of a page.

    Returns
    -------
    Page
    """
    pages = max(1, -(-len(rows) // size))
    number = min(max(1, number), pages)
    some = rows[(number - 1) * size : number * size]
    return Page(some, number, pages, len(rows), (number - 1) * size + 1 if some else 0)


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


# ---- contexts and their rules


def contexts(site: Site, number: int) -> Page[dict[str, Any]]:
    """Return contexts, newest first: ``name``, ``row``, and since when each was the default one."""
    state = site.state
    since: dict[str, str] = {}
    for when, name, _ in sorted(state.history):
        since.setdefault(name, when)
    known = {n: state.files[n].get("description") or _why(state, n) for n in state.contexts}
    rows = [{"name": n, "row": state.files[n], "since": since.get(n, ""), "why": known[n]} for n in known]
    return paged(rows[::-1], number)


def _why(state: State, context: str) -> str:
    return next((why for _, name, why in state.history if name == context), "")


def context(site: Site, name: str) -> dict[str, Any]:
    """Return the instruments of a context: ``instrument``, ``imap``, and how many types and references it has."""
    name = _named(site, name, ".pmap")
    found = []
    site.mappings.closure(name)
    for instrument, imap in site.mappings.selected(name):
        rmaps = [rmap for _, rmap in site.mappings.selected(imap)]
        references = {one for rmap in rmaps for _, one in site.mappings.selected(rmap)}
        found.append(
            {"instrument": instrument.lower(), "imap": imap, "types": len(rmaps), "references": len(references)}
        )
    files = site.state.files
    # A bad mapping spoils the context, a bad reference only what it is chosen for.
    bad = [one for one in site.mappings.closure(name) if files.get(one, {}).get("bad")]
    chosen = [one for one in site.mappings.references(name) if files.get(one, {}).get("bad")]
    return {"name": name, "instruments": found, "row": site.row(name), "bad": bad, "bad_references": chosen}


def instrument(site: Site, name: str, which: str) -> dict[str, Any]:
    """Return the types of an instrument in a context: ``type``, ``rmap``, ``keys`` and number of ``references``."""
    name = _named(site, name, ".pmap")
    imap = _imap(site, name, which)
    found = []
    for kind, rmap in site.mappings.selected(imap):
        keys = _keys(site.mappings.header(rmap))
        references = {one for _, one in site.mappings.selected(rmap)}
        found.append({"type": kind.lower(), "rmap": rmap, "keys": keys, "references": len(references)})
    return {"name": name, "instrument": which, "imap": imap, "types": found}


def _imap(site: Site, name: str, which: str) -> str:
    site.mappings.closure(name)
    for instrument, imap in site.mappings.selected(name):
        if instrument.lower() == which:
            return imap
    raise InputError(f"{name} has no instrument {which[:40]!r}", remedy="choose one of its table")


def _keys(header: Mapping[str, Any]) -> list[str]:
    """Return the keywords by which an rmap selects, in its order."""
    return [str(key) for level in header.get("parkey", ()) for key in ([level] if isinstance(level, str) else level)]


def rules(site: Site, name: str, which: str, kind: str, number: int) -> dict[str, Any]:
    """Return the rules of one type as a table: ``parameters``, and a ``page`` of rows that end with a file."""
    name = _named(site, name, ".pmap")
    imap = _imap(site, name, which)
    rmap = next((one for key, one in site.mappings.selected(imap) if key.lower() == kind), "")
    if not rmap:
        raise InputError(f"{imap} has no type {kind[:40]!r}", remedy="choose one of its table")
    parameters, rows = _table(site, rmap)
    page = paged(rows, number, 100)
    return {"name": name, "instrument": which, "type": kind, "rmap": rmap, "parameters": parameters, "page": page}


def _table(site: Site, rmap: str) -> tuple[list[str], list[list[str]]]:
    """Return the rules of an rmap as crds lays them out: names of columns, and rows."""
    flat = loaded(site, rmap).selector.todict_flat()
    parameters = [_said(one) for one in flat["parameters"]]
    rows = [[_said(value) for value in row] for row in flat["selections"]]
    width = max([len(parameters), *map(len, rows)])
    # Where whole branches are N/A a row is shorter: its last value is what is selected.
    return parameters, [[*row[:-1], *[""] * (width - len(row)), *row[-1:]] for row in rows]


def _said(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def loaded(site: Site, name: str) -> Any:  # noqa: ANN401 - crds has no types
    """Return a mapping as crds has it; only contexts are kept, as others would drive them out."""
    if name.endswith(".pmap"):
        return site.stock.mapping(name)
    return Stock(site.cache, site.observatory, site.mappings.closure).mapping(name)


def _named(site: Site, name: str, ending: str = "map") -> str:
    state = site.state
    found = site.context(name, state)
    if not found.endswith(ending):
        sort = "mapping" if ending == "map" else "context"
        raise InputError(f"{found} is no {sort}", remedy=f"choose one like {state.latest or 'those of the catalogue'}")
    if state.files.get(found, {}).get("absent"):
        raise InputError(f"{found} is known, but its content is not here", remedy="choose a newer one")
    return found


def mapping(site: Site, name: str) -> dict[str, Any]:
    """Return one mapping: ``header``, ``lines`` of its text, ``names`` in it, and ``named_by``."""
    state = site.state
    name = _named(site, name)
    header = site.mappings.header(name)
    lines = site.mappings.path(name).read_text(encoding="utf-8").splitlines()
    return {
        "name": name,
        "row": state.files.get(name),
        "header": {key: _said(value) for key, value in header.items()},
        "lines": lines,
        "names": list(dict.fromkeys(one for _, one in site.mappings.selected(name))),
        "named_by": naming(site, state, name),
        "followed_by": sorted(n for n, row in state.files.items() if row.get("derived_from") == name),
    }


def naming(site: Site, state: State, name: str) -> list[str]:
    """Return the mappings, of those whose content is here, that name a file; newest first.

    Parameters
    ----------
    site, state : Site, State
        Where.
    name : str
        A reference, or a mapping.

    Returns
    -------
    list of str
    """
    above = {"pmap": "", "imap": ".pmap", "rmap": ".imap"}.get(name.rpartition(".")[2], ".rmap")
    row = state.files.get(name, {})
    return _naming(site, _candidates(state, above, row), {name})


def _candidates(state: State, ending: str, row: Row) -> list[str]:
    if not ending:
        return []
    wanted = {"instrument": row.get("instrument"), "filekind": row.get("filekind") if ending == ".rmap" else ""}
    return [
        name
        for name, one in state.files.items()
        if name.endswith(ending)
        and one["type"] == "mapping"
        and not one.get("absent")
        and (ending == ".pmap" or all(not value or one.get(key) == value for key, value in wanted.items()))
    ]


def _naming(site: Site, candidates: Sequence[str], names: set[str]) -> list[str]:
    def names_one(mapping: str) -> bool:
        try:
            return any(one in names for _, one in site.mappings.selected(mapping))
        except ReferencesError:  # it is known, but its content was never brought here
            return False

    with ThreadPoolExecutor(8) as pool:
        there = list(pool.map(names_one, candidates))
    return sorted((name for name, so in zip(candidates, there, strict=True) if so), reverse=True)


# ---- differences


@lru_cache(maxsize=8)
def differences(site: Site, old: str, new: str) -> dict[str, Any]:
    """Say how two contexts, or two mappings of one sort, differ; neither ever changes.

    Parameters
    ----------
    site : Site
        Where they are.
    old, new : str
        Names of mappings.

    Returns
    -------
    dict
        ``kinds``: per type the old and the new rmap, files ``added`` and ``removed``; ``mappings``: pairs of mappings
        that differ; ``logical``: lines as ``crds diff`` writes them; ``text``: lines of a unified difference of the
        two, and whether it was ``cut``.
    """
    from crds import diff

    if old.rpartition(".")[2] != new.rpartition(".")[2]:
        raise InputError(f"{old} and {new} are not of one sort", remedy="choose two contexts, or two rmaps")
    before, after = _rmaps(site, old), _rmaps(site, new)
    kinds, pairs = [], []
    for key in sorted({*before, *after}):
        one, other = before.get(key, ""), after.get(key, "")
        if one == other:
            continue
        had, has = ({file for _, file in site.mappings.selected(rmap)} if rmap else set() for rmap in (one, other))
        kinds.append(
            {"instrument": key[0], "type": key[1], "old": one, "new": other}
            | {"added": sorted(has - had), "removed": sorted(had - has)}
        )
        pairs.append((one, other))
    said = sorted(loaded(site, old).difference(loaded(site, new)))
    text = list(difflib.unified_diff(_lines(site, old), _lines(site, new), old, new, lineterm=""))
    return {
        "kinds": kinds,
        "mappings": [(one, other) for one, other in pairs if one and other and (one, other) != (old, new)],
        "logical": [str(diff.unquote_diff(one)) for one in said],
        "text": text[:_LINES],
        "cut": len(text) > _LINES,
    }


def _rmaps(site: Site, name: str) -> dict[tuple[str, str], str]:
    """Return {(instrument, type): rmap} of a mapping and all that it names."""
    rmaps = [one for one in site.mappings.closure(name) if one.endswith(".rmap")]
    headers = [(site.mappings.header(one), one) for one in rmaps]
    return {(str(header["instrument"]).lower(), str(header["filekind"]).lower()): one for header, one in headers}


def _lines(site: Site, name: str) -> list[str]:
    return site.mappings.path(name).read_text(encoding="utf-8").splitlines()


#: What is sent and not yet submitted is called so where files are compared.
UPLOADED = "uploaded:"


def file_differences(site: Site, user: str, old: str, new: str) -> list[str]:
    """Say how two references differ, in the words of ``crds diff``.

    Parameters
    ----------
    site : Site
        Where they are.
    user : str
        Whose uploads may be meant, as ``uploaded:<name>``; empty for nobody's.
    old, new : str
        Names of references.

    Returns
    -------
    list of str
        Lines; empty if they are the same.

    Raises
    ------
    InputError
        If there is none of them, it is too large, or they cannot be compared.
    """
    import tempfile
    import warnings

    place = site.settings.work / "compared"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        paths = [Path(folder) / f"{number}-{name.removeprefix(UPLOADED)}" for number, name in enumerate((old, new))]
        for name, path in zip((old, new), paths, strict=True):
            _bring(site, user, name, path)
        if paths[0].read_bytes() == paths[1].read_bytes():
            return []
        if not all(path.suffix == ".fits" for path in paths):
            before, after = (path.read_text(encoding="utf-8", errors="replace").splitlines() for path in paths)
            return list(difflib.unified_diff(before, after, old, new, lineterm=""))[:_LINES]
        from astropy.io import fits
        from crds import rowdiff

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                said = str(fits.FITSDiff(str(paths[0]), str(paths[1])).report())
                said += f"\n{rowdiff.RowDiff(str(paths[0]), str(paths[1]))}"
            except Exception as error:
                raise InputError(f"{old} or {new} cannot be read as FITS", remedy="look at the files") from error
        return said.replace(f"{folder}/0-", "").replace(f"{folder}/1-", "").splitlines()[:_LINES]


def _bring(site: Site, user: str, name: str, path: Path) -> None:
    """Copy a reference, or what a user has sent, to a file."""
    from caldp.crdserver import uploads
    from caldp.crdserver.mappings import reference_key
    from caldp.store import Copy

    if name.startswith(UPLOADED):
        bare = uploads.checked_name(name.removeprefix(UPLOADED))
        sent = {one.name: one for one in uploads.Uploads(site, user).files()} if user else {}
        if bare not in sent or not sent[bare].whole:
            raise InputError(f"you have sent no file {bare}", remedy="send it, or sign in")
        size = sent[bare].size
    else:
        row = site.row(name)
        if row["type"] != "reference" or row["state"] not in AVAILABLE or row.get("absent"):
            raise InputError(f"the content of {name} cannot be had here", remedy="choose another reference")
        size = row["size"]
    if size > _COMPARED:
        raise InputError(f"{name} has {size} bytes", remedy="compare it with crds diff")
    if name.startswith(UPLOADED):
        uploads.assemble(site, sent[bare].parts, path)
    else:
        site.store.download([Copy(reference_key(site.observatory, name), path)])


def steps_between(state: State, old: str, new: str) -> int:
    """Return how many contexts lie between two, the new one included, as far as derivation tells; 0 if it does not."""
    steps, name, seen = 0, new, {new}
    while name and name != old:
        steps, name = steps + 1, str(state.files.get(name, {}).get("derived_from", ""))
        if name in seen:
            return 0
        seen.add(name)
    return steps if name == old else 0


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
        imaps = _naming(site, _candidates(state, ".imap", row), set(named_by))
        found["contexts"] = sorted(_naming(site, _candidates(state, ".pmap", row), set(imaps)), key=serial)
        found["rmap"] = _rmap_in_use(site, state, named_by)
        found["matches"] = matches(site, found["rmap"], name)
    elif row["type"] == "mapping":
        found["contexts"] = _contexts_of(site, state, name, row, named_by)
    return found


def _contexts_of(site: Site, state: State, name: str, row: Row, named_by: Sequence[str]) -> list[str]:
    if name.endswith(".pmap"):
        return []
    pmaps = named_by if name.endswith(".imap") else _naming(site, _candidates(state, ".pmap", row), set(named_by))
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


# ---- best references


def header_of(text: str) -> dict[str, str]:
    """Read ``KEYWORD = value`` lines, as people type them or as FITS has them.

    Parameters
    ----------
    text : str
        Lines; what is behind a slash is a comment, as are lines that begin with ``#``.

    Returns
    -------
    dict
        {keyword in capitals: text}.

    Raises
    ------
    InputError
        If it has no such line.
    """
    found = {}
    for line in text.splitlines():
        match = None if line.lstrip().startswith("#") else _CARD.match(line)
        if match:
            quoted = match[2] if match[2] is not None else match[3]
            found[match[1].upper()] = (match[4] or "").strip() if quoted is None else quoted.replace("''", "'").strip()
    if not found:
        raise InputError("this is no header", remedy="write lines such as INSTRUME = COS")
    return found


def fits_header(site: Site, data: bytes) -> dict[str, str]:
    """Return the header of a FITS file, as crds reads it of a dataset.

    Parameters
    ----------
    site : Site
        Whose keywords are wanted.
    data : bytes
        The file.

    Returns
    -------
    dict
        {keyword: text}.

    Raises
    ------
    InputError
        If it is no FITS file, or damaged.
    """
    import tempfile
    import warnings

    if not data.startswith(b"SIMPLE  ="):
        raise InputError("this is no FITS file", remedy="unpack it, or paste its header")
    from crds import data_file

    place = site.settings.work / "headers"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "sent.fits"
        path.write_bytes(data)
        try:
            header = data_file.get_unconditioned_header(str(path), observatory=site.observatory)
        except Exception as error:
            raise InputError(
                "this FITS file cannot be read", remedy="look whether it is whole, or paste its header"
            ) from error
    return {str(key): str(value) for key, value in header.items()}


def best(site: Site, name: str, header: Mapping[str, str]) -> dict[str, Any]:
    """Choose references, with the code that stock clients ask.

    Parameters
    ----------
    site : Site
        Where.
    name : str
        A context, or what one is called.
    header : mapping
        {keyword: value} of a dataset.

    Returns
    -------
    dict
        ``context``, and ``rows``: ``type``, ``file`` or ``why`` there is none, ``rmap``, and the ``keys`` by which it
        was chosen with their values.
    """
    from crds.core import utils

    context = _named(site, name, ".pmap")
    chosen = site.stock.best_references(context, header)
    pmap = site.stock.mapping(context)
    conditioned = utils.condition_header(dict(header))
    imap = pmap.get_imap(pmap.get_instrument(conditioned))
    minimal = pmap.minimize_header(conditioned)
    rows = []
    for kind, file in sorted(chosen.items()):
        why = file.removeprefix("NOT FOUND").strip() if file.startswith("NOT FOUND") else ""
        rmap = imap.selections.get(kind)
        keys = {key: minimal.get(key, "UNDEFINED") for key in _keys(getattr(rmap, "header", {}))}
        rows.append(
            {"type": kind, "file": "" if why else file, "why": why, "keys": keys}
            | {"rmap": getattr(rmap, "basename", ""), "known": file in site.state.files}
        )
    return {"context": context, "rows": rows, "header": dict(sorted(minimal.items()))}


def best_of_dataset(site: Site, name: str, dataset: str) -> list[dict[str, Any]]:
    """Choose references for a dataset, and for each exposure of a product: ``dataset``, and what ``best`` returns."""
    found = []
    for one, header in list(site.datasets.headers([dataset]).items())[:_DATASETS]:
        if isinstance(header, str):
            raise InputError(header, remedy="look for it, or give its header")
        found.append({"dataset": one, **best(site, name, header)})
    if not found:
        raise InputError(f"there is no dataset {dataset[:60]!r}", remedy="give its header")
    return found


def keywords(site: Site, name: str, which: str) -> str:
    """Return empty ``KEYWORD =`` lines of all that the rules of an instrument ask for, to be filled in."""
    imap = site.stock.mapping(_named(site, name, ".pmap")).get_imap(which)
    first = "INSTRUME" if site.observatory == "hst" else "META.INSTRUMENT.NAME"
    wanted = [first, *(key for key in imap.get_required_parkeys() if key not in (first, "REFTYPE"))]
    return "\n".join(f"{key} = {which.upper() if key == first else ''}" for key in wanted)


# ---- submissions and deliveries


def listed_submissions(state: State, now_in: str = "") -> list[dict[str, Any]]:
    """Return submissions, newest first, with their ``id``: those in a state, or all."""
    found = [{"id": one, **known} for one, known in state.submissions.items() if now_in in ("", known["state"])]
    return sorted(found, key=lambda one: str(one["at"]), reverse=True)


def messages(site: Site, channel: str) -> list[dict[str, Any]]:
    """Return what a job has said so far: ``type`` and ``text``; the last ones if there are many."""
    from caldp.crdserver.channels import Channels

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


def review(site: Site, one: str) -> dict[str, Any]:
    """Return what the person who confirms a submission must know beside its result.

    Parameters
    ----------
    site : Site
        Where.
    one : str
        The submission.

    Returns
    -------
    dict
        ``lines``: {``errors``, ``warnings``, ``others``: list of str}; ``moved``: the context to derive from, if that
        is not the one that this submission was derived from; ``floats``: whether its context is then made anew.
    """
    from caldp.crdserver import submissions

    state = site.state
    known = state.submissions[one]
    lines: dict[str, list[str]] = {"errors": [], "warnings": [], "others": []}
    sorts = {"ERROR": "errors", "WARNING": "warnings"}
    for line in submissions.result(site, one).get("lines", ()):
        kind, _, text = line.partition(" ")
        lines[sorts.get(kind, "others")].append(text if kind in sorts else line)
    waits = known["state"] not in OVER and known["kind"] != "certify"
    moved = state.edit if waits and known.get("context") != state.edit else ""
    return {
        "lines": lines,
        "moved": moved,
        "floats": known.get("floats", True),
    }


def classified(text: str | Iterable[str]) -> list[tuple[str, str]]:
    """Return (class, line) of a unified difference: ``add``, ``del``, ``hunk``, ``file`` or empty."""
    found = []
    for line in text.splitlines() if isinstance(text, str) else text:
        sort = {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "")
        found.append(("file" if line.startswith(("+++ ", "--- ")) else sort, line))
    return found


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


def manifest(site: Site, one: str) -> str:
    """Return where the archive is told of a submission."""
    return f"{archive.folder(site)}/{one}.cat"


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
    from caldp.crdserver.campaigns import products

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
