"""JSON-RPC as the client of crds speaks it."""

from __future__ import annotations

import html
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from caldp.errors import CaldpError, InputError

#: Bytes of a call; the largest asks for 1,000 headers.
LARGEST_CALL = 8_000_000

#: Characters of the id of a call.
_LONGEST_ID = 200

Method = Callable[..., Any]


def answer(body: bytes, methods: Mapping[str, Method], failed: Callable[[str, Exception], None]) -> dict[str, Any]:
    """Answer one call.

    Parameters
    ----------
    body : bytes
        The call.
    methods : mapping
        {name: function}.
    failed : callable
        Told the method and the exception when one fails that nobody expected.

    Returns
    -------
    dict
        The reply: it has an ``error`` or a ``result``, and always both keys.
    """
    try:
        call = json.loads(body)
        called, name, params = call.get("id"), call.get("method"), call.get("params", [])
        if len(str(called)) > _LONGEST_ID:
            raise ValueError("an id that long is none")
    except (ValueError, AttributeError, RecursionError):
        return _reply(None, None, "this is no call of JSON-RPC")
    try:
        if not isinstance(name, str) or name not in methods:
            raise InputError(f"there is no method {str(name)[:60]!r}")
        return _reply(called, _call(methods[name], name, params), None)
    except CaldpError as error:
        return _reply(called, None, error.message)
    except UnicodeEncodeError:
        return _reply(called, None, f"{name}: half a character is no text")
    except Exception as error:  # noqa: BLE001 - the client has no other way to hear of it
        failed(str(name), error)
        return _reply(called, None, f"{name} failed: {type(error).__name__}")


def _call(method: Method, name: str, params: Any) -> Any:  # noqa: ANN401 - as JSON has it
    if not isinstance(params, Sequence | Mapping) or isinstance(params, str):
        raise InputError(f"{name}: parameters are a list or an object")
    try:
        bound = (
            inspect.signature(method).bind(**params)
            if isinstance(params, Mapping)
            else inspect.signature(method).bind(*params)
        )
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
    hints = get_type_hints(method)
    for parameter, value in bound.arguments.items():
        if parameter in hints and not _fits(value, hints[parameter]):
            raise InputError(f"{name}: {parameter} is not what it should be")
    return method(*bound.args, **bound.kwargs)


def _fits(value: Any, hint: Any) -> bool:  # noqa: ANN401 - as JSON has it
    """Whether a value is of the type that a method has declared."""
    if hint is Any:
        return True
    of, within = get_origin(hint), get_args(hint)
    if of in (Union, UnionType):
        return any(_fits(value, one) for one in within)
    if of is None:
        return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if isinstance(value, str) or not isinstance(value, of):
        return False
    values, each = (value.values(), within[1]) if issubclass(of, Mapping) else (value, within[0])
    return all(_fits(one, each) for one in values)


def written(reply: Mapping[str, Any]) -> bytes:
    """Return a reply as it is sent."""
    return json.dumps(reply, separators=(",", ":")).encode()


def _reply(called: Any, result: Any, error: str | None) -> dict[str, Any]:  # noqa: ANN401 - as JSON has it
    # The client undoes the escapes of a message, and looks into nothing but the message.
    said = (
        None
        if error is None
        else {
            "name": "OtherError",
            "message": html.escape(f"OtherError: {error}", quote=False),
            "code": 500,
            "data": None,
        }
    )
    return {"jsonrpc": "1.0", "id": called, "error": said, "result": result}
