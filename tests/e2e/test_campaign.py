"""Campaigns on AWS, from a list that is dropped to the ends of all its datasets, with the stack as it is deployed.

Functions are processes with the packages of the stack, jobs are processes, S3, SQS and EventBridge are ministack's.
Jobs are fakes that keep the statuses of their datasets as the real ones do; ``test_campaign_real`` has real ones.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws import Aws
from tests.e2e.deployed import NAME, Deployed

pytestmark = pytest.mark.slow

COUNT = 30


def names(count: int, first: int = 0) -> list[str]:
    """Names of COS exposures."""
    return [f"l{number:05d}sxq" for number in range(first, first + count)]


@pytest.fixture
def caldp(deployed: Deployed) -> Iterator[Deployed]:
    """The stack, with jobs that are fakes and end well."""
    deployed.begin()
    yield deployed


# ---- a list becomes calibrated datasets

#: What the jobs of some datasets do, at each attempt, and how these datasets end: state, attempts, rung, class.
FATES: dict[str, tuple[list[dict[str, Any]], tuple[Any, ...]]] = {
    "broken": ([{"exit": 21}], ("error", 1, "low", "deterministic")),
    "large": ([{"hog": 100, "sleep": 2}], ("processed", 2, "high", "oom")),
    "huge": ([{"hog": 200, "sleep": 2}], ("processed", 3, "top", "oom")),
    "vast": ([{"hog": 400, "sleep": 2}], ("error", 3, "top", "oom")),
    "child": ([{"exit": 32}, {}], ("processed", 2, "high", "oom")),
    "slow": ([{"sleep": 600}, {}], ("processed", 2, "low", "timeout")),
    "offline": ([{"exit": 26}, {"exit": 22}, {}], ("processed", 3, "low", "transient")),
    "killed": ([{"die": "begun"}, {}], ("processed", 2, "low", "unknown")),
    "twice": ([{"exit": 1}, {"exit": 1}], ("error", 2, "low", "deterministic")),
    "reclaimed": ([{}], ("processed", 1, "low", "")),
}


def test_a_dropped_list_comes_to_its_end_whatever_becomes_of_its_datasets(caldp: Deployed) -> None:
    """OOM, time-outs, killed and reclaimed hosts take their paths; SubmitJob is called once for each shard."""
    caldp.begin(second=0.03)  # so that the one that takes too long is stopped after 18 s
    listed = names(COUNT)
    fated = dict(zip(FATES, listed[5::2], strict=False))
    caldp.tell(**{fated[fate]: told for fate, (told, _) in FATES.items()})
    # Of the host that is reclaimed: its child of the first array, which AWS Batch starts again by itself.
    where = listed.index(fated["reclaimed"])
    host = {"statusReason": "Host EC2 (instance i-0123456789abcdef0) terminated.", "index": where % 25, "attempt": 1}
    caldp.aws.outcomes({**host, "name": f"big-*-{where // 25 + 1:03d}-*"})
    body = "# all of them, one twice, one in capitals, one that is none\n" + "\n".join(
        [*reversed(listed), listed[3], listed[4].upper(), "x00000sxq"]
    )
    caldp.drop("messages/placed/big.txt", body)
    batch = caldp.batch_of("big")
    caldp.work(batch)

    expected = {name: ("processed", 1, "low", "") for name in listed}
    expected |= {fated[fate]: end for fate, (_, end) in FATES.items()}
    assert caldp.ends(batch) == expected
    caldp.assert_sound(batch, listed)
    assert caldp.status(batch, fated["reclaimed"]).retry == 2
    assert caldp.status(batch, fated["slow"]).time_limit == 2400
    assert caldp.status(batch, fated["vast"]).reason.startswith("ladder exhausted")

    control = caldp.control(batch)
    assert control.request()["deployment"] == NAME
    (rejected,) = (control.store.get("control/rejected.jsonl") or pytest.fail("no rejects")).data.splitlines()
    assert json.loads(rejected)["text"] == "x00000sxq"
    # Each shard is a manifest, a claim and a job, and no dataset is in two of one attempt.
    shards = control.shards()
    jobs = caldp.jobs(batch)
    assert [name[:-9] for name in jobs] == shards
    assert len([name for name in shards if name.startswith(f"{batch}-a1-")]) == math.ceil(COUNT / 25)
    planned = Counter((line.dataset, line.attempt) for shard in shards for line in control.lines(shard))
    assert set(planned.values()) == {1}
    assert sum(planned.values()) == sum(end[1] for end in expected.values())
    results = [entry.key for entry in control.store.walk("control/results")]
    assert f"control/results/{fated['reclaimed']}/1.2.json" in results
    assert len(results) >= COUNT - 3  # who is killed leaves none
    closed = control.store.get("control/closed.json")
    assert closed is not None and json.loads(closed.data)["states"] == {"processed": COUNT - 3, "error": 3}


def test_lists_in_the_other_folder_and_direct_requests(caldp: Deployed) -> None:
    """control/placed/ is the same as messages/placed/; a request is answered; what is refused is said beside it."""
    first, second = names(3, 300), names(2, 310)
    caldp.drop("control/placed/ctx 0729.yaml", "datasets: " + " ".join(first) + "\nlabel: new context\n")
    asked = {"datasets": " ".join(second).upper(), "batch": "asked", "memory_rung": "high"}
    dry = caldp.invoke("on-list", {**asked, "dry_run": True})
    assert (dry["dry_run"], dry["batch"]) == (True, "asked") and "asked" not in caldp.batches()
    reply = caldp.invoke("on-list", asked)
    assert {key: reply[key] for key in ("batch", "accepted", "rejected", "shards")} == {
        "batch": "asked",
        "accepted": 2,
        "rejected": 0,
        "shards": 1,
    }
    caldp.drop("messages/placed/wrong.yaml", "datasets: lsim11sxq\njob_queue: somebody-elses\n")
    caldp.drop("messages/dataset-error/list.txt", " ".join(names(1, 320)))  # jobs write there: it is no list
    dropped = caldp.batch_of("ctx-0729")
    for batch, listed, rung in ((dropped, first, "low"), ("asked", second, "high")):
        caldp.work(batch)
        assert caldp.ends(batch) == {name: ("processed", 1, rung, "") for name in listed}
        caldp.assert_sound(batch, listed)
        assert len(caldp.jobs(batch)) == 1
    refusal = caldp.aws.client("s3").get_object(Bucket=caldp.bucket, Key="messages/refused/wrong.yaml.txt")
    assert "somebody-elses" in refusal["Body"].read().decode()
    assert not [name for name in caldp.batches() if name.startswith(("wrong", "list"))]
    # The same request again is the same campaign, and nothing is submitted twice.
    assert caldp.invoke("on-list", asked)["resumed"] is True
    caldp.wait_quiet()
    assert len(caldp.jobs("asked")) == 1


# ---- what AWS does to events and functions


def test_events_that_come_twice_late_or_never(caldp: Deployed) -> None:
    """Half of the events never come, the others twice and in any order: the ends are the same, after reconciling."""
    listed = names(24, 400)
    told = {listed[0]: [{"exit": 21}], listed[1]: [{"exit": 32}, {}], listed[2]: [{"exit": 26}, {}]}
    told |= {listed[3]: [{"exit": 1, "reason": "a"}, {"exit": 1, "reason": "b"}], listed[4]: [{"die": "begun"}, {}]}
    expected = {name: ("processed", 1, "low", "") for name in listed}
    expected |= {
        listed[0]: ("error", 1, "low", "deterministic"),
        listed[1]: ("processed", 2, "high", "oom"),
        listed[2]: ("processed", 2, "low", "transient"),
        listed[3]: ("error", 2, "low", "unknown"),
        listed[4]: ("processed", 2, "low", "unknown"),
    }
    caldp.tell(**told)
    for batch, switches in (
        ("shuffled", {"duplicate_events": True, "delay_events": 1.0}),
        ("dropped", {"duplicate_events": True, "delay_events": 0.2, "drop_events": 0.6, "seed": 3}),
        ("untold", {"drop_events": 1.0}),
    ):
        caldp.begin(**switches)
        caldp.tell(**told)
        caldp.invoke("on-list", {"datasets": listed, "batch": batch})
        heard = 0
        for _ in range(8):
            caldp.wait_quiet()
            while caldp.waiting("rescues"):
                caldp.drain()
                caldp.wait_quiet()
            caldp.an_hour_passes(batch)
            report = caldp.reconcile(batch)
            heard += report["heard"] + report["lost"]
            if report["closed"]:
                break
        assert caldp.ends(batch) == expected, batch
        caldp.assert_sound(batch, listed)
        assert len(caldp.jobs(batch)) == len(caldp.control(batch).shards())
        assert (heard > 0) == (batch != "shuffled")


def test_a_function_that_is_killed_is_started_again_by_its_queue(caldp: Deployed) -> None:
    """SIGKILL while it writes statuses; then SubmitJob that was done and answered with an error: one job each."""
    listed = names(25, 500)
    with caldp.hidden("shards", 20):
        for batch in ("killed", "killed-again", "killed-once-more"):
            caldp.invoke("on-list", {"datasets": listed, "batch": batch})
            store = caldp.control(batch).store
            Aws.wait_until(lambda: store.names("messages/dataset-submitted"), what="it has begun")  # noqa: B023
            assert caldp.kill("submit-shards") > 0
            if not caldp.jobs(batch):
                break  # else it was killed too late to tell anything
        else:
            pytest.fail("it is always faster")
        # Ten minutes later the claim is taken for abandoned.
        caldp.an_hour_passes(batch)
        caldp.work(batch)
    assert caldp.ends(batch) == {name: ("processed", 1, "low", "") for name in listed}
    caldp.assert_sound(batch, listed)
    assert len(caldp.jobs(batch)) == 1

    caldp.begin(lose_replies=1.0)
    calls = caldp.aws.stats()["calls"]["SubmitJob"]
    with caldp.hidden("shards", 20):
        caldp.invoke("on-list", {"datasets": listed[:3], "batch": "lost"})
        caldp.work("lost")
    assert caldp.ends("lost") == {name: ("processed", 1, "low", "") for name in listed[:3]}
    caldp.assert_sound("lost", listed[:3])
    assert caldp.aws.stats()["calls"]["SubmitJob"] == calls + 1


def test_a_function_that_hears_of_ends_is_killed(caldp: Deployed) -> None:
    """Its messages come back, and are taken again; nothing is lost."""
    listed = names(25, 560)
    caldp.tell(**{name: [{"exit": 26}, {}] for name in listed[::5]})
    with caldp.hidden("events", 30):
        caldp.invoke("on-list", {"datasets": listed, "batch": "deaf"})
        Aws.wait_until(lambda: caldp.waiting("rescues"), what="the first end that was heard of")
        assert caldp.kill("on-batch-event") > 0
        caldp.work("deaf")
    expected = {name: ("processed", 1, "low", "") for name in listed}
    assert caldp.ends("deaf") == expected | {name: ("processed", 2, "low", "transient") for name in listed[::5]}
    caldp.assert_sound("deaf", listed)


# ---- what operators do


def test_the_commands(caldp: Deployed, tmp_path: Path) -> None:
    """Plan, submit, look, cancel with a token, rescue, read logs, reconcile, report: as they are typed."""
    listed = names(6, 700)
    broken, slow = listed[0], listed[1:3]
    gate = tmp_path / "gate"
    caldp.tell(**{broken: {"exit": 21, "reason": "no exposures"}, **{name: {"wait": str(gate)} for name in slow}})
    caldp.aws.switch(second=1.0)
    (caldp.home / "list.ids").write_text("\n".join([*listed, "nonsense"]) + "\n")
    batch = caldp.output("typed")

    planned = caldp.campaign("plan", "list.ids", "--json")
    assert (planned.code, planned.json["datasets"]) == (0, 6)
    done = caldp.campaign("submit", "list.ids", batch)
    assert done.code == 2 and "--deployment" in done.err
    done = caldp.campaign("submit", "list.ids", batch, "--deployment", "caldp-none")
    assert done.code == 2 and "there is no deployment caldp-none" in done.err
    done = caldp.campaign("submit", "list.ids", batch, "--deployment", NAME, "--label", "e2e")
    assert done.code == 0 and "6 datasets in 1 shard\n" in done.out and "nonsense" in done.err
    caldp.aws.wait_until(lambda: caldp.ends("typed").get(broken, ("",))[3:] == ("deterministic",))
    caldp.aws.wait_until(lambda: all(caldp.status("typed", name).state == "processing" for name in slow))

    done = caldp.campaign("status", batch)
    assert done.code == 3 and "no exposures" in done.out
    done = caldp.campaign("top", batch)
    assert done.code == 0 and all(name in done.out for name in slow)
    # Cancelling is shown first, and done with the token of what was shown, by ending the job.
    shown = caldp.campaign("cancel", batch, slow[0])
    assert shown.code == 4 and slow[0] in shown.out and slow[1] not in shown.out
    (token,) = re.findall(r"--yes ([0-9a-f]+)", shown.err)
    assert caldp.campaign("cancel", batch, slow[1], "--yes", token).code == 4, "the token is of another list"
    assert caldp.campaign("cancel", batch, slow[0], "--yes", token).code == 0
    caldp.aws.wait_until(lambda: caldp.status("typed", slow[0]).state == "cancelled")
    caldp.aws.wait_until(lambda: caldp.aws.stats()["running"] == 1, what="its job has ended")
    gate.touch()
    caldp.wait_quiet()
    done = caldp.campaign("status", batch)
    assert done.code == 1
    # What failed is tried again, and its log can be read.
    caldp.tell()
    done = caldp.campaign("rescue", batch, broken, slow[0], "--why", "the archive has it now")
    assert done.code == 0 and "2 datasets" in done.out
    caldp.work("typed")
    assert caldp.ends("typed") == {
        name: ("processed", 2 if name in (broken, slow[0]) else 1, "low", "") for name in listed
    }
    caldp.assert_sound("typed", listed)
    done = caldp.campaign("logs", batch, broken)
    assert done.code == 0 and f"{broken}: attempt 2" in done.out
    done = caldp.campaign("logs", batch, broken, "--attempt", "1")
    assert done.code == 0 and "no exposures" in done.out
    assert caldp.campaign("status", batch).code == 0
    done = caldp.campaign("reconcile", batch)
    assert done.code == 0 and "nothing to heal" in done.out
    done = caldp.campaign("report", batch, "-o", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert done.code == 0 and broken in page and "the archive has it now" in page
    done = caldp.campaign("submit", "list.ids", batch, "--deployment", NAME)
    assert done.code == 0 and "nothing is submitted twice" in done.out
    caldp.wait_quiet()
    audit = (caldp.control("typed").store.get("control/audit.jsonl") or pytest.fail("no audit")).data.splitlines()
    assert [json.loads(line)["what"] for line in audit] == ["cancel", "rescue"]
    assert len(caldp.jobs("typed")) == 3 - 1


def test_a_deployment_that_is_broken_pauses_campaigns(caldp: Deployed) -> None:
    """The image cannot be pulled: nothing more is submitted, no budget is spent, and unpause goes on."""
    listed = names(30, 800)  # two shards
    image = {"reason": f"CannotPullContainerError: pull image manifest has been retried 1 time(s): {NAME}: not found"}
    caldp.aws.outcomes({**image, "name": "paused-a1-*-001-*", "times": 75})
    caldp.aws.switch(paused=True)
    caldp.invoke("on-list", {"datasets": listed, "batch": "paused"})
    caldp.aws.wait_until(lambda: len(caldp.jobs("paused")) == 2)
    caldp.aws.switch(paused=False)
    caldp.wait_quiet()
    control = caldp.control("paused")
    assert "not found" in control.paused()
    done = caldp.campaign("status", caldp.output("paused"))
    assert done.code == 3 and "paused" in done.out
    ends = Counter(caldp.ends("paused").values())
    assert ends == {("placed", 2, "low", "deployment"): 25, ("processed", 1, "low", ""): 5}
    caldp.drain()
    caldp.reconcile("paused")
    caldp.wait_quiet()
    assert len(caldp.jobs("paused")) == 2, "something was submitted while it was paused"

    caldp.aws.outcomes()
    done = caldp.campaign("unpause", caldp.output("paused"), "--why", "pushed the image")
    assert done.code == 0 and control.paused() == ""
    caldp.work("paused")
    assert Counter(caldp.ends("paused").values()) == {
        ("processed", 2, "low", "deployment"): 25,
        ("processed", 1, "low", ""): 5,
    }
    caldp.assert_sound("paused", listed)
    # That is nothing that a dataset has to answer for.
    assert {tuple(status.spent) for status in caldp.statuses("paused").values()} == {(), ("deployment",)}
