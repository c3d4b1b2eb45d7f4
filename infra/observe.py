"""What people see and hear of: a dashboard, alarms, a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import aws_cdk as cdk
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from caldp.campaign.deployment import ERRORS, NAMESPACE, PAUSES, PROCESSED, RETRIES, RUNNABLE_AGE
from infra.compute import Compute
from infra.settings import Infra
from infra.triggers import Triggers

#: Datasets that must have ended in an hour before a share of them says anything.
ENOUGH = 20


class Observe(Construct):
    """Dashboard, alarms, budget.

    Attributes
    ----------
    topic : Topic
        Where alarms go.
    """

    def __init__(self, scope: Construct, id_: str, infra: Infra, compute: Compute, triggers: Triggers) -> None:
        super().__init__(scope, id_)
        self._infra = infra
        self.topic = self._topic()
        self._alarms: list[cloudwatch.IAlarm] = []
        dead = {**{name: channel.dead for name, channel in triggers.channels.items()}, "other": triggers.invocations}
        # Longer than it takes the reconciler to come by, which hides messages for a minute while it looks at them.
        period = cdk.Duration.minutes(max(15, infra.reconcile_minutes + 5))
        for name, queue in dead.items():
            self._alarm(
                f"{name}-dead",
                f"Nobody could handle a message in {queue.node.id}: see caldp campaign reconcile",
                queue.metric_approximate_number_of_messages_visible(period=period, statistic="Maximum"),
                1,
            )
        for name, function in triggers.functions.items():
            self._alarm(
                f"{name}-errors",
                f"The function {name} fails",
                function.metric_errors(period=cdk.Duration.minutes(5), statistic="Sum"),
                1,
            )
        if infra.failure_percent:
            self._alarm(
                "failure-rate",
                f"Of the datasets that ended within an hour more than {infra.failure_percent} % are in error",
                self._failures(),
                infra.failure_percent,
            )
        self._alarm(
            "runnable-age",
            f"A job has waited for a host for more than {infra.runnable_minutes} min, and none of its queue runs",
            self._metric(RUNNABLE_AGE, "Maximum", 10),
            infra.runnable_minutes * 60,
        )
        self._alarm(
            "paused",
            "A campaign is paused: all its jobs would fail, those that went first did, or somebody wanted it so;"
            " caldp campaign status says which",
            self._metric(PAUSES, "Sum", 5),
            1,
        )
        events.Rule(
            self,
            "queue-blocked",
            description="The job at the head of a queue can find no host",
            event_pattern=events.EventPattern(
                source=["aws.batch"],
                detail_type=["Batch Job Queue Blocked"],
                detail={"jobQueue": [queue.job_queue_arn for queue in compute.queues.values()]},
            ),
            targets=[cast(events.IRuleTarget, targets.SnsTopic(cast(sns.ITopic, self.topic)))],
        )
        self._dashboard(triggers)
        if infra.budget:
            self._budget()

    def _topic(self) -> sns.Topic:
        topic = sns.Topic(self, "Alarms", topic_name=f"{self._infra.name}-alarms", enforce_ssl=True)
        # A topic with a policy of its own has not the usual one, by which the account's services may publish.
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AlarmsAndBudgets",
                principals=[
                    cast(iam.IPrincipal, iam.ServicePrincipal(f"{service}.amazonaws.com"))
                    for service in ("cloudwatch", "budgets")
                ],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": cdk.Stack.of(self).account}},
            )
        )
        if self._infra.alarm_email:
            topic.add_subscription(
                cast(sns.ITopicSubscription, subscriptions.EmailSubscription(self._infra.alarm_email))
            )
        return topic

    def _metric(self, name: str, statistic: str, minutes: int) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=NAMESPACE,
            metric_name=name,
            dimensions_map={"service": self._infra.name},
            statistic=statistic,
            period=cdk.Duration.minutes(minutes),
        )

    def _failures(self) -> cloudwatch.MathExpression:
        using: Mapping[str, cloudwatch.IMetric] = {
            "errors": cast(cloudwatch.IMetric, self._metric(ERRORS, "Sum", 60)),
            "good": cast(cloudwatch.IMetric, self._metric(PROCESSED, "Sum", 60)),
        }
        ended = "(FILL(errors, 0) + FILL(good, 0))"
        return cloudwatch.MathExpression(
            expression=f"IF({ended} >= {ENOUGH}, 100 * FILL(errors, 0) / {ended}, 0)",
            using_metrics=dict(using),
            label="failures, %",
            period=cdk.Duration.minutes(60),
        )

    def _alarm(
        self, name: str, what: str, metric: cloudwatch.Metric | cloudwatch.MathExpression, threshold: float
    ) -> None:
        alarm = alarm_of(self, f"{self._infra.name}-{name}", name, what, metric, threshold, self.topic)
        self._alarms.append(cast(cloudwatch.IAlarm, alarm))

    def _dashboard(self, triggers: Triggers) -> None:
        board = cloudwatch.Dashboard(self, "Dashboard", dashboard_name=self._infra.name)

        def graph(title: str, *metrics: object) -> cloudwatch.IWidget:
            widget = cloudwatch.GraphWidget(
                title=title, left=[cast(cloudwatch.IMetric, metric) for metric in metrics], width=12
            )
            return cast(cloudwatch.IWidget, widget)

        five = cdk.Duration.minutes(5)
        board.add_widgets(
            cast(cloudwatch.IWidget, cloudwatch.AlarmStatusWidget(alarms=self._alarms, title="Alarms", width=24))
        )
        board.add_widgets(
            graph("Datasets", *(self._metric(name, "Sum", 5) for name in (PROCESSED, RETRIES, ERRORS))),
            graph("Failures, % of an hour's", self._failures()),
        )
        board.add_widgets(
            graph("Oldest job that waits, and none of its queue runs, s", self._metric(RUNNABLE_AGE, "Maximum", 10)),
            graph(
                "Messages that wait",
                *(
                    channel.queue.metric_approximate_number_of_messages_visible(period=five, statistic="Maximum")
                    for channel in triggers.channels.values()
                ),
            ),
        )
        functions = triggers.functions.values()
        board.add_widgets(
            graph("Functions: longest, ms", *(f.metric_duration(period=five, statistic="Maximum") for f in functions)),
            graph("Functions: errors", *(f.metric_errors(period=five, statistic="Sum") for f in functions)),
        )

    def _budget(self) -> None:
        stack = cdk.Stack.of(self)
        subscriber = budgets.CfnBudget.SubscriberProperty(subscription_type="SNS", address=self.topic.topic_arn)
        budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_name=f"{self._infra.name}-monthly",
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(amount=self._infra.budget, unit="USD"),
                cost_filters={"TagKeyValue": [f"user:environment${stack.stack_name}"]},
            ),
            notifications_with_subscribers=[
                budgets.CfnBudget.NotificationWithSubscribersProperty(
                    notification=budgets.CfnBudget.NotificationProperty(
                        comparison_operator="GREATER_THAN",
                        notification_type=kind,
                        threshold=percent,
                        threshold_type="PERCENTAGE",
                    ),
                    subscribers=[subscriber],
                )
                for kind, percent in (("ACTUAL", 80), ("FORECASTED", 100))
            ],
        )


def alarm_of(
    scope: Construct,
    full_name: str,
    name: str,
    what: str,
    metric: cloudwatch.Metric | cloudwatch.MathExpression,
    threshold: float,
    topic: sns.ITopic | sns.Topic,
) -> cloudwatch.Alarm:
    """Make an alarm that rings as soon as a metric comes to a threshold, and tells a topic.

    Parameters
    ----------
    scope : Construct
        Where.
    full_name, name : str
        In the account, and within the scope.
    what : str
        What people are told.
    metric : Metric or MathExpression
        What is watched.
    threshold : float
        From where on it rings.
    topic : Topic
        Who is told.

    Returns
    -------
    Alarm
    """
    alarm = cloudwatch.Alarm(
        scope,
        name,
        alarm_name=full_name,
        alarm_description=what,
        metric=cast(cloudwatch.IMetric, metric),
        threshold=threshold,
        evaluation_periods=1,
        comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
        treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
    )
    alarm.add_alarm_action(cast(cloudwatch.IAlarmAction, actions.SnsAction(cast(sns.ITopic, topic))))
    return alarm
