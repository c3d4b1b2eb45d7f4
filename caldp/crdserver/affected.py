"""Which datasets a change of contexts affects: those for which crds chooses another reference.

The rule is that of ``crds bestrefs --old-context --new-context --affected-datasets``: types whose rules differ;
datasets exposed since the first reference that came or went applies; a reference that is chosen anew, or no longer,
counts; a dataset for which the new context fails in one of these types is not named, though others of its types change.

``find`` asks crds once for all datasets that agree in what a rule looks at, and for all dates (see ``choices``);
``select_stock`` asks it for every dataset.  Their answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from caldp.crdserver import differences, exposed
from caldp.crdserver.choices import Rule, quiet
from caldp.crdserver.datasets import Datasets, products
from caldp.crdserver.differences import Difference
from caldp.crdserver.stock import Stock
from caldp.crdserver.sweep import Counts, Figures, Sweep
from caldp.crdserver.verdicts import Failure, Reason, compare, summed
from caldp.errors import InputError

#: Rows of which one header after the other is read.
_PAGE = 5000


@dataclass(frozen=True)
class Affected:
    """Which datasets a change of contexts affects.

    Attributes
    ----------
    observatory, old, new : str
        Between which contexts.
    datasets : mapping
        {``PRODUCT:EXPOSURE``: reasons, by type}, instrument after instrument.
    failed : mapping
        {``PRODUCT:EXPOSURE``: failures, by type}: whatever crds would complain of, of datasets affected or not.
    instruments : mapping
        {instrument: Counts}.
    changed : tuple of (str, str, str, str)
        Instrument, type, old and new rules of what differs.
    skipped : mapping
        {instrument: why nothing was looked at}.
    figures : Figures
        What it took.
    """

    observatory: str
    old: str
    new: str
    datasets: Mapping[str, tuple[Reason, ...]] = field(default_factory=dict)
    failed: Mapping[str, tuple[Failure, ...]] = field(default_factory=dict)
    instruments: Mapping[str, Counts] = field(default_factory=dict)
    changed: tuple[tuple[str, str, str, str], ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)

    @property
    def products(self) -> list[str]:
        """The products to be calibrated again, as the client prints them: in lower case, sorted, each once."""
        return products(self.datasets)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; failures, which are long and which many datasets share, are in it once."""
        numbers: dict[tuple[Failure, ...], int] = {}
        by_failed = {name: numbers.setdefault(some, len(numbers)) for name, some in self.failed.items()}
        return {
            "observatory": self.observatory,
            "old": self.old,
            "new": self.new,
            "datasets": {name: [list(one) for one in reasons] for name, reasons in self.datasets.items()},
            "failures": [[list(one) for one in some] for some in numbers],
            "failed": by_failed,
            "instruments": {name: asdict(counts) for name, counts in self.instruments.items()},
            "changed": [list(one) for one in self.changed],
            "skipped": dict(self.skipped),
            "figures": asdict(self.figures),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Affected:
        """Read the JSON form."""
        failures = [tuple(Failure(*one) for one in some) for some in record["failures"]]
        return cls(
            observatory=record["observatory"],
            old=record["old"],
            new=record["new"],
            datasets={name: tuple(Reason(*one) for one in reasons) for name, reasons in record["datasets"].items()},
            failed={name: failures[number] for name, number in record["failed"].items()},
            instruments={name: Counts(**counts) for name, counts in record["instruments"].items()},
            changed=tuple((one[0], one[1], one[2], one[3]) for one in record["changed"]),
            skipped=dict(record["skipped"]),
            figures=Figures(**record["figures"]),
        )


# ---- all datasets at once


def find(
    stock: Stock, old: str, new: str, datasets: Datasets, *, instruments: Collection[str] | None = None
) -> Affected:
    """Return which datasets a change of contexts affects.

    Parameters
    ----------
    stock : Stock
        What evaluates contexts.
    old, new : str
        For example ``hst_0728.pmap``.
    datasets : Datasets
        The catalogue.
    instruments : collection of str, optional
        Look at these only, in lower case.

    Returns
    -------
    Affected

    Raises
    ------
    ReferencesError
        If a context cannot be loaded.
    InputError
        If the catalogue cannot be read.
    """
    if stock.observatory != "hst":  # which types apply, and what keywords are called, depends on each header
        return select_stock(stock, old, new, datasets, instruments=instruments)
    figures = Figures()
    with figures.timed("contexts"):
        difference = differences.find(stock, old, new)
    made: dict[str, Any] = {"datasets": {}, "failed": {}, "instruments": {}, "skipped": {}}
    changed: list[tuple[str, str, str, str]] = []
    with quiet():
        for instrument, kinds in difference.types.items():
            if instruments is not None and instrument not in instruments:
                continue
            with figures.timed("reading"):
                table = datasets.table(instrument)
            with figures.timed("contexts"):
                rules = _rules(stock, (old, new), instrument, kinds)
            changed += [(instrument, kind, before.name, after.name) for kind, (before, after) in rules.items()]
            if not table.rows:
                made["skipped"][instrument] = "the catalogue has no datasets of it"
                continue
            one = Sweep(instrument, table, rules, difference.since.get(instrument, differences.ALWAYS), figures)
            counts, affected, failed = one.find()
            made["instruments"][instrument] = counts
            made["datasets"].update(affected)
            made["failed"].update(failed)
    figures.mappings = len(changed)
    return Affected(stock.observatory, old, new, changed=tuple(changed), figures=figures, **made)


def _rules(
    stock: Stock, contexts: tuple[str, str], instrument: str, kinds: Iterable[str]
) -> dict[str, tuple[Rule, Rule]]:
    """Return the rules of both contexts, by type."""
    imaps = []
    for context in contexts:
        mapping = stock.mapping(context)
        imap = mapping.get_imap(instrument)
        imaps.append((imap, [*imap.get_required_parkeys(), mapping.instrument_key]))
    return {kind: (Rule(imaps[0][0], kind, imaps[0][1]), Rule(imaps[1][0], kind, imaps[1][1])) for kind in kinds}


# ---- one dataset after the other


def select_stock(
    stock: Stock,
    old: str,
    new: str,
    datasets: Datasets,
    *,
    ids: Collection[str] | None = None,
    instruments: Collection[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Affected:
    """Return which datasets a change of contexts affects, by asking crds for each of them.

    Parameters
    ----------
    stock : Stock
        What evaluates contexts.
    old, new : str
        For example ``hst_0728.pmap``.
    datasets : Datasets
        The catalogue.
    ids : collection of str, optional
        Look at these only; both parts, in upper case.
    instruments : collection of str, optional
        Look at these only, in lower case.
    progress : callable, optional
        Called with the number of datasets that were done.

    Returns
    -------
    Affected
        Its counts are of what was looked at.
    """
    figures = Figures()
    with figures.timed("contexts"):
        difference = differences.find(stock, old, new)
    affected: dict[str, tuple[Reason, ...]] = {}
    failed: dict[str, tuple[Failure, ...]] = {}
    counts: dict[str, Counts] = {}
    skipped: dict[str, str] = {}
    with quiet():
        for instrument in difference.types:
            if instruments is not None and instrument not in instruments:
                continue
            since = difference.since.get(instrument, differences.ALWAYS)
            table = datasets.table(instrument)
            names = [(row, name) for row, name in enumerate(table.ids()) if ids is None or name in ids]
            if not names:
                skipped[instrument] = "the catalogue has no datasets of it"
            early = withheld = 0
            types: dict[str, int] = {}
            before = len(affected)
            for start in range(0, len(names), _PAGE):
                page = names[start : start + _PAGE]
                with figures.timed("reading"):
                    headers = table.headers([row for row, _ in page])
                with figures.timed("stock"):
                    for (_, name), header in zip(page, headers, strict=True):
                        if exposed.exposed(header) < since:
                            early += 1
                            continue
                        reasons, failures, is_fatal = _asked(stock, (old, new), difference, header)
                        if reasons and not is_fatal:
                            affected[name] = reasons
                            for reason in reasons:
                                types[reason.type] = types.get(reason.type, 0) + 1
                        withheld += bool(reasons and is_fatal)
                        if failures:
                            failed[name] = failures
                if progress:
                    progress(len(page))
            counts[instrument] = Counts(
                len(names), since, early, len(affected) - before, withheld, dict(sorted(types.items()))
            )
    return Affected(
        stock.observatory,
        old,
        new,
        affected,
        failed,
        {name: one for name, one in counts.items() if one.datasets},
        skipped=skipped,
        figures=figures,
    )


def _asked(
    stock: Stock, contexts: tuple[str, str], difference: Difference, header: Mapping[str, str]
) -> tuple[tuple[Reason, ...], tuple[Failure, ...], bool]:
    """Return what crds says of one dataset."""
    chosen = [stock_choices(stock, context, difference, header) for context in contexts]
    kinds = sorted(set(chosen[0]) | set(chosen[1]))
    return summed(compare(kind, chosen[0].get(kind), chosen[1].get(kind)) for kind in kinds)


def stock_choices(stock: Stock, context: str, difference: Difference, header: Mapping[str, str]) -> dict[str, str]:
    """Return what crds chooses for one dataset, of the types that differ.

    Parameters
    ----------
    stock : Stock
        What evaluates contexts.
    context : str
        Which.
    difference : Difference
        What two contexts differ in.
    header : mapping
        {keyword: text}.

    Returns
    -------
    dict
        {type: reference or ``NOT FOUND ...``}, without types that are left out.

    Raises
    ------
    InputError
        If the header does not say of which instrument it is.
    """
    from crds.core import utils

    mapping = stock.mapping(context)
    try:
        instrument = utils.header_to_instrument(header)
    except KeyError as error:
        raise InputError("a header does not say which instrument it is of", remedy="add INSTRUME") from error
    known = {**header, "INSTRUME": instrument, "META.INSTRUMENT.NAME": instrument}
    kinds = set(difference.types[instrument.lower()])
    try:
        applicable = set(mapping.locate.header_to_reftypes(known, context))
    except Exception:  # noqa: BLE001 - as the client does it: then all of them apply
        applicable = set()
    if applicable and not (kinds := kinds & applicable):
        return {}
    chosen = mapping.get_best_references(mapping.minimize_header(utils.condition_header(known)), sorted(kinds))
    return {str(kind).lower(): name for kind, name in chosen.items()}
