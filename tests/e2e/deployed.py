"""The stack of CALDP on the stand-in for AWS, as an operator has it: lists to drop, commands to type, clocks.

The template is the one that is deployed to AWS, with the packages that are.  Two clocks are the tests' own: who wants
the drain or the reconciler invokes it, and ``an_hour_passes``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from caldp import messages
from caldp.campaign.control import Control
from caldp.campaign.deployment import Deployment
from caldp.campaign.progress import take_stock
from caldp.dataset import Dataset
from caldp.messages import STATES, Status
from caldp.store import open_store
from tests.aws import Aws, synthesize
from tests.e2e import job
from tests.fakes.job import behave
from tests.s3 import REPOSITORY

NAME = "caldp-e2e"

#: A ladder of three rungs, and no waiting. Of the alarms ministack does not know the one that divides.
SETTINGS = f"""
[infra]
name = "{NAME}"
image = "{NAME}:latest"
retain = false
failure_percent = 0

[infra.rungs]
low = {{ spot_vcpus = 64, on_demand_vcpus = 8 }}

[campaign]
rungs = [
    {{ name = "low", memory = 1310, vcpus = 1 }},
    {{ name = "high", memory = 2400, vcpus = 1 }},
    {{ name = "top", memory = 4800, vcpus = 2 }},
]
time_limits = [60, 600, 1200, 2400]
shard_size = 25
canary = 0

[campaign.estimates.cos]
memory_p95 = 1.0
time_p99 = 120
rung = "low"
time_limit = 600

[campaign.budgets]
transient = {{ retries = 4, delays = [0] }}
unknown = {{ retries = 1, delays = [0] }}
"""

_APP = """
from pathlib import Path
from infra import packaging, settings
from infra.stack import FLAGS, CaldpStack

environment = settings.load(str(Path("settings.toml").resolve()))
app = cdk.App(outdir=OUT, context=FLAGS, **FAST)
CaldpStack(app, environment, packaging.build(Path("functions"), environment.campaign_json))
app.synth()
"""

#: How the fakes run: a "second" of a time limit lasts 100 ms, which is a minute for a job that ends well, however busy
#: the machine; a "MiB" of a rung is 64 KiB: 82, 150 and 300 MiB.
FAKES = {"second": 0.1, "memory_unit": 2**16, "processes": 4, "stop_grace": 0.2}

_TIME = re.compile(r'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00))"')


def synthesized(folder: Path) -> Path:
    """Return the template of the stack, with its packages beside it."""
    (folder / "settings.toml").write_text(SETTINGS)
    assembly = synthesize(_APP, folder, environment={"PYTHONPATH": str(REPOSITORY)})
    return assembly / f"{NAME}.template.json"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)


class Deployed:
    """The stack, deployed.

    Attributes
    ----------
    aws : Aws
    stack : tests.aws.Stack
    deployment : Deployment
        As the commands find it.
    bucket : str
        Of the outputs.
    home : Path
        A folder for lists, and for what jobs are told.
    """

    def __init__(self, aws: Aws, template: Path, home: Path) -> None:
        self.aws, self.home = aws, home
        self.stack = aws.deploy(template)
        self.deployment = Deployment.fetch(NAME, aws.client("ssm"))
        self.bucket = self.stack.outputs["Bucket"]
        (home / "bin").mkdir()
        job.install(home / "bin")
        self.environment = {
            "PATH": os.pathsep.join([str(home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "FAKE_JOBS": str(home / "jobs.json"),
        }
        self._queues = {
            "lists": self.deployment.list_queue,
            "shards": self.deployment.shard_queue,
            "events": self.deployment.event_queue,
            "rescues": self.deployment.rescue_queue,
        }

    def begin(self, **switches: Any) -> None:
        """Be as for a first test: jobs are fakes and end well, nothing is switched on."""
        self.wait_quiet()
        normal = {"paused": False, "duplicate_events": False, "drop_events": 0.0, "delay_events": 0.0, "past": 0.0}
        self.aws.outcomes()
        self.aws.switch(**{**normal, **FAKES, "lose_replies": 0.0, "environment": self.environment, **switches})
        self.tell()

    def tell(self, **behaviours: Any) -> None:
        """Say what jobs do from now on: see ``tests.fakes.job.Behaviour``; the others end well."""
        behave(self.home / "jobs.json", **behaviours)

    # ---- what operators do

    def drop(self, key: str, body: str | Mapping[str, Any]) -> None:
        """Put a list into the bucket; a mapping as JSON."""
        data = body if isinstance(body, str) else json.dumps(body)
        self.aws.client("s3").put_object(Bucket=self.bucket, Key=key, Body=data.encode())

    def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        """Call a function, and return its answer."""
        answer = self.aws.client("lambda").invoke(FunctionName=f"{NAME}-{function}", Payload=json.dumps(event))
        body = json.loads(answer["Payload"].read() or b"null")
        assert "FunctionError" not in answer, body
        return body

    def drain(self) -> int:
        """Do what the clock does every minute; return the shards that were queued."""
        return int(self.invoke("drain-rescues", {"drain": True})["shards"])

    def reconcile(self, batch: str) -> dict[str, Any]:
        """Do for one campaign what the clock does every ten minutes."""
        report: dict[str, Any] = self.invoke("reconcile", {"output": self.output(batch)})[0]
        return report

    def caldp(self, *words: str, **environment: str) -> Done:
        """Type a command."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "caldp"), *words],
            cwd=self.home,
            env={**self.aws.environment(), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def campaign(self, verb: str, *words: str) -> Done:
        """Type ``caldp campaign ...``."""
        return self.caldp("campaign", verb, *words)

    # ---- what there is

    def output(self, batch: str) -> str:
        """Where a batch is."""
        return f"s3://{self.bucket}/{batch}"

    def control(self, batch: str) -> Control:
        """What a batch has of its campaign."""
        return Control(open_store(self.output(batch), self.aws.environment({})))

    def batches(self) -> list[str]:
        """The folders of the bucket."""
        answer = self.aws.client("s3").list_objects_v2(Bucket=self.bucket, Delimiter="/")
        return [each["Prefix"].rstrip("/") for each in answer.get("CommonPrefixes", ())]

    def batch_of(self, stem: str, seconds: float = 120.0) -> str:
        """Wait for the batch that a list of this name has become, and return what it is called."""

        def found() -> str:
            names = [name for name in self.batches() if re.fullmatch(re.escape(stem) + "-[0-9a-f]{8}", name)]
            return names[0] if names else ""

        return self.aws.wait_until(found, seconds, f"a batch of {stem}")

    def status(self, batch: str, dataset: str) -> Status:
        """The status of a dataset."""
        status = messages.read(self.control(batch).store, dataset)
        assert status is not None, f"{dataset} has no status"
        return status

    def statuses(self, batch: str) -> dict[str, Status]:
        """All statuses of a batch."""
        store = self.control(batch).store
        found = {}
        for entry in store.walk("messages/status"):
            blob = store.get(entry.key)
            assert blob is not None
            status = Status.from_json(json.loads(blob.data))
            found[status.dataset] = status
        return found

    def ends(self, batch: str) -> dict[str, tuple[Any, ...]]:
        """How datasets stand: state, attempt, rung, class of failure."""
        return {name: (s.state, s.attempt, s.rung, s.cause) for name, s in sorted(self.statuses(batch).items())}

    def jobs(self, batch: str) -> list[str]:
        """Names of the jobs of a batch, one entry for each SubmitJob."""
        found = self.aws.stats()["jobs"]
        return sorted(name for name, ids in found.items() if name.startswith(f"{batch}-a") for _ in ids)

    def dead_letters(self) -> dict[str, list[Any]]:
        """What nobody could handle."""
        found = {name: self.aws.messages(url) for name, url in self.deployment.dead_queues.items()}
        return {name: letters for name, letters in found.items() if letters}

    def assert_sound(self, batch: str, names: Iterable[str]) -> None:
        """Assert what holds at any end: each dataset shows in one folder, the one its status says; no dead letters."""
        store = self.control(batch).store
        statuses = self.statuses(batch)
        assert sorted(statuses) == sorted(names)
        shown: dict[str, list[str]] = {}
        for entry in store.walk("messages"):
            _, folder, name = entry.key.split("/")
            if folder != "status":
                shown.setdefault(name, []).append(folder)
        wrong = {n: (s.state, shown.get(n)) for n, s in statuses.items() if shown.get(n) != [STATES[s.state][1]]}
        assert not wrong, f"state, folders: {wrong}"
        for name, status in statuses.items():
            published = store.get(f"{Dataset.parse(name).prefix}/manifest.json")
            assert (published is not None) == (status.state == "processed"), f"{name}: {status.state}"
        dead = self.dead_letters()
        assert not dead, f"dead letters: {dead}"

    # ---- time

    def waiting(self, *queues: str) -> int:
        """Messages in queues, those that somebody has taken included."""
        sqs, count = self.aws.client("sqs"), 0
        wanted = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        for queue in queues or ("lists", "shards", "events"):
            answer = sqs.get_queue_attributes(QueueUrl=self._queues[queue], AttributeNames=wanted)
            count += sum(map(int, answer["Attributes"].values()))
        return count

    def wait_quiet(self, seconds: float = 120.0) -> None:
        """Wait until no list, shard or event waits, and no job runs."""

        def quiet() -> bool:
            for _ in range(2):  # what is handed on is for an instant nowhere
                time.sleep(0.2)  # asking takes time of the server's
                stats = self.aws.stats()
                if self.waiting() or stats["events_pending"] or stats["running"] or stats["states"]["RUNNABLE"]:
                    return False
            return True

        try:
            self.aws.wait_until(quiet, seconds, "nothing under way")
        except AssertionError as error:
            raise AssertionError(
                f"{error}: {self.aws.stats()}, {self.waiting()} messages, {self.dead_letters()}"
            ) from None

    def work(self, batch: str, rounds: int = 12, seconds: float = 120.0) -> list[dict[str, Any]]:
        """Let a campaign go on to its end: the drain, and the reconciler when there is nothing to drain.

        Parameters
        ----------
        batch : str
        rounds : int
            How often these come at most.
        seconds : float
            How long jobs take at most.

        Returns
        -------
        list of dict
            What the reconciler said each time.
        """
        reports: list[dict[str, Any]] = []
        for _ in range(rounds):
            self.wait_quiet(seconds)
            if self.waiting("rescues"):
                self.drain()
                continue
            reports.append(self.reconcile(batch))
            if reports[-1]["closed"]:
                return reports
            if not any(reports[-1][what] for what in ("queued", "heard", "lost", "retried", "terminated", "repaired")):
                self.an_hour_passes(batch)  # it waits for news that may be under way
        stock = take_stock(self.control(batch))
        open_ = [name for name in stock.lines if stock.listed(name) in ("placed", "submitted", "processing")]
        stand = {name: (stock.listed(name), str(self.status(batch, name))) for name in open_}
        raise AssertionError(f"{batch} does not come to its end: {reports[-1:]}, {stand}")

    def an_hour_passes(self, batch: str) -> None:
        """Make all that was written down in a batch an hour older, and what AWS Batch knows of jobs."""

        def earlier(match: re.Match[str]) -> str:
            return f'"{(datetime.fromisoformat(match[1]) - timedelta(hours=1)).isoformat()}"'

        s3 = self.aws.client("s3")
        for folder in ("messages/status", "control/shards"):
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{batch}/{folder}/"):
                for entry in page.get("Contents", ()):
                    body = s3.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read().decode()
                    s3.put_object(Bucket=self.bucket, Key=entry["Key"], Body=_TIME.sub(earlier, body).encode())
        self.aws.switch(past=3600.0)

    # ---- trouble

    @contextlib.contextmanager
    def hidden(self, queue: str, seconds: int) -> Iterator[None]:
        """Have messages that are taken from a queue meanwhile come back so soon, unless they are done with."""
        sqs, url = self.aws.client("sqs"), self._queues[queue]
        answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": str(seconds)})
        try:
            yield
        finally:
            sqs.set_queue_attributes(QueueUrl=url, Attributes=answer["Attributes"])

    def kill(self, function: str) -> int:
        """Kill the processes of a function as the machine below it may end; return how many there were."""
        ours = list(self._processes(f"AWS_LAMBDA_FUNCTION_NAME={NAME}-{function}"))
        for pid in ours:
            os.kill(pid, signal.SIGKILL)
        return len(ours)

    def _processes(self, variable: str) -> Iterator[int]:
        """Find the processes of the server that have a variable."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if variable.encode() in variables and f"GATEWAY_PORT={self.aws.endpoint.rpartition(':')[2]}".encode() in (
                variables
            ):
                yield int(folder.name)
