"""The log of what works in the background. To write to it raises nothing: an application's handler that fails would end
the worker's tasks one after the other, with their jobs held.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any


class BackgroundLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose handlers may fail: what they raise goes to stderr, unless `logging.raiseExceptions` is off, as it
    does from a handler of Python's own."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Leave `extra` as the caller gave it."""
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, as from where this was called."""
        kwargs.setdefault("stacklevel", 2)
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:  # noqa: BLE001
            if logging.raiseExceptions and sys.stderr is not None:
                with suppress(Exception):  # stderr may be closed
                    traceback.print_exc()
