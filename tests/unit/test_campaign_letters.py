"""Dead letters come back once, to the queue that they came from, and are then left for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from caldp.campaign import letters
from caldp.campaign.deployment import Deployment
from caldp.campaign.letters import Letters, replay
from caldp.campaign.settings import DEFAULT
from tests.fakes import batch
from tests.fakes.cloud import DEPLOYMENT, OUTPUT, Cloud, FakeStack, Killed
from tests.unit.test_lambdas import Context, Load, load, records  # noqa: F401 - a fixture among them

# A call that counted nothing, such as one of no messages.
pytestmark = pytest.mark.filterwarnings("ignore:No application metrics to publish")

NAMES = batch.names(3)
ALIVE = {
    "lists": DEPLOYMENT.list_queue,
    "shards": DEPLOYMENT.shard_queue,
    "events": DEPLOYMENT.event_queue,
    "rescues": DEPLOYMENT.rescue_queue,
}
DEAD = DEPLOYMENT.dead_queues


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return Cloud.at(monkeypatch, replace(DEFAULT, shard_size=2, canary=0))


def bury(cloud: Cloud, purpose: str, *bodies: Mapping[str, Any] | str) -> None:
    for body in bodies:
        cloud.queues[DEAD[purpose]].send(body if isinstance(body, str) else json.dumps(body))


def found(cloud: Cloud) -> dict[str, list[dict[str, Any]]]:
    """What is in the queues that are worked at."""
    return {purpose: bodies for purpose, url in ALIVE.items() if (bodies := cloud.queues[url].bodies)}


def test_no_letters(cloud: Cloud) -> None:
    assert replay(cloud.stack).to_json() == {"replayed": 0, "left": {}}
    assert not cloud.writes


@pytest.mark.parametrize("purpose", ALIVE)
def test_each_goes_to_the_queue_that_it_came_from(cloud: Cloud, purpose: str) -> None:
    bury(cloud, purpose, *({"n": n} for n in range(25)))
    assert replay(cloud.stack) == Letters(25)
    assert sorted(found(cloud)[purpose], key=lambda body: int(body["n"])) == [
        {"n": n, "replayed": True} for n in range(25)
    ]
    assert list(found(cloud)) == [purpose] and not len(cloud.queues[DEAD[purpose]])


@pytest.mark.parametrize("purpose", ALIVE)
def test_one_that_is_dead_again_stays_and_is_counted(
    cloud: Cloud, purpose: str, caplog: pytest.LogCaptureFixture
) -> None:
    bury(cloud, purpose, {"n": 1, "replayed": True}, {"n": 2})
    assert replay(cloud.stack) == Letters(1, {purpose: 1})
    assert [body["n"] for body in found(cloud)[purpose]] == [2]
    for _ in range(2):
        cloud.clock.advance(600)
        assert replay(cloud.stack) == Letters(0, {purpose: 1})
    assert cloud.queues[DEAD[purpose]].bodies == [{"n": 1, "replayed": True}]
    assert caplog.text.count(f"{DEAD[purpose]}: nobody could handle what is in it (1)") == 3


@pytest.mark.parametrize("body", ["nonsense", "[]", "{}", "7", '"x"', ""])
def test_what_makes_no_sense_stays(cloud: Cloud, body: str) -> None:
    bury(cloud, "events", body)
    assert replay(cloud.stack) == Letters(0, {"events": 1})
    assert not found(cloud) and len(cloud.queues[DEAD["events"]]) == 1


def test_invocations_that_failed_stay(cloud: Cloud) -> None:
    bury(cloud, "invocations", {"drain": True}, {"output": OUTPUT})
    assert replay(cloud.stack) == Letters(0, {"invocations": 2})
    assert not found(cloud) and len(cloud.queues[DEAD["invocations"]]) == 2


def test_a_deployment_that_does_not_say_where_they_are(cloud: Cloud) -> None:
    bury(cloud, "events", {"n": 1})
    record = DEPLOYMENT.to_json()
    for missing, left in (("dead_queues", {}), ("event_queue", {"events": 1})):
        known = Deployment.from_json({name: value for name, value in record.items() if name != missing})
        assert replay(FakeStack(cloud, deployment=known)) == Letters(0, left)
    assert not found(cloud)


def test_so_many_at_once(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "MOST", 15)
    bury(cloud, "shards", *({"n": n} for n in range(20)))
    assert [replay(cloud.stack).replayed for _ in range(3)] == [15, 5, 0]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2])
def test_whoever_is_killed_loses_none(cloud: Cloud, at: int, before: bool) -> None:
    bury(cloud, "shards", {"n": 1}, {"n": 2})
    cloud.switch.armed, cloud.switch.at, cloud.switch.before = True, at, before
    with pytest.raises(Killed):
        replay(cloud.stack)
    assert cloud.switch.last == (f"send to {ALIVE['shards']}", f"remove from {DEAD['shards']}")[at - 1]
    cloud.switch.revive()
    cloud.clock.advance(600)
    replay(cloud.stack)
    assert {body["n"] for body in found(cloud)["shards"]} == {1, 2}
    assert not len(cloud.queues[DEAD["shards"]])


def test_a_queue_that_takes_nothing_keeps_no_other_from_it(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bury(cloud, "events", {"n": 1})
    bury(cloud, "shards", {"n": 2})
    with monkeypatch.context() as broken:
        broken.delitem(cloud.queues, ALIVE["events"])
        broken.delitem(cloud.queues, DEAD["lists"])
        assert replay(cloud.stack).replayed == 1
    assert f"{DEAD['events']}: KeyError" in caplog.text and f"{DEAD['lists']}: KeyError" in caplog.text
    assert found(cloud)["shards"] == [{"n": 2, "replayed": True}]
    cloud.clock.advance(600)
    assert replay(cloud.stack).replayed == 1


# ---- those who get them


def test_a_campaign_all_of_whose_messages_were_dead_once(cloud: Cloud, load: Load) -> None:  # noqa: F811
    on_list, submit, hear, reconcile = (
        load(name).handler for name in ("on_list", "submit_shards", "on_batch_event", "reconcile")
    )

    def die_and_come_back(purpose: str) -> None:
        alive = cloud.queues[ALIVE[purpose]]
        died = [body for body, receipt in alive.receive(10) if alive.remove(receipt) is None]
        assert died
        bury(cloud, purpose, *died)
        reconcile({}, Context())
        assert sum(bool(body.get("replayed")) for body in alive.bodies) == len(died)

    def work(purpose: str, handler: Any) -> None:
        queue = cloud.queues[ALIVE[purpose]]
        while taken := queue.receive(10):
            assert handler(records(*(body for body, _ in taken)), Context()) == {"batchItemFailures": []}
            for _, receipt in taken:
                queue.remove(receipt)

    def submit_and_hear(how: str) -> None:
        die_and_come_back("shards")
        work("shards", submit)
        cloud.jobs.run(lambda name, attempt: how)
        die_and_come_back("events")
        work("events", hear)

    cloud.drop("\n".join(NAMES).encode())
    die_and_come_back("lists")
    work("lists", on_list)
    submit_and_hear("oom")
    die_and_come_back("rescues")
    assert submit({"drain": True}, Context()) == {"shards": 2}
    submit_and_hear("ok")
    (output,) = cloud.stack.outputs()
    cloud.assert_sound(NAMES, output)
    assert {(status.state, status.attempt) for status in cloud.statuses(output).values()} == {("processed", 2)}


def test_what_made_it_fail_has_gone_meanwhile(cloud: Cloud) -> None:
    """It failed as often as the queue allows, because nothing of the batch was there yet."""
    cloud.stack.send(ALIVE["shards"], [{"output": OUTPUT, "shard": "x-a1-2g-1h-001"}])
    for _ in range(6):
        cloud.submit_shards()
        cloud.clock.advance(1801)
    assert cloud.failed.total() == 5 and not found(cloud)
    cloud.reconcile()
    assert cloud.letters == Letters(1)
    for _ in range(6):
        cloud.submit_shards()
        cloud.clock.advance(1801)
    cloud.reconcile()
    assert cloud.failed.total() == 10 and cloud.letters == Letters(0, {"shards": 1})


def test_the_reconciler_of_one_campaign_leaves_them_alone(cloud: Cloud, load: Load) -> None:  # noqa: F811
    load("on_list").handler({"datasets": NAMES, "batch": "batch-22"}, Context())
    bury(cloud, "lists", {"n": 1})
    load("reconcile").handler({"output": OUTPUT}, Context())
    assert len(cloud.queues[DEAD["lists"]]) == 1
    load("reconcile").handler({}, Context())
    assert not len(cloud.queues[DEAD["lists"]])
