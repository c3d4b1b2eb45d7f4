"""All datasets of an instrument at once: crds is asked once for all that agree in what a rule looks at."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from caldp.crdserver import exposed
from caldp.crdserver.choices import DATE, Rule, Steps
from caldp.crdserver.columns import ABSENT, Column, Table, group
from caldp.crdserver.verdicts import NOTHING, Failure, Reason, Verdict, compare, summed

#: What crds takes for the value of a keyword that a header does not have.
_UNDEFINED = "UNDEFINED"

#: A date like any other; which it is does not matter where it is used.
_SOME_DATE = dict(zip(DATE, ("2000-01-01", "00:00:00"), strict=True))


@dataclass(frozen=True)
class Counts:
    """What an instrument came to.

    Attributes
    ----------
    datasets : int
        In the catalogue.
    since : str
        Those exposed before were not looked at.
    early : int
        How many these are.
    affected, withheld : int
        Datasets that are affected, and those that would be but for a failure of the new context.
    types : mapping
        {type: affected datasets of which it is a reason}.
    """

    datasets: int = 0
    since: str = ""
    early: int = 0
    affected: int = 0
    withheld: int = 0
    types: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Figures:
    """What it took.

    Attributes
    ----------
    mappings : int
        Rules that differ.
    groups : int
        Sets of parameters that crds was asked about, by types.
    asked : int
        Calls of a rule.
    rows : int
        Datasets, by types.
    seconds : dict
        ``contexts``, ``reading``, ``grouping``, ``stock``, ``selecting``.
    """

    mappings: int = 0
    groups: int = 0
    asked: int = 0
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add to the seconds of something."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begun


class Sweep:
    """The datasets of one instrument."""

    def __init__(
        self, name: str, table: Table, rules: Mapping[str, tuple[Rule, Rule]], since: str, figures: Figures
    ) -> None:
        self.name = name
        self.table = table
        self.rules = rules
        self.since = since
        self.figures = figures
        self._constant = {"INSTRUME": name.upper()}

    def find(self) -> tuple[Counts, dict[str, tuple[Reason, ...]], dict[str, tuple[Failure, ...]]]:
        """Return what they come to."""
        timed, table = self.figures.timed, self.table
        with timed("reading"):
            keys = sorted({key for pair in self.rules.values() for rule in pair for key in rule.keys})
            keys = [key for key in keys if key not in self._constant]
            dates, times = table.column(DATE[0]), table.column(DATE[1])
            known = {
                keyword: table.column(keyword)
                for pair in exposed.PAIRS
                for keyword in pair
                if keyword in table.keywords and keyword not in DATE
            }
            wanted = exposed.since_mask({DATE[0]: dates, DATE[1]: times, **known}, self.since, table.rows)
            raw = {key: table.column(key) for key in keys}
        with timed("grouping"):
            rows = np.flatnonzero(wanted)
            conditioned = {key: _conditioned(column, rows) for key, column in raw.items()}
            instants = exposed.instants(_some(dates, rows), _some(times, rows))
            dated, undated = (
                np.flatnonzero(instants != exposed.MALFORMED),
                np.flatnonzero(instants == exposed.MALFORMED),
            )
            sides = {
                True: _Side(conditioned, dated),
                False: _Side(conditioned, np.arange(len(rows))),
            }
            lost = _Side(conditioned, undated)
            is_asked = not all(rule.by_date for pair in self.rules.values() for rule in pair)
            moments = [_moment(column, rows, None if is_asked else undated) for column in (dates, times)]
        self.figures.rows += len(rows) * len(self.rules)
        verdicts: list[tuple[NDArray[np.int32], list[Verdict]]] = []
        for kind, pair in self.rules.items():
            ledger = _Ledger(kind)
            outcome = np.zeros(len(rows), np.int32)
            if all(rule.by_date for rule in pair):
                self._by_steps(pair, sides[True], instants[dated], ledger, outcome)
                self._by_asking(pair, lost, moments, ledger, outcome)
            else:
                self._by_asking(pair, sides[False], moments, ledger, outcome)
            if outcome.any():
                verdicts.append((outcome, ledger.verdicts))
        with timed("selecting"):
            return self._summed(rows, verdicts)

    def _by_steps(
        self,
        pair: tuple[Rule, Rule],
        side: _Side,
        instants: NDArray[np.int64],
        ledger: _Ledger,
        outcome: NDArray[np.int32],
    ) -> None:
        """Look at the datasets whose dates can be read."""
        if not len(side.rows):
            return
        with self.figures.timed("grouping"):
            labels, first, keys = side.grouped(pair[0].keys | pair[1].keys)
        with self.figures.timed("stock"):
            steps = []
            for place in first.tolist():
                header = {**side.header(place, keys), **_SOME_DATE, **self._constant}
                steps.append(ledger.compared(*(rule.steps(_only(header, rule)) for rule in pair)))
            self.figures.groups += len(first)
            self.figures.asked += 2 * len(first)
        with self.figures.timed("selecting"):
            _select(steps, labels[side.base], instants, side.rows, outcome)

    def _by_asking(
        self,
        pair: tuple[Rule, Rule],
        side: _Side,
        moments: Sequence[Column],
        ledger: _Ledger,
        outcome: NDArray[np.int32],
    ) -> None:
        """Look at datasets of which crds must be asked with their dates."""
        if not len(side.rows):
            return
        with self.figures.timed("grouping"):
            labels, first, keys = side.grouped(pair[0].keys | pair[1].keys)
            codes = [(_complete(column, side.rows), len(column.values) + 1) for column in moments]
            labels, first = group([(labels[side.base].astype(np.int32), len(first)), *codes], len(side.rows))
        with self.figures.timed("stock"):
            found = np.zeros(len(first), np.int32)
            for number, place in enumerate(first.tolist()):
                row = int(side.rows[place])
                header = {**side.header(int(side.base[place]), keys), **self._constant}
                for keyword, column in zip(DATE, moments, strict=True):
                    header[keyword] = _value(column, row)
                found[number] = ledger.code(*(rule.result(_only(header, rule)) for rule in pair))
            self.figures.groups += len(first)
            self.figures.asked += 2 * len(first)
        with self.figures.timed("selecting"):
            outcome[side.rows] = found[labels]

    def _summed(
        self, rows: NDArray[Any], verdicts: Sequence[tuple[NDArray[np.int32], list[Verdict]]]
    ) -> tuple[Counts, dict[str, tuple[Reason, ...]], dict[str, tuple[Failure, ...]]]:
        """Put together what the types say of each dataset."""
        noted = np.zeros(len(rows), np.bool_)
        for outcome, _ in verdicts:
            noted |= outcome != 0
        places = np.flatnonzero(noted)
        columns = [(outcome[places], len(known)) for outcome, known in verdicts]
        labels, first = group(columns, len(places))
        known = [of_type for _, of_type in verdicts]
        found = zip(*(codes[first].tolist() for codes, _ in columns), strict=True)
        sums = [summed(of[code] for of, code in zip(known, codes, strict=True) if code) for codes in found]
        counted = np.bincount(labels, minlength=len(first)).tolist()
        types: dict[str, int] = {}
        for (reasons, _, is_fatal), count in zip(sums, counted, strict=True):
            for reason in () if is_fatal else reasons:
                types[reason.type] = types.get(reason.type, 0) + count
        affected: dict[str, tuple[Reason, ...]] = {}
        failed: dict[str, tuple[Failure, ...]] = {}
        withheld = 0
        for name, label in zip(self.table.ids(rows[places]), labels.tolist(), strict=True):
            reasons, failures, is_fatal = sums[label]
            if reasons and not is_fatal:
                affected[name] = reasons
            withheld += bool(reasons and is_fatal)
            if failures:
                failed[name] = failures
        total = self.table.rows
        return (
            Counts(total, self.since, total - len(rows), len(affected), withheld, dict(sorted(types.items()))),
            affected,
            failed,
        )


class _Side:
    """Some rows, told apart by all that any rule looks at; mostly these are few."""

    def __init__(self, columns: Mapping[str, Column], rows: NDArray[Any]) -> None:
        self.rows = rows
        self._columns = columns
        codes = [(_complete(column, rows), len(column.values) + 1) for column in columns.values()]
        #: Of each row, which set of parameters it has; of each set, one that has it.
        self.base, first = group(codes, len(rows))
        self._places = rows[first]

    def grouped(self, keywords: Collection[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
        """Tell sets of parameters apart by some keywords only.

        Returns
        -------
        labels : ndarray of int64
            Of each set.
        first : ndarray of int64
            A set of each label.
        keywords : list of str
            Those that there are.
        """
        known = [key for key in self._columns if key in keywords]
        codes = [(_complete(self._columns[key], self._places), len(self._columns[key].values) + 1) for key in known]
        labels, first = group(codes, len(self._places))
        return labels, first, known

    def header(self, place: int, keywords: Iterable[str]) -> dict[str, str]:
        """Return a set of parameters."""
        row = int(self._places[place])
        return {key: _value(self._columns[key], row) for key in keywords}


class _Ledger:
    """The verdicts on a type, each once: 0 is that there is nothing to say."""

    def __init__(self, kind: str) -> None:
        self.verdicts: list[Verdict] = [NOTHING]
        self._kind = kind
        self._codes: dict[Verdict, int] = {NOTHING: 0}
        self._pairs: dict[tuple[str | None, str | None], int] = {}
        self._compared: dict[tuple[int, int], tuple[Steps, Steps, _Outcomes]] = {}

    def code(self, old: str | None, new: str | None) -> int:
        """Return the number of the verdict on two choices."""
        found = self._pairs.get((old, new))
        if found is None:
            verdict = compare(self._kind, old, new)
            found = self._pairs[old, new] = self._codes.setdefault(verdict, len(self.verdicts))
            if found == len(self.verdicts):
                self.verdicts.append(verdict)
        return found

    def compared(self, old: Steps, new: Steps) -> _Outcomes:
        """Return the verdicts on two choices of any date."""
        known = self._compared.get((id(old), id(new)))
        if known is None:  # both are kept as well, so that no others get their ids
            at = sorted({*old.at, *new.at})
            places = [np.searchsorted(np.array(one.at, np.int64), at, "right") for one in (old, new)]
            codes = [self.code(old.results[0], new.results[0])]
            codes += [self.code(old.results[i], new.results[j]) for i, j in zip(*places, strict=True)]
            kept = [number for number in range(len(at)) if codes[number + 1] != codes[number]]
            outcomes = _Outcomes(
                np.array([at[number] for number in kept], np.int64),
                np.array([codes[0], *(codes[number + 1] for number in kept)], np.int32),
            )
            known = self._compared[id(old), id(new)] = old, new, outcomes
        return known[2]


class _Outcomes(NamedTuple):
    """Numbers of verdicts: before the first date, and from each date on."""

    at: NDArray[np.int64]
    codes: NDArray[np.int32]


def _select(
    steps: Sequence[_Outcomes],
    labels: NDArray[np.int64],
    instants: NDArray[np.int64],
    rows: NDArray[Any],
    outcome: NDArray[np.int32],
) -> None:
    """Note the verdict on each row.

    Parameters
    ----------
    steps : sequence of _Outcomes
        Of each label.
    labels, instants : ndarray of int64, shape (rows,)
        Of each row.
    rows : ndarray, shape (rows,)
        Where they are in ``outcome``.
    outcome : ndarray of int32
        Is written to.
    """
    speaks = np.array([bool(one.codes.any()) for one in steps], np.bool_)
    some = np.flatnonzero(speaks[labels])
    if not len(some):
        return
    # All steps in one array, ordered by label and date: dates are numbered, so that both fit into one number.
    every = np.unique(np.concatenate([one.at for one in steps]))
    stride = len(every) + 1
    keys, codes = [], []
    for label, one in enumerate(steps):
        keys.append(np.concatenate([[0], np.searchsorted(every, one.at) + 1]) + label * stride)
        codes.append(one.codes)
    wanted = np.searchsorted(every, instants[some], "right") + labels[some] * stride
    outcome[rows[some]] = np.concatenate(codes)[np.searchsorted(np.concatenate(keys), wanted, "right") - 1]


def _only(header: Mapping[str, str], rule: Rule) -> dict[str, str]:
    """Return what one context leaves of a header."""
    return {key: value for key, value in header.items() if key in rule.keys or key in DATE}


def _some(column: Column, rows: NDArray[Any]) -> Column:
    return Column(column.codes[rows], column.values)


def _complete(column: Column, rows: NDArray[Any]) -> NDArray[np.int32]:
    return Column(column.codes[rows], column.values).complete


def _moment(column: Column, rows: NDArray[Any], only: NDArray[Any] | None) -> Column:
    """Return a date or time of some rows as crds compares it, or only of some of these: of no others it is asked."""
    if only is None:
        return _conditioned(column, rows)
    some = _conditioned(column, rows[only])
    codes = np.full(len(rows), ABSENT, np.int32)
    codes[only] = some.codes
    return Column(codes, some.values)


def _value(column: Column, row: int) -> str:
    found = column.text(row)
    return _UNDEFINED if found is None else found


def _conditioned(column: Column, rows: NDArray[Any]) -> Column:
    """Return the values of some rows as crds compares them; what is absent stays apart from all there is."""
    from crds.core import utils

    codes = column.codes[rows]
    used = np.zeros(len(column.values) + 1, np.bool_)
    used[codes] = True  # the last is for what is absent
    there = np.flatnonzero(used[:-1])
    numbers: dict[str, int] = {}
    places = np.full(len(used), ABSENT, np.int32)
    texts = column.values.take(pa.array(there)).to_pylist()
    places[there] = [numbers.setdefault(utils.condition_value(text), len(numbers)) for text in texts]
    return Column(places[codes], pa.array(list(numbers), pa.string()))
