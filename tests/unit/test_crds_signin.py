"""Users, their tokens, sessions and locks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from caldp.crdserver import submissions
from caldp.crdserver.records import SqliteRecords
from caldp.crdserver.signin import RefusedError, Session, SignIn, must_be, remaining
from caldp.crdserver.site import Site
from caldp.crdserver.users import User, Users, digest
from caldp.errors import ReferencesUnavailableError, UsageError
from tests.sites import made_site, shared_data, shelf, site, submitted

__all__ = ["made_site", "shared_data", "shelf", "site"]

INSTRUMENTS = ["acs", "cos"]


@pytest.fixture
def people(tmp_path: Path) -> Users:
    return Users(SqliteRecords(tmp_path / "records.sqlite"))


def signed_in(signin: SignIn, name: str = "ann", instrument: str = "cos") -> Session:
    token = signin.users.add(name, "submitter")
    return signin.sign_in(name, token, instrument, INSTRUMENTS)


# ---- users


def test_a_token_identifies_its_user_and_nobody_else(people: Users) -> None:
    ann, bob = people.add("ann", "submitter"), people.add("bob", "operator")
    assert people.identify("ann", ann) == (User("ann", "submitter"), digest(ann))
    assert people.identify("bob", bob) == (User("bob", "operator"), digest(bob))
    for name, token in (("ann", bob), ("ann", ""), ("", ann), ("nobody", ann), ("ann", ann[:-1]), ("../ann", ann)):
        assert people.identify(name, token) is None


def test_tokens_are_kept_as_hashes_only(people: Users, tmp_path: Path) -> None:
    token = people.add("ann", "submitter")
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in kept and digest(token).encode() in kept


def test_a_user_may_have_several_tokens_until_removed(people: Users) -> None:
    first, second = people.add("ann", "submitter"), people.add("ann", "operator")
    assert people.identify("ann", first) == (User("ann", "operator"), digest(first))
    assert people.identify("ann", second) is not None
    assert people.remove("ann") and not people.remove("ann")
    assert people.identify("ann", first) is None
    assert people.get("ann", digest(first)) is None


@pytest.mark.parametrize(
    ("name", "role"), [("", "submitter"), ("a b", "submitter"), ("../x", "submitter"), ("ann", "king")]
)
def test_names_and_roles_that_are_none(people: Users, name: str, role: str) -> None:
    with pytest.raises(UsageError):
        people.add("ann", "king")


class FakeAnswer:
    """What MAST says of a token."""

    def __init__(self, said: object, ok: bool = True) -> None:
        self.said, self.ok = said, ok

    def json(self) -> object:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def test_mast_is_asked_only_when_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(url: str, headers: dict[str, str], timeout: float) -> FakeAnswer:
        asked.append((url, headers["Authorization"]))
        return FakeAnswer({"anon": False, "ezid": "ann"})

    monkeypatch.setattr(requests, "get", get)
    records = SqliteRecords(tmp_path / "records.sqlite")
    Users(records).add("ann", "submitter")
    assert Users(records).identify("ann", "mast-token") is None
    assert asked == []
    people = Users(records, "https://mast.test/info")
    found = people.identify("ann", "mast-token")
    assert found is not None and found[0] == User("ann", "submitter")
    assert asked == [("https://mast.test/info", "token mast-token")]
    assert people.get("ann", found[1]) == User("ann", "submitter")
    assert people.identify("bob", "mast-token") is None


def test_mast_knows_a_token_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = SqliteRecords(tmp_path / "records.sqlite")
    people = Users(records, "https://mast.test/info")
    people.add("ann", "submitter")
    for said in ({"anon": True}, {"anon": False, "ezid": "bob"}, {}):
        monkeypatch.setattr(requests, "get", lambda *a, said=said, **k: FakeAnswer(said))
        assert people.identify("ann", "mast-token") is None


def test_mast_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = Users(SqliteRecords(tmp_path / "records.sqlite"), "https://mast.test/info")
    people.add("ann", "submitter")

    def get(*_: object, **__: object) -> FakeAnswer:
        raise requests.ConnectionError("token secret-token")

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(ReferencesUnavailableError) as caught:
        people.identify("ann", "secret-token")
    assert "secret-token" not in str(caught.value)


# ---- sessions


def test_a_session_is_known_by_its_secret(site: Site) -> None:
    signin = SignIn(site)
    session = signed_in(signin)
    found = signin.session(session.secret)
    assert found is not None and (found.user.name, found.instrument) == ("ann", "cos")
    assert signin.session("") is None and signin.session(session.secret + "x") is None


def test_a_wrong_token_locks_nothing(site: Site) -> None:
    signin = SignIn(site)
    signin.users.add("ann", "submitter")
    with pytest.raises(RefusedError, match="Invalid username or token"):
        signin.sign_in("ann", "wrong", "cos", INSTRUMENTS)
    assert signin.locks() == []


def test_an_instrument_that_is_none(site: Site) -> None:
    signin = SignIn(site)
    with pytest.raises(RefusedError, match="no instrument 'xyz'"):
        signed_in(signin, instrument="xyz")
    assert signed_in(signin, "bob", "none").instrument == ""


def test_who_is_removed_is_signed_out(site: Site) -> None:
    signin = SignIn(site)
    session = signed_in(signin)
    signin.users.remove("ann")
    assert signin.session(session.secret) is None


def test_sessions_end(made_site: Callable[..., Site]) -> None:
    signin = SignIn(made_site(lock_seconds=0.2))
    session = signed_in(signin, instrument="none")
    time.sleep(0.3)
    assert signin.session(session.secret) is None


def test_every_action_begins_the_time_anew(made_site: Callable[..., Site]) -> None:
    signin = SignIn(made_site(lock_seconds=1))
    session = signed_in(signin)
    for _ in range(4):
        time.sleep(0.4)
        assert signin.session(session.secret) is not None
    assert [lock["user"] for lock in signin.locks()] == ["ann"]


def test_the_channel_that_was_opened_last_is_remembered(site: Site) -> None:
    signin = SignIn(site)
    session = signed_in(signin)
    signin.note_channel(session, "first")
    signin.note_channel(session, "second")
    found = signin.session(session.secret)
    assert found is not None and found.channel == "second"


def test_must_be(site: Site) -> None:
    signin = SignIn(site)
    session = signed_in(signin)
    assert must_be(session) is session
    with pytest.raises(RefusedError, match="not signed in"):
        must_be(None)
    with pytest.raises(RefusedError, match="no operator"):
        must_be(session, operator=True)


# ---- locks


def test_an_instrument_is_locked_for_one_user(site: Site) -> None:
    signin = SignIn(site)
    session = signed_in(signin)
    with pytest.raises(RefusedError, match=r"cos is locked by ann for another (4:00:00|3:59:5\d)"):
        signed_in(signin, "bob")
    signed_in(signin, "bob", "acs")
    signin.sign_out(session)
    signed_in(signin, "bob")


def test_the_same_user_may_sign_in_again(site: Site) -> None:
    signin = SignIn(site)
    first, second = signed_in(signin), signed_in(signin)
    assert signin.session(first.secret) is not None and signin.session(second.secret) is not None
    signed_in(signin, instrument="acs")
    assert [lock["instrument"] for lock in signin.locks()] == ["acs"]
    assert signin.session(first.secret) is None


def test_signing_in_only_to_sign_out_lets_go_of_the_lock(site: Site) -> None:
    signin = SignIn(site)
    signed_in(signin)
    signin.sign_out(signed_in(signin, instrument="none"))
    assert signin.locks() == []


def test_a_lock_that_has_expired_is_anybodys_and_its_submission_cancelled(made_site: Callable[..., Site]) -> None:
    site = made_site(lock_seconds=0.3)
    signin = SignIn(site)
    session = signed_in(signin)
    one = submitted(site, "new_dead.fits", b"SIMPLE  =")
    time.sleep(0.4)
    other = signed_in(signin, "bob")
    assert site.state.submissions[one]["state"] == "cancelled"
    assert "expired" in site.state.submissions[one]["why"]
    assert signin.session(session.secret) is None
    assert signin.session(other.secret) is not None


def test_a_user_with_a_submission_that_waits_keeps_the_lock(site: Site) -> None:
    signin = SignIn(site)
    session = signed_in(signin)
    one = submitted(site, "new_dead.fits", b"SIMPLE  =")
    with pytest.raises(RefusedError, match=f"submission {one} waits for you"):
        signed_in(signin, instrument="acs")
    signin.sign_out(session)
    assert site.state.submissions[one]["state"] == "cancelled"


def test_what_the_client_is_told_of_a_lock(site: Site) -> None:
    signin = SignIn(site)
    assert signin.status("ann")["name"] == "" and signin.status("ann")["is_expired"] is True
    signed_in(signin)
    status = signin.status("ann")
    assert (status["name"], status["type"], status["is_expired"], status["user"]) == ("cos", "instrument", False, "ann")
    assert status["time_remaining"] in ("4:00:00", "3:59:59", "3:59:58")


def test_sweeping_ends_what_is_over(made_site: Callable[..., Site]) -> None:
    site = made_site(lock_seconds=0.2)
    signin = SignIn(site)
    signed_in(signin)
    one = submitted(site, "new_dead.fits", b"SIMPLE  =")
    time.sleep(0.3)
    signin.sweep()
    assert list(site.records.scan("hst:locks")) == [] and list(site.records.scan("hst:sessions")) == []
    assert site.state.submissions[one]["state"] == "cancelled"
    assert submissions.unfinished(site.state, "ann", "cos") == ""


def test_signing_in_and_out_is_in_the_log_of_activity(site: Site) -> None:
    signin = SignIn(site)
    signin.sign_out(signed_in(signin))
    assert [(e.kind, e.who) for e in site.journal.events()][:2] == [("signed out", "ann"), ("signed in", "ann")]


@pytest.mark.parametrize(("seconds", "text"), [(14278, "3:57:58"), (0, "0:00:00"), (-5, "0:00:00"), (61, "0:01:01")])
def test_a_time_that_is_left(seconds: float, text: str) -> None:
    assert remaining(seconds) == text
