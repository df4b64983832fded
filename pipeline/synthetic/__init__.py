"""Generated pictures for `pipeline.sample`: ten learnable classes.

scene.py        a whole picture: texture, colours, background, clutter, light and noise
textures.py     the ten textures, one a class
"""
