"""What the record of a failed try says of its time: bounded whatever was timed, and readable whoever wrote it."""

import asyncio
import json
import math
from contextlib import suppress
from typing import Any

import pytest

from queue_kit import Discard, Job
from queue_kit._run import without_running
from queue_kit._timings import DID_NOT_RUN, MAX_NAME, MOST_SPANS, Timings, timings_of, timings_record
from queue_kit.cli.timings import span_lines, took
from queue_kit.dashboard._bars import WHOLE, bars_of
from queue_kit.event import Span
from tests.unit.jobs import claimed, limits, outcome_of

MOST_BYTES = 16_384


def span(name: str = "part", started: float = 0.0, duration: float | None = 1.0, *children: Span) -> Span:
    return Span(name, started, duration, None, list(children))


def shape(record: dict[str, Any]) -> list[tuple[str, int]]:
    return [(each["name"], each["depth"]) for each in record["spans"]]


async def record_of(function: Any, **bounds: Any) -> Any:
    """The record that a run of a handler leaves."""
    return (await outcome_of(function, **bounds)).error


# --- what is kept -----------------------------------------------------------------------------------------------------


async def test_a_failed_try_keeps_its_time_and_its_spans_as_a_tree():
    async def handler(event, session, job):
        with event.span("load"):
            pass
        with event.span("charge") as charging, charging.span("http.post"):
            raise ValueError("no")

    record = await record_of(handler)
    assert shape(record) == [("load", 0), ("charge", 0), ("http.post", 1)]
    starts = [each["start"] for each in record["spans"]]
    assert starts == sorted(starts)
    assert all(0 <= each["start"] + each["seconds"] <= record["seconds"] < 20 for each in record["spans"])
    assert not {"aborted", "spans_left_out"} & record.keys()
    assert not any("aborted" in each for each in record["spans"])


async def test_a_try_over_its_time_tells_when_it_was_told_to_end_and_in_which_span():
    async def handler(event, session, job):
        with event.span("before"):
            pass
        with event.span("waiting"):
            await asyncio.Event().wait()

    record = await record_of(handler, timeout=0.01)
    before, waiting = record["spans"]
    assert 0 < record["aborted"] <= record["seconds"]
    assert ("aborted" in before, waiting["aborted"]) == (False, record["aborted"])


async def test_a_span_of_a_handler_that_refuses_to_end_has_no_end():
    released = asyncio.Event()

    async def handler(event, session, job):
        with event.span("stuck"):
            while not released.is_set():
                with suppress(asyncio.CancelledError):
                    await released.wait()

    record = await record_of(handler, timeout=0.01, cancel_grace=0.01)
    released.set()
    assert [each["seconds"] for each in record["spans"]] == [None]


@pytest.mark.parametrize("error", [ValueError("no"), Discard("no such order")])
async def test_every_failure_of_a_run_has_its_time(error):
    async def handler(event, session, job):
        raise error

    record = await record_of(handler)
    assert record["seconds"] >= 0
    assert "spans" not in record


async def test_a_job_that_did_not_run_says_so():
    async def handler(event, session, job: Job[int]):
        pytest.fail("it was called")

    outcome = without_running(claimed(lost=9), limits())
    assert outcome is not None
    assert outcome.error is not None
    for record in (outcome.error, await record_of(handler)):
        assert timings_of(record) == timings_of(DID_NOT_RUN)


async def test_a_run_that_succeeds_leaves_nothing():
    async def handler(event, session, job):
        with event.span("load"):
            pass

    assert await record_of(handler) is None


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_of_ten_thousand_spans_the_last_are_kept_with_what_they_lie_in():
    loop = span("loop", 0, 10, *(span(f"turn {at}", at / 1_000, 0.001) for at in range(10_000)))
    record = timings_record(11, span("root", 0, 11, span("before"), loop))
    assert shape(record) == [("loop", 0), *((f"turn {at}", 1) for at in range(10_001 - MOST_SPANS, 10_000))]
    assert record["spans_left_out"] == 10_002 - MOST_SPANS
    assert len(json.dumps(record)) < MOST_BYTES


def test_no_more_is_looked_at_than_is_kept():
    looked = []

    class Noted(list[Span]):
        def __getitem__(self, key: Any) -> Any:
            looked.append(key)
            return super().__getitem__(key)

    def deep(levels: int) -> Span:
        made = span()
        made.children = Noted([deep(levels - 1) for _ in range(10)] if levels else [])
        return made

    record = timings_record(1, deep(4))
    assert len(record["spans"]) == MOST_SPANS
    assert 0 < len(looked) <= MOST_SPANS + 1


def test_a_tree_without_end_in_depth_is_bounded():
    root = span("root")
    deepest = root
    for _ in range(5_000):
        deepest.children.append(span("x" * 500))
        deepest = deepest.children[0]
    record = timings_record(1, root)
    assert [each["depth"] for each in record["spans"]] == list(range(MOST_SPANS))
    assert {len(each["name"]) for each in record["spans"]} == {MAX_NAME}
    assert record["spans_left_out"] >= 1


class NoText:
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("name", ["\x00" * 500, "\ud800" * 500, "\U0001f600" * 500, 7, None, NoText()], ids=range(6))
def test_any_name_is_storable_and_bounded(name):
    record = timings_record(1, span("root", 0, 1, *(span(name) for _ in range(100))))
    text = json.dumps(record, ensure_ascii=False)
    assert len(text.encode()) < MOST_BYTES
    assert "\x00" not in text
    assert all(0 < len(each.name) <= MAX_NAME for each in timings_of(record).spans)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read():
    root = span("root", 0, 2, span("a", 0.5, 1, span("b", 0.6, None)))
    root.aborted = root.children[0].aborted = 1.25
    timings = timings_of(timings_record(2.5, root))
    assert (timings.seconds, timings.aborted, timings.left_out, timings.is_known) == (2.5, 1.25, 0, True)
    assert [(each.name, each.depth, each.start, each.seconds, each.aborted) for each in timings.spans] == [
        ("a", 0, 0.5, 1.0, 1.25),
        ("b", 1, 0.6, None, None),
    ]


STRANGE = [
    {},
    {"seconds": "1", "spans": 7, "aborted": [], "spans_left_out": "9"},
    {"seconds": math.nan, "spans": [None, {}, {"name": 7}, {"name": "a", "depth": "x", "start": -1, "seconds": 1e300}]},
    {"seconds": True, "aborted": -5, "spans_left_out": -1},
    {"seconds": 10**400, "spans_left_out": 10**400, "spans": [{"name": "a", "depth": 10**400}] * 9_000},
]


@pytest.mark.parametrize("record", STRANGE, ids=range(len(STRANGE)))
def test_what_others_wrote_is_left_out_or_bounded(record):
    timings = timings_of(record)
    assert (timings.seconds, timings.aborted, timings.left_out) == (None, None, 0)
    assert len(timings.spans) <= MOST_SPANS
    assert all(0 <= each.depth <= MOST_SPANS for each in timings.spans)
    assert len(bars_of(timings)) == len(list(span_lines(timings))) == len(timings.spans)


# --- showing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "without a time: an older version wrote it"),
        (DID_NOT_RUN, "its handler did not run"),
        ({"seconds": 3.5}, "ran 3.50 s"),
        ({"seconds": 600}, "ran 10 min"),
        ({"seconds": 0.0125, "aborted": 0.01}, "ran 12 ms, told to end after 10 ms"),
    ],
)
def test_how_long_a_try_ran_in_words(record, words):
    assert took(timings_of(record)) == words


def test_bars_lie_where_their_spans_were():
    timings = timings_of(timings_record(10, span("root", 0, 10, span("a", 0, 5, span("b", 2, 1)), span("c", 5, None))))
    assert [(bar.left, bar.width, bar.indent) for bar in bars_of(timings)] == [
        (0, 500, 0),
        (200, 100, 1),
        (500, 500, 0),
    ]
    assert list(span_lines(timings)) == [
        "a         5.00 s  |############            |",
        "  b       1.00 s  |    ###                 |",
        "c    did not end  |            ############|",
    ]


@pytest.mark.parametrize(("start", "seconds"), [(0, 0), (10, 0), (9.999, 0.0001), (0, 10), (10, None)])
def test_a_bar_is_seen_and_stays_inside(start, seconds):
    timings = timings_of({"seconds": 10, "spans": [{"name": "a", "start": start, "seconds": seconds}]})
    (bar,) = bars_of(timings)
    assert bar.width >= 6
    assert 0 <= bar.left <= bar.left + bar.width <= WHOLE
    (line,) = span_lines(timings)
    assert line.count("|") == 2
    assert 1 <= line.count("#") <= 24
    assert len(line.partition("|")[2].partition("|")[0]) == 24


def test_nothing_timed_is_no_bar_and_no_error():
    assert bars_of(Timings()) == ()
    assert list(span_lines(Timings())) == []
    assert bars_of(timings_of({"seconds": 0, "spans": [{"name": "a", "seconds": 0}]}))[0].left == 0
