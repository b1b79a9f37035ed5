"""`queue-kit check`: a probe of the database, or of a worker."""

import socket
from dataclasses import dataclass
from typing import Any

import click
from sqlalchemy import URL, Row
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit._health import Finding, examine
from queue_kit._transient import is_transient
from queue_kit.cli.database import PROBE, Failed, NoAnswer, answering, database_option, masked, on_database, words
from queue_kit.cli.output import json_option, print_json, shown
from queue_kit.fleet import alive

_ANY_OF_THIS_HOST = ""


@dataclass(frozen=True, slots=True)
class _Report:
    ok: bool
    findings: list[Finding]


@click.command()
@database_option()
@click.option(
    "--worker",
    is_flag=False,
    flag_value=_ANY_OF_THIS_HOST,
    metavar="[LABEL|HOST|HOST:PID]",
    help="Tell instead whether a worker is alive: one of this host, or this one.",
)
@json_option
def check(url: URL, worker: str | None, as_json: bool) -> None:
    """Tell whether a worker of this version could start on the database, and whether the database keeps it quick:
    connections left, old transactions, dead rows, locks, missing indexes.

    With --worker, tell whether a worker is alive: whether it said so within the last 45 seconds. A database that does
    not answer is not its fault, so that alone is no failure. Either waits 5 seconds for the database.

    \b
    Example:
      queue-kit check --json | jq '.findings[] | select(.ok | not)'
      queue-kit check --worker

    \b
    With --json: {"ok": true, "findings": [{"about": "schema", "ok": true, "words": "..."}]}
    Exit status: 0 all is well, 1 something is not, 2 wrong usage.
    """
    try:
        if worker is None:
            findings = on_database(url, _examined)
        else:
            findings = on_database(url, lambda engine: _alive(engine, worker))
    except Failed as error:
        findings = [Finding(error.about, ok=False, words=error.message)]
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json(_Report(ok, findings))
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else click.style("BAD ", fg="red", bold=True)
            click.echo(f"{mark} {shown(finding.words)}")
    if not ok:
        raise SystemExit(1)


async def _examined(engine: AsyncEngine) -> list[Finding]:
    try:
        async with answering(PROBE):
            return await examine(engine)
    except NoAnswer as error:  # others point from here to this command
        return [Finding("database", ok=False, words=str(error))]


async def _alive(engine: AsyncEngine, wanted: str) -> list[Finding]:
    try:
        async with answering(PROBE):
            workers = await alive(engine)
    except Exception as error:
        if not is_transient(error):
            raise
        said = f"the database does not answer, so nobody knows: {masked(words(error), engine.url)}"
        return [Finding("worker", ok=True, words=said)]
    which = wanted or socket.gethostname()
    found = [worker for worker in workers if which in _names_of(worker)]
    if found:
        seen = max(min(worker.seen_seconds_ago for worker in found), 0.0)
        return [Finding("worker", ok=True, words=f"a worker of {shown(which)} said {seen:.0f} s ago that it is alive")]
    return [Finding("worker", ok=False, words=f"no worker of {shown(which)} said within 45 s that it is alive")]


def _names_of(worker: Row[Any]) -> set[str]:
    return {worker.label, worker.host, f"{worker.host}:{worker.pid}", str(worker.id)}
