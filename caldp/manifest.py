"""The manifest of a dataset: written last, it is the proof that what was published is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caldp.dataset import Dataset
from caldp.messages import Status
from caldp.store import Store

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What was published: products and previews with size and sha256, references with sha1, versions, settings.

    Attributes
    ----------
    record : mapping
        The JSON document.
    """

    record: Mapping[str, Any]

    @property
    def attempt(self) -> int:
        """The attempt that published it."""
        return int(self.record["attempt"])

    def status(self) -> Status:
        """Return the state that this manifest proves."""
        record = self.record
        return Status(
            record["dataset"],
            self.attempt,
            "processed",
            record["run"],
            record["reason"],
            0,
            retry=record.get("retry", 1),
        )

    def files(self) -> list[dict[str, Any]]:
        """Products and previews."""
        return [*self.record["products"], *self.record["previews"]]

    def to_bytes(self) -> bytes:
        """Return the document as written."""
        return json.dumps(self.record, indent=1, sort_keys=False).encode() + b"\n"

    def __str__(self) -> str:
        return f"{len(self.record['products'])} products, {len(self.record['previews'])} previews"


def read_manifest(store: Store, prefix: str) -> Manifest | None:
    """Read the manifest of a dataset, or None when there is none."""
    blob = store.get(f"{prefix}/{MANIFEST}")
    if blob is None:
        return None
    try:
        record = json.loads(blob.data)
        complete = record["format"] == 1 and record.keys() >= {"attempt", "run", "reason", "products", "previews"}
        return Manifest(record) if complete else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def published(store: Store, dataset: Dataset, status: Status | None) -> int:
    """Return the attempt of a dataset whose products are there and verified; 0 if there is none.

    Parameters
    ----------
    store : Store
        The output.
    dataset : Dataset
        The dataset.
    status : Status or None
        How it stands: of one that is processed the products were verified before that was written.

    Returns
    -------
    int
    """
    if status is not None and status.done:
        return status.attempt
    manifest = verified(store, dataset.prefix)
    return manifest.attempt if manifest is not None else 0


def verified(store: Store, prefix: str) -> Manifest | None:
    """Return the manifest of a dataset if every file that it lists is there with its size and checksum."""
    manifest = read_manifest(store, prefix)
    if manifest is None:
        return None
    try:
        return None if store.damaged(prefix, manifest.files()) else manifest
    except (ValueError, KeyError, TypeError):  # entries that make no sense
        return None
