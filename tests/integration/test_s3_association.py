"""The real COS association, S3 in and S3 out, its references only from the S3 cache; and home again."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from astropy.io import fits

from tests.desk import CONTEXT, SCRIPTS, Desk, Result, Shelf
from tests.fakes.proxy import FaultyProxy
from tests.s3 import make_bucket, s3_environment

DATASET = "ldfd01010"
PREFIX = f"data/cos/{DATASET}"
ACQ = "ldfd01vlq"

#: Cards that say when a file was written.
_DATES = re.compile(rb"(DATE    |CHECKSUM|DATASUM )=.{71}", re.DOTALL)


@dataclass(frozen=True)
class Account:
    """A user with credentials, a bucket of inputs, one of outputs and a CRDS cache in a third."""

    home: Path
    env: dict[str, str]
    inputs: str
    outputs: str
    references: str

    def run(self, command: str, *args: str) -> Result:
        """Type a command."""
        done = subprocess.run(
            [str(SCRIPTS / command), *args], cwd=self.home, env=self.env, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def account(
    tmp_path: Path, cos_data: Path, environment: dict[str, str], ministack_endpoint: str
) -> Iterator[tuple[Account, FaultyProxy]]:
    """Give an account whose CRDS cache holds the context, with a proxy that counts."""
    buckets = [f"s3://{make_bucket(ministack_endpoint)}" for _ in range(3)]
    guard = Path(__file__).parents[1] / "fakes" / "loopback"
    with FaultyProxy(ministack_endpoint) as proxy:
        env = {k: v for k, v in environment.items() if not k.startswith("CRDS_")}
        env = s3_environment(proxy.endpoint, env) | {
            "CRDSBUCKET": f"{buckets[2]}/crds",
            "CRDS_PATH": str(tmp_path / "host_cache"),
            "CALDP_TEST_LOOPBACK": "1",
            "PYTHONPATH": str(guard),
        }
        made = Account(tmp_path, env, f"{buckets[0]}/raw", f"{buckets[1]}/batch-22", f"{buckets[2]}/crds")
        cache = str(cos_data / "crds_cache")
        synced = made.run("caldp", "references", "sync", "--context", CONTEXT, "--from", cache, made.references)
        assert synced.code == 0, synced.stderr
        proxy.clear()
        yield made, proxy


def put_tarball(account: Account, cos_data: Path, patterns: tuple[str, ...]) -> None:
    """Put a dataset's inputs into the bucket of inputs."""
    from tests.s3 import s3_client, split

    packed = account.home / f"{DATASET}.tar.gz"
    with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
        for pattern in patterns:
            for path in sorted((cos_data / "inputs").glob(pattern)):
                archive.add(path, path.name)
    bucket, prefix = split(account.inputs)
    with s3_client(account.env["AWS_ENDPOINT_URL"]) as client:
        client.upload_file(str(packed), bucket, f"{prefix}/{packed.name}")


def assert_same_product(ours: Path, theirs: Path) -> None:
    """Assert that two products are the same, byte for byte but for dates."""
    if ours.suffix == ".fits" and _DATES.sub(b"", ours.read_bytes()) != _DATES.sub(b"", theirs.read_bytes()):
        difference = fits.FITSDiff(str(ours), str(theirs), ignore_keywords=["DATE", "CHECKSUM", "DATASUM"])
        pytest.fail(f"{ours.name}\n{difference.report()}")


def test_the_guard_guards(account: tuple[Account, FaultyProxy]) -> None:
    made, _ = account
    for target in (("192.0.2.1", 80), ("example.org", 80)):
        code = f"import socket; socket.create_connection({target!r}, 1)"
        python = SCRIPTS / "python"
        done = subprocess.run([str(python), "-c", code], env=made.env, capture_output=True, text=True, check=False)
        assert (done.returncode, target[0] in done.stderr) == (99, True)


@pytest.mark.slow
def test_the_association_from_s3_to_s3_and_home(
    account: tuple[Account, FaultyProxy], cos_data: Path, association: Desk
) -> None:
    made, proxy = account
    put_tarball(made, cos_data, ("*",))
    result = made.run("caldp-process-aws", made.outputs, DATASET, "--input", made.inputs)
    assert result.code == 0, result.stderr
    rules = [request.path for request in proxy.requests if "/contexts/" in request.path]
    assert 1 <= len(rules) <= 3, rules
    assert not [request.path for request in proxy.requests if "/mappings/" in request.path]
    assert made.run("caldp", "status", made.outputs).code == 0

    home = made.home / "HOME"
    synced = made.run("caldp", "sync", made.outputs, str(home))
    assert synced.code == 0, synced.stderr
    ours, theirs = home / PREFIX, association.folder(DATASET)
    names = {path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.is_file()}
    assert names == association.tree(DATASET)
    for name in sorted(names):
        assert_same_product(ours / name, theirs / name)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (ours, theirs)]
    references = [[(r["type"], r["name"], r["sha1"]) for r in manifest["references"]] for manifest in manifests]
    assert references[0] == references[1]
    assert manifests[0]["output"] == made.outputs

    archive = (home / "messages" / "dataset-synced" / DATASET).read_text()
    assert archive and all(Path(line).is_file() for line in archive.split() if line.startswith("/"))
    assert made.run("caldp", "archived", made.outputs, DATASET).code == 0
    assert "archived" in made.run("caldp", "status", made.outputs, DATASET).stdout


@pytest.mark.slow
def test_an_exposure_from_s3_to_s3_is_what_a_folder_gives(
    account: tuple[Account, FaultyProxy], cos_data: Path, shelf: Shelf, environment: dict[str, str]
) -> None:
    """The target acquisition of the same visit, which calcos is quick about; its raw files lie loose in the bucket."""
    from tests.s3 import s3_client, split

    made, _ = account
    raws = sorted((cos_data / "inputs").glob(f"{ACQ}*"))

    def fill(folder: Path) -> None:
        for path in raws:
            (folder / path.name).write_bytes(path.read_bytes())

    native = shelf.calibrated("acq-native", ACQ, environment, fill)
    bucket, prefix = split(made.inputs)
    with s3_client(made.env["AWS_ENDPOINT_URL"]) as client:
        for path in raws:
            client.upload_file(str(path), bucket, f"{prefix}/{path.name}")
    result = made.run("caldp-process-aws", made.outputs, ACQ, "--input", made.inputs)
    assert result.code == 0, result.stderr
    home = made.home / "HOME"
    assert made.run("caldp", "sync", made.outputs, str(home)).code == 0
    ours, theirs = home / "data" / "cos" / ACQ, native.folder(ACQ)
    names = {path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.is_file()}
    assert names == native.tree(ACQ)
    for name in sorted(names):
        assert_same_product(ours / name, theirs / name)

    # A bit of a reference on this host falls over: it is noticed before calibration, and fetched anew.
    cached = max((made.home / "host_cache" / "references").rglob("*_flat.fits"), key=lambda p: p.stat().st_size)
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.chmod(0o644)
    cached.write_bytes(content)
    again = made.run("caldp-process-aws", made.outputs, ACQ, "--input", made.inputs)
    assert again.code == 0, again.stderr
    assert cached.name in again.stdout + again.stderr
    content[len(content) // 2] ^= 1
    assert cached.read_bytes() == content
