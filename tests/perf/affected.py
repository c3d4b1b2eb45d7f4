"""Which of many datasets a change of contexts affects, and how long that takes. Prints figures, asserts nothing.

Usage: python tests/perf/affected.py [DATASETS]        (2000000; some ten minutes, most of them to make the catalogue)

The catalogue is synthetic: headers that the rules are for, 300 and then 2,000 distinct ones of each instrument but for
their dates, which are anywhere between 2002 and 2019, to a hundredth of a second.  Each figure is of a process of its
own, on one processor.  Beside it is the rate of the stock client's own evaluation of headers, one after the other, in
both contexts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.desk import DATA  # noqa: E402

INSTRUMENTS = ("acs", "cos", "nicmos", "stis", "wfc3", "wfpc2")
PAIRS = (("hst_0728.pmap", "hst_0729.pmap"), ("hst_0700.pmap", "hst_0729.pmap"), ("hst_0600.pmap", "hst_0729.pmap"))

#: Datasets that the stock client evaluates for its rate.
SAMPLE = 400

MEASURE = """
import json, resource, sys, time
import pyarrow
pyarrow.set_cpu_count(1)
pyarrow.set_io_thread_count(1)
from pathlib import Path
from caldp.crdserver import affected
from caldp.crdserver.datasets import Datasets
from caldp.crdserver.stock import Stock
from caldp.store import open_store
cache, store, old, new, sample = sys.argv[1:]
stock = Stock(Path(cache), "hst")
begun = time.perf_counter()
stock.mapping(old), stock.mapping(new)
loading = time.perf_counter() - begun
datasets = Datasets(open_store(store), "hst")
def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1.024e-3
before = peak()
begun = time.perf_counter()
found = affected.find(stock, old, new, datasets)
total = time.perf_counter() - begun
most = peak()
from crds.core import utils
from caldp.crdserver.choices import quiet
headers = []
for instrument in found.instruments:
    table = datasets.table(instrument)
    headers += table.headers(range(0, table.rows, max(1, table.rows * len(found.instruments) // int(sample))))
from caldp.crdserver import differences
difference = differences.find(stock, old, new)
begun = time.perf_counter()
with quiet():
    for header in headers:
        for context in (old, new):
            affected.stock_choices(stock, context, difference, header)
rate = len(headers) / (time.perf_counter() - begun)
figures = found.figures
print(json.dumps({
    "total": total, "loading": loading, "seconds": figures.seconds, "mappings": figures.mappings, "rows": figures.rows,
    "groups": figures.groups, "affected": len(found.datasets), "failed": len(found.failed), "rate": rate,
    "before": before, "peak": most, "looked": sum(one.datasets for one in found.instruments.values()),
}))
"""


def fill(uri: str, count: int, distinct: int) -> None:
    """Make the catalogue."""
    import numpy as np
    import pyarrow as pa

    from caldp.crdserver.datasets import import_table
    from caldp.crdserver.stock import Stock
    from caldp.store import open_store
    from tests.fakes.headers import LETTERS, Generator

    stock = Stock(DATA / "crds-contexts", "hst")
    contexts = [stock.mapping(name) for name in ("hst_0600.pmap", "hst_0700.pmap", "hst_0729.pmap")]
    drawn = np.random.default_rng(1)
    digits = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    for number, instrument in enumerate(INSTRUMENTS):
        rows = count // len(INSTRUMENTS) + (number < count % len(INSTRUMENTS))
        generator = Generator(contexts, instrument, 1)
        base = [generator.plain() for _ in range(distinct)]
        which = pa.array(drawn.integers(0, distinct, rows))
        columns = {}
        for keyword in sorted({key for header in base for key in header}):
            column = pa.array([header.get(keyword) for header in base], pa.string()).dictionary_encode()
            columns[keyword] = column.take(which)
        start, end = (np.datetime64(day, "ms").astype(np.int64) for day in ("2002-03-01", "2019-09-30"))
        moments = np.datetime_as_string((drawn.integers(start, end, rows) // 10 * 10).astype("datetime64[ms]"))
        columns["DATE-OBS"] = pa.array([one[:10] for one in moments.tolist()])
        columns["TIME-OBS"] = pa.array([one[11:] for one in moments.tolist()])
        order = np.arange(rows)
        names = LETTERS[instrument] + "".join(["0"])
        tails = np.zeros(rows, "U1")
        for _ in range(6):
            tails = np.char.add(digits[order % 36], tails)
            order = order // 36
        ids = [f"{names}{tail}Q" for tail in tails.tolist()]
        import_table(open_store(uri), "hst", pa.table({"dataset": [f"{one}:{one}" for one in ids], **columns}))


def main() -> None:
    """Run the benchmark."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    one_core = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    for distinct in (300, 2000):
        with tempfile.TemporaryDirectory() as folder:
            uri = f"file:{folder}"
            begun = time.perf_counter()
            filling = [sys.executable, __file__, "--fill", uri, str(count), str(distinct)]
            subprocess.run(filling, cwd=REPOSITORY, check=True)
            took = time.perf_counter() - begun
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
            print(
                f"{count:,} datasets, {distinct:,} distinct headers of each instrument, {size / 1e6:.0f} MB, "
                f"made in {took:.0f} s"
            )
            for old, new in PAIRS:
                argv = [sys.executable, "-c", MEASURE, str(DATA / "crds-contexts"), uri, old, new, str(SAMPLE)]
                done = subprocess.run(argv, cwd=REPOSITORY, env=one_core, stdout=subprocess.PIPE, check=True)
                figures = json.loads(done.stdout)
                laps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in figures["seconds"].items())
                stock = figures["looked"] / figures["rate"]
                print(
                    f"  {old} -> {new}: {figures['total']:6.2f} s; {figures['mappings']} rules changed, "
                    f"{figures['groups']:,} groups, {figures['looked']:,} datasets of the instruments, "
                    f"{figures['affected']:,} affected, {figures['failed']:,} failed; "
                    f"loading the contexts {figures['loading']:.2f} s more\n"
                    f"    {laps}; peak {figures['peak']:.0f} MB, {figures['before']:.0f} MB of it before\n"
                    f"    the stock client: {figures['rate']:.0f} datasets/s, so {stock / 60:.0f} minutes, "
                    f"{stock / figures['total']:.0f} times as long"
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fill"]:
        fill(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
