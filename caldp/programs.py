"""Run a program: the only place in the package that starts a process.

Lines are streamed as they come, whatever bytes they hold; the child never outlives us; its own wall time, CPU time
and peak memory are measured by the kernel (``wait4``), not guessed.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What a program's standard output and error are handed to, one line at a time, without the line end.
LineSink = Callable[[str], None]

#: Called a few times a second with the resident memory of a running program, in bytes.
MemorySink = Callable[[int], None]

#: Lines of output kept for messages that explain a failure.
TAIL_LINES = 200

_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for a child that we stop."""

_LAST_WORDS = 30.0
"""Seconds that a program which has reached its time limit gets to say so; as many as AWS Batch gives."""

_PR_SET_PDEATHSIG = 1

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in a unit of ``ru_maxrss``."""

_BLOCK = 512
"""Bytes in a block of ``ru_inblock`` and ``ru_oublock``."""

_GROUPS, _GROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where the kernel says which control groups are ours, and where they are."""

_NO_LIMIT = 2**60
"""Bytes from which on a limit of a control group (v1) is none."""


class StartError(Exception):
    """A program could not be started at all."""


@dataclass(frozen=True)
class Limit:
    """What a program may use, with all it starts.

    Attributes
    ----------
    seconds : float
        Wall time, after which it gets SIGTERM, and then SIGKILL.
    memory : int
        Resident memory in bytes, at which it gets SIGKILL.  It is looked at four times a second, which needs no
        privileges; what it shares is counted for each of its processes.
    """

    seconds: float
    memory: int


@dataclass(frozen=True)
class ProgramRun:
    """How one program ran.

    Attributes
    ----------
    argv : tuple of str
        The command as typed.
    returncode : int
        Exit status, or minus the signal number.
    wall, cpu : float
        Seconds.
    peak_memory : int
        Largest resident set of the program, in bytes; 0 if it was too short-lived and too small to tell.
    bytes_in, bytes_out : int
        What it moved from and to file systems, as the kernel counts: not what was in memory already.
    tail : tuple of str
        The last lines it printed.
    oom_kills : int
        Processes of our control group killed by the kernel for memory while it ran.
    exceeded : str
        The limit that it was stopped for: ``seconds``, ``memory``, or none.
    """

    argv: tuple[str, ...]
    returncode: int
    wall: float
    cpu: float
    peak_memory: int
    bytes_in: int = 0
    bytes_out: int = 0
    tail: tuple[str, ...] = ()
    oom_kills: int = 0
    exceeded: str = ""

    @property
    def name(self) -> str:
        """Base name of the program; for ``python -m module`` the module."""
        if "-m" in self.argv[:3]:
            return self.argv[self.argv.index("-m") + 1]
        return Path(self.argv[0]).name

    @property
    def signal(self) -> str:
        """Name of the signal that killed it, or an empty string."""
        if self.returncode >= 0:
            return ""
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:  # real-time signals have no names
            return f"signal {-self.returncode}"

    @property
    def outcome(self) -> str:
        """``exit status 0`` or ``killed by SIGKILL``."""
        return f"killed by {self.signal}" if self.returncode < 0 else f"exit status {self.returncode}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without the output."""
        return {
            "program": self.name,
            "argv": list(self.argv),
            "exit_status": self.returncode if self.returncode >= 0 else None,
            "signal": self.signal or None,
            "wall_s": round(self.wall, 3),
            "cpu_s": round(self.cpu, 3),
            "peak_memory_bytes": self.peak_memory,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.outcome}, {self.wall:.1f} s wall, {self.cpu:.1f} s CPU, "
            f"{self.peak_memory / 1e6:.0f} MB peak"
        )


def has_words(line: str) -> bool:
    """Whether a line can say why a program failed: the rules and the numbers of a table cannot.

    Parameters
    ----------
    line : str
        That a program has printed.

    Returns
    -------
    bool
    """
    return re.search(r"[^\W\d_]{2}", line) is not None


def find(program: str, path: str) -> str | None:
    """Locate a program on ``path``, then among the scripts of the running Python.

    Parameters
    ----------
    program : str
        Name, for example ``calcos``.
    path : str
        Directories as in ``PATH``.

    Returns
    -------
    str or None
        Absolute path, or None when it is not installed.
    """
    # A virtual environment need not be activated for its caldp-process to find its calcos.
    found = shutil.which(program, path=path) or shutil.which(program, path=sysconfig.get_path("scripts"))
    return str(Path(found).absolute()) if found else None


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: LineSink,
    on_memory: MemorySink = lambda _: None,
    cancelled: threading.Event | None = None,
    limit: Limit | None = None,
) -> ProgramRun:
    """Run a program to its end.

    Parameters
    ----------
    argv : sequence of str
        Program and arguments; no shell is involved.
    cwd : Path
        Directory it runs in.
    env : mapping
        Its whole environment.
    on_line : callable
        Receives each line of standard output and error, decoded as UTF-8 with replacement.
    on_memory : callable, optional
        Receives the resident memory in bytes while it runs.
    cancelled : Event, optional
        Set by another thread to have the program killed; with a ``limit``, it gets SIGTERM first.
    limit : Limit, optional
        What it may use.

    Returns
    -------
    ProgramRun

    Raises
    ------
    StartError
        If the program cannot be started.

    Notes
    -----
    Any exception raised meanwhile (an interrupt, one of ``on_line``) stops the child before it is passed on.
    """
    kills, own = oom_kills(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    started = time.monotonic()
    tail: list[str] = []
    try:
        process = subprocess.Popen(  # noqa: S603 - argv comes from the recipe table, never from a shell
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us first, so that the state is written before the child ends
            preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
        )
    except OSError as error:
        raise StartError(f"{argv[0]} cannot be started ({error.strerror})") from error
    assert process.stdout is not None  # noqa: S101 - for the type checker: stdout is a pipe
    ended = threading.Event()
    marks: list[int] = []
    guard = _Guard(process.pid, limit) if limit else None
    try:
        watch = (process.pid, on_memory, marks, cancelled, ended, guard)
        threading.Thread(target=_watch, args=watch, daemon=True).start()
        for raw in process.stdout:
            line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
            tail.append(line)
            del tail[:-TAIL_LINES]
            on_line(line)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        _stop(process)
        raise
    finally:
        ended.set()
        process.stdout.close()
    peak = usage.ru_maxrss * _RSS_UNIT
    if limit:
        peak = max(marks, default=peak)
    elif peak <= own:
        # The kernel counts what the child was before it became the program: a copy of us. Then samples say more.
        peak = max(marks, default=0)
    return ProgramRun(
        argv=tuple(argv),
        returncode=process.returncode,
        wall=time.monotonic() - started,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_memory=peak,
        bytes_in=usage.ru_inblock * _BLOCK,
        bytes_out=usage.ru_oublock * _BLOCK,
        tail=tuple(tail),
        oom_kills=oom_kills() - kills,
        exceeded=guard.exceeded if guard else "",
    )


def _die_with_parent() -> Callable[[], None]:
    """Return what a child calls before exec, so that it is killed when we are (even by SIGKILL)."""
    import ctypes  # here: it costs every caldp --help a few milliseconds

    prctl = ctypes.CDLL(None).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return arm


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a child and all it started, politely first, and wait for it."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):  # what it started may live on: the group is killed anyway
            process.wait(_GRACE if signum == signal.SIGTERM else None)


class _Guard:
    """Watches over the limits of a program, with all it starts."""

    def __init__(self, pid: int, limit: Limit) -> None:
        self.exceeded = ""
        self._pid = pid
        self._limit = limit
        self._started = time.monotonic()
        self._end = 0.0

    def look(self, cancelled: bool) -> int:
        """Stop the program if need be; return the memory it uses, in bytes."""
        import psutil

        family, size = [psutil.Process(self._pid)], 0
        with contextlib.suppress(psutil.Error):
            family += family[0].children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.Error):
                size += process.memory_info().rss
        seconds = time.monotonic() - self._started
        if size > self._limit.memory:
            self.exceeded = "memory"
            self._kill(family)
        elif self._end:
            if seconds > self._end:
                self._kill(family)
        elif cancelled or seconds > self._limit.seconds:
            self.exceeded = "" if cancelled else "seconds"
            self._end = seconds + _LAST_WORDS
            os.kill(self._pid, signal.SIGTERM)
        return size

    def _kill(self, family: list[Any]) -> None:
        import psutil

        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _watch(
    pid: int,
    on_memory: MemorySink,
    marks: list[int],
    cancelled: threading.Event | None,
    ended: threading.Event,
    guard: _Guard | None,
) -> None:
    """Tell the memory of a running program, and stop it when it is cancelled or uses too much."""
    import psutil

    pause = 0.02
    with contextlib.suppress(psutil.Error, ProcessLookupError, ChildProcessError):
        process = psutil.Process(pid)
        while not ended.wait(pause):
            pause = min(2 * pause, 0.25)
            stop = cancelled is not None and cancelled.is_set()
            if stop and guard is None:
                os.killpg(pid, signal.SIGKILL)  # run() is waiting for it and will reap it
                return
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                # It ended, but what it left behind may hold our pipe open for ever.
                if not ended.wait(_GRACE / 5):
                    os.killpg(pid, signal.SIGKILL)
                return
            size = guard.look(stop) if guard else process.memory_info().rss
            marks.append(size if guard else max(size, _high_water(pid)))
            on_memory(size)


def own_peak_memory() -> int:
    """Return the largest resident set of this process, in bytes."""
    return _high_water("self") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def _high_water(pid: int | str) -> int:
    """Return the largest resident set of a process since it became the program it is (Linux), else 0."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def oom_kills() -> int:
    """Return how many processes of our control group the kernel has killed for memory (cgroup v2, then v1)."""
    for name in _memory_events():
        with contextlib.suppress(OSError, ValueError):
            for line in name.read_text().splitlines():
                field, _, value = line.partition(" ")
                if field == "oom_kill":
                    return int(value)
    return 0


def group_memory(groups: Path = _GROUPS, root: Path = _GROUP_ROOT) -> tuple[int, int]:
    """Return what our control group has used and may use.

    Parameters
    ----------
    groups, root : Path, optional
        Where the kernel says which group is ours, and where groups are.

    Returns
    -------
    peak, limit : int
        Bytes; 0 where there is no limit, or the kernel does not say.  The peak counts files that the kernel keeps in
        memory, which it would have dropped sooner than kill.
    """
    peak = _first_number(_group_files("memory.peak", "memory.max_usage_in_bytes", groups, root))
    limit = _first_number(_group_files("memory.max", "memory.limit_in_bytes", groups, root))
    return peak, limit if limit < _NO_LIMIT else 0


def _first_number(files: list[Path]) -> int:
    for name in files:
        with contextlib.suppress(OSError, ValueError):
            return int(name.read_text())
    return 0


def _memory_events(groups: Path = _GROUPS, root: Path = _GROUP_ROOT) -> list[Path]:
    """Return where the kernel may count what it has killed."""
    return _group_files("memory.events", "memory.oom_control", groups, root)


def _group_files(v2: str, v1: str, groups: Path, root: Path) -> list[Path]:
    """Return where the kernel may tell: for our own control group, or for its root, which ours is in a container."""
    own = {"": "", "memory": ""}
    with contextlib.suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                if controller in own:
                    own[controller] = path.strip("/")
    return [root / own[""] / v2, root / v2, root / "memory" / own["memory"] / v1, root / "memory" / v1]
