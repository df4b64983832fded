"""Networks as one module of torch's plain operators, which other programs can take: for export.

What a tower keeps to itself is a convolution in two groups; what both share is a plain one. A fully connected layer
that each tower keeps to itself has zeros for the other's units. Batch normalisation is folded into the layer before it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.alexnet import TOWER_CHANNELS, AlexNet, ModelConfig, map_side
from model.cifar import CifarNetwork, average_pool
from model.layers.batch_norm import fold
from model.layers.dropout import at_test_time
from model.layers.lrn import LRNConfig


class GroupedAlexNet(nn.Module):
    """96, 256, 384, 384, 256 kernels, tower 0's first, or one column's; computes in its weights' type, dropout off."""

    def __init__(self, config: ModelConfig, *, classes: int = 1000, crop: int = 224):
        super().__init__()
        self.config = config
        c1, c2 = (config.columns * kernels for kernels in TOWER_CHANNELS[:2])
        alone, meeting = config.columns, config.columns // config.heard  # groups
        self.conv1 = nn.Conv2d(3, c1, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=alone)
        channels, groups = c2, meeting
        for name, kernels in config.deeper.items():
            out = config.columns * kernels
            self.add_module(name, nn.Conv2d(channels, out, 3, padding=1, groups=groups))
            channels, groups = out, alone
        self.conv6 = nn.Conv2d(channels, channels, 3, padding=1, groups=meeting) if config.conv6 else None
        self.fc6 = nn.Linear(channels * map_side(crop, config.pool_size) ** 2, config.fc_width)
        self.fc7 = nn.Linear(config.fc_width, config.fc_width)
        self.fc8 = nn.Linear(config.fc_width, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, crop, crop) pictures, as `AlexNet` takes them."""
        x = self.conv1(pictures)  # (B, 96, 55, 55)
        if self.config.layer_order == "paper":
            x = self._pool(self._normalise(self.config.activate(x)))  # (B, 96, 27, 27)
        else:
            x = self.config.activate(self._pool(self._normalise(x)))
        x = self._pool(self._normalise(self.config.activate(self.conv2(x))))  # (B, 256, 13, 13)
        for name in self.config.deeper:
            x = self.config.activate(self.get_submodule(name)(x))  # (B, 384, 13, 13)
        x = self._pool(x)  # (B, 256, 6, 6)
        if self.conv6 is not None:
            x = self.config.activate(self.conv6(x))
        x = self._kept(self.config.activate(self.fc6(x.flatten(1))))
        return self.fc8(self._kept(self.config.activate(self.fc7(x))))

    def _normalise(self, x: Tensor) -> Tensor:
        """Each tower's channels alone."""
        lrn = self.config.response_norm
        if not lrn:
            return x
        return torch.cat([_response_norm(part, lrn) for part in x.chunk(self.config.columns, dim=1)], dim=1)

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.config.pool_size, 2)

    def _kept(self, x: Tensor) -> Tensor:
        """A hidden layer's outputs at test time."""
        return at_test_time(x, self.config.dropout, self.config.inverted_dropout)


def _response_norm(x: Tensor, config: LRNConfig) -> Tensor:
    """`model.layers.lrn`'s normalisation of (B, C, H, W), written plainly."""
    channels, reach = x.shape[1], config.size // 2
    squares = F.pad(x * x, (0, 0, 0, 0, reach, reach))  # (B, reach + C + reach, H, W)
    total = squares[:, :channels]
    for first in range(1, 2 * reach + 1):
        total = total + squares[:, first : first + channels]
    return x / (config.k + config.alpha * total) ** config.beta


class PlainCifar(nn.Module):
    """A network for CIFAR-10 with its own weights; computes in their type, dropout off."""

    def __init__(self, model: CifarNetwork):
        super().__init__()
        self.layers, self.config = nn.ModuleDict(dict(model.named_children())), model.config

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, crop, crop) pictures."""
        layers, activate, norm = self.layers, self.config.activate, self._normalise
        x = norm(F.max_pool2d(activate(layers["conv1"](pictures)), 3, 2, ceil_mode=True))
        if self.config.cifar == "18pct":
            x = norm(average_pool(activate(layers["conv2"](x))))
            x = average_pool(activate(layers["conv3"](x))).permute(0, 2, 3, 1)
        else:
            x = F.max_pool2d(norm(activate(layers["conv2"](x))), 3, 2, ceil_mode=True).permute(2, 3, 0, 1)
            x = activate(layers["local4"](activate(layers["local3"](x)))).permute(2, 0, 1, 3)
        return layers["fc10"](x.flatten(1))

    def _normalise(self, x: Tensor) -> Tensor:
        config = self.config.lrn
        if not self.config.normalise:
            return x
        if self.config.cifar != "18pct":
            return _response_norm(x, config)
        # The average's zeros outside count, so that it is the sum divided by size * size.
        total = F.avg_pool2d(x * x, config.size, 1, config.size // 2) * config.size**2
        return x / (config.k + config.alpha * total) ** config.beta


def grouped(model: AlexNet) -> GroupedAlexNet:
    """The same network as one module, with copies of the weights of a process that holds both towers."""
    assert model.placement.whole, "a tower alone is no network"
    with torch.device("meta"):  # shapes alone: the weights are there already
        module = GroupedAlexNet(model.config, classes=model.classes, crop=model.crop)
    towers = [fold(dict(tower.named_parameters())) for tower in model.held().values()]
    weights = {
        name: _together([tower[name].detach() for tower in towers], parameter.shape)
        for name, parameter in module.named_parameters()
    }
    module.load_state_dict(weights, assign=True)
    return module.eval()


def _together(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """The towers' kernels, units or classes one after the other; zeros where a tower takes its own inputs alone."""
    if parts[0].dim() == 2 and parts[0].shape[1] < shape[1]:
        return torch.block_diag(*parts)
    return torch.cat(parts).contiguous()
