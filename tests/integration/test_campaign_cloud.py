"""Campaigns on an AWS that kills, loses, repeats and fails: no dataset is lost, and none is submitted twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from caldp.campaign.settings import DEFAULT
from tests.fakes import batch
from tests.fakes.cloud import DEPLOYMENT, OUTCOMES, Cloud

SMALL = replace(DEFAULT, shard_size=2, canary=0.2, canary_least=2, canary_failures=0.9)
NAMES = batch.names(6)

#: What the first attempts of each dataset come to; the next one ends well.
HOW = {
    NAMES[0]: ("oom", "oom"),
    NAMES[1]: ("transient", "timeout"),
    NAMES[2]: ("deterministic",),
    NAMES[3]: ("late",),
    NAMES[4]: ("silent",),
    NAMES[5]: ("host", "unknown"),
}

LIST = ("\n".join(NAMES) + "\n").encode()


def how(name: str, attempt: int) -> str:
    """What the job of a dataset comes to."""
    told = HOW.get(name, ())
    return told[attempt - 1] if attempt <= len(told) else "ok"


def output(cloud: Cloud) -> str:
    """Where the only campaign is."""
    (found,) = cloud.stack.outputs()
    return found


def campaign(monkeypatch: pytest.MonkeyPatch, lost: float = 0.0) -> Cloud:
    """Return a world where a list was dropped."""
    random.seed(22)
    cloud = Cloud.at(monkeypatch, SMALL)
    cloud.lost = lost
    cloud.drop(LIST)
    return cloud


# ---- killed


@pytest.fixture(scope="module")
def reference() -> dict[str, tuple[Any, ...]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        cloud = campaign(monkeypatch)
        cloud.work(how)
        cloud.assert_sound(NAMES, output(cloud))
        ends = cloud.ends(output(cloud))
    assert Counter(end[0] for end in ends.values()) == {"processed": 5, "error": 1}
    assert {end[1] for end in ends.values()} == {1, 2, 3}
    return ends


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("lost", [0.0, 1.0], ids=["told", "untold"])
@pytest.mark.parametrize("victim", Cloud.FUNCTIONS)
def test_a_function_may_be_killed_at_every_write(
    monkeypatch: pytest.MonkeyPatch, reference: dict[str, tuple[Any, ...]], victim: str, lost: float, before: bool
) -> None:
    cloud = campaign(monkeypatch, lost)
    cloud.work(how, victim=victim)
    writes = cloud.switch.count
    assert (writes > 0) == (
        (victim, lost) not in (("on_batch_event", 1.0), ("reconcile", 0.0))
    ) or victim == "reconcile"
    struck = set()
    for at in range(1, writes + 1):
        cloud = campaign(monkeypatch, lost)
        cloud.switch.at, cloud.switch.before = at, before
        cloud.work(how, victim=victim)
        assert cloud.failed[f"{victim} Killed"] == 1, f"nobody was killed at write {at} of {writes}"
        struck.add(cloud.switch.last.partition(" ")[0])
        cloud.assert_sound(NAMES, output(cloud))
        assert cloud.ends(output(cloud)) == reference, f"killed {'before' if before else 'after'} {cloud.switch.last}"
    assert "put" in struck or not writes


@pytest.mark.parametrize("lost", [0.0, 0.5])
def test_it_is_the_same_with_threads_and_messages_that_come_twice(
    monkeypatch: pytest.MonkeyPatch, reference: dict[str, tuple[Any, ...]], lost: float
) -> None:
    cloud = Cloud.at(monkeypatch, SMALL, threads=True)
    cloud.lost = lost
    for queue in cloud.queues.values():
        queue.twice = 0.6
    event = cloud.drop(LIST)
    for _ in range(3):
        cloud.queues[DEPLOYMENT.list_queue].send(json.dumps(event))
    cloud.work(how)
    cloud.assert_sound(NAMES, output(cloud))
    assert cloud.ends(output(cloud)) == reference


# ---- all of it at once


def mixed(seed: int) -> Callable[[str, int], str]:
    """Return what jobs come to when a third of the attempts fails, for every reason there is."""
    kinds = [kind for kind in OUTCOMES if kind not in ("ok", "image")]

    def outcome(name: str, attempt: int) -> str:
        rng = random.Random(f"{seed} {name} {attempt}")  # noqa: S311 - no secret
        return rng.choice(kinds) if rng.random() < 0.35 else "ok"

    return outcome


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_campaign_comes_to_its_end_whatever_fails(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    names, outcome = batch.names(count), mixed(count)
    figures = replace(DEFAULT, shard_size=count // 10, canary_failures=0.9)
    random.seed(count)
    cloud = Cloud.at(monkeypatch, figures)
    cloud.faults.rate = cloud.faults.store_rate = 0.1
    cloud.faults.hard = 2 / count
    cloud.lost = 0.1
    for queue in cloud.queues.values():
        queue.twice = 0.1
    event = cloud.drop("\n".join([*reversed(names), *names[:99]]).encode(), "urgent.txt", "messages/placed")
    for _ in range(2):
        cloud.queues[DEPLOYMENT.list_queue].send(json.dumps(event))
    begun = time.monotonic()
    minutes = cloud.work(outcome)
    place = output(cloud)
    print(
        f"{count:,} datasets, {minutes} min, {len(cloud.jobs.asks)} SubmitJob calls, {len(cloud.writes):,} writes, "
        f"{cloud.faults.struck:,} faults, {sum(cloud.failed.values())} calls failed, {time.monotonic() - begun:.0f} s"
    )
    assert cloud.faults.struck > count / 2
    cloud.assert_sound(names, place)
    assert sum(cloud.failed.values()) > 20, "no fault mattered"
    for name, status in cloud.statuses(place).items():
        # What each attempt came to, as the history tells, is what it was to come to.
        tries = [outcome(name, attempt) for attempt in range(1, status.attempt + 1)]
        done = status.state == "processed"
        assert (tries[-1] in ("ok", "late")) == done, f"{status}: {tries}"
        assert not any(kind in ("ok", "late", "deterministic") for kind in tries[:-1]), f"{status}: {tries}"
        assert status.cause in ("", "oom", "timeout", "transient", "host", "unknown", "deterministic")
        assert status.spent.get("oom", 0) == tries[: status.attempt - 1].count("oom"), f"{status}: {tries}"
        assert status.spent.get("timeout", 0) == tries[: status.attempt - 1].count("timeout"), f"{status}: {tries}"
    before = len(cloud.writes)
    cloud.reconcile()
    assert len(cloud.writes) == before
