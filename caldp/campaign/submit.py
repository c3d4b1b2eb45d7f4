"""Submit shards to AWS Batch, each exactly once, whoever is killed and whatever is delivered twice.

A claim, which only one can create, says that a shard is being submitted.  The statuses say which of its datasets are
part of it: one that an operator has cancelled meanwhile, or that is part of another shard, is left out.  The job has
the name of its shard, so that one whose id was never written down is found again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from caldp import messages
from caldp.batch import in_threads
from caldp.campaign import transitions
from caldp.campaign.control import SUBMITTED, Control, claim_key, manifest_key
from caldp.campaign.deployment import Deployment
from caldp.campaign.jobs import Ask, Jobs, job_name
from caldp.campaign.lists import Options
from caldp.campaign.settings import Settings
from caldp.campaign.shards import Line, jsonl, rescue_shards
from caldp.errors import OutputError, UsageError
from caldp.messages import STATES
from caldp.store import ConflictError, Create, Store, Update

#: Seconds after which a job that cannot be found by its name was never submitted.
SETTLED = 600.0

#: What a claim says when no dataset of its shard was left to be submitted.
NOTHING = "nothing"


class NotYetError(Exception):
    """A shard may be in the hands of somebody else, or was a moment ago: it must be tried again later."""


@dataclass(frozen=True)
class Submitted:
    """What became of a shard.

    Attributes
    ----------
    shard : str
        Its name.
    job : str
        Id of its job; ``NOTHING`` when no dataset was left.
    datasets : int
        How many were submitted with it just now.
    new : bool
        Whether it was submitted just now.
    """

    shard: str
    job: str
    datasets: int = 0
    new: bool = False


class Submitter:
    """Submits the shards of one batch.

    Parameters
    ----------
    control : Control
        The batch.
    settings : Settings
        Say what the rungs are.
    deployment : Deployment
        Says where jobs are queued.
    jobs : Jobs
        Those of AWS Batch.
    """

    def __init__(self, control: Control, settings: Settings, deployment: Deployment, jobs: Jobs) -> None:
        self._control, self._settings, self._deployment, self._jobs = control, settings, deployment, jobs
        self._store = control.store

    def submit(self, shard: str) -> Submitted:
        """Submit a shard, unless it was.

        Parameters
        ----------
        shard : str
            Its name.

        Returns
        -------
        Submitted

        Raises
        ------
        NotYetError
            If somebody else may be doing it.
        InputError
            If its manifest is missing, or damaged.
        """
        lines = self._control.lines(shard)
        options = Options.from_json(self._control.request()["options"])
        queue, definition = self._place(lines[0], options)
        claim, etag = self._claim(shard, queue)
        if claim["job"]:
            return Submitted(shard, claim["job"])
        mine = self._take(shard, lines)
        job = NOTHING
        if mine:
            job = self._jobs.submit(self._ask(shard, lines, mine, options, queue, definition))
        self._settle(shard, {**claim, "job": job, "datasets": len(mine), "submitted": messages.now()}, etag)
        return Submitted(shard, job, len(mine), new=True)

    def _claim(self, shard: str, queue: str) -> tuple[dict[str, Any], str]:
        """Claim a shard; return the claim, with the id of its job if there is one, and its tag."""
        now = self._store.clock()
        # No two claims are alike: who repeats a put whose answer was lost must know his own.
        mine = {"shard": shard, "claimed": now.isoformat(timespec="milliseconds"), "by": os.urandom(8).hex(), "job": ""}
        try:
            return mine, self._store.put(claim_key(shard), _body(mine), Create())
        except ConflictError:
            claim, etag = read_claim(self._store, shard)
        if claim is None:
            raise NotYetError(f"{shard}: its claim has gone")
        if claim["job"]:
            return claim, etag
        if found := self._jobs.find(job_name(shard, self._store.uri), queue):
            claim |= {"job": str(found[0]["jobId"]), "submitted": messages.now()}
            self._settle(shard, claim, etag)
            return claim, etag
        if (now - datetime.fromisoformat(claim["claimed"])).total_seconds() < SETTLED:
            raise NotYetError(f"{shard}: it may be being submitted by somebody else")
        try:  # under the same claim, and only one of those who find it may
            return mine, self._store.put(claim_key(shard), _body(mine), Update(etag))
        except ConflictError as error:
            raise NotYetError(f"{shard}: somebody else submits it") from error

    def _settle(self, shard: str, claim: Mapping[str, Any], etag: str) -> None:
        try:
            self._store.put(claim_key(shard), _body(claim), Update(etag))
        except ConflictError:
            there, _ = read_claim(self._store, shard)
            if there is None or there["job"] != claim["job"]:
                raise NotYetError(f"{shard}: somebody else has submitted it, too") from None

    def _take(self, shard: str, lines: list[Line]) -> list[Line]:
        """Say in the statuses which datasets are part of the shard, and return those."""
        taken = in_threads(lambda line: self._is_taken(shard, line), lines)
        return [line for line, is_mine in zip(lines, taken, strict=True) if is_mine]

    def _is_taken(self, shard: str, line: Line) -> bool:
        stored = transitions.hand_over(self._store, line, shard)
        # Not later: a job of it was seen already, so that the shard was submitted, although nobody wrote that down.
        return (stored.attempt, stored.shard, stored.state) == (line.attempt, shard, "submitted")

    def _ask(
        self, shard: str, lines: list[Line], mine: list[Line], options: Options, queue: str, definition: str
    ) -> Ask:
        output = self._store.uri
        key = manifest_key(shard)
        if mine != lines:
            content = jsonl(mine)
            key = f"{SUBMITTED}/{shard}-{hashlib.sha256(content).hexdigest()[:8]}.jsonl"
            self._control.put_once(key, content)
        manifest, line = self._store.url(key), mine[0]
        what = line.dataset if len(mine) == 1 else f"@{manifest}"
        command = ["caldp-process-aws", output, what, "--input", options.input, "--config", options.config]
        command += ["--context", options.context] if options.context else []
        return Ask(
            name=job_name(shard, output),
            queue=queue,
            definition=definition,
            command=tuple(command),
            size=len(mine),
            time_limit=line.time_limit,
            share=options.share,
            parameters={
                "dataset": what,
                "manifest": "" if len(mine) == 1 else manifest,
                "s3_output_path": output,
                "attempt": str(line.attempt),
            },
            environment={"CALDP_ATTEMPT": str(line.attempt)} if len(mine) == 1 else {},
            tags={"batch": self._control.name, "deployment": self._deployment.name},
        )

    def _place(self, line: Line, options: Options) -> tuple[str, str]:
        """Return queue and definition of the jobs of a line."""
        known = self._deployment
        try:
            queue = options.job_queue or known.job_queues[line.rung]
            return queue, options.job_definition or known.job_definitions[line.rung]
        except KeyError:
            raise UsageError(
                f"{self._deployment.name} has no queue for the memory rung {line.rung}", remedy="deploy it again"
            ) from None

    def regroup(self, datasets: list[tuple[str, int]]) -> list[str]:
        """Put datasets that are to be tried again into shards.

        Parameters
        ----------
        datasets : list of (str, int)
            Names, and the attempts that were placed.

        Returns
        -------
        list of str
            The shards to submit: new ones, and those that datasets are part of already, although nobody may have
            submitted these to the end.
        """
        lines, begun = [], set()
        datasets = list(dict.fromkeys(datasets))
        statuses = self._control.statuses(name for name, _ in datasets)
        for (name, attempt), status in zip(datasets, statuses, strict=True):
            if status is None or status.attempt != attempt or STATES[status.state][0] > STATES["submitted"][0]:
                continue
            if status.state == "placed":
                rung = self._settings.rung(status.rung)
                lines.append(Line(name, attempt, rung.name, rung.vcpus, status.time_limit, status.reason))
            elif status.shard:
                begun.add(status.shard)
        shards = rescue_shards(self._control.name, lines, self._settings)
        for shard in shards:
            self._control.write_manifest(shard)
        claims = {shard: read_claim(self._store, shard)[0] for shard in begun}
        unfinished = [shard for shard, claim in claims.items() if claim is None or not claim["job"]]
        return [*(shard.name for shard in shards), *sorted(unfinished)]


def read_claim(store: Store, shard: str) -> tuple[dict[str, Any] | None, str]:
    """Read the claim of a shard, and its tag; None when there is none; OutputError when it is damaged."""
    blob = store.get(claim_key(shard))
    if blob is None:
        return None, ""
    try:
        claim = dict(json.loads(blob.data))
        datetime.fromisoformat(claim["claimed"])
        return {**claim, "job": str(claim["job"])}, blob.etag
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{store.url(claim_key(shard))} is no claim ({error})", remedy="remove it") from error


def _body(claim: Mapping[str, Any]) -> bytes:
    return json.dumps(claim, indent=1).encode() + b"\n"
