"""The catalogue as clients know it: texts, of fields whose names go back to the first CRDS."""

from __future__ import annotations

import fnmatch
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import caldp
from caldp.crds_cache import encoded_metadata
from caldp.crdserver.site import Site
from caldp.crdserver.state import Row, State

#: Fields of a file that clients know, in their order, and where a row has them.
_FIELDS = {
    "activation_date": "activated",
    "aperture": "aperture",
    "blacklisted": "",
    "change_level": "change_level",
    "comment": "comment",
    "creator_name": "creator",
    "deliverer_user": "deliverer",
    "delivery_date": "delivered",
    "derived_from": "derived_from",
    "description": "description",
    "filekind": "filekind",
    "history": "history",
    "instrument": "instrument",
    "name": "",
    "observatory": "",
    "pedigree": "pedigree",
    "reference_file_type": "filekind",
    "rejected": "",
    "replaced_by_filename": "replaced_by",
    "sha1sum": "sha1",
    "size": "size",
    "state": "state",
    "type": "type",
    "uploaded_as": "uploaded_as",
    "useafter_date": "useafter",
}

#: What the tables of SQLite have beside them.
_COLUMNS = ("id", *_FIELDS, "blob", "deliverer_email", "catalog_link")


def info(site: Site, name: str, row: Row) -> dict[str, str]:
    """Return what a client is told of a file.

    Parameters
    ----------
    site : Site
        Whose.
    name : str
        The file.
    row : dict
        Its row of the catalogue.

    Returns
    -------
    dict
        {field: text}; what is true or false is ``true`` or ``false``.
    """
    said = {field: str(row.get(of, "")) if of else "" for field, of in _FIELDS.items()}
    bad = "true" if row.get("bad") else "false"
    if row["type"] == "mapping":
        said["type"] = "mapping"
        said["reference_file_type"] = ""
    said |= {"name": name, "observatory": site.observatory, "rejected": bad, "blacklisted": bad}
    return said


def metadata(state: State) -> dict[str, dict[str, str]]:
    """Return {file: {size, sha1sum}} of all files."""
    return {name: {"size": str(row["size"]), "sha1sum": row["sha1"]} for name, row in state.files.items()}


def named(state: State, of_type: str, pattern: str) -> list[str]:
    """Return the names of mappings or references that match a shell pattern, sorted."""
    return sorted(n for n, row in state.files.items() if row["type"] == of_type and fnmatch.fnmatchcase(n, pattern))


def server_info(site: Site) -> dict[str, Any]:
    """Return what a client asks first.

    Parameters
    ----------
    site : Site
        Whose.

    Returns
    -------
    dict
        As CRDS-SERVER's clients of all ages read it.
    """
    state = site.state
    base = {kind: {site.observatory: f"{site.url}/get/"} for kind in ("config_url", "mapping_url", "reference_url")}
    return {
        **base,
        "pickle_url": {site.observatory: f"{site.url}/get/"},
        "observatory": site.observatory,
        "connected": True,
        "status": "server",
        "server": site.url,
        "latest_context": state.latest,
        "operational_context": state.latest,
        "edit_context": state.edit,
        "versions_context": "",
        "bad_files_list": state.bad_files,
        "bad_files": " ".join(state.bad_files),
        "mappings": named(state, "mapping", "*"),
        "context_history": history(state),
        "crds_version": {"str": f"caldp {caldp.__version__}", "rev": str(state.seq), "svnurl": ""},
        "last_synced": state.at,
        "last_refreshed": state.at,
        "force_remote_mode": 0,
        "max_headers_per_rpc": 1000,
        "max_bestrefs_per_rpc": 1000,
        "download_metadata": encoded_metadata(metadata(state)),
    }


def history(state: State) -> list[list[str]]:
    """Return [when, context, why] of every default context, oldest first."""
    return [list(row) for row in sorted(state.history)]


def sqlite(site: Site) -> bytes:
    """Return the catalogue and the history of contexts as a file of SQLite."""
    state = site.state
    handle, name = tempfile.mkstemp(suffix=".db")
    os.close(handle)
    path = Path(name)
    try:
        with sqlite3.connect(path) as connection:
            _table(connection, f"crds_{site.observatory}_catalog", _COLUMNS, _rows(site, state))
            columns = ("id", "start_date", "context", "description")
            rows = ((str(i), *row) for i, row in enumerate(sorted(state.history), 1))
            _table(connection, f"crds_{site.observatory}_context_history", columns, rows)
        connection.close()
        return path.read_bytes()
    finally:
        path.unlink()


def _rows(site: Site, state: State) -> Iterable[tuple[str, ...]]:
    for number, (name, row) in enumerate(sorted(state.files.items()), 1):
        said: Mapping[str, str] = info(site, name, row) | {
            "id": str(number),
            "blob": "",
            "deliverer_email": "",
            "catalog_link": f"{site.url}/catalog/{name}",
        }
        yield tuple(said[column] for column in _COLUMNS)


def _table(connection: sqlite3.Connection, name: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    columns = list(columns)
    connection.execute(f"CREATE TABLE {name} ({', '.join(f'{column} TEXT' for column in columns)})")
    connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", rows)  # noqa: S608 - our names
