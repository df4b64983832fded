"""The container files: what they promise of confinement, restarts and patience, and the command lines in them."""

import re
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pytest
import tyro
import yaml
from prometheus_client import CollectorRegistry
from torch.distributed.launcher.api import LaunchConfig

from model.alexnet import AlexNet
from model.optim import MomentumSGD
from networks import copy_tensors
from paths import ROOT
from pipeline.sample import SampleConfig
from pipeline.shard import ShardOptions
from service.run.checkpoint import RunState
from service.run.config import RECIPES, Run, parse_run
from service.telemetry.metrics import Metrics
from service.training.checkpoint_writer import CheckpointWriter

COMPOSE, OVERRIDE, DOCKERFILE, IGNORED = (
    (ROOT / name).read_text()
    for name in ("docker-compose.yml", "docker/compose.cpu.yml", "docker/Dockerfile", ".dockerignore")
)
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
# As it is when no variable is set.
PLAIN = yaml.safe_load(re.sub(r"\$\{\w+(?::\+[^{}]*|:?-([^{}]*))\}", r"\1", COMPOSE))
TRAINER = PLAIN["services"]["trainer"]
each_service = pytest.mark.parametrize("service", PLAIN["services"].values(), ids=PLAIN["services"])

# What the shell sees as python: its arguments go to a file, and nothing happens.
PYTHON = '#!/bin/sh\necho "$*" >> "$CALLS"\n'


class Loader(yaml.SafeLoader):
    """YAML with Compose's tag !reset: as if what it stands at had not been given."""


RESET = object()
Loader.add_constructor("!reset", lambda loader, node: RESET)


def shell(words: list[str], folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run a service's shell lines below `folder` instead of /, and what they call python with.

    Compose's own substitution is the shell's, ${NAME:-default} and ${NAME:+word}, but for $$.
    """
    assert words[:2] == ["sh", "-euc"]
    text = re.sub(r"(?<![\w/.])/(?=(imagenet|shards|tmp)\b)", f"{folder}/", words[2].replace("$$", "$"))
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/python").write_text(PYTHON)
    (folder / "bin/python").chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "CALLS": str(calls), **variables}
    done = subprocess.run(["sh", "-euc", text], env=environment, capture_output=True, text=True)
    return done, [line.split() for line in calls.read_text().splitlines()]


def sharded(folder: Path, *names: str) -> Path:
    """A folder with finished data sets and no pictures."""
    for name in names:
        (folder / "shards" / name).mkdir(parents=True)
        (folder / "shards" / name / "dataset.json").touch()
    (folder / "imagenet").mkdir()
    return folder


def trained(folder: Path, **variables: str) -> Run:
    """The run that the trainer's command asks for."""
    done, (words,) = shell(SERVICES["trainer"]["command"], folder, **variables)
    assert done.returncode == 0 and words[:2] == ["-m", "service.launch"]
    return parse_run(words[2:])


def shard(folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """What the shard service does."""
    return shell(SERVICES["shard"]["command"], folder, **variables)


@pytest.mark.parametrize(("there", "recipe"), [(("sample",), "demo"), (("sample", "imagenet"), "paper")])
def test_the_trainer_takes_the_data_that_is_there_and_the_recipe_that_fits(
    tmp_path: Path, there: tuple[str, ...], recipe: str
) -> None:
    run = trained(sharded(tmp_path, *there))
    assert (run.recipe, run.out) == (recipe, Path("/runs", recipe))
    assert Path(run.data.shards) == tmp_path / "shards" / there[-1]
    assert (run.host, run.port, run.token_file) == ("0.0.0.0", 8000, None)


def test_the_trainer_does_what_the_variables_say(tmp_path: Path) -> None:
    folder = sharded(tmp_path, "imagenet")
    run = trained(folder, RECIPE="source", RUN="second", TOKEN_FILE="./token", TRAIN_ARGS="--epochs 2")
    assert (run.recipe, run.out, run.epochs) == ("source", Path("/runs/second"), 2)
    assert run.token_file == Path("/run/secrets/token") and TRAINER["secrets"] == ["token"]
    assert trained(folder, TRAIN_ARGS="--out /runs/last").out == Path("/runs/last")  # the last word is the user's


def test_pictures_are_sharded_with_the_users_options(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "imagenet/train").mkdir()
    _, (words,) = shard(folder, SHARD_ARGS="--val-fraction 0.05")
    options = tyro.cli(ShardOptions, args=words[2:])
    assert words[1] == "pipeline.shard" and options.val_fraction == 0.05
    assert (options.source, options.out) == (folder / "imagenet", str(folder / "shards/imagenet"))


def test_without_pictures_samples_are_made_that_the_demo_can_train_on(tmp_path: Path) -> None:
    done, (sample, words) = shard(sharded(tmp_path))
    assert (sample[1], words[1]) == ("pipeline.sample", "pipeline.shard") and "IMAGENET (not set)" in done.stdout
    made, options = tyro.cli(SampleConfig, args=sample[2:]), tyro.cli(ShardOptions, args=words[2:])
    assert (options.source, options.out) == (made.dir, str(tmp_path / "shards/sample"))
    assert options.size >= RECIPES["demo"][1].data.crop


@pytest.mark.parametrize("there", ["sample", "imagenet"])
def test_shards_that_are_there_are_kept(tmp_path: Path, there: str) -> None:
    done, calls = shard(sharded(tmp_path, there))
    assert (done.returncode, calls) == (0, [])


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    done, calls = shard(tmp_path)  # it is not even there
    assert done.returncode != 0 and not calls


@each_service
def test_every_service_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] and service["init"] and service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "pid", "ipc", "devices"} & service.keys()
    assert int(service["user"].split(":")[0]) > 0
    assert service["logging"]["driver"] == "json-file" and service["logging"]["options"].keys() == {
        "max-size",
        "max-file",
    }


@each_service
def test_every_port_is_published_on_loopback_alone(service: dict[str, Any]) -> None:
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", []))
    assert service.get("network_mode", "none") == "none"


@each_service
def test_images_of_others_are_pinned_and_what_is_mounted_is_there(service: dict[str, Any]) -> None:
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    sources = {volume.split(":")[0] for volume in service.get("volumes", [])}
    assert all((ROOT / source).is_dir() or source in PLAIN["volumes"] for source in sources)


def test_only_pictures_to_read_and_the_runs_to_write() -> None:
    shard_mounts, trainer_mounts = (
        {v.split(":")[1]: v for v in PLAIN["services"][n]["volumes"]} for n in ("shard", "trainer")
    )
    assert shard_mounts["/imagenet"].endswith(":ro") and "/imagenet" not in trainer_mounts
    assert {path for path, mount in trainer_mounts.items() if not mount.endswith(":ro")} == {"/runs", "/cache"}


def test_a_fault_is_restarted_a_wrong_call_not_for_ever_and_a_finished_run_not_at_all() -> None:
    policy, _, most = TRAINER["restart"].partition(":")
    assert policy == "on-failure" and 1 <= int(most) <= 10
    assert PLAIN["services"]["shard"].get("restart", "no") == "no"
    assert TRAINER["depends_on"] == {"shard": {"condition": "service_completed_successfully"}}


def test_the_cpu_override_takes_the_gpu_away_and_nothing_else() -> None:
    assert yaml.load(OVERRIDE, Loader)["services"] == {"trainer": {"deploy": RESET, "ulimits": RESET}}
    (device,) = TRAINER["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert TRAINER["ulimits"] == {"memlock": -1}


@pytest.mark.slow
def test_a_stop_has_time_for_the_full_size_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured save < torchrun's patience with its ranks < Docker's patience with torchrun."""
    model = AlexNet(replace(Run().model, precision="float32"), classes=1000, crop=Run().data.crop, seed=0)
    optimizer = MomentumSGD(Run().optim, dict(model.named_parameters()))
    saves = []
    with TemporaryDirectory() as folder:  # of a gigabyte; pytest would keep it
        write = CheckpointWriter(Path(folder), {}, Metrics(CollectorRegistry()), keep=2, resumed_from=None, say=print)
        for step in range(1, 4):  # the last removes one
            start = time.monotonic()
            assert write(RunState(step=step), copy_tensors(model, optimizer))
            saves.append(time.monotonic() - start)
    for name, value in TRAINER["environment"].items():
        monkeypatch.setenv(name, value)
    patience = LaunchConfig(1, 1, 1).shutdown_timeout  # as torchrun understands its environment
    grace = int(TRAINER["stop_grace_period"].removesuffix("s"))
    # Twice: another may have just begun when the stop comes.
    assert patience and 2 * max(saves) < patience < grace, saves


@pytest.mark.parametrize("status", [200, 503])
def test_the_healthcheck_is_the_workers_own(status: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        kind, _, *words = TRAINER["healthcheck"]["test"]
        command = [sys.executable, *(word.replace("8000", str(server.server_port)) for word in words)]
        assert kind == "CMD" and (subprocess.run(command).returncode == 0) == (status == 200)
        server.shutdown()


def test_grafana_has_no_weak_default_password() -> None:
    grafana = SERVICES["grafana"]
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_PASSWORD:-}"
    assert not [name for name in grafana["environment"] if "ANONYMOUS" in name]
    command = [word.replace("$$", "$") for word in grafana["entrypoint"]]
    done = subprocess.run(command, env={"GF_SECURITY_ADMIN_PASSWORD": ""}, capture_output=True, text=True)
    assert done.returncode == 2 and re.match("error: GRAFANA_PASSWORD is not set, expected .*; .*\n$", done.stderr)


def test_the_image_holds_all_packages_and_nothing_else_and_compiles_into_a_volume() -> None:
    assert "# syntax" not in DOCKERFILE
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"python:3.11-slim-bookworm", "base"}
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M) == [TRAINER["user"]]
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {pattern.removesuffix("*") for pattern in found}
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for word in line.split()}
    allowed = {line.removeprefix("!") for line in IGNORED.splitlines() if line.startswith("!")}
    assert "*" in IGNORED.splitlines() and packages < copied == allowed
    volumes = [volume.split(":")[1] for volume in TRAINER["volumes"]]
    for cache in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        (path,) = re.findall(rf"\b{cache}=(\S+)", DOCKERFILE)
        assert str(Path(path).parent) in volumes


def test_every_variable_is_explained_where_one_looks_first() -> None:
    header = COMPOSE.partition("\nname:")[0]
    assert set(re.findall(r"\$\{(\w+)", COMPOSE)) == set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b", header)) - {"GPU"}
