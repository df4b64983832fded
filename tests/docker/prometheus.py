"""A real Prometheus with the rules and the configuration of docker/prometheus, but for addresses and a faster clock."""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from dashboards import Query
from paths import DOCKER
from processes import PATIENCE

FOLDER: Final = DOCKER / "prometheus"


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str):
        self.url = url

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return urllib.request.urlopen(f"{self.url}/-/ready").close() is None
        except urllib.error.HTTPError as error:
            return error.close() is not None

    def get(self, path: str, **parameters: str) -> Any:
        """The data of GET /api/v1/path."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def series(self, query: Query, seconds: int = 30) -> list[dict[str, Any]]:
        """What Grafana would draw: labels and values of each series, now, or each second of the last few."""
        if query.instant:
            found = self.get("query", query=query.expr)["result"]
            return [{"labels": each["metric"], "values": [float(each["value"][1])]} for each in found]
        now = time.time()
        parameters = {"query": query.expr, "start": str(now - seconds), "end": str(now), "step": "1"}
        found = self.get("query_range", **parameters)["result"]
        return [{"labels": each["metric"], "values": [float(v) for _, v in each["values"]]} for each in found]


def configuration(targets_url: str) -> dict[str, Any]:
    """docker/prometheus/prometheus.yml for a worker elsewhere, scraped each second; without Prometheus itself."""
    found = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    found["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    found["rule_files"] = [str(FOLDER / path) for path in found["rule_files"]]
    found["scrape_configs"] = [job for job in found["scrape_configs"] if job["job_name"] == "trainer"]
    (discovery,) = found["scrape_configs"][0]["http_sd_configs"]
    discovery |= {"url": targets_url, "refresh_interval": "1s"}
    return found


@contextmanager
def prometheus(folder: Path, targets_url: str) -> Iterator[Prometheus]:
    """One that is up while the block runs."""
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(yaml.safe_dump(configuration(targets_url)))
    storage, address = f"--storage.tsdb.path={folder / 'tsdb'}", "--web.listen-address=127.0.0.1:0"
    arguments = ["prometheus", f"--config.file={config}", storage, address, "--log.format=json"]
    with log.open("w") as stream:
        process = subprocess.Popen(arguments, stdout=stream, stderr=stream)
    try:
        found = Prometheus(until(lambda: address_in(log), log.read_text))
        until(found.ready, log.read_text)
        yield found
    finally:
        process.kill()
        process.wait()


def address_in(log: Path) -> str:
    """Where it says that it listens; empty before it does."""
    records = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    found = [record["address"] for record in records if record.get("msg") == "Listening on"]
    return f"http://{found[0]}" if found else ""


def until(condition: Callable[[], Any], told: Callable[[], object]) -> Any:
    """The condition's first true value; fails with what is told after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain: {told()}"
        time.sleep(0.05)
    return value
