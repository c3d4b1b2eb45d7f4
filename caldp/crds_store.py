"""A store from which the CRDS cache of this host is filled: any number of hosts share it, without a CRDS server.

What is where in the store is said in ``crds_layout``.  Rules are fetched in three requests at most, references in
parallel, each under a temporary name until it is proved.  Runs on one host share the cache; what a run uses is locked,
so that a full cache loses only what nobody uses.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from caldp import crds_cache, crds_layout, crds_shelf
from caldp.config import Config
from caldp.crds_cache import CrdsCache, Reference, Wanting, megabytes, turn
from caldp.errors import (
    ReferencesError,
    ReferencesUnavailableError,
    S3DownloadError,
    S3DownloadRefusedError,
)
from caldp.fitsfile import damage
from caldp.run import Run
from caldp.store import Copy, NoObjectError, Progress, open_store

#: So often a reference is downloaded that does not arrive as it should be.
_TRIES = 3


class CrdsStore(CrdsCache):
    """A CRDS cache in a store, and a cache of this host.

    Parameters
    ----------
    config : Config
        Names the store, the cache and its limit.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.store = open_store(config.crds_store, config.aws)
        self.place = self.store.uri
        self._config = config
        self._context = ""
        self._listed = False
        self._shelf = crds_shelf.Shelf(config.crds_path)

    # ---- rules

    def choose(self, run: Run, directory: Path, names: Sequence[str]) -> None:
        asked = crds_cache.asked_context(run)
        with _readable(run):
            pointer = crds_layout.parse_pointer(self.store, self.store.get(crds_layout.POINTER))
            self._context = context = self._named(run, asked, pointer)
            said = {
                "operational_context": pointer.get("context", context),
                "latest_context": pointer.get("context", context),
                "bad_files_list": sorted(pointer.get("bad_files", ())),
                "bad_files": " ".join(sorted(pointer.get("bad_files", ()))),
                "last_synced": pointer.get("at", ""),
            }
            self.known = self._remembered(run)
            if not (said.items() <= self.known.items() and self._has_rules(context)):
                with turn(run, "rules"):
                    self.known = self._remembered(run) | said
                    rules = {} if self._has_rules(context) else self._install_rules(run, context)
                    self._remember(run, rules, {context: sorted(rules)} if rules else {})
        crds_cache.best_references(run, self.known, context, directory, names)

    def _named(self, run: Run, asked: str, pointer: Mapping[str, Any]) -> str:
        known = {"operational_context": pointer.get("context"), "latest_context": pointer.get("context")}
        name = crds_cache.named_context(asked, known)
        if crds_layout.CONTEXT.fullmatch(name):
            return name
        why = "which is no edit context" if pointer else "and it has no current context"
        raise ReferencesError(
            f"{run.dataset}: {asked} is not known: the CRDS cache is {self.place}, {why}",
            remedy=f"choose one with --context or CRDS_CONTEXT: {self._there()}",
        )

    def _there(self) -> str:
        there = crds_layout.stored_contexts(self.store)
        shown = there if len(there) <= 5 else [there[0], "...", *there[-4:]]
        return f"there are {', '.join(shown)}" if there else "there are none: caldp references sync brings them there"

    def _remembered(self, run: Run) -> dict[str, Any]:
        """Return what the cache of this host knows of this store."""
        with contextlib.suppress(ReferencesError, AttributeError):
            known = crds_cache.server_config(run)
            crds_cache.metadata(known)
            if known.get("caldp", {}).get("store") == self.place:
                return known
        return {}

    def _remember(
        self, run: Run, files: Mapping[str, Mapping[str, str]], contexts: Mapping[str, Sequence[str]]
    ) -> None:
        """Add files and contexts to what the cache of this host knows; crds demands that there is such a file."""
        metadata = {**crds_cache.metadata(self.known), **files}
        contexts = {**self.known.get("caldp", {}).get("contexts", {}), **contexts}
        self.known |= {
            "observatory": "hst",
            "connected": False,
            "status": "cache",
            "server": self._config.crds_server_url,
            "crds_version": {"str": "0.0.0"},
            "edit_context": self.known["operational_context"],
            "force_remote_mode": 0,
            "mappings": sorted({name for names in contexts.values() for name in names}),
            "caldp": {"store": self.place, "contexts": contexts},
        }
        text = repr({**self.known, "download_metadata": crds_cache.encoded_metadata(metadata)})
        self.known["download_metadata"] = metadata
        folder = crds_cache.server_config_path(run.config).parent
        self._write(run, folder / "server_config", text)
        if not (folder / "ref_cache_subdir_mode").exists():
            self._write(run, folder / "ref_cache_subdir_mode", "flat")

    def _write(self, run: Run, path: Path, text: str) -> None:
        temporary = path.with_name(f".caldp-{path.name}")  # in turn with others
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise crds_cache.unwritable(run, error) from error

    def _has_rules(self, context: str) -> bool:
        """Whether all rules of a context are in the cache, as they were in the store."""
        names = self.known.get("caldp", {}).get("contexts", {}).get(context, ())
        metadata = crds_cache.metadata(self.known)
        folder = self._config.crds_path / "mappings" / "hst"
        try:
            return bool(names) and all(
                crds_cache.agrees(metadata[name], (folder / name).stat().st_size, crds_cache.sha1(folder / name))
                for name in names
            )
        except (OSError, KeyError):
            return False

    def _install_rules(self, run: Run, context: str) -> dict[str, dict[str, str]]:
        """Bring all rules of a context into the cache."""
        blob = self.store.get(crds_layout.rules_key(context))
        if blob is None:
            raise ReferencesError(
                f"{run.dataset}: unknown CRDS context {context}: {self.place} has no rules of that name",
                remedy=f"choose one with --context or CRDS_CONTEXT: {self._there()}",
            )
        cache = self._config.crds_path
        for leftover in cache.glob(".caldp-rules-*"):  # of a run that was killed in its turn
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            (cache / "mappings" / "hst").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".caldp-rules-", dir=cache) as folder:
                files = crds_layout.unpack_rules(self.store, context, blob.data, Path(folder))
                for name in files:
                    (Path(folder) / name).replace(cache / "mappings" / "hst" / name)
        except OSError as error:
            raise crds_cache.unwritable(run, error) from error
        run.telemetry.info(f"{len(files)} rules of {context} from {self.place}")
        return files

    # ---- references

    def look(self, run: Run, chosen: Iterable[tuple[str, str]]) -> tuple[list[Reference], list[Wanting]]:
        chosen = list(chosen)
        known = crds_cache.metadata(self.known)
        if not all(name in known for _, name in chosen):
            self._list(run)
        files, wanting = super().look(run, chosen)
        if not self._listed and any(one.path and one.replaceable for one in wanting):
            self._list(run)  # before a file of the cache is thrown away: perhaps what we know is wrong
            again, wanting = super().look(run, [(one.type, one.name) for one in wanting])
            files += again
        return files, wanting

    def _list(self, run: Run) -> None:
        """Learn which references of the context are in the store."""
        with _readable(run):
            found = self.store.get(crds_layout.listing_key(self._context))
            listing = crds_layout.parse_listing(self.store, self._context, found)
        self._listed = True
        with turn(run, "rules"):
            said = {k: v for k, v in self.known.items() if k not in ("caldp", "download_metadata")}
            self.known = self._remembered(run) | said
            self._remember(run, listing, {})

    def verify(self, run: Run, kind: str, name: str, path: Path | None) -> Reference:
        ours = path is None or path.is_relative_to(run.config.crds_path / "references")
        if ours and name not in crds_cache.metadata(self.known):
            raise ReferencesError(
                f"{run.dataset}: {kind} needs {name}, which is not among the references of {self._context} in "
                f"{self.place}",
                remedy=f"caldp references sync --context {self._context} --datasets {run.dataset} {self.place} adds "
                "it, where there is a CRDS cache that has it; or give your own file with --override",
            )
        if ours and path:
            self._shelf.keep(path)
        return super().verify(run, kind, name, path)

    def expected(self, one: Wanting) -> Reference | None:
        known = crds_cache.metadata(self.known).get(one.name)
        if known is None or not one.replaceable:
            return None
        return Reference(one.type, one.name, int(known["size"]), known["sha1sum"], "")

    def fetch(self, run: Run, wanting: Sequence[Wanting]) -> list[Reference]:
        flat = run.config.crds_path / "references" / "hst"
        targets = {one.name: one.path or flat / one.name for one in wanting}
        expected = {one.name: reference for one in wanting if (reference := self.expected(one))}
        run.telemetry.info(f"downloading {len(expected)} references, {megabytes(expected.values())}, from {self.place}")
        for one in wanting:
            if one.path:
                run.telemetry.warning(f"{one.error.message.removeprefix(f'{run.dataset}: ')}: it is replaced")
        progress = run.telemetry.counter("references", sum(one.size for one in expected.values()))

        def waiting(name: str) -> None:
            run.telemetry.info(f"waiting for another run that fetches {name}")

        try:
            flat.mkdir(parents=True, exist_ok=True)
            self._shelf.tidy()
            left = sorted(targets)
            while left:
                with self._shelf.claimed(left, waiting) as mine:
                    absent = {n: targets[n] for n in mine if not self._arrived(targets[n], expected[n])}
                    self._download(run, absent, expected, progress)
                left = [name for name in left if name not in mine]
        except OSError as error:
            raise crds_cache.unwritable(run, error) from error
        if run.config.crds_cache_limit is not None:
            for path in self._shelf.evict(run.config.crds_cache_limit):
                run.telemetry.info(f"{path.name} was not in use: removed from the cache, which is full")
        for one in wanting:
            if reason := damage(targets[one.name]):
                raise ReferencesError(
                    f"{run.dataset}: {one.type} needs {one.name}, which is not whole FITS even in {self.place} "
                    f"({reason})",
                    remedy="give your own file with --override, or choose another --context",
                )
        return [replace(expected[one.name], type=one.type, path=str(targets[one.name])) for one in wanting]

    def _url(self, name: str) -> str:
        return self.store.url(crds_layout.reference_key(name))

    def _arrived(self, path: Path, expected: Reference) -> bool:
        """Whether another run has brought a file meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            self._shelf.keep(path)
            return _is(path, expected)
        return False

    def _download(
        self, run: Run, targets: Mapping[str, Path], expected: Mapping[str, Reference], progress: Progress
    ) -> None:
        """Download files, prove them, and give them their names."""
        left = dict(targets)
        wrong = ""
        for _ in range(_TRIES):
            if not left:
                return
            copies = [Copy(crds_layout.reference_key(name), self._shelf.partial(name)) for name in left]
            try:
                with _readable(run):
                    self.store.download(copies, progress)
            except NoObjectError as error:
                name = str(error.args[0]).rpartition("/")[2]
                raise ReferencesError(
                    f"{run.dataset}: {expected[name].type} needs {name}, which is listed, but there is no "
                    f"{self._url(name)}",
                    remedy=f"bring it there again: caldp references sync --context {self._context} {self.place}",
                ) from error
            for name, partial in [(name, self._shelf.partial(name)) for name in left]:
                if not partial.exists():
                    continue
                if _is(partial, expected[name]):
                    self._shelf.keep(partial)
                    partial.replace(left.pop(name))
                    continue
                wrong = (
                    f"{expected[name].type} needs {name}, but {self._url(name)} is damaged: "
                    f"{partial.stat().st_size} bytes, sha1 {crds_cache.sha1(partial)}, where "
                    f"{expected[name].size} bytes, sha1 {expected[name].sha1} are expected"
                )
                run.telemetry.warning(wrong)
                progress(-partial.stat().st_size)
                partial.unlink()
        if left:
            raise ReferencesError(
                f"{run.dataset}: {wrong}",
                remedy="remove that object, and bring it there again with caldp references sync",
            )


def _is(path: Path, expected: Reference) -> bool:
    return path.stat().st_size == expected.size and crds_cache.sha1(path) == expected.sha1


@contextmanager
def _readable(run: Run) -> Iterator[None]:
    """Say which dataset needs a store that cannot be read just now."""
    try:
        yield
    except S3DownloadRefusedError:
        raise
    except S3DownloadError as error:
        raise ReferencesUnavailableError(f"{run.dataset}: {error.message}", remedy=error.remedy) from error
    except ReferencesError as error:
        if error.message.startswith(f"{run.dataset}: "):
            raise
        raise ReferencesError(f"{run.dataset}: {error.message}", remedy=error.remedy) from error
