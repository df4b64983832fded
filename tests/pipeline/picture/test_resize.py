import numpy as np
import pytest
from PIL import Image

from pictures import photo
from pipeline.picture import resize
from pipeline.picture.resize import central_square, resizer_version

CASES = [(300, 200, 64), (200, 300, 64), (97, 64, 64), (48, 33, 100), (1, 5, 8), (401, 400, 200)]


@pytest.mark.parametrize(("width", "height", "size"), CASES)
def test_it_is_pillows_bicubic_of_the_central_square(width: int, height: int, size: int) -> None:
    picture = photo(1, width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    plain = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    made = central_square(np.asarray(picture), size)
    # 16-bit coefficients against 22-bit ones, rounded after either of two passes
    assert np.abs(made - np.asarray(plain).astype(int)).max() <= 2


@pytest.mark.parametrize(("width", "height", "size"), CASES)
def test_views_of_any_order_give_the_same(width: int, height: int, size: int) -> None:
    pixels = np.asarray(photo(1, width, height))
    mirrored = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]  # the same values, backwards in memory
    np.testing.assert_array_equal(central_square(mirrored, size), central_square(pixels, size))


@pytest.mark.skipif(resize.cykooz is None, reason="there is no cykooz-resizer for this machine")
def test_every_instruction_set_gives_the_same_bits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (211, 211, 3), np.uint8)
    for size in (50, 128, 300):
        assert instruction_sets_agree(noise, size)


def instruction_sets_agree(pixels: np.ndarray, size: int) -> bool:
    """Whether the machine's fastest code and plain code give what central_square gave."""
    fast = resize.cykooz
    assert fast is not None
    source = fast.ImageData(pixels.shape[1], pixels.shape[0], fast.PixelType.U8x3, pixels.tobytes())
    target = fast.ImageData(size, size, fast.PixelType.U8x3)
    plain = fast.Resizer()
    plain.cpu_extensions = fast.CpuExtensions.none
    plain.resize(source, target, fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.catmull_rom)))
    return target.get_buffer() == central_square(pixels, size).tobytes()


def test_without_the_fast_resizer_pillow_does_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.asarray(photo(1, 300, 200))
    fast, name = central_square(pixels, 64), resizer_version()
    monkeypatch.setattr(resize, "cykooz", None)
    assert np.abs(central_square(pixels, 64) - fast.astype(int)).max() <= 2
    assert resizer_version() != name and "Pillow" in resizer_version()
