"""References from a CRDS cache on S3: what it costs, what goes wrong on the way and there, and the client of crds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from caldp import crds_cache, crds_layout, crds_pointer, crds_sync, references
from caldp.crds_choice import Choice
from caldp.errors import ReferencesError, ReferencesUnavailableError, S3DownloadRefusedError
from caldp.inputs import Inputs, fetch
from caldp.run import Run
from caldp.s3_store import S3Store
from caldp.simulate import Simulation
from tests.conftest import RunFactory
from tests.desk import CONTEXT as REAL_CONTEXT
from tests.desk import SCRIPTS, Result, shim, unpacked
from tests.fakes.bestrefs import FakeBestrefs
from tests.fakes.proxy import FaultyProxy, Request
from tests.s3 import S3Place, emulated, s3_client, s3_places

CONTEXT = "hst_0001.pmap"
FLUX = "sim00001l_phot.fits"
LISTING = crds_layout.listing_key(CONTEXT)
RULES = [crds_layout.POINTER, crds_layout.rules_key(CONTEXT), LISTING]

#: Of the real acquisition image.
ACQ = "ldfd01vlq"
CHOSEN = {"BPIXTAB": "uas19356l_bpix.fits", "DEADTAB": "s7g1700ql_dead.fits", "FLATFILE": "x5v1944hl_flat.fits"}

EMULATORS = ("moto", "ministack")
on_emulators = emulated()
on_one = pytest.mark.parametrize("s3_place", ["ministack"], indirect=True)
anywhere = pytest.mark.parametrize("s3_place", s3_places(), indirect=True)


def aws(place: S3Place) -> dict[str, str]:
    return {k: v for k, v in place.environment().items() if k.startswith("AWS_")}


def store(place: S3Place) -> S3Store:
    return S3Store(place.outputs, aws(place))


def put(place: S3Place, cache: Path, choice: Choice = Choice(), context: str = CONTEXT) -> crds_sync.Synced:  # noqa: B008 - it is frozen
    return crds_sync.sync(store(place), cache, context, choice)


@pytest.fixture
def proxy(s3_place: S3Place) -> Iterator[FaultyProxy]:
    """A proxy in front of the emulator."""
    assert s3_place.endpoint is not None
    with FaultyProxy(s3_place.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def raw(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shortened simulated exposure."""
    folder = tmp_path_factory.mktemp("raw")
    source = simulation.inputs / f"{simulation.dataset}_rawtag_a.fits"
    with fits.open(source) as hdus:
        hdus[1].data = hdus[1].data[:10]
        hdus.writeto(folder / source.name)
    return folder


@pytest.fixture(scope="session")
def chosen(simulation: Simulation, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeBestrefs:
    """What crds chooses for the exposure."""
    (path,) = raw.iterdir()
    return FakeBestrefs.asking(path, simulation.crds_path, CONTEXT, tmp_path_factory.mktemp("chosen"))


@pytest.fixture
def start(
    make_run: RunFactory,
    simulation: Simulation,
    raw: Path,
    tmp_path: Path,
    chosen: FakeBestrefs,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Run, Inputs]]:
    """Fetch the exposure into a run whose references come from S3 into a new cache."""
    monkeypatch.setattr(crds_cache, "best_references", chosen)

    def start(place: S3Place, **settings: object) -> tuple[Run, Inputs]:
        env = {"CRDSBUCKET": place.outputs, "CRDS_PATH": str(tmp_path / "host"), **aws(place)}
        run = make_run(simulation.dataset, settings={"crds_readonly": False, **settings}, **env)
        return run, fetch(run, f"file:{raw}")

    return start


def objects(requests: list[Request], place: S3Place) -> list[str]:
    """Name the objects that were asked for."""
    return [request.path.removeprefix(f"/{place.bucket}/{place.prefix}/") for request in requests]


def change(place: S3Place, key: str, data: bytes | None) -> None:
    """Replace an object, or delete it, as somebody without manners would."""
    with s3_client(place.endpoint) as client:
        where = {"Bucket": place.bucket, "Key": f"{place.prefix}/{key}"}
        if data is None:
            client.delete_object(**where)
        else:
            client.put_object(**where, Body=data)


def content(place: S3Place, key: str) -> bytes:
    blob = store(place).get(key)
    assert blob is not None
    return blob.data


# ---- reading


@on_emulators
def test_a_context_opens_cold_in_three_requests_and_warm_in_one(
    s3_place: S3Place, proxy: FaultyProxy, start: Callable[..., Any], simulation: Simulation
) -> None:
    put(s3_place, simulation.crds_path)
    behind = s3_place.behind(proxy.endpoint)
    run, inputs = start(behind)
    answer = references.assign(run, inputs)
    asked = objects(proxy.requests, s3_place)
    assert asked[:3] == RULES
    names = {f.name for f in answer.files}
    assert {key.removeprefix("references/hst/") for key in asked[3:]} == names
    assert len(asked) <= 3 + 2 * len(names)
    for file in answer.files:
        assert Path(file.path).read_bytes() == (simulation.crds_path / "references" / "hst" / file.name).read_bytes()
    proxy.clear()
    assert references.assign(*start(behind)).files == answer.files
    assert objects(proxy.requests, s3_place) == [crds_layout.POINTER]


@anywhere
@pytest.mark.parametrize("way", ["missing", "truncated", "altered"])
def test_a_reference_on_s3_that_is_not_what_it_should_be(
    s3_place: S3Place, start: Callable[..., Any], simulation: Simulation, tmp_path: Path, way: str
) -> None:
    put(s3_place, simulation.crds_path)
    key = f"references/hst/{FLUX}"
    data = content(s3_place, key)
    bad = {"missing": None, "truncated": data[:-2880], "altered": data[:-1] + bytes([data[-1] ^ 1])}[way]
    change(s3_place, key, bad)
    run, inputs = start(s3_place)
    with pytest.raises(ReferencesError) as caught:
        references.assign(run, inputs)
    assert (caught.value.exit_code, caught.value.retriable) == (27, False)
    words = [run.dataset.name, "FLUXTAB", f"{s3_place.outputs}/{key}"]
    for word in words if bad is None else [*words, f"{len(bad)} bytes", f"{len(data)} bytes"]:
        assert word in str(caught.value)
    cached = {path.name for path in (tmp_path / "host" / "references" / "hst").iterdir()}
    assert FLUX not in cached
    change(s3_place, key, data)
    references.assign(*start(s3_place))


@on_emulators
@pytest.mark.usefixtures("no_waiting")
def test_what_is_altered_or_cut_on_its_way_is_asked_for_again(
    s3_place: S3Place, proxy: FaultyProxy, start: Callable[..., Any], simulation: Simulation
) -> None:
    put(s3_place, simulation.crds_path)
    for name in (*RULES, FLUX, "sim00001l_disp.fits"):
        proxy.corrupt_next("GET", name)
    proxy.failure_rate = 0.2
    answer = references.assign(*start(s3_place.behind(proxy.endpoint)))
    for file in answer.files:
        assert Path(file.path).read_bytes() == (simulation.crds_path / "references" / "hst" / file.name).read_bytes()


@on_one
@pytest.mark.usefixtures("no_waiting")
def test_s3_that_does_not_answer_and_a_bucket_that_is_not_there(
    s3_place: S3Place, proxy: FaultyProxy, start: Callable[..., Any], simulation: Simulation
) -> None:
    put(s3_place, simulation.crds_path)
    behind = s3_place.behind(proxy.endpoint)
    proxy.failure_rate = 1.0
    run, inputs = start(behind)
    with pytest.raises(ReferencesUnavailableError, match=run.dataset.name) as caught:
        references.assign(run, inputs)
    assert (caught.value.exit_code, caught.value.retriable) == (27, True)
    proxy.failure_rate = 0.0
    run, inputs = start(S3Place("", behind.endpoint, "", "s3://there-is-no-such-bucket/x"))
    with pytest.raises(S3DownloadRefusedError, match="no such bucket"):
        references.assign(run, inputs)


# ---- as a user types it


@dataclass(frozen=True)
class Host:
    """A machine that calibrates, as far as its references: the program itself fails."""

    home: Path
    env: Mapping[str, str]
    dataset: str

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def start(self, output: str, *options: str, **env: str) -> subprocess.Popen[str]:
        """Start caldp-process."""
        argv = [str(SCRIPTS / "caldp-process"), self.dataset, "file:IN", f"file:{output}", "caldp-config-aws", *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=self.home, env={**self.env, **env}, stdout=pipe, stderr=pipe, text=True)

    def run(self, output: str, *options: str, **env: str) -> Result:
        """Run caldp-process to its end."""
        process = self.start(output, *options, **env)
        stdout, stderr = process.communicate(timeout=120)
        return Result(process.returncode, stdout, stderr)

    def caldp(self, *args: str, **env: str) -> Result:
        """Run caldp to its end."""
        argv = [str(SCRIPTS / "caldp"), *args]
        done = subprocess.run(argv, cwd=self.home, env={**self.env, **env}, capture_output=True, text=True)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def given(self, output: str) -> dict[str, str]:
        """Return sha1 and name of the references that the program was given."""
        log = self.home / output / "data" / "cos" / self.dataset / "logs" / "process.txt"
        lines = [line.partition("calcos: given ")[2].split() for line in log.read_text().splitlines()]
        return {Path(words[1]).name: words[0] for words in lines if words}


@pytest.fixture
def machine(
    s3_place: S3Place,
    proxy: FaultyProxy,
    environment: dict[str, str],
    simulation: Simulation,
    raw: Path,
    tmp_path: Path,
) -> Host:
    """A machine whose way to S3 is the proxy."""
    shutil.copytree(raw, tmp_path / "IN")
    say = 'for file in "$lref"*; do echo "given $(sha1sum "$file")"; done; exit 9'
    env = {
        **s3_place.behind(proxy.endpoint).environment(environment),
        "CRDSBUCKET": s3_place.outputs,
        "CRDS_PATH": str(tmp_path / "cache"),
        "CRDS_CONTEXT": "",
    }
    env["PATH"] = f"{shim(tmp_path / 'bin', 'calcos', say)}{os.pathsep}{env['PATH']}"
    return Host(tmp_path, env, simulation.dataset)


@on_emulators
def test_two_jobs_share_a_cache_and_a_flipped_byte_is_noticed(
    s3_place: S3Place, proxy: FaultyProxy, machine: Host, simulation: Simulation
) -> None:
    put(s3_place, simulation.crds_path)
    wanted = {
        p.name: crds_cache.sha1(p) for p in (simulation.crds_path / "references" / "hst").iterdir() if p.is_file()
    }
    stranger = machine.cache / "references" / "hst" / "stranger.fits"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"x" * 10_000)
    proxy.delay = 0.1
    jobs = [machine.start(f"OUT{number}", CALDP_CRDS_CACHE_GB="0.000001") for number in range(2)]
    said = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [23, 23], said  # both came as far as calcos
    gets = [r.path.rpartition("/")[2] for r in proxy.requests if r.method == "GET" and "/references/hst/" in r.path]
    assert len(gets) == len(set(gets)) > 10
    for number in range(2):
        given = machine.given(f"OUT{number}")
        assert given == {name: wanted[name] for name in given}
        assert set(given) == set(gets)
    assert not stranger.exists()

    proxy.delay = 0.0
    machine.run("OUT2")  # what the smallest of caches has lost
    flipped = machine.cache / "references" / "hst" / FLUX
    data = bytearray(flipped.read_bytes())
    data[-3000] ^= 1
    flipped.write_bytes(data)
    proxy.clear()
    assert machine.run("OUT3").code == 23
    assert objects(proxy.requests, s3_place)[:2] == [crds_layout.POINTER, LISTING]
    assert set(objects(proxy.requests, s3_place)[2:]) == {f"references/hst/{FLUX}"}
    assert machine.given("OUT3") == machine.given("OUT2")
    log = (machine.home / "OUT3" / "data" / "cos" / machine.dataset / "logs" / "process.txt").read_text()
    assert log.index(f"{FLUX} is damaged") < log.index("calcos: given")


@on_one
def test_looking_takes_no_reference(
    s3_place: S3Place, proxy: FaultyProxy, machine: Host, simulation: Simulation
) -> None:
    put(s3_place, simulation.crds_path)
    shown = machine.caldp("references", "show", machine.dataset, "file:IN", "caldp-config-aws")
    assert shown.code == 0, shown.stderr
    sizes = [p.stat().st_size for p in (simulation.crds_path / "references" / "hst").iterdir()]
    count = shown.stdout.count("not in the cache: would be downloaded\n")
    assert f"{count} would be downloaded, " in shown.stdout.splitlines()[0]
    assert 10 < count <= len(sizes)
    plan = machine.run("OUT", "--dry-run")
    assert plan.code == 0
    assert f"would download {count} references" in plan.stdout
    assert s3_place.outputs in plan.stdout
    assert not [key for key in objects(proxy.requests, s3_place) if key.startswith("references/")]
    assert not (machine.home / "OUT").exists()


# ---- writing


def tree(place: S3Place) -> dict[str, int]:
    return {entry.key: entry.size for entry in store(place).walk("")}


def sync_command(cache: Path, place: S3Place) -> list[str]:
    return ["references", "sync", "--context", CONTEXT, "--from", str(cache), place.outputs]


@pytest.mark.parametrize(
    ("s3_place", "when", "thorough"),
    [
        ("ministack", "before", False),
        *(pytest.param(s3, when, True, marks=pytest.mark.slow) for s3 in EMULATORS for when in ("before", "after")),
    ],
    indirect=["s3_place"],
)
def test_a_sync_that_is_killed_is_completed_by_the_next(
    s3_place: S3Place,
    proxy: FaultyProxy,
    machine: Host,
    start: Callable[..., Any],
    simulation: Simulation,
    when: Any,
    thorough: bool,
) -> None:
    done = machine.caldp(*sync_command(simulation.crds_path, s3_place))
    assert done.code == 0, done.stderr
    writes = sum(request.is_write for request in proxy.requests)
    whole = tree(s3_place)
    sent = sum(key.startswith("references/") for key in whole)
    again = machine.caldp(*sync_command(simulation.crds_path, s3_place))
    assert "; 0 references sent" in again.stdout
    moments = (1, sent // 2, sent + 1, sent + 5, writes - 2, writes - 1, writes) if thorough else (sent // 2, writes)
    for number, moment in enumerate(moments):
        place = S3Place(s3_place.kind, s3_place.endpoint, "", f"{s3_place.outputs}-{number}")
        victims: list[subprocess.Popen[bytes]] = []
        proxy.clear()
        proxy.at_write(moment, lambda victims=victims: victims[0].send_signal(signal.SIGKILL), when)
        argv = [str(SCRIPTS / "caldp"), *sync_command(simulation.crds_path, place)]
        victims.append(subprocess.Popen(argv, cwd=machine.home, env=machine.env, stdout=subprocess.DEVNULL))
        assert victims[0].wait(60) == -signal.SIGKILL
        there = tree(place)
        assert there.items() <= {**whole, LISTING: there.get(LISTING, 0)}.items() | there.items()
        listed = json.loads(content(place, LISTING))["files"] if LISTING in there else {}
        assert {f"references/hst/{name}" for name in listed} <= set(there)
        if crds_layout.POINTER in there:
            references.assign(*start(place))
        done = machine.caldp(*sync_command(simulation.crds_path, place))
        assert done.code == 0, done.stderr
        assert set(tree(place)) == set(whole)
        assert set(json.loads(content(place, LISTING))["files"]) == {
            key.removeprefix("references/hst/") for key in whole if key.startswith("references/")
        }
        assert crds_pointer.current(store(place))["context"] == CONTEXT


@on_emulators
def test_syncs_at_once_lose_nothing(s3_place: S3Place, simulation: Simulation) -> None:
    names = sorted(p.name for p in (simulation.crds_path / "references" / "hst").iterdir())
    parts = [frozenset(names[number::4]) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda part: put(s3_place, simulation.crds_path, Choice(names=part)), parts))
    assert sum(one.sent for one in done) == len(names)
    assert sorted(json.loads(content(s3_place, LISTING))["files"]) == names
    assert crds_pointer.current(store(s3_place))["context"] == CONTEXT
    after = put(s3_place, simulation.crds_path, Choice(everything=True))
    assert (after.sent, after.rules_sent, after.moved) == (0, False, False)
    known = crds_cache.parse_server_config(content(s3_place, crds_layout.SERVER_CONFIG).decode())
    assert set(names) <= set(crds_cache.metadata(known))


@on_one
@pytest.mark.usefixtures("no_waiting")
def test_a_sync_through_a_bad_network(s3_place: S3Place, proxy: FaultyProxy, simulation: Simulation) -> None:
    proxy.failure_rate = 0.2
    done = put(s3_place.behind(proxy.endpoint), simulation.crds_path)
    for place in ("references", "mappings"):
        for path in (simulation.crds_path / place / "hst").iterdir():
            assert content(s3_place, f"{place}/hst/{path.name}") == path.read_bytes()
    assert done.current == CONTEXT


@on_one
def test_where_nobody_may_write(s3_place: S3Place, machine: Host, simulation: Simulation) -> None:
    nowhere = S3Place("", s3_place.endpoint, "", "s3://there-is-no-such-bucket/x")
    done = machine.caldp(*sync_command(simulation.crds_path, nowhere))
    assert (done.code, len(done.stderr.splitlines())) == (26, 1)
    assert "no such bucket" in done.stderr


# ---- the client of crds itself, with the same bucket

ASK = """
import json, sys, crds
from astropy.io import fits
with fits.open(sys.argv[1]) as hdus:
    header = {k: str(v) for hdu in hdus[:2] for k, v in hdu.header.items()}
print(json.dumps(crds.getreferences(header, reftypes=["bpixtab", "deadtab", "flatfile"], observatory="hst")))
"""


@pytest.fixture
def stock(s3_place: S3Place, environment: dict[str, str], cos_data: Path, tmp_path: Path) -> dict[str, str]:
    """Environment of the client of crds by itself, as caldp-config-aws sets it; the bucket has one real exposure's."""
    put(s3_place, cos_data / "crds_cache", Choice(names=frozenset(CHOSEN.values())), REAL_CONTEXT)
    unpacked(cos_data / "inputs" / f"{ACQ}_rawacq.fits.gz", tmp_path / f"{ACQ}_rawacq.fits")
    env = {**s3_place.environment(environment), "CRDSBUCKET": s3_place.outputs, "CRDS_PATH": str(tmp_path / "cache")}
    sourced = subprocess.run(
        ["bash", "-c", "source caldp-config-aws && env -0"], env=env, capture_output=True, check=True, text=True
    )
    return {**dict(item.split("=", 1) for item in sourced.stdout.split("\0") if item), "CRDS_CONTEXT": ""}


def ask(env: Mapping[str, str], folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *argv], cwd=folder, env={**env, "CRDS_CLIENT_RETRY_COUNT": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@on_emulators
def test_the_client_of_crds_finds_rules_and_references(
    s3_place: S3Place, stock: dict[str, str], tmp_path: Path
) -> None:
    env = {**stock, "CRDS_READONLY_CACHE": "1", "CRDS_S3_RETURN_URI": "1"}
    found = json.loads(ask(env, tmp_path, "-c", ASK, f"{ACQ}_rawacq.fits").stdout.splitlines()[-1])
    assert found == {k.lower(): f"{s3_place.outputs}/references/hst/{name}" for k, name in CHOSEN.items()}
    assert {uri.removeprefix(f"{s3_place.outputs}/") for uri in found.values()} <= set(tree(s3_place))
    # Without --new-context: the current one of the store.  With a read-only cache this command asks for a server.
    ask(stock, tmp_path, "-m", "crds.bestrefs", "--update-bestrefs", "--files", f"{ACQ}_rawacq.fits")
    header = fits.getheader(tmp_path / f"{ACQ}_rawacq.fits")
    assert header["CRDS_CTX"] == REAL_CONTEXT
    assert {k: header[k] for k in CHOSEN} == {k: f"lref${name}" for k, name in CHOSEN.items()}


@on_one  # moto knows who may read
def test_the_client_of_crds_fetches_references_by_plain_http(
    s3_place: S3Place, stock: dict[str, str], cos_data: Path, tmp_path: Path
) -> None:
    base = f"{s3_place.endpoint}/{s3_place.bucket}/{s3_place.prefix}"
    places = {"CONFIG": "config", "MAPPING": "mappings", "REFERENCE": "references"}
    uris = {f"CRDS_{kind}_URI": f"{base}/{place}/hst/" for kind, place in places.items()}
    done = ask({**stock, **uris}, tmp_path, "-c", ASK, f"{ACQ}_rawacq.fits")
    found = json.loads(done.stdout.splitlines()[-1])
    assert {k: Path(path).name for k, path in found.items()} == {k.lower(): name for k, name in CHOSEN.items()}
    for path in map(Path, found.values()):
        assert path.is_relative_to(tmp_path / "cache")
        assert path.read_bytes() == (cos_data / "crds_cache" / "references" / "hst" / path.name).read_bytes()
