"""What every stage of a run is given besides the value it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from caldp.config import Config
from caldp.dataset import Dataset
from caldp.instruments import Instrument
from caldp.telemetry import Telemetry
from caldp.workspace import Workspace


@dataclass(frozen=True)
class Run:
    """One run of one dataset.

    Attributes
    ----------
    id : str
        Identifies it in the status, the manifest and the workspace.
    dataset : Dataset
        What is calibrated.
    recipe : Instrument
        How.
    config : Config
        With which settings.
    workspace : Workspace
        Where.
    telemetry : Telemetry
        Its log and metrics.
    attempt : int
        Number of the attempt, 0 for a dry run.
    retry : int
        Number of this start of the attempt.
    output : str
        URI of the output.
    started : str
        ISO 8601 in UTC.
    shield : callable
        Called before what must not be cut in two (publication, the error state): from here on a signal waits.
    keep_scratch : bool
        The workspace stays, so its files are copied out instead of moved.
    """

    id: str
    dataset: Dataset
    recipe: Instrument
    config: Config
    workspace: Workspace
    telemetry: Telemetry
    attempt: int
    started: str
    retry: int = 1
    output: str = ""
    shield: Callable[[], None] = lambda: None
    keep_scratch: bool = False

    @property
    def see_log(self) -> str:
        """Where to read more about a failure."""
        return f"see {self.dataset.prefix}/logs/process.txt in the output"
