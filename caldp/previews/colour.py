"""Colour composites of mosaics: the filters of one visit or sky cell in one picture.

- The longest wavelength is red, the shortest blue, and the lower median of all green; of two filters green is the mean
  of both.  Wavelengths are those of ``data/filters.ecsv``.
- Each channel has its own scale, that of a grey picture of it, and shows nothing where it has no exposure or only bad
  pixels.  Places where no channel shows anything are dark slate.
- Files are told by their names, as drizzlepac writes them.  One composite is made of the filters of each camera and
  each suffix (drc, drz) of a visit, and of each layer of a sky cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from caldp.previews import image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

#: A filter or total product: of a visit, whose last part is the six characters of the visit (exposures have eight), or
#: of a sky cell, whose last part is the layer, ``all`` or ``coarse-all`` (exposures append their name to it).
_PRODUCT = re.compile(
    r"hst_(?:(?P<cell>skycell-p\d{4}x\d{2}y\d{2})|(?P<visit>[a-z0-9]+_[a-z0-9]{2}))"
    r"_(?P<instrument>acs|wfc3)_(?P<detector>[a-z]+)_(?P<filter>[a-z0-9-]+)"
    r"_(?P<label>(?(cell)(?:[a-z]+-)?all|[a-z0-9]{6}))_(?P<suffix>dr[cz])\.fits(?:\.gz)?"
)

#: Elements that say nothing about the wavelength of the filter they are crossed with.
_NEUTRAL = re.compile(r"clear\d?[a-z]?|pol\d*u?v")

#: Grisms and prisms.
_DISPERSER = re.compile(r"g\d{3}l?|pr\d{3}l")


@dataclass(frozen=True)
class Composite:
    """A colour composite that can be made.

    Attributes
    ----------
    base : str
        Name of its files without their endings.
    channels : tuple of Path
        Red and blue, or red, green and blue.
    product : Path
        What it is a preview of: the total product if there is one, else the red one.
    notes : tuple of str
        What had to be guessed.
    """

    base: str
    channels: tuple[Path, ...]
    product: Path
    notes: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that define it."""
        return tuple(dict.fromkeys([*self.channels, self.product]))


def find(products: Iterable[Path]) -> list[Composite]:
    """Find the composites that can be made of some products, by their names.

    Parameters
    ----------
    products : iterable of Path
        Any files; all but filter and total products of mosaics are passed over.

    Returns
    -------
    list of Composite
        One for each camera, suffix and layer with filters of at least two wavelengths, sorted by name.
    """
    groups: dict[str, dict[str, Path]] = {}
    for product in products:
        match = _PRODUCT.fullmatch(product.name)
        if match:
            part = match.groupdict()
            place = f"{part['cell'] or part['visit']}_{part['instrument']}_{part['detector']}"
            base = f"hst_{place}_total_{part['label']}_{part['suffix']}_color"
            groups.setdefault(base, {})[part["filter"]] = product
    found = []
    for base, filters in sorted(groups.items()):
        camera = base.removesuffix("_color").split("_total_")[0].split("_")[-2:]
        total = filters.pop("total", None)
        bands: dict[float, Path] = {}
        notes = []
        for name in sorted(filters, key=lambda name: (len(name), name)):  # a plain filter before its crossed ones
            length, note = wavelength(camera[0], camera[1], name)
            if note:
                notes.append(f"{filters[name].name}: {note}")
            if length is not None:
                bands.setdefault(length, filters[name])
        if len(bands) > 1:
            ordered = [bands[length] for length in sorted(bands)]
            green = ordered[(len(ordered) - 1) // 2 :][:1] if len(ordered) > 2 else []
            red, blue = ordered[-1], ordered[0]
            found.append(Composite(base, (red, *green, blue), total or red, tuple(notes)))
    return found


def wavelength(instrument: str, detector: str, name: str) -> tuple[float | None, str]:
    """Return the wavelength of a filter.

    Parameters
    ----------
    instrument, detector : str
        ``acs`` or ``wfc3``, and its detector.
    name : str
        Filter as in names of mosaics: crossed filters are joined by ``-``.

    Returns
    -------
    wavelength : float or None
        Angstrom; the mean of crossed filters.  None of what has no one wavelength: dispersers, polarisers alone.
    note : str
        What was guessed, or an empty string: a filter that is not in the table has the wavelength that its digits say,
        in nm, of WFC3/IR in 10 nm.
    """
    table = _table()
    found, notes = [], []
    for element in name.lower().split("-"):
        known = table.get((instrument, detector, element))
        digits = re.match(r"f[rq]?(\d+)", element)
        if known is not None:
            found.append(known)
        elif _DISPERSER.fullmatch(element):
            return None, f"{element} is a disperser: not used in a composite"
        elif digits:
            found.append(int(digits[1]) * (100.0 if (instrument, detector) == ("wfc3", "ir") else 10.0))
            notes.append(f"{element} is not in the table of filters: taken for {found[-1]:.0f} angstrom")
        elif not _NEUTRAL.fullmatch(element):
            notes.append(f"{element} is not in the table of filters: passed over")
    return (sum(found) / len(found) if found else None), "; ".join(notes)


@cache
def _table() -> dict[tuple[str, str, str], float]:
    """Read the table of filters: (instrument, detector, filter) -> angstrom."""
    from astropy.table import QTable

    with resources.as_file(resources.files("caldp") / "data" / "filters.ecsv") as path:
        table = QTable.read(path, format="ascii.ecsv")
    lengths = table["wavelength"].to_value("Angstrom")
    keys = zip(table["instrument"], table["detector"], table["filter"], strict=True)
    return {(str(i), str(d), str(f)): float(length) for (i, d, f), length in zip(keys, lengths, strict=True)}


def pictures(channels: Iterable[image.Mosaic], thumbnail: int) -> tuple[Image.Image, Image.Image]:
    """Draw a composite at full size and small.

    Parameters
    ----------
    channels : iterable of Mosaic
        Red and blue, or red, green and blue, all of one shape; one is in memory at a time.
    thumbnail : int
        Longest side of the small picture, in pixels.

    Returns
    -------
    full, small : Image
    """
    full, small = _Canvas(), _Canvas()
    size = (0, 0)
    for channel in channels:
        full.add(channel)
        size = channel.values.shape[1], channel.values.shape[0]
        small.add(channel.binned(image.binning(size, thumbnail)))
        del channel  # before the next one is read
    return full.picture(), image.resized(small.picture(), size, thumbnail)


class _Canvas:
    """Channels of a picture, as they come.

    Attributes
    ----------
    levels : list of array of uint8
        Brightness of each channel times its exposed share; (ny, nx).
    exposed : array of uint8
        The largest exposed share of any channel, 255 for all; (ny, nx).
    """

    levels: list[NDArray[np.uint8]]
    exposed: NDArray[np.uint8]

    def __init__(self) -> None:
        self.levels = []

    def add(self, channel: image.Mosaic) -> None:
        import numpy as np

        limits = image.find_limits(channel.valid())
        level = np.empty(channel.values.shape, dtype=np.uint8)
        if not self.levels:
            self.exposed = np.zeros_like(level)
        for rows, grey in channel.stretched(limits):
            share = (255.0 * (1.0 - channel.bad[rows] - channel.blank[rows])).clip(0.0, 255.0)
            level[rows] = np.rint(grey * share)
            np.maximum(self.exposed[rows], np.rint(share).astype(np.uint8), out=self.exposed[rows])
        self.levels.append(level)

    def picture(self) -> Image.Image:
        import numpy as np
        from PIL import Image

        red, blue = self.levels[0], self.levels[-1]
        green = self.levels[1] if len(self.levels) == 3 else (red // 2 + blue // 2 + (red & blue & 1))
        upside_down = np.empty((*red.shape, 3), dtype=np.uint8)
        for index, (level, blank) in enumerate(zip((red, green, blue), image.BLANK_COLOR, strict=True)):
            # Nowhere is a level above the exposed share, so the sum stays below 256.
            shade = (np.arange(255, -1, -1) * blank / 255.0).round().astype(np.uint8)
            upside_down[::-1, :, index] = level + shade[self.exposed]
        return Image.fromarray(upside_down)
