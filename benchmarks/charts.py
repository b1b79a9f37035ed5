"""Which charts are drawn of the results."""

from collections.abc import Iterator

from benchmarks.chart import Bar, Point, bars, line
from benchmarks.plan import OURS, SHAPED, Run
from benchmarks.targets import Result, measured

PERCENTILES = ("p50", "p95", "p99")


def charts(runs: list[Run], results: list[Result]) -> Iterator[tuple[str, str]]:
    """File names and drawings, of what there are figures for."""
    of_target = {target: [run for run in runs if run.target == target] for target in ("T1", "T7", "G")}
    if rows := sorted(_throughput(of_target["T1"], results), key=lambda row: -row.values[0]):
        yield "throughput.svg", bars("Jobs run by one worker process", "jobs per second, median and range", rows)
    if points := list(_growth(of_target["G"], results)):
        title = "One claim of 50 jobs and its completions, by the size of the queue"
        yield "growth.svg", line(title, "jobs waiting", "milliseconds", points)
    if rows := list(_shapes([run for run in of_target["G"] if run.sizes["rows"] == SHAPED], results)):
        yield "shapes.svg", bars(f"One claim of 50 among {SHAPED:,} jobs, by what they are like", "milliseconds", rows)
    if rows := list(_pickups([run for run in of_target["T7"] if run.workload == "pickup"], results)):
        title = "From the commit of a job to the start of its handler"
        yield "pickup.svg", bars(title, "milliseconds: p50 / p95 / p99", rows)


def _throughput(runs: list[Run], results: list[Result]) -> Iterator[Bar]:
    for run in runs:
        if found := measured(results, run, "rate"):
            yield Bar(_words(run), (found.median,), run.queue == OURS, found.low, found.high)


def _pickups(runs: list[Run], results: list[Result]) -> Iterator[Bar]:
    for run in runs:
        medians = tuple(found.median for key in PERCENTILES if (found := measured(results, run, key)))
        if medians:
            yield Bar(_words(run), medians, run.queue == OURS)


def _shapes(runs: list[Run], results: list[Result]) -> Iterator[Bar]:
    for run in runs:
        if found := measured(results, run, "claim_ms"):
            shape = run.label.partition("waiting, ")[2]
            yield Bar(shape or "one priority, one name", (found.median,), ours=True)


def _growth(runs: list[Run], results: list[Result]) -> Iterator[Point]:
    for run in runs:
        if "shape" not in run.sizes and (found := measured(results, run, "claim_ms")):
            yield Point(run.sizes["rows"], found.median)


def _words(run: Run) -> str:
    return {"raw": "raw loop (not a queue)", "arq": "arq (Redis, not durable)"}.get(run.label, run.label)
