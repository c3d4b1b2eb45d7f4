"""What was lost is found again: each finding and its repair, and a second pass that changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from caldp import messages
from caldp.campaign import hear, observe, operate
from caldp.campaign.accept import accept
from caldp.campaign.control import CLOSED, FOLDED, PAUSE, PLAN, RELEASED, SEEN, Control, claim_key
from caldp.campaign.lists import DatasetList, Options
from caldp.campaign.operate import Order, Selector, carry_out, resolve
from caldp.campaign.plan import from_jsonl
from caldp.campaign.reconcile import GRACE, TOO_LONG, Report, open_batches, reconcile, reconcile_all
from caldp.campaign.settings import DEFAULT
from caldp.campaign.stack import ELSEWHERE
from caldp.campaign.submit import SETTLED, read_claim
from caldp.errors import UsageError
from caldp.messages import Status
from caldp.store import Create, Overwrite, Store
from tests.fakes import batch
from tests.fakes.cloud import DEPLOYMENT, OUTCOMES, OUTPUT, PARENT, Cloud, publish

NAMES = batch.names(4)
FIGURES = replace(DEFAULT, shard_size=3, canary=0)
SHARDS, RESCUES = DEPLOYMENT.shard_queue, DEPLOYMENT.rescue_queue


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A campaign of four datasets in two shards, of whose jobs nobody hears."""
    cloud = Cloud.at(monkeypatch, FIGURES)
    cloud.lost = 1.0
    begin(cloud)
    return cloud


def begin(cloud: Cloud, names: list[str] = NAMES, output: str = OUTPUT) -> None:
    accept(cloud.quiet_store(output), DatasetList(tuple(names)), Options(), cloud.stack.settings, runner="aws")


def submit(cloud: Cloud, *shards: str) -> None:
    for shard in shards or Control(cloud.quiet_store()).shards():
        with cloud.quietly():
            cloud.stack.submit(OUTPUT, shard)


def shards(cloud: Cloud) -> list[str]:
    return Control(cloud.quiet_store()).shards()


def once(cloud: Cloud) -> Report:
    """Reconcile, and assert that a second pass writes nothing, and finds nothing to do, but for queues."""
    report = reconcile(cloud.stack, OUTPUT)
    writes = len(cloud.writes)
    again = reconcile(cloud.stack, OUTPUT)
    written = [what for what in cloud.writes[writes:] if not what.startswith("send to")]
    assert {what.removeprefix("put ") for what in written} <= {CLOSED, FOLDED, SEEN}
    assert not (again.heard or again.lost or again.repaired or again.terminated), again
    return report


def queued(cloud: Cloud) -> list[str]:
    return sorted({body["shard"] for body in cloud.queues[SHARDS].bodies})


def state(cloud: Cloud, name: str = NAMES[0]) -> tuple[str, int]:
    status = cloud.statuses()[name]
    return status.state, status.attempt


def ends(kinds: dict[str, str], otherwise: str = "") -> Callable[[str, int], str]:
    return lambda name, attempt: kinds.get(name, otherwise)


def rescue(cloud: Cloud, *names: str) -> None:
    with cloud.quietly():
        control = Control(cloud.quiet_store())
        resolved = resolve(control, Order("rescue"), Selector(names))
        due = cloud.clock().isoformat()
        carry_out(control, resolved, send=lambda bodies: cloud.stack.send(RESCUES, [b | {"due": due} for b in bodies]))


# ---- shards


def test_shards_that_were_never_claimed_are_queued(cloud: Cloud) -> None:
    report = once(cloud)
    assert report.queued == 2 and queued(cloud) == shards(cloud) and report.open == 4
    assert not cloud.writes or all(what.startswith("send") for what in cloud.writes)


def test_shards_that_were_submitted_are_left_alone(cloud: Cloud) -> None:
    submit(cloud)
    for _ in range(3):
        cloud.clock.advance(SETTLED + 1)
        assert not once(cloud).changed
    assert not cloud.writes


@pytest.mark.parametrize("was_submitted", [True, False])
def test_a_claim_without_a_job(cloud: Cloud, was_submitted: bool) -> None:
    submit(cloud)
    claim = {"shard": shards(cloud)[0], "claimed": messages.now(), "job": ""}
    cloud.quiet_store().put(claim_key(shards(cloud)[0]), json.dumps(claim).encode(), Overwrite())
    if not was_submitted:
        cloud.jobs.hidden.add("job-1")
    assert once(cloud).queued == 0
    cloud.clock.advance(SETTLED + 1)
    assert reconcile(cloud.stack, OUTPUT).queued == 1
    cloud.call("submit_shards")
    found, _ = read_claim(cloud.quiet_store(), shards(cloud)[0])
    assert found is not None and found["job"] == ("job-1" if was_submitted else "job-3")
    assert len(cloud.jobs.asks) == (2 if was_submitted else 3)


def test_a_shard_of_which_nothing_was_left(cloud: Cloud) -> None:
    for name in NAMES:
        messages.advance(cloud.quiet_store(), Status(name, 1, "cancelled", rung="2g"))
    submit(cloud)
    assert once(cloud).closed and not cloud.jobs.asks


def test_nothing_is_queued_while_the_campaign_is_paused(cloud: Cloud) -> None:
    Control(cloud.quiet_store()).pause("by me")
    report = once(cloud)
    assert (report.queued, report.paused, report.closed) == (0, "by me", False) and "paused: by me" in str(report)
    Control(cloud.quiet_store()).unpause()
    assert once(cloud).queued == 2


def test_datasets_that_nobody_has_begun_with_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Cloud.at(monkeypatch, replace(DEFAULT, canary=0.01))
    begin(cloud, batch.names(1000))
    submit(cloud, Control(cloud.quiet_store()).plan()["first"][0])
    cloud.clock.advance(SETTLED + 1)
    cloud.gets = cloud.lists = 0
    report = reconcile(cloud.stack, OUTPUT)
    assert report.open == 1000 and cloud.gets < 30 and cloud.lists < 15


# ---- some go first


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A campaign of which five datasets go first."""
    cloud = Cloud.at(monkeypatch, replace(DEFAULT, shard_size=10, canary=0.2, canary_least=5))
    begin(cloud, batch.names(25))
    return cloud


def canary(cloud: Cloud) -> tuple[list[str], list[str]]:
    plan = Control(cloud.quiet_store()).plan()
    assert len(plan["canary"]) == 5 and len(plan["first"]) == 1 and len(plan["shards"]) == 3
    return plan["canary"], [name for name in plan["shards"] if name not in plan["first"]]


def judged(cloud: Cloud, failed: int, kind: str = "deterministic") -> None:
    """Let those that went first end, of which some fail, and hear of it."""
    names, _ = canary(cloud)
    submit(cloud, Control(cloud.quiet_store()).plan()["first"][0])
    cloud.jobs.run(ends(dict.fromkeys(names[:failed], kind), "ok"))
    cloud.call("on_batch_event")


def test_the_rest_waits_for_those_that_go_first(first: Cloud) -> None:
    _, rest = canary(first)
    assert not set(queued(first)) & set(rest)
    once(first)
    assert not set(queued(first)) & set(rest)
    submit(first, Control(first.quiet_store()).plan()["first"][0])
    first.clock.advance(SETTLED + 1)
    assert once(first).queued == 0
    assert first.quiet_store().get(RELEASED) is None


def test_the_rest_follows_when_they_ended_well(first: Cloud) -> None:
    judged(first, failed=0)
    assert reconcile(first.stack, OUTPUT).queued == 2
    assert queued(first) == canary(first)[1] and first.quiet_store().get(RELEASED) is not None


def test_the_rest_does_not_follow_when_too_many_failed_for_good(first: Cloud) -> None:
    judged(first, failed=1)
    report = once(first)
    assert report.paused == "1 of the 5 datasets that went first failed for good" and report.queued == 0
    assert Control(first.quiet_store()).paused() == report.paused
    assert first.quiet_store().get(RELEASED) is None
    # An operator thinks otherwise.
    Control(first.quiet_store()).put_once(RELEASED, b"{}")
    Control(first.quiet_store()).unpause()
    assert reconcile(first.stack, OUTPUT).queued == 2


def test_the_rest_waits_for_those_that_are_tried_again(first: Cloud) -> None:
    judged(first, failed=1, kind="oom")
    assert once(first).queued == 0
    assert first.quiet_store().get(RELEASED) is None and not Control(first.quiet_store()).paused()


def test_the_rest_waits_until_failures_are_judged(first: Cloud) -> None:
    """The runs have said that they failed; why, and whether that is the end, nobody has said yet."""
    first.lost = 1.0
    judged(first, failed=5)
    assert {status.cause for status in first.statuses().values() if status.state == "error"} == {""}
    report = once(first)
    assert (report.queued, report.paused) == (0, "") and first.quiet_store().get(RELEASED) is None
    first.clock.advance(GRACE + 1)
    reconcile(first.stack, OUTPUT)
    assert once(first).paused.startswith("5 of the 5")


def test_an_operator_releases_them(first: Cloud) -> None:
    judged(first, 5)
    assert once(first).paused.startswith("5 of the 5")
    control = Control(first.quiet_store())
    assert operate.unpause(control) and control.released()
    assert reconcile(first.stack, OUTPUT).queued == 2


def test_a_pause_by_hand_says_nothing_of_them(first: Cloud) -> None:
    control = Control(first.quiet_store())
    operate.pause(control, "lunch")
    assert operate.unpause(control) and not control.released()
    assert reconcile(first.stack, OUTPUT).queued == 1


@pytest.mark.parametrize("again", ["ok", "deterministic"])
def test_those_that_were_rescued_must_prove_the_repair(first: Cloud, again: str) -> None:
    judged(first, 5)
    once(first)
    control = Control(first.quiet_store())
    rescue(first, *canary(first)[0])
    assert operate.unpause(control) and not control.released() and not control.paused()
    first.call("drain")
    first.call("submit_shards")
    assert reconcile(first.stack, OUTPUT).queued == 0
    first.jobs.run(lambda name, attempt: again)
    first.call("on_batch_event")
    report = reconcile(first.stack, OUTPUT)
    assert (report.queued, bool(report.paused)) == ((2, False) if again == "ok" else (0, True))


# ---- jobs


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ok", ("processed", 1)),
        ("late", ("processed", 1)),
        ("silent", ("placed", 2)),
        ("oom", ("placed", 2)),
        ("deterministic", ("error", 1)),
        ("transient", ("placed", 2)),
    ],
)
def test_ends_of_jobs_that_nobody_heard_of(cloud: Cloud, kind: str, expected: tuple[str, int]) -> None:
    submit(cloud)
    cloud.jobs.run(ends({NAMES[0]: kind, NAMES[3]: kind}))
    assert not once(cloud).changed, "the news may still come"
    cloud.clock.advance(GRACE + 1)
    report = once(cloud)
    assert report.heard == (0 if kind == "ok" else 2)
    assert report.again == (2 if expected[0] == "placed" else 0)
    assert state(cloud) == state(cloud, NAMES[3]) == expected
    assert len(cloud.queues[RESCUES]) == (2 if expected[0] == "placed" else 0)
    assert state(cloud, NAMES[1]) == ("submitted", 1)


def test_only_what_is_open_is_looked_at(cloud: Cloud) -> None:
    submit(cloud)
    cloud.jobs.run(ends({}, "ok"))
    cloud.clock.advance(GRACE + 1)
    gets = cloud.gets
    report = reconcile(cloud.stack, OUTPUT)
    assert report.closed and not report.heard
    assert cloud.jobs.calls["described"] == 0 and cloud.gets - gets < 20


def test_jobs_that_batch_does_not_know(cloud: Cloud) -> None:
    submit(cloud)
    job = cloud.jobs.jobs["job-1"]
    with cloud.quietly():
        cloud.jobs.begin(job, 0)
        cloud.jobs.begin(job, 1)
        publish(cloud.quiet_store(), cloud.statuses()[NAMES[1]])
    cloud.jobs.hidden.add("job-1")
    assert not once(cloud).changed, "it may be there in a moment"
    cloud.clock.advance(GRACE + 1)
    assert once(cloud).lost == 3
    # One was processing, one had published, one had not begun; the other shard has its job.
    assert [state(cloud, name) for name in NAMES] == [
        ("placed", 2),
        ("processed", 1),
        ("placed", 2),
        ("submitted", 1),
    ]
    assert cloud.statuses()[NAMES[0]].cause == "unknown"


def test_a_run_that_gives_signs_of_life_is_not_lost(cloud: Cloud) -> None:
    submit(cloud)
    with cloud.quietly():
        mine = cloud.jobs.begin(cloud.jobs.jobs["job-1"], 0)
    cloud.jobs.hidden.add("job-1")
    cloud.clock.advance(2 * GRACE)
    assert mine is not None and messages.beat(cloud.quiet_store(), mine)
    assert reconcile(cloud.stack, OUTPUT).lost == 2
    assert state(cloud) == ("processing", 1)


def test_a_dataset_of_another_shard_is_not_lost_with_a_job(cloud: Cloud) -> None:
    """Two shards have it, as when a drain was killed; the job of the one has gone, that of the other is alive."""
    store = cloud.quiet_store()
    for name in NAMES[:3]:
        messages.advance(store, Status(name, 2, "placed", rung="2g", time_limit=3600, cause="oom"))
    with cloud.quietly():
        (two,) = cloud.stack.submitter(OUTPUT).regroup([(name, 2) for name in NAMES[:2]])
        (three,) = cloud.stack.submitter(OUTPUT).regroup([(name, 2) for name in NAMES[:3]])
    submit(cloud, two, three)
    cloud.jobs.hidden.add("job-2")
    assert [job.members for job in cloud.jobs.jobs.values()] == [((NAMES[0], 2), (NAMES[1], 2)), ((NAMES[2], 2),)]
    cloud.clock.advance(SETTLED + 1)
    report = once(cloud)
    assert report.lost == 1
    assert [state(cloud, name) for name in NAMES[:3]] == [("submitted", 2), ("submitted", 2), ("placed", 3)]


def test_of_two_jobs_of_a_shard_the_other_one_is_ended(cloud: Cloud) -> None:
    submit(cloud)
    with cloud.quietly():
        cloud.jobs.submit(cloud.jobs.asks[0])
    report = once(cloud)
    assert report.terminated == 1
    assert [job.whole for job in cloud.jobs.jobs.values()] == ["PENDING", "RUNNABLE", "FAILED"]
    for _ in range(30):
        cloud.jobs.run(ends({}, "ok"))
        cloud.clock.advance(GRACE + 1)
        once(cloud)
    assert {state(cloud, name) for name in NAMES} == {("processed", 1)}


def test_a_dataset_whose_second_job_was_ended_goes_on(cloud: Cloud) -> None:
    """The job that was ended had taken it, and that of the shard had left it to that one."""
    submit(cloud)
    with cloud.quietly():
        second = cloud.jobs.jobs[cloud.jobs.submit(cloud.jobs.asks[0])]
        assert cloud.jobs.begin(second, 0)
    cloud.jobs.run(lambda name, attempt: "ok" if name != NAMES[0] else "", most=9)
    cloud.jobs.run(lambda name, attempt: "ok", most=1)  # job-1:0 finds it taken
    assert state(cloud) == ("processing", 1)
    reconcile(cloud.stack, OUTPUT)
    assert second.whole == "FAILED"
    cloud.clock.advance(GRACE + 1)
    reconcile(cloud.stack, OUTPUT)
    assert state(cloud) == ("placed", 2)
    assert not reconcile(cloud.stack, OUTPUT).closed


def test_jobs_that_wait_too_long_are_told_of(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    submit(cloud)
    cloud.clock.advance(TOO_LONG - 1)
    assert once(cloud).waiting == TOO_LONG - 1
    assert "waits for a host" not in caplog.text
    cloud.clock.advance(2)
    assert once(cloud).waiting == TOO_LONG + 1
    assert "job-1 waits for a host since 1801 s" in caplog.text
    cloud.jobs.jobs["job-1"].status[0] = cloud.jobs.jobs["job-2"].status[0] = "RUNNING"
    assert once(cloud).waiting == 0


def test_jobs_that_wait_for_others_of_their_queue_are_no_alarm(cloud: Cloud) -> None:
    begin(cloud, NAMES[:2], f"{PARENT}/another")
    submit(cloud)
    with cloud.quietly():
        cloud.stack.submit(f"{PARENT}/another", Control(cloud.quiet_store(f"{PARENT}/another")).shards()[0])
    cloud.clock.advance(TOO_LONG + 1)
    assert {report.waiting for report in reconcile_all(cloud.stack)} == {TOO_LONG + 1}
    cloud.jobs.jobs["job-3"].status[0] = "RUNNING"  # of the other campaign
    assert {report.waiting for report in reconcile_all(cloud.stack)} == {0}


def test_a_compute_environment_that_is_wrong_pauses_the_campaign(cloud: Cloud) -> None:
    submit(cloud)
    job = cloud.jobs.jobs["job-2"]
    job.details[0] = {"statusReason": "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - too large"}
    assert once(cloud).paused.startswith("MISCONFIGURATION:JOB")
    assert cloud.quiet_store().get(PAUSE) is not None


def test_a_broken_image_pauses_and_the_campaign_goes_on_afterwards(cloud: Cloud) -> None:
    how = ["image"]
    cloud.lost = 0.0
    for minute in range(120):
        cloud.jobs.run(lambda name, attempt: how[-1])
        for name in ("on_batch_event", "drain", "submit_shards"):
            cloud.call(name)
        if minute % 10 == 9:
            cloud.reconcile()
        if minute == 60:
            assert Control(cloud.quiet_store()).paused() and len(cloud.jobs.asks) <= 2
            how.append("ok")
            Control(cloud.quiet_store()).unpause()
        cloud.clock.advance(60)
    cloud.assert_sound(NAMES)
    assert {state(cloud, name)[0] for name in NAMES} == {"processed"}
    budgets = cloud.stack.settings.budgets
    assert not any(budget in budgets for status in cloud.statuses().values() for budget in status.spent)
    assert cloud.quiet_store().get(CLOSED) is not None


# ---- datasets


@pytest.mark.parametrize(
    ("cause", "wait"), [("transient", 60), ("host", 60), ("unknown", 300), ("oom", 0), ("deployment", 0)]
)
def test_a_retry_that_is_in_no_queue(cloud: Cloud, cause: str, wait: float) -> None:
    submit(cloud)
    again = Status(NAMES[0], 2, "placed", rung="2g", time_limit=3600, cause=cause, spent={"unknown": 1})
    messages.advance(cloud.quiet_store(), again)
    cloud.clock.advance(wait + GRACE - 1)
    assert reconcile(cloud.stack, OUTPUT).retried == 0
    cloud.clock.advance(2)
    assert reconcile(cloud.stack, OUTPUT).retried == 1
    cloud.call("drain")
    cloud.call("submit_shards")
    assert state(cloud) == ("submitted", 2)
    assert reconcile(cloud.stack, OUTPUT).retried == 0


def test_a_retry_waits_while_the_campaign_is_paused(cloud: Cloud) -> None:
    submit(cloud)
    messages.advance(cloud.quiet_store(), Status(NAMES[0], 2, "placed", rung="2g", time_limit=3600, cause="oom"))
    Control(cloud.quiet_store()).pause("by me")
    cloud.clock.advance(2 * GRACE)
    assert once(cloud).retried == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("kind", "expected"), [("deterministic", ("error", 1)), ("transient", ("placed", 2))])
def test_failures_that_nobody_has_judged(cloud: Cloud, kind: str, expected: tuple[str, int], known: bool) -> None:
    submit(cloud)
    cloud.jobs.run(ends({NAMES[0]: kind}, "ok"))
    assert (state(cloud), cloud.statuses()[NAMES[0]].cause) == (("error", 1), "")
    report = once(cloud)
    assert not report.closed and report.open == 1, "it would be closed before it is known what follows"
    if not known:
        cloud.jobs.hidden |= set(cloud.jobs.jobs)
    cloud.clock.advance(GRACE + 1)
    assert once(cloud).heard == 1
    assert (state(cloud), cloud.statuses()[NAMES[0]].cause) == (expected, kind)


def test_a_failure_of_a_job_that_was_ended_as_the_second_one_is_judged(cloud: Cloud) -> None:
    submit(cloud)
    with cloud.quietly():
        second = cloud.jobs.jobs[cloud.jobs.submit(cloud.jobs.asks[0])]
        cloud.jobs._run(second, 0, OUTCOMES["transient"])
        second.details[0]["statusReason"] = "Duplicate job of job-1"
    cloud.jobs.run(ends({}, "ok"))
    cloud.clock.advance(GRACE + 1)
    reconcile(cloud.stack, OUTPUT)
    assert state(cloud) == ("placed", 2)


# ---- folders


def shown(cloud: Cloud, name: str = NAMES[0]) -> list[str]:
    store = cloud.quiet_store()
    folders = [folder for _, folder in messages.STATES.values() if folder]
    return [folder for folder in folders if name in store.names(f"messages/{folder}")]


def show(store: Store, name: str, *folders: str) -> None:
    """Let the folders show something else than the status says."""
    for _, folder in messages.STATES.values():
        if folder in folders:
            store.put(f"messages/{folder}/{name}", b"", Overwrite())
        elif folder:
            store.delete(f"messages/{folder}/{name}")


@pytest.mark.parametrize(
    ("status", "wrong", "right"),
    [
        (Status(NAMES[0], 1, "submitted", rung="2g"), [], ["dataset-submitted"]),
        (Status(NAMES[0], 1, "processing"), ["dataset-submitted"], ["dataset-processing"]),
        (Status(NAMES[0], 1, "processing"), ["dataset-submitted", "dataset-processing"], ["dataset-processing"]),
        (Status(NAMES[0], 1, "processed"), ["dataset-processing"], ["datasets-processed"]),
        (Status(NAMES[0], 1, "processed"), [], ["datasets-processed"]),
        (Status(NAMES[0], 1, "cancelled", rung="2g"), [], ["dataset-cancelled"]),
        (Status(NAMES[0], 2, "placed", rung="2g", time_limit=3600, cause="oom"), ["dataset-error"], []),
        (Status(NAMES[0], 2, "placed", rung="2g", time_limit=3600, cause="oom"), ["dataset-processing"], []),
    ],
    ids=lambda value: value.state if isinstance(value, Status) else "+".join(value) or "none",
)
@pytest.mark.parametrize("known", [True, False], ids=["job", "no job"])
def test_folders_that_do_not_show_the_status(
    cloud: Cloud, status: Status, wrong: list[str], right: list[str], known: bool
) -> None:
    submit(cloud)
    store = cloud.quiet_store()
    cloud.jobs.run(ends({NAMES[0]: "silent"}, "ok"))
    store.delete(messages.status_key(NAMES[0]))
    messages.advance(store, replace(status, shard=shards(cloud)[0], job="job-1:0", run="run-1"))
    show(store, NAMES[0], *wrong)
    if not known:
        cloud.jobs.hidden |= set(cloud.jobs.jobs)
    cloud.clock.advance(GRACE + 1)
    for _ in range(2):
        report = reconcile(cloud.stack, OUTPUT)
        assert not report.closed or status.state in ("processed", "cancelled")
    now = cloud.statuses()[NAMES[0]]
    assert shown(cloud) == ([messages.STATES[now.state][1]] if now.state != "placed" else [])
    assert now.order >= status.order
    if status.state not in ("submitted", "processing"):
        assert shown(cloud) == right and now.order == status.order


def test_what_was_cancelled_and_is_tried_again_keeps_the_campaign_open(cloud: Cloud) -> None:
    submit(cloud)
    cloud.jobs.run(ends({}, "ok"))
    store = cloud.quiet_store()
    messages.advance(store, Status(NAMES[0], 2, "placed", rung="2g", time_limit=3600))
    show(store, NAMES[0], "dataset-cancelled")
    assert not reconcile(cloud.stack, OUTPUT).closed
    assert shown(cloud) == []
    assert reconcile(cloud.stack, OUTPUT).open == 1


def test_a_status_that_is_damaged_does_not_keep_others_from_it(cloud: Cloud) -> None:
    submit(cloud)
    cloud.jobs.run(ends({NAMES[3]: "oom"}, "deterministic"))
    cloud.quiet_store().put(messages.status_key(NAMES[0]), b"{", Overwrite())
    cloud.clock.advance(GRACE + 1)
    reconcile(cloud.stack, OUTPUT)
    for name, expected in ((NAMES[1], ("error", 1)), (NAMES[3], ("placed", 2))):
        status = messages.read(cloud.quiet_store(), name)
        assert status is not None and (status.state, status.attempt) == expected


# ---- the end


@pytest.mark.parametrize("lost", [0.0, 1.0])
def test_it_closes_when_all_have_come_to_their_end(cloud: Cloud, lost: float) -> None:
    """Even if nobody ever hears of any job."""
    cloud.lost = lost
    kinds = {NAMES[0]: "deterministic", NAMES[1]: "oom", NAMES[2]: "transient"}
    cloud.work(lambda name, attempt: kinds.get(name, "ok") if attempt == 1 else "ok", minutes=200)
    cloud.assert_sound(NAMES)
    blob = cloud.quiet_store().get(CLOSED)
    assert blob is not None and json.loads(blob.data)["states"] == {"error": 1, "processed": 3}
    assert list(open_batches(cloud.stack)) == [] and reconcile_all(cloud.stack) == []


@pytest.mark.parametrize(
    ("before", "existing"), [("processed", "overwrite"), ("error", "skip"), ("processing", "skip")]
)
def test_what_somebody_did_before_is_no_end(monkeypatch: pytest.MonkeyPatch, before: str, existing: str) -> None:
    """The folders show it, and the campaign is about a later attempt."""
    cloud = Cloud.at(monkeypatch, FIGURES)
    store = cloud.quiet_store()
    for name in NAMES:
        mine = messages.begin(store, name, "by hand", 0)
        if before == "processed":
            messages.conclude(store, publish(store, mine).status())
        elif before == "error":
            messages.advance(store, replace(mine, state="error", exit_code=23, reason="x", beat=""))
    listed, options = DatasetList(tuple(NAMES)), Options(existing=existing)
    accept(store, listed, options, cloud.stack.settings, runner="aws")
    assert not reconcile(cloud.stack, OUTPUT).closed
    cloud.work(lambda name, attempt: "ok", minutes=100)
    assert {state(cloud, name) for name in NAMES} == {("processed", 2)}
    cloud.assert_sound(NAMES)
    assert Control(store).closed()


def test_what_is_rescued_while_it_closes_keeps_it_open(used: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    close = Control.close

    def late(control: Control, states: dict[str, int]) -> None:
        rescue(used, NAMES[1])
        close(control, states)

    with monkeypatch.context() as patch:
        patch.setattr(Control, "close", late)
        report = reconcile(used.stack, OUTPUT)
    assert (report.closed, report.open) == (False, 1)
    assert list(open_batches(used.stack)) == [OUTPUT]
    used.lost = 1.0  # nobody but the reconciler hears of its end
    used.work(lambda name, attempt: "ok", minutes=100)
    assert state(used, NAMES[1]) == ("processed", 2) and Control(used.quiet_store()).closed()


def test_news_that_come_after_it_closed_open_it_again(cloud: Cloud) -> None:
    figures = replace(FIGURES, budgets={**FIGURES.budgets, "unknown": replace(FIGURES.budgets["unknown"], retries=0)})
    cloud.stack.settings = figures
    submit(cloud)
    cloud.lost = 0.0
    cloud.jobs.run(ends({NAMES[0]: "oom"}, "ok"))
    queue = cloud.queues[DEPLOYMENT.event_queue]
    (event,) = [body for body in queue.bodies if body["detail"]["jobId"] == "job-1:0"]
    while taken := queue.receive(9):
        for _, receipt in taken:
            queue.remove(receipt)
    cloud.jobs.jobs.clear()  # a week later
    cloud.clock.advance(GRACE + 1)
    for _ in range(2):
        reconcile(cloud.stack, OUTPUT)
    assert state(cloud)[0] == "error" and Control(cloud.quiet_store()).closed()
    assert hear.hear(cloud.stack, event).state == "placed"
    assert list(open_batches(cloud.stack)) == [OUTPUT]


def test_a_plan_that_is_damaged_keeps_no_other_from_it(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    begin(cloud, NAMES[:2], f"{PARENT}/another")
    cloud.quiet_store().put(PLAN, b"?", Overwrite())
    assert [report.batch for report in reconcile_all(cloud.stack)] == [f"{PARENT}/another"]
    assert "plan.json is damaged" in caplog.text


def test_where_time_is_up_jobs_are_left_for_the_next_pass(cloud: Cloud) -> None:
    submit(cloud)
    cloud.jobs.run(ends({}, "silent"))
    cloud.clock.advance(GRACE + 1)
    report = reconcile(cloud.stack, OUTPUT, -1.0)
    assert not (report.heard or report.lost or report.closed)
    assert once(cloud).heard == 4


def test_all_that_are_open_are_reconciled(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    begin(cloud, NAMES[:2], f"{PARENT}/another")
    begin(cloud, NAMES[:2], f"{PARENT}/closed")
    begin(cloud, NAMES[:2], f"{PARENT}/damaged")
    cloud.quiet_store(f"{PARENT}/closed").put(CLOSED, b"{}", Create())
    cloud.quiet_store(f"{PARENT}/damaged").put("control/manifests/x-a1-2g-1h-001.jsonl", b"?", Create())
    cloud.quiet_store(f"{PARENT}/unplanned").put("control/request.json", b"{}", Create())
    cloud.quiet_store(PARENT).put("README", b"", Create())
    assert sorted(report.batch for report in reconcile_all(cloud.stack)) == [f"{PARENT}/another", OUTPUT]
    assert "damaged cannot be reconciled: InputError" in caplog.text


@pytest.mark.parametrize("entry", ["s3://gone/x", "", "nonsense", "file:/tmp/x", "\udcff"])
def test_a_place_that_the_deployment_does_not_have_keeps_no_other_from_it(
    cloud: Cloud, entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = entry.encode(errors="surrogateescape")
    cloud.quiet_store(PARENT).put(f"{ELSEWHERE}/0123456789abcdef", text, Overwrite())
    assert [report.batch for report in reconcile_all(cloud.stack)] == [OUTPUT]
    assert "in no bucket of caldp-test" in caplog.text or "not an input or output" in caplog.text


# ---- what was used


@pytest.fixture
def used(cloud: Cloud) -> Cloud:
    """A campaign all of whose jobs have ended and left a record, but for one that failed for good."""
    cloud.lost, cloud.tells = 0.0, True
    submit(cloud)
    cloud.jobs.run(ends({NAMES[1]: "deterministic"}, "ok"))
    cloud.call("on_batch_event")
    return cloud


def kept(cloud: Cloud) -> list[str]:
    blob = cloud.quiet_store(PARENT).get(observe.key("cos"))
    return [seen.dataset for seen in from_jsonl(blob.data)] if blob is not None else []


GOOD = [NAMES[0], *NAMES[2:]]


def test_what_was_used_is_kept_before_it_closes(used: Cloud) -> None:
    assert once(used).closed
    assert kept(used) == GOOD
    assert used.writes[-3:] == [f"put {observe.key('cos')}", f"put {FOLDED}", f"put {CLOSED}"]


def test_it_does_not_close_while_that_cannot_be_kept(used: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    place = used.quiet_store(PARENT)
    place.put(observe.key("cos"), b"nonsense", Overwrite())
    assert reconcile_all(used.stack) == []
    assert "batch-22 cannot be reconciled: OutputError" in caplog.text and "cos.jsonl" in caplog.text
    assert used.quiet_store().get(CLOSED) is None and used.quiet_store().get(FOLDED) is None
    place.delete(observe.key("cos"))
    assert [report.closed for report in reconcile_all(used.stack)] == [True]
    assert kept(used) == GOOD


def test_a_large_campaign_is_kept_in_several_passes(used: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "fold", partial(observe.fold, most=1))
    for count, closed in ((1, False), (2, False), (3, True)):
        report = reconcile(used.stack, OUTPUT)
        assert (report.closed, report.changed, report.open) == (closed, False, 0)
        assert kept(used) == GOOD[:count]
        assert (used.quiet_store().get(CLOSED) is not None) == closed


def test_what_is_still_open_is_not_kept(cloud: Cloud) -> None:
    cloud.lost, cloud.tells = 0.0, True
    submit(cloud)
    cloud.jobs.run(ends(dict.fromkeys(NAMES[:2], "ok")))
    cloud.call("on_batch_event")
    assert not once(cloud).closed and kept(cloud) == []


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_whoever_is_killed_while_he_closes_keeps_all_of_it(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    def world() -> Cloud:
        cloud = Cloud.at(monkeypatch, FIGURES)
        cloud.tells = True
        begin(cloud)
        return cloud

    (cloud := world()).work(ends({}, "ok"), victim="reconcile")
    writes = cloud.switch.count
    assert writes >= 3
    for at in range(1, writes + 1):
        cloud = world()
        cloud.switch.at, cloud.switch.before = at, before
        cloud.work(ends({}, "ok"), victim="reconcile")
        assert cloud.failed["reconcile Killed"] == 1 and kept(cloud) == NAMES


def test_what_a_rescued_dataset_has_used_is_kept_too(used: Cloud) -> None:
    reconcile(used.stack, OUTPUT)
    control = Control(used.quiet_store())
    found = resolve(control, Order("rescue"), Selector((NAMES[1],)))
    now = {"due": used.clock().isoformat()}
    carry_out(control, found, send=lambda bodies: used.stack.send(RESCUES, [{**body, **now} for body in bodies]))
    used.work(ends({}, "ok"))
    assert kept(used) == [*GOOD, NAMES[1]]


def test_what_is_no_campaign(cloud: Cloud) -> None:
    with pytest.raises(UsageError, match="is no campaign"):
        reconcile(cloud.stack, f"{PARENT}/nothing")
    with pytest.raises(UsageError, match="in no bucket"):
        reconcile(cloud.stack, "s3://elsewhere/x")


def test_what_it_says(cloud: Cloud) -> None:
    assert str(Report("x")) == "x: nothing to heal; 0 datasets are open"
    said = str(Report("x", queued=2, heard=1200, closed=True))
    assert said == "x: 2 shards queued again, 1,200 ends of jobs heard of; all datasets have come to their end"
    assert Report("x", waiting=1.6).to_json()["waiting"] == 2
