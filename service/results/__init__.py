"""What runs have come to, for people: read from their folders, as curves and tables.

history.py         a run's log, events and run.json -> losses, errors and learning rates over epochs
curves.py          the curves of several runs on one PNG
table.py           their final figures as text or Markdown
filter_indexes.py  a checkpoint's first-layer filters on one PNG; how the towers differ in orientation and colour
"""
