"""What an idle run costs that reads from S3 and writes to S3. Prints figures, asserts nothing.

Usage: python tests/perf/idle.py [ROUNDS]        (an S3 emulator on this machine; about two minutes)

The program of the recipe does nothing, and the data are a few events of which nothing is to be calibrated.  What is
left is Python with its libraries, crds and what CALDP adds.

- imports: Python loads astropy.io.fits, and in a process of its own crds; such a run cannot do without
- crds: it loads astropy.io.fits, and crds chooses the references of that file (there are none), as the run has it do
- files, S3: the whole run, from files to files, and from S3 to S3

On loopback a request costs almost nothing, so there is a row with a delay too, as it is between a job and S3; the proxy
that makes it counts the requests.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from astropy.io import fits

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from caldp import crds_cache  # noqa: E402
from caldp.simulate import Simulation, simulate  # noqa: E402
from tests.fakes.proxy import FaultyProxy, Request  # noqa: E402
from tests.fakes.s3 import start_ministack, start_moto  # noqa: E402
from tests.s3 import MINISTACK, make_bucket, s3_client, s3_environment  # noqa: E402

SCRIPTS = Path(sysconfig.get_path("scripts"))
FAKE_PROGRAMS = REPOSITORY / "tests" / "fakes" / "bin"
DATASET = "lsim01sxq"

#: Seconds that a request takes on its way.
DELAY = 0.03

PARTS = """
import json, time
from caldp import s3
seconds = []
def lap(act):
    begun = time.monotonic()
    act()
    seconds.append(time.monotonic() - begun)
def libraries():
    import botocore.session, botocore.config, botocore.exceptions, s3transfer.manager
lap(libraries)
lap(lambda: s3.client({}))
lap(lambda: s3.client({}))
print(json.dumps(seconds))
"""


def timed(argv: list[str], cwd: Path, env: dict[str, str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a command."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{argv}: {done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def idle_exposure(simulation: Simulation, folder: Path) -> Path:
    """Write a raw file of which nothing is to be calibrated."""
    folder.mkdir()
    path = folder / f"{DATASET}_rawtag_a.fits"
    with fits.open(simulation.inputs / path.name) as hdus:
        hdus[1].data = hdus[1].data[:10]
        hdus[0].header.update({key: "OMIT" for key, value in hdus[0].header.items() if value == "PERFORM"})
        hdus.writeto(path)
    return path


def kind(request: Request) -> str:
    """Return what a request asks for."""
    if "list-type=2" in request.query:
        return "LIST"
    return "DELETE" if "delete" in request.query else request.method


class Benchmark:
    """A place to run in, with S3 behind it."""

    first, second = ([sys.executable, "-c", f"import {module}"] for module in ("astropy.io.fits", "crds.bestrefs"))

    def __init__(self, folder: Path, endpoint: str, proxy: FaultyProxy) -> None:
        self.folder = folder
        self.proxy = proxy
        self.bucket = make_bucket(endpoint)
        simulation = simulate(folder / "simulated")
        self.config, self.context = simulation.config, simulation.context
        self.raw = raw = idle_exposure(simulation, folder / "IN")
        with s3_client(endpoint) as client:
            client.put_object(Bucket=self.bucket, Key=f"inputs/{raw.name}", Body=raw.read_bytes())
        env = {k: v for k, v in os.environ.items() if not k.startswith(("CRDS_", "CALDP_"))}
        self.env = s3_environment(
            endpoint, env | {"FAKE_CALCOS": "nothing", "PATH": f"{FAKE_PROGRAMS}{os.pathsep}{env['PATH']}"}
        )
        self.stages: dict[str, list[dict[str, float]]] = {}
        self.requests: list[Request] = []
        self._runs = 0

    def imports(self) -> tuple[float, float]:
        """Load the libraries in one process after the other."""
        taken = [timed(argv, self.folder, self.env) for argv in (self.first, self.second)]
        return sum(wall for wall, _ in taken), sum(cpu for _, cpu in taken)

    def crds(self) -> tuple[float, float]:
        """Load astropy in one process, and let crds choose in another."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            raw = shutil.copy(self.raw, place)
            words = [sys.executable, "-m", *crds_cache.bestrefs_command(self.context, [raw])]
            script = f". {shlex.quote(str(self.config))} && exec {shlex.join(words)}"
            taken = [timed(argv, self.folder, self.env) for argv in (self.first, ["bash", "-c", script])]
        return sum(wall for wall, _ in taken), sum(cpu for _, cpu in taken)

    def run(self, name: str, source: str, output: str, env: dict[str, str]) -> tuple[float, float]:
        """Run the command once, into a new place."""
        self._runs += 1
        output += f"/{self._runs}"
        argv = [str(SCRIPTS / "caldp-process"), DATASET, source, output, str(self.config), "--quiet"]
        self.proxy.clear()
        wall, cpu = timed(argv, self.folder, env)
        key = f"data/cos/{DATASET}/logs/metrics.json"
        if output.startswith("s3:"):
            if env["AWS_ENDPOINT_URL"] == self.proxy.endpoint:
                self.requests = list(self.proxy.requests)
            with s3_client(self.env["AWS_ENDPOINT_URL"]) as client:
                text = client.get_object(Bucket=self.bucket, Key=f"outputs/{self._runs}/{key}")["Body"].read()
        else:
            text = (self.folder / output.removeprefix("file:") / key).read_bytes()
        stages = {stage["name"]: stage["wall_s"] for stage in json.loads(text)["stages"]}
        self.stages.setdefault(name, []).append({**stages, "the rest": wall - sum(stages.values())})
        return wall, cpu

    def contestants(self) -> dict[str, Callable[[], tuple[float, float]]]:
        """Return what is measured in turn."""
        source, output = f"s3://{self.bucket}/inputs", f"s3://{self.bucket}/outputs"
        far = self.env | {"AWS_ENDPOINT_URL": self.proxy.endpoint}
        return {
            "imports": self.imports,
            "crds": self.crds,
            "files": lambda: self.run("files", "file:IN", "file:OUT", self.env),
            "S3": lambda: self.run("S3", source, output, self.env),
            f"S3, {1000 * DELAY:.0f} ms": lambda: self.run(f"S3, {1000 * DELAY:.0f} ms", source, output, far),
        }


def table(taken: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Print seconds, and what they are beyond those of the first two, round by round."""
    title = f"{'wall: median   min   max':>28} {'CPU':>6}"
    print(f"  {'seconds':<12} {title} {'beyond imports: wall   CPU':>27} {'beyond crds: wall   CPU':>25}")
    for name, rows in taken.items():
        walls, cpus = ([row[column] for row in rows] for column in (0, 1))
        print(f"  {name:<12} {statistics.median(walls):16.2f} {min(walls):5.2f} {max(walls):5.2f}", end="")
        print(f" {statistics.median(cpus):6.2f}", end="")
        for base, width in (("imports", 21), ("crds", 19)):
            both = list(zip(rows, taken[base], strict=True))
            wall, cpu = (statistics.median(mine[column] - theirs[column] for mine, theirs in both) for column in (0, 1))
            print(f" {wall:{width}.2f} {cpu:5.2f}", end="")
        print()


def main() -> None:
    """Run the benchmark."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with (
        tempfile.TemporaryDirectory() as folder,
        start_ministack(MINISTACK) if MINISTACK.is_file() else start_moto() as server,
        FaultyProxy(server.endpoint, delay=DELAY) as proxy,
    ):
        bench = Benchmark(Path(folder), server.endpoint, proxy)
        contestants = bench.contestants()
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        parts: list[list[float]] = []
        for number in range(rounds + 1):
            for name, contestant in contestants.items():
                figures = contestant()
                if number:  # the first round warms up
                    taken[name].append(figures)
            done = subprocess.run([sys.executable, "-c", PARTS], env=bench.env, capture_output=True, check=True)
            parts.append(json.loads(done.stdout))
    print(f"{server.name}, {rounds} rounds in turn, load average {os.getloadavg()[0]:.1f}")
    table(taken)
    print("stages, median wall seconds")
    for name, measured in bench.stages.items():
        medians = {stage: statistics.median(row[stage] for row in measured[1:]) for stage in measured[0]}
        print(f"  {name:<12} " + ", ".join(f"{stage} {value:.2f}" for stage, value in medians.items()))
    libraries, first, second = (statistics.median(column) for column in zip(*parts[1:], strict=True))
    print(f"botocore and s3transfer: loading them {libraries:.2f} s, a client {first:.2f} s, another {second:.2f} s")
    kinds = Counter(map(kind, bench.requests))
    print(f"{len(bench.requests)} requests: " + ", ".join(f"{count} {name}" for name, count in kinds.most_common()))
    for request in bench.requests:
        path = request.path.partition("/outputs/")[2].partition("/")[2] or request.path.rpartition("/")[2]
        print(f"  {kind(request):<6} {request.status} {path} {request.query if 'list-type' in request.query else ''}")


if __name__ == "__main__":
    main()
