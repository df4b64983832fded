"""What a GPU adds to the measurements: the copy to it, and how busy its JPEG engines are."""

import time

import pynvml
import torch

from pipeline.measure.windows import Window, own_memory, status_bytes


def copy_window(seconds: float, batch_size: int, crossing: int, stored: float) -> Window:
    """Batches of `crossing` bytes a picture, copied from page-locked memory to the GPU. stored: a picture's bytes."""
    host = torch.empty(batch_size * crossing, dtype=torch.uint8).pin_memory()
    device = torch.empty_like(host, device="cuda")
    device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    batches, cpu, begin = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        batches += 1
    images = batches * batch_size
    return Window(
        images=images,
        bytes=round(images * stored),
        seconds=time.perf_counter() - begin,
        cpu_seconds=time.process_time() - cpu,
        peak_rss=status_bytes("VmHWM"),
        peak_own=own_memory(),
    )


def engine_use() -> float | None:
    """How busy the JPEG engines of torch's GPU were in NVML's last sampling period, 0 to 1; None where it cannot say.

    A GPU without such engines cannot, nor can a driver that is older than the question.
    """
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        # By UUID, because CUDA_VISIBLE_DEVICES renumbers GPUs for torch but not for NVML.
        use, _ = pynvml.nvmlDeviceGetJpgUtilization(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return None
    return int(use) / 100
