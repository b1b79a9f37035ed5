"""The command line: its refusals, and a migration and a worker as processes of their own."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url

from queue_kit import ConfigurationError, add_job, get_job, migrate
from queue_kit._engine import read_url
from queue_kit.cli import main
from tests.conftest import sqlite_url
from tests.support import until

VARIABLE = "QUEUE_KIT_DATABASE_URL"
SECRET = "Tr0ub4dor"  # pragma: allowlist secret


class Done(NamedTuple):
    status: int
    output: str
    errors: str


def run(*arguments: str, cwd: Path, url: str) -> Done:
    """A command as a process."""
    command = [sys.executable, "-m", "queue_kit", *arguments]
    environment = {**os.environ, VARIABLE: url}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


def invoke(*arguments: str, url: str | None) -> Result:
    """A command in this process; all that it writes is one text in `output`."""
    return CliRunner().invoke(main, arguments, prog_name="queue-kit", env={VARIABLE: url})


def words(result: Result) -> str:
    return " ".join(result.output.split())


def test_migrate_then_check(empty_database_url, tmp_path):
    before = invoke("check", url=empty_database_url)
    assert (before.exit_code, before.stderr) == (1, "")
    assert before.stdout.startswith("BAD  ")
    assert "the queue's tables are missing: run `queue-kit migrate`" in before.stdout
    done = run("migrate", cwd=tmp_path, url=empty_database_url)
    assert done == Done(0, f"the schema went from version 0 to {migrate.VERSION}\n", "")
    again = invoke("migrate", "--database-url", empty_database_url, url="the argument goes before")
    assert (again.exit_code, again.output) == (0, f"the schema is at version {migrate.VERSION} already\n")
    after = invoke("check", url=empty_database_url)
    # A server of the tests may be set to leave dead rows lying.
    assert [line for line in after.stdout.splitlines() if line[:2] != "ok" and "autovacuum is off" not in line] == []
    assert (after.exit_code, after.stderr) == ("BAD" in after.stdout, "")
    assert after.stdout.startswith(f"ok   the schema is at version {migrate.VERSION}, as a worker needs it\n")


def test_the_plain_forms_of_a_url_do(postgres_url, tmp_path, monkeypatch):
    for scheme in ("postgres", "postgresql"):
        url = make_url(postgres_url).set(drivername=scheme).update_query_dict({"sslmode": "disable"})
        done = invoke("migrate", url=url.render_as_string(hide_password=False))
        assert (done.exit_code, done.stderr) == (0, "")
    monkeypatch.chdir(tmp_path)
    assert invoke("migrate", url="sqlite:///with space 'and quote.db").exit_code == 0
    assert (tmp_path / "with space 'and quote.db").exists()


@pytest.mark.parametrize(
    ("url", "status", "problem"),
    [
        (f"postgresql://u:{SECRET}@127.0.0.1:1/name", 1, "Connect call failed"),
        (f"postgresql://u:{SECRET}@no.such.host.invalid/name", 1, r"the database cannot be reached \(\[Errno -\d+\]"),
        (
            f"postgresql://u:{SECRET}@127.0.0.1:1/name?{SECRET}=1",
            2,
            "has an option after \\? that there is not; there are ",
        ),
        (f"postgresql://u:{SECRET}@127.0.0.1:99999/name", 2, "port is from 1 to 65535"),
        (f"postgresql://u:x@{SECRET}@host/name", 2, "has an @ too many"),
        (f"postgresql://u:x@y/{SECRET}@host/name", 2, "has an @ too many"),
        (f"postgresql://u:x/{SECRET}@no.such.host.invalid/name", 1, r"the database cannot be reached \(\[Errno -\d+\]"),
        (f"postgresql://u:{SECRET}@host:port/name", 2, "cannot be read"),
        (f"mysql://u:{SECRET}@host/name", 2, "the queue runs on postgresql and sqlite, not on mysql"),
        (f"u:{SECRET}@host/name", 2, "cannot be read"),
        ("sqlite://", 1, "takes the path of a file"),
        ("sqlite:///:memory:", 1, "takes the path of a file"),
        ("sqlite:///no/such/folder/queue.db", 1, "the folder of 'no/such/folder/queue.db' does not exist"),
        ("", 2, "Missing option|cannot be read"),
        (None, 2, r"Missing option '--database-url' \(env var: 'QUEUE_KIT_DATABASE_URL'\)"),
    ],
)
def test_a_bad_url_is_explained_without_its_password(url, status, problem):
    for command in ("check", "migrate"):
        result = invoke(command, url=url)
        assert result.exit_code == status, result.output
        assert re.search(problem, words(result)), result.output
        assert SECRET not in result.output


def test_what_a_server_says_is_masked(server):
    url = make_url(server.url).set(password=SECRET, database=SECRET)
    done = invoke("check", url=url.render_as_string(hide_password=False))
    assert (done.exit_code, done.stderr) == (1, "")
    assert 'database "***" does not exist' in done.output or "authentication failed" in done.output
    assert SECRET not in done.output


def test_a_password_with_any_character_is_read_when_it_is_written_as_it_should():
    assert read_url("postgres://u:a%40b%2Fc%3A@host/name").password == "a@b/c:"  # pragma: allowlist secret
    with pytest.raises(ConfigurationError):
        read_url("postgres://u:a@b/c:@host/name")


@pytest.mark.parametrize("arguments", [["bogus"], ["check", "--bogus"], ["work"], ["check", "argument"]])
def test_wrong_usage(arguments):
    result = invoke(*arguments, url="sqlite:///queue.db")
    assert result.exit_code == 2
    assert "Usage: queue-kit" in result.output


def test_help_documents_the_variable_and_the_statuses():
    text = words(invoke("--help", url=None))
    assert VARIABLE in text
    assert "0 all is well, 1 it failed or does not fit, 2 wrong usage" in text
    for command in main.commands:
        assert "Example:" in invoke(command, "--help", url=None).output
    assert "&& systemctl" not in invoke("check", "--help", url=None).output  # docs/cli.md advises against it


# --- work -------------------------------------------------------------------------------------------------------------

MODULE = """
import os
from queue_kit import Handlers, QueueWorker, sqlite_engine
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

url = os.environ["QUEUE_KIT_DATABASE_URL"]
jobs = Handlers()

@jobs.handler("hello")
async def hello(event, session, job):
    event.log.info("hello from %s", job.data["who"])

def make():
    sqlite = url.startswith("sqlite")
    engine = sqlite_engine(make_url(url).database) if sqlite else create_async_engine(url)
    return QueueWorker(engine, jobs, poll_interval=0.1)

async def make_async():
    return make()

class nested:
    worker = make()

worker = make()
number = 7

def forgot_to_return():
    make()

def breaks():
    raise LookupError("in the factory")

async def breaks_later():
    breaks()

class Application:
    def __call__(self, scope, receive, send): ...

application = Application()
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a module `app_jobs` that has workers, and things that are none."""
    (tmp_path / "app_jobs.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import no_such_requirement\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "app_jobs", raising=False)
    return tmp_path


async def test_work_runs_jobs_until_a_signal(app, engine, database_url):
    job_id = await add_job(engine, "hello", {"who": "the test"})

    async def done() -> bool:
        job = await get_job(engine, job_id)
        return job is not None and job.is_complete

    command = [sys.executable, "-m", "queue_kit", "work", "app_jobs:make_async"]
    environment = {**os.environ, VARIABLE: database_url}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=app, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            await until(done)
        finally:
            process.send_signal(signal.SIGTERM)
            output, errors = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0, errors
    assert "hello from the test" in errors
    assert output == ""


def test_work_on_a_database_without_tables_says_what_to_do(app, empty_database_url):
    done = run("work", "app_jobs:worker", cwd=app, url=empty_database_url)
    assert (done.status, done.output) == (1, "")
    assert done.errors.startswith("Error: the queue's tables are missing: run `queue-kit migrate`")


@pytest.mark.parametrize("attribute", ["worker", "nested.worker", "make", "make_async"])
def test_work_finds_its_worker_and_says_that_no_database_answers(app, attribute):
    result = invoke("work", f"app_jobs:{attribute}", url=f"postgresql+asyncpg://u:{SECRET}@127.0.0.1:1/name")
    assert result.exit_code == 1
    assert "Error: the database cannot be reached ([Errno 111]" in result.output
    assert "is the server up, and --database-url (or QUEUE_KIT_DATABASE_URL) right?" in result.output
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("app_jobs", "'app_jobs' is not of the form MODULE:ATTR"),
        (":worker", "':worker' is not of the form MODULE:ATTR"),
        (".app_jobs:worker", "'.app_jobs:worker' is not of the form MODULE:ATTR"),
        ("no_such_module:worker", "there is no module 'no_such_module' here or among the installed ones"),
        ("app_jobs.deeper:worker", "there is no module 'app_jobs.deeper'"),
        ("app_jobs:nothing", "app_jobs has no 'nothing'"),
        ("app_jobs:number", "app_jobs:number gives an object of type int, not a QueueWorker or Handlers"),
        ("app_jobs:application", "app_jobs:application gives an object of type Application, which cannot be called"),
        (
            "app_jobs:hello",
            "an object of type NamedHandler, which cannot be called without arguments: it is no QueueWorker",
        ),
        ("app_jobs:Application.__call__", "which cannot be called without arguments"),
        ("app_jobs:forgot_to_return", "app_jobs:forgot_to_return gives None, not a QueueWorker"),
    ],
)
def test_work_with_a_bad_target_is_wrong_usage(app, target, problem):
    result = invoke("work", target, url=sqlite_url(app / "queue.db"))
    assert result.exit_code == 2
    assert problem in words(result)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--database-url", "sqlite:///nowhere.db"),
        ("--include", "hello"),
        ("--exclude", "hello"),
        ("--parallel-count", "2"),
    ],
)
@pytest.mark.parametrize("attribute", ["worker", "make_async"])
def test_what_a_worker_has_already_is_no_option_of_work(app, attribute, option, value):
    result = invoke("work", f"app_jobs:{attribute}", option, value, url=sqlite_url(app / "queue.db"))
    assert result.exit_code == 2
    assert option in words(result)
    assert "are for Handlers, not for a QueueWorker" in words(result)


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("needs_more:worker", ModuleNotFoundError("No module named 'no_such_requirement'")),
        ("app_jobs:breaks", LookupError("in the factory")),
        ("app_jobs:breaks_later", LookupError("in the factory")),
    ],
)
def test_an_error_in_the_users_module_is_not_hidden(app, target, error):
    result = invoke("work", target, url=sqlite_url(app / "queue.db"))
    assert result.exit_code == 1
    assert repr(result.exception) == repr(error)


@pytest.mark.parametrize("attribute", ["breaks", "breaks_later"])
def test_the_last_line_names_the_function_that_raised(app, attribute):
    done = run("work", f"app_jobs:{attribute}", cwd=app, url=sqlite_url(app / "queue.db"))
    assert done.status == 1
    assert "in breaks" in done.errors
    assert done.errors.splitlines()[-1] == f"queue-kit work: app_jobs:{attribute} was called, and raised this"
