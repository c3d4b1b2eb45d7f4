"""Writes ``iam.yaml``, all that roles may do, when that was meant to change: ``python -m tests.infra.snapshot``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from infra import packaging, settings
from tests.infra.template import Template

FILE = Path(__file__).parent / "iam.yaml"
_HEAD = "# What roles may do. Written by python -m tests.infra.snapshot, to be read before it is committed.\n\n"


def text(statements: dict[str, Any]) -> str:
    """Lay statements out."""
    return _HEAD + yaml.safe_dump(statements, sort_keys=False, width=200)


def main() -> None:
    """Synthesize dev, and write."""
    import aws_cdk as cdk

    from infra.stack import FLAGS, CaldpStack

    with tempfile.TemporaryDirectory() as folder:
        stub = Path(folder) / "code"
        stub.mkdir()
        (stub / "handler.py").write_text("")
        app = cdk.App(outdir=f"{folder}/out", context=FLAGS, builtin_cloud_formation_validation=False)
        CaldpStack(app, settings.load("dev"), dict.fromkeys(packaging.HANDLERS, stub))
        app.synth()
        record = json.loads(Path(folder, "out", "caldp-dev.template.json").read_text())
    FILE.write_text(text(Template(record).statements()))


if __name__ == "__main__":
    main()
