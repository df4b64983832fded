"""What a sharding run tells Prometheus while it runs."""

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pictures import write_tree
from pipeline.command import InputError
from pipeline.shard import ShardOptions
from pipeline.write.metrics import ShardMetrics, serve_metrics
from processes import wait_until


def scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_a_running_command_counts_what_it_has_done(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"train": {"a": 100, "b": 100}}, 640, 480)
    (source / "train/a/00.JPEG").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = [str(source), "--out", str(out), "--size", "32", "--shard-samples", "2", "--metrics-port", "0"]
    command = [sys.executable, "-m", "pipeline.shard", *arguments, "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr
        url = next(line for line in run.stderr if line.startswith("metrics: ")).split()[1]
        values: list[dict[str, float]] = []

        def some_are_done() -> bool:
            values.append(scraped(url))
            return values[-1]["shard_pictures_total"] > 0

        wait_until(some_are_done, run)
        while run.poll() is None:
            try:
                values.append(scraped(url))
            except OSError:  # it has ended
                break
        run.stderr.read()
        assert run.wait() == 0
    last = values[-1]
    assert last["shard_planned_pictures"] == 200
    assert 0 < last["shard_pictures_total"] <= 200
    assert last["shard_pictures_total"] == 2 * last["shard_shards_total"]
    assert last["shard_rejected_pictures_total"] <= 1
    assert last["shard_source_bytes_total"] > last["shard_written_bytes_total"] / 20
    totals = [each["shard_pictures_total"] for each in values]
    assert totals == sorted(totals)


def test_monitors_get_heads_and_addresses_of_either_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """By HEAD what GET says of its body; ::1 in brackets, where this machine has it."""
    for host in ("127.0.0.1", "::1"):
        try:
            with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
                pass
        except OSError:
            continue
        with serve_metrics(ShardMetrics(7), host, 0):
            url = capsys.readouterr().err.split()[1]
            assert scraped(url)["shard_planned_pictures"] == 7
            address = urlsplit(url)
            assert address.hostname == host and address.port
            answers = []
            for method in (b"GET", b"HEAD"):
                with socket.create_connection((host, address.port)) as connection, connection.makefile("rb") as answer:
                    connection.sendall(method + b" /metrics HTTP/1.0\r\n\r\n")
                    answers.append(answer.read().decode().partition("\r\n\r\n"))
            (there, _, body), (head, _, nothing) = answers
            assert body and not nothing
            ours, theirs = (
                {line.partition(": ")[0]: line for line in each.split("\r\n") if not line.startswith("Date")}
                for each in (head, there)
            )
            assert int(ours.pop("Content-Length").split()[1]) > 0 and theirs.pop("Content-Length")  # it varies
            assert ours == theirs


def test_a_port_that_is_taken_is_one_line() -> None:
    with serve_metrics(ShardMetrics(1), "127.0.0.1", None):
        pass
    with (
        pytest.raises(InputError, match=r"--metrics-port \d+ of nowhere\.invalid cannot be served"),
        serve_metrics(ShardMetrics(1), "nowhere.invalid", 8001),
    ):
        pass


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(InputError, match="--metrics-port"):
        ShardOptions(source=Path(), metrics_port=port)
