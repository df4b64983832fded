"""COMMAND python -m service.predict: what a trained network sees in pictures: words, JSON, figure 4's panels."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.views import Views
from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, output_of, printable, run_command, say
from pipeline.files import check_outputs, write_output
from pipeline.manifest import PictureClass
from pipeline.progress import Advance, console, no_progress, progress
from service.network.pictures import STANDARD_INPUT, class_of, file_name, listed_files, usable_pictures
from service.network.read import load
from service.network.trained import Likely, Predicted, TrainedNetwork

BAR_WIDTH: Final = 24  # letters
MOST_PANELS: Final = 40


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Print the five likeliest classes of each picture, with their probabilities.

    Pictures are prepared as the training pictures were. One that lies in a folder called as a class, as in data sets,
    is taken for one of that class, which is then shown. Any picture file will do; one that is none is a line on stderr,
    the others go on, and the exit status is 1.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run (its newest sound checkpoint), a checkpoint, or a file that service.load takes."""
    pictures: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PICTURE...", help_behavior_hint="(at least one)"),
    ]
    """Picture files, folders of them, or - for standard input."""
    views: Views = 1
    """1: the centre crop; 10: the paper's, corners, centre and their mirrors, softmax averaged."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU where there is one."""
    json: Path | None = None
    """File for all predictions as JSON, probabilities on 0..1."""
    out: Path | None = None
    """PNG to draw the pictures on (figure 4, left), each with its class and bars of the five; the first 40."""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise InputError("no picture is named, expected at least one; give files, folders or - for standard input")
        if self.pictures.count(STANDARD_INPUT) > 1:
            raise InputError("- is named twice, expected standard input once; leave one out")
        check_outputs({"--json": self.json, "--out": self.out})


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A picture, as far as it is still needed when the network has seen it."""

    path: Path
    true: PictureClass | None
    square: NDArray[np.uint8] | None  # where a panel is drawn of it


def main() -> int:
    """Predict as the command line says."""
    options = tyro.cli(PredictOptions, prog="python -m service.predict")
    end_on_signals()
    files = listed_files(options.pictures)
    network = load(options.checkpoint, options.device)
    return predict(options, network, files)


def predict(options: PredictOptions, network: TrainedNetwork, files: Sequence[Path]) -> int:
    """Show each picture's classes as they come, then write the files that were asked for."""
    unusable: list[tuple[Path, str]] = []
    entries: list[str] = []  # JSON already, which takes less memory than the values
    panels: list[Predicted[Shown]] = []
    drawn = MOST_PANELS if options.out else 0
    screen, used, told = console(highlight=False), 0, 0
    with _progress(len(files), screen) as advance:
        squares = pictures_with_squares(network, files, unusable, drawn)
        for each in network.predict_squares(squares, options.views):
            show(screen, each)
            sys.stdout.flush()
            if reader_gone() and not options.json and not options.out:
                return 128 + signal.SIGPIPE
            used += 1
            if options.json:
                entries.append(f"\n {json.dumps(json_values(each))}")
            if each.picture.square is not None:
                panels.append(each)
            told += tell(unusable[told:])
            advance(1)
        tell(unusable[told:])
    if options.json:
        write_output(options.json, f"[{','.join(entries)}\n]\n".encode(), "--json")
    if options.out and panels:
        write_output(options.out, draw(panels), "--out")
        more = f", the first of {used:,}" if used > len(panels) else ""
        say(f"{options.out}: {len(panels)} pictures{more}")
    if options.out and not panels:
        say(f"{options.out} is not written: there is no picture to draw")
    return EXIT_FAULTS if unusable else EXIT_DONE


def reader_gone() -> bool:
    """Whether whoever read the words has had enough, as `head` has."""
    output = output_of(sys.stdout)
    return bool(output and output.reader_gone)


def _progress(pictures: int, screen: Console) -> AbstractContextManager[Advance]:
    """On a terminal the words themselves show how far it is."""
    return no_progress() if screen.is_terminal else progress(pictures, "pictures")


def tell(unusable: Sequence[tuple[Path, str]]) -> int:
    """A line on stderr for each file that is no picture; how many there are."""
    for path, reason in unusable:
        say(printable(f"{file_name(path)} is left out: {reason}"))
    return len(unusable)


def pictures_with_squares(
    network: TrainedNetwork, files: Sequence[Path], unusable: list[tuple[Path, str]], drawn: int
) -> Iterator[tuple[Shown, NDArray[np.uint8]]]:
    """Each usable file with its pixels, which the first `drawn` keep."""
    for number, (path, square) in enumerate(usable_pictures(files, network.preprocessing, unusable)):
        index = class_of(path, network.preprocessing)
        true = None if index is None else network.classes[index]
        yield Shown(path=path, true=true, square=square if number < drawn else None), square


def show(screen: Console, each: Predicted[Shown]) -> None:
    """A picture's classes on stdout: with bars in colour on a terminal, else in plain letters."""
    true = each.picture.true
    head = printable(file_name(each.picture.path)) + (f", truly {called(true)}" if true else "")
    if not screen.is_terminal:
        sys.stdout.write(head + "\n" + "".join(f"{line(likely)}\n" for likely in each.likeliest))
        return
    table = Table.grid(padding=(0, 1))
    for likely in each.likeliest:
        right = true is not None and likely.index == true.index
        bar = Bar(1, 0, likely.probability, width=BAR_WIDTH, color="green" if right else "blue")
        words = Text(called(likely), "green" if right else "", no_wrap=True, overflow="ellipsis")
        table.add_row(" ", bar, f"{likely.probability:7.2%}", words)
    screen.print(Text(head, "bold"), table)


def line(likely: Likely) -> str:
    """A class and its probability in plain letters: bar, percent, words."""
    bar = "#" * round(BAR_WIDTH * likely.probability)
    return f"  {bar:{BAR_WIDTH}} {likely.probability:7.2%}  {called(likely)}"


def called(each: PictureClass | Likely) -> str:
    """What people call a class."""
    return printable(each.words or each.id)


def json_values(each: Predicted[Shown]) -> dict[str, Any]:
    """A picture's predictions as plain JSON values."""
    true = each.picture.true
    predictions = [asdict(likely) for likely in each.likeliest]
    return {"picture": str(each.picture.path), "true": asdict(true) if true else None, "predictions": predictions}


def draw(pictures: Sequence[Predicted[Shown]]) -> bytes:
    """The panels of pictures that have kept their pixels, as a PNG file."""
    from service.network.panels import Panel, panels_png  # here: matplotlib takes a second to import

    panels = [
        Panel(square=shown.square, name=_name(shown.path), true=shown.true, likeliest=each.likeliest)
        for each in pictures
        if (shown := each.picture).square is not None
    ]
    return panels_png(panels)


def _name(path: Path) -> str:
    return printable(file_name(path) if path == STANDARD_INPUT else path.name)


if __name__ == "__main__":
    run_command(main, results=True)
