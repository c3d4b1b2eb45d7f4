"""Sync from S3: small trees of FITS files on both emulators, by the command that people type."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from caldp import messages
from caldp.local_store import LocalStore
from caldp.messages import Status
from caldp.s3_store import S3Store
from caldp.store import Overwrite
from caldp.sync import Ask, acknowledge, sync
from caldp.sync_watch import QuietWatch
from tests.desk import small_disk
from tests.fakes.processed import names, publish, small_products, tree
from tests.fakes.proxy import FaultyProxy
from tests.s3 import S3Place, emulated, make_bucket, s3_client, s3_environment, s3_places

NAME = "ldfd01010"
OTHERS = ("j8bt05njq", "acs_8bt_05", "skycell-p0047x20y18", "o4k301010")

BOTH = pytest.mark.parametrize("s3_place", s3_places(), indirect=True)
MOTO = pytest.mark.parametrize("s3_place", s3_places("moto"), indirect=True)

_SECONDS = 120


def open_batch(place: S3Place) -> S3Store:
    aws = {key: value for key, value in place.environment().items() if key.startswith("AWS_")}
    return S3Store(place.outputs, aws if place.endpoint else None)


@pytest.fixture
def batch(s3_place: S3Place) -> S3Store:
    return open_batch(s3_place)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(s3_place: S3Place) -> Iterator[Start]:
    """Start ``caldp``; it is gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: object, place: S3Place = s3_place, **more: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", "from caldp.cli import main; main(prog_name='caldp')", *map(str, args)],
            env=place.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=_SECONDS)
    assert "Traceback" not in err
    return process.returncode, out, err


def bring(batch: S3Store, home: Path, *wanted: str, **ask: Any) -> Any:
    return sync(batch, LocalStore(home), Ask(wanted, **ask), QuietWatch(None))


def shown(place: S3Store | Path, name: str = NAME) -> list[str]:
    store = LocalStore(place) if isinstance(place, Path) else place
    folders = store.names("messages")
    return [folder for folder in folders if store.get(f"messages/{folder}/{name}") is not None]


def state(place: S3Store | Path, name: str = NAME) -> Status:
    return messages.read(LocalStore(place) if isinstance(place, Path) else place, name) or pytest.fail(name)


def of_batch(batch: S3Store, prefix: str = "data") -> dict[str, bytes]:
    blobs = {entry.key: batch.get(entry.key) or pytest.fail(entry.key) for entry in batch.walk(prefix)}
    return {key.removeprefix(f"{prefix}/"): blob.data for key, blob in blobs.items()}


def assert_home(batch: S3Store, home: Path, *wanted: str) -> None:
    """Whole, told on both sides, and nothing else."""
    assert tree(home / "data") == of_batch(batch)
    for name in wanted or (NAME,):
        assert shown(batch, name) == shown(home, name) == ["dataset-synced"]
        assert state(batch, name).state == "synced"
        assert state(batch, name).order == state(home, name).order
        lines = (home / "messages" / "dataset-synced" / name).read_text().splitlines()
        assert all(Path(line).is_relative_to(home) and Path(line).is_file() for line in lines)
        folder = Path(lines[-1]).parent
        assert {Path(line) for line in lines} == {path for path in folder.rglob("*") if path.is_file()}


def assert_whole_or_absent(home: Path, name: str = NAME) -> None:
    """What is shown is whole, and what is said is true."""
    store, folder = LocalStore(home), home / "data" / "cos" / name
    if folder.exists():
        record = json.loads((folder / "manifest.json").read_text())
        assert store.damaged(f"data/cos/{name}", [*record["products"], *record["previews"]]) == []
        assert (folder / "report.html").is_file()
    if messages.read(store, name):
        assert folder.is_dir()


def flip(batch: S3Store, key: str) -> None:
    """Flip a bit of an object, behind everybody's back."""
    blob = batch.get(key)
    assert blob
    data = bytearray(blob.data)
    data[len(data) // 2] ^= 1
    batch.put(key, bytes(data), Overwrite())


# ---- what is brought home


@BOTH
def test_a_batch_comes_home(batch: S3Store, home: Path, start: Start, tmp_path: Path) -> None:
    for name in (NAME, *OTHERS):
        publish(batch, name)
    code, out, err = end(start("sync", batch.uri, home))
    assert (code, err) == (0, "")
    assert "5 datasets, 55 files" in out.splitlines()[-1]
    assert_home(batch, home, NAME, *OTHERS)
    assert of_batch(batch, "messages") == tree(home / "messages")
    # The same files as a run into a directory leaves.
    publish(LocalStore(tmp_path / "native"), NAME)
    assert tree(tmp_path / "native" / "data").keys() == {name for name in tree(home / "data") if NAME in name}
    code, out, err = end(start("sync", batch.uri, home))
    assert (code, err) == (0, "")
    assert "0 datasets, 0 files" in out.splitlines()[-1]
    code, out, err = end(start("archived", batch.uri, NAME))
    assert (code, out) == (0, f"{NAME}: archived\n")
    assert shown(batch) == ["dataset-archived"]
    blob = batch.get(f"messages/dataset-archived/{NAME}")
    assert blob and blob.data == (home / "messages" / "dataset-synced" / NAME).read_bytes()
    assert end(start("archived", batch.uri, "ldfd01020"))[0] == 2


@BOTH
def test_calibrated_again_after_it_was_synced(batch: S3Store, home: Path) -> None:
    publish(batch, NAME, {**small_products(NAME), f"{NAME}_only1.fits": b"first"})
    assert bring(batch, home).exit_code == 0
    publish(batch, NAME)
    assert bring(batch, home).datasets == 1
    assert_home(batch, home)
    assert state(home).attempt == 2


@emulated("moto")
def test_a_name_beyond_the_first_thousand(s3_place: S3Place, batch: S3Store, home: Path) -> None:
    with s3_client(s3_place.endpoint) as client, ThreadPoolExecutor(8) as pool:
        folder = f"{s3_place.prefix}/messages/datasets-processed"  # names that are no datasets cost no more than that
        keys = [f"{folder}/before-{number:04}" for number in range(1001)]
        list(pool.map(lambda key: client.put_object(Bucket=s3_place.bucket, Key=key), keys))
    publish(batch, NAME)
    done = bring(batch, home)
    assert (done.datasets, done.exit_code) == (1, 0)
    assert_home(batch, home)


@pytest.mark.slow
@pytest.mark.parametrize("s3_place", s3_places("ministack"), indirect=True)
def test_more_datasets_than_one_listing_holds(s3_place: S3Place, batch: S3Store, home: Path) -> None:
    wanted = names(1200)
    for name in wanted:  # tiny trees, with manifests made by hand
        manifest = {"format": 1, "dataset": name, "attempt": 1, "run": "r", "reason": ""}
        body = json.dumps({**manifest, "products": [], "previews": []}).encode()
        batch.put(f"data/cos/{name}/manifest.json", body, Overwrite())
        body = json.dumps(Status(name, 1, "processed", "r").to_json()).encode()
        batch.put(f"messages/status/{name}.json", body, Overwrite())
        batch.put(f"messages/datasets-processed/{name}", b"", Overwrite())
    done = bring(batch, home, jobs=8)
    assert (done.datasets, done.failed, done.exit_code) == (1200, {}, 0)
    assert batch.names("messages/datasets-processed") == []
    assert batch.names("messages/dataset-synced") == sorted(wanted)
    assert sorted(path.name for path in (home / "data" / "cos").iterdir()) == sorted(wanted)


@emulated("moto")
def test_listings_cost_what_they_must(s3_place: S3Place, batch: S3Store, home: Path) -> None:
    for name in names(30):
        batch.put(f"messages/dataset-archived/{name}", b"", Overwrite())
    publish(batch, NAME)
    assert s3_place.endpoint
    with FaultyProxy(s3_place.endpoint) as proxy:
        done = bring(open_batch(s3_place.behind(proxy.endpoint)), home)
        assert done.datasets == 1
        asked = [request for request in proxy.requests if NAME not in request.path + request.query]
        assert len([r for r in asked if r.method == "GET"]) == 1  # the one listing
        assert len(proxy.requests) <= 12 + 20
        proxy.clear()
        bring(open_batch(s3_place.behind(proxy.endpoint)), home)
        assert len(proxy.requests) <= 3


# ---- killed, twice at once, stopped


def bring_in_child(uri: str, environment: dict[str, str], home: Path) -> None:
    """Be the process that is killed: as ``caldp sync``, without the seconds in which it only imports."""
    os.environ.clear()
    os.environ.update(environment)
    os._exit(sync(S3Store(uri), LocalStore(home), Ask(jobs=2), QuietWatch(sys.stderr)).exit_code)


@pytest.fixture
def child() -> Iterator[Callable[[S3Place, Path], multiprocessing.process.BaseProcess]]:
    """Start a process that can be killed; it is gone after the test."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["caldp.sync", "caldp.s3_store", "boto3", "s3transfer.manager", __name__])
    started: list[multiprocessing.process.BaseProcess] = []

    def start(place: S3Place, home: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=bring_in_child, args=(place.outputs, place.environment(), home))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


Child = Callable[[S3Place, Path], "multiprocessing.process.BaseProcess"]


@pytest.mark.slow
@BOTH
def test_killed_at_any_moment(s3_place: S3Place, batch: S3Store, home: Path, child: Child) -> None:
    wanted = names(4)

    def whole(place: Path) -> float:
        for name in wanted:
            publish(batch, name)
        process, started = child(s3_place, place), time.monotonic()
        process.join(_SECONDS)
        assert process.exitcode == 0
        return time.monotonic() - started

    whole(home / "first")  # the first one starts the server of the others
    seconds = whole(home / "second")
    random_ = random.Random(1)  # noqa: S311 - the same moments each time, as far as a clock can tell
    kills, brought, place = 0, 0, home / "killed"
    while kills < 12:
        if not batch.names("messages/datasets-processed"):  # all were brought: anew, into the same place
            brought += 1
            for name in wanted:
                publish(batch, name)
        process = child(s3_place, place)
        process.join(seconds * random_.uniform(0.1, 1.0))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        for name in wanted:
            assert_whole_or_absent(place, name)
            if state(batch, name).state == "synced":
                assert shown(place, name) == ["dataset-synced"]
    assert bring(batch, place).exit_code == 0
    assert_home(batch, place, *wanted)
    assert list((place / "data").rglob(".*")) == []


@pytest.mark.slow
@emulated("moto")
def test_killed_at_each_write_to_the_bucket(s3_place: S3Place, home: Path, child: Child) -> None:
    batch = open_batch(s3_place)
    assert s3_place.endpoint
    killed = []
    with FaultyProxy(s3_place.endpoint) as proxy:
        for number in range(1, 20):
            for when in ("before", "after"):
                publish(batch, NAME)
                proxy.clear()
                hold = proxy.hold(lambda request: True)
                process = child(s3_place.behind(proxy.endpoint), home)
                proxy.at_write(number, process.kill, when)
                hold.release()
                process.join(_SECONDS)
                if process.exitcode == -signal.SIGKILL:
                    killed.append((number, when))
                assert_whole_or_absent(home)
                assert bring(batch, home).exit_code == 0
                assert_home(batch, home)
            if not process.exitcode:
                break
    assert len(killed) >= 6  # the status, the new name, the old names: before and after each


@BOTH
def test_two_at_once_in_one_place(batch: S3Store, home: Path, start: Start) -> None:
    wanted = names(5)
    for name in wanted:
        publish(batch, name)
    two = [start("sync", batch.uri, home, "--json", "--jobs", 2) for _ in range(2)]
    ended = [end(process) for process in two]
    assert [(code, err) for code, _, err in ended] == [(0, ""), (0, "")]
    events = [json.loads(line) for _, out, _ in ended for line in out.splitlines()]
    brought = [event["dataset"] for event in events if event["event"] == "dataset" and event["state"] == "synced"]
    assert sorted(brought) == sorted(wanted)  # each once
    assert_home(batch, home, *wanted)


@BOTH
def test_two_at_once_in_two_places(batch: S3Store, home: Path, start: Start) -> None:
    wanted = names(4)
    for name in wanted:
        publish(batch, name)
    places = [home / "one", home / "two"]
    processes = [start("sync", batch.uri, place, "--jobs", 2) for place in places]
    assert [end(process)[0] for process in processes] == [0, 0]
    for name in wanted:
        assert (shown(batch, name), state(batch, name).state) == (["dataset-synced"], "synced")
        blob = batch.get(f"messages/dataset-synced/{name}")
        assert blob and blob.data.decode() == state(batch, name).message
        claimed = Path(blob.data.decode().splitlines()[0])
        assert claimed.is_file() and any(claimed.is_relative_to(place) for place in places)
        for place in places:
            assert_whole_or_absent(place, name)
            said = place / "messages" / "dataset-synced" / name
            assert not said.exists() or said.read_text().startswith(f"{place}/")


@emulated("moto")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped(s3_place: S3Place, batch: S3Store, home: Path, start: Start, signum: signal.Signals) -> None:
    publish(batch, NAME)
    assert s3_place.endpoint
    with FaultyProxy(s3_place.endpoint) as proxy:
        hold = proxy.hold(lambda request: request.path.endswith("_flt.fits"))
        process = start("sync", batch.uri, home, "--json", place=s3_place.behind(proxy.endpoint))
        assert hold.reached.wait(_SECONDS)
        process.send_signal(signum)
        time.sleep(0.3)
        hold.release()
        code, out, _ = end(process)
        assert code == 128 + signum
        assert json.loads(out.splitlines()[-1])["event"] == "finished"
    # What was as good as done when it heard of it may be done.
    assert state(batch).state in ("processed", "synced")
    assert_whole_or_absent(home)
    assert bring(batch, home).exit_code == 0
    assert_home(batch, home)


@pytest.mark.slow
@emulated("moto")
def test_stopped_while_the_network_is_silent(s3_place: S3Place, batch: S3Store, home: Path, start: Start) -> None:
    publish(batch, NAME)
    assert s3_place.endpoint
    with FaultyProxy(s3_place.endpoint) as proxy:
        hold = proxy.hold(lambda request: request.path.endswith("_flt.fits"))
        process = start("sync", batch.uri, home, place=s3_place.behind(proxy.endpoint))
        assert hold.reached.wait(_SECONDS)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert end(process)[0] == 130
        assert time.monotonic() - started < 20


@BOTH
def test_follow(batch: S3Store, home: Path, start: Start) -> None:
    publish(batch, OTHERS[0])
    process = start("sync", batch.uri, home, "--follow", "--interval", "0.3", "--json")
    assert process.stdout

    def until(name: str) -> None:
        assert process.stdout
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "dataset" and (event["dataset"], event["state"]) == (name, "synced"):
                return
        pytest.fail("it ended")

    until(OTHERS[0])
    publish(batch, NAME)
    until(NAME)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["datasets"] == 2
    assert_home(batch, home, NAME, OTHERS[0])


# ---- what is wrong


@BOTH
@pytest.mark.parametrize("damage", ["one byte", "missing", "no manifest"])
def test_objects_that_are_not_those_of_the_manifest(batch: S3Store, home: Path, start: Start, damage: str) -> None:
    for name in (NAME, OTHERS[0]):
        publish(batch, name)
    key = f"data/cos/{NAME}/" + ("manifest.json" if damage == "no manifest" else f"{NAME}_flt.fits")
    if damage == "one byte":
        flip(batch, key)
    else:
        batch.delete(key)
    code, out, err = end(start("sync", batch.uri, home))
    assert code == 26
    assert len(err.splitlines()) == 1
    assert NAME in err and key in err
    assert "1 dataset, " in out.splitlines()[-1] and "1 failed" in out.splitlines()[-1]
    assert (state(batch).state, shown(batch)) == ("processed", ["datasets-processed"])
    assert not (home / "data" / "cos" / NAME).exists()
    assert state(batch, OTHERS[0]).state == "synced"


@emulated()
def test_an_object_that_was_overwritten_in_a_bucket_with_versions(
    s3_place: S3Place, home: Path, start: Start, tmp_path: Path
) -> None:
    assert s3_place.endpoint
    bucket = make_bucket(s3_place.endpoint, versioned=True)
    environment = s3_environment(s3_place.endpoint, {})
    batch = S3Store(f"s3://{bucket}/batch", environment)
    record = publish(batch, NAME)
    assert all(entry["version"] for entry in (*record["products"], *record["previews"]))
    good = of_batch(batch)
    flip(batch, f"data/cos/{NAME}/{NAME}_flt.fits")
    batch.put(f"data/cos/{NAME}/{NAME}_raw.fits", b"something else, and longer or shorter", Overwrite())
    batch.delete(f"data/cos/{NAME}/previews/{NAME}_flt.png")
    assert end(start("sync", batch.uri, home))[0] == 0
    assert tree(home / "data") == good
    # A copy of that batch in another bucket has versions of its own, and no others.
    copy = S3Store(f"s3://{make_bucket(s3_place.endpoint)}/copy", environment)
    for name, data in good.items():
        copy.put(f"data/{name}", data + b"", Overwrite())
    copy.put(f"messages/datasets-processed/{NAME}", b"", Overwrite())
    with s3_client(s3_place.endpoint) as client:  # its tag is another one, too: that of a large object in two parts
        upload = {"Bucket": copy.bucket, "Key": f"copy/data/cos/{NAME}/{NAME}_flt.fits"}
        parts = client.create_multipart_upload(**upload)
        done = client.upload_part(
            **upload, UploadId=parts["UploadId"], PartNumber=1, Body=good[f"cos/{NAME}/{NAME}_flt.fits"]
        )
        client.complete_multipart_upload(
            **upload, UploadId=parts["UploadId"], MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": done["ETag"]}]}
        )
    assert end(start("sync", copy.uri, tmp_path / "copied"))[0] == 0
    assert tree(tmp_path / "copied" / "data") == good
    assert state(copy).state == "synced"


@emulated("moto")
def test_bytes_that_are_damaged_on_their_way(s3_place: S3Place, batch: S3Store, home: Path) -> None:
    publish(batch, NAME)
    assert s3_place.endpoint
    with FaultyProxy(s3_place.endpoint) as proxy:
        proxy.corrupt_next("GET", "_flt.fits")
        assert bring(open_batch(s3_place.behind(proxy.endpoint)), home).exit_code == 0
        assert "corrupted" in {request.fault for request in proxy.requests}
    assert_home(batch, home)


@emulated("moto")
def test_requests_that_fail(s3_place: S3Place, batch: S3Store, home: Path, no_waiting: None) -> None:
    wanted = names(5)
    for name in wanted:
        publish(batch, name)
    assert s3_place.endpoint
    with FaultyProxy(s3_place.endpoint, failure_rate=0.1) as proxy:
        assert bring(open_batch(s3_place.behind(proxy.endpoint)), home).exit_code == 0
        assert any(request.fault for request in proxy.requests)
    assert_home(batch, home, *wanted)


@MOTO
def test_no_such_bucket_and_nothing_there(s3_place: S3Place, batch: S3Store, home: Path, start: Start) -> None:
    code, _, err = end(start("sync", "s3://no-such-bucket-of-ours/x", home))
    assert (code, len(err.splitlines())) == (26, 1)
    assert "there is no such bucket" in err
    code, _, err = end(start("sync", batch.uri, home))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is no batch" in err


# ---- the disk


@MOTO
def test_a_file_that_the_disk_does_not_take(batch: S3Store, home: Path, start: Start) -> None:
    publish(batch, NAME, small_products(NAME, size=1200))
    publish(batch, OTHERS[0], {"small.fits": b"x"})

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    code, _, err = end(start("sync", batch.uri, home, preexec_fn=limit))
    assert code == 29
    assert len(err.splitlines()) == 1 and NAME in err
    assert state(batch).state == "processed"
    assert state(batch, OTHERS[0]).state == "synced"
    assert_whole_or_absent(home)
    assert bring(batch, home).exit_code == 0
    assert_home(batch, home, NAME, OTHERS[0])


@MOTO
def test_a_full_disk(batch: S3Store, tmp_path: Path, start: Start) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        publish(batch, NAME, small_products(NAME, size=600))
        code, _, err = end(start("sync", batch.uri, disk))
        assert code == 29
        assert "no space left" in err and NAME in err and len(err.splitlines()) == 1
        assert state(batch).state == "processed"
        assert_whole_or_absent(disk)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert end(start("sync", batch.uri, disk))[0] == 0
        assert_home(batch, disk)


@BOTH
def test_many_acknowledge_at_once(batch: S3Store, home: Path) -> None:
    publish(batch, NAME)
    assert bring(batch, home).exit_code == 0
    lines = (home / "messages" / "dataset-synced" / NAME).read_bytes()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: acknowledge(batch, NAME), range(8)))
    assert {status.state for status, _ in answers} == {"archived"}
    blob = batch.get(f"messages/dataset-archived/{NAME}")
    assert blob and blob.data == lines
    assert shown(batch) == ["dataset-archived"]
    assert bring(batch, home).exit_code == 0
    assert shown(home) == ["dataset-archived"]
