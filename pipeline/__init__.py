"""Pictures on disk -> batches on the device: ImageNet is sharded once, verified, and read at full speed.

Commands:

    sample.py       make a small tree of generated pictures, to try things out
    shard.py        write a picture tree, or ImageNet's archives, as WebDataset shards
    verify.py       check every byte of the shards
    bench.py        measure how fast batches come, beside what bounds them; find the fastest options
    look.py         show the pictures of any training step as the network saw them

What all folders share:

    manifest.py     dataset.json and the sample tables: what a data set is
    folder.py       where a data set lies: a folder on disk or a prefix in an object store
    files.py        atomic, durable writes; SHA-256
    foreign.py      JSON and arrays that may come from elsewhere, held against what is expected
    randomness.py   counter-based random bits, permutations, uniform and normal numbers
    progress.py     progress bars on a terminal, plain lines elsewhere
    command.py      exit codes, signals, standard streams and one-line errors of every command

For training loops of your own: `from pipeline import Loader, DataConfig, AugmentConfig` (docs/library.md). They are
imported when first asked for, so that sharding needs neither torch nor DALI.

The folders are host (what this machine gives), source, picture and synthetic (where pictures come from), write and
check (shards), reading (samples' bytes), load (batches), measure (how fast they come), inspection (which pictures they
are), and executors (who does the work).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.command import InputError
    from pipeline.load.augment import AugmentConfig
    from pipeline.load.config import DataConfig
    from pipeline.load.loader import Loader

__all__ = ["AugmentConfig", "DataConfig", "InputError", "Loader"]

_HOMES = {
    "AugmentConfig": "pipeline.load.augment",
    "DataConfig": "pipeline.load.config",
    "InputError": "pipeline.command",
    "Loader": "pipeline.load.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
