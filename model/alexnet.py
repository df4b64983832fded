"""AlexNet: two towers, connected only at conv3 and at the fully connected layers (Krizhevsky, Sutskever, Hinton 2012).

A `Tower` is one GPU's half of the network. `AlexNet` runs the towers it holds and joins their outputs where the paper's
GPUs exchange them; a process that holds one tower passes a `gather_channels` for the other's. Sections are the paper's.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.batch_norm import BatchNorm, BatchPass
from model.layers.dropout import drop_units
from model.layers.first_conv import FirstConv
from model.layers.fused import Activation, Pooling, PoolSize, activate, conv_pool, pool_by_layers
from model.layers.lrn import LRNConfig

# Section 5: gives the ReLUs positive inputs early on. It has no conv6; the 2012 source starts that as it does conv5.
LAYERS_WITH_BIAS_ONE = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")
TOWER_CHANNELS = (48, 128, 192, 192, 128)  # kernels of one tower, figure 2

PICTURE_STD = 58.0  # of the RGB values of ImageNet's pictures about their mean, on 0..255
# Mean and deviation of each channel on 0..255, as torchvision has them on 0..1 (transforms/_presets.py).
TORCHVISION_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
TORCHVISION_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

Precision = Literal["float32", "mixed", "bfloat16"]
PrecisionOption = Precision | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What distinguishes one AlexNet from another; the defaults are the paper's text."""

    layout: Literal["towers", "torchvision", "cifar"] = "towers"
    """towers: the paper's; torchvision: torchvision's AlexNet, one tower of 64, 192, 384, 256, 256 kernels without
    normalisation, its own mean and deviations; layer_order, normalise, lrn and pixel_std have no meaning there, and
    pool_size, columns, talk, without, conv6 and batch_norm are refused; cifar: the 2012 code's networks for pictures of
    32 pixels; layer_order, fc_width and bias (all are 0) have no meaning there, and the same are refused."""
    cifar: Literal["18pct", "13pct", "11pct"] = "11pct"
    """Layout cifar: which of the 2012 code's networks, by the name of its file and its test error. 18pct: three
    convolutions of 32, 32, 64 kernels; 13pct and 11pct: two of 64, then two locally connected layers of 32, 32 or 64,
    32. normalise and lrn are as given, not as in the file: within maps in 18pct, else across channels."""
    activation: Activation = "relu"
    """Nonlinearity, section 3.1; logistic is 1 / (1 + exp(-x))."""
    layer_order: Literal["paper", "source"] = "paper"
    """Of conv1. paper: ReLU, LRN, pool; source (2012 code): LRN, pool, ReLU."""
    normalise: bool = True
    """Local response normalisation after conv1 and conv2, section 3.3."""
    lrn: LRNConfig = field(default_factory=LRNConfig)
    """Its constants."""
    batch_norm: bool = False
    """Batch normalisation (Ioffe and Szegedy 2015) of what each layer but the last makes, before its nonlinearity, in
    place of response normalisation; these layers have no biases of their own. Statistics are of the whole batch."""
    pool_size: PoolSize = 3
    """Side of the pooling windows, two pixels apart, section 3.4: of 3 they overlap, of 2 they do not."""
    columns: Literal[1, 2] = 2
    """1: the paper's network for one GPU, section 3.2: one tower, half of the kernels in each convolution but the
    last, which keeps both towers', and all of the fully connected layers."""
    talk: bool = True
    """Whether towers exchange what they compute before the classes; without, each of conv3, conv6, fc6 and fc7 takes
    its own tower's outputs, and fc8 both's."""
    without: Literal["none", "conv3", "conv4", "conv5"] = "none"
    """A middle layer to leave out, section 7; towers then exchange before the next one."""
    conv6: bool = False
    """A sixth convolutional layer over the last pooling layer, as the paper's CNN* has."""
    fc_width: int = 4096
    """Units of fc6 and of fc7, both towers together."""
    dropout: float = 0.5
    """Probability that a unit of fc6 or fc7, or an input of layout cifar's last layer, is dropped, section 4.2."""
    inverted_dropout: bool = True
    """Divide what is kept by 1 - dropout in training, as torch does, and as other layouts do in any case; without,
    multiply all outputs of fc6 and fc7 by it at test time, as the paper and the 2012 code do."""
    init: Literal["paper", "source", "he"] = "paper"
    """paper: std 0.01; source: 0.03 in conv3 to conv5; he: He's, biases 0. Of layout cifar the first two are those of
    its files, biases 0."""
    bias: float = 1.0
    """At what the biases of conv2, conv4, conv5 and the hidden layers start, of `init` paper and source: 1 in section 5
    and the 2012 code, 0.1 in Caffe's reference network. The others start at 0."""
    pixel_std: float = 1.0
    """Pictures (0..255, mean subtracted) are divided by this; 1 is the paper's. Less makes conv1 learn faster."""
    precision: PrecisionOption = "float32"
    """float32; bfloat16: autocast throughout; mixed: float32 through the second pooling, bfloat16 after it;
    auto: mixed where the device has bfloat16 instructions, else float32."""

    def __post_init__(self) -> None:
        if self.fc_width < 2 or self.fc_width % 2:
            raise ValueError(f"fc_width is {self.fc_width}, expected a positive even number: each tower holds half")
        if not math.isfinite(self.bias):
            raise ValueError(f"bias is {self.bias}, expected a finite number, such as 0.1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected a probability below 1")
        if self.layout != "towers":
            asked = {
                "conv6": self.conv6,
                "batch_norm": self.batch_norm,
                f"pool_size {self.pool_size}": self.pool_size != 3,
                f"columns {self.columns}": self.columns != 2,
                "no talk": not self.talk,
                f"without {self.without}": self.without != "none",
            }
            if wrong := [name for name, is_set in asked.items() if is_set]:
                raise ValueError(
                    f"{wrong[0]} is set for layout {self.layout}, which has no such thing; expected towers"
                )

    def activate(self, x: Tensor) -> Tensor:
        """The nonlinearity."""
        return activate(x, self.activation)

    @property
    def response_norm(self) -> LRNConfig | None:
        """The constants of response normalisation; None where there is none."""
        return self.lrn if self.normalise and not self.batch_norm else None

    @property
    def deeper(self) -> dict[str, int]:
        """The convolutions between conv2 and the last pooling, in order, and how many kernels a tower has in each."""
        named = zip(("conv3", "conv4", "conv5"), TOWER_CHANNELS[2:], strict=True)
        kernels = {name: count for name, count in named if name != self.without}
        if self.columns == 1:
            # The last has as many as both towers', because most parameters are in fc6, which takes its maps (section
            # 3.2, footnote).
            kernels[list(kernels)[-1]] *= 2
        return kernels

    @property
    def heard(self) -> int:
        """How many towers' outputs a layer takes that takes all it can get."""
        return self.columns if self.talk else 1

    @property
    def channel_std(self) -> tuple[float, float, float]:
        """What a picture's red, green and blue (0..255, mean subtracted) are divided by."""
        return TORCHVISION_STD if self.layout == "torchvision" else (self.pixel_std, self.pixel_std, self.pixel_std)


def concatenate(parts: list[Tensor]) -> Tensor:
    """Join the channels (or units) of towers that this process holds together."""
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Placement:
    """What of the network a process holds, and how it gets the rest; by default it holds all."""

    towers: Sequence[int] = (0, 1)
    """Towers whose convolutions it holds."""
    connected: Sequence[int] = (0, 1)
    """Towers whose fully connected layers it holds."""
    gather_channels: Callable[[list[Tensor]], Tensor] = concatenate
    """Both towers' channels or units, from those of the towers held."""
    gather_fc_inputs: Callable[[Tensor], Tensor] = lambda maps: maps
    """The rows that the fully connected layers take, from the rows of the last convolution's maps."""

    @property
    def whole(self) -> bool:
        """Whether the process holds all."""
        return self.alike and tuple(self.towers) == (0, 1)

    @property
    def alike(self) -> bool:
        """Whether it holds the convolutions and the fully connected layers of the same towers."""
        return tuple(self.towers) == tuple(self.connected)


WHOLE_NETWORK = Placement()


def map_sides(crop: int, pool_size: int = 3) -> tuple[int, int, int, int]:
    """Sides of conv1's maps and of those after each pooling, for crop x crop pictures: 55, 27, 13 and 6 for 224."""
    conv1 = (crop + 2 * 2 - 11) // 4 + 1
    pool1 = (conv1 - pool_size) // 2 + 1
    pool2 = (pool1 - pool_size) // 2 + 1
    return conv1, pool1, pool2, (pool2 - pool_size) // 2 + 1


def map_side(crop: int, pool_size: int = 3) -> int:
    """Side of the last pooled maps for crop x crop pictures, pixels: 6 for 224."""
    return map_sides(crop, pool_size)[-1]


class Tower(nn.Module):
    """One GPU's half: 48, 128, 192, 192, 128 kernels, half of each fully connected layer and of the classes.

    With `conv6` there are 128 kernels more, over both towers' pooled maps (the 2012 source has conv6 so).
    """

    conv1: FirstConv
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    conv4: nn.Conv2d
    conv5: nn.Conv2d
    conv6: nn.Conv2d
    fc6: nn.Linear
    fc7: nn.Linear

    def __init__(self, config: ModelConfig, classes: int, crop: int, connected: bool = True, *, name: str):
        """connected: False leaves out the fully connected layers. name: of this module in the network."""
        super().__init__()
        self.config, self.connected, self.name = config, connected, name
        c1, c2, *_ = TOWER_CHANNELS
        bias = not config.batch_norm  # which has its own
        self._add("conv1", FirstConv(c1, bias=bias))
        self._add("conv2", nn.Conv2d(c1, c2, 5, padding=2, bias=bias))
        channels = config.heard * c2  # the first of the next takes them from all towers
        for layer, kernels in config.deeper.items():
            self._add(layer, nn.Conv2d(channels, kernels, 3, padding=1, bias=bias))
            channels = kernels
        if config.conv6:
            self._add("conv6", nn.Conv2d(config.heard * channels, channels, 3, padding=1, bias=bias))
        if not connected:
            return
        units = config.fc_width // config.columns
        inputs = config.heard * channels * map_side(crop, config.pool_size) ** 2
        self._add("fc6", nn.Linear(inputs, units, bias=bias))
        self._add("fc7", nn.Linear(config.heard * units, units, bias=bias))
        self.fc8 = nn.Linear(config.columns * units, classes)

    def _add(self, layer: str, module: nn.Conv2d | nn.Linear) -> None:
        """A layer, and its batch normalisation where there is one."""
        self.add_module(layer, module)
        if self.config.batch_norm:
            norm = BatchNorm(len(module.weight), f"{self.name}.{layer}_norm", connected=isinstance(module, nn.Linear))
            self.add_module(f"{layer}_norm", norm)

    def conv1_and_2(self, x: Tensor, batch: BatchPass | None = None) -> Tensor:
        """(B, 3, 224, 224) -> (B, 128, 13, 13)."""
        x = self._pooled("conv1", x, self.pooling(self.config.layer_order), batch)  # (B, 48, 27, 27)
        return self._pooled("conv2", x, self.pooling("paper"), batch)  # (B, 128, 13, 13)

    def conv3_to_5(self, x: Tensor, batch: BatchPass | None = None) -> Tensor:
        """(B, 256, 13, 13) -> (B, 128, 6, 6)."""
        *inner, last = self.config.deeper
        for layer in inner:
            x = self.active(layer, x, batch)  # (B, 192, 13, 13)
        # The paper activates, then pools: the result is the same, but this way there are fewer values to activate.
        pooling = Pooling(after=self.config.activation, size=self.config.pool_size)
        return self._pooled(last, x, pooling, batch)  # (B, 128, 13, 13) -> (B, 128, 6, 6)

    def active(self, layer: str, x: Tensor, batch: BatchPass | None = None) -> Tensor:
        """A layer's activations: of conv6 (B, 256, 6, 6) -> (B, 128, 6, 6), of fc6 (B, 9216) -> (B, 2048)."""
        return self.config.activate(self._output(layer, x, batch))

    def pooling(self, order: Literal["paper", "source"]) -> Pooling:
        """What follows conv1 and conv2."""
        config = self.config
        return Pooling(
            before=config.activation if order == "paper" else None,
            lrn=config.response_norm,
            sum_dtype=None if config.precision == "float32" else torch.bfloat16,
            after=config.activation if order == "source" else None,
            size=config.pool_size,
        )

    def _output(self, layer: str, x: Tensor, batch: BatchPass | None) -> Tensor:
        """What a layer makes, before its nonlinearity."""
        x = getattr(self, layer)(x)
        return getattr(self, f"{layer}_norm")(x, batch) if self.config.batch_norm else x

    def _pooled(self, layer: str, x: Tensor, pooling: Pooling, batch: BatchPass | None) -> Tensor:
        if self.config.batch_norm:
            return pool_by_layers(self._output(layer, x, batch), pooling)
        return conv_pool(getattr(self, layer), x, pooling)


class AlexNet(nn.Module):
    """The towers that this process holds; parameters are named `towers.0.…` and `towers.1.…` whichever it holds."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        classes: int = 1000,
        crop: int = 224,
        seed: int = 0,
        placement: Placement = WHOLE_NETWORK,
    ):
        super().__init__()
        assert config.layout == "towers", "make_network makes the other layout"
        check_options(config, crop)
        if classes < config.columns:
            raise ValueError(f"classes is {classes}, expected at least {config.columns}: each tower holds some of them")
        if config.columns == 1 and not config.talk:
            raise ValueError("talk is off and columns is 1, which has nobody to talk to; expected columns 2 or talk")
        if config.columns == 1 and not placement.whole:
            raise ValueError("columns is 1, so there is one tower, expected parallel data; set --parallel data")
        self.config, self.classes, self.crop, self.seed, self.placement = config, classes, crop, seed, placement
        self.hidden_width = config.fc_width
        # Tower 0 takes the odd class.
        share = {t: (classes + 1 - t) // 2 if config.columns == 2 else classes for t in range(config.columns)}
        self.towers = nn.ModuleDict(
            {
                str(t): Tower(config, share[t], crop, t in placement.connected, name=f"towers.{t}")
                for t in placement.towers
                if t in share
            }
        )
        initialise(self, config, seed)

    def forward(self, pictures: Tensor, positions: Tensor | None = None, batch: BatchPass | None = None) -> Tensor:
        """Logits (B, classes), float32 or better, of (B, 3, crop, crop) pictures.

        With the pictures' training positions (B,) int64 this is a training pass: dropout is on. Without, it is off.
        batch: of a training pass with batch normalisation, whose statistics it takes; by default no other rank shares
        it, and no picture is padding.
        """
        if self.config.batch_norm and positions is not None and batch is None:
            batch = BatchPass.of(len(pictures), pictures.device)
        x = self._last_hidden(pictures, positions, batch)
        with autocast(pictures, self.config.precision != "float32"):
            parts = [self._padded(tower.fc8(x)) for tower in self.held().values() if tower.connected]
            logits = self.placement.gather_channels(parts)[:, : self.classes]
        return at_least_float32(logits)

    def hidden(self, pictures: Tensor) -> Tensor:
        """(B, fc_width), float32 or better: what fc8 takes of fc7 without dropout, the feature vectors of figure 4."""
        return at_least_float32(self._last_hidden(pictures, None, None))

    def _last_hidden(self, pictures: Tensor, positions: Tensor | None, batch: BatchPass | None) -> Tensor:
        """(B, fc_width): what fc8 takes."""
        towers = self.held()
        with autocast(pictures, self.config.precision == "bfloat16"):
            maps = {t: tower.conv1_and_2(pictures, batch) for t, tower in towers.items()}  # (B, 128, 13, 13)
        if self.config.precision == "mixed":
            # The next layer would cast too, but here it halves the bytes to join.
            maps = {t: part.bfloat16() for t, part in maps.items()}
        with autocast(pictures, self.config.precision != "float32"):
            heard = self._heard(maps)  # (B, 256, 13, 13): the GPUs talk
            maps = {t: tower.conv3_to_5(heard[t], batch) for t, tower in towers.items()}  # (B, 128, 6, 6)
            if self.config.conv6:
                heard = self._heard(maps)  # (B, 256, 6, 6)
                maps = {t: tower.active("conv6", heard[t], batch) for t, tower in towers.items()}
            heard = self._fc_inputs({t: part.flatten(1) for t, part in maps.items()})  # (B, 9216)
            towers = {t: tower for t, tower in towers.items() if tower.connected}
            units = {t: tower.active("fc6", heard[t], batch) for t, tower in towers.items()}
            heard = self._heard({t: self._drop(t, 6, x, positions) for t, x in units.items()})  # (B, 4096)
            units = {t: tower.active("fc7", heard[t], batch) for t, tower in towers.items()}
            return self._joined({t: self._drop(t, 7, x, positions) for t, x in units.items()})

    def _heard(self, outputs: dict[int, Tensor]) -> dict[int, Tensor]:
        """What each tower takes of all towers' outputs: all of them, or its own where towers do not talk."""
        return outputs if self.config.heard == 1 else dict.fromkeys(outputs, self._joined(outputs))

    def _joined(self, outputs: dict[int, Tensor]) -> Tensor:
        return self.placement.gather_channels(list(outputs.values()))

    def _fc_inputs(self, outputs: dict[int, Tensor]) -> dict[int, Tensor]:
        """The same for the fully connected layers, which may take other rows than the convolutions, of more ranks."""
        if self.config.heard == 1 and self.placement.alike:
            return outputs
        x = self.placement.gather_fc_inputs(self._joined(outputs))
        parts = [x] * len(outputs) if self.config.heard > 1 else x.chunk(len(outputs), dim=1)
        return dict(zip(outputs, parts, strict=True))

    def _padded(self, logits: Tensor) -> Tensor:
        """Pad tower 1's logits by one if the count of classes is odd: both towers' must be equally wide."""
        missing = -(-self.classes // self.config.columns) - logits.shape[1]
        return F.pad(logits, (0, missing)) if missing else logits

    def held(self) -> dict[int, Tower]:
        """The towers that this process holds, by number."""
        return {int(name): cast(Tower, tower) for name, tower in self.towers.items()}

    def _drop(self, tower: int, layer: int, x: Tensor, positions: Tensor | None) -> Tensor:
        """Drop of a tower's units (B, fc_width / 2), its half of the layer; of one column's (B, fc_width)."""
        config = self.config
        first = tower * x.shape[1]
        return drop_units(x, self.seed, layer, positions, first, config.dropout, config.inverted_dropout)


def check_options(config: ModelConfig, crop: int) -> None:
    """ValueError where no network can be made of the options."""
    if map_side(crop, config.pool_size) < 1:
        least = next(least for least in range(crop, crop + 100) if map_side(least, config.pool_size) >= 1)
        raise ValueError(f"crop is {crop} pixels, expected at least {least}: three poolings leave nothing of less")
    check_precision(config)


def check_precision(config: ModelConfig) -> None:
    """ValueError where the precision is still to be chosen."""
    if config.precision == "auto":
        raise ValueError("precision is auto, expected float32, mixed or bfloat16; choose_precision says which")


def autocast(pictures: Tensor, on: bool) -> torch.autocast:
    """Convolutions and products in bfloat16, if on."""
    return torch.autocast(pictures.device.type, torch.bfloat16, enabled=on)


def at_least_float32(x: Tensor) -> Tensor:
    """x as float32, unless it is float64."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int, layers: Mapping[str, str] | None = None) -> None:
    """Draw each weight from its own generator, so that a tower starts the same whichever process holds it.

    Kernels become channels-last, as the pictures are.
    layers: the layer (conv1 to fc8) that each module is, by the module's name, where that does not end in the layer's.
    """
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        layer = layers[module] if layers else module.rpartition(".")[2]
        if layer.endswith("_norm"):
            continue  # starts as batch normalisation does
        if kind == "bias":
            parameter.fill_(config.bias if config.init != "he" and layer in LAYERS_WITH_BIAS_ONE else 0.0)
        else:
            draw_weights(name, parameter, seed, _weight_std(config, layer, parameter))


@torch.no_grad()
def draw_weights(name: str, weight: Tensor, seed: int, std: float) -> None:
    """Draw a parameter from its own generator; kernels become channels-last."""
    if weight.is_meta:  # of a network that is asked for its shapes alone
        return
    # Hashed together: torch's CPU generator ignores all but 32 bits of its seed.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    if weight.dim() == 4:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _weight_std(config: ModelConfig, layer: str, weight: Tensor) -> float:
    if config.init == "he":
        return he_std(config, layer, weight[0].numel())
    return 0.03 if config.init == "source" and layer in ("conv3", "conv4", "conv5", "conv6") else 0.01


def he_std(config: ModelConfig, layer: str, inputs: int) -> float:
    """He's deviation of the weights of a layer whose units take so many inputs."""
    # Green's deviation: the others' are the same, or within a fiftieth.
    input_std = PICTURE_STD / config.channel_std[1] if layer == "conv1" else 1.0
    return (2 / inputs) ** 0.5 / input_std
