"""The state of a dataset only moves forward."""

from __future__ import annotations

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldp import messages
from caldp.errors import BusyError, CaldpError, InputError
from caldp.local_store import LocalStore
from caldp.messages import HISTORY, STATES, Status, advance, begin, check_owner, project, read
from caldp.store import Blob, Create, Overwrite

NAME = "ldfd01010"
PROJECTED = {state: folder for state, (_, folder) in STATES.items() if folder}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def shown(store: LocalStore, dataset: str = NAME) -> list[str]:
    """Folders of messages/ that show the dataset."""
    return sorted(p.parent.name for p in store.root.glob(f"messages/*/{dataset}"))


def stored(store: LocalStore) -> Status:
    status = read(store, NAME)
    assert status is not None
    return status


STATUSES = st.lists(
    st.builds(Status, st.just(NAME), st.integers(1, 4), st.sampled_from(list(STATES)), st.just("run")),
    min_size=1,
    max_size=10,
)


@settings(max_examples=30, deadline=None)
@given(STATUSES.flatmap(lambda statuses: st.permutations(statuses + statuses[:3])))
def test_any_order_of_news_ends_in_the_highest(news: list[Status]) -> None:
    folder = tempfile.mkdtemp()
    try:
        store = LocalStore(Path(folder))
        for status in news:
            before = read(store, NAME)
            after, written = advance(store, status)
            assert written == (before is None or status.order > before.order)
            assert after == stored(store)
            expected = STATES[after.state][1]
            assert shown(store) == ([expected] if expected else [])
        assert stored(store).order == max(s.order for s in news)
        orders = [(h["attempt"], STATES[h["state"]][0]) for h in stored(store).history]
        assert orders == sorted(set(orders))
    finally:
        shutil.rmtree(folder)


def test_the_directories_are_those_of_the_readme() -> None:
    assert PROJECTED["processed"] == "datasets-processed"
    assert PROJECTED["synced"] == "dataset-synced"
    assert PROJECTED["archived"] == "dataset-archived"
    assert PROJECTED["error"] == "dataset-error"


def test_a_processed_message_is_an_empty_file(store: LocalStore) -> None:
    advance(store, Status(NAME, 1, "processed"))
    assert (store.root / "messages" / "datasets-processed" / NAME).read_bytes() == b""


def test_history_is_bounded(store: LocalStore) -> None:
    for attempt in range(1, HISTORY + 11):
        advance(store, Status(NAME, attempt, "error", reason=f"attempt {attempt}"))
    history = stored(store).history
    assert [h["attempt"] for h in history] == list(range(11, HISTORY + 11))
    assert history[-1]["reason"] == f"attempt {HISTORY + 10}"
    assert len(json.dumps(stored(store).to_json())) < 20_000


@pytest.mark.parametrize("body", [b"", b"/archive/ldfd01010_x1dsum.fits\n"])
def test_an_existing_body_is_kept(store: LocalStore, body: bytes) -> None:
    advance(store, Status(NAME, 1, "processed"))
    store.put(f"messages/dataset-synced/{NAME}", body, Create())
    advance(store, Status(NAME, 1, "synced"))
    assert (store.get(f"messages/dataset-synced/{NAME}") or pytest.fail()).data == body
    assert shown(store) == ["dataset-synced"]


def test_what_the_downloader_wrote_is_left_alone_by_a_repair_and_recorded_by_a_new_attempt(store: LocalStore) -> None:
    status, _ = advance(store, Status(NAME, 1, "processed", run="r"))
    store.put(f"messages/dataset-synced/{NAME}", b"/archive/x.fits\n", Overwrite())
    store.delete(f"messages/datasets-processed/{NAME}")
    advance(store, status)
    assert shown(store) == ["dataset-synced"]
    begin(store, NAME, "again")
    assert shown(store) == ["dataset-processing"]
    latest = read(store, NAME) or pytest.fail()
    assert latest.history[-1]["messages"] == {"dataset-synced": "/archive/x.fits\n"}


def test_the_paths_to_archive_are_preserved_when_archived(store: LocalStore) -> None:
    # README: "The archive can acknowledge archive completion here, file contents should be preserved."
    advance(store, Status(NAME, 1, "synced"))
    store.put(f"messages/dataset-synced/{NAME}", b"/archive/x.fits\n", Overwrite())
    advance(store, Status(NAME, 1, "archived"))
    assert (store.get(f"messages/dataset-archived/{NAME}") or pytest.fail()).data == b"/archive/x.fits\n"
    assert shown(store) == ["dataset-archived"]


def test_late_news_of_an_older_attempt_change_nothing(store: LocalStore) -> None:
    advance(store, Status(NAME, 2, "processing", run="new"))
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    for state in STATES:
        status, written = advance(store, Status(NAME, 1, state, run="old"))
        assert (status.run, written) == ("new", False)
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


def test_eight_threads_race(store: LocalStore) -> None:
    news = [Status(NAME, attempt, state) for attempt in (1, 2) for state in ("processing", "error", "processed")]
    for round_ in range(10):
        name = f"ldfd010{round_:02}"
        together = Barrier(8)

        def push(number: int, name: str = name, together: Barrier = together) -> None:
            together.wait()
            for status in news[number % 6 :] + news[: number % 6]:
                advance(store, replace(status, dataset=name))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(push, range(8)))
        status = read(store, name)
        assert status is not None
        assert status.order == (2, 1, STATES["processed"][0])
        assert shown(store, name) == ["datasets-processed"]


class Overtaken(LocalStore):
    """A store on which another run is faster, once, between the status and its projection."""

    def __init__(self, root: Path, later: Status) -> None:
        super().__init__(root)
        self.later: Status | None = later

    def get(self, key: str) -> Blob | None:
        if key.startswith("messages/dataset") and self.later is not None:
            later, self.later = self.later, None
            advance(LocalStore(self.root), later)
        return super().get(key)


def test_a_slow_writer_does_not_show_an_old_state(tmp_path: Path) -> None:
    store = Overtaken(tmp_path, Status(NAME, 1, "processed"))
    advance(store, Status(NAME, 1, "processing"))
    assert stored(store).state == "processed"
    assert shown(store) == ["datasets-processed"]


def test_projections_can_be_made_again(store: LocalStore) -> None:
    advance(store, Status(NAME, 1, "processed"))
    for path in store.root.glob(f"messages/*/{NAME}"):
        path.unlink()
    store.put(f"messages/dataset-processing/{NAME}", b"", Create())  # killed before it was projected
    project(store, stored(store))
    assert shown(store) == ["datasets-processed"]


def test_the_same_news_again_repair_the_projection(store: LocalStore) -> None:
    # A run killed between the status and its projection: --existing skip says the same once more.
    status, _ = advance(store, Status(NAME, 1, "processed"))
    store.delete(f"messages/datasets-processed/{NAME}")
    store.put(f"messages/dataset-processing/{NAME}", b"", Create())
    assert advance(store, status) == (status, False)
    assert shown(store) == ["datasets-processed"]


@pytest.mark.parametrize(
    ("last", "attempt"),
    [
        (None, 1),
        ((1, "placed"), 1),
        ((3, "submitted"), 3),
        ((1, "processing"), 2),
        ((1, "error"), 2),
        ((2, "cancelled"), 3),
        ((1, "processed"), 2),
        ((4, "archived"), 5),
    ],
)
def test_begin_counts_attempts(store: LocalStore, last: tuple[int, str] | None, attempt: int) -> None:
    if last is not None:
        advance(store, Status(NAME, *last, run="old"))
    status = begin(store, NAME, "new")
    assert (status.attempt, status.state, status.run) == (attempt, "processing", "new")
    assert status == stored(store)
    assert shown(store) == ["dataset-processing"]
    assert status.at.endswith("Z")
    assert ":" in status.by


def test_begin_gives_way_to_a_run_that_was_faster(tmp_path: Path) -> None:
    class Raced(LocalStore):
        raced = False

        def get(self, key: str) -> Blob | None:
            blob = super().get(key)
            if not self.raced:
                self.raced = True
                advance(LocalStore(self.root), Status(NAME, 1, "processing", run="faster"))
            return blob

    with pytest.raises(BusyError, match=NAME):
        begin(Raced(tmp_path), NAME, "slower")
    assert stored(LocalStore(tmp_path)).run == "faster"


def test_an_error_says_why(store: LocalStore) -> None:
    mine = begin(store, NAME, "run1")
    advance(store, mine.failed(InputError("no files", remedy="add them")))
    status = stored(store)
    assert (status.state, status.exit_code, status.reason) == ("error", 21, "no files; add them")
    assert not status.done
    assert [h["state"] for h in status.history] == ["processing", "error"]
    assert status.history[0]["at"] <= status.history[1]["at"]


@pytest.mark.parametrize("state", STATES)
def test_json_round_trip(store: LocalStore, state: str) -> None:
    status, _ = advance(store, Status(NAME, 3, state, "run1", "why", 5))
    assert Status.from_json(json.loads(json.dumps(status.to_json()))) == status
    assert Status.from_json({**status.to_json(), "unknown": 1}) == status
    assert status.done == (state in ("processed", "synced", "archived"))
    assert str(status) == f"{NAME}: {state}, attempt 3 (why)"


def test_ownership_is_lost_by_a_later_attempt(store: LocalStore) -> None:
    mine = begin(store, NAME, "mine")
    check_owner(store, mine)
    begin(store, NAME, "other")
    with pytest.raises(BusyError, match="taken over"):
        check_owner(store, mine)


def test_ownership_of_a_status_that_somebody_removed(store: LocalStore) -> None:
    mine = begin(store, NAME, "mine")
    store.delete(messages.status_key(NAME))
    with pytest.raises(BusyError, match="taken over"):
        check_owner(store, mine)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"null", b"[]", b"7", b"{}", b'{"dataset": "x", "attempt": 1, "state": "bogus"}',
     b'{"dataset": "x", "attempt": "1", "state": "error"}'],
)  # fmt: skip
def test_a_damaged_status_is_named(store: LocalStore, body: bytes) -> None:
    store.put(messages.status_key(NAME), body, Create())
    with pytest.raises(CaldpError, match=r"status/ldfd01010\.json is not a status record"):
        begin(store, NAME, "run1")


def test_datasets_do_not_disturb_each_other(store: LocalStore) -> None:
    begin(store, NAME, "run1")
    advance(store, Status("ldfd0101", 1, "processed"))
    assert shown(store) == ["dataset-processing"]
    assert shown(store, "ldfd0101") == ["datasets-processed"]
