"""What only a GPU can show, in one call and about twenty minutes: is it right there, and how fast is it?

    python tests/gpu/run.py [--device auto|cpu|cuda] [--shards DIR] [--only WORD ...] [--out DIR] [--minutes 20]

Trials run one after another, the most valuable first, each in a process of its own with a time limit: a broken decoder
ends its process, and a failure stops no other trial. OUT/results.json and OUT/results.md are written after each, and
OUT/NAME.log has what it said. Exit status 1 if one failed; what is skipped, and what --minutes had no room for, is
listed. On a CPU small shapes stand in, and trials that need CUDA are skipped.
"""

import signal
import sys

from trial_runner import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, which ends the trial's processes too
    sys.exit(main(sys.argv[1:], __doc__))
