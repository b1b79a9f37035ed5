"""The process in which an image is decoded: it reads one image from stdin, writes one answer to stdout, and ends.

A stranger's bytes meet a decoder here and nowhere else. So this module imports Pillow and nothing of the library.
Before it reads a byte it limits its own memory, time and output, and gives up opening anything. The other side is
`_isolation.py`; what may be asked is in `images.py`. An answer is a line of JSON and, behind it, the bytes of the image
that was made.
"""

import base64
import codecs
import copy
import errno
import io
import json
import resource
import sys
import warnings
from typing import Any

from PIL import (
    AvifImagePlugin,
    Image,
    ImageCms,
    ImageColor,
    ImageFile,
    ImagePalette,
    MpoImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
"""What is decoded at all: Pillow would recognise some forty formats, EPS and its interpreter among them."""

# What Pillow would load when it first needs it, and cannot any more by then.
Image.preinit()
_LOADED = (copy, ImageColor, ImageFile, ImagePalette, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
for _encoding in ("ascii", "latin-1", "utf-8", "utf-16"):
    codecs.lookup(_encoding)

WRITTEN_AS = {"MPO": "JPEG", "GIF": "PNG"}
"""What is written in another format than it came in: a telephone's pair of pictures, and a GIF that does not move."""

LONGEST_SIDE = 16_383
"""In pixels: a WebP has no longer one."""

PLACEHOLDER_BOX = (10, 20)
PLACEHOLDER_LENGTH = 499

_SMOOTH = ("L", "RGB", "RGBA", "CMYK")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CLOCKWISE = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}


class Refused(Exception):
    """An image that is not worked on; `reason` is one word for the other side."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def main(argument: str) -> None:
    """Answer one request, which is JSON."""
    request = json.loads(argument)
    confine(**request.pop("limits"))
    try:
        answer, made = answered(sys.stdin.buffer.read(), **request)
    except Refused as refused:
        answer, made = {"refused": refused.reason, "detail": str(refused)}, b""
    except MemoryError:
        answer, made = {"refused": "memory", "detail": "it does not fit into the memory allowed"}, b""
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise  # of what is loaded above, something is missing
        # Whatever else a decoder raises is about its input.
        answer, made = {"refused": "damaged", "detail": f"{type(error).__name__}: {error}"[:200]}, b""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + made)


def confine(*, memory: int, seconds: int, output: int) -> None:
    """Limit this process: bytes of memory, seconds of processor time, bytes that it may write. It opens no file and no
    connection from now on, and leaves no core."""
    wanted = {
        "RLIMIT_AS": (memory, memory),
        "RLIMIT_CPU": (seconds, seconds + 1),  # at the first a signal says why, at the second it is only killed
        "RLIMIT_FSIZE": (output, output),
        "RLIMIT_NOFILE": (0, 0),
        "RLIMIT_CORE": (0, 0),
    }
    for name, limit in wanted.items():
        try:
            resource.setrlimit(getattr(resource, name), limit)
        except (ValueError, OSError):  # macOS knows a limit of memory, and takes none
            continue


def answered(data: bytes, *, task: str, max_pixels: int, **options: Any) -> tuple[dict[str, Any], bytes]:
    """What is asked, done: the task's name says which function."""
    image = opened(data, max_pixels)
    if task == "placeholder":
        return placeholder(image), b""
    return transformed(image, **options)


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """An image of which the header is read and nothing is decoded; refused by what that says."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Refused("pixels", f"it has more than {max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise Refused("format", f"it is none of {', '.join(FORMATS)}") from None
    if image.width * image.height > max_pixels:
        raise Refused("pixels", f"{image.width} x {image.height} are more than {max_pixels} pixels")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Refused("animated", "it moves")
    return image


def placeholder(image: Image.Image) -> dict[str, Any]:
    """The upright size, and a tiny JPEG as a data URI."""
    width, height = _shown(image)
    small = flat(drawn(image, PLACEHOLDER_BOX))
    for quality in (60, 40, 20, 5):
        uri = "data:image/jpeg;base64," + base64.b64encode(encoded(small, "JPEG", quality)).decode()
        if len(uri) <= PLACEHOLDER_LENGTH:
            break
    return {"width": width, "height": height, "placeholder": uri}


def transformed(
    image: Image.Image, *, width: int | None, quality: int, format: str, rotate: int = 0
) -> tuple[dict[str, Any], bytes]:
    """The image upright, turned clockwise, no wider than `width`, in sRGB, and without any metadata."""
    source = str(image.format)
    written = WRITTEN_AS.get(source, source) if format == "original" else format.upper()
    most = width or LONGEST_SIDE
    sideways = rotate in (90, 270)
    made = drawn(image, (LONGEST_SIDE, most) if sideways else (most, LONGEST_SIDE))
    if rotate:
        made = made.transpose(_CLOCKWISE[rotate])
    data = encoded(made, written, quality)
    return {"width": made.width, "height": made.height, "content_type": f"image/{written.lower()}"}, data


def drawn(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    """Decoded, upright, as small as the box and never larger than it was, in sRGB."""
    orientation = _orientation(image)
    if image.mode not in _SMOOTH:  # others would be shrunk by leaving pixels out
        image = _smooth(image)
    across, down = reversed(box) if orientation >= 5 else box
    image.thumbnail((across, down), Image.Resampling.LANCZOS, reducing_gap=2.0)
    image.load()  # where nothing had to be shrunk
    image = _in_srgb(image)
    image.info.clear()  # some formats write what they find there
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def flat(image: Image.Image) -> Image.Image:
    """On white, for a format that knows no transparency."""
    if image.mode != "RGBA":
        return image
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def encoded(image: Image.Image, format: str, quality: int) -> bytes:
    """The bytes of an image in a format."""
    pixels = image.width * image.height
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "optimize": True, "progressive": pixels > 10_000},
        "PNG": {"compress_level": 6 if pixels < 4_000_000 else 3},  # 24 MP take 20 s with the first
        "WEBP": {"quality": quality, "method": 4},
        # More threads would need more memory than they save time; a slower encoder saves few bytes.
        "AVIF": {"quality": quality, "speed": 8, "max_threads": 1},
    }
    written = io.BytesIO()
    try:
        image.save(written, format, **options[format])
    except (ValueError, OSError, RuntimeError) as error:  # what was decoded can be encoded, where there is room
        raise Refused("memory", f"it could not be written as {format}: {error}") from error
    return written.getvalue()


def _shown(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if _orientation(image) >= 5 else image.size


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a picture is not worse for what a camera has noted on it
        return 1
    return found if isinstance(found, int) and found in _UPRIGHT else 1


def _smooth(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey
        return image.convert("I").point(lambda value: value / 257).convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    mode = "RGB" if image.mode == "CMYK" else image.mode
    profile = image.info.get("icc_profile")
    if profile and mode != "L":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            changed = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
        except (ImageCms.PyCMSError, OSError, ValueError):  # a profile for something else, or none at all
            changed = None
        if changed is not None:
            return changed
    return image if image.mode == mode else image.convert(mode)
