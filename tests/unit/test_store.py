"""URIs, and what only the local store has."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldp import local_store
from caldp.errors import OutputError, UsageError
from caldp.local_store import LocalStore
from caldp.store import open_store, parse_uri, safe_key


@pytest.mark.parametrize(
    ("text", "scheme", "rest"),
    [
        ("file:.", "file", "."),
        ("file:", "file", "."),
        ("file:inputs", "file", "inputs"),
        ("file:inputs/", "file", "inputs/"),
        ("file:../up", "file", "../up"),
        ("file:/absolute/path", "file", "/absolute/path"),
        ("file:///absolute/path", "file", "/absolute/path"),
        ("file://localhost/absolute/path", "file", "/absolute/path"),
        ("file:a:b", "file", "a:b"),
        ("file:/data/12:30:00/in", "file", "/data/12:30:00/in"),
        ("file:s3://x", "file", "s3://x"),
        ("file:with blank", "file", "with blank"),
        ("file:per%20cent", "file", "per%20cent"),
        ("astroquery:", "astroquery", ""),
        ("s3://bucket", "s3", "//bucket"),
        ("s3://bucket/batch-22/x", "s3", "//bucket/batch-22/x"),
        ("s3://bucket/a:b/", "s3", "//bucket/a:b/"),
    ],
)
def test_d19_good_uris(text: str, scheme: str, rest: str) -> None:
    assert parse_uri(text) == (scheme, rest)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "inputs", "/absolute", "C:\\data", "FILE:x", " file:x", "files:x", "http://host/x", "s3:", "s3:bucket",
        "s3://", "s3:///key", "file://host/x", "file:a\0b", "none", "none:", ":x", "astroquery",
    ],
)  # fmt: skip
def test_d19_bad_uris_are_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(text)
    assert repr(text) in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["bucket/prefix", "s3//bucket/prefix", "S3://bucket"])
def test_d19_who_meant_a_bucket_is_told_how_to_write_it(text: str) -> None:
    with pytest.raises(UsageError, match="write file:<directory>.* or s3://bucket/prefix$"):
        parse_uri(text)


@given(st.text())
def test_any_text_is_a_uri_or_a_usage_error(text: str) -> None:
    for candidate in (text, f"file:{text}", f"s3:{text}"):
        try:
            scheme, rest = parse_uri(candidate)
        except UsageError:
            continue
        assert scheme in ("file", "s3", "astroquery")
        assert rest or scheme == "astroquery"


@given(st.text(st.characters(exclude_characters="\0"), min_size=1).filter(lambda t: not t.startswith("//")))
def test_d19_a_path_comes_back_as_it_was(path: str) -> None:
    assert parse_uri(f"file:{path}") == ("file", path)


def test_mast_is_no_place_for_files() -> None:
    with pytest.raises(UsageError, match="file:<directory>"):
        open_store("astroquery:")


def test_a_relative_output_stays_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = open_store("file:out")
    monkeypatch.chdir("/")
    assert out.url("x") == str(tmp_path / "out" / "x")


@given(st.lists(st.sampled_from(["a", "b", ".", "..", "", "x y"]), max_size=6).map("/".join))
def test_a_safe_key_stays_below(key: str) -> None:
    try:
        safe = safe_key(key)
    except ValueError:
        return
    assert Path("/root").joinpath(safe).resolve().is_relative_to("/root")


def test_two_renames_where_there_is_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    out = LocalStore(tmp_path)
    for content in ("one", "two"):
        staging = out.staging("data/x", content, tmp_path)
        (staging / "file").write_text(content)
        out.publish(staging, "data/x", lambda: {"file"}, lambda _: ("seal", b""))
        assert (tmp_path / "data" / "x" / "file").read_text() == content
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["x"]


def test_a_failed_second_rename_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    (tmp_path / "x").mkdir()
    with pytest.raises(FileNotFoundError):
        local_store._exchange(tmp_path / "nothing", tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(sys.platform != "linux", reason="exchanges are Linux's")
def test_an_exchange_that_fails_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(FileNotFoundError):
        local_store._exchange(tmp_path / "nothing", tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_tree_that_a_dead_run_had_put_aside_is_brought_back(tmp_path: Path) -> None:
    # Killed between the two renames of a file system without an exchange.
    out = LocalStore(tmp_path)
    aside = tmp_path / "data" / ".x.aside"
    aside.mkdir(parents=True)
    (aside / "note").write_text("mine")
    (tmp_path / "data" / ".x.run1.partial").mkdir()
    out.prepare("data/x")
    assert (tmp_path / "data" / "x" / "note").read_text() == "mine"
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["x"]


def test_what_others_put_there_survives_whatever_it_is(tmp_path: Path) -> None:
    out = LocalStore(tmp_path)
    there = tmp_path / "data" / "x"
    (there / "notes" / "empty").mkdir(parents=True)
    (there / "notes" / "deep.txt").write_text("deep")
    (there / "dangling").symlink_to("nowhere")
    (there / "link").symlink_to("notes")
    os.mkfifo(there / "pipe")
    (there / "old.fits").write_text("published before")
    staging = out.staging("data/x", "run", tmp_path)
    (staging / "new.fits").write_text("new")
    out.publish(staging, "data/x", lambda: {"old.fits"}, lambda _: ("seal", b""))
    assert {p.name for p in there.iterdir()} == {"notes", "dangling", "link", "pipe", "new.fits", "seal"}
    assert (there / "notes" / "deep.txt").read_text() == "deep"
    assert (there / "notes" / "empty").is_dir()
    assert (there / "link").is_symlink() and (there / "dangling").is_symlink()


@pytest.mark.parametrize("make", ["link", "file"])
def test_a_place_that_is_no_plain_directory_is_refused(tmp_path: Path, make: str) -> None:
    (tmp_path / "data").mkdir()
    if make == "link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "data" / "x").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "data" / "x").write_text("in the way")
    with pytest.raises(OutputError, match="plain directory"):
        LocalStore(tmp_path).prepare("data/x")


def test_temporary_files_of_dead_writers_go(tmp_path: Path) -> None:
    out = LocalStore(tmp_path)
    folder = tmp_path / "messages" / "status"
    folder.mkdir(parents=True)
    for name, age in ((".x.json.1.tmp", 3600), (".x.json.2.tmp", 0), (".other.json.3.tmp", 3600)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age, time.time() - age))
    out.prepare("data/cos/x")
    assert sorted(p.name for p in folder.iterdir()) == [".other.json.3.tmp", ".x.json.2.tmp"]
