"""Which pictures the network sees at a step, to be looked at.

run_folder.py   what a run's folder says of its batches: size, seed, loading options, the positions of a step
pictures.py     the pictures of positions, by the trainer's own loader; keys of the tars
sheet.py        pictures at their own size with words beneath, as one PNG
"""
