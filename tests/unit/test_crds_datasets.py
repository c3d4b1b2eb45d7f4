"""The catalogue of the parameters of datasets: what goes in, what comes out, and what happens to many at once."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from caldp.cli import main
from caldp.crdserver import columns, exposed, intake
from caldp.crdserver.columns import Column
from caldp.crdserver.datasets import Counts, Datasets, Intake, import_headers, import_table, two_parts
from caldp.errors import BusyError, InputError
from caldp.local_store import LocalStore
from caldp.store import ConflictError, PutMode

COS = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2014-01-24", "TIME-OBS": "07:14:45.213332"}
ACS = {"INSTRUME": "ACS", "DETECTOR": "WFC", "DATE-OBS": "2009-07-07", "TIME-OBS": "22:08:24.579999"}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def catalogue(store: LocalStore) -> Datasets:
    return Datasets(store, "hst")


def objects(store: LocalStore) -> set[str]:
    return {entry.key for entry in store.walk("datasets")}


# ---- what goes in comes out


def test_headers_come_out_as_they_went_in(store: LocalStore, catalogue: Datasets) -> None:
    done = import_headers(store, "hst", [("ldfd01010:ldfd01vnq", COS), ("JA9553M3Q", ACS)])
    assert done.instruments == {"acs": Counts(1, 0, 1), "cos": Counts(1, 0, 1)}
    assert catalogue.instruments() == ["acs", "cos"]
    assert catalogue.ids("cos") == ["LDFD01010:LDFD01VNQ"]
    assert catalogue.headers(["LDFD01010:LDFD01VNQ", "JA9553M3Q:JA9553M3Q"]) == {
        "LDFD01010:LDFD01VNQ": COS,
        "JA9553M3Q:JA9553M3Q": ACS,
    }


def test_a_keyword_that_a_header_does_not_have_is_not_an_empty_one(store: LocalStore, catalogue: Datasets) -> None:
    import_headers(store, "hst", [("LAAAAAAAQ", {**COS, "SEGMENT": ""}), ("LBBBBBBBQ", COS)])
    found = catalogue.headers(["LAAAAAAAQ", "LBBBBBBBQ"])
    assert found["LAAAAAAAQ:LAAAAAAAQ"] == {**COS, "SEGMENT": ""}
    assert found["LBBBBBBBQ:LBBBBBBBQ"] == COS


def test_another_import_replaces_rows_whole_and_keeps_the_others(store: LocalStore, catalogue: Datasets) -> None:
    import_headers(store, "hst", [("LAAAAAAAQ", {**COS, "SEGMENT": "FUVA"}), ("LBBBBBBBQ", COS)])
    begun = datetime.now(UTC).replace(microsecond=0)
    done = import_headers(store, "hst", [("LAAAAAAAQ", {**COS, "OPT_ELEM": "G130M"}), ("LCCCCCCCQ", COS)])
    written = catalogue.table("cos").arrow().column("written").to_pylist()
    assert all(begun - timedelta(seconds=60) < one <= datetime.now(UTC) for one in written)
    assert done.instruments == {"cos": Counts(1, 1, 3)}
    found = catalogue.headers(["LAAAAAAAQ", "LBBBBBBBQ", "LCCCCCCCQ"])
    assert found["LAAAAAAAQ:LAAAAAAAQ"] == {**COS, "OPT_ELEM": "G130M"}
    assert found["LBBBBBBBQ:LBBBBBBBQ"] == found["LCCCCCCCQ:LCCCCCCCQ"] == COS


def test_of_two_entries_of_one_name_the_later_counts(store: LocalStore, catalogue: Datasets) -> None:
    import_headers(store, "hst", [("LAAAAAAAQ", {**COS, "SEGMENT": one}) for one in ("FUVA", "FUVB")])
    assert catalogue.headers(["LAAAAAAAQ"])["LAAAAAAAQ:LAAAAAAAQ"] == {**COS, "SEGMENT": "FUVB"}


def test_a_product_gives_all_its_exposures_and_an_exposure_its_pair(store: LocalStore, catalogue: Datasets) -> None:
    names = ["LDFD01010:LDFD01VNQ", "LDFD01010:LDFD01VPQ", "LDFD0101A:LDFD01VQQ", "LDFD01VRQ:LDFD01VRQ"]
    import_headers(store, "hst", [(name, COS) for name in names])
    assert sorted(catalogue.headers(["ldfd01010"])) == names[:2]
    assert sorted(catalogue.headers(["LDFD01VPQ"])) == [names[1]]
    assert sorted(catalogue.headers(["LDFD01VRQ"])) == [names[3]]
    assert sorted(catalogue.headers([names[0], "LDFD01VNQ", "LDFD01010"])) == names[:2]


def test_an_unknown_dataset_of_a_known_instrument_is_told_in_its_place(store: LocalStore, catalogue: Datasets) -> None:
    import_headers(store, "hst", [("LAAAAAAAQ", COS)])
    found = catalogue.headers(["LZZZZZZZQ", "LAAAAAAAQ", "JZZZZZZZQ", "LAAAAAAAQ:LZZZZZZZQ"])
    assert found.pop("LAAAAAAAQ:LAAAAAAAQ") == COS
    assert {name: str(text)[:9] for name, text in found.items()} == dict.fromkeys(
        ("LZZZZZZZQ:LZZZZZZZQ", "JZZZZZZZQ:JZZZZZZZQ", "LAAAAAAAQ:LZZZZZZZQ"), "NOT FOUND"
    )


@pytest.mark.parametrize("name", ["BAR", "", "B23456789", "ÄÄÄÄÄÄÄÄÄ"])
def test_a_dataset_of_no_known_instrument_fails_the_whole_call(catalogue: Datasets, name: str) -> None:
    with pytest.raises(InputError) as caught:
        catalogue.headers(["LAAAAAAAQ", name])
    assert str(caught.value) == f"Can't determine instrument for dataset {name!r}"


def test_datasets_of_jwst_are_looked_for_in_all_of_its_instruments(store: LocalStore) -> None:
    name = "JW93135336001_02102_00001.MIRIFUSHORT"
    header = {
        "META.INSTRUMENT.NAME": "MIRI",
        "META.OBSERVATION.DATE": "2018-01-01",
        "META.OBSERVATION.TIME": "00:00:00",
    }
    import_headers(store, "jwst", [(name, header)])
    catalogue = Datasets(store, "jwst")
    assert catalogue.headers([name]) == {f"{name}:{name}": header}
    assert catalogue.ids("miri", "2018-01-01 00:00:00") == [f"{name}:{name}"]
    assert catalogue.ids("miri", "2018-01-01 00:00:01") == []


def test_datasets_since_are_those_that_were_exposed_since(store: LocalStore, catalogue: Datasets) -> None:
    headers = [(f"L{number}AAAAAAQ", {**COS, "TIME-OBS": f"07:14:4{number}"}) for number in range(4)]
    no_date = {keyword: text for keyword, text in COS.items() if keyword != "DATE-OBS"}
    import_headers(store, "hst", [*headers, ("L9AAAAAAQ", no_date), ("L8AAAAAAQ", {**COS, "DATE-OBS": "UNDEFINED"})])
    since = "2014-01-24 07:14:42"
    wanted = ["L2AAAAAAQ:L2AAAAAAQ", "L3AAAAAAQ:L3AAAAAAQ", "L8AAAAAAQ:L8AAAAAAQ"]
    assert catalogue.ids("cos", since) == wanted
    assert sorted(catalogue.headers(catalogue.ids("cos"), since)) == wanted
    assert len(catalogue.ids("cos", "1900-01-01 00:00:00")) == 6


def test_an_instrument_without_datasets_has_none(catalogue: Datasets) -> None:
    assert catalogue.ids("synphot") == catalogue.ids("../../etc") == []
    assert catalogue.instruments() == [] and catalogue.records() == {}


@pytest.mark.parametrize(
    ("name", "header", "why"),
    [
        ("L AAAAAAQ", COS, "is no id"),
        ("LAAAAAAAQ:LAAAAAAAQ:X", COS, "is no id"),
        ("../LAAAAAQ", COS, "is no id"),
        ("LAAAAAAAQ", {"DETECTOR": "FUV"}, "which instrument"),
        ("LAAAAAAAQ", {"INSTRUME": "UNDEFINED"}, "which instrument"),
        ("LAAAAAAAQ", {"INSTRUME": "../../X"}, "which instrument"),
        ("LAAAAAAAQ", ACS, "of acs, its name of cos"),
        ("LDFD01010:JAAAAAAAQ", COS, "of cos, its name of acs"),
    ],
)
def test_what_is_no_dataset_is_rejected_and_the_others_come_in(
    store: LocalStore, catalogue: Datasets, name: str, header: Mapping[str, str], why: str
) -> None:
    done = import_headers(store, "hst", [(name, header), ("LBBBBBBBQ", COS)])
    assert done.rejections == 1 and why in done.rejected[0][1]
    assert catalogue.instruments() == ["cos"] and catalogue.ids("cos") == ["LBBBBBBBQ:LBBBBBBBQ"]


def test_many_rejections_are_counted_and_the_first_are_told(store: LocalStore) -> None:
    done = import_headers(store, "hst", [(f"-{number}", COS) for number in range(1500)])
    assert done.rejections == 1500 and len(done.rejected) == 1000 and not done.instruments


def test_an_id_gets_two_parts() -> None:
    assert two_parts(" ldfd01vnq ") == "LDFD01VNQ:LDFD01VNQ"
    assert two_parts("Ldfd01010:ldfd01vnq") == "LDFD01010:LDFD01VNQ"


def test_rows_are_found_wherever_in_the_table_they_are(
    store: LocalStore, catalogue: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_ROW_GROUP", 3)
    headers = {f"L{number:07}Q": {**COS, "NUMBER": str(number), f"K{number % 5}": "x"} for number in range(20)}
    import_headers(store, "hst", headers.items())
    found = catalogue.headers(reversed(list(headers)))
    assert found == {f"{name}:{name}": header for name, header in headers.items()}


def test_keywords_of_few_values_and_of_many_are_read_alike(store: LocalStore, catalogue: Datasets) -> None:
    rows = 12_000
    headers = [
        (f"L{n:07}Q", {**COS, "TIME-OBS": f"{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.{n % 7}"}) for n in range(rows)
    ]
    del headers[5][1]["TIME-OBS"]
    import_headers(store, "hst", headers)
    table = catalogue.table("cos")
    assert table.rows == rows
    times, detectors = table.column("TIME-OBS"), table.column("DETECTOR")
    assert len(times.values) >= rows - 1 and len(detectors.values) == 1
    for row in (0, 5, 6, rows - 1):
        assert times.text(row) == headers[row][1].get("TIME-OBS")
    assert table.column("NOWHERE").text(0) is None
    # And again from what a second import has made of it.
    import_headers(store, "hst", [headers[0]])
    assert [catalogue.table("cos").column("TIME-OBS").text(row) for row in (0, 5, 6)] == [
        headers[row][1].get("TIME-OBS") for row in (0, 5, 6)
    ]


# ---- several at once


def test_importers_at_once_lose_nothing(store: LocalStore, catalogue: Datasets) -> None:
    start = threading.Barrier(6)

    def bring(number: int) -> None:
        start.wait()
        import_headers(store, "hst", [(f"L{number}{one:06}Q", COS) for one in range(50)])

    threads = [threading.Thread(target=bring, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(catalogue.ids("cos")) == 300
    # What readers may still read is kept; what came too late is gone.
    assert len(objects(store)) == 3


class Interrupted(LocalStore):
    """A store in which something happens before the record is moved."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        if key.endswith(".json"):
            self.before()
        return super().put(key, data, mode)


def test_an_import_that_dies_before_its_end_changes_nothing(tmp_path: Path) -> None:
    store = Interrupted(tmp_path)
    import_headers(store, "hst", [("LAAAAAAAQ", COS)])

    def die() -> None:
        raise KeyboardInterrupt

    store.before = die
    with pytest.raises(KeyboardInterrupt):
        import_headers(store, "hst", [("LBBBBBBBQ", COS)])
    store.before = lambda: None
    assert Datasets(store, "hst").ids("cos") == ["LAAAAAAAQ:LAAAAAAAQ"]
    import_headers(store, "hst", [("LCCCCCCCQ", COS)])
    assert len(Datasets(store, "hst").ids("cos")) == 2


def test_an_import_gives_up_when_others_are_always_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caldp.crdserver.datasets._TRIES", 3)
    store = Interrupted(tmp_path)

    def conflict() -> None:
        raise ConflictError

    store.before = conflict
    with pytest.raises(BusyError, match="cos"):
        import_headers(store, "hst", [("LBBBBBBBQ", COS)])
    assert not objects(store)


def test_a_reader_sees_what_was_imported_since(store: LocalStore, catalogue: Datasets) -> None:
    import_headers(store, "hst", [("LAAAAAAAQ", COS)])
    first = catalogue.table("cos")
    assert catalogue.table("cos") is first
    for name in ("LBBBBBBBQ", "LCCCCCCCQ", "LDDDDDDDQ"):
        import_headers(store, "hst", [(name, COS)])
    assert len(catalogue.ids("cos")) == 4
    assert first.ids() == ["LAAAAAAAQ:LAAAAAAAQ"] and first.headers([0]) == [COS]


def test_a_damaged_or_missing_table_is_told_in_a_line(
    store: LocalStore, catalogue: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_headers(store, "hst", [("LAAAAAAAQ", COS)])
    (path,) = (store.root / "datasets" / "hst" / "cos").glob("*.parquet")
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=rf"{path.name} is damaged.*import"):
        catalogue.ids("cos")
    path.unlink()
    monkeypatch.setattr("caldp.crdserver.datasets._TRIES", 3)
    with pytest.raises(InputError, match="lacks the table of the datasets of cos"):
        catalogue.ids("cos")


# ---- where they come from


TABLE = {
    "dataset": ["LDFD01010:LDFD01VNQ", "JA9553M3Q"],
    "INSTRUME": ["COS", "ACS"],
    "CCDGAIN": [None, "2.0"],
    "Detector": ["FUV", "WFC"],
    "DATE-OBS": ["2014-01-24", "2009-07-07"],
}
ROWS = {
    "LDFD01010:LDFD01VNQ": {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2014-01-24"},
    "JA9553M3Q:JA9553M3Q": {"INSTRUME": "ACS", "CCDGAIN": "2.0", "DETECTOR": "WFC", "DATE-OBS": "2009-07-07"},
}


@pytest.mark.parametrize("form", ["csv", "parquet", "ecsv", "json", "lines"])
def test_tables_and_json_say_the_same(store: LocalStore, catalogue: Datasets, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"table.{'json' if form == 'lines' else form}"
    if form == "csv":
        pyarrow.csv.write_csv(pa.table(TABLE), path)
    elif form == "parquet":
        pyarrow.parquet.write_table(pa.table(TABLE), path)
    elif form == "ecsv":
        from astropy.table import MaskedColumn, Table

        gains = MaskedColumn(["", "2.0"], mask=[True, False])
        Table({**TABLE, "CCDGAIN": gains}).write(path, format="ascii.ecsv")
    elif form == "json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("".join(f"{json.dumps({name: header})}\n" for name, header in ROWS.items()))
    taken = Intake(store, "hst")
    intake.take(taken, "hst", path)
    assert not taken.finish().rejected
    assert catalogue.headers(list(ROWS)) == ROWS


def test_numbers_of_a_table_are_kept_as_text(store: LocalStore, catalogue: Datasets) -> None:
    table = {
        "DATASET": ["LAAAAAAAQ", "LBBBBBBBQ"],
        "INSTRUME": ["COS", "COS"],
        "GAIN": [1.5, float("nan")],
        "N": [3, None],
    }
    import_table(store, "hst", pa.table(table))
    found = catalogue.headers(["LAAAAAAAQ", "LBBBBBBBQ"])
    assert found["LAAAAAAAQ:LAAAAAAAQ"] == {"INSTRUME": "COS", "GAIN": "1.5", "N": "3"}
    assert found["LBBBBBBBQ:LBBBBBBBQ"] == {"INSTRUME": "COS"}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", "INSTRUME\nCOS\n", "no column dataset"),
        ("a.csv", "dataset\nLAAAAAAAQ\n", "no column INSTRUME"),
        ("a.csv", "dataset,INSTRUME,X,x\nLAAAAAAAQ,COS,1,2\n", "two columns"),
        ("a.csv", "", "cannot be read"),
        ("a.parquet", "nothing", "cannot be read"),
        ("a.ecsv", "nothing", "cannot be read"),
        ("a.json", "[1, 2]", "is not JSON of headers"),
        ("a.json", '{"LAAAAAAAQ": "COS"}', "is not JSON of headers"),
        ("a.json", "{", "is not JSON of headers"),
        ("a_raw.fits", "nothing", "cannot be read"),
        ("a_raw.fits.gz", "nothing", "cannot be read"),
    ],
)
def test_a_source_that_is_none_is_rejected_in_a_line(
    store: LocalStore, tmp_path: Path, name: str, content: str, why: str
) -> None:
    (tmp_path / name).write_text(content)
    taken = Intake(store, "hst")
    intake.take(taken, "hst", tmp_path / name)
    done = taken.finish()
    assert done.rejections == 1 and done.rejected[0][0] == name
    assert why in done.rejected[0][1] and "\n" not in done.rejected[0][1]


@pytest.mark.slow
def test_headers_of_real_exposures_have_what_is_in_their_extensions_too(
    store: LocalStore, catalogue: Datasets, shared_data: Path
) -> None:
    taken = Intake(store, "hst")
    for path in intake.files([shared_data / name for name in ("cos-ldfd01010", "acs-hrc", "stis-acq")]):
        intake.take(taken, "hst", path)
    assert not taken.finish().rejected
    assert catalogue.instruments() == ["acs", "cos", "stis"]
    found = catalogue.headers(["LDFD01010"])
    assert sorted(found) == [f"LDFD01010:LDFD01V{letter}Q" for letter in "NPRT"]
    header = found["LDFD01010:LDFD01VNQ"]
    assert isinstance(header, dict)
    assert header["INSTRUME"] == "COS" and header["SEGMENT"] == "FUVA"
    assert header["DATE-OBS"] == "2017-06-30" and "COMMENT" not in header
    assert catalogue.ids("cos")[-1] == "LDFD01VLQ:LDFD01VLQ"  # an acquisition is part of nothing


def test_a_folder_gives_its_raw_exposures_and_tables_only(tmp_path: Path) -> None:
    for name in ("x_raw.fits", "x_flt.fits", "x_rawtag_a.fits.gz", "x_spt.fits", "t.csv", "note.txt", "j.json"):
        (tmp_path / name).touch()
    assert [path.name for path in intake.files([tmp_path])] == ["j.json", "t.csv", "x_raw.fits", "x_rawtag_a.fits.gz"]
    assert [path.name for path in intake.files([tmp_path / "x_flt.fits"])] == ["x_flt.fits"]
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "absent.csv", "note.txt"):
        with pytest.raises(InputError, match=wrong):
            intake.files([tmp_path / wrong])


# ---- dates


def as_crds(date: str | None, time: str | None) -> int | None:
    """What crds makes of a date, in microseconds."""
    from crds.core import timestamp, utils

    words = ["UNDEFINED" if word is None else utils.condition_value(word).strip() for word in (date, time)]
    try:
        assert "UNDEFINED" not in words
        found = timestamp.parse_date(" ".join(words).strip())
    except Exception:
        return None
    assert timestamp.format_date(found) == exposed.text(exposed.parse(" ".join(words).strip()))
    return (found - exposed._FIRST) // exposed.timedelta(microseconds=1)


def column(texts: list[str | None]) -> Column:
    array = pa.array(texts, pa.string()).dictionary_encode()
    return Column(array.indices.fill_null(-1).to_numpy(zero_copy_only=False), array.dictionary)


words = st.one_of(
    st.none(),
    st.from_regex(r"(19|20|00)\d\d-[01]\d-[0123]\d", fullmatch=True),
    st.from_regex(r"[0-2]\d:[0-6]\d:[0-6]\d(\.\d{0,8})?", fullmatch=True),
    st.sampled_from(
        [
            "",
            " ",
            "UNDEFINED",
            "N/A",
            "2009/05/14",
            "May 14 2009",
            "14-May-2009",
            "1:2:3",
            "12:00 PM",
            "2009-05-14T00:00:00",
        ]
    ),
    st.text(max_size=12),
)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=30))
def test_dates_of_many_rows_are_those_that_crds_reads_one_by_one(pairs: list[tuple[str | None, str | None]]) -> None:
    found = exposed.instants(column([date for date, _ in pairs]), column([time for _, time in pairs]))
    wanted = [as_crds(date, time) for date, time in pairs]
    assert [None if one == exposed.MALFORMED else one for one in found.tolist()] == wanted


@given(st.lists(st.tuples(words, words), min_size=1, max_size=30), st.sampled_from([0, 1]) | words)
def test_since_is_compared_as_the_client_compares_it(
    pairs: list[tuple[str | None, str | None]], chosen: int | str | None
) -> None:
    date, time = pairs[0]
    since = {0: f"{date} {time}", 1: f"{date} ", None: "2009-05-14 00:00:00"}.get(chosen, str(chosen))  # type: ignore[call-overload]
    known = {"DATE-OBS": column([date for date, _ in pairs]), "TIME-OBS": column([time for _, time in pairs])}
    headers = [
        {key: text for key, text in (("DATE-OBS", date), ("TIME-OBS", time)) if text is not None}
        for date, time in pairs
    ]
    found = exposed.since_mask(known, since, len(pairs)).tolist()
    assert found == [exposed.exposed(header) >= since for header in headers]


def test_the_time_of_an_exposure_is_what_the_client_takes_for_it(shared_data: Path) -> None:
    from crds import matches

    for header in (COS, {}, {"DATE-OBS": "2009-01-01"}, {"META.OBSERVATION.DATE": "a", "META.OBSERVATION.TIME": "b"}):
        assert exposed.exposed(header) == matches.get_exptime(header)


@given(st.text(alphabet="0123456789-: .", max_size=22) | st.datetimes().map(lambda one: one.isoformat(" ")))
def test_a_date_of_a_rule_is_reached_at_its_threshold_and_not_before(key: str) -> None:
    exposed.threshold.cache_clear()
    first = exposed.threshold(key)
    if first > exposed._LAST:
        assert exposed.text(exposed._LAST) < key
        return
    assert exposed.text(first) >= key
    assert first == 0 or exposed.text(first - 1) < key


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=40), st.booleans())
def test_rows_are_told_apart_by_their_columns(rows: list[tuple[int, ...]], is_sparse: bool) -> None:
    counts = [4, 4, 4] if not is_sparse else [1 << 25, 1 << 30, 1 << 28]
    codes = [(np.array([row[place] for row in rows], np.int32), counts[place]) for place in range(3)]
    labels, first = columns.group(codes, len(rows))
    assert sorted(set(labels.tolist())) == list(range(len(set(rows))))
    for label, row in zip(labels.tolist(), rows, strict=True):
        assert rows[int(first[label])] == row


# ---- commands


def run(*argv: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["crds", "datasets", *argv])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_commands_import_list_and_show(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    place = ("--store", f"file:{tmp_path / 'store'}")
    code, out, err = run("import", str(tmp_path / "a.json"), *place)
    assert (code, out, err) == (0, "acs: 1 new, 0 replaced, 1 now\ncos: 1 new, 0 replaced, 1 now\n", "")
    code, out, _ = run("list", *place)
    assert code == 0 and "acs" in out and "1 datasets" in out
    assert run("list", "cos", *place)[1] == "LDFD01010:LDFD01VNQ\n"
    assert json.loads(run("list", "cos", "--since", "2015-01-01 00:00:00", "--json", *place)[1]) == []
    assert json.loads(run("show", "ldfd01010", "--json", *place)[1]) == {
        "LDFD01010:LDFD01VNQ": ROWS["LDFD01010:LDFD01VNQ"]
    }
    code, out, err = run("show", "LDFD01VNQ", "LZZZZZZZQ", *place)
    assert code == 21 and "DETECTOR   FUV" in out and "'LZZZZZZZQ'" in err


def test_the_commands_say_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    place = ("--store", f"file:{tmp_path / 'store'}")
    (tmp_path / "a.csv").write_text("dataset,INSTRUME\nLAAAAAAAQ,COS\nJAAAAAAAQ,COS\n")
    code, out, err = run("import", str(tmp_path / "a.csv"), *place)
    assert code == 21 and "cos: 1 new" in out and err.count("\n") == 1 and "JAAAAAAAQ" in err
    for argv, wanted, word in (
        (("import", str(tmp_path / "b.csv"), *place), 21, "b.csv"),
        (("list", "acs", *place), 21, "acs"),
        (("list", "--since", "2009", *place), 2, "--since"),
        (("show", "BAR", *place), 21, "Can't determine instrument for dataset 'BAR'"),
        (("list", "--store", "nonsense"), 2, "nonsense"),
    ):
        code, _, err = run(*argv)
        assert code == wanted and word in err and err.count("\n") == 1, (argv, err)


def test_a_compressed_table_is_read(store: LocalStore, catalogue: Datasets, tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"dataset,INSTRUME,N\nLAAAAAAAQ,COS,007\n"))
    taken = Intake(store, "hst")
    intake.take(taken, "hst", tmp_path / "a.csv.gz")
    assert not taken.finish().rejected
    assert catalogue.headers(["LAAAAAAAQ"]) == {"LAAAAAAAQ:LAAAAAAAQ": {"INSTRUME": "COS", "N": "007"}}
