"""Bearer tokens in HTTP headers, in the words of RFC 6750; pure, and the same for every framework."""

from collections.abc import Sequence

from queue_kit.contrib.sessions.errors import InvalidToken, Unauthorized


def bearer_token(authorization: Sequence[str]) -> str | None:
    """The token in a request's `Authorization` headers; `None` when there is none, or another scheme's. Raises
    `InvalidToken` when there are several headers: which one counts must not depend on who reads them."""
    if len(authorization) > 1:
        raise InvalidToken
    scheme, _, token = "".join(authorization).strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def description(error: Unauthorized | None) -> str:
    """What the body of a 401 says."""
    return "a bearer token is needed" if error is None else error.description


def challenge(realm: str, error: Unauthorized | None) -> str:
    """The `WWW-Authenticate` of a 401: without an error code for a request that brought no token."""
    if error is None:
        return f'Bearer realm="{realm}"'
    return f'Bearer realm="{realm}", error="invalid_token", error_description="{error.description}"'
