"""Packages of the functions."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import packaging
from infra.packaging import PackagingError

HEAVY = {"numpy", "scipy", "astropy", "crds", "matplotlib", "PIL", "rich", "jinja2", "boto3", "botocore", "drizzlepac"}


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Handlers of one's own, and packages that nobody had to fetch."""
    lambdas = tmp_path / "lambdas"
    for name in packaging.HANDLERS:
        (lambdas / name).mkdir(parents=True)
        (lambdas / name / "handler.py").write_text("from caldp.dataset import Dataset\nimport yaml, beside\n")
        (lambdas / name / "beside.py").write_text("from caldp import causes\n")
    stub = tmp_path / "packages"
    (stub / "yaml").mkdir(parents=True)
    (stub / "yaml" / "__init__.py").write_text("")
    monkeypatch.setattr(packaging, "_packages", lambda out, architecture: stub)
    return lambdas


def digest(folder: Path) -> str:
    """Identify names, bytes, times and rights of all files."""
    hashed = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        stat = path.stat()
        hashed.update(f"{path.relative_to(folder)} {stat.st_mtime_ns} {stat.st_mode}".encode())
        if path.is_file():
            hashed.update(path.read_bytes())
    return hashed.hexdigest()


def test_a_package_has_the_handler_what_it_imports_and_the_settings(made_up: Path, tmp_path: Path) -> None:
    (made_up / "on_list" / "__pycache__").mkdir()
    (made_up / "on_list" / "__pycache__" / "handler.cpython-311.pyc").write_bytes(b"x")
    found = packaging.build(tmp_path / "out", {"shard_size": 5}, lambdas=made_up)
    assert sorted(found) == sorted(packaging.HANDLERS)
    folder = found["on_list"]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"handler.py", "beside.py", "settings.json", "yaml/__init__.py"} <= names
    assert {"caldp/__init__.py", "caldp/dataset.py", "caldp/errors.py", "caldp/causes.py"} <= names
    assert not {"caldp/process.py", "caldp/calibrate.py", "caldp/cli.py"} & names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert json.loads((folder / "settings.json").read_text()) == {"shard_size": 5}


def test_the_same_sources_give_the_same_bytes_and_others_do_not(made_up: Path, tmp_path: Path) -> None:
    first = {k: digest(v) for k, v in packaging.build(tmp_path / "1", {}, lambdas=made_up).items()}
    os.utime(made_up / "on_list" / "handler.py", (1, 1))
    (made_up / "on_list" / "handler.py").chmod(0o755)
    again = {k: digest(v) for k, v in packaging.build(tmp_path / "2", {}, lambdas=made_up).items()}
    over = {k: digest(v) for k, v in packaging.build(tmp_path / "1", {}, lambdas=made_up).items()}
    assert first == again == over
    (made_up / "on_list" / "beside.py").write_text("# another\n")
    other = {k: digest(v) for k, v in packaging.build(tmp_path / "1", {}, lambdas=made_up).items()}
    assert [name for name in first if first[name] != other[name]] == ["on_list"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import numpy", "imports numpy"),
        ("def f():\n    import astropy.io.fits", "imports astropy.io.fits"),
        ("from caldp import calibrate", "functions do not have"),
        ("class A:\n    import rich", "imports rich"),
    ],
)
def test_what_functions_do_not_have_is_found_before_they_are_deployed(
    source: str, said: str, made_up: Path, tmp_path: Path
) -> None:
    (made_up / "reconcile" / "beside.py").write_text(source)
    with pytest.raises(PackagingError, match=said):
        packaging.build(tmp_path / "out", {}, lambdas=made_up)
    assert not (tmp_path / "out" / "reconcile").exists()


def test_a_handler_that_is_missing_is_named(made_up: Path, tmp_path: Path) -> None:
    (made_up / "on_list" / "handler.py").unlink()
    with pytest.raises(PackagingError, match="on_list has no handler.py"):
        packaging.build(tmp_path / "out", {}, lambdas=made_up)


def test_pip_that_fails_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "functions.txt"
    wrong.write_text("./nowhere/none.whl\n")
    monkeypatch.setattr(packaging, "REQUIREMENTS", wrong)
    with pytest.raises(PackagingError, match="pip cannot install functions.txt"):
        packaging.build(tmp_path / "out", {})
    assert not list((tmp_path / "out").iterdir())


def test_what_the_real_handlers_import_is_light() -> None:
    for name in packaging.HANDLERS:
        roots = list((packaging.REPOSITORY / "lambdas" / name).rglob("*.py"))
        files = packaging.modules(roots)
        assert sum(path.stat().st_size for path in files) < 1 << 20


@pytest.mark.slow
def test_the_real_packages_are_small_and_their_handlers_can_be_imported(tmp_path: Path) -> None:
    found = packaging.build(tmp_path / "out", {"shard_size": 5})
    code = "import sys; sys.path[:0] = ['.']; import yaml, aws_lambda_powertools, tenacity; print(*sys.modules)"
    for name, folder in found.items():
        size = packaging.size(folder)
        print(f"{name}: {size / 1e6:.1f} MB unpacked")
        assert size < 12_000_000
        tops = {path.name.partition(".")[0] for path in folder.iterdir()}
        assert not tops & HEAVY
        assert not list(folder.rglob("*.pyc"))
        # Without what is installed here: -S leaves out site-packages.
        done = subprocess.run(
            [sys.executable, "-S", "-B", "-c", code], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    again = packaging.build(tmp_path / "again", {"shard_size": 5})
    assert {k: digest(v) for k, v in found.items()} == {k: digest(v) for k, v in again.items()}
