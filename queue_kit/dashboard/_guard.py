"""What stands before every page: the permission to see it, the proof that a change was meant, and the headers.

A change is a POST of somebody with `act`, from a page of this dashboard (`_forms`). No page is reached, and no form
read, in any other way.
"""

import inspect
import logging
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from queue_kit._same_origin import is_same_origin
from queue_kit.dashboard import _forms
from queue_kit.dashboard._access import Access, Authorize, let_in, path_of
from queue_kit.dashboard._render import Renderer
from queue_kit.job import printable

HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
        b"img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-store",
}
STATIC_PATH = "/static/"

audit = logging.getLogger("queue_kit.dashboard")


class Guard:
    """The outermost part of the dashboard. What gets past it has an `Access`, and an accepted form if it is a POST."""

    def __init__(self, app: ASGIApp, authorize: Authorize, renderer: Renderer) -> None:
        self._app = app
        self._authorize = authorize
        self._renderer = renderer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if path_of(request).startswith(STATIC_PATH):  # what everybody finds in the package
            await self._app(scope, receive, send)
            return
        answer: ASGIApp
        try:
            await self._admit(request)
        except HTTPException as refusal:
            answer = self._renderer.refusal(request, refusal)
        else:
            answer = self._app if path_of(request) else _below(request)
            send = _with_cookie(send, _forms.new_cookie(request))
        await answer(scope, receive, send)

    async def _admit(self, request: Request) -> None:
        access = self._authorize(request)
        if inspect.isawaitable(access):
            access = await access
        if access is None:
            raise HTTPException(403, "You may not see this dashboard.")
        if not isinstance(access, Access):
            raise TypeError(f"authorize gave {type(access).__name__}, not an Access or None")
        let_in(request, access)
        _forms.find_key(request)
        if request.method not in ("GET", "HEAD"):
            await self._admit_change(request, access)

    async def _admit_change(self, request: Request, access: Access) -> None:
        try:
            form = await _form_that_was_meant(request, access)
        except HTTPException as refusal:
            who, path = printable(access.who), printable(path_of(request))
            audit.warning("refused %s to %s: %s", path, who, refusal.detail, extra={"who": who, "path": path})
            raise
        _forms.accept(request, form)


async def _form_that_was_meant(request: Request, access: Access) -> _forms.Form:
    if request.method != "POST":
        raise HTTPException(405, "This address can only be read or posted to.", {"allow": "GET, HEAD, POST"})
    if not access.act:
        raise HTTPException(403, "You may look at this dashboard, but change nothing.")
    same = is_same_origin(request.headers)
    if same is None:
        raise HTTPException(403, "Your browser does not say where this came from, so nothing was changed.")
    if not same:
        raise HTTPException(403, "Your browser says that this came from another site, so nothing was changed.")
    form = await _forms.read_form(request)
    if not _forms.has_token(request, form):
        detail = "This form is out of date, so nothing was changed. Reload the page and try again."
        raise HTTPException(403, detail)
    return form


def _below(request: Request) -> Response:
    """From the prefix itself to what is below it, as links are relative to that."""
    last = str(request.scope["path"]).rsplit("/", 1)[-1]
    return Response(status_code=307, headers={"location": f"{quote(last)}/"})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            missing = [(name, value) for name, value in HEADERS.items() if name not in given]
            message = {**message, "headers": [*message["headers"], *missing]}
        await send(message)

    return sending


def _with_cookie(send: Send, cookie: str | None) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"set-cookie", str(cookie).encode())]}
        await send(message)

    return sending if cookie else send
