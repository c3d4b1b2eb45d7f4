"""The private place of one run: its copies of the inputs, and its products, previews and logs until published."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Folder below CALDP_HOME (default: the current directory) that holds the workspaces.
SCRATCH = "caldp-scratch"


@dataclass(frozen=True)
class Workspace:
    """Folders of one run, all inside ``root``."""

    root: Path

    @property
    def inputs(self) -> Path:
        """Working copies of the raw data; programs run here."""
        return self.root / "inputs"

    @property
    def references(self) -> Path:
        """Links to exactly the verified reference files."""
        return self.root / "references"

    @property
    def products(self) -> Path:
        """What the calibration program writes."""
        return self.root / "products"

    @property
    def previews(self) -> Path:
        """Previews of the products."""
        return self.root / "previews"

    @property
    def logs(self) -> Path:
        """Logs and metrics."""
        return self.root / "logs"


@contextmanager
def open_workspace(home: Path, dataset: str, run: str, *, keep: bool = False) -> Iterator[Workspace]:
    """Make a fresh workspace, and remove it (and those of dead runs of this dataset) afterwards.

    Parameters
    ----------
    home : Path
        Where scratch files go.
    dataset : str
        Its name.
    run : str
        Identifies the run.
    keep : bool
        Leave the workspace for inspection.

    Yields
    ------
    Workspace
    """
    parent = home / SCRATCH / dataset
    _remove_dead(parent)
    workspace = Workspace(parent / run)
    # The lock exists before the folder and goes after it, so a folder whose lock is free is a dead run's.
    lock_path = parent / f"{run}.lock"
    lock = _lock(lock_path)
    if keep:
        lock_path.unlink()  # nobody takes a kept workspace for a dead run's, whatever becomes of this one
    try:
        folders = (
            workspace.inputs,
            workspace.references,
            workspace.products,
            workspace.previews,
            workspace.logs,
        )
        for folder in folders:
            folder.mkdir(parents=True)
        yield workspace
    finally:
        if not keep:
            shutil.rmtree(workspace.root, ignore_errors=True)
        lock_path.unlink(missing_ok=True)
        os.close(lock)
        for folder in (parent, parent.parent):
            with contextlib.suppress(OSError):  # other runs and other datasets may still be there
                folder.rmdir()


def _lock(path: Path) -> int:
    """Create and lock a file, which another run that tidies up may be removing just now."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return lock
            os.close(lock)


def _remove_dead(parent: Path) -> None:
    """Remove workspaces whose run was killed: their lock is free."""
    for lock_path in parent.glob("*.lock"):
        with contextlib.suppress(OSError):
            lock = os.open(lock_path, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink(missing_ok=True)
            finally:
                os.close(lock)
