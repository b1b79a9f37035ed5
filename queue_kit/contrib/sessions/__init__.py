"""A session store: sessions in the database behind pairs of an access and a refresh token. Extra `sessions`.

    store = SessionStore(Cart, keys=[SigningKey("2026-11", secret)], issuer="shop")
    jobs.include(session_jobs(store))

Doors to web frameworks are modules of their own: `fastapi`, `starlette`, `aiohttp`. See docs/sessions.md.
"""

from importlib.util import find_spec

if find_spec("jwt") is None:
    raise ImportError("the session store needs PyJWT: pip install 'queue-kit[sessions]'")

from queue_kit.contrib.sessions._tokens import SigningKey
from queue_kit.contrib.sessions.errors import (
    ExpiredToken,
    InvalidSessionData,
    InvalidToken,
    LeakedSession,
    RevokedSession,
    RevokedToken,
    SessionConflict,
    SessionError,
    Unauthorized,
    UnknownSession,
)
from queue_kit.contrib.sessions.jobs import (
    job_session_store_cleanup,
    job_session_store_process_leaked_session,
    session_jobs,
)
from queue_kit.contrib.sessions.models import SessionRow, SessionTokenRow
from queue_kit.contrib.sessions.session import LeakReport, Session, TokenAges, TokenPair
from queue_kit.contrib.sessions.store import SessionStore

__all__ = [
    "ExpiredToken",
    "InvalidSessionData",
    "InvalidToken",
    "LeakReport",
    "LeakedSession",
    "RevokedSession",
    "RevokedToken",
    "Session",
    "SessionConflict",
    "SessionError",
    "SessionRow",
    "SessionStore",
    "SessionTokenRow",
    "SigningKey",
    "TokenAges",
    "TokenPair",
    "Unauthorized",
    "UnknownSession",
    "job_session_store_cleanup",
    "job_session_store_process_leaked_session",
    "session_jobs",
]
