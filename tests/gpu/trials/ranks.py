"""Every layout of several ranks against one process, and a resume: over NCCL with two GPUs or more, over gloo on a CPU.

Tolerance of losses over the steps, relative: 0.01. The ranks' sums are in another order, and on a GPU convolutions of
other shapes may run other kernels, in TF32; the rate is small, so that this does not lead the networks apart.
"""

import tempfile
from pathlib import Path

import torch

from .context import Context, Failed, Found, Skipped
from .worker import command, differing, finish, kill_at, losses, weights

TOLERANCE = 0.01
STEPS = 4


def layouts(context: Context) -> Found:
    """Losses of each layout that the number of GPUs allows against one process's; then a resume of the first."""
    ranks = torch.cuda.device_count() if context.cuda else 2
    if ranks < 2:
        raise Skipped("needs two GPUs")
    said = []
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        options = ("--max-steps", str(STEPS), "--model.precision", "float32")
        finish(command(context, alone := Path(folder, "alone"), *options))
        expected = losses(alone)
        for name, count in ways(context, ranks):
            out = Path(folder, name)
            finish(command(context, out, *options, "--parallel", name, launcher=torchrun(count)))
            found = losses(out)
            if found.keys() != expected.keys():
                raise Failed(f"{name}: losses of steps {sorted(found)}, expected {sorted(expected)}")
            worst = max(abs(found[step] - expected[step]) / expected[step] for step in expected)
            if worst > TOLERANCE:
                raise Failed(f"{name}, {count} ranks: losses within {worst:.5f} of one process's, expected {TOLERANCE}")
            said.append(f"{name} of {count}: losses within {worst:.6f}")
        said.append(_resume(context, Path(folder)))
    return Found("; ".join(said))


def ways(context: Context, ranks: int) -> list[tuple[str, int]]:
    """Layouts with the number of ranks for each."""
    if not context.cuda:
        return [("tower", 2)]
    even = ranks - ranks % 2
    return [("tower", 2), ("data", ranks), ("2014", even), *([("tower+data", even)] if even >= 4 else [])]


def torchrun(ranks: int) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))


def _resume(context: Context, folder: Path) -> str:
    """Two towers, killed and started again, against two that are not: equal, bit for bit."""
    steps = 12
    options = ("--max-steps", str(steps), "--checkpoint-every", "4", "--parallel", "tower", "--deterministic")
    whole, killed = folder / "whole", folder / "killed"
    finish(command(context, whole, *options, launcher=torchrun(2)))
    at = kill_at(command(context, killed, *options, launcher=torchrun(2)), killed, 4)
    finish(command(context, killed, *options, launcher=torchrun(2)))
    if wrong := differing(weights(whole, steps), weights(killed, steps)):
        raise Failed(f"killed after step {at}: {len(wrong)} tensors differ after the resume, {wrong[:3]}")
    return f"killed after step {at} and resumed: all tensors equal"
