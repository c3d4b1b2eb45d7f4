"""MAST: find this dataset's files with astroquery, and download them: whole, verified, and never twice.

astroquery asks MAST what there is.  The bytes are fetched here, because its own download neither resumes nor verifies
nor can be stopped, and reports on standard output.  Files are left flat in CALDP_HOME (default: the current directory),
where a later ``file:.`` finds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from caldp import association, s3
from caldp.config import Config
from caldp.dataset import Dataset
from caldp.errors import AstroqueryError, S3DownloadRefusedError, UsageError
from caldp.fitsfile import DamagedError, damage
from caldp.local_store import LocalStore
from caldp.run import Run
from caldp.store import Overwrite, open_store

if TYPE_CHECKING:
    import requests

_Result = TypeVar("_Result")

_CHUNK = 1 << 20
_SOME = 1 << 18
_PARALLEL = 4
_CONNECT = 10.0
"""Seconds to wait for a connection."""

_CLOUD_PATIENCE = 10.0
"""Seconds that astroquery may take to say where the cloud copies are, in mode auto."""

_LONGEST_WAIT = 60.0

_EXPOSURE = re.compile(r"(?P<root>[a-z0-9]{9})_(?P<suffix>[a-z0-9_]+)\.fits")
_VISIT = re.compile(r"[a-z0-9]{9}_fl[ct]\.fits")
_SKYCELL = re.compile(r"hst_[a-z0-9_.+-]+_[a-z0-9]{8}_fl[ct]\.fits")
_MEMBER = re.compile(r"[a-z0-9]{9}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d*/(\d+|\*)")
_BUCKET_KEY = re.compile(r"s3://([^/]+)/(.+)")

#: HTTP statuses below 500 that may be gone the next time: timeout, too early, too many requests.
_PASSING = (408, 425, 429)

#: astropy keeps the list of warning filters for the whole process: only one thread at a time may change it.
_EXAMINING = threading.Lock()


class _PassingError(Exception):
    """What went wrong may go right next time."""


class _CancelledError(Exception):
    """Another download failed, or the run was stopped."""


@dataclass(frozen=True)
class _Settings:
    """What the environment says about MAST."""

    server: str
    token: str = field(repr=False)
    tries: int
    wait: float
    timeout: float
    cloud: str
    endpoint: str

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds for a connection and for each piece of an answer, as ``requests`` wants them."""
        return min(_CONNECT, self.timeout), self.timeout


@dataclass(frozen=True)
class _Product:
    """One file that MAST has; ``size`` is 0 where MAST does not say."""

    name: str
    uri: str
    size: int
    public: bool


@dataclass
class _Answer:
    """A file being read: from which byte on, how many bytes it has in all, and since when (seconds, or 0)."""

    read: Callable[[], bytes]
    stop: Callable[[], None]
    close: Callable[[], None]
    offset: int
    total: int | None
    modified: float


def check(dataset: Dataset, config: Config, place: str) -> None:
    """Look at what the user asks of MAST, before anything is begun.

    Parameters
    ----------
    dataset : Dataset
        What is wanted.
    config : Config
        With the settings.
    place : str
        What follows ``astroquery:``.

    Raises
    ------
    UsageError
        If a setting makes no sense, or a place is given where none is needed.
    """
    settings = _settings(config)
    if dataset.kind == "ipppssoot" and place not in ("", "//"):
        raise UsageError(
            f"{dataset}: 'astroquery:{place}': only a mosaic has a list of exposures",
            remedy="write astroquery: alone; the files go to CALDP_HOME, or the working directory",
        )
    if place.startswith("s3://") and not place.removeprefix("s3://").partition("/")[0]:
        raise UsageError(f"'astroquery:{place}' names no bucket", remedy="write astroquery:s3://bucket/prefix")
    if settings.server:
        _check_token(settings, settings.server)


def download(run: Run, uri: str) -> Path:
    """Download the dataset's files from MAST, unless they are there already.

    Parameters
    ----------
    run : Run
        The run; its recipe names the suffixes.
    uri : str
        ``astroquery:``; for mosaics also ``astroquery:<path>`` or ``astroquery:s3://bucket/prefix``, where the list of
        exposures ``<dataset>_input.out`` is.

    Returns
    -------
    Path
        The folder that holds the files: CALDP_HOME, else the current directory.

    Raises
    ------
    AstroqueryError
        If MAST has no such data, or does not deliver after all tries.
    S3DownloadError
        If the list of exposures cannot be read from S3.
    UsageError
        If a setting makes no sense.

    Notes
    -----
    Which suffixes belong to an instrument, and that the files of mosaics are found by the first six characters of the
    names, is what the HST archive pipeline has always done.
    """
    archive = _Archive(run, _settings(run.config))
    directory = run.config.home
    directory.mkdir(parents=True, exist_ok=True)
    if run.dataset.kind == "ipppssoot":
        _download_exposures(run, archive)
    else:
        poller = _poller(run, uri.partition(":")[2])
        _download_mosaic(run, archive, poller)
    return directory


# --- which files ------------------------------------------------------------------------------------------------


def _download_exposures(run: Run, archive: _Archive) -> None:
    """Download an exposure, or an association with its members."""
    name, visit = run.dataset.name, f"{run.dataset.name[:6]}*"
    table = f"{name}_asn.fits"
    found = archive.products(name)
    if table not in found and _without_raw(run, found, [name]):
        found |= archive.products(visit)  # the files of a member may be listed with its association only
    exposures = [name]
    if table in found:
        archive.fetch_table(found[table])
    if table in found and run.recipe.member_files:
        exposures = _members(run, run.config.home / table)
        if missing := _without_raw(run, found, exposures):
            found = archive.products(*missing) | found
        if _without_raw(run, found, exposures):
            found = archive.products(visit) | found
    if missing := _without_raw(run, found, exposures):
        raise AstroqueryError(
            f"{name}: MAST has no raw files of {', '.join(missing)}",
            remedy="check the name; data that are still proprietary need MAST_API_TOKEN",
        )
    archive.fetch(p for p in found.values() if p.name != table and _belongs(run, p.name, [name, *exposures]))


def _belongs(run: Run, name: str, roots: Iterable[str]) -> bool:
    match = _EXPOSURE.fullmatch(name)
    return match is not None and match["root"] in roots and match["suffix"].upper() in run.recipe.mast_suffixes


def _without_raw(run: Run, found: Mapping[str, _Product], roots: Iterable[str]) -> list[str]:
    """Return the exposures of which neither MAST nor the folder has raw data."""
    here = run.config.home

    def has_raw(root: str) -> bool:
        names = [f"{root}_{suffix}.fits" for suffix in (*run.recipe.raw, *run.recipe.instead)]
        return any(n in found or (here / n).exists() or (here / f"{n}.gz").exists() for n in names)

    return [root for root in roots if not has_raw(root)]


def _members(run: Run, table: Path) -> list[str]:
    """Return the exposures that an association table says were taken."""
    path = table if table.exists() else table.with_name(f"{table.name}.gz")
    try:
        rows = association.read(path)
    except DamagedError as error:
        raise AstroqueryError(
            f"{run.dataset}: {path} is not an association table ({error})", remedy="delete it, and try again"
        ) from error
    taken = [row.member.root for row in rows if row.present and not row.member.is_product]
    return [name for name in taken if _MEMBER.fullmatch(name)]


def _download_mosaic(run: Run, archive: _Archive, poller: Path) -> None:
    """Download the exposures that a poller file lists."""
    pattern = _VISIT if run.dataset.kind == "svm" else _SKYCELL
    rows = [line.split(",")[0].strip() for line in poller.read_text(errors="replace").splitlines() if line.strip()]
    strange = [row for row in rows if not pattern.fullmatch(row)]
    if strange or not rows:
        what = f"lists {strange[0][:80]!r}" if strange else "lists nothing"
        raise AstroqueryError(f"{run.dataset}: {poller} {what}", remedy="give the poller file of this dataset")
    wanted = dict.fromkeys(rows)
    # ipppss: the visit of an exposure's name, or of the last part but one of a name such as hst_9029_..._j8bt05nj_flc
    visits = dict.fromkeys(row.removesuffix(".fits").split("_")[-2][:6] for row in rows)
    found: dict[str, _Product] = {}
    for visit in visits:
        found |= archive.products(f"{visit}*")
    if unlisted := [name for name in wanted if name not in found]:
        # An observation is named as its file, up to the suffix.
        found |= archive.products(*(name.rpartition("_")[0] for name in unlisted))
    here = run.config.home
    if missing := [name for name in wanted if name not in found and not (here / name).exists()]:
        raise AstroqueryError(
            f"{run.dataset}: MAST has no {', '.join(missing[:3])}{' and others' if missing[3:] else ''}",
            remedy=f"check {poller.name}; data that are still proprietary need MAST_API_TOKEN",
        )
    archive.fetch(found[name] for name in wanted if name in found)


# --- the list of exposures of a mosaic --------------------------------------------------------------------------


def _poller(run: Run, place: str) -> Path:
    """Put ``<dataset>_input.out`` beside the data, and return its path."""
    name = f"{run.dataset}_input.out"
    target = run.config.home / name
    if place.startswith("s3://"):
        content = _poller_from_s3(run, place, name)
    elif place in ("", "//"):
        if not target.is_file():
            raise AstroqueryError(
                f"{run.dataset}: there is no {name} in {run.config.home}",
                remedy="write astroquery:<its path> or astroquery:s3://bucket/prefix",
            )
        return target
    else:
        source = Path(place).expanduser().absolute()
        source = source / name if source.is_dir() else source
        if not source.is_file():
            raise AstroqueryError(f"{run.dataset}: there is no {source}", remedy=f"write astroquery:<path of {name}>")
        content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return target
    if target.exists():
        run.telemetry.warning(f"{target} is replaced by the one of {place}")
    LocalStore(run.config.home).put(name, content, Overwrite())
    return target


def _poller_from_s3(run: Run, place: str, name: str) -> bytes:
    folder, key = (place, name) if not place.endswith("_input.out") else place.rsplit("/", 1)
    store = open_store(folder, run.config.aws)
    with s3.concerning(run.dataset.name):
        blob = store.get(key)
        if blob is None:
            raise S3DownloadRefusedError(f"{store.url(key)}: there is no such object", remedy=f"put {name} there")
    run.telemetry.info(f"{name} from {store.url(key)}")
    return blob.data


# --- asking MAST ------------------------------------------------------------------------------------------------


class _Archive:
    """MAST, for one run."""

    def __init__(self, run: Run, settings: _Settings) -> None:
        self.settings = settings
        self._run = run
        self._download_url = ""

    def products(self, *observations: str) -> dict[str, _Product]:
        """Return the files of observations, by name; one name may have a ``*``."""

        def ask() -> dict[str, _Product]:
            observed = self._client()
            with _aside(self._run), _sensible(self._run, self.settings):
                table = observed.query_criteria(obs_id=list(observations), obs_collection="HST")
                rows = observed.get_product_list(table) if len(table) else ()
                return {p.name: p for p in map(_product, rows)}

        what = ", ".join(observations[:3]) + (", ..." if observations[3:] else "")
        found = _persist(self._run, self.settings, f"asking MAST for {what}", ask, threading.Event())
        self._run.telemetry.info(f"MAST lists {len(found)} files of {what}")
        return found

    def fetch(self, products: Iterable[_Product]) -> None:
        """Download files, from their copies in the cloud where there are any."""
        wanted = list(products)
        downloads = _Downloads(self._run, self.settings, self._download_url, wanted, self._cloud_places(wanted))
        downloads.run(self._run.telemetry.reporter.progress)

    def fetch_table(self, product: _Product) -> None:
        """Download a file so small that nobody need hear of it."""
        _Downloads(self._run, self.settings, self._download_url, [product], {}).run(lambda *_: None)

    def _client(self) -> Any:  # noqa: ANN401 - astroquery has no types
        """Return an astroquery client of this run's own.

        The server of ``astroquery.mast.conf`` is read when the module is imported, so that of one client is changed
        instead; and its memory of columns, which all clients share, would keep a broken answer.
        """
        from astroquery.mast import ObservationsClass

        client = ObservationsClass()
        portal, session = client._portal_api_connection, client._session
        for name in ("MAST_REQUEST_URL", "COLUMNS_CONFIG_URL", "MAST_DOWNLOAD_URL"):
            setattr(portal, name, _on_server(self.settings.server, getattr(portal, name)))
        portal._column_configs = {}
        portal.TIMEOUT = self.settings.timeout  # of an answer that stays "executing"
        self._download_url = portal.MAST_DOWNLOAD_URL
        _check_token(self.settings, portal.MAST_DOWNLOAD_URL)
        _prepare(session, self.settings)
        return client

    def _cloud_places(self, products: list[_Product]) -> dict[str, tuple[str, str]]:
        """Return bucket and key of the copies in the cloud that astroquery knows, by name of the file."""
        uris = {p.uri: p.name for p in products if p.public}
        mode = self.settings.cloud
        # A server of one's own need not hold what the public bucket holds.
        if not uris or mode == "never" or (mode == "auto" and self.settings.server):
            return {}
        answers: list[Mapping[str, str | None]] = []
        reasons: list[str] = []

        def ask() -> None:
            try:
                client = self._client()
                client.enable_cloud_dataset(verbose=False)
                answers.append(client.get_cloud_uris(list(uris), return_uri_map=True, verbose=False) or {})
            except Exception as error:
                reasons.append(_reason(self._run, error))

        # astroquery sets no time limit here; a thread that it leaves waiting does not keep the process alive.
        patience = self.settings.timeout if mode == "always" else min(_CLOUD_PATIENCE, self.settings.timeout)
        thread = threading.Thread(target=ask, daemon=True)
        with _aside(self._run):
            thread.start()
            thread.join(patience)
        if not answers:
            why = reasons[0] if reasons else f"no answer for {patience:g} s"
            self._run.telemetry.info(f"no cloud copies ({why}): all files come from MAST")
            return {}
        matches = {uri: _BUCKET_KEY.fullmatch(place or "") for uri, place in answers[0].items()}
        return {uris[uri]: (m[1], m[2]) for uri, m in matches.items() if m and uri in uris}


def _product(row: Any) -> _Product:  # noqa: ANN401 - a row of an astropy table
    size = row["size"]
    rights = str(row["dataRights"]) if "dataRights" in row.colnames else "PUBLIC"
    known = getattr(size, "mask", False) is False and int(size) > 0  # what is not known is masked
    return _Product(
        name=str(row["productFilename"]),
        uri=str(row["dataURI"]),
        size=int(size) if known else 0,
        public=rights.upper() == "PUBLIC",
    )


def _on_server(server: str, url: str) -> str:
    return f"{server}{urlsplit(url).path}" if server else url


def _check_token(settings: _Settings, url: str) -> None:
    """Refuse to send a token where anyone may read it."""
    parts = urlsplit(url)
    if settings.token and parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            f"MAST_API_TOKEN is not sent to {parts.scheme}://{parts.hostname}: it would be readable on the way",
            remedy="write CALDP_MAST_URL=https://..., or unset MAST_API_TOKEN",
        )


def _prepare(session: requests.Session, settings: _Settings) -> None:
    """Give a session time limits, which astroquery does not set, and the token."""
    from requests.adapters import HTTPAdapter

    class Patient(HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> requests.Response:  # noqa: ANN401 - as it is called
            options["timeout"] = options.get("timeout") or settings.timeouts
            return super().send(*args, **options)

    session.mount("https://", Patient())
    session.mount("http://", Patient())
    if settings.token:
        # As session.auth and not as a header: requests takes it away when it is sent on to another server.
        session.auth = _Token(settings.token)


class _Token:
    """Signs a request as MAST wants it; says nothing of itself in a traceback."""

    def __init__(self, token: str) -> None:
        self._header = f"token {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


@contextmanager
def _aside(run: Run) -> Iterator[None]:
    """Let what astroquery prints and warns about go to the log: standard output may be read by a machine."""
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for line in filter(None, map(str.strip, said.getvalue().splitlines())):
            run.telemetry.info(f"astroquery: {_safe(run, line)}")


# --- trying again -----------------------------------------------------------------------------------------------


@contextmanager
def _passing(run: Run, settings: _Settings) -> Iterator[None]:
    """Tell failures that may pass from those that will not."""
    from requests import HTTPError, RequestException
    from urllib3.exceptions import HTTPError as BrokenError

    try:
        yield
    except HTTPError as error:
        raise _refused(run, 500 if error.response is None else error.response.status_code) from error
    except (RequestException, BrokenError, ConnectionError, TimeoutError) as error:
        raise _PassingError(_reason(run, error, settings)) from error


@contextmanager
def _sensible(run: Run, settings: _Settings) -> Iterator[None]:
    """Take an answer on which astroquery stumbles for a failure that may pass."""
    from astroquery.exceptions import InvalidQueryError, RemoteServiceError
    from astroquery.exceptions import TimeoutError as AstroqueryTimeoutError

    strange = (ValueError, LookupError, TypeError, AttributeError, InvalidQueryError)
    try:
        with _passing(run, settings):
            yield
    except (RemoteServiceError, AstroqueryTimeoutError, *strange) as error:
        raise _PassingError(_reason(run, error, settings)) from error


def _refused(run: Run, status: int, what: str = "") -> Exception:
    """Return the error that an HTTP status means."""
    try:
        said = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        said = f"HTTP {status}"
    # What else the server says is not repeated: it might be the token.
    if status >= 500 or status in _PASSING:
        return _PassingError(f"MAST answers {said}")
    remedy = {
        401: "check MAST_API_TOKEN: it may have expired",
        403: "these data may be proprietary: set MAST_API_TOKEN to a token of somebody who may see them",
        404: "check the name of the dataset, and CALDP_MAST_URL if you set it",
    }.get(status, "check CALDP_MAST_URL if you set it")
    return AstroqueryError(f"{run.dataset}: {what}MAST answers {said}", remedy=remedy)


def _reason(run: Run, error: BaseException, settings: _Settings | None = None) -> str:
    """Say in a few words what went wrong."""
    import requests
    from urllib3.exceptions import HTTPError as BrokenError
    from urllib3.exceptions import TimeoutError as SilenceError

    if isinstance(error, requests.Timeout | SilenceError | TimeoutError) and settings:
        return f"no answer from MAST for {settings.timeout:g} s"
    if isinstance(error, BrokenError):
        return "the connection to MAST broke off"
    if isinstance(error, requests.ConnectionError | ConnectionError):
        return "no connection to MAST"
    if isinstance(error, requests.JSONDecodeError | ValueError | LookupError | TypeError | AttributeError):
        return f"an answer of MAST that makes no sense ({type(error).__name__})"
    return _short(run, error)


def _short(run: Run, error: BaseException) -> str:
    return " ".join(_safe(run, str(error)).split())[:160] or type(error).__name__


def _safe(run: Run, text: str) -> str:
    """Leave out secrets that a server may have sent back."""
    for secret in filter(None, (run.config.mast_token, *run.config.secrets)):
        text = text.replace(secret, "***")
    return text


def _persist(
    run: Run, settings: _Settings, what: str, action: Callable[[], _Result], cancelled: threading.Event
) -> _Result:
    """Do something that may fail in passing, waiting longer each time; AstroqueryError after the last try."""
    from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, stop_after_attempt
    from tenacity.wait import wait_exponential, wait_random

    def say(state: RetryCallState) -> None:
        why = state.outcome.exception() if state.outcome else ""
        pause = state.next_action.sleep if state.next_action else 0
        run.telemetry.info(f"{what}: {why}; trying again in {pause:.1f} s")

    retrying = Retrying(
        stop=stop_after_attempt(settings.tries),
        wait=wait_exponential(multiplier=settings.wait, max=_LONGEST_WAIT) + wait_random(0, settings.wait),
        retry=retry_if_exception_type(_PassingError),
        sleep=sleep_using_event(cancelled),
        before_sleep=say,
        reraise=True,
    )
    try:
        return retrying(action)
    except _PassingError as error:
        tries = f"{settings.tries} tries" if settings.tries > 1 else "1 try"
        raise AstroqueryError(
            f"{run.dataset}: {what}: {error} ({tries})",
            remedy="check the network, or try again later: what has come is kept",
        ) from error


# --- downloading ------------------------------------------------------------------------------------------------


class _Downloads:
    """A few files downloaded side by side; when one fails, or the run is stopped, all end at once."""

    def __init__(
        self,
        run: Run,
        settings: _Settings,
        url: str,
        products: list[_Product],
        places: Mapping[str, tuple[str, str]],
    ) -> None:
        self._run = run
        self._settings = settings
        self._url = url
        self._places = dict(places)
        self._cloud = _cloud_client(settings) if places else None
        self._todo: queue.SimpleQueue[_Product] = queue.SimpleQueue()
        self._sizes = {p.name: p.size for p in products}
        self._done: dict[str, int] = {}
        self._damaged: set[str] = set()
        self._errors: list[BaseException] = []
        self._cancelled = threading.Event()
        self._open: set[Callable[[], None]] = set()
        for product in sorted(products, key=lambda p: -p.size):
            self._todo.put(product)

    def run(self, progress: Callable[[str, int, int], None]) -> None:
        """Download them all; raise what the first that failed raised."""
        count = min(_PARALLEL, len(self._sizes))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        begun = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.1 / count)
                if done := self._moved():
                    sizes = list(self._sizes.values())
                    progress("download", done, sum(sizes) if all(sizes) else 0)
        finally:
            self._cancel()
            end = time.monotonic() + 2  # a thread that still waits for a server is left behind: it writes nothing more
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, end - time.monotonic()))
        if self._errors:
            raise self._errors[0]
        if self._sizes:
            size, seconds = self._moved(), time.monotonic() - begun
            self._run.telemetry.info(f"downloaded {len(self._sizes)} files, {size / 1e6:.1f} MB, in {seconds:.1f} s")

    def _moved(self) -> int:
        return sum(list(self._done.values()))

    def _cancel(self) -> None:
        self._cancelled.set()
        for stop in list(self._open):
            with contextlib.suppress(Exception):  # it has just ended by itself
                stop()

    def _work(self) -> None:
        import requests

        try:
            with requests.Session() as session:
                _prepare(session, self._settings)
                session.headers["Accept-Encoding"] = "identity"  # sizes and ranges are those of the file
                while not self._cancelled.is_set():
                    self._one(session, self._todo.get_nowait())
        except (queue.Empty, _CancelledError):
            return
        except BaseException as error:
            self._errors.append(error)
            self._cancel()

    def _one(self, session: requests.Session, product: _Product) -> None:
        """Download one file, unless it is there."""
        if self._keep(product):
            return
        path = self._run.config.home / product.name
        with self._claim(path) as partial:
            if self._keep(product):  # another run has just downloaded it
                return
            for last in (False, True):
                self._transfer(session, product, partial)
                why = self._wrong(product, Path(partial.name))
                if not why:
                    break
                partial.truncate(0)
                self._places.pop(product.name, None)
                if last:
                    raise AstroqueryError(
                        f"{self._run.dataset}: what MAST sends as {product.name} is damaged ({why})",
                        remedy="try again later; if it stays so, tell the archive's help desk",
                    )
                self._run.telemetry.info(f"{product.name}: what came is damaged ({why}): once more")
            os.fsync(partial.fileno())
            Path(partial.name).replace(path)
            _sync_folder(path.parent)

    def _keep(self, product: _Product) -> bool:
        """Whether the file is there already and can be used."""
        path = self._run.config.home / product.name
        path = path if path.exists() else path.with_name(f"{path.name}.gz")
        if not path.is_file():
            return False
        if why := _examined(path):
            if product.name not in self._damaged:
                self._run.telemetry.warning(f"{path.name} that was there is damaged ({why}): downloaded anew")
            self._damaged.add(product.name)
            return False
        size = path.stat().st_size
        if product.size in (0, size) or path.suffix == ".gz":
            self._run.telemetry.info(f"{path.name}: already there")
        else:
            self._run.telemetry.warning(
                f"{path.name} that is there has {size} bytes, MAST's {product.size}: yours is used; "
                "delete it if you want MAST's"
            )
        self._sizes.pop(product.name, None)
        return True

    @contextmanager
    def _claim(self, path: Path) -> Iterator[io.FileIO]:
        """Open and lock what there is of a file; another run that downloads it too is waited for."""
        partial = path.with_name(f"{path.name}.partial")
        waiting = False
        while True:
            self._check()
            file = io.FileIO(partial, "r+", opener=_open_or_create)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, partial):
                    break
                file.close()  # the other run has just given the file its name
            except BlockingIOError:
                file.close()
                if not waiting:
                    self._run.telemetry.info(f"{path.name}: another run is downloading it: waiting")
                waiting = True
                self._cancelled.wait(0.2)
            except BaseException:
                file.close()
                raise
        try:
            yield file
        finally:
            if _is_at(file, partial) and partial.stat().st_size == 0:
                partial.unlink()
            file.close()

    def _transfer(self, session: requests.Session, product: _Product, partial: io.FileIO) -> None:
        """Complete a file, from where it stopped last time."""

        def attempt() -> None:
            self._check()
            offset = partial.seek(0, os.SEEK_END)
            if offset and offset == product.size:
                return
            offset = offset if offset < product.size or not product.size else 0
            written = os.fstat(partial.fileno()).st_mtime
            with _passing(self._run, self._settings):
                answer = self._answer(session, product, offset)
                if offset and (answer.offset not in (0, offset) or answer.modified > written):
                    # Not what we asked for, or of another version of the file than what we have.
                    answer.close()
                    answer = self._answer(session, product, 0)
                try:
                    self._copy(answer, product, partial)
                finally:
                    answer.close()

        _persist(self._run, self._settings, product.name, attempt, self._cancelled)

    def _copy(self, answer: _Answer, product: _Product, partial: io.FileIO) -> None:
        """Write what comes behind what is there."""
        self._open.add(answer.stop)
        try:
            position = partial.seek(answer.offset)
            partial.truncate()
            self._check()
            while chunk := self._read(answer, product):
                self._check()
                _write(partial, chunk)
                position += len(chunk)
                self._done[product.name] = position
                if product.size and position > product.size:
                    return  # too long: not what MAST lists
        finally:
            self._open.discard(answer.stop)
        total = answer.total if answer.total is not None else product.size
        if position < total:
            raise _PassingError(f"it broke off after {position} of {total} bytes")

    def _read(self, answer: _Answer, product: _Product) -> bytes:
        if product.name not in self._places:
            return answer.read()
        from botocore.exceptions import BotoCoreError

        try:
            return answer.read()
        except (BotoCoreError, OSError) as error:
            self._no_cloud(product, error)
            raise _PassingError("its cloud copy broke off") from error

    def _answer(self, session: requests.Session, product: _Product, offset: int) -> _Answer:
        """Begin to read a file: its copy in the cloud, or MAST's own."""
        if place := self._places.get(product.name):
            from botocore.exceptions import BotoCoreError, ClientError

            try:
                return _from_cloud(self._cloud, place, offset)
            except (BotoCoreError, ClientError, OSError) as error:
                self._no_cloud(product, error)
        return self._from_mast(session, product, offset)

    def _no_cloud(self, product: _Product, error: BaseException) -> None:
        del self._places[product.name]
        self._run.telemetry.info(f"{product.name}: no cloud copy ({_short(self._run, error)}): from MAST instead")

    def _from_mast(self, session: requests.Session, product: _Product, offset: int) -> _Answer:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = session.get(f"{self._url}?uri={quote(product.uri, safe=':/')}", headers=headers, stream=True)
        status = response.status_code
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            response.close()
            if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
                return self._from_mast(session, product, 0)
            raise _refused(self._run, status, f"{product.name}: ")
        start, total = _extent(response.headers.get("Content-Range", ""), response.headers.get("Content-Length"))
        modified = 0.0
        with contextlib.suppress(ValueError):  # no date, or none that can be read
            modified = parsedate_to_datetime(response.headers.get("Last-Modified", "")).timestamp()
        # read1 returns what has come: a slow server is seen to be alive, and a run that is stopped stops.
        read = response.raw.read1
        return _Answer(lambda: read(_CHUNK), response.raw.shutdown, response.close, start, total, modified)

    def _wrong(self, product: _Product, path: Path) -> str:
        """Say what is wrong with a file that has come."""
        size = path.stat().st_size
        if product.size and size != product.size:
            return (
                f"more than the {product.size} bytes that MAST lists"
                if size > product.size
                else (f"{size} bytes, where MAST lists {product.size}")
            )
        return _examined(path)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError


def _cloud_client(settings: _Settings) -> Any:  # noqa: ANN401 - botocore makes its classes at run time
    """Return a client for the public bucket, which tries no longer than MAST would be waited for."""
    connect, read = settings.timeouts
    return s3.client(
        {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": settings.endpoint},
        anonymous=True,
        connect_timeout=connect,
        read_timeout=read,
        retries={"mode": "standard", "total_max_attempts": settings.tries},
    )


def _from_cloud(client: Any, place: tuple[str, str], offset: int) -> _Answer:  # noqa: ANN401 - see _cloud_client
    bucket, key = place
    asked = {"Range": f"bytes={offset}-"} if offset else {}
    answer = client.get_object(Bucket=bucket, Key=key, **asked)
    body = answer["Body"]
    start, total = _extent(answer.get("ContentRange", ""), answer.get("ContentLength"))
    return _Answer(lambda: body.read(_SOME), lambda: None, body.close, start, total, answer["LastModified"].timestamp())


def _extent(content_range: str, content_length: str | int | None) -> tuple[int, int | None]:
    """Return where an answer begins in the file, and the size of the file if it says so."""
    text = str(content_length)
    length = int(text) if text.isdigit() else None
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None:
        return 0, length
    start = int(match[1])
    if match[2] != "*":
        return start, int(match[2])
    return start, None if length is None else start + length


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def _examined(path: Path) -> str:
    with _EXAMINING:
        return damage(path)


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _write(file: io.FileIO, data: bytes) -> None:
    """Write all of it; an error says where."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- settings ---------------------------------------------------------------------------------------------------


def _settings(config: Config) -> _Settings:
    env = config.environment
    server = env.get("CALDP_MAST_URL", "").strip().rstrip("/")
    if server and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", server):
        raise UsageError("CALDP_MAST_URL is not the address of a server", remedy="write https://host, or unset it")
    cloud = env.get("CALDP_MAST_CLOUD", "") or "auto"
    if cloud not in ("auto", "always", "never"):
        raise UsageError(f"CALDP_MAST_CLOUD={cloud!r} is not known", remedy="write auto, always or never")
    tries = _number(env, "CALDP_MAST_TRIES", "4")
    if tries != int(tries):
        raise UsageError(f"CALDP_MAST_TRIES={tries} is not a whole number", remedy="export CALDP_MAST_TRIES=4")
    return _Settings(
        server=server,
        token=config.mast_token,
        tries=int(tries),
        wait=_number(env, "CALDP_MAST_WAIT", "2"),
        timeout=_number(env, "CALDP_MAST_TIMEOUT", "60"),
        cloud=cloud,
        endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL", ""),
    )


def _number(env: Mapping[str, str], name: str, default: str) -> float:
    """Read a positive number."""
    text = env.get(name, "") or default
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < 1e6:
            return number
    raise UsageError(f"{name}={text!r} is not a positive number", remedy=f"export {name}={default}")
