"""A server of CRDS as a process of this machine."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
from typing import TextIO

import uvicorn

from caldp.crdserver import clock
from caldp.crdserver.app import create
from caldp.crdserver.server import Server, log
from caldp.crdserver.settings import Settings
from caldp.errors import CaldpError, UsageError

#: Seconds between two looks at jobs and locks.
_PAUSE = 30.0

#: So many of these rounds are from one time that everything is looked after to the next.
_ROUNDS = 20


def serve(settings: Settings, host: str, port: int, url: str, out: TextIO) -> None:
    """Serve until a signal ends it.

    Parameters
    ----------
    settings : Settings
        What it goes by, but for its address.
    host, port : str, int
        Where to listen; port 0 is one that is free.
    url : str
        What clients call it; by default ``http://localhost:<port>``.
    out : file object
        Told the address, once it answers.

    Raises
    ------
    UsageError
        If somebody else listens there.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)  # whoever comes before the application is up waits
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be listened at ({error.strerror})", remedy="choose another --port"
        ) from error
    url = url.rstrip("/") or f"http://localhost:{listening.getsockname()[1]}"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("caldp.crds").setLevel(logging.INFO)
    app = create(dataclasses.replace(settings, url=url), os.environ)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    print(f"CRDS at {url}/ (Ctrl-C ends it)", file=out, flush=True)
    end = threading.Event()
    looking = threading.Thread(target=_look_after, args=(app.state.server, end), daemon=True)
    looking.start()
    try:
        server.run(sockets=[listening])
    finally:
        end.set()
        looking.join(timeout=5)


def _look_after(server: Server, end: threading.Event) -> None:
    """Take up jobs whose worker died, and do what is to be done now and then, for as long as somebody serves."""
    rounds = 0
    while not end.wait(_PAUSE):
        rounds += 1
        try:
            clock.tend(server) if rounds % _ROUNDS == 0 else server.resume()
        except CaldpError as error:  # the next time may go better
            log(logging.ERROR, str(error))
