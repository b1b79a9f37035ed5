"""The benchmarks, through their command line: a small part, without any peer."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server

CHECKOUT = Path(__file__).resolve().parents[2]

pytest.importorskip("benchmarks", reason="they are not part of the package, only of a checkout")


async def benchmarks(*arguments: object, url: str, module: str = "benchmarks") -> tuple[int, str, str, int]:
    """Status, stdout and stderr of a run, and which process it was."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", module, *map(str, arguments)],
        cwd=CHECKOUT,
        env=os.environ | {"QUEUE_KIT_BENCH_DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(90):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode(), process.pid


async def databases(server: Server, *, of: int) -> list[str]:
    """Those that a run, which was this process, has left."""
    async with server.admin() as admin:
        rows = await admin.fetch("SELECT datname FROM pg_database WHERE datname LIKE $1", f"qk_bench_{of}_%")
    return [row["datname"] for row in rows]


def runs_of(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["target"], each["label"]): each for each in report["results"]}


async def test_a_small_part_of_them(server: Server, tmp_path: Path) -> None:
    options = ["--quick", "--only", "T1,T14", "--rounds", 1, "--jobs", 500, "--no-peers", "--output", tmp_path]

    status, out, err, pid = await benchmarks(*options, url=server.url)

    assert "Traceback" not in err, err
    report = json.loads((tmp_path / "result.json").read_text())
    runs = runs_of(report)
    assert set(runs) == {("T1", "queue_kit"), ("T1", "raw"), ("T14", "queue_kit"), ("T14", "queue_kit, add_job")}, err
    assert {each["error"] for each in runs.values()} == {""}
    drained = runs["T1", "queue_kit"]["figures"]
    assert (drained["jobs"], drained["cut"]) == (500, False)
    assert drained["rate"] > 0
    assert drained["wal_bytes"] > 0
    # Whether a machine under test is fast enough is not for a test to say; that the status says it is.
    verdicts = {each["check"]["what"]: each["verdict"] for each in report["checks"]}
    assert status == int("FAIL" in verdicts.values())
    assert verdicts["drain, to PgQueuer"] == "-"
    assert set(verdicts) <= set(map(str.strip, out.split("|")))
    assert "The whole report: " in out
    assert report["absent"]["pgqueuer"] == "not asked for"
    off = {name for name in ("fsync", "synchronous_commit", "full_page_writes") if report["PostgreSQL"][name] == "off"}
    assert ("NOT DURABLE" in err) is bool(off)
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "result.md", "throughput.svg"}
    assert await databases(server, of=pid) == []


async def test_wrong_usage(server: Server) -> None:
    status, _, err, _ = await benchmarks("--only", "T99", url=server.url)
    assert status == 2
    assert "'T99' is none of T1, T2" in err


async def test_a_small_soak(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "soak.json"
    options = ["--minutes", 0.1, "--interval", 2, "--rate", 60, "--pullers", 5, "--output", output]

    status, out, err, pid = await benchmarks(*options, url=server.url, module="benchmarks.soak")

    assert (status, err) == (0, "")
    report = json.loads(output.read_text())
    assert report["wrong"] == []
    assert report["summary"]["jobs added"] > 100
    assert len(report["samples"]) == 3
    assert report["samples"][-1]["connections"] > 0
    assert all(sample["memory"] > 10 for sample in report["samples"] if Path("/proc").exists())
    assert '"memory slope MB/h"' in out
    assert await databases(server, of=pid) == []
