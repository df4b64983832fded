"""The network and its training step: tensors only, no files, environment, clock or DALI.

alexnet.py      Tower, AlexNet, initial weights; ModelConfig
lrn.py          local response normalisation
pool.py         overlapping max-pooling
dropout.py      dropout masks as a function of (seed, layer, position, unit)
step.py         the training step, compiled as one graph (two where torch cannot trace it as one); the validation step
optim.py        SGD with momentum, the paper's update rule; learning-rate schedules; OptimConfig
parallel.py     towers on two ranks, replicas, or both, applied from outside
precision.py    float32, mixed or bfloat16: what suits the device
filters.py      conv1 kernels as one picture
flop.py         floating-point operations of training on one picture
"""
