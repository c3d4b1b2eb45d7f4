"""The commands around the image: what they take, what they refuse, and what they ask of a container."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import caldp
from caldp import cli, cli_image, container, image, messages
from caldp.aws import session_of
from caldp.config import ImageConfig
from caldp.container import Ask, Ended, Watched
from caldp.errors import EXIT_CODES, EngineError, Stop
from caldp.local_store import LocalStore
from caldp.s3_store import S3Store
from tests.fakes.docker import as_anybody, one_line, typed, user
from tests.fakes.engine import FakeContainer, Play, serving

MiB, GiB = 1 << 20, 1 << 30
DATASET = "ldfd01vnq"

DOORS = {
    "caldp-image-build": (cli_image.build_command, "build"),
    "caldp-image-push": (cli_image.push_command, "push"),
    "caldp-docker-run-container": (cli_image.container_command, "run"),
    "caldp-docker-run-pipeline": (cli_image.pipeline_command, ""),
}


@dataclass
class Asked:
    """What the engine would have been asked, and what it would have answered."""

    asks: list[Ask] = field(default_factory=list)
    ended: Ended | BaseException = field(default_factory=lambda: Ended(0, out_of_memory=False))

    def run(self, ask: Ask, *_: object) -> Ended:
        """Take the place of container.run."""
        self.asks.append(ask)
        if isinstance(self.ended, BaseException):
            raise self.ended
        return self.ended

    @property
    def ask(self) -> Ask:
        """The only one."""
        (ask,) = self.asks
        return ask


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of somebody without an engine, who has nothing of the developer's."""
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in user(tmp_path, "unix:///nonexistent.sock").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handlers are the command's, not pytest's
    return tmp_path


@pytest.fixture
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is asked of containers, which are none."""
    asked = Asked()
    monkeypatch.setattr(container, "run", asked.run)
    return asked


def invoke(command: click.Command, *args: str) -> Result:
    """Type a command."""
    done = CliRunner().invoke(command, args)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done


def run(*args: str) -> Result:
    """Type caldp-docker-run-container."""
    return invoke(cli_image.container_command, *args)


def pipeline(*args: str) -> Result:
    """Type caldp-docker-run-pipeline."""
    return invoke(cli_image.pipeline_command, *args)


def refused(done: Result, code: int = 2) -> str:
    """Assert that a command failed with one line, and return it."""
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "unforeseen" not in lines[0]
    return lines[0]


# ---- doors


@pytest.mark.parametrize("name", DOORS)
def test_help(name: str) -> None:
    done = invoke(DOORS[name][0], "--help")
    assert done.exit_code == 0
    assert done.stdout == invoke(DOORS[name][0], "-h").stdout
    assert len(max(done.stdout.splitlines(), key=len)) <= 110
    assert "Exit status:" in done.stdout
    table = done.stdout.partition("Exit status:")[2].split("\n")
    codes = {int(line.split()[0]) for line in table if line.split() and line.split()[0].isdigit()}
    assert {0, 2, 125} <= codes <= set(EXIT_CODES)
    assert ("processed (or" in table[1]) == (name == "caldp-docker-run-pipeline")
    for option in DOORS[name][0].params:
        assert not isinstance(option, click.Option) or any(text in done.stdout for text in option.opts)


def test_help_of_the_pipeline() -> None:
    text = invoke(cli_image.pipeline_command, "--help").stdout
    for word in ("IPPPSSOOT", "INPUT", "OUTPUT", "CONFIG", "caldp-config-offsite", "CALDP_HOME", "--memory", "--quiet"):
        assert word in text
    for code in EXIT_CODES:
        assert f"\n  {code:>3}  " in text.replace("\n    ", "\n  ")


@pytest.mark.parametrize("name", DOORS)
def test_version(name: str) -> None:
    assert invoke(DOORS[name][0], "--version").stdout == f"{name}, version {caldp.__version__}\n"


@pytest.mark.parametrize("name", DOORS)
def test_scripts_are_the_same_commands_as_those_of_caldp(name: str) -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    command, short = DOORS[name]
    assert script.load() is command
    if short:
        group = cli.main.get_command(click.Context(cli.main), "image")
        assert isinstance(group, click.Group)
        assert group.commands[short] is command


def test_the_group_is_there_but_loaded_only_when_needed() -> None:
    assert "image" in cli.main.list_commands(click.Context(cli.main))
    assert "Build, push and run the Docker image" in invoke(cli.main, "--help").stdout
    done = invoke(cli.main, "image", "--help")
    assert [word for word in ("build", "push", "run") if f"\n  {word} " in done.stdout] == ["build", "push", "run"]
    code = "import sys, caldp.cli; print('caldp.cli_image' in sys.modules, 'docker' in sys.modules)"
    done_too = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done_too.stdout.split() == ["False", "False"]


def test_caldp_image_run(asked: Asked) -> None:
    assert invoke(cli.main, "image", "run", "--cpus", "2", "ls", "-l").exit_code == 0
    assert (asked.ask.command, asked.ask.cpus) == (("ls", "-l"), 2.0)


def test_the_doors_load_no_docker_to_show_their_help() -> None:
    code = (
        "import sys\nfrom caldp import cli_image\n"
        "try: cli_image.pipeline_command(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'docker', 'requests', 'boto3', 'numpy', 'psutil'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


# ---- limits


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8g", 8 * GiB),
        ("8G", 8 * GiB),
        ("8gb", 8 * GiB),
        ("8GB", 8 * GiB),
        (" 8g ", 8 * GiB),
        ("800m", 800 * MiB),
        ("1.5g", 1536 * MiB),
        ("0.5g", 512 * MiB),
        ("1t", 1024 * GiB),
        ("6m", 6 * MiB),
        ("6144k", 6 * MiB),
        ("6291456", 6 * MiB),
        ("6291456b", 6 * MiB),
        ("", 0),
    ],
)
def test_memory(asked: Asked, text: str, size: int) -> None:
    assert run("--memory", text, "true").exit_code == 0
    assert asked.ask.memory == size


NO_MEMORY = "0 0g 5m 6291455 1 rubbish 8x -8g g 8gg 1e9 1,5g .5g 8.g nan 8gib".split()


@pytest.mark.parametrize(
    "text",
    [
        *NO_MEMORY,
        "8 g",
        "9" * 400,
    ],
)
@pytest.mark.parametrize("command", [cli_image.container_command, cli_image.pipeline_command], ids=lambda c: c.name)
def test_what_is_no_memory(asked: Asked, command: click.Command, text: str) -> None:
    done = invoke(command, f"--memory={text}", DATASET)
    assert done.exit_code == 2
    assert f"{text!r} is no memory limit: write for example 8g or 800m" in " ".join(done.stderr.split())
    assert asked.asks == []


@pytest.mark.parametrize("text", ["1", "0.5", "1.5", "64"])
def test_cpus(asked: Asked, text: str) -> None:
    assert run("--cpus", text, "true").exit_code == 0
    assert asked.ask.cpus == float(text)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        "many",
        "",
        "nan",
        "inf",
    ],
)
def test_what_are_no_cpus(home: Path, text: str) -> None:
    done = run(f"--cpus={text}", "true")
    assert done.exit_code == 2, done.output
    assert "--cpus" in done.stderr


# ---- what is asked for


def test_defaults(asked: Asked, home: Path) -> None:
    assert run().exit_code == 0
    ask = asked.ask
    assert (ask.image, ask.command, ask.home) == ("caldp:latest", ("/bin/bash",), home)
    assert (ask.memory, ask.cpus, ask.network, dict(ask.variables), ask.interactive) == (0, 0.0, "", {}, True)
    assert ask.environment["HOME"] == str(home)


def test_options(asked: Asked, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALDP_DOCKER_NETWORK", "theirs")
    monkeypatch.setenv("CALDP_HOME", str(home / "elsewhere"))
    assert run("--image", "mine:1", "--network", "host", "ls", "--memory", "x", "--help").exit_code == 0
    assert (asked.ask.image, asked.ask.network, asked.ask.home) == ("mine:1", "host", home / "elsewhere")
    assert asked.ask.command == ("ls", "--memory", "x", "--help")


@pytest.mark.parametrize(
    ("options", "network"), [([], "theirs"), (["--network", "host"], "host"), (["--network", ""], "")]
)
def test_the_network(asked: Asked, monkeypatch: pytest.MonkeyPatch, options: list[str], network: str) -> None:
    monkeypatch.setenv("CALDP_DOCKER_NETWORK", "theirs")
    assert run(*options, "true").exit_code == 0
    assert asked.ask.network == network


@pytest.mark.parametrize("args", [["--", "ls", "-l"], ["ls", "-l"]])
def test_the_command_is_taken_as_it_is(asked: Asked, args: list[str]) -> None:
    assert run(*args).exit_code == 0
    assert asked.ask.command == ("ls", "-l")


@pytest.mark.parametrize("args", [["--memry", "8g", "ls"], ["--cpu=2", "ls"], ["-x", "ls"]])
def test_an_option_that_is_none_is_no_command(asked: Asked, args: list[str]) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert "No such option" in done.stderr
    assert asked.asks == []


def test_variables(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "my value")
    options = ["--env", "A=1", "--env", "B=x=y z", "--env", "EMPTY=", "--env", "MINE", "--env", "A=2"]
    assert run(*options, "true").exit_code == 0
    assert asked.ask.variables == {"A": "2", "B": "x=y z", "EMPTY": "", "MINE": "my value"}


@pytest.mark.parametrize("text", ["NOT_EXPORTED", "", "=x", "1A=hunter2", "A B=hunter2", "A-B=hunter2", "É=hunter2"])
def test_what_are_no_variables(asked: Asked, text: str) -> None:
    line = refused(run("--env", text, "true"))
    assert "--env" in line
    assert "write NAME=VALUE, or export it" in line
    assert "hunter2" not in line
    assert asked.asks == []


# ---- how it ends


def test_what_is_printed_into_a_closed_stream_is_not_kept() -> None:
    with cli_image._bytes(None) as stream:
        assert stream.name == os.devnull


@pytest.mark.parametrize("code", [0, 1, 7, 31, 125, 137, 143, 255])
def test_the_exit_status_is_that_of_the_command(asked: Asked, code: int) -> None:
    asked.ended = Ended(code, out_of_memory=False)
    done = run("true")
    assert (done.exit_code, done.output) == (code, "")


@pytest.mark.parametrize("code", [0, 31, 137])
def test_the_limit_of_memory_is_named(asked: Asked, code: int) -> None:
    asked.ended = Ended(code, out_of_memory=True)
    line = refused(run("--memory", "300m", "true"), code)
    assert line == "caldp-docker-run-container: the memory limit was reached, and something was killed in the container"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (EngineError("oh no", remedy="do this"), 125, "caldp-docker-run-container: oh no; do this"),
        (Stop(15), 143, "caldp-docker-run-container: stopped by SIGTERM; "),
        (KeyboardInterrupt(), 130, "caldp-docker-run-container: stopped by SIGINT; "),
    ],
)
def test_what_stops_it(asked: Asked, error: BaseException, code: int, said: str) -> None:
    asked.ended = error
    assert refused(run("true"), code).startswith(said)


@pytest.mark.parametrize("name", [name for name in DOORS if name != "caldp-docker-run-pipeline"])
def test_without_its_config(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caldp.config._find_script", lambda *_, **__: home / "broken")
    (home / "broken").write_text("echo broken >&2; return 1")
    assert refused(invoke(DOORS[name][0])).startswith(f"{name}: sourcing {home}/broken failed (exit status 1): broken")


# ---- caldp-docker-run-pipeline

#: Every option of caldp-process, with a value that is not its default.
OPTIONS = {
    "context": ["--context", "hst_0729.pmap"],
    "overrides": ["--override", "FLUXTAB=refs/a b.fits", "--override", "X=-y"],
    "existing": ["--existing", "skip"],
    "take_over": ["--take-over"],
    "dry_run": ["--dry-run"],
    "keep_scratch": ["--keep-scratch"],
    "as_json": ["--json"],
    "verbose": ["--verbose"],
    "quiet": ["-q"],
}


def parsed(command: click.Command, *args: str) -> dict[str, Any]:
    """The parameters of a command line."""
    return command.make_context(command.name, list(args)).params


def test_all_options_of_caldp_process_are_tried() -> None:
    options = {p.name for p in cli.process_command.params if isinstance(p, click.Option)}
    assert options - {"version"} == set(OPTIONS)
    assert options - {"version"} <= {p.name for p in cli_image.pipeline_command.params}


@pytest.mark.parametrize("names", [[], *([name] for name in OPTIONS), list(OPTIONS)], ids="+".join)
def test_the_container_is_given_the_same_parameters(asked: Asked, home: Path, names: list[str]) -> None:
    args = ["LDFD01VNQ", "file:in", "file:out", "caldp-config-onsite"]
    options = [word for name in names for word in OPTIONS[name]]
    assert pipeline(*options, "--memory", "1g", *args, "--cpus", "2").exit_code == 0
    assert asked.ask.command[0] == "caldp-process"
    assert parsed(cli.process_command, *asked.ask.command[1:]) == parsed(cli.process_command, *args, *options)
    assert (asked.ask.memory, asked.ask.cpus, asked.ask.interactive) == (GiB, 2.0, False)


def test_defaults_of_the_pipeline(asked: Asked) -> None:
    assert pipeline(DATASET).exit_code == 0
    assert asked.ask.command[:5] == ("caldp-process", DATASET, "file:.", "file:.", "caldp-config-offsite")
    assert pipeline(DATASET, "astroquery:", "file:out").exit_code == 0
    assert asked.asks[1].command[2:5] == ("astroquery:", "file:out", "caldp-config-offsite")


def test_the_config_is_that_of_the_processing_not_of_the_image(asked: Asked) -> None:
    assert pipeline(DATASET, "file:.", "file:.", "caldp-config-aws").exit_code == 0
    assert asked.ask.command[4] == "caldp-config-aws"
    assert asked.ask.image == "caldp:latest"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], "'nonsense' is not an HST dataset name"),
        (["u2ab0101t"], "WFPC2 is not calibrated"),
        ([DATASET, "file:/data"], "file:/data: absolute paths of this computer do not exist in the container"),
        ([DATASET, "file:.", "file:/data"], "file:/data: absolute paths"),
        ([DATASET, "file:.", "file:~/out"], "file:~/out: absolute paths"),
        ([DATASET, "file:../x"], "file:../x leads out of "),
        ([DATASET, "file:.", "file:a/../../x"], "leads out of "),
        ([DATASET, "astroquery:/data"], "absolute paths"),
        ([DATASET, "file:.", "file:.", "/etc/my-config"], "/etc/my-config: absolute paths"),
        ([DATASET, "file:.", "file:.", "../my-config"], "../my-config leads out of"),
        ([DATASET, "--override", "FLUXTAB=/refs/x.fits"], "/refs/x.fits: absolute paths"),
        ([DATASET, "--override", "FLUXTAB=../x.fits"], "../x.fits leads out of"),
        ([DATASET, "ftp://x"], "'ftp://x' is not an input or output"),
        ([DATASET, "s3:bucket"], "'s3:bucket' names no bucket"),
        ([DATASET, "file:.", "s3://"], "'s3://' names no bucket"),
        ([DATASET, "file:.", "nonsense"], "'nonsense' is not an input or output"),
        ([DATASET, "file:.", "astroquery:"], "is no place for files"),
        ([DATASET, "file://host/x"], "is on another host"),
        (["--env", "1", DATASET], "--env 1: there is no such variable"),
        (["--dry-run", DATASET, "file:/data"], "absolute paths"),
        ([DATASET, "nonsense"], "'nonsense' is not an input or output"),
    ],
)
def test_what_makes_no_sense_is_refused_before_an_engine_is_needed(home: Path, args: list[str], words: str) -> None:
    line = refused(pipeline(*args))
    assert line.startswith("caldp-docker-run-pipeline: ")
    assert words in line


@pytest.mark.parametrize(
    "args",
    [[], ["a"] * 5, [DATASET, "--no-such-option"], [DATASET, "--existing", "perhaps"], [DATASET, "--memory", "x"]],
)
def test_usage_errors(asked: Asked, args: list[str]) -> None:
    done = pipeline(*args)
    assert done.exit_code == 2
    assert "Usage: caldp-docker-run-pipeline" in done.stderr
    assert asked.asks == []


@pytest.mark.parametrize(
    "args",
    [
        [DATASET, "file:link"],
        [DATASET, "file:.", "file:link/out"],
        [DATASET, "file:.", "file:.", "./link"],
        [DATASET, "file:.", "file:.", "link"],
        [DATASET, "--override", "FLUXTAB=link/x.fits"],
        [DATASET, "file:IN", "--dry-run"],
    ],
)
def test_links_out_of_the_home_are_refused(home: Path, args: list[str]) -> None:
    (home / "IN").mkdir()
    for name in ("link", f"IN/{DATASET}_raw.fits"):
        (home / name).symlink_to("/data/elsewhere")
    assert "is a symbolic link to /data/elsewhere, which the container does not see" in refused(pipeline(*args))


def test_a_link_named_as_a_config_of_the_image_is_not_looked_at(asked: Asked, home: Path) -> None:
    (home / "caldp-config-onsite").symlink_to("/clone/scripts/caldp-config-onsite")
    assert pipeline(DATASET, "file:.", "file:.", "caldp-config-onsite").exit_code == 0


@pytest.mark.parametrize("args", [[], ["--dry-run"]])
def test_the_container_is_told_of_the_config(asked: Asked, args: list[str]) -> None:
    assert pipeline(DATASET, "file:.", "file:.", "caldp-config-onsite", *args).exit_code == 0
    assert run("true").exit_code == 0
    assert [(ask.config, ask.outlives_reader) for ask in asked.asks] == [("caldp-config-onsite", True), ("", False)]


def test_an_absolute_path_below_the_home_is_corrected(home: Path) -> None:
    assert refused(pipeline(DATASET, f"file:{home}/in")).endswith("; write file:in")


@pytest.mark.parametrize("args", [["--", DATASET, "file:in"], ["--json", "--", DATASET, "file:in"]])
def test_after_two_dashes(asked: Asked, args: list[str]) -> None:
    assert pipeline(*args).exit_code == 0
    assert pipeline(*[arg for arg in args if arg != "--"]).exit_code == 0
    assert asked.asks[0].command == asked.asks[1].command
    assert asked.asks[0].command[:3] == ("caldp-process", DATASET, "file:in")


def test_a_dataset_that_looks_like_an_option(home: Path) -> None:
    assert "caldp-process: No such option '-x'" in refused(pipeline("--", "-x"))


@pytest.mark.parametrize(("name", "command"), [("caldp-image-build", "build"), ("caldp-image-push", "push")])
def test_usage_errors_of_the_others(home: Path, name: str, command: str) -> None:
    for words in (["--no-such-option"], ["a", "b"]):
        assert invoke(DOORS[name][0], *words).exit_code == 2
        assert invoke(cli.main, "image", command, *words).exit_code == 2


# ---- what is watched


@pytest.fixture
def concluded(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Watched, Ended, int]]:
    """What is concluded of runs that are watched."""
    concluded: list[tuple[Watched, Ended, int]] = []
    monkeypatch.setattr(Watched, "conclude", lambda self, ended, memory: concluded.append((self, ended, memory)))
    return concluded


def test_a_pipeline_is_watched(asked: Asked, concluded: list[Any], home: Path) -> None:
    asked.ended = Ended(137, out_of_memory=True)
    assert pipeline("LDFD01VNQ", "file:in", "file:out", "--memory", "300m").exit_code == 137
    ((watched, ended, memory),) = concluded
    assert (watched.dataset, ended, memory) == (DATASET, asked.ended, 300 * MiB)
    assert isinstance(watched.store, LocalStore)
    assert watched.store.root == home / "out"
    assert asked.ask.variables == {"CALDP_RUN": watched.run}
    assert len(watched.run) == 12
    assert not (home / "out").exists()


def test_each_run_has_a_name_of_its_own(asked: Asked, concluded: list[Any]) -> None:
    for _ in range(2):
        assert pipeline(DATASET, "--env", "CALDP_RUN=mine").exit_code == 0
    assert len({watched.run for watched, *_ in concluded} | {"mine"}) == 3
    assert [ask.variables["CALDP_RUN"] for ask in asked.asks] == [watched.run for watched, *_ in concluded]


@pytest.mark.parametrize(
    ("output", "root"), [("file:", "."), ("file:.", "."), ("file:a/b", "a/b"), ("file:a b:c", "a b:c")]
)
def test_the_output_is_seen_from_outside(
    asked: Asked, concluded: list[Any], home: Path, monkeypatch: pytest.MonkeyPatch, output: str, root: str
) -> None:
    (home / "mine").mkdir()
    monkeypatch.setenv("CALDP_HOME", "mine")
    assert pipeline(DATASET, "file:.", output).exit_code == 0
    assert concluded[0][0].store.root == home / "mine" / root


@pytest.mark.parametrize(
    "command",
    [
        ["caldp-process-aws", "s3://bucket/batch", DATASET],
        ["caldp-process-aws", "s3://bucket/batch", DATASET, "--input", "s3://in/put"],
        ["caldp-process", DATASET, "astroquery:", "s3://bucket/batch", "caldp-config-offsite"],
        ["caldp", "process", DATASET, "astroquery:", "s3://bucket/batch"],
        ["caldp", "process-aws", "s3://bucket/batch", DATASET],
        ["/usr/local/bin/caldp-process", DATASET, "astroquery:", "s3://bucket/batch"],
        ["./caldp-process-aws", "s3://bucket/batch", DATASET],
        ["/opt/caldp/bin/caldp", "process", DATASET, "astroquery:", "s3://bucket/batch"],
    ],
)
def test_calibrations_in_containers_are_watched(asked: Asked, concluded: list[Any], command: list[str]) -> None:
    assert run(*command).exit_code == 0
    ((watched, _, _),) = concluded
    assert (watched.dataset, watched.store.uri) == (DATASET, "s3://bucket/batch")
    assert isinstance(watched.store, S3Store)
    assert asked.ask.command == tuple(command)
    assert asked.ask.variables == {"CALDP_RUN": watched.run}


@pytest.mark.parametrize(
    "command",
    [
        ["caldp-process-aws", "--help"],
        ["caldp-process-aws", "-h"],
        ["caldp-process", "--version"],
        ["caldp-process", DATASET, "--help"],
        ["caldp-process", DATASET, "--dry-run"],
        ["caldp", "doctor"],
        ["caldp"],
        ["caldp", "process", "--help"],
        ["/bin/caldp-process", "--version"],
        ["caldp", "--help", "process"],
        ["echo", "caldp-process", DATASET],
        ["/bin/bash"],
    ],
)
def test_other_commands_are_not_watched(asked: Asked, concluded: list[Any], command: list[str]) -> None:
    assert run(*command).exit_code == 0
    assert concluded == []
    assert asked.ask.variables == {}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["caldp-process-aws", "s3://bucket/batch"], "caldp-process-aws: Missing argument 'IPPPSSOOT'"),
        (["caldp-process-aws", "s3://bucket/batch", "nonsense"], "'nonsense' is not an HST dataset name"),
        (["caldp-process-aws", "file:/data", DATASET], "file:/data: absolute paths"),
        (["caldp-process-aws", "s3://b/p", DATASET, "--config", "/my"], "/my: absolute paths"),
        (["caldp-process-aws", "s3://b/p", DATASET, "--input", "file:/in"], "file:/in: absolute paths"),
        (["caldp-process", DATASET, "--no-such-option"], "caldp-process: No such option '--no-such-option'"),
        (["caldp-process"], "caldp-process: Missing argument"),
        (["caldp", "process", DATASET, "file:/in"], "file:/in: absolute paths"),
        (["./caldp-process", DATASET, "--no-such-option"], "caldp-process: No such option '--no-such-option'"),
    ],
)
def test_calibrations_that_make_no_sense_get_no_container(home: Path, command: list[str], words: str) -> None:
    line = refused(run(*command))
    assert words in line


def test_a_swapped_command_line_gets_no_container(home: Path) -> None:
    assert refused(run("caldp-process-aws", DATASET, "s3://bucket/batch"))


# ---- AWS, as the container has it


def settings(home: Path, **environment: str) -> ImageConfig:
    """Settings with an environment."""
    return ImageConfig("caldp:latest", "", "", "none", "", home, environment)


def test_aws_settings_of_the_home(tmp_path: Path) -> None:
    exported = {"AWS_PROFILE": "hst", "AWS_REGION": "eu-west-1", "OTHER": "x"}
    unseen = {"AWS_CONFIG_FILE": "/mine", "AWS_SHARED_CREDENTIALS_FILE": "/mine", "AWS_CA_BUNDLE": "/mine"}
    given = {"AWS_PROFILE": "other", "MINE": "x"}
    assert cli_image._aws(settings(tmp_path, **exported, **unseen), given) == {
        "AWS_PROFILE": "other",
        "AWS_REGION": "eu-west-1",
        "AWS_CONFIG_FILE": f"{tmp_path}/.aws/config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/.aws/credentials",
    }


def test_credentials_of_ones_own_home_are_not_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in (("mine", "AKIAMINE"), ("data", "AKIADATA")):
        (tmp_path / name / ".aws").mkdir(parents=True)
        text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = x\n"
        (tmp_path / name / ".aws" / "credentials").write_text(text)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    found = session_of(cli_image._aws(settings(tmp_path / "data"), {})).get_credentials()
    assert found.access_key == "AKIADATA"
    assert session_of(cli_image._aws(settings(tmp_path / "empty"), {})).get_credentials() is None


# ---- with an engine

Began = Callable[[FakeContainer], object]


def began(output: Path) -> Began:
    """Do what caldp-process does first."""

    def begin(made: FakeContainer) -> None:
        messages.begin(LocalStore(output), DATASET, made.environment["CALDP_RUN"])

    return begin


@pytest.mark.parametrize(
    ("out_of_memory", "code", "said"),
    [
        (True, 33, f"caldp-docker-run-pipeline: {DATASET}: the container was killed for memory, limit "),
        (False, 137, f"caldp-docker-run-pipeline: {DATASET}: stopped by SIGKILL; run the same command again"),
    ],
)
def test_a_calibration_that_is_killed(tmp_path: Path, out_of_memory: bool, code: int, said: str) -> None:
    play = Play(out=b"working\n", code=137, out_of_memory=out_of_memory, at_start=began(tmp_path / "OUT"))
    with serving(images={"caldp:latest": {}}, play=play) as fake:
        args = [DATASET, "file:IN", "file:OUT", "--memory", "300m"]
        done = typed("caldp-docker-run-pipeline", *args, cwd=tmp_path, env=user(tmp_path, fake.host))
    assert one_line(done, code).startswith(said)
    assert done.stdout == "working\n"
    status = messages.read(LocalStore(tmp_path / "OUT"), DATASET)
    assert status is not None
    assert (status.state, status.exit_code) == ("error", code)
    assert fake.containers == {}


@pytest.mark.parametrize(
    ("err", "said"),
    [
        (b"", f"caldp-docker-run-pipeline: {DATASET}: stopped by SIGTERM; run the same command again"),
        (b"caldp-process: x: stopped by SIGTERM\n", "caldp-process: x: stopped by SIGTERM"),
        (
            b"KeyboardInterrupt\n",  # Python had not come to CALDP yet
            f"KeyboardInterrupt\ncaldp-docker-run-pipeline: {DATASET}: stopped by SIGTERM; run the same command again",
        ),
    ],
)
def test_a_calibration_that_is_stopped_is_named_once(tmp_path: Path, err: bytes, said: str) -> None:
    """By itself, or by the command outside if it was too early."""

    def stop(made: FakeContainer) -> None:
        os.kill(int(made.asked["Labels"][container.LABEL].split(":")[-2]), signal.SIGTERM)

    with serving(images={"caldp:latest": {}}, play=Play(err=err, waits=True, at_start=stop)) as fake:
        done = typed("caldp-docker-run-pipeline", DATASET, cwd=tmp_path, env=user(tmp_path, fake.host))
    assert (done.returncode, done.stderr) == (143, f"{said}\n")


def test_a_calibration_that_is_stopped_before_there_is_a_container(asked: Asked) -> None:
    asked.ended = Stop(signal.SIGTERM)
    line = refused(pipeline(DATASET), 143)
    assert line == f"caldp-docker-run-pipeline: {DATASET}: stopped by SIGTERM; run the same command again"


def test_a_build_that_is_stopped(built: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stop(signal.SIGINT)

    monkeypatch.setattr(image, "build", stop)
    monkeypatch.setattr(image, "push", stop)
    for name in ("caldp-image-build", "caldp-image-push"):
        line = refused(invoke(DOORS[name][0]), 130)
        assert line == f"{name}: stopped by SIGINT; run the same command again"


def leave(folder: Path) -> Callable[[], None]:
    """Return what makes the current directory, in a child, one that is not there any more."""
    return lambda: folder.rmdir()


def lock(folder: Path) -> Callable[[], None]:
    """Return what makes the current directory, in a child, one that it may not enter."""
    drop = as_anybody()

    def lock() -> None:
        folder.chmod(0)
        drop()

    return lock


@pytest.mark.parametrize(
    "command",
    [
        ("caldp-docker-run-container", "true"),
        ("caldp-docker-run-pipeline", DATASET),
        ("caldp-image-build",),
        ("caldp-image-push",),
        ("caldp-process", DATASET),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(("spoil", "why"), [(leave, "No such file or directory"), (lock, "Permission denied")])
def test_a_current_directory_that_cannot_be_used(
    tmp_path: Path, command: tuple[str, ...], spoil: Callable[[Path], Callable[[], None]], why: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    env = user(tmp_path, "unix:///nonexistent.sock", PWD=str(here))
    line = one_line(typed(*command, cwd=here, env=env, preexec_fn=spoil(here)), 2)
    said = f"the current directory, {here}, cannot be used ({why}); cd to a directory of your own"
    assert line.startswith(f"{command[0]}: ") and line.endswith(said)
    assert "the image" not in line
    if here.exists():
        here.chmod(0o700)


def test_only_the_program_was_killed(tmp_path: Path) -> None:
    play = Play(err=b"ran out of memory\n", code=31, out_of_memory=True)
    with serving(images={"caldp:latest": {}}, play=play) as fake:
        done = typed("caldp-docker-run-pipeline", DATASET, cwd=tmp_path, env=user(tmp_path, fake.host))
    assert done.returncode == 31
    assert done.stderr.splitlines()[-1].startswith("caldp-docker-run-pipeline: the memory limit was reached")


@pytest.mark.parametrize("answer", ["POST {}/wait", "GET {}/json"])
def test_an_engine_that_fails_meanwhile_leaves_no_run_behind(tmp_path: Path, answer: str) -> None:
    with serving(images={"caldp:latest": {}}) as fake:

        def begin_and_fail(made: FakeContainer) -> None:
            began(tmp_path / "OUT")(made)
            fake.refuse(answer.format(f"/containers/{made.id}"), 500, "shutting down")

        fake.play = Play(at_start=begin_and_fail)
        args = [DATASET, "file:IN", "file:OUT"]
        done = typed("caldp-docker-run-pipeline", *args, cwd=tmp_path, env=user(tmp_path, fake.host))
    assert "shutting down" in one_line(done, 125)
    status = messages.read(LocalStore(tmp_path / "OUT"), DATASET)
    assert status is not None
    assert status.state == "error"


def test_a_pipeline_reads_nothing(tmp_path: Path) -> None:
    with serving(images={"caldp:latest": {}}) as fake:
        done = typed("caldp-docker-run-pipeline", DATASET, cwd=tmp_path, env=user(tmp_path, fake.host), input="typed")
    assert done.returncode == 0
    assert fake.made[0].asked["OpenStdin"] is False
    assert [request for request in fake.requests if "/attach?" in request and "stdin=0" in request]


def test_a_run_that_never_began_is_not_looked_for(tmp_path: Path) -> None:
    env = user(tmp_path, "unix:///nonexistent.sock", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    done = typed("caldp-docker-run-pipeline", DATASET, "astroquery:", "s3://bucket/batch", cwd=tmp_path, env=env)
    assert "there is no Docker engine" in one_line(done, 125)


# ---- caldp-image-build, without an engine


@pytest.fixture
def built(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is built: nothing."""
    built: list[Any] = []

    def build(*args: Any, **options: Any) -> str:
        built.append(inspect.signature(image_build).bind(*args, **options).arguments)
        args[2]("a line of the build")
        return "built it"

    image_build = image.build
    monkeypatch.setattr(image, "build", build)
    return built


def test_a_build(built: list[Any]) -> None:
    done = invoke(cli_image.build_command)
    assert (done.exit_code, done.stdout) == (0, "a line of the build\nbuilt it\n")
    ((config, context, cache),) = ((b["settings"], b["context"], b["cache"]) for b in built)
    assert (context, cache, config.hstcal, config.network) == (Path(), True, "stable", "")
    assert (config.image, config.base) == ("caldp:latest", "python:3.11-slim-bookworm")


def test_a_quiet_build(built: list[Any]) -> None:
    assert invoke(cli_image.build_command, "-q").stdout == "built it\n"


def test_options_of_a_build(built: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALDP_DOCKER_NETWORK", "theirs")
    options = ["--base", "mine:1", "--hstcal", "none", "--network", "", "--no-cache", "some/where"]
    assert invoke(cli_image.build_command, *options).exit_code == 0
    config = built[0]["settings"]
    assert (config.base, config.hstcal, config.network) == ("mine:1", "none", "")
    assert (built[0]["cache"], built[0]["context"]) == (False, Path("some/where"))


@pytest.mark.parametrize("version", ["stable", "latest", "none", "3.2.0", "3", "3.2.*", "3.0rc1"])
def test_versions_of_hstcal(built: list[Any], monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("CALDP_HSTCAL", version)
    assert invoke(cli_image.build_command).exit_code == 0
    assert built[0]["settings"].hstcal == version


@pytest.mark.parametrize("version", ["newest", "3.2; rm -rf /", "3.2 calcos", "-x", "3.2\n", ">=3"])
def test_what_is_no_version_of_hstcal(built: list[Any], version: str) -> None:
    assert "is no version of HSTCAL" in refused(invoke(cli_image.build_command, f"--hstcal={version}"))
    assert built == []
