"""The CRDS cache of this host: the real ``crds`` package chooses from its rules; every reference is found and proved.

Used as it is, it is the first of three ways to rules and references.  ``crds_server`` and ``crds_store`` are the other
two: they also fill it.
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
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldp.config import Config
from caldp.errors import OutputError, ProgramMemoryError, ReferencesError
from caldp.fitsfile import damage
from caldp.programs import ProgramRun, has_words
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

#: The S3 mode of crds itself, which caldp-config-aws sets up for whoever wants it: we read the store ourselves.
_STOCK = re.compile(r"CRDS_S3_.*|CRDS_(CONFIG|MAPPING|REFERENCE|PICKLE)_URI|CRDS_DOWNLOAD_(MODE|PLUGIN)|CRDS_MODE")


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
        Where it is; empty while it would only be downloaded.
    override : bool
        Chosen by the user instead of CRDS.
    """

    type: str
    name: str
    size: int
    sha1: str
    path: str
    override: bool = False

    @classmethod
    def of(cls, kind: str, path: Path, *, override: bool = False) -> Reference:
        """Measure a file."""
        return cls(kind, path.name, path.stat().st_size, sha1(path), str(path.absolute()), override)

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
class Wanting:
    """A chosen reference that cannot be used as it is.

    Attributes
    ----------
    type, name : str
        As in ``Reference``.
    error : ReferencesError
        What is wrong with it.
    path : Path or None
        Where it is, if it is damaged; None if it is missing.
    replaceable : bool
        It belongs into the cache, so that it may be downloaded.
    """

    type: str
    name: str
    error: ReferencesError
    path: Path | None
    replaceable: bool


class CrdsCache:
    """The cache of this host, used as it is.

    Attributes
    ----------
    known : dict
        What is known of CRDS, as its server would say it: ``bad_files_list``, ``download_metadata`` and more.
    place : str
        Where missing references come from; empty if from nowhere.
    """

    place = ""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def choose(self, run: Run, directory: Path, names: Sequence[str]) -> None:
        """Let crds write its choice into the headers of these files.

        Parameters
        ----------
        run : Run
            The run.
        directory : Path
            Where the files are.
        names : sequence of str
            Their names.

        Raises
        ------
        ReferencesError
            If there are no rules, or CRDS cannot choose.
        """
        self.known = server_config(run)
        best_references(run, self.known, context(run, self.known), directory, names)

    def look(self, run: Run, chosen: Iterable[tuple[str, str]]) -> tuple[list[Reference], list[Wanting]]:
        """Sort chosen references (type and name) into those that are there and whole, and those that are not."""
        files: list[Reference] = []
        wanting: list[Wanting] = []
        for kind, name in sorted(chosen):
            path, replaceable = None, False
            try:
                path = find(run, kind, name)
                replaceable = path is None or path.is_relative_to(run.config.crds_path / "references")
                files.append(self.verify(run, kind, name, path))
            except ReferencesError as error:
                # Its traceback would keep us alive, and with us what is locked.
                wanting.append(Wanting(kind, name, error.with_traceback(None), path, replaceable))
            except FileNotFoundError:  # it was damaged, or not in use, and another run has just removed it
                gone = ReferencesError(
                    f"{run.dataset}: {kind} needs {name}, which is being replaced", remedy="run it again"
                )
                wanting.append(Wanting(kind, name, gone, None, replaceable))
        return files, wanting

    def verify(self, run: Run, kind: str, name: str, path: Path | None) -> Reference:
        """Make sure that a file is the reference that CRDS means."""
        if path is None:
            folder = run.config.reference_folders()[run.recipe.reference_variable]
            raise ReferencesError(
                f"{run.dataset}: {kind} needs {name}, which is not in {folder}",
                remedy="sync the CRDS cache, or give your own file with --override",
            )
        reference = Reference.of(kind, path)
        expected = metadata(self.known).get(name)
        if expected and not agrees(expected, reference.size, reference.sha1):
            raise ReferencesError(
                f"{run.dataset}: {path} is damaged: {reference.size} bytes, sha1 {reference.sha1}, "
                f"but CRDS has {expected['size']} bytes, sha1 {expected['sha1sum']}",
                remedy="remove it and sync the CRDS cache",
            )
        if reason := damage(path):
            raise ReferencesError(
                f"{run.dataset}: {path} ({kind}) is not whole FITS ({reason})",
                remedy="remove it and sync the CRDS cache",
            )
        return reference

    def expected(self, one: Wanting) -> Reference | None:
        """Return what a download would bring, or None if there can be none."""
        return None

    def refusal(self, run: Run, one: Wanting) -> ReferencesError:
        """Return the error that explains why a reference cannot be had."""
        return one.error

    def fetch(self, run: Run, wanting: Sequence[Wanting]) -> list[Reference]:
        """Bring missing and damaged references, of which all are ``expected``, into the cache, and verify them."""
        raise NotImplementedError


# ---- rules


def contexts(config: Config) -> list[str]:
    """List the contexts whose rules are in the CRDS cache, oldest first."""
    return sorted(p.name for p in (config.crds_path / "mappings" / "hst").glob("hst_[0-9]*.pmap"))


def serverless(config: Config) -> bool:
    """Whether there is no CRDS server."""
    url = config.crds_server_url
    return not url or "serverless" in url or "server-less" in url


def server_config_path(config: Config) -> Path:
    """Where the cache keeps what it knows of CRDS."""
    return config.crds_path / "config" / "hst" / "server_config"


def server_config(run: Run) -> dict[str, Any]:
    """Read what the cache knows of CRDS; ReferencesError if it knows nothing."""
    path = server_config_path(run.config)
    if not path.is_file():
        raise ReferencesError(
            f"{run.dataset}: there is no CRDS cache at {run.config.crds_path} (no config/hst/server_config)",
            remedy="export CRDS_PATH=<CRDS cache>, or use caldp-config-offsite to fetch from the CRDS server",
        )
    try:
        return parse_server_config(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReferencesError(f"{run.dataset}: {path} is not readable ({error})", remedy="sync it again") from error


def parse_server_config(text: str) -> dict[str, Any]:
    """Read a server_config, which is a Python literal; ValueError if it is none."""
    try:
        return dict(ast.literal_eval(text))
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def asked_context(run: Run) -> str:
    """Return the context that the user asks for, perhaps by what it is for."""
    asked = run.config.crds_context or "hst-operational"
    if not _CONTEXT.fullmatch(asked):
        raise ReferencesError(
            f"{run.dataset}: {asked!r} is not a CRDS context",
            remedy="give --context one like hst_0729.pmap, or hst-operational",
        )
    return asked


def named_context(asked: str, known: Mapping[str, Any]) -> str:
    """Return the name of a context, if it is known."""
    return next((str(known[key]) for key in _SYMBOLIC.get(asked, ()) if known.get(key)), asked)


def context(run: Run, known: Mapping[str, Any]) -> str:
    """Return the name of the context to use, whose rules are in the cache."""
    asked = asked_context(run)
    name = named_context(asked, known)
    if name in (there := contexts(run.config)):
        return name
    called = name if name == asked else f"{asked} ({name})" if name.endswith(".pmap") else asked
    newest = f"the newest there is {there[-1]}" if there else "it holds no rules at all"
    raise ReferencesError(
        f"{run.dataset}: unknown CRDS context {called}: {run.config.crds_path} has no rules of that name",
        remedy=f"{newest}; choose one with --context or CRDS_CONTEXT",
    )


def best_references(run: Run, known: Mapping[str, Any], context: str, directory: Path, names: Sequence[str]) -> None:
    """Let crds choose from the rules in the cache, and write nothing but headers."""
    argv = [sys.executable, "-m", *bestrefs_command(context, names)]
    judge(run, known, run.telemetry.run_program(argv, cwd=directory, env=environment(run.config)))


def bestrefs_command(context: str, names: Sequence[str]) -> list[str]:
    """Return the module of crds that chooses, and its arguments."""
    return ["crds.bestrefs", "--update-bestrefs", "--new-context", context, "--files", *names]


def environment(config: Config) -> dict[str, str]:
    """Return the environment of a command of crds."""
    env = {**_PATIENCE, **config.program_environment()}
    ours = config.crds_store and serverless(config)
    return {k: v for k, v in env.items() if not _STOCK.fullmatch(k)} if ours else env


def judge(run: Run, known: Mapping[str, Any], done: ProgramRun) -> None:
    """Raise ReferencesError if crds could not choose, ProgramMemoryError if that was for lack of memory."""
    if done.returncode == 0:
        return
    if done.oom_kills or any("MemoryError" in line for line in done.tail[-1:]):
        raise ProgramMemoryError(
            f"{run.dataset}: {done.name} ran out of memory ({done.outcome}, peak {done.peak_memory / 1e6:.0f} MB)",
            remedy="run it with more memory",
        )
    bad = [name.lower() for name in known.get("bad_files_list", ())]
    errors = errors_of(done)
    # An assigned reference on the list of bad files is an ERROR of its own, which is judged later.
    others = [line for line in errors if not any(name in line.lower() for name in bad)]
    if others or not errors:
        raise ReferencesError(
            f"{run.dataset}: CRDS could not choose best references: {_why(others, done)}",
            remedy=run.see_log if serverless(run.config) else f"is {run.config.crds_server_url} well? {run.see_log}",
        )


def errors_of(done: ProgramRun) -> list[str]:
    """Return the lines in which crds reports errors."""
    return [line for line in done.tail if "- ERROR -" in line or "- FATAL -" in line]


def _why(errors: list[str], done: ProgramRun) -> str:
    line = errors[0] if errors else next(filter(has_words, reversed(done.tail)), done.outcome)
    return re.sub(r"^CRDS - (ERROR|FATAL) -\s*", "", line)[:300].rstrip(" .")


@contextmanager
def turn(run: Run, what: str) -> Iterator[None]:
    """Let one process at a time write rules, or references, into a shared cache."""
    path = run.config.crds_path / f".caldp-{what}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read-only: a lock that one member of a group has made is not writable for the others.
        lock = os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    except OSError as error:
        raise unwritable(run, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run.telemetry.info(f"waiting for another run that fetches {what} into {run.config.crds_path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unwritable(run: Run, error: OSError) -> Exception:
    """Return the error that explains why the cache cannot be written, if it is that."""
    cache = run.config.crds_path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{run.dataset}: no space left in the CRDS cache {cache}",
            remedy="free space there, or export CRDS_PATH=<a roomier folder>",
        )
    if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(cache):
        return error
    return ReferencesError(
        f"{run.dataset}: the CRDS cache {cache} cannot be written ({error.strerror})",
        remedy="export CRDS_PATH=<a folder of your own>, or CRDS_READONLY_CACHE=1 to use it as it is",
    )


# ---- references


def find(run: Run, kind: str, name: str) -> Path | None:
    """Find a chosen reference file: where the exported variable says, then in both layouts of a CRDS cache."""
    if "/" in name or name in ("", ".", ".."):
        raise ReferencesError(f"{run.dataset}: {kind} names {name!r}", remedy=run.see_log)
    exported = run.config.environment.get(run.recipe.reference_variable)
    flat = run.config.crds_path / "references" / "hst"
    places = [*([Path(exported)] if exported else []), flat / run.recipe.name, flat]
    return next((p / name for p in places if (p / name).is_file()), None)


def metadata(known: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return {file: {size, sha1sum}}, as texts, of the files that CRDS is known to have."""
    encoded = known.get("download_metadata")
    if not encoded:
        return {}
    try:
        if "crds_payload" in encoded:
            payload = gzip.decompress(base64.b64decode(encoded["crds_payload"]))
            # Decoded once: replace the compressed form by the plain one.
            known["download_metadata"] = encoded = json.loads(payload)
        return dict(encoded)
    except (ValueError, TypeError, OSError, EOFError, zlib.error) as error:
        raise ReferencesError(
            f"download_metadata in config/hst/server_config of the CRDS cache is damaged ({error})",
            remedy="sync the CRDS cache again",
        ) from error


def encoded_metadata(files: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Write {file: {size, sha1sum}} as CRDS does: sha1 sums are large when they are written out."""
    payload = gzip.compress(json.dumps(files, sort_keys=True).encode(), mtime=0)
    return {"crds_encoded": "1.0", "crds_payload": base64.b64encode(payload).decode()}


def agrees(known: Mapping[str, str], size: int, sha1: str) -> bool:
    """Whether a file is what CRDS knows; of some it knows no checksum."""
    return int(known["size"]) == size and known["sha1sum"] in (sha1, "", "none")


def megabytes(files: Iterable[Reference]) -> str:
    """Write how large files are together."""
    return f"{sum(file.size for file in files) / 1e6:.1f} MB"


def sha1(path: Path) -> str:
    """Return the checksum that CRDS uses."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha1").hexdigest()
