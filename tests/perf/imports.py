"""What it costs to import what functions and commands on AWS import. Prints figures, asserts nothing.

Usage: python tests/perf/imports.py [ROUNDS]        (9; about a minute)

Figures are medians of processor time, which others on this machine do not change much, beyond that of ``import boto3``,
which the runtime of AWS Lambda has loaded already.  A handler is loaded as AWS Lambda does it, with its environment.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from caldp.campaign.settings import DEFAULT  # noqa: E402
from tests.fakes.cloud import DEPLOYMENT  # noqa: E402

HANDLERS = ("on_list", "submit_shards", "on_batch_event", "reconcile")
POWERTOOLS = "from aws_lambda_powertools import Logger, Metrics; import aws_lambda_powertools.utilities.batch"

#: Milliseconds.
TARGET = 150


def taken(statement: str, environment: dict[str, str]) -> float:
    """Return the processor time of a Python that does so, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], cwd=REPOSITORY, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    """Run the benchmark."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        settings.write_text(json.dumps(DEFAULT.to_json()))
        environment = {
            **os.environ,
            "CALDP_DEPLOYMENT": json.dumps(DEPLOYMENT.to_json()),
            "CALDP_SETTINGS": str(settings),
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        statements = {f"lambdas/{name}": f"import lambdas.{name}.handler" for name in HANDLERS}
        statements |= {"caldp.campaign.stack": "import caldp.campaign.stack", "aws_lambda_powertools": POWERTOOLS}
        statements |= {"caldp.campaign": "import caldp.campaign"}
        first = "import boto3"
        for name, statement in statements.items():
            pairs = [taken(f"{first}; {statement}", environment) - taken(first, environment) for _ in range(rounds)]
            figure = statistics.median(pairs)
            print(f"  {name:<24} {figure:4.0f} ms beyond boto3{'' if figure <= TARGET else f', above {TARGET}'}")


if __name__ == "__main__":
    main()
