"""A CRDS server: rules come with the choice, and what is then missing or damaged is downloaded by ``crds.sync``.

``python -m caldp.crds_server FILE MODULE ARGUMENT...`` is ``python -m MODULE ARGUMENT...``, a command of crds, except
that a download of which nothing comes any more ends, and that what the server says of itself goes into FILE.
"""

from __future__ import annotations

import json
import runpy
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caldp import crds_cache
from caldp.crds_cache import CrdsCache, Reference, Wanting, megabytes, turn
from caldp.errors import ReferencesError, ReferencesUnavailableError
from caldp.programs import ProgramRun
from caldp.run import Run

#: So often a reference is downloaded that does not arrive whole.
_TRIES = 3


class CrdsServer(CrdsCache):
    """A CRDS server, and a cache of one's own.

    Attributes
    ----------
    place : str
        Its address.
    answered : bool
        Whether it is there to download from.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.place = url
        self.answered = False

    def choose(self, run: Run, directory: Path, names: Sequence[str]) -> None:
        config = run.config
        # Not looked up in the cache: the server may know better.
        context = crds_cache.asked_context(run)
        command = crds_cache.bestrefs_command(context, names)
        with turn(run, "rules"):
            done, server = _ask(run, command, directory)
            if done.returncode and _discard_rules(run, server):
                done, server = _ask(run, command, directory)
        # crds says only to its debuggers that it took what it knew of the server for the server.
        self.answered = bool(server)
        self.known = server or _remembered(run)
        if not self.known:
            raise ReferencesUnavailableError(
                f"{run.dataset}: the CRDS server {self.place} does not answer, and there is no CRDS cache at "
                f"{config.crds_path}",
                remedy="try again when it does, or export CRDS_PATH=<CRDS cache>",
            )
        there = crds_cache.contexts(config)
        known = [n for n in server.get("mappings", ()) if n.endswith(".pmap")] if self.answered else there
        if context.endswith(".pmap") and context not in {*known, *there}:
            who = self.place if self.answered else f"the server does not answer, and {config.crds_path}"
            raise ReferencesError(
                f"{run.dataset}: unknown CRDS context {context}: {who} has no rules of that name",
                remedy=f"choose one with --context or CRDS_CONTEXT{f', the newest is {max(known)}' if known else ''}",
            )
        crds_cache.judge(run, self.known, done)
        if not self.answered:
            run.telemetry.warning(
                f"the CRDS server {self.place} does not answer: rules and references are those of the cache"
            )

    def expected(self, one: Wanting) -> Reference | None:
        if not (self.answered and one.replaceable):
            return None
        known = crds_cache.metadata(self.known).get(one.name, {})
        return Reference(one.type, one.name, int(known.get("size") or 0), known.get("sha1sum") or "", "")

    def refusal(self, run: Run, one: Wanting) -> ReferencesError:
        if self.answered or not one.replaceable:
            return one.error
        return ReferencesUnavailableError(
            f"{one.error.message}, and the CRDS server {self.place} does not answer",
            remedy="try again when it does, or give your own file with --override",
        )

    def fetch(self, run: Run, wanting: Sequence[Wanting]) -> list[Reference]:
        # crds itself keeps a download that fails its checks, and takes it next time: such a file is removed.
        files: list[Reference] = []
        why: list[str] = []
        with turn(run, "references"):
            for attempt in range(_TRIES + 1):
                # Another run may have fetched some meanwhile.
                found, wanting = self.look(run, [(one.type, one.name) for one in wanting])
                files += found
                if not wanting:
                    return files
                for path in {one.path for one in wanting if one.path}:
                    run.telemetry.warning(f"{path} is damaged: removed")
                    path.unlink(missing_ok=True)
                if attempt < _TRIES:
                    names = sorted({one.name for one in wanting})
                    size = megabytes(e for one in wanting if (e := self.expected(one)))
                    run.telemetry.info(f"downloading {len(names)} references, {size}, from {self.place}")
                    done, _ = _ask(run, ["crds.sync", "--files", *names], run.workspace.root)
                    why = crds_cache.errors_of(done)
        first = wanting[0]
        said = next((line for line in why if f"'{first.name}'" in line), "")
        said = said.rpartition(" : ")[2]
        raise ReferencesUnavailableError(
            f"{run.dataset}: {first.type} needs {first.name}, which could not be downloaded from "
            f"{self.place}{f' ({said[:300]})' if said else ''}",
            remedy=f"run it again later; {run.see_log}",
        )


def _remembered(run: Run) -> dict[str, Any]:
    """Return what the cache knows of the server; nothing if it is unreadable, for then crds writes it anew."""
    try:
        return crds_cache.server_config(run)
    except ReferencesError:
        return {}


def _ask(run: Run, command: list[str], directory: Path) -> tuple[ProgramRun, dict[str, Any]]:
    """Run a command of crds that asks its server; return what the server says of itself, empty if it says nothing."""
    answer = run.workspace.root / "crds-server.json"
    answer.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "caldp.crds_server", str(answer), *command]
    done = run.telemetry.run_program(argv, cwd=directory, env=crds_cache.environment(run.config))
    server = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    return done, server if server.get("connected") else {}


def _discard_rules(run: Run, server: dict[str, Any]) -> bool:
    """Remove damaged rules from a cache that may fetch them again: crds keeps a bad download, and trips over it."""
    metadata = crds_cache.metadata(server)
    damaged = []
    for path in sorted((run.config.crds_path / "mappings" / "hst").glob("hst_*.[pir]map")):
        known = metadata.get(path.name)
        if known and not crds_cache.agrees(known, path.stat().st_size, crds_cache.sha1(path)):
            run.telemetry.warning(f"{path} is damaged: removed, to be fetched again")
            path.unlink(missing_ok=True)
            damaged.append(path)
    return bool(damaged)


def main() -> None:
    """Run a command of crds, which itself would wait for ever for a server that has fallen silent."""
    from crds.client import api
    from crds.core import config as crds_config

    answer, module = Path(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    socket.setdefaulttimeout(crds_config.get_client_timeout_seconds())
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        if api.get_server_info.cache:  # it has answered
            answer.write_text(json.dumps(api.get_server_info()), encoding="utf-8")


if __name__ == "__main__":
    main()
