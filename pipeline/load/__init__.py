"""Shards -> training batches on the device.

config.py        DataConfig: which pictures, and how they reach the network
batch_loader.py  batches of a data set, with all that a training step needs of them
graph.py         the DALI graph: JPEG files -> crops of pixels
order.py         training position -> sample; a rank's part of a batch
augment.py       training position -> crop, mirror and colour shift; AugmentConfig
inputs.py        all that the DALI pipeline and the training step are given of a batch's samples; damaged ones replaced
storage.py       sample -> JPEG bytes
mapping.py       the shards' files, mapped into memory, or read where they cannot be
probe.py         whether DALI decodes JPEG here, tried in a process of its own
"""
