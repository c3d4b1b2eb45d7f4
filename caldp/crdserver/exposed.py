"""When datasets were exposed, for all rows at once, and to the microsecond as crds reads dates.

crds writes a date as ``2009-05-14 00:00:00``, with a fraction where there is one, and compares such texts.  Here they
are microseconds since the year 1, which are in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from caldp.crdserver.columns import Column

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
    return int((found - _FIRST) // timedelta(microseconds=1))


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

    known: dict[tuple[str | None, ...], int] = {}
    for row in rows.tolist():
        parts = (dates.text(row),) if times is None else (dates.text(row), times.text(row))
        instant = known.get(parts)
        if instant is None:
            conditioned = ["UNDEFINED" if part is None else utils.condition_value(part) for part in parts]
            instant = int(MALFORMED) if "UNDEFINED" in conditioned else parse(" ".join(conditioned).strip())
            known[parts] = instant
        found[row] = instant


def _take(values: NDArray[np.int64], codes: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.append(values, MALFORMED)[codes]  # ABSENT, -1, is the last one


def _days(values: pa.StringArray) -> NDArray[np.int64]:
    """Return the microseconds before each day that is written YYYY-MM-DD, and MALFORMED for the others."""
    found = np.full(len(values), MALFORMED)
    which, digits = _digits(values, "0000-00-00")
    year, month, day = digits[:, :4] @ [1000, 100, 10, 1], digits[:, 5:7] @ [10, 1], digits[:, 8:] @ [10, 1]
    plain = (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)
    months = np.where(plain, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    length = ((months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
    days = (months.astype("datetime64[D]") - np.datetime64("0001-01-01", "D")).astype(np.int64) + day - 1
    found[which] = np.where(plain & (day <= length), days * _DAY, MALFORMED)
    return found


def _clocks(values: pa.StringArray) -> NDArray[np.int64]:
    """Return the microseconds since midnight of each time that is written HH:MM:SS[.ffffff], MALFORMED for others."""
    found = np.full(len(values), MALFORMED)
    for places in range(7):
        which, digits = _digits(values, "00:00:00" + ("." + "0" * places if places else ""))
        hour, minute, second = digits[:, 0:2] @ [10, 1], digits[:, 3:5] @ [10, 1], digits[:, 6:8] @ [10, 1]
        whole = second.copy()
        for place in range(9, 9 + places):
            whole = whole * 10 + digits[:, place]
        # As crds takes a fraction apart, rounding errors and all.
        seconds = whole / 10.0**places
        micro = ((seconds - seconds.astype(np.int64)) * 10**6).astype(np.int64)
        plain = (hour < 24) & (minute < 60) & (second < 60)
        found[which] = np.where(plain, ((hour * 60 + minute) * 60 + second) * _SECOND + micro, MALFORMED)
    return found


def _digits(values: pa.StringArray, form: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pick texts of a form, where 0 is for any digit, and take them apart.

    Returns
    -------
    which : ndarray of int64, shape (picked,)
        Where they are.
    digits : ndarray of int64, shape (picked, len(form))
        One sign in each column.
    """
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    which = np.flatnonzero(np.diff(ends) == len(form))
    if not len(which):
        return which, np.empty((0, len(form)), np.int64)
    signs = np.frombuffer(data, np.uint8)[ends[which][:, None] + np.arange(len(form))]
    wanted = np.frombuffer(form.encode(), np.uint8)
    is_digit = wanted == ord("0")
    fits = ((signs >= ord("0")) & (signs <= ord("9")))[:, is_digit].all(1) & (signs == wanted)[:, ~is_digit].all(1)
    return which[fits], signs[fits].astype(np.int64) - ord("0")


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
        opens = [f"{value} " for value in dates.texts]
        alone = np.array([one >= since for one in opens] + [False])
        begins = [since.startswith(one) and len(one) < len(since) for one in opens]
        late = alone[dates.codes]
        for number in np.flatnonzero(begins).tolist():
            rest = since[len(opens[number]) :]
            for row in np.flatnonzero(both & (dates.codes == number)).tolist():
                late[row] = str(times.text(row)) >= rest
        found = np.where(both, late, found)
        open_rows &= ~both
    return found
