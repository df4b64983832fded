"""Where things are that tests look at."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]  # of the repository
DOCKER: Final = ROOT / "docker"
REAL_PICTURES: Final = (
    ROOT.parent / "shared/data/imagenet-sample.tar"
)  # 200 of ImageNet; tests of it are skipped elsewhere
