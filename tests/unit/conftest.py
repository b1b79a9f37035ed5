"""A clock that tests move instead of waiting."""

import time

import pytest


class Clock:
    """Stands for `time.monotonic`. It goes on by itself as well, since the event loop goes by it."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def forward(self, seconds: float) -> None:
        """Let this much time have passed."""
        self._ahead += seconds


class FrozenClock:
    """Stands for `time.monotonic` where no timer needs it; it stands still between two moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        """Let this much time have passed."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that goes on, and that a test can move."""
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> FrozenClock:
    """Time that stands still until a test moves it."""
    made = FrozenClock()
    monkeypatch.setattr(time, "monotonic", made)
    return made
