"""One process for one image: started with nothing but what it needs, ended when its time is over.

The image and the answer travel through files without a name, so a process can neither be left waiting on a pipe nor
fill this one's memory. A fresh one for each image costs a tenth of a second, and a decoder that an image has taken over
sees no other image. What runs in it is `_image_process.py`.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import PIL

from queue_kit._offload import end_of

OUT_OF_TIME = -signal.SIGXCPU
"""The status of a process that has used up its processor time."""

CRASHES = frozenset({-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE})
"""The statuses of a process that its image has brought down. Any other signal is of the machine."""

_BEGIN = "import sys; sys.path += sys.argv[2:]; from _image_process import main; main(sys.argv[1])"
_PLACES = (str(Path(PIL.__file__).parents[1]), str(Path(__file__).parent))
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


class Ended(NamedTuple):
    """How a process ended: its status (a signal is negative), what it wrote, and the beginning of its complaints."""

    status: int
    output: bytes
    complaint: str


async def run(request: dict[str, Any], image: bytes, *, timeout: float) -> Ended:
    """Run the process on an image. Raises `TimeoutError` after `timeout` seconds; none outlives its caller."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaint:
        await asyncio.to_thread(_fill, source, image)
        process = await asyncio.create_subprocess_exec(
            # -I and -S: neither the environment nor the folder it is started in says what is imported.
            *(sys.executable, "-I", "-S", "-c", _BEGIN, json.dumps(request), *_PLACES),
            stdin=source,
            stdout=output,
            stderr=complaint,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the application
        )
        try:
            async with asyncio.timeout(timeout):
                status = await process.wait()
        except TimeoutError:
            raise TimeoutError(f"an image was not done within {timeout:g} s: is the machine too busy?") from None
        finally:
            await _kill(process)
        said = await asyncio.to_thread(_beginning, complaint)
        return Ended(status, await asyncio.to_thread(_content, output), said)


def _environment() -> dict[str, str]:
    # Secrets stay here. Threads of the codecs would each reserve address space of their own.
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**kept, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await end_of(asyncio.ensure_future(process.wait()))


def _fill(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.seek(0)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _beginning(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(2_000).decode(errors="replace")
