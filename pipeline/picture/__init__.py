"""One picture file -> an upright RGB JPEG of the size asked for.

jpeg.py            any picture file -> JPEG, or the reason why it is unusable
by_pillow.py       a file that is no JPEG -> upright pixels of 8 bits
metadata.py        PNG and TIFF files without their metadata
jpeg_copies.py     copies of a JPEG with less beside its pixels, for a strict decoder
readers.py         whether DALI and Pillow find in a JPEG what libjpeg finds
scans.py           whether the scans of a JPEG are whole, in chroma layouts that TurboJPEG does not decode
segments.py        the segments of a JPEG
exif.py            EXIF orientation
raw.py             a square's pixels as an .npy file
resize.py          crop the central square and resize it, the same bits wherever the resizer is the same
unusable.py        why a file is unusable; how large a picture may be
contact_sheet.py   pictures with their class names on one PNG
"""
