"""``caldp status`` and ``caldp messages repair``, as people and schedulers use them, on directories and on S3."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from caldp import batch, cli
from caldp.errors import S3UploadRefusedError
from caldp.local_store import LocalStore
from caldp.messages import STATES, Status, advance, begin
from caldp.s3_store import S3Store
from caldp.store import Overwrite, Store, open_store
from tests.desk import SCRIPTS
from tests.fakes.batch import names, objects, put_many
from tests.fakes.proxy import FaultyProxy
from tests.s3 import S3Place, emulated, s3_environment, s3_places

NAME = "ldfd01010"
MANY = 1200
FOLDERS = {state: folder for state, (_, folder) in STATES.items() if folder}

everywhere = pytest.mark.parametrize("s3_place", s3_places(), indirect=True)
on_one = pytest.mark.parametrize("s3_place", s3_places("ministack"), indirect=True)

Caldp = Callable[..., Result]


def use(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)


@pytest.fixture
def caldp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> Caldp:
    """A function that types a command, in this process; with ``place`` its S3 is seen."""
    monkeypatch.chdir(tmp_path)

    def type_it(*args: str, place: S3Place | None = None) -> Result:
        if place:
            use(monkeypatch, place.environment())
        done = CliRunner().invoke(cli.main, args)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return type_it


@pytest.fixture
def out(tmp_path: Path) -> Store:
    """A batch in the directory OUT: a dataset in each state, and another in error."""
    return fill(LocalStore(tmp_path / "OUT"))


def fill(store: Store) -> Store:
    for dataset, state in zip(names(len(STATES)), STATES, strict=True):
        reason = f"{dataset}: no {dataset}_raw*.fits in IN" if state == "error" else ""
        mine = begin(store, dataset, f"run-of-{dataset}") if state not in ("placed", "submitted") else None
        status = replace(mine, state=state, at="", by="", beat="") if mine else Status(dataset, 1, state)
        text = f"/archive/{dataset}.fits\n" if state in ("synced", "archived") else ""
        if state != "processing":
            advance(store, replace(status, reason=reason, exit_code=21 if reason else None, message=text))
    status = begin(store, NAME, "run")
    advance(store, replace(status, state="error", reason=f"{NAME}: no {NAME}_raw*.fits in IN", exit_code=21))
    return store


def kinds(proxy: FaultyProxy) -> Counter[str]:
    """Count the requests by what they are."""
    return Counter("LIST" if "list-type=2" in r.query else r.method for r in proxy.requests)


# ---- in a directory


def test_counts_and_causes(caldp: Caldp, out: Store, tmp_path: Path) -> None:
    done = caldp("status", "OUT")
    assert (done.exit_code, done.stderr) == (3, "")
    rows = dict(re.findall(r"^  ([a-z]+) +([\d,]+)", done.stdout, re.MULTILINE))
    assert rows == {**dict.fromkeys(STATES, "1"), "error": "2", "datasets": "9"}
    assert (
        "2  exit 21 INPUT_TAR_FILE_ERROR\n     no <dataset>_raw*.fits in IN\n     ldfd00003 ldfd01010\n" in done.stdout
    )
    assert "ldfd00002  attempt 1" in done.stdout  # stale: no lock
    assert done.stdout.endswith("3 still open; 3 failed; 1 stale: run them again.\n")
    assert "\x1b" not in done.stdout
    for place in (f"file:{tmp_path}/OUT", "file:OUT", f"{tmp_path}/OUT/"):
        assert caldp("status", place).stdout == done.stdout


def test_a_live_run_is_not_stale(caldp: Caldp, out: Store) -> None:
    with out.own(names(3)[2]):
        found = json.loads(caldp("status", "OUT", "--json").stdout)
    assert (found["stale"], found["counts"]["processing"], found["processing_read"]) == ([], 1, 1)
    assert [run["dataset"] for run in json.loads(caldp("status", "OUT", "--json").stdout)["stale"]] == [names(3)[2]]


def test_the_exit_statuses_follow_the_batch(caldp: Caldp, out: Store) -> None:
    for dataset in names(3):
        advance(out, Status(dataset, 2, "processed"))
    assert caldp("status", "OUT").exit_code == 1
    for dataset in (*names(5)[3:], NAME):
        advance(out, Status(dataset, 2, "processed"))
    done = caldp("status", "OUT", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["exit_status"], found["done"], found["datasets"]) == (0, 0, 9, 9)


def test_one_dataset_with_its_history(caldp: Caldp, out: Store, tmp_path: Path) -> None:
    done = caldp("status", "OUT", NAME.upper())
    assert (done.exit_code, done.stderr) == (1, "")
    for words in (
        f"{NAME} in {tmp_path}/OUT",
        "state      error",
        f"reason     exit 21 INPUT_TAR_FILE_ERROR: {NAME}: no {NAME}_raw*.fits in",
        "messages   dataset-error",
    ):
        assert words in done.stdout
    history = done.stdout.partition("History (UTC)\n")[2].splitlines()
    assert [line.split()[3] for line in history] == ["processing", "error"]
    record = json.loads(caldp("status", "OUT", NAME, "--json").stdout)
    assert (record["state"], record["exit_code"], record["exit_status"], record["stale"]) == ("error", 21, 1, False)
    assert record["location"] == f"{tmp_path}/OUT/data/cos/{NAME}"
    assert [entry["state"] for entry in record["history"]] == ["processing", "error"]
    assert caldp("status", "OUT", names(6)[5]).exit_code == 0
    assert caldp("status", "OUT", names(3)[1]).exit_code == 3


@pytest.mark.parametrize("command", [["status"], ["messages", "repair"]])
@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nowhere"], 2, "there is no directory"),
        (["EMPTY"], 2, "EMPTY is no batch: no dataset has a message in it"),
        (["OUT", "ldfd09999"], 2, "ldfd09999: "),
        (["OUT", "nonsense"], 2, "'nonsense' is not an HST dataset name"),
        (["OUT", "u2ab0101t"], 2, "WFPC2 is not calibrated"),
        (["s3:bucket"], 2, "names no bucket"),
        (["astroquery:"], 2, "no place for files"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    caldp: Caldp, out: Store, tmp_path: Path, command: list[str], args: list[str], code: int, words: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = caldp(*command, *args)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert done.stderr.startswith(f"caldp {' '.join(command)}: ")
    assert words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "typed",
    [
        "status",
        f"status OUT {NAME} x",
        "status OUT --limit -1",
        "status OUT --owner-timeout 0",
        "messages repair",
        "messages mend",
    ],
)
def test_bad_options_are_exit_2(caldp: Caldp, out: Store, typed: str) -> None:
    done = caldp(*typed.split())
    assert done.exit_code == 2
    assert "Usage:" in done.stderr


def test_the_help_tells_the_exit_statuses_and_the_limit(caldp: Caldp) -> None:
    text = " ".join(caldp("status", "--help").stdout.split())
    assert "3 some are still open" in text
    assert f"default: {batch.LIMIT};" in text or f"[default: {batch.LIMIT}" in text
    assert "default: 300" in text


def test_a_repair_tells_what_it_does(caldp: Caldp, out: Store, tmp_path: Path) -> None:
    folder = tmp_path / "OUT" / "messages"
    assert caldp("messages", "repair", "OUT").stdout == "9 datasets: all messages are right\n"
    (folder / "datasets-processed" / names(6)[5]).unlink()
    (folder / "dataset-synced" / names(7)[6]).unlink()
    (folder / "dataset-processing" / names(6)[5]).touch()
    (folder / "datasets-processed" / "ldfd09999").touch()
    before = sorted(folder.rglob("*"))
    dry = caldp("messages", "repair", "OUT", "--dry-run")
    assert sorted(folder.rglob("*")) == before
    assert dry.stdout.endswith("10 datasets: 2 created, 1 removed, 1 unrecorded (dry run: nothing was changed)\n")
    done = caldp("messages", "repair", "OUT")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "created  messages/datasets-processed/ldfd00005",
        "removed  messages/dataset-processing/ldfd00005  (it is processed)",
        "created  messages/dataset-synced/ldfd00006",
        "unrecorded  messages/datasets-processed/ldfd09999  (no status record)",
        "10 datasets: 2 created, 1 removed, 1 unrecorded",
    ]
    assert (folder / "dataset-synced" / names(7)[6]).read_text() == "/archive/ldfd00006.fits\n"
    (folder / "status" / f"{NAME}.json").write_text("{")
    again = caldp("messages", "repair", "OUT", "--json")
    record = json.loads(again.stdout)
    assert (again.exit_code, record["exit_status"]) == (1, 1)
    assert record["counts"] == {"created": 0, "removed": 0, "unrecorded": 1, "unsaved": 0, "damaged": 1}
    assert caldp("messages", "repair", "OUT", names(6)[5]).stdout == "1 datasets: all messages are right\n"


def test_in_a_process_of_its_own(out: Store, tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(SCRIPTS / "caldp"), *args], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    done = run("status", "OUT")
    assert (done.returncode, done.stderr) == (3, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert json.loads(run("status", "OUT", NAME, "--json").stdout)["state"] == "error"
    assert run("messages", "repair", "OUT").returncode == 0


@pytest.mark.parametrize("command", [["status"], ["messages", "repair"], ["archived"]])
def test_ctrl_c_while_the_server_is_silent(tmp_path: Path, command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen(
            [str(SCRIPTS / "caldp"), *command, "s3://bucket/batch", NAME],
            env=s3_environment(endpoint),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        asked, _ = server.accept()
        with asked:
            asked.recv(100)
            process.send_signal(signal.SIGINT)
            told, complained = process.communicate(timeout=30)
    assert (process.returncode, told, complained) == (130, "", "caldp: stopped by Ctrl-C\n")


def test_a_token_with_a_line_break_is_not_shown(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        aws = {**s3_environment(f"http://127.0.0.1:{server.getsockname()[1]}"), "AWS_SESSION_TOKEN": "hidden\r"}
        command = [str(SCRIPTS / "caldp"), "status", "s3://bucket/batch", NAME]
        done = subprocess.run(command, env=aws, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (26, "", 1)
    assert "a line break" in done.stderr
    assert "hidden" not in done.stderr


def test_a_directory_that_may_not_be_read(caldp: Caldp, out: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: LocalStore, prefix: str) -> list[str]:
        raise PermissionError(13, "Permission denied", f"/somewhere/{prefix}")

    monkeypatch.setattr(LocalStore, "names", denied)
    for command in (["status"], ["messages", "repair"]):
        done = caldp(*command, "OUT")
        assert (done.exit_code, done.stdout) == (29, "")
        assert "not allowed to use /somewhere/messages" in done.stderr


def test_a_terminal_gets_colours(out: Store, tmp_path: Path) -> None:
    master, slave = os.openpty()
    try:
        done = subprocess.Popen([str(SCRIPTS / "caldp"), "status", "OUT"], cwd=tmp_path, stdout=slave, stderr=slave)
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError:  # the end
            pass
        assert done.wait(timeout=60) == 3
    finally:
        os.close(master)
    assert b"\x1b[31m  error " in shown
    assert b"\x1b[32m  processed " in shown


# ---- on S3


@everywhere
def test_the_same_on_s3(caldp: Caldp, s3_place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, s3_place.environment())
    store = fill(S3Store(s3_place.outputs))
    found = json.loads(caldp("status", s3_place.outputs, "--json").stdout)
    assert found["counts"] == {**dict.fromkeys(STATES, 1), "error": 2}
    assert (found["batch"], found["stale"], found["exit_status"]) == (s3_place.outputs, [], 3)
    assert [(cause["reason"], cause["datasets"]) for cause in found["errors"]] == [("no <dataset>_raw*.fits in IN", 2)]
    patient = caldp("status", s3_place.outputs, "--owner-timeout", "0.001", "--json")
    assert [run["dataset"] for run in json.loads(patient.stdout)["stale"]] in ([names(3)[2]], [])  # clocks of 1 s
    done = caldp("status", s3_place.outputs, NAME)
    assert done.exit_code == 1
    assert f"location   {s3_place.outputs}/data/cos/{NAME}" in done.stdout
    store.delete(f"messages/datasets-processed/{names(6)[5]}", f"messages/dataset-archived/{names(8)[7]}")
    store.put(f"messages/dataset-processing/{names(6)[5]}", b"", Overwrite())
    store.put(f"messages/dataset-error/{names(6)[5]}", b"", Overwrite())
    done = caldp("messages", "repair", s3_place.outputs)
    assert done.stdout.endswith("9 datasets: 2 created, 2 removed\n")
    assert store.names("messages/datasets-processed") == [names(6)[5]]
    body = store.get(f"messages/dataset-archived/{names(8)[7]}")
    assert body is not None and body.data == f"/archive/{names(8)[7]}.fits\n".encode()
    assert caldp("messages", "repair", s3_place.outputs, NAME, names(6)[5]).stdout.startswith("2 datasets: all")


@pytest.mark.parametrize("s3_place", [pytest.param("moto", marks=pytest.mark.slow), "ministack"], indirect=True)
def test_more_than_a_thousand_datasets(caldp: Caldp, s3_place: S3Place) -> None:
    everything = dict(item for name in names(MANY) for item in objects(Status(name, 1, "processed", "run")))
    lost, old = names(MANY)[7], names(MANY)[1100]
    del everything[f"messages/datasets-processed/{lost}"]
    everything[f"messages/dataset-processing/{old}"] = b""
    assert s3_place.endpoint is not None
    put_many(s3_place.endpoint, s3_place.outputs.removeprefix("s3://"), everything)
    with FaultyProxy(s3_place.endpoint) as proxy:
        there = s3_place.behind(proxy.endpoint)
        done = caldp("status", s3_place.outputs, "--json", place=there)
        assert (done.exit_code, json.loads(done.stdout)["counts"]["processed"]) == (0, MANY)
        # What is there; 2 pages of names and 2 of status records, and the other folder; the two that are in doubt.
        assert kinds(proxy) == {"LIST": 6, "GET": 2}
        proxy.clear()
        done = caldp("messages", "repair", s3_place.outputs, place=there)
        assert done.stdout.splitlines() == [
            f"created  messages/datasets-processed/{lost}",
            f"removed  messages/dataset-processing/{old}  (it is processed)",
            f"{MANY:,} datasets: 1 created, 1 removed",
        ]
        found = kinds(proxy)
        assert (found["LIST"], found["PUT"], found["DELETE"] + found["POST"]) == (6, 1, 1)
        # Each status once; of the two the messages too, and the status once more before and after a change.
        assert found["GET"] == MANY + 2 * (len(FOLDERS) + 2)
        proxy.clear()
        assert caldp("status", s3_place.outputs, place=there).exit_code == 0
        assert kinds(proxy) == {"LIST": 5}


@emulated("ministack")
def test_a_server_that_fails_now_and_then_changes_nothing(
    caldp: Caldp, s3_place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3_place.endpoint is not None
    use(monkeypatch, s3_place.environment())
    store = fill(S3Store(s3_place.outputs))
    store.delete(f"messages/datasets-processed/{names(6)[5]}")
    with FaultyProxy(s3_place.endpoint, failure_rate=0.1) as proxy:
        there = s3_place.behind(proxy.endpoint)
        found = json.loads(caldp("status", s3_place.outputs, "--json", place=there).stdout)
        assert found["counts"] == {**dict.fromkeys(STATES, 1), "error": 2}
        done = caldp("messages", "repair", s3_place.outputs, place=there)
        # An answer that is lost: it was created, and is found to be there.
        assert done.exit_code == 0
        assert any(request.fault for request in proxy.requests)
    assert store.names("messages/datasets-processed") == [names(6)[5]]


@on_one
@pytest.mark.parametrize("command", [["status"], ["messages", "repair"]])
def test_what_s3_refuses(caldp: Caldp, s3_place: S3Place, command: list[str]) -> None:
    done = caldp(*command, f"s3://{s3_place.bucket}-none/batch", place=s3_place)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (26, "", 1)
    assert "there is no such bucket" in done.stderr
    done = caldp(*command, s3_place.outputs, place=s3_place)
    assert done.exit_code == 2
    assert f"{s3_place.outputs} is no batch" in done.stderr


def test_without_credentials(caldp: Caldp, monkeypatch: pytest.MonkeyPatch) -> None:
    env = s3_environment("http://127.0.0.1:9")
    use(monkeypatch, {k: v for k, v in env.items() if "ACCESS_KEY" not in k})
    done = caldp("status", "s3://bucket/batch")
    assert done.exit_code == 26
    assert "there are no AWS credentials" in done.stderr


@on_one
def test_a_repair_that_may_not_write(caldp: Caldp, s3_place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, s3_place.environment())
    store = fill(open_store(s3_place.outputs))
    store.delete(f"messages/datasets-processed/{names(6)[5]}")

    def denied(self: S3Store, *args: Any) -> str:
        raise S3UploadRefusedError("s3://x: access denied", remedy="you need s3:PutObject there")

    monkeypatch.setattr(S3Store, "put", denied)
    assert caldp("messages", "repair", s3_place.outputs, "--dry-run").exit_code == 0
    done = caldp("messages", "repair", s3_place.outputs)
    assert (done.exit_code, done.stderr) == (
        25,
        "caldp messages repair: s3://x: access denied; you need s3:PutObject there\n",
    )
