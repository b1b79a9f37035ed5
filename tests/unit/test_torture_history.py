"""The judge of the torture test on histories written by hand: it accepts what may happen to a job, and names the rule
that anything else breaks."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from queue_kit.models import CANCELLED, COMPLETED, READY
from tests.torture.history import AFTER_END, TOKEN_REUSED, TWO_LEASES, UNFENCED, Change, judge

A, B = UUID(int=1), UUID(int=2)
LEASE = 2.0
NOW = datetime(2026, 5, 1, tzinfo=UTC)
NEVER = datetime.min.replace(tzinfo=UTC)


def change(
    at: float, kind: str, worker: UUID | None, claim_no: int, *, actor: str | None = None, **more: int
) -> Change:
    """A change `at` seconds after the beginning; a claim and an extension last for a lease."""
    leased = kind in ("claim", "extend")
    until = NOW + timedelta(seconds=at + LEASE) if leased else NEVER
    status = more.get("status", COMPLETED if kind == "done" else READY)
    who = actor or f"process of {worker}"
    return Change(more.get("job", 1), kind, worker, claim_no, until, status, who, NOW + timedelta(seconds=at))


def claim(at: float, worker: UUID, claim_no: int, **more: int) -> Change:
    return change(at, "claim", worker, claim_no, **more)


def extend(at: float, worker: UUID, claim_no: int) -> Change:
    return change(at, "extend", worker, claim_no)


def release(at: float, worker: UUID, claim_no: int) -> Change:
    return change(at, "release", worker, claim_no)


def done(at: float, worker: UUID | None, claim_no: int, *, actor: str | None = None, **more: int) -> Change:
    return change(at, "done", worker, claim_no, actor=actor, **more)


def reopen(at: float, claim_no: int) -> Change:
    return change(at, "reopen", None, claim_no, actor="operator")


def rules(*history: Change) -> list[str]:
    return [violation.rule for violation in judge(history).violations]


LEGAL = {
    "nothing": [],
    "a claim and its end": [claim(0, A, 1), done(1, A, 1)],
    "an extended lease": [claim(0, A, 1), extend(1, A, 1), extend(2.5, A, 1), done(4, A, 1)],
    "an end after the lapse that nobody else noticed": [claim(0, A, 1), done(5, A, 1)],
    "an extension after such a lapse": [claim(0, A, 1), extend(5, A, 1), done(6, A, 1)],
    "a claim at the very moment of the lapse": [claim(0, A, 1), claim(LEASE, B, 2), done(3, B, 2)],
    "a claim after a release": [claim(0, A, 1), release(0.5, A, 1), claim(0.6, B, 2), done(1, B, 2)],
    "the same worker again": [claim(0, A, 1), release(0.5, A, 1), claim(0.6, A, 2), done(1, A, 2)],
    "a waiting job cancelled": [done(0, None, 0, actor="operator", status=CANCELLED)],
    "a lapsed job cancelled": [claim(0, A, 1), done(3, A, 1, actor="operator", status=CANCELLED)],
    "a cancelled job that runs after all": [
        done(0, None, 0, actor="operator", status=CANCELLED),
        reopen(1, 0),
        claim(2, A, 1),
        done(3, A, 1),
    ],
    "two jobs at once": [claim(0, A, 1), claim(0.1, B, 1, job=2), done(1, A, 1), done(1.1, B, 1, job=2)],
}


@pytest.mark.parametrize("history", LEGAL.values(), ids=LEGAL)
def test_what_may_happen_is_accepted(history):
    assert rules(*history) == []


ILLEGAL = {
    "a claim before the lapse": (TWO_LEASES, [claim(0, A, 1), claim(1.9, B, 2), done(3, B, 2)]),
    "a claim before an extended lease's lapse": (TWO_LEASES, [claim(0, A, 1), extend(1, A, 1), claim(2.9, B, 2)]),
    "a second claim by the same worker": (TWO_LEASES, [claim(0, A, 1), claim(1, A, 2), done(2, A, 2)]),
    "an end by who lost the lease": (UNFENCED, [claim(0, A, 1), claim(2, B, 2), done(3, A, 1)]),
    "an end by another process, under the holder's token": (
        UNFENCED,
        [claim(0, A, 1), claim(2, B, 2), done(3, B, 2, actor=f"process of {A}")],
    ),
    "an end under an earlier claim of the same worker": (UNFENCED, [claim(0, A, 1), claim(2, A, 2), done(3, A, 1)]),
    "an extension by who lost the lease": (UNFENCED, [claim(0, A, 1), claim(2, B, 2), extend(3, A, 1)]),
    "a release by who lost the lease": (UNFENCED, [claim(0, A, 1), claim(2, B, 2), release(3, A, 1)]),
    "an end without a claim": (UNFENCED, [done(0, A, 1)]),
    "an end after a release": (UNFENCED, [claim(0, A, 1), release(1, A, 1), done(1.5, A, 1)]),
    "a running job cancelled by somebody": (
        UNFENCED,
        [claim(0, A, 1), done(1, A, 1, actor="operator", status=CANCELLED)],
    ),
    "a completion by somebody": (UNFENCED, [claim(0, A, 1), done(3, A, 1, actor="operator")]),
    "a second end": (AFTER_END, [claim(0, A, 1), done(1, A, 1), done(1.5, A, 1)]),
    "an extension after the end": (AFTER_END, [claim(0, A, 1), done(1, A, 1), extend(1.5, A, 1)]),
    "a claim after the end": (AFTER_END, [claim(0, A, 1), done(1, A, 1), claim(5, B, 2)]),
    "a token again": (TOKEN_REUSED, [claim(0, A, 1), release(1, A, 1), claim(2, A, 1), done(3, A, 1)]),
    "a claim number again": (TOKEN_REUSED, [claim(0, A, 1), claim(2, B, 1), done(3, B, 1)]),
    "a claim number after a reopening": (
        TOKEN_REUSED,
        [claim(0, A, 1), done(1, A, 1, status=CANCELLED), reopen(2, 1), claim(3, A, 1), done(4, A, 1)],
    ),
}


@pytest.mark.parametrize(("rule", "history"), ILLEGAL.values(), ids=ILLEGAL)
def test_what_may_not_happen_is_named_by_the_rule_that_it_breaks(rule, history):
    assert rules(*history) == [rule]


def test_a_violation_tells_the_job_the_change_and_the_process():
    (violation,) = judge([claim(0, A, 1), claim(2, B, 2), done(3, A, 1)]).violations
    assert str(violation) == f"job 1: done {A} #1 by process of {A} at 2026-05-01 00:00:03+00:00"


def test_one_jobs_violation_does_not_hide_anothers():
    history = [claim(0, A, 1), claim(1, B, 2), claim(0, A, 1, job=2), claim(1, B, 2, job=2)]
    assert [each.change.job for each in judge(history).violations] == [1, 2]


def test_claims_are_counted_and_those_that_took_over_a_lapsed_lease_are_timed():
    verdict = judge(
        [claim(0, A, 1), claim(2.5, B, 2), extend(3.5, B, 2), claim(6, A, 3), release(7, A, 3), claim(8, B, 4)]
    )
    assert (verdict.claims, verdict.recoveries, verdict.violations) == (4, [0.5, 0.5], [])
