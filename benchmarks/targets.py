"""What must hold, and how results are judged: pure functions over the rounds' figures.

A check takes one metric of a run, or its ratio to that of another run of the same round, and the median over the rounds
must reach `must`. A run that was wrong fails its checks, however fast it was; without the run that a ratio needs,
nothing is judged.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchmarks.plan import BESIDE_INSERT, OURS, UVLOOP, Run


class Verdict(StrEnum):
    """How a check went. `open` means that it has no `must`, or that it lacks a peer's figure."""

    passed = "pass"
    failed = "FAIL"
    open = "-"


@dataclass(frozen=True)
class Check:
    """`at_most` turns the comparison around; `against` is the target and label of the run that a ratio refers to.
    `control` is a metric of the same run, of a process that does nearly nothing: where that is above `must` already,
    the machine cannot show what is asked."""

    target: str
    what: str
    metric: str = "rate"
    unit: str = "jobs/s"
    must: float | None = None
    aim: float | None = None
    at_most: bool = False
    label: str = OURS
    against: tuple[str, str] | None = None
    control: str = ""


@dataclass(frozen=True)
class Result:
    """One run of one round: figures, or the error that makes it count for nothing."""

    target: str
    label: str
    queue: str
    round: int
    figures: dict[str, Any]
    error: str = ""


@dataclass(frozen=True)
class Spread:
    """A median over the rounds, between its extremes."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Judged:
    """A check and what it came to."""

    check: Check
    spread: Spread | None
    verdict: Verdict
    why: str = ""


T1 = ("T1", OURS)
CHECKS = (
    Check("T1", "drain, to PgQueuer", unit="x", must=2.2, aim=4, against=("T1", "pgqueuer")),
    Check("T1", "drain, both on uvloop", unit="x", must=2.2, aim=4, label=UVLOOP, against=("T1", "pgqueuer")),
    Check("T1", "drain, to a raw loop", unit="x", aim=0.7, against=("T1", "raw")),
    Check("T2", "drain, one puller, defaults", must=5_000, aim=15_000),
    Check("T3", "drain, history kept, to T1", unit="x", must=0.75, aim=0.9, against=T1),
    Check("T4", "drain, two workers, to T1", unit="x", must=1.3, aim=1.6, against=T1),
    Check("T5", "add_jobs, 1,000 a call", must=35_000, aim=45_000),
    Check("T6", "add_job, to a raw INSERT of the same row", "ratio", "x", 0.5, 0.8, label=BESIDE_INSERT),
    Check("T6", "add_job, to a raw INSERT into a thin table", unit="x", against=("T6", "raw")),
    Check("T7", "pickup on an idle queue, p50", "p50", "ms", 4, 2.5, at_most=True),
    Check("T7", "pickup on an idle queue, p95", "p95", "ms", 8, at_most=True),
    Check("T8", "drain beside a backlog, to T1", unit="x", must=0.7, aim=0.9, against=T1),
    Check("T9", "drain behind other names, to T1", unit="x", must=0.5, aim=0.8, against=T1),
    Check("T10", "drain, 5th to 7th under a held snapshot, to T1", unit="x", must=0.8, aim=0.95, against=T1),
    Check("T11", "inserts with wake-ups, to without", "ratio", "x", 0.85, 0.95),
    Check("T12", "idle worker, statements", "statements", "/s", 1, at_most=True),
    Check("T12", "idle worker, of a core", "core_percent", "%", 0.5, at_most=True, control="bare_core_percent"),
    Check("T13", "memory of a worker", "memory_mb", "MB", 90, at_most=True),
    Check("T13", "memory, at the end to after a fifth", "growth", "x", 1.1, at_most=True),
    Check("T14", "SQLite: drain, 50 pullers", must=8_000, aim=15_000),
    Check("T14", "SQLite: add_job", must=500, aim=1_000, label="queue_kit, add_job"),
    Check("T15", "handler that writes, to a bare session", "ratio", "x", 0.6, 0.9),
)
TARGETS = (*dict.fromkeys(check.target for check in CHECKS), "G", "R")


def references(targets: Iterable[str]) -> set[str]:
    """The targets that these are compared with."""
    wanted = set(targets)
    return {check.against[0] for check in CHECKS if check.against and check.target in wanted}


def spread(values: list[float]) -> Spread | None:
    """The median and the extremes; `None` of nothing."""
    return Spread(min(values), statistics.median(values), max(values)) if values else None


def figures(results: Iterable[Result], target: str, label: str, metric: str) -> dict[int, float]:
    """A metric of a run, by round, where it could be measured."""
    return {
        result.round: result.figures[metric]
        for result in results
        if (result.target, result.label) == (target, label) and result.figures.get(metric) is not None
    }


def measured(results: Iterable[Result], run: Run, metric: str) -> Spread | None:
    """A metric of a run, over the rounds."""
    return spread(list(figures(results, run.target, run.label, metric).values()))


def judge(check: Check, results: list[Result]) -> Judged:
    """Compare the median with what must hold."""
    errors = [each.error for each in results if (each.target, each.label) == (check.target, check.label) and each.error]
    if errors:
        return Judged(check, None, Verdict.failed, errors[0])
    values = figures(results, check.target, check.label, check.metric)
    if not values:
        return Judged(check, None, Verdict.open, "not measured here")
    if check.against:
        base = figures(results, *check.against, check.metric)
        if not base:
            return Judged(check, None, Verdict.open, f"no figure of {check.against[1]}")
        # A machine is faster in some rounds than in others; but one round alone may have been a bad one.
        usual = statistics.median(base.values())
        beside = base if len(values) > 1 else {}
        values = {number: value / beside.get(number, usual) for number, value in values.items()}
    found = spread(list(values.values()))
    assert found is not None
    if check.must is None:
        return Judged(check, found, Verdict.open)
    bare = spread(list(figures(results, check.target, check.label, check.control).values()))
    if bare is not None and bare.median > check.must:
        why = f"{found.median:.2f} {check.unit}; a bare loop took {bare.median:.2f} {check.unit} here"
        return Judged(check, found, Verdict.open, why)
    reached = found.median <= check.must if check.at_most else found.median >= check.must
    return Judged(check, found, Verdict.passed if reached else Verdict.failed)


def judge_all(results: list[Result], targets: Iterable[str]) -> list[Judged]:
    """The checks of these targets."""
    wanted = set(targets)
    return [judge(check, results) for check in CHECKS if check.target in wanted]


def status(judged: Iterable[Judged], results: Iterable[Result]) -> int:
    """The exit status: 1 when a check failed or a run of queue_kit's went wrong."""
    return int(
        any(each.verdict is Verdict.failed for each in judged)
        or any(each.error for each in results if each.queue == OURS)
    )
