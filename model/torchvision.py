"""torchvision's AlexNet: the one tower of "One weird trick" (arXiv 1404.5997), without normalisation.

Its parameters have the names and shapes of `torchvision.models.AlexNet`, so that weights go both ways.
"""

from typing import Final, cast

import torch.nn.functional as F
from torch import Tensor, nn

from model.alexnet import ModelConfig, at_least_float32, autocast, check_options, initialise
from model.layers.dropout import drop_units
from model.layers.first_conv import FirstConv
from model.layers.fused import Pooling, conv_pool

TORCHVISION_CHANNELS = (64, 192, 384, 256, 256)  # kernels of each convolution
FC_SIDE = 6  # of the maps that the fully connected layers take, whatever the crop

# The numbers between are torchvision's modules without parameters.
LAYERS: Final = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


class TorchvisionAlexNet(nn.Module):
    """torchvision's network with our dropout, which depends on a picture's training position and on no rank."""

    def __init__(self, config: ModelConfig, *, classes: int = 1000, crop: int = 224, seed: int = 0):
        super().__init__()
        assert config.layout == "torchvision", "make_network makes the other layout"
        check_options(config, crop)
        self.config, self.classes, self.crop, self.seed = config, classes, crop, seed
        self.hidden_width = config.fc_width
        c1, c2, c3, c4, c5 = TORCHVISION_CHANNELS
        convolutions = {
            "0": FirstConv(c1),
            "3": nn.Conv2d(c1, c2, 5, padding=2),
            "6": nn.Conv2d(c2, c3, 3, padding=1),
            "8": nn.Conv2d(c3, c4, 3, padding=1),
            "10": nn.Conv2d(c4, c5, 3, padding=1),
        }
        self.features = nn.ModuleDict(convolutions)
        self.classifier = nn.ModuleDict(
            {
                "1": nn.Linear(c5 * FC_SIDE**2, config.fc_width),
                "4": nn.Linear(config.fc_width, config.fc_width),
                "6": nn.Linear(config.fc_width, classes),
            }
        )
        initialise(self, config, seed, LAYERS)

    def forward(self, pictures: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (B, classes), float32 or better, of (B, 3, crop, crop) pictures.

        With the pictures' training positions (B,) int64 this is a training pass: dropout is on. Without, it is off.
        """
        x = self._last_hidden(pictures, positions)
        with autocast(pictures, self.config.precision != "float32"):
            logits = self.classifier["6"](x)
        return at_least_float32(logits)

    def hidden(self, pictures: Tensor) -> Tensor:
        """(B, fc_width), float32 or better: the last hidden layer's activations, dropout off."""
        return at_least_float32(self._last_hidden(pictures, None))

    def _last_hidden(self, pictures: Tensor, positions: Tensor | None) -> Tensor:
        """(B, fc_width): what the last layer takes."""
        conv, connected = self.features, self.classifier

        def pooled(name: str, x: Tensor) -> Tensor:
            return conv_pool(cast(nn.Conv2d, conv[name]), x, Pooling(after=self.config.activation))

        # torchvision activates, then pools: the result is the same, but this way there are fewer values to activate.
        with autocast(pictures, self.config.precision == "bfloat16"):
            x = pooled("0", pictures)  # (B, 64, 27, 27)
            x = pooled("3", x)  # (B, 192, 13, 13)
        with autocast(pictures, self.config.precision != "float32"):
            x = self.config.activate(conv["6"](x))  # (B, 384, 13, 13)
            x = self.config.activate(conv["8"](x))  # (B, 256, 13, 13)
            x = pooled("10", x)  # (B, 256, 6, 6)
            if x.shape[-1] != FC_SIDE:  # else each average is of one number
                x = F.adaptive_avg_pool2d(x, FC_SIDE)
            x = self.config.activate(connected["1"](self._drop(5, x.flatten(1), positions)))
            return self.config.activate(connected["4"](self._drop(6, x, positions)))

    def _drop(self, layer: int, x: Tensor, positions: Tensor | None) -> Tensor:
        """Drop of a layer's outputs (B, units), as torchvision does: of conv5's and of fc6's, not of fc7's."""
        return drop_units(x, self.seed, layer, positions, 0, self.config.dropout)
