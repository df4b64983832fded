"""The trials, by subject.

plan.py     all of them, with their limits, the most valuable first
child.py    one of them, in this process
context.py  what a trial is told, and what it returns
data.py     the pictures that they work on
facts.py    machine, versions, containers
step.py     the training step: dropout masks, parity with float64
speed.py    the step's speed and profile; the loader with it; a checkpoint's pause
kernels.py  activation, normalisation and pooling alone: parity and bandwidth
loader.py   hand-over, parity and speed of the loader
worker.py   training, evaluation and bench as processes; a kill and a resume
ranks.py    every layout of several ranks against one process
"""
