"""The dashboard of a run, as code: python docker/grafana/dashboard.py > docker/grafana/dashboards/training.json

For Grafana 11.6 and newer, whose types the SDK has. tests/docker/test_dashboard.py holds that the JSON is current, and
tests/docker/test_prometheus.py that of a real run every panel has data.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any, Final

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import TimeZoneBrowser
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from panels import BLUE, RANKS, RED, RUN, SOURCE, YELLOW, PanelBuilder
from service_rows import checkpoints, devices, happenings, scrapes
from training_rows import learning, overview, speed

PLUGIN_VERSION: Final = "11.6.0"  # of all panels, or Grafana would take them for older ones and migrate them


def add_row(board: Dashboard, title: str, panels: Iterable[PanelBuilder], folded: bool = False) -> None:
    """Panels under a heading; folded: part of it, and not asked for before they are wanted."""
    found = Row(title).collapsed(folded)
    if folded:
        for panel in panels:
            found.with_panel(panel)
    board.with_row(found)
    if not folded:
        for panel in panels:
            board.with_panel(panel)


def choice(name: str, label: str, of: str) -> QueryVariable:
    """Values of a label to choose from."""
    found = QueryVariable(name).label(label).datasource(SOURCE).query({"query": of, "refId": name})
    found.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return found.multi(True).include_all(True).all_value(".+").current(VariableOption(text="All", value="$__all"))


def link(title: str, url: str, tooltip: str) -> DashboardLink:
    """To another page."""
    found = DashboardLink(title).type(DashboardLinkType.LINK).url(url).tooltip(tooltip).icon("external link")
    return found.target_blank(True)


def annotation(name: str, expression: str, colour: str, title: str, text: str, at_value: bool) -> dict[str, Any]:
    """Marks on every graph; at_value: the value is when, in milliseconds. The SDK knows neither target nor texts."""
    found = AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour).build().to_json()
    expr = expression.replace("RUN", RUN).replace("RANKS", RANKS)
    target = {"refId": "Anno", "expr": expr, "interval": "60s", "range": True, "instant": False}
    # As text, "false" would be taken for true.
    return {**found, "target": target, "titleFormat": title, "textFormat": text, "useValueForTime": at_value}


# A label that is not there would be shown by its name, so whoever and why is made one text.
EVENT_TEXT: Final = """label_join(
  label_replace(
    label_replace(
      max by (kind, step, author, reason, change) (trainer_event_timestamp_seconds{RANKS}) * 1000,
      "reason", ": $1", "reason", "(.+)"
    ),
    "change", " ($1)", "change", "(.+)"
  ),
  "text", "", "author", "reason", "change"
)"""


def annotations() -> list[dict[str, Any]]:
    """What is marked on every graph."""
    start = "max by (job) (process_start_time_seconds{RANKS}) * 1000"
    firing = 'max by (alertname, severity) (ALERTS{RUN, alertstate="firing"})'
    return [
        annotation("Events", EVENT_TEXT, BLUE, "{{kind}}", "{{text}}", True),
        annotation("Starts", start, YELLOW, "start", "The process of {{job}} started.", True),
        annotation("Alerts", firing, RED, "{{alertname}}", "{{severity}}", False),
    ]


def dashboard() -> dict[str, Any]:
    """All of it, as Grafana reads it."""
    board = Dashboard("Training").uid("training").tags(["alexnet", "training"]).readonly()
    board.description("One run: how it goes, what it learns, how fast, and what happened to it.")
    board.time("now-6h", "now").refresh("30s").timezone(TimeZoneBrowser).tooltip(DashboardCursorSync.CROSSHAIR)
    source = DatasourceVariable("datasource").label("Data source").type("prometheus")
    board.with_variable(source.current(VariableOption(text="Prometheus", value="prometheus")))
    board.with_variable(choice("job", "Job", "label_values(trainer_build_info, job)"))
    board.with_variable(choice("instance", "Instance", 'label_values(trainer_build_info{job=~"$job"}, instance)'))
    board.link(
        link("Status page", "http://localhost:8000/", "The worker's own page: curves, filters, pictures, controls")
    )
    board.link(link("Alert rules", "http://localhost:9090/alerts", "Prometheus's view of the alerts"))
    add_row(board, "Overview", overview())
    add_row(board, "Learning", learning())
    add_row(board, "Speed", speed())
    add_row(board, "Data and devices", devices(), folded=True)
    add_row(board, "Checkpoints", checkpoints(), folded=True)
    add_row(board, "Events, starts and faults", happenings())
    add_row(board, "Scrapes", scrapes(), folded=True)
    return {**numbered(json.loads(json.dumps(board.build(), cls=JSONEncoder))), "annotations": {"list": annotations()}}


def numbered(board: dict[str, Any]) -> dict[str, Any]:
    """With an id for each panel, and the version of what draws it."""
    panels = [panel for outer in board["panels"] for panel in (outer, *outer.get("panels", ()))]
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
        if panel["type"] != "row":
            panel["pluginVersion"] = PLUGIN_VERSION
    return board


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2, cls=JSONEncoder)
    sys.stdout.write("\n")
