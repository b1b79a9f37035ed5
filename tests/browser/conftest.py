"""The browser, one for each file of tests: its event loop would be in the way of others that run in this thread."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.serving import browsing
from tests.support import PATIENCE

expect.set_options(timeout=1_000 * PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened
