"""Console output of a run: a progress bar on a terminal, a line about every ten seconds anywhere else."""

import time
from collections import deque
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.progress import console

WINDOW_SECONDS: Final = 10.0


class Throughput:
    """Pictures a second and the share of time spent waiting for data, over about the last ten seconds."""

    def __init__(self) -> None:
        # (end, pictures and nanoseconds waited since the first step): whole numbers, whose differences are exact.
        self._steps: deque[tuple[float, int, int]] = deque()

    def add(self, end: float, pictures: int, waited: float) -> None:
        """Add a step that ended at `end` (monotonic seconds)."""
        _, pictures_before, waited_before = self._steps[-1] if self._steps else (end, 0, 0)
        self._steps.append((end, pictures_before + pictures, waited_before + round(waited * 1e9)))
        while len(self._steps) > 2 and end - self._steps[0][0] > WINDOW_SECONDS:
            self._steps.popleft()

    def rates(self) -> tuple[float, float]:
        """(pictures a second, share waited 0..1); zeros before the second step."""
        if not self._steps:
            return 0.0, 0.0
        (start, pictures_before, waited_before), (end, pictures, waited) = self._steps[0], self._steps[-1]
        seconds = end - start
        if seconds <= 0:
            return 0.0, 0.0
        return (pictures - pictures_before) / seconds, (waited - waited_before) / 1e9 / seconds


class ProgressDisplay:
    """Steps done of all, images/s, loss, data-wait share and time left."""

    def __init__(self, done: int, total: int, quiet: bool = False):
        """quiet: show nothing; another process shows the same run."""
        self.console = console(stderr=True, highlight=False, quiet=quiet)
        self._total, self._said = total, time.monotonic()
        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self._bar = Progress(*columns, console=self.console) if self.console.is_terminal and not quiet else None
        if self._bar:
            self._task = self._bar.add_task("starting", total=total, completed=done)
            self._bar.start()

    def say(self, message: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        self.console.print(message, markup=False, soft_wrap=True)

    def show_waiting(self, what: str) -> None:
        """Show that something slow comes next: on the bar until the next update, elsewhere as a line."""
        if self._bar:
            self._bar.update(self._task, description=what)
        else:
            self.say(what)

    def update(self, step: int, loss: float, pictures_per_second: float, wait_share: float, batch_size: int) -> None:
        """Show the run's progress."""
        left = (self._total - step) * batch_size / pictures_per_second if pictures_per_second else float("nan")
        text = (
            f"{pictures_per_second:,.0f} images/s, loss {loss:.4f}, data wait {wait_share:.0%}, {_duration(left)} left"
        )
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._said >= WINDOW_SECONDS:
            self._said = time.monotonic()
            self.say(f"step {step} of {self._total}: {text}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()


def _duration(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
