"""Colour composites: which files make one, and what is in the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caldp.create_preview import make_colour_preview
from caldp.errors import PreviewError
from caldp.previews import colour
from caldp.previews.image import BLANK_COLOR
from tests.unit.pictures import is_close, is_grey, pixels, write_mosaic

VISIT = "hst_9774_01_acs_wfc"
CELL = "hst_skycell-p2381x06y09_wfc3"


def found(*names: str) -> list[tuple[str, list[str], str]]:
    """Return the composites of some names: base, channels, product."""
    composites = colour.find(Path("/data", name) for name in names)
    return [(c.base, [path.name for path in c.channels], c.product.name) for c in composites]


# ---- filters


def test_the_table_of_filters_is_sound() -> None:
    table = colour._table()
    cameras = [key[:2] for key in table]
    assert {camera: cameras.count(camera) for camera in cameras} == {
        ("acs", "wfc"): 13,
        ("acs", "hrc"): 17,
        ("acs", "sbc"): 6,
        ("wfc3", "uvis"): 62,
        ("wfc3", "ir"): 15,
    }
    for (_, detector, name), length in table.items():
        digits = int("".join(c for c in name if c.isdigit())) * (100 if detector == "ir" else 10)
        assert name == name.lower()
        # Names say the wavelength, of long-pass filters the edge.
        if name.endswith("lp"):
            assert digits < length < 3 * digits
        else:
            assert length == pytest.approx(digits, rel=0.1)


@pytest.mark.parametrize(
    ("camera", "name", "length", "note"),
    [
        (("acs", "wfc"), "f814w", 8060, ""),
        (("acs", "hrc"), "F814W", 8115, ""),
        (("wfc3", "uvis"), "fq889n", 8892, ""),
        (("wfc3", "ir"), "f160w", 15370, ""),
        (("acs", "wfc"), "f555w-clear2l", 5360, ""),
        (("acs", "wfc"), "clear1l-f814w", 8060, ""),
        (("acs", "wfc"), "f606w-pol0v", 5918, ""),
        (("acs", "hrc"), "pol120uv-f330w", 3363, ""),
        (("acs", "wfc"), "f502n-f606w", (5023 + 5918) / 2, ""),
        (("acs", "wfc"), "clear1l-clear2l", None, ""),
        (("acs", "wfc"), "pol60v", None, ""),
        (("wfc3", "ir"), "g141", None, "g141 is a disperser: not used in a composite"),
        (("acs", "wfc"), "g800l-pol0v", None, "g800l is a disperser: not used in a composite"),
        (("acs", "sbc"), "pr110l", None, "pr110l is a disperser: not used in a composite"),
        (("acs", "wfc"), "fr505n", 5050, "fr505n is not in the table of filters: taken for 5050 angstrom"),
        (("acs", "wfc"), "f999w", 9990, "f999w is not in the table of filters: taken for 9990 angstrom"),
        (("wfc3", "ir"), "f199w", 19900, "f199w is not in the table of filters: taken for 19900 angstrom"),
        (("acs", "wfc"), "odd", None, "odd is not in the table of filters: passed over"),
    ],
)
def test_wavelengths(camera: tuple[str, str], name: str, length: float | None, note: str) -> None:
    assert colour.wavelength(*camera, name) == (length if length is None else pytest.approx(length), note)


# ---- which files make a composite


def test_the_filters_of_a_visit() -> None:
    names = [f"{VISIT}_{name}_j8ph01_drc.fits" for name in ("f435w", "f555w", "f814w", "total")]
    exposures = [f"{VISIT}_{name}_j8ph01g{n}_drc.fits" for n, name in enumerate(("f435w", "f625w", "f850lp"))]
    others = ["j8ph01020_drc.fits", "j8ph01g3q_flc.fits", f"{VISIT}_f625w_j8ph01_flc.fits"]
    expected = [names[2], names[1], names[0]]
    assert found(*exposures, *names, *others) == [(f"{VISIT}_total_j8ph01_drc_color", expected, names[3])]
    assert found(*names[:3]) == [(f"{VISIT}_total_j8ph01_drc_color", expected, names[2])]
    assert found(*exposures, *others, names[0], names[3]) == []


def test_the_filters_of_a_sky_cell() -> None:
    names = [f"{CELL}_uvis_{name}_all_drc.fits" for name in ("f547m", "f657n")]
    exposures = [f"{CELL}_uvis_{name}_all-ibp505mf_drc.fits" for name in ("f475w", "f814w")]
    assert found(*exposures, *names) == [(f"{CELL}_uvis_total_all_drc_color", [names[1], names[0]], names[1])]


def test_layers_cameras_and_suffixes_do_not_mix() -> None:
    infrared = [f"{CELL}_ir_{n}_{label}_drz.fits" for label in ("coarse-all", "fine-all") for n in ("f105w", "f160w")]
    optical = [f"{CELL}_uvis_{name}_all_{suffix}.fits" for suffix in ("drc", "drz") for name in ("f547m", "f657n")]
    alone = ["hst_9774_01_acs_hrc_f330w_j8ph01_drz.fits", f"{VISIT}_f435w_j8ph01_drc.fits"]
    alone += ["hst_9774_02_acs_hrc_f435w_j8ph02_drz.fits", f"{VISIT}_f555w_j8ph01_drz.fits"]
    assert [(base, channels) for base, channels, _ in found(*infrared, *optical, *alone)] == [
        (f"{CELL}_ir_total_coarse-all_drz_color", [infrared[1], infrared[0]]),
        (f"{CELL}_ir_total_fine-all_drz_color", [infrared[3], infrared[2]]),
        (f"{CELL}_uvis_total_all_drc_color", [optical[1], optical[0]]),
        (f"{CELL}_uvis_total_all_drz_color", [optical[3], optical[2]]),
    ]


@pytest.mark.parametrize(
    ("filters", "channels"),
    [
        (("f435w",), ()),
        (("f814w", "f435w"), ("f814w", "f435w")),
        (("f814w", "f435w", "f606w"), ("f814w", "f606w", "f435w")),
        (("f814w", "f435w", "f606w", "f775w"), ("f814w", "f606w", "f435w")),  # the lower of the two in the middle
        (("f850lp", "f814w", "f435w", "f606w", "f775w"), ("f850lp", "f775w", "f435w")),
        (("f814w", "f850lp", "f892n"), ("f850lp", "f892n", "f814w")),  # by the table, not by the digits
        (("f606w-pol0v", "f606w-pol60v", "f606w-pol120v"), ()),  # three of one wavelength are no colours
        (("f606w-pol0v", "f814w", "f606w"), ("f814w", "f606w")),  # a plain filter before a crossed one
        (("g800l", "f606w"), ()),
        (("g800l", "f606w", "f814w"), ("f814w", "f606w")),
    ],
)
def test_channels(filters: tuple[str, ...], channels: tuple[str, ...]) -> None:
    composites = found(*(f"{VISIT}_{name}_j8ph01_drc.fits" for name in filters))
    assert [part.split("_")[5] for _, parts, _ in composites for part in parts] == list(channels)


def test_what_defines_a_composite_makes_the_same_composite() -> None:
    """A worker is given these files alone."""
    names = [f"{VISIT}_{n}_j8ph01_drc.fits" for n in ("f435w", "f555w", "f775w", "f814w", "f850lp", "total")]
    composite = colour.find(map(Path, names))[0]
    assert [path.name for path in composite.sources] == [names[4], names[2], names[0], names[5]]
    assert colour.find(composite.sources) == [composite]


# ---- pictures


def make_pixels(
    directory: Path, images: dict[str, np.ndarray], weights: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    products = [
        write_mosaic(directory / f"{VISIT}_{name}_j8ph01_drc.fits", image, (weights or {}).get(name))
        for name, image in images.items()
    ]
    previews = make_colour_preview(products, directory)
    assert [p.name for p in previews] == [
        f"{VISIT}_total_j8ph01_drc_color.jpg",
        f"{VISIT}_total_j8ph01_drc_color_thumb.jpg",
    ]
    return pixels(directory / previews[0].name)


def sky(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 1.0, (200, 300))


def test_a_red_star_is_red(tmp_path: Path) -> None:
    images = {name: sky(n) for n, name in enumerate(("f435w", "f606w", "f814w"))}
    stars = {"f814w": (40, 50), "f606w": (100, 150), "f435w": (160, 250)}
    for name, (y, x) in stars.items():
        images[name][y - 12 : y + 13, x - 12 : x + 13] += 300.0
    for image in images.values():
        image[20:45, 220:245] += 300.0  # white
    shown = make_pixels(tmp_path, images)
    assert shown.shape == (200, 300, 3)
    for channel, name in enumerate(("f814w", "f606w", "f435w")):
        y, x = stars[name]
        star = shown[y - 8 : y + 9, x - 8 : x + 9]
        assert (star[..., channel] > 240).all()
        assert (np.delete(star, channel, axis=-1) < 60).all()
    assert (shown[24:40, 224:240] > 240).all()
    thumb = pixels(tmp_path / f"{VISIT}_total_j8ph01_drc_color_thumb.jpg")
    assert thumb.shape == (85, 128, 3)
    y, x = (round(place * 128 / 300) for place in stars["f814w"])
    assert thumb[y, x, 0] > 240 > 60 > thumb[y, x, 1:].max()


def test_of_two_filters_green_is_the_mean(tmp_path: Path) -> None:
    ramp = np.linspace(0.0, 1000.0, 60_000).reshape(200, 300)
    shown = make_pixels(tmp_path, {"f435w": ramp, "f814w": ramp[::-1].copy()})
    assert shown[190, 150, 2] > 230 > 60 > shown[190, 150, 0]
    mean = (shown[..., 0] + shown[..., 2]) / 2
    assert np.abs(shown[..., 1] - mean).mean() < 3


def test_each_channel_has_a_scale_of_its_own(tmp_path: Path) -> None:
    ramp = np.linspace(0.0, 1.0, 60_000).reshape(200, 300)
    images = {"f435w": ramp * 0.001, "f606w": ramp * 1e5 + 1e6, "f814w": ramp - 500.0}
    assert is_grey(make_pixels(tmp_path, images)).all()


def test_places_without_exposure_in_any_channel_are_blank(tmp_path: Path) -> None:
    images = {name: sky(n) for n, name in enumerate(("f435w", "f606w", "f814w"))}
    weights = {name: np.ones((200, 300)) for name in images}
    for name, weight in weights.items():
        weight[:, :96] = 0.0
        images[name][:, :96] = 1e6
    for name in ("f435w", "f606w"):
        weights[name][:96, 96:] = 0.0
    images["f814w"][150:, 200:] = np.nan
    shown = make_pixels(tmp_path, images, weights)
    assert is_close(shown[:, :88], BLANK_COLOR).all()
    only_red = shown[:88, 104:]
    assert only_red[..., 1:].mean() < 5
    assert only_red[..., 0].mean() > 80
    assert np.ptp(shown[104:140, 104:, 1]) > 200  # what lies behind no weight did not set the scale
    assert shown[158:, 208:, 0].max() < 30
    assert shown[158:, 208:, 1].mean() > 80


def test_half_exposed_blocks_are_half_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caldp.previews.image.MAX_SIDE", 100)
    ramp = np.linspace(0.0, 1000.0, 40_000).reshape(200, 200)
    weight = np.ones((200, 200))
    weight[::2] = 0.0
    images = {"f435w": ramp, "f814w": ramp}
    shown = make_pixels(tmp_path, images, dict.fromkeys(images, weight))
    assert shown.shape == (100, 100, 3)
    assert is_close(shown[99:, 90:], [(255 + level) / 2 for level in BLANK_COLOR], 14).all()
    assert is_close(shown[:1], [level / 2 for level in BLANK_COLOR], 14).all()


def test_files_that_make_no_composite(tmp_path: Path) -> None:
    product = write_mosaic(tmp_path / f"{VISIT}_f435w_j8ph01_drc.fits", sky(0))
    with pytest.raises(PreviewError, match=rf"^no colour composites can be made of {product.name}"):
        make_colour_preview([product], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [product.name]


def test_images_of_different_shapes(tmp_path: Path) -> None:
    product = write_mosaic(tmp_path / f"{VISIT}_f435w_j8ph01_drc.fits", sky(0))
    other = write_mosaic(tmp_path / f"{VISIT}_f814w_j8ph01_drc.fits", sky(0)[:, :299])
    with pytest.raises(PreviewError) as caught:
        make_colour_preview([product, other], tmp_path)
    assert caught.value.message == (
        f"{VISIT}_total_j8ph01_drc_color: {product.name} has 300 x 200 pixels and {other.name} 299 x 200:"
        " a composite needs one grid"
    )
    assert not list(tmp_path.glob("*.jpg"))
