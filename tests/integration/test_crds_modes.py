"""CRDS from a read-only cache, from a server into a cache of one's own, and by a config of one's own."""

from __future__ import annotations

import hashlib
import json
import os
import pprint
import shutil
import subprocess
import time
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from tests.desk import SCRIPTS, Desk, Hrc, Result, linked_cache, shim
from tests.fakes.cos import truncate
from tests.fakes.crds import FakeCrds, serving

ACQ = "ldfd01vlq"
TAG = "ldfd01vnq"
BPIX, DEAD, FLAT = CHOSEN = ["uas19356l_bpix.fits", "s7g1700ql_dead.fits", "x5v1944hl_flat.fits"]
GSAG = "23e16470l_gsag.fits"
OPERATIONAL = "hst_0729.pmap"

Give = Callable[..., None]


def slow(value: str) -> Any:
    """Mark a case of a test as slow."""
    return pytest.param(value, marks=pytest.mark.slow)


def own(path: Path) -> Path:
    """Replace a link by a copy that may be damaged."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def alter(path: Path) -> Path:
    """Change one bit; the file is whole FITS as before."""
    content = bytearray(own(path).read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def inform(cache: Path, **fields: Any) -> None:
    """Change what a cache knows of the CRDS server."""
    path = own(cache / "config" / "hst" / "server_config")
    path.write_text(pprint.pformat(literal_eval(path.read_text()) | fields))


def known(cache: Path) -> dict[str, dict[str, str]]:
    """Return size and checksum of every reference in a cache."""
    return {
        p.name: {"size": str(p.stat().st_size), "sha1sum": hashlib.sha1(p.read_bytes()).hexdigest()}  # noqa: S324
        for p in (cache / "references").rglob("*.fits")
    }


def snapshot(folder: Path) -> dict[str, tuple[float, bytes]]:
    """Return the names of all that is in a folder, the times of folders and the content of files."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, b"" if p.is_dir() else p.read_bytes())
        for p in [folder, *folder.rglob("*")]
    }


def caldp(desk: Desk, *args: str, env: Mapping[str, str] | None = None) -> Result:
    """Run the command ``caldp`` to its end."""
    done = subprocess.run(
        [str(SCRIPTS / "caldp"), *args], cwd=desk.home, env={**desk.env, **(env or {})}, capture_output=True, text=True
    )
    assert "Traceback" not in done.stdout + done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def show(desk: Desk, dataset: str, *args: str, env: Mapping[str, str] | None = None) -> tuple[Result, dict[str, Any]]:
    """Ask for the references of a dataset, as JSON; return the rows by type too."""
    result = caldp(desk, "references", "show", dataset, "file:IN", *args, "--json", env=env)
    answer = json.loads(result.stdout) if result.stdout else {}
    return result, answer | {row["type"]: row for row in answer.get("references", ())}


def log(desk: Desk, dataset: str = ACQ) -> str:
    """Read the log of the last attempt."""
    return (desk.folder(dataset) / "logs" / "process.txt").read_text()


@pytest.fixture
def no_calcos(desk: Desk, give: Give) -> Desk:
    """A desk with the acquisition image, where calcos only says what it was given, and fails.

    A run that comes so far (exit status 23) has its references.
    """
    give(f"{ACQ}*")
    folder = shim(desk.home / "bin", "calcos", 'env; for file in "$lref"*; do echo "given $file"; done; exit 9')
    return Desk(desk.home, {**desk.env, "PATH": f"{folder}{os.pathsep}{desk.env['PATH']}"})


@dataclass(frozen=True)
class Offsite:
    """A user with an empty cache of his own, and a CRDS server."""

    desk: Desk
    crds: FakeCrds

    @property
    def cache(self) -> Path:
        return Path(self.desk.env["CRDS_PATH"])

    @property
    def references(self) -> dict[str, Path]:
        """The references in the cache."""
        return {p.name: p for p in (self.cache / "references" / "hst" / "cos").glob("*")}

    def run(self, *options: str, env: Mapping[str, str] | None = None) -> Result:
        return self.desk.process(ACQ, "caldp-config-offsite", *options, env=env)

    def fetched(self, *options: str, env: Mapping[str, str] | None = None) -> Result:
        """Run, with the references, as far as calcos."""
        result = self.run(*options, env=env)
        assert result.code == 23, result.stdout + result.stderr
        assert sorted(self.references) == sorted(CHOSEN)
        for name, path in self.references.items():
            assert path.read_bytes() == self.crds.files[name].read_bytes()
            assert f"/references/{name}" in log(self.desk)
        return result

    def show(self, *options: str, env: Mapping[str, str] | None = None) -> tuple[Result, dict[str, Any]]:
        return show(self.desk, ACQ, "caldp-config-offsite", *options, env=env)


@pytest.fixture
def crds(cos_data: Path) -> Iterator[FakeCrds]:
    """A CRDS server."""
    with serving(cos_data / "crds_cache") as crds:
        yield crds


@pytest.fixture
def offsite(no_calcos: Desk, crds: FakeCrds) -> Offsite:
    """A user away from the central store who wants only references."""
    env = {**no_calcos.env, "CRDS_PATH": str(no_calcos.home / "cache"), "CRDS_SERVER_URL": crds.url}
    return Offsite(Desk(no_calcos.home, env), crds)


# --- no server, a read-only cache ---------------------------------------------------------------------------------


def test_onsite_leaves_a_flat_cache_as_it_is(no_calcos: Desk, cos_data: Path) -> None:
    cache = linked_cache(cos_data / "crds_cache", no_calcos.home / "crds")
    before = snapshot(cache)
    assert no_calcos.process(ACQ, env={"CRDS_PATH": str(cache)}).code == 23  # came as far as calcos
    assert snapshot(cache) == before
    given = [line.rpartition("/")[2] for line in log(no_calcos).splitlines() if "calcos: given" in line]
    assert given == sorted(CHOSEN)


@pytest.mark.slow
def test_a_read_only_cache_that_has_a_server_is_left_as_it_is(offsite: Offsite, cos_data: Path) -> None:
    cache = linked_cache(cos_data / "crds_cache", offsite.desk.home / "crds")
    inform(cache, download_metadata=known(cache))
    alter(cache / "references" / "hst" / FLAT)
    before = snapshot(cache)
    result = offsite.run(env={"CRDS_PATH": str(cache), "CRDS_READONLY_CACHE": "1"})
    offsite.desk.assert_failed(result, ACQ, 27, f"{cache}/references/hst/{FLAT} is damaged")
    assert snapshot(cache) == before
    assert offsite.crds.references == []


# --- a server, a cache of one's own -------------------------------------------------------------------------------


def test_offsite_downloads_once(offsite: Offsite, environment: dict[str, str]) -> None:
    desk, crds = offsite.desk, offsite.crds
    assert offsite.run(env={"PATH": environment["PATH"], "CRDS_PATH": "cache"}).code == 0  # with calcos
    assert sorted(crds.references) == sorted(CHOSEN)
    assert len(crds.delivered) == len(set(crds.delivered)) > 100  # rules too
    assert (offsite.cache / "config" / "hst" / "ref_cache_subdir_mode").read_text() == "instrument"
    wanted = {name: crds.metadata[name]["sha1sum"] for name in CHOSEN}
    assert {f["name"]: f["sha1"] for f in desk.manifest(ACQ)["references"]} == wanted
    crds.forget()
    offsite.fetched()
    assert crds.asked == ["get_server_info", "get_mapping_names"]
    assert crds.delivered == []


@pytest.mark.slow
def test_two_runs_fill_one_empty_cache(offsite: Offsite) -> None:
    offsite.crds.drip = 0.2
    runs = [offsite.desk.start(ACQ, "file:IN", f"file:OUT{n}", "caldp-config-offsite") for n in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [23, 23], said  # both came as far as calcos
    assert sorted(offsite.crds.references) == sorted(CHOSEN)
    assert len(offsite.crds.delivered) == len(set(offsite.crds.delivered))
    assert any("waiting for another run" in stdout for stdout, _ in said)
    assert sorted(offsite.references) == sorted(CHOSEN)


def test_looking_downloads_rules_but_no_references(offsite: Offsite) -> None:
    text = caldp(offsite.desk, "references", "show", ACQ, "file:IN", "caldp-config-offsite")
    assert text.code == 0
    assert f"3 references of {OPERATIONAL}, cache {offsite.cache}; 3 would be downloaded, 0.1 MB" in text.stdout
    assert text.stdout.count("not in the cache: would be downloaded\n") == 3
    plan = offsite.run("--dry-run")
    assert plan.code == 0
    assert "would download 3 references, 0.1 MB, from http" in plan.stdout
    assert f"would use FLATFILE {FLAT}" in plan.stdout
    assert offsite.crds.references == []
    assert offsite.references == {}
    assert not offsite.desk.output.exists()


@pytest.mark.parametrize("way", [slow("cut"), slow("altered"), slow("silent")])
def test_a_download_that_fails_once_is_repeated(offsite: Offsite, way: str) -> None:
    getattr(offsite.crds, way)[FLAT] = 1
    offsite.fetched(env={"CRDS_CLIENT_TIMEOUT_SECONDS": "1", "CRDS_CLIENT_RETRY_COUNT": "1"})
    assert offsite.crds.references.count(FLAT) == 2
    assert offsite.crds.references.count(BPIX) == 1


@pytest.mark.parametrize("way", [slow("altered"), slow("cut"), slow("absent")])
def test_a_download_that_always_fails_leaves_nothing_behind(offsite: Offsite, way: str) -> None:
    if way == "absent":
        offsite.crds.absent.add(FLAT)
    else:
        getattr(offsite.crds, way)[FLAT] = -1
    reason = {"cut": "size", "altered": "sha1sum", "absent": "404"}[way]
    result = offsite.run(env={"CRDS_CLIENT_RETRY_COUNT": "1"})
    offsite.desk.assert_failed(result, ACQ, 27, "FLATFILE", FLAT, offsite.crds.url, "could not be downloaded", reason)
    assert sorted(offsite.references) == sorted([BPIX, DEAD])
    assert offsite.crds.references.count(FLAT) == 3
    if way == "cut":
        offsite.crds.cut.clear()  # the server is well again
        offsite.fetched()


@pytest.mark.slow
def test_what_is_damaged_in_the_cache_is_fetched_again(offsite: Offsite) -> None:
    folder = linked_cache(offsite.crds.cache, offsite.cache) / "references" / "hst"  # a flat one
    truncate(own(folder / BPIX))
    alter(folder / FLAT)
    result, found = offsite.show()
    assert result.code == 0
    assert [found[kind]["state"] for kind in ("BPIXTAB", "DEADTAB", "FLATFILE")] == ["download", "intact", "download"]
    assert offsite.crds.references == []
    assert offsite.run().code == 23
    assert sorted(offsite.crds.references) == sorted([BPIX, FLAT])
    assert log(offsite.desk).count("is damaged: removed") == 2
    assert [(folder / name).read_bytes() for name in CHOSEN] == [
        offsite.crds.files[name].read_bytes() for name in CHOSEN
    ]
    assert not (folder / "cos").exists()


@pytest.mark.slow
def test_damaged_rules_are_fetched_again(offsite: Offsite) -> None:
    offsite.crds.altered["hst_cos_0306.imap"] = 1
    result, found = offsite.show()
    assert (result.code, found["context"]) == (0, OPERATIONAL), result.stderr
    row = found["FLATFILE"]
    expected = offsite.crds.metadata[FLAT]
    assert (row["name"], row["state"], row["ok"], row["path"]) == (FLAT, "download", True, None)
    assert (row["size"], row["sha1"]) == (int(expected["size"]), expected["sha1sum"])
    assert offsite.crds.delivered.count("hst_cos_0306.imap") == 2


@pytest.mark.slow
def test_a_damaged_file_that_is_not_in_the_cache_is_left_alone(offsite: Offsite) -> None:
    mine = offsite.desk.home / "mine"
    mine.mkdir()
    shutil.copy(offsite.crds.files[FLAT], mine)
    alter(mine / FLAT)
    before = snapshot(mine)
    offsite.desk.assert_failed(offsite.run(env={"lref": str(mine)}), ACQ, 27, str(mine / FLAT), "is damaged")
    assert snapshot(mine) == before
    assert offsite.crds.references == []


@pytest.mark.slow
def test_own_and_bad_references_are_not_downloaded(offsite: Offsite) -> None:
    mine = offsite.desk.home / "mine_flat.fits"
    shutil.copy(offsite.crds.files[FLAT], mine)
    offsite.crds.settings["bad_files_list"] = [DEAD]
    result = offsite.run("--override", f"FLATFILE={mine}")
    offsite.desk.assert_failed(result, ACQ, 27, DEAD, "bad")
    assert offsite.crds.references == []
    result, found = offsite.show("--override", f"FLATFILE={mine}")
    assert result.code == 27
    assert (found["DEADTAB"]["ok"], found["DEADTAB"]["problem"]) == (False, "CRDS knows it to be bad")
    assert (found["FLATFILE"]["state"], found["BPIXTAB"]["state"]) == ("override", "download")


# --- a server that does not answer --------------------------------------------------------------------------------


def test_no_answer_and_an_empty_cache(offsite: Offsite, tell: Callable[[str], None]) -> None:
    offsite.crds.down = True
    began = time.monotonic()
    result = offsite.run()
    seconds = time.monotonic() - began
    offsite.desk.assert_failed(result, ACQ, 27, f"{offsite.crds.url} does not answer", str(offsite.cache))
    tell(f"CRDS server down, empty cache: {seconds:.1f} s")
    assert seconds < 30


@pytest.mark.slow
def test_a_server_that_never_answers(offsite: Offsite) -> None:
    offsite.crds.hang = 600
    began = time.monotonic()
    result = offsite.run(env={"CRDS_CLIENT_TIMEOUT_SECONDS": "1", "CRDS_CLIENT_RETRY_DELAY_SECONDS": "0"})
    offsite.desk.assert_failed(result, ACQ, 27, f"{offsite.crds.url} does not answer")
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_no_answer_and_a_complete_cache(offsite: Offsite) -> None:
    folder = linked_cache(offsite.crds.cache, offsite.cache) / "references" / "hst"
    offsite.crds.down = True
    hasty = {"CRDS_CLIENT_RETRY_COUNT": "1"}
    assert offsite.run(env=hasty).code == 23
    assert f"WARNING {ACQ} references the CRDS server {offsite.crds.url} does not answer" in log(offsite.desk)
    (folder / FLAT).unlink()
    result, found = offsite.show(env=hasty)
    assert result.code == 27
    assert [found[kind]["ok"] for kind in ("BPIXTAB", "DEADTAB", "FLATFILE")] == [True, True, False]
    silence = f"and the CRDS server {offsite.crds.url} does not answer"
    assert found["FLATFILE"]["problem"] == f"missing: not in {folder}/, {silence}"


def test_a_cache_that_cannot_be_written(offsite: Offsite) -> None:
    (offsite.desk.home / "file").touch()
    result = offsite.run(env={"CRDS_PATH": str(offsite.desk.home / "file" / "cache")})
    offsite.desk.assert_failed(result, ACQ, 27, "file/cache cannot be written", "CRDS_PATH")


# --- contexts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "exported", "used"),
    [
        ("", "", OPERATIONAL),
        ("hst-operational", "hst_0613.pmap", OPERATIONAL),
        pytest.param("hst-edit", OPERATIONAL, "hst_0613.pmap", marks=pytest.mark.slow),
        ("hst_0999.pmap", "", ""),
    ],
)
def test_the_server_knows_contexts(offsite: Offsite, context: str, exported: str, used: str) -> None:
    linked_cache(offsite.crds.cache, offsite.cache)
    inform(offsite.cache, operational_context="hst_0613.pmap", edit_context="hst_0613.pmap")  # of last year
    offsite.crds.settings |= {"operational_context": OPERATIONAL, "edit_context": "hst_0613.pmap"}
    offsite.crds.settings |= {"latest_context": OPERATIONAL}
    options = ["--context", context] if context else []
    result, found = offsite.show(*options, env={"CRDS_CONTEXT": exported})
    if used:
        assert (result.code, found["context"]) == (0, used), result.stderr
    else:
        assert (result.code, found) == (27, {})
        assert f"unknown CRDS context {context}: {offsite.crds.url} has no rules" in result.stderr
        assert f"the newest is {OPERATIONAL}" in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("context", "used"), [("hst_0613.pmap", "hst_0613.pmap"), ("hst-operational", OPERATIONAL)])
def test_the_command_line_wins_over_the_exported_context(no_calcos: Desk, context: str, used: str) -> None:
    exported = {"hst_0613.pmap": OPERATIONAL, "hst-operational": "hst_0613.pmap"}[context]
    options = ["caldp-config-onsite", "--context", context]
    result, found = show(no_calcos, ACQ, *options, env={"CRDS_CONTEXT": exported})
    assert (result.code, found["context"]) == (0, used), result.stderr


# --- a config of one's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["conf/my-config", slow("{home}/conf/my-config"), slow("my-config")])
def test_a_config_of_ones_own(no_calcos: Desk, cos_data: Path, way: str) -> None:
    desk = no_calcos
    (desk.home / "conf").mkdir()
    settings = f"CRDS_PATH={cos_data / 'crds_cache'} CRDS_READONLY_CACHE=1 CRDS_CONTEXT=hst_0613.pmap"
    (desk.home / "conf" / "my-config").write_text(f"export {settings}\n")
    env = {"CRDS_PATH": "/nowhere", "CRDS_SERVER_URL": "", "PATH": f"{desk.home}/conf:{desk.env['PATH']}"}
    result, found = show(desk, ACQ, way.format(home=desk.home), env=env)
    assert (result.code, found["context"], found["cache"]) == (0, "hst_0613.pmap", str(cos_data / "crds_cache"))


# --- caldp references show ----------------------------------------------------------------------------------------


@pytest.fixture
def shelf_of_mine(desk: Desk, give: Give, cos_data: Path) -> tuple[Desk, Path]:
    """A real spectrum, and a cache that may be damaged and that knows the checksums of what it holds."""
    give(f"{TAG}*")
    cache = linked_cache(cos_data / "crds_cache", desk.home / "crds")
    inform(cache, download_metadata=known(cache))
    return Desk(desk.home, {**desk.env, "CRDS_PATH": str(cache)}), cache / "references" / "hst"


def test_show_prints_every_row_whatever_is_wrong(shelf_of_mine: tuple[Desk, Path]) -> None:
    desk, folder = shelf_of_mine
    (folder / "23n1744el_phot.fits").unlink()
    truncate(own(folder / "z1q2219gl_trace.fits"))
    alter(folder / "u1t1616ql_wcp.fits")
    result, found = show(desk, TAG, "caldp-config-onsite", "--context", "hst_0613.pmap")
    assert result.code == 27
    assert len(found["references"]) > 15
    wrong = {row["type"]: row["problem"] for row in found["references"] if not row["ok"]}
    assert sorted(wrong) == ["FLUXTAB", "GSAGTAB", "TRACETAB", "WCPTAB"]
    assert wrong["FLUXTAB"] == f"missing: not in {folder}/"
    assert wrong["GSAGTAB"] == "CRDS knows it to be bad"
    assert found["GSAGTAB"]["name"] == GSAG
    assert "is damaged" in wrong["TRACETAB"] and "is damaged" in wrong["WCPTAB"]
    text = caldp(desk, "references", "show", TAG, "file:IN", "caldp-config-onsite", "--context", "hst_0613.pmap")
    assert text.code == 27
    assert len(text.stdout.splitlines()) == len(found["references"]) + 2
    for row in found["references"]:
        (line,) = [line for line in text.stdout.splitlines() if line.startswith(row["type"])]
        assert row["name"] in line
        assert line.endswith(row["problem"] or "  intact")
    assert "4 of" in text.stderr and len(text.stderr.splitlines()) == 1
    assert not desk.output.exists()


def test_show_a_mosaic(desk: Desk) -> None:
    header = {"INSTRUME": "ACS", "ROOTNAME": "j8ph01aaq", "DETECTOR": "WFC"}
    fits.PrimaryHDU(header=fits.Header(header)).writeto(desk.inputs / "j8ph01aaq_flc.fits")
    (desk.inputs / "acs_8ph_01_input.out").write_text("j8ph01aaq_flc.fits,12345,8PH,1,100.0,F606W,ACS\n")
    result = caldp(desk, "references", "show", "acs_8ph_01", "file:IN")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == "no references are assigned: a mosaic is made of calibrated exposures\n"
    assert show(desk, "acs_8ph_01")[1]["references"] == []


def test_show_what_the_rules_do_not_know_and_what_nobody_reads(hrc_desk: Desk, hrc_data: Hrc) -> None:
    hrc_data.give(hrc_desk.inputs)
    result, found = show(hrc_desk, "j8bt05njq", "caldp-config-onsite", *hrc_data.override)
    assert (result.code, result.stderr) == (0, "")
    assert "SATUFILE" not in fits.getheader(hrc_desk.inputs / "j8bt05njq_raw.fits")
    rows = found["references"]
    assert [row["type"] for row in rows] == [*sorted(row["type"] for row in rows[:-1]), "SATUFILE"]
    assert {(row["state"], row["ok"], row["problem"]) for row in rows[:-1]} == {("intact", True, "")}
    assert found["SATUFILE"]["state"] == "override"
    assert found["BIASFILE"]["path"] == str(hrc_data.references / found["BIASFILE"]["name"])  # exported as jref
    assert "DGEOFILE" not in found
    assert not list(hrc_data.references.glob("*_dxy.fits"))


# --- what programs are told ---------------------------------------------------------------------------------------


def told(desk: Desk) -> dict[str, str]:
    """Return what calcos was told of references."""
    said = (line.partition("calcos: ")[2].partition("=") for line in log(desk).splitlines())
    return {name: value for name, _, value in said if name in "iref jref lref nref oref uref uref_linux".split()}


@pytest.mark.parametrize("layout", ["flat", "instrument"])
def test_programs_are_told_where_references_are(no_calcos: Desk, cos_data: Path, layout: str) -> None:
    desk = no_calcos
    cache = linked_cache(cos_data / "crds_cache", desk.home / "crds")
    own(cache / "config" / "hst" / "ref_cache_subdir_mode").write_text(layout)
    top = cache / "references" / "hst"
    if layout == "instrument":
        (top / "cos").mkdir()
        for path in top.glob("*.fits"):
            path.rename(top / "cos" / path.name)
    env = {"CRDS_PATH": str(cache), "jref": "/data/jref", "oref": "/data/oref//", "nref": "mine", "lref": ""}
    assert desk.process(ACQ, env=env).code == 23
    found = told(desk)
    folder = {"flat": {}, "instrument": {"iref": "wfc3/", "uref": "wfpc2/", "uref_linux": "wfpc2/"}}[layout]
    for name in ("iref", "uref", "uref_linux"):
        assert found[name] == f"{top}/{folder.get(name, '')}"
    assert found["jref"] == "/data/jref/"
    assert found["oref"] == "/data/oref/"
    assert found["nref"] == f"{desk.home}/mine/"
    assert found["lref"].endswith("/references/") and str(desk.home / "caldp-scratch") in found["lref"]
    assert f"given {found['lref']}{FLAT}" in log(desk)
