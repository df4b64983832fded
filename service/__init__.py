"""The training worker, and the commands around it.

Commands:

    launch.py       train on every GPU of this host
    train.py        train in one process, or one of torchrun's; the training loop
    doctor.py       check this machine: what would break training, and the flags to use
    visualise.py    draw the first-layer filters
    compare.py      curves and final errors of several runs

The folders are run (what a run is and leaves on disk), telemetry (what is measured and shown), training (the run in
progress), results (runs read from disk, for people), web (the HTTP server) and diagnostics (the doctor's checks).
"""
