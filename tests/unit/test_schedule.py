"""When a cron job runs: what is refused, what the fields mean, and what happens where the clock is turned.

The table of clock changes shows the rule; beside it an oracle, which knows neither croniter nor bisection, walks every
minute around each change and must agree.
"""

from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_kit._schedule import Schedule
from queue_kit.errors import InvalidCron

MINUTE = timedelta(minutes=1)
MICROSECOND = timedelta(microseconds=1)
AMSTERDAM, NEW_YORK, LORD_HOWE, HAVANA = "Europe/Amsterdam", "America/New_York", "Australia/Lord_Howe", "America/Havana"

quick = settings(derandomize=True, max_examples=50)


def schedule(expression: str, zone: str = "UTC", name: str = "report") -> Schedule:
    return Schedule.parse(expression, zone, name=name)


def at(text: str, zone: str = "UTC") -> datetime:
    """`2026-10-25 02:30` in `zone`; a trailing apostrophe means the second pass of a repeated time."""
    local = datetime.fromisoformat(text.removesuffix("'")).replace(tzinfo=ZoneInfo(zone), fold=text.endswith("'"))
    return local.astimezone(UTC)


def ticks(plan: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    """Those after `start`, up to and with `end`."""
    while (start := plan.after(start)) <= end:
        yield start


def clock(instants: Iterator[datetime], zone: str) -> str:
    """The instants as the clock of `zone` shows them, in the notation of the table."""
    shown = [instant.astimezone(ZoneInfo(zone)) for instant in instants]
    return " ".join(f"{local:%H:%M}{chr(39) * local.fold}" for local in shown)


# Each day's window runs from 23:35 the evening before to 04:05.
SPRING = {AMSTERDAM: "2026-03-29", NEW_YORK: "2026-03-08", LORD_HOWE: "2026-10-04", HAVANA: "2026-03-08"}
AUTUMN = {AMSTERDAM: "2026-10-25", NEW_YORK: "2026-11-01", LORD_HOWE: "2026-04-05", HAVANA: "2026-11-01"}
TURNS = [
    (AMSTERDAM, "0 0 * * *", "00:00", "00:00"),
    (AMSTERDAM, "30 0 * * *", "00:30", "00:30"),
    (AMSTERDAM, "45 1 * * *", "01:45", "01:45"),
    (AMSTERDAM, "15 2 * * *", "03:00", "02:15"),
    (
        AMSTERDAM,
        "*/20 0-2 * * *",
        "00:00 00:20 00:40 01:00 01:20 01:40 03:00",
        "00:00 00:20 00:40 01:00 01:20 01:40 02:00 02:20 02:40",
    ),
    (AMSTERDAM, "0 */2 * * *", "00:00 03:00 04:00", "00:00 02:00 04:00"),
    (AMSTERDAM, "0 * * * *", "00:00 01:00 03:00 04:00", "00:00 01:00 02:00 02:00' 03:00 04:00"),
    (
        AMSTERDAM,
        "*/30 * * * *",
        "00:00 00:30 01:00 01:30 03:00 03:30 04:00",
        "00:00 00:30 01:00 01:30 02:00 02:30 02:00' 02:30' 03:00 03:30 04:00",
    ),
    (NEW_YORK, "0 0 * * *", "00:00", "00:00"),
    (NEW_YORK, "30 0 * * *", "00:30", "00:30"),
    (NEW_YORK, "45 1 * * *", "01:45", "01:45"),
    (NEW_YORK, "15 2 * * *", "03:00", "02:15"),
    (
        NEW_YORK,
        "*/20 0-2 * * *",
        "00:00 00:20 00:40 01:00 01:20 01:40 03:00",
        "00:00 00:20 00:40 01:00 01:20 01:40 02:00 02:20 02:40",
    ),
    (NEW_YORK, "0 */2 * * *", "00:00 03:00 04:00", "00:00 02:00 04:00"),
    (NEW_YORK, "0 * * * *", "00:00 01:00 03:00 04:00", "00:00 01:00 01:00' 02:00 03:00 04:00"),
    (
        NEW_YORK,
        "*/30 * * * *",
        "00:00 00:30 01:00 01:30 03:00 03:30 04:00",
        "00:00 00:30 01:00 01:30 01:00' 01:30' 02:00 02:30 03:00 03:30 04:00",
    ),
    (LORD_HOWE, "0 0 * * *", "00:00", "00:00"),
    (LORD_HOWE, "30 0 * * *", "00:30", "00:30"),
    (LORD_HOWE, "45 1 * * *", "01:45", "01:45"),
    (LORD_HOWE, "15 2 * * *", "02:30", "02:15"),
    (
        LORD_HOWE,
        "*/20 0-2 * * *",
        "00:00 00:20 00:40 01:00 01:20 01:40 02:30 02:40",
        "00:00 00:20 00:40 01:00 01:20 01:40 02:00 02:20 02:40",
    ),
    (LORD_HOWE, "0 */2 * * *", "00:00 02:30 04:00", "00:00 02:00 04:00"),
    (LORD_HOWE, "0 * * * *", "00:00 01:00 03:00 04:00", "00:00 01:00 02:00 03:00 04:00"),
    (
        LORD_HOWE,
        "*/30 * * * *",
        "00:00 00:30 01:00 01:30 02:30 03:00 03:30 04:00",
        "00:00 00:30 01:00 01:30 01:30' 02:00 02:30 03:00 03:30 04:00",
    ),
    (HAVANA, "0 0 * * *", "01:00", "00:00"),
    (HAVANA, "30 0 * * *", "01:00", "00:30"),
    (HAVANA, "45 1 * * *", "01:45", "01:45"),
    (HAVANA, "15 2 * * *", "02:15", "02:15"),
    (
        HAVANA,
        "*/20 0-2 * * *",
        "01:00 01:20 01:40 02:00 02:20 02:40",
        "00:00 00:20 00:40 01:00 01:20 01:40 02:00 02:20 02:40",
    ),
    (HAVANA, "0 */2 * * *", "01:00 02:00 04:00", "00:00 02:00 04:00"),
    (HAVANA, "0 * * * *", "01:00 02:00 03:00 04:00", "00:00 00:00' 01:00 02:00 03:00 04:00"),
    (
        HAVANA,
        "*/30 * * * *",
        "01:00 01:30 02:00 02:30 03:00 03:30 04:00",
        "00:00 00:30 00:00' 00:30' 01:00 01:30 02:00 02:30 03:00 03:30 04:00",
    ),
]


@pytest.mark.parametrize(("zone", "expression", "spring", "autumn"), TURNS)
def test_where_the_clock_is_turned(zone: str, expression: str, spring: str, autumn: str) -> None:
    for day, expected in ((SPRING[zone], spring), (AUTUMN[zone], autumn)):
        eve = date.fromisoformat(day) - timedelta(days=1)
        start, end = at(f"{eve} 23:35", zone), at(f"{day} 04:05", zone)
        assert clock(ticks(schedule(expression, zone), start, end), zone) == expected


# Beside those of the table: other midnights, two hours, a whole day, a negative DST, and a change of standard time.
TURN_DAYS = [
    *SPRING.items(),
    *AUTUMN.items(),
    ("Asia/Beirut", "2022-03-27"),
    ("Asia/Beirut", "2022-10-30"),
    ("America/Sao_Paulo", "2018-11-04"),
    ("America/Sao_Paulo", "2018-02-18"),
    ("Antarctica/Troll", "2026-03-29"),
    ("Antarctica/Troll", "2026-10-25"),
    ("Pacific/Apia", "2011-12-30"),
    ("Europe/Dublin", "2026-10-25"),
    ("Asia/Pyongyang", "2018-05-05"),
]


def values(field: str, highest: int) -> set[int]:
    chosen: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"0-{highest}" if span == "*" else span).partition("-")
        chosen |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return chosen


def oracle(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """The ticks by walking all minutes of the clock; for expressions whose minutes and hours alone are set."""
    minutes, hours = (values(field, highest) for field, highest in zip(expression.split(), (59, 23), strict=False))
    found = []
    instant, clocks = start, ZoneInfo(zone)
    reached = start.astimezone(clocks).replace(tzinfo=None)
    while (instant := instant + MINUTE) <= end:
        wall = instant.astimezone(clocks).replace(tzinfo=None)
        # For a fixed hour a time counts when the clock first reaches it, or leaps over it.
        leapt = [wall - n * MINUTE for n in range((wall - reached) // MINUTE)]
        shown = [wall] if len(hours) == 24 else leapt
        if any(time.minute in minutes and time.hour in hours for time in shown):
            found.append(instant)
        reached = max(reached, wall)
    return found


ORACLE_EXPRESSIONS = [
    "0 0 * * *",
    "59 23 * * *",
    "15 2 * * *",
    "*/20 0-3 * * *",
    "7,37 */3 * * *",
    "0 * * * *",
    "*/25 * * * *",
    "45 */1 * * *",
]


@pytest.mark.parametrize(("zone", "day"), TURN_DAYS)
def test_agrees_with_a_walk_over_every_minute(zone: str, day: str) -> None:
    noon = at(f"{day} 12:00", zone)
    start, end = noon - timedelta(hours=38), noon + timedelta(hours=2)
    for expression in ORACLE_EXPRESSIONS:
        assert list(ticks(schedule(expression, zone), start, end)) == oracle(expression, zone, start, end), expression


def test_seconds_where_the_clock_is_turned() -> None:
    each, fixed = schedule("*/30 59 * * * *", AMSTERDAM), schedule("*/30 59 2 * * *", AMSTERDAM)
    start, end = at("2026-10-25 02:58", AMSTERDAM), at("2026-10-25 03:30", AMSTERDAM)
    assert clock(ticks(each, start, end), AMSTERDAM) == "02:59 02:59 02:59' 02:59'"
    assert clock(ticks(fixed, start, end), AMSTERDAM) == "02:59 02:59"
    through = schedule("* * 2 * * *", AMSTERDAM)
    assert through.after(at("2026-10-25 02:59:59", AMSTERDAM)) == at("2026-10-26 02:00", AMSTERDAM)
    assert through.after(at("2026-10-25 02:10'", AMSTERDAM)) == at("2026-10-26 02:00", AMSTERDAM)
    assert through.after(at("2026-03-29 01:59:59", AMSTERDAM)) == at("2026-03-29 03:00", AMSTERDAM)
    assert through.after(at("2026-03-29 03:00", AMSTERDAM)) == at("2026-03-30 02:00", AMSTERDAM)


@pytest.mark.parametrize("hours", ["*", "*/1", "0-23", "0-11,12-23", "H/1"])
def test_every_spelling_of_every_hour_runs_in_both_passes(hours: str) -> None:
    start, end = at("2026-10-25 01:59", AMSTERDAM), at("2026-10-25 03:00", AMSTERDAM)
    assert clock(ticks(schedule(f"0 {hours} * * *", AMSTERDAM), start, end), AMSTERDAM) == "02:00 02:00' 03:00"


def test_a_skipped_time_and_the_end_of_the_gap_run_once() -> None:
    both = schedule("0 2,3 * * *", AMSTERDAM)
    start, end = at("2026-03-29 01:00", AMSTERDAM), at("2026-03-29 23:00", AMSTERDAM)
    assert clock(ticks(both, start, end), AMSTERDAM) == "03:00"


ZONES = st.sampled_from(sorted({zone for zone, _ in TURN_DAYS} | {"UTC", "Asia/Kathmandu", "Africa/Casablanca"}))
FREQUENT = st.sampled_from([*ORACLE_EXPRESSIONS, "30 1 * * mon", "0,30 2 L * *", "H H * * *", "*/10 */15 1,2 * * *"])


@st.composite
def near_a_turn(draw: st.DrawFn) -> tuple[str, datetime]:
    zone, day = draw(st.sampled_from(TURN_DAYS))
    away = draw(st.integers(-8 * 3_600_000_000, 8 * 3_600_000_000))
    return zone, at(f"{day} 00:00", zone) + timedelta(microseconds=away)


MOMENTS = st.datetimes(datetime(2010, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
PLACES = st.one_of(st.tuples(ZONES, MOMENTS), near_a_turn())


@quick
@given(expression=FREQUENT, place=PLACES, share=st.floats(0, 1, exclude_max=True))
def test_every_instant_between_two_ticks_has_the_same_next(
    expression: str, place: tuple[str, datetime], share: float
) -> None:
    zone, moment = place
    plan = schedule(expression, zone)
    tick = plan.after(moment)
    following = plan.after(tick)
    assert moment < tick < following
    assert plan.after(min(moment + (tick - moment) * share, tick - MICROSECOND)) == tick
    assert plan.after(min(tick + (following - tick) * share, following - MICROSECOND)) == following
    assert plan.after(following - MICROSECOND) == following


@quick
@given(expression=FREQUENT, place=PLACES)
def test_ticks_increase_and_are_whole_seconds_in_utc(expression: str, place: tuple[str, datetime]) -> None:
    zone, instant = place
    plan = schedule(expression, zone)
    run = [instant, *(instant := plan.after(instant) for _ in range(6))]
    assert all(earlier < later for earlier, later in pairwise(run))
    assert all(tick.tzinfo is UTC and tick.microsecond == 0 for tick in run[1:])


@quick
@given(place=PLACES, minutes=st.sampled_from([5, 10, 15, 30]))
def test_minutes_of_every_hour_never_miss_a_real_interval(place: tuple[str, datetime], minutes: int) -> None:
    zone, instant = place
    plan = schedule(f"*/{minutes} * * * *", zone)
    run = [instant, *(instant := plan.after(instant) for _ in range(12))]
    assert run[1] - run[0] <= timedelta(minutes=minutes)
    assert {later - earlier for earlier, later in pairwise(run[1:])} == {timedelta(minutes=minutes)}


@pytest.mark.parametrize(
    ("zone", "year", "expression"),
    [
        (AMSTERDAM, 2026, "30 2 * * *"),
        (NEW_YORK, 2026, "30 1 * * *"),
        (LORD_HOWE, 2026, "15 2 * * *"),
        (HAVANA, 2026, "0 0 * * *"),
        ("America/Sao_Paulo", 2018, "30 23 * * *"),
        ("Asia/Beirut", 2022, "30 0 * * *"),
    ],
)
def test_t6_a_fixed_hour_runs_once_each_local_day(zone: str, year: int, expression: str) -> None:
    first = date(year, 1, 1)
    year_long = ticks(
        schedule(expression, zone), at(f"{first} 00:00", zone) - MICROSECOND, at(f"{year}-12-31 23:59", zone)
    )
    days = [tick.astimezone(ZoneInfo(zone)).date() for tick in year_long]
    assert days == [first + timedelta(days=n) for n in range(365)]


def test_after_is_strict_to_the_microsecond() -> None:
    daily, noon, next_noon = schedule("0 12 * * *"), at("2026-05-01 12:00"), at("2026-05-02 12:00")
    assert daily.after(noon - MICROSECOND) == noon
    assert daily.after(noon) == next_noon
    assert daily.after(noon + MICROSECOND) == next_noon
    each_second = schedule("* * * * * *")
    assert each_second.after(noon - MICROSECOND) == noon
    assert each_second.after(noon + MICROSECOND) == noon + timedelta(seconds=1)


def test_after_reads_the_instant_whatever_zone_it_is_given_in() -> None:
    plan, noon = schedule("0 6 * * *", AMSTERDAM), at("2026-05-01 12:00")
    for zone in (UTC, ZoneInfo(NEW_YORK), timezone(timedelta(hours=5, microseconds=1))):
        assert plan.after(noon.astimezone(zone)) == at("2026-05-02 06:00", AMSTERDAM)


def test_after_refuses_a_naive_instant() -> None:
    with pytest.raises(ValueError, match="an instant with a time zone, not the naive"):
        schedule("* * * * *").after(datetime(2026, 5, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("*/10 * * * * *", "2026-05-01 12:00:05", "2026-05-01 12:00:10"),
        ("15 30 6 * * *", "2026-05-01 12:00", "2026-05-02 06:30:15"),
        ("  0   6\t* * * ", "2026-05-01 12:00", "2026-05-02 06:00"),
        ("0 6 * * MON-FRI", "2026-05-01 12:00", "2026-05-04 06:00"),
        ("0 0 * JAN 7", "2026-05-01 12:00", "2027-01-03 00:00"),
        ("0 0 L * *", "2026-02-01", "2026-02-28"),
        ("0 0 * * fri#2", "2026-05-01", "2026-05-08"),
        ("0 0 13 * fri", "2026-05-09", "2026-05-13"),
        ("0 0 29 2 *", "2096-03-01", "2104-02-29"),
        ("0 22-1 * * *", "2026-05-01 23:30", "2026-05-02 00:00"),
        ("@hourly", "2026-05-06 12:34", "2026-05-06 13:00"),
        ("@daily", "2026-05-06 12:34", "2026-05-07"),
        ("@midnight", "2026-05-06 12:34", "2026-05-07"),
        ("@weekly", "2026-05-06 12:34", "2026-05-10"),
        ("@monthly", "2026-05-06 12:34", "2026-06-01"),
        ("@yearly", "2026-05-06 12:34", "2027-01-01"),
        (" @Annually ", "2026-05-06 12:34", "2027-01-01"),
    ],
)
def test_what_an_expression_means(expression: str, after: str, expected: str) -> None:
    assert schedule(expression).after(at(after)) == at(expected)


def test_hashed_fields_are_fixed_by_the_name() -> None:
    start = at("2026-05-01")
    first = {name: schedule("H H * * *", name=name).after(start) for name in ("report", "cleanup", "größe")}
    assert first == {
        "report": at("2026-05-01 10:44"),
        "cleanup": at("2026-05-01 04:33"),
        "größe": at("2026-05-01 20:53"),
    }
    assert schedule("H H * * *", name="report") == schedule("H H * * *", name="report")
    assert schedule("H(0-9) * * * *").after(start) - start < timedelta(minutes=10)
    assert len({schedule("H * * * *", name=f"job-{n}").after(start) for n in range(40)}) > 15


def test_a_schedule_is_a_value() -> None:
    plan = schedule("@daily", AMSTERDAM)
    assert plan == schedule("0 0 * * *", AMSTERDAM)
    assert plan != schedule("0 0 * * *")
    assert len({plan, schedule("@midnight", AMSTERDAM)}) == 1
    with pytest.raises(FrozenInstanceError):
        plan.name = "other"  # type: ignore[misc]
    assert not hasattr(plan, "__dict__")


WRONG_EXPRESSIONS: list[tuple[Any, str]] = [
    (None, "must be text such as '0 6 * * *', not NoneType"),
    (5, "not int"),
    (b"* * * * *", "not bytes"),
    ("", "has 0 fields; give five (minute hour day month weekday), or six with the second first"),
    (" \t\n", "has 0 fields"),
    ("* * * * " + "0," * 124 + "0", "has 257 characters, at most 255 are allowed"),
    ("9" * 100_000, "has 100000 characters"),
    ("* * *", "has 3 fields"),
    ("every day at noon sharp, please do", "has 7 fields"),
    ("0 0 0 1 1 * 2027", "there is none for the year"),
    ("60 * * * *", "'60' is not valid as the minute (0-59)"),
    ("60 * * * * *", "'60' is not valid as the second (0-59)"),
    ("* * * * * 60", "'60' is not valid as the weekday (0-7)"),
    ("* 24 * * *", "'24' is not valid as the hour (0-23)"),
    ("0 0 0 * *", "'0' is not valid as the day (1-31 or L)"),
    ("0 0 LW * *", "'LW' is not valid as the day"),
    ("0 0 1 13 *", "'13' is not valid as the month (1-12)"),
    ("0 0 1 smarch *", "'smarch' is not valid as the month"),
    ("0 0 * * mon#6", "'mon#6' is not valid as the weekday"),
    ("*/0 * * * *", "'*/0' is not valid as the minute"),
    ("-1 * * * *", "'-1' is not valid as the minute"),
    ("1,, * * * *", "'1,,' is not valid as the minute"),
    ("\0 * * * *", "is not valid as the minute"),
    ("\ud800 * * * *", "is not valid as the minute"),
    (f"{'9' * 240} * * * *", "is not valid as the minute"),
    ("H(9-5) * * * *", "'H(9-5)' is not valid as the minute"),
    ("H,5 * * * *", "'H,5' is not valid as the minute"),
    ("R * * * *", "R is random, so each start of a process would change the schedule; use H"),
    ("0 r(1-5) * * *", "use H, which stays"),
    ("0 0 31 2 *", "its day never comes in its month (as 31 February)"),
    ("0 0 31 4,6,9,11 *", "its day never comes"),
    ("0 0 30 2 1", "its day never comes"),
    ("0 0 1 * mon#5", "or on its weekday; change one of the three"),
    ("@reboot", "names no time; do that work where your program starts its worker"),
    ("@Reboot", "names no time"),
    ("@every 5m", "the alias '@every 5m' is unknown; use @hourly, @daily,"),
    ("@fortnightly", "or write five fields"),
]


@pytest.mark.parametrize(("expression", "message"), WRONG_EXPRESSIONS)
def test_refuses_an_expression(expression: Any, message: str) -> None:
    with pytest.raises(InvalidCron) as caught:
        schedule(expression)
    assert message in caught.value.problem
    assert str(caught.value) == f"cron job 'report': {caught.value.problem}"
    assert (caught.value.name, caught.value.expression) == ("report", expression)


WRONG_ZONES: list[Any] = [
    None,
    1,
    ZoneInfo("UTC"),
    b"UTC",
    "",
    " UTC",
    "Mars/Olympus",
    "Europe",
    "../x",
    "Europe/../UTC",
]
WRONG_ZONES += ["/etc/localtime", "Europe/Paris/", "zone.tab", "a\0b", "\ud800", "x" * 300]


@pytest.mark.parametrize("zone", WRONG_ZONES)
def test_refuses_a_time_zone(zone: Any) -> None:
    with pytest.raises(InvalidCron, match="the time zone") as caught:
        schedule("@daily", zone)
    assert "'Europe/Amsterdam'" in caught.value.problem
    assert (caught.value.name, caught.value.expression) == ("report", "@daily")


FIELD = st.text("0123456789*/,-#?LWHrmonfebst()", min_size=1, max_size=4) | st.sampled_from(["*", "1", "L", "H"])
SOUND = st.sampled_from(["*", "1", "1-5", "1,4", "*/3", "H"])  # as any of the fields
TEXTS = st.one_of(
    *(st.lists(each, min_size=5, max_size=6).map(" ".join) for each in (FIELD, SOUND)), st.text(max_size=12)
)


@quick
@given(expression=TEXTS)
def test_any_text_is_refused_or_has_a_next_tick(expression: str) -> None:
    start = at("2026-05-01")
    try:
        tick = schedule(expression).after(start)
    except InvalidCron:
        return
    assert start < tick < start + timedelta(days=50 * 366)
