"""The fused kernels compiled by the assembler that Triton brings: none may spill registers.

    python compile_kernels.py 80 90 100    # for sm_80, sm_90 and sm_100

Needs no GPU. The shapes are those of the paper's layers; CHANNELS is divisible by 16, as the launcher will find.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.layers.fused import Pooling, constants, constants_of, tile
from model.layers.fused_kernels import pool_backward, pool_forward
from model.layers.lrn import LRNConfig

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {"bias_ptr": "*fp32", "partial_ptr": "*fp32", "argmax_ptr": "*u8"}
PAPER = Pooling(before="relu", lrn=LRNConfig())
SOURCE = Pooling(lrn=LRNConfig(), after="tanh")
CONV5 = Pooling(after="relu")


def resource_usage(kernel, dtype: torch.dtype, channels: int, pooling: Pooling, capability: int) -> str:
    pixels, block = tile(channels, bool(pooling.lrn))
    constexprs = {**constants(*constants_of(dtype, pooling)), "PIXELS": pixels, "BLOCK": block}
    map_type = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    signature = {
        name: "constexpr" if name in constexprs else POINTERS.get(name, map_type if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr") or name == "CHANNELS"
    }
    source = ASTSource(kernel, signature, constexprs=constexprs, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for kernel in (pool_forward, pool_backward):
            for channels, dtype, pooling in [
                (48, torch.bfloat16, PAPER),
                (128, torch.bfloat16, PAPER),
                (48, torch.float32, PAPER),
                (128, torch.float32, SOURCE),
                (128, torch.bfloat16, CONV5),
                (48, torch.float32, Pooling(before="logistic", lrn=LRNConfig(), size=2)),
            ]:
                usage = resource_usage(kernel, dtype, channels, pooling, capability)
                found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
                assert found, usage
                registers, stack, local = map(int, found.groups())
                where = f"{kernel.__name__} {dtype} {channels} sm_{capability}: {usage}"
                assert stack == local == 0 and registers <= 168, where
