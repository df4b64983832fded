"""How well trained networks do on a split: every picture counted once, alone and as an ensemble.

collect.py      networks on pictures -> what each made of every picture
measures.py     error rates and intervals, errors by class, confusions, calibration
mixture.py      weights of an ensemble's members
evaluate.py     all of it together: an Evaluated for a split
finished.py     a run's own network, once it has been trained
report.py       tables like the paper's, as text, Markdown and JSON; predictions in ILSVRC's form
reliability.py  confidence against accuracy as a PNG
"""
