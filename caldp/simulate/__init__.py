"""Simulated COS exposures with a known spectrum, and everything needed to calibrate them without a network.

`simulate` writes raw exposures (COS FUV, G140L, segment A, time-tag), a complete set of stand-in reference
files and CRDS rules that select them.  The real ``crds`` and ``calcos`` then calibrate the raw data, and
`compare` holds the extracted spectrum against the injected one.  Nothing in the chain is a canned result: the
events are drawn from the spectrum through the inverse of each correction that calcos applies, so a step that
is skipped or done wrongly shows up.  `caldp.simulate.instrument` lists what is modelled and what is not.

Importing this package loads neither numpy nor astropy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from caldp.simulate.results import FLUX_TOLERANCE, LINE_TOLERANCE, Comparison, Simulation

if TYPE_CHECKING:
    from caldp.simulate.exposure import Exposure

__all__ = ["FLUX_TOLERANCE", "LINE_TOLERANCE", "Comparison", "Simulation", "compare", "simulate"]

SINGLE = "lsim01sxq"
ASSOCIATION = "lsim01010"
EXPOSURE_TIME = 900.0
SHORTEST, LONGEST = 60.0, 3000.0
MAX_EXPOSURES = 4


def simulate(
    directory: Path,
    *,
    dataset: str | None = None,
    exposures: int = 1,
    seed: int = 1,
    exposure_time: float = EXPOSURE_TIME,
) -> Simulation:
    """Write a simulated data set, its references and its rules.

    The same arguments give byte-identical files, whether or not files were there before.

    Parameters
    ----------
    directory : Path
        Where to write; made if it does not exist.
    dataset : str, optional
        Rootname, nine letters and digits beginning with ``l``; for several exposures that of the association,
        ending in a digit.  Default ``lsim01sxq`` for one exposure, ``lsim01010`` for more.
    exposures : int
        1 for a single exposure, 2 to 4 for an association of exposures with FP-POS 1, 2, ...
    seed : int
        Seed of the random numbers, not negative.
    exposure_time : float
        Duration of each exposure [s], 60 to 3000.  The default gives more than 6000 events in each bin of
        5 A, a photon noise below 1.3 per cent; below some 600 s a bin in eighty may miss the 5 per cent.

    Returns
    -------
    Simulation
        Where everything is.

    Raises
    ------
    ValueError
        If an argument is out of its range, or if `directory` holds the raw files of another simulation: a
        calibration would take them for its own.
    """
    dataset = _checked_dataset(dataset, exposures)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, not {seed!r}")
    if not SHORTEST <= exposure_time <= LONGEST:
        raise ValueError(f"exposure_time must be {SHORTEST:g} to {LONGEST:g} seconds, not {exposure_time!r}")

    from caldp.simulate import exposure, references, rules, spectrum

    directory = Path(directory).resolve()
    inputs, crds_path = directory / "inputs", directory / "crds_cache"
    plans = _plans(dataset, exposures, seed, float(exposure_time))
    _refuse_other_inputs(inputs, dataset, plans)
    for plan in plans:
        exposure.write_exposure(inputs, plan)
    members = tuple(plan.rootname for plan in plans)
    if exposures > 1:
        exposure.write_association(inputs, dataset, members)
    references.write_references(crds_path / "references" / "hst")
    rules.write_rules(crds_path)
    config = directory / "caldp-config-simulated"
    rules.write_config_script(config, crds_path)
    truth = directory / "truth" / f"{dataset}_spectrum.ecsv"
    injected = {plan.rootname: plan.injected() for plan in plans}
    spectrum.write_truth(truth, injected, seed, float(exposure_time))
    return Simulation(
        directory=directory,
        dataset=dataset,
        members=members,
        inputs=inputs,
        crds_path=crds_path,
        context=rules.CONTEXT,
        config=config,
        truth=truth,
    )


def compare(x1d: Path, truth: Path) -> Comparison:
    """Hold a calibrated spectrum against the injected one.

    Parameters
    ----------
    x1d : Path
        The x1d of an exposure or the x1dsum of an association.
    truth : Path
        The truth table of the same simulation.

    Returns
    -------
    Comparison
        Offset of each line, flux ratio of each 5 A bin; printable.

    Raises
    ------
    ValueError
        If either file is not what it should be.
    """
    from caldp.simulate import spectrum

    return spectrum.compare(Path(x1d), Path(truth))


def _checked_dataset(dataset: str | None, exposures: int) -> str:
    """Rootname in lower case, the default if none was given; ValueError if it does not fit."""
    if isinstance(exposures, bool) or not isinstance(exposures, int) or not 1 <= exposures <= MAX_EXPOSURES:
        raise ValueError(f"exposures must be 1 to {MAX_EXPOSURES}, not {exposures!r}")
    if dataset is None:
        return SINGLE if exposures == 1 else ASSOCIATION
    name = dataset.lower()
    if not re.fullmatch(r"l[a-z0-9]{8}", name):
        raise ValueError(f"dataset must be 'l' and eight letters or digits, not {dataset!r}")
    if exposures > 1 and not name[-1].isdigit():
        raise ValueError(f"the rootname of an association ends in a digit: {dataset!r} does not")
    return name


def _refuse_other_inputs(inputs: Path, dataset: str, plans: list[Exposure]) -> None:
    """ValueError if `inputs` holds FITS files that this simulation will not overwrite."""
    own = {f"{plan.rootname}_{suffix}.fits" for plan in plans for suffix in ("rawtag_a", "spt")}
    if len(plans) > 1:
        own.add(f"{dataset}_asn.fits")
    others = sorted(path.name for path in inputs.glob("*.fits") if path.name not in own)
    if others:
        raise ValueError(f"{inputs} holds files of another data set: {', '.join(others)}")


def _plans(dataset: str, exposures: int, seed: int, exposure_time: float) -> list[Exposure]:
    """The exposures of a data set."""
    from caldp.simulate.exposure import Exposure

    if exposures == 1:
        return [Exposure(dataset, 0, 3, exposure_time, seed)]
    names = [f"{dataset[:6]}s{number}q" for number in range(1, exposures + 1)]
    return [
        Exposure(name, index, index + 1, exposure_time, seed, association=dataset) for index, name in enumerate(names)
    ]
