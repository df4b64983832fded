"""Which precision to compute in: what the device multiplies natively, and what the trials in docs/benchmarks.md allow.

A device without bfloat16 instructions computes in bfloat16 all the same, in several times the time of float32.
"""

import platform
from typing import NamedTuple

import torch

from model.alexnet import Precision


class ChosenPrecision(NamedTuple):
    """A precision, and why."""

    precision: Precision
    reason: str


def bfloat16_instructions(device: torch.device) -> str:
    """What multiplies bfloat16 on a device, in a word; empty where float32 arithmetic emulates it.

    On a CPU it is oneDNN that multiplies, so it must be able to (ONEDNN_MAX_CPU_ISA may forbid it), and the processor
    must have the instructions: oneDNN takes AVX-512 without them for good enough, and then is slower than in float32.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"tensor cores of compute capability {major}.{minor}" if major >= 8 else ""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "bfloat16 instructions"  # oneDNN asks for them there
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 BF16" if torch.cpu._is_avx512_bf16_supported() else ""


def processor_kind() -> str:
    """The instructions that code for this processor may use, as far as torch and oneDNN tell kinds apart."""
    return f"{torch.backends.cpu.get_cpu_capability()} {bfloat16_instructions(torch.device('cpu'))}"


def choose_precision(device: torch.device) -> ChosenPrecision:
    """The fastest precision that trains as well as float32: `mixed` where bfloat16 is native, else float32.

    bfloat16 throughout is faster still on a CPU, but ended outside the spread of float32 in two of three trials on real
    pictures (docs/benchmarks.md); what a GPU would gain by it is not measured.
    """
    if native := bfloat16_instructions(device):
        return ChosenPrecision("mixed", f"bfloat16 by {native}")
    return ChosenPrecision("float32", f"{device_name(device)} has no bfloat16 instructions")


def set_arithmetic(device: torch.device, precision: Precision, *, deterministic: bool) -> str:
    """Set how a GPU computes in a precision, for this process; that in words, none on a CPU, where nothing is set.

    float32 is IEEE float32. What is left of it in the others is convolved in TF32, whose products keep the 10 bits of
    mantissa that tensor cores take: 3 more than bfloat16's. deterministic: the same sums in the same order in every
    process, in place of cuDNN's and Inductor's fastest kernels, which each process finds by timing them.
    """
    if device.type != "cuda":
        return ""
    tf32 = precision != "float32"
    # By the older switches: set by `conv.fp32_precision`, `cudnn.flags` raises from then on (torch 2.13).
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # those that are to be fast are bfloat16's
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        from torch._inductor import config  # here, because it takes a while to import

        config.deterministic = True
    convolutions = "in TF32 where not in bfloat16" if tf32 else "in IEEE float32"
    kernels = (
        "the same in every process" if deterministic else "the fastest here (--deterministic: the same everywhere)"
    )
    return f"convolutions {convolutions}; kernels {kernels}"


def device_name(device: torch.device) -> str:
    """What a person calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor"


def emulated(precision: Precision, device: torch.device) -> bool:
    """Whether a precision asks for bfloat16 where the device must emulate it."""
    return precision != "float32" and not bfloat16_instructions(device)
