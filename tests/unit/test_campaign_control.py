"""What a batch keeps of its campaign: written once, or by many at a time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from caldp.campaign import control
from caldp.campaign.control import Control, log_key, manifest_key, result_key
from caldp.campaign.shards import Line, Shard
from caldp.errors import InputError, OutputError, UsageError
from caldp.local_store import LocalStore
from caldp.store import Overwrite, Store
from tests.fakes.stores import MemoryStore

REQUEST = {"list": "abc", "runner": "local", "options": {"canary": None, "pair": (1, 2)}, "label": "first"}
SAME = ("list", "runner", "options")


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "mvp") if request.param == "folder" else MemoryStore()


@pytest.fixture
def kept(store: Store) -> Control:
    return Control(store)


@pytest.mark.parametrize(
    ("uri", "name"), [("s3://bucket/a/mvp", "mvp"), ("s3://bucket/mvp/", "mvp"), ("file:/x/mvp", "mvp")]
)
def test_the_name_of_a_batch(uri: str, name: str) -> None:
    store = MemoryStore()
    store.uri = uri
    assert Control(store).name == name


def test_a_batch_is_claimed_once(kept: Control) -> None:
    assert kept.known() is None
    with pytest.raises(UsageError, match=r"is no campaign: there is no control/request.json"):
        kept.request()
    kept.claim(REQUEST, SAME)
    kept.claim({**REQUEST, "label": "second"}, SAME)  # of no importance
    assert kept.request()["label"] == "first"
    with pytest.raises(UsageError, match=r"the campaign of another request \(list, options: not the same\)"):
        kept.claim({**REQUEST, "list": "def", "options": {}}, SAME)
    assert kept.request()["list"] == "abc"


def test_of_many_who_claim_one_wins(kept: Control) -> None:
    def claim(number: int) -> bool:
        try:
            kept.claim({**REQUEST, "list": str(number)}, SAME)
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(16)))
    assert sum(won) == 1
    assert kept.request()["list"] == str(won.index(True))


def test_a_plan(kept: Control) -> None:
    assert kept.planned() is None
    with pytest.raises(UsageError, match=r"there is no control/plan.json; caldp campaign submit makes one"):
        kept.plan()
    kept.write_plan({"datasets": 3})
    assert kept.plan() == kept.planned() == {"datasets": 3}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff"])
def test_what_is_damaged_is_named(kept: Control, store: Store, data: bytes) -> None:
    store.put(control.PLAN, data, Overwrite())
    with pytest.raises(OutputError, match=r"plan.json is damaged"):
        kept.plan()


def test_manifests(kept: Control, store: Store) -> None:
    lines = (Line("lfak000sq", 1, "2g", 1, 3600, "why"), Line("lfak001sq", 1, "2g", 1, 3600))
    assert kept.shards() == []
    for name in ("mvp-a1-2g-1h-002", "mvp-a1-2g-1h-001"):
        kept.write_manifest(Shard(name, "mvp", 1, "2g", 3600, lines))
    assert kept.shards() == ["mvp-a1-2g-1h-001", "mvp-a1-2g-1h-002"]
    assert kept.lines("mvp-a1-2g-1h-001") == list(lines)
    with pytest.raises(InputError, match=r"nothing.jsonl is missing"):
        kept.lines("nothing")
    store.put(manifest_key("broken"), b'{"dataset": "../../etc"}\n', Overwrite())
    with pytest.raises(InputError, match=r"broken.jsonl is no manifest \(line 1 is damaged"):
        kept.lines("broken")


def test_what_is_put_once_stays(kept: Control, store: Store) -> None:
    kept.put_once(control.OBSERVATIONS, b"1\n")
    kept.put_once(control.OBSERVATIONS, b"2\n")
    blob = store.get(control.OBSERVATIONS)
    assert blob is not None and blob.data == b"1\n"


def test_a_pause(kept: Control, store: Store) -> None:
    assert kept.paused() == ""
    kept.unpause()
    kept.pause("the archive is full")
    assert kept.paused() == "the archive is full"
    store.put(control.PAUSE, b"", Overwrite())  # of touch
    assert kept.paused() == "paused"
    store.put(control.PAUSE, b"\xff", Overwrite())
    assert kept.paused()
    kept.unpause()
    assert kept.paused() == ""


def test_the_audit_loses_nothing(kept: Control, store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: kept.audit("cancel", f"reason {number}", datasets=number), range(40)))
    blob = store.get(control.AUDIT)
    assert blob is not None
    told: list[dict[str, Any]] = [json.loads(line) for line in blob.data.splitlines()]
    assert sorted(entry["datasets"] for entry in told) == list(range(40))
    assert all(entry["what"] == "cancel" and "@" in entry["by"] and entry["at"].endswith("Z") for entry in told)


def test_results_and_logs(kept: Control, store: Store) -> None:
    assert kept.result("lfak000sq", 1) is None
    store.put("control/results/lfak000sq/2.3.json", b'{"code": 0}', Overwrite())
    assert kept.result("lfak000sq", 2, 3) == {"code": 0}
    assert (result_key("x", 1), log_key("x", 2)) == ("control/results/x/1.1.json", "control/logs/x/2.log")


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(control.getpass, "getuser", nobody)
    assert control.who().partition("@")[0].isdigit()
