"""Programs we start: what they say, how they end, what they cost; and that none outlives us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from caldp import programs
from caldp.programs import TAIL_LINES, Limit, ProgramRun, StartError

MB = 1_000_000

Runner = Callable[..., tuple[ProgramRun, list[str]]]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    def run(*argv: str, **env: str) -> tuple[ProgramRun, list[str]]:
        lines: list[str] = []
        done = programs.run(argv, cwd=tmp_path, env={"PATH": os.environ["PATH"], **env}, on_line=lines.append)
        return done, lines

    return run


@pytest.fixture
def python(run: Runner) -> Runner:
    return lambda code, *args, **env: run(sys.executable, "-c", code, *args, **env)


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    limit = time.monotonic() + 3
    while time.monotonic() < limit:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
                continue
        return True
    return False


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file into which children write their process ids; those still there at the end are killed."""
    path = tmp_path / "pids"
    path.touch()
    yield path
    for pid in path.read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def test_success(python: Runner) -> None:
    done, lines = python("print('one'); print('two')")
    assert lines == ["one", "two"]
    assert (done.returncode, done.signal, done.outcome) == (0, "", "exit status 0")
    assert done.tail == ("one", "two")
    assert done.argv[0] == sys.executable


def test_standard_error_comes_in_order(run: Runner) -> None:
    assert run("sh", "-c", "echo a; echo b >&2; echo c")[1] == ["a", "b", "c"]


def test_lines_come_while_the_program_runs(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    # The program waits for what the first line brings about.
    code = f"echo first; while [ ! -e {flag} ]; do sleep 0.01; done; echo second"
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        flag.touch()

    programs.run(["sh", "-c", code], cwd=tmp_path, env=dict(os.environ), on_line=on_line)
    assert lines == ["first", "second"]


def test_d9_any_bytes(run: Runner) -> None:
    done, lines = run("printf", r"caf\351 \377\376\000x\r\nno line end")
    assert lines == ["caf\ufffd \ufffd\ufffd\0x", "no line end"]
    assert done.returncode == 0


@pytest.mark.parametrize("status", [1, 2, 5, 40, 139, 255])
def test_d1_exit_status_as_it_is(run: Runner, status: int) -> None:
    done, _ = run("sh", "-c", f"echo 'Exit status: 0'; exit {status}")
    assert (done.returncode, done.outcome, done.signal) == (status, f"exit status {status}", "")
    assert done.to_json()["exit_status"] == status
    assert done.to_json()["signal"] is None


@pytest.mark.parametrize(
    ("line", "words"),
    [("------- ----", False), ("=====", False), ("", False), ("  12  3.4e5 |", False), ("Killed", True), ("no", True)],
)
def test_lines_with_words(line: str, words: bool) -> None:
    assert programs.has_words(line) == words


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"])
def test_d1_killed_by_a_signal_is_no_success(run: Runner, name: str) -> None:
    done, _ = run("sh", "-c", f"kill -{name.removeprefix('SIG')} $$")
    assert done.returncode == -getattr(signal, name)
    assert (done.signal, done.outcome) == (name, f"killed by {name}")
    assert done.to_json()["exit_status"] is None
    assert done.to_json()["signal"] == name


def test_killed_by_a_signal_without_a_name(run: Runner) -> None:
    done, _ = run("bash", "-c", "kill -40 $$")
    assert done.returncode == -40
    assert done.outcome == "killed by signal 40"
    assert done.to_json()["signal"] is not None


def test_peak_memory_in_bytes(python: Runner) -> None:
    small, _ = python("pass")
    large, _ = python(
        "x = bytearray(200_000_000)\nfor i in range(0, len(x), 4096): x[i] = 1\nimport time; time.sleep(0.6)"
    )
    assert small.peak_memory < 150 * MB
    assert 200 * MB < large.peak_memory < 350 * MB


def test_peak_memory_is_that_of_the_program_and_not_ours() -> None:
    # In a process of its own, because it must be big.
    code = (
        "import os; from pathlib import Path; from caldp import programs\n"
        "x = b'x' * 400_000_000\n"
        "print(programs.run(['true'], cwd=Path(), env=dict(os.environ), on_line=print).peak_memory)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * MB


def test_cpu_and_wall_time(python: Runner) -> None:
    busy, _ = python("import time\nwhile time.process_time() < 0.4: pass")
    idle, _ = python("import time; time.sleep(0.4)")
    assert 0.4 <= busy.cpu < 1.5
    assert idle.cpu < 0.3
    assert idle.wall >= 0.4


def test_memory_is_told_while_it_runs(tmp_path: Path) -> None:
    heard: list[int] = []
    programs.run(
        [sys.executable, "-c", "import time; x = b'x' * 100_000_000; time.sleep(1.2)"],
        cwd=tmp_path,
        env={},
        on_line=print,
        on_memory=heard.append,
    )
    assert heard
    assert 100 * MB < max(heard) < 300 * MB


def test_tail_is_bounded(run: Runner) -> None:
    done, lines = run("seq", "1000")
    assert len(lines) == 1000
    assert done.tail == tuple(str(n) for n in range(1001 - TAIL_LINES, 1001))


def test_standard_input_is_closed(run: Runner) -> None:
    done, lines = run("cat")
    assert (done.returncode, lines) == (0, [])


def test_no_shell_is_involved(run: Runner, tmp_path: Path) -> None:
    _, lines = run("echo", "$HOME", "; touch x", "*", "`id`", "a b")
    assert lines == ["$HOME ; touch x * `id` a b"]
    assert not (tmp_path / "x").exists()


def test_environment_and_directory_are_those_given(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "1")
    _, lines = run("sh", "-c", "echo $ONLY; pwd; echo ${INHERITED-none}", ONLY="mine")
    assert lines == ["mine", str(tmp_path), "none"]


def test_programs_that_cannot_be_started(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no-such-program"):
        run("no-such-program")
    with pytest.raises(StartError):
        programs.run(["true"], cwd=tmp_path / "nowhere", env={}, on_line=print)
    (tmp_path / "data").write_text("not a program")
    with pytest.raises(StartError, match="Permission denied"):
        run(str(tmp_path / "data"))
    (tmp_path / "data").chmod(0o755)
    with pytest.raises(StartError, match="Exec format error"):
        run(str(tmp_path / "data"))


def test_d9_the_child_is_stopped_when_its_line_cannot_be_taken(tmp_path: Path, pids: Path) -> None:
    def on_line(line: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        programs.run(
            ["sh", "-c", f"echo $$ >>{pids}; echo line; sleep 60"], cwd=tmp_path, env=dict(os.environ), on_line=on_line
        )
    assert gone(int(pids.read_text()))


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
def test_what_the_child_started_is_stopped_as_well(
    tmp_path: Path, pids: Path, trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_GRACE", 0.3)
    # The grandchild (with a trap: one that ignores SIGTERM) writes its id; the child dies of SIGTERM.
    code = f"sh -c '{trap} echo $$ >>{pids}; echo line; while true; do sleep 0.1; done' & wait"

    def on_line(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        programs.run(["sh", "-c", code.replace("''", '""')], cwd=tmp_path, env=dict(os.environ), on_line=on_line)
    assert gone(int(pids.read_text()))


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_GRACE", 0.3)

    def on_line(line: str) -> None:
        raise KeyboardInterrupt

    code = f"trap '' TERM; echo $$ >>{pids}; echo line; while true; do sleep 0.1; done"
    with pytest.raises(KeyboardInterrupt):
        programs.run(["sh", "-c", code], cwd=tmp_path, env=dict(os.environ), on_line=on_line)
    assert gone(int(pids.read_text()))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_us(tmp_path: Path, pids: Path, signum: int) -> None:
    code = (
        "import os; from pathlib import Path; from caldp import programs\n"
        f"programs.run(['sh', '-c', 'echo $$ >>{pids}; echo started; exec sleep 60'], cwd=Path(), "
        "env=dict(os.environ), on_line=lambda line: print(line, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "started\n"
        parent.send_signal(signum)
        parent.wait()
    assert gone(int(pids.read_text()))


def test_a_helper_left_behind_does_not_hold_us_up(run: Runner, pids: Path) -> None:
    started = time.monotonic()
    done, lines = run("sh", "-c", f"sleep 4 & echo $! >>{pids}; echo done")
    assert (done.returncode, lines) == (0, ["done"])
    assert time.monotonic() - started < 2


def test_cancelled_from_another_thread(tmp_path: Path, pids: Path) -> None:
    cancelled = threading.Event()
    # The grandchild goes with the child.
    code = f"sleep 30 & echo $! >>{pids}; echo started; wait"
    done = programs.run(
        ["sh", "-c", code], cwd=tmp_path, env=dict(os.environ), on_line=lambda _: cancelled.set(), cancelled=cancelled
    )
    assert done.signal == "SIGKILL"
    assert done.wall < 5
    assert gone(int(pids.read_text()))


def limited(
    tmp_path: Path, argv: list[str], limit: Limit, on_line: Callable[[str], object] = print, **options: Any
) -> tuple[ProgramRun, list[str]]:
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        on_line(line)

    env = {"PATH": os.environ["PATH"]}
    done = programs.run(argv, cwd=tmp_path, env=env, on_line=take, limit=limit, **options)
    return done, lines


GIGABYTE = 1000 * MB

# A shell, which hears signals milliseconds after its start, however busy the machine is; it ends by itself if nobody
# stops it, with a status that no test expects.
LAST_WORDS = ["sh", "-c", "trap 'echo last words; exit 143' TERM; echo begun; for _ in $(seq 300); do sleep 0.1; done"]
DEAF = ["sh", "-c", "trap '' TERM; for _ in $(seq 300); do sleep 0.1; done"]


def test_a_program_that_takes_too_long_may_say_so(tmp_path: Path) -> None:
    done, lines = limited(tmp_path, LAST_WORDS, Limit(2.0, GIGABYTE))
    assert (done.exceeded, done.returncode, lines) == ("seconds", 143, ["begun", "last words"])


def test_a_program_that_takes_too_long_and_ignores_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_LAST_WORDS", 0.5)
    done, _ = limited(tmp_path, DEAF, Limit(2.0, GIGABYTE))
    assert (done.exceeded, done.signal) == ("seconds", "SIGKILL")


def test_memory_is_that_of_all_that_a_program_has_started(tmp_path: Path, pids: Path) -> None:
    # It takes no memory before its number is written down, and stays until somebody ends it.
    grandchild = "input(); memory = bytearray(200_000_000); input()"
    code = f"""
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {grandchild!r}], stdin=subprocess.PIPE, start_new_session=True)
pathlib.Path({str(pids)!r}).write_text(str(child.pid))
child.stdin.write(b"go\\n")
child.stdin.flush()
child.wait()
"""
    done, _ = limited(tmp_path, [sys.executable, "-c", code], Limit(60, 150 * MB))
    assert (done.exceeded, done.signal) == ("memory", "SIGKILL")
    assert done.peak_memory > 150 * MB
    assert gone(int(pids.read_text()))


def test_a_program_within_its_limits_is_left_alone(tmp_path: Path) -> None:
    done, lines = limited(
        tmp_path, [sys.executable, "-c", "memory = bytearray(50_000_000); print('done')"], Limit(60, GIGABYTE)
    )
    assert (done.exceeded, done.returncode, lines) == ("", 0, ["done"])


def test_cancelled_with_limits_it_may_say_so_too(tmp_path: Path) -> None:
    cancelled = threading.Event()
    done, lines = limited(
        tmp_path, LAST_WORDS, Limit(60, GIGABYTE), on_line=lambda _: cancelled.set(), cancelled=cancelled
    )
    assert (done.exceeded, done.returncode, lines) == ("", 143, ["begun", "last words"])


def test_cancelled_although_only_a_helper_is_left(tmp_path: Path, pids: Path) -> None:
    cancelled = threading.Event()
    threading.Timer(1, cancelled.set).start()
    started = time.monotonic()
    code = f"sleep 4 & echo $! >>{pids}"
    programs.run(["sh", "-c", code], cwd=tmp_path, env=dict(os.environ), on_line=print, cancelled=cancelled)
    assert time.monotonic() - started < 2.5


def test_programs_run_side_by_side_in_threads(run: Runner) -> None:
    results: dict[int, ProgramRun] = {}

    def work(number: int) -> None:
        results[number] = run("sh", "-c", f"echo {number}; exit {number}")[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: (r.returncode, r.tail) for n, r in results.items()} == {n: (n, (str(n),)) for n in range(8)}


@pytest.mark.parametrize(
    ("argv", "name"),
    [(("/usr/bin/calcos", "-o", "x"), "calcos"), (("python", "-m", "crds.bestrefs", "-m"), "crds.bestrefs")],
)
def test_name(argv: tuple[str, ...], name: str) -> None:
    done = ProgramRun(argv, 0, 1.26, 0.5, 12_300_000)
    assert done.name == name
    assert str(done) == f"{name}: exit status 0, 1.3 s wall, 0.5 s CPU, 12 MB peak"


def test_find(tmp_path: Path) -> None:
    program = tmp_path / "calcos"
    program.write_text("#!/bin/sh\n")
    scripts = Path(sys.executable).parent
    assert programs.find("pytest", str(tmp_path)) == str(scripts / "pytest")
    assert programs.find("no-such-program", str(tmp_path)) is None
    assert programs.find("calcos", str(tmp_path)) != str(program)  # not executable
    program.chmod(0o755)
    assert programs.find("calcos", str(tmp_path)) == str(program)


@pytest.mark.parametrize(
    ("groups", "first", "third"),
    [
        ("0::/slurm/job_7\n", "slurm/job_7/memory.events", "memory/memory.oom_control"),
        (
            "9:cpu:/x\n4:hugetlb,memory:/slurm/job_7\n0::/y\n",
            "y/memory.events",
            "memory/slurm/job_7/memory.oom_control",
        ),
        ("0::/\n", "memory.events", "memory/memory.oom_control"),
        (None, "memory.events", "memory/memory.oom_control"),
    ],
)
def test_kills_are_counted_in_ones_own_control_group(
    tmp_path: Path, groups: str | None, first: str, third: str
) -> None:
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    listed = programs._memory_events(tmp_path / "cgroup", Path("/r"))
    assert (listed[0], listed[2]) == (Path("/r") / first, Path("/r") / third)
    assert {listed[1], listed[3]} == {Path("/r/memory.events"), Path("/r/memory/memory.oom_control")}
