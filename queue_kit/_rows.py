"""Between values and rows: a claimed row becomes a `Claimed` job, an outcome a row of a batch of endings. What
nobody can read in a row fails its job and not its neighbours.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from queue_kit._dialect.columns import LONG_AGO, as_instant
from queue_kit._scan import Place
from queue_kit._statements.vocabulary import as_batch
from queue_kit.job import Claimed, Outcome, Verdict, claimed_job
from queue_kit.models import CANCELLED, FAILED


def behind(after: Place | None) -> dict[str, Any]:
    """The parameters that say where to begin: behind a place, or at the head."""
    priority, due, job_id = (-1, LONG_AGO, 0) if after is None else after
    return {"after_priority": priority, "after_due": due, "after_id": job_id}


def fences_batch(claims: Iterable[Claimed]) -> str:
    """What names claims of jobs, as a batch. Numbers alone need no encoder, which would take four times as long."""
    rows = [f"[{each.job.id},{each.claim_no}]" for each in claims]
    return f"[{','.join(rows)}]"


def endings_batch(endings: Sequence[tuple[Claimed, Outcome]]) -> str:
    """How runs ended, as a batch of what is to be written."""
    return as_batch(_ending_row(claimed, outcome) for claimed, outcome in endings)


def _ending_row(claimed: Claimed, outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"id": claimed.job.id, "claim_no": claimed.claim_no}
    if outcome.error is not None:
        row["error"] = dict(outcome.error)
    match outcome.verdict:
        case Verdict.failed:
            row |= {"status": FAILED, "failed": 1}
        case Verdict.cancelled:
            row |= {"status": CANCELLED, "failed": 0}
        case Verdict.retried:
            row |= {"failed": 1, "lapsed": 0, "forgiven": False, "delay": outcome.delay}
        case Verdict.snoozed:
            row |= {"failed": 0, "lapsed": 0, "forgiven": True, "delay": outcome.delay}
        case Verdict.released if outcome.error is not None:
            row |= {"failed": 0, "lapsed": 1, "forgiven": False, "delay": outcome.delay}
        case Verdict.released:
            row |= {"failed": 0, "lapsed": 0, "forgiven": False}
    return row


def claimed_of(row: Sequence[Any]) -> Claimed:
    """The row as values. What cannot be read is said in `unreadable`, so that the job fails and not its neighbours."""
    (
        job_id,
        claim_no,
        name,
        priority,
        retry_count,
        lost,
        tries,
        timeout,
        unique_key,
        cron_name,
        cancel_requested,
        due_text,
        created_text,
        tick_text,
        data_text,
        trace_text,
        cron_expression,
        cron_last_text,
    ) = row  # by name, 18 columns take as long as all the rest
    unreadable, data, trace, last_completed_at = None, None, None, None
    due = scheduled_at = created_at = LONG_AGO
    try:
        priority, retry_count = int(priority), int(retry_count)
        data = _json(data_text)
        due = as_instant(due_text)
        scheduled_at = due if tick_text is None else as_instant(tick_text)
        created_at = due if created_text is None else as_instant(created_text)
        trace = None if trace_text is None else _json(trace_text)
        timeout = None if timeout is None else float(timeout)
        tries = None if tries is None else int(tries)
        last_completed_at = None if cron_last_text is None else as_instant(cron_last_text)
    except (ValueError, ArithmeticError, TypeError, RecursionError, AttributeError) as error:
        unreadable = f"{type(error).__name__}: {error}"
        priority = retry_count = 0
        timeout = tries = None
    job = claimed_job(
        job_id,
        name,
        data,
        priority,
        scheduled_at,
        created_at,
        retry_count,
        timeout,
        cron_expression,
        last_completed_at,
    )
    return Claimed(
        job,
        claim_no,
        lost,
        tries,
        unique_key,
        cron_name,
        bool(cancel_requested),
        trace if isinstance(trace, dict) else None,
        unreadable,
        due,
        len(data_text) if isinstance(data_text, (str, bytes)) else 0,
    )


_read = json.JSONDecoder().raw_decode


def _json(value: Any) -> Any:
    if isinstance(value, str):
        # PostgreSQL leaves no space around it. What loads() does about that takes longer than to read a small payload.
        read, end = _read(value)
        if end == len(value):
            return read
    return json.loads(value) if isinstance(value, str | bytes) else value
