"""What a run will reach for, looked at before anything is built or written: data, checkpoints and the model itself.

Without it, upstream finds such faults minutes later, one after the other, each under a traceback, with a work folder
already made. Only what lies on this machine is looked at: paths with ``://`` and datasets of other file backends are
left to upstream.
"""
from argparse import Namespace
from typing import Literal

import torch
from mmengine.config import Config

from ce_mm.launching.config import PreflightError, dicts, read_config, type_name
from ce_mm.launching.data import check_data
from ce_mm.launching.model import check_model

__all__ = ["PreflightError", "check", "check_device", "dicts", "read_config", "type_name"]

Task = Literal["train", "test"]
PARTS = {"train": ("train", "val"), "test": ("test",)}
"""Task -> the prefixes of the ``*_cfg``, ``*_dataloader`` and ``*_evaluator`` settings that it uses."""


def check(task: Task, cfg: Config, args: Namespace) -> None:
    """Check what ``task`` will reach for.

    Args:
        cfg: the config as it was read; ``args.cfg_options`` are merged into it.
        args: what upstream's parser of that task made of the command line.

    Raises:
        PreflightError: for the first of these that fails: annotation files and picture folders of the dataloaders in
            use, what those of validation and test make of bad pictures, annotation files of their evaluators,
            checkpoints, building the model, the fit of the checkpoint to test and the model.
    """
    _merge(cfg, args)
    for part in PARTS[task]:
        if cfg.get(f"{part}_cfg") is not None:
            check_data(part, cfg)
    check_model(task, cfg, args)


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


def _merge(cfg: Config, args: Namespace) -> None:
    if getattr(args, "no_validate", False):  # an option of mmpretrain's
        cfg.val_cfg = None
    if args.cfg_options is not None:
        try:
            cfg.merge_from_dict(args.cfg_options)
        except Exception as error:  # depends on what stands in the config at that place
            raise PreflightError(f"--cfg-options {args.cfg_options}: {type(error).__name__}: {error}") from error
