"""The stand-in for AWS Batch with containers instead of processes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.aws import Aws, BatchPlace, make_batch_place
from tests.fakes.aws_batch.engine import OUT_OF_MEMORY, TIMED_OUT

pytestmark = pytest.mark.engine


@pytest.fixture
def place(aws: Aws, engine: Any) -> BatchPlace:
    aws.switch(runner="docker", docker_host=os.environ.get("DOCKER_HOST", ""), second=0.02)
    return make_batch_place(aws)


def run(place: BatchPlace, script: str, image: str = "", **properties: Any) -> dict[str, Any]:
    image = image or os.environ.get("CALDP_TEST_BASE_IMAGE", "caldp-test/debian:bookworm")
    return place.run(script, containerProperties={"image": image}, **properties)


def test_a_job_is_a_container(place: BatchPlace, engine: Any) -> None:
    done = run(place, 'echo "$AWS_BATCH_JOB_ATTEMPT $AWS_ENDPOINT_URL"; exit 33', retryStrategy={"attempts": 2})
    assert [each["container"]["exitCode"] for each in done["attempts"]] == [33, 33]
    assert place.aws.log(done["container"]["logStreamName"]) == [f"2 {place.aws.endpoint}"]
    assert [each.name for each in engine.containers.list(all=True) if each.name.startswith("caldp-batch-")] == []


def test_the_kernel_ends_what_takes_too_much(place: BatchPlace) -> None:
    allocate = "python3 -c 'x = bytearray(200 << 20)'"
    done = run(place, f"exec {allocate}", memory=64)
    assert (done["container"]["exitCode"], done["container"]["reason"]) == (137, OUT_OF_MEMORY)
    done = run(place, f"{allocate}; exit 24", memory=64)
    assert (done["container"]["exitCode"], done["container"]["reason"]) == (24, OUT_OF_MEMORY)


def test_a_container_is_ended(place: BatchPlace) -> None:
    done = run(place, "sleep 60", timeout={"attemptDurationSeconds": 60})
    assert (done["container"]["exitCode"], done["statusReason"]) == (137, TIMED_OUT)


def test_an_image_that_is_not_there(place: BatchPlace) -> None:
    done = run(place, "true", image="caldp-test/none:none")
    assert done["statusReason"] == "Task failed to start"
    assert done["container"]["reason"].startswith("CannotPullContainerError: ")
    done = run(place, "no-such-program")
    assert done["container"]["exitCode"] == 127  # of the shell
