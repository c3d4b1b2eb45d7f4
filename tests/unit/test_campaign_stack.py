"""What functions know of their deployment, and their queues."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError

from caldp.campaign.settings import DEFAULT
from caldp.campaign.stack import ELSEWHERE, LONGEST_DELAY, QueueError, Stack, client
from caldp.errors import UsageError
from caldp.store import Overwrite
from tests.fakes.cloud import BUCKET, DEPLOYMENT, OUTPUT, PARENT, Cloud, FakeStack

QUEUE = DEPLOYMENT.shard_queue


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a function."""
    (tmp_path / "settings.json").write_text(json.dumps(DEFAULT.to_json()))
    return {
        "CALDP_DEPLOYMENT": json.dumps(DEPLOYMENT.to_json()),
        "CALDP_SETTINGS": str(tmp_path / "settings.json"),
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return Cloud.at(monkeypatch)


def test_it_is_found_in_the_environment(environ: dict[str, str]) -> None:
    stack = Stack.of_environment(environ)
    assert stack.deployment == DEPLOYMENT and stack.settings.to_json() == DEFAULT.to_json()


@pytest.mark.parametrize("text", [None, "nonsense", "[]", '{"rungs": 1}', '{"shard_size": 0}'])
def test_settings_that_make_no_sense(environ: dict[str, str], text: str | None) -> None:
    path = Path(environ["CALDP_SETTINGS"])
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(UsageError):
        Stack.of_environment(environ)


@pytest.mark.parametrize("missing", ["CALDP_DEPLOYMENT", "CALDP_SETTINGS"])
def test_an_environment_that_is_not_complete(environ: dict[str, str], missing: str) -> None:
    del environ[missing]
    with pytest.raises(UsageError, match=missing):
        Stack.of_environment(environ)


@pytest.mark.parametrize("uri", ["s3://elsewhere/x", "s3://outputs-2/x", "file:/tmp", "astroquery:", "s3://", ""])
def test_other_places_are_refused(cloud: Cloud, uri: str) -> None:
    with pytest.raises(UsageError):
        cloud.stack.store(uri)
    for good in (OUTPUT, f"s3://{BUCKET}"):
        assert cloud.stack.store(good).uri == good


# ---- queues


def test_messages_go_in_tens(cloud: Cloud) -> None:
    assert cloud.stack.send(QUEUE, ({"n": n} for n in range(25))) == 25
    assert len(cloud.writes) == 3
    assert sorted(body["n"] for body in cloud.queues[QUEUE].bodies) == list(range(25))
    assert cloud.stack.send(QUEUE, []) == 0 and len(cloud.writes) == 3


@pytest.mark.parametrize(("asked", "given"), [(59.6, 60), (900, 900), (5000, LONGEST_DELAY)])
def test_a_message_waits_no_longer_than_a_queue_can_keep_it(cloud: Cloud, asked: float, given: float) -> None:
    cloud.stack.send(QUEUE, [{}], asked)
    cloud.clock.advance(given - 1)
    assert len(list(cloud.stack.take(QUEUE, 1))) == 0
    cloud.clock.advance(1)
    assert len(list(cloud.stack.take(QUEUE, 1))) == 1


def test_a_message_that_was_refused_is_no_success(cloud: Cloud) -> None:
    cloud.faults.rate = 0.5
    failed = 0
    for _ in range(50):
        before = len(cloud.queues[QUEUE])
        try:
            cloud.stack.send(QUEUE, [{}])
            assert len(cloud.queues[QUEUE]) == before + 1
        except (QueueError, BotoCoreError) as error:
            failed += 1
            assert "did not take 1 messages (refused)" in str(error) or "Connection was closed" in str(error)
    assert 20 < failed < 50


def test_messages_are_taken_until_there_are_enough(cloud: Cloud) -> None:
    cloud.stack.send(QUEUE, ({"n": n} for n in range(25)))
    assert len(list(cloud.stack.take(QUEUE, 13))) == 13
    assert len(list(cloud.stack.take(QUEUE, 100))) == 12
    assert list(cloud.stack.take(QUEUE, 100)) == []
    cloud.clock.advance(1801)
    assert len(list(cloud.stack.take(QUEUE, 100))) == 25


def test_messages_that_were_removed_do_not_come_back(cloud: Cloud) -> None:
    cloud.stack.send(QUEUE, ({"n": n} for n in range(25)))
    taken = list(cloud.stack.take(QUEUE, 15))
    cloud.stack.remove(QUEUE, taken[:12])
    cloud.clock.advance(1801)
    assert len(list(cloud.stack.take(QUEUE, 100))) == 13


def test_messages_that_cannot_be_removed_come_back(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud.stack.send(QUEUE, ({"n": n} for n in range(200)))
    taken = list(cloud.stack.take(QUEUE, 200))
    cloud.faults.rate = 0.5
    cloud.stack.remove(QUEUE, taken)
    assert 0 < len(cloud.queues[QUEUE]) < 200 and "keeps 10 messages" in caplog.text


@pytest.mark.parametrize("body", ["nonsense", "[]", "1", '"x"'])
def test_a_message_that_is_no_mapping_says_nothing(cloud: Cloud, body: str) -> None:
    cloud.queues[QUEUE].send(body)
    (message,) = cloud.stack.take(QUEUE, 1)
    assert message.body == {}


# ---- batches


@pytest.mark.parametrize("prefix", ["", pytest.param("/runs", marks=pytest.mark.slow), "/a/b"])
@pytest.mark.usefixtures("aws_of_moto")
def test_what_is_where_batches_go(prefix: str) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    names = [f"b-{n:04}" for n in range(1005 if prefix == "/runs" else 3)]  # more than one page
    for name in names:
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}/control/plan.json".removeprefix("/"), Body=b"{}")
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}/README".removeprefix("/"), Body=b"")
    known = DEPLOYMENT.from_json({**DEPLOYMENT.to_json(), "output": f"s3://{BUCKET}{prefix}"})
    stack = Stack(known, DEFAULT)
    assert stack.outputs() == [f"s3://{BUCKET}{prefix}/{name}" for name in ["README", *names]]
    stack.enter(f"s3://{BUCKET}/else/where")
    assert stack.outputs()[-2:] == [f"s3://{BUCKET}{prefix}/control", f"s3://{BUCKET}/else/where"]


@pytest.mark.usefixtures("aws_of_moto")
def test_a_real_queue_takes_what_is_asked_of_it() -> None:
    url = boto3.client("sqs").create_queue(QueueName="q")["QueueUrl"]
    stack = Stack(DEPLOYMENT, DEFAULT)
    assert stack.send(url, ({"n": n} for n in range(12))) == 12
    assert stack.send(url, [{"n": 99}], 1e6) == 1
    taken = list(stack.take(url, 20))
    assert sorted(message.body["n"] for message in taken) == list(range(12))
    stack.remove(url, taken)
    asked = [
        "ApproximateNumberOfMessages",
        "ApproximateNumberOfMessagesDelayed",
        "ApproximateNumberOfMessagesNotVisible",
    ]
    left = boto3.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=asked)["Attributes"]
    assert [left[name] for name in asked] == ["0", "1", "0"]


@pytest.mark.parametrize("service", ["sqs", "batch", "ssm", "logs"])
def test_clients_go_by_the_settings_that_s3_goes_by(
    monkeypatch: pytest.MonkeyPatch, service: str, aws_of_moto: None
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(UsageError, match="You must specify a region; export AWS_REGION"):
        client(service)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert client(service).meta.region_name == "eu-west-1"
    settings = {"AWS_REGION": "eu-west-3", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    made = Stack(DEPLOYMENT, DEFAULT, settings)._client(service)
    assert (made.meta.region_name, made.meta.endpoint_url) == ("eu-west-3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match=r"these settings: The config profile \(nobody\) could not be found; export"):
        client(service)


def test_what_is_a_campaign(cloud: Cloud) -> None:
    assert not cloud.stack.is_campaign(OUTPUT)
    cloud.quiet_store().put("control/request.json", b"{}", Overwrite())
    assert cloud.stack.is_campaign(OUTPUT) and not cloud.stack.is_campaign(f"{PARENT}/x")
    gets = cloud.gets
    assert cloud.stack.is_campaign(OUTPUT) and cloud.gets == gets


def test_batches_elsewhere_are_found(cloud: Cloud) -> None:
    cloud.quiet_store().put("control/plan.json", b"{}", Overwrite())
    deeper, other = f"{PARENT}/deeper/a", f"s3://{BUCKET}/b"
    for output in (other, deeper, OUTPUT, deeper):
        cloud.stack.enter(output)
    assert len([what for what in cloud.writes if ELSEWHERE in what]) == 3
    found = cloud.stack.outputs()
    assert found[:2] == [OUTPUT, f"{PARENT}/control"] and found[2:] == sorted([deeper, other])


def test_batches_at_home_are_not_entered(cloud: Cloud) -> None:
    for output in (OUTPUT, f"{OUTPUT}/", f"{PARENT}/another"):
        cloud.stack.enter(output)
    assert not cloud.writes


@pytest.mark.parametrize("home", [PARENT, f"{PARENT}/", f"s3://{BUCKET}", f"s3://{BUCKET}/"])
def test_home_is_home_however_it_is_written(cloud: Cloud, home: str) -> None:
    stack = FakeStack(cloud, deployment=replace(DEPLOYMENT, output=home))
    stack.enter(f"{home.rstrip('/')}/x")
    assert not cloud.writes
    stack.enter(f"s3://{BUCKET}/some/where/else")
    assert stack.outputs() == [f"{home.rstrip('/')}/control", f"s3://{BUCKET}/some/where/else"]


@pytest.mark.parametrize(
    ("output", "place"),
    [(OUTPUT, PARENT), (f"{OUTPUT}/", PARENT), (f"s3://{BUCKET}/x", f"s3://{BUCKET}")],
)
def test_the_place_of_a_batch(cloud: Cloud, output: str, place: str) -> None:
    assert cloud.stack.place(output).uri == place


@pytest.mark.parametrize("output", ["s3://elsewhere/x", f"s3://{BUCKET}", "file:/tmp/x"])
def test_other_places_have_no_batches(cloud: Cloud, output: str) -> None:
    for act in (cloud.stack.place, cloud.stack.enter):
        with pytest.raises(UsageError):
            act(output)
    assert not cloud.writes


def test_its_clock_is_that_of_the_world() -> None:
    assert Stack(DEPLOYMENT, DEFAULT).clock().tzinfo is not None
