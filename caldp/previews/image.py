"""Grey pictures of images.

- The chips of one exposure are in one picture with one scale, so that they can be compared.  Chips wider than tall
  are stacked upwards, extension 1 at the bottom (the order of the chips of ACS/WFC and WFC3/UVIS on their
  detectors); others are in reading order (of the two images of a COS acquisition, the first is left).
- Chips differ in CCDCHIP.  Images that share it are readouts or repeats of one view, and only the first is shown:
  of a WFC3/IR ramp that is the last readout, which has the longest exposure.
- y points up and the origin is at the lower left, as in every FITS viewer.
- Asinh stretch of the interval that holds 99.5 per cent of the valid pixels.  Where most pixels share one value
  (single photons on an empty background), the interval is that of the others, and at least ten times as wide as half
  of them need, or as wide as all of them need: a photon then is dark grey, a star is white.
- Pixels that DQ calls bad, or that hold no number, are blue (`BAD_COLOR`); places without exposure (zero weight in a
  drizzled image, overscan and reference pixels of a raw image, the gap between chips) are dark slate
  (`BLANK_COLOR`).  Neither enters the scale, nor the mean where pixels are averaged; there they tint the mean, in the
  full-size picture so that one in sixteen still shows.
- Pictures longer than `MAX_SIDE` are averaged down by a whole factor, while they are read: a mosaic that does not
  fit into memory can be drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from caldp.errors import PreviewError

if TYPE_CHECKING:
    import numpy as np
    from astropy.io import fits
    from numpy.typing import NDArray
    from PIL import Image

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Bools = NDArray[np.bool_]

#: RGB of a pixel that is not finite or that DQ calls bad: told from grey by eyes of every kind.
BAD_COLOR = (40, 90, 200)

#: RGB of places without exposure.
BLANK_COLOR = (30, 34, 48)

#: Longest side of a full-size picture, in pixels: whole frames of ACS/WFC and WFC3/UVIS fit, with overscan.
MAX_SIDE = 4352

#: DQ bits that make a pixel bad, as ACS and WFC3 define them: decoding error, fill, bad detector pixel, masked or
#: unstable, hot, bad column, bad in a reference.  Warm pixels, saturation and cosmic rays stay: they are what the
#: detector saw.  Their SDQFLAGS (31743) has nearly all bits and says nothing; that of COS, whose bits have other
#: meanings, is used.
BAD_BITS = 1 | 2 | 4 | 8 | 16 | 128 | 512

_INTERVAL = 99.5
_CONTRAST = 10.0
"""Where most pixels share one value: the scale reaches so many times as far from it as half of the others do."""

_HUGE = 1e38
"""Values beyond are no measurement: they would not survive in a 32-bit float."""

_SAMPLE = 4_000_000
"""Pixels that are enough to find the interval."""

_CHUNK = 1 << 22
"""Pixels of a large image that are in memory at a time."""

_BAND = 1 << 20
"""Pixels of a picture that are coloured at a time."""

_NOT_SCIENCE = ("ERR", "DQ", "WHT", "CTX", "SAMP", "TIME", "D2IMARR", "WCSDVARR")

_EXPOSED = {("ACS", "WFC"): (2048, 4096), ("ACS", "HRC"): (1024, 1024), ("WFC3", "UVIS"): (2051, 4096)}
"""Shape (ny, nx) of the part of each CCD that sees the sky; LTV of the header says where that part begins."""

_UVIS_GAP = slice(2073, 2133)
"""Columns of virtual overscan between the two amplifiers of a full frame of WFC3/UVIS, 4206 columns wide."""

_IR_FRAMES = (1024, 522, 266, 138, 74)
"""Sides of WFC3/IR frames that still have their border of reference pixels, ``_IR_BORDER`` wide."""

_IR_BORDER = 5


@dataclass(frozen=True)
class Mosaic:
    """An image to draw: mean of the valid part of each pixel, and which shares of it are bad and blank.

    All arrays have the shape (ny, nx), with the origin at the lower left; shares are from 0 to 1.
    """

    values: Floats
    bad: Floats
    blank: Floats

    def binned(self, factor: int) -> Mosaic:
        """Average factor x factor pixels."""
        import numpy as np

        if factor == 1:
            return self
        weight = 1.0 - self.bad - self.blank
        sums = _block_sum(np.where(weight > 0, self.values * weight, 0), factor)
        weights = _block_sum(weight, factor)
        cells = _cells(weight.shape, factor)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(weights > 1e-6, sums / weights, 0.0).astype(np.float32)
        bad, blank = ((_block_sum(share, factor) / cells).astype(np.float32) for share in (self.bad, self.blank))
        return Mosaic(values, bad, blank)

    def valid(self) -> Floats:
        """Return the values of pixels that are not wholly bad or blank; 1-D."""
        valid: Floats = self.values[self.bad + self.blank < 0.999]
        return valid

    def stretched(self, limits: tuple[float, float] | None) -> Iterator[tuple[slice, Floats]]:
        """Stretch the values, a band of rows at a time.

        Parameters
        ----------
        limits : (float, float) or None
            The values that become 0 and 1; None makes all of them 0.5.

        Yields
        ------
        slice, array
            Rows, and their brightness from 0 to 1.
        """
        import numpy as np
        from astropy.visualization import AsinhStretch

        stretch = AsinhStretch()
        ny, nx = self.values.shape
        step = max(1, _BAND // nx)
        for first in range(0, ny, step):
            rows = slice(first, first + step)
            if limits is None:
                yield rows, np.full_like(self.values[rows], 0.5)
            else:
                low, high = limits
                # In 64 bits: the difference of two large values may be all there is.
                grey = ((self.values[rows].astype(np.float64) - low) / (high - low)).clip(0.0, 1.0).astype(np.float32)
                yield rows, stretch(grey, out=grey)

    def draw(self, *, thumbnail: bool) -> Image.Image:
        """Stretch it into a picture, y up."""
        import numpy as np
        from PIL import Image, ImageDraw, ImageFont

        valid = self.valid()
        limits = find_limits(valid)
        # A bad pixel in a block of sixteen would not survive JPEG as a tint of one sixteenth.  A thumbnail of an
        # image with the usual per cent of hot pixels would be all blue, though.
        upside_down = np.empty((*self.values.shape, 3), dtype=np.uint8)
        colored = upside_down[::-1]
        for rows, grey in self.stretched(limits):
            bad, blank = self.bad[rows], self.blank[rows]
            tint = bad if thumbnail else np.minimum(np.sqrt(bad), 1.0 - blank)
            grey *= (1.0 - tint - blank) * 255.0
            for channel, (bad_level, blank_level) in enumerate(zip(BAD_COLOR, BLANK_COLOR, strict=True)):
                level = grey + tint * bad_level + blank * blank_level
                colored[rows, :, channel] = np.rint(level.clip(0.0, 255.0))
        picture = Image.fromarray(upside_down)
        if limits is None and not thumbnail:
            words = f"every valid pixel is {valid[0]:g}" if valid.size else "no valid pixel"
            font = ImageFont.load_default(size=max(10, picture.width // 30))
            ImageDraw.Draw(picture).text((picture.width // 40, picture.height // 40), words, (255, 220, 120), font)
        return picture


def pictures(mosaic: Mosaic, thumbnail: int) -> tuple[Image.Image, Image.Image]:
    """Draw an image at full size and small.

    Parameters
    ----------
    mosaic : Mosaic
        What to draw.
    thumbnail : int
        Longest side of the small picture, in pixels.

    Returns
    -------
    full, small : Image

    Notes
    -----
    An image whose pixels are all equal, or all bad, is drawn flat and says so in words.
    """
    full = mosaic.draw(thumbnail=False)
    return full, resized(mosaic.binned(binning(full.size, thumbnail)).draw(thumbnail=True), full.size, thumbnail)


def binning(size: tuple[int, int], thumbnail: int) -> int:
    """Return by how much to bin a picture of that size for a thumbnail, so that at most a factor of two is left."""
    return max(1, max(size) // thumbnail)


def resized(small: Image.Image, size: tuple[int, int], thumbnail: int) -> Image.Image:
    """Bring a binned picture to the exact size of the thumbnail of a picture of that size."""
    from PIL import Image

    scale = thumbnail / max(size)
    shape = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    return small.resize(shape, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def find_limits(valid: Floats) -> tuple[float, float] | None:
    """Find the interval to stretch.

    Parameters
    ----------
    valid : array
        Values of all valid pixels.

    Returns
    -------
    low, high : float
        Or None where all are equal, or there are none.
    """
    import numpy as np
    from astropy.visualization import PercentileInterval

    if not valid.size:
        return None
    sample = valid[:: math.ceil(valid.size / _SAMPLE)]
    if sample.min() == sample.max():
        sample = valid
    usual = float(np.median(sample))
    others = sample[sample != usual]
    if not others.size:
        return None
    low, high = PercentileInterval(_INTERVAL).get_limits(sample)
    if others.size < sample.size / 2:
        low, high = PercentileInterval(_INTERVAL).get_limits(others)
        # However few photons the target has, single ones of the background must not look like it.
        typical = usual + _CONTRAST * (float(np.median(others)) - usual)
        low = min(low, usual, max(typical, float(others.min())))
        high = max(high, usual, min(typical, float(others.max())))
    return float(low), float(high)


# ---- reading


def science(hdus: fits.HDUList) -> list[Any]:
    """List the images of a file that go into its picture: one for each chip.

    Parameters
    ----------
    hdus : HDUList
        An open file; only its headers are read.

    Returns
    -------
    list of HDU
        The first SCI of each CCDCHIP, of COS all of them; without SCI, the first image that is none of its
        companions.  Empty if there is no image.
    """
    images = [hdu for hdu in hdus if hdu.is_image and len(shape(hdu)) == 2 and all(shape(hdu))]
    found = [hdu for hdu in images if hdu.name == "SCI"]
    if not found:
        return [hdu for hdu in images if hdu.name not in _NOT_SCIENCE][:1]
    if _keyword(hdus, "INSTRUME") == "COS":  # both images of an acquisition, before and after the move
        return found
    chips: dict[Any, Any] = {}
    for hdu in found:
        chips.setdefault(hdu.header.get("CCDCHIP"), hdu)
    return list(chips.values())


def shape(hdu: Any) -> tuple[int, ...]:  # noqa: ANN401 - HDU classes of astropy have no common public type
    """Return (ny, nx); HST writes a constant image as a header with NPIX1, NPIX2 and PIXVALUE only."""
    header = hdu.header
    if header.get("NAXIS") == 0 and "PIXVALUE" in header:
        return int(header.get("NPIX2", 0)), int(header.get("NPIX1", 0))
    return tuple(hdu.shape)


def read(hdus: fits.HDUList) -> Mosaic:
    """Read and tile the science images of a file, averaged down to `MAX_SIDE`.

    Parameters
    ----------
    hdus : HDUList
        An open file.

    Returns
    -------
    Mosaic

    Raises
    ------
    PreviewError
        If it has no image data.
    """
    import numpy as np

    images = science(hdus)
    if not images:
        raise PreviewError("no image data in this file")
    tall, wide = (max(shape(hdu)[axis] for hdu in images) for axis in (0, 1))
    stacked = wide > tall
    columns = 1 if stacked else math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    for factor in itertools.count(math.ceil(max(tall * rows, wide * columns) / MAX_SIDE)):
        cell = math.ceil(tall / factor), math.ceil(wide / factor)
        gap = max(2, max(cell[0] * rows, cell[1] * columns) // 100)
        size = (rows * (cell[0] + gap) - gap, columns * (cell[1] + gap) - gap)
        if max(size) <= MAX_SIDE:
            break
    mosaic = Mosaic(np.zeros(size, np.float32), np.zeros(size, np.float32), np.ones(size, np.float32))
    for index, hdu in enumerate(images):
        row, column = divmod(index, columns)
        if not stacked:
            row = rows - 1 - row  # reading order begins at the top
        y, x = row * (cell[0] + gap), column * (cell[1] + gap)
        ny, nx = (math.ceil(side / factor) for side in shape(hdu))
        place = slice(y, y + ny), slice(x, x + nx)
        _read_image(hdus, hdu, factor, Mosaic(mosaic.values[place], mosaic.bad[place], mosaic.blank[place]))
    return mosaic


def _read_image(hdus: fits.HDUList, image: Any, factor: int, into: Mosaic) -> None:  # noqa: ANN401
    """Read one image a block of rows at a time, averaging valid pixels only."""
    import numpy as np

    quality, weight = (_companion(hdus, image, name) for name in ("DQ", "WHT"))
    bits = int(image.header.get("SDQFLAGS", BAD_BITS)) if _keyword(hdus, "INSTRUME") == "COS" else BAD_BITS
    exposed = _exposed(hdus, image)
    ny, nx = shape(image)
    step = factor * max(1, _CHUNK // (nx * factor))
    for first in range(0, ny, step):
        last = min(first + step, ny)
        values = _rows(image, first, last)
        bad = ~((values > -_HUGE) & (values < _HUGE))  # NaN too
        if quality is not None:
            bad |= (_rows(quality, first, last).astype(np.int32) & bits) != 0
        blank = np.zeros(bad.shape, dtype=bool)
        if weight is not None:
            blank |= ~(_rows(weight, first, last) > 0)  # NaN too
        if exposed is not None:
            blank |= ~np.logical_and.outer(exposed[0][first:last], exposed[1])
        bad &= ~blank
        place = slice(first // factor, math.ceil(last / factor))
        cells = _cells(values.shape, factor)
        invalid = bad | blank
        spoiled = bool(invalid.any())
        if spoiled:
            values = np.where(invalid, 0, values)
        into.bad[place] = into.blank[place] = 0.0
        sums = _block_sum(values, factor)
        if spoiled:
            into.bad[place] = _block_sum(bad, factor) / cells
            into.blank[place] = _block_sum(blank, factor) / cells
            cells = np.maximum(cells - _block_sum(invalid, factor), 1.0)
        into.values[place] = sums / cells


def _keyword(hdus: fits.HDUList, keyword: str) -> str:
    return str(hdus[0].header.get(keyword, "")).strip().upper()


def _rows(hdu: Any, first: int, last: int) -> NDArray[Any]:  # noqa: ANN401
    """Read some rows of an image."""
    import numpy as np

    if hdu.header.get("NAXIS") == 0:
        return np.full((last - first, shape(hdu)[1]), float(hdu.header["PIXVALUE"]))
    # Native byte order: every later operation is several times faster.
    rows = np.asarray(hdu.section[first:last, :])
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)


def _companion(hdus: fits.HDUList, image: Any, name: str) -> Any | None:  # noqa: ANN401
    for hdu in hdus:
        if hdu.is_image and hdu.name == name and hdu.ver == image.ver and shape(hdu) == shape(image):
            return hdu
    return None


def _exposed(hdus: fits.HDUList, image: Any) -> tuple[Bools, Bools] | None:  # noqa: ANN401
    """Say which rows and columns of an image see the sky, or None if all do.

    The overscan of a CCD is trimmed by BLEVCORR.  The border of WFC3/IR is kept until the ramp is fitted.
    """
    import numpy as np

    detector = _keyword(hdus, "INSTRUME"), _keyword(hdus, "DETECTOR")
    ny, nx = shape(image)
    if detector == ("WFC3", "IR") and ny in _IR_FRAMES and nx in _IR_FRAMES:
        rows, columns = np.zeros(ny, dtype=bool), np.zeros(nx, dtype=bool)
        rows[_IR_BORDER:-_IR_BORDER] = columns[_IR_BORDER:-_IR_BORDER] = True
        return rows, columns
    if detector not in _EXPOSED or _keyword(hdus, "BLEVCORR") in ("", "COMPLETE"):
        return None
    pixels = np.arange(1.0, ny + 1), np.arange(1.0, nx + 1)
    rows, columns = (
        _within(pixel, float(image.header.get(f"LTV{axis}", 0)), side)
        for axis, pixel, side in zip((2, 1), pixels, _EXPOSED[detector], strict=True)
    )
    if detector == ("WFC3", "UVIS") and nx == 4206:
        half = _EXPOSED[detector][1] // 2
        columns[_UVIS_GAP] = False
        columns[_UVIS_GAP.stop : _UVIS_GAP.stop + half] = True
    # Half of a detector is not overscan: these headers mean something else.
    return None if min(rows.mean(), columns.mean()) < 0.5 else (rows, columns)


def _within(pixel: Doubles, offset: float, side: int) -> Bools:
    return (pixel - offset > 0.5) & (pixel - offset < side + 0.5)


def _block_sum(array: NDArray[Any], factor: int) -> Doubles:
    """Sum factor x factor pixels; blocks at the right and upper edge may be smaller."""
    import numpy as np

    if factor == 1:
        return array.astype(np.float64)
    ny, nx = array.shape
    rows = np.zeros((math.ceil(ny / factor), nx))
    for first in range(factor):
        part = array[first::factor]
        rows[: len(part)] += part
    sums = np.zeros((len(rows), math.ceil(nx / factor)))
    for first in range(factor):
        columns = rows[:, first::factor]
        sums[:, : columns.shape[1]] += columns
    return sums


def _cells(size: tuple[int, ...], factor: int) -> Doubles:
    """Count the pixels in each block of an array of that shape."""
    import numpy as np

    ny, nx = (np.diff(np.append(np.arange(0, side, factor), side)).astype(float) for side in size)
    return np.outer(ny, nx)
