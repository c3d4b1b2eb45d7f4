"""Pages for people: rendered here, complete without scripts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from caldp.crdserver.requests import SESSION
from caldp.crdserver.server import Observatory, Server, log
from caldp.crdserver.signin import RefusedError
from caldp.errors import CaldpError, describe

Handler = Callable[[Request], Awaitable[Response]]


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("caldp", "templates/crds"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def wants_page(request: Request) -> bool:
    """Whether a browser asks, not a client."""
    return "text/html" in request.headers.get("accept", "")


async def page(request: Request, one: Observatory, template: str, status: int = 200, **what: Any) -> Response:  # noqa: ANN401
    """Render a page of an observatory.

    Parameters
    ----------
    request : Request
        What it answers.
    one : Observatory
        Whose page.
    template : str
        File in ``templates/crds``.
    status : int
        Of HTTP.
    **what
        For the template.

    Returns
    -------
    Response
    """
    session = await run_in_threadpool(one.signin.session, request.cookies.get(SESSION, ""))
    given = {"error": "", "site": one.site, "root": f"/{one.name}", "session": session, "csrf": request.scope["csrf"]}
    text = await run_in_threadpool(_templates().get_template(template).render, **{**given, **what})
    return HTMLResponse(text, status_code=status)


def home(server: Server) -> Handler:
    """Return the page on which one chooses an observatory."""

    async def choose(request: Request) -> Response:
        observatories = [(one.name, one.site.state) for one in server.observatories.values()]
        return HTMLResponse(_templates().get_template("home.html.j2").render(observatories=observatories))

    return choose


def static() -> Route:
    """Return what pages are drawn with."""

    async def style(request: Request) -> Response:
        text = (resources.files("caldp") / "templates" / "crds" / "style.css").read_text(encoding="utf-8")
        return Response(text, media_type="text/css", headers={"cache-control": "max-age=3600"})

    return Route("/static/style.css", style)


def routes(server: Server, one: Observatory) -> list[Route]:
    """Return the pages of an observatory."""

    async def overview(request: Request) -> Response:
        return await page(request, one, "overview.html.j2", state=one.site.state, locks=one.signin.locks())

    return [Route("/", overview)]


# ---- errors


def _error(request: Request, status: int, message: str) -> Response:
    if wants_page(request):
        return HTMLResponse(_templates().get_template("error.html.j2").render(message=message), status_code=status)
    # The stock client looks for a message only in what succeeds.
    return HTMLResponse(_templates().get_template("error.html.j2").render(message=message))


async def plain_error(request: Request, error: Exception) -> Response:
    """Say what a person or a client has done wrong."""
    return _error(request, 403 if isinstance(error, RefusedError) else 400, str(error))


async def http_error(request: Request, error: Exception) -> Response:
    """Say what there is not."""
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    if wants_page(request):
        return _error(request, error.status_code, error.detail)
    return PlainTextResponse(f"{error.detail}\n", status_code=error.status_code, headers=error.headers)


async def broken(request: Request, error: Exception) -> Response:
    """Say that this is our fault."""
    if isinstance(error, CaldpError):
        return await plain_error(request, error)
    log(logging.ERROR, f"{request.method} {request.url.path}: {describe(error, '')}")
    return PlainTextResponse("the server has failed; its log says why\n", status_code=500)
