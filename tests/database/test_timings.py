"""How long failed tries ran, from the handler to where an operator looks."""

import asyncio
import json

import httpx
from click.testing import CliRunner

from queue_kit import Handlers, QueueWorker, add_job
from queue_kit.cli import main
from queue_kit.dashboard import Access, dashboard
from tests.database.running import job_in
from tests.support import change, row_of

OLD = {"at": "2026-01-02T03:04:05+00:00", "try": 1, "class": "ValueError", "message": "no", "traceback": "Trace\nback"}


async def page_of(engine, job_id, **access) -> str:
    app = dashboard(engine, authorize=lambda _: Access("ada", **access))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://queue.test") as visitor:
        answer = await visitor.get(f"/jobs/{job_id}")
    assert answer.status_code == 200
    return answer.text


async def shown(url, job_id, *options) -> str:
    arguments = ["show", str(job_id), *options, "--database-url", url]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


async def test_an_operator_sees_where_a_failed_try_spent_its_time(engine, database_url):
    jobs = Handlers()

    @jobs.handler("order.confirm", timeout=0.2, max_retry_count=1)
    async def confirm(event, session, job):
        with event.span("load <order>"):
            pass
        with event.span("charge") as charging, charging.span("http.post"):
            await asyncio.Event().wait()

    job_id = await add_job(engine, "order.confirm")
    assert (await QueueWorker(engine, jobs).drain())["failed"] == 1
    (record,) = (await row_of(engine, job_id)).errors
    assert [(each["name"], each["depth"]) for each in record["spans"]] == [
        ("load <order>", 0),
        ("charge", 0),
        ("http.post", 1),
    ]
    assert 0.19 < record["aborted"] <= record["seconds"]  # the event begins a moment after the time runs
    last = record["spans"][-1]
    record["seconds"] = last["start"] + last["seconds"]  # on a busy machine the run ends a while after its spans
    await change(engine, job_id, errors=[record])
    assert json.loads(await shown(database_url, job_id, "--json"))["errors"] == [record]
    said = await shown(database_url, job_id)
    assert ", told to end after " in said
    load, charge, post = [line for line in said.splitlines() if line.endswith(("|", "|  told to end"))]
    assert load.split()[:3] == ["load", "<order>", "0"]
    assert charge.startswith("    charge ")
    assert post.startswith("      http.post ")
    assert post.endswith("#|  told to end")
    page = await page_of(engine, job_id)
    for words in (
        "told to end after ",
        "load &lt;order&gt;",
        "level 2: </span><bdi>http.post",
        "<td",
        "told to end</span>",
    ):
        assert words in page
    hidden = await page_of(engine, job_id, payloads=False)
    assert "told to end after " in hidden
    assert "http.post" not in hidden


async def test_a_record_of_an_older_version_says_that_nobody_timed_it(engine, database_url):
    job_id = await job_in(engine, "failed", errors=[OLD, OLD | {"seconds": None}])
    for said in (await shown(database_url, job_id), await page_of(engine, job_id)):
        assert "ithout a time: an older version wrote it" in said
        assert "ts handler did not run" in said
        assert "Trace\n" in said


async def test_ten_thousand_spans_leave_the_last_ones_and_a_small_row(engine, database_url):
    jobs = Handlers()

    @jobs.handler("a", max_retry_count=3, retry_delay=0)
    async def fail(event, session, job):
        for number in range(10_000):
            with event.span(f"line {number}"):
                pass
        raise ValueError("no")

    job_id = await add_job(engine, "a")
    assert (await QueueWorker(engine, jobs).drain())["failed"] == 1
    errors = (await row_of(engine, job_id)).errors
    assert [each["try"] for each in errors] == [1, 2, 3]
    for record in errors:
        assert record["spans"][-1]["name"] == "line 9999"
        assert record["spans_left_out"] == 10_000 - len(record["spans"])
        assert len(json.dumps(record["spans"])) < 5_000
    assert "9,960 earlier" in await shown(database_url, job_id)
    assert "9,960 earlier" in await page_of(engine, job_id)
