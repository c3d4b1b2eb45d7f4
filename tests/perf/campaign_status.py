"""What ``caldp campaign status`` of a large campaign in S3 costs. Prints figures, asserts nothing.

Usage: python tests/perf/campaign_status.py [DATASETS]        (100,000; a server on this machine; some minutes)
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from caldp.campaign import page, progress  # noqa: E402
from caldp.campaign.control import Control  # noqa: E402
from caldp.campaign.settings import DEFAULT  # noqa: E402
from caldp.s3_store import S3Store  # noqa: E402
from tests.fakes.batch import put_many  # noqa: E402
from tests.fakes.campaign import Clocked, make  # noqa: E402
from tests.fakes.proxy import FaultyProxy  # noqa: E402
from tests.fakes.s3 import start_ministack  # noqa: E402
from tests.s3 import MINISTACK, make_bucket, s3_environment  # noqa: E402


def measured(endpoint: str, uri: str, act: Callable[[Control], object]) -> tuple[float, float, Counter[str], object]:
    """Return seconds, and seconds of our processor, without the proxy; requests by kind, counted by it; the answer."""
    os.environ.update(s3_environment(endpoint))
    begun, cpu = time.monotonic(), time.process_time()
    answer = act(Control(S3Store(uri)))
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    with FaultyProxy(endpoint) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        act(Control(S3Store(uri)))
        requests = Counter("LIST" if "list-type=2" in r.query else r.method for r in proxy.requests)
    return seconds, cpu, requests, answer


def main() -> None:
    """Run the benchmark."""
    count = int(sys.argv[1]) if sys.argv[1:] else 100_000
    if not MINISTACK.is_file():
        sys.exit(f"no ministack at {MINISTACK}: make test installs it; or set CALDP_TEST_MINISTACK")
    begun = time.monotonic()
    store = Clocked()
    make(store, count, progress=0.5, data=False)
    print(f"{count:,} datasets, {len(store.objects):,} objects made in {time.monotonic() - begun:.0f} s")
    with start_ministack(MINISTACK) as server:
        bucket = make_bucket(server.endpoint)
        begun = time.monotonic()
        put_many(server.endpoint, f"{bucket}/mvp", store.objects)
        print(f"put into ministack in {time.monotonic() - begun:.0f} s")
        uri = f"s3://{bucket}/mvp"
        tasks: dict[str, Callable[[Control], object]] = {
            "status": lambda control: progress.survey(control, DEFAULT).counts,
            "top": lambda control: progress.running(control, DEFAULT)[1],
            "report": lambda control: f"{len(page.render(control, DEFAULT)) / 1e6:.2f} MB",
        }
        for name, act in tasks.items():
            seconds, cpu, requests, answer = measured(server.endpoint, uri, act)
            print(f"{name}: {seconds:.1f} s, {cpu:.1f} s of them our own; requests {dict(requests)}; {answer}")
    print(f"peak memory of all this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
