"""The tokens themselves: made, verified, and derived from one another. Knows no database; what a verified token claims
is held against its row by `store`.

A token is a JWT that carries ids and times alone. Its id is 256 secret bits, of which the database has the hash. The
ids of the first pair of a session are random. Those of each further pair are an HMAC over the refresh token before it,
so whoever holds that can be given the same pair again, while nothing in the database leads to it.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, TypeAlias
from uuid import UUID

import jwt

from queue_kit.contrib.sessions.errors import InvalidToken
from queue_kit.errors import ConfigurationError

Algorithm: TypeAlias = Literal["HS256", "HS384", "HS512"]

_KEY_BYTES: Mapping[str, int] = {"HS256": 32, "HS384": 48, "HS512": 64}
_CLAIMS = ["jti", "sid", "typ", "iss", "aud", "iat", "exp"]
_LONGEST = 2_048
"""Characters of a token. Ours have 400, with the longest names 1,400; what is longer than any is not even parsed."""
_SHAPE = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_WORD = re.compile(r"[ !#-\[\]-~]{1,200}")
"""Printable ASCII without quotes and backslashes: the issuer also goes into a header."""


class TokenType(StrEnum):
    """What a token is for."""

    access = "access"
    refresh = "refresh"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that tokens are signed with. `id` is public, it stands in each token's header; `secret` is not.

    The secret is random bytes, or text that was made of them: `secrets.token_urlsafe(64)`. How many it needs depends on
    the store's algorithm, and the store refuses a shorter one. Raises `ConfigurationError` for an id that is not 1 to
    200 characters of printable ASCII.

    >>> SigningKey("2026-11", "a-secret-that-is-really-from-the-environment")
    SigningKey(id='2026-11')
    """

    id: str
    secret: str | bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_word(self.id, "id")
        secret: object = self.secret
        if not isinstance(secret, str | bytes):
            raise ConfigurationError(f"secret is text or bytes, not {type(secret).__name__}")

    @property
    def octets(self) -> bytes:
        """The secret as bytes."""
        return self.secret.encode() if isinstance(self.secret, str) else self.secret


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says of itself."""

    hash: bytes
    token_id: str = field(repr=False)
    session_id: UUID
    key_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class PairIds:
    """The secret ids of a pair's two tokens."""

    access: str = field(repr=False)
    refresh: str = field(repr=False)


class Tokens:
    """Makes and verifies the tokens of one store: one issuer, one algorithm, a few keys of which the first signs."""

    def __init__(self, keys: Sequence[SigningKey], *, issuer: str, audience: str, algorithm: Algorithm) -> None:
        if algorithm not in _KEY_BYTES:
            raise ConfigurationError(f"algorithm is one of {', '.join(_KEY_BYTES)}, not {algorithm!r}")
        self.issuer = check_word(issuer, "issuer")
        self._audience = check_word(audience, "audience")
        self._algorithm: str = algorithm
        self._keys = _checked(keys, algorithm)
        self.signing_key_id = next(iter(self._keys))

    def new_ids(self) -> PairIds:
        """The ids of a session's first pair."""
        return PairIds(secrets.token_urlsafe(32), secrets.token_urlsafe(32))

    def next_ids(self, refresh: Claims, successor_id: UUID, key_id: str) -> PairIds:
        """The ids of the pair that takes the place of a refresh token's, the same for each who holds that token."""
        key = self._key(key_id)

        def derived(type_: TokenType) -> str:
            # No JWT's signing input has a space in it, so this HMAC is never a signature.
            message = f"queue_kit successor {type_} {successor_id} {refresh.token_id}".encode()
            return base64.urlsafe_b64encode(hmac.digest(key, message, "sha256")).rstrip(b"=").decode()

        return PairIds(derived(TokenType.access), derived(TokenType.refresh))

    def sign(
        self, type_: TokenType, token_id: str, session_id: UUID, key_id: str, created_at: datetime, expires_at: datetime
    ) -> str:
        """The token. The same arguments give the same text."""
        claims = {
            "jti": token_id,
            "sid": str(session_id),
            "typ": type_.value,
            "iss": self.issuer,
            "aud": self._audience_of(type_),
            "iat": int(whole_second(created_at).timestamp()),
            "exp": int(whole_second(expires_at).timestamp()),
        }
        return jwt.encode(claims, self._key(key_id), algorithm=self._algorithm, headers={"kid": key_id})

    def verify(self, token: object, type_: TokenType) -> Claims:
        """What a token of ours claims. Raises `InvalidToken` for anything else.

        Whether its time is over is not looked at: the database's clock decides that, not the one of this process.
        """
        if not isinstance(token, str) or len(token) > _LONGEST or not _SHAPE.fullmatch(token):
            raise InvalidToken
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            if key_id not in self._keys:
                raise InvalidToken
            claims = jwt.decode(
                token,
                self._keys[key_id],
                algorithms=[self._algorithm],
                issuer=self.issuer,
                audience=self._audience_of(type_),
                options={"require": _CLAIMS, "strict_aud": True, "verify_exp": False, "verify_iat": False},
            )
            return _read(claims, key_id, type_)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise InvalidToken from None

    def _audience_of(self, type_: TokenType) -> str:
        return f"{self._audience}/{type_}"

    def _key(self, key_id: str) -> bytes:
        try:
            return self._keys[key_id]
        except KeyError:
            raise ConfigurationError(
                f"the stored session was signed with key {key_id!r}, which is not among this store's: give a new key "
                "to all processes before one of them signs with it"
            ) from None


def hash_of(token_id: str) -> bytes:
    """What the database has of a token's id."""
    return hashlib.sha256(token_id.encode()).digest()


def whole_second(instant: datetime) -> datetime:
    """A time as a token can say it."""
    return instant.replace(microsecond=0)


def check_word(value: object, which: str) -> str:
    """Text that can stand in a token and in a header; else a `ConfigurationError`."""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ConfigurationError(
            f"{which} is 1 to 200 characters of printable ASCII without quotes and backslashes, not {value!r}"
        )
    return value


def _checked(keys: object, algorithm: Algorithm) -> dict[str, bytes]:
    if not isinstance(keys, Sequence):
        raise ConfigurationError(f"keys is a list of SigningKey values, not {type(keys).__name__}; the first one signs")
    found: dict[str, bytes] = {}
    for key in keys:
        if not isinstance(key, SigningKey):
            raise ConfigurationError(f"keys are SigningKey values, not {type(key).__name__}")
        if key.id in found:
            raise ConfigurationError(f"two keys have the id {key.id!r}: a new key has a new id")
        if len(key.octets) < _KEY_BYTES[algorithm]:
            raise ConfigurationError(
                f"the secret of key {key.id!r} has {len(key.octets)} bytes, {algorithm} needs at least "
                f"{_KEY_BYTES[algorithm]}: make one with secrets.token_urlsafe(64)"
            )
        try:
            jwt.encode({}, key.octets, algorithm=algorithm)
        except jwt.InvalidKeyError:
            raise ConfigurationError(
                f"key {key.id!r} is half of a key pair, which others may know: make a secret with "
                "secrets.token_urlsafe(64)"
            ) from None
        found[key.id] = key.octets
    if not found:
        raise ConfigurationError("keys needs at least one SigningKey; the first one signs")
    return found


def _read(claims: Mapping[str, Any], key_id: str, type_: TokenType) -> Claims:
    token_id, session_id, expires = claims["jti"], claims["sid"], claims["exp"]
    well_formed = isinstance(token_id, str) and isinstance(session_id, str) and type(expires) is int
    if not well_formed or claims["typ"] != type_.value:
        raise InvalidToken
    return Claims(hash_of(token_id), token_id, UUID(session_id), key_id, datetime.fromtimestamp(expires, UTC))
