"""One run in this process: `python -m benchmarks.run`, with JSON on stdin, and the figures as JSON on stdout.

It is given the `workload` and its `sizes`, the `queue` and its `options`, and the `url` of an empty database.
"""

import asyncio
import json
import sys

from benchmarks import workloads
from benchmarks.measure import WrongRun

WRONG = 3
"""The status of a run that was wrong."""


def main(spec: str) -> int:
    """Do the run; returns the status."""
    run = json.loads(spec)
    workload = getattr(workloads, run["workload"])
    try:
        figures = asyncio.run(workload(run["queue"], run["url"], run["options"], **run["sizes"]))
    except WrongRun as wrong:
        print(wrong, file=sys.stderr)
        return WRONG
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.read()))
