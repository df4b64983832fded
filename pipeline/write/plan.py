"""Which pictures go into which shard, and how much room the whole needs: pure, before a picture is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.manifest import shard_order
from pipeline.source.ilsvrc import Source
from pipeline.write.shard import MAX_SOURCE_BYTES, ShardTask

# A reader may hold every tar of ImageNet open (513 + 20) under the usual limit of 1,024; 75 MB each at 256 pixels.
_MOST_SHARD_SAMPLES: Final = 2500
_FEWEST_SHARD_SAMPLES: Final = 64
_SHARDS_OF_A_SMALL_SET: Final = 16  # so that workers and ranks can share it

_TAR_BYTES_A_SAMPLE: Final = 2 * 512 + 512 + 511  # two headers, the label's block, the JPEG's padding


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """What decides a data set besides its source."""

    size: int  # pixels a side; 0 keeps each picture's own
    quality: int  # JPEG, 1..100
    seed: int
    shard_samples: int  # samples a tar; 0 chooses


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
                encoder=encoder,
                reject_unreadable=reject_unreadable,
            )


def estimated_bytes(plan: ShardingPlan, source: Source) -> float:
    """About how many bytes the tars will have, rather too many than too few."""
    pictures = sum(len(listing) for listing in source.splits.values())
    # Bytes a pixel over 200 ImageNet pictures at 256 pixels: 0.40 at quality 92, 0.51 at 95, 0.98 at 100.
    bytes_a_pixel = 0.5 + 0.1 * max(plan.quality - 92, 0)
    own = sum(int(listing.bytes[listing.bytes <= MAX_SOURCE_BYTES].sum()) for listing in source.splits.values())
    return (pictures * plan.size**2 * bytes_a_pixel if plan.size else own) + pictures * _TAR_BYTES_A_SAMPLE


def _shard_samples(pictures: int) -> int:
    return min(_MOST_SHARD_SAMPLES, max(_FEWEST_SHARD_SAMPLES, -(-pictures // _SHARDS_OF_A_SMALL_SET)))
