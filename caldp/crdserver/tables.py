"""Contexts and their rules, as tables for people; long tables page by page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from caldp.crdserver.site import Site
from caldp.crdserver.state import Row, State
from caldp.crdserver.stock import Stock
from caldp.errors import InputError, ReferencesError

T = TypeVar("T")

#: Rows of a page.
ROWS = 50


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
    name = named(site, name, ".pmap")
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
    return {"name": name, "instruments": found, "row": files.get(name, {}), "bad": bad, "bad_references": chosen}


def instrument(site: Site, name: str, which: str) -> dict[str, Any]:
    """Return the types of an instrument in a context: ``type``, ``rmap``, ``keys`` and number of ``references``."""
    name = named(site, name, ".pmap")
    imap = _imap(site, name, which)
    found = []
    for kind, rmap in site.mappings.selected(imap):
        keys = keys_of(site.mappings.header(rmap))
        references = {one for _, one in site.mappings.selected(rmap)}
        found.append({"type": kind.lower(), "rmap": rmap, "keys": keys, "references": len(references)})
    return {"name": name, "instrument": which, "imap": imap, "types": found}


def _imap(site: Site, name: str, which: str) -> str:
    site.mappings.closure(name)
    for instrument, imap in site.mappings.selected(name):
        if instrument.lower() == which:
            return imap
    raise InputError(f"{name} has no instrument {which[:40]!r}", remedy="choose one of its table")


def keys_of(header: Mapping[str, Any]) -> list[str]:
    """Return the keywords by which an rmap selects, in its order."""
    return [str(key) for level in header.get("parkey", ()) for key in ([level] if isinstance(level, str) else level)]


def rules(site: Site, name: str, which: str, kind: str, number: int) -> dict[str, Any]:
    """Return the rules of one type as a table: ``parameters``, and a ``page`` of rows that end with a file."""
    name = named(site, name, ".pmap")
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


def named(site: Site, name: str, ending: str = "map") -> str:
    """Return the mapping that a name means, if its content is here.

    Parameters
    ----------
    site : Site
        Where.
    name : str
        A mapping, or what a context is called: see ``Site.context``.
    ending : str
        What it must end with: ``.pmap`` for contexts.

    Returns
    -------
    str

    Raises
    ------
    InputError
        If it means none, one of another sort, or one that is known only by name.
    """
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
    name = named(site, name)
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
    return naming_any(site, candidates(state, above, row), {name})


def candidates(state: State, ending: str, row: Row) -> list[str]:
    """Return the mappings of an ending, whose content is here, that may name a file of such a row."""
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


def naming_any(site: Site, candidates: Sequence[str], names: set[str]) -> list[str]:
    """Return those of some mappings that name one of some files; newest first."""

    def names_one(mapping: str) -> bool:
        try:
            return any(one in names for _, one in site.mappings.selected(mapping))
        except ReferencesError:  # it is known, but its content was never brought here
            return False

    with ThreadPoolExecutor(8) as pool:
        there = list(pool.map(names_one, candidates))
    return sorted((name for name, so in zip(candidates, there, strict=True) if so), reverse=True)
