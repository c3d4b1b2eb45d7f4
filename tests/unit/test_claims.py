"""Who may begin a dataset where no lock tells: heartbeats, attempts that a submitter has counted, take-over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from caldp import messages
from caldp.errors import BusyError, CaldpError, DuplicateError, InputError, S3DownloadError
from caldp.heartbeat import beating
from caldp.local_store import LocalStore
from caldp.messages import Claim, Status, advance, beat, begin, check_owner, read
from caldp.store import Blob, ConflictError, PutMode
from tests.fakes.stores import FlakyStore, MemoryStore

NAME = "ldfd01010"


class Bucket(MemoryStore):
    """Memory whose clock a test moves."""

    time = datetime(2026, 1, 1, tzinfo=UTC)

    def clock(self) -> datetime:
        return self.time

    def later(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def store() -> Bucket:
    return Bucket()


def stored(store: MemoryStore) -> Status:
    return read(store, NAME) or pytest.fail("no status")


# ---- runs that count for themselves


def test_a_live_run_keeps_others_out_until_it_has_been_silent_for_too_long(store: Bucket) -> None:
    mine = begin(store, NAME, "first")
    assert mine.beat == "2026-01-01T00:00:00.000Z"
    store.later(299)
    with pytest.raises(BusyError, match=r"ldfd01010.*nothing was changed; .*300 s.*--take-over"):
        begin(store, NAME, "second")
    assert stored(store) == mine
    store.later(1)
    assert begin(store, NAME, "second").attempt == 2
    with pytest.raises(BusyError, match="taken over"):
        check_owner(store, mine)


def test_patience_is_a_setting(store: Bucket) -> None:
    begin(store, NAME, "first")
    store.later(20)
    with pytest.raises(BusyError, match="30 s"):
        begin(store, NAME, "second", claim=Claim(patience=30))
    assert begin(store, NAME, "second", claim=Claim(patience=20)).attempt == 2


def test_a_heartbeat_keeps_a_run_alive(store: Bucket) -> None:
    mine = begin(store, NAME, "first")
    for _ in range(10):
        store.later(200)
        assert beat(store, mine)
        with pytest.raises(BusyError):
            begin(store, NAME, "second")
    assert stored(store).history == mine.history  # sixty of them an hour would leave no room for anything else
    assert stored(store).at == mine.at


def test_take_over_at_once(store: Bucket) -> None:
    mine = begin(store, NAME, "first")
    assert begin(store, NAME, "second", claim=Claim(take_over=True)).attempt == 2
    assert not beat(store, mine)
    assert stored(store).run == "second"


@pytest.mark.parametrize("state", ["error", "cancelled", "processed", "archived"])
def test_what_has_ended_needs_no_patience(store: Bucket, state: str) -> None:
    mine = begin(store, NAME, "first")
    advance(store, Status(NAME, 1, state, run="first"))
    assert not beat(store, mine)
    assert begin(store, NAME, "second").attempt == 2


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-01T00:00:00"])
def test_a_run_without_a_time_is_dead(store: Bucket, text: str) -> None:
    advance(store, Status(NAME, 1, "processing", run="first", beat=text, at=text or "never"))
    assert begin(store, NAME, "second").attempt == 2


def test_a_lock_needs_no_heartbeat(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert begin(store, NAME, "first").beat == ""
    assert begin(store, NAME, "second").attempt == 2  # its caller holds the lock, so the first one is dead


# ---- attempts that the submitter has counted


def claim(attempt: int, job: str = "job1", retry: int = 1, **more: bool) -> Claim:
    return Claim(attempt, retry, job, **more)


@pytest.mark.parametrize(
    "last", [None, (1, "error"), (1, "processing"), (1, "cancelled"), (2, "placed"), (2, "submitted")]
)
def test_a_counted_attempt_begins(store: Bucket, last: tuple[int, str] | None) -> None:
    if last:
        advance(store, Status(NAME, *last, run="old", beat="2026-01-01T00:00:00Z"))
    mine = begin(store, NAME, "new", claim=claim(2))
    assert (mine.attempt, mine.retry, mine.job, mine.state) == (2, 1, "job1", "processing")


@pytest.mark.parametrize("state", ["cancelled", "processed", "synced", "archived", "error"])
def test_a_counted_attempt_that_is_over_is_not_made_again(store: Bucket, state: str) -> None:
    advance(store, Status(NAME, 2, state, run="old", job="job1"))
    before = dict(store.objects)
    for attempt in (1, 2):
        with pytest.raises(DuplicateError, match=f"duplicate.*{state}") as caught:
            begin(store, NAME, "new", claim=claim(attempt))
        assert caught.value.code == 0
    assert store.objects == before


def test_a_second_job_of_the_attempt_is_a_duplicate_while_the_first_lives(store: Bucket) -> None:
    begin(store, NAME, "one", claim=claim(2, "job1"))
    with pytest.raises(DuplicateError):
        begin(store, NAME, "two", claim=claim(2, "job2"))
    assert stored(store).run == "one"
    store.later(301)
    mine = begin(store, NAME, "two", claim=claim(2, "job2"))
    assert (mine.attempt, mine.retry) == (2, 2)
    assert stored(store).run == "two"


@pytest.mark.parametrize("state", ["processing", "error"])
def test_batch_starts_the_same_job_again(store: Bucket, state: str) -> None:
    begin(store, NAME, "one", claim=claim(2))
    advance(store, Status(NAME, 2, state, run="one", job="job1"))
    mine = begin(store, NAME, "two", claim=claim(2, retry=2))
    assert (mine.attempt, mine.retry, mine.state) == (2, 2, "processing")
    # Late news of the first start change nothing.
    assert not advance(store, Status(NAME, 2, "error", run="one", job="job1"))[1]
    assert stored(store).run == "two"
    advance(store, Status(NAME, 2, "processed", run="two", job="job1", retry=2))
    with pytest.raises(DuplicateError):
        begin(store, NAME, "three", claim=claim(2, retry=3))


def test_take_over_of_a_counted_attempt(store: Bucket) -> None:
    begin(store, NAME, "one", claim=claim(1))
    assert begin(store, NAME, "two", claim=claim(1, "job2", take_over=True)).retry == 2


# ---- races, and answers that get lost


@pytest.mark.parametrize("claimed", [Claim(), Claim(3, 1, "job")])
def test_one_of_16_runs_begins(store: Bucket, claimed: Claim) -> None:
    together = threading.Barrier(16)

    def run(number: int) -> str:
        together.wait()
        try:
            return begin(store, NAME, f"run{number}", claim=claimed).run
        except (BusyError, DuplicateError):
            return ""

    with ThreadPoolExecutor(16) as pool:
        won = [name for name in pool.map(run, range(16)) if name]
    assert won == [stored(store).run]


def test_a_begin_whose_answer_was_lost_is_ours(store: Bucket) -> None:
    class Lossy(Bucket):
        lost = False

        def put(self, key: str, data: bytes, mode: PutMode) -> str:
            tag = super().put(key, data, mode)
            if not self.lost:
                self.lost = True
                raise ConflictError(key)  # what a repetition of the request meets
            return tag

    assert begin(Lossy(), NAME, "mine").run == "mine"


@pytest.mark.parametrize("seed", range(30))
def test_a_flaky_store_never_leaves_a_wrong_state(seed: int) -> None:
    """Whatever fails, the state stands at an attempt that a run really began, and the projection follows in the end."""
    inner = Bucket()
    flaky = FlakyStore(inner, 0.1, seed)
    begun: list[Status] = []
    for number in range(20):
        inner.later(1000)
        try:
            mine = begin(flaky, NAME, f"run{number}")  # type: ignore[arg-type]
        except CaldpError:
            continue
        begun.append(mine)
        try:
            messages.advance(flaky, mine.failed(InputError("x")))  # type: ignore[arg-type]
        except CaldpError:
            continue
    last = stored(inner)
    assert begun
    assert last.order >= begun[-1].order
    messages.project(inner, last)
    names = [folder for _, folder in messages.STATES.values() if folder and inner.names(f"messages/{folder}")]
    assert names == [messages.STATES[last.state][1]]


# ---- the heart


def test_the_heart_beats_and_stops(store: Bucket) -> None:
    mine = begin(store, NAME, "mine")
    store.later(5)
    with beating(store, mine, 0.05, lambda: pytest.fail("lost")) as heart:
        wait_until(lambda: stored(store).beat != mine.beat)
    assert not heart.lost
    beaten = stored(store)
    store.later(5)
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert stored(store) == beaten


def test_the_heart_hears_of_a_take_over(store: Bucket) -> None:
    mine, stopped = begin(store, NAME, "mine"), threading.Event()
    with beating(store, mine, 0.05, stopped.set) as heart:
        begin(store, NAME, "other", claim=Claim(take_over=True))
        assert stopped.wait(10)
    assert heart.lost
    assert stored(store).run == "other"


def test_the_heart_outlives_a_store_that_fails_for_a_while(store: Bucket) -> None:
    class Failing(Bucket):
        asked = 0

        def get(self, key: str) -> Blob | None:
            self.asked += 1
            if self.asked < 5:
                raise S3DownloadError("down")
            return super().get(key)

    mine, failing = begin(store, NAME, "mine"), Failing()
    failing.objects = store.objects
    failing.later(5)
    with beating(failing, mine, 0.05, lambda: pytest.fail("lost")) as heart:
        wait_until(lambda: stored(store).beat != mine.beat)
    assert not heart.lost
    assert failing.asked >= 5


def test_no_heart_where_a_lock_tells(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with beating(store, begin(store, NAME, "mine"), 0.01, lambda: pytest.fail("lost")):
        assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for at most ten seconds."""
    for _ in range(1000):
        if true():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not come to pass")
