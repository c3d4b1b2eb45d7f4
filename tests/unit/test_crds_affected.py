"""Which datasets a change of contexts affects: known answers, the rule, and that many at once are as one by one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from caldp import cli_campaign
from caldp.cli import main
from caldp.crdserver import affected, choices, differences, exposed
from caldp.crdserver.affected import Affected, find, select_stock
from caldp.crdserver.choices import DATE, Rule, quiet
from caldp.crdserver.columns import Table, encode, merge, pack
from caldp.crdserver.datasets import Datasets, Intake, import_headers
from caldp.crdserver.intake import files, take
from caldp.crdserver.stock import Stock
from caldp.crdserver.verdicts import Failure, Reason, compare, summed
from caldp.errors import InputError, ReferencesError
from caldp.local_store import LocalStore
from tests.fakes.headers import LETTERS, Generator, mixed

OLDEST, NEWEST = "hst_0600.pmap", "hst_0729.pmap"
HEADERS = ("test_cos.json", "canary.json", "bestrefs.special.json", "bestrefs_dnr_fix.json")


@pytest.fixture(scope="module")
def stock(shared_data: Path) -> Stock:
    return Stock(shared_data / "crds-contexts", "hst")


@pytest.fixture(scope="module")
def taken(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    """The catalogue of all datasets that were really taken."""
    store = LocalStore(tmp_path_factory.mktemp("store"))
    intake = Intake(store, "hst")
    sources = [shared_data / "dataset-headers" / name for name in HEADERS]
    for path in files([*sources, *(shared_data / name for name in ("acs-hrc", "cos-ldfd01010", "stis-acq"))]):
        take(intake, "hst", path)
    assert not intake.finish().rejected
    return Datasets(store, "hst")


@pytest.fixture(scope="module")
def drawn(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> tuple[Datasets, Affected]:
    """A catalogue of datasets that were never taken, and what crds says of each of them."""
    contexts = [stock.mapping(name) for name in (OLDEST, NEWEST)]
    headers = mixed(contexts, ("acs", "cos", "stis", "wfc3"), 800, seed=11)
    store = LocalStore(tmp_path_factory.mktemp("store"))
    assert not import_headers(store, "hst", headers.items()).rejected
    datasets = Datasets(store, "hst")
    return datasets, select_stock(stock, OLDEST, NEWEST, datasets)


def differing(found: Affected, asked: Affected) -> list[str]:
    """Name what two answers say otherwise; their failures are long."""
    names = {*found.datasets, *asked.datasets, *found.failed, *asked.failed}
    wrong = [
        name
        for name in sorted(names)
        if found.datasets.get(name) != asked.datasets.get(name) or found.failed.get(name) != asked.failed.get(name)
    ]
    return wrong + [name for name, counts in asked.instruments.items() if found.instruments.get(name) != counts]


def kinds(found: Affected, name: str) -> list[str]:
    return [reason.type for reason in found.datasets.get(name, ())]


# ---- known answers


def test_the_real_association_is_affected_as_known(stock: Stock, taken: Datasets) -> None:
    found = find(stock, "hst_0650.pmap", NEWEST, taken)
    reasons = {reason.type: (reason.old, reason.new) for reason in found.datasets["LDFD01010:LDFD01VNQ"]}
    assert reasons == {
        "bpixtab": ("yae1249sl_bpix.fits", "36d1836ml_bpix.fits"),
        "disptab": ("24914346l_disp.fits", "2a81746tl_disp.fits"),
        "gsagtab": ("23e16470l_gsag.fits", "34t20129l_gsag.fits"),
        "spwcstab": ("23n1744il_spwcs.fits", "2bj2256kl_spwcs.fits"),
        "tdstab": ("23n1744nl_tds.fits", "29o1427cl_tds.fits"),
    }
    assert found.products == ["la7803fiq", "lce31sw6q", "ldfd01010"]
    assert found.instruments["cos"].affected == 6 and found.instruments["cos"].types["tdstab"] == 4
    assert not found.instruments["stis"].affected and not found.failed


def test_single_real_exposures_are_affected_as_known(stock: Stock, taken: Datasets) -> None:
    found = find(stock, OLDEST, NEWEST, taken)
    assert kinds(found, "LCE31SW6Q:LCE31SW6Q") == ["bpixtab", "gsagtab"]
    assert found.datasets["J8BT05020:J8BT05NJQ"] == (Reason("imphttab", "08b1846tj_imp.fits", "2391649pj_imp.fits"),)
    assert not [name for name in found.datasets if name.startswith("O")]


def test_a_step_of_wfc3_affects_nothing_else(stock: Stock, taken: Datasets) -> None:
    found = find(stock, "hst_0728.pmap", NEWEST, taken)
    assert not found.datasets and not found.failed
    assert found.skipped == {"wfc3": "the catalogue has no datasets of it"}
    assert found.changed == (
        ("wfc3", "darkfile", "hst_wfc3_darkfile_0389.rmap", "hst_wfc3_darkfile_0390.rmap"),
        ("wfc3", "drkcfile", "hst_wfc3_drkcfile_0092.rmap", "hst_wfc3_drkcfile_0093.rmap"),
    )


def test_a_context_and_itself_differ_in_nothing(stock: Stock, taken: Datasets) -> None:
    found = find(stock, NEWEST, NEWEST, taken)
    assert not found.changed and not found.datasets and not found.instruments


def test_a_value_that_no_rule_knows_is_a_failure_and_the_dataset_is_not_named(
    stock: Stock, tmp_path: Path, shared_data: Path
) -> None:
    store = LocalStore(tmp_path)
    intake = Intake(store, "hst")
    take(intake, "hst", shared_data / "dataset-headers" / "bestrefs_new_error.json")
    intake.finish()
    found = find(stock, OLDEST, NEWEST, Datasets(store, "hst"))
    failures = found.failed["JA9553M3Q:JA9553M3Q"]
    assert {"biasfile", "darkfile"} <= {failure.type for failure in failures}
    assert any("parameter='CCDGAIN' value='2.4' is not in" in failure.text for failure in failures)
    assert not found.datasets


def test_a_context_that_is_not_there_is_told(stock: Stock, taken: Datasets) -> None:
    with pytest.raises(ReferencesError, match=r"hst_0001\.pmap"):
        find(stock, "hst_0001.pmap", NEWEST, taken)


# ---- many at once, and one by one


def test_many_at_once_are_as_one_by_one(stock: Stock, drawn: tuple[Datasets, Affected]) -> None:
    datasets, asked = drawn
    assert not differing(find(stock, OLDEST, NEWEST, datasets), asked)
    assert len(asked.datasets) > 100 and len(asked.failed) > 100
    assert asked.instruments["acs"].withheld


def test_only_some_instruments_can_be_looked_at(stock: Stock, drawn: tuple[Datasets, Affected]) -> None:
    datasets, asked = drawn
    found = find(stock, OLDEST, NEWEST, datasets, instruments=["cos"])
    assert set(found.instruments) == {"cos"} and {one[0] for one in found.changed} == {"cos"}
    assert found.datasets == {name: why for name, why in asked.datasets.items() if name[0] == "L"}


@pytest.mark.parametrize("broken", ["gain", "thresholds", "late"])
def test_the_comparison_would_see_a_fault(
    stock: Stock, drawn: tuple[Datasets, Affected], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "gain":
        monkeypatch.setattr(choices, "_ALWAYS", ("DETECTOR",))
    elif broken == "thresholds":
        monkeypatch.setattr(choices, "_HOOKS", dict.fromkeys(choices._HOOKS, ()))
    else:
        clocks = exposed._clocks
        monkeypatch.setattr(exposed, "_clocks", lambda values: clocks(values) + 1_000_000)
    datasets, asked = drawn
    assert differing(find(stock, OLDEST, NEWEST, datasets), asked)


def test_hooks_that_nobody_has_read_are_asked_for_each_date(
    stock: Stock, drawn: tuple[Datasets, Affected], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "_READ", {})
    choices._is_as_read.cache_clear()
    imap = stock.mapping(NEWEST).get_imap("acs")
    try:
        assert not Rule(imap, "biasfile", imap.get_required_parkeys()).by_date
        found = find(stock, OLDEST, NEWEST, drawn[0])
    finally:
        choices._is_as_read.cache_clear()
    assert not differing(found, drawn[1])


def test_the_hooks_of_crds_are_those_that_were_read(stock: Stock) -> None:
    for context in ("hst_0600.pmap", NEWEST):
        pmap = stock.mapping(context)
        for instrument in LETTERS:
            if instrument not in pmap.selections:
                continue
            imap = pmap.get_imap(instrument)
            for kind in imap.selections:
                assert Rule(imap, kind, imap.get_required_parkeys()).by_date, (instrument, kind)


def headers_of(pmap: Any, instrument: str, count: int) -> Iterator[dict[str, str]]:
    from crds.core import utils

    for _, header in Generator([pmap], instrument, 5).headers(count):
        yield pmap.minimize_header(utils.condition_header(header))


@pytest.mark.parametrize("instrument", sorted(LETTERS))
def test_steps_say_for_any_date_what_crds_says(stock: Stock, instrument: str) -> None:
    """For all types, also those that no step between the contexts here has changed; synphot has no dates."""
    pmap = stock.mapping(NEWEST)
    imap = pmap.get_imap(instrument)
    keywords = [*imap.get_required_parkeys(), "INSTRUME"]
    rules = {kind: Rule(imap, kind, keywords) for kind in imap.selections}
    named = 0
    with quiet():
        for header in headers_of(pmap, instrument, 12):
            date = " ".join(header.get(keyword, "") for keyword in DATE)
            for kind, rule in rules.items():
                some = {key: value for key, value in header.items() if key in rule.keys or key in DATE}
                said = imap.get_best_references(header, include=[kind]).get(kind)
                assert rule.result(some) == said, (kind, header)
                instant = exposed.parse(date)
                if instant == exposed.MALFORMED and instrument != "synphot":
                    continue
                steps = rule.steps({**dict.fromkeys(DATE, ""), **some})
                place = sum(at <= instant for at in steps.at)
                assert steps.results[place] == said, (kind, header)
                assert list(steps.at) == sorted(steps.at) and len(steps.results) == len(steps.at) + 1
                named += bool(said) and not str(said).startswith("NOT FOUND")
    assert named > 5


class Shown:
    """A catalogue of one instrument that no store would take."""

    def __init__(self, instrument: str, headers: Mapping[str, dict[str, str]]) -> None:
        self._instrument = instrument
        rows = [(f"{name}:{name}", header) for name, header in headers.items()]
        self._table = Table(pack(merge(None, encode(rows, 0))[0]))

    def table(self, instrument: str) -> Table:
        return self._table if instrument == self._instrument else Table(pack(merge(None, encode([], 0))[0]))


def test_what_has_no_dates_is_compared_as_well(stock: Stock) -> None:
    old = "hst_0700.pmap"
    generator = Generator([stock.mapping(name) for name in (old, NEWEST)], "synphot", 1)
    datasets: Any = Shown("synphot", {f"S{number:07}Q": generator.header() for number in range(60)})
    found, asked = find(stock, old, NEWEST, datasets), select_stock(stock, old, NEWEST, datasets)
    assert not differing(found, asked)
    assert found.instruments["synphot"].datasets == 60 and found.failed


def test_jwst_is_asked_one_by_one(shared_data: Path, tmp_path: Path) -> None:
    stock = Stock(shared_data / "crds-contexts-jwst", "jwst")
    header = {
        "META.INSTRUMENT.NAME": "NIRCAM",
        "META.INSTRUMENT.DETECTOR": "NRCA1",
        "META.INSTRUMENT.CHANNEL": "SHORT",
        "META.INSTRUMENT.MODULE": "A",
        "META.INSTRUMENT.FILTER": "F070W",
        "META.INSTRUMENT.PUPIL": "CLEAR",
        "META.EXPOSURE.TYPE": "NRC_IMAGE",
        "META.EXPOSURE.READPATT": "RAPID",
        "META.SUBARRAY.NAME": "FULL",
        "META.OBSERVATION.DATE": "2022-07-01",
        "META.OBSERVATION.TIME": "00:00:00",
        "META.VISIT.TSOVISIT": "F",
    }
    store = LocalStore(tmp_path)
    assert not import_headers(store, "jwst", [("JW01001001001_01101_00001.NRCA1", header)]).rejected
    found = find(stock, "jwst_0480.pmap", "jwst_0541.pmap", Datasets(store, "jwst"))
    assert found.instruments["nircam"].datasets == 1
    assert set(found.datasets) | set(found.failed)


# ---- the rule


@pytest.mark.parametrize(
    ("old", "new", "reason", "failed"),
    [
        ("a.fits", "a.fits", None, ""),
        ("a.fits", "A.FITS", None, ""),
        ("a.fits", "b.fits", ("a.fits", "b.fits"), ""),
        ("a.fits", "NOT FOUND n/a", ("a.fits", "n/a"), ""),
        ("NOT FOUND n/a", "a.fits", ("n/a", "a.fits"), ""),
        ("NOT FOUND n/a", "NOT FOUND n/a", None, ""),
        (None, None, None, ""),
        ("NOT FOUND No match found.", "a.fits", ("not found no match found.", "a.fits"), "old"),
        (None, "a.fits", ("undefined", "a.fits"), "old"),
        ("NOT FOUND it broke", "NOT FOUND n/a", ("not found it broke", "n/a"), "old"),
        ("a.fits", "NOT FOUND No match found.", None, "new"),
        ("a.fits", "NOT FOUND it broke", None, "new"),
        ("a.fits", None, None, "new"),
        ("NOT FOUND n/a", None, None, "new"),
        ("NOT FOUND it broke", "NOT FOUND it broke", None, "old new"),
        ("NOT FOUND No match found.", "NOT FOUND No match found.", None, "old new"),
    ],
)
def test_two_choices_are_compared_as_the_client_does(
    old: str | None, new: str | None, reason: tuple[str, str] | None, failed: str
) -> None:
    verdict = compare("darkfile", old, new)
    assert verdict.reason == (Reason("darkfile", *reason) if reason else None)
    assert " ".join(failure.context for failure in verdict.failures) == failed
    assert verdict.is_fatal == ("new" in failed)


def test_a_failure_of_the_new_context_in_one_type_outweighs_the_others() -> None:
    verdicts = [compare("biasfile", "a.fits", "b.fits"), compare("darkfile", "a.fits", "NOT FOUND it broke")]
    reasons, failures, is_fatal = summed(verdicts)
    assert reasons == (Reason("biasfile", "a.fits", "b.fits"),) and is_fatal
    assert failures == (Failure("darkfile", "new", "Bestref FAILED:  it broke"),)


def test_datasets_before_the_first_new_reference_are_not_looked_at(stock: Stock, tmp_path: Path) -> None:
    difference = differences.find(stock, "hst_0728.pmap", NEWEST)
    assert difference.types == {"wfc3": ("darkfile", "drkcfile")}
    since = difference.since["wfc3"]
    assert since > "2019"
    generator = Generator([stock.mapping(NEWEST)], "wfc3", 2)
    date, time = since.split(" ")
    dates = {"I1AAAAAAQ": (date, time), "I2AAAAAAQ": (date, "00:00"), "I3AAAAAAQ": ("2018-12-31", "23:59:59")}
    headers = {name: {**generator.plain(), **dict(zip(DATE, pair, strict=True))} for name, pair in dates.items()}
    store = LocalStore(tmp_path)
    import_headers(store, "hst", headers.items())
    found = find(stock, "hst_0728.pmap", NEWEST, Datasets(store, "hst"))
    assert (found.instruments["wfc3"].since, found.instruments["wfc3"].early) == (since, 1 + (time > "00:00"))


def test_rules_that_were_changed_otherwise_are_looked_at_for_all_dates(stock: Stock) -> None:
    difference = differences.find(stock, OLDEST, NEWEST)
    assert set(difference.since.values()) == {differences.ALWAYS}
    assert difference.types.keys() == difference.since.keys() == {"acs", "cos", "stis", "wfc3"}


def test_the_json_form_says_all(drawn: tuple[Datasets, Affected], stock: Stock, taken: Datasets) -> None:
    for found in (drawn[1], find(stock, OLDEST, NEWEST, taken)):
        again = Affected.from_json(json.loads(json.dumps(found.to_json())))
        assert again == found, differing(again, found)


def test_crds_says_nothing_while_millions_are_asked() -> None:
    from crds.core import log

    before = log.get_verbose()
    first, second = quiet(), quiet()
    with first:
        second.__enter__()
        assert log.get_verbose() == -3
    assert log.get_verbose() == -3  # another one still looks
    second.__exit__(None, None, None)
    assert log.get_verbose() == before


def test_a_header_of_no_instrument_cannot_be_asked_for(stock: Stock) -> None:
    with pytest.raises(InputError, match="instrument"):
        affected.stock_choices(stock, NEWEST, differences.Difference(), {"DETECTOR": "WFC"})


# ---- the command


@pytest.fixture
def place(tmp_path: Path, taken: Datasets, shared_data: Path) -> tuple[str, ...]:
    return ("--store", taken.store.uri, "--cache", str(shared_data / "crds-contexts"))


def run(*argv: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["crds", "affected", *argv])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_command_prints_datasets_and_why(place: tuple[str, ...], tmp_path: Path) -> None:
    listing = tmp_path / "again.ids"
    code, out, err = run("hst_0650.pmap", NEWEST, *place, "--output", str(listing), "--check", "20")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "LDFD01VNQ" in line]
    assert line.startswith("LDFD01010:LDFD01VNQ  bpixtab yae1249sl_bpix.fits -> 36d1836ml_bpix.fits, disptab ")
    assert "cos: 6 of 8 datasets are affected" in err and "crds says the same of 11 datasets" in err
    assert listing.read_text() == "la7803fiq\nlce31sw6q\nldfd01010\n"
    code, out, _ = run("hst_0650.pmap", NEWEST, *place, "--json", "--instruments", "cos")
    assert code == 0 and Affected.from_json(json.loads(out)).products == ["la7803fiq", "lce31sw6q", "ldfd01010"]


def test_a_check_that_fails_is_an_error(place: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = affected.find

    def dishonest(*args: Any, **keys: Any) -> Affected:
        found = honest(*args, **keys)
        found.datasets.pop("LDFD01010:LDFD01VNQ")  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(affected, "find", dishonest)
    monkeypatch.setattr(random, "sample", lambda names, count: list(names))
    code, _, err = run("hst_0650.pmap", NEWEST, *place, "--check", "20")
    assert code == 1 and "LDFD01010:LDFD01VNQ" in err


def test_a_campaign_calibrates_the_products_with_the_new_context(
    place: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def submit(argv: list[str], prog_name: str) -> None:
        given.append([Path(argv[0]).read_text(), *argv[1:]])

    monkeypatch.setattr(cli_campaign.submit_command, "main", submit)
    batch = f"file:{tmp_path / 'batch'}"
    code, out, err = run("hst_0650.pmap", NEWEST, *place, "--submit", batch, "--input", "file:raw", "-j", "2")
    assert (code, out) == (0, ""), err
    assert given == [
        ["la7803fiq\nlce31sw6q\nldfd01010\n", batch, "--input", "file:raw", "-j", "2"]
        + ["--label", f"hst_0650.pmap -> {NEWEST}", "--context", NEWEST]
    ]
    code, _, err = run("hst_0728.pmap", NEWEST, *place, "--submit", batch)
    assert code == 0 and "nothing to calibrate" in err and len(given) == 1


def test_the_options_of_a_campaign_are_its_own(place: tuple[str, ...], tmp_path: Path) -> None:
    batch = f"file:{tmp_path / 'batch'}"
    code, out, _ = run("hst_0650.pmap", NEWEST, *place, "--submit", batch, "--dry-run", "--json")
    assert code == 0 and not (tmp_path / "batch").exists()
    assert json.loads(out)["datasets"] == 3
    code, _, err = run("hst_0650.pmap", NEWEST, *place, "--submit", batch, "--nonsense")
    assert code == 2 and "--nonsense" in err


def test_the_command_says_what_is_wrong_in_a_line(place: tuple[str, ...], tmp_path: Path) -> None:
    empty = f"file:{tmp_path / 'empty'}"
    for argv, wanted, word in (
        (("hst_0001.pmap", NEWEST, *place), 27, "hst_0001.pmap"),
        (("latest", NEWEST, *place), 2, "latest"),
        (("hst_0650.pmap", NEWEST, "--store", empty), 21, "caldp crds datasets import"),
        (("hst_0650.pmap", NEWEST, *place, "--instruments", "nonsense"), 21, "nonsense"),
        (("hst_0650.pmap", NEWEST, *place, "--output", "x.txt"), 2, "x.txt"),
        (("hst_0650.pmap", NEWEST, *place, "--output", str(tmp_path / "no" / "x.ids")), 29, "x.ids"),
        (("hst_0650.pmap", NEWEST, *place, "--nonsense"), 2, "--nonsense"),
        (("hst_0650.pmap", NEWEST, *place, "--submit", "nonsense"), 2, "nonsense"),
        (("hst_0650.pmap", NEWEST, *place[:2], "--cache", str(tmp_path)), 2, "CRDS cache"),
    ):
        code, _, err = run(*argv)
        assert code == wanted and word in err and err.count("\n") == 1, (argv, code, err)


def test_contexts_come_from_the_store_if_it_has_them(taken: Datasets, tmp_path: Path, shared_data: Path) -> None:
    import shutil

    root = Path(shutil.copytree(Path(taken.store.uri.removeprefix("file:")), tmp_path / "crds"))
    shutil.copytree(shared_data / "crds-contexts" / "mappings", root / "mappings")
    code, out, _ = run("hst_0650.pmap", NEWEST, "--store", f"file:{root}")
    assert code == 0 and len(out.splitlines()) == 6
