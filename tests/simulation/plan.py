"""What one seed means: the workers, the jobs, the weather, and what befalls whom and when. A plan is made in one go
from the seed alone, so it can be printed, and no run of it changes it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.simulation.network import Outage, Refusal, State

KINDS = {
    "quick": 8,
    "nap": 8,
    "write": 6,
    "checkpoint": 3,
    "long": 6,
    "fail": 2,
    "flaky": 3,
    "snooze": 2,
    "discard": 1,
    "hang": 2,
    "swallow": 2,
    "refuse": 2,
    "linger": 2,
    "block": 1,
    "stall": 1,
    "leave": 1,
    "cancel itself": 1,
    "crash": 1,
}
"""The kinds of handlers, and how often there is a job of each."""

NARROW = 0.4
"""Share of the seeds with only one kind of trouble, where it shows most clearly what goes wrong."""


RARELY = 8.0
"""Seconds between the polls of a worker that listens: what it finds sooner it was told of."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How one worker is set up. Retries come soon, so that they end in time."""

    parallel_count: int
    prefetch: int | None
    poll_interval: float
    lease: float
    grace: float
    cancel_grace: float
    listens: bool
    observed: bool
    deletes: bool


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job: when it is committed, and what its handler does, for how long."""

    at: float
    kind: str
    seconds: float
    priority: int
    delay: float
    tries: int


@dataclass(frozen=True, slots=True)
class Blow:
    """Something that befalls a worker, or a job, at a time."""

    at: float
    what: Literal["freeze", "kill", "stop", "lock", "cancel", "factory"]
    whom: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    seed: int
    seconds: float
    workers: Sequence[WorkerPlan]
    jobs: Sequence[JobPlan]
    fails: float
    latency: float
    outages: Sequence[Outage]
    refusals: Sequence[Refusal]
    borrows: float
    """The chance that the lease of a job that waits for a puller lapses while a claim is on its way, and that somebody
    else has had the job by then and given it back."""
    blows: Sequence[Blow]
    drains_at: float | None
    """When a worker joins that only works until nothing is due."""
    takes_over: bool
    meets_beside_a_wedge: bool
    ends_in_an_outage: bool


def plan_for(seed: int) -> Plan:
    """The plan of a seed."""
    chance = random.Random(seed)
    seconds = chance.uniform(2.0, 6.0)
    lease = chance.choice((0.9, 1.5, 1.5, 3.0, 6.0))
    workers = [_worker(chance, lease) for _ in range(chance.choice((1, 1, 2, 2, 3)))]
    if chance.random() < NARROW:
        kinds = [chance.choice(list(KINDS)), "nap"]
    else:
        kinds = chance.choices(list(KINDS), list(KINDS.values()), k=chance.randint(3, 8))
    jobs = [_job(chance, kinds, seconds, lease) for _ in range(chance.randint(4, 24))]
    troubles = {trouble for trouble in ("fails", "outages", "refusals", "borrows", "blows") if chance.random() < 0.5}
    return Plan(
        seed,
        seconds,
        workers,
        jobs,
        fails=chance.choice((0.02, 0.1, 0.3)) if "fails" in troubles else 0.0,
        latency=chance.choice((0.0005, 0.002, 0.02)),
        outages=[_outage(chance, seconds, lease, len(workers)) for _ in range(chance.randint(1, 3))]
        if "outages" in troubles
        else [],
        refusals=[_refusal(chance, seconds)] if "refusals" in troubles else [],
        borrows=0.3 if "borrows" in troubles else 0.0,
        blows=[_blow(chance, seconds, lease, len(workers), len(jobs)) for _ in range(chance.randint(1, 6))]
        if "blows" in troubles
        else [],
        drains_at=chance.uniform(0.0, seconds) if chance.random() < 0.2 else None,
        takes_over=chance.random() < 0.3,
        meets_beside_a_wedge=chance.random() < 0.3,
        ends_in_an_outage=chance.random() < 0.25,
    )


def _worker(chance: random.Random, lease: float) -> WorkerPlan:
    listens = chance.random() < 0.4
    return WorkerPlan(
        parallel_count=chance.randint(1, 4),
        prefetch=chance.choice((None, None, 0, 3)),
        poll_interval=RARELY if listens else chance.choice((0.3, 0.8, 1.5)),
        lease=lease,
        grace=chance.choice((0.0, 0.5, 3.0)),
        cancel_grace=chance.choice((0.8, 1.0, 2.0)),
        listens=listens,
        observed=chance.random() < 0.7,
        deletes=chance.random() < 0.3,
    )


def _job(chance: random.Random, kinds: Sequence[str], seconds: float, lease: float) -> JobPlan:
    return JobPlan(
        at=chance.uniform(0.0, seconds) if chance.random() < 0.5 else 0.0,
        kind=chance.choice(kinds),
        seconds=lease * chance.choice((0.01, 0.05, 0.2, 1.0, 2.0)),
        priority=chance.choice((5, 5, 5, 1, 9)),
        delay=chance.choice((0.0, 0.0, 0.0, 0.7, 2.0)),
        tries=chance.randint(1, 4),
    )


def _outage(chance: random.Random, seconds: float, lease: float, workers: int) -> Outage:
    begins = chance.uniform(0.0, seconds)
    return Outage(
        begins,
        min(begins + lease * chance.choice((0.1, 0.5, 1.5, 3.0)), seconds),
        chance.choice((State.refused, State.silent, State.read_only)),
        None if chance.random() < 0.3 else chance.randrange(workers),
    )


def _refusal(chance: random.Random, seconds: float) -> Refusal:
    begins = chance.uniform(0.0, seconds / 2)
    word = chance.choice(("claim", "complete", "close", "put_back", "renew", "promote", "look", "seen", "still_ours"))
    return Refusal(begins, chance.uniform(begins, seconds), word, chance.choice(("53100", "40001", "42501")))


def _blow(chance: random.Random, seconds: float, lease: float, workers: int, jobs: int) -> Blow:
    what = chance.choice(("freeze", "freeze", "kill", "stop", "lock", "lock", "cancel", "factory"))
    whom = chance.randrange(jobs if what in ("lock", "cancel") else workers)
    return Blow(chance.uniform(0.0, seconds), what, whom, lease * chance.choice((0.1, 0.4, 1.2, 2.5)))
