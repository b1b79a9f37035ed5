"""The worker's core in virtual time, against a database and a network that delay, fail, and lose replies, beside other
workers that are frozen, killed and stopped. Hundreds of seeds a run; thousands by hand:
`python -m tests.simulation --seeds 0:5000`.
"""

import itertools

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.world import simulate

SEEDS = 200
CHUNK = 50

MOST_SEEDS = 400
"""Within which a wrong core must be noticed."""

HAPPENS = (
    "claims",
    "lapses",
    "completions",
    "completions with effects",
    "completed",
    "retried",
    "failed",
    "snoozed",
    "released",
    "lost",
    "borrowed",
)
"""What each of the chunks must have seen, or its rules had nothing to judge."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_a_rule(first):
    reports = [simulate(seed) for seed in range(first, first + CHUNK)]
    broken = [
        f"{words} (python -m tests.simulation --seed {report.plan.seed} --trace)"
        for report in reports
        for words in report.broken
    ]
    assert not broken, "\n".join(broken)
    assert all(any(report.counts.get(word) for report in reports) for word in HAPPENS)


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_the_same_steps_each_time(seed):
    once, again = (simulate(seed, trace=True) for _ in range(2))
    assert len(once.trace) > 100
    assert once == again


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_core_is_noticed(mutant: Mutant):
    with mutant.applied():
        seeds = itertools.chain(range(mutant.seed, MOST_SEEDS), range(mutant.seed))
        seen = itertools.chain.from_iterable(simulate(seed).broken for seed in seeds)
        assert any(mutant.noticed in words for words in seen)
