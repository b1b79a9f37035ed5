"""Work on images in their processes: what is made, what is refused, and that the limits hold whatever an image says."""

import asyncio
import base64
import json
import os
import sys

import pytest
from PIL import Image, ImageCms

from queue_kit import ConfigurationError
from queue_kit.contrib.files import _isolation
from queue_kit.contrib.files.errors import ImageRefused
from queue_kit.contrib.files.images import MIB, Images
from queue_kit.contrib.files.variants import Variant
from tests.files import corpus
from tests.files.corpus import FORMATS, STILL, picture, read, written
from tests.support import until

images = Images()


def colour(image: Image.Image, x: float, y: float) -> str:
    """What a place is painted with, told from how it was compressed; places are parts of the width and height."""
    red, _, blue = image.convert("RGB").getpixel((int(image.width * x), int(image.height * y)))
    return {(True, False): "red", (False, True): "blue", (True, True): "white"}[red > 128, blue > 128]


def upright(image: Image.Image) -> bool:
    return (colour(image, 0.1, 0.1), colour(image, 0.8, 0.2), colour(image, 0.5, 0.8)) == ("white", "red", "blue")


async def refused(image: bytes, by: Images = images) -> str:
    with pytest.raises(ImageRefused) as caught:
        await by.make(image, by.variant(width=64, format="webp"))
    assert caught.value.detail
    assert len(str(caught.value)) < 400
    return caught.value.reason


# --- what is made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", FORMATS)
async def test_every_format_becomes_smaller_in_every_format(source):
    made = await asyncio.gather(
        *(images.make(written(picture(200, 100), source), Variant(64, 75, each)) for each in images.formats),
        images.make(written(picture(200, 100), source), Variant(64, 75, "original")),
    )
    kept = STILL["PNG"] if source == "GIF" else STILL[source]
    assert [each.content_type for each in made] == ["image/avif", "image/webp", kept]
    for each in made:
        opened = read(each.content)
        assert Image.MIME[opened.format] == each.content_type
        assert opened.size == (each.width, each.height) == (64, 32)
        assert upright(opened)


async def test_nothing_is_made_larger_than_it_is():
    made = await images.make(written(picture(50, 30)), images.variant(width=1080, format="webp"))
    assert (made.width, made.height) == (50, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_what_was_photographed_sideways_is_made_upright(orientation):
    photo = corpus.turned(orientation)
    made, described = await asyncio.gather(images.make(photo, Variant(48, 90, "original")), images.placeholder(photo))
    assert (described.width, described.height) == (96, 64)
    assert (made.width, made.height) == (48, 32)
    assert upright(read(made.content))


async def test_an_orientation_that_there_is_not_changes_nothing():
    exif = Image.Exif()
    exif[0x0112] = 99
    made = await images.make(written(picture(), exif=exif), Variant(96, 90, "original"))
    assert upright(read(made.content))


@pytest.mark.parametrize("format", FORMATS)
async def test_nothing_of_what_is_written_beside_the_picture_is_left(format):
    annotated = corpus.annotated(format)
    assert corpus.SECRET.encode() in annotated or format == "PNG"
    cleaned, small = await asyncio.gather(images.clean(annotated), images.make(annotated, Variant(64, 75, "webp")))
    for each in (cleaned, small):
        opened = read(each.content)
        assert upright(opened)
        assert corpus.SECRET.encode() not in each.content
        assert not dict(opened.getexif())
        assert {"exif", "xmp", "comment", "icc_profile", "Comment", "XML:com.adobe.xmp"} & set(opened.info) == set()


async def test_a_file_that_is_a_script_as_well_is_none_afterwards():
    polyglot = written(picture(), "GIF") + b"<script>alert(1)</script>"
    assert b"<script>" not in (await images.clean(polyglot)).content


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGBA", "PNG"),
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("P", "GIF"),
    ],
)
async def test_every_kind_of_pixels_is_shrunk_smoothly(mode, format):
    stripes = Image.new("L", (128, 64), 255)
    for x in range(0, 128, 2):
        stripes.paste(0, (x, 0, x + 1, 64))
    made = await images.make(written(stripes.convert("RGB").convert(mode), format), Variant(64, 90, "original"))
    middle = read(made.content).convert("RGBA").getpixel((32, 16))
    assert 100 < middle[0] < 160, "some pixels were left out instead"
    assert middle[3] == 255


async def test_sixteen_bits_of_grey_keep_their_brightness():
    grey = Image.new("I;16", (32, 32), 0x8000)
    made = await images.make(written(grey, "PNG"), Variant(64, 90, "original"))
    assert read(made.content).convert("L").getpixel((16, 16)) == pytest.approx(128, abs=2)


@pytest.mark.parametrize("format", ["webp", "avif", "original"])
async def test_what_is_transparent_stays_so(format):
    glass = Image.new("RGBA", (40, 40), (255, 0, 0, 255))
    glass.paste((0, 0, 0, 0), (0, 0, 20, 40))
    made = read((await images.make(written(glass, "PNG"), Variant(64, 90, format))).content)
    assert [made.convert("RGBA").getpixel(at)[3] for at in ((4, 20), (35, 20))] == [0, 255]


async def test_colours_are_those_of_srgb():
    # A profile that means red where sRGB means blue: what ignores it shows the wrong colour.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    paint = Image.new("RGB", (40, 40), (200, 30, 30))
    shown = {
        name: read((await images.make(written(paint, "PNG", icc_profile=each), Variant(64, 90, "original"))).content)
        for name, each in {"own": swapped, "usual": profile, "broken": b"no profile"}.items()
    }
    middle = {name: each.convert("RGB").getpixel((20, 20)) for name, each in shown.items()}
    assert middle["own"] == pytest.approx((30, 30, 200), abs=6)
    assert middle["usual"] == middle["broken"] == (200, 30, 30)
    assert all("icc_profile" not in each.info for each in shown.values())


async def test_two_pictures_of_one_photograph_are_a_photograph():
    pair = written(picture(), "MPO", save_all=True, append_images=[picture().transpose(Image.Transpose.ROTATE_180)])
    made = await images.make(pair, Variant(64, 90, "original"))
    assert made.content_type == "image/jpeg"
    assert upright(read(made.content))


async def test_clean_turns_clockwise_and_shrinks():
    made = await images.clean(written(picture(200, 100)), rotate=90, width=40)
    opened = read(made.content)
    assert opened.size == (made.width, made.height) == (40, 80)
    assert (colour(opened, 0.9, 0.1), colour(opened, 0.1, 0.5)) == ("white", "blue")


# --- placeholders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image", [corpus.noise(400, 300), corpus.noise(16, 1600), corpus.noise(1600, 16), picture(1, 1), picture(mode="LA")]
)
async def test_a_placeholder_is_a_tiny_jpeg(image):
    found = await images.placeholder(written(image, "PNG"))
    assert (found.width, found.height) == image.size
    assert found.uri.startswith("data:image/jpeg;base64,")
    assert len(found.uri) < 500
    tiny = read(base64.b64decode(found.uri.partition(",")[2]))
    assert tiny.format == "JPEG"
    assert tiny.width <= 10
    assert tiny.height <= 20


async def test_a_placeholder_is_ten_pixels_wide_and_shows_the_picture():
    tiny = read(base64.b64decode((await images.placeholder(written(picture(400, 300)))).uri.partition(",")[2]))
    assert tiny.size == (10, 8)
    assert upright(tiny)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", corpus.NO_IMAGES.values(), ids=corpus.NO_IMAGES)
async def test_what_is_no_image_of_the_list_is_not_tried(content):
    assert await refused(content) == "format"


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF"])
async def test_what_moves_is_left_alone(format):
    moving = corpus.moving(format)
    assert await refused(moving) == "animated"
    with pytest.raises(ImageRefused):
        await images.placeholder(moving)


async def test_what_is_cut_off_is_refused():
    async def reason(name: str, content: bytes) -> str:
        return f"{name}: {await refused(content)}"

    reasons = await asyncio.gather(*(reason(*each) for each in corpus.cut()))
    assert len(reasons) == 2 * len(FORMATS)
    assert [each for each in reasons if not each.endswith(("damaged", "format"))] == []


@pytest.mark.parametrize("format", FORMATS)
async def test_i8_what_says_that_it_is_enormous_is_not_decoded(format):
    # A limit of memory in which no such image could be decoded, or its canvas be made.
    tight = Images(max_memory=256 * MIB)
    own_words = {"damaged"} if format == "WEBP" else set()  # Pillow 11 finds no canvas for it, and says so
    assert await refused(corpus.enlarged(format), tight) in {"pixels", "memory"} | own_words


async def test_the_limit_of_pixels_is_exact():
    limited = Images(max_pixels=96 * 64)
    assert (await limited.placeholder(written(picture(96, 64)))).width == 96
    assert await refused(written(picture(97, 64)), limited) == "pixels"


async def test_the_limit_of_bytes_is_looked_at_before_a_process_is_started(monkeypatch):
    monkeypatch.setattr(_isolation, "run", None)
    small = written(picture())
    assert await refused(small, Images(max_bytes=len(small) - 1)) == "bytes"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory holds on Linux")
async def test_i8_the_limit_of_memory_holds():
    few_pixels_much_memory = corpus.png(4_800, 4_800, colour=6)
    assert len(few_pixels_much_memory) < 1 * MIB
    assert await refused(few_pixels_much_memory, Images(max_memory=128 * MIB)) == "memory"


async def test_a_text_that_unpacks_to_a_hundred_megabytes_is_not_unpacked():
    assert await refused(corpus.png_with_text_bomb(), Images(max_memory=128 * MIB)) == "damaged"


async def test_i8_the_limit_of_time_holds():
    bomb = corpus.scan_bomb()
    assert len(bomb) < 1 * MIB
    async with asyncio.timeout(30):
        assert await refused(bomb, Images(max_seconds=1)) == "time"


async def test_the_clock_on_the_wall_ends_a_process_too():
    with pytest.raises(TimeoutError, match=r"not done within 0\.2 s"):
        await Images(timeout=0.2).make(corpus.scan_bomb(), Variant(64, 75, "webp"))


async def test_changed_bytes_make_an_image_or_a_refusal():
    async def outcome(content: bytes) -> str:
        try:
            made = await images.make(content, Variant(64, 75, "webp"))
        except ImageRefused as error:
            return error.reason
        assert read(made.content).size == (made.width, made.height)
        return "made"

    outcomes = await asyncio.gather(*(outcome(content) for content in corpus.mutated(20)))
    assert {"made", "damaged"} <= set(outcomes) <= {"made", "damaged", "format", "animated", "pixels", "memory"}


# --- the process ------------------------------------------------------------------------------------------------------


def replaced(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run another program in the process: what an image that has taken it over might do."""
    monkeypatch.setattr(_isolation, "_BEGIN", program)


def answers(content: bytes = b"", **answer: object) -> str:
    return f"import sys; sys.stdout.buffer.write({json.dumps(answer).encode()!r} + b'\\n' + {content!r})"


async def test_a_process_knows_no_secrets_and_has_its_limits(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "it-is-secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    program = """import json, os, resource, socket, sys
sys.path += sys.argv[2:]
from _image_process import confine
confine(**json.loads(sys.argv[1])["limits"])
limits = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_CPU, resource.RLIMIT_CORE)]
modules = [name for name in sys.modules if name.startswith(("queue_kit", "sqlalchemy"))]
refused = []
for attempt in (lambda: os.open("/etc/passwd", os.O_RDONLY), socket.socket):
    try:
        attempt()
    except OSError as error:
        refused.append(error.strerror)
print(json.dumps([sorted(os.environ), limits, modules, refused]))"""
    replaced(monkeypatch, program)
    limits = {"memory": 512 * MIB, "seconds": 7, "output": MIB}
    ended = await _isolation.run({"limits": limits}, b"", timeout=30)
    environment, found, modules, opening = json.loads(ended.output)
    assert {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "PATH", "HOME"} & set(environment) == set()
    assert found == [7, 0]
    assert modules == []
    assert opening == ["Too many open files"] * 2


@pytest.mark.parametrize(
    "program",
    [
        answers(b"<script>", content_type="text/html", width=1, height=1),
        answers(b"<script>", content_type=["image/png"], width=1, height=1),
        answers(b"<script>", content_type="image/png", width=1, height=1),
        answers(written(picture(), "PNG"), content_type="image/png", width=-1, height=1),
        answers(written(picture(), "PNG"), content_type="image/png", width="1", height=1),
        answers(written(picture(), "GIF"), content_type="image/png", width=1, height=1),
        answers(),
        "print('no JSON')",
        "print('[1]')",
        'print(\'{"refused": "x"}\')',
        "",
    ],
)
async def test_what_a_process_answers_is_not_believed(program, monkeypatch):
    replaced(monkeypatch, program)
    assert await refused(written(picture())) == "damaged"


@pytest.mark.parametrize(
    "uri",
    [
        "javascript:alert(1)",
        'data:image/jpeg;base64,AA" onload="alert(1)',
        "data:image/jpeg;base64," + "A" * 476 + "=",
        7,
    ],
)
async def test_a_placeholder_that_is_none_is_not_believed(uri, monkeypatch):
    replaced(monkeypatch, answers(width=1, height=1, placeholder=uri))
    with pytest.raises(ImageRefused, match="damaged"):
        await images.placeholder(written(picture()))


async def test_an_answer_without_end_is_cut_off(monkeypatch):
    replaced(
        monkeypatch,
        "import json, sys; sys.path += sys.argv[2:]; from _image_process import confine\n"
        "confine(**json.loads(sys.argv[1])['limits'])\n"
        "while True: sys.stdout.buffer.write(bytes(100_000))",
    )
    with pytest.raises(RuntimeError, match="File too large"):
        await Images(max_bytes=MIB).placeholder(written(picture()))


async def test_a_decoder_that_crashes_is_the_images_fault(monkeypatch):
    replaced(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert await refused(written(picture())) == "damaged"


@pytest.mark.parametrize(
    "program", ["raise SystemError('broken')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
)
async def test_what_is_wrong_with_the_machine_is_no_refusal(program, monkeypatch):
    replaced(monkeypatch, program)
    with pytest.raises(RuntimeError, match=r"status (1: [\s\S]*broken|-9)"):
        await images.placeholder(written(picture()))


async def test_no_process_outlives_whoever_waits_for_it(monkeypatch, tmp_path):
    began = tmp_path / "began"
    replaced(monkeypatch, f"import os, time; open({str(began)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    waiting = asyncio.create_task(images.placeholder(written(picture())))
    await until(lambda: began.exists() and began.read_text())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)


async def test_no_more_processes_run_than_are_allowed_and_nothing_is_fetched_before(monkeypatch):
    running, most, fetched = 0, 0, 0

    async def run(*_: object, **__: object) -> _isolation.Ended:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert fetched <= done + 2
        await asyncio.sleep(0)
        running -= 1
        return _isolation.Ended(0, b'{"refused": "format", "detail": "no"}\n', "")

    async def fetch() -> bytes:
        nonlocal fetched
        fetched += 1
        return b""

    async def ask() -> None:
        nonlocal done
        with pytest.raises(ImageRefused):
            await bounded.placeholder(fetch)
        done += 1

    done = 0
    monkeypatch.setattr(_isolation, "run", run)
    bounded = Images(max_processes=2)
    await asyncio.gather(*(ask() for _ in range(10)))
    assert done == fetched == 10
    assert most == 2


# --- limits and variants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [
        {"widths": ()},
        {"widths": (0,)},
        {"widths": (20_000,)},
        {"widths": "640"},
        {"qualities": (101,)},
        {"quality": 0},
        {"formats": ("jxl",)},
        {"formats": "webp"},
        {"max_bytes": 0},
        {"max_pixels": -1},
        {"max_memory": 1.5},
        {"max_seconds": True},
        {"timeout": float("inf")},
        {"timeout": 0},
        {"max_processes": 0},
    ],
)
def test_limits_that_cannot_work_are_refused(limits):
    with pytest.raises(ConfigurationError, match=next(iter(limits))):
        Images(**limits)


@pytest.mark.parametrize(
    "arguments", [{"width": 0}, {"width": -5}, {"width": 1.5}, {"width": True}, {"quality": 0}, {"format": "jxl"}]
)
def test_variants_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        images.variant(**arguments)


def test_whatever_is_asked_for_there_is_a_bounded_number_of_variants():
    asked = [
        images.variant(w, q, f)
        for w in range(1, 4_000, 7)
        for q in (1, 50, 60, 99, 1_000)
        for f in ("avif", "original")
    ]
    assert len({str(each) for each in asked}) <= len(images.widths) * len(images.qualities) * 2
    assert str(images.variant(10**12, 75, "webp")) == "w2560-q75-webp"


@pytest.mark.parametrize("rotate", [45, -90, "90", None])
async def test_clean_refuses_other_turns(rotate):
    with pytest.raises(ValueError, match="rotate"):
        await images.clean(b"", rotate=rotate)
