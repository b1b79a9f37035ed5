"""How a change shows that it was meant: the browser says that it comes from this site (Sec-Fetch-Site, else Origin),
and its form holds a token that only a page of this dashboard can know.

The token is made of a secret in a cookie that no script reads, so it needs nothing that the processes behind one
address would have to share.
"""

import hmac
import secrets
from collections.abc import Mapping
from typing import TypeAlias
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

from queue_kit.dashboard._access import access_of

MAX_BYTES = 64 * 1024
MAX_FIELDS = 600

Form: TypeAlias = Mapping[str, list[str]]

_FORM, _KEY, _NEW_KEY = "queue_kit.dashboard.form", "queue_kit.dashboard.key", "queue_kit.dashboard.new_key"


def find_key(request: Request) -> None:
    """Note the secret of the request's cookie, a new one when there is none."""
    key = request.cookies.get(_cookie_name(request), "")
    if len(key) < 32:
        key = request.scope[_NEW_KEY] = secrets.token_urlsafe(32)
    request.scope[_KEY] = key


def new_cookie(request: Request) -> str | None:
    """The `Set-Cookie` of a secret that the browser does not have yet."""
    if _NEW_KEY not in request.scope:
        return None
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{_cookie_name(request)}={request.scope[_NEW_KEY]}; Path=/; HttpOnly; SameSite=Strict{secure}"


def _cookie_name(request: Request) -> str:
    # The prefix makes browsers refuse one that was set without TLS, or by another host of the domain.
    return "__Host-queue_kit_dashboard" if request.url.scheme == "https" else "queue_kit_dashboard"


def token_for(request: Request) -> str:
    """What a form needs to be accepted: never twice the same, of no use with another cookie or for somebody else."""
    salt = secrets.token_hex(8)
    return salt + _signature(request, salt)


def has_token(request: Request, form: Form) -> bool:
    """Whether a form was made by `token_for`, for this browser and this person."""
    token = form.get("token", [""])[0]
    salt, given = token[:16], token[16:]
    return _NEW_KEY not in request.scope and hmac.compare_digest(_signature(request, salt).encode(), given.encode())


def proof_of(request: Request, said: str) -> str:
    """What goes with a sentence in an address, so that no link of somebody else's says it."""
    return _signature(request, said)[:16]


def _signature(request: Request, salt: str) -> str:
    access = access_of(request)
    message = f"{salt}:{access.who if access else ''}"
    return hmac.digest(str(request.scope[_KEY]).encode(), message.encode("utf-8", "replace"), "sha256").hex()


async def read_form(request: Request) -> Form:
    """The form that was posted. Raises `HTTPException` for what is none, or too large."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "A form is expected here.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, "This form is too large.")
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise HTTPException(400, "This form cannot be read.") from None


def accept(request: Request, form: Form) -> None:
    """Note the form of a change that was meant."""
    request.scope[_FORM] = form


def form_of(request: Request) -> Form:
    """The accepted form of a change. A `KeyError` where there is none, so nothing changes that passed no guard."""
    form: Form = request.scope[_FORM]
    return form
