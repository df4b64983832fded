"""Layers that torch has not, or not as the paper needs them.

first_conv.py   the first convolution, fast in bfloat16
lrn.py          local response normalisation
pool.py         overlapping max-pooling
dropout.py      dropout masks as a function of (seed, layer, position, unit)
"""
