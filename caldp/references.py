"""Assign: CRDS best references for the working copies, and proof that each file is there and whole.

The real ``crds`` package chooses (``python -m crds.bestrefs`` on the copies); what it chose is read back from the
headers, because its exit status says neither "nothing chosen" nor "all present".  The program then sees exactly the
verified files: links to them in one folder of the workspace, whatever the layout of the cache.
"""

from __future__ import annotations

import ast
import base64
import fcntl
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldp.config import Config
from caldp.errors import ReferencesError
from caldp.fitsfile import damage, update_header
from caldp.inputs import InputFile, Inputs
from caldp.programs import ProgramRun
from caldp.run import Run

_CONTEXT = re.compile(r"hst_\d{4}\.pmap|hst-(operational|edit|latest)")


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


def assign(run: Run, inputs: Inputs) -> References:
    """Write the best references into the headers of the working copies and verify the files.

    Parameters
    ----------
    run : Run
        The run.
    inputs : Inputs
        Working copies of the raw data; their headers are changed.

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
        files = [_verify(run, kind, name, choice.server) for kind, name in sorted(choice.chosen)]
        files += [_own_reference(run, kind, path) for kind, path in sorted(choice.overrides.items())]
        _link(run, files)
        _refuse_bad(run, files, choice.server)
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
        The file, when it is there and whole.
    problem : str
        What is wrong with it; empty if nothing is.
    """

    type: str
    name: str
    reference: Reference | None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        found = {"size": self.reference.size, "sha1": self.reference.sha1} if self.reference else {}
        path = {"path": self.reference.path, "override": self.reference.override} if self.reference else {}
        return {"type": self.type, "name": self.name, **found, **path, "ok": not self.problem, "problem": self.problem}


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
        """Whether every reference is present and intact."""
        return not any(c.problem for c in self.checked)


def survey(run: Run, inputs: Inputs) -> Survey:
    """Look at the references of a dataset without failing at the first that is missing.

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
        bad = set(choice.server.get("bad_files_list", ()))
        checked = [_check(run, kind, name, choice.server, bad) for kind, name in sorted(choice.chosen)]
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
    rows = [("TYPE", "FILE", "BYTES", "STATE")]
    for one in answer["references"]:
        state = one["problem"] or ("your own" if one["override"] else "intact")
        rows.append((one["type"], one["name"], f"{one['size']:,}" if "size" in one else "-", state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}" for row in rows]
    count = len(answer["references"])
    return "\n".join([f"{count} references of {answer['context']}, cache {answer['cache']}", *lines])


def _check(run: Run, kind: str, name: str, server: dict[str, Any], bad: set[str]) -> Checked:
    try:
        reference = _verify(run, kind, name, server)
    except ReferencesError as error:
        return Checked(kind, name, None, error.message.removeprefix(f"{run.dataset}: "))
    known_bad = name in bad and not run.config.allow_bad_references
    return Checked(kind, name, reference, "CRDS knows it to be bad" if known_bad else "")


@dataclass(frozen=True)
class _Choice:
    """What CRDS chose, and what the user chose instead."""

    context: str
    crds_version: str
    chosen: frozenset[tuple[str, str]]
    overrides: dict[str, Path]
    server: dict[str, Any]


def _choose(run: Run, inputs: Inputs) -> _Choice:
    """Let CRDS and the user choose, and write it into the headers."""
    server = _server_config(run)
    _bestrefs(run, inputs, server)
    chosen, context, version = _chosen(run, inputs)
    overrides = _override(run, inputs)
    kept = frozenset((kind, name) for kind, name in chosen if kind not in overrides)
    return _Choice(context, version, kept, overrides, server)


def contexts(config: Config) -> list[str]:
    """List the contexts whose rules are in the CRDS cache, oldest first."""
    return sorted(p.name for p in (config.crds_path / "mappings" / "hst").glob("hst_[0-9]*.pmap"))


def serverless(config: Config) -> bool:
    """Whether CRDS works from its cache alone."""
    return not config.crds_server_url or "serverless" in config.crds_server_url


def _server_config(run: Run) -> dict[str, Any]:
    """Read what the cache knows of the CRDS server; with a server, the cache may still be empty."""
    config = run.config
    path = config.crds_path / "config" / "hst" / "server_config"
    if not path.is_file():
        if not serverless(config):
            return {}
        raise ReferencesError(
            f"{run.dataset}: there is no CRDS cache at {config.crds_path} (no config/hst/server_config)",
            remedy="export CRDS_PATH=<CRDS cache>, or use caldp-config-offsite to fetch from the CRDS server",
        )
    try:
        settings = ast.literal_eval(path.read_text(encoding="utf-8"))
        return dict(settings)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ReferencesError(f"{run.dataset}: {path} is not readable ({error})", remedy="sync it again") from error


def _context(run: Run, server: dict[str, Any]) -> str:
    context = run.config.crds_context or "hst-operational"
    if context == "hst-operational" and serverless(run.config):
        context = str(server.get("operational_context", context))
    if not _CONTEXT.fullmatch(context):
        raise ReferencesError(
            f"{run.dataset}: {context!r} is not a CRDS context",
            remedy="give --context one like hst_0729.pmap",
        )
    if context.endswith(".pmap") and serverless(run.config):
        known = contexts(run.config)
        if context not in known:
            newest = f"the newest there is {known[-1]}" if known else "it holds no rules at all"
            raise ReferencesError(
                f"{run.dataset}: unknown CRDS context {context}: {run.config.crds_path} has no rules of that name",
                remedy=f"{newest}; choose one with --context or CRDS_CONTEXT",
            )
    return context


def _bestrefs(run: Run, inputs: Inputs, server: dict[str, Any]) -> None:
    """Let the crds package write its choice into the headers."""
    config = run.config
    sync = not serverless(config) and not config.crds_readonly
    argv = [
        sys.executable,
        "-m",
        "crds.bestrefs",
        "--update-bestrefs",
        "--new-context",
        _context(run, server),
    ]
    argv += ["--sync-references=1"] if sync else []
    argv += ["--files", *(f.name for f in _referenced(run, inputs))]
    with _writing(config, sync):
        done = run.telemetry.run_program(argv, cwd=inputs.directory, env=config.program_environment())
    if done.returncode == 0:
        return
    bad = [name.lower() for name in server.get("bad_files_list", ())]
    errors = [line for line in done.tail if "- ERROR -" in line or "- FATAL -" in line]
    # An assigned reference on the list of bad files is an ERROR of its own; _refuse_bad judges it.
    others = [line for line in errors if not any(name in line.lower() for name in bad)]
    if others or not errors:
        raise ReferencesError(
            f"{run.dataset}: CRDS could not choose best references: {_why(others, done)}",
            remedy=run.see_log if serverless(config) else f"is {config.crds_server_url} reachable? {run.see_log}",
        )


def _referenced(run: Run, inputs: Inputs) -> list[InputFile]:
    """List the files whose headers name references."""
    return [*inputs.raw, *(f for f in inputs.support if f.suffix in run.recipe.referenced)]


def _why(errors: list[str], done: ProgramRun) -> str:
    line = errors[0] if errors else (done.tail[-1] if done.tail else done.outcome)
    return re.sub(r"^CRDS - (ERROR|FATAL) -\s*", "", line)[:300].rstrip(" .")


@contextmanager
def _writing(config: Config, sync: bool) -> Iterator[None]:
    """Let one process at a time download into a shared cache."""
    if not sync:
        yield
        return
    config.crds_path.mkdir(parents=True, exist_ok=True)
    with (config.crds_path / ".caldp.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _chosen(run: Run, inputs: Inputs) -> tuple[set[tuple[str, str]], str, str]:
    """Read from the headers which references the program will use, in which context, chosen by which crds."""
    from astropy.io import fits

    prefix = f"{run.recipe.reference_variable}$"
    chosen: set[tuple[str, str]] = set()
    seen: set[tuple[str, str]] = set()
    for file in _referenced(run, inputs):
        header = fits.getheader(inputs.directory / file.name)
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
    from astropy.io import fits

    overrides = dict(run.config.overrides)
    used: set[str] = set()
    for file in _referenced(run, inputs) if overrides else ():
        path = inputs.directory / file.name
        header = fits.getheader(path)
        known = [
            k
            for k in overrides
            if "$" in str(header.get(k)) or str(header.get(k)).strip() == "N/A" or k in run.recipe.late_references
        ]
        update_header(path, {k: (f"{run.recipe.reference_variable}${overrides[k].name}", "") for k in known})
        used.update(known)
    for kind in overrides:
        if kind not in used:
            raise ReferencesError(
                f"{run.dataset}: --override {kind}: these data have no reference of that type",
                remedy="name a header keyword such as FLATFILE",
            )
    for kind, path in overrides.items():
        run.telemetry.warning(f"{kind} is overridden by {path}")
    return overrides


def _verify(run: Run, kind: str, name: str, server: dict[str, Any]) -> Reference:
    """Find a chosen reference file and make sure that it is the one CRDS means."""
    if "/" in name or name in ("", ".", ".."):
        raise ReferencesError(f"{run.dataset}: {kind} names {name!r}", remedy=run.see_log)
    places = _places(run)
    path = next((p / name for p in places if (p / name).is_file()), None)
    if path is None:
        raise ReferencesError(
            f"{run.dataset}: {kind} needs {name}, which is not in {places[0]}",
            remedy="sync the CRDS cache, or give your own file with --override",
        )
    reference = _reference(kind, path)
    known = _metadata(server).get(name)
    if known and (int(known["size"]), known["sha1sum"]) != (reference.size, reference.sha1):
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
        (run.workspace.references / file.name).symlink_to(file.path)


def _places(run: Run) -> list[Path]:
    """Folders that may hold references: the exported variable first, then both layouts of a CRDS cache."""
    exported = run.config.environment.get(run.recipe.reference_variable)
    flat = run.config.crds_path / "references" / "hst"
    return [*([Path(exported)] if exported else []), flat / run.recipe.name, flat]


def _reference(kind: str, path: Path, *, override: bool = False) -> Reference:
    with path.open("rb") as stream:
        sha1 = hashlib.file_digest(stream, "sha1").hexdigest()
    return Reference(kind, path.name, path.stat().st_size, sha1, str(path.absolute()), override)


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


def _refuse_bad(run: Run, files: list[Reference], server: dict[str, Any]) -> None:
    bad = sorted(f.name for f in files if f.name in set(server.get("bad_files_list", ())) and not f.override)
    if not bad:
        return
    if not run.config.allow_bad_references:
        raise ReferencesError(
            f"{run.dataset}: CRDS knows {', '.join(bad)} to be bad",
            remedy="choose a newer --context, or export CRDS_ALLOW_BAD_REFERENCES=1 to use it all the same",
        )
    run.telemetry.warning(f"CRDS knows {', '.join(bad)} to be bad; used because CRDS_ALLOW_BAD_REFERENCES is set")
