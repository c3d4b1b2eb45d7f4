"""From files that were submitted to contexts that are set, without a server; the work is done by its own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caldp import crds_layout, crds_rules
from caldp.crdserver import archive, contexts, submissions
from caldp.crdserver.contexts import confirm, mark, set_context
from caldp.crdserver.site import Site
from caldp.errors import InputError, ReferencesError, UsageError
from tests.desk import cos_data
from tests.sites import altered, made_site, shared_data, shelf, site, submitted, work

__all__ = ["cos_data", "made_site", "shared_data", "shelf", "site"]

USEAFTER = "Jan 01 2015 00:00:00"


@pytest.fixture
def dead(cos_data: Path) -> bytes:
    """A new DEADTAB of COS FUV."""
    return altered(cos_data / "crds_cache" / "references" / "hst" / "s7g1700gl_dead.fits", USEAFTER=USEAFTER)


@pytest.fixture
def idc(shared_data: Path) -> bytes:
    """A new IDCTAB of ACS WFC."""
    path = shared_data / "crds-contexts" / "references" / "hst" / "v8q14451j_idc.fits"
    return altered(path, USEAFTER="Jan 01 2016 00:00:00")


def ready(site: Site, name: str, data: bytes, **more: str) -> str:
    """Submit a file and have the work done; it must be ready then."""
    one = submitted(site, name, data, **more)
    said = work(site, one)
    assert site.state.submissions[one]["state"] == "ready", said
    return one


def test_a_delivery_from_beginning_to_end(site: Site, dead: bytes) -> None:
    one = ready(site, "new_dead.fits", dead)
    before = site.state
    assert before.edit == "hst_0729.pmap" and before.submissions[one]["attempt"] == 1
    result = submissions.result(site, one)
    new = result["renamed"]["new_dead.fits"]
    assert new.endswith("l_dead.fits") and new not in before.files
    rmap = result["renamed"]["hst_cos_deadtab_0250.rmap"]
    assert rmap == "hst_cos_deadtab_0251.rmap"
    (difference,) = [d for d in result["differences"] if d["new"] == rmap]
    assert any(new in line and "added" in line for line in difference["logical"])
    assert f"+        '2015-01-01 00:00:00' : '{new}'," in difference["text"]
    assert "\n-        '1996-10-01" not in difference["text"]
    # What it would bring can be looked at, but is not in the catalogue.
    assert site.context("hst_0730.pmap") == "hst_0730.pmap"
    assert "hst_0730.pmap" not in before.contexts

    assert confirm(site, one, "ann") == result["renamed"]
    after = site.state
    assert after.edit == "hst_0730.pmap" and after.latest == "hst_0729.pmap"
    row = after.files[new]
    assert (row["instrument"], row["filekind"], row["state"]) == ("cos", "deadtab", "archived")
    assert (row["deliverer"], row["uploaded_as"], row["useafter"]) == ("ann", "new_dead.fits", USEAFTER)
    assert after.files["hst_0730.pmap"]["derived_from"] == "hst_0729.pmap"
    for name in ("hst_0730.pmap", "hst_cos_0307.imap", rmap):
        header, _ = crds_rules.parse(site.mappings.path(name).read_bytes())
        assert header["name"] == name
    assert set(site.mappings.closure("hst_0730.pmap")) - set(after.files) == set()
    # The files as they were sent are gone.
    assert list(site.store.walk("server/hst/uploads")) == []

    header = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2017-10-01", "TIME-OBS": "00:00:00"}
    assert site.stock.best_references("hst_0730.pmap", header, ["deadtab"]) == {"deadtab": new}
    early = header | {"DATE-OBS": "2014-10-01"}
    assert site.stock.best_references("hst_0730.pmap", early, ["deadtab"]) == {"deadtab": "s7g1700gl_dead.fits"}
    assert site.stock.best_references("hst_0729.pmap", header, ["deadtab"]) == {"deadtab": "s7g1700gl_dead.fits"}

    assert set_context(site, "edit", "olga", "") == {"old": "hst_0729.pmap", "new": "hst_0730.pmap"}
    assert site.state.history[-1][1:] == ("hst_0730.pmap", "a test")
    pointer = crds_layout.parse_pointer(site.store, site.store.get(crds_layout.POINTER))
    assert pointer["context"] == "hst_0730.pmap"
    listing = site.store.get(crds_layout.listing_key("hst_0730.pmap"))
    assert listing is not None and new in json.loads(listing.data)["files"]
    kinds = [event.kind for event in site.journal.events()]
    assert kinds == ["set context", "confirmed", "ready", "reserved", "reserved", "reserved", "submitted", "imported"]


def test_who_comes_second_is_derived_from_who_came_first(site: Site, dead: bytes, idc: bytes) -> None:
    first = ready(site, "new_dead.fits", dead)
    second = ready(site, "new_idc.fits", idc, user="bob", instrument="acs")
    proposed = submissions.result(site, second)["context"]
    assert proposed == "hst_0731.pmap"
    confirm(site, first, "ann")
    renamed = confirm(site, second, "bob")
    assert renamed["hst_0730.pmap"] == renamed["hst_0729.pmap"] == "hst_0732.pmap" == site.state.edit
    assert "hst_0731.pmap" not in site.state.files
    instruments = dict(site.mappings.selected("hst_0732.pmap"))
    assert instruments["COS"] == "hst_cos_0307.imap" and instruments["ACS"] == "hst_acs_0422.imap"
    assert site.mappings.header("hst_0732.pmap")["derived_from"] == "hst_0730.pmap"
    assert set(site.mappings.closure("hst_0732.pmap")) <= set(site.state.files)
    # Nobody finds what was given up.
    assert site.store.get(crds_layout.mapping_key("hst_0731.pmap")) is None
    with pytest.raises(InputError):
        site.context("hst_0731.pmap")


@pytest.mark.slow
def test_rules_that_have_changed_meanwhile_are_not_overwritten(site: Site, dead: bytes, cos_data: Path) -> None:
    first = ready(site, "new_dead.fits", dead)
    other = altered(cos_data / "crds_cache" / "references" / "hst" / "x1u1459il_brf.fits", USEAFTER=USEAFTER)
    # As when the lock of the first was taken over, which cancels it unless somebody confirms just then.
    second = ready(site, "new_brf.fits", other, user="bob")
    confirm(site, first, "ann")
    with pytest.raises(InputError, match=r"the rules of COS have changed since \(now hst_cos_0307.imap\)"):
        confirm(site, second, "bob")
    assert site.state.submissions[second]["state"] == "ready"
    submissions.cancel(site, second, "bob", "")
    assert site.state.edit == "hst_0730.pmap"


@pytest.mark.slow
def test_a_cancelled_delivery_leaves_nothing_but_used_names(site: Site, dead: bytes) -> None:
    before = {entry.key for entry in site.store.walk("") if not entry.key.startswith(("server/", "records", "work"))}
    one = ready(site, "new_dead.fits", dead)
    submissions.cancel(site, one, "ann", "a mistake")
    with pytest.raises(InputError, match="is cancelled"):
        confirm(site, one, "ann")
    after = {entry.key for entry in site.store.walk("") if not entry.key.startswith(("server/", "records", "work"))}
    assert after == before and list(site.store.walk("server/hst/uploads")) == []
    with pytest.raises(InputError):
        site.context("hst_0730.pmap")
    again = ready(site, "new_dead.fits", dead)
    assert submissions.result(site, again)["context"] == "hst_0731.pmap"


@pytest.mark.slow
def test_what_is_confirmed_cannot_be_cancelled_or_confirmed_again(site: Site, dead: bytes) -> None:
    one = ready(site, "new_dead.fits", dead)
    confirm(site, one, "ann")
    with pytest.raises(InputError, match="was confirmed by ann"):
        submissions.cancel(site, one, "ann", "")
    with pytest.raises(InputError, match="is confirmed"):
        confirm(site, one, "ann")


def test_files_that_certify_does_not_take(site: Site, dead: bytes, cos_data: Path) -> None:
    bad = altered(cos_data / "crds_cache" / "references" / "hst" / "s7g1700gl_dead.fits", USEAFTER="sometime")
    one = submitted(site, "new_dead.fits", bad)
    work(site, one)
    known = site.state.submissions[one]
    assert known["state"] == "bad files" and "certify does not take the files" in known["reason"]
    assert any("USEAFTER" in line for line in submissions.result(site, one)["lines"] if line.startswith("ERROR"))
    assert site.state.reserved == {} and list(site.store.walk("server/hst/uploads")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("new_dead.fits", b"SIMPLE  =" + b"\0" * 5000, ""),
        ("new_dead.json", b"{}", ""),
        ("hst_cos_deadtab_9999.rmap", b"header = {}\nimport os\n", "mappings are submitted by themselves"),
    ],
)
def test_files_that_are_garbage(site: Site, name: str, data: bytes, why: str) -> None:
    one = submitted(site, name, data)
    work(site, one)
    known = site.state.submissions[one]
    assert known["state"] == "bad files" and why in known["reason"]


@pytest.mark.slow
def test_a_file_that_is_there_already(site: Site, shared_data: Path) -> None:
    data = (shared_data / "crds-contexts" / "references" / "hst" / "z1q2219el_2zx.fits").read_bytes()
    one = submitted(site, "mine_2zx.fits", data)
    work(site, one)
    assert "mine_2zx.fits is identical with z1q2219el_2zx.fits" in site.state.submissions[one]["reason"]


def test_a_file_of_another_instrument(site: Site, dead: bytes) -> None:
    one = submitted(site, "new_dead.fits", dead, instrument="acs")
    work(site, one)
    assert site.state.submissions[one]["state"] == "bad files"
    assert "is of cos, but acs is locked" in site.state.submissions[one]["reason"]


@pytest.mark.slow
def test_certifying_alone_changes_nothing(site: Site, dead: bytes) -> None:
    one = submitted(site, "new_dead.fits", dead, kind="certify")
    work(site, one)
    assert site.state.submissions[one]["state"] == "checked"
    assert submissions.result(site, one)["errors"] == 0
    assert site.state.reserved == {} and site.state.edit == "hst_0729.pmap"


@pytest.mark.slow
def test_references_without_rules(site: Site, dead: bytes) -> None:
    one = ready(site, "new_dead.fits", dead, kind="references")
    renamed = confirm(site, one, "ann")
    assert list(renamed) == ["new_dead.fits"] and renamed["new_dead.fits"] in site.state.files
    assert site.state.edit == "hst_0729.pmap"


@pytest.mark.slow
def test_names_that_are_to_stay(site: Site, dead: bytes) -> None:
    one = ready(site, "abc12345l_dead.fits", dead, auto_rename="False")
    assert confirm(site, one, "ann")["abc12345l_dead.fits"] == "abc12345l_dead.fits"
    other = submitted(site, "abc12345l_dead.fits", dead + b"\0" * 2880, auto_rename="False")
    work(site, other)
    assert "there is a file abc12345l_dead.fits already" in site.state.submissions[other]["reason"]


def test_a_mapping_that_somebody_has_written(site: Site) -> None:
    text = site.mappings.path("hst_cos_deadtab_0250.rmap").read_text()
    text = text.replace(
        "'1996-10-01 00:00:00' : 's7g1700gl_dead.fits'", "'1997-10-01 00:00:00' : 's7g1700gl_dead.fits'"
    )
    one = ready(site, "mine.rmap", text.encode(), kind="mappings")
    renamed = confirm(site, one, "ann")
    assert renamed["mine.rmap"] == "hst_cos_deadtab_0251.rmap" and site.state.edit == "hst_0730.pmap"
    assert site.mappings.header("hst_cos_deadtab_0251.rmap")["derived_from"] == "hst_cos_deadtab_0250.rmap"
    assert "hst_cos_deadtab_0251.rmap" in site.mappings.closure("hst_0730.pmap")


@pytest.mark.slow
def test_a_mapping_that_names_what_there_is_not(site: Site) -> None:
    text = site.mappings.path("hst_cos_deadtab_0250.rmap").read_text().replace("s7g1700gl_dead", "s7g1700zz_dead")
    one = submitted(site, "mine.rmap", text.encode(), kind="mappings")
    work(site, one)
    assert site.state.submissions[one]["state"] == "bad files"


@pytest.mark.slow
def test_a_job_that_comes_twice_or_late_changes_nothing(site: Site, dead: bytes) -> None:
    one = ready(site, "new_dead.fits", dead)
    before = site.state
    work(site, one)
    assert site.state.seq == before.seq
    confirm(site, one, "ann")
    work(site, one)
    assert site.state.submissions[one]["state"] == "confirmed"


def test_an_archive_has_its_say_before_anybody_gets_a_file(made_site: Callable[..., Site], dead: bytes) -> None:
    site = made_site(archive="manifest")
    one = ready(site, "new_dead.fits", dead)
    new = confirm(site, one, "ann")["new_dead.fits"]
    archive.deliver(site, one)
    folder = Path(site.store.url("archive/hst"))
    manifest = folder / f"{one}.cat"
    assert manifest.read_text().split()[0] == new
    with pytest.raises(ReferencesError, match="not yet archived"):
        site.available(new)
    with pytest.raises(InputError, match=f"{new} is not archived yet"):
        set_context(site, "edit", "olga", "")
    archive.acknowledge(site)
    assert site.state.submissions[one]["archive"] == "delivered"
    manifest = manifest.rename(folder / f"{one}.cat_err")
    archive.acknowledge(site)
    assert site.state.submissions[one]["archive"] == "refused"
    manifest = manifest.rename(folder / f"{one}.cat_proc")
    archive.acknowledge(site)
    assert site.state.submissions[one]["archive"] == "in process"
    manifest.unlink()
    archive.acknowledge(site)
    assert site.state.submissions[one]["archive"] == "archived"
    assert site.available(new)[0] == f"references/hst/{new}"
    set_context(site, "edit", "olga", "")
    archive.acknowledge(site)


# ---- contexts that are there


def test_a_step_over_several_contexts_wants_a_reason(site: Site) -> None:
    with pytest.raises(InputError, match="has no reason yet"):
        set_context(site, "hst_0600.pmap", "olga", " ")
    set_context(site, "hst_0600.pmap", "olga", "back to 2018")
    assert site.state.latest == "hst_0600.pmap" and site.state.edit == "hst_0729.pmap"
    assert site.context("hst-latest") == "hst_0600.pmap"
    seq = site.state.seq
    assert set_context(site, "hst_0600.pmap", "olga", "again")["new"] == "hst_0600.pmap"
    assert site.state.seq == seq


@pytest.mark.parametrize("name", ["hst_9999.pmap", "hst_cos_0306.imap", "", "../x.pmap", "latest"])
def test_contexts_that_are_none(site: Site, name: str) -> None:
    with pytest.raises(InputError):
        set_context(site, name, "olga", "why not")


def test_bad_files_are_known_to_all_who_ask(site: Site) -> None:
    name = "s7g1700gl_dead.fits"
    with pytest.raises(UsageError):
        mark(site, [name], "olga", "", bad=True)
    with pytest.raises(InputError, match="no file of this CRDS"):
        mark(site, ["nothing.fits"], "olga", "x", bad=True)
    mark(site, [name], "olga", "wrong by a factor of two", bad=True)
    assert name in site.state.bad_files
    pointer = crds_layout.parse_pointer(site.store, site.store.get(crds_layout.POINTER))
    assert name in pointer["bad_files"]
    mark(site, [name], "olga", "right after all", bad=False)
    assert name not in site.state.bad_files


def test_a_context_with_a_bad_mapping_is_not_set(site: Site) -> None:
    mark(site, ["hst_cos_deadtab_0250.rmap"], "olga", "wrong", bad=True)
    with pytest.raises(InputError, match=r"hst_cos_deadtab_0250.rmap is bad \(wrong\)"):
        set_context(site, "hst_0728.pmap", "olga", "older")


def test_jobs_find_a_context_that_was_set(site: Site, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    set_context(site, "hst_0700.pmap", "olga", "older")
    blob = site.store.get(crds_layout.rules_key("hst_0700.pmap"))
    assert blob is not None
    files = crds_layout.unpack_rules(site.store, "hst_0700.pmap", blob.data, empty)
    assert set(files) == set(site.mappings.closure("hst_0700.pmap"))
    contexts.publish(site, "hst_0700.pmap")
    contexts.point(site)
