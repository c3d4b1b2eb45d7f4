"""Sync: what the downloader brings home, what it says of it, and what the archive acknowledges."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from caldp import cli, local_store, messages, sync
from caldp.errors import (
    CaldpError,
    S3DownloadError,
    S3DownloadRefusedError,
    S3UploadRefusedError,
    Stop,
    UsageError,
)
from caldp.local_store import LocalStore
from caldp.messages import Status
from caldp.store import Blob, Copy, Entry, NoObjectError, Overwrite, Progress, PutMode, quietly
from caldp.sync import Ask, acknowledge, datasets, open_places
from caldp.sync_watch import BarWatch, JsonWatch, PlainWatch, QuietWatch, Summary, open_watch
from tests.fakes import processed
from tests.fakes.processed import publish, tree

NAME = "ldfd01010"
OTHER = "j8bt05njq"
PREFIX = f"data/cos/{NAME}"

Hook = Callable[[list[Copy]], None]


class HookedStore(LocalStore):
    """A batch in a folder, in which something happens at each download, and which counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hook: Hook = lambda copies: None
        self.read: list[str] = []
        self.fetched: list[str] = []
        self.put_error: CaldpError | None = None

    def get(self, key: str) -> Blob | None:
        self.read.append(key)
        return super().get(key)

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        if self.put_error:
            raise self.put_error
        return super().put(key, data, mode)

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        copies = list(copies)
        self.hook(copies)
        self.fetched += [copy.key for copy in copies]
        super().download(copies, progress)


@pytest.fixture
def batch(tmp_path: Path) -> HookedStore:
    return HookedStore(tmp_path / "batch")


@pytest.fixture
def home(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "home")


def run(batch: LocalStore, home: LocalStore, *names: str, watch: Any = None, **ask: Any) -> Summary:
    return sync.sync(batch, home, Ask(names, **ask), watch or QuietWatch(None))


def state(store: LocalStore, name: str = NAME) -> Status:
    return messages.read(store, name) or pytest.fail(f"no status of {name}")


def shown(store: LocalStore, name: str = NAME) -> list[str]:
    """Where the messages show a dataset."""
    return sorted(p.parent.name for p in (store.root / "messages").glob(f"*/{name}"))


def said(store: LocalStore, folder: str = "dataset-synced", name: str = NAME) -> list[str]:
    return (store.root / "messages" / folder / name).read_text().splitlines()


def consistent(home: LocalStore, name: str = NAME) -> None:
    """What is said to be here is here, whole."""
    folder = home.root / "data" / "cos" / name
    for listed in (home.root / "messages").glob(f"dataset-synced/{name}"):
        assert all(Path(line).is_file() for line in listed.read_text().splitlines())
        assert json.loads((folder / "manifest.json").read_text())["attempt"] == state(home, name).attempt
    if folder.is_dir():
        record = json.loads((folder / "manifest.json").read_text())
        assert home.damaged(f"data/cos/{name}", [*record["products"], *record["previews"]]) == []


# ---- what is brought home


def test_it_looks_as_if_it_had_run_here(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    publish(batch, OTHER)
    done = run(batch, home)
    assert (done.datasets, done.failed, done.exit_code, done.skipped) == (2, {}, 0, 0)
    assert tree(home.root / "data") == tree(batch.root / "data")
    assert done.files == len(tree(batch.root / "data"))
    assert done.bytes == sum(map(len, tree(batch.root / "data").values()))
    assert (home.root / PREFIX / "previews").is_dir() and (home.root / PREFIX / "logs").is_dir()
    # Both sides say the same, and where.
    assert tree(home.root / "messages") == tree(batch.root / "messages")
    assert shown(home) == shown(batch) == ["dataset-synced"]
    assert state(batch).state == "synced"
    assert [entry["state"] for entry in state(batch).history] == ["processing", "processed", "synced"]
    lines = said(batch)
    assert lines[:2] == [f"{home.root}/{PREFIX}/{NAME}_raw.fits", f"{home.root}/{PREFIX}/{NAME}_flt.fits"]
    assert {Path(line) for line in lines} == {p for p in (home.root / PREFIX).rglob("*") if p.is_file()}
    assert state(batch).message.splitlines() == lines
    consistent(home)


def test_again_there_is_nothing_to_do(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    before, batch.fetched = state(batch), []
    done = run(batch, home)
    assert (done.datasets, done.files, done.exit_code) == (0, 0, 0)
    assert batch.fetched == []
    assert state(batch) == before
    named = run(batch, home, NAME)
    assert (named.skipped, named.datasets, named.exit_code) == (1, 0, 0)


def test_folders_are_there_even_if_they_are_empty(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME, {f"{NAME}_x1d.fits": b"x"}, logs={})
    assert run(batch, home).exit_code == 0
    assert (home.root / PREFIX / "previews").is_dir() and (home.root / PREFIX / "logs").is_dir()


def test_only_what_belongs_to_the_dataset_is_taken(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    for name in ("note.txt", "older_product.fits", "previews/other.png", "logs/.hidden"):
        (batch.root / PREFIX / name).write_text("somebody's")
    (batch.root / f"{PREFIX}x").mkdir()
    (batch.root / f"{PREFIX}x" / "neighbour.fits").write_text("of another name")
    assert run(batch, home).exit_code == 0
    assert not [name for name, data in tree(home.root / "data").items() if data in (b"somebody's", b"of another name")]


def test_a_dataset_that_was_calibrated_again_is_fetched_anew(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME, {**processed.small_products(NAME), f"{NAME}_only1.fits": b"first"})
    run(batch, home)
    (home.root / PREFIX / "notes by somebody.txt").write_text("mine")
    publish(batch, NAME)
    assert shown(batch) == ["datasets-processed"]
    batch.fetched = []
    done = run(batch, home)
    assert (done.datasets, done.kept) == (1, 2)  # the raw file is the same, and so is the empty one
    assert f"{PREFIX}/{NAME}_raw.fits" not in batch.fetched
    there = tree(home.root / PREFIX)
    assert there.pop("notes by somebody.txt") == b"mine"
    assert there == tree(batch.root / PREFIX)
    assert state(home) == state(batch)
    assert (state(home).attempt, shown(home)) == (2, ["dataset-synced"])
    assert not any("only1" in line for line in said(home))
    assert "only1" in json.dumps(state(batch).history)  # what was said before is not lost
    consistent(home)


def test_datasets_may_be_named(batch: HookedStore, home: LocalStore) -> None:
    for name in (NAME, "ldfd01020", OTHER):
        publish(batch, name)
    batch.read = []
    done = run(batch, home, NAME)
    assert done.datasets == 1
    assert not [key for key in batch.read if NAME not in key]
    assert [state(batch, name).state for name in (NAME, "ldfd01020", OTHER)] == ["synced", "processed", "processed"]


@pytest.mark.parametrize("what", ["processing", "error", "cancelled", "submitted"])
def test_what_is_not_processed_is_left_alone(batch: HookedStore, home: LocalStore, what: str) -> None:
    messages.advance(batch, Status(NAME, 1, what))
    before = tree(batch.root)
    assert run(batch, home, NAME).skipped == 1
    assert run(batch, home).skipped == 0
    assert tree(batch.root) == before
    assert tree(home.root) == {}


def test_a_dataset_that_is_nowhere(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, OTHER)
    done = run(batch, home, NAME)
    assert (done.exit_code, list(done.failed)) == (2, [NAME])
    assert "there is no such dataset" in done.failed[NAME].reason


def test_a_batch_that_is_nowhere(batch: HookedStore, home: LocalStore) -> None:
    done = run(batch, home)
    assert done.exit_code == 2
    assert "is no batch" in str(done.ended)


def test_listings_are_read_and_not_every_status(batch: HookedStore, home: LocalStore) -> None:
    for name in processed.names(40):
        messages.advance(batch, Status(name, 1, "archived"))
    publish(batch, NAME)
    batch.read = []
    assert run(batch, home).datasets == 1
    assert {key for key in batch.read if NAME not in key} == set()


def test_a_name_among_the_messages_that_is_no_dataset(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    for odd in ("README", "LDFD01020", "ldfd0102", NAME + "x"):
        batch.put(f"messages/datasets-processed/{odd}", b"", Overwrite())
    out = io.StringIO()
    done = run(batch, home, watch=PlainWatch(out, None))
    assert (done.datasets, done.exit_code) == (1, 0)
    assert out.getvalue().count("is not the name of a dataset") == 4


def test_a_status_that_was_lost_is_made_again_from_the_manifest(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    batch.delete(messages.status_key(NAME))
    assert run(batch, home).datasets == 1
    assert state(batch).state == state(home).state == "synced"
    assert state(batch).run == json.loads((home.root / PREFIX / "manifest.json").read_text())["run"]


def test_a_name_that_a_killed_downloader_left_in_processed_goes(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    batch.put(f"messages/datasets-processed/{NAME}", b"", Overwrite())
    batch.fetched = []
    done = run(batch, home)
    assert (done.skipped, batch.fetched) == (1, [])
    assert shown(batch) == ["dataset-synced"]


# ---- --again


def test_again_mends_what_is_damaged_here_and_no_more(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    before, batch.fetched = tree(batch.root), []
    (home.root / PREFIX / f"{NAME}_flt.fits").write_bytes(b"damaged")
    assert run(batch, home).datasets == 0
    done = run(batch, home, again=True)
    assert (done.datasets, done.exit_code) == (1, 0)
    assert f"{PREFIX}/{NAME}_flt.fits" in batch.fetched
    assert f"{PREFIX}/{NAME}_raw.fits" not in batch.fetched
    assert tree(home.root / "data") == tree(batch.root / "data")
    assert tree(batch.root) == before


@pytest.mark.parametrize("archive", [False, True])
def test_again_brings_what_is_synced_to_another_place(
    batch: HookedStore, home: LocalStore, tmp_path: Path, archive: bool
) -> None:
    publish(batch, NAME)
    run(batch, home)
    if archive:
        acknowledge(batch, NAME)
    before, second = tree(batch.root), LocalStore(tmp_path / "second")
    assert run(batch, second, again=True).datasets == 1
    assert tree(batch.root) == before
    assert tree(second.root / "data") == tree(home.root / "data")
    assert state(second).state == state(batch).state
    assert said(second, "dataset-archived" if archive else "dataset-synced")[0].startswith(str(second.root))


# ---- what is wrong in the batch


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def product(**changes: Any) -> Callable[[Path], None]:
    """Change what the manifest says of the first product."""

    def change(folder: Path) -> None:
        record = json.loads((folder / "manifest.json").read_text())
        record["products"][0].update(changes)
        (folder / "manifest.json").write_text(json.dumps(record))

    return change


def manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**record, **changes}))

    return change


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one byte": lambda folder: flip(folder / f"{NAME}_flt.fits"),
    "one byte of a preview": lambda folder: flip(folder / "previews" / f"{NAME}_flt.png"),
    "truncated": lambda folder: (folder / f"{NAME}_flt.fits").write_bytes(b"SIMPLE"),
    "longer": lambda folder: (folder / f"{NAME}_empty.txt").write_bytes(b"x"),
    "file missing": lambda folder: (folder / f"{NAME}_raw.fits").unlink(),
    "no manifest": no_manifest,
    "manifest is no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "manifest is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest of another dataset": manifest(dataset="ldfd01020"),
    "manifest of another attempt": manifest(attempt=2),
    "manifest of another format": manifest(format=2),
    "manifest without products": manifest(products=None),
    "upwards": product(name="../../../../../../tmp/x"),
    "absolute": product(name="/tmp/x"),  # noqa: S108
    "hidden": product(name=".x"),
    "through a folder": product(name="logs/../x"),
    "two lines": product(name="a\nb"),
    "the manifest itself": product(name="manifest.json"),
    "no name": product(name=""),
    "name is a number": product(name=5),
    "size is a text": product(size="12"),
    "negative size": product(size=-1),
    "no checksum": product(sha256=""),
    "checksum is a number": product(sha256=7),
    "twice": product(name=f"{NAME}_flt.fits"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_dataset_that_is_not_what_its_manifest_says(
    batch: HookedStore, home: LocalStore, damage: Callable[[Path], object]
) -> None:
    publish(batch, NAME)
    publish(batch, OTHER)
    damage(batch.root / PREFIX)
    before = state(batch)
    errors = io.StringIO()
    done = run(batch, home, watch=QuietWatch(errors))
    assert (done.exit_code, done.datasets, list(done.failed)) == (26, 1, [NAME])
    assert len(errors.getvalue().splitlines()) == 1
    assert NAME in errors.getvalue() and str(batch.root) in errors.getvalue()
    assert (state(batch), shown(batch)) == (before, ["datasets-processed"])
    assert not (home.root / PREFIX).exists()
    assert messages.read(home, NAME) is None
    assert state(batch, OTHER).state == "synced"


def test_what_was_put_right_is_fetched_next_time_and_no_more_than_that(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    flip(batch.root / PREFIX / f"{NAME}_flt.fits")
    assert run(batch, home).exit_code == 26
    flip(batch.root / PREFIX / f"{NAME}_flt.fits")
    batch.fetched = []
    assert run(batch, home).exit_code == 0
    assert f"{PREFIX}/{NAME}_raw.fits" not in batch.fetched
    assert tree(home.root / "data") == tree(batch.root / "data")


def test_a_damaged_status_in_the_batch_is_not_the_disk_here(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    batch.put(messages.status_key(NAME), b"{", Overwrite())
    assert run(batch, home).exit_code == 26


def test_a_transfer_that_came_damaged_is_repeated(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    good = batch.root / PREFIX / f"{NAME}_flt.fits"
    data = good.read_bytes()

    def damage(copies: list[Copy]) -> None:
        good.write_bytes(b"?" * len(data) if len(copies) > 1 else data)

    batch.hook = damage
    assert run(batch, home).exit_code == 0
    assert batch.fetched.count(f"{PREFIX}/{NAME}_flt.fits") == 2
    consistent(home)


# ---- what changes meanwhile


def once(act: Callable[[], object]) -> Hook:
    todo = [act]

    def hook(_: list[Copy]) -> None:
        if todo:
            todo.pop()()

    return hook


def test_a_dataset_that_is_published_again_while_it_is_downloaded(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    batch.hook = once(lambda: publish(batch, NAME))
    done = run(batch, home)
    assert (done.datasets, done.exit_code) == (1, 0)
    assert tree(home.root / "data") == tree(batch.root / "data")
    assert (state(batch).attempt, state(batch).state) == (2, "synced")
    consistent(home)


def test_a_dataset_that_is_begun_again_while_it_is_downloaded(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    batch.hook = once(lambda: messages.begin(batch, NAME, "run2"))
    done = run(batch, home)
    assert (done.skipped, done.exit_code) == (1, 0)
    assert (state(batch).attempt, state(batch).state, shown(batch)) == (2, "processing", ["dataset-processing"])
    assert (state(home).attempt, state(home).state) == (1, "synced")  # and so it is
    consistent(home)


def test_another_place_was_faster(batch: HookedStore, home: LocalStore, tmp_path: Path) -> None:
    publish(batch, NAME)
    second = LocalStore(tmp_path / "second")
    batch.hook = once(lambda: run(batch, second))
    out = io.StringIO()
    done = run(batch, home, watch=PlainWatch(out, None))
    assert (done.datasets, done.exit_code) == (1, 0)
    assert said(batch) == said(second)
    assert said(batch)[0].startswith(str(second.root))
    assert said(home)[0].startswith(str(home.root))
    assert tree(home.root / "data") == tree(second.root / "data") == tree(batch.root / "data")
    assert state(home).order == state(second).order == state(batch).order
    consistent(home)
    consistent(second)


def test_the_archive_was_faster_than_the_last_word(batch: HookedStore, home: LocalStore, tmp_path: Path) -> None:
    publish(batch, NAME)
    second = LocalStore(tmp_path / "second")
    batch.hook = once(lambda: (run(batch, second), acknowledge(batch, NAME)))
    assert run(batch, home).datasets == 1
    assert state(batch).state == state(home).state == "archived"
    assert shown(home) == ["dataset-archived"]
    assert said(home, "dataset-archived")[0].startswith(str(home.root))
    assert said(batch, "dataset-archived")[0].startswith(str(second.root))


# ---- what is here already


@pytest.mark.parametrize("lost", ["status", "manifest"])
def test_a_later_attempt_that_is_here_is_kept(batch: HookedStore, home: LocalStore, lost: str) -> None:
    publish(batch, NAME)
    publish(home, NAME)
    publish(home, NAME)
    home.delete(messages.status_key(NAME) if lost == "status" else f"{PREFIX}/manifest.json")
    before = tree(home.root)
    done = run(batch, home)
    assert done.exit_code == 29
    assert "attempt 2" in done.failed[NAME].reason and "directory of its own" in done.failed[NAME].reason
    assert tree(home.root) == before
    assert state(batch).state == "processed"


def test_two_batches_in_one_directory_do_not_mix(batch: HookedStore, home: LocalStore, tmp_path: Path) -> None:
    publish(batch, NAME)
    other = LocalStore(tmp_path / "other")
    publish(other, NAME)
    assert run(batch, home).exit_code == 0
    before = tree(home.root)
    assert run(other, home).exit_code == 29
    assert tree(home.root) == before


@pytest.mark.parametrize("make", ["link", "file"])
def test_a_place_that_is_no_plain_directory(batch: HookedStore, home: LocalStore, tmp_path: Path, make: str) -> None:
    publish(batch, NAME)
    target = home.root / PREFIX
    target.parent.mkdir(parents=True)
    if make == "link":
        target.symlink_to(tmp_path)
    else:
        target.write_text("in the way")
    done = run(batch, home)
    assert done.exit_code == 29
    assert "plain directory" in done.failed[NAME].reason
    assert target.is_symlink() or target.read_text() == "in the way"


def test_a_link_here_is_not_taken_for_a_file_of_ours(batch: HookedStore, home: LocalStore, tmp_path: Path) -> None:
    publish(batch, NAME)
    run(batch, home)
    flt = home.root / PREFIX / f"{NAME}_flt.fits"
    elsewhere = flt.rename(tmp_path / "elsewhere.fits")
    flt.symlink_to(elsewhere)
    publish(batch, NAME, processed.small_products(NAME, 1))
    assert run(batch, home).exit_code == 0
    assert not flt.is_symlink()


def test_another_process_has_it_and_ends(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    publish(batch, OTHER)
    owned, release = threading.Event(), threading.Event()

    def own() -> None:
        with home.own(NAME):
            owned.set()
            release.wait(10)

    thread = threading.Thread(target=own)
    thread.start()
    assert owned.wait(10)
    threading.Timer(0.7, release.set).start()
    done = run(batch, home)
    thread.join()
    assert (done.datasets, done.exit_code) == (2, 0)


def test_another_process_has_it_and_does_not_end(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    with home.own(NAME):
        done = run(batch, home, patience=0.2)
    assert (done.exit_code, done.datasets) == (35, 0)
    assert "another process has it" in done.failed[NAME].reason
    assert state(batch).state == "processed"


# ---- killed at any moment: as if by kill -9, for nothing is told to anybody


class KilledError(BaseException):
    """The process is no more."""


class MortalStore(LocalStore):
    """A folder whose user dies at its n-th change."""

    def __init__(self, root: Path, life: list[int]) -> None:
        super().__init__(root)
        self.life = life

    def live(self) -> None:
        self.life[0] -= 1
        if self.life[0] < 0:
            raise KilledError

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        self.live()
        etag = super().put(key, data, mode)
        self.live()
        return etag

    def delete(self, *keys: str) -> None:
        for key in keys:
            if self._path(key).exists():
                self.live()
                super().delete(key)

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        for copy in copies:
            self.live()
            super().download([copy])

    def publish(self, *args: Any, **more: Any) -> None:
        self.live()
        super().publish(*args, **more)
        self.live()


@pytest.mark.parametrize("first", [True, False], ids=["first attempt", "second attempt"])
def test_killed_at_each_change(tmp_path: Path, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    life = [10_000]
    exchange = local_store._exchange

    def mortal_exchange(staging: Path, target: Path) -> None:
        exchange(staging, target)
        MortalStore(tmp_path, life).live()  # what was there before is now hidden, and would be removed

    monkeypatch.setattr(local_store, "_exchange", mortal_exchange)
    template = MortalStore(tmp_path / "template" / "batch", life)
    publish(template, NAME)
    if not first:
        run(template, MortalStore(tmp_path / "template" / "home", life))
        publish(template, NAME)
    kills = 0
    for moment in range(200):
        place = shutil.copytree(tmp_path / "template", tmp_path / "place")
        batch, home = MortalStore(place / "batch", life), MortalStore(place / "home", life)
        life[0] = moment
        downloader = sync.Downloader(batch, home, QuietWatch(None))
        try:
            downloader.bring(NAME)
        except KilledError:
            kills += 1
        life[0] = 10_000
        consistent(home)
        if state(batch).state == "synced":
            assert tree(home.root / "data") == tree(batch.root / "data")
        done = run(batch, home)
        assert done.exit_code == 0
        assert (state(batch).state, state(batch).attempt) == ("synced", 1 if first else 2)
        assert shown(batch) == shown(home) == ["dataset-synced"]
        assert tree(home.root / "data") == tree(batch.root / "data")
        assert said(batch) == said(home) and state(home).message == state(batch).message
        assert state(home).order == state(batch).order
        consistent(home)
        if kills <= moment:
            break
        shutil.rmtree(place)
    assert kills > 15


def test_files_that_a_killed_downloader_had_brought_are_not_fetched_again(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)

    def die(copies: list[Copy]) -> None:
        LocalStore.download(batch, copies[:2])
        copies[2].path.with_name("x.fits.a1b2c3d4").write_bytes(b"unfinished")
        raise KilledError

    batch.hook = die
    with pytest.raises(KilledError):
        sync.Downloader(batch, home, QuietWatch(None)).bring(NAME)
    assert [p.name for p in (home.root / "data" / "cos").iterdir() if not p.name.startswith(".")] == []
    batch.hook = lambda copies: None
    done = run(batch, home)
    assert done.kept == 2
    assert tree(home.root / "data") == tree(batch.root / "data")


# ---- the disk, the network, the user


def test_a_disk_that_cannot_be_written(batch: HookedStore, home: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(batch, NAME)

    def full(copies: list[Copy]) -> None:
        raise OSError(28, "No space left on device", str(copies[0].path))

    batch.hook = full
    done = run(batch, home)
    assert done.exit_code == 29
    assert "no space left" in done.failed[NAME].reason
    assert state(batch).state == "processed"


def test_the_first_cause_decides_and_all_are_told(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    publish(batch, "ldfd01020")
    flip(batch.root / PREFIX / f"{NAME}_flt.fits")

    def full(copies: list[Copy]) -> None:
        if "ldfd01020" in copies[0].key:
            raise OSError(28, "No space left on device", str(copies[0].path))

    batch.hook = full
    errors = io.StringIO()
    done = run(batch, home, jobs=1, watch=QuietWatch(errors))
    assert (done.exit_code, len(done.failed)) == (26, 2)
    assert [line.split(":")[1].strip() for line in errors.getvalue().splitlines()] == [NAME, "ldfd01020"]


def test_the_batch_cannot_be_written(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    batch.put_error = S3UploadRefusedError("access denied")
    done = run(batch, home)
    assert done.exit_code == 25
    batch.put_error, batch.fetched = None, []
    assert run(batch, home).exit_code == 0
    assert batch.fetched == []  # it was here already
    assert state(home) == state(batch)


def test_what_fails_everywhere_is_not_tried_a_hundred_thousand_times(batch: HookedStore, home: LocalStore) -> None:
    for name in processed.names(40):
        publish(batch, name, {"x": b"x"})
    tried = []

    def refuse(copies: list[Copy]) -> None:
        tried.append(copies[0].key)
        raise S3DownloadRefusedError("the AWS credentials have expired")

    batch.hook = refuse
    done = run(batch, home, jobs=2)
    assert done.exit_code == 26
    assert 20 <= len(done.failed) < 30
    assert "the rest is not tried" in str(done.ended)


def test_damaged_datasets_do_not_stop_the_others(batch: HookedStore, home: LocalStore) -> None:
    for name in processed.names(40):
        publish(batch, name, {"x": b"x"})
        if name != processed.names(40)[-1]:
            (batch.root / "data" / "cos" / name / "x").write_bytes(b"y")
    done = run(batch, home)
    assert (done.datasets, len(done.failed), done.exit_code) == (1, 39, 26)


def test_the_listing_fails(batch: HookedStore, home: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(prefix: str) -> list[str]:
        raise S3DownloadRefusedError("s3://x: there is no such bucket", remedy="create it")

    monkeypatch.setattr(batch, "names", fail)
    errors = io.StringIO()
    done = run(batch, home, watch=QuietWatch(errors), follow=True)
    assert done.exit_code == 26
    assert errors.getvalue() == "caldp sync: s3://x: there is no such bucket; create it\n"


def test_stopped_while_it_downloads(batch: HookedStore, home: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(batch, NAME)
    begun = threading.Event()
    progress_of = LocalStore.download

    def endless(copies: Iterable[Copy], progress: Progress = quietly) -> None:
        begun.set()
        while True:
            progress(1)
            time.sleep(0.01)

    monkeypatch.setattr(batch, "download", endless)
    waiting = sync.wait

    def interrupted(futures: Any, *args: Any, **more: Any) -> Any:
        if not more:  # the last one
            return waiting(futures, *args)
        begun.wait(10)
        raise Stop(2)

    monkeypatch.setattr(sync, "wait", interrupted)
    done = run(batch, home)
    assert (done.exit_code, done.stuck, done.failed) == (130, False, {})
    assert state(batch).state == "processed"
    assert progress_of is LocalStore.download


# ---- --follow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What happens in each pause of a watcher; then comes Ctrl-C."""
    todo: list[Callable[[], object]] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        if seconds != 77:
            sleep(seconds)
        elif todo:
            todo.pop(0)()
        else:
            raise Stop(2)

    monkeypatch.setattr(sync.time, "sleep", pause)
    yield todo
    assert not todo


def test_a_watcher_brings_what_comes(batch: HookedStore, home: LocalStore, clock: list[Callable[[], object]]) -> None:
    clock += [
        lambda: publish(batch, NAME),
        lambda: None,
        lambda: publish(batch, OTHER),
        lambda: publish(batch, NAME),
    ]
    done = run(batch, home, follow=True, interval=77)
    assert (done.datasets, done.exit_code, done.failed) == (3, 0, {})
    assert (state(home).attempt, state(home, OTHER).attempt) == (2, 1)
    assert tree(home.root / "data") == tree(batch.root / "data")


def test_a_watcher_of_some_datasets(batch: HookedStore, home: LocalStore, clock: list[Callable[[], object]]) -> None:
    messages.advance(batch, Status(NAME, 1, "processing"))
    clock += [lambda: publish(batch, OTHER), lambda: publish(batch, NAME)]
    done = run(batch, home, NAME, follow=True, interval=77)
    assert done.datasets == 1
    assert state(batch).state == "synced"
    assert state(batch, OTHER).state == "processed"


def test_a_watcher_does_not_fetch_a_damaged_dataset_at_each_look(
    batch: HookedStore, home: LocalStore, clock: list[Callable[[], object]]
) -> None:
    publish(batch, NAME)
    flip(batch.root / PREFIX / f"{NAME}_flt.fits")
    clock += [lambda: None] * 5
    done = run(batch, home, follow=True, interval=77)
    assert done.exit_code == 26
    assert 2 <= batch.fetched.count(f"{PREFIX}/{NAME}_flt.fits") <= 4


def test_a_watcher_forgets_a_failure_that_came_right(
    batch: HookedStore, home: LocalStore, clock: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "_AGAIN_AFTER", 0.0)
    publish(batch, NAME)
    flip(batch.root / PREFIX / f"{NAME}_flt.fits")
    clock += [lambda: flip(batch.root / PREFIX / f"{NAME}_flt.fits")]
    done = run(batch, home, follow=True, interval=77)
    assert (done.datasets, done.exit_code, done.failed) == (1, 0, {})


def test_a_watcher_outlives_a_listing_that_fails(
    batch: HookedStore, home: LocalStore, clock: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = batch.names

    def fail(prefix: str) -> list[str]:
        raise S3DownloadError("S3 says SlowDown, again and again")

    def mend() -> None:
        monkeypatch.setattr(batch, "names", names)
        publish(batch, NAME)

    clock += [lambda: monkeypatch.setattr(batch, "names", fail), mend]
    out = io.StringIO()
    done = run(batch, home, follow=True, interval=77, watch=PlainWatch(out, None))
    assert (done.datasets, done.exit_code) == (1, 0)
    assert "WARNING: S3 says SlowDown" in out.getvalue()


def test_a_watcher_leaves_to_another_process_what_it_has(
    batch: HookedStore, home: LocalStore, clock: list[Callable[[], object]]
) -> None:
    publish(batch, NAME)
    own = home.own(NAME)
    own.__enter__()
    clock += [lambda: None, lambda: own.__exit__(None, None, None)]
    done = run(batch, home, follow=True, interval=77)
    assert (done.datasets, done.skipped, done.exit_code) == (1, 1, 0)


def test_a_watcher_goes_on_after_everything_failed(
    batch: HookedStore, home: LocalStore, clock: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "_AGAIN_AFTER", 0.0)
    for name in processed.names(30):
        publish(batch, name, {"x": b"x"})

    def full(copies: list[Copy]) -> None:
        raise OSError(28, "No space left on device", str(copies[0].path))

    batch.hook = full
    clock += [lambda: setattr(batch, "hook", lambda copies: None)]
    done = run(batch, home, follow=True, interval=77)
    assert (done.datasets, done.exit_code) == (30, 0)


# ---- the archive


def test_archived(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    lines = said(batch)
    status, changed = acknowledge(batch, NAME)
    assert (status.state, changed) == ("archived", True)
    assert shown(batch) == ["dataset-archived"]
    assert said(batch, "dataset-archived") == lines
    before = tree(batch.root)
    assert acknowledge(batch, NAME)[1] is False
    assert tree(batch.root) == before
    # The directory hears of it with the next look.
    assert shown(home) == ["dataset-synced"]
    assert run(batch, home).exit_code == 0
    assert shown(home) == ["dataset-archived"]
    assert said(home, "dataset-archived") == lines
    assert state(home) == state(batch)


def test_what_somebody_wrote_into_the_message_is_preserved(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    batch.put(f"messages/dataset-synced/{NAME}", b"/their/own.fits\n\xff", Overwrite())
    acknowledge(batch, NAME)
    assert (batch.root / "messages" / "dataset-archived" / NAME).read_bytes() == b"/their/own.fits\n\xff"
    assert state(batch).message.startswith("/their/own.fits\n")


def test_a_message_that_was_lost_comes_back_when_archived(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    lines = said(batch)
    batch.delete(f"messages/dataset-synced/{NAME}")
    acknowledge(batch, NAME)
    assert said(batch, "dataset-archived") == lines


def test_archived_by_one_that_was_killed_before_it_could_show_it(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    lines, status = said(batch), state(batch)
    body = json.dumps(replace(status, state="archived").to_json()).encode()
    batch.put(messages.status_key(NAME), body, Overwrite())
    assert acknowledge(batch, NAME)[1] is False
    assert shown(batch) == ["dataset-archived"]
    assert said(batch, "dataset-archived") == lines


@pytest.mark.parametrize("what", ["nothing", "processing", "error", "processed", "again"])
def test_what_is_not_synced_cannot_be_archived(batch: HookedStore, home: LocalStore, what: str) -> None:
    if what == "again":
        publish(batch, NAME)
        run(batch, home)
        messages.begin(batch, NAME, "run2")
    elif what != "nothing":
        messages.advance(batch, Status(NAME, 1, what))
    before = tree(batch.root)
    with pytest.raises(UsageError, match=f"{NAME}: (it is not synced, but|there is none)"):
        acknowledge(batch, NAME)
    assert tree(batch.root) == before


def test_archived_here_as_well(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    acknowledge(home, NAME)
    assert shown(home) == ["dataset-archived"]
    acknowledge(batch, NAME)
    assert run(batch, home).exit_code == 0
    assert shown(home) == ["dataset-archived"]


def test_a_damaged_record_here_does_not_keep_the_others_from_coming(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    run(batch, home)
    acknowledge(batch, NAME)
    home.put(messages.status_key(NAME), b"{", Overwrite())
    publish(batch, OTHER)
    out = io.StringIO()
    assert run(batch, home, watch=PlainWatch(out, None)).datasets == 1
    assert "is not a status record" in out.getvalue()


def test_a_mirror_shows_what_it_is_given_but_never_something_older(home: LocalStore) -> None:
    first = Status(NAME, 1, "synced", "run1", at="then", by="there", message="/a\n", history=({"state": "processed"},))
    assert messages.mirror(home, first)
    assert (state(home), shown(home), said(home)) == (first, ["dataset-synced"], ["/a"])
    for older in (replace(first, state="processed"), replace(first, attempt=0, state="archived")):
        assert not messages.mirror(home, older)
    assert (state(home), shown(home)) == (first, ["dataset-synced"])
    home.put(f"messages/datasets-processed/{NAME}", b"", Overwrite())
    assert messages.mirror(home, replace(first, by="elsewhere"))  # as high: it is what the other store has now
    assert (state(home).by, shown(home)) == ("elsewhere", ["dataset-synced"])


def test_a_mirror_that_meets_another_writer(home: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put, later = home.put, Status(NAME, 2, "processing", "run2")

    def meet(key: str, data: bytes, mode: PutMode) -> str:
        monkeypatch.setattr(home, "put", put)
        messages.advance(home, later)
        return put(key, data, mode)

    monkeypatch.setattr(home, "put", meet)
    assert not messages.mirror(home, Status(NAME, 1, "synced", "run1"))
    assert (state(home).attempt, shown(home)) == (2, ["dataset-processing"])


# ---- what the command line says


def test_names_and_files_of_names(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# a comment\nLDFD01010, j8bt05njq\n\n  acs_8ph_01\t# why\nldfd01010\n")
    assert datasets(["ldfd01vnq", f"@{path}"]) == ("ldfd01vnq", NAME, OTHER, "acs_8ph_01")
    assert datasets([]) == ()


@pytest.mark.parametrize("name", ["", "ldfd0101", "ldfd01010x", "ldfd*", "u2440101t", "../ldfd01010", "all"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        datasets([NAME, name])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"ldfd01010\nldfd0101\n", "line 2"),
        (b"# nothing\n", "names no datasets"),
        (b"", "names no datasets"),
        (b"\xff\xfe", "give a text file"),
        (None, "No such file"),
    ],
)
def test_files_of_names_that_are_none(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        datasets([f"@{path}"])


def test_places(tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    for batch, local in ((f"file:{tmp_path}/batch", f"{tmp_path}/new"), (f"{tmp_path}/batch", f"file:{tmp_path}/new")):
        source, home = open_places(batch, local)
        assert (source.url(), home.url()) == (f"{tmp_path}/batch", f"{tmp_path}/new")
    with pytest.raises(UsageError, match="the batch itself"):
        open_places(f"file:{tmp_path}/batch", f"{tmp_path}/batch/.")
    for local in ("", "s3://bucket/x", "two\nlines"):
        with pytest.raises(UsageError):
            open_places(f"file:{tmp_path}/batch", local)
    with pytest.raises(UsageError):
        open_places(f"file:{tmp_path}/none", f"{tmp_path}/new")


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(cli.Interrupts, "install", lambda self: self)  # the signals are pytest's
    return lambda *args: CliRunner().invoke(cli.main, [str(arg) for arg in args])


def test_the_commands(batch: HookedStore, home: LocalStore, invoke: Callable[..., Result]) -> None:
    publish(batch, NAME)
    publish(batch, OTHER)
    done = invoke("sync", batch.uri, home.root, NAME.upper())
    assert done.exit_code == 0, done.output
    assert f"{NAME}: synced, attempt 1, 11 files" in done.stdout
    assert "1 dataset, 11 files" in done.stdout.splitlines()[-1]
    done = invoke("archived", batch.uri, OTHER, NAME)
    assert done.exit_code == 2
    assert done.stdout == f"{NAME}: archived\n"
    assert done.stderr.startswith(f"caldp archived: {OTHER}: it is not synced, but processed, attempt 1; ")
    assert len(done.stderr.splitlines()) == 1
    done = invoke("archived", batch.root, NAME)
    assert (done.exit_code, done.stdout) == (0, f"{NAME}: archived before\n")
    assert invoke("archived", batch.root, NAME, "-q").output == ""


@pytest.mark.parametrize(
    "args",
    [
        ("sync",),
        ("sync", "{batch}"),
        ("sync", "s3:bucket", "{home}"),
        ("sync", "{batch}x", "{home}"),
        ("sync", "{batch}", "{home}", "ldfd"),
        ("sync", "{batch}", "{home}", "@nothing"),
        ("sync", "{batch}", "{home}", "--jobs", "0"),
        ("sync", "{batch}", "{home}", "--interval", "0"),
        ("sync", "{batch}", "s3://bucket/x"),
        ("archived", "{batch}"),
        ("archived", "{batch}", "ldfd"),
        ("archived", "{batch}", NAME, "ldfd"),
        ("archived", "{batch}x", NAME),
    ],
)
def test_usage(batch: HookedStore, home: LocalStore, invoke: Callable[..., Result], args: tuple[str, ...]) -> None:
    publish(batch, NAME)
    before = tree(batch.root)
    done = invoke(*(arg.format(batch=batch.uri, home=home.root) for arg in args))
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert tree(batch.root) == before


# ---- who is told


def test_json_lines(batch: HookedStore, home: LocalStore, invoke: Callable[..., Result]) -> None:
    publish(batch, NAME)
    publish(batch, OTHER)
    flip(batch.root / PREFIX / f"{NAME}_flt.fits")
    done = invoke("sync", batch.uri, home.root, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] not in ("progress",)] == [
        "start",
        "found",
        "dataset",
        "dataset",
        "finished",
    ]
    told = {event["dataset"]: event for event in events if event["event"] == "dataset"}
    assert (told[NAME]["state"], told[NAME]["exit_code"]) == ("failed", 26)
    assert (told[OTHER]["state"], told[OTHER]["attempt"], told[OTHER]["files"]) == ("synced", 1, 11)
    assert told[OTHER]["location"] == f"{home.root}/data/acs/{OTHER}"
    last = events[-1]
    assert (last["datasets"], last["exit_code"], list(last["failed"])) == (1, 26, [NAME])
    assert last["bytes"] == sum(map(len, tree(home.root / "data" / "acs" / OTHER).values()))
    assert {"seconds", "bytes_per_second", "skipped", "kept", "files", "reason", "source", "target"} <= last.keys()
    assert len(done.stderr.splitlines()) == 1


def test_quiet(batch: HookedStore, home: LocalStore, invoke: Callable[..., Result]) -> None:
    publish(batch, NAME)
    assert invoke("sync", batch.uri, home.root, "-q").output == ""


def test_bars_on_a_terminal(batch: HookedStore, home: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    publish(batch, NAME)
    publish(batch, OTHER)
    flip(batch.root / PREFIX / f"{NAME}_flt.fits")
    screen, errors = Screen(), io.StringIO()
    watch = open_watch(json=False, quiet=False, stdout=screen, stderr=errors)
    assert isinstance(watch, BarWatch)
    assert run(batch, home, watch=watch).exit_code == 26
    text = screen.getvalue()
    assert "2 of 2" in text and "MB/s" in text
    assert "1 dataset, 11 files" in text.splitlines()[-1]
    assert NAME in errors.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_watch(json=False, quiet=False, stdout=screen, stderr=errors), PlainWatch)
    assert isinstance(open_watch(json=True, quiet=True, stdout=screen, stderr=errors), JsonWatch)
    assert type(open_watch(json=False, quiet=True, stdout=screen, stderr=errors)) is QuietWatch


def test_a_summary() -> None:
    done = Summary("s3://b/x", "/home", 1200, 3, 40_000, 1_400_000_000, 5, 70.0)
    assert (
        str(done)
        == "1,200 datasets, 40,000 files, 1.4 GB in 1 min 10 s (20.0 MB/s); 5 files here already; 3 skipped; 0 failed"
    )


def test_versions_and_tags(tmp_path: Path) -> None:
    entries = {"a": Entry("p/a", 3, "tag"), "b": Entry("p/b", 3, "newer")}
    files = (
        sync.File("a", 3, "0" * 64, "tag", "v1"),
        sync.File("b", 3, "0" * 64, "older", "v1"),
        sync.File("c", 3, "0" * 64, "gone", "v1"),
        sync.File("d", 3, "0" * 64),
    )
    plan = sync.Plan(sync.Dataset.parse(NAME), 1, "run", b"", files, entries)
    versions = {copy.path.name: copy.version for copy in plan.copies(files, tmp_path, newest=False)}
    assert versions == {"a": "", "b": "v1", "c": "v1", "d": ""}
    assert {copy.version for copy in plan.copies(files, tmp_path, newest=True)} == {""}


def test_a_tree_with_versions_of_another_bucket(batch: HookedStore, home: LocalStore) -> None:
    publish(batch, NAME)
    product(etag="tag", version="v1")(batch.root / PREFIX)

    def refuse(copies: list[Copy]) -> None:
        for copy in copies:
            if copy.version:
                raise NoObjectError(copy.key)

    batch.hook = refuse
    assert run(batch, home).exit_code == 0
    consistent(home)


def test_what_the_disk_says_of_folders_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(22))  # this file system has no such thing for folders
    sync._flush(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse(5))
    with pytest.raises(OSError, match="Input/output"):
        sync._flush(tmp_path)
