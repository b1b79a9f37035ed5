"""What must hold after a run, each as a function that lists what breaks it; and the guards against a run in which
nothing happened that could have broken anything.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from queue_kit.models import CANCELLED, COMPLETED, FAILED
from tests.torture.evidence import Evidence
from tests.torture.handlers import WITHOUT_EFFECT
from tests.torture.history import RULES

LATE = 6.0
"""Seconds within which a job must begin that was added while no listener was connected: one comes back within half a
second, and looks; the rest is for a busy machine. The poll of the run that this is for takes five times as long."""

DRIVER_NOISE = "_terminate_graceful_close"
"""A task of SQLAlchemy's, which says goodbye to a server that may not answer. Who closes may be cancelled meanwhile;
asyncio then reports how it ended, which is no harm: the connection is closed all the same."""

Check = Callable[[Evidence], list[str]]


def _acknowledged_but_absent(seen: Evidence) -> list[str]:
    return [key for key in seen.keys("ack") if key not in seen.by_key]


def _rolled_back_but_present(seen: Evidence) -> list[str]:
    return [key for key in seen.keys("rolled_back") if key in seen.by_key]


def _refused_but_present(seen: Evidence) -> list[str]:
    return [key for key in seen.keys("refused") if key in seen.by_key]


def _present_without_intent(seen: Evidence) -> list[str]:
    intents = set(seen.keys("intent"))
    return [str(job.id) for job in seen.jobs if job.cron_name is None and job.data.get("key") not in intents]


def _stored_twice(seen: Evidence) -> list[str]:
    return [key for key, jobs in seen.by_key.items() if len(jobs) > 1]


def _not_finished(seen: Evidence) -> list[str]:
    return [f"{job.id} {job.name}" for job in seen.jobs if job.status < COMPLETED]


def _writes(name: str, data: Mapping[str, object]) -> bool:
    return name not in WITHOUT_EFFECT and (name != "long" or bool(data["writes"]))


def _completed_without_effect(seen: Evidence) -> list[str]:
    wanted = (job for job in seen.jobs if job.status == COMPLETED and _writes(job.name, job.data))
    return [f"{job.id} {job.name}" for job in wanted if job.id not in seen.finals]


def _completed_without_a_run(seen: Evidence) -> list[str]:
    returned = {line["job"] for line in seen.said("returned")}
    unknown = {line["job"] for line in seen.said("settled") if line["verdict"] == "completed" and not line["run"]}
    completed = (job for job in seen.jobs if job.status == COMPLETED)
    return [f"{job.id} {job.name}" for job in completed if job.id not in returned or job.id in unknown]


def _effects_twice(seen: Evidence) -> list[str]:
    return [f"{job}: {effects}" for job, effects in seen.finals.items() if len(effects) > 1]


def _effects_without_completion(seen: Evidence) -> list[str]:
    completed = {job.id for job in seen.jobs if job.status == COMPLETED}
    return [str(job) for job in seen.finals if job not in completed]


def _effects_outside_their_fence(seen: Evidence) -> list[str]:
    return [str(effect) for effect in seen.effects if (effect.job, effect.actor, effect.fence) not in seen.fences]


def _effects_of_runs_that_had_to_end(seen: Evidence) -> list[str]:
    ended = {line["run"] for do in ("raised", "returned") for line in seen.said(do) if line["told"] or do == "raised"}
    lost = {line["run"] for line in seen.said("settled") if line["run"] and line["verdict"] != "completed"}
    return [str(effect) for effects in seen.finals.values() for effect in effects if effect.run in ended | lost]


def _completed_by_nobody(seen: Evidence) -> list[str]:
    """A worker that says that it completed a job must be the one of whom the history says so."""
    done = {(change.job, change.actor) for change in seen.changes if change.status == COMPLETED}
    told = ((line["job"], line["actor"]) for line in seen.said("settled") if line["verdict"] == "completed")
    return [f"{job} by {actor}" for job, actor in told if (job, actor) not in done]


def _failed_unasked(seen: Evidence) -> list[str]:
    return [f"{job.id} {job.name}: {job.errors}" for job in seen.jobs if job.status == FAILED and job.name != "discard"]


def _tries_lost_to_the_chaos(seen: Evidence) -> list[str]:
    """An outage, a shutdown or a lapsed lease is no failed try. A row that somebody keeps locked may be one."""
    tries = ((job, error) for job in seen.jobs for error in job.errors or () if "reason" not in error)
    return [
        f"{job.id} {job.name}: {error['class']}: {error['message']}"
        for job, error in tries
        if error["class"] != "NotYet" and "lock" not in error["message"]
    ]


def _cancelled_unasked(seen: Evidence) -> list[str]:
    asked = {line["job"] for line in seen.said("cancelling")}
    return [f"{job.id} {job.name}" for job in seen.jobs if job.status == CANCELLED and job.id not in asked]


def _broken_chains(seen: Evidence) -> list[str]:
    """A link has exactly one successor when it completed and was not the last; else none."""
    children = Counter(job.data["parent"] for job in seen.jobs if job.name == "chain" and "parent" in job.data)
    wanted = {job.id: int(job.status == COMPLETED and job.data["left"] > 0) for job in seen.jobs if job.name == "chain"}
    return [f"{job}: {children[job]} instead of {count}" for job, count in wanted.items() if children[job] != count]


def _ticks_twice(seen: Evidence) -> list[str]:
    ticks = Counter((job.cron_name, job.cron_tick) for job in seen.jobs if job.cron_name and job.status == COMPLETED)
    return [f"{name} at {tick}" for (name, tick), count in ticks.items() if count > 1]


def _late_after_a_lost_wake_up(seen: Evidence) -> list[str]:
    return [f"{each.key}: {each.seconds} s" for each in seen.probes if each.seconds is None or each.seconds > LATE]


def _leased_after_the_stop(seen: Evidence) -> list[str]:
    return [str(job) for job in seen.leased]


def _ended_unasked(seen: Evidence) -> list[str]:
    return seen.deaths


def _own_defects(seen: Evidence) -> list[str]:
    """What is logged when something went wrong that nobody expects: with a traceback."""
    traced = [line for line in seen.said("log") if line["trace"] and DRIVER_NOISE not in line["message"]]
    return [f"{line['actor']}: {line['message']}\n{line['trace']}" for line in traced]


def _broken_files(seen: Evidence) -> list[str]:
    return [problem for problem in seen.integrity if problem != "ok"]


def _history(rule: str) -> Check:
    return lambda seen: [str(each) for each in seen.verdict.violations if each.rule == rule]


CHECKS: Mapping[str, Check] = {
    "acknowledged but absent": _acknowledged_but_absent,
    "rolled back but present": _rolled_back_but_present,
    "refused for its key but present": _refused_but_present,
    "present without intent": _present_without_intent,
    "stored twice": _stored_twice,
    "not finished after the drain": _not_finished,
    "completed without effect": _completed_without_effect,
    "completed without a run": _completed_without_a_run,
    "effects twice": _effects_twice,
    "effects without completion": _effects_without_completion,
    "effects outside their fence": _effects_outside_their_fence,
    "effects of runs that had to end": _effects_of_runs_that_had_to_end,
    "completed by another than who says so": _completed_by_nobody,
    "failed unasked": _failed_unasked,
    "tries lost to the chaos": _tries_lost_to_the_chaos,
    "cancelled unasked": _cancelled_unasked,
    "broken chains": _broken_chains,
    "cron ticks twice": _ticks_twice,
    **{rule: _history(rule) for rule in RULES},
    "started late after a lost wake-up": _late_after_a_lost_wake_up,
    "leased after an orderly stop": _leased_after_the_stop,
    "processes that ended unasked or badly": _ended_unasked,
    "defects in the log": _own_defects,
    "problems of the file": _broken_files,
}


def check(seen: Evidence) -> dict[str, list[str]]:
    """What breaks each of the checks."""
    return {name: find(seen) for name, find in CHECKS.items()}


def vacuous(seen: Evidence, done: Mapping[str, int], kinds: Iterable[str], *, seconds: float) -> list[str]:
    """What did not happen often enough for the checks to mean anything, in a run of this length."""
    kinds = list(kinds)
    harmed = {"kill", "stop", "frozen", "dark"} & set(kinds)
    fencing = {"stop", "frozen", "dark"} & set(kinds)
    verdicts = Counter(line["verdict"] for line in seen.said("settled"))
    least = {
        "jobs acknowledged": (len(seen.keys("ack")), int(5 * seconds)),
        "claims": (seen.verdict.claims, len(seen.keys("ack"))),
        "effects": (len(seen.effects), int(2 * seconds)),
        "checkpoints": (sum(effect.kind == "step" for effect in seen.effects), 1),
        "retries": (verdicts["retried"], 1),
        "snoozes": (verdicts["snoozed"], 1),
        "links of chains": (sum(job.name == "chain" for job in seen.jobs), 1),
        "cron occurrences": (sum(job.cron_name is not None for job in seen.jobs), 1),
        "leases taken over": (len(seen.verdict.recoveries), max(1, int(seconds / 12)) if harmed else 0),
        "runs fenced off": (verdicts["lost"], 1 if fencing else 0),
        "listeners that were cut off": (sum(line["count"] for line in seen.said("deafened")), len(seen.probes)),
        "kills": (done.get("kill", 0), max(1, int(seconds / 20)) if "kill" in kinds else 0),
        **{f"deeds of the kind {kind}": (done.get(kind, 0), 1) for kind in kinds},
    }
    return [f"{what}: {count}, at least {needed}" for what, (count, needed) in least.items() if count < needed]
