"""`python -m benchmarks`: do the runs round by round, judge their medians, and write the report."""

import asyncio
import json
import re
import shlex
import signal
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import charts, machine, peers, report, server, targets
from benchmarks.plan import CEILING, FULL, OURS, PEERS, QUICK, Run, chosen, plan
from benchmarks.rounds import measure
from benchmarks.targets import TARGETS, Judged, Result

HERE = Path(__file__).parent
NOT_DURABLE = "NOT DURABLE: this server may lose commits (a setting of its durability is off, or it lies in memory)"


def _listed(_context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    known = TARGETS if option.name == "only" else PEERS
    words = None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words or ():
        if word not in known:
            raise click.BadParameter(f"{word!r} is none of {', '.join(known)}")
    return words


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Less of everything, in under five minutes on two cores.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often most runs are done; --quick does the long ones once.",
)
@click.option("--jobs", type=click.IntRange(min=100), help="Jobs of a drain; few say little.  [default: 20000]")
@click.option("--only", callback=_listed, metavar="T1,T7", help=f"Some of {', '.join(TARGETS)} (G: growth) only.")
@click.option("--peers", "wanted", callback=_listed, metavar="NAMES", help=f"Some of {', '.join(PEERS)} only.")
@click.option("--no-peers", is_flag=True, help="queue_kit and a raw loop only.")
@click.option("--huge", is_flag=True, help="Also the cost of a claim among ten million jobs.")
@click.option(
    "--database-url",
    envvar="QUEUE_KIT_BENCH_DATABASE_URL",
    show_envvar=True,
    help="A server where databases named qk_bench_* may be made and dropped; else one is started.",
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=HERE / "results", help="Where reports go."
)
def main(
    *,
    quick: bool,
    rounds: int,
    jobs: int | None,
    only: tuple[str, ...] | None,
    wanted: tuple[str, ...] | None,
    no_peers: bool,
    huge: bool,
    database_url: str | None,
    output: Path,
) -> None:
    """Measure queue_kit beside other job queues: about half an hour, or --quick.

    A queue that is not installed is left out: `pip install --group benchmarks` (pip 25.1 and later) installs them. arq
    needs a Redis, named in QUEUE_KIT_BENCH_REDIS_URL.

    \b
    Exit status: 0 all that must hold holds, 1 something does not or a run was wrong, 2 wrong usage.
    """
    asked = only or TARGETS
    absent = {name: why for name in PEERS if (why := _absent(name, wanted, no_peers=no_peers))}
    queues = {OURS, CEILING, *PEERS} - set(absent)
    for name, why in absent.items():
        click.echo(f"without {name}: {why}", err=True)
    scale = QUICK if quick else FULL
    if jobs is not None:
        scale = replace(scale, jobs=jobs, sqlite=jobs)
    runs = chosen(plan(scale, huge=huge), asked, queues, targets.references(asked))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or databases and processes would stay behind
    with server.serving(database_url) as url:
        settings = asyncio.run(server.settings(url))
        if not server.durable(settings):
            click.secho(NOT_DURABLE, fg="red", bold=True, err=True)
        results = asyncio.run(measure(runs, url, rounds, quick=quick))
    judged = targets.judge_all(results, asked)
    often = f"{rounds} rounds, twice as many where it is close{', heavy runs once' if quick else ''}"
    mode = f"{'quick' if quick else 'full'}, {often}"
    click.echo(_report(output, _about(mode, settings, results), runs, judged, results, absent))
    if not server.durable(settings):
        click.secho(NOT_DURABLE, fg="red", bold=True)
    click.echo(f"\nOthers kept {report.others(results)} busy before the runs; with more than 0.3, rates come out low.")
    click.echo(f"{report.summary(judged)}. The whole report: {output / 'result.md'}")
    sys.exit(targets.status(judged, results))


def _about(mode: str, settings: dict[str, str], results: list[Result]) -> dict[str, object]:
    """When, how and on what this was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "mode": mode,
        "machine": machine.describe(),
        "kept busy by others before the runs": report.others(results),
        "PostgreSQL": settings,
        "durable": "yes" if server.durable(settings) else NOT_DURABLE,
    }


def _command() -> str:
    """What was typed, without any password."""
    return re.sub(r"(://[^:@/\s]*):[^@\s]*@", r"\1:***@", shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]))


def _absent(name: str, wanted: tuple[str, ...] | None, *, no_peers: bool) -> str:
    """Why a peer is left out; empty when it is not."""
    if no_peers or (wanted is not None and name not in wanted):
        return "not asked for"
    return peers.missing(name)


def _report(
    output: Path,
    about: dict[str, object],
    runs: list[Run],
    judged: list[Judged],
    results: list[Result],
    absent: dict[str, str],
) -> str:
    """Write the report's files; returns what is to be shown of it."""
    output.mkdir(parents=True, exist_ok=True)
    queues = dict.fromkeys(run.queue for run in runs)
    versions = {name: peers.versions(name) for name in queues}
    settings = {name: peers.kind(name).setting for name in queues}
    drawn = dict(charts.charts(runs, results))
    for name, drawing in drawn.items():
        (output / name).write_text(drawing)
    tables = {
        "Targets": report.judged_table(judged, {(run.target, run.label): run.note for run in runs}),
        "All runs": report.measured_table(runs, results),
        "Queues": report.queues_table(settings, versions, absent),
    }
    (output / "result.md").write_text(report.document(about, tables, drawn))
    raw = about | {
        "versions": versions,
        "absent": absent,
        "checks": [asdict(each) for each in judged],
        "results": [asdict(each) for each in results],
    }
    (output / "result.json").write_text(json.dumps(raw, indent=1) + "\n")
    return "\n\n".join((tables["Targets"], report.compared(runs, results), tables["Queues"]))


if __name__ == "__main__":
    main()
