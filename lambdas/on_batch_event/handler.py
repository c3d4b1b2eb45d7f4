"""The end of a job becomes the state of its dataset, or another attempt."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from caldp.campaign import hear
from caldp.campaign.deployment import NAMESPACE, RETRIES
from caldp.campaign.stack import Stack

logger = Logger(service="caldp")
metrics = Metrics(namespace=NAMESPACE)
stack = Stack.of_environment(os.environ)
metrics.set_default_dimensions(service=stack.deployment.name)


def record_handler(record: SQSRecord) -> None:
    """Do what follows from one event."""
    heard = hear.hear(stack, record.json_body)
    logger.info("end of a job", extra={"job": record.json_body.get("detail", {}).get("jobId"), **heard._asdict()})
    if heard.moved and heard.state == "placed":
        metrics.add_metric(RETRIES, "Count", 1)


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> Any:  # noqa: ANN401 - as Lambda wants it
    """Take messages of the queue of ends of jobs; those that fail come back, the others do not."""
    processor = BatchProcessor(event_type=EventType.SQS)
    return process_partial_response(event, record_handler, processor, context)
