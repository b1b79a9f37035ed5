"""A session's data on its way to the database and back, as a handler's payload is read (`queue_kit._payload`); and its
checksum, by which an update knows that there is nothing to write.
"""

import hashlib
import json
from typing import Any, Generic, TypeVar

from queue_kit._payload import payload_for
from queue_kit.contrib.sessions.errors import InvalidSessionData
from queue_kit.errors import InvalidJob
from queue_kit.job import check_payload

T = TypeVar("T")


class SessionData(Generic[T]):
    """Turns the data of one store into JSON and back."""

    def __init__(self, type_: type[T]) -> None:
        self._payload = payload_for(type_)

    def encode(self, value: T) -> tuple[Any, str]:
        """JSON for the database, and its checksum. Raises `InvalidSessionData`."""
        try:
            encoded = check_payload(self._payload.encode(value))
        except InvalidJob as error:
            raise InvalidSessionData(error.problem, path=error.path) from None
        if encoded is None:
            raise InvalidSessionData("must not be null; store an empty object", path="$")
        text = json.dumps(encoded, sort_keys=True, separators=(",", ":"))
        return encoded, hashlib.sha256(text.encode()).hexdigest()

    def decode(self, stored: object) -> T:
        """What `get` gives out. Raises `InvalidSessionData` for data that does not fit the type any more."""
        try:
            value: T = self._payload.decode(stored)
        except InvalidJob as error:
            raise InvalidSessionData(error.problem, path=error.path) from None
        return value
