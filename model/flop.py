"""How many floating-point operations training takes."""

from model.alexnet import TOWER_CHANNELS, ModelConfig, map_sides


def training_flops_per_picture(config: ModelConfig, classes: int, crop: int) -> int:
    """Floating-point operations of training on one picture, both towers: the products and sums of matrix products.

    Each layer's products count three times: forward, for the gradient of its weights, and for that of its input, which
    conv1 does not need.
    """
    (c1, c2, c3, c4, c5), (side1, side2, side3, side5) = TOWER_CHANNELS, map_sides(crop)
    conv1 = 11**2 * 3 * c1 * side1**2
    conv2 = 5**2 * c1 * c2 * side2**2
    deeper = 3**2 * (2 * c2 * c3 + c3 * c4 + c4 * c5) * side3**2
    width = config.fc_width
    connected = 2 * c5 * side5**2 * width + width * width + width * classes
    return 2 * (2 * (2 * conv1 + 3 * conv2 + 3 * deeper) + 3 * connected)
