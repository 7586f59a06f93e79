"""mmengine's launchers on a machine without a GPU: gloo where a config says NCCL, and models that stay on the CPU.

mmengine's own launchers set a CUDA device before anything else, and its runners hand ``LOCAL_RANK`` to DDP and to FSDP
as the number of a GPU, so that several processes can start on machines with an accelerator alone. A GPU that should be
there but has failed is an error: training on the CPU instead would only look like a slow one.
"""
import functools
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process, utils
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.model.wrappers import MMFullyShardedDataParallel

DEVICES = Path("/dev")
LAUNCHERS = ("_init_dist_pytorch", "_init_dist_mpi", "_init_dist_slurm")


def launch_without_gpu() -> None:
    """Make the launchers ``pytorch``, ``mpi`` and ``slurm``, DDP and FSDP run here if mmengine sees no accelerator.

    They are looked up when a runner is built, so it is in time until then. A second call does nothing.
    """
    if get_device() != "cpu" or hasattr(getattr(utils, LAUNCHERS[0]), "__wrapped__"):
        return
    for name in LAUNCHERS:
        setattr(utils, name, _over_gloo(getattr(utils, name)))
    _fix(MMDistributedDataParallel, device_ids=None)
    _fix(MMFullyShardedDataParallel, device_id=torch.device("cpu"))


def _over_gloo(launch: Callable[..., None]) -> Callable[..., None]:
    """The launcher, but for the backend; all other settings (``timeout``) are passed on."""

    @functools.wraps(launch)
    def launch_over_gloo(backend: str, **settings: Any) -> None:
        host, without_nccl = socket.gethostname(), backend == "nccl"
        if without_nccl and (sign := _sign_of_a_gpu()):
            raise RuntimeError(
                f"{host}: PyTorch {torch.__version__} finds no GPU, but {sign}. Look whether nvidia-smi finds it, and "
                "whether this PyTorch is built for CUDA; to train on the CPU, set CUDA_VISIBLE_DEVICES=-1."
            )
        with patch("torch.cuda.set_device"):  # which mmengine's launchers call, whatever the backend
            launch("gloo" if without_nccl else backend, **settings)
        if without_nccl and is_main_process():
            line = f"No GPU on {host}: the processes train on the CPU and talk over gloo, not NCCL."
            print_log(line, logger="current", level=logging.WARNING)

    return launch_over_gloo


def _sign_of_a_gpu() -> str | None:
    """What tells that this host has a GPU or was given one, unless the user hides it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        device = min(DEVICES.glob("nvidia[0-9]*"), default=None)
        return device and f"{device} exists"
    return None if visible in ("", "-1") else f"CUDA_VISIBLE_DEVICES={visible} gives it one"


def _fix(wrapper: type, **settings: Any) -> None:
    """Give the constructor of a model wrapper these settings, whatever a runner passes."""
    construct = wrapper.__init__

    @functools.wraps(construct)
    def construct_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **(kwargs | settings))

    wrapper.__init__ = construct_on_cpu
