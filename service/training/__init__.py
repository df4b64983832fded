"""A training run in progress.

worker.py              the run: step, validate, save, log, act
setup.py               the run made ready, new or from its newest checkpoint
fork.py                a run that starts from another's network
ranks.py               torchrun's processes, and what travels between them
rank_agreement.py      all ranks end, or do an operator's act, after the same step
control_queue.py       operators' acts, waiting for the training loop
graceful_stop.py       SIGTERM and SIGINT
checkpoint_writer.py   checkpoints written in the background
step_result.py         a step's result on its way from the device to the host
"""
