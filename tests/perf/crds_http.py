"""How many best references a second a CRDS chooses over HTTP; printed, nothing asserted.

``python tests/perf/crds_http.py [REQUESTS]``
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from caldp.crdserver.stock import Stock

DATA = Path(__file__).parents[3] / "shared" / "data"
CONTEXT = "hst_0729.pmap"


def call(url: str, method: str, *params: object) -> tuple[object, float]:
    """Call a method; return its result and the seconds that it took."""
    body = json.dumps({"jsonrpc": "1.0", "id": "1", "method": method, "params": params}).encode()
    began = time.perf_counter()
    with urllib.request.urlopen(f"{url}/json/{method}/1/", body, timeout=60) as reply:  # noqa: S310 - our server
        result = json.load(reply)
    assert result["error"] is None, result["error"]
    return result["result"], time.perf_counter() - began


def said(what: str, seconds: list[float], wall: float) -> None:
    """Print figures of many calls."""
    milliseconds = [1000 * one for one in seconds]
    cuts = statistics.quantiles(milliseconds, n=100)
    print(
        f"{what:44} {len(seconds) / wall:8.0f} a second   median {cuts[49]:6.2f} ms   95 % {cuts[94]:6.2f} ms   "
        f"worst {max(milliseconds):6.1f} ms"
    )


def main() -> None:
    """Fill a CRDS, serve it, and ask it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    (header,) = json.loads((DATA / "dataset-headers" / "test_cos.json").read_text()).values()
    with tempfile.TemporaryDirectory() as folder:
        caldp = [str(Path(sys.executable).with_name("caldp")), "crds"]
        store = ["--store", f"file:{folder}/crds"]
        catalogue = ["--catalogue", str(DATA / "crds-catalog" / "server_config.gz")]
        began = time.perf_counter()
        subprocess.run([*caldp, "init", *store, "--from", str(DATA / "crds-contexts"), *catalogue], check=True)
        print(f"init: {time.perf_counter() - began:.2f} s")
        began = time.perf_counter()
        server = subprocess.Popen([*caldp, "serve", *store, "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[2].rstrip("/") + "/hst"
            print(f"it answers after {time.perf_counter() - began:.2f} s")
            _, first = call(url, "get_best_references", CONTEXT, header, None)
            print(f"first best references of a context: {first:.2f} s (its rules are loaded)")
            _, info = call(url, "get_server_info")
            _, again = call(url, "get_server_info")
            print(f"server info of 43,768 files: {info:.2f} s, then {again:.3f} s")
            stock = Stock(DATA / "crds-contexts", "hst")
            stock.mapping(CONTEXT)
            began = time.perf_counter()
            for _ in range(count):
                stock.best_references(CONTEXT, header)
            direct = time.perf_counter() - began
            print(f"{'crds itself, in this process':44} {count / direct:8.0f} a second")
            for clients in (1, 4):
                with ThreadPoolExecutor(clients) as pool:
                    began = time.perf_counter()
                    asked = pool.map(lambda _: call(url, "get_best_references", CONTEXT, header, None)[1], range(count))
                    seconds = list(asked)
                    wall = time.perf_counter() - began
                said(f"get_best_references, {clients} at a time", seconds, wall)
                print(f"{'':44} {wall / direct:8.2f} times what crds itself takes")
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
