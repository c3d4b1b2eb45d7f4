"""The catalogue of the parameters of datasets, by which their references are chosen.

In a store, ``datasets/<observatory>/<instrument>.json`` is a small record that names the table of an instrument, a
Parquet file beside it that never changes.  An import writes a new table, then moves the record, only if nobody else has
moved it meanwhile: readers see the old table or the new one, and of two imports at once neither loses a row.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from caldp.crdserver import columns, exposed
from caldp.crdserver.columns import Table
from caldp.dataset import INSTRUMENT_LETTERS
from caldp.errors import BusyError, InputError
from caldp.store import ConflictError, Create, PutMode, Store, Update

#: First letters of HST datasets whose instruments crds has rules for.
_LETTERS = {**INSTRUMENT_LETTERS, "n": "nicmos", "u": "wfpc2"}

#: ``PRODUCT:EXPOSURE``; what JWST calls its datasets has more than letters and digits.
_PART = r"[A-Z0-9][A-Z0-9_.\-]*"
_ID = re.compile(rf"({_PART})(:{_PART})?")

#: Where a header says which instrument it is of, as crds looks for it, and what some are called besides.
_INSTRUMENT = ("INSTRUME", "META.INSTRUMENT.NAME", "META_INSTRUMENT_NAME", "INSTRUMENT", "META.INSTRUMENT.TYPE")
_SYNONYMS = {"wfii": "wfpc2", "hst": "synphot"}

#: Headers that are turned into columns together.
_BATCH = 20_000

#: How often an import, or a reader, begins again because others were faster.
_TRIES = 100

#: Entries that cannot be imported that are remembered.
_TOLD = 1000


@dataclass(frozen=True)
class Counts:
    """What an import did to one instrument: rows that are new, that were replaced, and that there are now."""

    added: int
    replaced: int
    rows: int


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes
    ----------
    instruments : mapping
        {instrument: Counts}.
    rejected : tuple of (str, str)
        Entries that are not in the catalogue now, and why; at most the first 1000 of them.
    rejections : int
        How many there are.
    """

    instruments: Mapping[str, Counts] = field(default_factory=dict)
    rejected: tuple[tuple[str, str], ...] = ()
    rejections: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "instruments": {name: asdict(counts) for name, counts in self.instruments.items()},
            "rejected": [list(one) for one in self.rejected],
            "rejections": self.rejections,
        }


def two_parts(text: str) -> str:
    """Return an id as ``PRODUCT:EXPOSURE`` in upper case; an exposure that belongs to nothing is its own product.

    Raises
    ------
    InputError
        If it is none.
    """
    found = _ID.fullmatch(text.strip().upper())
    if found is None:
        raise InputError(f"{text[:60]!r} is no id of a dataset", remedy="write EXPOSURE or PRODUCT:EXPOSURE")
    return found[0] if found[2] else f"{found[1]}:{found[1]}"


def instrument_of(header: Mapping[str, Any]) -> str:
    """Return the instrument that a header is of, in lower case; empty if it does not say."""
    for keyword in _INSTRUMENT:
        name = str(header.get(keyword) or "").strip().lower()
        if name and name != "undefined":
            return _SYNONYMS.get(name, name)
    return ""


def products(ids: Iterable[str]) -> list[str]:
    """Return what the pipeline calibrates of datasets ``PRODUCT:EXPOSURE``: products, in lower case, each once."""
    return sorted({one.partition(":")[0].lower() for one in ids})


# ---- importing


def import_headers(store: Store, observatory: str, headers: Iterable[tuple[str, Mapping[str, str]]]) -> Imported:
    """Put headers into the catalogue; a dataset that is there already is replaced.

    Parameters
    ----------
    store : Store
        Where the catalogue is.
    observatory : str
        ``hst`` or ``jwst``.
    headers : iterable of (str, mapping)
        Ids and {keyword: value}; of two of the same id the later counts.

    Returns
    -------
    Imported

    Raises
    ------
    BusyError
        If others import all the time.
    """
    intake = Intake(store, observatory)
    for one, header in headers:
        intake.add(one, header)
    return intake.finish()


def import_table(store: Store, observatory: str, table: pa.Table) -> Imported:
    """Put a table into the catalogue; see ``import_headers``.

    Parameters
    ----------
    store : Store
        Where the catalogue is.
    observatory : str
        ``hst`` or ``jwst``.
    table : pyarrow.Table
        A column ``dataset`` of ids, and one for each keyword; null is for headers that do not have it.

    Returns
    -------
    Imported

    Raises
    ------
    InputError
        If it has no such column, or none that tells the instrument.
    """
    intake = Intake(store, observatory)
    intake.add_table(table)
    return intake.finish()


class Intake:
    """An import that goes on: headers and tables are gathered, and brought in all at once at its end.

    Parameters
    ----------
    store : Store
        Where the catalogue is.
    observatory : str
        ``hst`` or ``jwst``.
    """

    def __init__(self, store: Store, observatory: str) -> None:
        self._store = store
        self._observatory = observatory
        self._now = int(store.clock().timestamp())
        self._waiting: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
        self._tables: dict[str, list[pa.Table]] = {}
        self._rejected: list[tuple[str, str]] = []
        self._rejections = 0

    def reject(self, entry: str, why: str) -> None:
        """Remember that something cannot be imported."""
        self._rejections += 1
        if len(self._rejected) < _TOLD:
            self._rejected.append((entry, why))

    def add(self, one: str, header: Mapping[str, Any]) -> None:
        """Take one header."""
        known = {str(key).upper(): str(value) for key, value in header.items() if value is not None}
        instrument = instrument_of(known)
        try:
            name = two_parts(one)
            self._check(name, instrument)
        except InputError as error:
            self.reject(one[:100], error.message)
            return
        rows = self._waiting.setdefault(instrument, [])
        rows.append((name, known))
        if len(rows) >= _BATCH:
            self._encode(instrument)

    def add_table(self, table: pa.Table) -> None:
        """Take a table of headers."""
        lower = {name.lower(): name for name in table.column_names}
        if columns.DATASET not in lower:
            raise InputError("the table has no column dataset", remedy="give the ids PRODUCT:EXPOSURE such a column")
        upper = [name.upper() for name in table.column_names]
        if len(set(upper)) < len(upper):
            raise InputError("the table has two columns of one name", remedy="give each keyword one column")
        known = [name for name in table.column_names if name.upper() in _INSTRUMENT]
        if not known:
            raise InputError("the table has no column INSTRUME", remedy="say of each dataset which instrument it is of")
        ids = table.column(lower[columns.DATASET]).to_pylist()
        names = [table.column(name).to_pylist() for name in known]
        wanted: dict[str, list[int]] = {}
        good: list[str] = []
        memory: dict[tuple[Any, ...], str] = {}
        for row, (one, said) in enumerate(zip(ids, zip(*names, strict=True), strict=True)):
            instrument = memory.get(said)
            if instrument is None:
                says = dict(zip([name.upper() for name in known], said, strict=True))
                instrument = memory[said] = instrument_of(says)
            try:
                name = two_parts(str(one))
                self._check(name, instrument)
            except InputError as error:
                self.reject(str(one)[:100], error.message)
                name = ""
            else:
                wanted.setdefault(instrument, []).append(row)
            good.append(name)
        place = table.column_names.index(lower[columns.DATASET])
        table = table.set_column(place, columns.DATASET, pa.array(good, pa.string()))
        for instrument, rows in wanted.items():
            self._encode(instrument)  # what came before stays before
            some = table if len(rows) == table.num_rows else table.take(pa.array(rows))
            self._tables.setdefault(instrument, []).append(columns.texts(some, self._now))

    def finish(self) -> Imported:
        """Bring everything in, one instrument after the other."""
        for instrument in list(self._waiting):
            self._encode(instrument)
        counts = {}
        for instrument in sorted(self._tables):
            table = pa.concat_tables(self._tables.pop(instrument), promote_options="default")
            counts[instrument] = _bring(self._store, self._observatory, instrument, table)
        return Imported(counts, tuple(self._rejected), self._rejections)

    def _encode(self, instrument: str) -> None:
        rows = self._waiting.pop(instrument, [])
        if rows:
            self._tables.setdefault(instrument, []).append(columns.encode(rows, self._now))

    def _check(self, name: str, instrument: str) -> None:
        if not instrument or not re.fullmatch(r"[a-z0-9]+", instrument):
            raise InputError("its header does not say which instrument it is of", remedy="add INSTRUME")
        if self._observatory == "hst":
            for part in name.split(":"):
                letter = _LETTERS.get(part[0].lower())
                if letter != instrument:
                    raise InputError(f"its header is of {instrument}, its name of {letter or 'none'}")


def _bring(store: Store, observatory: str, instrument: str, table: pa.Table) -> Counts:
    """Merge a table into that of an instrument."""
    key = _record_key(observatory, instrument)
    for _ in range(_TRIES):
        blob = store.get(key)
        record = json.loads(blob.data) if blob else {}
        old = store.get(record["table"]) if blob else None
        if blob and old is None:
            continue  # it was moved on twice since
        there = Table(old.data, record["table"]).arrow() if old else None
        merged, replaced = columns.merge(there, table)
        data = columns.pack(merged)
        # No two imports share a table, though they bring the same: whoever comes too late removes its own.
        name = f"{hashlib.sha256(data).hexdigest()[:16]}-{os.urandom(4).hex()}.parquet"
        new = f"datasets/{observatory}/{instrument}/{name}"
        store.put(new, data, Create())
        written = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pointer = {"table": new, "before": record.get("table", ""), "rows": merged.num_rows, "written": written}
        mode: PutMode = Update(blob.etag) if blob else Create()
        try:
            store.put(key, json.dumps(pointer, indent=1).encode(), mode)
        except ConflictError:
            store.delete(new)
            continue
        if record.get("before"):  # the table before the last one: some may still read the last
            store.delete(record["before"])
        return Counts(merged.num_rows - (there.num_rows if there else 0), replaced, merged.num_rows)
    raise BusyError(f"others change the datasets of {instrument} all the time", remedy="import them again later")


def _record_key(observatory: str, instrument: str) -> str:
    return f"datasets/{observatory}/{instrument}.json"


# ---- reading


class Datasets:
    """The catalogue of an observatory.

    Parameters
    ----------
    store : Store
        Where it is.
    observatory : str
        ``hst`` or ``jwst``.
    """

    def __init__(self, store: Store, observatory: str) -> None:
        self.store = store
        self.observatory = observatory
        self._read: dict[str, tuple[str, Table]] = {}
        self._lock = threading.Lock()

    def instruments(self) -> list[str]:
        """Return the instruments that have datasets here, in lower case, sorted."""
        names = self.store.names(f"datasets/{self.observatory}")
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def records(self) -> dict[str, dict[str, Any]]:
        """Return what is known of each instrument without reading its table: ``rows``, ``written``."""
        found = {}
        for instrument in self.instruments():
            record = self._record(instrument)
            if record:
                found[instrument] = {"rows": record["rows"], "written": record["written"]}
        return found

    def table(self, instrument: str) -> Table:
        """Return the datasets of an instrument as columns.

        Parameters
        ----------
        instrument : str
            In lower case.

        Returns
        -------
        Table
            Of no rows if it has none here.

        Raises
        ------
        InputError
            If it cannot be read.
        """
        for _ in range(_TRIES):
            record = self._record(instrument)
            if not record:
                return _empty()
            with self._lock:
                key, table = self._read.get(instrument, ("", None))
            if table is not None and key == record["table"]:
                return table
            blob = self.store.get(record["table"])
            if blob is None:
                continue  # it was moved on twice since
            table = Table(blob.data, f"{self.store.uri}/{record['table']}")
            with self._lock:
                self._read[instrument] = record["table"], table
            return table
        raise InputError(
            f"{self.store.uri} lacks the table of the datasets of {instrument}", remedy="restore it from a backup"
        )

    def ids(self, instrument: str, since: str | None = None) -> list[str]:
        """Return the ids of an instrument's datasets.

        Parameters
        ----------
        instrument : str
            In lower case.
        since : str, optional
            Only those that were exposed since, compared as texts as a client does it: ``2009-05-14 00:00:00``.

        Returns
        -------
        list of str
            ``PRODUCT:EXPOSURE``, sorted; empty for an instrument of which there are none.
        """
        table = self.table(instrument)
        if since is None:
            return table.ids()
        keywords = [keyword for pair in exposed.PAIRS for keyword in pair if keyword in table.keywords]
        known = {keyword: table.column(keyword) for keyword in keywords}
        return table.ids(exposed.since_mask(known, since, table.rows).nonzero()[0])

    def headers(self, ids: Iterable[str], since: str | None = None) -> dict[str, dict[str, str] | str]:
        """Return the headers of datasets.

        Parameters
        ----------
        ids : iterable of str
            Either half of them will do: a product gives all its exposures.
        since : str, optional
            Leave out what was exposed before; see ``ids``.

        Returns
        -------
        dict
            {``PRODUCT:EXPOSURE``: {keyword: text}}, or instead of a header, why there is none.

        Raises
        ------
        InputError
            If nothing tells the instrument of an id.
        """
        wanted: dict[str, dict[int, None]] = {}
        found: dict[str, dict[str, str] | str] = {}
        tables: dict[str, Table] = {}
        for one in ids:
            text = one.strip().upper()
            rows: list[int] = []
            for instrument in self._instruments_of(text):
                if instrument not in tables:
                    tables[instrument] = self.table(instrument)
                if rows := tables[instrument].find(text):
                    wanted.setdefault(instrument, {}).update(dict.fromkeys(rows))
                    break
            if not rows:
                with suppress(InputError):
                    text = two_parts(text)
                found[text] = f"NOT FOUND there is no dataset {one[:100]!r} in the catalogue"
        for instrument, some in wanted.items():
            table, rows = tables[instrument], sorted(some)
            for name, header in zip(table.ids(np.array(rows, np.int64)), table.headers(rows), strict=True):
                if since is None or exposed.exposed(header) >= since:
                    found[name] = header
        return found

    def _record(self, instrument: str) -> dict[str, Any]:
        if not re.fullmatch(r"[a-z0-9]+", instrument):
            return {}
        blob = self.store.get(_record_key(self.observatory, instrument))
        return dict(json.loads(blob.data)) if blob else {}

    def _instruments_of(self, text: str) -> list[str]:
        """Return where a dataset may be; InputError if nothing tells."""
        if self.observatory != "hst":
            if known := self.instruments():
                return known
        elif (letter := _LETTERS.get(text[:1].lower())) and re.fullmatch(r"[A-Z0-9:_.\-]{9,}", text):
            return [letter]
        raise InputError(f"Can't determine instrument for dataset {text!r}")


def _empty() -> Table:
    return Table(columns.pack(pa.table({columns.DATASET: pa.array([], pa.string())})))
