"""What it costs to plan a campaign: read a list, plan it, cut it into manifests. Prints figures, asserts nothing.

Usage: python tests/perf/plan.py [DATASETS ...]        (100000 and 1000000; about a minute)

The names are those of the list of 10,000 and variants of them.  Each figure is of a process of its own; seconds are
processor time, and peak memory is all of it, Python included.  With observations means that as many of each instrument
were observed before as are kept.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.desk import DATA  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

MODULES = ("settings", "shards", "lists", "plan")

PLAN = """
import json, sys, time
from pathlib import Path
def peak():
    # Not ru_maxrss: that of whoever started this process would count.
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1.024e-3
def lap(name, act):
    begun = time.process_time()
    made = act()
    found[name] = [time.process_time() - begun, peak()]
    return made
found = {}
form, data, observed = sys.argv[1], *(Path(path).read_bytes() for path in sys.argv[2:])
from caldp.campaign import lists, plan, settings, shards
found["nothing"] = [0, peak()]
options = lists.Options()
listed = lap("read", lambda: lists.read(data, f"list.{form}"))
known = lap("observations", lambda: plan.Observations.parse(observed))
planned = lap("plan", lambda: plan.plan_all(listed, settings.DEFAULT, options, known))
cut = lap("shards", lambda: planned.shards("batch-22", settings.DEFAULT))
size = lap("manifests", lambda: sum(len(shards.jsonl(shard.lines)) for shard in cut))
assert sum(shard.size for shard in cut) == len(listed.datasets) and len(cut) == planned.submit_jobs
print(json.dumps([found, len(cut), len(planned.classes), size]))
"""


def variants() -> Iterator[str]:
    """Yield names: the real ones, then others of the same instruments and programmes."""
    real = [name.lower() for name in (DATA / "dataset-lists" / "mvp-10000.ids").read_text().split()]
    seen = set(real)
    yield from real
    for first in LETTERS:
        for second in LETTERS:
            for name in real:
                variant = f"{name[:6]}{first}{second}{name[8]}"
                if variant not in seen:
                    seen.add(variant)
                    yield variant


def packed(names: list[str], form: str) -> bytes:
    """Return a list in one of its forms."""
    if form == "json":
        return json.dumps({"datasets": names}).encode()
    text = "".join(f"- {name}\n" if form == "yaml" else f"{name}\n" for name in names)
    return (f"dataset\n{text}" if form == "csv" else text).encode()


def observed(names: list[str]) -> bytes:
    """Return observations that spread over classes, as many of each instrument as are kept."""
    from caldp.campaign.observe import KEPT
    from caldp.campaign.plan import Observation, Observations, recipe
    from caldp.dataset import Dataset

    by_letter: dict[str, list[str]] = {}
    for name in names:
        by_letter.setdefault(name[0], []).append(name)
    some = [name for found in by_letter.values() for name in found[:KEPT]]

    def one(number: int, name: str) -> Observation:
        dataset = Dataset.parse(name)
        memory, seconds = (300 + number * 7919 % 4000) << 20, 10.0 + number * 104729 % 20000
        return Observation(name, dataset.instrument, "x", dataset.kind, number % 20, recipe(dataset), memory, seconds)

    return Observations(one(number, name) for number, name in enumerate(some)).jsonl()


def measure(form: str, *files: Path) -> tuple[dict[str, list[float]], int, int, int]:
    """Plan a list in a process of its own."""
    argv = [sys.executable, "-c", PLAN, form, *map(str, files)]
    done = subprocess.run(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    found, calls, classes, size = json.loads(done.stdout)
    return found, calls, classes, size


def imports(rounds: int = 9) -> None:
    """Print what it takes to import each module: processor time, which others on this machine do not change much."""

    def taken(statement: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", statement], cwd=REPOSITORY, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for first in ("pass", "import boto3"):
        for name in MODULES:
            statement = f"{first}; import caldp.campaign.{name}"
            seconds = statistics.median(taken(statement) - taken(first) for _ in range(rounds))
            beyond = "starting Python" if first == "pass" else "boto3"
            print(f"  import caldp.campaign.{name:<9} {1000 * seconds:4.0f} ms beyond {beyond}")


def main() -> None:
    """Run the benchmark."""
    counts = [int(word) for word in sys.argv[1:]] or [100_000, 1_000_000]
    with tempfile.TemporaryDirectory() as folder:
        given, nothing, some = (Path(folder) / name for name in ("list", "nothing", "some"))
        nothing.write_bytes(b"")
        for count in counts:
            names = list(islice(variants(), count))
            some.write_bytes(observed(names))
            print(f"{len(names):,} datasets")
            forms = [("txt", nothing), ("csv", nothing), ("json", nothing), ("yaml", nothing), ("txt", some)]
            for form, frozen in forms:
                given.write_bytes(packed(names, form))
                found, calls, classes, size = measure(form, given, frozen)
                laps = ", ".join(f"{name} {seconds:.2f}" for name, (seconds, _) in found.items() if seconds)
                total, peak = sum(seconds for seconds, _ in found.values()), max(peak for _, peak in found.values())
                print(
                    f"  {form:<4} {'with observations' if frozen == some else '':<17} {total:6.2f} s, {peak:4.0f} MB, "
                    f"{calls:,} SubmitJob calls, {classes} classes, {size / 1e6:.1f} MB of manifests"
                )
                print(f"       {laps}; the files and Python {found['nothing'][1]:.0f} MB")
    print("imports, medians")
    imports()


if __name__ == "__main__":
    main()
