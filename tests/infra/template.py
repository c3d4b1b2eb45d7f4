"""Reading a template: resources by type, references as they will be, and what a role may do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

ACCOUNT, REGION = "111122223333", "ap-southeast-4"

#: CDK adds eight characters to the name of each resource.
_HASH = re.compile(r"[0-9A-F]{8}$")


class Template:
    """A template of CloudFormation.

    Attributes
    ----------
    record : mapping
        As it is.
    resources : mapping
        By logical id.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.resources: Mapping[str, Any] = record["Resources"]

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the properties of all resources of a type, without ``AWS::``, by logical id."""
        return {k: r.get("Properties", {}) for k, r in self.resources.items() if r["Type"] == f"AWS::{kind}"}

    def one(self, kind: str, **properties: Any) -> dict[str, Any]:
        """Return the properties of the one resource that has these."""
        found = [p for p in self.all(kind).values() if all(p.get(k) == v for k, v in properties.items())]
        assert len(found) == 1, f"{kind} {properties}: {len(found)}"
        return found[0]

    def text(self, value: Any) -> str:
        """Return a value as it will be: names where they are given, else as long as they can be."""
        match value:
            case str():
                return value
            case {"Ref": "AWS::Partition"}:
                return "aws"
            case {"Ref": "AWS::Region"}:
                return REGION
            case {"Ref": "AWS::AccountId"}:
                return ACCOUNT
            case {"Ref": "AWS::URLSuffix"}:
                return "amazonaws.com"
            case {"Ref": name}:
                return self._reference(name)
            case {"Fn::GetAtt": [name, "Arn" | "JobQueueArn" | "ComputeEnvironmentArn"]}:
                return self._arn(name)
            case {"Fn::GetAtt": [name, "FunctionUrl"]}:
                return f"https://{name.lower()}.lambda-url.{REGION}.on.aws/"
            case {"Fn::GetAtt": [name, attribute]}:
                return f"<{name}.{attribute}>"
            case {"Fn::Join": [separator, parts]}:
                return str(separator).join(map(self.text, parts))
            case {"Fn::Select": [number, {"Fn::Split": [separator, text]}]}:
                return self.text(text).split(separator)[int(number)]
        raise AssertionError(f"what is {value!r}?")

    def _reference(self, name: str) -> str:
        properties = self.resources[name].get("Properties", {})
        match self.resources[name]["Type"]:
            case "AWS::SQS::Queue":
                return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{properties['QueueName']}"
            case "AWS::S3::Bucket":
                return str(properties.get("BucketName", self.short(name).lower()[:30].ljust(63, "x")))
            case "AWS::ECR::Repository":
                return str(properties["RepositoryName"])
            case "AWS::Lambda::Function":
                return str(properties["FunctionName"])
            case "AWS::Logs::LogGroup":
                return str(properties["LogGroupName"])
            case "AWS::SNS::Topic":
                return self._arn(name)
        return f"<{name}>"

    def _arn(self, name: str) -> str:
        kind, properties = self.resources[name]["Type"], self.resources[name].get("Properties", {})
        match kind:
            case "AWS::S3::Bucket":
                return f"arn:aws:s3:::{self._reference(name)}"
            case "AWS::SQS::Queue":
                return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{properties['QueueName']}"
            case "AWS::SNS::Topic":
                return f"arn:aws:sns:{REGION}:{ACCOUNT}:{properties['TopicName']}"
            case "AWS::Batch::JobQueue":
                return f"arn:aws:batch:{REGION}:{ACCOUNT}:job-queue/{properties['JobQueueName']}"
            case "AWS::ECR::Repository":
                return f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{properties['RepositoryName']}"
            case "AWS::Logs::LogGroup":
                return f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{properties['LogGroupName']}:*"
            case "AWS::Lambda::Function":
                return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{properties['FunctionName']}"
        return f"<{name}>"

    @staticmethod
    def short(name: str) -> str:
        """Return a logical id without what CDK adds."""
        return _HASH.sub("", name)

    # ---- rights

    def statements(self) -> dict[str, list[dict[str, Any]]]:
        """Return the statements of each role, by its name, in a form that people can read."""
        found: dict[str, list[dict[str, Any]]] = {}
        for policy in self.all("IAM::Policy").values():
            for role in policy["Roles"]:
                name = self._owner(role["Ref"])
                found.setdefault(name, []).extend(map(self._readable, policy["PolicyDocument"]["Statement"]))
        return {name: sorted(found[name], key=str) for name in sorted(found)}

    def _owner(self, role: str) -> str:
        """Return whose a role is: the name of a function, ``job``, ``execution`` or ``instance``."""
        for function in self.all("Lambda::Function").values():
            if function["Role"]["Fn::GetAtt"][0] == role:
                return str(function["FunctionName"]).split("-", 2)[2]  # without that of the stack
        return self.short(role).removeprefix("Compute").removesuffix("Role").lower()

    def _readable(self, statement: Mapping[str, Any]) -> dict[str, Any]:
        readable = {
            "for": statement.get("Sid", ""),
            "effect": statement["Effect"],
            "actions": sorted(_listed(statement["Action"])),
            "resources": sorted(self._named(self.text(arn)) for arn in _listed(statement["Resource"])),
        }
        return readable | ({"if": statement["Condition"]} if "Condition" in statement else {})

    def _named(self, arn: str) -> str:
        """Put words for what differs from account to account."""
        for name in self.all("S3::Bucket"):
            arn = arn.replace(self._arn(name), f"<{self.short(name).removeprefix('Storage')}>")
        return arn.replace(f":{REGION}:{ACCOUNT}:", ":::").replace("arn:aws:", "")

    def allows(self, role: str, action: str, resource: str) -> bool:
        """Say whether a role may do something, conditions aside; the resource as in ``statements``."""
        return _allows(self.statements()[role], action, resource)


def _allows(statements: list[dict[str, Any]], action: str, resource: str) -> bool:
    effects = {
        statement["effect"]
        for statement in statements
        if action in statement["actions"] and any(_wild(pattern, resource) for pattern in statement["resources"])
    }
    return effects == {"Allow"}


def _wild(pattern: str, text: str) -> bool:
    """Compare as IAM does: an asterisk is anything, slashes included."""
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# ---- EventBridge


def matches(pattern: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Say whether EventBridge would take an event: exact values and wildcards, which is what our rules have."""
    for key, wanted in pattern.items():
        value = event.get(key)
        if isinstance(wanted, Mapping):
            if not isinstance(value, Mapping) or not matches(wanted, value):
                return False
        elif not any(_fits(one, value) for one in wanted):
            return False
    return True


def _fits(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Mapping):
        assert list(wanted) == ["wildcard"], wanted
        return isinstance(value, str) and _wild(wanted["wildcard"], value)
    return bool(wanted == value)


def resolved(template: Template, pattern: Any) -> Any:
    """Return a pattern with the references in it as they will be."""
    if isinstance(pattern, list):
        return [resolved(template, item) for item in pattern]
    if isinstance(pattern, dict) and not any(key in ("Ref", "Fn::GetAtt", "Fn::Join") for key in pattern):
        return {key: resolved(template, value) for key, value in pattern.items()}
    return template.text(pattern)


def strings(value: Any) -> Iterator[str]:
    """Return all texts in a template."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
