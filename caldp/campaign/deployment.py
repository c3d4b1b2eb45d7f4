"""What functions and commands know of a stack on AWS: where batches go, where work is sent, what jobs are called."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from caldp.campaign import settings
from caldp.campaign.settings import Settings
from caldp.errors import UsageError
from caldp.store import parse_uri

#: What a deployment may be called.
NAME = r"[a-z][a-z0-9-]{0,30}[a-z0-9]"

#: Environment variable of each function.
VARIABLE = "CALDP_DEPLOYMENT"

#: Namespace of the functions' metrics in CloudWatch; the deployment is their dimension ``service``.
NAMESPACE = "CALDP"

#: Metrics that alarms look at: datasets that ended well and not; those that are tried again; age of the oldest job that
#: waits for a host, seconds; campaigns that are paused.
PROCESSED, ERRORS, RETRIES, RUNNABLE_AGE, PAUSES = "Processed", "Errors", "Retries", "RunnableAge", "Pauses"

_REMEDY = "deploy the stack again"


def parameter(name: str) -> str:
    """Return what the parameter of AWS Systems Manager is called that describes a deployment."""
    return f"/caldp/{name}/deployment"


def settings_parameter(name: str) -> str:
    """Return what the parameter is called that holds what the campaigns of a deployment go by."""
    return f"/caldp/{name}/settings"


@dataclass(frozen=True)
class Deployment:
    """A stack.

    Attributes
    ----------
    name : str
        For example ``caldp-dev``.
    buckets : tuple of str
        Where outputs may go.
    output : str
        ``s3://bucket[/prefix]``: the parent of batches, where nobody says another.
    placed : str
        Prefix of all keys that functions and jobs may write, and of lists that are dropped, with a slash at its end; or
        empty.
    list_queue, shard_queue, event_queue, rescue_queue : str
        URLs of the queues of lists, of shards to be submitted, of ends of jobs, of datasets to be tried again.
    dead_queues : mapping
        URLs of the queues of messages that nobody could handle, by ``lists``, ``shards``, ``events``, ``rescues``; and
        of ``invocations`` that failed.
    job_queues, job_definitions : mapping
        Their names, by step of the memory ladder.
    log_group : str
        Where jobs log.
    """

    name: str
    buckets: tuple[str, ...]
    output: str
    list_queue: str
    shard_queue: str
    rescue_queue: str
    job_queues: Mapping[str, str]
    job_definitions: Mapping[str, str]
    log_group: str
    placed: str = ""
    event_queue: str = ""
    dead_queues: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        mappings = {name: dict(value) for name, value in plain.items() if isinstance(value, Mapping)}
        return {**plain, "buckets": list(self.buckets), **mappings}

    @classmethod
    def from_json(cls, record: Any) -> Deployment:  # noqa: ANN401 - whatever JSON holds
        """Read the JSON form; unknown fields are ignored.

        Parameters
        ----------
        record : mapping
            As ``to_json`` returns it.

        Returns
        -------
        Deployment

        Raises
        ------
        ValueError
            If it is no description of a stack; says what is wrong.
        """
        if not isinstance(record, Mapping):
            raise ValueError("it is no mapping")
        given: dict[str, Any] = {}
        for wanted in fields(cls):
            if wanted.name not in record:
                if wanted.name in _OPTIONAL:
                    continue
                raise ValueError(f"{wanted.name} is missing")
            value = record[wanted.name]
            if wanted.name == "buckets":
                good = isinstance(value, list) and value and all(isinstance(item, str) and item for item in value)
                value = tuple(value) if good else value
            elif wanted.name in _MAPPINGS:
                good = isinstance(value, Mapping) and all(isinstance(v, str) and v for v in value.values())
                value = MappingProxyType(dict(value)) if good else value
            else:
                good = isinstance(value, str) and (bool(value) or wanted.name in _OPTIONAL)
            if not good:
                raise ValueError(f"{wanted.name} is {value!r}")
            given[wanted.name] = value
        found = cls(**given)
        found._check()
        return found

    def _check(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise ValueError(f"name is {self.name!r}")
        if not self.job_queues or self.job_queues.keys() != self.job_definitions.keys():
            raise ValueError("each step of the memory ladder has a job queue and a job definition")
        try:
            scheme, rest = parse_uri(self.output)
        except UsageError as error:
            raise ValueError(f"output: {error.message}") from error
        if scheme != "s3" or rest.removeprefix("//").partition("/")[0] not in self.buckets:
            raise ValueError(f"output {self.output!r} is in none of its buckets")

    @classmethod
    def parse(cls, text: str, where: str) -> Deployment:
        """Read the text of a parameter or variable.

        Parameters
        ----------
        text : str
            JSON.
        where : str
            What it comes from, for messages.

        Returns
        -------
        Deployment

        Raises
        ------
        UsageError
            If it makes no sense.
        """
        try:
            return cls.from_json(json.loads(text))
        except ValueError as error:  # one that JSON raises is one, too
            raise UsageError(f"{where} describes no deployment ({error})", remedy=_REMEDY) from error

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Deployment:
        """Return the deployment that a function is part of.

        Parameters
        ----------
        environ : mapping
            The function's environment.

        Returns
        -------
        Deployment

        Raises
        ------
        UsageError
            If the variable ``CALDP_DEPLOYMENT`` is missing, or makes no sense.
        """
        if not environ.get(VARIABLE):
            raise UsageError(f"there is no {VARIABLE} in the environment", remedy=_REMEDY)
        return cls.parse(environ[VARIABLE], VARIABLE)

    @classmethod
    def fetch(cls, name: str, ssm: Any) -> Deployment:  # noqa: ANN401 - boto3 has no types
        """Return a deployment by name, as a command finds it.

        Parameters
        ----------
        name : str
            For example ``caldp-dev``.
        ssm : boto3 client
            Of AWS Systems Manager, for the account and region of the stack.

        Returns
        -------
        Deployment

        Raises
        ------
        UsageError
            If there is none of that name, AWS does not tell, or what it tells makes no sense.
        """
        return cls.parse(_fetched(name, parameter(name), ssm), parameter(name))


def fetch_settings(name: str, ssm: Any) -> Settings:  # noqa: ANN401 - boto3 has no types
    """Return what the campaigns of a deployment go by, as a command finds it; UsageError as ``Deployment.fetch``."""
    where = settings_parameter(name)
    try:
        return settings.from_json(json.loads(_fetched(name, where, ssm)))
    except ValueError as error:
        raise UsageError(f"{where} has no settings ({error})", remedy=_REMEDY) from error


def _fetched(name: str, where: str, ssm: Any) -> str:  # noqa: ANN401 - boto3 has no types
    """Return the text of a parameter of a deployment."""
    from botocore.exceptions import BotoCoreError, ClientError

    if not re.fullmatch(NAME, name):
        raise UsageError(f"{name!r} is no name of a deployment", remedy="give for example caldp-dev")
    try:
        return str(ssm.get_parameter(Name=where)["Parameter"]["Value"])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "ParameterNotFound":
            raise UsageError(
                f"there is no deployment {name} in {ssm.meta.region_name}",
                remedy="check its name, the region (AWS_DEFAULT_REGION), the account (AWS_PROFILE), or deploy it",
            ) from error
        raise UsageError(f"the deployment {name} cannot be read ({error})", remedy=_CREDENTIALS) from error
    except BotoCoreError as error:
        raise UsageError(f"the deployment {name} cannot be read ({error})", remedy=_CREDENTIALS) from error


_OPTIONAL = ("placed", "event_queue", "dead_queues")
_MAPPINGS = ("job_queues", "job_definitions", "dead_queues")
_CREDENTIALS = "check the credentials, the region, and that they allow ssm:GetParameter"
