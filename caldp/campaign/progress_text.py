"""How a campaign stands, and what it is processing, laid out for people."""

from __future__ import annotations

from collections.abc import Sequence

from caldp import batch_text
from caldp.campaign.progress import KINDS, Active, Progress
from caldp.messages import STATES
from caldp.reporter import human_count, human_size, human_time, printable

#: Lines of a list that a person is shown.
_LINES = 20


def verdict(found: Progress) -> str:
    """Say in a sentence how a campaign stands.

    Parameters
    ----------
    found : Progress
        The campaign.

    Returns
    -------
    str
    """
    if not found.planned:
        before = f": {found.skipped:,} had been processed before" if found.skipped else ""
        return f"There is nothing to do{before}."
    if found.done == found.planned:
        return f"All {found.planned:,} datasets are processed." if found.planned > 1 else "The dataset is processed."
    parts = [f"{found.done:,} of {found.planned:,} datasets are processed"]
    counts = found.counts
    failed = counts["error"] - found.unjudged
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"{counts['cancelled']:,} cancelled"] if counts["cancelled"] else []
    parts += [f"{len(found.damaged):,} with a damaged status"] if found.damaged else []
    parts += [f"{found.open:,} open"] if found.open else []
    if found.open and found.paused:
        return f"{', '.join(parts)}. Nothing more is started: {found.paused}."
    left = "" if not found.open or found.seconds_left is None else f"; about {human_time(found.seconds_left)} left"
    return f"{', '.join(parts)}{left}."


def progress_text(found: Progress, width: int = 80) -> str:
    """Lay out how a campaign stands, with colours that ``click.echo`` takes out where they do not belong.

    Parameters
    ----------
    found : Progress
        The campaign.
    width : int, optional
        Columns of the screen.

    Returns
    -------
    str
    """
    return "\n".join(
        [
            found.batch,
            "",
            *_table(found),
            *_pace(found),
            *_failures(found, width),
            *_remarks(found, width),
            "",
            *batch_text.wrapped(verdict(found), width),
        ]
    )


def _table(found: Progress) -> list[str]:
    columns = found.states
    digits = {name: max(len(name), len(f"{sum(by_state.values()):,}")) for name, by_state in columns.items()}
    whole = max(8, len(f"{found.planned:,}"))
    head = "".join(f"  {name:>{digits[name]}}" for name in columns)
    lines = [f"  {'':<10}{head}  {'datasets':>{whole}}"]
    for state in STATES:
        count = found.counts[state]
        cells = "".join(f"  {_cell(by_state.get(state, 0)):>{digits[name]}}" for name, by_state in columns.items())
        line = f"  {state:<10}{cells}  {count:>{whole},}  {batch_text.share_text(count, found.planned):>7}".rstrip()
        lines.append(batch_text.styled(line, batch_text.state_colour(state) if count else ""))
    if found.damaged:
        gap = sum(2 + n for n in digits.values())
        lines.append(batch_text.styled(f"  {'damaged':<10}{'':{gap}}  {len(found.damaged):>{whole},}", "red"))
    rule = "".join(f"  {'-' * digits[name]}" for name in columns)
    sums = "".join(f"  {sum(by_state.values()):>{digits[name]},}" for name, by_state in columns.items())
    return [*lines, f"  {'':<10}{rule}  {'-' * whole}", f"  {'':<10}{sums}  {found.planned:>{whole},}"]


def _cell(count: int) -> str:
    return f"{count:,}" if count else ""


def _pace(found: Progress) -> list[str]:
    lines = []
    if found.begun:
        until = f", ended {batch_text.time_text(found.ended)}" if found.ended else ""
        lines.append(f"Begun {batch_text.time_text(found.begun)} UTC{until}")
    if found.rate is not None:
        lately = ""
        if found.rate_lately is not None:
            lately = f", {rate_text(found.rate_lately)} in the last {human_time(found.lately)}"
        lines.append(f"{_about(found)}{rate_text(found.rate)} datasets an hour{lately}")
    if found.retries:
        waiting = f", {found.waiting:,.0f} wait for one" if found.waiting else ""
        why = ", ".join(f"{count:,.0f} {printable(cause)}" for cause, count in found.retry_causes.items())
        attempts, datasets = human_count(found.retries, "more attempt"), human_count(found.retried, "dataset")
        lines.append(f"{_about(found)}{attempts} of {datasets} ({why}){waiting}")
    if found.oldest:
        one = found.oldest
        lines.append(
            f"Open for longest: {one.dataset}, {one.state} for {human_time(one.seconds)}, attempt {one.attempt}"
        )
    return ["", *lines] if lines else []


def _about(found: Progress) -> str:
    return "About " if found.read < found.planned else ""


def rate_text(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _failures(found: Progress, width: int) -> list[str]:
    if not found.failures:
        return []
    errors = found.counts["error"]
    seen = "" if found.errors_read >= errors else f" (of {found.errors_read:,} of {errors:,}, spread over the names)"
    lines = ["", f"Failures{seen}"]
    for kind in KINDS:
        classes = {cause: count for cause, count in found.kinds[kind].items() if count}
        if classes:
            said = ", ".join(f"{count:,} {printable(cause)}" for cause, count in classes.items())
            said = "" if list(classes) == [kind] else f"  {said}"
            lines.append(f"  {kind:<14}  {sum(classes.values()):>7,}{said}")
    lines.append("")
    digits = len(f"{found.failures[0].what.datasets:,}")
    for failure in found.failures[:_LINES]:
        lines += batch_text.cause_lines(failure.what, digits, width, f"{failure.cause or 'not judged yet'}: ")
    return [*lines, *batch_text.and_more(found.failures, "causes")]


def _remarks(found: Progress, width: int) -> list[str]:
    remarks = []
    if found.paused:
        remarks.append(f"Paused: {found.paused}")
    if found.stale:
        names = " ".join(standing.dataset for standing in found.stale[:_LINES])
        remarks.append(f"{len(found.stale):,} are processing, but their runs are dead: {names}")
    if found.damaged:
        remarks.append(f"The status cannot be understood of {' '.join(found.damaged[:_LINES])}")
    if found.refused:
        remarks.append(f"{found.refused:,} could not be planned: see control/plan.json")
    if found.rejected:
        remarks.append(f"{found.rejected:,} entries of the list were rejected: see control/rejected.jsonl")
    if found.skipped:
        remarks.append(f"{found.skipped:,} had been processed before, and are left as they are")
    if found.others:
        remarks.append(f"{found.others:,} more datasets in this batch are not the campaign's")
    lines = [line for remark in remarks for line in batch_text.wrapped(remark, width)]
    return ["", *lines] if lines else []


def running_text(active: Sequence[Active], total: int, *, rows: int = _LINES) -> str:
    """Lay out what a campaign is processing, as a table.

    Parameters
    ----------
    active : sequence of Active
        As ``progress.running`` returns them.
    total : int
        How many there are.
    rows : int, optional
        How many are shown.

    Returns
    -------
    str
    """
    if not active:
        return "Nothing is being processed."
    table = [("dataset", "attempt", "rung", "time", "of", "memory", "of", "near", "")]
    for one in active[:rows]:
        table.append(
            (
                one.dataset,
                f"{one.attempt}" + (f".{one.retry}" if one.retry > 1 else ""),
                one.rung,
                human_time(one.seconds),
                human_time(one.time_limit) if one.time_limit else "",
                human_size(one.memory) if one.memory else "",
                human_size(one.memory_limit) if one.memory_limit else "",
                f"{100 * one.share:.0f} %",
                "stale: its run is dead" if one.stale else one.by,
            )
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for number, row in enumerate(table):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        line = "  ".join([*cells, row[-1]]).rstrip()
        share = active[number - 1].share if number else 0.0
        stale = bool(number) and active[number - 1].stale
        lines.append(batch_text.styled(line, "yellow" if stale else "red" if share >= 0.9 else ""))
    hidden = total - min(len(active), rows)
    return "\n".join([*lines, *([f"... and {hidden:,} more"] if hidden > 0 else [])])
