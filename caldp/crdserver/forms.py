"""The form that comes with a submission."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from caldp.errors import InputError

#: Fields that every submission may have beside those of the form.
_OURS = (
    "pmap_mode",
    "pmap_name",
    "pmap_text",
    "instrument",
    "change_level",
    "creator",
    "description",
    "auto_rename",
    "compare_old_reference",
)

_CHANGE_LEVELS = ("TRIVIAL", "MODERATE", "SEVERE")
_MODES = ("pmap_edit", "pmap_latest", "pmap_text")

#: The client allows these in a description.
_DESCRIPTION = re.compile(r"[A-Za-z0-9._\s/,=\-+]*")

_LONGEST = 20_000


def text(observatory: str) -> str:
    """Return the form as clients read it, in YAML.

    Parameters
    ----------
    observatory : str
        ``hst`` or ``jwst``.

    Returns
    -------
    str
    """
    place = resources.files("caldp") / "data" / f"crds_form_{observatory}.yml"
    return place.read_text(encoding="utf-8")


def fields(observatory: str) -> list[dict[str, Any]]:
    """Return the fields, as the client reads them: ``key``, ``label``, ``type``, ``required`` and perhaps more."""
    return list(yaml.safe_load(text(observatory)))


def instruments(observatory: str) -> list[str]:
    """Return the instruments that may be locked."""
    choices = next(field for field in fields(observatory) if field["key"] == "instrument")["choices"]
    return [choice for choice in choices if choice]


def checked(observatory: str, kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return what a user has said; fields that nobody asked for are left out.

    Parameters
    ----------
    observatory : str
        ``hst`` or ``jwst``.
    kind : str
        What is submitted.
    given : mapping
        {field: text}.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        If a field has what it cannot have.
    """
    known = {field["key"]: field for field in fields(observatory)}
    said = {key: value for key, value in given.items() if key in known or key in _OURS}
    for key, value in said.items():
        if len(value) > _LONGEST:
            raise InputError(f"{key} is too long", remedy=f"write {_LONGEST} characters at most")
        field = known.get(key, {})
        if field.get("type") == "TypedChoiceField" and value and key != "instrument":
            choices = [str(choice) for choice in field["choices"]]
            if value not in choices:
                raise InputError(f"{key} is {value[:40]!r}", remedy=f"choose of {', '.join(choices)}")
        if field.get("type") == "BooleanField" and value not in ("True", "False", "on", "true", "false"):
            raise InputError(f"{key} is {value[:40]!r}", remedy="choose of True, False")
    if said.get("pmap_mode", _MODES[0]) not in _MODES:
        raise InputError(f"pmap_mode is {said['pmap_mode'][:40]!r}", remedy=f"choose of {', '.join(_MODES)}")
    if said.get("change_level", _CHANGE_LEVELS[0]) not in _CHANGE_LEVELS:
        raise InputError(
            f"change_level is {said['change_level'][:40]!r}", remedy=f"choose of {', '.join(_CHANGE_LEVELS)}"
        )
    if kind != "certify":
        if not said.get("description", "").strip():
            raise InputError("description is empty", remedy="say what changes, and what that does")
        if not _DESCRIPTION.fullmatch(said["description"]):
            raise InputError("description has characters that are not allowed", remedy="letters, digits, . _ / , = - +")
    return said
