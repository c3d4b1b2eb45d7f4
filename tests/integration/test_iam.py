"""The permissions that the guide names for each role: exactly the actions that its commands ask S3 for."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import FAKE_PROGRAMS
from tests.desk import CONTEXT, REPOSITORY, SCRIPTS
from tests.fakes.proxy import FaultyProxy, Request
from tests.s3 import make_bucket, s3_client, s3_environment

ACQ = "ldfd01vlq"


def documented() -> dict[str, set[str]]:
    """Read the table of the guide."""
    text = (REPOSITORY / "docs" / "aws.rst").read_text()
    rows = re.findall(r'^    "(\w+)", "(s3:\w+)", "[^"]+"$', text, re.MULTILINE)
    roles: dict[str, set[str]] = {}
    for role, action in rows:
        roles.setdefault(role, set()).add(action)
    return roles


def actions(request: Request) -> set[str]:
    """Return the actions of IAM that a request needs; without the list, S3 says "denied" of what is not there."""
    return {_action(request), *(["s3:ListBucket"] if request.status == 404 else [])}


def _action(request: Request) -> str:
    bucket_only = request.path.strip("/").count("/") == 0
    match request.method:
        case "GET" if bucket_only:
            return "s3:ListBucket"
        case "GET" if "versionId=" in request.query:
            return "s3:GetObjectVersion"
        case "GET" | "HEAD":
            return "s3:GetObject"
        case "DELETE" if "uploadId=" in request.query:
            return "s3:AbortMultipartUpload"
        case "DELETE":
            return "s3:DeleteObject"
        case "POST" if "delete" in request.query:
            return "s3:DeleteObject"
        case "PUT" | "POST" if not bucket_only:
            return "s3:PutObject"
    return f"what is {request.method} {request.path}?{request.query}"


@pytest.mark.slow
def test_each_role_needs_what_the_guide_says_and_nothing_more(
    tmp_path: Path, cos_data: Path, environment: dict[str, str], ministack_endpoint: str
) -> None:
    batch = f"s3://{make_bucket(ministack_endpoint, versioned=True)}/batch"
    inputs, crds = make_bucket(ministack_endpoint), f"s3://{make_bucket(ministack_endpoint)}"
    asked: dict[str, set[str]] = {}
    with tarfile.open(tmp_path / f"{ACQ}.tar.gz", "w:gz") as archive:
        for path in (cos_data / "inputs").glob(f"{ACQ}*"):
            archive.add(path, path.name)
    with s3_client(ministack_endpoint) as client:
        client.upload_file(str(tmp_path / f"{ACQ}.tar.gz"), inputs, f"{ACQ}.tar.gz")

    with FaultyProxy(ministack_endpoint) as proxy:
        plain = {k: v for k, v in environment.items() if not k.startswith("CRDS_")}
        env = s3_environment(proxy.endpoint, plain) | {"CRDSBUCKET": crds, "CRDS_PATH": str(tmp_path / "cache")}

        def run(role: str, *argv: str, code: int = 0, **more: str) -> None:
            proxy.clear()
            command = [str(SCRIPTS / argv[0]), *argv[1:]]
            done = subprocess.run(
                command, cwd=tmp_path, env={**env, **more}, capture_output=True, text=True, check=False
            )
            assert done.returncode == code, done.stderr
            asked.setdefault(role, set()).update(*map(actions, proxy.requests))

        cache = str(cos_data / "crds_cache")
        run("librarian", "caldp", "references", "sync", "--context", CONTEXT, "--from", cache, crds)
        run("librarian", "caldp", "references", "sync", "--context", CONTEXT, "--from", cache, crds)
        run("librarian", "caldp", "references", "current", crds, CONTEXT, "--why", "a test")
        job = ("caldp-process-aws", batch, ACQ, "--input", f"s3://{inputs}")
        fake = {"FAKE_CALCOS": "exit-40", "PATH": f"{FAKE_PROGRAMS}{os.pathsep}{env['PATH']}"}
        run("job", *job, code=23, **fake)
        run("job", *job)
        run("job", *job, "--existing", "skip")
        run("status", "caldp", "status", batch)
        run("status", "caldp", "status", batch, ACQ)
        run("repair", "caldp", "messages", "repair", batch)
        with s3_client(ministack_endpoint) as client:
            bucket = batch.split("/")[2]
            client.delete_object(Bucket=bucket, Key=f"batch/messages/datasets-processed/{ACQ}")
            client.put_object(Bucket=bucket, Key=f"batch/messages/dataset-error/{ACQ}", Body=b"")
        run("repair", "caldp", "messages", "repair", batch)
        with (
            s3_client(ministack_endpoint) as client
        ):  # the manifest names the version before this one (ministack knows no ranges of versions: a small one)
            client.put_object(Bucket=bucket, Key=f"batch/data/cos/{ACQ}/{ACQ}_spt.fits", Body=b"not it")
        run("downloader", "caldp", "sync", batch, "HOME")
        run("archive", "caldp", "archived", batch, ACQ)
        run("archive", "caldp", "archived", batch, "ldfd01010", code=2)

    expected = documented()
    for role in expected:
        # Only an upload that fails is taken back.
        assert asked[role] == expected[role] - {"s3:AbortMultipartUpload"}, role
    assert asked.keys() == expected.keys()
