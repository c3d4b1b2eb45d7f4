"""``caldp campaign plan`` and ``submit``: what is typed, what is shown, how it ends."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import click.testing
import pytest

from caldp.campaign.deployment import Deployment, parameter, settings_parameter
from caldp.campaign.observe import learn
from caldp.campaign.plan import Observation
from caldp.campaign.settings import DEFAULT
from caldp.cli import main
from caldp.simulate.campaign import BROKEN, DATASETS, LARGE
from caldp.store import open_store
from tests.desk import SCRIPTS, small_disk
from tests.fakes import processed
from tests.fakes.job import SETTINGS, Camp
from tests.fakes.processed import names

ONE, TWO, THREE = names(3)


@pytest.fixture
def camp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Camp:
    monkeypatch.chdir(tmp_path)
    return Camp.at(tmp_path, names(3))


def plan(*args: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["campaign", "plan", *args])


def planned(*args: str) -> dict[str, Any]:
    done = plan(*args, "--json")
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- plan, and a dry run


def test_a_plan(camp: Camp) -> None:
    before = tree(camp.home)
    done = plan("list.ids", "--settings", "settings.toml")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["3 datasets, 1 SubmitJob call", "  low-1m             3"]
    assert tree(camp.home) == before
    processed.publish(camp.store, ONE)
    assert "1 are there already" in plan("list.ids", "file:OUT", "--settings", "settings.toml").stdout
    assert planned("list.ids", "file:OUT", "--settings", "settings.toml")["skipped"] == [ONE]
    done = plan("list.ids", "file:OUT", "--existing", "error")
    assert (done.exit_code, len(done.stderr.splitlines())) == (36, 1)
    assert ONE in done.stderr


def test_a_dry_run_writes_nothing(camp: Camp) -> None:
    before = tree(camp.home)
    done = camp.submit("--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith("3 datasets, 1 SubmitJob call\n  low-1m ")
    done = camp.resume("--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--dry-run and --resume do not go together" in done.stderr
    assert tree(camp.home) == before


# ---- what was observed


def observe_earlier(camp: Camp, name: str, memory: int = 130) -> str:
    """Let an earlier campaign have seen what a dataset needs, in MiB; return what to type."""
    used = Observation(name, "cos", "fuv", "ipppssoot", 4, "calcos", memory << 20, 30.0, "low")
    learn(open_store(f"file:{camp.home / 'EARLIER'}"), [used])
    return "--observations=file:EARLIER"


def test_a_plan_by_what_was_observed(camp: Camp) -> None:
    observed = observe_earlier(camp, ONE)
    found = planned("list.ids", "--settings", "settings.toml", observed)
    assert (found["classes"], found["unobserved"]) == ({"low-1m": 2, "middle-1m": 1}, 2)
    assert planned("list.ids", "--settings", "settings.toml")["unobserved"] == 3
    done = camp.submit("--dry-run", observed)
    assert (done.returncode, done.stdout.splitlines()[2].split()) == (0, ["middle-1m", "1"])


def test_a_campaign_by_what_was_observed(camp: Camp) -> None:
    assert camp.submit(observe_earlier(camp, ONE)).returncode == 0
    assert [camp.status(name).rung for name in names(3)] == ["middle", "low", "low"]
    kept = (camp.out / "control" / "observations.jsonl").read_bytes()
    assert kept == (camp.home / "EARLIER" / "observations" / "cos.jsonl").read_bytes()
    # It stays as it was planned, whatever is observed later.
    observe_earlier(camp, TWO)
    before = tree(camp.out)
    assert camp.submit("--observations=file:EARLIER").returncode == 0
    assert tree(camp.out) == before


def test_a_place_where_nothing_was_observed(camp: Camp) -> None:
    for place in ("file:nowhere", "file:IN"):
        found = planned("list.ids", "--settings", "settings.toml", "--observations", place)
        assert found["unobserved"] == 3
    assert not Path("nowhere").exists()


def test_observations_that_are_damaged(camp: Camp) -> None:
    observed = observe_earlier(camp, ONE)
    (camp.home / "EARLIER" / "observations" / "cos.jsonl").write_text("nonsense\n")
    for done in (plan("list.ids", observed), camp.submit(observed)):
        code = done.exit_code if isinstance(done, click.testing.Result) else done.returncode
        assert (code, done.stdout, len(done.stderr.splitlines())) == (29, "", 1)
        assert "observations/cos.jsonl: line 1 is damaged" in done.stderr
    assert not camp.out.exists()
    # Those of other instruments do not matter.
    (camp.home / "list.ids").write_text("o8l7sws9q")
    assert planned("list.ids", observed)["unobserved"] == 1


@pytest.fixture
def deployment(aws_of_moto: None) -> str:
    """A deployment of which there are its parameters, a bucket and a queue."""
    queue = boto3.client("sqs").create_queue(QueueName="shards")["QueueUrl"]
    known = Deployment(
        **{"name": "caldp-test", "buckets": ("outputs",), "output": "s3://outputs/runs", "log_group": "l"},
        **{"list_queue": "l", "shard_queue": queue, "rescue_queue": "r"},
        **{"job_queues": {"2g": "q"}, "job_definitions": {"2g": "d"}},
    )
    ssm = boto3.client("ssm")
    for name, record in ((parameter, known), (settings_parameter, DEFAULT)):
        ssm.put_parameter(Name=name("caldp-test"), Value=json.dumps(record.to_json()), Type="String")
    boto3.client("s3").create_bucket(Bucket="outputs")
    return known.name


def submit(*args: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["campaign", "submit", *args])


def test_aws_without_a_region(camp: Camp, deployment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("list.ids", "s3://outputs/runs/b", "--deployment", deployment)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_REGION", raising=False)
    for done in (plan(*where), submit(*where)):
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert "You must specify a region; export AWS_REGION" in done.stderr
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert plan(*where).exit_code == 0
    done = submit(*where)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "campaign b: 3 datasets in 1 shard"), done.stderr


def test_a_list_that_asks_for_a_dry_run_on_aws(camp: Camp, deployment: str) -> None:
    Path("dry.json").write_text(json.dumps({"datasets": [ONE, TWO], "dry_run": True}))
    done = submit("dry.json", "s3://outputs/runs/b", "--deployment", deployment)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the list asks for a dry run: nothing was written"
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="outputs")


def test_what_aws_refuses_is_said_in_a_line(camp: Camp, deployment: str) -> None:
    boto3.client("sqs").delete_queue(QueueUrl=boto3.client("sqs").get_queue_url(QueueName="shards")["QueueUrl"])
    done = submit("list.ids", "s3://outputs/runs/b", "--deployment", deployment)
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    said = "s3://outputs/runs/b is a campaign now, but not all of its shards are queued (AWS says: "
    assert said in done.stderr and "sqs:SendMessage" in done.stderr
    queue = boto3.client("sqs").create_queue(QueueName="shards")["QueueUrl"]
    done = submit("list.ids", "s3://outputs/runs/b", "--deployment", deployment)
    assert done.stdout.splitlines()[0].endswith("(it was there before; nothing is submitted twice)"), done.stderr
    asked = {"QueueUrl": queue, "AttributeNames": ["ApproximateNumberOfMessages"]}
    assert boto3.client("sqs").get_queue_attributes(**asked)["Attributes"] == {"ApproximateNumberOfMessages": "1"}


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("s3://outputs", "s3://outputs is a bucket, and no batch; give "),
        ("s3://outputs/", "is a bucket, and no batch; give "),
        ("s3://elsewhere/b", "s3://elsewhere/b is in no bucket of caldp-test"),
        ("s3://outputs/b/..", "no batch can be called '..'; give 1 to 64 letters, digits and ._-"),
        ("s3://outputs/b/cos (new flat)", "no batch can be called 'cos (new flat)'"),
        ("s3://outputs/data", "no batch can be called data: beside batches that is a folder"),
    ],
)
def test_places_on_aws_where_no_batch_can_be(camp: Camp, deployment: str, output: str, said: str) -> None:
    where = ("list.ids", output, "--deployment", deployment)
    for done in (plan(*where), submit(*where)):
        assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert said in done.stderr


def test_a_plan_for_a_whole_bucket_by_settings_of_ones_own(camp: Camp) -> None:
    done = plan("list.ids", "s3://outputs/", "--settings", "settings.toml")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "s3://outputs/ is a bucket, and no batch; give a place in it" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--input", "file:IN"), "jobs on AWS cannot read file:IN; put the data into a bucket, or take astroquery:"),
        (("--input", "IN"), "'IN' is not an input or output"),
        (("--config", "./my-config"), "jobs on AWS cannot read ./my-config; name a config script of the image"),
    ],
)
def test_what_jobs_on_aws_do_not_have(camp: Camp, deployment: str, args: tuple[str, str], said: str) -> None:
    done = submit("list.ids", "s3://outputs/runs/b", "--deployment", deployment, *args)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert said in done.stderr
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="outputs")


def test_another_request_for_the_same_place_on_aws(camp: Camp, deployment: str) -> None:
    where = ("s3://outputs/runs/b", "--deployment", deployment)
    assert submit("list.ids", *where).exit_code == 0
    done = submit("list.ids", *where, "--memory-rung", "8g")
    assert done.exit_code == 2 and "--resume" not in done.stderr
    assert "give another output, or the list and the options of that campaign" in done.stderr


def test_on_aws_a_plan_goes_by_what_the_deployment_knows(camp: Camp, deployment: str) -> None:
    where = ("list.ids", "s3://outputs/runs/batch", "--deployment", "caldp-test")
    assert planned(*where)["unobserved"] == 3
    observed = observe_earlier(camp, TWO)
    used = (camp.home / "EARLIER" / "observations" / "cos.jsonl").read_bytes()
    boto3.client("s3").put_object(Bucket="outputs", Key="runs/observations/cos.jsonl", Body=used)
    assert planned(*where)["unobserved"] == 2
    observe_earlier(camp, ONE)
    assert planned(*where, observed)["unobserved"] == 1


BOTH = f"{ONE}\n{TWO.upper()}  # the second\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list", BOTH),
        ("list.txt", BOTH),
        ("list.ids", BOTH),
        ("list.csv", f"dataset,memory_rung\n{ONE},low\n{TWO},\n"),
        ("list.json", json.dumps([ONE, TWO])),
        ("other.json", json.dumps({"datasets": f"{ONE} {TWO}", "label": "x"})),
        ("list.yaml", f"- {ONE}\n- {TWO}\n"),
        ("list.yml", f"datasets: [{ONE}, {TWO}]\n"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_forms_of_lists(camp: Camp, name: str, content: str, packed: bool) -> None:
    path = camp.home / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    found = planned(str(path), "--settings", "settings.toml")
    assert (found["datasets"], found["rejected"], found["duplicates"]) == (2, [], 0)


def test_what_is_typed_counts_more_than_what_the_list_says(camp: Camp) -> None:
    Path("list.json").write_text(json.dumps({"datasets": [ONE, TWO], "memory_rung": "top", "on_invalid": "reject"}))
    settings = ("--settings", "settings.toml")
    assert planned("list.json", *settings)["classes"] == {"top-1m": 2}
    assert planned("list.json", *settings, "--memory-rung", "middle")["classes"] == {"middle-1m": 2}
    done = camp.finish(camp.start("list.json", "file:OUT", *settings, "--dry-run", "--memory-rung", "low"))
    assert "low-1m" in done.stdout
    Path("list.json").write_text(json.dumps({"datasets": [ONE], "dry_run": True}))
    done = camp.finish(camp.start("list.json", "file:OUT", *settings))
    assert (done.returncode, camp.out.exists()) == (2, False)
    assert "asks for a dry run" in done.stderr


def test_names_that_are_none(camp: Camp) -> None:
    bad = ["j8cb01", "n4k001010", "*", "lfak000sqx"]
    Path("list.ids").write_text("\n".join([ONE, *bad, ONE]))
    done = camp.submit()
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert [line.startswith("caldp campaign: not calibrated: ") for line in lines] == [True] * 4
    assert all(name in line for name, line in zip(bad, lines, strict=True))
    assert "not supported" in lines[1]
    assert camp.states() == {ONE: ("processed", 1)}
    rejected = (camp.out / "control" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in rejected] == bad
    done = camp.finish(camp.start("list.ids", "file:OUT2", "--on-invalid", "reject"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert all(name in done.stderr for name in bad)
    assert not Path("OUT2").exists()


def test_a_dataset_that_cannot_be_planned_is_named(camp: Camp) -> None:
    Path("list.csv").write_text(f"dataset,memory_rung\n{ONE},64g\n{TWO},low\n")
    done = camp.finish(camp.start("list.csv", *camp.command[1:]))
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)
    assert f"not calibrated: {ONE!r} ('64g' is no memory rung)" in done.stderr
    assert camp.states() == {TWO: ("processed", 1)}


def test_the_wrong_file(camp: Camp) -> None:
    Path("list.ids").write_text("\n".join(f"nonsense-{n}" for n in range(200)) + f"\n{ONE}\n")
    done = camp.submit()
    assert (done.returncode, len(done.stderr.splitlines()), camp.out.exists()) == (2, 1, False)
    assert "200 of 201 entries" in done.stderr


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "no list": (["nowhere.ids", "file:OUT"], 2, "nowhere.ids cannot be read (No such file or directory)"),
    "a folder": (["IN", "file:OUT"], 2, "IN cannot be read (Is a directory)"),
    "empty": (["empty.ids", "file:OUT"], 2, "there is no dataset in it"),
    "no output": (["list.ids"], 2, "there is no OUTPUT"),
    "nothing": ([], 2, "there is no OUTPUT"),
    "only an output": (["", "file:OUT"], 2, "give a list of datasets; or --resume"),
    "an unknown form": (["list.pdf", "file:OUT"], 2, "list.pdf: lists do not end in .pdf"),
    "a bucket": (["list.ids", "s3://bucket/batch"], 2, "nobody says which stack runs it; give --deployment NAME"),
    "no place": (["list.ids", "OUT"], 2, "OUT"),
    "observations on AWS": (
        ["list.ids", "s3://bucket/batch", "--observations", "file:EARLIER", "--deployment", "caldp-test"],
        2,
        "--observations is for campaigns on this machine; on AWS the deployment decides",
    ),
    "no place of observations": (["list.ids", "file:OUT", "--observations", "EARLIER"], 2, "'EARLIER' is not an input"),
    "not a directory": (["list.ids", "file:list.ids"], 29, "list.ids"),
    "nothing to resume": (["--resume", "file:OUT"], 2, "is no campaign: there is no control/request.json"),
    "no settings": (["list.ids", "file:OUT", "--settings", "no.toml"], 2, "no.toml cannot be read"),
    "unknown setting": (["list.ids", "file:OUT", "--settings", "odd.toml"], 2, "there is no setting 'ladder'"),
    "no TOML": (["list.ids", "file:OUT", "--settings", "list.ids"], 2, "list.ids is not TOML"),
    "no size": (["list.ids", "file:OUT", "--memory", "much"], 2, "--memory much: that is no size"),
    "no rung": (["list.ids", "file:OUT", "--memory-rung", "3g"], 2, "'3g' is no memory rung"),
    "too long": (["list.ids", "file:OUT", "--time-limit", "9999999"], 2, "is more than there is"),
    "no input": (["list.ids", "file:OUT", "--input", "ftp:x"], 2, "ftp:x"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(camp: Camp, mistake: str) -> None:
    args, code, said = MISTAKES[mistake]
    Path("empty.ids").write_text("# nothing\n")
    Path("list.pdf").write_text(ONE)
    Path("odd.toml").write_text("ladder = 1\n")
    done = camp.finish(camp.start(*args))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("caldp campaign submit: ")
    assert not camp.out.exists()
    assert camp.begun() == []


# ---- submit


def test_submit_and_what_comes_after(camp: Camp) -> None:
    camp.behave(**{TWO: {"exit": 21}, THREE: [{"exit": 22}, {}]})
    done = camp.submit("-j", "3", "--label", "for the test")
    assert (done.returncode, done.stderr) == (
        1,
        f"caldp campaign: {TWO}: error, deterministic in {_took(done.stderr)}: exit 21: {TWO}: as it was told\n",
    )
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert lines[0] == "campaign OUT: 3 datasets"
    assert lines[-1].startswith("1 error, 2 processed; ")
    assert any(line.startswith(f"{ONE}: processed, attempt 1 in ") for line in lines)
    assert any(
        line.startswith(f"{THREE}: transient in ") and "(attempt 2 with low, 1 min 00 s)" in line for line in lines
    )
    request = json.loads((camp.out / "control" / "request.json").read_text())
    assert (request["label"], request["runner"], request["datasets"]) == ("for the test", "local", 3)
    # The same again: nothing is run, nothing is changed.
    before = tree(camp.out)
    camp.behave()
    again = camp.submit("-j", "1", "--label", "another")
    assert (again.returncode, again.stderr, len(camp.begun())) == (1, "", 4)
    assert tree(camp.out) == before
    # Shuffled, and with names twice, it is the same list.
    Path("list.ids").write_text(" ".join([THREE, ONE, TWO, ONE]))
    assert (camp.submit().returncode, len(camp.begun())) == (1, 4)
    # Another list, other options: another campaign.
    for change in ("list", "options"):
        if change == "list":
            Path("list.ids").write_text(ONE)
            done = camp.submit()
        else:
            Path("list.ids").write_text("\n".join(names(3)))
            done = camp.submit("--context", "hst_0001.pmap")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"is the campaign of another request ({change}: not the same)" in done.stderr
    assert tree(camp.out) == before
    camp.assert_sound()


def _took(text: str) -> str:
    return text.partition("deterministic in ")[2].partition(":")[0]


def test_other_settings_do_not_change_a_campaign(camp: Camp) -> None:
    camp.behave(**{ONE: [{"exit": 31}, {}]})
    assert camp.submit("-j", "1").returncode == 0
    (camp.out / "messages" / "status" / f"{TWO}.json").unlink()
    (camp.home / "settings.toml").unlink()
    done = camp.finish(camp.start("list.ids", "file:OUT", "--input", "file:IN"))
    assert (done.returncode, done.stderr) == (0, "")
    assert camp.status(TWO).rung == "low"


def test_a_campaign_that_a_later_version_began_goes_on(camp: Camp) -> None:
    assert camp.submit().returncode == 0
    (camp.out / "messages" / "status" / f"{TWO}.json").unlink()
    path = camp.out / "control" / "request.json"
    request = json.loads(path.read_text())
    request["options"]["later"] = 1
    path.write_text(json.dumps(request))
    done = camp.resume()
    assert (done.returncode, done.stderr) == (0, "")
    assert camp.status(TWO).state == "processed"


def test_results_that_were_there_before(camp: Camp) -> None:
    processed.publish(camp.store, ONE)
    done = camp.submit("--existing", "error")
    assert (done.returncode, len(done.stderr.splitlines()), camp.begun()) == (36, 1, [])
    assert ONE in done.stderr and not (camp.out / "control").exists()
    assert camp.submit("--existing", "skip").returncode == 0
    assert sorted(camp.begun()) == [(TWO, 1), (THREE, 1)]


def test_all_of_it_is_there_already(camp: Camp) -> None:
    for name in names(3):
        processed.publish(camp.store, name)
    assert (camp.submit().returncode, camp.begun()) == (0, [])
    assert (camp.resume().returncode, camp.begun()) == (0, [])


def test_what_jobs_are_given(camp: Camp) -> None:
    (camp.home / "my-config").write_text("export CRDS_PATH=x\n")
    env = {
        **camp.environment,
        "OF_THE_CALLER": "yes",
        "CALDP_HOME": "scratch",
        "CALDP_ATTEMPT": "7",
        "CALDP_RUN": "mine",
        "AWS_BATCH_JOB_ID": "job",
    }
    camp.behave(others={"exit": 21})
    done = camp.submit("-j", "2", "--config", "./my-config", "--context", "hst_0001.pmap", env=env)
    assert done.returncode == 1
    for call in camp.calls():
        assert call["argv"] == [
            call["dataset"], f"file:{camp.home / 'IN'}", f"file:{camp.out}", str(camp.home / "my-config"),
            "--context", "hst_0001.pmap",
        ]  # fmt: skip
        assert call["environment"] == {
            "CALDP_ATTEMPT": "1",
            "OMP_NUM_THREADS": "1",
            "CALDP_HOME": "scratch",
            "OF_THE_CALLER": "yes",
        }
        assert call["cwd"] == str(camp.home)


def test_go_on_from_elsewhere(camp: Camp, tmp_path: Path) -> None:
    (camp.home / "my-config").write_text("export CRDS_PATH=x\n")
    camp.behave(others={"wait": str(camp.home / "go")})
    runner = camp.start(*camp.command, "-j", "1", "--config", "./my-config")
    camp.wait_for(lambda: len(camp.calls()) == 1 and ONE in camp.states() and camp.status(ONE).state == "processing")
    runner.terminate()
    assert camp.finish(runner).returncode == 143
    (tmp_path / "elsewhere").mkdir()
    (camp.home / "go").touch()
    done = camp.resume(cwd=tmp_path / "elsewhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert len({tuple(call["argv"][1:]) for call in camp.calls()}) == 1
    assert {state for state, _ in camp.states().values()} == {"processed"}


def test_caldp_process_is_not_installed(camp: Camp) -> None:
    code = "import caldp.programs; caldp.programs.find = lambda *_: None; from caldp.cli import main; main()"
    command = [sys.executable, "-c", code, "campaign", "submit", *camp.command]
    done = subprocess.run(command, cwd=camp.home, env=camp.environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "caldp-process is not installed where this command finds it" in done.stderr
    assert camp.submit().returncode == 0


def test_no_room_for_the_campaign(camp: Camp) -> None:
    with small_disk(camp.home / "small", "16k"):
        done = camp.finish(camp.start("list.ids", "file:small", *camp.command[2:]))
        assert (done.returncode, len(done.stderr.splitlines())) == (29, 1), done.stderr
        assert "no space left" in done.stderr.lower()


def test_a_pause(camp: Camp) -> None:
    Path("settings.toml").write_text(
        Path("settings.toml").read_text().replace("canary = 0", "canary = 0.3\ncanary_least = 1")
    )
    camp.behave(others={"exit": 21})
    done = camp.submit()
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("caldp campaign: paused: 100% of the 1 datasets")
    assert len(camp.begun()) == 1
    camp.behave()
    assert (camp.resume().returncode, len(camp.begun())) == (1, 3)


# ---- who looks on


def test_json(camp: Camp) -> None:
    camp.behave(**{TWO: [{"exit": 22}, {}], THREE: {"exit": 21}})
    done = camp.submit("--json", "-j", "2")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(event["at"].endswith("Z") for event in told)
    assert (told[0]["event"], told[0]["batch"], told[0]["datasets"]) == ("begin", "OUT", 3)
    ended = {(event["dataset"], event["attempt"]): event for event in told if event["event"] == "ended"}
    assert {key: (event["state"], event["cause"]) for key, event in ended.items()} == {
        (ONE, 1): ("processed", "processed"),
        (TWO, 1): ("placed", "transient"),
        (TWO, 2): ("processed", "processed"),
        (THREE, 1): ("error", "deterministic"),
    }
    last = told[-1]
    assert (last["event"], last["states"], last["exit_status"]) == ("finished", {"processed": 2, "error": 1}, 1)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_quiet(camp: Camp) -> None:
    camp.behave(**{TWO: {"exit": 21}})
    done = camp.submit("-q")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert camp.resume("-q").stderr == ""


def on_a_terminal(
    camp: Camp, columns: int, act: Callable[[subprocess.Popen[str]], None] | None = None
) -> tuple[int, str]:
    """Submit the list on a terminal of its own; return the exit status and all that was sent to the screen."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in camp.environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    runner = camp.start(*camp.command, "-j", "2", stdout=slave, stderr=slave, env={**env, "TERM": "xterm-256color"})
    os.close(slave)
    if act is not None:
        act(runner)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # the end
        pass
    finally:
        os.close(master)
    return runner.wait(60), shown.decode()


@pytest.mark.parametrize("columns", [100, 12])
def test_a_terminal(camp: Camp, columns: int) -> None:
    camp.behave(**{ONE: {"sleep": 2.5}, TWO: {"exit": 21}, THREE: [{"exit": 22}, {}]})
    code, shown = on_a_terminal(camp, columns)
    assert code == 1
    assert "Traceback" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor does not come back"
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")
    assert f"{TWO}: error, deterministic" in shown
    if columns == 100:
        assert "running" in shown and "2 placed" not in shown.rpartition("\x1b[?25h")[2]
        assert "1 error, 2 processed" in shown.rpartition("\x1b[?25h")[2]
        assert shown.count("as it was told") == 2, "a failure is told twice on one screen"


def test_ctrl_c_on_a_terminal(camp: Camp) -> None:
    camp.behave(others={"sleep": 60})

    def stop(runner: subprocess.Popen[str]) -> None:
        camp.wait_for(lambda: [state for state, _ in camp.states().values()].count("processing") == 2)
        runner.send_signal(2)

    code, shown = on_a_terminal(camp, 80, stop)
    assert code == 130
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    end = shown.rpartition("\x1b[?25h")[2]
    assert "stopped by SIGINT" in end
    assert "Traceback" not in shown


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nobody_listens_any_more(camp: Camp, options: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    runner = camp.start(*camp.command, *options, stdout=writer)
    os.close(writer)
    done = camp.finish(runner)
    assert (done.returncode, done.stderr) == (0, "")
    assert {state for state, _ in camp.states().values()} == {"processed"}


def test_no_standard_output_at_all(camp: Camp) -> None:
    command = ["sh", "-c", '"$@" >&- 2>&-', "sh", str(SCRIPTS / "caldp"), "campaign", "submit", *camp.command]
    assert subprocess.run(command, cwd=camp.home, env=camp.environment, timeout=60).returncode == 0


def test_settings_of_these_tests_are_settings(camp: Camp) -> None:
    from caldp.campaign.settings import load

    assert [rung.name for rung in load(camp.home / "settings.toml").rungs] == [
        rung["name"] for rung in SETTINGS["rungs"]
    ]


# ---- for real


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    """Eight simulated exposures, of which one is broken and one needs more memory: make demo-campaign, in small."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CALDP_", "CRDS_"))}
    env |= {"PATH": f"{SCRIPTS}{os.pathsep}{env['PATH']}", "CALDP_HOME": str(tmp_path)}

    def caldp(*args: str, code: int) -> str:
        done = subprocess.run(["caldp", *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    caldp("simulate", "--list", "demo", code=0)
    submit = [
        "campaign", "submit", "demo/datasets.ids", "file:demo/outputs", "--input", "file:demo/inputs",
        "--config", "demo/caldp-config-simulated", "--settings", "demo/campaign.toml", "-j", "2", "--json",
    ]  # fmt: skip
    told = [json.loads(line) for line in caldp(*submit, code=1).splitlines()]
    assert told[-1]["states"] == {"processed": 7, "error": 1}
    ended = {(event["dataset"], event["attempt"]): event for event in told if event["event"] == "ended"}
    assert ended[BROKEN, 1]["exit_code"] == 21
    assert (ended[LARGE, 1]["cause"], ended[LARGE, 2]["rung"]) == ("oom", "high")
    assert len(ended) == len(DATASETS) + 1
    for name in DATASETS:
        assert (tmp_path / "demo" / "outputs" / "data" / "cos" / name / "manifest.json").exists() == (name != BROKEN)
    counts = json.loads(caldp("status", "demo/outputs", "--json", code=1))["counts"]
    assert {state: count for state, count in counts.items() if count} == {"processed": 7, "error": 1}
    again = [json.loads(line) for line in caldp(*submit, code=1).splitlines()]
    assert [event["event"] for event in again if event["event"] != "progress"] == ["begin", "finished"]
    observed = "--observations=file:demo/outputs"
    later = json.loads(caldp("campaign", "plan", "demo/datasets.ids", observed, "--json", code=0))
    assert (later["datasets"], later["unobserved"]) == (8, 1), "of all but the broken one it is known what they need"
