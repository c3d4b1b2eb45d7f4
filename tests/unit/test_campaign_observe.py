"""What jobs have used is kept beside batches, and later plans go by it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from caldp.campaign import observe
from caldp.campaign.control import FOLDED, Control, result_key
from caldp.campaign.lists import Options
from caldp.campaign.observe import fold, gather, key, known, learn, observation
from caldp.campaign.plan import Observation, Observations, from_jsonl, plan, to_jsonl
from caldp.campaign.settings import DEFAULT
from caldp.dataset import Dataset
from caldp.errors import OutputError
from caldp.messages import Status
from caldp.store import Overwrite, PutMode
from tests.fakes import batch
from tests.fakes.cloud import OUTPUT, Cloud, Killed, used
from tests.fakes.stores import MemoryStore

NAMES = batch.names(5)
ONE, TWO, THREE, FOUR, FIVE = NAMES
MIB = 1 << 20


def record(name: str, attempt: int = 1, retry: int = 1, **more: Any) -> dict[str, Any]:
    return used(Status(name, attempt, "processing", retry=retry, rung="2g"), **more)


def seen(name: str, **more: Any) -> Observation:
    found = observation(record(name, recipe="r", wall_s=7.5))
    assert found is not None
    return replace(found, **more)


@pytest.fixture
def control() -> Control:
    return Control(MemoryStore())


def leave(control: Control, name: str, attempt: int = 1, retry: int = 1, **more: Any) -> None:
    said = json.dumps(record(name, attempt, retry, **more)).encode()
    control.store.put(result_key(name, attempt, retry), said, Overwrite())


def kept(place: MemoryStore, instrument: str = "cos") -> list[Observation]:
    return from_jsonl(place.objects.get(key(instrument), b""))


# ---- what a record tells


def test_what_a_record_tells() -> None:
    found = observation(record("LDFD01010", attempt=3, memory_limit_bytes=1, peak_memory_bytes=9**9))
    assert found == Observation("ldfd01010", "cos", "fuv", "ipppssoot", 4, "calcos", 500 * MIB, 60.5, "2g")


@pytest.mark.parametrize(
    ("name", "kind", "instrument"),
    [("acs_8ph_01", "svm", "acs"), ("skycell-p2381x06y09", "mvm", "mvm"), ("o8l7sws9q", "ipppssoot", "stis")],
)
def test_any_dataset_is_known_by_its_name(name: str, kind: str, instrument: str) -> None:
    found = observation(record(name, detector=""))
    assert found is not None and (found.kind, found.instrument, found.detector) == (kind, instrument, "")


@pytest.mark.parametrize(
    "name", ["dataset", "code", "recipe", "detector", "exposures", "rung", "wall_s", "process_memory_bytes"]
)
def test_a_record_that_lacks_something_tells_nothing(name: str) -> None:
    said = record(ONE)
    del said[name]
    assert observation(said) is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dataset", ["../x", "n4k001010", "", None, 7, [ONE]]),
        ("code", [1, 23, None, "0", []]),
        ("recipe", [None, 1, ["calcos"]]),
        ("detector", [None, 1, ["fuv"]]),
        ("exposures", ["4", None, -1, float("nan"), [4]]),
        ("rung", [None, 2, ["2g"]]),
        ("wall_s", ["1", None, -1, float("inf"), float("nan"), {}]),
        ("process_memory_bytes", [0, None, "1", -1, float("inf"), float("nan"), [1]]),
    ],
)
def test_a_record_that_makes_no_sense_tells_nothing(name: str, values: list[Any]) -> None:
    for value in values:
        assert observation(record(ONE) | {name: value}) is None, value


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_record_tells_nothing(nothing: dict[str, Any] | None) -> None:
    assert observation(nothing) is None


# ---- of a campaign


def test_the_last_record_of_a_dataset_counts(control: Control) -> None:
    for seconds, (attempt, retry) in enumerate([(1, 1), (9, 1), (9, 2), (10, 1), (10, 10), (10, 9), (2, 30)]):
        leave(control, ONE, attempt, retry, wall_s=seconds)
    leave(control, TWO, 1, wall_s=11)
    assert [(found.dataset, found.seconds) for found in gather(control, NAMES)] == [(ONE, 4), (TWO, 11)]


def test_a_dataset_that_nobody_asks_for_is_left_out(control: Control) -> None:
    for name in NAMES:
        leave(control, name)
    assert [found.dataset for found in gather(control, [THREE, ONE])] == [ONE, THREE]
    assert gather(control, []) == []


def test_a_job_that_failed_last_has_used_nothing(control: Control) -> None:
    leave(control, ONE, 1)
    leave(control, ONE, 2, code=31)
    assert gather(control, NAMES) == []


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[]", b"1", b"null", b'{"code": 0}', b'{"code": 0, "dataset":1}']
)
def test_a_record_that_is_damaged_does_not_keep_others_from_it(control: Control, data: bytes) -> None:
    leave(control, ONE)
    leave(control, TWO)
    control.store.put(result_key(ONE, 1), data, Overwrite())
    assert [found.dataset for found in gather(control, NAMES)] == [TWO]


def test_a_record_of_another_dataset_is_none(control: Control) -> None:
    control.store.put(result_key(ONE, 1), json.dumps(record(FIVE)).encode(), Overwrite())
    assert gather(control, NAMES) == []


@pytest.mark.parametrize(
    "name", ["notes.txt", "json", "\u00b2.json", "\u00b2.1.json", "core", "old/9.json", "9.json", "3.1.json~"]
)
def test_other_files_among_the_records_do_not_matter(control: Control, name: str) -> None:
    leave(control, ONE, 3)
    control.store.put(f"control/results/{ONE}/{name}", b"whatever", Overwrite())
    control.store.put(f"control/results/{name}", b"whatever", Overwrite())
    assert [found.dataset for found in gather(control, NAMES)] == [ONE]


def test_no_records_at_all(control: Control) -> None:
    assert gather(control, NAMES) == []


# ---- what is kept


def test_what_is_kept_comes_back() -> None:
    place = MemoryStore()
    some = [seen(ONE), seen(TWO), seen("o8l7sws9q"), seen("skycell-p2381x06y09"), seen("acs_8ph_01", rung="")]
    assert learn(place, some) == 5
    assert sorted(place.objects) == [key(name) for name in ("acs", "cos", "mvm", "stis")]
    assert known(place).jsonl() == Observations(some).jsonl()
    assert from_jsonl(to_jsonl(some)) == some


def test_only_what_is_asked_for_is_read() -> None:
    place = MemoryStore()
    learn(place, [seen(ONE), seen("o8l7sws9q")])
    place.put(key("stis"), b"nonsense", Overwrite())
    assert known(place, {"cos", "wfc3"}).jsonl() == Observations([seen(ONE)]).jsonl()
    assert len(known(MemoryStore())) == len(known(place, ())) == 0


def test_the_newest_is_last_and_replaces_what_was_known_of_a_dataset_and_recipe() -> None:
    place = MemoryStore()
    first, second, other = seen(ONE), seen(TWO), seen(ONE, recipe="another")
    assert learn(place, [second, first, other]) == 3
    assert kept(place) == [other, first, second]
    better = replace(first, memory=9 * MIB)
    assert learn(place, [better, second]) == 1
    assert kept(place) == [other, second, better]


def test_what_is_known_already_writes_nothing() -> None:
    place = MemoryStore()
    learn(place, [seen(ONE), seen(TWO)])
    before = dict(place.objects)
    place.put = None  # type: ignore[assignment,method-assign]
    assert learn(place, [seen(TWO), seen(ONE)]) == learn(place, []) == 0
    assert place.objects == before


def test_so_many_are_kept_of_an_instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "KEPT", 3)
    place = MemoryStore()
    learn(place, [seen(name) for name in NAMES[:3]])
    learn(place, [seen("o8l7sws9q")])
    learn(place, [seen(ONE, memory=1), seen(FOUR)])
    assert [found.dataset for found in kept(place)] == [THREE, ONE, FOUR]
    learn(place, [seen(name, memory=2) for name in NAMES])
    assert kept(place) == [seen(name, memory=2) for name in NAMES[2:]]
    assert len(kept(place, "stis")) == 1


@pytest.mark.parametrize("data", [b"nonsense", b"[]\n", b'{"dataset": "ldfd00000"}\n', b"\xff"])
def test_what_is_damaged_is_named_and_left_alone(data: bytes) -> None:
    place = MemoryStore()
    place.put(key("cos"), to_jsonl([seen(ONE)]) + data, Overwrite())
    before = dict(place.objects)
    for act in (lambda: known(place), lambda: learn(place, [seen(TWO)])):
        with pytest.raises(OutputError, match="observations/cos.jsonl: line 2 is damaged.*remove it, or repair it"):
            act()
    assert place.objects == before


class Contested(MemoryStore):
    """A store in which somebody else is faster, as often as he has something to keep."""

    def __init__(self, *others: list[Observation]) -> None:
        super().__init__()
        self.others = list(others)

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        if self.others:
            observe.learn(self, self.others.pop())
        return super().put(key, data, mode)


def test_two_that_learn_at_once_lose_nothing() -> None:
    place = Contested([seen(TWO)], [seen(ONE, memory=3), seen(THREE)])
    learn(place, [seen(ONE), seen(FOUR)])
    assert sorted(kept(place)) == [seen(ONE), seen(TWO), seen(THREE), seen(FOUR)]


# ---- at the end of a campaign


def test_a_campaign_is_folded_in_parts(control: Control) -> None:
    place = MemoryStore()
    for name in NAMES:
        leave(control, name)
    for last, count in ((False, 2), (False, 4), (True, 5), (True, 5)):
        assert fold(control, place, [*reversed(NAMES)], most=2) == last
        assert [found.dataset for found in kept(place)] == NAMES[:count]


@pytest.mark.parametrize(("count", "parts"), [(0, [True]), (1, [True]), (2, [True]), (3, [False, True])])
def test_no_part_is_empty(control: Control, count: int, parts: list[bool]) -> None:
    place = MemoryStore()
    assert [fold(control, place, NAMES[:count], most=2) for _ in parts] == parts
    assert (control.store.get(FOLDED) is None) == (count == 0)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2])
def test_whoever_is_killed_does_a_part_again_and_that_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, at: int, before: bool
) -> None:
    cloud = Cloud.at(monkeypatch)
    control, place = cloud.stack.control(OUTPUT), cloud.stack.place(OUTPUT)
    with cloud.quietly():
        for name in NAMES:
            leave(control, name)
    cloud.switch.armed, cloud.switch.at, cloud.switch.before = True, at, before
    with pytest.raises(Killed):
        fold(control, place, NAMES, most=3)
    assert cloud.switch.last == ("put observations/cos.jsonl", f"put {FOLDED}")[at - 1]
    cloud.switch.revive()
    while not fold(control, place, NAMES, most=3):
        pass
    blob = place.get(key("cos"))
    assert blob is not None and [found.dataset for found in from_jsonl(blob.data)] == NAMES
    assert cloud.writes.count("put observations/cos.jsonl") == 2


def test_a_mark_that_is_damaged_folds_nothing(control: Control) -> None:
    control.store.put(FOLDED, b"{", Overwrite())
    place = MemoryStore()
    with pytest.raises(OutputError, match="folded.json"):
        fold(control, place, NAMES)
    assert not place.objects


# ---- planned with it


def test_a_plan_goes_by_what_was_folded(control: Control) -> None:
    place = MemoryStore()
    leave(control, ONE, process_memory_bytes=3000 * MIB, wall_s=4000.4)
    assert fold(control, place, NAMES)
    line = plan(ONE, DEFAULT, Options(), known(place, {Dataset.parse(ONE).instrument}))
    assert line.why == "8g: 3000 MiB (observed of it) x 1.25; 6h: 4000 s (observed of it) x 2"
    assert "table, cos" in plan(TWO, DEFAULT, Options(), known(place)).why
