"""The crds package itself, in this process: best references are chosen by the code that everybody else chooses with.

crds reads its cache from the environment while rules are loaded.  Here they are loaded whole, once, under a lock that
sets the environment for as long as that takes; what was loaded asks for nothing any more.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from caldp.errors import ReferencesError

#: One for the process: the environment is one.
_LOADING = threading.Lock()

#: Contexts that are kept; one takes some 20 MB.
_KEPT = 4

#: The client refuses to ask a server of such a name.
NO_SERVER = "https://serverless.invalid"


def environment(cache: Path, observatory: str) -> dict[str, str]:
    """Return the variables with which crds uses a cache, and no server.

    Parameters
    ----------
    cache : Path
        With ``mappings/<observatory>``.
    observatory : str
        ``hst`` or ``jwst``.

    Returns
    -------
    dict
    """
    return {
        "CRDS_PATH": str(cache),
        "CRDS_OBSERVATORY": observatory,
        "CRDS_SERVER_URL": NO_SERVER,
        "CRDS_READONLY_CACHE": "0",
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    with _LOADING:
        ours = {name for name in os.environ if name.startswith("CRDS_")} | set(variables)
        before = {name: os.environ.pop(name, None) for name in ours}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


class Stock:
    """Contexts, evaluated by crds.

    Parameters
    ----------
    cache : Path
        A folder laid out as a CRDS cache; only its ``mappings/<observatory>`` are read.
    observatory : str
        ``hst`` or ``jwst``.
    bring : callable, optional
        Called with the name of a mapping before it is loaded: what brings it and all that it names into the cache.
    """

    def __init__(self, cache: Path, observatory: str, bring: Callable[[str], object] | None = None) -> None:
        self.cache = cache
        self.observatory = observatory
        self._bring = bring
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    def mapping(self, name: str) -> Any:  # noqa: ANN401 - crds has no types
        """Return a context, or one of its mappings, loaded whole.

        Parameters
        ----------
        name : str
            For example ``hst_0729.pmap``.

        Returns
        -------
        crds.core.rmap.Mapping

        Raises
        ------
        ReferencesError
            If it cannot be loaded.
        """
        found = self._loaded.get(name)
        if found is None:
            if self._bring:
                self._bring(name)
            from crds.core import rmap, utils
            from crds.core.exceptions import CrdsError

            with _environment(environment(self.cache, self.observatory)):
                try:
                    found = rmap.load_mapping(name)
                    if hasattr(found, "force_load"):
                        found.force_load()
                except (CrdsError, OSError) as error:
                    raise ReferencesError(
                        f"{name} cannot be loaded ({' '.join(str(error).replace(str(self.cache), '').split())[:300]})",
                        remedy="sync that CRDS cache again",
                    ) from error
            self._loaded[name] = found
            if len(self._loaded) > _KEPT:
                while len(self._loaded) > _KEPT:
                    self._loaded.popitem(last=False)
                # What crds remembers of a context, it remembers for ever, and with it the context.
                with suppress(RuntimeError):  # others import more of crds meanwhile: then the next time
                    utils.clear_function_caches()
        return found

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let crds read this cache by itself, for as long as the context lasts; others that load rules wait."""
        with _environment(environment(self.cache, self.observatory)):
            yield

    def best_references(
        self, context: str, header: Mapping[str, str], reftypes: Iterable[str] | None = None
    ) -> dict[str, str]:
        """Choose references, as ``crds.getrecommendations`` does.

        Parameters
        ----------
        context : str
            For example ``hst_0729.pmap``.
        header : mapping
            {keyword: value} of a dataset.
        reftypes : iterable of str, optional
            By default all that apply to the dataset.

        Returns
        -------
        dict
            {type in lower case: name, or ``NOT FOUND <why>``, or ``NOT FOUND n/a``}.

        Raises
        ------
        ReferencesError
            If the header says not enough.
        """
        from crds.core import utils
        from crds.core.exceptions import CrdsError

        mapping = self.mapping(context)
        conditioned = utils.condition_header(dict(header))
        wanted = None if reftypes is None else [str(one).lower() for one in reftypes]
        try:
            if not wanted:
                applicable = set(mapping.locate.header_to_reftypes(conditioned, context))
                wanted = list(set(mapping.get_filekinds(conditioned)) & applicable)
            chosen = mapping.get_best_references(mapping.minimize_header(conditioned), include=wanted)
        except (CrdsError, KeyError, ValueError) as error:
            raise ReferencesError(f"{context}: {error}", remedy="complete the header") from error
        return {str(kind).lower(): str(name) for kind, name in chosen.items()}
