"""An example in a docstring (`>>>`) becomes a block of code in the API reference, without prompts: it can be copied."""

import re
from itertools import groupby
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """An extension of griffe's, named in mkdocs.yml."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every function, class and attribute."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The docstring with its examples as fenced blocks."""
    parts = []
    for example, lines in groupby(text.splitlines(), key=lambda line: bool(re.match(r"(>>>|\.\.\.)( |$)", line))):
        body = "\n".join(line[4:] if example else line for line in lines)
        parts.append(f"\n```python\n{body}\n```\n" if example else body)
    return "\n".join(parts)
