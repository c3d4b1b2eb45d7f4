"""The server of a CRDS: stock clients and people, each observatory under its own path."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caldp.crdserver import forms, submissions, tending, web, wire
from caldp.crdserver.requests import CSRF, SESSION, body_of, form_of, text
from caldp.crdserver.server import Observatory, Server, log
from caldp.crdserver.settings import OBSERVATORIES, Settings
from caldp.crdserver.signin import RefusedError, Session, checked_instrument, must_be
from caldp.crdserver.uploads import Uploads, checked_name
from caldp.errors import CaldpError, InputError, ReferencesError, describe
from caldp.local_store import LocalStore
from caldp.s3_store import S3Store
from caldp.store import ConflictError, Create

_REPLY = re.compile(r"[0-9a-f]{64}\.json")

#: What pages may do: nothing but show themselves.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; connect-src 'self'"
)

Handler = Callable[[Request], Awaitable[Response]]


def create(settings: Settings, environ: Mapping[str, str] = os.environ) -> Starlette:
    """Make the application.

    Parameters
    ----------
    settings : Settings
        What it goes by.
    environ : mapping, optional
        The environment of workers.

    Returns
    -------
    Starlette
    """
    server = Server(settings, environ)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(server.resume)
        yield
        await run_in_threadpool(server.close)

    mounts = [Mount(f"/{name}", routes=_routes(server, one)) for name, one in server.observatories.items()]
    app = Starlette(
        routes=[Route("/", web.home(server)), Route("/health", _health), web.static(), *mounts],
        lifespan=lifespan,
        middleware=[Middleware(_Guard, settings=settings)],
        exception_handlers={HTTPException: web.http_error, CaldpError: web.plain_error, Exception: web.broken},
    )
    app.state.server = server
    return app


def _routes(server: Server, one: Observatory) -> list[Route]:
    clients = _Clients(server, one)
    return [
        Route("/json/{rest:path}", clients.json_rpc, methods=["POST"]),
        Route("/get/{name}", clients.get, methods=["GET"]),
        Route("/replies/{name}", clients.reply),
        Route("/submission_form/redcat_description.yml", clients.form),
        Route("/lock_status/{user}/", clients.lock_status),
        Route("/login/", clients.login, methods=["GET", "POST"]),
        Route("/logout/", clients.logout),
        Route("/upload/list/", clients.upload_list),
        Route("/upload/chunked/", clients.upload, methods=["GET", "POST"]),
        Route("/upload/delete/{name}", clients.upload_delete),
        Route("/jpoll/open_channel", clients.open_channel),
        Route("/submission_form/redcat_submit/", clients.submitting("batch"), methods=["GET", "POST"]),
        Route("/batch_submit_references/", clients.submitting("batch"), methods=["GET", "POST"]),
        Route("/submit/reference/", clients.submitting("references"), methods=["GET", "POST"]),
        Route("/submit/mapping/", clients.submitting("mappings"), methods=["GET", "POST"]),
        Route("/certify/", clients.submitting("certify"), methods=["GET", "POST"]),
        Route("/display_result/{id}", clients.display_result),
        Route("/submit_confirm_pipeline/", clients.confirm, methods=["POST"]),
        *web.routes(server, one),
    ]


async def _health(request: Request) -> Response:
    return PlainTextResponse("ok\n")


class _Clients:
    """What stock clients ask for; people meet the same addresses in their browser.

    Parameters
    ----------
    server : Server
        The server.
    one : Observatory
        The observatory of this path.
    """

    def __init__(self, server: Server, one: Observatory) -> None:
        self._server = server
        self._one = one
        self._table = one.methods.table()

    # ---- for everybody

    async def json_rpc(self, request: Request) -> Response:
        """Answer a call; a large reply is fetched by another request."""
        body = await body_of(request, wire.LARGEST_CALL)

        def failed(method: str, error: Exception) -> None:
            log(logging.ERROR, f"{method}: {describe(error, '')}", observatory=self._one.name)

        reply = await run_in_threadpool(wire.answer, body, self._table, failed)
        data = await run_in_threadpool(wire.written, reply)
        if len(data) <= self._server.settings.inline:
            return Response(data, media_type="application/json")
        # Whoever asks the same is given the same object: the client does not look at the id.
        data = await run_in_threadpool(wire.written, {**reply, "id": None})
        name = f"{hashlib.sha256(data).hexdigest()}.json"
        await run_in_threadpool(self._keep, name, data)
        return RedirectResponse(f"{self._one.site.url}/replies/{name}", status_code=303)

    def _keep(self, name: str, reply: bytes) -> None:
        tending.note_reply(self._one.site, name)
        try:
            self._one.site.store.put(tending.reply_key(self._one.site, name), reply, Create())
        except ConflictError:
            return

    async def reply(self, request: Request) -> Response:
        """Return a reply that was too large."""
        name = request.path_params["name"]
        if not _REPLY.fullmatch(name):
            raise HTTPException(404)
        key = tending.reply_key(self._one.site, name)
        return await run_in_threadpool(self._sent, request, key, "application/json", -1)

    async def get(self, request: Request) -> Response:
        """Return a mapping or a reference."""
        try:
            key, row = await run_in_threadpool(self._one.site.available, request.path_params["name"])
        except (InputError, ReferencesError) as error:
            raise HTTPException(404, str(error)) from error
        kind = "text/plain; charset=utf-8" if row["type"] == "mapping" else "application/octet-stream"
        return await run_in_threadpool(self._sent, request, key, kind, row["size"])

    def _sent(self, request: Request, key: str, kind: str, size: int) -> Response:
        store = self._one.site.store
        if isinstance(store, LocalStore):
            path = Path(store.url(key))
            if not path.is_file():
                raise HTTPException(404, f"{path.name} is known, but its content is not in this store")
            return FileResponse(path, media_type=kind, content_disposition_type="inline")
        assert isinstance(store, S3Store)  # noqa: S101 - there are two kinds of stores
        if request.method == "HEAD" and size >= 0:
            # Who asks the store itself with a link that was made for GET is refused.
            return Response(headers={"content-length": str(size), "accept-ranges": "bytes"}, media_type=kind)
        return RedirectResponse(store.link(key), status_code=302)

    async def form(self, request: Request) -> Response:
        """Return the form of a submission."""
        return Response(forms.text(self._one.name), media_type="application/yaml")

    async def lock_status(self, request: Request) -> Response:
        """Return the lock of a user."""
        return JSONResponse(await run_in_threadpool(self._one.signin.status, request.path_params["user"]))

    # ---- signing in and out

    async def login(self, request: Request) -> Response:
        """Sign in, and lock an instrument."""
        if request.method != "POST":
            return await web.page(request, self._one, "login.html.j2", instruments=self._one.instruments)
        form = await form_of(request)
        try:
            session = await run_in_threadpool(
                self._one.signin.sign_in,
                text(form, "username"),
                text(form, "password"),
                text(form, "instrument"),
                self._one.instruments,
            )
        except CaldpError as error:
            log(logging.WARNING, "sign-in refused", user=text(form, "username")[:64], why=error.message)
            return await web.page(
                request, self._one, "login.html.j2", error=str(error), instruments=self._one.instruments
            )
        following = text(form, "next") or "/"
        if not re.fullmatch(r"/[A-Za-z0-9_./-]*", following) or following.startswith("//"):
            following = "/"
        response: Response = RedirectResponse(f"{self._one.site.url}{following}", status_code=303)
        response.set_cookie(
            SESSION,
            session.secret,
            path=f"/{self._one.name}",
            httponly=True,
            secure=self._server.settings.secure,
            samesite="lax",
        )
        return response

    async def logout(self, request: Request) -> Response:
        """Sign out; locks are let go, what is not confirmed is cancelled."""
        _from_here(request)
        session = await self.session(request)
        if session:
            await run_in_threadpool(self._one.signin.sign_out, session)
        response: Response = RedirectResponse(f"{self._one.site.url}/", status_code=303)
        response.delete_cookie(SESSION, path=f"/{self._one.name}")
        return response

    async def session(self, request: Request) -> Session | None:
        """Return who is signed in."""
        return await run_in_threadpool(self._one.signin.session, request.cookies.get(SESSION, ""))

    async def _must(self, request: Request) -> Session:
        return must_be(await self.session(request))

    # ---- files

    async def upload_list(self, request: Request) -> Response:
        """Return the files that a user has sent."""
        session = await self._must(request)
        found = await run_in_threadpool(Uploads(self._one.site, session.user.name).files)
        files = [{"name": f.name, "size": f.size, "deleteUrl": f"/upload/delete/{f.name}"} for f in found]
        return JSONResponse({"files": files})

    async def upload(self, request: Request) -> Response:
        """Take a file, or a part of one."""
        session = await self._must(request)
        if request.method != "POST":
            return await web.upload_page(request, self._one, session)
        form = await form_of(request, files=True)
        try:
            sent = form.getlist("files")
            if not sent or not all(isinstance(one, UploadFile) for one in sent):
                raise InputError("no file came", remedy="send it in the field files")
            content_range = request.headers.get("content-range", "")
            uploads, received = Uploads(self._one.site, session.user.name), []
            for one in sent:
                assert isinstance(one, UploadFile)  # noqa: S101 - for the type checker
                data = await one.read()
                received.append(await run_in_threadpool(uploads.receive, one.filename or "", data, content_range))
        finally:
            await form.close()
        if web.wants_page(request):
            return RedirectResponse(f"{self._one.site.url}/upload/chunked/", status_code=303)
        return JSONResponse({"files": [{"name": one.name, "size": one.size} for one in received]})

    async def upload_delete(self, request: Request) -> Response:
        """Remove a file that was sent; the client asks for that with GET."""
        _from_here(request)
        session = await self._must(request)
        name = checked_name(request.path_params["name"])
        await run_in_threadpool(Uploads(self._one.site, session.user.name).remove, name)
        if web.wants_page(request):
            return RedirectResponse(f"{self._one.site.url}/upload/chunked/", status_code=303)
        return JSONResponse({"files": [{name: True}]})

    # ---- submissions

    async def open_channel(self, request: Request) -> Response:
        """Open a channel; the next submission of this user speaks there."""
        _from_here(request)
        session = await self._must(request)
        key = await run_in_threadpool(self._one.channels.open, session.user.name)
        await run_in_threadpool(self._one.signin.note_channel, session, key)
        return JSONResponse(key)

    def submitting(self, kind: str) -> Handler:
        """Return the page of one kind of submission."""

        async def submit(request: Request) -> Response:
            session = await self._must(request)
            if request.method != "POST":
                return await web.submit_page(request, self._one, session, kind)
            form = await form_of(request)
            said = {key: value for key, value in form.items() if isinstance(value, str)}
            instrument = checked_instrument(session, said.get("instrument", ""))
            one = await run_in_threadpool(self._server.submit, self._one, session, kind, instrument, said)
            if web.wants_page(request):
                return RedirectResponse(f"{self._one.site.url}/display_result/{one}", status_code=303)
            return PlainTextResponse(f"submission {one} has begun\n")

        return submit

    async def display_result(self, request: Request) -> Response:
        """Show a submission to the person who waits for it."""
        session = await self._must(request)
        name = request.path_params["id"]
        known = await run_in_threadpool(self._known, name)
        if known is None:
            raise HTTPException(404, "there is no such submission")
        result = await run_in_threadpool(submissions.result, self._one.site, name)
        return await web.submission_page(request, self._one, session, name, known, result)

    async def confirm(self, request: Request) -> Response:
        """Confirm a submission, or cancel it."""
        session = await self._must(request)
        form = await form_of(request)
        name = text(form, "results_id")
        renamed = await run_in_threadpool(self._server.conclude, self._one, session, name, text(form, "button"))
        known = await run_in_threadpool(self._known, name)
        assert known is not None  # noqa: S101 - submissions stay
        return await web.confirmed_page(request, self._one, name, known, renamed)

    def _known(self, name: str) -> dict[str, Any] | None:
        return self._one.site.state.submissions.get(name)


def _from_here(request: Request) -> None:
    """Refuse what changes something by GET, as the client wants it, if a link of a stranger's page asks for it."""
    if request.headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
        raise RefusedError("a page of another server asks for this", remedy="use the page of this one")


class _Guard:
    """Sets on every reply what clients and browsers need."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        observatory = scope["path"].split("/")[1] if scope["path"].count("/") > 1 else ""
        # What a client calls a path becomes no part of a header.
        observatory = observatory if observatory in OBSERVATORIES else ""
        # The client takes it from every reply, the last one before a POST must have it.
        csrf = request.cookies.get(CSRF, "")
        if not re.fullmatch(r"[A-Za-z0-9_-]{20,64}", csrf):
            csrf = secrets.token_urlsafe(24)
        scope["csrf"] = csrf
        secure = "; Secure" if self._settings.secure else ""
        cookie = f"{CSRF}={csrf}; Path=/{observatory}; HttpOnly; SameSite=Lax{secure}"

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[Any] = list(message.get("headers", []))
                headers += [
                    (b"set-cookie", cookie.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"same-origin"),
                    (b"content-security-policy", _POLICY.encode()),
                ]
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, guarded)
