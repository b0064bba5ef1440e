"""The launchers, with stand-ins for the cluster's own commands; no cluster is at hand."""

import json
import os
import re
import socket
import stat
import subprocess
import sys

import pytest
import yaml

from configs import smaug
from tests.end_to_end.conftest import ROOT
from vlp_jax import config as config_lib
from vlp_jax import launch, meshes, validation

LAUNCHERS = ROOT / "launchers"
FIRST_PORT = 65535 - 2**12 + 1  # of those that JAX derives from the number of a SLURM job


def program(path, text):
    """Makes an executable Python script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# As srun: the command once for each task, with SLURM's variables; the highest exit status is its own.
SRUN = """
import os, subprocess, sys
tasks = int(os.environ["TASKS"])
environment = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(tasks), "SLURM_STEP_NUM_TASKS": str(tasks)}
started = [
    subprocess.Popen(
        sys.argv[1:], env={**os.environ, **environment, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
    )
    for i in range(tasks)
]
sys.exit(max(process.wait() for process in started))
"""


@pytest.fixture
def slurm(tmp_path, environment):
    """Runs the batch script on stand-ins; returns the CompletedProcess and what scontrol was called with."""
    program(tmp_path / "bin" / "srun", SRUN)
    record = f'import pathlib, sys\npathlib.Path({str(tmp_path / "scontrol")!r}).write_text(" ".join(sys.argv[1:]))\n'
    program(tmp_path / "bin" / "scontrol", record)

    def run(flags, tasks, folder):
        free = lambda port: socket.socket().connect_ex(("localhost", port)) != 0
        port = next(filter(free, range(FIRST_PORT, 65536)))
        job = {"SLURM_JOB_ID": str(port - FIRST_PORT), "TASKS": str(tasks)}
        job["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", str(LAUNCHERS / "slurm.sbatch"), *flags]
        done = subprocess.run(
            command, cwd=folder, env={**environment, **job}, capture_output=True, text=True, timeout=600
        )
        called = tmp_path / "scontrol"
        return done, called.read_text() if called.exists() else None

    return run


@pytest.mark.slow
@pytest.mark.alone
def test_slurm_starts_a_job_of_two_processes_that_find_each_other(tmp_path, slurm, command):
    again = f"import os, sys\nos.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    program(tmp_path / "checkout" / ".venv" / "bin" / "python", again)
    for name in ("vlp_jax", "configs"):
        (tmp_path / "checkout" / name).symlink_to(ROOT / name)
    flags = command(tmp_path / "run", steps=4)[3:]
    done, requeued = slurm(flags, 2, tmp_path / "checkout")
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr and "done: 4 steps" in done.stderr
    assert requeued is None


@pytest.mark.parametrize("status", [0, 2, 143])
def test_slurm_queues_the_job_again_where_it_was_stopped_before_its_end_only(tmp_path, slurm, status):
    program(tmp_path / ".venv" / "bin" / "python", f"import sys\nsys.exit({status})\n")
    done, requeued = slurm(["--config", "configs/smaug.py:base"], 1, tmp_path)
    assert done.returncode == status
    if status == 143:
        assert requeued and requeued.startswith("requeue ")
    else:
        assert requeued is None


def test_a_tpu_slices_hosts_get_the_flags_as_they_were_given(tmp_path):
    """gcloud's stand-in gives its --command to a shell, as the hosts do."""
    hosts = f"""
import subprocess, sys
remote = sys.argv[-1].removeprefix("--command=")
print(sys.argv[1:-1])
sys.exit(subprocess.run(["bash", "-c", remote], cwd={str(tmp_path)!r}).returncode)
"""
    program(tmp_path / "bin" / "gcloud", hosts)
    program(tmp_path / "vlp_jax" / ".venv" / "bin" / "python", "import json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    flags = ["--config=configs/smaug.py:base", "--config.model.pruning.layers=(3, 6)", "--workdir=/mnt/a b/$HOME"]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    script = str(LAUNCHERS / "tpu_vm.sh")
    done = subprocess.run([script, "pod", "zone", *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called, got = done.stdout.splitlines()
    assert called == str("compute tpus tpu-vm ssh pod --zone=zone --worker=all".split())
    assert json.loads(got) == ["-m", "vlp_jax.train", "--distributed=on", *flags]
    assert subprocess.run([script, "pod"], env=environment, capture_output=True).returncode == 2


def test_the_jobset_has_a_process_for_each_host_of_its_slice_and_flags_that_the_config_knows():
    manifest = yaml.safe_load((LAUNCHERS / "jobset.yaml").read_text())
    (slices,) = manifest["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    module, *flags = container["args"]
    assert module == "vlp_jax.train"
    (name,) = [flag.partition("=")[2] for flag in flags if flag.startswith("--config.mesh=")]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert meshes.find(name).topology == f"v5e:{topology}"
    rows, columns = map(int, topology.split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == rows * columns // chips
    argv = meshes.expand(["train", *flags])
    launch.check_config_flags(argv)
    config = smaug.get_config("base")
    pairs = dict(flag.removeprefix("--config.").split("=") for flag in argv[1:] if flag.startswith("--config."))
    config_lib.update(config, {key: type(config_lib.leaves(config)[key])(value) for key, value in pairs.items()})
    validation.validate(config)
    assert config.batch_size % (rows * columns) == 0
    mounted = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == mounted


def test_the_image_is_made_of_files_that_are_there_and_extras_that_exist():
    text = (LAUNCHERS / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.M) for name in line.split()]
    assert {"setup.py", "vlp_jax", "configs"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r"extras_require=\{(.*?)\n    \}", (ROOT / "setup.py").read_text(), flags=re.S)
    assert extras
    known = re.findall(r'^        "(\w+)":', extras[1], flags=re.M)
    default = re.search(r"^ARG ACCELERATOR=(\w+)$", text, flags=re.M)
    assert default and default[1] in known
    version = re.search(r"^FROM python:3\.(\d+)", text, flags=re.M)
    assert version and int(version[1]) >= 11
