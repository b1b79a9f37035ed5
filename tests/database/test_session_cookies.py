"""Sessions of browsers: the tokens in cookies, asked through whole applications."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from queue_kit.contrib.sessions import SessionStore
from queue_kit.contrib.sessions.cookies import SessionCookies, end_session, session_in, start_session
from tests.database.session_stores import Cart, cart_store, forged, make_tables, move_back, pair_rows

HERE = {"Origin": "http://shop"}
ACCESS, REFRESH = "session-access", "session-refresh"


def application(engine: AsyncEngine, store: SessionStore[Cart], **options: Any) -> Starlette:
    """Log in, look, log out; and something that asks for no session."""

    async def log_in(request: Request) -> Response:
        start_session(request, store, await store.create(engine, Cart([request.query_params["item"]])))
        return PlainTextResponse("in", headers={"Cache-Control": "public, max-age=60"})

    async def look(request: Request) -> Response:
        session = await session_in(request, store)
        assert await session_in(request, store) is session
        return PlainTextResponse("nobody" if session is None else session.data.items[0])

    async def log_out(request: Request) -> Response:
        session = await session_in(request, store)
        if session is not None:
            await store.invalidate(engine, session)
        end_session(request, store)
        return PlainTextResponse("out")

    async def nothing(_request: Request) -> Response:
        return PlainTextResponse("nothing")

    async def too_late(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"begun, "
            with pytest.raises(RuntimeError, match="the answer has begun"):
                end_session(request, store)
            session = await session_in(request, store)
            yield b"nobody" if session is None else session.data.items[0].encode()

        return StreamingResponse(body())

    async def fail(request: Request) -> Response:
        await session_in(request, store)
        raise ValueError("the page is broken")

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        session = await session_in(socket, store)
        await socket.send_text("nobody" if session is None else session.data.items[0])
        await socket.close()

    routes = [
        Route("/log-in", log_in, methods=["POST"]),
        Route("/log-out", log_out, methods=["POST"]),
        Route("/nothing", nothing, methods=["GET", "POST"]),
        Route("/too-late", too_late),
        Route("/fail", fail),
        WebSocketRoute("/talk", talk),
        Mount("/below", routes=[Route("/look", look)]),
        Route("/look", look),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(SessionCookies, store=store, **({"db": lambda _: engine} | options))
    return app


@asynccontextmanager
async def browsing(app: Any, base: str = "http://shop", **cookies: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=base, headers={"Origin": base}) as browser:
        for name, value in cookies.items():
            browser.cookies.set(name.replace("_", "-"), value, "shop.local")  # as it names a host without a dot
        yield browser


@pytest.fixture
async def tables(engine: AsyncEngine) -> AsyncEngine:
    await make_tables(engine)
    return engine


def set_cookies(answer: httpx.Response) -> SimpleCookie:
    found = SimpleCookie()
    for header in answer.headers.get_list("set-cookie"):
        found.load(header)
    return found


async def test_a_browser_logs_in_is_known_and_logs_out(tables):
    async with browsing(application(tables, cart_store())) as browser:
        assert (await browser.get("/look")).text == "nobody"
        answer = await browser.post("/log-in?item=tea")
        assert answer.headers["cache-control"] == "no-store"
        cookies = set_cookies(answer)
        assert set(cookies) == {ACCESS, REFRESH}
        for cookie in cookies.values():
            assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"]) == (True, "Lax", "/", "")
            until = datetime.strptime(cookie["expires"], "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
            assert timedelta(days=13) < until - datetime.now(UTC) < timedelta(days=15)
        for path in ("/look", "/below/look"):
            answer = await browser.get(path)
            assert (answer.text, answer.headers["vary"], set_cookies(answer)) == ("tea", "Cookie", {})
        kept = dict(browser.cookies)
        assert (await browser.post("/log-out")).text == "out"
        assert not browser.cookies
        browser.cookies.update(kept)
        assert (await browser.get("/look")).text == "nobody"


async def test_expired_tokens_are_refreshed_and_the_answer_brings_the_new_ones(tables):
    store = cart_store()
    pair = await store.create(tables, Cart(["tea"]))
    expired = forged(pair.access_token, exp=1)
    app = application(tables, store)
    async with browsing(app, session_access=expired, session_refresh=pair.refresh_token) as browser:
        answer = await browser.get("/look")
        assert (answer.text, answer.headers["cache-control"]) == ("tea", "no-store")
        assert set(set_cookies(answer)) == {ACCESS, REFRESH}
        assert browser.cookies[REFRESH] != pair.refresh_token
        answer = await browser.get("/look")
        assert (answer.text, set_cookies(answer)) == ("tea", {})
    async with browsing(app, session_access=pair.access_token) as other:  # which that refresh has replaced
        assert (await other.get("/look")).text == "nobody"


async def test_a_page_that_fails_brings_refreshed_tokens_nevertheless(tables):
    """Else the old ones would come again, and look like a copy."""
    transport = httpx.ASGITransport(application(tables, cart_store()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers=HERE) as browser:
        assert "set-cookie" not in (await browser.get("/fail")).headers
        await browser.post("/log-in?item=tea")
        assert "set-cookie" not in (await browser.get("/fail")).headers
        browser.cookies.delete(ACCESS)  # as when it has expired
        answer = await browser.get("/fail")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        assert set(set_cookies(answer)) == {ACCESS, REFRESH}
        assert (await browser.get("/look")).text == "tea"


async def test_requests_at_once_refresh_once(tables):
    store = cart_store()
    pair = await store.create(tables, Cart(["tea"]))
    async with browsing(application(tables, store), session_refresh=pair.refresh_token) as browser:
        answers = await asyncio.gather(*(browser.get("/look") for _ in range(8)))
    assert {answer.text for answer in answers} == {"tea"}
    assert len({set_cookies(answer)[REFRESH].value for answer in answers}) == 1
    assert len(await pair_rows(tables)) == 2


async def test_a_copy_that_comes_later_ends_the_session(tables):
    store = cart_store()
    pair = await store.create(tables, Cart(["tea"]))
    app = application(tables, store)
    async with browsing(app, session_refresh=pair.refresh_token) as browser:
        assert (await browser.get("/look")).text == "tea"
        await move_back(tables, rotated_at=60)
        async with browsing(app, session_refresh=pair.refresh_token) as thief:
            answer = await thief.get("/look")
            assert (answer.text, set_cookies(answer)) == ("nobody", {})
        assert (await browser.get("/look")).text == "nobody"


async def test_who_asks_for_no_session_needs_no_database():
    def nowhere(_connection: Any) -> AsyncEngine:
        pytest.fail("was asked")

    app = application(None, cart_store(), db=nowhere)  # type: ignore[arg-type]
    async with browsing(app, session_access="x", session_refresh="y") as browser:
        answer = await browser.get("/nothing")
        assert (answer.text, set_cookies(answer), "vary" in answer.headers) == ("nothing", {}, False)


async def test_over_tls_the_cookies_are_bound_to_the_host(tables):
    async with browsing(application(tables, cart_store(), name="login"), "https://shop") as browser:
        cookies = set_cookies(await browser.post("/log-in?item=tea"))
        assert set(cookies) == {"__Host-login-access", "__Host-login-refresh"}
        assert all(cookie["secure"] and cookie["path"] == "/" and not cookie["domain"] for cookie in cookies.values())
        assert (await browser.get("/look")).text == "tea"


SAID = {
    "same": [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://shop"}, {"Origin": "http://SHOP"}],
    "other": [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://shop"},
        {"Origin": "http://evil"},
        {"Origin": "http://shop:8000"},
        {"Origin": "null"},
        {"Origin": "http://[shop"},
        {"Origin": ""},
    ],
    "nothing": [{}, {"Referer": "http://evil/"}],
}


@pytest.mark.parametrize(("who", "headers"), [(who, headers) for who, all_ in SAID.items() for headers in all_])
async def test_no_page_of_another_site_acts_or_logs_somebody_in(who, headers):
    app = application(None, cart_store())  # type: ignore[arg-type]
    for cookies in ({}, {ACCESS: "x"}, {REFRESH: "x"}):
        async with browsing(app, **cookies) as browser:
            del browser.headers["Origin"]
            may_act = who == "same" or (who == "nothing" and not cookies)
            assert (await browser.post("/nothing", headers=headers)).status_code == (200 if may_act else 403)
            assert (await browser.get("/nothing", headers=headers)).status_code == 200


async def test_a_log_in_counts_more_than_the_refresh_of_the_same_request(tables):
    store = cart_store()
    old, new = [await store.create(tables, Cart([item])) for item in ("old", "new")]

    async def change(request: Request) -> Response:
        start_session(request, store, new)
        session = await session_in(request, store)
        assert session is not None
        return PlainTextResponse(session.data.items[0])

    app = SessionCookies(Starlette(routes=[Route("/", change)]), store, lambda _: tables)
    async with browsing(app, session_refresh=old.refresh_token) as browser:
        answer = await browser.get("/")
        assert (answer.text, set_cookies(answer)[ACCESS].value) == ("old", new.access_token)


async def test_an_answer_that_has_begun_takes_no_tokens_along(tables):
    store = cart_store()
    pair = await store.create(tables, Cart(["tea"]))
    app = application(tables, store)
    async with browsing(app, session_access=pair.access_token) as browser:
        assert (await browser.get("/too-late")).text == "begun, tea"
    async with browsing(app, session_refresh=pair.refresh_token) as browser:
        assert (await browser.get("/too-late")).text == "begun, nobody"
    assert len(await pair_rows(tables)) == 1  # and nothing was refreshed for nobody


async def test_two_stores_have_cookies_of_their_own(tables):
    staff = cart_store(issuer="staff")
    app = SessionCookies(application(tables, cart_store()), staff, lambda _: tables, name="staff")
    pair = await staff.create(tables, Cart(["key"]))
    async with browsing(app, staff_access=pair.access_token) as browser:
        assert (await browser.get("/look")).text == "nobody"
        assert (await browser.post("/log-in?item=tea")).text == "in"
        assert set(browser.cookies) == {"staff-access", ACCESS, REFRESH}
        assert (await browser.get("/look")).text == "tea"


async def test_without_the_middleware_it_says_what_is_missing():
    request = Request({"type": "http", "headers": []})
    for ask in (start_session, end_session):
        with pytest.raises(LookupError, match="add_middleware"):
            ask(request, cart_store(), *([None] if ask is start_session else []))
    with pytest.raises(LookupError, match="add_middleware"):
        await session_in(request, cart_store())


async def talked(app: Any, cookies: dict[str, str], headers: dict[str, str]) -> str | int:
    """What a WebSocket hears first, or the code with which it is closed before."""
    jar = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} if cookies else {}
    raw = [(name.lower().encode(), value.encode()) for name, value in ({"Host": "shop"} | jar | headers).items()]
    scope = {"type": "websocket", "scheme": "ws", "path": "/talk", "query_string": b"", "headers": raw}
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope | {"server": ("shop", 80), "subprotocols": []}, receive, send)
    first = sent[1] if sent[0]["type"] == "websocket.accept" else sent[0]
    return first.get("text") or first["code"]


async def test_a_websocket_is_of_this_site_and_refreshes_nothing(tables):
    store = cart_store()
    pair = await store.create(tables, Cart(["tea"]))
    app = application(tables, store)
    access, refresh = {ACCESS: pair.access_token}, {REFRESH: pair.refresh_token}
    assert await talked(app, access, HERE) == "tea"
    assert await talked(app, access, {"Origin": "http://evil"}) == 1008
    assert await talked(app, access, {}) == 1008
    assert await talked(app, {}, {}) == "nobody"
    assert await talked(app, refresh, HERE) == "nobody"
    assert len(await pair_rows(tables)) == 1
