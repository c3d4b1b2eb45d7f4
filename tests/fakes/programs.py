"""Fakes of the calibration programs: they write what the real ones were measured to write, and fail as these do.

They stand in for calacs.e, calwf3.e and cs0.e (HSTCAL 3.2.0), calcos 3.6.2, and runastrodriz, runsinglehap and
runmultihap (drizzlepac 3.11.0).  ``install`` makes executables of them.  The variables of their environment:

- ``FAKE_CALACS``, ``FAKE_CALWF3``, ``FAKE_CS0``, ``FAKE_CALCOS``, ``FAKE_RUNASTRODRIZ``, ``FAKE_RUNSINGLEHAP``,
  ``FAKE_RUNMULTIHAP``: how each behaves; it does its work if not set.  See ``_before``, ``_after`` and each program.
- ``FAKE_CALLS``: file to which every call is appended, as JSON.

What follows from the input alone needs no variable: missing files, outputs that are there already, switches that are
all OMIT, two names in one command, a drizzle without calibrated exposures.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.fakes import smallfits
from tests.fakes.smallfits import Hdu

_REPOSITORY = Path(__file__).resolve().parents[2]

#: Keywords that products inherit from their raw data.
_INHERITED = ("INSTRUME", "DETECTOR", "OBSTYPE", "EXPTYPE", "OPT_ELEM", "DRIZCORR", "CSYS_VER")

_ACS_STEPS = "DQI ATOD BIAS BLEV PCTE DARK FLSH FLAT SHAD PHOT GLIN LFLG"
_WFC3_STEPS = "DQI ATOD BIAS BLEV PCTE DARK FLSH FLAT SHAD PHOT ZSIG ZOFF NLIN UNIT"
_STIS_STEPS = "DQI ATOD BIAS BLEV LORS GLIN LFLG DARK FLAT SHAD PHOT"


def install(folder: Path) -> Path:
    """Make executables of the fakes in a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PROGRAMS:
        code = f"import sys; sys.path.insert(0, {str(_REPOSITORY)!r}); from tests.fakes.programs import main; main()"
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -SE -c {shlex.quote(code)} {name} "$@"\n')
        path.chmod(0o755)
    return folder


def calls(path: Path) -> list[dict[str, Any]]:
    """Return the calls that were written to ``FAKE_CALLS``."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class _Run:
    """One call of a fake."""

    name: str
    argv: list[str]
    behaviour: str
    made: list[Path] = field(default_factory=list)

    def write(self, path: Path, header: dict[str, Any], *extensions: Hdu) -> None:
        smallfits.write(path, header, *extensions)
        self.made.append(path)

    def text(self, path: Path, *lines: str) -> None:
        with path.open("a") as stream:
            stream.writelines(f"{line}\n" for line in lines)


class _Refusal(Exception):
    """The program ends here, with what it says and an exit status."""

    def __init__(self, status: int, *lines: str) -> None:
        super().__init__(*lines)
        self.status = status


def main() -> NoReturn:
    """Be the program that the first argument names."""
    name, *argv = sys.argv[1:]
    variable, work = _PROGRAMS[name]
    if path := os.environ.get("FAKE_CALLS"):
        wanted = re.compile(r"[a-z]ref|ASTROMETRY_\w+|imclobber|PIPELINE_\w+|OMP_NUM_THREADS|GoodKey|LD_PRELOAD")
        environ = {key: value for key, value in os.environ.items() if wanted.fullmatch(key)}
        with Path(path).open("a") as stream:
            stream.write(json.dumps({"name": name, "argv": argv, "cwd": str(Path.cwd()), "environ": environ}) + "\n")
    run = _Run(name, argv, os.environ.get(variable) or "ok")
    print(f"{name}, a fake", flush=True)
    try:
        _before(run)
        work(run)
        _after(run)
    except _Refusal as refusal:
        print(*refusal.args, sep="\n", flush=True)
        sys.exit(refusal.status)
    sys.exit(0)


def _before(run: _Run) -> None:
    """Fail before any product is made, or say something odd."""
    behaviour = run.behaviour
    if behaviour == "nothing":
        raise _Refusal(0)
    if match := re.fullmatch(r"exit-(\d+)", behaviour):
        said = ("ERROR:    SATUFILE `N/A' not found or can't open.", "ERROR:    Couldn't process CCD data")
        raise _Refusal(int(match[1]), *said, f"ERROR:             status = {match[1]}")
    if behaviour == "memory":
        _leave(run, "_blv_tmp")
        raise _Refusal(
            2,
            "*** ERROR in HST I/O functions:",
            "No memory left to allocate data.",
            "ERROR:    Couldn't process CCD data",
        )
    if behaviour == "python-memory":
        raise _Refusal(1, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array")
    if behaviour == "full":
        raise _Refusal(2, "ERROR:    cannot write: No space left on device")
    if behaviour == "not-asked":
        raise _Refusal(0, "Warning    No calibration switch was set to PERFORM.")
    if behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "bytes":
        os.write(1, b"caf\351 \377\376\n")


def _after(run: _Run) -> None:
    """Spoil what was made."""
    behaviour = run.behaviour
    fits = [path for path in run.made if path.suffix == ".fits"]
    if behaviour == "kill-after":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "truncated":
        os.truncate(fits[0], fits[0].stat().st_size // 2)
    if behaviour == "segv-partial":  # cs0.e, on a truncated raw file
        os.truncate(fits[0], fits[0].stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "tmp-left":
        _leave(run, "_blv_tmp")
    if behaviour == "other-exposure":
        content, root = fits[0].read_bytes(), fits[0].name[:9]
        for name in (root, root.upper()):
            content = content.replace(f"ROOTNAME= '{name}".encode(), f"ROOTNAME= '{name[:8]}z".encode())
        fits[0].write_bytes(content)
    if match := re.fullmatch(r"without-(\w+)", behaviour):
        for path in fits:
            if path.name.endswith(f"_{match[1]}.fits"):
                path.unlink()


def _leave(run: _Run, suffix: str) -> None:
    """Leave a temporary file behind."""
    root = run.argv[-1].split("_")[0]
    smallfits.write(Path(f"{root}{suffix}.fits"), {"ROOTNAME": root}, smallfits.image("SCI"))


# ---- parts


def _performs(header: dict[str, Any], *steps: str) -> bool:
    return any(header.get(f"{step}CORR") == "PERFORM" for step in steps)


def _facts(header: dict[str, Any], root: str, version: str) -> dict[str, Any]:
    kept = {key: header[key] for key in _INHERITED if key in header}
    return {**kept, "ROOTNAME": root, "FILENAME": root, "CAL_VER": version}


def _science() -> tuple[Hdu, ...]:
    return smallfits.image("SCI"), smallfits.image("ERR", base=1.0), smallfits.ramp("DQ")


def _mosaic() -> tuple[Hdu, ...]:
    return smallfits.image("SCI"), smallfits.image("WHT", base=1.0), smallfits.ramp("CTX")


def _spectrum(instrument: str, segments: tuple[str, ...] = ("FUVA",)) -> Hdu:
    """Make a table of spectra with the columns that are plotted, a row for each segment."""
    points = range(400)
    wavelengths = [1300.0 + n for n in points]
    row = {
        "SPORDER": ("1I", 1),
        "EXPTIME": ("1D", 100.0),
        "NELEM": ("1J", 400),
        "WAVELENGTH": ("400D", wavelengths),
        "FLUX": ("400E", [1e-14 * (1 + n % 20 / 100) for n in points]),
        "ERROR": ("400E", [1e-15] * 400),
        "GROSS": ("400E", [1.0] * 400),
        "NET": ("400E", [1.0] * 400),
        "DQ": ("400I", [0] * 400),
        "DQ_WGT": ("400E", [1.0] * 400),
    }
    columns: dict[str, tuple[str, list[Any]]] = {"SEGMENT": ("4A", list(segments))}
    columns |= {name: (form, [value] * len(segments)) for name, (form, value) in row.items()}
    for name in ("SEGMENT",) if instrument == "STIS" else ("SPORDER",):
        del columns[name]
    return smallfits.table("SCI", columns)


def _raw(root: str, suffix: str = "raw") -> dict[str, Any]:
    """Return the header of a raw file, as HSTCAL reads it."""
    path = Path(f"{root}_{suffix}.fits")
    if not path.exists():
        raise _Refusal(2, "*** ERROR in HST I/O functions:", f'ERROR:    Member "{path}" is not present')
    try:
        return smallfits.read_header(path)
    except (ValueError, KeyError, StopIteration):
        raise _Refusal(2, "*** ERROR in HST I/O functions:", f"Error reading data buffer from file:{path}") from None


def _fresh(*paths: Path) -> None:
    """Refuse to overwrite, as HSTCAL does unless imclobber is set."""
    for path in paths:
        if path.exists() and os.environ.get("imclobber") != "yes":  # noqa: SIM112 - its name
            raise _Refusal(2, f"Warning    Output file `{path}' already exists.", "ERROR:             status = 1021")


def _need_references(variable: str, status: int) -> None:
    """Refuse where the variable does not end with a slash: name and folder are simply joined."""
    if not os.environ.get(variable, "").endswith("/"):
        raise _Refusal(
            status,
            f"Warning    CCDTAB `{variable}$x_ccd.fits' not found or can't open.",
            "One reference file was missing.",
        )


def _one_name(run: _Run, syntax: str) -> Path:
    if len(run.argv) != 1:
        raise _Refusal(2, f"syntax:  {syntax} input")
    path = Path(run.argv[0])
    if not path.exists():
        raise _Refusal(2, "Error opening image array.", f"ERROR:    File {path} not found for processing")
    return path


def _members(path: Path) -> tuple[list[str], list[tuple[str, list[str]]], str]:
    """Return the exposures, the (product, exposures) of each set, and the dithered product of an association."""
    rows = smallfits.read_table(path)
    there = rows.get("MEMPRSNT", ["T"] * len(rows["MEMNAME"]))
    named = list(zip([n.lower() for n in rows["MEMNAME"]], rows["MEMTYPE"], there, strict=True))
    exposures = [(n, t) for n, t, present in named if t.startswith("EXP-") and present == "T"]
    sets, dithered = [], ""
    for name, kind, _ in named:
        if kind == "PROD-DTH":
            dithered = name
        elif kind.startswith("PROD-"):
            sets.append((name, [n for n, t in exposures if t.partition("-")[2] == kind.partition("-")[2]]))
    return [n for n, _ in exposures], sets, dithered


# ---- calacs.e and calwf3.e


def _calacs(run: _Run) -> None:
    given = _one_name(run, "calacs.e")
    association = given.name.endswith("_asn.fits")
    exposures, sets, _ = _members(given) if association else ([given.name.split("_")[0]], [], "")
    headers = {root: _raw(root) for root in exposures}
    first = headers[exposures[0]]
    if first["INSTRUME"] != "ACS":
        raise _Refusal(
            2, f'ERROR:    {given} is not an ACS image! (INSTRUME="{first["INSTRUME"]}"', "ERROR: status = 1"
        )
    if not sets and not any(_performs(header, *_ACS_STEPS.split()) for header in headers.values()):
        raise _Refusal(0, "Warning    No calibration switch was set to PERFORM.", f"CALACS did NOT process {given}")
    _need_references("jref", 2)
    _exposures(run, headers, "10.5.0 (16-Mar-2026)", ("flt",), exposures)
    for product, members in sets:
        header = headers[members[0]]
        kinds = ("sfl",) if header["DETECTOR"] == "SBC" else ("crj", *(("crc",) if _performs(header, "PCTE") else ()))
        _combine(run, product, header, "10.5.0 (16-Mar-2026)", kinds)
    if association:
        run.text(Path(f"{given.name.split('_')[0]}.tra"), "Finished CCD processing...")


def _calwf3(run: _Run) -> None:
    given = _one_name(run, "calwf3.e")
    association = given.name.endswith("_asn.fits")
    exposures, sets, _ = _members(given) if association else ([given.name.split("_")[0]], [], "")
    headers = {root: _raw(root) for root in exposures}
    first = headers[exposures[0]]
    if first["INSTRUME"] != "WFC3":
        raise _Refusal(2, "ERROR:     Problem getting primary header information.", "ERROR:    Header problem.")
    if not sets and not any(_performs(header, *_WFC3_STEPS.split()) for header in headers.values()):
        raise _Refusal(0, "Warning    No calibration switch was set to PERFORM.", f"CALWF3 did NOT process {given}")
    _need_references("iref", 115)
    infrared = first["DETECTOR"] == "IR"
    combined = [(p, m) for p, m in sets if len(m) > 1 and (not infrared or _performs(first, "RPT"))]
    inside = {root for _, members in combined for root in members}
    alone = [r for r in exposures if infrared or r not in inside or _performs(headers[r], "EXPS")]
    _exposures(run, headers, "3.7.3 (Jan-07-2026)", ("flt", "ima") if infrared else ("flt",), alone)
    for product, members in combined:
        header = headers[members[0]]
        cte = not infrared and _performs(header, "PCTE")
        _combine(run, product, header, "3.7.3 (Jan-07-2026)", ("crj", *(("crc",) if cte else ())))
    if association:
        run.text(Path(f"{given.name.split('_')[0]}.tra"), "CALWF3 complete")


def _exposures(
    run: _Run, headers: dict[str, dict[str, Any]], version: str, suffixes: tuple[str, ...], wanted: list[str]
) -> None:
    for root, header in headers.items():
        if root in wanted:
            cte = _performs(header, "PCTE") and header["DETECTOR"] not in ("SBC", "IR")
            paths = [Path(f"{root}_{suffix}.fits") for suffix in (*suffixes, *(("flc",) if cte else ()))]
            _fresh(*paths, Path(f"{root}_blv_tmp.fits"))
            for path in paths:
                run.write(path, _facts(header, root, version), *_science())
        run.text(Path(f"{root}.tra"), f"Input    {root}_raw.fits")


def _combine(run: _Run, product: str, header: dict[str, Any], version: str, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        _fresh(Path(f"{product}_{suffix}.fits"))
        # A product that is named after its association is written in capitals.
        run.write(Path(f"{product}_{suffix}.fits"), _facts(header, product.upper(), version), *_science())
    run.text(Path(f"{product}.tra"), f"Output   {product}_{suffixes[0]}.fits")


# ---- cs0.e


def _cs0(run: _Run) -> None:
    names = [word for word in run.argv if not word.startswith("-")]
    given = Path(names[0])
    if not given.exists():
        os.kill(os.getpid(), signal.SIGSEGV)
    root, _, suffix = given.name.removesuffix(".fits").partition("_")
    # The second name is that of the output: this is how two raw files become one wrong product.
    target = names[-1].removesuffix(".fits").removesuffix("_raw")
    header = _raw(root, suffix)
    if header["INSTRUME"] != "STIS":
        raise _Refusal(2, f"ERROR:    DETECTOR = {header['DETECTOR']} is invalid", "ERROR:             Header problem.")
    spectrum = header["OBSTYPE"] == "SPECTROSCOPIC"
    combines = header["NEXTEND"] >= 6 and header["DETECTOR"] == "CCD" and _performs(header, "CR", "RPT")
    images = [] if combines and not _performs(header, "EXPS") else ["flt"] * _performs(header, *_STIS_STEPS.split())
    images += ["crj"] * combines
    images += ["sx2" if combines else "x2d"] * _performs(header, "X2D" if spectrum else "GEO")
    tables = ["sx1" if combines else "x1d"] * (spectrum and _performs(header, "X1D"))
    if not images and not tables:
        raise _Refusal(0, "Warning    No calibration switch was set to PERFORM.", "CALSTIS did NOT process the input")
    _need_references("oref", 2)
    wavecal = str(header.get("WAVECAL", "")).lower()
    if spectrum and _performs(header, "WAVE") and wavecal not in ("", "n/a") and not Path(wavecal).exists():
        raise _Refusal(2, f"ERROR:    Can't open file {wavecal}")
    facts = _facts(header, header["ROOTNAME"], "3.5.0 (02-Feb-2026)")
    for suffix in images:
        _fresh(Path(f"{target}_{suffix}.fits"))
        run.write(Path(f"{target}_{suffix}.fits"), facts, *_science())
    for suffix in tables:
        run.write(Path(f"{target}_{suffix}.fits"), facts, _spectrum("STIS"))


# ---- calcos


def _calcos(run: _Run) -> None:
    _, folder, name = run.argv
    output, given = Path(folder), Path(name)
    association = given.name.endswith("_asn.fits")
    exposures = _members(given)[0] if association else [given.name.split("_")[0]]
    positions: set[int] = set()
    facts: dict[str, Any] = {}
    spectrum: Hdu = ([], b"")
    for root in exposures:
        raws = sorted(Path().glob(f"{root}_raw*.fits"))
        if not raws:
            print(f"There are no files to calibrate for rootname {root}")
            continue
        header = smallfits.read_header(raws[0])
        positions.add(header["FPPOS"])
        facts = _facts(header, root, "3.6.2")
        spectrum = _spectrum("COS", ("NUVA", "NUVB", "NUVC") if header["DETECTOR"] == "NUV" else ("FUVA",))
        segments = [p.name.removesuffix(".fits")[-2:] if re.search("_[ab].fits$", p.name) else "" for p in raws]
        for segment in segments:
            for suffix in ("corrtag", "counts", "flt"):
                run.write(output / f"{root}_{suffix}{segment}.fits", facts, *_science())
        run.write(output / f"{root}_lampflash.fits", facts, spectrum)
        run.write(output / f"{root}_x1d.fits", facts, spectrum)
        run.text(output / f"{root}.tra", "CALCOS version 3.6.2")
    if association:
        product = given.name.split("_")[0]
        shutil.copy(given, output)
        facts |= {"ROOTNAME": product}
        run.write(output / f"{product}_jnk.fits", facts)
        for suffix in ("x1dsum", *(f"x1dsum{position}" for position in sorted(positions))):
            run.write(output / f"{product}_{suffix}.fits", facts, spectrum)


# ---- runastrodriz


def _runastrodriz(run: _Run) -> None:
    """Drizzle; ``raw`` takes the raw files, ``no-build`` writes parts, as without build in MDRIZTAB."""
    if run.argv[:2] != ["-n", "1"] or len(run.argv) > 3:
        raise _Refusal(1, f"NotADirectoryError: [Errno 20] Not a directory: '{run.argv[-1]}'")
    given = Path(run.argv[2])
    root = given.name.split("_")[0]
    trailer = Path(f"{root}.tra")
    if not given.exists():
        run.text(trailer, "")
        raise _Refusal(0, f"[ERROR   ] Input file - {given} - does not exist.")
    exposures, sets, dithered = _members(given) if given.name.endswith("_asn.fits") else ([root], [], "")
    header = _raw(exposures[0])
    run.text(trailer, "*** Drizzlepac Processing Version 3.11.0***")
    if header.get("DRIZCORR") != "PERFORM":
        line = f"[INFO    ] 03:45:41 (22-Nov-2026): astrodrizzle processing not requested for {given}."
        run.text(trailer, line)
        raise _Refusal(0, line)
    variable = "jref" if header["INSTRUME"] == "ACS" else "iref"
    if variable not in os.environ:
        raise _Refusal(1, f"ValueError: Undefined variable `{variable}' in string `{variable}$x_idc.fits'")
    product = dithered or (sets[0][0] if sets else root)
    for calibrated, drizzled in (("flt", "drz"), ("flc", "drc")):
        there = [Path(f"{r}_{calibrated}.fits") for r in exposures if Path(f"{r}_{calibrated}.fits").exists()]
        if run.behaviour == "raw" or (calibrated == "flt" and not there):
            there = [Path(f"{r}_raw.fits") for r in exposures]
        if not there or (calibrated == "flc" and run.behaviour == "raw"):
            continue
        facts = _facts(header, product, "") | {"DRIZCORR": "COMPLETE", "NDRIZIM": len(there)}
        del facts["CAL_VER"]
        if run.behaviour != "empty":  # all of them were excluded: an image without pixels, made of nothing
            facts |= {f"D{number:03}DATA": f"{path}[sci,1]" for number, path in enumerate(there, 1)}
        if run.behaviour == "no-build":
            for suffix, part in zip(("sci", "wht", "ctx"), _mosaic(), strict=True):
                run.write(Path(f"{product}_{drizzled}_{suffix}.fits"), facts, part)
        else:
            run.write(Path(f"{product}_{drizzled}.fits"), facts, *_mosaic())
        for path in there if calibrated == "flt" else []:
            path.write_bytes(path.read_bytes())  # updated in place
            run.write(Path(f"{path.name.split('_')[0]}_flt_hlet.fits"), {"ROOTNAME": root}, smallfits.image("SIPWCS"))
    Path(f"{root}_pydriz_copy.log").write_text("a copy of the log\n")


# ---- runsinglehap and runmultihap


def _hap(run: _Run) -> list[list[str]]:
    """Read the list of exposures; 55 and 65 say that none can be used."""
    poller = Path(run.argv[0])
    try:
        rows = [line.split(",") for line in poller.read_text().split()]
    except OSError as error:
        raise _Refusal(1, f"FileNotFoundError: {error}") from None
    manifest = Path(f"{poller.name.removesuffix('_input.out')}_manifest.txt")
    if run.behaviour in ("no-viable-55", "no-viable-65", "no-viable-15", "empty"):
        manifest.touch()
        code = int(run.behaviour[-2:]) if run.behaviour != "empty" else 0
        raise _Refusal(
            code, "No viable images in single/multi-visit table - no processing done.", f"Return Value:  {code}"
        )
    for row in rows:
        if not Path(row[0]).exists():
            raise _Refusal(1, f"FileNotFoundError: [Errno 2] No such file or directory: '{row[0]}'")
    return rows


def _element(filters: str) -> str:
    return "-".join(e.lower() for e in filters.split(";") if not e.startswith("CLEAR"))


def _image(run: _Run, base: str, suffix: str, header: dict[str, Any]) -> None:
    extensions = _science() if suffix in ("flc", "flt") else _mosaic()
    source = {} if suffix in ("flc", "flt") else {"D001DATA": f"x_{'flc' if suffix == 'drc' else 'flt'}.fits[sci,1]"}
    run.write(Path(f"{base}_{suffix}.fits"), {**header, **source}, *extensions)


def _runsinglehap(run: _Run) -> None:
    """Make the mosaics of a visit; ``no-catalogues`` as with photutils 3."""
    rows = _hap(run)
    catalogues = run.behaviour != "no-catalogues"
    filters: dict[str, dict[str, Any]] = {}
    for name, program, _, visit, _, elements, detector, *_ in rows:
        header = _facts(smallfits.read_header(Path(name)), name[:8], "")
        instrument = header["INSTRUME"].lower()
        start = f"hst_{program}_{visit.lower()}_{instrument}_{detector.lower()}"
        calibrated = name[-8:-5]
        drizzled = "drc" if calibrated == "flc" else "drz"
        base = f"{start}_{_element(elements)}_{name[:8]}"
        for suffix in (drizzled, calibrated):
            _image(run, base, suffix, header)
        run.write(Path(f"{base}_hlet.fits"), header, smallfits.image("SIPWCS"))
        _text(run, f"{base}_trl.txt")
        for element in (_element(elements), "total"):
            filters[f"{start}_{element}_{name[:6]}"] = {"suffix": drizzled, "header": header}
    for base, product in filters.items():
        _image(run, base, product["suffix"], product["header"])
        _text(run, f"{base}_trl.txt")
        if catalogues:
            _text(run, f"{base}_point-cat.ecsv")
            _text(run, f"{base}_segment-cat.ecsv")
    listed = "".join(f"{path}\n" for path in run.made)
    _text(run, f"{base}_metawcs_all_ref_cat.ecsv")  # not an output
    Path("astrodrizzle.log").write_text("a log\n")
    Path(f"{Path(run.argv[0]).name.removesuffix('_input.out')}_manifest.txt").write_text(listed)
    if not catalogues:
        raise _Refusal(1, "KeyError: 'xcentroid'")


def _runmultihap(run: _Run) -> None:
    """Make the mosaics of a sky cell."""
    products: dict[str, dict[str, Any]] = {}
    for name, _, _, _, _, elements, detector, cell, *_ in _hap(run):
        header = _facts(smallfits.read_header(Path(name)), name, "")
        base = f"hst_{cell}_{header['INSTRUME'].lower()}_{detector.lower()}_{_element(elements)}_all"
        products[base] = {"suffix": "drc" if name.endswith("_flc.fits") else "drz", "header": header}
    for base, product in products.items():
        _image(run, base, product["suffix"], product["header"])
        _text(run, f"{base}_trl.txt")
    listed = "".join(f"{path}\n" for path in run.made)
    Path(f"{Path(run.argv[0]).name.removesuffix('_input.out')}_manifest.txt").write_text(listed)


def _text(run: _Run, name: str) -> None:
    Path(name).write_text("a fake\n")
    run.made.append(Path(name))


_PROGRAMS: dict[str, tuple[str, Callable[[_Run], None]]] = {
    name: (f"FAKE_{name.removesuffix('.e').upper()}", work)
    for name, work in {
        "calacs.e": _calacs,
        "calwf3.e": _calwf3,
        "cs0.e": _cs0,
        "calcos": _calcos,
        "runastrodriz": _runastrodriz,
        "runsinglehap": _runsinglehap,
        "runmultihap": _runmultihap,
    }.items()
}
