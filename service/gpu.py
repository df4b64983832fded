"""What NVML says of this process's GPU."""

from functools import cache
from typing import Any, NamedTuple

import pynvml
import torch


class GpuState(NamedTuple):
    """NaN where there is no GPU or no NVML."""

    utilization: float = float("nan")  # 0..1, over NVML's last sampling period
    celsius: float = float("nan")


def gpu_state() -> GpuState:
    """Of the GPU that this process computes on; never starts CUDA by itself."""
    if not torch.cuda.is_initialized():
        return GpuState()
    try:
        handle = _handle(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
        utilization = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        return GpuState(utilization, pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return GpuState()


@cache
def _handle(uuid: str) -> Any:
    """By UUID, because CUDA_VISIBLE_DEVICES numbers GPUs anew and NVML does not."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
