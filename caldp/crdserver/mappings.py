"""Mappings of a CRDS in a store, brought to a folder of this machine that crds can read.  They never change."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caldp import crds_rules
from caldp.crds_layout import mapping_key
from caldp.errors import ReferencesError
from caldp.store import Copy, NoObjectError, Store

#: ``hst_0729.pmap``, ``hst_cos.imap``, ``jwst_nircam_readnoise_0005.rmap``, and what others call theirs.
NAME = re.compile(r"[a-z]+(_[a-z0-9]+)*(_\d+)?\.[pir]map")

#: Mappings of which it is remembered what they select.
_REMEMBERED = 5000


class Mappings:
    """The mappings of one observatory.

    Parameters
    ----------
    store : Store
        Where they are.
    observatory : str
        ``hst`` or ``jwst``.
    cache : Path
        A folder laid out as a CRDS cache, of this machine; processes may share it.
    """

    def __init__(self, store: Store, observatory: str, cache: Path) -> None:
        self.store = store
        self.observatory = observatory
        self.cache = cache
        self.folder = cache / "mappings" / observatory
        self._read: OrderedDict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """Return the file of one mapping, fetched if it is not here.

        Parameters
        ----------
        name : str
            For example ``hst_cos_0306.imap``.

        Returns
        -------
        Path

        Raises
        ------
        ReferencesError
            If there is none.
        """
        self._fetch([name])
        return self.folder / name

    def header(self, name: str) -> dict[str, Any]:
        """Return what a mapping says of itself."""
        return self._parsed(name)[0]

    def selected(self, name: str) -> list[tuple[str, str]]:
        """Return what a mapping names: (key, name of a mapping or of a reference), in order."""
        return self._parsed(name)[1]

    def closure(self, name: str) -> list[str]:
        """Return a mapping and all mappings that it names, itself first, each once; all are fetched.

        Parameters
        ----------
        name : str
            For example ``hst_0729.pmap``.

        Returns
        -------
        list of str
        """
        found: dict[str, None] = {name: None}
        level = [name]
        while level:
            self._fetch(level)
            below = [n for one in level if not one.endswith(".rmap") for _, n in self.selected(one)]
            level = [n for n in dict.fromkeys(below) if n not in found]
            found |= dict.fromkeys(level)
        return list(found)

    def references(self, name: str) -> list[str]:
        """Return the references that a mapping, and those that it names, select; sorted."""
        rmaps = [n for n in self.closure(name) if n.endswith(".rmap")]
        return sorted({reference for rmap in rmaps for _, reference in self.selected(rmap)})

    def _parsed(self, name: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        with self._lock:
            if name in self._read:
                self._read.move_to_end(name)
                return self._read[name]
        path = self.path(name)
        try:
            parsed = crds_rules.parse(path.read_bytes())
        except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
            raise ReferencesError(
                f"{name} is damaged ({' '.join(str(error).split())[:160]})", remedy="restore it from a backup"
            ) from error
        with self._lock:
            self._read[name] = parsed
            while len(self._read) > _REMEMBERED:
                self._read.popitem(last=False)
        return parsed

    def _fetch(self, names: Sequence[str]) -> None:
        if wrong := [name for name in names if not NAME.fullmatch(name)]:
            raise ReferencesError(f"{wrong[0][:100]!r} is no mapping", remedy="give a name like hst_0729.pmap")
        absent = [name for name in names if not (self.folder / name).exists()]
        if not absent:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Others may fetch the same: each writes under a name of its own, and the last one to rename changes nothing.
        partial = {name: self.folder / f".{name}.{os.getpid()}.{threading.get_ident()}" for name in absent}
        copies = [Copy(mapping_key(name, self.observatory), path) for name, path in partial.items()]
        try:
            self.store.download(copies)
            for name, path in partial.items():
                path.replace(self.folder / name)
        except NoObjectError as error:
            missing = str(error.args[0]).rpartition("/")[2] if error.args else absent[0]
            raise ReferencesError(
                f"this CRDS has no mapping {missing}", remedy="caldp crds init brings contexts there"
            ) from error
        finally:
            for path in partial.values():
                path.unlink(missing_ok=True)
