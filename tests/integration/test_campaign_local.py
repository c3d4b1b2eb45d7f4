"""Campaigns on one machine: jobs that fail in every way, and a runner that is stopped at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from caldp import messages
from caldp.campaign import local, observe, settings
from caldp.campaign.accept import accept
from caldp.campaign.control import Control
from caldp.campaign.failures import Verdict
from caldp.campaign.lists import Options, read
from caldp.campaign.local import Command, Outlook, Runner, Summary
from caldp.campaign.plan import Observation, Observations, from_jsonl
from caldp.campaign.shards import Line
from caldp.errors import BusyError, OutputError, Stop, UsageError
from caldp.messages import Status
from tests.desk import small_disk
from tests.fakes.job import Camp
from tests.fakes.processed import names

ONE, TWO, THREE, FOUR, FIVE, SIX = names(6)
MIB = 1 << 20


class Recorder:
    """A watch that keeps what it is told, and does something at every look."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.said: list[str] = []
        self.looks = 0
        self.most: Counter[str] = Counter()
        self.used = 0
        self.at_look: Callable[[Outlook], None] = lambda outlook: None
        self._end = time.monotonic() + 90

    def begin(self, name: str, total: int) -> None:
        pass

    def ended(self, line: Line, status: Status, verdict: Verdict, seconds: float) -> None:
        self.told.append((line.dataset, verdict.cause, status.state))

    def look(self, outlook: Outlook) -> None:
        assert time.monotonic() < self._end, f"it does not come to an end: {outlook}"
        self.looks += 1
        self.at_look(outlook)

    def say(self, text: str) -> None:
        self.said.append(text)

    def finish(self, summary: Summary | None) -> None:
        pass


Run = Callable[..., Summary]


@pytest.fixture
def watch() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(local, "_LOOK", 0.1)
    monkeypatch.setattr(local, "_TICK", 0.2)


@pytest.fixture
def camp(tmp_path: Path) -> Camp:
    return Camp.at(tmp_path, names(3))


def execute(camp: Camp, watch: Recorder, *, jobs: int = 3, memory: int = 4000, **options: Any) -> Summary:
    """Submit the list as the command does, but in this process."""
    figures = local.fitted(settings.load(camp.home / "settings.toml"), memory)
    listed = read((camp.home / "list.ids").read_bytes(), "list.ids")
    control = accept(camp.store, listed, Options(**options), figures, runner="local").control
    program = str(camp.home / "bin" / "caldp-process")
    command = Command(program, "file:IN", camp.store.uri, "config", (), camp.environment, camp.home)
    return Runner(control, figures, command, watch, jobs, memory, lambda delay: delay).run()


@pytest.fixture
def run(camp: Camp, watch: Recorder) -> Iterator[Run]:
    yield lambda **options: execute(camp, watch, **options)
    camp.assert_sound()


def reason(camp: Camp, name: str) -> str:
    status = camp.status(name)
    return f"{status.cause}: {status.reason}"


# ---- what becomes of jobs


def test_all_end_well_three_at_a_time(camp: Camp, run: Run) -> None:
    # Each waits for a file that the last one makes possible: one at a time would never end.
    camp.behave(others={"wait": str(camp.home / "go")})
    starter = threading.Thread(
        target=lambda: (camp.wait_for(lambda: len(camp.calls()) == 3), (camp.home / "go").touch())
    )
    starter.start()
    summary = run(jobs=3)
    starter.join()
    assert (summary.states, summary.exit_status, summary.paused) == ({"processed": 3}, 0, "")
    assert sorted(camp.begun()) == [(name, 1) for name in names(3)]
    for name in names(3):
        assert (camp.out / "data" / "cos" / name / "manifest.json").is_file()
        assert json.loads((camp.out / "control" / "results" / name / "1.1.json").read_text())["state"] == "processed"
        assert f"{name}: line 0" in (camp.out / "control" / "logs" / name / "1.log").read_text()


def test_no_more_than_asked_for_at_a_time(camp: Camp, run: Run, watch: Recorder) -> None:
    most = 0

    def look(outlook: Outlook) -> None:
        nonlocal most
        most = max(most, len(outlook.running))

    watch.at_look = look
    camp.behave(others={"sleep": 0.3})
    assert run(jobs=1).exit_status == 0
    assert most == 1
    ends = sorted(call["at"] for call in camp.calls("end"))
    begins = sorted(call["at"] for call in camp.calls())
    assert all(begin >= end for begin, end in zip(begins[1:], ends[:-1], strict=True))


def test_what_may_pass_is_tried_again(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: [{"exit": 22}, {"exit": 22}, {}]})
    assert run().exit_status == 0
    status = camp.status(ONE)
    assert (status.state, status.attempt, status.spent) == ("processed", 3, {"transient": 2})
    assert [call["environment"]["CALDP_ATTEMPT"] for call in camp.calls() if call["dataset"] == ONE] == ["1", "2", "3"]
    assert sorted(path.name for path in (camp.out / "control" / "logs" / ONE).iterdir()) == ["1.log", "2.log", "3.log"]


def test_a_budget_ends(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: {"exit": 22}})
    assert run().exit_status == 1
    assert camp.status(ONE).attempt == 5
    assert reason(camp, ONE).startswith("transient: tried again 4 times")


def test_out_of_memory_climbs(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: {"hog": 150, "sleep": 2}, TWO: [{"exit": 31}, {"exit": 32}, {}]})
    assert run().exit_status == 0
    one, two = camp.status(ONE), camp.status(TWO)
    assert (one.attempt, one.rung, one.spent) == (2, "middle", {"oom": 1})
    assert (two.attempt, two.rung, two.spent) == (3, "top", {"oom": 2})
    threads = [call["environment"]["OMP_NUM_THREADS"] for call in camp.calls() if call["dataset"] == TWO]
    assert threads == ["1", "2", "3"]


def test_a_child_counts_as_memory_of_its_job(camp: Camp, run: Run) -> None:
    program = camp.home / "bin" / "caldp-process"
    hog = "import time; x = b'x' * (150 << 20); time.sleep(30)"
    lines = program.read_text().splitlines()
    lines.insert(1, f'[ "$1" = {ONE} ] && [ "$CALDP_ATTEMPT" = 1 ] && python3 -c "{hog}"')
    program.write_text("\n".join(lines) + "\n")
    assert run().exit_status == 0
    assert (camp.status(ONE).attempt, camp.status(ONE).rung) == (2, "middle")


def test_the_ladder_ends(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: {"exit": 33}})
    assert run().exit_status == 1
    assert (camp.status(ONE).attempt, camp.status(ONE).rung) == (3, "top")
    assert reason(camp, ONE).startswith("oom: ladder exhausted")


def test_what_takes_too_long_gets_longer(tmp_path: Path, watch: Recorder) -> None:
    cos = {"cos": {"memory_p95": 0, "time_p99": 0, "rung": "low", "time_limit": 2}}
    camp = Camp.at(tmp_path, names(2), time_limits=[2, 4, 60], estimates=cos)
    camp.behave(**{ONE: [{"sleep": 50}, {}]})
    assert execute(camp, watch).exit_status == 0
    status = camp.status(ONE)
    assert (status.attempt, status.time_limit, status.rung, status.spent) == (2, 60, "low", {"timeout": 1})
    assert (ONE, "timeout", "placed") in watch.told
    camp.assert_sound()


def test_the_longest_time_limit_is_the_last(tmp_path: Path, watch: Recorder) -> None:
    cos = {"cos": {"memory_p95": 0, "time_p99": 0, "rung": "low", "time_limit": 1}}
    camp = Camp.at(tmp_path, names(1), time_limits=[1, 2, 3], estimates=cos)
    camp.behave(**{ONE: {"sleep": 50}})
    assert execute(camp, watch).exit_status == 1
    assert (camp.status(ONE).attempt, camp.status(ONE).time_limit) == (2, 3)
    assert reason(camp, ONE).startswith("timeout: time limits exhausted")
    camp.assert_sound()


def test_what_cannot_be_helped_is_not_tried_again(tmp_path: Path, watch: Recorder) -> None:
    codes = dict(zip(names(7), (2, 21, 23, 24, 28, 40, 41), strict=True))
    camp = Camp.at(tmp_path, names(7))
    camp.behave(**{name: {"exit": code} for name, code in codes.items()})
    assert execute(camp, watch).exit_status == 1
    for name, code in codes.items():
        status = camp.status(name)
        assert (status.state, status.attempt, status.exit_code, status.cause) == ("error", 1, code, "deterministic")
    camp.assert_sound()


def test_a_job_knows_best(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: [{"exit": 21, "retriable": True}, {}], TWO: {"exit": 22, "retriable": False}})
    assert run().exit_status == 1
    assert (camp.status(ONE).state, camp.status(ONE).attempt) == ("processed", 2)
    assert (camp.status(TWO).state, camp.status(TWO).attempt) == ("error", 1)


def test_the_same_unknown_failure_twice(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: {"exit": 1}, TWO: [{"exit": 1}, {"exit": 1, "reason": "another"}], THREE: [{"exit": 1}, {}]})
    assert run().exit_status == 1
    assert reason(camp, ONE).startswith("deterministic: the same failure twice")
    assert reason(camp, TWO).startswith("unknown: tried again 1 times")
    assert (camp.status(THREE).state, camp.status(THREE).spent) == ("processed", {"unknown": 1})


def test_budgets_do_not_touch_each_other(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: [{"exit": 22}, {"exit": 31}, {"exit": 1}, {"exit": 22}, {"exit": 32}, {"exit": 22}, {}]})
    assert run().exit_status == 0
    status = camp.status(ONE)
    assert (status.attempt, status.rung) == (7, "top")
    assert status.spent == {"transient": 3, "oom": 2, "unknown": 1}


def test_attempts_are_counted_whatever_they_are_for(tmp_path: Path, watch: Recorder) -> None:
    camp = Camp.at(tmp_path, names(1), attempts=3)
    camp.behave(**{ONE: [{"exit": 22}, {"exit": 31}, {"exit": 22}, {}]})
    assert execute(camp, watch).exit_status == 1
    assert camp.status(ONE).attempt == 3
    assert "3 attempts made" in reason(camp, ONE)


@pytest.mark.parametrize("where", ["early", "begun"])
def test_a_job_that_is_killed(camp: Camp, run: Run, where: str) -> None:
    camp.behave(**{ONE: [{"die": where}, {}]})
    assert run().exit_status == 0
    assert (camp.status(ONE).attempt, camp.status(ONE).spent) == (2, {"unknown": 1})


def test_a_job_that_is_killed_from_outside(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: [{"sleep": 60}, {}]})

    def kill() -> None:
        camp.wait_for(lambda: [call for call in camp.calls() if call["dataset"] == ONE])
        os.kill(next(call["pid"] for call in camp.calls() if call["dataset"] == ONE), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run()
    killer.join()
    assert summary.exit_status == 0
    assert (camp.status(ONE).attempt, camp.status(ONE).rung) == (2, "low")


def test_a_job_that_had_published(camp: Camp, run: Run, watch: Recorder) -> None:
    camp.behave(**{ONE: {"die": "published"}})
    assert run().exit_status == 0
    assert (camp.status(ONE).state, camp.status(ONE).attempt) == ("processed", 1)
    assert (ONE, "processed", "processed") in watch.told


def test_a_job_that_says_well_and_has_nothing(camp: Camp, run: Run) -> None:
    camp.behave(**{ONE: [{"nothing": True}, {}]})
    assert run().exit_status == 0
    assert (camp.status(ONE).attempt, camp.status(ONE).spent) == (2, {"unknown": 1})


def test_output_that_is_no_text(camp: Camp, run: Run) -> None:
    program = camp.home / "bin" / "caldp-process"
    program.write_text(program.read_text().replace("exec", "printf '\\377\\000\\033[31m\\n' 2>&1; exec", 1))
    assert run().exit_status == 0
    assert "\ufffd" in (camp.out / "control" / "logs" / ONE / "1.log").read_text()


# ---- delays, memory, canaries


def test_a_delay_is_kept_and_nothing_is_busy_meanwhile(tmp_path: Path, watch: Recorder) -> None:
    camp = Camp.at(tmp_path, names(1), budgets={"transient": {"retries": 4, "delays": [2]}})
    camp.behave(**{ONE: [{"exit": 22}, {}]})
    before = time.process_time()
    assert execute(camp, watch).exit_status == 0
    first, second = (call["at"] for call in camp.calls())
    assert second - first >= 2
    assert watch.looks < 100  # of 0.2 s each, not as many as the processor can do
    assert time.process_time() - before < 1.5


def test_large_ones_are_never_together_and_small_ones_fill(tmp_path: Path, watch: Recorder) -> None:
    rungs = [{"name": "small", "memory": 120, "vcpus": 1}, {"name": "large", "memory": 480, "vcpus": 1}]
    cos = {"cos": {"memory_p95": 0, "time_p99": 0, "rung": "small", "time_limit": 60}}
    camp = Camp.at(tmp_path, names(6), rungs=rungs, estimates=cos)
    rows = [f"{name},{'large' if name in (ONE, TWO, THREE) else 'small'}" for name in names(6)]
    camp.behave(others={"sleep": 0.8})
    figures = settings.load(camp.home / "settings.toml")
    listed = read("\n".join(["dataset,memory_rung", *rows]).encode(), "list.csv")
    control = accept(camp.store, listed, Options(), figures, runner="local").control
    together: set[frozenset[str]] = set()
    watch.at_look = lambda outlook: together.add(frozenset(one.line.dataset for one in outlook.running))
    command = Command(
        str(camp.home / "bin" / "caldp-process"), "file:IN", camp.store.uri, "c", (), camp.environment, camp.home
    )
    # 480 + 120 MiB fit, two large ones do not, nor two small ones beside a large one.
    assert Runner(control, figures, command, watch, 4, 650).run().exit_status == 0
    large, small = {ONE, TWO, THREE}, {FOUR, FIVE, SIX}
    assert all(len(found & large) <= 1 for found in together)
    assert all(len(found & small) <= (1 if found & large else 3) for found in together)
    assert {name for name, _ in camp.begun()[:2]} & small, "a large one that waits keeps a small one from starting"
    camp.assert_sound()


def test_what_is_larger_than_there_is_runs_alone(camp: Camp, watch: Recorder, run: Run) -> None:
    together: set[int] = set()
    watch.at_look = lambda outlook: together.add(len(outlook.running))
    camp.behave(others={"sleep": 0.3})
    assert run(jobs=3, memory=50).exit_status == 0
    assert together <= {0, 1}


def test_a_ladder_that_does_not_fit_is_cut(camp: Camp) -> None:
    figures = settings.load(camp.home / "settings.toml")
    assert [rung.name for rung in local.fitted(figures, 300).rungs] == ["low", "middle"]
    assert [rung.name for rung in local.fitted(figures, 10).rungs] == ["low"]
    estimates = local.fitted(settings.DEFAULT, 8000).estimates
    assert (estimates["mvm"].rung, estimates["svm"].rung, estimates["cos"].rung) == ("8g", "8g", "2g")
    assert local.total_memory() > 100


@pytest.fixture
def canaries(tmp_path: Path) -> Camp:
    return Camp.at(tmp_path, names(8), canary=0.5, canary_least=1)


def test_others_wait_for_canaries(canaries: Camp, watch: Recorder) -> None:
    # One is tried again meanwhile: it must not wait for those that wait for it.
    canaries.behave(others=[{"exit": 22}, {}])
    assert execute(canaries, watch).exit_status == 0
    first = set(Control(canaries.store).plan()["canary"])
    assert len(first) == 4
    assert {name for name, _ in canaries.begun()[:8]} == first
    canaries.assert_sound()


def test_canaries_that_die_stop_the_rest(canaries: Camp, watch: Recorder) -> None:
    canaries.behave(others={"exit": 21})
    summary = execute(canaries, watch)
    first = set(Control(canaries.store).plan()["canary"])
    assert (summary.exit_status, summary.open) == (3, 4)
    assert summary.paused == "100% of the 4 datasets that went first failed for good"
    assert Control(canaries.store).paused() == summary.paused
    assert {name for name, _ in canaries.begun()} == first
    canaries.behave()
    again = execute(canaries, watch)
    assert (again.exit_status, again.states) == (1, {"error": 4, "processed": 4})
    assert Control(canaries.store).paused() == ""
    canaries.assert_sound()


def test_canaries_that_died_before_count_when_the_campaign_goes_on(canaries: Camp, watch: Recorder) -> None:
    """The runner was killed before it could pause; nobody has seen what became of them."""
    canaries.behave(others={"exit": 21})
    execute(canaries, watch)
    control = Control(canaries.store)
    control.unpause()
    canaries.behave()
    assert execute(canaries, watch).paused == "100% of the 4 datasets that went first failed for good"
    assert {name for name, _ in canaries.begun()} == set(control.plan()["canary"])
    assert not control.released()
    # Now somebody has, however often it must go on.
    canaries.behave(others={"exit": 21})
    assert execute(canaries, watch, jobs=1).states == {"error": 8}
    assert (control.released(), control.paused()) == (True, "")
    assert execute(canaries, watch).exit_status == 1
    canaries.assert_sound()


def test_the_same_failure_twice_counts_for_canaries(canaries: Camp, watch: Recorder) -> None:
    canaries.behave(others={"exit": 1})
    assert execute(canaries, watch).exit_status == 3
    assert len({name for name, _ in canaries.begun()}) == 4


def test_a_few_canaries_may_die(tmp_path: Path, watch: Recorder) -> None:
    camp = Camp.at(tmp_path, names(8), canary=0.75, canary_least=1)
    listed = read((camp.home / "list.ids").read_bytes(), "list.ids")
    figures = settings.load(camp.home / "settings.toml")
    one = accept(camp.store, listed, Options(), figures, runner="local").control.plan()["canary"][0]
    camp.behave(**{one: {"exit": 21}})
    assert execute(camp, watch).states == {"processed": 7, "error": 1}


# ---- what jobs have used


def kept(camp: Camp) -> dict[str, Observation]:
    found = {seen.dataset: seen for seen in from_jsonl((camp.out / observe.key("cos")).read_bytes())}
    assert all(seen.memory > MIB and 0 < seen.seconds < 90 for seen in found.values())
    return found


def test_what_jobs_have_used_is_kept(camp: Camp, run: Run, watch: Recorder) -> None:
    camp.behave(**{ONE: {"hog": 60, "sleep": 0.5}, TWO: {"exit": 21}, THREE: [{"exit": 31}, {}]})
    run()
    found = kept(camp)
    assert {name: seen.rung for name, seen in found.items()} == {ONE: "low", THREE: "middle"}
    assert found[ONE].memory > 60 * MIB > found[THREE].memory and found[ONE].seconds > 0.5
    assert not watch.said


def test_a_campaign_that_is_paused_keeps_what_it_has(canaries: Camp, watch: Recorder) -> None:
    canaries.behave(others={"exit": 21})
    assert execute(canaries, watch).exit_status == 3
    assert not (canaries.out / observe.FOLDER).exists()
    canaries.behave()
    execute(canaries, watch)
    assert len(kept(canaries)) == 4


def test_what_cannot_be_kept_is_told_and_fails_nothing(camp: Camp, run: Run, watch: Recorder) -> None:
    (camp.out / observe.FOLDER).mkdir(parents=True)
    (camp.out / observe.key("cos")).write_text("nonsense\n")
    assert run().exit_status == 0
    (said,) = watch.said
    assert said.startswith("what jobs have used is not kept: ") and "cos.jsonl: line 1 is damaged" in said
    assert (camp.out / observe.key("cos")).read_text() == "nonsense\n"


def test_a_later_campaign_is_planned_with_it(camp: Camp, run: Run, tmp_path: Path) -> None:
    run()
    path = camp.out / observe.key("cos")
    path.write_text(path.read_text().replace('"recipe": ""', '"recipe": "calcos"'))  # a fake has no programs
    (tmp_path / "later").mkdir()
    later = Camp.at(tmp_path / "later", names(4))
    listed = read((later.home / "list.ids").read_bytes(), "list.ids")
    figures = settings.load(later.home / "settings.toml")
    control = accept(later.store, listed, Options(), figures, observe.known(camp.store), runner="local").control
    why = {line.dataset: line.why for shard in control.shards() for line in control.lines(shard)}
    assert ["observed of it" in why[name] for name in names(4)] == [True, True, True, False]
    assert Observations.parse((later.out / "control" / "observations.jsonl").read_bytes()).jsonl() == path.read_bytes()


# ---- operators


def test_a_pause(camp: Camp, watch: Recorder, run: Run) -> None:
    watch.at_look = lambda outlook: Control(camp.store).pause("the archive is full")
    camp.behave(others={"sleep": 0.8})
    summary = run(jobs=1)
    assert (summary.exit_status, summary.paused) == (3, "the archive is full")
    assert 1 <= summary.states["processed"] < 3
    watch.at_look = lambda outlook: None
    assert run().states == {"processed": 3}
    assert len(camp.begun()) == 3


def test_a_dataset_is_cancelled_while_it_waits(camp: Camp, watch: Recorder, run: Run) -> None:
    def cancel(_: Outlook) -> None:
        messages.advance(camp.store, Status(THREE, 1, "cancelled", reason="not needed"))

    watch.at_look = cancel
    camp.behave(others={"sleep": 0.5})
    summary = run(jobs=1)
    assert (summary.exit_status, summary.states) == (1, {"processed": 2, "cancelled": 1})
    assert THREE not in [name for name, _ in camp.begun()]
    assert run().states == {"processed": 2, "cancelled": 1}
    assert (len(camp.begun()), camp.status(THREE).reason) == (2, "not needed")


@pytest.mark.parametrize("deaf", [False, True])
def test_a_dataset_is_cancelled_while_it_runs(
    camp: Camp, watch: Recorder, run: Run, deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caldp.programs._LAST_WORDS", 0.5)

    def cancel(_: Outlook) -> None:
        if [call for call in camp.calls() if call["dataset"] == ONE] and camp.status(ONE).state == "processing":
            messages.advance(camp.store, Status(ONE, 1, "cancelled", reason="not needed"))

    watch.at_look = cancel
    camp.behave(**{ONE: {"sleep": 60, "deaf": deaf, "child": True}})
    summary = run()
    assert (summary.exit_status, summary.states) == (1, {"processed": 2, "cancelled": 1})
    assert (camp.status(ONE).attempt, camp.status(ONE).spent) == (1, {})
    assert_no_jobs(camp)
    assert (run().states, len(camp.begun())) == ({"processed": 2, "cancelled": 1}, 3)


def test_a_dataset_that_an_operator_gives_another_attempt_while_it_waits(camp: Camp, watch: Recorder, run: Run) -> None:
    def rescue(_: Outlook) -> None:
        messages.advance(camp.store, Status(THREE, 2, "placed", rung="top", time_limit=120))

    watch.at_look = rescue
    camp.behave(others={"sleep": 0.5})
    assert run(jobs=1).exit_status == 0
    status = camp.status(THREE)
    assert (status.attempt, status.rung, status.time_limit) == (2, "top", 120)
    assert [attempt for name, attempt in camp.begun() if name == THREE] == [2]


def test_a_dataset_that_is_rescued_after_its_end_while_others_run(camp: Camp, watch: Recorder, run: Run) -> None:
    def rescue(_: Outlook) -> None:
        if camp.status(ONE).state == "error" and camp.status(ONE).cause:
            messages.advance(camp.store, Status(ONE, 2, "placed", rung="top", time_limit=120))

    watch.at_look = rescue
    camp.behave(**{ONE: [{"exit": 21}, {}], TWO: {"sleep": 1.0}})
    assert run(jobs=2).states == {"processed": 3}
    assert [attempt for name, attempt in camp.begun() if name == ONE] == [1, 2]
    camp.assert_sound()


# ---- the runner is stopped


def assert_no_jobs(camp: Camp) -> None:
    """Assert that no job, and nothing that it started, is alive."""
    pids = [call["pid"] for call in camp.calls()] + [call["child"] for call in camp.calls("child")]

    def alive() -> list[int]:
        found = []
        for pid in pids:
            try:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and str(camp.home) in str(process.environ()):
                    found.append(pid)
            except psutil.Error:
                continue
        return found

    end = time.monotonic() + 10
    while alive() and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(), f"jobs live on: {alive()}"


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),  # go_on_from_elsewhere, in short
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_loses_nothing(tmp_path: Path, signum: int, code: int) -> None:
    camp = Camp.at(tmp_path, names(4))
    camp.behave(**{ONE: {}, "others": {"sleep": 60}})
    runner = camp.start(*camp.command, "-j", "2")
    camp.wait_for(lambda: ONE in camp.states() and camp.status(ONE).done and len(camp.calls()) == 3)
    camp.wait_for(lambda: [state for state, _ in camp.states().values()].count("processing") == 2)
    runner.send_signal(signum)
    time.sleep(0.1)
    runner.send_signal(signum)  # of somebody impatient
    done = camp.finish(runner, 30)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[0].startswith("caldp campaign: stopping lfak00"), done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert_no_jobs(camp)
    camp.assert_sound()
    assert {state for name, (state, _) in camp.states().items()} == {"processed", "placed"}
    assert camp.states()[TWO] == ("placed", 2)
    assert camp.status(TWO).reason == "the campaign was stopped"
    camp.behave()
    done = camp.resume()
    assert (done.returncode, done.stderr) == (0, "")
    assert {state for state, _ in camp.states().values()} == {"processed"}
    assert [camp.status(name).spent for name in names(4)] == [{}] * 4
    assert Counter(name for name, _ in camp.begun()) == {ONE: 1, TWO: 2, THREE: 2, FOUR: 1}
    camp.assert_sound()


@pytest.mark.parametrize("moment", ["_hand_over", "submit", "_conclude", "_take_stock"])
def test_a_signal_in_the_midst_of_it(
    camp: Camp, watch: Recorder, run: Run, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Whatever was started when it comes is stopped, and nothing is lost."""
    owner: Any = local.ThreadPoolExecutor if moment == "submit" else Runner
    real, times = getattr(owner, moment), 0

    def stopped(*args: Any) -> Any:
        nonlocal times
        times += 1
        result = real(*args)
        if times == (1 if moment in ("_conclude", "_take_stock") else 2):
            raise Stop(signal.SIGTERM)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(owner, moment, stopped)
        camp.behave(**{ONE: {}, "others": {"sleep": 60}})
        began = time.monotonic()
        with pytest.raises(Stop):
            run()
        assert time.monotonic() - began < 20, "it waited for a job to end"
    assert_no_jobs(camp)
    camp.behave()
    assert run().states == {"processed": 3}
    assert [camp.status(name).spent for name in names(3)] == [{}] * 3


def storm(camp: Camp, rng: random.Random, rounds: int) -> None:
    """Kill the runner at random moments, and go on each time; then let it come to its end."""
    for _ in range(rounds):
        runner = camp.start(*camp.command, "-j", "3", start_new_session=True)
        time.sleep(rng.uniform(0.3, 2.5))
        runner.kill()
        runner.communicate()
        assert_no_jobs(camp)
        for name in camp.states():
            camp.status(name)  # can be read
    done = camp.submit("-j", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {state for state, _ in camp.states().values()} == {"processed"}
    assert_no_jobs(camp)


def test_the_runner_is_killed(tmp_path: Path) -> None:
    camp = Camp.at(tmp_path, names(5))
    camp.behave(others={"sleep": 0.5, "child": True}, **{TWO: [{"exit": 22}, {"sleep": 0.3}]})
    storm(camp, random.Random(3), 2)  # noqa: S311
    assert [camp.status(name).spent for name in names(5) if name != TWO] == [{}] * 4
    assert camp.status(TWO).spent == {"transient": 1}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_runner_is_killed_again_and_again(tmp_path: Path, seed: int) -> None:
    camp = Camp.at(tmp_path, names(10))
    camp.behave(
        others={"sleep": 0.3, "child": True},
        **{TWO: [{"exit": 22}, {"exit": 22}, {}], THREE: [{"exit": 31}, {}], FOUR: [{"exit": 1}, {}]},
    )
    storm(camp, random.Random(seed), 10)  # noqa: S311
    assert camp.status(TWO).spent == {"transient": 2}
    assert camp.status(THREE).spent == {"oom": 1}
    assert camp.status(FOUR).spent == {"unknown": 1}


def test_two_runners(camp: Camp) -> None:
    camp.behave(others={"wait": str(camp.home / "go")})
    first = camp.start(*camp.command, "-j", "3")
    camp.wait_for(lambda: len(camp.calls()) == 3)
    camp.wait_for(lambda: {state for state, _ in camp.states().values()} == {"processing"})
    logs = [camp.out / "control" / "logs" / name / "1.log" for name in names(3)]
    camp.wait_for(lambda: all(log.read_bytes() for log in logs))
    before = {path: path.read_bytes() for path in camp.out.rglob("*") if path.is_file()}
    for second in (camp.submit(), camp.resume()):
        assert second.returncode == 35
        assert second.stderr == (
            f"caldp campaign submit: {camp.out}: this campaign is running already; nothing was changed; "
            "wait for it to end, or stop it\n"
        )
    assert {path: path.read_bytes() for path in camp.out.rglob("*") if path.is_file()} == before
    (camp.home / "go").touch()
    assert camp.finish(first).returncode == 0
    assert len(camp.begun()) == 3
    camp.assert_sound()


def test_a_runner_beside_another_in_one_process(camp: Camp, watch: Recorder, run: Run) -> None:
    assert run().exit_status == 0
    with camp.store.own("campaign"), pytest.raises(BusyError, match="running already"):
        execute(camp, watch)


# ---- when it cannot go on


def test_there_is_no_program(camp: Camp, run: Run) -> None:
    (camp.home / "bin" / "caldp-process").unlink()
    with pytest.raises(UsageError, match="caldp-process cannot be started .*install caldp"):
        run()
    (camp.home / "bin2").mkdir()
    Camp.at(camp.home / "bin2", names(1))
    (camp.home / "bin2" / "bin" / "caldp-process").rename(camp.home / "bin" / "caldp-process")
    assert run().states == {"processed": 3}
    assert {camp.status(name).attempt for name in names(3)} == {1}


def test_no_room_for_logs(camp: Camp, watch: Recorder) -> None:
    (camp.out / "control").mkdir(parents=True)
    camp.behave(**{TWO: {"lines": 5000, "sleep": 5}})
    with small_disk(camp.out / "control" / "logs", "64k"):
        done = camp.submit("-j", "1")
        assert done.returncode == 29, done.stdout
        line = f"caldp campaign submit: {TWO}: its log cannot be written ([Errno 28] No space left on device)"
        assert done.stderr.splitlines() == [line]
        assert_no_jobs(camp)
    camp.behave()
    assert camp.submit().returncode == 0
    assert [camp.status(name).spent for name in names(3)] == [{}] * 3


def test_a_damaged_status(camp: Camp, watch: Recorder, run: Run) -> None:
    run()
    path = camp.out / "messages" / "status" / f"{TWO}.json"
    kept = path.read_bytes()
    path.write_bytes(b"{")
    with pytest.raises(OutputError, match=f"{TWO}.json is not a status record"):
        execute(camp, watch)
    path.write_bytes(kept)
    assert execute(camp, watch).exit_status == 0


# ---- what is there already


def test_nothing_is_run_twice(camp: Camp, run: Run, watch: Recorder) -> None:
    camp.behave(**{ONE: {"exit": 21}})
    assert run().states == {"processed": 2, "error": 1}
    before = {path: path.read_bytes() for path in camp.out.rglob("*") if path.is_file()}
    camp.behave()
    assert run().states == {"processed": 2, "error": 1}
    assert len(camp.begun()) == 3
    assert {path: path.read_bytes() for path in camp.out.rglob("*") if path.is_file()} == before


def test_a_failure_that_nobody_judged(camp: Camp, watch: Recorder) -> None:
    """The runner died between the end of a job and its own verdict."""
    camp.behave(**{ONE: [{"exit": 22}, {}]})
    figures = settings.load(camp.home / "settings.toml")
    listed = read((camp.home / "list.ids").read_bytes(), "list.ids")
    accept(camp.store, listed, Options(), figures, runner="local")
    given = {"rung": "low", "time_limit": 60, "shard": "local"}
    messages.advance(camp.store, Status(ONE, 1, "processing", run="r", **given))  # type: ignore[arg-type]
    messages.advance(camp.store, Status(ONE, 1, "error", run="r", exit_code=22, reason="MAST is away"))
    assert execute(camp, watch).states == {"processed": 3}
    assert (camp.status(ONE).attempt, camp.status(ONE).spent) == (2, {"transient": 1})
    assert [attempt for name, attempt in camp.begun() if name == ONE] == [2]


@pytest.mark.parametrize(
    ("existing", "attempts"), [("skip", {TWO: 1, THREE: 2}), ("overwrite", {ONE: 2, TWO: 1, THREE: 2})]
)
def test_results_that_were_there_before(camp: Camp, watch: Recorder, existing: str, attempts: dict[str, int]) -> None:
    from tests.fakes import processed

    processed.publish(camp.store, ONE)
    messages.advance(camp.store, Status(THREE, 1, "error", "run", "broken", 23))
    summary = execute(camp, watch, existing=existing)
    assert summary.states == {"processed": len(attempts)}
    assert dict(camp.begun()) == attempts
    assert {name: camp.status(name).attempt for name in attempts} == attempts
    assert camp.status(ONE).done
    camp.assert_sound()
