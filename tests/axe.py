"""Ask axe what is wrong with the pages of a CRDS that is served, and take pictures of them: run by hand.

    python -m tests.axe URL --axe axe.min.js [--user NAME --token-file FILE] [--pictures FOLDER] [PATH ...]

URL has its observatory: ``http://localhost:8001/hst``.  axe is the npm package ``axe-core``; Chromium must be there.
Between the browser and the server is a proxy of this process, which brings the cookie of a user, lets axe in where the
policy of the pages would not, and holds each page in a frame of the width that is wanted.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import requests

#: Pages of every CRDS of HST with some context.
PATHS = (
    "/",
    "/contexts/",
    "/contexts/hst-latest",
    "/contexts/hst-latest/cos",
    "/contexts/hst-latest/cos/deadtab",
    "/mappings/hst-latest",
    "/history/",
    "/differences/",
    "/catalog/",
    "/bestrefs/",
    "/activity/",
    "/submissions/",
    "/deliveries/",
    "/affected/",
    "/login/",
    "/nothing",
)

#: Variants: name, width in CSS pixels, whether it is dark.
VARIANTS = (("light", 1100, False), ("dark", 1100, True), ("narrow", 320, False))

_FRAME = """<!doctype html><title>frame</title><style>body{margin:0}iframe{border:0;display:block}</style>
<iframe id="f" src="%(source)s" width="%(width)d" height="%(height)d"></iframe><pre id="result"></pre>
<script>
addEventListener("load", async () => {
  const inner = document.getElementById("f").contentWindow, page = inner.document;
  if (!%(asked)s) return;
  const result = {width: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight};
  try {
    const script = page.createElement("script");
    script.src = "/__axe.js";
    await new Promise((done, failed) => { script.onload = done; script.onerror = failed; page.head.append(script); });
    // What is folded is a part of the page as well.
    for (const one of page.querySelectorAll("details")) one.open = true;
    const said = await inner.axe.run(page, {resultTypes: ["violations", "incomplete"]});
    result.passes = said.passes.length;
    for (const kind of ["violations", "incomplete"]) result[kind] = said[kind].map(one => ({
      id: one.id, impact: one.impact, help: one.help,
      nodes: one.nodes.map(node => node.target.join(" ") + ": " + node.failureSummary)
    }));
  } catch (error) { result.error = String(error); }
  document.getElementById("result").textContent = JSON.stringify(result);
});
</script>"""


class _Proxy(BaseHTTPRequestHandler):
    """Passes on what is asked for, as a user who is signed in."""

    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server wants
        path = self.path
        if path == "/__axe.js":
            self._send(self.server.axe, "text/javascript")
        elif path.startswith("/__frame"):
            source, width, height, asked = re.fullmatch(r"/__frame/([^/]*)/(\d+)/(\d+)/(\w+)", path).groups()  # type: ignore[union-attr]
            given = {"source": html.escape(unquote(source)), "width": int(width), "height": int(height), "asked": asked}
            self._send((_FRAME % given).encode(), "text/html; charset=utf-8")
        else:
            dark = path.startswith("/__dark")
            reply = self.server.session.get(
                self.server.base + path.removeprefix("/__dark"),
                headers={"accept": self.headers.get("accept", "*/*")},
                timeout=60,
            )
            data = reply.content
            if dark or "/__dark" in self.headers.get("referer", ""):
                data = data.replace(b'href="/static', b'href="/__dark/static')
                data = data.replace(b"@media (prefers-color-scheme: dark)", b"@media all")
            self._send(data, reply.headers.get("content-type", ""), reply.status_code)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, base: str, axe: bytes, session: requests.Session) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.base, self.axe, self.session = base, axe, session


def sign_in(url: str, user: str, token: str, instrument: str) -> requests.Session:
    """Return somebody who is signed in, or nobody."""
    session = requests.Session()
    session.trust_env = False
    if user:
        session.get(f"{url}/login/", timeout=30)
        csrf = next(cookie.value for cookie in session.cookies if cookie.name == "csrftoken")
        form = {"username": user, "password": token, "instrument": instrument, "csrfmiddlewaretoken": csrf}
        session.post(f"{url}/login/", data=form, timeout=30)
        if not any(cookie.name == "crds_session" for cookie in session.cookies):
            sys.exit(f"{user} cannot sign in at {url}")
    return session


def chromium(*argv: str) -> str:
    """Run a browser that nobody sees, and return what it prints."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("there is no Chromium")
    with tempfile.TemporaryDirectory() as profile:
        fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        done = subprocess.run([program, *fixed, *argv], capture_output=True, text=True, timeout=180)
    return done.stdout


def main() -> None:
    """Print violations, page by page; 1 if there are any."""
    parser = argparse.ArgumentParser(description="What axe finds wrong with the pages of a CRDS.")
    parser.add_argument("url")
    parser.add_argument("paths", nargs="*", default=PATHS)
    parser.add_argument("--axe", required=True, type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--user", default="")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--instrument", default="none")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    given = parser.parse_intermixed_args()
    token = given.token_file.read_text().strip() if given.token_file else ""
    session = sign_in(given.url, given.user, token, given.instrument)
    base, _, name = given.url.rstrip("/").rpartition("/")
    server = _Server(base, given.axe.read_bytes(), session)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    wanted = [(path, variant) for path in given.paths for variant in VARIANTS]

    def look(one: tuple[str, tuple[str, int, bool]]) -> dict[str, Any]:
        path, (variant, width, dark) = one
        source = quote(f"{'/__dark' if dark else ''}/{name}{path}", safe="")
        out = chromium(
            "--virtual-time-budget=60000",
            "--window-size=1300,900",
            "--dump-dom",
            f"{here}/__frame/{source}/{width}/900/true",
        )
        match = re.search(r'<pre id="result">(.*?)</pre>', out, re.DOTALL)
        found = json.loads(html.unescape(match[1])) if match and match[1] else {"error": "no answer"}
        if given.pictures:
            given.pictures.mkdir(parents=True, exist_ok=True)
            height = min(int(found.get("height", 900)) + 20, 2600)
            file = given.pictures / f"{re.sub(r'[^A-Za-z0-9]+', '-', path).strip('-') or 'overview'}-{variant}.png"
            where = f"{here}/__frame/{source}/{width}/{height}/false"
            chromium(f"--window-size={max(width, 500)},{height}", f"--screenshot={file}", where)
        return found

    bad = 0
    with ThreadPoolExecutor(2) as pool:
        for (path, (variant, width, _)), found in zip(wanted, pool.map(look, wanted), strict=True):
            wide = found.get("width", 0) > width
            wrong = [*found.get("violations", ()), *([{"id": found["error"]}] if "error" in found else [])]
            bad += len(wrong) + wide
            undecided = found.get("incomplete", ())
            print(
                f"{path} {variant}: {len(wrong)} violations, {found.get('passes', 0)} rules passed, "
                f"{len(undecided)} undecided{', too wide' if wide else ''}"
            )
            for one in [*wrong, *undecided]:
                print(f"  {one['id']} ({one.get('impact', '')}) {one.get('help', '')}")
                for node in one.get("nodes", ())[:4]:
                    print(f"    {' '.join(node.split())[:300]}")
    server.shutdown()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
