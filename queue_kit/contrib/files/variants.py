"""Which pictures are made of an image: a bounded set, each with a canonical name, and which of them a browser takes.

A variant is what stands in a job and in the row of what it made, so what a visitor may ask for is rounded here to what
the application allows, before anything is stored. Nothing here knows a database or a decoder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

ImageFormat: TypeAlias = Literal["avif", "webp", "original"]
"""What a variant is written as; `original` keeps the format of the image (a GIF becomes a PNG)."""

TRANSFORMABLE = frozenset({"image/jpeg", "image/png", "image/webp", "image/avif", "image/gif"})
"""The content types of which variants are made. An SVG is a program, and every browser scales it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One picture to be made of an image: at most `width` pixels wide, at a `quality` from 1 to 100, in a format.

    >>> str(Variant(640, 75, "webp"))
    'w640-q75-webp'
    """

    width: int
    quality: int
    format: ImageFormat

    def __str__(self) -> str:
        return f"w{self.width}-q{self.quality}-{self.format}"


def rounded_up(value: int, allowed: Sequence[int], field: str) -> int:
    """The smallest allowed value that is not below `value`, else the largest; `ValueError` for what is no size at all.

    >>> rounded_up(600, (320, 640, 1280), "width")
    640
    """
    check_size(value, field)
    return next((each for each in allowed if each >= value), allowed[-1])


def check_size(value: object, field: str) -> int:
    """A whole number, at least 1; else a `ValueError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{field} is a whole number, at least 1, not {value!r}")
    return value


def accepted(accept: str | None, offered: Iterable[ImageFormat]) -> ImageFormat:
    """The first of the offered formats that an `Accept` header names; `original` when it names none.

    `image/*` and `*/*` name none: programs send them that show neither WebP nor AVIF.

    >>> accepted("image/avif,image/webp,*/*;q=0.8", ("avif", "webp"))
    'avif'
    """
    named = {kind for kind, weight in map(_part, (accept or "").split(",")) if weight > 0}
    for each in offered:
        if f"image/{each}" in named:
            return each
    return "original"


def _part(part: str) -> tuple[str, float]:
    kind, *parameters = (each.strip().lower() for each in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return kind, _weight(value.strip())
    return kind, 1.0


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
