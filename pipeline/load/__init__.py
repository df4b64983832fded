"""Shards -> training batches on the device.

config.py        DataConfig: which pictures, and how they reach the network
loader.py        Loader: (pictures, labels) for any training loop, an epoch an iteration
batch_loader.py  batches of a data set, with all that a training step needs of them
crops.py         crops of stored squares on the CPU, by threads
graph.py         the DALI graph: JPEG files -> crops of pixels
feed.py          what the DALI graph is fed, checked by threads; pictures that it cannot decode, replaced
order.py         training position -> sample; a rank's part of a batch
augment.py       training position -> crop, mirror, colours; AugmentConfig
inputs.py        all that the DALI pipeline and the training step are given of a batch's samples; damaged ones replaced
storage.py       sample -> JPEG bytes
read_ahead.py    samples' bytes asked for before they are needed
probe.py         whether DALI decodes JPEG here, tried in a process of its own
"""
