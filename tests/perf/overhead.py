"""What caldp-process costs beyond calcos: run by hand and by caldp-process in turn. Prints figures, asserts nothing.

Usage: python tests/perf/overhead.py [PAIRS]        (needs the shared HST data; about three minutes a pair)
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CALDP_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "cos-ldfd01010"
SCRIPTS = Path(sysconfig.get_path("scripts"))
CONTEXT = "hst_0729.pmap"
DATASET = "ldfd01010"


def timed(argv: list[str], cwd: Path, env: dict[str, str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(argv, cwd=cwd, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu


def by_hand(work: Path, env: dict[str, str]) -> tuple[float, float]:
    """Time calcos alone on the association, its references already assigned."""
    work.mkdir()
    for path in (DATA / "inputs").iterdir():
        if path.name[9:13] in ("_asn", "_raw", "_spt"):
            (work / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    raws = [p.name for p in work.glob("*_rawtag_a.fits")]
    bestrefs = [sys.executable, "-m", "crds.bestrefs", "--update-bestrefs", "--new-context", CONTEXT, "--files", *raws]
    timed(bestrefs, work, env)
    seconds = timed([str(SCRIPTS / "calcos"), "-o", "out", f"{DATASET}_asn.fits"], work, env)
    shutil.rmtree(work)
    return seconds


def by_caldp(work: Path, env: dict[str, str]) -> tuple[float, float, dict[str, float], dict[str, int]]:
    """Time caldp-process; return wall, CPU, the wall time of each stage, and peak memories in bytes."""
    work.mkdir()
    argv = [str(SCRIPTS / "caldp-process"), DATASET, f"file:{DATA / 'inputs'}", "file:OUT", "--quiet"]
    wall, cpu = timed(argv, work, env)
    metrics = json.loads((work / "OUT/data/cos" / DATASET / "logs/metrics.json").read_text())
    shutil.rmtree(work)
    stages = {s["name"]: s for s in metrics["stages"]}
    memory = {
        "calcos": stages["calibrate"]["programs"][0]["peak_memory_bytes"],
        "whole run": metrics["total"]["peak_memory_bytes"],
    }
    return wall, cpu, {name: s["wall_s"] for name, s in stages.items()}, memory


def start_up(env: dict[str, str], runs: int = 15) -> None:
    """Print what caldp-process --help takes beyond an empty Python."""
    times: dict[str, list[float]] = {"python -c pass": [], "caldp-process --help": []}
    for _ in range(runs):
        times["python -c pass"].append(timed([sys.executable, "-c", "pass"], REPOSITORY, env)[0])
        times["caldp-process --help"].append(timed([str(SCRIPTS / "caldp-process"), "--help"], REPOSITORY, env)[0])
    empty, full = (statistics.median(t) for t in times.values())
    print(f"start-up, median of {runs}: python -c pass {empty:.3f} s, caldp-process --help {full:.3f} s")
    print(f"  difference {full - empty:+.3f} s (target: at most 0.15 s)")


def main() -> None:
    """Run the benchmark."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    if not DATA.is_dir():
        sys.exit(f"no HST data at {DATA}: set CALDP_TEST_DATA")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CRDS_", "CALDP_", "lref"))}
    env |= {"CRDS_PATH": str(DATA / "crds_cache"), "CRDS_CONTEXT": CONTEXT, "CRDS_OBSERVATORY": "hst"}
    env |= {"CRDS_READONLY_CACHE": "1"}
    start_up(env)
    print(f"\n{DATASET}, {pairs} pairs in turn, wall (CPU) seconds")
    overheads, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(pairs):
            lref = {**env, "lref": f"{env['CRDS_PATH']}/references/hst/"}
            hand, hand_cpu = by_hand(Path(folder) / "hand", lref)
            wall, cpu, stages, memory = by_caldp(Path(folder) / "caldp", env)
            rest = wall - stages["previews"] - stages["calibrate"]
            without = wall - stages["previews"]
            overheads.append(rest)
            ratios.append(rest / stages["calibrate"])
            listing = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
            print(
                f"  pair {number + 1}: calcos by hand {hand:.1f} ({hand_cpu:.1f}); caldp-process {wall:.1f} ({cpu:.1f})"
            )
            print(f"    stages: {listing}; start-up and the rest {wall - sum(stages.values()):.1f}")
            print(f"    without previews: {without:.1f} s, {without - hand:+.1f} s, ratio {without / hand:.3f}")
            print(f"    peak memory: {', '.join(f'{k} {v / 1e6:.0f} MB' for k, v in memory.items())}")
    print(
        f"beside calcos and previews: median {statistics.median(overheads):.1f} s, "
        f"{statistics.median(ratios):.1%} of calcos in the same run (target: at most 10 %)"
    )


if __name__ == "__main__":
    main()
