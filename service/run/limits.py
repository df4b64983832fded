"""Bounds that the worker and its HTTP server share."""

from typing import Final

HIGHEST_RATE: Final = 100.0  # learning rate: beyond any use, and far from overflow
