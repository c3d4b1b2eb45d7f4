"""A list of datasets, dropped into a bucket or sent directly, becomes a campaign."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from caldp.campaign import trigger
from caldp.campaign.deployment import NAMESPACE
from caldp.campaign.stack import Stack

logger = Logger(service="caldp")
metrics = Metrics(namespace=NAMESPACE)
stack = Stack.of_environment(os.environ)
metrics.set_default_dimensions(service=stack.deployment.name)


def take(event: dict[str, Any]) -> list[dict[str, Any]]:
    """Make campaigns of what one event says."""
    replies = trigger.take(stack, event)
    for reply in replies:
        logger.info("list", extra={"reply": reply})
        if not reply.get("dry_run"):
            metrics.add_metric("Refused" if "error" in reply else "Accepted", "Count", reply.get("accepted", 1))
    return replies


def record_handler(record: SQSRecord) -> None:
    """Take one message of the queue of lists."""
    take(record.json_body)


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> Any:  # noqa: ANN401 - as Lambda wants it
    """Take the messages of a queue, or one request, which is answered."""
    if any(record.get("eventSource") == "aws:sqs" for record in event.get("Records", ())):
        processor = BatchProcessor(event_type=EventType.SQS)
        return process_partial_response(event, record_handler, processor, context)
    replies = take(event)
    return replies[0] if "datasets" in event else replies
