"""Grafana's files: current, of the types that Grafana reads, by its linter's rules, and of metrics that exist.

What the queries return is for test_prometheus.py.
"""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from dashboards import BOARD, board, chosen, filled, panels, queries
from paths import DOCKER
from service.telemetry.metrics import Metrics

EVERYTHING = {"job": ".+", "instance": ".+", "__rate_interval": "40s"}
PROMETHEUS_OWN = {"up", "scrape_duration_seconds", "scrape_samples_scraped", "ALERTS"}
# Of the units that Grafana knows, those that are used; of another it would show the name.
UNITS = {"none", "short", "string", "percentunit", "bytes", "s", "sci", "celsius", "dateTimeAsIso"}


def names(expr: str) -> set[str]:
    """The series that a query asks for."""
    return set(re.findall(r"[a-zA-Z_:][\w:]*(?=\{)", expr))


def recorded() -> set[str]:
    """The series that Prometheus's rules record."""
    groups = yaml.safe_load((DOCKER / "prometheus" / "rules.yml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def exposed() -> set[str]:
    """The series of a worker; an event makes the one that there is none of at first."""
    metrics = Metrics(CollectorRegistry())
    metrics.latest_events = [{"kind": "pause", "step": 1, "author": "alice", "reason": "", "time": 1.0}]
    families = text_string_to_metric_families(metrics.exposition()[0].decode())
    return {sample.name for family in families for sample in family.samples}


def test_the_json_is_what_the_code_makes() -> None:
    script = DOCKER / "grafana" / "dashboard.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert made == BOARD.read_text(), f"python {script.relative_to(DOCKER.parent)} > {BOARD.relative_to(DOCKER.parent)}"


def test_every_field_is_one_that_grafana_knows() -> None:
    """The SDK's types read only fields that they have: what comes out again is what went in."""
    register_default_plugins()
    ours = board()
    again = json.loads(json.dumps(Dashboard.from_json(board()), cls=JSONEncoder))
    marks = ours.pop("annotations")["list"]
    assert {**again, "annotations": None} == {**ours, "annotations": None}
    # These the SDK does not have; they are what Grafana's Prometheus data source reads.
    texts = {"target", "titleFormat", "textFormat", "useValueForTime"}
    known = set(again["annotations"]["list"][0]) | texts
    assert all(set(mark) <= known and texts <= set(mark) for mark in marks)
    assert [type(mark["useValueForTime"]) for mark in marks] == [bool, bool, bool]


def test_the_dashboard_is_nobodys_to_edit_and_refreshes() -> None:
    ours = board()
    assert ours["editable"] is False and ours["refresh"] == "30s" and ours["tags"] and ours["uid"] == "training"
    assert [link["url"] for link in ours["links"]] == ["http://localhost:8000/", "http://localhost:9090/alerts"]


def test_variables_choose_data_source_job_and_instance() -> None:
    source, *chosen_by_label = board()["templating"]["list"]
    assert (source["name"], source["label"], source["type"], source["query"]) == (
        "datasource",
        "Data source",
        "datasource",
        "prometheus",
    )
    for variable, label in zip(chosen_by_label, ("Job", "Instance"), strict=True):
        assert variable["label"] == label and variable["name"] == label.lower() and variable["type"] == "query"
        assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"
        assert variable["refresh"] == 2  # on a change of the time range
        assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def configured(panel: dict[str, Any], property_name: str) -> list[Any]:
    """A property as a panel's default and overrides have it."""
    config = panel["fieldConfig"]
    overrides = [
        each["value"] for rule in config["overrides"] for each in rule["properties"] if each["id"] == property_name
    ]
    return [value for value in (config["defaults"].get(property_name), *overrides) if value is not None]


@pytest.mark.parametrize("panel", panels(board()), ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_every_panel_has_title_description_unit_and_the_chosen_source(panel: dict[str, Any]) -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
    units = configured(panel, "unit")
    assert units and set(units) <= UNITS
    assert panel["datasource"] == source and all(target["datasource"] == source for target in panel["targets"])
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == sorted(set(letters))
    assert all(target["instant"] != target["range"] for target in panel["targets"])


@pytest.mark.parametrize("query", queries(board()), ids=lambda query: query.where)
def test_every_query_is_of_the_chosen_ranks_and_of_series_that_exist(query: Any) -> None:
    matchers = re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", query.expr)
    assert {name for name, _ in matchers} <= exposed() | recorded() | PROMETHEUS_OWN
    for name, labels in matchers:
        assert 'job=~"$job"' in labels
        of_a_run = name == "ALERTS" or (name in recorded() and not name.startswith("instance:"))  # they have no rank
        assert ('instance=~"$instance"' in labels) != of_a_run
    assert set(re.findall(r"\birate\(|\brate\([^()]*\[([^]]*)\]", query.expr)) <= {"$__rate_interval"}
    for name in re.findall(r"\w+_total", query.expr):
        assert re.search(rf"(rate|increase)\({name}\{{", query.expr)  # of a counter only its change says anything


def test_panels_do_not_overlap_and_rows_are_full() -> None:
    ours = board()
    ids = [panel["id"] for panel in (*ours["panels"], *panels(ours))]
    assert len(set(ids)) == len(ours["panels"]) + sum(len(p.get("panels", ())) for p in ours["panels"])
    places = [panel["gridPos"] for panel in panels(ours)]
    assert all(place["x"] + place["w"] <= 24 and place["w"] >= 4 for place in places)
    cells = [
        {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])} for place in places
    ]
    assert not any(one & other for one, other in combinations(cells, 2))
    for y in {place["y"] for place in places}:
        assert sum(place["w"] for place in places if place["y"] == y) == 24
    unfolded = [panel for panel in ours["panels"] if panel["type"] == "row" and not panel["collapsed"]]
    assert unfolded and not any(panel.get("panels") for panel in unfolded)  # Grafana would not show them


def test_a_chosen_value_is_matched_literally() -> None:
    assert filled('up{instance=~"$instance"}', {"instance": chosen("a.b:80")}) == 'up{instance=~"a\\\\.b:80"}'
    assert filled('label_replace(x, "y", ": $1", "z", "(.+)")', EVERYTHING).count("$1") == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": "a:b", "labels": {"n": str(n)}, "expr": filled(q.expr, EVERYTHING)}
        for n, q in enumerate(queries(board()))
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_is_given_the_data_source_and_the_dashboard_to_read_only() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["type"], source["url"]) == ("prometheus", "prometheus", "http://prometheus:9090")
    assert source["editable"] is False and source["isDefault"] and source["access"] == "proxy"
    scraping = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "training.yml").read_text())["providers"]
    assert provider["type"] == "file" and provider["allowUiUpdates"] is False and provider["disableDeletion"] is True
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
