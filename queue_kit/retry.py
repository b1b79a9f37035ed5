"""How long a failed job waits before its next try. A delay is a number of seconds, a timedelta, or a function of the
number of the try that failed (from 1)."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

from queue_kit.errors import ConfigurationError

RetryDelay: TypeAlias = float | timedelta | Callable[[int], float]

_LONGEST = timedelta(days=365).total_seconds()


def exponential(base: float = 1.0, cap: float = 3600.0, jitter: float = 0.5) -> Callable[[int], float]:
    """Wait `base`, 2 x `base`, 4 x `base` ... seconds, at most `cap`, each shortened by a random share up to `jitter`.

    >>> delay = exponential(base=1, cap=10, jitter=0)
    >>> [delay(attempt) for attempt in (1, 2, 3, 4, 5)]
    [1.0, 2.0, 4.0, 8.0, 10.0]

    Raises `ConfigurationError` for a negative number, or a jitter outside 0 to 1.
    """
    if not (0 <= base < float("inf") and 0 <= cap <= _LONGEST):
        raise ConfigurationError(f"exponential takes seconds from 0 to {_LONGEST:g}, not base={base!r}, cap={cap!r}")
    if not 0 <= jitter <= 1:
        raise ConfigurationError(f"jitter is a share from 0 to 1, not {jitter!r}")

    def delay(attempt: int) -> float:
        longest = min(base * 2.0 ** min(attempt - 1, 60), cap)
        return longest * (1 - jitter * random.random())  # noqa: S311

    return delay


def check_retry_delay(delay: RetryDelay) -> RetryDelay:
    """`delay` itself when it can serve as a retry delay; else a `ConfigurationError`."""
    if callable(delay):
        return delay
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST:
        raise ConfigurationError(f"retry_delay is seconds from 0 to {_LONGEST:g} or a function, not {delay!r}")
    return float(seconds)


def delay_after(delay: RetryDelay, attempt: int) -> float:
    """Seconds to wait after try number `attempt` failed, brought into what a database can add to its clock."""
    seconds = delay(attempt) if callable(delay) else delay
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    return min(max(float(seconds), 0.0), _LONGEST) if seconds == seconds else 0.0
