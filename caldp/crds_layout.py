"""A CRDS cache in a store: what is where, and how it is read without trusting any of it.

================================== =================================================================================
``contexts/hst/current.json``      which context is current, which files are bad; the operator moves it
``contexts/hst/<pmap>.tar.gz``     all rules of a context, never changed
``contexts/hst/<pmap>.references.json``  size and sha1 of those references of a context that are there
``references/hst/<name>``          the references, never changed
``mappings/hst/<name>``            the rules once more, and
``config/hst/server_config``       what is known of all, both for the S3 mode of crds itself
================================== =================================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caldp import crds_cache, tarball
from caldp.crds_rules import Rules
from caldp.errors import InputError, ReferencesError
from caldp.store import Blob, Store

POINTER = "contexts/hst/current.json"
SERVER_CONFIG = "config/hst/server_config"

#: Member of a tarball of rules: size and sha1 of the others.
INDEX = "index.json"

CONTEXT = re.compile(r"hst_\d{4}\.pmap")
_TARBALL = re.compile(rf"({CONTEXT.pattern})\.tar\.gz")
RULES = re.compile(r"hst_\w+\.[ir]map|hst_\d+\.pmap")

#: Bytes of all rules of a context; they are 1.6 MB today.
_MOST_RULES = 256 << 20


def rules_key(context: str) -> str:
    """Where all rules of a context are."""
    return f"contexts/hst/{context}.tar.gz"


def listing_key(context: str) -> str:
    """Where the list of the references of a context is."""
    return f"contexts/hst/{context}.references.json"


def reference_key(name: str, observatory: str = "hst") -> str:
    """Where a reference is."""
    return f"references/{observatory}/{name}"


def mapping_key(name: str, observatory: str = "hst") -> str:
    """Where a rule is, by itself."""
    return f"mappings/{observatory}/{name}"


def stored_contexts(store: Store) -> list[str]:
    """List the contexts of a store, oldest first."""
    return [m[1] for name in store.names("contexts/hst") if (m := _TARBALL.fullmatch(name))]


def parse_pointer(store: Store, blob: Blob | None) -> dict[str, Any]:
    """Read the pointer; empty if there is none.

    Raises
    ------
    ReferencesError
        If it is damaged.
    """
    if blob is None:
        return {}
    with _well_formed(store, POINTER):
        pointer = dict(json.loads(blob.data))
        if not CONTEXT.fullmatch(pointer["context"]) or not all(isinstance(n, str) for n in pointer["bad_files"]):
            raise ValueError("it names no context")
        return pointer


def parse_listing(store: Store, context: str, blob: Blob | None) -> dict[str, dict[str, str]]:
    """Read the list of the references of a context, as crds would give it; empty if there is none.

    Raises
    ------
    ReferencesError
        If it is damaged.
    """
    if blob is None:
        return {}
    with _well_formed(store, listing_key(context)):
        return {
            str(name): {"size": str(int(one["size"])), "sha1sum": _checked(one["sha1"])}
            for name, one in json.loads(blob.data)["files"].items()
        }


def write_listing(context: str, files: Mapping[str, Mapping[str, str]]) -> bytes:
    """Write the list of the references of a context that are there: {name: {size, sha1sum}}, as crds gives it."""
    facts = {name: {"size": int(one["size"]), "sha1": one["sha1sum"]} for name, one in sorted(files.items())}
    return json.dumps({"format": 1, "context": context, "files": facts}, separators=(",", ":")).encode()


def _checked(sha1: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", sha1):
        raise ValueError(f"{sha1!r} is no sha1")
    return sha1


@contextmanager
def _well_formed(store: Store, key: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReferencesError(
            f"{store.url(key)} is damaged ({' '.join(str(error).split())[:160]})", remedy="have it written anew"
        ) from error


def pack_rules(rules: Rules) -> bytes:
    """Write all rules of a context as one tarball, always the same for the same rules.

    Parameters
    ----------
    rules : Rules
        The rules.

    Returns
    -------
    bytes
    """
    files = {
        name: {"size": len(data), "sha1": hashlib.sha1(data).hexdigest()}  # noqa: S324 - what CRDS has chosen
        for name, data in sorted(rules.files.items())
    }
    index = json.dumps({"format": 1, "context": rules.context, "files": files}, indent=1).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [(INDEX, index), *sorted(rules.files.items())]:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    compressor = zlib.compressobj(level=9, wbits=31)  # gzip, without the time
    return compressor.compress(packed.getvalue()) + compressor.flush()


def unpack_rules(store: Store, context: str, data: bytes, folder: Path) -> dict[str, dict[str, str]]:
    """Unpack all rules of a context.

    Parameters
    ----------
    store : Store
        Where they come from.
    context : str
        Which.
    data : bytes
        The tarball.
    folder : Path
        An empty folder.

    Returns
    -------
    dict
        {file: {size, sha1sum}}, all proved.

    Raises
    ------
    ReferencesError
        If the tarball is damaged, or more than that.
    """
    where = store.url(rules_key(context))
    try:
        tarball.unpack_stream(
            io.BytesIO(data),
            folder,
            source=where,
            dataset="hst",
            wanted=lambda name: name == INDEX or RULES.fullmatch(name) is not None,
            limit=_MOST_RULES,
        )
    except InputError as error:
        raise ReferencesError(f"{where} is damaged: {error.message}", remedy="sync that context again") from error
    with _well_formed(store, rules_key(context)):
        files = {
            str(name): {"size": str(int(one["size"])), "sha1sum": _checked(one["sha1"])}
            for name, one in json.loads((folder / INDEX).read_bytes())["files"].items()
        }
        (folder / INDEX).unlink()
        there = {path.name for path in folder.iterdir()}
        if there != set(files) or context not in files:
            raise ValueError(f"its index does not fit: {', '.join(sorted(there ^ set(files) | {context} - there)[:3])}")
        for name, one in files.items():
            if not crds_cache.agrees(one, (folder / name).stat().st_size, crds_cache.sha1(folder / name)):
                raise ValueError(f"{name} is not what its index says")
    return files
