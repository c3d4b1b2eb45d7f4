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


#: COS exposures that calcos does not calibrate: acquisitions without an image, and engineering data.
COS_UNCALIBRATED = ("ACQ/SEARCH", "ACQ/PEAKD", "ACQ/PEAKXD", "ENG DIAG", "MEMORY DUMP", "PHA")


def _performs(header: Header) -> bool:
    return any(key.endswith("CORR") and value == "PERFORM" for key, value in header.items())


def _makes_spectrum(header: Header) -> bool:
    return header.get("OBSTYPE") == "SPECTROSCOPIC" and header.get("X1DCORR") == "PERFORM"


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
    if header.get("EXPTYPE") in COS_UNCALIBRATED or not _performs(header):
        return ()
    segment = suffix[-2:] if suffix.endswith(("_a", "_b")) else ""
    if header.get("EXPTYPE") == "ACQ/IMAGE":
        return ("counts", "flt")
    products = [f"counts{segment}", f"flt{segment}"]
    if header.get("OBSMODE") == "TIME-TAG":
        products.append(f"corrtag{segment}")
        flashes = header.get("TAGFLASH", "NONE") not in ("NONE", "N/A", "") and int(header.get("NUMFLASH") or 0) > 0
        if flashes and header.get("WAVECORR") == "PERFORM":
            products.append("lampflash")
    if _makes_spectrum(header):
        products.append("x1d")
    return tuple(products)


def cos_association_products(members: list[Header]) -> tuple[str, ...]:
    """Say what calcos makes of a COS association.

    Parameters
    ----------
    members : list of mapping
        The facts of every raw file of its members.

    Returns
    -------
    tuple of str
        ``x1dsum`` and one ``x1dsum<FP-POS>`` for each FP-POS position present, or ``fltsum`` for images.
    """
    science = [h for h in members if h.get("EXPTYPE") != "WAVECAL" and h.get("EXPTYPE") not in COS_UNCALIBRATED]
    if any(_makes_spectrum(h) for h in science):
        positions = sorted({int(h["FPPOS"]) for h in science if _makes_spectrum(h) and "FPPOS" in h})
        return ("x1dsum", *(f"x1dsum{position}" for position in positions))
    if science and all(h.get("OBSTYPE") == "IMAGING" and _performs(h) for h in science):
        return ("fltsum",)
    return ()


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
            "FLATCORR",
            "DEADCORR",
            "DQICORR",
            "TEMPCORR",
            "GEOCORR",
            "PHACORR",
            "WAVECORR",
            "X1DCORR",
        ),
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
