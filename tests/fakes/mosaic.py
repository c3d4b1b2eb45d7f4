"""Calibrated exposures and lists of them (poller files), of which mosaics are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes import smallfits


def write_calibrated(folder: Path, name: str, instrument: str = "ACS", detector: str = "WFC", **header: Any) -> Path:
    """Write an ``_flc`` or ``_flt`` file."""
    root = {} if name.startswith("hst_") else {"ROOTNAME": name[:9]}
    facts = {
        "INSTRUME": instrument,
        "DETECTOR": detector,
        "OBSTYPE": "IMAGING",
        "EXPTYPE": "EXTERNAL/SCI",
        **root,
        **header,
    }
    parts = smallfits.image("SCI"), smallfits.image("ERR", base=1.0), smallfits.ramp("DQ")
    return smallfits.write(folder / name, facts, *parts)


def write_visit(folder: Path, dataset: str, program: str, exposures: dict[str, str], detector: str = "WFC") -> Path:
    """Write the list of the exposures of a visit, name -> filters."""
    _, visit, number = dataset.upper().split("_")
    rows = [f"{n},{program},{visit},{number},60.0,{filters},{detector},{n}" for n, filters in exposures.items()]
    return write_poller(folder, dataset, *rows)


def write_cell(folder: Path, dataset: str, program: str, exposures: dict[str, str], detector: str = "UVIS") -> Path:
    """Write the list of the exposures of a sky cell, name -> filters."""
    rows = [f"{n},{program},B8T,01,60.0,{filters},{detector},{dataset},NEW,{n}" for n, filters in exposures.items()]
    return write_poller(folder, dataset, *rows)


def write_poller(folder: Path, dataset: str, *rows: str) -> Path:
    """Write a list of exposures as it is given."""
    path = folder / f"{dataset}_input.out"
    path.write_text("".join(f"{row}\n" for row in rows))
    return path
