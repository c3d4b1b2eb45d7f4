"""What a download from MAST costs beyond reading the same bytes with requests. Prints figures, asserts nothing.

Usage: python tests/perf/download.py [MEGABYTES] [PAIRS]        (a server on this machine; about half a minute)
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import requests
from astropy.io import fits

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from caldp import config, instruments  # noqa: E402
from caldp.dataset import Dataset  # noqa: E402
from caldp.mast import download  # noqa: E402
from caldp.reporter import QuietReporter  # noqa: E402
from caldp.run import Run  # noqa: E402
from caldp.telemetry import Telemetry  # noqa: E402
from caldp.workspace import open_workspace  # noqa: E402
from tests.fakes.mast import fake_mast  # noqa: E402

DATASET = "ldfd01vlq"
NAME = f"{DATASET}_rawacq.fits"


def by_caldp(home: Path, url: str) -> float:
    """Return the seconds of download()."""
    env = {**os.environ, "CRDS_PATH": str(home), "CALDP_HOME": str(home), "CALDP_MAST_URL": url}
    with ExitStack() as stack:
        loaded = config.load("caldp-config-onsite", environ=env)
        dataset = Dataset.parse(DATASET)
        workspace = stack.enter_context(open_workspace(home, DATASET, "run"))
        telemetry = Telemetry(DATASET, workspace.logs, QuietReporter(None))
        stack.callback(telemetry.close)
        run = Run("run", dataset, instruments.recipe(dataset), loaded, workspace, telemetry, 1, "")
        begun = time.monotonic()
        download(run, "astroquery:")
        return time.monotonic() - begun


def by_requests(path: Path, url: str, *, sync: bool) -> float:
    """Return the seconds of a plain download in pieces of 1 MiB."""
    begun = time.monotonic()
    address = f"{url}/api/v0.1/Download/file?uri=mast:HST/product/{NAME}"
    with requests.get(address, stream=True, timeout=60) as response, path.open("wb") as file:
        for chunk in response.iter_content(1 << 20):
            file.write(chunk)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    return time.monotonic() - begun


def serve(held: Path, pipe: Connection) -> None:
    """Serve one file until told to end; from memory, so that the server's disk is not measured."""
    with fake_mast() as mast:
        mast.add(DATASET, held)
        mast.files[NAME] = held.read_bytes()
        pipe.send(mast.url)
        pipe.recv()


def main() -> None:
    """Run the benchmark."""
    size, pairs = (int(text) for text in (*sys.argv[1:], *("200", "5")[len(sys.argv) - 1 :]))
    figures: dict[str, list[float]] = {"requests": [], "requests, synced": [], "download()": []}
    again: list[float] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("CALDP_HOME")) as folder:
        held = Path(folder) / NAME
        data = np.random.default_rng(1).integers(0, 1 << 16, size * 500_000, dtype=np.uint16)
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data)]).writeto(held)
        megabytes = held.stat().st_size / 1e6
        ours, theirs = multiprocessing.Pipe()
        # A process of its own: in ours it would take turns with the reader.
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(held, theirs), daemon=True)
        server.start()
        url = ours.recv()
        by_caldp(Path(folder) / "warm", url)
        print(f"{megabytes:.0f} MB from a server on this machine, {pairs} rounds in turn, MB/s")
        for number in range(pairs):
            seconds = {
                "requests": by_requests(Path(folder) / "plain", url, sync=False),
                "requests, synced": by_requests(Path(folder) / "synced", url, sync=True),
                "download()": by_caldp(Path(folder) / "home", url),
            }
            again.append(by_caldp(Path(folder) / "home", url))
            for name, value in seconds.items():
                figures[name].append(megabytes / value)
            print(f"  round {number + 1}: " + ", ".join(f"{n} {megabytes / s:.0f}" for n, s in seconds.items()))
            for path in ("plain", "synced", f"home/{NAME}"):
                (Path(folder) / path).unlink()
        ours.send("end")
        server.join()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    print("median: " + ", ".join(f"{name} {value:.0f} MB/s" for name, value in medians.items()))
    asking = statistics.median(again)
    transfer = megabytes / (megabytes / medians["download()"] - asking)
    print(f"once more, with all there (asking and verifying): {asking:.2f} s; without that {transfer:.0f} MB/s")
    for name in ("requests", "requests, synced"):
        ratios = [figure / medians[name] for figure in (medians["download()"], transfer)]
        print(f"download() / {name}: {ratios[0]:.2f}; without asking and verifying {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
