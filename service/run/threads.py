"""torch's threads, where a cgroup gives the time of fewer cores than there are."""

import os
from typing import Final

import torch

from pipeline.host.cpus import usable_cores

COMPUTING: Final = frozenset({"OMP_NUM_THREADS", "MKL_NUM_THREADS"})  # with these an operator has chosen
COMPILING: Final = "TORCHINDUCTOR_COMPILE_THREADS"


def keep_within_quota() -> None:
    """Let torch compute in as many threads as this process has processor time for, and compile in as many processes.

    torch counts cores, not quotas: when threads on all of them have used up the time of a few, the kernel stops all of
    them until its next period. Where there is no quota, or the environment says how many, nothing is changed, and so
    no sum is rounded otherwise.
    """
    cores = usable_cores()
    if cores >= len(os.sched_getaffinity(0)):
        return
    if not COMPUTING & os.environ.keys():
        torch.set_num_threads(min(cores, torch.get_num_threads()))
    os.environ.setdefault(COMPILING, str(cores))
