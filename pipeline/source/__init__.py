"""ImageNet in any form that people have it in -> listed pictures with their classes.

ilsvrc.py       find all pictures and classes: the entry to this folder
layout.py       which form the source has: folders, Kaggle's tree, the original archives
contents.py     what a folder or an archive of pictures holds
folders.py      what is seen in a folder and below it, through links but never in circles
names.py        what names say: pictures, folders that systems make, names that look alike
tars.py         where the members of a tar lie, so that they are read in place
devkit.py       labels and words from development kits, Kaggle's tables and Caffe's list
synsets.py      meta.mat of a development kit, read in a process of its own
labels.py       classes of pictures that lie in one flat folder
listing.py      millions of listed pictures in little memory; reading one of them
subset.py       --classes, --limit and --val-fraction: parts drawn by seed
"""
