"""Files that users send, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from caldp.crdserver.site import Site
from caldp.crdserver.uploads import Uploads, assemble
from caldp.errors import InputError
from tests.sites import made_site, shared_data, shelf, site

__all__ = ["made_site", "shared_data", "shelf", "site"]

FITS = b"SIMPLE  =                    T" + bytes(range(256)) * 40


def parts_of(data: bytes, size: int) -> list[tuple[bytes, str]]:
    """Cut data as the client does: (part, Content-Range)."""
    cut = [(start, data[start : start + size]) for start in range(0, len(data), size)]
    return [(part, f"bytes {start}-{start + len(part) - 1}/{len(data)}") for start, part in cut]


def stored(site: Site) -> list[str]:
    return [entry.key for entry in site.store.walk("server/hst/uploads")]


def test_a_small_file_comes_at_once(site: Site, tmp_path: Path) -> None:
    uploads = Uploads(site, "ann")
    upload = uploads.receive("new_dead.fits", FITS, "")
    assert upload.whole and upload.size == len(FITS)
    assert uploads.files() == [upload]
    assert assemble(site, upload.parts, tmp_path / "f") == hashlib.sha1(FITS).hexdigest()  # noqa: S324
    assert (tmp_path / "f").read_bytes() == FITS


def test_a_large_file_comes_in_parts(site: Site, tmp_path: Path) -> None:
    uploads = Uploads(site, "ann")
    for part, where in parts_of(FITS, 3000):
        upload = uploads.receive("new_dead.fits", part, where)
    assert upload.whole and len(upload.parts) == 4
    assemble(site, upload.parts, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == FITS


def test_a_part_that_comes_twice_counts_once(site: Site) -> None:
    uploads = Uploads(site, "ann")
    for part, where in parts_of(FITS, 3000):
        uploads.receive("new_dead.fits", part, where)
        upload = uploads.receive("new_dead.fits", part, where)
    assert upload.whole and len(upload.parts) == 4


def test_a_file_that_is_sent_again_replaces_the_first(site: Site) -> None:
    uploads = Uploads(site, "ann")
    uploads.receive("new_dead.fits", FITS, "")
    upload = uploads.receive("new_dead.fits", FITS + b"more", "")
    assert uploads.files() == [upload] and len(stored(site)) == 1


def test_parts_out_of_order_are_refused(site: Site) -> None:
    uploads, cut = Uploads(site, "ann"), parts_of(FITS, 3000)
    uploads.receive("new_dead.fits", *cut[0])
    with pytest.raises(InputError, match="bytes from 6000 came, but 3000 are here"):
        uploads.receive("new_dead.fits", *cut[2])
    uploads.receive("other_dead.fits", *cut[0])
    with pytest.raises(InputError, match="from its beginning"):
        uploads.receive("third_dead.fits", *cut[1])


@pytest.mark.parametrize(
    "where",
    ["bytes 0-99/100", "bytes 0-10/5", "bytes 5-1/9", "bytes -1-2/3", "items 0-1/2", "bytes 0-9999999999999999/1"],
)
def test_a_range_that_does_not_fit(site: Site, where: str) -> None:
    with pytest.raises(InputError, match="truncated"):
        Uploads(site, "ann").receive("new_dead.fits", FITS[:50], where)


@pytest.mark.parametrize(
    "name",
    [
        "../new_dead.fits", "/etc/passwd", "a/b.fits", "a\\b.fits", ".hidden.fits", "a..fits", "x.exe", "x", "",
        "new\0.fits", "ä.fits", "a b.fits", "x" * 200 + ".fits", "new_dead.fits\n", "-rf.fits",
    ],
)  # fmt: skip
def test_names_that_are_refused(site: Site, name: str) -> None:
    with pytest.raises(InputError, match="cannot be delivered"):
        Uploads(site, "ann").receive(name, FITS, "")
    assert stored(site) == []


def test_content_that_is_not_what_the_name_says(site: Site) -> None:
    for name, data in (("a.fits", b"#!/bin/sh"), ("a.asdf", FITS), ("a.rmap", b"import os"), ("a.fits", b"")):
        with pytest.raises(InputError, match="look"):
            Uploads(site, "ann").receive(name, data, "")
    assert stored(site) == []


def test_a_file_that_is_too_large(made_site: Callable[..., Site]) -> None:
    uploads = Uploads(made_site(largest_upload=1000), "ann")
    with pytest.raises(InputError, match="1000 bytes at most"):
        uploads.receive("new_dead.fits", FITS[:500], "bytes 0-499/5000")
    with pytest.raises(InputError, match="1000 bytes at most"):
        uploads.receive("new_dead.fits", FITS[:1001], "")


def test_users_have_files_of_their_own(site: Site) -> None:
    Uploads(site, "ann").receive("new_dead.fits", FITS, "")
    assert Uploads(site, "bob").files() == []
    Uploads(site, "bob").remove("new_dead.fits")
    assert len(Uploads(site, "ann").files()) == 1


def test_a_removed_file_leaves_nothing(site: Site) -> None:
    uploads = Uploads(site, "ann")
    uploads.receive("new_dead.fits", FITS, "")
    uploads.remove("new_dead.fits")
    uploads.remove("new_dead.fits")
    assert uploads.files() == [] and stored(site) == []


def test_what_is_not_whole_is_not_submitted(site: Site) -> None:
    uploads = Uploads(site, "ann")
    with pytest.raises(InputError, match="no files"):
        uploads.whole()
    uploads.receive("new_dead.fits", *parts_of(FITS, 3000)[0])
    with pytest.raises(InputError, match=f"3000 of {len(FITS)} bytes have come"):
        uploads.whole()
    assert len(uploads.files()) == 1


def test_what_was_refused_is_told_when_the_rest_is_submitted(site: Site) -> None:
    uploads = Uploads(site, "ann")
    uploads.receive("new_dead.fits", FITS, "")
    with pytest.raises(InputError):
        uploads.receive("other_dead.fits", b"no FITS", "")
    with pytest.raises(InputError, match=r"other_dead.fits does not look like its type.*1 refused"):
        uploads.whole()
    whole = uploads.whole()
    assert list(whole) == ["new_dead.fits"]
    uploads.release(whole)
    assert uploads.files() == []


def test_a_part_that_changed_in_the_store_is_noticed(site: Site, tmp_path: Path) -> None:
    upload = Uploads(site, "ann").receive("new_dead.fits", FITS, "")
    Path(site.store.url(upload.parts[0]["key"])).write_bytes(FITS[::-1])
    with pytest.raises(InputError, match="part 1 is not what was sent"):
        assemble(site, upload.parts, tmp_path / "f")
