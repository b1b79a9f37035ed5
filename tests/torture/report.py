"""What a run tells: what was done to it, what it went through, and each check with the number of times it broke."""

from collections import Counter
from typing import Any

from queue_kit.models import COMPLETED
from tests.torture.checks import check, vacuous
from tests.torture.evidence import Evidence
from tests.torture.run import Result

SHOWN = 5
"""Violations that are printed of each check."""


def report(result: Result) -> dict[str, Any]:
    """Everything as values. `holds` says whether the run is fine."""
    seen, options = result.evidence, result.options
    broken = check(seen)
    empty = vacuous(seen, result.done, {deed.kind for deed in options.deeds}, seconds=options.seconds)
    completed = sum(job.status == COMPLETED for job in seen.jobs)
    return {
        "seed": options.seed,
        "seconds": options.seconds,
        "database": options.database,
        "mutant": options.mutant,
        "took": round(result.took, 1),
        "chaos": dict(sorted(result.done.items())),
        "missed": dict(sorted(result.missed.items())),
        "enqueued": _enqueued(seen),
        "jobs": len(seen.jobs),
        "completed": completed,
        "jobs a second": round(completed / (result.raged_for + result.drained_in), 1),
        "claims": seen.verdict.claims,
        "changes": len(seen.changes),
        "effects": len(seen.effects),
        "taken over": len(seen.verdict.recoveries),
        "recovery beyond expiry": _quantiles(seen.verdict.recoveries),
        "verdicts": dict(Counter(line["verdict"] for line in seen.said("settled")).most_common()),
        "told to end": dict(
            Counter(line["told"] for line in (*seen.said("raised"), *seen.said("returned")) if line["told"])
        ),
        "started after a lost wake-up": [each.seconds and round(each.seconds, 2) for each in seen.probes],
        "started in": round(result.started_in, 1),
        "raged for": round(result.raged_for, 1),
        "drained in": round(result.drained_in, 1),
        "errors": _errors(seen),
        "kept with jobs": _kept(seen),
        "checks": {name: len(found) for name, found in broken.items()},
        "violations": {name: found[:SHOWN] for name, found in broken.items() if found},
        "vacuous": empty,
        "holds": not any(broken.values()) and not empty,
    }


def _enqueued(seen: Evidence) -> dict[str, int]:
    ambiguous = seen.keys("ambiguous")
    return {
        "acknowledged": len(seen.keys("ack")),
        "rolled back": len(seen.keys("rolled_back")),
        "refused": len(seen.keys("refused")),
        "ambiguous": len(ambiguous),
        "ambiguous and stored": sum(key in seen.by_key for key in ambiguous),
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2) for name, share in at.items()}


def _errors(seen: Evidence) -> dict[str, int]:
    """Errors by class: what enqueuers and handlers raised, and what workers logged of their connections."""
    named = Counter(line["error"] for line in seen.lines if line.get("error") and line["do"] not in ("log", "raised"))
    named.update(line["error"] for line in seen.said("raised") if not line["told"])
    for line in seen.said("log"):
        _, colon, cause = line["message"].partition("waiting for it: ")
        if colon:
            named[cause.partition(":")[0]] += 1
    return dict(named.most_common())


def _kept(seen: Evidence) -> dict[str, int]:
    """The errors that jobs keep, by their reason; those without one, by their class, were failed tries."""
    kept = (error for job in seen.jobs for error in job.errors or ())
    return dict(Counter(error.get("reason") or error["class"] for error in kept).most_common())


def as_text(figures: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"{name}: {_told(value)}"
        for name, value in figures.items()
        if name not in ("checks", "violations", "vacuous", "holds") and value not in (None, {}, [])
    ]
    lines += [f"  {count:>3}  {name}" for name, count in figures["checks"].items()]
    for name, found in figures["violations"].items():
        lines += [f"{name}:", *(f"    {each}" for each in found)]
    lines += [f"too little happened: {each}" for each in figures["vacuous"]]
    return "\n".join([*lines, "all holds" if figures["holds"] else "DOES NOT HOLD"])


def _told(value: Any) -> str:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else str(value)
