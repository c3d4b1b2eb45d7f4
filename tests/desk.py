"""Fixtures of the tests that run the real command on real and simulated data."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from astropy.io import fits

from caldp.dataset import Dataset

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CALDP_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
CONTEXT = "hst_0729.pmap"
SCRIPTS = Path(sysconfig.get_path("scripts"))

#: Variables of the caller that would change what a run does.
_IGNORED = ("CRDS_", "CALDP_", "ASTROMETRY_", "iref", "jref", "lref", "oref", "CSYS_VER", "AWSDPVER", "AWSYSVER")

#: Programs of HSTCAL, which are not in the Python package index.
HSTCAL = ("calacs.e", "calwf3.e", "cs0.e")

needs_calacs = pytest.mark.skipif(
    shutil.which("calacs.e") is None, reason="calacs.e (HSTCAL) is not installed; it is not in the Python package index"
)
needs_cs0 = pytest.mark.skipif(
    shutil.which("cs0.e") is None, reason="cs0.e (HSTCAL) is not installed; it is not in the Python package index"
)


def require(there: bool, missing: str) -> None:
    """Skip a test for want of what it needs; with CI set that must be there, and its absence fails."""
    if not there and os.environ.get("CI"):
        pytest.fail(f"CI is set, but there is {missing}")
    if not there:
        pytest.skip(f"there is {missing}")


@pytest.fixture(scope="session")
def full_device() -> Path:
    """A disk that is always full, as Linux has one."""
    device = Path("/dev/full")
    require(device.exists(), f"no {device}")
    return device


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real HST data."""
    require(DATA.is_dir(), f"no HST data at {DATA}: set CALDP_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def cos_data(shared_data: Path) -> Path:
    """The real association ldfd01010: inputs, truth, CRDS cache."""
    return shared_data / "cos-ldfd01010"


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of a user who has exported the CRDS cache (whether it is there or not) and the context."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_IGNORED)}
    return {
        **env,
        "PATH": f"{SCRIPTS}{os.pathsep}{env['PATH']}",
        "CRDS_PATH": str(DATA / "cos-ldfd01010" / "crds_cache"),
        "CRDS_CONTEXT": CONTEXT,
    }


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Desk:
    """A directory with inputs, in which a user types commands."""

    home: Path
    env: Mapping[str, str]

    @property
    def inputs(self) -> Path:
        return self.home / "IN"

    @property
    def output(self) -> Path:
        return self.home / "OUT"

    def start(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start caldp-process with these arguments."""
        return subprocess.Popen(
            [str(SCRIPTS / "caldp-process"), *args],
            cwd=self.home,
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, env: Mapping[str, str] | None = None) -> Result:
        """Run caldp-process to its end."""
        process = self.start(*args, env=env)
        try:
            stdout, stderr = process.communicate(timeout=600)
        finally:
            process.kill()
        assert "Traceback" not in stdout + stderr, stdout + stderr
        return Result(process.returncode, stdout, stderr)

    def process(self, dataset: str, *options: str, env: Mapping[str, str] | None = None) -> Result:
        """Calibrate a dataset from IN to OUT."""
        return self.run(dataset, "file:IN", "file:OUT", *options, env=env)

    def status(self, dataset: str) -> dict[str, Any]:
        """Read a dataset's status."""
        record: dict[str, Any] = json.loads((self.output / "messages" / "status" / f"{dataset}.json").read_text())
        return record

    def states(self, dataset: str) -> list[str]:
        """List the folders of messages/ that show the dataset."""
        return sorted(p.parent.name for p in (self.output / "messages").glob(f"*/{dataset}"))

    def folder(self, dataset: str) -> Path:
        """Return the dataset's folder of products."""
        return self.output / Dataset.parse(dataset).prefix

    def manifest(self, dataset: str) -> dict[str, Any]:
        """Read a dataset's manifest."""
        record: dict[str, Any] = json.loads((self.folder(dataset) / "manifest.json").read_text())
        return record

    def tree(self, dataset: str) -> set[str]:
        """Return the names of all files of a dataset."""
        folder = self.folder(dataset)
        return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}

    def assert_failed(self, result: Result, dataset: str, code: int, *words: str) -> None:
        """Assert that a run failed as documented: code, one clear line, an error state, nothing published."""
        assert result.code == code, result.stdout + result.stderr
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        for word in (dataset, *words):
            assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
        status = self.status(dataset)
        assert (status["state"], status["exit_code"]) == ("error", code)
        assert self.states(dataset) == ["dataset-error"]
        assert not (self.folder(dataset) / "manifest.json").exists()
        assert not list(self.folder(dataset).glob("*.fits"))
        assert_tidy(self.home)


def assert_tidy(home: Path) -> None:
    """Assert that no scratch, no lock and no half-staged tree is left."""
    assert not (home / "caldp-scratch").exists()
    assert not list(home.rglob("*.partial"))
    assert not list(home.rglob("*.lock"))
    assert not list(home.rglob(".*.tmp"))
    assert not [path for locks in home.rglob(".locks") for path in locks.iterdir()]


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a file system of a given size; only root can."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    require(not done.returncode, f"no small disk, which only root can mount: {done.stderr!r}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def desk(tmp_path: Path, environment: dict[str, str]) -> Desk:
    """An empty directory to work in."""
    (tmp_path / "IN").mkdir()
    return Desk(tmp_path, environment)


@pytest.fixture
def give(cos_data: Path, desk: Desk) -> Callable[..., None]:
    """Return a function that copies this dataset's real inputs (by name patterns) to the desk."""

    def copy(*patterns: str) -> None:
        for pattern in patterns:
            for path in sorted((cos_data / "inputs").glob(pattern)):
                shutil.copy(path, desk.inputs / path.name)
                (desk.inputs / path.name).chmod(0o644)

    return copy


@pytest.fixture(scope="session")
def association(
    tmp_path_factory: pytest.TempPathFactory, cos_data: Path, environment: dict[str, str]
) -> Iterator[Desk]:
    """The whole association ldfd01010, calibrated once by caldp-process for all tests and workers of a run."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    home = shared / "association"
    desk = Desk(home, environment)
    with (shared / "association.turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (home / "result.json").exists():
            shutil.copytree(cos_data / "inputs", home / "IN", copy_function=shutil.copyfile, dirs_exist_ok=True)
            result = desk.process("ldfd01010")
            (home / "result.json").write_text(json.dumps([result.code, result.stdout, result.stderr]))
    assert json.loads((home / "result.json").read_text())[0] == 0, (home / "result.json").read_text()
    yield desk


@pytest.fixture(scope="session")
def association_result(association: Desk) -> Result:
    """What the command said."""
    code, stdout, stderr = json.loads((association.home / "result.json").read_text())
    return Result(code, stdout, stderr)


# --- ACS/HRC and what is made of it ------------------------------------------------------------------------------

HRC = "j8bt05njq"


@dataclass(frozen=True)
class Shelf:
    """Things that are made once for all tests and workers of a run."""

    home: Path

    @contextmanager
    def once(self, name: str) -> Iterator[Path | None]:
        """Yield an empty folder to fill, or None where another test has filled it."""
        folder = self.home / name
        with (self.home / f"{name}.turn").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if (self.home / f"{name}.done").exists():
                yield None
                return
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
            (self.home / f"{name}.done").touch()

    def calibrated(self, name: str, dataset: str, env: Mapping[str, str], fill: Callable[[Path], object]) -> Desk:
        """Return the desk at which a dataset was calibrated from what ``fill`` put into its folder of inputs."""
        desk = Desk(self.home / name, env)
        with self.once(name) as folder:
            if folder is not None:
                desk.inputs.mkdir()
                options = fill(desk.inputs)
                result = desk.process(dataset, *(options if isinstance(options, list) else []))
                (folder / "result.json").write_text(json.dumps([result.code, result.stdout, result.stderr]))
        assert json.loads((desk.home / "result.json").read_text())[0] == 0, (desk.home / "result.json").read_text()
        return desk


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A place that all workers of a run share."""
    shared = tmp_path_factory.getbasetemp()
    return Shelf(shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared)


def unpacked(packed: Path, target: Path) -> Path:
    """Put the content of a gzip file into another one."""
    target.write_bytes(gzip.decompress(packed.read_bytes()))
    return target


def make_hrc(target: Path, raw: Path, *, member: str = "", moved: tuple[int, int] = (0, 0), **keywords: str) -> Path:
    """Write a raw exposure that differs from a real one as another of its visit would.

    Parameters
    ----------
    target : Path
        ``<root>_raw.fits``; it becomes the exposure of that name.
    raw : Path
        The real one.
    member : str
        ``<association>:<type>``, for example ``j8bt05020:EXP-DTH``.
    moved : tuple of int
        By how many columns and rows the telescope pointed elsewhere.
    **keywords : str
        Other keywords of the primary header.
    """
    root = target.name[:9]
    association, _, kind = member.partition(":")
    with fits.open(raw) as hdus:
        primary = hdus[0].header
        primary.update(ROOTNAME=root, FILENAME=target.name, **keywords)
        later = sum(map(ord, root)) % 97 / 1440
        primary["EXPSTART"] += later
        primary["EXPEND"] += later
        if association:
            primary.update(ASN_ID=association.upper(), ASN_TAB=f"{association}_asn.fits", ASN_MTYP=kind)
        for hdu in hdus[1:]:
            hdu.header["ROOTNAME"] = hdu.header["EXPNAME"] = root
            if "CRVAL1" in hdu.header:
                right_ascension, declination = np.array(moved) @ [
                    [hdu.header["CD1_1"], hdu.header["CD2_1"]],
                    [hdu.header["CD1_2"], hdu.header["CD2_2"]],
                ]
                hdu.header["CRVAL1"] -= right_ascension / np.cos(np.radians(hdu.header["CRVAL2"]))
                hdu.header["CRVAL2"] -= declination
        if any(moved):
            hdus["SCI"].data = np.roll(hdus["SCI"].data, moved, axis=(1, 0))
        hdus.writeto(target)
    return target


@dataclass(frozen=True)
class Hrc:
    """Real raw data of the HRC, variants of them, and stand-ins for their references."""

    data: Path
    folder: Path

    @property
    def raw(self) -> Path:
        """The real exposure, unpacked."""
        return self.folder / f"{HRC}_raw.fits"

    @property
    def references(self) -> Path:
        """The stand-ins."""
        return self.folder / "references"

    @property
    def override(self) -> list[str]:
        """What calacs.e insists on and these CRDS rules do not know."""
        return ["--override", f"SATUFILE={self.references / 'zzsynth1j_sat.fits'}"]

    def give(self, inputs: Path) -> list[str]:
        """Put the real exposure into a folder of inputs; return the options that it needs."""
        shutil.copy(self.raw, inputs / self.raw.name)
        return self.override

    def dithered(self, inputs: Path) -> list[str]:
        """Put two exposures that are offset by a dither there, and their association table: j8bt05020."""
        members = {"j8bt05njq": (0, 0), "j8bt05nkq": (12, 8)}
        for root, moved in members.items():
            make_hrc(inputs / f"{root}_raw.fits", self.raw, member="j8bt05020:EXP-DTH", moved=moved)
        self.associate(inputs / "j8bt05020_asn.fits", "J8BT05021", "DTH", *members)
        return self.override

    def split(self, inputs: Path) -> list[str]:
        """Put two exposures that were split against cosmic rays there, and their association table: j8bt09040.

        Their headers name the reference that the rules do not know.
        """
        members = ("j8bt09jcq", "j8bt09jdq")
        for root in members:
            raw = make_hrc(inputs / f"{root}_raw.fits", self.raw, member="j8bt09040:EXP-CRJ", **self.splitting)
            with fits.open(raw, mode="update") as hdus:
                hdus[0].header["CRSPLIT"] = 2
                rows, columns = np.random.default_rng(sum(map(ord, root))).integers(40, 1000, (2, 200))
                data = hdus["SCI"].data
                data[rows, columns] = np.minimum(data[rows, columns].astype(int) + 5000, 65535)
                hdus["SCI"].data = data
        self.associate(inputs / "j8bt09040_asn.fits", "J8BT09041", "CRJ", *members)
        return []

    @property
    def splitting(self) -> dict[str, str]:
        """Keywords of such an exposure."""
        return {"CRCORR": "PERFORM", "SATUFILE": "jref$zzsynth1j_sat.fits"}

    def associate(self, table: Path, product: str, kind: str, *members: str) -> None:
        """Write an association table."""
        rows = [f"{root.upper()}:EXP-{kind}" for root in members]
        script = str(self.data / "make_asn.py")
        subprocess.run([sys.executable, script, str(table), product, f"PROD-{kind}", *rows], check=True)


@pytest.fixture(scope="session")
def crds_rules(environment: dict[str, str], shared_data: Path) -> dict[str, str]:
    """Environment of a user who has exported rules for all instruments, and works away from any network."""
    return {
        **environment,
        "CRDS_PATH": str(shared_data / "crds-contexts"),
        "ASTROMETRY_COMPUTE_APOSTERIORI": "off",
        "ASTROMETRY_APPLY_APRIORI": "off",
    }


def choose_references(folder: Path, raws: list[Path], env: Mapping[str, str]) -> None:
    """Let the real crds write the names of references into raw files."""
    command = [sys.executable, "-m", "crds.bestrefs", "--update-bestrefs", "--new-context", CONTEXT, "--files"]
    offline = {**env, "CRDS_OBSERVATORY": "hst", "CRDS_READONLY_CACHE": "1"}
    subprocess.run([*command, *(r.name for r in raws)], cwd=folder, env=offline, check=True, capture_output=True)


@pytest.fixture(scope="session")
def hrc_data(shelf: Shelf, shared_data: Path, crds_rules: dict[str, str]) -> Hrc:
    """The real exposure, and stand-ins for the references that CRDS chooses for it and its variants."""
    data = Hrc(shared_data / "acs-hrc", shelf.home / "hrc-data")
    with shelf.once("hrc-data") as folder:
        if folder is not None:
            unpacked(data.data / f"{HRC}_raw.fits.gz", data.raw)
            chosen = folder / "chosen"
            chosen.mkdir()
            raws = [Path(shutil.copy(data.raw, chosen))]
            raws.append(make_hrc(chosen / "j8bt09jcq_raw.fits", data.raw, **data.splitting))
            raws.append(make_hrc(chosen / "j8bt05nlq_raw.fits", data.raw, FILTER1="F606W"))
            choose_references(chosen, raws, crds_rules)
            make = [sys.executable, str(data.data / "make_refs.py"), "--set-satufile", str(data.references)]
            subprocess.run([*make, *map(str, raws)], check=True, capture_output=True)
    return data


def shim(folder: Path, name: str, text: str) -> Path:
    """Write an executable of that name; return the folder, to be put on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def hrc_environment(
    hrc_data: Hrc, crds_rules: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Environment to calibrate HRC data in: with calacs.e or, where HSTCAL is not installed, with a stand-in."""
    env = {**crds_rules, "jref": f"{hrc_data.references}/"}
    if shutil.which("calacs.e") is None:
        command = f"exec '{sys.executable}' '{REPOSITORY / 'tests/fakes/hrc.py'}' \"$@\""
        env["PATH"] = f"{shim(tmp_path_factory.mktemp('bin'), 'calacs.e', command)}{os.pathsep}{env['PATH']}"
    return env


def without_hstcal(env: Mapping[str, str], links: Path) -> dict[str, str]:
    """Return an environment in which HSTCAL is not installed; its neighbours still are, as links."""
    folders = []
    for number, folder in enumerate(env["PATH"].split(os.pathsep)):
        if folder and any((Path(folder) / name).exists() for name in HSTCAL):
            place = links / str(number)
            place.mkdir(parents=True)
            for path in Path(folder).iterdir():
                if path.name not in HSTCAL:
                    (place / path.name).symlink_to(path)
            folder = str(place)
        folders.append(folder)
    return {**env, "PATH": os.pathsep.join(folders)}


@pytest.fixture
def hrc_desk(tmp_path: Path, hrc_environment: dict[str, str]) -> Desk:
    """An empty directory to work on HRC data in."""
    (tmp_path / "IN").mkdir()
    return Desk(tmp_path, hrc_environment)


@pytest.fixture(scope="session")
def hrc(shelf: Shelf, hrc_data: Hrc, hrc_environment: dict[str, str]) -> Desk:
    """The real HRC exposure, calibrated and drizzled once by caldp-process."""
    return shelf.calibrated("hrc", HRC, hrc_environment, hrc_data.give)


# --- figures and processes ---------------------------------------------------------------------------------------


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that prints a measured figure at the end of the run, from whichever worker."""
    return lambda text: request.node.user_properties.append(("figure", text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that tests told."""
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome) if r.when == "call"]
    figures = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.line(text)


def linked_cache(cache: Path, copy: Path) -> Path:
    """Make a CRDS cache that a test may change or damage: links to the real one."""
    for path in cache.rglob("*"):
        if path.is_file():
            link = copy / path.relative_to(cache)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return copy


def assert_ended(process: psutil.Process) -> None:
    """Assert that a program is gone; that nobody has asked yet how it ended (a zombie) does not matter."""
    with contextlib.suppress(psutil.NoSuchProcess):
        assert process.status() == psutil.STATUS_ZOMBIE


def child_named(process: subprocess.Popen[str], name: str, timeout: float = 60) -> psutil.Process:
    """Wait for a descendant whose command line holds ``name``."""
    parent = psutil.Process(process.pid)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for child in parent.children(recursive=True):
            try:
                if any(Path(word).name == name for word in child.cmdline()):
                    return child
            except psutil.Error:
                continue
        assert process.poll() is None, "the command ended before"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    raise AssertionError(f"no process {name}")
