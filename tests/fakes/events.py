"""Events of AWS Batch: a few that were recorded, and many that are made to look like these."""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

NAME = "j8cb010b0"
OUTPUT = "s3://bucket/batch-22"
QUEUE, DEFINITION = "caldp-2g", "caldp-2g-6h"

#: What AWS Batch says of every container that ends.
NO_REASON = "Essential container in task exited"

_ARN = "arn:aws:batch:us-east-1:xxxxxxxxxxxx"


def recorded(shared_data: Path, name: str) -> dict[str, Any]:
    """Read an event that AWS Batch once sent: ``timeout-error.yaml``."""
    path = shared_data / "batch-events" / f"batch-event-{name}"
    # Those called .json are Python.
    read: Callable[[str], Any] = ast.literal_eval if path.suffix == ".json" else yaml.safe_load
    content = read(path.read_text())
    assert isinstance(content, dict)
    return content


def failed_10k(shared_data: Path) -> list[dict[str, Any]]:
    """Read what AWS Batch said of the jobs that failed in a reprocessing of ten thousand datasets."""
    with gzip.open(shared_data / "dataset-lists" / "failed-10k-jobs.json.gz") as stream:
        jobs: list[dict[str, Any]] = json.load(stream)["jobSummaryList"]
    return jobs


def event(
    exit_code: int | None = None,
    reason: str = "",
    status_reason: str = NO_REASON,
    *,
    status: str = "FAILED",
    dataset: str = NAME,
    attempt: int = 1,
    job: str = "job-1",
    queue: str = QUEUE,
    tries: int = 1,
    memory: int = 1792,
    **more: Any,
) -> dict[str, Any]:
    """Make an event, as EventBridge delivers it, of a job as we submit them.

    Parameters
    ----------
    exit_code, reason, status_reason
        How it ended; what is None or empty is left out.
    status : str, optional
        Of the job.
    dataset, attempt, job, queue
        Which.
    tries : int, optional
        How often AWS Batch started it.
    memory : int, optional
        What it was given, MiB.
    **more
        More of the detail.
    """
    container: dict[str, Any] = {
        "command": ["caldp-process-aws", OUTPUT, dataset],
        "environment": [{"name": "CALDP_ATTEMPT", "value": str(attempt)}],
        "logStreamName": f"{DEFINITION}/default/0123456789abcdef",
        "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": str(memory)}],
    }
    container |= {} if exit_code is None else {"exitCode": exit_code}
    container |= {"reason": reason} if reason else {}
    said = {"statusReason": status_reason} if status_reason else {}
    detail = {
        "jobId": job,
        "jobName": "batch-22-a1-2g-6h-001",
        "jobQueue": f"{_ARN}:job-queue/{queue}",
        "jobDefinition": f"{_ARN}:job-definition/{DEFINITION}:7",
        "status": status,
        "container": container,
        "attempts": [{"container": dict(container), **said}] * tries,
        "parameters": {"dataset": dataset, "s3_output_path": OUTPUT, "attempt": str(attempt)},
        "timeout": {"attemptDurationSeconds": 21600},
        "aFieldOfTomorrow": {"of": ["any", "kind"]},
        **said,
        **more,
    }
    return {"version": "0", "source": "aws.batch", "detail-type": "Batch Job State Change", "detail": detail}


def succeeded(**more: Any) -> dict[str, Any]:
    """Return the event of a job that ended well."""
    return event(0, status="SUCCEEDED", **more)


def container_memory(**more: Any) -> dict[str, Any]:
    """Return that of a run which lived on when a program was killed for memory: the exit status is its own."""
    return event(24, "OutOfMemoryError: Container killed due to memory usage", **more)


def docker_timeout(**more: Any) -> dict[str, Any]:
    """Return that of a container which the engine could not start in time."""
    reason = "DockerTimeoutError: Could not transition to started; timed out after waiting 3m0s"
    return event(137, reason, "", **more)


def plain_137(**more: Any) -> dict[str, Any]:
    """Return that of a container which was killed, nobody says why."""
    return event(137, NO_REASON, **more)


def oom_and_timeout(**more: Any) -> dict[str, Any]:
    """Return that of a job which ran out of memory and of time."""
    return event(
        137,
        "OutOfMemoryError: Container killed due to memory usage",
        "Job attempt duration exceeded timeout",
        **more,
    )


def host_lost(**more: Any) -> dict[str, Any]:
    """Return that of a job whose host was taken back."""
    return event(status_reason="Host EC2 (instance i-0abc12de34f567890) terminated.", **more)


def no_image(why: str = "manifest for caldp:v9 not found: manifest unknown", **more: Any) -> dict[str, Any]:
    """Return that of a container whose image is not there."""
    return event(reason=f"CannotPullContainerError: Error response from daemon: {why}", **more)


def no_registry(**more: Any) -> dict[str, Any]:
    """Return that of a container whose image could not be had just then."""
    return no_image("Get https://registry/v2/: net/http: request canceled (Client.Timeout exceeded)", **more)


def no_container(**more: Any) -> dict[str, Any]:
    """Return that of a job of which there is no container at all."""
    made = event(status_reason="", **more)
    for name in ("container", "attempts"):
        del made["detail"][name]
    return made


def foreign(**more: Any) -> dict[str, Any]:
    """Return that of somebody else's job."""
    return event(1, queue="jwst-queue", **more)


def child(index: int, manifest: str, exit_code: int | None = 1, **more: Any) -> dict[str, Any]:
    """Return that of a child of an array; only its parent's parameters tell the attempt."""
    made = event(exit_code, job=f"job-1:{index}", arrayProperties={"index": index}, **more)
    container = made["detail"]["container"]
    container["command"] = ["caldp-process-aws", OUTPUT, f"@{manifest}"]
    del container["environment"]
    made["detail"]["parameters"] |= {"manifest": manifest}
    return made


def parent(**more: Any) -> dict[str, Any]:
    """Return that of an array, when all its children have ended."""
    made = no_container(arrayProperties={"size": 3, "statusSummary": {"FAILED": 1, "SUCCEEDED": 2}}, **more)
    made["detail"]["parameters"]["manifest"] = f"{OUTPUT}/control/manifests/x.jsonl"
    return made


def in_sqs(made: dict[str, Any]) -> dict[str, Any]:
    """Wrap an event as a function receives it from a queue."""
    return {"messageId": "m-1", "body": json.dumps(made), "eventSource": "aws:sqs", "attributes": {}}
