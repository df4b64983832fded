"""Configuration of a run: its options, the recipes, and `run.json`, which a resume must agree with."""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro
from pydantic import Field

from model.alexnet import ModelConfig
from model.layers.lrn import LRNConfig
from model.optim import FOLLOW_EPOCHS, OptimConfig
from pipeline.command import InputError
from pipeline.files import write_atomic
from pipeline.foreign import Count, Real, checked
from pipeline.load.augment import AugmentConfig
from pipeline.load.config import PLACE_AND_SPEED, DataConfig
from pipeline.source.names import first_few

RUN_FILE: Final = "run.json"
DATASET: Final = "dataset_sha256"

# A resume may change these: they say where, how long and on what, and leave what is computed the same up to rounding.
# (A changed precision is an event, as a changed learning rate is.)
_PLACE_AND_SPEED: Final = frozenset(f"data.{name}" for name in PLACE_AND_SPEED)
MAY_CHANGE: Final = _PLACE_AND_SPEED | frozenset(
    {
        "data.decoder",
        "data.output",
        "data.most_damaged",
        "out",
        "parent",
        "keep",
        "epochs",
        "max_steps",
        "checkpoint_seconds",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "replay",
        "on_fault",
        "most_faults",
        "loss_limit",
        "most_restarts",
        "model.precision",
        "device",
        "compile",
        "deterministic",
        "parallel",
        "host",
        "port",
        "token_file",
        "tls_certificate",
        "tls_key",
        "peak_tflops",
        "stall_seconds",
    }
)


# Ranks may differ in these: where things are, and how a host reads its pictures.
PER_RANK: Final = _PLACE_AND_SPEED | frozenset(
    {"data.decoder", "out", "host", "port", "token_file", "tls_certificate", "tls_key"}
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run; the defaults are the paper's."""

    recipe: Annotated[str, tyro.conf.Suppress] = "paper"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=partial(ModelConfig, precision="auto"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    out: Path = Path("run")
    """Folder of the run: checkpoints, log.jsonl, events.jsonl; a run that is there goes on where it stopped."""
    parent: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Start from the network of another run, or of a checkpoint; a run that is already in --out goes on instead."""
    keep: Literal["all", "weights"] = "all"
    """What --from brings. all: weights, velocities, averages, position and history, as a fork of the run; weights:
    those alone (the averaged ones, where there are any), of a file too, and layers that only the new network has, or
    whose classes are others, start afresh."""
    batch_size: int = 128
    """Pictures a step, over all ranks; section 5."""
    epochs: int = 90
    """Passes over the training set; section 5 took roughly 90. Schedules cosine and one-cycle end with them."""
    max_steps: int = 0
    """End cleanly after this many steps; 0 means after the epochs."""
    checkpoint_seconds: float = 600.0
    """Seconds between checkpoints, about what a fault may cost; each epoch's end has one besides. 0: none by time."""
    checkpoint_every: int = 0
    """Steps between checkpoints, besides those by time; 0: none by steps."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep, at least 2; the best and the one resumed from stay besides."""
    log_every: int = 1
    """Steps between lines of log.jsonl."""
    on_fault: Literal["end", "skip", "rollback"] = "end"
    """When a step's loss or gradient is not finite, or its loss beyond loss_limit. end: the run, with the weights from
    before; skip: leave that batch out; rollback: go back to the last checkpoint and leave out all pictures since."""
    most_faults: int = 10
    """So many faults a run may skip or roll back; the next one ends it."""
    loss_limit: float = 0.0
    """A step's loss is a fault beyond so many times the median of the last 100 steps'; 0: only what is not finite."""
    most_restarts: int = 10
    """So many starts in a row may go on from one checkpoint and end in a fault before the next one; then it is refused
    to start."""
    replay: int = 0
    """Train nothing, but do this step of the run in --out once more, from the last checkpoint before it, and look at
    it: what each layer and gradient holds, and the pictures, in OUT/replay-STEP. By one process. 0: train."""
    seed: int = 0
    """Of the order, the augmentation, the initial weights and the dropout masks."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU where there is one."""
    compile: bool = True
    """Compile the step; without, the first step comes sooner and each one is slower."""
    deterministic: bool = False
    """On a GPU, take kernels that add in the same order in every process, so that a resume is bit for bit the same
    there too, instead of the fastest; on a CPU it always is. Exchanges between ranks then wait for all of backward."""
    parallel: Literal["auto", "tower", "data", "tower+data", "2014"] = "auto"
    """How torchrun's processes share the work. tower: two, a tower each; data: each has both; tower+data: pairs;
    2014: pairs that share only fully connected layers. auto: two are the paper's GPUs, more are pairs where even."""
    host: str = "127.0.0.1"
    """Address that the page, metrics and control are served on; 0.0.0.0 is all of this machine's."""
    port: int = 8000
    """Port of the same, plus the local rank; 0 picks a free one and prints it."""
    token_file: Path | None = None
    """File of operators' tokens, mode 600, lines TOKEN or NAME:TOKEN; without one nobody can steer the run."""
    tls_certificate: Path | None = None
    """PEM file with the server's certificate and those above it, for https."""
    tls_key: Path | None = None
    """PEM file with its private key."""
    peak_tflops: float = 0.0
    """Of one device, in the precision that trains, for trainer_mfu_ratio (an H200 in bfloat16: 989); 0: not known."""
    stall_seconds: float = 600.0
    """/healthz reports a stall when no step or validation batch has ended for so long, and all threads' stacks are
    written to --out; after three times as long the process ends itself, with status 1. Compiling may take 5 times."""

    def __post_init__(self) -> None:
        minimum = {"batch_size": 1, "epochs": 1, "max_steps": 0, "checkpoint_every": 0, "keep_checkpoints": 2}
        minimum |= {
            "log_every": 1,
            "most_faults": 1,
            "most_restarts": 1,
            "replay": 0,
            "seed": 0,
            "port": 0,
            "peak_tflops": 0,
        }
        for name, least in minimum.items():
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} is {value}, expected at least {least}; set --{name.replace('_', '-')}")
        if self.optim.warmup_epochs >= self.epochs:
            expected = f"fewer than the run's {self.epochs} epochs; set --optim.warmup-epochs"
            raise InputError(f"warmup_epochs is {self.optim.warmup_epochs:g}, expected {expected}")
        if not 0 < self.stall_seconds < float("inf"):
            raise InputError(f"stall_seconds is {self.stall_seconds}, expected a number above 0; set --stall-seconds")
        if self.loss_limit and not 1 < self.loss_limit < float("inf"):
            raise InputError(f"loss_limit is {self.loss_limit}, expected a number above 1, or 0; set --loss-limit")
        if not 0 <= self.checkpoint_seconds < float("inf"):
            expected = "a number of at least 0; set --checkpoint-seconds"
            raise InputError(f"checkpoint_seconds is {self.checkpoint_seconds}, expected {expected}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            given = "--tls-certificate" if self.tls_certificate else "--tls-key"
            raise InputError(f"{given} is alone, expected --tls-certificate and --tls-key; give both or none")
        maximum = {"port": 65535, "seed": 2**64 - 1}
        if self.keep == "weights" and not self.parent:
            raise InputError("--keep is for what --from brings, expected both; give --from CHECKPOINT")
        for name, most in maximum.items():
            if (value := getattr(self, name)) > most:
                raise InputError(f"{name} is {value}, expected at most {most}; set --{name}")


# The 2012 code's networks for CIFAR-10 (cuda-convnet, example-layers): rates, decay, initial weights and normalisation
# are its parameter files'. These train on 40,000 pictures for 350 epochs, on all 50,000 for 150 more, then for 10 each
# at a tenth and a hundredth of the rate (11%; the file of 13% names no epochs, a later script for that network 100 and
# 40). The same numbers of steps on all pictures from the start are 280 + 150 and 80 + 40 epochs; validation pictures
# are here the test set. Pictures are less the mean picture and not divided.
CIFAR_DATA: Final = DataConfig(crop=24, augment=AugmentConfig(colour="off"))
WHOLE_CIFAR: Final = DataConfig(crop=32, augment=AugmentConfig(colour="off", mirror=False))
CIFAR_OPTIM: Final = OptimConfig(lr=0.001, bias_lr_factor=2.0, decay_biases=False, schedule="steps")


def cifar_model(name: Literal["18pct", "13pct", "11pct"], lrn: LRNConfig) -> ModelConfig:
    """A network of the 2012 code for CIFAR-10, with its normalisation; it has no dropout."""
    return ModelConfig(layout="cifar", cifar=name, init="source", dropout=0.0, lrn=lrn, precision="auto")


RECIPES: Final[dict[str, tuple[str, Run]]] = {
    "paper": ("The paper's text.", Run(model=ModelConfig(inverted_dropout=False, precision="auto"))),
    "source": (
        "Run 145 of the 2012 code, as its configuration and log have it.",
        Run(
            recipe="source",
            data=DataConfig(augment=AugmentConfig(colour="deviations", colour_epochs=67)),
            model=ModelConfig(
                layer_order="source",
                inverted_dropout=False,
                init="source",
                lrn=LRNConfig(alpha=1e-4 / 5),
                precision="auto",
            ),
            optim=OptimConfig(
                bias_lr_factor=2.0,
                decay_biases=False,
                schedule="steps",
                drop_epochs=(23, 51, 78),
                conv1_lr=((68, 1e-5), (72, 0.0)),
            ),
            epochs=93,
        ),
    ),
    "modern": (
        "The paper's network with today's training: batch normalisation, resized crops, a cosine, averaged weights.",
        Run(
            recipe="modern",
            data=DataConfig(augment=AugmentConfig(crop="resized")),
            model=ModelConfig(init="he", pixel_std=58.0, batch_norm=True, precision="auto"),
            optim=OptimConfig(
                lr=0.02,  # the best of three tried: docs/results.md
                decay_biases=False,  # He et al. 2019, as the cosine
                schedule="cosine",
                warmup_epochs=5,  # Goyal et al. 2017
                label_smoothing=0.1,  # Szegedy et al. 2016
                average_decay=0.9999,  # ImageNet has 10,010 batches of 128: about an epoch
            ),
        ),
    ),
    "cifar": (
        "CIFAR-10, 11% test error in the 2012 code: its network, initial weights, rates and decay by layer.",
        Run(
            recipe="cifar",
            data=CIFAR_DATA,
            model=cifar_model("11pct", LRNConfig(size=9, alpha=0.001 / 9, k=1.0)),
            optim=replace(
                CIFAR_OPTIM,
                weight_decay=0.0,
                layer_decay=(("local3", 0.004), ("local4", 0.004), ("fc10", 0.01)),
                drop_epochs=(430.0, 440.0),
            ),
            epochs=450,
        ),
    ),
    "cifar-13pct": (
        "CIFAR-10, 13% in the 2012 code: without normalisation and with fewer kernels than recipe cifar.",
        Run(
            recipe="cifar-13pct",
            data=CIFAR_DATA,
            model=replace(cifar_model("13pct", LRNConfig(size=9, alpha=0.001 / 9, k=1.0)), normalise=False),
            optim=replace(
                CIFAR_OPTIM,
                weight_decay=0.0,
                layer_decay=(("local3", 0.004), ("local4", 0.004), ("fc10", 0.004)),
                drop_epochs=(120.0, 130.0),
            ),
            epochs=140,
        ),
    ),
    "cifar-18pct": (
        "CIFAR-10, 18% in the 2012 code: three convolutions, whole pictures, never mirrored.",
        Run(
            recipe="cifar-18pct",
            data=WHOLE_CIFAR,
            model=cifar_model("18pct", LRNConfig(size=3, alpha=0.00005 / 9, k=1.0)),
            optim=replace(CIFAR_OPTIM, weight_decay=0.004, layer_decay=(("fc10", 1.0),), drop_epochs=(120.0, 130.0)),
            epochs=140,
        ),
    ),
    "figure1": (
        "Figure 1: the four layers of recipe cifar-18pct without normalisation or any regularisation; try rates.",
        Run(
            recipe="figure1",
            data=WHOLE_CIFAR,
            model=replace(cifar_model("18pct", LRNConfig(size=3, alpha=0.00005 / 9, k=1.0)), normalise=False),
            optim=replace(CIFAR_OPTIM, weight_decay=0.0, schedule="manual"),
            epochs=40,
        ),
    ),
    "demo": (
        "The same network on 80-pixel crops, with a small head and He's initialisation: learns on a laptop.",
        Run(
            recipe="demo",
            data=DataConfig(crop=80),
            model=ModelConfig(fc_width=512, dropout=0.1, init="he", pixel_std=10.0, precision="auto"),
            optim=OptimConfig(lr=0.004, schedule="steps", drop_factor=0.3, drop_epochs=(3.0, 4.0, 5.0, 5.6)),
            batch_size=16,
            epochs=6,
        ),
    ),
}


def run_fields(run: Run, dataset_sha256: str) -> dict[str, Any]:
    """The run as plain JSON values, with the hash by which the data set's pictures are known."""
    fields = json.loads(json.dumps(asdict(run), default=str))
    return {**fields, DATASET: dataset_sha256}


def flattened(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"crop": 224}} -> {"data.crop": 224}."""
    pairs: dict[str, Any] = {}
    for name, value in fields.items():
        pairs |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return pairs


def differences(theirs: dict[str, Any], ours: dict[str, Any], allowed: frozenset[str], dataset_change: str = "") -> str:
    """The fields in which two runs differ, but for those allowed to, with both values; empty where there are none.

    dataset_change: in what their data sets differ, in place of two hashes where that is known.
    """
    there, here = with_defaults(theirs), with_defaults(ours)
    names = sorted(there.keys() | here.keys(), key=lambda name: (name != "recipe", name))  # which explains the others
    said = {
        name: f"{name:.50} {there.get(name)!s:.64} there, {here.get(name)!s:.64} here"
        for name in names
        if name not in allowed and there.get(name) != here.get(name)
    }
    # The last, for it has commas of its own.
    last = [f"another data set: {dataset_change}"] if dataset_change and said.pop(DATASET, None) else []
    return ", ".join([*([first_few(said.values(), most=8)] if said else []), *last])


def with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run.json, flattened; what an earlier version of it lacks has its default."""
    return flattened(run_fields(Run(), "")) | flattened(fields)


@dataclass
class _Model:
    precision: str


@dataclass
class _Optim:
    lr: Real


@dataclass
class _Fields:
    """What a resume or a fork uses of a run.json beside comparing it."""

    model: _Model
    optim: _Optim
    epochs: Annotated[Count, Field(ge=1)]


def check_fields(place: Path, theirs: dict[str, Any]) -> None:
    """InputError where a checkpoint's run.json is no run's."""
    try:
        checked(_Fields, theirs)
    except ValueError as error:
        raise InputError(
            f"{place} holds a run.json of another kind ({error}), expected a run's; give another"
        ) from error


def check_same_run(out: Path, theirs: dict[str, Any], ours: dict[str, Any], dataset_change: str = "") -> None:
    """InputError naming the fields in which a checkpoint in `out` and this call disagree, but for MAY_CHANGE.

    Under the schedule manual the rate may change too; under one that ends with the run's epochs, these may not: other
    epochs would be another schedule, from the first step on. A fork may have it.
    """
    check_fields(out, theirs)
    schedule = ours["optim"]["schedule"]
    allowed = MAY_CHANGE | ({"optim.lr"} if schedule == "manual" else set())
    if schedule in FOLLOW_EPOCHS:
        allowed -= {"epochs"}
    if values := differences(theirs, ours, allowed, dataset_change):
        raise InputError(f"{out} holds another run ({values}); give the same options and shards, or another --out")


def check_same_call(rank: int, leaders: dict[str, Any], ours: dict[str, Any], dataset_change: str = "") -> None:
    """InputError naming the fields in which rank 0's call or data set and this rank's disagree, but for PER_RANK."""
    if values := differences(leaders, ours, PER_RANK, dataset_change):
        remedy = "start every host with the same options and shards"
        raise InputError(f"rank {rank} trains otherwise than rank 0 ({values}), expected the same; {remedy}")


def write_run(folder: Path, fields: dict[str, Any]) -> None:
    """Write `folder`/run.json durably, unless it is so already: a run is started again on a full disk too."""
    path, data = folder / RUN_FILE, (json.dumps(fields, indent=1) + "\n").encode()
    if path.exists() and path.read_bytes() == data:
        return
    try:
        write_atomic(path, data)
    except OSError as error:
        remedy = "make room or mend its disk"
        raise InputError(f"{path} cannot be written ({error.strerror}), expected a run's folder; {remedy}") from error


def parse_run(arguments: list[str], program: str = "python -m service.train") -> Run:
    """The run that a command line asks for; without a recipe it is `paper`."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["paper", *arguments]
    return tyro.extras.overridable_config_cli(
        RECIPES,
        args=arguments,
        prog=program,
        description=(
            "Train AlexNet on shards, resuming what is in --out. Without a recipe it is paper. "
            f"A recipe's options: {program} RECIPE --help."
        ),
    )
