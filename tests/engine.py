"""Fixtures of the tests that use a real Docker engine.

========================== ========================================================================================
``CALDP_TEST_BASE_IMAGE``  image to build on, if not that of ``caldp-image-config``
``CALDP_TEST_IMAGE``       an image of this code, if none is to be built
========================== ========================================================================================

``tests/start-engine`` starts an engine where there is none; with CI set there must be one.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.desk import REPOSITORY, SCRIPTS, Shelf, require

REPO = "caldp-test/caldp"


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """The Docker engine."""
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        require(False, f"no Docker engine (tests/start-engine starts one): {error}")
    yield client
    client.close()


def build_environment(base: Mapping[str, str], tag: str) -> dict[str, str]:
    """Return the environment in which caldp-image-build makes a test's image."""
    given = {"CAL_BASE_IMAGE": os.environ["CALDP_TEST_BASE_IMAGE"]} if "CALDP_TEST_BASE_IMAGE" in os.environ else {}
    network = {"CALDP_DOCKER_NETWORK": os.environ.get("CALDP_DOCKER_NETWORK", "")}
    return {**base, **network, "CALDP_IMAGE_REPO": REPO, "CALDP_IMAGE_TAG": tag, "CALDP_HSTCAL": "none", **given}


def build(context: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Type caldp-image-build in a clone."""
    return subprocess.run([SCRIPTS / "caldp-image-build"], cwd=context, env=env, capture_output=True, text=True)


@dataclass(frozen=True)
class Image:
    """An image of this code.

    Attributes
    ----------
    name : str
        ``repository:tag``.
    env : mapping
        Of a user whose commands run it.
    """

    name: str
    env: Mapping[str, str]


@pytest.fixture(scope="session")
def image(engine: Any, shelf: Shelf, environment: dict[str, str]) -> Image:
    """The image, built once for all tests and workers of a run."""
    env = build_environment(environment, "test")
    name = os.environ.get("CALDP_TEST_IMAGE", "")
    if not name:
        with shelf.once("image") as folder:
            if folder is not None:
                done = build(REPOSITORY, env)
                assert done.returncode == 0, done.stdout[-5000:] + done.stderr
                (folder / "build.log").write_text(done.stdout)
        name = f"{REPO}:test"
    return Image(name, {**env, "CALDP_DOCKER_IMAGE": name})


@pytest.fixture
def unix_sockets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test reach the sockets of this machine, and nothing else.

    A unit test that uses the fake engine overrides ``no_network`` with this.
    """
    connect = socket.socket.connect

    def to_here(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"a unit test connects to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", to_here)
