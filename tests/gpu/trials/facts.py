"""Machine, versions and containers; torch is imported late, so that versions are told also where it breaks."""

import platform
import re
from importlib.metadata import distributions
from pathlib import Path

from .context import Context, Found, Skipped

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "nvidia-dali",
    "nvidia-nvimgcodec",
    "nvidia-nvjpeg",
    "nvidia-nccl",
    "simplejpeg",
)
DOCKERFILES = Path(__file__).parents[3]


def versions(context: Context) -> Found:
    """What runs here."""
    packages = sorted({f"{each.name} {each.version}" for each in distributions() if each.name.startswith(PACKAGES)})
    facts = {"device": processor(), "Python": platform.python_version(), "packages": ", ".join(packages)}
    if context.cuda:
        import torch

        gpu = torch.cuda.get_device_properties(0)
        size = f"{gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}"
        facts["device"] = f"{torch.cuda.device_count()} x {gpu.name}, {size}; {facts['device']}"
        facts |= {"driver": driver(), "CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return Found("; ".join(f"{name} {value}" for name, value in facts.items()), facts=facts)


def processor() -> str:
    """The processor's name and how many cores this process may use."""
    from pipeline.host.cpus import usable_cores

    found = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    return f"{found[1] if found else platform.machine()}, {usable_cores()} cores"


def driver() -> str:
    """The NVIDIA driver's version."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def containers(context: Context) -> Found:
    """The image's base and CUDA, and whether an engine here has NVIDIA's runtime."""
    import torch

    from service.diagnostics.gpu import find_docker

    docker = find_docker()
    if docker is None or docker.complaint:
        raise Skipped(f"no Docker engine here{f' ({docker.complaint})' if docker else ''}")
    files = [path for path in (DOCKERFILES / "Dockerfile", *DOCKERFILES.glob("docker/*Dockerfile*")) if path.exists()]
    bases = [word for path in files for word in re.findall(r"^FROM (.*)$", path.read_text(), re.MULTILINE)]
    nvidia = "nvidia" in docker.runtimes or any(device.startswith("nvidia.com/gpu") for device in docker.devices)
    words = f"engine {docker.version}, runtimes {', '.join(docker.runtimes)}; image from {', '.join(bases)}"
    return Found(f"{words}; NVIDIA's runtime is {'' if nvidia else 'not '}there; torch's CUDA is {torch.version.cuda}")
