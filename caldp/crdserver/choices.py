"""What a rule of crds chooses for one set of parameters, for all dates at once.

A rule picks candidates by parameters, best first, each a list of references by the date from which on to use them; the
first candidate counts that has one for the date of the exposure.  Here crds itself picks the candidates, once for all
datasets that agree in the parameters, and what it would say for any date is written down as steps.  A rule that reads
the date in another way, as far as is known here, is asked for each date.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caldp.crdserver import exposed

#: Keywords of the date that steps can be made of; rules of JWST name others.
DATE = ("DATE-OBS", "TIME-OBS")

#: What the client's check of data that are not to be reprocessed reads, beside what rules say that they read.
_ALWAYS = ("DETECTOR", "CCDGAIN")

#: Functions of crds that change a header before a rule sees it, and the dates at which what they do changes.
_HOOKS: Mapping[str, tuple[str, ...]] = {
    "precondition_header_acs_biasfile_v1": ("SM4",),
    "precondition_header_acs_biasfile_v2": ("SM4",),
    "fallback_header_acs_biasfile_v2": ("SM4",),
    "precondition_header_acs_biasfile_v3": ("PRE_SM4_SUBARRAY", "SM4"),
    "fallback_header_acs_biasfile_v3": ("PRE_SM4_SUBARRAY", "SM4"),
    "precondition_header_wfc3_biasfile_v1": (),
    "fallback_header_wfpc2_flatfile_v1": (),
}

#: The modules that hold them, as they were when that was read out of them (crds 14.0.3).  In another version the rules
#: that use them are asked for each date, which is as exact, but slow, until somebody has read them again.
_READ = {
    "crds.hst.acs_common": "d2d57aa4334d2ac5d7619562ecbe05a5521394fd782f0e971eaade03fc4e679a",
    "crds.hst.acs_v1": "c223cc0be1a9455758901ec209e1122e4a7b94ed06e719662dca1116c18b55c8",
    "crds.hst.acs_v2": "6e43f1289a9ace49fa841ee284295fd8059549a2a76adbdda2910c8c51231aba",
    "crds.hst.acs_v3": "b841cea7dcbf3ae5fbef2b766d8948d798b2267032d1046919591ac91e6577f1",
    "crds.hst.wfc3": "360be083a2f82492d2b04635fd9a2a7850467b3f2408e96fedca687f71909eab",
    "crds.hst.wfpc2": "e6ac30b6de7961797e23bab3a5b5afb58bc3746104a717f7e2b960d01d939474",
}

_QUIET = threading.Lock()
_quiet_now: list[int] = []


class Steps(NamedTuple):
    """What is chosen at any date.

    Attributes
    ----------
    at : tuple of int
        Dates, in microseconds and in order.
    results : tuple of str or None
        What is chosen before the first of them, and from each of them on: one more.  ``NOT FOUND ...`` is for nothing,
        None for a type that is to be left out.
    """

    at: tuple[int, ...]
    results: tuple[str | None, ...]


@contextmanager
def quiet() -> Iterator[None]:
    """Let crds not say anything of single headers, of which there are millions; errors are in what it returns."""
    from crds.core import log

    with _QUIET:
        _quiet_now.append(log.set_verbose(-3))
    try:
        yield
    finally:
        with _QUIET:
            before = _quiet_now.pop()
            if not _quiet_now:
                log.set_verbose(before)


class Rule:
    """One type of one context.

    Parameters
    ----------
    imap : crds.core.rmap.InstrumentContext
        The rules of the instrument.
    kind : str
        The type in lower case, for example ``darkfile``.
    keywords : collection of str
        What crds leaves of a header before it asks the rules of the instrument: no rule sees more.

    Attributes
    ----------
    name : str
        The mapping, or what the instrument says instead of one; empty if it does not know the type.
    keys : frozenset of str
        The keywords that the choice depends on, but for ``DATE``.
    by_date : bool
        Whether there are steps; else each date must be asked for.
    """

    def __init__(self, imap: Any, kind: str, keywords: Iterable[str]) -> None:  # noqa: ANN401 - crds has no types
        self._imap = imap
        self._kind = kind
        self._keywords = frozenset(keywords)
        self._arrays: dict[int, tuple[Any, list[int], list[str | None]]] = {}
        self._made: dict[tuple[Any, ...], Steps] = {}
        self.by_date = True
        self.keys: frozenset[str] = frozenset()
        self._rmap: Any = None
        self._bounds: tuple[int, ...] = ()
        try:
            rmap = imap.get_rmap(kind)
        except Exception:  # noqa: BLE001 - the instrument does not have the type, or says N/A: whatever, it is constant
            self.name = str(imap.selections[kind]) if kind in imap.selections else ""
            return
        self.name = str(rmap.basename)
        self._rmap = rmap
        found = _thresholds(rmap)
        self.by_date = found is not None and _is_plain(rmap.selector)
        named = _named(rmap)
        if self.by_date and found is not None and not named & {_evalable(key) for key in DATE}:
            self._bounds = tuple(sorted({exposed.threshold(date) for date in found}))
            self._recorder = _Recorder(rmap.selector)
            self._recording = _copy(rmap, self._recorder)
            read = set(rmap.get_required_parkeys()) | set(_ALWAYS) | _read_by_hooks(rmap)
            self.keys = frozenset(
                key for key in self._keywords if key in read or key in named or _evalable(key) in named
            ).difference(DATE)
        else:
            self.by_date = False
            self.keys = self._keywords.difference(DATE)

    def result(self, header: Mapping[str, str]) -> str | None:
        """Return what crds chooses.

        Parameters
        ----------
        header : mapping
            {keyword: conditioned value} of ``keys`` and ``DATE``, ``UNDEFINED`` where it has none.

        Returns
        -------
        str or None
            A reference, or ``NOT FOUND ...``, or None for a type that is left out.
        """
        found = self._imap.get_best_references(dict(header), include=[self._kind])
        chosen: str | None = found.get(self._kind)
        return chosen

    def steps(self, header: Mapping[str, str]) -> Steps:
        """Return what crds chooses for every date; see ``result``.

        The date in the header does not matter, but must be there.  For the same choices the same object is returned.
        """
        if self._rmap is None:
            return self._remembered(((), self.result(header)), lambda: Steps((), (self.result(header),)))
        pieces = []
        known = dict(header)
        for number in range(len(self._bounds) + 1):
            if self._bounds:
                instant = self._bounds[number - 1] if number else self._bounds[0] - 1
                known[DATE[0]], known[DATE[1]] = exposed.text(instant).split(" ")
            self._recorder.candidates = []
            outcome = self._recording.get_best_ref(known)
            pieces.append((self._recorder.candidates, outcome))
        key = tuple((tuple(map(id, candidates)), outcome) for candidates, outcome in pieces)
        return self._remembered(key, lambda: self._joined(pieces))

    def _remembered(self, key: tuple[Any, ...], make: Any) -> Steps:  # noqa: ANN401 - a function
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        return found

    def _joined(self, pieces: Sequence[tuple[list[Any], str | None]]) -> Steps:
        """Put the steps between the dates at which a hook changes one after the other."""
        at: list[int] = []
        results: list[str | None] = []
        for number, (candidates, outcome) in enumerate(pieces):
            ends, chosen = self._unbounded(candidates, outcome)
            low = bisect_left(ends, self._bounds[number - 1] + 1) if number else 0
            high = bisect_left(ends, self._bounds[number]) if number < len(self._bounds) else len(ends)
            if number:
                at.append(self._bounds[number - 1])
            results.append(chosen[low])
            at += ends[low:high]
            results += chosen[low + 1 : high + 1]
        return Steps(tuple(at), tuple(results))

    def _unbounded(self, candidates: Sequence[Any], outcome: str | None) -> tuple[list[int], list[str | None]]:
        at: list[int] = []
        results: list[str | None] = []
        for candidate in candidates:
            dates, chosen = self._array(candidate)
            count = bisect_left(dates, at[0]) if at else len(dates)
            # A candidate counts before the first date of all that are better.
            at, results = dates[:count] + at, chosen[:count] + results
        return at, [outcome, *results]

    def _array(self, candidate: Any) -> tuple[list[int], list[str | None]]:  # noqa: ANN401 - crds has no types
        found = self._arrays.get(id(candidate))
        if found is None:  # it is kept as well, so that no other gets its id
            dates = [exposed.threshold(selection.key) for selection in candidate._selections]
            chosen = [_settled(selection.choice) for selection in candidate._selections]
            found = self._arrays[id(candidate)] = candidate, dates, chosen
        return found[1], found[2]


class _Recorder:
    """Stands for the selector of a rule: it notes all candidates instead of trying them, and then finds nothing."""

    def __init__(self, selector: Any) -> None:  # noqa: ANN401 - crds has no types
        self._selector = object.__new__(type(selector))
        self._selector.__dict__.update(selector.__dict__)
        self._selector._winnow = self._winnow
        self._selector.merge_group = self._merge
        self._matches = list(selector._match_selections.items())
        self._known: dict[tuple[int, str], NDArray[np.int8]] = {}
        self._merged: dict[tuple[int, ...], Any] = {}
        self.candidates: list[Any] = []

    def _merge(self, selectors: tuple[Any, ...]) -> Any:  # noqa: ANN401 - crds has no types
        """Merge candidates that match as well as each other; crds itself would remember that for ever."""
        key = tuple(map(id, selectors))
        if key not in self._merged:
            merged = selectors[0]
            for other in selectors[1:]:
                merged = merged.merge(other)
            self._merged[key] = merged
        return self._merged[key]

    def _winnow(self, header: Mapping[str, str], _: Any) -> tuple[dict[Any, int], dict[Any, Any]]:  # noqa: ANN401
        """Do what the selector's own does: return the weights of what matches, and what matches.

        The matchers are those of crds; each is asked once for each value, not once for each header.
        """
        weights = np.zeros(len(self._matches), np.int64)
        remains = np.ones(len(self._matches), np.bool_)
        for number, keyword in enumerate(self._selector._parameters):
            value = header.get(keyword, "UNDEFINED")
            statuses = self._known.get((number, value))
            if statuses is None:
                matched = [selection[0][number].match(value) for _, selection in self._matches]
                statuses = self._known[number, value] = np.array(matched, np.int8)
            remains &= statuses != -1
            weights -= statuses
        found = np.flatnonzero(remains).tolist()
        kept = [self._matches[place] for place in found]
        return {key: int(weights[place]) for (key, _), place in zip(kept, found, strict=True)}, dict(kept)

    def choose(self, header: Mapping[str, str]) -> Any:  # noqa: ANN401 - crds has no types
        from crds.core.selectors import Selector

        self._selector._check_defined(header)
        for selection in self._selector.get_selection(self._selector._validate_header(header)):
            if not isinstance(selection.choice, Selector):
                return selection.choice
            self.candidates.append(selection.choice)
        raise AssertionError("a selector of crds ends by raising")


def _copy(rmap: Any, recorder: _Recorder) -> Any:  # noqa: ANN401 - crds has no types
    """Return a rule with another selector; the rule itself serves others meanwhile."""
    copied = object.__new__(type(rmap))
    copied.__dict__.update(rmap.__dict__)
    copied.selector = recorder
    keys = rmap.get_required_parkeys()
    copied.get_required_parkeys = lambda: list(keys)  # crds would remember it for this copy, for ever
    return copied


def _settled(choice: str) -> str | None:
    """Return what crds says of what a rule names: a reference, or N/A or OMIT."""
    from crds.core.rmap import MappingSelectionsDict

    if MappingSelectionsDict.is_na_value(choice):
        return "NOT FOUND n/a"
    return None if MappingSelectionsDict.is_omit_value(choice) else choice


def _is_plain(selector: Any) -> bool:  # noqa: ANN401 - crds has no types
    """Say whether a selector picks by parameters, and then at most by ``DATE``."""
    from crds.core.selectors import MatchSelector, UseAfterSelector

    if type(selector) is not MatchSelector:
        return False
    for choice in selector.choices():
        if type(choice) is UseAfterSelector:
            if choice._parameters != DATE or not all(isinstance(one, str) for one in choice.choices()):
                return False
        elif not isinstance(choice, str):
            return False
    return True


def _evalable(keyword: str) -> str:
    return keyword.replace(".", "_")


def _named(rmap: Any) -> set[str]:  # noqa: ANN401 - crds has no types
    """Return the names in the expressions of a rule, as they are there."""
    expressions = [rmap._rmap_relevance_expr, rmap._rmap_omit_expr, *rmap._parkey_relevance_exprs.values()]
    found: set[str] = set()
    for _, code in expressions:
        for part in _codes(code):
            found.update(part.co_names)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _hooks(rmap: Any) -> list[FunctionType]:  # noqa: ANN401 - crds has no types
    found = (rmap.get_hook(name, None) for name in ("precondition_header", "fallback_header"))
    return [hook for hook in found if hook is not None]


def _thresholds(rmap: Any) -> set[str] | None:  # noqa: ANN401 - crds has no types
    """Return the dates at which what the hooks of a rule do changes; None if that is not known."""
    found: set[str] = set()
    for hook in _hooks(rmap):
        if hook.__name__ not in _HOOKS or not _is_as_read(hook.__module__):
            return None
        if _HOOKS[hook.__name__]:
            from crds.hst import acs_common

            if not _is_as_read(acs_common.__name__):
                return None
            found.update(getattr(acs_common, name) for name in _HOOKS[hook.__name__])
    return found


@cache
def _is_as_read(module: str) -> bool:
    import sys

    loaded: ModuleType | None = sys.modules.get(module)
    path = getattr(loaded, "__file__", None)
    return bool(path) and hashlib.sha256(Path(str(path)).read_bytes()).hexdigest() == _READ.get(module)


def _read_by_hooks(rmap: Any) -> set[str]:  # noqa: ANN401 - crds has no types
    """Return all texts in the hooks of a rule and in what they call of their own module: keywords are among them."""
    found: set[str] = set()
    waiting = [(hook.__code__, hook) for hook in _hooks(rmap)]
    seen = set()
    while waiting:
        code, function = waiting.pop()
        if code in seen:
            continue
        seen.add(code)
        for part in _codes(code):
            found.update(constant for constant in part.co_consts if isinstance(constant, str))
            for name in part.co_names:
                called = function.__globals__.get(name)
                if isinstance(called, FunctionType) and called.__module__ == function.__module__:
                    waiting.append((called.__code__, called))
    return found
