"""What NVML says of this process's GPU."""

from functools import cache
from typing import Any, NamedTuple

import pynvml
import torch


class GpuState(NamedTuple):
    """NaN where there is no GPU or no NVML."""

    utilization: float = float("nan")  # 0..1, over NVML's last sampling period
    celsius: float = float("nan")


def gpu_state(gpu: int | None) -> GpuState:
    """Of a GPU, by torch's number of it; None: there is none."""
    if gpu is None:
        return GpuState()
    try:
        handle = _handle(str(torch.cuda.get_device_properties(gpu).uuid))
        utilization = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        return GpuState(utilization, pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return GpuState()


@cache
def _handle(uuid: str) -> Any:
    """By UUID, because CUDA_VISIBLE_DEVICES numbers GPUs anew and NVML does not."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
