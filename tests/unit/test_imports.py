"""What may import what, and how much an import may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import caldp

PACKAGE = Path(caldp.__file__).parent
ABOVE = (
    "settings_file", "dataset", "expectations", "instruments", "errors", "programs", "config", "store", "local_store",
    "aws", "s3", "s3_store", "messages",
)  # fmt: skip
HEAVY = (
    "numpy", "scipy", "astropy", "crds", "calcos", "matplotlib", "PIL", "rich", "jinja2", "psutil", "spec_plots",
    "boto3", "asdf",
)  # fmt: skip


@pytest.mark.parametrize("modules", [[f"caldp.{name}" for name in ABOVE], ["caldp.cli"], ["caldp.simulate"]])
def test_doors_and_the_upper_rooms_load_nothing_heavy(modules: list[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & set(HEAVY)
    assert {m.partition(".")[0] for m in modules} <= loaded


def imported(path: Path) -> set[str]:
    """Modules of caldp that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "caldp"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            if node.module == "caldp":
                found |= {f"caldp.{alias.name}" for alias in node.names}
            elif node.module and node.module.startswith("caldp."):
                found.add(node.module)
    return {name.split(".")[1] for name in found if "." in name}


@pytest.mark.parametrize("name", ABOVE)
def test_nothing_above_the_line_imports_anything_below_it(name: str) -> None:
    assert imported(PACKAGE / f"{name}.py") <= set(ABOVE)


def test_the_test_sees_imports() -> None:
    assert {"calibrate", "messages", "store"} <= imported(PACKAGE / "process.py")


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.name)
def test_programs_is_the_only_room_that_starts_processes_and_config_the_only_one_that_reads_the_environment(
    path: Path,
) -> None:
    source = path.read_text()
    names = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert "subprocess" not in names or path.name == "programs.py"
    assert "os.system" not in source
    assert "os.chdir" not in source
