"""The pages of a CRDS, asked of a server as a browser does it."""

from __future__ import annotations

import csv
import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
import requests
import uvicorn
from bs4 import BeautifulSoup

from caldp.cli_crds import settings_of
from caldp.crdserver import datasets, pages
from caldp.crdserver.app import create
from caldp.crdserver.site import Site
from caldp.store import open_store
from tests import crds
from tests.crds import CrdsServer, Person, Place, error_of, make_reference
from tests.desk import unpacked
from tests.markup import faults, main_of
from tests.sites import settings_at

crds_place, crds_server, make_crds = crds.crds_place, crds.crds_server, crds.make_crds

#: What pages hold is tested without a server too, in the unit tests; here all of it is asked for over HTTP.
pytestmark = pytest.mark.slow

HTML = {"Accept": "text/html,application/xhtml+xml"}
DEADTAB = "s7g1700gl_dead.fits"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & {{ 7919*7 }}"
HEADER = {"INSTRUME": "COS", "DETECTOR": "FUV", "DATE-OBS": "2017-01-01", "TIME-OBS": "00:00:00"}

#: Pages for everybody, and a few words of each.
PUBLIC = {
    "/": "Default context",
    "/contexts/": "hst_0729.pmap",
    "/contexts/?page=3": "page 3 of 11",
    "/contexts/hst-latest": "Context hst_07",
    "/contexts/hst_0729.pmap/cos": "deadtab",
    "/contexts/hst_0729.pmap/cos/deadtab": DEADTAB,
    "/contexts/hst_0729.pmap/acs/biasfile?page=2": "page 2 of",
    "/mappings/hst_0729.pmap": "hst_cos_0306.imap",
    "/mappings/hst_cos_0306.imap": "Named by",
    "/mappings/hst_cos_deadtab_0250.rmap": "UseAfter",
    "/history/": "hst_0728.pmap",
    "/differences/": "Show differences",
    "/differences/?old=hst_0728.pmap&new=hst_0729.pmap": "hst_wfc3_darkfile_0390.rmap",
    "/differences/?old=hst_cos_xtractab_0257.rmap&new=hst_cos_xtractab_0260.rmap": "xtractab",
    "/differences/?old=z2d19237l_1dx.fits&new=z1r1943el_1dx.fits": "fitsdiff",
    "/catalog/": "43,7",
    "/catalog/?name=hst_cos_dead*&type=mapping": "hst_cos_deadtab_0250.rmap",
    f"/catalog/{DEADTAB}": "DETECTOR='FUV'",
    "/catalog/hst_0729.pmap": "hst_0728.pmap",
    "/bestrefs/": "Of a header",
    "/bestrefs/?instrument=cos": "DETECTOR =",
    "/activity/": "imported",
    "/activity/?kind=imported&text=43": "imported",
    "/submissions/": "submissions",
    "/deliveries/": "archived at once",
    "/affected/": "hst_0728.pmap to hst_0729.pmap",
    "/affected/?old=hst_0728.pmap&new=hst_0729.pmap": "not computed yet",
    "/login/": "Token",
}

#: What there is not.
ABSENT = (
    "/nothing",
    "/contexts/hst_9999.pmap",
    "/contexts/hst_0001.pmap",
    "/contexts/hst_cos_0306.imap",
    "/contexts/hst_0729.pmap/nircam",
    "/contexts/hst_0729.pmap/cos/biasfile",
    "/mappings/hst_0001.pmap",
    "/mappings/..%2F..%2Fetc%2Fpasswd",
    "/mappings/z2d19237l_1dx.fits",
    "/catalog/nothing.fits",
    "/catalog/?sort=sha1",
    "/differences/?old=hst_0729.pmap&new=hst_cos_0306.imap",
    "/differences/?old=hst_0729.pmap&new=hst_9999.pmap",
    "/differences/?old=uploaded:x.fits&new=z1r1943el_1dx.fits",
    "/affected/?old=hst_0729.pmap&new=hst_cos_0306.imap",
)

OPERATORS = ("/set_context/", "/mark/")
SUBMITTERS = (
    "/upload/chunked/",
    "/submission_form/redcat_submit/",
    "/submit/reference/",
    "/submit/mapping/",
    "/certify/",
)


def browse(person: Person, path: str, status: int = 200) -> str:
    """Return a page, once it is seen that nothing is wrong with its HTML."""
    reply = person.get(path, headers=HTML)
    return sound(reply, status)


def sound(reply: Any, status: int = 200) -> str:
    """Return the text of a reply that is a page, as it should be."""
    assert reply.status_code == status, (reply.url, reply.status_code, error_of(reply))
    assert faults(reply.text) == [], reply.url
    assert "script-src 'self'" in reply.headers["content-security-policy"]
    return str(reply.text)


@dataclass
class Scene:
    """A CRDS in which something has happened.

    Attributes
    ----------
    server : CrdsServer
        Which.
    ready, bad, done : str
        Submissions of ann (waits), bob (refused) and ann (confirmed).
    confirmed : str
        The page that ann saw when she had confirmed it.
    """

    server: CrdsServer
    ready: str = ""
    bad: str = ""
    done: str = ""
    confirmed: str = ""

    def person(self, user: str = "", instrument: str = "none") -> Person:
        """Return somebody who is signed in, or nobody."""
        found = Person(self.server.hst, user, self.server.tokens.get(user, ""))
        if user:
            assert found.sign_in(instrument).ok
        return found


@pytest.fixture(scope="module")
def scene(crds_place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A CRDS in which a delivery was confirmed, one waits and one was refused."""
    home = tmp_path_factory.mktemp("pages")
    shutil.copytree(crds_place.root, home / "crds")
    server = CrdsServer(home / "crds", crds_place.tokens, home / "server.log").start()
    scene = Scene(server)
    try:
        datasets.import_headers(open_store(server.store), "hst", [("LAAA01010:LAAA01AAQ", HEADER)])
        ann, bob = scene.person("ann", "cos"), scene.person("bob", "stis")
        bob.upload("bobs_1dx.fits", make_reference(home / "bobs_1dx.fits").read_bytes())
        scene.bad = bob.begun("stis", description="Of another instrument")
        for name, date in (("first_1dx.fits", "Jan 02 2018 00:00:00"), ("second_1dx.fits", "Feb 02 2018 00:00:00")):
            ann.upload(name, make_reference(home / name, USEAFTER=date).read_bytes())
            scene.ready = ann.begun("cos", description=f"Delivery of {name}")
            assert ann.ended()["data"]["status"] == 0, server.log()
            if not scene.done:
                scene.done = scene.ready
                scene.confirmed = sound(ann.button(scene.done, "confirm"))
                ann = scene.person("ann", "cos")
        bob.ended()
        yield scene
    finally:
        server.stop()


# ---- for everybody


@pytest.mark.parametrize("path", PUBLIC)
def test_a_page_is_for_everybody(scene: Scene, path: str) -> None:
    text = browse(scene.person(), path)
    assert PUBLIC[path] in main_of(text) or PUBLIC[path] in text
    assert "Set context" not in text and "Upload" not in text


@pytest.mark.parametrize("path", ABSENT)
def test_what_there_is_not_is_not_found(scene: Scene, path: str) -> None:
    reply = scene.person().get(path, headers=HTML)
    sound(reply, 404)
    assert error_of(reply)
    assert str(scene.server.root) not in reply.text


def test_observatories_are_chosen_of(scene: Scene) -> None:
    reply = requests.get(scene.server.url, headers=HTML, timeout=30)
    assert reply.ok and faults(reply.text) == [] and "/jwst/" in reply.text
    assert (
        requests.get(f"{scene.server.url}/static/style.css", timeout=30).headers["content-type"].startswith("text/css")
    )
    assert requests.get(f"{scene.server.url}/static/live.js", timeout=30).ok
    assert requests.get(f"{scene.server.url}/static/base.html.j2", timeout=30).status_code == 404


def test_the_other_observatory_has_the_same_pages(scene: Scene) -> None:
    jwst = Person(scene.server.jwst, "", "")
    for path in ("/", "/contexts/", "/contexts/jwst-latest", "/catalog/", "/bestrefs/", "/history/", "/affected/"):
        browse(jwst, path)


# ---- catalogue


def test_the_catalogue_is_cut_into_pages(scene: Scene) -> None:
    someone = scene.person()
    first, last = browse(someone, "/catalog/?sort=-name"), browse(someone, "/catalog/?sort=-name&page=999999999")
    assert first.count('class="file"') == 50
    assert 'rel="next"' in first and 'rel="prev"' not in first
    assert 'rel="next"' not in last and 'rel="prev"' in last
    assert browse(someone, "/catalog/?sort=-name&page=-1") == browse(someone, "/catalog/?sort=-name&page=x")


def test_the_catalogue_is_downloaded(scene: Scene) -> None:
    someone = scene.person()
    query = "type=mapping&instrument=cos&name=hst_cos_dead*"
    rows = list(csv.DictReader(io.StringIO(someone.get(f"/catalog/?{query}&format=csv").text)))
    said = someone.get(f"/catalog/?{query}&format=json").json()
    assert [row["name"] for row in rows] == [row["name"] for row in said]
    assert "hst_cos_deadtab_0250.rmap" in {row["name"] for row in rows}
    info = someone.call("get_file_info", "hst", "hst_cos_deadtab_0250.rmap")["result"]
    assert info in said


def test_a_spreadsheet_takes_no_file_for_a_formula(scene: Scene) -> None:
    olga = scene.person("olga")
    assert olga.post("/mark/", {"files": "hst_0600.pmap", "how": "bad", "why": "=1+1"}).ok
    text = scene.person().get("/catalog/?name=hst_0600.pmap&format=csv").text
    assert ",=" not in text
    assert olga.post("/mark/", {"files": "hst_0600.pmap", "how": "good", "why": "it is well"}).ok


# ---- best references


def chosen(text: str) -> dict[str, str]:
    """Return {type: file} of a page."""
    return dict(re.findall(r'<th scope="row">(\w+)</th><td><a class="file"[^>]*>([^<]*)</a>', text))


def test_best_references_of_a_file_are_those_of_the_stock_client(
    scene: Scene, shared_data: Path, tmp_path: Path
) -> None:
    someone = scene.person()
    packed = shared_data / "cos-ldfd01010" / "inputs" / "ldfd01vnq_rawtag_a.fits.gz"
    raw = unpacked(packed, tmp_path / "raw.fits")
    with raw.open("rb") as stream:
        data = stream.read(2_000_000)
    data += bytes(-len(data) % 2880)
    reply = someone.post("/bestrefs/", {"context": "hst_0729.pmap"}, files={"file": ("a raw.fits", data)}, headers=HTML)
    found = chosen(sound(reply))
    header = dict(re.findall(r"^([\w-]+) = (.*)$", reply.text, re.MULTILINE))
    said = someone.call("get_best_references", "hst_0729.pmap", header, None)["result"]
    assert found == {kind: file for kind, file in said.items() if not file.startswith("NOT FOUND")}
    assert found["xtractab"] == "23n1744fl_1dx.fits"
    assert not list((scene.server.root / "server" / "work").glob("headers/*"))


def test_best_references_of_keywords_and_of_a_dataset_are_the_same(scene: Scene) -> None:
    someone = scene.person()
    typed = "\n".join(f"{key} = {value}" for key, value in HEADER.items())
    given = {"context": "hst_0729.pmap", "header": typed}
    of_header = chosen(sound(someone.post("/bestrefs/", given, files={"file": ("", b"")}, headers=HTML)))
    of_dataset = chosen(browse(someone, "/bestrefs/?context=hst_0729.pmap&dataset=laaa01010"))
    assert of_header == of_dataset and of_header["deadtab"] == DEADTAB


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ({"header": HOSTILE}, b""),
        ({"header": "INSTRUME = NONE"}, b""),
        ({"header": "INSTRUME = COS", "context": "hst_9999.pmap"}, b""),
        ({"header": "INSTRUME = COS", "context": HOSTILE}, b""),
        ({"header": ""}, b"\x1f\x8bnot a FITS file"),
        ({"header": ""}, b"SIMPLE  =" + bytes(5000)),
    ],
)
def test_what_is_no_header_is_refused(scene: Scene, given: dict[str, str], data: bytes) -> None:
    files = {"file": ("x.fits" if data else "", data)}
    reply = scene.person().post("/bestrefs/", given, files=files, headers=HTML)
    sound(reply, 400)
    assert error_of(reply)


def test_a_file_that_is_too_large_is_refused(scene: Scene) -> None:
    reply = scene.person().post(
        "/bestrefs/", {}, files={"file": ("x.fits", b"SIMPLE  =" + bytes(7_000_000))}, headers=HTML
    )
    assert reply.status_code == 413


# ---- activity


def test_activity_is_read_by_machines(scene: Scene) -> None:
    someone = scene.person()
    said = someone.get("/activity/?format=json&kind=confirmed").json()
    assert [event["who"] for event in said["events"]] == ["ann"]
    assert set(said["events"][0]) == {"seq", "at", "who", "kind", "why"}
    feed = ElementTree.fromstring(someone.get("/activity/?format=rss").content)  # noqa: S314 - our own
    assert "confirmed: Delivery of first_1dx.fits" in [one.text for one in feed.iter("title")]
    older = browse(someone, "/activity/?before=3")
    assert "imported" in main_of(older) and "confirmed" not in re.sub("<select.*?</select>", "", older, flags=re.DOTALL)


# ---- roles


@pytest.mark.parametrize("path", [*OPERATORS, *SUBMITTERS])
def test_nobody_sees_what_is_for_those_who_sign_in(scene: Scene, path: str) -> None:
    reply = scene.person().get(path, headers=HTML)
    sound(reply, 403)
    assert "sign in" in error_of(reply) and "/login/" in reply.text


@pytest.mark.parametrize("path", SUBMITTERS)
def test_a_submitter_sees_the_forms(scene: Scene, path: str) -> None:
    text = browse(scene.person("bob"), path)
    assert "Upload" in text and "Set context" not in text


@pytest.mark.parametrize("path", OPERATORS)
def test_what_operators_do_is_not_for_submitters(scene: Scene, path: str) -> None:
    bob = scene.person("bob")
    assert "no operator" in error_of(bob.get(path, headers=HTML))
    for address in (path, "/affected/compute/", "/affected/campaign/"):
        reply = bob.post(
            address, {"context": "hst_0728.pmap", "old": "hst_0728.pmap", "new": "hst_0729.pmap"}, headers=HTML
        )
        assert reply.status_code == 403
    assert bob.call("get_default_context", "hst", None)["result"] == "hst_0729.pmap"


@pytest.mark.parametrize(
    "path", ["/set_context/", "/mark/", "/affected/compute/", "/affected/campaign/", "/upload/remove/"]
)
def test_forms_of_strangers_are_refused(scene: Scene, path: str) -> None:
    olga = scene.person("olga")
    form = {"context": "hst_0728.pmap", "which": "latest", "why": "x", "files": DEADTAB, "how": "bad", "name": "x.fits"}
    reply = olga.post(path, {**form, "csrfmiddlewaretoken": "forged"}, headers=HTML)
    assert reply.status_code == 403 and "does not come from a page" in error_of(reply)


# ---- submissions


def test_the_review_page_is_as_stock_clients_read_it(scene: Scene) -> None:
    text = browse(scene.person("bob"), f"/display_result/{scene.ready}")
    page = BeautifulSoup(text, "html.parser")
    new = page.find(id="second_1dx.fits").string
    assert re.fullmatch(r"\w+_1dx\.fits", new)
    pairs = [str(one) for one in page.find_all(string=re.compile("Logical Diff"))]
    assert all(re.fullmatch(r"Logical Diff \('\S+', '\S+'\)", one) for one in pairs) and len(pairs) >= 1
    assert 'class="line add">+' in text and 'class="line del">-' in text
    done = BeautifulSoup(scene.confirmed, "html.parser")
    assert done.find(id="hst_0729.pmap").a.string == "hst_0730.pmap"
    assert done.find(id="first_1dx.fits").a.text.endswith("_1dx.fits")


def test_a_submission_is_decided_by_those_who_may(scene: Scene) -> None:
    address = f"/display_result/{scene.ready}"
    assert "Confirm" not in browse(scene.person("bob"), address).replace("Confirmed", "")
    assert 'value="confirm"' in browse(scene.person("olga"), address)
    assert "Delivery of second_1dx.fits" in main_of(browse(scene.person("olga"), address))
    assert scene.person().get(address, headers=HTML).status_code == 403
    assert browse(scene.person("olga"), "/display_result/nothing", 404)


def test_channels_of_jobs_are_not_shown(scene: Scene) -> None:
    texts = [
        browse(scene.person("bob"), path) for path in (f"/display_result/{scene.ready}", "/activity/", "/submissions/")
    ]
    texts.append(scene.person().get("/activity/?format=json").text)
    site = Site(settings_of(scene.server.store, ""), "hst")
    channels = [known["channel"] for known in site.state.submissions.values()]
    site.records.close()
    assert all(channels) and not any(channel in text for channel in channels for text in texts)


def test_refused_files_are_told_why(scene: Scene) -> None:
    words = main_of(browse(scene.person("bob"), f"/display_result/{scene.bad}"))
    assert "bad files" in words and "is of cos" in words.lower().replace("  ", " ")


def test_deliveries_and_lists_name_what_was_confirmed(scene: Scene) -> None:
    someone = scene.person()
    assert scene.done in main_of(browse(someone, "/deliveries/"))
    waiting = main_of(browse(someone, "/submissions/?state=ready"))
    assert scene.ready in waiting and scene.done not in waiting
    overview = main_of(browse(someone, "/"))
    assert scene.ready in overview and "hst_0730.pmap" in overview


def test_files_that_were_sent_are_listed_and_removed(scene: Scene, tmp_path: Path) -> None:
    bob = scene.person("bob")
    assert bob.upload("mine.fits", b"SIMPLE  =" + bytes(100)).ok
    assert "mine.fits" in main_of(browse(bob, "/upload/chunked/"))
    assert "mine.fits" in main_of(browse(bob, "/certify/"))
    sound(bob.post("/upload/remove/", {"name": "mine.fits"}, headers=HTML))
    assert bob.uploaded() == {}
    assert error_of(bob.post("/upload/remove/", {"name": "../mine.fits"}, headers=HTML))


# ---- what operators do


def test_a_context_is_set_with_a_reason(scene: Scene) -> None:
    olga = scene.person("olga")
    text = browse(olga, "/set_context/?context=hst_0728.pmap")
    assert "hst_wfc3_darkfile_0390.rmap" in text and "is not computed yet" in main_of(text)
    form = {"context": "hst_0728.pmap", "which": "latest", "why": ""}
    reply = olga.post("/set_context/", form, headers=HTML)
    assert "say why" in error_of(reply) and 'value="hst_0728.pmap"' in sound(reply, 400)
    assert olga.call("get_default_context", "hst", None)["result"] == "hst_0729.pmap"
    reply = olga.post("/set_context/", {**form, "context": "hst_9999.pmap", "why": "x"}, headers=HTML)
    assert "hst_9999.pmap" in error_of(reply)
    reply = olga.post("/set_context/", {**form, "why": HOSTILE}, headers=HTML, allow_redirects=False)
    assert reply.status_code == 303
    assert olga.call("get_default_context", "hst", None)["result"] == "hst_0728.pmap"
    for path in ("/", "/history/", "/activity/?kind=set+context"):
        text = browse(scene.person(), path)
        assert HOSTILE in main_of(text) or " ".join(HOSTILE.split()) in main_of(text)
        assert "<script>alert" not in text and "<img" not in text
    reply = olga.post("/set_context/", {**form, "context": "hst_0729.pmap", "why": "again"}, headers=HTML)
    assert "again" in main_of(sound(reply))
    assert "hst_9999.pmap" in error_of(olga.get("/set_context/?context=hst_9999.pmap", headers=HTML))


def test_files_are_marked_with_a_reason(scene: Scene) -> None:
    olga = scene.person("olga")
    for form in (
        {"files": DEADTAB, "how": "bad", "why": " "},
        {"files": f"{DEADTAB} nothing.fits", "how": "bad", "why": "x"},
    ):
        reply = olga.post("/mark/", form, headers=HTML)
        assert DEADTAB in sound(reply, 400) and error_of(reply)
    assert error_of(olga.post("/mark/", {"files": DEADTAB, "how": "ugly", "why": "x"}, headers=HTML))
    text = sound(olga.post("/mark/", {"files": DEADTAB, "how": "bad", "why": HOSTILE}, headers=HTML))
    assert "Nobody should use it" in text and "<script>alert" not in text
    assert DEADTAB in olga.call("get_server_info")["result"]["bad_files_list"]
    assert DEADTAB in main_of(browse(olga, "/catalog/?bad=yes&name=s7g1700gl"))
    text = sound(olga.post("/mark/", {"files": DEADTAB, "how": "good", "why": "it is well"}, headers=HTML))
    assert "Nobody should use it" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/catalog/?name={}&instrument={}&state={}",
        "/activity/?who={}&text={}&kind={}",
        "/submissions/?state={}",
        "/bestrefs/?context={}",
        "/login/?next={}",
        "/affected/?old={}",
    ],
)
def test_what_an_address_says_is_text(scene: Scene, path: str) -> None:
    text = browse(scene.person(), path.replace("{}", quote(HOSTILE)))
    assert "<script>alert" not in text and "<img" not in text and "55433" not in main_of(text)


# ---- affected datasets


@dataclass
class Served:
    """A server in a thread of this process, whose jobs nobody does.

    Attributes
    ----------
    url : str
        With the path of the observatory.
    asked : list of tuple
        What it was to do.
    """

    url: str
    asked: list[tuple[str, ...]] = field(default_factory=list)


@pytest.fixture
def served(crds_place: Place, tmp_path: Path) -> Iterator[Served]:
    """A server that notes what it is to compute and to start."""
    shutil.copytree(crds_place.root, tmp_path / "crds")
    made = list((tmp_path / "crds").rglob("records.sqlite"))
    settings = settings_at(tmp_path / "crds", records=f"sqlite:{made[0]}", campaigns="file:/nowhere")
    app = create(settings, {})
    served = Served("")

    def have_affected(one: Any, old: str, new: str) -> str:
        served.asked.append(("compute", one.name, old, new))
        return "a-job"

    def start_campaign(one: Any, session: Any, old: str, new: str) -> str:
        served.asked.append(("campaign", one.name, session.user.name, old, new))
        return "file:/campaigns/<b>one</b>"

    app.state.server.have_affected, app.state.server.start_campaign = have_affected, start_campaign
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    served.url = f"http://localhost:{port}/hst"
    yield served
    running.should_exit = True
    thread.join(20)


def test_what_is_affected_is_computed_and_calibrated_when_an_operator_says_so(
    served: Served, crds_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    olga = Person(served.url, "olga", crds_place.tokens["olga"])
    # Where this server thinks that it is nobody listens.
    assert olga.post("/login/", {"username": "olga", "password": olga.token}, allow_redirects=False).status_code == 303
    step = {"old": "hst_0728.pmap", "new": "hst-latest"}
    text = browse(olga, "/affected/?old=hst_0728.pmap&new=hst_0729.pmap")
    assert "Compute it" in text and "Start the campaign" not in text
    reply = olga.post("/affected/compute/", step, headers=HTML, allow_redirects=False)
    assert reply.headers["location"].endswith("/affected/?old=hst_0728.pmap&new=hst_0729.pmap&job=a-job")
    counts = SimpleNamespace(affected=1, datasets=2, types={"darkfile": 1})
    row = {"dataset": "IA1:IA1AAQ", "instrument": "wfc3", "reasons": [("darkfile", "a.fits", HOSTILE)]}
    found = {"rows": [row] * 120, "instruments": {"wfc3": counts}, "skipped": {"cos": "<i>"}, "failed": 3}
    monkeypatch.setattr(pages, "affected", lambda *_: {**found, "total": 120, "products": 7})
    text = browse(olga, "/affected/?old=hst_0728.pmap&new=hst_0729.pmap&page=3")
    assert "page 3 of 3" in text and "7 products" in text and "Start the campaign" in text
    assert "<script>alert" not in text
    assert "Start the campaign" not in browse(
        Person(served.url, "", ""), "/affected/?old=hst_0728.pmap&new=hst_0729.pmap"
    )
    text = sound(olga.post("/affected/campaign/", step, headers=HTML))
    assert "file:/campaigns/<b>one</b>" in main_of(text)
    assert served.asked == [
        ("compute", "hst", "hst_0728.pmap", "hst_0729.pmap"),
        ("campaign", "hst", "olga", "hst_0728.pmap", "hst_0729.pmap"),
    ]


def test_affected_datasets_are_computed_by_a_job(scene: Scene) -> None:
    olga = scene.person("olga")
    reply = olga.post("/affected/compute/", {"old": "hst_0600.pmap", "new": "hst_0729.pmap"}, headers=HTML)
    text, end = sound(reply), time.monotonic() + 120
    while "data-live" in text:
        assert time.monotonic() < end, scene.server.log()
        time.sleep(0.5)
        text = browse(olga, reply.url.partition("/hst")[2])
    assert "LAAA01010:LAAA01AAQ" in main_of(text)
    assert "does not know where campaigns go" in main_of(text)
    assert error_of(olga.post("/affected/campaign/", {"old": "hst_0600.pmap", "new": "hst_0729.pmap"}, headers=HTML))


def test_the_archive_is_waited_for(make_crds: Callable[..., CrdsServer]) -> None:
    server = make_crds("--archive", "manifest")
    text = browse(Person(server.hst, "", ""), "/deliveries/")
    assert "nobody may have a file before the archive has it" in main_of(text)
