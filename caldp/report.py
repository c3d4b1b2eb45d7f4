"""The report: one self-contained HTML page about one calibrated dataset.

The page needs nothing but itself: pictures are data URIs, the spectrum is drawn here as SVG, a content
security policy forbids every request, and the little JavaScript there is (to read off and zoom the spectrum)
can be missing.  Whatever is broken or absent is said in its place: a report must never fail a good run.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import re
import shlex
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from caldp.fitsfile import damage_raises
from caldp.reporter import human_size, human_time, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

#: Most points drawn per segment of a spectrum, and in all.
MAX_POINTS = 1500
_MAX_POINTS_IN_ALL = 6000

#: A preview larger than this is inlined downsized, in bytes.
MAX_PICTURE = 600_000

#: What all inlined previews together may take, in bytes before base64, which adds a third.
_PICTURE_BUDGET = 1_900_000

_LOG_TAIL = 60
_LOG_ALARMS = 200
_LOG_LINE = 1000

_SPECTRA = ("x1dsum", "sx1", "x1d")
"""Suffixes of one-dimensional spectra, the best first."""

_FACTS_FROM = ("x1d", "sx1", "flt", "flc", "corrtag", "corrtag_a", "corrtag_b", "crj", "drz", "drc")
"""Suffixes of products whose headers describe an exposure, the best first."""

_SUFFIXES = {
    "asn": "association table",
    "cal_env": "settings of the programs",
    "corrtag": "corrected events",
    "counts": "count image",
    "crj": "cosmic rays rejected, combined",
    "crc": "cosmic rays rejected, CTE corrected",
    "drc": "drizzled, CTE corrected",
    "drz": "drizzled",
    "flc": "flat-fielded, CTE corrected",
    "flc_hlet": "coordinates (headerlet)",
    "flt": "flat-fielded image",
    "flt_hlet": "coordinates (headerlet)",
    "hlet": "coordinates (headerlet)",
    "ima": "calibrated readouts",
    "jnk": "support, planning and telemetry",
    "lampflash": "wavelength calibration lamp",
    "log": "log of a program",
    "manifest": "list of products",
    "point-cat": "catalogue of point sources",
    "raw": "raw data",
    "rawaccum": "raw image",
    "rawacq": "raw acquisition image",
    "rawtag": "raw events",
    "segment-cat": "catalogue of segments",
    "spt": "support, planning and telemetry",
    "sx1": "spectrum of combined exposures",
    "sx2": "two-dimensional, combined exposures",
    "tag": "raw events",
    "tra": "trailer: what the programs said",
    "trl": "trailer: what the programs said",
    "wav": "wavelength calibration exposure",
    "x1d": "spectrum of one exposure",
    "x1dsum": "combined spectrum",
    "x2d": "two-dimensional, corrected",
}

#: Lines of the Earth's upper atmosphere that outshine faint targets, in Angstrom: name, from, to, peak.
_AIRGLOW = (("Lyα", 1208.0, 1223.0, 1215.67), ("O I", 1300.0, 1308.0, 1304.9))

_KEYWORDS = (
    *(
        "TARGNAME",
        "RA_TARG",
        "DEC_TARG",
        "PROPOSID",
        "PR_INV_F",
        "PR_INV_L",
        "ROOTNAME",
        "DATE-OBS",
        "TIME-OBS",
    ),
    *("INSTRUME", "DETECTOR", "SEGMENT", "OPT_ELEM", "CENWAVE", "APERTURE", "FILTER", "FILTER1", "FILTER2"),
    *("EXPTYPE", "IMAGETYP", "EXPTIME", "FPPOS"),
)

_ALARM = re.compile(r"\b(?:WARNING|ERROR|CRITICAL|FATAL|Warning:|Error:|\w+(?:Error|Warning):)")
_EXPOSURE = re.compile(r"([a-z][a-z0-9]{8})_(\w+)\.fits")

#: In the names of previews that show several products in colour.
_COMPOSITE = "_color"

#: How the names of the products of mosaics begin, and an exposure among them: eight of the nine characters.
_MOSAIC = "hst_"
_MOSAIC_EXPOSURE = re.compile(r"hst_\w+_([a-z][a-z0-9]{7})_(fl[ct])\.fits")


def render(directory: Path, manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Write the report of one dataset.

    Parameters
    ----------
    directory : Path
        The folder of the dataset: products at the top, and in it ``logs`` and ``previews``.
    manifest : mapping
        What was made, from what, by what; any key may be missing.
    metrics : mapping
        What each stage cost; any key may be missing.

    Returns
    -------
    str
        A complete HTML page.

    Notes
    -----
    Header values, program output and names are hostile text: the template escapes all of it.
    """
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("caldp", "templates"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with warnings.catch_warnings():
        # What astropy and Pillow have to say about a damaged file is said by its place in the page.
        warnings.simplefilter("ignore")
        content = _content(directory, manifest, metrics)
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template("report.html.j2").render(content)


def _csp_hash(script: str) -> str:
    """Return what the content security policy calls this script, the only one it lets run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _content(directory: Path, manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the template shows, as text and numbers ready to be written."""
    products = entries_of(manifest, "products")
    instrument = as_text(manifest.get("instrument"))
    notes: list[str] = []
    spectrum = _best_spectrum(directory, [p["name"] for p in products], notes)
    pictures = _pictures(directory, entries_of(manifest, "previews"))
    hero = None
    if spectrum is None:
        hero = min((p for p in pictures if p.uri), key=_picture_rank, default=None)
    exposures, headers = _exposures(directory, [p["name"] for p in products])
    best = _header(directory / spectrum.product) if spectrum else {}
    if hero is not None and not headers:  # a sky cell has no exposures of its own
        best = _header(directory / hero.product)
    started, finished = _when(manifest.get("started")), _when(manifest.get("finished"))
    total = _mapping(metrics.get("total"))
    seconds = (finished - started).total_seconds() if started and finished else as_number(total.get("wall_s"))
    stages, programs = _stages(metrics, manifest)
    references = entries_of(manifest, "references")
    previews = entries_of(manifest, "previews")
    combined = spectrum is not None and not spectrum.product.endswith("_x1d.fits")
    facts = _facts(best or (headers[0] if headers else {}), headers, instrument, combined=combined)
    config = _mapping(manifest.get("config"))
    return {
        "dataset": as_text(manifest.get("dataset")) or directory.name,
        "instrument": instrument.upper(),
        "kind": as_text(manifest.get("kind")),
        "state": as_text(manifest.get("state")) or "unknown",
        "attempt": as_text(manifest.get("attempt")),
        "run": as_text(manifest.get("run")),
        "reason": as_text(manifest.get("reason")),
        "context": as_text(manifest.get("context")),
        "started": _utc(started),
        "finished": _utc(finished),
        "duration": human_time(max(seconds, 0)) if seconds is not None else "",
        "peak": _size(total.get("peak_memory_bytes")),
        "spectrum": spectrum,
        "hero": hero,
        "gallery": [p for p in pictures if p is not hero],
        "notes": notes,
        "facts": facts,
        "exposures": exposures,
        "stages": stages,
        "programs": programs,
        "total": _cost(total),
        "references": [_file_row(r, "sha1") for r in references],
        "references_size": _sum(references),
        "products": [_file_row(p, "sha256") | _fate(directory, p) for p in products],
        "products_size": _sum(products),
        "previews": [_file_row(p, "sha256") for p in previews],
        "inputs": [_file_row(i, "sha256") for i in entries_of(manifest, "inputs")],
        "inputs_size": _sum(entries_of(manifest, "inputs")),
        "input": as_text(manifest.get("input")),
        "output": as_text(manifest.get("output")),
        "versions": as_pairs(manifest.get("versions")),
        "config": as_pairs(config),
        "warnings": [as_text(w) for w in as_sequence(manifest.get("warnings"))],
        "log": _log(directory / "logs"),
        "command": _command(manifest, config, references),
    }


# ---- what the manifest and the metrics say ------------------------------------------------------------


def as_text(value: object) -> str:
    return "" if value is None else printable(str(value))


def as_number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    with contextlib.suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def entries_of(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the files listed under ``key``, each with at least a name."""
    rows = [dict(entry) for entry in as_sequence(record.get(key)) if isinstance(entry, Mapping)]
    return [{**row, "name": as_text(row.get("name"))} for row in rows]


def _size(value: object) -> str:
    number = as_number(value)
    return human_size(number) if number is not None and number > 0 else ""


def _seconds(value: object) -> str:
    number = as_number(value)
    return human_time(max(number, 0)) if number is not None else ""


def _sum(entries: Iterable[Mapping[str, Any]]) -> str:
    return _size(sum(as_number(entry.get("size")) or 0 for entry in entries))


def as_pairs(value: object) -> list[tuple[str, str]]:
    """Flatten a mapping into names and texts, without what is empty."""
    rows: list[tuple[str, str]] = []
    for key, item in _mapping(value).items():
        if isinstance(item, Mapping):
            rows += [(f"{as_text(key)} {name}", text) for name, text in as_pairs(item)]
        elif item not in (None, "", [], ()):
            rows.append((as_text(key), {"True": "yes", "False": "no"}.get(str(item), as_text(item))))
    return rows


def _when(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(value))
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _utc(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else ""


def _file_row(entry: Mapping[str, Any], checksum: str) -> dict[str, str]:
    size, digest = as_number(entry.get("size")), as_text(entry.get(checksum))
    return {
        "name": as_text(entry.get("name")),
        "type": as_text(entry.get("type") or entry.get("kind")),
        "product": as_text(entry.get("product")),
        "size": human_size(size) if size is not None else "",
        "bytes": f"{size:,.0f} bytes" if size is not None else "",
        "digest": digest,
        "short": digest[:12],
        "override": "override" if entry.get("override") else "",
        "problem": "",
    }


def _fate(directory: Path, product: Mapping[str, Any]) -> dict[str, str]:
    """Say what a product is, by its suffix, and whether it is where it should be."""
    suffix = _suffix(PurePosixPath(product["name"]).name)
    base = re.sub(r"_[a-d]$|\d$", "", suffix)
    what = _SUFFIXES.get(suffix) or _SUFFIXES.get(base, "")
    if suffix != base and what and suffix not in _SUFFIXES:
        detail = suffix[len(base) :].strip("_")
        what += f", FP-POS {detail}" if base == "x1dsum" else f", segment {detail.upper()}"
    path = path_inside(directory, product["name"])
    there = False
    with contextlib.suppress(OSError):  # a name longer than names can be
        there = path is not None and path.is_file()
    return {"what": what, "problem": "" if there else "not in the folder"}


def _suffix(name: str) -> str:
    """Return what a file name says of the content: what follows the root name, else the extension."""
    stem, _, extension = name.rpartition(".")
    root, _, suffix = stem.rpartition("_") if stem.startswith(_MOSAIC) else stem.partition("_")
    # The names of mosaics, and of the text files beside them, have underscores of their own.
    return suffix if extension == "fits" or root.startswith(_MOSAIC) else _text_suffix(stem) or extension


def _text_suffix(stem: str) -> str:
    return next((suffix for suffix in ("cal_env", "manifest") if stem.endswith(f"_{suffix}")), "")


def path_inside(directory: Path, name: str) -> Path | None:
    """Return the path of a listed file, or None if the name leads out of the directory."""
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name:
        return None
    return directory / parts


def _cost(entry: Mapping[str, Any]) -> dict[str, str]:
    return {
        "wall": _seconds(entry.get("wall_s")),
        "cpu": _seconds(entry.get("cpu_s")),
        "memory": _size(entry.get("peak_memory_bytes")),
        "read": _size(entry.get("bytes_in")),
        "written": _size(entry.get("bytes_out")),
    }


def _stages(
    metrics: Mapping[str, Any], manifest: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lay the stages out in time; programs that no stage claims are returned beside."""
    stages = [s for s in as_sequence(metrics.get("stages")) if isinstance(s, Mapping)]
    total = sum(max(as_number(s.get("wall_s")) or 0.0, 0.0) for s in stages) or 1.0
    most = max((as_number(s.get("peak_memory_bytes")) or 0 for s in stages), default=0) or 1.0
    rows: list[dict[str, Any]] = []
    begun, claimed = 0.0, False
    for stage in stages:
        wall = max(as_number(stage.get("wall_s")) or 0.0, 0.0)
        programs = [_program(p) for p in as_sequence(stage.get("programs")) if isinstance(p, Mapping)]
        claimed = claimed or bool(programs)
        rows.append(
            _cost(stage)
            | {
                "name": as_text(stage.get("name")),
                "left": f"{100 * begun / total:.2f}",
                "width": f"{100 * wall / total:.2f}",
                "share": f"{100 * (as_number(stage.get('peak_memory_bytes')) or 0) / most:.1f}",
                "programs": programs,
            }
        )
        begun += wall
    listed = () if claimed else as_sequence(manifest.get("programs"))
    return rows, [_program(p) for p in listed if isinstance(p, Mapping)]


def _program(entry: Mapping[str, Any]) -> dict[str, Any]:
    argv = [as_text(word) for word in as_sequence(entry.get("argv"))]
    status, signal = entry.get("exit_status"), as_text(entry.get("signal"))
    outcome = f"exit status {as_text(status)}" if status is not None else ""
    outcome = f"killed by {signal}" if signal else outcome
    # The directories of programs and arguments are those of a workspace that is gone: names say it all.
    command = shlex.join([PurePosixPath(argv[0]).name, *argv[1:]]) if argv else as_text(entry.get("program"))
    return _cost(entry) | {
        "name": as_text(entry.get("program")),
        "command": command,
        "outcome": outcome,
        "failed": bool(signal) or status not in (0, None),
    }


def _command(manifest: Mapping[str, Any], config: Mapping[str, Any], references: Sequence[Mapping[str, Any]]) -> str:
    """Return the command that calibrates the dataset again in the same way."""
    argv = ["caldp-process", as_text(manifest.get("dataset")) or "DATASET"]
    argv += [as_text(manifest.get("input")) or "file:.", as_text(manifest.get("output")) or "file:."]
    name = as_text(config.get("name"))
    argv += [as_text(config.get("script") or name) if "/" in name else name] if name else []
    argv += ["--context", as_text(manifest.get("context"))] if manifest.get("context") else []
    for row in references:
        if row.get("override"):
            kind = as_text(row.get("type"))
            path = _mapping(config.get("overrides")).get(kind) or row["name"]
            argv += ["--override", f"{kind}={as_text(path)}"]
    variables = {"CRDS_PATH": config.get("crds_path"), **_mapping(config.get("exported"))}
    exported = [f"{name}={shlex.quote(as_text(value))}" for name, value in variables.items() if value]
    return " ".join([*exported, shlex.join(argv)])


def _log(logs: Path) -> dict[str, Any]:
    """Read the end of the log, and every line of it that warns."""
    tail: deque[str] = deque(maxlen=_LOG_TAIL)
    alarms: list[str] = []
    count = total = 0
    problem = ""
    for name in ("process.txt", "preview.txt"):
        try:
            with (logs / name).open("rb") as stream:
                # A line without end must not fill the memory: it is read in pieces.
                while raw := stream.readline(1 << 16):
                    line = printable(raw.decode("utf-8", errors="replace"))[:_LOG_LINE]
                    if name == "process.txt":
                        total += 1
                        tail.append(line)
                    if _ALARM.search(line):
                        count += 1
                        if len(alarms) < _LOG_ALARMS:
                            alarms.append(line)
        except OSError as error:
            if name == "process.txt":
                problem = f"logs/{name}: {error.strerror or error}"
    return {
        "tail": list(tail),
        "lines": f"{total:,}",
        "alarms": alarms,
        "more": f"{count - len(alarms):,}" if count > len(alarms) else "",
        "problem": problem,
    }


# ---- what the headers say -----------------------------------------------------------------------------


def _header(path: Path) -> dict[str, Any]:
    """Read `_KEYWORDS` from the primary header, else the first extension's, as far as they can be read."""
    from astropy.io import fits

    values: dict[str, Any] = {}
    # Anything may be wrong in a damaged file, and no fact is worth a failed report.
    with contextlib.suppress(Exception), damage_raises(), fits.open(path, memmap=True, lazy_load_hdus=True) as hdus:
        for index in (0, 1):
            header = hdus[index].header
            for key in _KEYWORDS:
                with contextlib.suppress(Exception):
                    if key not in values and header.get(key, "") not in (None, ""):
                        values[key] = header[key]
    return values


def _exposures(directory: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Describe each exposure among the products.

    Returns
    -------
    table : dict
        ``columns`` and ``rows`` of text; columns that are empty everywhere are left out.
    headers : list of dict
        One per exposure, science first.
    """
    products: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _EXPOSURE.fullmatch(name) or _MOSAIC_EXPOSURE.fullmatch(name):
            products.setdefault(match[1], {})[match[2]] = name
    roles: dict[str, str] = {}
    found: list[tuple[str, dict[str, Any]]] = []
    for root in sorted(products):
        if "asn" in products[root]:
            roles |= _roles(directory / products[root]["asn"])
        for suffix in sorted(products[root], key=_rank):
            header = _header(directory / products[root][suffix])
            rootname = str(header.get("ROOTNAME", root)).strip().lower()
            if "EXPTIME" in header and rootname.startswith(root):
                found.append((rootname, header))
                break
    # A product that combines members would be counted once more.  STIS members have no files of their own.
    found = [(root, header) for root, header in found if root in roles] or found
    columns = ["Exposure", "Role", "Type", "Start (UTC)", "Time (s)", "Detector", "Segment"]
    columns += ["Grating", "Filter", "Cenwave (Å)", "Aperture", "FP-POS"]
    rows = [[root, roles.get(root, ""), *_row(header)] for root, header in found]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    table = {"columns": [columns[i] for i in kept], "rows": [[row[i] for i in kept] for row in rows]}
    headers = [header for _, header in found]
    headers.sort(key=lambda h: str(h.get("EXPTYPE", "")).startswith("ACQ"))
    return table, headers


def _rank(suffix: str) -> tuple[int, str]:
    return (_FACTS_FROM.index(suffix) if suffix in _FACTS_FROM else len(_FACTS_FROM), suffix)


def _roles(path: Path) -> dict[str, str]:
    """Read the member types of an association table, for example ``exp-fp``."""
    from astropy.io import fits

    with contextlib.suppress(Exception), fits.open(path, memmap=False) as hdus:
        return {
            str(row["MEMNAME"]).strip().lower(): as_text(str(row["MEMTYPE"]).strip())
            for row in hdus[1].data
            if not str(row["MEMTYPE"]).startswith("PROD")
        }
    return {}


def _row(header: Mapping[str, Any]) -> list[str]:
    start = " ".join(as_text(header[key])[:19] for key in ("DATE-OBS", "TIME-OBS") if key in header)
    filters = [as_text(header.get(key)) for key in ("FILTER", "FILTER1", "FILTER2")]
    cenwave = as_number(header.get("CENWAVE"))
    segment = "" if header.get("DETECTOR") != "FUV" else as_text(header.get("SEGMENT"))
    return [
        as_text(header.get("EXPTYPE") or header.get("IMAGETYP")),
        start,
        _decimal(header.get("EXPTIME")),
        as_text(header.get("DETECTOR")),
        segment,
        as_text(header.get("OPT_ELEM")),
        " + ".join(dict.fromkeys(f for f in filters if f and not f.startswith("CLEAR"))),
        f"{cenwave:.0f}" if cenwave else "",
        as_text(header.get("APERTURE")),
        as_text(header.get("FPPOS")),
    ]


def _facts(
    header: Mapping[str, Any], exposures: Sequence[Mapping[str, Any]], instrument: str, *, combined: bool
) -> dict[str, str]:
    """Say what was observed, when, for how long, by whom; the time of all exposures if none combines them."""
    ra, dec = as_number(header.get("RA_TARG")), as_number(header.get("DEC_TARG"))
    science = [h for h in exposures if not str(h.get("EXPTYPE")).startswith("ACQ")]
    times = [as_number(h.get("EXPTIME")) or 0.0 for h in science]
    exposure = as_number(header.get("EXPTIME")) or 0.0
    exposure = exposure if combined else max(exposure, sum(times))
    dates = sorted({as_text(h["DATE-OBS"])[:10] for h in exposures if "DATE-OBS" in h})
    names = [as_text(header.get("INSTRUME")) or instrument.upper(), as_text(header.get("DETECTOR"))]
    cenwave = as_number(header.get("CENWAVE"))
    filters = _row(header)[6] if header else ""
    optics = [as_text(header.get("OPT_ELEM")) or filters, f"{cenwave:.0f} Å" if cenwave else ""]
    investigator = " ".join(as_text(header.get(key)) for key in ("PR_INV_F", "PR_INV_L") if header.get(key))
    programme = as_text(header.get("PROPOSID"))
    facts = {
        "target": as_text(header.get("TARGNAME")),
        "position": _position(ra, dec) if ra is not None and dec is not None else "",
        "degrees": f"{ra:.6f}°, {dec:+.6f}°" if ra is not None and dec is not None else "",
        "instrument": "/".join(n for n in names if n),
        "optics": " ".join(o for o in optics if o),
        "aperture": as_text(header.get("APERTURE")),
        "exposure": f"{_decimal(exposure)} s" if exposure else "",
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
        "programme": f"{programme} ({investigator})" if programme and investigator else programme,
    }
    about = [facts[key] for key in ("instrument", "optics", "aperture", "exposure")]
    facts["about"] = " · ".join(text for text in about if text)
    return facts


def _decimal(value: object) -> str:
    """Write a number with thousands separated and no more than three decimals."""
    number = as_number(value)
    return as_text(value) if number is None else f"{number:,.3f}".rstrip("0").rstrip(".")


def _position(ra: float, dec: float) -> str:
    """Write degrees as hours and degrees with minutes and seconds (J2000)."""
    hundredths = round(ra % 360 / 15 * 360_000) % (24 * 360_000)
    tenths = round(abs(dec) * 36_000)
    h, m, s = hundredths // 360_000, hundredths // 6000 % 60, hundredths % 6000 / 100
    d, arcm, arcs = tenths // 36_000, tenths // 600 % 60, tenths % 600 / 10
    return f"{h:02d}ʰ {m:02d}ᵐ {s:05.2f}ˢ, {'−' if dec < 0 else '+'}{d:02d}° {arcm:02d}′ {arcs:04.1f}″"


# ---- previews -----------------------------------------------------------------------------------------


@dataclass
class Picture:
    """A preview as the page shows it: a data URI, or what is wrong with it."""

    name: str
    product: str
    kind: str
    size: str
    uri: str = ""
    width: int = 0
    height: int = 0
    note: str = ""
    problem: str = ""

    @property
    def subject(self) -> str:
        """What it shows: a product, or for a composite of several what its own name says."""
        return self.name.rpartition("/")[2] if self.in_colour else self.product or self.name

    @property
    def in_colour(self) -> bool:
        """Whether it shows several products in one picture."""
        return _COMPOSITE in self.name


def _stem(entry: Mapping[str, Any]) -> str:
    return as_text(entry.get("name")).rpartition(".")[0]


def _thumbnail_of(entry: Mapping[str, Any]) -> str:
    return f"{_stem(entry)}_thumb"


def _picture_rank(picture: Picture) -> int:
    """Order pictures by how much of the calibration is in what they show."""
    suffixes = ("drc", "drz", "crc", "crj", "sx2", "x2d", "flc", "flt")
    suffix = _suffix(picture.product)
    rank = next((i for i, name in enumerate(suffixes) if suffix.startswith(name)), len(suffixes))
    # Of mosaics, colours say most, then all filters together.
    return 3 * rank - (2 if picture.in_colour else 1 if "_total_" in picture.name else 0)


def _pictures(directory: Path, entries: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Inline the previews; a thumbnail only where its full picture is missing."""
    full = [e for e in entries if e.get("kind") in ("spectrum", "image")]
    covered = {_thumbnail_of(e) for e in full}
    shown = full + [e for e in entries if e.get("kind") == "thumbnail" and _stem(e) not in covered]
    files: list[tuple[Picture, bytes]] = []
    for entry in shown:
        row = _file_row(entry, "sha256")
        picture = Picture(row["name"], row["product"], row["type"], row["size"])
        path = path_inside(directory, row["name"])
        data = b""
        try:
            if path is None:
                raise OSError("its name leads out of the folder")
            data = path.read_bytes()
        except OSError as error:
            picture.problem = f"cannot be read: {error.strerror or error}"
        files.append((picture, data))
    limit = _fair_share([len(data) for _, data in files if data], _PICTURE_BUDGET)
    for picture, data in files:
        if data:
            inline_picture(picture, data, min(limit, MAX_PICTURE))
    return [picture for picture, _ in files]


def _fair_share(sizes: Sequence[int], budget: int) -> int:
    """Return the size that each may have at most, so that all fit; what the small leave goes to the large."""
    left = budget
    for done, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - done)
        if size > share:
            return max(share, 16_000)
        left -= size
    return budget


def inline_picture(picture: Picture, data: bytes, limit: int) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
            picture.width, picture.height = image.size
            kind = str(image.format).lower()
            if len(data) > limit:
                data, kind = _downsized(image, kind, limit, crowded=len(data) > 4 * limit)
                picture.note = "reduced here"
            else:
                image.load()  # finds truncated files
    except UnidentifiedImageError:
        picture.problem = "cannot be shown: it is no PNG, JPEG, GIF or WebP file"
        return
    except Exception as error:  # the decoders raise almost anything on damaged files
        picture.problem = f"cannot be shown: {as_text(error)[:160] or type(error).__name__}"
        return
    picture.uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _downsized(
    image: Any,  # noqa: ANN401 - PIL.Image.Image
    kind: str,
    limit: int,
    *,
    crowded: bool,
) -> tuple[bytes, str]:
    """Encode a picture in about ``limit`` bytes; a plot keeps its size and its sharp lines if it can."""
    out = io.BytesIO()
    if kind == "png" and not crowded:
        image.convert("RGB").quantize(64, method=2).save(out, "PNG")  # 2: fast octree
        if out.tell() <= limit:
            return out.getvalue(), "png"
    side = math.isqrt(4 * limit)  # at two bits per pixel
    image.draft("RGB", (side, side))  # a JPEG four thousand pixels wide is decoded small at once
    image = image.convert("RGB")
    while True:
        image.thumbnail((side, side))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=82)
        if out.tell() <= limit or side < 320:
            return out.getvalue(), "jpeg"
        side = side * 3 // 4


# ---- the spectrum -------------------------------------------------------------------------------------


@dataclass
class Segment:
    """A spectrum in bins: wavelength, mean, extremes and error of each; NaN where no pixel is good."""

    name: str
    pixels: int
    wavelength: Floats
    mean: Floats
    low: Floats
    high: Floats
    error: Floats


@dataclass
class Line:
    """What is drawn of one segment, as SVG path data."""

    name: str
    color: int
    band: str
    clear: str
    faint: str


@dataclass
class Tick:
    """A tick of an axis: where, and what it says."""

    at: str
    label: str


@dataclass
class Mark:
    """The name of a line of the airglow, above the plot."""

    at: str
    label: str
    anchor: str


@dataclass
class View:
    """The spectrum drawn for one width of the screen; lengths in SVG units."""

    name: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x: tuple[float, float]
    y: tuple[float, float]
    exponent: int
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass
class Spectrum:
    """A spectrum as the page shows it."""

    product: str
    title: str
    description: str
    x_label: str
    y_label: str
    caption: str
    legend: list[tuple[int, str]]
    views: list[View]


def _best_spectrum(directory: Path, names: Sequence[str], notes: list[str]) -> Spectrum | None:
    """Draw the best spectrum among the products; those that cannot be read are noted."""
    for suffix in _SPECTRA:
        for name in sorted(n for n in names if n.endswith(f"_{suffix}.fits")):
            path = path_inside(directory, name)
            if path is None:
                continue
            try:
                drawn = _draw(path)
            except Exception as error:  # a damaged table fails in as many ways as there are bytes
                notes.append(f"{name} cannot be drawn: {as_text(error)[:200] or type(error).__name__}")
                continue
            if drawn is not None:
                return drawn
            notes.append(f"{name} holds no valid flux")
    return None


def _draw(path: Path) -> Spectrum | None:
    import numpy as np

    header = _header(path)
    segments, units, tables = _segments(path)
    if not segments:
        return None
    instrument = str(header.get("INSTRUME", ""))
    x = (
        float(min(np.nanmin(s.wavelength) for s in segments)),
        float(max(np.nanmax(s.wavelength) for s in segments)),
    )
    airglow = [line for line in _AIRGLOW if instrument in ("COS", "STIS") and x[0] < line[3] < x[1]]
    noisy = [_noisy(s) for s in segments]
    y = _flux_range(segments, noisy, airglow)
    facts = _facts(header, [], "", combined=True)
    ident = " · ".join(t for t in (facts["target"], facts["about"]) if t)
    views = [_view("wide", (1080, 430), (70, 16, 34, 50), 9, segments, noisy, airglow, x, y)]
    views += [_view("narrow", (420, 330), (44, 10, 30, 46), 4, segments, noisy, airglow[:1], x, y)]
    step = float(np.median([np.nanmedian(np.abs(np.diff(s.wavelength))) for s in segments]))
    pixels = max(s.pixels for s in segments)
    caption = f"Mean of {pixels} pixels per point (about {step:.2g} Å)" if pixels > 1 else "Every pixel"
    caption += "; the band spans their lowest and highest." if pixels > 1 else "."
    caption += " Pixels flagged bad are left out."
    if any(n.any() for n in noisy):
        caption += " Faint: little but noise (an error above three times the usual, and a flux below it)."
    if tables > 1:
        caption += f" First of {tables} exposures in the file."
    unit = units[1].replace(" ", "")
    flux = "Flux (10{} erg s⁻¹ cm⁻² Å⁻¹)" if unit.startswith("erg") else f"Flux (10{{}} {as_text(units[1])})"
    exponent = views[0].exponent
    return Spectrum(
        product=path.name,
        title=f"Spectrum of {ident or path.name}",
        description=(
            f"Flux against wavelength from {x[0]:,.1f} to {x[1]:,.1f} Å, in {len(segments)} "
            f"segment{'s' if len(segments) > 1 else ''}, drawn from {path.name}."
        ),
        x_label="Wavelength (Å)" if units[0].lower().startswith("ang") else f"Wavelength ({as_text(units[0])})",
        y_label=flux.format(_superscript(exponent)).replace("10⁰ ", ""),
        caption=caption,
        legend=[(i % 4, s.name) for i, s in enumerate(segments)] if 1 < len(segments) <= 8 else [],
        views=views,
    )


def _segments(path: Path) -> tuple[list[Segment], tuple[str, str], int]:
    """Read and bin every segment (or order) of the first table of a file; also units and number of tables."""
    import numpy as np
    from astropy.io import fits

    with fits.open(path, memmap=False) as hdus:
        wanted = {"WAVELENGTH", "FLUX"}
        tables = [h for h in hdus if getattr(h, "columns", None) and wanted <= set(h.columns.names)]
        if not tables:
            return [], ("", ""), 0
        table = tables[0]
        names = set(table.columns.names)
        units = (table.columns["WAVELENGTH"].unit or "", table.columns["FLUX"].unit or "")
        data = table.data
        # One row per segment holding arrays (COS, STIS), or one row per pixel.
        rows: list[dict[str, Any]]
        if data["FLUX"].ndim > 1:
            rows = [{n: row[n] for n in names} for row in data]
        else:
            rows = [{n: data[n] for n in names}]
        limit = max(100, min(MAX_POINTS, _MAX_POINTS_IN_ALL // max(len(rows), 1)))
        segments = []
        for index, row in enumerate(rows):
            label = row.get("SEGMENT", row.get("SPORDER", index + 1))
            name = str(label).strip() if "SEGMENT" in row else f"order {label}"
            length = int(row["NELEM"]) if np.ndim(row.get("NELEM", ())) == 0 else None
            wavelength = np.asarray(row["WAVELENGTH"], float)[:length]
            flux = np.asarray(row["FLUX"], float)[:length]
            error = np.asarray(row.get("ERROR", np.full(flux.shape, np.nan)), float)[:length]
            good = np.isfinite(wavelength) & np.isfinite(flux)
            if "DQ_WGT" in row:
                good &= np.asarray(row["DQ_WGT"], float)[:length] > 0
            elif "DQ" in row:
                good &= np.asarray(row["DQ"])[:length] == 0
            segment = _binned(as_text(name)[:24], wavelength, flux, error, good, limit)
            if segment is not None:
                segments.append(segment)
        return segments, units, len(tables)


def _binned(name: str, wave: Floats, flux: Floats, error: Floats, good: Flags, limit: int) -> Segment | None:
    """Average a spectrum in at most ``limit`` bins of equal numbers of pixels, keeping extremes."""
    import numpy as np

    used = np.flatnonzero(good)
    if used.size < 2:
        return None
    cut = slice(int(used[0]), int(used[-1]) + 1)
    wave, flux, error, good = wave[cut], flux[cut], error[cut], good[cut]
    if wave[good][0] > wave[good][-1]:
        wave, flux, error, good = wave[::-1], flux[::-1], error[::-1], good[::-1]
    pixels = math.ceil(wave.size / limit)
    starts = np.arange(0, wave.size, pixels)
    count = np.add.reduceat(good.astype(float), starts)
    variance = np.add.reduceat(np.where(good, error, 0.0) ** 2, starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Segment(
            name=name,
            pixels=pixels,
            wavelength=np.add.reduceat(np.where(good, wave, 0.0), starts) / count,
            mean=np.add.reduceat(np.where(good, flux, 0.0), starts) / count,
            low=np.where(count > 0, np.minimum.reduceat(np.where(good, flux, np.inf), starts), np.nan),
            high=np.where(count > 0, np.maximum.reduceat(np.where(good, flux, -np.inf), starts), np.nan),
            error=np.sqrt(variance) / count,
        )


def _noisy(segment: Segment) -> Flags:
    """Tell bins that hold little but noise, as the ends of a detector do, from those that show the target."""
    import numpy as np

    error = segment.error
    if not np.isfinite(error).any() or not np.nanmax(error) > 0:
        return np.zeros(error.shape, dtype=np.bool_)
    # Medians over many bins: a bright line has a large error too, but it is narrow.
    width = max(3, min(41, error.size // 8 * 2 + 1))
    error, mean = _running_median(error, width), _running_median(segment.mean, width)
    return np.asarray((error > 3 * np.nanmedian(error)) & (np.abs(mean) < error), dtype=np.bool_)


def _running_median(values: Floats, width: int) -> Floats:
    import numpy as np

    half = min(width, values.size) // 2
    padded = np.pad(values, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # windows without any value
        return np.asarray(np.nanmedian(windows, axis=1), float)


def _flux_range(
    segments: Sequence[Segment], noisy: Sequence[Flags], airglow: Sequence[tuple[str, float, float, float]]
) -> tuple[float, float]:
    """Choose the flux axis: by the target, neither by the noise at the ends nor by the airglow."""
    import numpy as np

    kept: list[Floats] = []
    for segment, noise in zip(segments, noisy, strict=True):
        use = np.isfinite(segment.mean) & ~noise
        for _, start, end, _ in airglow:
            use &= (segment.wavelength < start) | (segment.wavelength > end)
        kept.append(segment.mean[use])
    values = np.concatenate(kept)
    if values.size < 10:
        values = np.concatenate([s.mean[np.isfinite(s.mean)] for s in segments])
    low, high = (float(v) for v in np.percentile(values, (0.3, 99.7)))
    low = min(low, 0.0) if low > -0.5 * abs(high) or low >= 0 else low
    if not high > low:
        low, high = low - (abs(low) or 1.0), low + (abs(low) or 1.0)
    room = 0.12 * (high - low)
    return (low - room / 2 if low < 0 else low, high + room)


def _view(
    name: str,
    size: tuple[int, int],
    margins: tuple[int, int, int, int],
    ticks: int,
    segments: Sequence[Segment],
    noisy: Sequence[Flags],
    airglow: Sequence[tuple[str, float, float, float]],
    x: tuple[float, float],
    y: tuple[float, float],
) -> View:
    """Draw the segments into a frame."""
    import numpy as np

    (width, height), (left, right, top, bottom) = size, margins
    pad = 0.015 * (x[1] - x[0]) or 1.0
    x = (x[0] - pad, x[1] + pad)
    exponent = math.floor(math.log10(max(abs(y[0]), abs(y[1]))))
    exponent = 0 if -2 <= exponent <= 3 else exponent
    view = View(name, width, height, left, width - right, top, height - bottom, x, y, exponent)

    def at_x(value: Floats) -> Floats:
        return np.asarray(left + (value - x[0]) / (x[1] - x[0]) * (view.right - left))

    def at_y(value: Floats) -> Floats:
        place = view.bottom - (value - y[0]) / (y[1] - y[0]) * (view.bottom - top)
        return np.clip(place, -20 * height, 20 * height)  # far outside of the frame is far enough

    for index, (segment, noise) in enumerate(zip(segments, noisy, strict=True)):
        px, good = at_x(segment.wavelength), np.isfinite(segment.mean)
        # A bin at a change belongs to both, else the line has a hole there.
        near = noise | np.roll(noise, 1) | np.roll(noise, -1)
        band = ""
        if segment.pixels > 1:
            band = _band(px, at_y(segment.low), at_y(segment.high), good & ~noise)
        py = at_y(segment.mean)
        view.lines.append(Line(segment.name, index % 4, band, _path(px, py, good & ~noise), _path(px, py, good & near)))
    unit = 10.0**exponent
    view.x_ticks = [Tick(f"{at_x(np.asarray(v)):.1f}", label) for v, label in axis_ticks(*x, ticks)]
    view.y_ticks = [
        Tick(f"{at_y(np.asarray(v * unit)):.1f}", label) for v, label in axis_ticks(y[0] / unit, y[1] / unit, 6)
    ]
    end = 0.0
    for line in airglow:
        label, place = _airglow_label(line, segments, y[1]), float(at_x(np.asarray(line[3])))
        span = 6.8 * len(label)
        anchor = "end" if place - span > end else "start"
        if anchor == "start" and (place < end or place + span > width):
            label = ""  # no room: the hairline must do
        view.marks.append(Mark(f"{place:.1f}", label, anchor))
        end = place + 10 if anchor == "end" else place + span + 10
    return view


def _airglow_label(line: tuple[str, float, float, float], segments: Sequence[Segment], top: float) -> str:
    """Name a line of the airglow, with its peak if that is above the frame."""
    import numpy as np

    label, start, end, _ = line
    label += " airglow"
    values = np.concatenate([s.mean[(s.wavelength > start) & (s.wavelength < end)] for s in segments])
    if np.isfinite(values).any() and (peak := float(np.nanmax(values))) > max(top, 0):
        exponent = math.floor(math.log10(peak))
        label += f" ↑ {peak / 10.0**exponent:.1f}×10{_superscript(exponent)}"
    return label


def _path(x: Floats, y: Floats, use: Flags) -> str:
    """Write SVG path data, interrupted where points are not used."""
    parts = []
    pen = "M"
    for px, py, good in zip(x.tolist(), y.tolist(), use.tolist(), strict=True):
        if good:
            parts.append(f"{pen}{px:.1f} {py:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _band(x: Floats, low: Floats, high: Floats, use: Flags) -> str:
    """Write SVG path data of the areas between two curves."""
    import numpy as np

    parts = []
    edges = np.flatnonzero(np.diff(np.concatenate(([0], use.astype(int), [0]))))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        forth = zip(x[start:end].tolist(), high[start:end].tolist(), strict=True)
        back = zip(x[start:end][::-1].tolist(), low[start:end][::-1].tolist(), strict=True)
        points = [f"{px:.1f} {py:.1f}" for px, py in (*forth, *back)]
        parts.append(f"M{'L'.join(points)}Z")
    return "".join(parts)


def axis_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return round values inside an interval, at most about ``most``, with their labels."""
    raw = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, f"{i * step:,.{digits}f}".replace("-", "−")) for i in range(first, last + 1)]


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
