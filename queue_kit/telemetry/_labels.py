"""Job names as labels: how many there may be. They are bounded where they are registered, but any program may insert
any name, and each has some sixty series. And the registry that they go into.
"""

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
