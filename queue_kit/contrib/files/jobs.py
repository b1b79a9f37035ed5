"""The jobs of the file store, under the names and with the timeouts that they are documented with.

jobs.include(file_jobs(store))
"""

from queue_kit.contrib.files.cleanup import job_file_cleanup
from queue_kit.contrib.files.image_jobs import (
    TRANSFORM_JOB,
    job_file_generate_placeholder_image,
    job_file_transform_image,
)
from queue_kit.contrib.files.store import FileStore
from queue_kit.contrib.files.uploads import PLACEHOLDER_JOB
from queue_kit.handlers import Handlers

CLEANUP_JOB = "queue_kit.file.cleanup"
CLEANUP_TIMEOUT = 3_600.0
"""Seconds. What is deleted by then stays deleted, and the next run goes on."""

TRANSFER = 900.0
"""Seconds for an image to wait for its turn, to come from storage and to go there. What takes long is the waiting, when
many are uploaded at once; the work itself has its own limits."""


def file_jobs(store: FileStore) -> Handlers:
    """The handlers of all jobs of a file store, to include in your own.

    `queue_kit.file.cleanup` runs when a cron entry says so: `CronJob("queue_kit.file.cleanup", "0 2 * * *")`.

    >>> jobs = Handlers()
    >>> jobs.include(file_jobs(FileStore.memory()))
    """
    jobs = Handlers()
    jobs.add(CLEANUP_JOB, job_file_cleanup(store), timeout=CLEANUP_TIMEOUT)
    jobs.add(PLACEHOLDER_JOB, job_file_generate_placeholder_image(store), timeout=store.images.timeout + TRANSFER)
    jobs.add(TRANSFORM_JOB, job_file_transform_image(store), timeout=store.images.timeout + TRANSFER)
    return jobs
