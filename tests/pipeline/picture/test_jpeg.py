import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from PIL import ExifTags, Image

from picture_files import KINDS, QUALITY, RED, SIZE, STORED_AS, red_left
from pictures import decoded, encoded, photo
from pipeline.picture.jpeg import encoder_version, to_jpeg
from pipeline.picture.resize import resizer_version


@pytest.mark.filterwarnings("ignore:.*TIFF|.*EXIF")  # what Pillow thinks of metadata that size 0 keeps
@pytest.mark.parametrize("size", [16, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_an_upright_jpeg(kind: str, size: int) -> None:
    data, left, right = KINDS[kind]
    jpeg, central = to_jpeg(data, size, QUALITY)
    with Image.open(io.BytesIO(jpeg)) as stored:
        assert stored.format == ("MPO" if kind == "multi-picture" and size == 0 else "JPEG")
        assert stored.size == ((size, size) if size else (48, 32))
        assert ExifTags.Base.Orientation not in stored.getexif()
        assert stored.mode == ("L" if kind == "grey" and size == 0 else "RGB")
        pixels = np.asarray(stored.convert("RGB")).astype(int)
    middle = pixels.shape[0] // 2
    # JPEG and the CMYK conversion are near, not exact.
    assert left is None or np.abs(pixels[middle, 1] - left).max() <= 12
    assert np.abs(pixels[middle, -2] - right).max() <= 12
    assert central.shape == ((size, size, 3) if size else (256, 256, 3))


KEPT = ["JPEG", "progressive", "grey", "multi-picture", "bytes after the end", "large profile", "large odd EXIF"]


@pytest.mark.parametrize("kind", [*KEPT, "RGB inside"])
def test_size_0_keeps_the_bytes_of_an_upright_jpeg(kind: str) -> None:
    data = KINDS[kind][0]
    assert to_jpeg(data, 0, QUALITY)[0] == data


def test_dali_decodes_what_size_0_keeps() -> None:
    pipe = Pipeline(batch_size=len(KEPT), num_threads=1, device_id=None)
    with pipe:
        jpegs = fn.external_source(source=lambda: [np.frombuffer(KINDS[kind][0], np.uint8) for kind in KEPT])
        pipe.set_outputs(fn.decoders.image(jpegs, device="cpu"))
    pipe.build()
    (pictures,) = pipe.run()
    for picture in pictures:
        pixels = np.array(picture)
        assert pixels.shape == (32, 48, 3)
        assert np.abs(pixels[16, 1].astype(int) - pixels[16, -2]).max() > 100  # two halves


def test_all_turned_pictures_are_one() -> None:
    picture = photo(3, 48, 32)  # no two of its eight positions look alike
    upright = to_jpeg(encoded(picture, "PNG"), 16, QUALITY)[1].astype(int)
    for value, transpose in STORED_AS.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = value
        turned = to_jpeg(encoded(picture.transpose(transpose), quality=100, subsampling=0, exif=exif), 16, QUALITY)[1]
        assert np.abs(turned - upright).mean() < 3  # one more JPEG


@pytest.mark.parametrize("size", [SIZE, 0])
def test_the_pixels_are_what_a_decoder_sees(size: int) -> None:
    jpeg, pixels = to_jpeg(encoded(photo(2, 300, 256), quality=90), size, QUALITY)
    seen = decoded(jpeg)
    left = (seen.shape[1] - pixels.shape[1]) // 2
    np.testing.assert_array_equal(pixels, seen[:, left : left + pixels.shape[1]])


def test_threads_make_the_same_bytes() -> None:
    pictures = [encoded(photo(seed, 300, 200), quality=90) for seed in range(8)] * 8
    alone = [to_jpeg(data, SIZE, QUALITY)[0] for data in pictures]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda data: to_jpeg(data, SIZE, QUALITY)[0], pictures)) == alone


def test_the_encoder_names_all_that_decides_the_bytes() -> None:
    assert all(name in encoder_version() for name in ("simplejpeg 1.", resizer_version(), "Pillow "))


@pytest.mark.parametrize("size", [SIZE, 0])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_one_pixel_becomes_a_flat_square(format: str, size: int) -> None:
    _, pixels = to_jpeg(encoded(Image.new("RGB", (1, 1), RED), format, quality=100), size, 100)
    assert pixels.shape == (size or 256, size or 256, 3)
    assert (pixels == pixels[0, 0]).all() and np.abs(pixels[0, 0].astype(int) - RED).max() <= 5


def test_the_square_is_the_centre_of_the_shorter_side() -> None:
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (100, 0, 200, 100))
    for picture in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        _, pixels = to_jpeg(encoded(picture, quality=100), 50, 100)
        # A border pixel mixes in what lies beside the square, as it does where the whole picture is resized first.
        assert pixels[2:-2, 2:-2].min() >= 250
        assert pixels.min() >= 200


def test_a_large_jpeg_scaled_by_its_dct_is_close_to_a_plain_resize() -> None:
    large = photo(5, 1600, 1200)
    plain = np.asarray(large.crop((200, 0, 1400, 1200)).resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    _, pixels = to_jpeg(encoded(large, quality=95), 64, 95)
    assert np.abs(pixels - plain).mean() < 2


def test_the_bytes_do_not_depend_on_comments_or_metadata() -> None:
    plain = encoded(red_left(), quality=95)
    marked = encoded(red_left(), quality=95, comment=b"hello", dpi=(300, 300))
    assert marked != plain
    assert to_jpeg(marked, SIZE, QUALITY)[0] == to_jpeg(plain, SIZE, QUALITY)[0]
