"""The four types of CloudFormation that make up AWS Batch, in the shape that CDK writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from tests.fakes.aws_batch.api import Api

Created = tuple[str, dict[str, str]]

#: Below these, keys are the user's own.
_MAPS = ("Parameters", "Tags", "Options", "Labels", "ShareDistribution")


def requested(properties: Any, key: str = "") -> Any:
    """Turn properties into the request that says the same: names begin with a small letter."""
    if isinstance(properties, Mapping):
        small = key not in _MAPS
        return {
            (name[:1].lower() + name[1:] if small else name): requested(value, name)
            for name, value in properties.items()
        }
    if isinstance(properties, list):
        # Of these, the list is the user's and the entries are not.
        return [requested(value) for value in properties]
    return properties


def handlers(api: Api) -> dict[str, dict[str, Callable[..., Any]]]:
    """Return what ministack is to call for each type: ``create``, ``update`` and ``delete``."""

    def name(properties: Mapping[str, Any], key: str, stack: str, logical: str) -> str:
        suffix = hashlib.sha256(f"{stack}:{logical}".encode()).hexdigest()[:16]
        return str(properties.get(key) or f"{logical[:100]}-{suffix}")

    def compute(logical: str, properties: dict[str, Any], stack: str) -> Created:
        request = requested(properties)
        request["computeEnvironmentName"] = name(properties, "ComputeEnvironmentName", stack, logical)
        arn = api.create_compute_environment(request)["computeEnvironmentArn"]
        return arn, {"ComputeEnvironmentArn": arn}

    def change_compute(physical: str, old: dict[str, Any], new: dict[str, Any], stack: str) -> Created:
        api.update_compute_environment({**requested(new), "computeEnvironment": physical})
        return physical, {"ComputeEnvironmentArn": physical}

    def delete_compute(physical: str, properties: dict[str, Any]) -> None:
        if physical in api.engine.compute:
            api.update_compute_environment({"computeEnvironment": physical, "state": "DISABLED"})
            api.delete_compute_environment({"computeEnvironment": physical})

    def queue(logical: str, properties: dict[str, Any], stack: str) -> Created:
        request = {**requested(properties), "jobQueueName": name(properties, "JobQueueName", stack, logical)}
        arn = api.create_job_queue(request)["jobQueueArn"]
        return arn, {"JobQueueArn": arn}

    def change_queue(physical: str, old: dict[str, Any], new: dict[str, Any], stack: str) -> Created:
        api.update_job_queue({**requested(new), "jobQueue": physical})
        return physical, {"JobQueueArn": physical}

    def delete_queue(physical: str, properties: dict[str, Any]) -> None:
        if physical in api.engine.queues:
            api.update_job_queue({"jobQueue": physical, "state": "DISABLED"})
            api.delete_job_queue({"jobQueue": physical})

    def policy(logical: str, properties: dict[str, Any], stack: str) -> Created:
        request = {**requested(properties), "name": name(properties, "Name", stack, logical)}
        arn = api.create_scheduling_policy(request)["arn"]
        return arn, {"Arn": arn}

    def change_policy(physical: str, old: dict[str, Any], new: dict[str, Any], stack: str) -> Created:
        api.update_scheduling_policy({**requested(new), "arn": physical})
        return physical, {"Arn": physical}

    def delete_policy(physical: str, properties: dict[str, Any]) -> None:
        if physical in api.engine.policies:
            api.delete_scheduling_policy({"arn": physical})

    def definition(logical: str, properties: dict[str, Any], stack: str) -> Created:
        request = {**requested(properties), "jobDefinitionName": name(properties, "JobDefinitionName", stack, logical)}
        arn = api.register_job_definition(request)["jobDefinitionArn"]
        return arn, {"JobDefinitionArn": arn}

    def change_definition(physical: str, old: dict[str, Any], new: dict[str, Any], stack: str) -> Created:
        """A change is a new revision; the old one is taken out of service afterwards, as anything replaced."""
        own = physical.rpartition("/")[2].partition(":")[0]
        return definition("", {**new, "JobDefinitionName": new.get("JobDefinitionName") or own}, stack)

    def delete_definition(physical: str, properties: dict[str, Any]) -> None:
        revisions = api.engine.definitions.get(physical.rpartition("/")[2].partition(":")[0], [])
        if any(each["jobDefinitionArn"] == physical and each["status"] == "ACTIVE" for each in revisions):
            api.deregister_job_definition({"jobDefinition": physical})

    return {
        "AWS::Batch::ComputeEnvironment": {"create": compute, "update": change_compute, "delete": delete_compute},
        "AWS::Batch::JobQueue": {"create": queue, "update": change_queue, "delete": delete_queue},
        "AWS::Batch::SchedulingPolicy": {"create": policy, "update": change_policy, "delete": delete_policy},
        "AWS::Batch::JobDefinition": {"create": definition, "update": change_definition, "delete": delete_definition},
    }
