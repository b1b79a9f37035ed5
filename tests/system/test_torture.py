"""The torture test, short: a run on each database in which everything holds, and one with a mistake that it must find.
The long runs, and all the mistakes, are `python -m tests.torture` and `python -m tests.torture --mutants`."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


async def torture(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """A run in a process of its own: its status, its figures and what it printed."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.torture", *words, "--json", str(figures)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=CHECKOUT, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(150):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    assert figures.exists(), out.decode()
    return process.returncode, json.loads(figures.read_text()), out.decode()


SHORT = ("--seconds", "5", "--workers", "2", "--pullers", "4", "--enqueuers", "1", "--lease", "1.5", "--poll", "0.5")


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
async def test_a_short_run_holds(tmp_path, database):
    status, figures, text = await torture(tmp_path, *SHORT, "--database", database)
    assert status == 0, text
    assert figures["holds"] is True
    assert sum(figures["checks"].values()) == 0
    assert figures["claims"] >= figures["enqueued"]["acknowledged"] > 0
    assert {"kill", "stop", "frozen"} <= set(figures["chaos"])


async def test_an_effect_that_is_committed_before_the_fence_is_found(tmp_path):
    status, figures, text = await torture(tmp_path, *SHORT, "--mutant", "effect-first", "--chaos", "")
    assert status == 1, text
    assert figures["checks"]["effects outside their fence"] > 0, text
