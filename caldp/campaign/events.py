"""What AWS Batch says when a job has ended, in the words of ``campaign.failures``.

Fields that nobody knows are ignored, and none has to be there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from caldp.campaign.failures import Ended
from caldp.dataset import Dataset
from caldp.errors import UsageError

#: Says of a job queue and a job definition, by name, whether jobs of theirs are ours.
Ours = Callable[[str, str], bool]

_KIND = "Batch Job State Change"

#: ``""``: in events that somebody has cut down to what mattered; they were about jobs that had ended.
_ENDED = ("SUCCEEDED", "FAILED", "")

_MIB = 2**20


def among(names: Collection[str]) -> Ours:
    """Return what takes jobs for ours whose queue and definition are both among some names."""
    return lambda queue, definition: queue in names and definition in names


def ended(event: object, ours: Ours) -> Ended | None:
    """Read an event.

    Parameters
    ----------
    event : mapping
        As EventBridge delivers it, the same as the body of an SQS message, or only its ``detail``, which is also what
        DescribeJobs says of a job.
    ours : callable
        Says which queues and job definitions are ours; ``among`` makes one of a list.

    Returns
    -------
    Ended or None
        None when no job of a dataset has ended; a job that is not ours says so in ``ours``.  A child of an array has no
        dataset, but ``manifest`` and ``index``.

    Notes
    -----
    What the container was given is believed before the parameters of the job, for these may be only what its definition
    has as a default.  A job that nobody gave a number is taken for the first attempt: it then cannot end a later one.
    """
    detail = _detail(event)
    if detail is None or _text(detail, "status") not in _ENDED:
        return None
    array = _mapping(detail, "arrayProperties")
    parent, _, child = _text(detail, "jobId").partition(":")
    index = _number(array.get("index")) if "index" in array else _number(child)
    if index is None and _number(array.get("size")):
        return None  # all children of an array together
    tries = detail.get("attempts")
    tries = [each for each in tries if isinstance(each, Mapping)] if isinstance(tries, list) else []
    last = tries[-1] if tries else {}
    # Of a job that was started again the container is the last one; where there is none, its last try knows more.
    container = {**_mapping(last, "container"), **_mapping(detail, "container")}
    parameters = _mapping(detail, "parameters")
    environment = _environment(container)
    output, dataset, manifest = _asked(container, parameters)
    queue = PurePosixPath(_text(detail, "jobQueue")).name
    definition = PurePosixPath(_text(detail, "jobDefinition")).name.partition(":")[0]
    return Ended(
        dataset=dataset,
        attempt=_number(environment.get("CALDP_ATTEMPT")) or _number(parameters.get("attempt")) or 1,
        succeeded=_text(detail, "status") == "SUCCEEDED",
        exit_code=_number(container.get("exitCode")),
        reason=_text(container, "reason"),
        status_reason=_text(detail, "statusReason") or _text(last, "statusReason"),
        job=_text(detail, "jobId"),
        retry=len(tries) or 1,
        ours=bool(dataset or manifest) and ours(queue, definition),
        memory_limit=_memory(container) * _MIB,
        log=_text(container, "logStreamName"),
        manifest=manifest,
        index=index,
        time_limit=_number(_mapping(detail, "timeout").get("attemptDurationSeconds")) or 0,
        output=output,
    )


def _detail(event: object) -> Mapping[str, Any] | None:
    """Unwrap an event."""
    if not isinstance(event, Mapping):
        return None
    if "body" in event:
        try:
            return _detail(json.loads(event["body"]))
        except (ValueError, TypeError, RecursionError):
            return None
    if "detail" in event:
        detail = event["detail"]
        return detail if isinstance(detail, Mapping) and event.get("detail-type", _KIND) == _KIND else None
    return event if "jobId" in event or "jobName" in event else None


def _asked(container: Mapping[str, Any], parameters: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return where the job was to write, its dataset, and the URI of its manifest; one of these is empty, or both."""
    command = container.get("command")
    words = [_resolved(word, parameters) for word in command] if isinstance(command, list) else []
    programs = [PurePosixPath(word).name for word in words]
    words += [""] * 4
    output, name = "", ""
    if "caldp-process-aws" in programs:
        place = programs.index("caldp-process-aws")
        output, name = words[place + 1 : place + 3]
    elif "caldp-process" in programs:
        place = programs.index("caldp-process")
        name, _, output = words[place + 1 : place + 4]
    output = output or _text(parameters, "s3_output_path")
    if not name:
        manifest = _text(parameters, "manifest")
        name = f"@{manifest}" if manifest else _text(parameters, "dataset")
    return (output, "", name[1:]) if name.startswith("@") else (output, _dataset(name), "")


def _resolved(word: object, parameters: Mapping[str, Any]) -> str:
    text = word if isinstance(word, str) else ""
    return _text(parameters, text.removeprefix("Ref::")) if text.startswith("Ref::") else text


def _dataset(name: str) -> str:
    """Return the name of a dataset, or nothing if it is none: it becomes part of keys."""
    try:
        return Dataset.parse(name).name
    except UsageError:
        return ""


def _environment(container: Mapping[str, Any]) -> dict[str, object]:
    pairs = container.get("environment")
    pairs = [pair for pair in pairs if isinstance(pair, Mapping)] if isinstance(pairs, list) else []
    return {_text(pair, "name"): pair.get("value") for pair in pairs}


def _memory(container: Mapping[str, Any]) -> int:
    """Return what the container was given, MiB, or 0."""
    wanted = container.get("resourceRequirements")
    for each in wanted if isinstance(wanted, list) else []:
        if isinstance(each, Mapping) and each.get("type") == "MEMORY":
            return _number(each.get("value")) or 0
    return _number(container.get("memory")) or 0


def _mapping(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    """Return a whole number that is not negative, as numbers and as texts have it, else None."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return value if type(value) is int and value >= 0 else None
