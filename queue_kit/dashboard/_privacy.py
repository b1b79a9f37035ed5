"""What of a job is not for the eyes of whoever looks at the dashboard."""

from collections.abc import Collection
from fnmatch import fnmatchcase
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
    "cvc",
    "cvv",
    "iban",
    "ssn",
)
"""Patterns of the keys whose values are hidden by default. Letters of either case are one, and so are `-` and `_`."""


class Privacy:
    """Hides the payloads of some jobs wholly, and the values of some keys in the others."""

    def __init__(self, hidden_names: Collection[str], hidden_keys: Collection[str]) -> None:
        self._names = _patterns("hidden_names", hidden_names)
        self._keys = tuple(_plain(each) for each in _patterns("hidden_keys", hidden_keys))

    def hides(self, name: str, access: Access) -> bool:
        """Whether the payload and the errors' texts of a job are not shown."""
        return not access.payloads or any(fnmatchcase(name, pattern) for pattern in self._names)

    def redacted(self, data: Any) -> Any:
        """A payload without the values of hidden keys."""
        if isinstance(data, dict):
            return {key: HIDDEN if self._is_hidden(key) else self.redacted(value) for key, value in data.items()}
        if isinstance(data, list):
            return [self.redacted(each) for each in data]
        return data

    def _is_hidden(self, key: str) -> bool:
        return any(fnmatchcase(_plain(key), pattern) for pattern in self._keys)


def _plain(key: str) -> str:
    return key.lower().replace("-", "_")


def _patterns(argument: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Collection) or not all(isinstance(each, str) for each in given):
        raise ConfigurationError(f'{argument} is a collection of patterns, like ["payment.*"], not {given!r}')
    return tuple(str(each) for each in given)
