"""What image previews cost: seconds and peak memory of one process. Prints figures, asserts nothing.

Usage: python tests/perf/previews.py [SIDE]        (side of the large mosaics; 16384 needs 10 GB of disk, a few minutes)

The files are made in a temporary directory (TMPDIR says where) and read right after they were written, so most of them
are in the page cache: reading from a cold disk comes on top.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

MARGIN = 2e9
"""Bytes of disk to leave free."""

CHILD = """
import sys
from pathlib import Path
from caldp.create_preview import main
code = main(sys.argv[1:])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(peak.split()[1], file=sys.stderr)
sys.exit(code)
"""


def sky(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return noise with stars."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0.05, 0.01, shape).astype(np.float32)
    spots = rng.integers(0, image.size, image.size // 1000)
    image.flat[spots] += rng.pareto(1.0, len(spots)).astype(np.float32)
    return image


def write_mosaic(path: Path, side: int, seed: int) -> Path:
    """Write SCI, WHT and CTX of a drizzled mosaic; 12 bytes a pixel, 8 of them on disk, CTX being a hole."""
    band = sky((min(side, 512), side), seed)
    weight = np.ones_like(band)
    weight[:, : side // 10] = 0
    primary = fits.PrimaryHDU()
    primary.header.update({"INSTRUME": "ACS", "DETECTOR": "WFC"})
    with path.open("wb") as file:
        file.write(primary.header.tostring().encode())
        for name, data in (("SCI", band), ("WHT", weight), ("CTX", None)):
            header = fits.ImageHDU(np.zeros((1, 1), np.int32 if data is None else np.float32), name=name).header
            header["NAXIS1"] = header["NAXIS2"] = side
            file.write(header.tostring().encode())
            start = file.tell()
            if data is not None:
                block = data.astype(">f4").tobytes()
                for _ in range(0, side, len(data)):
                    file.write(block)
            file.truncate(start + (side * side * 4 + 2879) // 2880 * 2880)
            file.seek(0, 2)
    return path


def write_chips(path: Path) -> Path:
    """Write SCI, ERR and DQ of both chips of ACS/WFC."""
    rng = np.random.default_rng(0)
    primary = fits.PrimaryHDU()
    primary.header.update({"INSTRUME": "ACS", "DETECTOR": "WFC", "BLEVCORR": "COMPLETE"})
    hdus = fits.HDUList([primary])
    for version, chip in ((1, 2), (2, 1)):
        image = sky((2048, 4096), version)
        hdus.append(fits.ImageHDU(image, fits.Header({"CCDCHIP": chip}), name="SCI", ver=version))
        hdus.append(fits.ImageHDU(np.sqrt(np.abs(image)), name="ERR", ver=version))
        bad = np.where(rng.random(image.shape) < 0.01, 16, 0).astype(np.int16)
        hdus.append(fits.ImageHDU(bad, name="DQ", ver=version))
    hdus.writeto(path)
    return path


def measure(label: str, output: Path, arguments: Sequence[str]) -> None:
    """Run the command once, and print what it took."""
    start = time.monotonic()
    argv = [sys.executable, "-c", CHILD, "--output", str(output), *arguments]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - start
    written = sum(path.stat().st_size for path in output.iterdir())
    shutil.rmtree(output)
    peak = int(done.stderr.split()[-1]) * 1024
    print(f"  {label:<40} {seconds:6.1f} s  {peak / 1e6:6.0f} MB  {written / 1e6:6.1f} MB of pictures", flush=True)


def measure_mosaics(folder: Path, side: int) -> None:
    """Measure one mosaic, and the composite of three."""
    needed = 3 * 8 * side * side
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN:
        print(f"  {side} x {side}: not measured, {needed / 1e9:.1f} GB needed and {free / 1e9:.1f} GB free in {folder}")
        return
    names = [folder / f"hst_9774_01_acs_wfc_{name}_j8ph01_drc.fits" for name in ("f435w", "f606w", "f814w")]
    files = [str(write_mosaic(name, side, seed)) for seed, name in enumerate(names)]
    measure(f"mosaic {side} x {side}", folder / "out", files[:1])
    measure(f"colour of three {side} x {side}", folder / "out", ["--composite", *files])
    for name in names:
        name.unlink()


def main() -> None:
    """Run the benchmark."""
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 16384
    print("full picture and thumbnail: wall seconds with start-up, peak memory (VmHWM) of the process")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure("two chips of 4096 x 2048, with DQ", folder / "out", [str(write_chips(folder / "jabc01a1q_flt.fits"))])
        measure_mosaics(folder, 4096)
        measure_mosaics(folder, side)


if __name__ == "__main__":
    main()
