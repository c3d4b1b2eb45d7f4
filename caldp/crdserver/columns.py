"""Parameters of the datasets of an instrument, as columns: one text per keyword and row, kept as codes of its values.

A row is a dataset, ``PRODUCT:EXPOSURE``.  A keyword that its header does not have is no text at all: crds tells that
from every text there is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from caldp.errors import InputError

#: Columns that are no keywords; keywords are in upper case.
DATASET, WRITTEN = "dataset", "written"

#: Code of a keyword that a header does not have.
ABSENT = -1

#: Rows that are read together when only a few are wanted, and how many such groups are kept.
_ROW_GROUP, _KEPT = 131072, 2

#: Labels are made dense again before they could overflow.
_LARGEST = 1 << 62

#: Where a code space is at most so many times the rows, or so large, distinct codes are counted rather than sorted.
_SPARSE, _SMALL = 4, 1 << 20

#: A keyword is kept as codes if its values have so many rows each, on the average, or if there are only so many rows.
_FEW, _SMALL_TABLE = 8, 10_000

#: Parquet knows no whole seconds.
_STAMP = pa.timestamp("ms", tz="UTC")
_TEXT = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Column:
    """One keyword of all rows.

    Attributes
    ----------
    codes : ndarray of int32, shape (rows,)
        Index into ``values``, or ``ABSENT``.
    values : pyarrow.StringArray
        Texts; distinct ones, where there are many rows of each.
    """

    codes: NDArray[np.int32]
    values: pa.StringArray

    @property
    def texts(self) -> list[str]:
        """The values, as texts of Python."""
        return list(self.values.to_pylist())

    def text(self, row: int) -> str | None:
        """Return the text of a row, or None if it has none."""
        code = int(self.codes[row])
        return None if code < 0 else str(self.values[code].as_py())

    @property
    def complete(self) -> NDArray[np.int32]:
        """The codes, with one above all others for what is absent."""
        return np.where(self.codes < 0, np.int32(len(self.values)), self.codes)


class Table:
    """The datasets of one instrument.

    Parameters
    ----------
    data : bytes
        A Parquet file as ``pack`` makes it.
    what : str, optional
        What an error calls it.
    """

    def __init__(self, data: bytes, what: str = "the table") -> None:
        try:
            self._file = pq.ParquetFile(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{what} is damaged ({error})", remedy="import the datasets again") from error
        self.rows: int = self._file.metadata.num_rows
        self.keywords = tuple(name for name in self._file.schema_arrow.names if name not in (DATASET, WRITTEN))
        self._known = frozenset(self.keywords)
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def column(self, keyword: str) -> Column:
        """Read one keyword of all rows; one that no header has is absent everywhere."""
        if keyword not in self._known:
            return Column(np.full(self.rows, ABSENT, np.int32), pa.array([], pa.string()))
        read = self._read([keyword]).column(0)
        if read.type == _TEXT:
            read = read.unify_dictionaries()
        one = pa.concat_arrays(read.chunks) if read.num_chunks else pa.array([], pa.string())
        if one.type == _TEXT:
            codes, values = one.indices, one.dictionary
        else:
            codes, values = pa.array(np.arange(len(one), dtype=np.int32), mask=one.is_null().to_numpy(False)), one
        return Column(codes.fill_null(ABSENT).to_numpy(zero_copy_only=False).astype(np.int32, copy=False), values)

    def ids(self, rows: NDArray[Any] | None = None) -> list[str]:
        """Return the ids of all rows, sorted, or of some."""
        if rows is None:
            return list(self._ids.to_pylist())
        return list(self._ids.take(pa.array(rows)).to_pylist())

    def arrow(self) -> pa.Table:
        """Return everything."""
        return self._file.read()

    def headers(self, rows: Sequence[int]) -> list[dict[str, str]]:
        """Return the headers of some rows.

        Parameters
        ----------
        rows : sequence of int
            Fastest when they are in order.

        Returns
        -------
        list of dict
            {keyword: text}, without those that are absent.
        """
        found: list[dict[str, str]] = [{} for _ in rows]
        by_group: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            by_group.setdefault(row // _ROW_GROUP, []).append(number)
        for group, numbers in by_group.items():
            some = self._group(group).take(pa.array([rows[number] % _ROW_GROUP for number in numbers]))
            for keyword in self.keywords:
                for number, text in zip(numbers, some.column(keyword).to_pylist(), strict=True):
                    if text is not None:
                        found[number][keyword] = text
        return found

    def find(self, text: str) -> list[int]:
        """Return the rows of an id, of either half of it, or none.

        A product gives its exposures; so does an exposure itself, of whatever product.
        """
        try:
            one = text.upper().encode("ascii")
        except UnicodeEncodeError:
            return []
        ids, exposures, rows = self._index
        if b":" in one:
            place = int(np.searchsorted(ids, one))
            return [place] if place < len(ids) and ids[place] == one else []
        first, last = np.searchsorted(ids, [one + b":", one + b";"])
        found = dict.fromkeys(range(int(first), int(last)))
        first, last = np.searchsorted(exposures, one, "left"), np.searchsorted(exposures, one, "right")
        return list(found | dict.fromkeys(rows[first:last].tolist()))

    @cached_property
    def _ids(self) -> pa.ChunkedArray:
        return self._read([DATASET]).column(0)

    @cached_property
    def _index(self) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_], NDArray[np.int64]]:
        ids = self.ids()
        exposures = np.array([one.partition(":")[2] for one in ids], np.bytes_)
        order = np.argsort(exposures, kind="stable")
        return np.array(ids, np.bytes_), exposures[order], order

    def _read(self, names: list[str]) -> pa.Table:
        with self._lock:  # one reader of a Parquet file is not for several threads
            return self._file.read(names)

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            found = self._groups.get(number)
            if found is None:
                found = self._groups[number] = self._file.read_row_group(number).unify_dictionaries().combine_chunks()
                while len(self._groups) > _KEPT:
                    self._groups.popitem(last=False)
            return found


# ---- making tables


def encode(rows: Sequence[tuple[str, Mapping[str, str]]], written: int) -> pa.Table:
    """Turn headers into columns.

    Parameters
    ----------
    rows : sequence of (str, mapping)
        Ids and {keyword: text}; keywords in upper case.
    written : int
        When that is, in seconds since 1970.

    Returns
    -------
    pyarrow.Table
    """
    keywords = sorted({keyword for _, header in rows for keyword in header})
    columns: dict[str, Any] = {
        DATASET: pa.array([one for one, _ in rows], pa.string()),
        WRITTEN: pa.array([1000 * written] * len(rows), _STAMP),
    }
    for keyword in keywords:
        columns[keyword] = pa.array([header.get(keyword) for _, header in rows], pa.string()).dictionary_encode()
    return pa.table(columns)


def texts(table: pa.Table, written: int) -> pa.Table:
    """Return a table of anything as a table of texts, its keywords in upper case; NaN is absent.

    Parameters
    ----------
    table : pyarrow.Table
        With a column ``dataset``, in any case of letters, whose ids have two parts already.
    written : int
        When that is, in seconds since 1970.

    Returns
    -------
    pyarrow.Table
    """
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.unify_dictionaries()
            if column.type != _TEXT:
                column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        if column.type != _TEXT:
            column = column.cast(pa.string())
        if name.lower() == DATASET:
            columns[DATASET] = column.cast(pa.string())
        elif name.lower() != WRITTEN and column.null_count < len(column):
            columns[name.upper()] = column if column.type == _TEXT else column.dictionary_encode()
    columns[WRITTEN] = pa.array([1000 * written] * table.num_rows, _STAMP)
    return pa.table(columns)


def merge(old: pa.Table | None, new: pa.Table) -> tuple[pa.Table, int]:
    """Put rows into a table, in place of those of the same ids; of two new ones of an id the later counts.

    Parameters
    ----------
    old : pyarrow.Table or None
        What is there.
    new : pyarrow.Table
        What comes.

    Returns
    -------
    merged : pyarrow.Table
        Sorted by id.
    replaced : int
        Rows of the old one that are gone.
    """
    new = _encoded(new)
    old = None if old is None else _encoded(old)
    last = {one: row for row, one in enumerate(new.column(DATASET).to_pylist())}
    if len(last) < new.num_rows:
        new = new.take(pa.array(sorted(last.values())))
    replaced = 0
    if old is not None:
        stays = pc.invert(pc.is_in(old.column(DATASET), value_set=new.column(DATASET).combine_chunks()))
        kept = old.filter(stays)
        replaced = old.num_rows - kept.num_rows
        new = pa.concat_tables([kept, new], promote_options="default")
    new = new.unify_dictionaries().combine_chunks()
    new = new.take(pc.sort_indices(new, sort_keys=[(DATASET, "ascending")]))
    keywords = sorted(name for name in new.column_names if name not in (DATASET, WRITTEN))
    return new.select([DATASET, WRITTEN, *keywords]), replaced


def _encoded(table: pa.Table) -> pa.Table:
    for place, name in enumerate(table.column_names):
        column = table.column(name)
        if name not in (DATASET, WRITTEN) and column.type != _TEXT:
            table = table.set_column(place, name, column.dictionary_encode())
    return table


def pack(table: pa.Table) -> bytes:
    """Return a table as a Parquet file: dictionaries for keywords of few values, plain texts for the others."""
    for place, name in enumerate(table.column_names):
        column = table.column(name)
        if column.type == _TEXT and column.num_chunks:
            column = column.unify_dictionaries()
            if len(column.chunk(0).dictionary) * _FEW > table.num_rows + _SMALL_TABLE:
                table = table.set_column(place, name, column.cast(pa.string()))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=_ROW_GROUP, compression="zstd", write_statistics=False, use_dictionary=True
    )
    return bytes(sink.getvalue())


# ---- what is done to all rows at once


def group(columns: Iterable[tuple[NDArray[np.int32], int]], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tell rows apart by some columns.

    Parameters
    ----------
    columns : iterable of (ndarray of int32 of shape (rows,), int)
        Codes from 0, and how many there may be.
    rows : int
        How many rows.

    Returns
    -------
    labels : ndarray of int64, shape (rows,)
        The same for rows that agree, from 0 without a gap.
    first : ndarray of int64, shape (groups,)
        A row of each group.
    """
    labels, size = np.zeros(rows, np.int64), 1
    dense = max(_SPARSE * rows, _SMALL)
    for codes, count in columns:
        if count <= 1:
            continue
        if size * count > dense and size > 1:
            labels, size = _dense(labels, size, dense)
        if size * count > _LARGEST:
            raise ValueError("too many distinct values")  # 2**62: more than there can be rows
        labels = labels * count + codes
        size *= count
    labels, size = _dense(labels, size, dense)
    first = np.zeros(size, np.int64)
    first[labels[::-1]] = np.arange(rows - 1, -1, -1)
    return labels, first


def _dense(labels: NDArray[np.int64], size: int, dense: int) -> tuple[NDArray[np.int64], int]:
    if not len(labels):
        return labels, 0
    if size <= dense:
        there = np.zeros(size, np.bool_)
        there[labels] = True
        places = np.cumsum(there) - 1
        return places[labels], int(places[-1]) + 1
    found, inverse = np.unique(labels, return_inverse=True)
    return inverse.reshape(-1).astype(np.int64, copy=False), len(found)
