"""What all functions of the stack have: a log, a role, the Python that they run in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.checks import Right, accept, grant
from infra.compute import log_days
from infra.settings import Infra


def make_function(
    scope: Construct,
    infra: Infra,
    name: str,
    *,
    description: str,
    package: Path,
    memory: int,
    timeout: int,
    **more: Any,  # noqa: ANN401 - as CDK has it
) -> tuple[lambda_.Function, iam.Role]:
    """Make a function that may do nothing yet but write its log.

    Parameters
    ----------
    scope : Construct
        Where.
    infra : Infra
        Settings of the environment.
    name : str
        Of the function, within the stack.
    description : str
        What people read of it.
    package : Path
        Its code.
    memory, timeout : int
        MB and seconds.
    **more
        Of ``aws_lambda.Function``.

    Returns
    -------
    function : Function
    role : Role
        To be given its rights.
    """
    log_group = logs.LogGroup(
        scope,
        f"{name}-logs",
        log_group_name=f"/caldp/{infra.name}/{name}",
        retention=log_days(infra),
        removal_policy=cdk.RemovalPolicy.RETAIN if infra.retain else cdk.RemovalPolicy.DESTROY,
    )
    role = iam.Role(
        scope, f"{name}-role", assumed_by=cast(iam.IPrincipal, iam.ServicePrincipal("lambda.amazonaws.com"))
    )
    grant(role, [Right("Log", ("logs:CreateLogStream", "logs:PutLogEvents"), (log_group.log_group_arn,))])
    function = lambda_.Function(
        scope,
        name,
        function_name=f"{infra.name}-{name}",
        description=description,
        runtime=lambda_.Runtime.PYTHON_3_11,
        architecture=lambda_.Architecture.ARM_64 if infra.architecture == "arm64" else lambda_.Architecture.X86_64,
        code=lambda_.Code.from_asset(str(package)),
        handler="handler.handler",
        memory_size=memory,
        timeout=cdk.Duration.seconds(timeout),
        role=cast(iam.IRole, role),
        log_group=cast(logs.ILogGroup, log_group),
        tracing=lambda_.Tracing.ACTIVE,
        **more,
    )
    accept(function, "AwsSolutions-L1", "the Python that CALDP is tested with")
    accept(role, "AwsSolutions-IAM5", "the actions of X-Ray know no resources", "Resource::*")
    return function, role
