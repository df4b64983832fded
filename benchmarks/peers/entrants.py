"""Who takes part: each side's script, environment and input."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from environments import made
from pipeline.command import InputError
from sides.serving import Work

SIDES: Final = Path(__file__).parent / "sides"
OURS: Final = "ours"
OURS_RAW: Final = "ours, RAW"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A side by its script, its environment (none: this one's) and its way."""

    script: str
    way: str = "jpeg"
    environment: str = ""
    raw: bool = False  # it reads pixels instead of JPEG
    bound: bool = False  # it decodes and does nothing else
    prepares: bool = False  # its script makes an input of its own


ENTRANTS: Final = {
    OURS: Entrant(script="ours"),
    "ours, fast": Entrant(script="ours", way="fast"),
    OURS_RAW: Entrant(script="ours", way="raw", raw=True),
    "libjpeg-turbo alone": Entrant(script="libjpeg_turbo", way="exact", bound=True),
    "libjpeg-turbo alone, fast": Entrant(script="libjpeg_turbo", way="fast", bound=True),
    "DALI": Entrant(script="dali", environment="dali", way="whole"),
    "DALI, image_crop": Entrant(script="dali", environment="dali", way="crop"),
    "FFCV": Entrant(script="ffcv", environment="ffcv", prepares=True),
    "FFCV, RAW": Entrant(script="ffcv", environment="ffcv", way="raw", raw=True, prepares=True),
    "SPDL": Entrant(script="spdl", environment="spdl"),
    "torchvision, decode_image": Entrant(script="torchvision", environment="torchvision", way="decode_image"),
    "torchvision, PIL": Entrant(script="torchvision", environment="torchvision", way="pil"),
    "webdataset": Entrant(script="webdataset", environment="webdataset"),
    "Streaming": Entrant(script="streaming", environment="streaming", prepares=True),
    "LitData": Entrant(script="litdata", environment="litdata", prepares=True),
}


def prepared(entrant: Entrant, work: Work, environments: Path) -> list[str]:
    """The command that serves a side, whose environment and own input are made first where they are not there."""
    python = str(made(entrant.environment, environments) if entrant.environment else sys.executable)
    command = [python, str(SIDES / f"with_{entrant.script}.py")]
    finished = Path(work.own) / f"{work.way}.made"
    if entrant.prepares and not finished.exists():
        Path(work.own).mkdir(parents=True, exist_ok=True)
        if subprocess.run([*command, "prepare", text_of(work)], stdout=subprocess.DEVNULL).returncode:
            raise InputError(f"{entrant.script} could not make its input, expected it to; see its words above")
        finished.touch()
    return [*command, "serve", text_of(work)]


def work_for(entrant: Entrant, work: Work, inputs: Path) -> Work:
    """The work with this side's way, and its own folder below `inputs`."""
    return replace(work, way=entrant.way, own=str(inputs / "own" / entrant.script))


def text_of(work: Work) -> str:
    """As a side's script reads it."""
    return json.dumps(asdict(work))
