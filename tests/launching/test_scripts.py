"""The shell scripts, with recorders in place of the programs that they start."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def recorded(tmp_path):
    """Runs a script and returns its exit code and the command lines of the python and srun that it started."""
    log = tmp_path / "log"
    for name in ("python", "python3", "srun"):
        recorder(tmp_path / "bin" / name, log)

    (tmp_path / "my config.py").touch()

    def run(script, *args, **environment):
        log.unlink(missing_ok=True)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", script, *args], cwd=tmp_path, env={"PATH": path, "HOME": str(tmp_path), **environment},
            capture_output=True, text=True,
        )
        calls = log.read_text().splitlines() if log.exists() else []
        return done, [call.split("|") for call in calls]

    return run


def recorder(path, log, code=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\nIFS='|'\necho \"${{0##*/}}|$*\" >> '{log}'\nexit {code}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "arguments", "rest"),
    [
        ("dist_train.sh", ["my config.py", "2"], ["train.py", "my config.py"]),
        ("dist_test.sh", ["my config.py", "a b.pth", "2"], ["test.py", "my config.py", "a b.pth"]),
    ],
)
def test_distributed_runs_start_one_process_per_gpu(recorded, script, arguments, rest):
    options = ["--cfg-options", "a=[1, 2]"]
    done, calls = recorded(TOOLS / script, *arguments, *options, NNODES="3", NODE_RANK="1", PORT="1234")
    assert done.returncode == 0
    assert calls == [
        ["python", "-m", "torch.distributed.run", "--nnodes=3", "--node-rank=1", "--master-addr=127.0.0.1",
         "--master-port=1234", "--nproc-per-node=2", str(TOOLS / rest[0]), *rest[1:], "--launcher", "pytorch", *options]
    ]


@pytest.mark.parametrize(
    ("script", "rest"),
    [
        ("slurm_train.sh", ["train.py", "my config.py", "--work-dir=fourth one"]),
        ("slurm_test.sh", ["test.py", "my config.py", "fourth one"]),
    ],
)
def test_slurm_runs_start_one_task_per_gpu(recorded, script, rest):
    done, calls = recorded(
        TOOLS / script, "queue", "job", "my config.py", "fourth one", "--cfg-options", "a=[1, 2]",
        GPUS="16", GPUS_PER_NODE="4", SRUN_ARGS="--qos=high --mem=1G",
    )
    assert done.returncode == 0
    assert calls == [
        ["srun", "--partition=queue", "--job-name=job", "--gres=gpu:4", "--ntasks=16", "--ntasks-per-node=4",
         "--cpus-per-task=5", "--kill-on-bad-exit=1", "--qos=high", "--mem=1G", "python", "-u", str(TOOLS / rest[0]),
         *rest[1:], "--launcher=slurm", "--cfg-options", "a=[1, 2]"]
    ]


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"])
def test_a_script_without_its_arguments_says_how_it_is_used(recorded, script):
    done, calls = recorded(TOOLS / script, "config.py")
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: bash tools/{script} ")
    assert calls == []


SLURM = ("slurm_train.sh", "queue", "job", "my config.py", "out")


@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        (("dist_train.sh", "my config.py", "eight"), {}, "GPUS is 'eight'; expected a whole number of at least 1"),
        (("dist_train.sh", "my config.py", "--amp"), {}, "GPUS is '--amp'; expected a whole number of at least 1"),
        (("dist_train.sh", "my config.py", ""), {}, "GPUS is ''; expected a whole number of at least 1"),
        (("dist_train.sh", "my config.py", "9" * 30), {}, f"GPUS is '{'9' * 30}'; expected a whole number"),
        (("dist_test.sh", "my config.py", "a.pth", "0"), {}, "GPUS is '0'; expected a whole number of at least 1"),
        (("dist_test.sh", "my config.py", "a.pth", "-1"), {}, "GPUS is '-1'; expected a whole number of at least 1"),
        (("dist_test.sh", "my config.py", "a.pth", "1.5"), {}, "GPUS is '1.5'; expected a whole number of at least 1"),
        (("dist_train.sh", "no config.py", "2"), {}, "config file no config.py: there is no such file; check the path"),
        (("slurm_test.sh", "queue", "job", "no.py", "a.pth"), {}, "config file no.py: there is no such file"),
        (("dist_train.sh", "my config.py", "2"), {"NNODES": "two"}, "NNODES is 'two'; expected a whole number of at"),
        (("dist_train.sh", "my config.py", "2"), {"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK is '2'; expected a "
         "whole number from 0 to 1"),
        (("dist_train.sh", "my config.py", "2"), {"PORT": "http"}, "PORT is 'http'; expected a whole number from 1 to "
         "65535"),
        (("dist_test.sh", "my config.py", "a.pth", "2"), {"PORT": "70000"}, "PORT is '70000'; expected a whole"),
        (SLURM, {"GPUS": "many"}, "GPUS is 'many'; expected a whole number of at least 1"),
        (SLURM, {"GPUS_PER_NODE": "0"}, "GPUS_PER_NODE is '0'; expected a whole number of at least 1"),
        (SLURM, {"CPUS_PER_TASK": "-5"}, "CPUS_PER_TASK is '-5'; expected a whole number of at least 1"),
    ],
)
def test_what_is_no_count_and_no_config_is_one_line_and_starts_nothing(recorded, command, environment, said):
    done, calls = recorded(TOOLS / command[0], *command[1:], **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize("gpus", ["08", "gpu"])
def test_counts_that_the_launcher_takes_are_passed_on(recorded, gpus):
    done, calls = recorded(TOOLS / "dist_train.sh", "my config.py", gpus)
    assert done.returncode == 0
    assert f"--nproc-per-node={gpus}" in calls[0]


@pytest.fixture
def checkout(tmp_path):
    """A repository of these scripts alone, in whose .venv a recorder stands for python."""
    root = tmp_path / "check out"
    (root / "tools").mkdir(parents=True)
    (root / ".ci").mkdir()
    shutil.copy(TOOLS / "run_tests.sh", root / "tools")
    shutil.copy(TOOLS.parent / ".ci" / "run", root / ".ci")
    recorder(root / ".venv" / "bin" / "python", tmp_path / "log")
    return root


def test_the_tests_run_after_set_up_lint_and_types(recorded, checkout):
    done, calls = recorded(checkout / "tools" / "run_tests.sh", "-k", "two words")
    assert done.returncode == 0
    assert calls == [
        ["python3", "tools/setup_env.py"],
        ["python", "-m", "ruff", "check", "."],
        ["python", "-m", "mypy"],
        ["python", "-m", "pytest", "-n", "2", "--dist", "worksteal", "-k", "two words"],
    ]


def test_the_tests_exit_code_is_kept_by_ci(recorded, checkout, tmp_path):
    recorder(checkout / ".venv" / "bin" / "python", tmp_path / "log")
    program = checkout / ".venv" / "bin" / "python"
    program.write_text(program.read_text().replace("exit 0", '[ "$2" = ruff ] || exit 5'))
    done, _ = recorded(checkout / ".ci" / "run")
    assert done.returncode == 5


def test_nothing_is_tested_after_a_failed_set_up(recorded, checkout, tmp_path):
    recorder(tmp_path / "bin" / "python3", tmp_path / "log", code=1)
    done, calls = recorded(checkout / "tools" / "run_tests.sh")
    assert done.returncode == 1
    assert calls == [["python3", "tools/setup_env.py"]]
