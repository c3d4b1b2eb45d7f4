"""Where bytes live: the bucket of outputs and messages, the CRDS cache, the repository of images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct

from caldp.campaign.control import CLAIMS
from infra.checks import accept
from infra.settings import Infra


class Storage(Construct):
    """Buckets and repository.

    Attributes
    ----------
    bucket : Bucket
        Outputs and messages of all batches.
    crds : str
        ``CRDSBUCKET`` of the jobs.
    repository : Repository
    prefix : str
        Of the keys of all batches: empty, or with a slash at its end.
    """

    def __init__(self, scope: Construct, id_: str, infra: Infra) -> None:
        super().__init__(scope, id_)
        self._infra = infra
        self.prefix = f"{infra.prefix}/" if infra.prefix else ""
        self._keep = cdk.RemovalPolicy.RETAIN if infra.retain else cdk.RemovalPolicy.DESTROY
        self.bucket = self._bucket("Outputs", infra.bucket or None)
        # By the property: the other way, CDK adds a function of its own.
        bucket = cast(s3.CfnBucket, self.bucket.node.default_child)
        bucket.notification_configuration = s3.CfnBucket.NotificationConfigurationProperty(
            event_bridge_configuration=s3.CfnBucket.EventBridgeConfigurationProperty(event_bridge_enabled=True)
        )
        self.bucket.add_to_resource_policy(
            iam.PolicyStatement(
                sid="StatesAndClaimsMoveByCompareAndSwap",
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["s3:PutObject"],
                resources=list(self.keys(f"*/{CLAIMS}/*", "*/messages/status/*")),
                conditions={
                    "Null": {"s3:if-match": "true", "s3:if-none-match": "true"},
                    "Bool": {"s3:ObjectCreationOperation": "true"},
                },
            )
        )
        if infra.crds:
            self.crds = infra.crds.rstrip("/")
        else:
            self.crds = f"s3://{self._bucket('Crds', None).bucket_name}"
        self.repository = ecr.Repository(
            self,
            "Repository",
            repository_name=infra.repository,
            image_scan_on_push=True,
            encryption=ecr.RepositoryEncryption.AES_256,
            removal_policy=self._keep,
            empty_on_delete=None if infra.retain else True,
            lifecycle_rules=[
                ecr.LifecycleRule(
                    description="layers that no tag names any more",
                    tag_status=ecr.TagStatus.UNTAGGED,
                    max_image_age=cdk.Duration.days(7),
                    rule_priority=1,
                ),
                ecr.LifecycleRule(description="the newest images", max_image_count=infra.images, rule_priority=2),
            ],
        )

    def keys(self, *patterns: str) -> tuple[str, ...]:
        """Return ARNs of objects in the bucket, by patterns of keys below the prefix."""
        return tuple(self.bucket.arn_for_objects(f"{self.prefix}{pattern}") for pattern in patterns)

    def read_only(self) -> list[str]:
        """Return ``s3://bucket/prefix`` of what jobs read besides: CRDS cache and inputs."""
        return [self.crds, *self._infra.inputs]

    def _bucket(self, id_: str, name: str | None) -> s3.Bucket:
        bucket = s3.Bucket(
            self,
            id_,
            bucket_name=name,
            versioned=True,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            encryption=s3.BucketEncryption.S3_MANAGED,
            removal_policy=self._keep,
            lifecycle_rules=[
                s3.LifecycleRule(
                    id="earlier-versions",
                    noncurrent_version_expiration=cdk.Duration.days(self._infra.versions_days),
                ),
                s3.LifecycleRule(
                    id="uploads-that-broke-off", abort_incomplete_multipart_upload_after=cdk.Duration.days(2)
                ),
                # A message that moves on leaves one, and prefixes of batches cannot be named here.
                s3.LifecycleRule(id="delete-markers", expired_object_delete_marker=True),
            ],
        )
        accept(bucket, "AwsSolutions-S1", "an access log would be larger than the products; CloudTrail has data events")
        return bucket


def arns(stack: cdk.Stack, uris: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the ARNs of buckets, and of the objects below the prefixes, of ``s3://bucket[/prefix]``."""
    buckets, objects = [], []
    for uri in uris:
        name, _, prefix = uri.removeprefix("s3://").partition("/")
        bucket = f"arn:{stack.partition}:s3:::{name}"
        buckets.append(bucket)
        objects.append(f"{bucket}/{prefix.rstrip('/') + '/' if prefix else ''}*")
    return sorted(set(buckets)), sorted(set(objects))
