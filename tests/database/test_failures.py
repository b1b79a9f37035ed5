"""Failed jobs by what went wrong."""

import json
from datetime import timedelta

import pytest

from queue_kit import (
    BulkChange,
    Discard,
    FailureGroup,
    Handlers,
    JobState,
    QueueWorker,
    add_job,
    cancel_jobs,
    failure_groups,
    failures,
    retry_jobs,
)
from queue_kit.failures import head_of
from tests.database.clock import WAYS, reach
from tests.database.running import job_in, raw
from tests.support import change, move


async def failed(engine, name="mail", *, error="ValueError", message="bad", seconds_ago=0.0):
    """A job that failed so long ago."""
    earlier = {"class": "OSError", "message": "an earlier try"}
    job_id = await job_in(engine, "failed", name=name, errors=[earlier, {"class": error, "message": message}])
    await move(engine, job_id, updated_at=-seconds_ago)
    return job_id


@pytest.mark.parametrize("way", WAYS)
async def test_jobs_of_one_cause_are_one_group_with_the_last_of_them(engine, way):
    for number in range(3):
        await failed(engine, message=f"order {number} of 'customer {number}' is unknown", seconds_ago=60 - number)
    last = await failed(engine, message="order 9 of 'nobody' is unknown", seconds_ago=5)
    other = await failed(engine, error="KeyError", message="order 9 of 'nobody' is unknown")
    await failed(engine, name="pdf", message="order 9 of 'nobody' is unknown", seconds_ago=10)
    await job_in(engine, "completed", errors=[{"class": "ValueError", "message": "order 1"}])
    async with reach(engine, way) as db:
        groups = await failure_groups(db)
        assert groups[0].count == 4
        assert (groups[0].name, groups[0].error_class) == ("mail", "ValueError")
        assert groups[0].message == "order … of '…' is unknown"
        assert groups[0].last_job_id == last
        assert [group.count for group in groups] == [4, 1, 1]
        assert groups[1].last_job_id == other
        assert [group.name for group in await failure_groups(db, name="pdf")] == ["pdf"]
        assert await failure_groups(db, limit=1) == groups[:1]
        assert await failure_groups(db, name="nobody") == []
    assert groups[1].last_failed_at - groups[0].last_failed_at > timedelta(seconds=3)


async def test_what_workers_record_is_grouped(engine):
    jobs = Handlers()

    @jobs.handler("fails", max_retry_count=1)
    async def fails(event, session, job):
        if job.data["discard"]:
            raise Discard("no such order")
        raise LookupError(f"order {job.id} is gone\nsecond line {job.id}")

    for discard in (True, False, True, False, False):
        await add_job(engine, "fails", {"discard": discard})
    await QueueWorker(engine, jobs).drain()
    groups = await failure_groups(engine)
    assert [(group.error_class, group.message, group.count) for group in groups] == [
        ("LookupError", "order … is gone", 3),
        ("Discard", "no such order", 2),
    ]
    assert isinstance(groups[0], FailureGroup)


@pytest.mark.parametrize(
    "errors", [None, [], {}, 7, "x", [None], [7], [{}], [{"class": 7, "message": {"a": 1}}]], ids=str
)
async def test_a_record_that_somebody_spoiled_is_a_group_of_its_own(engine, errors):
    job_id = await job_in(engine, "failed")
    await change(engine, job_id, errors=errors)
    whole = await failed(engine, name="a")
    groups = await failure_groups(engine)
    assert {(group.name, group.count, group.last_job_id) for group in groups} == {("a", 1, job_id), ("a", 1, whole)}


async def test_text_that_is_no_json_spoils_nothing_on_sqlite(embedded_engine):
    await job_in(embedded_engine, "failed")
    await raw(embedded_engine, "UPDATE queue_kit_job SET errors = '[{'")
    (group,) = await failure_groups(embedded_engine)
    assert group.message == ""


async def test_only_so_many_of_the_last_failures_are_looked_at(engine, monkeypatch):
    monkeypatch.setattr(failures, "NEWEST", 3)
    for number in range(5):
        await failed(engine, name=f"n{number}", seconds_ago=100 - number)
    groups = await failure_groups(engine)
    assert sorted((group.name, group.more) for group in groups) == [("n2", True), ("n3", True), ("n4", True)]


async def test_failures_of_others_do_not_hide_those_of_a_name(engine, monkeypatch):
    monkeypatch.setattr(failures, "NEWEST", 3)
    ours = [await failed(engine, name="rare", seconds_ago=100 - number) for number in range(3)]
    for _ in range(4):
        await failed(engine, name="often")
    (group,) = await failure_groups(engine, name="rare")
    assert (group.count, group.last_job_id, group.more) == (3, ours[-1], False)
    (group,) = await failure_groups(engine, name="often")
    assert (group.count, group.more) == (3, True)
    assert await retry_jobs(engine, name="rare", error_class="KeyError") == BulkChange()
    assert await retry_jobs(engine, name="often", error_class="KeyError") == BulkChange(older=True)
    assert await retry_jobs(engine, name="rare", dry_run=True) == BulkChange(changed=3)
    assert await retry_jobs(engine, name="rare") == BulkChange(changed=3)
    assert await retry_jobs(engine, name="often") == BulkChange(changed=3, older=True)


async def test_a_name_that_no_job_can_have_finds_nothing(engine):
    await failed(engine)
    for name in ("\0", "\ud800", "n" * 10_000):
        assert await failure_groups(engine, name=name) == []
        for state in (None, JobState.cancelled):
            assert await retry_jobs(engine, state=state, name=name) == BulkChange()
        assert await cancel_jobs(engine, name=name) == BulkChange()


@pytest.mark.parametrize("time", ["0044-03-15 BC", "12000-01-01", "infinity", "-infinity"])
async def test_a_time_that_python_cannot_hold_hides_no_failures(pg_engine, time):
    job_id = await failed(pg_engine)
    await raw(pg_engine, f"UPDATE queue_kit_job SET updated_at = '{time}' WHERE id = {job_id}")
    (group,) = await failure_groups(pg_engine)
    assert group.last_failed_at.year in (1, 9999)


@pytest.mark.parametrize(
    ("message", "head"),
    [
        ("timeout after 30.5 s", "timeout after … s"),
        ("job 0b1f0e2a-9f5d-4b0e-8d57-7d1c3d0a7c11 at 0x7f3a is 12:30:01", "job … at … is …"),
        ("no key 'a b' in \"the map\"", "no key '…' in \"…\""),
        ("object deadbeef0123456789 deadbeefcafe", "object … deadbeefcafe"),
        ("it's the user's", "it'…'s"),
        ("\n\n  first\nsecond", "first"),
        ("", ""),
        ("x" * 300, "x" * 200),
        ("\x1b[31mred\ttext ", "\\x…b[…mred\\ttext"),
        (f"{'x' * 199} 'a'", "x" * 199),
    ],
)
def test_a_head_leaves_out_what_differs_and_is_its_own_head(message, head):
    assert head_of(message) == head
    assert head_of(head) == head


async def test_what_is_no_limit_or_name_is_refused(engine):
    for limit in (0, 1_001, True, "1", None):
        with pytest.raises(ValueError, match="limit is from 1 to 1000"):
            await failure_groups(engine, limit=limit)
    with pytest.raises(TypeError, match="name must be text"):
        await failure_groups(engine, name=3)
    with pytest.raises(TypeError, match="AsyncSession"):
        await failure_groups(json)
