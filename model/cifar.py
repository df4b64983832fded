"""The 2012 code's networks for CIFAR-10, of which the paper's figure 1 and section 3.3 tell: pictures of 32 pixels.

Layers and initial weights are those of cuda-convnet's example-layers: layers-18pct.cfg, layers-conv-local-13pct.cfg and
layers-conv-local-11pct.cfg, whose names they have here. Pooling windows are 3 x 3, two pixels apart, and the last one
may overhang; an average is of the pixels inside.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.alexnet import ModelConfig, at_least_float32, autocast, check_precision, draw_weights, he_std
from model.layers.dropout import drop_units
from model.layers.lrn import local_response_norm, response_norm_in_maps
from model.layers.pool import max_pool

# Kernels of the four hidden layers, by the file's name; those of 18pct are three.
KERNELS: Final = {"18pct": (32, 32, 64), "13pct": (64, 64, 32, 32), "11pct": (64, 64, 64, 32)}
WEIGHT_STD: Final = {"conv1": 0.0001, "conv2": 0.01, "conv3": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}
POOLINGS: Final = {"18pct": 3, "13pct": 2, "11pct": 2}


def pooled_side(side: int) -> int:
    """Of a map after a pooling whose last window may overhang: 12 of 24 pixels, 6 of 12."""
    return -(-(side - 3) // 2) + 1


def cifar_sides(config: ModelConfig, crop: int) -> list[int]:
    """Sides of conv1's maps and of those after each pooling: 24, 12, 6 for crops of 24; ValueError where none is left.

    The 2012 code refuses a window larger than the map, as is done here.
    """
    sides = [crop]
    for _ in range(POOLINGS[config.cifar]):
        sides.append(pooled_side(sides[-1]))
    if min(sides[:-1]) < 3:
        least = 3 * 2 ** (len(sides) - 2)
        raise ValueError(f"crop is {crop} pixels, expected at least {least}: the poolings leave nothing of less")
    return sides


class LocallyConnected(nn.Module):
    """A 3 x 3 convolution with padding 1 whose every pixel has kernels and biases of its own.

    Maps are (H, W, B, C): what a pixel takes is then one matrix, and all pixels' are one batched product.
    """

    def __init__(self, side: int, channels: int, kernels: int):
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(side * side, 9 * channels, kernels))  # rows, columns, then channels
        self.bias = nn.Parameter(torch.empty(side * side, kernels))

    def forward(self, x: Tensor) -> Tensor:
        """(H, W, B, C) -> (H, W, B, kernels)."""
        side, batch = self.side, x.shape[2]
        x = F.pad(x, (0, 0, 0, 0, 1, 1, 1, 1))
        windows = [x[top : top + side, left : left + side] for top in range(3) for left in range(3)]
        patches = torch.cat(windows, dim=3).view(side * side, batch, -1)  # (H W, B, 9 C)
        return (torch.bmm(patches, self.weight) + self.bias[:, None]).view(side, side, batch, -1)


class CifarNetwork(nn.Module):
    """The network of one of the 2012 files, with the configuration's activation, normalisation and dropout."""

    def __init__(self, config: ModelConfig, *, classes: int = 10, crop: int = 24, seed: int = 0):
        super().__init__()
        assert config.layout == "cifar", "make_network makes the other layouts"
        check_precision(config)
        last = cifar_sides(config, crop)[-1]
        self.config, self.classes, self.crop, self.seed = config, classes, crop, seed
        c1, c2, c3, *c4 = KERNELS[config.cifar]
        self.conv1 = nn.Conv2d(3, c1, 5, padding=2)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2)
        if config.cifar == "18pct":
            self.conv3 = nn.Conv2d(c2, c3, 5, padding=2)
        else:
            self.local3 = LocallyConnected(last, c2, c3)
            self.local4 = LocallyConnected(last, c3, c4[0])
        self.hidden_width = (*c4, c3)[0] * last**2
        self.fc10 = nn.Linear(self.hidden_width, classes)
        initialise(self, config, seed)

    def forward(self, pictures: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (B, classes), float32 or better, of (B, 3, crop, crop) pictures.

        With the pictures' training positions (B,) int64 this is a training pass: dropout is on. Without, it is off.
        """
        x = self._last_hidden(pictures)
        x = drop_units(x, self.seed, 4, positions, 0, self.config.dropout)
        with autocast(pictures, self.config.precision != "float32"):
            logits = self.fc10(x)
        return at_least_float32(logits)

    def hidden(self, pictures: Tensor) -> Tensor:
        """(B, hidden_width), float32 or better: the last hidden layer's activations, pixel by pixel."""
        return at_least_float32(self._last_hidden(pictures))

    def _last_hidden(self, pictures: Tensor) -> Tensor:
        """(B, hidden_width)."""
        with autocast(pictures, self.config.precision == "bfloat16"):
            if self.config.cifar == "18pct":
                x = self._conv1_and_2_averaged(pictures)  # (B, 32, 8, 8) of 32-pixel pictures
            else:
                x = self._conv1_and_2(pictures)  # (B, 64, 6, 6) of 24-pixel pictures
        activate = self.config.activate
        with autocast(pictures, self.config.precision != "float32"):
            if self.config.cifar == "18pct":
                x = average_pool(activate(self.conv3(x))).permute(0, 2, 3, 1)  # (B, 4, 4, 64)
            else:
                x = activate(self.local3(x.permute(2, 3, 0, 1)))  # (6, 6, B, 64)
                x = activate(self.local4(x)).permute(2, 0, 1, 3)  # (B, 6, 6, 32)
        return x.flatten(1)

    def _conv1_and_2(self, x: Tensor) -> Tensor:
        """Normalised across channels."""
        config, activate = self.config, self.config.activate
        # The file activates, then pools: the result is the same, but this way there are fewer values to activate.
        x = activate(max_pool(self.conv1(x), ceil=True))
        if not config.normalise:
            return activate(max_pool(self.conv2(x), ceil=True))
        x = local_response_norm(x, config.lrn)
        return max_pool(local_response_norm(activate(self.conv2(x)), config.lrn), ceil=True)

    def _conv1_and_2_averaged(self, x: Tensor) -> Tensor:
        """Normalised within maps."""
        config, activate = self.config, self.config.activate
        x = activate(max_pool(self.conv1(x), ceil=True))
        if config.normalise:
            x = response_norm_in_maps(x, config.lrn)
        x = average_pool(activate(self.conv2(x)))
        return response_norm_in_maps(x, config.lrn) if config.normalise else x


def average_pool(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, pooled_side(H), pooled_side(W)): of the pixels of a window that are inside."""
    return F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False)


@torch.no_grad()
def initialise(model: CifarNetwork, config: ModelConfig, seed: int) -> None:
    """Draw each weight from its own generator, as the other layouts do; biases are 0."""
    for name, parameter in model.named_parameters():
        layer, _, kind = name.partition(".")
        if kind == "bias":
            parameter.zero_()
        else:
            inputs = parameter.shape[1] if layer.startswith("local") else parameter[0].numel()
            draw_weights(
                name, parameter, seed, he_std(config, layer, inputs) if config.init == "he" else WEIGHT_STD[layer]
            )
