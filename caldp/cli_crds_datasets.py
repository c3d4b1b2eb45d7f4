"""The commands of a CRDS that are about datasets: their catalogue, and which of them a change of contexts affects."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caldp.cli_crds import json_option, observatory_option, store_option, told
from caldp.errors import CaldpError, InputError, OutputError, UsageError
from caldp.reporter import human_count
from caldp.store import absolute_uri, open_store, parse_uri

if TYPE_CHECKING:
    from caldp.crdserver.affected import Affected
    from caldp.crdserver.datasets import Datasets
    from caldp.crdserver.stock import Stock

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

#: Entries that were not imported, or instruments, that a person is told of.
_TOLD = 20


def _place(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which catalogue is meant."""
    for option in (
        store_option,
        observatory_option,
    ):
        command = option(command)
    return command


def _catalogue(store_uri: str, observatory: str) -> Datasets:
    from caldp.crdserver.datasets import Datasets

    return Datasets(open_store(absolute_uri(store_uri)), observatory)


# ---- the catalogue


@click.group("datasets", context_settings=_SETTINGS)
def datasets_command() -> None:
    """The catalogue of the parameters of datasets, by which their references are chosen."""


@datasets_command.command("import")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@_place
@json_option
def import_command(sources: tuple[Path, ...], store_uri: str, observatory: str, as_json: bool) -> None:
    """Put datasets into the catalogue, in place of those of the same names.

    SOURCE is a FITS file of an exposure; a table (.csv, .parquet, .ecsv) with a column dataset (PRODUCT:EXPOSURE) and
    one for each keyword; JSON as crds bestrefs --load-pickles reads it; or a folder of raw exposures, tables and JSON.
    Of two entries of one name the later counts. All of an import is there at once, instrument by instrument.

    \b
    Exit status:
        0  all are imported
       21  a source is not there, or some entries cannot be imported: they are named, the others are there
       29  the directory cannot be written; 25: S3 cannot
    """
    with told("datasets import", store_uri):
        from caldp.crdserver import intake as coming
        from caldp.crdserver.datasets import Intake

        intake = Intake(open_store(absolute_uri(store_uri)), observatory)
        for path in coming.files(sources):
            coming.take(intake, observatory, path)
        done = intake.finish()
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=1))
    else:
        for name, counts in done.instruments.items():
            click.echo(f"{name}: {counts.added:,} new, {counts.replaced:,} replaced, {counts.rows:,} now")
    for entry, why in done.rejected[:_TOLD]:
        click.echo(f"caldp crds datasets import: not imported: {entry} ({why})", err=True)
    if done.rejections > _TOLD:
        click.echo(f"caldp crds datasets import: and {done.rejections - _TOLD:,} more are not imported", err=True)
    sys.exit(InputError.exit_code if done.rejections else 0)


@datasets_command.command("list")
@click.argument("instrument", default="")
@click.option("--since", default=None, metavar="DATE", help="Only exposed since, e.g. '2009-05-14 00:00:00'.")
@_place
@json_option
def list_command(instrument: str, since: str | None, store_uri: str, observatory: str, as_json: bool) -> None:
    """Print how many datasets there are, or with INSTRUMENT, which."""
    with told("datasets list", store_uri):
        catalogue = _catalogue(store_uri, observatory)
        if not instrument and since is not None:
            raise UsageError("--since is for the datasets of an instrument", remedy="name the instrument")
        records = catalogue.records()
        if instrument and instrument.lower() not in records:
            raise InputError(
                f"the catalogue in {store_uri} has no datasets of {instrument}",
                remedy=f"it has {', '.join(records) or 'none'}: caldp crds datasets import",
            )
        found: Any = catalogue.ids(instrument.lower(), since) if instrument else records
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif instrument:
        for one in found:
            click.echo(one)
    else:
        for name, record in found.items():
            click.echo(f"{name:<8} {record['rows']:>12,} datasets, written {record['written']}")


@datasets_command.command("show")
@click.argument("names", nargs=-1, required=True, metavar="DATASET...")
@_place
@json_option
def show_command(names: tuple[str, ...], store_uri: str, observatory: str, as_json: bool) -> None:
    """Print the parameters of datasets; a product gives all its exposures.

    \b
    Exit status:
        0  all are there
       21  one is not
    """
    with told("datasets show", " ".join(names)):
        found = _catalogue(store_uri, observatory).headers(names)
    missing = {one: why for one, why in found.items() if isinstance(why, str)}
    if as_json:
        click.echo(json.dumps({one: header for one, header in found.items() if one not in missing}, indent=1))
    for one, header in found.items():
        if isinstance(header, str):
            click.echo(f"caldp crds datasets show: {one}: {header}", err=True)
        elif not as_json:
            click.echo(one)
            for keyword, text in sorted(header.items()):
                click.echo(f"  {keyword:<10} {text}")
    sys.exit(InputError.exit_code if missing else 0)


# ---- affected datasets


@click.command("affected", context_settings={**_SETTINGS, "ignore_unknown_options": True})
@click.argument("old")
@click.argument("new")
@_place
@click.option("--cache", type=click.Path(path_type=Path), help="A CRDS cache that has the rules; default: the store.")
@click.option("--instruments", default="", metavar="NAME,NAME", help="Only these.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the list of products: FILE.ids.")
@click.option("--check", "checked", type=click.IntRange(min=0), default=0, metavar="N", help="Ask crds itself about N.")
@click.option("--submit", "batch", default="", metavar="BATCH", help="Calibrate them anew, into this batch directory.")
@json_option
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF caldp campaign submit]")
def affected_command(
    old: str,
    new: str,
    store_uri: str,
    observatory: str,
    cache: Path | None,
    instruments: str,
    output: Path | None,
    checked: int,
    batch: str,
    as_json: bool,
    more: tuple[str, ...],
) -> None:
    """Print the datasets of the catalogue for which context NEW chooses other references than OLD, and which.

    They are those that crds bestrefs --affected-datasets finds. A dataset for which NEW fails in a type that was
    changed is not among them, though others of its types change; how many these are is told.

    With --submit, a campaign calibrates their products with NEW, as caldp campaign submit does; its options, for
    example --input, --config or -j, may follow, and only what it prints is on standard output.

    \b
    Exit status:
        0  done, whether or not there are any
        1  --check found a dataset for which crds says something else
        2  an option or a context is wrong
       21  the catalogue has no datasets, or cannot be read
       27  a context is not there, or damaged
       29  FILE cannot be written
    With --submit, that of caldp campaign submit.
    """
    with told("affected", f"{old} -> {new}"):
        if more and (not batch or not more[0].startswith("-")):
            raise UsageError(f"there is no option {more[0]}", remedy="caldp crds affected --help")
        if output and output.suffix != ".ids":
            raise UsageError(f"{output} is no list", remedy="give a name that ends in .ids")
        if batch:
            parse_uri(batch)
        for context in (old, new):
            if not context.endswith(".pmap"):
                raise UsageError(f"{context} is no context", remedy="give a name like hst_0729.pmap")
        only = [name.strip().lower() for name in instruments.split(",") if name.strip()] or None
        catalogue = _catalogue(store_uri, observatory)
        known = catalogue.instruments()
        if not known:
            raise InputError(
                f"the catalogue in {store_uri} has no datasets of {observatory}", remedy="caldp crds datasets import"
            )
        if wrong := [name for name in only or () if name not in known]:
            raise InputError(f"the catalogue has no datasets of {wrong[0]}", remedy=f"it has {', '.join(known)}")
        stock = _stock(store_uri, observatory, cache)
        from caldp.crdserver import affected

        found = affected.find(stock, old, new, catalogue, instruments=only)
        if checked:
            _check(stock, found, catalogue, checked)
        if output:
            _write(output, found.products)
    _say(found, as_json and not batch, is_listed=not batch)
    if not batch:
        return
    if not found.products:
        click.echo(f"caldp crds affected: {old} -> {new} affects no dataset: there is nothing to calibrate", err=True)
        return
    _submit(found, output, batch, (*more, *(("--json",) if as_json else ())))


def _stock(store_uri: str, observatory: str, cache: Path | None) -> Stock:
    """Return what evaluates contexts: those of a cache, or those in the store."""
    from caldp.crdserver.mappings import Mappings
    from caldp.crdserver.stock import Stock

    if cache:
        if not (cache / "mappings" / observatory).is_dir():
            raise UsageError(f"{cache} is no CRDS cache of {observatory}", remedy="give one that has its mappings")
        return Stock(cache.expanduser().absolute(), observatory)
    scheme, rest = parse_uri(store_uri)
    if scheme == "file":  # where its server has them
        folder = Path(rest).expanduser().absolute() / "server" / "work" / "cache"
    else:
        folder = Path(tempfile.gettempdir()) / f"caldp-crds-{os.getuid()}" / "cache"
    mappings = Mappings(open_store(absolute_uri(store_uri)), observatory, folder)
    return Stock(folder, observatory, mappings.closure)


def _check(stock: Stock, found: Affected, catalogue: Datasets, count: int) -> None:
    """Ask crds about some datasets of the catalogue, one after the other."""
    from caldp.crdserver import affected

    names = [one for instrument in found.instruments for one in catalogue.ids(instrument)]
    some = set(random.sample(names, min(count, len(names))))  # noqa: S311 - no secret
    asked = affected.select_stock(stock, found.old, found.new, catalogue, ids=some, instruments=list(found.instruments))
    for one in sorted(some):
        for ours, theirs in ((found.datasets, asked.datasets), (found.failed, asked.failed)):
            if ours.get(one) != theirs.get(one):
                raise CaldpError(
                    f"{one}: found {ours.get(one, ())}, but crds says {theirs.get(one, ())}",
                    remedy="this is a fault of caldp: please report it",
                )
    click.echo(f"caldp crds affected: crds says the same of {human_count(len(some), 'dataset')}", err=True)


def _say(found: Affected, as_json: bool, *, is_listed: bool) -> None:
    """Print what was found."""
    if as_json:
        click.echo(json.dumps(found.to_json()))
    elif is_listed:
        for one, reasons in sorted(found.datasets.items()):
            click.echo(f"{one}  {', '.join(f'{each.type} {each.old} -> {each.new}' for each in reasons)}")
    for name, counts in found.instruments.items():
        types = ", ".join(f"{kind} {count:,}" for kind, count in counts.types.items())
        withheld = f"; {counts.withheld:,} not told, for {found.new} fails for them" if counts.withheld else ""
        since = f" since {counts.since}" if counts.since > "1901" else ""
        click.echo(
            f"{name}: {counts.affected:,} of {counts.datasets - counts.early:,} datasets{since} are affected"
            f"{f' ({types})' if types else ''}{withheld}",
            err=True,
        )
    for name, why in found.skipped.items():
        click.echo(f"{name}: {why}", err=True)
    if not found.changed:
        click.echo(f"no rules of {found.old} and {found.new} differ", err=True)


def _write(path: Path, products: list[str]) -> None:
    """Write a list of datasets."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text("".join(f"{product}\n" for product in products))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error.strerror})", remedy="give another place") from error


def _submit(found: Affected, listing: Path | None, batch: str, more: tuple[str, ...]) -> None:
    """Start the campaign as the command for that does, and end as it ends."""
    from caldp.cli_campaign import submit_command

    label = () if "--label" in more else ("--label", f"{found.old} -> {found.new}")
    with tempfile.TemporaryDirectory() as folder:
        if listing is None:
            listing = Path(folder) / f"{Path(found.old).stem}-{Path(found.new).stem}.ids"
            with told("affected", str(listing)):
                _write(listing, found.products)
        argv = [str(listing), batch, *more, *label, "--context", found.new]
        submit_command.main(argv, prog_name="caldp campaign submit")
