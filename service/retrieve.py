"""COMMAND python -m service.retrieve: the pictures of a split that a network finds most alike, as in Figure 4."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import torch
import tyro

from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, printable, run_command, say
from pipeline.files import check_outputs, write_output
from pipeline.load.batch_loader import BatchLoader, choose_device
from pipeline.load.storage import SampleStore
from pipeline.manifest import SAMPLES_FILE, load_dataset, pictures_sha256
from pipeline.progress import progress
from pipeline.reading.place import is_url, open_place
from service.evaluation.evaluate import check_fits, check_split, open_pictures
from service.network.pictures import file_name
from service.network.read import load
from service.network.trained import TrainedNetwork
from service.results.table import print_table
from service.retrieval.features import FEATURES_FILE, INDEX_FILE, Index, IndexFacts, open_index
from service.retrieval.queries import Query, parse_queries, read_queries
from service.retrieval.report import HEADINGS, Pictures, json_values, sheet, table_rows
from service.retrieval.search import Engine, Neighbours, engine_of, passes, search
from service.retrieval.writing import feature_chunks, write_index

DESCRIPTION: Final = "The pictures of a split that a network finds most alike, as in figure 4: index once, then find."
MOST_TILES: Final = 2000  # of a sheet
# Measured with 4,096 columns, for 1, 10 and 1,000 queries: faiss is no faster (benchmarks/retrieve.py).
FASTEST: Final[Engine] = "blocks"


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Write the last hidden layer's activations on the centre crop of every picture of a split.

    OUT/features.npy holds them, a row for each picture in the shards' order, as float16 that np.load reads (ImageNet's
    1.3 million pictures, 4,096 units: 10.5 GB). OUT/features.json is written last; it says what they are of, and has
    the SHA-256 that `sha256sum features.npy` is to print. Interrupted at any time, the same command goes on where it
    was, and ends with the same bytes.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run (its newest sound checkpoint), a checkpoint, or a file that service.load takes."""
    shards: str | Path = "shards"
    """Folder that python -m pipeline.shard made, or its URL (s3://bucket/prefix)."""
    split: str = "train"
    """train, val or test; it needs no labels."""
    out: Path
    """Folder to make the index in: new, or an unfinished index of the same."""
    batch_size: int = 128
    """Pictures read and decoded at a time; it changes no result."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto: the GPU where there is one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1; set --batch-size")


@dataclass(frozen=True, kw_only=True)
class FindOptions:
    """Find the pictures of an index whose activations are nearest to those of other pictures, by Euclidean distance.

    The search is exact: the result is that of computing all distances in float64. Of equally near rows the lower comes
    first.
    """

    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """Folder that python -m service.retrieve index made."""
    query: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PICTURE|ROW...")]
    """Pictures, folders of them, or row numbers of the index from 0 on (a row is not its own neighbour)."""
    k: int = 6
    """Neighbours of each query."""
    engine: Literal["auto", "blocks", "faiss"] = "auto"
    """What finds them, with the same result: matrix products by torch, or faiss where installed. auto: blocks."""
    json: Path | None = None
    """File for what was found as JSON."""
    out: Path | None = None
    """PNG to draw it on: a row for each query, which comes first, then its neighbours, each with class and distance."""
    checkpoint: Path | None = None
    """The checkpoint that the index was made with, if it has moved; only needed where a query is a picture."""
    shards: str | Path | None = None
    """The shards that the index was made of, if they have moved."""

    def __post_init__(self) -> None:
        if not self.query:
            raise InputError("no query is given, expected a picture or a row number; give --query")
        if self.k < 1:
            raise InputError(f"k is {self.k}, expected at least 1; set --k")
        check_outputs({"--json": self.json, "--out": self.out})


Options = Annotated[IndexOptions, tyro.conf.subcommand("index")] | Annotated[FindOptions, tyro.conf.subcommand("find")]


def main() -> int:
    """Index or find, as the command line says."""
    options = tyro.cli(Options, prog="python -m service.retrieve", description=DESCRIPTION)  # pyright: ignore
    end_on_signals()
    return index(options) if isinstance(options, IndexOptions) else find(options)


def index(options: IndexOptions) -> int:
    """Make an index, or go on making it."""
    device = choose_device(options.device)
    loader = open_pictures(options.shards, device)
    check_split(loader, options.split)
    network = load(options.checkpoint, options.device)
    check_fits(network, loader)
    facts = index_facts(network, loader, options.split)
    with progress(facts.samples, "pictures") as advance:
        made = write_index(
            options.out,
            facts,
            lambda first: feature_chunks(network, loader, options.split, options.batch_size, first),
            advance,
        )
    shape = f"{facts.samples:,} x {facts.width:,} float16 of {facts.split}"
    if made:
        say(f"{options.out / FEATURES_FILE}: {shape}; its SHA-256 is in {INDEX_FILE}")
    else:
        say(f"{options.out / FEATURES_FILE} is there already: {shape}")
    return EXIT_DONE


def index_facts(network: TrainedNetwork, loader: BatchLoader, split: str) -> IndexFacts:
    """What an index of a split is of."""
    dataset, shards = loader.dataset, loader.config.shards
    return IndexFacts(
        split=split,
        samples=dataset.splits[split].samples,
        width=network.model.hidden_width,
        shards=str(shards if is_url(shards) else Path(shards).absolute()),
        samples_sha256=dataset.files[f"{split}/{SAMPLES_FILE}"],
        dataset_sha256=pictures_sha256(dataset),
        checkpoint=str(network.path.absolute()),
        checkpoint_sha256=network.sha256,
        device=loader.device,
    )


def find(options: FindOptions) -> int:
    """Find neighbours and report them."""
    index = open_index(options.features)
    pictures = open_shards(index, options.shards)
    engine: Engine = FASTEST if options.engine == "auto" else options.engine
    engine_of(engine)  # if it is not installed, before anything is computed
    wanted = parse_queries(options.query, index)
    if options.out and len(wanted) * (min(options.k, index.facts.samples) + 1) > MOST_TILES:
        raise InputError(
            f"{len(wanted):,} queries with {options.k:,} neighbours each are more than a sheet holds, expected at most "
            f"{MOST_TILES:,} pictures; leave out --out or ask for fewer"
        )
    queries, unusable = read_queries(wanted, index, lambda: recorded_network(index, options.checkpoint))
    for path, reason in unusable:
        say(f"{printable(file_name(path))} is no picture: {printable(reason)}")
    if queries:
        report(options, index, pictures, queries, search_all(index, queries, options.k, engine))
    return EXIT_FAULTS if unusable else EXIT_DONE


def search_all(index: Index, queries: Sequence[Query], k: int, engine: Engine) -> Neighbours:
    """The neighbours of all queries."""
    features = np.stack([query.features for query in queries])
    own = np.array([query.row for query in queries])
    k = min(k, index.facts.samples)  # an index may have fewer rows
    with progress(passes(len(queries)) * index.facts.samples, "rows") as advance:
        return search(index.rows, features, k, own=own, engine=engine, advance=advance)


def open_shards(index: Index, moved: str | Path | None) -> Pictures:
    """The pictures that an index is of; InputError where the shards are others."""
    shards, facts = open_place(moved or index.facts.shards), index.facts
    if not shards.is_dir():
        raise InputError(f"{shards} is not there, expected the shards of {index.path}; give --shards")
    dataset = load_dataset(shards)
    same_table = dataset.files.get(f"{facts.split}/{SAMPLES_FILE}") == facts.samples_sha256
    if not same_table and pictures_sha256(dataset) != facts.dataset_sha256:  # it may be stored otherwise
        raise InputError(
            f"{shards} has another {facts.split} than {index.path} is of, expected the same; give --shards"
        )
    return Pictures(SampleStore(shards, dataset, facts.split), dataset.classes)


def recorded_network(index: Index, moved: Path | None) -> TrainedNetwork:
    """The network that made an index; InputError where it is another."""
    path = moved or Path(index.facts.checkpoint)
    if not path.exists():
        raise InputError(f"{path} is not there, expected the checkpoint of {index.path}; give --checkpoint")
    # On the same kind of device where there is one, because the two round differently.
    network = load(path, "gpu" if index.facts.device == "gpu" and torch.cuda.is_available() else "cpu")
    if network.sha256 != index.facts.checkpoint_sha256:
        raise InputError(
            f"{index.path} is an index of another checkpoint ({index.facts.checkpoint}) than {network.path}, expected "
            "the same; give --checkpoint, or index again"
        )
    return network


def report(options: FindOptions, index: Index, pictures: Pictures, queries: Sequence[Query], found: Neighbours) -> None:
    """Print the table, and write the files that were asked for."""
    print_table(HEADINGS, table_rows(queries, found, pictures), left=1)
    if options.json:
        values = {
            "features": str(index.path),
            "split": index.facts.split,
            "samples": index.facts.samples,
            "checkpoint": index.facts.checkpoint,
            "checkpoint_sha256": index.facts.checkpoint_sha256,
            "k": options.k,
            "queries": json_values(queries, found, pictures),
        }
        write_output(options.json, (json.dumps(values, indent=1) + "\n").encode(), "--json")
    if options.out:
        write_output(options.out, sheet(queries, found, pictures), "--out")
        say(f"{options.out}: {len(queries):,} queries, each beside its {options.k:,} nearest of {index.facts.split}")


if __name__ == "__main__":
    run_command(main, results=True)
