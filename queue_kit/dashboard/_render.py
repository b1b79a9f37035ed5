"""Templates to responses. Everything is escaped; links are relative, so that the dashboard works under any prefix."""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from http.client import responses
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from queue_kit.dashboard import _forms, _wording
from queue_kit.dashboard._access import access_of, depth_of
from queue_kit.dashboard._asking import id_of

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
    500: "This cannot be shown",
    503: "The queue does not answer",
}


NOTICES = {
    "cancelled": "The job is cancelled.",
    "asked": "The job runs, and was asked to end.",
    "complete": "The job was complete already, so nothing was changed.",
    "retried": "The job is queued again, with all its tries.",
    "run": "The job is due now.",
    "cron_run": "The entry is due now.",
    "cron_paused": "The entry is paused. What it misses meanwhile is not made up.",
    "cron_resumed": "The entry goes on.",
    "many_retried": "{0} job{1} queued again.",
    "many_cancelled": "{0} job{1} cancelled, or asked to end.",
}


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""What a terminal may take for a command, were a page printed there."""


class Renderer:
    """Makes pages of the templates."""

    def __init__(self, title: str) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "number": _wording.number,
            "span": _wording.span,
            "size": _wording.size,
            "absolute": _wording.absolute,
        }
        self._environment.globals |= {
            "title_of_dashboard": title,
            "query": query,
            "exactly": exactly,
            "static": _static,
        }

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page for somebody who was let in."""
        now = datetime.now(UTC)
        text = self._environment.get_template(template).render(
            access=access_of(request),
            up=up(request),
            token=lambda: _forms.token_for(request),
            notice=_notice(request),
            ago=lambda instant: _wording.ago(instant, now),
            **values,
        )
        return HTMLResponse(_CONTROLS.sub(_reference, text).encode("utf-8", "replace"), status)

    def refusal(self, request: Request, error: HTTPException) -> Response:
        """Why there is no page, or no change."""
        title = TITLES.get(error.status_code, "That did not work")
        detail = "" if error.detail == responses.get(error.status_code) else error.detail
        response = self.page(request, "refusal.html", status=error.status_code, title=title, detail=detail)
        response.headers.update(error.headers or {})
        return response


def _notice(request: Request) -> str | None:
    """What a change came to. An address only says which sentence, and numbers: nobody can put words in it, and numbers
    only who made the change."""
    given = request.query_params
    text = NOTICES.get(given.get("notice", ""))
    if text is None or access_of(request) is None:
        return None
    if "{0}" in text and given.get("proof") != _proof(request, given):
        return None
    counts = {key: id_of(given.get(key, "")) or 0 for key in ("count", "skipped")}
    skipped = f" {_wording.number(counts['skipped'])} could not be changed." if counts["skipped"] else ""
    more = " There are more of them." if given.get("more") else ""
    return text.format(_wording.number(counts["count"]), "" if counts["count"] == 1 else "s") + skipped + more


def proven(request: Request, **said: Any) -> dict[str, Any]:
    """A notice and its numbers for the address of the page to come, with the proof that they are ours."""
    return {**said, "proof": _proof(request, said)}


def _proof(request: Request, said: Mapping[str, Any]) -> str:
    parts = (said.get(key) for key in ("notice", "count", "skipped", "more"))
    return _forms.proof_of(request, " ".join("" if part is None else str(part) for part in parts))


def up(request: Request) -> str:
    """The way from a page to the dashboard's root."""
    return "../" * depth_of(request) or "./"


def see(path: str, **values: Any) -> Response:
    """Lead to another page, by a relative path: that holds under any prefix, and behind any proxy."""
    return Response(status_code=303, headers={"location": path + query(values)})


def query(values: Mapping[str, Any], **changes: Any) -> str:
    """The query of a link; what is None or empty is left out."""
    return exactly({key: value for key, value in {**values, **changes}.items() if value not in (None, "")})


def exactly(values: Mapping[str, Any]) -> str:
    """The query of a link, in which an empty text says something."""
    return "?" + urlencode(values) if values else ""


def _reference(control: re.Match[str]) -> str:
    """The same for a browser: a form gives the very value back."""
    return f"&#{ord(control[0])};"


@cache
def _static(name: str) -> str:
    """The address of a file, which changes with what is in it, so that browsers may keep it."""
    return f"static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"
