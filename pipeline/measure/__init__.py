"""How fast batches are prepared on this machine, beside what bounds it, and the options that make it fastest.

sides.py        what is measured: reading, decoding, the loader, the loader with a consumer, the bounds
windows.py      one measurement of a side: images, waiting, processor time, memory; sides take turns
summary.py      measurements -> medians, ranges and shares of the bound; as a table and as JSON
chart.py        the same as a picture
search.py       the options that are fastest, one after another in a limited time
tuned.py        tuned.json: the options that were fastest, by type of machine
gpu.py          what a GPU adds: its copy bandwidth, and how busy its JPEG engines are
"""
