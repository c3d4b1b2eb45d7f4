"""References and rules are submitted to a CRDS of ours: by the stock client, people and rogues, and in bad weather."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from astropy.io import fits
from bs4 import BeautifulSoup

from caldp.cli_crds import settings_of
from caldp.crdserver.jobs import as_json
from caldp.crdserver.site import Site
from tests import crds
from tests.crds import (
    FORM,
    IDCTAB,
    XTRACTAB,
    Client,
    CrdsServer,
    Person,
    error_of,
    make_client,
    make_large,
    make_reference,
    setup_line,
    signed_in,
    text_of,
)
from tests.desk import CONTEXT, DATA

crds_place, crds_server, make_crds = crds.crds_place, crds.crds_server, crds.make_crds
stock, person = crds.stock, crds.person

BASE = {"cos": "hst_cos_0306.imap", "acs": "hst_acs_0421.imap"}

#: What the stock client does, as a notebook would.
SUBMIT = """
import json, sys
{setup}
from crds.submit import Submission
said = json.loads(sys.argv[1])
submission = Submission("hst", "bit", context=said.get("context"))
for key, value in said["form"].items():
    submission[key] = value
for name in said["files"]:
    submission.add_file(name)
submission._auto_confirm = said["confirm"]
submission.validate()
result = submission.submit()
print()
print(json.dumps({{"errors": result.error_count, "url": result.ready_url, "map": submission.file_map}}))
"""


def submitting(client: Client, instrument: str, *files: str, confirm: bool = False, **more: Any) -> list[str]:
    """Write the script of a submission; return the words that start it.

    Where files are certified before they are sent, the client wants to have the rules already.
    """
    assert client("sync", "--contexts", "hst-edit").code == 0
    (client.home / "submit.py").write_text(SUBMIT.format(setup=setup_line()))
    said = {"form": {**FORM, "instrument": instrument}, "files": list(files), "confirm": confirm, **more}
    return ["submit.py", json.dumps(said)]


# --- what must always be so --------------------------------------------------------------------------------------


def site_of(server: CrdsServer) -> Site:
    """Return what a server serves."""
    return Site(settings_of(server.store, ""), "hst")


def assert_sound(server: CrdsServer) -> None:
    """Assert that no name was given out twice, and that all that is in the catalogue is there, whole."""
    site = site_of(server)
    given = [name for event in site.journal.events() if event.kind == "reserved" for name in event.data["names"]]
    assert len(given) == len(set(given)), sorted(given)
    state = site.state
    ours = {name: row for name, row in state.files.items() if row.get("submission")}
    for name, row in ours.items():
        reply = requests.get(f"{server.hst}/get/{name}", timeout=60)
        assert reply.status_code == 200, name
        assert len(reply.content) == row["size"], name
    for context in [name for name in ours if name.endswith(".pmap")]:
        closure = site.mappings.closure(context)
        assert len(closure) == 137
        assert all(name in state.files for name in closure)
        # The stock client's own opinion of what the mappings name.
        for name in [name for name in closure if name in ours]:
            text = requests.get(f"{server.hst}/get/{name}", timeout=60).text
            assert f"'name' : '{name}'" in text
    assert state.edit in state.files
    confirmed = [one for one, known in state.submissions.items() if known["state"] == "confirmed"]
    assert {row["submission"] for row in ours.values()} <= set(confirmed)
    site.records.close()


def edit_context(one: Person) -> str:
    """Return the context from which new ones are derived."""
    return str(one.call("get_default_context", "hst", "edit")["result"])


def new_name(page: Any, sent: str) -> str:
    """Return the name that a page shows for a file."""
    found = BeautifulSoup(page.text, "html.parser").find(id=sent)
    assert found, page.text
    return str(found.get_text()).strip()


def deliver(one: Person, instrument: str, path: Path) -> str:
    """Sign in, send a file, submit it, and wait until it is ready; return the id."""
    assert error_of(one.sign_in(instrument)) == ""
    assert error_of(one.upload(path.name, path.read_bytes())) == ""
    submission = one.begun(instrument)
    message = one.ended()
    assert (message["type"], message["data"]["status"]) == ("done", 0), message
    return submission


def state_of(server: CrdsServer, submission: str) -> str:
    """Return the state of a submission."""
    site = site_of(server)
    state = str(site.state.submissions[submission]["state"])
    site.records.close()
    return state


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A new reference of COS, to be used from 2018 on."""
    return make_reference(tmp_path / "new_1dx.fits", USEAFTER="Jan 01 2018 00:00:00")


@pytest.fixture
def idctab(tmp_path: Path) -> Path:
    """A new reference of ACS."""
    return make_reference(tmp_path / "new_idc.fits", IDCTAB, USEAFTER="Jan 01 2018 00:00:00")


# --- the stock client --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_submitters_at_once_deliver_for_two_instruments(
    crds_server: CrdsServer, environment: dict[str, str], tmp_path: Path
) -> None:
    """Both by the stock client, confirmed by itself; the one that comes later is derived from the other's context."""
    people = {"ann": ("cos", "new_1dx.fits"), "bob": ("acs", "new_idc.fits")}
    running, clients, results = {}, {}, {}
    for user, (instrument, name) in people.items():
        client = make_client(tmp_path / user, crds_server.hst, environment, **signed_in(crds_server, user))
        if instrument == "cos":
            make_large(client.home / name, USEAFTER="Jan 01 2018 00:00:00")
            assert (client.home / name).stat().st_size > 5_000_000
        else:
            make_reference(client.home / name, IDCTAB, USEAFTER="Jan 01 2018 00:00:00")
        clients[user] = client
        running[user] = submitting(client, instrument, name, confirm=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = {user: pool.submit(clients[user].run, *words) for user, words in running.items()}
    for user, ended in answers.items():
        answer = ended.result()
        assert answer.code == 0, answer.output
        results[user] = answer.json()
    ann, bob = results["ann"], results["bob"]
    assert (ann["errors"], bob["errors"]) == (0, 0)
    assert ann["map"][BASE["cos"]] == "hst_cos_0307.imap"
    somebody = Person(crds_server.hst, "olga", crds_server.tokens["olga"])
    final = edit_context(somebody)
    names = somebody.call("get_mapping_names", final)["result"]
    assert {"hst_cos_0307.imap", "hst_acs_0422.imap"} <= set(names)
    references = somebody.call("get_reference_names", final)["result"]
    assert ann["map"]["new_1dx.fits"] in references
    assert re.fullmatch(r"[a-z0-9]{9}_1dx\.fits", ann["map"]["new_1dx.fits"])
    assert len(references) == 20530 + 2
    assert_sound(crds_server)

    # The rules choose the new file from its date on, and the old one before; the client fetches and checks it.
    script = """
import json, sys
import crds
header = {"INSTRUME": "COS", "DETECTOR": "FUV", "OBSTYPE": "SPECTROSCOPIC", "EXPTYPE": "EXTERNAL/SCI",
          "OBSMODE": "TIME-TAG", "OPT_ELEM": "G130M", "CENWAVE": "1291", "LIFE_ADJ": sys.argv[2],
          "TIME-OBS": "00:00:00", "APERTURE": "PSA"}
found = [crds.getrecommendations({**header, "DATE-OBS": date}, reftypes=["xtractab"], context=sys.argv[1],
         observatory="hst")["xtractab"] for date in ("2015-01-01", "2018-11-20")]
print(json.dumps(found))
"""
    life = str(fits.getval(clients["ann"].home / "new_1dx.fits", "LIFE_ADJ"))
    answer = clients["ann"].script(script, final, life)
    assert answer.code == 0, answer.output
    before, after = answer.json()
    assert after == ann["map"]["new_1dx.fits"]
    assert before != after
    fetched = clients["bob"]("sync", "--files", ann["map"]["new_1dx.fits"])
    assert fetched.code == 0, fetched.output
    path = next(clients["bob"].cache.rglob(ann["map"]["new_1dx.fits"]))
    assert fits.getval(path, "USEAFTER") == "Jan 01 2018 00:00:00"

    # Who comes second is told the names as well, though his context is not derived from the one that he began with.
    assert bob["map"][BASE["acs"]] == "hst_acs_0422.imap"
    assert {ann["map"][CONTEXT], bob["map"][CONTEXT]} == {"hst_0730.pmap", "hst_0731.pmap"} or final == bob["map"][
        CONTEXT
    ]
    assert bob["map"]["new_idc.fits"] in references


@pytest.mark.slow
def test_a_submission_is_looked_at_and_confirmed_by_hand(
    crds_server: CrdsServer, stock: Client, person: Callable[..., Person], reference: Path
) -> None:
    (stock.home / reference.name).write_bytes(reference.read_bytes())
    answer = stock.run(*submitting(stock, "cos", reference.name), env=signed_in(crds_server, "ann"))
    assert answer.code == 0, answer.output
    result = answer.json()
    assert (result["errors"], result["url"].startswith(f"{crds_server.hst}/display_result/")) == (0, True)
    # The client has told its user of names that it has read on the page and asked for.
    assert result["map"][CONTEXT] == "hst_0730.pmap"
    assert result["map"][BASE["cos"]] == "hst_cos_0307.imap"
    assert any(re.fullmatch(r"hst_cos_xtractab_\d+\.rmap", name) for name in result["map"].values())
    submission = result["url"].rpartition("/")[2]
    ann = person("ann")
    assert error_of(person("bob").get(f"/display_result/{submission}")) != ""
    ann.sign_in("cos")
    page = ann.get(f"/display_result/{submission}")
    assert new_name(page, reference.name) == result["map"][reference.name]
    assert "Logical Diff (" in text_of(page.text)
    assert edit_context(ann) == CONTEXT
    page = ann.button(submission, "confirm")
    assert error_of(page) == ""
    assert new_name(page, reference.name) == result["map"][reference.name]
    assert edit_context(ann) == new_name(page, CONTEXT) == "hst_0730.pmap"
    # Twice is not twice.
    ann.sign_in("cos")
    ann.button(submission, "confirm")
    assert edit_context(ann) == "hst_0730.pmap"
    assert ann.call("get_default_context", "hst", None)["result"] == CONTEXT
    assert (
        crds_server.operate("set-context", "hst_0730.pmap", "--why", "tests").strip() == f"{CONTEXT} -> hst_0730.pmap"
    )
    listed = stock("list", "--latest-context")
    assert listed.stdout.split() == ["hst_0730.pmap"], listed.output
    assert_sound(crds_server)


@pytest.mark.slow
def test_the_submit_command_delivers_certifies_and_signs_out(
    crds_server: CrdsServer, environment: dict[str, str], tmp_path: Path, person: Callable[..., Person]
) -> None:
    def client(user: str) -> Client:
        return make_client(tmp_path / user, crds_server.hst, environment, **signed_in(crds_server, user))

    ann, bob = client("ann"), client("bob")
    make_reference(ann.home / "new_1dx.fits", USEAFTER="Jan 01 2018 00:00:00")
    make_reference(bob.home / "bad_idc.fits", IDCTAB, USEAFTER="on a Monday")
    watch = ("--monitor-processing", "--wait-for-completion", "--wipe-existing-files")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        more = ("--files", "new_1dx.fits", "--creator", "tests", "--description", "testing")
        first = pool.submit(ann, "submit", *watch, *more)
        second = pool.submit(bob, "submit", *watch, "--submission-kind", "certify", "--files", "bad_idc.fits")
    batch, certify = first.result(), second.result()
    assert batch.code == 0, batch.output
    assert f"COMPLETED: {crds_server.hst}/display_result/" in batch.output
    assert certify.code != 0, certify.output
    assert "USEAFTER" in certify.output and "on a Monday" in certify.output, certify.output
    # Who has forgotten to sign out may do so, and then somebody else may come.
    assert "ann" in error_of(person("bob").sign_in("cos"))
    answer = ann("submit", "--logout", "--files", "new_1dx.fits")
    assert answer.code == 0, answer.output
    assert error_of(person("bob").sign_in("cos")) == ""
    assert_sound(crds_server)


def test_a_delivered_reference_knows_its_own_name(
    crds_server: CrdsServer, person: Callable[..., Person], reference: Path, tmp_path: Path
) -> None:
    """HST's files have it in their header; calibrations and later certifications read it there."""
    ann = person("ann")
    submission = deliver(ann, "cos", reference)
    name = new_name(ann.get(f"/display_result/{submission}"), reference.name)
    ann.button(submission, "confirm")
    path = tmp_path / name
    path.write_bytes(requests.get(f"{crds_server.hst}/get/{name}", timeout=60).content)
    header = fits.getheader(path)
    assert header["FILENAME"] == name
    assert header["ROOTNAME"] == name.removesuffix(".fits").upper()
    assert any(f"{reference.name} renamed to {name}" in line for line in header["HISTORY"])


def test_files_that_certify_refuses_are_bad_files(
    crds_server: CrdsServer, person: Callable[..., Person], tmp_path: Path
) -> None:
    bad = make_reference(tmp_path / "bad_1dx.fits", USEAFTER="on a Monday", PEDIGREE="WHATEVER")
    ann = person("ann")
    ann.sign_in("cos")
    ann.upload(bad.name, bad.read_bytes())
    submission = ann.begun("cos")
    message = ann.ended()
    assert message["data"]["status"] == 1
    assert "error" in message["data"]["result"]
    errors = [one for one in ann.call("jpoll_pull_messages", ann.channel, "0")["result"] if one["type"] == "error"]
    assert any("on a Monday" in one["data"] for one in errors)
    assert not any(str(crds_server.root) in str(one["data"]) for one in errors)
    assert state_of(crds_server, submission) == "bad files"
    assert error_of(ann.button(submission, "confirm")) != ""
    assert edit_context(ann) == CONTEXT
    assert ann.uploaded() == {}
    assert_sound(crds_server)


def test_what_is_of_another_instrument_or_known_already_is_refused(
    crds_server: CrdsServer, person: Callable[..., Person], reference: Path
) -> None:
    ann = person("ann")
    ann.sign_in("acs")
    ann.upload(reference.name, reference.read_bytes())
    assert "you have locked acs, not cos" in ann.submit("cos")
    ann.begun("acs")
    assert "is of cos, but acs is locked" in ann.ended()["data"]["result"].lower()
    real = (DATA / "crds-contexts" / "references" / "hst" / XTRACTAB).read_bytes()
    ann.sign_in("cos")
    ann.upload("renamed_1dx.fits", real)
    ann.begun("cos")
    assert f"renamed_1dx.fits is identical with {XTRACTAB}" in ann.ended()["data"]["result"]
    ann.upload("once_1dx.fits", reference.read_bytes())
    ann.upload("twice_1dx.fits", reference.read_bytes())
    ann.begun("cos")
    assert "twice_1dx.fits is identical with once_1dx.fits" in ann.ended()["data"]["result"]
    assert edit_context(ann) == CONTEXT
    assert_sound(crds_server)


@pytest.mark.slow
def test_what_was_cancelled_is_submitted_again_under_new_names(
    crds_server: CrdsServer, person: Callable[..., Person], reference: Path
) -> None:
    ann = person("ann")
    first = deliver(ann, "cos", reference)
    names = {sent: new_name(ann.get(f"/display_result/{first}"), sent) for sent in (reference.name, CONTEXT)}
    assert error_of(ann.button(first, "cancel")) == ""
    ann.sign_in("cos")
    assert state_of(crds_server, first) == "cancelled"
    assert "was cancelled" in error_of(ann.button(first, "confirm")) or error_of(ann.button(first, "confirm"))
    assert requests.get(f"{crds_server.hst}/get/{names[reference.name]}", timeout=60).status_code == 404
    assert ann.call("get_mapping_names", names[CONTEXT])["error"]
    second = deliver(ann, "cos", reference)
    again = {sent: new_name(ann.get(f"/display_result/{second}"), sent) for sent in (reference.name, CONTEXT)}
    assert not set(names.values()) & set(again.values())
    assert error_of(ann.button(second, "confirm")) == ""
    assert edit_context(ann) == again[CONTEXT]
    assert_sound(crds_server)


def edited_rmap(server: CrdsServer, home: Path, env: Mapping[str, str]) -> Path:
    """Write rules that somebody has changed by hand: the date of one file of COS is another one."""
    site = site_of(server)
    old = next(name for name in site.mappings.closure(CONTEXT) if name.startswith("hst_cos_xtractab_"))
    text = site.mappings.path(old).read_text()
    site.records.close()
    target = home / old
    assert "'2009-05-11 00:00:02'" in text
    target.write_text(text.replace("'2009-05-11 00:00:02'", "'2009-05-11 00:00:03'"))
    make_client(home, server.hst, env)("checksum", f"./{old}")
    return target


@pytest.mark.slow
def test_rules_that_somebody_has_written_become_a_context(
    crds_server: CrdsServer, person: Callable[..., Person], environment: dict[str, str], tmp_path: Path
) -> None:
    rmap = edited_rmap(crds_server, tmp_path, environment)
    ann = person("ann")
    ann.sign_in("cos")
    assert error_of(ann.upload(rmap.name, rmap.read_bytes())) == ""
    # Not with references.
    submission = ann.begun("cos", "/batch_submit_references/")
    assert "mappings are submitted by themselves" in ann.ended()["data"]["result"]
    assert error_of(ann.upload(rmap.name, rmap.read_bytes())) == ""
    submission = ann.begun("cos", "/submit/mapping/")
    message = ann.ended()
    assert message["data"]["status"] == 0, message
    assert error_of(ann.button(submission, "confirm")) == ""
    names = ann.call("get_mapping_names", edit_context(ann))["result"]
    number = int(rmap.stem.rpartition("_")[2])
    new = next(name for name in names if name.startswith("hst_cos_xtractab_"))
    assert int(Path(new).stem.rpartition("_")[2]) > number
    text = requests.get(f"{crds_server.hst}/get/{new}", timeout=60).text
    assert f"'derived_from' : '{rmap.name}'" in text
    assert "'2009-05-11 00:00:03' : 'x6q17586l_1dx.fits'" in text
    assert_sound(crds_server)


# --- rogues ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ann(person: Callable[..., Person]) -> Person:
    """Somebody who has signed in."""
    one = person("ann")
    assert error_of(one.sign_in("cos")) == ""
    return one


def test_nobody_comes_in_with_a_wrong_token(crds_server: CrdsServer, person: Callable[..., Person]) -> None:
    for user, token in (
        ("ann", ""),
        ("ann", "wrong"),
        ("ann", crds_server.tokens["bob"]),
        ("ann", crds_server.tokens["ann"][:-1]),
        ("Ann", crds_server.tokens["ann"]),
        ("nobody", crds_server.tokens["ann"]),
        ("", ""),
        ("a" * 5000, "x"),
        ("ann\x00", crds_server.tokens["ann"]),
        ("../users", "x"),
        ("ann\nolga", "x"),
    ):
        rogue = person("ann")
        rogue.user = user
        reply = rogue.sign_in("cos", token)
        assert error_of(reply), (user, reply.text)
        assert "Invalid username or token" in error_of(reply)
        for path in ("/upload/list/", "/jpoll/open_channel", "/upload/chunked/", "/display_result/x"):
            assert "not signed in" in error_of(rogue.get(path)), path
        assert "not signed in" in error_of(rogue.upload("new_1dx.fits", b"SIMPLE  = "))
        assert "not signed in" in error_of(rogue.post("/batch_submit_references/", {"instrument": "cos"}))
        assert "not signed in" in error_of(rogue.button("x", "confirm"))
    for secret in crds_server.tokens.values():
        assert secret not in crds_server.log()
        assert all(secret.encode() not in path.read_bytes() for path in crds_server.root.glob("server/*.sqlite*"))


def test_who_is_removed_is_out_at_once(crds_server: CrdsServer, ann: Person) -> None:
    assert ann.uploaded() == {}
    crds_server.operate("user", "remove", "ann")
    assert "not signed in" in error_of(ann.get("/upload/list/"))
    assert "Invalid username or token" in error_of(ann.sign_in("cos"))


def test_a_form_of_a_stranger_is_not_taken(crds_server: CrdsServer, ann: Person) -> None:
    for path in ("/login/", "/upload/chunked/", "/batch_submit_references/", "/submit_confirm_pipeline/"):
        for forged in (None, "", "x" * 32):
            form = {
                "username": "ann",
                "password": ann.token,
                "instrument": "cos",
                "results_id": "x",
                "button": "confirm",
            }
            given = {**form, **({} if forged is None else {"csrfmiddlewaretoken": forged})}
            reply = ann.session.post(f"{ann.url}{path}", data=given, timeout=60)
            assert "does not come from a page" in error_of(reply), (path, forged, reply.text)
    # A cookie and a field that agree, but that no page has set: a stranger's page can set neither.
    reply = requests.post(f"{ann.url}/login/", data={"csrfmiddlewaretoken": "x" * 32}, timeout=60)
    assert error_of(reply)
    assert ann.uploaded() == {}


@pytest.mark.parametrize(
    "name",
    [
        "../new_1dx.fits",
        "../../../../tmp/new_1dx.fits",
        "/etc/new_1dx.fits",
        "a/new_1dx.fits",
        "a\\new_1dx.fits",
        "new_1dx.fits\x00.txt",
        "new\n_1dx.fits",
        "n" * 5000 + ".fits",
        "n\u00e4w_1dx.fits",
        "\u202estif.xd1.fits",
        ".fits",
        "..fits",
        "-rf.fits",
        "a..b.fits",
        "new_1dx.exe",
        "new_1dx.fits.gz",
        "new_1dx",
        "",
        "con fits",
        "$(id).fits",
        "new_1dx.fits;id",
    ],
)
def test_hostile_names_are_refused(crds_server: CrdsServer, ann: Person, name: str) -> None:
    before = {path for path in crds_server.root.rglob("*") if "sqlite" not in path.name}
    reply = ann.upload(name, b"SIMPLE  =                    T")
    assert error_of(reply) or reply.status_code in (400, 413), reply.text
    assert ann.uploaded() == {}
    assert {path for path in crds_server.root.rglob("*") if "sqlite" not in path.name} == before
    assert ann.get(f"/upload/delete/{requests.utils.quote(name, safe='')}").status_code in (200, 404)


@pytest.mark.parametrize(
    ("content_range", "size", "words"),
    [
        ("bytes 0-99/50", 100, "truncated?"),
        ("bytes 0-199/200", 100, "truncated?"),
        ("bytes 5-4/200", 100, "truncated?"),
        ("bytes 100-199/200", 100, "bytes from 100 came, but 0 are here"),
        ("bytes -1-98/200", 100, "truncated?"),
        ("bytes 0-99/*", 100, "truncated?"),
        ("bytes 0-99/99999999999999", 100, "are too many"),
        ("pages 0-99/200", 100, "truncated?"),
        ("", 0, "is empty"),
    ],
)
def test_parts_that_do_not_fit_are_refused(ann: Person, content_range: str, size: int, words: str) -> None:
    reply = ann.upload("new_1dx.fits", b"SIMPLE  =".ljust(size, b" ")[:size], content_range)
    assert words in error_of(reply), reply.text
    assert ann.uploaded() == {}


def test_parts_come_in_order_and_are_whole_before_they_are_submitted(
    crds_server: CrdsServer, ann: Person, reference: Path
) -> None:
    content = reference.read_bytes()
    total = len(content)
    first, second = total // 3, 2 * total // 3

    def send(start: int, end: int) -> str:
        return error_of(ann.upload(reference.name, content[start:end], f"bytes {start}-{end - 1}/{total}"))

    assert send(0, first) == ""
    assert "bytes have come" in ann.submit("cos")
    assert f"bytes from {second} came, but {first} are here" in send(second, total)
    assert send(first, second) == ""
    assert send(first, second) == ""  # its answer was lost
    assert "are here" in send(first, second - 1)
    assert send(second, total) == ""
    assert ann.uploaded() == {reference.name: total}
    ann.begun("cos")
    assert ann.ended()["data"]["status"] == 0
    assert_sound(crds_server)


def test_too_much_is_refused(make_crds: Callable[..., CrdsServer], person: Callable[..., Person]) -> None:
    server = make_crds("--largest-upload", "3000000")
    ann = person("ann", server=server)
    ann.sign_in("cos")
    part = b"SIMPLE  =".ljust(2_000_000)
    assert "3000001 bytes are too many" in error_of(ann.upload("new_1dx.fits", part, "bytes 0-1999999/3000001"))
    reply = ann.upload("new_1dx.fits", b"SIMPLE  =".ljust(8_000_000))
    assert reply.status_code == 413 or error_of(reply)
    reply = ann.post("/batch_submit_references/", {"description": "x" * 2_000_000})
    assert reply.status_code == 413 or error_of(reply)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        plain.sendall(b"POST /hst/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in plain.recv(1000).split(b"\r\n")[0]
    assert ann.uploaded() == {}


def bomb(target: Path) -> Path:
    """Write a small file that becomes a large one: an image of zeros, compressed."""
    make_reference(target, USEAFTER="Jan 01 2018 00:00:00")
    hdu = fits.CompImageHDU(np.zeros((20_000, 20_000), "i4"), compression_type="GZIP_1", tile_shape=(2_000, 20_000))
    with fits.open(target, mode="append") as hdus:
        hdus.append(hdu)
    assert target.stat().st_size < 10_000_000
    return target


def claims(target: Path) -> Path:
    """Write a file whose header claims more than there is."""
    header = fits.Header([("SIMPLE", True), ("BITPIX", -64), ("NAXIS", 3), *((f"NAXIS{n}", 99999) for n in (1, 2, 3))])
    header.update({"TELESCOP": "HST", "INSTRUME": "COS", "FILETYPE": "ONE-D EXTRACTION PARAMETERS TABLE"})
    target.write_bytes(header.tostring().encode())
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"SIMPLE  =" + np.random.default_rng(1).bytes(200_000)),
        lambda path: path.write_bytes(make_reference(path).read_bytes()[:5000]),
        lambda path: path.write_bytes(b"SIMPLE  =                    T" + b" " * 50),
        claims,
        bomb,
    ],
    ids=["garbage", "truncated", "no header", "claims", "bomb"],
)
def test_files_that_are_hostile_end_as_bad_files_in_time(
    crds_server: CrdsServer, ann: Person, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "evil_1dx.fits"
    make(path)
    content = path.read_bytes()
    for start in range(0, len(content), 2_000_000):
        part = content[start : start + 2_000_000]
        reply = ann.upload(path.name, part, f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        assert error_of(reply) == ""
    submission = ann.begun("cos")
    largest = 0
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ended = pool.submit(ann.ended, 60)
        while not ended.done():
            for worker in crds_server.workers():
                try:
                    largest = max(largest, worker.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.05)
    message = ended.result()
    assert largest < 1_500_000_000
    if "bomb" not in os.environ["PYTEST_CURRENT_TEST"]:
        assert message["data"]["status"] == 1, message
        assert state_of(crds_server, submission) in ("bad files", "failed")
        assert "Traceback" not in message["data"]["result"]
        assert str(crds_server.root) not in str(ann.call("jpoll_pull_messages", ann.channel, "0"))
    assert edit_context(ann) == CONTEXT
    assert_sound(crds_server)


@pytest.mark.slow
def test_a_context_is_not_submitted_and_operators_alone_change_others_submissions(
    crds_server: CrdsServer, ann: Person, person: Callable[..., Person], reference: Path
) -> None:
    pmap = requests.get(f"{crds_server.hst}/get/{CONTEXT}", timeout=60).content
    ann.upload(CONTEXT, pmap)
    begun = ann.submit("cos", "/submit/mapping/")
    if "has begun" in begun:
        result = ann.ended()["data"]
        assert result["status"] == 1
        assert "rmap" in result["result"] or "identical" in result["result"]
    ann.upload("hst_0999.pmap", pmap.replace(b"hst_0728", b"hst_0700"))
    begun = ann.submit("cos", "/submit/mapping/")
    if "has begun" in begun:
        result = ann.ended()["data"]
        assert result["status"] == 1, result
    submission = deliver(ann, "cos", reference)
    bob, olga = person("bob"), person("olga")
    assert "ann" in error_of(bob.sign_in("cos"))
    bob.sign_in("acs")
    for button in ("confirm", "cancel"):
        assert f"submission {submission} is of ann" in error_of(bob.button(submission, button))
    assert "is no button" in error_of(ann.button(submission, "explode"))
    assert "there is no submission" in error_of(ann.button("../x", "confirm"))
    assert edit_context(ann) == CONTEXT
    olga.sign_in("none")
    assert error_of(olga.button(submission, "cancel")) == ""
    assert state_of(crds_server, submission) == "cancelled"
    assert_sound(crds_server)


# --- bad weather -------------------------------------------------------------------------------------------------


def test_an_instrument_is_locked_for_one_at_a_time(crds_server: CrdsServer, person: Callable[..., Person]) -> None:
    ann, bob = person("ann"), person("bob")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda one: error_of(one.sign_in("cos")), (ann, bob)))
    assert sorted(map(bool, said)) == [False, True], said
    first, second = (ann, bob) if not said[0] else (bob, ann)
    assert first.user in next(filter(None, said))
    status = first.get(f"/lock_status/{first.user}/").json()
    assert (status["name"], status["user"], status["is_expired"], status["type"]) == (
        "cos",
        first.user,
        False,
        "instrument",
    )
    assert re.fullmatch(r"3:59:\d\d|4:00:00", status["time_remaining"])
    assert error_of(first.sign_in("cos")) == ""
    first.get("/logout/")
    assert error_of(second.sign_in("cos")) == ""


@pytest.mark.slow
def test_a_lock_that_has_expired_takes_what_was_not_confirmed_with_it(
    make_crds: Callable[..., CrdsServer], person: Callable[..., Person], reference: Path
) -> None:
    server = make_crds("--lock-hours", "0.0012")  # four seconds
    ann, bob = person("ann", server=server), person("bob", server=server)
    ann.sign_in("cos")
    ann.upload(reference.name, reference.read_bytes())
    submission = ann.begun("cos")
    end = time.monotonic() + 60
    while not any(one["type"] == "done" for one in ann.call("jpoll_pull_messages", ann.channel, "0")["result"] or []):
        ann.uploaded()  # who is there keeps the lock
        assert time.monotonic() < end
        time.sleep(0.3)
    assert error_of(bob.sign_in("cos"))
    time.sleep(4.5)
    assert error_of(bob.sign_in("cos")) == ""
    assert "not signed in" in error_of(ann.button(submission, "confirm"))
    assert state_of(server, submission) == "cancelled"
    assert bob.get("/lock_status/ann/").json()["is_expired"]
    assert edit_context(bob) == CONTEXT
    assert_sound(server)


def work(server: CrdsServer, job: str) -> subprocess.Popen[str]:
    """Start a worker for a job, as a queue does that delivers twice."""
    site = site_of(server)
    site.records.close()
    settings = as_json(settings_of(server.store, "", url=server.url))
    env = {**os.environ, "CALDP_CRDS_JOB": json.dumps(settings)}
    argv = [sys.executable, "-m", "caldp.crdserver.job", "hst", job]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_job_that_comes_twice_or_late_changes_nothing(crds_server: CrdsServer, ann: Person, reference: Path) -> None:
    ann.upload(reference.name, reference.read_bytes())
    submission = ann.begun("cos")
    rivals = [work(crds_server, f"submission-{submission}") for _ in range(2)]
    assert ann.ended()["data"]["status"] == 0
    for rival in rivals:
        output, _ = rival.communicate(timeout=120)
        assert rival.returncode == 0, output
    done = [one for one in ann.call("jpoll_pull_messages", ann.channel, "0")["result"] if one["type"] == "done"]
    assert len(done) == 1
    site = site_of(crds_server)
    events = [event.kind for event in site.journal.events()]
    site.records.close()
    assert events.count("ready") == 1
    late = work(crds_server, f"submission-{submission}")
    assert (late.communicate(timeout=120), late.returncode)[1] == 0
    assert error_of(ann.button(submission, "confirm")) == ""
    late = work(crds_server, f"submission-{submission}")
    assert (late.communicate(timeout=120), late.returncode)[1] == 0
    assert edit_context(ann) == "hst_0730.pmap"
    assert_sound(crds_server)


def test_a_server_that_is_killed_forgets_neither_people_nor_parts(
    crds_server: CrdsServer, ann: Person, reference: Path
) -> None:
    content = reference.read_bytes()
    half = len(content) // 2
    crds_server.kill()
    crds_server.start()
    assert ann.uploaded() == {}
    assert error_of(ann.upload(reference.name, content[:half], f"bytes 0-{half - 1}/{len(content)}")) == ""
    crds_server.kill()
    crds_server.start()
    rest = f"bytes {half}-{len(content) - 1}/{len(content)}"
    assert error_of(ann.upload(reference.name, content[half:], rest)) == ""
    submission = ann.begun("cos")
    assert ann.ended()["data"]["status"] == 0
    crds_server.kill()
    crds_server.start()
    assert state_of(crds_server, submission) == "ready"
    assert error_of(ann.button(submission, "confirm")) == ""
    crds_server.kill()
    crds_server.start()
    assert state_of(crds_server, submission) == "confirmed"
    assert edit_context(ann) == "hst_0730.pmap"
    assert_sound(crds_server)


def test_an_upload_that_is_cut_off_leaves_what_was_there(crds_server: CrdsServer, ann: Person, reference: Path) -> None:
    cookies = "; ".join(f"{one.name}={one.value}" for one in ann.session.cookies)
    head = (
        f"POST /hst/upload/chunked/ HTTP/1.1\r\nHost: localhost\r\nCookie: {cookies}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{reference.name}"\r\n\r\nSIMPLE  ='
    )
    with socket.create_connection(("127.0.0.1", crds_server.port), timeout=30) as plain:
        plain.sendall(head.encode())
        time.sleep(0.3)
    assert ann.uploaded() == {}
    with socket.create_connection(("127.0.0.1", crds_server.port), timeout=30) as plain:
        plain.sendall(head.encode())
        time.sleep(0.3)
        crds_server.kill()
    crds_server.start()
    assert ann.uploaded() == {}
    assert error_of(ann.upload(reference.name, reference.read_bytes())) == ""


def ended_truthfully(server: CrdsServer, ann: Person, reference: Path, timeout: float) -> None:
    """Assert that a submission that was disturbed ends: confirmed, or over so that it can be submitted again."""
    site = site_of(server)
    end = time.monotonic() + timeout
    while (known := list(site.state.submissions.values())) and known[-1]["state"] == "started":
        assert time.monotonic() < end, f"the submission is still {known[-1]['state']}"
        time.sleep(0.5)
    submissions = dict(site.state.submissions)
    site.records.close()
    if not submissions:
        # Nobody knows of it: what was sent is still there, to be submitted.
        assert ann.uploaded() == {reference.name: reference.stat().st_size}
        submission = ann.begun("cos")
        assert ann.ended()["data"]["status"] == 0
    else:
        (submission, last) = list(submissions.items())[-1]
        assert last["state"] in ("ready", "confirmed"), last
    if state_of(server, submission) == "ready":
        assert error_of(ann.button(submission, "confirm")) == ""
    # A confirmation lets go of the lock, and whoever held it signs in anew.
    ann.sign_in("none")
    new = new_name(ann.get(f"/display_result/{submission}"), reference.name)
    assert new in ann.call("get_reference_names", edit_context(ann))["result"]
    assert_sound(server)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.01, 0.03, 0.1])
def test_a_server_that_is_killed_while_a_submission_begins(
    crds_server: CrdsServer, ann: Person, reference: Path, pause: float
) -> None:
    """The POST may be lost; a submission is not, and nothing is there by halves."""
    ann.upload(reference.name, reference.read_bytes())
    ann.channel = ann.get("/jpoll/open_channel").json()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        form = {"instrument": "cos", "description": "testing", "creator": "tests", "change_level": "SEVERE"}
        csrf = ann.csrf()
        posted = pool.submit(
            lambda: ann.session.post(
                f"{ann.url}/batch_submit_references/", data={**form, "csrfmiddlewaretoken": csrf}, timeout=30
            )
        )
        time.sleep(pause)
        crds_server.kill()
        assert posted.exception() is None or isinstance(posted.exception(), requests.ConnectionError)
    crds_server.start()
    ended_truthfully(crds_server, ann, reference, 60)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["Certifying", "Inserting", "Replaced"])
def test_a_server_that_is_killed_while_a_job_runs(
    crds_server: CrdsServer, ann: Person, reference: Path, words: str
) -> None:
    """What a worker has begun is taken up again, once it is known to be dead."""
    ann.upload(reference.name, reference.read_bytes())
    ann.begun("cos")
    end = time.monotonic() + 60
    while words not in str(ann.call("jpoll_pull_messages", ann.channel, "0")["result"]):
        assert time.monotonic() < end
        time.sleep(0.02)
    crds_server.kill()
    crds_server.start()
    ended_truthfully(crds_server, ann, reference, 240)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(crds_server: CrdsServer, ann: Person, reference: Path) -> None:
    ann.upload(reference.name, reference.read_bytes())
    ann.begun("cos")
    end = time.monotonic() + 60
    while not (workers := crds_server.workers()):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(1)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    ended_truthfully(crds_server, ann, reference, 240)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.02, 0.06, 0.15])
def test_a_server_that_is_killed_during_a_confirmation(
    crds_server: CrdsServer, ann: Person, reference: Path, pause: float
) -> None:
    submission = deliver(ann, "cos", reference)
    csrf = ann.csrf()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        form = {"results_id": submission, "button": "confirm", "csrfmiddlewaretoken": csrf}
        posted = pool.submit(lambda: ann.session.post(f"{ann.url}/submit_confirm_pipeline/", data=form, timeout=30))
        time.sleep(pause)
        crds_server.kill()
        assert posted.exception() is None or isinstance(posted.exception(), requests.ConnectionError)
    crds_server.start()
    if "not signed in" in error_of(ann.get("/upload/list/")):
        ann.sign_in("cos")
    ended_truthfully(crds_server, ann, reference, 30)


@pytest.mark.slow
def test_two_confirmations_at_once_are_one(
    crds_server: CrdsServer, ann: Person, person: Callable[..., Person], reference: Path, idctab: Path
) -> None:
    """Of one submission by two people, and of two submissions of two instruments."""
    bob, olga = person("bob"), person("olga")
    mine = deliver(ann, "cos", reference)
    theirs = deliver(bob, "acs", idctab)
    olga.sign_in("none")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda it: it[0].button(it[1], "confirm"), ((ann, mine), (olga, mine), (bob, theirs))))
    assert state_of(crds_server, mine) == state_of(crds_server, theirs) == "confirmed"
    names = set(ann.call("get_mapping_names", edit_context(ann))["result"])
    assert {"hst_cos_0307.imap", "hst_acs_0422.imap"} <= names
    assert_sound(crds_server)
