"""What requests bring: forms, cookies, and how much of it."""

from __future__ import annotations

import secrets

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request

from caldp.crdserver.signin import RefusedError
from caldp.crdserver.uploads import LARGEST_PART

#: Cookies: of a session, and against requests that a stranger's page makes.
SESSION = "crds_session"
CSRF = "csrftoken"

#: Bytes of a form without files.
_LARGEST_FORM = 1_000_000


def text(form: FormData, name: str) -> str:
    """Return a field of a form that is text; empty if there is none."""
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


async def body_of(request: Request, most: int) -> bytes:
    """Return what was sent, as long as it is not too much."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"more than {most} bytes")
        parts.append(part)
    return b"".join(parts)


async def form_of(request: Request, *, files: bool = False) -> FormData:
    """Return a form, if it comes from a page of this server."""
    limit = LARGEST_PART + _LARGEST_FORM if files else _LARGEST_FORM
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > limit:
        raise HTTPException(413, f"a form of more than {limit} bytes, or of none that are told")
    form = await request.form(max_files=100 if files else 0, max_fields=200, max_part_size=_LARGEST_FORM)
    expected, given = request.cookies.get(CSRF, ""), text(form, "csrfmiddlewaretoken")
    if not expected or not secrets.compare_digest(expected.encode(), given.encode()):
        raise RefusedError("this form does not come from a page of this server, or is too old", remedy="load it again")
    return form
