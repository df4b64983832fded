"""One picture file -> an upright RGB JPEG of the size asked for.

jpeg.py            any picture file -> JPEG, or the reason why it is unusable
resize.py          crop the central square and resize it, the same bits wherever the resizer is the same
exif.py            EXIF orientation
contact_sheet.py   pictures with their class names on one PNG
"""
