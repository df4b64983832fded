"""Small data sets as tests of sharding make them: 60 pictures, 32 pixels a side, in shards of two."""

import sys
from pathlib import Path
from typing import Any

from pipeline.shard import ShardOptions
from pipeline.write.record import RECORD_SUFFIX

SAMPLES = 60


def options(source: Path, out: Path | str, **changes: Any) -> ShardOptions:
    """For this process alone, unless `changes` say otherwise."""
    given: dict[str, Any] = {"size": 32, "workers": 1, "shard_samples": 2, "val_fraction": 0.2, **changes}
    return ShardOptions(source=source, out=str(out), **given)


def command(source: Path, out: Path | str, *arguments: str) -> list[str]:
    """The same as a process of its own with two workers."""
    given = [str(source), "--out", str(out), "--size", "32", "--shard-samples", "2", "--val-fraction", "0.2"]
    return [sys.executable, "-m", "pipeline.shard", *given, "--workers", "2", *arguments]


def finished(out: Path) -> list[Path]:
    """The shards there whose records say that they are done."""
    return [
        path.with_name(f"{path.name.removeprefix('.').removesuffix(RECORD_SUFFIX)}.tar")
        for path in sorted(out.glob(f"*/.*{RECORD_SUFFIX}"))
    ]
