"""Packages of the functions, without Docker: a handler, what of caldp it imports, a few packages, the settings.

The same sources give the same bytes, so a deployment changes only functions that have changed.  The functions of a
CRDS need crds itself and what that needs, 200 MB: it is a layer that both share, and that few deployments change.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caldp.errors import CaldpError

REPOSITORY = Path(__file__).parent.parent
REQUIREMENTS = Path(__file__).parent / "functions.txt"

#: Handlers: ``lambdas/<name>/handler.py``.
HANDLERS = ("on_list", "submit_shards", "on_batch_event", "reconcile")

PYTHON = "3.11"

#: Settings of the campaigns, beside the handler.
SETTINGS = "settings.json"

#: What AWS Lambda takes, unpacked, bytes.
LARGEST = 250 << 20

_PLATFORMS = {"x86_64": "manylinux2014_x86_64", "arm64": "manylinux2014_aarch64"}

#: What the runtime has, and what ``functions.txt`` adds, by the names that are imported.
_THERE = {"boto3", "botocore", "s3transfer", "urllib3", "dateutil", "aws_lambda_powertools", "yaml", "jmespath"}
_THERE |= {"tenacity", "typing_extensions"}

#: What is imported where functions do not come by: the live view, the local runner.
_ELSEWHERE = {"rich", "psutil"}

#: Handlers of the functions of a CRDS, and the name of the layer that they share.
CRDS_HANDLERS = ("crds", "crds_job")
CRDS_LAYER = "crds_layer"

#: What that layer has.
CRDS_REQUIREMENTS = Path(__file__).parent / "crds_functions.txt"

#: The same by the names that are imported; and what is imported where these functions do not come by.
_CRDS_THERE = _THERE | {"asdf", "astropy", "crds", "jinja2", "mangum", "numpy", "pyarrow", "requests", "starlette"}
_CRDS_ELSEWHERE = _ELSEWHERE | {"bs4", "click", "uvicorn"}

#: Modules that no handler names, and files that are no modules: jobs are processes, pages have templates.
_CRDS_ROOTS, _CRDS_DATA = ("caldp/crdserver/job.py",), ("caldp/data/crds*", "caldp/templates/crds/*")

#: What of the packages no function uses; without it they have room beside their compiled form.
_TRIMMED = (
    *("astropy/*/**/tests", "numpy/**/tests", "pyarrow/tests", "asdf/_tests", "erfa/tests"),
    *("pyarrow/include", "pyarrow/includes", "pyarrow/src", "pyarrow/**/*.p[xy][di]", "pyarrow/**/*.pyx"),
    *("pyarrow/*flight*", "pyarrow/libarrow_python.so", "pyarrow/libarrow_python.so.*.*"),  # of three copies, two
    *("numpy/_core/include", "numpy/**/*.a", "numpy/**/*.pyi"),
)

#: Packages of this repository that are packed as far as a handler imports them.
_OURS = ("caldp", "lambdas")

#: What pip writes differently each time, or nobody needs.
_CHAFF = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")

_EPOCH = 315_532_800  # 1980, the first year that a zip file knows


class PackagingError(CaldpError):
    """A function cannot be packed."""


def build(
    out: Path,
    settings: Mapping[str, Any],
    architecture: str = "x86_64",
    lambdas: Path = REPOSITORY / "lambdas",
    crds: bool = False,
) -> dict[str, Path]:
    """Make the package of each function.

    Parameters
    ----------
    out : Path
        Where: a folder for each, and one of packages, which is used again.
    settings : mapping
        Of the campaigns.
    architecture : str
        ``x86_64`` or ``arm64``.
    lambdas : Path
        Where the handlers are.
    crds : bool
        Whether to make those of a CRDS, too.

    Returns
    -------
    dict of Path
        Folders, by handler; and of the layer, by ``CRDS_LAYER``.

    Raises
    ------
    PackagingError
        If a handler is missing, imports what functions do not have, or pip fails.
    """
    packages = _packages(out, architecture)
    made = {name: _package(name, out / name, packages, settings, lambdas) for name in HANDLERS}
    if crds:
        layer = made[CRDS_LAYER] = _layer(out, architecture)
        for name in CRDS_HANDLERS:
            made[name] = _crds_package(name, out / name, lambdas, LARGEST - size(layer))
    return made


def _package(name: str, folder: Path, packages: Path, settings: Mapping[str, Any], lambdas: Path) -> Path:
    source = _source(name, lambdas)
    with _making(folder) as made:
        shutil.copytree(packages, made, dirs_exist_ok=True)
        _copy(source, modules(source.rglob("*.py"), lambdas.parent), made, lambdas)
        (made / SETTINGS).write_text(json.dumps(dict(settings), indent=1, sort_keys=True) + "\n")
        _fits(name, made, LARGEST)
    return folder


def _crds_package(name: str, folder: Path, lambdas: Path, room: int) -> Path:
    source = _source(name, lambdas)
    with _making(folder) as made:
        roots = [*source.rglob("*.py"), *(REPOSITORY / root for root in _CRDS_ROOTS)]
        found = modules(roots, lambdas.parent, _CRDS_THERE, _CRDS_ELSEWHERE)
        data = [path for pattern in _CRDS_DATA for path in REPOSITORY.glob(pattern) if path.is_file()]
        _copy(source, [*found, *roots[-len(_CRDS_ROOTS) :], *data], made, lambdas)
        _compile(made, "/var/task")
        _fits(name, made, room)
    return folder


def _source(name: str, lambdas: Path) -> Path:
    source = lambdas / name
    if not (source / "handler.py").is_file():
        raise PackagingError(f"{source} has no handler.py", remedy="write handler(event, context) there")
    return source


def _copy(source: Path, files: Iterable[Path], made: Path, lambdas: Path) -> None:
    """Copy a handler, and files of this repository."""
    shutil.copytree(source, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for path in files:
        there = made / path.relative_to(lambdas.parent if path.is_relative_to(lambdas) else REPOSITORY)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)


@contextmanager
def _making(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and put it in the place of another one when it is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        yield made
        _still(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _fits(name: str, made: Path, room: int) -> None:
    if size(made) > room:
        raise PackagingError(f"{name} has {size(made) >> 20} MiB", remedy=f"AWS Lambda takes {LARGEST >> 20} in all")


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def modules(
    roots: Iterable[Path],
    lambdas_parent: Path = REPOSITORY,
    there: Set[str] = _THERE,
    elsewhere: Set[str] = _ELSEWHERE,
) -> list[Path]:
    """Return the files of this repository that some files import, directly or not.

    Parameters
    ----------
    roots : iterable of Path
        Files of Python.
    lambdas_parent : Path
        The folder that has ``lambdas``.
    there, elsewhere : set of str
        What functions have, by the names that are imported, and what only functions in it import that they do not call.

    Returns
    -------
    list of Path
        In the order of their names, without the roots.

    Raises
    ------
    PackagingError
        If one of them imports what functions do not have.
    """
    found: set[Path] = set()
    todo = list(roots)
    while todo:
        path = todo.pop()
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for nodes, known in ((_run(tree), there), (_run(tree, later=True), there | elsewhere)):
            for name in _imports(nodes):
                top = name.partition(".")[0]
                local = (path.parent / f"{top}.py").is_file() or (path.parent / top).is_dir()
                if top not in {*_OURS, *known} and top not in sys.stdlib_module_names and not local:
                    raise PackagingError(
                        f"{path} imports {name}, which functions do not have",
                        remedy="do without it there, or add it to infra/functions.txt",
                    )
        for name in _imports(ast.walk(tree)):
            for file in _files(name, lambdas_parent):
                if file not in found:
                    found.add(file)
                    todo.append(file)
    return sorted(found)


def _run(tree: ast.AST, *, later: bool = False) -> Iterator[ast.AST]:
    """Go through what runs when a module is imported, or later, too."""
    for node in ast.iter_child_nodes(tree):
        if not later and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _run(node, later=later)


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Return what is imported; of ``from a import b`` also ``a.b``, which may be a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(name: str, lambdas_parent: Path) -> Iterator[Path]:
    """Return the file of a module of ours, and those of the packages that it is in."""
    parts = name.split(".")
    if parts[0] not in _OURS:
        return
    top = lambdas_parent if parts[0] == "lambdas" else REPOSITORY
    for end in range(1, len(parts) + 1):
        module = top.joinpath(*parts[:end])
        for file in (module / "__init__.py", module.with_suffix(".py")):
            if file.is_file():
                yield file


def _packages(out: Path, architecture: str) -> Path:
    """Return a folder with the packages of ``functions.txt``; pip is asked only when they are not there yet."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + architecture.encode() + PYTHON.encode()).hexdigest()[:16]
    folder = out / f"packages-{wanted}"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".packages-", dir=out) as scratch:
            made = Path(scratch) / "packages"
            _install(REQUIREMENTS, made, architecture)
            _keep(made, folder)
    return folder


def _layer(out: Path, architecture: str) -> Path:
    """Return the layer with the packages of ``crds_functions.txt``, trimmed and compiled."""
    ours = (CRDS_REQUIREMENTS.read_bytes(), architecture.encode(), sys.version.encode(), repr(_TRIMMED).encode())
    folder = out / f"{CRDS_LAYER}-{hashlib.sha256(b' '.join(ours)).hexdigest()[:16]}"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{CRDS_LAYER}-", dir=out) as scratch:
            made = Path(scratch) / CRDS_LAYER
            _install(CRDS_REQUIREMENTS, made / "python", architecture)
            for path in [path for pattern in _TRIMMED for path in (made / "python").glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            _compile(made, "/opt")
            _fits(CRDS_LAYER, made, LARGEST)
            _still(made)
            _keep(made, folder)
    return folder


def _install(requirements: Path, made: Path, architecture: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own words
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
            *("--target", str(made), "--requirement", str(requirements), "--no-deps", "--only-binary=:all:"),
            *("--platform", _PLATFORMS[architecture], "--python-version", PYTHON, "--implementation", "cp"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise PackagingError(
            f"pip cannot install {requirements.name} for {architecture} ({lines[-1] if lines else 'no reason'})",
            remedy="check that a package index is reached",
        )
    shutil.rmtree(made / "bin", ignore_errors=True)
    for path in [path for path in made.rglob("*") if path.name in _CHAFF and path.parent.suffix == ".dist-info"]:
        path.unlink()


def _keep(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise


def _compile(folder: Path, where: str) -> None:
    """Compile all modules, which a function cannot: it may write nothing there, and would at each start do so anew.

    The compiled form says nothing of when, so that it is the same each time; another Python's would be of no use.
    """
    if f"{sys.version_info[0]}.{sys.version_info[1]}" != PYTHON:
        return
    subprocess.run(  # noqa: S603 - our own words
        [
            *(sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"),
            *("-s", str(folder), "-p", where, str(folder)),
        ],
        capture_output=True,
        check=False,  # some packages have templates that are no Python
    )


def _still(folder: Path) -> None:
    """Give all files the same times and rights."""
    for path in [folder, *sorted(folder.rglob("*"))]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (_EPOCH, _EPOCH))
