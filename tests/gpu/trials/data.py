"""The pictures that trials work on: generated, so that a bare machine needs no data set."""

from pipeline.manifest import Store
from pipeline.sample import SampleConfig, make
from pipeline.shard import ShardOptions, shard

from .context import Context, Failed, Found


def make_data(context: Context) -> Found:
    """Shards of 256 x 256 pictures unless they are given, of pictures of original size, and of raw squares."""
    train = 100 if context.cuda else 8
    make(SampleConfig(dir=context.folder / "pictures", train_pictures=train, val_pictures=3, side=(260, 420)))
    sets: tuple[tuple[str, int, Store], ...] = (
        (context.squares, 256, "jpeg"),
        (context.originals, 0, "jpeg"),
        (context.raw, 256, "raw"),
    )
    for out, size, store in sets:
        if out == context.shards:
            continue
        if status := shard(ShardOptions(source=context.folder / "pictures", out=out, size=size, store=store)):
            raise Failed(f"pipeline.shard ended with {status} for {out}")
    return Found(f"{train * 10} training pictures in ten classes")
