"""How many floating-point operations training takes."""

from typing import NamedTuple

from model.alexnet import TOWER_CHANNELS, ModelConfig, map_sides
from model.cifar import KERNELS, cifar_sides
from model.torchvision import FC_SIDE, TORCHVISION_CHANNELS


class Products(NamedTuple):
    """Products of numbers that the layers take for one picture, forward."""

    conv1: int
    others: int


def training_flops_per_picture(config: ModelConfig, classes: int, crop: int) -> int:
    """Floating-point operations of training on one picture, all towers: the products and sums of matrix products.

    Each layer's products count three times: forward, for the gradient of its weights, and for that of its input, which
    conv1 does not need.
    """
    layouts = {"towers": _towers, "torchvision": _torchvision, "cifar": _cifar}
    products = layouts[config.layout](config, classes, crop)
    return 2 * (2 * products.conv1 + 3 * products.others)


def _towers(config: ModelConfig, classes: int, crop: int) -> Products:
    c1, c2, *_ = TOWER_CHANNELS
    side1, side2, side3, side5 = map_sides(crop, config.pool_size)
    conv1 = 11**2 * 3 * c1 * side1**2  # of one tower, as the other convolutions
    conv2 = 5**2 * c1 * c2 * side2**2
    inputs, deeper = config.heard * c2, 0
    for kernels in config.deeper.values():
        deeper, inputs = deeper + 3**2 * inputs * kernels * side3**2, kernels
    conv6 = 3**2 * config.heard * inputs * inputs * side5**2 if config.conv6 else 0
    share = config.columns // config.heard  # each of that many parts takes its part of a layer's inputs
    hidden = config.columns * inputs * side5**2 * config.fc_width + config.fc_width**2
    return Products(
        config.columns * conv1, config.columns * (conv2 + deeper + conv6) + hidden // share + config.fc_width * classes
    )


def _torchvision(config: ModelConfig, classes: int, crop: int) -> Products:
    (c1, c2, c3, c4, c5), (side1, side2, side3, _) = TORCHVISION_CHANNELS, map_sides(crop)
    conv2 = 5**2 * c1 * c2 * side2**2
    deeper = 3**2 * (c2 * c3 + c3 * c4 + c4 * c5) * side3**2
    return Products(11**2 * 3 * c1 * side1**2, conv2 + deeper + _connected(c5 * FC_SIDE**2, config.fc_width, classes))


def _cifar(config: ModelConfig, classes: int, crop: int) -> Products:
    """A locally connected layer takes as many products as a convolution that shares its kernels."""
    (c1, c2, c3, *c4), sides = KERNELS[config.cifar], cifar_sides(config, crop)
    if config.cifar == "18pct":
        deeper, last = 5**2 * c2 * c3 * sides[2] ** 2, c3
    else:
        deeper, last = 3**2 * (c2 * c3 + c3 * c4[0]) * sides[2] ** 2, c4[0]
    conv2 = 5**2 * c1 * c2 * sides[1] ** 2
    return Products(5**2 * 3 * c1 * sides[0] ** 2, conv2 + deeper + last * sides[-1] ** 2 * classes)


def _connected(inputs: int, width: int, classes: int) -> int:
    return inputs * width + width * width + width * classes
