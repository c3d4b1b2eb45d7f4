"""Calibrate: run the recipe's program on the working copies, then prove that what should exist exists.

An exit status of 0 proves nothing: calcos ends with 0 when a member of an association is missing, when a table of
events is empty, and when its input does not exist.  Success is the expected products, each whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caldp
from caldp import programs
from caldp.errors import OutputError, ProgramMemoryError, Stage1Error
from caldp.fitsfile import damage, update_header
from caldp.inputs import Inputs
from caldp.programs import ProgramRun
from caldp.references import References
from caldp.run import Run

#: What the C library and astropy say of a full disk.
_NO_SPACE = r"No space left on device|Not enough space on disk"


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
        Those that get a preview.
    reason : str
        Why nothing was calibrated; empty otherwise.
    versions : dict
        Versions of the calibration programs, as they wrote them into the products.
    """

    files: tuple[Path, ...]
    calibrated: tuple[Path, ...]
    previewed: tuple[Path, ...]
    reason: str
    versions: dict[str, str]

    def __str__(self) -> str:
        size = sum(f.stat().st_size for f in self.files)
        return f"{len(self.files)} files, {len(self.calibrated)} of them products, {size / 1e6:.1f} MB"


def calibrate(run: Run, inputs: Inputs, references: References) -> Products:
    """Run the calibration program once per association or exposure and verify its products.

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
    Stage1Error
        If the program is not installed, fails, or leaves out or damages what it should have written.
    ProgramMemoryError
        If it ran out of memory.
    OutputError
        If it found no space for its products.
    """
    with run.telemetry.stage("calibrate") as stage:
        executable, environment = command(run, references)
        _stamp(run, inputs)
        for argument in calls(inputs):
            argv = [executable, *arguments(run, argument)]
            try:
                done = run.telemetry.run_program(argv, cwd=inputs.directory, env=environment)
            except programs.StartError as error:
                raise Stage1Error(f"{run.dataset}: {error}", remedy="install it anew; see caldp doctor") from error
            _judge(run, inputs, done)
        products = _verify(run, inputs)
        stage.bytes_in = sum(f.size for f in inputs.files)
        stage.bytes_out = sum(f.stat().st_size for f in products.calibrated)
        if products.reason:
            run.telemetry.warning(products.reason)
        run.telemetry.info(f"{products}")
    return products


def calls(inputs: Inputs) -> list[str]:
    """Return what the program is called with, one call each: the association, else the exposure's first raw file.

    Given one segment of an exposure calcos takes the other as well; given two names it would take them twice.
    """
    if inputs.association:
        return [inputs.association.name]
    return [inputs.raw[0].name]


def arguments(run: Run, argument: str) -> list[str]:
    """Return the arguments of one call of the program."""
    places = {"{input}": argument, "{output}": str(run.workspace.products)}
    return [places.get(word, word) for word in run.recipe.program[1:]]


def command(run: Run, references: References) -> tuple[str, dict[str, str]]:
    """Return the path of the program and its environment."""
    environment = run.config.program_environment(**{run.recipe.reference_variable: f"{references.directory}/"})
    name = run.recipe.program[0]
    executable = programs.find(name, environment.get("PATH", ""))
    if executable is None:
        raise Stage1Error(
            f"{run.dataset}: {name} is not installed",
            remedy=f"pip install {name}, or put it on PATH; see caldp doctor",
        )
    return executable, environment


def expected(run: Run, inputs: Inputs) -> dict[str, tuple[str, str]]:
    """Return the products that must exist: {file name: (root, suffix)}."""
    names: dict[str, tuple[str, str]] = {}
    for file in inputs.raw:
        if file.name not in inputs.empty:
            for suffix in run.recipe.expected(file.facts, file.suffix):
                names[f"{file.root}_{suffix}.fits"] = (file.root, suffix)
    if inputs.product and names:
        for suffix in run.recipe.association_products([f.facts for f in inputs.raw if f.name not in inputs.empty]):
            names[f"{inputs.product}_{suffix}.fits"] = (inputs.product, suffix)
    return names


def _stamp(run: Run, inputs: Inputs) -> None:
    """Write into the raw headers what the programs copy into every product: versions, and the seed of the dither."""
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


def _judge(run: Run, inputs: Inputs, done: ProgramRun) -> None:
    """Raise the error that explains a failed program; what looks like success is judged by its products."""
    recipe = run.recipe
    what = f"{run.dataset}: {done.name}"
    said = "\n".join([*done.tail, *_trailers(run)])
    if done.returncode != 0:
        if done.oom_kills or any(re.search(pattern, said) for pattern in recipe.out_of_memory):
            raise ProgramMemoryError(
                f"{what} ran out of memory ({done.outcome}, peak {done.peak_memory / 1e6:.0f} MB)",
                remedy="run it with more memory",
            )
        if re.search(_NO_SPACE, said):
            raise OutputError(
                f"{what} found no space left in {run.workspace.root}",
                remedy="free space there, or point CALDP_HOME at another disk",
            )
        if done.returncode in recipe.tolerated and not expected(run, inputs):
            return
        raise Stage1Error(f"{what}: {done.outcome}{_last_words(done)}", remedy=run.see_log)
    if expected(run, inputs):
        for pattern, meaning in recipe.warnings_of_failure:
            for line in said.splitlines():
                if re.search(pattern, line) and not any(name in line for name in inputs.empty):
                    raise Stage1Error(
                        f"{what} ended with exit status 0, but {meaning}: {line.strip()!r}",
                        remedy=run.see_log,
                    )


def _last_words(done: ProgramRun) -> str:
    """Return the line that says most of why a program failed."""
    lines = [line.strip() for line in done.tail if line.strip()]
    telling = [n for n, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b|ERROR", line)]
    # calcos says what is wrong with which reference on the lines after its error.
    chosen = lines[telling[-1] :] if telling else lines[-1:]
    return f" ({' '.join(chosen)[:300]})" if chosen else ""


def _trailers(run: Run) -> list[str]:
    text = []
    for path in sorted(run.workspace.products.glob("*.tra")):
        text += path.read_text(encoding="utf-8", errors="replace").splitlines()
    return text


def _verify(run: Run, inputs: Inputs) -> Products:
    """Count expected products against those found; every delivered FITS file must be whole."""
    folder = run.workspace.products
    wanted = expected(run, inputs)
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise Stage1Error(
            f"{run.dataset}: {run.recipe.program[0]} did not write {', '.join(missing[:4])}"
            f"{' and others' if len(missing) > 4 else ''} ({len(missing)} of {len(wanted)} products are missing)",
            remedy=run.see_log,
        )
    roots = (inputs.dataset, inputs.product, *inputs.members)
    written = sorted(p for p in folder.iterdir() if p.is_file() and p.name[:9] in roots)
    for path in written:
        reason = damage(path) if path.suffix == ".fits" else ""
        if reason:
            raise Stage1Error(
                f"{run.dataset}: {path.name} is not whole FITS ({reason})",
                remedy=f"{run.see_log}; run it again",
            )
    _settle_inputs(inputs, folder)
    delivered = sorted(p for p in folder.iterdir() if p.is_file() and p.name[:9] in roots)
    calibrated = [p for p in written if p.suffix == ".fits" and not p.name.endswith("_asn.fits")]
    facts = {f.root: f.facts for f in inputs.raw}
    facts.setdefault(inputs.product, inputs.raw[0].facts)
    previewed = [folder / name for name, (root, suffix) in wanted.items() if _has_preview(run, facts[root], suffix)]
    return Products(
        files=tuple(delivered),
        calibrated=tuple(calibrated),
        previewed=tuple(sorted(previewed)),
        reason="" if wanted or calibrated else _nothing(run, inputs),
        versions=_versions(run, calibrated),
    )


def _settle_inputs(inputs: Inputs, folder: Path) -> None:
    """Move the working copies beside the products: they are delivered as calibrated, headers updated."""
    for file in inputs.files:
        if not (folder / file.name).exists():  # calcos writes its own copy of the association table
            shutil.move(inputs.directory / file.name, folder / file.name)


def _has_preview(run: Run, facts: Mapping[str, Any], suffix: str) -> bool:
    stem = suffix[:-2] if suffix.endswith(("_a", "_b")) else suffix
    # The two-dimensional image of a spectrum says little that its extracted spectrum does not.
    return stem in run.recipe.spectra or (stem in run.recipe.images and facts.get("OBSTYPE") != "SPECTROSCOPIC")


def _nothing(run: Run, inputs: Inputs) -> str:
    types = ", ".join(sorted({str(f.facts.get("EXPTYPE", "unknown")) for f in inputs.raw}))
    return f"nothing was calibrated: {run.recipe.program[0]} makes no products of {types} exposures like this"


def _versions(run: Run, calibrated: list[Path]) -> dict[str, str]:
    from astropy.io import fits

    for path in calibrated:
        version = str(fits.getheader(path).get("CAL_VER", "")).strip()
        if version:
            return {run.recipe.program[0]: version}
    return {}
