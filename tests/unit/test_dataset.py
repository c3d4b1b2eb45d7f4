"""Names of datasets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldp.dataset import INSTRUMENT_LETTERS, OTHER_LETTERS, Dataset
from caldp.errors import UnsupportedError, UsageError

BAD = {
    "empty": "",
    "8 characters": "ldfd01vn",
    "10 characters": "ldfd01vnqq",
    "newline": "ldfd01vnq\n",
    "leading blank": " ldfd01vnq",
    "two names": "ldfd01vnq ldfd01vpq",
    "file name": "ldfd01vnq_rawtag_a.fits",
    "path": "./ldfd01vnq",
    "parent": "../01vnq",
    "glob": "ldfd01vn*",
    "nul": "ldfd01vn\0",
    "Kelvin sign, lower case k": "ldfd01vn\u212a",
    "dotless i": "\u0131acs01t4q",
    "full width l": "\uff4cdfd01vnq",
    "Arabic digit": "ldfd01vn\u0661",
    "Cyrillic o": "\u043ebes03010",
    "unknown first letter": "a8cb010b0",
    "digit first": "18cb010b0",
    "svm of cos": "cos_8ph_01",
    "svm with more (D12)": "acs_8ph_01_extra",
    "svm with less": "acs_8ph_0",
    "svm before": "x_acs_8ph_01",
    "mvm with more (D12)": "skycell-p2381x06y09junk",
    "mvm with less": "skycell-p238x06y09",
    "mvm newline": "skycell-p2381x06y09\n",
    "mvm before": "hst_skycell-p2381x06y09",
}


@pytest.mark.parametrize(
    ("typed", "name", "kind", "instrument"),
    [
        ("j8cb010b0", "j8cb010b0", "ipppssoot", "acs"),
        ("LDFD01010", "ldfd01010", "ipppssoot", "cos"),
        ("lDfD01vNq", "ldfd01vnq", "ipppssoot", "cos"),
        ("iacs01t4q", "iacs01t4q", "ipppssoot", "wfc3"),
        ("obes03010", "obes03010", "ipppssoot", "stis"),
        ("acs_8ph_01", "acs_8ph_01", "svm", "acs"),
        ("WFC3_EL3_1N", "wfc3_el3_1n", "svm", "wfc3"),
        ("SKYCELL-P2381X06Y09", "skycell-p2381x06y09", "mvm", "mvm"),
    ],
)
def test_good_names(typed: str, name: str, kind: str, instrument: str) -> None:
    dataset = Dataset.parse(typed)
    assert dataset == Dataset(name, kind, instrument)
    assert str(dataset) == name
    assert dataset.prefix == f"data/{instrument}/{name}"
    assert dataset.to_json() == {"name": name, "kind": kind, "instrument": instrument}


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("j8cb010b0", "j8cb010b0"),
        ("ldfd01vnq", "ldfd01vnq"),
        ("ACS_8PH_01", "j8ph01"),
        ("wfc3_el3_1n", "iel31n"),
        ("skycell-p2381x06y09", "skycell-p2381x06y09"),
    ],
)
def test_what_the_names_of_files_begin_with(name: str, root: str) -> None:
    assert Dataset.parse(name).root == root


@pytest.mark.parametrize("typed", BAD.values(), ids=BAD.keys())
def test_d12_neighbours_of_good_names_are_refused(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        Dataset.parse(typed)
    assert caught.type is UsageError
    assert repr(typed) in caught.value.message
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("letter", "what"), OTHER_LETTERS.items())
def test_d12_other_instruments_are_named_with_the_id(letter: str, what: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Dataset.parse(f"{letter.upper()}2AB0101T")
    assert f"{letter}2ab0101t: {what}" in str(caught.value)
    assert "{dataset}" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_letter_means_two_things() -> None:
    assert not INSTRUMENT_LETTERS.keys() & OTHER_LETTERS.keys()


def test_long_nonsense_makes_a_short_message() -> None:
    with pytest.raises(UsageError) as caught:
        Dataset.parse("l" * 100_000)
    assert len(str(caught.value)) < 400


@given(st.text() | st.from_regex(r"[A-Za-z]?[a-z0-9_\-]{0,20}\n?"))
def test_any_text_is_a_dataset_or_a_usage_error(text: str) -> None:
    try:
        dataset = Dataset.parse(text)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert dataset.name == text.lower()
        assert Dataset.parse(dataset.name.upper()) == dataset


@given(st.from_regex(r"[ijlo][a-z0-9]{8}", fullmatch=True), st.sampled_from("_- .*/\\\n\0é"), st.integers(0, 8))
def test_one_foreign_character_is_enough(name: str, character: str, place: int) -> None:
    assert Dataset.parse(name).name == name
    with pytest.raises(UsageError):
        Dataset.parse(name[:place] + character + name[place + 1 :])
