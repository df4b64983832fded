"""What a training run is, and what it leaves on disk.

config.py          Run, the recipes, the command line, run.json
checkpoint.py      atomic saving, verified loading and retention of checkpoints; RunState
preprocessing.py   what a network's pictures were made like, and its classes: saved with every checkpoint
dataset_change.py  in what another data set differs from a run's, in words
events.py          acts of operators and of the schedule, as events; the learning rate that follows
event_fields.py    what an event must have, by its kind, where it may come from elsewhere
log.py             log.jsonl and events.jsonl; StepRecord
lock.py            one worker at a time writes a run's folder
starts.py          starts in a row that came to no new checkpoint
filters.py         first-layer filters of a checkpoint as a PNG
threads.py         torch's threads, where a cgroup gives the time of fewer cores than there are
limits.py          bounds that the worker and its HTTP server share
"""
