"""Runs that write to S3, as a user types them: killed at every write, two and three at once, taken over, stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from caldp import messages
from caldp.manifest import read_manifest, verified
from caldp.s3_store import S3Store
from caldp.simulate import Simulation, simulate
from caldp.telemetry import LOG_FILES
from tests.conftest import FAKE_PROGRAMS
from tests.desk import SCRIPTS, Result, assert_tidy
from tests.fakes.proxy import FaultyProxy, Request
from tests.s3 import BOTH, S3Place

NAME = "lsim01sxq"
PREFIX = f"data/cos/{NAME}"


@dataclass(frozen=True)
class Cloud:
    """A user with a small exposure, of which nothing is to be calibrated, and a batch on S3 behind a proxy."""

    home: Path
    config: Path
    place: S3Place
    proxy: FaultyProxy
    env: dict[str, str]

    @property
    def store(self) -> S3Store:
        """The batch, past the proxy."""
        environment = self.place.environment()
        return S3Store(self.place.outputs, {k: v for k, v in environment.items() if k.startswith("AWS_")})

    def at(self, batch: str) -> Cloud:
        """Return the same user with another batch."""
        place = S3Place(self.place.kind, self.place.endpoint, self.place.inputs, f"{self.place.outputs}/{batch}")
        return Cloud(self.home, self.config, place, self.proxy, self.env)

    def start(self, *options: str, **env: str) -> subprocess.Popen[str]:
        """Start caldp-process."""
        argv = [str(SCRIPTS / "caldp-process"), NAME, "file:IN", self.place.outputs, str(self.config), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=self.home, env={**self.env, **env}, stdout=pipe, stderr=pipe, text=True)

    def process(self, *options: str, **env: str) -> Result:
        """Run it to its end."""
        process = self.start(*options, **env)
        stdout, stderr = process.communicate(timeout=300)
        assert "Traceback" not in stdout + stderr, stdout + stderr
        return Result(process.returncode, stdout, stderr)

    def tree(self) -> set[str]:
        """Return the names of the dataset's objects."""
        return {entry.key.removeprefix(f"{PREFIX}/") for entry in self.store.walk(PREFIX)}

    def shown(self) -> list[str]:
        """List the folders of messages/ that show the dataset."""
        keys = [entry.key for entry in self.store.walk("messages")]
        return sorted(key.split("/")[1] for key in keys if key.endswith(f"/{NAME}"))

    def status(self) -> messages.Status:
        """Read the state."""
        return messages.read(self.store, NAME) or pytest.fail("no status")

    def assert_processed(self, attempt: int) -> dict[str, Any]:
        """Assert that the state is processed and true, and return the manifest."""
        status, manifest = self.status(), verified(self.store, PREFIX)
        assert manifest is not None
        assert (status.state, status.attempt, manifest.attempt) == ("processed", attempt, attempt)
        assert status.run == manifest.record["run"]
        assert self.shown() == ["datasets-processed"]
        assert_tidy(self.home)
        return dict(manifest.record)


@pytest.fixture(scope="session")
def small_simulation(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """Rules and references of a simulated exposure."""
    return simulate(tmp_path_factory.mktemp("simulated"))


@pytest.fixture
def cloud(
    tmp_path: Path, small_simulation: Simulation, s3_place: S3Place, environment: dict[str, str]
) -> Iterator[Cloud]:
    """See Cloud."""
    home = tmp_path / "user"
    (home / "IN").mkdir(parents=True)
    name = f"{NAME}_rawtag_a.fits"
    with fits.open(small_simulation.inputs / name) as hdus:
        hdus[1].data = np.resize(np.asarray(hdus[1].data), 2_300_000)  # of more than one part on S3
        for key in [key for key, value in hdus[0].header.items() if value == "PERFORM"]:
            hdus[0].header[key] = "OMIT"
        hdus.writeto(home / "IN" / name)
    plain = {k: v for k, v in environment.items() if not k.startswith("CRDS_")}
    assert s3_place.endpoint is not None
    with FaultyProxy(s3_place.endpoint) as proxy:
        env = s3_place.behind(proxy.endpoint).environment(plain)
        env |= {"FAKE_CALCOS": "nothing", "PATH": f"{FAKE_PROGRAMS}{os.pathsep}{env['PATH']}"}
        yield Cloud(home, small_simulation.config, s3_place, proxy, env)


emulated = pytest.mark.parametrize("s3_place", ["ministack"], indirect=True)


@pytest.mark.parametrize("s3_place", BOTH, indirect=True)
def test_the_tree_of_the_readme_is_the_same_on_s3(cloud: Cloud) -> None:
    local = cloud.home / "OUT"
    argv = [str(SCRIPTS / "caldp-process"), NAME, "file:IN", f"file:{local}", str(cloud.config)]
    subprocess.run(argv, cwd=cloud.home, env=cloud.env, check=True, capture_output=True)
    result = cloud.process()
    assert result.code == 0, result.stderr
    assert f"{cloud.place.outputs}/{PREFIX}" in result.stdout
    manifest = cloud.assert_processed(1)
    there = {p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file()}
    assert {entry.key for entry in cloud.store.walk("")} == there
    theirs = json.loads((local / PREFIX / "manifest.json").read_text())
    assert manifest.keys() == theirs.keys()
    plain = [{k: v for k, v in entry.items() if k != "etag"} for entry in manifest["products"]]
    assert plain == theirs["products"]
    assert all(entry["etag"] for entry in manifest["products"])
    written = [request.path for request in cloud.proxy.requests if request.is_write]
    seal = next(i for i, path in enumerate(written) if path.endswith("/manifest.json"))
    assert not [path for path in written[seal + 1 :] if f"/{PREFIX}/" in path], "something came after the manifest"


@pytest.mark.slow
@emulated
def test_again_another_time_and_only_if_asked(cloud: Cloud) -> None:
    assert cloud.process().code == 0
    first = cloud.assert_processed(1)
    assert cloud.process("--existing", "skip").code == 0
    assert cloud.process("--existing", "error").code == 36
    assert cloud.assert_processed(1) == first
    assert cloud.process().code == 0
    cloud.assert_processed(2)
    # What is not as the manifest says is not processed, whatever the state says.
    name = first["products"][0]["name"]
    cloud.store.delete(f"{PREFIX}/{name}")
    assert cloud.process("--existing", "skip").code == 0
    cloud.assert_processed(3)


@emulated
def test_a_failure_leaves_an_error_and_logs(cloud: Cloud) -> None:
    result = cloud.process(FAKE_CALCOS="exit-40")
    assert result.code == 23
    assert (cloud.status().state, cloud.status().exit_code) == ("error", 23)
    assert cloud.shown() == ["dataset-error"]
    assert cloud.tree() == {f"logs/{name}" for name in LOG_FILES}
    assert cloud.process().code == 0
    cloud.assert_processed(2)


@emulated
@pytest.mark.parametrize(
    "counted",
    [pytest.param(False, id="each for itself", marks=pytest.mark.slow), pytest.param(True, id="jobs of a campaign")],
)
def test_three_at_once_one_publishes(cloud: Cloud, counted: bool) -> None:
    campaign = {"CALDP_ATTEMPT": "1"} if counted else {}
    runs = [cloud.start("--json", **campaign, **({"AWS_BATCH_JOB_ID": f"job{n}"} if counted else {})) for n in range(3)]
    said = [run.communicate(timeout=300) for run in runs]
    states = [json.loads(out.splitlines()[-1])["state"] for out, _ in said]
    assert sorted(states) == sorted(["processed", *(["duplicate" if counted else "refused"] * 2)]), said
    assert sorted(run.returncode for run in runs) == ([0, 0, 0] if counted else [0, 35, 35])
    cloud.assert_processed(1)
    assert len(cloud.status().history) == 2
    if counted:
        again = cloud.process("--json", **campaign, AWS_BATCH_JOB_ID="job9")
        assert (again.code, json.loads(again.stdout.splitlines()[-1])["state"]) == (0, "skipped")
        cloud.assert_processed(1)


@emulated
def test_a_run_that_was_taken_for_dead_publishes_nothing_more(cloud: Cloud) -> None:
    """It wakes up in the middle of its uploads, when another run has published."""
    held = cloud.proxy.hold(_is_upload_of("_rawtag_a.fits"))
    old = cloud.start()
    assert held.reached.wait(120)
    cloud_past = Cloud(cloud.home, cloud.config, cloud.place, cloud.proxy, cloud.place.environment(cloud.env))
    new = cloud_past.process("--take-over")
    assert new.code == 0, new.stderr
    published = dict((verified(cloud.store, PREFIX) or pytest.fail("not verified")).record)
    held.release()
    _, stderr = old.communicate(timeout=120)
    assert (old.returncode, "taken over" in stderr) == (35, True), stderr
    assert cloud.assert_processed(2) == published


@emulated
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_it_uploads(cloud: Cloud, signum: signal.Signals) -> None:
    held = cloud.proxy.hold(_is_upload_of("_rawtag_a.fits"))
    run = cloud.start()
    assert held.reached.wait(120)
    run.send_signal(signum)
    held.release()
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 128 + signum, stderr
    assert (cloud.status().state, cloud.status().exit_code) == ("error", 128 + signum)
    assert read_manifest(cloud.store, PREFIX) is None
    assert cloud.process().code == 0
    cloud.assert_processed(2)


@pytest.mark.slow
@emulated
def test_a_server_that_fails_two_requests_in_five(cloud: Cloud) -> None:
    cloud.proxy.failure_rate = 0.4
    result = cloud.process()
    assert result.code == 0, result.stderr
    cloud.proxy.failure_rate = 0
    cloud.assert_processed(1)
    assert sum(bool(request.fault) for request in cloud.proxy.requests) >= 3


@pytest.mark.slow
@emulated
def test_a_server_that_goes_down_while_it_uploads(cloud: Cloud) -> None:
    once = iter((1.0,))

    def down(request: Request) -> bool:
        if _is_upload_of("_rawtag_a.fits")(request):
            cloud.proxy.failure_rate = next(once, cloud.proxy.failure_rate)
        return False

    cloud.proxy.hold(down)
    result = cloud.process(AWS_MAX_ATTEMPTS="2")
    assert (result.code, len(result.stderr.strip().splitlines())) in [(25, 1), (25, 2), (25, 3)], result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert NAME in line and "s3://" in line and "run it again" in line
    assert cloud.status().state == "processing"  # it could not say so: the heartbeat will have stopped
    kept = next((cloud.home / "caldp-unpublished" / NAME).iterdir())
    assert f"kept in {kept}" in line
    assert (kept / f"{NAME}_rawtag_a.fits").is_file()
    cloud.proxy.failure_rate = 0
    assert cloud.process().code == 35
    there = {entry.key: entry.etag for entry in cloud.store.walk(PREFIX)}
    # Now calcos would fail: nothing is calibrated again, and what had arrived is not sent again.
    cloud.proxy.clear()
    again = cloud.process(CALDP_OWNER_TIMEOUT="1", FAKE_CALCOS="exit-40")
    assert again.code == 0, again.stderr
    assert "could not publish" in again.stdout + again.stderr
    manifest = cloud.assert_processed(2)
    sent = {request.path for request in cloud.proxy.requests if request.is_write}
    arrived = [key for key in there if key.endswith((".fits", ".tra"))]
    assert not [path for path in sent if path.endswith(tuple(arrived))]
    assert not (cloud.home / "caldp-unpublished").exists()
    log = (cloud.store.get(f"{PREFIX}/logs/process.txt") or pytest.fail("no log")).data.decode()
    assert re.search(r"\| .*calcos: CALCOS version", log), "the log of the calibration is lost"
    assert [Path(p["argv"][0]).name for p in manifest["programs"]].count("calcos") == 1


@pytest.mark.slow
@emulated
def test_an_outage_before_the_first_upload_loses_no_products(cloud: Cloud) -> None:
    """The first requests of a publication are reads."""
    seen: list[Request] = []

    def down(request: Request) -> bool:
        seen.append(request)
        reads = [r for r in seen if r.method == "GET" and r.path.endswith(f"/{NAME}.json")]
        cloud.proxy.failure_rate = 1.0 if len(reads) == 3 else cloud.proxy.failure_rate
        return False

    cloud.proxy.hold(down)
    result = cloud.process(AWS_MAX_ATTEMPTS="2")
    assert result.code == 25, result.stderr
    assert "the products are kept in" in result.stderr.splitlines()[-1]
    assert list((cloud.home / "caldp-unpublished" / NAME).glob("*/*_rawtag_a.fits"))


@emulated
def test_a_run_that_fails_while_it_begins_says_so(cloud: Cloud) -> None:
    """Its status is written, and then not its message."""
    refused = iter((1.0, 1.0))

    def down(request: Request) -> bool:
        cloud.proxy.failure_rate = next(refused, 0.0) if "dataset-processing" in request.path else 0.0
        return False

    cloud.proxy.hold(down)
    assert cloud.process(AWS_MAX_ATTEMPTS="2").code == 25
    assert (cloud.status().state, cloud.status().exit_code) == ("error", 25)
    assert cloud.process().code == 0
    cloud.assert_processed(2)


@emulated
def test_a_flipped_bit_on_the_way_up_is_noticed_and_sent_again(cloud: Cloud) -> None:
    cloud.proxy.corrupt_next("PUT", "_rawtag_a.fits")
    result = cloud.process()
    assert result.code == 0, result.stderr
    assert "corrupted" in [r.fault for r in cloud.proxy.requests if _is_upload_of("_rawtag_a.fits")(r)]
    manifest = cloud.assert_processed(1)
    entry = manifest["products"][0]
    blob = cloud.store.get(f"{PREFIX}/{entry['name']}")
    assert blob is not None and hashlib.sha256(blob.data).hexdigest() == entry["sha256"]


@pytest.mark.slow
@emulated
@pytest.mark.parametrize("published", [False, True], ids=["first time", "again"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_write(cloud: Cloud, published: bool, when: Any) -> None:
    """SIGKILL before or after each write: the state is never wrong, and the next run ends with the same tree."""
    rehearsal = cloud.at("rehearsal")
    other = {"CSYS_VER": "other"}  # in the headers: what is the same is not sent again
    if published:
        assert rehearsal.process().code == 0
    cloud.proxy.clear()
    assert rehearsal.process("--quiet", **other).code == 0
    tree, writes = rehearsal.tree(), sum(request.is_write for request in cloud.proxy.requests)
    print(f"{writes} writes, killed {when} each")
    assert 2 * writes >= 30
    for number in range(1, writes + 1):
        batch = cloud.at(f"killed-{number}")
        if published:
            assert batch.process("--quiet").code == 0
        cloud.proxy.clear()
        runs: list[subprocess.Popen[str]] = []
        cloud.proxy.at_write(number, lambda runs=runs: runs[0].kill(), when)
        runs.append(batch.start("--quiet", **other))
        runs[0].communicate(timeout=120)
        assert runs[0].returncode in (-signal.SIGKILL, 0)
        shutil.rmtree(cloud.home / "caldp-scratch", ignore_errors=True)  # of a host that is gone
        status = messages.read(batch.store, NAME)
        assert status is None or status.state in ("processing", "processed"), number
        if status and status.state == "processed" and not (published and status.attempt == 1):
            assert verified(batch.store, PREFIX) is not None, number
        again = batch.process("--quiet", "--take-over", **other)
        assert again.code == 0, (number, again.stderr)
        batch.assert_processed(batch.status().attempt)
        assert batch.tree() == tree, number


def _is_upload_of(end: str) -> Callable[[Request], bool]:
    return lambda request: request.method == "PUT" and request.path.endswith(end)
