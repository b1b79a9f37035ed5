"""A worker's process: `python -m tests.torture.worker ROLE`. It works until SIGTERM, through the public API only.

As a supervisor would, it starts again when the database was away while it started.
"""

import asyncio
import logging
from pathlib import Path

from queue_kit import QueueWorker
from tests.support import AWAY
from tests.torture.database import engine_for
from tests.torture.handlers import Jobs, Told
from tests.torture.ledger import Ledger
from tests.torture.mutants import mutate
from tests.torture.role import Role, end_with_parent

GRACE, CANCEL_GRACE = 3.0, 2.0


class _Log(logging.Handler):
    """Everything that the library warns of, into the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.WARNING)
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        trace = self.format(record)[-2_000:] if error else None
        self._ledger.write(
            "log",
            level=record.levelname,
            message=record.getMessage(),
            error=error and type(error).__name__,
            trace=trace,
        )


async def work(role: Role, ledger: Ledger) -> None:
    engine = engine_for(role.url, role.actor)
    told = Told(ledger)
    folder = Path(role.ledger).parent
    jobs = Jobs(told, actor=role.actor, dialect=engine.dialect.name, seed=role.seed, folder=folder).all()
    worker = QueueWorker(
        engine,
        jobs,
        parallel_count=role.pullers,
        lease=role.lease,
        poll_interval=role.poll,
        prefetch=role.prefetch,
        grace=GRACE,
        cancel_grace=CANCEL_GRACE,
        hooks=[told],
    )
    while True:
        try:
            await worker.run()
        except AWAY as error:
            ledger.write("did_not_start", error=type(error).__name__)
            await asyncio.sleep(0.2)
        else:
            break
    await engine.dispose()
    ledger.write("left")


def main() -> None:
    end_with_parent()
    role = Role.given()
    ledger = Ledger(role.ledger, role.actor)
    logging.getLogger("queue_kit").addHandler(_Log(ledger))
    logging.getLogger("asyncio").addHandler(_Log(ledger))
    mutate(role.mutant)
    asyncio.run(work(role, ledger))


if __name__ == "__main__":
    main()
