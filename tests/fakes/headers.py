"""Headers of datasets that were never taken, made from the rules that they are for.

Each is drawn from what some rule of its instrument matches: literal values, one of a list, values at the edges of a
relation, anything for a wild card; then some keywords are spoilt or taken away.  Dates are drawn around those from
which on references are to be used, and some are no dates.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

#: First letters of datasets; datasets of synphot do not exist.
LETTERS = {"acs": "J", "cos": "L", "nicmos": "N", "stis": "O", "wfc3": "I", "wfpc2": "U", "synphot": "S"}

_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_SWITCHES = ("PERFORM", "OMIT", "NONE", "COMPLETE", "UNDEFINED")

#: Values of any keyword that hardly a rule knows.
_STRANGE = (
    "UNDEFINED",
    "N/A",
    "-999",
    "0.0",
    "1e99",
    "NONSENSE",
    "",
    "ANY",
    "NOT APPLICABLE",
    "T",
    "false",
    "{X}",
    "*",
)

#: Around these, hooks of ACS do one thing or another.
_TURNS = ("2009-05-14 00:00:00", "2002-03-30 00:00:00")

_NO_DATES = (
    ("2009-13-45", "00:00:00"),
    ("2009-02-29", "10:00:00"),
    ("0000-00-00", "00:00:00"),
    ("2010-01-01", "25:00:00"),
    ("2010-01-01", "12:60:00"),
    ("2010-01-01", "12:00:60"),
    ("2010-01-01", ""),
    ("", "12:00:00"),
    ("UNDEFINED", "UNDEFINED"),
    ("2010-01-01", "UNDEFINED"),
    ("N/A", "N/A"),
    ("20100101", "120000"),
    ("2010-1-1", "12:00:00"),
    ("soon", "later"),
)

_ODD_DATES = (
    ("2010/01/01", "12:00:00"),
    ("01/02/2010", "12:00"),
    ("13/12/09", "01:02:03.5"),
    ("May 14 2009", "00:00:00"),
    ("14-May-2009", "00:00:00"),
    ("2009-05-14", "1:2:3"),
    ("2009-05-14", "00:00"),
    ("2009-05-14", "12:00:00 PM"),
    (" 2009-05-13 ", " 23:59:59 "),
    ("2009-05-13", "23:59:59.9999999"),
)


class Generator:
    """Makes headers of an instrument.

    Parameters
    ----------
    contexts : sequence of crds.core.rmap.PipelineContext
        For whose rules.
    instrument : str
        In lower case.
    seed : int
        The same makes the same headers.
    """

    def __init__(self, contexts: Sequence[Any], instrument: str, seed: int) -> None:
        self.instrument = instrument
        self._random = random.Random(f"{seed} {instrument}")  # noqa: S311 - no secret
        imaps = [pmap.get_imap(instrument) for pmap in contexts if instrument in pmap.selections]
        rmaps = {rmap.name: rmap for imap in imaps for rmap in imap.selections.normal_values()}
        self.keywords = sorted({key for imap in imaps for key in imap.get_required_parkeys()})
        self._rules: list[list[dict[str, str]]] = []
        self._values: dict[str, list[str]] = {key: [] for key in self.keywords}
        self._starts: list[str] = [*_TURNS]
        for rmap in rmaps.values():
            parameters = rmap.selector._parameters
            matches = [dict(zip(parameters, key, strict=True)) for key in rmap.selector.keys()]
            self._rules.append(matches)
            for match in matches:
                for key, element in match.items():
                    self._values.setdefault(key, []).extend(values_of(element))
            for choice in rmap.selector.choices():
                if not isinstance(choice, str):
                    self._starts += choice.keys()
            self._learn(rmap)
        self._values = {key: sorted(set(values)) or ["X"] for key, values in self._values.items()}
        for key in self.keywords:
            if key.endswith("CORR"):
                self._values[key] = sorted({*self._values[key], *_SWITCHES} - {"X"})
        self._starts = sorted(set(self._starts))
        self._rules = [matches for matches in self._rules if matches]

    def _learn(self, rmap: Any) -> None:
        """Take values from expressions too: ``(DETECTOR == 'WFC')``."""
        header = rmap.header
        texts = [header.get("rmap_relevance", ""), header.get("rmap_omit", "")]
        texts += [text for _, text in dict(header.get("parkey_relevance", {})).items()]
        for text in map(str, texts):
            words = re.findall(r"['\"]([^'\"]+)['\"]", text)
            for key in re.findall(r"[A-Z][A-Z0-9_]+", text):
                if key in self._values:
                    self._values[key].extend(words)

    def headers(self, count: int) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield ids and headers; some products have several exposures."""
        seen: set[str] = set()
        product = ""
        while len(seen) < count:
            exposure = self._name()
            if not product or self._random.random() < 0.7:
                product = exposure if self._random.random() < 0.7 else self._name()
            one = f"{product}:{exposure}"
            if one not in seen:
                seen.add(one)
                yield one, self.header()

    def header(self) -> dict[str, str]:
        """Return one header."""
        drawn = self._random
        header = self._matching()
        for key in drawn.sample(self.keywords, min(len(self.keywords), drawn.choice((0, 0, 0, 1, 1, 2, 5)))):
            how = drawn.randrange(3)
            if how == 0:
                del header[key]
            elif how == 1:
                header[key] = drawn.choice(_STRANGE)
            else:
                header[key] = rewritten(header[key], drawn)
        date, time = self._date()
        header["DATE-OBS"], header["TIME-OBS"] = date, time
        if drawn.random() < 0.01:
            del header[drawn.choice(("DATE-OBS", "TIME-OBS"))]
        header["INSTRUME"] = self.instrument.upper()
        return header

    def plain(self) -> dict[str, str]:
        """Return a header as an archive has it: nothing spoilt, and without a date."""
        header = {**self._matching(), "INSTRUME": self.instrument.upper()}
        return {key: value for key, value in header.items() if key not in ("DATE-OBS", "TIME-OBS")}

    def _matching(self) -> dict[str, str]:
        """Return values that as many rules as possible are for, one rule after the other."""
        drawn = self._random
        fixed: dict[str, str] = {}
        for matches in drawn.sample(self._rules, len(self._rules)):
            for match in drawn.sample(matches, min(len(matches), 12)):
                values = {key: values_of(element) for key, element in match.items()}
                if all(not some or key not in fixed or fixed[key] in some for key, some in values.items()):
                    fixed |= {key: drawn.choice(some) for key, some in values.items() if some and key not in fixed}
                    break
        return {key: fixed[key] if key in fixed else drawn.choice(self._values[key]) for key in self.keywords}

    def _name(self) -> str:
        return LETTERS[self.instrument] + "".join(self._random.choices(_SIGNS, k=7)) + "Q"

    def _date(self) -> tuple[str, str]:
        drawn = self._random
        chance = drawn.random()
        if chance < 0.03:
            return drawn.choice(_NO_DATES)
        if chance < 0.06:
            return drawn.choice(_ODD_DATES)
        if chance < 0.10:
            moment = datetime(1985, 1, 1) + timedelta(days=drawn.randrange(2500))
        elif chance < 0.5:
            moment = datetime(1992, 1, 1) + timedelta(seconds=drawn.randrange(9000 * 86400))
        else:
            recent = self._starts[-max(1, len(self._starts) // 20) :]
            words = re.findall(r"\d+", drawn.choice(recent if chance > 0.8 else self._starts)) + ["0"] * 6
            moment = datetime(*(int(word) for word in words[:6]))  # type: ignore[arg-type]
            moment += drawn.choice(
                (timedelta(), timedelta(seconds=1), timedelta(seconds=-1), timedelta(milliseconds=5))
            )
        date, _, time = moment.isoformat(" ").partition(" ")
        return date, time


def values_of(element: str) -> list[str]:
    """Return values that an element of a match is for, edges included; none for a wild card."""
    if element in ("*", "N/A", "ANY"):
        return []
    if element.startswith("#") or element.upper().startswith("BETWEEN"):
        return edges(element)
    if element.upper().startswith("NOT "):
        return [element[4:].strip(), "ELSE"]
    if element.startswith(("{", "(")):
        return [element.strip("{}()")]
    found = []
    for one in element.split("|"):
        if "*" in one or "?" in one:
            found += [one.replace("*", end).replace("?", "Z") for end in ("", "A", "42")]
        elif one.startswith("#"):
            found += edges(one)
        else:
            found.append(one)
    return found


def edges(relation: str) -> list[str]:
    """Return numbers at, above and below all those in a relation."""
    numbers = [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", relation)]
    return [str(number + step) for number in numbers for step in (-0.5, 0.0, 0.5)]


def rewritten(value: str, drawn: random.Random) -> str:
    """Return a value as another program might write it; crds takes most of them for the same."""
    forms = [value.lower(), f" {value} ", value.removesuffix(".0"), f"{value}0", value.title()]
    return drawn.choice(forms)


def mixed(contexts: Sequence[Any], instruments: Iterable[str], count: int, seed: int) -> dict[str, dict[str, str]]:
    """Return headers of several instruments, as many of each."""
    found: dict[str, dict[str, str]] = {}
    names = list(instruments)
    for number, instrument in enumerate(names):
        share = count // len(names) + (number < count % len(names))
        found |= Generator(contexts, instrument, seed).headers(share)
    return found
