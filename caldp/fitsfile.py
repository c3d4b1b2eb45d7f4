"""Is a file whole FITS?"""

from __future__ import annotations

import warnings
from pathlib import Path


def damage(path: Path) -> str:
    """Say what is wrong with a FITS file.

    Every header is read, and the data that the headers promise must lie within the file; the data are not read.

    Parameters
    ----------
    path : Path
        The file; a gzip stream under a ``.fits`` name is FITS too.

    Returns
    -------
    str
        Empty if the file is whole.
    """
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyUserWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", AstropyUserWarning)  # "File may have been truncated"
            with path.open("rb") as stream:
                compressed = stream.read(2) == b"\x1f\x8b"
            with fits.open(path, memmap=True) as hdus:
                for hdu in hdus:
                    info = hdu.fileinfo()
                    end = info["datLoc"] + info["datSpan"]
                    if not compressed and end > path.stat().st_size:
                        return f"truncated: {path.stat().st_size} bytes of {end}"
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AstropyUserWarning,
        fits.VerifyError,
    ) as e:
        return " ".join(str(e).split())[:160] or type(e).__name__
    return ""
