"""The private place of one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caldp.workspace import SCRATCH, open_workspace

HOLD = """
import sys
from pathlib import Path
from caldp.workspace import open_workspace
with open_workspace(Path(sys.argv[1]), "ldfd01vnq", "other") as w:
    (w.inputs / "file").touch()
    print("open", flush=True)
    sys.stdin.read(1)
"""


def hold(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_its_folders_are_there_and_go(tmp_path: Path) -> None:
    with open_workspace(tmp_path / "new", "ldfd01vnq", "run1") as w:
        folders = [w.inputs, w.references, w.products, w.previews, w.logs]
        assert all(f.is_dir() and f.parent == w.root for f in folders)
        assert len(set(folders)) == 5
        (w.products / "x.fits").touch()
    assert list((tmp_path / "new").iterdir()) == []


def test_it_goes_after_a_failure_and_leaves_what_links_point_to(tmp_path: Path) -> None:
    (tmp_path / "reference.fits").write_text("precious")
    with pytest.raises(ZeroDivisionError), open_workspace(tmp_path, "ldfd01vnq", "run1") as w:
        (w.references / "reference.fits").symlink_to(tmp_path / "reference.fits")
        (w.references / "folder").symlink_to(tmp_path)
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["reference.fits"]
    assert (tmp_path / "reference.fits").read_text() == "precious"


def test_it_can_be_kept(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "ldfd01vnq", "run1", keep=True) as w:
        (w.products / "x.fits").touch()
    with open_workspace(tmp_path, "ldfd01vnq", "run2"):
        pass
    assert (w.products / "x.fits").is_file()
    assert [p.name for p in w.root.parent.iterdir()] == ["run1"]


def test_two_runs_of_a_dataset_do_not_disturb_each_other(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "ldfd01vnq", "run1") as one:
        (one.inputs / "file").touch()
        with open_workspace(tmp_path, "ldfd01vnq", "run2") as two:
            assert one.root != two.root
        assert (one.inputs / "file").is_file()
    assert not (tmp_path / SCRATCH).exists()


def test_d34_the_workspace_of_a_killed_run_is_removed_and_that_of_a_live_one_not(tmp_path: Path) -> None:
    other = hold(tmp_path)
    left = tmp_path / SCRATCH / "ldfd01vnq" / "other"
    with open_workspace(tmp_path, "ldfd01vnq", "run1"):
        assert (left / "inputs" / "file").is_file()
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    assert left.is_dir()
    with open_workspace(tmp_path, "ldfd01vpq", "run2"):
        assert left.is_dir()  # another dataset's run does not look
    with open_workspace(tmp_path, "ldfd01vnq", "run3") as w:
        assert not left.exists()
        assert sorted(p.name for p in w.root.parent.iterdir()) == ["run3", "run3.lock"]
    assert list(tmp_path.iterdir()) == []
