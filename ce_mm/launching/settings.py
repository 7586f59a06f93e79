"""The settings of a run, looked at before it starts: what they ask of this machine, and what their names stand for."""
import inspect
import os
from collections.abc import Iterator
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine import registry as registries
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.optim import AmpOptimWrapper
from torch.utils.data import DataLoader

from ce_mm.launching.config import PreflightError, default_scope, dicts, registered, type_name
from ce_mm.launching.trial import trial

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
PACKAGES = {
    "TensorboardVisBackend": ("tensorboard",),
    "WandbVisBackend": ("wandb",),
    "MLflowVisBackend": ("mlflow",),
    "ClearMLVisBackend": ("clearml",),
    "NeptuneVisBackend": ("neptune",),
    "DVCLiveVisBackend": ("dvclive", "pygit2"),
    "AimVisBackend": ("aim",),
}
"""A visualizer's backend -> the packages that it imports when it is first used, as the run starts."""
RANK = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}
"""Launcher -> the variable by which it tells each process its number."""
OF_MMENGINE = (
    "dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch",
    "disable_subprocess_warning",
)  # fmt: skip
"""What mmengine takes out of a dataloader's settings; PyTorch's DataLoader gets the others."""


def check_settings(task: str, cfg: Config) -> None:
    """Check the settings of a run.

    Raises:
        PreflightError: for the first of these that fails: the parts of the config that belong together, the work
            folder, the launcher's variables, mixed precision, the types of hooks, schedules and metrics, the
            visualizer's backends, PyTorch's settings of dataloaders.
    """
    if cfg.get("runner_type") is None:
        _check_parts(task, cfg)
    _check_work_dir(cfg.work_dir)
    _check_launcher(cfg.get("launcher", "none"))
    if task == "train":
        _check_precision(cfg)
    _check_types(task, cfg)
    _check_backends(cfg.get("visualizer"))
    for part in ("train", "val") if task == "train" else ("test",):
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


def _check_work_dir(work_dir: str) -> None:
    path = Path(os.path.abspath(work_dir))
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is not a folder"
        raise PreflightError(f"the work folder {work_dir}: {there} {reason}; choose another with --work-dir")


def _check_launcher(launcher: str) -> None:
    variable = RANK.get(launcher)
    if variable is not None and variable not in os.environ and not is_distributed():
        raise PreflightError(
            f"--launcher {launcher}: the environment has no {variable}, which that launcher sets for each process; "
            "start the run with it (tools/dist_*.sh, tools/slurm_*.sh), or leave out --launcher"
        )


def _check_precision(cfg: Config) -> None:
    kind = registered(registries.OPTIM_WRAPPERS, cfg.optim_wrapper, default_scope(cfg))
    if not (inspect.isclass(kind) and issubclass(kind, AmpOptimWrapper)):
        return
    try:
        AmpOptimWrapper(optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0))
    except AssertionError:
        raise PreflightError(
            "mixed precision (--amp, or AmpOptimWrapper in optim_wrapper): mmengine trains so on a GPU, an NPU, an MLU "
            "or with MUSA, and there is none here; leave it out"
        ) from None


def _check_types(task: str, cfg: Config) -> None:
    scope = default_scope(cfg)
    unused = ("test_evaluator",) if task == "train" else ("optim_wrapper.optimizer", "param_scheduler", "val_evaluator")
    for setting in sorted(TYPES.keys() - unused):
        value = reduce(lambda node, key: (node or {}).get(key), setting.split("."), cfg)
        for node in _typed(value):
            if registered(getattr(registries, TYPES[setting]), node, scope) is None:
                raise PreflightError(
                    f"{setting}: the type {node['type']!r} is unknown in {scope}; expected a registered name (one of "
                    "your own: put its module into custom_imports)"
                )


def _typed(node: Any) -> Iterator[dict]:
    """The outermost dicts that have a type."""
    if isinstance(node, dict) and node.get("type") is not None:
        yield from _typed(node["metrics"]) if "metrics" in node else (node,)
    elif isinstance(node, dict):
        for _, child in node.items():
            yield from _typed(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _typed(child)


def _check_backends(visualizer: dict | None) -> None:
    for node in dicts(visualizer):
        missing = [name for name in PACKAGES.get(type_name(node), ()) if find_spec(name) is None]
        if missing:
            raise PreflightError(
                f"visualizer: {type_name(node)} needs {' and '.join(missing)}, which is not installed; pip install "
                f"{' '.join(missing)}, or take it out of vis_backends"
            )


def _check_loader(dataloader: dict | None, setting: str) -> None:
    if not isinstance(dataloader, dict):  # none, or several of a loop of somebody's own
        return
    options = {name: value for name, value in dataloader.items() if name not in OF_MMENGINE}
    with trial(f"{setting} with {options}", None):
        DataLoader([0], **options)
