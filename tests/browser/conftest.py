"""The browser, one for each file of tests: its event loop would be in the way of others that run in this thread."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.serving import browsing


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened
