"""Whole JPEGs that libjpeg warns of, or only some readers take: they are used, and damage in them is seen."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import simplejpeg
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from jpeg_files import EOI, HARMLESS, PHOTO, PLAIN, RESTARTS, overwritten, padded, place, places, put_before, scan_start
from pictures import encoded
from pipeline.picture.jpeg import to_jpeg, verified_header
from pipeline.picture.unusable import UnusablePicture

OPTIMISED = encoded(PHOTO, quality=90, optimize=True)
PROGRESSIVE = encoded(PHOTO, quality=90, progressive=True, restart_marker_rows=1)


def decoded_by_dali(jpegs: Sequence[bytes]) -> list[np.ndarray]:
    pipe = Pipeline(batch_size=len(jpegs), num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipe:
        files = fn.external_source(source=lambda: [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        pipe.set_outputs(fn.decoders.image(files, device="cpu"))
    pipe.build()
    pictures: Any = pipe.run()[0]
    return [np.array(picture) for picture in pictures]


def refused(jpeg: bytes, size: int = 0) -> bool:
    try:
        to_jpeg(jpeg, size, 90)
    except UnusablePicture:
        return True
    return False


def refused_by_libjpeg(jpeg: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(jpeg)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_whole_jpeg_becomes_what_a_plain_one_becomes(kind: str) -> None:
    assert to_jpeg(HARMLESS[kind], 32, 90)[0] == to_jpeg(PLAIN, 32, 90)[0]


def test_what_size_0_stores_is_the_same_picture_to_every_reader() -> None:
    stored = [to_jpeg(jpeg, 0, 90)[0] for jpeg in HARMLESS.values()]
    expected = simplejpeg.decode_jpeg(PLAIN)
    for kind, jpeg, by_dali in zip(HARMLESS, stored, decoded_by_dali(stored), strict=True):
        assert verified_header(jpeg).colours == "YCbCr", kind
        with Image.open(io.BytesIO(jpeg)) as by_pillow:
            pixels = np.asarray(by_pillow)
        for each in (simplejpeg.decode_jpeg(jpeg), pixels, by_dali):
            np.testing.assert_array_equal(each, expected, kind)


def test_what_no_reader_stumbles_over_is_kept_as_it_is() -> None:
    kept = {kind for kind, jpeg in HARMLESS.items() if to_jpeg(jpeg, 0, 90)[0] == jpeg}
    assert {"fill before all segments", "APP7 of odd length", "EXIF of nothing", "comment after the scan"} <= kept
    assert not kept & {"JFIF 2.01", "two bytes before DHT", "TEM in the header", "second EXIF", "ICC too short"}


@pytest.mark.parametrize("kind", HARMLESS)
def test_an_odd_header_hides_no_damage(kind: str) -> None:
    jpeg = HARMLESS[kind]
    middle = len(jpeg) - (len(PLAIN) - scan_start(PLAIN)) // 2
    for damaged in (jpeg[:middle] + EOI, jpeg[:middle], jpeg[: -len(EOI)]):
        assert refused(damaged, 0) and refused(damaged, 32)


@pytest.mark.parametrize("jpeg", [PLAIN, OPTIMISED, RESTARTS], ids=["plain", "optimised", "restarts"])
def test_a_segment_that_is_lost_in_stray_bytes_is_missed(jpeg: bytes) -> None:
    """libjpeg would take common tables for those of an optimised picture."""
    for marker, start, end in places(jpeg):
        if marker in (0xC0, 0xC4, 0xDB, 0xDD):
            for damage in (b"\0", b"\xff\0", b"\xff\xff", b"\0" * 10, b"\0" * (end - start)):
                assert refused(overwritten(start, damage, jpeg)), (hex(marker), damage)


def test_bytes_put_into_a_huffman_table_are_damage() -> None:
    for marker, start, end in places(OPTIMISED):
        if marker == 0xC4:
            for at in range(start + 21, end, 3):
                assert refused(OPTIMISED[:at] + OPTIMISED[at - 2 : at] + OPTIMISED[at:])


def test_a_colour_transform_that_is_lost_is_missed() -> None:
    rgb = encoded(PHOTO, quality=90, keep_rgb=True)
    start, _ = place(rgb, 0xEE)
    assert not refused(rgb) and refused(overwritten(start, b"\0", rgb))


def test_a_marker_within_the_scan_is_no_metadata() -> None:
    start = scan_start(PLAIN) + 200
    for marker in (b"\xff\x01", b"\xff\xfe\0\2", b"\xff\xe5\0\2", b"\xff\xd3"):
        assert refused(PLAIN[:start] + marker + PLAIN[start:])


@pytest.mark.parametrize("zeros", [1, 2, 10])
def test_zeros_that_align_restart_markers_are_no_damage(zeros: int) -> None:
    jpeg = padded(RESTARTS, zeros)
    expected = simplejpeg.decode_jpeg(RESTARTS)
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(to_jpeg(jpeg, 0, 90)[0]), expected)
    assert to_jpeg(jpeg, 32, 90)[0] == to_jpeg(RESTARTS, 32, 90)[0]
    assert to_jpeg(put_before(0xC4, bytes(2), jpeg), 32, 90)[0] == to_jpeg(RESTARTS, 32, 90)[0]


@pytest.mark.parametrize("jpeg", [RESTARTS, PROGRESSIVE], ids=["sequential", "progressive"])
def test_zeros_in_the_place_of_a_scan_are_the_damage_that_they_are_to_libjpeg(jpeg: bytes) -> None:
    restarts = [at for at in range(scan_start(jpeg), len(jpeg)) if jpeg[at] == 0xFF and 0xD0 <= jpeg[at + 1] <= 0xD7]
    places = [(at - count, count) for at in restarts for count in (20, 60) if at - count > restarts[0]]
    damaged = [overwritten(start, bytes(count), jpeg) for start, count in places]
    found = [refused(each) for each in damaged]
    assert found == [refused_by_libjpeg(each) for each in damaged] and any(found)
