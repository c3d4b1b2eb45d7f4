"""Whole FITS or not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from caldp.fitsfile import damage
from tests.fakes.cos import truncate, write_raw


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "x.fits"
    data = np.random.default_rng(1).normal(size=(100, 100)).astype(np.float32)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, name="SCI"), fits.ImageHDU(name="ERR")]).writeto(path)
    return path


def squeeze(path: Path) -> Path:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def test_whole_files(image: Path, tmp_path: Path) -> None:
    assert damage(image) == ""
    assert damage(write_raw(tmp_path, "ldfd01vnq", events=1000)) == ""
    assert damage(squeeze(image)) == ""


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.6, 0.95])
def test_truncated(image: Path, share: float) -> None:
    assert damage(truncate(image, share))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_truncated_gzip_stream_under_a_fits_name(tmp_path: Path, share: float) -> None:
    data = np.random.default_rng(1).normal(size=(100, 100)).astype(np.float32)
    path = tmp_path / "x.fits"
    fits.PrimaryHDU(data).writeto(path)
    assert damage(truncate(squeeze(path), share))


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"not FITS", b"SIMPLE", b"\x1f\x8b", b"\x1f\x8bxxxxxxxxxxxx", b"\0" * 5760]
)
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.fits"
    path.write_bytes(content)
    reason = damage(path)
    assert reason
    assert "\n" not in reason
    assert len(reason) < 200


def test_a_corrupt_gzip_stream(image: Path) -> None:
    content = bytearray(squeeze(image).read_bytes())
    content[20:60] = b"\xff" * 40
    image.write_bytes(content)
    assert damage(image)


def test_a_broken_header(image: Path) -> None:
    image.write_bytes(image.read_bytes().replace(b"NAXIS1  =                  100", b"NAXIS1  =                  x00"))
    assert damage(image)


def test_no_such_file(tmp_path: Path) -> None:
    assert "No such file" in damage(tmp_path / "x.fits")


def test_zeros_after_the_last_block_do_no_harm(image: Path) -> None:
    # Blocks of tapes were longer than those of FITS.
    image.write_bytes(image.read_bytes() + b"\0" * 2880)
    assert damage(image) == ""


def test_it_closes_what_it_opens(image: Path) -> None:
    for _ in range(3):
        damage(image)  # an open file would be a ResourceWarning, which is an error here
    image.unlink()


def test_cut_between_two_extensions(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros(4)), fits.ImageHDU(np.zeros(4))])
    hdus[0].header["NEXTEND"] = 2
    hdus[:2].writeto(path)
    assert damage(path) == ""
    assert "1 of 2 extensions" in damage(path, count=True)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_cut_gzip_stream_under_a_fits_name(tmp_path: Path, part: float) -> None:
    path = tmp_path / "x.fits"
    fits.PrimaryHDU(np.random.default_rng(1).normal(size=(200, 200))).writeto(path)
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed)
    assert damage(path) == ""
    path.write_bytes(packed[: int(len(packed) * part)])
    assert damage(path) != ""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("axes", [1_000_000_000, 1000, -1])
def test_axes_that_cannot_be(tmp_path: Path, axes: int, packed: bool) -> None:
    """astropy would count a billion axes one by one."""
    path = tmp_path / "x.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((4, 4)))]).writeto(path)
    content = path.read_bytes()
    start = content.index(b"NAXIS   =", 2880)
    content = content[:start] + f"NAXIS   = {axes:>20}".encode().ljust(80) + content[start + 80 :]
    path.write_bytes(gzip.compress(content) if packed else content)
    assert damage(path) == f"NAXIS = {axes}"


def test_sides_that_no_file_has(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(path)
    path.write_bytes(path.read_bytes().replace(b"NAXIS1  =                    4", b"NAXIS1  =  9999999999999999999"))
    assert damage(path)


def test_groups_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    data = fits.GroupData(np.zeros((3, 1, 4, 4), np.float32), bitpix=-32, parnames=["A"], pardata=[np.zeros(3)])
    fits.HDUList([fits.GroupsHDU(data), fits.ImageHDU(np.zeros(5))]).writeto(path)
    assert damage(path) == ""
    truncated = path.read_bytes()[:-2880]
    path.write_bytes(truncated)
    assert "truncated" in damage(path)


@pytest.mark.parametrize("card", ["PCOUNT  =                -5760", "GCOUNT  =                   -1",
                                  "NAXIS1  =                -2880"])  # fmt: skip
def test_negative_sizes_do_not_go_round_in_circles(tmp_path: Path, card: str) -> None:
    path = tmp_path / "x.fits"
    values = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 1, "NAXIS1": 2880, "PCOUNT": 0, "GCOUNT": 1}
    cards = [f"{name:8}= {value!s:>20}" for name, value in values.items()]
    cards = [card if c[:8] == card[:8] else c for c in cards]
    path.write_bytes("".join(c.ljust(80) for c in [*cards, "END"]).ljust(2880).encode())
    assert damage(path) == "a size is negative"


def test_a_header_without_end_is_not_read_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    start = "".join(c.ljust(80) for c in ["SIMPLE  =                    T", "BITPIX  =                    8"]).encode()
    path.write_bytes(start + b" " * (17 << 20))
    assert damage(path) == "a header has no end"


def test_what_is_no_fits_is_not_read_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    path.write_bytes(b" " * 5_000_000)
    assert damage(path) == "No SIMPLE card found"
