"""What two contexts differ in, by the rule by which the CRDS client looks for affected datasets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from caldp.crdserver import exposed
from caldp.crdserver.stock import Stock
from caldp.errors import ReferencesError

#: Since when datasets are looked at if rules were changed otherwise than by adding references.
ALWAYS = "1900-01-01 00:00:00"

_NEVER = "9999-01-01 23:59:59"


@dataclass(frozen=True)
class Difference:
    """What two contexts differ in.

    Attributes
    ----------
    types : mapping
        {instrument: its types whose rules differ}, in lower case and sorted.
    since : mapping
        {instrument: the earliest exposure that a reference which came or went can be for}; for an instrument that is
        not there, all are looked at.
    """

    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    since: Mapping[str, str] = field(default_factory=dict)


def find(stock: Stock, old: str, new: str) -> Difference:
    """Return what two contexts differ in.

    Parameters
    ----------
    stock : Stock
        What loads them.
    old, new : str
        For example ``hst_0728.pmap``.

    Returns
    -------
    Difference

    Raises
    ------
    ReferencesError
        If one cannot be loaded, or they cannot be compared.
    """
    from crds import diff
    from crds.core.exceptions import CrdsError

    before, after = stock.mapping(old), stock.mapping(new)
    differ = diff.MappingDifferencer(stock.observatory, old, new, include_header_diffs=True, hide_boring_diffs=True)
    try:
        with stock.reading():  # it looks up rules that came or went
            found = diff.remove_boring(before.difference(after, include_header_diffs=True))
            differ.mapping_diffs = lambda: found  # else it loads both contexts again, three times
            types = {name.lower(): tuple(sorted(kinds)) for name, kinds in sorted(differ.get_affected().items())}
            if not types:
                return Difference()
            if differ.header_modified() or differ.files_deleted():
                return Difference(types, dict.fromkeys(types, ALWAYS))
            since = {name.lower(): _since(before, after, name) for name in before.selections}
    except (CrdsError, OSError, LookupError, ValueError) as error:
        raise ReferencesError(
            f"{old} and {new} cannot be compared ({' '.join(str(error).split())[:200]})", remedy="check the contexts"
        ) from error
    return Difference(types, {name: since[name] for name in types if since.get(name, _NEVER) != _NEVER})


def _since(before: Any, after: Any, instrument: str) -> str:  # noqa: ANN401 - crds has no types
    """Return the earliest exposure that a reference which came or went can be for."""
    old, new = before.get_imap(instrument), after.get_imap(instrument)
    had, has = set(old.reference_names()), set(new.reference_names())
    return min(_earliest(new, has - had), _earliest(old, had - has))


def _earliest(imap: Any, references: Collection[str]) -> str:  # noqa: ANN401 - crds has no types
    found = _NEVER
    if references:
        for rmap in imap.selections.normal_values():
            found = min(found, _earliest_of(rmap.selector, references, {}, _NEVER))
    return found


def _earliest_of(selector: Any, references: Collection[str], path: Mapping[str, str], found: str) -> str:  # noqa: ANN401
    from crds.core.selectors import Selector

    for key, choice in selector._raw_selections:
        if isinstance(choice, Selector):
            found = _earliest_of(choice, references, {**path, **dict(selector.match_item(key))}, found)
        elif choice in references:
            found = min(found, exposed.exposed({**path, **dict(selector.match_item(key))}))
    return found
