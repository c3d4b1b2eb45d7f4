"""Which datasets a change of contexts affects, computed once for all who ask."""

from __future__ import annotations

import gzip
import json
from typing import Any

from caldp.crdserver.site import Site
from caldp.store import Overwrite


def key(site: Site, old: str, new: str) -> str:
    """Where a result is."""
    return f"server/{site.observatory}/affected/{old}-{new}.json.gz"


def compute(site: Site, old: str, new: str) -> dict[str, Any]:
    """Find the affected datasets, and keep them.

    Parameters
    ----------
    site : Site
        Where.
    old, new : str
        Contexts.

    Returns
    -------
    dict
        The JSON form of ``affected.Affected``.
    """
    from caldp.crdserver.affected import find

    found = find(site.stock, old, new, site.datasets).to_json()
    site.store.put(key(site, old, new), gzip.compress(json.dumps(found).encode(), mtime=0), Overwrite())
    return found


def kept(site: Site, old: str, new: str) -> dict[str, Any] | None:
    """Return a result, if there is one."""
    blob = site.store.get(key(site, old, new))
    return dict(json.loads(gzip.decompress(blob.data))) if blob else None


def result(site: Site, old: str | None, new: str | None) -> dict[str, Any] | None:
    """Return what a stock client is told of a step between two contexts; None before it is computed.

    Parameters
    ----------
    site : Site
        Where.
    old, new : str, optional
        Contexts; by default those of the last step.

    Returns
    -------
    dict or None
    """
    state = site.state
    if new is None:
        new = state.latest
    if old is None:
        before = [context for _, context, _ in state.history if context != new]
        old = before[-1] if before else new
    old, new = site.context(old, state), site.context(new, state)
    found = kept(site, old, new)
    if found is None:
        return None
    # As the client prints what is affected: products, which are what is calibrated.
    from caldp.crdserver.datasets import products

    ids = products(found["datasets"])
    return {
        "affected_ids": ids,
        "user_affected_ids": ids,
        "bestrefs_status": 0,
        "bestrefs_err_summary": "",
        "computation_dir": key(site, old, new),
        "old_context": old,
        "new_context": new,
        "observatory": site.observatory,
    }
