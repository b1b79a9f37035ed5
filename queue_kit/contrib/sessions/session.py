"""The values of the session store: what it gives out (`Session`, `TokenPair`), what it is told (`TokenAges`), and what
it reports of a leak (`LeakReport`). All are frozen; what is secret in them is never shown by `repr`.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar
from uuid import UUID

from queue_kit.errors import ConfigurationError
from queue_kit.job import Seconds, in_seconds

T = TypeVar("T")

LONGEST_AGE = timedelta(days=3_650)


@dataclass(frozen=True, slots=True)
class Session(Generic[T]):
    """A session as it was when it was read. `checksum` is that of the stored data: `update` knows by it whether there
    is anything to write, and whether somebody else wrote meanwhile.

    >>> from dataclasses import replace
    >>> def add(session, item):
    ...     return replace(session, data=[*session.data, item])
    """

    id: UUID
    data: T
    checksum: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class TokenPair:
    """An access token for requests and the refresh token for the next pair. Both are secrets: send them over TLS, in
    an answer with `Cache-Control: no-store`."""

    session_id: UUID
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_expires_at: datetime


@dataclass(frozen=True, slots=True)
class TokenAges:
    """How long the tokens of a pair are valid, in seconds or as a timedelta: from 1 second to ten years.

    Raises `ConfigurationError` for anything else, and for an access token that would outlive its refresh token.

    >>> TokenAges(access=300, refresh=30 * 86_400).access
    300
    """

    access: Seconds = 900
    refresh: Seconds = timedelta(days=14)

    def __post_init__(self) -> None:
        if self.seconds[0] > self.seconds[1]:
            raise ConfigurationError("access must not be longer than refresh: a session ends with its refresh token")

    @property
    def seconds(self) -> tuple[float, float]:
        """Both in seconds."""
        return _seconds(self.access, "access"), _seconds(self.refresh, "refresh")


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What is known of a session that was revoked because a refresh token came again: ids and times, no token.

    `refreshed_at` are the last four times its tokens were refreshed, the oldest first.
    """

    session_id: UUID
    created_at: datetime
    updated_at: datetime
    revoked_at: datetime
    refreshed_at: tuple[datetime, ...]


def _seconds(age: object, which: str) -> float:
    seconds = in_seconds(age)
    if seconds is None:
        raise ConfigurationError(f"{which} is seconds (a number or a timedelta), not {type(age).__name__}")
    if not 1 <= seconds <= LONGEST_AGE.total_seconds():
        raise ConfigurationError(f"{which} is from 1 second to {LONGEST_AGE.days:,} days, not {age!r}")
    return float(seconds)
