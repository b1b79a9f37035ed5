"""Whether what happened to the leases of one job could have happened to a register with one owner: the rules, in one
pass over the history that the database wrote by its own clock and in the order of its row locks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from queue_kit.models import CANCELLED

TWO_LEASES = "two live leases"
UNFENCED = "unfenced transitions"
AFTER_END = "events after the end"
TOKEN_REUSED = "tokens used twice"
RULES = (TWO_LEASES, UNFENCED, AFTER_END, TOKEN_REUSED)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of history: a claim, an extension, a release, an end or a reopening, and the process that wrote it."""

    job: int
    kind: str
    worker: UUID | None
    claim_no: int
    lease_until: datetime
    status: int
    actor: str
    at: datetime

    @property
    def token(self) -> tuple[UUID | None, int]:
        return self.worker, self.claim_no


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, and by what."""

    rule: str
    change: Change

    def __str__(self) -> str:
        change = self.change
        return f"job {change.job}: {change.kind} {change.worker} #{change.claim_no} by {change.actor} at {change.at}"


@dataclass(slots=True)
class Verdict:
    """What a history says: the rules broken, how many claims there were, and for each that took over a lapsed lease
    the seconds from the lapse to it."""

    violations: list[Violation] = field(default_factory=list)
    claims: int = 0
    recoveries: list[float] = field(default_factory=list)


class _Register:
    """Who owns one job."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._holder: Change | None = None
        self._expires: datetime | None = None
        self._last_claim = 0
        self._ended = False

    def apply(self, change: Change) -> None:
        if change.kind == "reopen":
            self._ended, self._holder, self._expires = False, None, None
        elif self._ended:
            self._broken(AFTER_END, change)
        elif change.kind == "claim":
            self._claim(change)
        else:
            self._settle(change)

    def _claim(self, change: Change) -> None:
        self._verdict.claims += 1
        if change.claim_no <= self._last_claim:
            self._broken(TOKEN_REUSED, change)
        if self._expires is not None:
            if change.at < self._expires:
                self._broken(TWO_LEASES, change)
            else:
                self._verdict.recoveries.append((change.at - self._expires).total_seconds())
        self._last_claim = max(change.claim_no, self._last_claim)
        self._holder, self._expires = change, change.lease_until

    def _settle(self, change: Change) -> None:
        holder, live = self._holder, self._expires is not None and change.at < self._expires
        # Anybody may cancel a job that nobody holds, or whose lease has lapsed.
        withdrawn = change.status == CANCELLED and change.kind == "done" and (holder is None or not live)
        if not withdrawn and (holder is None or (change.token, change.actor) != (holder.token, holder.actor)):
            self._broken(UNFENCED, change)
        if change.kind == "extend":
            self._expires = change.lease_until
            return
        self._holder = self._expires = None
        self._ended = change.kind == "done"

    def _broken(self, rule: str, change: Change) -> None:
        self._verdict.violations.append(Violation(rule, change))


def judge(history: Iterable[Change]) -> Verdict:
    """Check a history, each job's changes in the order in which they happened."""
    verdict = Verdict()
    registers: dict[int, _Register] = {}
    for change in history:
        registers.setdefault(change.job, _Register(verdict)).apply(change)
    return verdict
