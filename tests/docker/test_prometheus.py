"""Prometheus's files: sound, every alert tested and documented; and all that Grafana shows, of a real run."""

import json
import math
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from dashboards import Query, board, chosen, filled, panels, queries
from paths import DOCKER
from processes import command
from prometheus import FOLDER, Prometheus, prometheus, until
from service.telemetry.metrics import Metrics
from service.web.status import DATA_WAIT_HIGH, DISK_CHECKPOINTS

ALERTS_DOCUMENTED = DOCKER.parent / "docs" / "operations.md"
CASES = sorted((FOLDER / "rules_test").glob("*.yml"))
TAKE_LONG = ("answering", "pace")
TOKEN = "0123456789abcdef-alice"
# Of a healthy run on a CPU these and no others return nothing, or only NaN.
NO_ALERT = {"9 Alerts A", "annotation Alerts"}
LIMITED = ("Waiting for data", "Work that is not saved")  # panels with a line where an alert begins
NO_GPU = {"22 GPU utilisation A", "23 GPU temperature A"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


def promtool(*arguments: object, stdin: bytes = b"") -> str:
    """Run promtool; what it says, which nothing but success may be."""
    done = subprocess.run(["promtool", *map(str, arguments)], input=stdin, capture_output=True)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def rules(kind: str) -> list[dict[str, Any]]:
    """The rules that alert, or that record."""
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def cases() -> list[dict[str, Any]]:
    """When which alert is expected to fire, or not to."""
    files = [yaml.safe_load(path.read_text()) for path in CASES]
    return [case for file in files for test in file["tests"] for case in test.get("alert_rule_test", ())]


@needs_promtool
def test_the_configuration_is_sound() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "rules.yml")


@needs_promtool
@pytest.mark.parametrize(
    "file",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in TAKE_LONG else ()) for path in CASES],
    ids=lambda path: path.stem,
)
def test_the_rules_do_what_their_cases_say(file: Path) -> None:
    promtool("test", "rules", file)


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_every_alert_has_cases_and_instructions(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    fires = {bool(case.get("exp_alerts")) for case in cases() if case["alertname"] == name}
    assert fires == {True, False}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    assert re.search(rf"^#+ {name}$", ALERTS_DOCUMENTED.read_text(), re.MULTILINE)  # whose anchor that is


def test_limits_are_the_same_wherever_they_are_shown() -> None:
    expressions = {rule["alert"]: rule["expr"] for rule in rules("alert")}
    assert expressions["TrainerDataWaitHigh"].endswith(f"> {DATA_WAIT_HIGH}")
    assert f"{DISK_CHECKPOINTS} * trainer_checkpoint_size_bytes" in expressions["TrainerDiskFilling"]
    assert "job:trainer_unsaved:seconds > 7200" in expressions["TrainerCheckpointOld"]
    assert "median1d < 0.7" in expressions["TrainerThroughputDrop"]
    found = {panel["title"]: panel for panel in panels(board())}
    lines = [found[t]["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] for t in LIMITED]
    assert lines == [DATA_WAIT_HIGH, 7200]
    shown = {query.where: query.expr for query in queries(board())}
    assert shown["16 Pictures a second C"].startswith("0.7 * ")
    assert shown["33 Disk B"].startswith(f"{DISK_CHECKPOINTS} * ")


@needs_promtool
def test_the_names_of_a_new_workers_metrics_are_as_they_should_be() -> None:
    assert not promtool("check", "metrics", stdin=Metrics(CollectorRegistry()).exposition()[0])


class Run:
    """A worker at work, with a Prometheus that watches it."""

    def __init__(self, url: str, watching: Prometheus):
        self.url, self.prometheus = url, watching

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path) as answer:
            return answer.read()

    def act(self, kind: str, **body: Any) -> None:
        """As the operator alice."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/{kind}", data, headers, method="POST")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200


@contextmanager
def running(shards: Path, folder: Path, *options: str) -> Iterator[Run]:
    """A small run without an end, watched while the block runs."""
    tokens, log = folder / "tokens", folder / "log"
    tokens.write_text(f"alice:{TOKEN}\n")
    tokens.chmod(0o600)
    always = ["--epochs", "100000", "--token-file", str(tokens)]
    arguments = command(shards, folder / "run", *always, *options)
    with log.open("w") as stream:
        process = subprocess.Popen(arguments, stdout=stream, stderr=stream)
    try:
        found = until(lambda: re.search("serving (http://[^/]+)/", log.read_text()), log.read_text)
        with prometheus(folder, f"{found[1]}/api/targets") as watching:
            yield Run(found[1], watching)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    # Of chance labels the error does not fall, which would be proposed to be a plateau.
    options = ("--peak-tflops", "0.1", "--optim.patience", "1000000")
    with running(shards, tmp_path_factory.mktemp("watched"), *options) as found:
        yield found


def drawn(run: Run, query: Query) -> bool:
    """Whether there is a number to show."""
    return any(math.isfinite(value) for each in run.prometheus.series(query) for value in each["values"])


@needs_prometheus
def test_everything_that_grafana_shows_of_a_run_has_data(run: Run) -> None:
    run.act("learning-rate", factor=0.5, reason="it is a test")
    run.act("checkpoint")
    instance = run.url.removeprefix("http://")
    variables = {"job": "trainer", "instance": chosen(instance), "__rate_interval": "5s"}
    asked = [query._replace(expr=filled(query.expr, variables)) for query in queries(board())]
    asked += [Query(f"rule {rule['record']}", rule["expr"], True) for rule in rules("record")]
    missing = {query.where for query in asked}

    def only_what_must_be() -> bool:
        missing.difference_update([query.where for query in asked if query.where in missing and drawn(run, query)])
        return missing <= NO_ALERT | NO_GPU

    until(only_what_must_be, lambda: missing)
    shown = {query.where: run.prometheus.series(query) for query in asked}
    assert [where for where in NO_ALERT if shown[where]] == []
    assert all(math.isnan(v) for where in NO_GPU for each in shown[where] for v in each["values"])
    assert all(shown[where] for where in NO_GPU)


@needs_prometheus
def test_events_are_marked_with_who_and_why(run: Run) -> None:
    run.act("learning-rate", rate=0.002, reason="to be seen")
    (events,) = [query for query in queries(board()) if query.where == "annotation Events"]
    everything = events._replace(expr=filled(events.expr, {"job": ".+", "instance": ".+"}))

    def marked() -> list[dict[str, Any]]:
        found = run.prometheus.series(everything)
        return [each for each in found if "to be seen" in each["labels"].get("text", "")]

    (mark,) = until(marked, lambda: run.prometheus.series(everything))
    assert mark["labels"]["kind"] == "learning-rate"
    assert re.fullmatch(r"alice: to be seen \(\S+ -> 0\.002\)", mark["labels"]["text"])
    assert mark["values"][-1] / 1000 == pytest.approx(time.time(), abs=300)  # in milliseconds, as Grafana's


@needs_prometheus
def test_no_alert_fires_and_each_looks_at_series_that_exist(run: Run) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = run.prometheus.get("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = until(evaluated, lambda: run.prometheus.get("rules"))
    assert {rule["health"] for rule in found} == {"ok"}
    assert not [rule["name"] for rule in found if rule.get("state") == "firing"]
    known = set(run.prometheus.get("label/__name__/values"))
    for rule in rules("alert") + rules("record"):
        looked_at = set(
            re.findall(r"\b(?:trainer_\w+|process_\w+|up|\w+:\w+:\w+)\b", re.sub(r'"[^"]*"', "", rule["expr"]))
        )
        assert looked_at and looked_at <= known, rule


@needs_prometheus
@needs_promtool
def test_the_names_of_a_runs_metrics_are_as_they_should_be(run: Run) -> None:
    assert not promtool("check", "metrics", stdin=run.get("/metrics"))


@needs_prometheus
def test_variables_find_the_run(run: Run) -> None:
    for variable in board()["templating"]["list"][1:]:
        label_values = variable["query"]["query"].replace("$job", "trainer")
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", label_values)
        assert found
        values = run.prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]})
        assert values == {"job": ["trainer"], "instance": [run.url.removeprefix("http://")]}[variable["name"]]


@pytest.mark.slow
@needs_prometheus
def test_an_operators_stop_is_seen_to_be_the_end(shards: Path, tmp_path: Path) -> None:
    with running(shards, tmp_path) as run:
        state = Query("state", "job:trainer_state:code", True)

        def states() -> set[float]:
            return {value for each in run.prometheus.series(state) for value in each["values"]}

        until(lambda: states() == {2}, states)
        run.act("stop")
        down = Query("down", "up == 0", True)
        until(lambda: run.prometheus.series(down), states)
        until(lambda: states() == {5}, states)


@pytest.mark.slow
@needs_prometheus
def test_a_step_that_is_not_finite_is_seen_although_the_process_ends(shards: Path, tmp_path: Path) -> None:
    with running(shards, tmp_path) as run:
        up = Query("up", "count_over_time(trainer_steps_total[1m]) > 1", True)
        until(lambda: run.prometheus.series(up), lambda: run.prometheus.get("targets"))
        run.act("learning-rate", rate=100)

        def firing() -> set[str]:
            alerts = run.prometheus.get("alerts")["alerts"]
            return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

        until(lambda: "TrainerNonFinite" in firing(), firing)
