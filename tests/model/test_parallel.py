"""Several ranks do what one does: real processes that talk over gloo, against the same steps in one process."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.parallel import Parallel, choose_layout
from parallel_steps import ACT, END, STEPS, steps
from processes import PATIENCE

PROGRAM = Path(__file__).with_name("parallel_steps.py")


# What each number of ranks runs in each layout. Generating code takes minutes; without it the same graph is traced. A
# graph of `tower+data` has all that one of `tower` or of `data` has.
EAGER = ("eager-float64", "eager-float32")
LAUNCHES = {
    ("tower", 2): (*EAGER, "eager-float64-modern"),
    ("data", 2): EAGER,
    ("data", 3): (*EAGER, "eager-float64-modern"),
    ("tower+data", 4): (*EAGER, "aot_eager-float64", "aot_eager-float64-modern"),
    ("2014", 2): (*EAGER, "aot_eager-float64", "eager-float64-modern"),
    ("2014", 4): EAGER,
}


class Found(NamedTuple):
    """What the ranks of one launch found."""

    layout: str
    runs: dict[str, list[dict[str, Tensor]]]  # by backend and data type: each rank's

    def of(self, dtype: str) -> list[list[dict[str, Tensor]]]:
        return [ranks for run, ranks in self.runs.items() if run.endswith(dtype)]


def launched(out: Path, layout: str, ranks: int, runs: tuple[str, ...], patience_seconds: float = PATIENCE) -> Found:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, str(PROGRAM), str(out), layout, *runs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience_seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {run: [out / run / f"rank-{rank}.safetensors" for rank in range(ranks)] for run in runs}
    return Found(layout, {run: [load_file(path) for path in paths] for run, paths in files.items()})


# Replicas are trained in tests of the worker too; the scheme of 2014 shares all but its placement.
SLOW = tuple(launch for launch in LAUNCHES if launch != ("tower", 2))


@pytest.fixture(
    scope="module",
    params=[pytest.param(launch, marks=[pytest.mark.slow] if launch in SLOW else []) for launch in LAUNCHES],
    ids=lambda launch: f"{launch[0]}-{launch[1]}",
)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    layout, ranks = request.param
    return launched(tmp_path_factory.mktemp("found"), layout, ranks, LAUNCHES[layout, ranks])


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Tensor]]:
    """One process, both towers, float64: by the data type that it is the reference of, because that has its steps."""
    whole = steps(Parallel(), "eager", "float64")
    with mock.patch.dict(STEPS, float64=STEPS["float32"]):
        short = steps(Parallel(), "eager", "float64")
    return {"float64": whole, "float32": short, "modern": steps(Parallel(), "eager", "float64", "modern")}


# All of the norm of a tensor. Float64 errs by 2^-53 in each sum, of some thousand terms in each of eight layers: 1e-12
# at the worst, which six steps amplify tenfold or so. That such an error takes one of half a million units over ReLU's
# edge, which no tolerance covers, is a chance of one in a million.
FLOAT64 = 1e-10
# Float32 errs by 2^-24 in each sum, which comes to 1e-5 of the loss at the worst. Of half a million units some do lie
# within rounding of ReLU's edge, or of another in a pooling's window. One that goes the other way moves a gradient by
# its share, a thousandth where it counts for most; a picture left out is a tenth, and more.
FLOAT32_LOSS, FLOAT32_GRADIENT = 1e-5, 1e-2
# Of a gradient that is 0 but for rounding: a shift that the next batch normalisation takes off again has one.
ZERO = 1e-13


def assert_same(found: list[dict[str, Tensor]], alone: dict[str, Tensor], tolerance: float, scalars: float) -> None:
    """Each number of each rank is that of the one process; `tolerance` for gradients, and what they have changed."""
    seen: set[str] = set()
    last = len(alone["loss"])
    for mine in found:
        for name, value in mine.items():
            if name in ("graphs", "flag_counts", "validation"):
                continue
            theirs = alone[name].double()
            within = scalars if name == "loss" else tolerance
            # The norm for gradients, because where one unit went the other way few numbers have all of the difference.
            assert (value.double() - theirs).norm() <= within * theirs.norm() + ZERO, name
            seen.add(name)
        # The last rank alone was told to end, rank 0 to act, and all know.
        assert mine["flag_counts"].T.tolist() == [
            [float(n >= END) for n in range(last)],
            [float(n == ACT) for n in range(last)],
        ]
        # After a step of float32 the loss has moved by the gradient's error times the rate: no more than the gradient.
        torch.testing.assert_close(mine["validation"][0], alone["validation"][0], rtol=tolerance, atol=0)
        assert mine["validation"][1:].tolist() == [*alone["validation"][1:3].tolist(), 1, len(found)]
    assert seen == alone.keys() - {"graphs", "flag_counts", "validation"}


def test_loss_gradients_and_weights_are_those_of_one_process(found: Found, alone: dict[str, dict[str, Tensor]]) -> None:
    """In float64 only the order of sums differs: dropout, pictures and the uneven batch are the same."""
    for ranks in found.of("float64"):
        assert_same(ranks, alone["float64"], FLOAT64, FLOAT64)


def test_batch_norm_layer_wise_rates_smoothed_labels_and_averages_are_those_of_one_process(
    found: Found, alone: dict[str, dict[str, Tensor]]
) -> None:
    for ranks in found.of("modern"):
        assert any(name.startswith("average.") and name.endswith("running_var") for name in alone["modern"])
        assert_same(ranks, alone["modern"], FLOAT64, FLOAT64)


def test_a_step_in_float32_errs_by_its_own_rounding(found: Found, alone: dict[str, dict[str, Tensor]]) -> None:
    for ranks in found.of("float32"):
        assert_same(ranks, alone["float32"], FLOAT32_GRADIENT, FLOAT32_LOSS)


def test_what_several_ranks_hold_is_the_same_bit_for_bit_so_it_never_drifts_apart(found: Found) -> None:
    for ranks in found.runs.values():
        holders = {name: [mine[name] for mine in ranks if name in mine] for mine in ranks for name in mine}
        for name, values in holders.items():
            assert all(torch.equal(value, values[0]) for value in values), name
        connected = len(holders["weight.towers.0.fc6.weight"])
        assert connected == (len(ranks) if found.layout == "data" else len(ranks) // 2)


def test_the_compiled_step_is_one_graph_on_every_rank(found: Found) -> None:
    for run, ranks in found.runs.items():
        if not run.startswith("eager"):
            assert all(mine["graphs"].tolist() == [1, 0] for mine in ranks)  # and no break


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "backend", "networks"),
    [
        ("tower", "eager", ("silent",)),
        ("data", "eager", ("cifar",)),
        ("tower", "aot_eager", ("silent", "shallow")),
        ("2014", "aot_eager", ("silent", "shallow")),
        ("data", "aot_eager", ("silent", "column")),
    ],
)
def test_variants_of_the_network_are_the_same_on_two_ranks(
    layout: str, backend: str, networks: tuple[str, ...], tmp_path: Path
) -> None:
    found = launched(tmp_path, layout, 2, tuple(f"{backend}-float64-{network}" for network in networks))
    for network, ranks in zip(networks, found.runs.values(), strict=True):
        assert_same(ranks, steps(Parallel(), "eager", "float64", network), FLOAT64, FLOAT64)
        assert all(mine["graphs"].tolist() == [1, 0] for mine in ranks if "graphs" in mine)


@pytest.mark.slow
def test_generated_code_does_the_same_on_every_rank(alone: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    found = launched(tmp_path, "tower", 2, ("inductor-float32",), 3 * PATIENCE)
    test_the_compiled_step_is_one_graph_on_every_rank(found)
    test_a_step_in_float32_errs_by_its_own_rounding(found, alone)


HANGS = """
import sys, torch
from datetime import timedelta
from model.parallel import make_parallel
from service.training.ranks import RanksLost, join_ranks

def say(line):
    sys.stdout.write(f"{line}\\n")  # at once, with its end: the ranks share a pipe
    sys.stdout.flush()

try:
    with join_ranks("cpu", patience_seconds=60) as ranks:
        parallel = make_parallel("tower+data", ranks.rank, ranks.world_size, timedelta(seconds=1))
        if ranks.rank == 3:
            sys.stdin.read()  # alive, and silent
        parallel.gather_pair_rows(torch.ones(1))
        say(f"rank {ranks.rank} goes on")
        if ranks.rank < 2:
            sys.stdin.read()
except RanksLost as error:
    say(error)
    sys.exit(3)
"""


@pytest.mark.slow
def test_a_pair_waits_for_a_silent_rank_as_long_as_the_run_does(tmp_path: Path) -> None:
    """Not for torch's default of half an hour; the other pair does not notice."""
    program = tmp_path / "hangs.py"
    program.write_text(HANGS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    with subprocess.Popen([*launcher, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.wait(PATIENCE) != 0
        finally:
            run.terminate()  # torchrun ends its ranks
        assert run.stdout
        out = run.stdout.read()
    lines = out.splitlines()
    assert sorted(line for line in lines if "goes on" in line) == ["rank 0 goes on", "rank 1 goes on"]
    assert any(line.startswith("rank 2 lost another") for line in lines), out


def test_layouts_by_themselves() -> None:
    expected = {1: None, 2: "tower", 3: "data", 4: "tower+data", 5: "data", 6: "tower+data"}
    assert {ranks: choose_layout("auto", ranks) for ranks in expected} == expected
    assert choose_layout("data", 4) == "data"


@pytest.mark.parametrize(
    ("wanted", "ranks"), [("tower", 1), ("tower", 4), ("data", 1), ("tower+data", 2), ("tower+data", 3), ("2014", 3)]
)
def test_a_layout_that_does_not_fit_is_refused(wanted, ranks: int) -> None:
    with pytest.raises(ValueError, match=rf"{ranks} processes with parallel {wanted.replace('+', '.')}, expected"):
        choose_layout(wanted, ranks)
