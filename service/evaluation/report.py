"""An evaluation as text, Markdown and JSON, with the paper's figures beside it; predictions in ILSVRC's form."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest import PictureClass
from service.evaluation.evaluate import Evaluated, Predictor
from service.evaluation.measures import ErrorRate
from service.results.table import MISSING

HEADINGS: Final = ("model", "pictures", "views", "top-1", "95%", "top-5", "95%", "calibration")
LEFT: Final = 2  # columns of words
SHOWN: Final = 10  # classes, and confusions, in the text


class PaperRow(NamedTuple):
    """A row of the paper's Tables 1 and 2: errors in percent, where it has them."""

    model: str
    pictures: str
    views: str
    top1: float | None
    top5: float


# Krizhevsky, Sutskever, Hinton 2012, Tables 1 and 2 and section 6; of Table 2 the validation columns, and the test
# column where it alone is filled. A star: with a sixth convolutional layer, pre-trained on ImageNet 2011.
PAPER: Final = (
    PaperRow("paper: sparse coding", "ILSVRC-2010 test", MISSING, 47.1, 28.2),
    PaperRow("paper: SIFT + Fisher vectors", "ILSVRC-2010 test", MISSING, 45.7, 25.7),
    PaperRow("paper: CNN", "ILSVRC-2010 test", "10", 37.5, 17.0),
    PaperRow("paper: CNN", "ILSVRC-2010 test", "1", 39.0, 18.3),
    PaperRow("paper: SIFT + Fisher vectors", "ILSVRC-2012 test", MISSING, None, 26.2),
    PaperRow("paper: 1 CNN", "ILSVRC-2012 val", "10", 40.7, 18.2),
    PaperRow("paper: 5 CNNs", "ILSVRC-2012 val", "10", 38.1, 16.4),
    PaperRow("paper: 1 CNN*", "ILSVRC-2012 val", "10", 39.0, 16.6),
    PaperRow("paper: 7 CNNs*", "ILSVRC-2012 val", "10", 36.7, 15.4),
)


def table_rows(found: Evaluated, pictures: str) -> list[tuple[str, ...]]:
    """The paper's rows, and beneath them ours, a text for each of HEADINGS; pictures: what to call the data set."""
    paper = [
        (row.model, row.pictures, row.views, _percent(row.top1), MISSING, _percent(row.top5), MISSING, MISSING)
        for row in PAPER
    ]
    return paper + [_row(predictor, found, pictures) for predictor in found.predictors]


def _row(predictor: Predictor, found: Evaluated, pictures: str) -> tuple[str, ...]:
    top1, top5 = predictor.top1, predictor.top5
    return (
        predictor.name,
        pictures,
        str(found.views),
        f"{top1.error:.2%}",
        _interval(top1),
        f"{top5.error:.2%}",
        _interval(top5),
        f"{predictor.calibration_error:.2%}",
    )


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}%"


def _interval(rate: ErrorRate) -> str:
    low, high = rate.interval
    return f"{low:.2%} to {high:.2%}"


def remarks(found: Evaluated, classes: Sequence[PictureClass]) -> list[str]:
    """What the table does not say, in lines."""
    result = found.result
    lines = [f"{found.samples:,} pictures of {found.split}, each counted once, {_views(found.views)}"]
    if found.held_out:
        weights = ", ".join(
            f"{predictor.name} {weight:.3f}"
            for predictor, weight in zip(found.predictors, result.weights, strict=False)
        )
        lines.append(
            f"weights fitted to the first {found.held_out:,} pictures, which are not counted in any row, "
            f"as the 2012 code did on a held-out half: {weights}"
        )
    worst = sorted((each for each in found.by_class if each.top1), key=lambda each: -each.top1)[:SHOWN]
    lines.append(f"of {result.name}:")
    lines.append("classes with the highest top-1 error: " + ("; ".join(
        f"{classes[each.index].name} {each.top1:.1%} of {each.samples}" for each in worst
    ) or "none"))  # fmt: skip
    lines.append("worst confusions: " + ("; ".join(
        f"{classes[each.true].name} taken for {classes[each.predicted].name} {each.samples} times "
            f"({each.share:.1%})"
        for each in found.confusions[:SHOWN]
    ) or "none"))  # fmt: skip
    lines.append(
        f"expected calibration error {result.calibration_error:.2%}: how far confidence is from accuracy, on average"
    )
    return lines


def _views(views: int) -> str:
    return "centre crop" if views == 1 else "softmax averaged over ten views: corners, centre, their mirrors"


def json_values(
    found: Evaluated, classes: Sequence[PictureClass], checkpoints: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The evaluation as plain JSON values: errors and shares on 0..1.

    checkpoints: of each member, what it is (path, sha256).
    """
    result = found.result
    members = found.predictors[: len(checkpoints)]
    return {
        "split": found.split,
        "samples": found.samples,
        "views": found.views,
        "top1_error": result.top1.error,
        "top5_error": result.top5.error,
        "interval": {"top1_error": list(result.top1.interval), "top5_error": list(result.top5.interval)},
        "calibration_error": result.calibration_error,
        "weights": list(result.weights),
        "held_out": found.held_out,
        "members": [
            {**checkpoint, **_figures(member)} for checkpoint, member in zip(checkpoints, members, strict=True)
        ],
        "ensembles": [
            {"name": each.name, "weights": list(each.weights), **_figures(each)}
            for each in found.predictors[len(checkpoints) :]
        ],
        "classes": [
            {"index": each.index, "id": classes[each.index].id, "words": classes[each.index].words,
             "samples": each.samples, "top1_error": each.top1, "top5_error": each.top5}
            for each in found.by_class
        ],
        "confusions": [
            {"true": classes[each.true].id, "predicted": classes[each.predicted].id,
             "samples": each.samples, "share": each.share}
            for each in found.confusions
        ],
        "reliability": [asdict(each) for each in found.bins],
        "damaged": list(found.damaged),
    }  # fmt: skip


def _figures(predictor: Predictor) -> dict[str, Any]:
    return {
        "top1_error": predictor.top1.error,
        "top5_error": predictor.top5.error,
        "interval": {"top1_error": list(predictor.top1.interval), "top5_error": list(predictor.top5.interval)},
        "calibration_error": predictor.calibration_error,
    }


def submission(
    likeliest: NDArray[np.int32], places: NDArray[np.int64], pictures: int, numbers: Sequence[int]
) -> tuple[str, int]:
    """ILSVRC's form: a line a picture, in the source's order, of five class numbers, the likeliest first.

    likeliest: (N, 5) class indices. places: (N,) each picture's place in the source's order. numbers: of each class. A
    picture that sharding rejected has a line all the same, a guess; the second value is how many there are.
    """
    guess = np.arange(likeliest.shape[1])
    lines = np.where(guess < len(numbers), guess, -1)[None].repeat(pictures, 0)
    lines[places] = likeliest
    text = "".join(" ".join(str(numbers[index]) for index in line if index >= 0) + "\n" for line in lines.tolist())
    return text, pictures - len(places)
