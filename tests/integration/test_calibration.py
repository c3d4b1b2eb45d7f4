"""The main job: real exposures in, what the README promises out."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from astropy.io import fits

from tests.desk import CONTEXT, SCRIPTS, Desk, Result, assert_tidy

ASSOCIATION = "ldfd01010"
MEMBERS = ("ldfd01vnq", "ldfd01vpq", "ldfd01vrq", "ldfd01vtq")
ACQ = "ldfd01vlq"
TAG = "ldfd01vnq"
LOGS = {
    f"logs/{n}" for n in ("metrics.json", "preview.txt", "preview_metrics.txt", "process.txt", "process_metrics.txt")
}
OURS = {"manifest.json", "report.html"} | LOGS
Give = Callable[..., None]


def checksums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def spectrum_previews(name: str) -> set[str]:
    return {f"previews/{name}.png", f"previews/{name}_thumb.png", f"previews/{name}_prev.fits"}


# --- the association --------------------------------------------------------------------------------------------


def test_association_delivers_what_the_readme_promises(association: Desk) -> None:
    sums = [f"{ASSOCIATION}_x1dsum{n}" for n in ("", "1", "2", "3", "4")]
    expected = {f"{ASSOCIATION}_asn.fits", f"{ASSOCIATION}_jnk.fits", *(f"{s}.fits" for s in sums)}
    for member in MEMBERS:
        suffixes = ("rawtag_a", "spt", "x1d", "corrtag_a", "counts_a", "flt_a", "lampflash")
        expected |= {f"{member}.tra", *(f"{member}_{s}.fits" for s in suffixes)}
    for name in (*sums, *(f"{m}_x1d" for m in MEMBERS)):
        expected |= spectrum_previews(name)
    assert association.tree(ASSOCIATION) == expected | OURS


def test_association_state(association: Desk) -> None:
    assert association.states(ASSOCIATION) == ["datasets-processed"]
    assert (association.output / "messages" / "datasets-processed" / ASSOCIATION).read_bytes() == b""
    status = association.status(ASSOCIATION)
    assert (status["state"], status["attempt"], status["exit_code"]) == ("processed", 1, 0)
    assert [h["state"] for h in status["history"]] == ["processing", "processed"]
    assert_tidy(association.home)


def test_association_inputs_stay_pristine(association: Desk, cos_data: Path) -> None:
    assert checksums(association.inputs) == checksums(cos_data / "inputs")


def test_association_manifest_proves_every_file(association: Desk) -> None:
    folder, manifest = association.folder(ASSOCIATION), association.manifest(ASSOCIATION)
    listed = {e["name"]: e for e in [*manifest["products"], *manifest["previews"]]}
    assert set(listed) == association.tree(ASSOCIATION) - OURS
    for name, entry in listed.items():
        path = folder / name
        assert path.stat().st_size == entry["size"]
        with path.open("rb") as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() == entry["sha256"]
    assert manifest["context"] == CONTEXT
    assert manifest["kind"] == "association"
    assert manifest["versions"]["calcos"] and manifest["versions"]["crds"] and manifest["versions"]["caldp"]
    assert len(manifest["config"]["sha256"]) == 64


def test_association_references_are_the_ones_of_the_context(association: Desk, cos_data: Path) -> None:
    references = {r["type"]: r for r in association.manifest(ASSOCIATION)["references"]}
    assert len(references) == 20
    assert references["LAMPTAB"]["name"] == "24914347l_lamp.fits"
    assert references["SPWCSTAB"]["name"] == "2bj2256kl_spwcs.fits"
    for reference in references.values():
        path = cos_data / "crds_cache" / "references" / "hst" / reference["name"]
        assert hashlib.sha1(path.read_bytes()).hexdigest() == reference["sha1"]  # noqa: S324 - CRDS's own checksum
        assert path.stat().st_size == reference["size"]


def test_association_products_carry_their_provenance(association: Desk) -> None:
    for name in (f"{ASSOCIATION}_x1dsum.fits", "ldfd01vnq_x1d.fits", "ldfd01vnq_rawtag_a.fits"):
        header = fits.getheader(association.folder(ASSOCIATION) / name)
        assert header["CRDS_CTX"] == CONTEXT
        assert header["CALDPVER"] == association.manifest(ASSOCIATION)["versions"]["caldp"]
        assert header["CSYS_VER"] == header["AWSDPVER"] == header["AWSYSVER"] == "UNDEFINED"
        assert header["RANDSEED"] == 1


def test_association_logs_name_time_level_dataset_and_stage(association: Desk) -> None:
    line = re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) +ldfd01010 "
        r"(run|fetch|references|calibrate|previews|publish) .*"
    )
    for name in ("process.txt", "preview.txt"):
        lines = (association.folder(ASSOCIATION) / "logs" / name).read_text().splitlines()
        assert lines
        for text in lines:
            assert line.fullmatch(text), text
    main = (association.folder(ASSOCIATION) / "logs" / "process.txt").read_text().splitlines()
    assert {text.split()[3] for text in main} == {"run", "fetch", "references", "calibrate", "publish"}


def test_association_metrics(association: Desk) -> None:
    metrics = json.loads((association.folder(ASSOCIATION) / "logs" / "metrics.json").read_text())
    stages = {s["name"]: s for s in metrics["stages"]}
    assert list(stages) == ["fetch", "references", "calibrate", "previews", "publish"]
    calcos = stages["calibrate"]["programs"][0]
    assert calcos["program"] == "calcos" and calcos["exit_status"] == 0
    assert 8e8 < calcos["peak_memory_bytes"] < 2e9
    assert calcos["cpu_s"] > 10
    assert calcos["bytes_out"] > 1e9 or calcos["bytes_out"] == 0  # file systems in memory are not counted
    assert calcos["bytes_in"] >= 0
    # Peak memory of the run is the program's own: CALDP itself stays far below it.
    assert metrics["total"]["peak_memory_bytes"] == calcos["peak_memory_bytes"]
    assert stages["fetch"]["peak_memory_bytes"] < 3e8
    assert stages["calibrate"]["bytes_out"] > 1.3e9
    assert "Maximum resident set size" in (association.folder(ASSOCIATION) / "logs/process_metrics.txt").read_text()


def test_association_summary_tells_people_where_it_all_is(association: Desk, association_result: Result) -> None:
    said = association_result.stdout
    assert "processed" in said and CONTEXT in said
    assert str(association.folder(ASSOCIATION)) in said
    assert "report.html" in said


def test_association_report_is_self_contained(association: Desk) -> None:
    page = (association.folder(ASSOCIATION) / "report.html").read_text()
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page)
    assert sources
    assert all(s.startswith(("data:", "#")) for s in sources)
    for word in (CONTEXT, "ldfd01010_x1dsum.fits", "24914347l_lamp.fits", "<svg"):
        assert word in page


def test_the_command_in_the_report_can_be_typed(association: Desk) -> None:
    page = html.unescape((association.folder(ASSOCIATION) / "report.html").read_text())
    command = re.search(r"CRDS_PATH=\S+ caldp-process [^<\n]*", page)
    assert command
    typed = f"cd / && {command[0]} --dry-run --quiet"
    done = subprocess.run(["bash", "-c", typed], env={**association.env, "CALDP_HOME": str(association.home)})
    assert done.returncode == 0


def test_nothing_secret_is_written(association: Desk) -> None:
    for path in (association.folder(ASSOCIATION) / "logs").iterdir():
        assert "PATH=" not in path.read_text()


# --- single exposures -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_of_one_visit(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], cos_data: Path
) -> tuple[Desk, dict[str, Result]]:
    """A TIME-TAG and an ACQ/IMAGE exposure of one visit, calibrated from one directory into one output."""
    desk = Desk(tmp_path_factory.mktemp("visit"), environment)
    shutil.copytree(cos_data / "inputs", desk.inputs, copy_function=shutil.copyfile)
    return desk, {dataset: desk.process(dataset) for dataset in (TAG, ACQ)}


@pytest.mark.slow
def test_time_tag_exposure(two_of_one_visit: tuple[Desk, dict[str, Result]]) -> None:
    desk, results = two_of_one_visit
    assert results[TAG].code == 0, results[TAG].stderr
    suffixes = ("rawtag_a", "spt", "x1d", "corrtag_a", "counts_a", "flt_a", "lampflash")
    products = {f"{TAG}.tra", *(f"{TAG}_{s}.fits" for s in suffixes)}
    assert desk.tree(TAG) == products | spectrum_previews(f"{TAG}_x1d") | OURS


@pytest.mark.slow
def test_acquisition_image(two_of_one_visit: tuple[Desk, dict[str, Result]]) -> None:
    desk, results = two_of_one_visit
    assert results[ACQ].code == 0, results[ACQ].stderr
    products = {f"{ACQ}.tra", *(f"{ACQ}_{s}.fits" for s in ("rawacq", "spt", "flt", "counts"))}
    previews = {f"previews/{ACQ}_{s}{t}.jpg" for s in ("flt", "counts") for t in ("", "_thumb")}
    assert desk.tree(ACQ) == products | previews | OURS


@pytest.mark.slow
def test_d4_datasets_of_one_visit_leave_each_other_alone(
    two_of_one_visit: tuple[Desk, dict[str, Result]], cos_data: Path
) -> None:
    desk, _ = two_of_one_visit
    assert checksums(desk.inputs) == checksums(cos_data / "inputs")
    for dataset in (TAG, ACQ):
        assert {n[:9] for n in desk.tree(dataset) if n.endswith((".fits", ".tra"))} <= {dataset, "previews/"}
        assert desk.states(dataset) == ["datasets-processed"]


@pytest.mark.slow
def test_same_pixels_as_the_association_has(
    two_of_one_visit: tuple[Desk, dict[str, Result]], association: Desk
) -> None:
    """RANDSEED makes runs reproducible: the member's own run gives the very same spectrum."""
    desk, _ = two_of_one_visit
    one = fits.getdata(desk.folder(TAG) / f"{TAG}_x1d.fits")
    two = fits.getdata(association.folder(ASSOCIATION) / f"{TAG}_x1d.fits")
    for column in ("WAVELENGTH", "FLUX", "GROSS", "DQ"):
        assert (one[column] == two[column]).all()


@pytest.mark.slow
@pytest.mark.parametrize("exptype", ["ACQ/PEAKD", "ACQ/PEAKXD"])
def test_acquisition_without_an_image_ends_processed(desk: Desk, give: Give, exptype: str) -> None:
    give("ldfd01vlq*")
    packed = desk.inputs / "ldfd01vlq_rawacq.fits.gz"
    with fits.open(packed) as hdus:
        hdus[0].header["EXPTYPE"] = exptype
        hdus.writeto(desk.inputs / "ldfd01vlq_rawacq.fits")
    packed.unlink()
    result = desk.process(ACQ)
    assert result.code == 0, result.stderr
    assert "nothing was calibrated" in result.stdout and exptype in result.stdout
    assert desk.tree(ACQ) == {f"{ACQ}.tra", f"{ACQ}_rawacq.fits", f"{ACQ}_spt.fits"} | OURS
    assert desk.states(ACQ) == ["datasets-processed"]
    assert "nothing was calibrated" in desk.status(ACQ)["reason"]


# --- how inputs may come ----------------------------------------------------------------------------------------


def test_d22_readme_example_1_everything_in_the_current_directory(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    for path in desk.inputs.iterdir():
        path.rename(desk.home / path.name)
    desk.inputs.rmdir()
    result = desk.run(ACQ)
    assert result.code == 0, result.stderr
    assert (desk.home / "messages" / "datasets-processed" / ACQ).exists()
    assert (desk.home / "data" / "cos" / ACQ / f"{ACQ}_flt.fits").exists()
    assert_tidy(desk.home)


def test_readme_example_2_subdirectories_and_upper_case(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    result = desk.run(ACQ.upper(), "file:IN", f"file:{desk.output}")
    assert result.code == 0, result.stderr
    assert desk.states(ACQ) == ["datasets-processed"]


@pytest.mark.slow
def test_tarball_input(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    with tarfile.open(desk.home / "packed", "w:gz") as archive:
        for path in desk.inputs.iterdir():
            archive.add(path, f"some/folder/{path.name}")
            path.unlink()
    (desk.home / "packed").rename(desk.inputs / f"{ACQ}.tar.gz")
    result = desk.process(ACQ)
    assert result.code == 0, result.stderr
    assert f"{ACQ}_flt.fits" in desk.tree(ACQ)


def test_d19_paths_with_colons_and_blanks(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    strange = desk.home / "a: b's dir"
    desk.inputs.rename(strange)
    result = desk.run(ACQ, f"file:{strange.name}", "file:x:y")
    assert result.code == 0, result.stderr
    assert (desk.home / "x:y" / "data" / "cos" / ACQ / "manifest.json").exists()


# --- doing it again ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_existing(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    assert desk.process(ACQ).code == 0
    first, tree = desk.manifest(ACQ), desk.tree(ACQ)
    mine = desk.folder(ACQ) / "my_notes.txt"
    mine.write_text("keep me")

    skipped = desk.process(ACQ, "--existing", "skip")
    assert skipped.code == 0 and "skipped" in skipped.stdout
    refused = desk.process(ACQ, "--existing", "error")
    assert refused.code == 36 and "already processed" in refused.stderr
    assert desk.manifest(ACQ) == first and desk.status(ACQ)["attempt"] == 1

    again = desk.process(ACQ)
    assert again.code == 0
    assert desk.status(ACQ)["attempt"] == 2 and desk.manifest(ACQ)["attempt"] == 2
    assert desk.tree(ACQ) == tree | {"my_notes.txt"}
    assert mine.read_text() == "keep me"

    (desk.folder(ACQ) / f"{ACQ}_flt.fits").write_bytes(b"damaged")
    mended = desk.process(ACQ, "--existing", "skip")
    assert mended.code == 0 and "skipped" not in mended.stdout
    assert desk.status(ACQ)["attempt"] == 3
    assert_tidy(desk.home)


@pytest.mark.slow
def test_a_failed_rerun_keeps_the_products_and_says_error(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    assert desk.process(ACQ).code == 0
    first = desk.manifest(ACQ)
    failed = desk.process(ACQ, "--context", "hst_9999.pmap")
    assert failed.code == 27
    assert desk.status(ACQ)["state"] == "error" and desk.status(ACQ)["attempt"] == 2
    assert desk.states(ACQ) == ["dataset-error"]
    assert desk.manifest(ACQ) == first
    assert desk.process(ACQ, "--existing", "error").code == 36
    assert desk.manifest(ACQ) == first and desk.status(ACQ)["attempt"] == 2
    assert desk.process(ACQ, "--existing", "skip").code == 0
    assert desk.status(ACQ)["attempt"] == 3 and desk.states(ACQ) == ["datasets-processed"]


@pytest.mark.slow
def test_a_run_killed_between_publishing_and_saying_so_is_put_right(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    assert desk.process(ACQ).code == 0
    status = desk.output / "messages" / "status" / f"{ACQ}.json"
    record = json.loads(status.read_text())
    record |= {"state": "processing", "rank": 30, "exit_code": None}
    status.write_text(json.dumps(record))
    (desk.output / "messages" / "datasets-processed" / ACQ).rename(desk.output / "messages" / "moved")
    assert desk.process(ACQ, "--existing", "skip").code == 0
    assert (desk.status(ACQ)["state"], desk.status(ACQ)["attempt"]) == ("processed", 1)
    assert desk.states(ACQ) == ["datasets-processed"]


# --- options ----------------------------------------------------------------------------------------------------


def test_dry_run_says_and_writes_nothing(desk: Desk, give: Give) -> None:
    give("*")
    result = desk.process(ASSOCIATION, "--dry-run", "--json")
    assert result.code == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["state"] == "planned" and last["context"] == CONTEXT
    plan = last["plan"]
    assert {Path(i["source"]).name for i in plan["inputs"]} == {
        f"{ASSOCIATION}_asn.fits.gz",
        *(f"{m}_{s}.fits.gz" for m in MEMBERS for s in ("rawtag_a", "spt")),
    }
    assert [p[0] for p in plan["programs"]] == ["calcos"] and plan["programs"][0][-1] == f"{ASSOCIATION}_asn.fits"
    assert f"{ASSOCIATION}_x1dsum4.fits" in plan["products"]
    assert len(plan["references"]) == 20
    assert [p.name for p in desk.home.iterdir()] == ["IN"]


def test_json_lines(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    result = desk.process(ACQ, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1]["event"] == "finished" and events[-1]["exit_code"] == 0
    assert result.stderr == ""


@pytest.mark.slow
def test_quiet(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    result = desk.process(ACQ, "--quiet")
    assert (result.code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
def test_override(desk: Desk, give: Give, cos_data: Path) -> None:
    give("ldfd01vlq*")
    mine = desk.home / "my_flat.fits"
    shutil.copy(cos_data / "crds_cache/references/hst/x5v1944hl_flat.fits", mine)
    result = desk.process(ACQ, "--override", f"flatfile={mine}")
    assert result.code == 0, result.stderr
    flat = next(r for r in desk.manifest(ACQ)["references"] if r["type"] == "FLATFILE")
    assert (flat["name"], flat["override"]) == ("my_flat.fits", True)
    assert fits.getheader(desk.folder(ACQ) / f"{ACQ}_flt.fits")["FLATFILE"] == "lref$my_flat.fits"
    assert desk.process(ACQ, "--override", f"NOSUCH={mine}").code == 27


@pytest.mark.slow
def test_keep_scratch(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    result = desk.process(ACQ, "--keep-scratch", env={"CALDP_HOME": str(desk.home / "elsewhere")})
    assert result.code == 0, result.stderr
    (kept,) = (desk.home / "elsewhere" / "caldp-scratch" / ACQ).iterdir()
    assert (kept / "products" / f"{ACQ}_flt.fits").exists()
    assert desk.process(ACQ, env={"CALDP_HOME": str(desk.home / "elsewhere")}).code == 0
    assert kept.exists()


@pytest.mark.slow
def test_config_precedence(desk: Desk, give: Give) -> None:
    """The environment gives way to a custom script, and that to the command line."""
    give("ldfd01vlq*")
    custom = desk.home / "my-config"
    custom.write_text("export CRDS_CONTEXT=hst_0613.pmap CRDS_OBSERVATORY=hst CSYS_VER=mine-1\n")
    assert desk.process(ACQ, "./my-config").code == 0
    assert desk.manifest(ACQ)["context"] == "hst_0613.pmap"
    assert fits.getheader(desk.folder(ACQ) / f"{ACQ}_flt.fits")["CSYS_VER"] == "mine-1"
    assert desk.process(ACQ, str(custom), "--context", CONTEXT).code == 0
    assert desk.manifest(ACQ)["context"] == CONTEXT


def test_known_bad_reference_can_be_allowed(desk: Desk, give: Give) -> None:
    give("ldfd01vnq*")
    result = desk.process(TAG, "--context", "hst_0613.pmap", "--dry-run", env={"CRDS_ALLOW_BAD_REFERENCES": "1"})
    assert result.code == 0, result.stderr
    assert "23e16470l_gsag.fits" in result.stdout


@pytest.mark.slow
def test_secrets_reach_no_file(desk: Desk, give: Give) -> None:
    give("ldfd01vlq*")
    secret = "s3cr3t-t0ken-value"  # noqa: S105 - a made-up one
    (desk.home / "cfg").write_text(f'echo "{secret}"\nexport CRDS_OBSERVATORY=hst\n')
    result = desk.process(ACQ, "./cfg", env={"MAST_API_TOKEN": secret})
    assert result.code == 0
    assert secret not in result.stdout + result.stderr
    for path in desk.output.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes()


# --- the demo ---------------------------------------------------------------------------------------------------


def simulate_process_compare(desk: Desk, exposures: int, dataset: str, product: str) -> str:
    """Do what `make demo` does, and return what it says of the comparison."""

    def caldp(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPTS / "caldp", *args], cwd=desk.home, env=desk.env, capture_output=True, text=True)

    made = caldp("simulate", "demo", "--exposures", str(exposures))
    assert made.returncode == 0 and f"caldp-process {dataset}" in made.stdout, made.stderr
    result = desk.run(dataset, "file:demo/inputs", "file:OUT", "demo/caldp-config-simulated")
    assert result.code == 0, result.stderr
    truth = f"demo/truth/{dataset}_spectrum.ecsv"
    done = caldp("compare", str(desk.folder(dataset) / product), truth)
    assert done.returncode == 0 and "injected spectrum recovered" in done.stdout, done.stdout
    return done.stdout


@pytest.mark.slow
def test_demo_recovers_the_injected_spectrum(desk: Desk, tell: Callable[[str], None]) -> None:
    said = simulate_process_compare(desk, 1, "lsim01sxq", "lsim01sxq_x1d.fits")
    tell(" ".join(["lsim01sxq_x1d against what was injected:", *said.splitlines()[-2].split()]))
    wrong = desk.home / "demo" / "wrong.ecsv"
    text = (desk.home / "demo/truth/lsim01sxq_spectrum.ecsv").read_text()
    wrong.write_text(re.sub(r"(?m)^(\d+\.?\d*) ", lambda m: f"{float(m[1]) + 3} ", text))
    x1d = desk.folder("lsim01sxq") / "lsim01sxq_x1d.fits"
    done = subprocess.run([SCRIPTS / "caldp", "compare", x1d, wrong], env=desk.env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout


@pytest.mark.slow
def test_simulated_association_recovers_the_injected_spectrum(desk: Desk) -> None:
    simulate_process_compare(desk, 2, "lsim01010", "lsim01010_x1dsum.fits")
    expected = {"lsim01010_asn.fits", "lsim01010_jnk.fits", "lsim01010_x1dsum.fits"}
    assert expected <= desk.tree("lsim01010")


# --- the other commands -----------------------------------------------------------------------------------------


def test_doors(desk: Desk) -> None:
    for command in (["caldp-process"], ["caldp", "process"], ["python", "-m", "caldp.process"]):
        done = subprocess.run(
            [SCRIPTS / command[0], *command[1:], "--help"], capture_output=True, text=True, env=desk.env
        )
        assert done.returncode == 0 and "IPPPSSOOT" in done.stdout and "35  another live run" in done.stdout


def test_doctor(desk: Desk, cos_data: Path) -> None:
    done = subprocess.run([SCRIPTS / "caldp", "doctor"], capture_output=True, text=True, env=desk.env, cwd=desk.home)
    assert done.returncode == 0, done.stdout
    assert re.search(r"ok +program calcos", done.stdout) and str(cos_data / "crds_cache") in done.stdout
    bad = {**desk.env, "CRDS_PATH": str(desk.home / "none"), "CRDS_CONTEXT": "hst_9999.pmap"}
    done = subprocess.run(
        [SCRIPTS / "caldp", "doctor", "--json"], capture_output=True, text=True, env=bad, cwd=desk.home
    )
    assert done.returncode == 1
    failed = {f["what"]: f for f in json.loads(done.stdout) if not f["ok"]}
    assert {"CRDS cache", "CRDS rules", "CRDS context"} <= set(failed)
    assert all(f["remedy"] for f in failed.values())
