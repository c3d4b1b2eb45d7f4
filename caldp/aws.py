"""Clients of AWS: by whose credentials, in which region, at which endpoint.

boto3's AWS_* variables mean what they always mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Variables that botocore would read from the environment only; files come before what is in them.
_SETTINGS = {
    "AWS_CONFIG_FILE": "config_file",
    "AWS_SHARED_CREDENTIALS_FILE": "credentials_file",
    "AWS_PROFILE": "profile",
    "AWS_CA_BUNDLE": "ca_bundle",
}


def session_of(aws: Mapping[str, str]) -> Any:  # noqa: ANN401 - botocore has no types
    """Make a session, with the profile and credentials of AWS_* variables that count instead of the environment's."""
    import botocore.session

    # Of itself botocore does not know AWS_REGION.
    session = botocore.session.get_session({"region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)})
    for name, setting in _SETTINGS.items():
        # A profile of the environment gives way to keys of the environment; one that is set here would not.
        if (value := aws.get(name)) and value != session.get_config_variable(setting):
            session.set_config_variable(setting, value)
    if "AWS_ACCESS_KEY_ID" in aws and "AWS_SECRET_ACCESS_KEY" in aws:
        token = aws.get("AWS_SESSION_TOKEN") or None
        session.set_credentials(aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"], token)
    return session


def make(
    service: str,
    aws: Mapping[str, str],
    *,
    session: Any = None,  # noqa: ANN401 - botocore has no types
    region: str = "",
    otherwise: str = "",
    **options: Any,  # noqa: ANN401 - as botocore has them
) -> Any:  # noqa: ANN401 - botocore makes its class at run time
    """Make a client.

    Parameters
    ----------
    service : str
        For example ``batch``.
    aws : mapping
        AWS_* variables that count instead of those of the environment.
    session : botocore session, optional
        By default one of these variables.
    region : str, optional
        Counts more than what the variables say.
    otherwise : str, optional
        The region where nobody says any.
    **options
        Of ``botocore.config.Config``.

    Returns
    -------
    botocore client

    Raises
    ------
    botocore.exceptions.BotoCoreError, ValueError
        If the settings make no sense.
    """
    from botocore.config import Config

    session = session or session_of(aws)
    said = region or aws.get("AWS_REGION") or aws.get("AWS_DEFAULT_REGION") or session.get_config_variable("region")
    endpoint = aws.get(f"AWS_ENDPOINT_URL_{service.upper()}") or aws.get("AWS_ENDPOINT_URL")
    return session.create_client(
        service, region_name=said or otherwise or None, endpoint_url=endpoint or None, config=Config(**options)
    )
