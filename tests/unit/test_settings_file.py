"""The settings that come with the data: switches of the calibration programs and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caldp.errors import InputError
from caldp.settings_file import ALLOWED, read

Result = tuple[dict[str, str], list[str]]


def given(folder: Path, content: str | bytes) -> Result:
    path = folder / "iacs01t4q_cal_env.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    before = dict(os.environ)
    settings, refused = read(path)
    assert dict(os.environ) == before
    assert settings.keys() <= ALLOWED
    for message in refused:
        assert message.isprintable()
        assert message.startswith(path.name)
        assert len(message) < 200
    return settings, refused


def test_settings(tmp_path: Path) -> None:
    content = """
# switches for this visit
ASTROMETRY_COMPUTE_APOSTERIORI=off
   ASTROMETRY_APPLY_APRIORI  =  OFF\t
\t# OMP_NUM_THREADS=7

OMP_NUM_THREADS=4\r
ASTROMETRY_APPLY_APRIORI=on"""
    assert given(tmp_path, content) == (
        {"ASTROMETRY_COMPUTE_APOSTERIORI": "off", "ASTROMETRY_APPLY_APRIORI": "on", "OMP_NUM_THREADS": "4"},
        [],
    )


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n", "\ufeff"])
def test_a_file_that_sets_nothing(tmp_path: Path, content: str) -> None:
    assert given(tmp_path, content) == ({}, [])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert given(tmp_path, "\ufeffOMP_NUM_THREADS=1\n")[0] == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_each_allowed_name(tmp_path: Path, name: str) -> None:
    assert given(tmp_path, f"{name}=on\n") == ({name: "on"}, [])


def test_the_file_of_the_original_pipelines_test(tmp_path: Path) -> None:
    settings, refused = given(tmp_path, "BadKey|ValuePair\nGoodKey=ValuePair\n")
    assert settings == {}
    assert refused == [
        "iacs01t4q_cal_env.txt line 1: not of the form name=value",
        "iacs01t4q_cal_env.txt line 2: GoodKey is not a setting that may come with the data",
    ]


FORBIDDEN = (
    "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "HOME",
    "BASH_ENV", "ENV", "IFS", "SHELL", "TMPDIR", "iref", "jref", "oref", "lref", "uref", "nref", "CRDS_PATH",
    "CRDS_SERVER_URL", "CRDS_CONTEXT", "CRDS_DOWNLOAD_PLUGIN", "CALDP_HOME", "ASTROMETRY_SERVICE_URL",
    "GSSS_WEBSERVICES_URL", "ASTROMETRIC_CATALOG_URL", "DATA_PATH", "HLA_CLASSIC_BASEPATH", "imclobber",
    "http_proxy", "HTTPS_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_ACCESS_KEY_ID", "BASH_FUNC_x%%",
    "omp_num_threads", "OMP_NUM_THREADS_", "XOMP_NUM_THREADS", "export OMP_NUM_THREADS", "OMP_NUM_THREADS\u200b",
)  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_names_that_are_not_listed_are_refused(tmp_path: Path, name: str) -> None:
    settings, refused = given(tmp_path, f"ASTRODRIZ_NO_PARALLEL=1\n{name}=s3cret\n")
    assert settings == {"ASTRODRIZ_NO_PARALLEL": "1"}
    assert len(refused) == 1
    assert "s3cret" not in refused[0]
    assert f"line 2: {name[:15]}" in refused[0]


@pytest.mark.parametrize("line", ["PATH=/evil", "PATH=evil", " PATH = evil:/bin ", "PATH=", "PATH\t=evil"])
def test_d25_path_is_refused(tmp_path: Path, line: str) -> None:
    settings, refused = given(tmp_path, f"{line}\n")
    assert settings == {}
    assert refused == ["iacs01t4q_cal_env.txt line 1: PATH is not a setting that may come with the data"]


@pytest.mark.parametrize("line", ["LD_PRELOAD=/evil.so", "LD_PRELOAD=evil.so", "#\nLD_PRELOAD=x", "A\rLD_PRELOAD=x"])
def test_d25_ld_preload_is_refused(tmp_path: Path, line: str) -> None:
    settings, refused = given(tmp_path, f"{line}\n")
    assert settings == {}
    assert "LD_PRELOAD is not a setting" in refused[0]


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "/tmp", "a/b", "a:b", "a;b", "$(x)", "`x`", "a=b", "'on'", '"on"', "ön", "x\0", "\0", "a\rb",  # noqa: S108
     "x" * 65, "http:x", "~", "on # really", "\x1b[31m", "\ufffd", "off\\", "١"],
)  # fmt: skip
def test_values_that_are_refused(tmp_path: Path, value: str) -> None:
    settings, refused = given(tmp_path, f"PIPELINE_RESET_IDCTAB={value}\nOMP_NUM_THREADS=1\n")
    assert settings == {"OMP_NUM_THREADS": "1"}
    assert refused == [
        "iacs01t4q_cal_env.txt line 1: the value of PIPELINE_RESET_IDCTAB is not 1 to 64 letters, digits and _.,+-"
    ]


@pytest.mark.parametrize("value", ["x" * 64, "GNU", "0.5,+1-2_a"])
def test_values_that_are_accepted(tmp_path: Path, value: str) -> None:
    assert given(tmp_path, f"MKL_THREADING_LAYER={value}")[0] == {"MKL_THREADING_LAYER": value}


def test_values_are_not_repeated(tmp_path: Path) -> None:
    refused = given(tmp_path, "TOKEN=s3cret\nOMP_NUM_THREADS=s3cret!\ns3cret\n")[1]
    assert len(refused) == 3
    assert "s3cret" not in "".join(refused)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x" * 1000, "x" * 64),
        ("\x1b[31mA", "\\x1b[31mA"),
        ("PA\0TH", "PA\\x00TH"),
        ("é" * 64, "\\xe9" * 16),
        ("", "an empty name"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_names_are_shown_in_one_short_line(tmp_path: Path, name: str, shown: str) -> None:
    assert given(tmp_path, f"{name}=1\n") == (
        {},
        [f"iacs01t4q_cal_env.txt line 1: {shown} is not a setting that may come with the data"],
    )


def test_bytes_that_are_not_utf8_spoil_their_line_only(tmp_path: Path) -> None:
    settings, refused = given(tmp_path, b"# \xff\nOMP_NUM_THREADS\xff=1\nASTRODRIZ_NO_PARALLEL=\xff\nMVM_ONLY_CTE=on\n")
    assert settings == {"MVM_ONLY_CTE": "on"}
    assert [message.split(":")[0][-6:] for message in refused] == ["line 2", "line 3"]
    assert given(tmp_path, "OMP_NUM_THREADS=1\n".encode("utf-16"))[0] == {}


def test_a_file_that_is_too_large_is_not_used_at_all(tmp_path: Path) -> None:
    line = "OMP_NUM_THREADS=1\n"
    assert given(tmp_path, line + "#" * (64_000 - len(line)))[0] == {"OMP_NUM_THREADS": "1"}
    settings, refused = given(tmp_path, line + "#" * (64_001 - len(line)))
    assert settings == {}
    assert refused == ["iacs01t4q_cal_env.txt: larger than 64000 bytes, so none of it is used"]


def test_many_refused_lines_make_few_messages(tmp_path: Path) -> None:
    assert len(given(tmp_path, "x\n" * 20)[1]) == 20
    settings, refused = given(tmp_path, "x\n" * 30_000 + "OMP_NUM_THREADS=1\n")
    assert settings == {"OMP_NUM_THREADS": "1"}
    assert len(refused) == 21
    assert refused[-1] == "iacs01t4q_cal_env.txt: 29980 more lines are refused"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*iacs01t4q_cal_env\.txt \(No such file"):
        read(tmp_path / "iacs01t4q_cal_env.txt")
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)
