"""Slurm and Apptainer, as far as the recipe of docs/clusters.rst uses them: jobs wait until a test runs them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_COMMANDS = {
    # Refuses what Slurm refuses: an array that ends before it begins.
    "sbatch": r"""case "$*" in *--array=1-0*) echo "sbatch: error: Invalid job array specification" >&2; exit 1; esac
        printf '%s\n' "$*" >> "$SLURM_FAKE/queue" """,
    "squeue": r"""[ "$*" = "--noheader --user me --name caldp" ] || exit 2
        cat "$SLURM_FAKE/queue" 2>/dev/null; [ ! -e "$SLURM_FAKE/down" ]""",
    "srun": 'exec "$@"',
    # Its dataset is the second word after the image; it ends as the test has written down.
    "apptainer": r"""while [ "$1" != caldp.sif ]; do shift; done
        printf '%s\n' "$3" >> "$SLURM_FAKE/ran"; exit "$(cat "$SLURM_FAKE/codes/$3")" """,
}


@dataclass(frozen=True)
class FakeSlurm:
    """A cluster, and a directory in which somebody has a list of datasets."""

    folder: Path
    home: Path

    @classmethod
    def make(cls, folder: Path, home: Path) -> FakeSlurm:
        """Write the commands into a folder."""
        (folder / "codes").mkdir(parents=True)
        for name, text in _COMMANDS.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)
        return cls(folder, home)

    def type(self, lines: str, **variables: str) -> str:
        """Type lines of shell in the directory; return what they print."""
        path = os.pathsep.join((str(self.folder), os.defpath))
        env = {"PATH": path, "SLURM_FAKE": str(self.folder), "USER": "me", **variables}
        done = subprocess.run(["bash", "-c", lines], cwd=self.home, env=env, capture_output=True, text=True, timeout=60)
        assert not done.stderr, done.stderr
        return done.stdout

    def end(self, **codes: int) -> None:
        """Say how jobs of datasets are to end."""
        for dataset, code in codes.items():
            (self.folder / "codes" / dataset).write_text(str(code))

    @property
    def queue(self) -> list[str]:
        """The arguments of what was submitted and has not run."""
        path = self.folder / "queue"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, *lost: str) -> dict[str, list[str]]:
        """Run all jobs; return the datasets of each array.  Those of lost ones do not live to begin."""
        ran: dict[str, list[str]] = {}
        for line in self.queue:
            words = line.split()
            options = dict(word.split("=", 1) for word in words if word.startswith("--"))
            variables = dict(pair.split("=") for pair in options.get("--export", "").split(",") if "=" in pair)
            names = (self.home / variables.get("LIST", "datasets.txt")).read_text().split()
            size = int(options["--array"].partition("%")[0].removeprefix("1-"))
            assert size == len(names), line
            (self.folder / "ran").write_text("")
            for number, name in enumerate(names, start=1):
                if name not in lost:
                    script = f"bash {words[-1]} || true"
                    self.type(script, SLURM_ARRAY_TASK_ID=str(number), **variables)
            ran[line] = (self.folder / "ran").read_text().split()
        (self.folder / "queue").unlink()
        return ran
