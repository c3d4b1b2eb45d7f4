"""Settings of environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caldp.campaign import settings as campaign
from caldp.errors import UsageError
from infra import settings
from tests.infra.conftest import changed


@pytest.mark.parametrize("name", ["dev", "ops"])
def test_environments_make_sense_and_name_no_account(name: str) -> None:
    found = settings.load(name)
    assert found.infra.name == f"caldp-{name}"
    assert campaign.from_json(found.campaign_json) == found.campaign
    text = (settings.FOLDER / f"{name}.toml").read_text()
    assert not any(len(word) == 12 and word.isdigit() for word in text.split())


def test_families_follow_from_the_memory_of_each_processor() -> None:
    found = changed()
    chosen = {rung.name: found.infra.capacity(rung).families[0][0] for rung in found.campaign.rungs}
    assert chosen == {"2g": "c", "8g": "m", "16g": "r", "64g": "r"}
    own = changed(infra={"rungs": {"8g": {"families": ["m6a"]}}})
    assert own.infra.capacity(own.campaign.rung("8g")).families == ("m6a",)


@pytest.mark.parametrize(
    ("infra", "said"),
    [
        ({"nmae": "x"}, "there is no setting infra.nmae"),
        ({"name": "Caldp"}, "infra.name"),
        ({"name": 7}, "infra.name = 7 is no str"),
        ({"image": "latest"}, "infra.image"),
        ({"image": "host:5000/x/y:z:w"}, "infra.image"),
        ({"bucket": "s3://x"}, "infra.bucket"),
        ({"crds": "bucket"}, "is not an input or output"),
        ({"crds": "file:x"}, "infra.crds and infra.inputs"),
        ({"crds": "s3://Bucket/x"}, "lower case"),
        ({"inputs": ["file:x"]}, "infra.crds and infra.inputs"),
        ({"inputs": "s3://x"}, "infra.inputs = 's3://x' is no list"),
        ({"prefix": "/x"}, "infra.prefix"),
        ({"log_days": 8}, "infra.log_days"),
        ({"log_days": True}, "infra.log_days = True is no int"),
        ({"rungs": {"3g": {}}}, "the ladder has 16g, 2g, 64g, 8g"),
        ({"rungs": {"64g": {"spot_vcpus": 4}}}, "those of one job"),
        ({"rungs": {"2g": {"spot": 4}}}, "there is no setting infra.rungs.2g.spot"),
        ({"vpc": {"id": "vpc-1"}}, "needs its subnets"),
        ({"vpc": {"id": "vpc-1", "subnets": ["s-1", "s-2"], "zones": ["a"]}}, "the zone of each"),
        ({"vpc": {"subnets": ["s-1"]}}, "subnets are those of a VPC"),
        ({"shares": {}}, "infra.shares"),
        ({"shares": {"a b": 1}}, "infra.shares"),
        ({"architecture": "arm"}, "infra.architecture"),
        ({"volume_gb": 50}, "infra.volume_gb"),
        ({"capacity_hours": 25}, "24 at most"),
        ({"drain_minutes": 0}, "infra.drain_minutes is 1 or more"),
        ({"failure_percent": 101}, "infra.failure_percent"),
        ({"alarm_email": "somebody"}, "infra.alarm_email"),
        ({"budget": -1}, "infra.budget"),
        ({"log_level": "info"}, "infra.log_level"),
    ],
)
def test_mistakes_are_named(infra: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, UsageError), match=said):
        changed(infra=infra)


def test_so_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for text, said in (
        ("", "infra.image is missing"),
        ("[infra", "is not TOML"),
        ("[infra]\nname = 'x1'", "infra.image is missing"),
        ("[infar]", "there is no table 'infar'"),
        ("[infra]\nname='x1'\nimage='xx:1'\n[campaign]\nshards=1", "there is no setting 'shards'"),
        ("[infra]\nname='x1'\nimage='xx:1'\n[campaign]\ntime_limits=[30,60]", "no job before 60 s"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=said) as error:
            settings.load(str(path))
        assert str(path) in str(error.value)
    with pytest.raises(UsageError, match="nowhere.toml cannot be read"):
        settings.load("nowhere")


def test_a_shard_that_a_function_cannot_submit_in_its_time_is_refused_with_the_arithmetic() -> None:
    assert changed(campaign={"shard_size": 5000}).campaign.shard_size == 5000
    with pytest.raises(ValueError, match="campaign.shard_size is 10000.* 35 datasets a second.* 300 s.*: 5250 at most"):
        changed(campaign={"shard_size": 10000})
    with pytest.raises(ValueError, match="5250 at most"):
        changed(campaign={"shard_size": settings.LARGEST_SHARD + 1})
