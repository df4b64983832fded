"""The pictures that a network finds alike: features of a split on disk, and exact search among them.

features.py      the folder of an index: what it says of itself, opening and checking it
writing.py       pictures -> features on disk, resumable at any time
search.py        the nearest rows by Euclidean distance, exactly, in bounded memory
bounds.py        squared distances from below, beyond rounding: what the search may leave out
faiss_engine.py  the same search through faiss, where it is installed
queries.py       picture files and row numbers -> what is looked for
report.py        what was found as a table, JSON and a sheet like the paper's Figure 4
"""
