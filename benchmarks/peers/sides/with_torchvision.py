"""torchvision: a map-style data set, transforms v2 a picture at a time, and torch's DataLoader with worker processes.

Ways: `pil` opens with Pillow, `decode_image` with torchvision's own decoder.
"""

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from serving import Batches, Work, listed, main, permutations


class Pictures(Dataset):
    """Files, decoded and transformed."""

    def __init__(self, work: Work):
        self.files, self.pil, self.transform = listed(work.files), work.way == "pil", transform(work)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[index]
        if self.pil:
            return self.transform(Image.open(path).convert("RGB")), label
        return self.transform(decode_image(read_file(path), ImageReadMode.RGB)), label


class Endless(Sampler[int]):
    """Epoch after epoch without a pause between, which is kinder than one DataLoader an epoch."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self):
        return permutations(self.count)


def transform(work: Work) -> v2.Transform:
    """A picture, or a tensor of one, to what a batch is made of."""
    steps: list[v2.Transform] = [v2.RandomCrop(work.crop), v2.RandomHorizontalFlip(), v2.ToImage()]
    if work.output == "float32":
        mean, std = ([value / 255 for value in values] for values in (work.mean, work.std))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([*steps, v2.ToPureTensor()])


def batches(work: Work) -> Batches:
    """Endless batches."""
    pictures = Pictures(work)
    sampler = Endless(len(pictures))
    return iter(DataLoader(pictures, batch_size=work.batch_size, sampler=sampler, num_workers=work.threads))


if __name__ == "__main__":
    main(batches)
