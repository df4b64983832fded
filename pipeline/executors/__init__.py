"""Who does the work of sharding and verifying, and how it survives failures.

ordered.py      results in the order of the tasks; failed tasks are tried again
pool.py         worker processes of this host, or this process itself
dask.py         the workers of a Dask cluster; what --executor means
"""
