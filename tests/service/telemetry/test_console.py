"""What a person sees of a run."""

import numpy as np
import pytest

from service.telemetry.console import WINDOW_SECONDS, Throughput


def test_speed_is_pictures_and_waiting_over_the_window() -> None:
    speed = Throughput()
    assert speed.rates() == (0.0, 0.0)
    for second in range(40):
        speed.add(float(second), 100 if second < 20 else 200, 0.25)
        if second == 5:
            assert speed.rates() == (100.0, 0.25)
    assert speed.rates() == (200.0, 0.25)  # the last ten seconds alone


@pytest.mark.parametrize("steps_per_second", [0.05, 3, 800])
def test_speed_is_the_sum_over_the_window_exactly(steps_per_second: float) -> None:
    """Whatever came before: against sums made anew at each step, of steps that last and wait by chance."""
    draw = np.random.default_rng(1)
    count = 2000
    ends = np.cumsum(draw.uniform(0.1, 2.0, count) / steps_per_second).tolist()
    pictures = draw.integers(0, 2**40, count).tolist()  # so large that sums of floats would round
    waited = draw.integers(0, 10**9, count).tolist()  # nanoseconds
    speed, first = Throughput(), 0
    for last, end in enumerate(ends):
        speed.add(end, pictures[last], waited[last] / 1e9)
        while last - first > 1 and end - ends[first] > WINDOW_SECONDS:
            first += 1
        if last and (last < 5 or last % 97 == 0):
            seconds = end - ends[first]
            counted = slice(first + 1, last + 1)  # the first only marks the start of the time
            assert speed.rates() == (sum(pictures[counted]) / seconds, sum(waited[counted]) / 1e9 / seconds)
