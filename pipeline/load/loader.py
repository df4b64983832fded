"""Loader: (pictures, labels) for any PyTorch training loop, an epoch an iteration; all its state is one position."""

from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor

from pipeline.command import InputError
from pipeline.load.batch_loader import Batch, BatchLoader, choose_device
from pipeline.load.config import DataConfig
from pipeline.load.order import rank_slice
from pipeline.manifest import Triple, pictures_sha256

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)  # RGB on 0..1, as torchvision's networks take them
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
MOST_POSITION: Final = 1 << 62  # positions are int64, and batches reach beyond


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Which positions make a batch, and which of them are this rank's."""

    samples: int
    batch_size: int
    drop_last: bool
    rank: int
    world_size: int

    def span(self, position: int) -> range:
        """The global batch that starts there: positions of one epoch."""
        return range(position, min(position + self.batch_size, self.end(position)))

    def end(self, position: int) -> int:
        """Where the epoch of this position ends."""
        return (position // self.samples + 1) * self.samples

    def settled(self, position: int) -> int:
        """Where the next batch starts: there, or in the next epoch where what is left is dropped."""
        end = self.end(position)
        return end if self.drop_last and end - position < self.batch_size else position

    def part(self, span: range) -> range:
        """What this rank takes of a global batch."""
        return span[rank_slice(len(span), self.rank, self.world_size)]

    def parts(self, position: int) -> Iterator[range]:
        """This rank's parts of all batches from there on, but for those of which it has none."""
        while True:
            span = self.span(position)
            if part := self.part(span):
                yield part
            position = self.settled(span.stop)


class Loader:
    """Batches of a data set, an epoch an iteration: `for pictures, labels in loader`.

    The pictures are a function of (data set, config, seed, position) alone, so that a resume is one integer and any
    number of ranks shares the same global batches.

    pictures: (B, 3, crop, crop) in channels-last memory; float32 or, as config.output says, float16: (RGB on 0..1
    - mean) / std, the colour shift added before; uint8: RGB as it is. labels: (B,) int64. Both on the device.
    """

    def __init__(
        self,
        config: DataConfig,
        batch_size: int,
        *,
        split: str = "train",
        drop_last: bool = False,
        seed: int = 0,
        device: Literal["auto", "cpu", "gpu"] = "auto",
        rank: int = 0,
        world_size: int = 1,
        resize: int = 0,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
    ):
        """batch_size: of all ranks together; each takes its part, and parts differ by a picture at most.

        split: train is shuffled and varied as config.augment says; of others the pictures come in order, each one's
        centre crop. resize: shorter side that pictures are scaled to before the crop, pixels; 0: 256 for pictures of
        sizes of their own, stored squares as they are; training pictures of config.augment.crop "resized" are not
        scaled first. drop_last: leave out an epoch's last batch where it is shorter. device: gpu is torch's current
        one. mean, std: RGB on 0..1.

        InputError where the data set cannot be read, or options contradict it or one another.
        """
        _check(config, batch_size, split, rank, world_size, resize, std)
        self.batch_size, self.split, self.drop_last, self.seed = batch_size, split, drop_last, seed
        self.rank, self.world_size = rank, world_size
        self._loader = BatchLoader(
            replace(config, output="float32" if config.output == "auto" else config.output),
            seed=seed,
            device=choose_device(device),
            rank=rank,
            world_size=world_size,
            resize=resize,
            mean=_on_255(mean),
            std=_on_255(std),
        )
        self.config, self.dataset = self._loader.config, self._loader.dataset
        if split not in self.dataset.splits:
            raise InputError(f"there is no split {split!r}, expected one of: {', '.join(self.dataset.splits)}")
        self.samples = self.dataset.splits[split].samples
        if len(self) == 0:
            raise InputError(
                f"{split} has {self.samples} pictures, expected a batch of {batch_size}; take a smaller one"
            )
        self._plan = _Plan(
            samples=self.samples, batch_size=batch_size, drop_last=drop_last, rank=rank, world_size=world_size
        )
        self._scaled = split == "train" and config.augment.colour == "deviations"
        self._position = 0
        self._stream: Generator[Batch, None, None] | None = None

    @property
    def position(self) -> int:
        """Pictures of all epochs and ranks up to the last batch that was handed out: where the next one starts."""
        return self._position

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self._position // self.samples

    @property
    def damaged(self) -> list[str]:
        """Where damaged pictures lie that others have stood in for, each time."""
        return list(self._loader.damaged)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of the epoch: all of it, unless the last loop ended early or a state was loaded."""
        end = (self.epoch + 1) * self.samples
        while self._position < end:
            yield self._next()

    def seek(self, position: int) -> None:
        """Go on from this position; epoch e starts at e * samples."""
        if not 0 <= position <= MOST_POSITION:
            raise InputError(f"position is {position}, expected 0 to {MOST_POSITION}")
        self.close()
        self._position = self._plan.settled(position)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after the last batch handed out: plain values, of any rank."""
        return {**self._identity(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken; batch size and number of ranks may be others.

        InputError where it is of another data set, split, seed or order.
        """
        ours = self._identity()
        if not isinstance(position := state.get("position"), int):
            raise InputError(f"the loader's state has position {position}, expected a number; load one of state_dict()")
        names = [*ours, *(name for name in state if name not in ours and name != "position")]
        if differing := [name for name in names if state.get(name) != ours.get(name)]:
            said = ", ".join(f"{name} {state.get(name)}, expected {ours.get(name)}" for name in differing)
            raise InputError(f"the loader's state has {said}; make the loader as the one that it is of, or seek")
        self.seek(position)

    def close(self) -> None:
        """End the threads that prepare batches; the next loop starts others."""
        stream, self._stream = self._stream, None
        if stream:
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _identity(self) -> dict[str, Any]:
        """What a position means something for."""
        shuffle = self._loader.shuffle
        order = {"shuffle": asdict(shuffle)} if self.split == "train" and shuffle.by_block(self.samples) else {}
        return {"dataset": pictures_sha256(self.dataset), "split": self.split, "seed": self.seed, **order}

    def _next(self) -> tuple[Tensor, Tensor]:
        span = self._plan.span(self._position)
        if not self._plan.part(span):
            batch = self._nothing()
        else:
            stream = self._stream = self._stream or self._batches()
            try:
                batch = self._finished(next(stream))
            except BaseException:
                self.close()  # its generator is done for
                raise
        self._position = self._plan.settled(span.stop)
        return batch

    def _batches(self) -> Generator[Batch, None, None]:
        """This rank's batches from the position on, epoch after epoch: the next one is prepared before it begins."""
        most, samples = -(-self.batch_size // self.world_size), self.samples
        # Of the plan, which holds no loader: one that is forgotten ends its threads.
        parts = self._plan.parts(self._position)
        if self.split == "train":
            return self._loader.train_spans(parts, most)
        within = (range(part.start % samples, part.start % samples + len(part)) for part in parts)
        return self._loader.picture_spans(self.split, within, most)

    def _finished(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pictures = batch.pictures
        if self._scaled:
            pictures.mul_(batch.scale[:, None, None, None].to(pictures.dtype))
        return pictures.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last), batch.labels

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """The part of a rank whose epoch ends with fewer pictures than ranks."""
        where = torch.device("cuda" if self._loader.device == "gpu" else "cpu")
        side, dtype = self.config.crop, getattr(torch, self._loader.output)
        pictures = torch.empty((0, side, side, 3), dtype=dtype, device=where)
        return pictures.permute(0, 3, 1, 2), torch.empty(0, dtype=torch.int64, device=where)


def _check(
    config: DataConfig, batch_size: int, split: str, rank: int, world_size: int, resize: int, std: Triple
) -> None:
    """InputError where options contradict one another."""
    if not 0 <= rank < world_size <= batch_size:
        raise InputError(
            f"batch_size is {batch_size} for rank {rank} of {world_size}, expected at least a picture for each rank"
        )
    if resize < 0:
        raise InputError(f"resize is {resize} pixels, expected at least the crop, or 0 for the pictures' own")
    if not all(value > 0 for value in std):
        raise InputError(f"std is {std}, expected numbers above 0, of RGB on 0..1")
    if split == "train" and config.output == "uint8" and config.augment.colour != "off":
        raise InputError(
            "output is uint8, which cannot hold a colour shift, expected float32 or float16; "
            "or set augment=AugmentConfig(colour='off')"
        )


def _on_255(values: Triple) -> Triple:
    red, green, blue = (255 * value for value in values)
    return red, green, blue
