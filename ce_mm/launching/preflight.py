"""What a run will reach for, looked at before anything is built or written: data, checkpoints and the model itself.

Without it, upstream finds such faults minutes later, one after the other, each under a traceback, with a work folder
already made. Only what lies on this machine is looked at: paths with ``://`` and datasets of other file backends are
left to upstream.
"""
from typing import Literal

import torch
from mmengine.config import Config

from ce_mm.launching.config import PreflightError, dicts, read_config, type_name
from ce_mm.launching.data import check_data
from ce_mm.launching.model import check_fit, check_training
from ce_mm.launching.settings import check_settings

__all__ = ["PreflightError", "check", "check_data", "check_device", "check_fit", "dicts", "read_config", "type_name"]

Task = Literal["train", "test"]


def check(task: Task, cfg: Config) -> None:
    """Check what ``task`` will reach for.

    Args:
        cfg: the config as a runner of mmengine's would get it, with ``work_dir`` and, for a test, ``load_from``.

    Raises:
        PreflightError: for the first fault of the settings, the data in use, or the model and its checkpoints.
    """
    check_settings(task, cfg)
    for part in ("train", "val") if task == "train" else ("test",):
        if cfg.get(f"{part}_cfg") is not None:
            check_data(part, cfg)
    if task == "train":
        check_training(cfg)
    else:
        check_fit(cfg)


def check_device(device: str) -> None:
    """Check that PyTorch can use a device here.

    Raises:
        PreflightError: it cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PreflightError(
            f"the device {device!r} cannot be used: {reason}; expected cpu, or cuda with a GPU"
        ) from None
