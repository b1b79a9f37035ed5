"""The numbers of the pages are those of the code: each sentence here is written with the constant or the default that
it speaks of, and must stand in its page.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from queue_kit import (
    CronJob,
    QueueWorker,
    _claims,
    _endings,
    _error_record,
    _gate,
    _health,
    _history,
    _indexes,
    _pace,
    _scan,
    _sleep,
    _timings,
    _wakeup,
    _watchdog,
    bulk,
    failures,
    fleet,
    history,
    job,
    maintenance,
    migrate,
    testing,
)
from queue_kit._statements import workers
from queue_kit.cli import database
from queue_kit.contrib.files import FileStore, Images, job_file_cleanup, transforms, uploads
from queue_kit.contrib.files import store as objects
from queue_kit.contrib.sessions import _cleanup
from queue_kit.contrib.sessions import store as sessions
from queue_kit.dashboard import _pages, _pool
from queue_kit.telemetry import _labels, queue_state, tracing

CHECKOUT = Path(__file__).resolve().parents[2]
MIB = 2**20


def defaults(call: Callable[..., Any]) -> Any:
    return SimpleNamespace(**{name: each.default for name, each in inspect.signature(call).parameters.items()})


WORKER, FILES, IMAGES = defaults(QueueWorker), defaults(FileStore), defaults(Images)
CRON, STATE, CLEANUP = defaults(CronJob), defaults(queue_state.QueueStateMetrics), defaults(job_file_cleanup)
LEASE, POLL, GRACE = WORKER.lease, WORKER.poll_interval, WORKER.grace
LOCK = migrate.LOCK_TIMEOUT.replace("s", " s")
LOOK = _sleep.LOOK_EVERY * 1_000

SAID = {
    "README.md": [
        f"within a lease (`lease=`, {LEASE:g} s) and a poll ({POLL:g} s)",
        f"`priority` (0 to {job.MAX_PRIORITY}, lower runs first, default {job.DEFAULT_PRIORITY})",
        f"JSON of at most {job.MAX_PAYLOAD_BYTES // MIB} MiB",
        f"else the worker's ({WORKER.handler_timeout:g} s)",
        f"tries in total (default {WORKER.max_retry_count})",
        f"cut at {_error_record.MAX_MESSAGE:,} characters, traceback at {_error_record.MAX_TRACEBACK:,}",
        f"for `grace=` ({GRACE:g} s)",
        f"within `cancel_grace=` ({WORKER.cancel_grace:g} s) more",
        f"finished in {_pace.HORIZON * 1_000:g} ms at the rate of late",
    ],
    "SECURITY.md": [
        f"JSON of at most {job.MAX_PAYLOAD_BYTES // MIB} MiB and {job.MAX_PAYLOAD_DEPTH} levels",
    ],
    "docs/alembic.md": [
        f"the queue's schema, {migrate.VERSION} today",
        f"waits no longer than {LOCK} for a lock",
    ],
    "docs/cli.md": [
        f"They change at most {bulk.MAX_JOBS:,} jobs at a time",
        f"look at the {failures.NEWEST:,} jobs that failed last",
        f"It waits {database.PROBE:g} s for the database",
        f"wait {database.ANSWER:g} s, and then say",
        f"not more than {_health.MANY_DEAD:,} of them",
        f"({GRACE:g} s + {WORKER.cancel_grace:g} s unless you choose others)",
        f"said within the last {workers.ALIVE_SECONDS:g} s that it is alive",
    ],
    "docs/cron.md": [
        f"`priority` {CRON.priority} unless its entry says otherwise",
        f"before ordinary jobs, which have {job.DEFAULT_PRIORITY}.",
    ],
    "docs/dashboard.md": [
        f"{_pages.PAGE} on a page",
        f"statements of at most {_pool.PATIENCE:g} s",
        f"given up after about {_pool.CUT:g} s",
        f"looks through {_pages.LOOKED_BACK:,} jobs",
        f"A failed try keeps its last {_timings.MOST_SPANS}.",
    ],
    "docs/enqueue.md": [
        f"`priority`: 0 to {job.MAX_PRIORITY}, lower runs first, {job.DEFAULT_PRIORITY} unless",
        f"JSON of at most {job.MAX_PAYLOAD_BYTES // MIB} MiB",
    ],
    "docs/files.md": [
        f"from {FILES.part_bytes // MIB} MiB (`part_bytes`) on one in parts, of which {FILES.parallel_parts} (`para",
        f"`max_file_bytes` is {FILES.max_file_bytes // 1024 // MIB} GiB",
        f"`name` has 1 to {uploads.MAX_NAME_LENGTH} characters",
        f"minimum_age={CLEANUP.minimum_age:_.0f}",
        f"by pages of {objects.MOST_KEYS:,}",
        f"to be kept for {transforms.WHILE_IT_IS_MADE} seconds",
        f"| `max_bytes` | {IMAGES.max_bytes // MIB} MiB |",
        f"| `max_pixels` | {IMAGES.max_pixels:,}, looked at",
        f"| `max_memory` | {IMAGES.max_memory // MIB} MiB of",
        f"| `max_seconds` | {IMAGES.max_seconds} s of",
        f"| `timeout` | {IMAGES.timeout:g} s by",
    ],
    "docs/how-it-works.md": [
        f"after a batch of more than {_endings.MANY} the next ones gather for {_endings.GATHERING * 1_000:g} ms",
        f"for the next poll ({POLL:g} s)",
        f"the database's now + {LEASE:g} s",
        f"finished in {_pace.HORIZON * 1_000:g} ms at the rate of late",
    ],
    "docs/limits.md": [
        f"Payloads above {job.MAX_PAYLOAD_BYTES // MIB} MiB",
    ],
    "docs/operating.md": [
        f"It looks at the {failures.NEWEST:,} jobs that failed last",
        f"They change at most {bulk.MAX_JOBS:,} jobs in one transaction",
        f"cut at {_error_record.MAX_MESSAGE:,}, {_error_record.MAX_MESSAGE:,} and {_error_record.MAX_TRACEBACK:,} char",
        f"The last {_timings.MOST_SPANS} to begin are kept, with names of at most {_timings.MAX_NAME} characters",
        f"said within {workers.ALIVE_SECONDS:g} s that they are alive",
        f"the first {fleet.LOOKED_AT:,} jobs of the order",
        f"at most {history.MOST_POINTS} points",
        f"{_history.KEPT_DAYS:g} days are kept",
    ],
    "docs/performance.md": [
        f"is repeated every {_scan.RESCAN_EVERY * 1_000:g} ms",
        f"at most {100 / _scan.SHARE:g} % of the time",
        f"more than {_sleep.OFTEN} times a second",
        f"every {LOOK:g} to {8 * LOOK:g} ms",
        f"{_claims.BYTES_AHEAD // MIB} MiB at most",
        f"At most {_pace.MOST_AHEAD:,} jobs are held ahead, and at most {_endings.MOST_UNWRITTEN:,} endings",
        f"in pages of {maintenance.PAGE:,} ids",
    ],
    "queue_kit/worker.py": [
        f"what is finished in {_pace.HORIZON * 1_000:g} ms at the rate of late, up to {_pace.MOST_AHEAD:,}."
    ],
    "docs/reliability.md": [
        f"within a lease and a poll ({LEASE:g} s + {POLL:g} s by default",
        f"after {_watchdog.LONGEST_BLOCK:g} s or a third of a lease",
        f"build indexes on within {_indexes.PATIENCE:g} s",
    ],
    "docs/runbook.md": [
        f"finish for `grace` ({GRACE:g} s)",
        f"`grace + cancel_grace` ({GRACE + WORKER.cancel_grace:g} s)",
        f"refuses a pool below {_gate.RESERVED + 1}",
        f"| `lease` | {LEASE:g} s |",
    ],
    "docs/scaling.md": [
        f"every {_wakeup.PROBE_EVERY:g} seconds by itself",
        f"only one to give within {_indexes.PATIENCE:g} s",
        f"`lease` ({LEASE:g} s) is how soon",
    ],
    "docs/sessions.md": [
        f"For {sessions.GRACE_SECONDS:g} seconds from its first use",
        f"in batches of {_cleanup.BATCH:,} pairs",
    ],
    "docs/telemetry.md": [
        f"`most_names={_labels.MOST_NAMES}`",
        f"`interval={STATE.interval:g}` seconds",
        f"`timeout={STATE.timeout:g}` seconds",
        f"at most {tracing.MOST_SPANS} of a run are exported",
    ],
    "docs/testing.md": [
        f"after `max_runs` ({defaults(testing.drain).max_runs:,}) jobs",
    ],
    "docs/time.md": [
        f"else the worker's ({WORKER.handler_timeout:g} s)",
        f"after `cancel_grace` ({WORKER.cancel_grace:g} s)",
        f"**in total**: {WORKER.max_retry_count} unless",
        f"`grace` ({GRACE:g} s) to finish",
    ],
}


@pytest.mark.parametrize(("page", "sentence"), [(page, each) for page, said in SAID.items() for each in said])
def test_a_page_says_the_number_of_the_code(page: str, sentence: str) -> None:
    assert sentence in " ".join((CHECKOUT / page).read_text().split())
