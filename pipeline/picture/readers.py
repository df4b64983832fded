"""Whether the readers that may meet a JPEG find in it what libjpeg finds.

libjpeg passes over much that ends DALI's reader, or Pillow's, and they turn pictures by what others do not heed.
"""

from typing import Final

from pipeline.picture.by_pillow import opens
from pipeline.picture.exif import is_exif, may_turn
from pipeline.picture.segments import APP0, APP2, APP14, BARE, Segment, header, stray_bytes

# What Pillow counts on in a segment that begins so: with fewer bytes it takes the file for no picture.
_LEAST: Final = {APP0: (b"JFIF", 14), APP2: (b"ICC_PROFILE\0", 14), APP14: (b"Adobe", 12)}


def read_alike(jpeg: bytes) -> bool:
    """Whether all readers take a JPEG, and for upright; where they do not it may be for its metadata."""
    head = header(jpeg)
    exifs = [jpeg[each.body] for each in head if is_exif(jpeg, each)]
    plain = all(_is_plain(jpeg, each) for each in head) and not any(map(may_turn, exifs))
    return plain and (not exifs or opens(jpeg))  # Pillow looks into an EXIF for the resolution, and may stumble


def _is_plain(jpeg: bytes, each: Segment) -> bool:
    """Whether a segment is as long as it says and has what belongs to it, with nothing before it but fill."""
    begins, least = _LEAST.get(each.marker, (b"", 0))
    return (
        each.marker not in BARE
        and int.from_bytes(jpeg[each.start + 2 : each.start + 4], "big") == each.end - each.start - 2
        and not stray_bytes(jpeg, each)
        and (each.end - each.body.start >= least or not jpeg.startswith(begins, each.body.start))
    )
