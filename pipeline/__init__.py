"""Pictures on disk -> batches on the device: ImageNet is sharded once, verified, and read at full speed.

Commands:

    sample.py       make a small tree of generated pictures, to try things out
    shard.py        write a picture tree, or ImageNet's archives, as WebDataset shards
    verify.py       check every byte of the shards

What all folders share:

    manifest.py     dataset.json and the sample tables: what a data set is
    folder.py       where a data set lies: a folder on disk or a prefix in an object store
    files.py        atomic, durable writes; SHA-256
    randomness.py   counter-based random bits, permutations, uniform and normal numbers
    progress.py     progress bars on a terminal, plain lines elsewhere
    command.py      exit codes, signals, standard streams and one-line errors of every command

The folders are host (what this machine gives), source, picture and synthetic (where pictures come from), write and
check (shards), load (batches), and executors (who does the work).
"""
