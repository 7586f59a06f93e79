"""mmengine's launchers where there is no GPU; what they start is tested in tests/distributed."""
import logging
import socket
from datetime import timedelta

import pytest
from mmengine.device import get_device
from mmengine.dist import init_dist, utils

from ce_mm.compat import without_gpu

PLACES = {
    "pytorch": dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2"),
    "mpi": dict(OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="1", OMPI_COMM_WORLD_SIZE="2", MASTER_ADDR="here"),
    "slurm": dict(SLURM_PROCID="1", SLURM_LOCALID="1", SLURM_NTASKS="2", SLURM_NODELIST="here", MASTER_ADDR="here"),
}
CHANGED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Starts one process with a launcher, and returns with what the process group would have been made."""
    if get_device() != "cpu":
        pytest.skip("there is an accelerator here")
    without_gpu.launch_without_gpu()
    calls = []
    monkeypatch.setattr(utils.torch_dist, "init_process_group", lambda **settings: calls.append(settings))
    monkeypatch.setattr(without_gpu, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def start(launcher, **settings):
        for name in CHANGED:  # so that they are put back
            monkeypatch.setenv(name, "")
        for name, value in PLACES[launcher].items():
            monkeypatch.setenv(name, value)
        init_dist(launcher, **settings)
        return calls.pop()

    return start


@pytest.mark.parametrize("launcher", PLACES)
def test_gloo_takes_nccl_s_place(started, launcher):
    assert started(launcher, backend="nccl")["backend"] == "gloo"


@pytest.mark.parametrize("backend", ["gloo", "mpi"])
def test_another_backend_is_left_alone(started, backend):
    assert started("pytorch", backend=backend)["backend"] == backend


def test_the_timeout_of_the_config_is_passed_on(started):
    assert started("pytorch", backend="nccl", timeout=7)["timeout"] == timedelta(seconds=7)


def test_the_first_process_says_so(started, monkeypatch):
    lines = []
    monkeypatch.setattr(without_gpu, "print_log", lambda line, logger, level: lines.append((level, line)))
    started("pytorch", backend="nccl")
    started("pytorch", backend="gloo")
    said = f"No GPU on {socket.gethostname()}: the processes train on the CPU and talk over gloo, not NCCL."
    assert lines == [(logging.WARNING, said)]


@pytest.mark.parametrize("launcher", PLACES)
def test_a_gpu_that_has_failed_is_an_error(started, launcher, tmp_path):
    (tmp_path / "nvidia0").touch()
    with pytest.raises(RuntimeError, match=f"{socket.gethostname()}: PyTorch .* finds no GPU, but .*/nvidia0 exists"):
        started(launcher, backend="nccl")


def test_a_gpu_that_was_given_but_is_not_found_is_an_error(started, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(RuntimeError, match="CUDA_VISIBLE_DEVICES=0,1"):
        started("pytorch", backend="nccl")


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_none(started, monkeypatch, tmp_path, visible):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert started("pytorch", backend="nccl")["backend"] == "gloo"


def test_gloo_is_no_error_beside_a_gpu(started, tmp_path):
    (tmp_path / "nvidia0").touch()
    assert started("pytorch", backend="gloo")["backend"] == "gloo"


def test_a_second_call_changes_nothing(started):
    before = vars(utils).copy()
    without_gpu.launch_without_gpu()
    assert vars(utils) == before


def test_nothing_is_changed_where_there_is_a_gpu(monkeypatch):
    def launch(backend):
        pass

    monkeypatch.setattr(without_gpu, "get_device", lambda: "cuda")
    monkeypatch.setattr(utils, "_init_dist_pytorch", launch)
    without_gpu.launch_without_gpu()
    assert utils._init_dist_pytorch is launch
