"""The stock client, unmodified and in a process of its own, asks a CRDS of ours whatever it can."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import crds
from tests.crds import TWOZXTAB, Answer, Client, CrdsServer, Person, error_of, make_client
from tests.desk import CONTEXT, unpacked

crds_place, crds_server, make_crds = crds.crds_place, crds.crds_server, crds.make_crds

RAW = "ldfd01vnq_rawtag_a.fits"

#: What the rules of hst_0729 choose for that exposure.
CHOSEN = {
    "bpixtab": "36d1836ml_bpix.fits",
    "gsagtab": "34t20129l_gsag.fits",
    "twozxtab": "23n1744ml_2zx.fits",
    "xtractab": "23n1744fl_1dx.fits",
    "lamptab": "24914347l_lamp.fits",
    "disptab": "2a81746tl_disp.fits",
}

#: The client calls every method, by the functions that it has for them where it has some.
ALL_METHODS = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from crds.client import api
from crds import data_file
api.set_crds_server(os.environ["CRDS_SERVER_URL"])
said = {}
def call(name, function, *args, **keys):
    try:
        said[name] = {"result": function(*args, **keys)}
    except Exception as error:
        said[name] = {"error": type(error).__name__, "text": str(error)}
rules = "hst_0729.pmap"
header = data_file.get_unconditioned_header(sys.argv[1], observatory="hst")
header = {key: str(value) for key, value in header.items()}
call("get_server_info", api._get_server_info)
call("get_default_context", api.get_default_context, "hst")
call("get_default_context edit", api.get_default_context, "hst", "edit")
call("get_default_context old", api.S.get_default_context, "hst")
call("get_default_context other", api.S.get_default_context, "hst", "best")
call("get_build_context", api.S.get_build_context, "hst", "1.2.3")
call("get_context_by_date", api.get_context_by_date, "hst-2018-01-01T00:00:00", "hst")
call("get_context_by_date early", api.get_context_by_date, "hst-1990-01-01T00:00:00", "hst")
call("get_context_by_date instrument", api.get_context_by_date, "hst-cos-2019-09-10T00:00:00", "hst")
call("get_context_by_date type", api.get_context_by_date, "hst-cos-xtractab-edit", "hst")
call("get_context_by_date no type", api.get_context_by_date, "hst-cos-nothing-edit", "hst")
call("get_context_history", api.get_context_history, "hst")
call("list_mappings", api.list_mappings, "hst", "hst_cos_030*.imap")
call("list_references", api.list_references, "hst", "*_2zx.fits")
call("get_mapping_names", api.get_mapping_names, rules)
call("get_mapping_names imap", api.get_mapping_names, "hst_acs_0421.imap")
call("get_mapping_names symbol", api.get_mapping_names, "hst-latest")
call("get_reference_names", api.get_reference_names, rules)
call("get_reference_names unknown", api.get_reference_names, "hst_9999.pmap")
call("get_url", api.get_url, rules, "z1q2219el_2zx.fits")
call("get_mapping_url", api.get_mapping_url, rules, rules)
call("get_reference_url", api.get_reference_url, rules, "z1q2219el_2zx.fits")
call("get_url unknown", api.get_url, rules, "../etc/passwd")
call("get_file_info", api.get_file_info, "hst", "z1q2219el_2zx.fits")
call("get_file_info by context", api.get_file_info, rules, rules)
call("get_file_info unknown", api.get_file_info, "hst", "nothing_2zx.fits")
call("get_file_info_map", api.get_file_info_map, "hst", ["z1q2219el_2zx.fits", "nothing_2zx.fits"], ["size", "sha1sum"])
call("get_file_info_map all", lambda: len(api.get_file_info_map("hst", None, ["sha1sum"])))
call("get_sqlite_db", api.get_sqlite_db, "hst")
call("get_required_parkeys", api.get_required_parkeys, rules)
call("get_required_parkeys rmap", api.get_required_parkeys, "hst_acs_atodtab_0251.rmap")
call("get_best_references", api.get_best_references, rules, header)
call("get_best_references some", api.get_best_references, rules, header, ["bpixtab", "darkfile"])
call("get_best_references keywords", api.S.get_best_references, context=rules, header=header, reftypes=["bpixtab"])
call("get_best_references bad", api.get_best_references, rules, {"INSTRUME": "nothing"})
call("get_best_references unknown", api.get_best_references, "hst_9999.pmap", header)
call("get_best_references_by_header_map", api.get_best_references_by_header_map, rules, {"A:B": header}, ["bpixtab"])
call("get_best_references_by_ids", api.get_best_references_by_ids, rules, ["FOO"])
call("get_aui_best_references", api.get_aui_best_references, "2019-09-10", ["FOO"])
call("get_dataset_ids", api.get_dataset_ids, rules, "cos")
call("get_dataset_headers_by_id", api.get_dataset_headers_by_id, rules, ["BAR"])
call("get_affected_datasets", api.get_affected_datasets, "hst", "hst_0600.pmap", "hst_0650.pmap")
call("push_remote_context", api.push_remote_context, "hst", "latest", "a-pipeline", rules)
call("get_remote_context", api.get_remote_context, "hst", "a-pipeline")
call("push_remote_context stranger", api.push_remote_context, "hst", "latest", "a-stranger", rules)
call("get_remote_context unknown", api.get_remote_context, "hst", "a-stranger")
call("jpoll_pull_messages", api.jpoll_pull_messages, "nowhere", "0")
call("jpoll_abort", api.jpoll_abort, "nowhere")
call("get_system_versions", api.get_system_versions, "hst", rules)
call("no_such_method", api.S.no_such_method, 1)
call("other observatory", api.get_context_history, "jwst")
print(json.dumps(said, default=str))
"""

METHODS = (
    "get_server_info get_default_context get_build_context get_context_by_date get_context_history list_mappings "
    "list_references get_mapping_names get_reference_names get_url get_mapping_url get_reference_url get_file_info "
    "get_file_info_map get_sqlite_db get_required_parkeys get_best_references get_best_references_by_header_map "
    "get_best_references_by_ids get_aui_best_references get_dataset_ids get_dataset_headers_by_id "
    "get_affected_datasets push_remote_context get_remote_context jpoll_pull_messages jpoll_abort get_system_versions"
).split()


# --- the methods -------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(stock: Client, cos_data: Path) -> Path:
    """A real exposure, on the desk of the client."""
    return unpacked(cos_data / "inputs" / f"{RAW}.gz", stock.home / RAW)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this module."""
    return tmp_path_factory.mktemp("standing")


@pytest.fixture(scope="module")
def standing(crds_place: crds.Place, home: Path) -> Iterator[CrdsServer]:
    """A server that tests of this module share, as they change nothing of it."""
    shutil.copytree(crds_place.root, home / "crds")
    server = CrdsServer(home / "crds", crds_place.tokens, home / "server.log").start()
    server.operate("cache", "add", "a-pipeline")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def said(standing: CrdsServer, home: Path, environment: dict[str, str], cos_data: Path) -> dict[str, Any]:
    """What a client that called all methods was told: {what: result or error}."""
    client = make_client(home / "client", standing.hst, environment)
    raw = unpacked(cos_data / "inputs" / f"{RAW}.gz", client.home / RAW)
    answer = client.script(ALL_METHODS, str(raw))
    assert answer.code == 0, answer.output
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def stock(standing: CrdsServer, environment: dict[str, str], tmp_path: Path) -> Client:
    """The stock client, with an empty cache."""
    return make_client(tmp_path / "client", standing.hst, environment)


def test_a_stock_client_gets_the_known_answers_from_all_methods(standing: CrdsServer, said: dict[str, Any]) -> None:
    assert set(METHODS) <= set(said)
    found = {name: one["result"] for name, one in said.items() if "result" in one}
    assert found["get_default_context"] == found["get_default_context old"] == CONTEXT
    assert found["get_default_context edit"] == CONTEXT
    assert found["get_context_by_date"] == "hst_0595.pmap"
    assert found["get_context_by_date instrument"] == "hst_cos_0306.imap"
    assert found["get_context_by_date type"] == "hst_cos_xtractab_0260.rmap"
    assert len(found["get_context_history"]) == 398
    assert all(len(row) == 3 for row in found["get_context_history"])
    assert found["get_context_history"][-1][1] == CONTEXT
    assert "hst_cos_0306.imap" in found["list_mappings"]
    assert all(name.startswith("hst_cos_030") for name in found["list_mappings"])
    assert "z1q2219el_2zx.fits" in found["list_references"]
    names = found["get_mapping_names"]
    assert (len(names), names[0]) == (137, CONTEXT)
    assert sorted(found["get_mapping_names symbol"]) == sorted(names)
    assert found["get_mapping_names imap"][0] == "hst_acs_0421.imap"
    assert len(found["get_reference_names"]) == 20530
    assert found["get_url"] == found["get_reference_url"] == f"{standing.hst}/get/z1q2219el_2zx.fits"
    assert found["get_mapping_url"] == f"{standing.hst}/get/{CONTEXT}"
    assert len(found["get_required_parkeys"]) == 7
    assert "DETECTOR" in found["get_required_parkeys"]["cos"]
    assert isinstance(found["get_required_parkeys rmap"], list)
    best = found["get_best_references"]
    assert {kind: best[kind] for kind in CHOSEN} == CHOSEN
    assert set(found["get_best_references some"]) == {"bpixtab", "darkfile"}
    assert found["get_best_references some"]["bpixtab"] == CHOSEN["bpixtab"]
    assert found["get_best_references some"]["darkfile"].startswith("NOT FOUND")
    assert found["get_best_references keywords"] == {"bpixtab": CHOSEN["bpixtab"]}
    assert found["get_best_references_by_header_map"] == {"A:B": {"bpixtab": CHOSEN["bpixtab"]}}
    assert found["push_remote_context"] == found["get_remote_context"] == CONTEXT


def test_the_catalogue_is_told_as_texts(said: dict[str, Any]) -> None:
    info = said["get_file_info"]["result"]
    assert all(isinstance(text, str) for text in info.values())
    assert len(info) >= 25
    assert info["size"] == "11520" or int(info["size"]) > 0
    assert len(info["sha1sum"]) == 40
    assert (info["rejected"], info["blacklisted"]) == ("false", "false")
    assert info["state"] in ("archived", "operational")
    assert "deliverer_user" in info
    assert said["get_file_info by context"]["result"]["type"] == "mapping"
    some = said["get_file_info_map"]["result"]
    assert some["nothing_2zx.fits"] == "NOT FOUND"
    assert some["z1q2219el_2zx.fits"] == {"size": info["size"], "sha1sum": info["sha1sum"]}
    assert said["get_file_info_map all"]["result"] == 43768
    with sqlite3.connect(said["get_sqlite_db"]["result"]) as database:
        rows = database.execute("SELECT size FROM crds_hst_catalog WHERE name = 'z1q2219el_2zx.fits'").fetchall()
        assert rows == [(info["size"],)]
        assert database.execute("SELECT count(*) FROM crds_hst_context_history").fetchone() == (398,)
    database.close()


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("get_default_context other", "ServiceError", "there is no 'best' context"),
        ("get_build_context", "ServiceError", "1.2.3"),
        ("get_context_by_date early", "ServiceError", "1990-01-01"),
        ("get_context_by_date no type", "ServiceError", "hst_cos_0306.imap has no rules for 'nothing'"),
        ("get_reference_names unknown", "ServiceError", "Unknown CRDS context 'hst_9999.pmap'"),
        ("get_url unknown", "ServiceError", "is no file of this CRDS"),
        ("get_file_info unknown", "ServiceError", "'nothing_2zx.fits' is no file of this CRDS"),
        ("get_best_references bad", "CrdsLookupError", "nothing"),
        ("get_best_references unknown", "CrdsLookupError", "Unknown CRDS context 'hst_9999.pmap'"),
        ("push_remote_context stranger", "CrdsRemoteContextError", "'a-stranger'"),
        ("get_remote_context unknown", "CrdsRemoteContextError", "'a-stranger'"),
        ("jpoll_pull_messages", "StatusChannelNotFoundError", "Channel 'nowhere' not found"),
        ("jpoll_abort", "StatusChannelNotFoundError", "Channel 'nowhere' not found"),
        ("get_affected_datasets", "ServiceError", "No precomputed affected datasets results exist"),
        ("get_system_versions", "ServiceError", "hst keeps no versions"),
        ("no_such_method", "ServiceError", "there is no method 'no_such_method'"),
        ("other observatory", "ServiceError", "this is the CRDS of hst, not of 'jwst'"),
    ],
)
def test_a_stock_client_is_told_what_is_wrong(said: dict[str, Any], what: str, error: str, words: str) -> None:
    assert said[what].get("error") == error, said[what]
    assert words in said[what]["text"]
    assert "Traceback" not in said[what]["text"]


def test_the_server_says_of_itself_what_clients_of_all_ages_read(standing: CrdsServer) -> None:
    info = call(standing.hst, "get_server_info")["result"]
    expected = (
        "observatory connected status server latest_context operational_context edit_context versions_context "
        "bad_files_list mappings context_history crds_version last_synced last_refreshed force_remote_mode "
        "max_headers_per_rpc max_bestrefs_per_rpc config_url mapping_url reference_url pickle_url download_metadata"
    )
    assert set(expected.split()) <= set(info)
    assert info["latest_context"] == info["operational_context"] == info["edit_context"] == CONTEXT
    assert (len(info["mappings"]), len(info["bad_files_list"])) == (2276, 99)
    assert set(info["crds_version"]) == {"str", "rev", "svnurl"}
    assert info["reference_url"] == {"hst": f"{standing.hst}/get/"}
    packed = info["download_metadata"]["crds_payload"]
    files = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert len(files) == 43768
    assert all(one["size"].isdigit() for one in files.values())


# --- the wire ----------------------------------------------------------------------------------------------------


def call(url: str, method: str, params: Any = (), path: str = "/json/") -> dict[str, Any]:
    """Call a method as no client would."""
    body = json.dumps({"jsonrpc": "1.0", "id": "me-1", "method": method, "params": params})
    reply = requests.post(f"{url}{path}", data=body, timeout=60)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    assert set(answer) == {"jsonrpc", "id", "error", "result"}
    return answer


def test_the_path_after_json_means_nothing_and_parameters_may_have_names(standing: CrdsServer) -> None:
    for path in ("/json/", "/json/get_default_context/crds.list-14-1234-00000001/", "/json/whatever"):
        assert call(standing.hst, "get_default_context", ["hst"], path)["result"] == CONTEXT
    assert call(standing.hst, "get_default_context", {"observatory": "hst", "state": "edit"})["result"] == CONTEXT
    assert call(standing.hst, "get_default_context", {})["id"] == "me-1"


def test_a_large_reply_is_fetched_by_a_second_request(
    make_crds: Callable[..., CrdsServer], environment: dict[str, str], tmp_path: Path
) -> None:
    server = make_crds("--inline", "20000")
    body = json.dumps({"jsonrpc": "1.0", "id": "x", "method": "get_server_info", "params": []})
    first = requests.post(f"{server.hst}/json/", data=body, timeout=60, allow_redirects=False)
    assert first.status_code == 303
    assert first.headers["location"].startswith(f"{server.hst}/replies/")
    again = requests.post(f"{server.hst}/json/", data=body, timeout=60, allow_redirects=False)
    assert again.headers["location"] == first.headers["location"]
    second = requests.get(first.headers["location"], timeout=60).json()
    assert second["error"] is None
    assert second["result"]["latest_context"] == CONTEXT
    client = make_client(tmp_path / "client", server.hst, environment)
    answer = client("list", "--status")
    assert (answer.code, "'hst_0729.pmap'" in answer.output) == (0, True), answer.output
    assert client("sql", "--update-db").code == 0
    answer = client("sql", "select count(*) from crds_hst_catalog")
    assert "43768" in answer.output


def test_nobody_reads_replies_or_other_things_by_guessing_paths(standing: CrdsServer) -> None:
    for path in ("/replies/x.json", "/replies/..%2frecords.sqlite", f"/replies/{'0' * 64}.json", "/replies/"):
        assert requests.get(f"{standing.hst}{path}", timeout=60).status_code == 404, path


DEEP = b"[" * 100_000
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "deep": DEEP,
    "deep parameters": b'{"method": "get_url", "params": ' + DEEP,
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no UTF-8": b'{"method": "\xff\xfe"}',
    "no method": b'{"params": []}',
    "method is a list": b'{"method": ["get_url"], "params": []}',
    "method is an object": b'{"method": {}, "params": []}',
    "private": b'{"method": "_ours", "params": ["hst"]}',
    "dunder": b'{"method": "__init__", "params": [1]}',
    "class": b'{"method": "__class__", "params": []}',
    "table": b'{"method": "table", "params": []}',
    "dotted": b'{"method": "_site.journal.append", "params": []}',
    "parameters are a text": b'{"method": "get_url", "params": "abc"}',
    "parameters are a number": b'{"method": "get_url", "params": 7}',
    "too few": b'{"method": "get_url", "params": []}',
    "too many": b'{"method": "get_server_info", "params": [1, 2, 3]}',
    "unknown names": b'{"method": "get_server_info", "params": {"self": 1, "x": 2}}',
    "a context that is a list": b'{"method": "get_mapping_names", "params": [["hst_0729.pmap"]]}',
    "a context that is null": b'{"method": "get_mapping_names", "params": [null]}',
    "a file that is an object": b'{"method": "get_file_info", "params": ["hst", {"a": 1}]}',
    "files that are a number": b'{"method": "get_file_info_map", "params": ["hst", 7, null]}',
    "files that are lists": b'{"method": "get_file_info_map", "params": ["hst", [["a"]], null]}',
    "a header that is a text": b'{"method": "get_best_references", "params": ["hst_0729.pmap", "x", null]}',
    "headers that are a list": b'{"method": "get_best_references_by_header_map", "params": ["hst_0729.pmap", [1]]}',
    "a date that is a list": b'{"method": "get_context_by_date", "params": [[], "hst"]}',
    "a pattern that is a number": b'{"method": "list_mappings", "params": ["hst", 3]}',
    "since that is a text": b'{"method": "jpoll_pull_messages", "params": ["key", "abc"]}',
    "an endless number": b'{"method": "jpoll_pull_messages", "params": ["key", ' + b"9" * 5000 + b"]}",
    "not a number": b'{"method": "get_url", "params": [NaN, Infinity]}',
    "half a character": b'{"method": "jpoll_pull_messages", "params": ["\\ud800", "0"]}',
    "half a character in a header": b'{"method": "get_best_references", "params": ["hst_0729.pmap", {"A": "\\udc00"}]}',
    "a number that is a number": b'{"method": "jpoll_pull_messages", "params": ["key", 1.5]}',
    "true": b'{"method": "get_context_history", "params": [true]}',
    "a key with a slash": b'{"method": "jpoll_pull_messages", "params": ["../../users", "0"]}',
    "ids that are a number": b'{"method": "get_dataset_headers_by_id", "params": ["hst_0729.pmap", 5]}',
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_call_that_is_none_gets_an_error_and_nothing_else(standing: CrdsServer, what: str) -> None:
    reply = requests.post(f"{standing.hst}/json/", data=HOSTILE[what], timeout=60)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["result"] is None
    error = answer["error"]
    assert set(error) == {"name", "message", "code", "data"}
    assert error["message"].startswith("OtherError: ")
    assert len(error["message"]) < 1000
    for secret in ("Traceback", str(standing.root), "site-packages"):
        assert secret not in reply.text
    assert call(standing.hst, "get_default_context", ["hst"])["result"] == CONTEXT


@pytest.mark.parametrize("what", list(HOSTILE))
def test_no_call_of_a_stranger_is_taken_for_a_fault_of_ours(standing: CrdsServer, what: str) -> None:
    before = len(standing.log())
    reply = requests.post(f"{standing.hst}/json/", data=HOSTILE[what], timeout=60)
    assert "failed:" not in reply.json()["error"]["message"], reply.text
    assert "ERROR" not in standing.log()[before:] and "failed" not in standing.log()[before:]


def test_the_message_of_an_error_survives_the_way_through_html(standing: CrdsServer) -> None:
    message = call(standing.hst, "get_mapping_names", ["<b>&amp;</b>"])["error"]["message"]
    assert "<b>" not in message
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in message


def test_nobody_is_told_where_the_store_is(standing: CrdsServer) -> None:
    """Of a context of long ago the catalogue knows, but its rules are not here."""
    for method in ("get_mapping_names", "get_reference_names", "get_required_parkeys"):
        message = call(standing.hst, method, ["hst_0595.pmap"])["error"]["message"]
        assert "hst_0595.pmap" in message
        assert str(standing.root) not in message


def test_a_call_that_is_too_large_is_refused_before_it_is_read(standing: CrdsServer) -> None:
    reply = requests.post(f"{standing.hst}/json/", data=b" " * 9_000_000, timeout=60)
    assert reply.status_code == 413
    for method in (requests.get, requests.put, requests.delete):
        assert method(f"{standing.hst}/json/", timeout=60).status_code == 405


def test_half_a_request_does_not_hold_up_others(standing: CrdsServer) -> None:
    port = standing.port
    head = b"POST /hst/json/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    hung = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(50)]
    try:
        for one in hung:
            one.sendall(head)
        assert call(standing.hst, "get_default_context", ["hst"])["result"] == CONTEXT
    finally:
        for one in hung:
            one.close()


# --- downloads ---------------------------------------------------------------------------------------------------


def test_files_are_downloaded_whole_in_part_or_only_measured(standing: CrdsServer, shared_data: Path) -> None:
    name = "z1q2219el_2zx.fits"
    content = (shared_data / "crds-contexts" / "references" / "hst" / name).read_bytes()
    url = f"{standing.hst}/get/{name}"
    assert requests.get(url, timeout=60).content == content
    head = requests.head(url, timeout=60)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(content)), b"")
    part = requests.get(url, headers={"Range": "bytes=100-199"}, timeout=60)
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(content)}"
    beyond = requests.get(url, headers={"Range": f"bytes={len(content)}-"}, timeout=60)
    assert beyond.status_code == 416
    mapping = requests.get(f"{standing.hst}/get/{CONTEXT}", timeout=60)
    assert mapping.text.startswith("header")
    assert mapping.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "nothing.fits",
        "nothing.pmap",
        "..",
        ".",
        "%2e%2e%2fserver%2frecords.sqlite",
        "..%2f..%2fserver%2frecords.sqlite",
        "../../server/records.sqlite",
        "%2fetc%2fpasswd",
        "a/b",
        "hst_0729.pmap/",
        "hst_0729.pmap%00",
        "HST_0729.PMAP",
        "*",
        "x" * 5000,
        "",
        "jwst_0541.pmap",
    ],
)
def test_what_is_no_file_is_not_found(standing: CrdsServer, name: str) -> None:
    with socket.create_connection(("127.0.0.1", standing.port), timeout=30) as plain:
        # Not by a library, which would tidy the path.
        plain.sendall(f"GET /hst/get/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = b""
        while piece := plain.recv(65536):
            reply += piece
    status = reply.split(b" ", 2)[1]
    assert status in (b"404", b"307"), reply[:200]
    assert b"SQLite" not in reply
    assert b"Traceback" not in reply


def test_a_file_that_is_only_known_says_so(standing: CrdsServer) -> None:
    reply = requests.get(f"{standing.hst}/get/34t20129l_gsag.fits", timeout=60)
    assert reply.status_code == 404
    assert reply.text.startswith("34t20129l_gsag.fits is known, but its content is not in this store")
    reply = requests.head(f"{standing.hst}/get/34t20129l_gsag.fits", timeout=60)
    assert reply.status_code == 404


# --- the commands ------------------------------------------------------------------------------------------------


def done(answer: Answer, code: int = 0) -> Answer:
    """Assert that a command ended so."""
    assert answer.code == code, answer.output
    assert "Traceback" not in answer.output, answer.output
    return answer


@pytest.mark.slow
def test_list_tells_status_contexts_and_catalogue(standing: CrdsServer, stock: Client) -> None:
    status = done(stock("list", "--status"))
    assert f"CRDS_SERVER_URL = '{standing.hst}'" in status.stdout
    assert f"Effective Context = '{CONTEXT}'" in status.stdout
    assert done(stock("list", "--latest-context")).stdout.split() == [CONTEXT]
    wanted = done(stock("list", "--resolve-contexts", "--contexts", "hst-2018-01-01T00:00:00", "hst-edit"))
    assert wanted.stdout.split() == ["hst_0595.pmap", CONTEXT]
    mappings = done(stock("list", "--mappings", "--contexts", CONTEXT))
    assert len(mappings.stdout.split()) == 137
    done(stock("sync", "--files", TWOZXTAB))
    catalogue = done(stock("list", "--cat", TWOZXTAB))
    for words in ("Catalog Info", "'sha1sum'", "'rejected'", "TWO-ZONE"):
        assert words in catalogue.stdout, catalogue.output
    assert done(stock("list", "--operational-context")).stdout.split() == [CONTEXT]


@pytest.mark.slow
def test_sync_brings_a_context_and_checks_it(stock: Client) -> None:
    done(stock("sync", "--contexts", CONTEXT))
    mappings = stock.cache / "mappings" / "hst"
    assert len(list(mappings.iterdir())) == 137
    assert (stock.cache / "config" / "hst" / "server_config").is_file()
    checked = done(stock("sync", "--contexts", CONTEXT, "--check-files", "--check-sha1sum"))
    assert "0 errors" in checked.output
    damaged = mappings / "hst_acs_atodtab_0251.rmap"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"#")
    found = stock("sync", "--contexts", CONTEXT, "--check-files", "--check-sha1sum")
    assert found.code and "hst_acs_atodtab_0251.rmap" in found.output
    done(stock("sync", "--contexts", CONTEXT, "--check-files", "--check-sha1sum", "--repair-files"), found.code)
    done(stock("sync", "--contexts", CONTEXT, "--check-files", "--check-sha1sum"))


def test_local_remote_and_auto_choose_the_same_references(stock: Client, raw: Path) -> None:
    from astropy.io import fits

    # Which types there are, the client reads in the rules, even if the server is to choose.
    done(stock("sync", "--contexts", CONTEXT))
    original = raw.read_bytes()
    chosen = {}
    for mode in ("local", "remote", "auto"):
        raw.write_bytes(original)
        words = ("bestrefs", "--files", RAW, "--new-context", CONTEXT, "--update-bestrefs", "--verbose")
        answer = done(stock(*words, env={"CRDS_MODE": mode}))
        assert ("'get_best_references'" in answer.output or "get_best_references" in answer.output) == (
            mode == "remote"
        )
        header = fits.getheader(raw)
        chosen[mode] = {key: header[key] for key in header if str(header[key]).startswith("lref$")}
    assert chosen["local"] == chosen["remote"] == chosen["auto"]
    assert chosen["local"]["BPIXTAB"] == f"lref${CHOSEN['bpixtab']}"
    assert len(chosen["local"]) > 15


def test_bestrefs_between_two_contexts_names_what_changed(stock: Client, raw: Path) -> None:
    words = ("--old-context", "hst_0650.pmap", "--new-context", CONTEXT, "--print-affected-details", "--files", RAW)
    answer = done(stock("bestrefs", *words))
    for kind in ("bpixtab", "disptab", "gsagtab", "spwcstab", "tdstab"):
        assert kind.upper() in answer.output or kind in answer.output, answer.output


@pytest.mark.slow
def test_getreferences_fetches_a_reference_and_checks_it(
    crds_server: CrdsServer, environment: dict[str, str], tmp_path: Path, raw: Path, shared_data: Path
) -> None:
    stock = make_client(tmp_path / "client", crds_server.hst, environment)
    # In hst_0600 the file that is chosen is a real one that is here.
    script = """
import json, sys
import crds
from crds import data_file
header = data_file.get_unconditioned_header(sys.argv[1], observatory="hst")
print(json.dumps(crds.getreferences(header, reftypes=["twozxtab"], context="hst_0600.pmap", observatory="hst")))
"""
    answer = stock.script(script, RAW)
    done(answer)
    path = Path(answer.json()["twozxtab"])
    source = shared_data / "crds-contexts" / "references" / "hst" / "z2d1925ql_2zx.fits"
    assert path.name == source.name
    assert hashlib.sha1(path.read_bytes()).hexdigest() == hashlib.sha1(source.read_bytes()).hexdigest()  # noqa: S324
    # A store whose content is not what its catalogue says is found out by the client.
    path.chmod(0o644)
    path.unlink()
    kept = next(crds_server.root.rglob("z2d1925ql_2zx.fits"))
    kept.chmod(0o644)
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(bytes(content))
    answer = stock.script(script, RAW)
    assert "sha1" in answer.output.lower() or "checksum" in answer.output.lower(), answer.output


@pytest.fixture
def synced(stock: Client) -> Client:
    """A client whose cache holds a context."""
    done(stock("sync", "--contexts", CONTEXT))
    return stock


@pytest.mark.slow
def test_a_new_reference_is_certified_inserted_and_named_without_the_website(synced: Client) -> None:
    """What developers do with files before they submit them."""
    stock = synced
    crds.make_reference(stock.home / "new_1dx.fits", USEAFTER="Jan 01 2018 00:00:00")
    certified = done(stock("certify", "new_1dx.fits", "--comparison-context", CONTEXT))
    assert "0 errors" in certified.output
    old = stock.cache / "mappings" / "hst" / "hst_cos_xtractab_0220.rmap"
    if not old.exists():
        old = next((stock.cache / "mappings" / "hst").glob("hst_cos_xtractab_*.rmap"))
    shutil.copyfile(old, stock.home / old.name)
    inserted = done(stock("refactor", "insert", f"./{old.name}", "./new.rmap", "./new_1dx.fits"))
    assert "0 errors" in inserted.output
    text = (stock.home / "new.rmap").read_text()
    assert "new_1dx.fits" in text
    differ = stock("diff", f"./{old.name}", "./new.rmap")
    assert (differ.code, "new_1dx.fits" in differ.output) == (1, True), differ.output
    number = int(old.stem.rpartition("_")[2])
    named = stock.home / f"hst_cos_xtractab_{number + 1:04d}.rmap"
    (stock.home / "new.rmap").rename(named)
    done(stock("checksum", f"./{named.name}"))
    made = done(stock("newcontext", CONTEXT, f"./{named.name}"))
    assert any(path.suffix == ".pmap" for path in stock.home.iterdir()), made.output
    unique = done(stock("uniqname", "--files", "new_1dx.fits", "--standard"))
    assert [p for p in stock.home.glob("*_1dx.fits") if p.name != "new_1dx.fits"], unique.output


@pytest.mark.slow
def test_matches_uses_and_diff_read_the_rules(synced: Client) -> None:
    matches = done(synced("matches", "--files", "24914347l_lamp.fits", "--contexts", CONTEXT))
    assert "lamptab" in matches.output.lower()
    uses = done(synced("uses", "--files", "24914347l_lamp.fits"))
    assert "hst_cos_lamptab" in uses.output
    done(synced("sync", "--contexts", "hst_0728.pmap"))
    differ = synced("diff", "crds://hst_0728.pmap", "crds://hst_0729.pmap")
    assert differ.code == 1
    assert "hst_wfc3_darkfile_0390.rmap" in differ.output
    same = synced("diff", "crds://hst_0729.pmap", "crds://hst_0729.pmap")
    assert same.code == 0


def test_sql_asks_the_catalogue(stock: Client) -> None:
    done(stock("sql", "--update-db"))
    answer = done(stock("sql", "select name from crds_hst_catalog where name like 'z1q2219el%'"))
    assert TWOZXTAB in answer.output
    again = done(stock("sql", "select count(*) from crds_hst_context_history"))
    assert "398" in again.output


def test_check_archive_measures_what_can_be_had(stock: Client) -> None:
    answer = stock("check_archive", "--files", "z1q2219el_2zx.fits", CONTEXT)
    assert "0 errors" in done(answer).output
    answer = stock("check_archive", "--files", "34t20129l_gsag.fits")
    assert "34t20129l_gsag.fits 107a0bed9207b081406ee6e895283ae2c16d1f4a 28592640 bad_missing" in answer.stdout


@pytest.mark.slow
def test_a_cache_elsewhere_says_where_it_is(
    crds_server: CrdsServer, environment: dict[str, str], tmp_path: Path
) -> None:
    stock = make_client(tmp_path / "client", crds_server.hst, environment)
    crds_server.operate("cache", "add", "pipe-1")
    done(stock("sync", "--contexts", CONTEXT, "--push-context", "pipe-1"))
    assert CONTEXT in done(stock("list", "--remote-context", "pipe-1")).stdout
    crds_server.stop()
    crds_server.start()
    assert CONTEXT in done(stock("list", "--remote-context", "pipe-1")).stdout


# --- datasets ----------------------------------------------------------------------------------------------------

#: Real datasets; the first is of the exposure that has the known answers.
COS, ACS = "LCE31SW6Q", "JA9553M3Q"


@pytest.fixture
def with_datasets(
    crds_server: CrdsServer, environment: dict[str, str], tmp_path: Path, shared_data: Path, cos_data: Path
) -> Client:
    """A client whose server knows a few real datasets."""
    raw = unpacked(cos_data / "inputs" / f"{RAW}.gz", tmp_path / RAW)
    headers = shared_data / "dataset-headers"
    sources = [str(raw), str(headers / "test_cos.json"), str(headers / "bestrefs_dnr_fix.json")]
    crds_server.operate("datasets", "import", *sources)
    client = make_client(tmp_path / "client", crds_server.hst, environment)
    done(client("sync", "--contexts", CONTEXT, "hst_0600.pmap"))
    return client


@pytest.mark.slow
def test_datasets_are_asked_for_by_their_ids(with_datasets: Client) -> None:
    stock = with_datasets
    ids = done(stock("list", "--dataset-ids-for-instruments", "cos", "--contexts", CONTEXT)).stdout.split()
    assert f"{COS}:{COS}" in ids
    assert len(ids) == 2
    for name in (COS, f"{COS}:{COS}", COS.lower()):
        header = done(stock("list", "--dataset-headers", name, "--contexts", CONTEXT)).stdout
        assert "'INSTRUME' : 'COS'" in header or "'INSTRUME': 'COS'" in header, header
        assert "DATE-OBS" in header
    unknown = stock("list", "--dataset-headers", "BAR", "--contexts", CONTEXT)
    assert "Can't determine instrument for dataset 'BAR'" in unknown.output
    words = ("--new-context", CONTEXT, "--print-new-references", "--types", "bpixtab", "gsagtab")
    best = done(stock("bestrefs", "--datasets", f"{COS}:{COS}", *words))
    assert "36d1836ml_bpix.fits" in best.output.lower(), best.output


@pytest.mark.slow
def test_affected_datasets_are_those_that_the_client_finds_itself(
    crds_server: CrdsServer, with_datasets: Client, tmp_path: Path
) -> None:
    stock = with_datasets
    contexts = ("--old-context", "hst_0600.pmap", "--new-context", CONTEXT)
    theirs = set(done(stock("bestrefs", "--affected-datasets", *contexts)).stdout.split())
    assert theirs == {COS.lower(), ACS.lower(), "ldfd01010"}
    crds_server.operate("affected", "hst_0600.pmap", CONTEXT, "--output", str(tmp_path / "affected.ids"))
    ours = "".join(path.read_text() for path in tmp_path.glob("affected*"))
    assert set(ours.lower().split()) == theirs


@pytest.mark.slow
def test_what_is_affected_is_published_once_it_is_computed(crds_server: CrdsServer, with_datasets: Client) -> None:
    early = with_datasets("query_affected", "--starting-context", "hst_0600.pmap")
    assert "Results for hst_0600.pmap --> hst_0601.pmap don't exist or are not yet complete" in early.output
    crds_server.operate("set-context", "hst_0600.pmap", "--why", "to come back")
    crds_server.operate("set-context", CONTEXT, "--why", "back again")
    olga = Person(crds_server.hst, "olga", crds_server.tokens["olga"])
    assert error_of(olga.sign_in("none")) == ""
    assert error_of(olga.post("/affected/compute/", {"old": "hst_0600.pmap", "new": CONTEXT})) == ""
    end = time.monotonic() + 60
    while (found := call(crds_server.hst, "get_affected_datasets", ["hst", "hst_0600.pmap", CONTEXT]))["error"]:
        assert time.monotonic() < end, found
        time.sleep(0.3)
    answer = found["result"]
    products = {COS.lower(), ACS.lower(), "ldfd01010"}
    assert {name.lower().partition(":")[0] for name in answer["affected_ids"]} == products
    assert answer["bestrefs_status"] == 0
    length = len(call(crds_server.hst, "get_context_history", ["hst"])["result"])
    late = done(with_datasets("query_affected", "--starting-context", str(length - 2)))
    assert {line.lower().partition(":")[0] for line in late.stdout.split()} == products, late.output
