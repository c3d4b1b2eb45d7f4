"""Fixtures for the tests of all parts together, on the stand-in for AWS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.aws import Aws, aws, aws_server, batch_place
from tests.e2e.deployed import Deployed, synthesized

__all__ = ["aws", "aws_server", "batch_place", "deployed"]


@pytest.fixture(scope="module")
def deployed(aws_server: Aws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The stack of CALDP, deployed once for a module; each test has its own batches."""
    aws_server.reset()
    yield Deployed(aws_server, synthesized(tmp_path_factory.mktemp("app")), tmp_path_factory.mktemp("desk"))
    aws_server.reset()
