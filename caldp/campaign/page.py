"""The page of a campaign: one self-contained HTML file.

It needs nothing but itself: pictures are data URIs, charts are drawn here as SVG, there is no script, and a content
security policy forbids every request.  What is broken or absent is said in its place.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from caldp import report
from caldp.batch import code_name, in_threads
from caldp.campaign import progress, progress_text
from caldp.campaign.control import AUDIT, REJECTED, Control, log_key
from caldp.campaign.progress import KINDS, Cost, Needs, Progress, Run, Sample, Spread, Stock
from caldp.campaign.settings import Settings
from caldp.dataset import Dataset
from caldp.errors import CaldpError
from caldp.messages import STATES, Claim, Status
from caldp.reporter import human_size, human_time, printable
from caldp.store import Store, parse_uri

#: Datasets up to which the status of each is read; of more, so many in each state.
ALL, OF_EACH = 5000, 1000

#: Datasets that are listed, and causes of failures that are told.
ROWS, CAUSES = 1500, 40

#: Pictures, and bytes of each.
PICTURES, PICTURE = 24, 20_000

_LOGS, _LOG_TAIL, _LOG_LINE, _LOG_SIZE = 12, 25, 300, 8_000_000
"""Logs that are shown, lines and characters of each; a larger one is not read."""

_REASON = 240
"""Characters of a reason that are shown in the list of datasets."""

_DONE = ("processed", "synced", "archived")

#: What the charts show: name, states.
_GROUPS = (
    ("processed", _DONE),
    ("failed", ("error", "cancelled")),
    ("processing", ("processing",)),
    ("submitted", ("submitted",)),
    ("waiting", ("placed",)),
)
_GROUP = {state: number for number, (_, states) in enumerate(_GROUPS) for state in states}

_POINTS, _BARS = 160, 40
"""Points of a curve; bars at most."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STEPS = (
    *(1, 2, 5, 10, 20, 30),
    *(n * _MINUTE for n in (1, 2, 5, 10, 20, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)),
)


def render(control: Control, settings: Settings, *, beside: bool = False, patience: float = Claim.patience) -> str:
    """Write the page of a campaign.

    Parameters
    ----------
    control : Control
        The campaign.
    settings : Settings
        What it goes by.
    beside : bool, optional
        Whether the page will lie in the directory of the batch: then it links to the pages of datasets by relative
        paths.
    patience : float, optional
        Seconds without a sign of life after which a run is taken for dead, where no lock tells.

    Returns
    -------
    str
        A complete HTML page.

    Raises
    ------
    UsageError
        If there is no campaign.
    InputError
        If one of its manifests is missing or damaged.
    S3DownloadError
        If S3 does not answer, or refuses.

    Notes
    -----
    Reasons, names and program output are hostile text: the template escapes all of it.
    """
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("caldp", "templates"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = _content(control, settings, patience, _Links(control.store, beside))
    return environment.get_template("campaign.html.j2").render(content)


class _Links:
    """Where the page of a dataset is found from this one."""

    def __init__(self, store: Store, beside: bool) -> None:
        self._beside = beside
        self._folder: Path | None = None
        if store.uri.startswith("file:"):
            self._folder = Path(parse_uri(store.uri)[1])
        url = store.url()
        self._web = url.rstrip("/") if url.startswith(("https://", "http://")) else ""
        #: What a person would open, where a browser cannot.
        self.pattern = "" if self._beside or self._folder or self._web else f"{url}/data/…/report.html"

    def to(self, dataset: str) -> str:
        """Return the address of the page of a dataset; empty where browsers cannot open it."""
        key = f"{Dataset.parse(dataset).prefix}/report.html"
        if self._beside:
            return key
        if self._folder is not None:
            return (self._folder / key).as_uri()
        return f"{self._web}/{key}" if self._web else ""


def _content(control: Control, settings: Settings, patience: float, links: _Links) -> dict[str, Any]:
    """Collect what the template shows, as text and numbers ready to be written."""
    stock = progress.take_stock(control)
    limit = 0 if len(stock.lines) <= ALL else OF_EACH
    sample = progress.look_at(control, stock, patience, limit)
    found = progress.summary(control, stock, sample)
    every = progress.runs(control, sample, settings)
    by_instrument = progress.costs(every, settings)
    total = sum(by_instrument.values(), Cost())
    begun, until = progress.when(found.begun), progress.when(found.ended or found.at)
    pictures, versions = _gallery(control.store, sample, links)
    needs = progress.needs(every)
    return {
        "name": control.name,
        "batch": found.batch,
        "verdict": progress_text.verdict(found),
        "state": _state(found),
        "found": found,
        "counts": found.counts,
        "begun": _utc(begun),
        "ended": _utc(progress.when(found.ended)),
        "at": _utc(progress.when(found.at)),
        "duration": human_time(max((until - begun).total_seconds(), 0)) if begun and until else "",
        "left": human_time(found.seconds_left) if found.open and found.seconds_left is not None else "",
        "rate": _rate(found.rate),
        "rate_lately": _rate(found.rate_lately),
        "lately": human_time(found.lately),
        "partial": sample.partial,
        "kinds": {kind: classes for kind in KINDS if any((classes := found.kinds[kind]).values())},
        "instruments": [_instrument(name, by_state) for name, by_state in found.states.items()],
        "groups": [name for name, _ in _GROUPS],
        "history": _history(sample, found, begun, until),
        "throughput": _throughput(sample, begun, until),
        "failures": _failures(control, found, sample, links),
        "causes_left": len(found.failures) - CAUSES,
        "outcomes": _outcomes(every),
        "needs": [_need(name, need) for name, need in needs.items()],
        "memory_plot": _spread_plot("memory", needs, human_size),
        "time_plot": _spread_plot("time", needs, human_time),
        "costs": [_cost(name, cost) for name, cost in by_instrument.items()],
        "total": _cost("all", total),
        "dollars": _dollars(total.dollars),
        "wasted": _dollars(total.wasted),
        "prices": settings.prices,
        "pictures": pictures,
        "rows": _rows(sample, every, links),
        "link_pattern": links.pattern,
        "plan": _plan(control, stock),
        "request": _request(control),
        "figures": _figures(control),
        "versions": versions,
        "audit": _lines(control, AUDIT, ("at", "by", "what", "why")),
        "rejected": _lines(control, REJECTED, ("line", "text", "reason")),
    }


def _state(found: Progress) -> str:
    if found.open:
        return "paused" if found.paused else "open"
    return "failures" if found.failed else "complete"


def _utc(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}" if time else ""


def _rate(rate: float | None) -> str:
    return "" if rate is None else progress_text.rate_text(rate)


def _share(count: float, of: float) -> str:
    return f"{100 * count / of:.3f}" if of else "0"


def _instrument(name: str, by_state: Mapping[str, int]) -> dict[str, Any]:
    groups = [sum(by_state.get(state, 0) for state in states) for _, states in _GROUPS]
    total = sum(groups)
    return {
        "name": name,
        "states": [by_state.get(state, 0) for state in STATES],
        "bars": [(group, _share(count, total)) for (group, _), count in zip(_GROUPS, groups, strict=True) if count],
        "said": ", ".join(
            f"{100 * count / total:.0f} % {group}" for (group, _), count in zip(_GROUPS, groups, strict=True) if count
        ),
        "total": total,
    }


# ---- charts


@dataclass
class Tick:
    """A tick of an axis: where, and what it says."""

    at: str
    label: str


@dataclass
class View:
    """A chart drawn for one width of the screen; lengths in SVG units."""

    name: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    paths: list[tuple[str, str]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def x(self, share: float) -> float:
        """Return the place at a share of the width."""
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        """Return the place at a share of the height, from below."""
        return self.bottom - share * (self.bottom - self.top)


@dataclass
class Chart:
    """A chart as the page shows it, for wide and for narrow screens."""

    id: str
    title: str
    description: str
    x_label: str
    y_label: str
    views: list[View]
    legend: list[str] = field(default_factory=list)
    table: list[tuple[str, ...]] = field(default_factory=list)


def _views(height: int = 300) -> list[View]:
    return [
        View("wide", 1080, height, 70, 1064, 14, height - 48),
        View("narrow", 420, height - 20, 50, 410, 12, height - 66),
    ]


def _time_ticks(begun: datetime, seconds: float, most: int) -> list[tuple[float, str]]:
    """Return round times, as shares of a time, with labels."""
    step = next((step for step in _STEPS if step * most >= seconds), _STEPS[-1])
    first = begun.timestamp()
    form = "%H:%M:%S" if step < _MINUTE else "%H:%M" if step < _DAY else "%d %b"
    ticks = []
    number = math.ceil(first / step)
    while number * step <= first + seconds:
        at = datetime.fromtimestamp(number * step, UTC)
        # Where days change within a chart of hours, the day is said.
        label = f"{at:%d %b}" if step < _DAY and at.hour == at.minute == at.second == 0 else at.strftime(form)
        ticks.append(((number * step - first) / seconds, label))
        number += 1
    return ticks


def _counted(view: View, most: float, ticks: int) -> None:
    """Give a chart its axis of numbers, from 0, and room for them."""
    found = [(value, label) for value, label in report.axis_ticks(0, most, ticks) if "." not in label or most < 1]
    view.left = 34 + round(7.5 * max((len(label) for _, label in found), default=1))
    view.y_ticks = [Tick(f"{view.y(value / most):.1f}", label) for value, label in found]


def _timed(view: View, begun: datetime, seconds: float) -> None:
    for share, label in _time_ticks(begun, seconds, 9 if view.name == "wide" else 4):
        view.x_ticks.append(Tick(f"{view.x(share):.1f}", label))


def _day(begun: datetime, until: datetime) -> str:
    days = [f"{time.day} {time:%B %Y}" for time in (begun, until)]
    return f"Time (UTC), {' to '.join(dict.fromkeys(days))}"


def _history(sample: Sample, found: Progress, begun: datetime | None, until: datetime | None) -> Chart | None:
    """Draw how many datasets there were in each state, over time."""
    if begun is None or until is None or (seconds := (until - begun).total_seconds()) <= 0:
        return None
    changes = [[0.0] * (_POINTS + 2) for _ in _GROUPS]
    total = float(found.planned - len(found.damaged))
    seen = 0.0
    for name, standing in sample.standings.items():
        if standing.damage:
            continue
        weight = sample.weights[name]
        seen += weight
        at, group = 0, _GROUP["placed"]
        for step in progress.steps(standing.status) if standing.status else ():
            # From the first point on that is not before the step.
            point = max(0, min(_POINTS + 1, math.ceil((step.at - begun).total_seconds() / seconds * _POINTS - 1e-9)))
            changes[group][at] += weight
            changes[group][point] -= weight
            at, group = point, _GROUP[step.state]
        if standing.status and standing.status.state in STATES:
            group = _GROUP[standing.state]  # the history may have lost its end
        changes[group][at] += weight
    curves = []
    for change in changes:
        level, curve = 0.0, []
        for difference in change[: _POINTS + 1]:
            level += difference
            curve.append(max(level, 0.0))
        curves.append(curve)
    most = max(total, seen, 1.0)
    views = _views()
    for view in views:
        _counted(view, most, 5)
        _timed(view, begun, seconds)
        xs = [view.x(point / _POINTS) for point in range(_POINTS + 1)]
        low = [0.0] * len(xs)
        for (name, _), curve in zip(_GROUPS, curves, strict=True):
            high = [a + b for a, b in zip(low, curve, strict=True)]
            if max(curve) > 0:
                view.paths.append((name, _area(view, xs, low, high, most)))
            low = high
    shown = [round(number * _POINTS / 8) for number in range(9)]
    table = [
        (_utc(begun + timedelta(seconds=seconds * point / _POINTS)), *(f"{curve[point]:,.0f}" for curve in curves))
        for point in shown
    ]
    ends = ", ".join(f"{curve[-1]:,.0f} {name}" for (name, _), curve in zip(_GROUPS, curves, strict=True))
    return Chart(
        "history",
        "States over time",
        f"Datasets by state from {_utc(begun)} to {_utc(until)} UTC, stacked. At the end: {ends}. The table below has "
        "the numbers.",
        _day(begun, until),
        "Datasets",
        views,
        [name for (name, _), curve in zip(_GROUPS, curves, strict=True) if max(curve) > 0],
        table,
    )


def _area(view: View, xs: Sequence[float], low: Sequence[float], high: Sequence[float], most: float) -> str:
    """Write SVG path data of what is between two curves, without points that are on a line with their neighbours."""

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        kept = []
        for number, value in enumerate(values):
            near = values[max(number - 1, 0)] == value == values[min(number + 1, len(values) - 1)]
            if not near or number in (0, len(values) - 1):
                kept.append((xs[number], view.y(value / most)))
        return kept

    around = [*points(high), *reversed(points(low))]
    return f"M{'L'.join(f'{x:.1f} {y:.1f}' for x, y in around)}Z"


def _throughput(sample: Sample, begun: datetime | None, until: datetime | None) -> Chart | None:
    """Draw how many datasets came to their end per hour, over time."""
    ends: list[tuple[datetime, bool, float]] = []
    for status, weight in sample.statuses():
        if (end := progress.ended_at(status, progress.steps(status))) is not None:
            ends.append((end, status.done, weight))
    if begun is None or until is None or not ends or (seconds := (until - begun).total_seconds()) <= 0:
        return None
    bars = max(6, min(_BARS, len(ends) // 4))
    counts = [[0.0] * bars, [0.0] * bars]
    for end, done, weight in ends:
        place = int((end - begun).total_seconds() / seconds * bars)
        counts[not done][max(0, min(bars - 1, place))] += weight
    per_hour = 3600 / (seconds / bars)
    well, ill = ([count * per_hour for count in each] for each in counts)
    most = max(a + b for a, b in zip(well, ill, strict=True)) * 1.06
    views = _views(250)
    for view in views:
        _counted(view, most, 5)
        _timed(view, begun, seconds)
        for name, lows, values in (("processed", [0.0] * bars, well), ("failed", well, ill)):
            path = ""
            for number, (low, value) in enumerate(zip(lows, values, strict=True)):
                if value:
                    x0, x1 = view.x(number / bars) + 0.6, view.x((number + 1) / bars) - 0.6
                    y0, y1 = view.y(low / most), view.y((low + value) / most)
                    path += f"M{x0:.1f} {y0:.1f}V{y1:.1f}H{x1:.1f}V{y0:.1f}Z"
            if path:
                view.paths.append((name, path))
    width = seconds / bars
    table = [
        (
            _utc(begun + timedelta(seconds=width * number)),
            *(f"{each[number]:,.0f}" for each in counts),
            _rate(well[number] + ill[number]),
        )
        for number in range(bars)
    ]
    best = max(range(bars), key=lambda number: well[number] + ill[number])
    return Chart(
        "throughput",
        "Throughput",
        f"Datasets that came to their end per hour, in {bars} intervals of {human_time(width)}. The most were "
        f"{_rate(well[best] + ill[best])} an hour, from {table[best][0]} UTC on. The table below has the numbers.",
        _day(begun, until),
        "Datasets an hour",
        views,
        ["processed", *(["failed"] if any(ill) else [])],
        table,
    )


#: Values at which the axes of sizes and times have ticks.
_ROUND = {
    "memory": [n * 10.0**power for power in range(6, 13) for n in (1, 2, 5)],
    "time": [
        *(0.1, 1, 2, 5, 10, 30),
        *(n * _MINUTE for n in (1, 2, 5, 10, 30)),
        *(n * _HOUR for n in (1, 2, 6, 12, 24, 72)),
        *(n * _DAY for n in (10, 30, 100)),
    ],
}


def _spread_plot(what: str, needs: Mapping[str, Needs], write: Any) -> Chart | None:  # noqa: ANN401 - a function
    """Draw what was given and what was used, by instrument, on a logarithmic axis."""
    pairs = [
        (name, need.memory_given if what == "memory" else need.time_given, getattr(need, what))
        for name, need in needs.items()
    ]
    pairs = [(name, given, used) for name, given, used in pairs if used is not None]
    values = [v for _, *both in pairs for spread in both if spread for v in (spread.p50, spread.most) if v > 0]
    if not values:
        return None
    low, high = math.log(min(values) / 1.4), math.log(max(values) * 1.4)
    views = []
    for name, width, left, most in (("wide", 1080, 70, 8), ("narrow", 420, 50, 4)):
        height = 34 * len(pairs) + 44
        view = View(name, width, height, left, width - 16, 6, height - 38)
        ticks = [tick for tick in _ROUND[what] if low <= math.log(tick) <= high]
        ticks = ticks[:: max(1, math.ceil(len(ticks) / most))]
        view.x_ticks = [
            Tick(f"{view.x((math.log(tick) - low) / (high - low)):.1f}", _short(tick, what)) for tick in ticks
        ]

        def at(value: float, view: View = view) -> str:
            return f"{view.x((math.log(max(value, math.exp(low))) - low) / (high - low)):.1f}"

        for number, (instrument, given, used) in enumerate(pairs):
            view.rows.append(
                {
                    "name": instrument,
                    "y": view.top + 34 * number + 17,
                    "given": given and (at(given.p50), at(given.most)),
                    "used": (at(used.p50), at(used.p95), at(used.most)),
                }
            )
        views.append(view)
    said = "; ".join(
        f"{name}: used {write(used.p50)}, {write(used.p95)} and {write(used.most)}"
        + (f" of {write(given.p50)}" if given else "")
        for name, given, used in pairs
    )
    title = "Memory: given and used" if what == "memory" else "Wall time: given and used"
    return Chart(what, title, f"Median, 95th percentile and most, by instrument. {said}.", "", "", views)


def _short(value: float, what: str) -> str:
    """Write a round number for an axis."""
    if what == "memory":
        return human_size(value)
    for size, unit in ((_DAY * 2, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if value >= size:
            return f"{value / (_DAY if unit == 'd' else size):.0f} {unit}"
    return f"{value:g} s"


# ---- failures


def _failures(control: Control, found: Progress, sample: Sample, links: _Links) -> list[dict[str, Any]]:
    failures = found.failures[:CAUSES]
    named = [failure.what.examples[0] for failure in failures[:_LOGS]]
    logs = list(in_threads(lambda name: _log(control, sample.standings[name].status), named))
    return [
        {
            "cause": failure.cause[:40] or "not judged yet",
            "kind": failure.kind,
            "datasets": failure.what.datasets,
            "code": failure.what.exit_code,
            "code_name": failure.what.name,
            "reason": failure.what.reason[:1000],
            "examples": [(name, links.to(name) if _has_page(sample, name) else "") for name in failure.what.examples],
            "more": failure.what.datasets > len(failure.what.examples),
            "log": logs[number] if number < len(logs) else None,
        }
        for number, failure in enumerate(failures)
    ]


def _has_page(sample: Sample, name: str) -> bool:
    return sample.states.get(name) in _DONE


def _log(control: Control, status: Status | None) -> dict[str, Any] | None:
    """Read the end of what the last run of a dataset printed; None where nothing is left of it."""
    if status is None:
        return None
    prefix = Dataset.parse(status.dataset).prefix
    store = control.store
    for key in (log_key(status.dataset, status.attempt), f"{prefix}/logs/process.txt"):
        with contextlib.suppress(CaldpError, OSError):
            size = next((entry.size for entry in store.walk(key.rpartition("/")[0]) if entry.key == key), None)
            if size is None:
                continue
            if size > _LOG_SIZE:
                return {"key": key, "dataset": status.dataset, "tail": "", "size": human_size(size), "lines": 0}
            if (blob := store.get(key)) is not None:
                lines = blob.data.decode("utf-8", errors="replace").splitlines()
                tail = [printable(line)[:_LOG_LINE] for line in lines[-_LOG_TAIL:]]
                return {"key": key, "dataset": status.dataset, "tail": "\n".join(tail), "size": "", "lines": len(tail)}
    return None


def _outcomes(every: Iterable[Run]) -> list[tuple[str, str, str, str]]:
    """Count runs that made no products, by class: how many, and how long they took."""
    counts: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for run in every:
        if run.outcome != "processed":
            cause = printable(run.outcome)
            counts[cause] += run.weight  # type: ignore[assignment]
            seconds[cause] = seconds.get(cause, 0.0) + run.weight * run.seconds
    return [
        (cause, "" if cause == "cancelled" else progress.kind_of(cause), f"{count:,.0f}", human_time(seconds[cause]))
        for cause, count in counts.most_common()
    ]


# ---- needs and costs


def _need(name: str, need: Needs) -> dict[str, Any]:
    def cells(spread: Spread | None, write: Any) -> list[str]:  # noqa: ANN401 - a function
        return [write(spread.p50), write(spread.p95), write(spread.most)] if spread else ["–"] * 3

    def given(spread: Spread | None, write: Any) -> str:  # noqa: ANN401 - a function
        if spread is None:
            return "–"
        return " to ".join(dict.fromkeys(write(value) for value in (spread.p50, spread.most)))

    return {
        "name": name,
        "runs": need.runs,
        "memory_given": given(need.memory_given, human_size),
        "memory": cells(need.memory, human_size),
        "time_given": given(need.time_given, human_time),
        "time": cells(need.time, human_time),
    }


def _dollars(dollars: float) -> str:
    if 0 < dollars < 0.005:
        return "<$0.01" if dollars >= 0.0001 else "<$0.0001"
    return f"${dollars:,.2f}" if dollars < 1000 else f"${dollars:,.0f}"


def _cost(name: str, cost: Cost) -> dict[str, str]:
    return {
        "name": name,
        "runs": f"{cost.runs:,.0f}",
        "vcpu": f"{cost.vcpu_hours:,.2f}",
        "gb": f"{cost.gb_hours:,.2f}",
        "dollars": _dollars(cost.dollars),
        "wasted": _dollars(cost.wasted),
        "wasted_runs": f"{cost.wasted_runs:,.0f}",
        "retries": _dollars(cost.retries),
        "retried_runs": f"{cost.retried_runs:,.0f}",
    }


# ---- datasets


def _rows(sample: Sample, every: Iterable[Run], links: _Links) -> list[dict[str, Any]]:
    """Lay out datasets, those that failed first, then those that are open."""
    last = {run.dataset: run for run in every}
    order = ("", "error", "cancelled", "processing", "submitted", "placed", *_DONE)
    rank = {state: number for number, state in enumerate(order)}
    chosen = sorted(sample.standings.values(), key=lambda one: (rank[one.state], one.dataset))[:ROWS]
    rows = []
    for one in chosen:
        status, run = one.status, last.get(one.dataset)
        failed = one.state in ("error", "cancelled") or bool(status and status.state == "placed")
        code = status.exit_code if status and type(status.exit_code) is int else None
        why = printable(str(status.reason)) if status and failed else one.damage
        rows.append(
            {
                "name": one.dataset,
                "href": links.to(one.dataset) if one.state in _DONE else "",
                "state": one.state or "damaged",
                "stale": one.stale,
                "attempt": status.attempt if status else "",
                "cause": printable(str(status.cause))[:40] if status and one.state in ("error", "placed") else "",
                "exit": f"exit {code} {code_name(code)}".strip() if code and failed else "",
                "why": f"{why[:_REASON]}…" if len(why) > _REASON else why,
                "rung": printable(str(status.rung))[:40] if status else "",
                "wall": human_time(run.seconds) if run else "",
                "memory": human_size(run.memory) if run and run.memory else "",
            }
        )
    return rows


def _gallery(store: Store, sample: Sample, links: _Links) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Take small pictures of some datasets of all instruments, and the versions that made them."""
    by_instrument: dict[str, list[str]] = {}
    for name in sorted(sample.standings):
        if _has_page(sample, name):
            by_instrument.setdefault(Dataset.parse(name).instrument, []).append(name)
    chosen: list[str] = []
    share = math.ceil(2 * PICTURES / max(len(by_instrument), 1))
    spread = [names[:: max(1, len(names) // share)][:share] for names in by_instrument.values()]
    for turn in range(share):
        chosen += [names[turn] for names in spread if turn < len(names)]
    versions: Counter[tuple[str, str]] = Counter()
    pictures: list[dict[str, Any]] = []
    for name, (record, picture) in zip(chosen, in_threads(lambda name: _picture(store, name), chosen), strict=True):
        versions.update(report.as_pairs(record.get("versions")))
        if context := report.as_text(record.get("context")):
            versions["CRDS context", context] += 1
        if picture is not None and len(pictures) < PICTURES:
            pictures.append({"dataset": name, "href": links.to(name), "picture": picture})
    pictures.sort(key=lambda one: (Dataset.parse(one["dataset"]).instrument, one["dataset"]))
    several = len({name for name, _ in versions}) < len(versions)
    return pictures, [
        (name, f"{value} ({count} of {len(chosen)} looked at)" if several else value)
        for (name, value), count in sorted(versions.items())
    ]


def _picture(store: Store, dataset: str) -> tuple[Mapping[str, Any], report.Picture | None]:
    """Read the manifest of a dataset, and the smallest kind of picture in it."""
    prefix = Dataset.parse(dataset).prefix
    with contextlib.suppress(CaldpError, OSError, ValueError, RecursionError):
        blob = store.get(f"{prefix}/manifest.json")
        record = json.loads(blob.data) if blob else {}
        if not isinstance(record, dict):
            return {}, None
        entries = [
            e for e in report.entries_of(record, "previews") if e.get("kind") in ("thumbnail", "image", "spectrum")
        ]
        entries.sort(key=lambda entry: entry.get("kind") != "thumbnail")
        for entry in entries[:1]:
            picture = report.Picture(entry["name"], report.as_text(entry.get("product")), str(entry.get("kind")), "")
            if report.path_inside(Path("x"), entry["name"]) is None:
                return record, None
            data = store.get(f"{prefix}/{entry['name']}")
            if data is not None:
                report.inline_picture(picture, data.data, PICTURE)
                return record, picture if picture.uri and len(picture.uri) < 4 * PICTURE else None
        return record, None
    return {}, None


# ---- what was asked for, and what was planned


def _plan(control: Control, stock: Stock) -> dict[str, Any]:
    plan = control.plan()
    classes = Counter(line.job_class for line in stock.lines.values())
    refused = [entry for entry in report.as_sequence(plan.get("refused")) if isinstance(entry, dict)]
    canary = report.as_sequence(plan.get("canary"))
    hours, cost = (report.as_number(plan.get(name)) for name in ("hours", "cost"))
    unobserved = report.as_number(plan.get("unobserved"))
    return {
        "classes": [(name, f"{count:,}") for name, count in classes.most_common()],
        "facts": [
            (name, value)
            for name, value in (
                ("datasets", f"{len(stock.lines):,}"),
                ("processed before", f"{stock.skipped:,}" if stock.skipped else ""),
                ("shards", report.as_text(plan.get("submit_jobs"))),
                ("go first", f"{len(canary):,}" if canary else ""),
                ("hours expected", f"{hours:,.1f}" if hours else ""),
                ("cost expected", _dollars(cost) if cost else ""),
                ("never observed", f"{unobserved:,.0f}" if unobserved else ""),
            )
            if value
        ],
        "refused": [
            {"text": report.as_text(entry.get("text")), "reason": report.as_text(entry.get("reason"))}
            for entry in refused[:20]
        ],
        "refused_count": len(refused),
    }


def _request(control: Control) -> list[tuple[str, str]]:
    """Return what was asked for, without the list itself and the figures that it went by."""
    with contextlib.suppress(CaldpError):
        request = control.request()
        options = request.get("options")
        asked = {**request, **(options if isinstance(options, dict) else {})}
        return [
            (report.as_text(name), f"{len(value):,}" if isinstance(value, list | dict) else _flat(value))
            for name, value in asked.items()
            if value and name not in ("options", "settings")
        ]
    return []


def _figures(control: Control) -> str:
    """Return the settings that a campaign was planned by, as JSON."""
    with contextlib.suppress(CaldpError):
        if settings := control.request().get("settings"):
            return json.dumps(settings, indent=1)[:20_000]
    return ""


def _flat(value: object) -> str:
    text = report.as_text(value)
    return {"True": "yes", "False": "no"}.get(text, text)[:500]


def _lines(control: Control, key: str, names: Sequence[str], most: int = 20) -> dict[str, Any]:
    """Read the last records of a list that has one a line."""
    blob = control.store.get(key)
    raw = blob.data.splitlines() if blob else []
    rows = []
    for line in raw[-most:]:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                rows.append([report.as_text(record.get(name))[:300] for name in names])
    return {"rows": rows, "more": len(raw) - len(rows)}
