"""What a CRDS is after a number of events: its catalogue, its contexts, its deliveries.  Pure.

=================== ===========================================================================
kind of event       what it changes
=================== ===========================================================================
``imported``        files of another CRDS, its contexts and their history
``reserved``        names that nobody else may use
``submitted``       a submission begins; it names its instrument, files and form
``ready``           it was certified and has rules: it waits for a person
``bad files``       it was refused by certify; ``failed``: it could not be worked on
``cancelled``       its person, or the end of the lock, took it back
``confirmed``       its files are in the catalogue, its context is the one to derive from
``archived``        the archive has its files, or says that it has not
``set context``     another context is the default one
``edit context``    another context is the one to derive from
``bad`` ``good``    files that nobody should use, and that one may use again
``signed in`` etc.  nothing: who did what, for people
=================== ===========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caldp.crdserver.journal import Event

#: A row of the catalogue: what is known of a file, without what goes without saying.
Row = dict[str, Any]

#: Files in one of these states may be had by anybody.
AVAILABLE = ("archived", "operational")

#: A submission in one of these states is over.
OVER = ("bad files", "failed", "cancelled", "confirmed", "checked")

_PMAP = re.compile(r"\w+_(\d+)\.pmap")


@dataclass(frozen=True)
class State:
    """The sum of the first ``seq`` events; nothing in it is ever changed.

    Attributes
    ----------
    observatory : str
        ``hst`` or ``jwst``.
    seq : int
        Events that are in it.
    at : str
        When the last one was.
    files : dict
        {name: row}; a row has ``size``, ``sha1``, ``type`` (mapping or reference), ``instrument``, ``filekind``,
        ``state`` and more.
    latest, edit : str
        The default context, and the one from which new ones are derived.
    history : tuple of tuple
        (when, context, why) of every default context, oldest first.
    reserved : dict
        {name: submission} that were given out, whether or not there is such a file now.
    submissions : dict
        {id: what is known of it}.
    """

    observatory: str
    seq: int = 0
    at: str = ""
    files: dict[str, Row] = field(default_factory=dict)
    latest: str = ""
    edit: str = ""
    history: tuple[tuple[str, str, str], ...] = ()
    reserved: dict[str, str] = field(default_factory=dict)
    submissions: dict[str, dict[str, Any]] = field(default_factory=dict)

    # ---- questions

    @property
    def contexts(self) -> list[str]:
        """All contexts, oldest first."""
        return sorted(
            (n for n, row in self.files.items() if n.endswith(".pmap") and row["type"] == "mapping"), key=serial
        )

    @property
    def bad_files(self) -> list[str]:
        """Names of the files that nobody should use."""
        return sorted(name for name, row in self.files.items() if row.get("bad"))

    def taken(self, name: str) -> bool:
        """Whether a name has been given out."""
        return name in self.files or name in self.reserved

    def context_at(self, date: str) -> str:
        """Return the default context of a date, as ISO text; empty before the first."""
        before = [context for when, context, _ in sorted(self.history) if when <= date]
        return before[-1] if before else ""

    # ---- change

    def after(self, event: Event, read: Callable[[str], Any]) -> State:
        """Return the state after an event.

        Parameters
        ----------
        event : Event
            The next one.
        read : callable
            Given the key of what was too long for an event; returns it.

        Returns
        -------
        State
        """
        change = _CHANGES.get(event.kind)
        return replace(change(self, event, read) if change else self, seq=event.seq, at=event.at)

    # ---- as JSON

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """Make one of its JSON form."""
        history = tuple((str(a), str(b), str(c)) for a, b, c in value["history"])
        return cls(**{**value, "history": history})


def serial(name: str) -> int:
    """Return the number of a context; -1 if it has none."""
    match = _PMAP.fullmatch(name)
    return int(match[1]) if match else -1


def _imported(state: State, event: Event, read: Callable[[str], Any]) -> State:
    brought = read(event.data["object"])
    files = {**state.files}
    for name, row in brought["files"].items():
        # What was found bad here stays so, unless this is the like of another CRDS, which knows best.
        stays = {} if event.data.get("exactly") or not files.get(name, {}).get("bad") else {"bad": files[name]["bad"]}
        files[name] = {**row, **stays}
    return replace(
        state,
        files=files,
        latest=brought["latest"],
        edit=brought["edit"],
        history=tuple(sorted({*state.history, *((str(a), str(b), str(c)) for a, b, c in brought["history"])})),
    )


def _reserved(state: State, event: Event, _: Callable[[str], Any]) -> State:
    given = dict.fromkeys(event.data["names"], event.data["submission"])
    return replace(state, reserved=state.reserved | given)


def _submission(state: State, event: Event, _: Callable[[str], Any]) -> State:
    data = dict(event.data)
    one = data.pop("submission")
    known = state.submissions.get(one, {"by": event.who, "at": event.at})
    what = {"submitted": "started"}.get(event.kind, event.kind)
    changed = {**known, **data, "state": what, "why": event.why, "changed": event.at}
    return replace(state, submissions=state.submissions | {one: changed})


def _confirmed(state: State, event: Event, read: Callable[[str], Any]) -> State:
    state = _submission(state, event, read)
    rows = read(event.data["rows"])
    files = {**state.files, **rows}
    for name, row in rows.items():
        for old in row.get("replaces", ()):
            if old in files:
                files[old] = {**files[old], "replaced_by": name}
    return replace(state, files=files, edit=event.data.get("context") or state.edit)


def _archived(state: State, event: Event, read: Callable[[str], Any]) -> State:
    states: dict[str, str] = event.data["states"]
    files = {**state.files}
    for name, now_in in states.items():
        if name in files:
            files[name] = {**files[name], "state": now_in}
    one = event.data["submission"]
    known = state.submissions.get(one, {})
    submissions = state.submissions | {one: {**known, "archive": event.data["archive"], "changed": event.at}}
    return replace(state, files=files, submissions=submissions)


def _set_context(state: State, event: Event, _: Callable[[str], Any]) -> State:
    row = (event.at.replace("T", " ").rstrip("Z"), event.data["context"], event.why)
    return replace(state, latest=event.data["context"], history=(*state.history, row))


def _edit_context(state: State, event: Event, _: Callable[[str], Any]) -> State:
    return replace(state, edit=event.data["context"])


def _marked(state: State, event: Event, _: Callable[[str], Any]) -> State:
    files = {**state.files}
    for name in event.data["files"]:
        row = {k: v for k, v in files[name].items() if k != "bad"}
        files[name] = row | ({"bad": event.why} if event.kind == "bad" else {})
    return replace(state, files=files)


_CHANGES: dict[str, Callable[[State, Event, Callable[[str], Any]], State]] = {
    "imported": _imported,
    "reserved": _reserved,
    **dict.fromkeys(("submitted", "ready", "bad files", "failed", "cancelled", "checked"), _submission),
    "confirmed": _confirmed,
    "archived": _archived,
    "set context": _set_context,
    "edit context": _edit_context,
    **dict.fromkeys(("bad", "good"), _marked),
}
