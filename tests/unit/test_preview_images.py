"""Image previews: what is in the pictures."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from caldp.create_preview import make_image_preview, make_preview
from caldp.errors import PreviewError
from caldp.previews import image as drawing
from caldp.previews.image import BAD_COLOR, BLANK_COLOR
from tests.unit.pictures import is_close, is_grey, pixels, write_image, write_mosaic


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(1).normal(100.0, 5.0, (200, 200))


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
    shown = make_pixels(
        tmp_path / "x_flt.fits", noise, dq=dq, keywords={"INSTRUME": "COS"}, science_keywords={"SDQFLAGS": 184}
    )
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
    shown = make_pixels(tmp_path / "x_flt.fits", ramp, ramp * 0 + 100.0, keywords={"INSTRUME": "COS"})
    assert shown.shape == (100, 202, 3)
    assert shown[5, 50, 0] < 120 < 235 < shown[95, 50, 0]
    assert shown[:, 110:].min() > 235
    assert (shown[:, 100:102].mean(axis=(0, 1)) < 90).all()


def test_chips_are_stacked_upwards(tmp_path: Path) -> None:
    ramp = np.linspace(0.0, 100.0, 20_000).reshape(100, 200)
    shown = make_pixels(tmp_path / "x_flc.fits", ramp * 0.1, ramp + 1000.0, chips=(2, 1))
    assert shown.shape == (202, 200, 3)
    assert shown[:95].max() < 60
    assert shown[110:].min() > 200


def test_four_images_are_in_reading_order(tmp_path: Path) -> None:
    images = [np.full((40, 40), level) + np.eye(40) for level in (0.0, 100.0, 200.0, 1000.0)]
    shown = make_pixels(tmp_path / "x_flt.fits", *images, chips=(1, 2, 3, 4))[..., 0]
    quarters = [shown[60, 20], shown[60, 60], shown[20, 20], shown[20, 60]]
    assert quarters == sorted(quarters)
    assert np.diff(quarters).min() > 20


def test_large_images_are_averaged_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_SIDE", 100)
    monkeypatch.setattr(drawing, "_CHUNK", 10_000)  # several blocks of rows
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
    monkeypatch.setattr(drawing, "MAX_SIDE", 4)
    image, dq, weight = np.full((14, 16), 6.0), np.zeros((14, 16)), np.ones((14, 16))
    image[0:2, 0:4], dq[0:2, 0:4] = 1000.0, 4
    image[4:8, 4:6], weight[4:8, 4:6] = -50.0, 0
    image[12:, 12:] = 8.0  # a block cut by the edge
    with fits.open(write_image(tmp_path / "x_drz.fits", image, dq=dq, weight=weight)) as hdus:
        mosaic = drawing.read(hdus)
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


# ---- which images of a file are shown


def test_of_the_readouts_of_an_infrared_ramp_the_last_is_shown(tmp_path: Path) -> None:
    """calwf3 and the raw data count readouts backwards: SCI,1 is the last, and has the longest exposure."""
    ramp = np.linspace(0.0, 100.0, 10_000).reshape(100, 100)
    reads = [ramp * level for level in (1.0, 0.5, 0.0)]
    keywords = {"INSTRUME": "WFC3", "DETECTOR": "IR"}
    last = make_pixels(tmp_path / "last_ima.fits", reads[0], keywords=keywords)
    assert (make_pixels(tmp_path / "a_ima.fits", *reads, chips=(1, 1, 1), keywords=keywords) == last).all()
    assert (make_pixels(tmp_path / "b_ima.fits", *reads, keywords=keywords) == last).all()


def test_of_repeated_exposures_the_first_is_shown(tmp_path: Path, noise: np.ndarray) -> None:
    stis = {"INSTRUME": "STIS", "OBSTYPE": "IMAGING"}
    shown = make_pixels(tmp_path / "a_raw.fits", noise, noise + 1000.0, noise[:30, :30] + 2000.0, keywords=stis)
    assert (shown == make_pixels(tmp_path / "b_raw.fits", noise, keywords=stis)).all()


def test_drizzled_products(tmp_path: Path, noise: np.ndarray) -> None:
    """SCI, WHT, CTX and a table; weight is zero or NaN where there is no exposure."""
    weight = np.ones(noise.shape)
    weight[:, :60], weight[:, 60:80] = 0.0, np.nan
    noise[:, :80] = 5000.0
    product = write_mosaic(tmp_path / "x_drc.fits", noise, weight)
    with fits.open(product, mode="append") as hdus:
        hdus.append(fits.BinTableHDU.from_columns([fits.Column("FILENAME", "9A", array=["x"])], name="HDRTAB"))
    make_preview(product, tmp_path)
    shown = pixels(tmp_path / "x_drc.jpg")
    assert shown.shape == (200, 200, 3)
    assert is_close(shown[:, :70], BLANK_COLOR).all()
    assert is_grey(shown[:, 90:]).all()
    assert np.ptp(shown[:, 90:, 0]) > 200  # what lies behind no weight did not set the scale


# ---- raw images


def test_flags_that_acs_and_wfc3_put_into_every_header_say_nothing(tmp_path: Path, noise: np.ndarray) -> None:
    dq = np.zeros(noise.shape, dtype=int)
    dq[:50] = 256 | 4096 | 8192  # saturated, hit by a cosmic ray
    dq[100:150] = 16
    shown = make_pixels(tmp_path / "x_flt.fits", noise, dq=dq, science_keywords={"SDQFLAGS": 31743})
    assert is_grey(shown[:45]).all()
    assert is_close(shown[105:145], BAD_COLOR).all()


def write_raw(
    path: Path, detector: tuple[str, str], size: tuple[int, int], level: float = 0.0, **keywords: float | str
) -> Path:
    """Write a raw exposure of one value as a header alone."""
    science = {"NPIX1": size[1], "NPIX2": size[0], "PIXVALUE": level}
    science |= {key: value for key, value in keywords.items() if key.startswith("LTV")}
    primary = {"INSTRUME": detector[0], "DETECTOR": detector[1], "BLEVCORR": keywords.get("BLEVCORR", "PERFORM")}
    return write_image(path, None, keywords=primary, science_keywords=science)


@pytest.mark.parametrize(
    ("detector", "size", "ltv", "rows", "columns"),
    [
        (("ACS", "HRC"), (1044, 1062), (19, 0), [(0, 1024)], [(19, 1043)]),
        (("ACS", "WFC"), (2068, 4144), (24, 0), [(0, 2048)], [(24, 4120)]),
        (("ACS", "WFC"), (2068, 4144), (24, 20), [(20, 2068)], [(24, 4120)]),
        (("ACS", "WFC"), (1024, 1046), (22, -1024), [(0, 1024)], [(22, 1046)]),  # a subarray at the left
        (("ACS", "WFC"), (1024, 1046), (-3072, -1024), [(0, 1024)], [(0, 1024)]),  # and at the right
        (("WFC3", "UVIS"), (2070, 4206), (25, 0), [(0, 2051)], [(25, 2073), (2133, 4181)]),
        (("WFC3", "UVIS"), (2070, 4206), (25, 19), [(19, 2070)], [(25, 2073), (2133, 4181)]),
        (("WFC3", "IR"), (1024, 1024), (5, 5), [(5, 1019)], [(5, 1019)]),
        (("WFC3", "IR"), (74, 74), (-465, -465), [(5, 69)], [(5, 69)]),
        (("WFC3", "IR"), (1014, 1014), (0, 0), [(0, 1014)], [(0, 1014)]),
        (("ACS", "SBC"), (1024, 1024), (0, 0), [(0, 1024)], [(0, 1024)]),
        (("ACS", "HRC"), (1044, 1062), (900, 0), [(0, 1044)], [(0, 1062)]),  # no sense in it: nothing is hidden
    ],
)
def test_overscan_and_reference_pixels_are_not_exposed(
    tmp_path: Path,
    detector: tuple[str, str],
    size: tuple[int, int],
    ltv: tuple[int, int],
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]],
) -> None:
    product = write_raw(tmp_path / "x_raw.fits", detector, size, LTV1=float(ltv[0]), LTV2=float(ltv[1]))
    with fits.open(product) as hdus:
        blank = drawing.read(hdus).blank
    expected = np.ones(size)
    for bottom, top in rows:
        for left, right in columns:
            expected[bottom:top, left:right] = 0.0
    assert blank.shape == size
    assert (blank == expected).all()


def test_overscan_that_was_trimmed_is_not_looked_for(tmp_path: Path) -> None:
    """A drizzled product is larger than its detector, and has the same keywords."""
    product = write_raw(tmp_path / "x_drz.fits", ("ACS", "HRC"), (1200, 1250), LTV1=0.0, BLEVCORR="COMPLETE")
    with fits.open(product) as hdus:
        assert not drawing.read(hdus).blank.any()


def test_overscan_does_not_spoil_the_stretch(tmp_path: Path) -> None:
    """The sky is 5000 above the bias level, and varies by 100."""
    rng = np.random.default_rng(7)
    image = rng.normal(2500.0, 2.0, (1044, 1062))
    image[:1024, 19:1043] = 7500.0 + np.linspace(0.0, 100.0, 1024)
    keywords = {"DETECTOR": "HRC", "BLEVCORR": "PERFORM"}
    null = {"NPIX1": 1062, "NPIX2": 1044, "PIXVALUE": 0}
    product = write_image(
        tmp_path / "x_raw.fits", image.astype(np.uint16), keywords=keywords, science_keywords={"LTV1": 19.0}
    )
    with fits.open(product, mode="append") as hdus:
        hdus.append(fits.ImageHDU(None, fits.Header(null), name="DQ", ver=1))
    make_preview(product, tmp_path)
    shown = pixels(tmp_path / "x_raw.jpg")
    assert is_close(shown[:, :14], BLANK_COLOR).all()
    assert is_close(shown[1030:], BLANK_COLOR).all()
    assert shown[500, 25, 0] < 60 < 240 < shown[500, 1035, 0]


def test_unsigned_integers_are_scaled(tmp_path: Path) -> None:
    """Raw data are 16-bit integers with BZERO 32768, and are read a few rows at a time."""
    image = np.linspace(0, 65535, 40_000).astype(np.uint16).reshape(200, 200)
    product = write_image(tmp_path / "x_raw.fits", image)
    assert fits.getheader(product, 1)["BZERO"] == 32768
    with fits.open(product) as hdus:
        assert (drawing.read(hdus).values == image).all()


# ---- large and damaged ones


def test_a_large_image_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_SIDE", 100)
    monkeypatch.setattr(drawing, "_CHUNK", 5000)
    rows, asked = drawing._rows, []

    def recorded(hdu: Any, first: int, last: int) -> np.ndarray:
        asked.append((last - first) * 400)
        return rows(hdu, first, last)

    monkeypatch.setattr(drawing, "_rows", recorded)
    image = np.arange(400.0 * 390).reshape(390, 400)
    product = write_mosaic(tmp_path / "x_drc.fits", image)
    make_image_preview(product, tmp_path)
    assert pixels(tmp_path / "x_drc.jpg").shape == (98, 100, 3)
    assert max(asked) <= 5000
    assert sum(asked) == 2 * 390 * 400


@pytest.mark.parametrize("sides", [(50, 100), (99, 101), (100, 100), (101, 60), (100, 1)])
def test_no_picture_is_longer_than_max_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]
) -> None:
    """Not even with the gap between two chips."""
    monkeypatch.setattr(drawing, "MAX_SIDE", 100)
    image = np.arange(float(np.prod(sides))).reshape(sides)
    shown = make_pixels(tmp_path / "x_flc.fits", image, image, chips=(2, 1))
    assert 50 <= max(shown.shape) <= 100


def test_an_image_that_is_flagged_everywhere_says_so(tmp_path: Path, noise: np.ndarray) -> None:
    shown = make_pixels(tmp_path / "x_flt.fits", noise, dq=np.full(noise.shape, 4))
    assert is_close(shown[:150], BAD_COLOR).all()
    assert np.ptp(shown[170:, :, 0]) > 60


def test_an_image_without_any_exposure_says_so(tmp_path: Path, noise: np.ndarray) -> None:
    make_preview(write_mosaic(tmp_path / "x_drz.fits", noise * 0, noise * 0), tmp_path)
    shown = pixels(tmp_path / "x_drz.jpg")
    assert is_close(shown[:150], BLANK_COLOR).all()
    assert np.ptp(shown[170:, :, 0]) > 60


def test_an_image_of_no_pixels(tmp_path: Path) -> None:
    product = tmp_path / "x_drz.fits"
    header = fits.ImageHDU(np.zeros((1, 1)), name="SCI").header
    header["NAXIS1"] = 0
    product.write_bytes(fits.PrimaryHDU().header.tostring().encode() + header.tostring().encode())
    with pytest.raises(PreviewError, match=r"^x_drz\.fits: no preview is made of this kind of file"):
        make_preview(product, tmp_path)
    with pytest.raises(PreviewError, match=r"^x_drz\.fits: no image data"):
        make_image_preview(product, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x_drz.fits"]


def test_a_compressed_file_that_is_cut(tmp_path: Path, noise: np.ndarray) -> None:
    content = gzip.compress(write_image(tmp_path / "x_raw.fits", noise).read_bytes())
    (tmp_path / "y_raw.fits.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(PreviewError, match=r"^y_raw\.fits\.gz: "):
        make_preview(tmp_path / "y_raw.fits.gz", tmp_path)
    assert not list(tmp_path.glob("*.jpg"))
