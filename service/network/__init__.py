"""A trained network in use: read from a run, a checkpoint or a file, and given pictures.

read.py         the network of a run, a checkpoint or an exported file
trained.py      TrainedNetwork: pictures -> probabilities, features, words
pictures.py     picture files, folders and standard input -> pixels as training had them
export.py       a network as a file for other programs, compared with the network before it takes its name
panels.py       pictures with bars of their likeliest classes, on one PNG
compute.py      chunks of work on all cores, with the same result on any number of them
"""
