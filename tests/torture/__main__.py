"""`python -m tests.torture`: one run, or with `--mutants` one for each mistake that the checks must find. The status is
0 only when everything holds."""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.torture.mutants import MUTANTS
from tests.torture.plan import CHAOS
from tests.torture.report import as_text, report
from tests.torture.run import Options, run


def _arguments() -> argparse.Namespace:
    usual = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of chaos; the rest takes some 20 more")
    parser.add_argument("--workers", type=int, default=usual.workers, help="processes that run jobs")
    parser.add_argument("--pullers", type=int, default=usual.pullers, help="jobs at a time in each of them")
    parser.add_argument("--enqueuers", type=int, default=usual.enqueuers, help="processes that add jobs")
    parser.add_argument("--lease", type=float, default=usual.lease, help="seconds")
    parser.add_argument("--poll", type=float, default=usual.poll, help="seconds")
    parser.add_argument("--chaos", default=",".join(CHAOS), help="any of these, with commas: %(default)s")
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default=usual.database)
    parser.add_argument("--dsn", help="the URL of a server to use instead of one of our own; it is not restarted")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="make one mistake")
    parser.add_argument("--mutants", action="store_true", help="make each mistake in turn; one that is not found fails")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--keep", type=Path, help="a new folder, in which ledgers and logs stay")
    return parser.parse_args()


def _options(given: argparse.Namespace) -> Options:
    return Options(
        seed=given.seed,
        seconds=given.seconds,
        workers=given.workers,
        pullers=given.pullers,
        enqueuers=given.enqueuers,
        lease=given.lease,
        poll=given.poll,
        chaos=tuple(filter(None, given.chaos.split(","))),
        database=given.database,
        dsn=given.dsn,
        mutant=given.mutant,
    )


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)  # what another run left there would be taken for this one's
        yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="torture-") as made:
            yield Path(made)


def _once(options: Options, kept: Path | None) -> dict[str, Any]:
    with _folder(kept) as folder:
        return report(asyncio.run(run(options, folder)))


def _all_mutants(given: argparse.Namespace) -> dict[str, Any]:
    """Each mistake in a run of its own; `holds` when all are found."""
    found: dict[str, Any] = {}
    for name, mutant in MUTANTS.items():
        began = time.monotonic()
        options = Options(
            seed=given.seed,
            seconds=mutant.seconds,
            poll=mutant.poll,
            chaos=mutant.chaos,
            dsn=given.dsn,
            mutant=name,
        )
        checks = _once(options, None)["checks"]
        by = {check: count for check, count in checks.items() if count}
        found[name] = {
            "by": by,
            "seconds": round(time.monotonic() - began, 1),
            "found": any(map(by.get, mutant.checks)),
        }
        print(
            f"{name}: {'found' if found[name]['found'] else 'SURVIVED'} in {found[name]['seconds']} s by {by}",
            flush=True,
        )
    return {"mutants": found, "holds": all(each["found"] for each in found.values())}


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process may stay behind
    if given.mutants:
        figures = _all_mutants(given)
    else:
        options = _options(given)
        print(f"plan of seed {options.seed}:", ", ".join(f"{deed.kind} at {deed.at:.1f}" for deed in options.deeds))
        figures = _once(options, given.keep)
        print(as_text(figures))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
