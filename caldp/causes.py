"""What failures have in common, and what is only the dataset's own."""

from __future__ import annotations

import contextlib
import hashlib
import re

from caldp.dataset import Dataset
from caldp.errors import CaldpError
from caldp.reporter import printable

_NAME = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])"

#: What differs between datasets that fail for the same reason, and what stands for it.
_DIFFERING = (
    (re.compile(r"\b[a-z][a-z0-9]*://[^\s,;()'\"]+(?<![.:])"), "<path>"),
    (re.compile(r"(?<![\w.<>~/])~?/[^\s,;()'\"]+(?<![.:])"), "<path>"),
    # Exposures of an association; its reference files begin with a digit, and make a difference.
    (re.compile(_NAME.format(r"(?=[a-z]*[0-9])[ijlo][a-z0-9]{8}"), re.IGNORECASE), "<dataset>"),
    (re.compile(r"(?<!\d)\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?"), "#"),
    # Not what is part of a name (x1d, calwf3.e, 05i1639ml), but 12ms.
    (re.compile(r"(?<![A-Za-z0-9.])\d+(?:[.,:]\d+)*(?:e[+-]?\d+)?(?![A-Za-z]*\d)"), "#"),
)


def normalised(reason: str, dataset: str, run: str = "") -> tuple[str, str]:
    """Take what is the dataset's own out of the reason of a failure.

    Parameters
    ----------
    reason : str
        As the status says it.
    dataset, run : str
        Whose reason it is.

    Returns
    -------
    plain, pattern : str
        In one line: without the name of the dataset and the run; without all that may differ.
    """
    plain = printable(reason)
    names = [dataset, run]
    with contextlib.suppress(CaldpError):
        names.append(Dataset.parse(dataset).root)
    for name in filter(None, names):
        stands_for = "<id>" if name == run else "<dataset>"
        plain = re.sub(_NAME.format(re.escape(name)), stands_for, plain, flags=re.IGNORECASE)
    pattern = plain = plain.removeprefix("<dataset>: ")
    for differing, stands_for in _DIFFERING:
        pattern = differing.sub(stands_for, pattern)
    return plain, pattern


def fingerprint(exit_code: int | None, reason: str, dataset: str, run: str = "") -> str:
    """Return what makes a failure recognizable when it happens again, to this dataset or another.

    Parameters
    ----------
    exit_code : int or None
        Exit status of the run.
    reason, dataset, run : str
        As for ``normalised``.

    Returns
    -------
    str
        12 hexadecimal digits; empty when nothing is known of the failure.
    """
    pattern = normalised(reason, dataset, run)[1]
    if exit_code is None and not pattern:
        return ""
    return hashlib.sha256(f"{exit_code} {pattern}".encode("utf-8", errors="replace")).hexdigest()[:12]
