"""Whether JPEG decoding works here, tried in a process of its own because a broken decoder ends its process.

DALI 2.4 needs nvImageCodec 0.9.0, whose GPU decoder crashed on H100 and B200 (NVIDIA/nvImageCodec issue 55).
"""

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

SECONDS = 120  # a first CUDA start can take a while
NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})


def gpu_decoder_works(gpu: int = 0, options: Mapping[str, Any] = NO_OPTIONS) -> bool:
    """Decode one picture on the GPU in a subprocess; any failure means no, and its reason goes to stderr."""
    if not (why := decoder_failure("gpu", gpu, options)):
        return True
    sys.stderr.write(f"JPEG decoding on GPU {gpu} does not work here, decoding on the CPU: {why}\n")
    return False


def decoder_failure(device: Literal["cpu", "gpu"], gpu: int = 0, options: Mapping[str, Any] = NO_OPTIONS) -> str:
    """Why a subprocess cannot decode one picture on `device`, its last line on stderr; empty when it can.

    gpu: which, as this process counts them. options: what DALI's decoder is told.
    """
    command = [sys.executable, "-m", __name__, device, str(gpu), json.dumps(dict(options))]
    try:
        trial = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    if trial.returncode == 0:
        return ""
    return (trial.stderr.strip().splitlines() or [f"exit status {trial.returncode}"])[-1]


def _decode_one(device: str, gpu: int, options: Mapping[str, Any]) -> None:
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (256, 256), (200, 100, 50)).save(stream, "JPEG", quality=95)
    jpeg = np.frombuffer(stream.getvalue(), np.uint8)
    graph = Pipeline(batch_size=8, num_threads=2, device_id=gpu if device == "gpu" else None)
    with graph:
        jpegs = fn.external_source(lambda: [jpeg] * 8, batch=True)
        graph.set_outputs(fn.decoders.image(jpegs, device="mixed" if device == "gpu" else "cpu", **options))
    graph.build()
    (pictures,) = graph.run()
    decoded = np.asarray(pictures.as_cpu().as_tensor())
    if abs(decoded.astype(int) - (200, 100, 50)).max() > 4:
        raise SystemExit("decoded pixels are wrong")


if __name__ == "__main__":
    _decode_one(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
