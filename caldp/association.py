"""Read association tables: which exposures belong together, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caldp.expectations import Member
from caldp.fitsfile import reading


@dataclass(frozen=True)
class Row:
    """One row of an association table.

    Attributes
    ----------
    member : Member
        An exposure or a product.
    present : bool
        Whether the exposure was taken, or the product made (MEMPRSNT); true where the table does not say.
    """

    member: Member
    present: bool


def read(path: Path) -> list[Row]:
    """Read an association table.

    Parameters
    ----------
    path : Path
        ``<dataset>_asn.fits``, or compressed.

    Returns
    -------
    list of Row

    Raises
    ------
    DamagedError
        If it is none.
    """
    from astropy.io import fits

    with reading(), fits.open(path) as hdus:
        table = hdus[1].data
        names = [str(n).strip().lower() for n in table["MEMNAME"]]
        types = [str(t).strip().upper() for t in table["MEMTYPE"]]
        has_present = "MEMPRSNT" in table.names
        present = [bool(p) for p in table["MEMPRSNT"]] if has_present else [True] * len(names)
    return [Row(Member(name, kind), there) for name, kind, there in zip(names, types, present, strict=True)]
