"""Previews: what is in the pictures, and that failures are named."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from caldp import create_preview
from caldp.create_preview import (
    BAD_COLOR,
    BLANK_COLOR,
    Preview,
    create_previews,
    main,
    make_image_preview,
    make_preview,
    make_spectrum_preview,
    preview_kind,
)
from caldp.errors import PreviewError
from caldp.programs import ProgramRun, run

ROOT = Path(create_preview.__file__).parents[1]


# ---- synthetic products


def write_image(
    path: Path,
    *science: np.ndarray | None,
    dq: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    keywords: dict[str, Any] | None = None,
    science_keywords: dict[str, Any] | None = None,
) -> Path:
    primary = fits.PrimaryHDU()
    primary.header.update({"INSTRUME": "ACS", **(keywords or {})})
    hdus = fits.HDUList([primary])
    for version, data in enumerate(science, 1):
        header = fits.Header(science_keywords or {})
        hdus.append(fits.ImageHDU(data, header, name="SCI", ver=version))
        hdus.append(fits.ImageHDU(None if data is None else np.ones_like(data), name="ERR", ver=version))
        if dq is not None:
            hdus.append(fits.ImageHDU(dq.astype(np.int16), name="DQ", ver=version))
        if weight is not None:
            hdus.append(fits.ImageHDU(weight.astype(np.float32), name="WHT", ver=version))
    hdus.writeto(path)
    return path


def write_spectrum(
    path: Path,
    flux: np.ndarray | None = None,
    *,
    segments: Sequence[str] = ("FUVA",),
    weight: float = 1.0,
    extname: str = "SCI",
    omit: str = "",
    **keywords: str,
) -> Path:
    """Write a COS x1d with the columns, formats and units of calcos 3.6.2."""
    size = 400
    wavelength = np.array([np.linspace(1300.0, 1700.0, size) - 450.0 * i for i in range(len(segments))])
    if flux is None:
        flux = 1e-14 * (1.0 + 0.2 * np.sin(wavelength / 20.0))
    flux = np.broadcast_to(flux, wavelength.shape)
    per_point = {
        "WAVELENGTH": ("D", "angstrom", wavelength),
        "FLUX": ("E", "erg /s /cm**2 /angstrom", flux),
        "ERROR": ("E", "erg /s /cm**2 /angstrom", np.full_like(wavelength, 1e-15)),
        "GROSS": ("E", "count /s", flux * 1e14),
        "NET": ("E", "count /s", flux * 1e14),
        "DQ": ("I", None, np.full_like(wavelength, 0 if weight else 8)),
        "DQ_WGT": ("E", None, np.full_like(wavelength, weight)),
    }
    columns = [
        fits.Column("SEGMENT", "4A", array=list(segments)),
        fits.Column("EXPTIME", "1D", unit="s", array=[100.0] * len(segments)),
        fits.Column("NELEM", "1J", array=[size] * len(segments)),
    ]
    columns += [
        fits.Column(name, f"{size}{form}", unit=unit, array=values if segments else None)
        for name, (form, unit, values) in per_point.items()
        if name != omit
    ]
    primary = fits.PrimaryHDU()
    facts = {"INSTRUME": "COS", "OBSTYPE": "SPECTROSCOPIC", "OPT_ELEM": "G160M"} | keywords
    primary.header.update({key: value for key, value in facts.items() if value})
    fits.HDUList([primary, fits.BinTableHDU.from_columns(columns, name=extname)]).writeto(path)
    return path


def pixels(path: Path) -> np.ndarray:
    """Return RGB values with the shape (ny, nx, 3) as FITS orders them: row 0 at the bottom."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)[::-1]


def is_close(color: np.ndarray, other: Sequence[int], tolerance: int = 12) -> np.ndarray:
    result: np.ndarray = np.abs(color - np.asarray(other)).max(axis=-1) <= tolerance
    return result


def is_grey(color: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.ptp(color, axis=-1) <= 12
    return result


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(1).normal(100.0, 5.0, (200, 200))


# ---- kinds


def test_kinds(tmp_path: Path, noise: np.ndarray) -> None:
    imaging = {"INSTRUME": "COS", "OBSTYPE": "IMAGING"}
    dispersed = {"INSTRUME": "COS", "OBSTYPE": "SPECTROSCOPIC"}
    stis = {"INSTRUME": "STIS", "OBSTYPE": "SPECTROSCOPIC"}
    grism = {"INSTRUME": "ACS", "OBSTYPE": "SPECTROSCOPIC"}
    assert preview_kind(write_spectrum(tmp_path / "a_x1d.fits")) == "spectrum"
    assert preview_kind(write_spectrum(tmp_path / "b_corrtag.fits", extname="EVENTS", omit="FLUX")) is None
    assert preview_kind(write_spectrum(tmp_path / "c_asn.fits", extname="ASN", omit="WAVELENGTH")) is None
    assert preview_kind(write_image(tmp_path / "d_flt.fits", noise, keywords=imaging)) == "image"
    assert preview_kind(write_image(tmp_path / "e_flt.fits", noise, keywords=dispersed)) is None
    assert preview_kind(write_image(tmp_path / "f_flt.fits", noise, keywords=stis)) is None
    assert preview_kind(write_image(tmp_path / "g_flt.fits", noise, keywords=grism)) == "image"
    assert preview_kind(write_image(tmp_path / "h_spt.fits", noise[0])) is None
    fits.PrimaryHDU(noise).writeto(tmp_path / "i.fits")
    assert preview_kind(tmp_path / "i.fits") == "image"
    with pytest.raises(PreviewError, match=r"^e_flt\.fits: no preview"):
        make_preview(tmp_path / "e_flt.fits", tmp_path)


# ---- images


def test_image_names_sizes_and_json(tmp_path: Path, noise: np.ndarray) -> None:
    product = write_image(tmp_path / "jabc01020_drz.fits", noise[:100])
    previews = make_preview(product, tmp_path / "new" / "previews")
    assert [(p.name, p.kind, p.product) for p in previews] == [
        ("jabc01020_drz.jpg", "image", "jabc01020_drz.fits"),
        ("jabc01020_drz_thumb.jpg", "thumbnail", "jabc01020_drz.fits"),
    ]
    directory = tmp_path / "new" / "previews"
    assert sorted(p.name for p in directory.iterdir()) == sorted(p.name for p in previews)
    assert [p.size for p in previews] == [(directory / p.name).stat().st_size for p in previews]
    assert previews[0].to_json() == {
        "name": "jabc01020_drz.jpg",
        "kind": "image",
        "product": "jabc01020_drz.fits",
        "size": previews[0].size,
    }
    with Image.open(directory / previews[0].name) as full, Image.open(directory / previews[1].name) as thumb:
        assert (full.format, full.size, thumb.size) == ("JPEG", (200, 100), (128, 64))


@pytest.mark.parametrize(("shape", "size"), [((30, 10), (43, 128)), ((500, 1000), (128, 64)), ((3, 900), (128, 1))])
def test_thumbnail_has_128_pixels_on_its_longest_side(
    tmp_path: Path, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    product = write_image(tmp_path / "x_drz.fits", np.arange(float(np.prod(shape))).reshape(shape))
    make_image_preview(product, tmp_path)
    with Image.open(tmp_path / "x_drz_thumb.jpg") as thumb:
        assert thumb.size == size


def test_thumbnail_size_is_a_parameter(tmp_path: Path, noise: np.ndarray) -> None:
    make_image_preview(write_image(tmp_path / "x_drz.fits", noise), tmp_path, thumbnail=64)
    with Image.open(tmp_path / "x_drz_thumb.jpg") as thumb:
        assert thumb.size == (64, 64)


def test_origin_is_at_the_lower_left(tmp_path: Path) -> None:
    image = np.zeros((60, 120))
    image[40:, :] = 50.0  # upper third grey, and in its right end
    image[40:, 90:] = 100.0  # white
    make_image_preview(write_image(tmp_path / "x_drz.fits", image), tmp_path)
    for name in ("x_drz.jpg", "x_drz_thumb.jpg"):
        with Image.open(tmp_path / name) as picture:
            grey = np.asarray(picture.convert("L"), dtype=int)
        top, bottom, end = grey.shape[0] // 6, grey.shape[0] * 5 // 6, int(grey.shape[1] * 0.9)
        assert grey[bottom].max() < 20, name
        assert grey[top, end] > 235, name
        assert 100 < grey[top, 20] < 235, name


def test_the_stretch_is_asinh_of_the_central_99_5_per_cent(tmp_path: Path) -> None:
    image = np.linspace(0.0, 1000.0, 250_000).reshape(500, 500)
    make_image_preview(write_image(tmp_path / "x_drz.fits", image), tmp_path)
    grey = pixels(tmp_path / "x_drz.jpg")[..., 0]
    low, high = 2.5, 997.5
    for row in (50, 125, 250, 400):
        expected = np.arcsinh((image[row, 250] - low) / (high - low) / 0.1) / np.arcsinh(10.0)
        assert grey[row, 250] == pytest.approx(255 * expected, abs=3)


def test_bad_pixels_show_and_do_not_set_the_scale(tmp_path: Path, noise: np.ndarray) -> None:
    clean = make_pixels(tmp_path / "clean_flt.fits", noise)
    dq = np.zeros(noise.shape, dtype=int)
    dq[50:60, 70:90] = 4  # bad detector pixel
    dq[120, 120] = 128
    dq[10:20, 10:20] = 256  # saturated: still what the detector saw
    spoiled = noise.copy()
    spoiled[50:60, 70:90] = 1e9
    spoiled[120, 120] = -1e9
    spoiled[150:155, 150:160] = np.nan
    spoiled[160, 160] = np.inf
    spoiled[170, 170] = 3.4e38
    shown = make_pixels(tmp_path / "bad_flt.fits", spoiled, dq=dq)
    bad = ((dq & 4) | (dq & 128)).astype(bool) | ~(np.abs(spoiled) < 1e38)
    assert is_close(shown[52:58, 72:88], BAD_COLOR).all()
    assert is_close(shown[151:154, 151:159], BAD_COLOR).all()
    for y, x in ((120, 120), (160, 160), (170, 170)):  # a single one is seen as well
        assert shown[y, x, 2] - shown[y, x, 0] > 80
    far = np.ones_like(bad)
    for y, x in np.argwhere(bad):  # JPEG blocks that hold a bad pixel ring
        rows, columns = 199 - (199 - y) // 8 * 8, x // 8 * 8
        far[max(rows - 8, 0) : rows + 1, columns : columns + 8] = False
    assert far.sum() > 30_000
    # The scale is that of the image without the bad pixels, up to what they took away from the sample.
    assert np.abs(shown[far] - clean[far]).mean() < 2.0
    assert is_grey(shown[far]).all()


def make_pixels(path: Path, *science: np.ndarray, **options: Any) -> np.ndarray:  # noqa: ANN401
    make_image_preview(write_image(path, *science, **options), path.parent)
    return pixels(path.with_suffix(".jpg"))


def test_the_header_says_which_dq_bits_are_serious(tmp_path: Path, noise: np.ndarray) -> None:
    dq = np.zeros(noise.shape, dtype=int)
    dq[:50] = 4  # COS: grid shadow, not in its SDQFLAGS
    dq[100:150] = 8
    shown = make_pixels(tmp_path / "x_flt.fits", noise, dq=dq, science_keywords={"SDQFLAGS": 184})
    assert is_grey(shown[:45]).all()
    assert is_close(shown[105:145], BAD_COLOR).all()


def test_places_without_exposure_are_not_bad_pixels(tmp_path: Path, noise: np.ndarray) -> None:
    weight = np.ones(noise.shape)
    weight[:, :80] = 0.0
    noise[:, :80] = np.nan
    shown = make_pixels(tmp_path / "x_drz.fits", noise, weight=weight)
    assert is_close(shown[:, :70], BLANK_COLOR).all()
    assert is_grey(shown[:, 90:]).all()
    thumb = pixels(tmp_path / "x_drz_thumb.jpg")
    assert is_close(thumb[:, :45], BLANK_COLOR).all()


def test_photons_on_an_empty_background(tmp_path: Path) -> None:
    """99.5 per cent of a COS acquisition image are zero or one photon: a star must not look like a photon."""
    image = np.zeros((512, 512))
    rng = np.random.default_rng(2)
    image[rng.integers(0, 512, 8000), rng.integers(0, 512, 8000)] = 1.0
    image[300:303, 100:103] = 200.0
    shown = make_pixels(tmp_path / "x_counts.fits", image)
    photon = np.argwhere(image == 1.0)
    photon = photon[np.abs(photon - [301, 101]).max(axis=1) > 20]
    assert shown[301, 101].min() > 240
    assert 5 < shown[photon[:, 0], photon[:, 1], 0].mean() < 90
    thumb = pixels(tmp_path / "x_counts_thumb.jpg")[..., 0]
    assert np.unravel_index(thumb.argmax(), thumb.shape) == (75, 25)


def test_square_images_are_side_by_side_on_one_scale(tmp_path: Path) -> None:
    ramp = np.linspace(0.0, 100.0, 10_000).reshape(100, 100)
    shown = make_pixels(tmp_path / "x_flt.fits", ramp, ramp * 0 + 100.0)
    assert shown.shape == (100, 202, 3)
    assert shown[5, 50, 0] < 120 < 235 < shown[95, 50, 0]
    assert shown[:, 110:].min() > 235
    assert (shown[:, 100:102].mean(axis=(0, 1)) < 90).all()


def test_chips_are_stacked_upwards(tmp_path: Path) -> None:
    ramp = np.linspace(0.0, 100.0, 20_000).reshape(100, 200)
    shown = make_pixels(tmp_path / "x_flc.fits", ramp * 0.1, ramp + 1000.0)
    assert shown.shape == (202, 200, 3)
    assert shown[:95].max() < 60
    assert shown[110:].min() > 200


def test_four_images_are_in_reading_order(tmp_path: Path) -> None:
    images = [np.full((40, 40), level) + np.eye(40) for level in (0.0, 100.0, 200.0, 1000.0)]
    shown = make_pixels(tmp_path / "x_ima.fits", *images)[..., 0]
    quarters = [shown[60, 20], shown[60, 60], shown[20, 20], shown[20, 60]]
    assert quarters == sorted(quarters)
    assert np.diff(quarters).min() > 20


def test_large_images_are_averaged_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_preview, "MAX_SIDE", 100)
    monkeypatch.setattr(create_preview, "_CHUNK", 10_000)  # several blocks of rows
    rng = np.random.default_rng(3)
    coarse = rng.uniform(0.0, 100.0, (76, 94)).repeat(4, axis=0).repeat(4, axis=1)[:303, :374]
    image = coarse + np.tile([[1.0, -1.0], [-1.0, 1.0]], (152, 187))[:303, :374]
    dq = np.zeros(image.shape, dtype=int)
    image[100, 100], dq[100, 100] = 1e7, 4  # one of the sixteen pixels of a block
    image[200:240, 200:240], dq[200:240, 200:240] = -1e7, 4
    shown = make_pixels(tmp_path / "x_drz.fits", image.astype(np.float32), dq=dq)
    assert shown.shape == (76, 94, 3)
    assert is_close(shown[52:58, 52:58], BAD_COLOR, 30).all()
    means = coarse[::4, ::4]
    clear = np.ones(means.shape, dtype=bool)
    clear[44:68, 44:68] = clear[20:32, 20:32] = False
    low, high = np.percentile(np.delete(means.ravel(), np.flatnonzero(~clear)), [0.25, 99.75])
    expected = np.arcsinh(np.clip((means - low) / (high - low), 0, 1) / 0.1) / np.arcsinh(10.0) * 255
    assert np.abs(shown[..., 0][clear] - expected[clear]).mean() < 6
    assert 0 < shown[25, 25, 2] - shown[25, 25, 0] < 60  # tinted by its sixteenth, and not thrown off the scale


def test_the_mean_of_a_block_is_that_of_its_valid_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_preview, "MAX_SIDE", 4)
    image, dq, weight = np.full((14, 16), 6.0), np.zeros((14, 16)), np.ones((14, 16))
    image[0:2, 0:4], dq[0:2, 0:4] = 1000.0, 4
    image[4:8, 4:6], weight[4:8, 4:6] = -50.0, 0
    image[12:, 12:] = 8.0  # a block cut by the edge
    with fits.open(write_image(tmp_path / "x_drz.fits", image, dq=dq, weight=weight)) as hdus:
        mosaic = create_preview._read_mosaic(hdus)
    expected = np.full((4, 4), 6.0)
    expected[3, 3] = 8.0
    assert mosaic.values == pytest.approx(expected)
    assert (mosaic.bad[0, 0], mosaic.bad.sum()) == (0.5, 0.5)
    assert (mosaic.blank[1, 1], mosaic.blank.sum()) == (0.5, 0.5)
    again = mosaic.binned(2)
    assert again.values == pytest.approx(np.array([[6.0, 6.0], [6.0, 6.5]]))
    assert (again.bad[0, 0], again.blank[0, 0]) == (0.125, 0.125)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_a_constant_image_is_flat_and_says_so(tmp_path: Path, value: float) -> None:
    shown = make_pixels(tmp_path / "x_drz.fits", np.full((200, 300), value, dtype=np.float32))
    assert (np.abs(shown[:150] - 128) < 5).all()
    assert np.ptp(shown[170:]) > 60  # words
    thumb = pixels(tmp_path / "x_drz_thumb.jpg")
    assert (np.abs(thumb - 128) < 5).all()


def test_one_pixel_on_a_constant_background(tmp_path: Path) -> None:
    image = np.full((64, 64), 7.0)
    image[20, 30] = 8.0
    shown = make_pixels(tmp_path / "x_drz.fits", image)
    assert shown[20, 30].min() > 220
    assert np.median(shown) < 10


def test_an_image_of_nothing_but_bad_pixels_says_so(tmp_path: Path) -> None:
    shown = make_pixels(tmp_path / "x_drz.fits", np.full((200, 300), np.nan))
    assert is_close(shown[:150], BAD_COLOR).all()
    assert np.ptp(shown[170:, :, 0]) > 60
    assert is_close(pixels(tmp_path / "x_drz_thumb.jpg"), BAD_COLOR).all()


def test_null_images_of_calcos_are_constant(tmp_path: Path) -> None:
    product = write_image(tmp_path / "x_flt.fits", None)
    with pytest.raises(PreviewError, match=r"^x_flt\.fits: no image data"):
        make_preview(product, tmp_path)
    assert not list(tmp_path.glob("*.jpg"))
    facts = {"NPIX1": 30, "NPIX2": 20, "PIXVALUE": 0}
    make_preview(write_image(tmp_path / "y_flt.fits", None, science_keywords=facts), tmp_path)
    assert pixels(tmp_path / "y_flt.jpg").shape == (20, 30, 3)


def test_compressed_and_integer_files(tmp_path: Path, noise: np.ndarray) -> None:
    plain = make_pixels(tmp_path / "x_raw.fits", noise.astype(np.uint16))
    (tmp_path / "y_raw.fits.gz").write_bytes(gzip.compress((tmp_path / "x_raw.fits").read_bytes()))
    previews = make_preview(tmp_path / "y_raw.fits.gz", tmp_path)
    assert [p.name for p in previews] == ["y_raw.jpg", "y_raw_thumb.jpg"]
    assert (pixels(tmp_path / "y_raw.jpg") == plain).all()
    assert np.ptp(plain[..., 0]) > 200


# ---- spectra


def test_spectrum_previews(tmp_path: Path) -> None:
    product = write_spectrum(tmp_path / "labc01010_x1dsum.fits", segments=("FUVA", "FUVB"))
    previews = make_preview(product, tmp_path / "previews")
    assert [(p.name, p.kind, p.product) for p in previews] == [
        ("labc01010_x1dsum.png", "spectrum", product.name),
        ("labc01010_x1dsum_thumb.png", "thumbnail", product.name),
        ("labc01010_x1dsum_prev.fits", "table", product.name),
    ]
    directory = tmp_path / "previews"
    assert sorted(p.name for p in directory.iterdir()) == sorted(p.name for p in previews)
    with Image.open(directory / previews[0].name) as full, Image.open(directory / previews[1].name) as thumb:
        assert (full.size, thumb.size) == ((1024, 1024), (128, 128))
    shown = pixels(directory / previews[0].name)
    assert (shown[..., 2] - shown[..., 0] > 80).sum() > 1000  # the curve, in blue
    with fits.open(directory / previews[2].name) as hdus:
        assert list(hdus[1].data["segment"]) == ["FUVB"] * 400 + ["FUVA"] * 400
        assert hdus[1].data["wls"][0] == pytest.approx(850.0)
        assert hdus[1].data["fls"].max() == pytest.approx(1.2e-14, rel=0.01)


def test_a_spectrum_without_signal_is_shown_as_such(tmp_path: Path) -> None:
    """spec-plots 1.37.1 alone cannot write the table of a spectrum whose fluxes are all zero."""
    flux = np.zeros((2, 400))
    flux[0] = 1e-14
    product = write_spectrum(tmp_path / "a_x1d.fits", flux[1], weight=0.0)
    assert len(make_spectrum_preview(product, tmp_path)) == 3
    shown = pixels(tmp_path / "a_x1d.png")
    assert (shown[..., 2] - shown[..., 0] > 80).sum() == 0
    assert is_close(shown[300:400, 300:400], (211, 211, 211)).all()  # the area greyed out by spec-plots
    with fits.open(tmp_path / "a_x1d_prev.fits") as hdus:
        assert (hdus[1].header["FUVAYMIN"], hdus[1].header["FUVAYMAX"]) == (-1.0, 1.0)
        assert not hdus[1].data["dq_wgts"].any()
    both = write_spectrum(tmp_path / "b_x1d.fits", flux, segments=("FUVA", "FUVB"))
    assert len(make_spectrum_preview(both, tmp_path)) == 3


def test_a_spectrum_of_flagged_points_carries_a_warning(tmp_path: Path) -> None:
    make_spectrum_preview(write_spectrum(tmp_path / "good_x1d.fits"), tmp_path)
    make_spectrum_preview(write_spectrum(tmp_path / "bad_x1d.fits", weight=0.0), tmp_path)
    title = (slice(942, 955), slice(600, 1024))
    red = [np.ptp(pixels(tmp_path / f"{name}_x1d.png")[title][..., 1]) for name in ("good", "bad")]
    assert red[0] < 20 < 100 < red[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"flux": np.full(400, np.nan)}, "no finite flux in row 1"),
        ({"segments": ()}, "no rows"),
        ({"omit": "DQ_WGT"}, "DQ_WGT column not found"),  # spec-plots calls sys.exit
        ({"INSTRUME": "FOS"}, "FOS"),
        ({"segments": ("FUVA", "FUVA")}, "SEGMENT strings"),
    ],
)
def test_spectra_that_cannot_be_plotted(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    product = write_spectrum(tmp_path / "a_x1d.fits", **options)
    with pytest.raises(PreviewError, match=rf"^a_x1d\.fits: .*{reason}"):
        make_preview(product, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a_x1d.fits"]


def test_a_directory_that_looks_like_a_picture(tmp_path: Path) -> None:
    """spec-plots 1.37.1 cuts the path of its thumbnail at the first .png."""
    directory = tmp_path / "my.png.files"
    make_spectrum_preview(write_spectrum(tmp_path / "a_x1d.fits"), directory)
    assert sorted(p.name for p in directory.iterdir()) == ["a_x1d.png", "a_x1d_prev.fits", "a_x1d_thumb.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_x1d.fits", "my.png.files"]


# ---- damaged files, and writing


@pytest.mark.parametrize("size", [0, 1, 2000, 2880, 4000, 9000, 60_000, -3000])
def test_truncated_files(tmp_path: Path, noise: np.ndarray, size: int) -> None:
    for product in (write_image(tmp_path / "a_flt.fits", noise), write_spectrum(tmp_path / "b_x1d.fits")):
        content = product.read_bytes()
        if size >= len(content):
            continue
        product.write_bytes(content[:size])
        with pytest.raises(PreviewError, match=rf"^{product.name}: "):
            make_preview(product, tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".fits"}


def test_a_cut_in_the_header_of_a_later_chip(tmp_path: Path, noise: np.ndarray) -> None:
    """astropy hides such an extension: without care, half of the field would be missing from the picture."""
    product = write_image(tmp_path / "a_flt.fits", noise, noise)
    with fits.open(product) as hdus:
        cut = hdus[3].fileinfo()["hdrLoc"] + 1000
    product.write_bytes(product.read_bytes()[:cut])
    with pytest.raises(PreviewError, match=r"^a_flt\.fits: damaged"):
        make_preview(product, tmp_path)


def test_an_old_preview_survives_a_failure(tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing appears under a final name before everything is written and opens."""
    product = write_image(tmp_path / "a_flt.fits", noise)
    (tmp_path / "a_flt.jpg").write_text("old")
    save = Image.Image.save

    def broken(picture: Image.Image, path: Path, **options: Any) -> None:  # noqa: ANN401
        save(picture, path, **options)
        if "thumb" in path.name:
            path.write_bytes(path.read_bytes()[:-200])

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(PreviewError, match=r"^a_flt\.fits: its preview a_flt_thumb\.jpg is unreadable"):
        make_preview(product, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_flt.fits", "a_flt.jpg"]
    assert (tmp_path / "a_flt.jpg").read_text() == "old"


def test_the_module_is_light() -> None:
    code = "import sys, caldp.create_preview; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = ["numpy", "astropy", "matplotlib", "PIL", "spec_plots"]
    result = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


# ---- the command


def test_command_makes_previews_beside_the_files(
    tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    product = write_image(tmp_path / "a_flt.fits", noise)
    assert main([str(product)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["a_flt.jpg", "a_flt_thumb.jpg"]
    assert (tmp_path / "a_flt_thumb.jpg").is_file()


def test_command_goes_on_after_a_failure(tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_image(tmp_path / "good_flt.fits", noise)
    cut = write_image(tmp_path / "cut_flt.fits", noise)
    cut.write_bytes(cut.read_bytes()[:50_000])
    out = tmp_path / "out"
    assert main(["--output", str(out), "--thumbnail", "32", "--json", str(cut), str(good)]) == 28
    printed = capsys.readouterr()
    documents = [json.loads(line) for line in printed.out.splitlines()]
    assert documents[0]["product"] == "cut_flt.fits"
    assert documents[0]["previews"] == []
    assert "truncated" in documents[0]["error"]
    assert documents[1]["error"] is None
    assert [Preview(**p).to_json() for p in documents[1]["previews"]] == documents[1]["previews"]
    assert printed.err.splitlines() == [f"error: {documents[0]['error']}"]
    with Image.open(out / "good_flt_thumb.jpg") as thumb:
        assert thumb.size == (32, 32)


@pytest.mark.parametrize(
    "arguments", [[], ["nowhere.fits"], ["garbage.fits"], ["empty.fits"], ["."], ["--thumbnail", "0", "a_flt.fits"]]
)
def test_usage_errors(
    tmp_path: Path,
    noise: np.ndarray,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a_flt.fits", noise)
    (tmp_path / "garbage.fits").write_bytes(os.urandom(5000))
    (tmp_path / "empty.fits").touch()
    assert main(["a_flt.fits", *arguments] if arguments else []) == 2
    assert "error: " in capsys.readouterr().err
    assert not list(tmp_path.glob("*.jpg"))


def test_files_of_one_name_do_not_overwrite_each_other(
    tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "x_flt.fits", noise)
    files = [str(tmp_path / name / "x_flt.fits") for name in ("a", "b")]
    assert main(["--output", str(tmp_path), *files]) == 2
    assert "same name" in capsys.readouterr().err
    assert main(files) == 0


# ---- workers


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[[Sequence[str]], ProgramRun]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path / "mpl")}
    return lambda argv: run(argv, cwd=tmp_path, env=env, on_line=lambda line: None)


def pretending(code: str, tmp_path: Path) -> Callable[[Sequence[str]], ProgramRun]:
    """Return a runner whose workers run ``code`` with the real arguments instead."""
    script = textwrap.dedent(code)

    def run_program(argv: Sequence[str]) -> ProgramRun:
        command = [sys.executable, "-c", script, *argv[3:]]
        return run(command, cwd=tmp_path, env=os.environ, on_line=lambda line: None)

    return run_program


def test_create_previews(tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]) -> None:
    products = [
        write_image(tmp_path / "c_flt.fits", noise),
        write_spectrum(tmp_path / "b_x1d.fits"),
        write_image(tmp_path / "a_flt.fits", noise),
    ]
    commands: list[list[str]] = []

    def recorded(argv: Sequence[str]) -> ProgramRun:
        commands.append(list(argv))
        return run_program(argv)

    out = tmp_path / "out"
    previews = create_previews(products, out, recorded, jobs=2, thumbnail=64)
    assert [p.name for p in previews] == [
        "c_flt.jpg",
        "c_flt_thumb.jpg",
        "b_x1d.png",
        "b_x1d_thumb.png",
        "b_x1d_prev.fits",
        "a_flt.jpg",
        "a_flt_thumb.jpg",
    ]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in previews)
    assert all(p.size == (out / p.name).stat().st_size > 0 for p in previews)
    assert len(commands) == 2
    assert sorted(file for command in commands for file in command[8:]) == sorted(map(str, products))
    assert all(
        command[:8]
        == [sys.executable, "-m", "caldp.create_preview", "--json", "--output", str(out)] + ["--thumbnail", "64"]
        for command in commands
    )
    assert create_previews([], out, recorded) == []


def test_every_failed_product_is_named(
    tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]
) -> None:
    good = write_image(tmp_path / "good_flt.fits", noise)
    cut = write_image(tmp_path / "cut_flt.fits", noise)
    cut.write_bytes(cut.read_bytes()[:50_000])
    table = write_spectrum(tmp_path / "a_asn.fits", extname="ASN", omit="FLUX")
    with pytest.raises(PreviewError) as caught:
        create_previews([good, cut, table], tmp_path / "out", run_program, jobs=1)
    assert caught.value.code == 28
    reasons = caught.value.message.split("; ")
    assert [reason.split(":")[0] for reason in reasons] == ["cut_flt.fits", "a_asn.fits"]
    assert "truncated" in reasons[0]
    assert (tmp_path / "out" / "good_flt.jpg").is_file()


def test_a_file_that_is_not_fits_is_named(
    tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]
) -> None:
    good = write_image(tmp_path / "good_flt.fits", noise)
    (tmp_path / "bad_flt.fits").write_text("<html>not found</html>")
    with pytest.raises(PreviewError, match=r"bad_flt\.fits: not a FITS file"):
        create_previews([good, tmp_path / "bad_flt.fits"], tmp_path / "out", run_program, jobs=1)


def test_a_worker_killed_by_a_signal(tmp_path: Path, noise: np.ndarray) -> None:
    """It dies with one file done and the next half written, under a temporary name."""
    products = [write_image(tmp_path / f"{name}_flt.fits", noise) for name in "abc"]
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from caldp import create_preview
        make, count = create_preview.make_preview, []
        def dying(product, directory, thumbnail):
            if not count:
                count.append(1)
                return make(product, directory, thumbnail)
            with create_preview._published(product, directory, {{}}) as scratch:
                Path(scratch, "b_flt.jpg").write_text("half")
                print("about to fail", flush=True)
                os.kill(os.getpid(), signal.{signal.SIGKILL.name})
        create_preview.make_preview = dying
        sys.exit(create_preview.main(sys.argv[1:]))
    """
    out = tmp_path / "out"
    with pytest.raises(PreviewError) as caught:
        create_previews(products, out, pretending(code, tmp_path), jobs=1)
    reasons = caught.value.message.split("; ")
    assert len(reasons) == 2
    assert reasons[0] == "b_flt.fits: the preview worker ended with killed by SIGKILL: about to fail"
    assert reasons[1].startswith("c_flt.fits: not reached")
    assert sorted(p.name for p in out.iterdir()) == ["a_flt.jpg", "a_flt_thumb.jpg"]


def test_a_worker_that_crashes(tmp_path: Path, noise: np.ndarray) -> None:
    product = write_image(tmp_path / "a_flt.fits", noise)
    with pytest.raises(PreviewError, match=r"^a_flt\.fits: .*exit status 1: ValueError: broken"):
        create_previews([product], tmp_path / "out", pretending("raise ValueError('broken')", tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "was not written"), (b"", "is empty"), (b"\xff\xd8\xff\xe0 no JPEG", "is unreadable")],
)
def test_a_worker_that_lies(tmp_path: Path, noise: np.ndarray, content: bytes | None, reason: str) -> None:
    product = write_image(tmp_path / "a_flt.fits", noise)
    out = tmp_path / "out"
    make_image_preview(product, out)  # of an earlier attempt: it must not pass for the work of this one
    good = (out / "a_flt.jpg").read_bytes()

    def run_program(argv: Sequence[str]) -> ProgramRun:
        assert not list(out.iterdir())
        (out / "a_flt.jpg").write_bytes(good)
        if content is not None:
            (out / "a_flt_thumb.jpg").write_bytes(content)
        return ProgramRun(tuple(argv), 0, 1.0, 1.0, 1)

    with pytest.raises(PreviewError, match=rf"^a_flt\.fits: its preview a_flt_thumb\.jpg {reason}"):
        create_previews([product], out, run_program)


def test_a_damaged_table_of_points_is_noticed(tmp_path: Path) -> None:
    product = write_spectrum(tmp_path / "a_x1d.fits")
    out = tmp_path / "out"
    make_spectrum_preview(product, tmp_path / "made")

    def run_program(argv: Sequence[str]) -> ProgramRun:
        for path in (tmp_path / "made").iterdir():
            content = path.read_bytes()
            (out / path.name).write_bytes(content[:9000] if path.suffix == ".fits" else content)
        return ProgramRun(tuple(argv), 0, 1.0, 1.0, 1)

    with pytest.raises(PreviewError, match=r"^a_x1d\.fits: its preview a_x1d_prev\.fits is unreadable"):
        create_previews([product], out, run_program)


def test_lack_of_memory_is_named(tmp_path: Path, noise: np.ndarray) -> None:
    product = write_image(tmp_path / "a_flt.fits", noise)

    def run_program(argv: Sequence[str]) -> ProgramRun:
        return ProgramRun(tuple(argv), -signal.SIGKILL, 1.0, 1.0, 1, oom_kills=1)

    with pytest.raises(PreviewError, match="killed by SIGKILL, for lack of memory"):
        create_previews([product], tmp_path / "out", run_program)


def test_work_is_balanced(tmp_path: Path) -> None:
    sizes = {"a": 300, "b": 100, "c": 100, "d": 100}
    products = []
    for name, size in sizes.items():
        products.append(tmp_path / name)
        with products[-1].open("wb") as file:
            file.truncate(size * 1_000_000)  # sparse
    groups = create_preview._shared(products, 2)
    assert sorted(sorted(p.name for p in group) for group in groups) == [["a"], ["b", "c", "d"]] or sorted(
        len(group) for group in groups
    ) == [2, 2]
    assert [len(group) for group in create_preview._shared(products, 9)] == [1, 1, 1, 1]
    assert [len(group) for group in create_preview._shared(products, 0)] == [4]
