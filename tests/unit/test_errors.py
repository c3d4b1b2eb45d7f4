"""Errors and exit codes."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from caldp import errors
from caldp.errors import (
    EXIT_CODES,
    CaldpError,
    CaldpMemoryError,
    InputError,
    Interrupted,
    OutputError,
    Stop,
    SystemMemoryError,
    describe,
)

#: What the archive pipeline has always called its codes.
ARCHIVE = {
    0: "SUCCESS",
    1: "GENERIC_ERROR",
    2: "CMDLINE_ERROR",
    21: "INPUT_TAR_FILE_ERROR",
    22: "ASTROQUERY_ERROR",
    23: "STAGE1_ERROR",
    24: "STAGE2_ERROR",
    25: "S3_UPLOAD_ERROR",
    26: "S3_DOWNLOAD_ERROR",
    27: "BESTREFS_ERROR",
    28: "CREATE_PREVIEWS_ERROR",
    31: "SUBPROCESS_MEMORY_ERROR",
    32: "CALDP_MEMORY_ERROR",
    33: "CONTAINER_MEMORY_ERROR",
    34: "OS_MEMORY_ERROR",
    40: "SVM_ERROR",
    41: "MVM_ERROR",
}


def tree(root: type[CaldpError] = CaldpError) -> Iterator[type[CaldpError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


#: Those of errors.py; a room may have one of its own that never leaves it.
CLASSES = [cls for cls in tree() if cls is not Interrupted and cls.__module__ == errors.__name__]


@pytest.mark.parametrize(("code", "name"), ARCHIVE.items())
def test_codes_of_the_archive_pipeline_keep_their_names(code: int, name: str) -> None:
    assert EXIT_CODES[code][0] == name


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_a_code_in_the_table(cls: type[CaldpError]) -> None:
    error = cls("what happened")
    assert error.code == cls.exit_code
    assert error.name == EXIT_CODES[error.code][0]
    assert error.name != "GENERIC_ERROR" or cls is CaldpError


def test_no_code_has_two_meanings() -> None:
    names = [name for name, _ in EXIT_CODES.values()]
    assert len(set(names)) == len(names)
    # A special case is a subclass of what has the code.
    codes = [cls.exit_code for cls in CLASSES if cls is CaldpError or CaldpError in cls.__bases__]
    assert sorted(codes) == sorted(set(codes))


def test_every_code_has_an_owner() -> None:
    owned = {cls.exit_code for cls in CLASSES} | {130, 143, 129, 137} | {0}
    assert EXIT_CODES.keys() <= owned


@pytest.mark.parametrize("cls", CLASSES)
def test_the_tree_in_the_docstring_is_the_tree(cls: type[CaldpError]) -> None:
    assert re.search(rf"\b{cls.__name__} \({cls.exit_code}\)", errors.__doc__ or "")


def test_memory_errors_and_passing_trouble_can_be_retried() -> None:
    assert {cls.exit_code for cls in CLASSES if cls.retriable} == {22, 25, 26, 27, 31, 32, 33, 34, 35}
    assert not errors.ReferencesError.retriable


@pytest.mark.parametrize(
    ("signum", "code", "name"),
    [(signal.SIGTERM, 143, "TERMINATED"), (signal.SIGINT, 130, "INTERRUPTED"), (signal.SIGHUP, 129, "HANGUP")],
)
def test_signals_that_stop_a_run_have_codes_of_their_own(signum: int, code: int, name: str) -> None:
    stopped = Interrupted(signum)
    assert stopped.code == code
    assert signal.Signals(signum).name in stopped.message
    assert code in EXIT_CODES
    assert stopped.name == name or code == 129
    assert str(Interrupted(signum, "ldfd01vnq")) == f"ldfd01vnq: {stopped}"


def test_messages_are_one_line() -> None:
    error = InputError("first\nsecond\r\n\tthird ", remedy="do\nthis ")
    assert str(error) == "first second third; do this"
    assert str(InputError("alone")) == "alone"


def os_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *([names[0], None, *names[1:]] if names else []))


@pytest.mark.parametrize(
    ("error", "cls", "words"),
    [
        (os_error(errno.ENOSPC, "/out/x.fits"), OutputError, ["ldfd01vnq", "no space left", "/out/x.fits"]),
        (os_error(errno.EDQUOT, "/out/x.fits"), OutputError, ["no space left", "/out/x.fits"]),
        (os_error(errno.EACCES, "/out"), OutputError, ["ldfd01vnq", "not allowed", "/out", "Permission denied"]),
        (os_error(errno.EPERM, "/out"), OutputError, ["not allowed", "/out"]),
        (os_error(errno.EROFS, "/out"), OutputError, ["not allowed", "Read-only"]),
        (os_error(errno.EACCES, "/from", "/to"), OutputError, ["/to"]),
        (os_error(errno.ENOMEM), SystemMemoryError, ["ldfd01vnq", "memory"]),
        (os_error(errno.EIO), OutputError, ["ldfd01vnq", "a file", "Input/output error"]),
        (OSError("odd"), OutputError, ["ldfd01vnq", "odd"]),
        (MemoryError(), CaldpMemoryError, ["ldfd01vnq", "out of memory"]),
        (KeyboardInterrupt(), Interrupted, ["SIGINT"]),
        (ZeroDivisionError("division\nby zero"), CaldpError, ["ldfd01vnq", "ZeroDivisionError", "division by zero"]),
        (SystemExit(2), CaldpError, ["SystemExit"]),
    ],
)
def test_any_exception_is_described(error: BaseException, cls: type[CaldpError], words: list[str]) -> None:
    described = describe(error, "ldfd01vnq")
    assert type(described) is cls
    assert all(word in str(described) for word in words), str(described)
    assert "\n" not in str(described)
    assert described.remedy


@pytest.mark.parametrize("stop", [Stop(signal.SIGINT), KeyboardInterrupt()])
def test_whoever_is_stopped_is_named_and_told_what_fits(stop: BaseException) -> None:
    assert str(describe(stop, "ldfd01vnq")) == "ldfd01vnq: stopped by SIGINT; run the same command again"
    assert str(describe(stop, "")) == "stopped by SIGINT; run the same command again"  # for example a build


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.ENOMEM])
def test_what_is_of_no_dataset_names_none(number: int) -> None:
    error = os_error(number, "/x")
    assert not str(describe(error, "")).startswith((":", " "))
    assert str(describe(error, "ldfd01vnq")) == f"ldfd01vnq: {describe(error, '')}"


def test_what_caldp_understands_is_passed_on() -> None:
    error = InputError("x")
    assert describe(error, "other") is error


def test_a_file_name_with_a_line_end_cannot_break_the_line() -> None:
    assert "\n" not in str(describe(os_error(errno.ENOSPC, "/out/a\nb"), "ldfd01vnq"))
    assert describe(os_error(errno.ENOSPC), "x").exit_code == 29
    assert describe(OSError(errno.ENOSPC, "no", b"/bytes"), "x").exit_code == 29


def test_the_readme_has_the_table_of_exit_codes() -> None:
    readme = (Path(__file__).parents[2] / "README.rst").read_text()
    for code, (name, meaning) in EXIT_CODES.items():
        row = rf'^    {code}, ``{name}``, "(.*)"$'
        match = re.search(row, readme, re.MULTILINE)
        assert match, code
        assert match[1].replace("``", "") == meaning
