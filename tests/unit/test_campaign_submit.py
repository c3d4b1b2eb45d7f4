"""Shards become jobs: once, whoever is killed, and without datasets that are not theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from caldp import messages
from caldp.campaign.accept import accept
from caldp.campaign.control import REQUEST, Control, claim_key
from caldp.campaign.jobs import job_name
from caldp.campaign.lists import DatasetList, Options
from caldp.campaign.settings import DEFAULT
from caldp.campaign.submit import NOTHING, SETTLED, NotYetError, Submitter, read_claim
from caldp.errors import InputError, OutputError, UsageError
from caldp.messages import Status
from caldp.store import Create, Overwrite
from tests.fakes import batch
from tests.fakes.cloud import OUTPUT, Cloud, Killed

NAMES = batch.names(5)
FIGURES = replace(DEFAULT, shard_size=4, canary=0)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A campaign of five datasets, in a shard of four and one of one."""
    cloud = Cloud.at(monkeypatch, FIGURES)
    begin(cloud)
    return cloud


def begin(cloud: Cloud, names: list[str] = NAMES, output: str = OUTPUT, **options: Any) -> tuple[str, ...]:
    listed = DatasetList(tuple(names))
    return accept(cloud.quiet_store(output), listed, Options(**options), cloud.stack.settings, runner="aws").shards


def four(cloud: Cloud) -> str:
    return Control(cloud.quiet_store()).shards()[0]


def one(cloud: Cloud) -> str:
    return Control(cloud.quiet_store()).shards()[1]


def submitter(cloud: Cloud) -> Submitter:
    return cloud.stack.submitter(OUTPUT)


def put(cloud: Cloud, status: Status) -> None:
    messages.advance(cloud.quiet_store(), status)


def killed(cloud: Cloud, what: str, before: bool, act: Callable[[], object]) -> None:
    """Kill somebody at the first write that begins so."""
    clean = Cloud(FIGURES)
    clean.buckets = {name: bucket.copy() for name, bucket in cloud.buckets.items()}
    clean.clock = cloud.clock
    clean.stack.submitter(OUTPUT).submit(four(clean))
    number = next(n for n, done in enumerate(clean.writes, start=1) if done.startswith(what))
    cloud.switch.armed, cloud.switch.at, cloud.switch.before, cloud.switch.count = True, number, before, 0
    with pytest.raises(Killed):
        act()
    assert cloud.switch.last.startswith(what)
    cloud.switch.revive()


def test_an_array_is_submitted(cloud: Cloud) -> None:
    done = submitter(cloud).submit(four(cloud))
    (ask,) = cloud.jobs.asks
    manifest = f"{OUTPUT}/control/manifests/{four(cloud)}.jsonl"
    assert (done.job, done.datasets, done.new) == ("job-1", 4, True)
    assert (ask.size, ask.queue, ask.definition, ask.time_limit) == (4, "caldp-2g", "caldp-job-2g", 3600)
    assert ask.command == (
        "caldp-process-aws", OUTPUT, f"@{manifest}", "--input", "astroquery:", "--config", "caldp-config-aws",
    )  # fmt: skip
    assert ask.parameters == {
        "dataset": f"@{manifest}",
        "manifest": manifest,
        "s3_output_path": OUTPUT,
        "attempt": "1",
    }
    assert ask.environment == {} and ask.share == "prompt"
    claim, _ = read_claim(cloud.quiet_store(), four(cloud))
    assert claim is not None and (claim["job"], claim["datasets"]) == ("job-1", 4)
    statuses = cloud.statuses()
    assert sorted(statuses) == NAMES[:4]
    assert {(s.state, s.shard, s.rung, s.time_limit) for s in statuses.values()} == {
        ("submitted", four(cloud), "2g", 3600)
    }


def test_a_remainder_of_one_is_a_plain_job(cloud: Cloud) -> None:
    submitter(cloud).submit(one(cloud))
    (ask,) = cloud.jobs.asks
    assert (ask.size, ask.command[2], ask.environment) == (1, NAMES[4], {"CALDP_ATTEMPT": "1"})
    assert ask.parameters["manifest"] == "" and ask.parameters["dataset"] == NAMES[4]


def test_what_the_list_asked_for_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Cloud.at(monkeypatch, FIGURES)
    asked = {"input": "s3://in/x", "config": "c", "context": "hst_0729.pmap", "share": "bulk"}
    (name,) = begin(cloud, NAMES[:2], job_queue="q", job_definition="d", rung="8g", time_limit=60, **asked)
    submitter(cloud).submit(name)
    (ask,) = cloud.jobs.asks
    assert ask.command[3:] == ("--input", "s3://in/x", "--config", "c", "--context", "hst_0729.pmap")
    assert (ask.queue, ask.definition, ask.share, ask.time_limit) == ("q", "d", "bulk", 1200)


def test_a_shard_that_was_submitted_stays_so(cloud: Cloud) -> None:
    first = submitter(cloud).submit(four(cloud))
    writes = len(cloud.writes)
    again = submitter(cloud).submit(four(cloud))
    assert (again.job, again.new, again.datasets) == (first.job, False, 0)
    assert len(cloud.jobs.asks) == 1 and len(cloud.writes) == writes


# ---- who is left out


def test_cancelled_datasets_and_those_of_other_shards_are_left_out(cloud: Cloud) -> None:
    put(cloud, Status(NAMES[0], 1, "cancelled", rung="2g"))
    put(cloud, Status(NAMES[2], 1, "submitted", shard="another", rung="2g"))
    shard = four(cloud)
    assert submitter(cloud).submit(shard).datasets == 2
    (ask,) = cloud.jobs.asks
    manifest = ask.parameters["manifest"]
    assert re.fullmatch(re.escape(f"{OUTPUT}/control/submitted/{shard}-") + r"[0-9a-f]{8}\.jsonl", manifest)
    assert ask.size == 2 and [line.dataset for line in cloud.stack.lines(manifest)] == [NAMES[1], NAMES[3]]
    states = {name: (status.state, status.shard) for name, status in cloud.statuses().items()}
    assert states[NAMES[0]] == ("cancelled", "") and states[NAMES[2]] == ("submitted", "another")


@pytest.mark.parametrize(
    "status",
    [
        Status(NAMES[0], 1, "processing", rung="2g"),
        Status(NAMES[0], 1, "processed"),
        Status(NAMES[0], 1, "error", rung="2g"),
        Status(NAMES[0], 2, "placed", rung="2g"),
        Status(NAMES[0], 2, "submitted", shard="another", rung="2g"),
    ],
    ids=lambda status: f"{status.state}-{status.attempt}",
)
def test_datasets_that_have_gone_on_are_left_out(cloud: Cloud, status: Status) -> None:
    put(cloud, status)
    assert submitter(cloud).submit(four(cloud)).datasets == 3
    assert cloud.statuses()[NAMES[0]].state == status.state


def test_when_one_is_left_it_is_a_plain_job(cloud: Cloud) -> None:
    for name in NAMES[1:4]:
        put(cloud, Status(name, 1, "cancelled", rung="2g"))
    submitter(cloud).submit(four(cloud))
    (ask,) = cloud.jobs.asks
    assert (ask.size, ask.command[2], ask.environment) == (1, NAMES[0], {"CALDP_ATTEMPT": "1"})


def test_when_none_is_left_there_is_no_job(cloud: Cloud) -> None:
    for name in NAMES[:4]:
        put(cloud, Status(name, 1, "cancelled", rung="2g"))
    assert submitter(cloud).submit(four(cloud)).job == NOTHING
    assert submitter(cloud).submit(four(cloud)).job == NOTHING
    assert not cloud.jobs.asks


def test_what_was_spent_goes_on(cloud: Cloud) -> None:
    put(cloud, Status(NAMES[0], 1, "placed", rung="2g", cause="oom", spent={"oom": 1}, fingerprint="f"))
    submitter(cloud).submit(four(cloud))
    status = cloud.statuses()[NAMES[0]]
    assert (status.state, status.cause, status.spent, status.fingerprint) == ("submitted", "oom", {"oom": 1}, "f")


# ---- killed


def test_a_job_whose_id_was_not_written_down_is_found_by_its_name(cloud: Cloud) -> None:
    killed(cloud, "submit", False, lambda: submitter(cloud).submit(four(cloud)))
    again = submitter(cloud).submit(four(cloud))
    assert (again.job, again.new) == ("job-1", False) and len(cloud.jobs.asks) == 1
    claim, _ = read_claim(cloud.quiet_store(), four(cloud))
    assert claim is not None and claim["job"] == "job-1"


@pytest.mark.parametrize(("what", "before"), [("submit", True), ("put messages/", True), ("put control/shards", False)])
def test_a_job_that_is_not_found_is_submitted_after_ten_minutes(cloud: Cloud, what: str, before: bool) -> None:
    killed(cloud, what, before, lambda: submitter(cloud).submit(four(cloud)))
    cloud.clock.advance(SETTLED - 1)
    with pytest.raises(NotYetError):
        submitter(cloud).submit(four(cloud))
    cloud.clock.advance(2)
    assert submitter(cloud).submit(four(cloud)).new
    assert [ask.size for ask in cloud.jobs.asks] == [4] and set(cloud.jobs.members.values()) == {1}


def test_of_two_who_find_an_old_claim_one_submits(cloud: Cloud) -> None:
    killed(cloud, "submit", True, lambda: submitter(cloud).submit(four(cloud)))
    cloud.clock.advance(SETTLED + 1)

    class Slow:
        """The jobs, of somebody who looks for one while another submits the shard."""

        def __getattr__(self, name: str) -> Any:
            return getattr(cloud.jobs, name)

        def find(self, name: str, queue: str) -> list[dict[str, Any]]:
            found = cloud.jobs.find(name, queue)
            submitter(cloud).submit(four(cloud))
            return found

    slow = Submitter(Control(cloud.quiet_store()), FIGURES, cloud.stack.deployment, Slow())  # type: ignore[arg-type]
    with pytest.raises(NotYetError):
        slow.submit(four(cloud))
    assert len(cloud.jobs.asks) == 1


def test_of_two_who_come_at_once_one_submits(cloud: Cloud) -> None:
    store = cloud.quiet_store()
    store.put(claim_key(four(cloud)), b'{"claimed": "2026-01-01T00:00:00+00:00", "job": ""}', Create())
    with pytest.raises(NotYetError):
        submitter(cloud).submit(four(cloud))
    assert not cloud.jobs.asks


def test_of_many_at_once_one_submits(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Cloud.at(monkeypatch, replace(FIGURES, shard_size=100), threads=True)
    (name,) = begin(cloud, batch.names(100))

    def act(_: int) -> str:
        try:
            return submitter(cloud).submit(name).job
        except NotYetError:
            return ""

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(act, range(24)))
    assert set(done) <= {"", "job-1"} and "job-1" in done
    assert len(cloud.jobs.asks) == 1 and len(cloud.jobs.members) == 100


def test_two_shards_of_one_dataset_at_once_submit_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Cloud.at(monkeypatch, replace(FIGURES, shard_size=100), threads=True)
    names = batch.names(60)
    begin(cloud, names)
    for each in names:
        put(cloud, placed(each))
    todo = [[(each, 2) for each in names[begin : begin + 40]] for begin in (0, 10, 20)]
    made = [submitter(cloud).regroup(some)[0] for some in todo]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda shard: submitter(cloud).submit(shard), made))
    assert len(cloud.jobs.members) == 60 and set(cloud.jobs.members.values()) == {1}


def test_who_was_too_slow_leaves_the_claim_of_the_other(cloud: Cloud) -> None:
    """He stood still for more than ten minutes before he submitted: two jobs, and the claim names one of them."""
    real, jobs = cloud.jobs.submit, cloud.jobs

    def late(ask: Any) -> str:
        jobs.submit = real  # type: ignore[method-assign]
        cloud.clock.advance(SETTLED + 1)
        submitter(cloud).submit(four(cloud))
        return real(ask)

    jobs.submit = late  # type: ignore[method-assign]
    with pytest.raises(NotYetError):
        submitter(cloud).submit(four(cloud))
    claim, _ = read_claim(cloud.quiet_store(), four(cloud))
    assert claim is not None and claim["job"] == "job-1" and len(jobs.asks) == 2


# ---- names, and what is missing


@pytest.mark.parametrize("batch_name", ["a", "a.b_c-d", "A" * 64, "9..9", "x" * 60 + "...."])
def test_names_of_jobs_are_legal_and_those_of_two_outputs_differ(batch_name: str) -> None:
    shard = f"{batch_name}-a1-2g-6h-001"
    names = {job_name(shard, f"s3://bucket/{parent}/{batch_name}") for parent in ("x", "y")}
    names |= {job_name(f"{batch_name}-a1-2g-6h-002", f"s3://bucket/x/{batch_name}")}
    assert len(names) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", name) for name in names)
    assert job_name("a.b", "o") != job_name("a-b", "o")


def test_a_shard_that_there_is_not(cloud: Cloud) -> None:
    with pytest.raises(InputError, match="is missing"):
        submitter(cloud).submit("nothing-a1-2g-6h-001")
    assert not cloud.writes


def test_a_claim_that_is_damaged(cloud: Cloud) -> None:
    cloud.quiet_store().put(claim_key(four(cloud)), b"{}", Overwrite())
    with pytest.raises(OutputError, match="is no claim"):
        submitter(cloud).submit(four(cloud))


def test_a_rung_that_the_deployment_has_not(cloud: Cloud) -> None:
    known = replace(cloud.stack.deployment, job_queues={"8g": "q"}, job_definitions={"8g": "d"})
    with pytest.raises(UsageError, match="no queue for the memory rung 2g"):
        Submitter(Control(cloud.quiet_store()), FIGURES, known, cloud.stack.jobs).submit(four(cloud))


def test_a_campaign_that_is_paused_submits_nothing(cloud: Cloud) -> None:
    Control(cloud.quiet_store()).pause("wait")
    assert cloud.stack.submit(OUTPUT, four(cloud)) is None
    assert not cloud.writes and not cloud.jobs.asks


# ---- tried again


def placed(name: str, attempt: int = 2, **more: Any) -> Status:
    given: dict[str, Any] = {"rung": "8g", "time_limit": 3600, "cause": "oom", "spent": {"oom": 1}, **more}
    return Status(name, attempt, "placed", **given)


def test_datasets_that_are_tried_again_become_shards_by_class(cloud: Cloud) -> None:
    for name in NAMES[:2]:
        put(cloud, placed(name))
    put(cloud, placed(NAMES[2], rung="16g"))
    put(cloud, placed(NAMES[3], attempt=3))
    todo = [(NAMES[0], 2), (NAMES[1], 2), (NAMES[2], 2), (NAMES[3], 3), (NAMES[0], 2)]
    made = submitter(cloud).regroup(todo)
    classes = [re.sub(r"-r[0-9a-f]{16}$", "", name) for name in made]
    assert classes == ["batch-22-a2-16g-1h", "batch-22-a2-8g-1h", "batch-22-a3-8g-1h"]
    assert submitter(cloud).regroup(list(reversed(todo))) == made
    for name in made:
        submitter(cloud).submit(name)
    assert sorted(ask.size for ask in cloud.jobs.asks) == [1, 1, 2]
    assert {ask.queue for ask in cloud.jobs.asks} == {"caldp-8g", "caldp-16g"}
    assert cloud.statuses()[NAMES[0]].spent == {"oom": 1}


def test_a_status_that_is_damaged_keeps_no_other_from_it(cloud: Cloud) -> None:
    for name in NAMES[:2]:
        put(cloud, placed(name))
    cloud.quiet_store().put(messages.status_key(NAMES[0]), b"?", Overwrite())
    (made,) = submitter(cloud).regroup([(NAMES[0], 2), (NAMES[1], 2)])
    assert [line.dataset for line in Control(cloud.quiet_store()).lines(made)] == [NAMES[1]]


def test_a_campaign_of_a_later_version_goes_on(cloud: Cloud) -> None:
    control = Control(cloud.quiet_store())
    request = control.request()
    request["options"]["unheard_of"] = 1
    cloud.quiet_store().put(REQUEST, json.dumps(request).encode(), Overwrite())
    assert submitter(cloud).submit(four(cloud)).datasets == 4


def test_two_shards_of_one_dataset_submit_it_once(cloud: Cloud) -> None:
    """A drain that was killed, and the next one, which found more."""
    for name in NAMES[:3]:
        put(cloud, placed(name))
    (two,) = submitter(cloud).regroup([(NAMES[0], 2), (NAMES[1], 2)])
    (three,) = submitter(cloud).regroup([(name, 2) for name in NAMES[:3]])
    assert submitter(cloud).submit(two).datasets == 2
    assert submitter(cloud).submit(three).datasets == 1
    assert set(cloud.jobs.members.values()) == {1}


@pytest.mark.parametrize(
    "status",
    [
        placed(NAMES[0], 3),
        Status(NAMES[0], 2, "processing", rung="8g"),
        Status(NAMES[0], 2, "cancelled", rung="8g"),
        None,
    ],
    ids=lambda status: status.state if status else "none",
)
def test_what_has_gone_on_meanwhile_is_not_tried_again(cloud: Cloud, status: Status | None) -> None:
    if status:
        put(cloud, status)
    assert submitter(cloud).regroup([(NAMES[0], 2)]) == []


def test_a_shard_that_was_not_submitted_to_the_end_is_queued_again(cloud: Cloud) -> None:
    put(cloud, placed(NAMES[0]))
    (name,) = submitter(cloud).regroup([(NAMES[0], 2)])
    put(cloud, Status(NAMES[0], 2, "submitted", shard=name, rung="8g"))
    assert submitter(cloud).regroup([(NAMES[0], 2)]) == [name]
    cloud.quiet_store().put(claim_key(name), b'{"claimed": "2026-01-01T00:00:00+00:00", "job": "job-1"}', Overwrite())
    assert submitter(cloud).regroup([(NAMES[0], 2)]) == []
