"""The dashboard: a web page on the queue, as an ASGI application to mount in one's own. Extra `dashboard`.

    app.mount("/queue", dashboard(engine, authorize=authorize))

It shows nothing to anybody whom `authorize` does not let in. See docs/dashboard.md.
"""

from importlib.util import find_spec

if find_spec("starlette") is None or find_spec("jinja2") is None:
    raise ImportError("the dashboard needs Starlette and Jinja2: pip install 'queue-kit[dashboard]'")

from queue_kit.dashboard._access import Access, Authorize
from queue_kit.dashboard._app import dashboard

__all__ = ["Access", "Authorize", "dashboard"]
