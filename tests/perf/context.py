"""What it costs to open a context cold from S3: CALDP, and crds by its own S3 mode. Prints figures, asserts nothing.

Usage: python tests/perf/context.py [ROUNDS]        (an S3 emulator on this machine; about a minute)

Both answer the same question, which references a COS exposure needs, in a process that has loaded its libraries.  crds
asks for one rule after the other, and only for those of COS; CALDP asks for all instruments, once.  On loopback a
request costs almost nothing, so each is measured with a delay too, as it is between a job and S3.  The answer is timed
with all rules there as well: what it takes longer without them is the opening.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from caldp import crds_choice, crds_sync  # noqa: E402
from caldp.store import open_store  # noqa: E402
from tests.desk import CONTEXT, DATA  # noqa: E402
from tests.fakes.proxy import FaultyProxy  # noqa: E402
from tests.fakes.s3 import start_ministack, start_moto  # noqa: E402
from tests.s3 import MINISTACK, make_bucket, s3_environment  # noqa: E402

#: Seconds that a request takes on its way.
DELAYS = (0.0, 0.03)

CACHE = DATA / "cos-ldfd01010" / "crds_cache"

ANSWER = """
import json, os, sys, time
from pathlib import Path
from types import SimpleNamespace
import boto3, crds
from crds.core import log
from caldp import config, crds_cache, crds_store, instruments, reporter, telemetry
from caldp.dataset import Dataset
log.set_verbose(0)
header, context = json.load(sys.stdin)

def open_with_caldp():
    settings = config.load("caldp-config-aws")
    dataset = Dataset.parse("ldfd01vnq")
    told = telemetry.Telemetry(dataset.name, Path.cwd(), reporter.QuietReporter(None))
    run = SimpleNamespace(dataset=dataset, recipe=instruments.recipe(dataset), config=settings, telemetry=told)
    crds_cache.best_references = lambda *_: None  # asked below, in this process
    cache = crds_store.CrdsStore(settings)
    begun = time.monotonic()
    cache.choose(run, Path.cwd(), [])
    cache.look(run, [("FLUXTAB", "unknown")])
    run.telemetry.close()
    return begun

begun = open_with_caldp() if sys.argv[1] == "caldp" else time.monotonic()
answer = crds.getrecommendations(header, context=context, observatory="hst", ignore_cache=False)
seconds = time.monotonic() - begun
print(json.dumps([seconds, sorted((k, v) for k, v in answer.items() if v.endswith(".fits"))]))
"""


def header() -> dict[str, str]:
    """Return what the rules look at, of a real exposure."""
    from astropy.io import fits

    with fits.open(next((DATA / "cos-ldfd01010" / "inputs").glob("ldfd01vnq_rawtag_a.fits*"))) as hdus:
        both = {**dict(hdus[0].header), **dict(hdus[1].header)}
    return {str(k): str(v) for k, v in both.items() if isinstance(v, str | int | float)}


def measure(who: str, bucket: str, proxy: FaultyProxy, question: str) -> tuple[float, int, object]:
    """Let one of them answer, with an empty cache unless it is local; return seconds, requests and the answer."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **{k: v for k, v in s3_environment(proxy.endpoint).items() if not k.startswith(("CRDS", "CALDP"))},
            "CRDSBUCKET": bucket,
            "CRDS_PATH": str(Path(folder) / "cache"),
            "CRDS_CONTEXT": CONTEXT,
            "CRDS_OBSERVATORY": "hst",
            "CRDS_SERVER_URL": "https://hst-serverless-mode.stsci.edu",
        }
        if who == "local":
            env |= {"CRDS_PATH": str(CACHE), "CRDS_READONLY_CACHE": "1"}
        if who == "crds":
            env |= {"CRDS_S3_ENABLED": "1", "CRDS_READONLY_CACHE": "1", "CRDS_S3_RETURN_URI": "1"}
            env |= {
                f"CRDS_{kind}_URI": f"{bucket}/{place}/hst/"
                for kind, place in (("CONFIG", "config"), ("MAPPING", "mappings"), ("REFERENCE", "references"))
            }
        proxy.clear()
        done = subprocess.run(
            [sys.executable, "-c", ANSWER, who], cwd=folder, env=env, input=question, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
        seconds, answer = json.loads(done.stdout.splitlines()[-1])
        return seconds, proxy.count(), answer


def main() -> None:
    """Run the benchmark."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    question = json.dumps([header(), CONTEXT])
    with start_ministack(MINISTACK) if MINISTACK.is_file() else start_moto() as server:
        bucket = f"s3://{make_bucket(server.endpoint)}"
        os.environ.update(s3_environment(server.endpoint))
        store = open_store(bucket)
        print(crds_sync.sync(store, CACHE, CONTEXT, crds_choice.Choice()))
        print(f"{server.name}, an empty cache, {rounds} rounds in turn, medians")
        for delay in DELAYS:
            with FaultyProxy(server.endpoint, delay=delay) as proxy:
                found: dict[str, list[tuple[float, int, object]]] = {"caldp": [], "crds": [], "local": []}
                for _ in range(rounds):
                    for who, all_found in found.items():
                        all_found.append(measure(who, bucket, proxy, question))
            seconds = {who: statistics.median(s for s, _, _ in rows) for who, rows in found.items()}
            requests = {who: statistics.median(n for _, n, _ in rows) for who, rows in found.items()}
            opening = {who: seconds[who] - seconds["local"] for who in ("caldp", "crds")}
            answers = [rows[0][2] for rows in found.values()]
            same = "the same" if answers[0] == answers[1] == answers[2] else "DIFFERENT"
            print(f"{1000 * delay:.0f} ms a request; {same} references")
            for who in opening:
                print(
                    f"  {who}: {requests[who]:.0f} requests, {seconds[who]:.2f} s, of which opening {opening[who]:.2f}"
                )
            ratio = seconds["crds"] / seconds["caldp"]
            print(f"  crds / caldp: {ratio:.1f}; of the opening {opening['crds'] / opening['caldp']:.1f}")


if __name__ == "__main__":
    main()
