"""Put a context of a local CRDS cache into a store, for hosts that have no CRDS server to read (see ``crds_store``).

What is written never changes: references and rules are created, once.  What changes is small and is moved by
compare-and-swap, so that two who write at once lose nothing.  Everything is written after what it speaks of, the
pointer last; whoever is killed leaves a store that is as right as before, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from caldp import crds_cache, crds_layout, crds_pointer, crds_rules
from caldp.crds_choice import Choice
from caldp.crds_rules import Rules
from caldp.errors import ReferencesError, UsageError
from caldp.store import Blob, ConflictError, Copy, Create, Progress, Store, quietly

#: References that are written before the list of them is, so that who was killed need not look at more of them again.
_BATCH = 200
_BATCH_BYTES = 4 << 30

#: {file: {size, sha1sum}}, as CRDS writes it.
Metadata = dict[str, dict[str, str]]


@dataclass
class Synced:
    """What a sync came to, or would come to.

    Attributes
    ----------
    store, context : str
        What went where.
    references : int
        Chosen references, all of which the store has now.
    of : int
        References that the rules of the context name.
    sent, sent_bytes : int
        References that were not there.
    rules : int
        Rules of the context.
    rules_sent : bool
        Whether they were not there.
    current : str
        The current context of the store.
    moved : bool
        Whether that is new.
    dry_run : bool
        Nothing was written.
    """

    store: str
    context: str
    references: int = 0
    of: int = 0
    sent: int = 0
    sent_bytes: int = 0
    rules: int = 0
    rules_sent: bool = False
    current: str = ""
    moved: bool = False
    dry_run: bool = False
    names: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; ``names`` are the references that were sent."""
        return asdict(self)

    def __str__(self) -> str:
        would = "would be sent" if self.dry_run else "sent"
        rules = f"{self.rules} rules {would}" if self.rules_sent else f"its {self.rules} rules were there"
        moved = (
            f", {'would be' if self.dry_run else 'now'} current"
            if self.moved
            else f"; current is {self.current or 'none'}"
        )
        return (
            f"{self.context} in {self.store}: {rules}; {self.sent} references {would}, {self.sent_bytes / 1e6:.1f} MB, "
            f"{self.references - self.sent} were there, of {self.of} that the rules name{moved}"
        )


def sync(
    store: Store,
    cache: Path,
    context: str,
    choice: Choice,
    *,
    make_current: bool = False,
    why: str = "",
    dry_run: bool = False,
    progress: Callable[[int], Progress] = lambda total: quietly,
) -> Synced:
    """Put a context into a store.

    Parameters
    ----------
    store : Store
        Where to.
    cache : Path
        A CRDS cache that has the rules and the chosen references.
    context : str
        For example ``hst_0729.pmap``.
    choice : Choice
        Which references.
    make_current : bool
        Make it the current context, and what the cache knows to be bad the list of bad files.  The first context of a
        store is made current anyhow.
    why : str
        Recorded beside the pointer.
    dry_run : bool
        Write nothing.
    progress : callable
        Given the bytes that must be sent; returns who is told of those that were.

    Returns
    -------
    Synced

    Raises
    ------
    ReferencesError
        If the cache lacks something or is damaged, or the store has something else under a name.
    """
    if not crds_layout.CONTEXT.fullmatch(context):
        raise UsageError(f"{context!r} is not a CRDS context", remedy="give --context one like hst_0729.pmap")
    rules = crds_rules.read(cache / "mappings" / "hst", context)
    job = _Job(store, cache, rules, _known(cache))
    result = Synced(store.uri, context, of=len(rules.all_references), rules=len(rules.files), dry_run=dry_run)
    paths = job.chosen(choice)
    new = job.new_references(paths)
    new_rules = job.new_rules()
    result.references, result.sent, result.names = len(paths), len(new), sorted(new)
    result.sent_bytes = sum(path.stat().st_size for path in new.values())
    tarball = store.get(crds_layout.rules_key(context))
    if tarball is not None:
        job.compare_rules(tarball)
    result.rules_sent = tarball is None
    pointer = crds_layout.parse_pointer(store, store.get(crds_layout.POINTER))
    first = not pointer
    bad = sorted(job.known.get("bad_files_list", ())) if make_current or first else None
    result.moved = first or (make_current and (pointer["context"], sorted(pointer["bad_files"])) != (context, bad))
    result.current = context if result.moved else pointer["context"]
    if dry_run:
        return result
    job.send_references(new, progress(result.sent_bytes))
    job.send_rules(new_rules)
    job.send_tarball()
    job.list_references()
    job.update_server_config()
    if result.moved:
        why = why or "caldp references sync"
        result.current = crds_pointer.move(store, context, why, bad_files=bad, first=not make_current)
    else:
        crds_pointer.tell_stock_clients(store)
    return result


def _known(cache: Path) -> dict[str, Any]:
    """Read what a cache knows of CRDS."""
    path = cache / "config" / "hst" / "server_config"
    try:
        return crds_cache.parse_server_config(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReferencesError(
            f"there is no CRDS cache at {cache} (no config/hst/server_config)", remedy="give --from <CRDS cache>"
        ) from error
    except ValueError as error:
        raise ReferencesError(f"{path} is not readable ({error})", remedy="sync that CRDS cache again") from error


class _Job:
    """One sync.

    Parameters
    ----------
    store : Store
        Where to.
    cache : Path
        Where from.
    rules : Rules
        The context.
    known : dict
        What the cache knows of CRDS.
    """

    def __init__(self, store: Store, cache: Path, rules: Rules, known: dict[str, Any]) -> None:
        self.store = store
        self.cache = cache
        self.rules = rules
        self.known = known
        self._metadata: Metadata = crds_cache.metadata(known)
        #: What the store is known to have, references and rules.
        self._stored: Metadata = {
            **crds_cache.metadata(crds_pointer.server_config(store, store.get(crds_layout.SERVER_CONFIG))),
            **self._listing(store.get(self._listing_key)),
        }
        #: The references that this sync is about, once they are in the store.
        self._references: Metadata = {}
        self._rules: Metadata = {name: _facts(len(d), _sha1(d)) for name, d in rules.files.items()}

    @property
    def _listing_key(self) -> str:
        return crds_layout.listing_key(self.rules.context)

    def _listing(self, blob: Blob | None) -> Metadata:
        return crds_layout.parse_listing(self.store, self.rules.context, blob)

    # ---- references

    def chosen(self, choice: Choice) -> dict[str, Path]:
        """Find the chosen references in the cache."""
        top = self.cache / "references" / "hst"
        places = [top, *(top / instrument for instrument in sorted(self.rules.references))]
        there = {path.name: path for place in places if place.is_dir() for path in place.iterdir() if path.is_file()}
        names = set(choice.of(self.rules))
        # Of a GEIS file, the rules name the header; the data are another file.
        names |= {n[:-1] + "d" for n in names if re.search(r"\.r\dh$", n) and n[:-1] + "d" in there}
        paths = {name: there[name] for name in sorted(names) if name in there}
        if choice.strict and (absent := sorted(names - set(paths))):
            raise ReferencesError(
                f"{self.rules.context}: {len(absent)} of {len(names)} references are not in {top}, first {absent[0]}",
                remedy="sync that CRDS cache first, for example with python -m crds.sync --files NAMES...",
            )
        return paths

    def new_references(self, paths: Mapping[str, Path]) -> dict[str, Path]:
        """Return those that the store does not have; ReferencesError if it has another file of that name."""
        sizes = {entry.key.rpartition("/")[2]: entry.size for entry in self.store.walk("references/hst")}
        new: dict[str, Path] = {}
        for name, path in paths.items():
            size, stored = path.stat().st_size, self._stored.get(name)
            expected = self._metadata.get(name)
            if expected is not None and int(expected["size"]) != size:
                raise self._damaged(path, expected)
            if name not in sizes:
                new[name] = path
                continue
            sha1 = (expected or {}).get("sha1sum", "")
            if sha1 in ("", "none"):
                sha1 = crds_cache.sha1(path)
            if stored is None and sizes[name] == size:  # of a sync that was killed
                stored = _facts(size, self._stored_sha1(crds_layout.reference_key(name)))
            if sizes[name] != size or stored is None or not crds_cache.agrees(stored, size, sha1):
                raise self._other(crds_layout.reference_key(name), path)
            self._references[name] = _facts(size, sha1)
        return new

    def _stored_sha1(self, key: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            self.store.download([Copy(key, path)])
            return crds_cache.sha1(path)

    def send_references(self, new: Mapping[str, Path], progress: Progress) -> None:
        """Send references, batch by batch, and list those that have arrived."""
        for batch in _batches(new):
            facts = {name: self._measured(name, path) for name, path in batch.items()}
            copies = {name: Copy(crds_layout.reference_key(name), path) for name, path in batch.items()}
            sent = self.store.upload(copies.values(), progress, create=True)
            for name, copy in copies.items():  # another sync may have been faster, or an answer was lost
                if copy.key not in sent and self._stored_sha1(copy.key) != facts[name]["sha1sum"]:
                    raise self._other(copy.key, copy.path)
            self._references |= facts
            self.list_references()

    def _measured(self, name: str, path: Path) -> dict[str, str]:
        facts = _facts(path.stat().st_size, crds_cache.sha1(path))
        expected = self._metadata.get(name)
        if expected is not None and not crds_cache.agrees(expected, int(facts["size"]), facts["sha1sum"]):
            raise self._damaged(path, expected)
        return facts

    def list_references(self) -> None:
        """Add the references to the list of those of the context that are in the store."""

        def listed(blob: Blob | None) -> tuple[None, bytes | None]:
            old = self._listing(blob)
            new = self._merged(old, self._references)
            if blob is not None and new == old:
                return None, None
            return None, crds_layout.write_listing(self.rules.context, new)

        crds_pointer.swap(self.store, self._listing_key, listed)

    def _merged(self, old: Metadata, new: Metadata) -> Metadata:
        for name in sorted(old.keys() & new.keys()):
            if old[name] != new[name]:
                raise self._other(crds_layout.reference_key(name), self.cache)
        return old | new

    # ---- rules

    def new_rules(self) -> list[str]:
        """Return the rules that the store does not have by themselves, as the client of crds wants them."""
        sizes = {entry.key.rpartition("/")[2]: entry.size for entry in self.store.walk("mappings/hst")}
        for name, facts in self._rules.items():
            if name not in sizes:
                continue
            stored = self._stored.get(name)
            if stored is None and str(sizes[name]) == facts["size"]:
                blob = self.store.get(crds_layout.mapping_key(name))
                stored = _facts(len(blob.data), _sha1(blob.data)) if blob else None
            if stored != facts or str(sizes[name]) != facts["size"]:
                raise self._other(crds_layout.mapping_key(name), self.cache / "mappings" / "hst" / name)
        return [name for name in self._rules if name not in sizes]

    def send_rules(self, names: Iterable[str]) -> None:
        """Send rules, each by itself."""
        folder = self.cache / "mappings" / "hst"
        self.store.upload([Copy(crds_layout.mapping_key(name), folder / name) for name in names])

    def send_tarball(self) -> None:
        """Send all rules in one object, which never changes."""
        key = crds_layout.rules_key(self.rules.context)
        blob = self.store.get(key)
        if blob is None:
            try:
                self.store.put(key, crds_layout.pack_rules(self.rules), Create())
            except ConflictError:
                blob = self.store.get(key)
        if blob is not None:
            self.compare_rules(blob)

    def compare_rules(self, tarball: Blob) -> None:
        """Raise ReferencesError if the store has other rules for the context."""
        with tempfile.TemporaryDirectory() as folder:
            stored = crds_layout.unpack_rules(self.store, self.rules.context, tarball.data, Path(folder))
        differing = sorted(n for n in stored.keys() | self._rules.keys() if stored.get(n) != self._rules.get(n))
        if differing:
            raise ReferencesError(
                f"{self.store.url(crds_layout.rules_key(self.rules.context))} holds other rules than {self.cache}, "
                f"first {differing[0]}",
                remedy="a context never changes: use another store, or find out which of the two is right",
            )

    # ---- what is known of all

    def update_server_config(self) -> None:
        """Add rules and references to what the client of crds reads of the store."""

        def updated(blob: Blob | None) -> tuple[None, bytes | None]:
            old = crds_pointer.server_config(self.store, blob)
            known = old or {k: v for k, v in self.known.items() if k != "caldp"}
            metadata = crds_cache.metadata(old)
            merged = {**metadata, **self._rules, **self._references}
            mappings = sorted({n for n in merged if crds_layout.RULES.fullmatch(n)})
            if old and merged == metadata and known.get("mappings") == mappings:
                return None, None
            context = str(old.get("operational_context") or self.rules.context)
            new = {**known, "connected": False, "mappings": mappings, **crds_pointer.contexts(context)}
            return None, crds_pointer.literal(new | {"download_metadata": crds_cache.encoded_metadata(merged)})

        crds_pointer.swap(self.store, crds_layout.SERVER_CONFIG, updated)

    # ---- errors

    def _damaged(self, path: Path, expected: Mapping[str, str]) -> ReferencesError:
        return ReferencesError(
            f"{path} is damaged: {path.stat().st_size} bytes, sha1 {crds_cache.sha1(path)}, but CRDS has "
            f"{expected['size']} bytes, sha1 {expected['sha1sum']}",
            remedy="remove it and sync that CRDS cache again",
        )

    def _other(self, key: str, path: Path) -> ReferencesError:
        return ReferencesError(
            f"{self.store.url(key)} is another file than {path}",
            remedy="files of CRDS never change: use another store, or find out which of the two is right",
        )


def _batches(files: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    batch: dict[str, Path] = {}
    size = 0
    for name, path in files.items():
        batch[name] = path
        size += path.stat().st_size
        if len(batch) == _BATCH or size > _BATCH_BYTES:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _facts(size: int, sha1: str) -> dict[str, str]:
    return {"size": str(size), "sha1sum": sha1}


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()  # noqa: S324 - what CRDS has chosen


@contextmanager
def told(stream: TextIO) -> Iterator[Callable[[int], Progress]]:
    """Show the progress of a sync on a terminal; nothing elsewhere.

    Parameters
    ----------
    stream : file object
        Perhaps a terminal.

    Yields
    ------
    callable
        For ``sync``.
    """
    if not stream.isatty():
        yield lambda total: quietly
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("references"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:

        def begin(total: int) -> Progress:
            bar = bars.add_task("references", total=total)
            return lambda moved: bars.advance(bar, moved)

        yield begin
