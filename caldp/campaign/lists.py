"""Lists of datasets, as people and events bring them, and what they ask for besides.

A list is read to its end: who gave it hears of every name that is none, with its line, at once.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote_plus

from caldp.dataset import OTHER_LETTERS, Dataset
from caldp.errors import UnsupportedError, UsageError
from caldp.store import parse_uri

#: What a list may have at most: bytes (unpacked), and entries, good and bad.
LARGEST, MOST = 64 << 20, 1_000_000

#: So many names that are none, or such a share of a list of more than a thousand, and it is the wrong file.
_MOST_INVALID, _LARGEST_SHARE, _LONG = 100, 0.01, 1000

#: Rejected entries that a message names, and characters of each.
_NAMED, _SHOWN = 5, 80

_LINE = re.compile(r".*\n|.+")
_TOKEN = re.compile(r"[^\s,]+")
_PLACED = re.compile(r"(?:.*/)?(?:messages|control)/placed/[^/]+", re.DOTALL)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}

#: Columns of CSV; the last one is another word for the first, and looks like a dataset's name.
_COLUMNS = ("dataset", "memory_rung", "time_limit", "ipppssoot")

#: Containers in containers that YAML may have: a list in a mapping, and one to complain of.
_DEEPEST = 3

#: Characters of a dropped list's name that its batch is called by.
_STEM = 48


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry of a list that is not calibrated.

    Attributes
    ----------
    line : int
        Where it is: line, or in JSON and direct requests the number of the entry; 0 when it came from no list.
    text : str
        Its beginning.
    reason : str
        Why not.
    """

    line: int
    text: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{f'at {self.line}: ' if self.line else ''}{self.text!r} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Override:
    """What a list says of one dataset.

    Attributes
    ----------
    rung : str
        Step of the memory ladder; empty if it says nothing.
    time_limit : int
        Seconds; 0 if it says nothing.
    """

    rung: str = ""
    time_limit: int = 0


@dataclass(frozen=True)
class DatasetList:
    """A list that was read.

    Attributes
    ----------
    datasets : tuple of str
        Sorted, each once, in lower case.
    overrides : mapping
        What the list says of some of them.
    rejected : tuple of Rejected
        Entries that are not calibrated, in their order.
    duplicates : int
        Entries that were there before.
    options : mapping
        The fields beside ``datasets``, as given: see ``Options.of``.
    """

    datasets: tuple[str, ...]
    overrides: Mapping[str, Override] = field(default_factory=lambda: MappingProxyType({}))
    rejected: tuple[Rejected, ...] = ()
    duplicates: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def entries(self) -> int:
        """How many entries the list had, good and bad."""
        return len(self.datasets) + self.duplicates + len(self.rejected)


# ---- reading


def read(data: bytes, name: str) -> DatasetList:
    """Read a list.

    Parameters
    ----------
    data : bytes
        The file: UTF-8, UTF-16 with its mark, or Latin-1.
    name : str
        What it is called; the extension tells its form: ``.txt``, ``.ids`` or none, ``.csv``, ``.json``, ``.yaml`` or
        ``.yml``, each also with ``.gz``.

    Returns
    -------
    DatasetList

    Raises
    ------
    UsageError
        If the file is none of these, too large, or has no dataset in it.
    """
    path = PurePosixPath(name)
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
        data = _unzipped(data, name)
    if len(data) > LARGEST:
        raise _too_large(name)
    form = _FORMS.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"{name}: lists do not end in {path.suffix}", remedy="give .txt, .ids, .csv, .json, .yaml or .yml"
        )
    found = _Collector(name)
    form(found, _text(data, name))
    return found.result()


def of_mapping(fields: Mapping[str, Any]) -> DatasetList:
    """Read a list that is part of a request.

    Parameters
    ----------
    fields : mapping
        ``datasets``, a list of names or one text that is split at white space, and options.

    Returns
    -------
    DatasetList

    Raises
    ------
    UsageError
        If there is no dataset in it.
    """
    found = _Collector("the request")
    _take(found, fields)
    return found.result()


class _Collector:
    """Gathers the entries of a list."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.options: Mapping[str, Any] = MappingProxyType({})
        self._found: dict[str, Override | None] = {}
        self._contradicted: dict[str, int] = {}
        self._rejected: list[Rejected] = []
        self._duplicates = 0

    def add(self, text: str, line: int, override: Override | None = None) -> None:
        """Take one entry."""
        try:
            name = Dataset.parse(text).name
        except UnsupportedError:
            self.reject(text, line, f"instrument not supported: {OTHER_LETTERS[text[0].lower()]}")
            return
        except UsageError:
            self.reject(text, line, "not an HST dataset name" if text else "empty")
            return
        if name in self._found:
            self._duplicates += 1
            override = self._merged(name, override, line)
        self._found[name] = override
        self._check_size()

    def reject(self, text: str, line: int, reason: str) -> None:
        """Enter something that is not calibrated."""
        self._rejected.append(Rejected(line, text[:_SHOWN], reason))
        self._check_size()

    def _check_size(self) -> None:
        if len(self._found) + self._duplicates + len(self._rejected) > MOST:
            raise UsageError(f"{self.name} has more than {MOST:,} entries", remedy="split it")

    def _merged(self, name: str, override: Override | None, line: int) -> Override | None:
        """Return what two entries of one dataset say of it together, whichever came first."""
        known = self._found[name]
        if override is None or known is None:
            return override or known
        both = Override(known.rung or override.rung, known.time_limit or override.time_limit)
        if both != Override(override.rung or known.rung, override.time_limit or known.time_limit):
            self._contradicted.setdefault(name, line)
        return both

    def error(self, what: str) -> UsageError:
        """Return what to raise when the whole is of no use."""
        return UsageError(f"{self.name}: {what}", remedy="give a list of datasets")

    def result(self) -> DatasetList:
        """Return all of it."""
        for name, line in self._contradicted.items():
            del self._found[name]
            self._rejected.append(Rejected(line, name, "given twice, with different memory rungs or time limits"))
        if not self._found:
            raise self.error("there is no dataset in it" + _examples(self._rejected))
        overrides = {name: said for name, said in self._found.items() if said and said != Override()}
        return DatasetList(
            tuple(sorted(self._found)),
            MappingProxyType(overrides),
            tuple(self._rejected),
            self._duplicates,
            self.options,
        )


def _unzipped(data: bytes, name: str) -> bytes:
    """Unpack no more than a list may have."""
    unpacker, pieces, size = zlib.decompressobj(zlib.MAX_WBITS | 16), [], 0
    try:
        while data and size <= LARGEST:
            pieces.append(unpacker.decompress(data, LARGEST + 1 - size))
            size += len(pieces[-1])
            data = unpacker.unconsumed_tail
            if unpacker.eof and unpacker.unused_data:  # files that were put together
                data, unpacker = unpacker.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 16)
    except zlib.error as error:
        raise UsageError(f"{name} cannot be unpacked ({error})", remedy="give it as it was packed by gzip") from error
    if size > LARGEST:
        raise _too_large(name)
    if not unpacker.eof:
        raise UsageError(f"{name} cannot be unpacked (its end is missing)", remedy="give all of it")
    return b"".join(pieces)


def _too_large(name: str) -> UsageError:
    return UsageError(f"{name} is larger than {LARGEST >> 20} MiB", remedy="split it")


def _text(data: bytes, name: str) -> str:
    """Decode a file, with line ends as they are here."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0" if is_utf16 else data.decode("latin-1")  # of the names nothing is lost: they are ASCII
    if "\0" in text:
        raise UsageError(f"{name} is not text", remedy="give a list of datasets")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> Iterator[str]:
    """Return one line after the other: all at once would be as much memory again."""
    return (match[0] for match in _LINE.finditer(text))


def _take_text(found: _Collector, text: str) -> None:
    for number, line in enumerate(_lines(text), start=1):
        for match in _TOKEN.finditer(line.partition("#")[0]):
            found.add(match[0], number)


def _take_csv(found: _Collector, text: str) -> None:
    rows = csv.reader(_lines(text), strict=True)  # else a quotation mark too many swallows what follows
    columns: dict[str, int] = {}
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if not columns:
                heading = [cell.lower() for cell in cells]
                columns = {name: heading.index(name) for name in _COLUMNS if name in heading}
                is_heading = bool(columns)
                columns.setdefault("dataset", columns.get("ipppssoot", 0))
                if is_heading:
                    continue
            entry = {name: cells[place] for name, place in columns.items() if place < len(cells)}
            try:
                override = _override(entry)
            except ValueError as error:
                found.reject(entry.get("dataset", ""), rows.line_num, str(error))
            else:
                found.add(entry.get("dataset", ""), rows.line_num, override)
    except csv.Error as error:
        raise found.error(f"line {rows.line_num} is not CSV ({error})") from error


def _override(entry: Mapping[str, str]) -> Override | None:
    rung, limit = entry.get("memory_rung"), entry.get("time_limit")
    return Override(_rung(rung) if rung else "", _seconds(limit) if limit else 0) if rung or limit else None


def _take_json(found: _Collector, text: str) -> None:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise found.error(f"it is not JSON ({error})") from error
    _take(found, value)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping whose keys are each there once: of two lists of datasets one would be lost."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"{key[:_SHOWN]!r} is there twice")
        made[key] = value
    return made


def _take_yaml(found: _Collector, text: str) -> None:
    import yaml

    # The parser's events, not a loader: nothing is ever constructed, names stay as they are written, a million of them
    # need neither minutes nor gigabytes, and what is nested too deeply cannot overflow the stack, as PyYAML lets it.
    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def until(end: type) -> Iterator[Any]:
        return takewhile(lambda event: not isinstance(event, end), events)

    def built(event: Any, depth: int = 0) -> Any:  # noqa: ANN401 - whatever is in the file
        if isinstance(event, yaml.ScalarEvent):
            return event.value
        if depth == _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(event, yaml.SequenceStartEvent):
            return [built(entry, depth + 1) for entry in until(yaml.SequenceEndEvent)]
        if isinstance(event, yaml.MappingStartEvent):
            return _once((named(key), typed(next(events), depth + 1)) for key in until(yaml.MappingEndEvent))
        raise ValueError("there is an alias in it")

    def named(event: Any) -> str:  # noqa: ANN401
        if not isinstance(event, yaml.ScalarEvent):
            raise ValueError("the name of a field is not text")
        return str(event.value)

    def typed(event: Any, depth: int) -> Any:  # noqa: ANN401
        value = built(event, depth)
        if isinstance(value, str) and event.implicit[0] and len(value) <= _SHOWN:
            with suppress(yaml.YAMLError, ValueError):
                said = yaml.safe_load(value)
                return said if said is None or isinstance(said, bool | int | float) else value
        return value

    try:
        for begin in (yaml.StreamStartEvent, yaml.DocumentStartEvent):
            if not isinstance(next(events), begin):
                raise ValueError("it is empty")
        value = built(next(events))
        if not isinstance([next(events), next(events)][1], yaml.StreamEndEvent):
            raise ValueError("it has more than one document")
    except (yaml.YAMLError, ValueError) as error:
        raise found.error(f"it is not YAML of a list or a mapping ({error})") from error
    _take(found, value)


def _take(found: _Collector, value: object) -> None:
    """Take a list of names, one text of them, or a mapping that has one of these beside options."""
    if isinstance(value, Mapping):
        if "datasets" not in value:
            raise found.error("it has no field 'datasets'")
        found.options = MappingProxyType({str(key): given for key, given in value.items() if key != "datasets"})
        value = value["datasets"]
    if isinstance(value, str):
        # Split, never iterated: each of its letters would become a job.
        value = [match[0] for match in _TOKEN.finditer(value)]
    if not isinstance(value, list | tuple):
        raise found.error("datasets are neither a list nor text")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, str):
            found.reject("", number, f"not a name but {type(entry).__name__}")
        for text in _TOKEN.findall(entry) or [""] if isinstance(entry, str) else ():
            found.add(text, number)


#: Extension -> what reads it.
_FORMS: Mapping[str, Callable[[_Collector, str], None]] = {
    "": _take_text,
    ".txt": _take_text,
    ".ids": _take_text,
    ".csv": _take_csv,
    ".json": _take_json,
    ".yaml": _take_yaml,
    ".yml": _take_yaml,
}


# ---- what is asked for


@dataclass(frozen=True)
class Options:
    """What to do with a list.

    Attributes
    ----------
    output : str
        URI: the batch directory of a command, or what the trigger puts batches under; empty where nobody said.
    batch : str
        Name of the batch; empty for one that ``batch_name`` makes.
    input, config, context : str
        Handed to the jobs; an empty context is the current one.
    job_definition, job_queue : str
        Instead of those of the class.
    rung, time_limit : str, int
        Instead of those that are planned; seconds.
    timeout_scale : float
        Multiplies the time limits that are planned.
    existing : str
        ``skip``, ``error`` or ``overwrite``: what to do with datasets that were processed in this batch before.
    on_invalid : str
        ``skip`` or ``reject``: what a name does that is none.
    canary : float or None
        Share of the list that goes first; None for that of the settings.
    dry_run : bool
        Write nothing.
    share : str
        Fair-share identifier.
    label : str
        Who wants it, and why.
    """

    output: str = ""
    batch: str = ""
    input: str = "astroquery:"
    config: str = "caldp-config-aws"
    context: str = ""
    job_definition: str = ""
    job_queue: str = ""
    rung: str = ""
    time_limit: int = 0
    timeout_scale: float = 1.0
    existing: str = "skip"
    on_invalid: str = "skip"
    canary: float | None = None
    dry_run: bool = False
    share: str = "prompt"
    label: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any], **defaults: Any) -> Options:  # noqa: ANN401 - of any field
        """Read the fields of a request.

        Parameters
        ----------
        fields : mapping
            As whoever sent it named them, for example ``s3_output_path``; None counts as not given.
        **defaults
            By the names of the attributes: what the command line or the deployment says.  They are trusted.

        Returns
        -------
        Options

        Raises
        ------
        UsageError
            If a field is unknown or makes no sense; it tells all that is wrong.
        """
        given: dict[str, tuple[str, Any]] = {}
        mistakes = []
        for name, value in fields.items():
            if value is None or name == "datasets":
                continue
            if name not in _FIELDS:
                mistakes.append(f"there is no field {str(name)[:_SHOWN]!r}")
                continue
            attribute, check = _FIELDS[name]
            try:
                checked = check(value)
            except ValueError as error:
                mistakes.append(f"{name}: {error}, not {_shown(value)}")
                continue
            other, known = given.setdefault(attribute, (name, checked))
            if known != checked:
                mistakes.append(f"{other} and {name} differ")
        if mistakes:
            raise UsageError("; ".join(mistakes), remedy="correct the request")
        return cls(**{**defaults, **{attribute: value for attribute, (_, value) in given.items()}})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Options:
        """Read the JSON form; unknown fields are ignored."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__ if name in record})


def _shown(value: object) -> str:
    return repr(value[:_SHOWN] if isinstance(value, str) else value)[: _SHOWN + 2]


def _matching(pattern: str, hint: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        is_text = isinstance(value, str | int) and not isinstance(value, bool)
        if not is_text or not re.fullmatch(pattern, str(value)):
            raise ValueError(hint)
        return str(value)

    return check


def _one_of(*words: str) -> Callable[[object], str]:
    return _matching("|".join(words), f"give {', '.join(words[:-1])} or {words[-1]}")


def _number(value: object, least: float, most: float, hint: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(hint)
    return float(value)


def _rung(value: object) -> str:
    """Return the name of a step of the memory ladder; whether there is one of this name, only settings know."""
    text = _matching(r"[A-Za-z0-9._-]{1,16}", "give a memory rung such as 8g")(value).lower()
    return f"{text}g" if text.isdigit() else text


def _seconds(value: object) -> int:
    """Return a time limit, given in seconds or with a unit."""
    text = _matching(r"[0-9]{1,7}[smh]?", "give seconds, or a time such as 20m or 6h")(value)
    number = text.rstrip("smh")
    if int(number) < 1:
        raise ValueError("give a time of 1 s or more")
    return int(number) * _SECONDS[text[len(number) :]]


def _output(value: object) -> str:
    text = _matching(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x20\x7f]*)?", "give s3://bucket/prefix")(value)
    text = text.rstrip("/")
    if {"", ".", ".."} & set(text.removeprefix("s3://").split("/")):
        raise ValueError("give s3://bucket/prefix, each part with a name")
    return text


def _input(value: object) -> str:
    text = _matching(r"[^\x00-\x1f\x7f]+", "give astroquery:, s3://bucket/prefix or file:<directory>")(value)
    try:
        parse_uri(text)
    except UsageError as error:
        raise ValueError(error.remedy) from error
    return text


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


#: What a batch may be called: one that is all dots would lead out of the output, and it becomes a tag of jobs.
_BATCH = _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "give 1 to 64 letters, digits and ._-")


def checked_name(batch: str) -> str:
    """Return the name of a batch; UsageError if none can be called so."""
    try:
        return str(_BATCH(batch))
    except ValueError as error:
        raise UsageError(f"no batch can be called {_shown(batch)}", remedy=str(error)) from error


#: Field of a request -> attribute of the options, and what checks and reads it.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    "s3_output_path": ("output", _output),
    "s3_output_bucket": ("output", lambda v: _output(v if str(v).startswith("s3:") else f"s3://{v}")),
    "batch": ("batch", _BATCH),
    "input": ("input", _input),
    # A script that jobs run: whoever may send a request chooses among those of the image, and brings none.
    "config": ("config", _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "give the name of a config script")),
    "crds_context": ("context", _matching(r"hst_[0-9]{4}\.pmap", "give a CRDS context such as hst_0729.pmap")),
    "job_definition": (
        "job_definition",
        _matching(r"[A-Za-z0-9_-]{1,128}(:[0-9]{1,9})?", "give the name of a job definition"),
    ),
    "job_queue": ("job_queue", _matching(r"[A-Za-z0-9_-]{1,128}", "give the name of a job queue")),
    "memory_rung": ("rung", _rung),
    "time_limit": ("time_limit", _seconds),
    "timeout_scale": ("timeout_scale", lambda v: _number(v, 0.01, 100, "give a number from 0.01 to 100")),
    "existing": ("existing", _one_of("skip", "error", "overwrite")),
    "on_invalid": ("on_invalid", _one_of("skip", "reject")),
    "canary": ("canary", lambda v: _number(v, 0, 1, "give a share from 0 to 1")),
    "dry_run": ("dry_run", _yes_or_no),
    "share": ("share", _matching(r"[A-Za-z0-9]{1,255}", "give letters and digits")),
    "label": ("label", _matching(r"[^\x00-\x1f\x7f]{0,200}", "give at most 200 characters in one line")),
}


def check_invalid(listed: DatasetList, options: Options) -> None:
    """Refuse a list with names that are none, if it was to have none, or has so many that it is the wrong file.

    Parameters
    ----------
    listed : DatasetList
        The list.
    options : Options
        Say whether it was to have none.

    Raises
    ------
    UsageError
        If it is refused; it names the first few.
    """
    invalid, entries = len(listed.rejected), listed.entries
    is_wrong_file = invalid > _MOST_INVALID or entries > _LONG and invalid > _LARGEST_SHARE * entries
    if invalid and (is_wrong_file or options.on_invalid == "reject"):
        raise UsageError(
            f"{invalid:,} of {entries:,} entries are no datasets that can be calibrated{_examples(listed.rejected)}",
            remedy="check that it is the right file" if is_wrong_file else "correct them, or let them be skipped",
        )


def _examples(rejected: Sequence[Rejected]) -> str:
    more = f" and {len(rejected) - _NAMED:,} more" if len(rejected) > _NAMED else ""
    return ": " * bool(rejected) + ", ".join(str(entry) for entry in rejected[:_NAMED]) + more


def check_allowed(
    options: Options,
    *,
    buckets: Collection[str] = (),
    job_definitions: Collection[str] = (),
    job_queues: Collection[str] = (),
) -> None:
    """Refuse what a deployment does not let a request choose, for a request commands.

    Parameters
    ----------
    options : Options
        What was asked for.
    buckets, job_definitions, job_queues : collection of str, optional
        What may be chosen.  An output and a definition or queue that were not given are not looked at.

    Raises
    ------
    UsageError
        If something else was chosen; it tells all of it.
    """
    bucket = parse_uri(options.output)[1].lstrip("/").partition("/")[0] if options.output else ""
    chosen = (
        ("bucket", bucket, buckets),
        ("job definition", options.job_definition, job_definitions),
        ("job queue", options.job_queue, job_queues),
    )
    mistakes = [f"{what} {name!r}" for what, name, allowed in chosen if name and name not in allowed]
    if mistakes:
        raise UsageError(f"not on the list of this deployment: {', '.join(mistakes)}", remedy="choose one that is")


def batch_name(options: Options, stem: str = "", etag: str = "", datasets: Iterable[str] = ()) -> str:
    """Name the batch of a request: the same one for the same request, however often it arrives.

    Parameters
    ----------
    options : Options
        May name it.
    stem, etag : str, optional
        Of the object that a list was dropped as: its name without folder and extension, and its tag.
    datasets : iterable of str, optional
        The list, for a request that was no object.

    Returns
    -------
    str
    """
    if options.batch:
        return options.batch
    tag = re.sub(r"[^A-Za-z0-9]", "", etag)[:8]
    if tag:
        # No dots: AWS Batch, whose jobs are called after it, knows none.
        name = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-_")[:_STEM] or "list"
        return f"{name}-{tag}"
    asked = replace(options, dry_run=False, label="").to_json()
    canonical = json.dumps({"datasets": sorted(set(datasets)), **asked}, sort_keys=True)
    return f"batch-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def placed(event: object) -> list[tuple[str, str]]:
    """Find the lists that an event says were dropped.

    Parameters
    ----------
    event : object
        A notification of S3, an event of EventBridge, or either in messages of SQS; anything else tells of none.

    Returns
    -------
    list of (str, str)
        Buckets and keys, of objects in ``messages/placed/`` and ``control/placed/`` only.
    """
    return [found for found in dict.fromkeys(_created(event)) if _PLACED.fullmatch(found[1])]


def _created(event: object) -> Iterator[tuple[str, str]]:
    """Find the objects that were created."""
    for record in _list(_get(event, "Records")):
        if isinstance(body := _get(record, "body"), str):
            yield from _created(_parsed(body))
        elif str(_get(record, "eventName")).startswith("ObjectCreated:"):
            yield from _object(_get(record, "s3"), unquote_plus)  # only here are keys encoded
    if _get(event, "detail-type") == "Object Created":
        yield from _object(_get(event, "detail"), str)


def _object(place: object, decode: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    bucket, key = _get(_get(place, "bucket"), "name"), _get(_get(place, "object"), "key")
    if isinstance(bucket, str) and isinstance(key, str):
        yield bucket, decode(key)


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
