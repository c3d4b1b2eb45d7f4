"""A fake of ``caldp-process``: it moves the status of its dataset as the real one does, and calibrates nothing.

``install`` makes an executable of it.  The variables of its environment:

- ``FAKE_JOBS``: a JSON file, dataset -> what it does, or a list of that for attempt 1, 2, ...; the last entry counts
  for all that follow, and that of ``*`` for datasets that are not named.  See ``Behaviour``; it may be rewritten at any
  time.
- ``FAKE_JOBS_LOG``: file to which beginnings and ends are appended, as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from caldp import messages, programs
from caldp.dataset import Dataset
from caldp.errors import CaldpError, Stop, describe
from caldp.manifest import Manifest, verified
from caldp.messages import Claim, Status
from caldp.result import recorded
from caldp.store import Overwrite, Store, open_store

_REPOSITORY = Path(__file__).resolve().parents[2]

#: Variables whose values are logged.
_LOGGED = ("CALDP_ATTEMPT", "CALDP_RUN", "OMP_NUM_THREADS", "CALDP_HOME", "OF_THE_CALLER")


@dataclass(frozen=True)
class Behaviour:
    """What a job does, in this order.

    Attributes
    ----------
    die : str
        Where it kills itself: ``early`` (before it has a status), ``begun``, ``published`` (before the status says so).
    deaf : bool
        Whether it ignores SIGTERM.
    child : bool
        Whether it starts a program that runs for a minute.
    lines : int
        Lines of 100 characters that it prints.
    hog : int
        MiB that it uses.
    sleep : float
        Seconds that it takes.
    wait : str
        A file for which it waits then.
    exit : int
        Exit status; with 0 it publishes.
    reason : str
        Why it failed.
    retriable : bool or None
        Whether it says that trying again can help; None for what errors with that exit status say.
    nothing : bool
        Whether it ends with 0, but publishes nothing.
    """

    die: str = ""
    deaf: bool = False
    child: bool = False
    lines: int = 1
    hog: int = 0
    sleep: float = 0.0
    wait: str = ""
    exit: int = 0
    reason: str = "as it was told"
    retriable: bool | None = None
    nothing: bool = False


def install(folder: Path) -> Path:
    """Make an executable ``caldp-process`` of the fake in a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    code = f"import sys; sys.path.insert(0, {str(_REPOSITORY)!r}); from tests.fakes.job import main; main()"
    path = folder / "caldp-process"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -SE -c {shlex.quote(code)} "$@"\n')
    path.chmod(0o755)
    return folder


def behave(path: Path, **behaviours: Any) -> None:
    """Write ``FAKE_JOBS``; ``others`` stands for ``*``."""
    told = {"*" if name == "others" else name: value for name, value in behaviours.items()}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(told))
    temporary.replace(path)


def calls(path: Path) -> list[dict[str, Any]]:
    """Return what was written to ``FAKE_JOBS_LOG``."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run it: DATASET INPUT OUTPUT CONFIG [options]."""
    name, _, output, *_ = arguments = sys.argv[1:]
    environment: Mapping[str, str] = os.environ
    attempt = int(environment["CALDP_ATTEMPT"])
    told = json.loads(Path(environment["FAKE_JOBS"]).read_text())
    given = told.get(name, told.get("*", {}))
    behaviour = Behaviour(**(given[min(attempt, len(given)) - 1] if isinstance(given, list) else given))
    seen = {key: environment[key] for key in _LOGGED if key in environment}

    def log(event: str, **more: Any) -> None:
        entry = {"event": event, "dataset": name, "attempt": attempt, "pid": os.getpid(), "at": time.time(), **more}
        with Path(environment["FAKE_JOBS_LOG"]).open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    log("begin", argv=arguments, cwd=str(Path.cwd()), environment=seen)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour.deaf else _stop)
    code = _process(open_store(output), Dataset.parse(name), attempt, behaviour, log)
    log("end", code=code)
    sys.exit(code)


def _stop(signum: int, _frame: object) -> None:
    signal.signal(signum, signal.SIG_IGN)
    raise Stop(signum)


def _process(store: Store, dataset: Dataset, attempt: int, behaviour: Behaviour, log: Any) -> int:
    """Do what ``caldp.process.process`` does, without the calibration; return the exit status."""
    name = dataset.name
    _die(behaviour, "early")
    try:
        with store.own(name):
            there = verified(store, dataset.prefix)
            if there is not None and there.attempt >= attempt:
                messages.advance(store, there.status())
                return 0
            run = os.urandom(6).hex()
            mine = messages.begin(store, name, run, there.attempt if there else 0, Claim(attempt))
            try:
                with recorded(store, mine, True, lambda write: write()):
                    if behaviour.child:
                        child = subprocess.Popen(["sleep", "60"], preexec_fn=programs._die_with_parent())
                        log("child", child=child.pid)
                    _work(name, behaviour)
                    if behaviour.nothing:
                        os._exit(0)
                    manifest = _publish(store, dataset, mine)
                    _die(behaviour, "published")
                    messages.conclude(store, manifest.status())
            except BaseException as error:
                messages.advance(store, mine.failed(describe(error, name)))
                raise
    except BaseException as error:  # noqa: BLE001 - as the real one does
        failure = describe(error, name)
        _say(f"caldp-process: {failure}", sys.stderr)
        return failure.code
    return 0


def _say(text: str, stream: TextIO) -> None:
    """Print, as long as somebody reads: the real one goes on without a reader, too."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=stream, flush=True)


def _die(behaviour: Behaviour, where: str) -> None:
    if behaviour.die == where:
        os.kill(os.getpid(), signal.SIGKILL)


def _work(name: str, behaviour: Behaviour) -> None:
    for number in range(behaviour.lines):
        _say(f"{name}: line {number}".ljust(100, "."), sys.stdout)
    _die(behaviour, "begun")
    used = b"x" * (behaviour.hog << 20)
    time.sleep(behaviour.sleep)
    while behaviour.wait and not Path(behaviour.wait).exists():
        time.sleep(0.02)
    del used
    if behaviour.exit:
        raise _error(behaviour.exit, f"{name}: {behaviour.reason}", behaviour.retriable)


def _error(code: int, reason: str, retriable: bool | None) -> CaldpError:
    kinds = [CaldpError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    known = next((kind for kind in kinds if kind.exit_code == code), None)
    if known is not None and retriable is None:
        return known(reason)
    error = type("ToldError", (CaldpError,), {"exit_code": code, "retriable": retriable})(reason)
    assert isinstance(error, CaldpError)
    return error


def _publish(store: Store, dataset: Dataset, mine: Status) -> Manifest:
    product = f"{mine.dataset}, attempt {mine.attempt}\n".encode()
    name = f"{mine.dataset}_x1d.fits"
    entry = {"name": name, "size": len(product), "sha256": hashlib.sha256(product).hexdigest()}
    record = {"format": 1, "dataset": mine.dataset, "attempt": mine.attempt, "retry": mine.retry, "run": mine.run}
    manifest = Manifest({**record, "reason": "", "products": [entry], "previews": []})
    store.put(f"{dataset.prefix}/{name}", product, Overwrite())
    store.put(f"{dataset.prefix}/manifest.json", manifest.to_bytes(), Overwrite())
    return manifest


# ---- the desk of whoever runs campaigns of such jobs


@dataclass(frozen=True)
class Camp:
    """A directory with a list, settings that wait for nothing, and jobs that are fakes.

    Attributes
    ----------
    home : Path
        The directory.
    """

    home: Path

    @classmethod
    def at(cls, home: Path, names: Sequence[str], **settings: Any) -> Camp:
        """Set it up for some datasets; settings beside those of ``SETTINGS`` replace them."""
        camp = cls(home)
        install(home / "bin")
        (home / "IN").mkdir()
        (home / "list.ids").write_text("\n".join(names) + "\n")
        lines = [f"{name} = {_toml(value)}" for name, value in {**SETTINGS, **settings}.items()]
        (home / "settings.toml").write_text("\n".join(lines) + "\n")
        camp.behave()
        return camp

    @property
    def out(self) -> Path:
        """The batch directory."""
        return self.home / "OUT"

    @property
    def store(self) -> Store:
        """The batch."""
        return open_store(f"file:{self.out}")

    @property
    def environment(self) -> dict[str, str]:
        """What the commands run with."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CALDP_", "CRDS_"))},
            "PATH": f"{self.home / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FAKE_JOBS": str(self.home / "jobs.json"),
            "FAKE_JOBS_LOG": str(self.home / "calls.jsonl"),
        }

    def behave(self, **behaviours: Any) -> None:
        """Say what jobs do from now on; all others end well."""
        behave(self.home / "jobs.json", **behaviours)

    def calls(self, event: str = "begin") -> list[dict[str, Any]]:
        """What the jobs have logged."""
        return [call for call in calls(self.home / "calls.jsonl") if call["event"] == event]

    def begun(self) -> list[tuple[str, int]]:
        """Datasets and attempts of all jobs that were started, in order."""
        return [(call["dataset"], call["attempt"]) for call in self.calls()]

    def start(self, *args: str, **popen: Any) -> subprocess.Popen[str]:
        """Start ``caldp campaign submit`` with these arguments."""
        command = [str(Path(sys.executable).parent / "caldp"), "campaign", "submit", *args]
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.environment}
        return subprocess.Popen(command, **{"cwd": self.home, **given, **popen})

    def submit(self, *options: str, **popen: Any) -> subprocess.CompletedProcess[str]:
        """Submit the list, to its end."""
        return self.finish(self.start(*self.command, *options, **popen))

    def resume(self, *options: str, **popen: Any) -> subprocess.CompletedProcess[str]:
        """Go on with the campaign, to its end."""
        return self.finish(self.start("--resume", f"file:{self.out}", *options, **popen))

    @property
    def command(self) -> list[str]:
        """Arguments that submit the list."""
        return ["list.ids", "file:OUT", "--input", "file:IN", "--settings", "settings.toml", "--memory", "4g"]

    def finish(self, process: subprocess.Popen[str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for a command."""
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        finally:
            process.kill()
        assert "Traceback" not in (stdout or "") + (stderr or ""), f"{stdout}{stderr}"
        return subprocess.CompletedProcess(process.args, process.returncode, stdout or "", stderr or "")

    def status(self, name: str) -> Status:
        """Read the status of a dataset."""
        status = messages.read(self.store, name)
        assert status is not None, f"{name} has no status"
        return status

    def states(self) -> dict[str, tuple[str, int]]:
        """State and attempt of all datasets that have a status."""
        names = sorted(path.stem for path in (self.out / "messages" / "status").glob("*.json"))
        return {name: (status.state, status.attempt) for name in names for status in [self.status(name)]}

    def wait_for(self, what: Callable[[], object], seconds: float = 60) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.02)

    def assert_sound(self) -> None:
        """Assert what holds at any end: folders as the statuses say, nothing twice at a time, nothing left lying."""
        for name in self.states():
            folder = messages.STATES[self.status(name).state][1]
            shown = sorted(path.parent.name for path in (self.out / "messages").glob(f"*/{name}"))
            assert shown == ([folder] if folder else []), f"{name}: {self.status(name)}, shown in {shown}"
        for name, attempt in self.begun():
            assert (self.out / "control" / "logs" / name / f"{attempt}.log").is_file(), f"{name} {attempt} has no log"
        live: dict[str, str] = {}
        for call in calls(self.home / "calls.jsonl"):
            if call["event"] == "begin":
                assert live.get(call["dataset"]) != "processed", f"{call['dataset']} was started after it had ended"
                live[call["dataset"]] = "processing"
            elif call["event"] == "end" and call["code"] == 0:
                live[call["dataset"]] = "processed"
        for lock in (self.out / "messages" / ".locks").glob("*"):  # who was killed leaves the file, but not the lock
            with lock.open() as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if len(self.calls("end")) == len(self.calls()):
            assert not [path for path in self.out.rglob(".*") if path.is_file()], "temporary files, or locks, are left"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(entry)}" for name, entry in value.items()) + " }"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list | tuple) else json.dumps(value)


#: A ladder of three small rungs, no delays, nothing goes first.
SETTINGS: dict[str, Any] = {
    "rungs": [
        {"name": "low", "memory": 120, "vcpus": 1},
        {"name": "middle", "memory": 240, "vcpus": 2},
        {"name": "top", "memory": 480, "vcpus": 3},
    ],
    "time_limits": [60, 120, 240],
    "estimates": {"cos": {"memory_p95": 0, "time_p99": 0, "rung": "low", "time_limit": 60}},
    "budgets": {
        "transient": {"retries": 4, "delays": [0]},
        "oom": {"retries": 3, "delays": [0]},
        "timeout": {"retries": 2, "delays": [0]},
        "unknown": {"retries": 1, "delays": [0]},
    },
    "canary": 0,
}
