"""What operators do to the datasets of a campaign: stop them, try them again, remove what they have left behind.

Nobody comes here but a person who names a batch and says which of its datasets: by their whole names, or by how they
stand.  No list or event can.  What cannot be undone is shown first; the token of what was shown has it carried out, on
those datasets and no other, each only if it still is as it was shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from caldp import messages
from caldp.batch import in_threads
from caldp.campaign import lists, progress, settings, transitions
from caldp.campaign.accept import observations_of
from caldp.campaign.control import (
    FOLDED,
    LOGS,
    RESULTS,
    SUBMITTED,
    Control,
    log_key,
    manifest_key,
    stream_key,
    who,
)
from caldp.campaign.failures import ROWS
from caldp.campaign.jobs import Jobs, is_alive
from caldp.campaign.lists import Options, Override
from caldp.campaign.plan import Observations, plan
from caldp.campaign.settings import Settings
from caldp.campaign.shards import Line, parse_jsonl
from caldp.campaign.submit import NOTHING, read_claim
from caldp.campaign.transitions import Move
from caldp.dataset import INSTRUMENT_LETTERS, Dataset
from caldp.errors import BusyError, CaldpError, OutputError, UsageError
from caldp.manifest import read_manifest
from caldp.messages import STATES, Claim, Status
from caldp.reporter import human_count, printable
from caldp.store import Overwrite, Store, parse_uri

#: What an operator can have done.
VERBS = ("cancel", "rescue", "clean")

#: What selectors may name: folders under ``data/``, and classes of failures.
INSTRUMENTS = (*sorted(INSTRUMENT_LETTERS.values()), "mvm")
CLASSES = tuple(dict.fromkeys(row.cause for row in ROWS if row.action not in ("ignore", "history", "processed")))

#: What AWS Batch is told of a job that is ended; see ``failures.ROWS``.
REASON = "Operator cancelled"

#: Class of a dataset of which nothing is left but its status.
CLEANED = "cleaned"

#: Datasets that an audit line names; of more it has the number and a hash.
NAMED = 1000

#: Lines of a list that a person is shown, and names in a message.
_LINES, _EXAMPLES = 20, 3

_OPEN = ("placed", "submitted", "processing")

#: How often a status that changes all the time is looked at.
_TRIES = 100

_SHOWN = "control/shown"

#: Hands datasets over that are to be submitted again: ``{"output", "dataset", "attempt", "due"}`` each.
Send = Callable[[Sequence[Mapping[str, Any]]], None]


# ---- which datasets


@dataclass(frozen=True)
class Selector:
    """Which datasets of a campaign: those that all of it is true of.

    Attributes
    ----------
    datasets : tuple of str
        Their names; empty for all of the campaign.
    states, causes, instruments : frozenset of str
        Only those in these states, with failures of these classes, of these instruments; empty for any.
    everything : bool
        Whether all of the campaign was asked for in so many words.
    """

    datasets: tuple[str, ...] = ()
    states: frozenset[str] = frozenset()
    causes: frozenset[str] = frozenset()
    instruments: frozenset[str] = frozenset()
    everything: bool = False

    def __post_init__(self) -> None:
        remedy = "name them, or give @FILE, --state, --class, --instrument or --all"
        if not (self.datasets or self.states or self.causes or self.instruments or self.everything):
            raise UsageError("no datasets are selected", remedy=remedy)
        if self.datasets and self.everything:
            raise UsageError("datasets are named, and --all is given", remedy="give one of them")
        for name in self.datasets:
            if Dataset.parse(name).name != name:
                raise UsageError(f"{name!r} is not an HST dataset name", remedy="write it in lower case")
        known = (("state", self.states, STATES), ("class", self.causes, CLASSES))
        for what, given, there in (*known, ("instrument", self.instruments, INSTRUMENTS)):
            if strange := sorted(given - set(there)):
                raise UsageError(f"there is no {what} {strange[0]!r}", remedy=f"give one of {', '.join(there)}")

    @classmethod
    def of(
        cls,
        arguments: Iterable[str],
        states: Iterable[str] = (),
        causes: Iterable[str] = (),
        instruments: Iterable[str] = (),
        everything: bool = False,
    ) -> Selector:
        """Read a selector from a command line.

        Parameters
        ----------
        arguments : iterable of str
            Names of datasets, whole, in upper or lower case; or ``@file``, a list in any form of
            ``caldp.campaign.lists``.
        states, causes, instruments, everything
            As the attributes.

        Returns
        -------
        Selector

        Raises
        ------
        UsageError
            If it selects nothing, a name is none, or a file cannot be read, or has anything in it that is no dataset.
        """
        names: dict[str, None] = {}
        for argument in arguments:
            found = _listed(argument[1:]) if argument.startswith("@") else (Dataset.parse(argument).name,)
            names |= dict.fromkeys(found)
        chosen = (frozenset(states), frozenset(causes), frozenset(instruments))
        return cls(tuple(sorted(names)), *chosen, everything=everything)

    @property
    def by_name(self) -> bool:
        """Whether every dataset of it was named."""
        return bool(self.datasets)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without names."""
        said = {"states": sorted(self.states), "causes": sorted(self.causes), "instruments": sorted(self.instruments)}
        return {"named": len(self.datasets), "all": self.everything, **said}


def _listed(text: str) -> tuple[str, ...]:
    path = Path(text).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"@{text} cannot be read ({error.strerror})", remedy="give a list of datasets") from error
    found = lists.read(data, path.name)
    if found.rejected:
        names = "; ".join(str(entry) for entry in found.rejected[:_EXAMPLES])
        raise UsageError(
            f"{path}: {len(found.rejected):,} entries are no datasets: {names}", remedy="take them out of the list"
        )
    return found.datasets


@dataclass(frozen=True)
class Order:
    """What is to be done to the datasets.

    Attributes
    ----------
    verb : str
        One of ``VERBS``.
    why : str
        Recorded.
    rung : str
        For ``rescue``: step of the memory ladder, instead of the planned one.
    timeout_scale : float
        For ``rescue``: multiplies the time limit; 0 leaves it as planned.
    discard : bool
        For ``clean``: also datasets whose products were not archived.
    """

    verb: str
    why: str = ""
    rung: str = ""
    timeout_scale: float = 0.0
    discard: bool = False

    def options(self) -> dict[str, Any]:
        """Return what makes it another order."""
        given = {"rung": self.rung, "timeout_scale": self.timeout_scale, "discard": self.discard}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Target:
    """A dataset, as it stood when it was selected.

    Attributes
    ----------
    dataset : str
        Its name.
    attempt : int
        1, 2, ...
    state : str
        A key of ``STATES``.
    cause : str
        Class of the failure that ended the attempt, or led to it; empty for one that was processed.
    status : Status
        All that is known of it.
    line : Line or None
        What was planned, as far as that had to be read.
    """

    dataset: str
    attempt: int
    state: str
    cause: str
    status: Status = field(compare=False, repr=False)
    line: Line | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, dataset: str, line: Line | None, status: Status | None) -> Target:
        """Return how a dataset stands in its campaign, which may not have begun with it yet."""
        if status is None or not status.rung or (line is not None and status.attempt < line.attempt):
            if line is None:
                raise OutputError(f"{dataset}: it has no status any more", remedy="reconcile the campaign")
            status = Status(dataset, line.attempt, "placed", rung=line.rung, time_limit=line.time_limit)
        cause = "" if status.done else status.cause
        return cls(dataset, status.attempt, status.state, cause, status, line)

    @property
    def open(self) -> bool:
        """Whether something may still happen to it by itself: an error that was not judged may be tried again."""
        return self.state in _OPEN or (self.state == "error" and not self.cause)

    def __str__(self) -> str:
        why = printable(self.status.reason)
        cause = f", {self.cause}" if self.cause and self.cause != self.state else ""
        return f"{self.dataset}  {self.state}, attempt {self.attempt}{cause}" + (f"  ({why})" if why else "")


@dataclass(frozen=True)
class Left:
    """A dataset that is left as it is, and why."""

    dataset: str
    why: str

    def __str__(self) -> str:
        return f"{self.dataset}: {self.why}"


@dataclass(frozen=True)
class Resolved:
    """The datasets that an order is about.

    Attributes
    ----------
    order : Order
    selector : Selector
    batch : str
        URI of the batch.
    targets : tuple of Target
        To be worked off, by dataset.
    left : tuple of Left
        Selected, but as they stand that cannot be done to them; only those that were named, or are damaged.
    others : mapping
        How many more were selected that are not to be touched, by state.
    """

    order: Order
    selector: Selector
    batch: str
    targets: tuple[Target, ...]
    left: tuple[Left, ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def must_be_confirmed(self) -> bool:
        """Whether it needs its token: all but trying datasets again that were named."""
        return bool(self.targets) and not (self.order.verb == "rescue" and self.selector.by_name)

    @property
    def token(self) -> str:
        """What stands for exactly this list and order."""
        return _token(self.order, self.batch, self._entries())

    def _entries(self) -> list[list[Any]]:
        return [[target.dataset, target.attempt, _seen(self.order, target)] for target in self.targets]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        keys = ("dataset", "attempt", "state", "cause")
        return {
            "verb": self.order.verb,
            "batch": self.batch,
            "options": self.order.options(),
            "token": self.token if self.must_be_confirmed else "",
            "datasets": [{key: getattr(target, key) for key in keys} for target in self.targets],
            "left": [asdict(left) for left in self.left],
            "others": dict(self.others),
        }

    def __str__(self) -> str:
        options = [f"{name} {value}" for name, value in self._said().items()]
        lines = [
            f"{self.order.verb}: {human_count(len(self.targets), 'dataset')} of {self.batch}",
            *(f"  {text}" for text in options),
        ]
        table: dict[str, Counter[str]] = {}
        for target in self.targets:
            table.setdefault(target.state, Counter())[Dataset.parse(target.dataset).instrument] += 1
        for state in (state for state in STATES if state in table):
            by_instrument = "  ".join(f"{name} {count:,}" for name, count in sorted(table[state].items()))
            lines.append(f"  {state:<10} {table[state].total():>9,}  {by_instrument}")
        lines += [f"    {target}" for target in self.targets[:_LINES]]
        more = len(self.targets) - _LINES
        lines += [f"    ... and {more:,} more (see --json)"] if more > 0 else []
        if kept := ", ".join(f"{count:,} {state}" for state, count in self.others.items() if count):
            lines.append(f"not to be touched: {kept}")
        return "\n".join(lines)

    def _said(self) -> dict[str, str]:
        order = self.order
        said = {"memory rung": order.rung, "time limits x": f"{order.timeout_scale:g}" if order.timeout_scale else ""}
        if order.discard:
            said["their products are lost,"] = "whether they were archived or not"
        return {name: value for name, value in said.items() if value}


def _seen(order: Order, target: Target) -> str:
    """Return what of a state counts: who stops datasets means those that are open, however far they have come."""
    return "open" if order.verb == "cancel" and target.open else target.state


def _token(order: Order, batch: str, entries: Sequence[Sequence[Any]]) -> str:
    body = json.dumps([order.verb, order.options(), batch, entries], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def resolve(control: Control, order: Order, selector: Selector) -> Resolved:
    """Find the datasets that an order is about; nothing is changed.

    Parameters
    ----------
    control : Control
        The campaign.
    order : Order
        What is to be done.
    selector : Selector
        To which.

    Returns
    -------
    Resolved

    Raises
    ------
    UsageError
        If there is no campaign, it has no such rung, or it does not know a dataset that is named.
    S3DownloadError
        If S3 does not answer, or refuses.
    """
    if order.verb not in VERBS:
        raise UsageError(f"{order.verb!r} is nothing that can be done", remedy=f"give one of {', '.join(VERBS)}")
    control.plan()
    if order.rung:
        settings.from_json(control.request()["settings"]).rung(order.rung)
    found, others = _named(control, selector) if selector.by_name else _of_all(control, order, selector)
    published = _published(control, found) if order.verb == "clean" and not order.discard else {}
    targets, left = [], []
    for dataset, target in found:
        if isinstance(target, CaldpError):
            left.append(Left(dataset, target.message.removeprefix(f"{dataset}: ")))
        elif _is_selected(selector, target):
            why = _objection(order, selector, target)
            if not why and dataset in published:
                why = f"its products of attempt {published[dataset]} would be lost, see --discard-products"
            if not why:
                targets.append(target)
            elif selector.by_name:
                left.append(Left(dataset, why))
            else:
                others[target.state] += 1
    shown = {state: others[state] for state in STATES if others[state]}
    return Resolved(order, selector, control.store.uri, tuple(targets), tuple(left), shown)


_Found = list[tuple[str, Target | CaldpError]]


def _named(control: Control, selector: Selector) -> tuple[_Found, Counter[str]]:
    """Look at datasets that were named; each must be the campaign's."""
    names = sorted(set(selector.datasets))
    statuses = list(in_threads(lambda name: _status(control.store, name), names))
    lines: Mapping[str, Line] = {}
    if any(status is None or (isinstance(status, Status) and not status.rung) for status in statuses):
        lines = progress.take_stock(control).lines
    found: list[tuple[str, Target | CaldpError]] = []
    unknown = []
    for name, status in zip(names, statuses, strict=True):
        if isinstance(status, CaldpError):
            found.append((name, status))
        elif name in lines or (status is not None and status.rung):
            found.append((name, Target.of(name, lines.get(name), status)))
        else:
            unknown.append(name)
    if unknown:
        examples = ", ".join(unknown[:_EXAMPLES]) + (" ..." if len(unknown) > _EXAMPLES else "")
        what = "it" if len(unknown) == 1 else f"these {len(unknown):,}"
        raise UsageError(
            f"{examples}: the campaign of {control.store.url()} does not know {what}; nothing was done",
            remedy="check the names and the batch",
        )
    return found, Counter()


def _of_all(control: Control, order: Order, selector: Selector) -> tuple[_Found, Counter[str]]:
    """Look at those datasets of the campaign that may be meant, as far as the folders tell."""
    stock = progress.take_stock(control)
    possible = {
        "cancel": {*_OPEN, "error", *(selector.states & {"cancelled"})},
        "rescue": {"error", "cancelled", *(selector.states & {"placed"})},
        "clean": {"error", "cancelled", "archived", *(("processed", "synced") if order.discard else ())},
    }[order.verb]
    wanted = possible & selector.states if selector.states else possible
    others: Counter[str] = Counter()
    names = []
    for name in sorted(stock.lines):
        if selector.instruments and Dataset.parse(name).instrument not in selector.instruments:
            continue
        if name in stock.doubtful or wanted.intersection(stock.folders.get(name, ("placed",))):
            names.append(name)
        elif not selector.causes and (not selector.states or stock.listed(name) in selector.states):
            others[stock.listed(name)] += 1

    def look(name: str) -> tuple[str, Target | CaldpError]:
        status = _status(control.store, name)
        return name, status if isinstance(status, CaldpError) else Target.of(name, stock.lines[name], status)

    return list(in_threads(look, names)), others


def _status(store: Store, dataset: str) -> Status | None | CaldpError:
    """Read a status; a damaged one is the error that says so."""
    try:
        status = messages.read(store, dataset)
    except OutputError as error:
        return error
    if status is not None and status.dataset != dataset:
        return OutputError(f"{dataset}: its status record is that of {status.dataset!r}", remedy="repair it")
    return status


def _is_selected(selector: Selector, target: Target) -> bool:
    return (
        (not selector.states or target.state in selector.states)
        and (not selector.causes or target.cause in selector.causes)
        and (not selector.instruments or Dataset.parse(target.dataset).instrument in selector.instruments)
    )


def _objection(order: Order, selector: Selector, target: Target) -> str:
    """Say why an order cannot be carried out on a dataset as it stands; nothing if it can."""
    state = target.state
    asked_for = selector.by_name or state in selector.states
    if order.verb == "cancel":
        # What was cancelled before may have a job that could not be ended then.
        return "" if target.open or (state == "cancelled" and asked_for) else f"it is {state}"
    if order.verb == "rescue":
        # What was placed before may not have come to the queue then.
        fine = state in ("error", "cancelled") or (_waits(target) and asked_for)
        return "" if fine else f"it is {state}" + (": cancel it first" if state in _OPEN else "")
    if state in ("processed", "synced"):
        return "" if order.discard else f"it is {state}: its products would be lost, see --discard-products"
    if state == "cancelled" and target.cause == CLEANED and not asked_for:
        return "it was cleaned"
    return "" if state in ("error", "cancelled", "archived") else f"it is {state}: cancel it first"


def _published(control: Control, found: _Found) -> dict[str, int]:
    """Return the attempts whose products those datasets have that failed, or were cancelled, after these."""
    names = [name for name, target in found if isinstance(target, Target) and target.state in ("error", "cancelled")]
    manifests = in_threads(lambda name: read_manifest(control.store, Dataset.parse(name).prefix), names)
    return {name: manifest.attempt for name, manifest in zip(names, manifests, strict=True) if manifest is not None}


def _waits(target: Target) -> bool:
    """Whether a dataset is to be tried again, and part of no shard yet."""
    return target.state == "placed" and target.attempt > 1 and not target.status.shard


# ---- confirming


def remember(control: Control, resolved: Resolved) -> None:
    """Keep the list that somebody was shown of what is to be stopped; see ``is_confirmed``."""
    if resolved.order.verb == "cancel" and resolved.targets:
        body = json.dumps(resolved._entries()).encode()
        control.store.put(f"{_SHOWN}/{resolved.token}.json", body, Overwrite())


def is_confirmed(control: Control, resolved: Resolved, token: str) -> bool:
    """Say whether a token is that of a list.

    Parameters
    ----------
    control : Control
        The campaign.
    resolved : Resolved
        The list, as it is now.
    token : str
        As it was shown.

    Returns
    -------
    bool
        Of a list to be stopped it may also be the token of a longer one: while a campaign runs, datasets come to
        their end by themselves, and some are tried again.  No dataset that was not shown is ever confirmed.
    """
    if not resolved.must_be_confirmed or token == resolved.token:
        return True
    if resolved.order.verb != "cancel" or not re.fullmatch(r"[0-9a-f]{12}", token):
        return False
    blob = control.store.get(f"{_SHOWN}/{token}.json")
    try:
        entries = json.loads(blob.data) if blob else []
        was_shown = bool(entries) and _token(resolved.order, resolved.batch, entries) == token
        return was_shown and {target.dataset for target in resolved.targets} <= {entry[0] for entry in entries}
    except (ValueError, TypeError, IndexError):
        return False


# ---- doing it


@dataclass
class Outcome:
    """What an order came to.

    Attributes
    ----------
    verb : str
    done : list of str
        Datasets that it was carried out on.
    left : list of Left
        Datasets that are as they were, and why.
    jobs : int
        Jobs of AWS Batch that were ended.
    objects, size : int
        What was removed, and its bytes.
    """

    verb: str
    done: list[str] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    jobs: int = 0
    objects: int = 0
    size: int = 0

    @property
    def exit_status(self) -> int:
        """0, or 1 if datasets were left as they are."""
        return 1 if self.left else 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "exit_status": self.exit_status}

    def __str__(self) -> str:
        word = {"cancel": "cancelled", "rescue": "placed again", "clean": "cleaned"}[self.verb]
        text = f"{human_count(len(self.done), 'dataset')} {word}"
        if self.jobs:
            text += f", {human_count(self.jobs, 'job')} ended"
        if self.objects:
            text += f", {self.objects:,} objects removed ({self.size / 1e6:,.1f} MB)"
        if self.left:
            text += (
                f"; {human_count(len(self.left), 'dataset')} left as {'it is' if len(self.left) == 1 else 'they are'}"
            )
        return text


def carry_out(
    control: Control, resolved: Resolved, token: str = "", jobs: Jobs | None = None, send: Send | None = None
) -> Outcome:
    """Do what was ordered, to the datasets that were resolved, each only if it still is as it was then.

    Parameters
    ----------
    control : Control
        The campaign.
    resolved : Resolved
        As ``resolve`` returned it.
    token : str, optional
        What confirms it.
    jobs : Jobs, optional
        Those of AWS Batch, where the campaign runs there.
    send : callable, optional
        Hands over datasets that are to be submitted again, where somebody else does so.

    Returns
    -------
    Outcome

    Raises
    ------
    UsageError
        If it is not confirmed: nothing was done.
    CaldpError
        If AWS Batch does not let jobs be ended: the datasets are cancelled all the same.
    S3UploadError, S3DownloadError
        If S3 does not answer, or refuses.  It may be ordered again.
    """
    if not is_confirmed(control, resolved, token):
        raise UsageError("the list is another one than was confirmed; nothing was done", remedy="look at it again")
    if not resolved.targets:
        return Outcome(resolved.order.verb, left=list(resolved.left))
    names = [target.dataset for target in resolved.targets]
    listed: dict[str, Any] = {"datasets": names}
    if len(names) > NAMED:
        listed = {"sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}
    selected, options = resolved.selector.to_json(), resolved.order.options()
    # Before anything is done: who is killed on the way has been here all the same.
    control.audit(
        resolved.order.verb,
        resolved.order.why,
        token=token if resolved.must_be_confirmed else "",
        selected=selected,
        options=options,
        count=len(names),
        **listed,
    )
    outcome = Outcome(resolved.order.verb, left=list(resolved.left))
    worker = _Worker(control, resolved.order, outcome)
    if resolved.order.verb == "cancel":
        worker.cancel(resolved.targets, jobs)
        control.store.delete(f"{_SHOWN}/{resolved.token}.json", *([f"{_SHOWN}/{token}.json"] if token else []))
    elif resolved.order.verb == "rescue":
        worker.rescue(resolved.targets, send)
    else:
        worker.clean(resolved.targets, jobs)
    return outcome


class _Worker:
    """Carries out one order."""

    def __init__(self, control: Control, order: Order, outcome: Outcome) -> None:
        self.control, self.store, self.order, self.outcome = control, control.store, order, outcome
        self.by, self._lock = who(), threading.Lock()
        words = {"cancel": "cancelled", "rescue": "rescued", "clean": "cleaned"}
        self.reason = f"{words[order.verb]} by {self.by}" + (f": {order.why}" if order.why else "")

    def _do(self, act: Callable[[Target], Status], targets: Iterable[Target]) -> Iterator[Status]:
        """Do something to datasets, many at a time, and enter what became of each."""

        def attempt(target: Target) -> Status | Left:
            try:
                return act(target)
            except _LeftError as error:
                return Left(target.dataset, str(error))
            except (OutputError, BusyError) as error:
                return Left(target.dataset, error.message.removeprefix(f"{target.dataset}: "))

        for result in in_threads(attempt, targets):
            if isinstance(result, Left):
                self.outcome.left.append(result)
            else:
                self.outcome.done.append(result.dataset)
                yield result

    def _now(self, target: Target) -> tuple[Target, Status | None]:
        """Look at a dataset again; it must be as it was when it was selected."""
        status = messages.read(self.store, target.dataset)
        now = Target.of(target.dataset, target.line, status)
        was = (target.attempt, _seen(self.order, target))
        if (now.attempt, _seen(self.order, now)) != was:
            raise _LeftError(f"it is {now.state} (attempt {now.attempt}) by now")
        return now, status

    def _move(self, target: Target, following: Callable[[Target], Status]) -> Status:
        """Move a dataset on from where it was when it was selected."""
        for _ in range(_TRIES):
            now, seen = self._now(target)
            wanted = replace(following(now), reason=self.reason, by=self.by, at="", history=())
            stored = transitions.apply(self.store, Move(wanted, seen=seen))
            if stored is not None and (stored.order, stored.by, stored.reason) == (wanted.order, self.by, self.reason):
                return stored
        raise _LeftError("its status changes whenever it is looked at")

    # ---- cancel

    def cancel(self, targets: Iterable[Target], jobs: Jobs | None) -> None:
        """Let datasets go no further; their jobs are ended when all of them say so."""
        stopped = list(self._do(self._cancel, targets))
        if jobs is None or not stopped:
            return
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            ids = _Children(self.control, jobs).ids(stopped)
            for _ in in_threads(lambda job: jobs.terminate(job, REASON), ids):
                self.outcome.jobs += 1
        except (BotoCoreError, ClientError) as error:
            count = human_count(len(stopped), "dataset")
            raise CaldpError(
                f"{count} cancelled, but AWS Batch does not let their jobs be ended ({error})",
                remedy="check the credentials (batch:DescribeJobs, batch:TerminateJob), and cancel those with "
                "--state cancelled again",
            ) from error

    def _cancel(self, target: Target) -> Status:
        if target.state == "cancelled":
            return self._now(target)[0].status

        def following(now: Target) -> Status:
            return replace(now.status, state="cancelled", exit_code=None, cause="cancelled", beat="", message="")

        return self._move(target, following)

    # ---- rescue

    def rescue(self, targets: Sequence[Target], send: Send | None) -> None:
        """Place the next attempt of datasets; whoever submits them is told, also of those before a failure."""
        request = self.control.request()
        figures, options = settings.from_json(request["settings"]), Options.from_json(request["options"])
        observations = observations_of(self.store)
        placed: list[Status] = []
        try:
            for status in self._do(lambda target: self._rescue(target, figures, options, observations), targets):
                placed.append(status)
        finally:
            if placed:
                self.control.reopen()
                self.store.delete(FOLDED)  # what they use now is yet to be seen
            if send is not None and placed:
                due = datetime.now(UTC).isoformat(timespec="seconds")
                known = {"output": self.store.uri, "due": due}
                send([{**known, "dataset": status.dataset, "attempt": status.attempt} for status in placed])

    def _rescue(self, target: Target, figures: Settings, options: Options, observations: Observations) -> Status:
        if target.state == "placed":
            return self._now(target)[0].status

        def following(now: Target) -> Status:
            rung, limit = self._given(now.status, figures, options, observations)
            return Status(now.dataset, now.attempt + 1, "placed", rung=rung, time_limit=limit)

        return self._move(target, following)

    def _given(
        self, status: Status, figures: Settings, options: Options, observations: Observations
    ) -> tuple[str, int]:
        """Return memory rung and time limit of the next attempt: as planned, and no less than the last one had."""
        asked = self.order.rung
        try:
            line = plan(status.dataset, figures, options, observations, Override(asked), after=status)
        except UsageError as error:  # it needs more than the ladder has
            if not asked:
                raise _LeftError(error.message.removeprefix(f"{status.dataset}: ")) from error
            line = plan(status.dataset, figures, options, observations, Override(asked))
        had = next((rung for rung in figures.rungs if rung.name == status.rung), figures.rungs[0])
        rung = figures.rung(asked) if asked else max(figures.rung(line.rung), had, key=lambda rung: rung.memory)
        limit = max(line.time_limit, status.time_limit)
        if self.order.timeout_scale:
            limit = figures.time_limit((status.time_limit or limit) * self.order.timeout_scale)
        return rung.name, limit

    # ---- clean

    def clean(self, targets: Iterable[Target], jobs: Jobs | None) -> None:
        """Remove what datasets have left: products, messages, results, logs; not their status."""
        targets = list(targets)
        alive: set[str] = set()
        if jobs is not None:
            found = jobs.describe(t.status.job for t in targets if t.state == "cancelled" and t.status.job)
            alive = {job for job, record in found.items() if is_alive(record)}
        for _ in self._do(lambda target: self._clean(target, alive, jobs is not None), targets):
            pass

    def _clean(self, target: Target, alive: Collection[str], told: bool) -> Status:
        with self.store.own(target.dataset):  # in a folder that is how one knows that no run has it
            now, _ = self._now(target)
            self._check_at_rest(now, alive, told)
            prefixes = (Dataset.parse(target.dataset).prefix, f"{LOGS}/{target.dataset}", f"{RESULTS}/{target.dataset}")
            for folder in (_path(self.store, prefix) for prefix in prefixes):
                if folder is not None and folder.is_symlink():
                    raise _LeftError(f"{folder} is a link: remove it yourself")
            self.store.prepare(prefixes[0])
            # The status first, and another attempt: whoever may still be writing cannot publish any more.
            stored = self._move(target, lambda now: _emptied(now.status))
            for prefix in prefixes:
                self._remove(prefix)
            messages.amend(self.store, replace(stored, cause=CLEANED))
        return stored

    def _check_at_rest(self, now: Target, alive: Collection[str], told: bool) -> None:
        """Refuse a dataset that was cancelled a moment ago, and whose run may not have heard of it."""
        status = now.status
        if now.state != "cancelled" or not status.run or self.store.exclusive:
            return
        if status.job in alive:
            raise _LeftError("its job is still running: try again when it has ended")
        silence = messages.silence(self.store, status)
        if not (told and status.job) and silence < Claim.patience:
            raise _LeftError(f"its run may be alive: try again in {Claim.patience - silence:.0f} s")

    def _remove(self, prefix: str) -> None:
        """Remove all objects below exactly this folder."""
        entries = [entry for entry in self.store.walk(prefix) if entry.key.startswith(f"{prefix}/")]
        if entries:
            self.store.delete(*(entry.key for entry in entries))
        with self._lock:
            self.outcome.objects += len(entries)
            self.outcome.size += sum(entry.size for entry in entries)
        if (folder := _path(self.store, prefix)) is not None:
            for name, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):  # not empty
                    Path(name).rmdir()


class _LeftError(Exception):
    """A dataset is left as it is; says why."""


def _emptied(status: Status) -> Status:
    """Return what a dataset comes to that is cleaned; what is still cleaned of it may be cleaned again."""
    return Status(
        status.dataset,
        status.attempt + 1,
        "cancelled",
        rung=status.rung,
        time_limit=status.time_limit,
        cause="cancelled",
    )


def _path(store: Store, key: str) -> Path | None:
    """Return where something is in a folder; None elsewhere."""
    return Path(parse_uri(store.uri)[1]) / key if store.uri.startswith("file:") else None


class _Children:
    """Finds the jobs of datasets: of one that has begun its status tells, of others the claim of their shard."""

    def __init__(self, control: Control, jobs: Jobs) -> None:
        self._control, self._store, self._jobs = control, control.store, jobs

    def ids(self, statuses: Iterable[Status]) -> list[str]:
        """Return the ids of jobs to end; of an array of which nobody else is left, that of the array."""
        statuses = list(statuses)
        found = {status.job for status in statuses if status.job}
        shards: dict[str, list[Status]] = {}
        for status in statuses:
            if status.shard:
                shards.setdefault(status.shard, []).append(status)
        claims = zip(shards, in_threads(lambda shard: read_claim(self._store, shard)[0], shards), strict=True)
        parents = {claim["job"]: shard for shard, claim in claims if claim and claim["job"] not in ("", NOTHING)}
        for job, record in self._jobs.describe(parents).items():
            if is_alive(record):
                found |= self._of_shard(job, record, parents[job], shards[parents[job]])
        whole = {job for job in found if ":" not in job}
        return sorted(job for job in found if job in whole or job.partition(":")[0] not in whole)

    def _of_shard(self, job: str, record: Mapping[str, Any], shard: str, statuses: Sequence[Status]) -> set[str]:
        wanted = {(status.dataset, status.attempt) for status in statuses}
        parameters = record.get("parameters") or {}
        if not (record.get("arrayProperties") or {}).get("size"):
            return {job} & {job for dataset, _ in wanted if dataset == parameters.get("dataset")}
        lines = self._lines(shard, str(parameters.get("manifest", "")))
        members = {f"{job}:{index}": (line.dataset, line.attempt) for index, line in enumerate(lines)}
        mine = {child for child, member in members.items() if member in wanted}
        rest = [member for child, member in members.items() if child not in mine]
        if mine and not any(in_threads(self._is_open, rest)):
            return {job}
        return mine

    def _is_open(self, member: tuple[str, int]) -> bool:
        """Whether a child may still be at work; when in doubt, yes."""
        status = _status(self._store, member[0])
        if not isinstance(status, Status) or status.attempt < member[1]:
            return True
        return status.attempt == member[1] and Target.of(member[0], None, status).open

    def _lines(self, shard: str, manifest: str) -> list[Line]:
        """Return the datasets that an array was submitted with; see ``submit.Submitter``."""
        rest = re.compile(re.escape(shard) + r"-[0-9a-f]{8}\.jsonl")
        names = [name for name in self._store.names(SUBMITTED) if rest.fullmatch(name)]
        for key in (manifest_key(shard), *(f"{SUBMITTED}/{name}" for name in names)):
            if self._store.url(key) == manifest and (blob := self._store.get(key)) is not None:
                with contextlib.suppress(ValueError):
                    return parse_jsonl(blob.data)
        return []


# ---- pausing


def pause(control: Control, why: str) -> None:
    """Let nothing more of a campaign be submitted; UsageError if there is no campaign."""
    control.plan()
    control.pause(" ".join(why.split()) or f"by {who()}")
    control.audit("pause", why)


def unpause(control: Control, why: str = "") -> bool:
    """Let a campaign go on; False if it was not paused. UsageError if there is no campaign."""
    control.plan()
    was_paused = control.lift()
    if was_paused:
        control.audit("unpause", why)
    return was_paused


# ---- logs


class LogStreams(Protocol):
    """The part of a boto3 client of CloudWatch Logs that is used here."""

    def get_log_events(self, **request: Any) -> Mapping[str, Any]:  # noqa: ANN401 - as boto3 has it
        """Return a page of a stream."""


@dataclass(frozen=True)
class Cloud:
    """Where jobs on AWS log.

    Attributes
    ----------
    logs : LogStreams
        A client of CloudWatch Logs.
    group : str
        Log group.
    jobs : Jobs or None
        Tell which stream is whose.
    """

    logs: LogStreams
    group: str
    jobs: Jobs | None = None


class _Source(Protocol):
    where: str

    def read(self) -> bytes:
        """Return what has come since it was last read."""


class _File:
    def __init__(self, path: Path) -> None:
        self.where, self._path, self._offset = str(path), path, 0

    def read(self) -> bytes:
        with self._path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < self._offset:  # begun anew
                self._offset = 0
            stream.seek(self._offset)
            data = stream.read()
        self._offset += len(data)
        return data


class _Object:
    def __init__(self, store: Store, key: str) -> None:
        self.where, self._store, self._key, self._offset = store.url(key), store, key, 0

    def read(self) -> bytes:
        blob = self._store.get(self._key)
        data = blob.data[self._offset :] if blob else b""
        self._offset += len(data)
        return data


class _Stream:
    def __init__(self, cloud: Cloud, name: str) -> None:
        self.where, self._cloud, self._name, self._token = f"{cloud.group} {name}", cloud, name, ""

    def read(self) -> bytes:
        lines: list[str] = []
        while True:
            at = {"nextToken": self._token} if self._token else {}
            page = self._cloud.logs.get_log_events(
                logGroupName=self._cloud.group, logStreamName=self._name, startFromHead=True, **at
            )
            lines += [str(event["message"]) for event in page["events"]]
            token, self._token = self._token, str(page["nextForwardToken"])
            if token == self._token:
                return "".join(f"{line}\n" for line in lines).encode()


def log(
    control: Control,
    dataset: str,
    attempt: int = 0,
    *,
    follow: bool = False,
    cloud: Cloud | None = None,
    told: Callable[[str], None] = lambda _: None,
    wait: Callable[[], None] = lambda: time.sleep(1),
) -> Iterator[str]:
    """Read the log of a dataset.

    Parameters
    ----------
    control : Control
        The campaign.
    dataset : str
        Its name, as typed.
    attempt : int, optional
        Which; the last one that has a log by default.
    follow : bool, optional
        Go on for as long as the dataset is open, through all its attempts unless one was named.
    cloud : Cloud, optional
        Where jobs on AWS log.
    told : callable, optional
        Told where the lines that follow come from.
    wait : callable, optional
        Waits until it is time to look again.

    Yields
    ------
    str
        Lines, without what a terminal would take for a command.

    Raises
    ------
    UsageError
        If the campaign does not know the dataset, or there is no log of it.
    """
    reader = _Reader(control, Dataset.parse(dataset).name, attempt, cloud)
    lines, source, current, over = _Lines(), None, 0, False
    while True:
        target = reader.look()
        if source is not None:
            yield from lines.add(source.read())
        if source is None or (follow and not attempt and target.attempt > current):
            later = reader.find(target, wait_for_it=follow and target.open)
            if later is not None and (source is None or later.where != source.where):
                yield from lines.end()
                source, current = later, target.attempt
                told(source.where)
                yield from lines.add(source.read())
        if not follow or over:
            break
        # Once more: what a run says last it says when its status is written.
        over = not target.open or bool(attempt and target.attempt > attempt)
        wait()
    yield from lines.end()
    if source is None:
        which = f"attempt {attempt}" if attempt else f"any attempt (it is {target.state})"
        raise UsageError(f"{reader.dataset}: there is no log of {which}", remedy="see caldp status BATCH DATASET")


class _Lines:
    """Cuts what comes piece by piece into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return (printable(line.decode("utf-8", errors="replace")) for line in lines)

    def end(self) -> Iterator[str]:
        """Return the last line, if nobody has ended it."""
        rest, self._rest = self._rest, b""
        return iter([printable(rest.decode("utf-8", errors="replace"))] if rest else [])


class _Reader:
    """Finds the logs of one dataset."""

    def __init__(self, control: Control, dataset: str, attempt: int, cloud: Cloud | None) -> None:
        self._control, self._store, self.dataset = control, control.store, dataset
        self._attempt, self._cloud = attempt, cloud
        self._line: Line | None = None
        self._is_known = False

    def look(self) -> Target:
        """Say how the dataset stands."""
        status = messages.read(self._store, self.dataset)
        if not self._is_known and (status is None or not status.rung):
            found, _ = _named(self._control, Selector((self.dataset,)))
            self._line = next(target.line for _, target in found if isinstance(target, Target))
        self._is_known = True
        return Target.of(self.dataset, self._line, status)

    def find(self, target: Target, *, wait_for_it: bool) -> _Source | None:
        """Return the log of the attempt that was asked for, else of the last one that has any."""
        attempt = self._attempt or target.attempt
        key = f"{Dataset.parse(self.dataset).prefix}/logs/process.txt"
        source = self._of_attempt(target, attempt)
        if source is None and not wait_for_it and attempt >= target.attempt:
            source = self._at(key)
        if source is None and not wait_for_it and not self._attempt:
            earlier = (self._of_attempt(target, number) for number in range(attempt - 1, 0, -1))
            source = next((found for found in earlier if found is not None), None)
        return source

    def _of_attempt(self, target: Target, attempt: int) -> _Source | None:
        source = self._at(log_key(self.dataset, attempt))
        if source is None and self._cloud is not None and (name := self._stream(target.status, attempt)):
            return _Stream(self._cloud, name)
        return source

    def _at(self, key: str) -> _Source | None:
        path = _path(self._store, key)
        if path is not None:
            return _File(path) if path.is_file() else None
        return _Object(self._store, key) if self._store.get(key) is not None else None

    def _stream(self, status: Status, attempt: int) -> str:
        """Return the name of the stream that a job logged to, as was kept or AWS Batch tells; empty if nobody does."""
        kept = self._store.get(stream_key(self.dataset, attempt))
        if kept is not None:
            return kept.data.decode("utf-8", errors="replace").strip()
        told = [entry for entry in (*status.history, status.to_json()) if isinstance(entry, dict)]
        job = next((e["job"] for e in reversed(told) if e.get("attempt") == attempt and e.get("job")), "")
        if not job or self._cloud is None or self._cloud.jobs is None:
            return ""
        record = self._cloud.jobs.describe([job]).get(job, {})
        tries = [record.get("container") or {}, *((t.get("container") or {}) for t in record.get("attempts") or ())]
        return next((str(t["logStreamName"]) for t in tries if t.get("logStreamName")), "")
