"""A simulated list of datasets, with everything that calibrating them takes, and with what goes wrong in real ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Rootnames, in the order of the list.
DATASETS = tuple(f"lsim{number:02d}sxq" for number in range(11, 19))

#: The raw file of this one is cut off, as after a download that broke.
BROKEN = DATASETS[3]

#: This one has so many events that it needs more memory than the first rung of the ladder has.
LARGE = DATASETS[6]

_SHORT, _LONG = 60.0, 3000.0
"""Exposure times in seconds: of all, and of the large one."""

_SETTINGS = """\
# A ladder of small rungs, for a demonstration: the short exposures fit into the lower one, the long one does not.
rungs = [
    { name = "low", memory = 1310, vcpus = 1 },
    { name = "high", memory = 2400, vcpus = 1 },
]
time_limits = [600, 1200, 2400]

[estimates.cos]
memory_p95 = 1.0
time_p99 = 120
rung = "low"
time_limit = 600
"""


@dataclass(frozen=True)
class SimulatedList:
    """Where a simulated list of datasets was written.

    Attributes
    ----------
    directory : Path
        The directory given by the caller, absolute.
    inputs : Path
        Directory of the raw FITS files.
    config : Path
        Script to be sourced by bash; exports the CRDS settings.
    ids : Path
        The list.
    settings : Path
        Settings of a campaign, with a small memory ladder.
    """

    directory: Path
    inputs: Path
    config: Path
    ids: Path
    settings: Path


def simulate_list(directory: Path, seed: int = 1) -> SimulatedList:
    """Write eight simulated exposures, one of them broken and one large, their references, rules and list.

    Parameters
    ----------
    directory : Path
        Where to write; made if it does not exist.
    seed : int
        Seed of the random numbers of the first exposure, not negative.

    Returns
    -------
    SimulatedList

    Raises
    ------
    ValueError
        If the directory holds the raw files of another simulation.
    """
    from caldp.simulate import exposure, references, rules
    from caldp.simulate.fitsfile import write_text

    directory = Path(directory).resolve()
    inputs, crds_path, config = directory / "inputs", directory / "crds_cache", directory / "caldp-config-simulated"
    others = [path.name for path in inputs.glob("*.fits") if path.name.partition("_")[0] not in DATASETS]
    if others:
        raise ValueError(f"{inputs} holds files of another data set: {', '.join(sorted(others))}")
    for number, name in enumerate(DATASETS):
        seconds = _LONG if name == LARGE else _SHORT
        exposure.write_exposure(inputs, exposure.Exposure(name, 0, 3, seconds, seed + number))
    broken = inputs / f"{BROKEN}_rawtag_a.fits"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    references.write_references(crds_path / "references" / "hst")
    rules.write_rules(crds_path)
    rules.write_config_script(config, crds_path)
    ids, settings = directory / "datasets.ids", directory / "campaign.toml"
    write_text(ids, "# Eight simulated exposures.\n" + "\n".join(DATASETS) + "\n")
    write_text(settings, _SETTINGS)
    return SimulatedList(directory, inputs, config, ids, settings)
