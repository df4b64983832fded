"""The network and its training step: tensors only, no files, environment, clock or DALI.

alexnet.py      Tower, AlexNet, initial weights; ModelConfig
torchvision.py  torchvision's AlexNet, with our dropout
cifar.py        the 2012 code's networks for CIFAR-10
network.py      make_network: the one that ModelConfig asks for
grouped.py      the two towers as one module of plain operators, for export
step.py         the training step, compiled as one graph (two where torch cannot trace it as one); the validation step
optim.py        SGD with momentum, the paper's update rule; learning-rate schedules; OptimConfig
parallel.py     towers on two ranks, replicas, or both, applied from outside
precision.py    float32, mixed or bfloat16: what suits the device
views.py        the centre of a picture, or the paper's ten views; softmax averaged over them
filters.py      conv1 kernels as one picture; how oriented and coloured each is
flop.py         floating-point operations of training on one picture

layers/ has what torch has not: normalisation, pooling, dropout.
"""
