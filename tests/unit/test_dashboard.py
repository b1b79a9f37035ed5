"""The parts of the dashboard that need no database: words for numbers and times, charts, privacy, shared looks."""

import asyncio
import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from queue_kit import ConfigurationError, ThroughputPoint
from queue_kit.dashboard import Access
from queue_kit.dashboard._charts import runs_chart, times_chart
from queue_kit.dashboard._payload import MAX_SHOWN, failures_of, payload_of, trace_of
from queue_kit.dashboard._privacy import HIDDEN, HIDDEN_KEYS, Privacy
from queue_kit.dashboard._shared import FRESH, Shared
from queue_kit.dashboard._wording import absolute, ago, number, size, span
from tests.support import turns

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADA = Access("ada")


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0"),
        (950, "950"),
        (12_345, "12,345"),
        (99_999, "99,999"),
        (117_400, "117 k"),
        (1_250_000, "1.2 M"),
        (3e9, "3.0 G"),
    ],
)
def test_a_count(count, said):
    assert number(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "none"),
        (0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9996, "1.0 s"),
        (3.44, "3.4 s"),
        (42.4, "42 s"),
        (59.6, "60 s"),
        (60, "1 min"),
        (320, "5 min 20 s"),
        (900, "15 min"),
        (3_600, "1 h"),
        (3_599.9, "1 h"),
        (183_600, "2 d 3 h"),
        (timedelta(days=12, hours=5), "12 d"),
        (math.inf, "no limit"),
    ],
)
def test_a_length_of_time(seconds, said):
    assert span(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"),
        (-1, "just now"),
        (5, "5 s ago"),
        (119, "1 min ago"),
        (-7_300, "in 2 h"),
        (86_400 * 40, "40 d ago"),
        (86_400 * 800, "2 y ago"),
    ],
)
def test_an_instant_seen_from_now(seconds, said):
    assert ago(NOW - timedelta(seconds=seconds), NOW) == said


def test_the_ends_of_time_can_be_said():
    for instant in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        assert ago(instant, NOW)
        assert absolute(instant).endswith("UTC")


def test_bytes():
    assert [size(count) for count in (812, 3_400, 1_048_576)] == ["812 B", "3.4 kB", "1.0 MB"]


# --- charts -----------------------------------------------------------------------------------------------------------


def point(minute: int, **values: float) -> ThroughputPoint:
    return ThroughputPoint(NOW + timedelta(minutes=minute), 60.0, **values)  # type: ignore[arg-type]


def test_bars_are_as_high_as_their_counts_and_stand_on_each_other():
    chart = runs_chart([point(0), point(1, completed=60, retried=30, failed=10), point(2, completed=40)])
    assert chart.scale == ("100", "50", "0")
    assert chart.columns[0].parts == ()
    assert [(part.kind, part.top, part.height) for part in chart.columns[1].parts] == [
        ("good", 40.0, 60.0),
        ("again", 10.0, 30.0),
        ("bad", 0.0, 10.0),
    ]
    assert chart.columns[1].title == "12:01 UTC: 60 completed; 30 failed, tried again; 10 failed for good"
    assert chart.summary == "100 completed; 30 failed, tried again; 10 failed for good"


def test_one_failure_among_many_runs_is_seen():
    (column,) = runs_chart([point(0, completed=100_000, failed=1)]).columns
    assert column.parts[-1].kind == "bad"
    assert column.parts[-1].height >= 1.5
    assert all(0 <= part.top <= 100 for part in column.parts)


def test_lines_have_gaps_where_nothing_ran():
    ran = {"completed": 1, "mean_run": 0.25, "mean_wait": 0.5}
    chart = times_chart([point(0, **ran), point(1), point(2, **ran), point(3, **ran)])
    assert chart.scale == ("500 ms", "250 ms", "0")
    lines = dict(chart.lines)
    assert lines["run"] == "M0 50.00h1M2.5 50.00L3.5 50.00"
    assert lines["wait"] == "M0 0.00h1M2.5 0.00L3.5 0.00"


def test_a_chart_of_nothing():
    for chart in (runs_chart([]), times_chart([point(0)]), runs_chart([point(0)])):
        assert chart.is_empty
        assert chart.summary == "nothing ran"


@pytest.mark.parametrize("seconds", [0.0001, 0.0011, 0.3, 0.99, 1.0, 7, 59, 61, 4_000, 90_000, 1e6])
def test_no_line_leaves_the_chart(seconds):
    chart = times_chart([point(0, completed=1, mean_run=seconds, mean_wait=0.0)])
    height = float(dict(chart.lines)["run"].split(" ")[1].removesuffix("h1"))
    assert 0 <= height < 70


# --- privacy ----------------------------------------------------------------------------------------------------------


def test_values_of_telling_keys_are_hidden_however_deep():
    privacy = Privacy((), HIDDEN_KEYS)
    data = {"to": "a", "API-Key": "x", "list": [{"userPassword": {"deep": 1}, "Authorization": None}], "n": [1, "y"]}
    assert privacy.redacted(data, MAX_SHOWN) == {
        "to": "a",
        "API-Key": HIDDEN,
        "list": [{"userPassword": HIDDEN, "Authorization": HIDDEN}],
        "n": [1, "y"],
    }
    assert privacy.redacted("text", MAX_SHOWN) == "text"


def test_names_are_hidden_by_pattern_or_for_a_person():
    privacy = Privacy(["payment.*"], ())
    assert [privacy.hides(name, ADA) for name in ("payment.capture", "payments", "email")] == [True, False, False]
    assert privacy.hides("email", Access("bob", payloads=False))
    assert Privacy(["*"], ()).hides("email", ADA)


@pytest.mark.parametrize("wrong", ["payment.*", 5, [5], None])
def test_patterns_are_a_collection_of_texts(wrong):
    with pytest.raises(ConfigurationError, match="hidden_keys is a collection of patterns"):
        Privacy((), wrong)


# --- payloads and errors ----------------------------------------------------------------------------------------------


def whole(data: object, most: int) -> object:
    """Nothing is redacted."""
    return data


def test_a_payload_is_shown_in_parts_that_add_up_to_it():
    data = {"text": 'with "quotes": and \\ {brackets}', "n": [1, -2.5e10, True, None], "": {}}
    payload = payload_of(data, whole, is_hidden=False)
    assert json.loads("".join(text for _, text in payload.tokens)) == data
    assert {text for kind, text in payload.tokens if kind == "key"} == {'"text"', '"n"', '""'}
    assert {text for kind, text in payload.tokens if kind == "word"} == {"1", "-25000000000.0", "true", "null"}


def test_a_large_payload_is_cut_and_a_hidden_one_is_not_there():
    data = {"text": "x" * 200_000}
    payload = payload_of(data, whole, is_hidden=False)
    assert payload.is_cut
    assert sum(len(text) for _, text in payload.tokens) == MAX_SHOWN
    assert payload.size > 200_000
    assert payload_of(data, whole, is_hidden=True).tokens == ()


def test_of_hidden_errors_only_kind_and_time_are_left():
    record = {"at": "2026-03-01T12:00:00+00:00", "try": 2, "class": "ValueError", "message": "m", "traceback": "t"}
    discarded = {"at": "nonsense", "try": 1, "reason": "no such order"}
    shown, other = failures_of([discarded, record], is_hidden=False)
    assert (shown.title, shown.attempt, shown.at, shown.message, shown.traceback) == ("ValueError", "2", NOW, "m", "t")
    assert (other.title, other.at) == ("no such order", None)
    hidden, other = failures_of([discarded, record], is_hidden=True)
    assert (hidden.title, hidden.message, hidden.traceback) == ("ValueError", "", "")
    assert other.title == "Failed"


def test_a_trace_is_shown_if_it_is_one():
    trace = "0af7651916cd43dd8448eb211c80319c"  # pragma: allowlist secret
    assert trace_of({"traceparent": f"00-{trace}-b7ad6b7169203331-01"}) == trace
    for wrong in (None, [], {"traceparent": 5}, {"traceparent": "00-x"}, {}):
        assert trace_of(wrong) == ""


# --- shared looks -----------------------------------------------------------------------------------------------------


async def test_many_who_look_at_once_read_once(frozen):
    reads = 0
    opened = asyncio.Event()

    async def read() -> int:
        nonlocal reads
        reads += 1
        await opened.wait()
        return reads

    shared = Shared(read)
    looks = [asyncio.create_task(shared.get()) for _ in range(20)]
    await turns()
    opened.set()
    assert await asyncio.gather(*looks) == [1] * 20
    assert await shared.get() == 1
    frozen.forward(FRESH)
    assert await shared.get() == 2


async def test_a_failure_is_shared_but_not_for_long(frozen):
    answers = iter([OSError("gone"), 5])

    async def read() -> object:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    shared = Shared(read)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await shared.get()
    frozen.forward(FRESH)
    assert await shared.get() == 5


async def test_what_took_long_to_read_is_left_alone_for_ten_times_as_long(frozen):
    reads = 0

    async def read() -> int:
        nonlocal reads
        frozen.forward(3.0)
        reads += 1
        return reads

    shared = Shared(read)
    assert await shared.get() == 1
    frozen.forward(29.9)
    assert await shared.get() == 1
    frozen.forward(0.2)
    assert await shared.get() == 2
