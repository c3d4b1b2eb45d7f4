"""Assign: the real crds package chooses from a simulated cache; every file is proved."""

from __future__ import annotations

import gzip
import hashlib
import pprint
import shutil
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits
from crds.client import proxy

from caldp import crds_cache, crds_server, references
from caldp.crds_cache import CrdsCache, Reference, metadata
from caldp.crds_server import CrdsServer
from caldp.crds_store import CrdsStore
from caldp.errors import ProgramMemoryError, ReferencesError
from caldp.inputs import Inputs, fetch
from caldp.programs import ProgramRun
from caldp.references import References, assign
from caldp.run import Run
from caldp.simulate import Simulation
from tests.conftest import RunFactory
from tests.fakes.cos import truncate
from tests.fakes.reporter import FakeReporter

FLUX = "sim00001l_phot.fits"

Start = Callable[..., tuple[Run, Inputs]]


@pytest.fixture
def start(make_run: RunFactory, simulation: Simulation, crds_cache: Path, tmp_path: Path) -> Start:
    """Fetch a (shortened) simulated exposure into a run that has a cache of its own."""
    folder = tmp_path / "raw"
    folder.mkdir()
    raw = simulation.inputs / f"{simulation.dataset}_rawtag_a.fits"
    with fits.open(raw) as hdus:
        hdus[1].data = hdus[1].data[:10]
        hdus.writeto(folder / raw.name)

    def start(settings: dict[str, object] | None = None, **environ: str) -> tuple[Run, Inputs]:
        run = make_run(simulation.dataset, settings=settings, CRDS_PATH=str(crds_cache), **environ)
        return run, fetch(run, f"file:{folder}")

    return start


def change(cache: Path, **fields: Any) -> None:
    """Change what the cache knows of the CRDS server."""
    path = cache / "config" / "hst" / "server_config"
    path.write_text(pprint.pformat(literal_eval(path.read_text()) | fields))


def known(cache: Path) -> dict[str, dict[str, str]]:
    """Size and checksum of every reference."""
    files = sorted((cache / "references").rglob("*.fits"))
    return {
        p.name: {"size": str(p.stat().st_size), "sha1sum": hashlib.sha1(p.read_bytes()).hexdigest()}  # noqa: S324
        for p in files
    }


def by_type(answer: References) -> dict[str, str]:
    return {f.type: f.name for f in answer.files}


def refused(run: Run, inputs: Inputs, *words: str) -> None:
    with pytest.raises(ReferencesError) as caught:
        assign(run, inputs)
    assert caught.value.exit_code == 27
    for word in (run.dataset.name, *words):
        assert word in str(caught.value)
    assert caught.value.remedy


# ---- with the real crds


def test_best_references_are_chosen_linked_and_recorded(start: Start, crds_cache: Path) -> None:
    change(crds_cache, download_metadata=proxy.crds_encode(known(crds_cache)))
    run, inputs = start()
    before = {p: p.read_bytes() for p in crds_cache.rglob("*") if p.is_file()}
    answer = assign(run, inputs)
    assert answer.context == "hst_0001.pmap"
    assert answer.crds_version
    chosen = by_type(answer)
    assert chosen["FLUXTAB"] == FLUX
    assert len(chosen) == len(answer.files) >= 15
    assert [(f.type, f.name) for f in answer.files] == sorted((f.type, f.name) for f in answer.files)
    header = fits.getheader(inputs.directory / inputs.raw[0].name)
    assert {k: header[k] for k in chosen} == {k: f"lref${name}" for k, name in chosen.items()}
    assert header["CRDS_CTX"] == "hst_0001.pmap"
    assert {p.name for p in run.workspace.references.iterdir()} == set(chosen.values())
    metadata = known(crds_cache)
    for file in answer.files:
        assert (str(file.size), file.sha1) == tuple(metadata[file.name].values())
        assert (run.workspace.references / file.name).resolve() == Path(file.path).resolve()
        assert not file.override
    assert {p: p.read_bytes() for p in crds_cache.rglob("*") if p.is_file()} == before
    assert [s.name for s in run.telemetry.stages] == ["fetch", "references"]


def test_d11_a_missing_reference(start: Start, crds_cache: Path) -> None:
    next(crds_cache.rglob(FLUX)).unlink()
    refused(*start(), "FLUXTAB", FLUX)


def test_overrides_replace_and_are_recorded(start: Start, crds_cache: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copy(next(crds_cache.rglob(FLUX)), tmp_path / "mine_phot.fits"))
    next(crds_cache.rglob(FLUX)).unlink()  # not needed any more
    run, inputs = start({"overrides": (("FLUXTAB", mine),)})
    answer = assign(run, inputs)
    (override,) = [f for f in answer.files if f.override]
    assert (override.type, override.name, override.path) == ("FLUXTAB", mine.name, str(mine))
    assert [f.name for f in answer.files if f.type == "FLUXTAB"] == [mine.name]
    assert fits.getval(inputs.directory / inputs.raw[0].name, "FLUXTAB") == "lref$mine_phot.fits"
    assert (run.workspace.references / mine.name).read_bytes() == mine.read_bytes()
    assert any("FLUXTAB" in text for text in run.telemetry.warnings)


@pytest.mark.parametrize("kind", ["NOSUCH", "TARGNAME"])
def test_an_override_of_what_is_no_reference(start: Start, tmp_path: Path, kind: str) -> None:
    with pytest.raises(ReferencesError, match=f"--override {kind}"):
        references._override(*start({"overrides": ((kind, tmp_path / "x.fits"),)}))


def test_an_override_that_is_not_fits(start: Start, tmp_path: Path) -> None:
    (tmp_path / "x.fits").write_bytes(b"garbage")
    refused(*start({"overrides": (("FLUXTAB", tmp_path / "x.fits"),)}), "x.fits", "not whole FITS")


@pytest.mark.parametrize("allowed", [False, True])
def test_d11_a_reference_known_to_be_bad(start: Start, crds_cache: Path, allowed: bool) -> None:
    change(crds_cache, bad_files_list=[FLUX], bad_files=FLUX)
    run, inputs = start({"allow_bad_references": allowed})
    if not allowed:
        refused(run, inputs, FLUX, "bad", "CRDS_ALLOW_BAD_REFERENCES=1")
    else:
        assert by_type(assign(run, inputs))["FLUXTAB"] == FLUX
        assert any(FLUX in text for text in run.telemetry.warnings)


def test_the_context_asked_for_is_the_one_used(start: Start, crds_cache: Path) -> None:
    mappings = crds_cache / "mappings" / "hst"
    text = (mappings / "hst_0001.pmap").read_text().replace("hst_0001.pmap", "hst_0002.pmap")
    (mappings / "hst_0002.pmap").write_text(text)
    change(crds_cache, operational_context="hst_0001.pmap")
    run, inputs = start({"crds_context": "hst_0002.pmap"}, CRDS_IGNORE_MAPPING_CHECKSUM="1")
    assert assign(run, inputs).context == "hst_0002.pmap"
    assert references.contexts(run.config) == ["hst_0001.pmap", "hst_0002.pmap"]


def test_a_survey_says_what_is_wrong_with_each(start: Start, crds_cache: Path, tmp_path: Path) -> None:
    change(crds_cache, bad_files_list=["sim00001l_disp.fits"], bad_files="")
    mine = Path(shutil.copy(next(crds_cache.rglob("sim00001l_1dx.fits")), tmp_path / "mine_1dx.fits"))
    next(crds_cache.rglob(FLUX)).unlink()
    truncate(next(crds_cache.rglob("sim00001l_lamp.fits")), 0.9)
    run, inputs = start({"overrides": (("XTRACTAB", mine),)})
    answer = references.survey(run, inputs)
    found = {one.type: one for one in answer.checked}
    assert not answer.ok
    assert sorted(kind for kind, one in found.items() if one.problem) == ["DISPTAB", "FLUXTAB", "LAMPTAB"]
    assert {one.state for one in answer.checked} == {"intact", "override", "unusable"}
    assert found["DISPTAB"].problem == "CRDS knows it to be bad"
    assert found["FLUXTAB"].problem == f"missing: not in {crds_cache}/references/hst/"
    assert "is not whole FITS" in found["LAMPTAB"].problem
    assert found["XTRACTAB"].to_json() == {
        "type": "XTRACTAB",
        "name": "mine_1dx.fits",
        "state": "override",
        "ok": True,
        "problem": "",
        "size": mine.stat().st_size,
        "sha1": hashlib.sha1(mine.read_bytes()).hexdigest(),  # noqa: S324
        "path": str(mine),
        "override": True,
    }
    assert set(found["FLUXTAB"].to_json()) == set(found["XTRACTAB"].to_json())


# ---- what needs no crds


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("hst_9999.pmap", ["hst_9999.pmap", "the newest there is hst_0001.pmap", "--context"]),
        ("hst_1.pmap", ["'hst_1.pmap'", "not a CRDS context"]),
        ("2020-01-01", ["'2020-01-01'"]),
        ("--help", ["'--help'"]),
        ("hst_0001.pmap\n", ["not a CRDS context"]),
    ],
)
def test_contexts_that_are_not_there(start: Start, context: str, words: list[str]) -> None:
    refused(*start({"crds_context": context}), *words)


@pytest.mark.parametrize(
    ("context", "fields", "used"),
    [
        ("", {}, "hst_0001.pmap"),
        ("hst-operational", {}, "hst_0001.pmap"),
        ("hst-edit", {}, "hst_0001.pmap"),
        ("hst-latest", {"latest_context": "hst_0001.pmap"}, "hst_0001.pmap"),
        ("hst-latest", {"operational_context": "hst_0001.pmap"}, "hst_0001.pmap"),
        ("hst-operational", {"operational_context": "", "latest_context": "hst_0001.pmap"}, "hst_0001.pmap"),
        ("hst-operational", {"operational_context": "hst_0002.pmap"}, "unknown CRDS context hst-operational (hst_0002"),
        ("hst-edit", {"edit_context": ""}, "unknown CRDS context hst-edit: "),
    ],
)
def test_contexts_by_what_they_are_for(start: Start, context: str, fields: dict[str, str], used: str) -> None:
    run, _ = start({"crds_context": context})
    server = {"operational_context": "hst_0001.pmap", "edit_context": "hst_0001.pmap"} | fields
    if used.endswith(".pmap"):
        assert crds_cache.context(run, server) == used
    else:
        with pytest.raises(ReferencesError) as caught:
            crds_cache.context(run, server)
        assert used in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"crds_readonly": True}, CrdsCache),
        ({"crds_readonly": True, "crds_server_url": "https://crds", "crds_store": "file:/crds"}, CrdsCache),
        ({"crds_readonly": False}, CrdsCache),
        ({"crds_readonly": False, "crds_server_url": "https://crds"}, CrdsServer),
        ({"crds_readonly": False, "crds_server_url": "https://crds", "crds_store": "file:/crds"}, CrdsServer),
        ({"crds_readonly": False, "crds_store": "file:/crds"}, CrdsStore),
        ({"crds_readonly": False, "crds_server_url": "", "crds_store": "file:/crds"}, CrdsStore),
    ],
)
def test_the_ways_to_references(make_run: RunFactory, settings: dict[str, object], kind: type[CrdsCache]) -> None:
    assert type(references.way(make_run(settings=settings).config)) is kind


@pytest.mark.parametrize("text", [None, "", "{"])
def test_what_is_known_of_a_server_may_be_missing_where_it_can_be_asked(
    start: Start, crds_cache: Path, text: str | None
) -> None:
    run, _ = start({"crds_server_url": "https://crds", "crds_readonly": False})
    path = crds_cache / "config" / "hst" / "server_config"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert crds_server._remembered(run) == {}


def test_what_another_run_is_just_replacing_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(crds_cache, "sha1", gone)
    files, (wanting,) = CrdsCache().look(run, [("FLUXTAB", FLUX)])
    assert (files, wanting.path, wanting.replaceable) == ([], None, True)
    assert "being replaced" in wanting.error.message


@pytest.mark.parametrize(
    ("known", "same"),
    [
        ({"size": "5", "sha1sum": "abc"}, True),
        ({"size": "5", "sha1sum": "none"}, True),
        ({"size": "5", "sha1sum": ""}, True),
        ({"size": "6", "sha1sum": "none"}, False),
        ({"size": "5", "sha1sum": "abd"}, False),
    ],
)
def test_some_files_have_no_checksum(known: dict[str, str], same: bool) -> None:
    assert crds_cache.agrees(known, 5, "abc") is same


def test_crds_is_given_little_time_unless_more_is_exported(make_run: RunFactory) -> None:
    plain = crds_cache.environment(make_run().config)
    assert int(plain["CRDS_CLIENT_TIMEOUT_SECONDS"]) * int(plain["CRDS_CLIENT_RETRY_COUNT"]) <= 60
    patient = crds_cache.environment(make_run(CRDS_CLIENT_TIMEOUT_SECONDS="600").config)
    assert patient == plain | {"CRDS_CLIENT_TIMEOUT_SECONDS": "600"}


def test_references_as_text() -> None:
    def row(kind: str, state: str, size: int | None, problem: str = "") -> dict[str, Any]:
        return {"type": kind, "name": "x.fits", "state": state, "size": size, "problem": problem}

    rows = [row("A", "intact", 1000), row("BB", "override", 5), row("C", "download", 2_000_000),
            row("D", "download", None), row("E", "unusable", None, "gone")]  # fmt: skip
    text = references.as_text({"context": "hst_0001.pmap", "cache": "/c", "references": rows})
    assert text.splitlines() == [
        "5 references of hst_0001.pmap, cache /c; 2 would be downloaded, 2.0 MB",
        "TYPE  FILE        BYTES  STATE",
        "A     x.fits      1,000  intact",
        "BB    x.fits          5  your own",
        "C     x.fits  2,000,000  not in the cache: would be downloaded",
        "D     x.fits          -  not in the cache: would be downloaded",
        "E     x.fits          -  gone",
    ]


def test_no_cache(start: Start, crds_cache: Path) -> None:
    run, inputs = start()
    shutil.rmtree(crds_cache)
    refused(run, inputs, str(crds_cache), "CRDS_PATH")


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "import os", "{'a': open('x')}"])
def test_an_unreadable_server_config(start: Start, crds_cache: Path, text: str) -> None:
    (crds_cache / "config" / "hst" / "server_config").write_text(text)
    refused(*start(), "server_config")


def verify(run: Run, name: str = FLUX, server: dict[str, Any] | None = None) -> Reference:
    cache = CrdsCache()
    cache.known = server or {}
    return cache.verify(run, "FLUXTAB", name, crds_cache.find(run, "FLUXTAB", name))


@pytest.fixture
def run(make_run: RunFactory, crds_cache: Path) -> Run:
    return make_run("lsim01sxq", CRDS_PATH=str(crds_cache))


def test_a_verified_reference(run: Run, crds_cache: Path) -> None:
    server = {"download_metadata": proxy.crds_encode(known(crds_cache))}
    file = verify(run, server=server)
    assert file.to_json() == {
        "type": "FLUXTAB",
        "name": FLUX,
        "size": int(known(crds_cache)[FLUX]["size"]),
        "sha1": known(crds_cache)[FLUX]["sha1sum"],
        "override": False,
    }


@pytest.mark.parametrize("encode", [proxy.crds_encode, dict])
def test_d29_a_flipped_bit_in_a_reference(run: Run, crds_cache: Path, encode: Callable[[Any], Any]) -> None:
    server = {"download_metadata": encode(known(crds_cache))}
    path = next(crds_cache.rglob(FLUX))
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReferencesError, match="is damaged") as caught:
        verify(run, server=server)
    assert known(crds_cache)[FLUX]["sha1sum"] in str(caught.value)


def test_d29_a_truncated_reference_that_crds_knows_nothing_of(run: Run, crds_cache: Path) -> None:
    truncate(next(crds_cache.rglob(FLUX)), 0.9)
    with pytest.raises(ReferencesError, match="not whole FITS"):
        verify(run)


def test_a_compressed_reference_under_a_fits_name(run: Run, crds_cache: Path) -> None:
    path = next(crds_cache.rglob(FLUX))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert verify(run).size == path.stat().st_size


@pytest.mark.parametrize("name", ["", ".", "..", "../x.fits", "/etc/passwd", "a/b.fits"])
def test_a_name_that_leaves_the_cache(run: Run, name: str) -> None:
    with pytest.raises(ReferencesError, match="FLUXTAB"):
        verify(run, name)


def test_both_layouts_of_a_cache_and_the_exported_variable(
    make_run: RunFactory, crds_cache: Path, tmp_path: Path
) -> None:
    flat = next(crds_cache.rglob(FLUX))
    run = make_run("lsim01sxq", CRDS_PATH=str(crds_cache))
    assert verify(run).path == str(flat)
    (crds_cache / "references" / "hst" / "cos").mkdir()
    nested = Path(shutil.copy(flat, crds_cache / "references" / "hst" / "cos"))
    assert verify(run).path == str(nested)
    exported = Path(shutil.copy(flat, tmp_path))
    assert verify(make_run("lsim01sxq", CRDS_PATH=str(crds_cache), lref=f"{tmp_path}/")).path == str(exported)


def test_metadata() -> None:
    table = {"x.fits": {"size": "5", "sha1sum": "abc"}}
    server: dict[str, Any] = {"download_metadata": proxy.crds_encode(table)}
    assert metadata(server) == table
    assert metadata(server) == table  # decoded once
    assert metadata({"download_metadata": table}) == table
    assert metadata({}) == {}


@pytest.mark.parametrize("encoded", [{"crds_payload": "!"}, {"crds_payload": "bm90IGd6aXA="}, [1], "text"])
def test_damaged_metadata(encoded: object, run: Run) -> None:
    with pytest.raises(ReferencesError, match="server_config"):
        verify(run, server={"download_metadata": encoded})


@pytest.mark.parametrize(
    ("url", "offline"),
    [
        ("", True),
        ("https://hst-serverless-mode.stsci.edu", True),
        ("https://server-less.example.org", True),
        ("https://hst-crds.stsci.edu", False),
    ],
)
def test_serverless(make_run: RunFactory, url: str, offline: bool) -> None:
    assert references.serverless(make_run(settings={"crds_server_url": url}).config) is offline


@pytest.mark.parametrize(
    ("tail", "kills"), [(("CRDS - INFO - No comparison context",), 1), (("Traceback", "MemoryError"), 0)]
)
def test_crds_without_memory(make_run: RunFactory, tail: tuple[str, ...], kills: int) -> None:
    done = ProgramRun(("python", "-m", "crds.bestrefs"), -9 if kills else 1, 1.0, 1.0, 80_000_000, 0, 0, tail, kills)
    with pytest.raises(ProgramMemoryError, match="ldfd01vnq: crds.bestrefs ran out of memory"):
        crds_cache.judge(make_run(), {}, done)


def test_crds_says_why_it_cannot_choose(start: Start, crds_cache: Path) -> None:
    rules = crds_cache / "mappings" / "hst" / "hst_cos_0001.imap"
    rules.write_text("this is no mapping")
    run, inputs = start()
    refused(run, inputs, "CRDS could not choose")
    assert isinstance(run.telemetry.reporter, FakeReporter)
    assert "crds.bestrefs" in (run.workspace.logs / "process.txt").read_text()
    assert list(run.workspace.references.iterdir()) == []
