"""What service.doctor looks at where there is an NVIDIA GPU: driver, torch's build, decoding, NCCL, containers."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pynvml

from service.diagnostics.environment import variables
from service.diagnostics.finding import Finding, size
from service.diagnostics.probes import Outcome

DOCKER_SECONDS: Final = 10.0
NVIDIA: Final = "0x10de"  # PCI vendor
DISPLAY: Final = "0x03"  # PCI class
# The oldest driver for each major version of CUDA; all its later releases run on it too (minor version
# compatibility, CUDA's release notes).
DRIVERS: Final = {12: 525, 13: 580}
OTHER_BUILD: Final = "make clean, then make demo PIP_ARGS='--extra-index-url ...'"

Wanted = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What NVML says, and what the PCI bus shows where it says nothing."""

    complaint: str = ""  # why NVML does not answer
    on_bus: int = 0  # NVIDIA GPUs, which a container sees even if it may not use them
    version: str = ""
    cuda: tuple[int, int] = (0, 0)  # newest that the driver supports
    gpus: tuple[str, ...] = ()
    free: tuple[int, ...] = ()  # bytes of each one's memory


def find_driver(pci: Path = Path("/sys/bus/pci/devices")) -> Driver:
    """Ask NVML, not CUDA, which does not start with a wrong driver."""
    on_bus = sum(_is_gpu(device) for device in pci.glob("*"))
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Driver(complaint=str(error), on_bus=on_bus)
    try:
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return Driver(
            on_bus=on_bus,
            version=_text(pynvml.nvmlSystemGetDriverVersion()),
            cuda=(cuda // 1000, cuda % 1000 // 10),
            gpus=tuple(_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles),
            free=tuple(_free(handle) for handle in handles),
        )
    except pynvml.NVMLError as error:
        return Driver(complaint=str(error), on_bus=on_bus)
    finally:
        pynvml.nvmlShutdown()


def _is_gpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text(encoding="utf-8").strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == NVIDIA and kind.startswith(DISPLAY)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _free(handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except pynvml.NVMLError:  # GPUs that share the host's memory
        return 0


def judge_driver(driver: Driver, torch_cuda: str | None, wanted: Wanted) -> Finding:
    """torch_cuda: what torch is built for, None for no CUDA. A GPU that cannot be used fails only where asked for."""
    bad = "failed" if wanted == "gpu" else "warning"
    flags = ("--device cpu",) if wanted == "gpu" else ()
    cpu = "trains on the processor, which takes many times as long"
    if not driver.gpus:
        if driver.complaint and driver.on_bus:
            found = f"{driver.on_bus} of NVIDIA on the bus, but no driver answers ({driver.complaint})"
            if "mismatch" in driver.complaint.lower():
                return Finding(bad, "GPU", found, cpu, "the driver was upgraded: reboot", flags)
            remedy = "install NVIDIA's driver, 580 or newer; in Docker, --gpus all"
            return Finding(bad, "GPU", found, cpu, remedy, flags)
        if wanted == "gpu":
            return Finding("failed", "GPU", "none", "service.train does not start", "use --device cpu", flags)
        return Finding("ok", "GPU", "none: trains on the processor")
    names = " and ".join(
        f"{driver.gpus.count(name)} x {name}" if driver.gpus.count(name) > 1 else name
        for name in dict.fromkeys(driver.gpus)
    )
    found = f"{names}, {size(min(driver.free))} free; driver {driver.version}, CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    if torch_cuda is None:
        follows = f"this torch is built without CUDA: {cpu}"
        return Finding(bad, "GPU", found, follows, "make clean, then make demo without a CPU index in PIP_ARGS", flags)
    needed = int(torch_cuda.split(".")[0])
    if driver.cuda[0] < needed:
        oldest = f"driver {DRIVERS[needed]} or newer" if needed in DRIVERS else "a newer driver"
        supports = f"driver {driver.version.split('.')[0]} supports CUDA {driver.cuda[0]}.{driver.cuda[1]}"
        follows = f"{supports}, this torch needs {torch_cuda} ({oldest}): {cpu}"
        remedy = f"upgrade the driver, or {OTHER_BUILD} for a cu{driver.cuda[0]} build"
        return Finding(bad, "GPU", found, follows, remedy, flags)
    return Finding("ok", "GPU", found)


def runs_on(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether kernels for these architectures (sm_80, sm_90a, compute_90) run on a GPU of this compute capability.

    sm_ code runs on later GPUs of the same major version; PTX (compute_...) is compiled for any later one; with a
    letter at its end, either runs on the very same capability only.
    """
    for kind, major, minor, letter in re.findall(r"(sm|compute)_(\d+)(\d)([af]?)", " ".join(built_for)):
        built = int(major), int(minor)
        if built == capability:
            return True
        if not letter and built < capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def judge_cuda(outcome: Outcome, wanted: Wanted, hidden: str | None = None) -> Finding:
    """tried: probes.compute_on_gpus. hidden: CUDA_VISIBLE_DEVICES, where it is set."""
    failed = "training on the GPU fails at its start"
    if outcome.why:
        remedy = "nvidia-smi and dmesg say more (Xid); or use --device cpu"
        return Finding("failed", "CUDA", f"does not start ({outcome.why})", failed, remedy, ("--device cpu",))
    gpus = outcome.value["gpus"]
    if not gpus:
        bad, flags = ("failed", ("--device cpu",)) if wanted == "gpu" else ("warning", ())
        if hidden is not None:
            found, remedy = f"CUDA_VISIBLE_DEVICES={hidden} leaves no GPU", "unset CUDA_VISIBLE_DEVICES"
        else:
            found, remedy = "torch finds no GPU", 'python -c "import torch; torch.cuda.init()" says why'
        return Finding(bad, "CUDA", found, "trains on the processor, which takes many times as long", remedy, flags)
    built_for = outcome.value["built_for"]
    for gpu in gpus:
        if not runs_on((gpu["capability"][0], gpu["capability"][1]), built_for):
            capability = "".join(map(str, gpu["capability"]))
            found = f"{gpu['name']} is sm_{capability}, torch is built for {' '.join(built_for)}"
            follows = "kernels may be missing or slow"
            return Finding("warning", "CUDA", found, follows, f"{OTHER_BUILD} for a build that has it")
    kinds = {f"{gpu['bfloat16'] or 'no bfloat16'}; --model.precision auto is {gpu['precision']}" for gpu in gpus}
    how = f"{len(gpus)} GPUs compute" if len(gpus) > 1 else "computes"
    return Finding("ok", "CUDA", f"{how}; {'; '.join(sorted(kinds))}")


def judge_decoding(failure: str) -> Finding:
    """failure: what find_decoder returned for the GPU."""
    if failure:
        remedy = (
            "use --data.decoder cpu, which skips the trial at each start; a newer driver or nvImageCodec may mend it"
        )
        follows = "pictures are decoded by the processor, which may be what training waits for"
        return Finding("warning", "decoding", f"not on the GPU ({failure})", follows, remedy, ("--data.decoder cpu",))
    return Finding("ok", "decoding", "JPEG on the GPU works")


def judge_nccl(outcome: Outcome, gpus: int) -> Finding:
    """outcome: of probes.all_reduce over all GPUs."""
    if outcome.why:
        remedy = "NCCL_DEBUG=INFO says why, NCCL_P2P_DISABLE=1 avoids a broken link; one GPU trains without"
        follows = "service.launch on several GPUs fails at its start"
        flags = ("CUDA_VISIBLE_DEVICES=0",)
        return Finding("failed", "NCCL", f"{gpus} GPUs do not exchange ({outcome.why})", follows, remedy, flags)
    return Finding("ok", "NCCL", f"{gpus} GPUs exchange")


@dataclass(frozen=True, kw_only=True)
class Docker:
    """What docker info says of the Docker engine."""

    complaint: str = ""  # why the engine does not answer
    version: str = ""
    runtimes: tuple[str, ...] = field(default=())
    devices: tuple[str, ...] = field(default=())  # of the Container Device Interface


def find_docker() -> Docker | None:
    """None where there is no docker client."""
    if not (client := shutil.which("docker")):
        return None
    try:
        said = subprocess.run(
            [client, "info", "--format", "{{json .}}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOCKER_SECONDS,
        )
        info = json.loads(said.stdout or "{}")
    except subprocess.TimeoutExpired:
        return Docker(complaint=f"no answer in {DOCKER_SECONDS:g} s")
    except (OSError, ValueError) as error:
        return Docker(complaint=str(error))
    if not info.get("ServerVersion"):
        reasons = info.get("ServerErrors") or said.stderr.strip().splitlines() or ["it says nothing"]
        return Docker(complaint=reasons[-1])
    found = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []]
    return Docker(version=info["ServerVersion"], runtimes=tuple(info.get("Runtimes") or ()), devices=tuple(found))


def judge_docker(docker: Docker | None, gpus: int) -> Finding | None:
    """None where there is no Docker; nothing but `docker compose up` needs it."""
    if docker is None:
        return None
    if docker.complaint:
        found = f"no engine ({docker.complaint})"
        follows = "docker compose up trainer fails; without containers nothing changes"
        return Finding(
            "warning", "docker", found, follows, "start it (systemctl start docker), or join the group docker"
        )
    engine = f"engine {docker.version}"
    if not gpus:
        return Finding("ok", "docker", f"{engine}; for no GPU: -f docker-compose.yml -f docker/compose.cpu.yml")
    if "nvidia" in docker.runtimes or any(device.startswith("nvidia.com/gpu") for device in docker.devices):
        return Finding("ok", "docker", f"{engine} with NVIDIA's container toolkit")
    remedy = "install nvidia-container-toolkit, then nvidia-ctk runtime configure --runtime=docker, and restart Docker"
    follows = "docker compose up trainer finds no GPU; without containers nothing changes"
    return Finding("warning", "docker", f"{engine} without NVIDIA's container toolkit", follows, remedy)


def hidden_gpus() -> str | None:
    """CUDA_VISIBLE_DEVICES, where it is set."""
    return variables().get("CUDA_VISIBLE_DEVICES")
