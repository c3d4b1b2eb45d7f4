"""Datasets that look processed: small trees of products in a batch, without any calibration."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caldp import messages
from caldp.dataset import Dataset
from caldp.messages import Status
from caldp.store import Store, Stored
from caldp.telemetry import LOG_FILES
from tests.fakes.smallfits import image, write

REPORT = "report.html"


def names(count: int) -> list[str]:
    """Names of COS exposures, in order."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return [f"lfak{digits[i // 1296 % 36]}{digits[i // 36 % 36]}{digits[i % 36]}sq" for i in range(count)]


def small_products(name: str, attempt: int = 1, size: int = 64) -> dict[str, bytes]:
    """Make small FITS files and a preview of a dataset; those of another attempt differ, but for the raw file."""
    return {
        f"{name}_raw.fits": _fits(name, 1, 16),
        f"{name}_flt.fits": _fits(name, attempt, size),
        f"{name}_empty.txt": b"",
        f"previews/{name}_flt.png": f"preview of {name}, attempt {attempt}".encode(),
    }


def _fits(name: str, attempt: int, size: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "x.fits", {"ROOTNAME": name, "ATTEMPT": attempt}, image("SCI", size))
        return path.read_bytes()


def publish(
    store: Store, name: str, products: Mapping[str, bytes] | None = None, *, logs: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    """Publish the next attempt of a dataset as a run does, through all its states; return its manifest."""
    dataset = Dataset.parse(name)
    with tempfile.TemporaryDirectory() as folder:
        begun = messages.begin(store, name, os.urandom(6).hex())
        files = dict(products if products is not None else small_products(name, begun.attempt))
        if logs is None:
            logs = {log: f"{log} of {name}, attempt {begun.attempt}\n".encode() for log in LOG_FILES}
        staging = store.staging(dataset.prefix, begun.run, Path(folder))
        for sub in ("logs", "previews"):
            (staging / sub).mkdir()
        page = {REPORT: f"<!doctype html><title>{name}</title>attempt {begun.attempt}".encode()}
        for file, data in {**files, **{f"logs/{log}": text for log, text in logs.items()}, **page}.items():
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).write_bytes(data)
        entries = [
            {"name": file, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for file, data in files.items()
        ]
        record: dict[str, Any] = {
            "format": 1,
            "dataset": name,
            "instrument": dataset.instrument,
            "attempt": begun.attempt,
            "retry": begun.retry,
            "run": begun.run,
            "state": "processed",
            "reason": "",
            "context": "hst_0001.pmap",
            "references": [],
            "warnings": [],
            "products": [entry for entry in entries if "/" not in entry["name"]],
            "previews": [entry for entry in entries if "/" in entry["name"]],
        }

        def seal(stored: Mapping[str, Stored]) -> tuple[str, bytes]:
            for entry in entries:
                said = stored.get(entry["name"], Stored())
                entry.update({k: v for k, v in (("etag", said.etag), ("version", said.version)) if v})
            return "manifest.json", json.dumps(record, indent=1).encode() + b"\n"

        ours = {"manifest.json", REPORT, *(f"logs/{log}" for log in logs), *_listed(store, dataset.prefix)}
        store.publish(staging, dataset.prefix, lambda: ours, seal)
        shutil.rmtree(staging, ignore_errors=True)
    messages.advance(store, Status(name, begun.attempt, "processed", begun.run, exit_code=0, retry=begun.retry))
    return record


def _listed(store: Store, prefix: str) -> set[str]:
    blob = store.get(f"{prefix}/manifest.json")
    record = json.loads(blob.data) if blob else {"products": [], "previews": []}
    return {entry["name"] for entry in (*record["products"], *record["previews"])}


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones included."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
