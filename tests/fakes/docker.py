"""Docker's command line: what it answers to the questions that CALDP asks, and to a build; and who types commands."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Variables of the developer that would change what a command does.
_IGNORED = re.compile(
    r"(DOCKER|BUILDKIT|CALDP|CAL_|CRDS|AWS|PIP|MAST|CSYS|XDG)\w*|\w*(CERT_FILE|CA_BUNDLE)|\w*_proxy|[a-z]ref|TERM"
    r"|OMP_NUM_THREADS|GITHUB_TOKEN|PYTHONUNBUFFERED",
    re.IGNORECASE,
)

#: Settings of pip that a computer may have in its files, and that these tests do not want.
NO_PIP = {
    f"PIP_{name}": ""
    for name in "INDEX_URL EXTRA_INDEX_URL TRUSTED_HOST FIND_LINKS PROXY TIMEOUT DEFAULT_TIMEOUT RETRIES CERT".split()
}

#: What each client says: measured.  {version} is its own.
_CLIENT = r"""#!/bin/sh
here={folder}
case "$*" in
"buildx version")
    {buildx} ;;
"version --format "*)
    {version} ;;
"build "*)
    for word; do printf '%s\0' "$word"; done > "$here/argv"
    env -0 > "$here/environment"
    pwd > "$here/directory"
    for word; do case "$word" in id=*,src=*)
        name=${{word#id=}}; name=${{name%%,*}}; file=${{word#*,src=}}
        mkdir -p "$here/secrets"
        cp "$file" "$here/secrets/$name"
        stat -c '%a %n' "$file" "${{file%/*}}" > "$here/secrets/$name.modes"
    esac; done
    {build} ;;
*)
    echo "docker: '$1' is not a docker command." >&2; exit 1 ;;
esac
"""


@dataclass(frozen=True)
class FakeDocker:
    """A docker command, and what it was given when it last built."""

    folder: Path

    @property
    def path(self) -> str:
        """The command."""
        return str(self.folder / "docker")

    @property
    def built(self) -> bool:
        """Whether it was asked to build."""
        return (self.folder / "argv").exists()

    @property
    def argv(self) -> list[str]:
        """Its arguments."""
        return (self.folder / "argv").read_text().split("\0")[:-1]

    @property
    def environment(self) -> dict[str, str]:
        """Its environment."""
        return dict(item.split("=", 1) for item in (self.folder / "environment").read_text().split("\0")[:-1])

    @property
    def directory(self) -> Path:
        """Where it ran."""
        return Path((self.folder / "directory").read_text().rstrip("\n"))

    def all(self, option: str) -> list[str]:
        """The values of an option."""
        return [value for name, value in zip(self.argv, self.argv[1:], strict=False) if name == option]

    def secret(self, name: str) -> str:
        """The content of a secret."""
        return (self.folder / "secrets" / name).read_text()

    def modes(self, name: str) -> dict[str, int]:
        """The permissions of the file of a secret, and of its folder."""
        lines = (self.folder / "secrets" / f"{name}.modes").read_text().splitlines()
        return {path: int(mode, 8) for mode, path in (line.split(" ", 1) for line in lines)}


def make_docker(folder: Path, version: str = "28.2.2", *, buildx: bool = True, build: str = "true") -> FakeDocker:
    """Write a docker command into a folder.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    version : str
        Of the client; empty for one that fails whatever it is asked.
    buildx : bool
        It has the plug-in.
    build : str
        Shell commands that are its build.
    """
    folder.mkdir(parents=True, exist_ok=True)
    absent = "echo 'docker: unknown command: docker buildx' >&2; exit 1"
    if version.startswith("20."):
        absent = "echo \"docker: 'buildx' is not a docker command.\" >&2; exit 1"
    text = _CLIENT.format(
        folder=f"'{folder}'",
        version=f"echo {version}" if version else "exit 1",
        buildx="echo github.com/docker/buildx v0.24.0 d0e5e86" if buildx else absent,
        build=build,
    )
    (folder / "docker").write_text(text)
    (folder / "docker").chmod(0o755)
    return FakeDocker(folder)


def user(home: Path, host: str, *folders: Path, **more: str) -> dict[str, str]:
    """Return the environment of somebody who has an engine and nothing of the developer's.

    Parameters
    ----------
    home : Path
        The home directory.
    host : str
        DOCKER_HOST.
    *folders : Path
        First on PATH.
    **more : str
        Other variables.
    """
    env = {name: value for name, value in os.environ.items() if not _IGNORED.fullmatch(name)}
    path = [*map(str, folders), sysconfig.get_path("scripts"), os.defpath]
    return {
        **env,
        "PATH": os.pathsep.join(path),
        "HOME": str(home),
        "DOCKER_CONFIG": str(home / "no-docker-config"),
        "DOCKER_HOST": host,
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


def typed(
    command: str, *args: str, cwd: Path, env: Mapping[str, str], **popen: Any
) -> subprocess.CompletedProcess[str]:
    """Type a command of CALDP; it must not end with a traceback."""
    program = str(Path(sysconfig.get_path("scripts")) / command)
    if "input" not in popen:
        popen.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run([program, *args], cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=60, **popen)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def as_anybody() -> Callable[[], None]:
    """Return what takes from root, in a child, the right to use what its permissions forbid."""
    pr_capbset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2
    prctl = ctypes.CDLL(None).prctl if os.geteuid() == 0 else None

    def drop() -> None:
        for capability in (cap_dac_override, cap_dac_read_search):
            if prctl is not None and prctl(pr_capbset_drop, capability):
                os._exit(99)

    return drop


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Assert that a command failed with a code and one line, and return the line."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]
