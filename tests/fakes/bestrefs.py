"""What crds chose once, for tests of what comes before and after: to ask it takes more than a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caldp.fitsfile import read_header, update_header
from caldp.run import Run


class FakeBestrefs:
    """Takes the place of ``crds_cache.best_references``: writes the same choice into any header.

    Parameters
    ----------
    choice : mapping
        Keywords and values.
    """

    def __init__(self, choice: Mapping[str, str]) -> None:
        self._choice = choice

    @classmethod
    def asking(cls, raw: Path, cache: Path, context: str, scratch: Path) -> FakeBestrefs:
        """Ask crds what it chooses for an exposure."""
        copy = Path(shutil.copy(raw, scratch))
        env = {**os.environ, "CRDS_PATH": str(cache), "CRDS_OBSERVATORY": "hst", "CRDS_READONLY_CACHE": "1"}
        env["CRDS_SERVER_URL"] = "https://hst-serverless-mode.stsci.edu"
        command = ["crds.bestrefs", "--update-bestrefs", "--new-context", context, "--files", copy.name]
        subprocess.run([sys.executable, "-m", *command], cwd=scratch, env=env, check=True, capture_output=True)
        before, after = read_header(raw), read_header(copy)
        return cls({k: v for k, v in after.items() if isinstance(v, str) and before.get(k) != v or k == "CRDS_VER"})

    def __call__(self, run: Run, known: Mapping[str, Any], context: str, directory: Path, names: Sequence[str]) -> None:
        """Write the choice."""
        for name in names:
            update_header(directory / name, {k: (v, "") for k, v in {**self._choice, "CRDS_CTX": context}.items()})
