"""Utilisation and temperature of this process's GPU, from NVML."""

from functools import cache
from typing import Any, NamedTuple

import pynvml
import torch


class GpuState(NamedTuple):
    """NaN where there is no GPU or no NVML."""

    utilization: float = float("nan")  # 0..1, over NVML's last sampling period
    celsius: float = float("nan")


def gpu_state(gpu: int | None) -> GpuState:
    """The state of a GPU. gpu: torch's device index; None: there is no GPU."""
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
    """Found by UUID, because CUDA_VISIBLE_DEVICES renumbers GPUs for torch but not for NVML."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
