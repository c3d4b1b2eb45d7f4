"""What datasets are given, in which order the reasons count, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldp.campaign.lists import DatasetList, Options, Override, Rejected, read
from caldp.campaign.plan import Group, Observation, Observations, Plan, cost, plan, plan_all, quantile, recipe
from caldp.campaign.settings import DEFAULT, Prices, Rung, from_json
from caldp.campaign.shards import Line
from caldp.dataset import Dataset
from caldp.errors import UsageError
from caldp.messages import Status
from tests.desk import shared_data  # noqa: F401 - a fixture

MIB, HOUR = 1 << 20, 3600
COS = "ldfd01010"
NONE = Observations()


def seen(dataset: str, memory: float, seconds: float, exposures: int = 4, detector: str = "NUV", how: str = "") -> Any:
    """Make an observation; memory in MiB."""
    parsed = Dataset.parse(dataset)
    how = how or recipe(parsed)
    bytes_ = int(memory * MIB)
    return Observation(dataset, parsed.instrument, detector, parsed.kind, exposures, how, bytes_, seconds, "2g")


def many(count: int, memory: Callable[[int], float], exposures: int = 4, detector: str = "NUV") -> list[Observation]:
    return [seen(f"lxxx{n:04d}0", memory(n), 10.0 * (n + 1), exposures, detector) for n in range(count)]


def given_to(line: Line) -> tuple[str, int]:
    return line.rung, line.time_limit


def simple(dataset: str = COS, observations: Observations = NONE, **options: Any) -> Line:
    return plan(dataset, DEFAULT, Options(**options), observations)


# ---- the table


@pytest.mark.parametrize(
    ("dataset", "rung", "hours"),
    [
        ("icb154060", "2g", 6),
        ("j8cb010b0", "2g", 24),
        ("ldqhpbi9q", "2g", 1),
        ("o8l7sws9q", "2g", 1),
        ("acs_8ph_01", "8g", 24),
        ("wfc3_el3_1n", "8g", 24),
        ("skycell-p2381x06y09", "16g", 72),
    ],
)
def test_the_table(dataset: str, rung: str, hours: int) -> None:
    line = simple(dataset)
    assert (line.dataset, line.attempt, *given_to(line)) == (dataset, 1, rung, hours * HOUR)
    assert line.vcpus == DEFAULT.rung(rung).vcpus
    assert line.why.count("table, ") == 2
    assert line.why.startswith(f"{rung}: ")


def test_the_table_says_its_numbers() -> None:
    assert simple("J8CB010B0").why == "2g: 1106 MiB (table, acs) x 1.25; 24h: 22788 s (table, acs) x 2"
    assert simple("acs_8ph_01").why == "8g: table, svm; 24h: table, svm"


def test_the_table_may_know_more_of_mosaics() -> None:
    settings = from_json({"estimates": {"svm": {"memory_p95": 8, "time_p99": 4000, "rung": "2g", "time_limit": 1}}})
    assert given_to(plan("acs_8ph_01", settings, Options(), NONE)) == ("16g", 6 * HOUR)


# ---- observations


def test_an_observed_dataset_is_given_what_it_used_and_a_quarter() -> None:
    line = simple(observations=Observations([seen(COS, 1434, 1000), seen(COS, 900, 1700)]))
    assert given_to(line) == ("8g", HOUR)
    assert line.why == "8g: 1434 MiB (observed of it) x 1.25; 1h: 1700 s (observed of it) x 2"
    assert given_to(simple(observations=Observations([seen(COS, 1433, 600)]))) == ("2g", 1200)
    assert given_to(simple(observations=Observations([seen(COS, 1433, 600.5)]))) == ("2g", HOUR)


def test_another_dataset_or_recipe_tells_nothing() -> None:
    others = Observations([seen("ldfd01020", 5000, 9000), seen(COS, 5000, 9000, how="calcos-of-old")])
    assert simple(observations=others) == simple()


def test_thirty_others_tell_and_twenty_nine_do_not() -> None:
    knows = [seen(COS, 50, 5, how="calcos-of-old")]
    few, enough = (Observations([*many(n, lambda n: 1000 + 100 * n), *knows]) for n in (28, 29))
    assert simple(observations=few) == simple()
    line = simple(observations=enough)  # those 29 and itself; ranks 29 and 30
    assert line.why == (
        "8g: 3700 MiB (p95, p99 of 30 observed, cos nuv ipppssoot 2-4) x 1.25; "
        "20m: 290 s (p95, p99 of 30 observed, cos nuv ipppssoot 2-4) x 2"
    )


@pytest.mark.parametrize(
    ("exposures", "detector", "tells"),
    [(2, "NUV", True), (4, "nuv", True), (1, "NUV", False), (5, "NUV", False), (4, "FUV", False)],
)
def test_a_group_has_one_detector_and_about_as_many_exposures(exposures: int, detector: str, tells: bool) -> None:
    others = many(40, lambda _: 3000, exposures, detector)
    small = many(800, lambda _: 100, 9, "other")  # so that the names alone tell something else
    line = simple(observations=Observations([*others, *small, seen(COS, 50, 5, how="calcos-of-old")]))
    assert line.rung == ("8g" if tells else "2g")


def test_of_a_dataset_that_was_never_observed_the_name_tells_the_group() -> None:
    associations = Observations(many(30, lambda _: 3000))
    assert simple("ldqhpb010", associations).rung == "8g"
    assert "30 observed, cos ipppssoot association" in simple("ldqhpb010", associations).why
    for other in ("ldqhpbi9q", "o8l7sw010"):
        assert simple(other, associations) == simple(other)


@pytest.mark.parametrize(("n", "steps"), [(0, "1"), (1, "1"), (2, "2-4"), (4, "2-4"), (5, "5-16"), (16, "5-16")])
def test_steps_of_exposures(n: int, steps: str) -> None:
    assert Group.of(seen(COS, 1, 1, n)).exposures == steps
    assert Group.of(seen(COS, 1, 1, 17)).exposures == Group.of(seen(COS, 1, 1, 900)).exposures == "17+"


def test_quantiles() -> None:
    assert [quantile(range(1, 101), share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert quantile([7], 0.95) == 7


def test_observations_are_frozen_and_come_back_in_one_order() -> None:
    some = [*many(40, lambda n: 1000 + n), seen(COS, 1000, 1.5)]
    observations = Observations(some)
    data = observations.jsonl()
    assert Observations([*reversed(some), *some]).jsonl() == data == Observations.parse(data).jsonl()
    assert len(observations) == len(data.splitlines()) == 41
    later = json.dumps({**some[0].to_json(), "later": 1}).encode()
    assert Observations.parse(later).jsonl() == Observations(some[:1]).jsonl()
    assert len(Observations.parse(b"")) == 0


@pytest.mark.parametrize(
    "change",
    [{"memory": "1"}, {"memory": -1}, {"seconds": float("nan")}, {"dataset": "x"}, {"kind": "svm"}, {"recipe": None}],
)
def test_a_damaged_observation_is_named(change: dict[str, Any]) -> None:
    good = seen(COS, 1, 1)
    data = Observations([good]).jsonl() + json.dumps({**good.to_json(), **change}).encode()
    with pytest.raises(ValueError, match="line 2 is damaged"):
        Observations.parse(data)
    for nonsense in (b"7", b"{}", b"{", b"[" * 100_000):
        with pytest.raises(ValueError, match="line 1 is damaged"):
            Observations.parse(nonsense)


def test_recipes() -> None:
    assert recipe(Dataset.parse(COS)) == "calcos"
    assert recipe(Dataset.parse("j8cb010b0")) == "calacs.e+runastrodriz"
    assert recipe(Dataset.parse("acs_8ph_01")) == "runsinglehap"


# ---- what is asked for


def test_what_is_asked_for_is_absolute() -> None:
    observed = Observations([seen(COS, 5000, 5000)])
    assert given_to(simple(observations=observed)) == ("8g", 6 * HOUR)
    line = simple(observations=observed, rung="2g", time_limit=600, timeout_scale=9.0)
    assert given_to(line) == ("2g", 1200)
    assert line.why == "2g: asked for; 20m: 600 s asked for"
    options = Options(rung="2g", time_limit=600)
    line = plan(COS, DEFAULT, options, observed, Override("16g", 7200))
    assert given_to(line) == ("16g", 7200)
    assert given_to(plan(COS, DEFAULT, options, observed, Override("16g"))) == ("16g", 1200)
    assert given_to(plan(COS, DEFAULT, options, observed, Override("", 7200))) == ("2g", 7200)


def test_what_is_asked_for_may_not_exist() -> None:
    with pytest.raises(UsageError, match=r"ldfd01010: '9g' is no memory rung"):
        simple(rung="9g")
    with pytest.raises(UsageError, match=r"ldfd01010: a time limit of 259201 s is more than there is"):
        simple(time_limit=259201)
    assert simple(time_limit=259200).time_limit == 259200


@pytest.mark.parametrize(
    ("scale", "hours"), [(1.0, 6), (1.1, 12), (2.0, 12), (2.1, 24), (0.1, 1), (0.01, 1 / 3), (99, 72)]
)
def test_the_scale_of_time_limits(scale: float, hours: float) -> None:
    line = simple("icb154060", timeout_scale=scale)
    assert line.time_limit == hours * HOUR
    assert (f"scaled by {scale:g}" in line.why) == (scale != 1)
    assert line.rung == "2g"


# ---- the ladder ends


def test_more_than_the_ladder_has_is_refused() -> None:
    fits = Observations([seen(COS, 57344, 10)])
    assert simple(observations=fits).rung == "64g"
    assert "the ladder ends here" in simple(observations=fits).why
    with pytest.raises(UsageError, match=r"ldfd01010: needs more than the ladder has: 57345 MiB \(observed of it\)"):
        simple(observations=Observations([seen(COS, 57345, 10)]))


def after(state: str, **more: Any) -> Status:
    return Status(COS, 3, state, **{"rung": "8g", "time_limit": 7200, **more})


@pytest.mark.parametrize(
    ("status", "rung"),
    [
        (after("error", cause="oom"), "16g"),
        (after("error", exit_code=31), "16g"),
        (after("error", exit_code=34, cause="oom", rung="2g"), "8g"),
        (after("error", cause="transient"), "2g"),
        (after("cancelled", cause="oom"), "8g"),  # it led to this attempt, which has climbed
        (after("error", cause="transient", history=({"state": "placed", "cause": "oom", "rung": "16g"},)), "16g"),
        (after("error", cause="unknown", history=({"state": "error", "exit_code": 33, "rung": "8g"}, 7)), "16g"),  # type: ignore[arg-type]
        (after("error", cause="oom", rung=""), "2g"),
        (after("processed"), "2g"),
    ],
)
def test_never_as_little_memory_as_was_too_little(status: Status, rung: str) -> None:
    line = plan(COS, DEFAULT, Options(), NONE, after=status)
    assert (line.attempt, line.rung, line.vcpus) == (4, rung, DEFAULT.rung(rung).vcpus)
    assert ("it ran out of memory below" in line.why) == (rung != "2g")
    lower = plan(COS, DEFAULT, Options(rung="2g"), NONE, Override("2g"), status)
    assert lower.rung == rung
    higher = plan(COS, DEFAULT, Options(rung="64g"), NONE, after=status)
    assert higher.rung == "64g"


def test_a_ladder_that_is_exhausted() -> None:
    with pytest.raises(UsageError, match="needs more than the ladder has: it ran out of memory at 64g"):
        plan(COS, DEFAULT, Options(rung="64g"), NONE, after=after("error", cause="oom", rung="64g"))
    climbed = after(
        "error", cause="transient", rung="64g", history=({"state": "placed", "cause": "oom", "rung": "64g"},)
    )
    assert plan(COS, DEFAULT, Options(), NONE, after=climbed).rung == "64g"
    higher = replace(DEFAULT, rungs=(*DEFAULT.rungs, Rung("128g", 114688, 16)))
    assert plan(COS, higher, Options(), NONE, after=after("error", cause="oom", rung="64g")).rung == "128g"


def test_after_a_timeout_a_dataset_is_given_longer() -> None:
    line = plan(COS, DEFAULT, Options(), NONE, after=after("error", cause="timeout", time_limit=HOUR))
    assert given_to(line) == ("2g", 6 * HOUR)
    assert line.why.startswith("6h: it was stopped below")
    assert plan(COS, DEFAULT, Options(), NONE, after=after("placed", cause="timeout")).time_limit == 7200
    asked = plan(COS, DEFAULT, Options(time_limit=HOUR), NONE, after=after("error", cause="timeout"))
    assert asked.time_limit == HOUR


# ---- whole lists


def test_a_list() -> None:
    listed = DatasetList(("acs_8ph_01", "j8cb010b0", COS), {COS: Override("8g")})
    found = plan_all(listed, DEFAULT, Options(), NONE, {"j8cb010b0": Status("j8cb010b0", 1, "error")})
    assert [(line.dataset, line.attempt, line.job_class) for line in found.lines] == [
        ("acs_8ph_01", 1, "8g-24h"),
        ("j8cb010b0", 2, "2g-24h"),
        (COS, 1, "8g-1h"),
    ]
    assert list(found.classes.items()) == [("2g-24h", 1), ("8g-1h", 1), ("8g-24h", 1)]
    assert (found.submit_jobs, found.unobserved, found.refused, found.canary) == (3, 3, (), ())
    assert [shard.name for shard in found.shards("b", DEFAULT)] == [
        "b-a1-8g-1h-001",
        "b-a1-8g-24h-001",
        "b-a2-2g-24h-001",
    ]
    # Half the limit of the mosaic, and what the table says of the others.
    assert found.hours * HOUR == pytest.approx(12 * HOUR + 22788 + 1116)
    small, large = (DEFAULT.rung(name) for name in ("2g", "8g"))
    assert found.cost == pytest.approx(cost(DEFAULT, small, 22788) + cost(DEFAULT, large, 12 * HOUR + 1116))


def test_what_cannot_be_planned_is_refused_alone() -> None:
    observed = Observations([seen(COS, 99999, 10)])
    listed = DatasetList(("j8cb010b0", COS, "o8l7sws9q"), {"o8l7sws9q": Override("3g")})
    found = plan_all(listed, DEFAULT, Options(), observed)
    assert [line.dataset for line in found.lines] == ["j8cb010b0"]
    assert [(entry.line, entry.text) for entry in found.refused] == [(0, COS), (0, "o8l7sws9q")]
    assert found.refused[0].reason.startswith("needs more than the ladder has: 99999 MiB")
    assert "'3g' is no memory rung" in found.refused[1].reason
    assert "2 refused" in str(found)
    assert COS in str(found)
    nothing = plan_all(DatasetList((COS,)), DEFAULT, Options(), observed)
    assert (nothing.lines, nothing.submit_jobs, nothing.hours, nothing.cost) == ((), 0, 0, 0)
    assert str(nothing)


@pytest.mark.parametrize("options", [Options(rung="9g"), Options(time_limit=10**6)])
def test_what_is_wrong_for_all_is_said_once(options: Options) -> None:
    with pytest.raises(UsageError):
        plan_all(DatasetList((COS,)), DEFAULT, options, NONE)


def test_what_observed_datasets_cost() -> None:
    observed = Observations([seen(COS, 1000, 50), seen(COS, 1000, 60)])
    found = plan_all(DatasetList((COS,)), DEFAULT, Options(), observed)
    assert found.unobserved == 0
    assert found.cost == pytest.approx(0.0385 / 60)  # a minute of a slot of one processor and 2 GB
    assert found.hours == pytest.approx(1 / 60)
    assert str(found) == "1 dataset, 1 SubmitJob call\n  2g-20m             1\nabout 0.0 hours of jobs, $0.00"
    group = plan_all(DatasetList(("ldqhpb010",)), DEFAULT, Options(), Observations(many(30, lambda _: 100)))
    assert group.hours * HOUR == pytest.approx(155)  # the mean of 10 s to 300 s
    dear = replace(DEFAULT, prices=Prices(1.0, 0.0))
    assert cost(dear, Rung("x", 896, 4), 1800) == pytest.approx(2.0)


def test_what_goes_first_is_at_the_beginning_whatever_its_attempt() -> None:
    names = tuple(f"j{number:08d}" for number in range(300))
    statuses = {name: Status(name, 1, "error") for name in names[::2]}
    found = plan_all(DatasetList(names), DEFAULT, Options(), NONE, statuses).shards("b", DEFAULT)
    assert [(shard.attempt, shard.canary) for shard in found] == [(1, True), (2, True), (1, False), (2, False)]


@pytest.mark.parametrize(("canary", "first"), [(None, 100), (0.0, 0), (0.05, 500)])
def test_the_list_of_ten_thousand(shared_data: Path, canary: float | None, first: int) -> None:  # noqa: F811
    listed = read((shared_data / "dataset-lists" / "mvp-10000.ids").read_bytes(), "mvp-10000.ids")
    found = plan_all(listed, DEFAULT, Options(canary=canary), NONE)
    assert found.classes == {"2g-1h": 4715, "2g-6h": 3266, "2g-24h": 2019}
    assert len(found.canary) == first
    cut = found.shards("mvp", DEFAULT)
    assert len(cut) == found.submit_jobs <= 16
    assert {line.dataset for shard in cut if shard.canary for line in shard.lines} == set(found.canary)
    assert sum(shard.size for shard in cut) == 10000
    record = json.loads(json.dumps(found.to_json()))
    assert record["datasets"] == 10000
    assert (record["classes"], record["canary"]) == (found.classes, list(found.canary))
    assert "10,000 datasets" in str(found)
    assert "upper bound for the 10,000" in str(found)


memories = st.integers(1, 60_000 * MIB)
observed = st.lists(
    st.builds(
        lambda n, memory, seconds, exposures: seen(f"lxxx{n:04d}0", memory / MIB, seconds, exposures),
        *(st.integers(0, 40), memories, st.floats(0.1, 1e5), st.integers(1, 20)),
    ),
    max_size=80,
)


@given(observed, st.randoms(use_true_random=False), st.sampled_from(["error", "placed", "processed"]))
def test_a_plan_can_be_made_again_and_is_on_the_ladder(found: list[Observation], random: Any, state: str) -> None:
    listed = DatasetList(tuple(f"lxxx{n:04d}0" for n in range(45)))
    statuses = {"lxxx00010": Status("lxxx00010", 2, state, cause="oom", rung="16g", time_limit=HOUR)}
    shuffled = random.sample(found, len(found))
    first, second = (
        plan_all(listed, DEFAULT, Options(), Observations(some), statuses) for some in (found, shuffled + found[:3])
    )
    assert first == second
    assert len(first.lines) + len(first.refused) == 45
    for line in first.lines:
        assert DEFAULT.rung(line.rung).vcpus == line.vcpus
        assert line.time_limit in DEFAULT.time_limits
        assert line.why.strip()
        known = [entry.memory for entry in found if entry.dataset == line.dataset]
        assert DEFAULT.rung(line.rung).memory * MIB >= max(known, default=0)
        assert line == plan(line.dataset, DEFAULT, Options(), Observations(found), after=statuses.get(line.dataset))
    assert Plan(()).submit_jobs == 0


def test_refused_entries_are_those_of_lists() -> None:
    assert Rejected(0, COS, "why").to_json() == {"line": 0, "text": COS, "reason": "why"}
    assert str(Rejected(0, COS, "why")) == "'ldfd01010' (why)"
