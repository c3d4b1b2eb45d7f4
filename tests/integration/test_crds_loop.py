"""The loop: a reference file is delivered, and the dataset that it affects is calibrated anew with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crds import FORM, CrdsServer, caldp_crds, make_client, setup_line, signed_in
from tests.desk import SCRIPTS, cos_data, environment, linked_cache, shared_data, shelf
from tests.sites import altered

__all__ = ["cos_data", "environment", "shared_data", "shelf"]

ASSOCIATION = "ldfd01010"

DELIVER = """
import json, os, sys
{setup}
from crds.submit import Submission
submission = Submission("hst", "ops")
for key, value in json.loads(sys.argv[1]).items():
    submission[key] = value
submission["instrument"] = "cos"
submission.add_file("new_dead.fits")
submission._auto_confirm = True
result = submission.submit()
print(json.dumps([result.error_count, submission.file_map]))
"""


@pytest.fixture
def server(cos_data: Path, tmp_path: Path) -> Iterator[CrdsServer]:
    """A CRDS with the references of the association."""
    cache = linked_cache(cos_data / "crds_cache", tmp_path / "from")
    root = tmp_path / "crds"
    caldp_crds("init", "--store", f"file:{root}", "--from", str(cache))
    token = caldp_crds("user", "add", "ann", "--role", "submitter", "--store", f"file:{root}").strip()
    served = CrdsServer(root, {"ann": token}, tmp_path / "server.log").start()
    yield served
    served.stop()


@pytest.mark.slow
def test_a_delivered_reference_recalibrates_what_it_affects(
    server: CrdsServer, cos_data: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    # A scientist delivers a file with the stock client, and confirms it.
    client = make_client(tmp_path / "client", server.hst, environment)
    old = "s7g1700gl_dead.fits"
    new_file = altered(cos_data / "crds_cache" / "references" / "hst" / old, USEAFTER="Jan 01 2015 00:00:00")
    (client.home / "new_dead.fits").write_bytes(new_file)
    assert client("sync", "--contexts", "hst-edit").code == 0
    done = client.script(DELIVER.format(setup=setup_line()), json.dumps(FORM), env=signed_in(server, "ann"))
    assert done.code == 0, done.output
    errors, renamed = done.json()
    assert errors == 0, done.output
    new, context = renamed["new_dead.fits"], renamed["hst_0729.pmap"]
    assert context == "hst_0730.pmap"

    # An operator makes its context the default one.
    assert server.operate("set-context", "edit").split() == ["hst_0729.pmap", "->", context]

    # The archive's parameters say whom that affects.
    raw = sorted(str(path) for path in (cos_data / "inputs").glob("*raw*"))
    server.operate("datasets", "import", *raw)
    found = json.loads(server.operate("affected", "hst_0729.pmap", context, "--json"))
    assert {one.partition(":")[0] for one in found["datasets"]} >= {ASSOCIATION.upper()}
    for reasons in found["datasets"].values():
        assert [tuple(reason) for reason in reasons] == [("deadtab", old, new)]

    # The campaign calibrates it with that context: rules and references come from the server.
    inputs, home = tmp_path / "inputs", tmp_path / "home"
    shutil.copytree(cos_data / "inputs", inputs)
    home.mkdir()
    variables = {"CRDS_SERVER_URL": server.hst, "CRDS_PATH": str(tmp_path / "cache"), "CALDP_HOME": str(home)}
    env = {k: v for k, v in environment.items() if not k.startswith("CRDS_")} | variables
    output = tmp_path / "outputs"
    submit = ["affected", "hst_0729.pmap", context, "--submit", f"file:{output}", "--input", f"file:{inputs}"]
    submit += ["--config", "caldp-config-offsite", "--store", server.store]
    done = subprocess.run([SCRIPTS / "caldp", "crds", *submit], env=env, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    manifest = json.loads((output / "data" / "cos" / ASSOCIATION / "manifest.json").read_text())
    assert manifest["context"] == context
    references = {one["type"].lower(): one["name"] for one in manifest["references"]}
    assert references["deadtab"] == new
    status = json.loads((output / "messages" / "status" / f"{ASSOCIATION}.json").read_text())
    assert status["state"] == "processed"
