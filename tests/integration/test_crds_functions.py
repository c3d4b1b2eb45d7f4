"""The functions of a CRDS, on an S3 and a DynamoDB of this machine: filled, asked, and given a file to certify."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from astropy.io import fits

from caldp.crdserver import jobs
from caldp.crdserver.fill import fill
from caldp.crdserver.settings import from_environment
from caldp.crdserver.site import Site
from caldp.crdserver.users import Users
from tests.contract.test_records import make_table, ministack_tables
from tests.s3 import REPOSITORY, make_bucket, s3_environment
from tests.unit.test_crds_lambdas import HOST, Browser, Context, event_loop

__all__ = ["event_loop", "ministack_tables"]

FORM = "application/x-www-form-urlencoded"


def load(name: str) -> ModuleType:
    """Load a handler, as AWS Lambda does."""
    spec = importlib.util.spec_from_file_location(f"handler_{name}", REPOSITORY / "lambdas" / name / "handler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def deployed(ministack_tables: str, cos_data: Path, tmp_path: Path) -> Iterator[Site]:
    """A CRDS in a bucket and a table, filled from a real cache; this process has the environment of its functions."""
    import botocore.session

    environment = s3_environment(ministack_tables)
    with mock.patch.dict(os.environ, environment, clear=True):
        client = botocore.session.get_session().create_client("dynamodb", endpoint_url=ministack_tables)
        table = make_table(client)
        client.close()
        os.environ |= {
            "CALDP_CRDS_STORE": f"s3://{make_bucket(ministack_tables)}/rules",
            "CALDP_CRDS_RECORDS": f"dynamodb:{table}",
            "CALDP_CRDS_WORK": str(tmp_path / "work"),
            "CALDP_CRDS_JOBS": "lambda:crds-job",
            "CALDP_CRDS_URL": f"https://{HOST}",
            "CALDP_CRDS_INLINE": "3500000",
        }
        site = Site(from_environment(os.environ), "hst")
        fill(site, cos_data / "crds_cache", "filler")
        yield site
        site.records.close()


def test_a_file_is_sent_certified_and_heard_of(
    deployed: Site, cos_data: Path, event_loop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load("crds_job")
    events: list[dict[str, Any]] = []
    real = jobs.aws.make
    invoke = mock.Mock(invoke=lambda **call: events.append(json.loads(call["Payload"])))
    monkeypatch.setattr(
        jobs.aws, "make", lambda service, *a, **k: invoke if service == "lambda" else real(service, *a, **k)
    )
    browser = Browser(load("crds").handler)

    assert browser.call("get_default_context", "hst", None).json()["result"] == "hst_0729.pmap"
    header = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2017-03-01", "TIME-OBS": "00:00:00"}
    best = browser.call("get_best_references", "hst_0729.pmap", header, ["deadtab"]).json()["result"]["deadtab"]
    # What is in the bucket is fetched there.
    sent = browser.ask("GET", f"/hst/get/{best}")
    assert sent.status == 302
    content = (cos_data / "crds_cache" / "references" / "hst" / best).read_bytes()
    with urllib.request.urlopen(sent.headers["location"]) as answer:  # noqa: S310 - ours
        assert answer.read() == content
    head = browser.ask("HEAD", f"/hst/get/{best}")
    assert (head.status, head.headers["content-length"]) == (200, str(len(content)))

    token = Users(deployed.records).add("ann", "submitter")
    browser.ask("GET", "/hst/login/")

    def post(path: str, **fields: str) -> Any:
        fields["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        return browser.ask("POST", path, urllib.parse.urlencode(fields).encode(), content_type=FORM)

    assert post("/hst/login/", username="ann", password=token, instrument="cos", next="/").status == 303
    key = browser.ask("GET", "/hst/jpoll/open_channel").json()
    name = "new_dead.fits"
    with fits.open(io.BytesIO(content)) as hdus:
        hdus[0].header.add_history("Another one, for a test.")
        another = io.BytesIO()
        hdus.writeto(another)
    assert browser.upload(name, another.getvalue()).status == 200
    assert post("/hst/certify/", instrument="cos", pmap_mode="pmap_edit", description="a test").status == 200
    (event,) = events
    job.handler(event, Context())
    found = browser.call("jpoll_pull_messages", key, "0").json()["result"]
    assert found[-1]["type"] == "done" and found[-1]["data"]["status"] == 0, found
    assert found[-1]["data"]["result"].startswith(f"https://{HOST}/hst/display_result/")
    page = browser.ask("GET", found[-1]["data"]["result"].removeprefix(f"https://{HOST}"))
    assert name.encode() in page.body

    # The clock finds nothing to do but the last step between contexts, if there is one.
    events.clear()
    job.handler({"task": "tend"}, Context())
    assert all(event["job"].startswith("affected-") for event in events)
