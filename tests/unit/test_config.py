"""Config scripts, the environment, and what of it may be seen."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caldp import config
from caldp.config import Config, ImageConfig, load, load_image
from caldp.errors import UsageError

SCRIPTS = Path(__file__).parents[2] / "scripts"
SHIPPED = ("caldp-config-onsite", "caldp-config-offsite", "caldp-config-aws")
BARE = {"PATH": f"{SCRIPTS}{os.pathsep}{os.defpath}", "HOME": "/home/somebody"}

#: What each script sets when the caller has exported nothing.
DEFAULTS = {
    "caldp-config-onsite": {
        "CRDS_PATH": "/grp/crds/cache",
        "CRDS_SERVER_URL": "https://hst-serverless-mode.stsci.edu",
        "CRDS_READONLY_CACHE": "1",
        "CRDS_OBSERVATORY": "hst",
    },
    "caldp-config-offsite": {
        "CRDS_PATH": "/home/somebody/crds_cache",
        "CRDS_SERVER_URL": "https://hst-crds.stsci.edu",
        "CRDS_READONLY_CACHE": "0",
        "CRDS_OBSERVATORY": "hst",
    },
    "caldp-config-aws": {
        "CRDS_PATH": "/home/somebody/crds_cache",
        "CRDS_SERVER_URL": "https://hst-serverless-mode.stsci.edu",
        "CRDS_READONLY_CACHE": "0",
        "CRDS_OBSERVATORY": "hst",
        "CRDS_S3_ENABLED": "1",
        "CRDS_S3_RETURN_URI": "0",
        "CRDS_CONFIG_URI": "s3://crds/config/hst/",
        "CRDS_MAPPING_URI": "s3://crds/mappings/hst/",
        "CRDS_REFERENCE_URI": "s3://crds/references/hst/",
        "CRDS_CLIENT_RETRY_COUNT": "4",
        "CRDS_CLIENT_RETRY_DELAY_SECONDS": "10",
    },
}
EXTRA = {"caldp-config-aws": {"CRDSBUCKET": "s3://crds"}}

SECRETS = {
    "MAST_API_TOKEN": "mast-0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-0123456789",
    "AWS_ACCESS_KEY_ID": "AKIA0123456789",
    "AWS_SESSION_TOKEN": "aws-session-0123456789",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/0123456789",
    "PGPASSWORD": "pg-0123456789",
    "SOME_API_KEY": "api-0123456789",
    "my_private_key": "private-0123456789",
    "PROXY_AUTH": "proxy-0123456789",
    "GPG_PASSPHRASE": "phrase-0123456789",
    "DB_PASS": "pass-0123456789",
}


def source(script: str, environ: Mapping[str, str], *, flags: str = "") -> dict[str, str]:
    """Return the variables as they are after plain bash sourced a script."""
    done = subprocess.run(
        ["bash", *flags.split(), "-c", 'source "$1" && env -0', "bash", str(SCRIPTS / script)],
        env=dict(environ),
        capture_output=True,
        check=True,
    )
    assert not done.stderr
    pairs = (item.partition(b"=") for item in done.stdout.split(b"\0") if item)
    return {k.decode(): v.decode() for k, _, v in pairs if k not in (b"_", b"SHLVL", b"PWD", b"OLDPWD")}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "my-config") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ---- the shipped scripts


@pytest.mark.parametrize("script", SHIPPED)
def test_shipped_scripts_are_sound(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)
    env = BARE | EXTRA.get(script, {})
    assert source(script, env, flags="-eu -o pipefail") == env | DEFAULTS[script]


@pytest.mark.parametrize("script", SHIPPED)
def test_shipped_scripts_set_only_what_the_caller_has_not(script: str) -> None:
    env = BARE | EXTRA.get(script, {}) | {name: f"mine-{name}" for name in DEFAULTS[script]}
    assert source(script, env) == env


@pytest.mark.parametrize("script", SHIPPED)
def test_shipped_scripts_through_load(script: str) -> None:
    wanted = DEFAULTS[script]
    loaded = load(script, environ=BARE | EXTRA.get(script, {}))
    assert loaded.name == script
    assert loaded.crds_path == Path(wanted["CRDS_PATH"])
    assert loaded.crds_server_url == wanted["CRDS_SERVER_URL"]
    assert loaded.crds_readonly == (wanted["CRDS_READONLY_CACHE"] == "1")
    assert loaded.crds_context == ""
    environment = loaded.program_environment()
    assert {name: environment[name] for name in wanted} == wanted


@pytest.mark.parametrize("script", SHIPPED)
def test_what_the_caller_exported_wins_over_shipped_scripts(script: str) -> None:
    mine = {"CRDS_PATH": "/mine", "CRDS_SERVER_URL": "https://mine", "CRDS_READONLY_CACHE": "1", "CRDS_CONTEXT": "c"}
    loaded = load(script, environ=BARE | EXTRA.get(script, {}) | mine)
    assert (loaded.crds_path, loaded.crds_server_url, loaded.crds_readonly) == (Path("/mine"), "https://mine", True)
    assert loaded.crds_context == "c"


@pytest.mark.parametrize(
    ("exported", "store"),
    [
        ("s3://crds", "s3://crds"),
        ("s3://crds/test/", "s3://crds/test/"),
        (" s3://crds ", "s3://crds"),
        ("file:/crds", "file:/crds"),
        ("file:crds", f"file:{Path('crds').absolute()}"),
    ],
)
def test_the_store_of_references(exported: str, store: str) -> None:
    for name in SHIPPED:
        assert load(name, environ={**BARE, "CRDSBUCKET": exported}).crds_store == store
    bases = load("caldp-config-aws", environ={**BARE, "CRDSBUCKET": exported}).environment
    assert bases["CRDS_MAPPING_URI"] == f"{exported.removesuffix('/')}/mappings/hst/"
    assert load("caldp-config-onsite", environ=BARE).crds_store == ""


@pytest.mark.parametrize("exported", ["crds", "s3:crds", "s3://", "s3:///x", "astroquery:", "file://elsewhere/crds"])
def test_what_is_no_store_of_references(exported: str) -> None:
    with pytest.raises(UsageError, match="CRDSBUCKET"):
        load("caldp-config-aws", environ={**BARE, "CRDSBUCKET": exported})


@pytest.mark.parametrize(
    ("text", "limit"),
    [("", None), (" ", None), ("100", 100_000_000_000), ("0.5", 500_000_000), ("0", 0), ("7.", 7_000_000_000)],
)
def test_the_limit_of_the_cache(text: str, limit: int | None) -> None:
    assert load("caldp-config-onsite", environ={**BARE, "CALDP_CRDS_CACHE_GB": text}).crds_cache_limit == limit


@pytest.mark.parametrize("text", ["all", "-1", "1e3", "1 GB", "1,5", "nan", "0x1", "."])
def test_what_is_no_limit_of_the_cache(text: str) -> None:
    with pytest.raises(UsageError, match="CALDP_CRDS_CACHE_GB"):
        load("caldp-config-onsite", environ={**BARE, "CALDP_CRDS_CACHE_GB": text})


def test_aws_without_a_bucket_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="CRDSBUCKET"):
        load("caldp-config-aws", environ=BARE)


# ---- a script of one's own


def test_custom_exports_win_over_the_environment(write: Any) -> None:
    script = write("export CRDS_PATH=/script CRDS_CONTEXT=hst_0002.pmap CALDP_HOME=/scratch NEW='a b'\nLOCAL=1\n")
    loaded = load(str(script), environ=BARE | {"CRDS_PATH": "/caller", "CRDS_CONTEXT": "hst_0001.pmap", "KEPT": "1"})
    assert (loaded.crds_path, loaded.crds_context, loaded.home) == (Path("/script"), "hst_0002.pmap", Path("/scratch"))
    environment = loaded.program_environment()
    assert (environment["NEW"], environment["KEPT"]) == ("a b", "1")
    assert "LOCAL" not in environment


def test_the_context_of_the_command_line_wins_over_all(write: Any) -> None:
    script = write("export CRDS_PATH=/x CRDS_CONTEXT=hst_0002.pmap")
    loaded = load(str(script), context="hst_0003.pmap", environ=BARE | {"CRDS_CONTEXT": "hst_0001.pmap"})
    assert loaded.crds_context == "hst_0003.pmap"


@pytest.mark.parametrize("name", ["my-config", "./my-config", "../here/my-config", "{here}/my-config"])
def test_ways_to_name_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "my-config").write_text("export CRDS_PATH=/found")
    monkeypatch.chdir(here)
    assert load(name.format(here=here), environ=BARE).crds_path == Path("/found")


def test_a_script_on_path_wins_over_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bin", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my-config").write_text(f"export CRDS_PATH=/{folder}")
    monkeypatch.chdir(tmp_path / "here")
    env = {**BARE, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{BARE['PATH']}"}
    assert load("my-config", environ=env).crds_path == Path("/bin")


def test_a_script_with_blanks_and_quotes_in_its_path(tmp_path: Path) -> None:
    script = tmp_path / "it's a $(touch x) `config`"
    script.write_text("export CRDS_PATH=/found")
    assert load(str(script), environ=BARE).crds_path == Path("/found")


@pytest.mark.parametrize("name", ["", ".", "..", "no-such-config", "./no-such-config", "/no/such/config", "a\0b"])
def test_missing_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load(name, environ=BARE)
    assert repr(name) in str(caught.value)
    assert "caldp-config-onsite" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'no cache here' >&2; return 3", "exit status 3): no cache here"),
        ("exit 3", "exit status 3"),
        ("exit 0", "my-config"),
        ("if then", "`if then'"),
        ("kill -KILL $$", "SIGKILL"),
        ("export PATH=/nowhere", "my-config"),
        ("unset CRDS_PATH", "CRDS_PATH"),
        ("export CRDS_PATH=/x CALDP_PREVIEW_JOBS=0", "CALDP_PREVIEW_JOBS='0'"),
        ("export CRDS_PATH=/x CALDP_PREVIEW_JOBS=many", "CALDP_PREVIEW_JOBS='many'"),
        ("export CRDS_PATH=/x CALDP_PREVIEW_JOBS=²", "CALDP_PREVIEW_JOBS='²'"),
    ],
)
def test_failing_script(write: Any, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(str(write(text)), environ=BARE | {"CRDS_PATH": "/caller"})
    assert words in str(caught.value)


def test_noisy_script(write: Any, capfd: pytest.CaptureFixture[str]) -> None:
    text = (
        "echo CRDS_PATH=/wrong; echo noise >&2; printf '\\377\\n'; cd /; export CRDS_PATH=/right\nX=$'a\\nb'; export X"
    )
    loaded = load(str(write(text)), environ=BARE)
    assert loaded.crds_path == Path("/right")
    assert loaded.environment["X"] == "a\nb"
    assert capfd.readouterr() == ("", "")


def test_variables_that_are_not_text_survive(write: Any) -> None:
    loaded = load(str(write("export CRDS_PATH=/x ODD=$'\\377'")), environ=BARE)
    assert os.fsencode(loaded.program_environment()["ODD"]) == b"\xff"
    assert json.loads(json.dumps(loaded.to_json()))


def test_relative_paths_are_of_the_current_directory(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(str(write("export CRDS_PATH=cache CALDP_HOME=scratch")), environ=BARE)
    assert (loaded.crds_path, loaded.home) == (tmp_path / "cache", tmp_path / "scratch")
    assert loaded.environment["CRDS_PATH"] == str(tmp_path / "cache")


@pytest.mark.parametrize("home", [{}, {"CALDP_HOME": ""}, {"CALDP_HOME": "none"}])
def test_scratch_is_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("caldp-config-onsite", environ=BARE | home).home == tmp_path


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("", False), ("2", False)]
)
def test_switches(value: str, on: bool) -> None:
    loaded = load("caldp-config-offsite", environ=BARE | {"CRDS_ALLOW_BAD_REFERENCES": value})
    assert loaded.allow_bad_references is on


# ---- where references are

FOLDERS = {
    "iref": "wfc3",
    "jref": "acs",
    "lref": "cos",
    "nref": "nicmos",
    "oref": "stis",
    "uref": "wfpc2",
    "uref_linux": "wfpc2",
}


@pytest.mark.parametrize(
    ("mode", "readonly", "divided"),
    [
        ("flat", "1", False),
        ("flat\n", "0", False),
        ("instrument", "1", True),
        ("instrument\n", "0", True),
        (None, "1", False),
        (None, "0", True),
    ],
)
def test_d23_reference_folders_follow_the_layout_of_the_cache(
    tmp_path: Path, mode: str | None, readonly: str, divided: bool
) -> None:
    if mode is not None:
        tag = tmp_path / "config" / "hst" / "ref_cache_subdir_mode"
        tag.parent.mkdir(parents=True)
        tag.write_text(mode)
    env = BARE | {"CRDS_PATH": str(tmp_path), "CRDS_READONLY_CACHE": readonly}
    top = f"{tmp_path}/references/hst/"
    assert load("caldp-config-onsite", environ=env).reference_folders() == {
        name: f"{top}{folder}/" if divided else top for name, folder in FOLDERS.items()
    }


def test_exported_reference_folders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = {"iref": "/a/b", "jref": "/a/b/", "oref": "/a/b//", "lref": "refs", "nref": ""}
    folders = load("caldp-config-onsite", environ=BARE | mine).reference_folders()
    assert folders["iref"] == folders["jref"] == folders["oref"] == "/a/b/"
    assert folders["lref"] == f"{tmp_path}/refs/"  # programs run elsewhere
    assert folders["nref"] == folders["uref_linux"] == "/grp/crds/cache/references/hst/"


# ---- secrets


@pytest.mark.parametrize("name", SECRETS)
def test_d24_secrets_go_nowhere(name: str, write: Any) -> None:
    loaded = load(str(write("export CRDS_PATH=/x")), environ=BARE | SECRETS)
    assert name not in loaded.program_environment()
    for text in (repr(loaded), str(loaded), json.dumps(loaded.to_json()), repr(loaded.program_environment())):
        assert SECRETS[name] not in text
    assert SECRETS[name] in loaded.secrets


def test_d24_secrets_of_the_script_go_nowhere(write: Any) -> None:
    loaded = load(str(write("export CRDS_PATH=/x MAST_API_TOKEN=from-script-0123")), environ=BARE)
    assert "MAST_API_TOKEN" not in loaded.environment
    assert loaded.secrets == ("from-script-0123",)


def test_d24_a_failing_script_does_not_tell_secrets(write: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(str(write('echo "token is $MAST_API_TOKEN"; return 1')), environ=BARE | SECRETS)
    assert SECRETS["MAST_API_TOKEN"] not in str(caught.value)


@pytest.mark.parametrize("url", ["https://user:s3cret-0123@crds.example.org", "https://s3cret-0123@crds.example.org"])
def test_d24_a_password_in_the_server_url_is_not_recorded(write: Any, url: str) -> None:
    loaded = load(str(write("export CRDS_PATH=/x")), environ=BARE | {"CRDS_SERVER_URL": url})
    assert "s3cret-0123" not in json.dumps(loaded.to_json()) + repr(loaded)


def test_what_is_no_secret_stays(write: Any) -> None:
    plain = {"SSH_AUTH_SOCK": "/tmp/socket", "KEYBOARD": "de", "TOKYO": "x", "COMPASS": "north"}  # noqa: S108
    loaded = load(str(write("export CRDS_PATH=/x")), environ=BARE | plain)
    assert plain.items() <= loaded.environment.items()


# ---- overrides


def test_overrides(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.fits").touch()
    loaded = load(str(write("export CRDS_PATH=/x")), overrides=("fluxtab=a=b.fits",), environ=BARE)
    assert loaded.overrides == (("FLUXTAB", tmp_path / "a=b.fits"),)


@pytest.mark.parametrize(
    "text", ["", "FLUXTAB", "FLUXTAB=", "=x.fits", "FLUX TAB=x", "TOOLONGNAME=x", "FLUXTAB=nowhere"]
)
def test_bad_overrides(text: str) -> None:
    with pytest.raises(UsageError, match="--override"):
        load("caldp-config-onsite", overrides=(text,), environ=BARE)


# ---- identity


@pytest.fixture
def loaded(write: Any) -> Config:
    return load(str(write("export CRDS_PATH=/x")), environ=BARE)


CHANGES: list[dict[str, Any]] = [
    {"script_sha256": "0"},
    {"crds_path": Path("/y")},
    {"crds_server_url": "https://other"},
    {"crds_readonly": True},
    {"crds_context": "hst_0001.pmap"},
    {"crds_store": "s3://crds"},
    {"allow_bad_references": True},
    {"overrides": (("FLUXTAB", Path("/f")),)},
    {"system_version": "1"},
    {"aws_dp_version": "1"},
    {"aws_system_version": "1"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_each_setting_that_changes_products_changes_the_identity(loaded: Config, change: dict[str, Any]) -> None:
    changed = replace(loaded, **change)
    assert changed.sha256 != loaded.sha256
    assert changed.to_json() != loaded.to_json()


def test_the_identity_is_that_of_the_settings(loaded: Config, write: Any) -> None:
    again = load(str(write("export CRDS_PATH=/x", "other-name")), environ=BARE | {"CALDP_HOME": "/z", "UNRELATED": "1"})
    assert again.sha256 == loaded.sha256
    assert load(str(write("export CRDS_PATH=/x #", "third")), environ=BARE).sha256 != loaded.sha256


def test_program_environment_takes_more(loaded: Config) -> None:
    assert loaded.program_environment(lref="/refs/")["lref"] == "/refs/"
    assert "lref" not in loaded.environment
    assert loaded.program_environment()["PYTHONUNBUFFERED"] == "1"


def test_bash_functions_are_not_passed_on(write: Any) -> None:
    loaded = load(str(write("export CRDS_PATH=/x\nf() { :; }\nexport -f f")), environ=BARE)
    assert not [name for name in loaded.environment if "BASH_FUNC" in name]


def test_without_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    script = write("export CRDS_PATH=/x")
    monkeypatch.setattr(config.os, "defpath", str(tmp_path))
    with pytest.raises(UsageError, match="install bash"):
        load(str(script), environ={"PATH": str(tmp_path)})


def onsite(**environ: str) -> Config:
    return load("caldp-config-onsite", environ={**BARE, **environ})


@pytest.mark.parametrize("end", ["\n", "\r", " "])
def test_a_token_with_a_line_end_is_the_token(end: str) -> None:
    value = "d41d8cd98f00"
    settings = onsite(MAST_API_TOKEN=f"{value}{end}")
    assert settings.mast_token == value
    assert {value, repr(f"{value}{end}")[1:-1]} <= set(settings.secrets)


def test_a_token_that_is_none() -> None:
    value = "d41d8\ncd98f00"
    with pytest.raises(UsageError) as caught:
        onsite(MAST_API_TOKEN=value)
    assert "MAST_API_TOKEN" in str(caught.value)
    assert "d41d8" not in str(caught.value)


def test_what_is_exported_is_part_of_the_settings() -> None:
    plain, told = onsite(), onsite(jref="/refs/", MVM_INCLUDE_SMALL="off", HOME="/nowhere")
    assert (plain.exported, told.exported) == ({}, {"MVM_INCLUDE_SMALL": "off", "jref": "/refs/"})
    assert plain.sha256 != told.sha256
    assert told.to_json()["exported"] == told.exported


def test_the_name_of_a_run() -> None:
    assert onsite(CALDP_RUN="0123456789ab").run == "0123456789ab"
    assert onsite().run == ""


@pytest.mark.parametrize("name", ["", "0123456789AB", "0123456789a", "0123456789abc", "../456789abc", "0123456789ab\n"])
def test_what_is_no_name_of_a_run(name: str) -> None:
    assert onsite(CALDP_RUN=name).run == ""


# ---- the image

#: What caldp-image-config exports when the caller has exported nothing.
IMAGE = {
    "CALDP_IMAGE_REPO": "caldp",
    "CALDP_IMAGE_TAG": "latest",
    "CALDP_DOCKER_IMAGE": "caldp:latest",
    "CAL_BASE_IMAGE": "python:3.11-slim-bookworm",
    "CALDP_HSTCAL": "stable",
    "CALDP_CONDA_IMAGE": "condaforge/miniforge3",
    "CALDP_DOCKER_NETWORK": "",
}


def test_the_script_of_the_image() -> None:
    subprocess.run(["bash", "-n", str(SCRIPTS / "caldp-image-config")], check=True)
    assert source("caldp-image-config", BARE, flags="-eu -o pipefail") == BARE | IMAGE
    mine = {name: f"mine-{name}" for name in IMAGE}
    assert source("caldp-image-config", BARE | mine) == BARE | mine


def test_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_image(BARE)
    wanted = ("caldp:latest", "python:3.11-slim-bookworm", "condaforge/miniforge3", "stable", "")
    assert (loaded.image, loaded.base, loaded.conda, loaded.hstcal, loaded.network) == wanted
    assert loaded.home == tmp_path
    assert loaded.environment.items() >= (BARE | IMAGE).items()


@pytest.mark.parametrize(
    ("exported", "changed"),
    [
        ({"CALDP_IMAGE_REPO": "r.example.org/caldp"}, {"image": "r.example.org/caldp:latest"}),
        ({"CALDP_IMAGE_TAG": "1"}, {"image": "caldp:1"}),
        ({"CALDP_IMAGE_REPO": "x", "CALDP_IMAGE_TAG": "y"}, {"image": "x:y"}),
        ({"CALDP_IMAGE_REPO": "x", "CALDP_DOCKER_IMAGE": "mine:2"}, {"image": "mine:2"}),
        ({"CAL_BASE_IMAGE": "debian:13"}, {"base": "debian:13"}),
        ({"CALDP_CONDA_IMAGE": "mine/conda"}, {"conda": "mine/conda"}),
        ({"CALDP_HSTCAL": "none"}, {"hstcal": "none"}),
        ({"CALDP_DOCKER_NETWORK": "host"}, {"network": "host"}),
        ({"CALDP_IMAGE_TAG": "", "CALDP_HSTCAL": "", "CAL_BASE_IMAGE": ""}, {}),
        ({"CALDP_HOME": "/scratch"}, {"home": Path("/scratch")}),
        ({"CALDP_HOME": "~/scratch", "HOME": "/somewhere"}, {"home": Path("~/scratch").expanduser()}),
        ({"CALDP_HOME": "scratch"}, {"home": Path("scratch").absolute()}),
        ({"CALDP_HOME": ""}, {}),
        ({"CALDP_HOME": "none"}, {}),
    ],
)
def test_what_the_caller_exported_wins_over_the_script_of_the_image(
    exported: dict[str, str], changed: dict[str, Any]
) -> None:
    assert load_image(BARE | exported) == replace(load_image(BARE), **changed)


def test_the_environment_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (BARE | {"CALDP_IMAGE_TAG": "mine"}).items():
        monkeypatch.setenv(name, value)
    assert load_image().image == "caldp:mine"


def test_a_home_of_nobody() -> None:
    with pytest.raises(UsageError, match="CALDP_HOME"):
        load_image(BARE | {"CALDP_HOME": "~no-such-user/x"})


@pytest.fixture
def edited(tmp_path: Path) -> Any:
    """Return what is loaded with another script of the image first on PATH."""

    def load_edited(text: str, **environ: str) -> ImageConfig:
        (tmp_path / "caldp-image-config").write_text(text)
        return load_image({**BARE, **environ, "PATH": f"{tmp_path}{os.pathsep}{BARE['PATH']}"})

    return load_edited


def test_an_edited_script_of_the_image(edited: Any) -> None:
    script = (SCRIPTS / "caldp-image-config").read_text()
    loaded = edited(script.replace(":=caldp}", ":=123456789012.dkr.ecr.eu-west-1.amazonaws.com/caldp}"))
    assert loaded.image == "123456789012.dkr.ecr.eu-west-1.amazonaws.com/caldp:latest"
    loaded = edited(f"{script}\nexport CALDP_HOME=/scratch DOCKER_HOST=unix:///mine.sock\n")
    assert (loaded.home, loaded.environment["DOCKER_HOST"]) == (Path("/scratch"), "unix:///mine.sock")


@pytest.mark.parametrize("name", ["CALDP_DOCKER_IMAGE", "CAL_BASE_IMAGE", "CALDP_CONDA_IMAGE", "CALDP_HSTCAL"])
@pytest.mark.parametrize("taken", ["unset {}", "export {}="])
def test_a_script_of_the_image_that_leaves_something_out(edited: Any, name: str, taken: str) -> None:
    script = (SCRIPTS / "caldp-image-config").read_text()
    with pytest.raises(UsageError) as caught:
        edited(f"{script}\n{taken.format(name)}\n")
    assert caught.value.message.endswith(f"caldp-image-config does not export {name}")
    assert caught.value.remedy == "put back what you took out of it"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("return 3", "exit status 3"),
        ("exit 0", "sourcing"),
        ("if then", "`if then'"),
        ('echo "it is $MAST_API_TOKEN"; return 1', "it is ***"),
    ],
)
def test_a_broken_script_of_the_image(edited: Any, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        edited(text, **SECRETS)
    assert words in caught.value.message
    assert "caldp-image-config failed (" in caught.value.message
    assert not [value for value in SECRETS.values() if value in str(caught.value)]


def test_no_script_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_image({**BARE, "PATH": os.defpath})
    assert "'caldp-image-config'" in caught.value.message
    assert "caldp-config-onsite" not in caught.value.remedy


def test_the_settings_of_the_image_do_not_show_the_environment() -> None:
    assert SECRETS["AWS_SECRET_ACCESS_KEY"] not in repr(load_image(BARE | SECRETS))
