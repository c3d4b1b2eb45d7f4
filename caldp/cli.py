"""The commands: they read the command line, call a function, and exit."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import click

import caldp
from caldp.config import DEFAULT_CONFIG, array_index
from caldp.errors import EXIT_CODES, CaldpError, UsageError, describe
from caldp.messages import Claim
from caldp.process import EXISTING, Interrupts, Request, concluded, plan, process, survey
from caldp.reporter import Output, open_reporter

#: Config of caldp-process-aws.
AWS_CONFIG = "caldp-config-aws"

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _exit_code_table() -> str:
    return "\b\nExit status:\n" + "\n".join(f"  {code:>3}  {text}" for code, (_, text) in EXIT_CODES.items())


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all commands share that calibrate one dataset."""
    options = (
        click.option(
            "--context", default="", metavar="PMAP", help="CRDS context, e.g. hst_0729.pmap; wins over CRDS_CONTEXT."
        ),
        click.option(
            "--override", "overrides", multiple=True, metavar="TYPE=FILE", help="Use this reference file instead."
        ),
        click.option(
            "--existing",
            type=click.Choice(EXISTING),
            default="overwrite",
            show_default=True,
            help="What to do when the dataset is already processed.",
        ),
        click.option("--take-over", is_flag=True, help="Take the dataset from a run that still holds it."),
        click.option("--dry-run", is_flag=True, help="Say what would be fetched, which references, which programs."),
        click.option("--keep-scratch", is_flag=True, help="Leave the workspace in CALDP_HOME/caldp-scratch."),
        click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output."),
        click.option("-v", "--verbose", is_flag=True, help="Show every line of the programs."),
        click.option("-q", "--quiet", is_flag=True, help="Show nothing but a failure."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _run(
    dataset: str,
    input_uri: str,
    output_uri: str,
    config: str,
    *,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    mistake: CaldpError | None = None,
    **options: Any,  # noqa: ANN401 - the rest of Request
) -> NoReturn:
    """Calibrate one dataset, or say what is wrong with the command line, and exit."""
    request = Request(dataset, input_uri, output_uri, config, **options)
    reporter = open_reporter(json=as_json, quiet=quiet, verbose=verbose, stdout=sys.stdout, stderr=sys.stderr)
    interrupts = Interrupts().install()
    if mistake:
        with concluded(request, reporter, interrupts) as outcome:
            raise mistake
    else:
        outcome = (plan if dry_run else process)(request, reporter, interrupts)
    sys.exit(outcome.exit_code)


@click.command(
    "caldp-process",
    context_settings=_SETTINGS,
    epilog=_exit_code_table(),
    help="""Calibrate one HST dataset.

    \b
    IPPPSSOOT  dataset: j8cb010b0, a visit such as acs_8ph_01, a sky cell such as skycell-p2381x06y09
    INPUT      file:<directory> or s3://bucket/prefix with its raw FITS files (or <dataset>.tar.gz), or astroquery:
               to download them from MAST into the working directory (or CALDP_HOME); default file:.
    OUTPUT     file:<directory> or s3://bucket/prefix; products go to data/, the state to messages/; default file:.
    CONFIG     caldp-config-onsite (default), -offsite, -aws, or a script of your own (name on PATH, or path)
    """,
)
@click.argument("ipppssoot")
@click.argument("input_uri", metavar="[INPUT]", default="file:.")
@click.argument("output_uri", metavar="[OUTPUT]", default="file:.")
@click.argument("config", metavar="[CONFIG]", default=DEFAULT_CONFIG)
@_run_options
@click.version_option(caldp.__version__, prog_name="caldp-process")
def process_command(ipppssoot: str, input_uri: str, output_uri: str, config: str, **options: Any) -> None:  # noqa: ANN401 - see _run
    """Calibrate one HST dataset."""
    _run(ipppssoot, input_uri, output_uri, config, **options)


@click.command(
    "caldp-process-aws",
    context_settings=_SETTINGS,
    epilog=_exit_code_table(),
    help="""Calibrate one HST dataset where AWS Batch does: raw data from MAST, references and results in S3.

    \b
    OUTPUT     s3://bucket/prefix; products go to data/, the state to messages/ (file:<directory> does too)
    IPPPSSOOT  dataset: j8cb010b0, a visit such as acs_8ph_01, a sky cell such as skycell-p2381x06y09;
               or @MANIFEST of a campaign, of which a child of an array takes line AWS_BATCH_JOB_ARRAY_INDEX

    It is caldp-process IPPPSSOOT astroquery: OUTPUT caldp-config-aws.
    """,
)
@click.argument("output_uri", metavar="OUTPUT")
@click.argument("ipppssoot")
@click.option(
    "--input",
    "input_uri",
    default="astroquery:",
    show_default=True,
    metavar="URI",
    help="Where the raw data are: s3://bucket/prefix, or any other input of caldp-process.",
)
@click.option("--config", default=AWS_CONFIG, show_default=True, help="Config script, by name or path.")
@_run_options
@click.version_option(caldp.__version__, prog_name="caldp-process-aws")
def process_aws_command(output_uri: str, ipppssoot: str, input_uri: str, config: str, **options: Any) -> None:  # noqa: ANN401 - see _run
    """Calibrate one HST dataset where AWS Batch does."""
    mistake: CaldpError | None = _wrong_output(output_uri, ipppssoot)
    attempt = 0
    if ipppssoot.startswith("@") and mistake is None:
        try:
            ipppssoot, attempt = _member(ipppssoot[1:])
        except CaldpError as error:
            mistake = error
    _run(ipppssoot, input_uri, output_uri, config, mistake=mistake, attempt=attempt, **options)


def _member(manifest: str) -> tuple[str, int]:
    """Return which dataset, and which attempt, this child of an array is to calibrate."""
    from caldp.campaign.control import read_manifest

    lines, index = read_manifest(manifest), array_index()
    if index >= len(lines):
        raise UsageError(f"{manifest} has no line {index}, counted from 0", remedy="check AWS_BATCH_JOB_ARRAY_INDEX")
    return lines[index].dataset, lines[index].attempt


def _wrong_output(output_uri: str, ipppssoot: str) -> UsageError | None:
    """Return what is wrong when the output is none: it comes first here, and last in caldp-process."""
    place = ("s3://", "file:")
    if output_uri.startswith(place):
        return None
    remedy = "write caldp-process-aws s3://<bucket>/<prefix> <ipppssoot>"
    if ipppssoot.startswith(place):
        remedy = f"the output comes first: caldp-process-aws {ipppssoot} {output_uri}"
    return UsageError(f"{output_uri!r} is no output: give s3://<bucket>/<prefix> or file:<directory>", remedy=remedy)


class Commands(click.Group):
    """Commands of which some are in modules that few need: there they are ``<name>_command``, or ``group``."""

    elsewhere: ClassVar[dict[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.elsewhere])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.elsewhere:
            module = importlib.import_module(self.elsewhere[cmd_name])
            command: click.Command = getattr(module, f"{cmd_name}_command", None) or module.group
            return command
        return super().get_command(ctx, cmd_name)


class _Commands(Commands):
    """Commands that Ctrl-C ends as it ends any other: with 130."""

    elsewhere: ClassVar[dict[str, str]] = {
        "campaign": "caldp.cli_campaign",
        "crds": "caldp.cli_crds",
        "image": "caldp.cli_image",
    }

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click has it
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("caldp: stopped by Ctrl-C", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings=_SETTINGS, help="Calibrate Hubble Space Telescope data.")
@click.version_option(caldp.__version__, prog_name="caldp")
def main() -> None:
    """Calibrate Hubble Space Telescope data."""


main.add_command(process_command, "process")
main.add_command(process_aws_command, "process-aws")


def _fail(command: str, error: Exception) -> NoReturn:
    click.echo(f"caldp {command}: {' '.join(str(error).split()) or type(error).__name__}", err=True)
    sys.exit(2)


def refuse(command: str, error: BaseException, what: str = "the batch") -> NoReturn:
    """Say why a command cannot be carried out, in one line, and exit with its status."""
    failure = describe(error, what)
    Output(sys.stderr).line(f"{command}: {failure}")
    sys.exit(failure.code)


@main.command("simulate")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--exposures", type=click.IntRange(1, 4), default=1, show_default=True, help="More than 1: association.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Seed of the photon noise.")
@click.option("--list", "as_list", is_flag=True, help="Eight datasets for a campaign; one is broken, one is large.")
def simulate_command(directory: Path, exposures: int, seed: int, as_list: bool) -> None:
    """Make a simulated COS exposure with its own reference files and CRDS rules in DIRECTORY.

    No HST data and no network are needed.  The directory then holds inputs/, crds_cache/, truth/ (the injected
    spectrum) and caldp-config-simulated, the config to calibrate it with.  With --list, it holds datasets.ids and
    campaign.toml (settings) instead of truth/.
    """
    from caldp.simulate import simulate

    try:
        if as_list:
            from caldp.simulate.campaign import simulate_list

            many = simulate_list(directory, seed)
            click.echo(f"simulated 8 datasets in {many.directory}; calibrate them with:")
            click.echo(
                f"caldp campaign submit {many.ids} file:{many.directory / 'outputs'} --input file:{many.inputs} "
                f"--config {many.config} --settings {many.settings}"
            )
            return
        made = simulate(directory, exposures=exposures, seed=seed)
    except (ValueError, OSError) as error:
        _fail("simulate", error)
    click.echo(f"simulated {made.dataset} in {made.directory}; calibrate it with:")
    click.echo(f"caldp-process {made.dataset} file:{made.inputs} file:{made.directory / 'outputs'} {made.config}")


@main.command("compare")
@click.argument("x1d", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("truth", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def compare_command(x1d: Path, truth: Path) -> None:
    """Compare a calibrated spectrum X1D with the spectrum that was injected, TRUTH.

    The exit status is 0 if every line and every flux bin agrees, else 1.
    """
    from caldp.simulate import compare

    try:
        comparison = compare(x1d, truth)
    except (ValueError, OSError, KeyError, IndexError, TypeError) as error:
        _fail("compare", ValueError(f"{x1d} and {truth} are not a COS x1d and the truth of a simulation ({error})"))
    click.echo(str(comparison))
    sys.exit(0 if comparison.recovered else 1)


@main.command("doctor")
@click.argument("config", default=DEFAULT_CONFIG)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def doctor_command(config: str, as_json: bool) -> None:
    """Say which programs, packages, CRDS settings and disk space are there, and what to do about what is not."""
    from caldp import doctor

    findings = doctor.examine(config)
    click.echo(doctor.as_json(findings) if as_json else doctor.as_text(findings))
    sys.exit(0 if all(f.ok for f in findings if f.needed) else 1)


@main.group("references")
def references_group() -> None:
    """Look at CRDS reference files; share them, and the rules, in S3."""


@references_group.command("show")
@click.argument("dataset")
@click.argument("input_uri", metavar="[INPUT]", default="file:.")
@click.argument("config", metavar="[CONFIG]", default=DEFAULT_CONFIG)
@click.option("--context", default="", metavar="PMAP", help="CRDS context, e.g. hst_0729.pmap; wins over CRDS_CONTEXT.")
@click.option("--override", "overrides", multiple=True, metavar="TYPE=FILE", help="Use this reference file instead.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def references_show_command(
    dataset: str, input_uri: str, config: str, context: str, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Say which references the raw data of DATASET need, and whether each is present and intact.

    No reference is downloaded, only rules (and with astroquery: or s3:// the raw data). The exit status is 0 if all are
    intact or would be downloaded, 27 if one cannot be used.
    """
    from caldp import references

    request = Request(dataset, input_uri, config=config, context=context, overrides=overrides)
    quiet = open_reporter(json=False, quiet=True, verbose=False, stdout=sys.stdout, stderr=sys.stderr)
    outcome = survey(request, quiet, Interrupts().install())
    if outcome.plan is not None:
        click.echo(json.dumps(outcome.plan, indent=1) if as_json else references.as_text(outcome.plan))
    sys.exit(outcome.exit_code)


@references_group.command("sync")
@click.argument("store_uri", metavar="STORE")
@click.option("--context", required=True, metavar="PMAP", help="CRDS context, e.g. hst_0729.pmap.")
@click.option("--instruments", default="", metavar="LIST", help="References of these instruments, e.g. cos,acs.")
@click.option("--datasets", default="", metavar="LIST", help="References that these datasets need; see --input.")
@click.option("--input", "input_uri", default="file:.", metavar="URI", help="Where the raw data of --datasets are.")
@click.option("--all", "everything", is_flag=True, help="All references that the rules name.")
@click.option("--from", "cache", type=click.Path(path_type=Path), help="CRDS cache that has them; default CRDS_PATH.")
@click.option("--config", default=DEFAULT_CONFIG, show_default=True, help="Config script that exports CRDS_PATH.")
@click.option("--make-current", is_flag=True, help="Make it the context that jobs use which name none.")
@click.option("--why", default="", metavar="TEXT", help="Recorded when it becomes the current context.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def references_sync_command(
    store_uri: str,
    context: str,
    instruments: str,
    datasets: str,
    input_uri: str,
    everything: bool,
    cache: Path | None,
    config: str,
    make_current: bool,
    why: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put a context of a local CRDS cache, rules and references, into STORE: s3://bucket/prefix or file:<directory>.

    Hosts whose CRDSBUCKET is STORE then need no CRDS server. Without --instruments, --datasets and --all, those
    references are sent that the cache has; with them it must have all they ask for. What is there is not sent again:
    run it again after a failure. The first context of a store becomes its current one.
    """
    from caldp import crds_choice, crds_sync
    from caldp.config import load
    from caldp.store import open_store

    try:
        settings = load(config, context=context)
        cache = (cache or settings.crds_path).expanduser().absolute()
        names = crds_choice.needed(_listed(datasets), input_uri, config, cache, context)
        choice = crds_choice.Choice(tuple(name.lower() for name in _listed(instruments)), names, everything)
        with crds_sync.told(sys.stderr) as progress:
            synced = crds_sync.sync(
                open_store(store_uri, settings.aws),
                cache,
                context,
                choice,
                make_current=make_current,
                why=why,
                dry_run=dry_run,
                progress=progress,
            )
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes one line
        refuse("caldp references sync", error, context)
    click.echo(json.dumps(synced.to_json(), indent=1) if as_json else str(synced))


@references_group.command("current")
@click.argument("store_uri", metavar="STORE")
@click.argument("context", metavar="[PMAP]", default="")
@click.option("--why", default="", metavar="TEXT", help="Recorded with the new context.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def references_current_command(store_uri: str, context: str, why: str, as_json: bool) -> None:
    """Show, or move, the context that jobs use which name none, in STORE: s3://bucket/prefix or file:<directory>."""
    from caldp import crds_pointer
    from caldp.store import open_store

    try:
        store = open_store(store_uri)
        if context:
            crds_pointer.move(store, context, why)
        pointer = crds_pointer.current(store)
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes one line
        refuse("caldp references current", error, store_uri)
    click.echo(json.dumps(pointer, indent=1) if as_json else crds_pointer.as_text(pointer))


def _listed(text: str) -> list[str]:
    return [item for part in text.split(",") if (item := part.strip())]


@main.command("explain")
@click.argument("code", metavar="CODE-OR-NAME")
def explain_command(code: str) -> None:
    """Say what an exit status means, by number or name."""
    rows = {str(number): (number, name, text) for number, (name, text) in EXIT_CODES.items()}
    rows |= {name: row for row in list(rows.values()) for name in [row[1]]}
    row = rows.get(code.upper())
    if row is None:
        click.echo(f"caldp explain: there is no exit status {code}; see caldp-process --help", err=True)
        sys.exit(2)
    click.echo(f"{row[0]} {row[1]}: {row[2]}")


@main.command("status")
@click.argument("place", metavar="BATCH")
@click.argument("dataset", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
@click.option(
    "--owner-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=Claim.patience,
    show_default=True,
    metavar="SECONDS",
    help="In S3: a run that has given no sign of life for so long is dead (CALDP_OWNER_TIMEOUT of the runs).",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    metavar="N",
    help="Read at most so many status records of failures, as many of runs, and of others in doubt; 0: all.",
)
def status_command(place: str, dataset: str, as_json: bool, owner_timeout: float, limit: int) -> None:
    """Say how the datasets of BATCH stand, or one DATASET with its history.

    BATCH is the output of the runs: a directory, file:<directory> or s3://bucket/prefix. It is only looked at, at any
    time.

    \b
    Exit status:
        0  all are processed (or synced, or archived)
        1  nothing is open any more, but some are in error or cancelled, or their status record is damaged
        2  no such batch or dataset
        3  some are still open: placed, submitted or processing, whatever became of the others
       26  S3 does not answer, or refuses; 29: the directory cannot be read
    """
    from caldp import batch, batch_text

    try:
        store = batch.open_batch(place)
        found = batch.look(store, dataset, owner_timeout) if dataset else batch.survey(store, owner_timeout, limit)
    except (CaldpError, OSError) as error:
        refuse("caldp status", error)
    if isinstance(found, batch.Survey):
        text = batch_text.survey_json(found) if as_json else batch_text.survey_text(found, width())
    elif as_json:
        text = batch_text.standing_json(store, found)
    else:
        text = batch_text.standing_text(store, found, width(), cut=sys.stdout.isatty())
    click.echo(text)
    sys.exit(found.exit_status)


@main.group("messages")
def messages_group() -> None:
    """Look after the folders of messages/."""


@messages_group.command("repair")
@click.argument("place", metavar="BATCH")
@click.argument("datasets", metavar="[DATASET]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def messages_repair_command(place: str, datasets: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Make the folders of messages/ in BATCH show what the status records say, of all datasets or of each DATASET.

    BATCH is the output of the runs: a directory, file:<directory> or s3://bucket/prefix. Runs may go on meanwhile. A
    message that is there is never written again, a status record never changed.

    \b
    Exit status:
        0  every status record was understood
        1  some are damaged: they are named, and left as they are
        2  no such batch, or no such dataset: nothing was changed
       25  S3 does not let it write; 26: or read; 29: the directory cannot be used
    """
    from caldp import batch

    told = batch.Repaired(dry_run)
    try:
        store = batch.open_batch(place)
        for changes in batch.repair(store, datasets, dry_run=dry_run):
            told.add(changes)
            for change in () if as_json else changes:
                click.echo(str(change))
    except (CaldpError, OSError) as error:
        refuse("caldp messages repair", error)
    click.echo(told.to_json(store) if as_json else str(told))
    sys.exit(told.exit_status)


@main.command("sync")
@click.argument("place", metavar="BATCH")
@click.argument("directory", metavar="LOCALDIR")
@click.argument("names", metavar="[DATASET|@FILE]...", nargs=-1)
@click.option("--follow", is_flag=True, help="Go on looking for newly processed datasets, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=30.0, show_default=True, help="Seconds between.")
@click.option("--again", is_flag=True, help="Also datasets already synced or archived that are not whole in LOCALDIR.")
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Datasets at a time.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but failures.")
def sync_command(
    place: str,
    directory: str,
    names: tuple[str, ...],
    follow: bool,
    interval: float,
    again: bool,
    jobs: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Download the processed datasets of BATCH (all, or those named) to LOCALDIR, and mark them as synced.

    BATCH is the output of the runs, s3://bucket/prefix or file:<directory>; LOCALDIR then looks as if they had run
    there. Every file is compared with the dataset's manifest, and a dataset appears whole or not at all. What was
    interrupted goes on where it was, and several may run at once. @FILE holds names of datasets.

    \b
    Exit status (that of the first failure; the other datasets are downloaded all the same):
        0  all that was processed is in LOCALDIR, and the batch says so; with --follow also after Ctrl-C
        2  usage: no such batch or dataset, LOCALDIR is not a directory of one's own
       25  S3 does not let it write that a dataset is synced
       26  S3 does not let it read, or a dataset is not what its manifest says: it stays in datasets-processed
       29  LOCALDIR cannot be written: permission, full disk
       35  another process has a dataset in LOCALDIR, for ten minutes
      130  stopped by Ctrl-C, 143: by SIGTERM
    """
    from caldp import sync, sync_watch

    try:
        source, local = sync.open_places(place, directory)
        ask = sync.Ask(sync.datasets(names), again=again, jobs=jobs, follow=follow, interval=interval)
    except (CaldpError, OSError) as error:
        refuse("caldp sync", error)
    watch = sync_watch.open_watch(json=as_json, quiet=quiet, stdout=sys.stdout, stderr=sys.stderr)
    interrupts = Interrupts().install()
    summary = sync.sync(source, local, ask, watch, interrupts.shield)
    if summary.stuck:  # a download that hears nothing would keep the interpreter; nothing that is shown is half done
        os._exit(summary.exit_code)
    sys.exit(summary.exit_code)


@main.command("archived")
@click.argument("place", metavar="BATCH")
@click.argument("names", metavar="DATASET|@FILE...", nargs=-1, required=True)
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but failures.")
def archived_command(place: str, names: tuple[str, ...], quiet: bool) -> None:
    """Acknowledge that the archive has ingested datasets of BATCH: they move from synced to archived.

    BATCH is s3://bucket/prefix or file:<directory>. The contents of a message are preserved. A dataset that is archived
    already stays so.

    \b
    Exit status (that of the first failure; the others are moved all the same):
        0  all of them are archived
        2  one is not synced, or there is none of this name
       25  S3 does not let it write; 26: or read; 29: the directory cannot be used
    """
    from caldp import batch, sync

    code = 0
    try:
        store = batch.open_batch(place)
        for name, answer, changed in sync.acknowledge_all(store, sync.datasets(names)):
            if isinstance(answer, CaldpError):
                code = code or answer.code
                click.echo(f"caldp archived: {answer}", err=True)
            elif not quiet:
                click.echo(f"{name}: archived" if changed else f"{name}: archived before")
    except (CaldpError, OSError) as error:
        refuse("caldp archived", error)
    sys.exit(code)


def width() -> int:
    """Columns of the terminal; without one, what people expect of one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
