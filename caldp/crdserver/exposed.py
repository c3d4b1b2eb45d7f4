"""When datasets were exposed, for all rows at once, and to the microsecond as crds reads dates.

crds writes a date as ``2009-05-14 00:00:00``, with a fraction where there is one, and compares such texts.  Here they
are microseconds since the year 1, which are in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caldp.crdserver.columns import ABSENT, Column

#: Of a row whose date crds cannot read.
MALFORMED = np.iinfo(np.int64).min

#: Pairs of keywords that crds takes the time of an exposure from, the first pair that a header has.
PAIRS = (
    ("DATE-OBS", "TIME-OBS"),
    ("META.OBSERVATION.DATE", "META.OBSERVATION.TIME"),
    ("META_OBSERVATION_DATE", "META_OBSERVATION_TIME"),
)

#: What crds takes for the time of an exposure of which nothing is known.
EARLIEST = "1900-01-01 00:00:00"

_FIRST = datetime.min
_LAST = (datetime.max - _FIRST) // timedelta(microseconds=1)
_SECOND, _DAY = 1_000_000, 86_400_000_000

#: ``YYYY-MM-DD`` and ``HH:MM:SS.ffffff``.
_DATE, _TIME = 10, 15


def parse(text: str) -> int:
    """Return a date of any form that crds knows as microseconds, or MALFORMED.

    Parameters
    ----------
    text : str
        Date and time, as the values of their keywords are conditioned, with a blank between them.

    Returns
    -------
    int
    """
    from crds.core import timestamp

    try:
        found = timestamp.parse_date(text)
    except Exception:  # noqa: BLE001 - crds takes whatever is raised for a malformed date
        return int(MALFORMED)
    return (found - _FIRST) // timedelta(microseconds=1)


def text(instant: int) -> str:
    """Return microseconds as crds writes a date."""
    return (_FIRST + timedelta(microseconds=instant)).isoformat(" ")


@lru_cache(maxsize=1 << 16)
def threshold(key: str) -> int:
    """Return the first instant whose text is not below a text; one beyond the year 9999 if there is none.

    Parameters
    ----------
    key : str
        Of a rule: mostly, but not always, a date that is written as crds writes it.

    Returns
    -------
    int
        Microseconds.
    """
    try:
        instant = (datetime.fromisoformat(key) - _FIRST) // timedelta(microseconds=1)
        if text(instant) == key:
            return instant
    except (ValueError, TypeError):
        pass
    low, high = 0, _LAST + 1
    while low < high:
        middle = (low + high) // 2
        if text(middle) >= key:
            high = middle
        else:
            low = middle + 1
    return low


def instants(dates: Column, times: Column | None) -> NDArray[np.int64]:
    """Return when the rows were exposed.

    Parameters
    ----------
    dates, times : Column
        The keywords that rules select by; some have only one.

    Returns
    -------
    ndarray of int64, shape (rows,)
        Microseconds, or MALFORMED.
    """
    days = _take(_days(dates.values), dates.codes)
    if times is None:
        found, known = days, days >= 0
    else:
        clocks = _take(_clocks(times.values), times.codes)
        known = (days >= 0) & (clocks >= 0)
        found = days + clocks
    found = np.where(known, found, MALFORMED)
    if not known.all():
        _patiently(found, np.flatnonzero(~known), dates, times)
    return found


def _patiently(found: NDArray[np.int64], rows: NDArray[Any], dates: Column, times: Column | None) -> None:
    """Fill in what is written in another way, and is perhaps a date."""
    from crds.core import utils

    known: dict[tuple[int, int], int] = {}
    ticks = np.full(len(rows), 0) if times is None else times.codes[rows]
    for row, date, tick in zip(rows.tolist(), dates.codes[rows].tolist(), ticks.tolist(), strict=True):
        instant = known.get((date, tick))
        if instant is None:
            instant = int(MALFORMED)
            if ABSENT not in (date, tick):
                parts = [dates.values[date]] + ([] if times is None else [times.values[tick]])
                conditioned = [utils.condition_value(part) for part in parts]
                if "UNDEFINED" not in conditioned:
                    instant = parse(" ".join(conditioned).strip())
            known[date, tick] = instant
        found[row] = instant


def _take(values: NDArray[np.int64], codes: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.append(values, MALFORMED)[codes]  # ABSENT, -1, is the last one


def _days(values: Sequence[str]) -> NDArray[np.int64]:
    """Return the microseconds before each day that is written YYYY-MM-DD, and MALFORMED for the others."""
    digits = _digits(values, _DATE, "0000-00-00")
    year, month, day = digits[:, :4] @ [1000, 100, 10, 1], digits[:, 5:7] @ [10, 1], digits[:, 8:] @ [10, 1]
    plain = (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)
    months = np.where(plain, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    length = ((months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
    days = (months.astype("datetime64[D]") - np.datetime64("0001-01-01", "D")).astype(np.int64) + day - 1
    return np.where(plain & (day <= length), days * _DAY, MALFORMED)


def _clocks(values: Sequence[str]) -> NDArray[np.int64]:
    """Return the microseconds since midnight of each time that is written HH:MM:SS[.ffffff], MALFORMED for others."""
    found = np.full(len(values), MALFORMED)
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    for length in range(8, _TIME + 1):
        if length == 9:  # a point, and nothing behind it: for crds to read
            continue
        which = np.flatnonzero(lengths == length)
        if not len(which):
            continue
        form = "00:00:00" if length == 8 else "00:00:00." + "0" * (length - 9)
        digits = _digits([values[one] for one in which.tolist()], length, form)
        hour, minute, second = digits[:, 0:2] @ [10, 1], digits[:, 3:5] @ [10, 1], digits[:, 6:8] @ [10, 1]
        whole = second.copy()
        for place in range(9, length):
            whole = whole * 10 + digits[:, place]
        # As crds takes a fraction apart, rounding errors and all.
        seconds = whole / 10.0 ** max(0, length - 9)
        micro = ((seconds - seconds.astype(np.int64)) * 10**6).astype(np.int64)
        plain = (hour >= 0) & (hour < 24) & (minute < 60) & (second < 60)
        found[which] = np.where(plain, ((hour * 60 + minute) * 60 + second) * _SECOND + micro, MALFORMED)
    return found


def _digits(values: Sequence[str], length: int, form: str) -> NDArray[np.int64]:
    """Return texts as digits, one a column; texts of another form are -1000 all over."""
    letters = np.array([value if len(value) == length else "" for value in values], f"U{length}")
    codes = letters.view(np.uint32).reshape(len(values), length).astype(np.int64)
    there = np.frombuffer(form.encode("utf-32-le"), np.uint32).astype(np.int64)
    is_digit = there == ord("0")
    digits = codes - ord("0")
    fits = ((digits >= 0) & (digits <= 9))[:, is_digit].all(1) & (codes == there)[:, ~is_digit].all(1)
    return np.where(fits[:, None], digits, -1000)


# ---- what a client means by datasets since a date


def exposed(header: Mapping[str, str]) -> str:
    """Return the time of an exposure as crds compares it with a date since which datasets are wanted."""
    for date, time in PAIRS:
        if date in header and time in header:
            return f"{header[date]} {header[time]}"
    return EARLIEST


def since_mask(columns: Mapping[str, Column], since: str, rows: int) -> NDArray[np.bool_]:
    """Say which rows were exposed since a date; see ``exposed``.

    Parameters
    ----------
    columns : mapping
        {keyword: Column}, of those in ``PAIRS`` that there are.
    since : str
        For example ``2009-05-14 00:00:00``.
    rows : int
        How many rows.

    Returns
    -------
    ndarray of bool, shape (rows,)
    """
    found = np.full(rows, since <= EARLIEST)
    open_rows = np.ones(rows, np.bool_)
    for date, time in PAIRS:
        if date not in columns or time not in columns:
            continue
        dates, times = columns[date], columns[time]
        both = open_rows & (dates.codes >= 0) & (times.codes >= 0)
        # A date decides alone, unless the date that is wanted begins with it.
        opens = [f"{value} " for value in dates.values]
        alone = np.array([one >= since for one in opens] + [False])
        begins = [since.startswith(one) and len(one) < len(since) for one in opens]
        late = alone[dates.codes]
        for number in np.flatnonzero(begins).tolist():
            rest = since[len(opens[number]) :]
            passes = np.array([value >= rest for value in times.values] + [False])
            late = np.where(dates.codes == number, passes[times.codes], late)
        found = np.where(both, late, found)
        open_rows &= ~both
    return found
