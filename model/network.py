"""Which network a configuration asks for: the paper's, or torchvision's."""

from model.alexnet import WHOLE_NETWORK, AlexNet, ModelConfig, Placement
from model.torchvision import TorchvisionAlexNet

Network = AlexNet | TorchvisionAlexNet


def make_network(
    config: ModelConfig, *, classes: int, crop: int, seed: int, placement: Placement = WHOLE_NETWORK
) -> Network:
    """The network of the layout that the configuration names; ValueError for options that make none."""
    if config.layout == "towers":
        return AlexNet(config, classes=classes, crop=crop, seed=seed, placement=placement)
    if not placement.whole:
        raise ValueError("layout torchvision is one tower, expected parallel data; set --parallel data")
    return TorchvisionAlexNet(config, classes=classes, crop=crop, seed=seed)
