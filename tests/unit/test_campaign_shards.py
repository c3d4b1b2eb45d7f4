"""Lines, shards and their names: the same for the same list, whatever its order."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldp.campaign.lists import Options, read
from caldp.campaign.plan import Observations, plan_all
from caldp.campaign.settings import DEFAULT
from caldp.campaign.shards import Line, Shard, canary, job_class, jsonl, parse_jsonl, rescue_shards, shards
from caldp.errors import UsageError
from tests.desk import shared_data  # noqa: F401 - a fixture

LINE = Line("j8cb010b0", 2, "8g", 2, 21600, "because")
CLASSES = (("2g", 1, 1200), ("2g", 1, 21600), ("8g", 2, 21600), ("16g", 2, 259200))

lines_of_a_list = st.dictionaries(
    st.from_regex(r"[ijlo][a-z0-9]{8}", fullmatch=True), st.sampled_from(CLASSES), min_size=1, max_size=60
).map(lambda found: [Line(name, 1, *job) for name, job in found.items()])


def some(count: int, attempt: int = 1, letter: str = "j") -> list[Line]:
    return [Line(f"{letter}{number:08d}", attempt, "2g", 1, 21600, "why") for number in range(count)]


def datasets(found: Sequence[Shard]) -> list[str]:
    return [line.dataset for shard in found for line in shard.lines]


@pytest.mark.parametrize(
    ("seconds", "name"),
    [(1200, "2g-20m"), (3600, "2g-1h"), (21600, "2g-6h"), (259200, "2g-72h"), (5400, "2g-90m"), (45, "2g-45s")],
)
def test_classes_of_jobs(seconds: int, name: str) -> None:
    assert job_class("2g", seconds) == name
    assert replace(LINE, rung="2g", time_limit=seconds).job_class == name


def test_a_manifest_comes_back() -> None:
    lines = [LINE, *some(3)]
    data = jsonl(lines)
    assert parse_jsonl(data) == lines
    assert data.count(b"\n") == 4
    assert json.loads(data.splitlines()[0]) == {
        "dataset": "j8cb010b0",
        "attempt": 2,
        "rung": "8g",
        "vcpus": 2,
        "time_limit": 21600,
        "why": "because",
    }
    assert parse_jsonl(json.dumps({**LINE.to_json(), "later": 1}).encode()) == [LINE]
    assert parse_jsonl(b"") == []


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "../j8cb010b0"},
        {"dataset": "j8cb010b0x"},
        {"dataset": ""},
        {"dataset": None},
        {"attempt": 0},
        {"attempt": "1"},
        {"attempt": True},
        {"vcpus": 0},
        {"time_limit": 1.5},
        {"rung": ""},
        {"rung": None},
    ],
)
def test_a_damaged_line_is_named(change: dict[str, Any]) -> None:
    data = jsonl([LINE]) + json.dumps({**LINE.to_json(), **change}).encode()
    with pytest.raises(ValueError, match="line 2 is damaged"):
        parse_jsonl(data)


@pytest.mark.parametrize("line", [b"{", b"7", b"null", b"{}", b"[]", b"\xff", b"[" * 100_000])
def test_a_line_that_is_none_is_named(line: bytes) -> None:
    with pytest.raises(ValueError, match="line 1 is damaged"):
        parse_jsonl(line)


def test_names_and_sizes() -> None:
    lines = [*some(2500), *(replace(line, rung="8g", vcpus=2) for line in some(3, letter="l"))]
    found = shards("mvp", 1, lines, DEFAULT, frozenset())
    assert [(shard.name, shard.size) for shard in found] == [
        ("mvp-a1-2g-6h-001", 1000),
        ("mvp-a1-2g-6h-002", 1000),
        ("mvp-a1-2g-6h-003", 500),
        ("mvp-a1-8g-6h-001", 3),
    ]
    assert not any(shard.canary for shard in found)
    assert found[3] == Shard("mvp-a1-8g-6h-001", "mvp", 1, "8g", 21600, tuple(lines[2500:]))
    assert found[3].job_class == "8g-6h"


def test_what_goes_first_has_shards_of_its_own_at_the_beginning() -> None:
    lines = [*some(2500), *(replace(line, rung="8g", vcpus=2) for line in some(700, letter="l"))]
    found = shards("mvp", 1, lines, DEFAULT)
    first = [shard for shard in found if shard.canary]
    assert found[: len(first)] == first
    assert set(datasets(first)) == canary((line.dataset for line in lines), DEFAULT)
    assert len(datasets(first)) == 32
    assert [shard.name for shard in found] == [
        *("mvp-a1-2g-6h-001", "mvp-a1-8g-6h-001"),
        *("mvp-a1-2g-6h-002", "mvp-a1-2g-6h-003", "mvp-a1-2g-6h-004", "mvp-a1-8g-6h-002"),
    ]


@pytest.mark.parametrize(
    ("count", "share", "first"),
    [(20, None, 0), (21, None, 20), (2000, None, 20), (2001, None, 21), (30, 0.0, 0), (1000, 0.5, 500), (30, 1.0, 0)],
)
def test_how_many_go_first(count: int, share: float | None, first: int) -> None:
    names = [line.dataset for line in some(count)]
    chosen = canary(names, DEFAULT, share)
    assert len(chosen) == first
    assert chosen <= set(names)
    assert chosen == canary([*names[::-1], *names], DEFAULT, share)


def test_what_goes_first_is_a_mixture(shared_data: Path) -> None:  # noqa: F811
    listed = read((shared_data / "dataset-lists" / "mvp-10000.ids").read_bytes(), "mvp-10000.ids")
    chosen = canary(listed.datasets, DEFAULT)
    assert len(chosen) == 100
    assert {name[0] for name in chosen} == set("ijlo")


def test_a_plan_is_of_one_attempt_and_has_each_dataset_once() -> None:
    with pytest.raises(UsageError, match="attempt 2 is in a plan of attempt 1"):
        shards("mvp", 1, [*some(3), LINE], DEFAULT)
    for cut in (lambda lines: shards("mvp", 2, lines, DEFAULT), lambda lines: rescue_shards("mvp", lines, DEFAULT)):
        with pytest.raises(UsageError, match="j8cb010b0 was planned twice"):
            cut([LINE, replace(LINE, rung="16g")])
        assert datasets(cut([LINE, LINE])) == ["j8cb010b0"]
    assert shards("mvp", 1, [], DEFAULT) == rescue_shards("mvp", [], DEFAULT) == []


def test_rescue_shards_are_called_by_what_is_in_them() -> None:
    lines = [*some(1500, 2), LINE, *some(2, 3, "o")]
    found = rescue_shards("mvp", lines, DEFAULT)
    assert [(shard.attempt, shard.job_class, shard.size) for shard in found] == [
        (2, "2g-6h", 1000),
        (2, "2g-6h", 500),
        (2, "8g-6h", 1),
        (3, "2g-6h", 2),
    ]
    assert all(re.fullmatch(r"mvp-a\d-\dg-6h-r[0-9a-f]{16}", shard.name) for shard in found)
    assert len({shard.name for shard in found}) == 4
    assert not any(shard.canary for shard in found)
    assert rescue_shards("mvp", lines[::-1] + lines, DEFAULT) == found
    assert rescue_shards("mvp", [LINE], DEFAULT)[0] == found[2]
    assert rescue_shards("mvp", [LINE, *some(1, 2)], DEFAULT)[0].name not in {shard.name for shard in found}


@given(lines_of_a_list, st.randoms(use_true_random=False), st.integers(1, 7))
def test_shuffled_and_repeated_lines_make_the_same_shards(lines: list[Line], random: Any, size: int) -> None:
    settings = replace(DEFAULT, shard_size=size, canary=0.2, canary_least=3)
    again = [*lines, *random.choices(lines, k=5)]
    random.shuffle(again)
    found = shards("b", 1, lines, settings)
    assert shards("b", 1, again, settings) == found
    assert rescue_shards("b", again, settings) == rescue_shards("b", lines, settings)
    for cut in (found, rescue_shards("b", lines, settings)):
        assert sorted(datasets(cut)) == sorted(line.dataset for line in lines)
        assert len({shard.name for shard in cut}) == len(cut)
        for shard in cut:
            assert 0 < shard.size <= size
            assert {(line.rung, line.time_limit) for line in shard.lines} == {(shard.rung, shard.time_limit)}
            assert list(shard.lines) == sorted(shard.lines, key=lambda line: line.dataset)


@given(
    st.lists(st.from_regex(r"[ijlo][a-z0-9]{8}", fullmatch=True), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_a_shuffled_list_with_repetitions_makes_the_same_shards(names: list[str], random: Any) -> None:
    again = [name.upper() if random.random() < 0.3 else name for name in names + names[:5]]
    random.shuffle(again)
    first, second = (
        plan_all(read("\n".join(given).encode(), "a.txt"), DEFAULT, Options(), Observations())
        for given in (names, again)
    )
    assert first == second
    assert first.shards("b", DEFAULT) == second.shards("b", DEFAULT)
    assert len(first.shards("b", DEFAULT)) == first.submit_jobs
