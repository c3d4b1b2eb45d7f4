"""Fixtures of the tests that use S3: emulators on this machine or, if the developer names one, a real bucket.

======================== ==============================================================================================
``CALDP_TEST_MINISTACK``  the program ``ministack``, if not the one that ``make test`` installs in the repository
``CALDP_S3_TEST_OUTPUTS`` ``s3://bucket/prefix``: the tests of :func:`s3_places` run there too, below a prefix of each
                          test's own, with the AWS set-up of the developer; what they leave is deleted
``CALDP_S3_TEST_INPUTS``  the same for their inputs, if these are to be elsewhere
======================== ==============================================================================================
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from tests.desk import require
from tests.fakes.s3 import start_ministack, start_moto

REPOSITORY = Path(__file__).resolve().parents[1]
MINISTACK = Path(os.environ.get("CALDP_TEST_MINISTACK", REPOSITORY / ".venv-ministack" / "bin" / "ministack"))
REAL_OUTPUTS = os.environ.get("CALDP_S3_TEST_OUTPUTS", "")
REAL_INPUTS = os.environ.get("CALDP_S3_TEST_INPUTS", "")

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def installed_ministack() -> Path:
    """Return where ministack is, which make test installs."""
    require(MINISTACK.is_file(), f"no ministack at {MINISTACK}: make test installs it; or set CALDP_TEST_MINISTACK")
    return MINISTACK


@pytest.fixture
def aws_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settings of an AWS that moto plays in this process."""
    for name, value in s3_environment("", {}).items():
        if name != "AWS_ENDPOINT_URL":
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def aws_of_moto(aws_settings: None) -> Iterator[None]:
    """AWS in this process."""
    from moto import mock_aws

    with mock_aws():
        yield


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The address of a moto, one for each worker."""
    with start_moto() as server:
        yield server.endpoint


@pytest.fixture(scope="session")
def ministack_endpoint() -> Iterator[str]:
    """The address of a ministack, one for each worker."""
    with start_ministack(installed_ministack()) as server:
        yield server.endpoint


def s3_environment(endpoint: str | None, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which boto3 finds this endpoint and nothing of the developer's AWS.

    Parameters
    ----------
    endpoint : str, optional
        None for the real S3: then it is the base as it is.
    base : mapping, optional
        What else is in it (``os.environ``).
    """
    base = os.environ if base is None else base
    if endpoint is None:
        return dict(base)
    return {
        **{k: v for k, v in base.items() if not k.startswith("AWS_") and k.lower() not in _PROXIES},
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # Not empty and not there: empty would mean the usual places.
        "AWS_CONFIG_FILE": "/nonexistent/aws-config",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/aws-credentials",
    }


@contextmanager
def s3_client(endpoint: str | None, **config: Any) -> Iterator[Any]:
    """Make a boto3 client, and close it; ``config`` goes to ``botocore.config.Config``."""
    import boto3
    import botocore.session
    from botocore.config import Config

    with mock.patch.dict(os.environ, s3_environment(endpoint), clear=True):
        session = botocore.session.get_session()
        session.register_component("data_loader", _descriptions())
        client = boto3.Session(botocore_session=session).client("s3", config=Config(**config))
    with closing(client):
        yield client


@cache
def _descriptions() -> Any:
    """What botocore knows of S3, read once: that takes ten times as long as all else about a client."""
    import botocore.loaders

    return botocore.loaders.create_loader()


def make_bucket(endpoint: str, versioned: bool = False) -> str:
    """Make a bucket with a name of its own."""
    name = f"test-{uuid.uuid4().hex}"
    with s3_client(endpoint) as client:
        client.create_bucket(Bucket=name)
        if versioned:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


@dataclass(frozen=True)
class S3Place:
    """Where on some S3 a test has its inputs and outputs; both are empty.

    Attributes
    ----------
    kind : str
        ``moto``, ``ministack`` or ``real``.
    endpoint : str or None
        None for the real S3.
    inputs, outputs : str
        ``s3://bucket/prefix``, without a slash at the end.
    """

    kind: str
    endpoint: str | None
    inputs: str
    outputs: str

    @property
    def bucket(self) -> str:
        """Of the outputs."""
        return split(self.outputs)[0]

    @property
    def prefix(self) -> str:
        """Of the outputs."""
        return split(self.outputs)[1]

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return an environment in which boto3 finds it."""
        return s3_environment(self.endpoint, base)

    def behind(self, endpoint: str) -> S3Place:
        """Return the same place, reached through a proxy."""
        return S3Place(self.kind, endpoint, self.inputs, self.outputs)


def split(url: str) -> tuple[str, str]:
    """Split ``s3://bucket/prefix``."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix


#: Where tests of what is above the store run: what the two do otherwise is the business of the store's own tests.
BOTH = (pytest.param("moto", marks=pytest.mark.slow), "ministack")


def s3_places(*emulators: str) -> list[Any]:
    """Return where a test is to run: these emulators (without any: ``BOTH``), and on a real bucket if that is set.

    For the fixture ``s3_place``: ``@pytest.mark.parametrize("s3_place", s3_places(), indirect=True)``
    """
    return [*(emulators or BOTH), *(["real"] if REAL_OUTPUTS else [])]


def emulated(*emulators: str) -> pytest.MarkDecorator:
    """Run a test on emulators alone: one that needs a proxy before the server, or a bucket of its own making."""
    return pytest.mark.parametrize("s3_place", emulators or BOTH, indirect=True)


@pytest.fixture
def s3_place(request: pytest.FixtureRequest) -> Iterator[S3Place]:
    """A place of one's own on the S3 that :func:`s3_places` names."""
    if request.param == "real":
        own = f"caldp-test-{uuid.uuid4().hex}"
        outputs = f"{REAL_OUTPUTS.rstrip('/')}/{own}"
        inputs = f"{REAL_INPUTS.rstrip('/')}/{own}" if REAL_INPUTS else f"{outputs}/inputs"
        try:
            yield S3Place("real", None, inputs, f"{outputs}/outputs")
        finally:
            _delete_below(outputs)
            _delete_below(inputs)
    else:
        endpoint = request.getfixturevalue(f"{request.param}_endpoint")
        bucket = make_bucket(endpoint)
        yield S3Place(request.param, endpoint, f"s3://{bucket}/inputs/batch", f"s3://{bucket}/outputs/batch")


def _delete_below(url: str) -> None:
    """Delete objects and unfinished uploads below a prefix that one test had for itself."""
    bucket, prefix = split(f"{url}/")
    assert "caldp-test-" in prefix, f"{url} is not a test's own"
    with s3_client(None) as client:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=item["Key"])
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Uploads", []):
                client.abort_multipart_upload(Bucket=bucket, Key=item["Key"], UploadId=item["UploadId"])


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test reach this machine only, and a real bucket if there is one to be tested.

    A unit test that uses an emulator overrides ``no_network`` with this.
    """
    if REAL_OUTPUTS:
        return
    connect = socket.socket.connect

    def to_here(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"a test connects to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", to_here)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let botocore try again at once.

    Between tries it waits up to 20 seconds, in all its retry modes in ``botocore.endpoint``.  Only in this process: the
    commands that a test starts wait as ever.
    """
    import botocore.endpoint

    # Of that module alone, for everybody shares the module ``time``.
    monkeypatch.setattr(
        botocore.endpoint, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.001)))
    )
