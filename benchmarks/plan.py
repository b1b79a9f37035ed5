"""Which runs make up the benchmarks. A run has a target (T1, T2, ...; G is the growth of a claim's cost, R is pickups
beside a cleanup) and a label, by which `targets.py` finds it; queue_kit's own main run of one is labelled `queue_kit`.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

OURS = "queue_kit"
UVLOOP = "queue_kit, uvloop"
BESIDE_INSERT = "queue_kit, beside an INSERT"
CEILING = "raw"
PEERS = ("pgqueuer", "procrastinate", "saq", "chancy", "huey", "arq")
SLOWER = ("procrastinate", "saq", "chancy", "arq")


@dataclass(frozen=True)
class Run:
    """One run. `heavy` ones are done once in quick mode, whatever the number of rounds; `close` ones are done in twice
    as many, since what must hold of them lies within the noise of three. `note` goes into the report."""

    target: str
    workload: str
    queue: str
    sizes: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    alias: str = ""
    sqlite: bool = False
    heavy: bool = False
    close: bool = False
    note: str = ""

    @property
    def label(self) -> str:
        """What tells it from the target's other runs."""
        return self.alias or self.queue

    def times(self, rounds: int, *, quick: bool) -> int:
        """In how many rounds it is done, when most are done in `rounds`."""
        if quick and self.heavy:
            return 1
        return 2 * rounds if self.close else rounds


@dataclass(frozen=True)
class Scale:
    """How much is done: a quick run takes under five minutes on two cores."""

    jobs: int
    seconds: float
    """A drain is cut after so many."""
    rows: int
    bulk: int
    singles: int
    pickups: int
    load: int
    idle: int
    memory: int
    sizes: tuple[int, ...]
    sqlite: int
    everything: bool
    """Also each peer wherever it can take part, pickups without prefetch, and inserts beside an idle worker."""


QUICK = Scale(
    20_000, 5, 200_000, 40_000, 600, 50, 40_000, 15, 100_000, (1_000, 10_000, 100_000), 10_000, everything=False
)
FULL = Scale(
    20_000, 15, 1_000_000, 100_000, 2000, 400, 100_000, 30, 1_000_000, (1_000, 10_000, 100_000, 1_000_000), 20_000,
    everything=True,
)  # fmt: skip
HUGE = 10_000_000
SHAPED = 100_000


def plan(scale: Scale, *, huge: bool = False) -> list[Run]:
    """All runs, in the order of a round."""
    return [
        *_drains(scale),
        *_adds(scale),
        *_pickups(scale),
        *_scales(scale),
        *_rest(scale),
        *_growth(scale, huge=huge),
        *_retention(scale, huge=huge),
    ]


def chosen(
    runs: list[Run], targets: Collection[str], queues: Collection[str], references: Collection[str]
) -> list[Run]:
    """The runs of these targets and queues, and queue_kit's own of the targets that those are compared with."""
    return [
        run
        for run in runs
        if run.queue in queues and (run.target in targets or (run.target in references and run.label == OURS))
    ]


def _drains(scale: Scale) -> Iterator[Run]:
    sizes = {"jobs": scale.jobs, "cap": scale.seconds}
    for queue in (OURS, "pgqueuer", CEILING):
        yield Run("T1", "throughput", queue, sizes, close=queue != CEILING)
    if find_spec("uvloop"):
        yield Run("T1", "throughput", OURS, sizes, {"uvloop": True}, UVLOOP, close=True)
    # They would take most of the time, and a shorter queue does not make them slower.
    fewer = sizes if scale.everything else sizes | {"jobs": min(scale.jobs, 3000)}
    for queue in SLOWER:
        yield Run("T1", "throughput", queue, fewer, heavy=True)
    yield Run("T2", "throughput", OURS, sizes, {"pullers": 1, "keep": True}, heavy=True)
    yield Run("T3", "throughput", OURS, sizes, {"keep": True})
    # As many for each as one worker has in T1: what is slow at the start of a drain then weighs the same in both.
    two = sizes | {"jobs": 2 * scale.jobs, "workers": 2}
    for queue in (OURS, "pgqueuer", "chancy") if scale.everything else (OURS,):
        yield Run("T4", "throughput", queue, two, close=queue == OURS, note=f"{scale.jobs:,} jobs for each")


def _adds(scale: Scale) -> Iterator[Run]:
    for queue in (OURS, CEILING, *_peers(scale)):
        slow = queue in ("saq", "chancy", "arq")
        yield Run("T5", "add_many", queue, {"jobs": 5000 if slow else scale.bulk})
    for queue in (OURS, CEILING, *_peers(scale)):
        yield Run("T6", "add_one", queue, {"jobs": scale.singles})
    turns = {"jobs": 50, "turns": scale.singles // 50}
    yield Run("T6", "add_or_insert", OURS, turns, alias=BESIDE_INSERT)


def _pickups(scale: Scale) -> Iterator[Run]:
    sizes, defaults = {"jobs": scale.pickups}, {"pullers": 1, "keep": True}
    yield Run("T7", "pickup", OURS, sizes, defaults, heavy=True)
    if scale.everything:
        yield Run("T7", "pickup", OURS, sizes, defaults | {"prefetch": 0}, "queue_kit, prefetch=0")
    yield Run("T7", "pickup", CEILING, sizes, {"wakes": True}, heavy=True)
    for queue in _peers(scale):
        yield Run("T7", "pickup", queue, sizes, heavy=True)
    load = {"backlog": scale.load, "jobs": scale.pickups}
    note = f"best priority, beside {scale.load:,} of a worse one"
    for prefetch, words in ((None, ""), (0, ", prefetch=0")):
        alias = f"queue_kit, under load{words}"
        yield Run("T7", "pickup_under_load", OURS, load, {"prefetch": prefetch}, alias, heavy=True, note=note)


def _scales(scale: Scale) -> Iterator[Run]:
    sizes = {"jobs": scale.jobs, "cap": scale.seconds}
    rows = sizes | {"rows": scale.rows}
    note = f"{scale.rows:,} scheduled, {scale.rows:,} finished"
    yield Run("T8", "backlog", OURS, rows, heavy=True, note=note)
    yield Run("T9", "foreign", OURS, rows, heavy=True, note=f"{scale.rows:,} due rows")
    for queue in (OURS, "pgqueuer") if scale.everything else (OURS,):
        yield Run("T10", "held_snapshot", queue, sizes | {"rounds": 7})


def _rest(scale: Scale) -> Iterator[Run]:
    turns = {"seconds": 1, "turns": 6}
    yield Run("T11", "wakeups", OURS, turns, heavy=True, note="the worker is busy")
    if scale.everything:
        note = "the worker is idle"
        yield Run("T11", "wakeups", OURS, turns, {"runs": "other"}, "queue_kit, idle", note=note)
    yield Run("T12", "idle", OURS, {"seconds": 5, "turns": scale.idle // 5}, heavy=True)
    yield Run(
        "T13",
        "memory",
        OURS,
        {"jobs": scale.memory, "cap": scale.seconds * 8},
        heavy=True,
        note=f"{scale.memory:,} jobs",
    )
    drain, singles = {"jobs": scale.sqlite, "cap": scale.seconds}, {"jobs": scale.singles}
    yield Run("T14", "throughput", OURS, drain, {"pullers": 50}, sqlite=True)
    yield Run("T14", "throughput", "huey", drain, sqlite=True, heavy=True)
    yield Run("T14", "add_one", OURS, singles, alias="queue_kit, add_job", sqlite=True)
    yield Run("T14", "add_one", "huey", singles, alias="huey, add", sqlite=True, heavy=True)
    sizes = {"jobs": scale.jobs // 8, "cap": scale.seconds * 2}
    yield Run("T15", "session_writes", OURS, sizes, {"pullers": 10, "pool": 12, "writes": True}, close=True)


def _growth(scale: Scale, *, huge: bool) -> Iterator[Run]:
    options = {"pullers": 50, "prefetch": 0}
    for rows in (*scale.sizes, *([HUGE] if huge else [])):
        yield Run("G", "claim_cost", OURS, {"rows": rows}, options, f"{rows:,} waiting", heavy=True)
    shapes = {"priorities": "1,000 priorities", "names": "200 names", "leased": "20,000 leased at the head"}
    for shape, words in shapes.items():
        needs = {"names": 200} if shape == "names" else {}
        sizes = {"rows": SHAPED, "shape": shape}
        yield Run("G", "claim_cost", OURS, sizes, options | needs, f"{SHAPED:,} waiting, {words}", heavy=True)


def _retention(scale: Scale, *, huge: bool) -> Iterator[Run]:
    rows = HUGE if huge else scale.rows
    note = f"{rows:,} finished jobs are deleted"
    sizes = {"rows": rows, "jobs": scale.pickups}
    yield Run("R", "retention", OURS, sizes, {"pullers": 1}, heavy=True, note=note)


def _peers(scale: Scale) -> tuple[str, ...]:
    return ("pgqueuer", *(SLOWER if scale.everything else ()))
