"""A fake of ``caldp-process-aws``, started as AWS Batch starts it: it calibrates nothing, and needs no boto3.

``install`` makes an executable of it.  ``FAKE_JOBS`` in its environment says what it does: see ``tests.fakes.job``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from caldp import messages
from caldp.dataset import Dataset
from caldp.errors import DuplicateError, describe
from caldp.manifest import verified
from caldp.messages import Claim
from caldp.result import recorded
from caldp.store import Blob, ConflictError, Create, PutMode, Store, Update
from tests.fakes import job

_REPOSITORY = Path(__file__).resolve().parents[2]


def install(folder: Path) -> None:
    """Make an executable ``caldp-process-aws`` of it in a folder."""
    code = f"import sys; sys.path.insert(0, {str(_REPOSITORY)!r}); from tests.e2e.job import main; main()"
    path = folder / "caldp-process-aws"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -SE -c {shlex.quote(code)} "$@"\n')
    path.chmod(0o755)


class Bucket:
    """Objects of ministack, which asks nobody who they are: what ``messages`` needs of a store, started in no time."""

    exclusive = False

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._server = http.client.HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc, timeout=60)

    def url(self, key: str = "") -> str:
        return f"{self.uri}/{key}".rstrip("/")

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def get(self, key: str) -> Blob | None:
        status, etag, body = self._ask("GET", key)
        return Blob(body, etag) if status == 200 else None

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        condition = {}
        if isinstance(mode, Create):
            condition = {"If-None-Match": "*"}
        elif isinstance(mode, Update):
            condition = {"If-Match": mode.etag}
        status, etag, _ = self._ask("PUT", key, data, condition)
        if status in (404, 409, 412):
            raise ConflictError(key)
        assert status == 200, f"{key}: {status}"
        return etag

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._ask("DELETE", key)

    def own(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def damaged(self, prefix: str, files: Iterable[Mapping[str, Any]]) -> list[str]:
        return [entry["name"] for entry in files if self.get(f"{prefix}/{entry['name']}") is None]

    def _ask(
        self, method: str, key: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, bytes]:
        self._server.request(method, quote(f"/{self.uri.removeprefix('s3://')}/{key}"), body, dict(headers or {}))
        answer = self._server.getresponse()
        return answer.status, answer.headers.get("ETag", ""), answer.read()


def main() -> None:
    """Run it: OUTPUT DATASET|@MANIFEST [options]."""
    output, name, *_ = sys.argv[1:]
    attempt = int(os.environ.get("CALDP_ATTEMPT", "0"))
    if name.startswith("@"):
        place, _, key = name[1:].rpartition("/")
        manifest = Bucket(place).get(key)
        assert manifest is not None, name
        line = json.loads(manifest.data.splitlines()[int(os.environ["AWS_BATCH_JOB_ARRAY_INDEX"])])
        name, attempt = line["dataset"], line["attempt"]
    told = json.loads(Path(os.environ["FAKE_JOBS"]).read_text()).get(name, {})
    given = told[min(attempt, len(told)) - 1] if isinstance(told, list) else told
    signal.signal(signal.SIGTERM, job._stop)
    store: Any = Bucket(output)
    sys.exit(_process(store, Dataset.parse(name), attempt, job.Behaviour(**given)))


def _process(store: Store, dataset: Dataset, attempt: int, behaviour: job.Behaviour) -> int:
    """Do what ``caldp.process.process`` does, without the calibration; return the exit status."""
    name = dataset.name
    claim = Claim(attempt, int(os.environ["AWS_BATCH_JOB_ATTEMPT"]), os.environ["AWS_BATCH_JOB_ID"])
    print(f"{name}: attempt {attempt}, start {claim.retry}", flush=True)
    try:
        there = verified(store, dataset.prefix)
        if there is not None and there.attempt >= attempt:
            messages.advance(store, there.status())
            return 0
        mine = messages.begin(store, name, os.urandom(6).hex(), there.attempt if there else 0, claim)
        try:
            with recorded(store, mine, True, lambda write: write()):
                job._work(name, behaviour)
                manifest = job._publish(store, dataset, mine)
                messages.conclude(store, manifest.status())
        except BaseException as error:
            messages.advance(store, mine.failed(describe(error, name)))
            raise
    except DuplicateError as error:
        print(error, flush=True)
    except BaseException as error:  # noqa: BLE001 - as the real one does
        failure = describe(error, name)
        print(f"caldp-process: {failure}", file=sys.stderr, flush=True)
        return failure.code
    return 0
