"""Affected datasets are those that the stock client finds: no difference in any, over many headers and all contexts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path

import pytest

from caldp.crdserver import affected
from caldp.crdserver.datasets import Datasets, Intake, import_headers
from caldp.crdserver.intake import files, take
from caldp.crdserver.stock import Stock
from caldp.store import open_store
from tests.desk import REPOSITORY
from tests.fakes.headers import LETTERS, mixed

CONTEXTS = [f"hst_{number}.pmap" for number in ("0600", "0650", "0700", "0728", "0729")]
PAIRS = list(permutations(CONTEXTS, 2))

#: Datasets of synphot do not exist, and a catalogue takes none.
INSTRUMENTS = [name for name in LETTERS if name != "synphot"]

#: Headers, and processes that evaluate them with the stock client.
MANY, PROCESSES = 20_400, 2


@pytest.fixture(scope="module")
def stock(shared_data: Path) -> Stock:
    return Stock(shared_data / "crds-contexts", "hst")


def catalogue(folder: Path, headers: Mapping[str, Mapping[str, str]]) -> Datasets:
    store = open_store(f"file:{folder}")
    done = import_headers(store, "hst", headers.items())
    assert not done.rejected
    return Datasets(store, "hst")


def client(
    folder: Path, cache: Path, headers: Mapping[str, Mapping[str, str]], pairs: Iterable[tuple[str, str]]
) -> dict:
    """Ask the stock client, in processes that share the headers."""
    names = list(headers)
    running = []
    for number in range(PROCESSES):
        given, made = folder / f"given{number}.json", folder / f"made{number}.json"
        given.write_text(json.dumps({name: headers[name] for name in names[number::PROCESSES]}))
        argv = [sys.executable, "-m", "tests.fakes.client", str(cache), str(given), str(made)]
        argv += [",".join(pair) for pair in pairs]
        env = {name: text for name, text in os.environ.items() if not name.startswith("CRDS_")}
        running.append((subprocess.Popen(argv, cwd=REPOSITORY, env=env), made))
    found: dict[str, dict] = {}
    for process, made in running:
        assert process.wait() == 0
        for pair, said in json.loads(made.read_text()).items():
            one = found.setdefault(
                pair, {"updates": {}, "failures": {}, "printed": set(), "looked_at": 0, "withheld": 0}
            )
            one["updates"] |= said["updates"]
            one["failures"] |= said["failures"]
            one["printed"] |= set(said["printed"])
            one["looked_at"] += said["looked_at"]
            one["withheld"] += said["withheld"]
            one["types"] = said["types"]
    return found


def disagreements(found: affected.Affected, said: dict) -> list[tuple]:
    """Return all that we and the client say otherwise."""
    ours = {name: [list(reason) for reason in reasons] for name, reasons in found.datasets.items()}
    failed = {name: sorted(list(failure) for failure in failures) for name, failures in found.failed.items()}
    theirs, complained = said["updates"], {name: sorted(some) for name, some in said["failures"].items()}
    wrong = [
        (name, ours.get(name), theirs.get(name)) for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)
    ]
    wrong += [
        (name, failed.get(name), complained.get(name))
        for name in {*failed, *complained}
        if failed.get(name) != complained.get(name)
    ]
    counts = found.instruments.values()
    for what, one, other in (
        ("products", found.products, sorted(said["printed"])),
        ("looked at", sum(each.datasets - each.early for each in counts), said["looked_at"]),
        ("withheld", sum(each.withheld for each in counts), said["withheld"]),
    ):
        if one != other:
            wrong.append((what, one, other))
    return wrong


def real(folder: Path, shared_data: Path) -> dict[str, dict[str, str]]:
    """All headers of datasets that were taken, as the catalogue has them."""
    store = open_store(f"file:{folder}")
    intake = Intake(store, "hst")
    named = ("test_cos.json", "canary.json", "bestrefs.special.json")
    sources = [shared_data / "dataset-headers" / name for name in named]
    for source in files([*sources, *(shared_data / name for name in ("acs-hrc", "cos-ldfd01010", "stis-acq"))]):
        take(intake, "hst", source)
    # Two headers of one dataset, of which one has a gain that no camera has.
    for name, form in (("JA9553M3Q", "dnr_fix"), ("JA9553M4Q", "new_error")):
        known = json.loads((shared_data / "dataset-headers" / f"bestrefs_{form}.json").read_text())
        intake.add(name, known["JA9553M3Q:JA9553M3Q"])
    assert not intake.finish().rejected
    datasets = Datasets(store, "hst")
    found: dict[str, dict[str, str]] = {}
    for instrument in datasets.instruments():
        for name, header in datasets.headers(datasets.ids(instrument)).items():
            assert isinstance(header, dict)
            found[name] = header
    return found


@pytest.mark.slow
def test_every_pair_of_contexts_affects_the_datasets_that_the_stock_client_finds(
    stock: Stock, tmp_path: Path, shared_data: Path
) -> None:
    headers = mixed([stock.mapping(name) for name in CONTEXTS], INSTRUMENTS, MANY, seed=7)
    taken = real(tmp_path / "real", shared_data)
    assert len(headers) >= 20_000 and len(taken) == 12
    headers |= taken
    said = client(tmp_path, shared_data / "crds-contexts", headers, PAIRS)
    datasets = catalogue(tmp_path / "store", headers)
    wrong = []
    named = failed = 0
    for old, new in PAIRS:
        found = affected.find(stock, old, new, datasets)
        named += len(found.datasets)
        failed += len(found.failed)
        wrong += [(old, new, *one) for one in disagreements(found, said[f"{old},{new}"])]
    assert not wrong, f"{len(wrong)} disagreements, for example {wrong[:3]}"
    assert named > len(headers) and failed > len(headers), "too little was at stake"


def test_a_few_headers_are_affected_as_the_stock_client_says(stock: Stock, tmp_path: Path, shared_data: Path) -> None:
    pair = ("hst_0600.pmap", "hst_0729.pmap")
    headers = mixed([stock.mapping(name) for name in pair], INSTRUMENTS, 500, seed=3)
    said = client(tmp_path, shared_data / "crds-contexts", headers, [pair])[",".join(pair)]
    found = affected.find(stock, *pair, catalogue(tmp_path / "store", headers))
    assert not disagreements(found, said)
    assert len(found.datasets) > 50 and len(found.failed) > 50
