"""Rights, written out one by one; and findings of cdk-nag that are accepted, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from constructs import IConstruct

#: Reasons that hold for several roles.
FOLDERS = "batches and datasets come and go: their objects are named by their folders"
REVISIONS = "any revision of these definitions, and no other definition"
NO_RESOURCES = "the action knows no resources"


@dataclass(frozen=True)
class Right:
    """What a role may do, or may not.

    Attributes
    ----------
    sid : str
        For what; a name in CamelCase.
    actions : tuple of str
        Each by its whole name.
    resources : tuple of str
        ARNs.
    because : str
        Why one of them has an asterisk.
    denied : bool
        Whether it is forbidden, whatever else allows it.
    only : mapping
        Values that keys of the request must have (``StringEquals``).
    """

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    because: str = ""
    denied: bool = False
    only: Mapping[str, str] = field(default_factory=dict)

    def statement(self) -> iam.PolicyStatement:
        """Return it as CDK has it."""
        effect = iam.Effect.DENY if self.denied else iam.Effect.ALLOW
        return iam.PolicyStatement(
            sid=self.sid,
            effect=effect,
            actions=list(self.actions),
            resources=list(self.resources),
            conditions={"StringEquals": dict(self.only)} if self.only else None,
        )


def grant(role: iam.Role, rights: Iterable[Right]) -> None:
    """Give rights to a role.

    Parameters
    ----------
    role : Role
    rights : iterable of Right

    Raises
    ------
    ValueError
        If an action has an asterisk, or a resource has one and nobody says why.
    """
    stack = cdk.Stack.of(role)
    for right in rights:
        role.add_to_policy(right.statement())
        if any("*" in action for action in right.actions):
            raise ValueError(f"{role.node.path}, {right.sid}: name the actions one by one")
        wide = [name for name in (_shown(stack.resolve(arn)) for arn in right.resources) if "*" in name]
        if wide and not right.because and not right.denied:
            raise ValueError(f"{role.node.path}, {right.sid}: say why {wide[0]} is no narrower")
        if not right.denied:
            for name in wide:
                accept(role, "AwsSolutions-IAM5", right.because, f"Resource::{name}")


def accept(construct: IConstruct, rule: str, reason: str, finding: str = "") -> None:
    """Accept a finding.

    Parameters
    ----------
    construct : IConstruct
        Where, and below.
    rule : str
        For example ``AwsSolutions-IAM5``.
    reason : str
        Why, for people.
    finding : str
        Which of several, for example ``Resource::*``.
    """
    id_ = f"AwsSolutions::{rule}" + (f"[{finding}]" if finding else "")
    cdk.Validations.of(construct).acknowledge(cdk.Acknowledgment(id=id_, reason=reason))


def _shown(resolved: Any) -> str:  # noqa: ANN401 - what a template has there
    """Return a text as cdk-nag shows it, references in angle brackets."""
    match resolved:
        case str():
            return resolved
        case {"Ref": name}:
            return f"<{name}>"
        case {"Fn::GetAtt": [name, attribute]}:
            return f"<{name}.{attribute}>"
        case {"Fn::Join": [separator, parts]}:
            return str(separator).join(_shown(part) for part in parts)
    raise ValueError(f"what is {resolved!r}?")
