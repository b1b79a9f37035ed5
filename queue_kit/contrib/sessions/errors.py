"""What the session store raises, in one tree under `QueueKitError`. No message holds a token, or a part of one.

    SessionError
    ├── Unauthorized                what a request is answered with 401 for
    │   ├── InvalidToken            not a token of this store: forged, spoiled, of the other type, another key or issuer
    │   ├── ExpiredToken            its time is over
    │   ├── RevokedToken            it was valid once: a refresh has put a newer pair in its place
    │   │   └── RevokedSession      the session was revoked, and all of its tokens with it
    │   │       └── LeakedSession   by this very call: a refresh token came again long after its first use
    │   └── UnknownSession (LookupError)    nothing is stored of it: the cleanup took it, or there never was one
    ├── SessionConflict             the session was changed by somebody else since it was read
    └── InvalidSessionData (ValueError)     data that the store's type does not accept; names the place

A client whose access token is expired or replaced refreshes; after the other `Unauthorized` it logs in again.
"""

from typing import ClassVar
from uuid import UUID

from queue_kit.errors import QueueKitError


class SessionError(QueueKitError):
    """The root: catches everything that the session store refuses."""


class Unauthorized(SessionError):
    """A token that is not accepted. `description` is what its sender may know: not why it is invalid, which would help
    to forge one, nor that a leak was noticed."""

    description: ClassVar[str] = "the token is not valid"

    def __init__(self) -> None:
        super().__init__(self.description)


class InvalidToken(Unauthorized):
    """Not a token of this store, or not of the type that is asked for."""


class ExpiredToken(Unauthorized):
    """The token's time is over, by the database's clock."""

    description = "the token has expired"


class RevokedToken(Unauthorized):
    """The token is not valid any more, though its time is not over. `session_id` says of which session it is."""

    description = "the token was replaced by a refresh"

    def __init__(self, session_id: UUID) -> None:
        super().__init__()
        self.session_id = session_id


class RevokedSession(RevokedToken):
    """The session was revoked: by `invalidate`, or because a refresh token of it leaked."""

    description = "the session has ended"


class LeakedSession(RevokedSession):
    """A refresh token came again after its grace: somebody has a copy. The session is revoked and the report added."""


class UnknownSession(Unauthorized, LookupError):
    """Nothing is stored of this session any more, or there never was such a session."""

    description = "the session has ended"


class SessionConflict(SessionError):
    """The session's data was changed by somebody else since it was read. Get it again, apply the change, update."""

    def __init__(self, session_id: UUID) -> None:
        super().__init__(f"session {session_id} was changed since it was read: get it again, then update")
        self.session_id = session_id


class InvalidSessionData(SessionError, ValueError):
    """Data that the store's type does not accept. `path` is the place inside of it (`$.user.name`)."""

    def __init__(self, problem: str, *, path: str | None = None) -> None:
        super().__init__(f"data{f' at {path}' if path else ''}: {problem}")
        self.problem = problem
        self.path = path
