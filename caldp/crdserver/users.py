"""Who may change a CRDS: users, their roles and their tokens, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from caldp.crdserver.records import Record, Records
from caldp.errors import BusyError, ReferencesUnavailableError, UsageError
from caldp.store import ConflictError

#: A submitter delivers files; an operator also sets contexts, marks files bad and starts campaigns.
ROLES = ("submitter", "operator")

_SPACE = "users"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

#: Seconds that MAST has to say whose a token is.
_PATIENCE = 10.0


@dataclass(frozen=True)
class User:
    """Somebody who may change a CRDS.

    Attributes
    ----------
    name : str
        As it is written everywhere.
    role : str
        One of ``ROLES``.
    """

    name: str
    role: str

    @property
    def operator(self) -> bool:
        """Whether this is an operator."""
        return self.role == "operator"


def digest(secret: str) -> str:
    """Return what is kept of a secret; secrets are long and random, so that a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Users:
    """The users of a CRDS, for all its observatories.

    Parameters
    ----------
    records : Records
        Where they are.
    mast : str
        Address that is asked whose a token is that is none of ours; empty for nobody.
    """

    def __init__(self, records: Records, mast: str = "") -> None:
        self._records = records
        self._mast = mast

    def add(self, name: str, role: str) -> str:
        """Make a user, or give one another token and role.

        Parameters
        ----------
        name, role : str
            See ``User``.

        Returns
        -------
        str
            The token; nobody can read it again.

        Raises
        ------
        UsageError
            If the name or the role is none.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name[:80]!r} is no name of a user", remedy="use letters, digits, dots and dashes")
        if role not in ROLES:
            raise UsageError(f"{role!r} is no role", remedy=f"choose one of {', '.join(ROLES)}")
        token = secrets.token_hex(24)
        for _ in range(20):
            known = self._records.get(_SPACE, name)
            tokens = [*(known.value["tokens"] if known else ()), {"sha256": digest(token), "made": time.time()}]
            try:
                value = {"role": role, "tokens": tokens}
                self._records.put(_SPACE, name, value, expect=known.version if known else 0)
            except ConflictError:
                continue
            return token
        raise BusyError(f"others change {name} all the time", remedy="try it again")

    def remove(self, name: str) -> bool:
        """Take all tokens of a user back; return whether there was one. Who is signed in is so no longer."""
        known = self._records.get(_SPACE, name)
        self._records.delete(_SPACE, name)
        return known is not None

    def all(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (name, role and tokens) of all users."""
        return [(record.key, record.value) for record in self._records.scan(_SPACE)]

    def get(self, name: str, token_sha256: str) -> User | None:
        """Return the user whose token has this hash, if that is still so."""
        known = self._records.get(_SPACE, name) if _NAME.fullmatch(name) else None
        if known is None:
            return None
        if token_sha256.startswith("mast:") and self._mast:
            return User(name, known.value["role"])
        return User(name, known.value["role"]) if _among(token_sha256, known) else None

    def identify(self, name: str, token: str) -> tuple[User, str] | None:
        """Return the user of a name and a token, and what to remember of the token; None if they do not fit.

        Raises
        ------
        ReferencesUnavailableError
            If MAST must be asked, and does not answer.
        """
        known = self._records.get(_SPACE, name) if _NAME.fullmatch(name) else None
        if known is None or not token:
            return None
        if _among(digest(token), known):
            return User(name, known.value["role"]), digest(token)
        if self._mast and self._ask_mast(token) == name.lower():
            return User(name, known.value["role"]), f"mast:{digest(token)}"
        return None

    def _ask_mast(self, token: str) -> str:
        """Ask MAST whose a token is; empty if it is nobody's."""
        import requests

        try:
            reply = requests.get(self._mast, headers={"Authorization": f"token {token}"}, timeout=_PATIENCE)
            said = reply.json() if reply.ok else {}
        except (requests.RequestException, ValueError) as error:
            # Not the error itself: it may hold what was sent.
            raise ReferencesUnavailableError(
                f"{self._mast} does not say whose this token is ({type(error).__name__})", remedy="try it again later"
            ) from None
        if not isinstance(said, dict) or said.get("anon", True):
            return ""
        # Other institutions may have somebody of the same name: it counts with theirs, which no user has here.
        return str(said.get("ezid") or str(said.get("eppn", "")).removesuffix("@stsci.edu")).lower()


def _among(token_sha256: str, known: Record) -> bool:
    return any([hmac.compare_digest(token_sha256, one["sha256"]) for one in known.value["tokens"]])
