"""The commands of campaigns: plan a list, submit it, and look after it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click
from click.core import ParameterSource

from caldp import config
from caldp.campaign import lists, settings
from caldp.campaign.lists import DatasetList, Options
from caldp.cli import Commands, refuse
from caldp.config import DEFAULT_CONFIG
from caldp.dataset import Dataset
from caldp.errors import CaldpError, Stop, UsageError, describe
from caldp.process import EXISTING, Interrupts
from caldp.reporter import human_count
from caldp.store import absolute_uri, open_store, parse_uri

if TYPE_CHECKING:
    from caldp.campaign.plan import Observations
    from caldp.campaign.stack import Stack

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Commands(Commands):
    """Commands of campaigns; some are in modules that few need."""

    elsewhere: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("cancel", "clean", "logs", "pause", "rescue", "unpause"), "caldp.cli_operate"),
        **dict.fromkeys(("reconcile", "report", "status", "top"), "caldp.cli_progress"),
    }


@click.group("campaign", cls=_Commands, context_settings=_SETTINGS)
def group() -> None:
    """Calibrate lists of datasets, on this machine or on AWS Batch."""


def _planning_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how a list is planned."""
    options = (
        click.option(
            "--existing",
            type=click.Choice(EXISTING),
            default="skip",
            show_default=True,
            help="What to do about datasets that OUTPUT has already.",
        ),
        click.option(
            "--on-invalid",
            type=click.Choice(["skip", "reject"]),
            default="skip",
            show_default=True,
            help="What to do about names in the list that are no datasets.",
        ),
        click.option("--memory-rung", "rung", default="", metavar="RUNG", help="Step of the memory ladder, e.g. 8g."),
        click.option(
            "--time-limit", default=0, type=click.IntRange(min=0), metavar="SECONDS", help="For each dataset."
        ),
        click.option(
            "--timeout-scale",
            default=1.0,
            type=click.FloatRange(min=0, min_open=True),
            metavar="FACTOR",
            help="Multiplies the time limits that are planned.",
        ),
        click.option(
            "--canary",
            type=click.FloatRange(0, 1),
            default=None,
            metavar="SHARE",
            help="Share of the list that goes first, for example 0.01; 0: none.",
        ),
        click.option(
            "--settings",
            "settings_file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="TOML file with another memory ladder, time limits, budgets, prices.",
        ),
        click.option(
            "--observations",
            "observed_uri",
            default="",
            metavar="URI",
            help="An earlier campaign here, whose jobs tell what datasets need; on AWS the deployment knows.",
        ),
        click.option(
            "--deployment", default="", metavar="NAME", help="On AWS: the stack that runs it (CALDP_DEPLOYMENT_NAME)."
        ),
        click.option("--json", "as_json", is_flag=True, help="JSON on standard output."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@group.command("plan")
@click.argument("listing", metavar="LIST")
@click.argument("output_uri", metavar="[OUTPUT]", default="")
@_planning_options
def plan_command(
    listing: str,
    output_uri: str,
    settings_file: Path | None,
    observed_uri: str,
    deployment: str,
    as_json: bool,
    **asked: Any,  # noqa: ANN401 - see _planning_options
) -> None:
    """Say what memory and time the datasets of LIST would get, and what they would cost. Nothing is written.

    LIST is a file of dataset names: .txt, .ids, .csv, .json, .yaml or .yml, each also with .gz. With OUTPUT, the batch
    directory, what is there already counts; if that is s3://..., the ladder is that of the deployment.

    \b
    Exit status:
        0  planned
        2  LIST has no dataset in it, or is the wrong file
       36  datasets are there already, and --existing error was given
    """
    from caldp.campaign.accept import draw

    try:
        found, options = _read(listing, asked)
        store = open_store(output_uri) if output_uri else None
        is_on_aws = store is not None and store.uri.startswith("s3:")
        if is_on_aws and settings_file is None:
            from caldp.campaign import trigger

            stack = _stack(deployment)
            trigger.place_of(stack, output_uri)
            figures = stack.settings
        else:
            figures = settings.load(settings_file)
            if is_on_aws and output_uri.rstrip("/").count("/") < 3:
                raise UsageError(f"{output_uri} is a bucket, and no batch", remedy="give a place in it")
        parent = absolute_uri(output_uri).rstrip("/").rpartition("/")[0] if is_on_aws else ""
        drawn = draw(store, found, options, figures, _observed(observed_uri or parent, found))
    except (CaldpError, OSError) as error:
        refuse("caldp campaign plan", error, "the list")
    _complain(found)
    if as_json:
        plan = {**drawn.plan.to_json(), "skipped": list(drawn.skipped), "duplicates": found.duplicates}
        click.echo(json.dumps({**plan, "rejected": [entry.to_json() for entry in found.rejected]}, indent=1))
        return
    click.echo(str(drawn.plan))
    for count, what in ((len(drawn.skipped), "are there already"), (found.duplicates, "were named before")):
        if count:
            click.echo(f"{count:,} {what}")


@group.command("submit")
@click.argument("listing", metavar="[LIST]", default="")
@click.argument("output_uri", metavar="OUTPUT", default="")
@_planning_options
@click.option(
    "--input", "input_uri", default="astroquery:", show_default=True, metavar="URI", help="As for caldp-process."
)
@click.option("--config", "config_name", default=DEFAULT_CONFIG, show_default=True, help="As for caldp-process.")
@click.option("--context", default="", metavar="PMAP", help="CRDS context, e.g. hst_0729.pmap.")
@click.option("--label", default="", metavar="TEXT", help="Who wants it, and why; recorded.")
@click.option("-j", "--jobs", type=click.IntRange(1, 256), default=None, help="Datasets at a time; default: one a CPU.")
@click.option(
    "--memory", default="", metavar="SIZE", help="What they may have together, e.g. 16g; default: 9/10 of it."
)
@click.option("--dry-run", is_flag=True, help="Plan it, and write nothing.")
@click.option("--resume", is_flag=True, help="Go on with the campaign of OUTPUT; no LIST is needed.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but failures.")
@click.pass_context
def submit_command(
    ctx: click.Context,
    /,
    listing: str,
    output_uri: str,
    settings_file: Path | None,
    observed_uri: str,
    as_json: bool,
    input_uri: str,
    config_name: str,
    context: str,
    label: str,
    jobs: int | None,
    memory: str,
    dry_run: bool,
    resume: bool,
    quiet: bool,
    deployment: str,
    **asked: Any,  # noqa: ANN401 - see _options
) -> None:
    """Calibrate the datasets of LIST into OUTPUT, which becomes the batch directory.

    OUTPUT is file:<directory>: caldp-process runs here for each dataset, a few at a time, within the memory and the
    time that is planned for it, and again where that can help. Ctrl-C stops it; the same command, or --resume, goes on.

    Or it is s3://bucket/prefix: then AWS Batch runs them, in the stack that --deployment (CALDP_DEPLOYMENT_NAME) names,
    and this command ends as soon as they are queued.

    \b
    Exit status:
        0  all are processed; on AWS: they are queued
        1  some are in error, or cancelled: see caldp campaign status
        2  LIST has no dataset in it or is the wrong file, OUTPUT is the campaign of another list
        3  some are still open: it is paused
       29  OUTPUT cannot be written
       35  this campaign is running already
       36  datasets are there already, and --existing error was given
      130  stopped by Ctrl-C, 143: by SIGTERM
    """
    if resume and not output_uri:
        listing, output_uri = "", listing
    if dry_run and not resume:
        ctx.invoke(
            plan_command,
            listing=listing,
            output_uri=output_uri,
            settings_file=settings_file,
            observed_uri=observed_uri,
            deployment=deployment,
            as_json=as_json,
            **asked,
        )
        return
    interrupts = Interrupts().install()
    try:
        if dry_run:
            raise UsageError("--dry-run and --resume do not go together", remedy="give one of them")
        if not output_uri:
            raise UsageError("there is no OUTPUT", remedy="give file:<directory>, which becomes the batch directory")
        given = {"input": input_uri, "config": config_name, "context": context, "label": label}
        if parse_uri(output_uri)[0] == "s3":
            _submit(listing, output_uri, deployment, asked | given, resume, as_json)
            sys.exit(0)
        given_files = settings_file, observed_uri
        code = _run_here(listing, output_uri, *given_files, asked | given, jobs, memory, resume, as_json, quiet)
    except (Exception, Stop, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it becomes one line
        interrupts.shield()
        refuse("caldp campaign submit", error, "the campaign")
    interrupts.shield()
    sys.exit(code)


def _run_here(
    listing: str,
    output_uri: str,
    settings_file: Path | None,
    observed_uri: str,
    asked: dict[str, Any],
    jobs: int | None,
    memory: str,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a campaign on this machine; return its exit status."""
    from caldp import programs
    from caldp.campaign import local, watch
    from caldp.campaign.accept import accept
    from caldp.campaign.control import Control

    store = open_store(absolute_uri(output_uri))
    room = _mebibytes(memory) if memory else local.total_memory()
    if resume:
        control = Control(store)
        request = control.request()
        control.plan()
        figures = settings.from_json(request["settings"])
        given = Options.from_json(request["options"])
    else:
        figures = local.fitted(settings.load(settings_file), room)
        found, given = _read(listing, asked)
        given = replace(given, input=absolute_uri(given.input), config=_absolute(given.config))
        if given.dry_run:
            raise UsageError(f"{listing} asks for a dry run", remedy="give --dry-run, or take that out of it")
        control = accept(store, found, given, figures, _observed(observed_uri, found), runner="local").control
        figures = settings.from_json(control.request()["settings"])  # what it was begun with counts
        _complain(found)
        for entry in control.plan()["refused"]:
            click.echo(f"caldp campaign: not calibrated: {entry['text']!r} ({entry['reason']})", err=True)
    told = watch.open_watch(json=as_json, quiet=quiet, stdout=sys.stdout, stderr=sys.stderr)
    environment = config.inherited()
    program = programs.find("caldp-process", environment.get("PATH", ""))
    if program is None:
        raise UsageError("caldp-process is not installed where this command finds it", remedy="install caldp")
    options = ("--context", given.context) if given.context else ()
    command = local.Command(
        program, given.input, store.uri, given.config, options, local.environment(environment), Path.cwd()
    )
    runner = local.Runner(control, figures, command, told, jobs or local.default_jobs(), room)
    return runner.run().exit_status


def _submit(listing: str, output_uri: str, deployment: str, asked: dict[str, Any], resume: bool, as_json: bool) -> None:
    """Hand a list to a deployment on AWS."""
    from botocore.exceptions import BotoCoreError, ClientError

    from caldp.campaign import trigger
    from caldp.campaign.stack import QueueError

    if resume:
        raise UsageError(
            "campaigns on AWS go on by themselves",
            remedy=f"caldp campaign unpause {output_uri}, or caldp campaign reconcile {output_uri}",
        )
    for option in ("settings_file", "observed_uri", "jobs", "memory"):
        if _typed(option):
            name = {"settings_file": "settings", "observed_uri": "observations"}.get(option, option)
            raise UsageError(f"--{name} is for campaigns on this machine", remedy="on AWS the deployment decides")
    stack = _stack(deployment)
    found, options = _read(listing, asked)
    if options.config == DEFAULT_CONFIG and not _typed("config"):
        options = replace(options, config=Options().config)
    try:
        reply = trigger.begin(stack, found, options, output_uri)
    except (QueueError, BotoCoreError, ClientError) as error:  # what S3 says is an error of its own
        raise CaldpError(
            f"{output_uri} is a campaign now, but not all of its shards are queued ({describe(error, '').message})",
            remedy="check that you may (sqs:SendMessage), and do it again: nothing is submitted twice",
        ) from error
    _complain(found)
    if as_json:
        click.echo(json.dumps(reply, indent=1))
        return
    estimate = reply["estimate"]
    again = " (it was there before; nothing is submitted twice)" if reply["resumed"] else ""
    datasets, shards = human_count(reply["accepted"], "dataset"), human_count(reply["shards"], "shard")
    click.echo(f"campaign {reply['batch']}: {datasets} in {shards}{again}")
    for count, what in ((reply["rejected"], "rejected"), (reply["skipped"], "there already")):
        if count:
            click.echo(f"{count:,} {what}")
    click.echo(f"about {estimate['hours']:,} hours of jobs, ${estimate['cost']:,.2f}")
    is_dry = "the list asks for a dry run: nothing was written" if reply.get("dry_run") else ""
    click.echo(is_dry or f"see caldp campaign status {output_uri}")


def _observed(place: str, found: DatasetList) -> Observations | None:
    """Return what is known of such datasets; None if nobody says where."""
    from caldp.campaign import observe

    if not place:
        return None
    return observe.known(open_store(absolute_uri(place)), {Dataset.parse(name).instrument for name in found.datasets})


def _stack(deployment: str) -> Stack:
    """Return a deployment by name, or that of the caller's environment."""
    from caldp.campaign.stack import Stack

    name = deployment or config.deployment()
    if not name:
        raise UsageError("nobody says which stack runs it", remedy="give --deployment NAME, e.g. caldp-dev")
    return Stack.fetch(name)


def _read(listing: str, asked: dict[str, Any]) -> tuple[DatasetList, Options]:
    """Read a list, and what is asked for: of the command line, else by the list itself."""
    if not listing:
        raise UsageError("give a list of datasets", remedy="or --resume, to go on with a campaign")
    path = Path(listing)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{listing} cannot be read ({error.strerror})", remedy="give a list of datasets") from error
    found = lists.read(data, path.name)
    given = {name: value for name, value in asked.items() if value is not None}
    return found, replace(Options.of(found.options, **given), **{name: given[name] for name in given if _typed(name)})


def _typed(name: str) -> bool:
    """Say whether somebody has typed this option, so that it counts more than what the list says."""
    parameter = {"input": "input_uri", "config": "config_name"}.get(name, name)
    context: click.Context | None = click.get_current_context()
    while context is not None and context.get_parameter_source(parameter) is not ParameterSource.COMMANDLINE:
        context = context.parent
    return context is not None


def _complain(found: DatasetList) -> None:
    for entry in found.rejected:
        click.echo(f"caldp campaign: not calibrated: {entry}", err=True)


def _absolute(script: str) -> str:
    """Return a config script so that it means the same in any directory; names are looked for on PATH."""
    return str(Path(script).expanduser().absolute()) if "/" in script else script


def _mebibytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mg])b?", text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--memory {text}: that is no size", remedy="write for example 16g or 800m")
    return int(float(match[1]) * (1024 if match[2] == "g" else 1))
