"""Fill a CRDS from a CRDS cache, or from another CRDS."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caldp import crds_cache, crds_rules
from caldp.crds_layout import mapping_key, reference_key
from caldp.crdserver import contexts
from caldp.crdserver.journal import now
from caldp.crdserver.site import Site
from caldp.crdserver.state import State
from caldp.errors import BusyError, ReferencesError, UsageError
from caldp.store import Copy, Progress, quietly

#: Names of HST: a time, a letter for the instrument, and an ending for the type, which may stand for several.
_OLD = re.compile(r"[a-z0-9]{8}([a-z])_([a-z0-9]+)\.\w+")
_LETTERS = {"j": "acs", "i": "wfc3", "o": "stis", "l": "cos", "u": "wfpc2", "n": "nicmos", "m": "synphot"}

#: What a mapping says of itself, and what it names.
_Parsed = tuple[dict[str, Any], list[tuple[str, str]]]

_MAPPING = re.compile(r".*\.[pir]map")


@dataclass
class Filled:
    """What a CRDS was filled with.

    Attributes
    ----------
    observatory, store : str
        Which, and where.
    contexts : list of str
        Contexts that are whole.
    mappings, references : int
        Files that are there.
    known : int
        Files of the catalogue, whether or not they are there.
    latest : str
        The default context.
    """

    observatory: str
    store: str
    contexts: list[str]
    mappings: int
    references: int
    known: int
    latest: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.observatory} in {self.store}: {self.mappings} mappings and {self.references} references are there, "
            f"{self.known} files are known; contexts {', '.join(self.contexts[-5:])}; default {self.latest}"
        )


def fill(site: Site, cache: Path, who: str, catalogue: Path | None = None, progress: Progress = quietly) -> Filled:
    """Fill a CRDS from a CRDS cache; what is there stays, so that it may be called again.

    Parameters
    ----------
    site : Site
        The CRDS.
    cache : Path
        A CRDS cache: ``mappings``, ``references`` and ``config``.
    who : str
        Recorded with it.
    catalogue : Path, optional
        A ``server_config``, perhaps compressed, that knows more files than that of the cache.
    progress : callable, optional
        Told of the bytes that were sent.

    Returns
    -------
    Filled

    Raises
    ------
    UsageError, ReferencesError
        If there is no such cache, or it is damaged.
    """
    obs = site.observatory
    known = _known(catalogue or cache / "config" / obs / "server_config")
    state = site.state
    mappings = {path.name: path for path in _files(cache / "mappings" / obs) if _MAPPING.fullmatch(path.name)}
    top = cache / "references" / obs
    references = {path.name: path for place in (top, *_folders(top)) for path in _files(place)}
    if not mappings:
        raise UsageError(f"there are no mappings in {cache / 'mappings' / obs}", remedy="give --from <CRDS cache>")
    parsed = {name: _parsed(path) for name, path in mappings.items()}
    rows = _rows(obs, known, mappings, references, parsed)
    _compare(site, state, rows)
    _send(site, {mapping_key(n, obs): p for n, p in mappings.items()}, progress)
    _send(site, {reference_key(n, obs): p for n, p in references.items()}, progress)
    whole = [n for n in sorted(mappings) if n.endswith(".pmap") and _whole(n, parsed)]
    latest = str(known.get("operational_context") or known.get("latest_context") or "")
    edit = str(known.get("edit_context") or latest)
    if latest not in whole:
        latest = whole[-1] if whole else ""
    if edit not in whole:
        edit = latest
    history = [[str(a), str(b), str(c)] for a, b, c in known.get("context_history", ())]
    brought = {"files": rows, "latest": state.latest or latest, "edit": state.edit or edit, "history": history}
    if any(state.files.get(name) != row for name, row in rows.items()):
        _bring(site, state, brought, who, f"{len(rows)} files from {cache.name}")
    contexts.point(site)
    return _filled(site, whole)


def mirror(source: Site, target: Site, who: str) -> Filled:
    """Make a CRDS like another: rules, references, catalogue, contexts and history.

    Parameters
    ----------
    source, target : Site
        From where, to where.
    who : str
        Recorded with it.

    Returns
    -------
    Filled

    Raises
    ------
    ReferencesError
        If the target has what the source does not: then it is not behind it.
    """
    obs = source.observatory
    theirs, ours = source.state, target.state
    if ahead := sorted(ours.files.keys() - theirs.files.keys()):
        raise ReferencesError(
            f"{target.store.uri} has {len(ahead)} files that {source.store.uri} does not have, first {ahead[0]}",
            remedy="mirror into an empty store, or the other way round",
        )
    _compare(target, ours, {name: dict(row) for name, row in theirs.files.items()})
    here = [(name, row) for name, row in sorted(theirs.files.items()) if not row.get("absent")]
    target_has = {entry.key for folder in ("mappings", "references") for entry in target.store.walk(f"{folder}/{obs}")}
    with tempfile.TemporaryDirectory() as folder:
        for name, row in here:
            key = (mapping_key if row["type"] == "mapping" else reference_key)(name, obs)
            if key in target_has:
                continue
            path = Path(folder) / name
            source.store.download([Copy(key, path)])
            _measured(path, {name: {"size": str(row["size"]), "sha1sum": row["sha1"]}})
            target.store.upload([Copy(key, path)], create=True)
            path.unlink()
    brought = {"files": theirs.files, "latest": theirs.latest, "edit": theirs.edit, "history": theirs.history}
    if (ours.files, ours.latest, ours.edit) != (theirs.files, theirs.latest, theirs.edit):
        _bring(target, ours, brought, who, f"{len(theirs.files)} files of {source.store.uri}", exactly=True)
    contexts.point(target)
    return _filled(target, theirs.contexts)


def _bring(site: Site, before: State, brought: dict[str, Any], who: str, why: str, *, exactly: bool = False) -> None:
    key = f"server/{site.observatory}/imported/{now().replace(':', '')}.json.gz"
    site.journal.keep(key, brought)

    def imported(state: State) -> dict[str, Any]:
        if (state.files, state.latest, state.edit) != (before.files, before.latest, before.edit):
            raise BusyError(f"{site.store.uri} was changed meanwhile", remedy="run it again: what was sent is there")
        return {"object": key, **({"exactly": True} if exactly else {})}

    site.journal.append("imported", who, why, imported)


def _filled(site: Site, whole: list[str]) -> Filled:
    state = site.state
    here = [row for row in state.files.values() if not row.get("absent")]
    return Filled(
        site.observatory,
        site.store.uri,
        whole,
        sum(row["type"] == "mapping" for row in here),
        sum(row["type"] == "reference" for row in here),
        len(state.files),
        state.latest,
    )


def _rows(
    observatory: str,
    known: dict[str, Any],
    mappings: Mapping[str, Path],
    references: Mapping[str, Path],
    parsed: Mapping[str, _Parsed],
) -> dict[str, dict[str, Any]]:
    """Return the rows of all files that a cache has or knows of."""
    metadata = crds_cache.metadata(known)
    rows: dict[str, dict[str, Any]] = {}
    for name, path in mappings.items():
        header = parsed[name][0]
        rows[name] = _measured(path, metadata) | {
            "type": "mapping",
            "instrument": str(header.get("instrument", "")).lower(),
            "filekind": str(header.get("filekind", "")).lower(),
            "derived_from": str(header.get("derived_from", "")),
        }
    kinds = {
        reference: (rows[name]["instrument"], rows[name]["filekind"])
        for name in sorted(mappings)
        if name.endswith(".rmap")
        for _, reference in parsed[name][1]
    }
    endings = _endings(observatory, kinds)
    for name in {*metadata, *kinds, *references} - rows.keys():
        instrument, filekind = kinds.get(name) or _guessed(observatory, name, endings)
        of = "mapping" if _MAPPING.fullmatch(name) else "reference"
        if name in references:
            row = _measured(references[name], metadata)
        else:
            one = metadata.get(name, {"size": "0", "sha1sum": "none"})
            row = {"size": int(one["size"] or 0), "sha1": one["sha1sum"], "absent": True}
        rows[name] = row | {"type": of, "instrument": instrument, "filekind": filekind}
    bad = set(known.get("bad_files_list", ()))
    for name, row in rows.items():
        row["state"] = "operational"
        if name in bad:
            row["bad"] = "marked so where it comes from"
    return rows


def _known(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        return crds_cache.parse_server_config((gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}", remedy="give --from <CRDS cache>") from error
    except (ValueError, OSError) as error:
        raise ReferencesError(f"{path} is not readable ({error})", remedy="sync that CRDS cache again") from error


def _files(folder: Path) -> list[Path]:
    return (
        sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".") if folder.is_dir() else []
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _parsed(path: Path) -> _Parsed:
    try:
        return crds_rules.parse(path.read_bytes())
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ReferencesError(
            f"{path} is damaged ({' '.join(str(error).split())[:160]})",
            remedy="remove it and sync that CRDS cache again",
        ) from error


def _measured(path: Path, metadata: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    size, sha1 = path.stat().st_size, crds_cache.sha1(path)
    expected = metadata.get(path.name)
    if expected and not crds_cache.agrees(expected, size, sha1):
        raise ReferencesError(
            f"{path} is damaged: {size} bytes, sha1 {sha1}, but CRDS has {expected['size']} bytes, sha1 "
            f"{expected['sha1sum']}",
            remedy="remove it and sync that CRDS cache again",
        )
    return {"size": size, "sha1": sha1}


def _endings(observatory: str, kinds: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return {(instrument, ending of a name): type}, where all files that rules name agree in that."""
    found: dict[tuple[str, str], set[str]] = {}
    for name, (instrument, filekind) in kinds.items():
        if observatory == "hst" and (match := _OLD.fullmatch(name)):
            found.setdefault((instrument, match[2]), set()).add(filekind)
    return {key: next(iter(types)) for key, types in found.items() if len(types) == 1}


def _guessed(observatory: str, name: str, endings: Mapping[tuple[str, str], str]) -> tuple[str, str]:
    """Say what a file is of that no rule names, as far as its name tells."""
    match = re.fullmatch(rf"{observatory}_([a-z0-9]+)_([a-z0-9]+)(_\d+)?\.\w+", name)
    if match and not match[1].isdigit():
        return match[1], "" if match[2].isdigit() else match[2]
    old = _OLD.fullmatch(name)
    if observatory != "hst" or not old:
        return "", ""
    instrument = _LETTERS.get(old[1], "")
    return instrument, endings.get((instrument, old[2]), "")


def _compare(site: Site, state: State, rows: Mapping[str, dict[str, Any]]) -> None:
    """Raise ReferencesError if the CRDS has another file under a name."""
    for name, row in rows.items():
        old = state.files.get(name)
        if old is None or old.get("absent"):
            continue
        if not row.get("absent") and (old["size"], old["sha1"]) != (row["size"], row["sha1"]):
            raise ReferencesError(
                f"{site.store.uri} has another {name}", remedy="files of CRDS never change: find out which one is right"
            )
        # What is known of it here counts more than what a cache says.
        row.pop("absent", None)
        row.update(old)


def _send(site: Site, files: Mapping[str, Path], progress: Progress) -> None:
    there = {entry.key for folder in {key.rpartition("/")[0] for key in files} for entry in site.store.walk(folder)}
    site.store.upload([Copy(key, path) for key, path in files.items() if key not in there], progress, create=True)


def _whole(name: str, parsed: Mapping[str, _Parsed]) -> bool:
    """Whether a mapping and all that it names are there."""
    if name not in parsed:
        return False
    return name.endswith(".rmap") or all(_whole(below, parsed) for _, below in parsed[name][1])
