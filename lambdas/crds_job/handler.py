"""The heavy work of a CRDS: one job in a process of its own, or what the clock asks for."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from caldp import programs
from caldp.crdserver import clock, jobs
from caldp.crdserver.server import Server
from caldp.crdserver.settings import from_environment
from caldp.errors import ReferencesError

log = logging.getLogger("caldp")
log.setLevel(os.environ.get("CALDP_LOG_LEVEL", "INFO"))
settings = from_environment(os.environ)

#: Seconds that are left to say that a job had not enough of them.
_LAST = 20


def work(observatory: str, name: str, seconds: float) -> None:
    """Work on a job; crds wants a process for itself."""
    with TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "caldp.crdserver.job", observatory, name]
        env = {**os.environ, "CALDP_CRDS_JOB": json.dumps(jobs.as_json(settings))}
        limit = programs.Limit(seconds=seconds, memory=1 << 50)
        done = programs.run(argv, cwd=Path(folder), env=env, on_line=log.info, limit=limit)
    # The next job finds the same disk, and what one that was killed has left there.
    shutil.rmtree(settings.work / "jobs", ignore_errors=True)
    if done.returncode:
        raise ReferencesError(f"{observatory}: job {name}: {done.outcome}", remedy="see what it has said before")


def handler(event: dict[str, Any], context: Any) -> None:  # noqa: ANN401 - as Lambda wants it
    """Take a job, ``{"observatory": ..., "job": ...}``, or a task, ``{"task": "tend"}`` or ``{"task": "check"}``."""
    if "task" in event:
        {"tend": clock.tend, "check": clock.check}[event["task"]](Server(settings, os.environ))
    else:
        work(event["observatory"], event["job"], context.get_remaining_time_in_millis() / 1000 - _LAST)
