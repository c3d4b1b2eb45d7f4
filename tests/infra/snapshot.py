"""Writes what roles may do, when that was meant to change: ``python -m tests.infra.snapshot``.

All of dev is in ``iam.yaml``; of a stack with a CRDS, the roles of that are in ``iam_crds.yaml``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from infra import settings
from infra.settings import Environment
from tests.infra.conftest import WITH_CRDS, packages
from tests.infra.template import Template

FILE = Path(__file__).parent / "iam.yaml"
CRDS_FILE = FILE.with_name("iam_crds.yaml")
_HEAD = "# What roles may do. Written by python -m tests.infra.snapshot, to be read before it is committed.\n\n"


def text(statements: dict[str, Any]) -> str:
    """Lay statements out."""
    return _HEAD + yaml.safe_dump(statements, sort_keys=False, width=200)


def of_crds(statements: dict[str, Any]) -> dict[str, Any]:
    """Return those of the roles of a CRDS."""
    return {role: found for role, found in statements.items() if role.startswith("crds")}


def _synthesized(environment: Environment) -> dict[str, Any]:
    import aws_cdk as cdk

    from infra.stack import FLAGS, CaldpStack

    with tempfile.TemporaryDirectory() as folder:
        stub = Path(folder) / "code"
        stub.mkdir()
        app = cdk.App(outdir=f"{folder}/out", context=FLAGS, builtin_cloud_formation_validation=False)
        CaldpStack(app, environment, packages(stub))
        app.synth()
        record = json.loads(Path(folder, "out", f"{environment.infra.name}.template.json").read_text())
    return Template(record).statements()


def main() -> None:
    """Synthesize, and write."""
    FILE.write_text(text(_synthesized(settings.load("dev"))))
    CRDS_FILE.write_text(text(of_crds(_synthesized(WITH_CRDS))))


if __name__ == "__main__":
    main()
