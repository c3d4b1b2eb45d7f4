"""Why a job ended, and what is to be done about it: one table, whoever ran the job.

Reasons come before exit statuses, which hide them: 137 is a kill for memory, for time, by an operator or by a lost
host.  Any field may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from caldp.messages import Status

#: What a job is terminated with that was submitted a second time; whoever does so begins the reason with it.
DUPLICATE = "Duplicate job"

#: Share of its memory at which a job that was killed is taken to have run out of it.
NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Ended:
    """A job that has ended, as whoever ran it says.

    Attributes
    ----------
    dataset : str
        Its name; empty for a child of an array, whose manifest says it.
    attempt : int
        1, 2, ...
    succeeded : bool
        Whether it ended with success.
    exit_code : int or None
        Exit status.
    reason : str
        What happened to the container (AWS Batch's ``container.reason``).
    status_reason : str
        What happened to the job (``statusReason``).
    job : str
        Name of the job.
    retry : int
        How often the job was started.
    ours : bool
        Whether it is a job of this system.
    memory_limit : int
        What it was given, bytes; 0 when that is not known.
    log : str
        Where its log is.
    manifest : str
        URI of the list of datasets that it is a child of.
    index : int or None
        Its line in there, from 0.
    time_limit : int
        What it was given, seconds; 0 when that is not known.
    output : str
        URI of the batch.
    """

    dataset: str
    attempt: int
    succeeded: bool
    exit_code: int | None
    reason: str = ""
    status_reason: str = ""
    job: str = ""
    retry: int = 1
    ours: bool = True
    memory_limit: int = 0
    log: str = ""
    manifest: str = ""
    index: int | None = None
    time_limit: int = 0
    output: str = ""


@dataclass(frozen=True)
class Evidence:
    """What else is known when a job has ended.

    Attributes
    ----------
    status : Status or None
        How the dataset stands.
    published : int
        Attempt of its manifest, if every file in it was found intact; else 0.
    result : mapping or None
        What the job said of itself (``caldp.result``), if it could.
    """

    status: Status | None = None
    published: int = 0
    result: Mapping[str, Any] | None = None

    def told(self, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Return a field of the job's own record, or None."""
        return self.result.get(name) if isinstance(self.result, Mapping) else None

    def number(self, name: str) -> int:
        """Return a field that holds a number, or 0."""
        value = self.told(name)
        return int(value) if isinstance(value, int | float) and value == value and abs(value) < 2**63 else 0


Match = Callable[[Ended, Evidence], bool]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes
    ----------
    number : int
        Its number; two rows have the same one where what was found decides between two causes.
    cause : str
        Class of the failure.
    action : str
        ``ignore``; ``history`` (it is noted only); ``processed``; ``stop`` (cancelled); ``error``; or it is tried
        again: ``climb`` (more memory), ``longer`` (more time), ``again`` (the same), ``pause`` (when people have
        repaired what is wrong with all jobs).
    said : str
        For people.
    match : callable
        Whether the row is about this end.
    """

    number: int
    cause: str
    action: str
    said: str
    match: Match


@dataclass(frozen=True)
class Verdict:
    """What is to be done about the end of a job.

    Attributes
    ----------
    row : int
        Number of the row.
    cause : str
        Class of the failure.
    climb, longer : bool
        Whether the next attempt needs more memory, more time.
    pause : bool
        Whether the campaign must pause, for all its jobs will fail.
    retry : bool
        Whether another attempt can help.
    said : str
        For people.
    """

    row: int
    cause: str
    climb: bool
    longer: bool
    pause: bool
    retry: bool
    said: str


def _reason(*beginnings: str) -> Match:
    return lambda ended, _: ended.reason.startswith(beginnings)


def _status_reason(*beginnings: str) -> Match:
    return lambda ended, _: ended.status_reason.startswith(beginnings)


def _exit(*codes: int) -> Match:
    return lambda ended, _: ended.exit_code in codes


def _retriable(can_help: bool) -> Match:
    return lambda _, evidence: evidence.told("retriable") is can_help


def _any(*matches: Match) -> Match:
    return lambda ended, evidence: any(match(ended, evidence) for match in matches)


def _is_late(ended: Ended, evidence: Evidence) -> bool:
    """Whether the dataset has gone on, or another job has the attempt: two were submitted, and this was too late."""
    status = evidence.status
    if status is None:
        return False
    owner, job = (name.partition(":")[0] for name in (status.job, ended.job))  # without the place in an array
    is_other = status.attempt == ended.attempt and bool(owner and job) and owner != job
    return ended.attempt < status.attempt or status.done or is_other


def _is_published(ended: Ended, evidence: Evidence) -> bool:
    return evidence.published >= ended.attempt > 0


def _is_cancelled(_: Ended, evidence: Evidence) -> bool:
    return evidence.status is not None and evidence.status.state == "cancelled"


def _has_oom_kill(_: Ended, evidence: Evidence) -> bool:
    return evidence.number("oom_kills") > 0


#: What engines and registries say when no host will ever get the image.
_NO_IMAGE = re.compile(
    r"unauthorized|not authorized|access denied|forbidden|not found|does not exist|no basic auth", re.I
)


def _has_no_image(ended: Ended, _: Evidence) -> bool:
    return ended.reason.startswith("CannotPullContainer") and _NO_IMAGE.search(ended.reason) is not None


def _used_nearly_all(ended: Ended, evidence: Evidence) -> bool:
    limit = evidence.number("memory_limit_bytes") or ended.memory_limit
    return ended.exit_code == 137 and 0 < NEARLY_ALL * limit <= evidence.number("peak_memory_bytes")


#: Tried in order; the first that matches counts.
ROWS: tuple[Row, ...] = (
    Row(1, "foreign", "ignore", "not a job of this system", lambda ended, _: not ended.ours),
    Row(2, "stale", "history", "late news: the dataset has gone on", _any(_is_late, _status_reason(DUPLICATE))),
    Row(3, "processed", "processed", "it had published before it ended", _is_published),
    Row(
        4,
        "cancelled",
        "stop",
        "cancelled by an operator",
        _any(_is_cancelled, _status_reason("Operator cancelled", "Terminated via console")),
    ),
    Row(5, "oom", "climb", "the container was killed for memory", _reason("OutOfMemoryError")),
    Row(6, "oom", "climb", "out of memory", _any(_exit(31, 32, 33, 34), _has_oom_kill)),
    Row(
        7,
        "timeout",
        "longer",
        "stopped at its time limit",
        _status_reason("Job attempt duration exceeded timeout"),
    ),
    Row(8, "host", "again", "its host was lost, or none was found for it", _status_reason("Host EC2", "CAPACITY:")),
    Row(
        9,
        "deployment",
        "pause",
        "no host can start such jobs: repair the image or the compute environment",
        _any(_has_no_image, _status_reason("MISCONFIGURATION:")),
    ),
    Row(
        10,
        "host",
        "again",
        "its host could not run the container",
        _reason(
            "CannotInspectContainer",
            "DockerTimeoutError",
            "CannotStartContainer",
            "CannotCreateContainer",
            "CannotPullContainer",
        ),
    ),
    Row(11, "transient", "again", "it said that trying again can help", _retriable(True)),
    Row(11, "deterministic", "error", "it said that trying again cannot help", _retriable(False)),
    Row(12, "transient", "again", "MAST, S3 or CRDS did not answer", _exit(22, 25, 26, 27)),
    Row(13, "deterministic", "error", "it fails whenever it is tried", _exit(2, 21, 23, 24, 28, 40, 41)),
    Row(14, "host", "again", "its host was being shut down", _exit(143)),
    Row(15, "oom", "climb", "killed when it had used nearly all its memory", _used_nearly_all),
    Row(15, "unknown", "again", "killed, nobody says why", _exit(137)),
    Row(16, "unknown", "again", "it ended well, but nothing was published", lambda ended, _: ended.succeeded),
    Row(17, "unknown", "again", "it failed, nobody says why", lambda ended, evidence: True),
)


def classify(ended: Ended, evidence: Evidence) -> Verdict:
    """Find out why a job ended.

    Parameters
    ----------
    ended : Ended
        What whoever ran it says.
    evidence : Evidence
        What else is known.

    Returns
    -------
    Verdict
    """
    row = next(row for row in ROWS if row.match(ended, evidence))
    return Verdict(
        row.number,
        row.cause,
        climb=row.action == "climb",
        longer=row.action == "longer",
        pause=row.action == "pause",
        retry=row.action in ("climb", "longer", "again", "pause"),
        said=row.said,
    )
