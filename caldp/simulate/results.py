"""What `simulate` and `compare` of this package hand back; standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LINE_TOLERANCE = 1.0
"""Largest accepted distance [Angstrom] between an injected and a recovered emission line."""

FLUX_TOLERANCE = 0.05
"""Largest accepted relative difference between injected and recovered flux in one bin."""


@dataclass(frozen=True)
class Simulation:
    """Where a simulated data set was written.

    Attributes
    ----------
    directory : Path
        The directory given by the caller, absolute.
    dataset : str
        Rootname to calibrate: of the exposure, or of the association.
    members : tuple of str
        Rootnames of the exposures; for a single exposure, `dataset` alone.
    inputs : Path
        Directory of the raw FITS files.
    crds_path : Path
        CRDS cache (``config``, ``mappings``, ``references``) that belongs to them.
    context : str
        Name of the pipeline mapping in that cache.
    config : Path
        Script to be sourced by bash; exports the CRDS settings.
    truth : Path
        ECSV table of the injected spectrum, with its metadata.
    """

    directory: Path
    dataset: str
    members: tuple[str, ...]
    inputs: Path
    crds_path: Path
    context: str
    config: Path
    truth: Path


@dataclass(frozen=True)
class Comparison:
    """A calibrated spectrum held against the injected one.

    Attributes
    ----------
    lines : tuple of float
        Injected line centres [Angstrom].
    line_offsets : tuple of float
        Recovered minus injected centre [Angstrom]; NaN where no line stands out of the noise.
    bin_centres : tuple of float
        Centres [Angstrom] of the bins that cover the useful range; none is left out.
    flux_ratios : tuple of float
        Recovered over injected flux per bin; NaN where the product has no good pixel.
    bin_width : float
        Width of a bin [Angstrom].
    counts_per_bin : float
        Smallest number of detector events in a bin: its inverse square root is the expected noise.
    """

    lines: tuple[float, ...]
    line_offsets: tuple[float, ...]
    bin_centres: tuple[float, ...]
    flux_ratios: tuple[float, ...]
    bin_width: float
    counts_per_bin: float

    @property
    def worst_line_offset(self) -> float:
        """Largest absolute line offset [Angstrom]; infinite if a line was not found."""
        return max(_magnitude(offset) for offset in self.line_offsets)

    @property
    def worst_flux_error(self) -> float:
        """Largest ``|ratio - 1|``; infinite if a bin is empty."""
        return max(_magnitude(ratio - 1.0) for ratio in self.flux_ratios)

    @property
    def median_flux_error(self) -> float:
        """Median of ``|ratio - 1|``, empty bins counted as infinite."""
        errors = sorted(_magnitude(ratio - 1.0) for ratio in self.flux_ratios)
        middle = len(errors) // 2
        return errors[middle] if len(errors) % 2 else 0.5 * (errors[middle - 1] + errors[middle])

    @property
    def mean_flux_ratio(self) -> float:
        """Mean of the ratios: the error of the absolute scale, free of photon noise."""
        return sum(self.flux_ratios) / len(self.flux_ratios)

    @property
    def recovered(self) -> bool:
        """Whether every line and every bin is within tolerance."""
        return self.worst_line_offset <= LINE_TOLERANCE and self.worst_flux_error <= FLUX_TOLERANCE

    def __str__(self) -> str:
        """Report for people: one row per line, then the figures of the bins."""
        rows = [
            f"injected spectrum {'recovered' if self.recovered else 'NOT RECOVERED'}",
            f"  line [A]   offset [A]   (limit {LINE_TOLERANCE:g} A, worst {self.worst_line_offset:.3f} A)",
        ]
        pairs = zip(self.lines, self.line_offsets, strict=True)
        rows += [f"  {line:8.2f}   {offset:+10.3f}" for line, offset in pairs]
        first = self.bin_centres[0] - 0.5 * self.bin_width
        last = self.bin_centres[-1] + 0.5 * self.bin_width
        noise = 100.0 / self.counts_per_bin**0.5 if self.counts_per_bin > 0 else float("inf")
        rows += [
            f"  flux in {len(self.flux_ratios)} bins of {self.bin_width:g} A, {first:g}-{last:g} A:"
            f" worst {100 * self.worst_flux_error:.2f} %, median {100 * self.median_flux_error:.2f} %,"
            f" mean ratio {self.mean_flux_ratio:.4f}",
            f"  (limit {100 * FLUX_TOLERANCE:g} %; photon noise of the poorest bin {noise:.2f} %)",
        ]
        return "\n".join(rows)


def _magnitude(value: float) -> float:
    """Absolute value, infinite for NaN so that a missing figure never passes a limit."""
    return abs(value) if value == value else float("inf")
