"""The script of trials: limits, outcomes and results, on small trials of a CPU."""

import json
import os
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import trial_runner
from limits import run_limited
from trial_results import Outcome, markdown
from trials.child import result_of
from trials.context import Context, Failed
from trials.kernels import error_of
from trials.plan import Trial, plan
from trials.step import masks

PROFILE = "step's profile, bfloat16"

# A child, and a grandchild in a session of its own, as torchrun's ranks are; both tell who they are, and wait.
FAMILY = """
import os, subprocess, sys, time
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "second"], start_new_session=True)
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


def test_a_limit_ends_a_process_and_all_below_it(tmp_path: Path):
    (tmp_path / "family.py").write_text(FAMILY)
    pids = tmp_path / "pids"
    call = [sys.executable, str(tmp_path / "family.py"), str(pids)]
    for seconds in (1, 4, 16):  # until it suffices for two starts of Python
        pids.unlink(missing_ok=True)
        status, took = run_limited(call, tmp_path / "log", seconds, os.environ)
        if pids.exists() and len(pids.read_text().splitlines()) == 2:
            break
    assert status is None and took >= seconds
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 10
        while is_running(pid):  # a killed grandchild is gone when it is reaped
            assert time.monotonic() < deadline, f"process {pid} runs on"


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def call(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    """Exit status of the script, and what it found, by trial."""
    status = trial_runner.main(["--device", "cpu", "--out", str(tmp_path), *arguments])
    return status, {each["name"]: each for each in json.loads((tmp_path / "results.json").read_text())["trials"]}


def test_trials_are_run_skipped_and_written_down(tmp_path: Path):
    status, found = call(tmp_path, "--only", "versions", "profile")
    assert status == 0
    assert {name: each["state"] for name, each in found.items()} == {"versions": "passed", PROFILE: "skipped"}
    assert found[PROFILE]["words"] == "needs CUDA"
    assert f"Python {sys.version.split()[0]}" in (tmp_path / "results.md").read_text().splitlines()[0]


def test_a_figure_has_its_median_and_range():
    figure = {"what": "rate", "unit": "images/s", "values": [3.0, 0.123456, 40123.4]}
    table = markdown({"device": "this"}, [Outcome("speed", "passed", "a|b", [figure], seconds=2)])
    assert "| speed | rate | images/s | 3 | 3 | 0.1235 to 40,123 |" in table
    assert table.splitlines()[0] == "device this" and "| speed | passed | 2 | a/b |" in table


def test_a_failure_stops_no_other_trial_and_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bad = [Trial("crash", "plan", "is_not_there"), Trial("hang", "facts", "versions", seconds=0.01)]
    monkeypatch.setattr(trial_runner, "plan", lambda device: [*bad, Trial("fine", "facts", "versions")])
    status, found = call(tmp_path)
    assert status == 1
    assert [each["state"] for each in found.values()] == ["failed", "failed", "passed"]
    assert "is_not_there" in found["crash"]["words"] and found["hang"]["words"] == "no end within 0 s"
    assert "is_not_there" in (tmp_path / "crash.log").read_text()


def test_what_has_no_room_is_listed_as_not_run(tmp_path: Path):
    status, found = call(tmp_path, "--minutes", "0.01", "--only", "versions", "containers")
    assert status == 0 and {each["state"] for each in found.values()} == {"not run"}


def test_a_missing_package_skips_the_trial_that_needs_it_but_a_missing_file_of_ours_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake = ModuleType("trials.fake")
    fake.needs = lambda context, name: import_module(name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trials.fake", fake)
    for name in ("nvidia.dali", "model.fake"):
        monkeypatch.setitem(sys.modules, name, None)
    context = Context("cpu", tmp_path, "")
    found = result_of(context, "fake", "needs", {"name": "nvidia.dali"})
    assert found == {"state": "skipped", "words": "needs the package nvidia.dali, which is not installed"}
    with pytest.raises(ModuleNotFoundError):
        result_of(context, "fake", "needs", {"name": "model.fake"})


def test_every_trial_of_the_plan_is_there():
    names = [trial.name for trial in plan("cuda")]
    assert len(set(names)) == len(names) and {trial.name for trial in plan("cpu")} <= set(names)
    folder = Path(trial_runner.__file__).parent / "trials"
    for trial in (*plan("cuda"), *plan("cpu")):
        assert f"\ndef {trial.function}(context: Context" in (folder / f"{trial.module}.py").read_text(), trial.name


def test_masks_that_differ_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def compiled(mask, **_):
        return lambda seed, layer, positions, *rest: mask(seed, layer, positions & 0xFFFFFFFF, *rest)

    monkeypatch.setattr("torch.compile", compiled)  # one that loses the positions' high bits
    with pytest.raises(Failed, match="compiled, seed"):
        masks(Context("cpu", tmp_path, ""))


def test_a_wrong_kernel_is_outside_the_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from trials import kernels

    context, conv_pool = Context("cpu", tmp_path, ""), kernels.conv_pool
    assert error_of(context, "bfloat16", "paper", "relu", 48, 15) <= kernels.TOLERANCE["bfloat16"]

    def first_channel_wrong(layer, x, pooling):
        y = conv_pool(layer, x, pooling)
        return y if y.dtype.itemsize == 8 else y * (1 + (y.new_tensor(range(y.shape[1])) == 0)[:, None, None])

    monkeypatch.setattr(kernels, "conv_pool", first_channel_wrong)
    assert error_of(context, "bfloat16", "paper", "relu", 48, 15) > kernels.TOLERANCE["bfloat16"]
