"""Records in a table of DynamoDB, for functions of AWS, however many of them run at once.

One item for each record: ``space`` and ``key`` are its key, ``value`` is its text, ``version`` its number.  The SDK
sends a request again whose answer was lost, so a write may meet its own condition broken by itself: each write carries
a word of its own, an item remembers the words of its last writes, and a write that finds its own among them was done.
For the same reason, and so that no version comes twice, a record that is deleted stays for a while as an item without
a value; DynamoDB removes those whose ``gone`` is past.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from caldp.crdserver.records import Record, checked, encode
from caldp.errors import ReferencesError, ReferencesUnavailableError
from caldp.store import ConflictError

T = TypeVar("T")

#: Attributes with the words of the last writes, newest first.
_WORDS = tuple(f"w{number}" for number in range(8))

#: Seconds for which a deleted record is remembered: longer than any write is tried.
_REMEMBERED = 30 * 86400

#: Records that are read at a time, and attempts of one request.
_PAGE, _TRIES = 500, 8

#: What DynamoDB says when it may answer later, beside errors of its own.
_PASSING = (
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ThrottlingException",
    "Throttling",
    "TransactionConflictException",
    "InternalServerError",
    "ServiceUnavailable",
)

_REMEDIES = {
    "AccessDeniedException": "allow it dynamodb:GetItem, Query and UpdateItem of that table",
    "ResourceNotFoundException": "check its name and the region, or deploy the stack again",
    "UnrecognizedClientException": "export the credentials of an account that has the table",
    "ExpiredTokenException": "sign in again",
}


class DynamoRecords:
    """Records in a table of DynamoDB.

    Parameters
    ----------
    table : str
        Its name; the partition key is ``space``, the sort key ``key``, both texts.
    aws : mapping, optional
        AWS_* variables that count instead of those of the environment.
    """

    def __init__(self, table: str, aws: Mapping[str, str] | None = None) -> None:
        self.table = table
        self._aws = dict(aws or {})
        self._lock = threading.Lock()
        self._made: Any = None

    @property
    def uri(self) -> str:
        return f"dynamodb:{self.table}"

    def get(self, space: str, key: str) -> Record | None:
        request = {"TableName": self.table, "Key": _key(space, key), "ConsistentRead": True}
        item = self._asked(lambda client: client.get_item(**request)).get("Item")
        return None if item is None or "gone" in item else _record(item)

    def put(self, space: str, key: str, value: dict[str, Any], expect: int | None = None) -> int:
        values: dict[str, Any] = {":value": {"S": encode(value)}}
        condition = "(attribute_not_exists(#version) OR attribute_exists(#gone))" if expect == 0 else ""
        if expect:
            condition = "#version = :expect AND attribute_not_exists(#gone)"
            values[":expect"] = {"N": str(expect)}
        done = self._write(_key(space, key), "#value = :value", "#gone", condition, values)
        if done is None:
            raise ConflictError(f"{space}/{key}")
        return done

    def delete(self, space: str, key: str, expect: int | None = None) -> None:
        values = {":gone": {"N": str(int(time.time()) + _REMEMBERED)}}
        condition = "attribute_exists(#version) AND attribute_not_exists(#gone)"
        if expect is not None:
            condition += " AND #version = :expect"
            values[":expect"] = {"N": str(expect)}
        done = self._write(_key(space, key), "#gone = :gone", "#value", condition, values)
        if done is None and expect is not None:
            raise ConflictError(f"{space}/{key}")

    def scan(self, space: str, after: str = "", prefix: str = "", newest: bool = False) -> Iterator[Record]:
        if after > prefix and not after.startswith(prefix):
            return
        condition, bound = "", ""
        # DynamoDB takes one condition on a key: the end that it does not know is where reading stops.
        if after and after >= prefix and not (newest and prefix):
            condition, bound = " AND #key > :bound", after
        elif prefix:
            condition, bound = " AND begins_with(#key, :bound)", prefix
        request: dict[str, Any] = {
            "TableName": self.table,
            "KeyConditionExpression": f"#space = :space{condition}",
            "FilterExpression": "attribute_not_exists(#gone)",
            "ExpressionAttributeNames": {"#space": "space", "#gone": "gone", **({"#key": "key"} if bound else {})},
            "ExpressionAttributeValues": {":space": {"S": space}, **({":bound": {"S": bound}} if bound else {})},
            "ConsistentRead": True,
            "ScanIndexForward": not newest,
            "Limit": _PAGE,
        }
        while True:
            page: dict[str, Any] = self._asked(lambda client: client.query(**request))
            for item in page["Items"]:
                record = _record(item)
                if record.key <= after or not record.key.startswith(prefix):
                    return
                yield record
            if not page.get("LastEvaluatedKey"):
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()
            self._made = None

    # ---- requests

    def _write(
        self, key: Mapping[str, Any], change: str, remove: str, condition: str, values: Mapping[str, Any]
    ) -> int | None:
        """Change an item if a condition holds; return its version, or None where it does not hold."""
        from botocore.exceptions import ClientError

        word = secrets.token_urlsafe(9)
        # Done a second time, it would undo what somebody has written in between.
        once = [f"(attribute_not_exists(#{name}) OR #{name} <> :word)" for name in _WORDS]
        # Oldest first: also where one assignment sees what the one before it has done, each word moves on by one.
        moved = [f"#{new} = if_not_exists(#{old}, :none)" for old, new in zip(_WORDS, _WORDS[1:], strict=False)]
        assigned = [*reversed(moved), f"#{_WORDS[0]} = :word", change]
        assigned.append("#version = if_not_exists(#version, :zero) + :one")
        request: dict[str, Any] = {
            "TableName": self.table,
            "Key": key,
            "UpdateExpression": f"SET {', '.join(assigned)} REMOVE {remove}",
            "ConditionExpression": " AND ".join([*once, *([condition] if condition else [])]),
            "ExpressionAttributeNames": {f"#{name}": name for name in ("value", "version", "gone", *_WORDS)},
            "ExpressionAttributeValues": {
                **values,
                **{":word": {"S": word}, ":none": {"S": "-"}, ":zero": {"N": "0"}, ":one": {"N": "1"}},
            },
            "ReturnValues": "UPDATED_NEW",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

        def act(client: Any) -> dict[str, Any]:  # noqa: ANN401 - botocore has no types
            try:
                return {"Attributes": {}, **client.update_item(**request)}
            except ClientError as error:
                if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                    raise
                return {"Item": error.response.get("Item")}

        answer = self._asked(act)
        if "Attributes" in answer:
            return int(answer["Attributes"]["version"]["N"])
        there = answer["Item"] or {}
        for since, name in enumerate(_WORDS):
            if there.get(name, {}).get("S") == word:
                return int(there["version"]["N"]) - since
        return None

    @property
    def _client(self) -> Any:  # noqa: ANN401 - botocore has no types
        with self._lock:
            if self._made is None:
                from caldp.aws import make

                retries = {"mode": "standard", "total_max_attempts": _TRIES}
                self._made = make(
                    "dynamodb", self._aws, connect_timeout=3, read_timeout=10, max_pool_connections=40, retries=retries
                )
            return self._made

    def _asked(self, act: Callable[[Any], T]) -> T:
        """Ask DynamoDB, and turn what botocore raises into an error that a reader understands."""
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

        try:
            return act(self._client)
        except ClientError as error:
            code, said = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in _PASSING or status >= 500:
                raise ReferencesUnavailableError(
                    f"{self.uri}: DynamoDB says {code}, again and again", remedy="try it again later"
                ) from error
            raise ReferencesError(
                f"{self.uri}: DynamoDB says {code}" + (f" ({said})" if code not in _REMEDIES and said else ""),
                remedy=_REMEDIES.get(code, "check the table, and what the credentials allow"),
            ) from error
        except (ConnectionError, HTTPClientError) as error:
            raise ReferencesUnavailableError(
                f"{self.uri}: DynamoDB does not answer ({_short(error)})", remedy="try it again later"
            ) from error
        except (BotoCoreError, ValueError) as error:
            raise ReferencesError(
                f"{self.uri} cannot be used with these settings of AWS ({_short(error)})",
                remedy="export AWS_REGION, and AWS_PROFILE or credentials",
            ) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:160]


def _key(space: str, key: str) -> dict[str, Any]:
    checked(space, key)
    return {"space": {"S": space}, "key": {"S": key}}


def _record(item: Mapping[str, Any]) -> Record:
    return Record(item["key"]["S"], json.loads(item["value"]["S"]), int(item["version"]["N"]))
