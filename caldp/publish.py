"""Publish: the dataset's tree, put together aside and shown in one step; its manifest is the proof that it is whole."""

from __future__ import annotations

import contextlib
import html
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from caldp import messages, unpublished, versions
from caldp.calibrate import Products
from caldp.create_preview import Preview
from caldp.errors import (
    BusyError,
    S3DownloadError,
    S3DownloadRefusedError,
    S3UploadError,
    S3UploadRefusedError,
    Stop,
)
from caldp.inputs import Inputs
from caldp.manifest import MANIFEST, Manifest, read_manifest
from caldp.messages import Status
from caldp.references import References
from caldp.run import Run
from caldp.store import Store, Stored, absolute_uri, sha256
from caldp.telemetry import LOG_FILES

REPORT = "report.html"

#: What a dataset's folder holds besides the files that its manifest lists.
_OURS = {MANIFEST, REPORT, *(f"logs/{name}" for name in LOG_FILES)}


def publish(
    run: Run,
    store: Store,
    source: str,
    inputs: Inputs,
    references: References,
    products: Products,
    previews: Sequence[Preview],
) -> Manifest:
    """Make the products, previews, logs, report and manifest the content of ``data/<instrument>/<dataset>``.

    Parameters
    ----------
    run : Run
        The run.
    store : Store
        The output.
    source : str
        URI of the input, for the record.
    inputs, references, products, previews
        What the earlier stages made.

    Returns
    -------
    Manifest

    Raises
    ------
    BusyError
        If another run took the dataset over meanwhile; nothing is published then.
    S3UploadError
        If S3 fails; the products are then kept for the next run.
    """
    prefix = run.dataset.prefix
    telemetry = run.telemetry
    staging = store.staging(prefix, run.id, run.workspace.root)
    try:
        with telemetry.stage("publish") as stage:
            telemetry.info(f"publishing {products} to {store.url(prefix)}")
            for folder in ("logs", "previews"):
                (staging / folder).mkdir()
            moved = [_deliver(run, path, staging / path.name) for path in products.files]
            made = [_deliver(run, run.workspace.previews / p.name, staging / "previews" / p.name) for p in previews]
            with ThreadPoolExecutor(2) as pool:  # hashing lets go of the interpreter
                sums = list(pool.map(sha256, [*moved, *made]))
            stage.bytes_in = stage.bytes_out = sum(path.stat().st_size for path in [*moved, *made])
        record = _record(run, store, source, inputs, references, products)
        record["products"] = [_entry(p.name, p, s) for p, s in zip(moved, sums, strict=False)]
        record["previews"] = [
            {**_entry(f"previews/{p.name}", path, s), "product": p.product, "kind": p.kind}
            for p, path, s in zip(previews, made, sums[len(moved) :], strict=True)
        ]
        manifest = Manifest(record)
        metrics = telemetry.write_metrics()
        _copy_logs(run, staging / "logs")
        (staging / REPORT).write_text(_report(run, staging, record, metrics), encoding="utf-8")
        mine = Status(run.dataset.name, run.attempt, "processing", run=run.id)
        store.publish(
            staging,
            prefix,
            lambda: _replaceable(store, mine, prefix),
            lambda stored: _sealed(run, manifest, stored),
            telemetry.counter("upload", sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())),
            {entry["name"]: entry["sha256"] for entry in manifest.files()},
        )
    except (S3UploadError, S3DownloadError) as error:
        kept = unpublished.keep(run, inputs, references, products, staging)
        again = "the next attempt" if run.config.attempt else "the same command"
        remedy = f"{error.remedy}; the products are kept in {kept}: {again} publishes them" if kept else error.remedy
        refused = isinstance(error, S3UploadRefusedError | S3DownloadRefusedError)
        raise (S3UploadRefusedError if refused else S3UploadError)(error.message, remedy=remedy) from error
    except Stop:
        if not store.exclusive:  # an upload may take long, and may be what took too long
            unpublished.keep(run, inputs, references, products, staging)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    unpublished.forget(run)
    return manifest


def _report(run: Run, staging: Path, record: dict[str, Any], metrics: dict[str, Any]) -> str:
    from caldp import report

    try:
        return report.render(staging, record, metrics)
    except Exception as error:  # noqa: BLE001 - a page about good products must not lose them, whatever is wrong with it
        run.telemetry.warning(f"the report could not be made ({type(error).__name__}: {error})")
        record["warnings"] = list(run.telemetry.warnings)
        page = html.escape(json.dumps(record, indent=1))
        return f"<!doctype html><title>{run.dataset}</title><h1>{run.dataset}</h1><pre>{page}</pre>"


def publish_logs(run: Run, store: Store) -> None:
    """Leave the logs of a failed run in the dataset's folder, beside whatever an earlier run published."""
    with contextlib.suppress(OSError):  # the disk may be full: what was logged until then still goes out
        run.telemetry.write_metrics()
    for path in sorted(run.workspace.logs.iterdir()):
        store.add(path, f"{run.dataset.prefix}/logs/{path.name}")


def _replaceable(store: Store, mine: Status, prefix: str) -> set[str]:
    """Make sure that the dataset is still ours, and name the files that earlier runs published."""
    messages.check_owner(store, mine)
    there = read_manifest(store, prefix)
    if there and there.attempt > mine.attempt:
        raise BusyError(f"{mine.dataset}: attempt {there.attempt} has published meanwhile", remedy="nothing is to do")
    return {*_OURS, *(str(entry["name"]) for entry in there.files())} if there else set(_OURS)


def _sealed(run: Run, manifest: Manifest, stored: Mapping[str, Stored]) -> tuple[str, bytes]:
    """Enter into the manifest what the store says of each file, and return it as the file that is written last."""
    run.shield()
    for entry in manifest.files():
        said = stored.get(entry["name"], Stored())
        entry.update({key: value for key, value in (("etag", said.etag), ("version", said.version)) if value})
    return MANIFEST, manifest.to_bytes()


def _record(
    run: Run, store: Store, source: str, inputs: Inputs, references: References, products: Products
) -> dict[str, Any]:
    crds = {"crds": references.crds_version} if references.crds_version else {}
    return {
        "format": 1,
        "dataset": run.dataset.name,
        "instrument": run.dataset.instrument,
        "kind": inputs.kind,
        "attempt": run.attempt,
        "retry": run.retry,
        "run": run.id,
        "state": "processed",
        "reason": products.reason,
        "started": run.started,
        "finished": messages.now(),
        "context": references.context,
        "versions": {**versions.installed(), **crds, **products.versions},
        "config": run.config.to_json(),
        "input": absolute_uri(source),
        "output": store.uri,
        "inputs": [f.to_json() for f in inputs.files],
        "products": [],
        "previews": [],
        "references": [f.to_json() for f in references.files],
        "programs": [*products.programs, *(p.to_json() for s in run.telemetry.stages for p in s.programs)],
        "warnings": list(run.telemetry.warnings),
    }


def _entry(name: str, path: Path, digest: str) -> dict[str, Any]:
    return {"name": name, "size": path.stat().st_size, "sha256": digest}


def _deliver(run: Run, source: Path, target: Path) -> Path:
    """Move a file: by its name alone where scratch and output share a file system, else by copying it."""
    if run.keep_scratch:
        shutil.copyfile(source, target)
    else:
        shutil.move(source, target)
    return target


def _copy_logs(run: Run, folder: Path) -> None:
    for path in sorted(run.workspace.logs.iterdir()):
        shutil.copyfile(path, folder / path.name)
