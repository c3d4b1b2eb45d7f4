"""How contexts, mappings and references differ, as ``crds diff`` says it."""

from __future__ import annotations

import difflib
import tempfile
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from caldp.crds_layout import reference_key
from caldp.crdserver import uploads
from caldp.crdserver.site import Site
from caldp.crdserver.state import AVAILABLE, State
from caldp.crdserver.tables import loaded
from caldp.errors import InputError
from caldp.store import Copy

#: Lines of a text difference that are shown.
_LINES = 3000

#: Bytes of a reference that is compared with another while somebody waits.
_COMPARED = 20_000_000

#: What is sent and not yet submitted is called so where files are compared.
UPLOADED = "uploaded:"


@lru_cache(maxsize=8)
def differences(site: Site, old: str, new: str) -> dict[str, Any]:
    """Say how two contexts, or two mappings of one sort, differ; neither ever changes.

    Parameters
    ----------
    site : Site
        Where they are.
    old, new : str
        Names of mappings.

    Returns
    -------
    dict
        ``kinds``: per type the old and the new rmap, files ``added`` and ``removed``; ``mappings``: pairs of mappings
        that differ; ``logical``: lines as ``crds diff`` writes them; ``text``: lines of a unified difference of the
        two, and whether it was ``cut``.
    """
    from crds import diff

    if old.rpartition(".")[2] != new.rpartition(".")[2]:
        raise InputError(f"{old} and {new} are not of one sort", remedy="choose two contexts, or two rmaps")
    before, after = _rmaps(site, old), _rmaps(site, new)
    kinds, pairs = [], []
    for key in sorted({*before, *after}):
        one, other = before.get(key, ""), after.get(key, "")
        if one == other:
            continue
        had, has = ({file for _, file in site.mappings.selected(rmap)} if rmap else set() for rmap in (one, other))
        kinds.append(
            {"instrument": key[0], "type": key[1], "old": one, "new": other}
            | {"added": sorted(has - had), "removed": sorted(had - has)}
        )
        pairs.append((one, other))
    said = sorted(loaded(site, old).difference(loaded(site, new)))
    text = list(difflib.unified_diff(_lines(site, old), _lines(site, new), old, new, lineterm=""))
    return {
        "kinds": kinds,
        "mappings": [(one, other) for one, other in pairs if one and other and (one, other) != (old, new)],
        "logical": [str(diff.unquote_diff(one)) for one in said],
        "text": text[:_LINES],
        "cut": len(text) > _LINES,
    }


def _rmaps(site: Site, name: str) -> dict[tuple[str, str], str]:
    """Return {(instrument, type): rmap} of a mapping and all that it names."""
    rmaps = [one for one in site.mappings.closure(name) if one.endswith(".rmap")]
    headers = [(site.mappings.header(one), one) for one in rmaps]
    return {(str(header["instrument"]).lower(), str(header["filekind"]).lower()): one for header, one in headers}


def _lines(site: Site, name: str) -> list[str]:
    return site.mappings.path(name).read_text(encoding="utf-8").splitlines()


def file_differences(site: Site, user: str, old: str, new: str) -> list[str]:
    """Say how two references differ, in the words of ``crds diff``.

    Parameters
    ----------
    site : Site
        Where they are.
    user : str
        Whose uploads may be meant, as ``uploaded:<name>``; empty for nobody's.
    old, new : str
        Names of references.

    Returns
    -------
    list of str
        Lines; empty if they are the same.

    Raises
    ------
    InputError
        If there is none of them, it is too large, or they cannot be compared.
    """
    place = site.settings.work / "compared"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        paths = [Path(folder) / f"{number}-{name.removeprefix(UPLOADED)}" for number, name in enumerate((old, new))]
        for name, path in zip((old, new), paths, strict=True):
            _bring(site, user, name, path)
        if paths[0].read_bytes() == paths[1].read_bytes():
            return []
        if not all(path.suffix == ".fits" for path in paths):
            before, after = (path.read_text(encoding="utf-8", errors="replace").splitlines() for path in paths)
            return list(difflib.unified_diff(before, after, old, new, lineterm=""))[:_LINES]
        from astropy.io import fits
        from crds import rowdiff

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                said = str(fits.FITSDiff(str(paths[0]), str(paths[1])).report())
                said += f"\n{rowdiff.RowDiff(str(paths[0]), str(paths[1]))}"
            except Exception as error:
                raise InputError(f"{old} or {new} cannot be read as FITS", remedy="look at the files") from error
        return said.replace(f"{folder}/0-", "").replace(f"{folder}/1-", "").splitlines()[:_LINES]


def _bring(site: Site, user: str, name: str, path: Path) -> None:
    """Copy a reference, or what a user has sent, to a file."""
    if name.startswith(UPLOADED):
        bare = uploads.checked_name(name.removeprefix(UPLOADED))
        sent = {one.name: one for one in uploads.Uploads(site, user).files()} if user else {}
        if bare not in sent or not sent[bare].whole:
            raise InputError(f"you have sent no file {bare}", remedy="send it, or sign in")
        size = sent[bare].size
    else:
        row = site.row(name)
        if row["type"] != "reference" or row["state"] not in AVAILABLE or row.get("absent"):
            raise InputError(f"the content of {name} cannot be had here", remedy="choose another reference")
        size = row["size"]
    if size > _COMPARED:
        raise InputError(f"{name} has {size} bytes", remedy="compare it with crds diff")
    if name.startswith(UPLOADED):
        uploads.assemble(site, sent[bare].parts, path)
    else:
        site.store.download([Copy(reference_key(name, site.observatory), path)])


def steps_between(state: State, old: str, new: str) -> int:
    """Return how many contexts lie between two, the new one included, as far as derivation tells; 0 if it does not."""
    steps, name, seen = 0, new, {new}
    while name and name != old:
        steps, name = steps + 1, str(state.files.get(name, {}).get("derived_from", ""))
        if name in seen:
            return 0
        seen.add(name)
    return steps if name == old else 0


def classified(text: str | Iterable[str]) -> list[tuple[str, str]]:
    """Return (class, line) of a unified difference: ``add``, ``del``, ``hunk``, ``file`` or empty."""
    found = []
    for line in text.splitlines() if isinstance(text, str) else text:
        sort = {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "")
        found.append(("file" if line.startswith(("+++ ", "--- ")) else sort, line))
    return found
