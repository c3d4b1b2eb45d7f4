"""Who is signed in, and who has locked which instrument, for how long."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from caldp.crdserver.journal import instant
from caldp.crdserver.records import Record
from caldp.crdserver.site import Site
from caldp.crdserver.users import User, Users, digest
from caldp.errors import CaldpError, InputError
from caldp.store import ConflictError

#: Seconds between two notes that somebody is still there.
_NOTED = 30.0

#: What a lock of no instrument is called by the client.
NONE = "none"


class RefusedError(CaldpError):
    """Somebody asked for what is not theirs."""


@dataclass(frozen=True)
class Session:
    """Somebody who is signed in.

    Attributes
    ----------
    key : str
        Of its record.
    user : User
        Who.
    instrument : str
        What is locked; empty if nothing is.
    channel : str
        The channel that was opened last.
    secret : str
        What the cookie holds; known only when the session begins.
    """

    key: str
    user: User
    instrument: str = ""
    channel: str = ""
    secret: str = ""


class SignIn:
    """Sessions and locks of one observatory.

    Parameters
    ----------
    site : Site
        Whose.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._records = site.records
        self._sessions = f"{site.observatory}:sessions"
        self._locks = f"{site.observatory}:locks"
        self.users = Users(site.records, site.settings.mast)
        self._noted = min(_NOTED, site.settings.lock_seconds / 10)

    # ---- sessions

    def sign_in(self, name: str, token: str, instrument: str, instruments: list[str]) -> Session:
        """Sign somebody in, and lock an instrument.

        Parameters
        ----------
        name, token : str
            Of a user.
        instrument : str
            To be locked; ``none`` or empty for none.
        instruments : list of str
            Those that there are.

        Returns
        -------
        Session

        Raises
        ------
        RefusedError
            If the token is wrong or somebody else has locked the instrument.
        """
        found = self.users.identify(name.strip(), token.strip())
        if found is None:
            raise RefusedError("Invalid username or token", remedy="an operator gives tokens: caldp crds user add")
        user, remembered = found
        instrument = instrument.strip().lower()
        instrument = "" if instrument in ("", NONE) else instrument
        if instrument and instrument not in instruments:
            raise RefusedError(
                f"there is no instrument {instrument[:40]!r}", remedy=f"choose of {', '.join(instruments)}"
            )
        if instrument:
            self.lock(user, instrument)
        secret = secrets.token_urlsafe(32)
        value = {"user": user.name, "token": remembered, "instrument": instrument, "seen": time.time(), "channel": ""}
        self._records.put(self._sessions, digest(secret), value, expect=0)
        self._audit("signed in", user.name, f"with {instrument} locked" if instrument else "")
        return Session(digest(secret), user, instrument, secret=secret)

    def session(self, secret: str) -> Session | None:
        """Return the session of a cookie, if there is one, and note that its user is still there."""
        record = self._records.get(self._sessions, digest(secret)) if secret else None
        if record is None:
            return None
        value = record.value
        user = self.users.get(value["user"], value["token"])
        if user is None or time.time() - value["seen"] > self._site.settings.lock_seconds:
            self._records.delete(self._sessions, record.key)
            return None
        instrument = value["instrument"]
        if instrument and not self._refresh(user, instrument):
            # Somebody else has locked it after the time was over: who is told so signs in again.
            self._records.delete(self._sessions, record.key)
            return None
        if time.time() - value["seen"] > self._noted:
            self._change(record, seen=time.time())
        return Session(record.key, user, instrument, value["channel"])

    def note_channel(self, session: Session, channel: str) -> None:
        """Remember the channel that a user has opened: the next submission speaks there."""
        record = self._records.get(self._sessions, session.key)
        if record:
            self._change(record, channel=channel)

    def sign_out(self, session: Session) -> None:
        """End a session, and let go of all that its user has locked: a client signs in anew to sign out."""
        self._records.delete(self._sessions, session.key)
        for instrument in self.held(session.user.name):
            self.unlock(session.user, instrument)
        self._audit("signed out", session.user.name, "")

    def _change(self, record: Record, **changes: Any) -> None:  # noqa: ANN401 - as JSON has it
        try:
            self._records.put(self._sessions, record.key, {**record.value, **changes}, expect=record.version)
        except ConflictError:
            fresh = self._records.get(self._sessions, record.key)
            if fresh and "channel" in changes:
                self._records.put(self._sessions, record.key, {**fresh.value, **changes})

    # ---- locks

    def lock(self, user: User, instrument: str) -> None:
        """Lock an instrument for a user; RefusedError if it is somebody else's."""
        for held in self.held(user.name):
            if held != instrument:
                if one := self._waiting(user.name, held):
                    raise RefusedError(
                        f"{user.name} has {held} locked, and submission {one} waits for you",
                        remedy="confirm it, cancel it or sign out",
                    )
                self.unlock(user, held)
        while True:
            record = self._records.get(self._locks, instrument)
            if record and self._live(record) and record.value["user"] != user.name:
                left = remaining(record.value["until"] - time.time())
                raise RefusedError(
                    f"{instrument} is locked by {record.value['user']} for another {left}", remedy="try it again then"
                )
            if record and not self._live(record):
                self.expire(record)
                continue  # somebody else may have locked it by now
            value = {"user": user.name, "since": time.time(), "until": time.time() + self._site.settings.lock_seconds}
            if record:
                value["since"] = record.value["since"]
            try:
                self._records.put(self._locks, instrument, value, expect=record.version if record else 0)
            except ConflictError:
                continue
            return

    def unlock(self, user: User, instrument: str) -> None:
        """Let go of a lock, if it is this user's."""
        record = self._records.get(self._locks, instrument)
        if record and record.value["user"] == user.name:
            self._cancel(user.name, instrument, "signed out")
            try:
                self._records.delete(self._locks, instrument, expect=record.version)
            except ConflictError:
                return

    def held(self, name: str) -> list[str]:
        """Return the instruments that a user has locked."""
        return [r.key for r in self._records.scan(self._locks) if r.value["user"] == name and self._live(r)]

    def locks(self) -> list[dict[str, Any]]:
        """Return all locks that hold: ``instrument``, ``user``, ``since`` and ``until`` in seconds of the epoch."""
        return [{"instrument": r.key, **r.value} for r in self._records.scan(self._locks) if self._live(r)]

    def status(self, name: str) -> dict[str, Any]:
        """Return what the client is told of the lock of a user."""
        for one in self.locks():
            if one["user"] == name:
                return {
                    "name": one["instrument"],
                    "user": name,
                    "type": "instrument",
                    "status": "ok",
                    "is_expired": False,
                    "created_on": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one["since"])),
                    "time_remaining": remaining(one["until"] - time.time()),
                }
        return {
            "name": "",
            "user": name,
            "type": "",
            "status": "no lock",
            "is_expired": True,
            "created_on": "",
            "time_remaining": remaining(0),
        }

    def expire(self, record: Record) -> None:
        """End a lock whose time is over: what its user has not confirmed is cancelled."""
        self._cancel(record.value["user"], record.key, "its lock has expired", record.value["until"])
        try:
            self._records.delete(self._locks, record.key, expect=record.version)
        except ConflictError:
            return

    def sweep(self) -> None:
        """End all locks and sessions whose time is over."""
        for record in list(self._records.scan(self._locks)):
            if not self._live(record):
                self.expire(record)
        for record in list(self._records.scan(self._sessions)):
            if time.time() - record.value["seen"] > self._site.settings.lock_seconds:
                self._records.delete(self._sessions, record.key)

    def _refresh(self, user: User, instrument: str) -> bool:
        """Begin the time of a lock anew; False if it is no longer this user's."""
        record = self._records.get(self._locks, instrument)
        if record is None or record.value["user"] != user.name or not self._live(record):
            return False
        until = time.time() + self._site.settings.lock_seconds
        if until - record.value["until"] > self._noted:
            try:
                self._records.put(self._locks, instrument, {**record.value, "until": until}, expect=record.version)
            except ConflictError:  # another request of the same user, or of the one who has it now
                fresh = self._records.get(self._locks, instrument)
                return fresh is not None and fresh.value["user"] == user.name
        return True

    def _live(self, record: Record) -> bool:
        return bool(record.value["until"] > time.time())

    def _waiting(self, name: str, instrument: str) -> str:
        from caldp.crdserver import submissions

        return submissions.unfinished(self._site.state, name, instrument)

    def _cancel(self, name: str, instrument: str, why: str, until: float | None = None) -> None:
        from caldp.crdserver import submissions

        # What was begun after a lock was over belongs to the next one: its user may have signed in again meanwhile.
        before = "~" if until is None else instant(until)
        while one := submissions.unfinished(self._site.state, name, instrument, before):
            submissions.cancel(self._site, one, name, why)

    def _audit(self, kind: str, who: str, why: str) -> None:
        self._site.journal.append(kind, who, why, lambda _: {})


def remaining(seconds: float) -> str:
    """Return a time that is left as people read it: ``3:57:58``."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def must_be(session: Session | None, *, operator: bool = False) -> Session:
    """Return the session; RefusedError if nobody is signed in, or somebody who may not."""
    if session is None:
        raise RefusedError("You are not signed in, or your time is over", remedy="sign in again")
    if operator and not session.user.operator:
        raise RefusedError(f"{session.user.name} is no operator", remedy="ask one")
    return session


def checked_instrument(session: Session, instrument: str) -> str:
    """Return the instrument that a session has locked; InputError if it is another one than a form says."""
    instrument = instrument.strip().lower()
    if not session.instrument:
        raise InputError("no instrument is locked", remedy="sign in again with the instrument of your files")
    if instrument not in ("", NONE, session.instrument):
        raise InputError(f"you have locked {session.instrument}, not {instrument[:40]}", remedy="submit one instrument")
    return session.instrument
