"""The training worker, and the commands around it.

Commands:

    launch.py       train on every GPU of this host
    train.py        train in one process, or one of torchrun's; the training loop
    doctor.py       check this machine: what would break training, and the flags to use
    evaluate.py     errors of trained networks, alone and as an ensemble, on a split
    predict.py      what a trained network sees in pictures: words, JSON, figure 4's panels
    retrieve.py     pictures that a network finds alike: an index of features, and exact search in it
    visualise.py    the first-layer filters, drawn and measured
    compare.py      curves and final errors of several runs
    ablate.py       the paper's experiments: variants trained and compared
    export.py       a trained network as a file for other programs

The folders are run (what a run is and leaves on disk), network (a trained network in use), telemetry (what is measured
and shown), training (the run in progress), evaluation (networks measured on a split), retrieval (features of a split,
and search among them), results (runs read from disk, for people), ablation (experiments of many runs), web (the HTTP
server) and diagnostics (the doctor's checks).

For programs there is `load`: a trained network from a run, a checkpoint or a file.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.network.read import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, when it is first asked for: the commands import this file too, and some need no torch."""
    if name == "load":
        from service.network.read import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
