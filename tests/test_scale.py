"""The files of docs/scale: the same train.py by every engine that docs/scale.md names."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from nodes import TRAIN, free_port

import mvkit
from mvkit.core import safe_file

FILES = TRAIN.parent
BASH = pytest.mark.skipif(sys.platform == "win32", reason="a script of bash")


def processes_of(folder):
    """How many processes the last checkpoint of a run was written by."""
    newest = max((folder / "checkpoints").iterdir())
    return safe_file.read_header(newest)["training"]["setting"]["processes"]


def epochs_in(folder):
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def test_one_process_trains_and_resumes(tmp_path):
    command = [sys.executable, TRAIN, f"--folder={tmp_path}", "--rows=100"]
    for epochs in (1, 2):
        subprocess.run([*command, f"--epochs={epochs}"], check=True, timeout=200)
    assert epochs_in(tmp_path) == [1, 2]
    assert processes_of(tmp_path) == 1


def test_modalities_come_from_tables(tmp_path):
    pandas = pytest.importorskip("pandas")
    ids = [f"p{number}" for number in range(30)]
    for name, values in {"a": range(30), "b": range(30, 0, -1)}.items():
        frame = pandas.DataFrame({"id": ids, "x": values, "y": 1.0}).astype({"x": float})
        frame.to_parquet(tmp_path / f"{name}.parquet")
    tables = [f"--table={name}={tmp_path / name}.parquet" for name in "ab"]
    command = [sys.executable, TRAIN, f"--folder={tmp_path / 'run'}", "--epochs=1", *tables]
    subprocess.run(command, check=True, timeout=200)
    assert mvkit.load(tmp_path / "run" / "model.safetensors").names == ("a", "b")


# SLURM

SRUN = """#!/bin/bash
# as SLURM's, where a job has two nodes: one task on each
echo "srun $*" >> "$ASKED"
[ "$1" = --kill-on-bad-exit=1 ] || exit 3
shift
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
wait $first || exit 1
wait $second || exit 1
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$ASKED"
printf '127.0.0.1\\n127.0.0.2\\n'
"""


@BASH
def test_the_file_for_slurm_is_bash_that_says_what_it_needs():
    path = FILES / "slurm.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1])  # else SLURM reads no further
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines[1 : last + 1]
    )
    assert {"nodes", "requeue", "signal", "time"} <= set(asked)
    assert asked["ntasks-per-node"] == "1"


@BASH
def test_the_file_for_slurm_trains_on_two_nodes(tmp_path):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        command = tmp_path / name
        command.write_text(text)
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f'#!/bin/bash\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    torchrun.chmod(torchrun.stat().st_mode | stat.S_IXUSR)
    slurm = {
        "SLURM_JOB_ID": str(free_slurm_job()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "ASKED": str(tmp_path / "asked"),
        "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
    }
    environment = {**os.environ, **slurm}
    environment.pop("SLURM_GPUS_ON_NODE", None)
    arguments = [f"--folder={tmp_path / 'run'}", "--rows=100", "--epochs=2"]
    command = ["bash", FILES / "slurm.sbatch", *arguments]
    subprocess.run(command, check=True, timeout=300, cwd=FILES, env=environment)
    assert epochs_in(tmp_path / "run") == [1, 2]
    assert processes_of(tmp_path / "run") == 2
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("scontrol show hostnames node[1-2]\nsrun ")
    assert "--max-restarts=10" in asked


def free_slurm_job():
    """The number of a job whose port is free."""
    while not 20000 <= (port := free_port()) < 40000:
        pass
    return port - 20000


# Kubernetes


def test_the_file_for_kubernetes_has_a_runtime_and_a_job_that_takes_it():
    yaml = pytest.importorskip("yaml")
    runtime, job = yaml.safe_load_all((FILES / "kubernetes.yaml").read_text())
    for document in (runtime, job):
        assert document["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    reference = job["spec"]["runtimeRef"]
    assert reference == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }
    trainer = job["spec"]["trainer"]
    known = {"image", "command", "args", "env", "numNodes", "resourcesPerNode"}
    assert set(trainer) <= known
    assert set(trainer["resourcesPerNode"]) <= {"requests", "limits", "claims"}
    assert trainer["command"][0] == "torchrun"
    assert Path(trainer["command"][1]).name == TRAIN.name
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    labels = node["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "node"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    (folder,) = (argument.partition("=")[2] for argument in trainer["args"])
    assert folder.startswith(mounts["shared"] + "/")  # which outlives pods


# Spark


def test_spark_writes_tables_and_trains_in_its_executors(tmp_path):
    pytest.importorskip("pyspark.ml", reason="Spark is not installed")
    pytest.importorskip("pandas")
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    environment["PYSPARK_SUBMIT_ARGS"] = "--master local[2] pyspark-shell"
    command = [sys.executable, FILES / "spark.py", tmp_path, "2", "--epochs=2", "--rows=300"]
    subprocess.run(command, check=True, timeout=500, env=environment)
    assert epochs_in(tmp_path / "run") == [1, 2]
    assert processes_of(tmp_path / "run") == 2
    assert mvkit.load(tmp_path / "run" / "model.safetensors").names == ("clinic", "labs")
