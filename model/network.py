"""Which network a configuration asks for: the paper's, torchvision's, or one for CIFAR-10."""

from model.alexnet import WHOLE_NETWORK, AlexNet, ModelConfig, Placement
from model.cifar import CifarNetwork
from model.torchvision import TorchvisionAlexNet

Network = AlexNet | TorchvisionAlexNet | CifarNetwork


def make_network(
    config: ModelConfig, *, classes: int, crop: int, seed: int, placement: Placement = WHOLE_NETWORK
) -> Network:
    """The network of the layout that the configuration names; ValueError for options that make none."""
    if config.layout == "towers":
        return AlexNet(config, classes=classes, crop=crop, seed=seed, placement=placement)
    if not placement.whole:
        raise ValueError(f"layout {config.layout} is one tower, expected parallel data; set --parallel data")
    network = TorchvisionAlexNet if config.layout == "torchvision" else CifarNetwork
    return network(config, classes=classes, crop=crop, seed=seed)
