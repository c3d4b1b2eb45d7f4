"""Plots of spectra, as spec-plots draws them for the archive."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldp.errors import PreviewError

if TYPE_CHECKING:
    from astropy.io import fits


def require_flux(hdus: fits.HDUList) -> None:
    """Say what is wrong with a table of spectra, in words that spec-plots does not have.

    Parameters
    ----------
    hdus : HDUList
        The table is in HDU 1.

    Raises
    ------
    PreviewError
        If it has no rows, or a row has no finite flux.
    """
    import numpy as np

    table = hdus[1].data
    if table is None or not len(table):
        raise PreviewError("the table of spectra has no rows")
    for row in range(len(table)):
        flux = np.asarray(table["FLUX"][row], dtype=float)
        if not np.isfinite(flux).any():
            raise PreviewError(f"no finite flux in row {row + 1} of the table of spectra")


def plot(product: Path, scratch: Path, types: Sequence[str]) -> None:
    """Run spec-plots in this process.

    Parameters
    ----------
    product : Path
        COS or STIS table of spectra.
    scratch : Path
        Where the plots go, under the names that spec-plots gives them.
    types : sequence of str
        ``png`` and ``fits``: plots, and the table of plotted points.
    """
    import matplotlib

    matplotlib.use("Agg", force=True)  # before pyplot is imported, which would look for a display
    from matplotlib import pyplot as plt
    from spec_plots.make_hst_spec_previews import make_hst_spec_previews
    from spec_plots.utils import specutils_cos

    make_fits = specutils_cos.make_fits

    def make_finite_fits(spectrum: object, output: str, metrics: list[dict[str, Any]], source: str) -> None:
        # The suggested range of a spectrum without signal is NaN, which FITS headers cannot hold: spec-plots
        # 1.37.1 raises.  This is what it suggests for any other flat spectrum.
        for metric in metrics:
            if not all(math.isfinite(limit) for limit in metric["y_axis_range"]):
                metric["y_axis_range"] = [-1.0, 1.0]
        make_fits(spectrum, output, metrics, source)

    said = io.StringIO()
    specutils_cos.make_fits = make_finite_fits
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            make_hst_spec_previews(str(product), output_path=str(scratch), output_type=list(types))
    finally:
        specutils_cos.make_fits = make_fits
        plt.close("all")  # spec-plots leaves its figures open
        if said.getvalue().strip():
            print(f"{product.name}: {' '.join(said.getvalue().split())}", file=sys.stderr)
