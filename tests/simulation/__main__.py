"""Runs seeds by hand: `python -m tests.simulation --seeds 0:5000`, and `--seed 17 --trace` to see one step by step."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.world import Report, simulate


def main() -> int:
    """Run what the command line says; 1 when a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="first:last, the last not included")
    parser.add_argument("--seed", type=int, help="one seed alone")
    parser.add_argument("--trace", action="store_true", help="print the plan and every step")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split(":"))
    seeds = range(first, last) if options.seed is None else range(options.seed, options.seed + 1)
    counts: Counter[str] = Counter()
    broken, seconds, began = 0, 0.0, time.perf_counter()
    for seed in seeds:
        report = simulate(seed, trace=options.trace)
        counts.update(report.counts)
        seconds += report.seconds
        if options.trace:
            show(report)
        if report.broken:
            broken += 1
            print(f"seed {seed}:", *report.broken, sep="\n  ", flush=True)
    took = time.perf_counter() - began
    print(f"{len(seeds)} seeds, {seconds:.0f} s of virtual time in {took:.1f} s, {broken} with a broken rule")
    print(", ".join(f"{word} {count}" for word, count in sorted(counts.items())))
    return 1 if broken else 0


def show(report: Report) -> None:
    """Print a plan and its trace."""
    print(report.plan)
    for at, who, words in report.trace:
        print(f"{at:9.4f}  {who:<12} {words}")


if __name__ == "__main__":
    sys.exit(main())
