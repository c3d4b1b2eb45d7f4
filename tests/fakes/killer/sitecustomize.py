"""A fake power cut: put on PYTHONPATH, it kills caldp-process at the n-th change below a folder."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _arm(fatal: int, folder: str) -> None:
    done = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
        if not (writes or event in _CHANGES):
            return
        if any(isinstance(a, (str, os.PathLike)) and os.fspath(a).startswith(folder) for a in args[:2]):
            done += 1
            if done == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if "CALDP_TEST_KILL_AT" in os.environ and any(a.endswith("caldp-process") for a in sys.orig_argv):
    _arm(int(os.environ["CALDP_TEST_KILL_AT"]), os.environ["CALDP_TEST_KILL_BELOW"])
