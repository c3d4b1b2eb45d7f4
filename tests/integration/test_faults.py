"""Bad input and faults: a documented exit code, one clear line, an error state, nothing half-published."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from astropy.io import fits

from caldp.local_store import LocalStore
from caldp.manifest import verified
from tests.desk import Desk, assert_ended, assert_tidy, child_named, linked_cache, small_disk

ACQ = "ldfd01vlq"
TAG = "ldfd01vnq"
Give = Callable[..., None]


def unzip(desk: Desk, name: str) -> Path:
    """Replace IN/<name>.gz by the plain file."""
    packed = desk.inputs / f"{name}.gz"
    plain = desk.inputs / name
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return plain


# --- what the user types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "x",
        "ldfd0101",
        "ldfd010100",
        "ldfd01010\n",
        "../../etc",
        "n8ab01010",
        "ldfd 1010",
        "-",
        "ldfd01010;ls",
        "Ł" * 9,
    ],
)
def test_bad_ids_are_refused_in_one_line(desk: Desk, typed: str) -> None:
    result = desk.run("--", typed)
    assert result.code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (desk.home / "messages").exists()


@pytest.mark.parametrize(("dataset", "instrument"), [("n4ab01c2q", "NICMOS"), ("u2ab01c2t", "WFPC2")])
def test_former_instruments_are_refused(desk: Desk, dataset: str, instrument: str) -> None:
    result = desk.run(dataset)
    assert result.code == 2
    assert f"{dataset}: {instrument} is not calibrated by this pipeline" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["inputs"], "file:"),
        (["ftp://x"], "file:"),
        (["file:.", "s3:"], "bucket"),
        (["file:.", "file:.", "no-such-config"], "no-such-config"),
        (["file:.", "file:.", "caldp-config-onsite", "--override", "FLUXTAB=nowhere.fits"], "nowhere.fits"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(desk: Desk, arguments: list[str], word: str) -> None:
    result = desk.run(ACQ, *arguments)
    assert result.code == 2
    assert word in result.stderr
    assert [p.name for p in desk.home.iterdir()] == ["IN"]


# --- inputs -----------------------------------------------------------------------------------------------------


def test_no_such_directory(desk: Desk) -> None:
    result = desk.run(ACQ, "file:nowhere", "file:OUT")
    desk.assert_failed(result, ACQ, 21, str(desk.home / "nowhere"))


def test_no_matching_file(desk: Desk, give: Give) -> None:
    give("ldfd01vn*")
    desk.assert_failed(desk.process(ACQ), ACQ, 21, "ldfd01vlq_raw*.fits")


def test_missing_association_member(desk: Desk, give: Give) -> None:
    give("*_asn*", "*vnq*", "*vpq*", "*vrq*")
    desk.assert_failed(desk.process("ldfd01010"), "ldfd01010", 21, "ldfd01vtq")


def test_support_file_alone_is_not_a_dataset(desk: Desk, give: Give) -> None:
    give("ldfd01vlq_spt*")
    desk.assert_failed(desk.process(ACQ), ACQ, 21, "no ldfd01vlq_asn.fits or ldfd01vlq_raw*.fits")


@pytest.mark.parametrize("packed", [True, False])
def test_truncated_raw(desk: Desk, give: Give, packed: bool) -> None:
    give("ldfd01vlq*")
    path = desk.inputs / "ldfd01vlq_rawacq.fits.gz" if packed else unzip(desk, "ldfd01vlq_rawacq.fits")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    desk.assert_failed(desk.process(ACQ), ACQ, 21, "ldfd01vlq_rawacq.fits")


@pytest.mark.parametrize("content", [b"", b"not FITS at all\n" * 400, bytes(5760)])
def test_garbage_raw(desk: Desk, give: Give, content: bytes) -> None:
    give("ldfd01vlq*")
    unzip(desk, "ldfd01vlq_rawacq.fits").write_bytes(content)
    desk.assert_failed(desk.process(ACQ), ACQ, 21, "ldfd01vlq_rawacq.fits")


def test_empty_event_table(desk: Desk, give: Give) -> None:
    give("ldfd01vnq*")
    path = unzip(desk, "ldfd01vnq_rawtag_a.fits")
    with fits.open(path) as hdus:
        hdus["EVENTS"].data = hdus["EVENTS"].data[:0]
        hdus.writeto(path, overwrite=True)
    desk.assert_failed(desk.process(TAG), TAG, 21, "ldfd01vnq_rawtag_a.fits", "no events")


def test_damaged_tarball(desk: Desk, give: Give, tmp_path: Path) -> None:
    give("ldfd01vlq*")
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(desk.inputs / "ldfd01vlq_rawacq.fits.gz", "ldfd01vlq_rawacq.fits.gz")
    for path in desk.inputs.iterdir():
        path.unlink()
    content = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "whole.tar.gz").unlink()
    (desk.inputs / "ldfd01vlq.tar.gz").write_bytes(content[: len(content) // 2])
    desk.assert_failed(desk.process(ACQ), ACQ, 21, "ldfd01vlq.tar.gz")


# --- references -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["hst_9999.pmap", "hst_729.pmap", "jwst_0001.pmap", "../x"])
def test_unknown_context(desk: Desk, give: Give, context: str) -> None:
    give("ldfd01vlq*")
    desk.assert_failed(desk.process(ACQ, "--context", context), ACQ, 27, context)


def test_no_crds_cache(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    result = desk.process(ACQ, env={"CRDS_PATH": str(desk.home / "nothing")})
    desk.assert_failed(result, ACQ, 27, str(desk.home / "nothing"), "CRDS_PATH")


def test_missing_reference(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    cache = linked_cache(Path(desk.env["CRDS_PATH"]), desk.home / "crds")
    (cache / "references" / "hst" / "x5v1944hl_flat.fits").unlink()
    desk.assert_failed(desk.process(ACQ, env={"CRDS_PATH": str(cache)}), ACQ, 27, "x5v1944hl_flat.fits", "FLATFILE")


def test_truncated_reference(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    cache = linked_cache(Path(desk.env["CRDS_PATH"]), desk.home / "crds")
    path = cache / "references" / "hst" / "uas19356l_bpix.fits"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:4000])
    desk.assert_failed(desk.process(ACQ, env={"CRDS_PATH": str(cache)}), ACQ, 27, "uas19356l_bpix.fits")


def test_damaged_rules(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    cache = linked_cache(Path(desk.env["CRDS_PATH"]), desk.home / "crds")
    path = cache / "mappings" / "hst" / "hst_cos_0306.imap"
    path.unlink()
    path.write_text("selector = {}\n")
    desk.assert_failed(desk.process(ACQ, env={"CRDS_PATH": str(cache)}), ACQ, 27)


def test_d11_a_reference_known_to_be_bad_is_refused_unless_allowed(desk: Desk, give: Give) -> None:
    give("ldfd01vnq*")
    result = desk.process(TAG, "--context", "hst_0613.pmap")
    desk.assert_failed(result, TAG, 27, "23e16470l_gsag.fits", "CRDS_ALLOW_BAD_REFERENCES")


# --- the system -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["/proc/caldp", "/dev/null/x"])
def test_unwritable_output(desk: Desk, give: Give, output: str) -> None:
    give("ldfd01vlq*")
    result = desk.run(ACQ, "file:IN", f"file:{output}")
    assert result.code == 29
    assert len(result.stderr.strip().splitlines()) == 1
    assert ACQ in result.stderr
    assert_tidy(desk.home)


def test_scratch_disk_full_while_fetching(desk: Desk, give: Give, tmp_path: Path) -> None:
    give("ldfd01vlq*")
    with small_disk(tmp_path / "small", "2m"):
        result = desk.process(ACQ, env={"CALDP_HOME": str(tmp_path / "small")})
        desk.assert_failed(result, ACQ, 29, "no space left")


def test_scratch_disk_full_while_calibrating(desk: Desk, give: Give, tmp_path: Path) -> None:
    give("ldfd01vlq*")
    with small_disk(tmp_path / "small", "40m"):
        result = desk.process(ACQ, env={"CALDP_HOME": str(tmp_path / "small")})
        desk.assert_failed(result, ACQ, 29, "no space left")


def test_output_disk_full_while_publishing(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    with small_disk(desk.output, "20m"):
        desk.assert_failed(desk.process(ACQ, env={"CALDP_HOME": str(desk.home)}), ACQ, 29, "no space left")


def test_calcos_is_not_installed(desk: Desk, give: Give, tmp_path: Path) -> None:
    give("ldfd01vlq*")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "calcos").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bin" / "calcos").chmod(0o755)
    result = desk.process(ACQ, env={"PATH": f"{tmp_path / 'bin'}{os.pathsep}{desk.env['PATH']}"})
    desk.assert_failed(result, ACQ, 23, "calcos")


def test_calcos_killed_by_a_signal(desk: Desk, give: Give) -> None:
    give("ldfd01vnq*")
    process = desk.start(TAG, "file:IN", "file:OUT")
    child_named(process, "calcos").kill()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 23, stdout + stderr
    assert "calcos: killed by SIGKILL" in stderr
    assert desk.status(TAG)["state"] == "error"
    assert desk.tree(TAG) == {f"logs/{n}" for n in LOGS}


LOGS = ("metrics.json", "preview.txt", "preview_metrics.txt", "process.txt", "process_metrics.txt")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("program", ["crds.bestrefs", "calcos", "caldp.create_preview"])
def test_d33_a_stopped_run_says_so(desk: Desk, give: Give, program: str, signum: int, code: int) -> None:
    dataset = ACQ if program == "caldp.create_preview" else TAG  # the shorter way to the previews
    give(f"{dataset}*")
    process = desk.start(dataset, "file:IN", "file:OUT")
    child = child_named(process, program)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert signal.Signals(signum).name in stderr
    assert_ended(child)
    status = desk.status(dataset)
    assert (status["state"], status["exit_code"]) == ("error", code)
    assert desk.states(dataset) == ["dataset-error"]
    assert desk.tree(dataset) == {f"logs/{n}" for n in LOGS}
    assert_tidy(desk.home)


@pytest.mark.slow
def test_killed_at_any_moment_then_taken_over(desk: Desk, give: Give) -> None:
    """SIGKILL at moments spread over a whole run; each time the next run takes the dataset over and ends right."""
    give("ldfd01vlq*")
    started = time.monotonic()
    whole = desk.process(ACQ)
    seconds = time.monotonic() - started
    assert whole.code == 0
    tree, products = desk.tree(ACQ), desk.manifest(ACQ)["products"]
    killed = 0
    for step in range(6):
        shutil.rmtree(desk.output)
        process = desk.start(ACQ, "file:IN", "file:OUT")
        time.sleep(seconds * (0.15 + step * 0.15))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        before = desk.status(ACQ) if (desk.output / "messages" / "status").exists() else None
        if before is not None and process.returncode == -signal.SIGKILL:
            assert before["state"] in ("processing", "processed")
        started = time.monotonic()
        after = desk.process(ACQ)
        seconds = time.monotonic() - started  # others may be busy at one time and not at another
        assert after.code == 0, after.stderr
        status = desk.status(ACQ)
        assert status["state"] == "processed"
        assert status["attempt"] == (before["attempt"] + 1 if before else 1)
        assert desk.states(ACQ) == ["datasets-processed"]
        assert desk.tree(ACQ) == tree
        assert [p["name"] for p in desk.manifest(ACQ)["products"]] == [p["name"] for p in products]
        assert_tidy(desk.home)
    assert killed >= 2


# --- two at once ------------------------------------------------------------------------------------------------


def test_two_runs_at_once_one_wins(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    runs = [desk.start(ACQ, "file:IN", "file:OUT") for _ in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 35], said
    loser = next(err for run, (_, err) in zip(runs, said, strict=True) if run.returncode == 35)
    assert ACQ in loser and "another run" in loser
    assert desk.status(ACQ)["attempt"] == 1
    assert len(desk.status(ACQ)["history"]) == 2
    assert desk.states(ACQ) == ["datasets-processed"]
    assert_tidy(desk.home)


@pytest.mark.slow
def test_take_over_wins_and_the_old_owner_changes_nothing(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    old = desk.start(ACQ, "file:IN", "file:OUT")
    child = child_named(old, "calcos")
    old.send_signal(signal.SIGSTOP)
    try:
        new = desk.process(ACQ, "--take-over")
        assert new.code == 0, new.stderr
        published = desk.manifest(ACQ)
    finally:
        old.send_signal(signal.SIGCONT)
    _, stderr = old.communicate(timeout=120)
    assert old.returncode == 35
    assert "taken over" in stderr
    assert_ended(child)
    assert desk.manifest(ACQ) == published
    status = desk.status(ACQ)
    assert (status["attempt"], status["state"]) == (2, "processed")
    assert desk.states(ACQ) == ["datasets-processed"]
    assert_tidy(desk.home)


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True], ids=["first time", "again"])
def test_killed_at_changes_of_the_output(desk: Desk, give: Give, published: bool) -> None:
    """SIGKILL before every third change below the output: never half a tree, and the next run ends right."""
    give("ldfd01vlq*")
    path = unzip(desk, "ldfd01vlq_rawacq.fits")
    fits.setval(path, "EXPTYPE", value="ACQ/PEAKD")  # calcos is quick about it
    baseline = desk.home / "baseline"
    baseline.mkdir()
    if published:
        assert desk.process(ACQ).code == 0
        desk.output.rename(baseline / "OUT")
    tree, steps = None, int(published)
    while True:
        steps += 3
        shutil.rmtree(desk.output, ignore_errors=True)
        if published:
            shutil.copytree(baseline / "OUT", desk.output)
        killer = {
            "PYTHONPATH": str(Path(__file__).parents[1] / "fakes" / "killer"),
            "CALDP_TEST_KILL_AT": str(steps),
            "CALDP_TEST_KILL_BELOW": str(desk.output),
        }
        process = desk.start(ACQ, "file:IN", "file:OUT", "--quiet", env=killer)
        process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        there = verified(LocalStore(desk.output), f"data/cos/{ACQ}")
        folder = desk.folder(ACQ)
        assert there is not None or not (published or folder.exists()), f"half a tree after step {steps}"
        state = desk.status(ACQ)["state"] if (desk.output / f"messages/status/{ACQ}.json").exists() else None
        assert state in (None, "processing", "processed")
        after = desk.process(ACQ, "--quiet")
        assert after.code == 0, (steps, after.stderr)
        assert desk.states(ACQ) == ["datasets-processed"] and desk.status(ACQ)["state"] == "processed"
        assert tree in (None, desk.tree(ACQ))
        tree = desk.tree(ACQ)
        assert verified(LocalStore(desk.output), f"data/cos/{ACQ}") is not None
        for temporary in desk.output.glob("messages/*/.*.tmp"):
            temporary.unlink()  # a killed put's: it goes when it is ten minutes old
        assert_tidy(desk.home)
    assert steps > 30
