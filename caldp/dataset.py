"""What a dataset is called, and what its name says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from caldp.errors import UnsupportedError, UsageError

#: First letter of an ipppssoot -> instrument.
INSTRUMENT_LETTERS = {"i": "wfc3", "j": "acs", "l": "cos", "o": "stis"}

#: Letters of HST instruments and archive classes that this pipeline does not calibrate.
OTHER_LETTERS = {
    "e": "engineering data",
    "f": "FGS",
    "n": "NICMOS",
    "u": "WFPC2",
    "v": "HSP",
    "w": "WF/PC",
    "x": "FOC",
    "y": "FOS",
    "z": "GHRS",
}

_IPPPSSOOT = re.compile(r"[ijlo][a-z0-9]{8}")
_OTHER_IPPPSSOOT = re.compile(r"[efnuvwxyz][a-z0-9]{8}")
_SVM = re.compile(r"(acs|wfc3)_[a-z0-9]{3}_[a-z0-9]{2}")
_MVM = re.compile(r"skycell-p[0-9]{4}x[0-9]{2}y[0-9]{2}")

_GRAMMAR = (
    "give an ipppssoot of 9 letters and digits such as j8cb010b0 or ldfd01vnq, "
    "a visit such as acs_8ph_01 or a sky cell such as skycell-p2381x06y09"
)


@dataclass(frozen=True)
class Dataset:
    """One HST dataset: an exposure or association, a single-visit or a multi-visit mosaic.

    Attributes
    ----------
    name : str
        Always lower case, for example ``ldfd01010``.
    kind : str
        ``ipppssoot``, ``svm`` or ``mvm``.
    instrument : str
        ``acs``, ``cos``, ``stis``, ``wfc3``, or ``mvm`` for sky cells: the folder under ``data/``.
    """

    name: str
    kind: str
    instrument: str

    @classmethod
    def parse(cls, text: str) -> Dataset:
        """Read a dataset name in upper or lower case.

        Parameters
        ----------
        text : str
            What the user typed.

        Returns
        -------
        Dataset

        Raises
        ------
        UnsupportedError
            For a well-formed name of an instrument that is not calibrated here.
        UsageError
            For anything else that is not a dataset name.
        """
        # lower() must not turn a foreign letter into an ASCII one: the Kelvin sign would become a k.
        name = text.lower() if text.isascii() else ""
        if _IPPPSSOOT.fullmatch(name):
            return cls(name, "ipppssoot", INSTRUMENT_LETTERS[name[0]])
        if match := _SVM.fullmatch(name):
            return cls(name, "svm", match[1])
        if _MVM.fullmatch(name):
            return cls(name, "mvm", "mvm")
        if _OTHER_IPPPSSOOT.fullmatch(name):
            raise UnsupportedError(
                f"{name}: {OTHER_LETTERS[name[0]]} is not calibrated by this pipeline",
                remedy="ACS (j...), COS (l...), STIS (o...) and WFC3 (i...) are HST's supported instruments",
            )
        raise UsageError(f"{text[:80]!r} is not an HST dataset name", remedy=_GRAMMAR)

    @property
    def root(self) -> str:
        """What the names of its files begin with: ``j8ph01`` for ``acs_8ph_01``, else the name."""
        if self.kind != "svm":
            return self.name
        letter = next(letter for letter, name in INSTRUMENT_LETTERS.items() if name == self.instrument)
        return letter + self.name.split("_", 1)[1].replace("_", "")

    @property
    def prefix(self) -> str:
        """Key of the dataset's products below the output: ``data/<instrument>/<dataset>``."""
        return f"data/{self.instrument}/{self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "kind": self.kind, "instrument": self.instrument}

    def __str__(self) -> str:
        return self.name
