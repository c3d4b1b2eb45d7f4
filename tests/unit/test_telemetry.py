"""Logs and metrics."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caldp.errors import InputError
from caldp.programs import own_peak_memory
from caldp.telemetry import Telemetry
from tests.fakes.reporter import FakeReporter

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR|DEBUG) +ldfd01vnq (\S+) (.*)")
SECRETS = ("secret-01", "secret-0123456789")


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    telemetry = Telemetry("ldfd01vnq", tmp_path, FakeReporter(), SECRETS)
    yield telemetry
    telemetry.close()


def events(telemetry: Telemetry) -> list[tuple[str, ...]]:
    assert isinstance(telemetry.reporter, FakeReporter)
    return telemetry.reporter.events


def parsed(path: Path) -> list[tuple[str, str, str]]:
    """Level, stage and text of each line of a log."""
    lines = path.read_bytes().decode().splitlines()
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return [(m[1], m[2], m[3]) for m in matches if m]


def shell(telemetry: Telemetry, code: str, *args: str) -> Any:
    env = {"PATH": os.environ["PATH"]}
    return telemetry.run_program(["sh", "-c", code, *args], cwd=telemetry.directory, env=env)


def test_the_four_names_of_the_archive_pipeline(telemetry: Telemetry, tmp_path: Path) -> None:
    telemetry.write_metrics()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.json",
        "preview.txt",
        "preview_metrics.txt",
        "process.txt",
        "process_metrics.txt",
    ]


def test_each_line_says_when_how_what_and_where(telemetry: Telemetry, tmp_path: Path) -> None:
    telemetry.info("before")
    with telemetry.stage("fetch"):
        telemetry.warning("odd file")
    with telemetry.stage("previews"):
        telemetry.info("drawing")
        shell(telemetry, "echo hello")
    telemetry.error("after")
    process, preview = parsed(tmp_path / "process.txt"), parsed(tmp_path / "preview.txt")
    assert process == [("INFO", "run", "before"), ("WARNING", "fetch", "odd file"), ("ERROR", "run", "after")]
    assert preview[0] == ("INFO", "previews", "drawing")
    assert ("INFO", "previews", "sh: hello") in preview
    assert telemetry.warnings == ["odd file"]
    assert ("message", "WARNING", "odd file") in events(telemetry)
    assert ("message", "ERROR", "after") not in events(telemetry)  # people are told at the end


@pytest.mark.parametrize(
    "text", ["one\ntwo", "one\r\ntwo", "progress 1%\rprogress 2%", "form\ffeed", "a\u2028b", "caf\udce9"]
)
def test_no_text_can_break_a_line(telemetry: Telemetry, tmp_path: Path, text: str) -> None:
    telemetry.info(text)
    assert parsed(tmp_path / "process.txt")


def test_a_program_that_draws_a_progress_bar(telemetry: Telemetry, tmp_path: Path) -> None:
    with telemetry.stage("calibrate"):
        shell(telemetry, r"printf '10%%\r20%%\r30%%\n\377\n'")
    text = parsed(tmp_path / "process.txt")
    assert any("30%" in line for _, _, line in text)


def test_the_traceback_is_in_the_log_and_only_there(telemetry: Telemetry, tmp_path: Path) -> None:
    try:
        raise InputError("file is empty")
    except InputError as error:
        telemetry.error("it failed", cause=error)
    lines = parsed(tmp_path / "process.txt")
    assert lines[0] == ("ERROR", "run", "it failed")
    assert lines[-1][0] == "DEBUG"
    assert lines[-1][2].endswith("InputError: file is empty")
    assert events(telemetry) == []


def test_d24_secrets_are_replaced_everywhere(telemetry: Telemetry, tmp_path: Path) -> None:
    for secret in SECRETS:
        with telemetry.stage("calibrate"):
            telemetry.info(f"info {secret}")
            telemetry.warning(f"warning {secret}")
            telemetry.error(f"error {secret}", cause=ValueError(secret))
            shell(telemetry, 'echo "program $1"', "sh", secret)
        with telemetry.stage("previews"):
            shell(telemetry, "echo $1", "sh", secret)
    telemetry.write_metrics()
    assert "secret-01" not in repr(events(telemetry)) + repr(telemetry.warnings)
    for path in tmp_path.iterdir():
        assert "secret-01" not in path.read_text(), path.name


def test_d24_secrets_do_not_get_into_messages_of_failure(telemetry: Telemetry) -> None:
    # The tail is quoted in the reason of the error state.
    with telemetry.stage("calibrate"):
        done = shell(telemetry, "echo token secret-0123456789")
    assert done.tail == ("token ***",)


def test_d24_a_longer_secret_leaves_no_rest(telemetry: Telemetry, tmp_path: Path) -> None:
    telemetry.info("a secret-0123456789 b")
    assert parsed(tmp_path / "process.txt") == [("INFO", "run", "a *** b")]


def test_metrics(telemetry: Telemetry, tmp_path: Path) -> None:
    with telemetry.stage("fetch") as stage:
        stage.bytes_in, stage.bytes_out = 1000, 900
    with telemetry.stage("calibrate") as stage:
        stage.bytes_in = 20
        telemetry.run_program(
            [sys.executable, "-c", "x = b'x' * 200_000_000\nimport time\nwhile time.process_time() < 1: pass"],
            cwd=tmp_path,
            env={},
        )
        shell(telemetry, "kill -KILL $$")
    with telemetry.stage("previews"):
        pass
    answer = telemetry.write_metrics()
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record == answer
    assert record["dataset"] == "ldfd01vnq"
    assert [s["name"] for s in record["stages"]] == ["fetch", "calibrate", "previews"]
    fetch, calibrate, _ = record["stages"]
    assert (fetch["bytes_in"], fetch["bytes_out"], fetch["programs"]) == (1000, 900, [])
    first, second = calibrate["programs"]
    assert (first["exit_status"], first["signal"]) == (0, None)
    assert (second["exit_status"], second["signal"]) == (None, "SIGKILL")
    assert calibrate["wall_s"] >= first["wall_s"] >= 0.3
    assert calibrate["cpu_s"] >= first["cpu_s"] >= 0.3
    # Until it becomes the program, a child is a copy of this process, which may be large by now.
    assert 200e6 < first["peak_memory_bytes"] < max(400e6, 1.1 * own_peak_memory())
    assert calibrate["peak_memory_bytes"] >= first["peak_memory_bytes"]
    assert record["total"]["peak_memory_bytes"] == max(s["peak_memory_bytes"] for s in record["stages"])
    assert (record["total"]["bytes_in"], record["total"]["bytes_out"]) == (1020, 900)
    assert record["total"]["wall_s"] >= calibrate["wall_s"]


def test_metrics_tell_what_the_dataset_is_once_that_is_known(telemetry: Telemetry, tmp_path: Path) -> None:
    assert list(telemetry.write_metrics()) == ["dataset", "stages", "total"]
    telemetry.facts |= {"detector": "fuv", "exposures": 4}
    telemetry.write_metrics()
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert list(record) == ["dataset", "detector", "exposures", "stages", "total"]
    assert (record["detector"], record["exposures"]) == ("fuv", 4)


def test_text_metrics_hold_their_own_stages(telemetry: Telemetry, tmp_path: Path) -> None:
    with telemetry.stage("calibrate"):
        shell(telemetry, "exit 3")
    with telemetry.stage("previews") as stage:
        shell(telemetry, "true")
        stage.bytes_out = 77
    telemetry.write_metrics()
    process = (tmp_path / "process_metrics.txt").read_text()
    preview = (tmp_path / "preview_metrics.txt").read_text()
    assert "Stage: calibrate" in process
    assert "Outcome: exit status 3" in process
    assert "previews" not in process
    assert "Stage: previews" in preview
    assert "Outcome: exit status 0" in preview
    assert "\tBytes written: 77\n" in preview
    assert re.search(r"\tMaximum resident set size \(kbytes\): [1-9]\d{3,6}\n", process)


def test_programs_of_threads_are_all_recorded(telemetry: Telemetry, tmp_path: Path) -> None:
    with telemetry.stage("previews") as stage:
        threads = [
            threading.Thread(target=shell, args=(telemetry, f"for i in 1 2 3 4 5; do echo {n}; done; exit {n}"))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(p.returncode for p in stage.programs) == list(range(8))
    lines = [text for _, _, text in parsed(tmp_path / "preview.txt")]
    assert all(lines.count(f"sh: {n}") == 5 for n in range(8))


def test_a_stage_that_fails_is_measured_too(telemetry: Telemetry) -> None:
    with pytest.raises(ZeroDivisionError), telemetry.stage("fetch"):
        raise ZeroDivisionError
    assert telemetry.stages[0].wall > 0
    assert telemetry.stages[0].peak_memory > 0
    first, second = events(telemetry)
    assert first == ("stage", "fetch")
    assert second[:2] == ("message", "INFO") and second[2].startswith("fetch: stopped after")


def test_two_runs_at_once_keep_their_logs_apart(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Telemetry("ldfd01vnq", tmp_path / name, FakeReporter()))
    made[0].info("first")
    made[1].info("second")
    for telemetry in made:
        telemetry.close()
    assert [t for _, _, t in parsed(tmp_path / "one" / "process.txt")] == ["first"]
    assert [t for _, _, t in parsed(tmp_path / "two" / "process.txt")] == ["second"]


def test_a_full_disk_under_a_log_drops_its_lines_without_noise(
    tmp_path: Path, full_device: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "process.txt").symlink_to(full_device)
    telemetry = Telemetry("ldfd01vnq", tmp_path, FakeReporter())
    telemetry.info("lost")
    with telemetry.stage("previews"):
        telemetry.info("kept")
    telemetry.close()
    assert capfd.readouterr() == ("", "")
    assert ("INFO", "previews", "kept") in parsed(tmp_path / "preview.txt")
    assert ("message", "INFO", "lost") in events(telemetry)


def test_programs_of_other_threads_can_be_stopped(telemetry: Telemetry) -> None:
    done: list[Any] = []
    with telemetry.stage("previews"):
        threads = [threading.Thread(target=lambda: done.append(shell(telemetry, "sleep 30"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        telemetry.cancel_programs()
        for thread in threads:
            thread.join(timeout=5)
        done.append(shell(telemetry, "sleep 30"))  # one that is started afterwards
    assert [d.signal for d in done] == ["SIGKILL"] * 3
