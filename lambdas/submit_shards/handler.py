"""Shards become jobs; every minute, what is tried again becomes shards."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from caldp.campaign import hear
from caldp.campaign.deployment import NAMESPACE
from caldp.campaign.stack import Stack

logger = Logger(service="caldp")
metrics = Metrics(namespace=NAMESPACE)
stack = Stack.of_environment(os.environ)
metrics.set_default_dimensions(service=stack.deployment.name)


def record_handler(record: SQSRecord) -> None:
    """Submit one shard, unless the campaign is paused: who lets it go on has its shards queued again."""
    output, shard = record.json_body["output"], record.json_body["shard"]
    submitted = stack.submit(output, shard)
    if submitted is None:
        return
    logger.info("shard", extra={"output": output, "shard": shard, "job": submitted.job, "new": submitted.new})
    metrics.add_metric("Submitted", "Count", submitted.datasets)


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> Any:  # noqa: ANN401 - as Lambda wants it
    """Take messages of the queue of shards, or empty that of datasets to be tried again."""
    if "Records" in event:
        processor = BatchProcessor(event_type=EventType.SQS)
        return process_partial_response(event, record_handler, processor, context)
    shards = hear.drain(stack)
    metrics.add_metric("Regrouped", "Count", shards)
    return {"shards": shards}
