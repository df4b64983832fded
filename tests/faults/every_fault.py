"""COMMAND make faults: crash states, hostile files, load, rounds of faults and a soak; tables, and a status.

Status 1 when anything was lost, or a broken writer was not caught. ROUNDS says how much of it: 200 is all, in under an
hour on two cores; 20 a tenth of it. SEED is of everything that is drawn.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

from crashes import WRITERS, explore
from fuzz import TARGETS, fuzz
from load import REQUESTS, load
from rounds import CORES, ROUNDS, Round, rounds
from service.results.table import markdown
from soak import MINUTES, Soak, draw, soak

RANDOMLY: Final = 40  # states by chance after each call: of all that there are, beside the systematic ones
CRASHES: Final = 30  # of each writer's states, that are recovered from and crash again
MUTATED: Final = 20_000  # files of each kind that are read


class Report(NamedTuple):
    """A part's table, and what it lost."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    lost: list[str]


def crash_states(share: float, seed: int) -> Report:
    """Every state that a crash may leave of each writer, and the broken writers."""
    rows, lost = [], []
    for name, writer in WRITERS.items():
        start = time.monotonic()
        found = explore(name, seed=seed, randomly=int(share * RANDOMLY), crashes=max(1, int(share * CRASHES)))
        lost += [f"{name}, {fault}" for fault in found.faults]
        broken = list(writer.broken)
        caught = [each for each in broken if explore(name, each, enough=1).faults]
        lost += [f"{name}: {each} was not caught" for each in broken if each not in caught]
        first, second = found.tried - found.second, found.second
        survived = found.tried - len(found.faults)
        took = f"{time.monotonic() - start:.0f}"
        states = (f"{found.calls}", f"{first:,}", f"{second:,} of {found.crashes}", f"{survived:,}")
        rows.append((name, *states, f"{len(caught)} of {len(broken)}", took))
    columns = ("writer", "calls", "crash states", "after a second crash", "survived", "broken writers caught", "s")
    return Report("Crash states", columns, rows, lost)


def hostile_files(share: float, seed: int) -> Report:
    """What mutations of files from elsewhere did to their readers."""
    rows, lost = [], []
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:  # each bounds its own memory
        mutate = partial(fuzz, executions=max(1, int(share * MUTATED)), seed=seed)
        for target, found in zip(TARGETS, pool.map(mutate, TARGETS), strict=True):
            lost += found.findings
            counts = (found.executions, found.refused, found.read, len(found.findings))
            rows.append((target, *(f"{count:,}" for count in counts)))
    columns = ("what is read", "executions", "refused in one line", "read", "findings")
    return Report("Hostile files", columns, rows, lost)


def server_load(share: float) -> Report:
    """The HTTP server under load."""
    with tempfile.TemporaryDirectory() as folder:
        found = load(Path(folder), int(share * REQUESTS))
    rows = [
        ("requests answered", f"{found.requests:,} in {found.seconds + found.guessing_seconds:.0f} s"),
        ("tokens guessed", f"{found.guesses:,} in {found.guessing_seconds:.0f} s"),
        ("of these compared with the tokens", f"{found.admitted:,}"),
        ("connections dropped meanwhile", f"{found.dropped:,}"),
    ]
    memory = found.memory.items()
    rows += [
        (f"memory of the {name}", f"{warm / 2**20:.1f}, then {end / 2**20:.1f} MiB") for name, (warm, end) in memory
    ]
    return Report("Load", ("what", "how much"), rows, [f"load: {fault}" for fault in found.faults])


def disturbed(played: Iterator[Round]) -> Report:
    """Rounds by kind."""
    kinds: dict[str, list[Round]] = defaultdict(list)
    lost = []
    for each in played:
        kinds[each.kind].append(each)
        if each.fault:
            lost.append(f"round {each.number}, {each.kind}: {each.fault}")
    rows = []
    for kind, found in kinds.items():
        equal = sum(not each.fault and not each.named for each in found)
        named, starts = sum(each.named and not each.fault for each in found), sum(each.starts for each in found)
        rows.append((kind, f"{len(found)}", f"{starts}", f"{equal}", f"{named}", f"{len(found) - equal - named}"))
    columns = ("fault", "rounds", "starts", "same numbers", "damaged pictures named", "lost")
    return Report("Rounds", columns, rows, lost)


def soaked(found: Soak) -> Report:
    """The soak in words."""
    rows = [
        ("minutes", f"{found.seconds / 60:.1f}"),
        ("steps", f"{found.steps:,}"),
        ("faults", f"{sum(found.rounds.values())}"),
        *((f"of these: {kind}", f"{count}") for kind, count in sorted(found.rounds.items())),
        ("starts", f"{found.starts}"),
        ("steps trained again after a crash", f"{found.repeated:,}"),
        ("alerts that fired", ", ".join(sorted({name for _, name in found.alerts})) or "none, or no Prometheus"),
    ]
    return Report("Soak", ("what", "how much"), rows, [f"soak: {fault}" for fault in found.faults])


def say(report: Report) -> list[str]:
    """Print a part's table; what it lost."""
    print(f"\n## {report.title}\n\n{markdown(report.columns, report.rows, 1)}", flush=True)
    for fault in report.lost:
        print(f"LOST: {fault}", flush=True)
    return report.lost


def main() -> int:
    """Try it all, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python tests/faults/every_fault.py", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of faults; the other parts in proportion")
    parser.add_argument("--plot", type=Path, default=Path("soak.png"), help="picture of the soak")
    options = parser.parse_args()
    share = options.rounds / ROUNDS
    lost = say(crash_states(share, options.seed)) + say(hostile_files(share, options.seed)) + say(server_load(share))
    with ThreadPoolExecutor(CORES) as cores:
        soaking = cores.submit(soak, max(1.0, share * MINUTES), options.seed)  # one core's, as long as it lasts
        lost += say(disturbed(rounds(options.rounds, options.seed, cores=cores)))
        found = soaking.result()
    lost += say(soaked(found))
    draw(found, options.plot)
    print(f"\n{'nothing was lost' if not lost else f'{len(lost)} lost'}; look at {options.plot}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
