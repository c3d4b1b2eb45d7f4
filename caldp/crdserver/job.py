"""``python -m caldp.crdserver.job OBSERVATORY JOB``: work on one job; what it goes by is in CALDP_CRDS_JOB."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from caldp.crdserver import campaigns, checking, reprocessing, submissions, tending
from caldp.crdserver.channels import AbortedError, Channels, Writer
from caldp.crdserver.delivery import BadFilesError, Delivery
from caldp.crdserver.jobs import Jobs, Lease, from_json
from caldp.crdserver.settings import Settings
from caldp.crdserver.site import Site
from caldp.crdserver.state import OVER
from caldp.crdserver.stock import environment
from caldp.errors import CaldpError, ReferencesError, describe


def work(settings: Settings, observatory: str, name: str) -> bool:
    """Work on a job.

    Parameters
    ----------
    settings : Settings
        What the server goes by.
    observatory : str
        ``hst`` or ``jwst``.
    name : str
        The job.

    Returns
    -------
    bool
        Whether it is over, one way or the other; False if somebody else works on it.
    """
    site = Site(settings, observatory)
    lease = Jobs(site).take(name)
    if lease is None:
        return False
    with lease:
        job = lease.job
        try:
            if job.kind == "submission":
                _submission(site, lease)
            elif job.state == "failed":
                raise ReferencesError(f"job {name} was begun {job.attempt - 1} times and never ended")
            elif job.kind == "affected":
                reprocessing.compute(site, job.about["old"], job.about["new"])
            elif job.kind == "campaign":
                campaigns.local(site, job.about["old"], job.about["new"], os.environ)
            elif job.kind == "check":
                checking.check(site)
            else:
                tending.tend(site)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job says so
            print(f"job {name}: {describe(error, '')}", file=sys.stderr)
            lease.over("failed")
            return True
        lease.over("done")
    return True


def _submission(site: Site, lease: Lease) -> None:
    one = submissions.load(site, lease.job.about["submission"])
    channel = Channels(site.records, site.observatory).writer(one.channel) if one.channel else None
    if site.state.submissions[one.id]["state"] != "started":
        # Whoever worked on it was stopped after the event that ends the work, and before anybody was told.
        _told(site, one, channel)
        return
    with tempfile.TemporaryDirectory(dir=_scratch(site.settings)) as folder:
        cache = Path(folder) / "cache"
        _become_crds(environment(cache, site.observatory))
        delivery = Delivery(site, one, lease.job.attempt, Path(folder), _say(channel))
        try:
            if lease.job.state == "failed":
                raise ReferencesError("it was begun several times and never ended", remedy="submit your files again")
            delivery.run()
        except AbortedError as error:
            submissions.cancel(site, one.id, one.user, "aborted")
            _end(channel, "cancel", {"status": 3, "result": str(error)})
            return
        except BaseException as error:
            described = describe(error, "")
            if not lease.lost and site.state.submissions[one.id]["state"] == "started":
                kind = "bad files" if isinstance(error, BadFilesError) else "failed"
                delivery.refuse(kind, described)
            if site.state.submissions[one.id]["state"] in OVER:
                submissions.tidy(site, one.id)
            _end(channel, "fail" if not isinstance(error, BadFilesError) else "done", _outcome(described))
            if isinstance(error, CaldpError):
                return
            raise
    _told(site, one, channel)


def _told(site: Site, one: submissions.Submission, channel: Writer | None) -> None:
    """Say what came of a submission, and remove what it has left."""
    known = site.state.submissions[one.id]
    if known["state"] in OVER:
        submissions.tidy(site, one.id)
    if known["state"] in ("bad files", "failed"):
        _end(channel, "done" if known["state"] == "bad files" else "fail", {"status": 1, "result": known["reason"]})
    elif known["state"] == "cancelled":
        _end(channel, "cancel", {"status": 3, "result": f"submission {one.id} is cancelled"})
    else:
        _end(channel, "done", {"status": 0, "result": f"{site.url}/display_result/{one.id}"})


def _outcome(error: CaldpError) -> dict[str, Any]:
    return {"status": 1, "result": str(error)}


def _say(channel: Writer | None) -> Any:  # noqa: ANN401 - a function of two texts
    return channel.say if channel else (lambda kind, line: None)


def _end(channel: Writer | None, kind: str, data: dict[str, Any]) -> None:
    if channel:
        channel.end(kind, data)


def _scratch(settings: Settings) -> Path:
    place = settings.work / "jobs"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _become_crds(variables: dict[str, str]) -> None:
    """Let this process, which works for nobody else, be crds with a cache of its own."""
    # crds reads the environment itself.
    for name in [name for name in os.environ if name.startswith("CRDS_")]:
        del os.environ[name]
    os.environ.update(variables)


def main() -> None:
    """Work on the job of the command line."""
    settings = from_json(json.loads(os.environ["CALDP_CRDS_JOB"]))
    observatory, name = sys.argv[1:]
    work(settings, observatory, name)


if __name__ == "__main__":
    main()
