"""The recipe table."""

from __future__ import annotations

import re
from typing import Any, get_args, get_type_hints

import pytest

from caldp import expectations
from caldp.dataset import Dataset
from caldp.errors import EXIT_CODES, CaldpError, UnsupportedError
from caldp.expectations import Material, Member, Raw
from caldp.instruments import INSTRUMENTS, Instrument, Program, recipe

ROWS = pytest.mark.parametrize("row", INSTRUMENTS.values(), ids=INSTRUMENTS.keys())

PROGRAMS = pytest.mark.parametrize(
    ("row", "program"),
    [(row, program) for row in INSTRUMENTS.values() for program in row.programs],
    ids=lambda value: value.name,
)


@ROWS
def test_rows_are_sound(row: Instrument) -> None:
    assert INSTRUMENTS[row.name] is row
    assert row.programs
    assert set(row.instruments) <= {"acs", "cos", "stis", "wfc3"}
    assert {"INSTRUME", "ROOTNAME"} <= set(row.facts)
    assert set(row.numbers) <= set(row.facts)
    assert len(row.facts) == len(set(row.facts))
    assert not set(row.raw) & set(row.support)
    assert set(row.instead) <= set(row.support)
    assert set(row.referenced) <= set(row.support)
    assert row.thumbnail > 0
    assert not set(row.spectra) & set(row.images)
    if row.name in ("svm", "mvm"):
        assert (row.reference_variable, row.composites, row.instruments) == ("", True, ("acs", "wfc3"))
    else:
        assert row.mast_suffixes
        assert re.fullmatch("[ijlo]ref", row.reference_variable)
        assert row.instruments == (row.name,)
        assert not row.composites


@PROGRAMS
def test_programs_are_sound(row: Instrument, program: Program) -> None:
    assert program.argv.count("{input}") == 1
    assert program.argv[-1] == "{input}"
    assert program.name == program.argv[0]
    assert program.call in get_args(get_type_hints(Program)["call"])
    assert issubclass(program.error, CaldpError)
    assert program.error.exit_code in EXIT_CODES
    assert not program.error.retriable
    assert "install" in program.remedy
    assert "caldp doctor" in program.remedy
    patterns = (*program.said_nothing_to_do, *(p for p, _ in program.said_failure), *program.out_of_memory)
    for pattern in patterns:
        re.compile(pattern)
    assert not {0, 1, 2} & {*program.tolerated, *program.nothing_viable}
    assert all(program.nothing_viable.values())
    assert bool(program.manifest) == (row.name in ("svm", "mvm"))
    assert program.manifest in ("", "{dataset}_manifest.txt")
    assert program.out_of_memory


@PROGRAMS
@pytest.mark.parametrize("shape", ["nothing", "exposure", "association"])
def test_rows_answer_whatever_the_headers_say(row: Instrument, program: Program, shape: str) -> None:
    facts: dict[str, Any] = dict.fromkeys(row.facts, "PERFORM") | dict.fromkeys(row.numbers, 1)
    raws = () if shape == "nothing" else (Raw("ldfd01vnq", row.raw[0], facts),)
    members = (Member("ldfd01vnq", "EXP-DTH"), Member("ldfd01010", "PROD-DTH")) if shape == "association" else ()
    material = Material("ldfd01010", raws, members)
    assert isinstance(program.applies(material), bool)
    for root, suffix in program.makes(material):
        assert re.fullmatch(r"[a-z0-9]{9}(_wav)?", root)
        assert re.fullmatch(r"[a-z0-9_]+", suffix)


@ROWS
def test_every_step_that_decides_a_product_is_among_the_facts(row: Instrument) -> None:
    steps = {
        "acs": (*expectations.ACS_STEPS, "RPTCORR", "DRIZCORR"),
        "wfc3": (*expectations.UVIS_STEPS, *expectations.IR_STEPS, "RPTCORR", "EXPSCORR", "DRIZCORR"),
        "cos": (*expectations.COS_STEPS, "TAGFLASH", "NUMFLASH", "FPPOS", "OBSMODE"),
        "stis": (*expectations.STIS_STEPS, "NEXTEND", "WAVECAL"),
    }
    wanted = {"DETECTOR", "OBSTYPE", "EXPTYPE", *steps.get(row.name, ())}
    assert wanted <= set(row.facts)


@ROWS
def test_what_is_dropped_would_be_kept(row: Instrument) -> None:
    for pattern in (*row.kept, *row.dropped):
        re.compile(pattern.replace("{roots}", "a|b").replace("{root}", "a").replace("{dataset}", "a"))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("ldfd01010", "cos"),
        ("j8cb010b0", "acs"),
        ("iacs01t4q", "wfc3"),
        ("obes03010", "stis"),
        ("acs_8ph_01", "svm"),
        ("wfc3_8ph_01", "svm"),
        ("skycell-p2381x06y09", "mvm"),
    ],
)
def test_every_kind_of_dataset_has_a_row(name: str, row: str) -> None:
    assert recipe(Dataset.parse(name)).name == row


@pytest.mark.parametrize(("name", "what"), [("n8cb010b0", "NICMOS"), ("u8cb010b0", "WFPC2"), ("y8cb010b0", "FOS")])
def test_other_instruments_are_refused_before_there_is_a_dataset(name: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}: {what} is not calibrated by this pipeline"):
        Dataset.parse(name)


@pytest.mark.parametrize(
    ("row", "commands"),
    [
        ("acs", ["calacs.e {input}", "runastrodriz -n 1 {input}"]),
        ("wfc3", ["calwf3.e {input}", "runastrodriz -n 1 {input}"]),
        ("cos", ["calcos -o {output} {input}"]),
        ("stis", ["cs0.e -tv {input}"]),
        ("svm", ["runsinglehap {input}"]),
        ("mvm", ["runmultihap {input}"]),
    ],
)
def test_the_programs_of_each_row(row: str, commands: list[str]) -> None:
    assert [" ".join(program.argv) for program in INSTRUMENTS[row].programs] == commands


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ("acs", "calacs.e+runastrodriz"),
        ("wfc3", "calwf3.e+runastrodriz"),
        ("cos", "calcos"),
        ("stis", "cs0.e"),
        ("svm", "runsinglehap"),
        ("mvm", "runmultihap"),
    ],
)
def test_how_each_row_calibrates_in_a_word(row: str, label: str) -> None:
    """Observations that were made go by it: another word would make them useless."""
    assert INSTRUMENTS[row].label == label


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("acs", "No memory left to allocate data."),
        ("wfc3", "ERROR:    Couldn't allocate memory for the image"),
        ("stis", "ERROR:    Out of memory."),
        ("cos", "MemoryError"),
        ("svm", "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array"),
    ],
)
def test_what_programs_say_for_want_of_memory(row: str, text: str) -> None:
    assert any(re.search(pattern, text) for pattern in INSTRUMENTS[row].programs[0].out_of_memory)


@PROGRAMS
@pytest.mark.parametrize(
    "text", ["ERROR:    One reference file was missing.", "peak memory 12 MB", "allocated 5 buffers"]
)
def test_other_words_are_not_taken_for_want_of_memory(row: Instrument, program: Program, text: str) -> None:
    assert not any(re.search(pattern, text) for pattern in program.out_of_memory)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("hst_9774_01_acs_wfc_f435w_j8ph01g3_flc.fits", True),
        ("hst_9774_01_acs_wfc_total_j8ph01_point-cat.ecsv", True),
        ("hst_9774_01_acs_wfc_f555w-pol0v_j8ph01_drc.fits", True),
        ("acs_8ph_01_manifest.txt", True),
        ("astrodrizzle.log", True),
        ("hst_9774_01_acs_wfc_total_j8ph01_metawcs_all_ref_cat.ecsv", False),
        ("hst_9774_02_acs_wfc_total_j8ph02_drc.fits", False),
        ("acs_8ph_02_manifest.txt", False),
        ("acs_8ph_01_input.log", False),
    ],
)
def test_what_is_delivered_of_a_visit(name: str, kept: bool) -> None:
    row = INSTRUMENTS["svm"]
    places = {"{dataset}": "acs_8ph_01", "{root}": "j8ph01", "{roots}": "acs_8ph_01"}

    def matches(patterns: tuple[str, ...]) -> bool:
        filled = list(patterns)
        for place, value in places.items():
            filled = [pattern.replace(place, value) for pattern in filled]
        return any(re.fullmatch(pattern, name) for pattern in filled)

    assert (matches(row.kept) and not matches(row.dropped)) == kept
