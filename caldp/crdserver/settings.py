"""What a server of CRDS goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caldp.errors import UsageError

#: Served each under its own path.
OBSERVATORIES = ("hst", "jwst")

_PREFIX = "CALDP_CRDS_"


@dataclass(frozen=True)
class Settings:
    """What a server of CRDS goes by.

    Attributes
    ----------
    store : str
        Where rules, references and all larger things are: ``file:<directory>`` or ``s3://bucket/prefix``.
    records : str
        Where small facts are: ``sqlite:<file>`` or ``dynamodb:<table>``.
    url : str
        What clients call it, without the path of an observatory: ``http://localhost:8001``.
    work : Path
        A folder of this machine for caches and scratch.
    jobs : str
        Who does heavy work: ``local`` (processes of this machine) or ``lambda:<function>``.
    inline : int
        Replies of more bytes than this are fetched by a second request.
    lock_seconds : float
        How long an instrument stays locked after the last thing that its user did.
    archive : str
        ``none``: what is confirmed is archived; ``manifest``: once an archive has taken it (see ``archive``).
    largest_upload : int
        Bytes of one file.
    mast : str
        Address that is asked whose a token is that is none of ours; empty for nobody.
    campaigns : str
        Where campaigns of affected datasets go: ``file:<directory>``, or the bucket of a deployment; empty for none.
    campaign_input : str
        Where their raw data are; by default as the deployment, or the campaign, has it.
    campaign_config : str
        Config script of those that run on this machine.
    """

    store: str
    records: str
    url: str
    work: Path
    jobs: str = "local"
    inline: int = 4_000_000
    lock_seconds: float = 4 * 3600
    archive: str = "none"
    largest_upload: int = 20_000_000_000
    mast: str = ""
    campaigns: str = ""
    campaign_input: str = ""
    campaign_config: str = "caldp-config-offsite"

    def __post_init__(self) -> None:
        if self.archive not in ("none", "manifest"):
            raise UsageError(f"{self.archive!r} is no way to archive", remedy="write none or manifest")
        if self.jobs != "local" and not self.jobs.startswith("lambda:"):
            raise UsageError(f"{self.jobs!r} does no jobs", remedy="write local or lambda:<function>")

    @property
    def secure(self) -> bool:
        """Whether clients come by https."""
        return self.url.startswith("https://")


def from_environment(environ: Mapping[str, str]) -> Settings:
    """Read the settings of a function of AWS.

    Parameters
    ----------
    environ : mapping
        Its environment: ``CALDP_CRDS_STORE``, ``_RECORDS``, ``_URL``, ``_JOBS``, ``_WORK``, ``_INLINE``,
        ``_LOCK_SECONDS``, ``_ARCHIVE``, ``_LARGEST_UPLOAD``, ``_MAST``, ``_CAMPAIGNS``, ``_CAMPAIGN_INPUT``.

    Returns
    -------
    Settings

    Raises
    ------
    UsageError
        If one is missing or makes no sense.
    """
    given = {n.removeprefix(_PREFIX).lower(): text for n, text in environ.items() if n.startswith(_PREFIX) and text}
    try:
        return Settings(
            store=given["store"],
            records=given["records"],
            url=given.get("url", "").rstrip("/"),
            work=Path(given.get("work", "/tmp/crds")),  # noqa: S108 - the only place where a function may write
            jobs=given.get("jobs", "local"),
            inline=int(given.get("inline", Settings.inline)),
            lock_seconds=int(given.get("lock_seconds", Settings.lock_seconds)),
            archive=given.get("archive", "none"),
            largest_upload=int(given.get("largest_upload", Settings.largest_upload)),
            mast=given.get("mast", ""),
            campaigns=given.get("campaigns", ""),
            campaign_input=given.get("campaign_input", ""),
        )
    except KeyError as error:
        name = f"CALDP_CRDS_{str(error.args[0]).upper()}"
        raise UsageError(f"{name} is not set", remedy=f"export {name}=...") from error
    except ValueError as error:
        raise UsageError(f"CALDP_CRDS_*: {error}", remedy="write a number of bytes or seconds") from error
