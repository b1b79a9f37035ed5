"""The dashboard and the alerts of docs/monitoring speak of metrics that there are, and the document of all of them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import create_async_engine

from queue_kit.telemetry.metrics import PrometheusMetrics
from queue_kit.telemetry.queue_state import QueueStateMetrics

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENT = (CHECKOUT / "docs" / "telemetry.md").read_text()
MONITORING = CHECKOUT / "docs" / "monitoring"
ALERTS = (MONITORING / "prometheus-alerts.yml").read_text()
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
UNITS = Path(__file__).with_name("alerts.test.yml")

METRIC = re.compile(r"\bqueue_kit_\w+")
PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def exported() -> dict[str, str]:
    """The name of each series that a scrape can show, and of the metric that it belongs to."""
    registry = CollectorRegistry()
    PrometheusMetrics(registry, names=["a"])
    QueueStateMetrics(create_async_engine("postgresql+asyncpg://nobody@nowhere/nothing"), registry)
    found = {}
    for metric in registry.collect():
        own = f"{metric.name}_total" if metric.type == "counter" else metric.name
        found |= {sample.name: own for sample in metric.samples} | {own: own}
    return found


def expressions() -> list[str]:
    """Every query of the dashboard and of the alerts."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return panels + variables + re.findall(r"expr: (.*(?:\n {10}.*)*)", ALERTS)


def test_queries_ask_for_what_there_is(exported):
    asked = {name for query in expressions() for name in METRIC.findall(query)}
    assert len(asked) > 15
    assert asked - set(exported) == set()


def test_every_metric_is_used_and_documented(exported):
    metrics = {name for name in exported.values() if name.startswith("queue_kit_")}
    used = {exported[name] for query in expressions() for name in METRIC.findall(query)}
    assert metrics - used == set()
    assert {name for name in METRIC.findall(DOCUMENT) if name in exported} == metrics
    assert {name for name in METRIC.findall(DOCUMENT) if name not in exported} == set()


def test_queries_use_the_labels_that_there_are():
    together = " ".join(expressions())
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", together) for label in group.split(", ")}
    matched = set(re.findall(r"[{,](\w+)(?:=~|=|!=)", together))
    assert {"name", "le"} < grouped
    assert grouped | matched <= {"name", "outcome", "state", "le"}


def test_every_alert_is_documented_and_tested():
    alerts = set(re.findall(r"alert: (\w+)", ALERTS))
    assert set(re.findall(r"^\| `(Queue\w+)` \|", DOCUMENT, re.MULTILINE)) == alerts
    assert set(re.findall(r"alertname: (\w+)", UNITS.read_text())) == alerts


def test_panels_do_not_overlap_and_say_what_they_show():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] and panel["description"] for panel in DASHBOARD["panels"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, which comes with Prometheus")
def test_alerts_fire_when_they_should():
    done = subprocess.run([str(PROMTOOL), "test", "rules", UNITS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
