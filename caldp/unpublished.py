"""Unpublished: the products of a run that could not upload them, kept for the next one, which need not calibrate again.

They are kept in ``caldp-unpublished/<dataset>`` of CALDP_HOME, apart for each output, and taken only by a run of the
same inputs, references, settings, programs and versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldp import programs, versions
from caldp.inputs import Inputs
from caldp.references import References
from caldp.run import Run
from caldp.store import sha256

if TYPE_CHECKING:
    from caldp.calibrate import Products

_FOLDER = "caldp-unpublished"
_RECORD = "unpublished.json"


def keep(run: Run, inputs: Inputs, references: References, products: Products, staging: Path) -> Path | None:
    """Put the products of a run aside whose upload failed.

    Parameters
    ----------
    run : Run
        The run.
    inputs, references : Inputs, References
        What they were made of.
    products : Products
        What they are.
    staging : Path
        Where their files are now.

    Returns
    -------
    Path or None
        Where they are kept; None if they cannot be.
    """
    target = _place(run)
    partial = target.with_name(f".{target.name}.{run.id}.partial")
    for dead in target.parent.glob(f".{target.name}.*.partial"):
        shutil.rmtree(dead, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        sums = {}
        for path in products.files:
            kept = Path(shutil.move(staging / path.name, partial / path.name))
            sums[path.name] = sha256(kept)
        record = {
            "made_of": _made_of(run, inputs, references),
            "files": sums,
            "calibrated": [path.name for path in products.calibrated],
            "previewed": [path.name for path in products.previewed],
            "reason": products.reason,
            "versions": products.versions,
            "programs": [*products.programs, *(p.to_json() for p in run.telemetry.programs("calibrate"))],
            "warnings": list(run.telemetry.warnings),
            "log": run.telemetry.text(),
        }
        (partial / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:  # the upload has failed, which is what the user must hear
        run.telemetry.warning(f"the products could not be kept in {target} ({error})")
        shutil.rmtree(partial, ignore_errors=True)
        return None
    return target


def take(run: Run, inputs: Inputs, references: References) -> Products | None:
    """Take the products that an earlier run made of the same things and could not publish.

    Parameters
    ----------
    run : Run
        The run.
    inputs, references : Inputs, References
        What products are wanted of.

    Returns
    -------
    Products or None
        None if there are none, or they are not whole.
    """
    from caldp.calibrate import Products

    place, taken = _place(run), dict[str, Path]()
    try:
        record: dict[str, Any] = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        if record["made_of"] != _made_of(run, inputs, references):
            run.telemetry.info(f"the products in {place} were made of other things: calibrating anew")
            return None
        damaged = [name for name, known in record["files"].items() if sha256(place / name) != known]
        if damaged:
            run.telemetry.warning(f"{place / damaged[0]} is damaged: calibrating anew")
            return None
        for name in record["files"]:
            taken[name] = run.workspace.products / name
            # A copy, for this run may fail, too; by its name alone where the file system can.
            try:
                os.link(place / name, taken[name])
            except OSError:
                shutil.copyfile(place / name, taken[name])
        run.telemetry.warning(f"the products are those that an earlier run made and could not publish: {place}")
        run.telemetry.quote(record["log"], record["warnings"])
        return Products(
            tuple(taken.values()),
            tuple(taken[name] for name in record["calibrated"]),
            tuple(taken[name] for name in record["previewed"]),
            record["reason"],
            record["versions"],
            tuple(record["programs"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there are none, or they are not ours
        for path in taken.values():
            path.unlink(missing_ok=True)
        return None


def forget(run: Run) -> None:
    """Remove what was kept of a dataset that is published."""
    place = _place(run)
    shutil.rmtree(place, ignore_errors=True)
    for folder in (place.parent, place.parent.parent):
        with contextlib.suppress(OSError):  # there may be others
            folder.rmdir()


def _place(run: Run) -> Path:
    output = hashlib.sha256(run.output.encode()).hexdigest()[:8]
    return run.config.home / _FOLDER / run.dataset.name / output


def _made_of(run: Run, inputs: Inputs, references: References) -> str:
    """Identify all that decides what the programs make."""
    path = run.config.environment.get("PATH", "")
    executables = [programs.find(program.name, path) for program in run.recipe.programs]
    material = [
        versions.installed(),
        [[found, *_stamp(Path(found))] if found else [] for found in executables],
        run.config.sha256,
        references.context,
        references.crds_version,
        [[f.type, f.name, f.sha1] for f in references.files],
        [[f.name, f.sha256] for f in inputs.files],
    ]
    return hashlib.sha256(json.dumps(material).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    there = path.stat()
    return there.st_size, there.st_mtime_ns
