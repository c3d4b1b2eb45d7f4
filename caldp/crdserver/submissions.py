"""Submissions: from the files that a user has sent to a new context, each step one event.

``started`` (a job certifies the files and makes rules) -> ``ready`` (its user looks at it) -> ``confirmed`` or
``cancelled``; or ``bad files``, ``failed``.  Where two steps are taken at once, the first event counts.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from caldp.crds_layout import mapping_key, reference_key
from caldp.crdserver import forms
from caldp.crdserver.site import Site
from caldp.crdserver.state import OVER, State
from caldp.crdserver.uploads import Uploads
from caldp.errors import InputError


@dataclass(frozen=True)
class Submission:
    """What a job works on.

    Attributes
    ----------
    id : str
        Its name, that nobody guesses.
    kind : str
        ``batch``: references, for which rules are made; ``references`` or ``mappings`` alone; ``certify``: a check.
    user, instrument : str
        Whose, and for what.
    context : str
        The context from which the new one is derived.
    channel : str
        Where the job speaks; empty for nowhere.
    form : dict
        What the user has said.
    files : dict
        {name: parts}.
    """

    id: str
    kind: str
    user: str
    instrument: str
    context: str
    channel: str
    form: dict[str, str]
    files: dict[str, list[dict[str, Any]]]


def request_key(site: Site, one: str) -> str:
    """Where it is kept what a submission asks for."""
    return f"server/{site.observatory}/submissions/{one}/request.json.gz"


def result_key(site: Site, one: str, attempt: int, kind: str) -> str:
    """Where it is kept what became of a submission: an attempt may find it ready, and fail to say so."""
    return f"server/{site.observatory}/submissions/{one}/result-{attempt}-{kind.replace(' ', '-')}.json.gz"


def rows_key(site: Site, one: str, attempt: int) -> str:
    """Where the rows are that a submission adds to the catalogue."""
    return f"server/{site.observatory}/submissions/{one}/rows-{attempt}.json.gz"


def start(site: Site, kind: str, user: str, instrument: str, channel: str, form: Mapping[str, str]) -> str:
    """Begin a submission of all files that a user has sent.

    Parameters
    ----------
    site : Site
        Where.
    kind : str
        ``batch``: references, for which rules are made; ``references`` or ``mappings`` alone; ``certify``: a check.
    user, instrument : str
        Who, and what is locked.
    channel : str
        Where the job is to speak.
    form : mapping
        What the user has said.

    Returns
    -------
    str
        Its id.

    Raises
    ------
    InputError
        If the form or the files are not what they should be, or another submission waits.
    """
    if waiting := unfinished(site.state, user, instrument):
        raise InputError(f"submission {waiting} of {instrument} is not over", remedy="confirm or cancel it first")
    said = forms.checked(site.observatory, kind, form)
    mode = said.get("pmap_mode", "pmap_edit")
    named = said.get("pmap_text") or said.get("pmap_name", "")
    context = site.context({"pmap_latest": "latest", "pmap_text": named}.get(mode, "edit"))
    if not context.endswith(".pmap"):
        raise InputError(f"{context} is no context", remedy="derive from a .pmap")
    if context not in site.state.files:
        # What another submission has made may be taken back.
        raise InputError(f"{context} is not confirmed yet", remedy="confirm it first, or derive from another one")
    uploads = Uploads(site, user)
    files = uploads.whole()
    if said.get("auto_rename") == "False" and (odd := [name for name in files if name != name.lower()]):
        raise InputError(f"{odd[0]} cannot stay: clients look for names in lower case", remedy="let CRDS rename it")
    one = f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(8)}"
    request = {
        "id": one,
        "kind": kind,
        "user": user,
        "instrument": instrument,
        "context": context,
        "channel": channel,
        "form": said,
        "files": {name: list(upload.parts) for name, upload in files.items()},
    }
    site.journal.keep(request_key(site, one), request)
    description = said.get("description") or f"certify {', '.join(files)}"

    def submitted(state: State) -> dict[str, Any]:
        if waiting := unfinished(state, user, instrument):
            raise InputError(f"submission {waiting} of {instrument} is not over", remedy="confirm or cancel it first")
        data = {"kind": kind, "instrument": instrument, "files": sorted(files), "context": context, "channel": channel}
        return {"submission": one, **data}

    site.journal.append("submitted", user, description, submitted)
    uploads.release(files)
    return one


def load(site: Site, one: str) -> Submission:
    """Return what a submission asks for; InputError if there is none."""
    if one not in site.state.submissions:
        raise InputError(f"there is no submission {one[:60]!r}", remedy="look at the list of submissions")
    return Submission(**site.journal.read(request_key(site, one)))


def unfinished(state: State, user: str, instrument: str, before: str = "~") -> str:
    """Return a submission that is neither confirmed nor over; empty if there is none.

    Parameters
    ----------
    state : State
        Of which moment.
    user, instrument : str
        Whose, and for what.
    before : str
        Only one that was begun no later, as an event says when; by default whenever.

    Returns
    -------
    str
    """
    for one, known in state.submissions.items():
        if (known["by"], known["instrument"]) == (user, instrument) and known["state"] not in OVER:
            if known["at"] <= before:
                return one
    return ""


def result(site: Site, one: str) -> dict[str, Any]:
    """Return what a job made of a submission; empty before it is done."""
    known = site.state.submissions.get(one)
    if known is None:
        raise InputError(f"there is no submission {one[:60]!r}", remedy="look at the list of submissions")
    return dict(site.journal.read(known["result"])) if known.get("result") else {}


def cancel(site: Site, one: str, who: str, why: str) -> None:
    """Take a submission back; its names are lost, its files removed."""

    def cancelled(state: State) -> dict[str, Any] | None:
        known = state.submissions[one]
        if known["state"] == "confirmed":
            raise InputError(f"submission {one} was confirmed by {known['by']}", remedy="deliver anew what you want")
        return None if known["state"] in OVER else {"submission": one}

    if site.journal.append("cancelled", who, why, cancelled):
        tidy(site, one)


def tidy(site: Site, one: str) -> None:
    """Remove what a submission that is over has left: its files as they were sent, and what it made for nothing."""
    state = site.state
    keys = [part["key"] for parts in load(site, one).files.values() for part in parts]
    # What it had reserved stays unused.
    names = [name for name, owner in state.reserved.items() if owner == one and name not in state.files]
    keys += [key(name, site.observatory) for name in names for key in (mapping_key, reference_key)]
    site.store.delete(*keys)
