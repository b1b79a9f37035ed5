"""Access tokens: a link to one file for a short time, for who has no session, such as an `<img>` of another site.

A token is a JWT of one algorithm, whatever it says itself. It holds the file's id and two times, nothing secret. It is
valid for whoever has it until it expires: the clock is that of the process, and there is no way to take it back but
another key.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import TypeAlias
from uuid import UUID

import jwt
from jwt.utils import base64url_decode, base64url_encode

from queue_kit.contrib.files.errors import InvalidFileToken
from queue_kit.errors import ConfigurationError
from queue_kit.job import Seconds, in_seconds

SigningKey: TypeAlias = str | bytes

_ALGORITHM = "HS256"
_AUDIENCE = "queue_kit.file"
_SHORTEST_KEY = hashlib.sha256().digest_size
_LONGEST_TOKEN = 1_000
_LEEWAY = 10.0
"""Seconds by which the clocks of two servers may differ."""


def sign_file_access_token(file_id: UUID, *, signing_key: SigningKey, max_age: Seconds = 300.0) -> str:
    """A token that lets whoever has it see this file for `max_age` seconds (or a timedelta).

    `signing_key` is a secret of at least 32 bytes, such as `secrets.token_bytes(32)`. Raises `ConfigurationError` for a
    shorter one, and for an age that is none; `TypeError` for an id that is no `UUID`.

    >>> from uuid import UUID
    >>> token = sign_file_access_token(UUID(int=7), signing_key=b"k" * 32, max_age=60)
    """
    key = _check_key(signing_key, "signing_key")
    seconds = in_seconds(max_age)
    if seconds is None or not 1 <= seconds <= 366 * 86_400:
        raise ConfigurationError(f"max_age is seconds from 1 to a year, not {max_age!r}")
    now = int(time.time())
    claims = {"aud": _AUDIENCE, "sub": str(_check_id(file_id)), "iat": now, "exp": now + int(seconds)}
    return jwt.encode(claims, key, _ALGORITHM)


def verify_file_access_token(
    token: str, file_id: UUID, *, signing_key: SigningKey, previous_keys: Sequence[SigningKey] = ()
) -> None:
    """Raise `InvalidFileToken` unless the token lets somebody see this file now.

    `previous_keys` are those that tokens may still be signed with after a change of the key. Raises
    `ConfigurationError` for a key of less than 32 bytes, and `TypeError` for an id that is no `UUID`.

    >>> from uuid import UUID
    >>> key = b"k" * 32
    >>> verify_file_access_token(sign_file_access_token(UUID(int=7), signing_key=key), UUID(int=7), signing_key=key)
    """
    keys = [_check_key(signing_key, "signing_key"), *(_check_key(each, "previous_keys") for each in previous_keys)]
    _check_id(file_id)
    if not isinstance(token, str) or len(token) > _LONGEST_TOKEN or not _is_canonical(token):
        raise InvalidFileToken("this is no access token")
    if not any(_opens(token, key, file_id) for key in keys):
        raise InvalidFileToken("this access token is expired, of another file, or not of this server")


def _opens(token: str, key: bytes, file_id: UUID) -> bool:
    try:
        claims = jwt.decode(
            token,
            key,
            [_ALGORITHM],
            {"require": ["aud", "sub", "iat", "exp"], "strict_aud": True},
            audience=_AUDIENCE,
            leeway=_LEEWAY,
        )
    except jwt.InvalidTokenError:
        return False
    return bool(claims["sub"] == str(file_id))


def _is_canonical(token: str) -> bool:
    """Whether the signature is spelled as it is made: base64 has several spellings of the same bytes."""
    signature = token.rpartition(".")[2]
    try:
        return base64url_encode(base64url_decode(signature)).decode() == signature
    except ValueError:
        return False


def _check_key(key: object, argument: str) -> bytes:
    secret = key.encode() if isinstance(key, str) else key
    if not isinstance(secret, bytes) or len(secret) < _SHORTEST_KEY:
        raise ConfigurationError(
            f"{argument}: a key has at least {_SHORTEST_KEY} bytes, as secrets.token_bytes(32) makes it"
        )
    return secret


def _check_id(file_id: object) -> UUID:
    if not isinstance(file_id, UUID):
        raise TypeError(f"file_id must be a UUID, not {type(file_id).__name__}")
    return file_id
