"""What any Store must do: subclass `StoreContract` and give a ``store``, or `SharedContract` and give a ``uri``."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from caldp.errors import BusyError
from caldp.local_store import LocalStore
from caldp.s3_store import S3Store
from caldp.store import (
    ConflictError,
    Copy,
    Create,
    Entry,
    NoObjectError,
    Overwrite,
    Seal,
    Store,
    Stored,
    Update,
    open_store,
)
from tests.fakes.proxy import FaultyProxy
from tests.fakes.stores import FlakyStore, InsistentStore, MemoryStore
from tests.s3 import S3Place, s3_places

KEY = "messages/status/ldfd01010.json"
PREFIX = "data/cos/ldfd01010"
UNSAFE = ("", ".", "..", "../x", "a/../../x", "/etc/x", "a/..", "a\0b")

Script = Callable[..., subprocess.Popen[str]]

PRELUDE = """
import os, sys, time, types
from pathlib import Path
if sys.argv[1].startswith("s3:"):
    import botocore.endpoint  # which else waits up to 20 s between tries
    botocore.endpoint.time = types.SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.001)))
from caldp.errors import BusyError
from caldp.store import *
store = open_store(sys.argv[1])
"""

CREATE_ONE = """
print("ready", flush=True)
sys.stdin.read(1)
try:
    store.put("race/key", sys.argv[2].encode(), Create())
    print("won")
except ConflictError:
    print("lost")
"""

INCREMENT = """
for _ in range(10):
    while True:
        blob = store.get("counter")
        try:
            store.put("counter", str(int(blob.data) + 1).encode(), Update(blob.etag))
            break
        except ConflictError:
            pass
"""

OWN = """
with store.own("ldfd01010"):
    print("held", flush=True)
    sys.stdin.read(1)
print("freed", flush=True)
"""

READ = """
# A reader that holds the folder open sees one tree; when it was swapped out meanwhile, it looks again.
target = Path(store.url("data/cos/ldfd01010"))
seen = set()
while True:
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    versions = set()
    try:
        for name in ("a", "b", "c", "d"):
            with open(os.open(name, os.O_RDONLY, dir_fd=folder)) as stream:
                versions.add(stream.read())
    except FileNotFoundError:
        if os.path.samestat(os.fstat(folder), os.stat(target)):
            sys.exit("a file is missing from the tree that is shown")
        continue
    finally:
        os.close(folder)
    if len(versions) != 1:
        sys.exit(f"mixture of {versions}")
    seen |= versions
    if "first" in versions:
        print("reading", flush=True)
    if "last" in versions:
        break
print(len(seen))
"""


def write_tree(folder: Path, content: str, names: str = "abc") -> None:
    for name in names:
        (folder / name).write_text(content)


def seal(content: str, name: str = "d") -> Seal:
    """Make the last file of a tree."""
    return lambda _: (name, content.encode())


def tree(store: Store, prefix: str = PREFIX) -> dict[str, str]:
    return {name: (store.get(f"{prefix}/{name}") or pytest.fail(name)).data.decode() for name in store.names(prefix)}


def stage(store: Store, scratch: Path, run: str, prefix: str = PREFIX) -> Path:
    """Stage as a run does: each has a scratch folder of its own."""
    own = scratch / f"scratch-{run}"
    own.mkdir(exist_ok=True)
    return store.staging(prefix, run, own)


class StoreContract:
    """The conformance suite."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def publish(self, store: Store, tmp_path: Path) -> Callable[[str, str], None]:
        def publish(run: str, content: str) -> None:
            staging = stage(store, tmp_path, run)
            write_tree(staging, content)
            store.publish(staging, PREFIX, lambda: {*"abcd"}, seal(content))

        return publish

    # ---- small objects

    def test_nothing_is_there_at_first(self, store: Store) -> None:
        assert store.get(KEY) is None
        assert store.get(f"{KEY}/below") is None
        assert store.names("messages/status") == []
        store.delete(KEY)

    def test_a_tag_is_that_of_the_content(self, store: Store) -> None:
        tag = store.put(KEY, b"one\0\xff", Create())
        blob = store.get(KEY)
        assert blob is not None
        assert (blob.data, blob.etag) == (b"one\0\xff", tag)
        assert store.put(KEY, b"two", Overwrite()) != tag

    def test_create_refuses_what_is_there(self, store: Store) -> None:
        store.put(KEY, b"one", Create())
        with pytest.raises(ConflictError):
            store.put(KEY, b"two", Create())
        assert (store.get(KEY) or pytest.fail()).data == b"one"

    def test_create_after_delete(self, store: Store) -> None:
        store.put(KEY, b"one", Create())
        store.delete(KEY)
        assert store.get(KEY) is None
        store.put(KEY, b"two", Create())
        assert (store.get(KEY) or pytest.fail()).data == b"two"

    def test_overwrite(self, store: Store) -> None:
        store.put(KEY, b"one", Overwrite())
        store.put(KEY, b"", Overwrite())
        assert (store.get(KEY) or pytest.fail()).data == b""

    def test_update_wants_the_present_tag(self, store: Store) -> None:
        first = store.put(KEY, b"one", Create())
        second = store.put(KEY, b"two", Update(first))
        with pytest.raises(ConflictError):
            store.put(KEY, b"three", Update(first))
        assert (store.get(KEY) or pytest.fail()).data == b"two"
        store.put(KEY, b"three", Update(second))

    def test_update_of_nothing_is_a_conflict(self, store: Store) -> None:
        with pytest.raises(ConflictError):
            store.put(KEY, b"one", Update("tag"))
        assert store.get(KEY) is None

    def test_names_are_those_directly_below(self, store: Store) -> None:
        for key in ("m/b", "m/a", "m/sub/c", "mm/d"):
            store.put(key, b"", Create())
        assert [n for n in store.names("m") if n != "sub"] == ["a", "b"]
        assert "d" not in store.names("m")
        assert store.names("")[:2] == ["m", "mm"]

    def test_failed_puts_leave_nothing_behind(self, store: Store) -> None:
        store.put("m/a", b"", Create())
        for mode in (Create(), Update("stale")):
            with pytest.raises(ConflictError):
                store.put("m/a", b"x", mode)
        assert store.names("m") == ["a"]

    @pytest.mark.parametrize("key", UNSAFE)
    def test_unsafe_keys_are_refused(self, store: Store, key: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"")
        before = sorted(tmp_path.rglob("*"))
        doings: list[Callable[[], Any]] = [
            lambda: store.put(key, b"", Overwrite()),
            lambda: store.delete(key),
            lambda: store.add(source, key),
            lambda: store.staging(key, "run", tmp_path),
        ]
        for do in doings:
            with pytest.raises(ValueError, match="unsafe key"):
                do()
        assert sorted(tmp_path.rglob("*")) == before

    # ---- many objects, and files

    def test_walk_lists_all_below_and_nothing_beside(self, store: Store) -> None:
        for key in ("data/cos/x/b", "data/cos/x/a", "data/cos/x/sub/deep/c", "data/cos/xy/d", "data/e"):
            store.put(key, key.encode(), Create())
        found = list(store.walk("data/cos/x"))
        assert sorted(entry.key for entry in found) == ["data/cos/x/a", "data/cos/x/b", "data/cos/x/sub/deep/c"]
        assert all(entry.size == len(entry.key) for entry in found)
        assert {entry.key for entry in store.walk("")} == {*(e.key for e in found), "data/cos/xy/d", "data/e"}
        assert list(store.walk("nothing")) == []

    def test_several_objects_are_deleted_at_once(self, store: Store) -> None:
        for name in "abc":
            store.put(f"m/{name}", b"", Create())
        store.delete("m/a", "m/b", "m/not-there")
        assert store.names("m") == ["c"]

    def test_files_come_back_as_they_went(self, store: Store, tmp_path: Path) -> None:
        contents = {"empty": b"", "small": b"x" * 1000, "large one": os.urandom(20_000_000)}
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        moved: list[int] = []
        sent = store.upload((Copy(f"{PREFIX}/{name}", tmp_path / name) for name in contents), moved.append)
        assert sent.keys() == {f"{PREFIX}/{name}" for name in contents}
        assert sum(moved) == sum(map(len, contents.values()))
        moved.clear()
        (tmp_path / "back").mkdir()
        store.download((Copy(f"{PREFIX}/{name}", tmp_path / "back" / name) for name in contents), moved.append)
        assert {name: (tmp_path / "back" / name).read_bytes() for name in contents} == contents
        assert sum(moved) == sum(map(len, contents.values()))

    def test_files_that_are_to_be_created_leave_alone_what_is_there(self, store: Store, tmp_path: Path) -> None:
        store.put("m/a", b"first", Create())
        for name in "ab":
            (tmp_path / name).write_bytes(b"second")
        sent = store.upload([Copy(f"m/{name}", tmp_path / name) for name in "ab"], create=True)
        # Of an upload whose answer was lost, nobody knows that it was sent.
        assert "m/a" not in sent
        assert (store.get("m/a") or pytest.fail("gone")).data == b"first"
        assert (store.get("m/b") or pytest.fail("gone")).data == b"second"
        assert store.upload([Copy(f"m/{name}", tmp_path / name) for name in "ab"], create=True) == {}

    def test_what_is_not_there_cannot_be_downloaded(self, store: Store, tmp_path: Path) -> None:
        store.put("m/a", b"x", Create())
        with pytest.raises(NoObjectError, match="m/b"):
            store.download([Copy("m/a", tmp_path / "a"), Copy("m/b", tmp_path / "b")])
        assert not (tmp_path / "b").exists()

    def test_damage_is_named(self, store: Store) -> None:
        contents = {"a": b"one", "sub/b": b"two", "c": b"three", "d": b"four"}
        for name, data in contents.items():
            store.put(f"{PREFIX}/{name}", data, Create())
        listed = [
            {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
        ]
        assert store.damaged(PREFIX, listed) == []
        store.put(f"{PREFIX}/sub/b", b"owt", Overwrite())
        store.put(f"{PREFIX}/c", b"three and more", Overwrite())
        store.delete(f"{PREFIX}/d")
        assert store.damaged(PREFIX, listed) == ["sub/b", "c", "d"]

    def test_the_clock_is_that_of_the_world(self, store: Store) -> None:
        store.get(KEY)
        assert abs((store.clock() - datetime.now(UTC)).total_seconds()) < 60

    # ---- races

    def test_one_of_16_threads_creates_a_key(self, store: Store) -> None:
        for round_ in range(5):
            together = Barrier(16)

            def create(number: int, key: str = f"race/{round_}", together: Barrier = together) -> bool:
                together.wait()
                try:
                    store.put(key, b"%d" % number, Create())
                except ConflictError:
                    return False
                return True

            with ThreadPoolExecutor(16) as pool:
                won = list(pool.map(create, range(16)))
            assert won.count(True) == 1
            assert (store.get(f"race/{round_}") or pytest.fail()).data == b"%d" % won.index(True)

    # ---- trees

    def test_publish_the_first_time(self, store: Store, publish: Callable[[str, str], None]) -> None:
        publish("run1", "one")
        assert tree(store) == dict.fromkeys("abcd", "one")

    def test_what_is_staged_is_not_shown(self, store: Store, tmp_path: Path) -> None:
        staging = stage(store, tmp_path, "run1")
        write_tree(staging, "one")
        assert store.names("data/cos") == []
        assert list(store.names(PREFIX)) == []

    def test_publish_replaces_everything(
        self, store: Store, publish: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        publish("run1", "one")
        staging = stage(store, tmp_path, "run2")
        write_tree(staging, "two", "x")
        store.publish(staging, PREFIX, lambda: {*"abcd"}, seal("two", "y"))
        assert tree(store) == {"x": "two", "y": "two"}
        assert store.names("data/cos") == ["ldfd01010"]
        assert not staging.exists()

    def test_publish_into_a_folder_that_holds_only_logs(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("failed")
        store.add(tmp_path / "log", f"{PREFIX}/logs/process.txt")
        staging = stage(store, tmp_path, "run2")
        write_tree(staging, "two")
        store.publish(staging, PREFIX, lambda: {"logs/process.txt"}, seal("two"))
        assert tree(store) == dict.fromkeys("abcd", "two")

    def test_publish_keeps_what_others_put_there(
        self, store: Store, publish: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        publish("run1", "one")
        (tmp_path / "note").write_text("mine")
        store.add(tmp_path / "note", f"{PREFIX}/deep/note")
        publish("run2", "two")
        assert {name for name in store.names(PREFIX) if len(name) == 1} == {*"abcd"}
        assert (store.get(f"{PREFIX}/a") or pytest.fail()).data == b"two"
        assert (store.get(f"{PREFIX}/deep/note") or pytest.fail()).data == b"mine"

    def test_publish_that_is_not_allowed_changes_nothing(
        self, store: Store, publish: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        publish("run1", "one")
        staging = stage(store, tmp_path, "run2")
        write_tree(staging, "two")

        def refuse() -> set[str]:
            raise BusyError("taken over")

        with pytest.raises(BusyError):
            store.publish(staging, PREFIX, refuse, seal("two"))
        assert tree(store) == dict.fromkeys("abcd", "one")

    def test_the_seal_is_told_of_every_file(self, store: Store, tmp_path: Path) -> None:
        staging = stage(store, tmp_path, "run1")
        write_tree(staging, "one")
        told: list[set[str]] = []

        def sealing(stored: Mapping[str, Stored]) -> tuple[str, bytes]:
            told.append({name for name in stored if stored[name].etag})
            return "d", b"one"

        store.publish(staging, PREFIX, lambda: {*"abcd"}, sealing)
        assert told == [set() if store.exclusive else {*"abc"}]

    def test_two_runs_stage_apart(self, store: Store, tmp_path: Path) -> None:
        one, two = (stage(store, tmp_path, run) for run in ("run1", "run2"))
        assert one != two
        with pytest.raises(FileExistsError):
            stage(store, tmp_path, "run1")

    def test_add_leaves_other_objects_alone(
        self, store: Store, publish: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        publish("run1", "one")
        (tmp_path / "log").write_text("new")
        store.add(tmp_path / "log", f"{PREFIX}/a")
        store.add(tmp_path / "log", f"{PREFIX}/e")
        assert tree(store) == {"a": "new", "b": "one", "c": "one", "d": "one", "e": "new"}
        assert (tmp_path / "log").read_text() == "new"


class SharedContract(StoreContract):
    """Of a store that several processes can open."""

    #: Share of the requests that fail.
    rate = 0.0

    @pytest.fixture
    def store(self, uri: str) -> Store:
        return open_store(uri)

    @pytest.fixture
    def script(self, uri: str) -> Iterator[Script]:
        """Start a Python process that works on the same store; it is gone after the test."""
        started: list[subprocess.Popen[str]] = []

        def start(code: str, *args: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", PRELUDE + code, uri, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_one_of_16_processes_creates_a_key(self, store: Store, script: Script) -> None:
        processes = [script(CREATE_ONE, str(number)) for number in range(16)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
        answers = [process.communicate()[0].strip() for process in processes]
        assert sorted(answers) == ["lost"] * 15 + ["won"]
        assert (store.get("race/key") or pytest.fail()).data == b"%d" % answers.index("won")

    def test_no_increment_is_lost(self, store: Store, script: Script) -> None:
        store.put("counter", b"0", Create())
        for process in [script(INCREMENT) for _ in range(5)]:
            _, errors = process.communicate()
            assert not errors
        count = int((store.get("counter") or pytest.fail()).data)
        # An increment whose answer was lost, and that another one has followed, is made again.
        assert count >= 50 if self.rate else count == 50


class ExclusiveContract(SharedContract):
    """Of a store with locks, where a tree is exchanged in one step."""

    # ---- ownership

    def test_a_dataset_has_one_owner(self, store: Store) -> None:
        with store.own("ldfd01010"):
            with pytest.raises(BusyError, match="ldfd01010"), store.own("ldfd01010"):
                pytest.fail("owned twice")
            with store.own("ldfd01020"):
                pass
        with store.own("ldfd01010"):
            pass

    def test_an_exception_frees(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.own("ldfd01010"):
            raise ZeroDivisionError
        with store.own("ldfd01010"):
            pass

    def test_another_process_owns_until_it_lets_go(self, store: Store, script: Script) -> None:
        other = script(OWN)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError), store.own("ldfd01010"):
            pytest.fail("owned twice")
        other.communicate("x")
        with store.own("ldfd01010"):
            pass

    def test_a_killed_owner_owns_nothing(self, store: Store, script: Script) -> None:
        other = script(OWN)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with store.own("ldfd01010"):
            pass

    def test_take_over(self, store: Store, script: Script) -> None:
        old = script(OWN)
        assert old.stdout is not None
        assert old.stdout.readline() == "held\n"
        with store.own("ldfd01010", take_over=True):
            with pytest.raises(BusyError), store.own("ldfd01010"):
                pytest.fail("owned twice")
            # The old owner ends: that must not free what is not his any more.
            assert old.communicate("x")[0] == "freed\n"
            with pytest.raises(BusyError), store.own("ldfd01010"):
                pytest.fail("owned twice")

    def test_take_over_of_nothing(self, store: Store) -> None:
        with store.own("ldfd01010", take_over=True), pytest.raises(BusyError), store.own("ldfd01010"):
            pytest.fail("owned twice")

    def test_a_reader_sees_the_old_tree_or_the_new_one(
        self, store: Store, script: Script, publish: Callable[[str, str], None]
    ) -> None:
        publish("run0", "first")
        reader = script(READ)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for number in range(50):
            publish(f"run{number + 1}", f"version {number}")
        publish("run51", "last")
        out, errors = reader.communicate(timeout=30)
        assert (reader.returncode, errors) == (0, "")
        assert int(out.splitlines()[-1]) >= 2

    def test_prepare_removes_what_dead_runs_staged(
        self, store: Store, publish: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        publish("run0", "one")
        dead, other = (stage(store, tmp_path, "run1", prefix) for prefix in (PREFIX, f"{PREFIX[:-1]}1"))
        write_tree(dead, "half")
        store.prepare(PREFIX)
        assert not dead.exists()
        assert other.exists()
        assert tree(store) == dict.fromkeys("abcd", "one")
        store.prepare("data/acs/j8cb010b0")


class TestLocalStore(ExclusiveContract):
    """A folder."""

    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return f"file:{tmp_path / 'out:with colon'}"

    def test_urls_are_paths(self, store: Store, tmp_path: Path) -> None:
        root = tmp_path / "out:with colon"
        assert store.url() == str(root)
        assert store.url(PREFIX) == str(root / PREFIX)

    def test_locks_are_removed(self, store: Store) -> None:
        tag = store.put(KEY, b"one", Create())
        with store.own("ldfd01010"):
            store.put(KEY, b"two", Update(tag))
        root = Path(store.url())
        assert [p for p in root.rglob("*") if p.is_file()] == [root / KEY]

    def test_a_directory_in_the_way_of_an_output_is_an_os_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            open_store(f"file:{tmp_path / 'file'}").put(KEY, b"", Create())


class TestMemoryStore(StoreContract):
    """The one of the tests."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


@pytest.mark.parametrize("rate", [0.1, 0.5], indirect=True)
class TestFlakyStores(StoreContract):
    """A folder and memory, where calls fail before or after they had an effect, and are repeated."""

    @pytest.fixture
    def rate(self, request: pytest.FixtureRequest) -> float:
        return float(request.param)

    @pytest.fixture(params=["local", "memory"])
    def store(self, request: pytest.FixtureRequest, rate: float, tmp_path: Path) -> Store:
        inner = LocalStore(tmp_path / "out") if request.param == "local" else MemoryStore()
        store: Store = InsistentStore(FlakyStore(inner, rate))
        return store


class S3Contract(SharedContract):
    """A bucket; a proxy before it fails a share of the requests, or the answers to them."""

    @pytest.fixture
    def proxy(self, s3_place: S3Place) -> Iterator[FaultyProxy | None]:
        if self.rate:
            with FaultyProxy(s3_place.endpoint or "https://s3.amazonaws.com", failure_rate=self.rate) as proxy:
                yield proxy
        else:
            yield None

    @pytest.fixture
    def uri(
        self, s3_place: S3Place, proxy: FaultyProxy | None, monkeypatch: pytest.MonkeyPatch, no_waiting: None
    ) -> str:
        place = s3_place.behind(proxy.endpoint) if proxy else s3_place
        environment = {**place.environment(), **({"AWS_MAX_ATTEMPTS": "15"} if proxy else {})}
        for name in os.environ.keys() - environment.keys():
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return place.outputs

    def test_what_somebody_else_put_below_is_kept_and_what_a_dead_run_left_goes(
        self, store: Store, publish: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        store.put(f"{PREFIX}/theirs", b"mine", Create())
        dead = stage(store, tmp_path, "dead")
        write_tree(dead, "half", "abcxyz")

        def killed(_: object) -> tuple[str, bytes]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.publish(dead, PREFIX, lambda: {*"abcd"}, killed)
        assert store.names(PREFIX) == [*"abc", "theirs", *"xyz"]
        publish("run2", "two")
        assert store.names(PREFIX) == [*"abcd", "theirs"]

    def test_a_run_that_lost_its_dataset_cannot_overwrite_what_its_successor_wrote(
        self, uri: str, store: Store, publish: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        publish("run0", "old")
        lost, before = S3Store(uri), iter(({*"abcd"},))
        staging = stage(lost, tmp_path, "lost")
        write_tree(staging, "lost", "abcx")

        def ours() -> set[str]:
            for names in before:
                return names
            raise BusyError("taken over")

        def sees_it_too_late(prefix: str) -> list[Entry]:
            seen = list(store.walk(prefix))
            publish("successor", "new")
            return seen

        lost.walk = sees_it_too_late  # type: ignore[method-assign,assignment]
        with pytest.raises(BusyError):
            lost.publish(staging, PREFIX, ours, seal("lost"))
        assert {n: c for n, c in tree(store).items() if n != "x"} == dict.fromkeys("abcd", "new")


@pytest.mark.parametrize("s3_place", s3_places("moto", "ministack"), indirect=True)
class TestS3Store(S3Contract):
    """Servers that do not fail."""


@pytest.mark.parametrize("s3_place", ["ministack"], indirect=True)
class TestS3StoreAtTenPerCent(S3Contract):
    """One request in ten fails."""

    rate = 0.1


@pytest.mark.slow
@pytest.mark.parametrize("s3_place", s3_places("moto", "ministack"), indirect=True)
class TestS3StoreAtFiftyPerCent(S3Contract):
    """One request in two fails."""

    rate = 0.5
