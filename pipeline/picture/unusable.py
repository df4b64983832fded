"""Why a file cannot become a training picture, and how large one may be."""

from typing import Final

STATISTICS_SIZE: Final = 256  # pixels a side of the central crop that is measured where pictures keep their own size
MOST_PIXELS: Final = 89_478_485  # what Pillow warns of; a third of a gigabyte in its memory
TOO_LARGE: Final = f"more than {MOST_PIXELS:,} pixels"


class UnusablePicture(Exception):
    """A file that cannot become a training picture; the message is the reason, one line, the same on every run."""


def require_size(width: int, height: int) -> None:
    """UnusablePicture where a picture has too many pixels, or is too long for its width."""
    shorter, longer = sorted((width, height))
    if shorter * longer > MOST_PIXELS:
        raise UnusablePicture(TOO_LARGE)
    # A loader that scales the shorter side to STATISTICS_SIZE must not get more pixels than that either.
    if longer * STATISTICS_SIZE**2 > MOST_PIXELS * shorter:
        raise UnusablePicture(f"{width} x {height} pixels are too long for their width")
