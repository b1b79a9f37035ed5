"""The commands of an operator, from an alert to the failing job, its error and another try; what a script reads, and
what a hostile payload does not do to a terminal."""

import asyncio
import contextlib
import inspect
import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click import unstyle
from click.testing import CliRunner, Result
from sqlalchemy import insert, make_url, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import (
    CronJob,
    Handlers,
    JobState,
    NewJob,
    QueueWorker,
    _health,
    _locks,
    add_job,
    add_jobs,
    migrate,
    register_cron_jobs,
    sqlite_engine,
)
from queue_kit.cli import health, main
from queue_kit.cli.database import PROBE
from queue_kit.models import HISTORY, WORKERS
from tests.conftest import engine_for, sqlite_url
from tests.database.clock import database_now, far, occurrence
from tests.database.running import job_in, nothing, raw, statements, waits_for_a_lock
from tests.proxy import Proxy, url_through
from tests.support import change, row_of, until

VARIABLE = "QUEUE_KIT_DATABASE_URL"
ONLY_TOO_DEEP_TO_PRINT = "[" * 500 + "]" * 500
HOSTILE = "\x1b]0;owned\x07\x1b[2Jbad\r\u202etxt"


async def invoke(*arguments: str, url: str | None, stdin: str | None = None) -> Result:
    """A command in this process."""
    runner = CliRunner()
    return await asyncio.to_thread(
        runner.invoke, main, arguments, prog_name="queue-kit", env={VARIABLE: url}, input=stdin
    )


@pytest.fixture
def cli(database_url):
    """Runs a command in this process, on the test's database."""

    async def run(*arguments: str, status: int = 0, stdin: str | None = None) -> str:
        result = await invoke(*arguments, url=database_url, stdin=stdin)
        assert result.exit_code == status, result.output
        return result.output

    return run


@pytest.fixture(autouse=True)
def vacuums_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests' server is set to: the table's own setting counts."""
    words = str(_health._DEAD).replace("current_setting('autovacuum') = 'on'", "true")
    monkeypatch.setattr(_health, "_DEAD", text(words))


@pytest.fixture(autouse=True)
def has_time_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine a check that waits for locks takes longer than an operator would."""
    monkeypatch.setattr(health, "PROBE", 60.0)


def process(*arguments: str, url: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "queue_kit", *arguments]
    pipe = subprocess.PIPE
    environment = {**os.environ, VARIABLE: url, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options
    )


def error(
    kind: str = "ValueError", message: str = "order 7 is gone", traceback: str = "Traceback:\n  boom"
) -> list[Any]:
    return [{"at": "2026-05-01T12:00:00+00:00", "try": 2, "class": kind, "message": message, "traceback": traceback}]


# --- from an alert to another try -------------------------------------------------------------------------------------


async def test_an_operator_gets_from_the_alert_to_another_try(engine, database_url, tmp_path, cli):
    jobs = Handlers()

    @jobs.handler("email.send", max_retry_count=1)
    async def send(event, session, job):
        raise ConnectionRefusedError(f"mail server {job.id} refused")

    for _ in range(3):
        await add_job(engine, "email.send", {"to": "a@b.c"})
    await QueueWorker(engine, jobs).drain()
    said = await cli("insights")
    assert "3 failed" in said
    assert "no live worker runs" not in said
    said = await cli("failures")
    assert "3  email.send  ConnectionRefusedError  mail server … refused" in said
    last = said.split()[-1]
    shown = await cli("show", last)
    assert f"job {last} email.send: failed" in shown
    assert '"to": "a@b.c"' in shown
    assert "raise ConnectionRefusedError" in shown
    filters = ("--name", "email.send", "--error-class", "ConnectionRefusedError")
    with process("retry", *filters, "--yes", url=database_url, cwd=tmp_path) as running:
        output, errors = await asyncio.to_thread(running.communicate, timeout=60)
    assert (running.returncode, output, errors) == (0, "3 jobs retried\n", "")
    assert (await row_of(engine, int(last))).state is JobState.ready


# --- add, jobs, show --------------------------------------------------------------------------------------------------


async def test_a_job_is_added_from_arguments_or_from_stdin(engine, cli):
    options = ("--priority", "1", "--delay", "60", "--unique-key", "k", "--timeout", "5", "--max-retry-count", "4")
    job_id = int(await cli("add", "a", '{"x": [1, "é"]}', *options))
    row = await row_of(engine, job_id)
    assert (row.name, row.data, row.priority, row.unique_key) == ("a", {"x": [1, "é"]}, 1, "k")
    assert (row.handler_timeout, row.max_retry_count, row.state) == (5.0, 4, JobState.scheduled)
    assert "nothing was added" in await cli("add", "a", "--unique-key", "k")
    assert json.loads(await cli("add", "a", "--unique-key", "k", "--json")) == {"id": None}
    from_stdin = json.loads(await cli("add", "b", "-", "--json", stdin='{"y": 2}'))["id"]
    assert (await row_of(engine, from_stdin)).data == {"y": 2}


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (("a", "{no"), 2, "the payload is no JSON"),
        (("a", "[" * 100_000), 2, "the payload is no JSON"),
        (("", "{}"), 1, "name: must not be empty"),
        (("a", "NaN"), 1, "nan is not JSON"),
        (("a", "{}", "--priority", "-1"), 1, "priority: must be an integer from 0 to"),
        (("a", "{}", "--delay", "nan"), 1, "delay"),
    ],
)
async def test_a_job_that_cannot_be_is_explained(cli, arguments, status, problem):
    assert problem in await cli("add", *arguments, status=status)


async def test_jobs_are_listed_by_filters_and_pages(engine, cli):
    ids = [await job_in(engine, "failed", name="mail", errors=error()) for _ in range(3)]
    await job_in(engine, "completed", name="mail", unique_key="order-7")
    old = await job_in(engine, "failed", name="mail")
    await change(engine, old, created_at=await database_now(engine) - timedelta(days=2))
    first = await cli("jobs", "--state", "failed", "--since", "1d", "--limit", "2")
    assert "ValueError: order 7 is gone" in first
    assert f"more: --after {ids[1]}" in first
    second = json.loads(await cli("jobs", "--state", "failed", "--limit", "2", "--after", str(ids[1]), "--json"))
    assert [job["id"] for job in second] == [ids[0]]
    assert second[0]["state"] == "failed"
    assert second[0]["errors"][0]["class"] == "ValueError"
    assert len(json.loads(await cli("jobs", "--until", "1d", "--json"))) == 1
    assert [job["unique_key"] for job in json.loads(await cli("jobs", "--unique-key", "order-7", "--json"))] == [
        "order-7"
    ]
    assert json.loads(await cli("jobs", "--cron", "nobody", "--json")) == []
    assert (await cli("jobs", "--name", "nobody")).split()[:3] == ["ID", "STATE", "NAME"]
    for wrong in ("yesterday", "5", "5w", "99999999999d"):
        assert "neither a span like" in await cli("jobs", "--since", wrong, status=2)


async def test_a_job_is_shown_whole_as_json_and_an_unknown_one_is_an_error(engine, cli):
    job_id = await job_in(engine, "failed", errors=error(), handler_timeout=float("inf"), max_retry_count=3)
    shown = json.loads(await cli("show", str(job_id), "--json"))
    assert (shown["id"], shown["state"], shown["handler_timeout"]) == (job_id, "failed", "Infinity")
    assert shown["errors"] == error()
    assert shown["scheduled_at"].endswith("+00:00")
    assert (shown["worker_id"], shown["lease_until"], shown["unreadable"]) == (None, None, {})
    runs = await job_in(engine, "running")
    worker = json.loads(await cli("show", str(runs), "--json"))["worker_id"]
    assert worker is not None
    assert f"worker         {worker}" in await cli("show", str(runs))
    assert "there is no job with id 999" in await cli("show", "999", status=1)
    assert "of 3" in await cli("show", str(job_id))


async def test_what_others_wrote_reaches_no_terminal_with_its_control_characters(engine, cli):
    job_id = await job_in(
        engine,
        "failed",
        name=HOSTILE,
        data={HOSTILE: HOSTILE},
        errors=[error(HOSTILE, HOSTILE, f"{HOSTILE}\n{HOSTILE}")[0] | {"spans": [{"name": HOSTILE, "seconds": 1}]}],
        cron_name=HOSTILE,
        unique_key=HOSTILE,
    )
    await add_job(engine, HOSTILE)
    await register_cron_jobs(engine, [CronJob(HOSTILE, far())])
    commands = [["jobs"], ["show", str(job_id)], ["failures"], ["insights"], ["cron"], ["cron", "pause", HOSTILE]]
    commands += [[*command, "--json"] for command in commands[:5]]
    commands += [["retry", "--name", HOSTILE, "--yes"], ["cancel", "--name", HOSTILE, "--yes"]]
    for command in commands:
        said = await cli(*command)
        assert said.replace("\n", "").isprintable(), command
    assert "\\x1b]0;owned" in await cli("show", str(job_id))


async def test_a_message_of_many_lines_imitates_no_line_of_the_job(engine, cli):
    forged = "gone\n  tries          9 failed\nerror in try 9 at never"
    job_id = await job_in(engine, "failed", errors=error(message=forged, traceback=f"Traceback:\nE: {forged}"))
    said = (await cli("show", str(job_id))).splitlines()
    assert [line for line in said if "9 failed" in line] == ["  |   tries          9 failed"]
    assert [line[:4] for line in said if "try 9" in line] == ["  | "]


@pytest.mark.parametrize("errors", [7, {}, [None], ["x"], [{}], [{"class": 7, "traceback": [1]}]], ids=str)
async def test_a_record_that_somebody_spoiled_is_still_shown(engine, cli, errors):
    job_id = await job_in(engine, "failed")
    await change(engine, job_id, errors=errors)
    assert "failed" in await cli("show", str(job_id))
    assert "failed" in await cli("jobs")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[(column, value) for column in ("data", "errors") for value in ("[" * 3_000 + "]" * 3_000,)],
        ("trace_context", "9" * 6_000),
        ("data", ONLY_TOO_DEEP_TO_PRINT),
        ("data", "9" * 6_000),
        *[(column, "12000-01-01") for column in ("scheduled_at", "created_at", "updated_at", "lease_until")],
    ],
    ids=lambda value: value[:12],
)
async def test_what_python_cannot_read_hides_no_other_job(engine, cli, column, value):
    good, bad = [await job_in(engine, "failed", name="mail", errors=error()) for _ in range(2)]
    await raw(engine, f"UPDATE queue_kit_job SET {column} = '{value}' WHERE id = {bad}")
    said = await cli("jobs", "--since", "1h", "--state", "failed") if column != "created_at" else await cli("jobs")
    assert [line.split()[0] for line in said.splitlines()[1:]] == [str(bad), str(good)]
    listed = json.loads(await cli("jobs", "--json"))
    assert [job["id"] for job in listed] == [bad, good]
    assert listed[1]["unreadable"] == {}
    assert json.loads(await cli("show", str(bad), "--json")) == listed[0]
    told = await cli("show", str(bad))
    if value.startswith("12000"):
        assert listed[0][column].startswith("12000-01-01")
        assert list(listed[0]["unreadable"]) == [column]
    elif len(value) > 1_000:
        assert list(listed[0]["unreadable"]) == [column]
    for spoiled in listed[0]["unreadable"]:
        assert f"{spoiled} cannot be read" in told
        mend = re.search(rf"UPDATE queue_kit_job SET {spoiled} = .* WHERE id = {bad};", told)
        if value == ONLY_TOO_DEEP_TO_PRINT:  # a worker can read it: no advice to throw it away
            assert mend is None
            return
        assert mend
        assert ("payload is lost by that" in told) is (spoiled == "data")
        await raw(engine, mend[0])
    mended = await cli("show", str(bad))
    assert ("cannot be read" in mended, "UPDATE" in mended) == (False, False)
    assert "mail" in await cli("failures")


async def test_text_that_is_no_json_hides_no_other_job(sqlite_path):
    engine = sqlite_engine(sqlite_path)
    good, bad = [await job_in(engine, "failed", name="mail") for _ in range(2)]
    await raw(engine, f"UPDATE queue_kit_job SET data = 'not json', scheduled_at = 'soon' WHERE id = {bad}")
    await engine.dispose()
    runs = [["jobs"], ["jobs", "--json"], ["failures"], ["show", str(bad)]]
    found = [await invoke(*command, url=sqlite_url(sqlite_path)) for command in runs]
    assert [result.exit_code for result in found] == [0] * 4
    assert [job["id"] for job in json.loads(found[1].stdout)] == [bad, good]
    assert "data cannot be read" in found[3].output
    assert "soon" in found[3].output


def pretend_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands think that somebody can be asked."""
    stdin = type("In", (), {"isatty": lambda: True})
    monkeypatch.setattr("queue_kit.cli.output.sys", type("Terminal", (), {"stdin": stdin}))


# --- retry and cancel -------------------------------------------------------------------------------------------------


async def test_jobs_are_changed_by_id_and_each_one_in_conflict_is_named(engine, cli):
    failed = [await job_in(engine, "failed") for _ in range(2)]
    ready = await add_job(engine, "a")
    said = await cli("retry", str(failed[0]), str(ready), "999", status=1)
    assert f"job {ready}: is ready; only failed and cancelled jobs can be retried" in said
    assert "there is no job with id 999" in said
    assert "1 job retried, 2 jobs skipped" in said
    assert await cli("retry", str(failed[1])) == "1 job retried\n"
    running, done = await job_in(engine, "running"), await job_in(engine, "completed")
    said = await cli("cancel", str(ready), str(running), str(done), status=1)
    assert f"job {done}: is completed already" in said
    assert "1 job cancelled, 1 running job asked to end, 1 job skipped" in said
    assert (await row_of(engine, running)).cancel_requested


async def test_a_filter_counts_and_asks_first(engine, cli, monkeypatch):
    for _ in range(3):
        await job_in(engine, "failed", name="mail", errors=error())
    assert "Say --yes: there is no terminal" in await cli("retry", "--name", "mail", status=2)
    pretend_a_terminal(monkeypatch)
    said = await cli("retry", "--name", "mail", "--limit", "2", status=1, stdin="n\n")
    assert "retry 2 jobs of name mail (more than 2 fit; these first)?" in said
    assert "Aborted!" in said
    said = await cli("retry", "--message", "order 9 is gone", "--limit", "2", stdin="y\n")
    assert "2 jobs retried: more fit, run it again" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["retry", "--error-class", "Wrong"], ("0 jobs retried\n", "no job fits error class Wrong\n")),
        (["cancel", "--name", HOSTILE[:5]], ("0 jobs cancelled\n", "no job fits name \\x1b]0;o\n")),
    ],
)
async def test_a_filter_that_nothing_fits_is_told_beside_what_a_script_reads(engine, database_url, command, said):
    await job_in(engine, "failed", name="mail", errors=error())
    result = await invoke(*command, url=database_url)
    assert (result.exit_code, (result.stdout, result.stderr)) == (0, said)


@pytest.mark.parametrize(
    "message",
    [
        "the mail server of the customer refused the recipient for good, and says that order 7 cannot be sent to it",
        "x" * 300,
        "\x1b[31mred\x1b[0m text",
        "a tab\tand spaces  \nand another line",
        f"{'x' * 190} 'quoted words that are longer than what is left'",
        f"{'x' * 197}\x1b[31m",
    ],
)
async def test_a_message_can_be_copied_from_the_failures_to_a_retry(engine, cli, message):
    job_id = await job_in(engine, "failed", name="mail", errors=error(message=message))
    headings, row = (await cli("failures")).splitlines()
    copied = row[headings.index("MESSAGE") : headings.index("LAST (UTC)")].strip()
    assert await cli("retry", "--message", copied, "--yes") == "1 job retried\n"
    await change(engine, job_id, status=3)
    assert await cli("retry", "--message", message, "--yes") == "1 job retried\n"


async def test_a_question_is_not_part_of_what_a_script_reads(engine, database_url, monkeypatch):
    await job_in(engine, "failed", name="mail")
    pretend_a_terminal(monkeypatch)
    command = ["retry", "--name", "mail", "--json"]
    result = await invoke(*command, url=database_url, stdin="y\n")
    told = result.stdout.removeprefix(" y\n")  # click 8.2.0's runner shows there what was typed
    assert json.loads(told)["changed"] == 1
    assert "retry 1 job of name mail?" in result.stderr


@pytest.mark.parametrize(
    ("command", "status", "problem"),
    [
        ("add a - <&-", 2, "stdin is closed"),
        ("retry --name a <&-", 2, "there is no terminal to ask on"),
        ("printf '\"\\377\"' | {} add a -", 2, "stdin has bytes that are no utf-8 text"),
        ("jobs >/dev/full", 1, "the output cannot be written: No space left on device"),
        ("--help >/dev/full", 1, "the output cannot be written: No space left on device"),
    ],
)
async def test_a_terminal_that_is_not_there_is_told_in_a_line(sqlite_path, command, status, problem):
    engine = sqlite_engine(sqlite_path)
    await job_in(engine, "failed")
    await engine.dispose()
    program = f"{sys.executable} -m queue_kit"
    line = command.format(program) if "{}" in command else f"{program} {command}"
    environment = {**os.environ, VARIABLE: sqlite_url(sqlite_path), "PYTHONUTF8": "1"}
    environment["PYTHONIOENCODING"] = "utf-8"
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, problem in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


async def test_a_filter_changes_what_fits_and_tells_a_script(engine, cli):
    await job_in(engine, "cancelled")
    for state in ("scheduled", "ready", "running"):
        await job_in(engine, state)
    done = json.loads(await cli("cancel", "--name", "a", "--yes", "--json"))
    assert done == {"changed": 3, "asked": 1, "skipped": 0, "more": False, "older": False}
    done = json.loads(await cli("retry", "--state", "cancelled", "--yes", "--json"))
    assert done == {"changed": 3, "asked": 0, "skipped": 0, "more": False, "older": False}
    for command in (("retry",), ("cancel",), ("retry", "1", "--name", "a"), ("cancel", "1", "--state", "ready")):
        assert "give either ids or a filter" in await cli(*command, status=2)


# --- cron, failures, insights -----------------------------------------------------------------------------------------


async def test_cron_entries_are_listed_paused_resumed_and_run(engine, cli):
    await register_cron_jobs(engine, [CronJob("report.daily", far(), timezone="Europe/Amsterdam")])
    assert "Europe/Amsterdam" in await cli("cron")
    assert await cli("cron", "pause", "report.daily") == "report.daily is paused\n"
    assert "paused" in await cli("cron")
    assert json.loads(await cli("cron", "--json"))[0]["paused"] is True
    assert "cron entries that are paused: 1" in await cli("insights")
    assert json.loads(await cli("insights", "--json"))["cron_paused"] == 1
    await raw(engine, "UPDATE queue_kit_cron SET paused = false, next_at = '2020-01-01 00:00:00.000'")
    assert "a cron entry has been due for" in await cli("insights")
    await raw(engine, "UPDATE queue_kit_cron SET paused = true")
    assert await cli("cron", "resume", "report.daily") == "report.daily goes on\n"
    job_id = int(await cli("cron", "run", "report.daily"))
    assert (await occurrence(engine, "report.daily")).id == job_id
    assert json.loads(await cli("cron", "run", "report.daily", "--json")) == {"id": job_id}
    for command in ("pause", "resume", "run"):
        assert "there is no cron job named 'nobody'" in await cli("cron", command, "nobody", status=1)


@pytest.mark.parametrize("elsewhere", [None, "sqlite:////nowhere/else.db"])
async def test_options_of_cron_stand_before_its_commands_or_behind_them(engine, database_url, elsewhere):
    """Before or behind, what was typed goes before the environment: else another database would be changed."""
    await register_cron_jobs(engine, [CronJob("report.daily", far())])

    async def cron(*arguments: str) -> str:
        result = await invoke("cron", *arguments, url=elsewhere)
        assert result.exit_code == 0, result.output
        return result.output

    url = ("--database-url", database_url)
    wrong = ("--database-url", "sqlite:////nowhere/at/all.db")
    for before, behind in ((url, ()), ((), url), (wrong, url)):
        for command, says in (("pause", "is paused"), ("resume", "goes on")):
            assert says in await cron(*before, command, "report.daily", *behind)
        job_id = int(await cron(*before, "run", "report.daily", *behind))
    assert json.loads(await cron(*url, "--json", "run", "report.daily")) == {"id": job_id}
    assert json.loads(await cron(*url, "--json"))[0]["job_id"] == job_id


async def test_who_counts_workers_asks_for_none_of_their_jobs(engine, cli):
    with statements() as sent:
        async with QueueWorker(engine, {"a": nothing}):
            sent.clear()
            assert json.loads(await cli("insights", "--json"))["workers"] == 1
            assert "said" in await cli("check", "--worker")
            assert not [each for each in sent if each.startswith("SELECT head.")]
            assert json.loads(await cli("workers", "--json"))[0]["jobs"] == []
            assert [each for each in sent if each.startswith("SELECT head.")]


async def test_rates_tell_a_try_that_is_retried_from_a_job_that_failed(engine, cli):
    minute = (await database_now(engine)).replace(second=0, microsecond=0) - timedelta(minutes=2)
    async with engine.begin() as connection:
        row = {"minute": minute, "name": "mail", "completed": 50, "retried": 20, "failed": 5}
        await connection.execute(insert(HISTORY).values(**row))
    overview = json.loads(await cli("insights", "--json"))
    for counts in (overview, overview["by_name"]["mail"]):
        rates = [counts[f"{end}_per_minute"] for end in ("completed", "retried", "failed")]
        assert rates == [10, 4, 1]
    said = await cli("insights")
    assert "a minute: 10.0 completed, 4.0 failed tries to be retried, 1.0 failed for good" in said


async def test_failures_and_insights_tell_a_script(engine, cli):
    await job_in(engine, "failed", name="mail", errors=error())
    await add_job(engine, "pdf")
    (group,) = json.loads(await cli("failures", "--json"))
    assert (group["name"], group["error_class"], group["message"]) == ("mail", "ValueError", "order … is gone")
    assert json.loads(await cli("failures", "--name", "pdf", "--json")) == []
    overview = json.loads(await cli("insights", "--json"))
    assert (overview["pending"], overview["failed"], overview["workers"]) == (1, 1, 0)
    assert overview["unhandled_names"] == ["pdf"]
    assert overview["by_name"]["mail"]["failed"] == 1
    assert overview["by_name"]["pdf"]["oldest_due_seconds"] >= 0
    assert "no live worker runs: pdf" in await cli("insights")


async def test_insights_shows_people_the_names_that_matter_most(engine, cli):
    await job_in(engine, "failed", name="mail", errors=error())
    await add_jobs(engine, [NewJob(f"idle {number:02}", delay=600) for number in range(60)])
    said = (await cli("insights")).splitlines()
    assert len(said) < 60
    assert any(line.startswith("mail ") for line in said)
    assert said[-1].startswith("and 11 names more")
    assert len(json.loads(await cli("insights", "--json"))["by_name"]) == 61


async def test_a_result_that_is_cut_is_marked(engine, cli, monkeypatch):
    monkeypatch.setattr("queue_kit.failures.NEWEST", 1)
    for _ in range(2):
        await job_in(engine, "failed", name="mail", errors=error())
    assert "more: only the newest 2,000 failed jobs were looked at" in await cli("failures")
    assert "0 jobs retried: only the newest" in await cli("retry", "--name", "mail", "--error-class", "KeyError")
    for command in ("failures", "retry"):
        assert "2,000" in await cli(command, "--help")


@pytest.mark.parametrize("as_json", [True, False])
async def test_a_live_view_goes_on_until_it_is_interrupted(engine, database_url, tmp_path, as_json):
    """Also through a time without a database, here: without its tables."""
    await add_job(engine, "pdf")
    arguments = ["insights", "--watch", "--interval", "0.1", *(["--json"] if as_json else [])]
    with process(*arguments, url=database_url, cwd=tmp_path) as running:
        assert running.stdout is not None
        lines: list[str] = []

        async def says(words: str) -> None:
            while not lines or words not in lines[-1]:
                lines.append(await asyncio.to_thread(running.stdout.readline))
                assert lines[-1], lines

        async with asyncio.timeout(50):
            await says('"pending": 1' if as_json else "1 due")
            await add_job(engine, "pdf")
            await says('"pending": 2' if as_json else "2 due")
            await raw(engine, "ALTER TABLE queue_kit_job RENAME TO away")
            await says('"error"' if as_json else "no answer")
            await raw(engine, "ALTER TABLE away RENAME TO queue_kit_job")
            await says('"pending": 2' if as_json else "2 due")
            running.send_signal(signal.SIGINT)
            _, errors = await asyncio.to_thread(running.communicate, timeout=30)
    assert (running.returncode, errors) == (0, "")


def test_a_live_view_on_a_terminal_keeps_the_screen_up_to_date(sqlite_path, tmp_path):
    """With rich; a pseudo-terminal is a terminal to it."""
    pty = pytest.importorskip("pty")
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "queue_kit", "insights", "--watch", "--interval", "0.1"]
    environment = {**os.environ, VARIABLE: sqlite_url(sqlite_path), "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as running:
        os.close(theirs)
        seen = b""
        while seen.count(b"0 due, 0 scheduled") < 2:
            assert select.select([ours], [], [], 30)[0], seen
            seen += os.read(ours, 4096)
        running.send_signal(signal.SIGINT)
        while True:  # until it has closed its side, or it would wait for a reader
            assert select.select([ours], [], [], 30)[0], seen
            try:
                if not os.read(ours, 4096):
                    break
            except OSError:
                break
        assert running.wait(30) == 0
    os.close(ours)
    assert b"\x1b[?1049h" in seen  # the alternate screen, so that what stood there comes back


# --- check ------------------------------------------------------------------------------------------------------------


async def test_a_healthy_database_is_said_to_be(engine, cli):
    said = await cli("check")
    assert "BAD" not in said
    assert "every index and trigger is there" in said
    report = json.loads(await cli("check", "--json"))
    assert report["ok"] is True
    about = {finding["about"] for finding in report["findings"]}
    assert about >= {"schema", "snapshots", "indexes"}
    if engine.dialect.name == "postgresql":
        assert about == {"schema", "server", "connections", "snapshots", "bloat", "indexes", "locks"}
    else:
        assert about == {"schema", "snapshots", "indexes", "locks"}


@pytest.mark.parametrize("index", ["queue_kit_job_ready", "queue_kit_job_failed_name"])
async def test_a_missing_index_is_named(engine, cli, index):
    await raw(engine, f"DROP INDEX {index}")
    said = await cli("check", status=1)
    assert f"BAD  {index} is missing, invalid or off" in said
    assert json.loads(await cli("check", "--json", status=1))["ok"] is False


async def test_an_invalid_index_and_a_trigger_that_is_off_are_named(pg_engine, postgres_url):
    await raw(pg_engine, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'queue_kit_job_cron'::regclass")
    await raw(pg_engine, "ALTER TABLE queue_kit_job DISABLE TRIGGER queue_kit_job_place")
    result = await checked(postgres_url)
    assert result.exit_code == 1
    assert "queue_kit_job_cron, queue_kit_job_place are missing, invalid or off" in result.output


async def checked(url: str) -> Result:
    return await invoke("check", url=url)


@pytest.mark.parametrize(("used", "status"), [(90, 0), (91, 1)])
async def test_that_few_connections_are_left_is_told(postgres_url, monkeypatch, used, status):
    monkeypatch.setattr(_health, "_CONNECTIONS", text(f"SELECT 100 AS most, {used} AS used"))
    said = await checked(postgres_url)
    assert (said.exit_code, f"{used} of 100 connections are in use" in said.output) == (status, True)
    assert ("lower the pools" in said.output) is (status == 1)


async def test_a_standby_is_told(postgres_url, monkeypatch):
    monkeypatch.setattr(_health, "_IN_RECOVERY", text("SELECT true"))
    said = await checked(postgres_url)
    assert (said.exit_code, "BAD  the server is a standby: a worker needs the primary" in said.output) == (1, True)


@pytest.mark.parametrize("holds", ["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT pg_current_xact_id()"])
async def test_an_old_transaction_is_named(pg_engine, postgres_url, monkeypatch, holds):
    """As long as it keeps dead rows: by its snapshot, or by what it has written."""
    monkeypatch.setattr(_health, "LONG_SNAPSHOT", 0.0)
    async with pg_engine.connect() as user:
        await user.execute(text(holds))
        pid = await user.scalar(text("SELECT pg_backend_pid()"))
        result = await checked(postgres_url)
    assert result.exit_code == 1
    assert f"connection {pid} of " in result.output
    assert "(idle in transaction)" in result.output
    assert (await checked(postgres_url)).exit_code == 0


async def test_an_old_transaction_that_keeps_no_dead_rows_is_not_blamed_for_them(pg_engine, postgres_url, monkeypatch):
    monkeypatch.setattr(_health, "LONG_SNAPSHOT", 0.0)
    async with pg_engine.connect() as user:
        await user.scalar(text("SELECT count(*) FROM queue_kit_job"))  # READ COMMITTED
        await user.execute(text("SET LOCAL application_name = 'idle'"))  # ends the query, whose portal has a snapshot
        result = await checked(postgres_url)
    assert (result.exit_code, "no old transaction keeps dead rows" in result.output) == (0, True), result.output


async def test_dead_rows_that_nobody_cleans_up_are_told(pg_engine, postgres_url, monkeypatch):
    await raw(pg_engine, "ALTER TABLE queue_kit_job SET (autovacuum_enabled = false)")
    said = await checked(postgres_url)
    assert (said.exit_code, "autovacuum is off for it" in said.output) == (1, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_health, "_DEAD", text(str(_health._DEAD).replace("true AS server", "false AS server")))
        assert "autovacuum is off for the whole server" in (await checked(postgres_url)).output
    await raw(pg_engine, "ALTER TABLE queue_kit_job RESET (autovacuum_enabled)")
    assert (await checked(postgres_url)).exit_code == 0
    monkeypatch.setattr(_health, "MANY_DEAD", -1)
    said = await checked(postgres_url)
    assert (said.exit_code, "was not vacuumed for ten minutes" in said.output) == (1, True)


async def test_a_log_that_a_reader_holds_up_is_told(sqlite_path, monkeypatch):
    monkeypatch.setattr(_health, "LONG_LOG", -1)
    said = await checked(sqlite_url(sqlite_path))
    assert (said.exit_code, "a process reads in one transaction for too long" in said.output) == (1, True)


async def locks_of(url: str, *, status: int) -> tuple[str, set[str]]:
    """What a check says of locks, and what else it has looked at."""
    result = await invoke("check", "--json", url=url)
    found = {finding["about"]: finding["words"] for finding in json.loads(result.stdout)["findings"]}
    assert result.exit_code == status, found
    return found.pop("locks"), set(found)


async def test_who_holds_and_who_waits_for_a_lock_is_named_and_hides_no_other_finding(pg_engine, postgres_url):
    """A lock that a long transaction keeps another from having, and everybody waits behind it."""
    told = pg_engine.execution_options(isolation_level="REPEATABLE READ")
    async with told.connect() as holder, pg_engine.connect() as waiter:
        await holder.execute(text("SET LOCAL application_name = 'a report'"))
        await holder.execute(text("SELECT 'geheim', count(*) FROM queue_kit_job"))
        pids = [await each.scalar(text("SELECT pg_backend_pid()")) for each in (holder, waiter)]
        locking = asyncio.create_task(waiter.execute(text("LOCK TABLE queue_kit_job")))
        await until(lambda: waits_for_a_lock(pg_engine))
        said, others = await locks_of(postgres_url, status=1)
        await holder.rollback()
        await locking
    assert others == {"schema", "server", "connections", "snapshots", "indexes"}
    assert "a lock kept the check from looking at bloat: " in said
    holds = f"connection {pids[0]} of [^ ]+ \\(idle in transaction, application a report\\) holds "
    assert re.search(holds + r"AccessShareLock of queue_kit_job in a transaction of \d+ s; ", said), said
    waits = (
        rf"connection {pids[1]} of [^ ]+ \(active, .*\) waits for AccessExclusiveLock of queue_kit_job since \d+ s; "
    )
    assert re.search(waits, said), said
    assert said.endswith(f"to end the first, as one who may: SELECT pg_terminate_backend({pids[0]})")
    assert ("geheim" in said, "LOCK TABLE" in said) == (False, False)
    assert "no lock keeps others" in (await locks_of(postgres_url, status=0))[0]


@pytest.mark.parametrize(
    ("table", "mode", "hidden"),
    [
        ("queue_kit_schema", "ACCESS EXCLUSIVE", {"schema"}),
        ("queue_kit_job", "ACCESS EXCLUSIVE", {"bloat"}),
        ("queue_kit_worker", "ACCESS EXCLUSIVE", set()),
        ("queue_kit_job", "SHARE", set()),
    ],
)
async def test_a_lock_that_lasts_is_told_also_when_only_workers_wait_for_it(
    pg_engine, postgres_url, monkeypatch, table, mode, hidden
):
    monkeypatch.setattr(_locks, "LONG_LOCK", 600.0)
    async with pg_engine.connect() as holder:
        pid = await holder.scalar(text("SELECT pg_backend_pid()"))
        await holder.execute(text(f"LOCK TABLE {table} IN {mode} MODE"))
        if not hidden:
            assert "no lock keeps others" in (await locks_of(postgres_url, status=0))[0]
            monkeypatch.setattr(_locks, "LONG_LOCK", 0.0)
        said, others = await locks_of(postgres_url, status=1)
    assert {"schema", "server", "connections", "snapshots", "bloat", "indexes"} - others == hidden
    lock = f"{mode.title().replace(' ', '')}Lock of {table}"
    assert f"connection {pid} of " in said
    assert f"holds {lock} in a transaction of " in said
    assert f"SELECT pg_terminate_backend({pid})" in said


async def test_a_process_that_keeps_the_lock_of_sqlite_is_told(sqlite_path, monkeypatch):
    monkeypatch.setattr(_locks, "LONG_WRITE", 0.2)
    url = sqlite_url(sqlite_path)
    with contextlib.closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said, others = await locks_of(url, status=1)
        other.execute("ROLLBACK")
        assert said.startswith("a process has held the lock of the file's one writer for 0.2 s: ")
        assert others == {"schema", "snapshots", "indexes"}
        assert await locks_of(url, status=0) == ("nobody keeps the lock of the file's one writer", others)
        other.execute("BEGIN IMMEDIATE")  # the check keeps no lock of its own
        other.execute("ROLLBACK")


async def test_a_worker_is_alive_until_it_is_silent(engine, database_url, cli):
    host = socket.gethostname()
    assert f"no worker of {host} said within 45 s" in await cli("check", "--worker", status=1)
    async with QueueWorker(engine, {"a": nothing}, listen=False):
        for which in ((), (host,), (f"{host}:{os.getpid()}",), (f"pid {os.getpid()}",)):
            assert "that it is alive" in await cli("check", "--worker", *which)
        for which in ("elsewhere", f"{host}:1"):
            assert f"no worker of {which}" in await cli("check", "--worker", which, status=1)

        async def is_missed() -> bool:
            await silence(engine)  # again, since it checks in meanwhile
            found = await invoke("check", "--worker", url=database_url)
            return (found.exit_code, "BAD" in found.output) == (1, True)

        await until(is_missed)


async def test_workers_are_listed(engine, cli):
    assert json.loads(await cli("workers", "--json")) == []
    async with QueueWorker(engine, {"a": nothing, "b": nothing}, listen=False):
        (worker,) = json.loads(await cli("workers", "--json"))
        assert (worker["host"], worker["pid"], worker["jobs"]) == (socket.gethostname(), os.getpid(), [])
        said = await cli("workers")
    assert worker["id"] in said
    assert "a, b" in said


async def test_a_live_view_fits_the_width_of_a_terminal(engine):
    names = ["a" * 200, "mail", "\x1b" * 30]
    for name in names:
        await add_job(engine, name)
    module = sys.modules["queue_kit.cli.insights"]
    for width in (80, 100, 400):
        lines = [unstyle(line) for line in module._lines(await module._look(engine), width)]
        shown = lines[lines.index("") + 1 :]
        assert max(map(len, shown)) <= width
        assert [line.split()[0].endswith("…") for line in shown[1:]].count(True) >= 1
        assert any(line.startswith("mail ") for line in shown)


async def silence(engine: AsyncEngine) -> None:
    silent = {"seen_at": await database_now(engine) - timedelta(seconds=60)}
    async with engine.begin() as connection:
        await connection.execute(update(WORKERS).values(silent))


@pytest.mark.parametrize("command", [["check"], ["check", "--worker"], ["insights"], ["jobs"]], ids=" ".join)
async def test_a_database_that_says_nothing_is_waited_for_so_long(server, command, monkeypatch):
    url = server.database("nobody")
    for module, patience in (("health", "PROBE"), ("insights", "ANSWER"), ("jobs", "ANSWER")):
        monkeypatch.setattr(sys.modules[f"queue_kit.cli.{module}"], patience, 0.2)
    async with Proxy(url) as proxy:
        proxy.mute = True
        through = url_through(proxy, url).render_as_string(hide_password=False)
        result = await invoke(*command, url=through)
    assert "the database did not answer within 0.2 s" in result.output
    assert ("or a lock is held: see `queue-kit check`" in result.output) is (command != ["check"])
    assert result.exit_code == (0 if "--worker" in command else 1)


async def test_a_probe_gives_up_before_whoever_runs_it(pg_engine, postgres_url):
    timeout = int(re.findall(r"timeoutSeconds: (\d+)", RECIPES)[0])
    assert timeout > 2 * PROBE
    async with pg_engine.begin() as connection:
        await connection.execute(text("LOCK TABLE queue_kit_worker"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["queue_kit.cli.health"], "PROBE", 0.2)
            result = await invoke("check", "--worker", url=postgres_url)
    assert (result.exit_code, "did not answer within 0.2 s" in result.output) == (0, True)


MISSING = "the queue's tables are missing"
NEEDS_TABLES = [
    *(
        ["jobs"],
        ["show", "1"],
        ["failures"],
        ["insights"],
        ["workers"],
        ["cron"],
        ["cron", "run", "a"],
        ["cron", "pause", "a"],
    ),
    *(["check"], ["check", "--worker"], ["add", "a"], ["retry", "1"], ["cancel", "--name", "a"], ["bench"]),
]


@pytest.mark.parametrize("command", NEEDS_TABLES, ids=" ".join)
async def test_without_tables_every_command_says_what_to_do(empty_database_url, empty_engine, command):
    async with empty_engine.connect():  # makes SQLite's file
        pass
    result = await invoke(*command, url=empty_database_url)
    assert (result.exit_code, MISSING in result.output) == (1, True), result.output
    assert "run `queue-kit migrate`" in result.output


@pytest.mark.parametrize("command", NEEDS_TABLES, ids=" ".join)
async def test_a_mistyped_path_becomes_no_database(tmp_path, command):
    path = tmp_path / "mistyped.db"
    result = await invoke(*command, url=sqlite_url(path))
    assert (result.exit_code, "there is no file" in result.output) == (1, True), result.output
    assert not path.exists()


@pytest.mark.parametrize("worker", [[], ["--worker"]], ids=str)
async def test_a_script_is_told_what_keeps_a_check_from_looking(empty_database_url, tmp_path, worker):
    async def said(url: str) -> tuple[str, str]:
        command = ["check", *worker]
        runs = [await invoke(*each, url=url) for each in (command, [*command, "--json"])]
        report = json.loads(runs[1].stdout)
        (finding,) = report["findings"]
        assert runs[0].stdout == f"BAD  {finding['words']}\n"
        assert [(run.exit_code, run.stderr) for run in runs] == [(1, "")] * 2
        assert (report["ok"], finding["ok"]) == (False, False)
        return finding["about"], finding["words"]

    engine = engine_for(empty_database_url)
    async with engine.connect():  # makes SQLite's file
        about, words = await said(empty_database_url)
    assert (about, MISSING in words) == ("schema", True)
    await migrate.upgrade(engine)
    await raw(engine, f"DELETE FROM queue_kit_schema WHERE version = {migrate.VERSION}")
    await engine.dispose()
    if not worker:
        about, words = await said(empty_database_url)
        assert (about, "the queue's schema is at version" in words) == ("schema", True)
        about, words = await said("postgresql://nobody@127.0.0.1:1/x")
        assert (about, "the database cannot be reached" in words) == ("database", True)
    about, words = await said(sqlite_url(tmp_path / "mistyped.db"))
    assert (about, "there is no file" in words) == ("database", True)


async def test_a_database_that_does_not_answer_is_no_fault_of_the_worker():
    url = "postgresql://u:geheim@127.0.0.1:1/x"  # pragma: allowlist secret
    result = await invoke("check", "--worker", url=url)
    assert (result.exit_code, "so nobody knows" in result.output) == (0, True)
    assert "geheim" not in result.output
    assert (await invoke("check", url=url)).exit_code == 1


@pytest.mark.parametrize(
    ("outage", "says"),
    [
        ("ALTER DATABASE {0} ALLOW_CONNECTIONS false", "not currently accepting connections"),
        ("REVOKE CONNECT ON DATABASE {0} FROM PUBLIC", "permission denied for database"),
    ],
)
async def test_a_database_that_refuses_connections_is_no_fault_of_the_worker(server, postgres_url, outage, says):
    url = make_url(postgres_url)
    role = f"{url.database}_role"
    through = url.set(username=role).render_as_string(hide_password=False)
    async with server.admin() as admin:
        await admin.execute(f"CREATE ROLE {role} LOGIN")
        await admin.execute(outage.format(url.database))
        try:
            probe = await invoke("check", "--worker", url=through)
            check = await checked(through)
        finally:
            await admin.execute(f"DROP ROLE {role}")
    assert (probe.exit_code, "so nobody knows" in probe.output, says in probe.output) == (0, True, True)
    assert (check.exit_code, says in check.output) == (1, True)


# --- work -------------------------------------------------------------------------------------------------------------

MODULE = """
from queue_kit import Handlers

jobs = Handlers()

@jobs.handler("hello")
async def hello(event, session, job):
    event.log.info("hello from %s", job.data["who"])

@jobs.handler("fails", max_retry_count=1)
async def fails(event, session, job):
    raise ValueError("as it should")

def make():
    return jobs
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a module of handlers."""
    (tmp_path / "hello_jobs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "hello_jobs", raising=False)
    return tmp_path


async def test_handlers_become_a_worker_until_a_signal(app, engine, database_url):
    job_id = await add_job(engine, "hello", {"who": "the test"})
    other = await add_job(engine, "fails")

    async def done() -> bool:
        return (await row_of(engine, job_id)).is_complete

    arguments = ["work", "hello_jobs:jobs", "--include", "hello", "--parallel-count", "3"]
    with process(*arguments, url=database_url, cwd=app) as running:
        try:
            await until(done)
        finally:
            running.send_signal(signal.SIGTERM)
            output, errors = await asyncio.to_thread(running.communicate, timeout=30)
    assert (running.returncode, output) == (0, ""), errors
    assert "hello from the test" in errors
    assert (await row_of(engine, other)).state is JobState.ready


async def test_draining_runs_what_is_due_and_leaves(app, engine, cli):
    for _ in range(3):
        await add_job(engine, "hello", {"who": "me"})
    await add_job(engine, "fails")
    assert "3 completed" in await cli("work", "hello_jobs:make", "--drain", "--exclude", "fails")
    assert "1 failed" in await cli("work", "hello_jobs:jobs", "--drain")
    assert "nothing was due" in await cli("work", "hello_jobs:jobs", "--drain")


async def test_what_does_not_go_together_is_refused(app, cli):
    assert "names without a handler: nobody" in await cli("work", "hello_jobs:jobs", "--include", "nobody", status=1)
    both = ("--include", "hello", "--exclude", "fails")
    assert "not both" in await cli("work", "hello_jobs:jobs", *both, status=1)
    without = await invoke("work", "hello_jobs:jobs", url=None)
    assert (without.exit_code, "say on which database" in without.output) == (2, True)


async def test_uvloop_is_used_when_it_is_there_and_named_when_it_is_not(app, engine, cli, monkeypatch):
    await add_job(engine, "hello", {"who": "me"})
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert "--uvloop needs uvloop: pip install uvloop" in await cli("work", "hello_jobs:jobs", "--uvloop", status=2)
    made: list[asyncio.AbstractEventLoop] = []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop=new_event_loop))
    assert "1 completed" in await cli("work", "hello_jobs:jobs", "--uvloop", "--drain")
    assert len(made) == 1


# --- the recipes ------------------------------------------------------------------------------------------------------

RECIPES = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()


def recipe(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", RECIPES, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here")
    # The paths are the reader's; a unit is refused whose program is not there.
    text = recipe("ini").replace("/srv/app/.venv/bin/queue-kit", sys.executable).replace("/srv/app", str(tmp_path))
    unit = tmp_path / "worker.service"
    unit.write_text(text.replace("User=app", "User=root"))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, timeout=60)
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "worker.service" in line]
    assert about_ours == []


def test_the_recipes_give_a_worker_the_time_to_stop():
    given = re.findall(r"(?:TimeoutStopSec=|terminationGracePeriodSeconds: )(\d+)", RECIPES)
    defaults = {name: each.default for name, each in inspect.signature(QueueWorker).parameters.items()}
    assert len(given) == 2
    assert all(int(seconds) > defaults["grace"] + defaults["cancel_grace"] for seconds in given)
    commands = re.findall(r"queue-kit (\w+)", recipe("ini")) + re.findall(r'"queue-kit", "(\w+)"', RECIPES)
    assert sorted(commands) == ["check", "work", "work"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell):
    queue_kit = Path(sys.executable).with_name("queue-kit")
    if not queue_kit.exists():
        pytest.skip("the command is not installed beside the interpreter")
    environment = {**os.environ, "_QUEUE_KIT_COMPLETE": f"{shell}_source"}
    done = subprocess.run([queue_kit], env=environment, capture_output=True, text=True, timeout=60)
    assert "_QUEUE_KIT_COMPLETE" in done.stdout


def test_every_command_is_in_the_table_of_the_document():
    table = RECIPES.partition("| command | for |")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {command for cell in cells for command in re.findall(r"`(\w+)", cell)} == set(main.commands)


def test_the_options_that_the_document_names_are_those_of_a_command():
    commands = [main, *main.commands.values(), *main.commands["cron"].commands.values()]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", RECIPES)) - {"--no-cache-dir", "--help"}  # pip's, click's own
    assert len(named) > 10
    assert named - known == set()
