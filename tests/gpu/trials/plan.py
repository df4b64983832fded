"""All trials with their time limits, the most valuable first."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A trial by name, and the function that makes it."""

    name: str
    module: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)
    seconds: float = 120  # at most
    data: bool = False  # needs pictures
    cuda: bool = False  # makes no sense without


DATA = Trial("data", "data", "make_data", seconds=120)
PRECISIONS = ("bfloat16", "float32", "mixed")


def plan(device: str) -> list[Trial]:
    """The trials of a device, in the order in which one wants to know."""
    cuda = device == "cuda"
    precisions = PRECISIONS if cuda else ("float32",)
    decoders = ("gpu", "cpu") if cuda else ("cpu",)
    return [
        Trial("versions", "facts", "versions", seconds=60),
        Trial("dropout masks", "step", "masks"),
        Trial("kernels, parity", "kernels", "parity"),
        *(Trial(f"step, {each}", "step", "parity", {"precision": each}, seconds=300) for each in precisions),
        Trial("step, CUDA graphs", "step", "graphs", seconds=240, cuda=True),
        Trial("worker, kill and resume", "worker", "resume", seconds=300, data=True),
        Trial("step's profile, bfloat16", "speed", "profile", {"precision": "bfloat16"}, seconds=240, cuda=True),
        Trial("probe of GPU decoding", "loader", "probe", cuda=True),
        *(_speed_of_loader(decoder) for decoder in decoders),
        Trial("loader's speed, raw shards", "loader", "speed", {"decoder": "cpu", "raw": True}, data=True),
        *(
            Trial(f"step's speed, {each}", "speed", "step_speed", {"precision": each}, seconds=240)
            for each in precisions
        ),
        Trial("ranks against one process", "ranks", "layouts", seconds=400, data=True),
        *(
            Trial(f"loader and step, {decoder} decoder", "speed", "whole", {"decoder": decoder}, seconds=180, data=True)
            for decoder in decoders
        ),
        Trial("kernels, bandwidth", "kernels", "bandwidth", seconds=180),
        *_parity_of_loader(decoders),
        Trial("checkpoint's pause", "speed", "checkpoint_pause"),
        Trial("containers", "facts", "containers", seconds=60),
        Trial(
            "step's speed, deterministic",
            "speed",
            "step_speed",
            {"precision": "bfloat16", "deterministic": True},
            240,
            cuda=True,
        ),
        Trial("loader's settings", "loader", "settings", seconds=180, data=True, cuda=True),
        Trial("worker under torchrun", "worker", "under_torchrun", seconds=240, data=True),
        Trial("evaluation", "worker", "evaluation", seconds=240, data=True),
        Trial("bench", "worker", "bench", seconds=180, data=True),
    ]


def _speed_of_loader(decoder: str) -> Trial:
    return Trial(f"loader's speed, {decoder} decoder", "loader", "speed", {"decoder": decoder}, data=True)


def _parity_of_loader(decoders: tuple[str, ...]) -> list[Trial]:
    """The loader's batches against the CPU's, by each decoder and of raw shards."""
    ways = [(f"{decoder} decoder", {"decoder": decoder}) for decoder in decoders]
    ways += [("raw shards", {"decoder": "cpu", "raw": True})]
    found = []
    for where, options in ways:
        found += [
            Trial(f"loader's hand-over, {where}", "loader", "hand_over", options, data=True),
            Trial(f"loader's parity, {where}", "loader", "parity", options, data=True),
        ]
    for where, options in ways[:-1]:
        found += [
            Trial(f"loader's parity of original sizes, {where}", "loader", "resized_parity", options, data=True),
            Trial(f"loader's validation, {where}", "loader", "validation", options, data=True),
        ]
    return found
