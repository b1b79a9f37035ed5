"""A change of many jobs at once, as a link or a form says it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException

from queue_kit._reach import is_name
from queue_kit.bulk import BulkChange, cancel_jobs, retry_jobs
from queue_kit.dashboard._asking import choice, id_of
from queue_kit.failures import group_of
from queue_kit.job import JobState

ACTIONS = ("retry", "cancel")

CONFIRMED = "confirmed"
"""The field of the form that the confirming page has, and lists have not: there nothing picked is nothing meant."""


@dataclass(frozen=True, slots=True)
class Many:
    """Retry or cancel what fits: an `error_class` may be empty, as that of a discarded job is. `like` is a failed job
    whose message the others have as well, said so by who may not read it."""

    action: str
    state: str | None = None
    name: str | None = None
    error_class: str | None = None
    message: str | None = None
    like: int | None = None

    @classmethod
    def asked(cls, given: Mapping[str, str], hides: Callable[[str], bool]) -> "Many":
        """What a request says. Raises `HTTPException` for what is no such change, and for a message that would be a
        guess: whether it fits tells what errors say to somebody who may not read them."""
        action = choice(given, "action", ACTIONS)
        if not action:
            raise HTTPException(400, "There is no such action.")
        state = choice(given, "state", JobState.__members__) or None
        name, message, like = given.get("name") or None, given.get("message"), id_of(given.get("like", ""))
        if action == "cancel" and (message is not None or like is not None or "error_class" in given):
            raise HTTPException(400, "Only failed jobs have an error to choose them by, and those cannot be cancelled.")
        if like is not None and (name is None or message is not None):
            raise HTTPException(400, "A job that others are like goes with their name, and instead of a message.")
        if message is not None and name is None:
            raise HTTPException(400, "A message goes with the name of its jobs.")
        if message is not None and hides(str(name)):
            raise HTTPException(403, "The texts of these errors are hidden from you, so none can be asked for.")
        return cls(action, state, name, given.get("error_class"), message, like)

    @property
    def fields(self) -> dict[str, str]:
        """This, as the fields of a form."""
        return {key: str(value) for key, value in asdict(self).items() if value is not None}

    @property
    def confirmed(self) -> dict[str, str]:
        """The fields of the form that does it."""
        return {**self.fields, CONFIRMED: "1"}

    async def change(self, session: AsyncSession, *, dry_run: bool = False) -> BulkChange:
        """Do it, or only look what it would do."""
        if self.name is not None and not is_name(self.name):
            return BulkChange()
        filters: dict[str, Any] = {"name": self.name, "state": None if self.state is None else JobState(self.state)}
        try:
            if self.action == "cancel":
                return await cancel_jobs(session, **filters, dry_run=dry_run)
            if self.like is not None:
                group = await group_of(session, str(self.name), self.like)
                if group is None:
                    return BulkChange()
                filters |= {"error_class": group.error_class, "message": group.message}
            else:
                filters |= {"error_class": self.error_class, "message": self.message}
            return await retry_jobs(session, **filters, dry_run=dry_run)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None


async def change_these(session: AsyncSession, action: str, ids: list[int]) -> BulkChange:
    """Retry or cancel the jobs that were picked."""
    if action not in ACTIONS:
        raise HTTPException(400, "There is no such action.")
    return await (retry_jobs if action == "retry" else cancel_jobs)(session, ids)
