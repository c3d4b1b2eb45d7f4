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

#: Endings of a manifest in the order in which the archive gives them, and what they say.
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
    _note(site, one, "delivered")


def acknowledge(site: Site) -> None:
    """Take note of what the archive has said since."""
    if site.settings.archive == "none":
        return
    # First what was delivered, then what the archive says of it: else what was delivered in between seems to be taken.
    state = site.state
    for one, known in state.submissions.items():
        said = known.get("archive", "")
        if known["state"] != "confirmed" or said == "archived" or not _awaited(state, one):
            continue
        now_in = _said(site, one)
        if not now_in and not said:
            # Nobody was told yet: whoever confirmed it was stopped between the two.
            deliver(site, one)
        elif (now_in or "archived") != said:
            _note(site, one, now_in or "archived")


def _said(site: Site, one: str) -> str:
    """Return what the archive says of a submission; empty once it has taken its manifest away."""
    # In the order in which the archive renames it: so it is missed nowhere.
    for ending, meaning in _STATES.items():
        if site.store.get(f"{folder(site)}/{one}{ending}") is not None:
            return meaning
    return ""


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
