"""The training loss of a whole run in so few points that a page can draw them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_POINTS: Final = 1000  # points


class Point(NamedTuple):
    """The mean of some steps, and the last of them."""

    step: int
    epoch: float
    loss: float


class LossCurve:
    """Adds up equally many steps to a point; when there are too many points, neighbours become one."""

    def __init__(self, most: int = MAX_POINTS):
        self._most, self._each = most, 1
        self._points: list[Point] = []
        self._pending: list[Point] = []

    @classmethod
    def resumed(cls, points: Sequence[Point], most: int = MAX_POINTS) -> "LossCurve":
        """A curve that goes on from points, each of which stands for as many steps as lie between them."""
        curve = cls(most)
        curve._points = list(points)
        if len(points) > 1:
            curve._each = max(1, round((points[-1].step - points[0].step) / (len(points) - 1)))
        return curve

    def add(self, step: int, epoch: float, loss: float) -> None:
        """Another step."""
        self._pending.append(Point(step, epoch, loss))
        if len(self._pending) < self._each:
            return
        self._points.append(_mean(self._pending))
        self._pending = []
        if len(self._points) >= self._most:
            self._points = [_mean(self._points[i : i + 2]) for i in range(0, len(self._points), 2)]
            self._each *= 2

    def columns(self) -> dict[str, list[float]]:
        """Steps, epochs and losses, as long as each other."""
        points = list(self._points)
        return {name: [getattr(point, name) for point in points] for name in Point._fields}


def _mean(points: list[Point]) -> Point:
    return points[-1]._replace(loss=sum(point.loss for point in points) / len(points))
