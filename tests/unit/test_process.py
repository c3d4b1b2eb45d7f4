"""The straight line, with the real crds on simulated data and a fake calcos."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from caldp import messages, process
from caldp.errors import BusyError, CaldpError, Stop
from caldp.local_store import LocalStore
from caldp.process import Interrupts, Request
from caldp.reporter import Outcome
from caldp.simulate import Simulation
from caldp.store import open_store
from tests.fakes.reporter import FakeReporter

NAME = "lsim01sxq"


@dataclass(frozen=True)
class Desk:
    """Where a user works."""

    root: Path
    config: Path

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "out")

    def request(self, dataset: str = NAME, **changes: Any) -> Request:
        fields = {
            "input": f"file:{self.root / 'in'}",
            "output": f"file:{self.root / 'out'}",
            "config": str(self.config),
        }
        return Request(dataset, **{**fields, **changes})

    def process(self, dataset: str = NAME, **changes: Any) -> Outcome:
        reporter = FakeReporter()
        outcome = process.process(self.request(dataset, **changes), reporter)
        assert reporter.outcome is outcome
        assert reporter.events[0] == ("start", dataset)
        assert reporter.events[-1] == ("finish",)
        return outcome

    @property
    def shown(self) -> list[str]:
        return sorted(p.parent.name for p in (self.root / "out").glob(f"messages/*/{NAME}"))

    def status(self) -> messages.Status:
        status = messages.read(self.store, NAME)
        assert status is not None
        return status

    def log(self) -> str:
        return (self.root / "out" / "data" / "cos" / NAME / "logs" / "process.txt").read_text()


@pytest.fixture
def desk(tmp_path: Path, simulation: Simulation, clean_environment: pytest.MonkeyPatch) -> Desk:
    """An exposure of which nothing is to be calibrated, so that a fake calcos can be successful."""
    (tmp_path / "in").mkdir()
    name = f"{NAME}_rawtag_a.fits"
    with fits.open(simulation.inputs / name) as hdus:
        hdus[1].data = hdus[1].data[:10]
        for key in [key for key, value in hdus[0].header.items() if value == "PERFORM"]:
            hdus[0].header[key] = "OMIT"
        hdus.writeto(tmp_path / "in" / name)
    clean_environment.setenv("CALDP_HOME", str(tmp_path / "home"))
    clean_environment.setenv("FAKE_CALCOS", "nothing")
    return Desk(tmp_path, simulation.config)


def fail(desk: Desk, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Outcome:
    monkeypatch.setenv("FAKE_CALCOS", "exit-40")
    return desk.process(**changes)


def left(desk: Desk) -> list[str]:
    """What a run leaves outside of out/ and in/."""
    return sorted(p.name for p in (desk.root / "home").rglob("*"))


def test_success_existing_and_again(desk: Desk) -> None:
    before = {p: p.read_bytes() for p in (desk.root / "in").iterdir()}
    outcome = desk.process()
    assert (outcome.exit_code, outcome.state, outcome.attempt) == (0, "processed", 1)
    assert outcome.reason.startswith("nothing was calibrated")
    assert (outcome.context, outcome.products, outcome.previews) == ("hst_0001.pmap", 1, 0)
    assert outcome.location == str(desk.root / "out" / "data" / "cos" / NAME)
    assert desk.shown == ["datasets-processed"]
    assert desk.status().order == (1, 1, 60)
    assert desk.status().exit_code == 0
    assert [h["state"] for h in desk.status().history] == ["processing", "processed"]
    assert left(desk) == []
    assert {p: p.read_bytes() for p in (desk.root / "in").iterdir()} == before

    skipped = desk.process(existing="skip")
    assert (skipped.exit_code, skipped.state, skipped.attempt) == (0, "skipped", 1)
    refused = desk.process(existing="error")
    assert (refused.exit_code, refused.state) == (36, "refused")
    assert "attempt 1" in refused.reason
    assert desk.status().order == (1, 1, 60)

    # A later failure leaves the products, and says so.
    failed = desk.process(context="hst_9999.pmap")
    assert (failed.exit_code, failed.state, failed.attempt) == (27, "error", 2)
    assert desk.shown == ["dataset-error"]
    assert (desk.root / "out" / "data" / "cos" / NAME / f"{NAME}_rawtag_a.fits").is_file()

    # With --existing skip the failed attempt is tried again.
    again = desk.process(existing="skip")
    assert (again.exit_code, again.state, again.attempt) == (0, "processed", 3)
    assert desk.shown == ["datasets-processed"]

    # Killed after it had published and before it could say so.
    (desk.root / "out" / "messages" / "status" / f"{NAME}.json").unlink()
    messages.advance(desk.store, messages.Status(NAME, 3, "processing"))
    assert desk.shown == ["dataset-processing"]
    assert desk.process(existing="skip").state == "skipped"
    assert desk.status().order == (3, 1, 60)
    assert desk.shown == ["datasets-processed"]


def test_d1_d14_a_failure_is_an_error_state(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = fail(desk, monkeypatch)
    assert (outcome.exit_code, outcome.state, outcome.attempt) == (23, "error", 1)
    assert "calcos: exit status 40" in outcome.reason
    assert desk.shown == ["dataset-error"]
    status = desk.status()
    assert (status.state, status.exit_code) == ("error", 23)
    assert "exit status 40" in status.reason
    log = desk.log()
    assert "Stage1Error" in log
    assert "calcos: Exit status: 40" in log
    record = json.loads((desk.root / "out" / "data" / "cos" / NAME / "logs" / "metrics.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["fetch", "references", "calibrate"]
    assert record["stages"][2]["programs"][0]["exit_status"] == 40
    assert left(desk) == []
    # D14: nothing but evidence is delivered.
    delivered = [p.name for p in (desk.root / "out" / "data").rglob("*") if p.is_file()]
    assert all(name == "metrics.json" or name.endswith(".txt") for name in delivered), delivered
    assert len(delivered) == 5


def test_missing_inputs_are_an_error_state(desk: Desk) -> None:
    (desk.root / "empty").mkdir()
    outcome = desk.process(input=f"file:{desk.root / 'empty'}")
    assert (outcome.exit_code, outcome.state) == (21, "error")
    assert desk.shown == ["dataset-error"]


def test_a_reference_missing_is_27(desk: Desk) -> None:
    outcome = desk.process(context="hst_9999.pmap")
    assert (outcome.exit_code, outcome.state) == (27, "error")
    assert "hst_9999.pmap" in desk.status().reason


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dataset": "nonsense"}, "nonsense"),
        ({"dataset": "u2ab0101t"}, "u2ab0101t"),
        ({"dataset": "acs_8ph_01_extra"}, "acs_8ph_01_extra"),
        ({"input": "nonsense"}, "nonsense"),
        ({"output": "nonsense"}, "nonsense"),
        ({"output": "astroquery:"}, "astroquery:"),
        ({"output": "s3:bucket/x"}, "s3:bucket/x"),
        ({"config": "no-such-config"}, "no-such-config"),
        ({"overrides": ("nonsense",)}, "nonsense"),
    ],
)
def test_what_makes_no_sense_changes_nothing(desk: Desk, changes: dict[str, Any], word: str) -> None:
    outcome = desk.process(**changes)
    assert (outcome.exit_code, outcome.state, outcome.attempt) == (2, "refused", 0)
    assert word in outcome.reason
    assert outcome.remedy
    assert not (desk.root / "out").exists()
    assert not (desk.root / "home").exists()


def test_a_dataset_that_is_owned_is_not_touched(desk: Desk) -> None:
    with desk.store.own(NAME):
        outcome = desk.process()
    assert (outcome.exit_code, outcome.state, outcome.attempt) == (35, "refused", 0)
    assert messages.read(desk.store, NAME) is None
    assert desk.shown == []


def test_a_dead_run_is_followed_by_the_next_attempt(desk: Desk) -> None:
    messages.begin(desk.store, NAME, "dead")
    desk.store.staging(f"data/cos/{NAME}", "dead", desk.root)
    outcome = desk.process(context="hst_9999.pmap")
    assert outcome.attempt == 2
    assert [p.name for p in (desk.root / "out" / "data" / "cos").iterdir()] == [NAME]


@pytest.mark.parametrize("signum", ["SIGTERM"])
def test_d33_a_signal_ends_in_an_error_state(desk: Desk, signum: str) -> None:
    code = "from caldp.cli import process_command; process_command()"
    argv = [NAME, f"file:{desk.root / 'in'}", f"file:{desk.root / 'out'}", str(desk.config), "--verbose"]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "FAKE_CALCOS": "sleep"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "CALCOS version" in line:
            break
    child.send_signal(getattr(signal, signum))
    _, errors = child.communicate(timeout=30)
    code_ = 128 + getattr(signal, signum)
    assert child.returncode == code_
    assert signum in errors
    assert len(errors.splitlines()) == 1
    assert (desk.status().state, desk.status().exit_code) == ("error", code_)
    assert desk.shown == ["dataset-error"]
    assert left(desk) == []


def test_output_that_cannot_be_written(desk: Desk) -> None:
    (desk.root / "out").write_text("in the way")
    outcome = desk.process()
    assert (outcome.exit_code, outcome.state) == (29, "refused")
    assert str(desk.root / "out") in outcome.reason


def test_a_damaged_status_is_no_traceback(desk: Desk) -> None:
    (desk.root / "out" / "messages" / "status").mkdir(parents=True)
    (desk.root / "out" / "messages" / "status" / f"{NAME}.json").write_text("[]")
    outcome = desk.process()
    assert outcome.exit_code == 29
    assert "is not a status record" in outcome.reason


def test_a_run_that_lost_its_dataset_changes_nothing(desk: Desk) -> None:
    reporter = FakeReporter()
    outcome = Outcome(NAME)
    job = process.Job.prepare(desk.request())
    with pytest.raises(BusyError), process.begun(job, reporter, Interrupts(), outcome):
        messages.begin(open_store(desk.request().output), NAME, "other")
        raise BusyError("taken over")
    assert (desk.status().run, desk.status().attempt) == ("other", 2)
    assert desk.shown == ["dataset-processing"]
    assert outcome.state == "refused"


def test_a_failure_after_a_take_over_leaves_the_new_owner_alone(desk: Desk) -> None:
    job = process.Job.prepare(desk.request())
    outcome = Outcome(NAME)
    with (
        pytest.raises(CaldpError, match="ZeroDivisionError"),
        process.begun(job, FakeReporter(), Interrupts(), outcome),
    ):
        messages.begin(desk.store, NAME, "other")
        raise ZeroDivisionError
    assert (desk.status().run, desk.status().state) == ("other", "processing")
    assert desk.shown == ["dataset-processing"]
    assert not (desk.root / "out" / "data").exists()  # no logs under the feet of the new owner
    assert outcome.state == "refused"  # "error" would say that the state was written


def test_dry_run(desk: Desk) -> None:
    reporter = FakeReporter()
    outcome = process.plan(desk.request(), reporter)
    assert (outcome.exit_code, outcome.state, outcome.context) == (0, "planned", "hst_0001.pmap")
    assert outcome.plan is not None
    assert [f["name"] for f in outcome.plan["inputs"]] == [f"{NAME}_rawtag_a.fits"]
    assert outcome.plan["programs"][0][0] == "calcos"
    assert outcome.plan["products"] == []
    assert len(outcome.plan["references"]) == outcome.references > 10
    assert not (desk.root / "out").exists()
    assert left(desk) == []


def test_scratch_is_kept_on_demand(desk: Desk) -> None:
    outcome = desk.process(context="hst_9999.pmap", keep_scratch=True)
    assert (Path(outcome.scratch) / "inputs" / f"{NAME}_rawtag_a.fits").is_file()
    assert Path(outcome.scratch).is_relative_to(desk.root / "home")


@pytest.mark.parametrize(
    ("error", "code"), [(MemoryError(), 32), (KeyboardInterrupt(), 130), (Stop(15), 143), (RuntimeError("x\ny"), 1)]
)
def test_whatever_happens_becomes_an_outcome(desk: Desk, error: BaseException, code: int) -> None:
    reporter = FakeReporter()
    interrupts = Interrupts()
    with process.concluded(desk.request(), reporter, interrupts) as outcome:
        raise error
    assert outcome.exit_code == code
    assert "\n" not in outcome.reason
    assert outcome.state == "refused"
    interrupts._interrupt(15, None)  # shielded: nothing is raised any more


def test_a_signal_while_the_attempt_begins_waits_until_it_can_be_taken_back(desk: Desk) -> None:
    job = process.Job.prepare(desk.request())
    interrupts = Interrupts()
    with interrupts.held():
        interrupts._interrupt(15, None)
    with pytest.raises(CaldpError, match="SIGTERM"), process.begun(job, FakeReporter(), interrupts, Outcome(NAME)):
        pytest.fail("the run went on")
    assert (desk.status().state, desk.status().exit_code) == ("error", 143)


def test_ignored_signals_stay_ignored() -> None:
    code = (
        "import os, signal; from caldp.process import Interrupts; from caldp.errors import Stop\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); Interrupts().install(); os.kill(os.getpid(), signal.SIGHUP)\n"
        "try:\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except Exception: print('swallowed')\n"
        "except Stop as stop: print('stopped by', stop.signum)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "stopped by 15\n"


def test_lost_messages_do_not_lose_the_attempts(desk: Desk) -> None:
    folder = desk.root / "out" / "data" / "cos" / NAME
    folder.mkdir(parents=True)
    manifest = {"format": 1, "attempt": 3, "run": "r", "reason": "", "products": [], "previews": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    desk.process(context="hst_9999.pmap")
    assert desk.status().attempt == 4
