"""Publish: the tree is whole or it is not shown; its manifest proves it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caldp import messages, publish
from caldp.calibrate import Products
from caldp.create_preview import Preview
from caldp.errors import BusyError
from caldp.inputs import Inputs, fetch
from caldp.local_store import LocalStore
from caldp.manifest import Manifest, read_manifest, verified
from caldp.publish import publish_logs
from caldp.references import Reference, References
from caldp.run import Run
from caldp.store import Overwrite
from tests.conftest import RunFactory
from tests.fakes.cos import write_raw

PREFIX = "data/cos/ldfd01vnq"
KEPT = "notes by somebody/readme.txt"

Publish = Callable[..., Manifest]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "out")


@pytest.fixture
def begun(make_run: RunFactory, store: LocalStore) -> Callable[..., Run]:
    """Begin the next attempt."""

    def begun(**changes: Any) -> Run:
        run = make_run()
        status = messages.begin(store, "ldfd01vnq", f"run-{run.workspace.root.name}")
        return replace(run, id=status.run, attempt=status.attempt, **changes)

    return begun


@pytest.fixture
def deliver(store: LocalStore, tmp_path: Path) -> Publish:
    """Publish a tiny delivery of a run."""
    folder = tmp_path / "raw"
    folder.mkdir()
    raw = write_raw(folder, "ldfd01vnq", FLATCORR="OMIT", WAVECORR="OMIT", X1DCORR="OMIT")

    def deliver(run: Run, *, names: tuple[str, ...] = ("ldfd01vnq_rawtag_a.fits",), previews: bool = True) -> Manifest:
        inputs: Inputs = fetch(run, f"file:{folder}")
        files = []
        for name in names:
            path = run.workspace.products / name
            path.write_bytes(raw.read_bytes())
            files.append(path)
        made = []
        if previews:
            (run.workspace.previews / "ldfd01vnq_x1d.png").write_bytes(b"png")
            made = [Preview("ldfd01vnq_x1d.png", "ldfd01vnq_x1d.fits", "image", 3)]
        references = References(
            "hst_0001.pmap", "14.0.3", (Reference("FLUXTAB", "x.fits", 5, "0", "/x"),), run.workspace.references
        )
        products = Products(tuple(files), (), (), "nothing to do", {"calcos": "3.6.2"})
        return publish.publish(run, store, "file:raw", inputs, references, products, made)

    return deliver


def tree(store: LocalStore) -> set[str]:
    root = store.root / PREFIX
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_the_tree_of_the_readme(store: LocalStore, begun: Callable[..., Run], deliver: Publish) -> None:
    manifest = deliver(begun())
    assert tree(store) == {
        "ldfd01vnq_rawtag_a.fits",
        "previews/ldfd01vnq_x1d.png",
        "logs/process.txt",
        "logs/preview.txt",
        "logs/process_metrics.txt",
        "logs/preview_metrics.txt",
        "logs/metrics.json",
        "manifest.json",
        "report.html",
    }
    record = json.loads((store.root / PREFIX / "manifest.json").read_text())
    assert record == manifest.record
    assert (record["attempt"], record["state"], record["reason"]) == (1, "processed", "nothing to do")
    assert (record["context"], record["input"], record["output"]) == (
        "hst_0001.pmap",
        f"file:{Path.cwd()}/raw",
        store.uri,
    )
    assert record["versions"]["calcos"] == "3.6.2"
    assert record["references"][0]["name"] == "x.fits"
    assert [f["name"] for f in manifest.files()] == ["ldfd01vnq_rawtag_a.fits", "previews/ldfd01vnq_x1d.png"]
    for entry in manifest.files():
        data = (store.root / PREFIX / entry["name"]).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert verified(store, PREFIX) == manifest
    assert manifest.status().order == (1, 1, 60)


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "folder"])
def test_a_damaged_product_is_no_proof(
    store: LocalStore, begun: Callable[..., Run], deliver: Publish, damage: str
) -> None:
    deliver(begun())
    path = store.root / PREFIX / "ldfd01vnq_rawtag_a.fits"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        data[100] ^= 1
        path.write_bytes(data)
    elif damage == "folder":
        path.mkdir()
    assert verified(store, PREFIX) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"null", b'{"format": 2}', b'{"format": 1}', b"\xff", b'"format"'])
def test_a_manifest_that_is_none(store: LocalStore, body: bytes) -> None:
    store.put(f"{PREFIX}/manifest.json", body, Overwrite())
    assert verified(store, PREFIX) is None


def test_a_later_attempt_replaces_everything_of_ours_and_nothing_else(
    store: LocalStore, begun: Callable[..., Run], deliver: Publish
) -> None:
    deliver(begun(), names=("ldfd01vnq_rawtag_a.fits", "ldfd01vnq_old.fits"))
    store.put(f"{PREFIX}/{KEPT}", b"keep me", Overwrite())
    store.put(f"{PREFIX}/previews/stray.png", b"", Overwrite())
    manifest = deliver(begun(), previews=False)
    assert manifest.attempt == 2
    assert {"ldfd01vnq_old.fits", "previews/ldfd01vnq_x1d.png"}.isdisjoint(tree(store))
    assert {KEPT, "previews/stray.png"} <= set(tree(store))
    assert (store.root / PREFIX / KEPT).read_bytes() == b"keep me"
    assert verified(store, PREFIX) == manifest
    assert store.names("data/cos") == ["ldfd01vnq"]


def test_a_run_that_was_overtaken_publishes_nothing(
    store: LocalStore, begun: Callable[..., Run], deliver: Publish
) -> None:
    slow, fast = begun(), begun()
    deliver(fast)
    before = {name: (store.root / PREFIX / name).read_bytes() for name in tree(store)}
    with pytest.raises(BusyError, match="taken over"):
        deliver(slow)
    assert {name: (store.root / PREFIX / name).read_bytes() for name in tree(store)} == before
    assert [p.name for p in (store.root / "data" / "cos").iterdir()] == ["ldfd01vnq"]


def test_the_shield_goes_up_before_anything_is_shown(
    store: LocalStore, begun: Callable[..., Run], deliver: Publish
) -> None:
    seen: list[bool] = []
    deliver(begun(shield=lambda: seen.append((store.root / PREFIX).exists())))
    assert seen == [False]


def test_scratch_that_is_kept_stays_whole(store: LocalStore, begun: Callable[..., Run], deliver: Publish) -> None:
    run = begun(keep_scratch=True)
    deliver(run)
    assert (run.workspace.products / "ldfd01vnq_rawtag_a.fits").is_file()
    assert (run.workspace.previews / "ldfd01vnq_x1d.png").is_file()
    assert verified(store, PREFIX) is not None


def test_logs_of_a_failed_run_join_what_is_there(
    store: LocalStore, begun: Callable[..., Run], deliver: Publish
) -> None:
    manifest = deliver(begun())
    run = begun()
    run.telemetry.error("it failed")
    publish_logs(run, store)
    assert verified(store, PREFIX) == manifest
    assert "it failed" in (store.root / PREFIX / "logs" / "process.txt").read_text()
    assert read_manifest(store, PREFIX) == manifest
