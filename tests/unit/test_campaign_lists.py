"""Lists of datasets: every form, every mistake, every envelope."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from caldp.campaign import lists
from caldp.campaign.lists import (
    DatasetList,
    Options,
    Override,
    Rejected,
    batch_name,
    check_allowed,
    check_invalid,
    checked_name,
    of_mapping,
    placed,
    read,
)
from caldp.errors import UsageError
from tests.desk import shared_data  # noqa: F401 - a fixture

TWO = ("j8cb010b0", "ldqhpbi9q")


def refused(act: Callable[[], object], *words: str) -> str:
    with pytest.raises(UsageError) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 2000
    for word in words:
        assert word in said
    return said


# ---- forms


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "J8CB010B0\nLDQHPBI9Q\n"),
        ("a.ids", "j8cb010b0 ldqhpbi9q"),
        ("a", "  J8CB010B0,ldqhpbi9q ,, # and so on, j8cb010b1\n\n#\n"),
        ("deep/er/A.TXT", "J8CB010B0\r\nLDQHPBI9Q\r\n"),
        ("a.txt", "J8CB010B0 # one\rLDQHPBI9Q"),
        ("a.txt", "\ufeffJ8CB010B0\tLDQHPBI9Q#x"),
        ("a.txt", "J8CB010B0\u00a0LDQHPBI9Q"),
        ("a.csv", "J8CB010B0\nLDQHPBI9Q\n"),
        ("a.csv", "dataset\nJ8CB010B0\n\n# a comment, with more\nLDQHPBI9Q\n"),
        ("a.csv", 'who,Dataset ,n\nx, J8CB010B0,1\n"y, z","LDQHPBI9Q",2'),
        ("a.csv", "\ufeffipppssoot,n\r\nJ8CB010B0,1\r\nLDQHPBI9Q,2\r\n"),
        ("a.csv", "n,ipppssoot\n1,J8CB010B0\n2,LDQHPBI9Q"),
        ("a.csv", "J8CB010B0,1\nLDQHPBI9Q,2"),
        ("a.json", '["J8CB010B0", " LDQHPBI9Q\\n"]'),
        ("a.json", '{"datasets": ["J8CB010B0", "LDQHPBI9Q"]}'),
        ("a.json", '{"datasets": "J8CB010B0\\nLDQHPBI9Q"}'),
        ("a.json", '"J8CB010B0\\nLDQHPBI9Q"'),
        ("a.yaml", "- J8CB010B0\n- 'LDQHPBI9Q' # yes\n"),
        ("a.yml", "datasets:\n- J8CB010B0\n- LDQHPBI9Q\n"),
        ("a.yml", "datasets: J8CB010B0 LDQHPBI9Q\n"),
        ("a.yml", "datasets: |\n  J8CB010B0\n  LDQHPBI9Q\n"),
        ("a.yml", "J8CB010B0\nLDQHPBI9Q\n"),
        ("a.yml", "---\n{datasets: [J8CB010B0, LDQHPBI9Q]}\n...\n"),
    ],
)
def test_every_form_of_two_datasets(name: str, content: str) -> None:
    plain = content.encode()
    for data, called in ((plain, name), (gzip.compress(plain), f"{name}.gz"), (gzip.compress(plain), f"{name}.GZ")):
        assert read(data, called) == DatasetList(TWO)
    if not content.startswith("\ufeff"):
        assert read(content.encode("utf-16"), name) == DatasetList(TWO)
    half = len(plain) // 2
    assert read(gzip.compress(plain[:half]) + gzip.compress(plain[half:]), f"{name}.gz") == DatasetList(TWO)


def test_a_string_is_split_and_never_iterated() -> None:
    assert of_mapping({"datasets": "J8CB010B0\nLDQHPBI9Q"}) == DatasetList(TWO)
    assert of_mapping({"datasets": ["J8CB010B0\nLDQHPBI9Q"]}) == DatasetList(TWO)
    refused(lambda: of_mapping({"datasets": "j"}), "'j'")


def test_all_kinds_of_datasets_duplicates_and_order() -> None:
    found = read(b"skycell-P2381x06y09 ACS_8PH_01\nj8cb010b0 J8CB010B0,acs_8ph_01 j8cb010b0", "a.txt")
    assert found == DatasetList(("acs_8ph_01", "j8cb010b0", "skycell-p2381x06y09"), duplicates=3)
    assert found.entries == 6


def test_latin_1_is_read() -> None:
    found = read("J8CB010B0 # zum Prüfen\nü8cb010b0".encode("latin-1"), "a.txt")
    assert found.datasets == ("j8cb010b0",)
    assert found.rejected == (Rejected(2, "ü8cb010b0", "not an HST dataset name"),)


def test_every_bad_name_is_told_with_its_line() -> None:
    found = read(b"# head\nj8cb010b0 x\n\nN4HJ01ABC, u2ab0101t\nj8cb010b0x # y\n../j8cb010b0\nj8cb01\n", "a.txt")
    assert found.datasets == ("j8cb010b0",)
    bad = "not an HST dataset name"
    assert [(r.line, r.text, r.reason) for r in found.rejected] == [
        (2, "x", bad),
        (4, "N4HJ01ABC", "instrument not supported: NICMOS"),
        (4, "u2ab0101t", "instrument not supported: WFPC2"),
        (5, "j8cb010b0x", bad),
        (6, "../j8cb010b0", bad),
        (7, "j8cb01", bad),
    ]
    assert str(found.rejected[0]) == "at 2: 'x' (not an HST dataset name)"
    assert found.rejected[0].to_json() == {"line": 2, "text": "x", "reason": bad}


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_in_json_and_yaml_entries_are_counted(name: str) -> None:
    found = read(json.dumps(["j8cb010b0", "", 7, None, ["j8cb010b1"], {"a": 1}, "x y"]).encode(), name)
    assert found.datasets == ("j8cb010b0",)
    assert [r.line for r in found.rejected] == [2, 3, 4, 5, 6, 7, 7]
    assert [r.reason for r in found.rejected][3:5] == ["not a name but list", "not a name but dict"]


def test_csv_overrides() -> None:
    text = "n,time_limit,DATASET,memory_rung\n1,6h,J8CB010B0,8\n2,,LDQHPBI9Q,\n3,90,iacs01t4q,16G\n4,20m,obes03010\n"
    found = read(text.encode(), "a.csv")
    assert found.overrides == {
        "j8cb010b0": Override("8g", 21600),
        "iacs01t4q": Override("16g", 90),
        "obes03010": Override("", 1200),
    }
    assert len(found.datasets) == 4


def test_csv_rows_that_make_no_sense() -> None:
    text = "dataset,memory_rung,time_limit\nj8cb010b0,8;9,\nldqhpbi9q,,soon\n,8g,\niacs01t4q,,0\nobes03010\nx,8g,1h\n"
    found = read(text.encode(), "a.csv")
    assert found.datasets == ("obes03010",)
    assert [(r.line, r.text) for r in found.rejected] == [
        (2, "j8cb010b0"),
        (3, "ldqhpbi9q"),
        (4, ""),
        (5, "iacs01t4q"),
        (7, "x"),
    ]
    assert "memory rung" in found.rejected[0].reason
    assert "seconds" in found.rejected[1].reason


@pytest.mark.parametrize("swap", [False, True])
def test_contradictions_count_for_neither_whatever_their_order(swap: bool) -> None:
    rows = ["j8cb010b0,8g,", "j8cb010b0,16g,", "ldqhpbi9q,8g,", "ldqhpbi9q,,1h", "ldqhpbi9q,,", "iacs01t4q,,"]
    found = read("\n".join(["dataset,memory_rung,time_limit", *(rows[::-1] if swap else rows)]).encode(), "a.csv")
    assert found.datasets == ("iacs01t4q", "ldqhpbi9q")
    assert found.overrides == {"ldqhpbi9q": Override("8g", 3600)}
    assert [r.text for r in found.rejected] == ["j8cb010b0"]
    assert found.duplicates == 3
    assert found.entries == len(rows)


def test_options_come_with_a_mapping() -> None:
    text = """
datasets: [J8CB010B0]
batch: 2024-01-01
canary: 0.05
dry_run: true
memory_rung: 8
time_limit: 6h
label: "007"
crds_context:
"""
    found = read(text.encode(), "a.yaml")
    assert found.options == {
        "batch": "2024-01-01",
        "canary": 0.05,
        "dry_run": True,
        "memory_rung": 8,
        "time_limit": "6h",
        "label": "007",
        "crds_context": None,
    }
    same = read(json.dumps({"datasets": "J8CB010B0", **found.options}).encode(), "a.json")
    assert same == found
    options = Options.of(found.options)
    assert (options.batch, options.rung, options.time_limit, options.label) == ("2024-01-01", "8g", 21600, "007")


# ---- lists that are none


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "no dataset"),
        ("a.txt", b"# nothing\n\n", "no dataset"),
        ("a.txt", b"hello", "at 1: 'hello'"),
        ("a.txt", b"j8cb010b0\0", "not text"),
        ("a.txt", codecs.BOM_UTF16_LE + b"\x00\xd8\x00", "not text"),
        ("a.txt.gz", b"j8cb010b0", "unpacked"),
        ("a.txt.gz", gzip.compress(b"j8cb010b0" * 99)[:-9], "its end is missing"),
        ("a.txt.gz", b"", "its end is missing"),
        ("a.xlsx", b"j8cb010b0", ".xlsx"),
        ("a.csv", b"", "no dataset"),
        ("a.csv", b"dataset,memory_rung\n", "no dataset"),
        ("a.csv", b'dataset\n"j8cb010b0\nldqhpbi9q\n', "line 3 is not CSV"),
        ("a.csv", b"j8cb010b0," + b"x" * 200_000, "line 1 is not CSV"),
        ("a.json", b"", "not JSON"),
        ("a.json", b"[", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "not JSON"),
        ("a.json", b"[]", "no dataset"),
        ("a.json", b"7", "neither a list nor text"),
        ("a.json", b"{}", "no field 'datasets'"),
        ("a.json", b'{"datasets": {"j8cb010b0": 1}}', "neither a list nor text"),
        ("a.json", b'{"datasets": null}', "neither a list nor text"),
        ("a.json", b'{"datasets": ["j8cb010b0"], "datasets": ["ldqhpbi9q"]}', "'datasets' is there twice"),
        ("a.yaml", b"", "it is empty"),
        ("a.yaml", b"- [", "not YAML"),
        ("a.yaml", b"- j8cb010b0\n---\n- ldqhpbi9q\n", "more than one document"),
        ("a.yaml", b"datasets: [j8cb010b0]\ndatasets: [ldqhpbi9q]\n", "'datasets' is there twice"),
        ("a.yaml", b"? [a, b]\n: c\n", "not text"),
        ("a.yaml", b"? " * 300_000, "not text"),
        ("a.yaml", b"a: &a [j8cb010b0]\ndatasets: *a\n", "alias"),
        ("a.yaml", b"a: &a [j8cb010b0]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\ndatasets: [*b,*b,*b,*b]\n", "alias"),
        ("a.yaml", b"\x07- j8cb010b0", "not YAML"),
        ("a.yaml", b"!!python/object/apply:os.system [touch /tmp/x]\n", "no dataset"),
    ],
)
def test_files_that_are_no_lists(name: str, content: bytes, said: str) -> None:
    assert name in refused(lambda: read(content, name), said)


@pytest.mark.parametrize("nested", ["[", "- ", "{a: ", "a: ["])
def test_yaml_cannot_overflow_the_stack(nested: str) -> None:
    refused(lambda: read(nested.encode() * 300_000, "a.yaml"), "nested too deeply")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "LARGEST", 1000)
    monkeypatch.setattr(lists, "MOST", 5)
    good = b"j8cb010b0 ldqhpbi9q x y x"
    assert read(good, "a.txt").entries == 5
    refused(lambda: read(good + b" j8cb010b0", "a.txt"), "a.txt has more than 5 entries")
    refused(lambda: read(good + b" x", "a.txt"), "more than 5")
    refused(lambda: of_mapping({"datasets": ["j8cb010b0"] * 6}), "more than 5")
    padded = b"j8cb010b0".ljust(1000)
    for data, name in ((padded, "a.txt"), (gzip.compress(padded), "a.txt.gz")):
        assert read(data, name).datasets == ("j8cb010b0",)
    for data, name in ((padded + b" ", "a.txt"), (gzip.compress(padded + b" "), "a.txt.gz")):
        refused(lambda d=data, n=name: read(d, n), "larger than")
    bomb = gzip.compress(bytes(900)) + gzip.compress(b" " * 50_000_000)
    tracemalloc.start()
    refused(lambda: read(bomb, "a.txt.gz"), "larger than")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


# ---- real lists


@pytest.mark.parametrize(
    ("name", "datasets", "rejected"),
    [
        ("mvp-8.ids", 8, 0),
        ("mvp-50.ids", 50, 0),
        ("mvp-100.ids", 100, 0),
        ("mvp-10000.ids", 10000, 0),
        ("archive-nightly.ids", 37, 0),
        ("prototype-80.ids", 80, 58),
    ],
)
def test_real_lists(shared_data: Path, name: str, datasets: int, rejected: int) -> None:  # noqa: F811
    found = read((shared_data / "dataset-lists" / name).read_bytes(), name)
    assert (len(found.datasets), len(found.rejected), found.duplicates) == (datasets, rejected, 0)
    assert found.datasets == tuple(sorted(found.datasets))
    unsupported = [r.reason for r in found.rejected if r.reason.startswith("instrument not supported")]
    if rejected:
        assert {r: unsupported.count(r) for r in unsupported} == {
            "instrument not supported: NICMOS": 20,
            "instrument not supported: WFPC2": 20,
        }
        check_invalid(found, Options())
        refused(lambda: check_invalid(found, Options(on_invalid="reject")), "58 of 138", "53 more")


def test_the_names_that_were_letters_of_names(shared_data: Path) -> None:  # noqa: F811
    data = (shared_data / "dataset-lists" / "failed-10k-jobs.json.gz").read_bytes()
    refused(lambda: read(data, "failed-10k-jobs.json.gz"), "no field 'datasets'")
    jobs = json.loads(gzip.decompress(data))["jobSummaryList"]
    found = of_mapping({"datasets": [job["jobName"].rpartition("-")[2] for job in jobs]})
    assert (len(found.datasets), found.duplicates) == (274, 1)
    assert len(found.rejected) == 37
    assert {len(r.text) for r in found.rejected} == {1}


@given(
    st.lists(st.from_regex(r"[ijlo][a-z0-9]{8}", fullmatch=True), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_order_and_repetition_do_not_matter(names: list[str], random: Any) -> None:
    again = [name.upper() if random.random() < 0.5 else name for name in names * 2]
    random.shuffle(again)
    forms = {
        "a.txt": "".join(name + random.choice([" ", "\n", ", ", "\r\n", " #\n"]) for name in again),
        "a.csv": "dataset\n" + "\n".join(again),
        "a.json": json.dumps({"datasets": again}),
        "a.yaml": yaml.safe_dump(again),
    }
    for name, text in forms.items():
        found = read(text.encode(), name)
        assert found.datasets == tuple(sorted(set(names)))
        assert (found.duplicates, found.rejected) == (len(again) - len(set(names)), ())


@given(st.binary(max_size=300), st.sampled_from(["a.txt", "a.csv", "a.json", "a.yaml", "a.txt.gz"]))
def test_anything_is_a_list_or_a_usage_error(data: bytes, name: str) -> None:
    try:
        found = read(b"j8cb010b0 " + data if name == "a.txt" else data, name)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert found.datasets


# ---- invalid names


def a_list(good: int, bad: int) -> DatasetList:
    return DatasetList(
        tuple(f"j{number:08d}" for number in range(good)),
        rejected=tuple(Rejected(line, "x", "bad") for line in range(bad)),
    )


@pytest.mark.parametrize(
    ("good", "bad", "goes"),
    [(1, 0, True), (1, 100, True), (1, 101, False), (990, 11, False), (989, 11, True), (991, 10, True)],
)
def test_too_many_invalid_names_are_the_wrong_file(good: int, bad: int, goes: bool) -> None:
    if goes:
        check_invalid(a_list(good, bad), Options())
    else:
        refused(lambda: check_invalid(a_list(good, bad), Options()), "right file", "at 1: 'x' (bad)")
    if bad:
        refused(lambda: check_invalid(a_list(good, bad), Options(on_invalid="reject")))


def test_more_than_a_hundred_of_a_long_list() -> None:
    check_invalid(a_list(20_000, 100), Options())
    refused(lambda: check_invalid(a_list(20_000, 101), Options()), "101 of 20,101")


# ---- options


def test_every_field() -> None:
    fields = {
        "datasets": ["ignored"],
        "s3_output_path": "s3://my-bucket/a/b/",
        "batch": "batch-22",
        "input": "s3://in/raw",
        "config": "caldp-config-custom",
        "crds_context": "hst_0729.pmap",
        "job_definition": "caldp-8g:3",
        "job_queue": "urgent",
        "memory_rung": "8G",
        "time_limit": "90m",
        "timeout_scale": 2,
        "existing": "overwrite",
        "on_invalid": "reject",
        "canary": 0,
        "dry_run": True,
        "share": "bulk",
        "label": "Jane: new flats",
    }
    options = Options.of(fields)
    assert options == Options(
        "s3://my-bucket/a/b",
        "batch-22",
        "s3://in/raw",
        "caldp-config-custom",
        "hst_0729.pmap",
        "caldp-8g:3",
        "urgent",
        "8g",
        5400,
        2.0,
        "overwrite",
        "reject",
        0.0,
        True,
        "bulk",
        "Jane: new flats",
    )
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert Options.from_json({"batch": "a", "later": 1}) == Options(batch="a")


def test_defaults_are_trusted_and_fields_win() -> None:
    options = Options.of({"batch": None, "config": "mine"}, output="file:/out", config="./custom.sh", share="bulk")
    assert options == Options(output="file:/out", config="mine", share="bulk")
    with pytest.raises(TypeError):
        Options.of({}, nonsense=1)


def test_the_alias_of_the_output() -> None:
    assert Options.of({"s3_output_bucket": "my-bucket"}).output == "s3://my-bucket"
    assert Options.of({"s3_output_bucket": "s3://my-bucket/x"}).output == "s3://my-bucket/x"
    assert Options.of({"s3_output_bucket": "my-bucket", "s3_output_path": "s3://my-bucket/"}).output == "s3://my-bucket"
    refused(lambda: Options.of({"s3_output_bucket": "one-b", "s3_output_path": "s3://two-b"}), "differ")


BAD_FIELDS: list[tuple[str, Any]] = [
    ("s3_output_path", "file:/etc"),
    ("s3_output_path", "s3://"),
    ("s3_output_path", "s3://B"),
    ("s3_output_path", "s3://my-bucket/a//b"),
    ("s3_output_path", "s3://my-bucket/../other"),
    ("s3_output_path", "s3://my-bucket/a b"),
    ("s3_output_path", ["s3://my-bucket"]),
    ("s3_output_bucket", 7),
    ("batch", "a/b"),
    ("batch", ".."),
    ("batch", "-x"),
    ("batch", "x" * 65),
    ("batch", "a\n"),
    ("batch", ""),
    ("batch", True),
    ("input", "http://x"),
    ("input", "/data"),
    ("input", "s3://"),
    ("input", "file:a\nb"),
    ("config", "/home/evil.sh"),
    ("config", "../evil"),
    ("config", "--version"),
    ("crds_context", "hst_0729.imap"),
    ("crds_context", "latest"),
    ("job_definition", "a b"),
    ("job_queue", "a:1"),
    ("memory_rung", 8.5),
    ("memory_rung", "8 GB"),
    ("time_limit", 0),
    ("time_limit", -1),
    ("time_limit", "1d"),
    ("time_limit", "1.5h"),
    ("timeout_scale", "2"),
    ("timeout_scale", 0),
    ("timeout_scale", float("nan")),
    ("timeout_scale", float("inf")),
    ("timeout_scale", True),
    ("existing", "Skip"),
    ("on_invalid", "error"),
    ("canary", 5),
    ("canary", "1%"),
    ("dry_run", "false"),
    ("dry_run", 0),
    ("share", "a b"),
    ("label", "x" * 201),
    ("label", "a\nb"),
    ("label", {"a": "b"}),
    ("timeout_scal", 2),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_fields_that_make_no_sense(field: str, value: object) -> None:
    refused(lambda: Options.of({field: value}), field)


def test_all_mistakes_are_told_at_once() -> None:
    wrong = dict(BAD_FIELDS)
    said = refused(lambda: Options.of(wrong))
    for field in wrong:
        assert field in said


def test_what_a_deployment_allows() -> None:
    lists_of = {"buckets": ["mine"], "job_definitions": ["d"], "job_queues": ["q"]}
    check_allowed(Options(), **lists_of)
    check_allowed(Options(output="s3://mine/x", job_definition="d", job_queue="q"), **lists_of)
    asked = Options(output="s3://mine-too/x", job_definition="e", job_queue="r")
    refused(lambda: check_allowed(asked, **lists_of), "'mine-too'", "'e'", "'r'")
    refused(lambda: check_allowed(Options(job_queue="q")))


# ---- names of batches


def test_an_object_gives_its_batch_a_name() -> None:
    assert batch_name(Options(), "mvp-8", '"0a1b2c3d4e5f-2"') == "mvp-8-0a1b2c3d"
    assert batch_name(Options(), "my list.v2 (new)", "0a1b2c3d4e") == "my-list-v2-new-0a1b2c3d"
    assert batch_name(Options(), "..", "0a1b2c3d4e") == "list-0a1b2c3d"
    assert batch_name(Options(batch="mine"), "mvp-8", "0a1b2c3d4e") == "mine"
    assert len(batch_name(Options(), "x" * 300, "0a1b2c3d4e")) <= 64


def test_a_request_gives_its_batch_a_name() -> None:
    options = Options(output="s3://mine")
    name = batch_name(options, datasets=TWO)
    assert re.fullmatch(r"batch-[0-9a-f]{12}", name)
    assert name == batch_name(options, datasets=[*TWO[::-1], TWO[0]])
    assert name == batch_name(Options(output="s3://mine", dry_run=True, label="me"), datasets=TWO)
    others = [
        batch_name(options, datasets=TWO[:1]),
        batch_name(Options(output="s3://yours"), datasets=TWO),
        batch_name(Options(output="s3://mine", timeout_scale=2), datasets=TWO),
    ]
    assert len({name, *others}) == 4


@pytest.mark.parametrize("name", ["batch-22", "2024.01", "a", "x" * 64])
def test_a_name_that_a_batch_can_have(name: str) -> None:
    assert checked_name(name) == name == Options.of({"batch": name}).batch


@pytest.mark.parametrize("name", ["", "..", "-x", ".x", "a/b", "cos#1&2", "cos (new flat)", "x" * 65, "a\n", "é"])
def test_a_name_that_no_batch_can_have(name: str) -> None:
    refused(lambda: checked_name(name), "no batch can be called", "give 1 to 64 letters, digits and ._-")
    refused(lambda: Options.of({"batch": name}), "give 1 to 64 letters, digits and ._-")


# ---- events

KEY = "pre fix/messages/placed/my list+é.ids"
ENCODED = "pre+fix/messages/placed/my+list%2B%C3%A9.ids"


def notification(event: Mapping[str, Any], key: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(event))
    changed["Records"][0]["s3"]["object"]["key"] = key
    changed["Records"][0]["eventName"] = name
    return changed


def object_created(key: str, kind: str = "Object Created") -> dict[str, Any]:
    detail = {"version": "0", "bucket": {"name": "a-bucket"}, "object": {"key": key, "size": 5, "etag": "x"}}
    return {"version": "0", "source": "aws.s3", "detail-type": kind, "detail": detail}


def queued(*bodies: object) -> dict[str, Any]:
    return {
        "Records": [
            {"messageId": str(n), "eventSource": "aws:sqs", "body": b if isinstance(b, str) else json.dumps(b)}
            for n, b in enumerate(bodies)
        ]
    }


@pytest.fixture(scope="module", params=["json", "yaml"])
def s3_event(request: pytest.FixtureRequest, shared_data: Path) -> Any:  # noqa: F811
    text = (shared_data / "batch-events" / f"generic-message-event.{request.param}").read_text()
    return json.loads(text) if request.param == "json" else yaml.safe_load(text)


def test_a_real_notification_of_something_else_is_no_list(s3_event: dict[str, Any]) -> None:
    assert placed(s3_event) == []
    assert placed(queued(s3_event)) == []


def test_notifications_of_s3(s3_event: dict[str, Any]) -> None:
    expected = [("calcloud-processing-moto", KEY)]
    event = notification(s3_event, ENCODED)
    assert placed(event) == expected
    assert placed(notification(s3_event, ENCODED, "ObjectCreated:CompleteMultipartUpload")) == expected
    assert placed(notification(s3_event, ENCODED, "ObjectRemoved:Delete")) == []
    assert placed(queued(event)) == expected
    assert placed(queued(event, event, notification(s3_event, "control/placed/b.csv"))) == [
        *expected,
        ("calcloud-processing-moto", "control/placed/b.csv"),
    ]


def test_events_of_eventbridge_are_not_encoded() -> None:
    expected = [("a-bucket", KEY)]
    assert placed(object_created(KEY)) == expected
    assert placed(queued(object_created(KEY))) == expected
    assert placed(object_created(ENCODED)) == [("a-bucket", ENCODED)]
    assert placed(object_created(KEY, "Object Deleted")) == []


@pytest.mark.parametrize(
    "key",
    [
        "messages/status/j8cb010b0.json",
        "messages/datasets-processed/j8cb010b0",
        "messages/placed/",
        "messages/placed",
        "messages/placed/deeper/a.ids",
        "xmessages/placed/a.ids",
        "placed/a.ids",
        "control/placedx/a.ids",
        "control/manifests/a.jsonl",
        "messages/clean-ipppssoot",
        "",
    ],
)
def test_only_two_folders_are_looked_at(key: str, s3_event: dict[str, Any]) -> None:
    assert placed(object_created(key)) == placed(notification(s3_event, key)) == []
    assert placed(object_created(f"x/{key}")) == []


@pytest.mark.parametrize(
    "event",
    [
        None,
        7,
        [],
        {},
        {"Records": None},
        {"Records": [None, 7, {}, {"s3": None, "eventName": "ObjectCreated:Put"}, {"body": 7}]},
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"},
        {"detail-type": "Object Created", "detail": {"bucket": {"name": 7}, "object": {"key": "control/placed/a"}}},
        queued("no JSON", "[" * 100_000, {"Event": "s3:TestEvent"}, "7"),
        {"datasets": ["j8cb010b0"]},
    ],
)
def test_other_events_tell_of_no_list(event: object) -> None:
    assert placed(event) == []


# ---- imports


def loaded(names: Iterable[str]) -> set[str]:
    code = f"import sys; import {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_planning_imports_nothing_heavy() -> None:
    rooms = [f"caldp.campaign.{name}" for name in ("lists", "plan", "shards", "settings")]
    heavy = {"numpy", "scipy", "astropy", "crds", "boto3", "botocore", "rich", "jinja2", "yaml", "psutil", "requests"}
    assert not loaded(rooms) & heavy
    assert "yaml" in loaded(["yaml"])
