"""How the datasets of a batch stand, and the repair of its messages."""

from __future__ import annotations

import fcntl
import json
import math
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caldp import batch, batch_text, messages
from caldp.batch import ACTIONS, Change, Repaired, Survey, look, normalised, open_batch, repair, survey
from caldp.errors import (
    CaldpError,
    InputError,
    Interrupted,
    OutputError,
    ReferencesError,
    S3DownloadRefusedError,
    Stage1Error,
    UnsupportedError,
    UsageError,
)
from caldp.local_store import LocalStore
from caldp.messages import STATES, Status, advance, begin, read
from caldp.store import Blob, Create, Overwrite, PutMode, Store
from tests.fakes.stores import MemoryStore

FOLDERS = {state: folder for state, (_, folder) in STATES.items() if folder}
NAME = "ldfd01010"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Clocked(MemoryStore):
    """A store like a bucket, with a clock that stands still, that counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def clock(self) -> datetime:
        return NOW

    def get(self, key: str) -> Blob | None:
        self.reads.append(key)
        return super().get(key)


@pytest.fixture
def memory() -> Clocked:
    return Clocked()


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def names(count: int) -> list[str]:
    return [f"ldfd{number:05}" for number in range(count)]


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def shown(store: Store, dataset: str = NAME) -> dict[str, str]:
    """The messages of a dataset, by state."""
    found = {state: store.get(f"messages/{folder}/{dataset}") for state, folder in FOLDERS.items()}
    return {state: blob.data.decode() for state, blob in found.items() if blob}


def show(store: Store, state: str, dataset: str = NAME, text: str = "") -> None:
    store.put(f"messages/{FOLDERS[state]}/{dataset}", text.encode(), Overwrite())


def hide(store: Store, state: str, dataset: str = NAME) -> None:
    store.delete(f"messages/{FOLDERS[state]}/{dataset}")


def done(store: Store, *datasets: str, dry_run: bool = False) -> list[Change]:
    return [change for changes in repair(store, datasets, dry_run=dry_run) for change in changes]


def actions(changes: Iterable[Change]) -> list[tuple[str, str]]:
    return [(change.action, change.state) for change in changes]


# ---- counting


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(list(STATES)), min_size=1, max_size=40))
def test_every_dataset_is_counted_once(states: list[str]) -> None:
    store = Clocked()
    for dataset, state in zip(names(len(states)), states, strict=True):
        advance(store, Status(dataset, 1, state))
    found = survey(store)
    assert found.counts == {state: states.count(state) for state in STATES}
    assert list(found.counts) == list(STATES)
    assert (found.datasets, found.unread, found.damaged, found.unrecorded) == (len(states), 0, [], [])
    assert sum(cause.datasets for cause in found.causes) == states.count("error")


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["processed"], 0),
        (["processed", "synced", "archived"], 0),
        (["error"], 1),
        (["processed", "cancelled"], 1),
        (["placed"], 3),
        (["submitted"], 3),
        (["processing"], 3),
        (["processed", "error", "cancelled", "submitted"], 3),
    ],
)
def test_the_exit_status_is_3_while_anything_is_open(memory: Clocked, states: list[str], expected: int) -> None:
    for dataset, state in zip(names(len(states)), states, strict=True):
        advance(memory, Status(dataset, 1, state))
    found = survey(memory)
    assert found.exit_status == expected
    assert (found.open > 0, found.failed > 0) == (expected == 3, {"error", "cancelled"} & set(states) != set())
    for dataset, state in zip(names(len(states)), states, strict=True):
        alone = look(memory, dataset)
        assert alone.state == state
        assert (alone.exit_status == 0) == (state in ("processed", "synced", "archived"))
        assert (alone.exit_status == 3) == (state in ("placed", "submitted", "processing"))


def test_records_are_read_only_where_the_folders_do_not_tell(memory: Clocked) -> None:
    states = [*["processed"] * 20, *["submitted"] * 10, "error", "processing", "placed", "cancelled", "synced"]
    for dataset, state in zip(names(len(states)), states, strict=True):
        advance(memory, Status(dataset, 1, state, at=ago(1)))
    show(memory, "error", names(1)[0])  # as in the middle of a move
    memory.reads.clear()
    survey(memory)
    read = sorted(memory.reads)
    assert read == [f"messages/status/ldfd{number:05}.json" for number in (0, 30, 31, 32)]


def test_a_dataset_that_moves_is_counted_where_its_status_is(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "error"))
    show(memory, "processing")
    assert survey(memory).counts["error"] == 1
    hide(memory, "processing")
    hide(memory, "error")
    found = survey(memory)
    assert (found.counts["error"], found.datasets) == (1, 1)


def test_what_moves_between_the_listings_and_the_reading_is_counted_as_it_is_then(memory: Clocked) -> None:
    class Moving(Clocked):
        def names(self, prefix: str) -> list[str]:
            listed = super().names(prefix)
            if prefix == "messages/status":
                advance(self, Status(names(3)[0], 1, "processed"))  # was in error
                advance(self, Status(names(3)[1], 2, "error", reason="again", exit_code=23))  # was processing
                advance(self, Status("ldfd01999", 1, "submitted"))  # was not there
            return listed

    store = Moving()
    advance(store, Status(names(3)[0], 1, "error"))
    advance(store, Status(names(3)[1], 1, "processing"))
    advance(store, Status(names(3)[2], 1, "processed"))
    found = survey(store)
    assert {state: count for state, count in found.counts.items() if count and state != "submitted"} == {
        "error": 1,
        "processed": 2,
    }
    assert found.unrecorded == []
    assert [cause.reason for cause in found.causes] == ["again"]


def test_a_message_without_a_status_is_counted_and_named(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "processed"))
    show(memory, "processed", "ldfd01020")
    found = survey(memory)
    assert (found.counts["processed"], found.unrecorded) == (2, ["ldfd01020"])
    assert look(memory, "ldfd01020").state == "processed"
    assert "1\n  ldfd01020" in batch_text.survey_text(found)
    assert "no status record" in batch_text.standing_text(memory, look(memory, "ldfd01020"))


def test_what_the_downloader_and_the_archive_left_counts(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "processed"))
    show(memory, "synced", text="/archive/x.fits\n")
    assert survey(memory).counts["synced"] == 1  # the older name is still there
    hide(memory, "processed")
    assert survey(memory).counts["synced"] == 1
    assert look(memory, NAME).state == "synced"
    # A new attempt has begun, and its run was killed before it took the old message away.
    advance(memory, Status(NAME, 2, "processing"))
    show(memory, "synced")
    assert survey(memory).counts["processing"] == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"null", b"[]", b"{}", b'{"dataset": "ldfd01020", "attempt": 1, "state": "error"}',
     b'{"dataset": "ldfd01010", "attempt": 1, "state": ["error"]}'],
)  # fmt: skip
@pytest.mark.parametrize("state", ["", "error", "processing"])
def test_a_damaged_record_is_named_and_stops_nothing(memory: Clocked, body: bytes, state: str) -> None:
    advance(memory, Status("ldfd01030", 1, "processed"))
    memory.put(messages.status_key(NAME), body, Create())
    if state:
        show(memory, state)
    found = survey(memory)
    assert (found.damaged, found.counts["processed"], found.datasets, found.exit_status) == ([NAME], 1, 2, 1)
    with pytest.raises(OutputError, match="status/ldfd01010.json is"):
        look(memory, NAME)
    assert actions(done(memory)) == [("damaged", "")]


def test_strange_records_and_files_stop_nothing(local: LocalStore) -> None:
    strange: dict[str, Any] = {"dataset": NAME, "attempt": 1, "state": "error", "retry": 1}
    strange |= {"reason": 7, "run": None, "exit_code": "x", "by": ["y"], "at": 5, "history": ["z", {"a": 1}, 3]}
    local.put(messages.status_key(NAME), json.dumps(strange).encode(), Create())
    show(local, "error")
    (local.root / "messages" / "status" / "ldfd01020.json").mkdir()
    (local.root / "messages" / "dataset-error" / "somebodys-folder").mkdir()
    (local.root / "messages" / "notes").mkdir()
    (local.root / "messages" / "status" / "README").write_text("hello")
    found = survey(local)
    assert found.counts["error"] == 2
    assert found.damaged == ["ldfd01020"]
    assert [(cause.exit_code, cause.reason) for cause in found.causes] == [(None, "7")]
    batch_text.survey_text(found)
    json.loads(batch_text.survey_json(found))
    standing = look(local, NAME)
    batch_text.standing_text(local, standing)
    json.loads(batch_text.standing_json(local, standing))
    assert actions(done(local)) == [("damaged", "")]


@pytest.mark.parametrize("status", [None, {"state": "processing", "at": 3}, {"state": "synced", "message": 9}])
def test_strange_fields_in_a_repair(memory: Clocked, status: dict[str, Any] | None) -> None:
    advance(memory, Status(NAME, 1, "processed"))
    if status:
        record = {**(read(memory, NAME) or pytest.fail()).to_json(), **status, "history": [{"messages": 1}, 2]}
        memory.put(messages.status_key(NAME), json.dumps(record).encode(), Overwrite())
    done(memory)
    assert list(shown(memory)) == [(status or {"state": "processed"})["state"]]
    assert done(memory) == []


# ---- limits


@pytest.mark.parametrize(("count", "limit"), [(0, 3), (2, 3), (3, 3), (10, 3), (10, 0), (1000, 7)])
def test_a_sample_is_spread_over_the_names(count: int, limit: int) -> None:
    chosen = batch.spread(names(count), limit)
    assert len(chosen) == (min(count, limit) if limit else count)
    assert list(chosen) == sorted(set(chosen))
    if limit and count > 2 * limit:
        places = [int(name[4:]) for name in chosen]
        gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
        assert max(gaps) - min(gaps) <= 1


def test_no_more_than_the_limit_is_read_and_the_rest_still_counts(memory: Clocked) -> None:
    states = [state for state in ("error", "processing", "placed", "processed") for _ in range(10)]
    for dataset, state in zip(names(40), states, strict=True):
        advance(memory, Status(dataset, 1, state, reason="why", exit_code=23, at=ago(1000)))
    memory.reads.clear()
    found = survey(memory, limit=4)
    assert len(memory.reads) == 12
    assert found.counts == {**dict.fromkeys(STATES, 0), "error": 10, "processing": 10, "placed": 4, "processed": 10}
    assert (found.unread, found.datasets, found.errors_read, found.processing_read) == (6, 40, 4, 4)
    assert (found.causes[0].datasets, len(found.stale)) == (4, 4)
    assert found.exit_status == 3
    text = batch_text.survey_text(found)
    assert "(of 4 of 10, spread over the names)" in text
    assert "(of 4 of 10 runs)" in text
    assert "not read           6" in text
    everything = survey(memory, limit=0)
    assert (everything.unread, everything.errors_read, everything.counts["placed"]) == (0, 10, 10)


def test_more_messages_without_a_status_than_are_read(memory: Clocked) -> None:
    for dataset in names(10):
        show(memory, "processed", dataset)
    found = survey(memory, limit=3)
    assert (found.counts["processed"], found.unrecorded, found.exit_status) == (10, names(10), 0)


# ---- runs without a sign of life


@pytest.mark.parametrize(
    ("status", "stale", "silence"),
    [
        ({"beat": ago(10), "at": ago(9000)}, False, 10),
        ({"beat": ago(299)}, False, 299),
        ({"beat": ago(300)}, True, 300),
        ({"at": ago(10)}, False, 10),
        ({"at": ago(9000)}, True, 9000),
        ({"beat": ago(-5)}, False, -5),  # clocks differ a little
        ({"beat": "2026-11-22T12:00:00"}, True, math.inf),
        ({"beat": "now"}, True, math.inf),
    ],
)
def test_a_run_that_is_silent_is_stale(memory: Clocked, status: dict[str, str], stale: bool, silence: float) -> None:
    advance(memory, Status(NAME, 1, "processing", run="r", **status))
    standing = look(memory, NAME)
    assert (standing.stale, standing.silence) == (stale, silence)
    assert [s.dataset for s in survey(memory).stale] == ([NAME] if stale else [])
    assert look(memory, NAME, patience=20).stale == (silence >= 20)
    record = json.loads(batch_text.standing_json(memory, standing))
    assert record["silent_s"] == (None if silence == math.inf else silence)
    assert ("stale" in batch_text.standing_text(memory, standing)) == stale


@pytest.mark.parametrize("state", [state for state in STATES if state != "processing"])
def test_only_a_run_can_be_stale(memory: Clocked, state: str) -> None:
    advance(memory, Status(NAME, 1, state, at=ago(9000)))
    assert survey(memory).stale == []
    assert not look(memory, NAME).stale


def test_in_a_folder_the_lock_tells_and_looking_leaves_no_trace(local: LocalStore) -> None:
    with local.own(NAME):
        begin(local, NAME, "run")
        before = sorted(local.root.rglob("*"))
        assert survey(local).stale == []
        assert "its lock is held" in batch_text.standing_text(local, look(local, NAME))
    assert [s.dataset for s in survey(local).stale] == [NAME]
    (local.root / "messages" / ".locks").mkdir(exist_ok=True)
    (local.root / "messages" / ".locks" / f"{NAME}.owner").touch()  # of a run that was killed
    assert sorted(local.root.rglob("*")) == before
    assert look(local, NAME).stale
    assert look(local, NAME).silence is None
    assert sorted(local.root.rglob("*")) == before
    with (local.root / "messages" / ".locks" / f"{NAME}.owner").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)  # as somebody else does who looks
        assert look(local, NAME).stale
    with local.own(NAME):
        assert not look(local, NAME).stale


def test_a_run_that_ends_while_its_lock_is_looked_at_is_not_stale(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = begin(local, NAME, "run")

    def ends(store: Store, dataset: str) -> bool:
        advance(store, replace(mine, state="processed", at="", by=""))
        return False

    monkeypatch.setattr(batch, "_is_held", ends)
    assert (survey(local).counts["processed"], look(local, NAME).state) == (1, "processed")


# ---- causes


def failures(dataset: str, number: int) -> list[CaldpError]:
    return [
        ReferencesError(f"{dataset}: FLATFILE needs 05i1639ml_flat.fits, which is not in /grp/crds/cache{number}/hst"),
        Stage1Error(f"{dataset}: calcos failed (exit status {number})", remedy=f"see data/cos/{dataset}/logs/x.txt"),
        InputError(f"{dataset}: no {dataset}_raw*.fits in s3://bucket-{number}/in/{dataset}", remedy="put them there"),
        InputError(f"{dataset}: file ldfd{number:05}_rawtag_a.fits.gz: CRC {number}.{number} at {number}, 0x1f"),
        Stage1Error(f"{dataset}: killed after {number} s, {number},{number} MB"),
        Interrupted(15),
    ]  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 99999), min_size=2, max_size=6, unique=True))
def test_the_same_failure_of_many_datasets_is_one_cause(numbers: list[int]) -> None:
    store = Clocked()
    for number in numbers:
        for kind in range(6):
            dataset = f"l{kind}{number:07}"
            status = Status(dataset, 1, "processing", run=f"{number:012x}")
            advance(store, status.failed(failures(dataset, number)[kind]))
    found = survey(store)
    assert [cause.datasets for cause in found.causes] == [len(numbers)] * 6
    assert {cause.exit_code for cause in found.causes} == {21, 23, 27, 143}
    assert all(len(cause.examples) == min(len(numbers), 3) for cause in found.causes)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (f"{NAME}: unknown CRDS context hst_9999.pmap", "unknown CRDS context hst_#.pmap"),
        (f"{NAME}: no LDFD01010_raw.fits", "no <dataset>_raw.fits"),
        ("acs_8bt_05: runsinglehap failed (exit status 9)", "acs_#bt_#: runsinglehap failed (exit status #)"),
        ("see data/cos/ldfd01010/logs/process.txt", "see data/cos/<dataset>/logs/process.txt"),
        ("the CRDS cache /grp/crds/cache cannot be written", "the CRDS cache <path> cannot be written"),
        ("/a/b.fits: not FITS; and ~/x.fits", "<path>: not FITS; and <path>"),
        ("s3://b/in/x.tar.gz: access denied", "<path>: access denied"),
        ("is https://hst-crds.stsci.edu:443/x well?", "is <path> well?"),
        ("calwf3.e, cs0.e, x1d, G140L and S3: and/or", "calwf3.e, cs0.e, x1d, G140L and S3: and/or"),
        ("05i1639ml_flat.fits is damaged: 12 bytes", "05i1639ml_flat.fits is damaged: # bytes"),
        ("peak 1.4GB, 12ms, 1,200 of 1e-05", "peak #GB, #ms, # of #"),
        ("since 2026-11-22T00:42:36.802Z", "since #"),
        ("of member ldfd01vlq and icaw01q2q", "of member <dataset> and <dataset>"),
        ("installed, operation, interrupt", "installed, operation, interrupt"),
        ("\x1b[31mred\x07\u202e", "red"),
        ("", ""),
    ],
)
def test_what_is_taken_out_of_a_reason(reason: str, expected: str) -> None:
    assert normalised(reason, NAME)[1] == expected
    assert normalised(expected, NAME)[1] == expected


def test_the_names_of_a_mosaic_are_taken_out() -> None:
    reason = "acs_8bt_05: no j8bt05_drz.fits, run abcdef"
    assert normalised(reason, "acs_8bt_05", "abcdef") == ("no <dataset>_drz.fits, run <id>",) * 2


@given(st.text(), st.text(max_size=20), st.text(max_size=20))
def test_any_reason_can_be_normalised(reason: str, dataset: str, run: str) -> None:
    plain, pattern = normalised(reason, dataset, run)
    assert "\n" not in plain + pattern


def test_what_all_reasons_have_in_common_is_shown(memory: Clocked) -> None:
    for dataset, context in zip(names(5), ("hst_0001", "hst_0001", "hst_0001", "hst_0002", "hst_0002"), strict=True):
        advance(memory, Status(dataset, 1, "error", reason=f"{dataset}: unknown {context}.pmap", exit_code=27))
    causes = survey(memory).causes
    assert [(c.exit_code, c.name, c.reason, c.datasets, c.examples) for c in causes] == [
        (27, "BESTREFS_ERROR", "unknown hst_#.pmap", 5, tuple(names(3)))
    ]
    for dataset in names(5)[3:]:
        advance(memory, Status(dataset, 1, "processed"))
    assert [cause.reason for cause in survey(memory).causes] == ["unknown hst_0001.pmap"]


def test_failures_differ_by_exit_status_and_come_by_frequency(memory: Clocked) -> None:
    for dataset, code in zip(names(6), (21, 23, 23, 23, None, 99), strict=True):
        advance(memory, Status(dataset, 1, "error", reason="broken", exit_code=code))
    causes = [(cause.exit_code, cause.name, cause.datasets) for cause in survey(memory).causes]
    assert causes[0] == (23, "STAGE1_ERROR", 3)
    assert sorted(causes[1:], key=str) == [(21, "INPUT_TAR_FILE_ERROR", 1), (99, "", 1), (None, "", 1)]


# ---- what people see


def long_survey(count: int = 30) -> Survey:
    found = Survey("s3://a-bucket-with-a-long-name/batch-22", 300.0, "2026-11-22T12:00:00.000Z")
    found.counts |= {"processed": 99_000, "error": 999, "placed": 1}
    found.causes = [
        batch.Cause(
            27, "BESTREFS_ERROR", f"unknown CRDS context of the kind {number}; " * 6, 900 - number, ("ldfd01010",)
        )
        for number in range(count)
    ]
    found.errors_read = 999
    found.damaged = names(count)
    found.unrecorded = names(count)
    status = Status(NAME, 12, "processing", by="ip-10-0-123-234.us-west-2.compute.internal:12345")
    found.stale = [batch.Standing(NAME, "processing", status, ("processing",), 4000.0, True)] * count
    return found


def test_the_table_is_readable_at_80_columns() -> None:
    lines = click.unstyle(batch_text.survey_text(long_survey())).splitlines()
    assert max(map(len, lines)) <= 100  # a long host
    assert max(len(line) for line in lines if "internal" not in line) <= 80
    assert len(lines) < 170
    rows = dict(line.split(maxsplit=1) for line in lines[2 : lines.index("Errors by cause")] if "  " in line.strip())
    assert rows["processed"].split() == ["99,000", "98.9", "%"]
    assert rows["placed"].split() == ["1", "<0.1", "%"]
    assert rows["synced"].split() == ["0"]
    assert rows["datasets"] == "100,030"
    assert len({line.index("%") for line in lines[: lines.index("Errors by cause")] if "%" in line}) == 1
    assert sum("... and 10 more" in line for line in lines) == 4
    assert lines[-1].startswith("1 still open; 1,029 failed; 30 stale")


@pytest.mark.parametrize(
    ("count", "of", "expected"),
    [(0, 10, ""), (10, 10, "100.0 %"), (9999, 10000, "99.9 %"), (1, 10000, "<0.1 %"), (1, 3, "33.3 %")],
)  # fmt: skip
def test_a_share_is_not_rounded_up(count: int, of: int, expected: str) -> None:
    assert batch_text.share_text(count, of) == expected


def test_a_batch_that_is_done_says_so(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "processed"))
    assert batch_text.survey_text(survey(memory)).endswith("All are processed.")


def test_the_history_is_one_line_an_entry(memory: Clocked) -> None:
    mine = begin(memory, NAME, "run1")
    advance(memory, mine.failed(InputError(f"{NAME}: no files\nwhatsoever \x1b[31m" + "x" * 100)))
    advance(memory, Status(NAME, 2, "processing", run="run2", retry=3, job="job-1"))
    text = batch_text.standing_text(memory, look(memory, NAME))
    history = text.partition("History (UTC)\n")[2].splitlines()
    assert [line.split()[2:4] for line in history] == [["1", "processing"], ["1", "error"], ["2", "start"]]
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b[31mx" not in text
    whole = batch_text.standing_text(memory, look(memory, NAME), cut=False)
    assert "x" * 100 in whole
    for word in ("attempt    2, start 3", "job        job-1", "run        run2", "memory:data/cos/ldfd01010"):
        assert word in whole


def test_the_keys_for_machines_are_these(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "processing", at=ago(9000)))
    advance(memory, Status("ldfd01020", 1, "error", reason="why", exit_code=23))
    found = json.loads(batch_text.survey_json(survey(memory)))
    assert list(found) == [
        "batch", "at", "datasets", "counts", "open", "failed", "done", "errors", "errors_read", "stale",
        "processing_read", "unrecorded", "damaged", "unread", "exit_status",
    ]  # fmt: skip
    assert list(found["errors"][0]) == ["exit_code", "name", "reason", "datasets", "examples"]
    assert list(found["stale"][0]) == ["dataset", "attempt", "run", "by", "at", "silent_s"]
    standing = json.loads(batch_text.standing_json(memory, look(memory, "ldfd01020")))
    assert list(standing) == [
        "batch", "dataset", "state", "attempt", "retry", "reason", "exit_code", "name", "run", "job", "by", "at",
        "beat", "silent_s", "stale", "location", "recorded", "folders", "message", "history", "exit_status",
    ]  # fmt: skip
    assert (standing["name"], standing["folders"], standing["exit_status"]) == ("STAGE1_ERROR", ["dataset-error"], 1)
    told = Repaired()
    told.add([Change(NAME, "created", "processed")])
    record = json.loads(told.to_json(memory))
    assert list(record) == ["batch", "dry_run", "datasets", "counts", "changes", "exit_status"]
    assert list(record["counts"]) == list(ACTIONS)
    assert record["changes"][0] == {
        "dataset": NAME,
        "action": "created",
        "folder": "datasets-processed",
        "state": "processed",
        "note": "",
    }


# ---- many at a time


def test_the_answers_come_in_order_and_a_failure_stops_what_has_not_begun() -> None:
    assert list(batch.in_threads(lambda number: 2 * number, range(2500))) == list(range(0, 5000, 2))
    begun: list[int] = []

    def act(number: int) -> int:
        begun.append(number)
        if number == 20:
            raise KeyError(number)
        time.sleep(0.001)
        return number

    with pytest.raises(KeyError):
        list(batch.in_threads(act, range(900)))
    before = len(begun)
    assert before < 900
    time.sleep(0.05)
    assert len(begun) == before


def test_ctrl_c_does_not_wait_for_a_server_that_is_silent() -> None:
    answer, asked = threading.Event(), threading.Event()

    def ask(_: int) -> None:
        asked.set()
        answer.wait(60)

    def interrupt() -> None:
        asked.wait(30)
        # As a terminal does: to the thread that waits. One that this thread sent to itself would not wake it.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    begun = time.monotonic()
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(batch.in_threads(ask, range(100)))
        assert time.monotonic() - begun < 20
    finally:
        answer.set()


# ---- which batch, which dataset


def test_a_batch_is_a_path_or_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUT").mkdir()
    for place in ("OUT", "file:OUT", f"file:{tmp_path}/OUT", str(tmp_path / "OUT"), "./OUT/"):
        assert open_batch(place).url() == str(tmp_path / "OUT")
    assert open_batch("s3://bucket/batch-22/").url() == "s3://bucket/batch-22"


@pytest.mark.parametrize(
    "place", ["", "nowhere", "file:nowhere", "a-file", "astroquery:", "s3:bucket", "s3://", "a\0b"]
)
def test_a_place_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    with pytest.raises(UsageError) as caught:
        open_batch(place)
    assert caught.value.remedy


@pytest.mark.parametrize("folder", ["", "messages", "messages/dataset-error", "messages/.locks", "data/cos"])
def test_a_directory_without_datasets_is_no_batch(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    store = LocalStore(tmp_path)
    with pytest.raises(UsageError, match="is no batch"):
        survey(store)
    with pytest.raises(UsageError, match="is no batch"):
        done(store)
    with pytest.raises(UsageError, match="does not know it"):
        look(store, NAME)


def test_a_dataset_is_known_by_its_name(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "processed"))
    assert look(memory, "LDFD01010").dataset == NAME
    for wrong in ("../../x", "", "ldfd0101"):
        with pytest.raises(UsageError, match="is not an HST dataset name"):
            look(memory, wrong)
    with pytest.raises(UnsupportedError):
        look(memory, "u2ab0101t")


# ---- repair


class Killed(BaseException):
    """The repair is killed."""


class Dying(MemoryStore):
    """A store whose user is killed at the n-th thing that it does; ``delete`` is one for each key."""

    def __init__(self, objects: dict[str, bytes], at: int, after: bool) -> None:
        super().__init__()
        self.objects = objects
        self.left, self.after = at, after

    def _write(self, act: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        result = act()
        if self.left == 0:
            raise Killed
        return result

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        return str(self._write(lambda: MemoryStore.put(self, key, data, mode)))

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._write(lambda key=key: MemoryStore.delete(self, key))  # type: ignore[misc]


def expected(status: Status, there: Iterable[str]) -> dict[str, str]:
    """What a repair has to show: independent of how it does it."""
    state = status.state
    if state in ("processed", "synced") and "archived" in there:
        state = "archived"
    elif state == "processed" and "synced" in there:
        state = "synced"
    return {state: ""} if state in FOLDERS else {}


OPERATIONS = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from(list(STATES)), st.integers(1, 3)),
    st.tuples(st.just("hide"), st.sampled_from(list(FOLDERS)), st.just(0)),
    st.tuples(st.just("show"), st.sampled_from(list(FOLDERS)), st.just(0)),
    st.tuples(st.just("killed"), st.booleans(), st.integers(1, 4)),
    st.tuples(st.just("repair"), st.none(), st.just(0)),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(OPERATIONS, max_size=25))
def test_whatever_happened_a_repair_leaves_one_message_with_the_right_body(operations: list[Any]) -> None:
    store = Clocked()
    advance(store, Status(NAME, 1, "submitted"))
    for operation, what, number in [*operations, ("repair", None, 0)]:
        if operation == "advance":
            text = f"/archive/{number}.fits\n" if what in ("synced", "archived") else ""
            advance(store, Status(NAME, number, what, message=text))
        elif operation == "hide":
            hide(store, what)
        elif operation == "show" and what not in shown(store):
            show(store, what)
        elif operation == "killed":
            try:
                done(Dying(store.objects, number, what))
            except Killed:
                pass
        elif operation == "repair":
            before, status = shown(store), read(store, NAME) or pytest.fail()
            record = store.get(messages.status_key(NAME))
            planned = done(store, dry_run=True)
            assert shown(store) == before
            assert done(store) == planned
            after = shown(store)
            assert list(after) == list(expected(status, before))
            for state, text in after.items():
                if state in before:
                    assert text == before[state]
                elif state == "archived" and "synced" in before:
                    assert text == before["synced"]
                else:
                    assert text == status.message
            assert store.get(messages.status_key(NAME)) == record
            assert done(store) == []
            assert survey(store).counts[next(iter(after), "placed")] == 1


def broken() -> MemoryStore:
    """A store with messages that are missing, left over, or twice there."""
    store = MemoryStore()
    for dataset in names(4):
        advance(store, Status(dataset, 1, "processing"))
    advance(store, Status(names(4)[0], 1, "synced", message="/archive/x.fits\n"))
    hide(store, "synced", names(4)[0])
    show(store, "processing", names(4)[0])
    show(store, "processed", names(4)[0])
    advance(store, Status(names(4)[1], 1, "processed"))
    show(store, "error", names(4)[1])
    hide(store, "processing", names(4)[2])
    return store


@pytest.mark.parametrize("after", [False, True])
def test_a_repair_may_be_killed_at_any_write(after: bool) -> None:
    right = broken()
    writes = len(done(right))
    assert writes == 5
    for at in range(1, writes + 1):
        store = broken()
        with pytest.raises(Killed):
            done(Dying(store.objects, at, after))
        for dataset in names(4):
            assert survey(store).datasets == 4
            assert shown(store, dataset) or dataset in (names(4)[0], names(4)[2])
        done(store)
        assert store.objects.keys() == right.objects.keys()
        assert [shown(store, name) for name in names(4)] == [
            {"synced": "/archive/x.fits\n"},
            {"processed": ""},
            {"processing": ""},
            {"processing": ""},
        ]


def test_a_dry_run_tells_the_same_and_changes_nothing() -> None:
    store = broken()
    before = dict(store.objects)
    planned = done(store, dry_run=True)
    assert store.objects == before
    assert planned == done(broken())
    assert [str(change) for change in planned[:2]] == [
        "created  messages/dataset-synced/ldfd00000",
        "removed  messages/dataset-processing/ldfd00000  (it is synced)",
    ]


def test_only_the_datasets_that_were_asked_for_are_repaired() -> None:
    store = broken()
    changed = {change.dataset for change in done(store, names(4)[2].upper(), names(4)[3], names(4)[3])}
    assert changed == {names(4)[2]}
    before = dict(store.objects)
    with pytest.raises(UsageError, match="ldfd09999: memory: does not know it"):
        done(store, names(4)[0], "ldfd09999")
    with pytest.raises(UsageError, match="is not an HST dataset name"):
        done(store, names(4)[0], "../x")
    assert store.objects == before


def test_a_message_without_a_status_stays(memory: Clocked) -> None:
    advance(memory, Status("ldfd01020", 1, "processed"))
    show(memory, "error")
    before = dict(memory.objects)
    assert actions(done(memory)) == [("unrecorded", "error")]
    assert actions(done(memory, NAME)) == [("unrecorded", "error")]
    assert memory.objects == before


def test_a_damaged_status_stays_and_the_others_are_repaired(memory: Clocked) -> None:
    advance(memory, Status("ldfd01020", 1, "processed"))
    hide(memory, "processed", "ldfd01020")
    memory.put(messages.status_key(NAME), b"{", Create())
    show(memory, "error")
    told = Repaired()
    for changes in repair(memory):
        told.add(changes)
    assert actions(told.changes) == [("damaged", ""), ("created", "processed")]
    assert told.changes[0].note.startswith("memory:messages/status/ldfd01010.json is not a status record")
    assert told.exit_status == 1
    assert str(told) == "2 datasets: 1 created, 1 damaged"
    assert shown(memory) == {"error": ""}


def test_a_text_that_is_kept_nowhere_else_stays(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "processed"))
    show(memory, "error", text="somebody's notes")
    assert actions(done(memory)) == [("unsaved", "error")]
    assert shown(memory)["error"] == "somebody's notes"
    advance(memory, Status(NAME, 2, "processing"))
    show(memory, "synced", text="/archive/late.fits\n")  # a downloader that was slow
    assert actions(done(memory)) == [("unsaved", "synced")]
    advance(memory, Status(NAME, 2, "error"))  # takes it into the history
    show(memory, "synced", text="/archive/late.fits\n")
    assert actions(done(memory)) == [("removed", "synced")]


def test_the_text_of_an_archived_dataset_is_found_again(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "synced", message="/archive/x.fits\n"))
    advance(memory, Status(NAME, 1, "archived"))
    hide(memory, "archived")
    done(memory)
    assert shown(memory) == {"archived": "/archive/x.fits\n"}
    advance(memory, Status(NAME, 2, "synced"))
    hide(memory, "synced")
    done(memory)
    assert shown(memory) == {"synced": ""}  # not what the attempt before said


def test_a_message_that_was_on_its_way_to_the_archive_keeps_its_text(memory: Clocked) -> None:
    advance(memory, Status(NAME, 1, "archived"))
    hide(memory, "archived")
    show(memory, "synced", text="/archive/x.fits\n")  # of a downloader that writes no status
    assert actions(done(memory)) == [("created", "archived"), ("removed", "synced")]
    assert shown(memory) == {"archived": "/archive/x.fits\n"}


def test_what_s3_refuses_ends_a_repair(memory: Clocked) -> None:
    class Refusing(MemoryStore):
        def get(self, key: str) -> Blob | None:
            raise S3DownloadRefusedError("access denied")

    store = Refusing()
    store.objects = broken().objects
    for act in (survey, done):
        with pytest.raises(S3DownloadRefusedError):
            act(store)  # type: ignore[operator]


# ---- beside runs

#: What happens to a dataset, one after the other.
LIFE = [
    Status(NAME, 1, "processing", run="a"),
    Status(NAME, 1, "error", run="a"),
    Status(NAME, 2, "processing", run="b"),
    Status(NAME, 2, "processed", run="b"),
    Status(NAME, 2, "synced", run="c", message="/archive/x.fits\n"),
    Status(NAME, 2, "archived", run="c"),
    Status(NAME, 3, "processing", run="d"),
]


class Meddled(MemoryStore):
    """A store on which something else happens before its n-th call."""

    def __init__(self, objects: dict[str, bytes], at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.objects = objects
        self.left, self.act = at, act
        self._turn = threading.Lock()

    def _meddle(self) -> None:
        with self._turn:
            self.left -= 1
            if self.left == 0:
                self.act()

    def get(self, key: str) -> Blob | None:
        self._meddle()
        return super().get(key)

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        self._meddle()
        return super().put(key, data, mode)

    def delete(self, *keys: str) -> None:
        self._meddle()
        super().delete(*keys)

    def names(self, prefix: str) -> list[str]:
        self._meddle()
        return super().names(prefix)


@pytest.mark.parametrize("stage", range(1, len(LIFE)))
@pytest.mark.parametrize("damage", ["hidden", "twice", "ahead", "right"])
def test_a_dataset_may_advance_at_any_moment_of_a_repair(stage: int, damage: str) -> None:
    moments = 0
    for at in range(1, 100):
        store = MemoryStore()
        for status in LIFE[:stage]:
            advance(store, status)
        if damage == "hidden":
            hide(store, LIFE[stage - 1].state)
        elif damage == "twice":
            show(store, "submitted")
        elif damage == "ahead":
            show(store, LIFE[stage].state)
        meddled = Meddled(store.objects, at, lambda store=store: advance(store, LIFE[stage]))  # type: ignore[misc]
        changes = done(meddled)
        if meddled.left > 0:
            break
        # Not even for a moment is it nowhere.
        assert damage == "ahead" or ("removed", LIFE[stage].state) not in actions(changes)
        moments += 1
        text = "/archive/x.fits\n" if LIFE[stage].state in ("synced", "archived") else ""
        if text and damage in ("hidden", "ahead"):
            text = shown(store)[LIFE[stage].state]  # it was there, or what it is moved from was not
        assert shown(store) == {LIFE[stage].state: text}, at
        assert survey(store).counts[LIFE[stage].state] == 1
    assert moments >= (4 if damage == "right" else 12)


@pytest.mark.parametrize("stage", range(1, len(LIFE)))
def test_a_repair_may_come_at_any_moment_of_an_advance(stage: int) -> None:
    for at in range(1, 100):
        store = MemoryStore()
        for status in LIFE[:stage]:
            advance(store, status)
        meddled = Meddled(store.objects, at, lambda store=store: done(store))  # type: ignore[misc]
        advance(meddled, LIFE[stage])
        if meddled.left > 0:
            return
        text = "/archive/x.fits\n" if LIFE[stage].state in ("synced", "archived") else ""
        assert shown(store) == {LIFE[stage].state: text}, at


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_repairs_and_surveys_beside_runs_never_leave_a_wrong_message(kind: str) -> None:
    folder = Path(tempfile.mkdtemp())
    store: Store = MemoryStore() if kind == "memory" else LocalStore(folder)
    over = threading.Event()
    troubles: list[BaseException] = []
    chance = random.Random(1)  # noqa: S311 - no secret
    advance(store, Status("ldfd01999", 1, "processed"))

    def watch(act: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                act()
        except BaseException as error:  # noqa: BLE001 - told below
            troubles.append(error)

    def damage() -> None:
        dataset, state = chance.choice(names(6)), chance.choice(list(FOLDERS))
        chance.choice([hide, show])(store, state, dataset)

    watchers = [threading.Thread(target=watch, args=(act,)) for act in (lambda: done(store), lambda: survey(store))]
    damaging = threading.Thread(target=watch, args=(damage,))
    for thread in (*watchers, damaging):
        thread.start()
    try:
        for turn in range(6 if kind == "memory" else 2):
            for status in LIFE[:4]:
                for dataset in names(6):
                    advance(store, replace(status, dataset=dataset, attempt=status.attempt + 2 * turn))
    finally:
        over.set()
        for thread in (*watchers, damaging):
            thread.join()
    try:
        assert not troubles
        # What was damaged is repaired, and what the runs made is not taken away.
        done(store)
        for dataset in names(6):
            there = shown(store, dataset)
            assert list(there) in (["processed"], ["synced"], ["archived"])  # a handed-on message may be the damage
        assert done(store) == []
    finally:
        shutil.rmtree(folder)
