"""Campaigns that look as if they had run, or were running: all that is in a batch, without any job.

What is written is decided by numbers of the datasets alone, so two makers of one size make the same.  The states are
written by ``messages``, in the order in which their times say that they came.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from caldp import messages
from caldp.campaign import transitions
from caldp.campaign.control import AUDIT, REJECTED, Control, log_key, result_key
from caldp.campaign.settings import DEFAULT, Settings
from caldp.campaign.shards import Line, shards
from caldp.campaign.transitions import Move
from caldp.causes import fingerprint
from caldp.dataset import Dataset
from caldp.messages import Status
from caldp.store import Overwrite, Store
from tests.fakes.stores import MemoryStore

BEGAN = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)

#: What becomes of datasets, in turn; all others end well at once.
OUTCOMES = ("broken", "", "oom", "", "", "transient", "", "timeout", "", "hopeless", "", "killed", "", "cancelled", "",
            "synced", "", "archived", "", "host")  # fmt: skip

#: Datasets that end well at once between two turns of ``OUTCOMES``.
_CALM = 63

_INSTRUMENTS = ("l", "o", "i", "j", "o", "l", "i", "j", "acs", "sky")

_MIB = 2**20


class Clocked(MemoryStore):
    """A store like a bucket, whose clock says what it is told."""

    uri = "memory:/mvp"

    def __init__(self, now: datetime = BEGAN) -> None:
        super().__init__()
        self.now = now

    def url(self, key: str = "") -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def clock(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Made:
    """A campaign that was made.

    Attributes
    ----------
    control : Control
        Where.
    settings : Settings
        What it goes by.
    datasets : tuple of str
        Its datasets.
    now : datetime
        When it stands as it does; nothing in it is later.
    runs : list of dict
        What its jobs said of themselves.
    """

    control: Control
    settings: Settings
    datasets: tuple[str, ...]
    now: datetime
    runs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Event:
    """Something that happens to a dataset: its next status, and what is written with it."""

    at: datetime
    status: Status
    files: dict[str, bytes] = field(default_factory=dict)
    judges: bool = False


def names(count: int) -> list[str]:
    """Return names of datasets of all instruments, in no order."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    found = []
    for number in range(count):
        code = "".join(digits[number // 36**power % 36] for power in (3, 2, 1, 0))
        kind = _INSTRUMENTS[number * 7 % len(_INSTRUMENTS)]
        if kind == "acs":
            found.append(
                f"acs_{code[0]}{code[1]}c_{code[2:]}" if number % 20 else f"wfc3_{code[0]}{code[1]}c_{code[2:]}"
            )
        elif kind == "sky":
            found.append(f"skycell-p{number // 10_000:04}x{number // 100 % 100:02}y{number % 100:02}")
        else:
            found.append(f"{kind}{code}{digits[number % 10 + 1]}010"[:9])
    return found


def make(
    store: Store,
    count: int,
    *,
    progress: float = 1.0,
    outcomes: Sequence[str] | None = None,
    settings: Settings = DEFAULT,
    slots: int = 0,
    data: bool = True,
    reason: str = "",
) -> Made:
    """Write a campaign.

    Parameters
    ----------
    store : Store
        Where; empty.
    count : int
        Datasets.
    progress : float, optional
        How far it has come: the share of its time that has passed.
    outcomes : sequence of str, optional
        What becomes of the datasets, in turn: names of ``OUTCOMES``; empty, they end well at once.
    settings : Settings, optional
        What it goes by.
    slots : int, optional
        Datasets at a time.
    data : bool, optional
        Whether to write products and logs, too.
    reason : str, optional
        What broken datasets say, instead of what real ones do.

    Returns
    -------
    Made
    """
    control = Control(store)
    datasets = names(count)
    turns = (*OUTCOMES, *[""] * _CALM) if outcomes is None else tuple(outcomes)
    lines = {name: _line(name, settings) for name in datasets}
    free = [BEGAN + timedelta(seconds=20 + 3 * slot) for slot in range(slots or max(2, min(500, count // 25)))]
    told: list[list[_Event]] = []
    for number, name in enumerate(datasets):
        slot = min(range(len(free)), key=free.__getitem__) if len(free) < 20 else number % len(free)
        story = list(_story(number, lines[name], turns[number % len(turns)], free[slot], settings, reason))
        free[slot] = max(event.at for event in story) + timedelta(seconds=1)
        told.append(story)
    end = max(event.at for story in told for event in story)
    now = BEGAN + progress * (end - BEGAN) if progress < 1 else end + timedelta(seconds=30)
    made = Made(control, settings, tuple(datasets), now)
    _write_control(control, lines, settings)
    if isinstance(store, Clocked):
        store.now = now
    for story in told:
        for event in story:
            if event.at > now:
                break
            _happen(store, event, made, data)
        last = messages.read(store, story[0].status.dataset)
        if last is not None and last.state == "processing":
            messages.beat(store, last)
    return made


def _write_control(control: Control, lines: Mapping[str, Line], settings: Settings) -> None:
    first = sorted(lines)[:2]
    control.claim(
        {
            "batch": control.name,
            "at": messages_time(BEGAN),
            "by": "operator@host",
            "label": "new flat fields",
            "runner": "local",
            "list": "c" * 64,
            "datasets": len(lines),
            "options": {
                "input": "astroquery:",
                "config": "caldp-config-offsite",
                "context": "hst_1311.pmap",
                "existing": "skip",
                "on_invalid": "skip",
                "timeout_scale": 1.0,
            },
            "settings": settings.to_json(),
        },
        ("list",),
    )
    found = shards(control.name, 1, lines.values(), settings, frozenset(first))
    for shard in found:
        control.write_manifest(shard)
    refused = {"line": 0, "text": "skycell-p9999x99y99", "reason": "needs more than the ladder has"}
    classes: dict[str, int] = {}
    for line in lines.values():
        classes[line.job_class] = classes.get(line.job_class, 0) + 1
    control.write_plan(
        {
            "datasets": len(lines),
            "refused": [refused],
            "classes": dict(sorted(classes.items())),
            "canary": first,
            "submit_jobs": len(found),
            "hours": round(len(lines) * 0.2, 2),
            "cost": round(len(lines) * 0.01, 2),
            "unobserved": len(lines),
            "skipped": ["ldfdzzzzz"],
            "shards": [shard.name for shard in found],
            "first": [shard.name for shard in found if shard.canary],
        }
    )
    rejected = [{"line": 7, "text": "n4k001010", "reason": "NICMOS is not calibrated by this pipeline"}]
    control.write_lines(REJECTED, [*rejected, refused])
    line = {"at": messages_time(BEGAN), "by": "operator@host", "what": "submit", "why": "", "datasets": len(lines)}
    control.write_lines(AUDIT, [line])


def messages_time(at: datetime) -> str:
    """Write a time as status records have it."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(name: str, settings: Settings) -> Line:
    dataset = Dataset.parse(name)
    estimate = settings.estimates[dataset.instrument if dataset.kind == "ipppssoot" else dataset.kind]
    rung = settings.rung(estimate.rung)
    return Line(name, 1, rung.name, rung.vcpus, estimate.time_limit, f"{rung.name}: table, {dataset.instrument}")


#: Median seconds and MiB of a dataset that ends well.
_TYPICAL = {"cos": (55, 900), "stis": (38, 420), "wfc3": (600, 1100), "acs": (1500, 1250), "mvm": (2400, 8000)}


def _story(
    number: int, line: Line, outcome: str, begins: datetime, settings: Settings, reason: str
) -> Iterator[_Event]:
    """Tell what happens to a dataset, one state after the other."""
    name = line.dataset
    rng = random.Random(number)  # noqa: S311 - no secret
    seconds, memory = _TYPICAL[Dataset.parse(name).instrument]
    at = begins
    spent: dict[str, int] = {}
    if outcome == "timeout" and line.time_limit > 6 * 3600:
        outcome = "transient"  # nobody wants to see a campaign that waits for days
    for end in (*_FAILURES.get(outcome, ()), _LAST.get(outcome, "processed")):
        given = settings.rung(line.rung)
        run = hashlib.sha256(f"{name} {line.attempt}".encode()).hexdigest()[:12]
        by = f"worker-{number % 7}:{1000 + number}"
        given_to = {"shard": f"a{line.attempt}", "rung": line.rung, "time_limit": line.time_limit, "spent": dict(spent)}
        yield _Event(at, Status(name, line.attempt, "submitted", by="operator@host", **given_to))  # type: ignore[arg-type]
        at += timedelta(seconds=2 + 8 * rng.random())
        yield _Event(at, Status(name, line.attempt, "processing", run, by=by, job=f"job-{name}"))
        cause, code, said, share = _ENDS[end]
        took = min(seconds * math.exp(rng.gauss(0, 0.5)), 0.9 * line.time_limit) * share
        took = line.time_limit if end == "timeout" else took
        peak = int(min(memory * math.exp(rng.gauss(0, 0.2)), 0.97 * given.memory) * _MIB)
        peak = given.memory * _MIB if cause == "oom" else peak
        at += timedelta(seconds=took)
        said = (reason if end == "broken" and reason else said).format(name=name)
        result = {
            "dataset": name,
            "attempt": line.attempt,
            "retry": 1,
            "run": run,
            "code": code,
            "signal": "SIGKILL" if code == 137 else None,
            "state": "error" if code else "processed",
            "stage": "calibrate" if code else "publish",
            "wall_s": round(took, 3),
            "cpu_s": round(0.9 * took, 3),
            "peak_memory_bytes": peak,
            "memory_limit_bytes": given.memory * _MIB,
            "oom_kills": int(cause == "oom"),
            "retriable": None if cause == "unknown" else cause != "deterministic",
            "fingerprint": fingerprint(code, said, name, run) if code else "",
            "reason": said,
            "at": messages_time(at),
        }
        # A job that is stopped from outside says nothing of itself.
        files = {} if end in ("timeout", "host") else {result_key(name, line.attempt): json.dumps(result).encode()}
        if not code:
            files |= _products(name, line.attempt, run, number, result)
            yield _Event(at, Status(name, line.attempt, "processed", run, exit_code=0, by=by), files)
            break
        files[log_key(name, line.attempt)] = _log(name, said, code)
        if outcome == "cancelled":
            yield _Event(at, Status(name, line.attempt, "cancelled", by="operator@host", reason="not needed any more"))
            return
        # A job that can still speak does not know the class of its failure.
        failed = Status(name, line.attempt, "error", run, said, code, by, **given_to)  # type: ignore[arg-type]
        if not files.keys() >= {result_key(name, line.attempt)}:
            failed = replace(failed, cause=cause)
        yield _Event(at, failed, files)
        if end == _LAST.get(outcome):
            judged = replace(failed, cause=cause, fingerprint=str(result["fingerprint"]), by="end of run")
            yield _Event(at + timedelta(seconds=1), judged, judges=True)
            return
        spent[_BUDGET.get(cause, cause)] = spent.get(_BUDGET.get(cause, cause), 0) + 1
        above = settings.above(line.rung) if cause == "oom" else None
        limit = settings.longer(line.time_limit) if cause == "timeout" else line.time_limit
        line = replace(
            line,
            attempt=line.attempt + 1,
            rung=above.name if above else line.rung,
            vcpus=above.vcpus if above else line.vcpus,
            time_limit=limit,
        )
        yield _Event(
            at + timedelta(seconds=1),
            Status(
                name, line.attempt, "placed", "", said, code, "operator@host", cause=cause, rung=line.rung,
                time_limit=line.time_limit, spent=dict(spent),
            ),
        )  # fmt: skip
        at += timedelta(seconds=60 + 60 * rng.random())
    if outcome in ("synced", "archived"):
        at += timedelta(seconds=300)
        yield _Event(at, Status(name, line.attempt, "synced", run, by="downloader:1", message=f"/archive/{name}\n"))
    if outcome == "archived":
        yield _Event(at + timedelta(seconds=300), Status(name, line.attempt, "archived", run, by="archive:1"))


#: Failures of a dataset before its last attempt, and how that ends if not well.
_FAILURES = {
    "oom": ("oom",),
    "timeout": ("timeout",),
    "transient": ("transient",),
    "host": ("host",),
    "hopeless": ("oom", "oom", "oom"),
    "killed": ("killed",),
}
_LAST = {"broken": "broken", "hopeless": "ladder", "killed": "killed", "cancelled": "killed"}

#: Class, exit status, reason, and share of the usual time of how a run can end.
_ENDS = {
    "processed": ("", 0, "", 1.0),
    "broken": (
        "deterministic",
        21,
        "{name}: {name}_rawtag.fits is truncated (2880 of 11520 bytes); fetch it again",
        0.1,
    ),
    "oom": ("oom", 31, "{name}: calcos ran out of memory", 0.6),
    "ladder": ("oom", 31, "ladder exhausted: {name}: calcos ran out of memory", 0.6),
    "timeout": ("timeout", 137, "Job attempt duration exceeded timeout", 1.0),
    "transient": ("transient", 22, "{name}: MAST does not answer (HTTP 503); try again later", 0.2),
    "host": ("host", 143, "Host EC2 (instance i-0f{name}) terminated.", 0.3),
    "killed": ("unknown", 1, "{name}: AttributeError: 'NoneType' object has no attribute 'header'", 0.3),
}
_BUDGET = {"host": "transient"}


def _happen(store: Store, event: _Event, made: Made, data: bool) -> None:
    for key, content in event.files.items():
        if key.startswith("control/results/"):
            made.runs.append(json.loads(content))
        if data or key.startswith("control/results/"):
            store.put(key, content, Overwrite())
    status = replace(event.status, at=messages_time(event.at))
    if event.judges:
        told = transitions.apply(store, Move(status, seen=messages.read(store, status.dataset)))
        assert told is not None
        record = told.to_json() | {"at": status.at}  # it takes the time from the clock
        record["history"][-1]["at"] = status.at
        store.put(messages.status_key(status.dataset), json.dumps(record, indent=1).encode(), Overwrite())
    else:
        messages.advance(store, status)


def _log(name: str, said: str, code: int) -> bytes:
    lines = [f"2026-11-22T06:00:{n:02}.000Z INFO    {name} calibrate calcos: step {n}" for n in range(40)]
    lines += [
        f"2026-11-22T06:01:00.000Z ERROR   {name} calibrate {said}",
        f"caldp-process: {said} (exit status {code})",
    ]
    return "\n".join(lines).encode() + b"\n"


def _products(name: str, attempt: int, run: str, number: int, result: Mapping[str, Any]) -> dict[str, bytes]:
    dataset = Dataset.parse(name)
    thumb = f"previews/{name}_flt_thumb.png"
    picture = _picture(number % 12)
    record = {
        "format": 1,
        "dataset": name,
        "instrument": dataset.instrument,
        "attempt": attempt,
        "run": run,
        "state": "processed",
        "reason": "",
        "context": "hst_1311.pmap",
        "versions": {"caldp": "0.1.0", "calcos": "3.6.2", "python": "3.11.9"},
        "products": [],
        "previews": [{"name": thumb, "size": len(picture), "kind": "thumbnail", "product": f"{name}_flt.fits"}],
        "references": [],
        "warnings": [],
    }
    return {
        f"{dataset.prefix}/{thumb}": picture,
        f"{dataset.prefix}/manifest.json": json.dumps(record).encode(),
        f"{dataset.prefix}/report.html": f"<!doctype html><title>{name}</title>".encode(),
        f"{dataset.prefix}/logs/process.txt": f"{name}: {result['wall_s']} s\n".encode(),
    }


@cache
def _picture(number: int) -> bytes:
    """Draw a field of stars."""
    from PIL import Image, ImageDraw

    rng = random.Random(number)  # noqa: S311 - no secret
    image = Image.new("L", (256, 256), 16)
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, r = rng.randrange(256), rng.randrange(256), rng.choice((0.5, 1, 1, 2, 3))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=rng.randrange(120, 255))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
