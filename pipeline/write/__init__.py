"""Listed pictures -> a sharded data set, the same bytes on every run.

plan.py         which pictures go into which shard, and under which key
shard.py        write one shard: its tar, DALI index and sample rows
ustar.py        tar headers
stats.py        mean image and RGB principal components of the training set, exact
record.py       the record beside a finished shard, by which an interrupted run resumes
dataset.py      finished shards -> sample tables, statistics, rejects, dataset.json
lock.py         one run at a time writes an output folder
lease.py        the same in an object store, which has no locks
metrics.py      Prometheus metrics of a sharding run
"""
