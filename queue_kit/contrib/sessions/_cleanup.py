"""Deleting what has ended by the database's clock, a bounded batch at a time: no cleanup holds locks for long."""

import math
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._dialect.columns import LONG_AGO
from queue_kit._statements.database import database_time
from queue_kit.contrib.sessions import _statements
from queue_kit.errors import ConfigurationError

BATCH = 1_000
"""Pairs of tokens that are deleted in one transaction."""

_LONGEST = 36_500


@dataclass(frozen=True, slots=True)
class Limits:
    """How many days a session is kept after its end, how many after its beginning, and how many pairs go in all."""

    after_end: float
    after_beginning: float | None
    pairs: int | None

    def __post_init__(self) -> None:
        _check_days(self.after_end, "max_revoked_age_in_days")
        if self.after_beginning is not None:
            _check_days(self.after_beginning, "max_session_lifetime_in_days")
        if self.pairs is not None:
            _check_pairs(self.pairs)

    def batch(self, deleted: int) -> int:
        """How many pairs the next transaction may delete, after so many."""
        return BATCH if self.pairs is None else min(BATCH, self.pairs - deleted)


async def clean_some(session: AsyncSession, limits: Limits, most: int) -> int:
    """Delete at most so many pairs, and the sessions that have none left; fewer means that nothing more is to do."""
    now = (await session.execute(database_time())).scalar_one()
    ended_before = now - timedelta(days=limits.after_end)
    made_before = LONG_AGO if limits.after_beginning is None else now - timedelta(days=limits.after_beginning)
    expired = {"until": now, "ended_before": ended_before, "most": most}
    sessions = list(await session.scalars(_statements.delete_expired_pairs(), expired))
    if len(sessions) < most:
        ended = {"ended_before": ended_before, "made_before": made_before, "most": most - len(sessions)}
        sessions += await session.scalars(_statements.delete_pairs_of_ended_sessions(), ended)
    if sessions:
        among = {"sessions": list(set(sessions))}
        await session.execute(_statements.lock_sessions(), among)
        await session.execute(_statements.delete_empty_sessions(), among)
    return len(sessions)


def _check_pairs(pairs: object) -> None:
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
        raise ConfigurationError(f"limit is a number of pairs, at least 1, not {pairs!r}")


def _check_days(days: object, field: str) -> None:
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 <= days <= _LONGEST or math.isnan(days):
        raise ConfigurationError(f"{field} is a number of days from 0 to {_LONGEST:,}, not {days!r}")
