"""Where things are that tests look at."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]  # of the repository
DOCKER: Final = ROOT / "docker"
# 200 pictures of ImageNet; tests of them are skipped where they are not.
REAL_PICTURES: Final = ROOT.parent / "shared/data/imagenet-sample.tar"
CIFAR_10: Final = ROOT.parent / "shared/data/cifar10.tar.xz"  # 60,000 JPEG files, by split and class
