"""The rules of one CRDS context, and the references that they name.

Rules are Python literals in a thin shell; they are parsed, never run.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldp.errors import ReferencesError

#: Where rules name no file.
_SPECIAL = re.compile(r"N/A|OMIT|TEXT", re.IGNORECASE)

_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_]+)+")


@dataclass(frozen=True)
class Rules:
    """All rules of a context.

    Attributes
    ----------
    context : str
        For example ``hst_0729.pmap``.
    files : dict
        {name: content}, the context's own file first.
    references : dict
        {instrument: names of its references}, the instruments in lower case.
    """

    context: str
    files: dict[str, bytes]
    references: dict[str, frozenset[str]]

    @property
    def all_references(self) -> frozenset[str]:
        """References of all instruments."""
        return frozenset().union(*self.references.values())


def read(folder: Path, context: str) -> Rules:
    """Read all rules of a context.

    Parameters
    ----------
    folder : Path
        Where they are, for example ``<cache>/mappings/hst``.
    context : str
        Which.

    Returns
    -------
    Rules

    Raises
    ------
    ReferencesError
        If one of them is missing or damaged.
    """
    files: dict[str, bytes] = {}
    references: dict[str, frozenset[str]] = {}
    for instrument, imap in _load(folder, context, files, context):
        found: set[str] = set()
        for _, rmap in _load(folder, imap, files, context):
            found.update(name for _, name in _load(folder, rmap, files, context))
        references[instrument.lower()] = frozenset(found)
    return Rules(context, files, references)


def _load(folder: Path, name: str, files: dict[str, bytes], context: str) -> list[tuple[str, str]]:
    """Read one mapping; return what it selects: (key, name of a mapping or of a reference)."""
    path = folder / name
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ReferencesError(
            f"{context}: {path} is not there",
            remedy=f"sync that CRDS cache first: python -m crds.sync --contexts {context}",
        ) from error
    files[name] = data
    try:
        return parse(data)[1]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ReferencesError(
            f"{context}: {path} is damaged ({' '.join(str(error).split())[:160]})",
            remedy="remove it and sync that CRDS cache again",
        ) from error


def parse(data: bytes) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Read a mapping.

    Parameters
    ----------
    data : bytes
        Its content.

    Returns
    -------
    header : dict
        What it says of itself.
    selected : list of tuple
        (key, name of a mapping or of a reference) of all that it names, in order.

    Raises
    ------
    ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError
        If it is damaged, or no mapping.
    """
    text = data.decode("utf-8")
    body = {
        target.id: node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    header = dict(ast.literal_eval(body["header"]))
    if header.get("sha1sum") != checksum(text):
        raise ValueError("its sha1sum does not fit")
    return header, [(key, name) for key, name in _selected(body["selector"], "") if not _SPECIAL.fullmatch(name)]


def checksum(text: str) -> str:
    """Return the checksum of a mapping that its own header should give, as crds makes it."""
    lines = [line for line in text.splitlines(keepends=True) if "sha1sum" not in line]
    return hashlib.sha1("".join(lines).encode()).hexdigest()  # noqa: S324 - what CRDS has chosen


def _selected(node: ast.expr, key: str) -> Iterator[tuple[str, str]]:
    """Follow the selectors of a mapping: what is selected are values, never keys."""
    if isinstance(node, ast.Call):
        for argument in node.args:
            yield from _selected(argument, key)
    elif isinstance(node, ast.Dict):
        for one, value in zip(node.keys, node.values, strict=True):
            yield from _selected(value, key or (str(one.value) if isinstance(one, ast.Constant) else ""))
    elif isinstance(node, ast.Tuple | ast.List):
        for element in node.elts:
            yield from _selected(element, key)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if not (_NAME.fullmatch(node.value) or _SPECIAL.fullmatch(node.value)):
            raise ValueError(f"{node.value!r} is no name of a file")
        yield key, node.value
    else:
        raise ValueError(f"line {node.lineno} is no rule")
