"""What any Records must do: subclass `RecordsContract` and give ``records``; to be shared, and a ``uri``."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier, Thread
from typing import Any
from unittest import mock

import pytest

from caldp.crdserver import dynamo
from caldp.crdserver.dynamo import DynamoRecords
from caldp.crdserver.records import LARGEST, Record, Records, SqliteRecords, open_records
from caldp.errors import ReferencesError, ReferencesUnavailableError, UsageError
from caldp.store import ConflictError
from tests.fakes.proxy import FaultyProxy
from tests.fakes.s3 import S3Server
from tests.s3 import installed_ministack, s3_environment

#: Keys with all that may trip a place: its own signs, other scripts, what sorts elsewhere in UTF-16, controls.
ODD = [
    *("a b", "a/b", "a%b", "a_b", "#value", ":after", "a'b", 'a"b', "a\\b", "a\nb", "a\0b", "-", "None", "0", "00"),
    *("ü", "Ü", "天文", "\ue000", "\U0001f52d", "\U0010ffff", "\U0010ffffx", "é", "e\u0301", "Z", "z", " "),
]

COUNT = """
import sys
from caldp.crdserver.records import open_records
from caldp.store import ConflictError
records = open_records(sys.argv[1])
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(int(sys.argv[2])):
    while True:
        record = records.get("counters", "n")
        try:
            records.put("counters", "n", {"n": record.value["n"] + 1}, expect=record.version)
            break
        except ConflictError:
            pass
"""

WRITE = """
import sys
from caldp.crdserver.records import open_records
records = open_records(sys.argv[1])
number = 0
while True:
    number += 1
    records.put("kept", "n", {"n": number, "text": "x" * 20_000})
    records.put("kept", f"{number:06d}", {"n": number}, expect=0)
    print(number, flush=True)
"""


def keys(found: Iterator[Record]) -> list[str]:
    return [record.key for record in found]


class RecordsContract:
    """What any Records must do."""

    #: Threads, and counts of each.
    THREADS, COUNTS = 8, 25

    def test_what_was_written_is_read_in_its_newest_version(self, records: Records) -> None:
        assert records.get("space", "key") is None
        assert records.put("space", "key", {"a": [1, None, True, 2.5, {"b": "c"}]}) == 1
        assert records.put("space", "key", {"a": 2}) == 2
        assert records.get("space", "key") == Record("key", {"a": 2}, 2)
        assert records.get("space", "other") is None and records.get("other", "key") is None

    def test_nothing_but_the_version_that_is_expected_is_replaced(self, records: Records) -> None:
        with pytest.raises(ConflictError):
            records.put("s", "k", {}, expect=1)
        assert records.get("s", "k") is None
        assert records.put("s", "k", {"n": 1}, expect=0) == 1
        assert records.put("s", "k", {"n": 2}, expect=1) == 2
        for expect in (0, 1, 3):
            with pytest.raises(ConflictError):
                records.put("s", "k", {"n": -1}, expect=expect)
        assert records.get("s", "k") == Record("k", {"n": 2}, 2)

    def test_what_is_deleted_is_gone_and_may_be_expected_to_be_there(self, records: Records) -> None:
        records.delete("s", "k")
        for expect in (0, 1):
            with pytest.raises(ConflictError):
                records.delete("s", "k", expect=expect)
        version = records.put("s", "k", {})
        records.put("s", "kept", {})
        with pytest.raises(ConflictError):
            records.delete("s", "k", expect=version + 1)
        records.delete("s", "k", expect=version)
        assert records.get("s", "k") is None
        assert keys(records.scan("s")) == ["kept"]
        for expect in (version, version + 1, version + 2):
            with pytest.raises(ConflictError):
                records.put("s", "k", {}, expect=expect)
            with pytest.raises(ConflictError):
                records.delete("s", "k", expect=expect)
        records.delete("s", "k")

    @pytest.mark.parametrize("expect", [None, 0])
    def test_no_version_comes_twice_though_its_record_was_deleted(self, expect: int | None, records: Records) -> None:
        # Else a lock that was let go of and taken by another could be prolonged by the one who had it before.
        mine = records.put("locks", "cos", {"by": "me"})
        records.delete("locks", "cos")
        theirs = records.put("locks", "cos", {"by": "them"}, expect=expect)
        assert theirs > mine
        with pytest.raises(ConflictError):
            records.put("locks", "cos", {"by": "me"}, expect=mine)
        with pytest.raises(ConflictError):
            records.delete("locks", "cos", expect=mine)
        assert records.get("locks", "cos") == Record("cos", {"by": "them"}, theirs)
        assert records.put("locks", "cos", {"by": "them"}, expect=theirs) == theirs + 1

    def test_spaces_are_apart(self, records: Records) -> None:
        for space in ("hst:a", "hst:ab", "jwst:a", "hst"):
            records.put(space, "k", {"in": space})
        assert [record.value for record in records.scan("hst:a")] == [{"in": "hst:a"}]
        records.delete("hst:a", "k")
        assert records.get("hst:ab", "k") is not None

    def test_many_are_scanned_in_order_however_many(self, records: Records) -> None:
        wanted = [f"{number:010d}" for number in range(1203)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: records.put("many", key, {"k": key}), reversed(wanted)))
        assert keys(records.scan("many")) == wanted
        assert keys(records.scan("many", newest=True)) == wanted[::-1]
        assert keys(records.scan("many", after=wanted[700])) == wanted[701:]
        assert keys(records.scan("many", after=wanted[700], newest=True)) == wanted[:700:-1]
        assert keys(records.scan("many", prefix="00000011")) == wanted[1100:1200]
        assert keys(records.scan("many", prefix="00000011", newest=True)) == wanted[1100:1200][::-1]
        assert keys(records.scan("many", prefix="000000", newest=True)) == wanted[::-1]
        assert keys(records.scan("many", after=wanted[-1])) == []
        for key in wanted[5:1100]:
            records.delete("many", key)
        assert keys(records.scan("many")) == wanted[:5] + wanted[1100:]
        assert keys(itertools.islice(records.scan("many", newest=True), 2)) == wanted[:-3:-1]

    def test_so_are_large_ones(self, records: Records) -> None:
        wanted = [f"{number:02d}" for number in range(7)]
        for key in wanted:
            records.put("large", key, {"text": key * 150_000})
        assert keys(records.scan("large")) == wanted
        assert keys(records.scan("large", newest=True)) == wanted[::-1]
        assert all(record.value["text"] == record.key * 150_000 for record in records.scan("large", after="02"))

    def test_bounds_of_a_scan_mean_what_they_say(self, records: Records) -> None:
        there = ["a", "ab", "ab\U0010ffff", "aba", "abb", "ac", "b", "\U0010ffff"]
        for key in there:
            records.put("s", key, {})
        bounds = ["", "A", "a", "ab", "aba", "abaa", "ac", "b", "zz", "\U0010ffff", "\U0010ffffx"]
        for after, prefix in itertools.product(bounds, bounds):
            wanted = sorted(key for key in there if key > after and key.startswith(prefix))
            assert keys(records.scan("s", after, prefix)) == wanted, (after, prefix)
            assert keys(records.scan("s", after, prefix, newest=True)) == wanted[::-1], (after, prefix)

    def test_keys_of_odd_characters_are_themselves(self, records: Records) -> None:
        for key in ODD:
            records.put("odd", key, {"key": key}, expect=0)
        assert keys(records.scan("odd")) == sorted(ODD)
        for key in ODD:
            found = records.get("odd", key)
            assert found is not None and found.value == {"key": key}
            assert keys(records.scan("odd", prefix=key)) == sorted(k for k in ODD if k.startswith(key)), key
            records.put(key, "k", {"space": key})
            assert [r.value for r in records.scan(key)] == [{"space": key}]
            records.delete("odd", key, expect=found.version)
        assert keys(records.scan("odd")) == []

    def test_values_are_what_json_has_in_any_script(self, records: Records) -> None:
        value = {"": "", "ключ": "天文 \U0001f52d \0 \u2028", "n": [2**70, -0.0, 1e-300], "none": None}
        records.put("s", "k", value)
        found = records.get("s", "k")
        assert found is not None and found.value == value
        for wrong in ({"n": float("nan")}, {"s": "\ud800"}):
            with pytest.raises(ValueError, match=r"JSON|surrogates"):
                records.put("s", "wrong", wrong)
        assert records.get("s", "wrong") is None

    def test_what_is_too_large_is_refused_and_what_just_fits_is_taken(self, records: Records) -> None:
        frame = len('{"t":""}')
        for letter in ("x", "ü"):
            size = (LARGEST - frame) // len(letter.encode())
            key = letter * (1024 // len(letter.encode()))
            records.put("s" * 2048, key, {"t": letter * size})
            with pytest.raises(ValueError, match="too large"):
                records.put("s" * 2048, key, {"t": letter * (size + 1)})
            found = records.get("s" * 2048, key)
            assert found is not None and len(found.value["t"]) == size

    @pytest.mark.parametrize(
        ("space", "key"), [("", "k"), ("s", ""), ("s" * 2049, "k"), ("s", "k" * 1025), ("s", "ü" * 513)]
    )
    def test_names_that_some_place_does_not_take_are_refused_by_all(
        self, space: str, key: str, records: Records
    ) -> None:
        for act in (
            lambda: records.put(space, key, {}),
            lambda: records.get(space, key),
            lambda: records.delete(space, key),
        ):
            with pytest.raises(ValueError, match="names no record"):
                act()
        with pytest.raises(UnicodeEncodeError):
            records.put("s", "\ud800", {})

    def test_of_many_who_create_one_wins(self, records: Records) -> None:
        barrier = Barrier(self.THREADS)

        def create(number: int) -> bool:
            barrier.wait()
            try:
                records.put("race", "k", {"n": number}, expect=0)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(self.THREADS) as pool:
            won = list(pool.map(create, range(self.THREADS)))
        assert sum(won) == 1
        assert records.get("race", "k") == Record("k", {"n": won.index(True)}, 1)

    def test_threads_that_count_up_lose_nothing(self, records: Records) -> None:
        records.put("counters", "n", {"n": 0}, expect=0)
        versions: list[int] = []

        def count(_: int) -> None:
            for _ in range(self.COUNTS):
                while True:
                    record = records.get("counters", "n")
                    assert record is not None
                    try:
                        new = {"n": record.value["n"] + 1}
                        versions.append(records.put("counters", "n", new, expect=record.version))
                        break
                    except ConflictError:
                        pass

        with ThreadPoolExecutor(self.THREADS) as pool:
            list(pool.map(count, range(self.THREADS)))
        total = self.THREADS * self.COUNTS
        assert records.get("counters", "n") == Record("n", {"n": total}, total + 1)
        assert sorted(versions) == list(range(2, total + 2))

    def test_a_scan_goes_on_while_others_write(self, records: Records) -> None:
        for number in range(600):
            records.put("s", f"{number:04d}", {})
        found = []
        for record in records.scan("s"):
            found.append(record.key)
            if record.key == "0100":
                records.delete("s", "0599")
                records.put("s", "0600", {})
            if record.key == "0499":
                records.delete("s", "0499")
        assert found == [*(f"{number:04d}" for number in range(599)), "0600"]

    def test_what_is_closed_twice_is_closed(self, records: Records) -> None:
        records.put("s", "k", {})
        records.close()
        records.close()


class SharedContract(RecordsContract):
    """What Records must do that several processes open by a URI."""

    PROCESSES, EACH = 4, 25

    @pytest.fixture
    def processes(self, records: Records, surroundings: Mapping[str, str]) -> Iterator[Callable[..., Any]]:
        """Start a script with the URI and arguments; whatever is left is killed."""
        started: list[subprocess.Popen[str]] = []

        def start(script: str, *arguments: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", script, records.uri, *map(str, arguments)]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=dict(surroundings), **pipes))
            return started[-1]

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_processes_that_count_up_lose_nothing(self, records: Records, processes: Callable[..., Any]) -> None:
        records.put("counters", "n", {"n": 0}, expect=0)
        counting = [processes(COUNT, self.EACH) for _ in range(self.PROCESSES)]
        assert [process.stdout.readline() for process in counting] == ["ready\n"] * self.PROCESSES
        for process in counting:
            process.stdin.write("g")
            process.stdin.flush()
        assert [process.wait(60) for process in counting] == [0] * self.PROCESSES
        total = self.PROCESSES * self.EACH
        assert records.get("counters", "n") == Record("n", {"n": total}, total + 1)

    def test_a_writer_that_is_killed_leaves_what_it_has_said(
        self, records: Records, processes: Callable[..., Any]
    ) -> None:
        for _ in range(3):
            writer = processes(WRITE)
            said = [int(writer.stdout.readline()) for _ in range(20)][-1]
            writer.send_signal(signal.SIGKILL)
            said = max([said, *map(int, writer.communicate()[0].split())])
            written = keys(records.scan("kept"))
            assert written[:-1] == [f"{number + 1:06d}" for number in range(len(written) - 1)]
            assert said <= len(written) - 1 <= said + 1
            newest = records.get("kept", "n")
            assert newest is not None and newest.value["n"] - said in (0, 1)
            for key in written:
                records.delete("kept", key)


# ---- SQLite


class TestSqliteRecords(SharedContract):
    """A file."""

    @pytest.fixture
    def records(self, tmp_path: Path) -> Iterator[SqliteRecords]:
        with closing(SqliteRecords(tmp_path / "new" / "records.sqlite")) as made:
            yield made

    @pytest.fixture
    def surroundings(self) -> Mapping[str, str]:
        return os.environ

    def test_the_file_is_sound_after_a_writer_was_killed(
        self, records: SqliteRecords, processes: Callable[..., Any]
    ) -> None:
        for _ in range(3):
            writer = processes(WRITE.replace("expect=0", "expect=None"))
            for _ in range(10):
                writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            with closing(sqlite3.connect(records.path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_processes_may_make_the_file_at_the_same_time(self, tmp_path: Path) -> None:
        uri = f"sqlite:{tmp_path / 'fresh' / 'records.sqlite'}"
        script = (
            "import sys; from caldp.crdserver.records import open_records; print('r', flush=True); sys.stdin.read(1)\n"
        )
        script += "records = open_records(sys.argv[1]); records.put('s', sys.argv[2], {}, expect=0)"
        started = [
            subprocess.Popen(
                [sys.executable, "-c", script, uri, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for number in range(6)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        assert [process.communicate(b"g", 60)[1] for process in started] == [b""] * 6
        assert keys(open_records(uri).scan("s")) == [str(number) for number in range(6)]

    def test_threads_that_come_and_go_leave_no_files_open(self, records: SqliteRecords) -> None:
        files = Path("/proc/self/fd")
        before = len(list(files.iterdir()))
        for _ in range(30):
            thread = Thread(target=records.put, args=("s", "k", {}))
            thread.start()
            thread.join()
        assert len(list(files.iterdir())) - before < 10

    def test_a_scan_that_is_left_holds_nobody_up(self, records: SqliteRecords) -> None:
        for number in range(600):
            records.put("s", f"{number:04d}", {})
        scanned = records.scan("s")
        next(scanned)
        with closing(SqliteRecords(records.path)) as other:
            other.put("s", "0000", {"n": 1}, expect=1)
            with other._connection() as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        del scanned

    def test_who_cannot_have_it_in_time_is_told_that_it_is_busy(
        self, records: SqliteRecords, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("caldp.crdserver.records._BUSY", 0.1)
        with closing(sqlite3.connect(records.path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            records.close()
            with pytest.raises(ReferencesUnavailableError, match="locked; end whoever holds it") as error:
                records.put("s", "k", {})
            assert records.uri in str(error.value)
        assert records.put("s", "k", {}) == 1

    def test_a_file_that_is_none_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "damaged").write_bytes(b"no database" * 1000)
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("")
        for name in ("damaged", "folder", "file/records"):
            with pytest.raises(ReferencesError) as error:
                SqliteRecords(tmp_path / name)
            assert not isinstance(error.value, ReferencesUnavailableError)
            assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)

    def test_a_full_disk_is_an_error_and_what_was_there_stays(self, records: SqliteRecords) -> None:
        records.put("s", "k", {"n": 1})
        with records._connection() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ReferencesError, match="full"):
            records.put("s", "large", {"text": "x" * 300_000})
        assert keys(records.scan("s")) == ["k"]


# ---- DynamoDB


def ministack(port: int) -> tuple[list[str], dict[str, str]]:
    settings = {
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "SERVICES": "s3,dynamodb",  # it is asked for buckets whether it is there
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "DOCKER_HOST": "unix:///nonexistent",
        "LOG_LEVEL": "INFO",
        "GATEWAY_PORT": str(port),
    }
    return [str(installed_ministack())], settings


@pytest.fixture(scope="module")
def ministack_tables() -> Iterator[str]:
    """The address of a DynamoDB."""
    with S3Server("ministack", ministack) as server:
        yield server.endpoint


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> str:
    """The address of the DynamoDB that a class is for."""
    return str(request.getfixturevalue(request.cls.ENDPOINT))


def make_table(client: Any) -> str:
    """Make a table as infra does."""
    name = f"records-{uuid.uuid4().hex}"
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "space", "KeyType": "HASH"}, {"AttributeName": "key", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": n, "AttributeType": "S"} for n in ("space", "key")],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


class DynamoContract(SharedContract):
    """A table of some DynamoDB."""

    ENDPOINT = ""
    THREADS, COUNTS, PROCESSES, EACH = 4, 8, 3, 8

    @pytest.fixture
    def surroundings(self, endpoint: str) -> Mapping[str, str]:
        return s3_environment(endpoint)

    @pytest.fixture
    def aws(self, surroundings: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in surroundings.items() if name.startswith("AWS_")}

    @pytest.fixture
    def records(
        self, aws: dict[str, str], surroundings: Mapping[str, str], no_waiting: None
    ) -> Iterator[DynamoRecords]:
        with mock.patch.dict(os.environ, surroundings, clear=True):
            made = DynamoRecords("", aws)
            made.table = make_table(made._client)
            with closing(made):
                yield made

    @pytest.fixture
    def proxied(
        self, records: DynamoRecords, aws: dict[str, str], endpoint: str
    ) -> Iterator[tuple[DynamoRecords, FaultyProxy]]:
        """The same records, by way of a proxy that loses answers."""
        with FaultyProxy(endpoint) as proxy:
            with closing(DynamoRecords(records.table, {**aws, "AWS_ENDPOINT_URL": proxy.endpoint})) as behind:
                yield behind, proxy


@pytest.mark.slow
class TestDynamoRecordsOnMoto(DynamoContract):
    """A table of moto's, which looks at a condition and writes later: who is faster is not for it to say."""

    ENDPOINT = "moto_endpoint"

    test_of_many_who_create_one_wins = None
    test_threads_that_count_up_lose_nothing = None
    test_processes_that_count_up_lose_nothing = None


class TestDynamoRecordsOnMinistack(DynamoContract):
    """A table of ministack's."""

    ENDPOINT = "ministack_tables"

    @pytest.mark.parametrize("expect", [None, 0, 1])
    def test_a_put_whose_answer_is_lost_is_done_once(
        self, expect: int | None, records: DynamoRecords, proxied: tuple[DynamoRecords, FaultyProxy]
    ) -> None:
        behind, proxy = proxied
        before = records.put("s", "k", {"n": 0}) if expect else 0
        proxy.at_write(1, lose(), "after")
        assert behind.put("s", "k", {"n": 1}, expect=expect) == before + 1
        assert proxy.count() == 2
        assert records.get("s", "k") == Record("k", {"n": 1}, before + 1)

    @pytest.mark.parametrize("expect", [None, 0, 1])
    def test_nor_does_it_undo_what_others_have_written_before_it_is_tried_again(
        self, expect: int | None, records: DynamoRecords, proxied: tuple[DynamoRecords, FaultyProxy]
    ) -> None:
        behind, proxy = proxied
        before = records.put("s", "k", {"n": 0}) if expect else 0

        def others() -> None:
            for number in range(1, 6):
                records.put("s", "k", {"others": number}, expect=before + number)
            records.delete("s", "k", expect=before + 6)

        proxy.at_write(1, lose(others), "after")
        assert behind.put("s", "k", {"n": 1}, expect=expect) == before + 1
        assert records.get("s", "k") is None

    def test_a_deletion_whose_answer_is_lost_is_no_conflict(
        self, records: DynamoRecords, proxied: tuple[DynamoRecords, FaultyProxy]
    ) -> None:
        behind, proxy = proxied
        records.put("s", "k", {})
        proxy.at_write(1, lose(lambda: records.put("s", "k", {"new": True}, expect=0)), "after")
        behind.delete("s", "k", expect=1)
        found = records.get("s", "k")
        assert found is not None and found.value == {"new": True}
        proxy.clear()
        proxy.at_write(1, lose(lambda: records.put("s", "k", {"newer": True})), "after")
        behind.delete("s", "k")
        found = records.get("s", "k")
        assert found is not None and found.value == {"newer": True}

    def test_a_conflict_is_one_though_an_answer_was_lost(
        self, records: DynamoRecords, proxied: tuple[DynamoRecords, FaultyProxy]
    ) -> None:
        behind, proxy = proxied
        records.put("s", "k", {"n": 0})
        proxy.at_write(1, lose(), "after")
        with pytest.raises(ConflictError):
            behind.put("s", "k", {"n": 1}, expect=0)
        assert records.get("s", "k") == Record("k", {"n": 0}, 1)

    def test_counts_are_right_where_answers_are_lost_and_requests_fail(
        self, records: DynamoRecords, proxied: tuple[DynamoRecords, FaultyProxy]
    ) -> None:
        behind, proxy = proxied
        proxy.failure_rate = 0.15
        behind.put("s", "k", {"n": 0})
        for _ in range(40):
            record = behind.get("s", "k")
            assert record is not None
            behind.put("s", "k", {"n": record.value["n"] + 1}, expect=record.version)
        assert records.get("s", "k") == Record("k", {"n": 40}, 41)
        assert any(request.fault == "lost" for request in proxy.requests), "no answer was lost"

    def test_one_that_does_not_answer_is_named_in_one_line(
        self, proxied: tuple[DynamoRecords, FaultyProxy], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        behind, proxy = proxied
        monkeypatch.setattr(dynamo, "_TRIES", 2)
        proxy.failure_rate = 1
        acts: tuple[Callable[[], object], ...] = (
            lambda: behind.get("s", "k"),
            lambda: behind.put("s", "k", {}),
            lambda: behind.delete("s", "k"),
            lambda: list(behind.scan("s")),
        )
        for act in acts:
            with pytest.raises(ReferencesUnavailableError) as error:
                act()
            assert str(error.value).startswith(f"{behind.uri}: DynamoDB ") and "\n" not in str(error.value)
        proxy.close()
        with pytest.raises(ReferencesUnavailableError, match="does not answer .*; try it again later"):
            behind.get("s", "k")

    def test_a_table_that_is_not_there_is_named(self, aws: dict[str, str]) -> None:
        with closing(DynamoRecords("nowhere", aws)) as none, pytest.raises(ReferencesError, match="nowhere: ") as error:
            none.get("s", "k")
        assert "ResourceNotFoundException; check its name and the region" in str(error.value)
        assert not isinstance(error.value, ReferencesUnavailableError)


def lose(before: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """Return what drops the connection, so that an answer is lost, after something else."""

    def act() -> None:
        before()
        raise ConnectionError

    return act


@pytest.mark.parametrize(
    ("code", "status", "kind", "said"),
    [
        ("AccessDeniedException", 400, ReferencesError, "AccessDeniedException; allow it dynamodb:GetItem"),
        ("UnrecognizedClientException", 400, ReferencesError, "export the credentials"),
        ("ExpiredTokenException", 400, ReferencesError, "sign in again"),
        ("ValidationException", 400, ReferencesError, "ValidationException .no such index.; check the table"),
        ("ProvisionedThroughputExceededException", 400, ReferencesUnavailableError, "again and again; try it again"),
        ("ThrottlingException", 400, ReferencesUnavailableError, "again and again; try it again"),
        ("SomethingNew", 500, ReferencesUnavailableError, "SomethingNew, again and again"),
    ],
)
def test_what_dynamodb_says_is_an_error_of_its_kind(code: str, status: int, kind: type, said: str) -> None:
    from botocore.exceptions import ClientError

    record = DynamoRecords("t")
    answer = {"Error": {"Code": code, "Message": "no such index"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    record._made = mock.Mock(get_item=mock.Mock(side_effect=ClientError(answer, "GetItem")))
    with pytest.raises(ReferencesError, match=said) as error:
        record.get("s", "k")
    assert type(error.value) is kind
    assert record.uri in str(error.value)


def test_without_credentials_or_a_region_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock.patch.dict(os.environ, s3_environment("http://127.0.0.1:9"), clear=True):
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(ReferencesError, match="dynamodb:t cannot be used .*region.*; export AWS_REGION"):
            DynamoRecords("t").get("s", "k")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ReferencesError, match="dynamodb:t cannot be used .*credentials"):
            DynamoRecords("t").get("s", "k")


def test_a_place_is_named_by_its_uri(tmp_path: Path) -> None:
    assert open_records("dynamodb:caldp-ops-crds").uri == "dynamodb:caldp-ops-crds"
    with closing(open_records(f"sqlite:{tmp_path / 'x'}")) as opened:
        assert opened.uri == f"sqlite:{tmp_path / 'x'}"
    for wrong in ("", "sqlite:", "dynamodb:", "s3://b/x", "x"):
        with pytest.raises(UsageError, match="no place for records"):
            open_records(wrong)
