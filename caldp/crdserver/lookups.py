"""Best references for people: of a header that they type or send, or of a dataset that is known here."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caldp.crdserver.site import Site
from caldp.crdserver.tables import keys_of, named
from caldp.errors import InputError

#: Datasets whose best references one page shows.
_DATASETS = 20

#: A line of a header: what FITS calls a card, or what people type.
_CARD = re.compile(r"\s*([A-Za-z0-9_.\-]{1,80})\s*=\s*(?:'((?:[^']|'')*)'|\"([^\"]*)\"|([^/]*))")


def header_of(text: str) -> dict[str, str]:
    """Read ``KEYWORD = value`` lines, as people type them or as FITS has them.

    Parameters
    ----------
    text : str
        Lines; what is behind a slash is a comment, as are lines that begin with ``#``.

    Returns
    -------
    dict
        {keyword in capitals: text}.

    Raises
    ------
    InputError
        If it has no such line.
    """
    found = {}
    for line in text.splitlines():
        match = None if line.lstrip().startswith("#") else _CARD.match(line)
        if match:
            quoted = match[2] if match[2] is not None else match[3]
            found[match[1].upper()] = (match[4] or "").strip() if quoted is None else quoted.replace("''", "'").strip()
    if not found:
        raise InputError("this is no header", remedy="write lines such as INSTRUME = COS")
    return found


def fits_header(site: Site, data: bytes) -> dict[str, str]:
    """Return the header of a FITS file, as crds reads it of a dataset.

    Parameters
    ----------
    site : Site
        Whose keywords are wanted.
    data : bytes
        The file.

    Returns
    -------
    dict
        {keyword: text}.

    Raises
    ------
    InputError
        If it is no FITS file, or damaged.
    """
    if not data.startswith(b"SIMPLE  ="):
        raise InputError("this is no FITS file", remedy="unpack it, or paste its header")
    from crds import data_file

    place = site.settings.work / "headers"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "sent.fits"
        path.write_bytes(data)
        try:
            header = data_file.get_unconditioned_header(str(path), observatory=site.observatory)
        except Exception as error:
            raise InputError(
                "this FITS file cannot be read", remedy="look whether it is whole, or paste its header"
            ) from error
    return {str(key): str(value) for key, value in header.items()}


def best(site: Site, name: str, header: Mapping[str, str]) -> dict[str, Any]:
    """Choose references, with the code that stock clients ask.

    Parameters
    ----------
    site : Site
        Where.
    name : str
        A context, or what one is called.
    header : mapping
        {keyword: value} of a dataset.

    Returns
    -------
    dict
        ``context``, and ``rows``: ``type``, ``file`` or ``why`` there is none, ``rmap``, and the ``keys`` by which it
        was chosen with their values.
    """
    from crds.core import utils

    context = named(site, name, ".pmap")
    chosen = site.stock.best_references(context, header)
    pmap = site.stock.mapping(context)
    conditioned = utils.condition_header(dict(header))
    imap = pmap.get_imap(pmap.get_instrument(conditioned))
    minimal = pmap.minimize_header(conditioned)
    rows = []
    for kind, file in sorted(chosen.items()):
        why = file.removeprefix("NOT FOUND").strip() if file.startswith("NOT FOUND") else ""
        rmap = imap.selections.get(kind)
        keys = {key: minimal.get(key, "UNDEFINED") for key in keys_of(getattr(rmap, "header", {}))}
        rows.append(
            {"type": kind, "file": "" if why else file, "why": why, "keys": keys}
            | {"rmap": getattr(rmap, "basename", ""), "known": file in site.state.files}
        )
    return {"context": context, "rows": rows, "header": dict(sorted(minimal.items()))}


def best_of_dataset(site: Site, name: str, dataset: str) -> list[dict[str, Any]]:
    """Choose references for a dataset, and for each exposure of a product: ``dataset``, and what ``best`` returns."""
    found = []
    for one, header in list(site.datasets.headers([dataset]).items())[:_DATASETS]:
        if isinstance(header, str):
            raise InputError(header, remedy="look for it, or give its header")
        found.append({"dataset": one, **best(site, name, header)})
    if not found:
        raise InputError(f"there is no dataset {dataset[:60]!r}", remedy="give its header")
    return found


def keywords(site: Site, name: str, which: str) -> str:
    """Return empty ``KEYWORD =`` lines of all that the rules of an instrument ask for, to be filled in."""
    imap = site.stock.mapping(named(site, name, ".pmap")).get_imap(which)
    first = "INSTRUME" if site.observatory == "hst" else "META.INSTRUMENT.NAME"
    wanted = [first, *(key for key in imap.get_required_parkeys() if key not in (first, "REFTYPE"))]
    return "\n".join(f"{key} = {which.upper() if key == first else ''}" for key in wanted)
