"""Assign: CRDS best references for the working copies, and proof that each file is there and whole.

The real ``crds`` package chooses; what it chose is read back from the headers, because its exit status says neither
"nothing chosen" nor "all present".  Rules and references come from the CRDS cache of this host, which a CRDS server or
a store may fill (see ``way``).  The program sees exactly the verified files: links to them in one folder of the
workspace, whatever the layout of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldp.config import Config
from caldp.crds_cache import CrdsCache, Reference, contexts, megabytes, serverless
from caldp.crds_server import CrdsServer
from caldp.crds_store import CrdsStore
from caldp.errors import ReferencesError
from caldp.fitsfile import damage, read_header, update_header
from caldp.inputs import InputFile, Inputs
from caldp.run import Run

__all__ = [
    "Checked",
    "Reference",
    "References",
    "Survey",
    "as_text",
    "assign",
    "contexts",
    "serverless",
    "survey",
    "way",
]


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
    kept : CrdsCache
        Keeps the files from being removed from a cache that is full, for as long as it lives.
    """

    context: str
    crds_version: str
    files: tuple[Reference, ...]
    directory: Path
    kept: CrdsCache = field(default_factory=CrdsCache, repr=False, compare=False)

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
        Fetch what is not in the cache, if there is a server or a store to fetch it from.  Otherwise only say what
        would be fetched: such a reference then has no ``path``.

    Returns
    -------
    References

    Raises
    ------
    ReferencesError
        If the context is unknown, CRDS cannot choose, a file is missing, damaged or known to be bad, or an override
        does not fit these data.
    S3DownloadError
        If the store does not let us read.
    """
    with run.telemetry.stage("references") as stage:
        if not run.recipe.reference_variable:
            run.telemetry.info("mosaics are made of calibrated exposures: no references are assigned")
            return References("", "", (), run.workspace.references)
        cache = way(run.config)
        choice = _choose(run, inputs, cache)
        _refuse_bad(run, choice)
        files, wanting = cache.look(run, choice.chosen)
        for one in wanting:
            if cache.expected(one) is None:
                raise cache.refusal(run, one)
        if wanting and download:
            files += cache.fetch(run, wanting)
        elif wanting:
            expected = [reference for one in wanting if (reference := cache.expected(one))]
            run.telemetry.info(f"would download {len(expected)} references, {megabytes(expected)}, from {cache.place}")
            files += expected
        files = sorted(files, key=lambda f: (f.type, f.name))
        files += [_own_reference(run, kind, path) for kind, path in sorted(choice.overrides.items())]
        _link(run, files)
        stage.bytes_in = sum(f.size for f in files)
        references = References(choice.context, choice.crds_version, tuple(files), run.workspace.references, cache)
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
        cache = way(run.config)
        choice = _choose(run, inputs, cache)
        files, wanting = cache.look(run, choice.chosen)
        bad = set() if run.config.allow_bad_references else choice.bad
        known = "CRDS knows it to be bad"
        checked = [Checked(f.type, f.name, f, known if f.name in bad else "") for f in files]
        for one in wanting:
            expected = cache.expected(one)
            why = cache.refusal(run, one).message.removeprefix(f"{run.dataset}: ")
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
        title += f"; {len(absent)} would be downloaded, {sum(one['size'] or 0 for one in absent) / 1e6:.1f} MB"
    return "\n".join([title, *lines])


@dataclass(frozen=True)
class _Choice:
    """What CRDS chose, and what the user chose instead; ``bad`` are the files that CRDS knows to be bad."""

    context: str
    crds_version: str
    chosen: frozenset[tuple[str, str]]
    overrides: dict[str, Path]
    bad: frozenset[str]


def way(config: Config) -> CrdsCache:
    """Return the way to rules and references.

    Parameters
    ----------
    config : Config
        The settings.

    Returns
    -------
    CrdsCache
        A read-only cache is used as it is.  Else a CRDS server fills it, or where there is none, a store, if one is
        named.
    """
    if not config.crds_readonly and not serverless(config):
        return CrdsServer(config.crds_server_url)
    if not config.crds_readonly and config.crds_store:
        return CrdsStore(config)
    return CrdsCache()


def _choose(run: Run, inputs: Inputs, cache: CrdsCache) -> _Choice:
    """Let CRDS and the user choose, and write it into the headers."""
    cache.choose(run, inputs.directory, [f.name for f in _referenced(run, inputs)])
    chosen, context, version = _chosen(run, inputs)
    overrides = _override(run, inputs)
    kept = frozenset((kind, name) for kind, name in chosen if kind not in overrides)
    return _Choice(context, version, kept, overrides, frozenset(cache.known.get("bad_files_list", ())))


def _referenced(run: Run, inputs: Inputs) -> list[InputFile]:
    """List the files whose headers name references."""
    return [*inputs.raw, *(f for f in inputs.support if f.suffix in run.recipe.referenced)]


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


def _own_reference(run: Run, kind: str, path: Path) -> Reference:
    if reason := damage(path):
        raise ReferencesError(
            f"{run.dataset}: --override {kind}: {path} is not whole FITS ({reason})", remedy="give another file"
        )
    return Reference.of(kind, path, override=True)


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
