"""The results, as tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.plan import Run
from benchmarks.targets import Judged, Result, Spread, Verdict, measured, spread

MAIN = {
    "rate": "jobs/s",
    "p50": "ms p50",
    "memory_mb": "MB",
    "statements": "statements/s",
    "claim_ms": "ms/50 jobs",
}
COSTS = {"worker_us": "worker us/job", "server_us": "server us/job", "wal_bytes": "WAL B/job", "commits": "commits/job"}
REMARKS = {
    "p95": "p95 {:.1f} ms",
    "p99": "p99 {:.1f} ms",
    "call_p50": "from the call: p50 {:.1f} ms",
    "call_p95": "p95 {:.1f} ms",
    "rate_off": "without wake-ups {:,.0f}",
    "bare_rate": "bare loop {:,.0f}",
    "core_percent": "{:.2f} % of a core",
    "early_mb": "{:.0f} MB after a fifth",
    "late_mb": "{:.0f} MB at the end",
    "jobs": "{:,.0f} jobs",
}


def judged_table(judged: Iterable[Judged], notes: Mapping[tuple[str, str], str]) -> str:
    """What was aimed at and what came out, with the notes of runs by target and label."""
    rows = [
        (
            each.check.target,
            ": ".join(filter(None, (each.check.what, notes.get((each.check.target, each.check.label), "")))),
            each.why or _value(each.spread, each.check.unit),
            _bound(each.check.must, each.check.unit, at_most=each.check.at_most),
            _bound(each.check.aim, each.check.unit, at_most=each.check.at_most),
            each.verdict.value,
        )
        for each in judged
    ]
    return _table(("", "what", "median (min - max)", "must", "aim", ""), rows)


def compared(runs: Sequence[Run], results: list[Result]) -> str:
    """The main figures of the runs that have the same target, a target a line."""
    lines = []
    for target in dict.fromkeys(run.target for run in runs):
        found = {run.label: _main(run, results) for run in runs if run.target == target}
        if len(found) > 1:
            lines.append(f"{target}: {'; '.join(f'{label} {value}' for label, value in found.items())}")
    return "\n".join(lines)


def measured_table(runs: Sequence[Run], results: list[Result]) -> str:
    """Each run's main figure, what it cost, and what is to be known about it."""
    rows = []
    for run in runs:
        mine = [result for result in results if (result.target, result.label) == (run.target, run.label)]
        if not mine:
            continue
        keys = (*COSTS, *REMARKS, "memory_mb")
        medians = {key: found.median for key in keys if (found := measured(mine, run, key))}
        costs = [f"{medians[key]:,.2f}".rstrip("0").rstrip(".") if key in medians else "n/a" for key in COSTS]
        memory = f"{medians['memory_mb']:.0f}" if "memory_mb" in medians else "n/a"
        remarks = [run.note, *_cut(mine), *{each.error for each in mine if each.error}]
        remarks += [text.format(medians[key]) for key, text in REMARKS.items() if key in medians]
        rows.append((run.target, run.label, _main(run, mine), *costs, memory, ", ".join(filter(None, remarks))))
    return _table(("", "run", "median (min - max)", *COSTS.values(), "MB", "remarks"), rows)


def queues_table(
    settings: Mapping[str, str], versions: Mapping[str, Mapping[str, str]], absent: Mapping[str, str]
) -> str:
    """Which queues were measured, in which version and configuration, and which were not."""
    rows = [
        (name, ", ".join(f"{package} {version}" for package, version in versions[name].items()), settings[name])
        for name in versions
    ]
    rows += [(name, why, "") for name, why in absent.items()]
    return _table(("queue", "versions", "configuration"), rows)


def document(about: Mapping[str, Any], tables: Mapping[str, str], charts: Iterable[str]) -> str:
    """The whole report."""
    lines = ["# Benchmarks", "", *(f"- {name}: {_words(value)}" for name, value in about.items()), ""]
    for title, table in tables.items():
        lines += [f"## {title}", "", table, ""]
    return "\n".join([*lines, *(f"![{name}]({name})" for name in charts), ""])


def others(results: Iterable[Result]) -> str:
    """How busy others kept the machine, looked at before each run."""
    cores = [result.figures["others"] for result in results if result.figures.get("others") is not None]
    return _value(spread(cores), "cores")


def summary(judged: Sequence[Judged]) -> str:
    """How many checks went which way."""
    counts = {verdict: sum(each.verdict is verdict for each in judged) for verdict in Verdict}
    return f"{counts[Verdict.passed]} passed, {counts[Verdict.failed]} failed, {counts[Verdict.open]} not judged"


def _main(run: Run, results: list[Result]) -> str:
    metric = next((each for each in MAIN if measured(results, run, each)), "rate")
    return _value(measured(results, run, metric), MAIN[metric])


def _cut(results: list[Result]) -> list[str]:
    return ["cut"] if any(result.figures.get("cut") for result in results) else []


def _value(found: Spread | None, unit: str) -> str:
    if found is None:
        return "-"
    middle = f"{_number(found.median)} {unit}"
    return middle if found.low == found.high else f"{middle} ({_number(found.low)} - {_number(found.high)})"


def _bound(bound: float | None, unit: str, *, at_most: bool) -> str:
    return "" if bound is None else f"{'<=' if at_most else '>='} {bound:,g} {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _words(value: object) -> str:
    return ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, Mapping) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
