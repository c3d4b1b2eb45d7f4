"""What ``caldp status`` and ``caldp messages repair`` of a large batch in S3 cost. Prints figures, asserts nothing.

Usage: python tests/perf/status.py [DATASETS]        (10,000; a server on this machine; about two minutes)
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from caldp import batch  # noqa: E402
from caldp.messages import STATES, Status  # noqa: E402
from caldp.s3_store import S3Store  # noqa: E402
from tests.fakes.batch import names, objects, put_many  # noqa: E402
from tests.fakes.proxy import FaultyProxy  # noqa: E402
from tests.fakes.s3 import start_ministack  # noqa: E402
from tests.s3 import MINISTACK, make_bucket, s3_environment  # noqa: E402

#: Datasets of a batch in the middle of its work, per thousand; the rest is processed.
MIX = {"submitted": 100, "processing": 10, "error": 20, "placed": 5}

LARGE = 100_000


def state_of(number: int) -> str:
    """Return the state of one dataset, mixed over the names."""
    place = number * 611 % 1000
    for state, share in MIX.items():
        if place < share:
            return state
        place -= share
    return "processed"


def synthetic(count: int) -> dict[str, bytes]:
    """Return the messages of a batch."""
    contents: dict[str, bytes] = {}
    for number, dataset in enumerate(names(count)):
        state = state_of(number)
        reason = f"{dataset}: calcos failed (exit status {number})" if state == "error" else ""
        contents.update(objects(Status(dataset, 1, state, f"{number:012x}", reason, 23 if reason else None)))
    return contents


def measured(endpoint: str, uri: str, act: Callable[[S3Store], object]) -> tuple[float, float, Counter[str]]:
    """Return seconds and seconds of our processor (without the proxy), and requests by kind (counted by the proxy)."""
    os.environ.update(s3_environment(endpoint))
    begun, cpu = time.monotonic(), time.process_time()
    act(S3Store(uri))
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    with FaultyProxy(endpoint) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        act(S3Store(uri))
        return seconds, cpu, Counter("LIST" if "list-type=2" in r.query else r.method for r in proxy.requests)


def expected(count: int) -> tuple[int, int]:
    """Return how many lists and reads a survey of so many datasets needs."""
    states = Counter(state_of(number) for number in range(count))
    pages = [math.ceil(n / 1000) for state, n in states.items() if STATES[state][1]]
    reads = [min(states[state], batch.LIMIT) for state in ("error", "processing", "placed")]
    return 1 + math.ceil(count / 1000) + sum(pages), sum(reads)


def main() -> None:
    """Run the benchmark."""
    count = int(sys.argv[1]) if sys.argv[1:] else 10_000
    if not MINISTACK.is_file():
        sys.exit(f"no ministack at {MINISTACK}: make test installs it; or set CALDP_TEST_MINISTACK")
    with start_ministack(MINISTACK) as server:
        bucket = make_bucket(server.endpoint)
        begun = time.monotonic()
        put_many(server.endpoint, f"{bucket}/batch", synthetic(count))
        print(f"{count:,} datasets in ministack, put there in {time.monotonic() - begun:.0f} s")
        uri = f"s3://{bucket}/batch"
        seconds, cpu, requests = measured(server.endpoint, uri, batch.survey)
        lists, reads = expected(count)
        print(f"status: {seconds:.1f} s, {cpu:.1f} s of them our own; requests {dict(requests)}")
        print(f"  as it should be: {lists} LIST, {reads} GET")
        listing, _, _ = measured(server.endpoint, uri, batch._list)
        lists, reads = expected(LARGE)
        each = (seconds - listing) / max(requests["GET"], 1)
        total = listing * lists / requests["LIST"] + each * reads
        print(f"  of it the lists: {listing:.1f} s; {1e3 * each:.1f} ms for each record that is read")
        print(f"  {LARGE:,} datasets: {lists} LIST and {reads:,} GET requests, about {total:.0f} s here")
        seconds, cpu, requests = measured(server.endpoint, uri, lambda store: list(batch.repair(store)))
        print(f"repair with nothing to do: {seconds:.1f} s, {cpu:.1f} s of them our own; requests {dict(requests)}")
        seconds *= LARGE / count
        print(f"  {LARGE:,} datasets: {lists} LIST and {LARGE:,} GET requests, about {seconds:.0f} s here")
    print(f"peak memory of all this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
