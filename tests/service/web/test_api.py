"""The worker's HTTP server: a real worker, real sockets, real certificates, and clients that behave badly."""

import base64
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pipeline.command import InputError
from processes import command, descendants, run, start, torchrun, wait_until
from service.run.checkpoint import newest_checkpoint
from service.web.listener import listen
from service.web.server_process import check_tls
from service.web.uvicorn_limits import BODY_BYTES, CONNECTIONS, REQUEST_SECONDS

ALICE, OPERATOR = "0123456789abcdef-alice", "0123456789abcdef-operator"


@dataclass
class Client:
    """A worker that is up, and how to talk to it."""

    process: "subprocess.Popen[str]"
    url: str
    out: Path
    context: ssl.SSLContext | None = None

    def get(self, path: str, timeout: float = 30) -> tuple[int, bytes]:
        return self.send(urllib.request.Request(self.url + path), timeout)

    def post(self, path: str, token: str | None = ALICE, body: Any = None, timeout: float = 60) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method="POST")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        status, answer = self.send(request, timeout)
        return status, json.loads(answer)

    def send(self, request: urllib.request.Request, timeout: float) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self.context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def metrics(self) -> dict[str, float]:
        families = text_string_to_metric_families(self.get("/metrics")[1].decode())
        return {s.name + "".join(sorted(s.labels.values())): s.value for family in families for s in family.samples}

    def address(self) -> tuple[str, int]:
        url = urlsplit(self.url)
        assert url.hostname and url.port
        return url.hostname, url.port


@contextmanager
def serving(arguments: list[str], out: Path, context: ssl.SSLContext | None = None) -> Iterator[Client]:
    """A worker that has done a step; it ends with the block, if it has not by itself."""
    with start(arguments) as process:
        try:
            assert process.stdout
            line = ""
            while "serving" not in line:
                line = process.stdout.readline()
                assert line, f"the worker ended with {process.wait()}"
            client = Client(process, line.split("serving ")[1].split("/,")[0], out, context)
            wait_until(lambda: client.get("/readyz")[0] == 200, process)
            yield client
        finally:
            for pid in (process.pid, *descendants(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"alice:{ALICE}\n\n{OPERATOR}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def client(shards: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    out = tmp_path_factory.mktemp("run")
    with serving(command(shards, out, "--epochs", "100000", "--token-file", str(tokens)), out) as client:
        yield client


def test_every_resource_tells_of_the_same_run(client: Client) -> None:
    client.post("/api/checkpoint")  # so that there is one
    wait_until(lambda: client.json("/api/status")["eta_seconds"], client.process)  # a speed takes two steps
    status = client.json("/api/status")
    assert status["run"]["recipe"] == "demo" and status["phase"] in ("training", "validating")
    assert status["samples_per_epoch"] == 30 and status["run"]["batch_size"] == 8 and status["control"]
    assert status["epoch"] == pytest.approx(status["step"] * 8 / 30) and status["learning_rate"] == 0.01
    assert status["progress"] == status["step"] / status["total_steps"] and status["health"]["status"] == "ok"
    assert status["eta_seconds"] > 0 and status["alerts"] == [] and status["mfu"] is None
    logged = {r["step"]: r["loss"] for r in map(json.loads, (client.out / "log.jsonl").read_text().splitlines()[:5])}
    curve = client.json("/api/curve")
    assert [logged[s] for s in curve["step"][:3]] == curve["loss"][:3]
    kept = status["checkpoints"]["kept"]
    assert {f"step-{entry['step']:08d}" for entry in kept} == {
        path.name for path in (client.out / "checkpoints").glob("step-*")
    }
    assert status["filters_step"] == max(entry["step"] for entry in kept)
    filters = np.asarray(Image.open(io.BytesIO(client.get("/filters.png?step=1")[1])))
    assert filters.ndim == 3 and filters.std() > 10
    assert client.json("/api/targets") == [{"targets": [client.url.rpartition("/")[2]]}]
    metrics = client.metrics()
    assert 0 <= time.time() - metrics["trainer_last_progress_timestamp_seconds"] < 60
    assert metrics["trainer_progress_limit_seconds"] == 600
    assert metrics["trainer_disk_bytesfree"] < metrics["trainer_disk_bytessize"]
    assert metrics["trainer_events_totalcheckpoint"] >= 1
    page = client.get("/")[1].decode()
    assert page.startswith("<!doctype html>") and "</html>" in page


def test_the_pictures_are_those_that_are_trained_on(client: Client) -> None:
    found = client.json("/api/pictures")
    assert len(found["pictures"]) == 8 and {each["class"] for each in found["pictures"]} <= {"a", "b", "c"}
    for each in found["pictures"]:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(each["jpeg"]))))
        assert picture.shape == (67, 67, 3) and picture.std() > 5
    first = found["step"]
    wait_until(lambda: client.json("/api/pictures")["step"] > first, client.process)


def test_acts_are_done_before_they_are_answered_and_are_on_disk(client: Client) -> None:
    status, done = client.post("/api/checkpoint", body={"reason": "before the storm"})
    assert status == 200, done
    checkpoint = newest_checkpoint(client.out, print)
    assert checkpoint and checkpoint.path.name == done["checkpoint"]
    assert checkpoint.state.events[-1] == done["event"]
    assert (done["event"]["author"], done["event"]["reason"]) == ("alice", "before the storm")
    status, done = client.post("/api/pause", token=OPERATOR)
    assert status == 200 and done["event"]["author"] == "operator"
    paused = client.json("/api/status")
    assert paused["paused"] and paused["phase"] == "paused" and paused["health"]["status"] == "ok"
    assert client.metrics()["trainer_paused"] == 1
    assert client.post("/api/pause")[0] == 409
    status, done = client.post("/api/learning-rate", body={"factor": 0.5, "reason": "too fast\\"})
    assert status == 200 and done["event"]["new"]["base"] == 0.005
    assert client.json("/api/status")["step"] == paused["step"]  # nothing was trained meanwhile
    wait_until(lambda: client.metrics()["trainer_learning_rate"] == 0.005, client.process)  # told before the next step
    assert client.post("/api/resume")[0] == 200 and client.post("/api/resume")[0] == 409
    wait_until(lambda: client.json("/api/status")["step"] > paused["step"], client.process)
    records = [json.loads(line) for line in (client.out / "log.jsonl").read_text().splitlines()]
    for record in records:
        if "validation" not in record:
            assert record["learning_rate"] == (0.005 if record["step"] > paused["step"] else 0.01)
    lines = client.get("/metrics")[1].decode().splitlines()
    (times,) = [line for line in lines if line.startswith("trainer_event_timestamp") and "too fast" in line]
    assert 'author="alice"' in times and 'change="0.01 -> 0.005"' in times
    assert float(times.split()[-1]) == pytest.approx(done["event"]["time"], rel=0, abs=1e-3)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "Field required"),
        ({"rate": 0.1, "factor": 0.1}, "not permitted"),
        ({"rate": -1}, "greater than or equal to 0"),
        ({"factor": 0}, "greater than 0"),
        ({"rate": False}, "valid number"),
        ({"rate": "0.1"}, "valid number"),
        (b'{"rate": NaN}', "finite"),
        (b'{"rate": 1e999}', "finite"),
        ({"rate": 0.1, "why": "?"}, "why"),
        ({"rate": 0.1, "reason": "x" * 201}, "200"),
        ({"rate": 0.1, "reason": "two\nlines"}, "pattern"),
        (b'{"rate": 0.1, "reason": "\\ud800"}', "unicode"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
    ],
)
def test_wrong_bodies_are_refused_in_a_line(client: Client, body: Any, expected: str) -> None:
    status, answer = client.post("/api/learning-rate", body=body)
    assert status in (400, 422) and expected in answer["error"] and "\n" not in answer["error"], answer


def test_who_has_no_token_cannot_act(client: Client, tokens: Path) -> None:
    before = client.json("/api/status")["events"]
    for token in (None, "", "wrong", ALICE[:-1], ALICE + "x", "Ünsinn"):
        request = urllib.request.Request(client.url + "/api/pause", b"", method="POST")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}".encode().decode("latin1"))
        status, answer = client.send(request, 10)
        assert status == 401 and "token" in json.loads(answer)["error"]
    assert client.json("/api/status")["events"] == before
    codes = [client.post("/api/pause", token="wrong")[0] for _ in range(12)]
    assert set(codes) <= {401, 429} and codes[-1] == 429  # guessing is slow
    assert client.post("/api/resume")[0] == 409  # and keeps nobody out
    wait_until(lambda: client.post("/api/pause", token="wrong")[0] == 401, client.process)
    # A token is taken back, and a new one given, without a restart.
    text = tokens.read_text()
    tokens.write_text(text.replace(ALICE, "another-token-of-alices"))
    assert client.post("/api/resume")[0] in (401, 429)
    assert client.post("/api/resume", token="another-token-of-alices")[0] == 409
    tokens.chmod(0o644)
    status, answer = client.post("/api/resume", token="another-token-of-alices")
    assert status == 503 and "mode 600" in answer["error"]  # not that the token is wrong
    tokens.chmod(0o600)
    tokens.write_text(text)


def test_other_methods_paths_and_sizes(client: Client) -> None:
    assert client.get("/api/pause")[0] == 405 and client.get("/nothing")[0] == 404
    assert client.post("/metrics")[0] == 405
    status, answer = client.post("/api/pause", body={"reason": "x" * BODY_BYTES})
    assert status == 413 and "expected fewer" in answer["error"]
    document = client.json("/openapi.json")
    assert {"/api/learning-rate", "/api/stop", "/metrics", "/"} <= document["paths"].keys()
    assert document["paths"]["/api/stop"]["post"]["security"]


def exchange(client: Client, request: bytes) -> tuple[dict[str, str], bytes]:
    """The head, by name in lower case with the status as `status`, and the body of the raw answer to a request."""
    with socket.create_connection(client.address(), timeout=30) as connection, connection.makefile("rb") as answer:
        connection.sendall(request)
        head, _, body = answer.read().partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return {**fields, "status": status.split()[1]}, body


def test_head_is_get_without_a_body_and_a_path_may_end_with_a_slash(client: Client) -> None:
    """As load balancers, monitors and wget --spider ask, on every path."""
    client.post("/api/checkpoint")  # from here on nothing is missing
    paths = ["/openapi.json", *(path for path, acts in client.json("/openapi.json")["paths"].items() if "get" in acts)]
    assert len(paths) == 10
    for path in (*paths, "/nothing", "/api/stop"):
        there, body = exchange(client, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert int(there["content-length"]) == len(body) > 0
        for method, asked in (("HEAD", path), ("HEAD", f"{path}/"), ("GET", f"{path}/")):
            head, sent = exchange(client, f"{method} {asked} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert [head[name] for name in ("status", "content-type")] == [there["status"], there["content-type"]]
            assert len(sent) == (0 if method == "HEAD" else int(head["content-length"])), (method, asked)
            assert int(head["content-length"]) > 0
    old, body = exchange(client, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert old["status"] == "200" and json.loads(body)["status"] == "ok"


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain", "Application/JSON"])
def test_a_body_is_json_whatever_it_is_said_to_be(client: Client, kind: str | None) -> None:
    """As curl -d sends it; with None the header is missing."""
    flags = (
        []
        if kind == "application/x-www-form-urlencoded"
        else ["-H", f"Content-Type: {kind}" if kind else "Content-Type:"]
    )
    arguments = ["curl", "-s", "-H", f"authorization: BEARER  {ALICE} ", *flags, client.url + "/api/checkpoint/", "-d"]

    def answer(body: str) -> dict[str, Any]:
        return json.loads(subprocess.run([*arguments, body], capture_output=True, check=True).stdout)

    reason = f'by "curl" \\ {{x="ß"}} {kind}'
    assert answer(json.dumps({"reason": reason}, ensure_ascii=False))["event"]["reason"] == reason
    assert answer("reason=no+form") == {
        "error": "the body is no JSON (Expecting value), expected JSON in UTF-8; see /openapi.json"
    }


def test_what_is_not_there_is_said_in_a_line(client: Client) -> None:
    for path, told in (
        ("/nothing%0Athere", r"there is no /nothing\nthere, expected"),
        ("/../etc", "there is no /../etc"),
    ):
        status, body = client.get(path)
        assert status == 404 and told in json.loads(body)["error"]
    status, body = client.get("/api/pause")
    assert status == 405 and "does not take GET, expected POST" in json.loads(body)["error"]


def loopback() -> str:
    """::1, whose URLs have brackets, where this machine has it."""
    try:
        listen("::1", 0).close()
    except InputError:
        return "127.0.0.1"
    return "::1"


HEAD = b"POST /api/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n"
ABUSES = {
    "silent": b"",
    "slow head": HEAD + b"X-",
    "slow body": HEAD + b"\r\nab",
    "pipelined": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD,
    "not reading": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
}


@pytest.mark.parametrize("abuse", ABUSES)
def test_hundreds_of_connections_that_abuse_it_keep_no_scrape_and_no_step_waiting(client: Client, abuse: str) -> None:
    """Each kind alone, and more of them than connections are kept."""
    before = client.json("/api/status")["step"]
    with ExitStack() as stack:
        for _ in range(CONNECTIONS + 100):
            each = stack.enter_context(socket.create_connection(client.address(), timeout=30))
            with suppress(ConnectionError):
                each.sendall(ABUSES[abuse])
        latencies = []
        for _ in range(20):
            at = time.monotonic()
            assert client.get("/metrics", timeout=10)[0] == 200
            latencies.append(time.monotonic() - at)
        assert max(latencies) < 5.0  # half of what Prometheus gives a scrape
        wait_until(lambda: client.json("/api/status")["step"] > before, client.process)


@pytest.mark.slow
def test_slow_and_flooding_clients_stall_neither_scrapes_nor_training_and_are_dropped(client: Client) -> None:
    with ExitStack() as stack:

        def connection(sent: bytes) -> socket.socket:
            opened = stack.enter_context(socket.create_connection(client.address(), timeout=30))
            opened.sendall(sent)
            return opened

        idle = [connection(b"") for _ in range(200)]
        slow = [connection(ABUSES[name]) for name in ("slow head", "slow body") for _ in range(25)]
        flood = start(["bash", "-c", f"while curl -s {client.url}/metrics {client.url}/api/pictures; do :; done"])
        stack.callback(flood.communicate)
        stack.callback(flood.kill)
        before, began = client.json("/api/status")["step"], time.monotonic()
        latencies = []
        while time.monotonic() - began < REQUEST_SECONDS + 2:
            for each in slow:
                with suppress(OSError):  # dropped by now
                    each.send(b"a")  # one byte at a time
            at = time.monotonic()
            assert client.get("/metrics", timeout=10)[0] == 200
            latencies.append(time.monotonic() - at)
        assert max(latencies) < 5.0
        assert client.json("/api/status")["step"] > before
        for each in (*idle, *slow):
            with suppress(ConnectionResetError):
                assert each.recv(1024) == b""


def test_a_worker_that_hangs_is_told_so_for_as_long_as_it_does(client: Client) -> None:
    """As one that holds the interpreter's lock: the page still comes, and questions do not pile up."""
    os.kill(client.process.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: client.get("/healthz")[0] == 503, client.process)  # not the answer of a moment ago
        status, body = client.get("/healthz")
        assert status == 503 and json.loads(body)["phase"] == "unresponsive"
        assert client.get("/")[0] == 200
    finally:
        os.kill(client.process.pid, signal.SIGCONT)
    wait_until(lambda: client.get("/healthz")[0] == 200, client.process)


def test_a_server_that_dies_is_started_again_and_training_goes_on(client: Client) -> None:
    (server,) = [
        pid
        for pid in descendants(client.process.pid)
        if b"service.web.api" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    before = client.json("/api/status")["step"]
    subprocess.run(["kill", "-KILL", str(server)], check=True)

    def again() -> bool:
        try:
            return client.json("/api/status")["step"] > before
        except OSError:
            return False

    wait_until(again, client.process)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for loopback, signed by itself, and its key."""
    files = folder / "certificate.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*made, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


@pytest.mark.slow
def test_tls_serves_who_trusts_it_while_others_say_nothing_and_a_posted_stop_ends_with_0(
    shards: Path, tokens: Path, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path)
    out = tmp_path / "run"
    options = ["--token-file", str(tokens), "--tls-certificate", str(chain), "--tls-key", str(key)]
    arguments = command(shards, out, "--epochs", "100000", *options)
    with ExitStack() as stack:
        client = stack.enter_context(serving(arguments, out, ssl.create_default_context(cafile=str(chain))))
        assert client.url.startswith("https://")
        silent = [stack.enter_context(socket.create_connection(client.address(), timeout=30)) for _ in range(20)]
        assert client.metrics()["trainer_steps_total"] >= 1
        assert all(each.recv(1) == b"" for each in silent)  # no handshake: dropped
        status, done = client.post("/api/stop", body={"reason": "enough"})
        assert status == 200, done
        output = client.process.communicate()[0]
    assert client.process.returncode == 0 and "stopped by alice" in output, output
    checkpoint = newest_checkpoint(out, print)
    assert checkpoint and checkpoint.path.name == done["checkpoint"]
    assert checkpoint.state.events[-1]["reason"] == "enough"


@pytest.mark.slow
def test_wrong_files_end_the_call_in_a_line(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a PEM certificate"):
        check_tls(tmp_path / "a", tmp_path / "b")
    for options in (["--token-file", str(tmp_path / "none")], ["--tls-key", "key"]):
        status, output = run(command(shards, tmp_path / "run", *options))
        assert status == 2 and output.startswith("error: ") and output.count("\n") == 1, output


@pytest.mark.slow
def test_all_ranks_act_at_the_same_step(shards: Path, tokens: Path, tmp_path: Path) -> None:
    options = ["--epochs", "100000", "--parallel", "data", "--token-file", str(tokens), "--stall-seconds", "20"]
    options += ["--host", loopback()]
    with serving(torchrun(command(shards, tmp_path, *options), 2), tmp_path) as client:
        found = client.json("/api/targets")[0]["targets"]
        both = [Client(client.process, f"http://{each}", tmp_path) for each in found]
        assert [each.json("/api/status")["rank"] for each in both] == [0, 1]
        first, other = both
        status, answer = other.post("/api/pause")
        assert status == 409 and "rank 0" in answer["error"]
        status, done = first.post("/api/learning-rate", body={"rate": 0.002})
        assert status == 200, done
        status, done = first.post("/api/pause")
        assert status == 200 and done["checkpoint"]
        step = done["event"]["step"]
        acts = []
        for each in both:
            found = each.json("/api/status")
            assert (found["phase"], found["step"], found["learning_rate"]) == ("paused", step, 0.002)
            acts.append([(event["kind"], event["step"]) for event in found["events"]])
        assert acts[0] == acts[1] and len(acts[0]) == 2
        assert first.post("/api/resume")[0] == 200
        wait_until(lambda: min(each.json("/api/status")["step"] for each in both) > step, client.process)
        assert first.post("/api/pause")[0] == 200
        client.process.send_signal(signal.SIGTERM)  # a signal ends a pause too
        output = client.process.communicate()[0]
    assert "saved" in output, output
    checkpoint = newest_checkpoint(tmp_path, print)
    kinds = ["learning-rate", "pause", "resume", "pause"]
    assert checkpoint and [event["kind"] for event in checkpoint.state.events] == kinds


@pytest.mark.slow
def test_fuzzing_finds_no_fault(shards: Path, tmp_path: Path, tokens: Path) -> None:
    """Schemathesis's requests, valid and not: no 5xx, and every answer as /openapi.json has it."""
    acts = ["-H", f"Authorization: Bearer {ALICE}", "--exclude-path-regex", "stop|resume"]
    program = [str(Path(sys.executable).with_name("schemathesis")), "run", "--no-color", "--checks", "all"]
    bounds = ["--max-examples", "5", "--seed", "1", "--generation-database", ":memory:"]
    with serving(command(shards, tmp_path, "--epochs", "100000", "--token-file", str(tokens)), tmp_path) as client:
        assert client.post("/api/pause")[0] == 200  # at the rates that are tried, training would end in infinities
        for options in ([*acts, "--exclude-checks", "ignored_auth"], ["--include-path-regex", "stop|resume"]):
            arguments = [*program, *bounds, *options, f"{client.url}/openapi.json"]
            done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
        events = client.json("/api/status")["events"]
    assert len(events) > 1 and all(0 <= event["new"]["base"] <= 100 for event in events if "new" in event)
