import importlib.util
import sys
from types import ModuleType

import pytest

from model.alexnet import AlexNet, ModelConfig
from paths import ROOT


def load() -> ModuleType:
    """benchmarks/scaling.py, which no package holds."""
    path = ROOT / "benchmarks" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


scaling = load()
H200 = scaling.Machine()
NO_LATENCY = scaling.Machine(start_seconds=0, nvlink_seconds=0, network_seconds=0)


def test_parameters_are_those_of_the_model_layer_by_layer():
    model = AlexNet(ModelConfig())
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    sizes = {name: 0 for name in names}
    for name, parameter in model.named_parameters():
        sizes[name.split(".")[2]] += parameter.numel()
    assert [layer.parameters for layer in scaling.LAYERS] == list(sizes.values())
    assert scaling.PARAMETERS == 60_965_224


def test_arithmetic_is_4_14_gflop_an_image():
    assert 2 * scaling.MACS == pytest.approx(4.14e9, abs=0.005e9)  # three digits are given
    assert sum(layer.forward for layer in scaling.LAYERS) == pytest.approx(724e6, abs=0.5e6)


def test_a_tower_sends_60_7_kilobytes_an_image_and_its_logits():
    sent = sum(scaling.TOWER_TALKS) / 2 * scaling.BFLOAT16
    assert sent - 500 * 2 == 2 * (128 * 13 * 13 + 128 * 6 * 6 + 2048 + 2048) == 60_672
    # 30,836 numbers there and as many back, no latency, no pictures, and 1,024 images of the pair
    machine = scaling.Machine(start_seconds=0, nvlink_seconds=0, network_seconds=0, picture_bytes=0)
    exchange = scaling.tower_data(machine, 2, 512).exchange
    assert exchange == pytest.approx(1024 * 2 * 61_672 / 450e9)
    pictures = scaling.tower_data(NO_LATENCY, 2, 512).exchange - exchange
    assert pictures == pytest.approx(512 * 150_528 * 2 / 450e9)  # each sends its 512, two bytes a number


def test_all_reduce_of_two_ranks_sends_half_the_bytes_twice():
    assert NO_LATENCY.all_reduce(450e9, 2, 8) == pytest.approx(1.0)
    assert NO_LATENCY.all_reduce(50e9, 2, 1) == pytest.approx(1.0)
    # two starts, two hops
    assert H200.all_reduce(0, 2, 8) == pytest.approx(2 * (8e-6 + 3e-6))
    assert H200.all_reduce(1e9, 1, 8) == 0


def test_all_reduce_between_hosts_uses_every_card():
    # 8 GB over 2 hosts of 8: inside, 7/8 twice at 450 GB/s; between, each GPU half of its 1 GB twice at 50 GB/s.
    assert NO_LATENCY.all_reduce(8e9, 16, 8) == pytest.approx(2 * 7e9 / 450e9 + 1e9 / 50e9)


def test_one_gpu_makes_the_images_it_was_said_to():
    step = scaling.data(H200, 1, 1024)
    assert 1024 / sum(step) == pytest.approx(H200.images_per_second)
    assert step.exchange == step.gradients == 0


def test_gradients_hide_behind_the_backward_pass_but_for_conv1s():
    reductions = [0.0, 0, 0, 0, 0, 0, 0, 0.1]  # fc8's, which comes first
    assert scaling.outlasting(10.0, reductions) == 0
    assert scaling.outlasting(10.0, [0.1, *reductions[1:]]) == pytest.approx(0.1)  # conv1's comes last
    # Of no computation to hide behind, all of it is seen.
    assert scaling.outlasting(0.0, [0.1] * 8) == pytest.approx(0.8)
    assert scaling.delaying(0.0, [0.1] * 8) == pytest.approx(0.8)
    assert scaling.delaying(10.0, [0.1, *[0.0] * 7]) == pytest.approx(0.1)


@pytest.mark.parametrize("gpus", [2, 8, 64, 512])
@pytest.mark.parametrize("layout", ["data", "sharded"])
def test_efficiency_tends_to_one_with_the_batch(layout: str, gpus: int):
    efficiencies = [scaling.LAYOUTS[layout](H200, gpus, images).efficiency for images in (1, 32, 1024, 1e6)]
    assert efficiencies == sorted(efficiencies)
    assert efficiencies[0] < 0.05
    assert efficiencies[-1] == pytest.approx(1, abs=0.001)


def test_a_pairs_exchange_grows_with_the_batch_and_limits_its_efficiency():
    # For each of its images a GPU sends 2 x 61,672 bytes twice and its own picture of 301,056 bytes.
    share = (4 * 61_672 + 301_056) / 450e9 / H200.image_seconds
    assert scaling.tower_data(H200, 8, 1e9).efficiency == pytest.approx(1 / (1 + share))
    assert scaling.batch_for(H200, "tower+data", 8, 0.9) is None


@pytest.mark.parametrize("layout", ["data", "2014", "sharded"])
def test_batch_for_an_efficiency_is_the_smallest(layout: str):
    batch = scaling.batch_for(H200, layout, 8, 0.9)
    efficiency = [scaling.LAYOUTS[layout](H200, 8, images).efficiency for images in (batch / 8 - 1, batch / 8)]
    assert efficiency[0] < 0.9 <= efficiency[1]


def test_the_2014_scheme_sends_fewer_gradients_and_more_activations():
    # K = 8 on one host: 18,408 numbers of each of 8 x 16 images, 7/8 of them from others, there and back, of two bytes.
    gathered = 2 * 2 * 18_408 * 8 * 16 * 7 / 8 / 450e9
    step = scaling.weird_trick(NO_LATENCY, 8, 16, 8)
    arithmetic = step.compute * 3 * 58_621_952 / scaling.MACS  # of the fully connected layers
    assert step.exchange == pytest.approx(gathered - 7 / 8 * min(gathered, arithmetic))
    # Only the convolutions' gradients travel.
    assert step.gradients <= 2 * 7 / 8 * 2_334_080 * 4 / 450e9
    assert scaling.data(NO_LATENCY, 8, 16).gradients > 10 * step.gradients
