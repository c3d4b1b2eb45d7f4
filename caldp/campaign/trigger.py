"""Lists that arrive on AWS, dropped or sent, become campaigns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from caldp.campaign import lists, observe
from caldp.campaign.accept import accept, draw, reply
from caldp.campaign.control import Control
from caldp.campaign.letters import REPLAYED
from caldp.campaign.lists import DatasetList, Options
from caldp.campaign.stack import Stack, log
from caldp.dataset import Dataset
from caldp.errors import CaldpError, UsageError
from caldp.store import Overwrite, Store, parse_uri

#: What batches are not called: folders of other things are beside them.
RESERVED = ("control", "data", "messages", observe.FOLDER)


def take(stack: Stack, event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make campaigns of what an event says.

    Parameters
    ----------
    stack : Stack
        The deployment.
    event : mapping
        A request, or the news that lists were dropped; see ``lists``.

    Returns
    -------
    list of dict
        A reply for each list; ``error`` in it says why there is no campaign.

    Raises
    ------
    UsageError
        If it is a request, and it makes no sense.
    """
    if "datasets" in event:
        listed = lists.of_mapping({name: value for name, value in event.items() if name != REPLAYED})
        return [_begin(stack, listed, "", "")]
    found = lists.placed(event)
    if not found and "Records" not in event and "detail" not in event:
        raise UsageError("the request names no datasets", remedy='send {"datasets": [...]}, or drop a list')
    return list(_dropped(stack, found))


def _dropped(stack: Stack, found: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for bucket, key in found:
        place = stack.store(f"s3://{bucket}")
        blob = place.get(key)
        if blob is None:
            log.warning("%s is not there any more", place.url(key))
            continue
        name = PurePosixPath(key).name
        try:
            yield _begin(stack, lists.read(blob.data, name), name.partition(".")[0], blob.etag)
        except CaldpError as error:
            if error.retriable:
                raise  # it comes again
            # The same list would fail again: whoever dropped it finds out beside it.
            log.error("%s: %s", place.url(key), error)
            refusal = str(PurePosixPath(key).parent.parent / "refused" / f"{name}.txt")
            place.put(refusal, f"{error}\n".encode(), Overwrite())
            yield {"list": place.url(key), "error": str(error)}


def _begin(stack: Stack, listed: DatasetList, stem: str, etag: str) -> dict[str, Any]:
    options = Options.of(listed.options, output=stack.deployment.output)
    parent = options.output.rstrip("/")
    return begin(stack, listed, options, f"{parent}/{lists.batch_name(options, stem, etag, listed.datasets)}")


def begin(stack: Stack, listed: DatasetList, options: Options, output: str) -> dict[str, Any]:
    """Make a campaign of a list, and have it submitted.

    Parameters
    ----------
    stack : Stack
        The deployment.
    listed : DatasetList
        The datasets.
    options : Options
        What is asked for.
    output : str
        URI of the batch directory.

    Returns
    -------
    dict
        The reply.

    Raises
    ------
    UsageError
        If it makes no sense, or the deployment does not allow it.
    """
    deployment = stack.deployment
    lists.check_allowed(
        options,
        buckets=deployment.buckets,
        job_definitions=set(deployment.job_definitions.values()),
        job_queues=set(deployment.job_queues.values()),
    )
    _check_reachable(options)
    store = place_of(stack, output)
    batch = Control(store).name
    observed = observe.known(stack.place(store.uri), {Dataset.parse(name).instrument for name in listed.datasets})
    if options.dry_run:
        drawn = draw(store, listed, options, stack.settings, observed)
        told = reply(batch, listed, drawn, drawn.plan.submit_jobs)
        return {**drawn.plan.to_json(), **told, "output": store.uri, "dry_run": True, "resumed": False}
    accepted = accept(store, listed, options, stack.settings, observed, runner="aws", deployment=deployment.name)
    stack.enter(store.uri)
    # A repetition sends them again: whoever was killed may not have come so far, and no shard is submitted twice.
    stack.send(deployment.shard_queue, ({"output": store.uri, "shard": name} for name in accepted.shards))
    return {**accepted.reply, "output": store.uri, "resumed": accepted.resumed}


def place_of(stack: Stack, output: str) -> Store:
    """Open a place for a batch; UsageError if the deployment can have none there, or none of that name."""
    store = stack.output(output.rstrip("/"))
    lists.checked_name(Control(store).name)
    if taken := set(store.uri.split("/")[3:]) & set(RESERVED):
        raise UsageError(
            f"no batch can be called {min(taken)}: beside batches that is a folder", remedy="choose another"
        )
    return store


def _check_reachable(options: Options) -> None:
    """Refuse inputs and configs that only whoever asks has: jobs run elsewhere."""
    if options.input and parse_uri(options.input)[0] == "file":
        raise UsageError(
            f"jobs on AWS cannot read {options.input}", remedy="put the data into a bucket, or take astroquery:"
        )
    if "/" in options.config:
        raise UsageError(f"jobs on AWS cannot read {options.config}", remedy="name a config script of the image")
