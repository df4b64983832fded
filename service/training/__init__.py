"""A training run in progress.

worker.py              the run: step, validate, save, log, act
validation.py          the error on the validation set, measured between steps
setup.py               the run made ready, new or from its newest checkpoint
fork.py                a run that starts from another's network
ranks.py               torchrun's processes, and what travels between them
rank_agreement.py      all ranks end, do an operator's act, or save, after the same step
control_queue.py       operators' acts, waiting for the training loop
graceful_stop.py       SIGTERM and SIGINT
snapshot.py            weights, velocities and averages as they are after a step, off a GPU beside the next ones
checkpoint_writer.py   checkpoints by the clock, written in the background
step_result.py         a step's result on its way from the device to the host
"""
