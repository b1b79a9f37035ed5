"""What of a job is not for the eyes of whoever looks at the dashboard."""

import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase, translate
from typing import Any

from queue_kit.dashboard._access import Access
from queue_kit.errors import ConfigurationError

HIDDEN = "[hidden]"

HIDDEN_KEYS = (
    "*password*",
    "*passwd*",
    "*passphrase*",
    "*secret*",
    "*token*",
    "*authorization*",
    "*cookie*",
    "*credential*",
    "*api_key*",
    "*apikey*",
    "*access_key*",
    "*accesskey*",
    "*private_key*",
    "*privatekey*",
    "*card_number*",
    "*cardnumber*",
    "*passcode*",
    "*bearer*",
    "*signature*",
    "*database_url*",
    "*pwd*",
    "*jwt*",
    "pass",
    "*_pass",
    "auth",
    "*_auth",
    "otp",
    "pin",
    "pan",
    "session",
    "session_id",
    "sessionid",
    "cvc",
    "cvv",
    "iban",
    "ssn",
)
"""Patterns of the keys whose values are hidden by default. Letters of either case are one, and so are `-`, `_`, dots
and spaces. A list of two, as of a header's name and value, counts as a key and its value."""


class Privacy:
    """Hides the payloads of some jobs wholly, and the values of some keys in the others."""

    def __init__(self, hidden_names: Collection[str], hidden_keys: Collection[str]) -> None:
        self._names = _patterns("hidden_names", hidden_names)
        self._is_hidden = _any_of(_plain(each) for each in _patterns("hidden_keys", hidden_keys))

    def hides(self, name: str, access: Access) -> bool:
        """Whether the payload and the errors' texts of a job are not shown."""
        return not access.payloads or any(fnmatchcase(name, pattern) for pattern in self._names)

    def redacted(self, data: Any, most: int) -> Any:
        """A payload without the values of hidden keys, and without what comes after its first `most` characters as
        indented JSON: an application's loop does not stand still for what nobody is shown."""
        return self._redacted(data, [most])

    def _redacted(self, data: Any, left: list[int]) -> Any:
        if isinstance(data, dict):
            kept = {}
            for key, value in data.items():
                if left[0] < 0:
                    break
                left[0] -= _AROUND_KEY + len(key)
                kept[key] = HIDDEN if self._is_hidden(_plain(key)) else self._redacted(value, left)
            return kept
        if isinstance(data, list):
            if len(data) == 2 and isinstance(data[0], str) and self._is_hidden(_plain(data[0])):  # a header, mostly
                return [data[0], HIDDEN]
            elements = []
            for each in data:
                if left[0] < 0:
                    break
                left[0] -= _AROUND_ELEMENT
                elements.append(self._redacted(each, left))
            return elements
        left[0] -= len(data) if isinstance(data, str) else 1
        return data


_AROUND_KEY = 7
"""Characters around a key, at least: a line's end, two spaces, quotes, a colon and a space."""

_AROUND_ELEMENT = 3


def _any_of(patterns: Iterable[str]) -> Callable[[str], object]:
    """Whether a text fits one of the patterns: all of them are one expression, which is ten times as quick."""
    return re.compile("|".join(translate(each) for each in patterns) or r"(?!)").match


def _plain(key: str) -> str:
    return key.lower().translate(_ALIKE)


_ALIKE = str.maketrans("-. ", "___")


def _patterns(argument: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Collection) or not all(isinstance(each, str) for each in given):
        raise ConfigurationError(f'{argument} is a collection of patterns, like ["payment.*"], not {given!r}')
    return tuple(str(each) for each in given)
