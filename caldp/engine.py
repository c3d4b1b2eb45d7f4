"""The Docker engine: find it, and say in one line what is wrong with it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from caldp.errors import CaldpError, EngineError

if TYPE_CHECKING:
    import docker

#: Seconds to wait for an answer.
_TIMEOUT = 60


def connect(environment: Mapping[str, str]) -> docker.DockerClient:
    """Find the engine as the docker command does: ``DOCKER_HOST``, the current context, or the usual socket.

    Parameters
    ----------
    environment : mapping
        The caller's.

    Returns
    -------
    DockerClient
        Of an engine that has answered; to be closed.

    Raises
    ------
    EngineError
        If there is none, it is not running, or we may not use it.
    """
    import docker

    with explained("Docker cannot be used", environment):
        client = docker.from_env(timeout=_TIMEOUT, environment=dict(environment))
        client.ping()
    return client


@contextmanager
def explained(what: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Turn what the Docker package raises into an EngineError.

    Parameters
    ----------
    what : str
        Begins the message, for example ``caldp:latest cannot be pushed``.
    environment : mapping
        The caller's, whose engine it is.
    """
    import docker.errors
    import requests
    import urllib3.exceptions

    docker_s = (docker.errors.DockerException, docker.errors.StreamParseError)
    network_s = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)

    try:
        yield
    except CaldpError:
        raise
    except (*docker_s, *network_s, ValueError) as error:  # ValueError: an address, or an answer, that makes no sense
        why, remedy = _explain(error, environment.get("DOCKER_HOST") or "its usual socket")
        raise EngineError(f"{what}: {why}", remedy=remedy) from error


def _explain(error: Exception, where: str) -> tuple[str, str]:
    number = _errno(error)
    if number == errno.ENOENT:
        return f"there is no Docker engine at {where}", "install and start Docker, or export DOCKER_HOST"
    if number in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
        return f"the Docker daemon at {where} is not running", "start it, for example: sudo systemctl start docker"
    if number in (errno.EACCES, errno.EPERM):
        return f"not allowed to use the Docker engine at {where}", "become a member of the group docker, or use sudo"
    text = said(error)
    return text, remedy(text)


def said(error: Exception) -> str:
    """Return what an engine, or the way to it, said of a failure.

    Parameters
    ----------
    error : Exception
        What the Docker package raised.

    Returns
    -------
    str
        In one line; of an answer of the engine, only what it says itself.
    """
    return " ".join((getattr(error, "explanation", None) or str(error)).split())


def shortened(text: str, length: int = 300) -> str:
    """Cut a long message down to its end, where engines and builders say what it comes to.

    Parameters
    ----------
    text : str
        One line.
    length : int, optional
        Characters that are left at most.

    Returns
    -------
    str
    """
    if len(text) <= length:
        return text
    end = text[4 - length :]
    return f"... {end.partition(' ')[2] or end}"


def remedy(said: str) -> str:
    """Say what can be done about what the engine said.

    Parameters
    ----------
    said : str
        Its message.

    Returns
    -------
    str
        Empty if nothing is known.
    """
    text = said.lower()
    if "no space left on device" in text:
        return "free space for the engine: docker system prune, or move its data-root"
    if "invalid mount" in text or "mounts denied" in text:
        return "let the engine share that directory, or choose another CALDP_HOME"
    if re.search(r"^denied\b|access\b.*\bdenied|unauthorized|no basic auth", text):
        return "log in to the registry (docker login), and check the repository in caldp-image-config"
    if re.search(r"network \S+ (not found|is not there)", text):
        return "give --network, for example --network host"
    return ""


def _errno(error: BaseException) -> int | None:
    """Dig the operating system's error out of the wrappings of requests and urllib3."""
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, ConnectionResetError):  # that of http.client has no number
            return errno.ECONNRESET
        if isinstance(item, OSError) and item.errno is not None:
            return item.errno
        if isinstance(item, BaseException):
            todo += [*item.args, item.__cause__, item.__context__, getattr(item, "reason", None)]
        elif isinstance(item, tuple):
            todo += item
    return None
