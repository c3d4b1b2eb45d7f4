"""A place to calibrate small data with fake programs, by the straight line of a run, but for CRDS."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from caldp import process
from caldp.inputs import Inputs
from caldp.process import Request
from caldp.references import References
from caldp.reporter import Outcome
from caldp.run import Run
from tests.fakes import programs
from tests.fakes.reporter import FakeReporter


@dataclass(frozen=True)
class Bench:
    """Where a user works.

    Attributes
    ----------
    root : Path
        With the folders ``in``, ``out``, ``home`` and ``bin``.
    environment : MonkeyPatch
        Of the user.
    """

    root: Path
    environment: pytest.MonkeyPatch

    @property
    def inputs(self) -> Path:
        """Where raw files go."""
        return self.root / "in"

    @property
    def log(self) -> list[dict[str, Any]]:
        """The calls of fake programs so far."""
        return programs.calls(self.root / "calls.json")

    @property
    def commands(self) -> list[list[str]]:
        """Their names and arguments."""
        return [[call["name"], *call["argv"]] for call in self.log]

    def process(self, dataset: str, **behaviour: str) -> Outcome:
        """Calibrate a dataset with programs that behave so: ``calacs="kill"``."""
        with self.environment.context() as environment:
            for program, manner in behaviour.items():
                environment.setenv(f"FAKE_{program.upper()}", manner)
            request = Request(dataset, input=f"file:{self.inputs}", output=f"file:{self.root / 'out'}")
            return process.process(request, FakeReporter())

    def folder(self, dataset: str) -> Path:
        """Return where the dataset is published."""
        return next((self.root / "out" / "data").glob(f"*/{dataset}"))

    def tree(self, dataset: str) -> set[str]:
        """Return the names that are delivered."""
        folder = self.folder(dataset)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    def manifest(self, dataset: str) -> dict[str, Any]:
        """Return what was published."""
        record: dict[str, Any] = json.loads((self.folder(dataset) / "manifest.json").read_text())
        return record

    def states(self, dataset: str) -> list[str]:
        """Return the folders of messages that show the dataset."""
        return sorted(path.parent.name for path in (self.root / "out" / "messages").glob(f"*/{dataset}"))

    def assert_failed(self, dataset: str, outcome: Outcome, code: int, *words: str) -> None:
        """Assert that a run failed as documented: code, one clear line, an error state, nothing published."""
        assert (outcome.exit_code, outcome.state) == (code, "error"), outcome.reason
        for word in (dataset, *words):
            assert word in outcome.reason, f"{word!r} is not in {outcome.reason!r}"
        assert "\n" not in outcome.reason
        assert outcome.remedy
        assert self.states(dataset) == ["dataset-error"]
        assert all(name.startswith("logs/") for name in self.tree(dataset))
        assert not list((self.root / "home").rglob("*"))


def make_bench(root: Path, environment: pytest.MonkeyPatch) -> Bench:
    """Make one: fake programs first on PATH, no CRDS, and no astrometry service asked."""
    for folder in ("in", "home"):
        (root / folder).mkdir()
    found = programs.install(root / "bin")
    environment.setenv("PATH", os.pathsep.join([str(found), os.environ["PATH"]]))
    environment.setenv("CRDS_PATH", str(root / "crds"))
    environment.setenv("CALDP_HOME", str(root / "home"))
    environment.setenv("FAKE_CALLS", str(root / "calls.json"))
    environment.setenv("CALDP_PREVIEW_JOBS", "1")  # pictures are small, and starting a worker is not
    for name in ("ASTROMETRY_COMPUTE_APOSTERIORI", "ASTROMETRY_APPLY_APRIORI"):
        environment.setenv(name, "off")
    environment.setattr("caldp.references.assign", _no_references)
    return Bench(root, environment)


def _no_references(run: Run, inputs: Inputs) -> References:
    return References("hst_0001.pmap", "14", (), run.workspace.references)
