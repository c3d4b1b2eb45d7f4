"""Whatever is typed and whatever lies among the inputs: a documented end, one line, nothing written elsewhere.

Every case has a seed, so a failure comes back.  Exit status 1 means "unforeseen": here it is always a bug.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import string
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest

from caldp.dataset import Dataset
from caldp.errors import EXIT_CODES, CaldpError, UsageError
from caldp.process import Request, process
from caldp.reporter import Outcome
from tests.desk import HRC, Desk, Hrc, assert_tidy, without_hstcal
from tests.fakes.reporter import FakeReporter

BLOCK = 2880

#: What a dataset's name may be, written down once more.
GRAMMAR = re.compile(
    r"[ijlo][0-9a-z]{8}|(acs|wfc3)_[0-9a-z]{3}_[0-9a-z]{2}|skycell-p[0-9]{4}x[0-9]{2}y[0-9]{2}", re.ASCII
)

HOSTILE = (
    *("", " ", "\0", "\n", "\t", "\r\n", "\x1b[31m", "\x7f", "\u212a", "\u0131", "\ufb01", "\u0660", "\u202e"),
    *("\U0001f52d", "\ud800", "/", "\\", "..", "../", "../../etc/passwd", "/etc/passwd", "./", "//", "~", "~root"),
    *("%2e%2e%2f", "C:\\", ";", "|", "&", "$(id)", "`id`", "${HOME}", "$IFS", "*", "?", "[a-z]", "'", '"', ">", "<"),
    *("#", "!", "{}", "%s", "%n", "-", "--", "-h", "--help", "--json", "file:", "s3://", "astroquery:", "none", "nan"),
)


def a_name(rng: random.Random) -> str:
    """Return something that a name may begin as: a valid one of any kind."""
    alphanumeric = string.ascii_lowercase + string.digits

    def some(count: int, letters: str = alphanumeric) -> str:
        return "".join(rng.choices(letters, k=count))

    kinds = (
        lambda: rng.choice("ijlo") + some(8),
        lambda: f"{rng.choice(['acs', 'wfc3'])}_{some(3)}_{some(2)}",
        lambda: f"skycell-p{some(4, string.digits)}x{some(2, string.digits)}y{some(2, string.digits)}",
        lambda: rng.choice("abcdefghknmpqrstuvwxyz0123") + some(8),
    )
    name = rng.choice(kinds)()
    return rng.choice([name, name, name.upper(), name.title()])


def typed(rng: random.Random) -> str:
    """Return what somebody might type: often a name, often one that is spoilt."""
    text = a_name(rng)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        place = rng.randrange(len(text) + 1)
        text = rng.choice(
            [
                text[:place] + rng.choice(HOSTILE) + text[place:],
                text[:place] + rng.choice(HOSTILE) + text[place + 1 :],
                text[:place] + text[place + 1 :],
                text[:place] + chr(rng.randrange(0x250)) + text[place:],
                text + a_name(rng),
                text * rng.choice([2, 50, 2000]),
                rng.choice(HOSTILE),
                text[::-1],
            ]
        )[:100_000]
    return text


def documented(outcome: Outcome) -> bool:
    return outcome.exit_code in EXIT_CODES and outcome.exit_code != 1


@pytest.fixture
def enclosed(tmp_path: Path, hrc_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk for runs in this process; where else a run could write must be empty in the end."""
    for name in list(os.environ):
        if name not in ("HOME", "LANG", "PYTEST_CURRENT_TEST") and not name.startswith(("COV", "PYTEST")):
            monkeypatch.delenv(name)
    for place in ("desk/IN", "cwd", "tmp"):
        (tmp_path / place).mkdir(parents=True)
    desk = Desk(tmp_path / "desk", without_hstcal(hrc_environment, tmp_path / "links"))
    for name, value in {**desk.env, "CALDP_HOME": str(desk.home), "TMPDIR": str(tmp_path / "tmp")}.items():
        if not name.startswith("PYTEST"):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "cwd")
    yield desk
    assert {p.name for p in tmp_path.iterdir()} <= {"desk", "cwd", "tmp", "links"}
    assert not [*(tmp_path / "cwd").iterdir(), *(tmp_path / "tmp").iterdir()]
    assert {p.name for p in desk.home.iterdir()} <= {"IN", "OUT"}
    if desk.output.exists():
        assert {p.name for p in desk.output.iterdir()} <= {"data", "messages", ".locks"}
    assert_tidy(desk.home)


def run_here(desk: Desk, dataset: str) -> Outcome:
    """Process a dataset in this process: the same as the command does, without the start of Python."""
    return process(Request(dataset, f"file:{desk.inputs}", f"file:{desk.output}"), FakeReporter())


# --- names ------------------------------------------------------------------------------------------------------


def test_five_thousand_names(tell: Callable[[str], None]) -> None:
    rng = random.Random(20261122)  # noqa: S311 - not for secrets
    met: Counter[str] = Counter()
    for _ in range(5000):
        text = typed(rng)
        try:
            dataset = Dataset.parse(text)
        except UsageError as error:
            met["refused"] += 1
            assert not (text.isascii() and GRAMMAR.fullmatch(text.lower())), text
            assert error.code == 2
            message = str(error)
            assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 1100, repr(message)
            continue
        met[dataset.kind] += 1
        assert text.isascii() and GRAMMAR.fullmatch(dataset.name) and dataset.name == text.lower()
        parts = PurePosixPath(dataset.prefix).parts
        assert len(parts) == 3 and parts[0] == "data" and parts[2] == dataset.name and ".." not in parts
        assert GRAMMAR.fullmatch(dataset.root) or re.fullmatch("[ij][0-9a-z]{5}", dataset.root)
    tell(f"fuzzed names: {dict(met)}")
    assert min(met[kind] for kind in ("refused", "ipppssoot", "svm", "mvm")) > 300


def test_names_without_inputs(enclosed: Desk) -> None:
    rng = random.Random(7)  # noqa: S311
    valid = set()
    for _ in range(150):
        text = typed(rng)
        try:
            valid.add(Dataset.parse(text))
            expected = 21
        except CaldpError:
            expected = 2
        outcome = run_here(enclosed, text)
        assert outcome.exit_code == expected, (text[:200], outcome)
        assert len(outcome.reason.splitlines()) == 1
    assert len(valid) > 30
    told = {p.stem for p in (enclosed.output / "messages" / "status").iterdir()}
    assert told == {dataset.name for dataset in valid}
    folders = {p.relative_to(enclosed.output).as_posix() for p in enclosed.output.glob("data/*/*")}
    assert folders == {dataset.prefix for dataset in valid}


def test_names_through_the_command(hrc_desk: Desk, tmp_path: Path) -> None:
    rng = random.Random(50)  # noqa: S311
    texts = [text for text in (typed(rng) for _ in range(200)) if "\0" not in text and not _is_surrogate(text)][:48]
    texts += ["\udcff" * 9, "\udce9dfd01010"]  # bytes that are not UTF-8
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda text: hrc_desk.run("--", text, "file:IN", "file:OUT"), texts))
    for text, result in zip(texts, results, strict=True):
        try:
            expected = 21 if Dataset.parse(text) else 0
        except CaldpError:
            expected = 2
        assert result.code == expected, (text[:200], result)
        assert len(result.stderr.strip().splitlines()) == 1, (text[:200], result.stderr)
    assert {p.name for p in hrc_desk.home.iterdir()} == {"IN", "OUT"}
    assert {p.name for p in hrc_desk.output.iterdir()} <= {"data", "messages", ".locks"}
    assert_tidy(hrc_desk.home)


def _is_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


# --- damaged files ----------------------------------------------------------------------------------------------

#: Headers that lie; the value is as it stands in the card.
LIES = (
    *(("SIMPLE", "F"), ("BITPIX", "7"), ("BITPIX", "'x'"), ("NAXIS", "-1"), ("NAXIS", "999")),
    *(("NAXIS1", "99999999999"), ("NAXIS1", "-5"), ("NAXIS2", "'two'"), ("NAXIS2", "0"), ("PCOUNT", "123456789012")),
    *(
        ("PCOUNT", "-1"),
        ("GCOUNT", "-1"),
        ("NEXTEND", "-5"),
        ("NEXTEND", "'three'"),
        ("NEXTEND", "1E300"),
        ("NEXTEND", "T"),
    ),
    *(("ROOTNAME", "'../../../x'"), ("ROOTNAME", "7"), ("ROOTNAME", ""), ("INSTRUME", "'\x1b[31m'"), ("INSTRUME", "7")),
    *(("INSTRUME", "'JWST'"), ("DETECTOR", "''"), ("DETECTOR", "3"), ("DATE-OBS", "'never'"), ("EXPSTART", "NaN")),
    *(("EXPTIME", "-1"), ("EXPTIME", "'long'"), ("BIASFILE", "'jref$../../../etc/passwd'"), ("CCDTAB", "'oref$'")),
    *(("DARKFILE", "'jref$'"), ("FLATFILE", "'lref$/etc/passwd'"), ("DRIZCORR", "3"), ("DQICORR", "T")),
    *(("FPPOS", "'x'"), ("NUMFLASH", "'many'"), ("EXTNAME", "1"), ("EXTVER", "'a'"), ("BZERO", "'x'"), ("BSCALE", "0")),
    *(("XTENSION", "'NONSENSE'"), ("XTENSION", "5"), ("TFORM1", "'9999999999E'"), ("TFORM1", "'Q'"), ("TFIELDS", "-3")),
    *(("WAVECAL", "'../x_wav.fits'"), ("MEMNAME", "'x'"), ("CCDAMP", "'Z'"), ("FILTER1", "''"), ("OBSMODE", "'\\'")),
    *(("END", "1"), ("CONTINUE", "'&"), ("HIERARCH", "x = 'y'"), ("EXPTYPE", "'ACQ/IMAGE'"), ("OBSTYPE", "7")),
)


def lie(content: bytes, rng: random.Random) -> bytes:
    """Replace a card of a header, or write over another one."""
    key, value = rng.choice(LIES)
    card = f"{key:<8}= {value:>20}"[:80].ljust(80).encode()
    starts = [m.start() for m in re.finditer(re.escape(f"{key:<8}=".encode()), content) if m.start() % 80 == 0]
    start = rng.choice(starts) if starts else 80 * rng.randrange(6, 100)
    return content[:start] + card + content[start + 80 :]


def flip(content: bytes, rng: random.Random, places: list[int]) -> bytes:
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_places(content: bytes) -> list[int]:
    """Return the places of headers, roughly: blocks of text."""
    return [
        place
        for start in range(0, len(content), BLOCK)
        if content[start : start + 200].isascii() and content[start : start + 80].strip(b"\0 ")
        for place in range(start, min(start + BLOCK, len(content)))
    ]


def damage(content: bytes, others: list[bytes], rng: random.Random, kind: str) -> bytes:
    """Spoil a file in one of many ways."""
    size = len(content)
    match kind:
        case "cut":
            return content[: rng.randrange(size)]
        case "cut at a block":
            return content[: BLOCK * rng.randrange(size // BLOCK)]
        case "bits of headers":
            places = header_places(content)
            return flip(content, rng, rng.choices(places, k=rng.choice([1, 1, 3, 30])))
        case "bits":
            return flip(content, rng, rng.choices(range(size), k=rng.choice([1, 10, 300])))
        case "block of zeros":
            start = BLOCK * rng.randrange(size // BLOCK)
            return content[:start] + bytes(BLOCK) + content[start + BLOCK :]
        case "block left out":
            start = BLOCK * rng.randrange(size // BLOCK)
            return content[:start] + content[start + BLOCK :]
        case "bytes put in":
            start = rng.randrange(size)
            return content[:start] + rng.randbytes(rng.choice([1, 80, BLOCK])) + content[start:]
        case "more behind":
            return content + rng.randbytes(rng.choice([1, BLOCK, 100_000]))
        case "lie":
            for _ in range(rng.choice([1, 1, 3])):
                content = lie(content, rng)
            return content
        case "another's":
            return rng.choice(others)
        case "empty":
            return b""
        case "garbage":
            return rng.randbytes(rng.choice([1, 80, 5760, 50_000]))
        case "text":
            return ("lorem ipsum dolor\n" * rng.choice([1, 500])).encode()
        case "header only":
            return b"SIMPLE  =                    T".ljust(80) + b"END".ljust(BLOCK - 80)
        case "packed garbage":
            return b"\x1f\x8b\x08\x00" + rng.randbytes(3000)
        case "packed under a plain name":
            return gzip.compress(content, 1)
        case "packed and cut":
            packed = gzip.compress(content, 1)
            return packed[: rng.randrange(len(packed))]
    raise AssertionError(kind)


KINDS = (
    *("cut", "cut at a block", "bits of headers", "bits of headers", "bits of headers", "bits", "block of zeros"),
    *(
        "block left out",
        "bytes put in",
        "more behind",
        "lie",
        "lie",
        "lie",
        "lie",
        "lie",
        "another's",
        "empty",
        "garbage",
    ),
    *("text", "header only", "packed garbage", "packed under a plain name", "packed and cut"),
)


@pytest.fixture
def whole(hrc_data: Hrc, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Dataset -> its files: three real exposures, and an association of which the table will be damaged."""

    def content(path: Path) -> bytes:
        return gzip.decompress(path.read_bytes())

    table = tmp_path_factory.mktemp("table")
    hrc_data.dithered(table)
    association = {p.name: p.read_bytes() for p in sorted(table.iterdir())}
    acq, stis = "ldfd01vlq_rawacq.fits", "ocmv0lw6q_raw.fits"
    return {
        HRC: {f"{HRC}_raw.fits": hrc_data.raw.read_bytes()},
        "ldfd01vlq": {acq: content(shared_data / "cos-ldfd01010" / "inputs" / f"{acq}.gz")},
        "ocmv0lw6q": {stis: content(shared_data / "stis-acq" / f"{stis}.gz")},
        "j8bt05020": association,
    }


def run_damaged(desk: Desk, whole: dict[str, dict[str, bytes]], seed: int) -> tuple[str, Outcome]:
    """Damage the first file of a dataset, and process it."""
    rng = random.Random(seed)  # noqa: S311
    dataset = rng.choice(sorted(whole))
    kind = KINDS[seed % len(KINDS)]
    files = dict(whole[dataset])
    name = next(iter(files))
    others = [next(iter(of.values())) for other, of in whole.items() if other != dataset]
    files[name] = damage(files[name], others, rng, kind)
    if rng.random() < 0.2:
        files[f"{name}.gz"] = files.pop(name) if "packed" in kind else gzip.compress(files.pop(name), 1)
    for old in desk.inputs.iterdir():
        old.unlink()
    for each, content in files.items():
        (desk.inputs / each).write_bytes(content)
    before = {each: (desk.inputs / each).read_bytes() for each in files}
    outcome = run_here(desk, dataset)
    assert {p.name: p.read_bytes() for p in desk.inputs.iterdir()} == before
    return f"seed {seed}, {kind}, {dataset}", outcome


def assert_documented(what: str, desk: Desk, outcome: Outcome) -> None:
    assert documented(outcome), f"{what}: {outcome}"
    assert outcome.reason.isprintable(), f"{what}: {outcome.reason!r}"
    assert outcome.exit_code == 0 or outcome.dataset in outcome.reason, f"{what}: {outcome}"
    status = desk.status(outcome.dataset)
    assert status["exit_code"] == outcome.exit_code, what
    assert desk.states(outcome.dataset) == ["dataset-error" if outcome.exit_code else "datasets-processed"], what
    assert not (desk.home / "caldp-scratch").exists(), what


#: Seeds whose bug has a test of its own below; empty when it is mended.
@pytest.mark.parametrize("batch", [pytest.param(n, marks=pytest.mark.slow) for n in range(8)])
def test_damaged_files(
    enclosed: Desk,
    whole: dict[str, dict[str, bytes]],
    batch: int,
    tell: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """200 files; references of COS and STIS and the programs of HSTCAL are not there: 27 and 23 are documented ends."""
    met: Counter[int] = Counter()
    wrong = []
    for seed in range(25 * batch, 25 * (batch + 1)):
        what, outcome = run_damaged(enclosed, whole, seed)
        met[outcome.exit_code] += 1
        try:
            assert_documented(what, enclosed, outcome)
        except AssertionError as error:
            wrong.append(str(error))
    tell(f"damaged files, batch {batch}: exit statuses {dict(sorted(met.items()))}")
    assert not wrong, "\n".join(wrong)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_odd_card_makes_no_noise(enclosed: Desk, whole: dict[str, dict[str, bytes]]) -> None:
    """Seed 117: one bit of a comment is flipped; standard error must hold the one line of the failure only."""
    run_damaged(enclosed, whole, 117)
    env = {"PATH": os.environ["PATH"], "CALDP_HOME": str(enclosed.home)}
    result = enclosed.process(HRC, env=env)
    assert result.code == 23
    assert len(result.stderr.strip().splitlines()) == 1


def test_billion_axes(hrc_desk: Desk, hrc_data: Hrc) -> None:
    """A few bytes must not keep a run busy for hours, nor fill the memory."""
    content = hrc_data.raw.read_bytes()
    start = content.index(b"NAXIS   =", BLOCK)
    lie_told = b"NAXIS   =           1000000000".ljust(80)
    (hrc_desk.inputs / f"{HRC}_raw.fits").write_bytes(content[:start] + lie_told + content[start + 80 :])
    process = hrc_desk.start(HRC, "file:IN", "file:OUT")
    try:
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 21


# --- hostile tarballs -------------------------------------------------------------------------------------------


def _member(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


@pytest.mark.parametrize(
    "hostile",
    [
        _member(f"../../{HRC}_raw.fits", b"outside"),
        _member(f"{HRC}_raw.fits", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        _member(f"/{HRC}_raw.fits", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    ],
    ids=["path", "symbolic link", "hard link"],
)
def test_hostile_tarball(hrc_desk: Desk, hostile: tuple[tarfile.TarInfo, bytes]) -> None:
    info, content = hostile
    with tarfile.open(hrc_desk.inputs / f"{HRC}.tar.gz", "w:gz") as archive:
        archive.addfile(info, io.BytesIO(content))
    before = {p.name for p in hrc_desk.home.parent.iterdir()}
    hrc_desk.assert_failed(hrc_desk.process(HRC), HRC, 21, f"{HRC}.tar.gz")
    assert {p.name for p in hrc_desk.home.parent.iterdir()} == before
    assert {p.name for p in hrc_desk.home.iterdir()} == {"IN", "OUT"}
