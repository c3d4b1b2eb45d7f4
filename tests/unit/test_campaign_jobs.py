"""Jobs of AWS Batch, as moto has them; and how fast they are submitted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from moto import mock_aws

from caldp.campaign.jobs import Ask, Jobs, TokenBucket, is_alive, job_name
from caldp.campaign.settings import DEFAULT

ASK = Ask(
    name="batch-22-a1-2g-6h-001-01234567",
    queue="caldp-2g",
    definition="caldp-job-2g",
    command=("caldp-process-aws", "s3://outputs/batch-22", "ldfd00000"),
    size=1,
    time_limit=3600,
    share="",
    parameters={"dataset": "ldfd00000", "manifest": "", "s3_output_path": "s3://outputs/batch-22", "attempt": "1"},
    environment={"CALDP_ATTEMPT": "1"},
    tags={"batch": "batch-22"},
)


class FakeTime:
    """A clock that stands still but for those who sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


def bucket(rate: float = 25, **more: Any) -> tuple[TokenBucket, FakeTime]:
    time = FakeTime()
    return TokenBucket(rate, clock=time, sleep=time.sleep, **more), time


# ---- how fast


def test_twenty_five_in_a_second() -> None:
    tokens, time = bucket()
    for _ in range(101):
        tokens.take()
    assert time.now == pytest.approx(4)


def test_a_rest_saves_up_no_more_than_the_burst() -> None:
    tokens, time = bucket(burst=5)
    time.now = 1000.0
    for _ in range(5):
        tokens.take()
    assert time.now == 1000
    tokens.take()
    assert time.now == pytest.approx(1000.04)


def test_after_a_refusal_nobody_gets_through_for_two_seconds() -> None:
    tokens, time = bucket()
    tokens.take()
    tokens.rest()
    tokens.take()
    assert time.now == pytest.approx(2.04)


def test_threads_share_the_rate() -> None:
    tokens, time = bucket(100)
    waited: list[float] = []
    tokens._sleep = waited.append
    threads = [threading.Thread(target=tokens.take) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.now == 0 and sorted(waited) == pytest.approx([n / 100 for n in range(1, 50)])


# ---- what is refused, and what is lost


class FakeBatch:
    """A client that answers what it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), 0

    def submit_job(self, **_: Any) -> Any:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"jobId": answer}


def refusal(code: str = "TooManyRequestsException") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "SubmitJob")


def test_too_many_requests_are_tried_again_later() -> None:
    client, (tokens, time) = FakeBatch(refusal(), refusal(), "job-1"), bucket()
    assert Jobs(client, client, tokens).submit(ASK) == "job-1"
    assert client.asked == 3 and time.now > 4


def test_too_many_requests_for_too_long() -> None:
    client, (tokens, time) = FakeBatch(*[refusal()] * 9), bucket()
    with pytest.raises(ClientError, match="TooManyRequests"):
        Jobs(client, client, tokens).submit(ASK)
    assert client.asked == 5 and time.now > 8


@pytest.mark.parametrize(
    "error", [refusal("ClientException"), refusal("ServerException"), ConnectionClosedError(endpoint_url="x")]
)
def test_what_may_have_been_done_is_never_repeated(error: Exception) -> None:
    client = FakeBatch(error, "job-1")
    with pytest.raises(type(error)):
        Jobs(client, client, bucket()[0]).submit(ASK)
    assert client.asked == 1


# ---- as moto has it


@pytest.fixture
def client(aws_settings: None) -> Iterator[Any]:
    """A client of AWS Batch with a queue and a definition, whose jobs end at once, and are no containers."""
    with mock_aws(config={"batch": {"use_docker": False}}):
        iam = boto3.client("iam")
        role = iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        batch = boto3.client("batch")
        environment = batch.create_compute_environment(
            computeEnvironmentName="here", type="UNMANAGED", state="ENABLED", serviceRole=role
        )["computeEnvironmentArn"]
        order = [{"order": 1, "computeEnvironment": environment}]
        for name in ("caldp-2g", "caldp-8g"):
            batch.create_job_queue(jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order)
        batch.register_job_definition(
            jobDefinitionName="caldp-job-2g",
            type="container",
            containerProperties={"image": "caldp", "vcpus": 1, "memory": 128, "command": ["true"]},
        )
        yield batch


@pytest.fixture
def jobs(client: Any) -> Jobs:
    once = boto3.client("batch", config=Config(retries={"total_max_attempts": 1}))
    return Jobs(client, once, bucket()[0])


def test_a_job_and_what_is_known_of_it(jobs: Jobs) -> None:
    job = jobs.submit(ASK)
    (known,) = jobs.describe([job, job]).values()
    assert (known["jobId"], known["jobName"]) == (job, ASK.name)
    assert known["jobQueue"].endswith("/caldp-2g") and "/caldp-job-2g:" in known["jobDefinition"]
    assert {"name": "CALDP_ATTEMPT", "value": "1"} in known["container"]["environment"]
    assert known["container"]["command"] == list(ASK.command)
    assert known["parameters"]["attempt"] == "1"


def test_an_array_and_its_children(jobs: Jobs) -> None:
    job = jobs.submit(replace(ASK, size=3, environment={}))
    known = jobs.describe([job])[job]
    assert known["arrayProperties"]["size"] == 3
    children = jobs.describe(f"{job}:{n}" for n in range(3))
    assert sorted(children) == [f"{job}:{n}" for n in range(3)]


def test_more_are_described_than_one_request_may_ask_for(jobs: Jobs, client: Any) -> None:
    made = [jobs.submit(ASK) for _ in range(3)]
    asked: list[int] = []
    client.meta.events.register(
        "provide-client-params.batch.DescribeJobs", lambda params, **_: asked.append(len(params["jobs"]))
    )
    unknown = [f"00000000-0000-0000-0000-{n:012}" for n in range(222)]
    assert sorted(jobs.describe([*unknown[:111], *made, *unknown[111:]])) == sorted(made)
    assert asked == [100, 100, 25]
    assert jobs.describe([]) == {}


def test_jobs_are_found_by_name_the_oldest_first(jobs: Jobs) -> None:
    name = job_name("batch-22-a1-2g-6h-001", "s3://outputs/batch-22")
    first, second = (jobs.submit(replace(ASK, name=name)) for _ in range(2))
    jobs.submit(replace(ASK, name=f"{name}-2"))
    jobs.submit(replace(ASK, name=name, queue="caldp-8g"))
    found = jobs.find(name, "caldp-2g")
    assert {job["jobId"] for job in found} == {first, second}
    assert [job["createdAt"] for job in found] == sorted(job["createdAt"] for job in found)
    assert jobs.find("another", "caldp-2g") == []


def test_a_job_is_ended_twice(jobs: Jobs) -> None:
    job = jobs.submit(ASK)
    for _ in range(2):
        jobs.terminate(job, "Operator cancelled")
    assert not is_alive(jobs.describe([job])[job])


def test_pages_are_read_to_the_end() -> None:
    class Pages:
        def list_jobs(self, **asked: Any) -> dict[str, Any]:
            assert (asked["arrayJobId"], asked["jobStatus"]) == ("job-1", "FAILED")
            page = int(asked.get("nextToken", 0))
            more = {"nextToken": str(page + 1)} if page < 2 else {}
            return {"jobSummaryList": [{"jobId": f"job-1:{page}"}], **more}

    found = Jobs(Pages(), None, bucket()[0]).children("job-1", "FAILED")
    assert [job["jobId"] for job in found] == ["job-1:0", "job-1:1", "job-1:2"]


@pytest.mark.parametrize("size", [1, 2, 10_000])
def test_requests_are_as_aws_has_them(size: int) -> None:
    """Botocore checks names and types of what is asked for."""
    once = boto3.client("batch", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")  # noqa: S106
    asked: list[dict[str, Any]] = []

    def answer(params: dict[str, Any], **_: Any) -> tuple[Any, dict[str, str]]:
        asked.append(params)
        from botocore.awsrequest import AWSResponse

        return AWSResponse("x", 200, {}, None), {"jobId": "job-1"}

    once.meta.events.register("before-call.batch.SubmitJob", answer)
    ask = replace(ASK, size=size, share="prompt", environment={"CALDP_ATTEMPT": "1"} if size == 1 else {})
    assert Jobs(None, once, bucket()[0]).submit(ask) == "job-1"
    (sent,) = asked
    assert ("arrayProperties" in sent["body"].decode()) == (size > 1)
    assert len(sent["body"]) < 30 << 10
    assert DEFAULT.shard_size <= 10_000
