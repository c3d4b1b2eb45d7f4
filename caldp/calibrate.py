"""Calibrate: run the recipe's programs on the working copies, then prove that what should exist exists.

An exit status of 0 proves nothing: calcos ends with 0 when a member of an association is missing, cs0.e when it wrote
one exposure's pixels under another's name, runastrodriz when it drizzled the raw image for want of a calibrated one.
Success is the expected products, each whole, of the right exposure, made from the right files.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import caldp
from caldp import programs, unpublished
from caldp.errors import OutputError, ProgramMemoryError
from caldp.fitsfile import damage, read_header, update_header
from caldp.inputs import Inputs
from caldp.instruments import Program
from caldp.programs import ProgramRun
from caldp.references import References
from caldp.run import Run

#: What the C library, HSTCAL and astropy say of a full disk.
_NO_SPACE = r"No space left on device|Not enough space on disk"

#: Switches of drizzlepac that keep it from asking MAST for better coordinates, where that cannot be reached: it would
#: try for two minutes and then go on without, as it does with these.
_NO_ASTROMETRY = {"ASTROMETRY_COMPUTE_APOSTERIORI": "off", "ASTROMETRY_APPLY_APRIORI": "off"}

#: The service that drizzlepac asks, and how long a connection may take, in seconds.
_ASTROMETRY_SERVICE = ("mast.stsci.edu", 443)
_CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True)
class Products:
    """What is delivered besides previews and logs.

    Attributes
    ----------
    files : tuple of Path
        Everything, sorted by name: the raw data as calibrated (headers updated), their support files, the products.
    calibrated : tuple of Path
        The products among them.
    previewed : tuple of Path
        Those of the files that get a preview.
    reason : str
        Why nothing was calibrated; empty otherwise.
    versions : dict
        Versions of the calibration programs, as they wrote them into the products.
    programs : tuple of dict
        What an earlier run recorded of its programs, where the products are its.
    """

    files: tuple[Path, ...]
    calibrated: tuple[Path, ...]
    previewed: tuple[Path, ...]
    reason: str
    versions: dict[str, str]
    programs: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        size = sum(f.stat().st_size for f in self.files)
        return f"{len(self.files)} files, {len(self.calibrated)} of them products, {size / 1e6:.1f} MB"


def calibrate(run: Run, inputs: Inputs, references: References) -> Products:
    """Run the recipe's programs, one call for each association or exposure, and verify their products.

    Parameters
    ----------
    run : Run
        The run.
    inputs : Inputs
        Working copies whose headers name the references.
    references : References
        The verified files.

    Returns
    -------
    Products

    Raises
    ------
    Stage1Error, Stage2Error, SvmError, MvmError
        If a program is not installed, fails, or leaves out or damages what it should have written.
    ProgramMemoryError
        If it ran out of memory.
    OutputError
        If it found no space for its products.
    """
    with run.telemetry.stage("calibrate") as stage:
        if kept := unpublished.take(run, inputs, references):
            return kept
        _stamp(run, inputs)
        reasons = [_run_program(run, inputs, references, program) for program in run.recipe.programs]
        products = _gather(run, inputs, next((reason for reason in reasons if reason), ""))
        stage.bytes_in = sum(f.size for f in inputs.files)
        stage.bytes_out = sum(f.stat().st_size for f in products.calibrated)
        if products.reason:
            run.telemetry.warning(products.reason)
        run.telemetry.info(f"{products}")
    return products


def commands(run: Run, inputs: Inputs) -> list[list[str]]:
    """Return the commands that ``calibrate`` would run, in order.

    Parameters
    ----------
    run : Run
        The run.
    inputs : Inputs
        What it works on.

    Returns
    -------
    list of list of str
    """
    wanted = [program for program in run.recipe.programs if program.applies(inputs.material)]
    return [argv for program in wanted for argv in _calls(run, inputs, program)]


def expected(run: Run, inputs: Inputs) -> list[str]:
    """Return the names of the products that must exist in the end.

    Parameters
    ----------
    run : Run
        The run.
    inputs : Inputs
        What it works on.

    Returns
    -------
    list of str
    """
    return [name for program in run.recipe.programs for name in _expected(inputs, program)]


def _expected(inputs: Inputs, program: Program) -> list[str]:
    return [f"{root}_{suffix}.fits" for root, suffix in program.makes(inputs.material)]


def _calls(run: Run, inputs: Inputs, program: Program) -> list[list[str]]:
    """Return the commands of one program.

    Never two names in one command: calcos would take both segments of an exposure twice, cs0.e would take the second
    for the name of its output, runastrodriz for a directory.
    """
    given = {
        "dataset": [(inputs.association or inputs.raw[0]).name],
        "raw": [f.name for f in inputs.raw],
        "poller": [str(inputs.directory / inputs.poller.name)] if inputs.poller else [],
    }[program.call]
    output = str(run.workspace.products)
    return [[{"{input}": name, "{output}": output}.get(word, word) for word in program.argv] for name in given]


def _run_program(run: Run, inputs: Inputs, references: References, program: Program) -> str:
    """Run one program and verify what it made; return why it made nothing, if that is no failure."""
    if not program.applies(inputs.material):
        run.telemetry.info(f"{program.name} is not asked for by these headers")
        return ""
    if not _has_source(run, inputs, program):
        run.telemetry.info(f"{program.name} is not run: there is no calibrated exposure for it")
        return ""
    environment = _environment(run, inputs, references, program)
    executable = programs.find(program.name, environment.get("PATH", ""))
    if executable is None:
        raise program.error(f"{run.dataset}: {program.name} is not installed", remedy=program.remedy)
    said: list[str] = []
    for argv in _calls(run, inputs, program):
        try:
            done = run.telemetry.run_program([executable, *argv[1:]], cwd=inputs.directory, env=environment)
        except programs.StartError as error:
            raise program.error(f"{run.dataset}: {error}", remedy="install it anew; see caldp doctor") from error
        said += [*done.tail, *_trailers(run, inputs)]
        if reason := _judge(run, inputs, program, done, said):
            return reason
    reason = _verify(run, inputs, program, said)
    _keep_trailer(run, inputs, program, said)
    return reason


def _environment(run: Run, inputs: Inputs, references: References, program: Program) -> dict[str, str]:
    """Return the environment of a program: references, settings that came with the data, no hopeless web calls."""
    folders = run.config.reference_folders()
    if run.recipe.reference_variable:
        folders[run.recipe.reference_variable] = f"{references.directory}/"
    environment = {**run.config.program_environment(**folders), **inputs.settings}
    if program.astrometry and not any(name in environment for name in _NO_ASTROMETRY) and not _reaches(environment):
        run.telemetry.warning(
            f"the astrometry service {_ASTROMETRY_SERVICE[0]} cannot be reached: coordinates stay as they are "
            "(export ASTROMETRY_COMPUTE_APOSTERIORI and ASTROMETRY_APPLY_APRIORI to decide yourself)"
        )
        environment |= _NO_ASTROMETRY
    return environment


def _reaches(environment: Mapping[str, str]) -> bool:
    """Whether drizzlepac could reach the astrometry service; with a proxy or another service, only it can tell."""
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "ASTROMETRY_SERVICE_URL")
    if any(environment.get(name) for name in names):
        return True
    try:
        with socket.create_connection(_ASTROMETRY_SERVICE, timeout=_CONNECT_TIMEOUT):
            return True
    except OSError:
        return False


def _stamp(run: Run, inputs: Inputs) -> None:
    """Write into the raw headers what the programs copy into every product: versions, and the seed of the dither."""
    if not run.recipe.reference_variable:
        return  # the exposures of a mosaic are calibrated already, and say with what
    config = run.config
    cards: dict[str, tuple[Any, str]] = {
        "CALDPVER": (caldp.__version__, "version of CALDP"),
        "CSYS_VER": (config.system_version, "calibration system"),
        "AWSDPVER": (config.aws_dp_version, "AWS data processing"),
        "AWSYSVER": (config.aws_system_version, "AWS system"),
    }
    if run.recipe.random_seed is not None:
        cards["RANDSEED"] = (run.recipe.random_seed, "seed of the random dither")
    for file in inputs.raw:
        update_header(inputs.directory / file.name, cards)


# ---- what a program did


def _has_source(run: Run, inputs: Inputs, program: Program) -> bool:
    """Whether a program that works on products of an earlier one has any."""
    pattern = re.compile(rf"({_any(inputs.roots)})_({_any(program.made_from)})\.fits")
    return not program.made_from or any(pattern.fullmatch(p.name) for p in _written(run, inputs))


def _judge(run: Run, inputs: Inputs, program: Program, done: ProgramRun, said: list[str]) -> str:
    """Raise the error that explains a failed program; what looks like success is judged by its products."""
    what = f"{run.dataset}: {done.name}"
    text = "\n".join(said)
    if done.returncode in program.nothing_viable:
        return (
            f"nothing was made: {program.name} ended with {done.returncode}: {program.nothing_viable[done.returncode]}"
        )
    if done.returncode != 0:
        if done.oom_kills or any(re.search(pattern, text) for pattern in program.out_of_memory):
            raise ProgramMemoryError(
                f"{what} ran out of memory ({done.outcome}, peak {done.peak_memory / 1e6:.0f} MB)",
                remedy="run it with more memory",
            )
        if re.search(_NO_SPACE, text):
            raise OutputError(
                f"{what} found no space left in {run.workspace.root}",
                remedy="free space there, or point CALDP_HOME at another disk",
            )
        if done.returncode not in program.tolerated or _expected(inputs, program):
            late = next((keyword for keyword in run.recipe.late_references if keyword in text), "")
            remedy = f"give the file with --override {late}=<file>; {run.see_log}" if late else run.see_log
            raise program.error(f"{what}: {done.outcome}{_last_words(done)}", remedy=remedy)
    elif _expected(inputs, program):
        for pattern, meaning in program.said_failure:
            for line in said:
                if re.search(pattern, line) and not any(name in line for name in inputs.empty):
                    raise program.error(
                        f"{what} ended with exit status 0, but {meaning}: {line.strip()!r}",
                        remedy=run.see_log,
                    )
    return ""


def _last_words(done: ProgramRun) -> str:
    """Return the line that says most of why a program failed."""
    lines = [line.strip() for line in done.tail if programs.has_words(line)]
    telling = [n for n, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b|ERROR", line)]
    # HSTCAL says what is wrong on the first line of several, calcos on those after its error.
    first = next((n for n in reversed(telling) if n - 1 not in telling), -1)
    # The log lines of drizzlepac that may come after its error say nothing of it.
    chosen = list(takewhile(lambda line: not re.search(r"\bsrc=|\bINFO\b", line), lines[first:])) or lines[-1:]
    return f" ({' '.join(chosen)[:300]})" if chosen else ""


def _trailers(run: Run, inputs: Inputs) -> list[str]:
    text = []
    for path in _written(run, inputs):
        if path.suffix == ".tra":
            text += path.read_text(encoding="utf-8", errors="replace").splitlines()
    return text


def _keep_trailer(run: Run, inputs: Inputs, program: Program, said: list[str]) -> None:
    """Write a trailer of what a program said, where it found nothing to do and left none.

    In the archive such a dataset has one of runastrodriz, which is not started here only to say that it does nothing.
    """
    if program.trailer and not any(path.suffix == ".tra" for path in _written(run, inputs)):
        text = "".join(f"{line}\n" for line in said)
        (inputs.directory / f"{run.dataset}.tra").write_text(text, encoding="utf-8")


def _verify(run: Run, inputs: Inputs, program: Program, said: list[str]) -> str:
    """Count expected products against those found; return why there are none, if that is no failure."""
    there = {path.name: path for path in _written(run, inputs)}
    wanted = _listed(run, inputs, program, there) if program.manifest else _expected(inputs, program)
    missing = [name for name in wanted if name not in there]
    if wanted and len(missing) == len(wanted):
        for line in said:
            if any(re.search(pattern, line) for pattern in program.said_nothing_to_do):
                return f"{program.name} found nothing to do: {line.strip()!r}"
    if missing:
        raise program.error(
            f"{run.dataset}: {program.name} did not write {', '.join(missing[:4])}"
            f"{' and others' if len(missing) > 4 else ''} ({len(missing)} of {len(wanted)} products are missing)",
            remedy=run.see_log,
        )
    unfinished = sorted(name for name in there if name.endswith("_tmp.fits"))
    if unfinished:
        raise program.error(
            f"{run.dataset}: {program.name} left {unfinished[0]}: it did not finish", remedy=run.see_log
        )
    for name in wanted:
        if name.endswith(".fits"):
            _prove(run, inputs, program, there[name])
    return ""


def _listed(run: Run, inputs: Inputs, program: Program, there: Mapping[str, Path]) -> list[str]:
    """Return the products that a program lists in its manifest: all of this dataset, and among them an image."""
    manifest = program.manifest.format(dataset=run.dataset.name)
    if manifest not in there:
        raise program.error(f"{run.dataset}: {program.name} did not write {manifest}", remedy=run.see_log)
    names = there[manifest].read_text(encoding="utf-8", errors="replace").split()
    images = [name for name in names if re.search(r"_dr[cz]\.fits$", name)]
    if not images:
        raise program.error(f"{run.dataset}: {program.name} made no image ({manifest} lists none)", remedy=run.see_log)
    foreign = [name for name in names if not _is_kept(run, inputs, name) and not _is_dropped(run, name)]
    if foreign:
        raise program.error(
            f"{run.dataset}: {program.name} made {foreign[0]}, which is no product of this dataset", remedy=run.see_log
        )
    return [manifest, *names]


def _prove(run: Run, inputs: Inputs, program: Program, path: Path) -> None:
    """Make sure that a product is whole, is of the exposure it is named after, and was made from calibrated files."""
    if reason := damage(path):
        raise program.error(
            f"{run.dataset}: {path.name} is not whole FITS ({reason})", remedy=f"{run.see_log}; run it again"
        )
    header = read_header(path)
    root = path.name.partition("_")[0]
    rootname = str(header.get("ROOTNAME", root)).strip().lower()
    # Products of several exposures bear the name of any of them.
    if root in inputs.exposures and rootname != root:
        raise program.error(f"{run.dataset}: {path.name} holds {rootname}, another exposure", remedy=run.see_log)
    sources = list(_sources(header)) if program.made_from else []
    if program.made_from and not sources:
        raise program.error(
            f"{run.dataset}: {program.name} made an empty {path.name}: no exposure has pixels that can be used",
            remedy=f"look at the calibrated exposures and their references; {run.see_log}",
        )
    for source in sources:
        if not re.search(rf"_({_any(program.made_from)})\.fits", source):
            raise program.error(
                f"{run.dataset}: {path.name} was made from {source}, which is not calibrated", remedy=run.see_log
            )


def _sources(header: Mapping[str, Any]) -> Iterator[str]:
    """Return what astrodrizzle says it made an image from: D001DATA and so on."""
    for key, value in header.items():
        if re.fullmatch(r"D\d{3}DATA", key):
            yield str(value)


# ---- what is delivered


def _written(run: Run, inputs: Inputs) -> list[Path]:
    """List what the programs have written so far, beside their input or in the folder for products."""
    given = {f.name for f in inputs.files}
    beside = [p for p in inputs.directory.iterdir() if p.is_file() and p.name not in given]
    return sorted([*beside, *(p for p in run.workspace.products.iterdir() if p.is_file())])


def _gather(run: Run, inputs: Inputs, reason: str) -> Products:
    """Bring together what is delivered: products, trailers, and the working copies as calibrated, headers updated."""
    folder = run.workspace.products
    written = [p for p in _written(run, inputs) if _is_kept(run, inputs, p.name)]
    if reason and not run.recipe.reference_variable:
        return Products((), (), (), reason, {})  # of a mosaic that cannot be made, only the log says something
    for path in written:
        # Products that are not expected in every case (headerlets, sums) are delivered too, so they must be whole.
        if path.suffix == ".fits" and (problem := damage(path)):
            raise run.recipe.programs[-1].error(
                f"{run.dataset}: {path.name} is not whole FITS ({problem})", remedy=f"{run.see_log}; run it again"
            )
    names = {path.name for path in written}
    # calcos writes its own copy of the association table.
    given = [f.name for f in inputs.files if f.name not in names and _is_delivered(run, inputs, f.name)]
    for path in (*written, *(inputs.directory / name for name in given)):
        if path.parent != folder:
            shutil.move(path, folder / path.name)
    files = sorted(folder / name for name in (*names, *given))
    calibrated = sorted(folder / name for name in names if name.endswith(".fits") and not name.endswith("_asn.fits"))
    return Products(
        files=tuple(files),
        calibrated=tuple(calibrated),
        previewed=tuple(f for f in files if _has_preview(run, inputs, f.name)),
        reason=reason or ("" if calibrated else _nothing(run, inputs)),
        versions=_versions(run, calibrated),
    )


def _is_kept(run: Run, inputs: Inputs, name: str) -> bool:
    recipe, dataset = run.recipe, run.dataset
    places = {"dataset": dataset.name, "root": dataset.root, "roots": _any(inputs.roots)}
    kept = any(re.fullmatch(_filled(pattern, places), name) for pattern in recipe.kept)
    return kept and not _is_dropped(run, name)


def _is_dropped(run: Run, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in run.recipe.dropped)


def _is_delivered(run: Run, inputs: Inputs, name: str) -> bool:
    """Whether an input goes out again; its settings do, so that the result can be explained."""
    return _is_kept(run, inputs, name) or (inputs.settings_file is not None and name == inputs.settings_file.name)


def _has_preview(run: Run, inputs: Inputs, name: str) -> bool:
    recipe = run.recipe
    root, _, suffix = name.removesuffix(".fits").partition("_")
    if recipe.composites:
        suffix = name.removesuffix(".fits").rpartition("_")[2]
    stem = suffix[:-2] if suffix.endswith(("_a", "_b")) else suffix
    if stem in recipe.spectra:
        return True
    if stem not in recipe.images or not name.endswith(".fits"):
        return False
    facts = {f.root: f.facts for f in inputs.raw}.get(root, inputs.raw[0].facts)
    return recipe.images_of_spectra or facts.get("OBSTYPE") != "SPECTROSCOPIC"


def _nothing(run: Run, inputs: Inputs) -> str:
    program = run.recipe.programs[0].name
    if not any(str(value).strip().upper() == "PERFORM" for f in inputs.raw for value in f.facts.values()):
        return f"nothing was calibrated: the headers ask {program} for no calibration step"
    types = ", ".join(sorted({str(f.facts.get("EXPTYPE", f.facts.get("OBSMODE", "these"))) for f in inputs.raw}))
    return f"nothing was calibrated: {program} makes no products of {types} exposures like this"


def _versions(run: Run, calibrated: Iterable[Path]) -> dict[str, str]:
    for path in calibrated:
        version = str(read_header(path).get("CAL_VER", "")).strip()
        if version and run.recipe.reference_variable:
            return {run.recipe.programs[0].name: version}
    return {}


def _any(names: Iterable[str]) -> str:
    """Return a regular expression for any of some names."""
    return "|".join(map(re.escape, names))


def _filled(pattern: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        pattern = pattern.replace(f"{{{place}}}", value)
    return pattern
