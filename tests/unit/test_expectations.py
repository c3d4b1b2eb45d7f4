"""What each program makes, case by case: from its source, or from a run of it that was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldp import expectations
from caldp.expectations import (
    COS_STEPS,
    Made,
    Material,
    Member,
    Raw,
    calacs,
    calcos,
    calwf3,
    cos_association_products,
    cos_products,
    cs0,
    is_drizzled,
    runastrodriz,
    stis_companions,
)
from tests.fakes import direct, stis
from tests.fakes.cos import SCIENCE

Header = dict[str, Any]

# ---- COS (calcos.py: globalSwitches, exptypes; accum.py; averages of x1d)

FACTS: Header = SCIENCE | {"NUMFLASH": 2}
COS_OMIT = dict.fromkeys(COS_STEPS, "OMIT")


@pytest.mark.parametrize(
    ("changes", "suffix", "products"),
    [
        ({}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a", "lampflash", "x1d"}),
        ({}, "rawtag_b", {"counts_b", "flt_b", "corrtag_b", "lampflash", "x1d"}),
        ({"DETECTOR": "NUV"}, "rawtag", {"counts", "flt", "corrtag", "lampflash", "x1d"}),
        ({"TAGFLASH": "NONE"}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a", "x1d"}),
        ({"NUMFLASH": 0}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a", "x1d"}),
        ({"WAVECORR": "OMIT"}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a", "x1d"}),
        ({"X1DCORR": "OMIT"}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a", "lampflash"}),
        ({"OBSMODE": "ACCUM"}, "rawaccum_b", {"counts_b", "flt_b", "corrtag_b", "x1d"}),
        ({"EXPTYPE": "ACQ/IMAGE", "OBSTYPE": "IMAGING", "OBSMODE": "ACCUM"}, "rawacq", {"counts", "flt"}),
        ({"EXPTYPE": "WAVECAL", "TAGFLASH": "NONE"}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a", "x1d"}),
        (COS_OMIT, "rawtag_a", set()),
        (COS_OMIT | {"RANDCORR": "perform"}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a"}),
        (COS_OMIT | {"DETECTOR": "NUV", "TEMPCORR": "PERFORM"}, "rawtag", set()),
        *[({"EXPTYPE": kind}, "rawacq", set()) for kind in ("ACQ/SEARCH", "ACQ/PEAKD", "ACQ/PEAKXD")],
        *[({"EXPTYPE": k, "TAGFLASH": "NONE"}, "rawtag_a", set()) for k in ("ENG DIAG", "ALIGN/OSM", "MEMORY DUMP")],
    ],
)
def test_products_of_a_cos_exposure(changes: Header, suffix: str, products: set[str]) -> None:
    answer = cos_products(FACTS | changes, suffix)
    assert set(answer) == products
    assert len(answer) == len(products)


@pytest.mark.parametrize(
    ("members", "products"),
    [
        ([{"FPPOS": p} for p in (1, 2, 3, 4)], ("x1dsum", "x1dsum1", "x1dsum2", "x1dsum3", "x1dsum4")),
        ([{"FPPOS": 3}, {"FPPOS": 3}], ("x1dsum", "x1dsum3")),
        ([{"FPPOS": 3}, {"FPPOS": 1, "EXPTYPE": "WAVECAL"}], ("x1dsum", "x1dsum3")),
        ([{"EXPTYPE": "WAVECAL"}], ()),
        ([{"EXPTYPE": "EXTERNAL/CAL"}], ()),
        ([{"EXPTYPE": "EXTERNAL/CAL", "TAGFLASH": "NONE", "FPPOS": 2}], ("x1dsum", "x1dsum2")),
        ([{"FPPOS": 0}, {"FPPOS": 4, "X1DCORR": "OMIT"}], ("x1dsum", "x1dsum4")),
        ([{"FPPOS": 1, "X1DCORR": "OMIT"}, {"FPPOS": 2}], ()),
        ([{"X1DCORR": "OMIT"}], ()),
        ([{"OBSTYPE": "IMAGING", "X1DCORR": "OMIT"}] * 2, ("fltsum",)),
        ([{"EXPTYPE": "ACQ/PEAKD"}], ()),
        ([], ()),
    ],
)
def test_products_of_a_cos_association(members: list[Header], products: tuple[str, ...]) -> None:
    assert cos_association_products([FACTS | m for m in members]) == products


def test_calcos_names_products_after_their_exposure_or_the_product_of_the_table() -> None:
    rows = (Member("la8q99ixq", "EXP-FP"), Member("la8q99030", "PROD-FP"))
    raws = (Raw("la8q99ixq", "rawtag", FACTS | {"DETECTOR": "NUV"}),)
    wanted = names("la8q99ixq", "counts", "flt", "corrtag", "lampflash", "x1d")
    assert set(calcos(Material("la8q99030", raws, rows))) == wanted | names("la8q99030", "x1dsum", "x1dsum3")
    assert set(calcos(Material("la8q99ixq", raws))) == wanted


def test_calcos_of_acquisitions_alone_makes_nothing() -> None:
    rows = (Member("la8q99ixq", "EXP-FP"), Member("la8q99030", "PROD-FP"))
    assert calcos(Material("la8q99030", (Raw("la8q99ixq", "rawacq", FACTS | {"EXPTYPE": "ACQ/PEAKD"}),), rows)) == ()


# ---- ACS and WFC3


def names(root: str, *suffixes: str) -> set[Made]:
    return {(root, suffix) for suffix in suffixes}


def exposure(facts: Header, root: str = "j8bt05njq") -> Material:
    return Material(root, (Raw(root, "raw", facts),))


def association(dataset: str, rows: list[tuple[str, str]], facts: Header, *others: Header) -> Material:
    members = tuple(Member(root, kind) for root, kind in rows)
    headers = iter([facts, *others, *[others[-1] if others else facts] * len(rows)])
    return Material(dataset, tuple(Raw(m.root, "raw", next(headers)) for m in members if not m.is_product), members)


def split(facts: Header, kind: str = "CRJ", product: str = "j8bt09041") -> Material:
    """A set of two exposures, j8bt09jcq and j8bt09jdq."""
    rows = [("j8bt09jcq", f"EXP-{kind}"), ("j8bt09jdq", f"EXP-{kind}"), (product, f"PROD-{kind}")]
    return association("j8bt09040", rows, facts)


BOTH = ("j8bt09jcq", "j8bt09jdq")
DITHER = [("j8bt05njq", "EXP-DTH"), ("j8bt05nkq", "EXP-DTH"), ("j8bt05020", "PROD-DTH")]


def test_acs_set_split_against_cosmic_rays() -> None:
    # Measured, as j8bt09040 with its product j8bt09041, and with a product that is named as the table.
    for product in ("j8bt09041", "j8bt09040"):
        material = split(direct.HRC | {"CRCORR": "PERFORM"}, product=product)
        made = calacs(material)
        assert set(made) == {*[(root, "flt") for root in BOTH], (product, "crj")}
        assert runastrodriz(material) == ((product, "drz"),)


@pytest.mark.parametrize("switches", [{"CRCORR": "OMIT"}, {}, {"EXPSCORR": "OMIT", "CRCORR": "PERFORM"}])
def test_acs_association_decides_whatever_crcorr_and_expscorr_say(switches: Header) -> None:
    # Measured with CRCORR = OMIT; and calacs.c makes flt files unless CRCORR and RPTCORR are both PERFORM.
    made = calacs(split(direct.HRC | switches))
    assert set(made) == {*[(root, "flt") for root in BOTH], ("j8bt09041", "crj")}


def test_acs_dithered_exposures() -> None:
    # Measured, of two exposures and of one.
    for rows in (DITHER, [DITHER[0], DITHER[2]]):
        material = association("j8bt05020", rows, direct.HRC)
        assert set(calacs(material)) == {(root, "flt") for root, kind in rows if kind == "EXP-DTH"}
        assert runastrodriz(material) == (("j8bt05020", "drz"),)


def test_acs_dithered_pairs_are_drizzled_into_one() -> None:
    rows = [
        *[("j8bt09jcq", "EXP-CR1"), ("j8bt09jdq", "EXP-CR1"), ("j8bt09041", "PROD-CR1")],
        *[("j8bt09jeq", "EXP-CR2"), ("j8bt09jfq", "EXP-CR2"), ("j8bt09042", "PROD-CR2")],
        ("j8bt09040", "PROD-DTH"),
    ]
    material = association("j8bt09040", rows, direct.WFC)
    made = calacs(material)
    assert {m for m in made if m[0].startswith("j8bt0904")} == names("j8bt09041", "crj", "crc") | names(
        "j8bt09042", "crj", "crc"
    )
    assert {suffix for root, suffix in made if root == "j8bt09jfq"} == {"flt", "flc"}
    assert set(runastrodriz(material)) == names("j8bt09040", "drz", "drc")


def test_acs_exposures() -> None:
    assert calacs(exposure(direct.HRC)) == (("j8bt05njq", "flt"),)
    assert set(calacs(exposure(direct.WFC))) == names("j8bt05njq", "flt", "flc")
    assert set(runastrodriz(exposure(direct.WFC))) == names("j8bt05njq", "drz", "drc")
    assert set(calacs(exposure(direct.WFC | {"PCTECORR": "OMIT"}))) == names("j8bt05njq", "flt")
    assert runastrodriz(exposure(direct.WFC | {"PCTECORR": "OMIT"})) == (("j8bt05njq", "drz"),)


def test_acs_sbc() -> None:
    sbc = direct.SBC | {"PCTECORR": "PERFORM", "CRCORR": "PERFORM"}
    assert calacs(exposure(sbc)) == (("j8bt05njq", "flt"),)
    assert runastrodriz(exposure(sbc)) == (("j8bt05njq", "drz"),)
    repeated = calacs(split(direct.SBC | {"RPTCORR": "PERFORM"}, "RPT"))
    assert set(repeated) == {*[(root, "flt") for root in BOTH], ("j8bt09041", "sfl")}


@pytest.mark.parametrize("step", expectations.ACS_STEPS)
def test_each_step_makes_calacs_work(step: str) -> None:
    assert ("j8bt05njq", "flt") in calacs(exposure(direct.HRC | direct.OMIT | {step: "PERFORM"}))


@pytest.mark.parametrize("step", ["CRCORR", "EXPSCORR", "DRIZCORR", "RPTCORR"])
def test_steps_that_calibrate_nothing_by_themselves(step: str) -> None:
    for program, facts in ((calacs, direct.HRC), (calwf3, direct.UVIS)):
        assert program(exposure(facts | direct.OMIT | {step: "PERFORM"})) == ()


@pytest.mark.parametrize("value", ["COMPLETE", "SKIPPED", "OMIT", "", 5, None])
def test_only_perform_is_perform(value: object) -> None:
    assert calacs(exposure(direct.HRC | direct.OMIT | {"DARKCORR": value})) == ()
    assert calacs(exposure(direct.HRC | direct.OMIT | {"DARKCORR": " perform "})) == (("j8bt05njq", "flt"),)


def test_nothing_is_made_of_exposures_that_ask_for_nothing() -> None:
    # Measured: "No calibration switch was set to PERFORM", exit status 0.
    assert calacs(exposure(direct.HRC | direct.OMIT)) == ()
    assert calwf3(exposure(direct.UVIS | direct.OMIT)) == ()
    assert calwf3(exposure(direct.IR | direct.OMIT)) == ()


def test_one_exposure_is_no_set() -> None:
    rows = [("j8bt09jcq", "EXP-CRJ"), ("j8bt09041", "PROD-CRJ")]
    assert calacs(association("j8bt09040", rows, direct.HRC)) == (("j8bt09jcq", "flt"),)
    uvis = direct.UVIS | {"CRCORR": "PERFORM", "EXPSCORR": "OMIT", "PCTECORR": "OMIT"}
    assert calwf3(association("j8bt09040", rows, uvis)) == (("j8bt09jcq", "flt"),)


def test_wfc3_infrared() -> None:
    # As the archive delivers iacs01t4q and ib8t01010: CRCORR fits the ramp and combines nothing.
    assert set(calwf3(exposure(direct.IR, "iacs01t4q"))) == names("iacs01t4q", "flt", "ima")
    assert runastrodriz(exposure(direct.IR, "iacs01t4q")) == (("iacs01t4q", "drz"),)
    rows = [("ib8t01htq", "EXP-DTH"), ("ib8t01hwq", "EXP-DTH"), ("ib8t01010", "PROD-DTH")]
    material = association("ib8t01010", rows, direct.IR | {"PCTECORR": "PERFORM"})
    assert set(calwf3(material)) == names("ib8t01htq", "flt", "ima") | names("ib8t01hwq", "flt", "ima")
    assert runastrodriz(material) == (("ib8t01010", "drz"),)


@pytest.mark.parametrize(("rptcorr", "sums"), [("PERFORM", {("j8bt09041", "crj")}), ("OMIT", set())])
def test_wfc3_infrared_repeated(rptcorr: str, sums: set[Made]) -> None:
    # procir.c: of the infrared the header decides.
    made = calwf3(split(direct.IR | {"RPTCORR": rptcorr}, "RPT"))
    assert set(made) == names("j8bt09jcq", "flt", "ima") | names("j8bt09jdq", "flt", "ima") | sums


@pytest.mark.parametrize("crcorr", ["PERFORM", "OMIT"])
@pytest.mark.parametrize(
    ("changes", "exposures", "sums"),
    [
        ({"EXPSCORR": "OMIT"}, (), ("crj", "crc")),
        ({"EXPSCORR": "PERFORM"}, ("flt", "flc"), ("crj", "crc")),
        ({"EXPSCORR": "PERFORM", "PCTECORR": "OMIT"}, ("flt",), ("crj",)),
    ],
)
def test_wfc3_uvis_sets(changes: Header, exposures: tuple[str, ...], sums: tuple[str, ...], crcorr: str) -> None:
    # procccd.c: flt of the exposures of a set for EXPSCORR only; wf3member.c: the association decides, not CRCORR.
    made = calwf3(split(direct.UVIS | {"CRCORR": crcorr} | changes))
    wanted = {*names("j8bt09jcq", *exposures), *names("j8bt09jdq", *exposures), *names("j8bt09041", *sums)}
    assert set(made) == wanted


def test_only_sets_are_combined() -> None:
    # wf3table.c and acstable.c look for -CR and -RP in the types of members.
    for program, facts in ((calwf3, direct.UVIS), (calacs, direct.WFC)):
        assert not names("j8bt09041", "crj", "crc") & set(program(split(facts | {"CRCORR": "PERFORM"}, "GO")))
        assert ("j8bt09041", "crj") in program(split(facts | {"RPTCORR": "PERFORM"}, "RP1"))


def test_wfc3_uvis_exposures() -> None:
    assert set(calwf3(exposure(direct.UVIS))) == names("j8bt05njq", "flt", "flc")
    material = association("j8bt05020", DITHER, direct.UVIS | {"EXPSCORR": "OMIT"})
    assert set(calwf3(material)) == names("j8bt05njq", "flt", "flc") | names("j8bt05nkq", "flt", "flc")
    # A set and an exposure outside of it.
    rows = [*[(root, "EXP-CR1") for root in BOTH], ("j8bt09041", "PROD-CR1"), ("j8bt09jeq", "EXP-DTH")]
    made = calwf3(association("j8bt09040", rows, direct.UVIS | {"EXPSCORR": "OMIT"}))
    assert set(made) == names("j8bt09041", "crj", "crc") | names("j8bt09jeq", "flt", "flc")


@pytest.mark.parametrize("value", ["OMIT", "COMPLETE", "SKIPPED"])
def test_drizzling_is_up_to_the_first_exposure(value: str) -> None:
    # runastrodriz.py reads DRIZCORR of the raw file of the first member.
    assert not is_drizzled(exposure(direct.HRC | {"DRIZCORR": value}))
    assert runastrodriz(exposure(direct.HRC | {"DRIZCORR": value})) == ()
    first, second = direct.HRC | {"DRIZCORR": value}, direct.HRC
    assert runastrodriz(association("j8bt05020", DITHER, first, second)) == ()
    assert runastrodriz(association("j8bt05020", DITHER, second, first)) == (("j8bt05020", "drz"),)
    assert not is_drizzled(Material("j8bt05020", ()))


# ---- STIS (calstis0.c and sciflags.c)


def made_of(facts: Header, exposures: int = 1, suffix: str = "raw") -> set[str]:
    root = "obes03010"
    wanted = root if suffix == "raw" else f"{root}_{suffix}"
    made = cs0(Material(root, (Raw(root, suffix, facts | {"NEXTEND": 3 * exposures}),)))
    assert {name for name, _ in made} <= {wanted}
    assert len(made) == len(set(made))
    return {kind for _, kind in made}


@pytest.mark.parametrize(
    ("facts", "exposures", "products"),
    [
        # As the archive delivers obes03010.
        (stis.CCD, 2, {"crj", "flt", "sx1", "sx2"}),
        (stis.CCD | {"EXPSCORR": "OMIT"}, 2, {"crj", "sx1", "sx2"}),
        (stis.CCD | {"CRCORR": "OMIT"}, 2, {"flt", "x1d", "x2d"}),
        (stis.CCD | {"CRCORR": "OMIT", "RPTCORR": "PERFORM"}, 2, {"crj", "flt", "sx1", "sx2"}),
        (stis.CCD, 1, {"flt", "x1d", "x2d"}),
        (stis.CCD | {"X1DCORR": "OMIT"}, 2, {"crj", "flt", "sx2"}),
        (stis.MAMA, 1, {"flt", "x1d", "x2d"}),
        # The sums of a MAMA are not asked for, since calstis may leave them out.
        (stis.MAMA | {"CRCORR": "PERFORM", "RPTCORR": "PERFORM"}, 3, {"flt", "x1d", "x2d"}),
        (stis.MAMA | {"X2DCORR": "OMIT"}, 1, {"flt", "x1d"}),
        (stis.IMAGE, 1, {"flt", "x2d"}),
        (stis.IMAGE | {"CRCORR": "PERFORM"}, 2, {"crj", "sx2"}),
        (stis.IMAGE | {"GEOCORR": "OMIT"}, 1, {"flt"}),
        # Extraction is for spectra, correction of distortion for images.
        (stis.IMAGE | {"GEOCORR": "OMIT", "X1DCORR": "PERFORM", "X2DCORR": "PERFORM"}, 1, {"flt"}),
        (stis.CCD | {"X2DCORR": "OMIT", "GEOCORR": "PERFORM"}, 1, {"flt", "x1d"}),
        (stis.CCD | stis.OMIT | {"CRCORR": "PERFORM", "EXPSCORR": "PERFORM"}, 2, {"crj"}),
        (stis.CCD | stis.OMIT | {"DQICORR": "PERFORM"}, 1, {"flt"}),
        (stis.CCD | stis.OMIT | {"X1DCORR": "PERFORM"}, 1, {"x1d"}),
        (stis.CCD | stis.OMIT, 1, set()),
        (stis.CCD | stis.OMIT | {"EXPTYPE": "ACQ"}, 2, set()),
    ],
)
def test_products_of_a_stis_file(facts: Header, exposures: int, products: set[str]) -> None:
    assert made_of(facts, exposures) == products


def test_stis_steps_of_acquisitions() -> None:
    # Measured, of ocmv0lw6q: nothing as it is, flt with three steps switched on.
    facts = stis.IMAGE | stis.OMIT | {"EXPTYPE": "ACQ"}
    assert made_of(facts) == set()
    assert made_of(facts | dict.fromkeys(("DQICORR", "DARKCORR", "FLATCORR"), "PERFORM")) == {"flt"}


def test_stis_wavelength_calibration_alone_keeps_its_suffix() -> None:
    # mkname.c cuts off "_raw" and nothing else: obes03010_wav_flt.fits.
    assert made_of(stis.CCD | {"EXPTYPE": "WAVECAL"}, suffix="wav") == {"flt", "x1d", "x2d"}
    assert cs0(Material("obes03010", (Raw("obes03010", "wav", stis.IMAGE),)))[0] == ("obes03010_wav", "flt")


@pytest.mark.parametrize(
    ("changes", "companions"),
    [
        ({}, ("obes03010_wav.fits",)),
        ({"WAVECORR": "OMIT"}, ()),
        ({"WAVECORR": "COMPLETE"}, ()),
        ({"OBSTYPE": "IMAGING"}, ()),
        ({"WAVECAL": "N/A"}, ()),
        ({"WAVECAL": " "}, ()),
    ],
)
def test_companions_of_a_stis_file(changes: Header, companions: tuple[str, ...]) -> None:
    assert stis_companions(stis.CCD | {"WAVECAL": "OBES03010_WAV.FITS"} | changes) == companions


# ---- whatever the headers say

_SWITCHES = ("PERFORM", "OMIT", "COMPLETE", "perform ", "", None, 3)


def _headers(steps: tuple[str, ...], detectors: tuple[str, ...]) -> st.SearchStrategy[Header]:
    keys = {step: st.sampled_from(_SWITCHES) for step in steps}
    keys |= {
        "DETECTOR": st.sampled_from(detectors),
        "OBSTYPE": st.sampled_from(["IMAGING", "SPECTROSCOPIC", "UNDEFINED", ""]),
        "EXPTYPE": st.sampled_from(["EXTERNAL/SCI", "ACQ/IMAGE", "ACQ/PEAKD", "WAVECAL", "DARK", "EXTERNAL/CAL", ""]),
        "OBSMODE": st.sampled_from(["TIME-TAG", "ACCUM", ""]),
        "TAGFLASH": st.sampled_from(["AUTO", "NONE", "N/A"]),
        "NUMFLASH": st.integers(0, 3),
        "FPPOS": st.integers(0, 4),
        "NEXTEND": st.integers(0, 12),
        "WAVECAL": st.sampled_from(["", "N/A", "OBES03010_WAV.FITS"]),
    }
    return st.fixed_dictionaries({}, optional=keys)


_COLUMNS = ("DTH", "CRJ", "CR1", "CR2", "RPT", "RP1", "FP", "SWAVE", "")


@st.composite
def _materials(draw: st.DrawFn, suffixes: tuple[str, ...], headers: st.SearchStrategy[Header]) -> Material:
    roots = draw(st.lists(st.sampled_from([f"j8bt05n{c}q" for c in "abcdef"]), unique=True, max_size=4))
    raws = tuple(Raw(root, draw(st.sampled_from(suffixes)), draw(headers)) for root in roots)
    if not draw(st.booleans()):
        return Material(roots[0] if roots else "j8bt05naq", raws[:1])
    rows = [Member(root, f"EXP-{draw(st.sampled_from(_COLUMNS))}") for root in roots]
    products = draw(st.lists(st.sampled_from(["j8bt05020", "j8bt05021", "j8bt05022"]), unique=True, max_size=3))
    rows += [Member(root, f"PROD-{draw(st.sampled_from(_COLUMNS))}") for root in products]
    return Material("j8bt05020", raws, tuple(rows))


def _check(program: Callable[[Material], tuple[Made, ...]], material: Material) -> None:
    made = program(material)
    assert isinstance(made, tuple)
    assert len(set(made)) == len(made)
    roots = {raw.root for raw in material.raws} | {m.root for m in material.members} | {material.dataset}
    for root, suffix in made:
        assert root[:9] in roots
        assert suffix.replace("_", "").isalnum()


_DIRECT = _materials(("raw",), _headers(expectations.DIRECT_STEPS, ("WFC", "HRC", "SBC", "UVIS", "IR", "")))


@given(_DIRECT)
def test_any_direct_image_has_an_answer(material: Material) -> None:
    for program in (calacs, calwf3, runastrodriz):
        _check(program, material)


@given(_DIRECT)
def test_nothing_is_drizzled_twice_and_only_where_it_is_asked_for(material: Material) -> None:
    made = runastrodriz(material)
    assert bool(made) == is_drizzled(material)
    assert len({root for root, _ in made}) <= 1


@given(_materials(("raw", "wav"), _headers(expectations.STIS_STEPS, ("CCD", "FUV-MAMA", "NUV-MAMA", ""))))
def test_any_stis_file_has_an_answer(material: Material) -> None:
    _check(cs0, material)
    for raw in material.raws:
        assert all(name == name.lower() for name in stis_companions(raw.facts))


@given(_materials(("rawtag", "rawtag_a", "rawtag_b", "rawacq", "rawaccum"), _headers(COS_STEPS, ("FUV", "NUV", ""))))
def test_any_cos_exposure_has_an_answer(material: Material) -> None:
    _check(calcos, material)
