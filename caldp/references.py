"""Assign: CRDS best references for the working copies, and proof that each file is there and whole.

The real ``crds`` package chooses (``python -m crds.bestrefs`` on the copies); what it chose is read back from the
headers, because its exit status says neither "nothing chosen" nor "all present".  With a CRDS server and a cache of
one's own, rules come with the choice, and what is then missing or damaged is downloaded by ``crds.sync``.  The program
sees exactly the verified files: links to them in one folder of the workspace, whatever the layout of the cache.

``python -m caldp.references FILE MODULE ARGUMENT...`` is ``python -m MODULE ARGUMENT...``, a command of crds, except
that a download of which nothing comes any more ends, and that what the server says of itself goes into FILE.
"""

from __future__ import annotations

import ast
import base64
import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import runpy
import socket
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldp.config import Config
from caldp.errors import ReferencesError, ReferencesUnavailableError
from caldp.fitsfile import damage, read_header, update_header
from caldp.inputs import InputFile, Inputs
from caldp.programs import ProgramRun
from caldp.run import Run

_CONTEXT = re.compile(r"hst_\d{4}\.pmap|hst-(operational|edit|latest)")

#: What the CRDS server calls these contexts; an old one knows no latest.
_SYMBOLIC = {
    "hst-operational": ("operational_context", "latest_context"),
    "hst-latest": ("latest_context", "operational_context"),
    "hst-edit": ("edit_context",),
}

#: How long crds waits for its server, unless exported: by itself it waits for an hour, and asks once.
_PATIENCE = {
    "CRDS_CLIENT_TIMEOUT_SECONDS": "20",
    "CRDS_CLIENT_RETRY_COUNT": "2",
    "CRDS_CLIENT_RETRY_DELAY_SECONDS": "2",
}

#: So often a reference is downloaded that does not arrive whole.
_TRIES = 3


@dataclass(frozen=True)
class Reference:
    """One reference file.

    Attributes
    ----------
    type : str
        Header keyword that names it, for example ``FLUXTAB``.
    name : str
        File name.
    size : int
        Bytes.
    sha1 : str
        CRDS's own checksum of reference files.
    path : str
        Where it is.
    override : bool
        Chosen by the user instead of CRDS.
    """

    type: str
    name: str
    size: int
    sha1: str
    path: str
    override: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records."""
        return {
            "type": self.type,
            "name": self.name,
            "size": self.size,
            "sha1": self.sha1,
            "override": self.override,
        }


@dataclass(frozen=True)
class References:
    """The reference files of a dataset, all verified.

    Attributes
    ----------
    context : str
        For example ``hst_0729.pmap``.
    crds_version : str
        Version of the crds package that chose them.
    files : tuple of Reference
        Sorted by type and name.
    directory : Path
        Folder of links to exactly these files.
    """

    context: str
    crds_version: str
    files: tuple[Reference, ...]
    directory: Path

    def __str__(self) -> str:
        return f"{len(self.files)} references of {self.context}, {sum(f.size for f in self.files) / 1e6:.1f} MB"


def assign(run: Run, inputs: Inputs, *, download: bool = True) -> References:
    """Write the best references into the headers of the working copies and verify the files.

    Parameters
    ----------
    run : Run
        The run.
    inputs : Inputs
        Working copies of the raw data; their headers are changed.
    download : bool
        Fetch what is not in the cache from the CRDS server, if there is one.  Otherwise only say what would be
        fetched: such a reference then has no ``path``.

    Returns
    -------
    References

    Raises
    ------
    ReferencesError
        If the context is unknown, CRDS cannot choose, a file is missing, damaged or known to be bad, or an override
        does not fit these data.
    """
    with run.telemetry.stage("references") as stage:
        if not run.recipe.reference_variable:
            run.telemetry.info("mosaics are made of calibrated exposures: no references are assigned")
            return References("", "", (), run.workspace.references)
        choice = _choose(run, inputs)
        _refuse_bad(run, choice)
        files, wanting = _look(run, choice, choice.chosen)
        if wanting and download:
            files += _download(run, choice, wanting)
        elif wanting:
            files += _foretell(run, choice, wanting)
        files = sorted(files, key=lambda f: (f.type, f.name))
        files += [_own_reference(run, kind, path) for kind, path in sorted(choice.overrides.items())]
        _link(run, files)
        stage.bytes_in = sum(f.size for f in files)
        references = References(choice.context, choice.crds_version, tuple(files), run.workspace.references)
        run.telemetry.info(f"{references}")
    return references


@dataclass(frozen=True)
class Checked:
    """One reference that a dataset needs, and its state.

    Attributes
    ----------
    type, name : str
        Header keyword and file name.
    reference : Reference or None
        The file, when it is there and whole; without ``path`` when it would be downloaded.
    problem : str
        What is wrong with it; empty if nothing is.
    """

    type: str
    name: str
    reference: Reference | None
    problem: str = ""

    @property
    def state(self) -> str:
        """``intact``, ``override``, ``download`` (it would be) or ``unusable``."""
        if self.problem or self.reference is None:
            return "unusable"
        if not self.reference.path:
            return "download"
        return "override" if self.reference.override else "intact"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; all of them have the same keys."""
        found = self.reference
        return {
            "type": self.type,
            "name": self.name,
            "state": self.state,
            "ok": not self.problem,
            "problem": self.problem,
            "size": found.size if found else None,
            "sha1": found.sha1 if found else None,
            "path": (found.path or None) if found else None,
            "override": found.override if found else False,
        }


@dataclass(frozen=True)
class Survey:
    """What references a dataset needs, and whether they are there.

    Attributes
    ----------
    context, crds_version : str
        As in ``References``.
    checked : tuple of Checked
        Sorted by type and name.
    """

    context: str
    crds_version: str
    checked: tuple[Checked, ...]

    @property
    def ok(self) -> bool:
        """Whether every reference is intact, or would be downloaded."""
        return not any(c.problem for c in self.checked)


def survey(run: Run, inputs: Inputs) -> Survey:
    """Look at the references of a dataset without failing at the first that is missing, and without downloading any.

    Parameters
    ----------
    run : Run
        The run.
    inputs : Inputs
        Working copies of the raw data; their headers are changed.

    Returns
    -------
    Survey

    Raises
    ------
    ReferencesError
        If the context is unknown, CRDS cannot choose, or an override does not fit these data.
    """
    with run.telemetry.stage("references"):
        if not run.recipe.reference_variable:
            return Survey("", "", ())
        choice = _choose(run, inputs)
        files, wanting = _look(run, choice, choice.chosen)
        bad = set() if run.config.allow_bad_references else choice.bad
        known = "CRDS knows it to be bad"
        checked = [Checked(f.type, f.name, f, known if f.name in bad else "") for f in files]
        for one in wanting:
            expected = one.expected(choice) if choice.answered and one.replaceable else None
            why = _unobtainable(run, choice, one).message.removeprefix(f"{run.dataset}: ")
            problem = "" if expected else why.replace(f"{one.type} needs {one.name}, which is ", "missing: ")
            checked.append(Checked(one.type, one.name, expected, known if one.name in bad else problem))
        checked.sort(key=lambda c: (c.type, c.name))
        own = [_own_reference(run, kind, path) for kind, path in sorted(choice.overrides.items())]
        checked += [Checked(reference.type, reference.name, reference) for reference in own]
        return Survey(choice.context, choice.crds_version, tuple(checked))


def as_text(answer: Mapping[str, Any]) -> str:
    """Lay the answer of ``process.survey`` out for people.

    Parameters
    ----------
    answer : mapping
        ``context``, ``crds``, ``cache`` and ``references``.

    Returns
    -------
    str
        One line for each reference: type, name, size and state.
    """
    if not answer["context"]:
        return "no references are assigned: a mosaic is made of calibrated exposures"
    words = {"intact": "intact", "override": "your own", "download": "not in the cache: would be downloaded"}
    rows = [("TYPE", "FILE", "BYTES", "STATE")]
    for one in answer["references"]:
        size = f"{one['size']:,}" if one["size"] else "-"
        rows.append((one["type"], one["name"], size, one["problem"] or words[one["state"]]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}" for row in rows]
    title = f"{len(answer['references'])} references of {answer['context']}, cache {answer['cache']}"
    absent = [one for one in answer["references"] if one["state"] == "download"]
    if absent:
        title += f"; {len(absent)} would be downloaded, {_megabytes(absent)}"
    return "\n".join([title, *lines])


def _megabytes(files: Iterable[Mapping[str, Any]]) -> str:
    return f"{sum(one['size'] or 0 for one in files) / 1e6:.1f} MB"


@dataclass(frozen=True)
class _Choice:
    """What CRDS chose, and what the user chose instead.

    ``answered`` says whether there is a server that can deliver what is missing, and a cache that may be written.
    """

    context: str
    crds_version: str
    chosen: frozenset[tuple[str, str]]
    overrides: dict[str, Path]
    server: dict[str, Any]
    answered: bool

    @property
    def bad(self) -> set[str]:
        """The files that CRDS knows to be bad."""
        return set(self.server.get("bad_files_list", ()))


@dataclass(frozen=True)
class _Wanting:
    """A chosen reference that cannot be used as it is: missing, or damaged at ``path``."""

    type: str
    name: str
    error: ReferencesError
    path: Path | None
    replaceable: bool

    def expected(self, choice: _Choice) -> Reference:
        """Return what a download would bring."""
        known = _metadata(choice.server).get(self.name, {})
        return Reference(self.type, self.name, int(known.get("size") or 0), known.get("sha1sum") or "", "")


def _choose(run: Run, inputs: Inputs) -> _Choice:
    """Let CRDS and the user choose, and write it into the headers."""
    server, answered = _bestrefs(run, inputs)
    chosen, context, version = _chosen(run, inputs)
    overrides = _override(run, inputs)
    kept = frozenset((kind, name) for kind, name in chosen if kind not in overrides)
    return _Choice(context, version, kept, overrides, server, answered)


def contexts(config: Config) -> list[str]:
    """List the contexts whose rules are in the CRDS cache, oldest first."""
    return sorted(p.name for p in (config.crds_path / "mappings" / "hst").glob("hst_[0-9]*.pmap"))


def serverless(config: Config) -> bool:
    """Whether CRDS works from its cache alone."""
    url = config.crds_server_url
    return not url or "serverless" in url or "server-less" in url


def _may_download(config: Config) -> bool:
    return not serverless(config) and not config.crds_readonly


def _server_config_path(config: Config) -> Path:
    return config.crds_path / "config" / "hst" / "server_config"


def _server_config(run: Run) -> dict[str, Any]:
    """Read what the cache knows of the CRDS server."""
    path = _server_config_path(run.config)
    if not path.is_file():
        if _may_download(run.config):
            return {}
        raise ReferencesError(
            f"{run.dataset}: there is no CRDS cache at {run.config.crds_path} (no config/hst/server_config)",
            remedy="export CRDS_PATH=<CRDS cache>, or use caldp-config-offsite to fetch from the CRDS server",
        )
    try:
        settings = ast.literal_eval(path.read_text(encoding="utf-8"))
        return dict(settings)
    except (ValueError, SyntaxError, TypeError) as error:
        if _may_download(run.config):
            return {}  # crds writes it anew
        raise ReferencesError(f"{run.dataset}: {path} is not readable ({error})", remedy="sync it again") from error


def _context(run: Run, server: Mapping[str, Any]) -> str:
    """Return the name of the context to use; where there is a server, it may know better than the cache."""
    context = run.config.crds_context or "hst-operational"
    if not _CONTEXT.fullmatch(context):
        raise ReferencesError(
            f"{run.dataset}: {context!r} is not a CRDS context",
            remedy="give --context one like hst_0729.pmap, or hst-operational",
        )
    if _may_download(run.config):
        return context
    name = next((str(server[key]) for key in _SYMBOLIC.get(context, ()) if server.get(key)), context)
    if name in (known := contexts(run.config)):
        return name
    called = name if name == context else f"{context} ({name})" if name.endswith(".pmap") else context
    newest = f"the newest there is {known[-1]}" if known else "it holds no rules at all"
    raise ReferencesError(
        f"{run.dataset}: unknown CRDS context {called}: {run.config.crds_path} has no rules of that name",
        remedy=f"{newest}; choose one with --context or CRDS_CONTEXT",
    )


def _bestrefs(run: Run, inputs: Inputs) -> tuple[dict[str, Any], bool]:
    """Let the crds package write its choice into the headers.

    Returns
    -------
    server : dict
        What is known of the CRDS server.
    answered : bool
        Whether it is there to download from.
    """
    config = run.config
    context = _context(run, before := _server_config(run))
    command = ["crds.bestrefs", "--update-bestrefs", "--new-context", context]
    command += ["--files", *(f.name for f in _referenced(run, inputs))]
    if not _may_download(config):
        argv = [sys.executable, "-m", *command]
        _judge(run, before, run.telemetry.run_program(argv, cwd=inputs.directory, env=_environment(config)))
        return before, False
    with _turn(run, "rules"):
        done, server = _ask(run, command, inputs.directory)
        if done.returncode and _discard_rules(run, server):
            done, server = _ask(run, command, inputs.directory)
    # crds says only to its debuggers that it took what it knew of the server for the server.
    answered = bool(server)
    server = server or _server_config(run)
    if not server:
        raise ReferencesUnavailableError(
            f"{run.dataset}: the CRDS server {config.crds_server_url} does not answer, and there is no CRDS cache at "
            f"{config.crds_path}",
            remedy="try again when it does, or export CRDS_PATH=<CRDS cache>",
        )
    known = [n for n in server.get("mappings", ()) if n.endswith(".pmap")] if answered else contexts(config)
    if context.endswith(".pmap") and context not in {*known, *contexts(config)}:
        who = config.crds_server_url if answered else f"the server does not answer, and {config.crds_path}"
        raise ReferencesError(
            f"{run.dataset}: unknown CRDS context {context}: {who} has no rules of that name",
            remedy=f"choose one with --context or CRDS_CONTEXT{f', the newest is {max(known)}' if known else ''}",
        )
    _judge(run, server, done)
    if not answered:
        run.telemetry.warning(
            f"the CRDS server {config.crds_server_url} does not answer: rules and references are those of the cache"
        )
    return server, answered


def _environment(config: Config) -> dict[str, str]:
    return {**_PATIENCE, **config.program_environment()}


def _ask(run: Run, command: list[str], directory: Path) -> tuple[ProgramRun, dict[str, Any]]:
    """Run a command of crds that asks its server; return what the server says of itself, empty if it says nothing."""
    answer = run.workspace.root / "crds-server.json"
    answer.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "caldp.references", str(answer), *command]
    done = run.telemetry.run_program(argv, cwd=directory, env=_environment(run.config))
    server = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    return done, server if server.get("connected") else {}


def _judge(run: Run, server: Mapping[str, Any], done: ProgramRun) -> None:
    """Raise ReferencesError if crds could not choose."""
    if done.returncode == 0:
        return
    bad = [name.lower() for name in server.get("bad_files_list", ())]
    errors = _errors(done)
    # An assigned reference on the list of bad files is an ERROR of its own; _refuse_bad judges it.
    others = [line for line in errors if not any(name in line.lower() for name in bad)]
    if others or not errors:
        raise ReferencesError(
            f"{run.dataset}: CRDS could not choose best references: {_why(others, done)}",
            remedy=run.see_log if serverless(run.config) else f"is {run.config.crds_server_url} well? {run.see_log}",
        )


def _errors(done: ProgramRun) -> list[str]:
    return [line for line in done.tail if "- ERROR -" in line or "- FATAL -" in line]


def _why(errors: list[str], done: ProgramRun) -> str:
    line = errors[0] if errors else next((line for line in reversed(done.tail) if line.strip()), done.outcome)
    return re.sub(r"^CRDS - (ERROR|FATAL) -\s*", "", line)[:300].rstrip(" .")


def _referenced(run: Run, inputs: Inputs) -> list[InputFile]:
    """List the files whose headers name references."""
    return [*inputs.raw, *(f for f in inputs.support if f.suffix in run.recipe.referenced)]


@contextmanager
def _turn(run: Run, what: str) -> Iterator[None]:
    """Let one process at a time write rules, or references, into a shared cache."""
    path = run.config.crds_path / f".caldp-{what}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read-only: a lock that one member of a group has made is not writable for the others.
        lock = os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ReferencesError(
            f"{run.dataset}: the CRDS cache {run.config.crds_path} cannot be written ({error.strerror})",
            remedy="export CRDS_PATH=<a folder of your own>, or CRDS_READONLY_CACHE=1 to use it as it is",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run.telemetry.info(f"waiting for another run that fetches {what} into {run.config.crds_path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _discard_rules(run: Run, server: dict[str, Any]) -> bool:
    """Remove damaged rules from a cache that may fetch them again: crds keeps a bad download, and trips over it."""
    metadata = _metadata(server)
    damaged = []
    for path in sorted((run.config.crds_path / "mappings" / "hst").glob("hst_*.[pir]map")):
        known = metadata.get(path.name)
        if known and not _agrees(known, path.stat().st_size, _sha1(path)):
            run.telemetry.warning(f"{path} is damaged: removed, to be fetched again")
            path.unlink(missing_ok=True)
            damaged.append(path)
    return bool(damaged)


def _look(run: Run, choice: _Choice, chosen: Iterable[tuple[str, str]]) -> tuple[list[Reference], list[_Wanting]]:
    """Sort the chosen references into those that are there and whole, and those that are not."""
    files: list[Reference] = []
    wanting: list[_Wanting] = []
    for kind, name in sorted(chosen):
        path, replaceable = None, False
        try:
            path = _find(run, kind, name)
            replaceable = path is None or path.is_relative_to(run.config.crds_path / "references")
            files.append(_verify(run, kind, name, choice.server))
        except ReferencesError as error:
            wanting.append(_Wanting(kind, name, error, path, replaceable))
        except FileNotFoundError:  # it was damaged, and another run has just removed it
            gone = ReferencesError(
                f"{run.dataset}: {kind} needs {name}, which is being replaced", remedy="run it again"
            )
            wanting.append(_Wanting(kind, name, gone, None, replaceable))
    return files, wanting


def _unobtainable(run: Run, choice: _Choice, one: _Wanting) -> ReferencesError:
    """Return the error that explains why a reference cannot be had."""
    if choice.answered or not one.replaceable or not _may_download(run.config):
        return one.error
    return ReferencesUnavailableError(
        f"{one.error.message}, and the CRDS server {run.config.crds_server_url} does not answer",
        remedy="try again when it does, or give your own file with --override",
    )


def _foretell(run: Run, choice: _Choice, wanting: list[_Wanting]) -> list[Reference]:
    """Return what a download would bring, if there could be one."""
    for one in wanting:
        if not (choice.answered and one.replaceable):
            raise _unobtainable(run, choice, one)
    files = [one.expected(choice) for one in wanting]
    size = _megabytes(file.to_json() for file in files)
    run.telemetry.info(f"would download {len(files)} references, {size}, from {run.config.crds_server_url}")
    return files


def _download(run: Run, choice: _Choice, wanting: list[_Wanting]) -> list[Reference]:
    """Fetch what is missing or damaged into the cache, and verify it.

    crds itself keeps a download that fails its checks, and takes it next time: such a file is removed.
    """
    files: list[Reference] = []
    why: list[str] = []
    for one in wanting:
        if not (choice.answered and one.replaceable):
            raise _unobtainable(run, choice, one)
    with _turn(run, "references"):
        for attempt in range(_TRIES + 1):
            # Another run may have fetched some meanwhile.
            found, wanting = _look(run, choice, [(one.type, one.name) for one in wanting])
            files += found
            if not wanting:
                return files
            for path in {one.path for one in wanting if one.path}:
                run.telemetry.warning(f"{path} is damaged: removed")
                path.unlink(missing_ok=True)
            if attempt < _TRIES:
                names = sorted({one.name for one in wanting})
                size = _megabytes(one.expected(choice).to_json() for one in wanting)
                run.telemetry.info(f"downloading {len(names)} references, {size}, from {run.config.crds_server_url}")
                done, _ = _ask(run, ["crds.sync", "--files", *names], run.workspace.root)
                why = _errors(done)
    first = wanting[0]
    said = next((line for line in why if f"'{first.name}'" in line), "")
    said = said.rpartition(" : ")[2]
    raise ReferencesUnavailableError(
        f"{run.dataset}: {first.type} needs {first.name}, which could not be downloaded from "
        f"{run.config.crds_server_url}{f' ({said[:300]})' if said else ''}",
        remedy=f"run it again later; {run.see_log}",
    )


def _chosen(run: Run, inputs: Inputs) -> tuple[set[tuple[str, str]], str, str]:
    """Read from the headers which references the program will use, in which context, chosen by which crds."""
    prefix = f"{run.recipe.reference_variable}$"
    chosen: set[tuple[str, str]] = set()
    seen: set[tuple[str, str]] = set()
    for file in _referenced(run, inputs):
        header = read_header(inputs.directory / file.name)
        seen.add((str(header.get("CRDS_CTX", "")), str(header.get("CRDS_VER", ""))))
        for key, value in header.items():
            named = isinstance(value, str) and value.strip().lower().startswith(prefix)
            if named and _is_read(run, header, key):
                chosen.add((key, value.strip()[len(prefix) :]))
    if len(seen) != 1 or not all(next(iter(seen))):
        raise ReferencesError(
            f"{run.dataset}: CRDS did not record one context in every raw header ({sorted(seen)})",
            remedy=run.see_log,
        )
    context, version = seen.pop()
    asked = run.config.crds_context
    if asked.endswith(".pmap") and context != asked:
        raise ReferencesError(
            f"{run.dataset}: CRDS left the headers with context {context} instead of {asked}",
            remedy=run.see_log,
        )
    return chosen, context, version.split(",")[0]


def _is_read(run: Run, header: Mapping[str, Any], key: str) -> bool:
    """Whether any calibration step that these headers ask for reads a reference."""
    steps = run.recipe.read_by.get(key)
    return steps is None or any(str(header.get(step, "")).strip().upper() == "PERFORM" for step in steps)


def _override(run: Run, inputs: Inputs) -> dict[str, Path]:
    """Write the user's own references into the headers."""
    overrides = dict(run.config.overrides)
    used: set[str] = set()
    types: set[str] = set()
    for file in _referenced(run, inputs) if overrides else ():
        path = inputs.directory / file.name
        header = read_header(path)
        named = {k for k, v in header.items() if isinstance(v, str) and ("$" in v or v.strip() == "N/A")}
        types |= {k for k in named if "$" in header[k]}
        known = [k for k in overrides if k in named or k in run.recipe.late_references]
        update_header(path, {k: (f"{run.recipe.reference_variable}${overrides[k].name}", "") for k in known})
        used.update(known)
    for kind in overrides:
        if kind not in used:
            raise ReferencesError(
                f"{run.dataset}: --override {kind}: these data have no reference of that type",
                remedy=f"they have {', '.join(sorted(types))}",
            )
    for kind, path in overrides.items():
        run.telemetry.warning(f"{kind} is overridden by {path}")
    return overrides


def _find(run: Run, kind: str, name: str) -> Path | None:
    """Find a chosen reference file."""
    if "/" in name or name in ("", ".", ".."):
        raise ReferencesError(f"{run.dataset}: {kind} names {name!r}", remedy=run.see_log)
    return next((p / name for p in _places(run) if (p / name).is_file()), None)


def _verify(run: Run, kind: str, name: str, server: dict[str, Any]) -> Reference:
    """Find a chosen reference file and make sure that it is the one CRDS means."""
    path = _find(run, kind, name)
    if path is None:
        folder = run.config.reference_folders()[run.recipe.reference_variable]
        raise ReferencesError(
            f"{run.dataset}: {kind} needs {name}, which is not in {folder}",
            remedy="sync the CRDS cache, or give your own file with --override",
        )
    reference = _reference(kind, path)
    known = _metadata(server).get(name)
    if known and not _agrees(known, reference.size, reference.sha1):
        raise ReferencesError(
            f"{run.dataset}: {path} is damaged: {reference.size} bytes, sha1 {reference.sha1}, "
            f"but CRDS has {known['size']} bytes, sha1 {known['sha1sum']}",
            remedy="remove it and sync the CRDS cache",
        )
    if reason := damage(path):
        raise ReferencesError(
            f"{run.dataset}: {path} ({kind}) is not whole FITS ({reason})",
            remedy="remove it and sync the CRDS cache",
        )
    return reference


def _agrees(known: Mapping[str, str], size: int, sha1: str) -> bool:
    """Whether a file is what CRDS knows; of some it knows no checksum."""
    return int(known["size"]) == size and known["sha1sum"] in (sha1, "", "none")


def _own_reference(run: Run, kind: str, path: Path) -> Reference:
    if reason := damage(path):
        raise ReferencesError(
            f"{run.dataset}: --override {kind}: {path} is not whole FITS ({reason})", remedy="give another file"
        )
    return _reference(kind, path, override=True)


def _link(run: Run, files: list[Reference]) -> None:
    """Link each file by its name into the folder that the program sees."""
    linked: dict[str, Reference] = {}
    for file in files:
        other = linked.setdefault(file.name, file)
        if other.path != file.path:
            raise ReferencesError(
                f"{run.dataset}: {file.type} {file.path} has the name of {other.type} {other.path}",
                remedy="rename your own reference file",
            )
    for file in linked.values():
        if file.path:  # or it would only be downloaded
            (run.workspace.references / file.name).symlink_to(file.path)


def _places(run: Run) -> list[Path]:
    """Folders that may hold references: the exported variable first, then both layouts of a CRDS cache."""
    exported = run.config.environment.get(run.recipe.reference_variable)
    flat = run.config.crds_path / "references" / "hst"
    return [*([Path(exported)] if exported else []), flat / run.recipe.name, flat]


def _reference(kind: str, path: Path, *, override: bool = False) -> Reference:
    return Reference(kind, path.name, path.stat().st_size, _sha1(path), str(path.absolute()), override)


def _sha1(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha1").hexdigest()


def _metadata(server: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return {file: {size, sha1sum}} of the CRDS archive, where the cache knows it."""
    encoded = server.get("download_metadata")
    if not encoded:
        return {}
    try:
        if "crds_payload" in encoded:
            payload = gzip.decompress(base64.b64decode(encoded["crds_payload"]))
            # Decoded once: replace the compressed form by the plain one.
            server["download_metadata"] = encoded = json.loads(payload)
        return dict(encoded)
    except (ValueError, TypeError, OSError, EOFError, zlib.error) as error:
        raise ReferencesError(
            f"download_metadata in config/hst/server_config of the CRDS cache is damaged ({error})",
            remedy="sync the CRDS cache again",
        ) from error


def _refuse_bad(run: Run, choice: _Choice) -> None:
    bad = sorted(choice.bad & {name for _, name in choice.chosen})
    if not bad:
        return
    if not run.config.allow_bad_references:
        raise ReferencesError(
            f"{run.dataset}: CRDS knows {', '.join(bad)} to be bad",
            remedy="choose a newer --context, or export CRDS_ALLOW_BAD_REFERENCES=1 to use it all the same",
        )
    run.telemetry.warning(f"CRDS knows {', '.join(bad)} to be bad; used because CRDS_ALLOW_BAD_REFERENCES is set")


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
