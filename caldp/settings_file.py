"""Read ``<dataset>_cal_env.txt``: switches of the calibration programs that come with the data.

Whoever packs the data writes this file, so it must not decide what runs, where files are read and written, or which
machine is asked.  Names that are not listed here are refused, whatever they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from caldp.errors import InputError

#: What a data file may set. Left out on purpose, although the programs read them: addresses (ASTROMETRY_SERVICE_URL,
#: GSSS_WEBSERVICES_URL, ASTROMETRIC_CATALOG_URL), paths (DATA_PATH, HLA_CLASSIC_BASEPATH, the iref ... uref of
#: references), CRDS_*, and imclobber, with which HSTCAL overwrites what a test of its outputs should find.
ALLOWED = frozenset(
    {
        # drizzlepac/runastrodriz.py: align to a catalogue, use the a priori solutions of the archive
        "ASTROMETRY_COMPUTE_APOSTERIORI",
        "ASTROMETRY_APPLY_APRIORI",
        # stwcs/updatewcs/astrometry_utils.py: the older switch for a priori solutions; failures there are errors
        "ASTROMETRY_STEP_CONTROL",
        "RAISE_PIPELINE_ERRORS",
        # drizzlepac/runastrodriz.py: write quality figures, take the distortion table of the raw
        "PIPELINE_QUALITY_TESTING",
        "PIPELINE_RESET_IDCTAB",
        # drizzlepac/util.py: any value means one process
        "ASTRODRIZ_NO_PARALLEL",
        # drizzlepac/hapsequencer.py: catalogues by detector, quality figures
        "SVM_CATALOG_HRC",
        "SVM_CATALOG_IR",
        "SVM_CATALOG_PC",
        "SVM_CATALOG_SBC",
        "SVM_CATALOG_UVIS",
        "SVM_CATALOG_WFC",
        "SVM_QUALITY_TESTING",
        # drizzlepac/hapmultisequencer.py: which exposures go into a sky cell, quality figures
        "MVM_INCLUDE_SMALL",
        "MVM_ONLY_CTE",
        "MVM_QUALITY_TESTING",
        # OpenMP (calacs, calwf3, numpy) and MKL (numpy): threads; the HST images set the second one to GNU
        "OMP_NUM_THREADS",
        "MKL_THREADING_LAYER",
    }
)

_VALUE = re.compile(r"[A-Za-z0-9_.,+-]{1,64}")
_MOST_BYTES = 64_000
_MOST_MESSAGES = 20
_SHOWN = 64


def read(path: Path) -> tuple[dict[str, str], list[str]]:
    """Read the settings that come with a dataset.

    A line is ``name=value``; blank lines and lines that begin with ``#`` mean nothing; of two lines with the same name
    the last one counts.

    Parameters
    ----------
    path : Path
        ``<dataset>_cal_env.txt``.

    Returns
    -------
    settings : dict
        What may be added to the environment of the calibration programs: names in `ALLOWED`, with values of letters,
        digits and ``_.,+-``, 64 at most.
    refused : list of str
        For each other line, in one line, why it is not used: at most 20, then how many more.  Values are not
        repeated, since they may be secrets.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    try:
        with path.open("rb") as reader:
            content = reader.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})", remedy="make it readable, or remove it") from error
    if len(content) > _MOST_BYTES:
        return {}, [f"{path.name}: larger than {_MOST_BYTES} bytes, so none of it is used"]
    settings: dict[str, str] = {}
    refused: list[str] = []
    # What is not UTF-8 matches neither a name nor a value, so its line is refused and the others count.
    for number, line in enumerate(content.decode("utf-8-sig", "replace").split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            reason = "not of the form name=value"
        elif name not in ALLOWED:
            reason = f"{_printable(name)} is not a setting that may come with the data"
        elif not _VALUE.fullmatch(value):
            reason = f"the value of {name} is not 1 to 64 letters, digits and _.,+-"
        else:
            settings[name] = value
            continue
        refused.append(f"{path.name} line {number}: {reason}")
    more = len(refused) - _MOST_MESSAGES
    if more > 0:
        refused[_MOST_MESSAGES:] = [f"{path.name}: {more} more lines are refused"]
    return settings, refused


def _printable(name: str) -> str:
    """Show a name in one line, with nothing in it that a terminal obeys."""
    return name[:_SHOWN].encode("unicode_escape").decode("ascii")[:_SHOWN] or "an empty name"
