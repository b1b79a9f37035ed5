"""Workers on several hosts, each in a network of its own, and one of them cut off: the others take over within a lease,
and what the lost one still wants to write is refused.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import JobState, NewJob, add_job, add_jobs, migrate
from tests.crowd import SHARING, Crowd, Member, crowd
from tests.database.running import worker_rows
from tests.postgres import postgres
from tests.support import all_complete, effects, make_effects, row_of, until

DATABASE_ADDRESS = "10.71.0.1"
NAMES = ("alder", "birch", "cedar")
LEASE = 1.5


class Host:
    """A host name and a network of its own. They last as long as a process that ends with this one."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = ["unshare", "--net", "--uts", "sh", "-c", 'hostname "$0" && echo && exec cat', name]
        pipe = subprocess.PIPE
        self._holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            raise OSError(self._holder.communicate()[1].decode())

    @property
    def within(self) -> list[str]:
        """The command that runs another one there."""
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--uts"]

    def ip(self, words: str) -> None:
        done = subprocess.run([*self.within, "ip", *words.split()], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"ip {words}: {done.stderr}")

    def close(self) -> None:
        self._holder.communicate()


class Network:
    """The database's host and those of workers, on one switch."""

    def __init__(self) -> None:
        self._hosts = contextlib.ExitStack()
        try:
            self.database = self._host("database")
            for words in (
                "link set lo up",
                "link add switch type bridge",
                f"addr add {DATABASE_ADDRESS}/24 dev switch",
                "link set switch up",
            ):
                self.database.ip(words)
            self.hosts = {name: self._plugged_in(name, number) for number, name in enumerate(NAMES, start=2)}
        except BaseException:
            self.close()
            raise

    def _host(self, name: str) -> Host:
        host = Host(name)
        self._hosts.callback(host.close)
        return host

    def _plugged_in(self, name: str, number: int) -> Host:
        host = self._host(name)
        self.database.ip(f"link add {name} type veth peer name eth0 netns {host._holder.pid}")
        self.database.ip(f"link set {name} master switch up")
        for words in ("link set lo up", f"addr add 10.71.0.{number}/24 dev eth0", "link set eth0 up"):
            host.ip(words)
        return host

    def unplug(self, name: str) -> None:
        """Cut a host's cable: nothing passes, and nobody is told."""
        self.database.ip(f"link set {name} down")

    def plug_in(self, name: str) -> None:
        self.database.ip(f"link set {name} up")

    def close(self) -> None:
        self._hosts.close()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("only root may make networks")
    for program in ("ip", "unshare", "nsenter", "setpriv", "hostname"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here to make networks with")
    try:
        made = Network()
    except OSError as error:
        pytest.skip(f"this machine allows no networks of one's own: {error}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def far_server(network: Network) -> Iterator[str]:
    """A server on the database's host; the URL of its socket, which has no network in between."""
    with postgres(address=DATABASE_ADDRESS, within=network.database.within) as url:
        yield url


@pytest.fixture
async def here(far_server: str) -> AsyncIterator[AsyncEngine]:
    """An engine that no cable can cut, on freshly made tables."""
    engine = create_async_engine(far_server)
    await migrate.upgrade(engine)
    await make_effects(engine)
    yield engine
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE effect")
    await migrate.downgrade(engine)
    await engine.dispose()


@pytest.fixture
def there(far_server: str) -> str:
    """The URL of the same database over the network."""
    url = make_url(far_server).set(host=DATABASE_ADDRESS, query={})
    return url.render_as_string(hide_password=False)


async def start(workers: Crowd, network: Network, *names: str) -> list[Member]:
    """Start a worker on each of these hosts."""
    made = [
        await workers.start(within=network.hosts[name].within, at=name, lease=LEASE, poll_interval=0.3)
        for name in names
    ]
    for worker in made:
        await worker.says("started")
    return made


async def test_three_hosts_share_the_work(network, here, there):
    async with crowd(SHARING, there) as workers:
        await start(workers, network, *NAMES)
        assert {row.host for row in await worker_rows(here)} == set(NAMES)
        ids = await add_jobs(here, [NewJob("write"), NewJob("idle")] * 60)
        await all_complete(here)
        assert await asyncio.gather(*(worker.stop() for worker in workers.all)) == [0, 0, 0]
    said = Counter(line for worker in workers.all for line in worker.lines if line.startswith("completed"))
    assert said == {f"completed {job_id}": 1 for job_id in ids}
    assert await effects(here) == ids[::2]
    assert min(worker.count("completed") for worker in workers.all) > 0


async def test_a_host_that_is_cut_off_loses_its_jobs_to_the_others_and_goes_on_when_it_is_back(
    network, here, there, tmp_path
):
    cut, later = tmp_path / "cut", tmp_path / "later"
    async with crowd(SHARING, there) as workers:
        (alder,) = await start(workers, network, "alder")
        # One ends in a transaction of its own, one in the worker's, both while nothing can be written; one runs on.
        data = [{"until": f"{cut}", "write": True}, {"until": f"{cut}", "write": False}]
        ids = await add_jobs(here, [NewJob("wait", each) for each in [*data, {"until": f"{later}", "write": True}]])
        for job_id in ids:
            await alder.says(f"running {job_id}")
        others = await start(workers, network, "birch", "cedar")

        network.unplug("alder")
        try:
            held = [await row_of(here, job_id) for job_id in ids]
            cut.touch()
            for job_id in ids[:2]:
                await alder.says(f"through {job_id}")
            await until(lambda: running(others) == set(ids))
            await alder.says(f"aborted {ids[2]} LeaseLost")
            later.touch()
            await all_complete(here)
            assert alder.count("lost") == 0  # it cannot know yet
        finally:
            network.plug_in("alder")
        for job_id in ids:
            await alder.says(f"lost {job_id}")

        again = await add_job(here, "at alder")
        await alder.says(f"completed {again}")
        assert await asyncio.gather(*(worker.stop() for worker in workers.all)) == [0, 0, 0]
    assert await effects(here) == [ids[0], ids[2]]
    for before, job_id in zip(held, ids, strict=True):
        row = await row_of(here, job_id)
        assert (row.state, row.claim_no, row.lost, row.retry_count) == (JobState.completed, 2, 1, 0)
        assert row.worker_id != before.worker_id
        assert row.updated_at > before.lease_until


def running(workers: list[Member]) -> set[int]:
    """The jobs that these have begun."""
    return {int(line.split()[1]) for worker in workers for line in worker.lines if line.startswith("running")}
