"""Everything a run depends on: the only reader of the environment and of the caldp-config-* scripts."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldp import programs
from caldp.errors import UsageError
from caldp.settings_file import ALLOWED
from caldp.store import absolute_uri

DEFAULT_CONFIG = "caldp-config-onsite"

#: Script that names the Docker image.
IMAGE_CONFIG = "caldp-image-config"

#: Environment variables that must reach neither a program nor a log.
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|_PASS$|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_KEY|_AUTH$", re.IGNORECASE
)

#: Variable in the names of reference files -> folder of a CRDS cache that is divided by instrument.
_REFERENCES = {
    "iref": "wfc3",
    "jref": "acs",
    "lref": "cos",
    "nref": "nicmos",
    "oref": "stis",
    "uref": "wfpc2",
    "uref_linux": "wfpc2",
}

#: ``https://user:password@host``: the part that must not be recorded.
_USERINFO = re.compile(r"(?<=//)[^/@]*@")

_TYPE_OVERRIDE = re.compile(r"([A-Za-z0-9]{2,8})=(.+)")


@dataclass(frozen=True)
class Config:
    """The settings of a run.

    Attributes
    ----------
    name : str
        The config as the user named it.
    script : Path
        The script that was sourced.
    script_sha256 : str
        Its content.
    crds_path : Path
        CRDS cache.
    crds_server_url : str
        CRDS server; one with ``serverless`` in it means none.
    crds_readonly : bool
        The cache is shared and must not be written.
    crds_context : str
        Context to use, or empty for the operational one of the cache.
    crds_store : str
        Store that fills the cache where there is no CRDS server (``CRDSBUCKET``): ``s3://bucket/prefix`` or
        ``file:<directory>``, or empty.
    crds_cache_limit : int or None
        Size to which reference files that came from that store are kept (``CALDP_CRDS_CACHE_GB``), bytes; None for any.
    allow_bad_references : bool
        Calibrate even with references on the CRDS list of known bad files.
    overrides : tuple of (str, Path)
        Reference files that replace the best ones, by upper-case type.
    home : Path
        Where scratch files go.
    system_version : str
        Version of the surrounding system (``CSYS_VER``), for the headers.
    aws_dp_version, aws_system_version : str
        Versions of the AWS systems (``AWSDPVER``, ``AWSYSVER``), for the headers.
    preview_jobs : int
        Preview programs run at a time.
    attempt : int
        Attempt that the submitter has counted (``CALDP_ATTEMPT``), or 0.
    job, job_attempt : str, int
        What AWS Batch calls the job, and how often it has started it.
    run : str
        What whoever started us in a container calls the run (``CALDP_RUN``), or empty.
    owner_timeout : float
        Seconds without a heartbeat after which a run that writes to S3 counts as dead (``CALDP_OWNER_TIMEOUT``).
    environment : mapping
        Environment of the programs we start; secrets left out.
    aws : mapping
        The AWS_* variables, for S3.
    mast_token : str
        Token for data that MAST does not show to everybody (``MAST_API_TOKEN``), or empty.
    secrets : tuple of str
        Values that logs must not show.
    """

    name: str
    script: Path
    script_sha256: str
    crds_path: Path
    crds_server_url: str
    crds_readonly: bool
    crds_context: str
    crds_store: str
    crds_cache_limit: int | None
    allow_bad_references: bool
    overrides: tuple[tuple[str, Path], ...]
    home: Path
    system_version: str
    aws_dp_version: str
    aws_system_version: str
    preview_jobs: int
    attempt: int
    job: str
    job_attempt: int
    run: str
    owner_timeout: float
    environment: Mapping[str, str] = field(repr=False, compare=False)
    aws: Mapping[str, str] = field(repr=False, compare=False)
    mast_token: str = field(repr=False, compare=False)
    secrets: tuple[str, ...] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the settings: of the environment only what is named here, no secrets."""
        return {
            "name": self.name,
            "script": str(self.script),
            "script_sha256": self.script_sha256,
            "crds_path": str(self.crds_path),
            "crds_server_url": self.crds_server_url,
            "crds_readonly": self.crds_readonly,
            "crds_context": self.crds_context,
            "crds_store": self.crds_store,
            "allow_bad_references": self.allow_bad_references,
            "overrides": {kind: str(path) for kind, path in self.overrides},
            "system_version": self.system_version,
            "aws_dp_version": self.aws_dp_version,
            "aws_system_version": self.aws_system_version,
            "exported": self.exported,
            "sha256": self.sha256,
        }

    @property
    def sha256(self) -> str:
        """Identify these settings."""
        material = [
            self.script_sha256,
            str(self.crds_path),
            self.crds_server_url,
            self.crds_readonly,
            self.crds_context,
            self.crds_store,
            self.allow_bad_references,
            [(kind, str(path)) for kind, path in self.overrides],
            self.system_version,
            self.aws_dp_version,
            self.aws_system_version,
            self.exported,
        ]
        return hashlib.sha256(json.dumps(material).encode()).hexdigest()

    @property
    def exported(self) -> dict[str, str]:
        """Variables of the environment that change what is made: folders of references, switches of the programs."""
        return {name: self.environment[name] for name in sorted({*_REFERENCES, *ALLOWED}) if name in self.environment}

    def program_environment(self, **extra: str) -> dict[str, str]:
        """Return the whole environment of a program we start.

        Parameters
        ----------
        **extra : str
            Variables to add, for example ``lref``.

        Returns
        -------
        dict
        """
        return {**self.environment, **extra}

    def reference_folders(self) -> dict[str, str]:
        """Return the folder of each instrument's reference files, by the variable that programs know it by.

        Returns
        -------
        dict
            ``iref``, ``jref`` and so on, absolute, with the slash at the end that programs need.  What the caller
            exported is kept; else the folder is that of the CRDS cache, whose layout is in its
            ``config/hst/ref_cache_subdir_mode``, or is flat if it is read-only.
        """
        top = self.crds_path / "references" / "hst"
        try:
            mode = (self.crds_path / "config" / "hst" / "ref_cache_subdir_mode").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            mode = "flat" if self.crds_readonly else "instrument"
        own = {name: top if mode == "flat" else top / folder for name, folder in _REFERENCES.items()}
        return {name: f"{Path(self.environment.get(name) or own[name]).absolute()}/" for name in own}


def load(
    name: str = DEFAULT_CONFIG,
    *,
    context: str = "",
    overrides: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Source a config script and read the settings.

    Parameters
    ----------
    name : str
        Name of a script on PATH or beside caldp-process, or the path of a custom one.
    context : str
        CRDS context of the command line; wins over all.
    overrides : tuple of str
        ``TYPE=FILE`` of the command line.
    environ : mapping, optional
        Environment of the caller; default ``os.environ``.

    Returns
    -------
    Config

    Raises
    ------
    UsageError
        If there is no such script, it fails, a setting makes no sense, or the current directory cannot be used.
    """
    caller = dict(os.environ if environ is None else environ)
    _require_here(caller)
    script = _find_script(name, caller.get("PATH", ""))
    env = _source(script, caller)
    chosen = context or env.get("CRDS_CONTEXT", "")
    crds_path = env.get("CRDS_PATH")
    if not crds_path:
        raise UsageError(
            f"{name} does not export CRDS_PATH",
            remedy="export CRDS_PATH=<CRDS cache>, or use caldp-config-onsite or -offsite",
        )
    clean = {k: v for k, v in env.items() if not _SECRET.search(k) and not k.startswith("BASH_FUNC_")}
    crds = {
        "CRDS_PATH": str(Path(crds_path).expanduser().absolute()),
        "CRDS_OBSERVATORY": "hst",
        "CRDS_SERVER_URL": env.get("CRDS_SERVER_URL", ""),
        "CRDS_READONLY_CACHE": _switch(env, "CRDS_READONLY_CACHE"),
    }
    return Config(
        name=name,
        script=script,
        script_sha256=hashlib.sha256(script.read_bytes()).hexdigest(),
        crds_path=Path(crds["CRDS_PATH"]),
        crds_server_url=_USERINFO.sub("", crds["CRDS_SERVER_URL"]),
        crds_readonly=crds["CRDS_READONLY_CACHE"] == "1",
        crds_context=chosen,
        crds_store=_crds_store(env),
        crds_cache_limit=_crds_cache_limit(env),
        allow_bad_references=_switch(env, "CRDS_ALLOW_BAD_REFERENCES") == "1",
        overrides=tuple(_parse_override(o) for o in overrides),
        home=_home(env),
        system_version=env.get("CSYS_VER", "UNDEFINED"),
        aws_dp_version=env.get("AWSDPVER", "UNDEFINED"),
        aws_system_version=env.get("AWSYSVER", "UNDEFINED"),
        preview_jobs=_count(env, "CALDP_PREVIEW_JOBS", 2),
        attempt=_count(env, "CALDP_ATTEMPT", 0),
        job=env.get("AWS_BATCH_JOB_ID", ""),
        job_attempt=_count(env, "AWS_BATCH_JOB_ATTEMPT", 1),
        run=env["CALDP_RUN"] if re.fullmatch(r"[0-9a-f]{12}", env.get("CALDP_RUN", "")) else "",
        owner_timeout=float(_count(env, "CALDP_OWNER_TIMEOUT", 300)),
        environment={**clean, **crds, "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"},
        aws={name: value for name, value in env.items() if name.startswith("AWS_")},
        mast_token=_token(env),
        secrets=_secrets(env),
    )


def array_index() -> int:
    """Return which child of an array of AWS Batch this is, 0 if it is none; UsageError when that makes no sense."""
    text = os.environ.get("AWS_BATCH_JOB_ARRAY_INDEX") or "0"
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"AWS_BATCH_JOB_ARRAY_INDEX={text!r} is not a number", remedy="AWS Batch sets it")
    return int(text)


def deployment() -> str:
    """Return the stack on AWS that the caller works with (``CALDP_DEPLOYMENT_NAME``), or nothing."""
    return os.environ.get("CALDP_DEPLOYMENT_NAME", "")


def inherited() -> dict[str, str]:
    """Return the environment of the caller, for commands of ours that we start and that read it themselves."""
    return dict(os.environ)


@dataclass(frozen=True)
class ImageConfig:
    """What ``caldp-image-config`` says of the Docker image, and what a container is given.

    Attributes
    ----------
    image : str
        ``repository:tag``.
    base : str
        The image that it is built on.
    conda : str
        The image whose conda fetches HSTCAL.
    hstcal : str
        ``stable``, ``latest``, a version, or ``none``.
    network : str
        Network of builds and runs; empty for the engine's choice.
    home : Path
        Directory that becomes the home in the container (``CALDP_HOME``; default the current one).
    environment : mapping
        The caller's, and what the script exports.
    """

    image: str
    base: str
    conda: str
    hstcal: str
    network: str
    home: Path
    environment: Mapping[str, str] = field(repr=False, compare=False)


def load_image(environ: Mapping[str, str] | None = None) -> ImageConfig:
    """Source ``caldp-image-config``.

    Parameters
    ----------
    environ : mapping, optional
        Environment of the caller; default ``os.environ``.

    Returns
    -------
    ImageConfig

    Raises
    ------
    UsageError
        If the script is not there, fails, or leaves out what is needed, or the current directory cannot be used.
    """
    caller = dict(os.environ if environ is None else environ)
    _require_here(caller)
    script = _find_script(IMAGE_CONFIG, caller.get("PATH", ""), remedy="install CALDP again: it brings that script")
    env = _source(script, caller)
    wanted = ("CALDP_DOCKER_IMAGE", "CAL_BASE_IMAGE", "CALDP_CONDA_IMAGE", "CALDP_HSTCAL")
    for name in wanted:
        if not env.get(name):
            raise UsageError(f"{script} does not export {name}", remedy="put back what you took out of it")
    image, base, conda, hstcal = (env[name] for name in wanted)
    return ImageConfig(image, base, conda, hstcal, env.get("CALDP_DOCKER_NETWORK", ""), _home(env), env)


def _require_here(env: Mapping[str, str]) -> None:
    """Refuse a current directory in which no program can be started."""
    try:
        here = Path.cwd()
        said = "" if os.access(".", os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        here, said = Path(env.get("PWD") or "."), error.strerror or str(error)
    if said:
        raise UsageError(
            f"the current directory, {here}, cannot be used ({said})", remedy="cd to a directory of your own"
        )


def _home(env: Mapping[str, str]) -> Path:
    home = env.get("CALDP_HOME", "")
    try:
        return Path(home if home not in ("", "none") else ".").expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"CALDP_HOME is {home}: there is no such user", remedy="export another CALDP_HOME") from error


def _find_script(name: str, path: str, remedy: str = "") -> Path:
    if "/" in name:
        candidates = [Path(name).expanduser()]
    else:
        folders = [*path.split(os.pathsep), sysconfig.get_path("scripts"), "."]
        candidates = [Path(folder) / name for folder in folders if folder]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute()
    raise UsageError(
        f"no config script {name!r} on PATH or at that path",
        remedy=remedy
        or "use caldp-config-onsite, caldp-config-offsite, caldp-config-aws or the path of your own script",
    )


def _source(script: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment as it is after ``source script``."""
    import tempfile  # here: it costs every caldp --help a few milliseconds

    bash = shutil.which("bash", path=env.get("PATH", os.defpath)) or shutil.which("bash", path=os.defpath)
    if bash is None:
        raise UsageError("bash is not installed, so no config script can be sourced", remedy="install bash")
    with tempfile.NamedTemporaryFile(prefix="caldp-config-") as out:
        command = 'source "$1" && exec env -0 > "$2"'
        done = programs.run(
            [bash, "-c", command, "caldp-config", str(script), out.name],
            cwd=Path(),
            env=env,
            on_line=lambda _: None,
        )
        listing = Path(out.name).read_bytes().decode("utf-8", errors="surrogateescape")
        if done.returncode != 0 or not listing:
            last = next((f": {line}" for line in reversed(done.tail) if programs.has_words(line)), "")
            for secret in _secrets(env):
                last = last.replace(secret, "***")
            raise UsageError(
                f"sourcing {script} failed ({done.outcome}){last}",
                remedy="see what it says; a config must not exit, and its last command must succeed",
            )
    pairs = (item.partition("=") for item in listing.split("\0") if item)
    return {key: value for key, _, value in pairs if key not in ("_", "SHLVL")}


def _secrets(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that must not be shown, the longest first: one may begin with another."""
    values = {v for k, v in env.items() if _SECRET.search(k) and len(v) >= 6}
    # A stray line end is not sent, and an exception may show it as two characters.
    values |= {form for v in values for form in (v.strip(), repr(v)[1:-1]) if len(form) >= 6}
    values |= {match[0] for v in env.values() for match in _USERINFO.finditer(v) if ":" in match[0]}
    return tuple(sorted(values, key=len, reverse=True))


def _token(env: Mapping[str, str]) -> str:
    token = env.get("MAST_API_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise UsageError("MAST_API_TOKEN has characters that no token has", remedy="copy it again from MAST")
    return token


def _parse_override(text: str) -> tuple[str, Path]:
    match = _TYPE_OVERRIDE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--override {text!r} is not TYPE=FILE",
            remedy="write for example --override FLUXTAB=my_phot.fits",
        )
    path = Path(match[2]).expanduser().absolute()
    if not path.is_file():
        raise UsageError(f"--override {match[1]}: there is no file {path}", remedy="give the path of a reference file")
    return match[1].upper(), path


def _crds_store(env: Mapping[str, str]) -> str:
    uri = env.get("CRDSBUCKET", "").strip()
    if not uri:
        return ""
    if not uri.startswith(("s3://", "file:")):
        raise UsageError(
            f"CRDSBUCKET={uri!r} is no place for a CRDS cache",
            remedy="export CRDSBUCKET=s3://<bucket>, with a prefix or without",
        )
    try:
        return absolute_uri(uri)
    except UsageError as error:
        raise UsageError(f"CRDSBUCKET: {error.message}", remedy=error.remedy) from error


def _crds_cache_limit(env: Mapping[str, str]) -> int | None:
    text = env.get("CALDP_CRDS_CACHE_GB", "").strip()
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text):
        raise UsageError(f"CALDP_CRDS_CACHE_GB={text!r} is not a size in GB", remedy="export CALDP_CRDS_CACHE_GB=100")
    return int(float(text) * 1e9)


def _switch(env: Mapping[str, str], name: str) -> str:
    return "1" if env.get(name, "").strip().lower() in ("1", "true", "yes", "on") else "0"


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        remedy = f"export {name}={default}" if default else f"unset {name}"
        raise UsageError(f"{name}={text!r} is not a positive number", remedy=remedy)
    return int(text)
