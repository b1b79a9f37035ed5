"""Work on images, bounded: each is decoded in a process of its own, with a limit of pixels, of memory and of time.

`Images` holds the limits and which variants there are; a `FileStore` has one. What happens in the process is in
`_image_process.py`, how it is started and ended in `_isolation.py`. Nothing here knows a database or a store.
"""

import json
import math
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from queue_kit._offload import Slots
from queue_kit.contrib.files import _isolation
from queue_kit.contrib.files._sniff import sniff
from queue_kit.contrib.files.errors import ImageRefused
from queue_kit.contrib.files.variants import TRANSFORMABLE, ImageFormat, Variant, accepted, check_size, rounded_up
from queue_kit.errors import ConfigurationError

MIB = 1024 * 1024

REASONS = frozenset({"format", "animated", "damaged", "pixels", "memory"})
"""Why a process refuses an image; `bytes` and `time` are found out here."""

_PLACEHOLDER = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]{1,476}={0,2}")

ImageContent: TypeAlias = bytes | Callable[[], Awaitable[bytes]]
"""The bytes of an image, or what fetches them when it is their turn: so those that wait take no memory."""

Rotation: TypeAlias = Literal[0, 90, 180, 270]
"""Degrees, clockwise."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What a page shows before an image is there: its upright size in pixels, and a tiny JPEG as a data URI of less
    than 500 characters."""

    width: int
    height: int
    uri: str


@dataclass(frozen=True, slots=True)
class MadeImage:
    """An image that was made: its bytes, what they are, and its size in pixels."""

    content: bytes
    content_type: str
    width: int
    height: int


class Images:
    """The limits under which images are worked on, and the variants that may be made of them.

    `widths` (pixels) and `qualities` (1 to 100) are all there are: what is asked for is rounded up to one of them, so
    nobody makes more variants than you allow. `formats` are offered to browsers in this order. `quality` is the one of
    a variant for which none is asked.

    An image is refused when it has more than `max_bytes`, or more than `max_pixels` (read from its header, before
    anything is decoded), or when its process needs more than `max_memory` bytes or `max_seconds` of processor time.
    The limit of memory holds on Linux; the others hold wherever Python has them. `timeout` (seconds) ends a process by
    the wall clock. At most `max_processes` run at once in each event loop, as many as there are processors by default.

    Raises `ConfigurationError` for limits that could not work.

    >>> images = Images(widths=(320, 640, 1280), qualities=(60, 80), quality=80, formats=("webp",))
    >>> str(images.variant(600, 75, "webp"))
    'w640-q80-webp'
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 384, 640, 828, 1080, 1280, 1920, 2560),
        qualities: Sequence[int] = (50, 75, 90),
        quality: int = 75,
        formats: Sequence[ImageFormat] = ("avif", "webp"),
        max_bytes: int = 32 * MIB,
        max_pixels: int = 24_000_000,
        max_memory: int = 512 * MIB,
        max_seconds: int = 20,
        timeout: float = 60.0,
        max_processes: int | None = None,
    ) -> None:
        self.widths: tuple[int, ...] = _ascending(widths, "widths", 16_383)
        self.qualities: tuple[int, ...] = _ascending(qualities, "qualities", 100)
        self.quality: int = rounded_up(_whole(quality, "quality", 100), self.qualities, "quality")
        self.formats: tuple[ImageFormat, ...] = _offered(formats)
        self.max_bytes: int = _whole(max_bytes, "max_bytes")
        self.max_pixels: int = _whole(max_pixels, "max_pixels")
        self.max_memory: int = _whole(max_memory, "max_memory")
        self.max_seconds: int = _whole(max_seconds, "max_seconds")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise ConfigurationError(f"timeout is a number of seconds, more than 0, not {timeout!r}")
        self.timeout: float = float(timeout)
        self._slots = Slots((os.cpu_count() or 1) if max_processes is None else max_processes, "max_processes")

    def variant(
        self, width: int | None = None, quality: int | None = None, format: ImageFormat = "original"
    ) -> Variant:
        """The variant for what is asked, rounded up to what is allowed; without a width it is the largest.

        Raises `ValueError` for what is no width, quality or format.

        >>> str(Images().variant(width=200))
        'w256-q75-original'
        """
        if format != "original" and format not in self.formats:
            raise ValueError(f"format is one of {', '.join((*self.formats, 'original'))}, not {format!r}")
        return Variant(
            self.widths[-1] if width is None else rounded_up(width, self.widths, "width"),
            self.quality if quality is None else rounded_up(quality, self.qualities, "quality"),
            format,
        )

    def accepted(self, accept: str | None) -> ImageFormat:
        """The format for a browser that sends this `Accept` header.

        >>> Images().accepted("text/html,image/webp")
        'webp'
        """
        return accepted(accept, self.formats)

    async def placeholder(self, image: ImageContent) -> Placeholder:
        """The placeholder of an image. Raises as `make`.

        >>> async def size_of(image):
        ...     placeholder = await Images().placeholder(image)
        ...     return placeholder.width, placeholder.height
        """
        found, _ = await self._ask(image, task="placeholder")
        return _placeholder_of(found)

    async def make(self, image: ImageContent, variant: Variant) -> MadeImage:
        """A variant of an image: upright, no larger than the image, in sRGB, without its metadata.

        Raises `ImageRefused`, `TimeoutError` when the machine is too busy, and `RuntimeError` when the machine, not the
        image, has ended the process.

        >>> async def small(image):
        ...     return await Images().make(image, Images().variant(width=64, format="webp"))
        """
        return await self._made(image, width=variant.width, quality=variant.quality, format=variant.format)

    async def clean(
        self, image: ImageContent, *, rotate: Rotation = 0, width: int | None = None, quality: int = 90
    ) -> MadeImage:
        """An image again, in its own format: upright, turned clockwise by `rotate` degrees, at most `width` pixels
        wide, in sRGB, without its metadata (the place where it was taken, the camera, an embedded preview).

        Raises as `make`, and `ValueError` for a rotation, width or quality that is none.

        >>> async def without_place(image):
        ...     return (await Images().clean(image)).content
        """
        if rotate not in get_args(Rotation):
            raise ValueError(f"rotate is one of {', '.join(map(str, get_args(Rotation)))}, not {rotate!r}")
        if width is not None:
            check_size(width, "width")
        quality = min(check_size(quality, "quality"), 100)
        return await self._made(image, width=width, quality=quality, format="original", rotate=rotate)

    async def _made(self, image: ImageContent, **options: Any) -> MadeImage:
        found, content = await self._ask(image, task="transform", **options)
        return _made_by(found, content)

    async def _ask(self, image: ImageContent, **request: Any) -> tuple[dict[str, Any], bytes]:
        limits = {"memory": self.max_memory, "seconds": self.max_seconds, "output": 4 * self.max_bytes}
        request |= {"max_pixels": self.max_pixels, "limits": limits}
        async with self._slots.here():
            content = image if isinstance(image, bytes) else await image()
            if len(content) > self.max_bytes:
                raise ImageRefused("bytes", f"{len(content)} bytes are more than {self.max_bytes}")
            ended = await _isolation.run(request, content, timeout=self.timeout)
        if ended.status == _isolation.OUT_OF_TIME:
            raise ImageRefused("time", f"it takes more than {self.max_seconds} s")
        return _understood(ended)


def _understood(ended: _isolation.Ended) -> tuple[dict[str, Any], bytes]:
    if ended.status in _isolation.CRASHES:
        raise ImageRefused("damaged", f"its decoder was ended by signal {-ended.status}")
    if ended.status != 0:
        raise RuntimeError(f"the process for images ended with status {ended.status}: {ended.complaint}")
    line, _, content = ended.output.partition(b"\n")
    try:
        answer = json.loads(line)
    except ValueError:
        raise _untrue() from None
    if not isinstance(answer, dict):
        raise _untrue()
    if answer.get("refused") in REASONS:
        raise ImageRefused(answer["refused"], str(answer.get("detail"))[:200])
    return answer, content


def _made_by(found: dict[str, Any], content: bytes) -> MadeImage:
    """What the process says that it made, checked: an image that has taken it over decides what it says."""
    content_type = found.get("content_type")
    if not isinstance(content_type, str) or content_type not in TRANSFORMABLE or sniff(content) != content_type:
        raise _untrue()
    return MadeImage(content, content_type, *_size_in(found))


def _placeholder_of(found: dict[str, Any]) -> Placeholder:
    uri = found.get("placeholder")
    if not isinstance(uri, str) or len(uri) >= 500 or not _PLACEHOLDER.fullmatch(uri):
        raise _untrue()
    return Placeholder(*_size_in(found), uri)


def _size_in(found: dict[str, Any]) -> tuple[int, int]:
    width, height = found.get("width"), found.get("height")
    if not isinstance(width, int) or not isinstance(height, int) or width < 1 or height < 1:
        raise _untrue()
    return width, height


def _untrue() -> ImageRefused:
    return ImageRefused("damaged", "its process gave an answer that it does not give")


def _ascending(values: Sequence[int], field: str, most: int) -> tuple[int, ...]:
    if isinstance(values, str) or not values:
        raise ConfigurationError(f"{field} are one whole number or more, not {values!r}")
    return tuple(sorted({_whole(each, field, most) for each in values}))


def _offered(formats: Sequence[ImageFormat]) -> tuple[ImageFormat, ...]:
    unknown = [each for each in formats if each not in ("avif", "webp")]
    if unknown or isinstance(formats, str):
        raise ConfigurationError(f"formats are some of 'avif' and 'webp', not {formats!r}")
    return tuple(formats)


def _whole(value: object, field: str, most: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
        up_to = "" if most is None else f" and at most {most}"
        raise ConfigurationError(f"{field}: whole numbers, at least 1{up_to}, not {value!r}")
    return value
