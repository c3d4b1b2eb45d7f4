"""Previews: pictures of products that people can look at.

A spectrum gets ``<base>.png``, ``<base>_thumb.png`` and, for COS, ``<base>_prev.fits`` (the plotted points),
made by spec-plots.  An image gets ``<base>.jpg`` and ``<base>_thumb.jpg``.  The mosaics of one visit or sky cell in two
or more filters get a composite, ``hst_..._total_..._color.jpg`` and ``..._color_thumb.jpg``.  How they are drawn is
said in ``caldp.previews``: ``spectrum``, ``image`` and ``colour``.

``python -m caldp.create_preview FILE...`` makes previews by hand.  In a run, `create_previews` starts the
same command for a few files each: importing matplotlib is paid once, and a crash cannot take the run with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caldp.errors import PreviewError, ProgramMemoryError
from caldp.fitsfile import damage_raises
from caldp.previews import colour, image, spectrum
from caldp.programs import ProgramRun, has_words

if TYPE_CHECKING:
    from astropy.io import fits
    from PIL.Image import Image

    from caldp.calibrate import Products
    from caldp.previews.colour import Composite
    from caldp.previews.image import Mosaic
    from caldp.run import Run

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
    with _explained(path.name), _opened(path) as hdus:
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
    with _explained(product.name):
        with _opened(product) as hdus:
            names = _names(product, hdus, "spectrum")
            spectrum.require_flux(hdus)
        with _published(product.name, directory, names) as scratch:
            spectrum.plot(product, scratch, ["png", "fits"] if "table" in names.values() else ["png"])
    return _listed(product.name, directory, names)


def make_image_preview(product: Path, directory: Path, thumbnail: int = 128) -> list[Preview]:
    """Draw an image; `caldp.previews.image` says how.

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
    with _explained(product.name):
        with _opened(product) as hdus:
            names = _names(product, hdus, "image")
            mosaic = image.read(hdus)
        with _published(product.name, directory, names) as scratch:
            _save(scratch, names, image.pictures(mosaic, thumbnail))
    return _listed(product.name, directory, names)


def make_colour_preview(products: Sequence[Path], directory: Path, thumbnail: int = 128) -> list[Preview]:
    """Draw the colour composite of some mosaics; `caldp.previews.colour` says how.

    Parameters
    ----------
    products : sequence of Path
        Filter products of one visit or sky cell and one camera, and perhaps their total product, all of one shape.
        Other files are passed over.
    directory : Path
        Where ``hst_..._color.jpg`` and ``hst_..._color_thumb.jpg`` go; created when missing.
    thumbnail : int
        Longest side of the thumbnail, in pixels.

    Returns
    -------
    list of Preview
        Of the total product if it was given, else of the one that is red.

    Raises
    ------
    PreviewError
        If their names do not make exactly one composite, or their images have different shapes.
    """
    composite = _the_composite(products)
    names = _composite_names(composite)
    with _explained(composite.base):
        for note in composite.notes:
            print(note, file=sys.stderr)
        with _published(composite.base, directory, names) as scratch:
            _save(scratch, names, colour.pictures(_channels(composite), thumbnail))
    return _listed(composite.product.name, directory, names)


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
    composites: bool = False,
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
    composites : bool
        Make the colour composites that the products' names allow, too.
    cancel : callable
        Stops the programs that ``run_program`` is running.

    Returns
    -------
    list of Preview
        In the order of ``products``, then of the composites, by name.

    Raises
    ------
    PreviewError
        Naming every product and composite without its previews, and why: its worker failed or was killed, or a
        preview is missing, empty or unreadable.  The previews of all others are there.
    """
    products = [product.absolute() for product in products]
    if not products:
        return []
    directory = directory.absolute()
    _require_distinct(products, directory)
    tasks = [_Task(product.name, (product,)) for product in products]
    if composites:
        tasks += [_Task(c.base, c.sources, c) for c in colour.find(products)]
    with _explained(directory.name):
        directory.mkdir(parents=True, exist_ok=True)
        for task in tasks:  # what an earlier attempt left must not pass for the work of this one
            for name in task.possible_names:
                (directory / name).unlink(missing_ok=True)
    groups = _shared(tasks, jobs)
    problems: dict[str, str] = {}
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
    for task in tasks:
        if task.label not in problems:
            try:
                previews += _verified(task, directory)
            except PreviewError as error:
                problems[task.label] = error.message
    if problems:
        memory = any(run.oom_kills and run.returncode for run in runs)  # then more of it helps
        raise (ProgramMemoryError if memory else PreviewError)(
            "; ".join(problems[task.label] for task in tasks if task.label in problems),
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
            thumbnail=run.recipe.thumbnail,
            composites=run.recipe.composites,
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
        0; 28 when a preview could not be made (the others are); 2 when a file does not exist or is not FITS, or when
        the files of a composite do not make one (nothing is made).
    """
    parser = argparse.ArgumentParser(prog="python -m caldp.create_preview", description="Make previews of FITS files.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="FITS file: spectrum or image")
    parser.add_argument(
        "--composite",
        nargs="+",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="mosaics of one visit or sky cell in several filters: make their colour composite (may be repeated)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where previews go (default: beside each file)")
    parser.add_argument("--thumbnail", type=int, default=128, metavar="N", help="longest side in pixels (default: 128)")
    parser.add_argument("--json", action="store_true", help="print one JSON document per file or composite")
    try:
        options = parser.parse_args(argv)
        if options.thumbnail < 1:
            parser.error("--thumbnail must be at least 1")
        if not options.files and not options.composite:
            parser.error("no files")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    unusable = {file: reason for file in sum(options.composite, options.files) if (reason := _not_fits(file))}
    tasks: list[_Task] = []
    if not unusable:
        try:
            _require_distinct(options.files, options.output)
            tasks = [_Task(file.name, (file,)) for file in options.files]
            for composite in map(_the_composite, options.composite):
                tasks.append(_Task(composite.base, composite.sources, composite))
        except PreviewError as error:
            unusable[sum(options.composite, options.files)[0]] = error.message
    for file, reason in unusable.items():
        _tell(file.name, [], reason, options.json)
    if unusable:
        return 2
    failed = False
    for task in tasks:
        directory = options.output or task.files[0].parent
        try:
            if task.composite:
                previews = make_colour_preview(task.files, directory, options.thumbnail)
            else:
                previews = make_preview(task.files[0], directory, options.thumbnail)
        except PreviewError as error:
            failed = True
            _tell(task.label, [], error.message, options.json)
        else:
            _tell(task.label, previews, "", options.json)
    return PreviewError.exit_code if failed else 0


# ---- names, and files under their names


_ENDINGS: dict[str, Kind] = {
    ".png": "spectrum",
    ".jpg": "image",
    "_thumb.png": "thumbnail",
    "_thumb.jpg": "thumbnail",
    "_prev.fits": "table",
}


@dataclass(frozen=True)
class _Task:
    """What a worker does in one go: the previews of one product, or a composite."""

    label: str
    files: tuple[Path, ...]
    composite: Composite | None = None

    @property
    def possible_names(self) -> list[str]:
        """Names of all previews that it may leave."""
        if self.composite:
            return list(_composite_names(self.composite))
        return [f"{_base(self.files[0])}{ending}" for ending in _ENDINGS]


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


def _composite_names(composite: Composite) -> dict[str, Kind]:
    return {f"{composite.base}{ending}": _ENDINGS[ending] for ending in (".jpg", "_thumb.jpg")}


def _the_composite(products: Sequence[Path]) -> Composite:
    """Return the one composite that these files make."""
    found = colour.find(products)
    if len(found) != 1:
        names = ", ".join(product.name for product in products)
        raise PreviewError(
            f"{len(found) or 'no'} colour composites can be made of {names}",
            remedy="give the mosaics of one visit or sky cell and camera in at least two filters",
        )
    return found[0]


def _channels(composite: Composite) -> Iterator[Mosaic]:
    """Read the channels of a composite, one at a time."""
    first: tuple[int, ...] = ()
    for path in composite.channels:
        with _explained(path.name), _opened(path) as hdus:
            size = next((image.shape(hdu) for hdu in image.science(hdus)), ())
            first = first or size
            if size != first:
                sizes = [" x ".join(map(str, reversed(shape))) for shape in (size, first)]
                raise PreviewError(
                    f"{path.name} has {sizes[0]} pixels and {composite.channels[0].name} {sizes[1]}:"
                    " a composite needs one grid"
                )
            yield image.read(hdus)


def _require_distinct(products: Sequence[Path], directory: Path | None = None) -> None:
    seen: dict[Path, Path] = {}
    for product in products:
        target = (directory or product.parent) / _base(product)
        if target in seen:
            raise PreviewError(f"{seen[target]} and {product} would have previews of the same name")
        seen[target] = product


@contextlib.contextmanager
def _published(label: str, directory: Path, names: dict[str, Kind]) -> Iterator[Path]:
    """Give a scratch directory; what was written there appears under its names once all of it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    # spec-plots 1.37.1 cuts the path of its thumbnail at the first ".png", directories included.
    parent = None if ".png" in str(directory) else directory
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as scratch:
        yield Path(scratch)
        for name, kind in names.items():
            _check(Path(scratch) / name, kind, label)
        for name in names:
            if parent is None:
                with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=directory) as near:
                    shutil.copyfile(Path(scratch) / name, Path(near) / name)
                    (Path(near) / name).replace(directory / name)
            else:
                (Path(scratch) / name).replace(directory / name)


def _save(scratch: Path, names: Iterable[str], pictures: Iterable[Image]) -> None:
    for name, picture in zip(names, pictures, strict=True):
        # No chroma subsampling: it would smear the colour of a single bad pixel over its neighbours.
        picture.save(scratch / name, format="JPEG", quality=90, subsampling=0)


def _listed(product: str, directory: Path, names: dict[str, Kind]) -> list[Preview]:
    return [Preview(name, kind, product, (directory / name).stat().st_size) for name, kind in names.items()]


def _check(path: Path, kind: Kind, label: str) -> None:
    """Raise PreviewError unless a preview is there and can be opened."""
    from astropy.io import fits
    from PIL import Image

    if not path.is_file():
        raise PreviewError(f"{label}: its preview {path.name} was not written")
    if not path.stat().st_size:
        raise PreviewError(f"{label}: its preview {path.name} is empty")
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
        raise PreviewError(f"{label}: its preview {path.name} is unreadable: {error}") from error


# ---- FITS files


@contextlib.contextmanager
def _explained(label: str) -> Iterator[None]:
    """Turn whatever goes wrong with a product, in libraries too, into a PreviewError that names it."""
    try:
        yield
    except PreviewError as error:
        if label in error.message:
            raise
        raise PreviewError(f"{label}: {error.message}") from error
    except SystemExit as stop:
        raise PreviewError(f"{label}: cannot make a preview: {stop.code}") from stop
    except MemoryError:
        raise PreviewError(f"{label}: cannot make a preview: out of memory") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise PreviewError(f"{label}: cannot make a preview: {reason}") from error


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
    return "image" if (empty or image.science(hdus)) and not dispersed else None


# ---- workers


def _shared(tasks: Sequence[_Task], jobs: int) -> list[list[_Task]]:
    """Divide tasks among workers so that they end at about the same time."""
    groups: list[list[_Task]] = [[] for _ in range(max(1, min(jobs, len(tasks))))]
    costs = [0.0] * len(groups)

    def cost(task: _Task) -> float:
        # A spectrum takes about a second whatever its size, an image about one more per 100 MB.
        return 1.0 + sum(file.stat().st_size for file in task.files if file.is_file()) / 1e8

    for task in sorted(tasks, key=cost, reverse=True):
        index = costs.index(min(costs))
        groups[index].append(task)
        costs[index] += cost(task)
    return [sorted(group, key=lambda task: task.composite is not None) for group in groups]


def _command(tasks: Sequence[_Task], directory: Path, thumbnail: int) -> list[str]:
    options = ["--json", "--output", os.fspath(directory), "--thumbnail", str(thumbnail)]
    for task in tasks:
        options += [] if task.composite else map(os.fspath, task.files)
    for task in tasks:
        options += ["--composite", *map(os.fspath, task.files)] if task.composite else []
    return [sys.executable, "-m", "caldp.create_preview", *options]


def _problems(tasks: Sequence[_Task], run: ProgramRun) -> dict[str, str]:
    """Say which tasks of a worker failed, and why, from what it printed."""
    told: dict[str, str] = {}
    last = ""
    for line in run.tail:
        document = None
        with contextlib.suppress(ValueError):
            document = json.loads(line)
        if isinstance(document, dict) and "product" in document:
            told[document["product"]] = document.get("error") or ""
        elif has_words(line):
            last = line.strip()
    problems = {task.label: told[task.label] for task in tasks if told.get(task.label)}
    if run.returncode == 0 or (problems and run.returncode in (2, PreviewError.exit_code)):
        return problems
    reason = f"the preview worker ended with {run.outcome}"
    if run.oom_kills:
        reason += ", for lack of memory"
    reason += f": {last}" if last else ""
    pending = [task.label for task in tasks if task.label not in told] or [task.label for task in tasks]
    # Files are taken in order, then composites: the first without a word is the one it was at work on.
    problems[pending[0]] = f"{pending[0]}: {reason}"
    problems |= {label: f"{label}: not reached, {reason}" for label in pending[1:]}
    return problems


def _verified(task: _Task, directory: Path) -> list[Preview]:
    """Return the previews that a task must have left."""
    with _explained(task.label):
        if task.composite:
            names, product = _composite_names(task.composite), task.composite.product.name
        else:
            with _opened(task.files[0]) as hdus:
                kind = _kind(hdus)
                if kind is None:
                    raise PreviewError("no preview is made of this kind of file")
                names, product = _names(task.files[0], hdus, kind), task.label
        for name, form in names.items():
            _check(directory / name, form, task.label)
        return _listed(product, directory, names)


def _tell(label: str, previews: Sequence[Preview], error: str, as_json: bool) -> None:
    """Report on one file or composite: results on standard output, what failed on standard error."""
    if error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    if as_json:
        document = {"product": label, "previews": [p.to_json() for p in previews], "error": error or None}
        print(json.dumps(document), flush=True)
    else:
        for preview in previews:
            print(preview, flush=True)


if __name__ == "__main__":
    sys.exit(main())
