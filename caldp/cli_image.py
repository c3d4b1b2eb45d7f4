"""The commands around the Docker image: build it, push it, run in it."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NoReturn, TextIO, cast

import click

import caldp
from caldp import config
from caldp.cli import AWS_CONFIG, process_aws_command, process_command, refuse
from caldp.config import DEFAULT_CONFIG, ImageConfig
from caldp.dataset import Dataset
from caldp.errors import EXIT_CODES, EngineError, Interrupted, UsageError, describe
from caldp.process import Interrupts
from caldp.reporter import Output
from caldp.store import open_store, parse_uri

if TYPE_CHECKING:
    from caldp.container import Watched

#: Config of caldp-docker-run-pipeline.
DOCKER_CONFIG = "caldp-config-offsite"

#: Those that are in the image, whatever there is of their names in the home.
_CONFIGS = (DEFAULT_CONFIG, DOCKER_CONFIG, AWS_CONFIG)

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

#: Commands whose state the container's keeper looks after.
_CALIBRATIONS = {"caldp-process": process_command, "caldp-process-aws": process_aws_command}

_LEAST_MEMORY = 6 * 1024**2
"""Docker's own limit, in bytes."""

#: Lines of a quiet build that are shown if it fails.
_LAST_LINES = 20


def _codes(success: str, *others: int) -> str:
    texts = {0: success, **{number: EXIT_CODES[number][1] for number in others}}
    return "\b\nExit status:\n" + "\n".join(f"  {number:>3}  {text}" for number, text in texts.items())


def _size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Read a memory limit, as docker run has it, in bytes."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)([kmgt]?)b?", value.strip().lower())
    size = int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")) if match else 0
    if value and size < _LEAST_MEMORY:
        raise click.BadParameter(f"{value!r} is no memory limit: write for example 8g or 800m", ctx, param)
    return size


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of CPUs", ctx, param)
    return value


def _container_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the container itself."""
    options = (
        click.option("--image", default="", metavar="NAME", help="Image instead of that of caldp-image-config."),
        click.option("--memory", callback=_size, default="", metavar="SIZE", help="Memory limit, for example 8g."),
        click.option(
            "--cpus",
            type=click.FloatRange(min=0, min_open=True),
            callback=_finite,
            default=None,
            help="CPU limit; OMP_NUM_THREADS follows it, if it is not exported.",
        ),
        click.option("--network", default=None, metavar="NAME", help="Network, for example host."),
        click.option(
            "--env",
            "variables",
            multiple=True,
            metavar="NAME[=VALUE]",
            help="One more variable for the container; without a value, that of the caller.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _tell(line: str) -> None:
    """Print a line; that nobody reads it any more stops nothing."""
    Output(sys.stdout).line(line)


@click.command(
    "caldp-image-build",
    context_settings=_SETTINGS,
    epilog=_codes("built", 2, 125),
    help="""Build the Docker image from the clone in CONTEXT (default: the current directory).

    Its name, and what it is built on, is in caldp-image-config.
    """,
)
@click.argument("context", type=click.Path(path_type=Path), default=Path())
@click.option("--base", default="", metavar="IMAGE", help="Build on this image (CAL_BASE_IMAGE).")
@click.option("--hstcal", default="", metavar="VERSION", help="stable, a version, or none (CALDP_HSTCAL).")
@click.option("--network", default=None, metavar="NAME", help="Network of the build, for example host.")
@click.option("--no-cache", is_flag=True, help="Build every layer again.")
@click.option("-q", "--quiet", is_flag=True, help="Show only the result.")
@click.version_option(caldp.__version__, prog_name="caldp-image-build")
def build_command(context: Path, base: str, hstcal: str, network: str | None, no_cache: bool, quiet: bool) -> None:
    """Build the Docker image."""
    from caldp import image

    interrupts = Interrupts().install()  # so that the secrets of the build do not stay behind
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        settings = config.load_image()
        settings = replace(settings, base=base or settings.base, hstcal=hstcal or settings.hstcal)
        settings = settings if network is None else replace(settings, network=network)
        if not re.fullmatch(r"none|stable|latest|[0-9][0-9A-Za-z.*]*", settings.hstcal):
            raise UsageError(f"{settings.hstcal!r} is no version of HSTCAL", remedy="write stable, 3.2.0 or none")
        _tell(str(image.build(settings, context, last.append if quiet else _tell, cache=not no_cache)))
    except BaseException as error:
        interrupts.shield()
        if isinstance(error, EngineError):
            for line in last:
                Output(sys.stderr).line(line)
        refuse("caldp-image-build", error, "")


@click.command(
    "caldp-image-push",
    context_settings=_SETTINGS,
    epilog=_codes("pushed", 2, 125),
    help="""Push the Docker image to the repository that caldp-image-config names.

    For Amazon ECR, the AWS credentials log it in; for other registries, docker login does.
    """,
)
@click.version_option(caldp.__version__, prog_name="caldp-image-push")
def push_command() -> None:
    """Push the Docker image."""
    from caldp import image

    interrupts = Interrupts().install()
    try:
        _tell(f"pushed {image.push(config.load_image(), _tell)}")
    except BaseException as error:
        interrupts.shield()
        refuse("caldp-image-push", error, "")


@click.command(
    "caldp-docker-run-container",
    context_settings={**_SETTINGS, "allow_interspersed_args": False},
    epilog=_codes("COMMAND succeeded", 2, 31, 33, 125, 130, 137, 143),
    help="""Run COMMAND in a container, which sees CALDP_HOME (default: the current directory) as its home.

    Without a COMMAND it is /bin/bash. What it writes is the caller's. An exported CRDS_PATH appears as /grp/crds/cache.
    The exit status is that of COMMAND, but for those below.
    """,
)
@_container_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.version_option(caldp.__version__, prog_name="caldp-docker-run-container")
def container_command(command: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - see _run
    """Run a command in a container."""
    _run("caldp-docker-run-container", command or ("/bin/bash",), interactive=True, **options)


@click.command(
    "caldp-docker-run-pipeline",
    context_settings=_SETTINGS,
    epilog=_codes(EXIT_CODES[0][1], *EXIT_CODES),
    help="""Calibrate one HST dataset in a container: caldp-process, with its arguments and options.

    \b
    IPPPSSOOT  dataset: j8cb010b0, a visit such as acs_8ph_01, a sky cell such as skycell-p2381x06y09
    INPUT      as for caldp-process; default file:.
    OUTPUT     as for caldp-process; default file:.
    CONFIG     as for caldp-process; default caldp-config-offsite

    The container sees CALDP_HOME (default: the current directory) as its home. Paths are relative to it; absolute ones
    do not exist inside. An exported CRDS_PATH appears as /grp/crds/cache; without one, references are downloaded into
    CALDP_HOME/crds_cache.
    """,
)
@_container_options
@click.argument("ipppssoot")
@click.argument("input_uri", metavar="[INPUT]", default="file:.")
@click.argument("output_uri", metavar="[OUTPUT]", default="file:.")
@click.argument("config", metavar="[CONFIG]", default=DOCKER_CONFIG)
@click.version_option(caldp.__version__, prog_name="caldp-docker-run-pipeline")
def pipeline_command(
    ipppssoot: str,
    input_uri: str,
    output_uri: str,
    config: str,
    **options: Any,  # noqa: ANN401 - see _run
) -> None:
    """Calibrate one HST dataset in a container."""
    own = {p.name for p in container_command.params}
    asked = [word for name, value in options.items() if name not in own for word in _words(name, value)]
    command = ("caldp-process", ipppssoot, input_uri, output_uri, config, *asked)
    options = {name: value for name, value in options.items() if name in own}
    _run("caldp-docker-run-pipeline", command, interactive=False, **options)


_OPTIONS = {p.name: p for p in process_command.params if isinstance(p, click.Option) and p.name != "version"}
pipeline_command.params[:] += _OPTIONS.values()


def _words(name: str, value: Any) -> list[str]:  # noqa: ANN401 - whatever click made of it
    """Return how an option of caldp-process is typed."""
    option = max(_OPTIONS[name].opts, key=len)
    if isinstance(value, bool):
        return [option] if value else []
    values = value if isinstance(value, tuple) else (value,) if value else ()
    return [word for item in values for word in (option, str(item))]


def _run(
    name: str,
    command: tuple[str, ...],
    *,
    interactive: bool,
    image: str,
    memory: int,
    cpus: float | None,
    network: str | None,
    variables: tuple[str, ...],
) -> NoReturn:
    """Run a command in a container, and exit with its status."""
    from caldp import container

    interrupts, started = Interrupts().install(), threading.Event()
    watched: Watched | None = None
    try:
        settings = config.load_image()
        given = dict(_variable(text, settings) for text in variables)
        watched, script = _watched(command, settings, given)
        if watched:
            given["CALDP_RUN"] = watched.run
        ask = container.Ask(
            image=image or settings.image,
            command=command,
            home=settings.home,
            environment=settings.environment,
            memory=memory,
            cpus=cpus or 0.0,
            network=settings.network if network is None else network,
            variables=given,
            interactive=interactive and sys.stdin is not None,
            outlives_reader=not interactive or watched is not None,
            config=script,
        )
        ended = container.run(ask, interrupts, _bytes(sys.stdout), _bytes(sys.stderr), started)
        interrupts.shield()
        if watched:
            watched.conclude(ended, memory)
        if ended.stopped and (ended.silent or not watched):  # a calibration says so itself, once it can
            Output(sys.stderr).line(f"{name}: {Interrupted(ended.signum, watched.dataset if watched else '')}")
        if ended.out_of_memory:
            text = f"{name}: the memory limit was reached, and something was killed in the container"
            Output(sys.stderr).line(text)
    except BaseException as error:
        interrupts.shield()
        if watched and started.is_set():
            watched.abandon(describe(error, watched.dataset))
        refuse(name, error, watched.dataset if watched else "")
    finally:
        for stream in (sys.stdout, sys.stderr):
            Output(stream).flush()
    sys.exit(ended.exit_code)


def _bytes(stream: TextIO | None) -> IO[bytes]:
    """Return where bytes go that are meant for a standard stream, which may be closed."""
    return Path(os.devnull).open("wb") if stream is None else cast(IO[bytes], stream.buffer)


def _variable(text: str, settings: ImageConfig) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or (not equals and name not in settings.environment):
        raise UsageError(f"--env {name}: there is no such variable", remedy="write NAME=VALUE, or export it")
    return name, value if equals else settings.environment[name]


def _watched(command: Sequence[str], settings: ImageConfig, given: Mapping[str, str]) -> tuple[Watched | None, str]:
    """Check the command line of a calibration before a container is made for it; return who watches, and its config."""
    from caldp import container

    name, args = PurePosixPath(command[0]).name, list(command[1:])
    if name == "caldp" and args:
        name = f"caldp-{args.pop(0)}"
    door = _CALIBRATIONS.get(name)
    if door is None or {"-h", "--help", "--version"} & set(args):
        return None, ""
    try:
        asked = door.make_context(name, args).params
    except click.UsageError as error:
        raise UsageError(f"{name}: {error.format_message()}", remedy=f"see {name} --help") from error
    dataset, home = Dataset.parse(asked["ipppssoot"]).name, settings.home
    script = asked["config"]
    for place in (asked["input_uri"], asked["output_uri"]):
        parse_uri(place)
    for place in (asked["input_uri"], asked["output_uri"], *([script] if script not in _CONFIGS else [])):
        container.inside(place, home)
    container.files_inside(asked["input_uri"], home, dataset)
    for override in asked["overrides"]:
        container.inside(override.partition("=")[2], home)
    if asked["dry_run"]:
        return None, script
    output = asked["output_uri"]
    if output.startswith("file:"):
        output = f"file:{home / (output.removeprefix('file:') or '.')}"
    return container.Watched(dataset, open_store(output, _aws(settings, given)), os.urandom(6).hex()), script


def _aws(settings: ImageConfig, given: Mapping[str, str]) -> dict[str, str]:
    """Return the AWS settings as the container has them: with the files of the home that it is given."""
    from caldp import container

    aws = {
        name: value
        for name, value in {**settings.environment, **given}.items()
        if name.startswith("AWS_") and not container.PATHS.fullmatch(name)
    }
    folder = settings.home / ".aws"
    return {
        **aws,
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_CONFIG_FILE": str(folder / "config"),
    }


@click.group("image", context_settings=_SETTINGS)
def group() -> None:
    """Build, push and run the Docker image."""


group.add_command(build_command, "build")
group.add_command(push_command, "push")
group.add_command(container_command, "run")
