"""What runs jobs: for each step of the memory ladder Spot and on-demand instances, a fair queue, a job definition."""

from __future__ import annotations

from typing import cast

import aws_cdk as cdk
from aws_cdk import aws_batch as batch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from caldp.campaign.control import MANIFESTS, RESULTS, SUBMITTED
from caldp.campaign.settings import Rung
from infra.checks import FOLDERS, NO_RESOURCES, Right, accept, grant
from infra.settings import Environment, Infra
from infra.storage import Storage, arns

#: Starts of one job by AWS Batch itself; more memory or time is the campaign's affair.
ATTEMPTS = 3

#: What AWS Batch does at the end of a job, first match: five rules at most, and what none matches is tried again.
RETRIES: tuple[tuple[str, dict[str, str]], ...] = (
    ("RETRY", {"on_status_reason": "Host EC2*"}),
    ("RETRY", {"on_reason": "CannotPullContainerError:*"}),
    ("RETRY", {"on_reason": "DockerTimeoutError*"}),
    ("EXIT", {"on_reason": "*"}),
    ("EXIT", {"on_exit_code": "*"}),  # whether the rule above matches a reason that is absent, nobody says
)

_AGENT = "service-role/AmazonEC2ContainerServiceforEC2Role"

#: Where hosts keep reference files, and where jobs find them; the user of the image has the number 1000.
_HOST_CRDS, _CRDS, _USER = "/var/caldp/crds", "/caldp/crds", 1000

_STATE = {
    "INSUFFICIENT_INSTANCE_CAPACITY": "capacity_hours",
    "COMPUTE_ENVIRONMENT_MAX_RESOURCE": "blocked_hours",
    "JOB_RESOURCE_REQUIREMENT": "blocked_hours",
}


class Compute(Construct):
    """AWS Batch.

    Attributes
    ----------
    queues : dict of JobQueue
        By step of the ladder.
    definitions : dict of EcsJobDefinition
    job_role : Role
    log_group : LogGroup
    """

    def __init__(self, scope: Construct, id_: str, environment: Environment, storage: Storage) -> None:
        super().__init__(scope, id_)
        infra = environment.infra
        self._infra, self._storage = infra, storage
        self.log_group = logs.LogGroup(
            self,
            "Logs",
            log_group_name=f"/caldp/{infra.name}/jobs",
            retention=log_days(infra),
            removal_policy=cdk.RemovalPolicy.RETAIN if infra.retain else cdk.RemovalPolicy.DESTROY,
        )
        self._vpc, self._subnets = self._network()
        self._group = ec2.SecurityGroup(
            self, "Instances", vpc=self._vpc, description="Jobs of CALDP: outwards only", allow_all_outbound=True
        )
        self._template = self._launch_template()
        self._instance_role = self._make_instance_role()
        self.job_role = self._make_job_role()
        self._execution_role = self._make_execution_role()
        policy = batch.FairshareSchedulingPolicy(
            self,
            "Shares",
            scheduling_policy_name=infra.name,
            share_decay=cdk.Duration.hours(1),
            shares=[batch.Share(share_identifier=n, weight_factor=infra.shares[n]) for n in sorted(infra.shares)],
        )
        self.queues: dict[str, batch.JobQueue] = {}
        self.definitions: dict[str, batch.EcsJobDefinition] = {}
        default = environment.campaign.time_limit(infra.job_timeout_hours * 3600)
        for rung in environment.campaign.rungs:
            self.queues[rung.name] = self._queue(rung, policy)
            self.definitions[rung.name] = self._definition(rung, default)

    # ---- hosts

    def _network(self) -> tuple[ec2.IVpc, ec2.SubnetSelection]:
        given = self._infra.vpc
        if given.id:
            # Whether they are public does not matter: they are only named.
            vpc = ec2.Vpc.from_vpc_attributes(
                self,
                "Vpc",
                vpc_id=given.id,
                availability_zones=list(given.zones),
                public_subnet_ids=list(given.subnets),
            )
            return vpc, ec2.SubnetSelection(subnets=vpc.public_subnets)
        vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(given.cidr),
            availability_zones=list(given.zones) or None,
            max_azs=None if given.zones else 3,
            nat_gateways=0,
            restrict_default_security_group=False,  # a function of CDK's own; nobody is in that group
            subnet_configuration=[
                ec2.SubnetConfiguration(name="public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=20)
            ],
            gateway_endpoints={"S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)},
        )
        accept(vpc, "AwsSolutions-VPC7", "nothing listens, and a log of all traffic to S3 costs more than it tells")
        return vpc, ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC)

    def _launch_template(self) -> ec2.LaunchTemplate:
        shell = ec2.UserData.for_linux()
        shell.add_commands(f"mkdir -p {_HOST_CRDS}", f"chown {_USER}:{_USER} {_HOST_CRDS}")
        data = ec2.MultipartUserData()  # AWS Batch takes no other form
        data.add_part(ec2.MultipartBody.from_user_data(shell))
        return ec2.LaunchTemplate(
            self,
            "Host",
            user_data=data,
            require_imdsv2=True,
            http_put_response_hop_limit=1,  # containers do not get at the role of their host
            block_devices=[
                ec2.BlockDevice(
                    device_name="/dev/xvda",
                    volume=ec2.BlockDeviceVolume.ebs(
                        self._infra.volume_gb,
                        encrypted=True,
                        volume_type=ec2.EbsDeviceVolumeType.GP3,
                        delete_on_termination=True,
                    ),
                )
            ],
        )

    def _environment(self, rung: Rung, *, spot: bool) -> batch.ManagedEc2EcsComputeEnvironment:
        capacity = self._infra.capacity(rung)
        made = batch.ManagedEc2EcsComputeEnvironment(
            self,
            f"{rung.name}-{'spot' if spot else 'on-demand'}",
            vpc=self._vpc,
            vpc_subnets=self._subnets,
            security_groups=[self._group],
            launch_template=self._template,
            instance_role=self._instance_role,
            images=[batch.EcsMachineImage(image_type=batch.EcsMachineImageType.ECS_AL2023)],
            instance_classes=[ec2.InstanceClass[family.upper()] for family in capacity.families],
            use_optimal_instance_classes=False,
            spot=spot,
            minv_cpus=0,
            maxv_cpus=capacity.spot_vcpus if spot else capacity.on_demand_vcpus,
            update_to_latest_image_version=True,
            terminate_on_update=False,
            update_timeout=cdk.Duration.hours(6),
        )
        # Else a change of the template would reach no environment that is there.
        resource = cast(batch.CfnComputeEnvironment, made.node.default_child)
        resource.add_property_override("ComputeResources.LaunchTemplate.Version", self._template.latest_version_number)
        cdk.Tags.of(made).add("Name", f"{self._infra.name}-{rung.name}")
        return made

    # ---- queues and definitions

    def _queue(self, rung: Rung, policy: batch.FairshareSchedulingPolicy) -> batch.JobQueue:
        return batch.JobQueue(
            self,
            f"{rung.name}-queue",
            job_queue_name=f"{self._infra.name}-{rung.name}",
            priority=10,
            scheduling_policy=policy,
            compute_environments=[
                batch.OrderedComputeEnvironment(compute_environment=self._environment(rung, spot=True), order=1),
                batch.OrderedComputeEnvironment(compute_environment=self._environment(rung, spot=False), order=2),
            ],
            job_state_time_limit_actions=[
                batch.JobStateTimeLimitAction(
                    reason=batch.JobStateTimeLimitActionsReason[reason],
                    max_time=cdk.Duration.hours(getattr(self._infra, hours)),
                    state=batch.JobStateTimeLimitActionsState.RUNNABLE,
                    action=batch.JobStateTimeLimitActionsAction.CANCEL,
                )
                for reason, hours in _STATE.items()
            ],
        )

    def _definition(self, rung: Rung, timeout: int) -> batch.EcsJobDefinition:
        container = batch.EcsEc2ContainerDefinition(
            self,
            f"{rung.name}-container",
            image=ecs.ContainerImage.from_ecr_repository(self._storage.repository, self._infra.tag),
            cpu=rung.vcpus,
            memory=cdk.Size.mebibytes(rung.memory),
            # Who submits says all of it; one who says nothing gets a usage error, not somebody else's dataset.
            command=["caldp-process-aws", "Ref::s3_output_path", "Ref::dataset"],
            user="developer",
            readonly_root_filesystem=False,  # scratch files
            privileged=False,
            job_role=self.job_role,
            execution_role=self._execution_role,
            environment={
                "AWS_DEFAULT_REGION": cdk.Aws.REGION,
                "CRDSBUCKET": self._storage.crds,
                "CRDS_PATH": _CRDS,
                "CALDP_CRDS_CACHE_GB": str(self._infra.crds_cache_gb),
                "OMP_NUM_THREADS": str(rung.vcpus),  # programs would use all processors of the host
            },
            logging=ecs.LogDriver.aws_logs(stream_prefix=rung.name, log_group=self.log_group),
            volumes=[batch.EcsVolume.host(name="crds", container_path=_CRDS, host_path=_HOST_CRDS)],
        )
        return batch.EcsJobDefinition(
            self,
            f"{rung.name}-job",
            job_definition_name=f"{self._infra.name}-{rung.name}",
            container=container,
            propagate_tags=True,
            scheduling_priority=0,
            retry_attempts=ATTEMPTS,
            retry_strategies=[
                batch.RetryStrategy.of(batch.Action[action], batch.Reason.custom(**match)) for action, match in RETRIES
            ],
            timeout=cdk.Duration.seconds(timeout),
        )

    # ---- roles

    def _make_instance_role(self) -> iam.Role:
        role = iam.Role(
            self,
            "InstanceRole",
            assumed_by=cast(iam.IPrincipal, iam.ServicePrincipal("ec2.amazonaws.com")),
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name(_AGENT)],
        )
        accept(
            role,
            "AwsSolutions-IAM4",
            "the agent of ECS needs what AWS says that it needs, and containers do not get at it",
            f"Policy::arn:<AWS::Partition>:iam::aws:policy/{_AGENT}",
        )
        return role

    def _principal(self) -> iam.IPrincipal:
        stack = cdk.Stack.of(self)
        mine = {
            "StringEquals": {"aws:SourceAccount": stack.account},
            "ArnLike": {"aws:SourceArn": f"arn:{stack.partition}:ecs:{stack.region}:{stack.account}:*"},
        }
        return cast(iam.IPrincipal, iam.ServicePrincipal("ecs-tasks.amazonaws.com", conditions=mine))

    def _make_execution_role(self) -> iam.Role:
        role = iam.Role(self, "ExecutionRole", assumed_by=self._principal())
        # What it may do CDK adds itself: pull images of this repository, write this log.
        accept(role, "AwsSolutions-IAM5", NO_RESOURCES, "Resource::*")
        return role

    def _make_job_role(self) -> iam.Role:
        """Make the role of all jobs: the rows ``job`` of the table in docs/aws.rst, and what a campaign adds."""
        storage = self._storage
        role = iam.Role(self, "JobRole", assumed_by=self._principal())
        buckets, objects = arns(cdk.Stack.of(self), storage.read_only())
        written = storage.keys("*/data/*", "*/messages/status/*", "*/messages/dataset*", f"*/{RESULTS}/*")
        # Of a shard of which some datasets were left out, the job is told the others.
        told = storage.keys(*(f"*/{folder}/*" for folder in (MANIFESTS, SUBMITTED, RESULTS)))
        batches = (*storage.keys("*/data/*", "*/messages/*"), *told)
        # Of a dataset's folder: what an earlier attempt has left there. Versions stay; nobody may delete those.
        replaced = storage.keys("*/messages/dataset*", "*/data/*")
        grant(
            role,
            (
                Right("List", ("s3:ListBucket",), (storage.bucket.bucket_arn, *buckets)),
                Right("ReadReferencesAndInputs", ("s3:GetObject",), tuple(objects), "all references, all inputs"),
                Right("ReadBatches", ("s3:GetObject",), batches, FOLDERS),
                Right("Publish", ("s3:PutObject", "s3:AbortMultipartUpload"), written, FOLDERS),
                Right("MoveMessagesAndReplaceProducts", ("s3:DeleteObject",), replaced, FOLDERS),
            ),
        )
        return role


def log_days(infra: Infra) -> logs.RetentionDays:
    """Return how long logs are kept."""
    return _DAYS[infra.log_days]


_DAYS = {
    1: logs.RetentionDays.ONE_DAY,
    3: logs.RetentionDays.THREE_DAYS,
    5: logs.RetentionDays.FIVE_DAYS,
    7: logs.RetentionDays.ONE_WEEK,
    14: logs.RetentionDays.TWO_WEEKS,
    30: logs.RetentionDays.ONE_MONTH,
    60: logs.RetentionDays.TWO_MONTHS,
    90: logs.RetentionDays.THREE_MONTHS,
    180: logs.RetentionDays.SIX_MONTHS,
    365: logs.RetentionDays.ONE_YEAR,
    731: logs.RetentionDays.TWO_YEARS,
    1827: logs.RetentionDays.FIVE_YEARS,
    3653: logs.RetentionDays.TEN_YEARS,
}
