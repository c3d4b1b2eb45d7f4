"""The recipe table."""

from __future__ import annotations

import re
from typing import Any

import pytest

from caldp.dataset import Dataset
from caldp.errors import UnsupportedError
from caldp.instruments import COS_STEPS, INSTRUMENTS, Instrument, cos_association_products, cos_products, recipe
from tests.fakes.cos import SCIENCE

FACTS: dict[str, Any] = SCIENCE | {"NUMFLASH": 2}
OMIT = dict.fromkeys(COS_STEPS, "OMIT")


@pytest.mark.parametrize("row", INSTRUMENTS.values(), ids=INSTRUMENTS.keys())
def test_rows_are_sound(row: Instrument) -> None:
    assert INSTRUMENTS[row.name] is row
    assert row.program.count("{input}") == 1
    assert not set(row.raw) & set(row.support)
    assert {"INSTRUME", "ROOTNAME"} <= set(row.facts)
    assert re.fullmatch("[a-z]ref", row.reference_variable)
    for pattern in (*(p for p, _ in row.warnings_of_failure), *row.out_of_memory):
        re.compile(pattern)
    assert 0 not in row.tolerated


def test_cos_has_a_row() -> None:
    assert recipe(Dataset.parse("ldfd01010")).name == "cos"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("j8cb010b0", "ACS data are"),
        ("iacs01t4q", "WFC3 data are"),
        ("obes03010", "STIS data are"),
        ("acs_8ph_01", "single-visit mosaics are"),
        ("skycell-p2381x06y09", "multi-visit mosaics are"),
    ],
)
def test_what_has_no_row_is_refused(name: str, what: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        recipe(Dataset.parse(name))
    assert f"{name}: {what} not calibrated by this version" in str(caught.value)
    assert "COS" in caught.value.remedy


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
        (OMIT, "rawtag_a", set()),
        (OMIT | {"RANDCORR": "perform"}, "rawtag_a", {"counts_a", "flt_a", "corrtag_a"}),
        (OMIT | {"DETECTOR": "NUV", "TEMPCORR": "PERFORM"}, "rawtag", set()),
        *[({"EXPTYPE": kind}, "rawacq", set()) for kind in ("ACQ/SEARCH", "ACQ/PEAKD", "ACQ/PEAKXD")],
        *[({"EXPTYPE": k, "TAGFLASH": "NONE"}, "rawtag_a", set()) for k in ("ENG DIAG", "ALIGN/OSM", "MEMORY DUMP")],
    ],
)
def test_products_of_a_cos_exposure(changes: dict[str, Any], suffix: str, products: set[str]) -> None:
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
def test_products_of_a_cos_association(members: list[dict[str, Any]], products: tuple[str, ...]) -> None:
    assert cos_association_products([FACTS | m for m in members]) == products
