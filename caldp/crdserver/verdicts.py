"""What two choices of crds come to, by the rule of ``crds bestrefs --affected-datasets``.

A reference that is chosen anew, or no longer, counts, N/A and failures of the old context included.  A dataset for
which the new context fails in one of the types is not named, though others of its types change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_UNDEFINED = "UNDEFINED"


class Reason(NamedTuple):
    """Why a dataset is affected: a type in lower case, and what was chosen and is, as the client prints them."""

    type: str
    old: str
    new: str


class Failure(NamedTuple):
    """That crds found no reference of a type, in the ``old`` or the ``new`` context, and what it said."""

    type: str
    context: str
    text: str


class _Said(NamedTuple):
    """What the client makes of what crds chose."""

    text: str
    is_fine: bool
    complaint: str


def _said(chosen: str | None) -> _Said:
    """Return what the client compares, as ``--affected-datasets`` lets it look at what is undefined or N/A."""
    name = _UNDEFINED if chosen is None else chosen
    if not isinstance(name, str):  # rules of synphot can match several files at once, at which the client fails
        return _Said(str(name).upper(), False, f"Failed processing: {name!r}")
    name = (name.split("$")[-1] if "ref$" in name else name.removeprefix("crds://")).strip()
    text = name.upper()
    if text.startswith("NOT FOUND N/A"):
        return _Said("N/A", True, "")
    if text in ("NOT FOUND NO MATCH FOUND.", _UNDEFINED, "NONE", "", "*"):
        return _Said(text, False, f"No match found: {name!r}")
    if text.startswith("NOT FOUND"):
        return _Said(text, False, f"Bestref FAILED: {name[len('NOT FOUND') :]}")
    return _Said(text, True, "")


class Verdict(NamedTuple):
    """What the choices of both contexts for a type come to."""

    reason: Reason | None = None
    failures: tuple[Failure, ...] = ()
    is_fatal: bool = False


NOTHING = Verdict()


def compare(kind: str, old: str | None, new: str | None) -> Verdict:
    """Compare what two contexts chose."""
    if old is None and new is None:  # left out of both
        return NOTHING
    before, after = _said(old), _said(new)
    failures = tuple(
        Failure(kind, context, said.complaint)
        for context, said in (("old", before), ("new", after))
        if not said.is_fine
    )
    is_update = after.is_fine and after.text != before.text
    reason = Reason(kind, before.text.lower(), after.text.lower()) if is_update else None
    is_fatal = not after.is_fine or not isinstance(old, str | None)
    return Verdict(reason, failures, is_fatal) if reason or failures else NOTHING


def summed(verdicts: Iterable[Verdict]) -> tuple[tuple[Reason, ...], tuple[Failure, ...], bool]:
    reasons: list[Reason] = []
    failures: list[Failure] = []
    is_fatal = False
    for verdict in verdicts:
        if verdict.reason:
            reasons.append(verdict.reason)
        failures += verdict.failures
        is_fatal |= verdict.is_fatal
    return tuple(reasons), tuple(failures), is_fatal
