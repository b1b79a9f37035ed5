"""docs/telemetry.md keeps its word: each of its recipes is run as it stands there, against a real queue."""

import asyncio
import contextlib
import json
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from queue_kit import Handlers, QueueWorker, add_job, hooks
from tests.checks.test_documents import blocks
from tests.crowd import running
from tests.support import Recorder, free_port, until

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "telemetry.md").read_text()

QUEUE = """
    import asyncio
    from queue_kit import Handlers, QueueWorker, add_job, migrate, sqlite_engine

    jobs = Handlers()

    @jobs.handler("a", max_retry_count=1)
    async def a(event, session, job):
        with event.span("part"):
            card = "never told"
            if job.data.get("fail"):
                raise ValueError("no such user")

    engine = sqlite_engine("queue.db")
"""
"""What the recipes that are run as a process take for given."""


def recipe(marker: str) -> str:
    """The one block of the document that holds this."""
    (text,) = (block.text for block in blocks(DOCUMENT) if block.language == "python" and marker in block.text)
    return text


@pytest.fixture
def clean() -> Iterator[None]:
    """Take away what a recipe installs for the whole process."""
    installed, registered = list(hooks._installed), set(REGISTRY._collector_to_names)
    yield
    hooks._installed[:] = installed
    for collector in set(REGISTRY._collector_to_names) - registered:
        REGISTRY.unregister(collector)


@pytest.fixture
def jobs() -> Handlers:
    handlers = Handlers()

    @handlers.handler("a", max_retry_count=1)
    async def a(event, session, job):
        with event.span("part"):
            if job.data.get("fail"):
                raise ValueError("no such user")

    return handlers


def process(*parts: str, cwd: Path) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """A script made of these parts, as a process."""
    script = cwd / "script.py"
    script.write_text("\n".join(map(textwrap.dedent, parts)))
    return running(sys.executable, script, cwd=cwd)


async def printed(*parts: str, cwd: Path) -> str:
    """What a script prints; it must end with status 0."""
    async with process(*parts, cwd=cwd) as script, asyncio.timeout(40):
        out, err = await script.communicate()
        assert script.returncode == 0, err.decode()
        return out.decode()


def values(exposition: str) -> dict[tuple[str, str | None], float]:
    """The samples of an exposition, by metric and name."""
    families = text_string_to_metric_families(exposition)
    return {
        (sample.name, sample.labels.get("outcome") or sample.labels.get("state")): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("name", "a") == "a" and "le" not in sample.labels
    }


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_fastapi_serves_metrics(engine, jobs, clean):
    namespace: dict[str, Any] = {"jobs": jobs, "engine": engine}
    exec(recipe("FastAPI("), namespace)
    app = namespace["app"]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await add_job(engine, "a")

        async def scraped() -> dict[tuple[str, str | None], float] | None:
            answer = await client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=")
            found = values(answer.text)
            there = found["queue_kit_jobs_settled_total", "completed"] and ("queue_kit_queue_up", None) in found
            return found if there else None

        found = await until(scraped)
    assert found["queue_kit_jobs_enqueued_total", None] == 1
    assert found["queue_kit_queue_up", None] == found["queue_kit_workers_running", None] == 1


async def test_aiohttp_serves_metrics(engine, jobs, clean):
    namespace: dict[str, Any] = {"jobs": jobs, "engine": engine}
    exec(recipe("aiohttp import web"), namespace)
    await add_job(engine, "a")
    async with TestClient(TestServer(namespace["app"])) as client:
        answer = await client.get("/metrics")
        found = values(await answer.text())
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert found["queue_kit_jobs_enqueued_total", None] == found["queue_kit_queue_jobs", "pending"] == 1
    assert found["queue_kit_queue_oldest_due_seconds", None] > 0


async def test_a_worker_of_its_own_serves_metrics(tmp_path):
    port = free_port()
    code = recipe("start_http_server(").replace("9100", str(port))
    begin = """
    async def main():
        await migrate.upgrade(engine)
        await add_job(engine, "a")
        await work()

    asyncio.run(main())
    """
    async with process(QUEUE, code, begin, cwd=tmp_path) as running, httpx.AsyncClient() as client:

        async def scraped() -> bool:
            assert running.returncode is None
            try:
                found = values((await client.get(f"http://127.0.0.1:{port}/metrics")).text)
            except httpx.TransportError:
                return False
            return bool(found["queue_kit_jobs_settled_total", "completed"] and found.get(("queue_kit_queue_up", None)))

        await until(scraped)
        running.terminate()
        async with asyncio.timeout(20):
            assert await running.wait() == 0


# --- logs, traces, errors ---------------------------------------------------------------------------------------------


async def test_lines_of_json(engine, jobs, capsys):
    namespace: dict[str, Any] = {}
    exec(recipe("JsonFormatter"), namespace)
    hook = Recorder()
    try:
        job_id = await add_job(engine, "a", {"fail": True, "card": "4111 1111 1111 1111"})
        await QueueWorker(engine, jobs, hooks=[hook]).drain()
    finally:
        namespace["logger"].removeHandler(namespace["handler"])
        namespace["logger"].setLevel(logging.NOTSET)
    text = capsys.readouterr().err
    (line,) = (each for each in map(json.loads, text.splitlines()) if "job_outcome" in each)
    assert line["message"].startswith(f"job {job_id} a failed after")
    assert (line["job_id"], line["job_name"], line["job_attempt"]) == (job_id, "a", 1)
    assert (line["job_outcome"], line["job_error"], line["levelname"]) == ("failed", "ValueError", "WARNING")
    assert line["worker_id"] == str(hook.settled[0].worker_id)
    assert line["job_spans"]["children"][0]["name"] == "part"
    assert "4111 1111" not in text


async def test_traces_are_exported(tmp_path):
    run = """
    async def main():
        await migrate.upgrade(engine)
        await add_job(engine, "a")
        await QueueWorker(engine, jobs).drain()
        provider.shutdown()

    asyncio.run(main())
    """
    out = await printed(QUEUE, recipe("OpenTelemetryTracing()"), run, cwd=tmp_path)
    decoder, spans, at = json.JSONDecoder(), {}, 0
    while (at := out.find("{", at)) >= 0:
        span, at = decoder.raw_decode(out, at)
        spans[span["name"]] = span
    assert set(spans) == {"enqueue a", "run a", "part"}
    assert spans["run a"]["links"][0]["context"]["span_id"] == spans["enqueue a"]["context"]["span_id"]
    assert spans["part"]["parent_id"] == spans["run a"]["context"]["span_id"]
    assert spans["run a"]["resource"]["attributes"]["service.name"] == "shop"


async def test_sentry_hears_once_of_what_failed_for_good(tmp_path):
    record = """
    import json
    import sentry_sdk
    from sentry_sdk.transport import Transport

    class Printing(Transport):
        def capture_envelope(self, envelope):
            for item in envelope.items:
                print(json.dumps(item.get_event()))

    sentry_sdk.init("https://key@sentry.invalid/1", transport=Printing())
    """
    run = """
    async def main():
        await migrate.upgrade(engine)
        await add_job(engine, "a")
        await add_job(engine, "a", {"fail": True, "card": "4111 1111 1111 1111"})
        await QueueWorker(engine, jobs).drain()
        sentry_sdk.flush()

    asyncio.run(main())
    """
    out = await printed(record, QUEUE, recipe("sentry_sdk"), run, cwd=tmp_path)
    (event,) = (json.loads(line) for line in out.splitlines() if line != "null")
    (raised,) = event["exception"]["values"]
    assert (raised["type"], raised["value"]) == ("ValueError", "no such user")
    assert raised["stacktrace"]["frames"][-1]["function"] == "a"
    assert raised["stacktrace"]["frames"][-1]["filename"].endswith("script.py")
    assert (event["tags"]["job_name"], event["contexts"]["job"]["id"]) == ("a", 2)
    assert "4111 1111" not in out
    assert "never told" not in out
