import subprocess
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from paths import DOCKER, ROOT
from pipeline.command import InputError
from service.run.config import Run, parse_run
from service.web.tokens import is_private

BATCH = DOCKER / "slurm.sbatch"
OPERATIONS = ROOT / "docs" / "operations.md"
SECRETS = "/secrets"  # where the job's Secret is mounted
PAPER = ("paper", "--data.shards", "/shared/shards", "--out", "/shared/run")

# Stand-ins for Slurm's commands: what they were called with goes to a file, srun ends as the test says.
SRUN = """#!/bin/bash
printf "%s\\n" "$@" > srun.txt
echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > patience.txt
exit "$SRUN_STATUS"
"""
SCONTROL = '#!/bin/bash\necho "$*" >> scontrol.txt\nif [ "$1" = show ]; then printf "host1\\nhost2\\n"; fi\n'


def trained(command: list[str]) -> tuple[list[str], Run]:
    """torchrun's own options, and the run that service.train makes of the rest."""
    at = command.index("-m")
    assert command[at + 1] == "service.train"
    return command[:at], parse_run(command[at + 2 :])


def option(command: list[str], name: str) -> str:
    """The value of --name VALUE or --name=VALUE."""
    (at,) = [i for i, word in enumerate(command) if word.split("=")[0] == name]
    return command[at].partition("=")[2] or command[at + 1]


def directives() -> dict[str, str]:
    """The #SBATCH options; Slurm looks for them only before the first command."""
    lines = takewhile(lambda line: not line or line.startswith("#"), BATCH.read_text().splitlines())
    words = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
    return {name: value for name, _, value in words}


def batch(folder: Path, srun_status: int, seconds_left: int) -> tuple[int, list[str], list[str]]:
    """Run the batch file: its status, srun's words and scontrol's calls."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SRUN_STATUS": str(srun_status),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "host[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_JOB_END_TIME": str(int(time.time()) + seconds_left),
    }
    done = subprocess.run(["bash", BATCH, *PAPER], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    words, calls = ((folder / name).read_text().splitlines() for name in ("srun.txt", "scontrol.txt"))
    return done.returncode, words, calls


def test_batch_file_starts_one_torchrun_a_host_with_arguments_that_parse(tmp_path: Path):
    status, words, _ = batch(tmp_path, srun_status=0, seconds_left=3600)
    assert status == 0
    torchrun, run = trained(words[words.index("torchrun") :])
    assert (str(run.data.shards), str(run.out)) == ("/shared/shards", "/shared/run")
    assert option(torchrun, "--rdzv-endpoint") == "host1:29400"
    assert (option(torchrun, "--nnodes"), option(torchrun, "--rdzv-id")) == ("2", "7")


def test_batch_file_gives_a_stopped_run_time_to_save(tmp_path: Path):
    batch(tmp_path, srun_status=0, seconds_left=3600)
    given = directives()
    assert {"requeue", "exclusive", "open-mode", "time", "nodes"} <= given.keys()
    signal, seconds = given["signal"].split("@")
    assert signal == "TERM"  # not B:TERM, which would tell the shell alone
    patience = (tmp_path / "patience.txt").read_text()
    assert int(patience) < int(seconds)


@pytest.mark.parametrize(
    ("srun_status", "seconds_left", "requeued"),
    [(1, 200, True), (1, 60, True), (1, 3600, False), (0, 60, False)],
    ids=["told early", "told late", "a fault", "finished"],
)
def test_batch_file_queues_itself_again_when_the_time_limit_stopped_it(
    tmp_path: Path, srun_status: int, seconds_left: int, requeued: bool
):
    status, _, calls = batch(tmp_path, srun_status, seconds_left)
    assert status == srun_status
    assert ("requeue 7" in calls) == requeued


def objects() -> dict[str, dict[str, Any]]:
    """The objects of trainjob.yaml by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((DOCKER / "trainjob.yaml").read_text())}


def test_train_job_runs_the_runtime_beside_it():
    job, runtime = objects()["TrainJob"], objects()["TrainingRuntime"]
    assert job["apiVersion"] == runtime["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]


def train_job_command(folder: Path, secrets: Path) -> list[str]:
    """torchrun's command line, as the job's shell makes it where the Secret is mounted in `secrets`."""
    torchrun = folder / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@" > words.txt\n')
    torchrun.chmod(0o755)
    *shell, script = objects()["TrainJob"]["spec"]["trainer"]["command"]
    command = [*shell, script.replace(SECRETS, str(secrets))]
    subprocess.run(command, cwd=folder, env={"PATH": f"{folder}:/usr/bin:/bin"}, check=True, capture_output=True)
    return (folder / "words.txt").read_text().splitlines()


def pod_of_train_job() -> dict[str, Any]:
    (replicated,) = objects()["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


def test_train_job_reads_and_writes_where_volumes_are_and_has_time_to_save(tmp_path: Path):
    _, run = trained(train_job_command(tmp_path, tmp_path / "nothing"))
    pod = pod_of_train_job()
    (node,) = pod["containers"]
    writable = {mount["mountPath"]: not mount.get("readOnly", False) for mount in node["volumeMounts"]}
    assert not writable[str(run.data.shards)]
    assert writable[str(run.out.parent)]
    assert {mount["name"] for mount in node["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (patience,) = [int(each["value"]) for each in node["env"] if each["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert patience < pod["terminationGracePeriodSeconds"]


def test_train_job_is_steered_by_those_in_its_secret_and_starts_without_one(tmp_path: Path):
    pod = pod_of_train_job()
    (volume,) = [each["secret"] for each in pod["volumes"] if "secret" in each]
    mounts = {each["mountPath"]: each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts[SECRETS] == "token" and volume["optional"]
    assert is_private(volume["defaultMode"] | 0o440, 0)  # as a pod with an fsGroup has it
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    (made,) = [line for line in OPERATIONS.read_text().splitlines() if line.startswith("kubectl create secret")]
    words = made.split()
    assert words[4] == volume["secretName"] and "--from-file=token" in words  # so that its key is `token`
    (tmp_path / "mounted").mkdir()
    for files, steered in (((), False), (("tokens",), False), (("token",), True)):
        for name in files:
            (tmp_path / "mounted" / name).write_text("0123456789abcdef\n")
        _, run = trained(train_job_command(tmp_path, tmp_path / "mounted"))
        assert run.token_file == (tmp_path / "mounted/token" if steered else None)


def test_a_misspelt_argument_would_be_found():
    with pytest.raises((SystemExit, InputError)):
        trained(["torchrun", "-m", "service.train", "paper", "--data.shard", "/shards"])
