"""The search for the fastest options, on machines whose speed is a formula."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.load.config import DataConfig
from pipeline.measure.search import MARGIN, Settings, pixel_options, search, speed_options, window_seconds
from pipeline.measure.windows import Window

OPTIONS = {"threads": [4, 1, 2, 8], "prefetch": [2, 1, 3]}
OTHERS = {"decoding": ["exact", "fast"], "output": ["uint8", "float32"]}


class Formula:
    """Measures by a formula of the settings; `noise` multiplies the rounds' speeds."""

    def __init__(self, speed, noise: Sequence[float] = (1.0,)):
        self.speed, self.noise = speed, noise
        self.asked: list[Settings] = []

    def __call__(self, candidates: Sequence[Settings], rounds: int) -> list[list[Window]]:
        self.asked += candidates
        return [[self._window(each, number) for number in range(rounds)] for each in candidates]

    def _window(self, settings: Settings, number: int) -> Window:
        images = round(1000 * self.speed(**settings) * self.noise[number % len(self.noise)])
        return Window(images=images, bytes=images, seconds=1.0, cpu_seconds=1.0, waits=np.zeros(1))


def test_it_finds_options_that_depend_on_each_other() -> None:
    """More threads help only where more batches are ahead: found in the second pass."""

    def speed(threads: int, prefetch: int, decoding: str = "exact", output: str = "uint8") -> float:
        return min(threads, 2 * prefetch)

    found = search(Formula(speed), OPTIONS, {}, batch_size=32)
    assert (found.tuned.threads, found.tuned.prefetch) == (4, 2)  # alone neither helps
    ahead = {"prefetch": [2, 1, 4], "threads": [2, 8, 1]}
    found = search(
        Formula(lambda threads, prefetch: threads + 0.4 * prefetch * (threads > 2)), ahead, {}, batch_size=32
    )
    assert (found.tuned.threads, found.tuned.prefetch) == (8, 4)
    assert found.complete and found.gain.median == found.tuned.gain == pytest.approx(9.6 / 2, abs=1e-3)
    assert found.tuned.images_per_second == 9600 and found.tuned.batch_size == 32


def test_what_is_chance_is_not_taken() -> None:
    """A lead below the margin, and one that a round contradicts."""
    found = search(Formula(lambda threads, prefetch: 1 + 0.9 * MARGIN * (threads == 8)), OPTIONS, {}, batch_size=1)
    assert (found.tuned.threads, found.tuned.prefetch, found.tuned.gain) == (4, 2, 1.0)
    assert not any(trial.taken for trial in found.trials)
    turns = iter(range(10**6))

    def unsteady(threads: int, prefetch: int) -> float:
        return 1.0 if threads == 4 or prefetch != 2 else (1.5, 1.5, 0.5)[next(turns) % 3]

    assert search(Formula(unsteady), OPTIONS, {}, batch_size=1).tuned.threads == 4


def test_what_led_and_does_not_when_it_is_measured_once_more_is_not_taken() -> None:
    measure = Formula(lambda threads, prefetch: 1.0)

    def at_first(candidates: Sequence[Settings], rounds: int) -> list[list[Window]]:
        measure.speed = lambda threads, prefetch: 1.0 + 0.1 * (threads == 8 and len(candidates) > 2)
        return measure(candidates, rounds)

    found = search(at_first, OPTIONS, {}, batch_size=1)
    assert any(trial.taken for trial in found.trials)
    assert (found.tuned.threads, found.tuned.prefetch, found.tuned.gain) == (4, 2, 1.0)


@pytest.mark.parametrize("allow_fast", [False, True])
def test_what_changes_pixels_is_reported_and_not_taken(allow_fast: bool) -> None:
    def speed(threads: int, prefetch: int, decoding: str = "exact", output: str = "uint8") -> float:
        return threads * (1.3 if decoding == "fast" else 1) * (2 if output == "float32" else 1)

    measure = Formula(speed)
    found = search(measure, OPTIONS, OTHERS, batch_size=1, allow_fast=allow_fast)
    reported = {(t.option, t.value): t.ratio.median for t in found.trials if t.changes_pixels}
    assert reported == {("decoding", "fast"): pytest.approx(1.3), ("output", "float32"): pytest.approx(2)}
    assert not any(trial.taken for trial in found.trials if trial.changes_pixels)
    assert found.tuned.decoding == ("fast" if allow_fast else "exact")
    assert found.tuned.gain == 2  # of threads alone


def test_when_the_time_is_over_it_says_so_and_has_an_answer() -> None:
    found = search(Formula(lambda threads, prefetch: 1), OPTIONS, OTHERS, batch_size=1, deadline=0.0)
    assert not found.complete and not found.trials and found.tuned.threads == 4


def test_options_that_are_given_stay() -> None:
    free = speed_options(DataConfig(), 8, "gpu", 256)
    assert free["threads"][0] == 6 and 8 in free["threads"]  # two cores are the loop's
    assert free["prefetch"][0] == 2 and free["decoder_hint"] == (None, 256)
    assert all(free[name][0] is None for name in ("hw_decoder_load", "decoder_hint", "decoder_padding"))
    assert speed_options(DataConfig(), 8, "gpu")["decoder_hint"] == (None,)  # pictures have sizes of their own
    assert speed_options(DataConfig(), 8, "cpu", 256)["threads"][0] == 8
    assert all(len(set(values)) == len(values) > 1 for values in free.values())
    assert min(speed_options(DataConfig(), 1, "cpu")["threads"]) == 1
    options = {"threads": 3, "prefetch": 5, "hw_decoder_load": 0.0, "decoder_hint": 300, "decoder_padding": 0}
    given = speed_options(DataConfig(**options), 8, "gpu", 256)
    assert {name: list(values) for name, values in given.items()} == {name: [value] for name, value in options.items()}
    assert set(speed_options(DataConfig(), 8, "cpu", 256)) == {"threads", "prefetch"}
    assert pixel_options(DataConfig(decoding="fast", output="uint8"), "cpu", "jpeg") == {}
    assert "decoding" in pixel_options(DataConfig(), "cpu", "jpeg")
    assert "decoding" not in pixel_options(DataConfig(), "cpu", "raw")  # which is decoded already
    found = search(Formula(lambda **_: 1), given, {}, batch_size=1)
    assert {name: getattr(found.tuned, name) for name in options} == options


def test_windows_fit_the_time() -> None:
    short, windows = window_seconds(OPTIONS, OTHERS, 10.0)
    long, _ = window_seconds(OPTIONS, OTHERS, 60.0)
    assert windows > 20 and short < long and short * windows < 10


def test_no_more_windows_than_said_are_measured() -> None:
    """Options that lead in both passes, and others beside them: the longest search."""
    taken = 0

    def speed(threads: int, prefetch: int, decoding: str = "exact", output: str = "uint8") -> float:
        nonlocal taken
        taken += 1
        return threads + 0.4 * prefetch * (threads > 2)

    options = {"prefetch": [2, 1, 4], "threads": [2, 8, 1]}
    found = search(Formula(speed), options, OTHERS, batch_size=1)
    assert (found.tuned.threads, found.tuned.prefetch) == (8, 4) and found.complete
    assert taken == window_seconds(options, OTHERS, 60.0)[1]
