"""Which references of a context are put into a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caldp.crds_rules import Rules
from caldp.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """Which references of a context to put into the store.

    Attributes
    ----------
    instruments : tuple of str
        All of these instruments.
    names : frozenset of str
        These.
    everything : bool
        All of the context.

    Without any of them, those that the cache has.
    """

    instruments: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    everything: bool = False

    @property
    def strict(self) -> bool:
        """Whether the cache must have them."""
        return bool(self.instruments or self.names or self.everything)

    def of(self, rules: Rules) -> frozenset[str]:
        """Return the names."""
        unknown = sorted(set(self.instruments) - set(rules.references))
        if unknown:
            raise UsageError(
                f"{rules.context} has no rules for {', '.join(unknown)}",
                remedy=f"it has {', '.join(sorted(rules.references))}",
            )
        if not self.strict or self.everything:
            return rules.all_references
        return self.names.union(*(rules.references[instrument] for instrument in self.instruments))


def needed(datasets: Sequence[str], source: str, config: str, cache: Path, context: str) -> frozenset[str]:
    """Return the names of the references that datasets need.

    Parameters
    ----------
    datasets : sequence of str
        Their names.
    source : str
        URI of their raw data.
    config : str
        Config script.
    cache : Path
        CRDS cache to choose from, as it is.
    context : str
        CRDS context.

    Returns
    -------
    frozenset of str
    """
    from caldp import inputs, references
    from caldp.process import Interrupts, Job, Request, opened
    from caldp.reporter import QuietReporter

    names: set[str] = set()
    for dataset in datasets:
        job = Job.prepare(Request(dataset, source, config=config, context=context))
        env = {**job.settings.environment, "CRDS_PATH": str(cache), "CRDS_READONLY_CACHE": "1"}
        settings = replace(
            job.settings, crds_path=cache, crds_readonly=True, crds_server_url="", crds_store="", environment=env
        )
        with opened(replace(job, settings=settings), QuietReporter(None), Interrupts()) as run:
            found = references.survey(run, inputs.fetch(run, source))
        names.update(one.name for one in found.checked)
    return frozenset(names)
