"""What is done now and then: by the clock on AWS, by the server itself elsewhere."""

from __future__ import annotations

from caldp.crdserver import checking, reprocessing, tending
from caldp.crdserver.server import Server
from caldp.errors import ReferencesError


def tend(server: Server) -> None:
    """End what is over, have found what the last step affects, take up the jobs whose worker is gone.

    Parameters
    ----------
    server : Server
        Of which each observatory is looked after that has contexts.
    """
    for one in server.observatories.values():
        contexts = [context for _, context, _ in one.site.state.history]
        if not contexts:
            continue
        tending.tend(one.site)
        for old, new in zip(contexts[-2:], contexts[-1:], strict=False):
            name = f"affected-{old}-{new}"
            # Once: what failed is begun again by whoever has found out why.
            if old != new and reprocessing.kept(one.site, old, new) is None and one.jobs.get(name) is None:
                one.jobs.add(name, "affected", {"old": old, "new": new})
    server.resume()


def check(server: Server) -> None:
    """Ask a server what clients would ask.

    Parameters
    ----------
    server : Server
        Whose address is known.

    Raises
    ------
    ReferencesError
        If an answer is not as it should be.
    """
    for one in server.observatories.values():
        wrong = [f"{f.what}: {f.said}" for f in checking.check(one.site) if not f.ok] if one.site.state.latest else []
        if wrong:
            raise ReferencesError(f"{one.site.url}: {'; '.join(wrong)}", remedy="look at its log")
