"""Job names as labels: how many there may be. They are bounded where they are registered, but any program may insert
any name, and each has some sixty series. And the registry that they go into.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from queue_kit.errors import ConfigurationError

T = TypeVar("T")

MOST_NAMES = 200

OTHER = "(other)"
"""The label of all names beyond that."""


def check_most_names(most_names: object) -> int:
    """How many names have series of their own: an integer, at least 1."""
    if not isinstance(most_names, int) or isinstance(most_names, bool) or most_names < 1:
        raise ConfigurationError(f"most_names is a whole number, at least 1, not {most_names!r}")
    return most_names


def check_registry(registry: T) -> T:
    """A `CollectorRegistry`, or what can register as one can."""
    if not callable(getattr(registry, "register", None)):
        raise ConfigurationError(f"registry must be a CollectorRegistry, not {type(registry).__name__}")
    return registry


class Chosen:
    """The names that have series of their own. Once chosen they stay chosen, so that there are never more than `most`
    however names come and go. Those that workers have registered come first, and half of the places are theirs alone:
    else a flood of strange names before a deploy would leave none to it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()
        self._strangers: set[str] = set()

    def choose(self, sizes: Mapping[str, int], registered: Collection[str]) -> frozenset[str]:
        """Choose among names with this many jobs each, as long as there are places; returns all that were chosen."""
        self._strangers.difference_update(registered)
        new = sizes.keys() - self._names
        self._names.update(_largest((name for name in new if name in registered), sizes, self._most - len(self._names)))
        places = min((self._most + 1) // 2 - len(self._strangers), self._most - len(self._names))
        strangers = _largest((name for name in new if name not in registered), sizes, places)
        self._strangers.update(strangers)
        self._names.update(strangers)
        return frozenset(self._names)


def _largest(names: Iterable[str], sizes: Mapping[str, int], most: int) -> list[str]:
    return heapq.nlargest(most, names, key=lambda name: sizes[name])
