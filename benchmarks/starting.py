"""Why a network's first steps learn or do not: activations and gradients of each layer, at the start and later.

    python benchmarks/starting.py SHARDS --out starting.png [--recipes paper source] [--steps 0 100] [--crop 96]

One process and eager, on the CPU, in float32. Of tower 0's layers, over a batch of training pictures:
- mean of the outputs before the activation, over all units, pictures and places, without dropout;
- alive, the share of units that are above 0 anywhere in any of these pictures: ReLU passes no gradient to the others;
- signal, the mean over units of a unit's standard deviation over pictures and places: what tells pictures apart;
- the norm of the loss's gradient with respect to the layer's weights, over the weights' own norm, times the rate: the
  part of themselves by which a step changes the weights; the same of its biases, where they are not 0.
Signal far below the mean means that all pictures look alike to the layers above.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn

from model.network import Network
from model.parallel import Parallel
from model.step import StepControls, StepInputs, TrainingState, local_logits, train_step, training_loss
from pipeline.command import EXIT_DONE, InputError, run_command
from service.results.table import markdown
from service.run.config import RECIPES, Run
from service.run.preprocessing import preprocessing_of
from service.training.rank_agreement import FLAGS
from service.training.ranks import Ranks
from service.training.setup import build_training, open_loader

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at."""

    shards: Annotated[Path, tyro.conf.Positional]
    out: Path = Path("starting.png")
    recipes: tuple[str, ...] = ("paper", "source")
    """Of service.train; RECIPE:FIELD=VALUE changes a field of its network, as paper:bias=0.1 does."""
    steps: tuple[int, ...] = (0,)
    """After which training steps to look; each takes seconds."""
    crop: int = 224
    batch_size: int = 128
    seed: int = 0
    json: Path | None = None


@dataclass(frozen=True)
class Layer:
    """A layer of a network at a step; tower 0's."""

    name: str
    mean: float
    alive: float
    signal: float
    gradient: float
    offset: float


def main() -> int:
    """Train each recipe for a few steps, look, and draw."""
    options = tyro.cli(Options, description=__doc__)
    found = {recipe: layers_of_recipe(recipe, options) for recipe in options.recipes}
    for recipe, by_step in found.items():
        for step, (loss, layers) in by_step.items():
            print(f"\n{recipe}, after {step} steps: loss {loss:.4f}\n")
            print(table(layers))
    draw(found).savefig(options.out)
    print(f"\nwrote {options.out}")
    if options.json:
        plain = {
            recipe: {
                step: {"loss": loss, "layers": [asdict(layer) for layer in layers]}
                for step, (loss, layers) in by_step.items()
            }
            for recipe, by_step in found.items()
        }
        options.json.write_text(json.dumps(plain, indent=1) + "\n")
    return EXIT_DONE


def layers_of_recipe(recipe: str, options: Options) -> dict[int, tuple[float, list[Layer]]]:
    """By step: the loss of the next batch, and what its layers do."""
    run = run_of(recipe, options)
    loader = open_loader(run, "cpu", Ranks(), Parallel())
    preprocessing = preprocessing_of(loader.dataset, loader.root)
    training = build_training(run, loader, preprocessing, torch.device("cpu"), Parallel())
    rate = torch.full((2,), run.optim.lr)
    found = {}
    for step, batch in enumerate(loader.train(options.batch_size)):
        inputs = StepInputs(*batch)
        if step in options.steps:
            found[step] = look(training, inputs, run.optim.lr)
        if step == max(options.steps):
            return found
        train_step(training, StepControls(rate, torch.zeros(FLAGS)), inputs)
    raise AssertionError("training batches do not end")


def run_of(recipe: str, options: Options) -> Run:
    """The recipe's run on these shards, with the network's field that is named."""
    name, _, change = recipe.partition(":")
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}, expected one of: {', '.join(RECIPES)}")
    run = RECIPES[name][1]
    model = replace(run.model, precision="float32")
    if change:
        field, _, value = change.partition("=")
        if not hasattr(model, field):
            raise InputError(
                f"{recipe} names the field {field!r}, expected one of ModelConfig; give RECIPE:FIELD=VALUE"
            )
        model = replace(model, **{field: json.loads(value)})
    return replace(
        run, model=model, data=replace(run.data, shards=options.shards, crop=options.crop), seed=options.seed
    )


def look(training: TrainingState, inputs: StepInputs, rate: float) -> tuple[float, list[Layer]]:
    """The loss, and of each of tower 0's layers its outputs and its weights' gradient."""
    modules = named_layers(training.model)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: outputs.update({name: output})

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with torch.no_grad():
        local_logits(training, inputs, train=False)
    for hook in hooks:
        hook.remove()
    loss, _ = training_loss(training, inputs)
    parameters = [p for module in modules.values() for p in (module.weight, module.bias) if p is not None]
    gradients = dict(zip(map(id, parameters), torch.autograd.grad(loss, parameters), strict=True))

    def change(parameter: Tensor) -> float:
        size = parameter.detach().norm().item()
        return rate * gradients[id(parameter)].norm().item() / size if size else float("nan")

    def layer(name: str, module: Any) -> Layer:
        output = outputs[name].float()
        units = output.transpose(0, 1).flatten(1)
        return Layer(
            name=name,
            mean=units.mean().item(),
            alive=(units > 0).any(1).float().mean().item(),
            signal=units.std(1).mean().item(),
            gradient=change(module.weight),
            offset=change(module.bias),
        )

    return loss.item(), [layer(name, module) for name, module in modules.items()]


def named_layers(model: Network) -> dict[str, Any]:
    """Tower 0's layers by the paper's names."""
    modules = dict(cast(nn.Module, model).named_modules())
    return {name: modules[f"towers.0.{name}"] for name in LAYERS}


def table(layers: list[Layer]) -> str:
    """Markdown."""
    headings = ("layer", "mean", "alive", "signal", "weights change by", "biases by")
    rows = [
        (
            each.name,
            f"{each.mean:.3g}",
            f"{each.alive:.1%}",
            f"{each.signal:.3g}",
            f"{each.gradient:.2g}",
            f"{each.offset:.2g}",
        )
        for each in layers
    ]
    return markdown(headings, rows, 1)


def draw(found: dict[str, dict[int, tuple[float, list[Layer]]]]) -> Figure:
    """Three plots over the layers, a colour for each recipe, a style for each step."""
    titles = {
        "signal": "signal / mean of the outputs",
        "gradient": "a step changes the weights by",
        "alive": "units that are above 0 for any picture",
    }
    figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(titles))
    for colour, (recipe, by_step) in enumerate(found.items()):
        for style, (step, (_, layers)) in zip(cycle((":", "--", "-")), by_step.items()):
            line = {"color": f"C{colour}", "linestyle": style, "marker": "o", "label": f"{recipe}, after {step} steps"}
            for plot, name in zip(axes, titles, strict=True):
                shown = layers[:-1] if name == "alive" else layers  # the last has no nonlinearity
                values = [getattr(each, name) / (abs(each.mean) if name == "signal" else 1) for each in shown]
                plot.plot([each.name for each in shown], values, **line)
    for plot, (name, title) in zip(axes, titles.items(), strict=True):
        plot.set_yscale("linear" if name == "alive" else "log")
        plot.set_title(title)
        plot.tick_params(axis="x", rotation=45)
        plot.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    run_command(main)
