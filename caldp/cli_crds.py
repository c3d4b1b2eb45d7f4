"""The commands of the serverless CRDS: fill one, serve it, and operate it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from caldp.cli import Commands, refuse
from caldp.errors import UsageError
from caldp.store import ConflictError, absolute_uri, parse_uri

if TYPE_CHECKING:
    from caldp.crdserver.settings import Settings
    from caldp.crdserver.site import Site
    from caldp.crdserver.users import Users

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Commands(Commands):
    """Commands of CRDS; some are in modules that few need."""

    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(("affected", "datasets"), "caldp.cli_crds_datasets")


@click.group("crds", cls=_Commands, context_settings=_SETTINGS)
def group() -> None:
    """A CRDS of one's own: rules and references for stock clients, deliveries, and what they affect."""


store_option = click.option(
    "--store", "store_uri", default="file:crds", show_default=True, help="file:<directory> or s3://bucket/prefix."
)
observatory_option = click.option(
    "--observatory", type=click.Choice(["hst", "jwst"]), default="hst", show_default=True, help="Whose."
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")


def _place(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which CRDS is meant."""
    records = click.option(
        "--records", default="", help="sqlite:<file> or dynamodb:<table>; by default a file within the directory."
    )
    return store_option(records(command))


def settings_of(store_uri: str, records: str, **more: Any) -> Settings:  # noqa: ANN401 - fields of Settings
    """Return the settings of a CRDS on the command line.

    Parameters
    ----------
    store_uri, records : str
        As they were typed; records may be empty where the store is a directory.
    **more
        Other fields of ``Settings``.

    Returns
    -------
    Settings
    """
    from caldp.crdserver.settings import Settings

    scheme, rest = parse_uri(store_uri)
    if scheme == "file":
        root = Path(rest).expanduser().absolute()
        records = records or f"sqlite:{root / 'server' / 'records.sqlite'}"
        work = root / "server" / "work"
    elif scheme == "s3" and records:
        from tempfile import gettempdir

        # Files of one name may differ from store to store.
        which = hashlib.sha256(f"{store_uri} {records}".encode()).hexdigest()[:16]
        work = Path(gettempdir()) / f"caldp-crds-{os.getuid()}-{which}"
    else:
        raise UsageError(f"where are the records of {store_uri}?", remedy="give --records dynamodb:<table>")
    return Settings(**{"store": absolute_uri(store_uri), "records": records, "url": "", "work": work, **more})


def _site(store_uri: str, records: str, observatory: str, **more: Any) -> Site:  # noqa: ANN401 - fields of Settings
    from caldp.crdserver.site import Site

    return Site(settings_of(store_uri, records, **more), observatory)


def _users(store_uri: str, records: str) -> Users:
    from caldp.crdserver.records import open_records
    from caldp.crdserver.users import Users

    return Users(open_records(settings_of(store_uri, records).records))


@contextmanager
def told(command: str, what: str = "") -> Iterator[None]:
    """Let whatever goes wrong become one line and an exit status."""
    try:
        yield
    except ImportError as error:
        missing = UsageError(f"{error.name} is not installed", remedy="pip install 'caldp[server]'")
        refuse(f"caldp crds {command}", missing, what)
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes one line
        refuse(f"caldp crds {command}", error, what)


def _who() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container
        return str(os.getuid())


@group.command("init")
@_place
@observatory_option
@click.option("--from", "cache", type=click.Path(path_type=Path), required=True, help="A CRDS cache.")
@click.option("--catalogue", type=click.Path(path_type=Path), help="A server_config that knows more files.")
@json_option
def init_command(
    store_uri: str, records: str, observatory: str, cache: Path, catalogue: Path | None, as_json: bool
) -> None:
    """Fill a CRDS from a CRDS cache: its rules, references, catalogue and history. What is there stays."""
    with told("init", store_uri):
        from caldp.crdserver import fill

        filled = fill.fill(_site(store_uri, records, observatory), cache.expanduser().absolute(), _who(), catalogue)
    click.echo(json.dumps(filled.to_json(), indent=1) if as_json else str(filled))


@group.command("serve")
@_place
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0: one that is free.")
@click.option("--url", default="", help="What clients call it; by default http://localhost:PORT.")
@click.option("--archive", type=click.Choice(["none", "manifest"]), default="none", help="Who keeps references.")
@click.option("--lock-hours", type=float, default=4.0, show_default=True, help="How long an instrument stays locked.")
@click.option("--largest-upload", type=int, default=20_000_000_000, help="Bytes of one file.")
@click.option("--mast", default="", metavar="URL", help="Ask there whose a token is that is none of ours.")
@click.option("--campaigns", default="", metavar="URI", help="Where campaigns of affected datasets go.")
@click.option("--campaign-input", default="", metavar="URI", help="Where their raw data are; default: from MAST.")
@click.option("--campaign-config", default="caldp-config-offsite", show_default=True, help="Their config script.")
@click.option("--inline", type=int, default=4_000_000, hidden=True)
def serve_command(
    store_uri: str,
    records: str,
    host: str,
    port: int,
    url: str,
    archive: str,
    lock_hours: float,
    largest_upload: int,
    mast: str,
    campaigns: str,
    campaign_input: str,
    campaign_config: str,
    inline: int,
) -> None:
    """Serve a CRDS until Ctrl-C.

    Stock clients use it with CRDS_SERVER_URL=http://localhost:PORT/hst; people open http://localhost:PORT/.
    """
    with told("serve", store_uri):
        from caldp.crdserver import serving

        settings = settings_of(
            store_uri,
            records,
            archive=archive,
            lock_seconds=int(lock_hours * 3600),
            largest_upload=largest_upload,
            mast=mast,
            campaigns=absolute_uri(campaigns) if campaigns else "",
            campaign_input=absolute_uri(campaign_input) if campaign_input else "astroquery:",
            campaign_config=campaign_config,
            inline=inline,
        )
        serving.serve(settings, host, port, url, sys.stdout)


@group.command("set-context")
@click.argument("context", metavar="PMAP")
@_place
@observatory_option
@click.option("--edit", is_flag=True, help="The context to derive new ones from, not the default one.")
@click.option("--why", default="", help="Recorded with it.")
def set_context_command(context: str, store_uri: str, records: str, observatory: str, edit: bool, why: str) -> None:
    """Make PMAP (or: edit) the default context."""
    with told("set-context", context):
        from caldp.crdserver import contexts

        moved = contexts.set_context(_site(store_uri, records, observatory), context, _who(), why, edit=edit)
    click.echo(f"{moved['old'] or 'none'} -> {moved['new']}")


@group.command("build")
@click.argument("version")
@click.argument("context", metavar="PMAP")
@_place
@observatory_option
def build_command(version: str, context: str, store_uri: str, records: str, observatory: str) -> None:
    """Say which context goes with a VERSION of the calibration software; clients of JWST ask for it."""
    with told("build", version):
        site = _site(store_uri, records, observatory)
        site.records.put(f"{observatory}:builds", version, {"context": site.context(context)})
    click.echo(f"{version}: {context}")


@group.command("mark")
@click.argument("what", type=click.Choice(["bad", "good"]))
@click.argument("names", nargs=-1, required=True)
@_place
@observatory_option
@click.option("--why", required=True, help="Recorded with it.")
def mark_command(what: str, names: tuple[str, ...], store_uri: str, records: str, observatory: str, why: str) -> None:
    """Say that nobody should use files any more, or that one may again."""
    with told("mark", " ".join(names)):
        from caldp.crdserver import contexts

        contexts.mark(_site(store_uri, records, observatory), list(names), _who(), why, bad=what == "bad")
    click.echo(f"{what}: {' '.join(names)}")


@group.group("user")
def user_group() -> None:
    """Who may deliver and operate."""


@user_group.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(["submitter", "operator"]), required=True, help="What this user may do.")
@_place
def user_add_command(name: str, role: str, store_uri: str, records: str) -> None:
    """Make a user, or give one another role, and print a new token: nobody can read it again."""
    with told("user add", name):
        token = _users(store_uri, records).add(name, role)
    click.echo(token)


@user_group.command("remove")
@click.argument("name")
@_place
def user_remove_command(name: str, store_uri: str, records: str) -> None:
    """Take all tokens of a user back, at once."""
    with told("user remove", name):
        if not _users(store_uri, records).remove(name):
            raise UsageError(f"there is no user {name}", remedy="caldp crds user list")
    click.echo(f"{name} is removed")


@user_group.command("list")
@_place
def user_list_command(store_uri: str, records: str) -> None:
    """List users, roles and how many tokens they have."""
    with told("user list"):
        for name, value in _users(store_uri, records).all():
            click.echo(f"{name}  {value['role']}  tokens: {len(value['tokens'])}")


@group.group("cache")
def cache_group() -> None:
    """Caches elsewhere that say which context they are at (crds sync --push-context)."""


@cache_group.command("add")
@click.argument("name")
@_place
@observatory_option
def cache_add_command(name: str, store_uri: str, records: str, observatory: str) -> None:
    """Make a cache known by a name."""
    with told("cache add", name):
        site = _site(store_uri, records, observatory)
        try:
            site.records.put(f"{observatory}:caches", name, {"context": "", "kind": ""}, expect=0)
        except (ConflictError, ValueError) as error:
            raise UsageError(f"{name!r} is known already, or no name", remedy="choose another one") from error
    click.echo(f"{name} may say which context it is at")


@group.command("client-setup")
@click.argument("url", default="")
def client_setup_command(url: str) -> None:
    """Print the line of Python with which a stock client finds the form of submissions at URL.

    The client has the addresses of other servers built in; all else that it asks, it asks CRDS_SERVER_URL.
    """
    said = json.dumps(f"{url.rstrip('/')}/") if url else "os.environ['CRDS_SERVER_URL'].rstrip('/') + '/'"
    click.echo(
        "import os; from crds.submit import rc_submit; "
        f"[hosts.update(dict.fromkeys(hosts, {said})) for hosts in rc_submit.BASE_URLS.values()]"
    )


@group.command("check")
@click.argument("url")
@json_option
def check_command(url: str, as_json: bool) -> None:
    """Ask a CRDS at URL (http://localhost:PORT/hst) what clients ask; 1 if an answer is not as it should be."""
    with told("check", url):
        from dataclasses import asdict

        from caldp.crdserver.checking import Checker

        found = Checker(url).run()
    for one in found if not as_json else ():
        click.echo(f"{'ok  ' if one.ok else 'WRONG'} {one.seconds:6.2f} s  {one.what}: {one.said}")
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
    sys.exit(0 if all(one.ok for one in found) else 1)


@group.command("tend")
@_place
@observatory_option
@click.option("--archive", type=click.Choice(["none", "manifest"]), default="none", help="Who keeps references.")
def tend_command(store_uri: str, records: str, observatory: str, archive: str) -> None:
    """Do what is to be done now and then: end locks, repair what jobs read, take note of the archive."""
    with told("tend", store_uri):
        from caldp.crdserver import tending

        tending.tend(_site(store_uri, records, observatory, archive=archive))


@group.command("mirror")
@click.option("--from", "source", required=True, metavar="STORE", help="The CRDS to copy.")
@click.option("--from-records", default="", help="Its records; by default a file within the directory.")
@click.option("--to", "store_uri", required=True, metavar="STORE", help="The CRDS that becomes like it.")
@click.option("--to-records", "records", default="", help="Its records; by default a file within the directory.")
@observatory_option
@json_option
def mirror_command(
    source: str, from_records: str, store_uri: str, records: str, observatory: str, as_json: bool
) -> None:
    """Copy rules, references, catalogue and history of one CRDS to another: from operations to test, never back.

    Users, tokens, sessions and submissions are not copied. A CRDS that has confirmed deliveries of its own, which the
    other does not have, is refused.
    """
    with told("mirror", store_uri):
        from caldp.crdserver import fill

        filled = fill.mirror(_site(source, from_records, observatory), _site(store_uri, records, observatory), _who())
    click.echo(json.dumps(filled.to_json(), indent=1) if as_json else str(filled))
