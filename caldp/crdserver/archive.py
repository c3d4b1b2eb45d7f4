"""The archive that keeps references for ever, where a CRDS has one.

A delivery is told to it by a manifest, ``archive/<observatory>/<submission>.cat``: one line per file, with its size and
sha1. The archive renames it ``.cat_proc`` when it takes it, ``.cat_err`` when it cannot, and removes it once all files
are kept: only then may clients have them.
"""

from __future__ import annotations

from typing import Any

from caldp.crdserver.site import Site
from caldp.crdserver.state import State
from caldp.store import ConflictError, Create

#: What is in the folder of the archive, and what that says.
_STATES = {".cat": "delivered", ".cat_proc": "in process", ".cat_err": "refused"}


def folder(site: Site) -> str:
    """Where manifests are."""
    return f"archive/{site.observatory}"


def deliver(site: Site, one: str) -> None:
    """Tell the archive of a submission that was confirmed."""
    if site.settings.archive == "none":
        return
    state = site.state
    rows = {n: row for n, row in state.files.items() if row.get("submission") == one and row["type"] == "reference"}
    lines = [f"{name} {row['size']} {row['sha1']}\n" for name, row in sorted(rows.items())]
    try:
        site.store.put(f"{folder(site)}/{one}.cat", "".join(lines).encode(), Create())
    except ConflictError:
        return


def acknowledge(site: Site) -> None:
    """Take note of what the archive has said since."""
    if site.settings.archive == "none":
        return
    there: dict[str, str] = {}
    for name in site.store.names(folder(site)):
        stem, dot, ending = name.partition(".")
        there[stem] = _STATES.get(dot + ending, "")
    for one, known in site.state.submissions.items():
        said = known.get("archive", "")
        if known["state"] != "confirmed" or said == "archived" or not _awaited(site.state, one):
            continue
        if one not in there and not said:
            # Nobody was told yet: whoever confirmed it was stopped between the two.
            deliver(site, one)
            there[one] = "delivered"
        now_in = there.get(one, "archived")
        if now_in and now_in != said:
            _note(site, one, now_in)


def _awaited(state: State, one: str) -> bool:
    return any(row.get("submission") == one and row["state"] not in ("archived",) for row in state.files.values())


def _note(site: Site, one: str, now_in: str) -> None:
    def noted(state: State) -> dict[str, Any] | None:
        if state.submissions[one].get("archive") == now_in:
            return None
        names = [n for n, row in state.files.items() if row.get("submission") == one and row["type"] == "reference"]
        states = dict.fromkeys(names, "archived") if now_in == "archived" else {}
        return {"submission": one, "archive": now_in, "states": states}

    site.journal.append("archived", "archive", f"{one} is {now_in}", noted)
