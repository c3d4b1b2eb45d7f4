"""A ministack whose AWS Batch runs jobs.

Started by ``tests/aws.py`` with the Python that ministack is installed for, not the one of the tests.  Its address and
all else about it is in the environment, as ministack wants it.  ``FAKE_BATCH_LAMBDA`` is a folder that its Lambda
functions find on their path.

Five names that are ministack's own affair are used, so its version is pinned: ``batch._DISPATCH`` and ``batch.reset``,
``cloudformation.provisioners._RESOURCE_HANDLERS``, ``eventbridge._put_events`` and ``app.app``.

What tests say to the engine goes to ``/_test/batch/``: ``switches``, ``stats``, ``reclaim``, ``forget``, ``outcomes``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[3])

from ministack import app as ministack  # noqa: E402
from ministack.core import responses  # noqa: E402
from ministack.services import batch, cloudwatch_logs, eventbridge  # noqa: E402
from ministack.services.cloudformation import provisioners  # noqa: E402

from tests.fakes.aws_batch.api import Api, ClientError, LostReplyError, ThrottledError  # noqa: E402
from tests.fakes.aws_batch.engine import Engine  # noqa: E402
from tests.fakes.aws_batch.resources import handlers  # noqa: E402

Handler = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]

ACCOUNT, REGION = "000000000000", "us-east-1"
_CONTROL = "/_test/batch/"


def _here() -> None:
    """Make this thread one that works for the account: ministack asks the thread."""
    responses.set_request_account_id(ACCOUNT)
    responses.set_request_region(REGION)


def deliver(detail: str, resources: list[str]) -> None:
    """Put an event on the bus, as only AWS itself may."""
    _here()
    if not eventbridge._rules.all_values():
        return
    entry = {"Source": "aws.batch", "DetailType": "Batch Job State Change", "Detail": detail, "Resources": resources}
    eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)


def log(group: str, stream: str, lines: list[str]) -> None:
    """Add lines to a log, and make it if it is new."""
    _here()
    if group not in cloudwatch_logs._log_groups:
        cloudwatch_logs._create_log_group({"logGroupName": group})
    cloudwatch_logs._create_log_stream({"logGroupName": group, "logStreamName": stream})  # or is refused: it is there
    at = int(time.time() * 1000)
    events = [{"timestamp": at, "message": line} for line in lines]
    cloudwatch_logs._put_log_events({"logGroupName": group, "logStreamName": stream, "logEvents": events})


def surroundings() -> Mapping[str, str]:
    """Return what tells a job where AWS is."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{os.environ['GATEWAY_PORT']}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _answer(status: int, body: Mapping[str, Any], kind: str = "") -> tuple[int, dict[str, str], bytes]:
    headers = {"Content-Type": "application/json", **({"x-amzn-ErrorType": kind} if kind else {})}
    return status, headers, json.dumps(body).encode()


def _handler(api: Api, operation: str) -> Handler:
    def handle(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        try:
            return _answer(200, api.call(operation, request))
        except ClientError as error:
            return _answer(400, {"message": str(error)}, "ClientException")
        except ThrottledError as error:
            return _answer(429, {"message": str(error)}, "TooManyRequestsException")
        except LostReplyError as error:
            return _answer(500, {"message": str(error)}, "ServerException")

    return handle


def control(engine: Engine, what: str, request: Any) -> tuple[int, Any]:
    """Do what a test wants; status and answer."""
    if what == "switches":
        try:
            engine.set(request)
        except TypeError as error:
            return 400, str(error)
        return 200, {}
    if what == "stats":
        return 200, engine.stats()
    if what == "reclaim":
        return 200, engine.reclaim(request["job"], request["instance"], request["notice"])
    if what == "forget":
        return 200, engine.forget(request["job"])
    if what == "outcomes":
        with engine.lock:
            engine.outcomes = list(request)
        return 200, {}
    return 404, f"there is nothing at {_CONTROL}{what}"


def with_control(engine: Engine, inner: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return an application that takes the tests' own requests and leaves the others to ministack."""

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_CONTROL):
            await inner(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        # Not in the loop: ending a job takes a moment.
        status, answer = await asyncio.to_thread(
            control, engine, scope["path"].removeprefix(_CONTROL), json.loads(body or b"null")
        )
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return application


def main() -> None:
    """Put the engine in, and serve."""
    engine = Engine(deliver, log, surroundings, ACCOUNT, REGION)
    api = Api(engine)
    batch._DISPATCH.clear()
    batch._DISPATCH.update({f"/v1/{name.lower()}": _handler(api, name) for name in api.operations})
    forget = batch.reset

    def reset() -> None:
        forget()
        engine.reset()

    batch.reset = reset
    ministack._loaded_modules["batch"] = batch
    provisioners._RESOURCE_HANDLERS.update(handlers(api))
    ministack.app = with_control(engine, ministack.app)
    if folder := os.environ.get("FAKE_BATCH_LAMBDA"):
        os.environ["PYTHONPATH"] = folder  # for the processes it starts: this one has its modules
    sys.argv[1:] = []
    ministack.main()


if __name__ == "__main__":
    main()
