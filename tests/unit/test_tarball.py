"""Unpack: honest tarballs completely, hostile ones not at all, and nothing outside the folder ever."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import re
import stat
import subprocess
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from caldp import tarball
from caldp.errors import CaldpError, InputError
from caldp.tarball import Unpacked, unpack, unpack_stream

DATASET = "ldfd01vnq"
RAW = f"{DATASET}_rawtag_a.fits"
SPT = f"{DATASET}_spt.fits"
OTHER = "ldfd01vpq_rawtag_a.fits"


def wanted(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9]{9}_([a-z0-9_]+\.fits|cal_env\.txt)", name) is not None


# ---- tarballs, byte by byte: tarfile does not write what it should not


def header(name: bytes, size: int | bytes = 0, kind: bytes = b"0", link: bytes = b"", **fields: Any) -> bytes:
    number = {"mode": 0o644, "uid": 1000, "gid": 1000, "mtime": 1_600_000_000, "major": 0, "minor": 0} | fields
    block = bytearray(512)
    block[0:100] = name[:100].ljust(100, b"\0")
    for where, key in ((100, "mode"), (108, "uid"), (116, "gid"), (329, "major"), (337, "minor")):
        block[where : where + 8] = b"%07o\0" % number[key]
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:148] = b"%011o\0" % number["mtime"]
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = link.ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: str | bytes, data: bytes = b"", **fields: Any) -> bytes:
    return header(os.fsencode(name), len(data), **fields) + padded(data)


def extended(kind: bytes, data: bytes) -> bytes:
    return header(b"././@LongLink", len(data), kind) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def pax(kind: bytes = b"x", /, **values: Any) -> bytes:
    return extended(kind, b"".join(record(k.encode(), os.fsencode(v)) for k, v in values.items()))


END = bytes(1024)
NOISE = random.Random(1).randbytes(5000)  # noqa: S311
GOOD = file(RAW, b"photons" * 1000)


# ---- the room in which they are unpacked


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below a folder: kind, permissions, time, content."""
    seen: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else None
        seen[str(path)] = (info.st_mode, info.st_nlink, info.st_size if content else 0, content)
        if not path.is_dir():
            seen[str(path)] += (info.st_mtime_ns,)
    return seen


@dataclass
class Room:
    """A folder to unpack in, with much around it that must stay as it is."""

    root: Path

    def __post_init__(self) -> None:
        for name in ("inputs", "space/unpacked", "space/unpacked-sibling", "space/folder"):
            (self.root / name).mkdir(parents=True)
        for name in ("canary", "space/unpacked-sibling/canary", "space/target", f"space/{RAW}", "space/folder/x"):
            (self.root / name).write_text(f"canary {name}")
        (self.root / "space/link").symlink_to("target")

    @property
    def directory(self) -> Path:
        return self.root / "space/unpacked"

    @property
    def path(self) -> Path:
        return self.root / "inputs" / f"{DATASET}.tar.gz"

    def unpack(self, data: bytes, **options: Any) -> Unpacked:
        options = {"dataset": DATASET, "wanted": wanted, **options}
        self.path.write_bytes(data)
        before, files = snapshot(self.root), psutil.Process().num_fds()
        try:
            return unpack(self.path, self.directory, **options)
        finally:
            inside = f"{self.directory}{os.sep}"
            assert {k: v for k, v in snapshot(self.root).items() if not k.startswith(inside)} == before
            assert psutil.Process().num_fds() == files
            for path in self.directory.iterdir():
                assert stat.S_ISREG(path.lstat().st_mode)
                assert path.lstat().st_nlink == 1

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    def refuse(self, data: bytes, *words: str, **options: Any) -> InputError:
        with pytest.raises(InputError) as caught:
            self.unpack(data, **options)
        error = caught.value
        check_message(error, self.path)
        for word in words:
            assert word in str(error)
        assert self.content() == {}
        return error


def check_message(error: CaldpError, path: Path) -> None:
    text = str(error)
    assert error.exit_code == 21
    assert text.startswith(f"{DATASET}: ")
    assert str(path) in text
    assert text.isprintable()
    assert len(text) < 1000
    assert error.remedy


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


# ---- honest ones


def test_files_are_unpacked_by_their_base_names_and_others_skipped(room: Room) -> None:
    data = (
        header(b"a/folder/", 0, b"5") + file(f"a/folder/{RAW}", b"1") + file("a/README", b"2" * 5000)
        + file(f"./{OTHER}", b"3" * 512) + file(f"{DATASET}_cal_env.txt") + file("b/README") + END
    )  # fmt: skip
    assert room.unpack(data) == Unpacked((RAW, OTHER, f"{DATASET}_cal_env.txt"), ("README", "README"))
    assert room.content() == {RAW: b"1", OTHER: b"3" * 512, f"{DATASET}_cal_env.txt": b""}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("folder", ["", "./", "Hubble Ärger/", "a/" * 40, "f" * 90 + "/" + "g" * 60 + "/"])
def test_what_python_packs(room: Room, form: int, mode: str, folder: str) -> None:
    contents = {RAW: os.urandom(100_000), SPT: b"", OTHER: b"x" * 1024}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        if folder:
            top = tarfile.TarInfo(folder)
            top.type = tarfile.DIRTYPE
            archive.addfile(top)
        for name, data in contents.items():
            info = tarfile.TarInfo(folder + name)
            info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(data))
    assert room.unpack(packed.getvalue()).files == tuple(contents)
    assert room.content() == contents


@pytest.mark.parametrize("options", ["cf", "czf", "--format=gnu -czf", "--format=pax -czf", "--format=v7 -cf"])
@pytest.mark.parametrize("what", [".", "*.fits"])
def test_what_tar_packs(room: Room, tmp_path_factory: pytest.TempPathFactory, options: str, what: str) -> None:
    folder = tmp_path_factory.mktemp("pack")
    contents = {RAW: os.urandom(100_000), SPT: b"short"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    subprocess.run(f"tar {options} ../out.tar {what}", shell=True, cwd=folder, check=True)  # noqa: S602
    room.unpack((folder.parent / "out.tar").read_bytes())
    (folder.parent / "out.tar").unlink()
    assert room.content() == contents


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", [f"{DATASET}.tar.gz", f"{DATASET}.tgz", f"{DATASET}.tar"])
def test_the_content_tells_the_format_and_not_the_name(room: Room, name: str, compressed: bool) -> None:
    path = room.root / name
    path.write_bytes(gzip.compress(GOOD + END) if compressed else GOOD + END)
    assert unpack(path, room.directory, dataset=DATASET, wanted=wanted).files == (RAW,)


def test_gzip_streams_one_after_the_other_are_one(room: Room) -> None:
    data = GOOD + END
    room.unpack(gzip.compress(data[:777]) + gzip.compress(b"") + gzip.compress(data[777:]) + bytes(99))
    assert room.content() == {RAW: b"photons" * 1000}


def test_one_block_is_end_enough(room: Room) -> None:
    assert room.unpack(GOOD + bytes(512)).files == (RAW,)


def test_permissions_owners_and_times_mean_nothing(room: Room) -> None:
    before = time.time() - 60
    room.unpack(file(RAW, b"x", mode=0o7777, uid=12345, gid=12345, mtime=1) + END)
    info = (room.directory / RAW).stat()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(info.st_mode) == 0o666 & ~mask
    assert (info.st_uid, info.st_gid) == (os.getuid(), room.directory.stat().st_gid)
    assert info.st_mtime > before


def test_long_names_of_both_kinds(room: Room) -> None:
    folder = "f" * 200 + "/" + "g" * 200 + "/"
    gnu = extended(b"L", (folder + RAW).encode() + b"\0") + file("cut", b"1")
    both = extended(b"L", b"not this\0") + pax(path=folder + SPT) + file("cut", b"2")
    comment = pax(b"g", comment="0123abcd") + pax(mtime="1.5", size="3") + header(OTHER.encode(), 0) + padded(b"333")
    room.unpack(gnu + both + comment + END)
    assert room.content() == {RAW: b"1", SPT: b"2", OTHER: b"333"}


def test_a_tar_in_a_tar_is_a_file_that_nobody_wants(room: Room) -> None:
    assert room.unpack(file("more.tar", file(SPT, b"x") + END) + GOOD + END).skipped == ("more.tar",)
    assert set(room.content()) == {RAW}


def test_a_reader_that_gives_one_byte_at_a_time_and_cannot_seek(room: Room) -> None:
    class Trickle(io.RawIOBase):
        data = io.BytesIO(gzip.compress(GOOD + END))

        def read(self, size: int = -1, /) -> bytes:
            return self.data.read(min(size, 1))

    options: dict[str, Any] = {"source": "s3://bucket/x.tar.gz", "dataset": DATASET, "wanted": wanted}
    unpack_stream(Trickle(), room.directory, **options)  # type: ignore[arg-type]
    assert room.content() == {RAW: b"photons" * 1000}
    with pytest.raises(InputError, match=r"^ldfd01vnq: s3://bucket/x.tar.gz cannot be unpacked \(it is empty\)"):
        unpack_stream(io.BytesIO(), room.directory, **options)


# ---- damaged ones


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (gzip.compress(b""), "empty"),
        (b"x", "not a tar"),
        (b"x" * 511, "not a tar"),
        (NOISE, "not a tar"),
        (gzip.compress(NOISE), "not a tar"),
        (b"\x1f\x8b\x08\0" + b"\xff" * 5000, ""),
        (b"\x1f\x8b", ""),
        (b"SIMPLE  =                    T".ljust(5760), "not a tar"),
        (gzip.compress(gzip.compress(GOOD + END)), "not a tar"),
        (b"PK\x03\x04" + bytes(600), "not a tar"),
        (b"BZh9" + bytes(600), "not a tar"),
        (GOOD, "ends early"),
        (GOOD + bytes(511), "ends early"),
        (GOOD + extended(b"L", b"x\0") + END, "ends early"),
        (GOOD + pax(path="x") + END, "ends early"),
        (GOOD + b"x" * 512 + END, f"damaged at byte {len(GOOD)}"),
        (GOOD + END + GOOD + END, "follows its end"),
        (gzip.compress(GOOD + END) + b"junk", ""),
        (gzip.compress(GOOD + END)[:-8] + bytes(8), "CRC"),
        (gzip.compress(GOOD + END)[:-4] + bytes(4), "length"),
    ],
)
def test_what_is_no_whole_tarball(room: Room, data: bytes, word: str) -> None:
    room.refuse(data, word, "fetch it again")


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_at_any_place(room: Room, compressed: bool) -> None:
    data = GOOD + file(SPT, b"x" * 700) + bytes(512)
    data = gzip.compress(data) if compressed else data
    for length in range(0, len(data), 1 if compressed else 97):
        room.refuse(data[:length])


@pytest.mark.parametrize(
    "data",
    [b"5 a=\n"[:-1] + b"x", b"0 a=b\n", b"1 a=b\n", b"-9 a=b\n", b"x a=b\n", b"+7 a=b\n",
     b"0_7 a=b\n", b"99 a=b\n", b"a=b\n", b" a=b\n", b"\xff" * 99,
     b"6 ab\n\n", b"9999999999 a=b\n", b"6 a=b\n0 ", b"\0" * 20, record(b"size", b"-1"), record(b"size", b"0x9"),
     record(b"size", b"9" * 21), record(b"size", b"9" * 5000)],
)  # fmt: skip
@pytest.mark.parametrize("kind", [b"x", b"g", b"X"])
def test_damaged_extended_headers(room: Room, kind: bytes, data: bytes) -> None:
    room.refuse(GOOD + extended(kind, data) + file(SPT, b"x") + END)


def test_a_tarball_that_cannot_be_opened(room: Room) -> None:
    for path in (room.root / "missing.tar.gz", room.root):
        with pytest.raises(InputError) as caught:
            unpack(path, room.directory, dataset=DATASET, wanted=wanted)
        check_message(caught.value, path)


# ---- wrong ones


@pytest.mark.parametrize("name", ["", OTHER, "README", f"{DATASET}.fits", f"x{RAW}"])
def test_no_file_of_the_dataset(room: Room, name: str) -> None:
    room.refuse((file(name, b"x") if name else b"") + END, f"no file {DATASET}_*")


# ---- hostile ones

KINDS = {
    "hard link": header(SPT.encode(), 0, b"1", RAW.encode()),
    "symbolic link": header(SPT.encode(), 0, b"2", b"../target"),
    "character device": header(SPT.encode(), 0, b"3", major=1, minor=3),
    "block device": header(SPT.encode(), 0, b"4", major=8),
    "named pipe": header(SPT.encode(), 0, b"6"),
    "sparse file": header(SPT.encode(), 0, b"S"),
    "unknown kind b'7'": header(SPT.encode(), 0, b"7"),
    "unknown kind b'V'": header(SPT.encode(), 0, b"V"),
    "unknown kind b'M'": header(SPT.encode(), 512, b"M") + bytes(512),
    "unknown kind b'\\xff'": header(SPT.encode(), 0, b"\xff"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_links_devices_pipes_and_unknown_kinds(room: Room, kind: str) -> None:
    room.refuse(GOOD + KINDS[kind] + END, kind, SPT, "do not use it")
    room.refuse(gzip.compress(KINDS[kind] + GOOD + END), kind)


def test_one_that_nobody_wants_condemns_the_rest(room: Room) -> None:
    room.refuse(GOOD + header(b"README", 0, b"2", b"x") + END, "'README' is a symbolic link")
    room.refuse(GOOD + file("../README") + END, "'../README' points outside")
    room.refuse(GOOD + header(b"..", 0, b"5") + END, "points outside")


@pytest.mark.parametrize(
    "target", ["../target", "/etc/passwd", ".", "..", "../unpacked-sibling", RAW, "/", "folder/../../x", "a" * 100]
)
@pytest.mark.parametrize("kind", [b"1", b"2"])
def test_d26_link_targets(room: Room, kind: bytes, target: str) -> None:
    """Neither the link, nor the file that would be written through it."""
    link = header(b"folder", 0, kind, target.encode())
    room.refuse(link + file(f"folder/{RAW}", b"x") + GOOD + END, "'folder' is a", "link")
    same = header(RAW.encode(), 0, kind, target.encode())
    room.refuse(same + GOOD + END, RAW, "link")
    room.refuse(GOOD + same + END, RAW, "link")
    room.refuse(extended(b"K", b"../" * 50 + b"target\0") + same + GOOD + END, "link")


@pytest.mark.parametrize(
    "name",
    [
        "../unpacked-sibling/" + RAW,
        "../unpacked-sibling/canary",
        "../unpacked/" + RAW,
        "folder/../../unpacked-sibling/" + RAW,
        "./../unpacked-sibling/./" + RAW,
    ],
)
@pytest.mark.parametrize("how", ["plain", "gnu", "pax"])
def test_d26_sibling_escape(room: Room, how: str, name: str) -> None:
    """A folder whose path begins as the one to unpack in is another folder."""
    before = {"plain": b"", "gnu": extended(b"L", name.encode() + b"\0"), "pax": pax(path=name)}[how]
    room.refuse(GOOD + before + file(name if how == "plain" else SPT, b"x") + END, "points outside")


NAMES = {
    "absolute": f"/{SPT}",
    "absolute with a folder": f"/tmp/{SPT}",  # noqa: S108
    "two slashes": f"//{SPT}",
    "up": f"../{SPT}",
    "up in the middle": f"a/b/../{SPT}",
    "up at the end": f"{SPT}/..",
    "backslash": f"..\\{SPT}",
    "drive": f"C:\\{SPT}",
    "newline": f"a\n/{SPT}",
    "newline at the end": f"{SPT}\n",
    "escape": f"\x1b[31m{SPT}",
    "carriage return": f"\r{SPT}",
    "right to left": f"\u202e{SPT}",
    "line separator": f"\u2028{SPT}",
    "no UTF-8": f"\udcff{SPT}",
    "slash at the end": f"{SPT}/",
    "dot at the end": f"{SPT}/.",
}


@pytest.mark.parametrize("case", NAMES)
def test_hostile_names(room: Room, case: str) -> None:
    name = os.fsencode(NAMES[case]) if "\udcff" in NAMES[case] else NAMES[case].encode()
    if not name.endswith(b"/"):  # a regular file then, for those who look at the kind only
        room.refuse(GOOD + file(name, b"x") + END, "member ", "do not use it")
    room.refuse(GOOD + header(name, 1) + padded(b"x") + END, "member ")
    room.refuse(GOOD + extended(b"L", name + b"\0") + file(SPT, b"x") + END, "member ")
    room.refuse(GOOD + pax(path=name) + file(SPT, b"x") + END, "member ")


@pytest.mark.parametrize("name", [f"{SPT}\0.txt", f"\0{SPT}", f"../\0{SPT}"])
def test_a_nul_in_a_name(room: Room, name: str) -> None:
    room.refuse(GOOD + pax(path=name) + file(SPT, b"x") + END, "unprintable")
    room.refuse(GOOD + extended(b"L", name.encode() + b"\0") + file(SPT, b"x") + END, "unprintable")


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "x" * 300 + "/" + SPT, "d/" * 2100 + SPT])
def test_names_that_are_too_long(room: Room, name: str) -> None:
    room.refuse(GOOD + extended(b"L", name.encode() + b"\0") + file(SPT, b"x") + END, "too long", "...")
    room.refuse(GOOD + pax(path=name) + file(SPT, b"x") + END, "too long")


def test_names_just_short_enough(room: Room) -> None:
    data = pax(path="d" * 255 + "/" + "x" * 255) + file("y", b"x") + pax(path="") + GOOD + END
    assert room.unpack(data).skipped == ("x" * 255,)


def test_a_file_without_a_name(room: Room) -> None:
    room.refuse(GOOD + file("", b"x") + END, "without a name")
    room.refuse(GOOD + file(".", b"x") + END, "without a name")


@pytest.mark.parametrize("second", [RAW, f"a/{RAW}", f"./{RAW}"])
def test_two_files_of_one_name(room: Room, second: str) -> None:
    room.refuse(GOOD + file(second, b"other") + END, "second file", ascii(second))


@pytest.mark.parametrize("names", [(RAW, RAW.upper()), (RAW.upper(), RAW)])
def test_two_names_that_some_file_systems_take_for_one(room: Room, names: tuple[str, str]) -> None:
    data = file(names[0], b"1") + file(names[1], b"2") + END
    room.refuse(data, f"{names[1]!r} is the second file", wanted=lambda name: True)


def test_a_directory_with_content(room: Room) -> None:
    """Some readers skip the content, others take it for headers."""
    inner = file(SPT, b"x")
    room.refuse(GOOD + header(b"folder/", len(inner), b"5") + inner + END, "directory")
    room.refuse(GOOD + header(b"folder/", len(inner), b"\0") + inner + END, "directory")
    room.refuse(GOOD + pax(size="512") + header(b"folder/", 0, b"5") + bytes(512) + END, "directory")


def test_sparse_files_that_claim_more_than_they_hold(room: Room) -> None:
    room.refuse(GOOD + header(SPT.encode(), 512, b"S") + bytes(512) + END, "sparse")
    maps: tuple[dict[str, str | bytes], ...] = (
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 15, "GNU.sparse.name": SPT},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9" * 15},
        {"GNU.sparse.size": "9" * 15, "GNU.sparse.numblocks": "1"},
    )
    for values in maps:
        room.refuse(GOOD + pax(**values) + file(f"GNUSparseFile.0/{SPT}", b"x" * 512) + END, "sparse")
        room.refuse(GOOD + pax(b"g", **values) + file(SPT, b"x") + END, "all that follow")


@pytest.mark.parametrize("values", [{"path": SPT}, {"path": "../x"}, {"size": "0"}])
def test_global_headers_that_rename_or_resize(room: Room, values: dict[str, str]) -> None:
    room.refuse(pax(b"g", **values) + GOOD + END, "all that follow")


# ---- too much


@pytest.mark.parametrize(
    "size",
    [
        b"%011o\0" % 10**9,
        b"7" * 11 + b"\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"\xff" * 11 + b"\0",
        b"-0000000001 ",
    ],
)
@pytest.mark.parametrize("name", [SPT, "README"])
def test_a_claimed_size_out_of_bounds(room: Room, name: str, size: bytes) -> None:
    room.refuse(GOOD + header(name.encode(), size) + b"x" * 512 + END, name, "claims", limit=10**8)


def test_a_claimed_size_out_of_bounds_in_an_extended_header(room: Room) -> None:
    room.refuse(GOOD + pax(size="9" * 20) + file(SPT, b"x") + END, "claims")
    room.refuse(GOOD + pax(size=str(tarball.LIMIT)) + file(SPT, b"x") + END, "claims")
    room.refuse(GOOD + pax(size="1000000") + file(SPT, b"x") + END, "ends early")


def test_the_limit_is_for_all_that_is_read(room: Room) -> None:
    data = GOOD + file("README", b"x" * 10_000) + END
    room.refuse(data, "'README' claims 10000 bytes", limit=15_000)
    room.refuse(data, f"more than {len(data) - 1} bytes", limit=len(data) - 1)
    room.refuse(gzip.compress(data), f"more than {len(data) - 1} bytes", limit=len(data) - 1)
    assert room.unpack(gzip.compress(data), limit=len(data)).files == (RAW,)


def test_too_many_members(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    many = b"".join(file(f"{number}") for number in range(tarball.MOST_MEMBERS - 1))
    assert room.unpack(GOOD + many + END).files == (RAW,)
    (room.directory / RAW).unlink()
    room.refuse(GOOD + many + file("last") + END, "'last' is one too many")
    assert tarball.MOST_MEMBERS == 10_000


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_a_chain_of_extending_headers(room: Room, kind: bytes) -> None:
    one = extended(kind, record(b"comment", b"x"))
    room.refuse(gzip.compress(one * 12_000 + GOOD + END), "one too many")


@pytest.mark.parametrize(
    "data", [b"1" * 65_536, b"1 " * 32_768, b"1 a=" * 16_384, record(b"a", b"") * 13_000, b"1\n" * 32_768]
)
def test_extended_headers_that_are_slow_to_read(room: Room, data: bytes) -> None:
    start = time.process_time()
    with pytest.raises(InputError):
        room.unpack(GOOD + extended(b"x", data[:65_536]) * 20 + END)
    assert time.process_time() - start < 2


def squeezed(*parts: tuple[bytes, int]) -> bytes:
    """Compress long repetitions without ever having them."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return b"".join(packer.compress(part) for part, times in parts for _ in range(times)) + packer.flush()


MIB = bytes(1 << 20)

BOMBS: dict[str, Callable[[], bytes]] = {
    "one wanted file": lambda: squeezed((GOOD, 1), (header(SPT.encode(), 64 << 20), 1), (MIB, 64), (END, 1)),
    "one skipped file": lambda: squeezed((GOOD, 1), (header(b"README", 64 << 20), 1), (MIB, 64), (END, 1)),
    "files that add up": lambda: squeezed((GOOD, 1), (header(b"README", 1 << 20) + MIB, 64), (END, 1)),
    "padding": lambda: squeezed((GOOD + END, 1), (MIB, 64)),
    "nothing else": lambda: squeezed((MIB, 64)),
    "long name": lambda: squeezed((GOOD, 1), (header(b"x", 64 << 20, b"L"), 1), (b"x" * (1 << 20), 64), (GOOD, 1)),
    "long link": lambda: squeezed((GOOD, 1), (header(b"x", 64 << 20, b"K"), 1), (b"x" * (1 << 20), 64), (GOOD, 1)),
    "pax header": lambda: squeezed((GOOD, 1), (header(b"x", 64 << 20, b"x"), 1), (MIB, 64), (GOOD, 1)),
    "global header": lambda: squeezed((GOOD, 1), (header(b"x", 64 << 20, b"g"), 1), (MIB, 64), (GOOD, 1)),
    "global headers that add up": lambda: squeezed((GOOD + extended(b"g", record(b"x", b"y" * 60_000)), 2000)),
    "long names that add up": lambda: squeezed((GOOD + extended(b"L", b"y" * 60_000), 2000)),
    "empty streams": lambda: gzip.compress(b"") * 20_000 + gzip.compress(MIB * 16),
}


def unpacked_in_little_memory(room: Room, data: bytes, limit: int) -> None:
    tracemalloc.start()
    try:
        room.path.write_bytes(data)
        del data
        tracemalloc.reset_peak()
        base = tracemalloc.get_traced_memory()[0]
        with pytest.raises(InputError) as caught:
            unpack(room.path, room.directory, dataset=DATASET, wanted=wanted, limit=limit)
        assert tracemalloc.get_traced_memory()[1] - base < 8 << 20
    finally:
        tracemalloc.stop()
    check_message(caught.value, room.path)
    assert room.content() == {}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_meet_the_limit(room: Room, kind: str) -> None:
    unpacked_in_little_memory(room, BOMBS[kind](), 8 << 20)


@pytest.mark.parametrize("kind", ["one wanted file", "one skipped file", "padding", "files that add up"])
def test_bombs_meet_the_ratio(room: Room, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarball, "_SMALL", 4 << 20)
    before = snapshot(room.root)
    unpacked_in_little_memory(room, BOMBS[kind](), tarball.LIMIT)
    room.path.unlink()
    assert snapshot(room.root) == before
    data = BOMBS[kind]()
    held = re.search(r"\d+ bytes of it hold more than (\d+)", str(room.refuse(data)))
    assert held is not None
    assert int(held[1]) <= tarball._RATIO * len(data) + 2 * len(MIB)


def test_images_of_almost_nothing_are_no_bomb(room: Room) -> None:
    """What COS counts in a short exposure shrinks by a factor of a thousand."""
    data = squeezed((header(RAW.encode(), 64 << 20), 1), (MIB, 64), (END, 1))
    assert len(data) < (64 << 20) / 900
    assert room.unpack(data).files == (RAW,)
    assert tarball._SMALL >= 32 * (2 * 2 * 16384 * 1024)  # an association of 32 exposures of two segments, in ACCUM


class Endless(io.RawIOBase):
    """Goes on for ever."""

    def __init__(self, start: bytes, more: Callable[[int], bytes]) -> None:
        self.start = io.BytesIO(start)
        self.more = more
        self.given = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self.start.read(size) or self.more(size)
        self.given += len(data)
        return data


def test_an_endless_reader_is_left_at_the_limit(room: Room) -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    head = packer.compress(GOOD + END)
    readers = {
        "tar": Endless(GOOD + END, bytes),
        "name": Endless(GOOD + header(b"x", 1 << 40, b"L"), lambda size: b"x" * size),
        "zeros": Endless(b"", bytes),
        "gzip": Endless(head, lambda size: packer.compress(bytes(size)) or packer.compress(MIB)),
    }
    for reader in readers.values():
        with pytest.raises(InputError):
            unpack_stream(
                reader,  # type: ignore[arg-type]
                room.directory,
                source="endless",
                dataset=DATASET,
                wanted=wanted,
                limit=20 << 20,
            )
        assert reader.given <= (20 << 20) + (2 << 20)
        assert room.content() == {}


# ---- the other side


class Full(io.RawIOBase):
    def write(self, data: Any, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_damaged_tarball(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def fails(path: Path, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:
        if mode == "xb" and path.name == SPT:
            path.touch()
            return Full()  # type: ignore[return-value]
        return opened(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match="No space left"):
        room.unpack(GOOD + file(SPT, b"x") + END)
    assert room.content() == {}


def test_a_damaged_disk_is_a_tarball_that_cannot_be_read(room: Room) -> None:
    class Damaged(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 5000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(100)

    with pytest.raises(InputError, match="Input/output error"):
        unpack_stream(Damaged(GOOD + END), room.directory, source="x.tar", dataset=DATASET, wanted=wanted)
    assert room.content() == {}


def test_what_is_there_is_not_overwritten(room: Room) -> None:
    (room.directory / RAW).symlink_to("../target")
    with pytest.raises(FileExistsError):
        unpack_stream(io.BytesIO(GOOD + END), room.directory, source="x.tar", dataset=DATASET, wanted=wanted)
    assert (room.directory / RAW).is_symlink()
    assert (room.root / "space/target").read_text() == "canary space/target"


# ---- anything


def dishonest(rng: random.Random) -> bytes:
    """One member, or what goes before one, that must condemn the tarball."""
    name = rng.choice(list(NAMES.values()))
    raw = os.fsencode(name) if "\udcff" in name else name.encode()
    tricks: list[Callable[[], bytes]] = [
        lambda: rng.choice(list(KINDS.values())),
        lambda: header(raw, 3) + padded(b"abc"),
        lambda: extended(b"L", raw + b"\0") + file(SPT, b"abc"),
        lambda: pax(path=raw) + file(rng.choice([SPT, "README"]), b"abc"),
        lambda: header(b"folder", 0, rng.choice([b"1", b"2"]), rng.choice([b"..", b"/", b"../unpacked-sibling"])),
        lambda: extended(b"K", b"../" * rng.randrange(1, 99) + b"target\0") + header(b"x", 0, b"2", b"y"),
        lambda: header(SPT.encode(), rng.choice([b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 12])),
        lambda: pax(size=str(10 ** rng.randrange(9, 30))) + file(SPT, b"x"),
        lambda: pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + file(SPT, b"1\n0\n512\n".ljust(512)),
        lambda: pax(b"g", **rng.choice([{"path": "../x"}, {"size": "0"}, {"GNU.sparse.map": "0,1"}])),
        lambda: extended(rng.choice([b"x", b"g"]), rng.randbytes(rng.randrange(1, 700))),
        lambda: header(b"x", 1 << rng.randrange(17, 40), rng.choice([b"L", b"K", b"x", b"g"])) + bytes(512),
        lambda: header(b"d/", rng.randrange(1, 5000), b"5"),
        lambda: file(SPT, b"1") + file(f"again/{SPT}", b"2"),
        lambda: rng.randbytes(512),
    ]
    return rng.choice(tricks)()


def tarball_of(rng: random.Random) -> tuple[bytes, dict[str, bytes], list[int], bool]:
    """Return a tarball, its wanted files, where its headers are, and whether it is honest."""
    contents: dict[str, bytes] = {RAW: rng.randbytes(rng.randrange(3000))}
    members = [file(rng.choice(["", "./", "a/b/"]) + RAW, contents[RAW])]
    for number in range(rng.randrange(5)):
        name = f"ldfd01vp{number}_rawtag_{rng.choice('ab')}.fits"
        contents[name] = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))
        member = file("cut", contents[name])
        members.append(rng.choice([pax(path=name), extended(b"L", f"x/{name}".encode() + b"\0")]) + member)
    members += [file(f"note{n}", rng.randbytes(rng.randrange(2000))) for n in range(rng.randrange(3))]
    honest = rng.random() < 0.4
    members += [] if honest else [dishonest(rng) for _ in range(rng.randrange(1, 4))]
    rng.shuffle(members)
    starts, position = [], 0
    for member in members:
        starts.append(position)
        position += len(member)
    return b"".join(members) + bytes(512 * rng.randrange(1, 20)), contents, starts, honest


@pytest.mark.parametrize("seed", range(200))
def test_any_tarball_is_refused_or_unpacked_completely(room: Room, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    data, contents, starts, honest = tarball_of(rng)
    compressed = rng.random() < 0.6
    damage = rng.choice(["none", "flip", "truncate"]) if honest else rng.choice(["none", "none", "flip"])
    data = gzip.compress(data, rng.choice([0, 1, 9])) if compressed else data
    if damage == "truncate":
        data = data[: rng.randrange(len(data))]
    elif damage == "flip":
        # Only headers of a plain tar have a checksum: what else is changed in it cannot be noticed.
        where = rng.randrange(len(data)) if compressed else rng.choice(starts) + rng.randrange(512)
        data = data[:where] + bytes([data[where] ^ 1 << rng.randrange(8)]) + data[where + 1 :]
    try:
        done = room.unpack(data, limit=1 << 24)
    except InputError as error:
        check_message(error, room.path)
        assert room.content() == {}
        assert not (honest and damage == "none")
    else:
        assert honest
        assert room.content() == contents
        assert sorted(done.files) == sorted(contents)


def test_the_fuzz_test_sees_all_kinds() -> None:
    kinds = [tarball_of(random.Random(seed))[3] for seed in range(200)]  # noqa: S311
    assert 50 < sum(kinds) < 150
