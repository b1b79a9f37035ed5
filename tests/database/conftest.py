"""Fixtures of this folder's tests that run jobs."""

from collections.abc import AsyncIterator

import pytest

from queue_kit import Handlers
from tests.database.running import Refusing


@pytest.fixture
def jobs() -> Handlers:
    """Handlers, to which a test adds its own."""
    return Handlers()


@pytest.fixture
async def refusing() -> AsyncIterator[Refusing]:
    """A handler that refuses to end until it is let go, at the latest when the test is over: else its loop would wait
    for it."""
    made = Refusing()
    yield made
    made.let_go.set()
