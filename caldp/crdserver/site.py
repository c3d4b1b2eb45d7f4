"""One observatory of a CRDS: its events, rules and files, and what evaluates them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from caldp.crds_layout import mapping_key, reference_key
from caldp.crdserver.journal import Journal
from caldp.crdserver.mappings import Mappings
from caldp.crdserver.records import Records, open_records
from caldp.crdserver.settings import Settings
from caldp.crdserver.state import AVAILABLE, Row, State
from caldp.crdserver.stock import Stock
from caldp.errors import InputError, ReferencesError
from caldp.store import Store, open_store

if TYPE_CHECKING:
    from caldp.crdserver.datasets import Datasets


class Site:
    """One observatory of a CRDS.

    Parameters
    ----------
    settings : Settings
        What the server goes by.
    observatory : str
        ``hst`` or ``jwst``.
    store, records : Store, Records, optional
        By default those of the settings, opened anew.
    """

    def __init__(
        self, settings: Settings, observatory: str, store: Store | None = None, records: Records | None = None
    ) -> None:
        self.settings = settings
        self.observatory = observatory
        self.store = store or open_store(settings.store)
        self.records = records or open_records(settings.records)
        self.journal = Journal(self.records, self.store, observatory)
        self.cache = settings.work / "cache"
        self.mappings = Mappings(self.store, observatory, self.cache)
        self.stock = Stock(self.cache, observatory, self.mappings.closure)

    @property
    def state(self) -> State:
        """What the CRDS is at this moment."""
        return self.journal.state()

    @property
    def url(self) -> str:
        """What clients call it."""
        return f"{self.settings.url}/{self.observatory}"

    @cached_property
    def datasets(self) -> Datasets:
        """The parameters of datasets."""
        from caldp.crdserver.datasets import Datasets

        return Datasets(self.store, self.observatory)

    def context(self, name: str, state: State | None = None) -> str:
        """Say which mapping a name means.

        Parameters
        ----------
        name : str
            A mapping, ``hst-latest``, ``hst-edit``, ``hst-operational``, or ``hst-2018-01-01T00:00:00``.
        state : State, optional
            By default that of this moment.

        Returns
        -------
        str

        Raises
        ------
        InputError
            If it means none.
        """
        state = state or self.state
        name = name.strip()
        what = name.removeprefix(f"{self.observatory}-")
        if what in ("latest", "operational", "edit", self.observatory):
            found = state.edit if what == "edit" else state.latest
        elif what[:1].isdigit():
            found = state.context_at(what.replace("T", " "))
        else:
            found = name if name in state.files or self.proposed(name, state) else ""
        if not found:
            raise InputError(
                f"Unknown CRDS context {name[:100]!r}",
                remedy=f"{self.observatory} has {', '.join(state.contexts[-3:])}",
            )
        return found

    def proposed(self, name: str, state: State) -> str:
        """Return the submission, waiting for its person, that would bring a mapping; empty if none would."""
        one = state.reserved.get(name, "")
        known = state.submissions.get(one, {})
        return one if known.get("state") == "ready" and name in known.get("mappings", ()) else ""

    def row(self, name: str, state: State | None = None) -> Row:
        """Return the row of a file; InputError if there is no such file."""
        row = (state or self.state).files.get(name)
        if row is None:
            raise InputError(f"{name[:100]!r} is no file of this CRDS", remedy="look for it in the catalogue")
        return row

    def available(self, name: str) -> tuple[str, Row]:
        """Return the key and the row of a file that anybody may have.

        Raises
        ------
        InputError
            If there is none.
        ReferencesError
            If it was delivered, but is not in the archive yet; or known, but not in this store.
        """
        row = self.row(name)
        if row["state"] not in AVAILABLE:
            raise ReferencesError(f"{name} is {row['state']}, not yet archived", remedy="wait for the archive")
        if row.get("absent"):
            raise ReferencesError(
                f"{name} is known, but its content is not in this store", remedy="caldp crds init brings it there"
            )
        key = mapping_key if row["type"] == "mapping" else reference_key
        return key(name, self.observatory), row
