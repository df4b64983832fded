"""The precision of a run: what suits the device, what a resume keeps, what an operator changes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model.precision
from model.alexnet import AlexNet
from model.precision import ChosenPrecision, bfloat16_instructions, choose_precision, emulated, set_arithmetic
from model.step import StepControls, compiled_train_step, train_step
from processes import command, run
from service.run.checkpoint import newest_checkpoint
from service.run.config import RECIPES, RUN_FILE
from service.training.setup import decide_precision
from steps import TOLD, Bench, examples

CPU = torch.device("cpu")
# What oneDNN may use: with it any machine is one without bfloat16 instructions.
WITHOUT = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_a_processor_has_bfloat16_where_the_kernel_lists_its_instructions() -> None:
    """Against /proc/cpuinfo, unless oneDNN is told not to use what is there."""
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    if not lines or "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("no flags in /proc/cpuinfo, or ONEDNN_MAX_CPU_ISA is set")
    flags = lines[0].split()
    assert bool(bfloat16_instructions(CPU)) == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_a_processor_that_may_not_use_them_computes_in_float32_and_has_compiled_code_of_its_own() -> None:
    """Code that another kind of processor has kept in the same folder ends the process by a signal."""
    code = (
        "import torch; from model.precision import *; from model.step import *; compiled_train_step();"
        "print(choose_precision(torch.device('cpu'))); print(torch.compiler.config.cache_key_tag)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | WITHOUT)
    chosen, tag = answer.stdout.splitlines()
    assert chosen == str(ChosenPrecision("float32", "this processor has no bfloat16 instructions")), answer.stderr
    compiled_train_step()
    assert torch.compiler.config.cache_key_tag.split(maxsplit=1)[1:] == list(filter(None, [bfloat16_instructions(CPU)]))
    assert tag.split() == [torch.backends.cpu.get_cpu_capability()]


@pytest.mark.parametrize("native", ["", "AMX"])
def test_what_suits_what_is_kept_and_what_is_asked(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.precision, "bfloat16_instructions", lambda device: native)
    suits = "mixed" if native else "float32"
    assert choose_precision(CPU).precision == suits == decide_precision("auto", None, CPU).precision
    for kept in ("float32", "mixed", "bfloat16"):
        slow = kept != "float32" and not native
        assert emulated(kept, CPU) == slow
        for chosen in (
            decide_precision("auto", kept, CPU),
            decide_precision(kept, None, CPU),
            decide_precision(kept, "mixed", CPU),
        ):
            assert chosen.precision == kept
            assert ("emulated" in chosen.reason and "--model.precision float32" in chosen.reason) == slow
    assert decide_precision("float32", "mixed", CPU).reason == "as asked, mixed before"


def test_every_recipe_takes_what_suits_and_a_network_only_what_was_decided() -> None:
    for _, recipe in RECIPES.values():
        assert recipe.model.precision == "auto"
    with pytest.raises(ValueError, match="precision is auto, expected float32, mixed or bfloat16"):
        AlexNet(RECIPES["demo"][1].model, classes=10, crop=67)


@pytest.fixture
def arithmetic() -> Iterator[None]:
    """Torch's switches, put back after the test."""
    products = torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(enabled=True), torch._inductor.config.patch(deterministic=False):
        yield
    torch.backends.cuda.matmul.allow_tf32 = products


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_float32_is_ieee_float32_on_a_gpu_and_kernels_are_as_asked(
    precision: Any, deterministic: bool, arithmetic: None
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    said = set_arithmetic(torch.device("cuda"), precision, deterministic=deterministic)
    cudnn = torch.backends.cudnn
    assert cudnn.allow_tf32 == (precision != "float32") == ("TF32" in said) != ("IEEE float32" in said)
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert (cudnn.benchmark, cudnn.deterministic) == (not deterministic, deterministic)
    assert torch._inductor.config.deterministic == deterministic
    with cudnn.flags(
        enabled=True, allow_tf32=False
    ):  # as measuring a network does; a mix of switches would make it raise
        pass
    assert cudnn.allow_tf32 == (precision != "float32")


def test_on_a_processor_nothing_is_set(arithmetic: None) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch._inductor.config.deterministic
    assert set_arithmetic(CPU, "float32", deterministic=True) == ""
    now = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch._inductor.config.deterministic
    assert before == now


class Types(TorchDispatchMode):
    """The types of all numbers that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        return result


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_float32_leaves_no_bfloat16_anywhere(precision) -> None:
    """Neither in the normalisation's sums nor in the first convolution's form, forward or backward."""
    bench = Bench(replace(Bench().model.config, precision=precision))
    with Types() as types:
        train_step(bench.training, StepControls(torch.zeros(2), TOLD), examples())
    assert (torch.bfloat16 in types.seen) == (precision != "float32")


@pytest.mark.slow
def test_a_resume_keeps_the_precision_until_an_operator_changes_it(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def precision_line(steps: int, *options: str, **environment: str) -> str:
        status, output = run(command(shards, out, "--max-steps", str(steps), *options), **environment)
        assert status == 0, output
        (line,) = [line for line in output.splitlines() if line.startswith("precision ")]
        return line

    def kept() -> tuple[str, list[dict[str, Any]]]:
        checkpoint = newest_checkpoint(out, print)
        assert checkpoint
        assert json.loads((out / RUN_FILE).read_text()) == checkpoint.run
        return checkpoint.run["model"]["precision"], list(checkpoint.state.events)

    assert precision_line(1, "--model.precision", "mixed").startswith("precision mixed: as asked")
    line = precision_line(2, **WITHOUT)
    assert line.startswith("precision mixed: as this run has it so far, but emulated")
    assert "--model.precision float32" in line
    assert kept() == ("mixed", [])
    assert precision_line(3, "--model.precision", "float32") == "precision float32: as asked, mixed before"
    precision, (event,) = kept()
    assert precision == "float32"
    assert (event["kind"], event["step"], event["old"], event["new"]) == ("precision", 2, "mixed", "float32")
    assert event["author"] == "command line"
    assert [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()] == [event]
