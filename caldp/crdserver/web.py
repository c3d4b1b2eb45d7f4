"""Pages for people: rendered here, complete without scripts."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any
from urllib.parse import quote, urlencode
from xml.sax.saxutils import escape

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from caldp.crdserver import catalog, comparisons, contexts, forms, lookups, pages, tables
from caldp.crdserver.journal import now
from caldp.crdserver.requests import SESSION, form_of, text
from caldp.crdserver.server import Observatory, Server, log
from caldp.crdserver.signin import RefusedError, Session, must_be, remaining
from caldp.crdserver.site import Site
from caldp.crdserver.state import Row
from caldp.crdserver.uploads import Uploads, checked_name
from caldp.errors import CaldpError, InputError, ReferencesError, UsageError, describe

Handler = Callable[[Request], Awaitable[Response]]

#: What pages are drawn with, and its type.
_STATIC = {"style.css": "text/css", "live.js": "text/javascript"}

#: A spreadsheet takes what begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: Kinds of events, for those who look for some.
_KINDS = (
    "imported",
    "submitted",
    "ready",
    "bad files",
    "failed",
    "cancelled",
    "checked",
    "confirmed",
    "archived",
    "set context",
    "edit context",
    "bad",
    "good",
    "campaign",
    "reserved",
    "signed in",
    "signed out",
)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("caldp", "templates/crds"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["time"] = _time
    found.filters["bytes"] = _bytes
    found.filters["left"] = lambda until: remaining(until - time.time())
    found.filters["count"] = lambda number: f"{number:,}"
    found.globals["query"] = _query
    found.globals["classified"] = comparisons.classified
    return found


def _time(text: str) -> str:
    """Return a time as people read it: ``2026-11-22 10:00 UTC``."""
    return f"{text[:16].replace('T', ' ')} UTC" if text else ""


def _bytes(size: int) -> str:
    """Return a size as people read it."""
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def _query(given: Mapping[str, Any], **changes: Any) -> str:  # noqa: ANN401 - of any type
    """Return the query of an address: what is given, changed; what is empty is left out."""
    both = {**given, **changes}
    return urlencode({key: value for key, value in both.items() if value not in ("", None, 0)})


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
    session = await _session(request, one)
    root = f"/{one.name}"
    given = {
        "error": "",
        "site": one.site,
        "root": root,
        "session": session,
        "csrf": request.scope["csrf"],
        "here": request.url.path.removeprefix(root),
        "asked": dict(request.query_params),
    }
    text = await run_in_threadpool(_templates().get_template(template).render, **{**given, **what})
    return HTMLResponse(text, status_code=status)


async def _session(request: Request, one: Observatory) -> Session | None:
    return await run_in_threadpool(one.signin.session, request.cookies.get(SESSION, ""))


def home(server: Server) -> Handler:
    """Return the page on which one chooses an observatory."""

    async def choose(request: Request) -> Response:
        observatories = [(one.name, one.site.state) for one in server.observatories.values()]
        return HTMLResponse(_templates().get_template("home.html.j2").render(observatories=observatories))

    return choose


def static() -> Route:
    """Return what pages are drawn with."""

    async def drawn_with(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404)
        text = (resources.files("caldp") / "templates" / "crds" / name).read_text(encoding="utf-8")
        return Response(text, media_type=_STATIC[name], headers={"cache-control": "max-age=3600"})

    return Route("/static/{name}", drawn_with)


def routes(server: Server, one: Observatory) -> list[Route]:
    """Return the pages of an observatory."""
    here = _Pages(server, one)
    return [
        Route("/", here.overview),
        Route("/contexts/", here.contexts),
        Route("/contexts/{name}", here.context),
        Route("/contexts/{name}/{instrument}", here.instrument),
        Route("/contexts/{name}/{instrument}/{type}", here.rules),
        Route("/mappings/{name}", here.mapping),
        Route("/history/", here.history),
        Route("/differences/", here.differences),
        Route("/catalog/", here.catalog),
        Route("/catalog/{name}", here.file),
        Route("/bestrefs/", here.bestrefs, methods=["GET", "POST"]),
        Route("/activity/", here.activity),
        Route("/submissions/", here.submissions),
        Route("/deliveries/", here.deliveries),
        Route("/affected/", here.affected),
        Route("/affected/compute/", here.compute, methods=["POST"]),
        Route("/affected/campaign/", here.campaign, methods=["POST"]),
        Route("/upload/remove/", here.remove, methods=["POST"]),
        Route("/set_context/", here.set_context, methods=["GET", "POST"]),
        Route("/mark/", here.mark, methods=["GET", "POST"]),
    ]


class _Pages:
    """The pages of one observatory."""

    def __init__(self, server: Server, one: Observatory) -> None:
        self._server = server
        self._one = one
        self._site = one.site

    # ---- rules

    async def overview(self, request: Request) -> Response:
        found = await run_in_threadpool(pages.overview, self._site)
        return await self._page(request, "overview", locks=await run_in_threadpool(self._one.signin.locks), **found)

    async def contexts(self, request: Request) -> Response:
        found = await run_in_threadpool(tables.contexts, self._site, _number(request))
        return await self._page(request, "contexts", page=found, state=self._site.state)

    async def context(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self._page(
            request, "context", state=self._site.state, **await _found(tables.context, self._site, name)
        )

    async def instrument(self, request: Request) -> Response:
        names = [request.path_params[one] for one in ("name", "instrument")]
        return await self._page(request, "instrument", **await _found(tables.instrument, self._site, *names))

    async def rules(self, request: Request) -> Response:
        names = [request.path_params[one] for one in ("name", "instrument", "type")]
        found = await _found(tables.rules, self._site, *names, _number(request))
        return await self._page(request, "rules", state=self._site.state, **found)

    async def mapping(self, request: Request) -> Response:
        found = await _found(tables.mapping, self._site, request.path_params["name"])
        return await self._page(request, "mapping", **found)

    async def history(self, request: Request) -> Response:
        rows = sorted(self._site.state.history, reverse=True)
        return await self._page(request, "history", page=tables.paged(rows, _number(request)), state=self._site.state)

    async def differences(self, request: Request) -> Response:
        old, new = (request.query_params.get(name, "").strip() for name in ("old", "new"))
        if not (old and new):
            return await self._page(request, "differences", old=old, new=new, found=None, lines=None)
        try:
            if not (old.endswith("map") or new.endswith("map")) and "." in old + new:
                return await self._file_differences(request, old, new)
            old, new = self._site.context(old), self._site.context(new)
            found = await run_in_threadpool(comparisons.differences, self._site, old, new)
        except (InputError, ReferencesError) as error:
            return await self._page(
                request, "differences", 404, old=old, new=new, found=None, lines=None, error=str(error)
            )
        logical = tables.paged(found["logical"], _number(request), 200)
        return await self._page(request, "differences", old=old, new=new, found=found, logical=logical, lines=None)

    async def _file_differences(self, request: Request, old: str, new: str) -> Response:
        session = await _session(request, self._one)
        user = session.user.name if session else ""
        lines = await run_in_threadpool(comparisons.file_differences, self._site, user, old, new)
        return await self._page(request, "differences", old=old, new=new, found=None, lines=lines)

    # ---- files

    async def catalog(self, request: Request) -> Response:
        asked = {k: v for k, v in request.query_params.items() if k in pages.Search.__dataclass_fields__}
        state = self._site.state
        wanted = pages.Search(**{**asked, "sort": asked.get("sort") or "name"})
        try:
            rows = await run_in_threadpool(pages.search, state, wanted)
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        sort = request.query_params.get("format", "")
        if sort in ("csv", "json"):
            return await run_in_threadpool(_listed, request, self._site, rows, sort)
        more: dict[str, Any] = {"choices": await run_in_threadpool(pages.choices, state), "columns": pages.COLUMNS}
        return await self._page(
            request, "catalog", page=tables.paged(rows, _number(request)), wanted=wanted, search=asked, **more
        )

    async def file(self, request: Request) -> Response:
        found = await _found(pages.file, self._site, request.path_params["name"])
        return await self._page(request, "file", state=self._site.state, **found)

    async def bestrefs(self, request: Request) -> Response:
        asked = request.query_params
        given: dict[str, Any] = {
            "context": asked.get("context", "") or f"{self._one.name}-latest",
            "dataset": asked.get("dataset", "").strip(),
            "header": "",
            "found": [],
            "instruments": self._one.instruments,
            "contexts": self._site.state.contexts[: -tables.ROWS - 1 : -1],
        }
        try:
            if request.method == "POST":
                await self._of_header(request, given)
            elif given["dataset"]:
                some = await run_in_threadpool(lookups.best_of_dataset, self._site, given["context"], given["dataset"])
                given["found"] = some
            elif asked.get("instrument"):
                which = _choice(asked["instrument"], self._one.instruments)
                given["header"] = await run_in_threadpool(lookups.keywords, self._site, given["context"], which)
        except RefusedError:
            raise
        except CaldpError as error:
            return await self._page(request, "bestrefs", 400, error=str(error), **given)
        return await self._page(request, "bestrefs", **given)

    async def _of_header(self, request: Request, given: dict[str, Any]) -> None:
        form = await form_of(request, files=True)
        given |= {"context": text(form, "context") or given["context"], "header": text(form, "header")}
        sent = form.get("file")
        if isinstance(sent, UploadFile) and sent.filename:
            header = await run_in_threadpool(lookups.fits_header, self._site, await sent.read())
            name = sent.filename[:100]
        else:
            header, name = lookups.header_of(given["header"]), "this header"
        best = await run_in_threadpool(lookups.best, self._site, given["context"], header)
        given["found"] = [{"dataset": name, **best}]

    # ---- what has happened

    async def activity(self, request: Request) -> Response:
        asked = {name: request.query_params.get(name, "").strip() for name in ("kind", "who", "text")}
        before = _number(request, "before", 0)
        found = await run_in_threadpool(lambda: pages.events(self._site, **asked, before=before))
        sort = request.query_params.get("format", "")
        if sort == "json":
            said = [{k: getattr(e, k) for k in ("seq", "at", "who", "kind", "why")} for e in found["events"]]
            return JSONResponse({"events": said, "before": found["before"]})
        if sort == "rss":
            return Response(_rss(self._one, found["events"]), media_type="application/rss+xml")
        return await self._page(request, "activity", kinds=_KINDS, asked_for=asked, first=not before, **found)

    async def submissions(self, request: Request) -> Response:
        now_in = request.query_params.get("state", "")
        rows = await run_in_threadpool(pages.listed_submissions, self._site.state, now_in)
        states = sorted({one["state"] for one in self._site.state.submissions.values()})
        return await self._page(
            request, "submissions", page=tables.paged(rows, _number(request)), now_in=now_in, states=states
        )

    async def deliveries(self, request: Request) -> Response:
        rows = await run_in_threadpool(pages.deliveries, self._site)
        more: dict[str, Any] = {"at_once": pages.archived_at_once(self._site), "state": self._site.state}
        return await self._page(request, "deliveries", page=tables.paged(rows, _number(request)), **more)

    # ---- affected datasets

    async def affected(self, request: Request) -> Response:
        asked: dict[str, Any] = {
            name: request.query_params.get(name, "").strip() for name in ("old", "new", "instrument", "type", "job")
        }
        if not (asked["old"] and asked["new"]):
            rows = await run_in_threadpool(pages.steps, self._site)
            return await self._page(request, "affected", page=tables.paged(rows, _number(request)), found=None, **asked)
        old, new = await _found(self._step, asked["old"], asked["new"])
        found = await run_in_threadpool(pages.affected, self._site, old, new, asked["instrument"], asked["type"])
        job = await run_in_threadpool(self._one.jobs.get, asked["job"]) if asked["job"] else None
        page = tables.paged(found["rows"] if found else (), _number(request))
        given: dict[str, Any] = {**asked, "old": old, "new": new, "job": job, "found": found, "page": page}
        return await self._page(request, "affected", campaigns=self._server.settings.campaigns, **given)

    async def compute(self, request: Request) -> Response:
        await self._operator(request)
        old, new = await self._step_of(request)
        job = await run_in_threadpool(self._server.have_affected, self._one, old, new)
        return self._to(f"/affected/?{_query({'old': old, 'new': new, 'job': job})}")

    async def campaign(self, request: Request) -> Response:
        session = await self._operator(request)
        old, new = await self._step_of(request)
        place = await run_in_threadpool(self._server.start_campaign, self._one, session, old, new)
        return await self._page(request, "campaign", old=old, new=new, place=place)

    async def _step_of(self, request: Request) -> tuple[str, str]:
        form = await form_of(request)
        return self._step(text(form, "old"), text(form, "new"))

    def _step(self, old: str, new: str) -> tuple[str, str]:
        state = self._site.state
        old, new = self._site.context(old, state), self._site.context(new, state)
        if not (old.endswith(".pmap") and new.endswith(".pmap")):
            raise InputError(f"{old} or {new} is no context", remedy="choose two contexts")
        return old, new

    # ---- what people change

    async def remove(self, request: Request) -> Response:
        session = must_be(await _session(request, self._one))
        name = checked_name(text(await form_of(request), "name"))
        await run_in_threadpool(Uploads(self._site, session.user.name).remove, name)
        return self._to("/upload/chunked/")

    async def set_context(self, request: Request) -> Response:
        session = await self._operator(request)
        state = self._site.state
        given: dict[str, Any] = {name: request.query_params.get(name, "") for name in ("context", "which")}
        given["why"], error, status = "", "", 200
        if request.method == "POST":
            form = await form_of(request)
            given = {name: text(form, name).strip() for name in ("context", "which", "why")}
            try:
                edit = _choice(given["which"], ("latest", "edit")) == "edit"
                step = (self._one, session, given["context"], given["why"])
                moved = await run_in_threadpool(partial(self._server.set_context, *step, edit=edit))
            except (InputError, ReferencesError, UsageError) as refused:
                error, status = str(refused), 400
            else:
                log(logging.INFO, "context set", user=session.user.name, **moved)
                return self._to("/")
        shown = await run_in_threadpool(self._proposed, given["context"] or state.edit, given["which"] or "latest")
        given = {**given, "error": error, **shown}
        return await self._page(request, "set_context", status, state=state, **given)

    def _proposed(self, context: str, which: str) -> dict[str, Any]:
        """Say what a step would change; nothing of it if the context is none."""
        state = self._site.state
        old = state.edit if which == "edit" else state.latest
        try:
            new = self._site.context(context, state)
            found = comparisons.differences(self._site, old, new) if old and old != new else None
        except CaldpError as error:
            given = {"context": context, "which": which, "old": old, "new": "", "found": None}
            return {**given, "error": str(error)}
        known = pages.affected(self._site, old, new) if found else None
        steps = comparisons.steps_between(state, old, new)
        more = {"found": found, "known": known, "steps": steps, "reason": contexts.reason_of(state, old, new)}
        return {"context": new, "which": which, "old": old, "new": new, **more}

    async def mark(self, request: Request) -> Response:
        session = await self._operator(request)
        asked = request.query_params
        given = {"files": asked.get("files", ""), "why": "", "how": asked.get("how", "bad")}
        error, status = "", 200
        if request.method == "POST":
            form = await form_of(request)
            given = {name: text(form, name) for name in given}
            names = list(dict.fromkeys(given["files"].replace(",", " ").split()))
            try:
                bad = _choice(given["how"], ("bad", "good")) == "bad"
                await run_in_threadpool(
                    lambda: contexts.mark(self._site, names, session.user.name, given["why"], bad=bad)
                )
            except (InputError, ReferencesError, UsageError) as refused:
                error, status = str(refused), 400
            else:
                log(logging.INFO, "files marked", user=session.user.name, files=names, bad=bad)
                return self._to(f"/catalog/{quote(names[0])}" if len(names) == 1 else "/catalog/?bad=yes")
        return await self._page(request, "mark", status, error=error, **given)

    # ---- helpers

    async def _page(self, request: Request, template: str, status: int = 200, **what: Any) -> Response:  # noqa: ANN401
        return await page(request, self._one, f"{template}.html.j2", status, **what)

    async def _operator(self, request: Request) -> Session:
        return must_be(await _session(request, self._one), operator=True)

    def _to(self, path: str) -> Response:
        return RedirectResponse(f"{self._site.url}{path}", status_code=303)


# ---- pages of stock clients, as people see them


async def submit_page(request: Request, one: Observatory, session: Session, kind: str) -> Response:
    """Show the form of a submission, and the files that are to be submitted."""
    fields = [field for field in forms.fields(one.name) if field["key"] != "instrument"] if kind == "batch" else []
    files = await run_in_threadpool(Uploads(one.site, session.user.name).files)
    state = one.site.state
    return await page(request, one, "submit.html.j2", kind=kind, fields=fields, files=files, state=state)


async def upload_page(request: Request, one: Observatory, session: Session) -> Response:
    """Show the files that were sent, and take more."""
    files = await run_in_threadpool(Uploads(one.site, session.user.name).files)
    return await page(request, one, "upload.html.j2", files=files, most=one.site.settings.largest_upload)


async def submission_page(
    request: Request,
    one: Observatory,
    session: Session,
    name: str,
    known: Mapping[str, Any],
    result: Mapping[str, Any],
) -> Response:
    """Show a submission to the person who waits for it, and to others."""
    found = await run_in_threadpool(pages.review, one.site.state, known, result)
    may = known["by"] == session.user.name or session.user.operator
    said = await run_in_threadpool(pages.messages, one.site, known.get("channel", "")) if may else []
    locked = known["by"] != session.user.name or session.instrument == known["instrument"]
    more = {"messages": said, "may": may, "locked": locked, "state": one.site.state, **found}
    return await page(request, one, "submission.html.j2", id=name, known=known, result=result, **more)


async def confirmed_page(
    request: Request, one: Observatory, name: str, known: Mapping[str, Any], renamed: Mapping[str, str]
) -> Response:
    """Show what has become of a submission, and what comes next."""
    state = one.site.state
    found = await run_in_threadpool(pages.deliveries, one.site)
    delivery = next((each for each in found if each["id"] == name), None)
    more: dict[str, Any] = {"delivery": delivery, "at_once": pages.archived_at_once(one.site), "state": state}
    return await page(request, one, "confirmed.html.j2", id=name, known=known, renamed=renamed, **more)


# ---- what requests say, and other forms than pages


def _number(request: Request, name: str = "page", default: int = 1) -> int:
    """Return a number of an address; the default for what is none."""
    said = request.query_params.get(name, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else default


def _choice(said: str, choices: Sequence[str]) -> str:
    if said not in choices:
        raise InputError(f"{said[:20]!r} cannot be chosen", remedy=f"choose of {', '.join(choices)}")
    return said


async def _found(question: Callable[..., Any], *about: Any) -> Any:  # noqa: ANN401 - of any type
    """Ask something about what an address names; 404 if there is no such thing."""
    try:
        return await run_in_threadpool(question, *about)
    except (InputError, ReferencesError) as error:
        raise HTTPException(404, str(error)) from error


def _listed(request: Request, site: Site, rows: Sequence[tuple[str, Row]], sort: str) -> Response:
    """Return rows of the catalogue as a file."""
    said = [catalog.info(site, name, row) for name, row in rows]
    if sort == "json":
        data, kind = json.dumps(said).encode(), "application/json"
    else:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(said[0] if said else ["name"])
        for one in said:
            writer.writerow(f"'{value}" if value.startswith(_FORMULA) else value for value in one.values())
        data, kind = out.getvalue().encode(), "text/csv; charset=utf-8"
    headers = {"content-disposition": f'attachment; filename="catalogue.{sort}"', "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        # All files at once are more than some servers can reply.
        data = gzip.compress(data, 3)
        headers["content-encoding"] = "gzip"
    return Response(data, media_type=kind, headers=headers)


def _rss(one: Observatory, events: list[Any]) -> str:
    link = f"{one.site.url}/activity/"

    def said(text: str) -> str:
        return escape("".join(one if one.isprintable() else " " for one in text))

    items = [
        f"<item><title>{said(f'{event.kind}: {event.why}'[:200])}</title>"
        f"<description>{said(f'{event.who}, {event.at}: {event.kind}. {event.why}')}</description>"
        f"<link>{escape(f'{link}?before={event.seq + 1}')}</link>"
        f'<guid isPermaLink="false">{one.name}-{event.seq}</guid></item>'
        for event in events
    ]
    title = f"{one.name.upper()} CRDS: activity"
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<rss version="2.0"><channel><title>{title}</title>'
        f"<link>{escape(link)}</link><description>{title}, at {now()}</description>{''.join(items)}</channel></rss>\n"
    )


# ---- errors


async def _error(request: Request, status: int, message: str) -> Response:
    if not wants_page(request):
        # The stock client looks for a message only in what succeeds.
        template = _templates().get_template("error.html.j2")
        return HTMLResponse(template.render(layout="base.html.j2", message=message))
    one = request.app.state.server.observatories.get(request.url.path.split("/")[1])
    if one is None:
        template = _templates().get_template("error.html.j2")
        return HTMLResponse(template.render(layout="base.html.j2", message=message), status_code=status)
    return await page(request, one, "error.html.j2", status, layout="site.html.j2", message=message)


async def plain_error(request: Request, error: Exception) -> Response:
    """Say what a person or a client has done wrong."""
    return await _error(request, 403 if isinstance(error, RefusedError) else 400, str(error))


async def http_error(request: Request, error: Exception) -> Response:
    """Say what there is not."""
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    if wants_page(request):
        return await _error(request, error.status_code, error.detail)
    return PlainTextResponse(f"{error.detail}\n", status_code=error.status_code, headers=error.headers)


async def broken(request: Request, error: Exception) -> Response:
    """Say that this is our fault."""
    if isinstance(error, CaldpError):
        return await plain_error(request, error)
    log(logging.ERROR, f"{request.method} {request.url.path}: {describe(error, '')}")
    return PlainTextResponse("the server has failed; its log says why\n", status_code=500)
