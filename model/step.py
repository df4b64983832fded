"""One training step and one validation step, each a single graph under `torch.compile`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from model.alexnet import AlexNet
from model.network import Network
from model.optim import MomentumSGD
from model.parallel import Parallel
from model.precision import processor_kind


class StepInputs(NamedTuple):
    """A batch as the step takes it, every tensor on the model's device."""

    # (B, crop, crop, 3) uint8, float16 or float32, rows of RGB pixels on 0..255, less any mean taken off
    pictures: Tensor
    offset: Tensor  # (B, 3) float32, added to every pixel: the colour shift, and a mean that was taken off
    scale: Tensor  # (B,) float32, multiplies the pictures after that
    labels: Tensor  # (B,) int64
    positions: Tensor  # (B,) int64 training positions
    weights: Tensor  # (B,) float32, weight of each picture's loss: 1 / the global batch size; 0 for padding


class StepControls(NamedTuple):
    """What the host passes to a step: tensors on the device, so that a new value does not recompile it."""

    rates: Tensor  # (2,) float32: the base learning rate and conv1's; (3,) where weights are averaged: the average's
    # (n,) float32, 1 where this process says so: end the run; an operator's act waits; a save is due.
    local_flags: Tensor
    loss_limit: Tensor | None = None  # scalar: a step whose loss is above it is as one that is not finite


class StepResult(NamedTuple):
    """What a step says about itself, scalars on the device, the same on every rank."""

    loss: Tensor
    grad_norm: Tensor
    # bool: loss and gradients were finite, and the loss within any limit, in this step and in every one before it
    all_finite: Tensor
    flag_counts: Tensor  # (n,) how many ranks have set each local flag


@dataclass(frozen=True)
class TrainingState:
    """What steps work on, and change in place."""

    model: Network
    optimizer: MomentumSGD
    mean: Tensor  # (crop, crop, 3), the central crop of the mean picture
    all_finite: Tensor  # bool scalar: whether every step so far had a finite loss and gradients
    parallel: Parallel = field(default_factory=Parallel)


TrainStep = Callable[[TrainingState, StepControls, StepInputs], StepResult]


def normalise_pictures(inputs: StepInputs, mean: Tensor, pixel_std: float | tuple[float, float, float]) -> Tensor:
    """The network's input, (B, 3, crop, crop) channels-last: (picture + offset - mean picture) * scale / pixel_std.

    mean: (crop, crop, 3), the central crop of the mean picture, which stays as it is when a picture is mirrored.
    pixel_std: of all channels, or red's, green's and blue's.
    """
    batch, height, width, _ = inputs.pictures.shape
    # Whole rows of pixels, because the compiler vectorises along 3 x width numbers, but not along 3.
    rows = inputs.pictures.view(batch, height, 3 * width).to(mean.dtype)
    rows = rows + _along_a_row(inputs.offset, width)[:, None] - mean.view(height, 3 * width)
    x = (rows * _row_scales(inputs.scale, pixel_std, width)).view(batch, height, width, 3)
    return x.permute(0, 3, 1, 2)  # rows of RGB pixels are what channels-last means, so this moves nothing


def _along_a_row(colours: Tensor, width: int) -> Tensor:
    """(B, 3) -> (B, 3 width): a colour's number for each number of a row of pixels.

    Concatenated, because the compiler keeps what it concatenates; a plain `repeat` it would look up number by number,
    which takes longer than everything else of `normalise_pictures`.
    """
    return torch.cat([colours.repeat(1, width - 1), colours], dim=1)


def _row_scales(scale: Tensor, pixel_std: float | tuple[float, float, float], width: int) -> Tensor:
    """(B,) -> (B, 1, 1), or (B, 1, 3 width) where the channels differ: what the numbers of a row are multiplied by."""
    red, green, blue = pixel_std if isinstance(pixel_std, tuple) else (pixel_std,) * 3
    if red == green == blue:
        return (scale / red)[:, None, None]
    return _along_a_row(torch.stack([scale / red, scale / green, scale / blue], dim=1), width)[:, None]


Statistics = dict[str, Tensor]  # of a batch, by the parameters' names of batch normalisation's running ones


def local_logits(training: TrainingState, inputs: StepInputs, *, train: bool) -> tuple[Tensor, Statistics]:
    """(B, classes) of the pictures that this rank brought; a pair of ranks works on both ranks' pictures.

    In training the weights' own, with the batch's statistics where it is normalised by them; else the averaged
    weights', where there are averages.
    """
    model, parallel = training.model, training.parallel
    pictures, offset, scale = parallel.gather_conv_inputs(inputs.pictures, inputs.offset, inputs.scale)
    x = normalise_pictures(
        inputs._replace(pictures=pictures, offset=offset, scale=scale), training.mean, model.config.channel_std
    )
    if not train:
        averages = training.optimizer.averages
        return parallel.local_rows(functional_call(model, averages, (x,)) if averages else model(x)), {}
    positions = parallel.gather_pair_rows(inputs.positions)
    if not isinstance(model, AlexNet) or not model.config.batch_norm:
        return parallel.local_rows(model(x, positions)), {}
    batch = parallel.batch_pass((inputs.weights > 0).to(x.dtype))
    return parallel.local_rows(model(x, positions, batch)), batch.statistics


def training_loss(training: TrainingState, inputs: StepInputs) -> tuple[Tensor, Statistics]:
    """This rank's part of the batch's mean cross-entropy, dropout on, labels smoothed; and the batch's statistics."""
    smoothing = training.optimizer.config.label_smoothing
    logits, statistics = local_logits(training, inputs, train=True)
    losses = F.cross_entropy(logits, inputs.labels, reduction="none", label_smoothing=smoothing)
    return losses @ inputs.weights.to(logits.dtype), statistics


def compute_gradients(loss: Tensor, training: TrainingState) -> dict[str, Tensor]:
    """This rank's part of the gradients, by parameter name: of those that several ranks hold, not yet their sum."""
    parameters = training.optimizer.trained
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@torch.no_grad()
def apply_gradients(
    training: TrainingState,
    controls: StepControls,
    loss: Tensor,
    gradients: Mapping[str, Tensor],
    statistics: Statistics,
) -> StepResult:
    """Update in place, unless a loss or gradient is not finite, of this step or of one before it."""
    parallel, all_finite = training.parallel, training.all_finite
    gradients = parallel.all_reduce_gradients(gradients)
    squares = parallel.squared_gradient_norm(gradients)
    loss, squares, flag_counts = parallel.all_reduce_sums(loss, squares, controls.local_flags)
    finite = all_finite & torch.isfinite(loss) & torch.isfinite(squares)
    if controls.loss_limit is not None:
        finite = finite & (loss <= controls.loss_limit)
    training.optimizer.update(list(gradients.values()), controls.rates, finite, statistics)
    all_finite.copy_(finite)
    return StepResult(loss, squares.sqrt(), finite, flag_counts)


def train_step(training: TrainingState, controls: StepControls, inputs: StepInputs) -> StepResult:
    """Forward, backward and update in place; a non-finite loss or gradient leaves all that is kept as it was.

    From then on `all_finite` is false, and every step leaves them so: the host may read it late, and no step waits.
    """
    loss, statistics = training_loss(training, inputs)
    return apply_gradients(training, controls, loss.detach(), compute_gradients(loss, training), statistics)


# What Inductor does on CUDA only: kernels that do not depend on each other become one (casts of weights, sums of
# biases' gradients, squared norms, updates), up to 64 of them instead of its 8, and of any sizes: at small batches
# it is launches that take the step's time.
CUDA_OPTIONS: dict[str, Any] = {
    "combo_kernels": True,
    "combo_kernel_allow_mixed_sizes": 2,
    "combo_kernel_max_num_nodes": 64,
}


def start_early(order: list[Any]) -> list[Any]:
    """A pass over what Inductor starts, in order: exchanges between ranks as soon as what they send is there."""
    return _reordered("raise_comms", order)


def wait_late(order: list[Any]) -> list[Any]:
    """A pass over what Inductor starts, in order: exchanges are waited for where what they bring is needed."""
    return _reordered("sink_waits", order)


def _reordered(name: str, order: list[Any]) -> list[Any]:
    """By Inductor's pass; as it was where that fails, as where all updates have become one kernel (torch 2.13)."""
    from torch._inductor import comms  # a second, which only who compiles should wait

    try:
        return getattr(comms, name)(order)
    except AssertionError:
        return order


# Exchanges between ranks run beside the rest of backward.
EXCHANGE_OPTIONS: dict[str, Any] = {
    "reorder_for_compute_comm_overlap": True,
    "reorder_for_compute_comm_overlap_passes": [start_early, wait_late],
}


def compiled_train_step(backend: str = "inductor", *, graphs: bool = False) -> TrainStep:
    """`train_step` compiled: one graph where the compiler traces `torch.autograd.grad`, else two without breaks.

    graphs: on CUDA launch the whole step as one CUDA graph. Off by default until it has been timed on a GPU: it copies
    every batch to fixed addresses, about as much as one more map, and keeps the step's memory for itself.
    """
    # Cached code (TORCHINDUCTOR_CACHE_DIR) is for one kind of processor, which torch's own cache key does not include:
    # another kind that shares the folder, on a cluster or in a moved volume, would run the code of the first, and crash
    # or compute other numbers.
    torch.compiler.config.cache_key_tag = processor_kind()
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return two_graphs(backend)
    torch._dynamo.config.trace_autograd_ops = True

    @cache
    def compiled(device_type: str, exchanges: bool) -> TrainStep:
        options = compile_options(device_type, graphs, exchanges) if backend == "inductor" else None
        return torch.compile(train_step, backend=backend, fullgraph=True, dynamic=False, options=options)

    def step(training: TrainingState, controls: StepControls, inputs: StepInputs) -> StepResult:
        device_type = training.mean.device.type
        function = compiled(device_type, training.parallel.world is not None)
        if not (graphs and device_type == "cuda"):
            return function(training, controls, inputs)
        mark_static_addresses(training)
        torch.compiler.cudagraph_mark_step_begin()
        # The host reads results late, and the next launch of the graph writes over its own.
        return StepResult(*(t.clone() for t in function(training, controls, inputs)))

    return step


def compile_options(device_type: str, graphs: bool, exchanges: bool) -> dict[str, Any] | None:
    """Inductor's options for the step on a device; none but on CUDA, so that a CPU's numbers stay as they are.

    graphs: as one CUDA graph. exchanges: between ranks.
    """
    if device_type != "cuda":
        return None
    from torch._inductor import config  # a second, which only who compiles should wait

    options = {**CUDA_OPTIONS, **(EXCHANGE_OPTIONS if exchanges else {}), "triton.cudagraphs": graphs}
    known = config.get_config_copy()  # torch refuses what its version does not know: 2.11 has not all of them
    return {name: value for name, value in options.items() if name in known}


def mark_static_addresses(training: TrainingState) -> None:
    """Tell the compiler that what a step changes, or always reads, stays where it is: a CUDA graph needs that."""
    optimizer = training.optimizer
    for kept in (optimizer.parameters, optimizer.velocities, optimizer.averages):
        for tensor in kept.values():
            torch._dynamo.mark_static_address(tensor)
    for tensor in (training.all_finite, training.mean):
        torch._dynamo.mark_static_address(tensor)


def two_graphs(backend: str = "inductor") -> TrainStep:
    """`train_step` as a graph of forward and loss with its backward, and a graph of the update."""
    loss_of = torch.compile(training_loss, backend=backend, fullgraph=True, dynamic=False)
    apply = torch.compile(apply_gradients, backend=backend, fullgraph=True, dynamic=False)

    def step(training: TrainingState, controls: StepControls, inputs: StepInputs) -> StepResult:
        loss, statistics = loss_of(training, inputs)
        return apply(training, controls, loss.detach(), compute_gradients(loss, training), statistics)

    return step


def classes_ahead(scores: Tensor, at_label: Tensor) -> Tensor:
    """(..., classes) scores and the label's own (..., 1) -> (...): how many other classes have at least as much.

    Ties count against the label, so that a network whose outputs are all equal scores nothing; NaN does too.
    """
    return (~(scores < at_label)).sum(-1) - 1


@torch.no_grad()
def eval_step(training: TrainingState, local_flags: Tensor, inputs: StepInputs) -> Tensor:
    """(3 + n,) float64: summed loss, top-1 and top-5 errors over all ranks' pictures, section 6's measures; and flags.

    local_flags: as in `StepControls`; the last n numbers are how many ranks have each set.
    """
    logits, _ = local_logits(training, inputs, train=False)
    losses = F.cross_entropy(logits, inputs.labels, reduction="none")
    ahead = classes_ahead(logits, logits.gather(1, inputs.labels[:, None]))
    counted = torch.stack([losses.double(), (ahead >= 1).double(), (ahead >= 5).double()])
    sums = training.parallel.all_reduce_sums(counted @ inputs.weights.double(), local_flags.double())
    return torch.cat(sums)
