"""A few of the pictures that the network is being trained on, for the status page."""

import base64
import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.load.batch_loader import Batch
from pipeline.manifest import PictureClass

PICTURES: Final = 16
QUALITY: Final = 85  # of JPEG


class PreviewPictures(NamedTuple):
    """Pictures of a step as the network got them, before the mean picture is subtracted."""

    step: int
    pictures: NDArray[np.uint8]  # (n, crop, crop, 3)
    labels: list[int]


class Preview:
    """The latest copied pictures; the training loop copies new ones only after a client has fetched these."""

    def __init__(self) -> None:
        self.requested = True
        self.latest: PreviewPictures | None = None

    def capture(self, step: int, batch: Batch) -> None:
        """Keep the first pictures of a batch; waits for the device."""
        pixels = drawable(batch.pictures[:PICTURES], batch.offset[:PICTURES])
        self.latest, self.requested = PreviewPictures(step, pixels, batch.labels[:PICTURES].tolist()), False


def drawable(pictures: torch.Tensor, offset: torch.Tensor) -> NDArray[np.uint8]:
    """A batch's pictures (n, crop, crop, 3) and offsets (n, 3) as pixels on the host; NaN is black."""
    shifted = pictures.float() + offset[:, None, None]
    return shifted.nan_to_num(0).round().clamp(0, 255).to("cpu", torch.uint8).numpy()


def preview_json(preview: PreviewPictures, classes: Sequence[PictureClass]) -> dict[str, Any]:
    """The pictures as JPEG files in base64, with their classes' ids and words."""
    pictures = [
        {"label": classes[label].words or classes[label].id, "class": classes[label].id, "jpeg": jpeg_base64(picture)}
        for picture, label in zip(preview.pictures, preview.labels, strict=True)
    ]
    return {"step": preview.step, "pictures": pictures}


def jpeg_base64(picture: NDArray[np.uint8]) -> str:
    """A picture as a JPEG file in base64."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY)
    return base64.b64encode(stream.getvalue()).decode()
