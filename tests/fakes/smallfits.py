"""Write and read small FITS files with the standard library alone, so that fake programs start at once."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_BLOCK = 2880

#: Bytes of one element of a table column, by the letter of its format.
_WIDTHS = {"A": 1, "L": 1, "I": 2, "J": 4, "E": 4, "D": 8}

#: BITPIX and the letter of ``array`` for images.
_PIXELS = {16: "h", 32: "i", -32: "f"}

Hdu = tuple[list[tuple[str, Any]], bytes]


def primary(header: Mapping[str, Any]) -> Hdu:
    """Make a primary HDU without data."""
    return [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True), *header.items()], b""


@cache
def image(name: str, size: int = 64, *, version: int = 1, bitpix: int = -32, base: float = 100.0) -> Hdu:
    """Make an image extension: a star on a slope, or nothing where ``base`` is 0."""
    profile = [math.exp(-((x - size / 2) ** 2) / 20) for x in range(size)]
    values = [base + x + y / 2 + 50 * profile[x] * profile[y] if base else 0 for y in range(size) for x in range(size)]
    pixels = array(_PIXELS[bitpix], values if bitpix < 0 else map(int, values))
    pixels.byteswap()
    axes = [("NAXIS", 2), ("NAXIS1", size), ("NAXIS2", size)]
    return _extension("IMAGE", bitpix, axes, [("EXTNAME", name), ("EXTVER", version)]), pixels.tobytes()


@cache
def ramp(name: str, size: int = 64, version: int = 1) -> Hdu:
    """Make an extension of integers: DQ and CTX."""
    return image(name, size, version=version, bitpix=32 if name == "CTX" else 16, base=1.0 if name == "CTX" else 0.0)


def table(name: str, columns: Mapping[str, tuple[str, Sequence[Any]]], **cards: Any) -> Hdu:
    """Make a binary table of column -> (format such as ``14A`` or ``400E``, value of each row)."""
    rows = len(next(iter(columns.values()))[1])
    data = b"".join(_cell(form, values[row]) for row in range(rows) for form, values in columns.values())
    width = sum(_width(form) for form, _ in columns.values())
    axes = [("NAXIS", 2), ("NAXIS1", width), ("NAXIS2", rows)]
    described: list[tuple[str, Any]] = [("TFIELDS", len(columns)), ("EXTNAME", name)]
    for number, (title, (form, _)) in enumerate(columns.items(), 1):
        described += [(f"TTYPE{number}", title), (f"TFORM{number}", form)]
    return _extension("BINTABLE", 8, axes, [*described, *cards.items()]), data


def write(path: Path, header: Mapping[str, Any], *extensions: Hdu) -> Path:
    """Write a file; NEXTEND counts the extensions unless the header gives it."""
    hdus = [primary({"NEXTEND": len(extensions), **header}), *extensions]
    path.write_bytes(b"".join(_padded(_header(cards), b" ") + _padded(data, b"\0") for cards, data in hdus))
    return path


def read_header(path: Path, number: int = 0) -> dict[str, Any]:
    """Return the header of an HDU."""
    return next(header for n, (header, _) in enumerate(_hdus(path.read_bytes())) if n == number)


def read_table(path: Path) -> dict[str, list[str]]:
    """Return the columns of the first table, as text: that of an association."""
    header, data = next((header, data) for header, data in _hdus(path.read_bytes()) if "TFIELDS" in header)
    columns: dict[str, list[str]] = {}
    start = 0
    for number in range(1, header["TFIELDS"] + 1):
        width = _width(header[f"TFORM{number}"])
        columns[header[f"TTYPE{number}"]] = [
            data[row * header["NAXIS1"] + start :][:width].decode("ascii").strip(" \0")
            for row in range(header["NAXIS2"])
        ]
        start += width
    return columns


def _extension(
    kind: str, bitpix: int, axes: list[tuple[str, int]], rest: list[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    return [("XTENSION", kind), ("BITPIX", bitpix), *axes, ("PCOUNT", 0), ("GCOUNT", 1), *rest]


def _header(cards: list[tuple[str, Any]]) -> bytes:
    return "".join(f"{_card(key, value):80}" for key, value in [*cards, ("END", None)]).encode("ascii")


def _card(key: str, value: Any) -> str:
    if value is None:
        return key
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = f"'{value:8}'"
    else:
        text = f"{value!r:>20}"
    return f"{key:8}= {text}"


def _padded(data: bytes, filler: bytes) -> bytes:
    return data + filler * (-len(data) % _BLOCK)


def _width(form: str) -> int:
    return int(form[:-1] or 1) * _WIDTHS[form[-1]]


def _cell(form: str, value: Any) -> bytes:
    count, letter = int(form[:-1] or 1), form[-1]
    if letter == "A":
        return str(value).encode("ascii").ljust(count, b"\0")
    if letter == "L":
        return b"T" if value else b"F"
    values = value if isinstance(value, list | tuple) else [value] * count
    return struct.pack(f">{count}{ {'I': 'h', 'J': 'i', 'E': 'f', 'D': 'd'}[letter] }", *values)


def _hdus(content: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    place = 0
    while place < len(content):
        header: dict[str, Any] = {}
        while "END" not in header:
            block = content[place : place + _BLOCK].decode("ascii", "replace")
            if len(block) < _BLOCK:
                raise ValueError("No SIMPLE card found, or a header without end")
            place += _BLOCK
            for card in (block[n : n + 80] for n in range(0, _BLOCK, 80)):
                if card.startswith("END "):
                    header["END"] = True
                elif card[8:10] == "= ":
                    header[card[:8].strip()] = _value(card[10:])
        size = abs(header["BITPIX"]) // 8 if header["NAXIS"] else 0
        for axis in range(1, header["NAXIS"] + 1):
            size *= header[f"NAXIS{axis}"]
        if place + size > len(content):
            raise ValueError("Error reading data buffer")
        yield header, content[place : place + size]
        place += size + -size % _BLOCK


def _value(text: str) -> Any:
    text = text.strip()
    if text.startswith("'"):
        return text[1:].partition("'")[0].rstrip()
    text = text.partition("/")[0].strip()
    if text in ("T", "F"):
        return text == "T"
    try:
        return float(text) if "." in text or "E" in text else int(text)
    except ValueError:
        return text
