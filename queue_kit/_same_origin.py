"""Whether a request comes from a page of the site that it asks, as browsers say it."""

from collections.abc import Mapping
from urllib.parse import urlsplit


def is_same_origin(headers: Mapping[str, str]) -> bool | None:
    """Whether the browser says so; `None` when it says nothing, as what is no browser does.

    Sec-Fetch-Site holds also behind a proxy that changes the host, and browsers send it over TLS and to their own
    machine. Else Origin must name the host that was asked.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    if origin is None:
        return None
    try:
        asked = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(asked) and asked.lower() == headers.get("host", "").lower()
