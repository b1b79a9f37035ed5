"""Which faults a run has, and when. All of it comes from the seed, so a run can be planned again; what the scheduler of
the machine makes of it cannot.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass

PER_MINUTE = {
    "kill": 9,
    "deploy": 3,
    "stop": 5,
    "frozen": 4,
    "term": 12,
    "restart": 2,
    "cut": 4,
    "stall": 3,
    "torn": 6,
    "dark": 4,
    "lock": 6,
}

CHAOS = {
    "kill": ("kill", "deploy"),
    "stop": ("stop", "frozen"),
    "term": ("term",),
    "restart": ("restart",),
    "proxy": ("cut", "stall", "torn", "dark"),
    "lock": ("lock",),
}
"""The words of the command line, and the deeds that each stands for; a deed may be named as well. `frozen` and `dark`
are directed: they wait for the moment that hurts, which chance alone seldom hits."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One fault: when it comes, for how many leases it lasts, and which of those at hand it takes (0 to 1)."""

    at: float
    kind: str
    leases: float
    pick: float


def plan(seed: int, seconds: float, chaos: Collection[str]) -> list[Deed]:
    """The deeds of a run, of each kind at least one, spread over its length."""
    chance = random.Random(seed)
    deeds = []
    for kind in sorted(kind for word in chaos for kind in CHAOS.get(word, (word,))):
        count = max(1, round(PER_MINUTE[kind] * seconds / 60))
        for number in range(count):
            share = (number + chance.uniform(0.1, 0.9)) / count
            deeds.append(Deed(0.9 * seconds * share, kind, chance.uniform(0.5, 2.5), chance.random()))
    return sorted(deeds, key=lambda deed: deed.at)
