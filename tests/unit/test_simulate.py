"""The simulator by itself: layout, determinism, rules, arguments, and the comparison with the truth."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from caldp.simulate import Comparison, Simulation, compare, simulate
from caldp.simulate import instrument as ins
from caldp.simulate.rules import RULES, sha1_of_mapping
from caldp.simulate.spectrum import flux

SHORT = 60.0


def _digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _literal(text: str, name: str) -> dict[str, object]:
    """Value of a dictionary assigned at top level of a mapping."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            value: dict[str, object] = ast.literal_eval(node.value)
            return value
    raise AssertionError(f"no {name}")


def _write_x1d(path: Path, wave: np.ndarray, measured: np.ndarray) -> Path:
    n = wave.size
    columns = [
        fits.Column("WAVELENGTH", f"{n}D", array=wave[np.newaxis]),
        fits.Column("FLUX", f"{n}E", array=measured[np.newaxis]),
        fits.Column("GCOUNTS", f"{n}E", array=np.full((1, n), 100.0)),
        fits.Column("DQ_WGT", f"{n}E", array=np.ones((1, n))),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    return simulate(tmp_path_factory.mktemp("single"), exposure_time=SHORT)


@pytest.fixture(scope="module")
def association(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    return simulate(tmp_path_factory.mktemp("association"), exposures=2, exposure_time=SHORT)


def test_import_is_light() -> None:
    code = "import sys, caldp.simulate; print('numpy' in sys.modules, 'astropy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_layout_of_a_single_exposure(single: Simulation) -> None:
    assert single.dataset == "lsim01sxq"
    assert single.members == ("lsim01sxq",)
    assert sorted(path.name for path in single.inputs.iterdir()) == [
        "lsim01sxq_rawtag_a.fits",
        "lsim01sxq_spt.fits",
    ]
    assert single.truth == single.directory / "truth" / "lsim01sxq_spectrum.ecsv"
    assert (single.crds_path / "config" / "hst" / "ref_cache_subdir_mode").read_text().strip() == "flat"
    config = ast.literal_eval((single.crds_path / "config" / "hst" / "server_config").read_text())
    assert config["operational_context"] == single.context
    assert not [path for path in single.directory.rglob("*.part")]


def test_config_script_exports_the_cache(single: Simulation) -> None:
    names = ("PATH", "CONTEXT", "OBSERVATORY", "SERVER_URL", "READONLY_CACHE")
    script = f'. "$0"; printf "%s\\n" {" ".join(f"$CRDS_{name}" for name in names)}'
    done = subprocess.run(
        ["/bin/bash", "-c", script, str(single.config)], capture_output=True, text=True, check=True, env={}
    )
    assert done.stdout.splitlines() == [
        str(single.crds_path),
        "hst_0001.pmap",
        "hst",
        "https://hst-serverless-mode.stsci.edu",
        "1",
    ]


def test_config_script_survives_a_blank_in_the_path(tmp_path: Path) -> None:
    from caldp.simulate.rules import write_config_script

    script = tmp_path / "config"
    write_config_script(script, tmp_path / "a b" / "crds_cache")
    assert f"export CRDS_PATH='{tmp_path}/a b/crds_cache'" in script.read_text().splitlines()


def test_raw_events(single: Simulation) -> None:
    with fits.open(single.inputs / "lsim01sxq_rawtag_a.fits") as hdus:
        primary, events = hdus[0].header, hdus["EVENTS"].data
        assert (primary["ROOTNAME"], primary["TARGNAME"]) == ("lsim01sxq", "SIMULATED")
        assert primary["PROPOSID"] == 0
        assert hdus["EVENTS"].header["NEVENTS"] == len(events)
        time = np.asarray(events["TIME"])
        assert (np.diff(time) >= 0).all()
        assert time[0] >= 0
        assert time[-1] <= SHORT
        pulse_height = np.asarray(events["PHA"])
        assert pulse_height.min() == 0
        assert pulse_height.max() == 31
        for x, y in ins.STIMS:
            near = (np.abs(events["RAWX"] - x) < 30) & (np.abs(events["RAWY"] - y) < 10)
            assert near.sum() == pytest.approx(SHORT * ins.STIM_RATE / 2, rel=0.1)


def test_association(association: Simulation) -> None:
    assert association.dataset == "lsim01010"
    assert association.members == ("lsim01s1q", "lsim01s2q")
    table = fits.getdata(association.inputs / "lsim01010_asn.fits")
    assert list(table["MEMNAME"]) == ["LSIM01S1Q", "LSIM01S2Q", "LSIM01010"]
    assert list(table["MEMTYPE"]) == ["EXP-FP", "EXP-FP", "PROD-FP"]
    assert table["MEMPRSNT"].all()
    raws = [association.inputs / f"{member}_rawtag_a.fits" for member in association.members]
    headers = [fits.getheader(raw) for raw in raws]
    assert [header["FPPOS"] for header in headers] == [1, 2]
    assert {header["ASN_TAB"] for header in headers} == {"lsim01010_asn.fits"}
    starts = [fits.getval(raw, "EXPSTART", 1) for raw in raws]
    assert (starts[1] - starts[0]) * 86400.0 > SHORT


def test_same_arguments_same_bytes(single: Simulation, tmp_path: Path) -> None:
    before = _digests(single.directory)
    simulate(single.directory, exposure_time=SHORT)
    assert _digests(single.directory) == before
    simulate(tmp_path, exposure_time=SHORT)
    elsewhere = _digests(tmp_path)
    # The configuration names the directory.
    assert elsewhere.pop("caldp-config-simulated") != before.pop("caldp-config-simulated")
    assert elsewhere == before


def test_seed_changes_the_events_only(single: Simulation, tmp_path: Path) -> None:
    other = simulate(tmp_path, seed=2, exposure_time=SHORT)
    before, after = _digests(single.directory), _digests(other.directory)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "inputs/lsim01sxq_rawtag_a.fits",
        "truth/lsim01sxq_spectrum.ecsv",
        "caldp-config-simulated",
    }


def test_mappings_state_their_checksum_and_select_existing_references(single: Simulation) -> None:
    mappings = single.crds_path / "mappings" / "hst"
    references = {path.name for path in (single.crds_path / "references" / "hst").iterdir()}
    texts = {path.name: path.read_text() for path in mappings.iterdir()}
    for name, text in texts.items():
        header = _literal(text, "header")
        assert header["name"] == name
        assert header["sha1sum"] == sha1_of_mapping(text)
    assert _literal(texts[single.context], "selector") == {"COS": "hst_cos_0001.imap"}
    selected = _literal(texts["hst_cos_0001.imap"], "selector")
    assert {v for v in selected.values() if v != "N/A"} == {rule.mapping for rule in RULES}
    assert references == {rule.reference for rule in RULES}
    for rule in RULES:
        assert f"'{rule.reference}'" in texts[rule.mapping]


def test_crds_loads_the_context(single: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    from crds.core import rmap

    monkeypatch.setenv("CRDS_PATH", str(single.crds_path))
    monkeypatch.setenv("CRDS_OBSERVATORY", "hst")
    text = (single.crds_path / "mappings" / "hst" / "hst_cos_disptab_0001.rmap").read_text()
    mapping = rmap.ReferenceMapping.from_string(text, "hst_cos_disptab_0001.rmap")
    assert mapping.filekind == "disptab"


def test_references_are_labelled_as_stand_ins(single: Simulation) -> None:
    for path in (single.crds_path / "references" / "hst").iterdir():
        header = fits.getheader(path)
        assert header["PEDIGREE"] == "DUMMY"
        assert header["DESCRIP"].startswith("STAND-IN, simulated: ")
        assert header["FILENAME"] == path.name


def test_small_on_disk(single: Simulation) -> None:
    assert sum(path.stat().st_size for path in single.crds_path.rglob("*") if path.is_file()) < 2_000_000


def test_truth_is_readable(single: Simulation) -> None:
    truth = Table.read(single.truth, format="ascii.ecsv")
    assert truth["wavelength"].unit == "Angstrom"
    assert np.allclose(truth["flux"], flux(np.asarray(truth["wavelength"])), rtol=1e-5, atol=1e-22)
    low, high = truth.meta["useful_range"]
    assert all(low < line < high for line in truth.meta["lines"])
    exposure = truth.meta["exposures"]["lsim01sxq"]
    assert len(exposure["flash_times"]) == len(exposure["shift1"]) == 3
    assert abs(exposure["shift1"][0]) * 0.08 > 1.0, "without a wavecal the lines must be out by more than 1 A"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exposures": 0}, "exposures"),
        ({"exposures": 5}, "exposures"),
        ({"exposures": True}, "exposures"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"exposure_time": 59.9}, "exposure_time"),
        ({"exposure_time": float("nan")}, "exposure_time"),
        ({"exposure_time": 1.0e6}, "exposure_time"),
        ({"dataset": "j8bt05njq"}, "dataset"),
        ({"dataset": "lsim01"}, "dataset"),
        ({"dataset": "../../etc"}, "dataset"),
        ({"dataset": "lsim01sxq\n"}, "dataset"),
        ({"dataset": "lsim01sxq", "exposures": 2}, "association"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_other_data_sets_are_not_mixed(association: Simulation) -> None:
    before = _digests(association.directory)
    with pytest.raises(ValueError, match="another data set"):
        simulate(association.directory, exposure_time=SHORT)
    assert _digests(association.directory) == before


def test_dataset_is_stored_in_lower_case(tmp_path: Path) -> None:
    assert simulate(tmp_path, dataset="LSIM02ABQ", exposure_time=SHORT).dataset == "lsim02abq"


def test_inverse_of_the_dispersion_relation() -> None:
    for wave in (1000.0, 1333.3, 2000.0):
        assert ins.wavelength(np.array([ins.pixel(wave)]))[0] == pytest.approx(wave, abs=1e-9)


def test_raw_position_is_undone_by_the_corrections() -> None:
    x, y = np.array([2000.0, 8000.0, 15000.0]), np.array([400.0, 475.0, 600.0])
    pulse_height, phase = np.array([3.0, 11.0, 20.0]), np.array([0.0, 0.5, 1.0])
    raw_x, raw_y = ins.raw_position(x, y, pulse_height, phase)
    low = ins.thermal_distortion(*(np.array([stim[i]] * 3) for stim in ins.STIMS[:1] for i in (0, 1)), phase)
    high = ins.thermal_distortion(*(np.array([stim[i]] * 3) for stim in ins.STIMS[1:] for i in (0, 1)), phase)
    thermal = [
        ins.STIMS[0][i] + (raw - low[i]) * (ins.STIMS[1][i] - ins.STIMS[0][i]) / (high[i] - low[i])
        for i, raw in enumerate((raw_x, raw_y))
    ]
    geometric = [a - b for a, b in zip(thermal, ins.geometric_shift(*thermal), strict=True)]
    walk = ins.walk_shift(pulse_height)
    assert np.allclose(geometric[0] - walk[0], x, atol=1e-3)
    assert np.allclose(geometric[1] - walk[1], y, atol=1e-3)


def test_sensitivity_changes_continuously_with_time() -> None:
    wave = np.array([1000.0, 1500.0, 2000.0])
    before, after = (ins.tds_factor(wave, ins.TDS_TIMES[1] + step) for step in (-1e-6, 1e-6))
    assert np.allclose(before, after, atol=1e-6)
    assert np.allclose(ins.tds_factor(wave, ins.TDS_REFERENCE), 1.0)


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    return np.arange(1200.0, 1700.0, 0.08)


def test_compare_accepts_the_truth(single: Simulation, tmp_path: Path, grid: np.ndarray) -> None:
    result = compare(_write_x1d(tmp_path / "x1d.fits", grid, flux(grid)), single.truth)
    assert result.recovered
    assert result.worst_line_offset < 0.02
    assert result.worst_flux_error < 0.001
    assert len(result.flux_ratios) == 80
    assert "injected spectrum recovered" in str(result)


def test_compare_notices_a_displaced_spectrum(single: Simulation, tmp_path: Path, grid: np.ndarray) -> None:
    result = compare(_write_x1d(tmp_path / "x1d.fits", grid, flux(grid - 3.0)), single.truth)
    assert not result.recovered
    assert np.allclose(result.line_offsets, 3.0, atol=0.1)


def test_compare_notices_a_wrong_scale(single: Simulation, tmp_path: Path, grid: np.ndarray) -> None:
    result = compare(_write_x1d(tmp_path / "x1d.fits", grid, 1.1 * flux(grid)), single.truth)
    assert not result.recovered
    assert result.median_flux_error == pytest.approx(0.1, abs=0.001)


def test_compare_notices_one_bad_bin(single: Simulation, tmp_path: Path, grid: np.ndarray) -> None:
    measured = flux(grid) * np.where((grid > 1600) & (grid < 1605), 0.9, 1.0)
    assert not compare(_write_x1d(tmp_path / "x1d.fits", grid, measured), single.truth).recovered


def test_compare_leaves_no_bin_out(single: Simulation, tmp_path: Path, grid: np.ndarray) -> None:
    short = grid[grid < 1500]
    result = compare(_write_x1d(tmp_path / "x1d.fits", short, flux(short)), single.truth)
    assert not result.recovered
    assert result.worst_flux_error == float("inf")
    assert result.worst_line_offset == float("inf")


def test_compare_misses_absent_lines(single: Simulation, tmp_path: Path, grid: np.ndarray) -> None:
    result = compare(_write_x1d(tmp_path / "x1d.fits", grid, np.full(grid.size, 1e-14)), single.truth)
    assert result.worst_line_offset == float("inf")


def test_compare_refuses_other_files(single: Simulation, tmp_path: Path, grid: np.ndarray) -> None:
    x1d = _write_x1d(tmp_path / "x1d.fits", grid, flux(grid))
    other = tmp_path / "other.ecsv"
    Table({"wavelength": [1.0], "flux": [1.0]}).write(other, format="ascii.ecsv")
    with pytest.raises(ValueError, match="not a truth table"):
        compare(x1d, other)
    empty = tmp_path / "empty.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU()]).writeto(empty)
    with pytest.raises(ValueError, match="no spectrum"):
        compare(empty, single.truth)


def test_comparison_report_names_the_limits() -> None:
    text = str(Comparison((1300.0,), (0.5,), (1302.5,), (1.02,), 5.0, 10000.0))
    assert "limit 1 A" in text
    assert "limit 5 %" in text
    assert "1.00 %" in text
