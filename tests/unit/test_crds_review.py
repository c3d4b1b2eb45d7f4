"""What goes wrong only between two steps, at the same moment, or with files that somebody made to do harm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from caldp import crds_layout, programs
from caldp.cli_crds import group, settings_of
from caldp.crdserver import archive, contexts, fill, job, jobs, serving, submissions
from caldp.crdserver.channels import Channels
from caldp.crdserver.delivery import BadFilesError, _must_be_data, _must_be_its_name
from caldp.crdserver.jobs import Jobs, LocalRunner
from caldp.crdserver.records import Record, SqliteRecords
from caldp.crdserver.server import Server
from caldp.crdserver.signin import RefusedError, SignIn
from caldp.crdserver.site import Site
from caldp.crdserver.uploads import Uploads
from caldp.crdserver.users import Users
from caldp.errors import BusyError, InputError, ReferencesError, ReferencesUnavailableError
from tests.sites import FORM, made_site, settings_at, shared_data, shelf, site, submitted

__all__ = ["made_site", "shared_data", "shelf", "site"]

FITS = b"SIMPLE  =                    T".ljust(2880)


class Killed(BaseException):
    """A process that ends in the middle."""


def killed(*_: object, **__: object) -> None:
    raise Killed


def started(site: Site, one: str = "20261122-aa", context: str = "hst_0729.pmap", by: str = "ann") -> str:
    """Make a submission of which nobody knows the files."""
    data = {"submission": one, "kind": "batch", "instrument": "cos", "files": [], "context": context, "channel": ""}
    site.journal.append("submitted", by, "a test", lambda _: data)
    site.journal.keep(
        submissions.request_key(site, one),
        {"id": one, "kind": "batch", "user": by, "instrument": "cos", "context": context, "channel": "", "form": FORM}
        | {"files": {}},
    )
    return one


def ready(site: Site, one: str, mappings: list[str]) -> str:
    """Make a submission that waits for its person, with mappings that nobody has written."""
    started(site, one)
    site.journal.append("reserved", "ann", one, lambda _: {"names": mappings, "submission": one})
    site.journal.append("ready", "ann", "a test", lambda _: {"submission": one, "mappings": mappings, "floats": True})
    return one


# ---- locks


def test_a_lock_that_has_expired_goes_to_one_of_two_who_come_at_once(
    made_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made_site(lock_seconds=0.2)
    bob, carl = SignIn(site), SignIn(site)
    users = [bob.users.add(name, "submitter") for name in ("ann", "bob", "carl")]
    SignIn(site).sign_in("ann", users[0], "cos", ["cos"])
    time.sleep(0.3)
    ends = SignIn.expire

    def slower(self: SignIn, record: Record) -> None:
        if self is carl:  # who has seen the lock of ann, but bob is there first
            bob.sign_in("bob", users[1], "cos", ["cos"])
        ends(self, record)

    monkeypatch.setattr(SignIn, "expire", slower)
    monkeypatch.setattr("caldp.crdserver.settings.Settings.lock_seconds", 100.0)
    object.__setattr__(site.settings, "lock_seconds", 100.0)
    with pytest.raises(RefusedError, match="locked by bob"):
        carl.sign_in("carl", users[2], "cos", ["cos"])
    assert [one["user"] for one in bob.locks()] == ["bob"]


def test_the_end_of_an_old_lock_does_not_cancel_what_was_begun_under_the_next(site: Site) -> None:
    old = Record("cos", {"user": "ann", "since": 0.0, "until": time.time() - 60}, 1)
    one = started(site)
    SignIn(site).expire(old)
    assert site.state.submissions[one]["state"] == "started"
    SignIn(site).expire(Record("cos", {**old.value, "until": time.time() + 1}, 1))
    assert site.state.submissions[one]["state"] == "cancelled"


def test_somebody_of_the_same_name_elsewhere_is_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = Users(SqliteRecords(tmp_path / "records.sqlite"), "https://mast.invalid")
    users.add("ann", "operator")

    class Answer:
        ok = True
        said: object = None

        def json(self) -> object:
            return self.said

    monkeypatch.setattr("requests.get", lambda *_, **__: Answer())
    for said, known in (
        ({"anon": False, "eppn": "ann@elsewhere.example"}, False),
        ({"anon": False, "eppn": "ann@stsci.edu"}, True),
        (["ann"], False),
    ):
        monkeypatch.setattr(Answer, "said", said)
        assert (users.identify("ann", "a token of MAST") is not None) == known


# ---- submissions


def test_a_context_that_may_be_taken_back_is_not_derived_from(site: Site) -> None:
    ready(site, "20261122-aa", ["hst_0730.pmap"])
    assert site.context("hst_0730.pmap") == "hst_0730.pmap"
    with pytest.raises(InputError, match=r"hst_0730.pmap is not confirmed yet"):
        submitted(site, "new_dead.fits", FITS, user="bob", pmap_mode="pmap_text", pmap_text="hst_0730.pmap")


def test_a_name_that_clients_do_not_find_is_not_kept(site: Site) -> None:
    with pytest.raises(InputError, match="lower case"):
        submitted(site, "ABC12345L_dead.fits", FITS, auto_rename="False")
    assert [one.name for one in Uploads(site, "ann").files()] == ["ABC12345L_dead.fits"]


def test_files_are_still_there_when_a_submission_did_not_begin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    Uploads(site, "ann").receive("new_dead.fits", FITS, "")
    with monkeypatch.context() as patch:
        patch.setattr(site.journal, "keep", killed)
        with suppress(Killed):
            submissions.start(site, "batch", "ann", "cos", "", FORM)
    assert [one.name for one in Uploads(site, "ann").files()] == ["new_dead.fits"]
    one = submissions.start(site, "batch", "ann", "cos", "", FORM)
    assert Uploads(site, "ann").files() == [] and list(submissions.load(site, one).files) == ["new_dead.fits"]


def test_what_was_sent_anew_meanwhile_is_not_forgotten_with_the_submission(site: Site) -> None:
    uploads = Uploads(site, "ann")
    uploads.receive("new_dead.fits", FITS, "")
    first = uploads.whole()
    uploads.receive("new_dead.fits", FITS.ljust(5760), "")
    uploads.release(first)
    assert [one.size for one in uploads.files()] == [5760]


def test_a_file_of_more_parts_than_a_record_takes_is_refused_at_its_first_part(site: Site) -> None:
    with pytest.raises(InputError, match="are more than 2300 parts"):
        Uploads(site, "ann").receive("new_dead.fits", FITS, "bytes 0-2879/7000000")


def test_more_than_an_event_takes_is_an_error_that_says_so(site: Site) -> None:
    with pytest.raises(InputError, match="say less at a time"):
        contexts.set_context(site, "hst_0600.pmap", "olga", "x" * 400_000)


# ---- jobs


def test_a_submission_without_a_job_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, str]] = []
    monkeypatch.setattr(LocalRunner, "start", lambda self, *what: begun.append(what))
    server = Server(settings_at(tmp_path), {})
    started(server.observatories["hst"].site)
    server.resume()
    server.close()
    assert begun == [("hst", "submission-20261122-aa")]


def test_a_server_looks_after_jobs_as_long_as_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_PAUSE", 0.01)
    end, seen = threading.Event(), []

    class Fake:
        def resume(self) -> None:
            seen.append(1)
            if len(seen) == 1:
                raise ReferencesUnavailableError("no answer", remedy="later")
            end.set()

    serving._look_after(Fake(), end)  # type: ignore[arg-type]
    assert len(seen) == 2


def test_a_job_that_is_asked_for_again_while_it_waits_is_worked_on_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, ran = threading.Event(), []

    class Done:
        returncode, outcome = 0, ""

    def run(argv: list[str], **_: object) -> Done:
        ran.append(argv[-1])
        go.wait(10)
        return Done()

    monkeypatch.setattr(programs, "run", run)
    runner = LocalRunner(settings_at(tmp_path), {}, lambda _: None, workers=1)
    for _ in range(3):
        runner.start("hst", "one")
        runner.start("hst", "two")
    go.set()
    deadline = time.monotonic() + 10
    while runner._taken and time.monotonic() < deadline:
        time.sleep(0.01)
    runner.close()
    assert ran == ["one", "two"]


def test_a_lease_is_renewed_though_the_records_did_not_answer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_RENEW", 0.02)
    board = Jobs(Site(settings_at(tmp_path), "hst"))
    board.add("one", "tend", {})
    lease = board.take("one")
    assert lease is not None
    puts, first = [], lease._site.records.put

    def put(*what: Any, **more: Any) -> int:
        puts.append(1)
        if len(puts) == 1:
            raise ReferencesUnavailableError("no answer", remedy="later")
        return first(*what, **more)

    monkeypatch.setattr(lease._site.records, "put", put)
    with lease:
        deadline = time.monotonic() + 10
        while len(puts) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(puts) >= 3 and not lease.lost


def test_one_who_is_late_does_not_silence_the_one_who_works(tmp_path: Path) -> None:
    channels = Channels(SqliteRecords(tmp_path / "records.sqlite"), "hst")
    key = channels.open("ann")
    late, works = channels.writer(key), channels.writer(key)
    late.say("info", "I am late")
    works.say("info", "I work")
    works.end("done", {"status": 0, "result": "x"})
    assert [m["data"] for m in channels.pull(key)] == ["I am late", "I work", {"status": 0, "result": "x"}]


@pytest.mark.parametrize(
    ("event", "more", "kind"),
    [
        ("ready", {"mappings": []}, "done"),
        ("bad files", {"reason": "no"}, "done"),
        ("failed", {"reason": "no"}, "fail"),
        ("cancelled", {}, "cancel"),
    ],
)
def test_a_worker_killed_before_it_told_anybody_is_spoken_for_by_the_next(
    site: Site, event: str, more: dict[str, Any], kind: str
) -> None:
    key = Channels(site.records, "hst").open("ann")
    Uploads(site, "ann").receive("new_dead.fits", FITS, "")
    one = submissions.start(site, "batch", "ann", "cos", key, FORM)
    site.journal.append(event, "ann", "x", lambda _: {"submission": one, **more})
    Jobs(site).add("again", "submission", {"submission": one})
    before = site.state.seq
    assert job.work(site.settings, "hst", "again")
    assert [m["type"] for m in Channels(site.records, "hst").pull(key)] == [kind]
    assert site.state.seq == before


# ---- mappings that somebody has written


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("mine.rmap", "'filekind' : 'DEADTAB'", "'filekind' : exec", "is no mapping"),
        ("mine.rmap", "'1996-10-01 00:00:00' : 's7g1700gl_dead.fits'", "'1996-10-01 00:00:00' : exit", "is no mapping"),
        ("mine.rmap", "'observatory' : 'HST'", "'observatory' : 'core'", "is of core"),
        ("hst_acs_biasfile_9999.rmap", "", "", "is called one of acs biasfile"),
        ("mine.rmap", "'instrument' : 'COS'", "'instrument' : 'COS', 'schema_uri' : '/etc/passwd'", "is no schema"),
    ],
)
def test_a_mapping_is_data_before_crds_looks_at_it(
    site: Site, tmp_path: Path, name: str, old: str, new: str, why: str
) -> None:
    text = site.mappings.path("hst_cos_deadtab_0250.rmap").read_text()
    assert old in text
    path = tmp_path / name
    path.write_text(text.replace(old, new, 1) if old else text)
    with pytest.raises(BadFilesError, match=why):
        _must_be_data(path, "hst")
        _must_be_its_name(path, "hst")


def test_a_mapping_that_nobody_has_counted_is_taken(site: Site, tmp_path: Path) -> None:
    text = site.mappings.path("hst_cos_deadtab_0250.rmap").read_text()
    path = tmp_path / "mine.rmap"
    for written in (
        text,
        text.replace("s7g1700gl", "s7g1700gm"),
        "".join(line for line in text.splitlines(keepends=True) if "sha1sum" not in line),
    ):
        path.write_text(written)
        _must_be_data(path, "hst")


# ---- contexts and the archive


def test_setting_a_context_again_finishes_what_was_begun(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(contexts, "publish", killed)
        with suppress(Killed):
            contexts.set_context(site, "hst_0600.pmap", "olga", "back to 2018")
    assert site.state.latest == "hst_0600.pmap"
    contexts.set_context(site, "hst_0600.pmap", "olga", "back to 2018")
    pointer = crds_layout.parse_pointer(site.store, site.store.get(crds_layout.POINTER))
    assert pointer["context"] == "hst_0600.pmap"


def test_of_two_who_set_contexts_at_once_the_slower_one_does_not_bring_the_older_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts.set_context(site, "hst_0600.pmap", "olga", "first")
    other = Site(site.settings, "hst")
    writes = contexts._point
    moves: list[int] = []

    def slow(of: Site, state: Any) -> None:
        if not moves:
            moves.append(1)
            contexts.set_context(other, "hst_0700.pmap", "otto", "second")
        writes(of, state)

    monkeypatch.setattr(contexts, "_point", slow)
    contexts.point(site)
    pointer = crds_layout.parse_pointer(site.store, site.store.get(crds_layout.POINTER))
    assert (site.state.latest, pointer["context"]) == ("hst_0700.pmap", "hst_0700.pmap")


def delivered(site: Site) -> tuple[str, Path]:
    """Make a delivery of one reference that the archive does not have yet; return it and the folder of the archive."""
    one = ready(site, "20261122-aa", [])
    row = {"size": 1, "sha1": "0", "type": "reference", "instrument": "cos", "filekind": "deadtab"}
    rows = {"new_dead.fits": row | {"state": "delivered", "submission": one}}
    key = site.journal.keep(submissions.rows_key(site, one, 1), rows)
    site.journal.append("confirmed", "ann", "x", lambda _: {"submission": one, "context": "", "rows": key})
    return one, Path(site.store.url("archive/hst"))


def test_an_archive_that_is_faster_than_we_look_is_not_told_twice(made_site: Callable[..., Site]) -> None:
    site = made_site(archive="manifest")
    one, folder = delivered(site)
    archive.deliver(site, one)
    (folder / f"{one}.cat").unlink()
    archive.acknowledge(site)
    assert site.state.files["new_dead.fits"]["state"] == "archived" and list(folder.iterdir()) == []


def test_what_is_delivered_while_we_look_does_not_seem_to_be_archived(
    made_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made_site(archive="manifest")
    one, folder = delivered(site)
    get = site.store.get
    looked: list[str] = []

    def then_delivered(key: str) -> Any:
        found = get(key)
        if key.startswith("archive/") and not looked:
            looked.append(key)
            archive.deliver(site, one)
            archive._note(site, one, "delivered")
        return found

    monkeypatch.setattr(site.store, "get", then_delivered)
    archive.acknowledge(site)
    assert looked
    assert site.state.files["new_dead.fits"]["state"] == "delivered" and (folder / f"{one}.cat").exists()


def test_what_is_known_and_not_here_is_not_available(site: Site) -> None:
    absent = next(name for name, row in site.state.files.items() if row.get("absent"))
    with pytest.raises(ReferencesError, match="not in this store"):
        site.available(absent)


# ---- filling, mirrors, commands


def test_a_file_that_is_good_again_is_so_in_the_mirror(made_site: Callable[..., Site]) -> None:
    source, target = made_site(), made_site()
    name = "hst_0600.pmap"
    contexts.mark(source, [name], "olga", "wrong", bad=True)
    fill.mirror(source, target, "olga")
    assert name in target.state.bad_files
    contexts.mark(source, [name], "olga", "right", bad=False)
    fill.mirror(source, target, "olga")
    assert name not in target.state.bad_files
    seq = target.state.seq
    fill.mirror(source, target, "olga")
    assert target.state.seq == seq


def test_a_context_that_is_set_while_files_are_brought_stays_set(
    made_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = made_site(), made_site()
    contexts.mark(source, ["hst_0600.pmap"], "olga", "wrong", bad=True)
    keeps = target.journal.keep

    def slowly(key: str, value: Any) -> str:
        contexts.set_context(Site(target.settings, "hst"), "hst_0700.pmap", "otto", "meanwhile")
        return keeps(key, value)

    monkeypatch.setattr(target.journal, "keep", slowly)
    with pytest.raises(BusyError, match="changed meanwhile"):
        fill.mirror(source, target, "olga")
    assert target.state.latest == "hst_0700.pmap"


def test_two_stores_in_the_cloud_do_not_share_what_is_fetched_of_them() -> None:
    places = {settings_of(f"s3://{name}/crds", f"dynamodb:{name}").work for name in ("ops", "test")}
    assert len(places) == 2


def test_a_cache_that_is_known_already(tmp_path: Path) -> None:
    argv = ["cache", "add", "ours", "--store", f"file:{tmp_path}"]
    assert CliRunner().invoke(group, argv).exit_code == 0
    again = CliRunner().invoke(group, argv)
    assert again.exit_code not in (0, 1) and "is known already" in again.output + again.stderr
