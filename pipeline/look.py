"""COMMAND python -m pipeline.look: the very pictures of any step of any run, as the network saw them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.command import EXIT_DONE, InputError, end_on_signals, printable, run_command, say
from pipeline.files import check_outputs, write_output
from pipeline.inspection.pictures import Seen, batch_pictures, pictures_at, sample_of
from pipeline.inspection.run_folder import RunBatches, first_position, read_run, without_speed
from pipeline.inspection.sheet import Captioned, sheet_png
from pipeline.load.batch_loader import BatchLoader, choose_device
from pipeline.load.config import DataConfig
from pipeline.load.loader import MOST_POSITION
from pipeline.load.order import epoch_order, samples_at
from pipeline.load.storage import SampleStore

BATCH_SIZE = 128
MOST = 128  # pictures of a step that are shown unless more are asked for
EPOCHS = 25


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """Show the pictures of a training step as the network saw them.

    Which pictures, and how each is cropped, mirrored and colour-shifted, follows from the data set, the seed and the
    position alone.

    They are shown as they are before the mean picture is taken off, rounded, and clipped to 0..255 where the colour
    shift takes them beyond. Beneath each stand its training position, its key in the tars, and its class.
    """

    dir: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help_behavior_hint="(or --run)")] = (
        None
    )
    """Folder, or URL, that python -m pipeline.shard made; with --run the run's, unless given."""
    step: int | None = None
    """Training step, from 1 on."""
    sample: int | None = None
    """Key of a sample in the tars, as 12 of 00000012.jpg: its pictures in the epochs from --epoch on, in place of a
    step's."""
    epoch: int = 0
    """First epoch for --sample, from 0 on."""
    run: Path | None = None
    """Folder of a run, --out of service.train: its batch size, seed and data options, whatever its ranks were."""
    batch_size: int | None = None
    """Pictures a step, of all ranks together; 128 unless a run says."""
    seed: int | None = None
    """Of the order and the augmentation; 0 unless a run says."""
    data: DataConfig = field(default_factory=DataConfig)
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where pictures are decoded and cropped, as in training; auto: on the GPU where there is one."""
    count: int | None = None
    """Pictures to show, the first of the batch, or epochs of a sample; 128 and 25 unless given."""
    out: Path = Path("look.png")
    """The PNG to write, with each picture at its own size."""

    def __post_init__(self) -> None:
        if (self.step is None) == (self.sample is None):
            raise InputError("expected --step or --sample, and not both; give the one to look at")
        least = {"step": 1, "sample": 0, "epoch": 0, "batch_size": 1, "seed": 0, "count": 1}
        for name, lowest in least.items():
            if (value := getattr(self, name)) is not None and value < lowest:
                raise InputError(f"{name} is {value}, expected at least {lowest}; set --{name.replace('_', '-')}")
        if (self.seed or 0) >= 2**64:
            raise InputError(f"seed is {self.seed}, expected less than 2 to the power of 64; set --seed")
        if self.dir is None and self.run is None:
            raise InputError("no data set is named, expected its folder; give DIR, or --run RUN")
        if self.data.shards not in (DataConfig().shards, self.dir):
            raise InputError(f"--data.shards is {self.data.shards}, expected the data set as DIR; give DIR alone")
        if self.run and (
            self.batch_size is not None or self.seed is not None or without_speed(self.data) != DataConfig()
        ):
            raise InputError(f"--run {self.run} says batch size, seed and data options, expected none beside it")
        check_outputs({"--out": self.out})


def main() -> int:
    """Show what the command line asks for."""
    options = tyro.cli(LookOptions, prog="python -m pipeline.look")
    end_on_signals()
    batches = batches_of(options)
    loader = BatchLoader(batches.data, seed=batches.seed, device=choose_device(options.device))
    store = SampleStore(loader.root, loader.dataset, "train")
    if options.sample is None:
        title, pictures = step_pictures(options, batches, loader, store)
    else:
        title, pictures = sample_pictures(options, batches, loader, store)
    clipped = sum(each.clipped for each in pictures) / len(pictures)
    title.append(f"{describe(batches, loader)}; {clipped:.2%} of the values are clipped to be shown")
    tiles = [
        Captioned(each.picture, caption(each, loader, store, by_epoch=options.sample is not None)) for each in pictures
    ]
    write_output(options.out, sheet_png(title, tiles), "--out")
    for place in loader.damaged:
        say(printable(f"notice: {place} is damaged, another is shown in its place, as in training"))
    say(printable(f"{options.out}: {'; '.join(title)}"))
    return EXIT_DONE


def batches_of(options: LookOptions) -> RunBatches:
    """What decides the batches, by the command line or by a run."""
    if options.run is None:
        size, seed = options.batch_size or BATCH_SIZE, options.seed or 0
        return RunBatches(batch_size=size, seed=seed, data=replace(options.data, shards=options.dir or ""))
    run = read_run(options.run)
    return replace(run, data=replace(run.data, shards=options.dir or run.data.shards))


def step_pictures(
    options: LookOptions, batches: RunBatches, loader: BatchLoader, store: SampleStore
) -> tuple[list[str], list[Seen]]:
    """A title, and the first pictures of a step."""
    step, size = options.step or 1, batches.batch_size
    first = first_position(options.run, batches, step, len(store)) if options.run else (step - 1) * size
    require_position(first + size, "--step")
    pictures = batch_pictures(loader, size, first)[: options.count or MOST]
    whole = "" if len(pictures) == size else f"the first {len(pictures):,} of them: "
    last = first + len(pictures) - 1
    where = f"positions {first:,} to {last:,}, epoch {first / len(store):.3f}"
    return [f"Step {step:,}, {size:,} pictures; {whole}{where}"], pictures


def sample_pictures(
    options: LookOptions, batches: RunBatches, loader: BatchLoader, store: SampleStore
) -> tuple[list[str], list[Seen]]:
    """A title, and a sample's pictures in some epochs."""
    sample = sample_of(store, options.sample or 0)
    epochs = range(options.epoch, options.epoch + (options.count or EPOCHS))
    require_position(epochs.stop * len(store), "--epoch")
    pictures = pictures_at(loader, [position_of(loader, epoch, sample, len(store)) for epoch in epochs])
    name = class_name(loader, pictures[0].label)
    return [f"Sample {options.sample:08d}, {name}, in epochs {epochs.start:,} to {epochs.stop - 1:,}"], pictures


def require_position(position: int, flag: str) -> None:
    """InputError for a position beyond those that there are."""
    if position > MOST_POSITION:
        raise InputError(f"{flag} is at position {position}, expected at most {MOST_POSITION}; give a lower {flag}")


def position_of(loader: BatchLoader, epoch: int, sample: int, samples: int) -> int:
    """The training position at which an epoch visits a sample: the inverse of its order."""
    order = epoch_order(loader.seed, epoch, samples, loader.shuffle)
    return epoch * samples + int((order == sample).argmax())


def caption(each: Seen, loader: BatchLoader, store: SampleStore, *, by_epoch: bool) -> tuple[str, ...]:
    """What stands beneath a picture; by_epoch: all are of one sample."""
    epoch, position = f"epoch {each.position // len(store):,}", f"position {each.position:,}"
    if by_epoch:
        return epoch, position
    sample = int(samples_at(loader.seed, len(store), each.position, 1, loader.shuffle)[0])
    return class_name(loader, each.label), position, f"{store.key(sample):08d}{loader.dataset.suffix}"


def class_name(loader: BatchLoader, label: int) -> str:
    """What people call a class, in one of its words."""
    return loader.dataset.classes[label].name


def describe(batches: RunBatches, loader: BatchLoader) -> str:
    """What else decides the pictures."""
    data = batches.data
    how = f"{data.decoding} decoding on the {loader.decoder.upper()}"
    return f"{data.shards}, seed {batches.seed}, crop {data.crop}, {how}"


if __name__ == "__main__":
    run_command(main)
