"""Where the parameters of datasets come from: FITS files, tables, and files of JSON as the CRDS client keeps them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldp.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from caldp.crdserver.datasets import Intake

_FITS = (".fits", ".fits.gz", ".fit", ".fts")
_TABLES = (".csv", ".csv.gz", ".parquet", ".ecsv")
_JSON = (".json",)

#: What a raw exposure is called, of HST's instruments, of WFPC2, and of JWST.
_RAW = re.compile(r"_(raw[a-z_]*|d0[mf]|uncal)\.fit")

#: Cards of a header that are no parameters.
_NO_PARAMETERS = frozenset(
    ("", "COMMENT", "HISTORY", "FILE_FORMAT", "SIMPLE", "XTENSION", "EXTEND", "CHECKSUM", "DATASUM")
)


def files(sources: Sequence[Path]) -> list[Path]:
    """Return the files of an import: those that are named and, of folders, raw exposures, tables and JSON.

    Raises
    ------
    InputError
        If one is not there or of no such kind, or if there is none.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(path for path in source.rglob("*") if path.is_file() and _is_meant(path))
            if not inside:
                raise InputError(f"{source} holds no raw exposure, table or JSON", remedy="name the files")
            found += inside
        elif not source.exists():
            raise InputError(f"there is no {source}", remedy="name FITS files, tables or JSON")
        elif not _kind(source):
            raise InputError(
                f"{source.name} is of no kind that is known here",
                remedy=f"give {', '.join(_FITS[:1] + _TABLES + _JSON)}",
            )
        else:
            found.append(source)
    return found


def take(intake: Intake, observatory: str, path: Path) -> None:
    """Take in one file; what cannot be read is rejected.

    Parameters
    ----------
    intake : Intake
        What takes it.
    observatory : str
        ``hst`` or ``jwst``.
    path : Path
        The file; its name tells its kind.
    """
    try:
        kind = _kind(path)
        if kind == "fits":
            intake.add(*of_fits(path, observatory))
        elif kind == "table":
            intake.add_table(read_table(path))
        else:
            for one, header in of_json(path):
                intake.add(one, header)
    except InputError as error:
        intake.reject(path.name, str(error))


def of_fits(path: Path, observatory: str) -> tuple[str, dict[str, str]]:
    """Return the id and the header of an exposure.

    Parameters
    ----------
    path : Path
        A FITS file; all of its extensions count, the first that has a keyword for that.
    observatory : str
        ``hst`` or ``jwst``.

    Returns
    -------
    str, dict

    Raises
    ------
    InputError
        If it cannot be read, or has no name.
    """
    from crds import data_file

    from caldp import fitsfile

    try:
        with _plain(path) as plain, fitsfile.damage_raises():
            header = data_file.get_unconditioned_header(str(plain), (), None, observatory)
    except Exception as error:  # noqa: BLE001 - astropy raises anything for a damaged file
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path.name} cannot be read ({why})", remedy="fetch it again") from error
    finally:
        data_file.clear_header_cache()  # else it keeps the headers of all files
    known = {key.upper(): str(value) for key, value in header.items() if key.upper() not in _NO_PARAMETERS}
    exposure = (
        _word(known, "ROOTNAME") or _word(known, "META.FILENAME").removesuffix(".FITS") or _word(known, "FILENAME")
    )
    if not exposure:
        raise InputError(f"{path.name} has no ROOTNAME", remedy="give a file of HST or JWST")
    return f"{_word(known, 'ASN_ID') or exposure}:{exposure}", known


def _word(header: Mapping[str, str], keyword: str) -> str:
    """Return a name of a header in upper case, empty for one of the words that mean none."""
    word = str(header.get(keyword, "")).strip().upper()
    return "" if word in ("NONE", "UNDEFINED", "N/A") else word


def of_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the headers of a file as ``crds bestrefs --load-pickles`` reads it: one object, or one in each line.

    Raises
    ------
    InputError
        If it is not of that form.
    """
    data = path.read_bytes()
    try:
        try:
            records = [json.loads(data)]
        except json.JSONDecodeError:
            records = [json.loads(line) for line in data.splitlines() if line.strip()]
        for record in records:
            for one, header in record.items():
                if not isinstance(header, Mapping):
                    raise ValueError(f"{one[:60]} has no header")
                yield str(one), header
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path.name} is not JSON of headers ({' '.join(str(error).split())[:160]})",
            remedy='write {"PRODUCT:EXPOSURE": {"KEYWORD": "value"}}',
        ) from error


def read_table(path: Path) -> pa.Table:
    """Read a table of headers.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.parquet`` or ``.ecsv``: a column ``dataset``, and one for each keyword.  An empty cell is for a
        header that does not have it.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    InputError
        If it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        if path.suffix == ".ecsv":
            return _ecsv(path)
        with pyarrow.csv.open_csv(path) as opened:
            names = opened.schema.names
        # As they are written: 1.0 is not 1, and a number of leading zeros is no number.
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        return pyarrow.csv.read_csv(path, convert_options=convert)
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{path.name} cannot be read ({why})", remedy="give a table that is whole") from error


def _ecsv(path: Path) -> pa.Table:
    import pyarrow as pa
    from astropy.table import Table

    read = Table.read(path, format="ascii.ecsv")
    cells = {name: [None if cell is None else str(cell) for cell in _unmasked(read[name])] for name in read.colnames}
    return pa.table({name: pa.array(column, pa.string()) for name, column in cells.items()})


def _unmasked(column: Any) -> list[Any]:  # noqa: ANN401 - astropy has no types
    return list(column.tolist())  # what is masked becomes None


def _is_meant(path: Path) -> bool:
    kind = _kind(path)
    return bool(_RAW.search(path.name.lower())) if kind == "fits" else bool(kind)


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """Provide a file that is not compressed, which crds cannot read."""
    if path.suffix != ".gz":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with gzip.open(path) as packed, plain.open("wb") as stream:
            shutil.copyfileobj(packed, stream)
        yield plain


def _kind(path: Path) -> str:
    name = path.name.lower()
    for kind, endings in (("fits", _FITS), ("table", _TABLES), ("json", _JSON)):
        if name.endswith(endings):
            return kind
    return ""
