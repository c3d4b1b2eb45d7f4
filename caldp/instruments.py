"""The recipe of each instrument, as rows of data.

A row says which files are inputs, which program calibrates them, which exit statuses and messages mean what, and
which products must exist afterwards.  Adding an instrument is adding a row (and at most one function that says what
its exposures yield).  Facts about calcos are from its source (3.6.2) and from runs of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from caldp.dataset import Dataset
from caldp.errors import UnsupportedError

Header = Mapping[str, Any]


@dataclass(frozen=True)
class Instrument:
    """How one instrument is calibrated.

    Attributes
    ----------
    name : str
        As in ``Dataset.instrument``.
    raw : tuple of str
        Suffixes of raw science data: they get best references and are what the program works on.
    support : tuple of str
        Suffixes of files that go with them.
    facts : tuple of str
        Header keywords that decide what an exposure yields.
    numbers : tuple of str
        Those that must be whole numbers.
    reference_variable : str
        Environment variable in the names of references, as in ``lref$x_flat.fits``.
    program : tuple of str
        Command; ``{input}`` is the one association or raw file of a call, ``{output}`` the folder for products.
    tolerated : tuple of int
        Exit statuses that mean "nothing to calibrate here" when no product is expected.
    warnings_of_failure : tuple of (str, str)
        Regular expressions in the program's output that mean failure whatever the exit status, and why.
    out_of_memory : tuple of str
        Regular expressions in the output of a failed program that mean it had too little memory.
    expected : callable
        From the facts of one raw file and its suffix to the suffixes of its products.
    association_products : callable
        From the facts of all members to the suffixes of the association's products.
    spectra, images : tuple of str
        Suffixes of products that get a preview of that kind.
    random_seed : int or None
        Value for the header keyword RANDSEED, so that runs are reproducible.
    """

    name: str
    raw: tuple[str, ...]
    support: tuple[str, ...]
    facts: tuple[str, ...]
    numbers: tuple[str, ...]
    reference_variable: str
    program: tuple[str, ...]
    tolerated: tuple[int, ...]
    warnings_of_failure: tuple[tuple[str, str], ...]
    out_of_memory: tuple[str, ...]
    expected: Callable[[Header, str], tuple[str, ...]]
    association_products: Callable[[list[Header]], tuple[str, ...]]
    spectra: tuple[str, ...]
    images: tuple[str, ...]
    random_seed: int | None = None


#: EXPTYPE of COS exposures that calcos calibrates; others it does with lamp flashes (it then calls them EXTERNAL/CAL).
COS_CALIBRATED = ("EXTERNAL/SCI", "EXTERNAL/CAL", "DARK", "FLAT", "WAVECAL", "ACQ/IMAGE")

#: Calibration steps any of which makes calcos work (calcos.py, globalSwitches).
COS_STEPS = tuple(
    f"{step}CORR" for step in "BADT BRST DEAD DOPP DQI FLAT GEO DGEO HEL HVDS PHA RAND TEMP X1D WAVE TRCE ALGN".split()
)

#: Steps that calcos ignores for the NUV detector.
COS_FUV_STEPS = ("TEMPCORR", "GEOCORR", "DGEOCORR", "RANDCORR", "PHACORR")


def _is(header: Header, keyword: str, value: str) -> bool:
    return str(header.get(keyword, "")).strip().upper() == value


def _flashes(header: Header) -> bool:
    tagflash = str(header.get("TAGFLASH", "NONE")).strip().upper()
    return tagflash not in ("NONE", "N/A", "") and int(header.get("NUMFLASH", 0)) > 0


def _calibrated(header: Header) -> bool:
    steps = [s for s in COS_STEPS if not (_is(header, "DETECTOR", "NUV") and s in COS_FUV_STEPS)]
    kind = str(header.get("EXPTYPE", "")).strip().upper()
    known = kind in COS_CALIBRATED or (_flashes(header) and not kind.startswith("ACQ/"))
    return known and (any(_is(header, step, "PERFORM") for step in steps) or kind == "WAVECAL")


def _science(header: Header) -> bool:
    """Whether calcos counts an exposure as science; with lamp flashes, others are calibration to it."""
    kinds = ("EXTERNAL/SCI",) if _flashes(header) else ("EXTERNAL/SCI", "EXTERNAL/CAL", "DARK", "FLAT")
    return str(header.get("EXPTYPE", "")).strip().upper() in kinds


def cos_products(header: Header, suffix: str) -> tuple[str, ...]:
    """Say what calcos makes of one COS raw file.

    Parameters
    ----------
    header : mapping
        The facts of the raw file.
    suffix : str
        Its suffix, for example ``rawtag_a``.

    Returns
    -------
    tuple of str
        Suffixes of products: corrtag, counts and flt carry the segment, x1d and lampflash do not.
    """
    if not _calibrated(header):
        return ()
    segment = suffix[-2:] if suffix.endswith(("_a", "_b")) else ""
    if _is(header, "EXPTYPE", "ACQ/IMAGE"):
        return ("counts", "flt")
    products = [f"counts{segment}", f"flt{segment}", f"corrtag{segment}"]
    if _is(header, "OBSMODE", "TIME-TAG") and _flashes(header) and _is(header, "WAVECORR", "PERFORM"):
        products.append("lampflash")
    if _is(header, "OBSTYPE", "SPECTROSCOPIC") and _is(header, "X1DCORR", "PERFORM"):
        products.append("x1d")
    return tuple(products)


def cos_association_products(members: list[Header]) -> tuple[str, ...]:
    """Say what calcos makes of a COS association.

    Parameters
    ----------
    members : list of mapping
        The facts of every raw file of its members, in the order of the association table.

    Returns
    -------
    tuple of str
        ``x1dsum`` and one ``x1dsum<FP-POS>`` for each FP-POS position present, or ``fltsum`` for images.
    """
    science = [h for h in members if _science(h) and _calibrated(h)]
    spectra = [h for h in science if _is(h, "OBSTYPE", "SPECTROSCOPIC")]
    if spectra:
        # calcos asks the first TIME-TAG exposure, else the first of all, whether to extract spectra.
        first = next((h for h in science if _is(h, "OBSMODE", "TIME-TAG")), science[0])
        if not _is(first, "X1DCORR", "PERFORM"):
            return ()
        positions = sorted({int(h.get("FPPOS", 1)) for h in spectra} - {0})
        return ("x1dsum", *(f"x1dsum{position}" for position in positions))
    return ("fltsum",) if science else ()


INSTRUMENTS: dict[str, Instrument] = {
    "cos": Instrument(
        name="cos",
        raw=(
            "rawtag",
            "rawtag_a",
            "rawtag_b",
            "rawaccum",
            "rawaccum_a",
            "rawaccum_b",
            "rawimage",
            "rawacq",
        ),
        support=("spt", "pha_a", "pha_b"),
        facts=(
            "INSTRUME",
            "ROOTNAME",
            "DETECTOR",
            "OBSTYPE",
            "OBSMODE",
            "EXPTYPE",
            "SEGMENT",
            "FPPOS",
            "TAGFLASH",
            "NUMFLASH",
            *COS_STEPS,
        ),
        numbers=("FPPOS", "NUMFLASH"),
        reference_variable="lref",
        program=("calcos", "-o", "{output}", "{input}"),
        tolerated=(5,),
        warnings_of_failure=(
            (r"No data in (?!lampflash)", "a table of events is empty"),
            (r"There are no files to calibrate", "raw data of a member were not found"),
        ),
        out_of_memory=(r"\bMemoryError\b", r"Unable to allocate .* for an array"),
        expected=cos_products,
        association_products=cos_association_products,
        spectra=("x1d", "x1dsum", "x1dsum1", "x1dsum2", "x1dsum3", "x1dsum4"),
        images=("counts", "flt", "fltsum"),
        random_seed=1,
    ),
}


def recipe(dataset: Dataset) -> Instrument:
    """Return the row that calibrates a dataset.

    Parameters
    ----------
    dataset : Dataset
        What is to be calibrated.

    Returns
    -------
    Instrument

    Raises
    ------
    UnsupportedError
        If no row calibrates this kind of dataset yet.
    """
    if dataset.kind == "ipppssoot" and dataset.instrument in INSTRUMENTS:
        return INSTRUMENTS[dataset.instrument]
    what = {"svm": "single-visit mosaics are", "mvm": "multi-visit mosaics are"}.get(
        dataset.kind, f"{dataset.instrument.upper()} data are"
    )
    raise UnsupportedError(
        f"{dataset}: {what} not calibrated by this version",
        remedy=f"it calibrates {', '.join(name.upper() for name in INSTRUMENTS)} exposures and associations",
    )
