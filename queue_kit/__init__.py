"""Durable background and recurring jobs for asyncio and SQLAlchemy, transactional at both ends.

Enqueue in your own session, handle jobs with a session whose last commit carries the completion. See the README.
"""

from queue_kit._engine import engine_from_url
from queue_kit._handler import Handler, HandlerFunction
from queue_kit._offload import in_process, in_thread
from queue_kit._sqlite import sqlite_engine
from queue_kit.bulk import BulkChange, cancel_jobs, retry_jobs
from queue_kit.cron import CronJob, CronPlan, register_cron_jobs
from queue_kit.cron_jobs import CronJobInfo, list_cron_jobs, pause_cron_job, resume_cron_job, run_cron_job
from queue_kit.enqueue import add_job, add_jobs, insert_jobs
from queue_kit.errors import (
    AmbiguousCommit,
    Cancelled,
    ConfigurationError,
    CronJobNotFound,
    DeadlineExceeded,
    Discard,
    InvalidCron,
    InvalidJob,
    InvalidPayload,
    JobAborted,
    JobConflict,
    JobNotFound,
    LeaseLost,
    QueueKitError,
    SchemaMismatch,
    ShuttingDown,
    Snooze,
    UnfencedCommit,
)
from queue_kit.event import AbortToken, Event, Span
from queue_kit.failures import FailureGroup, failure_groups
from queue_kit.fleet import HeldJob, WorkerInfo, list_workers
from queue_kit.handlers import Handlers, NamedHandler
from queue_kit.history import ThroughputPoint, throughput, throughput_by_name
from queue_kit.hooks import Enqueued, Settled, Started, WorkerState, install_hooks
from queue_kit.job import Job, JobState, NewJob, Outcome, Verdict
from queue_kit.maintenance import job_queue_cleanup, job_queue_insights
from queue_kit.models import JobRow
from queue_kit.operate import (
    Insights,
    NameInsights,
    cancel_job,
    get_job,
    list_jobs,
    queue_insights,
    retry_job,
    run_job_now,
)
from queue_kit.retry import exponential
from queue_kit.worker import QueueWorker

__version__ = "0.1.0"

__all__ = [
    "AbortToken",
    "AmbiguousCommit",
    "BulkChange",
    "Cancelled",
    "ConfigurationError",
    "CronJob",
    "CronJobInfo",
    "CronJobNotFound",
    "CronPlan",
    "DeadlineExceeded",
    "Discard",
    "Enqueued",
    "Event",
    "FailureGroup",
    "Handler",
    "HandlerFunction",
    "Handlers",
    "HeldJob",
    "Insights",
    "InvalidCron",
    "InvalidJob",
    "InvalidPayload",
    "Job",
    "JobAborted",
    "JobConflict",
    "JobNotFound",
    "JobRow",
    "JobState",
    "LeaseLost",
    "NameInsights",
    "NamedHandler",
    "NewJob",
    "Outcome",
    "QueueKitError",
    "QueueWorker",
    "SchemaMismatch",
    "Settled",
    "ShuttingDown",
    "Snooze",
    "Span",
    "Started",
    "ThroughputPoint",
    "UnfencedCommit",
    "Verdict",
    "WorkerInfo",
    "WorkerState",
    "add_job",
    "add_jobs",
    "cancel_job",
    "cancel_jobs",
    "engine_from_url",
    "exponential",
    "failure_groups",
    "get_job",
    "in_process",
    "in_thread",
    "insert_jobs",
    "install_hooks",
    "job_queue_cleanup",
    "job_queue_insights",
    "list_cron_jobs",
    "list_jobs",
    "list_workers",
    "pause_cron_job",
    "queue_insights",
    "register_cron_jobs",
    "resume_cron_job",
    "retry_job",
    "retry_jobs",
    "run_cron_job",
    "run_job_now",
    "sqlite_engine",
    "throughput",
    "throughput_by_name",
]
