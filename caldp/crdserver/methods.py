"""The methods that a client of crds calls, by their names: what is asked of a site, and how it is said."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from caldp.crdserver import catalog
from caldp.crdserver.channels import Channels
from caldp.crdserver.site import Site
from caldp.errors import CaldpError, InputError

#: What the client looks for when it asks for what is not computed yet.
_NOT_YET = "No precomputed affected datasets results exist"

#: Keywords of a dataset that clients are told whatever the rules look at.
_ALWAYS = ("INSTRUME", "DETECTOR", "DATE-OBS", "TIME-OBS", "EXPSTART", "MEMBER_TYPE")

Header = Mapping[str, Any]


class Methods:
    """The methods of one observatory.

    Parameters
    ----------
    site : Site
        Whose.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._info: tuple[int, dict[str, Any]] = (-1, {})
        self._database: tuple[int, str] = (-1, "")

    def table(self) -> dict[str, Callable[..., Any]]:
        """Return {name: function}."""
        return {name: getattr(self, name) for name in vars(type(self)) if name[0] != "_" and name != "table"}

    # ---- the server

    def get_server_info(self) -> dict[str, Any]:
        seq = self._site.state.seq
        if self._info[0] != seq:
            self._info = (seq, catalog.server_info(self._site))
        return self._info[1]

    def get_system_versions(self, master_version: str, context: str | None = None) -> dict[str, str]:
        raise InputError(f"{self._site.observatory} keeps no versions of a calibration system")

    # ---- contexts

    def get_default_context(self, observatory: str | None = None, state: str | None = None) -> str:
        self._ours(observatory)
        if state not in (None, "latest", "operational", "edit"):
            raise InputError(f"there is no {state!r} context")
        return self._site.context(f"{self._site.observatory}-{state or 'latest'}")

    def get_build_context(self, observatory: str, calver: str) -> str:
        self._ours(observatory)
        found = self._site.records.get(f"{self._site.observatory}:builds", calver[:100]) if calver else None
        if found is None:
            raise InputError(f"no context is known for version {str(calver)[:40]!r} of the calibration software")
        return str(found.value["context"])

    def get_context_by_date(self, date: str, observatory: str | None = None) -> str:
        self._ours(observatory)
        # Rules of an instrument or a type are asked for in the same way: hst-cos-2018-01-01, hst-cos-deadtab-edit.
        when = r"(\d{4}-\S+|edit|latest|operational)"
        match = re.fullmatch(rf"{self._site.observatory}-([a-z]\w*)(?:-([a-z][\w-]*?))?-{when}", date, re.ASCII)
        if match is None:
            return self._site.context(date)
        name = self._site.context(f"{self._site.observatory}-{match[3]}")
        self._site.mappings.closure(name)
        for key in filter(None, (match[1], match[2])):
            below = {kind.lower(): rules for kind, rules in self._site.mappings.selected(name)}
            if key not in below:
                raise InputError(f"{name} has no rules for {key[:40]!r}")
            name = below[key]
        return name

    def get_context_history(self, observatory: str | None = None) -> list[list[str]]:
        self._ours(observatory)
        return catalog.history(self._site.state)

    def push_remote_context(self, observatory: str, kind: str, key: str, context: str) -> str:
        self._ours(observatory)
        space = f"{self._site.observatory}:caches"
        known = self._site.records.get(space, str(key)[:200])
        # The client sends no token: only caches that an operator has made known may say what they are at.
        if known is None:
            raise InputError(f"no cache is known by the name {str(key)[:60]!r}: caldp crds cache add makes one known")
        if kind not in ("latest", "operational", "edit"):
            raise InputError(f"there is no {str(kind)[:20]!r} context")
        context = self._site.context(context)
        self._site.records.put(space, known.key, {**known.value, "context": context, "kind": kind})
        return context

    def get_remote_context(self, observatory: str, key: str) -> str:
        self._ours(observatory)
        known = self._site.records.get(f"{self._site.observatory}:caches", str(key)[:200])
        if known is None or not known.value.get("context"):
            raise InputError(f"no context is known of {str(key)[:60]!r}")
        return str(known.value["context"])

    # ---- files

    def list_mappings(self, observatory: str | None = None, glob_pattern: str = "*") -> list[str]:
        self._ours(observatory)
        return catalog.named(self._site.state, "mapping", glob_pattern)

    def list_references(self, observatory: str | None = None, glob_pattern: str = "*") -> list[str]:
        self._ours(observatory)
        return catalog.named(self._site.state, "reference", glob_pattern)

    def get_mapping_names(self, context: str) -> list[str]:
        return self._site.mappings.closure(self._site.context(context))

    def get_reference_names(self, context: str) -> list[str]:
        return self._site.mappings.references(self._site.context(context))

    def get_url(self, context: str, filename: str) -> str:
        self._site.row(filename)
        return f"{self._site.url}/get/{filename}"

    def get_mapping_url(self, context: str, mapping: str) -> str:
        return self.get_url(context, mapping)

    def get_reference_url(self, context: str, reference: str) -> str:
        return self.get_url(context, reference)

    def get_file_info(self, context: str, filename: str) -> dict[str, str]:
        return catalog.info(self._site, filename, self._site.row(filename))

    def get_file_info_map(
        self, observatory: str, files: Sequence[str] | None = None, fields: Sequence[str] | None = None
    ) -> dict[str, dict[str, str] | str]:
        self._ours(observatory)
        rows = self._site.state.files
        found: dict[str, dict[str, str] | str] = {}
        for name in rows if files is None else files:
            if name not in rows:
                found[name] = "NOT FOUND"
                continue
            said = catalog.info(self._site, name, rows[name])
            found[name] = said if fields is None else {field: said[field] for field in fields if field in said}
        return found

    def get_sqlite_db(self, observatory: str | None = None) -> str:
        self._ours(observatory)
        seq = self._site.state.seq
        if self._database[0] != seq:
            packed = base64.b64encode(zlib.compress(catalog.sqlite(self._site))).decode("ascii")
            self._database = (seq, packed)
        return self._database[1]

    # ---- best references

    def get_required_parkeys(self, context: str) -> Any:  # noqa: ANN401 - as crds has them
        name = self._site.context(context)
        return _plain(self._site.stock.mapping(name).get_required_parkeys())

    def get_best_references(
        self, context: str, header: Header, reftypes: Sequence[str] | None = None
    ) -> dict[str, str]:
        name = self._site.context(context)
        return self._site.stock.best_references(name, _texts(header), reftypes)

    def get_best_references_by_header_map(
        self, context: str, header_map: Mapping[str, Header], reftypes: Sequence[str] | None = None
    ) -> dict[str, dict[str, str] | str]:
        name = self._site.context(context)
        return {one: self._best(name, header, reftypes) for one, header in header_map.items()}

    def get_best_references_by_ids(
        self,
        context: str,
        dataset_ids: Sequence[str],
        reftypes: Sequence[str] | None = None,
        include_headers: bool = False,
    ) -> dict[str, list[Any]]:
        name = self._site.context(context)
        found: dict[str, list[Any]] = {}
        for one, header in self._site.datasets.headers(list(dataset_ids)).items():
            best = header if isinstance(header, str) else self._best(name, header, reftypes)
            found[one] = [isinstance(best, dict), best, *([header] if include_headers else [])]
        return found

    def get_aui_best_references(self, date: str, dataset_ids: Sequence[str]) -> dict[str, list[Any]]:
        site = self._site
        name = site.context(f"{site.observatory}-{date}" if str(date)[:1].isdigit() else str(date))
        found: dict[str, list[Any]] = {}
        for one, header in site.datasets.headers(list(dataset_ids)).items():
            best = header if isinstance(header, str) else self._best(name, header, None)
            if isinstance(best, str):
                found[one] = [False, best if best.startswith("NOT FOUND") else f"NOT FOUND {best}"]
            else:
                chosen = {file.lower() for file in best.values() if not file.upper().startswith("NOT FOUND")}
                found[one] = [True, sorted(chosen)]
        return found

    def _best(self, context: str, header: Header, reftypes: Sequence[str] | None) -> dict[str, str] | str:
        try:
            return self._site.stock.best_references(context, _texts(header), reftypes)
        except CaldpError as error:
            return f"NOT FOUND {error.message}"

    # ---- datasets

    def get_dataset_ids(self, context: str, instrument: str, datasets_since: str | None = None) -> list[str]:
        self._site.context(context)
        return self._site.datasets.ids(str(instrument).lower(), datasets_since)

    def get_dataset_headers_by_id(
        self, context: str, dataset_ids: Sequence[str], datasets_since: str | None = None
    ) -> dict[str, Any]:
        wanted = self._wanted(self._site.context(context))
        found = self._site.datasets.headers([str(one).upper() for one in dataset_ids], datasets_since)
        return {
            one: header if isinstance(header, str) else {k: text for k, text in header.items() if k in wanted}
            for one, header in found.items()
        }

    def _wanted(self, context: str) -> set[str]:
        """Return the keywords that clients look at: a catalogue may have all that headers have."""
        mapping = self._site.stock.mapping(context)
        required = mapping.get_required_parkeys()
        kinds = {str(kind).upper() for name in required for kind in mapping.get_imap(name).selections}
        return {*_ALWAYS, *kinds, *(str(keyword) for keywords in required.values() for keyword in keywords)}

    def get_affected_datasets(
        self, observatory: str, old_context: str | None = None, new_context: str | None = None
    ) -> dict[str, Any]:
        self._ours(observatory)
        from caldp.crdserver import reprocessing

        found = reprocessing.result(self._site, old_context, new_context)
        if found is None:
            raise InputError(f"{_NOT_YET} for {old_context} --> {new_context}")
        return found

    # ---- progress of submissions

    def jpoll_pull_messages(self, key: str, since_id: str | int | None = None) -> list[dict[str, Any]]:
        since = str(since_id or 0)
        if not re.fullmatch(r"\d{1,15}", since, re.ASCII):
            raise InputError(f"{since[:20]!r} is no number of a message")
        return Channels(self._site.records, self._site.observatory).pull(key, int(since))

    def jpoll_abort(self, key: str) -> bool:
        Channels(self._site.records, self._site.observatory).abort(str(key))
        return True

    def _ours(self, observatory: str | None) -> None:
        if observatory not in (None, self._site.observatory):
            raise InputError(f"this is the CRDS of {self._site.observatory}, not of {str(observatory)[:20]!r}")


def _texts(header: Header) -> dict[str, str]:
    if not isinstance(header, Mapping):
        raise InputError("a header is an object of keywords and values")
    return {str(keyword): str(value) for keyword, value in header.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 - as JSON has it
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
