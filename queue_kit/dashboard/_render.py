"""Templates to responses. Everything is escaped; links are relative, so that the dashboard works under any prefix."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from queue_kit.dashboard import _forms, _wording
from queue_kit.dashboard._access import access_of, path_of

HERE = Path(__file__).parent
STATIC = HERE / "static"

TITLES = {
    400: "That cannot be read",
    401: "Sign in first",
    403: "Not allowed",
    404: "Nothing here",
    405: "Not like this",
    409: "It is too late for that",
    413: "Too large",
    415: "Not a form",
    503: "The database does not answer",
}


class Renderer:
    """Makes pages of the templates."""

    def __init__(self, title: str) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "number": _wording.number,
            "span": _wording.span,
            "size": _wording.size,
            "absolute": _wording.absolute,
        }
        self._environment.globals |= {"title_of_dashboard": title, "query": query, "static": _static}

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page for somebody who was let in."""
        now = datetime.now(UTC)
        text = self._environment.get_template(template).render(
            access=access_of(request),
            up=up(request),
            token=lambda: _forms.token_for(request),
            ago=lambda instant: _wording.ago(instant, now),
            **values,
        )
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def refusal(self, request: Request, error: HTTPException) -> Response:
        """Why there is no page, or no change."""
        title = TITLES.get(error.status_code, "That did not work")
        response = self.page(request, "refusal.html", status=error.status_code, title=title, detail=error.detail)
        response.headers.update(error.headers or {})
        return response


def up(request: Request) -> str:
    """The way from a page to the dashboard's root."""
    return "../" * (path_of(request).count("/") - 1) or "./"


def query(values: Mapping[str, Any], **changes: Any) -> str:
    """The query of a link; what is None or empty is left out."""
    kept = {key: value for key, value in {**values, **changes}.items() if value not in (None, "")}
    return "?" + urlencode(kept) if kept else ""


@cache
def _static(name: str) -> str:
    """The address of a file, which changes with what is in it, so that browsers may keep it."""
    return f"static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"
