"""The ranks that torchrun starts, and what they exchange; a process on its own is the case of one rank."""

import os
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]  # documented as public
from torch.distributed.rendezvous import rendezvous

from pipeline.command import EXIT_WRONG_CALL, InputError
from pipeline.host.cpus import usable_cores
from pipeline.load.batch_loader import Device
from service.run.threads import keep_within_quota

T = TypeVar("T")
NamedTensors = dict[str, Tensor]

# When an exchange by NCCL fails or takes too long torch ends the process, because nothing can be asked of the GPU any
# more: at once, and after it has written which exchanges each rank was at.
NCCL_ENVIRONMENT: Final = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_BUFFER_SIZE": "2000",  # exchanges, about a hundred steps
}
TORCHRUN_ERROR_HANDLING: Final = "1"  # what torchrun sets by itself; it waits for communicators first, which may hang


@dataclass(frozen=True)
class Ranks:
    """Which of all ranks this process is; rank 0 is the leader: it alone reads and writes the run's folder."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    checkpoint_group: dist.ProcessGroup | None = (
        None  # for checkpoints, sent beside the training loop's own collectives
    )

    patience: timedelta | None = None  # timeout of collectives; None: there are none

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether torchrun started this process."""
        return self.checkpoint_group is not None

    @property
    def threads_per_rank(self) -> int:
        """This process's share of the cores that it may use."""
        return max(1, usable_cores() // self.local_world_size)

    def on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run an action that may raise InputError; if it does on any rank, all end, and the first says why."""
        if self.world_size == 1:
            return action()
        result = error = None
        try:
            result = action()
        except InputError as found:
            error = found
        errors = self.all_gather(error and str(error))
        wrong = [rank for rank, message in enumerate(errors) if message is not None]
        if error and wrong[0] == self.rank:
            raise error
        if wrong:
            sys.exit(EXIT_WRONG_CALL)
        return cast(T, result)

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank; all wait for each other."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank; all wait for it."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_tensors(self, tensors: NamedTensors) -> Iterator[tuple[str, Tensor]]:
        """Rank 0's host tensors, one after the other, on every rank."""
        shapes = self.broadcast({name: (t.shape, t.dtype) for name, t in tensors.items()})
        for name, (shape, dtype) in shapes.items():
            # Contiguous, because what is sent is memory, whatever the strides.
            tensor = tensors[name].contiguous() if self.is_leader else torch.empty(shape, dtype=dtype)
            if self.world_size > 1:
                dist.broadcast(tensor, src=0)
            yield name, tensor

    def send_to_leader(self, tensors: NamedTensors) -> None:
        """Send host tensors to rank 0, which calls receive_from for this rank."""
        dist.send_object_list(
            [{name: (t.shape, t.dtype) for name, t in tensors.items()}], dst=0, group=self.checkpoint_group
        )
        for tensor in tensors.values():
            dist.send(tensor, dst=0, group=self.checkpoint_group)

    def receive_from(self, rank: int) -> NamedTensors:
        """On rank 0: the tensors that `rank` sends."""
        shapes: list[dict] = [{}]
        dist.recv_object_list(shapes, src=rank, group=self.checkpoint_group)
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes[0].items()}
        for tensor in tensors.values():
            dist.recv(tensor, src=rank, group=self.checkpoint_group)
        return tensors


class RanksLost(Exception):
    """An exchange failed because another rank is gone."""


@contextmanager
def join_ranks(device: Device, patience_seconds: float) -> Iterator[Ranks]:
    """This process's rank, from torchrun's environment variables, connected to the others while the block runs.

    patience_seconds: timeout of collectives. RanksLost when one fails, or when another rank is gone.
    """
    keep_within_quota()
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    rank, ranks, local_rank, local_ranks = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    try:
        patience = timedelta(seconds=patience_seconds)
        files = init_process_groups(device, local_rank, patience)
        place = Ranks(rank, ranks, local_rank, local_ranks, files, patience)
        if device == "cpu":
            torch.set_num_threads(place.threads_per_rank)  # torchrun's default is one
        yield place
    except (InputError, SystemExit):  # on all ranks alike: see on_all_ranks
        if dist.is_initialized():
            dist.destroy_process_group()  # else a thread that still runs may abort this process at exit
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        cause = str(error).partition("\n")[0]
        remedy = "start them again, as torchrun --max-restarts does"
        raise RanksLost(f"rank {rank} lost another ({cause}), expected all {ranks}; {remedy}") from error
    dist.destroy_process_group()  # not after a failure: the other ranks are gone


def init_process_groups(device: Device, local_rank: int, patience: timedelta) -> dist.ProcessGroup:
    """Connect to the other ranks; returns a second group, for checkpoints beside the training loop's collectives."""
    store, rank, ranks = next(rendezvous("env://", timeout=patience))
    if device == "gpu":
        if local_rank >= (gpus := torch.cuda.device_count()):
            remedy = "set torchrun's --nproc-per-node, or --device cpu"
            raise InputError(f"process {local_rank} of this host has no GPU, expected one for each of {gpus}; {remedy}")
        torch.cuda.set_device(local_rank)
        set_nccl_environment(os.environ)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "gpu" else "gloo",
        store=fresh_store(store, rank, ranks, patience),
        rank=rank,
        world_size=ranks,
        timeout=patience,
    )
    files = dist.new_group(backend="gloo", timeout=patience)
    assert isinstance(files, dist.ProcessGroup)
    return files


def set_nccl_environment(environment: MutableMapping[str, str]) -> None:
    """What is not set there already, as in NCCL_ENVIRONMENT."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    if environment.get(name) == TORCHRUN_ERROR_HANDLING:
        del environment[name]
    environment.update({**NCCL_ENVIRONMENT, **environment})


def fresh_store(store: Store, rank: int, ranks: int, patience: timedelta) -> Store:
    """A prefix of torchrun's store that no earlier start of these ranks has written to; all ranks get the same.

    torchrun keeps its store over restarts, with the addresses of ranks that are gone (pytorch issue 135712), and has no
    restart count that all its hosts agree on. So rank 0 picks a random prefix and answers each rank's question with it.
    It cannot tell a new question from an old one, so it goes on until all ranks have written under the prefix.
    """
    mine = uuid4().hex
    if rank > 0:
        store.set(f"question/{rank}", mine)
        name = store.get(f"answer/{mine}").decode()  # blocks until it is set
        store.set(f"{name}/here/{rank}", "")
        return PrefixStore(name, store)
    missing, deadline = set(range(1, ranks)), time.monotonic() + patience.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{mine}/here/{other}"]):
                missing.remove(other)
            elif store.check([f"question/{other}"]):
                store.set(f"answer/{store.get(f'question/{other}').decode()}", mine)
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"waited {patience} for ranks {sorted(missing)}")
        time.sleep(0.01)
    return PrefixStore(mine, store)
