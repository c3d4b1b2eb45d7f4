"""Is a file whole FITS?"""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

#: What reading a damaged file raises, besides astropy's own exceptions.
_DAMAGE = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, zlib.error)


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
            warnings.filterwarnings("ignore", "Unexpected extra padding")  # zeros after the end do no harm
            # Opened here, because astropy leaves open what it cannot read.
            with path.open("rb") as stream:
                compressed = stream.read(2) == b"\x1f\x8b"
                stream.seek(0)
                with fits.open(stream, memmap=not compressed) as hdus:
                    spans = [hdu.fileinfo() for hdu in hdus]
                for info in spans:
                    end = info["datLoc"] + info["datSpan"]
                    if not compressed and end > path.stat().st_size:
                        return f"truncated: {path.stat().st_size} bytes of {end}"
    except _DAMAGE as error:
        return " ".join(str(error).split())[:160] or type(error).__name__
    except (AstropyUserWarning, fits.VerifyError) as error:
        return " ".join(str(error).split())[:160]
    return ""
