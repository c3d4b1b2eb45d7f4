"""Downloads from MAST: the real astroquery against a MAST on this machine, well and misbehaving."""

from __future__ import annotations

import fcntl
import gzip
import io
import logging
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits
from astroquery.mast import conf
from astroquery.mast.discovery_portal import PortalAPI

from caldp import mast as module
from caldp.errors import AstroqueryError, S3DownloadError, Stop, UsageError
from caldp.mast import download
from caldp.run import Run
from tests.conftest import RunFactory
from tests.fakes.cos import write_asn, write_support
from tests.fakes.mast import FakeMast, fake_mast

ACQ = "ldfd01vlq"
ACQ_FILES = ["ldfd01vlq_rawacq.fits", "ldfd01vlq_spt.fits"]
RAW = ACQ_FILES[0]
MEMBERS = ["ldfd01vnq", "ldfd01vpq", "ldfd01vrq", "ldfd01vtq"]
ASSOCIATION_FILES = ["ldfd01010_asn.fits", *(f"{m}_{s}.fits" for m in MEMBERS for s in ("rawtag_a", "spt"))]
TOKEN = "d41d8cd98f00b204e980"  # noqa: S105
BAD = ("many", "0", "-1", "nan", "inf", "1e9", "4;")
Make = Callable[..., Run]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let these tests reach this machine only; also what is swallowed on the way fails the test."""
    strangers: list[object] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def to_here(self: socket.socket, address: Any) -> None:
        if address[0] not in ("127.0.0.1", "::1"):
            strangers.append(address)
            raise OSError(f"a test connects to {address}")
        connect(self, address)

    def of_here(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", "0.0.0.0", "::1"):  # noqa: S104 - compared, not bound
            strangers.append(host)
            raise socket.gaierror(socket.EAI_AGAIN, f"a test asks for {host}")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", to_here)
    monkeypatch.setattr(socket, "getaddrinfo", of_here)
    yield
    for thread in threading.enumerate():  # what a test left waiting must not reach into the next one
        if thread.name.endswith(("(_work)", "(ask)")):
            thread.join(30)
    assert not strangers


@pytest.fixture(scope="session")
def held(cos_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real files of ldfd01010 and of the acquisition of its visit, as MAST has them: not compressed."""
    folder = tmp_path_factory.mktemp("held")
    for path in (cos_data / "inputs").glob("*.fits.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.fixture
def mast(held: Path) -> Iterator[FakeMast]:
    with fake_mast() as server:
        server.add("ldfd01010", *sorted(p for p in held.iterdir() if not p.name.startswith(ACQ)))
        server.add(ACQ, *sorted(held.glob(f"{ACQ}*")))
        yield server


@pytest.fixture
def make(make_run: RunFactory, mast: FakeMast) -> Make:
    """Make a run that asks this MAST and does not wait long."""
    quick = {"CALDP_MAST_URL": mast.url, "CALDP_MAST_WAIT": "0.01", "CALDP_MAST_TIMEOUT": "5"}
    return lambda dataset=ACQ, **environ: make_run(dataset, **quick | environ)


def here(run: Run) -> list[str]:
    """List the files in CALDP_HOME."""
    return sorted(p.name for p in run.config.home.iterdir() if p.is_file())


def told(run: Run) -> str:
    """Return all that people were told, and the log."""
    log = (run.workspace.logs / "process.txt").read_text()
    return "\n".join(str(e) for e in run.telemetry.reporter.events) + log  # type: ignore[attr-defined]


def working() -> list[threading.Thread]:
    """List the threads that still download."""
    return [t for t in threading.enumerate() if "_work" in t.name and t.is_alive()]


def assert_same(run: Run, held: Path, names: list[str]) -> None:
    assert here(run) == sorted(names)
    for name in names:
        assert (run.config.home / name).read_bytes() == (held / name).read_bytes()


# --- which files ------------------------------------------------------------------------------------------------


def test_an_exposure(make: Make, mast: FakeMast, held: Path) -> None:
    run = make()
    assert download(run, "astroquery:") == run.config.home
    assert_same(run, held, ACQ_FILES)
    assert mast.asked == [ACQ]
    assert not threading.active_count() > 5


def test_an_association_brings_its_members_and_nothing_else(make: Make, mast: FakeMast, held: Path) -> None:
    mast.add("ldfd01010", held / RAW)  # of the same visit, but no member
    run = make("ldfd01010")
    download(run, "astroquery:")
    assert_same(run, held, ASSOCIATION_FILES)
    assert "_jit" not in "".join(name for name, _ in mast.downloads)


def test_members_that_are_not_listed_with_their_association(make: Make, mast: FakeMast, held: Path) -> None:
    mast.observations["ldfd01010"] = ["ldfd01010_asn.fits"]
    for member in MEMBERS[:2]:
        mast.add(member, *sorted(held.glob(f"{member}*")))
    mast.add("ldfd01020", *(p for member in MEMBERS[2:] for p in held.glob(f"{member}*")))
    run = make("ldfd01010")
    download(run, "astroquery:")
    assert_same(run, held, ASSOCIATION_FILES)
    assert mast.asked == ["ldfd01010", *MEMBERS, "ldfd01%"]


def test_an_exposure_that_is_listed_with_its_association_only(make: Make, mast: FakeMast, held: Path) -> None:
    run = make("ldfd01vnq")
    download(run, "astroquery:")
    assert_same(run, held, ["ldfd01vnq_rawtag_a.fits", "ldfd01vnq_spt.fits"])
    assert mast.asked == ["ldfd01vnq", "ldfd01%"]


@pytest.mark.parametrize("suffixes", [("raw", "wav"), ("wav",)])
def test_stis_files_bear_the_name_of_the_association(
    make: Make, mast: FakeMast, tmp_path: Path, suffixes: tuple[str, ...]
) -> None:
    """The exposures that its table lists are together in one file, or are the ``wav``."""
    folder = tmp_path / "stis"
    folder.mkdir()
    table = write_asn(folder, "obes03010", ("obes03ibq", "CRSPLIT", True), ("obes03010", "PRODUCT", True))
    files = [write_support(folder, "obes03010", suffix) for suffix in suffixes]
    mast.add("obes03010", table, *files)
    run = make("obes03010")
    download(run, "astroquery:")
    assert here(run) == sorted(p.name for p in (table, *files))


def test_no_such_dataset(make: Make, mast: FakeMast) -> None:
    run = make("lzzz01vnq")
    with pytest.raises(AstroqueryError, match="MAST has no raw files of lzzz01vnq"):
        download(run, "astroquery:")
    assert mast.asked == ["lzzz01vnq", "lzzz01%"]
    assert here(run) == []


def test_a_member_that_mast_has_not(make: Make, mast: FakeMast, held: Path) -> None:
    mast.observations["ldfd01010"].remove("ldfd01vrq_rawtag_a.fits")
    run = make("ldfd01010")
    with pytest.raises(AstroqueryError, match="ldfd01010: MAST has no raw files of ldfd01vrq") as raised:
        download(run, "astroquery:")
    assert "MAST_API_TOKEN" in raised.value.remedy
    shutil.copy(held / "ldfd01vrq_rawtag_a.fits", run.config.home)
    download(run, "astroquery:")
    assert_same(run, held, ASSOCIATION_FILES)


def test_an_association_table_that_is_none(make: Make, mast: FakeMast, held: Path) -> None:
    mast.files["ldfd01010_asn.fits"] = held / RAW
    with pytest.raises(AstroqueryError, match=r"ldfd01010_asn\.fits is not an association table"):
        download(make("ldfd01010"), "astroquery:")


@pytest.mark.parametrize("name", ["../ldfd01vlq_rawacq.fits", "/tmp/ldfd01vlq_spt.fits", "x/ldfd01vlq_spt.fits"])  # noqa: S108
def test_names_with_a_folder_are_not_followed(make: Make, mast: FakeMast, held: Path, name: str) -> None:
    mast.observations[ACQ] = [name, RAW]
    mast.files[name] = held / RAW
    run = make()
    download(run, "astroquery:")
    assert_same(run, held, [RAW])
    assert [n for n, _ in mast.downloads] == [RAW]


# --- what is there already --------------------------------------------------------------------------------------


def test_a_second_run_downloads_nothing(make: Make, mast: FakeMast, held: Path) -> None:
    download(make("ldfd01010"), "astroquery:")
    mast.downloads.clear()
    run = make("ldfd01010")
    download(run, "astroquery:")
    assert mast.downloads == []
    assert_same(run, held, ASSOCIATION_FILES)
    assert "ldfd01vnq_spt.fits: already there" in told(run)
    assert run.telemetry.warnings == []


def test_compressed_files_will_do(make: Make, mast: FakeMast, cos_data: Path) -> None:
    run = make("ldfd01010")
    for name in ASSOCIATION_FILES:
        shutil.copyfile(cos_data / "inputs" / f"{name}.gz", run.config.home / f"{name}.gz")
    download(run, "astroquery:")
    assert mast.downloads == []


def test_a_whole_file_of_the_user_is_never_overwritten(make: Make, mast: FakeMast, held: Path) -> None:
    run = make()
    fits.PrimaryHDU().writeto(run.config.home / RAW)
    mine = (run.config.home / RAW).read_bytes()
    download(run, "astroquery:")
    assert (run.config.home / RAW).read_bytes() == mine
    assert "yours is used" in run.telemetry.warnings[0]
    assert [name for name, _ in mast.downloads] == [ACQ_FILES[1]]


def test_a_damaged_file_is_replaced(make: Make, mast: FakeMast, held: Path) -> None:
    run = make()
    (run.config.home / RAW).write_bytes((held / RAW).read_bytes()[:4000])
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert len(run.telemetry.warnings) == 1
    assert "is damaged" in run.telemetry.warnings[0]


# --- failures that pass -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [502, 503, 429])
@pytest.mark.parametrize("only", ["invoke", "columnsconfig", "Download"])
def test_unavailable_for_a_while(make: Make, mast: FakeMast, held: Path, status: int, only: str) -> None:
    mast.unavailable, mast.status, mast.only = 2, status, only
    run = make()
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert f"HTTP {status}" in told(run) and "trying again in" in told(run)


@pytest.mark.parametrize(
    "garbage",
    [b"<html>busy</html>", b"", b"[]", b"null", b"{}", b'{"status": "ERROR", "msg": "down"}', b'{"data": 3}', b"\xff"],
)
@pytest.mark.parametrize("good", [0, 1])
def test_answers_that_make_no_sense(make: Make, mast: FakeMast, held: Path, garbage: bytes, good: int) -> None:
    columns = b'{"obs_id": {"type": "string"}, "obs_collection": {"type": "string"}}'
    mast.garbage = [columns] * good + [garbage]
    run = make()
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert "trying again in" in told(run)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["cut", "reset", "cut chunked"])
def test_connections_that_break_off(make: Make, mast: FakeMast, held: Path, fault: str, ranges: bool) -> None:
    mast.ranges = ranges
    mast.observations[ACQ] = [RAW]
    if fault == "reset":
        mast.reset = 2
    else:
        mast.cut, mast.chunked = [100_000, 150_000], "chunked" in fault
    run = make()
    download(run, "astroquery:")
    assert_same(run, held, [RAW])
    assert len(mast.downloads) == 3
    if fault != "reset":
        assert mast.downloads[1:] == [(RAW, "bytes=100000-"), (RAW, "bytes=150000-")]


def test_no_server(make: Make, mast: FakeMast) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    run = make(CALDP_MAST_URL=f"http://127.0.0.1:{port}", CALDP_MAST_TRIES="3")
    with pytest.raises(
        AstroqueryError, match=r"ldfd01vlq: asking MAST for ldfd01vlq: no connection to MAST \(3 tries\)"
    ):
        download(run, "astroquery:")


@pytest.mark.parametrize("only", ["invoke", "Download"])
def test_giving_up_after_all_tries(make: Make, mast: FakeMast, only: str) -> None:
    mast.unavailable, mast.only = 10**6, only
    with pytest.raises(AstroqueryError, match=r"MAST answers HTTP 503 Service Unavailable \(3 tries\)"):
        download(make(CALDP_MAST_TRIES="3"), "astroquery:")


def test_waiting_longer_each_time(make: Make, mast: FakeMast) -> None:
    mast.unavailable, mast.only = 10**6, "invoke"
    begun = time.monotonic()
    with pytest.raises(AstroqueryError, match="4 tries"):
        download(make(CALDP_MAST_WAIT="0.05"), "astroquery:")
    assert 0.05 + 0.1 + 0.2 < time.monotonic() - begun < 5


@pytest.mark.parametrize(("drip", "hang"), [(2.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("only", ["invoke", "Download"])
def test_a_server_that_falls_silent(make: Make, mast: FakeMast, drip: float, hang: float, only: str) -> None:
    mast.drip, mast.hang, mast.only, mast.piece = drip, hang, only, 10_000
    begun = time.monotonic()
    with pytest.raises(AstroqueryError, match=r"no answer from MAST for 0\.2 s \(2 tries\)"):
        download(make(CALDP_MAST_TIMEOUT="0.2", CALDP_MAST_TRIES="2"), "astroquery:")
    assert time.monotonic() - begun < 4


# --- failures that stay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "word"), [(400, "CALDP_MAST_URL"), (401, "token"), (403, "proprietary"), (410, "")])
@pytest.mark.parametrize("only", ["invoke", "Download"])
def test_a_refusal_is_not_asked_again(make: Make, mast: FakeMast, status: int, word: str, only: str) -> None:
    mast.unavailable, mast.status, mast.only = 1, status, only
    mast.observations[ACQ] = [RAW]
    with pytest.raises(AstroqueryError, match=f"ldfd01vlq: .*MAST answers HTTP {status}") as raised:
        download(make(), "astroquery:")
    assert word.lower() in raised.value.remedy.lower()
    assert mast.downloads == []


def test_a_file_that_is_listed_but_not_there(make: Make, mast: FakeMast) -> None:
    mast.sizes[RAW] = (mast.files.pop(RAW)).stat().st_size  # type: ignore[union-attr]
    with pytest.raises(AstroqueryError, match=f"{RAW}: MAST answers HTTP 404"):
        download(make(), "astroquery:")
    assert [n for n, _ in mast.downloads].count(RAW) == 1


def test_one_failure_ends_the_others(make: Make, mast: FakeMast) -> None:
    mast.sizes["ldfd01vrq_rawtag_a.fits"] = 3_000_000
    mast.files.pop("ldfd01vrq_rawtag_a.fits")
    mast.drip, mast.piece = 0.2, 10_000
    run = make("ldfd01010")
    begun = time.monotonic()
    with pytest.raises(AstroqueryError, match="404"):
        download(run, "astroquery:")
    assert time.monotonic() - begun < 5
    before = mast.sent
    assert not working()
    time.sleep(0.5)
    assert mast.sent - before < 300_000


# --- resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranges", "bytes_sent"), [(True, "rest"), (False, "all")])
def test_a_partial_file_is_completed(make: Make, mast: FakeMast, held: Path, ranges: bool, bytes_sent: str) -> None:
    mast.ranges, mast.observations[ACQ] = ranges, [RAW]
    content, run = (held / RAW).read_bytes(), make()
    (run.config.home / f"{RAW}.partial").write_bytes(content[:70_000])
    download(run, "astroquery:")
    assert_same(run, held, [RAW])
    assert mast.downloads == [(RAW, "bytes=70000-")]
    assert mast.sent == len(content) - (70_000 if bytes_sent == "rest" else 0)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", ["complete", "too long", "of another version", "damaged"])
def test_partial_files_of_all_kinds(make: Make, mast: FakeMast, held: Path, kind: str, known: bool) -> None:
    mast.observations[ACQ] = [RAW]
    if not known:
        mast.sizes[RAW] = None
    content, run = (held / RAW).read_bytes(), make()
    partial = run.config.home / f"{RAW}.partial"
    partial.write_bytes(
        {
            "complete": content,
            "too long": content + content,
            "of another version": bytes(len(content) // 2),
            "damaged": bytes(len(content)),
        }[kind]
    )
    mast.modified = time.time() + 60 if kind == "of another version" else 1e9
    download(run, "astroquery:")
    assert_same(run, held, [RAW])
    assert (mast.downloads == []) == (kind == "complete" and known)


# --- verification -----------------------------------------------------------------------------------------------


def wrong_size(mast: FakeMast, held: Path) -> None:
    mast.sizes[RAW] = (held / RAW).stat().st_size + 2880


def too_long(mast: FakeMast, held: Path) -> None:
    mast.sizes[RAW] = (held / RAW).stat().st_size - 2880


def no_fits(mast: FakeMast, held: Path) -> None:
    mast.files[RAW] = bytes((held / RAW).stat().st_size)


def page(mast: FakeMast, held: Path) -> None:
    mast.sizes[RAW] = (held / RAW).stat().st_size
    mast.files[RAW] = b"<html>please log in</html>"


@pytest.mark.parametrize("harm", [wrong_size, too_long, no_fits, page])
@pytest.mark.parametrize("chunked", [True, False])
def test_what_is_damaged_twice_is_an_error(
    make: Make, mast: FakeMast, held: Path, harm: Callable[[FakeMast, Path], None], chunked: bool
) -> None:
    mast.observations[ACQ], mast.chunked = [RAW], chunked
    harm(mast, held)
    run = make()
    with pytest.raises(AstroqueryError, match=f"ldfd01vlq: .*{RAW}"):
        download(run, "astroquery:")
    assert RAW not in here(run)
    if not chunked:
        assert here(run) == []
        assert len(mast.downloads) == 2


def test_what_is_damaged_once_is_fetched_again(make: Make, mast: FakeMast, held: Path) -> None:
    mast.observations[ACQ], mast.short = [RAW], [5760]
    run = make()
    download(run, "astroquery:")
    assert_same(run, held, [RAW])
    assert "once more" in told(run)


@pytest.mark.parametrize("size", [None, 0, -999])
def test_sizes_that_mast_does_not_know(make: Make, mast: FakeMast, held: Path, size: int | None) -> None:
    mast.sizes = dict.fromkeys(ACQ_FILES, size)
    run = make()
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)


# --- the run is stopped, or not alone ---------------------------------------------------------------------------


def test_a_run_that_is_stopped_leaves_what_it_has(make: Make, mast: FakeMast, held: Path) -> None:
    def stop(signum: int, frame: object) -> None:
        raise Stop(signum)

    mast.observations[ACQ] = [RAW]
    mast.drip, mast.piece = 3, 40_000
    run = make()
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.2)
        begun = time.monotonic()
        with pytest.raises(Stop):
            download(run, "astroquery:")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 2
    assert not working()
    assert here(run) == [f"{RAW}.partial"]
    assert 0 < (run.config.home / f"{RAW}.partial").stat().st_size < (held / RAW).stat().st_size
    mast.drip = 0
    download(run, "astroquery:")
    assert_same(run, held, [RAW])
    assert mast.downloads[-1][1].startswith("bytes=")


def test_slow_is_not_silent(make: Make, mast: FakeMast, held: Path) -> None:
    mast.observations[ACQ] = [RAW]
    mast.drip, mast.piece = 0.1, (held / RAW).stat().st_size // 12
    run = make(CALDP_MAST_TIMEOUT="0.5", CALDP_MAST_TRIES="1")
    download(run, "astroquery:")
    assert_same(run, held, [RAW])
    progress: list[tuple[str, int, int]] = run.telemetry.reporter.progressed  # type: ignore[attr-defined]
    size = (held / RAW).stat().st_size
    assert progress[-1] == ("download", size, size)
    assert len({done for _, done, _ in progress}) > 5
    assert [done for _, done, _ in progress] == sorted(done for _, done, _ in progress)


def test_another_run_that_downloads_the_same_file_is_waited_for(make: Make, mast: FakeMast, held: Path) -> None:
    mast.observations[ACQ] = [RAW]
    run = make()
    target, partial = run.config.home / RAW, run.config.home / f"{RAW}.partial"
    other = partial.open("wb")
    fcntl.flock(other, fcntl.LOCK_EX)

    def finish() -> None:
        other.write((held / RAW).read_bytes())
        other.flush()
        partial.rename(target)
        other.close()

    timer = threading.Timer(0.6, finish)
    timer.start()
    download(run, "astroquery:")
    timer.join()
    assert mast.downloads == []
    assert_same(run, held, [RAW])
    assert "another run is downloading it" in told(run)


# --- what must not be seen, or changed --------------------------------------------------------------------------


def test_the_token_is_sent(make: Make, mast: FakeMast) -> None:
    download(make(MAST_API_TOKEN=TOKEN), "astroquery:")
    assert mast.tokens == {f"token {TOKEN}"}


def test_without_a_token_none_is_sent(make: Make, mast: FakeMast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAST_API_TOKEN", raising=False)
    download(make(), "astroquery:")
    assert mast.tokens == {""}


@pytest.mark.parametrize("status", [200, 401, 503])
@pytest.mark.parametrize("only", ["invoke", "columnsconfig", "Download"])
def test_the_token_is_never_shown(
    make: Make,
    mast: FakeMast,
    status: int,
    only: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mast.unavailable, mast.status, mast.only, mast.echo = 10**6, status, only, True
    run = make(MAST_API_TOKEN=TOKEN, CALDP_MAST_TRIES="2")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AstroqueryError) as raised:
        download(run, "astroquery:")
    run.telemetry.error("failed", raised.value)
    seen = told(run) + str(raised.value) + raised.value.remedy + repr(run) + "".join(capfd.readouterr())
    seen += " ".join(here(run)) + caplog.text.replace("HTTP request", "")
    assert TOKEN not in seen


@pytest.mark.parametrize("url", ["http://mast.example", "http://10.0.0.1:8080"])
def test_the_token_is_not_sent_in_the_clear(make: Make, url: str) -> None:
    with pytest.raises(UsageError, match="MAST_API_TOKEN is not sent"):
        download(make(MAST_API_TOKEN=TOKEN, CALDP_MAST_URL=url), "astroquery:")


def test_astroquery_keeps_quiet_and_stays_as_it_was(
    make: Make, mast: FakeMast, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def chatty(*args: Any, **options: Any) -> Any:
        print("Downloading URL http://example")
        return parse(*args, **options)

    parse = PortalAPI._parse_result
    monkeypatch.setattr(PortalAPI, "_parse_result", chatty)
    before = (conf.server, conf.timeout, dict(PortalAPI._column_configs), PortalAPI.MAST_REQUEST_URL, PortalAPI.TIMEOUT)
    run = make()
    download(run, "astroquery:")
    assert "".join(capfd.readouterr()) == ""
    assert "astroquery: Downloading URL" in told(run)
    after = (conf.server, conf.timeout, dict(PortalAPI._column_configs), PortalAPI.MAST_REQUEST_URL, PortalAPI.TIMEOUT)
    assert after == before


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("CALDP_MAST_TRIES", "CALDP_MAST_WAIT", "CALDP_MAST_TIMEOUT") for value in BAD),
        ("CALDP_MAST_TRIES", "1.5"),
        ("CALDP_MAST_CLOUD", "sometimes"),
        *(
            ("CALDP_MAST_URL", value)
            for value in ("mast.stsci.edu", "ftp://x", "http://", "http://a b", "http://u:p@x")
        ),
    ],
)
def test_settings_that_make_no_sense(make: Make, mast: FakeMast, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        download(make(**{name: value}), "astroquery:")
    assert mast.tokens == set()


def test_the_address_may_have_a_path(make: Make, mast: FakeMast, held: Path) -> None:
    run = make(CALDP_MAST_URL=f"{mast.url}/proxy/")
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)


# --- mosaics ----------------------------------------------------------------------------------------------------

SVM_ROWS = [f"j8ph01{e}q_flc.fits,9774,8PH,01,90.0,CLEAR1L;F814W,WFC,j8ph01{e}q_flc.fits" for e in ("g0", "g1", "g3")]
SVM_FILES = [row.split(",")[0] for row in SVM_ROWS]
MVM_FILES = [f"hst_13773_20_wfc3_uvis_f657n_icnk20{e}_flc.fits" for e in ("a8", "ad")]
MVM_FILES += ["hst_9029_01_acs_hrc_f555w_j8bt05nj_flt.fits"]
MVM_ROWS = [f"{name},13773,CNK,20,515.0,F657N,UVIS,skycell-p2381x06y09,NEW,{name}" for name in MVM_FILES]
MOSAICS = {"acs_8ph_01": (SVM_ROWS, SVM_FILES), "skycell-p2381x06y09": (MVM_ROWS, MVM_FILES)}


@pytest.fixture
def mosaics(mast: FakeMast, tmp_path: Path) -> Path:
    """Let MAST hold the exposures of the mosaics, and others of the same visits; return a folder of poller files."""
    folder = tmp_path / "pollers"
    folder.mkdir()
    with io.BytesIO() as stream:
        fits.PrimaryHDU().writeto(stream)
        content = stream.getvalue()
    for dataset, (rows, files) in MOSAICS.items():
        (folder / f"{dataset}_input.out").write_text("\n".join(rows) + "\n")
        for name in [*files, "j8ph01g9q_flc.fits", "j8ph01g0q_flt.fits", "j8ph01g0q_raw.fits"]:
            mast.files[name] = content
    mast.observations["j8ph01010"] = [*SVM_FILES[:2], "j8ph01g9q_flc.fits", "j8ph01g0q_flt.fits", "j8ph01g0q_raw.fits"]
    mast.observations["j8ph01g3q"] = [SVM_FILES[2]]
    mast.observations["icnk20010"] = [MVM_FILES[0]]
    mast.observations["hst_13773_20_wfc3_uvis_f657n_icnk20ad"] = [MVM_FILES[1]]
    mast.observations["hst_9029_01_acs_hrc_f555w_j8bt05nj"] = [MVM_FILES[2]]
    return folder


@pytest.mark.parametrize("dataset", MOSAICS)
@pytest.mark.parametrize("form", ["{folder}", "{folder}/", "{folder}/{dataset}_input.out", ""])
def test_a_mosaic_brings_what_its_poller_file_lists(make: Make, mosaics: Path, dataset: str, form: str) -> None:
    run = make(dataset)
    if not form:
        shutil.copy(mosaics / f"{dataset}_input.out", run.config.home)
    download(run, "astroquery:" + form.format(folder=mosaics, dataset=dataset))
    assert here(run) == sorted([*MOSAICS[dataset][1], f"{dataset}_input.out"])
    assert run.telemetry.warnings == []


@pytest.mark.parametrize("dataset", MOSAICS)
def test_exposures_that_mast_has_not(make: Make, mast: FakeMast, mosaics: Path, dataset: str) -> None:
    last = MOSAICS[dataset][1][-1]
    for names in mast.observations.values():
        if last in names:
            names.remove(last)
    with pytest.raises(AstroqueryError, match=f"{dataset}: MAST has no {last}"):
        download(make(dataset), f"astroquery:{mosaics}")


@pytest.mark.parametrize("place", ["", "//", "nowhere", "nowhere/acs_8ph_01_input.out"])
def test_no_poller_file(make: Make, mast: FakeMast, tmp_path: Path, place: str) -> None:
    uri = f"astroquery:{tmp_path / place if place.strip('/') else place}"
    with pytest.raises(AstroqueryError, match="acs_8ph_01: there is no .*" + (place.strip("/") or "_input.out")):
        download(make("acs_8ph_01"), uri)
    assert mast.asked == []


@pytest.mark.parametrize(
    "text", ["", "\n\n", "FILE,1\n", "../j8ph01g0q_flc.fits,1", "hst_9029_j8bt05nj_flc.fits,1", "\0"]
)
def test_a_poller_file_that_is_none(make: Make, mast: FakeMast, text: str) -> None:
    run = make("acs_8ph_01")
    (run.config.home / "acs_8ph_01_input.out").write_text(text)
    with pytest.raises(AstroqueryError, match=r"acs_8ph_01_input\.out lists"):
        download(run, "astroquery:")
    assert mast.asked == []


def test_another_poller_file_is_replaced_with_a_warning(make: Make, mosaics: Path) -> None:
    run = make("acs_8ph_01")
    (run.config.home / "acs_8ph_01_input.out").write_text("mine")
    download(run, f"astroquery:{mosaics}")
    assert (run.config.home / "acs_8ph_01_input.out").read_text().startswith("j8ph01")
    assert "is replaced" in run.telemetry.warnings[0]


# --- S3 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty S3 on this machine, where its address and credentials are exported."""
    import boto3
    import requests

    requests.post(f"{s3_server}/moto-api/reset", timeout=10)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return boto3.session.Session().client("s3", endpoint_url=s3_server)


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://pollers", "acs_8ph_01_input.out"),
        ("s3://pollers/", "acs_8ph_01_input.out"),
        ("s3://pollers/a/b", "a/b/acs_8ph_01_input.out"),
        ("s3://pollers/a/b/", "a/b/acs_8ph_01_input.out"),
        ("s3://pollers/other_input.out", "other_input.out"),
    ],
)
def test_a_poller_file_in_s3(make: Make, mosaics: Path, s3: Any, s3_server: str, uri: str, key: str) -> None:
    s3.create_bucket(Bucket="pollers")
    s3.put_object(Bucket="pollers", Key=key, Body=(mosaics / "acs_8ph_01_input.out").read_bytes())
    run = make("acs_8ph_01", AWS_ENDPOINT_URL=s3_server)
    download(run, f"astroquery:{uri}")
    assert here(run) == sorted([*SVM_FILES, "acs_8ph_01_input.out"])


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://nothing", "s3://nothing/acs_8ph_01_input.out: there is no such bucket"),
        ("s3://pollers/x", "s3://pollers/x/acs_8ph_01_input.out: there is no such object"),
    ],
)
def test_a_poller_file_that_is_not_in_s3(make: Make, s3: Any, s3_server: str, uri: str, words: str) -> None:
    s3.create_bucket(Bucket="pollers")
    with pytest.raises(S3DownloadError, match=words):
        download(make("acs_8ph_01", AWS_ENDPOINT_URL=s3_server), f"astroquery:{uri}")


def test_s3_without_credentials(make: Make, s3: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(S3DownloadError, match="no AWS credentials") as raised:
        download(make("acs_8ph_01", AWS_ENDPOINT_URL=s3_server), "astroquery:s3://pollers")
    assert "AWS_PROFILE" in raised.value.remedy


def test_s3_that_does_not_answer(make: Make, s3: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    run = make("acs_8ph_01", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_MAX_ATTEMPTS="1")
    with pytest.raises(S3DownloadError, match="Could not connect"):
        download(run, "astroquery:s3://pollers")


@pytest.mark.parametrize("uri", ["astroquery:s3://", "astroquery:s3:///x"])
def test_s3_without_a_bucket(make: Make, uri: str) -> None:
    run = make("acs_8ph_01")
    with pytest.raises(UsageError, match="names no bucket"):
        module.check(run.dataset, run.config, uri.partition(":")[2])


def test_only_mosaics_have_a_list_of_exposures(make: Make) -> None:
    run = make()
    with pytest.raises(UsageError, match="only a mosaic has a list"):
        module.check(run.dataset, run.config, "/my/folder")


# --- copies in the cloud ----------------------------------------------------------------------------------------


@pytest.fixture
def cloud(mast: FakeMast, held: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The public bucket, with the acquisition in it; astroquery asks this MAST for the paths."""
    from astroquery.mast import utils

    ask = utils._simple_request
    monkeypatch.setattr(
        utils, "_simple_request", lambda url, *args: ask(url.replace("https://mast.stsci.edu", mast.url), *args)
    )
    s3.create_bucket(Bucket="stpubdata")
    for name in ACQ_FILES:
        content = (held / name).read_bytes()
        s3.put_object(Bucket="stpubdata", Key=f"hst/public/ldfd/{name}", Body=content, ACL="public-read")
        mast.paths[f"mast:HST/product/{name}"] = f"/hst/public/ldfd/{name}"
    return s3


@pytest.fixture
def make_cloudy(make: Make, s3_server: str) -> Make:
    return lambda dataset=ACQ, **environ: make(
        dataset, **{"AWS_ENDPOINT_URL": s3_server, "CALDP_MAST_CLOUD": "always", "CALDP_MAST_TIMEOUT": "60"} | environ
    )


def test_cloud_copies_come_first(make_cloudy: Make, mast: FakeMast, held: Path, cloud: Any) -> None:
    run = make_cloudy()
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert mast.downloads == []


def test_a_cloud_copy_resumes(make_cloudy: Make, mast: FakeMast, held: Path, cloud: Any) -> None:
    run = make_cloudy()
    time.sleep(1.1)  # the bucket was filled in this second
    (run.config.home / f"{RAW}.partial").write_bytes((held / RAW).read_bytes()[:100_000])
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert mast.downloads == []


def gone_after_the_question(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(client: Any, *args: Any) -> Any:
        raise OSError("gone")

    monkeypatch.setattr(module, "_from_cloud", first)


def never_there(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.delete_object(Bucket="stpubdata", Key=f"hst/public/ldfd/{RAW}")


def damaged(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.put_object(Bucket="stpubdata", Key=f"hst/public/ldfd/{RAW}", Body=b"<html>", ACL="public-read")


def breaking_off(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ReadTimeoutError

    read = module._from_cloud

    def half(*args: Any) -> Any:
        answer, pieces = read(*args), [b"SIMPLE  "]

        def some() -> bytes:
            if pieces:
                return pieces.pop()
            raise ReadTimeoutError(endpoint_url="s3")

        answer.read = some
        return answer

    monkeypatch.setattr(module, "_from_cloud", half)


@pytest.mark.parametrize("harm", [gone_after_the_question, never_there, damaged, breaking_off])
def test_mast_helps_out(
    make_cloudy: Make,
    mast: FakeMast,
    held: Path,
    cloud: Any,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Any, pytest.MonkeyPatch], None],
) -> None:
    harm(cloud, monkeypatch)
    run = make_cloudy()
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert RAW in [name for name, _ in mast.downloads]
    assert run.telemetry.warnings == []


@pytest.mark.parametrize("setting", ["auto", "never"])
def test_the_cloud_is_not_asked_for_files_of_another_server(
    make_cloudy: Make, mast: FakeMast, held: Path, cloud: Any, setting: str
) -> None:
    run = make_cloudy(CALDP_MAST_CLOUD=setting)
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert sorted(name for name, _ in mast.downloads) == ACQ_FILES


def test_proprietary_files_are_not_looked_for_in_the_cloud(make_cloudy: Make, mast: FakeMast, cloud: Any) -> None:
    mast.rights = "EXCLUSIVE_ACCESS"
    download(make_cloudy(), "astroquery:")
    assert sorted(name for name, _ in mast.downloads) == ACQ_FILES


def test_a_cloud_that_does_not_answer_is_not_waited_for(
    make_cloudy: Make, mast: FakeMast, held: Path, cloud: Any
) -> None:
    mast.hang, mast.only = 4, "path_lookup"
    run = make_cloudy(CALDP_MAST_TIMEOUT="0.5")
    begun = time.monotonic()
    download(run, "astroquery:")
    assert time.monotonic() - begun < 3
    assert_same(run, held, ACQ_FILES)
    assert "no cloud copies (no answer for 0.5 s)" in told(run)


def test_auto_asks_the_cloud_for_files_of_mast_itself(
    make_cloudy: Make, mast: FakeMast, held: Path, cloud: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAST_REQUEST_URL", "COLUMNS_CONFIG_URL", "MAST_DOWNLOAD_URL"):
        monkeypatch.setattr(PortalAPI, name, getattr(PortalAPI, name).replace("https://mast.stsci.edu", mast.url))
    run = make_cloudy(CALDP_MAST_CLOUD="auto", CALDP_MAST_URL="")
    download(run, "astroquery:")
    assert_same(run, held, ACQ_FILES)
    assert mast.downloads == []
