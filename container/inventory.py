"""For the Dockerfile: write down what the image consists of.

``inventory.py FOLDER`` writes ``VERSION``, which people read, and ``sbom.cdx.json`` (CycloneDX), which scanners read:
the Python packages of /opt/caldp, the conda packages of HSTCAL and the packages of a Debian base image.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

_LIST_PYTHON = """
import importlib.metadata, json
print(json.dumps(sorted({(d.metadata["Name"], d.version) for d in importlib.metadata.distributions()})))
"""

#: Kind of package, name, version.
Package = tuple[str, str, str]


def python_packages() -> Iterator[Package]:
    """List what is installed in /opt/caldp."""
    found = subprocess.run(["/opt/caldp/bin/python", "-c", _LIST_PYTHON], stdout=subprocess.PIPE, check=True, text=True)
    for name, version in json.loads(found.stdout):
        yield "pypi", name, version


def conda_packages() -> Iterator[Package]:
    """List the packages that HSTCAL consists of."""
    for record in sorted(Path("/opt/hstcal/conda-meta").glob("*.json")):
        content = json.loads(record.read_text())
        yield "conda", content["name"], content["version"]


def debian_packages() -> Iterator[Package]:
    """List the packages of the base image, if it is a Debian."""
    try:
        found = subprocess.run(
            ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n"],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    except FileNotFoundError:
        return
    for line in found.stdout.splitlines():
        name, _, version = line.partition(" ")
        yield "deb", name, version


def bill(packages: list[Package]) -> str:
    """Return the CycloneDX document, validated against its schema."""
    bom = Bom()
    bom.metadata.component = Component(name="caldp", type=ComponentType.CONTAINER)
    for kind, name, version in packages:
        url = PackageURL(kind, "debian" if kind == "deb" else None, name, version)
        bom.components.add(
            Component(name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string())
        )
    text = JsonV1Dot5(bom).output_as_string(indent=1)
    if error := JsonStrictValidator(SchemaVersion.V1_5).validate_str(text):
        sys.exit(f"inventory.py: the document does not fit the schema: {error}")
    return text


def versions(packages: list[Package]) -> str:
    """Return the versions that matter, a line each."""
    found = {(kind, name.lower()): version for kind, name, version in packages}
    wanted = [("pypi", name) for name in ("caldp", "calcos", "drizzlepac", "crds", "astropy")] + [("conda", "hstcal")]
    lines = [f"{name} {found.get((kind, name), 'not included')}" for kind, name in wanted]
    return "\n".join([*lines, f"python {platform.python_version()}", f"CSYS_VER {os.environ['CSYS_VER']}"]) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    listed = [*python_packages(), *conda_packages(), *debian_packages()]
    (folder / "VERSION").write_text(versions(listed))
    (folder / "sbom.cdx.json").write_text(bill(listed))
