"""A CRDS in a folder, without a server: for tests of its rooms."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from caldp.crdserver import submissions
from caldp.crdserver.fill import fill
from caldp.crdserver.jobs import Jobs, as_json
from caldp.crdserver.settings import Settings
from caldp.crdserver.site import Site
from caldp.crdserver.uploads import Uploads
from tests.desk import Shelf, shared_data, shelf

__all__ = ["made_site", "shared_data", "shelf", "site", "submitted"]

#: What a submission must say.
FORM = {"description": "a test", "change_level": "MODERATE", "creator": "somebody"}


def settings_at(root: Path, **more: Any) -> Settings:
    """Settings of a CRDS in a folder."""
    given = Settings(f"file:{root}", f"sqlite:{root / 'records.sqlite'}", "http://localhost:1", root / "work")
    return replace(given, **more)


@pytest.fixture
def made_site(shelf: Shelf, shared_data: Path, tmp_path: Path) -> Callable[..., Site]:
    """Make a CRDS with the real contexts of HST; changes to it are the test's own."""
    with shelf.once("site") as folder:
        if folder is not None:
            first = Site(settings_at(folder / "crds"), "hst")
            fill(first, shared_data / "crds-contexts", "filler")
            first.records.close()
    count = 0

    def make(**more: Any) -> Site:
        nonlocal count
        count += 1
        root = tmp_path / f"crds{count}"
        shutil.copytree(shelf.home / "site" / "crds", root)
        return Site(settings_at(root, **more), "hst")

    return make


@pytest.fixture
def site(made_site: Callable[..., Site]) -> Site:
    """One CRDS with the real contexts of HST."""
    return made_site()


def submitted(site: Site, name: str, data: bytes, user: str = "ann", instrument: str = "cos", **more: str) -> str:
    """Send a file and submit it; return the submission, on which nobody works."""
    Uploads(site, user).receive(name, data, "")
    return submissions.start(site, more.pop("kind", "batch"), user, instrument, "", FORM | more)


def work(site: Site, one: str) -> str:
    """Have the work on a submission done, by the process that does it; return what that prints."""
    Jobs(site).add(f"submission-{one}", "submission", {"submission": one})
    env = {**os.environ, "CALDP_CRDS_JOB": json.dumps(as_json(site.settings))}
    argv = [sys.executable, "-m", "caldp.crdserver.job", site.observatory, f"submission-{one}"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def altered(reference: Path, **keywords: str) -> bytes:
    """Return a reference with other keywords."""
    with fits.open(reference) as hdus:
        hdus[0].header.update(keywords)
        stream = io.BytesIO()
        hdus.writeto(stream)
    return stream.getvalue()
