"""Images for the tests, all made here: ordinary ones, broken ones, and some that are meant to do harm."""

import colorsys
import io
import math
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw, PngImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
STILL = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "AVIF": "image/avif", "GIF": "image/gif"}

SECRET = "47.3769 N, 8.5417 E"  # pragma: allowlist secret
"""What a camera has noted, and nobody else shall read."""


def picture(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    """White in the corner above on the left, red beside it, blue below: it can be seen how it was turned."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste((255, 0, 0), (0, 0, width, height // 2))
    image.paste((255, 255, 255), (0, 0, width // 4, height // 4))
    return image.convert(mode)


def noise(width: int, height: int) -> Image.Image:
    """What no encoder makes small."""
    return Image.frombytes("RGB", (width, height), random.Random(1).randbytes(width * height * 3))


def written(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """An image's bytes."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(content: bytes) -> Image.Image:
    """An image from bytes, decoded."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def turned(orientation: int) -> bytes:
    """An upright picture as a camera stores it that was held otherwise, with notes on where that was."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = picture()
    return written(image.transpose(back[orientation]) if orientation in back else image, exif=exif)


def annotated(format: str) -> bytes:
    """An image with everything that can be written beside it."""
    exif = Image.Exif()
    exif[0x010E] = SECRET
    notes: dict[str, Any] = {"exif": exif}
    if format in {"WEBP", "AVIF", "JPEG"}:
        notes["xmp"] = f"<x:xmpmeta>{SECRET}</x:xmpmeta>".encode()
    if format in {"JPEG", "GIF"}:
        notes["comment"] = SECRET.encode()
    if format == "PNG":
        notes["pnginfo"] = text = PngImagePlugin.PngInfo()
        text.add_text("Comment", SECRET)
        text.add_itxt("XML:com.adobe.xmp", SECRET, zip=True)
    if format == "GIF":
        del notes["exif"]
    return written(picture(), format, **notes)


def moving(format: str) -> bytes:
    """Two pictures that follow each other."""
    first, second = picture(), picture().transpose(Image.Transpose.ROTATE_180)
    return written(first, format, save_all=True, append_images=[second], duration=100)


# --- what is meant to do harm -----------------------------------------------------------------------------------------


def png(width: int, height: int, *, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG of any size; `rows` are how many of them there really are."""
    channels = {0: 1, 6: 4}[colour]
    line = bytes(1 + width * channels)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(line) for _ in range(height if rows is None else rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def png_with_text_bomb() -> bytes:
    """A PNG whose text is 100 MB long when it is unpacked."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
    small = png(8, 8)
    return small[:33] + _chunk(b"zTXt", b"Comment\x00\x00" + packed) + small[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def scan_bomb(scans: int = 10_000) -> bytes:
    """A small progressive JPEG that says the same nothing about all of its blocks again and again."""
    side = 4_800
    blocks = (side // 8) ** 2
    bits = "0" + "1" * 14  # a run of 32,767 blocks without a coefficient
    stream = bits * -(-blocks // 32_767)
    stream += "1" * (-len(stream) % 8)
    data = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    table = bytes([0x10, 1, *[0] * 15, 0xE0])
    scan = _segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xDB, bytes([0, *[1] * 64])),
            _segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0)),
            _segment(0xC4, table),
            scan * scans,
            b"\xff\xd9",
        ]
    )


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def enlarged(format: str) -> bytes:
    """A small image that says in its header that it is enormous."""
    small = bytearray(written(picture(), format))
    if format == "PNG":
        return png(30_000, 30_000, rows=1)
    if format == "GIF":
        small[6:10] = struct.pack("<HH", 65_535, 65_535)
    elif format == "JPEG":
        at = small.index(b"\xff\xc0") + 5
        small[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    elif format == "AVIF":
        at = small.index(b"ispe") + 8
        small[at : at + 8] = struct.pack(">II", 16_000, 16_000)
    else:  # lossy WebP: 14 bits each, behind its start code
        at = small.index(b"\x9d\x01\x2a") + 3
        small[at : at + 4] = struct.pack("<HH", 16_383, 16_383)
    return bytes(small)


NO_IMAGES = {
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "html": b"<!doctype html><script>alert(1)</script>",
    "empty": b"",
    "nul": bytes(64),
    "bmp": written(picture(8, 8), "BMP"),
    "tiff": written(picture(8, 8), "TIFF"),
    "ico": written(picture(16, 16), "ICO"),
    "ppm": written(picture(8, 8), "PPM"),
    "only a beginning": b"\x89PNG\r\n\x1a\n",
}


def cut() -> Iterator[tuple[str, bytes]]:
    """Every format, broken off in the middle and later."""
    for kind in FORMATS:
        whole = written(noise(64, 64), kind)
        yield f"{kind} half", whole[: len(whole) // 2]
        yield f"{kind} three quarters", whole[: len(whole) * 3 // 4]


def mutated(count: int) -> Iterator[bytes]:
    """Ordinary images with some bytes changed, doubled or left out: the same ones every time."""
    chance = random.Random(7)
    whole = {kind: written(picture(48, 32), kind) for kind in FORMATS}
    for number in range(count):
        content = bytearray(whole[FORMATS[number % len(FORMATS)]])
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(content))
            change = chance.random()
            if change < 0.7:
                content[at] = chance.randrange(256)
            elif change < 0.85:
                del content[at : at + chance.randint(1, 16)]
            else:
                content[at:at] = chance.randbytes(chance.randint(1, 16))
        yield bytes(content)


# --- what is looked at ------------------------------------------------------------------------------------------------


def landscape(seed: int) -> Image.Image:
    """A sky, a sun and some hills, for pages and pictures of pages."""
    width, height = 1600, 1067
    chance = random.Random(seed)
    hue = (0.56, 0.04, 0.95)[seed % 3] + chance.uniform(-0.03, 0.03)
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for y in range(height):
        draw.line((0, y, width, y), fill=_colour(hue + 0.15 * y / height, 0.5, 1 - 0.35 * y / height))
    x, radius = chance.uniform(0.2, 0.8) * width, chance.uniform(0.05, 0.09) * width
    draw.ellipse((x - radius, height * 0.25 - radius, x + radius, height * 0.25 + radius), fill=_colour(0.13, 0.3, 1))
    for hill in range(4):
        waves = [(chance.uniform(40, 120), chance.uniform(150, 400), chance.random() * 6) for _ in range(3)]
        base = height * (0.5 + 0.13 * hill)
        line = [(x, base + sum(a * math.sin(x / b + c) for a, b, c in waves) / 2) for x in range(0, width + 8, 8)]
        draw.polygon([(0, height), *line, (width, height)], fill=_colour(hue + 0.4, 0.45, 0.55 - 0.12 * hill))
    return image


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
