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

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.dist import is_distributed
from torch.utils.data import DataLoader

from ce_mm.files import check_folder
from ce_mm.launching.config import PreflightError, at, children, default_scope, registered, trial
from ce_mm.launching.data import check_data
from ce_mm.launching.model import check_fit, check_training

Task = Literal["train", "test"]

PARTS = {"train": ("train", "val"), "test": ("test",)}
"""Task -> the parts of a config that it uses."""
TYPES = {
    "default_hooks": (registries.HOOKS, "train", "test"),
    "custom_hooks": (registries.HOOKS, "train", "test"),
    "visualizer": (registries.VISUALIZERS, "train", "test"),
    "visualizer.vis_backends": (registries.VISBACKENDS, "train", "test"),
    "optim_wrapper.optimizer": (registries.OPTIMIZERS, "train"),
    "param_scheduler": (registries.PARAM_SCHEDULERS, "train"),
    "val_evaluator": (registries.METRICS, "train"),
    "test_evaluator": (registries.METRICS, "test"),
}
"""Setting -> the registry in which the types are that stand in it, and the tasks that use it."""
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
        PreflightError: for the first fault of the parts of the config that belong together, the work folder, the
            launcher's variables, the types of hooks, schedules, metrics and the visualizer's backends, PyTorch's
            settings of dataloaders, the data in use, or the model and its checkpoints.
    """
    if cfg.get("runner_type") is None:
        _check_parts(task, cfg)
    with at("--work-dir"):
        check_folder(Path(os.path.abspath(cfg.work_dir)), ())
    _check_launcher(cfg.get("launcher", "none"))
    _check_types(task, cfg)
    for part in PARTS[task]:
        _check_loader(cfg.get(f"{part}_dataloader"), f"{part}_dataloader")
    for part in PARTS[task]:
        if cfg.get(f"{part}_cfg") is not None:
            check_data(part, cfg)
    if task == "train":
        check_training(cfg)
    else:
        check_fit(cfg)


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


def _check_types(task: Task, cfg: Config) -> None:
    for setting, (registry, *tasks) in TYPES.items():
        value = reduce(lambda node, key: (node or {}).get(key), setting.split("."), cfg) if task in tasks else None
        for node in _typed(value):
            registered(registry, node, default_scope(cfg), setting)


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
