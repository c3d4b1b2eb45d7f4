"""How the datasets of a batch stand, laid out for people and for machines."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from caldp.batch import FOLDERS, LOST, PROCESSED, Cause, Standing, Survey, code_name, history
from caldp.dataset import Dataset
from caldp.messages import Status
from caldp.reporter import human_time, printable
from caldp.store import Store

#: Lines of a list that a person is shown.
_LINES = 20

# ---- for machines


def survey_json(found: Survey) -> str:
    """Lay a survey out for machines."""
    return json.dumps(
        {
            "batch": found.batch,
            "at": found.at,
            "datasets": found.datasets,
            "counts": found.counts,
            "open": found.open,
            "failed": found.failed,
            "done": found.datasets - found.open - found.failed,
            "errors": [
                {
                    "exit_code": cause.exit_code,
                    "name": cause.name,
                    "reason": cause.reason,
                    "datasets": cause.datasets,
                    "examples": list(cause.examples),
                }
                for cause in found.causes
            ],
            "errors_read": found.errors_read,
            "stale": [
                {
                    "dataset": standing.dataset,
                    "attempt": standing.status.attempt,
                    "run": standing.status.run,
                    "by": standing.status.by,
                    "at": standing.status.at,
                    "silent_s": _seconds(standing.silence),
                }
                for standing in found.stale
                if standing.status
            ],
            "processing_read": found.processing_read,
            "unrecorded": found.unrecorded,
            "damaged": found.damaged,
            "unread": found.unread,
            "exit_status": found.exit_status,
        },
        indent=1,
    )


def standing_json(store: Store, standing: Standing) -> str:
    """Lay the standing of one dataset out for machines."""
    status = standing.status or Status(standing.dataset, 0, standing.state)
    record = status.to_json()
    return json.dumps(
        {
            "batch": store.url(),
            "dataset": standing.dataset,
            "state": standing.state,
            **{key: record[key] for key in ("attempt", "retry", "reason", "exit_code")},
            "name": code_name(status.exit_code) if type(status.exit_code) is int else "",
            **{key: record[key] for key in ("run", "job", "by", "at", "beat")},
            "silent_s": _seconds(standing.silence),
            "stale": standing.stale,
            "location": _location(store, standing.dataset),
            "recorded": standing.status is not None,
            "folders": [FOLDERS[state] for state in standing.folders],
            "message": record["message"],
            "history": record["history"],
            "exit_status": standing.exit_status,
        },
        indent=1,
    )


def _seconds(silence: float | None) -> float | None:
    return None if silence is None or math.isinf(silence) else round(silence, 1)


def _location(store: Store, dataset: str) -> str:
    return store.url(Dataset.parse(dataset).prefix)


# ---- for people


def survey_text(found: Survey, width: int = 80) -> str:
    """Lay a survey out for people, with colours that ``click.echo`` takes out where they do not belong."""
    return "\n".join(
        [
            found.batch,
            "",
            *_table(found),
            *_causes_text(found, width),
            *_stale_text(found),
            *_names_text("Shown in messages/, but without a status record", found.unrecorded, width),
            *_names_text("With a damaged status record", found.damaged, width),
            "",
            *wrapped(_verdict(found), width),
        ]
    )


def _table(found: Survey) -> list[str]:
    remarks = {"processing": f"{len(found.stale):,} stale" if found.stale else ""}
    rows = list(found.counts.items())
    rows += [(what, count) for what, count in (("damaged", len(found.damaged)), ("not read", found.unread)) if count]
    digits = max(len(f"{found.datasets:,}"), 8)
    lines = []
    for what, count in rows:
        remark = remarks.get(what, "")
        colour = state_colour(what) if count else ""
        line = f"  {what:<10}  {count:>{digits},}  {share_text(count, found.datasets):>7}"
        lines.append(styled(line, colour) + (styled(f"  {remark}", "yellow") if remark else ""))
    lines.append(f"  {'':<10}  {'-' * digits}")
    lines.append(f"  {'datasets':<10}  {found.datasets:>{digits},}")
    return lines


def state_colour(what: str) -> str:
    if what in ("damaged", *LOST):
        return "red"
    return {"processed": "green", "synced": "green", "archived": "green", "processing": "cyan"}.get(what, "")


def styled(text: str, colour: str) -> str:
    return click.style(text, fg=colour) if colour else text


def share_text(count: int, of: int) -> str:
    """Write a share; 100.0 % is all, and 0.0 % does not appear."""
    if not count:
        return ""
    tenths = 1000 * count // of
    return f"{tenths / 10:.1f} %" if tenths else "<0.1 %"


def _causes_text(found: Survey, width: int) -> list[str]:
    if not found.causes:
        return []
    errors = found.counts["error"]
    seen = "" if found.errors_read >= errors else f" (of {found.errors_read:,} of {errors:,}, spread over the names)"
    lines = ["", f"Errors by cause{seen}"]
    digits = len(f"{found.causes[0].datasets:,}")
    for cause in found.causes[:_LINES]:
        lines += cause_lines(cause, digits, width)
    return [*lines, *and_more(found.causes, "causes")]


def cause_lines(cause: Cause, digits: int, width: int, kind: str = "") -> list[str]:
    """Lay a failure out that datasets have in common.

    Parameters
    ----------
    cause : Cause
        The failure.
    digits : int
        Columns for the number of datasets.
    width : int
        Columns of the screen.
    kind : str, optional
        What comes before the exit status.

    Returns
    -------
    list of str
    """
    code = "no exit status" if cause.exit_code is None else f"exit {cause.exit_code} {cause.name}".rstrip()
    indent, more = " " * (digits + 4), " ..." if cause.datasets > len(cause.examples) else ""
    return [
        styled(f"  {cause.datasets:>{digits},}  {kind}{code}", "red"),
        *wrapped(cause.reason or "no reason given", width, indent),
        *wrapped(" ".join(cause.examples) + more, width, indent),
    ]


def _stale_text(found: Survey) -> list[str]:
    if not found.stale:
        return []
    seen = found.counts["processing"]
    part = "" if found.processing_read >= seen else f" (of {found.processing_read:,} of {seen:,} runs)"
    lines = ["", f"Stale: processing, but the run is dead{part}"]
    for standing in found.stale[:_LINES]:
        by = printable(str(standing.status.by)) if standing.status else ""
        attempt = standing.status.attempt if standing.status else 0
        lines.append(styled(f"  {standing.dataset}  attempt {attempt}  {by}  {_silence_text(standing)}", "yellow"))
    return [*lines, *and_more(found.stale, "runs")]


def _silence_text(standing: Standing) -> str:
    if standing.silence is None:
        return "its lock is free" if standing.stale else "its lock is held"
    return "no sign of life" if math.isinf(standing.silence) else f"silent for {human_time(max(0.0, standing.silence))}"


def _names_text(what: str, names: Sequence[str], width: int) -> list[str]:
    if not names:
        return []
    return [
        "",
        f"{what}: {len(names):,}",
        *wrapped(" ".join(names[:_LINES]), width, "  "),
        *and_more(names, "datasets"),
    ]


def and_more(things: Sequence[object], what: str) -> list[str]:
    return [f"  ... and {len(things) - _LINES:,} more {what} (see --json)"] if len(things) > _LINES else []


def _verdict(found: Survey) -> str:
    if found.exit_status == PROCESSED:
        return "All are processed."
    parts = [f"{found.open:,} still open"] if found.open else ["Nothing is open any more"]
    if found.failed:
        parts.append(f"{found.failed:,} failed")
    if found.stale:
        parts.append(f"{len(found.stale):,} stale: run them again")
    if found.unread:
        parts.append(f"{found.unread:,} not read: see --limit, or repair the messages")
    return f"{'; '.join(parts)}."


def standing_text(store: Store, standing: Standing, width: int = 80, *, cut: bool = True) -> str:
    """Lay the standing of one dataset out for people; ``cut`` the lines of its history to the width."""
    status = standing.status or Status(standing.dataset, 0, standing.state)
    colour = "yellow" if standing.stale else state_colour(standing.state)
    code = f"exit {status.exit_code} {code_name(status.exit_code)}".rstrip() if status.exit_code else ""
    rows = [
        ("state", standing.state + (", stale: the run is dead" if standing.stale else "")),
        ("attempt", f"{status.attempt}" + (f", start {status.retry}" if status.retry > 1 else "")),
        ("reason", ": ".join(filter(None, [code, printable(str(status.reason))]))),
        ("run", printable(str(status.run))),
        ("job", printable(str(status.job))),
        ("by", printable(str(status.by))),
        ("at", f"{time_text(status.at)} UTC" if status.at else ""),
        ("heartbeat", _silence_text(standing) if standing.state == "processing" else ""),
        ("location", _location(store, standing.dataset)),
        ("messages", ", ".join(FOLDERS[state] for state in standing.folders) or "none"),
    ]
    lines = [f"{standing.dataset} in {store.url()}", ""]
    if standing.status is None:
        lines += ["  It has a message, but no status record.", ""]
        rows = [row for row in rows if row[0] in ("state", "location", "messages")]
    for what, text in rows:
        if text:
            first, *rest = wrapped(text, width, " " * 13)
            lines += [f"  {what:<11}{styled(first.strip(), colour if what == 'state' else '')}", *rest]
    if status.history:
        lines += ["", "History (UTC)", *(f"  {_entry(entry, width - 2 if cut else 0)}" for entry in history(status))]
    return "\n".join(lines)


def _entry(entry: dict[str, Any], width: int) -> str:
    code = entry.get("exit_code")
    said = [f"exit {code}" if code else "", str(entry.get("by") or ""), str(entry.get("reason") or "")]
    state = str(entry.get("state"))
    start = f" start {entry['retry']}" if entry.get("retry", 1) != 1 else ""
    line = f"{time_text(entry.get('at'))}  {entry.get('attempt')}{start}  {state:<10}  {'  '.join(filter(None, said))}"
    line = printable(line)
    return f"{line[: width - 3].rstrip()}..." if width and len(line) > width else line


def time_text(text: object) -> str:
    """Write a time of a status for people, to the second."""
    return re.sub(r"T(\d\d:\d\d:\d\d).*", r" \1", printable(str(text or "")))


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
