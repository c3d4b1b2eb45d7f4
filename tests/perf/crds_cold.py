"""How large the functions of a CRDS are, and how long their cold start takes. Prints figures, asserts nothing.

Usage: python tests/perf/crds_cold.py [ROUNDS]        (5; about a minute, and a package index is asked)

The handlers are loaded as AWS Lambda does it: the package, the layer and what the runtime has, and nothing else that is
installed here; nothing is compiled on the way, and nothing is kept.  Figures are medians of the time on the clock of
processes that begin anew; ``without`` is the same of a layer that is not compiled.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from infra import packaging  # noqa: E402

DATA = Path(os.environ.get("CALDP_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

#: What a runtime has, beside Python.
RUNTIME = ("boto3", "botocore", "s3transfer", "urllib3", "dateutil", "six.py")

CODE = """
import time; begun = time.perf_counter()
import boto3
def told(what):
    global begun
    now = time.perf_counter(); print(what, now - begun, sep="\\t"); begun = time.perf_counter()
told("boto3, which the runtime has")
import handler
told("the handler")
class Context:
    def get_remaining_time_in_millis(self): return 100000
def ask(method, path, body=""):
    http = {"method": method, "path": path, "sourceIp": "127.0.0.1", "protocol": "HTTP/1.1"}
    event = {"version": "2.0", "rawPath": path, "rawQueryString": "", "headers": {"host": "x.on.aws"}, "body": body,
        "isBase64Encoded": False, "requestContext": {"domainName": "x.on.aws", "http": http, "stage": "$default"}}
    answer = handler.handler(event, Context())
    assert answer["statusCode"] == 200, answer
if hasattr(handler, "served"):
    import json
    ask("GET", "/health"); told("first request")
    ask("GET", "/hst/"); told("first page of HST")
    def call(method, *params):
        ask("POST", "/hst/json/", json.dumps({"method": method, "params": params, "id": "1"}))
    call("get_default_context", "hst"); told("first call")
    header = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2017-03-01", "TIME-OBS": "00:00:00"}
    call("get_best_references", "hst_0729.pmap", header, ["deadtab"]); told("first best references: crds, a context")
    call("get_best_references", "hst_0729.pmap", header, ["deadtab"]); told("the next ones")
"""


def started(package: Path, layer: Path, place: Path, scratch: Path) -> dict[str, float]:
    """Return the seconds of each step of a process that begins anew."""
    environment = {
        "PYTHONPATH": f"{package}:{layer / 'python'}:{scratch / 'runtime'}",
        "HOME": str(scratch),
        "CALDP_CRDS_STORE": f"file:{place}",
        "CALDP_CRDS_RECORDS": f"sqlite:{place / 'server' / 'records.sqlite'}",
        "CALDP_CRDS_JOBS": "lambda:nobody",
        "CALDP_CRDS_WORK": tempfile.mkdtemp(dir=scratch),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-B", "-c", CODE],
        env=environment,
        cwd=package,
        check=True,
        capture_output=True,
        text=True,
    )
    whole = time.perf_counter() - begun
    steps = dict(line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    return {**{step: float(seconds) for step, seconds in steps.items()}, "the whole process": whole}


def zipped(folder: Path, scratch: Path) -> int:
    """Return the bytes of a folder as a zip file."""
    return Path(shutil.make_archive(str(scratch / folder.name), "zip", folder)).stat().st_size


def main() -> None:
    """Run the benchmark."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = packaging.build(scratch / "out", {}, crds=True)
        layer = found[packaging.CRDS_LAYER]
        for name in (packaging.CRDS_LAYER, *packaging.CRDS_HANDLERS):
            size, packed = packaging.size(found[name]) / 2**20, zipped(found[name], scratch) / 2**20
            print(f"{name:<12} {size:7.1f} MiB unpacked, {packed:6.1f} MiB zipped")
        bare = scratch / "bare"
        shutil.copytree(layer, bare, ignore=shutil.ignore_patterns("__pycache__"))
        (scratch / "runtime").mkdir()
        import boto3

        for name in RUNTIME:
            (scratch / "runtime" / name).symlink_to(Path(boto3.__file__).parents[1] / name)
        place = scratch / "place"
        init = ["crds", "init", "--store", f"file:{place}", "--from", str(DATA / "crds-contexts")]
        catalogue = ["--catalogue", str(DATA / "crds-catalog" / "server_config.gz")]
        subprocess.run([Path(sys.executable).parent / "caldp", *init, *catalogue], check=True, capture_output=True)
        for name in packaging.CRDS_HANDLERS:
            for title, packages in (("compiled", layer), ("without", bare)):
                taken = [started(found[name], packages, place, scratch) for _ in range(rounds)]
                print(json.dumps({"function": name, "layer": title, "rounds": rounds}))
                for step in taken[0]:
                    print(f"  {step:<42} {1000 * statistics.median(one[step] for one in taken):6.0f} ms")


if __name__ == "__main__":
    main()
