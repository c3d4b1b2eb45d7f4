"""Previews: their names and kinds, plots of spectra, the command, its workers, and that failures are named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from caldp import create_preview
from caldp.create_preview import (
    Preview,
    create_previews,
    main,
    make_colour_preview,
    make_image_preview,
    make_preview,
    make_spectrum_preview,
    preview_kind,
)
from caldp.errors import PreviewError, ProgramMemoryError
from caldp.programs import ProgramRun, run
from tests.unit.pictures import is_close, pixels, write_image, write_mosaic, write_spectrum

ROOT = Path(create_preview.__file__).parents[1]


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

    with pytest.raises(ProgramMemoryError, match="killed by SIGKILL, for lack of memory"):
        create_previews([product], tmp_path / "out", run_program)


def test_work_is_balanced(tmp_path: Path) -> None:
    sizes = {"a": 300, "b": 100, "c": 100, "d": 100}
    tasks = []
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size * 1_000_000)  # sparse
        tasks.append(create_preview._Task(name, (tmp_path / name,)))
    groups = create_preview._shared(tasks, 2)
    assert sorted(sorted(task.label for task in group) for group in groups) == [["a"], ["b", "c", "d"]] or sorted(
        len(group) for group in groups
    ) == [2, 2]
    assert [len(group) for group in create_preview._shared(tasks, 9)] == [1, 1, 1, 1]
    assert [len(group) for group in create_preview._shared(tasks, 0)] == [4]


# ---- composites


VISIT = "hst_9774_01_acs_wfc"
COLOR = f"{VISIT}_total_j8ph01_drc_color"


def write_visit(directory: Path, noise: np.ndarray, *, total: bool = True) -> list[Path]:
    filters = ("f435w", "f555w", "f814w")
    products = [write_mosaic(directory / f"{VISIT}_{name}_j8ph01_drc.fits", noise) for name in filters]
    products += [write_mosaic(directory / f"{VISIT}_{name}_j8ph01g3_drc.fits", noise) for name in filters[:1]]
    if total:
        products.append(write_mosaic(directory / f"{VISIT}_total_j8ph01_drc.fits", noise))
    return products


def test_create_previews_makes_composites_where_the_recipe_asks_for_them(
    tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]
) -> None:
    products = write_visit(tmp_path, noise)
    out = tmp_path / "out"
    previews = create_previews(products, out, run_program, jobs=1, thumbnail=64, composites=True)
    own = [f"{p.stem}{ending}" for p in products for ending in (".jpg", "_thumb.jpg")]
    assert [p.name for p in previews] == [*own, f"{COLOR}.jpg", f"{COLOR}_thumb.jpg"]
    assert [(p.kind, p.product) for p in previews[-2:]] == [
        ("image", f"{VISIT}_total_j8ph01_drc.fits"),
        ("thumbnail", f"{VISIT}_total_j8ph01_drc.fits"),
    ]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in previews)
    with Image.open(out / f"{COLOR}_thumb.jpg") as thumb:
        assert max(thumb.size) == 64
    without = create_previews(products, tmp_path / "grey", run_program, jobs=1)
    assert [p.name for p in without] == own


def test_without_a_total_product_a_composite_shows_the_red_one(
    tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]
) -> None:
    products = write_visit(tmp_path, noise, total=False)
    previews = create_previews(products, tmp_path / "out", run_program, composites=True)
    assert previews[-1] == make_colour_preview(products, tmp_path)[-1]
    assert previews[-1].name == f"{COLOR}_thumb.jpg"
    assert previews[-1].product == f"{VISIT}_f814w_j8ph01_drc.fits"


def test_a_composite_that_cannot_be_made_is_named(
    tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]
) -> None:
    products = write_visit(tmp_path, noise)
    products[1].unlink()
    write_mosaic(products[1], noise[:150])
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{COLOR}.jpg").write_bytes(b"of an earlier attempt")
    with pytest.raises(PreviewError) as caught:
        create_previews(products, out, run_program, jobs=1, composites=True)
    assert caught.value.code == 28
    expected = f"{products[1].name} has 200 x 150 pixels and {products[2].name} 200 x 200: a composite needs one grid"
    assert caught.value.message == f"{COLOR}: {expected}"
    assert not list(out.glob("*color*"))
    assert len(list(out.iterdir())) == 2 * len(products)


def test_a_damaged_channel_is_named(
    tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]
) -> None:
    products = write_visit(tmp_path, noise)
    products[0].write_bytes(products[0].read_bytes()[:100_000])
    with pytest.raises(PreviewError) as caught:
        create_previews(products, tmp_path / "out", run_program, composites=True)
    reasons = caught.value.message.split("; ")
    assert [reason.partition(": damaged")[0] for reason in reasons] == [
        products[0].name,
        f"{COLOR}: {products[0].name}",
    ]


def test_a_composite_that_a_worker_did_not_write(tmp_path: Path, noise: np.ndarray) -> None:
    products = write_visit(tmp_path, noise)
    made = tmp_path / "made"
    for product in products:
        make_image_preview(product, made)
    make_colour_preview(products, made)
    (made / f"{COLOR}_thumb.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"

    def run_program(argv: Sequence[str]) -> ProgramRun:
        for path in made.iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        return ProgramRun(tuple(argv), 0, 1.0, 1.0, 1)

    with pytest.raises(PreviewError, match=rf"^{COLOR}: its preview {COLOR}_thumb\.jpg is unreadable"):
        create_previews(products, out, run_program, jobs=1, composites=True)


def killed_in(function: str, folder: Path) -> Callable[[Sequence[str]], ProgramRun]:
    """Run workers that are killed when they come to a function of theirs."""
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        from caldp import create_preview
        create_preview.{function} = lambda *_: os.kill(os.getpid(), signal.{signal.SIGKILL.name})
        sys.exit(create_preview.main(sys.argv[1:]))
    """
    return pretending(code, folder)


def test_a_worker_killed_at_a_composite(tmp_path: Path, noise: np.ndarray) -> None:
    products = write_visit(tmp_path, noise)
    with pytest.raises(PreviewError) as caught:
        create_previews(products, tmp_path / "out", killed_in("make_colour_preview", tmp_path), jobs=1, composites=True)
    assert caught.value.message == f"{COLOR}: the preview worker ended with killed by SIGKILL"


def test_a_worker_killed_before_a_composite(tmp_path: Path, noise: np.ndarray) -> None:
    """It makes the composites after the pictures of single files, though they take longest."""
    products = write_visit(tmp_path, noise)
    with pytest.raises(PreviewError) as caught:
        create_previews(products, tmp_path / "out", killed_in("make_preview", tmp_path), jobs=1, composites=True)
    *_, last = caught.value.message.split("; ")
    assert last == f"{COLOR}: not reached, the preview worker ended with killed by SIGKILL"


def test_command_makes_composites(tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    products = [str(product) for product in write_visit(tmp_path, noise)]
    assert main(["--json", "--composite", *products]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["product"], document["error"]) == (COLOR, None)
    assert [p["name"] for p in document["previews"]] == [f"{COLOR}.jpg", f"{COLOR}_thumb.jpg"]
    assert sorted(p.name for p in tmp_path.glob("*.jpg")) == [f"{COLOR}.jpg", f"{COLOR}_thumb.jpg"]
    assert main([products[0], "--composite", products[0], products[1]]) == 0
    assert len(list(tmp_path.glob("*.jpg"))) == 4


def test_command_refuses_files_that_make_no_composite(
    tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    products = [str(product) for product in write_visit(tmp_path, noise)]
    assert main([products[0], "--composite", products[0], products[3]]) == 2
    assert "no colour composites can be made of" in capsys.readouterr().err
    other = write_mosaic(tmp_path / "hst_9774_01_acs_hrc_f435w_j8ph01_drz.fits", noise)
    third = write_mosaic(tmp_path / "hst_9774_01_acs_hrc_f330w_j8ph01_drz.fits", noise)
    assert main(["--composite", *products, str(other), str(third)]) == 2
    assert "2 colour composites can be made of" in capsys.readouterr().err
    assert main(["--composite", str(tmp_path / "nowhere.fits")]) == 2
    assert not list(tmp_path.glob("*.jpg"))


def test_what_had_to_be_guessed_is_said(tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    products = [write_mosaic(tmp_path / f"{VISIT}_{name}_j8ph01_drc.fits", noise) for name in ("f999x", "f555w")]
    make_colour_preview(products, tmp_path)
    assert capsys.readouterr().err == (
        f"{VISIT}_f999x_j8ph01_drc.fits: f999x is not in the table of filters: taken for 9990 angstrom\n"
    )


def test_the_recipe_says_how_large_thumbnails_are_and_whether_there_are_composites(
    tmp_path: Path, noise: np.ndarray, run_program: Callable[[Sequence[str]], ProgramRun]
) -> None:
    products = write_visit(tmp_path, noise)
    stage = SimpleNamespace(bytes_in=0, bytes_out=0)
    said: list[str] = []
    telemetry = SimpleNamespace(
        stage=lambda name: contextlib.nullcontext(stage),
        run_program=lambda argv, *, cwd, env: run_program(argv),
        cancel_programs=lambda: None,
        info=said.append,
    )
    job = SimpleNamespace(
        workspace=SimpleNamespace(root=tmp_path, previews=tmp_path / "previews"),
        config=SimpleNamespace(preview_jobs=1, program_environment=dict),
        recipe=SimpleNamespace(thumbnail=32, composites=True),
        telemetry=telemetry,
    )
    previews = create_preview.preview(cast(Any, job), cast(Any, SimpleNamespace(previewed=tuple(products))))
    assert previews[-1].name == f"{COLOR}_thumb.jpg"
    for item in previews:
        if item.kind == "thumbnail":
            with Image.open(tmp_path / "previews" / item.name) as thumb:
                assert max(thumb.size) == 32
    assert stage.bytes_out == sum(p.size for p in previews)
    assert said == ["12 previews of 5 products"]
