"""COMMAND make faults: every crash state of every writer, and the broken writers; a table, and a status.

Status 1 when anything was lost, or a broken writer was not caught.
"""

import argparse
import sys
import time

from crashes import WRITERS, explore
from service.results.table import markdown

RANDOMLY = 40  # states by chance after each call: of all that there are, beside the systematic ones


def main() -> int:
    """Try them all, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python tests/faults/run.py", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the states by chance")
    parser.add_argument("--randomly", type=int, default=RANDOMLY, help="states by chance after each call")
    options = parser.parse_args()
    rows, lost = [], []
    for writer, broken in WRITERS.items():
        start = time.monotonic()
        found = explore(writer, seed=options.seed, randomly=options.randomly)
        lost += [f"{writer}, {fault}" for fault in found.faults]
        caught = [each for each in broken if explore(writer, each, enough=1).faults]
        lost += [f"{writer}: {each} was not caught" for each in broken if each not in caught]
        took = f"{time.monotonic() - start:.0f}"
        survived = f"{found.tried - len(found.faults):,}"
        rows.append((writer, f"{found.calls}", f"{found.tried:,}", survived, f"{len(caught)} of {len(broken)}", took))
    print(markdown(("writer", "calls", "crash states", "survived", "broken writers caught", "s"), rows, 1))
    for fault in lost:
        print(f"LOST: {fault}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
