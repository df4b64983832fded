"""Training, evaluation and bench as processes of their own, as users start them."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import pipeline.load.batch_loader  # noqa: F401  what the worker needs: without DALI there is no trial
from service.run.checkpoint import FOLDER

from .context import Context, Failed, Found

STEPS, KILLED_AFTER, EVERY = 24, 8, 4  # the kill may come at any step from the second checkpoint on


def command(context: Context, out: Path, *options: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """A small run of the paper's network; on a CPU with small pictures, and not compiled."""
    call = [
        sys.executable,
        *launcher,
        "-m",
        "service.train",
        "paper",
        "--data.shards",
        context.squares,
        "--out",
        str(out),
    ]
    call += ["--device", context.place, "--port", "0", "--batch-size", "32" if context.cuda else "8"]
    call += ["--optim.lr", "0.0001"]  # the paper's is too high for so small a batch
    if not context.cuda:
        call += ["--no-compile", "--data.crop", "67", "--model.fc-width", "64"]
    return [*call, *options]


def finish(call: list[str]) -> str:
    """Run to the end; what it says."""
    done = subprocess.run(call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Failed(f"ended with {done.returncode}: {' '.join(call[1:5])}: {done.stdout[-1500:]}")
    return done.stdout


def losses(out: Path) -> dict[int, float]:
    """Loss by step, of a log's complete lines."""
    path = out / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(each) for each in lines if each.endswith("\n")]
    return {record["step"]: record["loss"] for record in records if "gradient_norm" in record}


def weights(out: Path, step: int) -> dict[str, Tensor]:
    """Weights and velocities of a checkpoint."""
    files = sorted((out / FOLDER / f"step-{step:08d}").glob("*.safetensors"))
    found = {name: tensor for path in files for name, tensor in load_file(path).items()}
    if not found:
        raise Failed(f"{out / FOLDER} has no weights of step {step}")
    return found


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal, bit for bit."""
    return sorted(
        name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name])
    )


def resume(context: Context) -> Found:
    """Weights and velocities of a run that is killed and started again equal, bit for bit, those of one that is not."""
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        options = ("--max-steps", str(STEPS), "--checkpoint-every", str(EVERY), "--deterministic")
        finish(command(context, whole, *options))
        at = kill_at(command(context, killed, *options), killed, KILLED_AFTER)
        said = finish(command(context, killed, *options))
        if "restart 1" not in said:
            raise Failed(f"the second start did not resume: {said[-500:]}")
        wrong = differing(weights(whole, STEPS), weights(killed, STEPS))
        if wrong or losses(whole) != losses(killed):
            raise Failed(
                f"killed after step {at}: {len(wrong)} tensors differ, {wrong[:3]}, or losses do: "
                f"{losses(whole)}, {losses(killed)}"
            )
        return Found(f"killed after step {at} of {STEPS}, {len(weights(whole, STEPS))} tensors and all losses equal")


def kill_at(call: list[str], out: Path, step: int) -> int:
    """Start a run and kill it when it has a checkpoint of this step or later; the last step that it has logged."""
    with started(call) as process:
        while not any(int(path.name[5:]) >= step for path in (out / FOLDER).glob("step-[0-9]*[0-9]")):
            if process.poll() is not None:
                raise Failed(f"the run ended with {process.returncode} before its checkpoint of step {step}")
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    return max(losses(out))


@contextmanager
def started(call: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended when the block is left."""
    process = subprocess.Popen(call, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def under_torchrun(context: Context) -> Found:
    """Trains, saves and resumes as torchrun's one rank, which joins a group (NCCL on a GPU)."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        out = Path(folder)
        for steps in (3, 6):
            said = finish(command(context, out, "--max-steps", str(steps), launcher=launcher))
        found = losses(out)
    if sorted(found) != list(range(1, 7)) or "restart 1" not in said:
        raise Failed(f"logged losses {found}, expected six and a resume: {said[-500:]}")
    return Found(f"six steps over a resume, losses {found[1]:.3f} to {found[6]:.3f}")


def evaluation(context: Context) -> Found:
    """A network of a few steps on ten views: the same figures for batches of 1 and 128, and about those of the CPU."""
    with tempfile.TemporaryDirectory(dir=context.folder) as out:
        finish(command(context, Path(out), "--max-steps", "6", "--no-compile"))
        found = []
        for device, batch_size in ((context.place, 1), (context.place, 128), ("cpu", 128)):
            call = [sys.executable, "-m", "service.evaluate", out, "--shards", context.squares, "--views", "10"]
            finish([*call, "--device", device, "--batch-size", str(batch_size), "--json", f"{out}/found.json"])
            found.append(json.loads(Path(out, "found.json").read_text()))
    one, many, cpu = found
    words = f"top-1 error {one['top1_error']:.4f} of {one['samples']} pictures, {cpu['top1_error']:.4f} on the CPU"
    # A picture or two may stand between two classes, for TF32 as for any rounding.
    if one != many or abs(one["top1_error"] - cpu["top1_error"]) * one["samples"] > 2:
        raise Failed(f"{words}, {many['top1_error']:.4f} in batches of 128")
    return Found(words)


def bench(context: Context) -> Found:
    """The bench measures and tunes."""
    call = [sys.executable, "-m", "pipeline.bench", context.squares, "--device", context.place]
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        found, saved = Path(folder, "found.json"), Path(folder, "tuned.json")
        finish([*call, "--seconds", "1", "--rounds", "3", "--json", str(found), "--out", f"{folder}/x.png"])
        finish([*call, "--tune", "--tune-seconds", "20" if context.cuda else "5", "--save", str(saved)])
        stages = json.loads(found.read_text())["stages"]
        (machine,) = json.loads(saved.read_text())["machines"]
    if context.cuda and not machine["machine"]["gpu"]:
        raise Failed(f"tuned for {machine['machine']}, expected the GPU's name")
    speeds = [f"{each['name']} {each['images_per_second']['median']:,.0f}" for each in stages]
    return Found(f"{', '.join(speeds)} images/s; {machine['tuned']}")
