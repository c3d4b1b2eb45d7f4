"""Every few minutes plans, states and jobs are compared, and what differs is healed; dead letters come once more."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.utilities.typing import LambdaContext

from caldp.campaign import letters
from caldp.campaign.deployment import ERRORS, NAMESPACE, PAUSES, PROCESSED, RETRIES, RUNNABLE_AGE
from caldp.campaign.reconcile import reconcile, reconcile_all
from caldp.campaign.stack import Stack

logger = Logger(service="caldp")
metrics = Metrics(namespace=NAMESPACE)
stack = Stack.of_environment(os.environ)
metrics.set_default_dimensions(service=stack.deployment.name)


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> list[dict[str, Any]]:
    """Reconcile the campaign that the event names, or all that are open, after what could not be handled before."""
    if not event.get("output"):
        logger.info("dead letters", extra={"letters": letters.replay(stack).to_json()})
    reports = [reconcile(stack, event["output"])] if event.get("output") else reconcile_all(stack)
    for report in reports:
        logger.info("campaign", extra={"report": report.to_json()})
        metrics.add_metric(PROCESSED, "Count", report.ended["processed"])
        metrics.add_metric(ERRORS, "Count", report.ended["error"])
        metrics.add_metric(RETRIES, "Count", report.again)
    metrics.add_metric(RUNNABLE_AGE, "Seconds", max((report.waiting for report in reports), default=0))
    metrics.add_metric(PAUSES, "Count", sum(bool(report.paused) for report in reports))
    return [report.to_json() for report in reports]
