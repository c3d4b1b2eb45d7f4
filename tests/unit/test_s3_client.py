"""The S3 client: which settings count, and what a run that is stopped leaves behind."""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore import UNSIGNED
from botocore.exceptions import (
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOTokenLoadError,
)

from caldp import s3
from caldp.errors import S3DownloadError, S3DownloadRefusedError, S3UploadError, UsageError


@pytest.fixture(autouse=True)
def nobody_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have a profile `mine` and one `other`, and nothing in the environment."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    path.write_text("".join(f"[{n}]\naws_access_key_id={n}\naws_secret_access_key=x\n" for n in ("mine", "other")))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return path


def key(client: Any) -> str:
    """Return the access key that a client signs with."""
    credentials = client._request_signer._credentials
    return credentials.access_key if credentials else ""


def test_a_profile_of_the_config_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert key(s3.client({})) == "other"
    assert key(s3.client({"AWS_PROFILE": "mine"})) == "mine"


def test_keys_count_more_than_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "exported")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert key(s3.client({"AWS_PROFILE": "other"})) == "exported"
    assert key(s3.client({"AWS_ACCESS_KEY_ID": "given", "AWS_SECRET_ACCESS_KEY": "x"})) == "given"


def test_files_of_the_config_count(monkeypatch: pytest.MonkeyPatch, nobody_at_home: Path) -> None:
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
    given = {"AWS_SHARED_CREDENTIALS_FILE": str(nobody_at_home), "AWS_PROFILE": "mine"}
    assert key(s3.client(given)) == "mine"


def test_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key(s3.client({})) == ""
    with pytest.raises(S3DownloadRefusedError, match="there is no such AWS profile"):
        s3.explained("s3://b", lambda: s3.client({"AWS_PROFILE": "no"}), S3DownloadError, S3DownloadRefusedError)


@pytest.mark.parametrize("exported", [True, False])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "127.0.0.1:9000; write scheme"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:port", "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL_S3", "http://a b", "AWS_ENDPOINT_URL_S3"),
        ("AWS_ENDPOINT_URL", "me:hidden@127.0.0.1:9000", "a user or a password in it; write"),
        ("AWS_ENDPOINT_URL", "http://me:hidden@127.0.0.1:9000", "a user or a password in it; write"),
        ("AWS_ENDPOINT_URL", "http://me:hid/den@127.0.0.1:9000", "a user or a password in it; write"),
        ("AWS_ENDPOINT_URL", "http://me:hidden@[x", "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL", "http:// me:hidden?x@127.0.0.1", "a user or a password in it; write"),
        ("AWS_MAX_ATTEMPTS", "many", "AWS_MAX_ATTEMPTS.*; export AWS_MAX_ATTEMPTS=8"),
        ("AWS_MAX_ATTEMPTS", "0", "AWS_MAX_ATTEMPTS"),
        ("AWS_MAX_ATTEMPTS", "-1", "AWS_MAX_ATTEMPTS"),
        ("AWS_REGION", "no region!", "'no region!'.*; export AWS_REGION"),
        ("AWS_DEFAULT_REGION", "no region!", "'no region!'.*; export AWS_REGION"),
        ("AWS_CONFIG_FILE", "{damaged}", "config file: .*damaged; mend that file"),
        ("AWS_SHARED_CREDENTIALS_FILE", "{damaged}", "config file: .*damaged; mend that file"),
    ],
)
def test_settings_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, words: str, exported: bool
) -> None:
    (tmp_path / "damaged").write_text("nothing [[\n")
    value = value.format(damaged=tmp_path / "damaged")
    if exported:
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words) as caught:
        s3.client({} if exported else {name: value})
    assert caught.value.remedy
    assert caught.value.exit_code == 2
    log = "".join(traceback.format_exception(caught.value))
    assert "hidden" not in log
    assert "hid/den" not in log


@pytest.mark.parametrize(
    "text",
    [
        "[default]\nendpoint_url = http://me:hidden@127.0.0.1:9000\n",
        "[default]\nmax_attempts = many\n",
        "[default]\ns3 =\n  addressing_style = odd\n",
        "[default]\ncredential_process = /nonexistent/program\n",
    ],
)
def test_a_config_file_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    with pytest.raises(UsageError, match="the AWS config file") as caught:
        s3.client({})
    assert "hidden" not in str(caught.value)


def refused(act: Callable[[], object]) -> S3DownloadError:
    """Return what an error becomes."""
    with pytest.raises(S3DownloadError) as caught:
        s3.explained("s3://b/k", act, S3DownloadError, S3DownloadRefusedError)
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoCredentialsError(), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where there is a role"),
        (PartialCredentialsError(provider="env", cred_var="x"), "; export both"),
        (SSOTokenLoadError(error_msg="x"), "; sign in again"),
        (ProfileNotFound(profile="x"), r"\(x\).*; export AWS_PROFILE=<one"),
        (CredentialRetrievalError(provider="custom-process", error_msg="x"), "credential_process"),
    ],
)
def test_each_mistake_has_its_own_remedy(error: Exception, words: str) -> None:
    def fail() -> None:
        raise error

    said = refused(fail)
    assert type(said) is S3DownloadRefusedError
    assert re.search(words, str(said))


@pytest.mark.parametrize("bucket", ["a b", "arn:aws:s3:::x"])
def test_the_name_of_a_bucket_that_can_be_none(bucket: str) -> None:
    client = s3.client({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"})
    said = refused(lambda: client.list_objects_v2(Bucket=bucket))
    assert type(said) is S3DownloadRefusedError
    assert (
        str(said) == f's3://b/k: S3 allows no such name (Invalid bucket name "{bucket}"); check it: s3://bucket/prefix'
    )


def test_a_connection_error_shows_no_query() -> None:
    def fail() -> None:
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9/b/k?uploadId=u&partNumber=1")

    said = refused(fail)
    assert said.message == 's3://b/k: Could not connect to the endpoint URL: "http://127.0.0.1:9/b/k"'
    assert type(said) is S3DownloadError


def test_the_region_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3.client({}).meta.region_name == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert s3.client({}).meta.region_name == "eu-west-2"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert s3.client({}).meta.region_name == "eu-west-1"
    assert s3.client({"AWS_REGION": "us-west-2"}).meta.region_name == "us-west-2"


def test_tries_region_and_endpoint() -> None:
    client = s3.client({"AWS_MAX_ATTEMPTS": "3", "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    assert client.meta.config.retries["total_max_attempts"] == 3
    assert (client.meta.region_name, client.meta.endpoint_url) == ("eu-west-1", "http://127.0.0.1:1")
    assert s3.client({}).meta.config.retries["total_max_attempts"] == s3.TRIES


def test_an_anonymous_client_signs_nothing_and_may_have_other_options() -> None:
    client = s3.client({}, anonymous=True, read_timeout=7)
    assert client.meta.config.signature_version is UNSIGNED
    assert client.meta.config.read_timeout == 7
    assert s3.client({}).meta.config.signature_version is not UNSIGNED


@pytest.mark.parametrize("kind", [S3DownloadError, S3DownloadRefusedError, S3UploadError])
def test_errors_are_given_a_dataset(kind: type[S3DownloadError]) -> None:
    with pytest.raises(kind, match="^ldfd01010: s3://b/k: no; ask$") as caught, s3.concerning("ldfd01010"):
        raise kind("s3://b/k: no", remedy="ask")
    assert type(caught.value) is kind


class Silent:
    """A client whose server does not answer."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()
        self.meta = s3.client({}).meta

    def get_object(self, **_: object) -> dict[str, Any]:
        self.asked.set()
        self.answer.wait(60)
        raise OSError("too late")

    def head_object(self, **_: object) -> dict[str, Any]:
        return {"ContentLength": 5, "ETag": "x"}


class Stop(BaseException):
    """What a signal raises."""


def test_a_stopped_run_does_not_wait_for_a_silent_server(tmp_path: Path) -> None:
    client = Silent()
    begun = time.monotonic()
    with pytest.raises(Stop), s3.transfers(client) as manager:
        manager.download("b", "k", str(tmp_path / "k"))
        assert client.asked.wait(30)
        raise Stop
    assert time.monotonic() - begun < 20
    workers = [thread for thread in threading.enumerate() if "_work" in thread.name]
    assert workers
    assert all(thread.daemon for thread in workers)
    client.answer.set()
    for thread in workers:
        thread.join(30)
        assert not thread.is_alive()
    assert list(tmp_path.glob("k*")) == []


def test_a_failure_waits_until_nothing_moves(tmp_path: Path) -> None:
    client = Silent()
    with pytest.raises(ValueError, match="mine"), s3.transfers(client) as manager:
        future = manager.download("b", "k", str(tmp_path / "k"))
        assert client.asked.wait(30)
        client.answer.set()
        raise ValueError("mine")
    assert future.done()


@pytest.mark.parametrize(
    "said",
    [
        "2026-11-22T17:00:00.000Z",
        "2026-11-22T17:00:00Z",
        "Sun, 22 Nov 2026 17:00:00 GMT",
        "2026-11-22 17:00 UTC",
        1795366800,
    ],
)
def test_times_are_what_botocore_takes_them_for(said: Any) -> None:
    from botocore.utils import parse_timestamp

    assert s3._time(said) == parse_timestamp(said)
    assert s3._time(said).utcoffset() == timedelta(0)
