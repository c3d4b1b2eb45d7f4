"""For the Dockerfile: which packages the image needs, and what of them it does not.

``packages.py needed pyproject.toml`` prints the requirements of CALDP, one on a line, without building anything.
``packages.py strip`` removes from the Python that runs it what packages bring along and nothing uses when they run:
test suites (some with private keys), sources that were compiled, and folders that are no packages.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

#: Folders of tests. Those called testing are for tests of others, and are imported by what is no test.
_SUITES = ("tests", "test", "_tests")

#: Those that a package imports when it is used.
_USED = {"astropy/tests"}

#: Beside suites. Not *_test.py: scipy.stats has statistical tests of such names.
_TESTS = ("test_*.py", "conftest.py")

#: What compilers read; in the image are none.
_SOURCES = (".c", ".cpp", ".h", ".hpp", ".pyx", ".pxd", ".pxi", ".tp", ".a", ".f")

#: Folders of no package, that projects install by mistake.
_STRAYS = ("doc", "docs", "examples", "notebooks", "src", "typings")


def needed(project: Path) -> list[str]:
    """Return the requirements of a project."""
    return list(tomllib.loads(project.read_text())["project"]["dependencies"])


def superfluous(packages: Path) -> Iterator[Path]:
    """List files and folders that nothing uses; some may lie in others."""
    yield from (packages / name for name in _STRAYS)
    for name in _SUITES:
        for folder in packages.glob(f"**/{name}"):
            if folder.is_dir() and folder.relative_to(packages).as_posix() not in _USED:
                yield folder
    for pattern in _TESTS:
        for file in packages.glob(f"**/{pattern}"):
            yield file
            yield from file.parent.glob(f"__pycache__/{file.stem}.*.pyc")
    for file in packages.glob("**/*.*"):
        if file.suffix in _SOURCES and file.is_file():
            yield file


def strip(packages: Path) -> int:
    """Remove what nothing uses; return how many bytes it had."""
    freed = 0
    for path in sorted(superfluous(packages)):
        if path.is_dir():
            freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
        elif path.exists():
            freed += path.stat().st_size
            path.unlink()
    return freed


if __name__ == "__main__":
    if sys.argv[1] == "needed":
        print("\n".join(needed(Path(sys.argv[2]))))
    else:
        print(f"tests, sources and the like removed: {strip(Path(sysconfig.get_path('purelib'))) / 1e6:.0f} MB")
