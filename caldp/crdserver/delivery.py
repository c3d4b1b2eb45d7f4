"""The heavy work of a submission, in a process of its own: certify its files, insert them into rules, make a context.

All that judges files and changes rules is the crds package itself; here its steps are put in order, and names given.
A private CRDS cache holds what it works on. Nothing that it makes is seen by anybody before the one event that says so.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from caldp import crds_cache, crds_rules
from caldp.crds_layout import mapping_key, reference_key
from caldp.crdserver import contexts, uploads
from caldp.crdserver.journal import now
from caldp.crdserver.site import Site
from caldp.crdserver.state import AVAILABLE, State
from caldp.crdserver.submissions import Submission, result_key, rows_key
from caldp.errors import CaldpError, InputError, ReferencesError
from caldp.store import Copy

#: Told a type of message and a line.
Say = Callable[[str, str], None]

#: Bytes of an old reference that is fetched to be compared with a new one.
_COMPARED = 500_000_000

#: Lines of crds that are kept with the result.
_LINES = 2000

#: What the catalogue takes from the header of a reference.
_PROVENANCE = {
    "useafter": "USEAFTER",
    "pedigree": "PEDIGREE",
    "comment": "DESCRIP",
    "aperture": "APERTURE",
    "history": "HISTORY",
}

#: What ``--standard`` of uniqname stands for, which it looks at only as a command.
_STANDARD = ("--add-keywords", "--verify-file")

_SERIAL = re.compile(r"(.*?)(?:_(\d+))?(\.\w+)")


class BadFilesError(CaldpError):
    """crds does not take the files."""


@dataclass
class Result:
    """What became of a submission, for the person who looks at it.

    Attributes
    ----------
    context : str
        The new context; empty if there is none.
    derived_from : str
        The context that it comes from.
    renamed : dict
        {file as sent, or old mapping: new name}.
    references, mappings : list of str
        New files.
    differences : list of dict
        Per changed mapping: ``old``, ``new``, ``logical`` (list of str), ``text`` (a unified diff).
    errors, warnings : int
        What crds has counted.
    lines : list of str
        What crds has said.
    """

    derived_from: str
    context: str = ""
    renamed: dict[str, str] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)
    mappings: list[str] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    errors: int = 0
    warnings: int = 0
    lines: list[str] = field(default_factory=list)


class Delivery:
    """The work on one submission.

    Parameters
    ----------
    site : Site
        Where.
    submission : Submission
        What.
    attempt : int
        Which attempt this is; each has names of its own, so that a late one disturbs nobody.
    folder : Path
        Empty, and gone afterwards.
    say : callable
        Told what happens.
    """

    def __init__(self, site: Site, submission: Submission, attempt: int, folder: Path, say: Say) -> None:
        self.site = site
        self.submission = submission
        self.attempt = attempt
        self._folder = folder
        self.files = folder / "files"
        self.cache = folder / "cache"
        self.rules = self.cache / "mappings" / site.observatory
        self.result = Result(submission.context)
        self._say = say
        self._rows: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, str] = {}
        for place in (self.files, self.rules):
            place.mkdir(parents=True)

    def run(self) -> None:
        """Do it all, and add the event that says what came of it.

        Raises
        ------
        BadFilesError
            If crds does not take the files.
        CaldpError
            For whatever else stands in the way.
        """
        with _listening(self._heard):
            self._assemble()
            self._certify()
            if self.submission.kind == "certify":
                self._end("checked", {})
                return
            self._stop_if_errors("certify does not take the files")
            kind = self.submission.kind
            renamed = self._rename_mappings() if kind == "mappings" else self._rename_references()
            if kind == "batch":
                renamed_rules = self._insert(renamed)
            else:
                renamed_rules = renamed if kind == "mappings" else {}
            if renamed_rules:
                self._new_context(renamed_rules)
            self._stop_if_errors("the rules cannot be made")
            self._send()
        self._end("ready", {"context_new": self.result.context})

    def refuse(self, kind: str, error: CaldpError) -> None:
        """Add the event that says why nothing came of it: ``bad files`` or ``failed``."""
        if not isinstance(error, BadFilesError) or not self.result.errors:
            self._heard("error", str(error))
        self._end(kind, {"reason": str(error)})

    # ---- files

    def _assemble(self) -> None:
        """Put the files together; what is known already is refused."""
        # Whoever began it may have been stopped before it had them.
        sent = uploads.Uploads(self.site, self.submission.user)
        sent.release({n: uploads.owned(n, parts) for n, parts in self.submission.files.items()})
        # Those of HST get another header, so that what is kept differs from what was sent.
        known = {row.get("sha1_sent", row["sha1"]): name for name, row in self.site.state.files.items()}
        known |= {row["sha1"]: name for name, row in self.site.state.files.items()}
        seen: dict[str, str] = {}
        for name, parts in self.submission.files.items():
            sha1 = uploads.assemble(self.site, parts, self.files / name)
            same = known.get(sha1) or seen.get(sha1)
            if same:
                raise BadFilesError(f"{name} is identical with {same}", remedy="submit only what is new")
            seen[sha1] = name
        self._sent = {name: sha1 for sha1, name in seen.items()}
        for name in self.site.mappings.closure(self.submission.context):
            # A copy: crds may write into its cache.
            shutil.copyfile(self.site.mappings.path(name), self.rules / name)

    def _certify(self) -> None:
        from crds.certify import certify
        from crds.refactoring import checksum

        paths = [str(self.files / name) for name in self.submission.files]
        if any(name.endswith((".imap", ".pmap", ".rmap")) for name in self.submission.files):
            self._must(self.submission.kind in ("mappings", "certify"), "mappings are submitted by themselves")
            for path in paths:
                _must_be_data(Path(path), self.site.observatory)
                # Whoever has written it by hand need not have counted.
                self._try("not a mapping", path, partial(checksum.update_checksum, path))
                self._try("not a mapping", path, partial(_must_be_its_name, Path(path), self.site.observatory))
                if self.submission.kind == "mappings" and path.endswith(".rmap"):
                    self._try("what it is cannot be told", path, partial(self._check_instrument, path))
        else:
            self._must(self.submission.kind != "mappings", "only mappings are submitted so")
            for path in paths:
                self._try("what it is cannot be told", path, partial(self._check_instrument, path))
            if not self.result.errors:
                self._fetch_replaced(paths)
        certify.certify_files(
            paths,
            context=self.submission.context,
            dump_provenance=True,
            compare_old_reference=self.submission.form.get("compare_old_reference", "True") != "False",
            observatory=self.site.observatory,
            run_fitsverify=True,
            # Rules are made in earnest below; the trial of crds would write into a folder that all share.
            check_rmap=False,
        )

    def _check_instrument(self, path: str) -> None:
        from crds.core import utils

        instrument, _ = utils.get_file_properties(self.site.observatory, path)
        if self.submission.instrument and instrument.lower() != self.submission.instrument:
            raise BadFilesError(
                f"{Path(path).name} is of {instrument}, but {self.submission.instrument} is locked",
                remedy="submit one instrument at a time",
            )

    def _try(self, otherwise: str, path: str, act: Callable[[], object]) -> None:
        """Do something with a file; whatever crds then says becomes an error of that file."""
        try:
            act()
        except CaldpError:
            raise
        except Exception as error:  # noqa: BLE001 - crds may stumble over anything that is in a file
            self._heard("error", f"{Path(path).name}: {otherwise} ({' '.join(str(error).split())[:300]})")

    def _fetch_replaced(self, paths: Sequence[str]) -> None:
        """Fetch what the files will replace, so that crds can compare them."""
        from crds import diff
        from crds.core import log, utils

        pmap = self._loaded(self.submission.context)
        for (instrument, filekind), some in utils.organize_files(self.site.observatory, list(paths)).items():
            for path in some:
                with log.verbose_on_exception("nothing to compare with", path):
                    rmap = pmap.get_imap(instrument).get_rmap(filekind)
                    for change in rmap.difference(rmap.insert_reference(path)):
                        if diff.diff_action(change) == "replace":
                            old, _ = diff.diff_replace_old_new(change)
                            self._fetch_reference(old, instrument)

    def _fetch_reference(self, name: str, instrument: str) -> None:
        row = self.site.state.files.get(name)
        if row is None or row.get("absent") or row["size"] > _COMPARED:
            return
        from crds.core import config

        target = Path(config.locate_file(name, self.site.observatory))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            self.site.store.download([Copy(reference_key(name, self.site.observatory), target)])

    # ---- names

    def _rename_references(self) -> dict[str, str]:
        """Give the files their names, and return {name as sent: new name}."""
        from crds.core import utils

        kept = self.submission.form.get("auto_rename", "True") == "False"
        kinds = {
            name: utils.get_file_properties(self.site.observatory, str(self.files / name))
            for name in self.submission.files
        }
        renamed: dict[str, str] = {}

        def reserved(state: State) -> dict[str, Any]:
            renamed.clear()
            for name, (instrument, filekind) in sorted(kinds.items()):
                if kept and state.taken(name):
                    raise BadFilesError(f"there is a file {name} already", remedy="let CRDS rename it")
                new = name if kept else self._reference_name(state, name, instrument, filekind, set(renamed.values()))
                renamed[name] = new
            return {"names": sorted(renamed.values()), "submission": self.submission.id}

        self._reserve(reserved)
        for name, new in renamed.items():
            instrument, filekind = kinds[name]
            self._row(name, self._rewrite(name, new), new, "reference", instrument, filekind)
            self.result.references.append(new)
        self.result.renamed |= renamed
        return renamed

    def _reference_name(self, state: State, name: str, instrument: str, filekind: str, used: set[str]) -> str:
        ending = Path(name).suffix
        if self.site.observatory != "hst":
            stem = f"{self.site.observatory}_{instrument}_{filekind}".lower()
            number = _last(stem, [*state.files, *state.reserved, *used]) + 1
            return f"{stem}_{number:04d}{ending}"
        from crds.hst import locate

        # The name is the time, in steps of two seconds.
        moment = datetime.now(UTC).replace(tzinfo=None)
        while True:
            new = str(locate.generate_unique_name_core(instrument, filekind, ending, moment))
            if not state.taken(new) and new not in used:
                return new
            moment += timedelta(seconds=2)

    def _rewrite(self, name: str, new: str) -> Path:
        """Give a file its name: those of HST have it in their header."""
        path, target = self.files / name, self.files / "renamed" / new
        target.parent.mkdir(exist_ok=True)
        if self.site.observatory == "hst" and name.endswith(".fits") and name != new:
            from crds.misc import uniqname

            more = ["--add-checksum"] if uniqname.has_checksum(str(path)) else []
            # Not as one text, which would be divided at the blanks of a folder's name.
            argv = ["crds.misc.uniqname", "--files", str(path), *_STANDARD, "--fits-errors", *more]
            script = uniqname.UniqnameScript(argv)
            script.rewrite(str(path), str(target))
        else:
            shutil.copyfile(path, target)
        return target

    def _rename_mappings(self) -> dict[str, str]:
        """Give mappings that somebody has written their names, and return {old mapping: new name}."""
        from crds.core import utils
        from crds.refactoring import checksum, refactor

        if other := [name for name in self.submission.files if not name.endswith(".rmap")]:
            raise BadFilesError(f"{other[0]} is no rmap", remedy="submit rmaps: contexts are made of them")
        observatory = self.site.observatory
        kinds = {n: utils.get_file_properties(observatory, str(self.files / n)) for n in sorted(self.submission.files)}
        renamed: dict[str, str] = {}

        def reserved(state: State) -> dict[str, Any]:
            renamed.clear()
            for name, (instrument, filekind) in kinds.items():
                series = f"{observatory}_{instrument}_{filekind}.rmap".lower()
                renamed[name] = _next_mapping(state, series, renamed.values())
            return {"names": sorted(renamed.values()), "submission": self.submission.id}

        self._reserve(reserved)
        replaced: dict[str, str] = {}
        pmap = self._loaded(self.submission.context)
        for name, new in renamed.items():
            instrument, filekind = kinds[name]
            target = self.rules / new
            shutil.copyfile(self.files / name, target)
            with contextlib.suppress(Exception):  # a type that is new has none
                replaced[str(pmap.get_imap(instrument).get_rmap(filekind).name)] = new
            refactor.update_derivation(str(target))
            checksum.update_checksum(str(target))
            self._check_references(new)
            self._row(name, target, new, "mapping", instrument, filekind)
            self.result.mappings.append(new)
        self.result.renamed |= renamed
        for old, new in replaced.items():
            self._compare(old, new)
        return replaced | {name: new for name, new in renamed.items() if new not in replaced.values()}

    def _check_references(self, rmap: str) -> None:
        state = self.site.state
        absent = [name for name in self._loaded(rmap).reference_names() if name not in state.files]
        if absent:
            raise BadFilesError(f"{rmap} names {absent[0]}, which is no file of this CRDS", remedy="submit that first")

    # ---- rules

    def _insert(self, renamed: Mapping[str, str]) -> dict[str, str]:
        """Insert the files into the rules of their types, and return {old rmap: new rmap}."""
        from crds.core import utils
        from crds.refactoring import refactor

        paths = [str(self.files / "renamed" / new) for new in renamed.values()]
        by_type = utils.organize_files(self.site.observatory, paths)
        pmap = self._loaded(self.submission.context)
        old_rmaps: dict[tuple[str, str], str] = {}
        for instrument, filekind in by_type:
            try:
                old_rmaps[instrument, filekind] = str(pmap.get_imap(instrument).get_rmap(filekind).name)
            except Exception as error:
                raise BadFilesError(
                    f"{self.submission.context} has no rules for {filekind} of {instrument}",
                    remedy="submit an rmap first",
                ) from error
        rmaps: dict[str, str] = {}

        def reserved(state: State) -> dict[str, Any]:
            rmaps.clear()
            for old in sorted(old_rmaps.values()):
                rmaps[old] = _next_mapping(state, old, rmaps.values())
            return {"names": sorted(rmaps.values()), "submission": self.submission.id}

        self._reserve(reserved)
        for (instrument, filekind), some in by_type.items():
            old = old_rmaps[instrument, filekind]
            new = self.rules / rmaps[old]
            refactor.rmap_insert_references(str(self.rules / old), str(new), some, observatory=self.site.observatory)
            if not new.exists():
                raise BadFilesError(f"{old} takes none of the {filekind} files", remedy="look at their USEAFTER")
            refactor.update_derivation(str(new), old)
            self._row(old, new, new.name, "mapping", instrument, filekind)
            self._note_replaced(old, new.name, [Path(path).name for path in some])
            self.result.mappings.append(new.name)
            self.result.renamed[old] = new.name
            self._compare(old, new.name)
        return rmaps

    def _note_replaced(self, old: str, new: str, names: Iterable[str]) -> None:
        before = {name for _, name in self.site.mappings.selected(old)}
        after = set(self._loaded(new).reference_names())
        for name in names:
            self._rows[name]["replaces"] = sorted(before - after)

    def _new_context(self, rmaps: Mapping[str, str]) -> None:
        """Make the context that names the new rules."""
        from crds.refactoring import newcontext

        base = self.submission.context
        updates = newcontext.get_update_map(base, list(rmaps.values()))
        names: dict[str, str] = {}

        def reserved(state: State) -> dict[str, Any]:
            names.clear()
            for imap in sorted(updates):
                names[imap] = _next_mapping(state, imap, names.values())
            names[base] = contexts.next_context(state)
            return {"names": sorted(names.values()), "submission": self.submission.id}

        self._reserve(reserved)
        newcontext.generate_new_contexts(base, updates, names)
        newcontext.update_header_names({old: str(self.rules / new) for old, new in names.items()})
        self.result.context = names[base]
        for old, new in sorted(names.items()):
            instrument = "" if old == base else old.split("_")[1]
            self._row(old, self.rules / new, new, "mapping", instrument, "")
            self.result.mappings.append(new)
            self.result.renamed[old] = new
            self._compare(old, new, logical=False)

    def _compare(self, old: str, new: str, *, logical: bool = True) -> None:
        """Note how two mappings differ."""
        from crds import diff

        before, after = ((self.rules / name).read_text(encoding="utf-8").splitlines() for name in (old, new))
        said = []
        if logical:
            for change in diff.mapping_diffs(
                str(self.rules / old), str(self.rules / new), observatory=self.site.observatory
            ):
                said.append(" ".join(str(part) for part in diff.remove_diff_paths(change)))
        text = "\n".join(difflib.unified_diff(before, after, old, new, lineterm=""))
        self.result.differences.append({"old": old, "new": new, "logical": said, "text": text})

    # ---- the end

    def _row(self, sent: str, path: Path, name: str, kind: str, instrument: str, filekind: str) -> None:
        form = self.submission.form
        row: dict[str, Any] = {
            "size": path.stat().st_size,
            "sha1": crds_cache.sha1(path),
            "type": kind,
            "instrument": instrument.lower(),
            "filekind": filekind.lower(),
            "state": AVAILABLE[0] if kind == "mapping" or self.site.settings.archive == "none" else "delivered",
            "delivered": now(),
            "deliverer": self.submission.user,
            "creator": form.get("creator", ""),
            "description": form.get("description", ""),
            "change_level": form.get("change_level", ""),
            "submission": self.submission.id,
            **(
                {"uploaded_as": sent, "sha1_sent": self._sent[sent]}
                if sent in self.submission.files
                else {"derived_from": sent}
            ),
        }
        if kind == "reference":
            row |= _provenance(path)
        self._rows[name] = row

    def _send(self) -> None:
        """Bring all to the store, where nobody looks for it yet."""
        references = [
            Copy(reference_key(name, self.site.observatory), self.files / "renamed" / name)
            for name in self.result.references
        ]
        mappings = [Copy(mapping_key(name, self.site.observatory), self.rules / name) for name in self.result.mappings]
        for some in (references, mappings):
            sent = self.site.store.upload(some, create=True)
            if absent := [copy.key for copy in some if copy.key not in sent]:
                raise ReferencesError(
                    f"{self.site.store.url(absent[0])} is there already", remedy="submit the files again"
                )

    def _end(self, kind: str, more: dict[str, Any]) -> None:
        """Add the event that says what came of it."""
        one = self.submission.id
        key = self.site.journal.keep(result_key(self.site, one, self.attempt, kind), vars(self.result))
        rows = ""
        if self._rows and kind == "ready":
            rows = self.site.journal.keep(rows_key(self.site, one, self.attempt), self._rows)
        floats = self.submission.form.get("pmap_mode", "pmap_edit") == "pmap_edit"

        def ended(state: State) -> dict[str, Any]:
            known = state.submissions[one]["state"]
            if known != "started":
                raise InputError(f"submission {one} is {known} meanwhile", remedy="submit your files again")
            names = {"mappings": self.result.mappings, "rows": rows, "floats": floats}
            return {"submission": one, "result": key, "attempt": self.attempt, **names, **more}

        why = self.submission.form.get("description", "")
        self.site.journal.append(kind, self.submission.user, why or f"{self.result.errors} errors", ended)

    def _reserve(self, decide: Callable[[State], dict[str, Any]]) -> None:
        self.site.journal.append("reserved", self.submission.user, self.submission.id, decide)

    def _loaded(self, name: str) -> Any:  # noqa: ANN401 - crds has no types
        from crds.core import rmap

        return rmap.fetch_mapping(str(self.rules / name))

    def _heard(self, kind: str, text: str) -> None:
        self.result.errors += kind == "error"
        self.result.warnings += kind == "warning"
        # Where this process works is nobody's business.
        for line in text.replace(f"{self._folder}/", "").splitlines():
            self.result.lines.append(f"{kind.upper()} {line.strip()}")
            self._say(kind, line.strip())
        del self.result.lines[:-_LINES]

    def _must(self, so: bool, otherwise: str) -> None:
        if not so:
            raise BadFilesError(otherwise, remedy="sort your files")

    def _stop_if_errors(self, what: str) -> None:
        if self.result.errors:
            plural = "s" * (self.result.errors != 1)
            raise BadFilesError(f"{what}: {self.result.errors} error{plural}", remedy="see the messages")


def _must_be_data(path: Path, observatory: str) -> None:
    """Raise BadFilesError unless a mapping that somebody has written is nothing but data.

    crds runs mappings after a look at them which names of Python pass; what comes from outside is looked at before.
    """
    try:
        header, _ = crds_rules.parse(_counted(path.read_text(encoding="utf-8")).encode())
        said = str(header["observatory"]).lower()
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise BadFilesError(
            f"{path.name} is no mapping ({type(error).__name__}: {' '.join(str(error).split())[:160]})",
            remedy="write literals only",
        ) from error
    if said != observatory:
        raise BadFilesError(f"{path.name} is of {said[:40]}", remedy=f"this is the CRDS of {observatory}")
    schema = str(header.get("schema_uri") or "asdf:")
    if not re.match(r"asdf:|https?:", schema):
        raise BadFilesError(f"{path.name}: {schema[:80]!r} is no schema", remedy="name one by asdf:// or http://")


def _must_be_its_name(path: Path, observatory: str) -> None:
    """Raise BadFilesError if an rmap, whose checksum is right, is called as one of another kind than it is."""
    from crds.core import utils

    if path.suffix != ".rmap":
        return
    header, _ = crds_rules.parse(path.read_bytes())
    kind = [str(header.get(field, "")).lower() for field in ("instrument", "filekind")]
    named = [str(one).lower() for one in utils.get_file_properties(observatory, str(path))]
    if str(header.get("mapping", "")).lower() != "reference" or kind != named:
        raise BadFilesError(
            f"{path.name} is called one of {' '.join(named)}, and says that it is of {' '.join(kind)[:80]}",
            remedy="give it the name of its kind, or one without any",
        )


def _counted(text: str) -> str:
    """Return a mapping with the checksum that it should have."""
    text = text if "sha1sum" in text else text.replace("{", "{\n'sha1sum' : '',\n", 1)
    right = crds_rules.checksum(text)
    return re.sub(r"(['\"]sha1sum['\"]\s*:\s*)['\"][^'\"]*['\"]", rf"\g<1>'{right}'", text, count=1)


def _next_mapping(state: State, old: str, used: Iterable[str]) -> str:
    """Return the name after the last one of a series: ``hst_cos_0306.imap`` -> ``hst_cos_0307.imap``."""
    match = _SERIAL.fullmatch(Path(old).name)
    assert match is not None  # noqa: S101 - names of files have been checked
    stem, ending = match[1], match[3]
    return f"{stem}_{_last(stem, [*state.files, *state.reserved, *used], ending) + 1:04d}{ending}"


def _last(stem: str, names: Iterable[str], ending: str = "") -> int:
    pattern = re.compile(rf"{re.escape(stem)}_(\d+)" + (re.escape(ending) if ending else r"\.\w+"))
    same = (name for name in names if name.startswith(stem))
    return max((int(match[1]) for name in same if (match := pattern.fullmatch(name))), default=0)


def _provenance(path: Path) -> dict[str, str]:
    """Return what a reference says of itself."""
    from crds import data_file

    try:
        header = data_file.get_unconditioned_header(str(path))
    except Exception:  # noqa: BLE001 - certify has said what is to be said of it
        return {}
    found = {name: str(header.get(keyword, "")) for name, keyword in _PROVENANCE.items()}
    return {name: text[:4000] for name, text in found.items() if text and text != "UNDEFINED"}


class _Handler(logging.Handler):
    """Passes on what crds says."""

    def __init__(self, heard: Say) -> None:
        super().__init__()
        self._heard_by = heard

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.INFO:
            kind = {logging.INFO: "info", logging.WARNING: "warning"}.get(record.levelno, "error")
            self._heard_by(kind, record.getMessage())


@contextlib.contextmanager
def _listening(heard: Say) -> Iterator[None]:
    from crds.core import log

    logger = logging.getLogger("CRDS")
    handler = _Handler(heard)
    logger.addHandler(handler)
    log.reset()
    try:
        yield
    finally:
        logger.removeHandler(handler)
