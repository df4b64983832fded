"""Whether a data set's every byte is as it was written, for `pipeline.verify`.

metadata.py     dataset.json, the sample tables and the files beside the shards
shard.py        one shard: tar, DALI index, sample rows and pictures against one another
tar.py          a strict reader of the one form of tar that pipeline.write makes
faults.py       what is wrong, one line each
"""
