"""What all requests of a server share."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from caldp.crdserver import archive, campaigns, contexts, forms, submissions
from caldp.crdserver.channels import Channels
from caldp.crdserver.jobs import Jobs, runner
from caldp.crdserver.methods import Methods
from caldp.crdserver.records import open_records
from caldp.crdserver.settings import OBSERVATORIES, Settings
from caldp.crdserver.signin import RefusedError, Session, SignIn
from caldp.crdserver.site import Site
from caldp.errors import InputError
from caldp.store import open_store


def log(level: int, message: str, **more: object) -> None:
    """Write a line of JSON; tokens and contents are never among what it is given."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    logging.getLogger("caldp.crds").log(level, json.dumps({"at": at, "message": message, **more}))


@dataclass(frozen=True)
class Observatory:
    """One observatory, and what is asked of it.

    Attributes
    ----------
    site : Site
        Its events, rules and files.
    signin : SignIn
        Who is there.
    jobs : Jobs
        Its heavy work.
    channels : Channels
        What jobs say.
    methods : Methods
        What stock clients call.
    instruments : list of str
        What may be locked.
    """

    site: Site
    signin: SignIn
    jobs: Jobs
    channels: Channels
    methods: Methods
    instruments: list[str]

    @property
    def name(self) -> str:
        """``hst`` or ``jwst``."""
        return self.site.observatory


class Server:
    """A CRDS.

    Parameters
    ----------
    settings : Settings
        What it goes by.
    environ : mapping
        The environment of workers.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.settings = settings
        store, records = open_store(settings.store), open_records(settings.records)
        self.records = records
        self.observatories: dict[str, Observatory] = {}
        for name in OBSERVATORIES:
            site = Site(settings, name, store, records)
            self.observatories[name] = Observatory(
                site, SignIn(site), Jobs(site), Channels(records, name), Methods(site), forms.instruments(name)
            )
        self._runner = runner(settings, environ, lambda line: log(logging.INFO, line))

    def resume(self) -> None:
        """Take up the jobs that nobody works on, and end what is over."""
        for one in self.observatories.values():
            one.signin.sweep()
            for name, known in one.site.state.submissions.items():
                if known["state"] == "started":  # whoever began it may have been stopped before there was a job
                    one.jobs.add(f"submission-{name}", "submission", {"submission": name})
            for job in one.jobs.open():
                self._runner.start(one.name, job.id)

    def submit(self, one: Observatory, session: Session, kind: str, instrument: str, form: Mapping[str, str]) -> str:
        """Begin a submission, and have somebody work on it; return its id."""
        name = submissions.start(one.site, kind, session.user.name, instrument, session.channel, form)
        one.jobs.add(f"submission-{name}", "submission", {"submission": name})
        self._runner.start(one.name, f"submission-{name}")
        return name

    def conclude(self, one: Observatory, session: Session, name: str, button: str) -> dict[str, str]:
        """Confirm a submission, or cancel it, and let go of its lock.

        Parameters
        ----------
        one : Observatory
            Whose submission.
        session : Session
            Who decides: its user, who still has the lock, or an operator.
        name : str
            The submission.
        button : str
            ``confirm`` or ``cancel``.

        Returns
        -------
        dict
            {uploaded or old name: new name}; empty if it was cancelled.

        Raises
        ------
        InputError
            If there is no such submission, or it does not wait for this.
        RefusedError
            If it is somebody else's.
        """
        known = one.site.state.submissions.get(name)
        if known is None:
            raise InputError(f"there is no submission {name[:60]!r}", remedy="look at the list of submissions")
        own = known["by"] == session.user.name
        if not own and not session.user.operator:
            raise RefusedError(f"submission {name} is of {known['by']}", remedy="ask an operator")
        if own and known["instrument"] != session.instrument:
            raise RefusedError(f"you have not locked {known['instrument']}", remedy="sign in with it")
        renamed: dict[str, str] = {}
        if button == "confirm":
            renamed = contexts.confirm(one.site, name, session.user.name)
            archive.deliver(one.site, name)
        elif button == "cancel":
            submissions.cancel(one.site, name, session.user.name, "cancelled")
        else:
            raise InputError(f"{button[:20]!r} is no button", remedy="confirm or cancel")
        if own:
            one.signin.unlock(session.user, known["instrument"])
        return renamed

    def set_context(self, one: Observatory, session: Session, context: str, why: str, *, edit: bool) -> dict[str, str]:
        """Set a context, and have found what that affects; return the old one and the new one."""
        moved = contexts.set_context(one.site, context, session.user.name, why, edit=edit)
        if not edit and moved["old"] and moved["old"] != moved["new"] and one.site.datasets.instruments():
            self.have_affected(one, moved["old"], moved["new"])
        return moved

    def have_affected(self, one: Observatory, old: str, new: str) -> str:
        """Have the affected datasets of a step between two contexts found; return the job."""
        name = f"affected-{old}-{new}-{int(time.time())}"
        one.jobs.add(name, "affected", {"old": old, "new": new})
        self._runner.start(one.name, name)
        return name

    def start_campaign(self, one: Observatory, session: Session, old: str, new: str) -> str:
        """Have the affected datasets of a step calibrated anew; return where that is."""
        place = campaigns.start(one.site, old, new, session.user.name)
        if place.startswith("file:"):
            name, about = campaigns.as_job(old, new)
            one.jobs.add(name, "campaign", about)
            self._runner.start(one.name, name)
        return place

    def close(self) -> None:
        """Stop the workers."""
        self._runner.close()
        self.records.close()
