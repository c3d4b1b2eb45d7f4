"""Fetch: this dataset's raw files, all of them and nothing else, as private working copies.

They come from a directory, from a prefix of an S3 bucket, from a tarball in either, or from MAST by way of a directory.
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
from caldp.folders import Folder, Prefix, Unpacked
from caldp.run import Run
from caldp.settings_file import read as settings_in
from caldp.store import parse_uri

_CHUNK = 1 << 20
_NAME = re.compile(r"([a-z0-9]{9})_([a-z0-9_]+)\.fits(\.gz)?")
_MEMBER = re.compile(r"[a-z0-9]{9}")
_TARBALLS = (".tar.gz", ".tgz", ".tar")

#: A calibrated exposure as poller files name it: of a visit, or of its mosaics.
_EXPOSURE = re.compile(r"(hst_[a-z0-9_.+-]+|[a-z0-9]{9})_fl[ct]\.fits")

#: What the names of a visit's files begin with: ``j8bt05`` of ``j8bt05njq``, ``hst_9029_05_`` of mosaics' exposures.
_VISIT = re.compile(r"hst_[^_]+_[^_]+_|[a-z0-9]{6}(?=[a-z0-9]{3}$)")

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
        The file or object it was copied from; ``<tarball>:<name>`` if it was unpacked.
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
    def detector(self) -> str:
        """Detector in the headers of the raw files, in lower case; of several all, joined; empty if they name none."""
        named = {str(f.facts.get("DETECTOR") or "").strip().lower() for f in self.raw}
        return "+".join(sorted(named - {""}))

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
        ``file:<directory>`` with FITS files (plain or .gz) or with ``<dataset>.tar.gz``, ``file:<tarball>``, the same
        in a bucket, ``s3://bucket/prefix`` and ``s3://bucket/<tarball>``, or ``astroquery:`` to download them from MAST
        first.

    Returns
    -------
    Inputs

    Raises
    ------
    InputError
        Naming the file, if anything is missing, damaged or of another instrument.
    AstroqueryError
        If MAST does not deliver.
    S3DownloadError
        If S3 does not deliver.
    """
    scheme, place = parse_uri(uri)
    with run.telemetry.stage("fetch") as stage:
        if scheme == "astroquery":
            from caldp import mast

            folder, packed = Folder(run, mast.download(run, uri)), ""
        else:
            folder, packed = (_in_bucket if scheme == "s3" else _on_disk)(run, place)
        inputs = _collect(run, folder, packed)
        stage.bytes_in = stage.bytes_out = sum(f.size for f in inputs.files)
        run.telemetry.facts |= {"detector": inputs.detector, "exposures": len(inputs.exposures)}
        run.telemetry.info(f"inputs from {folder}: {inputs}")
    return inputs


def _on_disk(run: Run, place: str) -> tuple[Folder, str]:
    """Return a directory, and the name of the tarball if it is one that is given."""
    path = Path(place).expanduser().absolute()
    if path.is_file() and path.name.endswith(_TARBALLS):
        return Folder(run, path.parent), path.name
    if not path.is_dir():
        raise InputError(
            f"{run.dataset}: there is no input directory {path}{' (it is a file)' if path.exists() else ''}",
            remedy="give file:<directory with the raw FITS>, or file:<tarball>",
        )
    return Folder(run, path), ""


def _in_bucket(run: Run, place: str) -> tuple[Folder, str]:
    """Return a prefix of a bucket, and the name of the tarball if it is one that is given."""
    bucket, _, key = place.removeprefix("//").partition("/")
    if not key.endswith(_TARBALLS):
        return Prefix(run, f"s3:{place}"), ""
    prefix, _, name = key.rpartition("/")
    folder = Prefix(run, f"s3://{bucket}/{prefix}")
    if name not in folder.names(name):
        raise InputError(
            f"{run.dataset}: there is no object {folder.url(name)}",
            remedy="put the tarball there; of a prefix that ends like one, write the slash too",
        )
    return folder, name


def _collect(run: Run, folder: Folder, given: str = "") -> Inputs:
    loose = source = _Source(run, folder)
    beside = (f"{run.dataset}{end}" for end in _TARBALLS)
    packed = given or next((name for name in beside if name in loose.own_names()), "")
    if packed and (given or not loose.holds_raw_data()):
        source = _Source(run, _unpack(run, folder, packed))
    elif packed:
        run.telemetry.warning(f"the files beside {packed} are used, not those in it")
    elif not loose.holds_dataset():
        raise InputError(
            f"{run.dataset}: no {source.wanted} and no {run.dataset}.tar.gz in {folder}",
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
    suffixes = recipe.raw
    if recipe.instead and not any(source.holds(root, suffixes) for root in exposures):
        suffixes = recipe.instead
    if missing := [root for root in exposures if not source.holds(root, suffixes)]:
        raise InputError(
            f"{run.dataset}: no raw data for {', '.join(missing)} in {source.folder}",
            remedy=f"add a raw file of each: one of {', '.join(f'_{s}.fits' for s in recipe.raw)}",
        )
    roots = dict.fromkeys((name, *exposures))
    further = [suffix for suffix in recipe.support if suffix not in suffixes]
    source.bring([*((root, suffixes) for root in exposures), *((root, further) for root in roots)])
    raw = [_with_facts(run, f) for root in exposures for f in source.take(root, suffixes)]
    support = [f for root in roots for f in source.take(root, further)]
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
            f"{run.dataset}: there is no {name}_input.out in {source.folder}",
            remedy="put the list of exposures (poller file) there",
        )
    exposures = [tuple(exposure.removesuffix(".fits").rpartition("_")[::2]) for exposure in _poller_rows(run, poller)]
    for root, suffix in exposures:
        if not source.holds(root, [suffix]):
            raise InputError(
                f"{run.dataset}: {poller.name} lists {root}_{suffix}.fits, which is not in {source.folder}",
                remedy="put it there, or take it out of the list",
            )
    source.bring((root, [suffix]) for root, suffix in exposures)
    raw = [_with_facts(run, f) for root, suffix in exposures for f in source.take(root, [suffix])]
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
    """A folder with inputs, of which this dataset's are taken."""

    def __init__(self, run: Run, folder: Folder) -> None:
        self.run = run
        self.folder = folder
        self.is_mosaic = run.dataset.kind != "ipppssoot"

    @property
    def wanted(self) -> str:
        """What must be there, in words."""
        dataset = self.run.dataset
        return f"{dataset}_input.out" if self.is_mosaic else f"{dataset}_asn.fits or {dataset}_raw*.fits"

    def own_names(self) -> frozenset[str]:
        """List the files of the dataset's visit, or of the mosaic."""
        return self.folder.names(_stem(self.run.dataset.name))

    def holds_raw_data(self) -> bool:
        """Whether the dataset itself is there: a table or a support file alone is not."""
        name, raw = self.run.dataset.name, self.run.recipe.raw
        if self.is_mosaic:
            return self.holds_dataset()
        matches = map(_NAME.fullmatch, self.own_names())
        return self.holds(name, raw) or (self.holds(name, ["asn"]) and any(m and m[2] in raw for m in matches))

    def holds_dataset(self) -> bool:
        """Whether there is anything to begin with: a list of exposures, an association table or raw data."""
        name, recipe = self.run.dataset.name, self.run.recipe
        if self.is_mosaic:
            return f"{name}_input.out" in self.own_names()
        return self.holds(name, ("asn", *recipe.raw, *recipe.instead))

    def holds(self, root: str, suffixes: Iterable[str]) -> bool:
        """Whether there is a file of a root name and one of these suffixes."""
        return any(self._find(root, suffix) for suffix in suffixes)

    def bring(self, wanted: Iterable[tuple[str, Iterable[str]]]) -> None:
        """Have the files of these root names and suffixes brought here, all at once."""
        self.folder.bring(names[0] for root, suffixes in wanted for s in suffixes if (names := self._find(root, s)))

    def take(self, root: str, suffixes: Iterable[str]) -> list[InputFile]:
        """Copy the files of a root name and these suffixes."""
        files = []
        for suffix in suffixes:
            if names := self._find(root, suffix):
                if len(names) > 1:
                    self.run.telemetry.warning(f"both {names[0]} and {names[1]} are there: the first is used")
                files.append(_copy(self.run, self.folder, names[0], root, suffix))
        return files

    def take_text(self, name: str) -> InputFile | None:
        """Copy a text file of the dataset's own."""
        return _copy(self.run, self.folder, name, name, "", name) if name in self.own_names() else None

    def _find(self, root: str, suffix: str) -> list[str]:
        """List the files that hold the same: a plain one comes before a compressed one."""
        name, there = f"{root}_{suffix}.fits", self.folder.names(_stem(root))
        return [name for name in (name, f"{name}.gz") if name in there]


def _stem(name: str) -> str:
    """Return what the names of a visit's files begin with: listed once, they are few, where a folder may be full."""
    match = _VISIT.match(name)
    return match[0] if match else name


def _copy(run: Run, folder: Folder, source: str, root: str, suffix: str, name: str = "") -> InputFile:
    """Copy one file into the workspace, uncompressed, hashing what passes."""
    target = run.workspace.inputs / (name or f"{root}_{suffix}.fits")
    url, digest = folder.url(source), hashlib.sha256()
    opener: Callable[..., Any] = gzip.open if source.endswith(".gz") else Path.open
    try:
        with folder.at_hand(source) as path, opener(path, "rb") as reader, target.open("xb") as writer:
            packed, size = path.stat().st_size, 0
            while chunk := _read(run, url, reader):
                size += len(chunk)
                if tarball.is_bomb(packed, size):
                    raise InputError(f"{run.dataset}: {url} unpacks to far too much", remedy="do not use it")
                digest.update(chunk)
                writer.write(chunk)
    except PermissionError as error:
        raise InputError(f"{run.dataset}: not allowed to read {url}", remedy="make it readable") from error
    return InputFile(target.name, root, suffix, target.stat().st_size, digest.hexdigest(), url)


def _read(run: Run, source: str, reader: IO[bytes]) -> bytes:
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


def _unpack(run: Run, folder: Folder, name: str) -> Folder:
    """Unpack a tarball inside the workspace."""
    target, url, dataset = run.workspace.root / "unpacked", folder.url(name), run.dataset.name
    target.mkdir()
    with folder.at_hand(name) as path:
        try:
            reader = path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"{dataset}: cannot open {url} ({error.strerror})", remedy="make it readable") from error
        with reader:
            unpacked = tarball.unpack_stream(reader, target, source=url, dataset=dataset, wanted=_is_input)
    run.telemetry.info(f"unpacked {len(unpacked.files)} files from {url}, left {len(unpacked.skipped)} others")
    return Unpacked(run, target, url)


def _is_input(name: str) -> bool:
    return any(pattern.fullmatch(name.removesuffix(".gz")) for pattern in (_NAME, _EXPOSURE, _TEXT))
