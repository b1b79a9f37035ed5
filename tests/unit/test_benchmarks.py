"""The pure half of the benchmarks: how rounds become a verdict, and what is drawn of them."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("benchmarks", reason="they are not part of the package, only of a checkout")

from benchmarks import chart, machine, report, run, server, workloads
from benchmarks.measure import WrongRun, check_runs
from benchmarks.plan import CEILING, FULL, OURS, PEERS, QUICK, Run, chosen, plan
from benchmarks.targets import (
    CHECKS,
    TARGETS,
    Check,
    Judged,
    Result,
    Spread,
    Verdict,
    judge,
    references,
    spread,
    status,
)

SVG = "{http://www.w3.org/2000/svg}"
FASTER = Check("T1", "drain, to a peer", must=2, aim=4, against=("T1", "peer"))
PLAIN = Check("T2", "drain", must=100)
QUICKER = Check("T7", "pickup", "p50", "ms", must=4, at_most=True)
IDLE = Check("T12", "idle", "percent", "%", must=0.5, at_most=True, control="bare_percent")


def rounds(target: str, label: str, *values: float, metric: str = "rate") -> list[Result]:
    return [Result(target, label, label, number, {metric: value}) for number, value in enumerate(values, 1)]


def wrong(target: str, label: str, number: int = 1) -> Result:
    return Result(target, label, label, number, {}, "wrong: 1 jobs ran 2 times")


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], Spread(3, 3, 3)), ([5.0, 1.0, 3.0], Spread(1, 3, 5)), ([4.0, 1.0], Spread(1, 2.5, 4)), ([], None)],
)
def test_rounds_come_to_a_median_between_extremes(values, expected):
    assert spread(values) == expected


@pytest.mark.parametrize(("values", "verdict"), [([90, 100, 500], "pass"), ([500, 99, 98], "FAIL")])
def test_the_median_must_reach_what_must_hold(values, verdict):
    assert judge(PLAIN, rounds("T2", OURS, *values)).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(4.0, "pass"), (4.1, "FAIL")])
def test_some_figures_must_not_be_above(value, verdict):
    assert judge(QUICKER, rounds("T7", OURS, value, metric="p50")).verdict == verdict


@pytest.mark.parametrize(
    ("percent", "bare", "verdict"),
    [(0.4, 0.1, "pass"), (0.6, 0.1, "FAIL"), (9.0, 0.5, "FAIL"), (0.4, None, "pass"), (0.6, None, "FAIL")],
)
def test_a_figure_is_judged_whatever_the_machine_takes_by_itself(percent, bare, verdict):
    results = [Result("T12", OURS, OURS, 1, {"percent": percent, "bare_percent": bare})]
    assert judge(IDLE, results).verdict == verdict


def test_where_the_machine_takes_more_by_itself_than_may_be_taken_nothing_is_judged():
    results = [Result("T12", OURS, OURS, 1, {"percent": 2.3, "bare_percent": 0.9})]
    judged = judge(IDLE, results)
    assert (judged.verdict, judged.why) == (Verdict.open, "2.30 %; a bare loop took 0.90 % here")


def test_ratios_are_those_of_the_same_round():
    judged = judge(FASTER, [*rounds("T1", OURS, 10, 200, 30), *rounds("T1", "peer", 5, 50, 10)])
    assert judged == Judged(FASTER, Spread(2, 3, 4), Verdict.passed)


def test_a_run_done_less_often_is_compared_with_the_same_rounds():
    judged = judge(FASTER, [*rounds("T1", OURS, 20, 40), *rounds("T1", "peer", 10, 10, 40, 40)])
    assert judged.spread == Spread(2, 3, 4)


def test_a_run_done_once_is_compared_with_the_median_of_its_reference():
    judged = judge(FASTER, [*rounds("T1", OURS, 90), *rounds("T1", "peer", 10, 30, 40)])
    assert judged.spread == Spread(3, 3, 3)


def test_without_the_peer_nothing_is_judged():
    judged = judge(FASTER, rounds("T1", OURS, 10))
    assert (judged.verdict, judged.why) == (Verdict.open, "no figure of peer")
    assert status([judged], []) == 0


def test_what_could_not_be_measured_is_not_judged():
    results = [Result("T7", OURS, OURS, 1, {"p50": None})]
    assert judge(QUICKER, results).verdict is Verdict.open


def test_a_wrong_run_fails_however_fast_the_others_were():
    results = [*rounds("T2", OURS, 1e9, 1e9), wrong("T2", OURS, 3)]
    judged = judge(PLAIN, results)
    assert (judged.verdict, judged.why) == (Verdict.failed, "wrong: 1 jobs ran 2 times")
    assert status([judged], results) == 1


def test_a_wrong_run_of_ours_fails_even_where_nothing_is_judged_and_one_of_a_peer_does_not():
    assert status([], [wrong("G", OURS)]) == 1
    assert status([], [wrong("T1", "peer")]) == 0


@pytest.mark.parametrize(
    ("runs", "finished", "why"),
    [
        ([1, 1, 2], True, "1 jobs ran 2 times"),
        ([1, 0, 0], True, "2 jobs ran 0 times"),
        ([3, 0, 1], False, "1 jobs ran 3 times"),
    ],
)
def test_a_job_that_ran_twice_or_never_makes_a_run_wrong(runs, finished, why):
    with pytest.raises(WrongRun, match=why):
        check_runs(runs, finished=finished)


@pytest.mark.parametrize(
    ("error", "said"),
    [(WrongRun("1 jobs ran 2 times"), "wrong: 1 jobs ran 2 times"), (OSError("no route"), "failed: OSError: no route")],
)
def test_a_wrong_run_has_an_error_and_no_figures(error, said, monkeypatch):
    async def drained(name, url, options):
        raise error

    monkeypatch.setattr(workloads, "throughput", drained)
    assert run.result(Run("T1", "throughput", OURS, {}), "") == ({}, said)


def test_a_run_that_was_cut_may_leave_jobs():
    check_runs([1, 0, 1], finished=False)
    check_runs([1, 1, 1], finished=True)


@pytest.mark.parametrize("scale", [QUICK, FULL])
def test_every_check_has_its_run_and_its_reference(scale, monkeypatch):
    monkeypatch.setattr("benchmarks.plan.find_spec", lambda _: True)  # uvloop may not be installed
    runs = {(run.target, run.label) for run in plan(scale)}
    needed = {(check.target, check.label) for check in CHECKS} | {check.against for check in CHECKS if check.against}
    assert needed - runs == set()
    assert len(runs) == len(plan(scale)), "a label is used twice"
    assert {run.target for run in plan(scale)} == set(TARGETS)


def test_heavy_runs_are_done_once_when_it_must_be_quick_and_close_ones_in_twice_as_many_rounds():
    usual, heavy, close = (Run("T1", "throughput", OURS, {}, **kind) for kind in ({}, {"heavy": True}, {"close": True}))
    assert [run.times(3, quick=True) for run in (usual, heavy, close)] == [3, 1, 6]
    assert [run.times(3, quick=False) for run in (usual, heavy, close)] == [3, 3, 6]


def test_a_target_brings_the_runs_that_it_is_compared_with():
    assert references(["T3"]) == {"T1"}
    runs = chosen(plan(QUICK), ["T3"], {OURS, CEILING, *PEERS}, references(["T3"]))
    assert [(run.target, run.label) for run in runs] == [("T1", OURS), ("T3", OURS)]


def test_a_queue_that_is_left_out_has_no_runs():
    assert {run.queue for run in chosen(plan(QUICK), TARGETS, {OURS, CEILING}, [])} == {OURS, CEILING}


def test_the_table_says_what_must_hold_and_how_it_went():
    judged = [judge(PLAIN, rounds("T2", OURS, 90, 150, 160)), judge(FASTER, [])]
    table = report.judged_table(judged, {("T2", OURS): "200 rows"})
    head, _, first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert head == ["", "what", "median (min - max)", "must", "aim", ""]
    assert first == ["T2", "drain: 200 rows", "150 jobs/s (90.00 - 160)", ">= 100 jobs/s", "", "pass"]
    assert second[2:] == ["not measured here", ">= 2 jobs/s", ">= 4 jobs/s", "-"]


@pytest.mark.parametrize(
    "drawing",
    [
        chart.bars("A & B", "jobs/s", [chart.Bar("ours", (20_000.0,), True, 1e4, 3e4), chart.Bar("<", (0.5,), False)]),
        chart.bars("Waits", "ms", [chart.Bar("ours", (1.0, 2.5, 7.0), True)]),
        chart.line("Growth", "rows", "ms", [chart.Point(1000, 1.5), chart.Point(1e6, 3)]),
        chart.line("One", "rows", "ms", [chart.Point(1000, 0.0)]),
    ],
)
def test_a_chart_is_a_picture_with_a_title_for_light_and_for_dark(drawing):
    root = ET.fromstring(drawing)
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    assert "prefers-color-scheme: dark" in root.findtext(f"{SVG}style")
    width = float(root.get("viewBox").split()[2])
    bars = root.findall(f"{SVG}rect")
    assert all(float(bar.get("x")) + float(bar.get("width")) <= width for bar in bars)


def test_the_peers_have_a_file_each():
    folder = Path(chart.__file__).parent / "peers"
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", OURS, CEILING, *PEERS}


@pytest.mark.skipif(not machine.PROC.exists(), reason="only Linux tells")
def test_the_kind_of_file_system_is_that_of_the_innermost_mount():
    assert machine.file_system(machine.PROC / "self") == "proc"
    assert machine.file_system(Path("/")) not in (None, "proc")
    assert machine.file_system(Path("/no such folder")) is None


@pytest.mark.parametrize(
    ("setting", "value", "durable"),
    [("fsync", "on", True), ("fsync", "off", False), ("file_system", "ext4", True), ("file_system", "tmpfs", False)],
)
def test_a_server_is_durable_when_it_waits_for_a_disk(setting, value, durable):
    assert server.durable(dict.fromkeys(server.DURABLE, "on") | {setting: value}) is durable
