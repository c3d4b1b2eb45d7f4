"""Calls and replies of JSON-RPC, forms, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from crds.client.proxy import crds_decode

from caldp.crds_cache import encoded_metadata
from caldp.crdserver import forms, wire
from caldp.crdserver.settings import Settings, from_environment
from caldp.errors import InputError, UsageError


def add(a: int, b: int = 1) -> int:
    return a + b


def fail() -> None:
    raise InputError("Can't find <it> & more", remedy="look")


def break_down() -> None:
    raise ZeroDivisionError("secret detail")


METHODS = {"add": add, "fail": fail, "break_down": break_down}


def called(method: Any, params: Any, **more: Any) -> dict[str, Any]:
    body = json.dumps({"jsonrpc": "1.0", "method": method, "params": params, "id": "x"} | more).encode()
    return dict(json.loads(wire.written(wire.answer(body, METHODS, Mock()))))


def test_a_call_with_a_list_or_with_names() -> None:
    assert called("add", [2, 3]) == {"jsonrpc": "1.0", "id": "x", "error": None, "result": 5}
    assert called("add", {"a": 2})["result"] == 3


def test_an_error_is_told_as_the_client_reads_it() -> None:
    reply = called("fail", [])
    assert reply["result"] is None
    assert reply["error"] == {
        "name": "OtherError",
        "message": "OtherError: Can't find &lt;it&gt; &amp; more",
        "code": 500,
        "data": None,
    }


@pytest.mark.parametrize(("method", "params"), [
    ("nothing", []), (None, []), (5, []), ("__class__", []), ("add", []), ("add", [1, 2, 3]), ("add", {"c": 1}),
    ("add", "12"), ("add", 7), ("add", None),
])  # fmt: skip
def test_calls_that_make_no_sense(method: Any, params: Any) -> None:
    assert called(method, params)["error"]["message"].startswith("OtherError: ")


def test_an_id_that_is_no_id() -> None:
    assert called("add", [2], id="x" * 201)["error"]["message"] == "OtherError: this is no call of JSON-RPC"
    assert called("add", [2], id="x" * 200)["result"] == 3


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 100_000, b'"text"'])
def test_bodies_that_are_no_call(body: bytes) -> None:
    reply = json.loads(wire.written(wire.answer(body, METHODS, Mock())))
    assert reply["error"]["message"] == "OtherError: this is no call of JSON-RPC"


def test_what_breaks_is_logged_and_not_told() -> None:
    failed = Mock()
    body = json.dumps({"method": "break_down", "params": [], "id": 1}).encode()
    reply = json.loads(wire.written(wire.answer(body, METHODS, failed)))
    assert reply["error"]["message"] == "OtherError: break_down failed: ZeroDivisionError"
    assert failed.call_args.args[0] == "break_down"


def test_the_client_unpacks_what_is_packed() -> None:
    value = {"a": [1, "ü"]}
    assert crds_decode(encoded_metadata(value)) == value


# ---- forms

#: Keys that both notebooks of the seed set, and those that a submission carries at all.
KEYS = (
    "deliverer other_email file_type history_updated pedigree_updated keywords_checked descrip_updated "
    "useafter_updated useafter_matches compliance_verified ingest_files etc_delivery calpipe_version replacement_files "
    "old_reference_files replacing_badfiles jira_issue table_rows_changed modes_affected correctness_testing "
    "additional_considerations instrument"
).split()


@pytest.mark.parametrize(("observatory", "more"), [("hst", []), ("jwst", ["jwst_etc"])])
def test_a_form_has_the_fields_that_clients_fill_in(observatory: str, more: list[str]) -> None:
    fields = forms.fields(observatory)
    assert sorted(field["key"] for field in fields) == sorted([*KEYS, *more])
    for field in fields:
        assert field["type"] in ("BooleanField", "CharField", "TypedChoiceField")
        assert isinstance(field["required"], bool) and field["label"]
        assert all(isinstance(choice, str) for choice in field.get("choices", ()))


def test_instruments_of_the_forms() -> None:
    assert forms.instruments("hst") == ["acs", "cos", "nicmos", "stis", "synphot", "wfc3", "wfpc2"]
    assert forms.instruments("jwst") == ["fgs", "miri", "nircam", "niriss", "nirspec", "system"]


GOOD = {
    "description": "new darks, from 2018",
    "change_level": "SEVERE",
    "useafter_matches": "N/A",
    "ingest_files": "False",
}


def test_what_was_said_is_kept_and_nothing_else() -> None:
    assert forms.checked("hst", "batch", GOOD | {"csrfmiddlewaretoken": "x", "more": "y"}) == GOOD


@pytest.mark.parametrize("wrong", [
    {"description": ""}, {"description": " "}, {"description": "<b>"}, {"change_level": "HUGE"},
    {"useafter_matches": "perhaps"}, {"ingest_files": "perhaps"}, {"pmap_mode": "pmap_any"},
    {"deliverer": "x" * 30_000},
])  # fmt: skip
def test_fields_that_cannot_be(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        forms.checked("hst", "batch", GOOD | wrong)


def test_certifying_wants_no_description() -> None:
    assert forms.checked("hst", "certify", {"pmap_mode": "pmap_edit"}) == {"pmap_mode": "pmap_edit"}


# ---- settings


def test_settings_of_a_function() -> None:
    environ = {
        "CALDP_CRDS_STORE": "s3://b/p",
        "CALDP_CRDS_RECORDS": "dynamodb:t",
        "CALDP_CRDS_URL": "https://x.test/",
        "URL": "y",
    }
    settings = from_environment(
        environ | {"CALDP_CRDS_JOBS": "lambda:f", "CALDP_CRDS_INLINE": "7", "CALDP_CRDS_MAST": ""}
    )
    assert (settings.store, settings.url, settings.jobs, settings.inline) == (
        "s3://b/p",
        "https://x.test",
        "lambda:f",
        7,
    )
    assert settings.secure and settings.mast == ""


@pytest.mark.parametrize("wrong", [
    {"CALDP_CRDS_STORE": ""}, {"CALDP_CRDS_INLINE": "many"}, {"CALDP_CRDS_ARCHIVE": "tape"},
    {"CALDP_CRDS_JOBS": "somebody"},
])  # fmt: skip
def test_settings_that_make_no_sense(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        from_environment({"CALDP_CRDS_STORE": "file:x", "CALDP_CRDS_RECORDS": "sqlite:x"} | wrong)


def test_settings_of_this_machine() -> None:
    settings = Settings("file:x", "sqlite:x", "http://localhost:1", Path("x"))
    assert not settings.secure and settings.lock_seconds == 4 * 3600
