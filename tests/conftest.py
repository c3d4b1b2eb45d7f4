"""Fixtures for all tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from caldp import config, instruments
from caldp.dataset import Dataset
from caldp.run import Run
from caldp.simulate import Simulation, simulate
from caldp.telemetry import Telemetry
from caldp.workspace import open_workspace
from tests.fakes.reporter import FakeReporter

FAKE_PROGRAMS = Path(__file__).parent / "fakes" / "bin"

#: Variables of the developer that would change what the tests see.
_OURS = re.compile(r"CRDS|CALDP|[a-z]ref$|CSYS_VER|AWSDPVER|AWSYSVER|FAKE_")

RunFactory = Callable[..., Run]


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes by their length: a gzip header holds the time, and pytest-xdist wants the same names everywhere."""
    return f"{len(val)}_bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Give signals back: a command that ends leaves its process deaf, and programs started later inherit that."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take away what the developer may have exported."""
    for name in [name for name in os.environ if _OURS.match(name)]:
        monkeypatch.delenv(name)
    scripts = sysconfig.get_path("scripts")
    monkeypatch.setenv("PATH", os.pathsep.join([str(FAKE_PROGRAMS), scripts, os.environ["PATH"]]))
    return monkeypatch


@pytest.fixture
def make_run(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> Iterator[RunFactory]:
    """Make a run of a dataset with its own workspace and log; fake programs come first on PATH."""
    env = {**os.environ, "CRDS_PATH": str(tmp_path / "crds_cache"), "CALDP_HOME": str(tmp_path / "home")}
    with ExitStack() as stack:

        def make(dataset: str = "ldfd01vnq", *, settings: dict[str, object] | None = None, **environ: str) -> Run:
            loaded = replace(config.load("caldp-config-onsite", environ={**env, **environ}), **(settings or {}))
            parsed = Dataset.parse(dataset)
            workspace = stack.enter_context(open_workspace(loaded.home, parsed.name, f"run{os.urandom(3).hex()}"))
            telemetry = Telemetry(parsed.name, workspace.logs, FakeReporter(), loaded.secrets)
            stack.callback(telemetry.close)
            return Run(
                "run1", parsed, instruments.recipe(parsed), loaded, workspace, telemetry, 1, "2026-01-01T00:00:00.000Z"
            )

        yield make


@pytest.fixture(scope="session")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """A simulated exposure with its references and rules; not to be changed."""
    return simulate(tmp_path_factory.mktemp("simulation"), exposure_time=60.0)


@pytest.fixture
def crds_cache(simulation: Simulation, tmp_path: Path) -> Path:
    """A CRDS cache of one's own."""
    return Path(shutil.copytree(simulation.crds_path, tmp_path / "crds_cache"))
