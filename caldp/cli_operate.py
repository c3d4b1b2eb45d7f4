"""The commands of campaigns that change what runs: cancel, rescue, clean, pause; and those that show logs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from caldp.cli import refuse
from caldp.errors import CaldpError, Stop, describe
from caldp.process import Interrupts

if TYPE_CHECKING:
    from caldp.campaign.control import Control
    from caldp.campaign.jobs import Jobs
    from caldp.campaign.operate import Cloud, Order, Outcome, Resolved, Send
    from caldp.campaign.stack import Stack

#: Exit status when something was shown that waits to be confirmed.
NOT_CONFIRMED = 4

_EXITS = """

    \b
    Exit status:
        0  done, or there was nothing to do
        1  some datasets were left as they are: they are named
        2  no such campaign or dataset, none is selected, a name is none: nothing was done
        4  not confirmed: the list was shown, or is another one than the token's; nothing was done
       25  S3 does not let it write; 26: or read; 29: the directory cannot be used
      130  stopped by Ctrl-C: order it again
"""


def _selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments and options that say which datasets."""
    options = (
        click.argument("place", metavar="BATCH"),
        click.argument("names", metavar="[DATASET|@FILE]...", nargs=-1),
        click.option("--state", "states", multiple=True, metavar="STATE", help="Only those in this state, e.g. error."),
        click.option(
            "--class",
            "causes",
            multiple=True,
            metavar="CLASS",
            help="Only those whose failure is of this class: oom, timeout, transient, host, deployment, deterministic, "
            "unknown, cancelled.",
        ),
        click.option(
            "--instrument", "instruments", multiple=True, metavar="NAME", help="Only acs, cos, stis, wfc3 or mvm."
        ),
        click.option("--all", "everything", is_flag=True, help="All of the campaign, as far as the other options say."),
        click.option("--why", default="", metavar="TEXT", help="Recorded, with who and when."),
        click.option("--yes", "token", default="", metavar="TOKEN", help="Do it, to the list that had this token."),
        click.option("--json", "as_json", is_flag=True, help="JSON on standard output, with the whole list."),
    )
    command.__doc__ = f"{command.__doc__}{_EXITS}"
    for option in reversed(options):
        command = option(command)
    return command


_deployment = click.option(
    "--deployment", default="", metavar="NAME", help="The stack that runs it, if the campaign does not say."
)


@click.command("cancel", short_help="Stop datasets.")
@_selecting
@_deployment
def cancel_command(**given: Any) -> None:  # noqa: ANN401 - see _selecting
    """Stop datasets of the campaign in BATCH: what waits never starts, what runs is ended.

    Datasets are named in full, or in @FILE (any list that can be submitted); --state, --class and --instrument, each
    of which may be given more than once, narrow that down, or choose from all. The list is shown with its token, and
    nothing is done; the same command with --yes TOKEN does it. The token also holds when datasets of the list have
    come to their end since, but not when others have joined it.

    A dataset whose job publishes before it can be ended is processed all the same. What was cancelled can be rescued.
    """
    from caldp.campaign.operate import Order

    _operate("cancel", given, lambda options: Order("cancel", **options))


@click.command("rescue", short_help="Try datasets again.")
@_selecting
@click.option("--memory-rung", "rung", default="", metavar="RUNG", help="Step of the memory ladder, e.g. 8g.")
@click.option(
    "--timeout-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="FACTOR",
    help="Multiplies the time limit that the last attempt had.",
)
@_deployment
def rescue_command(rung: str, timeout_scale: float | None, **given: Any) -> None:  # noqa: ANN401 - see _selecting
    """Try datasets of the campaign in BATCH again that are in error, or were cancelled.

    Datasets are named in full, or in @FILE (any list that can be submitted); --state, --class and --instrument, each
    of which may be given more than once, narrow that down, or choose from all. Datasets that are named are tried again
    at once; other lists are shown with their token, and --yes TOKEN does it.

    The next attempt has all its retries before it, and as much memory and time as is planned after what happened, but
    no less than the last one had, unless the options say so.
    """
    from caldp.campaign.operate import Order

    _operate("rescue", given, lambda options: Order("rescue", rung=rung, timeout_scale=timeout_scale or 0.0, **options))


@click.command("clean", short_help="Remove what datasets have left.")
@_selecting
@click.option("--discard-products", "discard", is_flag=True, help="Also of datasets that were not archived yet.")
@_deployment
def clean_command(discard: bool, **given: Any) -> None:  # noqa: ANN401 - see _selecting
    """Remove what datasets of the campaign in BATCH have left that are in error, cancelled or archived.

    Products, messages, results and logs go; the status stays, with its history: cancelled. Datasets are named in full,
    or in @FILE (any list that can be submitted); --state, --class and --instrument, each of which may be given more
    than once, narrow that down, or choose from all. The list is shown with its token, and nothing is done; the same
    command with --yes TOKEN does it, if the list is still the same.

    In a bucket with versions, what is removed can be brought back for as long as the bucket keeps them.
    """
    from caldp.campaign.operate import Order

    _operate("clean", given, lambda options: Order("clean", discard=discard, **options))


def _operate(verb: str, given: dict[str, Any], order_of: Callable[[dict[str, Any]], Order]) -> NoReturn:
    """Show a list, or work it off, and exit."""
    interrupts = Interrupts().install()
    try:
        code = _carried_out(given, order_of({"why": given["why"]}))
    except (Exception, Stop, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it becomes one line
        interrupts.shield()
        refuse(f"caldp campaign {verb}", error, "the campaign")
    interrupts.shield()
    sys.exit(code)


def _carried_out(given: dict[str, Any], order: Order) -> int:
    from caldp.campaign import operate

    selector = operate.Selector.of(
        given["names"], given["states"], given["causes"], given["instruments"], given["everything"]
    )
    control, as_json, token = _open(given["place"]), given["as_json"], given["token"]
    resolved = operate.resolve(control, order, selector)
    if not operate.is_confirmed(control, resolved, token):
        operate.remember(control, resolved)
        _show(resolved, token, as_json)
        return NOT_CONFIRMED
    jobs, send = _hands(control, order.verb, given.get("deployment", "")) if resolved.targets else (None, None)
    outcome = operate.carry_out(control, resolved, token, jobs, send)
    _tell(control, resolved, outcome, as_json)
    return outcome.exit_status


def _show(resolved: Resolved, token: str, as_json: bool) -> None:
    """Show what would be done."""
    click.echo(json.dumps({**resolved.to_json(), "done": False}, indent=1) if as_json else str(resolved))
    for left in () if as_json else resolved.left:
        click.echo(f"left as it is: {left}", err=True)
    what = "the list is not the one that this token is of; " if token else ""
    again = f"to {resolved.order.verb} exactly these, repeat the command with --yes {resolved.token}"
    click.echo(f"{what}nothing was done; {again}", err=True)


def _tell(control: Control, resolved: Resolved, outcome: Outcome, as_json: bool) -> None:
    """Say what was done."""
    if as_json:
        click.echo(json.dumps({**resolved.to_json(), **outcome.to_json()}, indent=1))
        return
    for left in outcome.left:
        click.echo(f"left as it is: {left}", err=True)
    if not resolved.targets:
        kept = ", ".join(f"{count:,} {state}" for state, count in resolved.others.items())
        click.echo(f"no dataset to {outcome.verb}" + (f" (selected, but not to be touched: {kept})" if kept else ""))
        return
    click.echo(str(outcome))
    is_local = control.request().get("runner") != "aws"
    if outcome.done and outcome.verb == "rescue":
        here = f"unless it is running, go on with: caldp campaign submit --resume {control.store.uri}"
        there = "they are submitted within a minute or two"
        if paused := control.paused():
            there = f"the campaign is paused ({paused}): to let it go on: caldp campaign unpause {control.store.uri}"
        click.echo(here if is_local else there)
    elif outcome.done and outcome.verb == "cancel" and is_local:
        click.echo("what is running is stopped within seconds by the command that runs the campaign")


@click.command("pause", short_help="Start nothing more.")
@click.argument("place", metavar="BATCH")
@click.option("--why", default="", metavar="TEXT", help="Recorded, and shown to whoever looks.")
def pause_command(place: str, why: str) -> None:
    """Let nothing more of the campaign in BATCH be started; what is running goes on to its end.

    On one machine the command that runs the campaign then ends, with exit status 3.

    \b
    Exit status:
        0  it is paused
        2  no such campaign
       25  S3 does not let it write; 26: or read; 29: the directory cannot be used
    """
    from caldp.campaign import operate

    try:
        control = _open(place)
        operate.pause(control, why)
        click.echo(f"paused: {control.paused()}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes one line
        refuse("caldp campaign pause", error, "the campaign")


@click.command("unpause", short_help="Go on after a pause.")
@click.argument("place", metavar="BATCH")
@click.option("--why", default="", metavar="TEXT", help="Recorded.")
def unpause_command(place: str, why: str) -> None:
    """Let the campaign in BATCH go on that was paused.

    On AWS it goes on within minutes; on one machine, caldp campaign submit --resume goes on with it.

    \b
    Exit status:
        0  it is not paused
        2  no such campaign
       25  S3 does not let it write; 26: or read; 29: the directory cannot be used
    """
    from caldp.campaign import operate

    try:
        control = _open(place)
        was_paused = operate.unpause(control, why)
        is_local = control.request().get("runner") != "aws"
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes one line
        refuse("caldp campaign unpause", error, "the campaign")
    click.echo("not paused any more" if was_paused else "it was not paused")
    if was_paused and is_local:
        click.echo(f"go on with: caldp campaign submit --resume {control.store.uri}")


@click.command("logs", short_help="Print the log of a dataset.")
@click.argument("place", metavar="BATCH")
@click.argument("dataset")
@click.option("-f", "--follow", is_flag=True, help="Go on until the dataset has come to its end.")
@click.option("--attempt", type=click.IntRange(min=1), default=None, metavar="N", help="Not the last one.")
@_deployment
def logs_command(place: str, dataset: str, follow: bool, attempt: int | None, deployment: str) -> None:
    """Print the log of a DATASET of the campaign in BATCH: of its last attempt that has one.

    It is what the job printed; where that is not kept, the log beside the products. On AWS, with --deployment, it is
    what CloudWatch has, also of a job that is running.

    \b
    Exit status:
        0  printed
        2  no such campaign or dataset, or there is no log
       26  S3 does not answer, or refuses; 29: the directory cannot be read
      130  stopped by Ctrl-C
    """
    from caldp.campaign import operate

    try:
        control = _open(place)
        control.plan()
        cloud = _cloud(control, deployment)
        told = _heading if sys.stderr.isatty() else _nothing
        for line in operate.log(control, dataset, attempt or 0, follow=follow, cloud=cloud, told=told):
            click.echo(line)
    except BrokenPipeError:
        raise  # click ends quietly
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes one line
        refuse("caldp campaign logs", error, "the log")


def _heading(where: str) -> None:
    click.echo(f"==> {where}", err=True)


def _nothing(_: str) -> None:
    pass


def _open(place: str) -> Control:
    from caldp.batch import open_batch
    from caldp.campaign.control import Control

    return Control(open_batch(place))


# ---- on AWS


def _is_on_aws(control: Control) -> bool:
    return control.request().get("runner") == "aws"


def _hands(control: Control, verb: str, deployment: str) -> tuple[Jobs | None, Send | None]:
    """Return what it takes to end jobs, and to have datasets submitted."""
    from caldp.campaign.stack import Stack

    if not _is_on_aws(control):
        return None, None
    stack = Stack.of_campaign(control, deployment)
    return (None, _sender(stack)) if verb == "rescue" else (stack.jobs, None)


def _sender(stack: Stack) -> Send:
    """Return what puts datasets into the queue of those that are to be submitted again."""
    from botocore.exceptions import BotoCoreError, ClientError

    from caldp.campaign.stack import QueueError

    def send(entries: Sequence[Mapping[str, Any]]) -> None:
        try:
            stack.send(stack.deployment.rescue_queue, entries)
        except (QueueError, BotoCoreError, ClientError) as error:
            raise CaldpError(
                f"{len(entries):,} datasets were placed, but not all of them queued ({describe(error, '').message})",
                remedy="rescue those with --state placed again, or wait until the campaign is reconciled",
            ) from error

    return send


def _cloud(control: Control, deployment: str) -> Cloud | None:
    """Return where jobs log; None where only the batch tells."""
    from caldp.campaign.operate import Cloud
    from caldp.campaign.stack import Stack, client

    if not _is_on_aws(control) or not (deployment or control.request().get("deployment")):
        return None
    stack = Stack.of_campaign(control, deployment)
    return Cloud(client("logs"), stack.deployment.log_group, stack.jobs)
