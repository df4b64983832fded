"""Layers that torch has not, or not as the paper needs them.

first_conv.py   the first convolution, fast in bfloat16
lrn.py          local response normalisation
batch_norm.py   batch normalisation over all ranks
pool.py         overlapping max-pooling
fused.py        activation, normalisation and pooling after a convolution: one pass on CUDA, layers elsewhere
fused_kernels.py  its Triton kernels, imported on CUDA only
dropout.py      dropout masks as a function of (seed, layer, position, unit)
"""
