"""What operators do to datasets: which are meant, what must be confirmed, and what is left of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from caldp import messages
from caldp.campaign import lists, operate, transitions
from caldp.campaign.accept import accept
from caldp.campaign.control import AUDIT, CLOSED, Control, claim_key, log_key, manifest_key, result_key, stream_key
from caldp.campaign.failures import Ended, Evidence
from caldp.campaign.lists import Options
from caldp.campaign.operate import CLEANED, Cloud, Order, Resolved, Selector, carry_out, resolve
from caldp.campaign.settings import DEFAULT, Settings
from caldp.campaign.shards import jsonl
from caldp.dataset import Dataset
from caldp.errors import CaldpError, UsageError
from caldp.local_store import LocalStore
from caldp.messages import STATES, Status
from caldp.s3_store import S3Store
from caldp.store import Blob, Create, Overwrite, PutMode, Store
from tests.fakes.processed import publish
from tests.fakes.stores import MemoryStore
from tests.s3 import make_bucket, s3_environment

ACS, COS, STIS, SVM, SKY = "j8cb010b0", "ldfd01vnq", "obn4050s0", "acs_8ph_01", "skycell-p2381x06y09"
NAMES = (ACS, COS, STIS, SVM, SKY)

#: Names that begin like one of a dataset, or that it begins with; and where datasets have something.
NEIGHBOURS = ("j8cb010b0x", "j8cb01", "j8cb010b", "j8cb010b1")
PLACES = (
    "data/acs/{}/{}_flt.fits",
    "data/acs/{}/logs/process.txt",
    "data/acs/{}_x.fits",
    "control/results/{}/1.1.json",
    "control/logs/{}/1.log",
    "control/manifests/{}.jsonl",
    "messages/dataset-error/{}",
    "messages/dataset-synced/{}",
    "messages/status/{}.json",
)


@pytest.fixture(autouse=True)
def no_network(loopback_only: None) -> None:
    """Let these tests reach the emulators."""


everywhere = pytest.mark.parametrize("store", ["memory", "folder", "s3"], indirect=True)


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path, no_waiting: None) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "folder":
        return LocalStore(tmp_path / "OUT")
    endpoint = request.getfixturevalue("moto_endpoint")
    aws = {name: value for name, value in s3_environment(endpoint).items() if name.startswith("AWS_")}
    return S3Store(f"s3://{make_bucket(endpoint, versioned=True)}/out/mvp", aws)


def campaign(
    store: Store, names: Iterable[str] = NAMES, settings: Settings = DEFAULT, runner: str = "local", **asked: Any
) -> Control:
    """Make a campaign in which nothing has begun."""
    listed = lists.of_mapping({"datasets": list(names)})
    return accept(store, listed, Options(canary=0.0, **asked), settings, runner=runner).control


def stand(store: Store, name: str, state: str, attempt: int = 1, **more: Any) -> Status:
    """Bring a dataset of a campaign to a state."""
    given = {"rung": "2g", "time_limit": 3600, "by": "somebody", **more}
    status, written = messages.advance(store, Status(name, attempt, state, **given))
    assert written
    return status


def read(store: Store, name: str) -> Status:
    status = messages.read(store, name)
    assert status is not None
    return status


def tree(store: Store) -> dict[str, bytes]:
    """Everything that is there; LocalStore lists no hidden files."""
    found = {entry.key: store.get(entry.key) for entry in store.walk("")}
    return {key: blob.data for key, blob in found.items() if blob is not None}


def names_of(resolved: Resolved) -> list[str]:
    return [target.dataset for target in resolved.targets]


def audit(store: Store) -> list[dict[str, Any]]:
    blob = store.get(AUDIT)
    return [json.loads(line) for line in blob.data.splitlines()] if blob else []


def do(control: Control, order: Order, selector: Selector, **hands: Any) -> operate.Outcome:
    """Look at the list, and have it worked off."""
    resolved = resolve(control, order, selector)
    return carry_out(control, resolved, resolved.token, **hands)


ALL = Selector(everything=True)


# ---- selectors


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ([], {}, "no datasets are selected"),
        ([""], {}, "'' is not an HST dataset name"),
        ([" "], {}, "is not an HST dataset name"),
        (["j8cb01"], {}, "'j8cb01' is not an HST dataset name"),
        (["j8cb010b0x"], {}, "'j8cb010b0x' is not an HST dataset name"),
        (["j8cb010b*"], {}, "is not an HST dataset name"),
        (["../j8cb010b0"], {}, "is not an HST dataset name"),
        (["j8cb010b0\n"], {}, "is not an HST dataset name"),
        (["u2440101t"], {}, "WFPC2"),
        ([ACS], {"everything": True}, "datasets are named, and --all is given"),
        ([], {"states": ["broken"]}, "there is no state 'broken'"),
        ([], {"causes": ["stale"]}, "there is no class 'stale'"),
        ([], {"instruments": ["ac"]}, "there is no instrument 'ac'"),
        (["@"], {}, "cannot be read"),
        (["@nowhere.txt"], {}, "@nowhere.txt cannot be read"),
    ],
)
def test_what_selects_nothing_or_no_dataset(arguments: list[str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("*", r"\*").replace(".", r"\.")):
        Selector.of(arguments, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list", f"{ACS.upper()}, {COS}\n{COS} # again\n"),
        ("list.json", json.dumps({"datasets": [ACS, COS], "existing": "overwrite"})),
        ("list.csv", f"dataset,memory_rung\n{ACS},8g\n{COS},\n"),
    ],
)
def test_a_file_of_names(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert Selector.of([f"@{tmp_path / name}", STIS]).datasets == (ACS, COS, STIS)


@pytest.mark.parametrize("content", ["", "# nothing\n", f"{ACS}\nj8cb01\n", f"{ACS}\nu2440101t\n"])
def test_a_file_with_anything_else_in_it_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(UsageError, match="no dataset"):
        Selector.of([f"@{tmp_path / 'list'}"])


def test_a_selector_cannot_be_made_empty() -> None:
    with pytest.raises(UsageError):
        Selector()
    with pytest.raises(UsageError):
        Selector(("",))


STAND = st.sampled_from([*STATES, "unjudged", "nothing"])
CAUSES = st.sampled_from(["oom", "timeout", "deterministic", "unknown"])


def chosen_by_hand(selector: Selector, name: str, state: str, cause: str) -> bool:
    """Say whether a selector means a dataset, told apart from the code."""
    given = [(selector.datasets, name), (selector.states, state), (selector.causes, cause)]
    given.append((selector.instruments, Dataset.parse(name).instrument))
    return all(not wanted or value in wanted for wanted, value in given)


@given(
    how=st.dictionaries(st.sampled_from(NAMES), st.tuples(STAND, CAUSES), min_size=1),
    named=st.frozensets(st.sampled_from(NAMES)),
    states=st.frozensets(st.sampled_from([*STATES]), max_size=3),
    causes=st.frozensets(CAUSES, max_size=2),
    instruments=st.frozensets(st.sampled_from(operate.INSTRUMENTS), max_size=3),
    verb=st.sampled_from(operate.VERBS),
    discard=st.booleans(),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_a_selector_means_what_all_of_it_is_true_of(
    how: dict[str, tuple[str, str]],
    named: frozenset[str],
    states: frozenset[str],
    causes: frozenset[str],
    instruments: frozenset[str],
    verb: str,
    discard: bool,
) -> None:
    store = MemoryStore()
    control = campaign(store)
    true: dict[str, tuple[str, str]] = dict.fromkeys(NAMES, ("placed", ""))
    for name, (state, cause) in how.items():
        if state == "nothing":
            continue
        if state == "unjudged":
            state, cause = "error", ""
        stand(store, name, state, cause=cause)
        true[name] = (state, "" if STATES[state][0] >= STATES["processed"][0] else cause)
    names = tuple(sorted(named))
    if not (names or states or causes or instruments):
        with pytest.raises(UsageError):
            Selector(names, states, causes, instruments)
        return
    selector = Selector(names, states, causes, instruments)
    meant = {name for name, (state, cause) in true.items() if chosen_by_hand(selector, name, state, cause)}
    open_ = {name for name in meant if true[name][0] in ("placed", "submitted", "processing") or not true[name][1]}
    open_ = {name for name in open_ if STATES[true[name][0]][0] <= STATES["error"][0]}
    asked = {name for name in meant if names or true[name][0] in states}
    able = {
        "cancel": open_ | {name for name in asked if true[name][0] == "cancelled"},
        "rescue": {name for name in meant if true[name][0] in ("error", "cancelled")},
        "clean": {
            name
            for name in meant
            if true[name][0] in (("processed", "synced") if discard else ()) + ("error", "cancelled", "archived")
        },
    }[verb]
    before = tree(store)
    found = resolve(control, Order(verb, discard=discard), selector)
    assert names_of(found) == sorted(able)
    assert {left.dataset for left in found.left} == (meant - able if names else set())
    assert (sum(found.others.values()) <= len(meant - able)) and (not names or not found.others)
    assert tree(store) == before


@everywhere
def test_what_the_campaign_does_not_know_is_named(store: Store) -> None:
    control = campaign(store, (ACS, COS))
    stand(store, COS, "error", cause="oom")
    messages.advance(store, Status(STIS, 1, "error"))  # in the batch, but of no campaign
    before = tree(store)
    with pytest.raises(UsageError, match=f"{SVM}, {STIS}: .* does not know these 2; nothing was done"):
        resolve(control, Order("cancel"), Selector.of([COS, STIS, SVM]))
    assert tree(store) == before
    with pytest.raises(UsageError, match="is no campaign"):
        resolve(Control(MemoryStore()), Order("cancel"), ALL)
    with pytest.raises(UsageError, match="'3g' is no memory rung"):
        resolve(control, Order("rescue", rung="3g"), ALL)


class Counting(MemoryStore):
    """Says which objects were read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def get(self, key: str) -> Any:
        self.reads.append(key)
        return super().get(key)


def test_only_the_records_are_read_that_may_be_meant() -> None:
    store = Counting()
    names = [f"ldfd{number:05}" for number in range(60)]
    control = campaign(store, names)
    for name in names[:50]:
        stand(store, name, "processed")
    for name in names[50:52]:
        stand(store, name, "error", cause="oom")
    store.reads.clear()
    found = resolve(control, Order("rescue"), ALL)
    assert names_of(found) == names[50:52]
    assert [key for key in store.reads if "/status/" in key] == [messages.status_key(name) for name in names[50:52]]
    assert found.others == {"placed": 8, "processed": 50}


def test_a_damaged_status_is_named_and_left() -> None:
    store = MemoryStore()
    control = campaign(store)
    for name in NAMES:
        stand(store, name, "error", cause="oom")
    store.put(messages.status_key(COS), b"{", Overwrite())
    for selector in (ALL, Selector((ACS, COS))):
        found = resolve(control, Order("rescue"), selector)
        assert COS not in names_of(found)
        assert "not a status record" in str(found.left)


# ---- tokens


def test_a_token_is_that_of_one_order_and_one_list() -> None:
    store = MemoryStore()
    control = campaign(store)
    for name in (ACS, COS):
        stand(store, name, "error", cause="oom")
    stand(store, STIS, "processed")

    def token(order: Order, selector: Selector = ALL) -> str:
        return resolve(control, order, selector).token

    orders = [
        Order("clean"),
        Order("rescue"),
        Order("rescue", rung="8g"),
        Order("rescue", timeout_scale=2.0),
        Order("clean", discard=True),
    ]
    tokens = [token(order) for order in orders]
    assert len({*tokens, token(Order("clean"), Selector((ACS,)))}) == len(orders) + 1
    assert all(len(token) == 12 for token in tokens)
    # The same list is the same, however it was selected, and whatever was given as the reason.
    same = (ALL, Selector(states=frozenset(["error"])), Selector((ACS, COS)), Selector(causes=frozenset(["oom"])))
    assert {token(Order("clean", why=str(n)), selector) for n, selector in enumerate(same)} == {tokens[0]}
    assert tokens == [token(order) for order in orders]
    stand(store, COS, "error", 2, cause="oom")  # another attempt, in the same state
    assert not set(tokens) & {token(order) for order in orders}


@pytest.mark.parametrize("verb", operate.VERBS)
def test_nothing_is_done_without_the_token(store: Store, verb: str) -> None:
    control = campaign(store)
    stand(store, ACS, "error", cause="oom" if verb != "cancel" else "")
    before = tree(store)
    resolved = resolve(control, Order(verb), ALL)
    assert resolved.targets and resolved.must_be_confirmed
    for token in ("", "0" * 12, resolved.token[:-1], resolved.token.upper() + "x", "../request", f"{'0' * 11}\n"):
        assert not operate.is_confirmed(control, resolved, token)
        with pytest.raises(UsageError, match="nothing was done"):
            carry_out(control, resolved, token)
    assert tree(store) == before


def test_only_trying_again_what_was_named_needs_no_token() -> None:
    store = MemoryStore()
    control = campaign(store)
    stand(store, ACS, "error", cause="oom")
    named = Selector((ACS,))
    needs = {verb: resolve(control, Order(verb), named).must_be_confirmed for verb in ("rescue", "clean")}
    assert needs == {"rescue": False, "clean": True}
    assert resolve(control, Order("cancel"), Selector((COS,))).must_be_confirmed
    assert resolve(control, Order("rescue"), Selector(states=frozenset(["error"]))).must_be_confirmed


@pytest.mark.parametrize("verb", ["rescue", "clean"])
def test_a_stale_token_is_refused(store: Store, verb: str) -> None:
    control = campaign(store)
    for name in (ACS, COS):
        stand(store, name, "error", cause="oom")
    token = resolve(control, Order(verb), ALL).token
    stand(store, COS, "placed", 2)
    shorter = resolve(control, Order(verb), ALL)
    assert names_of(shorter) == [ACS]
    before = tree(store)
    with pytest.raises(UsageError, match="another one than was confirmed"):
        carry_out(control, shorter, token)
    assert tree(store) == before


@everywhere
def test_a_list_to_be_stopped_may_have_become_shorter_but_not_longer(store: Store) -> None:
    control = campaign(store, (ACS, COS, STIS))
    stand(store, ACS, "processing")
    stand(store, COS, "error", cause="oom")
    shown = resolve(control, Order("cancel"), ALL)
    assert names_of(shown) == [ACS, STIS]
    operate.remember(control, shown)
    stand(store, ACS, "submitted", 2)  # tried again: the same dataset
    stand(store, STIS, "processed")
    now = resolve(control, Order("cancel"), ALL)
    assert now.token != shown.token
    assert operate.is_confirmed(control, now, shown.token)
    stand(store, COS, "placed", 2)
    longer = resolve(control, Order("cancel"), ALL)
    assert not operate.is_confirmed(control, longer, shown.token)
    stand(store, COS, "error", 2, cause="oom")
    # What somebody else has put there confirms nothing.
    forged = json.dumps([[name, 1, "open"] for name in NAMES]).encode()
    store.put(f"control/shown/{'a' * 12}.json", forged, Overwrite())
    now = resolve(control, Order("cancel"), ALL)
    assert not operate.is_confirmed(control, now, "a" * 12)
    assert not operate.is_confirmed(control, replace(now, order=Order("clean")), shown.token)
    assert carry_out(control, now, shown.token).done == [ACS]
    assert read(store, STIS).state == "processed"
    assert [key for key in tree(store) if key.startswith("control/shown/")] == [f"control/shown/{'a' * 12}.json"]


def test_how_far_an_open_dataset_has_come_makes_no_other_list() -> None:
    store = MemoryStore()
    control = campaign(store, (ACS,))
    token = resolve(control, Order("cancel"), ALL).token
    for state in ("submitted", "processing", "error"):
        stand(store, ACS, state)
        assert resolve(control, Order("cancel"), ALL).token == token
    assert do(control, Order("cancel"), ALL).done == [ACS]


# ---- what every order has in common


class Racing(MemoryStore):
    """Somebody else does something just before a status is written, or is read for the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], None] = lambda: None
        self.looks = 0

    def get(self, key: str) -> Blob | None:
        if key.startswith("messages/status/") and self.looks:
            self.looks -= 1
            if not self.looks:
                act, self.before = self.before, lambda: None
                act()
        return super().get(key)

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        act, self.before = self.before, self.before
        if key.startswith("messages/status/"):
            self.before = lambda: None
            act()
        return super().put(key, data, mode)


@pytest.mark.parametrize(
    ("verb", "first", "then"),
    [
        ("cancel", ("processing", 1), ("processed", 1)),
        ("rescue", ("error", 1), ("placed", 2)),
        ("clean", ("error", 1), ("processed", 2)),
        ("clean", ("cancelled", 1), ("processed", 1)),
    ],
)
@pytest.mark.parametrize(
    "when", ["before it is looked at", "between looking and looking", "between looking and writing"]
)
def test_what_has_changed_meanwhile_is_left_and_named(
    verb: str, first: tuple[str, int], then: tuple[str, int], when: str
) -> None:
    store = Racing()
    control = campaign(store)
    for name in (ACS, COS):
        stand(store, name, *first, cause="" if verb == "cancel" else "oom")
    store.put(f"data/acs/{ACS}/x.fits", b"x", Create())
    selector = Selector((ACS, COS)) if verb != "cancel" else Selector(states=frozenset([first[0]]))
    resolved = resolve(control, Order(verb), selector)

    def go_on() -> None:
        stand(store, ACS, *then)

    if when.startswith("before"):
        go_on()
    else:
        resolved = replace(resolved, targets=tuple(t for t in resolved.targets if t.dataset == ACS))
        store.before = go_on
        # Cleaning looks twice itself before it writes.
        store.looks = (3 if verb == "clean" else 2) if when.endswith("looking") else 0
    outcome = carry_out(control, resolved, resolved.token)
    assert [left.dataset for left in outcome.left] == [ACS]
    assert f"it is {then[0]} (attempt {then[1]}) by now" in str(outcome.left[0])
    assert (outcome.exit_status, read(store, ACS).state, read(store, ACS).attempt) == (1, *then)
    assert store.get(f"data/acs/{ACS}/x.fits") is not None
    if when.startswith("before"):
        assert outcome.done == [COS]


@pytest.mark.parametrize("verb", operate.VERBS)
def test_every_order_leaves_one_line_of_who_when_what_and_why(store: Store, verb: str) -> None:
    control = campaign(store)
    stand(store, ACS, "error", cause="oom" if verb != "cancel" else "")
    selector = Selector((ACS,))
    resolved = resolve(control, Order(verb, why="they asked", rung="8g" if verb == "rescue" else ""), selector)
    carry_out(control, resolved, resolved.token)
    (line,) = audit(store)
    assert (line["what"], line["why"], line["count"], line["datasets"]) == (verb, "they asked", 1, [ACS])
    assert line["token"] == ("" if verb == "rescue" else resolved.token)
    assert line["options"] == ({"rung": "8g"} if verb == "rescue" else {})
    assert "@" in line["by"] and datetime.fromisoformat(line["at"]).tzinfo is not None
    status = read(store, ACS)
    assert status.by == line["by"]
    assert status.reason.endswith(f"by {line['by']}: they asked")
    # There was nothing to do: nobody has done anything.
    again = resolve(control, Order(verb), Selector(states=frozenset(["archived"])))
    assert carry_out(control, again).done == []
    assert len(audit(store)) == 1


def test_of_many_datasets_the_line_has_number_and_hash() -> None:
    store = MemoryStore()
    names = [f"ldfd{number:05}" for number in range(operate.NAMED + 1)]
    control = campaign(store, names)
    do(control, Order("cancel"), ALL)
    (line,) = audit(store)
    assert line["count"] == len(names) and len(line["sha256"]) == 64 and "datasets" not in line


def test_whoever_is_killed_has_been_there() -> None:
    store = MemoryStore()
    control = campaign(store)
    resolved = resolve(control, Order("cancel"), ALL)

    class KilledError(Exception):
        pass

    def killed(*_: object, **__: object) -> str:
        raise KilledError

    put = store.put
    store.put = lambda key, *rest: killed() if "/status/" in key else put(key, *rest)  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        carry_out(control, resolved, resolved.token)
    assert [line["what"] for line in audit(store)] == ["cancel"]
    store.put = put  # type: ignore[method-assign]
    assert do(control, Order("cancel"), ALL).done == sorted(NAMES)


# ---- cancel


@everywhere
def test_cancel(store: Store) -> None:
    control = campaign(store)
    stand(store, COS, "submitted", shard="local")
    stand(store, STIS, "processing", 2, run="r1", job="j1")
    stand(store, SVM, "processed")
    stand(store, SKY, "error", cause="deterministic", reason="broken")
    outcome = do(control, Order("cancel", why="enough"), ALL)
    assert outcome.done == [ACS, COS, STIS] and not outcome.left
    for name, attempt in ((ACS, 1), (COS, 1), (STIS, 2)):
        status = read(store, name)
        assert (status.state, status.attempt, status.cause) == ("cancelled", attempt, "cancelled")
        assert store.names("messages/dataset-cancelled").count(name) == 1
        # Whoever submits, runs or judges finds it so.
        late = Status(name, attempt, "submitted", rung="2g")
        assert messages.advance(store, late) == (status, False)
        ended = Ended(name, attempt, succeeded=False, exit_code=137, job="j1")
        move = transitions.follow(ended, Evidence(status), DEFAULT, lambda delay: delay)
        assert move.status == status
    assert (read(store, STIS).run, read(store, STIS).job) == ("r1", "j1")
    assert [entry["state"] for entry in read(store, STIS).history] == ["processing", "cancelled"]
    assert read(store, SVM).state == "processed"
    assert read(store, SKY).reason == "broken"
    assert resolve(control, Order("cancel"), ALL).others == {"error": 1, "cancelled": 3, "processed": 1}


def test_cancel_one_of_many(store: Store) -> None:
    control = campaign(store)
    before = tree(store)
    assert do(control, Order("cancel"), Selector((COS,))).done == [COS]
    after = tree(store)
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert changed == {messages.status_key(COS), f"messages/dataset-cancelled/{COS}", AUDIT}


@dataclass
class FakeJobs:
    """Jobs of AWS Batch that are only talked about."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    terminated: list[str] = field(default_factory=list)
    refusal: str = ""

    def describe(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        return {job: self.records[job] for job in dict.fromkeys(ids) if job in self.records}

    def terminate(self, job: str, reason: str) -> None:
        assert reason == "Operator cancelled"
        if self.refusal:
            raise ClientError({"Error": {"Code": self.refusal, "Message": "no"}}, "TerminateJob")
        self.terminated.append(job)

    def submitted(self, store: Store, shard: str, names: list[str], job: str, *, key: str = "") -> None:
        """Let a shard be submitted as ``submit.Submitter`` does."""
        claim = {"shard": shard, "claimed": datetime.now(UTC).isoformat(), "job": job, "datasets": len(names)}
        store.put(claim_key(shard), json.dumps(claim).encode(), Create())
        for name in names:
            stand(store, name, "submitted", shard=shard)
        record: dict[str, Any] = {"jobId": job, "status": "RUNNING", "parameters": {"dataset": names[0]}}
        if len(names) > 1:
            record["arrayProperties"] = {"size": len(names)}
            record["parameters"] = {"manifest": store.url(key or manifest_key(shard))}
        self.records[job] = record


@pytest.fixture
def batch() -> FakeJobs:
    return FakeJobs()


EXPOSURES = tuple(f"ldfd0100{number}" for number in range(6))


@pytest.fixture
def on_aws(store: Store, batch: FakeJobs) -> Control:
    """A campaign of six exposures, submitted as one array."""
    control = campaign(store, EXPOSURES, runner="aws")
    (shard,) = control.shards()
    batch.submitted(store, shard, list(EXPOSURES), "parent")
    return control


def test_the_children_of_an_array_are_ended_after_their_statuses_say_so(
    on_aws: Control, store: Store, batch: FakeJobs
) -> None:
    messages.begin(store, EXPOSURES[3], "r1", claim=messages.Claim(1, job="parent:3"))
    seen = []
    terminate = batch.terminate

    def watched(job: str, reason: str) -> None:
        seen.append(read(store, EXPOSURES[int(job.partition(":")[2])]).state)
        terminate(job, reason)

    batch.terminate = watched  # type: ignore[method-assign]
    outcome = do(on_aws, Order("cancel"), Selector((EXPOSURES[1], EXPOSURES[3])), jobs=batch)
    assert sorted(batch.terminated) == ["parent:1", "parent:3"]
    assert (seen, outcome.jobs) == (["cancelled"] * 2, 2)
    assert [read(store, name).state for name in EXPOSURES].count("submitted") == 4


@everywhere
def test_an_array_of_which_nobody_else_is_left_is_ended_as_one(on_aws: Control, store: Store, batch: FakeJobs) -> None:
    stand(store, EXPOSURES[0], "processed")
    stand(store, EXPOSURES[1], "error", cause="oom")
    messages.begin(store, EXPOSURES[2], "r1", claim=messages.Claim(1, job="parent:2"))
    do(on_aws, Order("cancel"), ALL, jobs=batch)
    assert batch.terminated == ["parent"]


def test_the_array_goes_on_for_those_that_may_still_be_at_work(on_aws: Control, store: Store, batch: FakeJobs) -> None:
    stand(store, EXPOSURES[0], "error")  # nobody has judged it yet
    selector = Selector(EXPOSURES[1:])
    do(on_aws, Order("cancel"), selector, jobs=batch)
    assert sorted(batch.terminated) == [f"parent:{number}" for number in range(1, 6)]


@everywhere
def test_an_array_of_those_that_were_left_when_it_was_submitted(store: Store, batch: FakeJobs) -> None:
    control = campaign(store, EXPOSURES, runner="aws")
    (shard,) = control.shards()
    lines = [line for line in control.lines(shard) if line.dataset in EXPOSURES[2:]]
    key = f"control/submitted/{shard}-0123abcd.jsonl"
    store.put(key, jsonl(lines), Create())
    store.put(f"control/submitted/{shard}-99999999.jsonl", jsonl(control.lines(shard)[1:]), Create())
    batch.submitted(store, shard, list(EXPOSURES[2:]), "parent", key=key)
    do(control, Order("cancel"), Selector((EXPOSURES[2], EXPOSURES[5])), jobs=batch)
    assert sorted(batch.terminated) == ["parent:0", "parent:3"]


def test_plain_jobs_jobs_that_have_ended_and_shards_without_one(store: Store, batch: FakeJobs) -> None:
    control = campaign(store, EXPOSURES, runner="aws")
    batch.submitted(store, "one", [EXPOSURES[0]], "plain")
    batch.submitted(store, "two", [EXPOSURES[1]], "ended")
    batch.submitted(store, "three", [EXPOSURES[2]], "nothing")
    batch.submitted(store, "four", [EXPOSURES[3]], "")
    batch.submitted(store, "five", [EXPOSURES[4]], "gone")
    batch.records["ended"]["status"] = "FAILED"
    del batch.records["gone"]
    outcome = do(control, Order("cancel"), ALL, jobs=batch)
    assert (outcome.done, batch.terminated, outcome.jobs) == (list(EXPOSURES), ["plain"], 1)


def test_jobs_that_cannot_be_ended_can_be_asked_for_again(on_aws: Control, store: Store, batch: FakeJobs) -> None:
    batch.refusal = "AccessDeniedException"
    with pytest.raises(CaldpError, match="6 datasets cancelled, but AWS Batch does not .*AccessDenied.*TerminateJob"):
        do(on_aws, Order("cancel"), ALL, jobs=batch)
    assert {read(store, name).state for name in EXPOSURES} == {"cancelled"}
    assert not resolve(on_aws, Order("cancel"), ALL).targets
    batch.refusal = ""
    before = {name: read(store, name) for name in EXPOSURES}
    do(on_aws, Order("cancel"), Selector(states=frozenset(["cancelled"])), jobs=batch)
    assert batch.terminated == ["parent"]
    assert {name: read(store, name) for name in EXPOSURES} == before


# ---- rescue


@everywhere
def test_rescue(store: Store) -> None:
    control = campaign(store)
    store.put(CLOSED, b"{}", Create())
    stand(store, ACS, "error", 3, cause="oom", rung="8g", time_limit=86400, spent={"oom": 3}, fingerprint="f")
    stand(store, COS, "cancelled", cause="cancelled", time_limit=43200)
    stand(store, STIS, "processed")
    outcome = do(control, Order("rescue", why="new flat"), ALL)
    assert outcome.done == [ACS, COS]
    status = read(store, ACS)
    assert (status.attempt, status.state, status.rung, status.time_limit) == (4, "placed", "16g", 86400)
    assert (status.spent, status.cause, status.fingerprint, status.shard) == ({}, "", "", "")
    assert (status.exit_code, status.reason.rpartition(" by ")[0]) == (None, "rescued")
    # What was given by hand at first stays: no less than it had.
    assert (read(store, COS).attempt, read(store, COS).rung, read(store, COS).time_limit) == (2, "2g", 43200)
    assert store.names("messages/dataset-error") + store.names("messages/dataset-cancelled") == []
    assert not control.closed()  # or nobody would look after it any more
    # All retries are before it again.
    ended = Ended(ACS, 4, succeeded=False, exit_code=137, reason="OutOfMemoryError: x", job="j")
    move = transitions.follow(ended, Evidence(status), DEFAULT, lambda delay: delay)
    assert move.status is not None
    assert (move.status.state, move.status.attempt, move.status.rung) == ("placed", 5, "64g")


@pytest.mark.parametrize(
    ("given", "rung", "limit"),
    [
        ({}, "8g", 3600),  # planned after an OOM at 2g
        ({"rung": "64g"}, "64g", 3600),
        ({"rung": "2g"}, "2g", 3600),  # whoever says so knows
        ({"timeout_scale": 2.0}, "8g", 7200),
        ({"timeout_scale": 2.5}, "8g", 21600),  # up to the next limit that there is
        ({"timeout_scale": 1000.0}, "8g", 259200),
        ({"rung": "16", "timeout_scale": 0.3}, "16g", 1200),
    ],
)
def test_what_the_next_attempt_is_given(given: dict[str, Any], rung: str, limit: int) -> None:
    store = MemoryStore()
    control = campaign(store, (COS,))
    stand(store, COS, "error", cause="oom", exit_code=31)
    do(control, Order("rescue", **given), Selector((COS,)))
    status = read(store, COS)
    assert (status.rung, status.time_limit) == (rung, limit)


def test_a_time_limit_that_was_asked_for_is_multiplied_too() -> None:
    store = MemoryStore()
    control = campaign(store, (COS,), time_limit=7200)
    stand(store, COS, "error", cause="timeout", time_limit=7200)
    do(control, Order("rescue", timeout_scale=3.0), Selector((COS,)))
    assert read(store, COS).time_limit == 21600


def test_at_the_end_of_the_ladder_somebody_must_say_where_to_go_on() -> None:
    store = MemoryStore()
    control = campaign(store, (COS, STIS))
    stand(store, COS, "error", cause="oom", rung="64g")
    stand(store, STIS, "error", cause="host")
    outcome = do(control, Order("rescue"), ALL)
    assert outcome.done == [STIS]
    assert "needs more than the ladder has: it ran out of memory at 64g" in str(outcome.left)
    assert do(control, Order("rescue", rung="64g"), Selector((COS,))).done == [COS]
    assert (read(store, COS).attempt, read(store, COS).rung) == (2, "64g")


def test_whoever_submits_is_told(store: Store) -> None:
    control = campaign(store, runner="aws")
    stand(store, ACS, "error", cause="oom")
    stand(store, COS, "error", 2, cause="host")
    sent: list[Mapping[str, Any]] = []
    do(control, Order("rescue"), ALL, send=sent.extend)
    told = [(entry["output"], entry["dataset"], entry["attempt"]) for entry in sent]
    assert told == [(store.uri, ACS, 2), (store.uri, COS, 3)]
    # As ``hear.drain`` reads it.
    assert all(datetime.fromisoformat(entry["due"]) <= datetime.now(UTC) for entry in sent)
    # Again, for it may have been lost on the way; one that was never tried before is in a shard.
    sent.clear()
    before = {name: messages.read(store, name) for name in NAMES}
    outcome = do(control, Order("rescue"), Selector((ACS, STIS)), send=sent.extend)
    assert [entry["dataset"] for entry in sent] == [ACS]
    assert str(outcome.left) == str([operate.Left(STIS, "it is placed: cancel it first")])
    assert {name: messages.read(store, name) for name in NAMES} == before
    assert names_of(resolve(control, Order("rescue"), Selector(states=frozenset(["placed"])))) == [ACS, COS]
    assert names_of(resolve(control, Order("rescue"), ALL)) == []


def test_whoever_submits_is_told_of_those_before_a_failure() -> None:
    store = MemoryStore()
    control = campaign(store, runner="aws")
    for name in NAMES:
        stand(store, name, "error", cause="host")
    put = store.put

    def fail(key: str, data: bytes, mode: PutMode) -> str:
        if messages.read(store, SKY) and key == messages.status_key(SKY):
            raise ConnectionError("the cloud has gone")
        return put(key, data, mode)

    resolved = resolve(control, Order("rescue"), ALL)
    store.put = fail  # type: ignore[method-assign]
    sent: list[Mapping[str, Any]] = []
    with pytest.raises(ConnectionError):
        carry_out(control, resolved, resolved.token, send=sent.extend)
    placed = [name for name in NAMES if read(store, name).state == "placed"]
    assert [entry["dataset"] for entry in sent] == [name for name in sorted(NAMES)[: len(sent)]]
    assert set(placed) >= {entry["dataset"] for entry in sent} != set()


def test_a_campaign_that_was_closed_is_open_again_when_something_is_placed() -> None:
    store = Racing()
    control = campaign(store)
    for name in (ACS, COS):
        stand(store, name, "error", cause="host")
    store.put(CLOSED, b"{}", Create())
    store.before = lambda: store.put(CLOSED, b"{}", Overwrite())  # who reconciles has not seen it yet
    do(control, Order("rescue"), Selector((ACS, COS)))
    assert not control.closed()


# ---- clean


def fill(store: Store, name: str) -> list[str]:
    """Give a dataset something everywhere; return the keys."""
    prefix = Dataset.parse(name).prefix
    keys = [
        *(f"{prefix}/{file}" for file in ("a.fits", "manifest.json", "logs/process.txt", "previews/a.png", "x/y/z")),
        result_key(name, 1),
        result_key(name, 2, 2),
        log_key(name, 1),
        log_key(name, 2),
    ]
    for key in keys:
        store.put(key, key.encode(), Overwrite())
    return keys


@everywhere
def test_clean_removes_all_of_a_dataset_and_nothing_of_any_other(store: Store) -> None:
    control = campaign(store, (ACS, "j8cb010b1", COS))
    keys = fill(store, ACS)
    stand(store, ACS, "error", cause="deterministic", reason="broken")
    for neighbour in NEIGHBOURS:
        for place in PLACES:
            key = place.format(neighbour, neighbour)
            if store.get(key) is None and not (neighbour == "j8cb010b1" and "messages" in key):
                store.put(key, f"foreign {key}".encode(), Create())
    for key in (f"data/acs/{ACS}.txt", f"control/logs/{ACS}.txt", f"control/results/{ACS}y", "data/acs/README"):
        store.put(key, b"foreign", Create())
    fill(store, COS)
    stand(store, COS, "error", cause="deterministic")
    before = tree(store)
    outcome = do(control, Order("clean"), Selector((ACS,)))
    assert (outcome.done, outcome.objects, outcome.size) == ([ACS], len(keys), sum(map(len, keys)))
    after = tree(store)
    gone = {key for key in before if key not in after}
    assert gone == {*keys, f"messages/dataset-error/{ACS}"}
    changed = {key for key in after if before.get(key) != after[key]}
    assert changed == {messages.status_key(ACS), f"messages/dataset-cancelled/{ACS}", AUDIT}
    status = read(store, ACS)
    assert (status.state, status.attempt, status.cause) == ("cancelled", 2, CLEANED)
    assert status.reason.startswith("cleaned by ")
    assert [(entry["state"], entry["reason"][:7]) for entry in status.history] == [
        ("error", "broken"),
        ("cancelled", "cleaned"),
    ]
    if isinstance(store, LocalStore):
        assert not (store.root / "data/acs" / ACS).exists()
        assert not (store.root / "control/logs" / ACS).exists()


@pytest.mark.parametrize("selector", [ALL, Selector(NAMES)])
def test_what_may_be_cleaned(store: Store, selector: Selector) -> None:
    control = campaign(store)
    states = dict(zip(NAMES, ("error", "processed", "synced", "archived", "processing"), strict=True))
    for name, state in states.items():
        fill(store, name)
        stand(store, name, state, cause="oom" if state == "error" else "", message="/a/b.fits\n")
    before = tree(store)
    outcome = do(control, Order("clean"), selector)
    assert outcome.done == [SVM, ACS]
    for name in (COS, STIS, SKY):
        of_it = {key: data for key, data in before.items() if f"/{name}" in key}
        assert {key: data for key, data in tree(store).items() if f"/{name}" in key} == of_it
    if selector is not ALL:
        said = {left.dataset: left.why for left in outcome.left}
        assert said[COS] == "it is processed: its products would be lost, see --discard-products"
        assert said[SKY] == "it is processing: cancel it first"
    # What the message said is kept, as for any attempt that follows.
    assert read(store, SVM).history[-1]["messages"] == {"dataset-archived": "/a/b.fits\n"}
    assert do(control, Order("clean", discard=True), ALL).done == [COS, STIS]
    assert {state for state in map(lambda name: read(store, name).state, NAMES)} == {"cancelled", "processing"}
    assert {entry.key.split("/")[2] for entry in store.walk("data")} == {SKY}


@pytest.mark.parametrize("selector", [ALL, Selector((ACS,))])
def test_products_of_an_earlier_attempt_are_not_cleaned_by_chance(store: Store, selector: Selector) -> None:
    control = campaign(store)
    publish(store, ACS, {f"{ACS}_flt.fits": b"x"})
    stand(store, ACS, "error", 2, cause="oom")
    resolved = resolve(control, Order("clean"), selector)
    assert names_of(resolved) == []
    if selector.by_name:
        assert "its products of attempt 1 would be lost, see --discard-products" in str(resolved.left)
    assert do(control, Order("clean", discard=True), selector).done == [ACS]
    assert not list(store.walk("data"))


def test_what_was_cleaned_is_not_cleaned_again_unless_it_is_named(store: Store) -> None:
    control = campaign(store)
    stand(store, ACS, "error", cause="oom")
    do(control, Order("clean"), ALL)
    assert names_of(resolve(control, Order("clean"), ALL)) == []
    store.put(f"data/acs/{ACS}/late.fits", b"x", Create())
    assert do(control, Order("clean"), Selector((ACS,))).objects == 1
    # It can be calibrated all the same, in a new attempt.
    assert do(control, Order("rescue"), Selector((ACS,))).done == [ACS]
    assert (read(store, ACS).state, read(store, ACS).attempt) == ("placed", 4)


@everywhere
def test_whoever_is_killed_while_cleaning_goes_on(store: Store) -> None:
    control = campaign(store)
    fill(store, ACS)
    stand(store, ACS, "error", cause="oom")
    resolved = resolve(control, Order("clean"), ALL)

    class KilledError(Exception):
        pass

    delete = store.delete

    def killed(*keys: str) -> None:
        if any(key.startswith("data/") for key in keys):
            delete(keys[0])
            raise KilledError
        delete(*keys)

    store.delete = killed  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        carry_out(control, resolved, resolved.token)
    store.delete = delete  # type: ignore[method-assign]
    assert do(control, Order("clean"), ALL).done == [ACS]
    assert not list(store.walk("data"))


@everywhere
def test_a_run_that_is_alive_keeps_its_dataset(store: Store) -> None:
    control = campaign(store)
    stand(store, ACS, "processing", run="r1")
    do(control, Order("cancel"), Selector((ACS,)))
    fill(store, ACS)
    if store.exclusive:
        with store.own(ACS):
            outcome = do(control, Order("clean"), Selector((ACS,)))
        assert "another run is processing it" in str(outcome.left)
    else:
        outcome = do(control, Order("clean"), Selector((ACS,)))
        assert "its run may be alive: try again in " in str(outcome.left)
        status = read(store, ACS)
        long_ago = (datetime.now(UTC) - timedelta(seconds=301)).isoformat()
        record = {**status.to_json(), "at": long_ago}
        store.put(messages.status_key(ACS), json.dumps(record).encode(), Overwrite())
    assert len(list(store.walk(f"data/acs/{ACS}"))) == 5
    assert do(control, Order("clean"), Selector((ACS,))).done == [ACS]
    # And it could not publish any more.
    assert not messages.owns(store, Status(ACS, 1, "processing", run="r1"))


def test_a_job_tells_better_than_the_clock_whether_a_run_is_alive(batch: FakeJobs) -> None:
    store = MemoryStore()
    control = campaign(store, runner="aws")
    stand(store, ACS, "processing", run="r1", job="parent:1")
    do(control, Order("cancel"), Selector((ACS,)))
    batch.records["parent:1"] = {"jobId": "parent:1", "status": "RUNNING"}
    outcome = do(control, Order("clean"), Selector((ACS,)), jobs=batch)
    assert "its job is still running" in str(outcome.left)
    batch.records["parent:1"]["status"] = "FAILED"
    assert do(control, Order("clean"), Selector((ACS,)), jobs=batch).done == [ACS]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "OUT")
    control = campaign(store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    for name, place in ((ACS, f"data/acs/{ACS}"), (COS, f"control/logs/{COS}")):
        stand(store, name, "error", cause="oom")
        link = store.root / place
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(elsewhere)
    folder = store.root / f"data/stis/{STIS}"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere)
    stand(store, STIS, "error", cause="oom")
    outcome = do(control, Order("clean"), ALL)
    assert {left.dataset for left in outcome.left} == {ACS, COS}
    assert read(store, ACS).state == "error"
    assert outcome.done == [STIS]
    assert (elsewhere / "precious").read_text() == "x"


# ---- pausing


@everywhere
def test_pause(store: Store) -> None:
    control = campaign(store)
    operate.pause(control, "the archive  is full\n")
    assert control.paused() == "the archive is full"
    assert operate.unpause(control, "it is not") and not control.paused()
    assert not operate.unpause(control)
    assert [(line["what"], line["why"]) for line in audit(store)] == [
        ("pause", "the archive  is full\n"),
        ("unpause", "it is not"),
    ]
    operate.pause(control, "")
    assert control.paused().startswith("by ")
    for act in (operate.pause, operate.unpause):
        with pytest.raises(UsageError, match="is no campaign"):
            act(Control(MemoryStore()), "")


# ---- logs


def lines_of(control: Control, *args: Any, **options: Any) -> list[str]:
    return list(operate.log(control, *args, **options))


@everywhere
def test_logs(store: Store) -> None:
    control = campaign(store)
    stand(store, ACS, "error", 3, cause="oom")
    prefix = Dataset.parse(ACS).prefix
    with pytest.raises(UsageError, match=f"{ACS}: there is no log of any attempt .it is error.") as caught:
        lines_of(control, ACS)
    assert caught.value.exit_code == 2
    store.put(log_key(ACS, 1), b"one\n", Create())
    assert lines_of(control, ACS.upper()) == ["one"]  # the last that has one
    store.put(f"{prefix}/logs/process.txt", b"published\n", Create())
    assert lines_of(control, ACS) == ["published"]
    store.put(log_key(ACS, 3), b"three\n\x1b[31mred\x1b[0m \xff\nno end", Create())
    told: list[str] = []
    assert lines_of(control, ACS, told=told.append) == ["three", "red \ufffd", "no end"]
    assert told == [store.url(log_key(ACS, 3))]
    assert lines_of(control, ACS, 1) == ["one"]
    with pytest.raises(UsageError, match="there is no log of attempt 2"):
        lines_of(control, ACS, 2)
    with pytest.raises(UsageError, match="there is no log of any attempt .it is placed."):
        lines_of(control, COS)  # nothing has begun
    with pytest.raises(UsageError, match="does not know it"):
        lines_of(control, "ldfd01010")


def test_a_log_is_followed_through_all_attempts(store: Store) -> None:
    control = campaign(store)
    stand(store, ACS, "processing")

    def steps() -> Iterator[None]:
        yield
        store.put(log_key(ACS, 1), b"a\nb", Overwrite())
        yield
        store.put(log_key(ACS, 1), b"a\nbc\n", Overwrite())
        yield
        store.put(log_key(ACS, 1), b"a\nbc\nlast of 1\n", Overwrite())
        stand(store, ACS, "placed", 2, cause="oom")
        yield
        store.put(log_key(ACS, 2), b"begin of 2\n", Overwrite())
        stand(store, ACS, "processing", 2)
        yield
        stand(store, ACS, "processed", 2)
        yield
        store.put(log_key(ACS, 2), b"begin of 2\nlast of 2\n", Overwrite())

    going = steps()
    found = lines_of(control, ACS, follow=True, wait=lambda: next(going, None))
    assert found == ["a", "bc", "last of 1", "begin of 2", "last of 2"]
    assert lines_of(control, ACS, 1, follow=True, wait=lambda: None) == ["a", "bc", "last of 1"]


@dataclass
class FakeLogs:
    """CloudWatch, with pages of two events."""

    streams: dict[str, list[str]]

    def get_log_events(self, **request: Any) -> Mapping[str, Any]:
        assert (request["logGroupName"], request["startFromHead"]) == ("/caldp/dev/jobs", True)
        begin = int(request.get("nextToken", "0"))
        events = self.streams[request["logStreamName"]][begin : begin + 2]
        return {"events": [{"message": text} for text in events], "nextForwardToken": str(begin + len(events))}


def test_logs_of_jobs_on_aws(store: Store, batch: FakeJobs) -> None:
    control = campaign(store, runner="aws")
    stand(store, ACS, "processing", job="parent:1")
    stand(store, ACS, "placed", 2, cause="oom")
    stand(store, ACS, "processing", 2, job="other")
    batch.records["parent:1"] = {"jobId": "parent:1", "attempts": [{"container": {"logStreamName": "2g/one"}}]}
    batch.records["other"] = {"jobId": "other", "container": {"logStreamName": "2g/two"}}
    logs = FakeLogs({"2g/one": ["1"], "2g/two": ["a", "b", "c"]})
    cloud = Cloud(logs, "/caldp/dev/jobs", batch)  # type: ignore[arg-type]
    assert lines_of(control, ACS, cloud=cloud) == ["a", "b", "c"]
    assert lines_of(control, ACS, 1, cloud=cloud) == ["1"]

    def on() -> None:
        logs.streams["2g/two"] = ["a", "b", "c", "d"]
        messages.advance(store, Status(ACS, 2, "processed"))

    assert lines_of(control, ACS, cloud=cloud, follow=True, wait=on) == ["a", "b", "c", "d"]
    # Batch forgets jobs after a while, what they published stays.
    batch.records.clear()
    store.put(f"{Dataset.parse(ACS).prefix}/logs/process.txt", b"published\n", Create())
    assert lines_of(control, ACS, cloud=cloud) == ["published"]
    store.put(stream_key(ACS, 1), b"2g/one\n", Create())
    assert lines_of(control, ACS, 1, cloud=cloud) == ["1"]


# ---- for people and machines


def test_what_is_shown() -> None:
    store = MemoryStore()
    names = [f"ldfd{number:05}" for number in range(30)]
    control = campaign(store, [*names, ACS, STIS])
    for name in names:
        stand(store, name, "error", cause="oom", reason=f"{name}: out of \x1b[31mmemory")
    stand(store, ACS, "cancelled", cause="cancelled")
    stand(store, STIS, "processed")
    resolved = resolve(control, Order("rescue", rung="8g", timeout_scale=2), ALL)
    text = str(resolved).splitlines()
    assert text[:5] == [
        "rescue: 31 datasets of memory:",
        "  memory rung 8g",
        "  time limits x 2",
        "  error             30  cos 30",
        "  cancelled          1  acs 1",
    ]
    assert text[5] == f"    {ACS}  cancelled, attempt 1"
    assert text[6] == "    ldfd00000  error, attempt 1, oom  (ldfd00000: out of memory)"
    assert text[-2:] == ["    ... and 11 more (see --json)", "not to be touched: 1 processed"]
    assert len(text) == 5 + 20 + 2
    record = json.loads(json.dumps(resolved.to_json()))
    assert len(record["datasets"]) == 31
    assert record["datasets"][0] == {"dataset": ACS, "attempt": 1, "state": "cancelled", "cause": "cancelled"}
    assert (record["token"], record["options"]) == (resolved.token, {"rung": "8g", "timeout_scale": 2})


def test_no_other_room_comes_here() -> None:
    """What runs by itself, or reads lists, cannot reach it."""
    package = Path(operate.__file__).parents[1]
    rooms = [*package.rglob("*.py"), *(package.parent / "lambdas").rglob("*.py")]
    users = [
        path.name for path in rooms if re.search(r"import operate|\boperate\b.*import|cli_operate", path.read_text())
    ]
    assert sorted(users) == ["cli_campaign.py", "cli_operate.py"]
    assert len([path for path in rooms if path.name == "handler.py"]) >= 4
