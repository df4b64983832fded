"""service.ablate's work: experiments whose runs differ in named fields alone.

experiments.py     what the paper claims, and which runs show it
plan.py            an experiment -> its runs, each a command line
training.py        runs, each by a worker of its own, one or several at a time
training_error.py  the training error of a finished run, epoch by epoch
timing.py          how long a run takes, from a few steps of one
measures.py        finished runs -> numbers, their spread, and paired differences with intervals
report.py          the same as a table, a picture and JSON
"""
