"""The stack of one environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import aws_cdk as cdk
from constructs import Construct

from caldp.campaign.deployment import parameter
from infra.compute import Compute
from infra.crds import Crds
from infra.observe import Observe
from infra.settings import Environment
from infra.storage import Storage
from infra.triggers import Triggers

#: How CDK writes templates; here, and not in cdk.json, so that tests see the same.
FLAGS = {"@aws-cdk/core:enablePartitionLiterals": True}


class CaldpStack(cdk.Stack):
    """All that a campaign needs of AWS.

    Parameters
    ----------
    scope : Construct
        The app.
    environment : Environment
        Its settings.
    packages : mapping of Path
        Folders of the functions' code, by handler.
    """

    def __init__(self, scope: Construct, environment: Environment, packages: Mapping[str, Path]) -> None:
        infra = environment.infra
        super().__init__(
            scope,
            infra.name,
            description="CALDP: campaigns of calibrations",
            termination_protection=infra.retain,
            synthesizer=cdk.DefaultStackSynthesizer(generate_bootstrap_version_rule=False),
        )
        self.storage = Storage(self, "Storage", infra)
        self.compute = Compute(self, "Compute", environment, self.storage)
        self.triggers = Triggers(self, "Triggers", environment, self.storage, self.compute, packages)
        self.observe = Observe(self, "Observe", infra, self.compute, self.triggers)
        self.crds = None
        if infra.crds_server:
            self.crds = Crds(self, "Crds", infra, self.storage, packages, self.observe.topic)
            cdk.CfnOutput(self, "CrdsUrl", value=self.crds.url, description="CRDS_SERVER_URL of clients, before /hst")
        cdk.Tags.of(self).add("project", "caldp")
        cdk.Tags.of(self).add("environment", infra.name)
        for name, value, what in (
            ("Bucket", self.storage.bucket.bucket_name, f"Batches, and lists in {self.storage.prefix}messages/placed/"),
            ("CrdsBucket", self.storage.crds, "CRDSBUCKET of the jobs"),
            ("Repository", self.storage.repository.repository_uri, f"Push the image here, as {infra.tag}"),
            ("Deployment", parameter(infra.name), "What the commands of CALDP read"),
            ("OnList", self.triggers.functions["on-list"].function_name, "Takes a list by direct invocation"),
            ("AlarmTopic", self.observe.topic.topic_arn, "Where alarms go"),
        ):
            cdk.CfnOutput(self, name, value=value, description=what)
