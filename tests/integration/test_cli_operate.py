"""``caldp campaign cancel``, ``rescue``, ``clean``, ``logs``, ``pause``: what operators type, and what comes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from botocore.client import BaseClient
from click.testing import CliRunner, Result

from caldp import cli, messages
from caldp.campaign import hear, lists
from caldp.campaign.accept import accept
from caldp.campaign.control import Control, log_key
from caldp.campaign.deployment import Deployment, parameter, settings_parameter
from caldp.campaign.lists import Options
from caldp.campaign.settings import DEFAULT
from caldp.campaign.stack import Stack, client
from caldp.messages import Status
from caldp.s3_store import S3Store
from caldp.store import Create, Store, open_store
from tests.aws import BatchPlace, aws, aws_server, batch_place  # noqa: F401 - fixtures
from tests.fakes.job import Camp
from tests.fakes.processed import names
from tests.s3 import REPOSITORY, S3Place, emulated, make_bucket, s3_environment, s3_places

ONE, TWO, THREE = names(3)

Caldp = Callable[..., Result]


@pytest.fixture
def caldp(monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> Caldp:
    """A function that types ``caldp campaign ...``, in this process; with ``place`` its S3 is seen."""

    def type_it(*args: str, place: S3Place | None = None) -> Result:
        if place:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                monkeypatch.delenv(name)
            for name, value in place.environment().items():
                if name.startswith("AWS_"):
                    monkeypatch.setenv(name, value)
        done = CliRunner().invoke(cli.main, ["campaign", *args])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return type_it


@pytest.fixture
def camp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Camp:
    monkeypatch.chdir(tmp_path)
    return Camp.at(tmp_path, names(3))


def token(done: Result) -> str:
    """Return the token of a list that was shown."""
    assert done.exit_code == 4, done.output
    found = re.search(
        r"nothing was done; to \w+ exactly these, repeat the command with --yes ([0-9a-f]{12})\n", done.stderr
    )
    assert found, done.stderr
    return found[1]


def campaign(store: Store, runner: str = "local", **asked: Any) -> Control:
    listed = lists.of_mapping({"datasets": list(names(3))})
    return accept(store, listed, Options(canary=0.0, **asked), DEFAULT, runner=runner).control


def stand(store: Store, name: str, state: str, attempt: int = 1, **more: Any) -> None:
    given = {"rung": "2g", "time_limit": 3600, **more}
    assert messages.advance(store, Status(name, attempt, state, **given))[1]


def keys(store: Store) -> set[str]:
    return {entry.key for entry in store.walk("")}


# ---- with a campaign that runs


def test_a_campaign_that_runs_is_stopped_and_tried_again(caldp: Caldp, camp: Camp) -> None:
    camp.behave(others={"wait": str(camp.home / "go"), "child": True})
    running = camp.start(*camp.command, "-j", "2")
    camp.wait_for(lambda: len(camp.calls()) == 2)
    shown = caldp("cancel", "OUT", "--all", "--why", "wrong flat")
    assert shown.stdout.startswith(f"cancel: 3 datasets of file:{camp.out}\n")
    assert f"    {ONE}  processing, attempt 1\n" in shown.stdout
    assert {state for state, _ in camp.states().values()} == {"processing"}
    done = caldp("cancel", "OUT", "--all", "--why", "wrong flat", "--yes", token(shown))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "3 datasets cancelled"
    assert camp.finish(running).returncode == 1
    assert camp.states() == dict.fromkeys(names(3), ("cancelled", 1))
    assert len(camp.begun()) == 2  # the third was never started
    assert camp.status(THREE).reason.endswith(": wrong flat")
    camp.assert_sound()
    # They are tried again, each with all of its retries, by whoever resumes the campaign.
    camp.behave(**{TWO: {"exit": 23}})
    done = caldp("rescue", "OUT", *names(3), "--memory-rung", "middle")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == (
        f"3 datasets placed again\nunless it is running, go on with: caldp campaign submit --resume file:{camp.out}\n"
    )
    assert {(status.rung, status.time_limit) for status in map(camp.status, names(3))} == {("middle", 60)}
    assert camp.resume().returncode == 1
    assert camp.states() == {ONE: ("processed", 2), TWO: ("error", 2), THREE: ("processed", 2)}
    camp.assert_sound()
    lines = [json.loads(line) for line in (camp.out / "control" / "audit.jsonl").read_text().splitlines()]
    assert [(line["what"], line["why"]) for line in lines] == [("cancel", "wrong flat"), ("rescue", "")]


def test_logs_are_followed_to_the_end(caldp: Caldp, camp: Camp) -> None:
    camp.behave(others={"wait": str(camp.home / "go"), "lines": 3})
    running = camp.start(*camp.command, "-j", "1")
    camp.wait_for(lambda: camp.calls())
    name, _ = camp.begun()[0]
    command = [str(Path(sys.executable).parent / "caldp"), "campaign", "logs", "OUT", name]
    following = subprocess.Popen(
        [*command, "-f"], cwd=camp.home, env=camp.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    assert following.stdout.readline() == f"{name}: line 0".ljust(100, ".") + "\n"  # it is running
    (camp.home / "go").touch()
    rest = following.stdout.read()  # not communicate: it does not know what readline has read ahead
    assert following.stderr is not None
    assert (following.wait(60), following.stderr.read()) == (0, "")
    following.stdout.close()
    following.stderr.close()
    assert [line[: len(name) + 8] for line in rest.splitlines()] == [f"{name}: line {number}" for number in (1, 2)]
    camp.finish(running)
    log = (camp.out / log_key(name, 1)).read_text()
    assert caldp("logs", "OUT", name.upper()).stdout == log
    assert caldp("logs", "OUT", name, "--attempt", "1").stdout == log
    done = caldp("logs", "OUT", name, "--attempt", "2")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{name}: there is no log of attempt 2" in done.stderr


def test_a_pause(caldp: Caldp, camp: Camp) -> None:
    camp.behave(others={"wait": str(camp.home / "go")})
    running = camp.start(*camp.command, "-j", "1")
    camp.wait_for(lambda: camp.calls())
    done = caldp("pause", "OUT", "--why", "the disk is full")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "paused: the disk is full\n", "")
    camp.wait_for(lambda: caldp("logs", "OUT", ONE).exit_code == 0)
    time.sleep(4)  # the runner listens every three seconds
    (camp.home / "go").touch()
    assert camp.finish(running).returncode == 3
    assert [state for state, _ in camp.states().values()] == ["processed"]
    done = caldp("unpause", "OUT")
    assert done.stdout == f"not paused any more\ngo on with: caldp campaign submit --resume file:{camp.out}\n"
    assert caldp("unpause", "OUT").stdout == "it was not paused\n"
    assert camp.resume().returncode == 0


def test_a_dataset_is_cleaned_and_calibrated_anew(caldp: Caldp, camp: Camp) -> None:
    assert camp.submit().returncode == 0
    done = caldp("clean", "OUT", ONE)
    assert (done.exit_code, done.stdout) == (1, "no dataset to clean\n")
    assert done.stderr == (
        f"left as it is: {ONE}: it is processed: its products would be lost, see --discard-products\n"
    )
    shown = caldp("clean", "OUT", ONE, "--discard-products")
    assert "  their products are lost, whether they were archived or not\n" in shown.stdout
    before = {key for key in keys(camp.store) if f"/{ONE}" in key and "status" not in key}
    done = caldp("clean", "OUT", ONE, "--discard-products", "--yes", token(shown))
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.fullmatch(r"1 dataset cleaned, 4 objects removed \(0\.0 MB\)\n", done.stdout)
    assert before & keys(camp.store) == set()
    assert not (camp.out / "data" / "cos" / ONE).exists()
    assert camp.states() == {ONE: ("cancelled", 2), TWO: ("processed", 1), THREE: ("processed", 1)}
    camp.out.joinpath("control", "closed.json").touch()
    assert caldp("rescue", "OUT", ONE).exit_code == 0
    assert camp.resume().returncode == 0
    assert camp.states()[ONE] == ("processed", 3)


# ---- what is typed


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["cancel"], 2, "Missing argument 'BATCH'"),
        (["cancel", "OUT"], 2, "no datasets are selected; name them, or give @FILE, --state"),
        (["clean", "OUT", ""], 2, "'' is not an HST dataset name"),
        (["clean", "OUT", "lfak"], 2, "'lfak' is not an HST dataset name"),
        (["clean", "OUT", "data"], 2, "'data' is not an HST dataset name"),
        (["clean", "OUT", f"{ONE}x"], 2, "is not an HST dataset name"),
        (["clean", "OUT", "ldfd01010"], 2, "ldfd01010: the campaign of"),
        (["clean", "OUT", "@nothing"], 2, "@nothing cannot be read"),
        (["clean", "OUT", ONE, "--all"], 2, "datasets are named, and --all is given"),
        (["clean", "OUT", "--class", "bad"], 2, "there is no class 'bad'; give one of"),
        (["rescue", "OUT", ONE, "--memory-rung", "3g"], 2, "'3g' is no memory rung"),
        (["rescue", "OUT", ONE, "--timeout-scale", "0"], 2, "Invalid value for '--timeout-scale'"),
        (["cancel", "nowhere", "--all"], 2, "there is no directory"),
        (["cancel", "IN", "--all"], 2, "is no campaign: there is no control/plan.json"),
        (["pause", "IN"], 2, "is no campaign"),
        (["unpause", "IN"], 2, "is no campaign"),
        (["logs", "IN", ONE], 2, "is no campaign"),
        (["logs", "OUT", "j8cb01"], 2, "'j8cb01' is not an HST dataset name"),
    ],
)
def test_what_makes_no_sense(caldp: Caldp, camp: Camp, args: list[str], code: int, words: str) -> None:
    campaign(camp.store)
    stand(camp.store, ONE, "error", cause="oom")
    camp.store.put(f"data/cos/{ONE}/x.fits", b"x", Create())
    before = keys(camp.store)
    done = caldp(*args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
    assert keys(camp.store) == before


def test_selectors_files_and_json(caldp: Caldp, camp: Camp) -> None:
    store = camp.store
    campaign(store)
    stand(store, ONE, "error", cause="oom")
    stand(store, TWO, "error", cause="timeout")
    (camp.home / "some.csv").write_text(f"dataset,why\n{ONE},x\n{THREE},y\n")
    done = caldp("rescue", "OUT", "--class", "oom", "--class", "timeout", "--instrument", "cos", "--json")
    record = json.loads(done.stdout)
    assert (record["done"], record["others"], record["token"]) == (False, {}, token(done))
    assert [entry["dataset"] for entry in record["datasets"]] == [ONE, TWO]
    done = caldp("rescue", "OUT", "@some.csv", "--json")
    assert done.exit_code == 1  # of the two that are named one was not done yet
    record = json.loads(done.stdout)
    assert (record["done"], record["left"]) == ([ONE], [{"dataset": THREE, "why": "it is placed: cancel it first"}])
    assert caldp("rescue", "OUT", "--state", "error", "--instrument", "acs").stdout == "no dataset to rescue\n"
    done = caldp("clean", "OUT", "--all")
    assert "not to be touched: 2 placed\n" in done.stdout


def test_a_stale_token(caldp: Caldp, camp: Camp) -> None:
    store = camp.store
    campaign(store)
    stand(store, ONE, "error", cause="oom")
    first = token(caldp("clean", "OUT", "--all"))
    stand(store, TWO, "error", cause="oom")
    done = caldp("clean", "OUT", "--all", "--yes", first)
    assert done.stderr.startswith("the list is not the one that this token is of; nothing was done; ")
    assert token(done) != first
    assert messages.read(store, ONE) == messages.read(open_store(store.uri), ONE)
    assert {state for state, _ in camp.states().values()} == {"error"}
    assert not (camp.out / "control" / "audit.jsonl").exists()
    for other in ("yes", "", "0" * 12, "*"):
        assert caldp("clean", "OUT", "--all", "--yes", other).exit_code == 4
    assert caldp("clean", "OUT", "--all", "--yes", token(done)).exit_code == 0


def test_the_commands_of_few_are_not_loaded_for_everybody() -> None:
    code = "import sys; from caldp.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "caldp.cli_campaign" in done.stdout and "operate" not in done.stdout
    code = code.replace("['--help']", "['campaign', '--help']")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "caldp.cli_operate" in done.stdout and "caldp.campaign.operate" not in done.stdout
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"boto3", "rich", "numpy", "jinja2"}


# ---- in buckets


@pytest.mark.parametrize("s3_place", s3_places(), indirect=True)
def test_in_a_bucket(caldp: Caldp, s3_place: S3Place) -> None:
    settings = {name: value for name, value in s3_place.environment().items() if name.startswith("AWS_")}
    store = S3Store(s3_place.outputs, settings)
    control = campaign(store)
    outside = S3Store(s3_place.outputs.rpartition("/")[0], settings)
    for key in ("batchx/data/cos/x", f"batch-2/data/cos/{ONE}/x.fits", f"data/cos/{ONE}/x.fits"):
        outside.put(key, b"foreign", Create())
    stand(store, ONE, "error", cause="oom")
    mine = [f"data/cos/{ONE}/{ONE}_x1d.fits", f"data/cos/{ONE}/logs/process.txt", f"control/results/{ONE}/1.1.json"]
    foreign = [f"data/cos/{ONE}x/a.fits", f"data/cos/{ONE[:6]}/a.fits", f"data/cos/{ONE}_a.fits"]
    for key in (*mine, *foreign):
        store.put(key, b"line\n", Create())
    done = caldp("cancel", s3_place.outputs, "--state", "placed", place=s3_place)
    assert caldp("cancel", s3_place.outputs, "--state", "placed", "--yes", token(done)).exit_code == 0
    assert caldp("logs", s3_place.outputs, ONE).stdout == "line\n"
    before = keys(outside)
    shown = caldp("clean", f"{s3_place.outputs}/", ONE)  # with a slash it is the same place
    done = caldp("clean", s3_place.outputs, ONE, "--yes", token(shown))
    assert (done.exit_code, done.stdout) == (0, "1 dataset cleaned, 3 objects removed (0.0 MB)\n"), done.stderr
    batch = s3_place.outputs.rpartition("/")[2]
    gone = {*mine, f"messages/dataset-error/{ONE}"}
    new = {"control/audit.jsonl", f"messages/dataset-cancelled/{ONE}"}
    assert keys(outside) - {f"{batch}/{key}" for key in new} == before - {f"{batch}/{key}" for key in (*gone, *new)}
    assert control.store.get(f"data/cos/{ONE}x/a.fits") is not None
    done = caldp("rescue", s3_place.outputs, *names(3))
    assert done.stdout.startswith("3 datasets placed again\n")


NAME, LOGS = "caldp-dev", "/aws/batch/job"


@pytest.fixture
def deployed(s3_place: S3Place) -> Iterator[Deployment]:
    """A deployment of which there is nothing but its parameter and a queue."""
    import boto3

    with mock.patch.dict(os.environ, s3_environment(s3_place.endpoint), clear=True):
        ssm, sqs = boto3.client("ssm"), boto3.client("sqs")
    with closing(ssm), closing(sqs):
        rescue, shards = (sqs.create_queue(QueueName=f"{n}-{s3_place.bucket}")["QueueUrl"] for n in ("r", "s"))
        made = Deployment(
            NAME,
            (s3_place.bucket,),
            f"s3://{s3_place.bucket}/outputs",
            shards,
            shards,
            rescue,
            {"2g": "q"},
            {"2g": "d"},
            "/x",
        )
        text = json.dumps(made.to_json())
        ssm.put_parameter(Name=parameter(NAME), Value=text, Type="String", Overwrite=True)
        yield made


@emulated("moto")
def test_on_aws(caldp: Caldp, s3_place: S3Place, deployed: Deployment) -> None:
    settings = {name: value for name, value in s3_place.environment().items() if name.startswith("AWS_")}
    store = S3Store(s3_place.outputs, settings)
    control = campaign(store, "aws")
    stand(store, ONE, "error", cause="oom")
    stand(store, TWO, "error", cause="deterministic")
    before = keys(store)
    done = caldp("rescue", s3_place.outputs, ONE, place=s3_place)
    assert done.exit_code == 2 and "give --deployment NAME" in done.stderr
    done = caldp("rescue", s3_place.outputs, ONE, "--deployment", "caldp-other")
    assert done.exit_code == 2 and "there is no deployment caldp-other" in done.stderr
    assert keys(store) == before
    done = caldp("rescue", s3_place.outputs, ONE, TWO, "--deployment", NAME)
    assert (done.exit_code, done.stdout) == (0, "2 datasets placed again\nthey are submitted within a minute or two\n")
    # The function that submits understands it.
    assert hear.drain(Stack(deployed, DEFAULT, settings)) == 2
    tried = {(line.dataset, line.attempt, line.rung) for shard in control.shards() for line in control.lines(shard)}
    assert tried == {(THREE, 1, "2g"), (ONE, 1, "2g"), (TWO, 1, "2g"), (ONE, 2, "8g"), (TWO, 2, "2g")}
    shown = caldp("cancel", s3_place.outputs, "--all")
    again = ("cancel", s3_place.outputs, "--all", "--yes", token(shown))
    assert caldp(*again).exit_code == 2
    assert control.store.get(messages.status_key(THREE)) is None
    done = caldp(*again, "--deployment", NAME)
    assert (done.exit_code, done.stdout) == (0, "3 datasets cancelled\n"), done.stderr


@emulated("moto")
def test_a_rescue_of_a_campaign_on_aws_that_is_paused(caldp: Caldp, s3_place: S3Place, deployed: Deployment) -> None:
    settings = {name: value for name, value in s3_place.environment().items() if name.startswith("AWS_")}
    store = S3Store(s3_place.outputs, settings)
    campaign(store, "aws")
    stand(store, ONE, "error", cause="deterministic")
    assert caldp("pause", store.uri, "--why", "wrong flat", place=s3_place).exit_code == 0
    done = caldp("rescue", store.uri, ONE, "--deployment", NAME)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (
        0,
        f"the campaign is paused (wrong flat): to let it go on: caldp campaign unpause {store.uri}",
    )


@emulated("moto")
def test_what_aws_refuses_is_said_in_a_line(
    caldp: Caldp, s3_place: S3Place, deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {name: value for name, value in s3_place.environment().items() if name.startswith("AWS_")}
    store = S3Store(s3_place.outputs, settings)
    campaign(store, "aws")
    stand(store, ONE, "error", cause="deterministic")
    stand(store, TWO, "placed", 2)
    with mock.patch.dict(os.environ, s3_environment(s3_place.endpoint), clear=True), closing(client("sqs")) as sqs:
        for queue in (deployed.shard_queue, deployed.rescue_queue):
            sqs.delete_queue(QueueUrl=queue)
    done = caldp("rescue", store.uri, ONE, "--deployment", NAME, place=s3_place)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "1 datasets were placed, but not all of them queued (AWS says: " in done.stderr
    assert "rescue those with --state placed again" in done.stderr
    done = caldp("reconcile", store.uri, "--deployment", NAME)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "AWS says: " in done.stderr and "check the credentials, the region and what they allow" in done.stderr
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    for verb in ("reconcile", "rescue"):
        done = caldp(verb, store.uri, *([ONE] if verb == "rescue" else []), "--deployment", NAME)
        assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert "You must specify a region; export AWS_REGION" in done.stderr


# ---- what operators are told that they must be allowed to


def rights() -> dict[str, set[str]]:
    """Read the table of the guide."""
    text = (REPOSITORY / "docs" / "campaigns.rst").read_text()
    rows = re.findall(r'^    "(``\w+``(?:, ``\w+``)*)", "(``\w+:[^"]*)"$', text, re.MULTILINE)
    found: dict[str, set[str]] = {}
    for commands, actions in rows:
        for command in re.findall(r"\w+", commands):
            found[command] = set(re.findall(r"``(\w+:\w+)``", actions))
    return found


#: Actions of IAM whose names are not those of the operations.
ACTIONS = {
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:DeleteObjects": "s3:DeleteObject",
    "sqs:SendMessageBatch": "sqs:SendMessage",
}


@emulated("moto")
def test_the_guide_names_all_that_a_command_must_be_allowed_to(
    caldp: Caldp, s3_place: S3Place, deployed: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {name: value for name, value in s3_place.environment().items() if name.startswith("AWS_")}
    with mock.patch.dict(os.environ, s3_environment(s3_place.endpoint), clear=True), closing(client("ssm")) as ssm:
        text = json.dumps(DEFAULT.to_json())
        ssm.put_parameter(Name=settings_parameter(NAME), Value=text, Type="String", Overwrite=True)
    (tmp_path / "list.ids").write_text("\n".join(names(3)))
    store = S3Store(s3_place.outputs, settings)
    used: set[str] = set()
    real = BaseClient._make_api_call

    def call(self: Any, operation: str, request: Any) -> Any:
        action = f"{self.meta.service_model.service_name}:{operation}"  # as IAM calls it, with few exceptions
        used.add(ACTIONS.get(action, action))
        if operation == "DescribeJobs":
            job = {"jobName": "x", "jobQueue": "q", "status": "RUNNING", "container": {"logStreamName": "s"}}
            return {"jobs": [{**job, "jobId": name} for name in request["jobs"]]}
        answers = {"ListJobs": {"jobSummaryList": []}, "GetLogEvents": {"events": []}, "TerminateJob": {}}
        return answers[operation] if operation in answers else real(self, operation, request)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    told = rights()

    def asked(verb: str, *args: str) -> None:
        used.clear()
        done = caldp(verb, *args, place=s3_place)
        if done.exit_code == 4:
            done = caldp(verb, *args, "--yes", token(done))
        assert done.exit_code in (0, 1, 3), done.stderr
        assert used <= told.pop(verb), f"{verb} needs {sorted(used)}"

    stack = ("--deployment", NAME)
    for verb in ("plan", "submit"):
        asked(verb, str(tmp_path / "list.ids"), store.uri, *stack)
    (shard,) = Control(store).shards()
    claim = {"shard": shard, "claimed": store.clock().isoformat(), "by": "x", "job": "j-0"}
    store.put(f"control/shards/{shard}.json", json.dumps(claim).encode(), Create())
    stand(store, ONE, "error", cause="deterministic", job="j-1")
    stand(store, TWO, "error", cause="deterministic", job="j-2")
    stand(store, THREE, "submitted", shard=shard, job="j-3")
    for verb in ("status", "top", "pause", "unpause", "reconcile"):
        asked(verb, store.uri)
    asked("report", store.uri, "-o", str(tmp_path / "x.html"))
    asked("logs", store.uri, ONE)
    for verb, name in (("rescue", ONE), ("cancel", THREE), ("clean", TWO)):
        asked(verb, store.uri, name)
    assert not told


def test_jobs_are_ended_and_their_logs_read(caldp: Caldp, tmp_path: Path, batch_place: BatchPlace) -> None:  # noqa: F811
    there = batch_place.aws
    program = tmp_path / "caldp-process-aws"
    program.write_text("#!/bin/sh\necho up $AWS_BATCH_JOB_ARRAY_INDEX\nexec sleep 60\n")
    program.chmod(0o755)
    path = [{"name": "PATH", "value": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}]
    definition = batch_place.define(["none"], "jobs", containerProperties={"environment": path})
    bucket = make_bucket(there.endpoint)
    place = S3Place("ministack", there.endpoint, "", f"s3://{bucket}/outputs/batch")
    queues = dict.fromkeys(("list_queue", "shard_queue", "rescue_queue"), "none")
    where, what = {"2g": batch_place.queue}, {"2g": definition}
    made = Deployment(
        NAME, (bucket,), f"s3://{bucket}", **queues, job_queues=where, job_definitions=what, log_group=LOGS
    )
    there.client("ssm").put_parameter(Name=parameter(NAME), Value=json.dumps(made.to_json()), Type="String")
    store = S3Store(place.outputs, {k: v for k, v in place.environment().items() if k.startswith("AWS_")})
    control = campaign(store, "aws", share="")
    (shard,) = control.shards()
    with mock.patch.dict(os.environ, place.environment(), clear=True):
        job = Stack(made, DEFAULT).submitter(store.uri).submit(shard).job
    children = [f"{job}:{index}" for index in range(3)]
    streams = [there.wait_for(child, "RUNNING")["container"]["logStreamName"] for child in children]
    messages.begin(store, ONE, "r1", claim=messages.Claim(1, job=children[0]))
    there.wait_until(lambda: "up" in caldp("logs", store.uri, ONE, "--deployment", NAME, place=place).stdout)
    assert caldp("logs", store.uri, ONE, "--deployment", NAME).stdout == "up 0\n"
    assert len(set(streams)) == 3

    def cancel(*which: str) -> str:
        shown = caldp("cancel", store.uri, *which, "--deployment", NAME)
        done = caldp("cancel", store.uri, *which, "--deployment", NAME, "--yes", token(shown))
        assert done.exit_code == 0, done.output
        return done.stdout

    assert cancel(ONE, THREE) == "2 datasets cancelled, 2 jobs ended\n"
    for child in (children[0], children[2]):
        assert there.ended(child)["statusReason"] == "Operator cancelled"
    assert there.job(children[1])["status"] == "RUNNING"
    assert cancel("--all") == "1 dataset cancelled, 1 job ended\n"
    assert there.ended(children[1])["statusReason"] == "Operator cancelled"
    assert there.ended(job)["status"] == "FAILED"
