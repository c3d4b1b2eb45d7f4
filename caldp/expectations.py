"""What each calibration program makes of its input: the products that must exist when it says it succeeded.

Every function here is pure: from the header keywords of the raw files and the rows of the association table to the
(root, suffix) of products.  The rules are those of the programs' sources: calcos 3.6.2 (calcos.py, accum.py), HSTCAL
3.2.0 (calacs.c and sciflags.c of ACS, procccd.c and procir.c of WFC3, calstis0.c and sciflags.c of STIS) and drizzlepac
3.11.0 (runastrodriz.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Header = Mapping[str, Any]

#: (root, suffix) of a file: ``("j8bt05njq", "flt")`` is ``j8bt05njq_flt.fits``.
Made = tuple[str, str]


@dataclass(frozen=True)
class Raw:
    """One raw file, as far as it decides what is made of it.

    Attributes
    ----------
    root, suffix : str
        ``ldfd01vnq`` and ``rawtag_a``.
    facts : mapping
        Header keywords named by the recipe.
    """

    root: str
    suffix: str
    facts: Header


@dataclass(frozen=True)
class Member:
    """One row of an association table that is present: an exposure or a product.

    Attributes
    ----------
    root : str
        Lower case, for example ``j8bt09041``.
    type : str
        MEMTYPE in upper case, for example ``EXP-CRJ`` or ``PROD-DTH``.
    """

    root: str
    type: str

    @property
    def is_product(self) -> bool:
        """Whether it is made, not given."""
        return "PROD" in self.type

    @property
    def group(self) -> str:
        """What joins exposures and their product: ``CRJ`` of ``EXP-CRJ`` and ``PROD-CRJ``."""
        return self.type.partition("-")[2]


@dataclass(frozen=True)
class Material:
    """What a program is given.

    Attributes
    ----------
    dataset : str
        Its name.
    raws : tuple of Raw
        In the order of the association table.
    members : tuple of Member
        The association table; empty for a single exposure.
    """

    dataset: str
    raws: tuple[Raw, ...]
    members: tuple[Member, ...] = ()


def _is(header: Header, keyword: str, value: str) -> bool:
    return str(header.get(keyword, "")).strip().upper() == value


def _performs(header: Header, steps: tuple[str, ...]) -> bool:
    return any(_is(header, step, "PERFORM") for step in steps)


# ---- COS

#: EXPTYPE of COS exposures that calcos calibrates; others it does with lamp flashes (it then calls them EXTERNAL/CAL).
COS_CALIBRATED = ("EXTERNAL/SCI", "EXTERNAL/CAL", "DARK", "FLAT", "WAVECAL", "ACQ/IMAGE")

#: Calibration steps any of which makes calcos work (calcos.py, globalSwitches).
COS_STEPS = tuple(
    f"{step}CORR" for step in "BADT BRST DEAD DOPP DQI FLAT GEO DGEO HEL HVDS PHA RAND TEMP X1D WAVE TRCE ALGN".split()
)

#: Steps that calcos ignores for the NUV detector.
COS_FUV_STEPS = ("TEMPCORR", "GEOCORR", "DGEOCORR", "RANDCORR", "PHACORR")


def _flashes(header: Header) -> bool:
    tagflash = str(header.get("TAGFLASH", "NONE")).strip().upper()
    return tagflash not in ("NONE", "N/A", "") and int(header.get("NUMFLASH", 0)) > 0


def _calibrated(header: Header) -> bool:
    steps = [s for s in COS_STEPS if not (_is(header, "DETECTOR", "NUV") and s in COS_FUV_STEPS)]
    kind = str(header.get("EXPTYPE", "")).strip().upper()
    known = kind in COS_CALIBRATED or (_flashes(header) and not kind.startswith("ACQ/"))
    return known and (_performs(header, tuple(steps)) or kind == "WAVECAL")


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


def calcos(material: Material) -> tuple[Made, ...]:
    """Say what calcos makes of an exposure or association.

    Parameters
    ----------
    material : Material
        What it is given.

    Returns
    -------
    tuple of (str, str)
        Root and suffix of each product.
    """
    made = [(raw.root, suffix) for raw in material.raws for suffix in cos_products(raw.facts, raw.suffix)]
    product = next((m.root for m in material.members if m.is_product), "")
    if product and made:
        made += [(product, suffix) for suffix in cos_association_products([raw.facts for raw in material.raws])]
    return tuple(dict.fromkeys(made))


# ---- ACS and WFC3: exposures, and the sub-products of associations

#: Steps any of which makes calacs work on an exposure (sciflags.c of ACS).
ACS_STEPS = tuple(f"{step}CORR" for step in "DQI ATOD BIAS BLEV PCTE DARK FLSH FLAT SHAD PHOT GLIN LFLG".split())

#: The same for the CCDs of WFC3 (UVIS), and for its infrared detector.
UVIS_STEPS = tuple(f"{step}CORR" for step in "DQI ATOD BIAS BLEV PCTE DARK FLSH FLAT SHAD PHOT".split())
IR_STEPS = tuple(f"{step}CORR" for step in "ZSIG ZOFF DQI BLEV NOIS DARK NLIN FLAT UNIT PHOT CR".split())

#: What ACS and WFC3 ask of the headers.
DIRECT_STEPS = tuple(dict.fromkeys((*ACS_STEPS, *UVIS_STEPS, *IR_STEPS, "RPTCORR", "EXPSCORR", "DRIZCORR")))


def _sets(material: Material) -> list[tuple[Member, list[Raw]]]:
    """List the products that combine two or more exposures, each with these exposures."""
    raws = {raw.root: raw for raw in material.raws}
    sets = []
    for product in (m for m in material.members if m.is_product and m.group != "DTH"):
        exposures = [raws[m.root] for m in material.members if m.type == f"EXP-{product.group}" and m.root in raws]
        if len(exposures) > 1:
            sets.append((product, exposures))
    return sets


def calacs(material: Material) -> tuple[Made, ...]:
    """Say what calacs.e makes of an exposure or association.

    Parameters
    ----------
    material : Material
        What it is given.

    Returns
    -------
    tuple of (str, str)
        ``flt`` of every exposure, ``flc`` where the transfer efficiency is corrected, ``crj`` and ``crc`` of sets of
        exposures, ``sfl`` of those of the SBC.
    """
    made: list[Made] = []
    for raw in material.raws:
        if _performs(raw.facts, ACS_STEPS):
            made.append((raw.root, "flt"))
            if _corrects_cte(raw.facts):
                made.append((raw.root, "flc"))
    for product, exposures in _sets(material):
        first = exposures[0].facts
        if _is(first, "DETECTOR", "SBC"):
            made += [(product.root, "sfl")] if _is(first, "RPTCORR", "PERFORM") else []
        # For a set that was split against cosmic rays the association decides, whatever CRCORR says.
        elif product.group.startswith("CR") or _is(first, "RPTCORR", "PERFORM"):
            made += [(product.root, "crj"), *([(product.root, "crc")] if _corrects_cte(first) else [])]
    return tuple(made) if any(suffix == "flt" for _, suffix in made) else ()


def calwf3(material: Material) -> tuple[Made, ...]:
    """Say what calwf3.e makes of an exposure or association.

    Parameters
    ----------
    material : Material
        What it is given.

    Returns
    -------
    tuple of (str, str)
        Infrared: ``flt`` and ``ima`` of every exposure, ``crj`` of repeated ones.  UVIS: ``flt`` (and ``flc`` where the
        transfer efficiency is corrected) of every exposure that is not only part of a set, ``crj`` and ``crc`` of sets.
    """
    made: list[Made] = []
    infrared = any(_is(raw.facts, "DETECTOR", "IR") for raw in material.raws)
    # Of UVIS the association decides, whatever CRCORR says; in the infrared CRCORR means fitting the ramp.
    sets = [
        (product, exposures)
        for product, exposures in _sets(material)
        if (_is(exposures[0].facts, "RPTCORR", "PERFORM") if infrared else product.group.startswith(("CR", "RP")))
    ]
    in_sets = {raw.root for _, exposures in sets for raw in exposures}
    for raw in material.raws:
        if infrared:
            made += [(raw.root, "flt"), (raw.root, "ima")] if _performs(raw.facts, IR_STEPS) else []
        elif _performs(raw.facts, UVIS_STEPS) and (raw.root not in in_sets or _is(raw.facts, "EXPSCORR", "PERFORM")):
            made += [(raw.root, "flt"), *([(raw.root, "flc")] if _corrects_cte(raw.facts) else [])]
    for product, exposures in sets:
        made += [(product.root, "crj"), *([(product.root, "crc")] if _corrects_cte(exposures[0].facts) else [])]
    return tuple(made)


def _corrects_cte(header: Header) -> bool:
    return _is(header, "PCTECORR", "PERFORM") and not any(_is(header, "DETECTOR", d) for d in ("SBC", "IR"))


def is_drizzled(material: Material) -> bool:
    """Say whether runastrodriz is to run: it reads DRIZCORR of the first exposure's raw header.

    Parameters
    ----------
    material : Material
        What it is given.

    Returns
    -------
    bool
    """
    return bool(material.raws) and _is(material.raws[0].facts, "DRIZCORR", "PERFORM")


def runastrodriz(material: Material) -> tuple[Made, ...]:
    """Say what runastrodriz makes of calibrated exposures.

    Parameters
    ----------
    material : Material
        What it is given.

    Returns
    -------
    tuple of (str, str)
        ``drz`` of the dithered product, else of the only one, else of the exposure; ``drc`` where there is an ``flc``.
    """
    if not is_drizzled(material):
        return ()
    products = [m for m in material.members if m.is_product]
    dithered = [m for m in products if m.group == "DTH"]
    root = (dithered or products or [Member(material.dataset, "")])[0].root
    return ((root, "drz"), *([(root, "drc")] if _corrects_cte(material.raws[0].facts) else []))


# ---- STIS

#: Steps that cs0.e does before it combines exposures (sciflags.c of STIS), and after.
STIS_FIRST_STEPS = ("DQICORR", "ATODCORR", "BIASCORR", "BLEVCORR")
STIS_BASIC_STEPS = ("LORSCORR", "GLINCORR", "LFLGCORR", "DARKCORR", "FLATCORR", "SHADCORR", "PHOTCORR")

#: What STIS asks of the headers, besides.
STIS_STEPS = (
    *(*STIS_FIRST_STEPS, *STIS_BASIC_STEPS),
    *("CRCORR", "RPTCORR", "EXPSCORR", "WAVECORR", "X1DCORR", "X2DCORR", "GEOCORR"),
)


def cs0(material: Material) -> tuple[Made, ...]:
    """Say what cs0.e makes of each STIS raw file.

    Parameters
    ----------
    material : Material
        What it is given; NEXTEND counts three extensions for each exposure in a file.

    Returns
    -------
    tuple of (str, str)
        ``flt``; ``crj`` of several exposures of the CCD; spectra ``x1d`` and ``x2d``, or ``sx1`` and ``sx2`` of a
        ``crj``; images that are corrected for distortion are ``x2d`` or ``sx2`` too.
    """
    made: list[Made] = []
    for raw in material.raws:
        # From x_wav.fits cs0.e makes x_wav_flt.fits: it replaces the suffix _raw only.
        root = raw.root if raw.suffix == "raw" else f"{raw.root}_{raw.suffix}"
        made += [(root, suffix) for suffix in _stis_products(raw.facts)]
    return tuple(made)


def _stis_products(header: Header) -> list[str]:
    several = int(header.get("NEXTEND", 3)) // 3 > 1
    ccd = _is(header, "DETECTOR", "CCD")
    basic = _performs(header, STIS_BASIC_STEPS)
    combines = several and ccd and _performs(header, ("CRCORR", "RPTCORR"))
    products = []
    if combines:
        products += ["crj", *(["flt"] if basic and _is(header, "EXPSCORR", "PERFORM") else [])]
    elif basic or _performs(header, STIS_FIRST_STEPS):
        products.append("flt")
    spectrum = _is(header, "OBSTYPE", "SPECTROSCOPIC")
    if spectrum and _is(header, "X1DCORR", "PERFORM"):
        products.append("sx1" if combines else "x1d")
    if _is(header, "X2DCORR" if spectrum else "GEOCORR", "PERFORM"):
        products.append("sx2" if combines else "x2d")
    # The sums of repeated MAMA exposures (sfl, sx2) are left out where nothing can be added: they are not asked for.
    return products


def stis_companions(header: Header) -> tuple[str, ...]:
    """Name the files that a STIS raw file cannot be calibrated without.

    Parameters
    ----------
    header : mapping
        The facts of the raw file.

    Returns
    -------
    tuple of str
        The wavelength calibration exposure that WAVECAL names, if WAVECORR needs it.
    """
    wavecal = str(header.get("WAVECAL", "")).strip().lower()
    needed = _is(header, "WAVECORR", "PERFORM") and _is(header, "OBSTYPE", "SPECTROSCOPIC")
    return (wavecal,) if needed and wavecal not in ("", "n/a") else ()
