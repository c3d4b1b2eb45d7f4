"""The commands: ``caldp-process`` and ``caldp``. They read the command line, call a function, and exit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

import caldp
from caldp.config import DEFAULT_CONFIG
from caldp.errors import EXIT_CODES
from caldp.process import EXISTING, Interrupts, Request, plan, process, survey
from caldp.reporter import open_reporter

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _exit_code_table() -> str:
    return "\b\nExit status:\n" + "\n".join(f"  {code:>3}  {text}" for code, (_, text) in EXIT_CODES.items())


@click.command(
    "caldp-process",
    context_settings=_SETTINGS,
    epilog=_exit_code_table(),
    help="""Calibrate one HST dataset.

    \b
    IPPPSSOOT  dataset: j8cb010b0, a visit such as acs_8ph_01, a sky cell such as skycell-p2381x06y09
    INPUT      file:<directory> with its raw FITS files (or <dataset>.tar.gz), or astroquery: to download them
               from MAST into the working directory (or CALDP_HOME); default file:.
    OUTPUT     file:<directory>; products go to data/, the state to messages/; default file:.
    CONFIG     caldp-config-onsite (default), -offsite, -aws, or a script of your own (name on PATH, or path)
    """,
)
@click.argument("ipppssoot")
@click.argument("input_uri", metavar="[INPUT]", default="file:.")
@click.argument("output_uri", metavar="[OUTPUT]", default="file:.")
@click.argument("config", metavar="[CONFIG]", default=DEFAULT_CONFIG)
@click.option("--context", default="", metavar="PMAP", help="CRDS context, e.g. hst_0729.pmap; wins over CRDS_CONTEXT.")
@click.option("--override", "overrides", multiple=True, metavar="TYPE=FILE", help="Use this reference file instead.")
@click.option(
    "--existing",
    type=click.Choice(EXISTING),
    default="overwrite",
    show_default=True,
    help="What to do when the dataset is already processed.",
)
@click.option("--take-over", is_flag=True, help="Take the dataset from a run that still holds it.")
@click.option("--dry-run", is_flag=True, help="Say what would be fetched, which references, which programs.")
@click.option("--keep-scratch", is_flag=True, help="Leave the workspace in CALDP_HOME/caldp-scratch.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output.")
@click.option("-v", "--verbose", is_flag=True, help="Show every line of the programs.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but a failure.")
@click.version_option(caldp.__version__, prog_name="caldp-process")
def process_command(
    ipppssoot: str,
    input_uri: str,
    output_uri: str,
    config: str,
    context: str,
    overrides: tuple[str, ...],
    existing: str,
    take_over: bool,
    dry_run: bool,
    keep_scratch: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Calibrate one HST dataset."""
    request = Request(ipppssoot, input_uri, output_uri, config, context, overrides, existing, take_over, keep_scratch)
    reporter = open_reporter(json=as_json, quiet=quiet, verbose=verbose, stdout=sys.stdout, stderr=sys.stderr)
    outcome = (plan if dry_run else process)(request, reporter, Interrupts().install())
    sys.exit(outcome.exit_code)


@click.group(context_settings=_SETTINGS, help="Calibrate Hubble Space Telescope data.")
@click.version_option(caldp.__version__, prog_name="caldp")
def main() -> None:
    """Calibrate Hubble Space Telescope data."""


main.add_command(process_command, "process")


def _fail(command: str, error: Exception) -> NoReturn:
    click.echo(f"caldp {command}: {' '.join(str(error).split()) or type(error).__name__}", err=True)
    sys.exit(2)


@main.command("simulate")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--exposures", type=click.IntRange(1, 4), default=1, show_default=True, help="More than 1: association.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Seed of the photon noise.")
def simulate_command(directory: Path, exposures: int, seed: int) -> None:
    """Make a simulated COS exposure with its own reference files and CRDS rules in DIRECTORY.

    No HST data and no network are needed.  The directory then holds inputs/, crds_cache/, truth/ (the injected
    spectrum) and caldp-config-simulated, the config to calibrate it with.
    """
    from caldp.simulate import simulate

    try:
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
    """Look at CRDS reference files."""


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

    No reference is downloaded, only rules (and with astroquery: the raw data). The exit status is 0 if all are intact
    or would be downloaded, 27 if one cannot be used.
    """
    from caldp import references

    request = Request(dataset, input_uri, config=config, context=context, overrides=overrides)
    quiet = open_reporter(json=False, quiet=True, verbose=False, stdout=sys.stdout, stderr=sys.stderr)
    outcome = survey(request, quiet, Interrupts().install())
    if outcome.plan is not None:
        click.echo(json.dumps(outcome.plan, indent=1) if as_json else references.as_text(outcome.plan))
    sys.exit(outcome.exit_code)


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
