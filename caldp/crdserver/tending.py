"""What a site needs now and then, whoever has the time."""

from __future__ import annotations

from caldp.crdserver import archive, contexts
from caldp.crdserver.signin import SignIn
from caldp.crdserver.site import Site


def tend(site: Site) -> None:
    """End locks that are over, take note of the archive, repair what jobs read that was not written to the end.

    Parameters
    ----------
    site : Site
        Which.
    """
    SignIn(site).sweep()
    archive.acknowledge(site)
    contexts.point(site)
