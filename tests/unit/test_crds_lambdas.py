"""The functions of a CRDS on AWS: what the address of one hands over and gets back, and what the clock asks for."""

from __future__ import annotations

import ast
import asyncio
import base64
import gc
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from caldp.crdserver import jobs, reprocessing
from caldp.crdserver.site import Site
from caldp.crdserver.users import Users
from caldp.errors import ReferencesError, UsageError
from tests.s3 import REPOSITORY
from tests.sites import made_site, shared_data, shelf, site

__all__ = ["made_site", "shared_data", "shelf", "site"]

HOST = "abc123.lambda-url.us-east-1.on.aws"

#: Bytes that AWS Lambda takes as an answer.
LARGEST = 6 << 20

Load = Callable[[str], ModuleType]


class Context:
    """What AWS Lambda tells of a call."""

    def get_remaining_time_in_millis(self) -> int:
        return 100_000


@pytest.fixture
def invoked(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """A client of Lambda that only takes note."""
    client, others = mock.Mock(), jobs.aws.make
    monkeypatch.setattr(jobs.aws, "make", lambda what, *a, **k: client if what == "lambda" else others(what, *a, **k))
    return client.invoke


@pytest.fixture
def event_loop() -> Iterator[None]:
    """What the adapter runs the application on: in a function it is never closed."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, site: Site, invoked: mock.Mock, event_loop: None) -> Iterator[Load]:
    """Load a handler, as AWS Lambda does, of a CRDS with real contexts."""
    logger = logging.getLogger("caldp")
    level = logger.level
    for name, value in {
        "CALDP_CRDS_STORE": site.settings.store,
        "CALDP_CRDS_RECORDS": site.settings.records,
        "CALDP_CRDS_WORK": str(site.settings.work),
        "CALDP_CRDS_JOBS": "lambda:caldp-test-crds-job",
    }.items():
        monkeypatch.setenv(name, value)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"handler_{name}", REPOSITORY / "lambdas" / name / "handler.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    logger.setLevel(level)


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes
    ----------
    status : int
    headers : dict
        Names in lower case.
    body : bytes
    cookies : dict
    plain : bool
        Whether the body came as text.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    cookies: Mapping[str, str]
    plain: bool

    def json(self) -> Any:
        return json.loads(self.body)


class Browser:
    """Whoever asks a function by its address: makes events as AWS does (payload 2.0), and keeps cookies."""

    def __init__(self, handler: Callable[[dict[str, Any], Any], dict[str, Any]]) -> None:
        self._handler = handler
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        binary = not named.get("content-type", "").startswith(("text/", "application/json"))
        route, _, query = path.partition("?")
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": route,
            "rawQueryString": query,
            "headers": {"host": HOST, "x-forwarded-proto": "https", "content-length": str(len(body)), **named},
            "requestContext": {
                "accountId": "anonymous",
                "domainName": HOST,
                "http": {"method": method, "path": route, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.1"},
                "stage": "$default",
                "requestId": "r",
            },
            "body": base64.b64encode(body).decode() if binary else body.decode(),
            "isBase64Encoded": binary,
        }
        if self.cookies:
            event["cookies"] = [f"{name}={value}" for name, value in self.cookies.items()]
        answer = self._handler(event, Context())
        text = json.dumps(answer)
        assert len(text) < LARGEST
        cookies = dict(one.partition(";")[0].split("=", 1) for one in answer.get("cookies", ()))
        self.cookies |= cookies
        plain = not answer.get("isBase64Encoded")
        content = answer["body"].encode() if plain else base64.b64decode(answer["body"])
        sent = {name.lower(): value for name, value in answer["headers"].items()}
        return Reply(answer["statusCode"], sent, content, cookies, plain)

    def call(self, method: str, *params: Any) -> Reply:
        """Call a method as the client does, which names no type of what it sends."""
        call = {"jsonrpc": "1.0", "method": method, "params": params, "id": "crds-1-1"}
        kind = "application/x-www-form-urlencoded"
        return self.ask("POST", f"/hst/json/{method}/1/", json.dumps(call).encode(), content_type=kind)

    def upload(self, name: str, content: bytes, **headers: str) -> Reply:
        """Send a file, or a part of one."""
        fields = [
            b'--b0undary\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n',
            self.cookies["csrftoken"].encode(),
            f'\r\n--b0undary\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n",
            *(content, b"\r\n--b0undary--\r\n"),
        ]
        kind = "multipart/form-data; boundary=b0undary"
        return self.ask("POST", "/hst/upload/chunked/", b"".join(fields), content_type=kind, **headers)


@pytest.fixture
def browser(load: Load) -> Browser:
    return Browser(load("crds").handler)


# ---- the server


def test_pages_and_calls_are_answered_at_the_address_of_the_function(browser: Browser) -> None:
    page = browser.ask("GET", "/")
    assert page.status == 200 and page.plain and b"<html" in page.body
    assert browser.ask("GET", "/health").body == b"ok\n"
    assert browser.ask("GET", "/nowhere").status == 404
    assert browser.call("get_default_context", "hst", None).json()["result"] == "hst_0729.pmap"
    assert (
        browser.call("get_mapping_url", "hst_0729.pmap", "hst_0729.pmap")
        .json()["result"]
        .startswith(f"https://{HOST}/hst/")
    )
    assert "hst_9999.pmap" in browser.call("get_mapping_names", "hst_9999.pmap").json()["error"]["message"]


def test_a_client_cannot_say_what_the_server_is_called(browser: Browser) -> None:
    browser.ask("GET", "/health", host="evil.example.org")
    told = browser.ask("POST", "/hst/json/", json.dumps({"method": "get_server_info", "params": [], "id": 1}).encode())
    assert HOST.encode() in told.body and b"evil" not in told.body


def test_best_references_are_evaluated(browser: Browser) -> None:
    header = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2017-03-01", "TIME-OBS": "00:00:00"}
    best = browser.call("get_best_references", "hst_0729.pmap", header, ["deadtab", "brftab"]).json()
    assert best["error"] is None and set(best["result"]) == {"deadtab", "brftab"}


def test_a_large_reply_is_fetched_by_a_second_request(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALDP_CRDS_INLINE", "1000")
    browser = Browser(load("crds").handler)
    told = browser.call("get_mapping_names", "hst_0729.pmap")
    assert told.status == 303
    address = told.headers["location"]
    assert address.startswith(f"https://{HOST}/hst/replies/")
    fetched = browser.ask("GET", address.removeprefix(f"https://{HOST}"))
    assert fetched.json()["result"][0] == "hst_0729.pmap"


def test_what_is_sent_at_once_fits_whatever_it_holds(load: Load) -> None:
    from infra.crds import INLINE

    # JSON in JSON: each quote becomes two characters; of names and sums, that is one in six.
    row = '"u4e22588j_apt.fits": {"sha1sum": "0123456789abcdef0123456789abcdef01234567", "size": "23040"}, '
    assert len(json.dumps({"body": row * (INLINE // len(row))})) < LARGEST * 0.75
    assert len(base64.b64encode(b"x" * INLINE)) < LARGEST * 0.75


def test_files_are_there_for_get_head_and_ranges(browser: Browser, site: Site) -> None:
    whole = browser.ask("GET", "/hst/get/hst_0729.pmap")
    size = (Path(site.store.url("mappings/hst/hst_0729.pmap"))).stat().st_size
    assert whole.status == 200 and len(whole.body) == size and whole.plain
    head = browser.ask("HEAD", "/hst/get/hst_0729.pmap")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")
    part = browser.ask("GET", "/hst/get/hst_0729.pmap", range="bytes=10-19")
    assert (part.status, part.body) == (206, whole.body[10:20])
    ranged = browser.ask("HEAD", "/hst/get/hst_0729.pmap", range="bytes=10-19")
    assert (ranged.status, ranged.body) == (206, b"")


# What a form has brought is let go of by chance.
def test_a_file_is_sent_in_parts_by_who_is_signed_in(browser: Browser, site: Site, invoked: mock.Mock) -> None:
    token = Users(site.records).add("ann", "submitter")
    browser.ask("GET", "/hst/login/")
    form = f"username=ann&password={token}&instrument=cos&next=/&csrfmiddlewaretoken={browser.cookies['csrftoken']}"
    kind = "application/x-www-form-urlencoded"
    signed = browser.ask("POST", "/hst/login/", form.encode(), content_type=kind)
    assert signed.status == 303 and {"crds_session", "csrftoken"} <= set(browser.cookies)
    # Bytes that are no text, in two parts, as large as the client makes them.
    content = b"SIMPLE  =" + bytes(range(256)) * 11_000
    for start in range(0, len(content), 2_000_000):
        part = content[start : start + 2_000_000]
        whole = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        sent = browser.upload("x_dead.fits", part, content_range=whole)
        assert sent.status == 200 and "csrftoken" in sent.cookies
    (file,) = browser.ask("GET", "/hst/upload/list/").json()["files"]
    assert (file["name"], file["size"]) == ("x_dead.fits", len(content))
    browser.ask("GET", "/hst/jpoll/open_channel")
    said = "instrument=cos&pmap_mode=pmap_edit&description=a+test&change_level=TRIVIAL&creator=ann&csrfmiddlewaretoken="
    said += browser.cookies["csrftoken"]
    begun = browser.ask("POST", "/hst/submission_form/redcat_submit/", said.encode(), content_type=kind)
    assert begun.status == 200, begun.body
    (call,) = invoked.call_args_list
    assert (call.kwargs["FunctionName"], call.kwargs["InvocationType"]) == ("caldp-test-crds-job", "Event")
    assert json.loads(call.kwargs["Payload"])["observatory"] == "hst"
    gc.collect()


def test_strangers_write_nothing(browser: Browser, site: Site) -> None:
    before = site.state.seq
    for path in ("/hst/upload/chunked/", "/hst/submission_form/redcat_submit/", "/hst/submit_confirm_pipeline/"):
        answer = browser.ask("POST", path, b"", content_type="application/x-www-form-urlencoded")
        assert answer.status in (401, 403) or b"error_message" in answer.body, path
    assert site.state.seq == before


# ---- jobs


def test_a_job_is_worked_on_by_a_process_of_its_own(load: Load, site: Site) -> None:
    module = load("crds_job")
    jobs.Jobs(site).add("tend-1", "tend", {})
    left = site.settings.work / "jobs" / "of-one-that-was-killed"
    left.mkdir(parents=True)
    module.handler({"observatory": "hst", "job": "tend-1"}, Context())
    assert not left.exists(), "the disk would fill up"
    found = jobs.Jobs(site).get("tend-1")
    assert found is not None and (found.state, found.attempt) == ("done", 1)
    # What comes twice is done once.
    module.handler({"observatory": "hst", "job": "tend-1"}, Context())
    module.handler({"observatory": "hst", "job": "nowhere"}, Context())
    found = jobs.Jobs(site).get("tend-1")
    assert found is not None and found.attempt == 1


def test_a_process_that_fails_is_an_error_so_that_it_is_tried_again(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    module = load("crds_job")
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(ReferencesError, match="hst: job j: exit status 1; see what it has said before"):
        module.handler({"observatory": "hst", "job": "j"}, Context())


def test_the_clock_has_the_last_step_looked_at_and_jobs_taken_up_again(
    load: Load, site: Site, invoked: mock.Mock
) -> None:
    jobs.Jobs(site).add("submission-x", "submission", {"submission": "x"})
    module = load("crds_job")
    contexts = [context for _, context, _ in site.state.history]
    module.handler({"task": "tend"}, Context())
    begun = [json.loads(call.kwargs["Payload"])["job"] for call in invoked.call_args_list]
    assert "submission-x" in begun
    step = f"affected-{contexts[-2]}-{contexts[-1]}"
    assert (step in begun) == (contexts[-2] != contexts[-1])
    # Once: what is begun is begun again only while nobody has ended it.
    known = reprocessing.kept(site, contexts[-2], contexts[-1])
    assert known is None


def test_the_nightly_check_is_heard_of_when_something_is_wrong(
    load: Load, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("crds_job")
    finding = module.clock.checking.Finding
    monkeypatch.setattr(module.clock.checking, "check", lambda one: [finding("downloads", True, "5", 0.1)])
    module.handler({"task": "check"}, Context())
    asked: list[str] = []

    def check(one: Site) -> list[Any]:
        asked.append(one.observatory)
        return [finding("history", False, "ValueError: x", 0.1), finding("errors", True, "", 0.1)]

    monkeypatch.setattr(module.clock.checking, "check", check)
    with pytest.raises(ReferencesError, match="history: ValueError: x; look at its log"):
        module.handler({"task": "check"}, Context())
    assert asked == ["hst"], "a server that was never filled has nothing to check"


# ---- what they are


@pytest.mark.parametrize("name", ["crds", "crds_job"])
def test_a_handler_is_short(name: str) -> None:
    path = REPOSITORY / "lambdas" / name / "handler.py"
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
    assert len(statements) <= 40


@pytest.mark.parametrize("name", ["crds", "crds_job"])
def test_a_function_that_is_not_deployed_says_so(load: Load, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("CALDP_CRDS_STORE")
    with pytest.raises(UsageError, match="CALDP_CRDS_STORE is not set"):
        load(name)


def test_what_is_installed_here_is_what_functions_get() -> None:
    from importlib.metadata import version

    pinned = (REPOSITORY / "infra" / "crds_functions.txt").read_text().split()
    for name in ("crds", "mangum", "starlette"):
        assert f"{name}=={version(name)}" in pinned
