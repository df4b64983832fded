"""The loading options that are fastest on this machine, found one after another in a limited time.

An option's values take turns with the best so far, and one is taken only if it is faster in every round, by more than
MARGIN in their median: what is less may be chance, and is not worth a thread more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import PREFETCH, DataConfig
from pipeline.load.graph import Device, decoding_threads
from pipeline.manifest import Store
from pipeline.measure.sides import Task, consumer, loader_side
from pipeline.measure.summary import Spread, ratios, spread
from pipeline.measure.tuned import Tuned
from pipeline.measure.windows import Side, Window, take_turns
from pipeline.progress import Advance

MARGIN: Final = 0.02
PASSES: Final = 2  # through all options: what is fastest of one may change with another
ROUNDS: Final = 3
FINAL_ROUNDS: Final = 5
LONGEST: Final = 2.0  # seconds of a window
SHORTEST: Final = 0.1
_PREFETCH: Final = (1, 2, 3, 4, 8)
_ENGINE_LOADS: Final = (None, 0.0, 0.12, 0.3, 0.5, 0.65, 0.8, 1.0)  # None: DALI's own choice
_PADDINGS: Final = (None, 0, 1, 4)  # MB; None: the same

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One value of an option, measured beside the best so far."""

    option: str
    value: Any
    images_per_second: Spread
    ratio: Spread  # times the best so far, in the same rounds
    taken: bool = False
    changes_pixels: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to."""

    tuned: Tuned
    gain: Spread  # times the options' defaults
    trials: tuple[Trial, ...]
    complete: bool  # whether the time was enough for all options


Measure = Callable[[Sequence[Settings], int], list[list[Window]]]


def loader_measure(task: Task, mean_bytes: float, seconds: float, advance: Advance) -> Measure:
    """Measures settings by the loader with a consumer: windows of `seconds` that take turns."""

    def measure(candidates: Sequence[Settings], rounds: int) -> list[list[Window]]:
        sides = [_side(task, mean_bytes, each) for each in candidates]
        windows = take_turns(sides, rounds, seconds, advance)
        return [windows[side.name] for side in sides]

    return measure


def _side(task: Task, mean_bytes: float, settings: Settings) -> Side:
    name = ", ".join(f"{option} {value}" for option, value in settings.items())
    mine = replace(task, data=replace(task.data, **settings))
    loader = BatchLoader(mine.data, device=mine.device)
    return loader_side(name, mine, mean_bytes, loader, consume=consumer(mine))


def search(
    measure: Measure,
    options: Mapping[str, Sequence[Any]],
    others: Mapping[str, Sequence[Any]],
    *,
    batch_size: int,
    allow_fast: bool = False,
    deadline: float = float("inf"),
) -> Found:
    """Go through the options' values, the first of which are the defaults, again as long as something is found.

    others: options that change pixels, which are measured beside the best and not taken; fast decoding is noted where
    `allow_fast` says so. deadline: of time.monotonic(), after which no other option is begun.
    """
    default = {name: values[0] for name, values in options.items()}
    best, trials, complete = _climb(measure, options, default, deadline)
    for name, values in others.items():
        if time.monotonic() > deadline:
            complete = False
            break
        trials += [replace(each, taken=False, changes_pixels=True) for each in _try_values(measure, best, name, values)]
    measured = measure([best, default] if best != default else [default], FINAL_ROUNDS)
    ours, theirs = measured[0], measured[-1]
    gain = ratios(ours, theirs)
    if not _is_lead(gain):  # what seemed faster was so by chance
        best, gain, ours = default, Spread(1.0, 1.0, 1.0), theirs
    fast = [t for t in trials if (t.option, t.value) == ("decoding", "fast") and is_faster(t)]
    tuned = Tuned(
        **best,
        decoding="fast" if fast and allow_fast else "exact",
        images_per_second=round(spread([window.images_per_second for window in ours]).median, 1),
        gain=round(gain.median, 4),
        batch_size=batch_size,
    )
    return Found(tuned=tuned, gain=gain, trials=tuple(trials), complete=complete)


def _climb(
    measure: Measure, options: Mapping[str, Sequence[Any]], default: Settings, deadline: float
) -> tuple[Settings, list[Trial], bool]:
    """The best settings that going through the options finds, what was tried, and whether there was time."""
    best, trials = default, []
    for _ in range(PASSES):
        before = best
        for name, values in options.items():
            if len(values) == 1:
                continue
            if time.monotonic() > deadline:
                return best, trials, False
            tried = _try_values(measure, best, name, values)
            trials += tried
            best = {**best, **{trial.option: trial.value for trial in tried if trial.taken}}
        if best == before:
            break
    return best, trials, True


def _try_values(measure: Measure, best: Settings, name: str, values: Sequence[Any]) -> list[Trial]:
    """A trial for each value but the best's own; the fastest is taken if it is faster enough."""
    current = best.get(name, values[0])
    tried = [value for value in values if value != current]
    reference, *measured = measure([{**best, name: current}, *({**best, name: value} for value in tried)], ROUNDS)
    trials = [
        Trial(
            option=name,
            value=value,
            images_per_second=spread([window.images_per_second for window in windows]),
            ratio=ratios(windows, reference),
        )
        for value, windows in zip(tried, measured, strict=True)
    ]
    fastest = max(trials, key=lambda trial: trial.ratio.median)
    return [replace(trial, taken=trial is fastest and is_faster(trial)) for trial in trials]


def is_faster(trial: Trial) -> bool:
    """Whether a trial's lead is more than chance."""
    return _is_lead(trial.ratio)


def _is_lead(ratio: Spread) -> bool:
    return ratio.median > 1 + MARGIN and ratio.lowest > 1


def speed_options(data: DataConfig, cores: int, decoder: Device, size: int = 0) -> dict[str, Sequence[Any]]:
    """Options that change nothing but the speed, and their values, the default first; those given stay as given.

    size: of the stored pictures, pixels a side; 0 where each has its own.
    """
    threads = {max(1, each) for each in (cores // 2, 3 * cores // 4, cores - 1, cores + 1, 3 * cores // 2, 2 * cores)}
    usual = decoding_threads(cores, decoder)
    if decoder == "gpu":
        threads.add(cores)
    options: dict[str, Sequence[Any]] = {
        "threads": [data.threads] if data.threads else [usual, *sorted(threads - {usual})],
        "prefetch": [data.prefetch] if data.prefetch else [PREFETCH, *(n for n in _PREFETCH if n != PREFETCH)],
    }
    if decoder == "gpu":
        values: dict[str, Sequence[Any]] = {
            "hw_decoder_load": _ENGINE_LOADS,
            "decoder_hint": (None, size) if size else (None,),
            "decoder_padding": _PADDINGS,
        }
        given = {name: getattr(data, name) for name in values}
        options |= {name: each if given[name] is None else [given[name]] for name, each in values.items()}
    return options


def pixel_options(data: DataConfig, device: Device, store: Store) -> dict[str, Sequence[Any]]:
    """Options that change pixels, or how they are rounded, and their values, the first as it is."""
    outputs = ("float16", "uint8", "float32") if device == "gpu" else ("uint8", "float32", "float16")
    options: dict[str, Sequence[Any]] = {}
    if data.decoding == "exact" and store == "jpeg":
        options["decoding"] = ("exact", "fast")
    if data.output == "auto":
        options["output"] = outputs
    return options


def window_seconds(
    options: Mapping[str, Sequence[Any]], others: Mapping[str, Sequence[Any]], seconds: float
) -> tuple[float, int]:
    """How long a window may be for a search of `seconds`, and how many windows there are at most."""
    again, once = (sum(len(each) for each in some.values() if len(each) > 1) for some in (options, others))
    windows = (PASSES * again + once) * ROUNDS + 2 * FINAL_ROUNDS
    return min(LONGEST, max(SHORTEST, 0.6 * seconds / windows)), windows  # the rest starts loaders and fills queues


TRIAL_HEADINGS: Final = ("option", "value", "images/s", "of the best", "range", "")


def trial_row(trial: Trial) -> tuple[str, ...]:
    """A trial as a row of a table with TRIAL_HEADINGS."""
    return (
        trial.option,
        f"{trial.value}",
        f"{trial.images_per_second.median:,.0f}",
        f"{trial.ratio.median:.3f}",
        f"{trial.ratio.lowest:.3f}..{trial.ratio.highest:.3f}",
        "taken" if trial.taken else "changes pixels: not taken" if trial.changes_pixels else "",
    )


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial as plain JSON values."""
    return {**asdict(trial), "images_per_second": trial.images_per_second._asdict(), "ratio": trial.ratio._asdict()}
