"""For the tests of an application that has jobs: look at what was enqueued, run it, and move the clock, inside of a
transaction that the test rolls back. See docs/testing.md; the fixtures are in pytest's plugin `queue_kit`.
"""

from queue_kit.testing._clock import move_clock
from queue_kit.testing._drain import drain
from queue_kit.testing._enqueued import assert_enqueued, enqueued
from queue_kit.testing._handler import run_handler
from queue_kit.testing._transaction import rolled_back

__all__ = ["assert_enqueued", "drain", "enqueued", "move_clock", "rolled_back", "run_handler"]
