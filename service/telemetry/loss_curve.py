"""The training loss of a whole run, in few enough points for the status page to draw."""

from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_POINTS: Final = 1000  # points


class Point(NamedTuple):
    """The mean loss of some steps, at the step and epoch of the last of them."""

    step: int
    epoch: float
    loss: float


class LossCurve:
    """Averages equally many steps into each point; when there are too many points, merges them in pairs."""

    def __init__(self, most: int = MAX_POINTS):
        self._most, self._steps_per_point = most, 1
        self._points: list[Point] = []
        self._pending: list[Point] = []

    @classmethod
    def resumed(cls, points: Sequence[Point], most: int = MAX_POINTS) -> "LossCurve":
        """A curve that continues from `points`; how many steps each stands for is the mean distance between them."""
        curve = cls(most)
        curve._points = list(points)
        if len(points) > 1:
            curve._steps_per_point = max(1, round((points[-1].step - points[0].step) / (len(points) - 1)))
        return curve

    def add(self, step: int, epoch: float, loss: float) -> None:
        """Add a step."""
        self._pending.append(Point(step, epoch, loss))
        if len(self._pending) < self._steps_per_point:
            return
        self._points.append(_mean(self._pending))
        self._pending = []
        if len(self._points) >= self._most:
            self._points = [_mean(self._points[i : i + 2]) for i in range(0, len(self._points), 2)]
            self._steps_per_point *= 2

    def columns(self) -> dict[str, list[float]]:
        """Steps, epochs and losses, as lists of equal length."""
        points = list(self._points)
        return {name: [getattr(point, name) for point in points] for name in Point._fields}


def _mean(points: list[Point]) -> Point:
    return points[-1]._replace(loss=sum(point.loss for point in points) / len(points))
