"""``caldp-process <dataset> astroquery:`` with the real astroquery, crds and calcos, and a MAST on this machine."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desk import Desk, assert_tidy, small_disk
from tests.fakes.mast import FakeMast, fake_mast

ACQ = "ldfd01vlq"
RAW = f"{ACQ}_rawacq.fits"
TOKEN = "d41d8cd98f00b204e980"  # noqa: S105


@pytest.fixture
def mast(cos_data: Path) -> Iterator[FakeMast]:
    """A MAST that has the visit of ldfd01010."""
    with fake_mast() as server:
        for path in (cos_data / "inputs").glob("*.fits.gz"):
            server.files[path.stem] = gzip.decompress(path.read_bytes())
        names = sorted(server.files)
        server.observations["ldfd01010"] = [n for n in names if not n.startswith(ACQ)]
        server.observations[ACQ] = [n for n in names if n.startswith(ACQ)]
        yield server


@pytest.fixture
def away(desk: Desk, mast: FakeMast) -> Desk:
    """A desk without inputs, whose MAST is the one on this machine."""
    desk.inputs.rmdir()
    settings = {"CALDP_MAST_URL": mast.url, "CALDP_MAST_WAIT": "0.01", "CALDP_MAST_TIMEOUT": "10"}
    return Desk(desk.home, {**desk.env, **settings})


@pytest.mark.slow
def test_an_acquisition_from_mast(away: Desk, mast: FakeMast) -> None:
    result = away.run(ACQ, "astroquery:", "file:OUT", "--json")
    assert result.code == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    progress = [e for e in events if e["event"] == "progress"]
    assert progress[-1]["done_bytes"] == progress[-1]["total_bytes"] > 0
    assert away.status(ACQ)["state"] == "processed"
    assert {f"{ACQ}_counts.fits", f"{ACQ}_flt.fits"} <= away.tree(ACQ)
    # What the README promises: the raw files stay here, and the next run finds them.
    assert (away.home / RAW).read_bytes() == mast.files[RAW]
    assert_tidy(away.home)
    mast.downloads.clear()
    assert away.run(ACQ, "astroquery:", "file:OUT").code == 0
    assert away.run(ACQ, "file:.", "file:OUT2").code == 0
    assert mast.downloads == []


def test_files_go_to_caldp_home(away: Desk, mast: FakeMast) -> None:
    result = away.run(ACQ, "astroquery:", "file:OUT", env={"CALDP_HOME": str(away.home / "scratch")})
    assert result.code == 0, result.stderr
    assert (away.home / "scratch" / RAW).is_file()
    assert not (away.home / RAW).exists()


def test_mast_does_not_know_the_dataset(away: Desk, mast: FakeMast) -> None:
    result = away.run("lzzz01vlq", "astroquery:", "file:OUT")
    away.assert_failed(result, "lzzz01vlq", 22, "MAST has no raw files of lzzz01vlq", "check the name")


def test_mast_is_down(away: Desk, mast: FakeMast) -> None:
    mast.unavailable = 10**6
    result = away.run(ACQ, "astroquery:", "file:OUT", env={"CALDP_MAST_TRIES": "3"})
    away.assert_failed(result, ACQ, 22, "HTTP 503", "3 tries")


def test_mast_sends_damaged_files(away: Desk, mast: FakeMast) -> None:
    mast.files[RAW] = bytes(8640)
    result = away.run(ACQ, "astroquery:", "file:OUT")
    away.assert_failed(result, ACQ, 22, RAW, "damaged")


def test_the_token_is_nowhere(away: Desk, mast: FakeMast) -> None:
    mast.unavailable, mast.status, mast.echo, mast.only = 10**6, 401, True, "Download"
    mast.reason = "not with"
    result = away.run(ACQ, "astroquery:", "file:OUT", "--verbose", env={"MAST_API_TOKEN": TOKEN})
    away.assert_failed(result, ACQ, 22, "HTTP 401", "MAST_API_TOKEN")
    assert mast.tokens == {f"token {TOKEN}"}
    assert TOKEN not in result.stdout + result.stderr
    written = [p for p in away.home.rglob("*") if p.is_file()]
    assert any(p.name == "process.txt" for p in written)
    assert not [p for p in written if TOKEN.encode() in p.read_bytes() or TOKEN in p.name]


def test_settings_that_make_no_sense(away: Desk, mast: FakeMast) -> None:
    result = away.run(ACQ, "astroquery:", "file:OUT", env={"CALDP_MAST_TRIES": "many"})
    assert result.code == 2
    assert "CALDP_MAST_TRIES" in result.stderr
    assert mast.tokens == set()


@pytest.mark.parametrize(
    "signum", [pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)]
)
def test_stopped_while_downloading(away: Desk, mast: FakeMast, signum: signal.Signals) -> None:
    mast.drip, mast.piece = 0.2, 100_000
    process = away.start(ACQ, "astroquery:", "file:OUT")
    end = time.monotonic() + 60
    while mast.sent < 300_000 and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signum)
    begun = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum)
    partial = away.home / f"{RAW}.partial"
    size = partial.stat().st_size
    assert 0 < size < len(mast.files[RAW])  # type: ignore[arg-type]
    mast.drip = 0
    mast.downloads.clear()
    result = away.run(ACQ, "astroquery:", "file:OUT")
    assert result.code == 0, result.stderr
    assert (RAW, f"bytes={size}-") in mast.downloads
    assert (away.home / RAW).read_bytes() == mast.files[RAW]


@pytest.mark.slow
def test_two_runs_at_once_download_once(away: Desk, mast: FakeMast) -> None:
    mast.drip, mast.piece = 0.05, 200_000
    runs = [away.start(ACQ, "astroquery:", f"file:OUT{n}") for n in range(2)]
    for process in runs:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert [name for name, _ in mast.downloads].count(RAW) == 1
    assert (away.home / RAW).read_bytes() == mast.files[RAW]
    assert not list(away.home.glob("*.partial"))


def test_a_full_disk(away: Desk, mast: FakeMast) -> None:
    with small_disk(away.home / "small", "4m"):
        result = away.run(ACQ, "astroquery:", "file:OUT", env={"CALDP_HOME": str(away.home / "small")})
    assert result.code == 29, result.stderr
    assert "no space left" in result.stderr and ACQ in result.stderr


def test_nothing_is_asked_without_astroquery(away: Desk, mast: FakeMast) -> None:
    shutil.rmtree(away.home / "IN", ignore_errors=True)
    (away.home / RAW).write_bytes(mast.files[RAW])  # type: ignore[arg-type]
    result = away.run(ACQ, "file:.", "file:OUT", "--dry-run")
    assert result.code == 0, result.stderr
    assert mast.tokens == set()


def test_the_command_does_not_load_astroquery_before_it_needs_it(away: Desk) -> None:
    code = "import sys, caldp.cli, caldp.mast; sys.exit(bool({'astroquery', 'boto3', 'requests'} & set(sys.modules)))"
    done = subprocess.run([shutil.which("python", path=away.env["PATH"]) or "python", "-c", code], check=False)
    assert done.returncode == 0
