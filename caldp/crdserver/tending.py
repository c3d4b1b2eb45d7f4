"""What a site needs now and then, whoever has the time."""

from __future__ import annotations

import time

from caldp.crdserver import archive, contexts
from caldp.crdserver.signin import SignIn
from caldp.crdserver.site import Site

_HOUR, _DAY = 3600.0, 86400.0

#: Seconds for which things are kept that nobody needs any longer.
_REPLIES = _HOUR
_CHANNELS = 7 * _DAY
_JOBS = 30 * _DAY


def tend(site: Site) -> None:
    """Do what is to be done now and then.

    Locks that are over end, the archive is heard, what jobs read is repaired if it was not written to the end, and
    what has served its time is removed: large replies, channels, jobs.

    Parameters
    ----------
    site : Site
        Which.
    """
    SignIn(site).sweep()
    archive.acknowledge(site)
    contexts.point(site)
    _remove_replies(site)
    _remove_channels(site)
    _remove_jobs(site)


def reply_key(site: Site, name: str) -> str:
    """Where a reply is that was too large to be given at once."""
    return f"server/{site.observatory}/replies/{name}"


def note_reply(site: Site, name: str) -> None:
    """Note that a large reply is kept, so that it is removed after a while."""
    site.records.put(f"{site.observatory}:replies", name, {"at": time.time()})


def _remove_replies(site: Site) -> None:
    space = f"{site.observatory}:replies"
    for record in list(site.records.scan(space)):
        if time.time() - record.value["at"] > _REPLIES:
            site.store.delete(reply_key(site, record.key))
            site.records.delete(space, record.key)


def _remove_channels(site: Site) -> None:
    space = f"{site.observatory}:channels"
    for record in list(site.records.scan(space)):
        if time.time() - record.value["opened"] > _CHANNELS:
            for message in list(site.records.scan(f"{space}:{record.key}")):
                site.records.delete(f"{space}:{record.key}", message.key)
            site.records.delete(space, record.key)


def _remove_jobs(site: Site) -> None:
    space = f"{site.observatory}:jobs"
    for record in list(site.records.scan(space)):
        # One that nobody has ended is for whoever looks after jobs.
        if record.value["state"] in ("done", "failed") and time.time() - record.value["made"] > _JOBS:
            site.records.delete(space, record.key)
