"""What it takes to publish the COS association ldfd01010 to S3. Prints figures, asserts nothing.

Usage: python tests/perf/publish.py [ROUNDS]        (servers on this machine; about ten minutes, and 6 GB of disk)

Three do it in turn, each a process of its own that begins with the products on disk:

- caldp: sha256 of each file, then S3Store.publish: the objects, each only if nobody else wrote it, and the manifest;
- aws s3 cp --recursive, of the package awscli, as it comes;
- one tarball, gzip of level 1 or 9, and one upload by boto3.

"Process" is all of it.  "Without start" leaves out Python and its libraries where the publication is part of a process
that is there already: for caldp and the tarball, as in a run, but not for a command that somebody has to start.

The files have the names, sizes and compressibility of the real ones, 1.45 GB in 72 files.  Where they go:

- ministack, an emulator of S3 that keeps everything in memory and is the bottleneck;
- a sink, which takes everything at once: what is left is the work of the client;
- the same by https, with the latency of S3 and the rate that one connection gets there;
- ministack behind a proxy with a delay, a twentieth of the data.

CALDP_PERF_CACHE is a folder (~/.cache/caldp-perf) in which awscli is installed once, from the Python package index.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from caldp.messages import Status, status_key  # noqa: E402
from caldp.store import Overwrite, open_store  # noqa: E402
from tests.fakes.proxy import FaultyProxy  # noqa: E402
from tests.fakes.s3 import start_ministack  # noqa: E402
from tests.fakes.sink import Sink  # noqa: E402
from tests.s3 import MINISTACK, make_bucket, s3_client, s3_environment  # noqa: E402

CACHE = Path(os.environ.get("CALDP_PERF_CACHE", Path.home() / ".cache" / "caldp-perf"))
AWSCLI = "1.46.3"

DATASET = "ldfd01010"

#: Makes the arguments of a command that publishes below a prefix.
Command = Callable[[str], list[str]]

#: Seconds that a request takes to S3 in the same region, and what AWS advises to expect of one connection, bytes/s.
DELAY, RATE = 0.03, 90e6

#: Seconds after which one publication has failed.
PATIENCE = 900.0

#: Bytes of the exposures' corrtag and rawtag.
EVENTS = {
    "ldfd01vnq": (14711040, 3412800),
    "ldfd01vpq": (12113280, 2813760),
    "ldfd01vrq": (23273280, 5385600),
    "ldfd01vtq": (16585920, 3841920),
}

#: Suffix -> bytes, and the part of them that gzip cannot shrink.
EXPOSURE = {
    "flt_a": (167823360, 0.006),
    "counts_a": (167823360, 0.002),
    "x1d": (1719360, 0.28),
    "lampflash": (699840, 0.35),
    "spt": (221760, 0.2),
}
ASSOCIATION = {"asn": (11520, 0.1), "jnk": (123840, 0.2), **{f"x1dsum{n}": (993600, 0.3) for n in ("", 1, 2, 3, 4)}}


def delivery(share: float) -> dict[str, tuple[int, float]]:
    """Return name, size and incompressible part of all files; ``share`` scales the sizes."""
    files = {f"{DATASET}_{suffix}.fits": facts for suffix, facts in ASSOCIATION.items()}
    for root, (corrtag, rawtag) in EVENTS.items():
        files |= {f"{root}_{suffix}.fits": facts for suffix, facts in EXPOSURE.items()}
        files |= {f"{root}_corrtag_a.fits": (corrtag, 0.76), f"{root}_rawtag_a.fits": (rawtag, 0.57)}
        files[f"{root}.tra"] = (4800, 0.3)
    spectra = [f"{root}_x1d" for root in EVENTS] + [f"{DATASET}_x1dsum{n}" for n in ("", 1, 2, 3, 4)]
    for name in spectra:
        files[f"previews/{name}.png"] = (80000, 1.0)
        files[f"previews/{name}_thumb.png"] = (6500, 1.0)
        files[f"previews/{name}_prev.fits"] = (466560, 0.5)
    sizes = {"process.txt": 57564, "preview.txt": 5495, "metrics.json": 3410}
    files |= {f"logs/{name}": (size, 0.2) for name, size in sizes.items()}
    files |= {f"logs/{name}_metrics.txt": (1300, 0.2) for name in ("process", "preview")}
    files["report.html"] = (1128985, 0.6)
    return {name: (max(1, int(size * share)), part) for name, (size, part) in files.items()}


def write(folder: Path, share: float = 1.0) -> int:
    """Write the files; return their bytes."""
    rng = np.random.default_rng(1)
    total = 0
    for name, (size, part) in delivery(share).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        left = size
        with path.open("wb") as file:
            while left:  # noise and zeros in turn, as events among empty pixels
                block = min(left, 1 << 16)
                noise = int(block * part)
                file.write(rng.bytes(noise) + bytes(block - noise))
                left -= block
        total += size
    return total


# ---- the contestants, each in a process of its own

#: As a run does, but for what it does before: the report, and moving the files into one folder.
BY_CALDP = """
import json, os, shutil, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from caldp import publish
from caldp.manifest import MANIFEST
from caldp.messages import Status
from caldp.store import open_store

folder, bucket, prefix = sys.argv[1:]
staging = Path(tempfile.mkdtemp(dir=Path(folder).parent)) / "staging"
shutil.copytree(folder, staging, copy_function=os.link)
begun = time.monotonic()
store, where = open_store(f"s3://{bucket}/{prefix}"), "data/cos/ldfd01010"
mine = Status(**json.loads(os.environ["MINE"]))
paths = {p.relative_to(staging).as_posix(): p for p in staging.rglob("*") if p.is_file()}
with ThreadPoolExecutor(2) as pool:
    sums = dict(zip(paths, pool.map(publish._sha256, paths.values())))
hashed = time.monotonic()
files = [{"name": name, "size": path.stat().st_size, "sha256": sums[name]} for name, path in paths.items()]

def seal(stored):
    entries = [{**file, "etag": stored[file["name"]].etag} for file in files]
    return MANIFEST, json.dumps({"products": entries}, indent=1).encode()

store.publish(staging, where, lambda: publish._replaceable(store, mine, where), seal, sums=sums)
print(json.dumps({"sha256": hashed - begun, "objects and manifest": time.monotonic() - hashed}))
staging.parent.rmdir()
"""

BY_TARBALL = """
import json, os, sys, tarfile, time
import boto3

folder, level, bucket, prefix = sys.argv[1:]
begun = time.monotonic()
with tarfile.open(f"{folder}.tar.gz", "w:gz", compresslevel=int(level)) as tar:
    tar.add(folder, "ldfd01010")
packed = time.monotonic()
boto3.client("s3").upload_file(f"{folder}.tar.gz", bucket, f"{prefix}/ldfd01010.tar.gz")
os.remove(f"{folder}.tar.gz")
print(json.dumps({"tarball": packed - begun, "upload": time.monotonic() - packed}))
"""


def contestants(folder: Path, bucket: str, aws: Path | None, levels: tuple[int, ...]) -> dict[str, Command]:
    """Return who takes part: name -> the command for a prefix."""
    python = [sys.executable, "-c"]
    found: dict[str, Command] = {"caldp": lambda prefix: [*python, BY_CALDP, str(folder), bucket, prefix]}
    if aws:
        copy = [str(aws), "s3", "cp", "--recursive", "--only-show-errors", str(folder)]
        found["aws s3 cp"] = lambda prefix: [*copy, f"s3://{bucket}/{prefix}"]
    for level in levels:
        argv = [*python, BY_TARBALL, str(folder), str(level), bucket]
        found[f"tarball, gzip -{level}"] = lambda prefix, argv=argv: [*argv, prefix]  # type: ignore[misc]
    return found


# ---- measuring


@dataclass
class Figures:
    """What one publication took: seconds, CPU seconds, bytes of memory, seconds of its parts."""

    wall: float
    cpu: float
    memory: int
    parts: dict[str, float]

    @property
    def inside(self) -> float:
        """Seconds without the start of Python, where the code may as well be called in a process that is there."""
        return sum(self.parts.values()) or self.wall


def timed(argv: list[str], env: Mapping[str, str]) -> Figures:
    """Run a command, by the accounting of the kernel."""
    with tempfile.TemporaryFile() as said:
        begun = time.monotonic()
        process = subprocess.Popen(argv, env=env, stdout=said, stderr=subprocess.STDOUT)
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begun
        guard.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if process.returncode:
        sys.exit(f"{argv}: exit status {process.returncode}\n{text}")
    parts = json.loads(text.splitlines()[-1]) if text.startswith("{") else {}
    return Figures(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, parts)


def compare(
    title: str, commands: Mapping[str, Command], env: dict[str, str], rounds: int, tidy: Callable[[], None]
) -> None:
    """Let them publish in turn, and print what it took."""
    taken: dict[str, list[Figures]] = {name: [] for name in commands}
    mine = Status(DATASET, 1, "processing", run="run")
    env = env | {"MINE": json.dumps({"dataset": mine.dataset, "attempt": 1, "state": mine.state, "run": mine.run})}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as small:
        for number in range(rounds + 1):
            for name, command in commands.items():
                prefix = f"{number}/{name.replace(' ', '-')}"
                argv = command(prefix)
                if name == "caldp":
                    begin(argv[-2], prefix, env, mine)
                # By a small process: a command begins with the peak of memory of the one that starts it.
                figures = small.submit(timed, argv, env).result()
                if number:  # the first round warms up
                    taken[name].append(figures)
                tidy()
    print(f"\n{title}, {rounds} rounds in turn, load average {os.getloadavg()[0]:.1f}")
    print(
        f"  {'seconds':<18} {'process: median  min   max':>27} {'/ caldp':>8} {'without start':>14} {'/ caldp':>8}",
        end="",
    )
    print(f" {'CPU':>6} {'/ caldp':>8} {'memory MB':>10}")
    for name, rows in taken.items():
        walls = [row.wall for row in rows]
        print(f"  {name:<18} {statistics.median(walls):15.2f} {min(walls):5.2f} {max(walls):5.2f}", end="")
        print(f" {ratio(rows, taken['caldp'], lambda row: row.wall):8.2f}", end="")
        print(f" {statistics.median(row.inside for row in rows):14.2f}", end="")
        print(f" {ratio(rows, taken['caldp'], lambda row: row.inside):8.2f}", end="")
        print(f" {statistics.median(row.cpu for row in rows):6.2f}", end="")
        print(f" {ratio(rows, taken['caldp'], lambda row: row.cpu):8.2f}", end="")
        print(f" {max(row.memory for row in rows) / 1e6:10.0f}", flush=True)
    for name, rows in taken.items():
        if rows[0].parts:
            parts = {part: statistics.median(row.parts[part] for row in rows) for part in rows[0].parts}
            print(f"  {name}: " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items()))


def ratio(rows: Sequence[Figures], ours: Sequence[Figures], figure: Callable[[Figures], float]) -> float:
    """Return the median of the ratios round by round, which holds when the speed of the machine drifts."""
    return statistics.median(figure(row) / figure(mine) for row, mine in zip(rows, ours, strict=True))


def begin(bucket: str, prefix: str, env: Mapping[str, str], mine: Status) -> None:
    """Put down who is allowed to publish, as a run does long before."""
    aws = {name: value for name, value in env.items() if name.startswith("AWS_")}
    with mock.patch.dict(os.environ, env, clear=True):
        open_store(f"s3://{bucket}/{prefix}", aws).put(
            status_key(DATASET), json.dumps(mine.to_json()).encode(), Overwrite()
        )


# ---- where


def install_aws() -> Path | None:
    """Install awscli once, apart from all else; None where that is not possible."""
    folder = CACHE / f"awscli-{AWSCLI}"
    program = folder / "bin" / "aws"
    try:
        if not program.exists():
            venv.create(folder, with_pip=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, f"awscli=={AWSCLI}"], check=True, capture_output=True)
        said = subprocess.run([str(program), "--version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"aws s3 cp: skipped, awscli {AWSCLI} cannot be installed in {folder} ({error})")
        return None
    print(f"aws s3 cp: {said.stdout.strip()}")
    return program


def certificate(folder: Path) -> Path | None:
    """Make a certificate for this machine, key and all; None where there is no openssl."""
    if shutil.which("openssl") is None:
        print("https: skipped, there is no openssl to make a certificate with")
        return None
    key, own, both = (folder / name for name in ("key.pem", "certificate.pem", "both.pem"))
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = ["openssl", "req", "-x509", *kind, *name, "-keyout", str(key), "-out", str(own)]
    subprocess.run(argv, check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + own.read_bytes())
    return both


@contextmanager
def emulator() -> Iterator[tuple[str, str]]:
    """Start ministack; give its address and a bucket."""
    with start_ministack(MINISTACK) as server:
        yield server.endpoint, make_bucket(server.endpoint)


def emptied(endpoint: str, bucket: str) -> None:
    """Delete all objects: they are in memory."""
    with s3_client(endpoint) as client:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", ()):
                client.delete_object(Bucket=bucket, Key=entry["Key"])


def main() -> None:
    """Run the benchmark."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else 3
    base = {k: v for k, v in os.environ.items() if not k.startswith("CALDP_")}
    with tempfile.TemporaryDirectory(dir=os.environ.get("CALDP_HOME")) as name, ExitStack() as stack:
        folder, small = Path(name) / "whole", Path(name) / "part"
        aws = install_aws()
        pem = certificate(Path(name))
        total = write(folder)
        print(f"{len(delivery(1))} files, {total / 1e9:.2f} GB, and the same with {write(small, 0.05) / 1e6:.0f} MB")
        # What this takes without a server: gzip is the same everywhere.
        if pem:
            server = stack.enter_context(Sink(DELAY, RATE, pem))
            env = s3_environment(server.endpoint, base) | {"AWS_CA_BUNDLE": str(pem)}
            title = f"a sink by https, {1000 * DELAY:.0f} ms, {RATE / 1e6:.0f} MB/s a connection"
            compare(title, contestants(folder, "bucket", aws, (1, 9)), env, rounds, lambda: None)
        server = stack.enter_context(Sink())
        env = s3_environment(server.endpoint, base)
        compare("a sink", contestants(folder, "bucket", aws, (1,)), env, rounds, lambda: None)
        if not MINISTACK.is_file():
            print(f"ministack: skipped, it is not at {MINISTACK}: make test installs it; or set CALDP_TEST_MINISTACK")
            return
        endpoint, bucket = stack.enter_context(emulator())
        env = s3_environment(endpoint, base)
        compare("ministack", contestants(folder, bucket, aws, (1,)), env, rounds, lambda: emptied(endpoint, bucket))
        proxy = stack.enter_context(FaultyProxy(endpoint, delay=DELAY))
        env = s3_environment(proxy.endpoint, base)
        title = f"ministack, {1000 * DELAY:.0f} ms a request, a twentieth of the data"
        compare(title, contestants(small, bucket, aws, (1, 9)), env, rounds + 2, lambda: emptied(endpoint, bucket))


if __name__ == "__main__":
    main()
