"""A CRDS on AWS: its table, functions, address and clocks; what its roles may do; its packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from caldp import crds_layout
from caldp.crds_layout import mapping_key, reference_key
from caldp.crdserver import campaigns
from caldp.crdserver.settings import from_environment
from infra import packaging
from infra.crds import FUNCTIONS, INLINE
from infra.packaging import PackagingError
from tests.infra import snapshot
from tests.infra.conftest import WITH_CRDS, Synthesize, changed, packages
from tests.infra.template import ACCOUNT, REGION, Template

JOB = "lambda:::function:caldp-test-crds-job"


@pytest.fixture(scope="module")
def crds(synthesize: Synthesize) -> Template:
    """The template of an environment with a CRDS."""
    return synthesize(WITH_CRDS)


def functions(made: Template) -> dict[str, dict[str, Any]]:
    """Return the functions of the CRDS."""
    found = {p["FunctionName"].split("-", 2)[2]: p for p in made.all("Lambda::Function").values()}
    return {name: found[name] for name in FUNCTIONS}


def variables(made: Template, name: str) -> dict[str, str]:
    return {k: made.text(v) for k, v in functions(made)[name]["Environment"]["Variables"].items()}


# ---- what there is


@pytest.mark.parametrize("environment", ["dev", "ops"])
def test_there_is_none_where_nobody_wants_one(environment: str, stack: Any) -> None:
    made = stack(environment)
    assert not made.all("DynamoDB::Table") and not made.all("Lambda::Url") and not made.all("Lambda::LayerVersion")
    assert not [name for name in made.resources if name.startswith("Crds")]


def test_everything_else_stays_as_it_was(crds: Template, synthesize: Synthesize) -> None:
    without = synthesize(changed(infra={"reserve_concurrency": True}))
    kept = {name: r for name, r in crds.resources.items() if not name.startswith("Crds")}
    assert kept == without.resources


@pytest.mark.parametrize("retain", [True, False])
def test_the_table_is_what_records_are_kept_in_and_can_be_had_back(retain: bool, synthesize: Synthesize) -> None:
    made = synthesize(changed(infra={"crds_server": True, "retain": retain}))
    table = made.one("DynamoDB::Table")
    assert table["KeySchema"] == [
        {"AttributeName": "space", "KeyType": "HASH"},
        {"AttributeName": "key", "KeyType": "RANGE"},
    ]
    assert {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]} == {"space": "S", "key": "S"}
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["TimeToLiveSpecification"] == {"AttributeName": "gone", "Enabled": True}
    assert table["DeletionProtectionEnabled"] is retain
    (resource,) = [r for r in made.resources.values() if r["Type"] == "AWS::DynamoDB::Table"]
    assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == ("Retain" if retain else "Delete")
    assert variables(made, "crds")["CALDP_CRDS_RECORDS"] == f"dynamodb:{table['TableName']}"


def test_functions_are_what_their_work_asks_for(crds: Template) -> None:
    (layer,) = crds.all("Lambda::LayerVersion")
    for name, function in functions(crds).items():
        assert (function["Runtime"], function["Handler"]) == (f"python{packaging.PYTHON}", "handler.handler")
        assert function["Layers"] == [{"Ref": layer}]
        assert function["TracingConfig"] == {"Mode": "Active"}
        assert function["MemorySize"] <= 3008, "a new account has no more"
        assert function["ReservedConcurrentExecutions"] == FUNCTIONS[name].most
        group = crds.resources[function["LoggingConfig"]["LogGroup"]["Ref"]]["Properties"]
        assert (group["LogGroupName"], group["RetentionInDays"]) == (f"/caldp/caldp-test/{name}", 90)
    job = functions(crds)["crds-job"]
    assert job["Timeout"] == 900
    assert crds.text(job["DeadLetterConfig"]["TargetArn"]).endswith(":caldp-test-crds-dead")
    assert job["EphemeralStorage"]["Size"] << 20 > 4 * int(variables(crds, "crds")["CALDP_CRDS_LARGEST_UPLOAD"])


def test_where_concurrency_is_not_reserved_it_is_not(synthesize: Synthesize) -> None:
    made = synthesize(changed(infra={"crds_server": True}))
    assert not [f for f in functions(made).values() if "ReservedConcurrentExecutions" in f]


def test_functions_find_their_settings(crds: Template) -> None:
    for name in FUNCTIONS:
        found = from_environment(variables(crds, name))
        assert found.store == variables(crds, name)["CALDP_CRDS_STORE"]
        assert found.jobs == "lambda:caldp-test-crds-job" and found.inline == INLINE
        assert found.campaigns == f"s3://{crds.text({'Ref': outputs(crds)})}"
        # Jobs are processes: they find what the layer has, and the SDK of the runtime.
        assert variables(crds, name)["PYTHONPATH"].split(":") == ["/var/task", "/opt/python", "/var/runtime"]
        assert sum(len(k) + len(v) for k, v in variables(crds, name).items()) <= 4096
    assert "CALDP_CRDS_URL" not in variables(crds, "crds"), "its own address would be a circle"
    assert variables(crds, "crds-job")["CALDP_CRDS_URL"].endswith(f".lambda-url.{REGION}.on.aws")


def outputs(made: Template) -> str:
    return next(name for name in made.all("S3::Bucket") if name.startswith("StorageOutputs"))


def test_its_files_are_where_jobs_look_for_references(crds: Template, synthesize: Synthesize) -> None:
    def both(made: Template) -> set[str]:
        definitions = made.all("Batch::JobDefinition").values()
        told = [each for d in definitions for each in d["ContainerProperties"]["Environment"]]
        jobs = {made.text(each["Value"]) for each in told if each["Name"] == "CRDSBUCKET"}
        return jobs | {variables(made, name)["CALDP_CRDS_STORE"] for name in FUNCTIONS}

    assert len(both(crds)) == 1
    assert both(synthesize(changed(infra={"crds_server": True, "crds": "s3://rules/cache"}))) == {"s3://rules/cache"}


# ---- who may reach it


def test_anybody_reaches_it_only_where_settings_say_so(crds: Template, synthesize: Synthesize) -> None:
    assert crds.one("Lambda::Url")["AuthType"] == "NONE"
    public = [p for p in crds.all("Lambda::Permission").values() if p["Principal"] == "*"]
    # Both are needed; and by its address alone.
    assert {p["Action"]: (p.get("FunctionUrlAuthType"), p.get("InvokedViaFunctionUrl")) for p in public} == {
        "lambda:InvokeFunctionUrl": ("NONE", None),
        "lambda:InvokeFunction": (None, True),
    }
    server = next(k for k, p in crds.all("Lambda::Function").items() if p["FunctionName"] == "caldp-test-crds")
    assert all(p["FunctionName"]["Fn::GetAtt"][0] == server for p in public)
    private = synthesize(changed(infra={"crds_server": True}))
    assert private.one("Lambda::Url")["AuthType"] == "AWS_IAM"
    assert not [p for p in private.all("Lambda::Permission").values() if p["Principal"] == "*"]


def test_another_name_is_told_to_both(synthesize: Synthesize) -> None:
    made = synthesize(changed(infra={"crds_server": True, "crds_url": "https://crds.example.org"}))
    assert {variables(made, name)["CALDP_CRDS_URL"] for name in FUNCTIONS} == {"https://crds.example.org"}


@pytest.mark.parametrize(
    ("infra", "said"),
    [
        ({"crds_public": True}, "set infra.crds_server"),
        ({"crds_url": "https://x.org"}, "set infra.crds_server"),
        ({"crds_server": True, "crds_url": "http://x.org"}, "infra.crds_url: https://host"),
        ({"crds_server": True, "crds_url": "https://x.org/hst"}, "infra.crds_url: https://host"),
        ({"crds_server": True, "crds_tend_minutes": 0}, "infra.crds_tend_minutes is 1 or more"),
        ({"crds_server": "yes"}, "infra.crds_server = 'yes' is no bool"),
    ],
)
def test_mistakes_are_named(infra: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed(infra=infra)


# ---- clocks and alarms


@pytest.mark.parametrize(("minutes", "rate"), [(1, "rate(1 minute)"), (10, "rate(10 minutes)")])
def test_clocks_ask_for_tasks_that_the_handler_knows(minutes: int, rate: str, synthesize: Synthesize) -> None:
    made = synthesize(changed(infra={"crds_server": True, "crds_tend_minutes": minutes}))
    found = {}
    for schedule in made.all("Scheduler::Schedule").values():
        target = schedule["Target"]
        assert made.text(target["Arn"]) == f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:caldp-test-crds-job"
        assert made.text(target["DeadLetterConfig"]["Arn"]).endswith("-crds-dead")
        found[json.loads(target["Input"])["task"]] = schedule["ScheduleExpression"]
    assert found == {"tend": rate, "check": "cron(0 6 * * ? *)"}
    handler = (packaging.REPOSITORY / "lambdas" / "crds_job" / "handler.py").read_text()
    assert all(f'"{task}": clock.{task}' in handler for task in found)


def test_alarms_ring_where_the_others_do(crds: Template) -> None:
    alarms = {p["AlarmName"].removeprefix("caldp-test-"): p for p in crds.all("CloudWatch::Alarm").values()}
    ours = {name for name in alarms if name.startswith("crds")}
    assert ours == {"crds-errors", "crds-broken", "crds-throttled", "crds-job-errors", "crds-dead"}
    topic = next(iter(crds.all("SNS::Topic")))
    assert all(alarms[name]["AlarmActions"] == [{"Ref": topic}] for name in ours)


def test_what_costs_money_carries_its_tags(crds: Template) -> None:
    for kind in ("DynamoDB::Table", "Lambda::Function", "SQS::Queue", "Logs::LogGroup"):
        for properties in crds.all(kind).values():
            tags = {tag["Key"]: tag["Value"] for tag in properties["Tags"]}
            assert (tags["project"], tags["environment"]) == ("caldp", "caldp-test")


# ---- rights


def test_roles_may_do_what_the_snapshot_says(crds: Template) -> None:
    statements = snapshot.of_crds(crds.statements())
    expected = yaml.safe_load(snapshot.CRDS_FILE.read_text())
    assert statements.keys() == expected.keys()
    for role, found in statements.items():
        assert found == expected[role], f"{role}: read, then python -m tests.infra.snapshot"
    assert snapshot.CRDS_FILE.read_text() == snapshot.text(statements)


@pytest.mark.parametrize("role", FUNCTIONS)
def test_what_a_server_does_it_may(role: str, crds: Template) -> None:
    job = role == "crds-job"
    for observatory in ("hst", "jwst"):
        mapping, reference = mapping_key("x.rmap", observatory), reference_key("x.fits", observatory)
        server = f"server/{observatory}/uploads/0123"
        written = [mapping, server, f"server/{observatory}/snapshots/1.json.gz", f"archive/{observatory}/s.cat"]
        for key in written:
            assert crds.allows(role, "s3:PutObject", f"<Crds>/{key}"), key
        assert crds.allows(role, "s3:PutObject", f"<Crds>/{reference}") == job
        for key in (mapping, reference, server):
            assert crds.allows(role, "s3:GetObject", f"<Crds>/{key}"), key
            assert crds.allows(role, "s3:DeleteObject", f"<Crds>/{key}"), key
        for key in (f"server/{observatory}/snapshots/1.json.gz", f"server/{observatory}/submissions/s/rows-1.json.gz"):
            assert not crds.allows(role, "s3:DeleteObject", f"<Crds>/{key}"), key
        assert not crds.allows(role, "s3:PutObject", f"<Crds>/datasets/{observatory}/cos/x.parquet")
    for key in (crds_layout.POINTER, crds_layout.SERVER_CONFIG, crds_layout.rules_key("hst_0730.pmap")):
        assert crds.allows(role, "s3:PutObject", f"<Crds>/{key}"), key
        assert not crds.allows(role, "s3:DeleteObject", f"<Crds>/{key}"), key
    (table,) = [s for s in crds.statements()[role] if s["for"] == "Records"]
    assert table["actions"] == ["dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem"]
    assert crds.allows(role, "lambda:InvokeFunction", JOB)
    assert not crds.allows(role, "lambda:InvokeFunction", "lambda:::function:caldp-test-on-list")


def test_a_campaign_is_begun_by_the_list_that_is_dropped_and_nothing_else_is_written(crds: Template) -> None:
    key = f"{campaigns._PLACED}/{campaigns.name_of('hst_0729.pmap', 'hst_0730.pmap')}.json"
    assert crds.allows("crds", "s3:PutObject", f"<Outputs>/{key}")
    assert not crds.allows("crds-job", "s3:PutObject", f"<Outputs>/{key}")
    for other in ("b/messages/status/ldfd01010.json", "b/control/plan.json", "data/x.fits"):
        for role in FUNCTIONS:
            for action in ("s3:PutObject", "s3:GetObject", "s3:DeleteObject"):
                assert not crds.allows(role, action, f"<Outputs>/{other}"), (role, action, other)


def test_with_a_cache_that_is_there_nothing_beside_it_is_touched(synthesize: Synthesize) -> None:
    given = {"crds_server": True, "crds": "s3://rules/cache", "prefix": "hst/batches"}
    made = synthesize(changed(infra=given))
    for role in FUNCTIONS:
        for statement in made.statements()[role]:
            for resource in statement["resources"]:
                if "rules" in resource and statement["for"] != "List":
                    assert resource.startswith("s3:::rules/cache/"), (role, resource)
                if resource.startswith("<Outputs>"):
                    assert resource.startswith("<Outputs>/hst/batches/"), (role, resource)
        assert made.allows(role, "s3:PutObject", "s3:::rules/cache/mappings/hst/x.rmap")
    assert variables(made, "crds")["CALDP_CRDS_CAMPAIGNS"].endswith("/hst/batches")


# ---- checks


def test_each_finding_of_cdk_nag_has_a_reason_and_cfn_lint_has_none(tmp_path: Path) -> None:
    import aws_cdk as cdk
    from cdk_nag import AwsSolutionsChecks

    from infra.stack import FLAGS, CaldpStack

    code = tmp_path / "code"
    code.mkdir()
    app = cdk.App(outdir=str(tmp_path / "out"), context=FLAGS, builtin_cloud_formation_validation=False)
    CaldpStack(app, WITH_CRDS, packages(code))
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks())
    app.synth()
    made = tmp_path / "out" / "caldp-test.template.json"
    lint = Path(sys.executable).parent / "cfn-lint"
    done = subprocess.run(
        [lint, "-i", "W3005", "--", made],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


# ---- packages


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages that nobody had to fetch."""
    stub = tmp_path / "layer"
    (stub / "python" / "crds").mkdir(parents=True)
    (stub / "python" / "crds" / "__init__.py").write_text("")
    monkeypatch.setattr(packaging, "_packages", lambda out, architecture: stub / "python")
    monkeypatch.setattr(packaging, "_layer", lambda out, architecture: stub)
    return stub


def test_a_package_has_the_server_its_pages_and_forms_and_the_program_of_jobs(layer: Path, tmp_path: Path) -> None:
    found = packaging.build(tmp_path / "out", {}, crds=True)
    assert found[packaging.CRDS_LAYER] == layer
    for name in packaging.CRDS_HANDLERS:
        names = {path.relative_to(found[name]).as_posix() for path in found[name].rglob("*") if path.is_file()}
        assert {"handler.py", "caldp/crdserver/job.py"} <= names
        assert {"caldp/crdserver/dynamo.py", "caldp/s3_store.py", "caldp/data/crds_form_hst.yml"} <= names
        assert {"caldp/templates/crds/base.html.j2", "caldp/templates/crds/style.css"} <= names
        assert not {"caldp/calibrate.py", "caldp/crdserver/serving.py", "crds/__init__.py"} & names
        assert "caldp/crdserver/__pycache__/records.cpython-311.pyc" in names or sys.version_info[:2] != (3, 11)
        # The compiled form names the place where it will be, so that it is the same wherever it was made.
        for path in found[name].rglob("*.pyc"):
            assert str(tmp_path).encode() not in path.read_bytes()
    assert "caldp/crdserver/app.py" in {p.relative_to(found["crds"]).as_posix() for p in found["crds"].rglob("*.py")}


def test_without_a_crds_none_is_packed(layer: Path, tmp_path: Path) -> None:
    assert set(packaging.build(tmp_path / "out", {})) == set(packaging.HANDLERS)


def test_what_has_no_room_beside_the_layer_is_refused(
    layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layer / "python" / "large").write_bytes(b"x" * 100_000)
    monkeypatch.setattr(packaging, "LARGEST", 200_000)
    monkeypatch.setattr(packaging, "_package", lambda name, folder, *_: folder)
    with pytest.raises(PackagingError, match="crds has .* MiB; AWS Lambda takes"):
        packaging.build(tmp_path / "out", {}, crds=True)


def test_versions_are_exact_and_what_is_imported_is_among_them() -> None:
    lines = [line for line in packaging.CRDS_REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(names) and len(set(names)) == len(names)
    light = packaging.REQUIREMENTS.read_text().split("\n")
    assert all(line in lines for line in light if "==" in line)


@pytest.mark.slow
def test_the_real_packages_fit_and_evaluate_rules_of_both_observatories(tmp_path: Path, shared_data: Path) -> None:
    found = packaging.build(tmp_path / "out", {}, crds=True)
    layer = found[packaging.CRDS_LAYER]
    for name in packaging.CRDS_HANDLERS:
        size = packaging.size(layer) + packaging.size(found[name])
        print(f"{name}: {size / 2**20:.1f} MiB unpacked with its layer")
        assert size < packaging.LARGEST
    code = """
import sys
from pathlib import Path
from caldp.crdserver import stock
from caldp.crdserver.settings import Settings
import crds.certify, crds.newcontext, crds.refactoring.refactor, stdatamodels.jwst.datamodels
import pyarrow.parquet, pyarrow.compute
import mangum, caldp.crdserver.job
if Path("caldp/crdserver/app.py").exists():
    import caldp.crdserver.app
header = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2017-03-01", "TIME-OBS": "00:00:00"}
print(stock.Stock(Path(sys.argv[1]), "hst").best_references("hst_0729.pmap", header, ["deadtab"]))
header = {"META.INSTRUMENT.NAME": "NIRCAM", "META.INSTRUMENT.DETECTOR": "NRCA1", "META.EXPOSURE.TYPE": "NRC_IMAGE",
    "META.EXPOSURE.READPATT": "RAPID", "META.SUBARRAY.NAME": "FULL", "META.OBSERVATION.DATE": "2018-01-01",
    "META.OBSERVATION.TIME": "00:00:00"}
pmap = sorted(path.name for path in (Path(sys.argv[2]) / "mappings" / "jwst").glob("*.pmap"))[-1]
print(stock.Stock(Path(sys.argv[2]), "jwst").best_references(pmap, header, ["readnoise"]))
"""
    data = [str(shared_data / name) for name in ("crds-contexts", "crds-contexts-jwst")]
    for name in packaging.CRDS_HANDLERS:
        done = subprocess.run(
            [sys.executable, "-S", "-B", "-c", code, *data],
            cwd=found[name],
            env={"PYTHONPATH": f"{found[name]}:{layer / 'python'}:{runtime(tmp_path)}", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "deadtab" in done.stdout and "jwst_nircam_readnoise" in done.stdout
    _works(found["crds_job"], layer, tmp_path)


def _works(package: Path, layer: Path, tmp_path: Path) -> None:
    """Have the packed function work on a job, whose process has nothing else either."""
    place = tmp_path / "place"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -B "$@"\n')
    python.chmod(0o755)
    code = """
import sys
sys.executable = sys.argv[1]
import handler
from caldp.crdserver.jobs import Jobs
from caldp.crdserver.site import Site
site = Site(handler.settings, "hst")
Jobs(site).add("j", "tend", {})
class Context:
    def get_remaining_time_in_millis(self): return 60000
handler.handler({"observatory": "hst", "job": "j"}, Context())
print(Jobs(site).get("j").state)
"""
    environment = {
        "PYTHONPATH": f"{package}:{layer / 'python'}:{runtime(tmp_path)}",
        "HOME": str(tmp_path),
        "CALDP_CRDS_STORE": f"file:{place}",
        "CALDP_CRDS_RECORDS": f"sqlite:{place / 'records'}",
        "CALDP_CRDS_WORK": str(tmp_path / "work"),
    }
    done = subprocess.run(
        [python, "-c", code, python],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done", done.stdout + done.stderr


def runtime(tmp_path: Path) -> Path:
    """Return a folder with what the runtime of AWS Lambda has, and nothing else that is installed here."""
    import boto3

    folder = tmp_path / "runtime"
    folder.mkdir(exist_ok=True)
    for name in ("boto3", "botocore", "s3transfer", "urllib3", "dateutil", "six.py"):
        there = Path(boto3.__file__).parents[1] / name
        if not (folder / name).exists():
            (folder / name).symlink_to(there)
    return folder
