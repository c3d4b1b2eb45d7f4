"""Fixtures of the tests that run a real CRDS server, as a process, and ask it with the stock client, as another one."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from astropy.io import fits

from tests.desk import DATA, SCRIPTS, Shelf, linked_cache, require

#: Users and what they may do.
ROLES = {"ann": "submitter", "bob": "submitter", "olga": "operator"}

#: What the submission notebooks say of a delivery; those of HST have no ``jwst_etc``.
FORM = {
    "deliverer": "testing",
    "file_type": "testing",
    "history_updated": True,
    "pedigree_updated": True,
    "keywords_checked": True,
    "descrip_updated": True,
    "useafter_updated": True,
    "useafter_matches": "N/A",
    "compliance_verified": "N/A",
    "ingest_files": False,
    "etc_delivery": False,
    "calpipe_version": "testing",
    "replacement_files": False,
    "replacing_badfiles": "N/A",
    "modes_affected": "testing",
    "change_level": "SEVERE",
    "correctness_testing": "testing",
    "description": "testing",
}

#: Real references of HST, in shared data.
XTRACTAB, OLD_XTRACTAB = "z2d19237l_1dx.fits", "z1r1943el_1dx.fits"
TWOZXTAB = "z1q2219el_2zx.fits"
IDCTAB = "v8q14451j_idc.fits"

_READY = re.compile(r"CRDS at (http://localhost:(\d+))/")


def caldp_crds(*argv: str) -> str:
    """Run ``caldp crds`` and return what it prints."""
    done = subprocess.run([SCRIPTS / "caldp", "crds", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Place:
    """A filled CRDS; not to be changed.

    Attributes
    ----------
    root : Path
        Of its store.
    tokens : dict
        {user: token}.
    """

    root: Path
    tokens: Mapping[str, str]


@pytest.fixture(scope="session")
def crds_place(shelf: Shelf, shared_data: Path) -> Place:
    """A CRDS with real rules of both observatories, the real catalogue of HST, and three users."""
    home = shelf.home / "crds-place"
    with shelf.once("crds-place") as folder:
        if folder is not None:
            fill_place(folder, shared_data)
    return Place(home / "store", json.loads((home / "tokens.json").read_text()))


def fill_place(folder: Path, data: Path) -> None:
    """Fill a CRDS in a folder: its store is ``store``, tokens are in ``tokens.json``."""
    store = f"file:{folder / 'store'}"
    catalogue = data / "crds-catalog" / "server_config.gz"
    caldp_crds("init", "--store", store, "--from", str(data / "crds-contexts"), "--catalogue", str(catalogue))
    jwst = linked_cache(data / "crds-contexts-jwst", folder / "jwst")
    references = jwst / "references" / "jwst"
    references.mkdir(parents=True)
    make = [sys.executable, str(data / "crds-contexts-jwst" / "make_reference.py"), "."]
    subprocess.run(make, cwd=references, check=True, capture_output=True)
    make_miri_dark(references / "jwst_miri_dark_0057.fits")
    caldp_crds("init", "--observatory", "jwst", "--store", store, "--from", str(jwst))
    tokens = {name: caldp_crds("user", "add", name, "--role", role, "--store", store) for name, role in ROLES.items()}
    (folder / "tokens.json").write_text(json.dumps({name: token.strip() for name, token in tokens.items()}))


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@dataclass
class CrdsServer:
    """A CRDS that is served by a process of its own.

    Attributes
    ----------
    root : Path
        Of its store.
    tokens : dict
        {user: token}.
    url : str
        ``http://localhost:<port>``, as long as it is served.
    """

    root: Path
    tokens: Mapping[str, str]
    log_file: Path
    url: str = ""
    port: int = 0
    process: psutil.Popen | None = None
    _told: int = field(default=0, repr=False)

    @property
    def store(self) -> str:
        """The address of its store."""
        return f"file:{self.root}"

    @property
    def hst(self) -> str:
        """CRDS_SERVER_URL of HST."""
        return f"{self.url}/hst"

    @property
    def jwst(self) -> str:
        """CRDS_SERVER_URL of JWST."""
        return f"{self.url}/jwst"

    def start(self, *options: str) -> CrdsServer:
        """Serve, with options of ``caldp crds serve``; at the same address as before, if there was one."""
        assert self.process is None, "it is served already"
        self._told = self.log_file.stat().st_size if self.log_file.exists() else 0
        argv = [SCRIPTS / "caldp", "crds", "serve", "--store", self.store, "--port", str(self.port), *options]
        with self.log_file.open("ab") as log:
            self.process = psutil.Popen([str(word) for word in argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while (ready := _READY.search(self.log()[self._told :])) is None:
            assert self.process.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.02)
        self.url, self.port = ready[1], int(ready[2])
        while not _answers(self.port):
            assert self.process.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except psutil.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """Kill it, and whatever works for it, as if the machine were switched off."""
        if self.process:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [self.process, *self.process.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
            self.process.wait(20)
        self.process = None

    def workers(self) -> list[psutil.Process]:
        """Return the processes of its jobs."""
        assert self.process is not None
        found = []
        for one in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none either
                if "caldp.crdserver.job" in one.cmdline():
                    found.append(one)
        return found

    def log(self) -> str:
        """Return what it has said since it was made."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def operate(self, *argv: str) -> str:
        """Run a command of ``caldp crds`` on its store, and return what it prints."""
        return caldp_crds(*argv, "--store", self.store)


@pytest.fixture
def make_crds(crds_place: Place, tmp_path: Path) -> Iterator[Callable[..., CrdsServer]]:
    """Return a function that makes a CRDS of one's own and serves it, with options of ``caldp crds serve``."""
    made: list[CrdsServer] = []

    def make(*options: str) -> CrdsServer:
        root = tmp_path / f"crds-{len(made)}"
        shutil.copytree(crds_place.root, root)
        made.append(CrdsServer(root, crds_place.tokens, tmp_path / f"server-{len(made)}.log"))
        return made[-1].start(*options)

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def crds_server(make_crds: Callable[..., CrdsServer]) -> CrdsServer:
    """A CRDS of one's own, served by a process."""
    return make_crds()


# --- stock clients -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a command of the stock client came to.

    Attributes
    ----------
    code : int
        Its exit status.
    output : str
        All that it has written.
    stdout : str
        What it has written to standard output.
    seconds : float
        How long it took.
    """

    code: int
    output: str
    stdout: str
    seconds: float

    def json(self) -> Any:
        """Return the last line of standard output as JSON."""
        return json.loads(self.stdout.strip().splitlines()[-1])


@dataclass(frozen=True)
class Client:
    """A person with a stock client, a folder and an empty CRDS cache.

    Attributes
    ----------
    home : Path
        Where commands run.
    env : dict
        Their environment.
    """

    home: Path
    env: Mapping[str, str]

    @property
    def cache(self) -> Path:
        """The CRDS cache."""
        return Path(self.env["CRDS_PATH"])

    def start(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start Python with these arguments."""
        argv = [sys.executable, *words]
        pipe = subprocess.PIPE
        given = {**self.env, **(env or {})}
        return subprocess.Popen(argv, cwd=self.home, env=given, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 300) -> Answer:
        """Run Python with these arguments to its end."""
        began = time.perf_counter()
        with self.start(*words, env=env) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return Answer(process.returncode, stdout + stderr, stdout, time.perf_counter() - began)

    def __call__(self, *argv: str, env: Mapping[str, str] | None = None) -> Answer:
        """Run a command as people type it: ``stock("list", "--status")`` is ``crds list --status``."""
        return self.run(str(SCRIPTS / "crds"), *argv, env=env)

    def script(self, text: str, *argv: str, env: Mapping[str, str] | None = None) -> Answer:
        """Run lines of Python."""
        path = self.home / "script.py"
        path.write_text(text)
        return self.run(str(path), *argv, env=env)


def make_client(home: Path, server_url: str, environment: Mapping[str, str], **more: str) -> Client:
    """Return a person with a stock client.

    Parameters
    ----------
    home : Path
        A folder; made if need be.
    server_url : str
        With the path of the observatory.
    environment : mapping
        Of the fixture of that name.
    **more : str
        Other variables.
    """
    home.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in environment.items() if not k.startswith("CRDS_")}
    env |= {"CRDS_SERVER_URL": server_url, "CRDS_PATH": str(home / "cache"), "HOME": str(home)}
    # The rules of fitsverify and of plots have no say here, and warnings of crds' own dependencies are its own affair.
    return Client(home, {**env, "PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg", **more})


@pytest.fixture
def stock(crds_server: CrdsServer, environment: dict[str, str], tmp_path: Path) -> Client:
    """The stock client of HST: ``stock("bestrefs", "--files", ...)`` runs ``crds bestrefs --files ...``."""
    return make_client(tmp_path / "client", crds_server.hst, environment)


@pytest.fixture
def stock_jwst(crds_server: CrdsServer, environment: dict[str, str], tmp_path: Path) -> Client:
    """The stock client of JWST."""
    return make_client(tmp_path / "client-jwst", crds_server.jwst, environment)


def setup_line() -> str:
    """Return the line with which a stock client finds the form."""
    return caldp_crds("client-setup").strip()


def signed_in(server: CrdsServer, user: str) -> dict[str, str]:
    """Return the variables with which a stock client signs in."""
    return {"CRDS_USERNAME": user, "MAST_API_TOKEN": server.tokens[user]}


# --- people without a client -------------------------------------------------------------------------------------


class Person:
    """Somebody who talks HTTP, and need not keep to what the stock client does.

    Parameters
    ----------
    url : str
        With the path of the observatory.
    user, token : str
        Who.
    """

    def __init__(self, url: str, user: str, token: str) -> None:
        import requests

        self.url, self.user, self.token = url, user, token
        self.session = requests.Session()
        self.session.trust_env = False

    def get(self, path: str, **more: Any) -> Any:
        """GET a path."""
        return self.session.get(f"{self.url}{path}", timeout=60, **more)

    def csrf(self) -> str:
        """Return what forms must hold."""
        self.get("/upload/chunked/")
        return next((c.value for c in self.session.cookies if c.name == "csrftoken"), "") or ""

    def post(self, path: str, form: Mapping[str, Any] | None = None, **more: Any) -> Any:
        """POST a form of our pages."""
        data = {"csrfmiddlewaretoken": self.csrf(), **(form or {})}
        return self.session.post(f"{self.url}{path}", data=data, timeout=120, **more)

    def sign_in(self, instrument: str = "none", token: str | None = None) -> Any:
        """Sign in."""
        given = {"username": self.user, "password": self.token if token is None else token, "instrument": instrument}
        return self.post("/login/", {**given, "next": "/"})

    def upload(self, name: str, content: bytes, content_range: str = "") -> Any:
        """Send a file, or a part of one."""
        headers = {"Content-Range": content_range} if content_range else {}
        return self.post("/upload/chunked/", files={"files": (name, content)}, headers=headers)

    def uploaded(self) -> dict[str, int]:
        """Return {name: bytes} of what was sent."""
        return {one["name"]: one["size"] for one in self.get("/upload/list/").json()["files"]}

    def submit(self, instrument: str, kind: str = "/batch_submit_references/", **form: str) -> str:
        """Submit what was sent; return what the server says to that."""
        self.channel = self.get("/jpoll/open_channel").json()
        said = {k: str(v) for k, v in FORM.items()} if "redcat" in kind else {"change_level": "SEVERE"}
        said |= {"pmap_mode": "pmap_edit", "instrument": instrument, "description": "testing", "creator": "tests"}
        return str(self.post(kind, {**said, **form}).text)

    def begun(self, instrument: str, kind: str = "/batch_submit_references/", **form: str) -> str:
        """Submit what was sent; return the id of the submission."""
        reply = self.submit(instrument, kind, **form)
        match = re.search(r"submission (\S+) has begun", reply)
        assert match, reply
        return match[1]

    def call(self, method: str, *params: Any) -> Any:
        """Call a method; return the reply."""
        call = {"jsonrpc": "1.0", "id": "1", "method": method, "params": list(params)}
        return self.session.post(f"{self.url}/json/", data=json.dumps(call), timeout=60).json()

    def ended(self, timeout: float = 120) -> dict[str, Any]:
        """Wait for the last message of the submission, and return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for message in self.call("jpoll_pull_messages", self.channel, "0")["result"] or []:
                if message["type"] in ("done", "fail", "cancel"):
                    return dict(message)
            time.sleep(0.2)
        raise AssertionError(f"the submission of {self.user} does not end")

    def button(self, submission: str, button: str, **more: str) -> Any:
        """Confirm or cancel."""
        return self.post("/submit_confirm_pipeline/", {"results_id": submission, "button": button, **more})


@pytest.fixture
def person(crds_server: CrdsServer) -> Callable[..., Person]:
    """Return a function that makes somebody who talks HTTP: ``person("ann")``."""

    def make(user: str, observatory: str = "hst", server: CrdsServer | None = None) -> Person:
        at = server or crds_server
        return Person(f"{at.url}/{observatory}", user, at.tokens.get(user, ""))

    return make


def error_of(reply: Any) -> str:
    """Return what a page says has gone wrong; empty if nothing has."""
    match = re.search(r'<div id="error_message"[^>]*>(.*?)</div>', reply.text, re.DOTALL)
    return match[1].strip() if match else ""


def text_of(page: str) -> str:
    """Return what a person reads on a page."""
    from bs4 import BeautifulSoup

    return str(BeautifulSoup(page, "html.parser").get_text())


# --- what is delivered -------------------------------------------------------------------------------------------


def make_reference(target: Path, name: str = XTRACTAB, **keywords: str) -> Path:
    """Write a reference of HST that differs from a real one: another date, and whatever else is said.

    Parameters
    ----------
    target : Path
        The file.
    name : str
        A reference in shared data.
    **keywords : str
        Of the primary header, such as ``USEAFTER="Jan 01 2018 00:00:00"``.
    """
    source = DATA / "crds-contexts" / "references" / "hst" / name
    require(source.is_file(), f"no {source}")
    shutil.copyfile(source, target)
    with fits.open(target, mode="update") as hdus:
        hdus[0].header.update({"DESCRIP": "a copy that tests deliver", **keywords})
        hdus[0].header.add_history(f"Made by tests for {target.name}.")
    return target


def make_large(target: Path, size: int = 5_000_000, **keywords: str) -> Path:
    """Write a reference of HST of many bytes: its table is followed by an image that nobody reads."""
    make_reference(target, **keywords)
    pixels = np.random.default_rng(7).integers(0, 255, max(1, size - target.stat().st_size), dtype=np.uint8)
    with fits.open(target, mode="append") as hdus:
        hdus.append(fits.ImageHDU(pixels.reshape(1, -1), name="PADDING"))
    return target


def make_miri_dark(target: Path) -> Path:
    """Write a stand-in for a MIRI dark: constant, small, with the keywords that rules and certify ask for."""
    primary = fits.PrimaryHDU()
    given = {
        "FILENAME": target.name,
        "TELESCOP": "JWST",
        "INSTRUME": "MIRI",
        "DETECTOR": "MIRIFULONG",
        "READPATT": "SLOW",
        "SUBARRAY": "FULL",
        "REFTYPE": "DARK",
        "EXP_TYPE": "MIR_MRS",
        "AUTHOR": "stand-in",
        "PEDIGREE": "DUMMY",
        "DESCRIP": "STAND-IN, not STScI data",
        "USEAFTER": "2015-08-01T00:00:00",
        "DATAMODL": "DarkMIRIModel",
        "BUNIT": "DN",
        "NGROUPS": 2,
        "NFRAMES": 1,
        "GROUPGAP": 0,
        "SUBSTRT1": 1,
        "SUBSTRT2": 1,
        "SUBSIZE1": 1032,
        "SUBSIZE2": 1024,
        "FASTAXIS": 1,
        "SLOWAXIS": 2,
    }
    primary.header.update(given)
    primary.header.add_history("Made for tests; carries no calibration.")
    shape = (1, 2, 1024, 1032)
    names = {"SCI": "f4", "ERR": "f4"}
    hdus = [primary, *(fits.ImageHDU(np.zeros(shape, kind), name=name) for name, kind in names.items())]
    hdus.append(fits.ImageHDU(np.zeros((1, 1, 1024, 1032), "u1"), name="DQ"))
    columns = [("BIT", "i4"), ("VALUE", "i4"), ("NAME", "S40"), ("DESCRIPTION", "S80")]
    hdus.append(fits.BinTableHDU(np.zeros(0, dtype=columns), name="DQ_DEF"))
    fits.HDUList(hdus).writeto(target)
    return target
