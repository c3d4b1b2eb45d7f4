"""A fake of being cut off: put on PYTHONPATH, it ends a process that connects to anything but this machine."""

from __future__ import annotations

import os
import sys
from typing import Any


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1", "localhost"):
        print(f"a connection to {args[1]}", file=sys.stderr, flush=True)
        os._exit(99)
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "::1", "localhost", None):
        print(f"a look-up of {args[0]}", file=sys.stderr, flush=True)
        os._exit(99)


if "CALDP_TEST_LOOPBACK" in os.environ:
    sys.addaudithook(_watch)
