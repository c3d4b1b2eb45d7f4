"""Raw data from a bucket: real files, up to what a run would do with them, and all that goes wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import socket
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caldp import inputs
from caldp.errors import CaldpError, InputError, S3DownloadError, S3DownloadRefusedError
from caldp.run import Run
from tests.conftest import RunFactory
from tests.desk import SCRIPTS, Desk, assert_tidy
from tests.fakes import mosaic
from tests.fakes.proxy import FaultyProxy
from tests.s3 import S3Place, emulated, s3_client, s3_environment, s3_places, split

ASSOCIATION = "ldfd01010"
ACQ = "ldfd01vlq"
MEMBERS = ("ldfd01vnq", "ldfd01vpq", "ldfd01vrq", "ldfd01vtq")
NEEDED = sorted(
    [f"{ASSOCIATION}_asn.fits", *(f"{root}_{suffix}.fits" for root in MEMBERS for suffix in ("rawtag_a", "spt"))]
)
ACQ_FILES = [f"{ACQ}_rawacq.fits", f"{ACQ}_spt.fits"]

everywhere = pytest.mark.parametrize("s3_place", s3_places(), indirect=True)
on_one = pytest.mark.parametrize("s3_place", s3_places("ministack"), indirect=True)

Put = Callable[..., None]
Make = Callable[..., Run]


@pytest.fixture
def put(s3_place: S3Place) -> Iterator[Put]:
    """A function that puts objects, by name, below the prefix of inputs or another."""
    with s3_client(s3_place.endpoint, max_pool_connections=8) as client:

        def put_all(objects: Mapping[str, bytes], where: str = s3_place.inputs) -> None:
            bucket, prefix = split(where.rstrip("/"))

            def one(name: str) -> None:
                client.put_object(Bucket=bucket, Key="/".join(filter(None, (prefix, name))), Body=objects[name])

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(one, objects))

        yield put_all


@pytest.fixture
def make(make_run: RunFactory, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that makes a run in an environment with this S3, or with what is at an address."""

    def make(place: S3Place | str, dataset: str = ACQ, without: tuple[str, ...] = (), **environ: str) -> Run:
        env = {**(s3_environment(place) if isinstance(place, str) else place.environment()), **environ}
        aws = {name: value for name, value in env.items() if name.startswith("AWS_") and name not in without}
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in aws.items():
            monkeypatch.setenv(name, value)
        return make_run(dataset, **aws)

    return make


@pytest.fixture(scope="session")
def real(cos_data: Path) -> dict[str, bytes]:
    """The real files of a visit, as the archive keeps them."""
    return {path.name: path.read_bytes() for path in sorted((cos_data / "inputs").iterdir())}


def packed(files: Mapping[str, bytes]) -> bytes:
    """Pack files into a tarball."""
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return stream.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Pack files into a compressed tarball."""
    return gzip.compress(packed(files), 1)


def of(real: Mapping[str, bytes], *roots: str) -> dict[str, bytes]:
    return {name: content for name, content in real.items() if name.startswith(roots)}


def failing(run: Run, uri: str, kind: type[CaldpError], *words: str) -> CaldpError:
    with pytest.raises(kind) as caught:
        inputs.fetch(run, uri)
    assert type(caught.value) is kind
    for word in (run.dataset.name, *words):
        assert word in caught.value.message
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


def sources(lines: str) -> list[str]:
    return re.findall(r"would take (.*) \(\d+ bytes\)", lines)


# ---- what is fetched


@everywhere
def test_loose_files(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    put(real)
    run = make(s3_place, ASSOCIATION)
    fetched = inputs.fetch(run, s3_place.inputs)
    assert sorted(f.name for f in fetched.files) == NEEDED
    for file in fetched.files:
        assert file.source == f"{s3_place.inputs}/{file.name}.gz"
        assert (fetched.directory / file.name).read_bytes() == gzip.decompress(real[f"{file.name}.gz"])
    assert not list((run.workspace.root / "downloaded").iterdir())
    assert run.telemetry.warnings == []


@everywhere
@pytest.mark.parametrize("form", ["{0}", "{0}/", "{0}/ldfd01vlq.tar"])
def test_a_tarball(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes], form: str) -> None:
    put({f"{ACQ}.tar": packed(of(real, ACQ))})
    fetched = inputs.fetch(make(s3_place), form.format(s3_place.inputs))
    assert [f.name for f in fetched.files] == ACQ_FILES
    assert fetched.raw[0].source == f"{s3_place.inputs}/{ACQ}.tar:{ACQ}_rawacq.fits.gz"


@everywhere
def test_loose_files_come_before_a_tarball(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    put({**of(real, ACQ), f"{ACQ}.tar.gz": b"not looked at"})
    run = make(s3_place)
    assert [f.name for f in inputs.fetch(run, s3_place.inputs).files] == ACQ_FILES
    assert run.telemetry.warnings == [f"the files beside {ACQ}.tar.gz are used, not those in it"]


@everywhere
@pytest.mark.parametrize("prefix", ["", "/", "/with two  blanks", "/with+plus%20and=é", "/a/b/c/"])
def test_prefixes_of_all_kinds(
    s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes], prefix: str, request: pytest.FixtureRequest
) -> None:
    # A real bucket has a prefix for the test, and the emulators a bucket.
    top = s3_place.inputs if s3_place.kind == "real" else f"s3://{s3_place.bucket}"
    put(of(real, ACQ), f"{top}{prefix}")
    fetched = inputs.fetch(make(s3_place), f"{top}{prefix}")
    assert [f.name for f in fetched.files] == ACQ_FILES
    assert fetched.raw[0].source == f"{top}{prefix.rstrip('/')}/{ACQ}_rawacq.fits.gz"


@emulated()
def test_a_full_prefix_is_neither_listed_nor_downloaded(
    s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]
) -> None:
    others = {f"lfull{number:04}_rawtag_a.fits": b"" for number in range(1500)}
    put({**others, **of(real, ACQ), "ldfd01/below_rawtag_a.fits": b"", f"{ACQ}_rawacq.fits.gz/below": b""})
    with FaultyProxy(s3_place.endpoint or "") as proxy:
        fetched = inputs.fetch(make(s3_place.behind(proxy.endpoint)), s3_place.inputs)
    assert [f.name for f in fetched.files] == ACQ_FILES
    lists = [r for r in proxy.requests if "list-type=2" in r.query]
    assert len(lists) == 1
    assert lists[0].bytes_out < 3000  # of which one entry takes some 200
    assert sorted(Path(r.path).name for r in proxy.requests if r not in lists) == [f"{name}.gz" for name in ACQ_FILES]


@on_one
def test_more_files_of_the_visit_than_one_answer_lists(
    s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]
) -> None:
    put({**{f"ldfd01{number:03x}_jit.fits": b"" for number in range(1100)}, **of(real, ACQ)})
    assert [f.name for f in inputs.fetch(make(s3_place), s3_place.inputs).files] == ACQ_FILES


@on_one
def test_a_mosaic(s3_place: S3Place, put: Put, make: Make, tmp_path: Path) -> None:
    exposures = {"j8ph01g3q_flc.fits": "F435W;CLEAR2L", "j8ph01g7q_flc.fits": "F555W;CLEAR2L"}
    for name in (*exposures, "j8ph01g9q_flc.fits"):
        mosaic.write_calibrated(tmp_path, name)
    mosaic.write_visit(tmp_path, "acs_8ph_01", "9774", exposures)
    put({path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()})
    fetched = inputs.fetch(make(s3_place, "acs_8ph_01"), s3_place.inputs)
    assert [f.name for f in fetched.files] == ["acs_8ph_01_input.out", *exposures]
    assert fetched.raw[0].source == f"{s3_place.inputs}/j8ph01g3q_flc.fits"


@everywhere
def test_settings_that_come_with_the_data(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    put({f"{ACQ}.tgz": zipped(of(real, ACQ)), f"{ACQ}_cal_env.txt": b"OMP_NUM_THREADS=2\nPATH=/evil\n"})
    fetched = inputs.fetch(make(s3_place), s3_place.inputs)
    assert fetched.settings == {"OMP_NUM_THREADS": "2"}
    assert fetched.settings_file
    assert fetched.settings_file.source == f"{s3_place.inputs}/{ACQ}_cal_env.txt"


@everywhere
def test_large_objects_come_in_parts(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    noise = os.urandom(20 << 20)
    put({f"{ACQ}.tar": packed({**of(real, ACQ), "noise.bin": noise})})
    assert [f.name for f in inputs.fetch(make(s3_place), s3_place.inputs).files] == ACQ_FILES


# ---- what goes wrong


@everywhere
def test_no_bucket(s3_place: S3Place, make: Make) -> None:
    bucket = f"nobody-has-{uuid.uuid4().hex}"
    error = failing(make(s3_place), f"s3://{bucket}/in", S3DownloadRefusedError, f"s3://{bucket}/in", "no such bucket")
    assert error.exit_code == 26


@everywhere
def test_nothing_there(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    put(of(real, "ldfd01vnq"))
    error = failing(
        make(s3_place),
        f"{s3_place.inputs}/",
        InputError,
        f"no {ACQ}_asn.fits or {ACQ}_raw*.fits and no {ACQ}.tar.gz in {s3_place.inputs}",
    )
    assert error.exit_code == 21
    failing(make(s3_place), f"{s3_place.inputs}/my.tgz", InputError, f"there is no object {s3_place.inputs}/my.tgz")


@everywhere
def test_a_missing_member(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    put({name: content for name, content in real.items() if not name.startswith("ldfd01vpq_rawtag")})
    run = make(s3_place, ASSOCIATION)
    failing(run, s3_place.inputs, InputError, f"no raw data for ldfd01vpq in {s3_place.inputs}")
    assert [path.name for path in run.workspace.inputs.iterdir()] == [f"{ASSOCIATION}_asn.fits"]


@pytest.mark.parametrize("s3_place", ["moto", "ministack"], indirect=True)
def test_no_credentials(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    put(of(real, ACQ))
    run = make(s3_place, without=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    error = failing(run, s3_place.inputs, S3DownloadRefusedError, s3_place.inputs, "there are no AWS credentials")
    assert error.exit_code == 26
    assert "AWS_PROFILE" in error.remedy


def test_no_server(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    run = make(f"http://127.0.0.1:{port}", AWS_MAX_ATTEMPTS="1")
    begun = time.monotonic()
    error = failing(run, "s3://bucket/in", S3DownloadError, "s3://bucket/in", "Could not connect")
    assert (error.exit_code, error.retriable) == (26, True)
    assert "AWS_ENDPOINT_URL" in error.remedy
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@on_one
def test_a_truncated_tarball(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes], share: float) -> None:
    whole = zipped(of(real, ACQ))
    put({f"{ACQ}.tar.gz": whole[: int(len(whole) * share)]})
    run = make(s3_place)
    failing(run, s3_place.inputs, InputError, f"{s3_place.inputs}/{ACQ}.tar.gz cannot be unpacked")
    assert not list((run.workspace.root / "unpacked").iterdir())


@everywhere
def test_a_hostile_tarball(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]) -> None:
    put({f"{ACQ}.tar.gz": zipped({**of(real, ACQ), f"../../{ACQ}_asn.fits": b"evil"})})
    run = make(s3_place)
    failing(run, s3_place.inputs, InputError, f"{s3_place.inputs}/{ACQ}.tar.gz", "points outside the folder")
    assert not list(run.workspace.inputs.iterdir())
    assert not [path for path in run.config.home.rglob("*_asn.fits")]


@on_one
@pytest.mark.parametrize("name", [f"{ACQ}_rawacq.fits", f"{ACQ}_rawacq.fits.gz"])
def test_a_truncated_file(s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes], name: str) -> None:
    content = real[f"{ACQ}_rawacq.fits.gz"]
    content = content if name.endswith(".gz") else gzip.decompress(content)
    put({name: content[: len(content) // 2]})
    failing(make(s3_place), s3_place.inputs, InputError, name)


@emulated()
def test_passing_failures_pass(
    s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes], no_waiting: None
) -> None:
    put(real)
    with FaultyProxy(s3_place.endpoint or "", failure_rate=0.2, seed=4) as proxy:
        fetched = inputs.fetch(make(s3_place.behind(proxy.endpoint), ASSOCIATION), s3_place.inputs)
        assert any(r.fault for r in proxy.requests)
    for file in fetched.files:
        assert (fetched.directory / file.name).read_bytes() == gzip.decompress(real[f"{file.name}.gz"])


@pytest.mark.parametrize("s3_place", ["ministack"], indirect=True)
def test_an_object_that_is_replaced_while_it_is_read(
    s3_place: S3Place, put: Put, make: Make, real: dict[str, bytes]
) -> None:
    whole = packed({**of(real, ACQ), "noise.bin": os.urandom(20 << 20)})
    put({f"{ACQ}.tar": whole})
    with FaultyProxy(s3_place.endpoint or "") as proxy, ThreadPoolExecutor(1) as pool:
        hold = proxy.hold(lambda request: request.path.endswith(f"{ACQ}.tar"))
        run = make(s3_place.behind(proxy.endpoint))
        fetched = pool.submit(inputs.fetch, run, s3_place.inputs)
        assert hold.reached.wait(30)
        put({f"{ACQ}.tar": whole[::-1]})
        hold.release()
        with pytest.raises(S3DownloadError) as caught:
            fetched.result(60)
    assert f"{ACQ}: {s3_place.inputs}/{ACQ}.tar: it was replaced while it was read" in str(caught.value)


@pytest.mark.parametrize(
    ("s3_place", "megabytes", "upload"),
    [
        ("moto", 1, "whole"),
        ("ministack", 1, "whole"),
        ("moto", 20, "whole"),
        ("ministack", 20, "whole"),
        # ministack does not tell the size of the parts.
        ("moto", 20, "in parts"),
        ("moto", 20, "SHA256"),
    ],
    indirect=["s3_place"],
)
def test_a_bit_that_is_flipped_on_the_way_is_noticed(
    s3_place: S3Place, make: Make, real: dict[str, bytes], tmp_path: Path, megabytes: int, upload: str
) -> None:
    path = tmp_path / "packed.tar"
    path.write_bytes(packed({**of(real, ACQ), "noise.bin": os.urandom(megabytes << 20)}))
    bucket, key = split(f"{s3_place.inputs}/{ACQ}.tar")
    with s3_client(s3_place.endpoint) as client:
        if upload == "whole":
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
        else:
            algorithm = {"ChecksumAlgorithm": "SHA256"} if upload == "SHA256" else {}
            client.upload_file(str(path), bucket, key, ExtraArgs=algorithm)
    assert inputs.fetch(make(s3_place), s3_place.inputs).raw
    with FaultyProxy(s3_place.endpoint or "") as proxy:
        proxy.corrupt_next("GET", f"{ACQ}.tar")
        run = make(s3_place.behind(proxy.endpoint))
        if megabytes == 1:  # it is fetched again
            assert inputs.fetch(run, s3_place.inputs).raw
            faults = [r.fault for r in proxy.requests if r.method == "GET" and r.path.endswith(f"{ACQ}.tar")]
            assert faults == ["corrupted", ""]
        else:
            failing(run, s3_place.inputs, S3DownloadError, f"{s3_place.inputs}/{ACQ}.tar", "hecksum")


# ---- the commands


@pytest.fixture
def s3_desk(desk: Desk, s3_place: S3Place) -> Desk:
    """A desk from which this S3 is seen."""
    return Desk(desk.home, s3_place.environment(desk.env))


def command(desk: Desk, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run one of the commands."""
    done = subprocess.run(
        [str(SCRIPTS / name), *args],
        cwd=desk.home,
        env=desk.env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


@everywhere
def test_a_dry_run_of_the_door_for_aws(s3_desk: Desk, s3_place: S3Place, put: Put, real: dict[str, bytes]) -> None:
    put({f"{ASSOCIATION}.tar.gz": zipped(real)})
    options = ("--input", s3_place.inputs, "--config", "caldp-config-onsite", "--dry-run")
    done = command(s3_desk, "caldp-process-aws", s3_place.outputs, ASSOCIATION, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(sources(done.stdout)) == [f"{s3_place.inputs}/{ASSOCIATION}.tar.gz:{name}.gz" for name in NEEDED]
    assert f"to {s3_place.outputs}/data/cos/{ASSOCIATION}" in done.stdout
    with s3_client(s3_place.endpoint) as client:
        bucket, prefix = split(s3_place.outputs)
        assert client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["KeyCount"] == 0
    assert list(s3_desk.home.iterdir()) == [s3_desk.inputs]


@on_one
def test_a_dry_run_with_loose_files(s3_desk: Desk, s3_place: S3Place, put: Put, real: dict[str, bytes]) -> None:
    put(real)
    done = command(s3_desk, "caldp-process", ASSOCIATION, s3_place.inputs, "file:OUT", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(sources(done.stdout)) == [f"{s3_place.inputs}/{name}.gz" for name in NEEDED]
    assert list(s3_desk.home.iterdir()) == [s3_desk.inputs]


@on_one
def test_references_show(s3_desk: Desk, s3_place: S3Place, put: Put, real: dict[str, bytes]) -> None:
    put(of(real, ACQ))
    done = command(s3_desk, "caldp", "references", "show", ACQ, s3_place.inputs, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FLATFILE" in {reference["type"] for reference in json.loads(done.stdout)["references"]}
    assert_tidy(s3_desk.home)


@on_one
def test_progress_is_told_to_machines(s3_desk: Desk, s3_place: S3Place, put: Put, real: dict[str, bytes]) -> None:
    put(of(real, ACQ))
    done = command(s3_desk, "caldp-process", ACQ, s3_place.inputs, "--dry-run", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    last = [event for event in events if event["event"] == "progress"][-1]
    total = sum(map(len, of(real, ACQ).values()))
    assert (last["what"], last["done_bytes"], last["total_bytes"]) == ("download", total, total)


@on_one
def test_a_run_without_inputs_ends_in_state_error(s3_desk: Desk, s3_place: S3Place) -> None:
    done = s3_desk.run(ACQ, s3_place.inputs, "file:OUT", "-q")
    s3_desk.assert_failed(done, ACQ, 21, f"no {ACQ}_asn.fits", s3_place.inputs)


@on_one
def test_a_run_that_may_not_read_ends_in_state_error(s3_desk: Desk, s3_place: S3Place) -> None:
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")
    desk = Desk(s3_desk.home, {name: value for name, value in s3_desk.env.items() if name not in keys})
    done = desk.run(ACQ, s3_place.inputs, "file:OUT", "-q")
    desk.assert_failed(done, ACQ, 26, "no AWS credentials", s3_place.inputs, "AWS_PROFILE")


@emulated("ministack")
def test_a_run_that_is_stopped_while_it_downloads(
    s3_desk: Desk, s3_place: S3Place, put: Put, real: dict[str, bytes]
) -> None:
    put(of(real, ACQ))
    with FaultyProxy(s3_place.endpoint or "") as proxy:
        hold = proxy.hold(lambda request: request.path.endswith("_rawacq.fits.gz"))
        desk = Desk(s3_desk.home, {**s3_desk.env, "AWS_ENDPOINT_URL": proxy.endpoint})
        process = desk.start(ACQ, s3_place.inputs, "file:OUT", "-q")
        assert hold.reached.wait(60)
        process.send_signal(signal.SIGTERM)
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 143, stderr
    assert desk.status(ACQ)["state"] == "error"
    assert_tidy(desk.home)


def test_the_door_for_aws_takes_the_config_for_aws(desk: Desk) -> None:
    done = command(desk, "caldp-process-aws", "s3://bucket/batch", ACQ, "-q")
    assert done.returncode == 2
    assert "caldp-config-aws: export CRDSBUCKET" in done.stderr
    assert list(desk.home.iterdir()) == [desk.inputs]
