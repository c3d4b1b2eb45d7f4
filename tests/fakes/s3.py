"""S3 on this machine: two emulators, moto and ministack, each a server in a process of its own.

Neither is S3.  Two are used because they differ where it matters (``tests/unit/test_s3_fakes.py`` records how): moto is
the more forgiving, ministack checks what S3 checks, checksums above all.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

#: Seconds that a server may take to answer; it takes one, and longer on a busy machine or with cold disks.
_PATIENCE = 60.0

#: The server takes the place of this shell.  The one beside it waits for the end of its standard input, which comes
#: when the tests end, however they do, and then ends the process group, itself included.
_WITH_US = 'exec 3<&0; (read -r _ <&3; kill -KILL 0) & exec "$@" </dev/null 3<&-'


class S3Server:
    """An emulator of S3 that runs until it is closed, or until the tests end, however they do.

    What it holds is in memory, and what it writes in a temporary folder; of the environment it sees nothing.

    Attributes
    ----------
    name : str
        Which.
    endpoint : str
        Its address.
    pid : int
        Its process, which leads a process group.
    """

    def __init__(self, name: str, command: Callable[[int], tuple[Sequence[str], Mapping[str, str]]]) -> None:
        """Start it; ``command`` tells how, at a given port: arguments and environment."""
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix=f"{name}-")
        try:
            self._start(command)
        except BaseException:
            self._folder.cleanup()
            raise

    def _start(self, command: Callable[[int], tuple[Sequence[str], Mapping[str, str]]]) -> None:
        for _ in range(5):
            port = _free_port()
            arguments, environment = command(port)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _WITH_US, "sh", *arguments],
                    cwd=self._folder.name,
                    env={"PATH": os.defpath, "HOME": self._folder.name, "TMPDIR": self._folder.name, **environment},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.pid = self._process.pid
            self.endpoint = f"http://127.0.0.1:{port}"
            try:
                if self._wait(port):
                    return
            except BaseException:
                self._stop()
                raise
            self._stop()
            if "in use" not in self.log:
                break
        raise RuntimeError(f"{self.name} did not start: {self.log}")

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "log.txt"

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def _wait(self, port: int) -> bool:
        """Wait until it answers; its own word comes first, for at this port there may be somebody else by now."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            if f"Running on http://127.0.0.1:{port}" in self.log:
                with (
                    contextlib.suppress(OSError),
                    contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)) as connection,
                ):
                    connection.request("GET", "/")
                    return connection.getresponse().status == 200
            time.sleep(0.02)
        return False

    def _stop(self) -> None:
        # The process is waited for below, so that until then nobody else can have its number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def close(self) -> None:
        """End it and what it started, and forget what it held."""
        self._stop()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_moto() -> S3Server:
    """Start moto, which is installed beside the tests."""
    return S3Server(
        "moto", lambda port: ([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], {})
    )


def start_ministack(program: Path) -> S3Server:
    """Start ministack: only S3, only for this machine, without its other listeners and without Docker."""
    settings = {
        "BIND_HOST": "127.0.0.1",  # else on all interfaces
        "MINISTACK_HOST": "127.0.0.1",
        "SERVICES": "s3",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "DOCKER_HOST": "unix:///nonexistent",  # else it removes containers that it takes for its own
        "LOG_LEVEL": "INFO",  # the level of the line that says it is running
    }
    return S3Server("ministack", lambda port: ([str(program)], {**settings, "GATEWAY_PORT": str(port)}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
