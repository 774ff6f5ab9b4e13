"""Grafana dashboards and the operator's rules: every metric is shown, and every query names one that exists."""

import json
import re
from pathlib import Path

import yaml

from services.actuator.desired import NAME
from services.runtime.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
SUFFIXES = {"counter": "_total", "histogram": "_bucket", "gauge": ""}


def series() -> set[str]:
    """The name under which a query finds each metric."""
    return {f"{m.name}{SUFFIXES[m.type]}" for m in Metrics().registry.collect()} | {NAME}


def test_every_metric_is_on_a_dashboard_and_every_query_names_a_metric_that_exists() -> None:
    dashboards = [json.loads(path.read_text()) for path in (DEPLOY / "grafana").glob("*.json")]
    queries = [t["expr"] for d in dashboards for panel in d["panels"] for t in panel["targets"]]
    assert {name for query in queries for name in re.findall(r"\bstoker_\w+", query)} == series()
    assert all("stoker_" in query for query in queries)


def test_labels_that_a_dashboard_sums_by_are_labels_of_the_metric() -> None:
    labels = {f"{m.name}{SUFFIXES[m.type]}": set() for m in Metrics().registry.collect()}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_labelnames"):
            name = f"{metric._name}{SUFFIXES[metric._type]}"
            labels[name] = set(metric._labelnames)
    labels[NAME] = {"server", "accelerator"}
    # What Prometheus adds to every series, and what a histogram has.
    added = {"instance", "job", "le"}
    panels = json.loads((DEPLOY / "grafana" / "stoker.json").read_text())["panels"]
    for query in (t["expr"] for panel in panels for t in panel["targets"]):
        (name,) = re.findall(r"\bstoker_\w+", query)
        for group in re.findall(r"by \(([^)]+)\)", query):
            assert set(group.split(", ")) <= labels[name] | added, query


def test_the_prometheus_operator_is_given_the_same_rules() -> None:
    given = yaml.safe_load((DEPLOY / "kubernetes" / "monitoring" / "rules.yaml").read_text())
    assert given["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
