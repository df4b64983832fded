"""Which pictures go into which shard, how much room the whole needs, and which picture a key is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.command import InputError
from pipeline.manifest import Store, shard_order
from pipeline.picture.jpeg import to_jpeg
from pipeline.picture.raw import npy_bytes
from pipeline.picture.unusable import UnusablePicture
from pipeline.source.ilsvrc import Source
from pipeline.source.listing import UnreadablePicture, read_picture
from pipeline.write.shard import MAX_SOURCE_BYTES, ShardTask

# A reader may hold every tar of ImageNet open (513 + 20) under the usual limit of 1,024; 75 MB each at 256 pixels.
_MOST_SHARD_SAMPLES: Final = 2500
_FEWEST_SHARD_SAMPLES: Final = 64
_SHARDS_OF_A_SMALL_SET: Final = 16  # so that workers and ranks can share it

_TAR_BYTES_A_SAMPLE: Final = 2 * 512 + 512 + 511  # two headers, the label's block, the picture's padding


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """What decides a data set besides its source."""

    size: int  # pixels a side; 0 keeps each picture's own
    quality: int  # JPEG, 1..100
    seed: int
    shard_samples: int  # samples a tar; 0 chooses
    store: Store


def shard_tasks(
    plan: ShardingPlan, source: Source, out: str, encoder: str, reject_unreadable: bool
) -> Iterator[ShardTask]:
    """The task of every shard, made as it is asked for, split by split: each split is shuffled as a whole."""
    for split, listing in source.splits.items():
        order = shard_order(plan.seed, split, len(listing))
        step = plan.shard_samples or _shard_samples(len(listing))
        for number, first in enumerate(range(0, len(listing), step)):
            yield ShardTask(
                source=source.root.resolve(),
                out=out,
                split=split,
                number=number,
                first_key=first,
                pictures=listing.pictures(order[first : first + step]),
                size=plan.size,
                quality=plan.quality,
                store=plan.store,
                encoder=encoder,
                reject_unreadable=reject_unreadable,
            )


def estimated_bytes(plan: ShardingPlan, source: Source) -> float:
    """About how many bytes the tars will have, rather too many than too few."""
    pictures = sum(len(listing) for listing in source.splits.values())
    # Bytes a pixel over 200 ImageNet pictures at 256 pixels: 0.40 at quality 92, 0.51 at 95, 0.98 at 100.
    bytes_a_pixel = 0.5 + 0.1 * max(plan.quality - 92, 0)
    own = sum(int(listing.bytes[listing.bytes <= MAX_SOURCE_BYTES].sum()) for listing in source.splits.values())
    a_picture = npy_bytes(plan.size) if plan.store == "raw" else plan.size**2 * bytes_a_pixel
    return (pictures * a_picture if plan.size else own) + pictures * _TAR_BYTES_A_SAMPLE


def jpeg_maker(plan: ShardingPlan, source: Source) -> Callable[[int], bytes]:
    """Makes the JPEG of a training picture's key once more, as its shard's task made it.

    InputError where that picture can no longer be read.
    """
    listing = source.splits["train"]
    order = shard_order(plan.seed, "train", len(listing))

    def make_jpeg(key: int) -> bytes:
        (picture,) = listing.pictures(order[key : key + 1])
        try:
            return to_jpeg(read_picture(source.root.resolve(), picture), plan.size, plan.quality)[0]
        except (UnreadablePicture, UnusablePicture) as error:
            raise InputError(f"{error}, but was read before, expected it as it was; bring it back") from None

    return make_jpeg


def _shard_samples(pictures: int) -> int:
    return min(_MOST_SHARD_SAMPLES, max(_FEWEST_SHARD_SAMPLES, -(-pictures // _SHARDS_OF_A_SMALL_SET)))
