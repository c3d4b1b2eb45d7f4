"""A reporter that remembers what it was told."""

from __future__ import annotations

from caldp.reporter import Outcome


class FakeReporter:
    """Remembers every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.progressed: list[tuple[str, int, int]] = []
        self.outcome: Outcome | None = None

    def start(self, dataset: str) -> None:
        self.events.append(("start", dataset))

    def stage(self, name: str) -> None:
        self.events.append(("stage", name))

    def line(self, program: str, text: str) -> None:
        self.events.append(("line", program, text))

    def memory(self, resident: int) -> None:
        pass

    def progress(self, what: str, done: int, total: int) -> None:
        self.progressed.append((what, done, total))

    def message(self, level: str, text: str) -> None:
        self.events.append(("message", level, text))

    def stage_done(self, name: str, seconds: float) -> None:
        self.events.append(("stage_done", name))

    def finish(self, outcome: Outcome) -> None:
        self.events.append(("finish",))
        self.outcome = outcome
