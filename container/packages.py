"""For the Dockerfile: which packages the image needs, and what of them it does not.

``packages.py needed pyproject.toml`` prints the requirements of CALDP, one on a line, without building anything.
``packages.py strip`` removes the test suites that packages bring along from the Python that runs it.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

#: Folders called tests that a package imports when it is used.
_USED = {"astropy/tests"}


def needed(project: Path) -> list[str]:
    """Return the requirements of a project."""
    return list(tomllib.loads(project.read_text())["project"]["dependencies"])


def strip(packages: Path) -> int:
    """Remove test suites; return how many bytes they had."""
    freed = 0
    for folder in sorted(packages.glob("**/tests")):
        name = folder.relative_to(packages).as_posix()
        if not folder.is_dir() or name in _USED:
            continue
        freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder)
    return freed


if __name__ == "__main__":
    if sys.argv[1] == "needed":
        print("\n".join(needed(Path(sys.argv[2]))))
    else:
        print(f"tests of packages removed: {strip(Path(sysconfig.get_path('purelib'))) / 1e6:.0f} MB")
