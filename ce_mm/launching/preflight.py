"""What a run will reach for, looked at before anything is built or written: data, checkpoints and the model itself.

Without it, upstream finds such faults minutes later, one after the other, each under a traceback, with a work folder
already made. Only what lies on this machine is looked at: paths with ``://`` and datasets of other file backends are
left to upstream.
"""
import os
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine import registry as registries
from mmengine.config import Config
from mmengine.dist import is_distributed
from torch.utils.data import DataLoader

from ce_mm.files import DestinationError, check_folder
from ce_mm.launching.config import PreflightError, children, default_scope, registered, trial
from ce_mm.launching.data import check_data
from ce_mm.launching.model import check_fit, check_training

Task = Literal["train", "test"]

PARTS = {"train": ("train", "val"), "test": ("test",)}
"""Task -> the parts of a config that it uses."""
TYPES = {
    "default_hooks": "HOOKS",
    "custom_hooks": "HOOKS",
    "optim_wrapper.optimizer": "OPTIMIZERS",
    "param_scheduler": "PARAM_SCHEDULERS",
    "visualizer": "VISUALIZERS",
    "visualizer.vis_backends": "VISBACKENDS",
    "val_evaluator": "METRICS",
    "test_evaluator": "METRICS",
}
"""Setting -> the registry of mmengine's in which the types are that stand in it."""
RANK = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}
"""Launcher -> the variable by which it tells each process its number."""
OF_MMENGINE = (
    "dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch",
    "disable_subprocess_warning",
)  # fmt: skip
"""What mmengine takes out of a dataloader's settings; PyTorch's DataLoader gets the others."""


def check(task: Task, cfg: Config) -> None:
    """Check what ``task`` will reach for.

    Args:
        cfg: the config as a runner of mmengine's would get it, with ``work_dir`` and, for a test, ``load_from``.

    Raises:
        PreflightError: for the first fault of the settings, the data in use, or the model and its checkpoints.
    """
    check_settings(task, cfg)
    for part in PARTS[task]:
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


def check_settings(task: Task, cfg: Config) -> None:
    """Check the settings of a run.

    Raises:
        PreflightError: for the first of these that fails: the parts of the config that belong together, the work
            folder, the launcher's variables, the types of hooks, schedules, metrics and the visualizer's backends,
            PyTorch's settings of dataloaders.
    """
    if cfg.get("runner_type") is None:
        _check_parts(task, cfg)
    try:
        check_folder(Path(os.path.abspath(cfg.work_dir)), ())
    except DestinationError as error:
        raise PreflightError(f"the work folder {error} (--work-dir)") from error
    _check_launcher(cfg.get("launcher", "none"))
    _check_types(task, cfg)
    for part in PARTS[task]:
        _check_loader(cfg.get(f"{part}_dataloader"), f"{part}_dataloader")


def _check_parts(task: str, cfg: Config) -> None:
    for part, third in (("train", "optim_wrapper"), ("val", "val_evaluator"), ("test", "test_evaluator")):
        together = (f"{part}_dataloader", f"{part}_cfg", third)
        missing = [name for name in together if cfg.get(name) is None]
        if len(missing) in (1, 2) or (missing and part == task):
            raise PreflightError(
                f"the config has no {' and no '.join(missing)}; expected {', '.join(together)} together"
                f"{'' if part == task else ', or none of them'}"
            )


def _check_launcher(launcher: str) -> None:
    variable = RANK.get(launcher)
    if variable is not None and variable not in os.environ and not is_distributed():
        raise PreflightError(
            f"--launcher {launcher}: the environment has no {variable}, which that launcher sets for each process; "
            "start the run with it (tools/dist_*.sh, tools/slurm_*.sh), or leave out --launcher"
        )


def _check_types(task: str, cfg: Config) -> None:
    unused = {"test_evaluator"} if task == "train" else {"optim_wrapper.optimizer", "param_scheduler", "val_evaluator"}
    for setting in sorted(TYPES.keys() - unused):
        value = reduce(lambda node, key: (node or {}).get(key), setting.split("."), cfg)
        for node in _typed(value):
            registered(getattr(registries, TYPES[setting]), node, default_scope(cfg), setting)


def _typed(node: Any) -> Iterator[dict]:
    """The outermost dicts that have a type; the metrics of an evaluator in its place."""
    if isinstance(node, dict) and node.get("type") is not None and "metrics" not in node:
        yield node
    else:
        for child in children(node):
            yield from _typed(child)


def _check_loader(dataloader: dict | None, setting: str) -> None:
    if isinstance(dataloader, dict):  # and not none, or several of a loop of somebody's own
        options = {name: value for name, value in dataloader.items() if name not in OF_MMENGINE}
        with trial(f"{setting} with {options}", None):
            DataLoader([0], **options)
