"""The commands: what people and scripts see."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

import caldp
from caldp import cli, doctor
from caldp.errors import EXIT_CODES
from caldp.process import Request
from caldp.reporter import Outcome
from caldp.simulate import Simulation


@pytest.fixture
def runner(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> CliRunner:
    clean_environment.chdir(tmp_path)
    clean_environment.setattr("signal.signal", lambda *_: None)  # the handlers are the command's, not pytest's
    return CliRunner()


def caldp_process(runner: CliRunner, *args: str) -> Result:
    return runner.invoke(cli.process_command, args)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["nonsense"], "nonsense"),
        (["u2ab0101t"], "u2ab0101t: WFPC2"),
        (["acs_8ph_01_extra"], "acs_8ph_01_extra"),
        (["ldfd01vnq\n"], "ldfd01vnq"),
        ([""], "''"),
        (["ldfd01vnq", "nonsense"], "nonsense"),
        (["ldfd01vnq", "file:.", "ftp://x"], "ftp://x"),
        (["ldfd01vnq", "file:.", "file:.", "no-such-config"], "no-such-config"),
        (["ldfd01vnq", "--override", "X"], "--override"),
    ],
)
def test_what_makes_no_sense_is_exit_2_and_one_line(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], word: str
) -> None:
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "crds"))
    done = caldp_process(runner, *args)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["ldfd01vnq", "--existing", "perhaps"], ["--no-such-option"], [], ["a"] * 5])
def test_usage_errors_are_exit_2(runner: CliRunner, args: list[str]) -> None:
    done = caldp_process(runner, *args)
    assert done.exit_code == 2
    assert "Usage: caldp-process" in done.stderr
    assert "Traceback" not in done.output


def test_d22_example_1_of_the_readme_without_inputs(runner: CliRunner, simulation: Simulation, tmp_path: Path) -> None:
    done = caldp_process(runner, "ldfd01vnq", "file:.", "file:.", str(simulation.config))
    assert done.exit_code == 21
    assert len(done.stderr.splitlines()) == 1
    assert "no ldfd01vnq_asn.fits or ldfd01vnq_raw*.fits" in done.stderr
    assert (tmp_path / "messages" / "dataset-error" / "ldfd01vnq").is_file()


def test_quiet_shows_nothing_but_the_failure(runner: CliRunner) -> None:
    done = caldp_process(runner, "nonsense", "-q")
    assert done.stdout == ""
    assert "nonsense" in done.stderr


def test_json_lines(runner: CliRunner) -> None:
    done = caldp_process(runner, "nonsense", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "start"
    assert (events[-1]["event"], events[-1]["exit_code"], events[-1]["state"]) == ("finished", 2, "refused")


def caldp_process_aws(runner: CliRunner, *args: str) -> Result:
    return runner.invoke(cli.process_aws_command, args)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["ldfd01vnq", "s3://bucket/batch"], "first: caldp-process-aws s3://bucket/batch ldfd01vnq"),
        (["ldfd01vnq", "file:out"], "first: caldp-process-aws file:out ldfd01vnq"),
        (["bucket/batch", "ldfd01vnq"], "'bucket/batch' is no output: give s3://<bucket>/<prefix>"),
        (["astroquery:", "ldfd01vnq"], "'astroquery:' is no output"),
        (["", "ldfd01vnq"], "'' is no output"),
        (["s3://bucket/batch", "u2ab0101t"], "u2ab0101t: WFPC2"),
        (["s3://bucket/batch", "s3://bucket/batch"], "is not an HST dataset name"),
        (["s3://", "ldfd01vnq", "--config", "caldp-config-onsite"], "'s3://' names no bucket"),
        (
            ["s3://bucket", "ldfd01vnq", "--input", "s3:in", "--config", "caldp-config-onsite"],
            "'s3:in' names no bucket",
        ),
        (["s3://bucket", "ldfd01vnq"], "caldp-config-aws: export CRDSBUCKET"),
        (["s3://bucket", "ldfd01vnq", "--config", "no-such-config"], "no-such-config"),
    ],
)
def test_the_door_for_aws_refuses_what_makes_no_sense(
    runner: CliRunner, tmp_path: Path, args: list[str], word: str
) -> None:
    done = caldp_process_aws(runner, *args)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args", [[], ["s3://bucket/batch"], ["s3://bucket/batch", "ldfd01vnq", "", "caldp-config-offsite"]]
)
def test_the_door_for_aws_takes_two_arguments(runner: CliRunner, args: list[str]) -> None:
    done = caldp_process_aws(runner, *args)
    assert done.exit_code == 2
    assert "Usage: caldp-process-aws" in done.stderr


def test_the_door_for_aws_tells_machines_of_a_swap(runner: CliRunner) -> None:
    done = caldp_process_aws(runner, "ldfd01vnq", "s3://bucket/batch", "--json")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"], last["state"]) == ("finished", 2, "refused")


@pytest.mark.parametrize("options", [[], ["--input", "s3://in/put", "--config", "mine"]])
def test_the_door_for_aws_is_caldp_process_with_other_defaults(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    asked = []

    def remember(request: Request, *_: object) -> Outcome:
        asked.append(request)
        return Outcome(request.dataset)

    monkeypatch.setattr(cli, "process", remember)
    shared = ["--context", "hst_0729.pmap", "--existing", "skip", "--take-over", "--override", "FLUXTAB=x"]
    assert caldp_process_aws(runner, "s3://bucket/batch", "ldfd01vnq", *options, *shared).exit_code == 0
    source, _, config = options[1:] if options else ["astroquery:", "", "caldp-config-aws"]
    assert caldp_process(runner, "ldfd01vnq", source, "s3://bucket/batch", config, *shared).exit_code == 0
    assert asked[0] == asked[1]
    assert (asked[0].input, asked[0].config, asked[0].take_over) == (source, config, True)


def test_all_doors_have_the_same_options() -> None:
    names, aws_names = ({p.name for p in c.params} for c in (cli.process_command, cli.process_aws_command))
    assert names == aws_names
    assert set(cli.main.commands) >= {"process", "process-aws"}


@pytest.mark.parametrize("command", [cli.process_command, cli.process_aws_command, cli.main])
def test_version(runner: CliRunner, command: object) -> None:
    done = runner.invoke(command, ["--version"])  # type: ignore[arg-type]
    assert done.exit_code == 0
    assert caldp.__version__ in done.output


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_every_exit_status(runner: CliRunner, option: str) -> None:
    done = caldp_process(runner, option)
    assert done.exit_code == 0
    text = " ".join(done.output.split())
    for code, (_, meaning) in EXIT_CODES.items():
        assert f" {code} {' '.join(meaning.split())}" in text
    assert max(len(line) for line in done.output.splitlines()) <= 130


@pytest.mark.parametrize(
    ("room", "args"),
    [
        ("caldp.batch.open_batch", ["status", "OUT"]),
        ("caldp.batch.open_batch", ["messages", "repair", "OUT"]),
        ("caldp.batch.open_batch", ["archived", "OUT", "ldfd01010"]),
        ("caldp.store.open_store", ["references", "current", "file:OUT"]),
        ("caldp.crds_choice.needed", ["references", "sync", "file:OUT", "--context", "hst_0001.pmap"]),
        ("caldp.doctor.examine", ["doctor"]),
        ("caldp.simulate.simulate", ["simulate", "OUT"]),
    ],
)
def test_ctrl_c_ends_a_command_quietly(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, room: str, args: list[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, interrupted)
    done = runner.invoke(cli.main, args)
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "caldp: stopped by Ctrl-C\n")


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ENDPOINT_URL", "me:hidden@127.0.0.1:9000"), ("AWS_MAX_ATTEMPTS", "many")]
)
def test_a_setting_of_aws_that_makes_no_sense_is_named(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "x")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "crds"))
    for done in (
        caldp_process(runner, "ldfd01vnq", "file:.", "s3://bucket/x"),
        runner.invoke(cli.main, ["status", "s3://bucket/x"]),
    ):
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert name in done.stderr
        assert "hidden" not in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", ["23", "STAGE1_ERROR", "stage1_error"])
def test_explain(runner: CliRunner, asked: str) -> None:
    done = runner.invoke(cli.main, ["explain", asked])
    assert (done.exit_code, done.stdout) == (0, f"23 STAGE1_ERROR: {EXIT_CODES[23][1]}\n")


@pytest.mark.parametrize("code", EXIT_CODES)
def test_explain_knows_every_code_by_number_and_name(runner: CliRunner, code: int) -> None:
    name = EXIT_CODES[code][0]
    answers = [runner.invoke(cli.main, ["explain", asked]).stdout for asked in (str(code), name)]
    assert answers[0] == answers[1]
    assert answers[0].startswith(f"{code} {name}: ")


@pytest.mark.parametrize("asked", ["99", "", "NO_SUCH_ERROR", "²", "3"])
def test_explain_unknown(runner: CliRunner, asked: str) -> None:
    done = runner.invoke(cli.main, ["explain", asked])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"caldp explain: there is no exit status {asked}")


def test_doctor_text(runner: CliRunner, simulation: Simulation) -> None:
    done = runner.invoke(cli.main, ["doctor", str(simulation.config)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok  ", "note", "    ")) for line in lines)
    assert any("program calcos" in line for line in lines)
    assert any("hst_0001.pmap" in line for line in lines)


def test_doctor_json(runner: CliRunner, simulation: Simulation) -> None:
    done = runner.invoke(cli.main, ["doctor", str(simulation.config), "--json"])
    found = {f["what"]: f for f in json.loads(done.stdout)}
    assert found["CRDS cache"] == {
        "what": "CRDS cache",
        "ok": True,
        "found": str(simulation.crds_path),
        "remedy": found["CRDS cache"]["remedy"],
        "needed": True,
    }
    assert found["CRDS rules"]["found"] == "1 contexts, the newest hst_0001.pmap"
    assert all(f["remedy"] for f in found.values() if not f["ok"])


def test_doctor_without_a_cache(runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setenv("CRDS_CONTEXT", "hst_9999.pmap")
    monkeypatch.setenv("CALDP_HOME", str(tmp_path / "not" / "yet"))
    done = runner.invoke(cli.main, ["doctor"])
    assert done.exit_code == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split("  ")[0] for line in failed] == ["FAIL CRDS cache", "FAIL CRDS rules", "FAIL CRDS context"]
    assert "export CRDS_PATH" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_knows_that_a_store_fills_the_cache(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"CRDS_PATH": str(tmp_path / "none"), "CRDSBUCKET": "s3://my-crds"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CRDS_READONLY_CACHE", raising=False)
    done = runner.invoke(cli.main, ["doctor", "caldp-config-aws"])
    assert re.search(r"ok +CRDS mode +from store s3://my-crds", done.stdout)
    assert not re.search(r"FAIL CRDS", done.stdout)


def test_doctor_with_an_unknown_config(runner: CliRunner) -> None:
    done = runner.invoke(cli.main, ["doctor", "no-such-config"])
    assert done.exit_code == 1
    assert done.stdout.startswith("FAIL config") and "no-such-config" in done.stdout


def test_doctor_notices_a_scratch_that_cannot_be_written(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALDP_HOME", "/proc/nowhere")
    done = runner.invoke(cli.main, ["doctor"])
    assert done.exit_code == 1
    assert "FAIL space, scratch" in done.stdout


@pytest.mark.parametrize(
    ("package", "found", "remedy"),
    [
        ("no-such-package>=2", "not installed", "pip install 'no-such-package>=2'"),
        ("numpy<1", importlib.metadata.version("numpy"), "pip install 'numpy<1'"),
    ],
)
def test_doctor_misses_what_is_not_installed_or_does_not_fit(package: str, found: str, remedy: str) -> None:
    finding = doctor._package(Requirement(package))
    assert (finding.ok, finding.found, finding.remedy) == (False, found, remedy)
    name = package.partition("<")[0].partition(">")[0]
    text = doctor.as_text([finding])
    assert text.splitlines()[0].startswith(f"FAIL package {name}")
    assert text.splitlines()[1].endswith(f"-> {remedy}")


def test_doctor_looks_for_all_that_is_required_and_for_nothing_else() -> None:
    names = {finding.what.removeprefix("package ") for finding in doctor._packages()}
    assert {"calcos", "crds", "drizzlepac", "photutils", "astroquery", "boto3"} <= names
    assert not names & {"pytest", "ruff"}


def test_python_m_caldp_process() -> None:
    done = subprocess.run([sys.executable, "-m", "caldp.process", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
