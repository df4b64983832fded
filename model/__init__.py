"""The network, its step and its pictures: tensors only, no files, environment, clock or DALI."""
