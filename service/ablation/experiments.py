"""The paper's experiments as data: what each tests, and in which fields of a run its variants differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Changes = Mapping[str, Any]  # a run's fields by their dotted names, as run.json has them: {"model.pool_size": 2}

# validation: top-1 error on the validation pictures after the last epoch, centre crop. views: that of the base, and
# the same networks' on ten views. training: epochs until a quarter of the training pictures are still wrong, figure 1;
# its runs end there.
Measure = Literal["validation", "views", "training"]

# Parts of all epochs at which the rate drops to three tenths.
DROPS: Final = (0.65, 0.85, 0.95)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the runs of an experiment have in common."""

    name: str
    data: str  # name of the data set
    what: str
    size: int  # side of the stored pictures, pixels
    stored: tuple[str, ...] = ()  # further options of pipeline.shard
    recipe: str
    crop: int  # side of what the network sees, pixels
    changes: Changes  # has batch_size
    drops: tuple[float, ...] = DROPS
    epochs: int  # where nobody says

    def of_epochs(self, epochs: int) -> Changes:
        """The changes for a run of so many epochs, whose rate drops at `drops` of them."""
        drops = tuple(round(part * epochs, 4) for part in self.drops)
        return {
            "data.crop": self.crop,
            **self.changes,
            "epochs": epochs,
            **({"optim.drop_epochs": drops} if drops else {}),
        }


IMAGENETTE: Final = Base(
    name="imagenette",
    data="Imagenette",
    what="Imagenette, or another tree of pictures, as 128-pixel squares of which the network sees 96",
    size=128,
    crop=96,
    recipe="demo",
    # The demo's network on larger crops; batches of 32 and the rate that goes with them, the colour shift as the paper
    # has it, and as much dropout as ten thousand pictures need.
    changes={"model.dropout": 0.3, "batch_size": 32, "optim.lr": 0.006},
    epochs=15,
)
# As they are: at quality 100, and not compressed again.
_CIFAR_STORED: Final = ("--quality", "100", "--store", "raw")
FIGURE1: Final = Base(
    name="figure1",
    data="CIFAR-10",
    what="CIFAR-10, whole pictures",
    size=32,
    stored=_CIFAR_STORED,
    recipe="figure1",
    crop=32,
    changes={"batch_size": 128},
    drops=(),
    epochs=60,  # at most
)
CIFAR: Final = Base(
    name="cifar",
    data="CIFAR-10",
    what="CIFAR-10, of whose 32-pixel pictures the network sees 24",
    size=32,
    stored=_CIFAR_STORED,
    recipe="cifar",
    crop=24,
    changes={"batch_size": 128},
    epochs=15,
)


# What came after the paper, part by part: recipe `modern` has all of them.
_MODERN: Final[Mapping[str, Changes]] = {
    "cosine with warm-up": {"optim.schedule": "cosine", "optim.warmup_epochs": 1.0},
    "resized crops": {"data.augment.crop": "resized"},
    "smoothed labels": {"optim.label_smoothing": 0.1},
    "averaged weights": {"optim.average_decay": 0.998},  # over five hundred steps, of batches of 32 two epochs or less
    "batch normalisation": {"model.batch_norm": True},
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A claim of the paper, and the variants that test it."""

    name: str
    section: str
    question: str
    paper: str  # its own finding
    base: Base = IMAGENETTE
    base_called: str = "base"  # in tables and pictures
    changes: Changes = field(default_factory=dict)  # of all its runs, for a base of its own
    variants: Mapping[str, Changes] = field(default_factory=dict)  # by label; the base itself is one more
    measure: Measure = "validation"
    # Learning rates of which each variant has its own best: that with which its run of seed 0 has the lowest training
    # error after `trial_epochs`.
    rates: tuple[float, ...] = ()
    trial_epochs: int = 0


BASE_LABEL: Final = "base"  # of the variant without changes
_ALL: Final = (
    Experiment(
        name="relu-tanh",
        section="3.1",
        question="Do rectified linear units learn faster than saturating ones?",
        paper="a four-layer network reaches 25% training error on CIFAR-10 six times sooner than with tanh",
        base=FIGURE1,
        base_called="ReLU",
        variants={"tanh": {"model.activation": "tanh"}},
        measure="training",
        rates=(0.0003, 0.001, 0.003, 0.01, 0.03),
        trial_epochs=4,
    ),
    Experiment(
        name="columns",
        section="3.2",
        question="What do two towers bring over one with half the kernels, which one GPU holds?",
        paper="one column: top-1 error 1.7 points higher, top-5 1.2",
        variants={"one column": {"model.columns": 1}},
    ),
    Experiment(
        name="talk",
        section="3.2",
        question="What does it bring that the towers exchange their maps and units?",
        paper="the 2012 code's log: without, 41.83% against 40.66%",
        variants={"towers that do not talk": {"model.talk": False}},
    ),
    Experiment(
        name="lrn",
        section="3.3",
        question="What does local response normalisation bring?",
        paper="without: top-1 error 1.4 points higher, top-5 1.2; on CIFAR-10 13% against 11%",
        variants={"no normalisation": {"model.normalise": False}},
    ),
    Experiment(
        name="lrn-cifar10",
        section="3.3",
        question="What does local response normalisation bring to a four-layer network on CIFAR-10?",
        paper="13% without, 11% with",
        base=CIFAR,
        variants={"no normalisation": {"model.normalise": False}},
    ),
    Experiment(
        name="pooling",
        section="3.4",
        question="What does it bring that pooling windows overlap?",
        paper="without: top-1 error 0.4 points higher, top-5 0.3",
        variants={"windows of 2": {"model.pool_size": 2}},
    ),
    Experiment(
        name="mirror-crop",
        section="4.1",
        question="What do random crops and mirroring bring?",
        paper="without, the network overfits, which forces much smaller networks",
        variants={
            "never mirrored": {"data.augment.mirror": False},
            "centre crops": {"data.augment.crop": "centre"},
            "neither": {"data.augment.mirror": False, "data.augment.crop": "centre"},
        },
    ),
    Experiment(
        name="colour",
        section="4.1",
        question="What does the shift of colours along their principal components bring?",
        paper="top-1 error over 1 point lower with it",
        variants={
            "no colour shift": {"data.augment.colour": "off"},
            "as the 2012 code": {"data.augment.colour": "deviations"},
        },
    ),
    Experiment(
        name="views",
        section="4.1",
        question="What does it bring to average over ten views of a picture?",
        paper="39.0% on the centre, 37.5% on ten views",
        measure="views",
    ),
    Experiment(
        name="dropout",
        section="4.2",
        question="What does dropout bring?",
        paper="without, the network overfits substantially; with it, training takes about twice as long",
        variants={"no dropout": {"model.dropout": 0.0}, "half of the units": {"model.dropout": 0.5}},
    ),
    Experiment(
        name="source-paper",
        section="5",
        question="Where the paper's text and its source disagree, does it matter?",
        paper="not compared; the published errors are the source's",
        variants={
            "source: order of conv1": {"model.layer_order": "source"},
            "source: normalisation": {"model.lrn.alpha": 1e-4 / 5},
            "source: biases": {"optim.bias_lr_factor": 2.0, "optim.decay_biases": False},
        },
    ),
    Experiment(
        name="depth",
        section="7",
        question="Does every middle layer count, and does one more?",
        paper="without any one of them top-1 error is about 2 points higher; a sixth convolution: 39.0% against 40.7%",
        variants={
            "without conv3": {"model.without": "conv3"},
            "without conv4": {"model.without": "conv4"},
            "without conv5": {"model.without": "conv5"},
            "with conv6": {"model.conv6": True},
        },
    ),
    Experiment(
        name="modern",
        section="-",
        question="What does each part of today's training bring, and what do all of them?",
        paper="not in it; with batch normalisation others reach 39.6% on ImageNet's centre crops",
        variants={
            **_MODERN,
            "all of these": {name: value for changes in _MODERN.values() for name, value in changes.items()},
        },
    ),
    Experiment(
        name="precision",
        section="-",
        question="What does it cost to multiply in bfloat16?",
        paper="float32 throughout; the 2012 code's log: half precision between the towers 40.52% against 40.66%",
        # Elsewhere it is auto: on some machines one of the variants.
        changes={"model.precision": "float32"},
        variants={"mixed": {"model.precision": "mixed"}, "bfloat16": {"model.precision": "bfloat16"}},
    ),
)
EXPERIMENTS: Final[Mapping[str, Experiment]] = {experiment.name: experiment for experiment in _ALL}
