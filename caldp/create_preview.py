"""Previews: pictures of products that people can look at.

A spectrum gets ``<base>.png``, ``<base>_thumb.png`` and, for COS, ``<base>_prev.fits`` (the plotted points),
made by spec-plots.  An image gets ``<base>.jpg`` and ``<base>_thumb.jpg``, made here:

- All science extensions of the file are in one picture with one scale, so that they can be compared.  Chips
  wider than tall are stacked upwards, extension 1 at the bottom (the order of the chips of ACS/WFC and
  WFC3/UVIS on their detectors); others are in reading order (of the two images of a COS acquisition, the
  first is left).
- y points up and the origin is at the lower left, as in every FITS viewer.
- Asinh stretch of the interval that holds 99.5 per cent of the valid pixels.  Where most pixels share one
  value (single photons on an empty background), the interval is that of the others, and at least ten times as
  wide as half of them need, or as wide as all of them need: a photon then is dark grey, a star is white.
- Pixels that DQ calls bad, or that hold no number, are blue (`BAD_COLOR`); places without exposure (zero
  weight in a drizzled image, the gap between chips) are dark slate (`BLANK_COLOR`).  Neither enters the
  scale, nor the mean where pixels are averaged; there they tint the mean, in the full-size picture so that one
  in sixteen still shows.
- Pictures longer than `MAX_SIDE` are averaged down by a whole factor.

``python -m caldp.create_preview FILE...`` makes previews by hand.  In a run, `create_previews` starts the
same command for a few files each: importing matplotlib is paid once, and a crash cannot take the run with it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caldp.errors import PreviewError
from caldp.fitsfile import damage_raises
from caldp.programs import ProgramRun

if TYPE_CHECKING:
    import numpy as np
    from astropy.io import fits
    from numpy.typing import NDArray
    from PIL import Image

    from caldp.calibrate import Products
    from caldp.run import Run

    Floats = NDArray[np.float64]

#: RGB of a pixel that is not finite or that DQ calls bad: told from grey by eyes of every kind.
BAD_COLOR = (40, 90, 200)

#: RGB of places without exposure.
BLANK_COLOR = (30, 34, 48)

#: Longest side of a full-size picture, in pixels: whole frames of ACS/WFC and WFC3/UVIS fit, with overscan.
MAX_SIDE = 4352

#: DQ bits that make a pixel bad where the header does not say (SDQFLAGS does, for COS and STIS), as ACS and
#: WFC3 define them: decoding error, fill, bad detector pixel, masked or unstable, hot, bad column, bad in a
#: reference.  Warm pixels, saturation and cosmic rays stay: they are what the detector saw.
BAD_BITS = 1 | 2 | 4 | 8 | 16 | 128 | 512

_INTERVAL = 99.5
_CONTRAST = 10.0
"""Where most pixels share one value: the scale reaches so many times as far from it as half of the others do."""

_HUGE = 1e38
"""Values beyond are no measurement: they would not survive in a 32-bit float."""

_SAMPLE = 4_000_000
"""Pixels that are enough to find the interval."""

_CHUNK = 1 << 23
"""Pixels of a large image that are in memory at a time."""

_NOT_SCIENCE = ("ERR", "DQ", "WHT", "CTX", "SAMP", "TIME", "D2IMARR", "WCSDVARR")
_SCRATCH = ".preview-"

Kind = Literal["spectrum", "image", "thumbnail", "table"]


@dataclass(frozen=True)
class Preview:
    """One preview file.

    Attributes
    ----------
    name : str
        File name.
    kind : str
        ``spectrum``, ``image``, ``thumbnail`` or ``table``.
    product : str
        Name of the FITS file it shows.
    size : int
        Bytes.
    """

    name: str
    kind: Kind
    product: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind} of {self.product}, {self.size / 1e3:.0f} kB)"


def preview_kind(path: Path) -> Literal["spectrum", "image"] | None:
    """Say which kind of preview a FITS file gets.

    Parameters
    ----------
    path : Path
        The file; only its headers are read.

    Returns
    -------
    "spectrum", "image" or None
        A table of WAVELENGTH and FLUX in HDU 1 is a spectrum (so tables named ASN, EVENTS, GTI or LAMPFLASH
        are not).  A science image is an image, unless COS or STIS took it through a disperser (OBSTYPE
        SPECTROSCOPIC): then its extracted spectrum is the thing to look at.

    Raises
    ------
    PreviewError
        If the file cannot be read as FITS, or is truncated.
    """
    with _explained(path), _opened(path) as hdus:
        return _kind(hdus)


def make_spectrum_preview(product: Path, directory: Path) -> list[Preview]:
    """Plot a spectrum with spec-plots.

    Parameters
    ----------
    product : Path
        COS or STIS table of spectra; wavelengths in angstrom, fluxes in erg/s/cm**2/angstrom.
    directory : Path
        Where ``<base>.png`` (1024 x 1024 pixels), ``<base>_thumb.png`` (128 x 128) and, for COS,
        ``<base>_prev.fits`` go; created when missing.

    Returns
    -------
    list of Preview

    Raises
    ------
    PreviewError
        If the table has no rows, no finite flux, or spec-plots cannot plot it.

    Notes
    -----
    A spectrum without signal is plotted as what it is: spec-plots 1.37.1 writes "Fluxes are all 0." into the
    picture, and a warning when every point has a bad DQ_WGT.
    """
    with _explained(product):
        with _opened(product) as hdus:
            names = _names(product, hdus, "spectrum")
            _require_flux(hdus)
        with _published(product, directory, names) as scratch:
            _plot(product, scratch, ["png", "fits"] if "table" in names.values() else ["png"])
    return _listed(product, directory, names)


def make_image_preview(product: Path, directory: Path, thumbnail: int = 128) -> list[Preview]:
    """Draw an image; the module says how.

    Parameters
    ----------
    product : Path
        File with 2-D science images of any size, counts or count rates.
    directory : Path
        Where ``<base>.jpg`` and ``<base>_thumb.jpg`` go; created when missing.
    thumbnail : int
        Longest side of the thumbnail, in pixels.

    Returns
    -------
    list of Preview

    Raises
    ------
    PreviewError
        If the file holds no image data.

    Notes
    -----
    An image whose pixels are all equal, or all bad, is drawn flat and says so in words.
    """
    from PIL import Image

    with _explained(product):
        with _opened(product) as hdus:
            names = _names(product, hdus, "image")
            mosaic = _read_mosaic(hdus)
        with _published(product, directory, names) as scratch:
            full = mosaic.draw(thumbnail=False)
            longest = max(full.size)
            small = mosaic.binned(max(1, longest // thumbnail)).draw(thumbnail=True)
            scale = thumbnail / longest
            shape = (max(1, round(full.width * scale)), max(1, round(full.height * scale)))
            small = small.resize(shape, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
            for name, picture in zip(names, (full, small), strict=True):
                # No chroma subsampling: it would smear the colour of a single bad pixel over its neighbours.
                picture.save(scratch / name, format="JPEG", quality=90, subsampling=0)
    return _listed(product, directory, names)


def make_preview(product: Path, directory: Path, thumbnail: int = 128) -> list[Preview]:
    """Make the previews of one product, of the kind its headers ask for.

    Parameters
    ----------
    product : Path
        FITS file.
    directory : Path
        Where the previews go.
    thumbnail : int
        Longest side of an image's thumbnail, in pixels; those of spectra are always 128.

    Returns
    -------
    list of Preview

    Raises
    ------
    PreviewError
        If it is damaged, or is neither a spectrum nor an image.
    """
    kind = preview_kind(product)
    if kind is None:
        raise PreviewError(f"{product.name}: no preview is made of this kind of file")
    if kind == "spectrum":
        return make_spectrum_preview(product, directory)
    return make_image_preview(product, directory, thumbnail)


def create_previews(
    products: Sequence[Path],
    directory: Path,
    run_program: Callable[[Sequence[str]], ProgramRun],
    *,
    jobs: int = 2,
    thumbnail: int = 128,
    cancel: Callable[[], None] = lambda: None,
) -> list[Preview]:
    """Make and verify the previews of all products of a dataset.

    Parameters
    ----------
    products : sequence of Path
        FITS files, each a spectrum or an image.
    directory : Path
        Where the previews go; no other call may use it at the same time.
    run_program : callable
        Runs a command to its end; called from several threads.
    jobs : int
        Worker processes at a time.
    thumbnail : int
        Longest side of images' thumbnails, in pixels.
    cancel : callable
        Stops the programs that ``run_program`` is running.

    Returns
    -------
    list of Preview
        In the order of ``products``.

    Raises
    ------
    PreviewError
        Naming every product without its previews, and why: its worker failed or was killed, or a preview is
        missing, empty or unreadable.  Previews of the other products are there.
    """
    products = [product.absolute() for product in products]
    if not products:
        return []
    directory = directory.absolute()
    _require_distinct(products, directory)
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for product in products:  # what an earlier attempt left must not pass for the work of this one
            for name in (f"{_base(product)}{end}" for end in _ENDINGS):
                (directory / name).unlink(missing_ok=True)
    groups = _shared(products, jobs)
    problems: dict[Path, str] = {}
    try:
        with ThreadPoolExecutor(len(groups)) as pool:
            try:
                runs = list(pool.map(lambda group: run_program(_command(group, directory, thumbnail)), groups))
            except BaseException:  # an interrupt: without this the pool would wait for its programs to end
                cancel()
                raise
    finally:
        for leftover in directory.glob(f"{_SCRATCH}*"):  # a killed worker cannot tidy up
            shutil.rmtree(leftover, ignore_errors=True)
    for group, run in zip(groups, runs, strict=True):
        problems |= _problems(group, run)
    previews: list[Preview] = []
    for product in products:
        if product not in problems:
            try:
                previews += _verified(product, directory)
            except PreviewError as error:
                problems[product] = error.message
    if problems:
        raise PreviewError(
            "; ".join(problems[product] for product in products if product in problems),
            remedy="the log of the run has the details",
        )
    return previews


def preview(run: Run, products: Products) -> list[Preview]:
    """Make the previews of a run's products: an arrow of the straight line.

    Parameters
    ----------
    run : Run
        The run.
    products : Products
        What was calibrated.

    Returns
    -------
    list of Preview

    Raises
    ------
    PreviewError
        If one of them cannot be made.
    """
    workspace, config = run.workspace, run.config
    with run.telemetry.stage("previews") as stage:

        def run_program(argv: Sequence[str]) -> ProgramRun:
            return run.telemetry.run_program(argv, cwd=workspace.root, env=config.program_environment())

        made = create_previews(
            products.previewed,
            workspace.previews,
            run_program,
            jobs=config.preview_jobs,
            cancel=run.telemetry.cancel_programs,
        )
        stage.bytes_in = sum(p.stat().st_size for p in products.previewed)
        stage.bytes_out = sum(p.size for p in made)
        run.telemetry.info(f"{len(made)} previews of {len(products.previewed)} products")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Make previews of FITS files.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, without the program's name; by default those of the process.

    Returns
    -------
    int
        0; 28 when a preview could not be made (the others are); 2 when a file does not exist or is not FITS
        (nothing is made).
    """
    parser = argparse.ArgumentParser(prog="python -m caldp.create_preview", description="Make previews of FITS files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="FITS file: spectrum or image")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where previews go (default: beside each file)")
    parser.add_argument("--thumbnail", type=int, default=128, metavar="N", help="longest side in pixels (default: 128)")
    parser.add_argument("--json", action="store_true", help="print one JSON document per file")
    try:
        options = parser.parse_args(argv)
        if options.thumbnail < 1:
            parser.error("--thumbnail must be at least 1")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    unusable = {file: reason for file in options.files if (reason := _not_fits(file))}
    if not unusable:
        try:
            _require_distinct(options.files, options.output)
        except PreviewError as error:
            unusable[options.files[0]] = error.message
    for file, reason in unusable.items():
        _tell(file, [], reason, options.json)
    if unusable:
        return 2
    failed = False
    for file in options.files:
        try:
            previews = make_preview(file, options.output or file.parent, options.thumbnail)
        except PreviewError as error:
            failed = True
            _tell(file, [], error.message, options.json)
        else:
            _tell(file, previews, "", options.json)
    return PreviewError.exit_code if failed else 0


# ---- names, and files under their names


_ENDINGS: dict[str, Kind] = {
    ".png": "spectrum",
    ".jpg": "image",
    "_thumb.png": "thumbnail",
    "_thumb.jpg": "thumbnail",
    "_prev.fits": "table",
}


def _base(product: Path) -> str:
    return product.name.split(".fits")[0]


def _names(product: Path, hdus: fits.HDUList, kind: str) -> dict[str, Kind]:
    """Name the previews of a product."""
    endings = [".jpg", "_thumb.jpg"]
    if kind == "spectrum":
        endings = [".png", "_thumb.png"]
        if _keyword(hdus, "INSTRUME") == "COS":
            endings.append("_prev.fits")
    return {f"{_base(product)}{ending}": _ENDINGS[ending] for ending in endings}


def _require_distinct(products: Sequence[Path], directory: Path | None = None) -> None:
    seen: dict[Path, Path] = {}
    for product in products:
        target = (directory or product.parent) / _base(product)
        if target in seen:
            raise PreviewError(f"{seen[target]} and {product} would have previews of the same name")
        seen[target] = product


@contextlib.contextmanager
def _published(product: Path, directory: Path, names: dict[str, Kind]) -> Iterator[Path]:
    """Give a scratch directory; what was written there appears under its names once all of it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    # spec-plots 1.37.1 cuts the path of its thumbnail at the first ".png", directories included.
    parent = None if ".png" in str(directory) else directory
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as scratch:
        yield Path(scratch)
        for name, kind in names.items():
            _check(Path(scratch) / name, kind, product)
        for name in names:
            if parent is None:
                with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=directory) as near:
                    shutil.copyfile(Path(scratch) / name, Path(near) / name)
                    (Path(near) / name).replace(directory / name)
            else:
                (Path(scratch) / name).replace(directory / name)


def _listed(product: Path, directory: Path, names: dict[str, Kind]) -> list[Preview]:
    return [Preview(name, kind, product.name, (directory / name).stat().st_size) for name, kind in names.items()]


def _check(path: Path, kind: Kind, product: Path) -> None:
    """Raise PreviewError unless a preview is there and can be opened."""
    from astropy.io import fits
    from PIL import Image

    if not path.is_file():
        raise PreviewError(f"{product.name}: its preview {path.name} was not written")
    if not path.stat().st_size:
        raise PreviewError(f"{product.name}: its preview {path.name} is empty")
    try:
        if kind == "table":
            with _opened(path) as hdus:
                if not isinstance(hdus[1], fits.BinTableHDU):
                    raise PreviewError("no table in it")
        else:
            with Image.open(path) as picture:
                picture.verify()
            with Image.open(path) as picture:  # verify() does not notice that the end of a JPEG is missing
                picture.draft("L", (128, 128))
                picture.load()
    except (PreviewError, OSError, SyntaxError, ValueError, IndexError) as error:
        raise PreviewError(f"{product.name}: its preview {path.name} is unreadable: {error}") from error


# ---- FITS files


@contextlib.contextmanager
def _explained(product: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a product, in libraries too, into a PreviewError that names it."""
    try:
        yield
    except PreviewError as error:
        if product.name in error.message:
            raise
        raise PreviewError(f"{product.name}: {error.message}") from error
    except SystemExit as stop:
        raise PreviewError(f"{product.name}: cannot make a preview: {stop.code}") from stop
    except MemoryError:
        raise PreviewError(f"{product.name}: cannot make a preview: out of memory") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise PreviewError(f"{product.name}: cannot make a preview: {reason}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[fits.HDUList]:
    """Open a FITS file, making sure that all of it is there; no data are read until asked for."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    with damage_raises():
        # Our own handle, because astropy leaves its one open when it gives up.  Without memory mapping, pages
        # of a large file do not count as memory of this process.
        with path.open("rb") as file:
            try:
                hdus = fits.open(file, memmap=False)
                count = len(hdus)
            except AstropyWarning as warning:
                raise PreviewError(f"damaged: {str(warning).partition(' (note')[0]}") from warning
            with hdus:
                if not path.name.endswith(".gz"):
                    available = path.stat().st_size
                    for index in range(count):
                        needed = hdus[index].fileinfo()["datLoc"] + hdus[index].size
                        if needed > available:
                            raise PreviewError(f"truncated: {available} bytes of at least {needed}")
                yield hdus


def _not_fits(path: Path) -> str:
    """Say why a file is no FITS file, or return an empty string."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return "" if start == b"SIMPLE  =" or start.startswith(b"\x1f\x8b") else f"{path}: not a FITS file"


def _keyword(hdus: fits.HDUList, keyword: str) -> str:
    return str(hdus[0].header.get(keyword, "")).strip().upper()


def _kind(hdus: fits.HDUList) -> Literal["spectrum", "image"] | None:
    if len(hdus) > 1 and hdus[1].header.get("XTENSION") == "BINTABLE" and not hdus[1].is_image:
        columns = {str(hdus[1].header[key]).strip().upper() for key in hdus[1].header["TTYPE*"]}
        return "spectrum" if {"WAVELENGTH", "FLUX"} <= columns else None
    dispersed = _keyword(hdus, "INSTRUME") in ("COS", "STIS") and _keyword(hdus, "OBSTYPE") == "SPECTROSCOPIC"
    empty = any(hdu.is_image and hdu.name == "SCI" and hdu.header.get("NAXIS") == 0 for hdu in hdus)
    return "image" if (empty or _science(hdus)) and not dispersed else None


# ---- spectra


def _require_flux(hdus: fits.HDUList) -> None:
    """Say what is wrong with a table, in words that spec-plots does not have."""
    import numpy as np

    table = hdus[1].data
    if table is None or not len(table):
        raise PreviewError("the table of spectra has no rows")
    for row in range(len(table)):
        flux = np.asarray(table["FLUX"][row], dtype=float)
        if not np.isfinite(flux).any():
            raise PreviewError(f"no finite flux in row {row + 1} of the table of spectra")


def _plot(product: Path, scratch: Path, types: list[str]) -> None:
    """Run spec-plots in this process."""
    import matplotlib

    matplotlib.use("Agg", force=True)  # before pyplot is imported, which would look for a display
    from matplotlib import pyplot as plt
    from spec_plots.make_hst_spec_previews import make_hst_spec_previews
    from spec_plots.utils import specutils_cos

    make_fits = specutils_cos.make_fits

    def make_finite_fits(spectrum: object, output: str, metrics: list[dict[str, Any]], source: str) -> None:
        # The suggested range of a spectrum without signal is NaN, which FITS headers cannot hold: spec-plots
        # 1.37.1 raises.  This is what it suggests for any other flat spectrum.
        for metric in metrics:
            if not all(math.isfinite(limit) for limit in metric["y_axis_range"]):
                metric["y_axis_range"] = [-1.0, 1.0]
        make_fits(spectrum, output, metrics, source)

    said = io.StringIO()
    specutils_cos.make_fits = make_finite_fits
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            make_hst_spec_previews(str(product), output_path=str(scratch), output_type=types)
    finally:
        specutils_cos.make_fits = make_fits
        plt.close("all")  # spec-plots leaves its figures open
        if said.getvalue().strip():
            print(f"{product.name}: {' '.join(said.getvalue().split())}", file=sys.stderr)


# ---- images


@dataclass(frozen=True)
class _Mosaic:
    """An image to draw: mean of the valid part of each pixel, and which shares of it are bad and blank.

    All arrays have the shape (ny, nx), with the origin at the lower left; shares are from 0 to 1.
    """

    values: Floats
    bad: NDArray[np.float32]
    blank: NDArray[np.float32]

    def binned(self, factor: int) -> _Mosaic:
        """Average factor x factor pixels."""
        import numpy as np

        if factor == 1:
            return self
        weight = 1.0 - self.bad - self.blank
        sums = _block_sum(np.where(weight > 0, self.values * weight, 0.0), factor)
        weights = _block_sum(weight, factor)
        cells = _cells(self.values.shape, factor)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(weights > 1e-6, sums / weights, 0.0)
        bad, blank = ((_block_sum(share, factor) / cells).astype(np.float32) for share in (self.bad, self.blank))
        return _Mosaic(values, bad, blank)

    def draw(self, *, thumbnail: bool) -> Image.Image:
        """Stretch it into a picture, y up."""
        import numpy as np
        from astropy.visualization import AsinhStretch
        from PIL import Image, ImageDraw, ImageFont

        invalid = self.bad + self.blank
        valid = self.values[invalid < 0.999]
        limits = _limits(valid)
        grey = np.full(self.values.shape, 0.5, dtype=np.float32)
        if limits is not None:
            low, high = limits
            np.clip((self.values - low) / (high - low), 0.0, 1.0, out=grey, casting="unsafe")
            grey = AsinhStretch()(grey, out=grey)
        # A bad pixel in a block of sixteen would not survive JPEG as a tint of one sixteenth.  A thumbnail of an
        # image with the usual per cent of hot pixels would be all blue, though.
        tint = self.bad if thumbnail else np.minimum(np.sqrt(self.bad), 1.0 - self.blank)
        grey *= (1.0 - tint - self.blank) * 255.0
        channels = []
        for bad, blank in zip(BAD_COLOR, BLANK_COLOR, strict=True):
            channel = np.clip(grey + tint * bad + self.blank * blank, 0.0, 255.0)
            channels.append(np.rint(channel).astype(np.uint8)[::-1])
        picture = Image.fromarray(np.dstack(channels))
        if limits is None and not thumbnail:
            words = f"every valid pixel is {valid[0]:g}" if valid.size else "no valid pixel"
            font = ImageFont.load_default(size=max(10, picture.width // 30))
            ImageDraw.Draw(picture).text((picture.width // 40, picture.height // 40), words, (255, 220, 120), font)
        return picture


def _limits(valid: Floats) -> tuple[float, float] | None:
    """Find the interval to stretch, or None where all valid pixels are equal."""
    import numpy as np
    from astropy.visualization import PercentileInterval

    if not valid.size:
        return None
    sample = valid[:: math.ceil(valid.size / _SAMPLE)]
    if sample.min() == sample.max():
        sample = valid
    usual = float(np.median(sample))
    others = sample[sample != usual]
    if not others.size:
        return None
    low, high = PercentileInterval(_INTERVAL).get_limits(sample)
    if others.size < sample.size / 2:
        low, high = PercentileInterval(_INTERVAL).get_limits(others)
        # However few photons the target has, single ones of the background must not look like it.
        typical = usual + _CONTRAST * (float(np.median(others)) - usual)
        low = min(low, usual, max(typical, float(others.min())))
        high = max(high, usual, min(typical, float(others.max())))
    return float(low), float(high)


def _science(hdus: fits.HDUList) -> list[Any]:
    """List the images of a file that show the sky."""
    images = [hdu for hdu in hdus if hdu.is_image and len(_shape(hdu)) == 2 and all(_shape(hdu))]
    science = [hdu for hdu in images if hdu.name == "SCI"]
    if not science:
        science = [hdu for hdu in images if hdu.name not in _NOT_SCIENCE][:1]
    return science


def _shape(hdu: Any) -> tuple[int, ...]:  # noqa: ANN401 - HDU classes of astropy have no common public type
    """Return (ny, nx); HST writes a constant image as a header with NPIX1, NPIX2 and PIXVALUE only."""
    header = hdu.header
    if header.get("NAXIS") == 0 and "PIXVALUE" in header:
        return int(header.get("NPIX2", 0)), int(header.get("NPIX1", 0))
    return tuple(hdu.shape)


def _rows(hdu: Any, first: int, last: int) -> NDArray[Any]:  # noqa: ANN401
    """Read some rows of an image."""
    import numpy as np

    if hdu.header.get("NAXIS") == 0:
        return np.full((last - first, _shape(hdu)[1]), float(hdu.header["PIXVALUE"]))
    # Native byte order: every later operation is several times faster.
    rows = np.asarray(hdu.section[first:last, :])
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)


def _companion(hdus: fits.HDUList, science: Any, name: str) -> Any | None:  # noqa: ANN401
    for hdu in hdus:
        same = hdu.is_image and hdu.name == name and hdu.ver == science.ver
        if same and _shape(hdu) == _shape(science):
            return hdu
    return None


def _read_mosaic(hdus: fits.HDUList) -> _Mosaic:
    """Read and tile all science images of a file, averaged down to MAX_SIDE."""
    import numpy as np

    science = _science(hdus)
    if not science:
        raise PreviewError("no image data in this file")
    tall, wide = (max(_shape(hdu)[axis] for hdu in science) for axis in (0, 1))
    stacked = wide > tall
    columns = 1 if stacked else math.ceil(math.sqrt(len(science)))
    rows = math.ceil(len(science) / columns)
    factor = math.ceil(max(tall * rows, wide * columns) / MAX_SIDE)
    cell = math.ceil(tall / factor), math.ceil(wide / factor)
    gap = max(2, max(cell[0] * rows, cell[1] * columns) // 100)
    shape = (rows * (cell[0] + gap) - gap, columns * (cell[1] + gap) - gap)
    mosaic = _Mosaic(np.zeros(shape), np.zeros(shape, np.float32), np.ones(shape, np.float32))
    for index, hdu in enumerate(science):
        row, column = divmod(index, columns)
        if not stacked:
            row = rows - 1 - row  # reading order begins at the top
        y, x = row * (cell[0] + gap), column * (cell[1] + gap)
        ny, nx = (math.ceil(side / factor) for side in _shape(hdu))
        place = slice(y, y + ny), slice(x, x + nx)
        _read_image(hdus, hdu, factor, _Mosaic(mosaic.values[place], mosaic.bad[place], mosaic.blank[place]))
    return mosaic


def _read_image(hdus: fits.HDUList, science: Any, factor: int, into: _Mosaic) -> None:  # noqa: ANN401
    """Read one image a block of rows at a time, averaging valid pixels only."""
    import numpy as np

    quality, weight = (_companion(hdus, science, name) for name in ("DQ", "WHT"))
    bits = int(science.header.get("SDQFLAGS", BAD_BITS))
    ny, nx = _shape(science)
    step = factor * max(1, _CHUNK // (nx * factor))
    for first in range(0, ny, step):
        last = min(first + step, ny)
        values = _rows(science, first, last)
        bad = ~((values > -_HUGE) & (values < _HUGE))  # NaN too
        if quality is not None:
            bad |= (_rows(quality, first, last).astype(np.int64) & bits) != 0
        blank = np.zeros(bad.shape, dtype=bool)
        if weight is not None:
            blank = _rows(weight, first, last) == 0
            bad &= ~blank
        place = slice(first // factor, math.ceil(last / factor))
        cells = _cells(values.shape, factor)
        invalid = bad | blank
        spoiled = bool(invalid.any())
        if spoiled:
            values = np.where(invalid, 0, values)
        into.values[place] = _block_sum(values, factor)
        into.bad[place] = into.blank[place] = 0.0
        if spoiled:
            into.bad[place] = _block_sum(bad, factor) / cells
            into.blank[place] = _block_sum(blank, factor) / cells
            cells = np.maximum(cells - _block_sum(invalid, factor), 1.0)
        into.values[place] /= cells


def _block_sum(array: NDArray[Any], factor: int) -> Floats:
    """Sum factor x factor pixels; blocks at the right and upper edge may be smaller."""
    import numpy as np

    if factor == 1:
        return array.astype(np.float64)
    ny, nx = array.shape
    rows = np.add.reduceat(array, np.arange(0, ny, factor), axis=0, dtype=np.float64)
    return np.add.reduceat(rows, np.arange(0, nx, factor), axis=1)


def _cells(shape: tuple[int, ...], factor: int) -> Floats:
    """Count the pixels in each block of an array of that shape."""
    import numpy as np

    ny, nx = (np.diff(np.append(np.arange(0, side, factor), side)).astype(float) for side in shape)
    return np.outer(ny, nx)


# ---- workers


def _shared(products: Sequence[Path], jobs: int) -> list[list[Path]]:
    """Divide products among workers so that they end at about the same time."""
    groups: list[list[Path]] = [[] for _ in range(max(1, min(jobs, len(products))))]
    costs = [0.0] * len(groups)

    def cost(product: Path) -> float:
        # A spectrum takes about a second whatever its size, an image about one more per 100 MB.
        return 1.0 + (product.stat().st_size / 1e8 if product.is_file() else 0.0)

    for product in sorted(products, key=cost, reverse=True):
        index = costs.index(min(costs))
        groups[index].append(product)
        costs[index] += cost(product)
    return groups


def _command(products: Sequence[Path], directory: Path, thumbnail: int) -> list[str]:
    options = ["--json", "--output", os.fspath(directory), "--thumbnail", str(thumbnail)]
    return [sys.executable, "-m", "caldp.create_preview", *options, *map(os.fspath, products)]


def _problems(products: Sequence[Path], run: ProgramRun) -> dict[Path, str]:
    """Say which products of a worker failed, and why, from what it printed."""
    told: dict[str, str] = {}
    last = ""
    for line in run.tail:
        document = None
        with contextlib.suppress(ValueError):
            document = json.loads(line)
        if isinstance(document, dict) and "product" in document:
            told[document["product"]] = document.get("error") or ""
        elif line.strip():
            last = line.strip()
    problems = {product: told[product.name] for product in products if told.get(product.name)}
    if run.returncode == 0 or (problems and run.returncode in (2, PreviewError.exit_code)):
        return problems
    reason = f"the preview worker ended with {run.outcome}"
    if run.oom_kills:
        reason += ", for lack of memory"
    reason += f": {last}" if last else ""
    pending = [product for product in products if product.name not in told] or list(products)
    # Files are taken in order: the first without a word is the one it was at work on.
    problems[pending[0]] = f"{pending[0].name}: {reason}"
    problems |= {product: f"{product.name}: not reached, {reason}" for product in pending[1:]}
    return problems


def _verified(product: Path, directory: Path) -> list[Preview]:
    """Return the previews that a product must have now."""
    with _explained(product):
        with _opened(product) as hdus:
            kind = _kind(hdus)
            if kind is None:
                raise PreviewError("no preview is made of this kind of file")
            names = _names(product, hdus, kind)
        for name, form in names.items():
            _check(directory / name, form, product)
        return _listed(product, directory, names)


def _tell(file: Path, previews: Sequence[Preview], error: str, as_json: bool) -> None:
    """Report on one file: results on standard output, what failed on standard error."""
    if error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    if as_json:
        document = {"product": file.name, "previews": [p.to_json() for p in previews], "error": error or None}
        print(json.dumps(document), flush=True)
    else:
        for preview in previews:
            print(preview, flush=True)


if __name__ == "__main__":
    sys.exit(main())
