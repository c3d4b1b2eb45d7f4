"""The figures of campaigns: defaults, files of them, and files that make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caldp.campaign.settings import DEFAULT, Budget, Estimate, Prices, Rung, checked, from_json, load
from caldp.errors import UsageError

HOUR = 3600


def written(folder: Path, text: str) -> Path:
    path = folder / "campaign.toml"
    path.write_text(text)
    return path


def test_the_defaults_make_sense() -> None:
    assert checked(DEFAULT) is DEFAULT
    assert load(None) is DEFAULT
    assert [(rung.name, rung.memory, rung.vcpus) for rung in DEFAULT.rungs] == [
        ("2g", 1792, 1),
        ("8g", 7168, 2),
        ("16g", 14336, 2),
        ("64g", 57344, 8),
    ]
    assert [limit // 60 for limit in DEFAULT.time_limits] == [20, 60, 120, 360, 720, 1440, 2880, 4320]
    assert {name: budget.retries for name, budget in DEFAULT.budgets.items()} == {
        "transient": 4,
        "oom": 3,
        "timeout": 2,
        "unknown": 1,
    }
    assert DEFAULT.estimates.keys() == {"acs", "cos", "stis", "wfc3", "svm", "mvm"}


@pytest.mark.parametrize("name", ["8g", "8G", "8"])
def test_steps_by_name(name: str) -> None:
    assert DEFAULT.rung(name) == Rung("8g", 7168, 2)


@pytest.mark.parametrize("name", ["", "g", "9g", "8gb", "-8"])
def test_there_are_no_other_steps(name: str) -> None:
    with pytest.raises(UsageError, match="the ladder has 2g, 8g, 16g, 64g"):
        DEFAULT.rung(name)


def test_climbing() -> None:
    names = ["2g"]
    while (above := DEFAULT.above(names[-1])) is not None:
        names.append(above.name)
    assert names == ["2g", "8g", "16g", "64g"]


@pytest.mark.parametrize(("memory", "name"), [(0, "2g"), (1792, "2g"), (1792.5, "8g"), (57344, "64g"), (57345, None)])
def test_the_step_that_holds_so_much(memory: float, name: str | None) -> None:
    rung = DEFAULT.holding(memory)
    assert (rung and rung.name) == name


@pytest.mark.parametrize(("seconds", "hours"), [(0, 1 / 3), (1200, 1 / 3), (1201, 1), (12 * HOUR, 12), (80 * HOUR, 72)])
def test_time_limits(seconds: float, hours: float) -> None:
    assert DEFAULT.time_limit(seconds) == hours * HOUR


@pytest.mark.parametrize(
    ("seconds", "hours"), [(1200, 2), (HOUR, 6), (24 * HOUR, 72), (48 * HOUR, 72), (72 * HOUR, 72)]
)
def test_longer_is_the_next_limit_but_one(seconds: int, hours: int) -> None:
    assert DEFAULT.longer(seconds) == hours * HOUR


def test_delays_of_a_budget() -> None:
    assert [DEFAULT.budgets["transient"].delay(spent) for spent in range(6)] == [60, 300, 900, 3600, 3600, 3600]
    assert Budget(3).delay(2) == 0


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    text = """
time_limits = [5, 10]
attempts = 3
shard_size = 100
canary = 0
rungs = [{name = "64m", memory = 64, vcpus = 1}, {name = "256m", memory = 256, vcpus = 2}]
[budgets.timeout]
retries = 0
[budgets.unknown]
retries = 2
delays = [1, 2]
[prices]
vcpu_hour = 1.5
[estimates.cos]
memory_p95 = 0.01
time_p99 = 2
rung = "64m"
time_limit = 5
"""
    settings = load(written(tmp_path, text))
    assert settings.rungs == (Rung("64m", 64, 1), Rung("256m", 256, 2))
    assert (settings.time_limits, settings.attempts, settings.shard_size, settings.canary) == ((5, 10), 3, 100, 0)
    assert settings.budgets["timeout"] == Budget(0)
    assert settings.budgets["unknown"] == Budget(2, (1, 2))
    assert settings.budgets["transient"] == DEFAULT.budgets["transient"]
    assert settings.prices == Prices(1.5, DEFAULT.prices.gb_hour)
    assert settings.estimates["cos"] == Estimate(0.01, 2, "64m", 5)
    assert settings.estimates["svm"].rung == "64m"
    assert settings.submit_rate == DEFAULT.submit_rate
    assert settings.time_limit(7) == 10
    assert load(written(tmp_path, "")) == DEFAULT


def test_on_a_ladder_of_small_steps_estimates_begin_at_its_foot(tmp_path: Path) -> None:
    text = 'rungs = [{name = "64m", memory = 64, vcpus = 1}, {name = "256m", memory = 256, vcpus = 1}]'
    estimates = load(written(tmp_path, text)).estimates
    assert {(estimate.rung, estimate.memory_p95) for estimate in estimates.values()} == {("64m", 0)}


def test_a_budget_may_change_its_delays_alone(tmp_path: Path) -> None:
    assert load(written(tmp_path, "[budgets.oom]\ndelays = [1]")).budgets["oom"] == Budget(3, (1,))


def test_json_form() -> None:
    plain = json.loads(json.dumps(DEFAULT.to_json()))
    assert from_json(plain) == DEFAULT
    # Of a later version.
    plain["unheard_of"] = plain["prices"]["unheard_of"] = plain["rungs"][0]["unheard_of"] = 1
    plain["budgets"]["unheard_of"] = plain["estimates"]["unheard_of"] = {}
    assert from_json(plain) == DEFAULT
    assert from_json(plain).to_json() == DEFAULT.to_json()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shard_sise = 5", "shard_sise"),
        ("shard_size = 0", "shard_size"),
        ("shard_size = 10001", "shard_size"),
        ("attempts = 0", "attempts"),
        ("canary = 1.5", "canary"),
        ("canary = nan", "canary"),
        ("canary_failures = -0.1", "canary_failures"),
        ("submit_rate = 0", "submit_rate"),
        ("submit_rate = inf", "submit_rate"),
        ("time_limits = []", "time_limits"),
        ("time_limits = [60, 60]", "time_limits"),
        ("time_limits = [3600, 60]", "time_limits"),
        ("time_limits = [0, 60]", "time_limits"),
        ("rungs = []", "rungs"),
        ('rungs = [{name="a", memory=2, vcpus=1}, {name="b", memory=1, vcpus=1}]', "rungs"),
        ('rungs = [{name="a", memory=1, vcpus=1}, {name="a", memory=2, vcpus=1}]', "rungs"),
        ('rungs = [{name="a", memory=0, vcpus=1}]', "rungs"),
        ('rungs = [{name="a", memory=1, vcpus=0}]', "vcpus"),
        ('rungs = [{name="a", memory=1, processors=1}]', "processors"),
        ("[budgets.network]\nretries = 1", "network"),
        ("[budgets.oom]\nretries = -1", "budgets"),
        ("[budgets.oom]\nretries = 1\ndelays = []", "budgets"),
        ("[budgets.oom]\nretries = 1\ndelays = [-1]", "budgets"),
        ("[prices]\nmemory = 1", "memory"),
        ('[estimates.cos]\nmemory_p95=1\ntime_p99=1\nrung="3g"\ntime_limit=1', "estimates"),
        ("[estimates.cos]\nmemory_p95=1", "Estimate"),
        ("attempts = 1.5", "attempts"),
        ("attempts = true", "attempts"),
        ("shard_size = 10.5", "shard_size"),
        ("time_limits = [1.5, 2]", "time_limits"),
        ("time_limits = 60", "time_limits"),
        ('canary_least = "a"', "canary_least"),
        ("canary_least = -5", "canary_least"),
        ("rungs = 5", "rungs"),
        ("rungs = [5]", "rungs"),
        ('rungs = [{name="a", memory=1}]', "vcpus"),
        ('rungs = [{name="8G", memory=1, vcpus=1}]', "small letters"),
        ("[budgets]\noom = 5", "budgets.oom"),
        ("[budgets.oom]\nretries = 1.5", "budgets.oom.retries"),
        ("[prices]\nvcpu_hour = -1", "prices"),
        ('[prices]\nvcpu_hour = "a"', "prices.vcpu_hour"),
        ('[estimates.nicmos]\nmemory_p95=1\ntime_p99=1\nrung="2g"\ntime_limit=1', "nicmos"),
        ('[estimates.cos]\nmemory_p95="1"\ntime_p99=1\nrung="2g"\ntime_limit=1', "estimates.cos.memory_p95"),
        ('[estimates.cos]\nmemory_p95=-1\ntime_p99=1\nrung="2g"\ntime_limit=1', "estimates"),
        ("shard_size = ", "not TOML"),
        ("\udcff", "utf-8"),
    ],
)
def test_files_that_make_no_sense_are_named_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "campaign.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert said in str(caught.value).replace(str(path), "")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read \(No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path)
