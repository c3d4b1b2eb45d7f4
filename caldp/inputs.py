"""Fetch: this dataset's raw files, all of them and nothing else, as private working copies.

A file belongs to the dataset if its name begins with the nine characters of the exposure, or of the association or
one of its members, and its suffix is one the recipe knows.  Everything is checked here, before a program runs: the
members of the association are there, every file is whole FITS of the right instrument, tables of events hold events.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from caldp.dataset import Dataset
from caldp.errors import InputError
from caldp.fitsfile import damage, damage_raises
from caldp.run import Run
from caldp.store import parse_uri

_CHUNK = 1 << 20
_NAME = re.compile(r"([a-z0-9]{9})_([a-z0-9_]+)\.fits(\.gz)?")
_MEMBER = re.compile(r"[a-z0-9]{9}")


@dataclass(frozen=True)
class InputFile:
    """One raw file.

    Attributes
    ----------
    name : str
        Name of the working copy: uncompressed.
    root, suffix : str
        ``ldfd01vnq`` and ``rawtag_a``.
    size : int
        Bytes, uncompressed.
    sha256 : str
        Of the uncompressed content, as it came.
    source : str
        The file it was copied from.
    facts : dict
        Header keywords named by the recipe, for raw science data.
    """

    name: str
    root: str
    suffix: str
    size: int
    sha256: str
    source: str
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Inputs:
    """Exactly this dataset's files, as pristine copies in the workspace.

    Attributes
    ----------
    dataset : str
        Its name.
    directory : Path
        Where the copies are.
    association : InputFile or None
        The association table, when the dataset is one.
    members : tuple of str
        Root names of the exposures.
    product : str
        Root name of the association's product, or empty when it has none.
    raw : tuple of InputFile
        Raw science data.
    support : tuple of InputFile
        What goes with them.
    empty : tuple of str
        Raw files without any event, of exposures whose other segment has some.
    """

    dataset: str
    directory: Path
    association: InputFile | None
    members: tuple[str, ...]
    product: str
    raw: tuple[InputFile, ...]
    support: tuple[InputFile, ...]
    empty: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``association`` or ``exposure``."""
        return "association" if self.association else "exposure"

    @property
    def files(self) -> tuple[InputFile, ...]:
        """All of them."""
        return (*((self.association,) if self.association else ()), *self.raw, *self.support)

    def __str__(self) -> str:
        size = sum(f.size for f in self.files)
        return f"{self.kind}, {len(self.members)} exposure(s), {len(self.files)} files, {size / 1e6:.1f} MB"


def fetch(run: Run, uri: str) -> Inputs:
    """Copy the dataset's raw files into the workspace and check them.

    Parameters
    ----------
    run : Run
        The run.
    uri : str
        ``file:<directory>`` with FITS files (plain or .gz), or with ``<dataset>.tar.gz``.

    Returns
    -------
    Inputs

    Raises
    ------
    InputError
        Naming the file, if anything is missing, damaged or of another instrument.
    """
    directory = Path(parse_uri(uri)[1]).expanduser().absolute()
    if not directory.is_dir():
        raise InputError(
            f"{run.dataset}: there is no input directory {directory}",
            remedy="give file:<directory with the raw FITS>",
        )
    with run.telemetry.stage("fetch") as stage:
        inputs = _collect(run, directory)
        stage.bytes_in = stage.bytes_out = sum(f.size for f in inputs.files)
        run.telemetry.info(f"inputs from {directory}: {inputs}")
    return inputs


def _collect(run: Run, directory: Path) -> Inputs:
    dataset, recipe = run.dataset, run.recipe
    available = _available(run, directory)
    if not any(key[0] == dataset.name for key in available):
        tarball = _tarball(dataset, directory)
        if tarball is None:
            raise InputError(
                f"{dataset}: no file {dataset}_*.fits and no {dataset}.tar.gz in {directory}",
                remedy=f"put {dataset}_asn.fits or {dataset}_raw*.fits there",
            )
        available = _available(run, _unpack(run, tarball))

    def take(root: str, suffixes: Iterable[str]) -> list[InputFile]:
        files = []
        for suffix in suffixes:
            if paths := available.get((root, suffix)):
                if len(paths) > 1:
                    run.telemetry.warning(f"both {paths[0].name} and {paths[1].name} are there: the first is used")
                files.append(_copy(run, paths[0], root, suffix))
        return files

    found = take(dataset.name, ["asn"])
    association = found[0] if found else None
    members, product = _members(run, association) if association else ((dataset.name,), "")
    raw = [_with_facts(run, f) for root in members for f in take(root, recipe.raw)]
    missing = [root for root in members if not any(f.root == root for f in raw)]
    if missing:
        raise InputError(
            f"{dataset}: no raw data for {', '.join(missing)} in {directory}",
            remedy=f"add a raw file of each: one of {', '.join(f'_{s}.fits' for s in recipe.raw)}",
        )
    roots = dict.fromkeys((dataset.name, *members))
    support = [f for root in roots for f in take(root, recipe.support)]
    for file in support:
        _check_fits(run, run.workspace.inputs / file.name)
    empty = _empty_tables(run, raw)
    return Inputs(dataset.name, run.workspace.inputs, association, members, product, tuple(raw), tuple(support), empty)


def _available(run: Run, directory: Path) -> dict[tuple[str, str], list[Path]]:
    """Map (root, suffix) to the files that hold it: a plain one comes before a compressed one."""
    wanted = {"asn", *run.recipe.raw, *run.recipe.support}
    found: dict[tuple[str, str], list[Path]] = {}
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise InputError(
            f"{run.dataset}: cannot list {directory} ({error.strerror})", remedy="make it readable"
        ) from error
    for path in paths:  # x.fits comes before x.fits.gz
        match = _NAME.fullmatch(path.name)
        if match is not None and match[2] in wanted and path.is_file():
            found.setdefault((match[1], match[2]), []).append(path)
    return found


def _copy(run: Run, source: Path, root: str, suffix: str) -> InputFile:
    """Copy one file into the workspace, uncompressed, hashing what passes."""
    target = run.workspace.inputs / f"{root}_{suffix}.fits"
    digest = hashlib.sha256()
    opener: Callable[..., Any] = gzip.open if source.suffix == ".gz" else Path.open
    try:
        with opener(source, "rb") as reader:
            with target.open("xb") as writer:
                while chunk := _read(run, source, reader):
                    digest.update(chunk)
                    writer.write(chunk)
    except PermissionError as error:
        raise InputError(f"{run.dataset}: not allowed to read {source}", remedy="make it readable") from error
    return InputFile(target.name, root, suffix, target.stat().st_size, digest.hexdigest(), str(source))


def _read(run: Run, source: Path, reader: IO[bytes]) -> bytes:
    # Apart from the write, so that a full disk is not taken for a damaged input.
    try:
        return reader.read(_CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{run.dataset}: {source} cannot be read ({error})", remedy="fetch it again") from error


def _members(run: Run, association: InputFile) -> tuple[tuple[str, ...], str]:
    """Return the exposures of an association that its table says are present, and the root name of its product."""
    from astropy.io import fits

    path = run.workspace.inputs / association.name
    _check_fits(run, path)
    with _unreadable(run, association, "is not an association table"), fits.open(path) as hdus:
        table = hdus[1].data
        names = [str(n).strip().lower() for n in table["MEMNAME"]]
        types = [str(t).strip().upper() for t in table["MEMTYPE"]]
        has_present = "MEMPRSNT" in table.names
        present = [bool(p) for p in table["MEMPRSNT"]] if has_present else [True] * len(names)
    rows = list(zip(names, types, present, strict=True))
    exposures = [n for n, t, p in rows if "PROD" not in t and p]
    absent = [n for n, t, p in rows if "PROD" not in t and not p]
    products = [n for n, t, _ in rows if "PROD" in t]
    if absent:
        run.telemetry.warning(f"{association.name} says that {', '.join(absent)} was not taken: it is left out")
    strange = [n for n in exposures if not _MEMBER.fullmatch(n)]
    if strange or not exposures:
        what = f"lists {strange[0]!r}" if strange else "lists no exposure"
        raise InputError(f"{run.dataset}: {association.source} {what}", remedy="fetch it again")
    if any(n[:8] != run.dataset.name[:8] for n in products):
        raise InputError(
            f"{run.dataset}: {association.source} is the table of {products[0]!r}", remedy="give it back its own name"
        )
    return tuple(dict.fromkeys(exposures)), products[0] if products else ""


def _with_facts(run: Run, file: InputFile) -> InputFile:
    """Check a raw file and read the header keywords that the recipe needs."""
    from astropy.io import fits

    path = run.workspace.inputs / file.name
    _check_fits(run, path)
    facts: dict[str, Any] = {}
    with _unreadable(run, file, "has a damaged header or table"), fits.open(path) as hdus:
        for hdu in hdus[1::-1]:  # the primary header wins
            facts |= {key: hdu.header[key] for key in run.recipe.facts if key in hdu.header}
        facts |= {key: int(facts[key]) for key in run.recipe.numbers if key in facts}
        if "EVENTS" in hdus:
            facts["EVENTS"] = len(hdus["EVENTS"].data)
    if str(facts.get("INSTRUME", "")).strip().lower() != run.recipe.name:
        raise InputError(
            f"{run.dataset}: {file.source} is {facts.get('INSTRUME', 'no')} data, not {run.recipe.name.upper()}",
            remedy="put the right file there",
        )
    if str(facts.get("ROOTNAME", file.root)).strip().lower() != file.root:
        raise InputError(
            f"{run.dataset}: {file.source} says it is {facts['ROOTNAME']}", remedy="give it back its own name"
        )
    return InputFile(file.name, file.root, file.suffix, file.size, file.sha256, file.source, facts)


@contextmanager
def _unreadable(run: Run, file: InputFile, what: str) -> Iterator[None]:
    """Turn what astropy raises on damaged headers and tables into an InputError; its warnings count as damage too."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    wrong = (fits.VerifyError, AstropyWarning, OSError, ValueError, TypeError, LookupError, AttributeError)
    try:
        with damage_raises():
            yield
    except wrong as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{run.dataset}: {file.source} {what} ({reason})", remedy="fetch it again") from error


def _check_fits(run: Run, path: Path) -> None:
    """Raise InputError unless the file is whole FITS."""
    if reason := damage(path, count=True):
        raise InputError(f"{run.dataset}: {path.name} is not whole FITS ({reason})", remedy="fetch it again")


def _empty_tables(run: Run, raw: list[InputFile]) -> tuple[str, ...]:
    """Return empty raw files; an exposure of which nothing else is left is an error."""
    empty = [f for f in raw if f.facts.get("EVENTS") == 0]
    for file in empty:
        if all(other in empty for other in raw if other.root == file.root):
            raise InputError(
                f"{run.dataset}: {file.source} holds no events, so there is nothing to calibrate",
                remedy="fetch it again, or leave this exposure out",
            )
        run.telemetry.warning(f"{file.name} holds no events: only its other segment is calibrated")
    return tuple(f.name for f in empty)


def _tarball(dataset: Dataset, directory: Path) -> Path | None:
    candidates = [directory / f"{dataset}{ending}" for ending in (".tar.gz", ".tgz", ".tar")]
    return next((path for path in candidates if path.is_file()), None)


def _unpack(run: Run, tarball: Path) -> Path:
    """Unpack a tarball beside the workspace's inputs; only plain files, by their base names."""
    target = run.workspace.root / "unpacked"
    target.mkdir()
    try:
        with tarfile.open(tarball) as archive:
            for member in archive:
                name = Path(member.name).name
                if not member.isfile() or not _NAME.fullmatch(name):
                    continue
                if Path(member.name).is_absolute() or ".." in Path(member.name).parts:
                    raise InputError(
                        f"{run.dataset}: {tarball} holds the unsafe path {member.name!r}",
                        remedy="do not use it",
                    )
                source = archive.extractfile(member)
                if source is not None:
                    with source, (target / name).open("xb") as writer:
                        shutil.copyfileobj(source, writer, _CHUNK)
    except PermissionError as error:
        raise InputError(f"{run.dataset}: not allowed to read {tarball}", remedy="make it readable") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, FileExistsError) as error:
        raise InputError(f"{run.dataset}: {tarball} cannot be unpacked ({error})", remedy="fetch it again") from error
    run.telemetry.info(f"unpacked {tarball}")
    return target
