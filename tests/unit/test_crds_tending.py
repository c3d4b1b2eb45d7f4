"""What a CRDS needs now and then, and what it tells clients of datasets."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from caldp.crdserver import reprocessing, tending
from caldp.crdserver.channels import Channels
from caldp.crdserver.datasets import import_headers
from caldp.crdserver.jobs import Jobs
from caldp.crdserver.methods import Methods
from caldp.crdserver.site import Site
from caldp.errors import InputError
from caldp.store import Create
from tests.sites import made_site, shared_data, shelf, site

__all__ = ["made_site", "shared_data", "shelf", "site"]


def test_large_replies_are_removed_after_an_hour(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old.json", "new.json"):
        tending.note_reply(site, name)
        site.store.put(tending.reply_key(site, name), b"{}", Create())
    site.records.put("hst:replies", "old.json", {"at": time.time() - 3601})
    tending.tend(site)
    assert site.store.names("server/hst/replies") == ["new.json"]
    assert [record.key for record in site.records.scan("hst:replies")] == ["new.json"]


def test_channels_of_last_week_are_removed_with_all_they_said(site: Site) -> None:
    channels = Channels(site.records, "hst")
    old, new = channels.open("ann"), channels.open("ann")
    channels.writer(old).end("done", {})
    record = site.records.get("hst:channels", old)
    assert record is not None
    site.records.put("hst:channels", old, {**record.value, "opened": time.time() - 8 * 86400})
    tending.tend(site)
    assert channels.pull(new) == []
    with pytest.raises(InputError, match="not found"):
        channels.pull(old)
    assert list(site.records.scan(f"hst:channels:{old}")) == []


def test_jobs_of_last_month_are_removed_if_they_are_over(site: Site) -> None:
    jobs = Jobs(site)
    for name, state in (("over", "done"), ("open", "waiting")):
        jobs.add(name, "tend", {})
        record = site.records.get("hst:jobs", name)
        assert record is not None
        site.records.put("hst:jobs", name, {**record.value, "state": state, "made": time.time() - 31 * 86400})
    tending.tend(site)
    assert jobs.get("over") is None and jobs.get("open") is not None


def test_a_job_that_has_failed_may_be_asked_for_again(site: Site) -> None:
    jobs = Jobs(site)
    assert jobs.add("one", "tend", {})
    lease = jobs.take("one")
    assert lease is not None
    with lease:
        lease.over("failed")
    assert jobs.add("one", "tend", {})
    found = jobs.get("one")
    assert found is not None and (found.state, found.attempt) == ("waiting", 0)
    assert not jobs.add("one", "tend", {})


def test_clients_are_told_the_keywords_that_rules_look_at(site: Site, shared_data: Path) -> None:
    headers = json.loads((shared_data / "dataset-headers" / "test_cos.json").read_text())
    (one,) = headers
    import_headers(site.store, "hst", [(one, headers[one] | {"FOO": "of no use", "EXPSTART": "56681.0"})])
    found = Methods(site).get_dataset_headers_by_id("hst_0729.pmap", [one])[one]
    assert "FOO" not in found and found["EXPSTART"] == "56681.0"
    assert found.items() <= (headers[one] | {"EXPSTART": "56681.0"}).items()
    chosen = site.stock.best_references("hst_0729.pmap", headers[one])
    assert site.stock.best_references("hst_0729.pmap", found) == chosen


def test_what_is_affected_is_told_as_products(site: Site, shared_data: Path) -> None:
    headers = json.loads((shared_data / "dataset-headers" / "test_cos.json").read_text())
    (one,) = headers
    import_headers(site.store, "hst", headers.items())
    methods = Methods(site)
    with pytest.raises(InputError, match="No precomputed affected datasets results exist"):
        methods.get_affected_datasets("hst", "hst_0600.pmap", "hst_0729.pmap")
    reprocessing.compute(site, "hst_0600.pmap", "hst_0729.pmap")
    found = methods.get_affected_datasets("hst", "hst_0600.pmap", "hst_0729.pmap")
    assert found["affected_ids"] == [one.partition(":")[0].lower()]
    assert found["bestrefs_status"] == 0


def test_a_context_for_a_version_of_the_software(site: Site) -> None:
    methods = Methods(site)
    for version in ("", "1.0.0"):
        with pytest.raises(InputError, match="no context is known for version"):
            methods.get_build_context("hst", version)
    site.records.put("hst:builds", "1.0.0", {"context": "hst_0700.pmap"})
    assert methods.get_build_context("hst", "1.0.0") == "hst_0700.pmap"
