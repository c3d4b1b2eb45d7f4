"""The stack of each environment, synthesized once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from infra import packaging, settings
from infra.settings import Environment
from tests.infra.template import Template

Synthesize = Callable[[Environment], Template]


def packages(folder: Path) -> dict[str, Path]:
    """Make packages with nothing in them."""
    (folder / "handler.py").write_text("def handler(event, context): ...\n")
    return dict.fromkeys([*packaging.HANDLERS, *packaging.CRDS_HANDLERS, packaging.CRDS_LAYER], folder)


@pytest.fixture(scope="session")
def synthesize(tmp_path_factory: pytest.TempPathFactory) -> Synthesize:
    """Synthesize an environment, without the checks that take time."""
    # Here: it takes seconds, and most tests want none of it.
    import aws_cdk as cdk

    from infra.stack import FLAGS, CaldpStack

    stub = packages(tmp_path_factory.mktemp("packages"))

    def synthesized(environment: Environment) -> Template:
        out = tmp_path_factory.mktemp("cdk")
        app = cdk.App(
            outdir=str(out),
            context=FLAGS,
            builtin_cloud_formation_validation=False,
            analytics_reporting=False,
            tree_metadata=False,
        )
        CaldpStack(app, environment, stub)
        app.synth()
        return Template(json.loads((out / f"{environment.infra.name}.template.json").read_text()))

    return synthesized


@pytest.fixture(scope="session")
def stack(synthesize: Synthesize) -> Callable[[str], Template]:
    """Return the template of an environment by name."""
    return lru_cache(lambda name: synthesize(settings.load(name)))


@pytest.fixture(scope="session")
def dev(stack: Callable[[str], Template]) -> Template:
    """The template of dev."""
    return stack("dev")


@pytest.fixture(scope="session")
def ops(stack: Callable[[str], Template]) -> Template:
    """The template of ops."""
    return stack("ops")


def changed(**tables: Any) -> Environment:
    """Return settings that are short and their own."""
    infra = {"name": "caldp-test", "image": "caldp-test:latest", **tables.pop("infra", {})}
    return settings.from_json({"infra": infra, **tables})


#: An environment with a CRDS that anybody may reach.
WITH_CRDS = changed(infra={"crds_server": True, "crds_public": True, "reserve_concurrency": True})
