"""Where samples' bytes come from: the shards' files on this host, or an object store.

mapping.py   the shards' files, mapped into memory, or read where they cannot be
place.py     path or URL -> the folder with the data set's small files; the bound of the cache
shards.py    shards in a store, sliced as those that are mapped are
samples.py   a split's samples in a store: asked for ahead of time, held against their CRCs, kept
fetch.py     ranges of a store's objects, with patience
workers.py   the threads that wait for a store
passing.py   samples in memory that have come and were not kept on disk
cache.py     samples on this host's disk, shared by processes and bounded
"""
