"""The recipe of docs/clusters.rst: what it submits, and what not."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.fakes.slurm import FakeSlurm

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.rst").read_text()

BLOCKS = [
    textwrap.dedent(text) for text in re.findall(r"^\.\. code-block:: sh\n\n((?: {4}.*\n|\n)+)", PAGE, re.MULTILINE)
]


def block(word: str) -> str:
    """The lines of shell that have a word."""
    (found,) = (text for text in BLOCKS if word in text)
    return found


SUBMIT, AGAIN = block("sbatch --array=1-$(wc -l < datasets.txt)"), block("squeue")

ENDS = {"done": 0, "large": 31, "killed": 137, "silent": 22, "stopped": 143, "wrong": 21}


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    """A cluster, the script of the page, and datasets that are named after how they end."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "caldp.sbatch").write_text(block("#SBATCH"))
    (home / "datasets.txt").write_text("".join(f"{name}\n" for name in [*ENDS, "lost"]))
    slurm = FakeSlurm.make(tmp_path / "bin", home)
    slurm.end(lost=0, **ENDS)
    return slurm


def lists(slurm: FakeSlurm) -> dict[str, list[str]]:
    """The lists of datasets that are there, by the class in their name."""
    files = sorted(slurm.home.glob("again*"))
    assert all(re.fullmatch(r"again-[a-z]+-\d{8}T\d{6}\.txt", path.name) for path in files)
    return {path.name.split("-")[1]: path.read_text().split() for path in files}


def test_what_failed_is_submitted_again(slurm: FakeSlurm) -> None:
    slurm.type(SUBMIT)
    assert slurm.run("lost") == {"--array=1-7%50 caldp.sbatch": list(ENDS)}
    ended = {path.name: int(path.read_text()) for path in (slurm.home / "exit").iterdir()}
    assert ended == ENDS
    assert slurm.type(AGAIN) == ""
    wanted = {"memory": ["killed", "large"], "same": ["silent", "stopped"], "lost": ["lost"]}
    assert lists(slurm) == wanted
    assert len(slurm.queue) == 3
    assert [line for line in slurm.queue if "--mem=16G" in line] == [
        line for line in slurm.queue if "again-memory" in line
    ]

    slurm.end(**dict.fromkeys(ENDS, 0))
    ran = slurm.run()  # all three, when the last has been submitted long since
    assert list(ran.values()) == list(wanted.values())


def test_nothing_is_submitted_where_nothing_failed(slurm: FakeSlurm) -> None:
    slurm.end(**dict.fromkeys(ENDS, 0))
    slurm.type(SUBMIT)
    slurm.run()
    assert slurm.type(AGAIN) == ""
    assert (slurm.queue, lists(slurm)) == ([], {})


def test_nothing_is_submitted_while_jobs_wait(slurm: FakeSlurm) -> None:
    slurm.type(SUBMIT)
    slurm.run("lost")
    slurm.type(AGAIN)
    waiting, there = slurm.queue, lists(slurm)
    assert "the array has not ended" in slurm.type(AGAIN)
    assert (slurm.queue, lists(slurm)) == (waiting, there)


def test_nothing_is_submitted_if_slurm_does_not_answer(slurm: FakeSlurm) -> None:
    slurm.type(SUBMIT)
    slurm.run("lost")
    (slurm.folder / "down").touch()
    slurm.type(AGAIN)
    assert (slurm.queue, lists(slurm)) == ([], {})


def test_before_anything_has_ended_all_is_lost(slurm: FakeSlurm) -> None:
    slurm.type("mkdir -p outputs logs exit")
    assert slurm.type(AGAIN) == ""
    assert list(lists(slurm)) == ["lost"]
    assert len(lists(slurm)["lost"]) == 7
