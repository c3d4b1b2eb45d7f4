"""What the pages of a CRDS show, asked of a real one without a server."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caldp.crdserver import comparisons, contexts, datasets, lookups, pages, reprocessing, submissions, tables
from caldp.crdserver.affected import Affected
from caldp.crdserver.site import Site
from caldp.crdserver.state import State
from caldp.crdserver.sweep import Counts
from caldp.crdserver.uploads import Uploads
from caldp.crdserver.verdicts import Reason
from caldp.errors import InputError
from caldp.store import Overwrite
from tests.markup import faults
from tests.sites import made_site, shared_data, shelf, site, submitted

__all__ = ["made_site", "shared_data", "shelf", "site"]

LATEST, BEFORE = "hst_0729.pmap", "hst_0728.pmap"
DEADTAB = "s7g1700gl_dead.fits"


def stock(site: Site, *argv: str) -> list[str]:
    """Return the lines that a command of the stock client prints, of the rules of a site."""
    site.mappings.closure(LATEST), site.mappings.closure(BEFORE)
    env = {k: v for k, v in os.environ.items() if not k.startswith("CRDS_")}
    env |= {"CRDS_PATH": str(site.cache), "CRDS_SERVER_URL": "https://serverless.invalid", "CRDS_OBSERVATORY": "hst"}
    env |= {"CRDS_READONLY_CACHE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-m", *argv], env=env, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("CRDS - ")]


# ---- pages of rows


@pytest.mark.parametrize(
    ("total", "number", "expected"),
    [
        (0, 1, ([], 1, 1, 0, 0)),
        (3, 1, ([0, 1, 2], 1, 1, 1, 3)),
        (7, 2, ([3, 4, 5], 2, 3, 4, 6)),
        (7, 3, ([6], 3, 3, 7, 7)),
        (7, 99, ([6], 3, 3, 7, 7)),
        (7, 0, ([0, 1, 2], 1, 3, 1, 3)),
        (6, 2, ([3, 4, 5], 2, 2, 4, 6)),
    ],
)
def test_rows_are_cut_into_pages(total: int, number: int, expected: tuple[Any, ...]) -> None:
    page = tables.paged(range(total), number, 3)
    assert (list(page.rows), page.number, page.pages, page.first, page.last) == expected
    assert page.total == total


def reviewed(site: Site, one: str) -> dict[str, Any]:
    """What the page of a submission knows beside its result."""
    state = site.state
    return pages.review(state, state.submissions[one], submissions.result(site, one))


def test_lines_of_a_difference_have_their_sort() -> None:
    text = "--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n same"
    assert [sort for sort, _ in comparisons.classified(text)] == ["file", "file", "hunk", "del", "add", ""]


# ---- headers


def test_headers_are_read_as_people_type_them() -> None:
    typed = (
        "# a comment\nINSTRUME= 'COS     '  / instrument\ndetector = FUV\nEXPTIME =  3.5 / seconds\n\nO = 'it''s'\nEND"
    )
    assert lookups.header_of(typed) == {"INSTRUME": "COS", "DETECTOR": "FUV", "EXPTIME": "3.5", "O": "it's"}


@pytest.mark.parametrize("typed", ["", "nothing of this kind", "# A = 1", "= 3"])
def test_what_is_no_header_is_refused(typed: str) -> None:
    with pytest.raises(InputError, match="no header"):
        lookups.header_of(typed)


@pytest.mark.parametrize("data", [b"", b"SIMPLE  =                    T", b"SIMPLE  =" + bytes(9000), b"\x1f\x8bgz"])
def test_what_is_no_fits_file_is_refused(site: Site, data: bytes) -> None:
    with pytest.raises(InputError):
        lookups.fits_header(site, data)
    assert list((site.settings.work).glob("headers/*")) == []


# ---- catalogue


@pytest.fixture
def state() -> State:
    """A catalogue of four files."""
    row = {
        "sha1": "x",
        "size": 1,
        "state": "archived",
        "type": "reference",
        "instrument": "acs",
        "filekind": "darkfile",
    }
    mapping = {**row, "type": "mapping", "instrument": "", "filekind": ""}
    files = {
        "b_drk.fits": {**row, "size": 30},
        "a_drk.fits": {**row, "instrument": "wfc3", "size": 9, "bad": "wrong"},
        "hst_0001.pmap": {**mapping, "delivered": "2026-01-31T23:59:59Z"},
        "c[1].fits": {**row, "filekind": "", "state": "delivered", "size": 200, "delivered": "2026-02-01T00:00:00Z"},
    }
    return State("hst", files=files)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, ["a_drk.fits", "b_drk.fits", "c[1].fits", "hst_0001.pmap"]),
        ({"sort": "-name"}, ["hst_0001.pmap", "c[1].fits", "b_drk.fits", "a_drk.fits"]),
        ({"sort": "size"}, ["hst_0001.pmap", "a_drk.fits", "b_drk.fits", "c[1].fits"]),
        ({"sort": "-size"}, ["c[1].fits", "b_drk.fits", "a_drk.fits", "hst_0001.pmap"]),
        ({"name": "DRK"}, ["a_drk.fits", "b_drk.fits"]),
        ({"name": "?_drk.*"}, ["a_drk.fits", "b_drk.fits"]),
        ({"name": "drk.*"}, []),
        ({"type": "mapping"}, ["hst_0001.pmap"]),
        ({"instrument": "acs", "filekind": "darkfile"}, ["b_drk.fits"]),
        ({"state": "delivered"}, ["c[1].fits"]),
        ({"bad": "yes"}, ["a_drk.fits"]),
        ({"bad": "no", "type": "reference"}, ["b_drk.fits", "c[1].fits"]),
        ({"since": "2026-02-01"}, ["c[1].fits"]),
        ({"until": "2026-01-31"}, ["hst_0001.pmap"]),
        ({"since": "2026-01-31", "until": "2026-02-01"}, ["c[1].fits", "hst_0001.pmap"]),
    ],
)
def test_the_catalogue_is_searched(state: State, wanted: dict[str, str], names: list[str]) -> None:
    assert [name for name, _ in pages.search(state, pages.Search(**wanted))] == names


def test_the_catalogue_is_not_sorted_by_what_there_is_not(state: State) -> None:
    with pytest.raises(InputError, match="sorted by"):
        pages.search(state, pages.Search(sort="sha1"))


# ---- rules


def test_tables_of_a_context_name_all_its_references(site: Site) -> None:
    found = tables.context(site, "hst-latest")
    assert found["name"] == LATEST
    cos = next(one for one in found["instruments"] if one["instrument"] == "cos")
    types = tables.instrument(site, LATEST, "cos")["types"]
    assert (cos["types"], cos["imap"]) == (len(types), "hst_cos_0306.imap")
    shown = set()
    for one in types:
        number = 1
        while True:
            page = tables.rules(site, LATEST, "cos", one["type"], number)["page"]
            shown |= {row[-1] for row in page.rows}
            if number == page.pages:
                break
            number += 1
    assert shown - {"N/A"} == set(site.mappings.references(cos["imap"]))
    assert len(shown - {"N/A"}) == cos["references"]


def test_rules_are_a_table(site: Site) -> None:
    found = tables.rules(site, LATEST, "cos", "deadtab", 1)
    assert found["parameters"] == ["DETECTOR", "USEAFTER", "REFERENCE"]
    assert list(found["page"].rows)[0] == ["FUV", "1996-10-01 00:00:00", DEADTAB]


@pytest.mark.parametrize(("which", "kind"), [("nircam", "deadtab"), ("cos", "biasfile")])
def test_rules_that_there_are_not_are_refused(site: Site, which: str, kind: str) -> None:
    with pytest.raises(InputError):
        tables.rules(site, LATEST, which, kind, 1)


def test_a_mapping_says_what_names_it(site: Site) -> None:
    found = tables.mapping(site, "hst_cos_0306.imap")
    assert LATEST in found["named_by"]
    assert "hst_cos_deadtab_0250.rmap" in found["names"]
    assert found["header"]["derived_from"] == "hst_cos_0305.imap"


def test_rules_differ_as_crds_diff_writes_it(site: Site) -> None:
    found = comparisons.differences(site, BEFORE, LATEST)
    said = stock(site, "crds.diff", f"crds://{BEFORE}", f"crds://{LATEST}")
    folder = f"{site.mappings.folder}/"
    assert found["logical"] == [line.replace(folder, "") for line in said] and len(said) == 197
    assert [(one["instrument"], one["type"], len(one["added"])) for one in found["kinds"]] == [
        ("wfc3", "darkfile", 97),
        ("wfc3", "drkcfile", 97),
    ]
    assert any(line.startswith("+") and LATEST in line for line in found["text"])


def test_mappings_of_two_sorts_are_not_compared(site: Site) -> None:
    with pytest.raises(InputError, match="one sort"):
        comparisons.differences(site, LATEST, "hst_cos_0306.imap")


def test_steps_between_contexts_are_counted(site: Site) -> None:
    state = site.state
    assert comparisons.steps_between(state, BEFORE, LATEST) == 1
    assert comparisons.steps_between(state, LATEST, BEFORE) == 0


# ---- one file


def test_a_file_is_chosen_as_crds_matches_says(site: Site) -> None:
    found = pages.file(site, DEADTAB)
    said = stock(site, "crds.matches", "--contexts", LATEST, "--files", DEADTAB)
    assert [f" {DEADTAB} : {line}" for line in found["matches"]] == [f" {line.strip()}" for line in said]
    assert found["named_by"] == ["hst_cos_deadtab_0250.rmap"]
    assert LATEST in found["contexts"] and len(found["contexts"]) == 5


def test_what_was_done_with_a_file_is_told(site: Site) -> None:
    contexts.mark(site, [DEADTAB], "olga", "wrong", bad=True)
    found = pages.file(site, DEADTAB)
    assert [(event.kind, event.who, event.why) for event in found["actions"]] == [("bad", "olga", "wrong")]
    assert found["fields"]["rejected"] == "true"
    assert DEADTAB in tables.context(site, LATEST)["bad_references"]
    contexts.mark(site, ["hst_cos_0306.imap"], "olga", "wrong as well", bad=True)
    assert tables.context(site, LATEST)["bad"] == ["hst_cos_0306.imap"]


def test_files_that_a_user_has_sent_are_compared_with_others(site: Site, shared_data: Path) -> None:
    name = "z2d19237l_1dx.fits"
    data = (shared_data / "crds-contexts" / "references" / "hst" / name).read_bytes()
    changed = data.replace(b"May 11 2009", b"May 12 2009")
    assert changed != data
    Uploads(site, "ann").receive("same.fits", data, "")
    Uploads(site, "ann").receive("other.fits", changed, "")
    assert comparisons.file_differences(site, "ann", name, "uploaded:same.fits") == []
    said = comparisons.file_differences(site, "ann", name, "uploaded:other.fits")
    assert any("USEAFTER" in line for line in said) and not any(str(site.settings.work) in line for line in said)
    with pytest.raises(InputError, match="you have sent no file"):
        comparisons.file_differences(site, "bob", name, "uploaded:other.fits")
    with pytest.raises(InputError):
        comparisons.file_differences(site, "ann", name, "uploaded:../../etc/passwd")
    with pytest.raises(InputError, match="cannot be had"):
        comparisons.file_differences(site, "ann", name, DEADTAB)


# ---- best references


def test_best_references_are_those_of_the_stock_client(site: Site, shared_data: Path) -> None:
    raw = shared_data / "cos-ldfd01010" / "inputs" / "ldfd01vnq_rawtag_a.fits.gz"
    with gzip.open(raw) as stream:
        header = lookups.fits_header(site, stream.read(1_000_000) + bytes(2880))
    found = lookups.best(site, "hst-latest", header)
    chosen = {row["type"]: row["file"] for row in found["rows"] if row["file"]}
    said = site.stock.best_references(LATEST, header)
    assert chosen == {kind: file for kind, file in said.items() if not file.startswith("NOT FOUND")}
    assert {row["type"] for row in found["rows"] if row["why"]} == set(said) - set(chosen)
    assert chosen["xtractab"] == "23n1744fl_1dx.fits"
    keys = next(row["keys"] for row in found["rows"] if row["type"] == "deadtab")
    assert list(keys) == ["DETECTOR", "DATE-OBS", "TIME-OBS"] and keys["DETECTOR"] == "FUV"


def test_best_references_of_a_dataset_are_those_of_its_header(site: Site) -> None:
    header = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2017-01-01", "TIME-OBS": "00:00:00"}
    datasets.import_headers(site.store, "hst", [("LAAA01010:LAAA01AAQ", header), ("LAAA01010:LAAA01ABQ", header)])
    found = lookups.best_of_dataset(site, "hst-latest", "laaa01010")
    assert [one["dataset"] for one in found] == ["LAAA01010:LAAA01AAQ", "LAAA01010:LAAA01ABQ"]
    files = {row["type"]: row["file"] for row in found[0]["rows"]}
    assert files["deadtab"] == DEADTAB
    with pytest.raises(InputError):
        lookups.best_of_dataset(site, "hst-latest", "LZZZ01010")


def test_keywords_to_be_given_are_those_of_the_rules(site: Site) -> None:
    lines = lookups.keywords(site, "hst-latest", "cos").splitlines()
    assert lines[0] == "INSTRUME = COS" and "DETECTOR = " in lines and "REFTYPE = " not in lines


# ---- what has happened


def test_events_are_found_page_by_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROWS", 2)
    for number in range(5):
        site.journal.append("signed in" if number % 2 else "bad", "ann", f"Event {number}", lambda _: {"files": []})
    seen, before = [], 0
    while True:
        found = pages.events(site, who="ann", before=before)
        seen += [event.why for event in found["events"]]
        before = found["before"]
        if not before:
            break
    assert seen == [f"Event {number}" for number in (4, 3, 2, 1, 0)]
    assert [event.why for event in pages.events(site, kind="signed in")["events"]] == ["Event 3", "Event 1"]
    assert [event.why for event in pages.events(site, text="EVENT 3")["events"]] == ["Event 3"]
    assert pages.events(site, who="nobody")["events"] == []


def test_one_page_of_events_does_not_look_through_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_SCANNED", 3)
    for number in range(5):
        site.journal.append("signed in", "ann", f"Event {number}", lambda _: {})
    found = pages.events(site, text="Event 0")
    assert found["events"] == [] and found["before"]
    assert [event.why for event in pages.events(site, text="Event 0", before=found["before"])["events"]] == ["Event 0"]


def confirmed(site: Site, state: str, data: bytes) -> str:
    """Have a submission confirmed that brings one file, in a state."""
    one = submitted(site, "new_dead.fits", data)
    row = {"size": 1, "sha1": "1", "type": "reference", "instrument": "cos", "filekind": "deadtab", "state": state}
    key = site.journal.keep(f"server/hst/{one}/rows", {f"{one}.fits": {**row, "submission": one}})
    site.journal.append("confirmed", "ann", "a test", lambda _: {"submission": one, "context": "", "rows": key})
    return one


def test_deliveries_that_the_archive_does_not_take_are_late(
    made_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made_site(archive="manifest")
    done = confirmed(site, "archived", b"SIMPLE  =  1")
    waits = confirmed(site, "delivered", b"SIMPLE  =  2")
    assert {one["id"]: (one["archive"], one["late"]) for one in pages.deliveries(site)} == {
        done: ("archived", False),
        waits: ("not told yet", False),
    }
    monkeypatch.setattr(pages, "seconds_since", lambda _: 25 * 3600.0)
    assert {one["id"]: one["late"] for one in pages.deliveries(site)} == {done: False, waits: True}
    assert pages.overview(site)["late"] == 1


def test_a_review_tells_when_the_context_has_moved_on(site: Site) -> None:
    one = submitted(site, "new_dead.fits", b"SIMPLE  =  1")
    assert reviewed(site, one)["moved"] == ""
    contexts.set_context(site, BEFORE, "olga", "back", edit=True)
    found = reviewed(site, one)
    assert (found["moved"], found["floats"]) == (BEFORE, True)


# ---- affected datasets


def test_affected_datasets_are_counted_and_chosen(site: Site) -> None:
    assert pages.affected(site, BEFORE, LATEST) is None
    one = (Reason("darkfile", "a_drk.fits", "b_drk.fits"),)
    two = (*one, Reason("drkcfile", "n/a", "c_dkc.fits"))
    acs = (Reason("darkfile", "1ag2019jj_drk.fits", "25815071j_drk.fits"),)
    found = Affected(
        "hst",
        BEFORE,
        LATEST,
        datasets={"IB1:IB1AAQ": two, "IA1:IA1AAQ": one, "JA1:JA1AAQ": acs},
        instruments={"wfc3": Counts(datasets=9, affected=2, types={"darkfile": 2, "drkcfile": 1})},
        changed=(("wfc3", "darkfile", "x", "y"), ("wfc3", "drkcfile", "x", "y"), ("acs", "darkfile", "x", "y")),
    )
    site.store.put(
        reprocessing.key(site, BEFORE, LATEST), gzip.compress(json.dumps(found.to_json()).encode()), Overwrite()
    )
    shown = pages.affected(site, BEFORE, LATEST)
    assert shown is not None
    assert [row["dataset"] for row in shown["rows"]] == ["IA1:IA1AAQ", "IB1:IB1AAQ", "JA1:JA1AAQ"]
    assert (shown["total"], shown["products"]) == (3, 3)
    only = pages.affected(site, BEFORE, LATEST, "wfc3", "drkcfile")
    assert only is not None
    assert [row["dataset"] for row in only["rows"]] == ["IB1:IB1AAQ"]
    contexts.set_context(site, BEFORE, "olga", "back")
    contexts.set_context(site, LATEST, "olga", "again")
    assert [(one["old"], one["new"], one["known"]) for one in pages.steps(site)[:2]] == [
        (BEFORE, LATEST, True),
        (LATEST, BEFORE, False),
    ]


# ---- the checker of pages can fail


GOOD = (
    "<!doctype html><html lang=en><head><title>A</title></head><body><main><h1>A</h1>"
    "<form method=post action=/x><input type=hidden name=csrfmiddlewaretoken value=y>"
    "<label for=a>A</label><input id=a name=a></form></main></body></html>"
)


def test_a_page_without_faults_has_none() -> None:
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<h1>A</h1>", "<h1>A</h1><h3>B</h3>", "heading 3 follows"),
        ("<h1>A</h1>", "<h1>A</h1><p id=a>", "id a is there 2 times"),
        ("<label for=a>A</label>", "", "has no label"),
        ("<input type=hidden name=csrfmiddlewaretoken value=y>", "", "no token"),
        ("<h1>A</h1>", "<h1>A</h1><table><tr><td>x</table>", "without caption"),
        ("<h1>A</h1>", "<h1 style='color:red'>A</h1>", "style of h1"),
        ("<h1>A</h1>", "<h1>A</h1><script>x</script>", "script within"),
        ("<h1>A</h1>", "<h1>A</h1><img src=https://example.org/x alt=''>", "img of https"),
        ("<h1>A</h1>", "<h1>A</h2>", "line"),
        ("lang=en", "", "no language"),
    ],
)
def test_a_page_with_a_fault_is_found_out(old: str, new: str, said: str) -> None:
    assert any(said in one for one in faults(GOOD.replace(old, new)))
