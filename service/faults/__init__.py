"""What a run does about numbers that went wrong.

recovery.py   their batch, or all since the last checkpoint, left out
replay.py     a step once more, to look at
"""
