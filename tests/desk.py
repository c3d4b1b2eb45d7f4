"""Fixtures of the tests that run the real command on real and simulated data."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CALDP_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
CONTEXT = "hst_0729.pmap"
SCRIPTS = Path(sysconfig.get_path("scripts"))

#: Variables of the caller that would change what a run does.
_IGNORED = ("CRDS_", "CALDP_", "lref", "CSYS_VER", "AWSDPVER", "AWSYSVER")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real HST data; with CI set it must be there."""
    if not DATA.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI is set, but there is no HST data at {DATA}")
        pytest.skip(f"no HST data at {DATA}: set CALDP_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def cos_data(shared_data: Path) -> Path:
    """The real association ldfd01010: inputs, truth, CRDS cache."""
    return shared_data / "cos-ldfd01010"


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of a user who has exported the CRDS cache (whether it is there or not) and the context."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_IGNORED)}
    return {
        **env,
        "PATH": f"{SCRIPTS}{os.pathsep}{env['PATH']}",
        "CRDS_PATH": str(DATA / "cos-ldfd01010" / "crds_cache"),
        "CRDS_CONTEXT": CONTEXT,
    }


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Desk:
    """A directory with inputs, in which a user types commands."""

    home: Path
    env: Mapping[str, str]

    @property
    def inputs(self) -> Path:
        return self.home / "IN"

    @property
    def output(self) -> Path:
        return self.home / "OUT"

    def start(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start caldp-process with these arguments."""
        return subprocess.Popen(
            [str(SCRIPTS / "caldp-process"), *args],
            cwd=self.home,
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hear_signals,
        )

    def run(self, *args: str, env: Mapping[str, str] | None = None) -> Result:
        """Run caldp-process to its end."""
        process = self.start(*args, env=env)
        try:
            stdout, stderr = process.communicate(timeout=600)
        finally:
            process.kill()
        assert "Traceback" not in stdout + stderr, stdout + stderr
        return Result(process.returncode, stdout, stderr)

    def process(self, dataset: str, *options: str, env: Mapping[str, str] | None = None) -> Result:
        """Calibrate a dataset from IN to OUT."""
        return self.run(dataset, "file:IN", "file:OUT", *options, env=env)

    def status(self, dataset: str) -> dict[str, Any]:
        """Read a dataset's status."""
        record: dict[str, Any] = json.loads((self.output / "messages" / "status" / f"{dataset}.json").read_text())
        return record

    def states(self, dataset: str) -> list[str]:
        """List the folders of messages/ that show the dataset."""
        return sorted(p.parent.name for p in (self.output / "messages").glob(f"*/{dataset}"))

    def folder(self, dataset: str) -> Path:
        """Return the dataset's folder of products."""
        return self.output / "data" / "cos" / dataset

    def manifest(self, dataset: str) -> dict[str, Any]:
        """Read a dataset's manifest."""
        record: dict[str, Any] = json.loads((self.folder(dataset) / "manifest.json").read_text())
        return record

    def tree(self, dataset: str) -> set[str]:
        """Return the names of all files of a dataset."""
        folder = self.folder(dataset)
        return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}

    def assert_failed(self, result: Result, dataset: str, code: int, *words: str) -> None:
        """Assert that a run failed as documented: code, one clear line, an error state, nothing published."""
        assert result.code == code, result.stdout + result.stderr
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        for word in (dataset, *words):
            assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
        status = self.status(dataset)
        assert (status["state"], status["exit_code"]) == ("error", code)
        assert self.states(dataset) == ["dataset-error"]
        assert not (self.folder(dataset) / "manifest.json").exists()
        assert not list(self.folder(dataset).glob("*.fits"))
        assert_tidy(self.home)


def _hear_signals() -> None:
    """Undo what a shell does to commands in the background, where these tests may run: to ignore Ctrl-C."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def assert_tidy(home: Path) -> None:
    """Assert that no scratch, no lock and no half-staged tree is left."""
    assert not (home / "caldp-scratch").exists()
    assert not list(home.rglob("*.partial"))
    assert not list(home.rglob("*.lock"))
    assert not list(home.rglob(".*.tmp"))
    assert not [path for locks in home.rglob(".locks") for path in locks.iterdir()]


@pytest.fixture
def desk(tmp_path: Path, environment: dict[str, str]) -> Desk:
    """An empty directory to work in."""
    (tmp_path / "IN").mkdir()
    return Desk(tmp_path, environment)


@pytest.fixture
def give(cos_data: Path, desk: Desk) -> Callable[..., None]:
    """Return a function that copies this dataset's real inputs (by name patterns) to the desk."""

    def copy(*patterns: str) -> None:
        for pattern in patterns:
            for path in sorted((cos_data / "inputs").glob(pattern)):
                shutil.copy(path, desk.inputs / path.name)
                (desk.inputs / path.name).chmod(0o644)

    return copy


@pytest.fixture(scope="session")
def association(
    tmp_path_factory: pytest.TempPathFactory, cos_data: Path, environment: dict[str, str]
) -> Iterator[Desk]:
    """The whole association ldfd01010, calibrated once by caldp-process for all tests and workers of a run."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    home = shared / "association"
    desk = Desk(home, environment)
    with (shared / "association.turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (home / "result.json").exists():
            shutil.copytree(cos_data / "inputs", home / "IN", copy_function=shutil.copyfile, dirs_exist_ok=True)
            result = desk.process("ldfd01010")
            (home / "result.json").write_text(json.dumps([result.code, result.stdout, result.stderr]))
    assert json.loads((home / "result.json").read_text())[0] == 0, (home / "result.json").read_text()
    yield desk


@pytest.fixture(scope="session")
def association_result(association: Desk) -> Result:
    """What the command said."""
    code, stdout, stderr = json.loads((association.home / "result.json").read_text())
    return Result(code, stdout, stderr)


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that prints a measured figure at the end of the run, from whichever worker."""
    return lambda text: request.node.user_properties.append(("figure", text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that tests told."""
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome) if r.when == "call"]
    figures = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.line(text)


def child_named(process: subprocess.Popen[str], name: str, timeout: float = 60) -> psutil.Process:
    """Wait for a descendant whose command line holds ``name``."""
    parent = psutil.Process(process.pid)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for child in parent.children(recursive=True):
            try:
                if any(Path(word).name == name for word in child.cmdline()):
                    return child
            except psutil.Error:
                continue
        assert process.poll() is None, "the command ended before"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    raise AssertionError(f"no process {name}")
