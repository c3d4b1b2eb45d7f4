"""Which context of a CRDS cache in a store is the current one; whoever operates the store moves it."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from caldp import crds_cache, crds_layout
from caldp.errors import BusyError, ReferencesError
from caldp.store import Blob, ConflictError, Create, Store, Update

T = TypeVar("T")

#: Earlier contexts that are remembered.
_HISTORY = 50

#: Writers that one may lose against.
_TRIES = 50


def move(store: Store, context: str, why: str, *, bad_files: Sequence[str] | None = None, first: bool = False) -> str:
    """Make a context the current one.

    Parameters
    ----------
    store : Store
        Which has it.
    context : str
        For example ``hst_0729.pmap``.
    why : str
        Recorded with it.
    bad_files : sequence of str, optional
        New list of files that are known to be bad; by default it stays.
    first : bool
        Only if there is no current context.

    Returns
    -------
    str
        The current context.

    Raises
    ------
    ReferencesError
        If the store does not have that context.
    """
    if context not in (there := crds_layout.stored_contexts(store)):
        raise ReferencesError(
            f"{store.uri} has no context {context}",
            remedy=f"it has {', '.join(there[-5:]) or 'none'}; caldp references sync brings contexts there",
        )

    def moved(blob: Blob | None) -> tuple[str, bytes | None]:
        old = crds_layout.parse_pointer(store, blob)
        bad = sorted(old.get("bad_files", ())) if bad_files is None else sorted(bad_files)
        if old and (first or (old["context"], sorted(old["bad_files"])) == (context, bad)):
            return str(old["context"]), None
        past = [{k: v for k, v in old.items() if k in ("context", "at", "by", "why")}] if old else []
        new = {
            "format": 1,
            "context": context,
            "at": store.clock().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "by": _somebody(),
            "why": why,
            "bad_files": bad,
            "history": [*past, *old.get("history", ())][:_HISTORY],
        }
        return context, json.dumps(new, indent=1).encode() + b"\n"

    current = swap(store, crds_layout.POINTER, moved)
    tell_stock_clients(store)
    return current


def current(store: Store) -> dict[str, Any]:
    """Read the pointer of a store; ReferencesError if there is none.

    Parameters
    ----------
    store : Store
        Whose.

    Returns
    -------
    dict
        ``context``, ``bad_files``, ``at``, ``by``, ``why``, ``history``; and ``contexts``, all that the store has.
    """
    pointer = crds_layout.parse_pointer(store, store.get(crds_layout.POINTER))
    there = crds_layout.stored_contexts(store)
    if not pointer:
        raise ReferencesError(
            f"{store.uri} has no current context",
            remedy=f"it has {', '.join(there) or 'no context at all'}; caldp references sync brings contexts there",
        )
    return {**pointer, "contexts": there}


def as_text(pointer: Mapping[str, Any]) -> str:
    """Lay the pointer out for people.

    Parameters
    ----------
    pointer : mapping
        What ``current`` returns.

    Returns
    -------
    str
        The present context first, then those before it.
    """
    rows = [f"{p['context']}  since {p['at']}  by {p['by']}  {p['why']}" for p in [pointer, *pointer["history"]]]
    before = [f"  before: {row}" for row in rows[1:]]
    return "\n".join([rows[0], *before, f"contexts there: {', '.join(pointer['contexts'])}"])


def swap(store: Store, key: str, change: Callable[[Blob | None], tuple[T, bytes | None]]) -> T:
    """Change a small object as often as it takes until nobody else has changed it meanwhile; None changes nothing."""
    for _ in range(_TRIES):
        blob = store.get(key)
        result, data = change(blob)
        if data is None:
            return result
        try:
            store.put(key, data, Create() if blob is None else Update(blob.etag))
        except ConflictError:
            continue
        return result
    raise BusyError(f"{store.url(key)} is changed by others all the time", remedy="run it again")


def tell_stock_clients(store: Store) -> None:
    """Let the server_config, which the client of crds reads, say what the pointer says."""

    def told(blob: Blob | None) -> tuple[None, bytes | None]:
        pointer = crds_layout.parse_pointer(store, store.get(crds_layout.POINTER))
        known = server_config(store, blob)
        bad = pointer["bad_files"]
        said = {**contexts(pointer["context"]), "bad_files_list": bad, "bad_files": " ".join(bad)}
        if not known or said.items() <= known.items():
            return None, None
        return None, literal({**known, **said})

    swap(store, crds_layout.SERVER_CONFIG, told)


def contexts(context: str) -> dict[str, str]:
    return {"operational_context": context, "latest_context": context, "edit_context": context}


def server_config(store: Store, blob: Blob | None) -> dict[str, Any]:
    if blob is None:
        return {}
    try:
        return crds_cache.parse_server_config(blob.data.decode("utf-8"))
    except ValueError as error:
        raise ReferencesError(
            f"{store.url(crds_layout.SERVER_CONFIG)} is not readable ({error})",
            remedy="remove it: the next sync of each context writes it anew",
        ) from error


def literal(known: Mapping[str, Any]) -> bytes:
    lines = [f" {key!r}: {value!r},\n" for key, value in sorted(known.items())]
    return "".join(["{\n", *lines, "}\n"]).encode()


def _somebody() -> str:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"
