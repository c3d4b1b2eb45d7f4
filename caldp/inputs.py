"""Fetch: this dataset's raw files, all of them and nothing else, as private working copies.

A file belongs to the dataset if its name begins with the nine characters of the exposure, or of the association or
one of its members, and its suffix is one the recipe knows.  Everything is checked here, before a program runs: the
members of the association are there, every file is whole FITS of the right instrument, tables of events hold events.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from caldp import tarball
from caldp.association import read as read_association
from caldp.errors import InputError
from caldp.expectations import Material, Member, Raw
from caldp.fitsfile import DamagedError, damage, reading
from caldp.run import Run
from caldp.settings_file import read as settings_in
from caldp.store import parse_uri

_CHUNK = 1 << 20
_NAME = re.compile(r"([a-z0-9]{9})_([a-z0-9_]+)\.fits(\.gz)?")
_MEMBER = re.compile(r"[a-z0-9]{9}")
_TARBALLS = (".tar.gz", ".tgz", ".tar")

#: A calibrated exposure as poller files name it: of a visit, or of its mosaics.
_EXPOSURE = re.compile(r"(hst_[a-z0-9_.+-]+|[a-z0-9]{9})_fl[ct]\.fits")

#: Text files among inputs.
_TEXT = re.compile(r"[a-z0-9_-]+_(input\.out|cal_env\.txt)")


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
    raw : tuple of InputFile
        Raw science data; for mosaics the calibrated exposures they are made of.
    support : tuple of InputFile
        What goes with them.
    association : InputFile or None
        The association table, when the dataset is one.
    members : tuple of Member
        Its rows that are present: exposures and products.
    poller : InputFile or None
        The list of exposures of a mosaic.
    settings_file : InputFile or None
        ``<dataset>_cal_env.txt``.
    settings : mapping
        Its settings for the programs.
    empty : tuple of str
        Raw files without any event, of exposures whose other segment has some.
    """

    dataset: str
    directory: Path
    raw: tuple[InputFile, ...]
    support: tuple[InputFile, ...] = ()
    association: InputFile | None = None
    members: tuple[Member, ...] = ()
    poller: InputFile | None = None
    settings_file: InputFile | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``association``, ``exposure`` or ``mosaic``."""
        if self.poller:
            return "mosaic"
        return "association" if self.association else "exposure"

    @property
    def exposures(self) -> tuple[str, ...]:
        """Root names of the exposures, in order."""
        return tuple(dict.fromkeys(f.root for f in self.raw))

    @property
    def roots(self) -> tuple[str, ...]:
        """Root names of all that is given and made."""
        return tuple(dict.fromkeys((self.dataset, *self.exposures, *(m.root for m in self.members))))

    @property
    def material(self) -> Material:
        """What the programs are given, as far as it decides what they make of it."""
        raws = tuple(Raw(f.root, f.suffix, f.facts) for f in self.raw if f.name not in self.empty)
        return Material(self.dataset, raws, self.members)

    @property
    def files(self) -> tuple[InputFile, ...]:
        """All of them."""
        tables = (self.association, self.poller, self.settings_file)
        return (*(f for f in tables if f), *self.raw, *self.support)

    def __str__(self) -> str:
        size = sum(f.size for f in self.files)
        return f"{self.kind}, {len(self.exposures)} exposure(s), {len(self.files)} files, {size / 1e6:.1f} MB"


def fetch(run: Run, uri: str) -> Inputs:
    """Copy the dataset's raw files into the workspace and check them.

    Parameters
    ----------
    run : Run
        The run.
    uri : str
        ``file:<directory>`` with FITS files (plain or .gz) or with ``<dataset>.tar.gz``, ``file:<tarball>``, or
        ``astroquery:`` to download them from MAST first.

    Returns
    -------
    Inputs

    Raises
    ------
    InputError
        Naming the file, if anything is missing, damaged or of another instrument.
    AstroqueryError
        If MAST does not deliver.
    """
    scheme, place = parse_uri(uri)
    with run.telemetry.stage("fetch") as stage:
        packed = None
        if scheme == "astroquery":
            from caldp import mast

            directory = mast.download(run, uri)
        else:
            directory = Path(place).expanduser().absolute()
            if directory.is_file() and directory.name.endswith(_TARBALLS):
                directory, packed = directory.parent, directory
            elif not directory.is_dir():
                raise InputError(
                    f"{run.dataset}: there is no input directory {directory}"
                    f"{' (it is a file)' if directory.exists() else ''}",
                    remedy="give file:<directory with the raw FITS>, or file:<tarball>",
                )
        inputs = _collect(run, directory, packed)
        stage.bytes_in = stage.bytes_out = sum(f.size for f in inputs.files)
        run.telemetry.info(f"inputs from {directory}: {inputs}")
    return inputs


def _collect(run: Run, directory: Path, given: Path | None = None) -> Inputs:
    loose = source = _Source(run, directory, directory)
    beside = (directory / f"{run.dataset}{end}" for end in _TARBALLS)
    packed = given or next((path for path in beside if path.is_file()), None)
    if packed and (given or not loose.holds_raw_data()):
        source = _Source(run, _unpack(run, packed), packed)
    elif packed:
        run.telemetry.warning(f"the files beside {packed.name} are used, not those in it")
    elif not loose.holds_dataset():
        raise InputError(
            f"{run.dataset}: no {source.wanted} and no {run.dataset}.tar.gz in {directory}",
            remedy=f"put {source.wanted} there",
        )
    inputs = _mosaic(source) if source.is_mosaic else _exposures(source)
    name = f"{run.dataset}_cal_env.txt"
    settings_file = source.take_text(name) or loose.take_text(name)
    if settings_file is None:
        return inputs
    settings, refused = settings_in(run.workspace.inputs / settings_file.name)
    for message in refused:
        run.telemetry.warning(message)
    for name, value in settings.items():
        run.telemetry.info(f"{settings_file.name} sets {name}={value}")
    return replace(inputs, settings_file=settings_file, settings=settings)


def _exposures(source: _Source) -> Inputs:
    """Take the files of an exposure or association."""
    run, recipe, name = source.run, source.run.recipe, source.run.dataset.name
    association = next(iter(source.take(name, ["asn"])), None)
    members = _members(run, association) if association and recipe.member_files else ()
    exposures = tuple(dict.fromkeys(m.root for m in members if not m.is_product)) or (name,)
    if association and not recipe.member_files:
        _check_fits(run, run.workspace.inputs / association.name)
    suffixes, raw = recipe.raw, [f for root in exposures for f in source.take(root, recipe.raw)]
    if not raw and recipe.instead:
        suffixes, raw = recipe.instead, [f for root in exposures for f in source.take(root, recipe.instead)]
    missing = [root for root in exposures if not any(f.root == root for f in raw)]
    if missing:
        raise InputError(
            f"{run.dataset}: no raw data for {', '.join(missing)} in {source.place}",
            remedy=f"add a raw file of each: one of {', '.join(f'_{s}.fits' for s in recipe.raw)}",
        )
    raw = [_with_facts(run, f) for f in raw]
    roots = dict.fromkeys((name, *exposures))
    support = [f for root in roots for f in source.take(root, [s for s in recipe.support if s not in suffixes])]
    for file in support:
        _check_fits(run, run.workspace.inputs / file.name)
    _check_companions(run, raw, support)
    empty = _empty_tables(run, raw)
    return Inputs(name, run.workspace.inputs, tuple(raw), tuple(support), association, members, empty=empty)


def _mosaic(source: _Source) -> Inputs:
    """Take the list of exposures of a mosaic and the calibrated exposures that it names."""
    run, name = source.run, source.run.dataset.name
    poller = source.take_text(f"{name}_input.out")
    if poller is None:
        raise InputError(
            f"{run.dataset}: there is no {name}_input.out in {source.place}",
            remedy="put the list of exposures (poller file) there",
        )
    raw = []
    for exposure in _poller_rows(run, poller):
        file = source.take_exposure(exposure)
        if file is None:
            raise InputError(
                f"{run.dataset}: {poller.name} lists {exposure}, which is not in {source.place}",
                remedy="put it there, or take it out of the list",
            )
        raw.append(_with_facts(run, file))
    return Inputs(name, run.workspace.inputs, tuple(raw), poller=poller)


def _poller_rows(run: Run, poller: InputFile) -> list[str]:
    """Return the exposures that a poller file names, in order: the first of its comma-separated fields."""
    text = (run.workspace.inputs / poller.name).read_text(encoding="utf-8", errors="replace")
    names = [line.split(",", 1)[0].strip() for line in text.splitlines() if line.strip()]
    # The exposures of a visit have its name; a sky cell is made of many visits.
    visit = run.dataset.root if run.dataset.kind == "svm" else ""
    strange = [name for name in names if not (_EXPOSURE.fullmatch(name) and name.startswith(visit))]
    if strange or not names:
        what = f"lists {strange[0][:80]!r}, which is no calibrated exposure of it" if strange else "lists no exposure"
        raise InputError(f"{run.dataset}: {poller.source} {what}", remedy="fetch it again")
    return list(dict.fromkeys(names))


class _Source:
    """A directory with inputs, of which this dataset's are taken."""

    def __init__(self, run: Run, directory: Path, place: Path) -> None:
        self.run = run
        self.directory = directory
        self.place = place  # for messages: the directory, or the tarball that it was unpacked from
        self.is_mosaic = run.dataset.kind != "ipppssoot"
        self._available = {} if self.is_mosaic else _available(run, directory)

    @property
    def wanted(self) -> str:
        """What must be there, in words."""
        dataset = self.run.dataset
        return f"{dataset}_input.out" if self.is_mosaic else f"{dataset}_asn.fits or {dataset}_raw*.fits"

    def holds_raw_data(self) -> bool:
        """Whether the dataset itself is there: a table or a support file alone is not."""
        name = self.run.dataset.name
        if self.is_mosaic:
            return self.holds_dataset()
        roots = {root for root, suffix in self._available if suffix in self.run.recipe.raw}
        return name in roots or ((name, "asn") in self._available and any(root[:6] == name[:6] for root in roots))

    def holds_dataset(self) -> bool:
        """Whether there is anything to begin with: a list of exposures, an association table or raw data."""
        name, recipe = self.run.dataset.name, self.run.recipe
        if self.is_mosaic:
            return (self.directory / f"{name}_input.out").is_file()
        return any((name, suffix) in self._available for suffix in ("asn", *recipe.raw, *recipe.instead))

    def take(self, root: str, suffixes: Iterable[str]) -> list[InputFile]:
        """Copy the files of a root name and these suffixes."""
        files = []
        for suffix in suffixes:
            if paths := self._available.get((root, suffix)):
                if len(paths) > 1:
                    self.run.telemetry.warning(f"both {paths[0].name} and {paths[1].name} are there: the first is used")
                files.append(_copy(self.run, paths[0], root, suffix))
        return files

    def take_exposure(self, name: str) -> InputFile | None:
        """Copy a calibrated exposure that a poller file names."""
        path = next((p for p in (self.directory / name, self.directory / f"{name}.gz") if p.is_file()), None)
        root, _, suffix = name.removesuffix(".fits").rpartition("_")
        return _copy(self.run, path, root, suffix) if path else None

    def take_text(self, name: str) -> InputFile | None:
        """Copy a text file."""
        path = self.directory / name
        return _copy(self.run, path, name, "", name) if path.is_file() else None


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


def _copy(run: Run, source: Path, root: str, suffix: str, name: str = "") -> InputFile:
    """Copy one file into the workspace, uncompressed, hashing what passes."""
    target = run.workspace.inputs / (name or f"{root}_{suffix}.fits")
    digest = hashlib.sha256()
    opener: Callable[..., Any] = gzip.open if source.suffix == ".gz" else Path.open
    try:
        packed, size = source.stat().st_size, 0
        with opener(source, "rb") as reader:
            with target.open("xb") as writer:
                while chunk := _read(run, source, reader):
                    size += len(chunk)
                    if tarball.is_bomb(packed, size):
                        raise InputError(f"{run.dataset}: {source} unpacks to far too much", remedy="do not use it")
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


def _members(run: Run, association: InputFile) -> tuple[Member, ...]:
    """Return the exposures of an association that its table says are present, and its products."""
    path = run.workspace.inputs / association.name
    _check_fits(run, path)
    with _unreadable(run, association, "is not an association table"):
        rows = [(row.member, row.present) for row in read_association(path)]
    exposures = [m.root for m, there in rows if there and not m.is_product]
    absent = [m.root for m, there in rows if not there and not m.is_product]
    products = [m.root for m, _ in rows if m.is_product]
    if absent:
        run.telemetry.warning(f"{association.name} says that {', '.join(absent)} was not taken: it is left out")
    strange = [n for n in exposures if not _MEMBER.fullmatch(n)]
    if strange or not exposures:
        what = f"lists {strange[0]!r}" if strange else "lists no exposure"
        raise InputError(f"{run.dataset}: {association.source} {what}", remedy="fetch it again")
    foreign = [n for n in products if not _MEMBER.fullmatch(n) or n[:8] != run.dataset.name[:8]]
    if foreign:
        raise InputError(
            f"{run.dataset}: {association.source} is the table of {foreign[0]!r}", remedy="give it back its own name"
        )
    # MEMPRSNT of a product says whether it was made, which is what we are about to do.
    return tuple(m for m, there in rows if there or m.is_product)


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
    instrument = str(facts.get("INSTRUME", "")).strip()
    # Only a sky cell may hold the data of several.
    allowed = [name for name in run.recipe.instruments if run.dataset.instrument in (name, "mvm")]
    if instrument.lower() not in allowed:
        raise InputError(
            f"{run.dataset}: {file.source} {f'is {instrument} data' if instrument else 'names no instrument'}, "
            f"not {' or '.join(name.upper() for name in allowed)}",
            remedy="put the right file there",
        )
    # The exposures of a sky cell are named after their visit.
    if not file.root.startswith("hst_") and str(facts.get("ROOTNAME", file.root)).strip().lower() != file.root:
        raise InputError(
            f"{run.dataset}: {file.source} says it is {facts['ROOTNAME']}", remedy="give it back its own name"
        )
    return InputFile(file.name, file.root, file.suffix, file.size, file.sha256, file.source, facts)


@contextmanager
def _unreadable(run: Run, file: InputFile, what: str) -> Iterator[None]:
    """Turn damage into an InputError that names the file."""
    try:
        with reading():
            yield
    except DamagedError as error:
        raise InputError(f"{run.dataset}: {file.source} {what} ({error})", remedy="fetch it again") from error


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


def _check_companions(run: Run, raw: list[InputFile], support: list[InputFile]) -> None:
    """Raise InputError when a file is missing that a raw header says is needed."""
    there = {f.name for f in (*raw, *support)}
    for file in raw:
        for name in run.recipe.companions(file.facts):
            if name not in there:
                raise InputError(f"{run.dataset}: {file.name} needs {name}", remedy="put it beside the raw file")


def _unpack(run: Run, path: Path) -> Path:
    """Unpack a tarball inside the workspace."""
    target = run.workspace.root / "unpacked"
    target.mkdir()
    unpacked = tarball.unpack(path, target, dataset=run.dataset.name, wanted=_is_input)
    run.telemetry.info(f"unpacked {len(unpacked.files)} files from {path}, left {len(unpacked.skipped)} others")
    return target


def _is_input(name: str) -> bool:
    return any(pattern.fullmatch(name.removesuffix(".gz")) for pattern in (_NAME, _EXPOSURE, _TEXT))
