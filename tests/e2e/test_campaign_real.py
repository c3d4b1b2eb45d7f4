"""A campaign of simulated exposures on AWS: the stack as it is deployed, and ``caldp-process-aws`` itself in its jobs.

The references come from the CRDS bucket of the stack, the inputs from a bucket, and all else from the job definition.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caldp.manifest import verified
from caldp.simulate.campaign import BROKEN, DATASETS, SimulatedList, simulate_list
from tests.e2e.deployed import NAME, Deployed

pytestmark = pytest.mark.slow

LARGE, SLOW, STOPPED = DATASETS[0], DATASETS[1], DATASETS[2]

#: A "MiB" of a rung is 0.6 MiB: an exposure needs more than the 786 MiB of the first, and less than the second's 1440.
#: A "second" of a time limit is a tenth of one: no exposure is done after 6 s, and all are after 240 s.
SWITCHES = {"memory_unit": round(0.6 * 2**20), "second": 0.1, "processes": 2}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> SimulatedList:
    return simulate_list(tmp_path_factory.mktemp("simulated"))


@pytest.fixture
def caldp(deployed: Deployed, simulated: SimulatedList, tmp_path: Path) -> Iterator[Deployed]:
    """The stack, with references in its CRDS bucket, inputs in a bucket, and the real program in its jobs."""
    s3 = deployed.aws.client("s3")
    s3.create_bucket(Bucket="inputs")
    for path in simulated.inputs.iterdir():
        s3.upload_file(str(path), "inputs", f"raw/{path.name}")
    cache = str(simulated.directory / "crds_cache")
    sync = ["references", "sync", "--all", "--context", "hst_0001.pmap", "--from", cache]
    config = ["--config", str(simulated.config)]
    done = deployed.caldp(*sync, *config, deployed.stack.outputs["CrdsBucket"])
    assert done.code == 0, done.err
    # Where the host would keep its cache is a place for root; else the script is the one that all jobs have.
    (tmp_path / "caldp-config-simulated").write_text(f"export CRDS_PATH={tmp_path}/crds\nsource caldp-config-aws\n")
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    deployed.begin(environment={"PATH": path}, **SWITCHES)
    yield deployed
    deployed.wait_quiet()


def test_simulated_exposures(caldp: Deployed) -> None:
    """One needs more memory, one more time, one is broken, one is cancelled: as they should be, and in S3 whole."""
    options = {"input": "s3://inputs/raw", "config": "caldp-config-simulated", "crds_context": "hst_0001.pmap"}
    patient = {"datasets": f"{LARGE} {BROKEN} {STOPPED}", "time_limit": 2400, **options}
    caldp.drop("messages/placed/patient.yaml", patient)
    batch = caldp.batch_of("patient")
    caldp.aws.wait_until(lambda: STOPPED in caldp.statuses(batch))
    caldp.aws.wait_until(lambda: caldp.status(batch, STOPPED).state == "processing")
    shown = caldp.campaign("cancel", caldp.output(batch), STOPPED)
    (token,) = re.findall(r"--yes ([0-9a-f]+)", shown.err)
    assert caldp.campaign("cancel", caldp.output(batch), STOPPED, "--yes", token).code == 0
    caldp.drop("control/placed/hasty.yaml", {"datasets": SLOW, "memory_rung": "high", "time_limit": 60, **options})
    hasty = caldp.batch_of("hasty")
    for each in (batch, hasty):
        caldp.work(each, seconds=600.0)

    assert caldp.ends(batch) == {
        LARGE: ("processed", 2, "high", "oom"),
        BROKEN: ("error", 1, "low", "deterministic"),
        STOPPED: ("cancelled", 1, "low", "cancelled"),
    }
    assert caldp.ends(hasty) == {SLOW: ("processed", 2, "high", "timeout")}
    assert caldp.status(hasty, SLOW).time_limit == 1200
    assert "not whole FITS" in caldp.status(batch, BROKEN).reason
    caldp.assert_sound(batch, [LARGE, BROKEN, STOPPED])
    caldp.assert_sound(hasty, [SLOW])
    for each, name in ((batch, LARGE), (hasty, SLOW)):
        store = caldp.control(each).store
        manifest = verified(store, f"data/cos/{name}")
        assert manifest is not None and manifest.attempt == 2
        assert f"{name}_x1d.fits" in [entry["name"] for entry in manifest.files()]
        result = store.get(f"control/results/{name}/2.1.json")
        assert result is not None and json.loads(result.data)["state"] == "processed"
    assert len(caldp.jobs(batch)) == len(caldp.jobs(hasty)) == 2

    # What an operator sees of it.
    assert caldp.campaign("status", caldp.output(batch)).code == 1
    assert caldp.campaign("status", caldp.output(hasty)).code == 0
    done = caldp.campaign("logs", caldp.output(hasty), SLOW)
    assert done.code == 0 and "references: done" in done.out
    done = caldp.campaign("report", caldp.output(batch), "-o", "page.html")
    assert done.code == 0 and LARGE in (caldp.home / "page.html").read_text()
    assert caldp.control(hasty).request()["deployment"] == NAME
