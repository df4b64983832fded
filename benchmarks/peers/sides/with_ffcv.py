"""FFCV: a .beton file, and its loader with compiled transforms in threads.

Ways: `jpeg` keeps the very bytes of the JPEG files (FFCV would encode anew), `raw` their pixels. It decodes with the
fast DCT, and has no option for the accurate one. Its decoders crop and resize; a plain crop is one of that kind which
asks for the crop's own size.
"""

# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import ffcv.fields.rgb_image
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder
from ffcv.fields.rgb_image import ResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image

from serving import Batches, Work, listed, main


class Encoded(np.ndarray):
    """Pixels that know the JPEG file they come from."""

    jpeg: np.ndarray


class Pictures:
    """Files as FFCV's writer asks for them."""

    def __init__(self, files: str):
        self.files = listed(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.files[index]
        pixels = np.array(Image.open(path).convert("RGB")).view(Encoded)
        pixels.jpeg = np.fromfile(path, np.uint8)
        return pixels, label


def random_crop(height: int, width: int, scale: Any, ratio: Any) -> tuple[int, int, int, int]:
    """Row, column, height and width of a square of `scale` pixels anywhere; compiled by FFCV."""
    return np.random.randint(0, height - scale + 1), np.random.randint(0, width - scale + 1), scale, scale


class RandomCrop(ResizedCropRGBImageDecoder):
    """A crop without resizing."""

    def __init__(self, side: int):
        super().__init__((side, side))
        self.scale, self.ratio = side, 1.0

    @property
    def get_crop_generator(self):
        """What FFCV calls for each picture."""
        return random_crop


def beton(work: Work) -> Path:
    """The file of this way."""
    return Path(work.own, f"{work.way}.beton")


def prepare(work: Work) -> None:
    """Write the .beton."""
    ffcv.fields.rgb_image.encode_jpeg = lambda pixels, quality: pixels.jpeg
    fields = {"image": RGBImageField(write_mode="jpg" if work.way == "jpeg" else "raw"), "label": IntField()}
    DatasetWriter(str(beton(work)), fields, num_workers=work.threads).from_indexed_dataset(Pictures(work.files))


def batches(work: Work) -> Batches:
    """Endless batches."""
    image: list[Any] = [RandomCrop(work.crop), RandomHorizontalFlip()]
    if work.output == "float32":
        image.append(NormalizeImage(np.array(work.mean), np.array(work.std), np.float32))
    loader = Loader(
        str(beton(work)),
        batch_size=work.batch_size,
        num_workers=work.threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        pipelines={"image": [*image, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor()]},
    )
    while True:
        yield from loader


if __name__ == "__main__":
    main(batches, prepare)
