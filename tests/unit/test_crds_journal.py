"""What has happened to a CRDS, and what it is after that."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from caldp.crdserver.journal import Journal
from caldp.crdserver.records import SqliteRecords
from caldp.crdserver.state import State
from caldp.errors import BusyError, InputError
from caldp.local_store import LocalStore
from caldp.store import ConflictError


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return another(tmp_path)


def another(tmp_path: Path) -> Journal:
    """What another process has of the same journal."""
    return Journal(SqliteRecords(tmp_path / "records.sqlite"), LocalStore(tmp_path), "hst")


def names(*given: str, by: str = "one") -> Any:
    return lambda state: {"names": list(given), "submission": by}


def test_a_journal_begins_empty(journal: Journal) -> None:
    assert journal.state() == State("hst")
    assert list(journal.events()) == []


def test_events_have_numbers_times_and_names(journal: Journal) -> None:
    first = journal.append("reserved", "ann", "because", names("a.fits"))
    second = journal.append("signed in", "bob", "", lambda _: {})
    assert first is not None and second is not None
    assert (first.seq, first.who, first.why, second.seq) == (1, "ann", "because", 2)
    assert [event.kind for event in journal.events()] == ["signed in", "reserved"]
    assert [event.seq for event in journal.events(before=2)] == [1]
    assert first.at.endswith("Z") and first.at <= second.at


def test_another_process_sees_at_once_what_was_added(journal: Journal, tmp_path: Path) -> None:
    other = another(tmp_path)
    assert not other.state().taken("a.fits")
    journal.append("reserved", "ann", "", names("a.fits"))
    assert other.state().taken("a.fits")


def test_an_earlier_state_is_not_changed_by_what_comes_later(journal: Journal) -> None:
    before = journal.state()
    journal.append("reserved", "ann", "", names("a.fits"))
    assert before.reserved == {} and before.seq == 0


def test_nothing_is_added_when_nothing_is_decided(journal: Journal) -> None:
    assert journal.append("reserved", "ann", "", lambda _: None) is None
    assert journal.state().seq == 0


def test_whoever_is_slower_decides_anew(journal: Journal, tmp_path: Path) -> None:
    other, asked = another(tmp_path), []

    def decide(state: State) -> dict[str, Any]:
        asked.append(state.seq)
        if len(asked) == 1:
            other.append("reserved", "bob", "", names("b.fits"))
        if state.taken("b.fits"):
            raise InputError("b.fits is taken")
        return {"names": ["b.fits"], "submission": "one"}

    with pytest.raises(InputError, match="taken"):
        journal.append("reserved", "ann", "", decide)
    assert asked == [0, 1]
    assert journal.state().seq == 1


def test_threads_that_reserve_at_once_never_get_the_same_name(tmp_path: Path) -> None:
    got: list[str] = []

    def reserve(who: str) -> None:
        mine = another(tmp_path)

        def next_name(state: State) -> dict[str, Any]:
            return {"names": [f"{len(state.reserved):04d}.fits"], "submission": who}

        for _ in range(10):
            event = mine.append("reserved", who, "", next_name)
            assert event is not None
            got.append(event.data["names"][0])

    threads = [threading.Thread(target=reserve, args=(f"user{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [f"{n:04d}.fits" for n in range(60)]


def test_who_loses_all_the_time_is_told_so(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> int:
        raise ConflictError("x")

    monkeypatch.setattr(journal.records, "put", lost)
    with pytest.raises(BusyError):
        journal.append("reserved", "ann", "", names("a.fits"))


def test_a_snapshot_saves_reading_all_events(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(205):
        journal.append("reserved", "ann", "", names(f"{number}.fits"))
    other = another(tmp_path)
    read: list[str] = []
    scan = other.records.scan
    monkeypatch.setattr(
        other.records, "scan", lambda space, after="", **k: read.append(after) or scan(space, after, **k)
    )
    assert other.state() == journal.state()
    assert len(other.state().reserved) == 205
    assert read[0] == "0000000200"


def test_a_state_and_its_json_are_the_same(journal: Journal) -> None:
    journal.append("reserved", "ann", "", names("a.fits"))
    journal.append("submitted", "ann", "new darks", lambda _: {"submission": "one", "instrument": "cos"})
    state = journal.state()
    assert State.from_json(state.to_json()) == state


def test_an_unknown_kind_of_event_changes_nothing_but_the_number(journal: Journal) -> None:
    before = journal.state()
    journal.append("something of later versions", "ann", "", lambda _: {"context": "hst_9999.pmap"})
    after = journal.state()
    assert after.seq == before.seq + 1 and after.latest == before.latest


def test_contexts_by_date() -> None:
    history = (("2018-01-01 00:00:00", "hst_0600.pmap", ""), ("2019-01-01 00:00:00", "hst_0700.pmap", ""))
    state = State("hst", history=history)
    assert state.context_at("2018-06-01") == "hst_0600.pmap"
    assert state.context_at("2019-01-01 00:00:00") == "hst_0700.pmap"
    assert state.context_at("2017-12-31") == ""
