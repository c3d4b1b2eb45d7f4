"""A CRDS cache in a store: what is written, in which order, and how it is read; here the store is a folder."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from astropy.io import fits
from click.testing import CliRunner

from caldp import crds_cache, crds_layout, crds_pointer, crds_rules, crds_store, crds_sync, references
from caldp.cli import main
from caldp.crds_cache import environment, metadata
from caldp.crds_cache import sha1 as sha1_of
from caldp.crds_choice import Choice
from caldp.crds_rules import Rules
from caldp.crds_shelf import Shelf
from caldp.crds_sync import Synced, sync
from caldp.errors import BusyError, CaldpError, OutputError, ReferencesError, UsageError
from caldp.inputs import Inputs, fetch
from caldp.local_store import LocalStore
from caldp.run import Run
from caldp.simulate import Simulation
from caldp.store import Blob, ConflictError, Copy, Create, Overwrite, Progress, PutMode, Stored, quietly
from tests.conftest import RunFactory
from tests.fakes.bestrefs import FakeBestrefs
from tests.fakes.cos import truncate
from tests.fakes.reporter import FakeReporter

FLUX = "sim00001l_phot.fits"
CONTEXT = "hst_0001.pmap"
LISTING = crds_layout.listing_key(CONTEXT)
RULES = crds_layout.rules_key(CONTEXT)

Start = Callable[..., tuple[Run, Inputs]]


@pytest.fixture
def shelf(tmp_path: Path) -> LocalStore:
    """An empty store."""
    return LocalStore(tmp_path / "store")


@pytest.fixture
def filled(shelf: LocalStore, crds_cache: Path) -> LocalStore:
    """A store that has the simulated context, all of it."""
    put(shelf, crds_cache)
    return shelf


def put(store: Any, cache: Path, choice: Choice = Choice(), context: str = CONTEXT, **options: Any) -> Synced:  # noqa: B008 - it is frozen
    return sync(store, cache, context, choice, **options)


@pytest.fixture
def raw(simulation: Simulation, tmp_path: Path) -> Path:
    """A folder with a shortened simulated exposure."""
    folder = tmp_path / "raw"
    folder.mkdir()
    source = simulation.inputs / f"{simulation.dataset}_rawtag_a.fits"
    with fits.open(source) as hdus:
        hdus[1].data = hdus[1].data[:10]
        hdus.writeto(folder / source.name)
    return folder


@pytest.fixture(scope="session")
def chosen(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> FakeBestrefs:
    """What crds chooses for the exposure."""
    raw = simulation.inputs / f"{simulation.dataset}_rawtag_a.fits"
    return FakeBestrefs.asking(raw, simulation.crds_path, CONTEXT, tmp_path_factory.mktemp("chosen"))


@pytest.fixture
def start(
    make_run: RunFactory,
    simulation: Simulation,
    filled: LocalStore,
    raw: Path,
    tmp_path: Path,
    chosen: FakeBestrefs,
    monkeypatch: pytest.MonkeyPatch,
) -> Start:
    """Fetch the exposure into a run whose references come from the store into a new cache.

    With ``crds``, crds chooses; else what it has chosen once is taken, which is much quicker.
    """
    real = crds_cache.best_references

    def start(settings: dict[str, object] | None = None, *, crds: bool = False, **environ: str) -> tuple[Run, Inputs]:
        monkeypatch.setattr(crds_cache, "best_references", real if crds else chosen)
        env = {"CRDSBUCKET": filled.uri, "CRDS_PATH": str(tmp_path / "host"), **environ}
        run = make_run(simulation.dataset, settings={"crds_readonly": False, **(settings or {})}, **env)
        return run, fetch(run, f"file:{raw}")

    return start


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The cache of the host."""
    return tmp_path / "host"


def tree(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for locks."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".caldp-")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files are in a folder: another inode or time means that one was written."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def refused(act: Callable[[], object], *words: str, kind: type[CaldpError] = ReferencesError) -> CaldpError:
    with pytest.raises(kind) as caught:
        act()
    for word in words:
        assert word in str(caught.value)
    assert caught.value.remedy
    return caught.value


def flip(path: Path, at: int = -1) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return path


def said(run: Run) -> list[str]:
    reporter = run.telemetry.reporter
    assert isinstance(reporter, FakeReporter)
    return [event[2] for event in reporter.events if event[0] == "message"]


class Watched(LocalStore):
    """A folder that counts what is asked of it, and may do something before a write."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []
        self.wrote: list[str] = []
        self.before: Callable[[str], None] = lambda key: None

    def get(self, key: str) -> Blob | None:
        self.asked.append(key)
        return super().get(key)

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        assert not isinstance(mode, Overwrite)
        self.before(key)
        tag = super().put(key, data, mode)
        self.wrote.append(key)
        return tag

    def upload(
        self, copies: Iterable[Copy], progress: Progress = quietly, *, create: bool = False
    ) -> dict[str, Stored]:
        stored: dict[str, Stored] = {}
        for copy in copies:
            self.before(copy.key)
            stored |= super().upload([copy], progress, create=create)
            self.wrote.append(copy.key)
        return stored

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        copies = list(copies)
        self.asked += [copy.key for copy in copies]
        super().download(copies, progress)


# ---- rules


def test_rules_and_what_they_name(crds_cache: Path) -> None:
    rules = crds_rules.read(crds_cache / "mappings" / "hst", CONTEXT)
    assert next(iter(rules.files)) == CONTEXT
    assert set(rules.files) == {p.name for p in (crds_cache / "mappings" / "hst").iterdir()}
    assert rules.references == {"cos": rules.all_references}
    assert rules.all_references == {p.name for p in (crds_cache / "references" / "hst").iterdir()}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("selector = {'COS': 'hst_cos_0001.imap'}", "header"),
        ("header = {'sha1sum': 'x'}\nselector = {}", "sha1sum"),
        ("header = {}\nselector = __import__('os').system('touch {marker}')", "sha1sum"),
        ("this is no mapping", "invalid syntax"),
        ("header = {'sha1sum': '{sum}'}\nselector = {'COS': '../../etc/passwd'}", "no name of a file"),
        ("header = {'sha1sum': '{sum}'}\nselector = {'COS': 1}", "no rule"),
        ("header = {'sha1sum': '{sum}'}\nselector = {'COS': x}", "no rule"),
        ("\0", "null bytes"),
    ],
)
def test_damaged_rules(tmp_path: Path, text: str, word: str) -> None:
    text = text.replace("{marker}", str(tmp_path / "marker"))
    path = tmp_path / CONTEXT
    path.write_text(text.replace("{sum}", crds_rules.checksum(text)))
    error = refused(lambda: crds_rules.read(tmp_path, CONTEXT), CONTEXT, "damaged", word)
    assert error.exit_code == 27
    assert not (tmp_path / "marker").exists()


def test_a_rule_that_is_missing(crds_cache: Path) -> None:
    (crds_cache / "mappings" / "hst" / "hst_cos_0001.imap").unlink()
    refused(lambda: crds_rules.read(crds_cache / "mappings" / "hst", CONTEXT), "hst_cos_0001.imap is not there", "sync")


def test_rules_are_packed_always_the_same(tmp_path: Path) -> None:
    rules = Rules(CONTEXT, {CONTEXT: b"a" * 1000, "hst_cos_0001.imap": b"b"}, {})
    data = crds_layout.pack_rules(rules)
    again = crds_layout.pack_rules(Rules(CONTEXT, dict(reversed(rules.files.items())), {}))
    assert data == again
    assert data[4:8] == b"\0\0\0\0"  # no time
    facts = crds_layout.unpack_rules(LocalStore(tmp_path), CONTEXT, data, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == rules.files
    assert facts["hst_cos_0001.imap"] == {"size": "1", "sha1sum": "e9d71f5ee7c92d6dc9e92ffdad17b8bd49418f98"}


def packed(members: Mapping[str, bytes], index: object = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Make a tarball by hand."""
    listed = {n: {"size": len(d), "sha1": hashlib.sha1(d).hexdigest()} for n, d in members.items()}  # noqa: S324
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in [("index.json", json.dumps(index or {"files": listed}).encode()), *members.items()]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == "hst_evil.rmap":
                member.type, member.linkname, member.size = kind, "/etc/passwd", 0
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


GOOD = {CONTEXT: b"rules", "hst_cos_0001.imap": b"more"}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"garbage" * 100, "not a tar file"),
        (packed(GOOD)[:-20], "unpacked"),
        (packed({"../hst_cos_0001.imap": b"x"}), "outside"),
        (packed({"hst_evil.rmap": b""}, kind=tarfile.SYMTYPE), "symbolic link"),
        (packed({**GOOD, "hst_cos_0002.imap": b"x"}, index={"files": {}}), "index"),
        (packed(GOOD, index={"files": {CONTEXT: {"size": 5, "sha1": "0" * 40}}}), "index"),
        (packed({"hst_cos_0001.imap": b"x"}), "index"),
        (packed(GOOD, index=[1]), "damaged"),
        (packed(GOOD, index={"files": {n: {"size": 5, "sha1": "0" * 40} for n in GOOD}}), "not what its index says"),
    ],
)
def test_hostile_and_damaged_tarballs_of_rules(
    filled: LocalStore, start: Start, host: Path, data: bytes, word: str
) -> None:
    (filled.root / RULES).write_bytes(data)
    run, inputs = start()
    refused(lambda: references.assign(run, inputs), run.dataset.name, RULES, "damaged", word)
    assert not list((host / "mappings" / "hst").iterdir())
    assert not list(host.glob(".caldp-rules-*"))


def test_only_rules_are_taken_from_a_tarball(tmp_path: Path) -> None:
    index = {"files": {CONTEXT: {"size": 5, "sha1": hashlib.sha1(b"rules").hexdigest()}}}  # noqa: S324
    data = packed({CONTEXT: b"rules", "hst.pickle": b"code", "readme": b"x", "jwst_0001.pmap": b"y"}, index=index)
    assert list(crds_layout.unpack_rules(LocalStore(tmp_path), CONTEXT, data, tmp_path)) == [CONTEXT]
    assert [p.name for p in tmp_path.iterdir()] == [CONTEXT]


# ---- sync


def test_a_context_is_put_there_once(tmp_path: Path, crds_cache: Path) -> None:
    store = Watched(tmp_path / "store")
    done = put(store, crds_cache)
    names = sorted(p.name for p in (crds_cache / "references" / "hst").iterdir())
    rules = sorted(p.name for p in (crds_cache / "mappings" / "hst").iterdir())
    assert (done.names, done.references, done.sent, done.of) == (names, len(names), len(names), len(names))
    assert (done.rules, done.rules_sent, done.current, done.moved) == (len(rules), True, CONTEXT, True)
    assert store.wrote == [
        *(f"references/hst/{n}" for n in names),
        LISTING,
        *(f"mappings/hst/{n}" for n in crds_rules.read(crds_cache / "mappings" / "hst", CONTEXT).files),
        RULES,
        "config/hst/server_config",
        "contexts/hst/current.json",
    ]
    for place in ("references/hst", "mappings/hst"):
        assert tree(store.root / place) == tree(crds_cache / place)
    store.wrote.clear()
    before = files_of(store.root)
    again = put(store, crds_cache)
    assert (again.sent, again.references, again.rules_sent, again.moved) == (0, len(names), False, False)
    assert store.wrote == []
    assert {k: v for k, v in files_of(store.root).items() if ".locks" not in k} == before


def test_a_dry_run_writes_nothing(shelf: LocalStore, crds_cache: Path) -> None:
    done = put(shelf, crds_cache, dry_run=True)
    assert done.sent > 10
    assert done.sent_bytes > 1000
    assert "would be sent" in str(done)
    assert not shelf.root.exists()


def test_what_the_store_says_to_the_client_of_crds(filled: LocalStore, crds_cache: Path) -> None:
    known = literal_eval((filled.root / "config/hst/server_config").read_text())
    listed = metadata(known)
    for folder in ("references", "mappings"):
        for path in (crds_cache / folder / "hst").iterdir():
            assert listed[path.name] == {"size": str(path.stat().st_size), "sha1sum": sha1_of(path)}
    assert known["operational_context"] == known["latest_context"] == CONTEXT
    assert known["mappings"] == sorted(p.name for p in (crds_cache / "mappings" / "hst").iterdir())


@pytest.mark.parametrize("moment", range(0, 45, 4))
def test_who_is_killed_leaves_a_store_that_is_right(
    tmp_path: Path, crds_cache: Path, start: Start, filled: LocalStore, moment: int
) -> None:
    store = Watched(tmp_path / "other")
    left = moment

    def die(_: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    store.before = die
    with pytest.raises(KeyboardInterrupt):
        put(store, crds_cache)
    listed = json.loads((store.get(LISTING) or Blob(b'{"files": {}}', "")).data)["files"]
    assert all((store.root / "references/hst" / name).stat().st_size == one["size"] for name, one in listed.items())
    assert not (store.root / crds_layout.POINTER).exists()
    sent = sum(key.startswith("references/") for key in store.wrote)
    store.before = lambda key: None
    done = put(store, crds_cache)
    assert done.sent == len(tree(crds_cache / "references")) - sent
    same = {k: v for k, v in tree(store.root).items() if k != crds_layout.POINTER}
    assert same == {k: v for k, v in tree(filled.root).items() if k != crds_layout.POINTER}


@pytest.mark.parametrize("known", ["listed", "unknown"])
@pytest.mark.parametrize("way", ["altered", "longer"])
def test_what_is_there_under_a_name_is_never_replaced(
    shelf: LocalStore, crds_cache: Path, known: str, way: str
) -> None:
    if known == "listed":
        put(shelf, crds_cache)
        source = next(crds_cache.rglob(FLUX))
        flip(source)
        if way == "longer":
            source.write_bytes(source.read_bytes() + b"x")
    else:
        content = next(crds_cache.rglob(FLUX)).read_bytes()
        target = shelf.root / "references" / "hst" / FLUX
        target.parent.mkdir(parents=True)
        target.write_bytes(b"x" + content[1:] if way == "altered" else b"x" + content)
    before = tree(shelf.root)
    error = refused(lambda: put(shelf, crds_cache), f"references/hst/{FLUX}", "never change")
    assert error.exit_code == 27
    assert tree(shelf.root) == before


def test_a_reference_of_a_sync_that_was_killed_is_looked_at_and_kept(shelf: LocalStore, crds_cache: Path) -> None:
    target = shelf.root / "references" / "hst" / FLUX
    target.parent.mkdir(parents=True)
    shutil.copy(next(crds_cache.rglob(FLUX)), target)
    before = files_of(target.parent)
    done = put(shelf, crds_cache)
    assert FLUX not in done.names
    assert before.items() <= files_of(target.parent).items()
    assert FLUX in json.loads((shelf.root / LISTING).read_text())["files"]


@pytest.mark.parametrize("name", ["hst_cos_0001.imap", CONTEXT])
def test_rules_in_the_store_that_differ(filled: LocalStore, crds_cache: Path, name: str) -> None:
    path = crds_cache / "mappings" / "hst" / name
    text = path.read_text() + "# more\n"
    path.write_text(text.replace(text.split("'sha1sum' : '")[1][:40], "{sum}"))
    path.write_text(path.read_text().replace("{sum}", crds_rules.checksum(path.read_text())))
    before = tree(filled.root)
    refused(lambda: put(filled, crds_cache), name)
    (filled.root / "mappings" / "hst" / name).unlink()
    del before[f"mappings/hst/{name}"]
    refused(lambda: put(filled, crds_cache), RULES, "other rules", name)
    assert tree(filled.root) == before


@pytest.mark.parametrize("way", ["flipped", "longer"])
def test_a_damaged_cache_sends_nothing(shelf: LocalStore, crds_cache: Path, way: str) -> None:
    inform(crds_cache, download_metadata=known_of(crds_cache))
    path = flip(next(crds_cache.rglob(FLUX)))
    if way == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    refused(lambda: put(shelf, crds_cache), str(path), "is damaged")
    assert not (shelf.root / LISTING).exists()
    assert not (shelf.root / "references").exists()


def known_of(cache: Path) -> dict[str, dict[str, str]]:
    paths = (cache / "references").rglob("*.fits")
    return {p.name: {"size": str(p.stat().st_size), "sha1sum": sha1_of(p)} for p in paths}


def inform(cache: Path, **fields: Any) -> None:
    path = cache / "config" / "hst" / "server_config"
    path.write_text(repr({**literal_eval(path.read_text()), **fields}))


def test_which_references(shelf: LocalStore, crds_cache: Path) -> None:
    next(crds_cache.rglob(FLUX)).unlink()
    for choice in (Choice(everything=True), Choice(("cos",)), Choice(names=frozenset({FLUX, "sim00001l_disp.fits"}))):
        refused(lambda choice=choice: put(shelf, crds_cache, choice), "1 of", f"first {FLUX}", "sync")
    refused(lambda: put(shelf, crds_cache, Choice(("acs", "cos"))), "no rules for acs", "it has cos", kind=UsageError)
    assert not shelf.root.exists()
    assert put(shelf, crds_cache, Choice(names=frozenset({"sim00001l_disp.fits"}))).names == ["sim00001l_disp.fits"]
    done = put(shelf, crds_cache)
    assert done.sent == done.references - 1 == done.of - 2


@pytest.mark.parametrize("context", ["hst_1.pmap", "hst-operational", "../x", ""])
def test_what_is_no_context(shelf: LocalStore, crds_cache: Path, context: str) -> None:
    refused(lambda: put(shelf, crds_cache, context=context), "not a CRDS context", kind=UsageError)


def test_a_cache_without_that_context_or_without_anything(shelf: LocalStore, crds_cache: Path, tmp_path: Path) -> None:
    refused(lambda: put(shelf, crds_cache, context="hst_0002.pmap"), "hst_0002.pmap is not there", "crds.sync")
    (crds_cache / "config" / "hst" / "server_config").write_text("{")
    refused(lambda: put(shelf, crds_cache), "server_config is not readable")
    (crds_cache / "config" / "hst" / "server_config").unlink()
    refused(lambda: put(shelf, crds_cache), "no CRDS cache", "--from")


def test_two_syncs_at_once_lose_nothing(tmp_path: Path, crds_cache: Path) -> None:
    store, other = Watched(tmp_path / "store"), LocalStore(tmp_path / "store")
    ours, theirs = Choice(names=frozenset({FLUX})), Choice(names=frozenset({"sim00001l_disp.fits"}))
    for key in (LISTING, "config/hst/server_config", "contexts/hst/current.json"):
        shutil.rmtree(store.root, ignore_errors=True)
        once = [key]

        def meanwhile(written: str, once: list[str] = once) -> None:
            if written in once:
                once.remove(written)
                put(other, crds_cache, theirs)

        store.before = meanwhile
        put(store, crds_cache, ours)
        assert once == []
        both = {FLUX, "sim00001l_disp.fits"}
        assert set(json.loads((store.root / LISTING).read_text())["files"]) == both
        known = literal_eval((store.root / "config/hst/server_config").read_text())
        assert both <= set(metadata(known))


def test_two_syncs_of_different_files_of_one_name(tmp_path: Path, crds_cache: Path) -> None:
    store = Watched(tmp_path / "store")

    def meanwhile(key: str) -> None:
        if key == LISTING:
            store.before = lambda key: None
            record = {"format": 1, "context": CONTEXT, "files": {FLUX: {"size": 5, "sha1": "0" * 40}}}
            LocalStore(store.root).put(LISTING, json.dumps(record).encode(), Create())

    store.before = meanwhile
    refused(lambda: put(store, crds_cache), FLUX)


def test_somebody_who_changes_it_all_the_time(tmp_path: Path) -> None:
    class Contested(LocalStore):
        def put(self, key: str, data: bytes, mode: PutMode) -> str:
            raise ConflictError(key)

    refused(lambda: crds_pointer.swap(Contested(tmp_path), "key", lambda blob: (None, b"x")), "key", kind=BusyError)


# ---- the pointer


def second_context(cache: Path) -> None:
    """Add another context with the same rules to a cache."""
    mappings = cache / "mappings" / "hst"
    text = (mappings / CONTEXT).read_text().replace(CONTEXT, "hst_0002.pmap")
    text = text.replace(text.split("'sha1sum' : '")[1][:40], crds_rules.checksum(text))
    (mappings / "hst_0002.pmap").write_text(text)


def test_the_operator_moves_the_pointer(filled: LocalStore, crds_cache: Path) -> None:
    first = crds_pointer.current(filled)
    assert (first["context"], first["contexts"], first["history"]) == (CONTEXT, [CONTEXT], [])
    second_context(crds_cache)
    assert not put(filled, crds_cache, context="hst_0002.pmap").moved
    assert crds_pointer.current(filled)["context"] == CONTEXT
    assert crds_pointer.move(filled, "hst_0002.pmap", "new flats") == "hst_0002.pmap"
    now = crds_pointer.current(filled)
    assert (now["context"], now["why"], now["contexts"]) == ("hst_0002.pmap", "new flats", [CONTEXT, "hst_0002.pmap"])
    assert now["history"] == [{k: first[k] for k in ("context", "at", "by", "why")}]
    assert "@" in now["by"]
    assert literal_eval((filled.root / "config/hst/server_config").read_text())["latest_context"] == "hst_0002.pmap"
    before = tree(filled.root)
    crds_pointer.move(filled, "hst_0002.pmap", "once more")
    assert tree(filled.root) == before
    text = crds_pointer.as_text(now)
    assert text.splitlines()[0].startswith("hst_0002.pmap  since 20")
    assert text.splitlines()[1].startswith(f"  before: {CONTEXT}")
    refused(lambda: crds_pointer.move(filled, "hst_0003.pmap", ""), "no context hst_0003.pmap", "hst_0002.pmap")
    for _ in range(60):
        for context in (CONTEXT, "hst_0002.pmap"):
            crds_pointer.move(filled, context, "to and fro")
    assert len(crds_pointer.current(filled)["history"]) == 50


def test_making_a_context_current_brings_what_is_known_to_be_bad(filled: LocalStore, crds_cache: Path) -> None:
    inform(crds_cache, bad_files_list=[FLUX])
    assert crds_pointer.current(filled)["bad_files"] == []
    assert not put(filled, crds_cache).moved
    assert crds_pointer.current(filled)["bad_files"] == []
    assert put(filled, crds_cache, make_current=True, why="bad flux").moved
    assert crds_pointer.current(filled)["bad_files"] == [FLUX]
    known = literal_eval((filled.root / "config/hst/server_config").read_text())
    assert (known["bad_files_list"], known["bad_files"]) == ([FLUX], FLUX)
    assert not put(filled, crds_cache, make_current=True).moved


def test_a_store_without_a_pointer(shelf: LocalStore) -> None:
    refused(lambda: crds_pointer.current(shelf), "no current context", "no context at all")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"context": "../x", "bad_files": []}',
        b'{"context": "hst_0001.pmap"}',
        b'{"context": "hst_0001.pmap", "bad_files": [1]}',
        b"\xff",
    ],
)
def test_a_damaged_pointer(filled: LocalStore, start: Start, data: bytes) -> None:
    (filled.root / crds_layout.POINTER).write_bytes(data)
    run, inputs = start()
    refused(lambda: references.assign(run, inputs), run.dataset.name, "current.json is damaged")
    refused(lambda: crds_pointer.move(filled, CONTEXT, ""), "current.json is damaged")


def test_a_server_config_in_the_store_that_is_damaged(filled: LocalStore, crds_cache: Path) -> None:
    (filled.root / "config/hst/server_config").write_text("{")
    refused(lambda: put(filled, crds_cache), "server_config is not readable")
    (filled.root / "config/hst/server_config").unlink()
    put(filled, crds_cache)
    assert literal_eval((filled.root / "config/hst/server_config").read_text())["latest_context"] == CONTEXT


# ---- reading


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of stores from here on."""
    keys: list[str] = []

    def open_store(uri: str, aws: object = None) -> Watched:
        store = Watched(Path(uri.removeprefix("file:")))
        store.asked = keys
        return store

    monkeypatch.setattr(crds_store, "open_store", open_store)
    return keys


def test_rules_cost_three_requests_and_then_one(start: Start, asked: list[str], host: Path, filled: LocalStore) -> None:
    run, inputs = start(crds=True)
    answer = references.assign(run, inputs)
    rules = [crds_layout.POINTER, RULES, LISTING]
    assert asked[:3] == rules
    names = sorted({f.name for f in answer.files})
    assert sorted(asked[3:]) == [f"references/hst/{name}" for name in names]
    assert (answer.context, len(names)) == (CONTEXT, len(answer.files))
    for file in answer.files:
        assert Path(file.path).read_bytes() == (filled.root / "references/hst" / file.name).read_bytes()
        assert (run.workspace.references / file.name).resolve() == Path(file.path)
        assert file.sha1 == sha1_of(Path(file.path))
    assert (host / "config/hst/ref_cache_subdir_mode").read_text() == "flat"
    assert not list((host / "references" / "hst" / ".caldp-partial").iterdir())
    reporter = run.telemetry.reporter
    assert isinstance(reporter, FakeReporter)
    size = sum(file.size for file in answer.files)
    assert reporter.progressed[-1] == ("references", size, size)
    asked.clear()
    before = files_of(host)
    again = references.assign(*start(crds=True))
    assert asked == [crds_layout.POINTER]
    assert again.files == answer.files
    assert files_of(host) == before
    asked.clear()
    assert references.assign(*start({"crds_readonly": True}, crds=True)).files == answer.files
    assert (asked, files_of(host)) == ([], before)


def test_the_context_asked_for_wins_over_the_pointer(start: Start, filled: LocalStore, crds_cache: Path) -> None:
    second_context(crds_cache)
    put(filled, crds_cache, context="hst_0002.pmap", make_current=True)
    assert references.assign(*start(crds=True)).context == "hst_0002.pmap"
    assert references.assign(*start({"crds_context": CONTEXT}, crds=True)).context == CONTEXT
    assert references.assign(*start({"crds_context": "hst-latest"})).context == "hst_0002.pmap"
    (filled.root / crds_layout.POINTER).unlink()
    assert references.assign(*start({"crds_context": CONTEXT}, crds=True)).context == CONTEXT
    run, inputs = start(crds=True)
    refused(lambda: references.assign(run, inputs), "no current context", "--context", "hst_0002.pmap")


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("hst_0099.pmap", ["unknown CRDS context hst_0099.pmap", "there are hst_0001.pmap"]),
        ("hst-edit", ["no edit context", "there are hst_0001.pmap"]),
        ("nonsense", ["'nonsense' is not a CRDS context"]),
    ],
)
def test_contexts_that_are_not_in_the_store(start: Start, context: str, words: list[str]) -> None:
    run, inputs = start({"crds_context": context})
    error = refused(lambda: references.assign(run, inputs), run.dataset.name, *words)
    assert error.exit_code == 27


def test_an_empty_store(start: Start, tmp_path: Path) -> None:
    run, inputs = start({"crds_store": f"file:{tmp_path / 'nothing'}"})
    refused(lambda: references.assign(run, inputs), "no current context", "caldp references sync")


def test_many_contexts_are_not_all_listed(filled: LocalStore, start: Start) -> None:
    for number in range(2, 30):
        shutil.copy(filled.root / RULES, filled.root / crds_layout.rules_key(f"hst_{number:04d}.pmap"))
    run, inputs = start({"crds_context": "hst_0099.pmap"})
    refused(lambda: references.assign(run, inputs), "there are hst_0001.pmap, ..., hst_0026.pmap")


@pytest.mark.parametrize("way", ["flipped", "truncated", "replaced by a folder"])
def test_a_damaged_file_in_the_cache_is_noticed_and_fetched_anew(
    start: Start, asked: list[str], host: Path, filled: LocalStore, way: str
) -> None:
    good = references.assign(*start())
    path = host / "references" / "hst" / FLUX
    if way == "flipped":
        flip(path)
    elif way == "truncated":
        truncate(path, 0.9)
    else:
        path.unlink()
        (host / "references" / "hst" / "cos").mkdir()
        shutil.copy(filled.root / "references/hst" / FLUX, path := host / "references" / "hst" / "cos" / FLUX)
        flip(path)
    asked.clear()
    found = {one.type: one for one in references.survey(*start()).checked}
    assert found["FLUXTAB"].state == "download"
    assert [key for key in asked if key.startswith("references/")] == []
    asked.clear()
    run, inputs = start()
    again = references.assign(run, inputs)
    assert [f.sha1 for f in again.files] == [f.sha1 for f in good.files]
    assert asked == [crds_layout.POINTER, LISTING, f"references/hst/{FLUX}"]
    assert path.read_bytes() == (filled.root / "references/hst" / FLUX).read_bytes()
    assert any(f"{FLUX} is damaged" in text and "replaced" in text for text in said(run))


def test_a_damaged_rule_in_the_cache_is_noticed_and_fetched_anew(start: Start, asked: list[str], host: Path) -> None:
    references.assign(*start())
    rule = host / "mappings" / "hst" / "hst_cos_0001.imap"
    good = rule.read_bytes()
    flip(rule, 100)
    asked.clear()
    references.assign(*start())
    assert asked == [crds_layout.POINTER, RULES]
    assert rule.read_bytes() == good


@pytest.mark.parametrize("way", ["missing", "truncated", "altered", "longer"])
def test_a_reference_in_the_store_that_is_not_what_it_should_be(
    start: Start, asked: list[str], host: Path, filled: LocalStore, way: str
) -> None:
    path = filled.root / "references" / "hst" / FLUX
    size, sha1 = path.stat().st_size, sha1_of(path)
    if way == "missing":
        path.unlink()
    elif way == "truncated":
        truncate(path, 0.9)
    elif way == "altered":
        flip(path)
    else:
        path.write_bytes(path.read_bytes() + b"x")
    run, inputs = start()
    words = [run.dataset.name, "FLUXTAB", f"references/hst/{FLUX}"]
    if way != "missing":
        words += ["is damaged", f"{path.stat().st_size} bytes", sha1_of(path), f"{size} bytes, sha1 {sha1}"]
    error = refused(lambda: references.assign(run, inputs), *words)
    assert (error.exit_code, error.retriable) == (27, False)
    assert asked.count(f"references/hst/{FLUX}") == (1 if way == "missing" else 3)
    assert not (host / "references" / "hst" / FLUX).exists()
    assert not list((host / "references" / "hst" / ".caldp-partial").iterdir())


def test_a_reference_that_is_not_listed(start: Start, host: Path, filled: LocalStore) -> None:
    record = json.loads((filled.root / LISTING).read_text())
    del record["files"][FLUX]
    (filled.root / LISTING).write_text(json.dumps(record))
    words = [
        "FLUXTAB",
        FLUX,
        "not among the references of hst_0001.pmap",
        "caldp references sync --context hst_0001.pmap",
    ]
    run, inputs = start()
    refused(lambda: references.assign(run, inputs), run.dataset.name, *words)
    (host / "references" / "hst").mkdir(parents=True, exist_ok=True)
    shutil.copy(filled.root / "references/hst" / FLUX, host / "references" / "hst")  # nobody knows what it should be
    run, inputs = start()
    refused(lambda: references.assign(run, inputs), run.dataset.name, *words)
    found = {one.type: one for one in references.survey(*start()).checked}
    assert found["FLUXTAB"].state == "unusable"
    mine = filled.root / "references/hst" / FLUX
    run, inputs = start({"overrides": (("FLUXTAB", mine),)})
    assert [f.path for f in references.assign(run, inputs).files if f.override] == [str(mine)]


def test_a_context_without_any_list_of_references(start: Start, filled: LocalStore) -> None:
    (filled.root / LISTING).unlink()
    run, inputs = start()
    refused(lambda: references.assign(run, inputs), "not among the references")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"a": {"size": 1, "sha1": "x"}}}', '{"files": []}'])
def test_a_damaged_list_of_references(start: Start, filled: LocalStore, text: str) -> None:
    (filled.root / LISTING).write_text(text)
    run, inputs = start()
    refused(lambda: references.assign(run, inputs), run.dataset.name, LISTING, "is damaged")


def test_a_reference_that_is_no_fits_even_in_the_store(start: Start, filled: LocalStore) -> None:
    path = truncate(filled.root / "references" / "hst" / FLUX, 0.9)
    record = json.loads((filled.root / LISTING).read_text())
    record["files"][FLUX] = {"size": path.stat().st_size, "sha1": sha1_of(path)}
    (filled.root / LISTING).write_text(json.dumps(record))
    for _ in range(2):
        run, inputs = start()
        refused(lambda run=run, inputs=inputs: references.assign(run, inputs), FLUX, "not whole FITS even in")


def test_a_bad_reference_is_refused_before_it_is_fetched(
    start: Start, filled: LocalStore, asked: list[str], crds_cache: Path
) -> None:
    inform(crds_cache, bad_files_list=[FLUX])
    put(filled, crds_cache, make_current=True)
    run, inputs = start()
    refused(lambda: references.assign(run, inputs), FLUX, "bad")
    assert not [key for key in asked if key.startswith("references/")]
    run, inputs = start({"allow_bad_references": True})
    assert FLUX in {f.name for f in references.assign(run, inputs).files}


def test_what_another_store_has_put_into_the_cache_is_not_trusted(
    start: Start, filled: LocalStore, tmp_path: Path, asked: list[str]
) -> None:
    references.assign(*start())
    copy = tmp_path / "copy"
    shutil.copytree(filled.root, copy)
    asked.clear()
    references.assign(*start({"crds_store": f"file:{copy}"}))
    assert asked == [crds_layout.POINTER, RULES, LISTING]


@pytest.mark.parametrize("text", ["{", "{'observatory': 'hst'}", "{'caldp': 1}", "[]"])
def test_a_cache_that_came_from_elsewhere_is_taken_over(start: Start, host: Path, text: str) -> None:
    (host / "config" / "hst").mkdir(parents=True)
    (host / "config" / "hst" / "server_config").write_text(text)
    (host / "config" / "hst" / "ref_cache_subdir_mode").write_text("instrument")
    references.assign(*start())
    assert (host / "config" / "hst" / "ref_cache_subdir_mode").read_text() == "instrument"


def test_a_cache_that_cannot_be_written(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run, inputs = start(CRDS_PATH=str(tmp_path / "file" / "cache"))
    error = refused(
        lambda: references.assign(run, inputs), run.dataset.name, "file/cache cannot be written", "CRDS_PATH"
    )
    assert error.exit_code == 27


def test_a_full_disk(start: Start, monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run, inputs = start()
    monkeypatch.setattr(LocalStore, "download", full)
    error = refused(lambda: references.assign(run, inputs), str(host), "no space left", kind=OutputError)
    assert error.exit_code == 29
    assert not list((host / "references" / "hst" / ".caldp-partial").iterdir())


def test_what_is_a_fault_of_the_store_is_not_blamed_on_the_cache(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/store/x")

    run, inputs = start()
    monkeypatch.setattr(LocalStore, "download", denied)
    with pytest.raises(PermissionError):
        references.assign(run, inputs)


def test_crds_is_kept_from_reading_the_store_itself(make_run: RunFactory) -> None:
    ways = {"CRDS_S3_ENABLED": "1", "CRDS_S3_RETURN_URI": "1", "CRDS_MAPPING_URI": "s3://x/", "CRDS_MODE": "s3"}
    plain = make_run(**ways).config
    assert ways.items() <= environment(plain).items()
    served = make_run(CRDSBUCKET="s3://x", CRDS_SERVER_URL="https://hst-crds.stsci.edu", **ways).config
    assert ways.items() <= environment(served).items()
    env = environment(make_run(CRDSBUCKET="s3://x", **ways).config)
    assert not ways.keys() & env.keys()
    assert env["CRDS_OBSERVATORY"] == "hst"


# ---- what several runs share


def make(folder: Path, **sizes: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, size) in enumerate(sizes.items()):
        path = folder / f"{name}.fits"
        path.write_bytes(b"x" * size)
        os.utime(path, (1000 + number, 5))
    return [folder / f"{name}.fits" for name in sizes]


def test_the_longest_unused_files_go_first(tmp_path: Path) -> None:
    folder = tmp_path / "references" / "hst"
    a, b, c, d = make(folder, a=10, b=20, c=30, d=40)
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "hst_0001.pmap").write_bytes(b"x" * 1000)
    (folder / "link.fits").symlink_to(tmp_path / "mappings" / "hst_0001.pmap")
    cache = Shelf(tmp_path)
    assert cache.evict(100) == []
    assert cache.evict(85) == [a, b]
    other = Shelf(tmp_path)
    other.keep(c)
    assert cache.evict(0) == [d]
    assert c.exists()
    assert c.stat().st_mtime == 5
    del other
    assert cache.evict(0) == [c]
    assert (folder / "link.fits").is_symlink()
    assert (tmp_path / "mappings" / "hst_0001.pmap").exists()


def test_what_is_being_downloaded_is_not_in_the_way(tmp_path: Path) -> None:
    make(tmp_path / "references" / "hst", a=10)
    cache = Shelf(tmp_path)
    with cache.claimed(["b.fits"], print):
        cache.partial("b.fits").write_bytes(b"x" * 1000)
        assert cache.evict(10) == []
        assert cache.partial("b.fits").exists()


def test_use_makes_a_file_stay(tmp_path: Path) -> None:
    a, b = make(tmp_path / "references" / "hst" / "cos", a=10, b=10)
    Shelf(tmp_path).keep(a)
    assert Shelf(tmp_path).evict(10) == [b]


def test_what_was_evicted_cannot_be_kept(tmp_path: Path) -> None:
    (a,) = make(tmp_path / "references" / "hst", a=10)
    a.unlink()
    with pytest.raises(FileNotFoundError):
        Shelf(tmp_path).keep(a)


def test_a_file_that_goes_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (a,) = make(tmp_path / "references" / "hst", a=10)
    cache = Shelf(tmp_path)
    real = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        a.unlink(missing_ok=True)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileNotFoundError):
        cache.keep(a)


HOLD = """
import sys
from pathlib import Path
from caldp.crds_shelf import Shelf
shelf = Shelf(Path(sys.argv[1]))
shelf.keep(Path(sys.argv[2]))
with shelf.claimed(["b.fits"], print) as mine:
    shelf.partial("b.fits").write_text("half")
    print("held", mine, flush=True)
    sys.stdin.read()
"""


def test_who_is_killed_holds_nothing(tmp_path: Path) -> None:
    (a,) = make(tmp_path / "references" / "hst", a=10)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(a)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held ['b.fits']\n"
        cache = Shelf(tmp_path)
        assert cache.evict(0) == []
        waited: list[str] = []
        with cache.claimed(["b.fits", "c.fits"], waited.append) as mine:
            assert (mine, waited) == (["c.fits"], [])
        cache.tidy()
        assert cache.partial("b.fits").read_text() == "half"
        other.send_signal(signal.SIGKILL)
        other.wait()
        cache.tidy()
        assert not cache.partial("b.fits").exists()
        assert not list(cache.partial("b.fits").parent.parent.iterdir())
        assert cache.evict(0) == [a]
    finally:
        other.kill()
        other.communicate()


def test_who_waits_gets_the_file_when_it_is_free(tmp_path: Path) -> None:
    first, second = Shelf(tmp_path), Shelf(tmp_path)
    waits = Event()

    def wait() -> list[str]:
        with second.claimed(["a", "b"], lambda name: waits.set()) as mine:
            return mine

    with ThreadPoolExecutor(1) as pool:
        with first.claimed(["a", "b"], print) as mine:
            assert mine == ["a", "b"]
            future = pool.submit(wait)
            assert waits.wait(10)
        assert future.result(10) == ["a"]


def test_a_full_cache_loses_what_no_run_uses(start: Start, host: Path, filled: LocalStore, asked: list[str]) -> None:
    stranger = make(host / "references" / "hst", stranger=10)[0]
    run, inputs = start({"crds_cache_limit": 0})
    answer = references.assign(run, inputs)
    assert all(Path(f.path).is_file() for f in answer.files)
    assert not stranger.exists()
    assert any("stranger.fits was not in use" in text for text in said(run))
    flip(Path(answer.files[0].path))
    again = references.assign(*start({"crds_cache_limit": 0}))
    assert all(Path(f.path).is_file() for f in again.files)
    del answer, again
    assert Shelf(host).evict(0) != []


def test_without_a_limit_nothing_goes(start: Start, host: Path) -> None:
    stranger = make(host / "references" / "hst", stranger=10)[0]
    references.assign(*start())
    assert stranger.exists()


# ---- the commands


@pytest.fixture
def caldp(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run the command ``caldp``."""
    clean_environment.chdir(tmp_path)
    clean_environment.setenv("CALDP_HOME", str(tmp_path / "home"))

    def run(*args: str, code: int = 0) -> Any:
        done = CliRunner().invoke(main, args)
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done

    return run


def test_the_command_sync(caldp: Callable[..., Any], crds_cache: Path, raw: Path, simulation: Simulation) -> None:
    start = ["references", "sync", "--context", CONTEXT, "--from", str(crds_cache)]
    chosen = ["--datasets", simulation.dataset, "--input", f"file:{raw}"]
    plan = json.loads(caldp(*start, *chosen, "--dry-run", "--json", "file:store").stdout)
    assert (plan["sent"], plan["rules_sent"], plan["dry_run"]) == (len(plan["names"]), True, True)
    assert not Path("store").exists()
    done = caldp(*start, *chosen, "file:store")
    assert done.stderr == ""
    assert done.stdout.startswith(f"{CONTEXT} in file:{Path('store').absolute()}: ")
    assert f"{plan['sent']} references sent" in done.stdout
    assert sorted(p.name for p in Path("store/references/hst").iterdir()) == plan["names"]
    more = json.loads(caldp(*start, "--instruments", "COS", "--json", "file:store").stdout)
    assert more["sent"] == more["of"] - plan["sent"]
    assert json.loads(caldp(*start, "--all", "--json", "file:store").stdout)["sent"] == 0
    assert not Path("home/caldp-scratch").exists()


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["--context", "hst_0009.pmap", "file:store"], 27, "hst_0009.pmap is not there"),
        (["--context", "nonsense", "file:store"], 2, "not a CRDS context"),
        (["--context", CONTEXT, "--instruments", "acs", "file:store"], 2, "no rules for acs"),
        (["--context", CONTEXT, "--datasets", "nonsense", "file:store"], 2, "nonsense"),
        (["--context", CONTEXT, "--datasets", "ldfd01vnq", "file:store"], 21, "ldfd01vnq"),
        (["--context", CONTEXT, "ftp:store"], 2, "ftp:store"),
        (["--context", CONTEXT, "--config", "none-such", "file:store"], 2, "none-such"),
        (["file:store"], 2, "--context"),
    ],
)
def test_what_sync_refuses(caldp: Callable[..., Any], crds_cache: Path, args: list[str], code: int, word: str) -> None:
    done = caldp("references", "sync", "--from", str(crds_cache), *args, code=code)
    assert word in done.stderr
    if word != "--context":
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("caldp references sync: ")
    assert not Path("store").exists()


def test_the_command_current(caldp: Callable[..., Any], filled: LocalStore, crds_cache: Path) -> None:
    second_context(crds_cache)
    put(filled, crds_cache, context="hst_0002.pmap")
    assert caldp("references", "current", filled.uri).stdout.startswith(f"{CONTEXT}  since")
    moved = caldp("references", "current", filled.uri, "hst_0002.pmap", "--why", "new flats", "--json")
    assert json.loads(moved.stdout)["why"] == "new flats"
    done = caldp("references", "current", filled.uri, "hst_0003.pmap", code=27)
    assert "no context hst_0003.pmap" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    caldp("references", "current", "file:elsewhere", code=27)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_people(shelf: LocalStore, crds_cache: Path) -> None:
    quiet, screen = io.StringIO(), Terminal()
    for stream in (quiet, screen):
        shutil.rmtree(shelf.root, ignore_errors=True)
        with crds_sync.told(stream) as progress:
            put(shelf, crds_cache, progress=progress)
    assert quiet.getvalue() == ""
    assert "references" in screen.getvalue()
