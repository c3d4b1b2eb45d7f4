"""A container: run one command in the image, as the caller and in the caller's directory."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import signal
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from caldp import engine, image, messages
from caldp.errors import CaldpError, ContainerMemoryError, Interrupted, Stop, UsageError
from caldp.process import Interrupts
from caldp.reporter import Output
from caldp.settings_file import ALLOWED
from caldp.store import Store, parse_uri

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

#: Home in the container, and its working directory.
HOME = "/home/developer"

#: Where the CRDS cache of the caller appears.
CRDS_CACHE = "/grp/crds/cache"

#: Mark of our containers: ``host:process:when it started`` of the command that waits for it.
LABEL = "caldp.waiting"

_USER = "developer"

_GRACE = 90.0
"""Seconds that a container is given to end after a signal: it publishes its logs and its state."""

_KILLED = 128 + signal.SIGKILL

_UNREAD = 128 + signal.SIGPIPE

_CHUNK = 65_536

_HEADER = 8
"""Bytes before each piece of output: its stream, three zeros, its size."""

_STDERR = 2

_MOST_LINKS = 40
"""Symbolic links in one path, as for Linux."""

#: Variables of the caller that mean the same in the container.
_SETTINGS = re.compile(
    r"(CRDS_[A-Z0-9_]*|CRDSBUCKET|CALDP_(PREVIEW_JOBS|ATTEMPT|OWNER_TIMEOUT|CRDS_CACHE_GB|MAST_[A-Z]+)|CSYS_VER|AWSDPVER|AWSYSVER"
    r"|MAST_API_TOKEN|AWS_[A-Z0-9_]*|ASTROMETRY_SERVICE_URL|GSSS_WEBSERVICES_URL|ASTROMETRIC_CATALOG_URL"
    r"|(?i:https?_proxy|no_proxy|all_proxy)|NO_COLOR|FORCE_COLOR|TZ)"
)

#: Variables that name files or folders of the caller's computer.
PATHS = re.compile(
    r"(CRDS_([A-Z_]*PATH(_SINGLE)?|INI_FILE|DEFAULT_CACHE|CWD|DOWNLOAD_PLUGIN)"
    r"|AWS_(CONFIG_FILE|SHARED_CREDENTIALS_FILE|CA_BUNDLE|WEB_IDENTITY_TOKEN_FILE)|[ijlnou]ref|uref_linux)"
)


@dataclass(frozen=True)
class Ask:
    """What is to run, and where.

    Attributes
    ----------
    image : str
        ``repository:tag``.
    command : tuple of str
        With its arguments.
    home : Path
        Directory that becomes the home in the container.
    environment : mapping
        Of the caller; what means the same inside is handed on.
    memory : int
        Limit in bytes; 0 for none.
    cpus : float
        Limit; 0 for none.
    network : str
        Network; empty for the engine's choice.
    variables : mapping
        More variables, by name.
    interactive : bool
        Standard input goes to the command, and a terminal is one inside too.
    outlives_reader : bool
        It goes on when nobody reads any more what it prints; else it is stopped, as SIGPIPE stops a local command.
    config : str
        Config script of a calibration; empty for other commands.
    """

    image: str
    command: tuple[str, ...]
    home: Path
    environment: Mapping[str, str] = field(repr=False)
    memory: int = 0
    cpus: float = 0.0
    network: str = ""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    interactive: bool = False
    outlives_reader: bool = False
    config: str = ""


#: What a calibration says that a signal has stopped, among so many bytes before its end.
_STOPPED = b"stopped by SIG"
_LAST = 4096


@dataclass(frozen=True)
class Ended:
    """How a container ended.

    Attributes
    ----------
    exit_code : int
        Of its command.
    out_of_memory : bool
        The kernel killed something in it because the memory limit was reached.
    signum : int
        Signal that was handed on to it; 0 for none.
    silent : bool
        It has not said that a signal stopped it: Python was not yet, or no longer, with CALDP.
    """

    exit_code: int
    out_of_memory: bool
    signum: int = 0
    silent: bool = False

    @property
    def stopped(self) -> bool:
        """Whether it ended because of the signal that was handed on."""
        return bool(self.signum) and self.exit_code in (128 + self.signum, _KILLED)


@dataclass(frozen=True)
class Watched:
    """A calibration in a container, whose state must be truthful even if it is killed.

    Attributes
    ----------
    dataset : str
        Its name.
    store : Store
        The output, seen from outside.
    run : str
        What the run is to be called.
    """

    dataset: str
    store: Store
    run: str

    def conclude(self, ended: Ended, memory: int) -> None:
        """Write the error state of a run that could not write it itself.

        Parameters
        ----------
        ended : Ended
            How its container ended.
        memory : int
            The limit that it had, bytes, or 0.

        Raises
        ------
        CaldpError
            What killed it: ContainerMemoryError (33) or Interrupted (137).  Other signals it has reported itself.
        """
        if ended.exit_code - 128 not in {int(known) for known in signal.Signals}:
            return  # it has said itself how it ended
        error: CaldpError = Interrupted(ended.exit_code - 128, self.dataset)
        if ended.exit_code == _KILLED and ended.out_of_memory:
            limit = f", limit {memory / 2**20:,.0f} MiB" if memory else ""
            error = ContainerMemoryError(
                f"{self.dataset}: the container was killed for memory{limit}",
                remedy="run it with a larger --memory" if memory else "run it on a computer with more memory",
            )
        self.abandon(error)
        if ended.exit_code == _KILLED:
            raise error

    def abandon(self, error: CaldpError) -> None:
        """Leave the error state behind, if the run has begun and not ended.

        Parameters
        ----------
        error : CaldpError
            Why.
        """
        try:
            messages.abandon(self.store, self.dataset, self.run, error)
        except (CaldpError, OSError) as why:
            _warn(f"{self.dataset}: its error state could not be written: {why}")


def run(ask: Ask, interrupts: Interrupts, out: IO[bytes], err: IO[bytes], started: threading.Event) -> Ended:
    """Run a command in a container of its own, which is gone afterwards.

    Parameters
    ----------
    ask : Ask
        Which, and where.
    interrupts : Interrupts
        Signals; they are handed on to the command, which ends as it would outside.
    out, err : binary file
        Where its output goes, as it comes.
    started : Event
        Set when the command may have begun.

    Returns
    -------
    Ended

    Raises
    ------
    EngineError
        If the engine does not run it.
    UsageError
        If the directory, or the CRDS cache, is none.
    """
    home, cache = _directories(ask)
    with ExitStack() as stack:
        client = stack.enter_context(closing(engine.connect(ask.environment)))
        stack.enter_context(engine.explained(f"{ask.image} cannot run {ask.command[0]}", ask.environment))
        image.image_of(client, ask.image)
        sweep(client)
        with interrupts.held():
            container = _create(client, ask, home, cache)
            stack.callback(_remove, container)
        interrupts.check()
        started.set()
        return _attend(container, ask, interrupts, out, err)


def _attend(container: Container, ask: Ask, interrupts: Interrupts, out: IO[bytes], err: IO[bytes]) -> Ended:
    """Start a container and pass on what it prints, what is typed, and signals, until it ends."""
    tty = bool(container.attrs["Config"]["Tty"])
    socket = _attach(container, ask.interactive)
    told = _Told(not ask.outlives_reader)
    relay = threading.Thread(target=_relay, args=(socket, tty, out, err, told), daemon=True)
    signum = 0
    with ExitStack() as stack:
        stack.callback(socket.close)
        try:
            with interrupts.held():
                if ask.interactive:  # before there is a prompt to answer
                    stack.enter_context(_typing(socket, raw=tty))
                container.start()
                relay.start()
                if tty:
                    stack.enter_context(_same_size(container))
            interrupts.check()
            told.enough.wait()
            if told.unread:
                _end(container, signal.SIGTERM, told.over)  # not SIGPIPE, which Python and others ignore
        except Stop as stop:
            signum = stop.signum
            _end(container, signum, told.over)
    interrupts.shield()
    code = int(container.wait(timeout=None)["StatusCode"])
    container.reload()
    state = container.attrs["State"]
    return Ended(_UNREAD if told.unread else code, bool(state.get("OOMKilled")), signum, _STOPPED not in told.last)


def _end(container: Container, signum: int, over: threading.Event) -> None:
    """Hand a signal on, and see to it that the container ends."""
    import docker.errors

    with contextlib.suppress(docker.errors.APIError):  # it has ended by itself
        container.kill(signal=signal.Signals(signum).name)
    if not over.wait(_GRACE):
        with contextlib.suppress(docker.errors.APIError):
            container.kill()
        over.wait(_GRACE)


def _directories(ask: Ask) -> tuple[Path, Path | None]:
    """Return the directory to mount as home, and the CRDS cache if one is exported."""
    home = ask.home.resolve()
    if not home.is_dir() or home == Path("/"):
        raise UsageError(
            f"CALDP_HOME is {ask.home}, which {'is the whole computer' if home == Path('/') else 'is no directory'}",
            remedy="export CALDP_HOME=<a directory of your own>, or cd to one",
        )
    exported = ask.environment.get("CRDS_PATH", "")
    if not exported:
        return home, None
    cache = _expanded(exported).absolute()
    if not cache.is_dir():
        raise UsageError(f"CRDS_PATH is {exported}, which is no directory", remedy=_cache_remedy(ask.config, home))
    return home, cache


def _cache_remedy(config: str, home: Path) -> str:
    """Say what can be done where the CRDS cache that is exported is not there."""
    if config == "caldp-config-onsite":
        return f"export CRDS_PATH=<a CRDS cache>: {config} downloads nothing"
    if config in ("caldp-config-offsite", "caldp-config-aws"):
        return f"make it, or unset CRDS_PATH: references are then downloaded into {home / 'crds_cache'}"
    return "export CRDS_PATH=<a CRDS cache>, or unset CRDS_PATH"


def environment(ask: Ask, cached: bool) -> tuple[dict[str, str], list[str]]:
    """Choose what the container is given of the caller's variables.

    Parameters
    ----------
    ask : Ask
        With the caller's environment.
    cached : bool
        The caller's CRDS cache is mounted.

    Returns
    -------
    variables : dict
    left_out : list of str
        Names of those that were set, but name files that the container does not see.
    """
    env = ask.environment
    given = {
        name: value
        for name, value in env.items()
        if (_SETTINGS.fullmatch(name) or name in ALLOWED) and not PATHS.fullmatch(name)
    }
    left_out = sorted(name for name in env if PATHS.fullmatch(name) and name != "CRDS_PATH" and env[name])
    if given.get("CRDSBUCKET", "").startswith("file:"):
        left_out.append("CRDSBUCKET")
        del given["CRDSBUCKET"]
    if ask.cpus and not given.get("OMP_NUM_THREADS"):
        given["OMP_NUM_THREADS"] = str(max(1, math.floor(ask.cpus)))
    if cached:
        given["CRDS_PATH"] = CRDS_CACHE
    # Else matplotlib would leave a folder in the caller's directory.
    own = {"HOME": HOME, "CALDP_HOME": HOME, "MPLCONFIGDIR": "/tmp/matplotlib"}  # noqa: S108 - the container's own
    return {**given, **own, **ask.variables}, left_out


def _create(client: docker.DockerClient, ask: Ask, home: Path, cache: Path | None) -> Container:
    from docker.types import Mount

    variables, left_out = environment(ask, cache is not None)
    for name in left_out:
        _warn(f"{name} names something that the container does not see; it is not handed on")
    mounts = [Mount(HOME, str(home), type="bind")]
    if cache is not None:
        readonly = ask.environment.get("CRDS_READONLY_CACHE", "").strip().lower() in ("1", "true", "yes", "on")
        mounts.append(Mount(CRDS_CACHE, str(cache), type="bind", read_only=readonly))
    streams = (sys.stdout, sys.stderr, *([sys.stdin] if ask.interactive else []))
    terminal = all(stream is not None and stream.isatty() for stream in streams)
    if terminal:
        variables.setdefault("TERM", ask.environment.get("TERM", "xterm"))
    options: dict[str, Any] = {}
    if ask.memory:
        options |= {"mem_limit": ask.memory, "memswap_limit": ask.memory}
    if ask.cpus:
        options["nano_cpus"] = round(ask.cpus * 1e9)
    if ask.network:
        options["network_mode"] = ask.network
    security = client.info().get("SecurityOptions") or []
    rootless = any("name=rootless" in text for text in security)
    uid, gid = (0, 0) if rootless else (os.getuid(), os.getgid())  # who is root there is us here
    if any("name=selinux" in text for text in security):
        options["security_opt"] = ["label=disable"]  # else nothing of ours could be read; relabelling a home is worse
    if any("name=userns" in text for text in security):
        options["userns_mode"] = "host"
    container = client.containers.create(
        ask.image,
        list(ask.command),
        name=f"caldp-{os.urandom(6).hex()}",
        user=f"{uid}:{gid}",
        group_add=[] if rootless else [str(group) for group in os.getgroups() if group != gid],
        working_dir=HOME,
        environment=variables,
        mounts=mounts,
        labels={LABEL: _waiting()},
        tty=terminal,
        stdin_open=ask.interactive,
        **options,
    )
    try:
        _introduce(container, uid, gid)
        container.reload()
    except BaseException:
        _remove(container)
        raise
    return container


def _introduce(container: Container, uid: int, gid: int) -> None:
    """Make the caller known to the container by the name of its user: programs ask who they are."""
    files = {}
    for path, line, number in (
        ("etc/passwd", f"{_USER}:x:{uid}:{gid}:CALDP:{HOME}:/bin/bash", uid),
        ("etc/group", f"{_USER}:x:{gid}:", gid),
    ):
        stream, _ = container.get_archive(f"/{path}")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as packed:
            member = packed.extractfile(packed.getmembers()[0])
            lines = member.read().decode().splitlines() if member else []
        others = [text for text in lines if text.split(":")[0] != _USER and text.split(":")[2:3] != [str(number)]]
        files[path] = "\n".join([line, *others]) + "\n"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as packed:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            packed.addfile(entry, io.BytesIO(text.encode()))
    container.put_archive("/", made.getvalue())


def _remove(container: Container) -> None:
    import docker.errors

    with contextlib.suppress(docker.errors.NotFound):
        container.remove(force=True)


def sweep(client: docker.DockerClient) -> None:
    """Remove containers that have ended and whose command was killed, so that nobody waits for them.

    Parameters
    ----------
    client : DockerClient
        The engine.
    """
    import docker.errors
    import requests

    trouble = (docker.errors.DockerException, requests.RequestException)
    filters = {"label": LABEL, "status": ["created", "exited", "dead"]}
    with contextlib.suppress(*trouble):
        for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
            if not _waits(container.labels.get(LABEL, "")):
                with contextlib.suppress(*trouble):
                    _remove(container)


def _waiting() -> str:
    import psutil

    return f"{os.uname().nodename}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def _waits(label: str) -> bool:
    """Whether the process that a label names is alive, as far as can be told from here."""
    import psutil

    host, _, rest = label.rpartition(":")[0].rpartition(":")
    started = label.rpartition(":")[2]
    if host != os.uname().nodename or not rest.isdigit():
        return True
    try:
        return f"{psutil.Process(int(rest)).create_time():.2f}" == started
    except psutil.Error:
        return False


def _attach(container: Container, interactive: bool) -> Any:  # noqa: ANN401 - a socket, or what wraps one
    params = {"stdout": 1, "stderr": 1, "stdin": int(interactive), "stream": 1}
    wrapped = container.client.api.attach_socket(container.id, params=params)
    socket = getattr(wrapped, "_sock", wrapped)
    socket.settimeout(None)
    return socket


class _Told:
    """What is known of a container by what it prints.

    Events, for until Python 3.13 a join that is interrupted takes its thread for ended.
    """

    def __init__(self, needs_reader: bool) -> None:
        self.last, self.unread = b"", False
        self.over, self.enough = threading.Event(), threading.Event()
        self._needs_reader = needs_reader

    def no_reader(self) -> None:
        """Nobody reads what it prints any more."""
        if self._needs_reader:
            self.unread = True
            self.enough.set()

    def end(self) -> None:
        """It has ended."""
        self.over.set()
        self.enough.set()


def _relay(
    socket: Any,  # noqa: ANN401 - see _attach
    tty: bool,
    out: IO[bytes],
    err: IO[bytes],
    told: _Told,
) -> None:
    """Pass on what the container prints until it ends, even if nobody reads it any more."""
    broken: set[int] = set()
    try:
        for number, data in _frames(socket, tty):
            told.last = (told.last + data)[-_LAST:]
            stream, name = (err, "error") if number == _STDERR else (out, "output")
            if number not in broken:
                try:
                    stream.write(data)
                    stream.flush()
                except (OSError, ValueError) as error:
                    broken.add(number)
                    if isinstance(error, BrokenPipeError):
                        told.no_reader()
                    else:
                        _warn(f"standard {name} cannot be written: {getattr(error, 'strerror', None) or error}")
    except OSError:  # the engine has gone: what became of the container is asked for next
        pass
    finally:
        told.end()


def _frames(socket: Any, tty: bool) -> Iterator[tuple[int, bytes]]:  # noqa: ANN401 - see _attach
    """Take apart what the container prints (docker's own iterator keeps back the last piece of it under TLS)."""
    buffer, stream, left = b"", 0, 0
    while data := socket.recv(_CHUNK):
        if tty:
            yield stream, data
            continue
        buffer += data
        while buffer and (left or len(buffer) >= _HEADER):
            if not left:
                stream, left, buffer = buffer[0], int.from_bytes(buffer[4:_HEADER]), buffer[_HEADER:]
            piece, buffer = buffer[:left], buffer[left:]
            left -= len(piece)
            yield stream, piece


@contextmanager
def _same_size(container: Container) -> Iterator[None]:
    """Keep the terminal inside as large as the one outside."""
    import docker.errors
    import requests

    changed, over = threading.Event(), threading.Event()
    changed.set()

    def follow() -> None:  # not in the handler: a second signal would come in the middle of a request
        while changed.wait() and not over.is_set():
            changed.clear()
            with contextlib.suppress(docker.errors.APIError, requests.RequestException, OSError):
                size = os.get_terminal_size(sys.stdout.fileno())
                container.resize(size.lines, size.columns)

    before = signal.signal(signal.SIGWINCH, lambda *_: changed.set())
    threading.Thread(target=follow, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
        over.set()
        changed.set()


@contextmanager
def _typing(socket: Any, *, raw: bool) -> Iterator[None]:  # noqa: ANN401 - see _attach
    """Pass on what comes from standard input; from a terminal key by key."""
    import socket as sockets
    import ssl
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    # That of a TLS socket would end TLS in both directions.
    shutdown = super(ssl.SSLSocket, socket).shutdown if isinstance(socket, ssl.SSLSocket) else socket.shutdown

    def forward() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(descriptor, _CHUNK):
                socket.sendall(data)
            shutdown(sockets.SHUT_WR)

    before = termios.tcgetattr(descriptor) if raw else None
    if raw:
        tty.setraw(descriptor, termios.TCSADRAIN)  # what has been typed already is not thrown away
    try:
        threading.Thread(target=forward, daemon=True).start()
        yield
    finally:
        if before is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def inside(uri: str, home: Path) -> str:
    """Check that a place on the command line is one that the container sees.

    Parameters
    ----------
    uri : str
        ``file:<directory>``, ``astroquery:<directory>``, ``s3://...``, or a path of a config or reference file.
    home : Path
        Directory that becomes the home.

    Returns
    -------
    str
        The same.

    Raises
    ------
    UsageError
        For absolute paths, and paths that lead out of ``home``, also by symbolic links.
    """
    scheme, rest = parse_uri(uri) if re.match(r"(file|astroquery|s3):", uri) else ("", uri)
    if scheme == "s3" or rest.startswith("s3://"):
        return uri
    prefix = f"{scheme}:" if scheme else ""
    if rest.startswith(("/", "~")):
        path = _expanded(rest)
        below = path.is_relative_to(home)
        remedy = f"write {prefix}{path.relative_to(home)}" if below else f"put it below {home}"
        raise UsageError(
            f"{uri}: absolute paths of this computer do not exist in the container, which sees only {home}",
            remedy=f"{remedy}, or export CALDP_HOME=<directory that holds it>" if not below else remedy,
        )
    if ".." in Path(os.path.normpath(rest)).parts:
        raise UsageError(
            f"{uri} leads out of {home}, the only directory that the container sees",
            remedy="export CALDP_HOME=<directory that holds both>, and give paths relative to it",
        )
    if found := _link_out(rest, home.resolve()):
        link, target = found
        raise UsageError(
            f"{uri}: {link} is a symbolic link to {target}, which the container does not see: it sees only {home}",
            remedy="copy what it points to, or export CALDP_HOME=<directory that holds both>, with a relative link",
        )
    return uri


def files_inside(uri: str, home: Path, dataset: str) -> None:
    """Check that the container sees what the files of a dataset are, where they are symbolic links.

    Parameters
    ----------
    uri : str
        Input that ``inside`` has let pass.
    home : Path
        Directory that becomes the home.
    dataset : str
        Its name, with which names of files begin.

    Raises
    ------
    UsageError
        If one leads out of ``home``.
    """
    if uri.startswith("file:"):
        folder = parse_uri(uri)[1]
        with contextlib.suppress(OSError):  # what cannot be read is the run's to report
            for path in sorted((home / folder).glob(f"{dataset}*")):
                inside(f"file:{Path(folder) / path.name}", home)


def _link_out(path: str, home: Path) -> tuple[Path, Path] | None:
    """Return the symbolic link by which a path leads where the container sees nothing, and its target."""
    folder, todo, links = home, list(reversed(Path(path).parts)), 0
    found: tuple[Path, Path] | None = None
    while todo and links < _MOST_LINKS:
        part = todo.pop()
        if part == "..":
            if folder == home:
                return found
            folder = folder.parent
            continue
        try:
            target = (folder / part).readlink()
        except OSError:  # no link, or nothing at all
            folder /= part
            continue
        links, found = links + 1, (folder / part, target)
        if target.is_relative_to(CRDS_CACHE):
            return None
        if target.is_relative_to(HOME):
            folder, target = home, target.relative_to(HOME)
        if target.is_absolute():
            return found
        todo += reversed(target.parts)
    return None


def _expanded(path: str) -> Path:
    """Put the home of a user for ``~``, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _warn(text: str) -> None:
    Output(sys.stderr).line(f"caldp: {text}")
