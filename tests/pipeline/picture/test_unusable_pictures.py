"""Files that cannot become training pictures: each has a reason, and none does harm."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from picture_files import KINDS, QUALITY, SIZE, UNUSABLE, empty_png
from pictures import decoded
from pipeline.picture.jpeg import to_jpeg
from pipeline.picture.unusable import MOST_PIXELS, UnusablePicture


@pytest.mark.parametrize("size", [SIZE, 0])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_not_usable_has_a_reason(kind: str, size: int) -> None:
    data, reason = UNUSABLE[kind]
    with pytest.raises(UnusablePicture, match=reason) as first:
        to_jpeg(data, size, QUALITY)
    with pytest.raises(UnusablePicture) as second:
        to_jpeg(data, size, QUALITY)
    assert str(first.value) == str(second.value)


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")  # where warnings are no errors
def test_the_bound_does_not_rest_on_a_warning() -> None:
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UnusablePicture, match="more than"):
        to_jpeg(empty_png(MOST_PIXELS // 9000 + 1, 9000), SIZE, QUALITY)


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for at in random.integers(0, len(data), 3):
        damaged[at] ^= int(random.integers(1, 256))
    return bytes(damaged)


def inserted(data: bytes, random: np.random.Generator) -> bytes:
    at = int(random.integers(0, len(data)))
    return data[:at] + random.bytes(5) + data[at:]


def truncated(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(random.integers(0, len(data)))]


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on damaged metadata
@pytest.mark.parametrize("damage", [flipped, inserted, truncated])
def test_damage_is_survived_or_has_a_reason(damage: Callable[[bytes, np.random.Generator], bytes]) -> None:
    random = np.random.default_rng(0)
    for turn in range(12):
        for data, *_ in KINDS.values():
            size = (16, 0)[turn % 2]
            try:
                jpeg, pixels = to_jpeg(damage(data, random), size, QUALITY)
            except UnusablePicture as unusable:
                assert "\n" not in str(unusable) and " at 0x" not in str(unusable)
            else:
                assert pixels.shape == (size or 256, size or 256, 3)
                assert not size or decoded(jpeg).shape == (size, size, 3)
