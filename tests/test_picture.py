import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from pictures import encoded, photo
from pipeline.picture import UnusablePicture, to_jpeg

SIZE = 32
QUALITY = 95


def red_left(mode: str = "RGB") -> Image.Image:
    """48 x 32, red on the left half and blue on the right."""
    picture = Image.new("RGB", (48, 32), (0, 0, 250))
    picture.paste((250, 0, 0), (0, 0, 24, 32))
    return picture.convert(mode)


def rotated(orientation: int, transpose: Image.Transpose) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(red_left().transpose(transpose), quality=95, exif=exif)


def half_transparent() -> Image.Image:
    picture = red_left("RGBA")
    picture.paste((9, 9, 9, 0), (24, 0, 48, 32))
    return picture


def grey(mode: str) -> Image.Image:
    """48 x 32, mid-grey on the left half and white on the right."""
    picture = Image.new("L", (48, 32), 255)
    picture.paste(128, (0, 0, 24, 32))
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    return picture.convert(mode)


RED, BLUE, WHITE, MIDDLE = (250, 0, 0), (0, 0, 250), (255, 255, 255), (128, 128, 128)
KINDS = {
    "JPEG": (encoded(red_left(), quality=95), RED, BLUE),
    "progressive": (encoded(red_left(), quality=95, progressive=True), RED, BLUE),
    "PNG": (encoded(red_left(), "PNG"), RED, BLUE),
    "WebP": (encoded(red_left(), "WEBP", lossless=True), RED, BLUE),
    "palette": (encoded(red_left("P"), "PNG"), (255, 0, 0), (0, 0, 255)),
    "CMYK": (encoded(red_left("CMYK"), quality=95), RED, BLUE),
    "grey": (encoded(grey("L"), quality=95), MIDDLE, WHITE),
    "grey with alpha": (encoded(grey("LA"), "PNG"), MIDDLE, WHITE),
    "16 bits": (encoded(grey("I;16"), "PNG"), MIDDLE, WHITE),
    "1 bit": (encoded(grey("1"), "PNG"), None, WHITE),
    "alpha": (encoded(half_transparent(), "PNG"), RED, WHITE),
    "palette with alpha": (encoded(half_transparent().quantize(), "PNG"), RED, WHITE),
    "transparent colour": (encoded(red_left(), "PNG", transparency=BLUE), RED, WHITE),
    "EXIF 180": (rotated(3, Image.Transpose.ROTATE_180), RED, BLUE),
    "EXIF 90": (rotated(6, Image.Transpose.ROTATE_90), RED, BLUE),
    "EXIF mirrored": (rotated(2, Image.Transpose.FLIP_LEFT_RIGHT), RED, BLUE),
}


@pytest.mark.parametrize("size", [16, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_an_upright_jpeg(kind: str, size: int) -> None:
    data, left, right = KINDS[kind]
    jpeg, central = to_jpeg(data, size, QUALITY)
    with Image.open(io.BytesIO(jpeg)) as stored:
        assert stored.format == "JPEG"
        assert stored.size == ((size, size) if size else (48, 32))
        assert ExifTags.Base.Orientation not in stored.getexif()
        assert stored.mode == ("L" if kind == "grey" and size == 0 else "RGB")
        pixels = np.asarray(stored.convert("RGB")).astype(int)
    middle = pixels.shape[0] // 2
    # JPEG and the CMYK conversion are near, not exact.
    assert left is None or np.abs(pixels[middle, 1] - left).max() <= 12
    assert np.abs(pixels[middle, -2] - right).max() <= 12
    assert central.shape == ((size, size, 3) if size else (256, 256, 3))


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "grey"])
def test_size_0_keeps_the_bytes_of_an_upright_jpeg(kind: str) -> None:
    data = KINDS[kind][0]
    assert to_jpeg(data, 0, QUALITY)[0] == data


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


GOOD = encoded(photo(1, 200, 200), quality=95)


@pytest.mark.parametrize("size", [SIZE, 0])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "not a picture in any of the formats JPEG, PNG"),
        (GOOD[:20], "not a picture|OSError|SyntaxError"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (encoded(photo(1), "PNG")[:200], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
    ],
    ids=["empty", "text", "header", "half a JPEG", "half a PNG", "PostScript"],
)
def test_what_does_not_decode_has_a_reason(data: bytes, reason: str, size: int) -> None:
    with pytest.raises(UnusablePicture, match=reason) as first:
        to_jpeg(data, size, QUALITY)
    with pytest.raises(UnusablePicture) as second:
        to_jpeg(data, size, QUALITY)
    assert str(first.value) == str(second.value)


def test_a_decompression_bomb_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnusablePicture, match="DecompressionBombWarning"):
        to_jpeg(encoded(red_left(), "PNG"), SIZE, QUALITY)
