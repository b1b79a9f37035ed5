"""What a request asks for. Text that can be nothing is refused, or finds nothing; none of it reaches SQL as text."""

import re
from collections.abc import Container, Mapping

from starlette.exceptions import HTTPException

from queue_kit._reach import MAX_ID
from queue_kit.job import MAX_NAME_LENGTH


def id_of(text: str) -> int | None:
    """An id as it was written; `None` for what can be none."""
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) and int(text) <= MAX_ID else None


def words(given: Mapping[str, str], field: str) -> str:
    """A name or a key; empty when there is none."""
    return given.get(field, "").strip()[: MAX_NAME_LENGTH + 1]


def choice(given: Mapping[str, str], field: str, known: Container[str]) -> str:
    """One of a few words; empty when there is none."""
    word = given.get(field, "")
    if word and word not in known:
        raise HTTPException(400, f"There is no such {field}.")
    return word
