"""Contexts: confirmed, set, marked, and handed to those who calibrate without a server."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from caldp import crds_cache, crds_layout, crds_pointer, crds_rules
from caldp.crds_layout import mapping_key
from caldp.crdserver import catalog, submissions
from caldp.crdserver.site import Site
from caldp.crdserver.state import AVAILABLE, Row, State, serial
from caldp.errors import InputError, UsageError
from caldp.store import ConflictError, Create, Overwrite

_CONFIRMS = 20


def next_context(state: State) -> str:
    """Return the name of the next context."""
    names = [*state.files, *state.reserved]
    return f"{state.observatory}_{max((serial(name) for name in names), default=0) + 1:04d}.pmap"


def confirm(site: Site, one: str, who: str) -> dict[str, str]:
    """Put what a submission has brought into the catalogue, and make its context the one to derive from.

    Parameters
    ----------
    site : Site
        Where.
    one : str
        The submission, which waits for this.
    who : str
        Who confirms.

    Returns
    -------
    dict
        {uploaded or old name: new name}.

    Raises
    ------
    InputError
        If it does not wait, or the rules have changed under it.
    """
    result = submissions.result(site, one)
    for _ in range(_CONFIRMS):
        state = site.state
        known = state.submissions[one]
        if known["state"] != "ready":
            raise InputError(f"submission {one} is {known['state']}", remedy="submit your files again")
        rows: dict[str, Any] = site.journal.read(known["rows"])
        renamed = dict(result["renamed"])
        context, key = result["context"], known["rows"]
        if context and known["floats"] and state.edit != known["context"]:
            context = _rebased(site, state, one, known["context"], context, who)
            path = site.mappings.path(context)
            facts = {"size": path.stat().st_size, "sha1": crds_cache.sha1(path), "derived_from": state.edit}
            rows[context] = rows.pop(result["context"]) | facts
            renamed = {old: new for old, new in renamed.items() if new != result["context"]}
            # The client looks for the context that it began with.
            renamed |= {known["context"]: context, state.edit: context}
            key = f"{known['rows'].removesuffix('.json.gz')}-{context}.json.gz"
            site.journal.keep(key, rows)
        # A context that was meant for another than the one to derive from now is made anew.
        base = state.edit if context and known["floats"] else ""
        if site.journal.append("confirmed", who, known["why"], _confirming(one, context, key, base)):
            if context:
                publish(site, context)
            submissions.tidy(site, one)
            return renamed
    raise InputError(f"submission {one}: others confirm all the time", remedy="confirm it again")


def _confirming(one: str, context: str, key: str, base: str) -> Callable[[State], dict[str, Any] | None]:
    def confirmed(state: State) -> dict[str, Any] | None:
        now_in = state.submissions[one]["state"]
        if now_in != "ready":
            raise InputError(f"submission {one} is {now_in}", remedy="submit your files again")
        if base and state.edit != base:
            return None
        return {"submission": one, "context": context, "rows": key}

    return confirmed


def _rebased(site: Site, state: State, one: str, old: str, proposed: str, who: str) -> str:
    """Make the context anew, from the one to derive from now; return its name."""
    before, after = dict(site.mappings.selected(old)), dict(site.mappings.selected(proposed))
    present = dict(site.mappings.selected(state.edit))
    changes = {key: name for key, name in after.items() if before.get(key) != name}
    for key in changes:
        if present.get(key) != before.get(key):
            raise InputError(
                f"submission {one}: the rules of {key} have changed since (now {present.get(key)})",
                remedy="cancel it and submit your files again",
            )
    name = ""

    def reserved(state: State) -> dict[str, Any]:
        nonlocal name
        name = next_context(state)
        return {"names": [name], "submission": one}

    site.journal.append("reserved", who, f"{one}: {state.edit} came first", reserved)
    text = site.mappings.path(state.edit).read_text(encoding="utf-8")
    for key, new in changes.items():
        if key in present:
            text = text.replace(f"'{present[key]}'", f"'{new}'")
        else:
            raise InputError(f"submission {one}: {key} is new", remedy="cancel it and submit your files again")
    for field, value in (("name", name), ("derived_from", state.edit)):
        text = re.sub(rf"('{field}'\s*:\s*)'[^']*'", rf"\g<1>'{value}'", text, count=1)
    text = re.sub(r"('sha1sum'\s*:\s*)'[^']*'", rf"\g<1>'{crds_rules.checksum(text)}'", text, count=1)
    data = text.encode()
    if dict(crds_rules.parse(data)[1]) != present | changes:
        raise InputError(f"{state.edit} cannot be derived from", remedy="submit your files again")
    site.store.put(mapping_key(name, site.observatory), data, Create())
    return name


def set_context(site: Site, context: str, who: str, why: str, *, edit: bool = False) -> dict[str, str]:
    """Make another context the default one, or the one to derive from.

    Parameters
    ----------
    site : Site
        Where.
    context : str
        A context of the catalogue, or ``edit``.
    who, why : str
        Recorded with it. A step over several contexts wants a reason; a step to the next one has that of its delivery.
    edit : bool
        Only the one to derive from.

    Returns
    -------
    dict
        ``old`` and ``new`` context; the same twice if nothing has changed.

    Raises
    ------
    InputError
        If there is no such context, a file of it is not archived yet, or it wants a reason.
    """
    moved = {"old": "", "new": ""}

    def chosen(state: State) -> dict[str, Any] | None:
        name = _named(state, context)
        if name not in state.files or not name.endswith(".pmap"):
            raise InputError(f"there is no context {name[:60]!r}", remedy=f"choose one like {state.edit}")
        below = site.mappings.closure(name)
        if bad := [n for n in below if state.files.get(n, {}).get("bad")]:
            raise InputError(f"{name}: {bad[0]} is bad ({state.files[bad[0]]['bad']})", remedy="choose another context")
        delivered = {n for n, row in state.files.items() if row["state"] not in AVAILABLE}
        if absent := sorted(delivered.intersection([*below, *site.mappings.references(name)])):
            raise InputError(f"{name}: {absent[0]} is not archived yet", remedy="wait for the archive")
        old = state.edit if edit else state.latest
        moved.update(old=old, new=name)
        if old == name:
            return None
        if not (why.strip() or reason_of(state, old, name)):
            raise InputError(f"the step from {old} to {name} has no reason yet", remedy="say why")
        return {"context": name, "old": old}

    # Of one step the reason is that of its delivery.
    state = site.state
    said = why.strip() or reason_of(state, state.edit if edit else state.latest, _named(state, context))
    site.journal.append("edit context" if edit else "set context", who, said, chosen)
    if not edit:
        # Also when it was set before: by one who was stopped before jobs knew it, perhaps.
        publish(site, moved["new"])
        point(site)
    return moved


def _named(state: State, context: str) -> str:
    return state.edit if context in ("edit", f"{state.observatory}-edit") else context


def reason_of(state: State, old: str, new: str) -> str:
    """Return the reason of the delivery that leads from one context to another in one step; empty if none does."""
    row = state.files.get(new, {})
    return str(row.get("description", "")) if row.get("derived_from") == old else ""


def mark(site: Site, names: list[str], who: str, why: str, *, bad: bool) -> None:
    """Say that nobody should use files, or that one may again.

    Parameters
    ----------
    site : Site
        Where.
    names : list of str
        Files of the catalogue.
    who, why : str
        Recorded with it; a reason is wanted.
    bad : bool
        Whether they are.
    """
    if not why.strip():
        raise UsageError("marking files wants a reason", remedy="say why")
    if not names:
        raise UsageError("no files are named", remedy="name one or more")

    def marked(state: State) -> dict[str, Any] | None:
        for name in names:
            site.row(name, state)
        changed = [name for name in names if bool(state.files[name].get("bad")) != bad]
        return {"files": changed} if changed else None

    if site.journal.append("bad" if bad else "good", who, why.strip(), marked):
        point(site)


def publish(site: Site, context: str) -> None:
    """Put a context where jobs find it that have no server: all its rules in one object, and a list of its references.

    Parameters
    ----------
    site : Site
        Whose; only those of HST have such jobs.
    context : str
        A context of the catalogue.
    """
    if site.observatory != "hst":
        return
    site.mappings.closure(context)
    rules = crds_rules.read(site.mappings.folder, context)
    state = site.state
    # The list is of what is there by now: a later call may know of more.
    here = {name for name in rules.all_references if _is_here(state.files.get(name))}
    facts = {name: one for name, one in catalog.metadata(state).items() if name in here}
    site.store.put(crds_layout.listing_key(context), crds_layout.write_listing(context, facts), Overwrite())
    try:
        site.store.put(crds_layout.rules_key(context), crds_layout.pack_rules(rules), Create())
    except ConflictError:
        return


def _is_here(row: Row | None) -> bool:
    return row is not None and row["state"] in AVAILABLE and not row.get("absent")


def point(site: Site) -> None:
    """Let jobs, and the stock client without a server, know the default context and the bad files."""
    state = site.state
    if site.observatory != "hst" or not state.latest:
        return
    while True:
        _point(site, state)
        told, state = state, site.state
        # Whoever writes last looks last: of two who set contexts at once, the slower one may have written the older.
        if (told.latest, told.bad_files) == (state.latest, state.bad_files):
            return


def _point(site: Site, state: State) -> None:
    if site.store.get(crds_layout.rules_key(state.latest)) is None:
        publish(site, state.latest)
    known = catalog.server_info(site) | {"connected": False, "server": "", "status": "s3"}
    here = {n: one for n, one in catalog.metadata(state).items() if not state.files[n].get("absent")}
    known["download_metadata"] = crds_cache.encoded_metadata(here)
    site.store.put(crds_layout.SERVER_CONFIG, crds_pointer.literal(known), Overwrite())
    why = state.history[-1][2] if state.history else "caldp crds"
    crds_pointer.move(site.store, state.latest, why, bad_files=state.bad_files)
