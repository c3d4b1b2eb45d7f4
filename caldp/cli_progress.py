"""The commands of campaigns that show how one stands, and the one that heals it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import click

from caldp.cli import refuse, width
from caldp.errors import CaldpError
from caldp.process import Interrupts
from caldp.reporter import Output


@click.command("status", short_help="How a campaign stands.")
@click.argument("place", metavar="BATCH")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=None,
    metavar="N",
    help="Read at most so many status records of each state, instead of some thousands; 0: all.",
)
def status_command(place: str, as_json: bool, limit: int | None) -> None:
    """Say how the campaign in BATCH stands: states by instrument, rate, time left, failures by class and cause.

    BATCH is the batch directory: a directory, file:<directory> or s3://bucket/prefix. It is only looked at, at any
    time. caldp status BATCH DATASET tells the attempts of one dataset.

    \b
    Exit status:
        0  all are processed
        1  nothing is open any more, but some are in error or cancelled
        2  there is no campaign
        3  some are still open
       26  S3 does not answer, or refuses; 29: the directory cannot be read
    """
    from caldp import batch
    from caldp.campaign import progress, progress_text, settings
    from caldp.campaign.control import Control

    try:
        control = Control(batch.open_batch(place))
        found = progress.survey(control, settings.from_json(control.request()["settings"]), limit=limit)
    except (CaldpError, OSError) as error:
        refuse("caldp campaign status", error)
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else progress_text.progress_text(found, width()))
    sys.exit(found.exit_status)


@click.command("top", short_help="What is running.")
@click.argument("place", metavar="BATCH")
@click.option("--follow", "-f", is_flag=True, help="Look again every few seconds, until Ctrl-C or the end.")
@click.option("--interval", type=click.FloatRange(min=0.5), default=5.0, show_default=True, help="Seconds between.")
@click.option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="Datasets that are shown.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output; with --follow a line each time.")
def top_command(place: str, follow: bool, interval: float, rows: int, as_json: bool) -> None:
    """Show what the campaign in BATCH is processing, those nearest to their memory or time limit first.

    BATCH is the batch directory: a directory, file:<directory> or s3://bucket/prefix. It is only looked at, at any
    time. Memory is known of datasets that run on this machine.

    \b
    Exit status:
        0  shown
        2  there is no campaign
       26  S3 does not answer, or refuses; 29: the directory cannot be read
      130  stopped by Ctrl-C
    """
    from caldp import batch
    from caldp.campaign import progress, progress_text, settings
    from caldp.campaign.control import Control

    out = Output(sys.stdout)
    try:
        control = Control(batch.open_batch(place))
        figures = settings.from_json(control.request()["settings"])
        while True:
            active, total = progress.running(control, figures)
            if as_json:
                out.line(json.dumps({"processing": total, "datasets": [one.to_json() for one in active[:rows]]}))
            else:
                if follow and out.isatty():
                    out.write("\033[H\033[J")
                out.line(progress_text.running_text(active, total, rows=rows))
            if not follow or (not total and not progress.survey(control, figures).open):
                return
            time.sleep(interval)
    except (CaldpError, OSError) as error:
        refuse("caldp campaign top", error)


@click.command("report", short_help="A page about a campaign.")
@click.argument("place", metavar="BATCH")
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="File to write; default: campaign.html in BATCH if that is a directory, else in the current one.",
)
def report_command(place: str, target: Path | None) -> None:
    """Write one HTML page about the campaign in BATCH, which needs nothing else.

    It has progress, throughput, failures by cause with the ends of their logs, memory and time used against those
    given, cost, all datasets with links to their pages, and a gallery of previews.

    \b
    Exit status:
        0  written
        2  there is no campaign
       26  S3 does not answer, or refuses; 29: the page cannot be written
    """
    from caldp import batch
    from caldp.campaign import page, settings
    from caldp.campaign.control import Control
    from caldp.store import parse_uri

    try:
        store = batch.open_batch(place)
        control = Control(store)
        home = Path(parse_uri(store.uri)[1]).absolute() if store.uri.startswith("file:") else None
        target = target or (home or Path()) / "campaign.html"
        beside = home is not None and target.absolute().parent == home
        text = page.render(control, settings.from_json(control.request()["settings"]), beside=beside)
        _write(target, text)
    except (CaldpError, OSError) as error:
        refuse("caldp campaign report", error, str(target or "the page"))
    click.echo(f"wrote {target}")


def _write(target: Path, text: str) -> None:
    """Write a file in one step."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Return the mask for new files, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@click.command("reconcile", short_help="Heal a campaign on AWS.")
@click.argument("place", metavar="BATCH")
@click.option("--deployment", default="", metavar="NAME", help="The stack that runs it, if the campaign does not say.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def reconcile_command(place: str, deployment: str, as_json: bool) -> None:
    """Compare what was planned in BATCH, how its datasets stand and what AWS Batch says of their jobs, and heal it.

    A function of the stack does so every few minutes by itself. On this machine there is nothing to heal: the same
    command that began the campaign, or --resume, goes on with it.

    \b
    Exit status:
        0  done
        2  there is no campaign, or it does not run on AWS
       25  S3 does not let it write; 26: or read
    """
    from caldp import batch
    from caldp.campaign.control import Control
    from caldp.campaign.reconcile import reconcile
    from caldp.campaign.stack import Stack

    interrupts = Interrupts().install()
    try:
        control = Control(batch.open_batch(place))
        report = reconcile(Stack.of_campaign(control, deployment), control.store.uri)
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes one line
        refuse("caldp campaign reconcile", error, "the campaign")
    interrupts.shield()
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else str(report))
