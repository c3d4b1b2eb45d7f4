"""The Docker image: build it, and push it to a registry."""

from __future__ import annotations

import ast
import base64
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import caldp
from caldp import engine, programs
from caldp.aws import make
from caldp.config import ImageConfig
from caldp.errors import EngineError, UsageError

if TYPE_CHECKING:
    import docker

#: Told what happens, a line each.
Tell = Callable[[str], None]

#: Amazon's registries.
_ECR = re.compile(r"(\d{12})\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/.+")

#: Labels that every image has.
_OCI = "org.opencontainers.image"

#: Settings of pip that mean the same in a build as outside.
_PIP = ("index-url", "extra-index-url", "trusted-host", "find-links", "proxy", "timeout", "default-timeout", "retries")

#: Those that name places.
_PLACES = ("index-url", "extra-index-url", "find-links")

#: BuildKit takes no larger secret, in bytes.
_LARGEST_SECRET = 500_000

#: The first docker command that cannot build with BuildKit by itself.
_NEEDS_BUILDX = 23

#: Build arguments that Docker knows by itself, and keeps out of the image and its history.
_PROXIES = re.compile(r"(https?|all|no)_proxy|(HTTPS?|ALL|NO)_PROXY")

#: Lines of a builder about a command that failed: what it was, but not why.
_SUMMARY = re.compile(r"executor failed running|did not complete successfully|^ > \[|^ *\d+ \| ")

#: Seconds of silence that end a push: a registry may need minutes to store a large layer.
_PUSH_TIMEOUT = 600


@dataclass(frozen=True)
class Built:
    """What a build came to.

    Attributes
    ----------
    image : str
        ``repository:tag``.
    id : str
        ``sha256:...`` of the image.
    size : int
        Bytes, of all layers.
    hstcal : str
        What was asked for.
    """

    image: str
    id: str
    size: int
    hstcal: str

    def __str__(self) -> str:
        return f"built {self.image}, {self.size / 1e6:,.0f} MB, HSTCAL {self.hstcal}: {self.id}"


def build(settings: ImageConfig, context: Path, tell: Tell, *, cache: bool = True) -> Built:
    """Build the image.

    Parameters
    ----------
    settings : ImageConfig
        Its name, what it is built on.
    context : Path
        A clone of the repository.
    tell : callable
        Told every line of the build.
    cache : bool, optional
        Take layers of earlier builds that have not changed.

    Returns
    -------
    Built

    Raises
    ------
    UsageError
        If ``context`` is no clone.
    EngineError
        If there is no engine, no docker command that can build, or the build fails.
    """
    context = context.resolve()
    if not (context / "Dockerfile").is_file() or not (context / "container").is_dir():
        raise UsageError(
            f"{context} has no Dockerfile of CALDP", remedy="give the clone of the repository, or cd to it"
        )
    with closing(engine.connect(settings.environment)) as client:
        return _build(client, settings, context, tell, cache)


def _build(client: docker.DockerClient, settings: ImageConfig, context: Path, tell: Tell, cache: bool) -> Built:
    environment = {**settings.environment, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
    command = find_docker(environment)
    wanted = settings.hstcal != "none"
    bases = {"BASE_IMAGE": settings.base, **({"CONDA_IMAGE": settings.conda} if wanted else {})}
    labels = {
        f"{_OCI}.version": caldp.__version__,
        f"{_OCI}.revision": _revision(context, environment),
        f"{_OCI}.created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    with engine.explained(f"{settings.image} cannot be built", environment):
        pinned = {argument: pin(client, name, tell) for argument, name in bases.items()}
        for label, text in zip((f"{_OCI}.base", "caldp.conda"), pinned.values(), strict=False):
            name, _, digest = text.partition("@")
            labels |= {f"{label}.name": name, f"{label}.digest": digest or str(client.images.get(name).id)}
    arguments = {
        **pinned,
        "HSTCAL_FROM": "conda" if wanted else "none",
        **({"HSTCAL": settings.hstcal} if wanted else {}),
        "CSYS_VER": settings.environment.get("CSYS_VER") or f"caldp_{caldp.__version__}",
    }
    with secrets(environment) as files:
        argv = [command, "build", "--file", str(context / "Dockerfile"), "--tag", settings.image]
        argv += ["--network", settings.network] if settings.network else []
        argv += [] if cache else ["--no-cache"]
        argv += [text for key, value in arguments.items() for text in ("--build-arg", f"{key}={value}")]
        # Without their values, which docker reads from its environment: they may have passwords.
        proxies = (name for name, value in environment.items() if value and _PROXIES.fullmatch(name))
        argv += [text for name in proxies for text in ("--build-arg", name)]
        argv += [text for key, value in labels.items() if value for text in ("--label", f"{key}={value}")]
        argv += [text for key, path in files.items() for text in ("--secret", f"id={key},src={path}")]
        try:
            done = programs.run([*argv, str(context)], cwd=context, env=environment, on_line=tell)
        except programs.StartError as error:
            raise EngineError(str(error), remedy="install the docker command again") from error
    if done.returncode:
        remedy = engine.remedy("\n".join(done.tail)) or "see the lines above"
        said = engine.shortened(_telling(done.tail))
        raise EngineError(f"{settings.image}: docker build failed ({done.outcome}): {said}", remedy=remedy)
    with engine.explained(f"{settings.image} cannot be looked at", environment):
        made = client.images.get(settings.image)
    return Built(settings.image, str(made.id), int(made.attrs["Size"]), settings.hstcal)


def _telling(tail: Sequence[str]) -> str:
    """Return the line of a builder that says best why it failed."""
    errors = [line for line in reversed(tail) if re.search(r"error\b", line, re.IGNORECASE)]
    best = next((line for line in errors if not _SUMMARY.search(line)), errors[0] if errors else "see above")
    return re.sub(r"^(#\d+ )?(\d+\.\d+ )?", "", best)


def push(settings: ImageConfig, tell: Tell) -> str:
    """Push the image to its registry; to Amazon ECR with the credentials of the AWS settings.

    Parameters
    ----------
    settings : ImageConfig
        Its name.
    tell : callable
        Told what happens.

    Returns
    -------
    str
        ``repository@sha256:...``, under which it can be pulled.

    Raises
    ------
    EngineError
        If the image is not here, or the registry refuses it.
    """
    environment = settings.environment
    with closing(engine.connect(environment)) as client:
        client.api.timeout = _PUSH_TIMEOUT
        repository, tag = split(settings.image)
        digest = ""
        with engine.explained(f"{settings.image} cannot be pushed", environment):
            image_of(client, settings.image)
            login = ecr_login(repository, environment) if _ECR.fullmatch(repository) else None
            for event in client.api.push(repository, tag, stream=True, decode=True, auth_config=login):
                if said := event.get("error"):
                    raise EngineError(
                        f"{settings.image} cannot be pushed: {' '.join(said.split())}",
                        remedy=engine.remedy(said) or "check the repository in caldp-image-config",
                    )
                digest = event.get("aux", {}).get("Digest", digest)
                if "status" in event and "progressDetail" not in event:
                    tell(f"{event['id']}: {event['status']}" if "id" in event else event["status"])
                elif event.get("status") in ("Pushed", "Layer already exists"):
                    tell(f"{event.get('id', '')}: {event['status']}")
    return f"{repository}@{digest}" if digest else settings.image


def split(name: str) -> tuple[str, str]:
    """Split the name of an image.

    Parameters
    ----------
    name : str
        ``repository:tag``, or a repository alone.

    Returns
    -------
    repository, tag : str
        The tag is ``latest`` if there is none.
    """
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")


def image_of(client: docker.DockerClient, name: str) -> docker.models.images.Image:
    """Return an image that is here.

    Parameters
    ----------
    client : DockerClient
        The engine.
    name : str
        ``repository:tag``.

    Returns
    -------
    Image

    Raises
    ------
    EngineError
        If it is not here: nothing is pulled unasked, for the name may be somebody else's on a public registry.
    """
    import docker.errors

    try:
        return client.images.get(name)
    except docker.errors.ImageNotFound as error:
        raise EngineError(
            f"there is no image {name} here", remedy=f"build it with caldp-image-build, or: docker pull {name}"
        ) from error


def ecr_login(repository: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Ask Amazon ECR for a login.

    Parameters
    ----------
    repository : str
        ``<account>.dkr.ecr.<region>.amazonaws.com/<name>``.
    environment : mapping
        With the AWS_* variables that count.

    Returns
    -------
    dict
        ``username`` and ``password``, good for twelve hours.

    Raises
    ------
    EngineError
        If there are no AWS credentials, or they do not let us.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    match = _ECR.fullmatch(repository)
    if match is None:
        raise ValueError(repository)
    try:
        client = make("ecr", environment, region=match[2])
        answer = client.get_authorization_token(registryIds=[match[1]])
        token = answer["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
    except (BotoCoreError, ClientError, LookupError, ValueError) as error:
        raise EngineError(
            f"{repository}: Amazon ECR does not log us in ({' '.join(str(error).split())})",
            remedy="check your AWS credentials, and that they allow ecr:GetAuthorizationToken",
        ) from error
    return {"username": user, "password": password}


def pin(client: docker.DockerClient, name: str, tell: Tell) -> str:
    """Find out which image a name means today.

    Parameters
    ----------
    client : DockerClient
        The engine.
    name : str
        Image to build on.
    tell : callable
        Told what was found.

    Returns
    -------
    str
        ``name@sha256:...`` if its registry answers or it came from one; else the name of an image that is only here.

    Raises
    ------
    EngineError
        If it is neither here nor in a registry that answers.
    """
    import docker.errors
    import requests

    if "@" in name:
        return name
    try:
        found = f"{name}@{client.images.get_registry_data(name).id}"
    except (docker.errors.DockerException, requests.RequestException) as unreachable:
        try:
            image = client.images.get(name)
        except docker.errors.ImageNotFound as error:
            raise EngineError(
                f"the image {name}, to build on, is not here, and its registry does not give it "
                f"({engine.shortened(engine.said(unreachable))})",
                remedy="check the name and the network, or name one that is here (--base, CAL_BASE_IMAGE)",
            ) from error
        known = [text.partition("@") for text in image.attrs.get("RepoDigests") or ()]
        digests = [digest for repository, _, digest in known if repository == split(name)[0]]  # not of its other names
        found = f"{name}@{digests[0]}" if digests else name
        found_here = digests[0] if digests else image.id
        tell(f"{name}: its registry does not answer; the one that is here is taken, {found_here}")
        return found
    tell(f"{name} is {found.partition('@')[2]}")
    return found


def find_docker(environment: Mapping[str, str]) -> str:
    """Find a docker command that can build with BuildKit: the first on PATH may lack the part that does.

    Parameters
    ----------
    environment : mapping
        With ``PATH``.

    Returns
    -------
    str
        Its path.

    Raises
    ------
    EngineError
        If there is none.
    """
    found = [
        str(Path(folder).absolute() / "docker")
        for folder in dict.fromkeys(environment.get("PATH", os.defpath).split(os.pathsep))
        if folder and shutil.which("docker", path=folder)
    ]
    for command in found:
        if _answer([command, "buildx", "version"], environment):
            return command
        version = _answer([command, "version", "--format", "{{.Client.Version}}"], environment)
        major = re.match(r"\d+", version)
        if major and int(major[0]) < _NEEDS_BUILDX:
            return command
    if not found:
        raise EngineError("there is no docker command on PATH", remedy="install Docker, with its buildx plug-in")
    raise EngineError(f"{found[0]} cannot build: it has no buildx", remedy="install Docker's buildx plug-in")


def _answer(argv: list[str], environment: Mapping[str, str]) -> str:
    """Return what a command prints, or nothing if it fails."""
    lines: list[str] = []
    try:
        done = programs.run(argv, cwd=Path(), env=environment, on_line=lines.append)
    except programs.StartError:
        return ""
    return "\n".join(lines).strip() if done.returncode == 0 else ""


def _revision(context: Path, environment: Mapping[str, str]) -> str:
    """Return the commit of a clone, ``-dirty`` if it was edited; nothing for a source archive."""
    git = shutil.which("git", path=environment.get("PATH", os.defpath))
    if git is None or not (context / ".git").exists():
        return ""
    return _answer(
        [git, "-C", str(context), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], environment
    )


@contextmanager
def secrets(environment: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Give a build what it needs to reach package indexes as we do, without leaving it in the image.

    Parameters
    ----------
    environment : mapping
        The caller's.

    Yields
    ------
    dict
        Names of BuildKit secrets (``pipconf``: settings of pip; ``ca``: certificates to trust) and their files.
    """
    settings = pip_settings(environment)
    names = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    trusted = [settings.pop("cert", ""), *(environment.get(name, "") for name in names)]
    with tempfile.TemporaryDirectory(prefix="caldp-image-") as folder:
        files: dict[str, Path] = {}
        if settings:
            files["pipconf"] = Path(folder) / "pip.conf"
            lines = [f"{key} = {value}" for key, value in settings.items()]
            files["pipconf"].write_text("\n".join(["[global]", *lines]) + "\n", encoding="utf-8")
        bundle = next((Path(path) for path in trusted if path and Path(path).is_file()), None)
        if bundle is not None:
            if bundle.stat().st_size > _LARGEST_SECRET:
                raise EngineError(
                    f"{bundle} is too large to be handed to a build", remedy="export PIP_CERT=<fewer certificates>"
                )
            files["ca"] = bundle.absolute()
        yield files


def pip_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Read the settings of pip that a build can use: no paths of this computer, but for the certificates.

    Parameters
    ----------
    environment : mapping
        The caller's.

    Returns
    -------
    dict
        Name -> value, those of the environment last.
    """
    found: dict[str, dict[str, str]] = {}
    # However quiet somebody has told pip to be.
    listed = _answer([sys.executable, "-m", "pip", "-vvv", "config", "list"], environment)
    for line in listed.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=(['\"].*)", line)
        if match:
            found.setdefault(match[1], {})[match[2]] = ast.literal_eval(match[3])
    if not listed:  # a Python without pip
        variables = {name: environment.get(f"PIP_{name.upper().replace('-', '_')}", "") for name in (*_PIP, "cert")}
        found[":env:"] = {name: value for name, value in variables.items() if value}
    merged = {**found.get("global", {}), **found.get("install", {}), **found.get(":env:", {})}
    usable = {name: " ".join(t for t in merged[name].split() if _travels(name, t)) for name in _PIP if name in merged}
    usable["cert"] = merged.get("cert", "")
    return {name: value for name, value in usable.items() if value}


def _travels(name: str, value: str) -> bool:
    """Whether a setting means the same in a build: places must be on the network."""
    return name not in _PLACES or ("://" in value and not value.startswith("file:"))
