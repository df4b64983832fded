"""torchvision's network against torchvision's own module, and in the training step."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.alexnet import TORCHVISION_MEAN, TORCHVISION_STD, AlexNet, ModelConfig, Placement
from model.layers.dropout import keep_mask
from model.network import make_network
from model.optim import MomentumSGD, OptimConfig
from model.parallel import Parallel
from model.step import (
    StepControls,
    TrainingState,
    TrainStep,
    compiled_train_step,
    compute_gradients,
    train_step,
    training_loss,
)
from model.torchvision import TorchvisionAlexNet
from steps import CROP, GRADIENT, LOSS, TOLD, examples

CONFIG = ModelConfig(layout="torchvision", fc_width=64, init="he")


def pictures(count: int, side: int) -> Tensor:
    x = torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def small(config: ModelConfig = CONFIG, crop: int = CROP) -> TorchvisionAlexNet:
    return TorchvisionAlexNet(config, classes=10, crop=crop, seed=3).double()


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """torchvision's file of AlexNet."""
    # A wheel for CUDA has operators that do not load beside a torch for the CPU, and registering their shapes fails
    # there. No network needs them.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    return pytest.importorskip("torchvision.models.alexnet")


def their_network(peer: ModuleType, ours: TorchvisionAlexNet) -> nn.Module:
    """torchvision's, as wide as ours and with our weights."""
    with torch.device("meta"):  # shapes alone, which take no time to draw
        theirs = peer.AlexNet(num_classes=ours.classes)
        width = ours.config.fc_width
        if width != 4096:
            for i, (inputs, units) in {1: (9216, width), 4: (width, width), 6: (width, ours.classes)}.items():
                theirs.classifier[i] = nn.Linear(inputs, units)
    theirs.load_state_dict({name: weight.clone() for name, weight in ours.state_dict().items()}, assign=True)
    return theirs.eval()


class KeepUnits(nn.Module):
    """In place of torchvision's dropout: the units that `keep_mask` keeps."""

    def __init__(self, layer: int, units: int, positions: Tensor):
        super().__init__()
        self.keep = keep_mask(3, layer, positions, 0, units, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep * 2


@torch.no_grad()
def test_weights_go_both_ways_and_logits_are_the_same(peer: ModuleType) -> None:
    ours = TorchvisionAlexNet(ModelConfig(layout="torchvision", init="he"), seed=1)
    assert sum(p.numel() for p in ours.parameters()) == 61_100_840
    theirs = their_network(peer, ours)
    x = pictures(2, 224)
    assert torch.equal(ours(x.float()), theirs(x.float()))
    theirs.double().get_parameter("classifier.6.weight").mul_(2)
    ours.double().load_state_dict(theirs.state_dict())
    expected = theirs(x)
    assert (ours(x) - expected).norm() <= 1e-12 * expected.norm()
    hidden = theirs.get_submodule("classifier")[:6](theirs.get_submodule("features")(x).flatten(1))  # type: ignore[index]
    assert (ours.hidden(x) - hidden).norm() <= 1e-12 * hidden.norm()


@pytest.mark.parametrize(("crop", "train"), [(224, False), (224, True), (196, True), (CROP, True)])
def test_gradients_are_those_of_torchvisions_module(peer: ModuleType, crop: int, train: bool) -> None:
    """Also where torchvision averages maps of 5 x 5 pixels or of one to 6 x 6."""
    ours = small(crop=crop)
    theirs, x, positions = their_network(peer, ours), pictures(2, crop), torch.tensor([7, 2**33])
    if train:
        classifier = theirs.get_submodule("classifier")
        classifier[0], classifier[3] = KeepUnits(5, 9216, positions), KeepUnits(6, 64, positions)  # type: ignore[index]
    outputs = ours(x, positions if train else None), theirs(x)
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    losses = (F.cross_entropy(logits, torch.tensor([0, 3])) for logits in outputs)
    gradients = (torch.autograd.grad(loss, [*m.parameters()]) for loss, m in zip(losses, (ours, theirs), strict=True))
    for mine, their in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-9, atol=1e-11)


def test_dropout_depends_on_the_position_alone() -> None:
    model, x, positions = small(), pictures(4, CROP), torch.tensor([7, 2**33, 9, 10])
    together = model(x, positions)
    apart = torch.cat([model(x[rows], positions[rows]) for rows in ([3, 0], [1, 2])])
    torch.testing.assert_close(apart, together[[3, 0, 1, 2]], rtol=1e-10, atol=1e-10)  # sums are in another order
    assert not torch.allclose(together, model(x))
    assert torch.equal(small(replace(CONFIG, dropout=0.0))(x, positions), model(x))


def training(config: ModelConfig) -> TrainingState:
    model = make_network(config, classes=10, crop=CROP, seed=1)
    mean = torch.tensor(TORCHVISION_MEAN).expand(CROP, CROP, 3).contiguous()
    return TrainingState(
        model, MomentumSGD(OptimConfig(), dict(model.named_parameters())), mean, torch.tensor(True), Parallel()
    )


def test_a_steps_gradient_is_that_of_torchvisions_module_on_pictures_as_torchvision_takes_them(
    peer: ModuleType,
) -> None:
    state, batch = training(replace(CONFIG, dropout=0.0)), examples()
    assert isinstance(state.model, TorchvisionAlexNet)
    theirs = their_network(peer, state.model)
    mean, std = (torch.tensor(c)[:, None, None] for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (batch.pictures.permute(0, 3, 1, 2) + batch.offset[:, :, None, None]) / 255
    expected = torch.autograd.grad(F.cross_entropy(theirs((x - mean) / std), batch.labels), [*theirs.parameters()])
    found = compute_gradients(training_loss(state, batch)[0], state)
    for mine, their in zip(found.values(), expected, strict=True):
        # The pictures are rounded otherwise, which may take a unit over ReLU's edge.
        assert (mine - their).norm() <= 0.01 * their.norm()


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_the_compiled_step_is_one_graph_and_does_what_the_eager_one_does(precision) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = replace(CONFIG, precision=precision)
    (compiled, compiled_loss), (eager, eager_loss) = (
        step_once(training(config), step) for step in (compiled_train_step("aot_eager"), train_step)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    tolerance = LOSS[precision], GRADIENT[precision]
    torch.testing.assert_close(compiled_loss, eager_loss, rtol=tolerance[0], atol=0)
    assert (compiled - eager).norm() <= tolerance[1] * eager.norm()


def step_once(state: TrainingState, step: TrainStep) -> tuple[Tensor, Tensor]:
    """The velocities, which are the gradients times the rate, and the loss."""
    result = step(state, StepControls(torch.tensor([0.01, 0.01]), TOLD), examples())
    return torch.cat([v.flatten() for v in state.optimizer.velocities.values()]), result.loss


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_lower_precisions_are_near_float32(precision) -> None:
    x = pictures(8, 112).float()
    exact, low = (
        TorchvisionAlexNet(replace(CONFIG, precision=p, fc_width=256), crop=112)(x) for p in ("float32", precision)
    )
    assert low.dtype == torch.float32
    assert ((low - exact).norm() / exact.norm()) < 0.03  # eight roundings to 8 bits, each 0.2% to 0.4%


@pytest.mark.parametrize("init", ["paper", "source", "he"])
def test_initial_weights_mean_what_they_mean_for_the_towers(init) -> None:
    towers = AlexNet(ModelConfig(init=init, fc_width=64, pixel_std=TORCHVISION_STD[1]), classes=10)
    ours = TorchvisionAlexNet(replace(CONFIG, init=init), classes=10)
    numbers = ("features.0", "features.3", "features.6", "features.8", "features.10")
    layers = dict(zip(numbers, ("conv1", "conv2", "conv3", "conv4", "conv5"), strict=True))
    layers |= {"classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8"}
    for name, layer in layers.items():
        mine, theirs = ours.get_submodule(name), towers.held()[0].get_submodule(layer)
        assert isinstance(mine, nn.Conv2d | nn.Linear) and isinstance(theirs, nn.Conv2d | nn.Linear)
        assert mine.bias is not None and theirs.bias is not None
        assert (mine.bias == theirs.bias[0]).all()
        stds = [m.weight.std().item() * (m.weight[0].numel() ** 0.5 if init == "he" else 1) for m in (mine, theirs)]
        n = min(mine.weight.numel(), theirs.weight.numel())
        assert abs(stds[0] / stds[1] - 1) < 5 / n**0.5


def test_each_layout_makes_its_network() -> None:
    assert isinstance(make_network(ModelConfig(fc_width=8), classes=2, crop=67, seed=0), AlexNet)
    options = {"classes": 2, "crop": 67, "seed": 0}
    assert isinstance(
        make_network(CONFIG, **options, placement=Parallel(rank=1, world_size=2).placement), TorchvisionAlexNet
    )
    for apart in (Placement((1,), (1,)), Placement((0, 1), (0,))):
        with pytest.raises(ValueError, match="layout torchvision is one tower, expected parallel data"):
            make_network(CONFIG, **options, placement=apart)
    with pytest.raises(ValueError, match="crop is 62 pixels, expected at least 63"):
        make_network(CONFIG, classes=2, crop=62, seed=0)
    assert make_network(CONFIG, classes=2, crop=63, seed=0)(torch.zeros(1, 3, 63, 63)).shape == (1, 2)


def test_conv1_has_its_own_rate_in_either_layout() -> None:
    for config, conv1 in ((CONFIG, {"features.0"}), (ModelConfig(fc_width=8), {"towers.0.conv1", "towers.1.conv1"})):
        model = make_network(config, classes=2, crop=67, seed=0)
        before = {name: w.detach().clone() for name, w in model.named_parameters()}
        optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
        ones = [torch.ones_like(w) for w in optimizer.parameters.values()]
        optimizer.update(ones, torch.tensor([0.01, 0.0]), torch.tensor(True))
        kept = {name.rpartition(".")[0] for name, w in model.named_parameters() if torch.equal(w, before[name])}
        assert kept == conv1
