"""Fetch: exactly this dataset's files, checked before any program runs."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from caldp.errors import InputError
from caldp.inputs import Inputs, fetch
from caldp.run import Run
from tests.conftest import RunFactory
from tests.fakes.cos import compress, truncate, write_asn, write_raw, write_support
from tests.fakes.reporter import FakeReporter

Fetch = Callable[..., Inputs]

ASN = "ldfd01010"
MEMBERS = (("ldfd01vnq", "EXP-FP", True), ("ldfd01vpq", "EXP-FP", True), (ASN, "PROD-FP", True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "raw: data"
    path.mkdir()
    return path


@pytest.fixture
def run(make_run: RunFactory) -> Run:
    return make_run("ldfd01vnq")


@pytest.fixture
def asn_run(make_run: RunFactory) -> Run:
    return make_run(ASN)


@pytest.fixture
def association(folder: Path) -> Path:
    write_asn(folder, ASN, *MEMBERS)
    for number, (root, _, _) in enumerate(MEMBERS[:2]):
        write_raw(folder, root, FPPOS=number + 1)
        write_support(folder, root)
    write_support(folder, ASN)
    return folder


def names(inputs: Inputs) -> list[str]:
    listed = sorted(f.name for f in inputs.files)
    assert sorted(p.name for p in inputs.directory.iterdir()) == listed
    return listed


def warnings(run: Run) -> list[str]:
    assert isinstance(run.telemetry.reporter, FakeReporter)
    return [e[2] for e in run.telemetry.reporter.events if e[:2] == ("message", "WARNING")]


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def refused(run: Run, folder: Path, *words: str) -> InputError:
    with pytest.raises(InputError) as caught:
        fetch(run, f"file:{folder}")
    assert caught.value.exit_code == 21
    for word in (run.dataset.name, *words):
        assert word in str(caught.value)
    assert caught.value.remedy
    return caught.value


# ---- which files


def test_an_exposure(run: Run, folder: Path) -> None:
    path = write_raw(folder, "ldfd01vnq", FPPOS=2)
    write_support(folder, "ldfd01vnq")
    inputs = fetch(run, f"file:{folder}")
    assert names(inputs) == ["ldfd01vnq_rawtag_a.fits", "ldfd01vnq_spt.fits"]
    assert (inputs.kind, inputs.association, inputs.members) == ("exposure", None, ("ldfd01vnq",))
    raw = inputs.raw[0]
    assert (raw.root, raw.suffix, raw.source) == ("ldfd01vnq", "rawtag_a", str(path))
    assert raw.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert raw.size == path.stat().st_size
    facts = {k: raw.facts[k] for k in ("FPPOS", "EXPTYPE", "NUMFLASH", "EVENTS", "INSTRUME")}
    assert facts == {"FPPOS": 2, "EXPTYPE": "EXTERNAL/SCI", "NUMFLASH": 2, "EVENTS": 5, "INSTRUME": "COS"}
    assert run.telemetry.stages[0].bytes_in == sum(f.size for f in inputs.files)


def test_d4_siblings_are_left_alone(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    for sibling in ("ldfd01vpq", "ldfd01vnp", "ldfd02vnq", "ldfd0xvnq"):
        write_raw(folder, sibling)
        write_support(folder, sibling)
    write_asn(folder, ASN, *MEMBERS)
    assert names(fetch(run, f"file:{folder}")) == ["ldfd01vnq_rawtag_a.fits"]


@pytest.mark.parametrize(
    "name",
    ["ldfd01vnq_jit.fits", "ldfd01vnq_jif.fits", "ldfd01vnj_jit.fits", "ldfd01vnq_x1d.fits", "ldfd01vnq_raw.txt",
     "ldfd01vnq_rawtag_a.fits.bak", "xldfd01vnq_rawtag_a.fits", "ldfd01vnq_rawtag_c.fits", "copy of ldfd01vnq_spt"],
)  # fmt: skip
def test_other_files_are_ignored(run: Run, folder: Path, name: str) -> None:
    write_raw(folder, "ldfd01vnq")
    (folder / name).write_bytes(b"junk")
    (folder / "ldfd01vnq_spt.fits").mkdir()
    assert names(fetch(run, f"file:{folder}")) == ["ldfd01vnq_rawtag_a.fits"]


def test_d7_raw_in_the_name_of_a_directory_means_nothing(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "ldfd01vnq_raw" / "ldfd01vnq_rawtag_a.fits"
    folder.mkdir(parents=True)
    write_support(folder, "ldfd01vnq")
    refused(run, folder, "no raw data for ldfd01vnq")


def test_d22_raw_fits_in_the_current_directory(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(folder, "ldfd01vnq")
    monkeypatch.chdir(folder)
    assert names(fetch(run, "file:.")) == ["ldfd01vnq_rawtag_a.fits"]


@pytest.mark.parametrize("suffix", ["rawtag", "rawtag_b", "rawaccum", "rawaccum_a", "rawimage", "rawacq"])
def test_every_kind_of_raw_data(run: Run, folder: Path, suffix: str) -> None:
    write_raw(folder, "ldfd01vnq", suffix)
    assert [f.suffix for f in fetch(run, f"file:{folder}").raw] == [suffix]


def test_an_association(asn_run: Run, association: Path) -> None:
    write_raw(association, "ldfd01vrq")
    inputs = fetch(asn_run, f"file:{association}")
    assert names(inputs) == [
        "ldfd01010_asn.fits",
        "ldfd01010_spt.fits",
        "ldfd01vnq_rawtag_a.fits",
        "ldfd01vnq_spt.fits",
        "ldfd01vpq_rawtag_a.fits",
        "ldfd01vpq_spt.fits",
    ]
    assert (inputs.kind, inputs.members) == ("association", ("ldfd01vnq", "ldfd01vpq"))
    assert [f.facts["FPPOS"] for f in inputs.raw] == [1, 2]


def test_inputs_stay_as_they_were(asn_run: Run, association: Path) -> None:
    compress(association / "ldfd01vpq_rawtag_a.fits")
    before = content(association)
    inputs = fetch(asn_run, f"file:{association}")
    with fits.open(inputs.directory / inputs.raw[0].name, mode="update") as hdus:
        hdus[0].header["CHANGED"] = True
    assert content(association) == before
    assert not [f for f in inputs.directory.iterdir() if f.is_symlink()]


def test_read_only_inputs_become_writable_copies(run: Run, folder: Path) -> None:
    path = write_raw(folder, "ldfd01vnq")
    path.chmod(0o444)
    inputs = fetch(run, f"file:{folder}")
    assert (inputs.directory / path.name).stat().st_mode & 0o200


# ---- compressed


def test_gz(run: Run, folder: Path) -> None:
    plain = write_raw(folder, "ldfd01vnq")
    data = plain.read_bytes()
    compress(plain)
    raw = fetch(run, f"file:{folder}").raw[0]
    assert raw.name == "ldfd01vnq_rawtag_a.fits"
    assert (run.workspace.inputs / raw.name).read_bytes() == data
    assert (raw.size, raw.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert raw.source.endswith(".fits.gz")


def test_plain_is_preferred_to_gz(run: Run, folder: Path) -> None:
    compress(write_raw(folder, "ldfd01vnq", FPPOS=1))
    write_raw(folder, "ldfd01vnq", FPPOS=2)
    inputs = fetch(run, f"file:{folder}")
    assert [f.facts["FPPOS"] for f in inputs.raw] == [2]
    assert any("ldfd01vnq_rawtag_a.fits.gz" in text for text in warnings(run))


def test_plain_is_preferred_to_gz_for_members_too(asn_run: Run, association: Path) -> None:
    (association / "ldfd01vpq_rawtag_a.fits.gz").write_bytes(b"whatever")
    fetch(asn_run, f"file:{association}")
    assert any("ldfd01vpq_rawtag_a.fits.gz" in text for text in warnings(asn_run))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_gz(run: Run, folder: Path, share: float) -> None:
    truncate(compress(write_raw(folder, "ldfd01vnq", events=5000)), share)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits")


def test_gz_that_is_none(run: Run, folder: Path) -> None:
    (folder / "ldfd01vnq_rawtag_a.fits.gz").write_bytes(b"\x1f\x8b\x08" + b"\xff" * 100)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits.gz")


# ---- tarballs


def pack(folder: Path, name: str = "ldfd01vnq.tar.gz", mode: str = "w:gz") -> Path:
    tarball = folder / name
    with tarfile.open(tarball, mode) as archive:  # type: ignore[call-overload]
        for path in sorted(folder.glob("*.fits")):
            archive.add(path, f"some/folder/{path.name}")
            path.unlink()
    return tarball


def crooked(tarball: Path, name: str, **fields: Any) -> None:
    """Write a tarball of one crooked member and one good one."""
    good = write_raw(tarball.parent, "ldfd01vnq")
    with tarfile.open(tarball, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b"x" * info.size))
        archive.add(good, good.name)
    good.unlink()


@pytest.mark.parametrize(
    ("name", "mode"), [("ldfd01vnq.tar.gz", "w:gz"), ("ldfd01vnq.tgz", "w:gz"), ("ldfd01vnq.tar", "w")]
)
def test_a_tarball(run: Run, folder: Path, name: str, mode: str) -> None:
    write_raw(folder, "ldfd01vnq")
    write_raw(folder, "ldfd01vpq")
    write_support(folder, "ldfd01vnq")
    before = pack(folder, name, mode).read_bytes()
    assert names(fetch(run, f"file:{folder}")) == ["ldfd01vnq_rawtag_a.fits", "ldfd01vnq_spt.fits"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {name: before}


def test_a_tarball_of_an_association(asn_run: Run, association: Path) -> None:
    pack(association, f"{ASN}.tar.gz")
    assert fetch(asn_run, f"file:{association}").members == ("ldfd01vnq", "ldfd01vpq")


def test_the_tarball_of_another_dataset_is_not_touched(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    pack(folder, "ldfd01vpq.tar.gz")
    refused(run, folder, "no file ldfd01vnq_*.fits and no ldfd01vnq.tar.gz")


def test_the_right_tarball_with_the_wrong_content(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vpq")
    pack(folder)
    refused(run, folder, "ldfd01vnq")


@pytest.mark.parametrize(
    "name",
    ["/tmp/ldfd01vnq_spt.fits", "../ldfd01vnq_spt.fits", "a/../../../ldfd01vnq_spt.fits"],  # noqa: S108
)
def test_d26_unsafe_paths_in_a_tarball_are_refused(run: Run, folder: Path, name: str) -> None:
    crooked(folder / "ldfd01vnq.tar.gz", name, size=1)
    refused(run, folder, "ldfd01vnq.tar.gz", name)
    assert [p.name for p in folder.iterdir()] == ["ldfd01vnq.tar.gz"]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.DIRTYPE},
    ],
)
def test_d26_links_and_devices_in_a_tarball_are_never_made(run: Run, folder: Path, fields: dict[str, Any]) -> None:
    crooked(folder / "ldfd01vnq.tar.gz", "ldfd01vnq_spt.fits", **fields)
    assert names(fetch(run, f"file:{folder}")) == ["ldfd01vnq_rawtag_a.fits"]
    assert all(p.is_file() and not p.is_symlink() for p in (run.workspace.root / "unpacked").iterdir())


def test_d25_settings_in_a_tarball_are_not_used(run: Run, folder: Path) -> None:
    (folder / "ldfd01vnq_cal_env.txt").write_text("PATH=/evil\nLD_PRELOAD=/evil.so\n")
    crooked(folder / "ldfd01vnq.tar.gz", "ldfd01vnq_cal_env.txt", size=1)
    fetch(run, f"file:{folder}")
    assert "/evil" not in repr(run.config.program_environment())


@pytest.mark.parametrize(
    ("mode", "share"),
    [(mode, share) for mode in ("w:gz", "w") for share in (0, 0.001, 0.1, 0.5, 0.9)] + [("w:gz", 0.99)],
)
def test_a_truncated_tarball(run: Run, folder: Path, mode: str, share: float) -> None:
    write_raw(folder, "ldfd01vnq", events=20_000)
    write_raw(folder, "ldfd01vnq", "rawtag_b", events=100)
    tarball = pack(folder, "ldfd01vnq.tar", mode)
    truncate(tarball, share)
    refused(run, folder)


def test_a_tarball_that_is_none(run: Run, folder: Path) -> None:
    (folder / "ldfd01vnq.tar.gz").write_bytes(os.urandom(5000))
    refused(run, folder, "ldfd01vnq.tar.gz", "cannot be unpacked")


def test_a_tarball_with_the_same_file_twice(run: Run, folder: Path) -> None:
    path = write_raw(folder, "ldfd01vnq")
    with tarfile.open(folder / "ldfd01vnq.tar.gz", "w:gz") as archive:
        archive.add(path, f"a/{path.name}")
        archive.add(path, f"b/{path.name}")
    path.unlink()
    refused(run, folder, "ldfd01vnq.tar.gz")


# ---- associations


def test_a_missing_member(asn_run: Run, association: Path) -> None:
    (association / "ldfd01vpq_rawtag_a.fits").unlink()
    refused(asn_run, association, "no raw data for ldfd01vpq", "_rawtag_a.fits")


def test_a_member_that_was_not_taken(asn_run: Run, folder: Path) -> None:
    write_asn(folder, ASN, ("ldfd01vnq", "EXP-FP", True), ("ldfd01vpq", "EXP-FP", False), (ASN, "PROD-FP", True))
    write_raw(folder, "ldfd01vnq")
    write_raw(folder, "ldfd01vpq")
    inputs = fetch(asn_run, f"file:{folder}")
    assert inputs.members == ("ldfd01vnq",)
    assert names(inputs) == ["ldfd01010_asn.fits", "ldfd01vnq_rawtag_a.fits"]
    assert any("ldfd01vpq" in text for text in warnings(asn_run))


def test_a_product_that_is_not_there_yet(asn_run: Run, folder: Path) -> None:
    write_asn(folder, ASN, ("ldfd01vnq", "EXP-FP", True), (ASN, "PROD-FP", False))
    write_raw(folder, "ldfd01vnq")
    assert fetch(asn_run, f"file:{folder}").members == ("ldfd01vnq",)
    assert warnings(asn_run) == []


def test_a_table_without_the_column_memprsnt(asn_run: Run, folder: Path) -> None:
    write_asn(folder, ASN, *MEMBERS, present=False)
    write_raw(folder, "ldfd01vnq")
    write_raw(folder, "ldfd01vpq")
    assert fetch(asn_run, f"file:{folder}").members == ("ldfd01vnq", "ldfd01vpq")


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([(ASN, "PROD-FP", True)], "lists no exposure"),
        ([("ldfd01vnq", "EXP-FP", False)], "lists no exposure"),
        ([("../../etc", "EXP-FP", True)], "'../../etc'"),
        ([("ldfd01vn", "EXP-FP", True)], "'ldfd01vn'"),
        ([("", "EXP-FP", True)], "''"),
    ],
)
def test_odd_association_tables(asn_run: Run, folder: Path, members: list[tuple[str, str, bool]], word: str) -> None:
    write_asn(folder, ASN, *members)
    refused(asn_run, folder, "ldfd01010_asn.fits", word)


def test_an_association_without_a_table(asn_run: Run, folder: Path) -> None:
    write_support(folder, ASN, "asn")
    refused(asn_run, folder, "ldfd01010_asn.fits", "not an association table")


def test_an_association_table_with_other_columns(asn_run: Run, folder: Path) -> None:
    path = write_raw(folder, ASN)
    path.rename(folder / f"{ASN}_asn.fits")
    refused(asn_run, folder, "ldfd01010_asn.fits", "not an association table")


# ---- damage


def test_no_directory(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path / "nowhere", "no input directory", "nowhere")
    (tmp_path / "file").touch()
    refused(run, tmp_path / "file", "no input directory")


def test_no_file(run: Run, folder: Path) -> None:
    refused(run, folder, "no file ldfd01vnq_*.fits", str(folder))


def test_support_alone_is_not_enough(run: Run, folder: Path) -> None:
    write_support(folder, "ldfd01vnq")
    refused(run, folder, "no raw data for ldfd01vnq")


@pytest.mark.parametrize("share", [0, 0.05, 0.4, 0.7, 0.95])
def test_d10_truncated_raw(run: Run, folder: Path, share: float) -> None:
    truncate(write_raw(folder, "ldfd01vnq", events=5000), share)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "not whole FITS")


@pytest.mark.parametrize("data", [b"garbage", b"\0" * 10_000, b"SIMPLE  =                    T" + b" " * 2850])
def test_d10_garbage_raw(run: Run, folder: Path, data: bytes) -> None:
    (folder / "ldfd01vnq_rawtag_a.fits").write_bytes(data)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"TFORM1  = '1E      '", b"TFORM1  = 'ZZ      '"),
        (b"TFIELDS =                    1", b"TFIELDS =                    7"),
        (b"NAXIS2  =                    5", b"NAXIS2  =                   -5"),
        (b"INSTRUME= 'COS     '", b"INSTRUME= COS       "),
    ],
)
def test_d10_a_damaged_header(run: Run, folder: Path, old: bytes, new: bytes) -> None:
    path = write_raw(folder, "ldfd01vnq")
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    refused(run, folder, "ldfd01vnq_rawtag_a.fits")


def test_damaged_support(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    (folder / "ldfd01vnq_spt.fits").write_bytes(b"garbage")
    refused(run, folder, "ldfd01vnq_spt.fits")


@pytest.mark.parametrize("instrument", ["ACS", "STIS", "", 5])
def test_another_instrument(run: Run, folder: Path, instrument: Any) -> None:
    write_raw(folder, "ldfd01vnq", INSTRUME=instrument)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "not COS")


def test_no_instrument(run: Run, folder: Path) -> None:
    fits.PrimaryHDU().writeto(folder / "ldfd01vnq_rawtag_a.fits")
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "is no data, not COS")


def test_a_file_under_a_wrong_name(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", ROOTNAME="LDFD01VPQ")
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "LDFD01VPQ")


# ---- empty tables


def test_no_events(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", events=0)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "no events")


def test_no_events_in_one_segment(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawtag_a")
    write_raw(folder, "ldfd01vnq", "rawtag_b", events=0)
    inputs = fetch(run, f"file:{folder}")
    assert inputs.empty == ("ldfd01vnq_rawtag_b.fits",)
    assert [text for text in warnings(run) if "ldfd01vnq_rawtag_b.fits" in text]


def test_no_events_in_both_segments(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawtag_a", events=0)
    write_raw(folder, "ldfd01vnq", "rawtag_b", events=0)
    refused(run, folder, "no events")


def test_no_events_in_one_member(asn_run: Run, association: Path) -> None:
    (association / "ldfd01vpq_rawtag_a.fits").unlink()
    write_raw(association, "ldfd01vpq", events=0)
    refused(asn_run, association, "ldfd01vpq_rawtag_a.fits", "no events")
