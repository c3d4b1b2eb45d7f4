"""The emulators of S3 and the proxy: that they do what other tests build on, and where they are not S3.

Where the emulators differ, the test says which of them does what S3 does, so that a change of theirs is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError, FlexibleChecksumError, HTTPClientError

from tests.fakes.proxy import FaultyProxy, Request
from tests.fakes.s3 import start_ministack, start_moto
from tests.s3 import REPOSITORY, S3Place, make_bucket, s3_client, s3_environment, s3_places

MEGABYTE = 1 << 20

EMULATORS = ("moto", "ministack")


@pytest.fixture(autouse=True)
def no_network(loopback_only: None) -> None:
    """Let these tests reach this machine only."""


@pytest.fixture(params=EMULATORS)
def emulator(request: pytest.FixtureRequest) -> str:
    """The address of each emulator."""
    endpoint: str = request.getfixturevalue(f"{request.param}_endpoint")
    return endpoint


class Bucket:
    """A bucket, and a client that tries once."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name

    def __getattr__(self, operation: str) -> Any:
        return lambda *key, **arguments: getattr(self.client, operation)(
            Bucket=self.name, **({"Key": key[0]} if key else {}), **arguments
        )

    def read(self, key: str, **arguments: Any) -> bytes:
        content: bytes = self.get_object(key, **arguments)["Body"].read()
        return content

    def multipart(self, key: str, **condition: str) -> Any:
        """Upload in two parts with checksums."""
        upload = self.create_multipart_upload(key, ChecksumAlgorithm="SHA256")["UploadId"]
        parts = []
        for number, body in ((1, bytes(5 * MEGABYTE)), (2, b"tail")):
            facts = {"PartNumber": number, "ChecksumSHA256": sha256(body)}
            part = self.upload_part(key, UploadId=upload, Body=body, **facts)
            parts.append({**facts, "ETag": part["ETag"]})
        return self.complete_multipart_upload(key, UploadId=upload, MultipartUpload={"Parts": parts}, **condition)


@pytest.fixture
def bucket(emulator: str) -> Iterator[Bucket]:
    with s3_client(emulator, retries={"total_max_attempts": 1}, max_pool_connections=16) as client:
        yield Bucket(client, make_bucket(emulator))


@pytest.fixture
def strict(ministack_endpoint: str) -> Iterator[Bucket]:
    """A bucket of the emulator that checks checksums."""
    with s3_client(ministack_endpoint, retries={"total_max_attempts": 1}) as client:
        yield Bucket(client, make_bucket(ministack_endpoint))


@pytest.fixture
def lenient(moto_endpoint: str) -> Iterator[Bucket]:
    """A bucket of the emulator that does not."""
    with s3_client(moto_endpoint, retries={"total_max_attempts": 1}) as client:
        yield Bucket(client, make_bucket(moto_endpoint))


@pytest.fixture
def proxy(ministack_endpoint: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(ministack_endpoint) as running:
        yield running


@pytest.fixture
def behind(proxy: FaultyProxy, ministack_endpoint: str) -> Iterator[Bucket]:
    """A bucket behind the proxy, with a client that tries once."""
    with s3_client(proxy.endpoint, retries={"total_max_attempts": 1}) as client:
        yield Bucket(client, make_bucket(ministack_endpoint))


def sha256(content: bytes) -> str:
    """Checksum as S3 wants it."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def refused(call: Any, *args: Any, **kwargs: Any) -> tuple[int, str]:
    """Return status and code of the refusal."""
    with pytest.raises(ClientError) as caught:
        call(*args, **kwargs)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


# --- servers ----------------------------------------------------------------------------------------------------


def answers(endpoint: str) -> bool:
    """Say whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), 10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_server_ends_when_it_is_closed() -> None:
    with start_moto() as server:
        assert answers(server.endpoint)
    assert not answers(server.endpoint)


def test_a_server_ends_with_those_who_started_it(tmp_path: Path) -> None:
    """Also when they are killed."""
    code = "from tests.fakes.s3 import start_moto; s = start_moto(); print(s.endpoint, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        endpoint = process.stdout.readline().strip()
        assert answers(endpoint)
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while answers(endpoint):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_cannot_start(tmp_path: Path) -> None:
    program = tmp_path / "ministack"
    program.write_text("#!/bin/sh\necho it is broken\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="ministack did not start: it is broken"):
        start_ministack(program)


# --- both emulators ---------------------------------------------------------------------------------------------


def test_nothing_of_the_developer_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_PROFILE",
        "AWS_CA_BUNDLE",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL_S3",
        "HTTPS_PROXY",
        "http_proxy",
    ):
        monkeypatch.setenv(name, "the developer's")
    environment = s3_environment("http://127.0.0.1:1")
    assert environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert "the developer's" not in environment.values()
    assert s3_environment(None, {"AWS_PROFILE": "mine"}) == {"AWS_PROFILE": "mine"}


def test_a_write_only_if_nothing_is_there(bucket: Bucket) -> None:
    bucket.put_object("key", Body=b"first", IfNoneMatch="*")
    assert refused(bucket.put_object, "key", Body=b"second", IfNoneMatch="*") == (412, "PreconditionFailed")
    assert bucket.read("key") == b"first"


def test_a_write_only_if_it_is_unchanged(bucket: Bucket) -> None:
    first = bucket.put_object("key", Body=b"first")["ETag"]
    bucket.put_object("key", Body=b"second", IfMatch=first)
    assert refused(bucket.put_object, "key", Body=b"third", IfMatch=first) == (412, "PreconditionFailed")
    assert bucket.read("key") == b"second"
    assert refused(bucket.put_object, "nothing", Body=b"", IfMatch=first) == (404, "NoSuchKey")


def test_one_of_many_writers_wins(bucket: Bucket) -> None:
    first = bucket.put_object("changed", Body=b"first")["ETag"]
    together = threading.Barrier(8)

    def write(number: int) -> list[bool]:
        won = []
        for key, condition in (("new", {"IfNoneMatch": "*"}), ("changed", {"IfMatch": first})):
            together.wait()
            try:
                bucket.put_object(key, Body=b"writer %d" % number, **condition)
                won.append(True)
            except ClientError:
                won.append(False)
        return won

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(write, range(8)))
    assert [sum(won) for won in zip(*results, strict=True)] == [1, 1]


def test_a_multipart_upload_only_if_nothing_is_there(bucket: Bucket) -> None:
    bucket.multipart("key", IfNoneMatch="*")
    assert bucket.head_object("key")["ContentLength"] == 5 * MEGABYTE + 4
    assert refused(bucket.multipart, "key", IfNoneMatch="*") == (412, "PreconditionFailed")


def test_a_deletion_only_if_it_is_unchanged(bucket: Bucket) -> None:
    tag = bucket.put_object("key", Body=b"1")["ETag"]
    assert refused(bucket.delete_object, "key", IfMatch='"other"') == (412, "PreconditionFailed")
    bucket.delete_object("key", IfMatch=tag)
    assert refused(bucket.delete_object, "key", IfMatch=tag) == (404, "NoSuchKey")
    bucket.delete_object("key")  # of what is not there is no error


def test_lists_of_more_than_a_thousand(bucket: Bucket, emulator: str) -> None:
    names = [f"many/{n:04}" for n in range(1001)]
    with closing(http.client.HTTPConnection(emulator.removeprefix("http://"))) as connection:
        for name in names:  # without boto3, which would take four times as long
            connection.request("PUT", f"/{bucket.name}/{name}")
            assert connection.getresponse().read() == b""
    page = bucket.list_objects_v2(Prefix="many/")
    assert (page["KeyCount"], page["IsTruncated"]) == (1000, True)
    rest = bucket.list_objects_v2(Prefix="many/", ContinuationToken=page["NextContinuationToken"])
    assert [item["Key"] for item in page["Contents"] + rest["Contents"]] == names
    assert not rest["IsTruncated"]
    folders = bucket.list_objects_v2(Delimiter="/")
    assert [item["Prefix"] for item in folders["CommonPrefixes"]] == ["many/"]
    gone = bucket.delete_objects(Delete={"Objects": [{"Key": name} for name in names[:1000]], "Quiet": True})
    assert "Errors" not in gone
    assert bucket.list_objects_v2(Prefix="many/")["KeyCount"] == 1


def test_versions(emulator: str) -> None:
    with s3_client(emulator) as client:
        bucket = Bucket(client, make_bucket(emulator, versioned=True))
        versions = [bucket.put_object("key", Body=content)["VersionId"] for content in (b"1", b"2")]
        assert bucket.get_object("key")["VersionId"] == versions[1]
        assert bucket.read("key", VersionId=versions[0]) == b"1"
        assert bucket.delete_object("key")["DeleteMarker"]
        assert refused(bucket.get_object, "key") == (404, "NoSuchKey")
        listed = bucket.list_object_versions()
        assert {item["VersionId"] for item in listed["Versions"]} == set(versions)
        assert len(listed["DeleteMarkers"]) == 1
        bucket.put_object("key", Body=b"3", IfNoneMatch="*")  # a deletion counts as nothing there
        plain = Bucket(client, make_bucket(emulator))
        assert "VersionId" not in plain.put_object("key", Body=b"")


def test_parts_of_objects(bucket: Bucket) -> None:
    tag = bucket.put_object("key", Body=bytes(range(100)))["ETag"]
    part = bucket.get_object("key", Range="bytes=10-19", IfMatch=tag)
    assert (part["ResponseMetadata"]["HTTPStatusCode"], part["ContentRange"]) == (206, "bytes 10-19/100")
    assert part["Body"].read() == bytes(range(10, 20))
    assert bucket.read("key", Range="bytes=90-") == bytes(range(90, 100))
    assert refused(bucket.get_object, "key", Range="bytes=100-") == (416, "InvalidRange")
    assert refused(bucket.get_object, "key", Range="bytes=10-19", IfMatch='"other"') == (412, "PreconditionFailed")


def test_what_is_kept_with_an_object(bucket: Bucket) -> None:
    facts = {"Metadata": {"attempt": "3", "run-id": "Ab c"}, "ContentType": "application/fits"}
    bucket.put_object("a b/ä+%41", Body=b"1", ChecksumAlgorithm="SHA256", **facts)
    head = bucket.head_object("a b/ä+%41", ChecksumMode="ENABLED")
    assert {name: head[name] for name in facts} == facts
    assert head["ChecksumSHA256"] == sha256(b"1")
    assert head["ETag"] == f'"{hashlib.md5(b"1", usedforsecurity=False).hexdigest()}"'
    assert [item["Key"] for item in bucket.list_objects_v2()["Contents"]] == ["a b/ä+%41"]


def test_what_is_not_there(bucket: Bucket) -> None:
    assert refused(bucket.get_object, "key") == (404, "NoSuchKey")
    assert refused(bucket.head_object, "key") == (404, "404")
    bucket.name = "not-there"
    assert refused(bucket.get_object, "key") == (404, "NoSuchBucket")
    assert refused(bucket.put_object, "key") == (404, "NoSuchBucket")
    assert refused(bucket.list_objects_v2) == (404, "NoSuchBucket")


# --- where they differ ------------------------------------------------------------------------------------------


def test_wrong_checksums_are_refused(strict: Bucket) -> None:
    assert refused(strict.put_object, "key", Body=b"1", ChecksumSHA256=sha256(b"2")) == (400, "BadDigest")
    assert refused(strict.head_object, "key") == (404, "404")
    upload = strict.create_multipart_upload("key", ChecksumAlgorithm="SHA256")["UploadId"]
    part = {"PartNumber": 1, "ChecksumSHA256": sha256(b"2")}
    assert refused(strict.upload_part, "key", UploadId=upload, Body=b"1", **part) == (400, "BadDigest")
    part["ETag"] = strict.upload_part("key", UploadId=upload, Body=b"1", PartNumber=1)["ETag"]
    whole = {"MultipartUpload": {"Parts": [part]}}
    assert refused(strict.complete_multipart_upload, "key", UploadId=upload, **whole) == (400, "InvalidPart")


def test_conditions_of_multipart_uploads(strict: Bucket) -> None:
    assert refused(strict.multipart, "key", IfMatch='"other"') == (404, "NoSuchKey")
    tag = strict.multipart("key")["ETag"]
    assert refused(strict.multipart, "key", IfMatch='"other"') == (412, "PreconditionFailed")
    strict.multipart("key", IfMatch=tag)


def test_checksums_of_multipart_uploads_are_told(strict: Bucket) -> None:
    done = strict.multipart("key")
    digests = [hashlib.sha256(body).digest() for body in (bytes(5 * MEGABYTE), b"tail")]
    assert done["ChecksumSHA256"] == f"{sha256(b''.join(digests))}-2"
    assert strict.head_object("key", ChecksumMode="ENABLED")["ChecksumType"] == "COMPOSITE"


def test_moto_accepts_wrong_checksums(lenient: Bucket) -> None:
    """It is not S3 in this; should it change, more tests can run on it."""
    lenient.put_object("key", Body=b"1", ChecksumSHA256=sha256(b"2"))
    assert lenient.read("key") == b"1"
    # Nor does it say what the checksum is of when it was an upload of parts.
    lenient.multipart("key")
    assert "ChecksumType" not in lenient.head_object("key", ChecksumMode="ENABLED")


def test_moto_ignores_if_match_of_multipart_uploads(lenient: Bucket) -> None:
    lenient.multipart("key", IfMatch='"other"')
    assert lenient.head_object("key")["ContentLength"] == 5 * MEGABYTE + 4


def test_moto_ignores_conditions_of_deletions_of_many(lenient: Bucket, strict: Bucket) -> None:
    both = {"Delete": {"Objects": [{"Key": "key", "ETag": '"other"'}]}}
    lenient.put_object("key")
    assert "Errors" not in lenient.delete_objects(**both)
    strict.put_object("key")
    assert [e["Code"] for e in strict.delete_objects(**both)["Errors"]] == ["PreconditionFailed"]


def test_ministack_accepts_small_parts(strict: Bucket, lenient: Bucket) -> None:
    """All parts but the last have 5 megabytes at least, says S3, and moto."""

    def upload(bucket: Bucket) -> None:
        number = bucket.create_multipart_upload("key")["UploadId"]
        tags = [bucket.upload_part("key", UploadId=number, PartNumber=n, Body=b"small")["ETag"] for n in (1, 2)]
        parts = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]
        bucket.complete_multipart_upload("key", UploadId=number, MultipartUpload={"Parts": parts})

    upload(strict)
    assert strict.read("key") == b"smallsmall"
    assert refused(upload, lenient) == (400, "EntityTooSmall")


def test_the_same_uploads_can_be_completed_again(bucket: Bucket) -> None:
    """As on S3: after a lost answer the second try succeeds."""
    upload = bucket.create_multipart_upload("key")["UploadId"]
    tag = bucket.upload_part("key", UploadId=upload, PartNumber=1, Body=b"1")["ETag"]
    whole = {"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": tag}]}}
    tags = {bucket.complete_multipart_upload("key", UploadId=upload, **whole)["ETag"] for _ in range(2)}
    assert len(tags) == 1
    assert refused(bucket.abort_multipart_upload, "key", UploadId=upload) == (404, "NoSuchUpload")


@pytest.mark.parametrize("s3_place", s3_places(*EMULATORS), indirect=True)
def test_places(s3_place: S3Place) -> None:
    assert s3_place.outputs == f"s3://{s3_place.bucket}/{s3_place.prefix}"
    with s3_client(s3_place.endpoint) as client:
        assert client.list_objects_v2(Bucket=s3_place.bucket, Prefix=s3_place.prefix)["KeyCount"] == 0
        client.put_object(Bucket=s3_place.bucket, Key=f"{s3_place.prefix}/key", Body=b"1")


# --- the proxy --------------------------------------------------------------------------------------------------


@pytest.fixture(params=EMULATORS)
def through(request: pytest.FixtureRequest) -> Iterator[tuple[FaultyProxy, Bucket]]:
    """A proxy in front of each emulator, and a bucket behind it."""
    endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    with FaultyProxy(endpoint) as proxy, s3_client(proxy.endpoint, retries={"total_max_attempts": 1}) as client:
        yield proxy, Bucket(client, make_bucket(endpoint))


def test_a_proxy_changes_nothing(through: tuple[FaultyProxy, Bucket]) -> None:
    proxy, bucket = through
    bucket.put_object("a b/ä", Body=b"content", ChecksumAlgorithm="SHA256", Metadata={"a": "b"})
    assert bucket.read("a b/ä", ChecksumMode="ENABLED") == b"content"
    assert bucket.read("a b/ä", Range="bytes=1-2") == b"on"
    assert bucket.head_object("a b/ä")["Metadata"] == {"a": "b"}
    assert [item["Key"] for item in bucket.list_objects_v2(Prefix="a b")["Contents"]] == ["a b/ä"]
    assert refused(bucket.put_object, "a b/ä", IfNoneMatch="*") == (412, "PreconditionFailed")
    bucket.delete_object("a b/ä")
    assert [(r.method, r.status, r.is_write) for r in proxy.requests] == [
        ("PUT", 200, True),
        ("GET", 200, False),
        ("GET", 206, False),
        ("HEAD", 200, False),
        ("GET", 200, False),
        ("PUT", 412, True),
        ("DELETE", 204, True),
    ]
    put, get = proxy.requests[:2]
    assert (put.path, put.query, put.bytes_in) == (f"/{bucket.name}/a b/ä", "", 7)
    assert (get.bytes_in, get.bytes_out) == (0, 7)
    assert put.headers["x-amz-checksum-sha256"] == sha256(b"content")
    assert "prefix=a%20b" in proxy.requests[4].query
    assert (proxy.count(), proxy.count("GET")) == (7, 3)
    proxy.clear()
    assert proxy.count() == 0


def test_large_files_through_a_proxy(through: tuple[FaultyProxy, Bucket], tmp_path: Path) -> None:
    proxy, bucket = through
    content = bytes(range(256)) * (20 * MEGABYTE // 256)
    (tmp_path / "up").write_bytes(content)
    config = TransferConfig(multipart_threshold=8 * MEGABYTE, multipart_chunksize=8 * MEGABYTE)
    extra = {"ChecksumAlgorithm": "SHA256"}
    bucket.client.upload_file(str(tmp_path / "up"), bucket.name, "large", ExtraArgs=extra, Config=config)
    assert (proxy.count("POST"), proxy.count("PUT")) == (2, 3)
    assert sum(r.bytes_in for r in proxy.requests if r.method == "PUT") == len(content)
    bucket.client.download_file(bucket.name, "large", str(tmp_path / "down"), Config=config)
    assert (tmp_path / "down").read_bytes() == content
    assert sum(r.bytes_out for r in proxy.requests if r.method == "GET") == len(content)


def test_chunks_go_through_a_proxy_byte_for_byte() -> None:
    """What a client sends over https, where checksums come after the data, and what no emulator answers."""
    body = b"6;chunk-signature=ab\r\nabcdef\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    chunked = b"5\r\n" + body[:5] + b"\r\n%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n"
    head = b"PUT /b/k?x HTTP/1.1\r\nHost: Some.Host\r\nx-LOWER:  a\r\nContent-Encoding: aws-chunked\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        heard: list[bytes] = []

        def serve() -> None:
            for _ in range(3):
                connection, _ = server.accept()
                with connection:
                    text = b""
                    while not text.endswith((b"0\r\n\r\n", b"==\r\n\r\n")):
                        text += connection.recv(1 << 16)
                    heard.append(text)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        with (
            FaultyProxy(f"http://127.0.0.1:{port}") as proxy,
            socket.create_connection(proxy._server.server_address, 10) as client,
            client.makefile("rb") as answers,
        ):
            length = b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
            client.sendall(head + length)
            assert answers.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            assert answers.read(len(answer)) == answer
            transfer = head + b"Transfer-Encoding: chunked\r\n\r\n"
            client.sendall(transfer + chunked)
            assert answers.read(len(answer)) == answer
            proxy.corrupt_next("PUT", "/b/")
            client.sendall(transfer + chunked)
            assert answers.read(len(answer)) == answer
        thread.join()
    plain = head + length.replace(b"Expect: 100-continue\r\n", b"") + body
    assert [text.replace(b"Connection: close\r\n", b"") for text in heard] == [
        plain,
        transfer + chunked,
        transfer + chunked.replace(b"abcdef", b"abceef"),
    ]


def test_a_corrupted_upload_is_refused(behind: Bucket, proxy: FaultyProxy) -> None:
    proxy.corrupt_next("PUT", "/key")
    behind.put_object("other", Body=b"content")
    status, code = refused(behind.put_object, "key", Body=b"content", ChecksumAlgorithm="SHA256")
    assert (status, code) == (400, "BadDigest")
    assert proxy.requests[-1].fault == "corrupted"
    behind.put_object("key", Body=b"content", ChecksumAlgorithm="SHA256")
    assert behind.read("key") == b"content"


def test_a_corrupted_download_is_noticed(behind: Bucket, proxy: FaultyProxy) -> None:
    behind.put_object("key", Body=b"content", ChecksumAlgorithm="SHA256")
    proxy.corrupt_next("GET", "/key")
    with pytest.raises(FlexibleChecksumError):
        behind.read("key", ChecksumMode="ENABLED")
    assert behind.read("key", ChecksumMode="ENABLED") == b"content"
    # Nobody notices it in a part of an object: there is no checksum of parts.
    proxy.corrupt_next("GET", "/key")
    assert behind.read("key", ChecksumMode="ENABLED", Range="bytes=0-2") != b"con"


def test_faults_are_survived_by_trying_again(proxy: FaultyProxy, ministack_endpoint: str, no_waiting: None) -> None:
    name = make_bucket(ministack_endpoint)
    proxy.failure_rate = 0.3
    with s3_client(proxy.endpoint, retries={"total_max_attempts": 12, "mode": "standard"}) as client:
        for n in range(25):
            client.put_object(Bucket=name, Key=f"{n}", Body=b"%d" % n)
            content = b""
            while content != b"%d" % n:
                try:
                    content = client.get_object(Bucket=name, Key=f"{n}")["Body"].read()
                except HTTPClientError:  # cut off after the head, where botocore does not try again
                    assert proxy.requests[-1].fault == "cut"
        met = {r.fault for r in proxy.requests}
        proxy.failure_rate = 0
        assert client.list_objects_v2(Bucket=name)["KeyCount"] == 25
    assert met == {"", "slow down", "internal error", "lost", "cut"}


@pytest.mark.parametrize(("fault", "there"), [("slow down", False), ("internal error", False), ("lost", True)])
def test_what_faults_leave(
    behind: Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: str, there: bool
) -> None:
    proxy.failure_rate = 1
    monkeypatch.setattr(proxy._random, "choice", lambda among: fault)
    with pytest.raises((ClientError, HTTPClientError)):
        behind.put_object("key", Body=b"content")
    proxy.failure_rate = 0
    assert ("Contents" in behind.list_objects_v2()) is there


@pytest.mark.parametrize(("when", "there"), [("before", ["1"]), ("after", ["1", "2"])])
def test_something_happens_at_a_write(behind: Bucket, proxy: FaultyProxy, when: Any, there: list[str]) -> None:
    behind.put_object("0")
    behind.delete_object("0")
    proxy.clear()
    seen: list[list[str]] = []

    def look() -> None:
        with s3_client(behind_the_proxy) as client:
            seen.append([item["Key"] for item in client.list_objects_v2(Bucket=behind.name)["Contents"]])

    host, port = proxy._upstream
    behind_the_proxy = f"http://{host}:{port}"
    proxy.at_write(2, look, when)
    behind.put_object("1")
    behind.list_objects_v2()
    if when == "before":
        with pytest.raises(HTTPClientError):
            behind.put_object("2")
        assert proxy.requests[-1].fault == "dropped"
    else:
        behind.put_object("2")
    assert seen == [there]
    behind.put_object("3")  # it happens once
    assert len(seen) == 1


def test_requests_are_held(behind: Bucket, proxy: FaultyProxy) -> None:
    def late(request: Request) -> bool:
        return request.is_write and request.path.endswith("/late")

    hold = proxy.hold(late)
    with ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(behind.put_object, "late", Body=b"1", IfNoneMatch="*")
            assert hold.reached.wait(10)
            with s3_client(proxy.endpoint) as client:
                assert "Contents" not in client.list_objects_v2(Bucket=behind.name)
        finally:
            hold.release()
        assert waiting.result(10)["ETag"]
    assert behind.read("late") == b"1"


def test_a_server_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        FaultyProxy(f"http://127.0.0.1:{port}") as proxy,
        s3_client(proxy.endpoint, retries={"total_max_attempts": 1}) as client,
    ):
        assert refused(client.list_buckets) == (502, "BadGateway")
