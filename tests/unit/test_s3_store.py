"""What only the store in a bucket has: checks of transfers, identical objects, answers that are not about objects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caldp.errors import BusyError, S3DownloadError, S3DownloadRefusedError, S3UploadError
from caldp.s3_store import S3Store
from caldp.store import Copy, Create, Entry, Overwrite
from tests.fakes.proxy import FaultyProxy
from tests.s3 import make_bucket, s3_environment


@pytest.fixture(autouse=True)
def no_network(loopback_only: None) -> None:
    """Let these tests reach the emulators."""


@pytest.fixture
def proxy(ministack_endpoint: str) -> Iterator[FaultyProxy]:
    """A server that enforces what S3 does, and what can go wrong on the way to it."""
    with FaultyProxy(ministack_endpoint) as proxy:
        yield proxy


@pytest.fixture
def aws(proxy: FaultyProxy, no_waiting: None) -> dict[str, str]:
    """Settings of a client."""
    settings = {k: v for k, v in s3_environment(proxy.endpoint).items() if k.startswith("AWS_")}
    return {**settings, "AWS_MAX_ATTEMPTS": "3"}


@pytest.fixture
def store(ministack_endpoint: str, aws: dict[str, str]) -> S3Store:
    """An empty store."""
    return S3Store(f"s3://{make_bucket(ministack_endpoint)}/a/prefix", aws)


def test_a_flipped_bit_on_the_way_down_is_fetched_again(store: S3Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    contents = {name: os.urandom(1000) for name in "abc"}
    for name, content in contents.items():
        store.put(name, content, Create())
    proxy.clear()
    proxy.corrupt_next("GET", "/b")
    store.download(Copy(name, tmp_path / name) for name in contents)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert [r.fault for r in proxy.requests if r.method == "GET" and r.path.endswith("/b")] == ["corrupted", ""]
    assert len([r for r in proxy.requests if r.method == "GET" and r.path.endswith("/a")]) == 1
    proxy.corrupt_next("GET", "/c")
    assert (store.get("c") or pytest.fail("not there")).data == contents["c"]


def test_bits_that_flip_every_time_are_an_error(store: S3Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    store.put("a", os.urandom(1000), Create())
    for _ in range(3):
        proxy.corrupt_next("GET", "/a")
    with pytest.raises(S3DownloadError, match="/a/prefix/a.*checksum"):
        store.download([Copy("a", tmp_path / "a")])


def test_a_large_object_of_another_content_is_noticed(store: S3Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    store.put("large", os.urandom(20_000_000), Create())
    entry = next(iter(store.walk("")))
    copy = Copy("large", tmp_path / "back", size=entry.size, etag=entry.etag)
    proxy.corrupt_next("GET", "/large")
    store.download([copy])  # boto3 compares no parts
    with pytest.raises(S3DownloadError, match="large"):
        store.verify([copy])
    store.download([copy])
    store.verify([copy])


def test_what_is_there_already_is_not_sent_again(store: S3Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    def publish(contents: dict[str, bytes]) -> set[str]:
        staging = store.staging("data/x", "run", tmp_path)
        for name, content in contents.items():
            (staging / name).write_bytes(content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items() if name != "unknown"}
        proxy.clear()
        store.publish(
            staging,
            "data/x",
            lambda: set(contents),
            lambda told: ("seal", b"".join(sorted(map(str.encode, told)))),
            sums=sums,
        )
        return {request.path.rpartition("/")[2] for request in proxy.requests if request.method == "PUT"}

    first = {"a": b"one", "b": b"two", "unknown": b"three"}
    assert publish(first) == {*first, "seal"}
    assert publish(first) == {"unknown", "seal"}
    assert publish({**first, "b": b"owt"}) == {"b", "unknown", "seal"}
    # Of the same size, but not ours.
    store.put("data/x/a", b"eno", Overwrite())
    assert publish(first) == {"a", "b", "unknown", "seal"}
    assert (store.get("data/x/a") or pytest.fail("not there")).data == b"one"


def test_a_put_whose_answer_is_lost_is_ours(store: S3Store, proxy: FaultyProxy) -> None:
    lost = 0
    for number in range(40):
        proxy.clear()
        proxy.failure_rate = 0.5
        try:
            tag = store.put(f"key{number}", b"x", Create())
        except S3UploadError:
            continue
        finally:
            proxy.failure_rate = 0
        assert (store.get(f"key{number}") or pytest.fail("not there")).etag == tag
        lost += any(request.fault == "lost" for request in proxy.requests)
    assert lost, "no answer was lost"


def test_the_clock_is_the_server_s(store: S3Store) -> None:
    before = store.clock()
    store._offset -= (offset := before - before.replace(year=before.year - 1))
    assert store.clock() <= before - offset * 0.9
    store.get("anything")
    assert (store.clock() - before).total_seconds() > -2  # the server says whole seconds


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({}, "s3://no-such-bucket-at-all/x", "no such bucket"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "", "no AWS credentials"),
        ({"AWS_PROFILE": "nonesuch"}, "", "no such AWS profile"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "", "AWS_ENDPOINT_URL"),
    ],
)
def test_errors_are_clear(
    store: S3Store, aws: dict[str, str], change: dict[str, str], place: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = {name: value for name, value in {**aws, **change}.items() if value}
    other = S3Store(place or store.uri, settings)
    with pytest.raises(S3DownloadError, match=f"s3://.*{words}") as caught:
        other.get("messages/status/x.json")
    assert caught.value.remedy
    assert isinstance(caught.value, S3DownloadRefusedError) == ("ENDPOINT" not in words)
    with pytest.raises((S3UploadError, S3DownloadRefusedError), match=words):
        other.put("messages/status/x.json", b"", Create())


# ---- two runs, of which one was taken for dead


def staged(store: S3Store, scratch: Path, **contents: str) -> Path:
    """Stage a tree."""
    scratch.mkdir(parents=True)
    folder = store.staging("data/x", "run", scratch)
    for name, content in contents.items():
        (folder / name).write_text(content)
    return folder


def found(store: S3Store) -> dict[str, str]:
    """Return what the objects of the tree hold."""
    keys = [entry.key for entry in store.walk("data/x")]
    return {key.removeprefix("data/x/"): (store.get(key) or pytest.fail(key)).data.decode() for key in keys}


def sealed(content: str) -> Callable[[object], tuple[str, bytes]]:
    """Make a seal."""
    return lambda _: ("seal", content.encode())


def test_a_run_that_slept_does_not_replace_what_its_successor_left_as_it_was(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor's object is the very one that the sleeper saw: no condition tells."""
    sums = {"a": hashlib.sha256(b"good").hexdigest()}
    store.publish(staged(store, tmp_path / "0", a="good"), "data/x", set, sealed("0"), sums=sums)
    asked: list[int] = []

    def ours() -> set[str]:
        asked.append(1)
        if len(asked) > 1:
            raise BusyError("taken over")
        return set()

    slept = iter([0.0])  # when it asked; the next look at the clock is much later
    monkeypatch.setattr("caldp.s3_store._wakeful_clock", lambda: next(slept, 1000.0))
    with pytest.raises(BusyError, match="taken over"):
        store.publish(staged(store, tmp_path / "1", a="sleeper"), "data/x", ours, sealed("1"))
    assert found(store) == {"a": "good", "seal": "0"}


def test_the_owner_replaces_the_seal_of_a_run_that_lost_the_dataset(store: S3Store, tmp_path: Path) -> None:
    def sealing(_: object) -> tuple[str, bytes]:
        store.put("data/x/seal", b"of the other run", Create())
        return "seal", b"of the owner"

    store.publish(staged(store, tmp_path / "0", a="x"), "data/x", set, sealing)
    assert found(store) == {"a": "x", "seal": "of the owner"}


def test_what_was_replaced_is_no_leftover(store: S3Store, tmp_path: Path) -> None:
    store.put("data/x/old", b"of an earlier run", Create())
    store.put("data/x/other", b"of an earlier run", Create())

    def sealing(_: object) -> tuple[str, bytes]:
        store.put("data/x/old", b"of a successor", Overwrite())
        return "seal", b"1"

    store.publish(staged(store, tmp_path / "0", a="x"), "data/x", lambda: {"old", "other"}, sealing)
    assert found(store) == {"a": "x", "seal": "1", "old": "of a successor"}


def test_somebody_who_writes_all_the_time_is_named(store: S3Store, tmp_path: Path) -> None:
    walk, number = store.walk, iter(range(1000))

    def and_then_written(prefix: str) -> list[Entry]:
        store.put("data/x/a", f"{next(number)}".encode(), Overwrite())
        return list(walk(prefix))

    store.walk = and_then_written  # type: ignore[method-assign,assignment]
    with pytest.raises(BusyError, match="data/x/a is replaced"):
        store.publish(staged(store, tmp_path / "0", a="x"), "data/x", set, sealed("1"))
