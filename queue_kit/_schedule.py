"""When a cron job runs: an expression and a time zone answer "which tick comes first after this instant?".

The only file that knows croniter, which it asks about naive wall-clock times alone; daylight saving is decided here,
so that the answer depends on nothing but the schedule and the instant. Beside `cron.py`, which stores the answers.
"""

from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from croniter import HOUR_FIELD, croniter  # type: ignore[import-untyped]

from queue_kit.errors import InvalidCron

_LONGEST = 255  # croniter takes 44 ms for 8 KB; a real expression has some 20 characters
_SECOND = timedelta(seconds=1)
_FIELDS = ("second (0-59)", "minute (0-59)", "hour (0-23)", "day (1-31 or L)", "month (1-12)", "weekday (0-7)")
# Not left to croniter: given a hash id, it makes `@daily` a hashed time of the day.
_ALIASES = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *"}
_ALIASES |= {"@midnight": "0 0 * * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *"}
# Beside its own errors (all ValueError), croniter lets these out for some malformed fields.
_REFUSALS = (ValueError, AttributeError, TypeError, LookupError, OverflowError)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The ticks of one cron job, made by `parse`.

    Two rules hold where the clock is turned. A job that may run at every hour (`*`, or the same as `*/1` or `0-23`)
    runs whenever the clock shows a matching time, so in both passes of a repeated hour and never in a skipped one.
    Any other job runs in the first pass only, and what the clock skips runs at the first instant after the gap, once.
    """

    expression: str
    zone: tzinfo
    name: str
    every_hour: bool

    @classmethod
    def parse(cls, expression: str, timezone: str = "UTC", *, name: str) -> "Schedule":
        """Read five fields, or six with the second first, or an alias such as `@daily`; raises `InvalidCron`.

        `H` in a field is a value derived from `name`: it spreads jobs, and is the same at every start.
        """
        try:
            plain, zone = _plain(expression), _zone(timezone)
        except InvalidCron as error:
            raise InvalidCron(error.problem, name=name, expression=expression) from error.__cause__
        try:
            return cls(plain, zone, name, every_hour=_hours(plain, name) == ["*"])
        except _REFUSALS as error:
            raise InvalidCron(_culprit(plain.split(), name), name=name, expression=expression) from error

    def after(self, instant: datetime) -> datetime:
        """The first tick strictly after `instant`, in UTC. Raises `ValueError` for an instant without a time zone."""
        if instant.utcoffset() is None:
            raise ValueError(f"Schedule.after takes an instant with a time zone, not the naive {instant!r}")
        now = instant.astimezone(UTC).replace(microsecond=0)
        wall = self._wall(now)
        first, second = self._passes(wall)
        if self.every_hour:
            starts = [wall]
            if now < second:
                # In the first pass: the second one is yet to come, and begins at a time before `wall`.
                starts.append(self._wall(self._turn(first, second)) - _SECOND)
            return min(self._shown(start, now) for start in starts)
        if first < now:
            # In the second pass: the first one, up to the end of the repeated hour, has dealt with every time in it.
            wall = self._wall(self._turn(first, second) - _SECOND)
        first, second = self._ahead(wall)
        return first if first <= second else self._turn(second, first)

    def _shown(self, start: datetime, now: datetime) -> datetime:
        first, second = self._ahead(start)
        while first > second:
            first, second = self._ahead(self._wall(self._turn(second, first)) - _SECOND)
        return first if first > now else second

    def _ahead(self, wall: datetime) -> tuple[datetime, datetime]:
        return self._passes(_next(self.expression, self.name, wall))

    def _wall(self, instant: datetime) -> datetime:
        return instant.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _passes(self, wall: datetime) -> tuple[datetime, datetime]:
        """When the clock shows `wall`: the same instant twice, two in order if repeated, reversed if skipped."""
        local = wall.replace(tzinfo=self.zone)
        return local.astimezone(UTC), local.replace(fold=1).astimezone(UTC)

    def _turn(self, before: datetime, later: datetime) -> datetime:
        """The instant after `before`, at most `later`, at which the clock is turned."""
        offset = later.astimezone(self.zone).utcoffset()

        def turned(seconds: int) -> bool:
            return (before + seconds * _SECOND).astimezone(self.zone).utcoffset() == offset

        return before + bisect_left(range((later - before) // _SECOND), x=True, key=turned) * _SECOND


def _plain(expression: object) -> str:
    """The expression without alias and stray spaces; refuses what croniter takes and a schedule must not."""
    if not isinstance(expression, str):
        raise InvalidCron(f"the expression must be text such as '0 6 * * *', not {type(expression).__name__}")
    if len(expression) > _LONGEST:
        raise InvalidCron(f"the expression has {len(expression)} characters, at most {_LONGEST} are allowed")
    text = expression.strip()
    if text.lower() == "@reboot":
        raise InvalidCron("'@reboot' names no time; do that work where your program starts its worker")
    if text.startswith("@") and text.lower() not in _ALIASES:
        raise InvalidCron(f"the alias {text!r} is unknown; use {', '.join(_ALIASES)}, or write five fields")
    fields = _ALIASES.get(text.lower(), text).split()
    if len(fields) not in (5, 6):
        wanted = "five (minute hour day month weekday), or six with the second first; there is none for the year"
        raise InvalidCron(f"the expression has {len(fields)} fields; give {wanted}")
    if any(field[0] in "rR" for field in fields):
        raise InvalidCron("R is random, so each start of a process would change the schedule; use H, which stays")
    return " ".join(fields)


def _hours(expression: str, name: str) -> object:
    _next(expression, name, datetime(2000, 1, 1))  # noqa: DTZ001
    return croniter.expand(expression, hash_id=name.encode(), second_at_beginning=True, strict=True)[0][HOUR_FIELD]


def _culprit(fields: list[str], name: str) -> str:
    for place, meaning in enumerate(_FIELDS[-len(fields) :]):
        try:
            _hours(" ".join(field if at == place else "*" for at, field in enumerate(fields)), name)
        except _REFUSALS:
            return f"{fields[place]!r} is not valid as the {meaning}"
    return "its day never comes in its month (as 31 February) or on its weekday; change one of the three"


def _next(expression: str, name: str, wall: datetime) -> datetime:
    tick: datetime = croniter(expression, wall, datetime, hash_id=name, second_at_beginning=True).get_next()
    return tick


def _zone(timezone: object) -> tzinfo:
    if timezone == "UTC":
        return UTC  # also on a system that has no time zone database
    if not isinstance(timezone, str):
        raise InvalidCron(f"the time zone must be text such as 'Europe/Amsterdam', not {type(timezone).__name__}")
    try:
        return ZoneInfo(timezone)
    except (LookupError, ValueError, OSError) as error:
        mend = "give an IANA name such as 'Europe/Amsterdam' (if none is known here, install the package tzdata)"
        raise InvalidCron(f"the time zone {timezone!r} is unknown; {mend}") from error
