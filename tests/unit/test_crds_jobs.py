"""Heavy work that is started once, taken up again and never done twice; and what it says meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from caldp.crdserver import job, jobs, reprocessing, tending
from caldp.crdserver.channels import AbortedError, Channels
from caldp.crdserver.jobs import Jobs, LambdaRunner, from_json
from caldp.crdserver.records import SqliteRecords
from caldp.crdserver.site import Site
from caldp.errors import InputError
from tests.sites import made_site, settings_at, shared_data, shelf, site

__all__ = ["made_site", "shared_data", "shelf", "site"]


@pytest.fixture
def board(tmp_path: Path) -> Jobs:
    return Jobs(Site(settings_at(tmp_path), "hst"))


@pytest.fixture
def channels(tmp_path: Path) -> Channels:
    return Channels(SqliteRecords(tmp_path / "records.sqlite"), "hst")


# ---- jobs


def test_a_job_of_one_name_is_there_once(board: Jobs) -> None:
    assert board.add("one", "tend", {}) and not board.add("one", "tend", {})
    assert [job.id for job in board.open()] == ["one"]


def test_one_worker_takes_a_job(board: Jobs) -> None:
    board.add("one", "tend", {"a": 1})
    lease = board.take("one")
    assert lease is not None and (lease.job.attempt, lease.job.about) == (1, {"a": 1})
    assert board.take("one") is None and board.open() == []
    with lease:
        lease.over("done")
    assert board.take("one") is None
    found = board.get("one")
    assert found is not None and found.state == "done"
    assert board.take("nothing") is None


def test_a_job_whose_worker_died_is_taken_up_again(board: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE", 0.05)
    board.add("one", "tend", {})
    for attempt in (1, 2, 3):
        lease = board.take("one")
        assert lease is not None and (lease.job.attempt, lease.job.state) == (attempt, "running")
        time.sleep(0.1)
        assert [one.id for one in board.open()] == ["one"]
    last = board.take("one")
    assert last is not None and last.job.state == "failed"


def test_a_worker_renews_its_lease(board: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE", 0.5)
    monkeypatch.setattr(jobs, "_RENEW", 0.05)
    board.add("one", "tend", {})
    lease = board.take("one")
    assert lease is not None
    with lease:
        time.sleep(1)
        assert board.take("one") is None and not lease.lost
        lease.over("done")


def test_a_worker_that_is_late_changes_nothing(board: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE", 0.05)
    board.add("one", "tend", {})
    late = board.take("one")
    assert late is not None
    time.sleep(0.1)
    monkeypatch.setattr(jobs, "LEASE", 60)
    second = board.take("one")
    assert second is not None
    with late:
        late.over("failed")
    assert late.lost
    with second:
        second.over("done")
    found = board.get("one")
    assert found is not None and found.state == "done"


def test_a_job_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    settings = settings_at(tmp_path)
    board = Jobs(Site(settings, "hst"))
    board.add("one", "affected", {"old": "hst_0001.pmap", "new": "hst_0002.pmap"})
    monkeypatch.setattr(reprocessing, "compute", Mock(side_effect=InputError("there is no hst_0001.pmap")))
    assert job.work(settings, "hst", "one")
    assert not job.work(settings, "hst", "one")
    found = board.get("one")
    assert found is not None and found.state == "failed"
    assert "job one: there is no hst_0001.pmap" in capsys.readouterr().err


def test_tending_repairs_what_jobs_read(site: Site) -> None:
    pointer = Path(site.store.url("contexts/hst/current.json"))
    pointer.unlink()
    tending.tend(site)
    assert json.loads(pointer.read_text())["context"] == "hst_0729.pmap"


def test_settings_reach_a_worker_as_they_are(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, archive="manifest", largest_upload=5)
    assert from_json(json.loads(json.dumps(jobs.as_json(settings)))) == settings


def test_a_function_of_aws_is_called_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Mock()
    make = Mock(return_value=client)
    monkeypatch.setattr("caldp.aws.make", make)
    LambdaRunner("crds-job", {"AWS_REGION": "eu-west-1", "HOME": "/x"}).start("hst", "one")
    make.assert_called_once_with("lambda", {"AWS_REGION": "eu-west-1"})
    client.invoke.assert_called_once_with(
        FunctionName="crds-job", InvocationType="Event", Payload=b'{"observatory": "hst", "job": "one"}'
    )


# ---- channels


def test_messages_come_in_order_each_once(channels: Channels) -> None:
    key = channels.open("ann")
    writer = channels.writer(key)
    for number in range(250):
        writer.say("info", f"line {number}")
    writer.end("done", {"status": 0, "result": "http://x/1"})
    found = channels.pull(key)
    assert [one["id"] for one in found] == list(range(1, 252))
    assert [one["data"] for one in found[:250]] == [f"line {number}" for number in range(250)]
    assert {one["type"] for one in found[:250]} == {"log_message"}
    assert found[-1]["data"] == {"status": 0, "result": "http://x/1"}
    assert [one["id"] for one in channels.pull(key, 249)] == [250, 251]
    assert channels.pull(key, 251) == []


def test_a_second_writer_goes_on_where_the_first_stopped(channels: Channels) -> None:
    key = channels.open("ann")
    channels.writer(key).end("log_message", {})
    channels.writer(key).end("done", {})
    assert [one["id"] for one in channels.pull(key)] == [1, 2]


def test_an_unknown_channel_is_not_found_in_the_words_that_the_client_knows(channels: Channels) -> None:
    for key in ("", "unknown", "x" * 500):
        with pytest.raises(InputError, match=r"Channel '.*' not found"):
            channels.pull(key)


def test_a_writer_ends_when_nobody_wants_more(channels: Channels) -> None:
    key = channels.open("ann")
    writer = channels.writer(key)
    channels.abort(key)
    with pytest.raises(AbortedError, match="External agent requested calling process termination"):
        writer.say("info", "one more")


def test_a_very_long_line_is_cut(channels: Channels) -> None:
    key = channels.open("ann")
    writer = channels.writer(key)
    writer.say("warning", "x" * 10_000)
    writer.end("done", {})
    assert "".join(one["data"] for one in channels.pull(key)[:-1]) == "x" * 10_000


@pytest.mark.parametrize("make", [Channels.open])
def test_keys_cannot_be_guessed(channels: Channels, make: Callable[[Channels, str], str]) -> None:
    keys = {make(channels, "ann") for _ in range(20)}
    assert len(keys) == 20 and all(len(key) == 32 for key in keys)
