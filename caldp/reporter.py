"""Progress for people, JSON lines for machines, or quiet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass
class Outcome:
    """What one run of one dataset came to: the material of the final summary.

    Attributes
    ----------
    dataset : str
        Its name, as typed when it is not a valid one.
    state : str
        ``processed``, ``skipped``, ``planned`` (dry run), ``error`` (a state was written), ``refused`` (nothing was).
    exit_code : int
        Exit status of the command.
    reason : str
        One line: why it failed, or why nothing was calibrated; empty when all is as expected.
    remedy : str
        What to do about it.
    attempt : int
        Attempt number, 0 when none was begun.
    context : str
        CRDS context, for example ``hst_0729.pmap``.
    products, previews, references, warnings : int
        Counts.
    bytes : int
        Size of the products.
    seconds : float
        Wall time of the run.
    location : str
        Where the products are.
    report : str
        The HTML page.
    scratch : str
        The workspace, when it was kept.
    """

    dataset: str
    state: str = "refused"
    exit_code: int = 0
    reason: str = ""
    remedy: str = ""
    attempt: int = 0
    context: str = ""
    products: int = 0
    previews: int = 0
    references: int = 0
    warnings: int = 0
    bytes: int = 0
    seconds: float = 0.0
    location: str = ""
    report: str = ""
    scratch: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class Reporter(Protocol):
    """What a run tells whoever is watching."""

    def start(self, dataset: str) -> None:
        """The run of ``dataset`` begins."""

    def stage(self, name: str) -> None:
        """A stage begins: fetch, references, calibrate, previews, publish."""

    def line(self, program: str, text: str) -> None:
        """A program printed a line."""

    def memory(self, resident: int) -> None:
        """Resident memory of the running program, in bytes."""

    def message(self, level: str, text: str) -> None:
        """CALDP itself says something; ``level`` is INFO, WARNING or ERROR."""

    def stage_done(self, name: str, seconds: float) -> None:
        """A stage ended after ``seconds`` of wall time."""

    def finish(self, outcome: Outcome) -> None:
        """The run ended; nothing is called after this."""
