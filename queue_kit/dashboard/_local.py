"""The dashboard for whoever sits at this machine: `queue-kit dashboard`.

It listens on the loopback interface only, and under an address that nobody else can know: other users of the machine,
and pages of other sites that the browser has open, reach the port, but not the dashboard. The key is in the path and
not in a cookie, since browsers send a cookie to every port of a host.
"""

import asyncio
import getpass
import hmac
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from queue_kit.dashboard._access import Access
from queue_kit.dashboard._app import dashboard
from queue_kit.errors import ConfigurationError

ADDRESS = "127.0.0.1"

HTTP_PORT = 80

GRACE = 2
"""Seconds that pages have to end when the server does."""


class Door:
    """Lets in who knows the key, by a name of this machine: another site's name that leads here is turned away."""

    def __init__(self, app: ASGIApp, key: str, port: int) -> None:
        self._app = app
        self._key = key.encode()
        names = (ADDRESS, "localhost")
        self._hosts = {f"{name}:{port}".encode() for name in names}
        if port == HTTP_PORT:  # which clients do not say
            self._hosts |= {name.encode() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return
        first = str(scope["path"])[1:].partition("/")[0]
        host = dict(scope["headers"]).get(b"host", b"")
        if host not in self._hosts or not hmac.compare_digest(first.encode("utf-8", "replace"), self._key):
            text = "Open the whole address that `queue-kit dashboard` printed: it ends with a key.\n"
            await PlainTextResponse(text, 404)(scope, receive, send)
            return
        try:
            await self._app({**scope, "root_path": f"/{first}"}, receive, send)
        except asyncio.CancelledError:  # the server ends, and nothing was sent: a page is whole when it is
            await PlainTextResponse("The dashboard has ended.\n", 503)(scope, receive, send)


async def serve(engine: AsyncEngine, *, port: int, may_act: bool, announce: Callable[[str], None]) -> None:
    """Serve the dashboard until SIGINT or SIGTERM; `announce` is told its address. Raises `ConfigurationError` when
    the port is taken."""
    access = Access(_user(), act=may_act)
    key = secrets.token_urlsafe(24)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((ADDRESS, port))
            listening.listen()  # from here on a browser may come
        except OSError as error:
            raise ConfigurationError(f"port {port} cannot be used ({error.strerror}); choose another one") from None
        port = listening.getsockname()[1]
        app = Door(dashboard(engine, authorize=lambda _request: access), key, port)
        # No line for each request: it would show the key.
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
        announce(f"http://{ADDRESS}:{port}/{key}/")
        await _Server(config).serve(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that ends at a signal and says no more: uvicorn's sends itself the signal again when it has ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down at SIGINT and SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "somebody at this machine"
