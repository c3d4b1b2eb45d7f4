"""A list becomes a campaign: once, wholly or not at all, and the same for the same list."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caldp import messages
from caldp.campaign.accept import Accepted, accept, draw, observations_of
from caldp.campaign.control import OBSERVATIONS, Control
from caldp.campaign.lists import DatasetList, Options, Override, of_mapping, read
from caldp.campaign.plan import Observation, Observations
from caldp.campaign.settings import DEFAULT, Rung
from caldp.errors import ExistsError, OutputError, UsageError
from caldp.local_store import LocalStore
from caldp.messages import Status
from caldp.store import Overwrite, PutMode, Store
from tests.fakes.processed import names, publish
from tests.fakes.stores import MemoryStore

ONE, TWO, THREE = names(3)
CALM = replace(DEFAULT, shard_size=10, canary_least=2)


class Mortal(MemoryStore):
    """A store whose writer is killed before its n-th write, or after it."""

    uri = "memory:/mvp"

    def __init__(self) -> None:
        super().__init__()
        self.left = -1.0
        self.writes = 0

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        if self.left == 0:
            raise KeyboardInterrupt
        tag = super().put(key, data, mode)
        self.writes += 1
        self.left -= 1
        if self.left == -0.5:
            raise KeyboardInterrupt
        return tag


def listed(*found: str, **more: Any) -> DatasetList:
    return of_mapping({"datasets": list(found or names(3)), **more})


def take(store: Store, found: DatasetList | None = None, runner: str = "local", **options: Any) -> Accepted:
    return accept(store, found or listed(), Options(**options), CALM, runner=runner)


def without_times(store: MemoryStore) -> dict[str, Any]:
    request = json.loads(store.objects["control/request.json"])
    return {**store.objects, "control/request.json": {key: value for key, value in request.items() if key != "at"}}


def test_what_is_written() -> None:
    store = Mortal()
    found = read(f"{ONE} {TWO} {ONE}\nnonsense\n{THREE}\n".encode(), "list.ids")
    accepted = take(store, found, label="for the test")
    assert accepted.reply == {
        "batch": "mvp",
        "accepted": 3,
        "rejected": 1,
        "duplicates": 1,
        "skipped": 0,
        "shards": 2,
        "jobs": 3,
        "estimate": {"hours": 0.93, "cost": 0.04},
        "invalid": [{"line": 2, "text": "nonsense", "reason": "not an HST dataset name"}],
    }
    assert not accepted.resumed
    control = Control(store)
    lines = [line for shard in control.shards() for line in control.lines(shard)]
    assert sorted((line.dataset, line.attempt, line.rung) for line in lines) == [(name, 1, "2g") for name in names(3)]
    (first,) = accepted.shards
    assert [line.dataset for line in control.lines(first)] == control.plan()["canary"]
    assert control.plan()["shards"][0] == first
    assert json.loads(store.objects["control/rejected.jsonl"])["text"] == "nonsense"
    request = control.request()
    assert (request["label"], request["runner"], request["datasets"]) == ("for the test", "local", 3)
    assert not [key for key in store.objects if key.startswith("messages/")]


def test_the_same_list_again_changes_nothing() -> None:
    store = Mortal()
    first = take(store)
    before = dict(store.objects)
    shuffled = [THREE, ONE, TWO, ONE.upper()]
    for again in (take(store), take(store, listed(*shuffled)), take(store, label="another")):
        assert (again.resumed, again.reply, again.shards) == (True, first.reply, first.shards)
    assert store.objects == before


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda store: take(store, listed(ONE, TWO)), "list"),
        (lambda store: take(store, replace(listed(), overrides={ONE: Override("8g")})), "list"),
        (lambda store: take(store, existing="overwrite"), "options"),
        (lambda store: take(store, rung="8g"), "options"),
        (lambda store: take(store, runner="aws"), "runner"),
        (lambda store: take(store, listed(ONE), context="hst_0001.pmap"), "list, options"),
    ],
)
def test_another_request_is_refused(change: Callable[[Store], Accepted], differs: str) -> None:
    store = Mortal()
    take(store)
    before = dict(store.objects)
    with pytest.raises(UsageError, match=rf"another request \({differs}: not the same\)"):
        change(store)
    assert store.objects == before


def test_killed_at_every_write() -> None:
    whole = Mortal()
    expected = take(whole)
    for number in range(whole.writes):
        for after in (0, 0.5):
            store = Mortal()
            store.left = number + after
            with pytest.raises(KeyboardInterrupt):
                take(store)
            # Either there is a whole campaign, or none that could be run.
            assert (Control(store).planned() is not None) == (number + after > whole.writes - 1)
            store.left = -1
            again = take(store)
            assert (again.reply, again.shards) == (expected.reply, expected.shards)
            assert without_times(store) == without_times(whole)


def test_who_goes_on_with_a_half_goes_by_what_it_was_begun_with() -> None:
    store = Mortal()
    store.left = 1
    with pytest.raises(KeyboardInterrupt):
        take(store)
    store.left = -1
    other = replace(
        DEFAULT,
        rungs=(Rung("huge", 90_000, 16),),
        estimates={kind: replace(estimate, rung="huge") for kind, estimate in DEFAULT.estimates.items()},
    )
    accepted = accept(store, listed(), Options(), other, runner="local")
    control = accepted.control
    assert {line.rung for shard in control.shards() for line in control.lines(shard)} == {"2g"}
    assert [rung["name"] for rung in control.request()["settings"]["rungs"]][0] == "2g"


def test_a_plan_depends_on_the_list_alone() -> None:
    found = names(120)
    first = Mortal()
    take(first, listed(*found))
    random.Random(1).shuffle(found)  # noqa: S311
    second = Mortal()
    take(second, listed(*found, *found[:50]))
    plans = [{key: value for key, value in s.objects.items() if "manifests" in key} for s in (first, second)]
    assert plans[0] == plans[1]
    assert len(plans[0]) == 13


def test_what_was_observed_is_frozen() -> None:
    store = Mortal()
    seen = Observation(ONE, "cos", "NUV", "ipppssoot", 1, "calcos", 3 << 30, 10.0)
    accept(store, listed(), Options(), CALM, Observations([seen]), runner="local")
    assert observations_of(store).jsonl() == Observations([seen]).jsonl()
    lines = {line.dataset: line for shard in Control(store).shards() for line in Control(store).lines(shard)}
    assert (lines[ONE].rung, lines[TWO].rung) == ("8g", "2g")
    assert len(observations_of(Mortal())) == 0
    store.put(OBSERVATIONS, b"nonsense\n", Overwrite())
    with pytest.raises(OutputError, match=r"observations.jsonl: line 1 is damaged"):
        observations_of(store)


# ---- what is there already


@pytest.fixture
def batch(tmp_path: Path) -> Store:
    store = LocalStore(tmp_path / "mvp")
    publish(store, ONE)
    messages.advance(store, Status(TWO, 3, "error", "run", "broken", 23))
    publish(store, names(9)[8])  # in the batch, and not in the list
    return store


def attempts(accepted: Accepted) -> dict[str, int]:
    control = accepted.control
    return {line.dataset: line.attempt for shard in control.shards() for line in control.lines(shard)}


def test_skip(batch: Store) -> None:
    accepted = take(batch, existing="skip")
    assert attempts(accepted) == {TWO: 4, THREE: 1}
    assert (accepted.reply["skipped"], accepted.reply["accepted"]) == (1, 2)
    assert accepted.control.plan()["skipped"] == [ONE]


def test_overwrite(batch: Store) -> None:
    assert attempts(take(batch, existing="overwrite")) == {ONE: 2, TWO: 4, THREE: 1}


def test_error(batch: Store) -> None:
    with pytest.raises(ExistsError, match=f"1 of the datasets are processed already: {ONE}; skip or overwrite"):
        take(batch, existing="error")
    assert Control(batch).known() is None


def test_nothing_is_left_to_do(batch: Store) -> None:
    accepted = take(batch, listed(ONE))
    assert (accepted.reply["accepted"], accepted.reply["skipped"], accepted.shards) == (0, 1, ())
    assert take(batch, listed(ONE)).resumed


def test_one_that_ran_out_of_memory_gets_more(batch: Store) -> None:
    messages.advance(batch, Status(THREE, 1, "error", "run", "no memory", 31, rung="2g", time_limit=60, cause="oom"))
    accepted = take(batch)
    lines = [line for shard in accepted.shards for line in accepted.control.lines(shard)]
    assert {line.dataset: (line.attempt, line.rung) for line in lines}[THREE] == (2, "8g")


# ---- what is not accepted


def test_what_cannot_be_planned_is_in_the_reply() -> None:
    store = Mortal()
    found = replace(listed(), overrides={ONE: Override("1t")})
    accepted = take(store, found)
    assert (accepted.reply["accepted"], accepted.reply["rejected"]) == (2, 1)
    assert json.loads(store.objects["control/rejected.jsonl"])["reason"] == "'1t' is no memory rung"


def test_nothing_can_be_planned() -> None:
    store = Mortal()
    with pytest.raises(UsageError, match="nothing of the list can be planned"):
        take(store, replace(listed(ONE), overrides={ONE: Override("1t")}))
    assert store.objects == {}


@pytest.mark.parametrize(
    ("found", "options"),
    [
        (listed(ONE, "nonsense"), {"on_invalid": "reject"}),
        (listed(ONE, *["nonsense"] * 101), {}),
        (listed(ONE), {"rung": "1t"}),
        (listed(ONE), {"time_limit": 10**7}),
    ],
)
def test_what_is_refused_leaves_nothing(found: DatasetList, options: dict[str, Any]) -> None:
    store = Mortal()
    with pytest.raises(UsageError):
        take(store, found, **options)
    assert store.objects == {}


def test_to_draw_a_plan_writes_nothing(batch: Store, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    drawn = draw(batch, listed(), Options(), CALM)
    assert (drawn.skipped, [line.dataset for line in drawn.plan.lines]) == ((ONE,), [TWO, THREE])
    assert draw(None, listed(), Options(), CALM).skipped == ()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
